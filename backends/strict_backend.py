"""The strict backend: NumPy's primitives on arrays that reject operations which are wrong or slow on a GPU.

It finds such operations on a machine without a GPU. Every primitive is the NumPy backend's. Before running it, the
strict backend raises an error for NumPy arrays and lists among the operands, for operations of float64 with narrower
floats, for ids and indices out of range, and for writes into views whose elements share memory. See `strict_array.py`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import host, numpy_backend
from .numpy_backend import *  # noqa: F403 - the loop below wraps these
from .numpy_backend import DType
from .strict_array import (
    HostArray,
    StrictArray,
    check_dtypes,
    check_writable,
    gpu_error,
    mixed_arrays_error,
    unwrap,
    unwrap_index,
)

name = "strict"
token_block: Any = None  # generation runs the primitives instead, which are checked

# For each primitive that is not elementwise, the positions of the arguments that are arrays.
_ARRAYS: dict[str, Sequence[int]] = {
    "copy": (0,), "astype": (0,), "where": (0, 1, 2), "sum": (0,), "max": (0,), "min": (0,), "argmax": (0,),
    "argsort": (0,), "cumsum": (0,),
    "reshape": (0,), "transpose": (0,), "broadcast_to": (0,), "expand_dims": (0,), "concatenate": (0,),
    "getitem": (0,), "getitem_backward": (0,), "matmul": (0, 1), "full": (), "zeros": (), "arange": (),
    "erf": (0,), "sigmoid": (0,),
    "leaky_relu": (0,), "leaky_relu_backward": (0, 1), "gelu": (0,), "gelu_backward": (0, 1),
    "gelu_value": (0,), "swiglu": (0, 1), "swiglu_backward": (0, 1, 2),
    "linear": (0, 1, 2), "linear_backward": (0, 1, 2), "softmax": (0,), "softmax_backward": (0, 1),
    "log_softmax": (0,), "log_softmax_backward": (0, 1), "layer_norm": (0, 1, 2),
    "layer_norm_backward": (0, 1, 2, 3, 4), "rms_norm": (0, 1), "rms_norm_backward": (0, 1, 2, 3),
    "rotary": (0, 1, 2), "embedding": (0, 1), "embedding_backward": (0, 1),
    "cross_entropy": (0, 1, 2), "cross_entropy_backward": (0, 1, 2, 3), "attention": (0, 1, 2, 3),
    "attention_backward": (0, 1, 2, 3, 4, 5, 6), "sgd_step": (0, 1, 2, 3, 4), "adam_step": (0, 1, 2, 3, 4, 5, 11),
    "conv": (0, 1, 2), "conv_backward": (0, 1, 2), "max_pool_indices": (0,),
    "assign": (0, 1), "split_flat": (0,), "update_scalars": (0,),
}  # fmt: skip
_WRITTEN = {"sgd_step": (0, 2), "adam_step": (0, 2, 3, 11), "assign": (0,), "update_scalars": (0,)}
_CASTS = ("astype", "assign", "update_scalars")  # the caller chooses the dtype


def _check_range(op: str, ids: HostArray, upper: int) -> None:
    """Raise IndexError for ids out of range, which the primitive does not check."""
    if ids.size and (ids.min() < 0 or ids.max() >= upper):
        bad = int(ids.min() if ids.min() < 0 else ids.max())
        raise gpu_error(
            IndexError,
            f"{op}: id {bad} is not in [0, {upper})",
            "the id silently wraps around or accesses memory out of bounds",
            "create ids with xp.check_ids or xp.check_targets, which check them on the host",
        )


# Checks of a primitive's arguments before the call.
_CHECKS: dict[str, Callable[..., Any]] = {
    "getitem": lambda a, index: unwrap_index("getitem", index, a.shape),
    "getitem_backward": lambda g, index, shape: unwrap_index("getitem_backward", index, shape),
    "embedding": lambda weight, ids: _check_range("embedding", ids._host, weight.shape[0]),
    "embedding_backward": lambda g, ids, n_rows: _check_range("embedding_backward", ids._host, n_rows),
    "cross_entropy": lambda logits, ids, *_: _check_range("cross_entropy", ids._host, logits.shape[1]),
    "cross_entropy_backward": lambda g, probs, ids, _: _check_range(
        "cross_entropy_backward", ids._host, probs.shape[1]
    ),
}


def _strict_elementwise(op: str, ufunc: np.ufunc) -> Callable[..., StrictArray]:
    def strict(*args: Any) -> StrictArray:
        operands = [unwrap(op, arg) for arg in args]
        check_dtypes(op, operands)
        result = ufunc(*operands)
        check_dtypes(op, operands, result)
        return StrictArray(result)

    return strict


def _strict_primitive(op: str, primitive: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a primitive of the NumPy backend for StrictArrays, with all checks."""
    arrays, check = _ARRAYS[op], _CHECKS.get(op)
    written = _WRITTEN.get(op, ())

    def strict(*args: Any, **kwargs: Any) -> Any:
        for value in kwargs.values():
            if isinstance(value, np.ndarray):
                raise mixed_arrays_error(op, np.ndarray)
        unwrapped = [
            _unwrap_argument(op, arg) if i in arrays else _unwrap_index_argument(arg) for i, arg in enumerate(args)
        ]
        for i in written:
            if args[i] is not None:
                check_writable(op, args[i])
        if check:
            check(*args)
        operands = [] if op in _CASTS else _arrays_in([unwrapped[i] for i in arrays if i < len(unwrapped)])
        check_dtypes(op, operands)
        results = primitive(*unwrapped, **kwargs)
        if op not in _CASTS:
            check_dtypes(op, operands, results)
        return _wrap_results(results, {id(args[i]._host): args[i] for i in written if args[i] is not None})

    return strict


def _unwrap_argument(op: str, x: Any) -> Any:
    """As `unwrap`, for each element of the list of concatenate."""
    if op == "concatenate":
        return [unwrap(op, part) for part in x]
    return unwrap(op, x)


def _unwrap_index_argument(x: Any) -> Any:
    """An argument that is not an operand, such as an index: unwraps the StrictArrays in a tuple."""
    if type(x) is tuple:
        return tuple(_unwrap_index_argument(part) for part in x)
    return x._host if isinstance(x, StrictArray) else x


def _wrap_results(x: Any, given: dict[int, StrictArray]) -> Any:
    """The results as StrictArrays. An argument that was updated in place is returned as the same StrictArray."""
    if isinstance(x, (tuple, list)):
        return type(x)(_wrap_results(part, given) for part in x)
    if isinstance(x, (np.ndarray, np.generic)):
        return given[id(x)] if id(x) in given else StrictArray(x)
    return x


def _arrays_in(x: Any) -> list[HostArray]:
    """All arrays in nested tuples and lists."""
    if isinstance(x, (tuple, list)):
        return [array for part in x for array in _arrays_in(part)]
    return [x] if isinstance(x, np.ndarray) else []


for _name, _primitive in list(vars(numpy_backend).items()):
    if isinstance(_primitive, np.ufunc):
        globals()[_name] = _strict_elementwise(_name, _primitive)
    elif _name in _ARRAYS:
        globals()[_name] = _strict_primitive(_name, _primitive)

del prepare_index  # NumPy's does not convert index arrays; the formula does  # noqa: F821

# --- Conversion. Host arrays are allowed here, and in the index of a Tensor


def is_array(x: Any, /) -> bool:
    return isinstance(x, StrictArray)


def dtype(a: Any, /) -> Any:
    return a.dtype


def asarray(data: Any, /, dtype: DType = None) -> StrictArray:
    if not isinstance(data, StrictArray):
        return StrictArray(np.array(host.real_array(data, dtype)))  # a copy: a device has memory of its own
    wanted = host.real_dtype(data.dtype if dtype is None else dtype)
    return data if data.dtype == wanted else data.astype(wanted)


def to_host(a: StrictArray, /) -> HostArray:
    return numpy_backend.to_host(a._host)


def from_dlpack(x: Any) -> StrictArray:
    return StrictArray(numpy_backend.from_dlpack(x))
