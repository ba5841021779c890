"""Gradient clipping by the total norm, as `torch.nn.utils.clip_grad_norm_` does."""

from collections.abc import Iterable
from typing import Any

from .backend import Array, Backend
from .dtype import common_float
from .optimizer_options import listed
from .schedules import real
from .tensor import Tensor


def clip_grad_norm(params: Iterable[Tensor] | Tensor, max_norm: float) -> Tensor:
    """Clip all gradients, so that their total Euclidean norm is at most `max_norm`.

    Scales each gradient by min(1, max_norm / (norm + 1e-6)), as `torch.nn.utils.clip_grad_norm_` does. `params` may be
    one parameter, too. With `max_norm=math.inf` no gradient changes.

    Returns:
        The norm before clipping, a 0-d Tensor. The call does not wait for the device.

    Raises:
        ValueError: no parameter has a gradient, or max_norm is not positive. TypeError: a parameter is not a Tensor, or
            max_norm is not a number.
    """
    max_norm = checked_max_norm("clip_grad_norm", max_norm)
    given = [params] if isinstance(params, Tensor) else listed("clip_grad_norm", params)
    if wrong := [type(p).__name__ for p in given if not isinstance(p, Tensor)]:
        raise TypeError(f"clip_grad_norm: the parameters must be Tensors, such as model.parameters(), got a {wrong[0]}")
    with_grad = [p for p in given if p.grad is not None]
    grads = all_grads("clip_grad_norm", with_grad)
    xp = with_grad[0].backend
    norm, scale = total_norm_and_scale(xp, grads, max_norm)
    for p in with_grad:
        p.grad = xp.multiply(p.grad, xp.astype(scale, p.dtype))
    return Tensor._wrap(norm, xp)


def all_grads(op: str, params: list[Tensor]) -> list[Array]:
    """The gradients of the parameters that have one. Raises ValueError if none has."""
    grads = [p.grad for p in params if p.grad is not None]
    if not grads:
        raise ValueError(f"{op}: no parameter has a gradient; call backward() first")
    return grads


def checked_max_norm(op: str, value: Any) -> float:
    """max_norm as a float. Raises ValueError if it is not positive, TypeError if it is not a number."""
    max_norm = real(value, f"{op}: max_norm")
    if not max_norm > 0:
        raise ValueError(f"{op}: max_norm is {max_norm:g}; it must be positive")
    return max_norm


def total_norm_and_scale(xp: Backend, grads: list[Array], max_norm: float) -> tuple[Array, Array]:
    """The total Euclidean norm of the gradients and min(1, max_norm / (norm + 1e-6)), both 0-d."""
    dtype = common_float(xp, grads)
    return xp.clip_scale([g if xp.dtype(g) == dtype else xp.astype(g, dtype) for g in grads], max_norm)
