"""Checks of the arguments of optimizers: parameters, options and numbers of steps."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .schedules import to_float
from .tensor import Tensor


def listed(op: str, params: Any) -> list[Any]:
    """The parameters or groups as a list, with the pairs (name, parameter) of `named_parameters()` replaced.

    Raises TypeError for a single Tensor (the list would hold its rows), a dict, and what cannot be iterated over.
    """
    if isinstance(params, (Tensor, Mapping)) or not isinstance(params, Iterable):
        what = "one Tensor; pass a list, [p]" if isinstance(params, Tensor) else f"a {type(params).__name__}"
        raise TypeError(f"{op}: the parameters must be a list of Tensors, such as model.parameters(), got {what}")
    pairs = ((p[1] if isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], str) else p) for p in params)
    return list(pairs)


def type_of(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def count(value: Any, what: str) -> int:
    number = to_float(value, what)
    if not number.is_integer() or number > 2**53:  # float64 represents all integers up to it
        raise ValueError(f"{what} must be an integer of at most 2**53, got {value}")
    return int(number)


def flag(value: Any, what: str) -> bool:
    if not isinstance(getattr(value, "item", lambda: value)(), bool):  # item(): np.bool_
        raise TypeError(f"{what} must be True or False, got {value!r}")
    return bool(value)


def _betas(value: Any, what: str) -> tuple[float, float]:
    is_pair = isinstance(value, (tuple, list)) or getattr(value, "ndim", 0) == 1
    if not is_pair or len(value) != 2:
        raise TypeError(f"{what} must be two numbers, got {value!r}")
    first, second = (to_float(beta, what, below=1) for beta in value)
    return first, second


# Each returns the option as a Python number, pair or bool, or raises TypeError or ValueError.
OPTIONS: Mapping[str, Callable[[Any, str], Any]] = {
    "momentum": to_float,
    "nesterov": flag,
    "weight_decay": to_float,
    "betas": _betas,
    "eps": to_float,
}
