"""NumPy's primitives on arrays that refuse what goes wrong on a GPU: see `strict_array.py`.

It finds, on a machine without a GPU, what would fail on one or, worse, give wrong results. Every primitive is NumPy's
own. Each refuses beforehand: arrays and lists of the host among its operands; float64 that meets narrower floats, or
results from them; ids and index arrays out of range, which a device does not check; and writing where several elements
share memory.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import host, numpy_backend
from .numpy_backend import *  # noqa: F403 - the loop below makes these strict
from .numpy_backend import DType
from .strict_array import Host, StrictArray, check_dtypes, check_writable, host_index, mixed, operand, refusal

name = "strict"

# Positions of the arguments that are arrays, of each primitive that is not elementwise.
_ARRAYS: dict[str, Sequence[int]] = {
    "copy": (0,), "astype": (0,), "where": (0, 1, 2), "sum": (0,), "max": (0,), "min": (0,), "argmax": (0,),
    "reshape": (0,), "transpose": (0,), "broadcast_to": (0,), "expand_dims": (0,), "concatenate": (0,),
    "getitem": (0,), "getitem_backward": (0,), "matmul": (0, 1), "full": (), "zeros": (), "arange": (),
    "erf": (0,), "leaky_relu": (0,), "leaky_relu_backward": (0, 1), "gelu": (0,), "gelu_backward": (0, 1),
    "linear": (0, 1, 2), "linear_backward": (0, 1, 2), "softmax": (0,), "softmax_backward": (0, 1),
    "log_softmax": (0,), "log_softmax_backward": (0, 1), "layer_norm": (0, 1, 2),
    "layer_norm_backward": (0, 1, 2, 3, 4), "embedding": (0, 1), "embedding_backward": (0, 1),
    "cross_entropy": (0, 1, 2), "cross_entropy_backward": (0, 1, 2, 3), "attention": (0, 1, 2, 3),
    "attention_backward": (0, 1, 2, 3, 4, 5, 6), "sgd_step": (0, 1, 2, 3, 4), "adam_step": (0, 1, 2, 3, 4, 5, 11),
    "assign": (0, 1), "split_flat": (0,), "update_scalars": (0,),
}  # fmt: skip
_WRITTEN = {"sgd_step": (0, 2), "adam_step": (0, 2, 3, 11), "assign": (0,), "update_scalars": (0,)}
_CASTS = ("astype", "assign", "update_scalars")  # the caller names the dtype


def _in_range(op: str, ids: Host, upper: int) -> None:
    """Raises IndexError for ids that the primitive would take without a check."""
    if ids.size and (ids.min() < 0 or ids.max() >= upper):
        bad = int(ids.min() if ids.min() < 0 else ids.max())
        raise refusal(
            IndexError,
            f"{op}: id {bad} is not in [0, {upper})",
            "it wraps around in silence, or reads and writes memory that is not the array's",
            "make ids with xp.check_ids or xp.check_targets, which check them on the host",
        )


# Checks of a primitive's arguments before NumPy sees them.
_CHECKS: dict[str, Callable[..., Any]] = {
    "getitem": lambda a, index: host_index("getitem", index, a.shape),
    "getitem_backward": lambda g, index, shape: host_index("getitem_backward", index, shape),
    "embedding": lambda weight, ids: _in_range("embedding", ids._host, weight.shape[0]),
    "embedding_backward": lambda g, ids, n_rows: _in_range("embedding_backward", ids._host, n_rows),
    "cross_entropy": lambda logits, ids, *_: _in_range("cross_entropy", ids._host, logits.shape[1]),
    "cross_entropy_backward": lambda g, probs, ids, _: _in_range("cross_entropy_backward", ids._host, probs.shape[1]),
}


def _elementwise(op: str, ufunc: np.ufunc) -> Callable[..., StrictArray]:
    def strict(*args: Any) -> StrictArray:
        operands = [operand(op, arg) for arg in args]
        check_dtypes(op, operands)
        result = ufunc(*operands)
        check_dtypes(op, operands, result)
        return StrictArray(result)

    return strict


def _strict(op: str, primitive: Callable[..., Any]) -> Callable[..., Any]:
    """NumPy's primitive, for arrays of this backend."""
    arrays, check = _ARRAYS[op], _CHECKS.get(op)
    written = _WRITTEN.get(op, ())

    def strict(*args: Any, **kwargs: Any) -> Any:
        for value in kwargs.values():
            if isinstance(value, np.ndarray):
                raise mixed(op, np.ndarray)
        for i in written:
            if args[i] is not None:
                check_writable(op, operand_checked(op, args[i]))
        if check:
            for i in arrays:
                if i < len(args):
                    operand(op, args[i])
            check(*args)
        inside = [_inside(op, arg) if i in arrays else _index_inside(arg) for i, arg in enumerate(args)]
        operands = [] if op in _CASTS else _arrays_in([inside[i] for i in arrays if i < len(inside)])
        check_dtypes(op, operands)
        results = primitive(*inside, **kwargs)
        if op not in _CASTS:
            check_dtypes(op, operands, results)
        given = {id(arg._host): arg for arg in args if isinstance(arg, StrictArray)}
        return _outside(results, given)

    return strict


def operand_checked(op: str, x: Any) -> StrictArray:
    """x. Raises TypeError for arrays and lists of the host."""
    operand(op, x)
    array: StrictArray = x
    return array


def _inside(op: str, x: Any) -> Any:
    """The NumPy array in a StrictArray, or those in a list of them. Raises TypeError for NumPy's own arrays."""
    if op == "concatenate":
        return [operand(op, part) for part in x]
    return operand(op, x)


def _index_inside(x: Any) -> Any:
    """What is not an operand, as an index: the arrays in a tuple."""
    if type(x) is tuple:
        return tuple(_index_inside(part) for part in x)
    return x._host if isinstance(x, StrictArray) else x


def _outside(x: Any, given: dict[int, StrictArray]) -> Any:
    """Results as StrictArrays; an array that was written in place is the one that was given."""
    if isinstance(x, (tuple, list)):
        return type(x)(_outside(part, given) for part in x)
    if isinstance(x, (np.ndarray, np.generic)):
        return given[id(x)] if id(x) in given else StrictArray(x)
    return x


def _arrays_in(x: Any) -> list[Host]:
    if isinstance(x, (tuple, list)):
        return [array for part in x for array in _arrays_in(part)]
    return [x] if isinstance(x, np.ndarray) else []


for _name, _primitive in list(vars(numpy_backend).items()):
    if isinstance(_primitive, np.ufunc):
        globals()[_name] = _elementwise(_name, _primitive)
    elif _name in _ARRAYS:
        globals()[_name] = _strict(_name, _primitive)

del prepare_index  # NumPy's leaves arrays where they are; the formula moves them  # noqa: F821

# --- Conversion: arrays of the host are welcome here, and in the index of a Tensor


def is_array(x: Any, /) -> bool:
    return isinstance(x, StrictArray)


def dtype(a: Any, /) -> Any:
    return a.dtype


def asarray(data: Any, /, dtype: DType = None) -> StrictArray:
    if not isinstance(data, StrictArray):
        return StrictArray(np.array(host.real_array(data, dtype)))  # a copy: a device has memory of its own
    host.check_real(data.dtype if dtype is None else np.dtype(dtype))
    return data if dtype is None or data.dtype == dtype else data.astype(dtype)


def to_host(a: StrictArray, /) -> Host:
    return numpy_backend.to_host(a._host)


def from_dlpack(x: Any) -> StrictArray:
    return StrictArray(numpy_backend.from_dlpack(x))
