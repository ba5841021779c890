"""RussellGrad in the benchmark of convolution and pooling. A builder takes strings and returns the callable to time."""

from collections.abc import Callable

import numpy as np

import russellgrad as rg
from benchmarks.candidates.conv_cases import CASES
from benchmarks.candidates.model import random
from russellgrad import Tensor, no_grad


def op(name: str, mode: str) -> Callable[[], Callable[[], list[float]]]:
    """Forward ("forward"), or forward and backward with a random upstream gradient ("both")."""
    case = CASES[name]
    function = getattr(rg, case.function)
    operands = [Tensor(array, requires_grad=True) for array in case.arrays()]
    upstream = Tensor(random(*function(*operands, **case.options).shape), requires_grad=False)

    def forward() -> Callable[[], list[float]]:
        with no_grad():
            out = function(*operands, **case.options)
        return lambda: [_norm(out)]

    def both() -> Callable[[], list[float]]:
        for operand in operands:
            operand.zero_grad()
        out = function(*operands, **case.options)
        out.backward(upstream)
        return lambda: [_norm(out), *(_norm(Tensor(operand.grad)) for operand in operands)]

    return forward if mode == "forward" else both


def _norm(x: Tensor) -> float:
    return float(np.linalg.norm(x.numpy()))
