"""The functions of the stand-in's `cupy`, and the few of `cupyx`. Parameters are named as CuPy names them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy import bool_, float16, float32, float64, inf, int32, int64, nan, newaxis, pi, uint8

from .array import (
    DLPACK_CUDA,
    UFUNCS,
    DeviceCapsule,
    Host,
    Misuse,
    array_operand,
    launched,
    ndarray,
    numeric,
    operand,
    rubbish,
    to_host,
    uploaded,
    wrap,
    writable,
)

__all__ = [
    "abs", "absolute", "add", "all", "any", "arange", "argmax", "array", "asarray", "ascontiguousarray", "asnumpy",
    "bitwise_and", "bitwise_or", "bitwise_xor", "bool_", "broadcast_to", "clip", "concatenate", "cos", "count_nonzero",
    "divide", "einsum", "empty", "empty_like", "equal", "exp", "expand_dims", "float16", "float32", "float64",
    "from_dlpack", "full", "greater", "greater_equal", "inf", "int32", "int64", "invert", "isfinite", "isinf", "isnan",
    "isneginf", "less", "less_equal", "log", "logical_and", "logical_not", "logical_or", "matmul", "max", "maximum",
    "mean", "min", "minimum", "multiply", "nan", "ndarray", "negative", "newaxis", "not_equal", "ones", "pi", "power",
    "prod", "ravel", "reshape", "sign", "sin", "sort", "sqrt", "squeeze", "stack", "subtract", "sum", "swapaxes",
    "take", "tanh", "transpose", "ufunc", "uint8", "where", "zeros", "zeros_like",
]  # fmt: skip

# --- Elementwise


class ufunc:
    """An elementwise function of device arrays and scalars. Python's numbers are weak (NEP 50), NumPy's are not."""

    def __init__(self, name: str, nin: int, compute: Callable[..., Any]) -> None:
        self.name, self.nin, self._compute = name, nin, compute
        UFUNCS[name] = self

    def __call__(
        self, *args: Any, out: ndarray | None = None, dtype: Any = None, casting: str = "same_kind"
    ) -> ndarray:
        if not self.nin <= len(args) <= self.nin + 1:
            raise TypeError(f"wrong number of arguments for {self.name}: {len(args)}")
        inputs = [operand(x) for x in args[: self.nin]]
        target = out if len(args) == self.nin else args[self.nin]
        options: dict[str, Any] = {"dtype": dtype, "casting": casting}
        if target is not None:
            array_operand(self.name, target)
            options["out"] = writable(target)
        launched(self.name)
        with np.errstate(all="ignore"):  # a device raises and warns of nothing
            result = self._compute(*inputs, **options)
        return target if target is not None else wrap(result)


def _power(a: Any, b: Any, **options: Any) -> Any:
    a_kind, b_kind = (np.asarray(x).dtype.kind for x in (a, b))
    if a_kind in "iu" and b_kind in "iu" and np.any(np.asarray(b) < 0):
        raise Misuse("power: an integer to a negative integer; CuPy gives 0 where NumPy raises")
    return np.power(a, b, **options)


_erf_of_one = np.vectorize(math.erf, otypes=[np.float64])


def _erf(a: Any, out: Host | None = None, **options: Any) -> Any:
    values = _erf_of_one(a).astype(np.float32 if np.asarray(a).dtype == np.float32 else np.float64)
    if out is None:
        return values
    np.copyto(out, values)
    return out


add = ufunc("add", 2, np.add)
subtract = ufunc("subtract", 2, np.subtract)
multiply = ufunc("multiply", 2, np.multiply)
divide = ufunc("divide", 2, np.divide)
power = ufunc("power", 2, _power)
maximum = ufunc("maximum", 2, np.maximum)
minimum = ufunc("minimum", 2, np.minimum)
equal = ufunc("equal", 2, np.equal)
not_equal = ufunc("not_equal", 2, np.not_equal)
less = ufunc("less", 2, np.less)
less_equal = ufunc("less_equal", 2, np.less_equal)
greater = ufunc("greater", 2, np.greater)
greater_equal = ufunc("greater_equal", 2, np.greater_equal)
logical_and = ufunc("logical_and", 2, np.logical_and)
logical_or = ufunc("logical_or", 2, np.logical_or)
logical_not = ufunc("logical_not", 1, np.logical_not)
bitwise_and = ufunc("bitwise_and", 2, np.bitwise_and)
bitwise_or = ufunc("bitwise_or", 2, np.bitwise_or)
bitwise_xor = ufunc("bitwise_xor", 2, np.bitwise_xor)
invert = ufunc("invert", 1, np.invert)
negative = ufunc("negative", 1, np.negative)
absolute = abs = ufunc("absolute", 1, np.absolute)
sign = ufunc("sign", 1, np.sign)
exp = ufunc("exp", 1, np.exp)
log = ufunc("log", 1, np.log)
sqrt = ufunc("sqrt", 1, np.sqrt)
tanh = ufunc("tanh", 1, np.tanh)
sin = ufunc("sin", 1, np.sin)
cos = ufunc("cos", 1, np.cos)
isnan = ufunc("isnan", 1, np.isnan)
isinf = ufunc("isinf", 1, np.isinf)
isfinite = ufunc("isfinite", 1, np.isfinite)
erf = ufunc("erf", 1, _erf)  # cupyx.scipy.special


def where(condition: Any, x: Any = None, y: Any = None) -> ndarray:
    if x is None or y is None:
        raise NotImplementedError("standin: where() without both x and y")
    chosen = array_operand("where", condition)
    launched("where")
    return wrap(np.where(chosen, operand(x), operand(y)))


def isneginf(x: Any) -> ndarray:
    launched("isneginf")
    return wrap(np.isneginf(array_operand("isneginf", x)))


def clip(a: Any, a_min: Any, a_max: Any) -> ndarray:
    low, high = (None if bound is None else operand(bound) for bound in (a_min, a_max))
    launched("clip")
    return wrap(np.clip(array_operand("clip", a), low, high))


# --- New arrays


def array(obj: Any, dtype: Any = None, copy: bool | None = True, order: str = "K") -> ndarray:
    if isinstance(obj, ndarray):
        if not copy and (dtype is None or numeric(dtype) == obj.dtype):
            return obj
        launched("copy")
        with np.errstate(all="ignore"):
            return wrap(np.array(obj._host, None if dtype is None else numeric(dtype), order=order))  # type: ignore[call-overload]
    host = np.array(obj, dtype, order=order)  # type: ignore[call-overload]
    numeric(host.dtype)
    uploaded("array")
    return wrap(host)  # always a copy: the device has memory of its own


def asarray(a: Any, dtype: Any = None, order: str | None = None) -> ndarray:
    return array(a, dtype, copy=False, order=order or "K")


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    """At least 1-d, as in NumPy."""
    given = asarray(a, dtype)
    if not given.flags.c_contiguous:
        launched("copy")
    return wrap(np.ascontiguousarray(given._host))


def asnumpy(a: Any, *, order: str = "C") -> Host:
    return to_host(a, "asnumpy", order) if isinstance(a, ndarray) else np.asarray(a)


def from_dlpack(array: Any, *, copy: bool | None = None) -> ndarray:
    if array.__dlpack_device__()[0] != DLPACK_CUDA:
        raise TypeError("CPU arrays cannot be directly imported to CuPy")
    capsule = array.__dlpack__(stream=1, max_version=(1, 0), copy=copy)
    if not isinstance(capsule, DeviceCapsule):
        raise NotImplementedError("standin: memory of a real device")
    return wrap(capsule.host)


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return wrap(rubbish(shape, dtype, order))


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return full(shape, 0, dtype, order)


def ones(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return full(shape, 1, dtype, order)


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    launched("full")
    return wrap(np.full(shape, operand(fill_value), None if dtype is None else numeric(dtype), order))  # type: ignore[call-overload]


def empty_like(prototype: ndarray, dtype: Any = None) -> ndarray:
    return empty(prototype.shape, prototype.dtype if dtype is None else dtype)


def zeros_like(a: ndarray, dtype: Any = None) -> ndarray:
    return zeros(a.shape, a.dtype if dtype is None else dtype)


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> ndarray:
    bounds = [operand(bound) for bound in (start, stop, step) if bound is not None]
    launched("arange")
    return wrap(np.arange(*bounds[: 1 if stop is None else 3], dtype=dtype))


# --- Reductions


def sum(a: ndarray, axis: Any = None, dtype: Any = None, *, keepdims: bool = False) -> ndarray:
    return _array("sum", a).sum(axis, dtype, keepdims=keepdims)


def prod(a: ndarray, axis: Any = None, dtype: Any = None, *, keepdims: bool = False) -> ndarray:
    return _array("prod", a).prod(axis, dtype, keepdims=keepdims)


def mean(a: ndarray, axis: Any = None, dtype: Any = None, *, keepdims: bool = False) -> ndarray:
    return _array("mean", a).mean(axis, dtype, keepdims=keepdims)


def max(a: ndarray, axis: Any = None, *, keepdims: bool = False) -> ndarray:
    return _array("max", a).max(axis, keepdims=keepdims)


def min(a: ndarray, axis: Any = None, *, keepdims: bool = False) -> ndarray:
    return _array("min", a).min(axis, keepdims=keepdims)


def argmax(a: ndarray, axis: Any = None, *, keepdims: bool = False) -> ndarray:
    return _array("argmax", a).argmax(axis, keepdims=keepdims)


def any(a: ndarray, axis: Any = None, *, keepdims: bool = False) -> ndarray:
    return _array("any", a).any(axis, keepdims=keepdims)


def all(a: ndarray, axis: Any = None, *, keepdims: bool = False) -> ndarray:
    return _array("all", a).all(axis, keepdims=keepdims)


def count_nonzero(a: ndarray, axis: Any = None) -> ndarray:
    launched("count_nonzero")
    return wrap(np.count_nonzero(array_operand("count_nonzero", a), axis))


def sort(a: ndarray, axis: int = -1) -> ndarray:
    launched("sort")
    return wrap(np.sort(array_operand("sort", a), axis))


# --- Shapes


def reshape(a: ndarray, newshape: Any, order: str = "C") -> ndarray:
    return _array("reshape", a).reshape(newshape, order=order)


def ravel(a: ndarray, order: str = "C") -> ndarray:
    return _array("ravel", a).ravel(order)


def transpose(a: ndarray, axes: Any = None) -> ndarray:
    return _array("transpose", a).transpose(axes)


def swapaxes(a: ndarray, axis1: int, axis2: int) -> ndarray:
    return _array("swapaxes", a).swapaxes(axis1, axis2)


def squeeze(a: ndarray, axis: Any = None) -> ndarray:
    return _array("squeeze", a).squeeze(axis)


def expand_dims(a: ndarray, axis: Any) -> ndarray:
    return wrap(np.expand_dims(array_operand("expand_dims", a), axis))


def broadcast_to(array: ndarray, shape: Any) -> ndarray:
    return wrap(np.broadcast_to(array_operand("broadcast_to", array), shape))


def concatenate(tup: Sequence[ndarray], axis: Any = 0, *, dtype: Any = None, casting: str = "same_kind") -> ndarray:
    parts = [array_operand("concatenate", part) for part in tup]
    launched("concatenate")
    return wrap(np.concatenate(parts, axis, dtype=dtype, casting=casting))  # type: ignore[call-overload]


def stack(tup: Sequence[ndarray], axis: int = 0, *, dtype: Any = None, casting: str = "same_kind") -> ndarray:
    return concatenate([expand_dims(part, axis) for part in tup], axis, dtype=dtype, casting=casting)


def take(a: ndarray, indices: Any, axis: int | None = None) -> ndarray:
    return _array("take", a).take(indices, axis)


def scatter_add(a: ndarray, slices: Any, value: Any) -> None:  # cupyx
    _array("scatter_add", a).scatter_add(slices, value)


# --- Products


def matmul(*args: Any, out: ndarray | None = None) -> ndarray:
    """Takes no scalars."""
    factors = [array_operand("matmul", x) for x in args]
    launched("matmul")
    with np.errstate(all="ignore"):
        return wrap(np.matmul(*factors, out=None if out is None else writable(out)))  # type: ignore[call-overload]


UFUNCS["matmul"] = matmul


def einsum(*operands: Any, dtype: Any = None, optimize: bool = False) -> ndarray:
    subscripts, *factors = operands
    launched("einsum")
    return wrap(np.einsum(subscripts, *(array_operand("einsum", x) for x in factors), dtype=dtype))


def _array(name: str, a: Any) -> ndarray:
    if not isinstance(a, ndarray):
        raise TypeError(f"{name}: only cupy arrays, got {type(a)}")
    return a
