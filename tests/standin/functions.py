"""The functions of the stand-in's `cupy`, and the few of `cupyx`. Parameters are named as CuPy names them."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy import bool_, float16, float32, float64, inf, int32, int64, nan, newaxis, pi, uint8

from russellgrad.backend import ELEMENTWISE as ELEMENTWISE_PRIMITIVES
from russellgrad.backend import Core

from .array import (
    DLPACK_CUDA,
    UFUNCS,
    DeviceCapsule,
    Host,
    add_at,
    changed,
    check_array,
    made,
    ndarray,
    new,
    numeric,
    operand,
    rubbish,
    to_host,
    view,
)
from .log import Misuse
from .stream import refuse_cublas, refuse_unknown, uploaded

# Besides ELEMENTWISE.
__all__ = [
    "absolute", "all", "any", "arange", "argmax", "argsort", "array", "asarray", "ascontiguousarray", "asnumpy",
    "bitwise_and", "bitwise_or", "bitwise_xor", "bool_", "broadcast_to", "clip", "concatenate", "count_nonzero",
    "cumsum", "einsum", "empty", "empty_like", "expand_dims", "float16", "float32", "float64", "fmod", "from_dlpack",
    "full", "inf", "int32", "int64",
    "invert", "isfinite", "isinf", "isnan", "isneginf", "matmul", "max", "mean", "min", "nan", "ndarray", "newaxis",
    "ones", "pi", "prod", "ravel", "reshape", "sort", "squeeze", "stack", "sum", "swapaxes", "take", "transpose",
    "ufunc", "uint8", "where", "zeros", "zeros_like",
]  # fmt: skip

# --- Elementwise


class ufunc:
    """An elementwise function of device arrays and scalars. Python's numbers are weak (NEP 50), NumPy's are not."""

    def __init__(self, name: str, nin: int, compute: Callable[..., Any], bfloat16: bool = True) -> None:
        self.name, self.nin, self._compute, self._bfloat16 = name, nin, compute, bfloat16
        UFUNCS[name] = self

    def at(self, a: ndarray, indices: Any, b: Any = None) -> None:
        if self.name != "add":
            raise NotImplementedError(f"standin: {self.name}.at")
        add_at(check_array("add.at", a), indices, b)

    def __call__(
        self, *args: Any, out: ndarray | None = None, dtype: Any = None, casting: str = "same_kind"
    ) -> ndarray:
        if not self.nin <= len(args) <= self.nin + 1:
            raise TypeError(f"wrong number of arguments for {self.name}: {len(args)}")
        inputs = args[: self.nin]
        target = out if len(args) == self.nin else args[self.nin]
        common = common_with_bfloat16(inputs, self._bfloat16)
        options: dict[str, Any] = {"dtype": dtype, "casting": casting}

        def compute(*hosts: Any, **more: Any) -> Any:
            return self._compute(*_as(common, hosts), **options, **more)

        if target is None:
            return made(self.name, compute, *inputs)
        check_array(self.name, target)
        changed(self.name, target, lambda host, *hosts: compute(*hosts, out=host), *inputs)
        return target


# --- bfloat16, the dtype of the package ml_dtypes


def common_with_bfloat16(operands: Sequence[Any], has_loop: bool = True) -> Any:
    """The dtype to which CuPy casts the operands if one of them is bfloat16; None if none is.

    CuPy takes the first loop that all operands can be cast to. With bool and Python ints that is bfloat16, with Python
    floats float32. A function without a loop for bfloat16 (`has_loop`) uses that for float32.
    """
    dtypes = [x.dtype for x in operands if hasattr(x, "dtype")]
    bfloat16 = next((dtype for dtype in dtypes if dtype.name == "bfloat16"), None)
    if bfloat16 is None:
        return None
    names = {dtype.name for dtype in dtypes} | {type(x).__name__ for x in operands if not hasattr(x, "dtype")}
    if names & {"int32", "int64", "float64"}:
        return np.dtype(np.float64)
    if names & {"float", "float16", "float32"}:
        return np.dtype(np.float32)
    if unknown := names - {"bfloat16", "bool", "int"}:
        raise NotImplementedError(f"standin: what CuPy makes of bfloat16 and {', '.join(sorted(unknown))} is not known")
    return bfloat16 if has_loop else np.dtype(np.float32)


def _as(dtype: Any, hosts: Sequence[Any]) -> list[Any]:
    return [*hosts] if dtype is None else [np.asarray(host).astype(dtype) for host in hosts]


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


def _of_contract(name: str) -> ufunc:
    """The elementwise primitive `name` of the contract: CuPy's function of this name, and NumPy's computes it."""
    nin = len(inspect.signature(getattr(Core, name)).parameters) - 1  # without self
    function = _power if name == "power" else getattr(np, name)
    return ufunc(getattr(np, name).__name__, nin, function, bfloat16=not name.startswith("logical_"))


ELEMENTWISE = {name: _of_contract(name) for name in ELEMENTWISE_PRIMITIVES}

# Elementwise functions that are not primitives: of operators on bool arrays, and of tests.
absolute = ELEMENTWISE["abs"]
bitwise_and = ufunc("bitwise_and", 2, np.bitwise_and)
bitwise_or = ufunc("bitwise_or", 2, np.bitwise_or)
bitwise_xor = ufunc("bitwise_xor", 2, np.bitwise_xor)
invert = ufunc("invert", 1, np.invert)
fmod = ufunc("fmod", 2, np.fmod)
isnan = ufunc("isnan", 1, np.isnan)
isinf = ufunc("isinf", 1, np.isinf)
isfinite = ufunc("isfinite", 1, np.isfinite)
erf = ufunc("erf", 1, _erf, bfloat16=False)  # cupyx.scipy.special


def where(condition: Any, x: Any = None, y: Any = None) -> ndarray:
    if x is None or y is None:
        raise NotImplementedError("standin: where() without both x and y")
    check_array("where", condition)
    common = common_with_bfloat16((x, y), has_loop=False)
    return made("where", lambda chosen, *hosts: np.where(chosen, *_as(common, hosts)), condition, x, y)


def isneginf(x: Any) -> ndarray:
    return made("isneginf", np.isneginf, check_array("isneginf", x))


def clip(a: Any, a_min: Any, a_max: Any) -> ndarray:
    bounds = [bound for bound in (a_min, a_max) if bound is not None]
    common = common_with_bfloat16((check_array("clip", a), *bounds), has_loop=False)

    def compute(*hosts: Any) -> Host:
        values, *given = _as(common, hosts)
        low = given.pop(0) if a_min is not None else None
        return np.clip(values, low, given[0] if given else None)

    return made("clip", compute, a, *bounds)


# --- New arrays


def array(obj: Any, dtype: Any = None, copy: bool | None = True, order: str = "K") -> ndarray:
    if isinstance(obj, ndarray):
        if not copy and (dtype is None or numeric(dtype) == obj.dtype):
            return obj
        known = obj.dtype if dtype is None else numeric(dtype)
        return made("copy", lambda host: np.array(host, known, order=order), obj)  # type: ignore[call-overload]
    host = np.array(obj, dtype, order=order)  # type: ignore[call-overload]
    numeric(host.dtype)
    uploaded("array")
    return new(host)  # always a copy, into device memory


def asarray(a: Any, dtype: Any = None, order: str | None = None) -> ndarray:
    return array(a, dtype, copy=False, order=order or "K")


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    """At least 1-d, as in NumPy."""
    given = asarray(a, dtype)
    if given.flags.c_contiguous:
        return given if given.ndim else given.reshape(1)
    return made("copy", np.ascontiguousarray, given)


def asnumpy(a: Any, *, order: str = "C") -> Host:
    return to_host(a, "asnumpy", order) if isinstance(a, ndarray) else np.asarray(a)


def from_dlpack(array: Any, *, copy: bool | None = None) -> ndarray:
    if array.__dlpack_device__()[0] != DLPACK_CUDA:
        raise TypeError("CPU arrays cannot be directly imported to CuPy")
    capsule = array.__dlpack__(stream=1, max_version=(1, 0), copy=copy)
    if not isinstance(capsule, DeviceCapsule):
        raise NotImplementedError("standin: memory of a real device")
    return view(capsule.array, capsule.array._host)


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return new(rubbish(shape, dtype, order))


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return full(shape, 0, dtype, order)


def ones(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return full(shape, 1, dtype, order)


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    known = None if dtype is None else numeric(dtype)
    return made("full", lambda value: np.full(shape, value, known, order), fill_value)  # type: ignore[call-overload]


def empty_like(prototype: ndarray, dtype: Any = None) -> ndarray:
    return empty(prototype.shape, prototype.dtype if dtype is None else dtype)


def zeros_like(a: ndarray, dtype: Any = None) -> ndarray:
    return zeros(a.shape, a.dtype if dtype is None else dtype)


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> ndarray:
    bounds = [operand(bound) for bound in (start, stop, step) if bound is not None]
    return made("arange", lambda: np.arange(*bounds[: 1 if stop is None else 3], dtype=dtype))


# --- Reductions


def sum(a: ndarray, axis: Any = None, dtype: Any = None, *, keepdims: bool = False) -> ndarray:
    return check_array("sum", a).sum(axis, dtype, keepdims=keepdims)


def prod(a: ndarray, axis: Any = None, dtype: Any = None, *, keepdims: bool = False) -> ndarray:
    return check_array("prod", a).prod(axis, dtype, keepdims=keepdims)


def mean(a: ndarray, axis: Any = None, dtype: Any = None, *, keepdims: bool = False) -> ndarray:
    return check_array("mean", a).mean(axis, dtype, keepdims=keepdims)


def max(a: ndarray, axis: Any = None, *, keepdims: bool = False) -> ndarray:
    return check_array("max", a).max(axis, keepdims=keepdims)


def min(a: ndarray, axis: Any = None, *, keepdims: bool = False) -> ndarray:
    return check_array("min", a).min(axis, keepdims=keepdims)


def argmax(a: ndarray, axis: Any = None, *, keepdims: bool = False) -> ndarray:
    return check_array("argmax", a).argmax(axis, keepdims=keepdims)


def any(a: ndarray, axis: Any = None, *, keepdims: bool = False) -> ndarray:
    return check_array("any", a).any(axis, keepdims=keepdims)


def all(a: ndarray, axis: Any = None, *, keepdims: bool = False) -> ndarray:
    return check_array("all", a).all(axis, keepdims=keepdims)


def count_nonzero(a: ndarray, axis: Any = None) -> ndarray:
    return made("count_nonzero", lambda host: np.count_nonzero(host, axis), check_array("count_nonzero", a))


def sort(a: ndarray, axis: int = -1) -> ndarray:
    refuse_unknown("sort")
    return made("sort", lambda host: np.sort(host, axis), check_array("sort", a))


def argsort(a: ndarray, axis: int = -1) -> ndarray:
    return made("argsort", lambda host: np.argsort(host, axis, kind="stable"), check_array("argsort", a))


def cumsum(a: ndarray, axis: int | None = None) -> ndarray:
    return made("cumsum", lambda host: np.cumsum(host, axis), check_array("cumsum", a))


# --- Shapes


def reshape(a: ndarray, newshape: Any, order: str = "C") -> ndarray:
    return check_array("reshape", a).reshape(newshape, order=order)


def ravel(a: ndarray, order: str = "C") -> ndarray:
    return check_array("ravel", a).ravel(order)


def transpose(a: ndarray, axes: Any = None) -> ndarray:
    return check_array("transpose", a).transpose(axes)


def swapaxes(a: ndarray, axis1: int, axis2: int) -> ndarray:
    return check_array("swapaxes", a).swapaxes(axis1, axis2)


def squeeze(a: ndarray, axis: Any = None) -> ndarray:
    return check_array("squeeze", a).squeeze(axis)


def expand_dims(a: ndarray, axis: Any) -> ndarray:
    return view(check_array("expand_dims", a), np.expand_dims(a._host, axis))


def broadcast_to(array: ndarray, shape: Any) -> ndarray:
    return view(check_array("broadcast_to", array), np.broadcast_to(array._host, shape))


def concatenate(tup: Sequence[ndarray], axis: Any = 0, *, dtype: Any = None, casting: str = "same_kind") -> ndarray:
    refuse_unknown("concatenate")

    def compute(*parts: Host) -> Host:
        return np.concatenate(parts, axis, dtype=dtype, casting=casting)  # type: ignore[call-overload]

    return made("concatenate", compute, *(check_array("concatenate", part) for part in tup))


def stack(tup: Sequence[ndarray], axis: int = 0, *, dtype: Any = None, casting: str = "same_kind") -> ndarray:
    return concatenate([expand_dims(part, axis) for part in tup], axis, dtype=dtype, casting=casting)


def take(a: ndarray, indices: Any, axis: int | None = None) -> ndarray:
    return check_array("take", a).take(indices, axis)


# --- Products


def matmul(*args: Any, out: ndarray | None = None) -> ndarray:
    """Takes no scalars."""
    factors = [check_array("matmul", x) for x in args]
    refuse_cublas("matmul")
    compute = _bfloat16_product if "bfloat16" in {x.dtype.name for x in factors} else np.matmul
    if out is None:
        return made("matmul", compute, *factors)
    changed("matmul", out, lambda host, *hosts: np.copyto(host, compute(*hosts), "same_kind"), *factors)
    return out


UFUNCS["matmul"] = matmul


def _bfloat16_product(a: Host, b: Host) -> Host:
    """The product of two matrices, accumulated in float32. For more axes CuPy uses its integer kernel, which fails."""
    if a.dtype != b.dtype or a.ndim != 2 or b.ndim != 2:
        given = f"{a.dtype} {a.shape} and {b.dtype} {b.shape}"
        raise NotImplementedError(f"matmul: {given}; CuPy has a product of bfloat16 for two matrices only (PR 10317)")
    return (a.astype(np.float32) @ b.astype(np.float32)).astype(a.dtype)


def einsum(*operands: Any, dtype: Any = None, optimize: bool = False) -> ndarray:
    subscripts, *factors = operands
    refuse_cublas("einsum")
    if "bfloat16" in {check_array("einsum", x).dtype.name for x in factors}:
        raise NotImplementedError("standin: einsum of bfloat16")
    return made("einsum", lambda *hosts: np.einsum(subscripts, *hosts, dtype=dtype), *factors)
