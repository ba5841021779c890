"""MyGrad for the training step and overhead benchmarks."""

import math
from collections.abc import Callable
from typing import Any

import mygrad
import numpy as np
from mygrad.nnet.activations import softmax
from mygrad.nnet.losses import softmax_crossentropy
from mygrad.operation_base import Operation
from scipy.special import erf

from benchmarks.candidates.model import Size, batches, build_model, random
from benchmarks.candidates.numpy_gpt import SQRT_HALF, AdamW, Library, Value, loss_of

mygrad.turn_memory_guarding_off()  # MyGrad's documentation recommends it for speed


class _Gelu(Operation):  # MyGrad has no erf
    def __call__(self, x: Value) -> Value:
        self.variables = (x,)
        self.cdf = 0.5 * (1 + erf(x.data * SQRT_HALF))
        return x.data * self.cdf

    def backward_var(self, grad: Value, index: int, **kwargs: Any) -> Value:
        x = self.variables[index].data
        return grad * (self.cdf + x * (np.exp(-0.5 * (x * x)) * (1 / math.sqrt(2 * math.pi))))


LIBRARY = Library(mygrad, lambda x: mygrad.execute_op(_Gelu, x), softmax, softmax_crossentropy)


def train_step(size: str) -> Callable[[], float]:
    s = Size.parse(size)
    arrays, data = build_model(s).state_dict(), batches(s)
    optimizer = AdamW(arrays)

    def step() -> float:
        parameters = {name: mygrad.tensor(array, copy=False) for name, array in arrays.items()}
        loss = loss_of(LIBRARY, parameters, s, *next(data))
        loss.backward()
        optimizer.step({name: parameter.grad for name, parameter in parameters.items()})
        return float(loss)

    return step


def small_op(name: str, mode: str) -> Callable[[], Any]:
    """One op on 4 elements. `mode`: "plain" (forward), "recorded" (forward with a graph) or "both" (and backward)."""
    a, b = (mygrad.tensor(random(4, seed=seed)) for seed in (1, 2))
    upstream = random(4)
    forward = {"add": lambda: mygrad.add(a, b), "multiply": lambda: mygrad.multiply(a, b)}[name]
    if mode == "plain":
        mygrad.no_autodiff.__enter__()  # for the rest of the process
    return (lambda: forward().backward(upstream)) if mode == "both" else forward
