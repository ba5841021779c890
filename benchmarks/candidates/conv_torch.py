"""PyTorch in the benchmark of convolution and pooling. A builder takes strings and returns the callable to time."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's convention

from benchmarks.candidates.conv_cases import CASES
from benchmarks.candidates.model import random


def op(name: str, mode: str) -> Callable[[], Callable[[], list[float]]]:
    """Forward ("forward"), or forward and backward with a random upstream gradient ("both")."""
    case = CASES[name]
    function = getattr(F, case.function)
    operands = [torch.tensor(array, requires_grad=True) for array in case.arrays()]
    upstream = torch.tensor(random(*function(*operands, **case.options).shape))

    def forward() -> Callable[[], list[float]]:
        with torch.no_grad():
            out = function(*operands, **case.options)
        return lambda: [_norm(out)]

    def both() -> Callable[[], list[float]]:
        for operand in operands:
            operand.grad = None
        out = function(*operands, **case.options)
        out.backward(upstream)
        return lambda: [_norm(out), *(_norm(operand.grad) for operand in operands if operand.grad is not None)]

    return forward if mode == "forward" else both


def _norm(x: torch.Tensor) -> float:
    return float(x.detach().norm())
