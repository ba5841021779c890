"""RussellGrad in the benchmark of second derivatives. A builder takes strings and returns the callable to time."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.candidates.model import (
    CHARACTERS,
    CRITIC,
    CRITIC_BATCH,
    MLP,
    Size,
    batches,
    build_model,
    direction,
    fingerprint,
    mlp_arrays,
    random,
)
from russellgrad import Tensor, functional_call, grad, hessian, hvp, jacobian, jvp, linear, no_grad
from russellgrad.loss import cross_entropy_loss

Call = Callable[[], Callable[[], list[float]]]


def gradient(size: str, dtype: str = "float32") -> Call:
    """Forward and backward of the transformer's loss, with respect to all parameters."""
    model = build_model(Size.parse(size), dtype)
    parameters = model.parameters()
    inputs, targets = next(batches(Size.parse(size)))

    def call() -> Callable[[], list[float]]:
        for parameter in parameters:
            parameter.zero_grad()
        cross_entropy_loss(model(inputs), targets, model.tokenizer.pad_token_id).backward()
        return lambda: fingerprint(Tensor(parameter.grad).numpy() for parameter in parameters)

    return call


def hessian_vector_product(size: str, dtype: str = "float32") -> Call:
    """Of the transformer's loss with respect to all parameters; the result cannot be differentiated further."""
    model = build_model(Size.parse(size), dtype)
    inputs, targets = next(batches(Size.parse(size)))

    def loss(p: dict[str, Tensor]) -> Tensor:
        return cross_entropy_loss(functional_call(model, p, inputs), targets, model.tokenizer.pad_token_id)

    with no_grad():
        p = {name: parameter.detach() for name, parameter in model.named_parameters()}
        v = {name: Tensor(array) for name, array in direction(model.state_dict()).items()}

    @no_grad()
    def call() -> Callable[[], list[float]]:
        product = hvp(loss, p, v)
        return lambda: _fingerprint(product.values())

    return call


def jacobian_vector_product(size: str, dtype: str = "float32") -> Call:
    """The transformer's logits, and their derivative in a direction of all parameters."""
    model = build_model(Size.parse(size), dtype)
    inputs, _ = next(batches(Size.parse(size)))

    def logits(p: dict[str, Tensor]) -> Tensor:
        return functional_call(model, p, inputs)[..., : len(CHARACTERS)]  # without that of padding

    with no_grad():
        p = {name: parameter.detach() for name, parameter in model.named_parameters()}
        v = {name: Tensor(array) for name, array in direction(model.state_dict()).items()}

    @no_grad()
    def call() -> Callable[[], list[float]]:
        _, tangent = jvp(logits, (p,), (v,))
        return lambda: _fingerprint([tangent])

    return call


def gradient_penalty() -> Call:
    """The gradient of a critic with respect to its inputs, the penalty, and its gradient with respect to weights."""
    weights = [Tensor(array, requires_grad=True) for array in mlp_arrays(CRITIC)]
    x = Tensor(random(CRITIC_BATCH, CRITIC[0]), requires_grad=False)

    def call() -> Callable[[], list[float]]:
        for weight in weights:
            weight.zero_grad()
        slope = grad(lambda x: _mlp(weights, x).sum())(x)
        penalty = (((slope * slope).sum(axis=1).sqrt() - 1) ** 2).mean()
        penalty.backward()
        # The last bias has no influence on the gradient with respect to the inputs.
        return lambda: [float(penalty), *fingerprint(Tensor(weight.grad).numpy() for weight in weights[:-1])]

    return call


def full_jacobian() -> Call:
    """Of an MLP with respect to its input."""
    return _of_mlp(lambda weights: jacobian(lambda x: _mlp(weights, x)))


def full_hessian() -> Call:
    """Of the sum of squares of an MLP's outputs with respect to its input."""
    return _of_mlp(lambda weights: hessian(lambda x: (_mlp(weights, x) ** 2).sum()))


def _of_mlp(derivative: Callable[[Sequence[Tensor]], Callable[..., Tensor]]) -> Call:
    with no_grad():
        weights, x = [Tensor(array) for array in mlp_arrays(MLP)], Tensor(random(MLP[0]))
    of_x = derivative(weights)

    @no_grad()
    def call() -> Callable[[], list[float]]:
        result = of_x(x)
        return lambda: _fingerprint([result])

    return call


def _mlp(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    for i in range(0, len(weights), 2):
        x = linear(x.tanh() if i else x, *weights[i : i + 2])
    return x


def _fingerprint(tensors: Any) -> list[float]:
    return fingerprint(np.asarray(tensor.numpy()) for tensor in tensors)
