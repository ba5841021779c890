"""HIPS autograd in the benchmark of second derivatives. A builder takes strings and returns the callable to time."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd import grad, hessian, jacobian, make_hvp, value_and_grad
from autograd.differential_operators import make_jvp_reversemode

from benchmarks.candidates.hips_autograd import LIBRARY
from benchmarks.candidates.model import (
    CRITIC,
    CRITIC_BATCH,
    MLP,
    Array,
    Size,
    batches,
    build_model,
    direction,
    fingerprint,
    mlp_arrays,
    random,
)
from benchmarks.candidates.numpy_gpt import Value, logits_of, loss_of

Call = Callable[[], Callable[[], list[float]]]


def gradient(size: str, dtype: str = "float32") -> Call:
    """Forward and backward of the transformer's loss, with respect to all parameters."""
    s = Size.parse(size)
    p, batch = build_model(s, dtype).state_dict(), next(batches(s))
    of_p = value_and_grad(lambda p: loss_of(LIBRARY, p, s, *batch))

    def call() -> Callable[[], list[float]]:
        _, gradients = of_p(p)
        return lambda: _fingerprint(gradients, p)

    return call


def hessian_vector_product(size: str, dtype: str = "float32") -> Call:
    """Of the transformer's loss with respect to all parameters, by `make_hvp`."""
    s = Size.parse(size)
    p, batch = build_model(s, dtype).state_dict(), next(batches(s))
    v, of_p = direction(p), make_hvp(lambda p: loss_of(LIBRARY, p, s, *batch))

    def call() -> Callable[[], list[float]]:
        product, _ = of_p(p)
        found = product(v)
        return lambda: _fingerprint(found, p)

    return call


def jacobian_vector_product(size: str, dtype: str = "float32") -> Call:
    """The transformer's logits, and their derivative in a direction of all parameters."""
    s = Size.parse(size)
    p, (inputs, _) = build_model(s, dtype).state_dict(), next(batches(s))
    v, of_p = direction(p), make_jvp_reversemode(lambda p: logits_of(LIBRARY, p, s, inputs))

    def call() -> Callable[[], list[float]]:
        tangent = of_p(p)(v)
        return lambda: fingerprint([tangent])

    return call


def gradient_penalty() -> Call:
    """The gradient of a critic with respect to its inputs, the penalty, and its gradient with respect to weights."""
    weights, x = mlp_arrays(CRITIC), random(CRITIC_BATCH, CRITIC[0])

    def penalty_of(weights: Sequence[Value]) -> Value:
        slope = grad(lambda x: anp.sum(_mlp(weights, x)))(x)
        return anp.sum((anp.sqrt(anp.sum(slope * slope, axis=1)) - 1) ** 2) * (1 / CRITIC_BATCH)

    step = value_and_grad(penalty_of)

    def call() -> Callable[[], list[float]]:
        penalty, gradients = step(weights)
        return lambda: [float(penalty), *fingerprint(gradients[:-1])]

    return call


def full_jacobian() -> Call:
    """Of an MLP with respect to its input."""
    return _of_mlp(jacobian, lambda y: y)


def full_hessian() -> Call:
    """Of the sum of squares of an MLP's outputs with respect to its input."""
    return _of_mlp(hessian, lambda y: anp.sum(y * y))


def _of_mlp(transform: Callable[..., Any], reduce: Callable[[Value], Value]) -> Call:
    weights, x = mlp_arrays(MLP), random(MLP[0])
    of_x = transform(lambda x: reduce(_mlp(weights, x)))

    def call() -> Callable[[], list[float]]:
        result = of_x(x)
        return lambda: fingerprint([result])

    return call


def _mlp(weights: Sequence[Value], x: Value) -> Value:
    for i in range(0, len(weights), 2):
        x = anp.matmul(anp.tanh(x) if i else x, weights[i]) + weights[i + 1]
    return x


def _fingerprint(gradients: Mapping[str, Array], p: Mapping[str, Array]) -> list[float]:
    """Raises TypeError if a result has another dtype than its parameter: the times would not be comparable."""
    for name, array in p.items():
        if gradients[name].dtype != array.dtype:
            raise TypeError(f"{name} is {array.dtype}, but its derivative {gradients[name].dtype}")
    return fingerprint(np.asarray(gradients[name]) for name in p)
