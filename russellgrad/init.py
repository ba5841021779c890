"""Initial values of parameters, with the names and formulas of `torch.nn.init`.

Each function takes a shape and returns a new parameter, in the default dtype on the current backend. It draws from
`generator`, by default `random.default_generator()`; the same seed gives the same values on every backend.

    layer.weight = russellgrad.init.kaiming_normal(layer.weight.shape, nonlinearity="relu")
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from typing import Any

from .backend import Shape, get_backend
from .dtype import get_default_dtype
from .ops.shapes import shape_from_args
from .random import Generator, default_generator
from .tensor import Tensor

GPT2_STD = 0.02  # standard deviation of the initial weights of Transformers, as in GPT-2 (Radford et al. 2019)
_skipped: ContextVar[bool] = ContextVar("skipped", default=False)


@contextmanager
def skip_draws() -> Iterator[None]:
    """Inside the block, each function draws nothing and returns float32 zeros, whatever the default dtype.

    This is for a model whose values are loaded afterwards, with their dtype.
    """
    token = _skipped.set(True)
    try:
        yield
    finally:
        _skipped.reset(token)


def constant(shape: Shape, value: float, *, label: str = "") -> Tensor:
    """A parameter of this shape with `value` everywhere. Raises TypeError if the shape is not of ints."""
    xp = get_backend()
    if _skipped.get():
        return _unset(shape, label)
    return Tensor(xp.full(_checked(shape), value, get_default_dtype(xp)), requires_grad=True, label=label)


def _unset(shape: Shape, label: str) -> Tensor:
    xp = get_backend()
    return Tensor(xp.zeros(_checked(shape), "float32"), requires_grad=True, label=label)


def zeros(shape: Shape, *, label: str = "") -> Tensor:
    """A parameter of zeros. Arguments and errors are those of `constant`, with its shape."""
    return constant(shape, 0, label=label)


def ones(shape: Shape, *, label: str = "") -> Tensor:
    """A parameter of ones. Arguments and errors are those of `constant`, with its shape."""
    return constant(shape, 1, label=label)


def normal(
    shape: Shape, mean: float = 0.0, std: float = 1.0, *, generator: Generator | None = None, label: str = ""
) -> Tensor:
    """A parameter drawn from the normal distribution N(mean, std^2). Raises TypeError if the shape is not of ints."""
    xp = get_backend()
    if _skipped.get():
        return _unset(shape, label)
    values = xp.multiply((generator or default_generator()).normal(_checked(shape), get_default_dtype(xp), xp), std)
    return Tensor(xp.add(values, mean) if mean else values, requires_grad=True, label=label)


def uniform(
    shape: Shape, a: float = 0.0, b: float = 1.0, *, generator: Generator | None = None, label: str = ""
) -> Tensor:
    """A parameter drawn from the uniform distribution on [a, b). Raises TypeError if the shape is not of ints."""
    xp = get_backend()
    if _skipped.get():
        return _unset(shape, label)
    values = (generator or default_generator()).uniform(_checked(shape), get_default_dtype(xp), xp)
    return Tensor(xp.add(xp.multiply(values, b - a), a), requires_grad=True, label=label)


def xavier_uniform(shape: Shape, gain: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Uniform on [-a, a) with a = gain sqrt(6 / (fan_in + fan_out)).

    Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010, eq. 16.

    Raises ValueError for a shape with fewer than two axes.
    """
    bound = math.sqrt(3) * _xavier_std(shape, gain)
    return uniform(shape, -bound, bound, generator=generator)


def xavier_normal(shape: Shape, gain: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Normal with standard deviation gain sqrt(2 / (fan_in + fan_out)), the variance of `xavier_uniform`.

    Raises ValueError for a shape with fewer than two axes.
    """
    return normal(shape, 0.0, _xavier_std(shape, gain), generator=generator)


def kaiming_uniform(
    shape: Shape,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    *,
    generator: Generator | None = None,
) -> Tensor:
    """Uniform on [-b, b) with b = gain sqrt(3 / fan), the variance of `kaiming_normal`.

    Arguments, shapes and errors are those of `kaiming_normal`.
    """
    bound = math.sqrt(3) * _kaiming_std(shape, a, mode, nonlinearity)
    return uniform(shape, -bound, bound, generator=generator)


def kaiming_normal(
    shape: Shape,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    *,
    generator: Generator | None = None,
) -> Tensor:
    """Normal with standard deviation gain / sqrt(fan), which preserves the variance of activations across layers.

    He et al., arXiv:1502.01852, equations 10 and 14.

    Args:
        shape: (out, in, *kernel).
        a: the negative slope of "leaky_relu".
        mode: "fan_in" keeps the variance in the forward pass, "fan_out" in the backward pass.
        nonlinearity: the activation that follows the layer: see `calculate_gain`.
        generator: draws the values; by default `random.default_generator()`.

    Raises:
        ValueError: an unknown mode or nonlinearity, or a shape with fewer than two axes.
    """
    return normal(shape, 0.0, _kaiming_std(shape, a, mode, nonlinearity), generator=generator)


def _xavier_std(shape: Shape, gain: float) -> float:
    fans = sum(fan_in_and_fan_out(shape))
    return gain * math.sqrt(2 / fans) if fans else 0.0


def _kaiming_std(shape: Shape, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"kaiming: mode must be 'fan_in' or 'fan_out', got {mode!r}")
    fan = fan_in_and_fan_out(shape)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(fan) if fan else 0.0


def calculate_gain(nonlinearity: str, param: float = 0.01) -> float:
    """The recommended gain for an activation, as `torch.nn.init.calculate_gain`. `param` is the slope of "leaky_relu".

    Raises ValueError for an unknown activation.
    """
    gains = {
        "linear": 1.0,
        "sigmoid": 1.0,
        "tanh": 5 / 3,
        "relu": math.sqrt(2),
        "leaky_relu": math.sqrt(2 / (1 + param**2)),
        "selu": 3 / 4,
    }
    if nonlinearity not in gains:
        raise ValueError(f"calculate_gain: unknown nonlinearity {nonlinearity!r}; known are {', '.join(gains)}")
    return gains[nonlinearity]


def fan_in_and_fan_out(shape: Shape) -> tuple[int, int]:
    """fan_in and fan_out of a weight (out, in, *kernel): the number of inputs per output, and of outputs per input.

    Raises ValueError for a shape with fewer than two axes.
    """
    if len(_checked(shape)) < 2:
        raise ValueError(f"fan_in_and_fan_out: a shape (out, in, *kernel) has at least two axes, got {shape}")
    kernel = prod(shape[2:])
    return shape[1] * kernel, shape[0] * kernel


def _checked(shape: Any) -> Shape:
    """The shape. Raises TypeError if it is not a sequence of ints."""
    if isinstance(shape, Tensor):
        raise TypeError(
            "init: needs a shape, got a Tensor; the functions return a new parameter, as in layer.weight = "
            "init.kaiming_normal(layer.weight.shape)"
        )
    return shape_from_args("init", (shape,))
