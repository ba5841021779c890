"""HIPS autograd for the training step and overhead benchmarks."""

from collections.abc import Callable
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd import make_vjp, value_and_grad
from autograd.scipy.special import erf
from autograd.tracer import getval, isbox

from benchmarks.candidates.model import Array, Size, batches, build_model, random
from benchmarks.candidates.numpy_gpt import SQRT_HALF, AdamW, Library, Value, loss_of


def _shifted(x: Value) -> Value:
    """x minus its maximum along the last axis. The maximum is a constant here, since it does not change the softmax."""
    constant = x
    while isbox(constant):  # one box for each derivative
        constant = getval(constant)
    return x - np.max(constant, axis=-1, keepdims=True)


def _softmax(x: Value) -> Value:
    e = anp.exp(_shifted(x))
    return e / anp.sum(e, axis=-1, keepdims=True)


def _cross_entropy(logits: Value, targets: Array) -> Value:
    z = _shifted(logits)
    chosen = z[np.arange(len(targets)), targets]
    return anp.sum(anp.log(anp.sum(anp.exp(z), axis=-1)) - chosen) * (1 / len(targets))


LIBRARY = Library(anp, lambda x: x * (0.5 * (1 + erf(x * SQRT_HALF))), _softmax, _cross_entropy)


def train_step(size: str) -> Callable[[], float]:
    s = Size.parse(size)
    arrays, data = build_model(s).state_dict(), batches(s)
    optimizer = AdamW(arrays)
    loss_and_gradients = value_and_grad(lambda p, inputs, targets: loss_of(LIBRARY, p, s, inputs, targets))

    def step() -> float:
        loss, gradients = loss_and_gradients(arrays, *next(data))
        optimizer.step(gradients)
        return float(loss)

    return step


def small_op(name: str, mode: str) -> Callable[[], Any]:
    """One op on 4 elements. `mode`: "plain" (forward), "recorded" (forward with a graph) or "both" (and backward)."""
    a, b, upstream = random(4, seed=1), random(4, seed=2), random(4)
    op = {"add": anp.add, "multiply": anp.multiply}[name]
    recorded = make_vjp(op, (0, 1))
    modes: dict[str, Callable[[], Any]] = {
        "plain": lambda: op(a, b),
        "recorded": lambda: recorded(a, b),
        "both": lambda: recorded(a, b)[0](upstream),
    }
    return modes[mode]
