"""NumPy's primitives on arrays that refuse what goes wrong on a GPU: see `strict_array.py`.

To find, on a machine without a GPU, what would fail on one or, worse, not fail. Every primitive is NumPy's own. What
each refuses beforehand: arrays and lists of the host among its operands; float64 that meets narrower floats, or comes
of them; ids and index arrays out of range, which a device does not check; and an optimizer's step that writes where
several elements share memory.
"""

from collections.abc import Callable
from functools import wraps
from inspect import isfunction, signature
from typing import Any

import numpy as np

from . import host, numpy_backend
from .numpy_backend import *  # noqa: F403 - the loop below makes these strict
from .numpy_backend import DType, Shape
from .strict_array import Host, StrictArray, check_dtypes, check_writable, host_index, operand, refusal

name = "strict"


def _in_range(op: str, ids: Host, upper: int) -> None:
    """Raises IndexError for ids that the primitive would take unchecked."""
    if ids.size and (ids.min() < 0 or ids.max() >= upper):
        bad = int(ids.min() if ids.min() < 0 else ids.max())
        raise refusal(
            IndexError,
            f"{op}: id {bad} is not in [0, {upper})",
            "it wraps around in silence, or reads and writes memory that is not the array's",
            "make ids with xp.ids or xp.targets, which check them on the host",
        )


# What is to be checked of a primitive's arguments before NumPy sees them.
_CHECKS: dict[str, Callable[..., Any]] = {
    "getitem": lambda a, index: host_index("getitem", index, a.shape),
    "getitem_backward": lambda g, index, shape: host_index("getitem_backward", index, shape),
    "embedding": lambda weight, ids: _in_range("embedding", ids._host, weight.shape[0]),
    "embedding_backward": lambda g, ids, n_rows: _in_range("embedding_backward", ids._host, n_rows),
    "cross_entropy": lambda logits, ids, *_: _in_range("cross_entropy", ids._host, logits.shape[1]),
    "cross_entropy_backward": lambda g, probs, ids, _: _in_range("cross_entropy_backward", ids._host, probs.shape[1]),
}


# Places of the arguments that a primitive writes into.
_WRITTEN = {"sgd_step": (0, 2), "adam_step": (0, 2, 3, 11), "assign": (0,), "renumber": (0,)}
_CASTS = ("astype", "assign", "numbers", "renumber", "uniform")  # are told what dtype to make


def _strict(primitive: Callable[..., Any]) -> Callable[..., Any]:
    """NumPy's primitive, for arrays of this backend."""
    op, parameters = primitive.__name__, signature(primitive)
    kinds = [parameter.annotation for parameter in parameters.parameters.values()]
    arrays = [i for i, kind in enumerate(kinds) if kind in (Host, Host | None)]
    written = [i for i in arrays if i in _WRITTEN.get(op, ())]
    check = _CHECKS.get(op)

    @wraps(primitive)
    def strict(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            args = parameters.bind(*args, **kwargs).args
        for i in arrays[: len(args)]:
            operand(op, args[i])
        for i in written:
            if args[i] is not None:
                check_writable(op, args[i])
        if check:
            check(*args)
        inside = [_inside(op, arg) for arg in args]
        operands = [] if op in _CASTS else _arrays_in(inside)
        check_dtypes(op, operands)
        results = primitive(*inside)
        if op not in _CASTS:
            check_dtypes(op, operands, results)
        return _outside(results)

    return strict


def _inside(op: str, x: Any) -> Any:
    """x with the arrays of this backend taken out of their cover. Raises TypeError for NumPy's among them."""
    if type(x) in (tuple, list):
        return type(x)(_inside(op, part) for part in x)
    return operand(op, x)


def _outside(x: Any) -> Any:
    if isinstance(x, (tuple, list)):
        return type(x)(_outside(part) for part in x)
    return StrictArray(x) if isinstance(x, (np.ndarray, np.generic)) else x


def _arrays_in(x: Any) -> list[Host]:
    if isinstance(x, (tuple, list)):
        return [array for part in x for array in _arrays_in(part)]
    return [x] if isinstance(x, np.ndarray) else []


for _name, _primitive in list(vars(numpy_backend).items()):
    if isfunction(_primitive) and _primitive.__module__ == numpy_backend.__name__ and not _name.startswith("_"):
        globals()[_name] = _strict(_primitive)

# --- In and out of the backend: here, and with the index of a Tensor, what is on the host is welcome


def is_array(x: Any) -> bool:
    return isinstance(x, StrictArray)


def asarray(data: Any, dtype: DType = None) -> StrictArray:
    if not isinstance(data, StrictArray):
        return StrictArray(np.array(host.real_array(data, dtype)))  # a copy: a device has memory of its own
    host.check_real(data.dtype if dtype is None else np.dtype(dtype))
    return data if dtype is None or data.dtype == dtype else data.astype(dtype)


def to_host(a: StrictArray) -> Host:
    return numpy_backend.to_host(a._host)


def from_dlpack(x: Any) -> StrictArray:
    return StrictArray(numpy_backend.from_dlpack(x))


def ids(ids: Any, upper: int, op: str) -> StrictArray:
    return StrictArray(host.checked_ids(ids._host if isinstance(ids, StrictArray) else ids, upper, op))


def targets(ids: Any, upper: int, ignore: int | None, op: str) -> tuple[StrictArray, StrictArray | None]:
    given = ids._host if isinstance(ids, StrictArray) else ids
    checked, counted = host.checked_targets(given, upper, ignore, op)
    return StrictArray(checked), None if counted is None else StrictArray(counted)


def prepare_index(index: Any, shape: Shape) -> Any:
    parts = host.as_tuple(index)
    prepared: list[Any] = []
    for part, axis in zip(parts, host.axes_of(parts, len(shape)), strict=True):
        if isinstance(part, (StrictArray, list, np.ndarray)):
            array = host.index_array(part._host if isinstance(part, StrictArray) else part)
            host.check_index_array(array, axis, shape)
            part = StrictArray(array)
        prepared.append(part)
    return tuple(prepared)
