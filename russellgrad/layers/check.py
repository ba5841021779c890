"""Checks of the arguments and inputs of layers."""

from collections.abc import Callable
from typing import Any

from ..backend import Shape
from ..module import Module
from ..rules import check_bool, check_int
from ..schedules import to_float
from ..tensor import Tensor


def positive(layer: str, **sizes: Any) -> None:
    """Check sizes of a layer. Raises TypeError for one that is not an int, ValueError for one that is not positive."""
    for name, size in sizes.items():
        check_int(f"{layer}: {name}", size)
        if size < 1:
            raise ValueError(f"{layer}: {name} must be positive, got {size}")


def flags(layer: str, **values: Any) -> None:
    """Check the switches of a layer. Raises TypeError for one that is not True or False."""
    for name, value in values.items():
        check_bool(f"{layer}: {name}", value)


def checked_eps(layer: str, eps: Any, name: str = "eps") -> float:
    """The eps of a norm. Raises TypeError if it is no number, ValueError if it is negative, nan or infinite."""
    return to_float(eps, f"{layer}: {name}")


def check_input(layer: Module, x: Any, fits: Callable[[Shape], bool] | None = None, expected: str = "") -> None:
    """Check the input of a layer.

    Args:
        layer: the layer.
        x: the input.
        fits: whether an input of this shape fits; by default every shape does.
        expected: the expected shape, for the message, such as "(..., 4)".

    Raises:
        TypeError: x is not a Tensor. ValueError: it does not fit.
    """
    name = type(layer).__name__
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: needs a Tensor, got a {type(x).__name__}; write Tensor(x)")
    if fits is not None and not fits(x.shape):
        raise ValueError(f"{name}: x has shape {x.shape}, expected {expected}")


def check_width(layer: Module, x: Any, weight: Tensor) -> None:
    """Check that the last axis of a layer's input has the length of a weight's first axis. Raises as `check_input`."""
    check_input(layer, x, lambda shape: shape[-1:] == weight.shape[:1], f"(..., {weight.shape[0]})")
