"""MLX, an array library for Apple's machines, as a backend: the core primitives.

    pip install mlx            # on Linux: "mlx[cpu]"
    python -m russellgrad.conformance examples.mlx_backend
    RG_BACKEND=examples.mlx_backend python train/train_transformer.py

A function of MLX with the meaning of the contract is one line. Comments say what the others differ in. Arrays are on
MLX's default device. float64 is on the CPU only.
"""

import operator
from functools import partial
from math import prod
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np

from russellgrad.backends import host  # type: ignore[attr-defined]

Array: TypeAlias = Any  # mlx.core.array
Axis: TypeAlias = int | tuple[int, ...] | None

name = "mlx"
_has_float64 = mx.default_device().type == mx.cpu

# --- Conversion and creation

copy, to_host = mx.array, partial(np.array, order="C")


def float_dtypes() -> tuple[str, ...]:
    return ("float16", "float32", "float64") if _has_float64 else ("float16", "float32")


def is_array(x: Any, /) -> bool:
    return isinstance(x, mx.array)


def dtype(a: Array, /) -> Any:
    return np.dtype(str(a.dtype).removeprefix("mlx.core."))


def _mlx_dtype(wanted: Any) -> Any:
    found = host.real_dtype(wanted)
    if found == np.float64 and not _has_float64:
        raise TypeError("asarray: MLX has no float64 on the GPU; cast to float32")
    return mx.bool_ if found.name == "bool" else getattr(mx, found.name)


def asarray(data: Any, /, dtype: Any = None) -> Array:
    if not is_array(data):
        array = np.array(host.real_array(data, dtype), order="C")  # MLX takes no negative strides
        return mx.array(array, dtype=_mlx_dtype(array.dtype))  # without a dtype, float64 would become float32
    if str(data.dtype) not in _REAL:
        raise TypeError(f"asarray: cannot make an array of MLX's {data.dtype}; pass real numbers, not bfloat16")
    return data if dtype is None else data.astype(_mlx_dtype(dtype))


_REAL = {f"mlx.core.{kind}{bits}" for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)} | {"mlx.core.bool"}


def astype(a: Array, dtype: Any, /) -> Array:
    return a.astype(_mlx_dtype(dtype))


def full(shape: tuple[int, ...], value: float, /, dtype: Any) -> Array:
    return mx.full(shape, mx.array(value, _mlx_dtype(dtype)))  # mx.full of a number and bool_ gives int32


def arange(n: int, /) -> Array:
    return mx.arange(n, dtype=mx.int64)  # int32 is MLX's default


# --- Elementwise

add, subtract, multiply, divide = mx.add, mx.subtract, mx.multiply, mx.divide
power, negative, remainder = mx.power, mx.negative, mx.remainder
expm1, log, log1p, log2, log10, sqrt = mx.expm1, mx.log, mx.log1p, mx.log2, mx.log10, mx.sqrt
tanh, sinh, cosh = mx.tanh, mx.sinh, mx.cosh
arcsin, arccos, arctan, arctan2 = mx.arcsin, mx.arccos, mx.arctan, mx.arctan2
floor, ceil, rint, abs = mx.floor, mx.ceil, mx.round, mx.abs
maximum, minimum = mx.maximum, mx.minimum
equal, not_equal, less, less_equal = mx.equal, mx.not_equal, mx.less, mx.less_equal
greater, greater_equal = mx.greater, mx.greater_equal
logical_and, logical_or, logical_not = mx.logical_and, mx.logical_or, mx.logical_not


# mx.exp, mx.sin and mx.cos of float64 have the accuracy of float32. Of what is not returned, MLX computes nothing.


def exp(a: Array, /) -> Array:
    grown = mx.expm1(mx.abs(a)) + 1
    return mx.where(a < 0, 1 / grown, grown) if a.dtype == mx.float64 else mx.exp(a)


def sin(a: Array, /) -> Array:
    t = mx.tan(a / 2)
    return 2 * t / (1 + t * t) if a.dtype == mx.float64 else mx.sin(a)


def cos(a: Array, /) -> Array:
    t = mx.tan(a / 2)
    return (1 - t * t) / (1 + t * t) if a.dtype == mx.float64 else mx.cos(a)


def sign(a: Array, /) -> Array:
    return mx.where(a == a, mx.sign(a), a)  # mx.sign(nan) is 0


def floor_divide(a: Array, b: Array, /) -> Array:
    like = a if is_array(a) else b
    if not mx.issubdtype(like.dtype, mx.floating):
        return mx.floor_divide(a, b)
    # mx.floor_divide is the floor of the rounded quotient: 10 for 1 and 0.1 in float32. This is NumPy's algorithm.
    a, b = (x if is_array(x) else mx.array(x, like.dtype) for x in (a, b))
    rest = mx.sign(a) * mx.remainder(mx.abs(a), mx.abs(b))
    below = mx.logical_and(rest != 0, (b < 0) != (rest < 0))
    return mx.where(b == 0, a / b, mx.round((a - rest) / b) - below)


def where(condition: Array, a: Array, b: Array, /) -> Array:
    if not (is_array(a) or is_array(b)) and float in (type(a), type(b)) and _has_float64:
        a = mx.array(a, mx.float64)  # of two numbers, MLX makes float32
    return mx.where(condition, a, b)


# --- Reductions, and along one axis

max, min = mx.max, mx.min


def sum(a: Array, /, *, axis: Axis = None, keepdims: bool = False) -> Array:
    # On the CPU, mx.sum adds one by one, in the dtype of `a`; of bools it makes int32. Only the CPU has float64.
    floats = mx.issubdtype(a.dtype, mx.floating)
    if not a.size:  # of a transposed array without elements, mx.sum takes ten seconds
        shape = np.sum(np.empty(a.shape, "bool"), axis=axis, keepdims=keepdims).shape
        return full(shape, 0, dtype(a) if floats else "int64")
    wide = a.astype(mx.float64 if floats else mx.int64, stream=mx.cpu)
    total = mx.sum(wide, axis=axis, keepdims=keepdims, stream=mx.cpu)
    return total.astype(a.dtype, stream=mx.cpu) if floats else total


def argmax(a: Array, /, *, axis: int | None = None, keepdims: bool = False) -> Array:
    if axis is not None and not a.size and a.shape[axis]:  # MLX refuses it
        return sum(mx.zeros(a.shape, mx.int64), axis=axis, keepdims=keepdims)
    return mx.argmax(a, axis=axis, keepdims=keepdims).astype(mx.int64)  # uint32 in MLX


def argsort(a: Array, axis: int, /) -> Array:
    return mx.argsort(a, axis).astype(mx.int64)  # uint32 in MLX


def cumsum(a: Array, axis: int, /) -> Array:
    floats = mx.issubdtype(a.dtype, mx.floating)
    sums = mx.cumsum(a.astype(mx.float64 if floats else mx.int64, stream=mx.cpu), axis, stream=mx.cpu)
    return sums.astype(a.dtype, stream=mx.cpu) if floats else sums


# --- Shapes, indices, products

reshape, transpose, broadcast_to = mx.reshape, mx.transpose, mx.broadcast_to
expand_dims, concatenate = mx.expand_dims, mx.concatenate


def getitem(a: Array, index: Any, /) -> Array:
    plain = tuple(0 if is_array(part) else part for part in index)
    for part, axis in zip(index, host.index_axes(plain, a.ndim), strict=True):  # MLX checks no index
        if isinstance(part, int) and not -a.shape[axis] <= part < a.shape[axis]:
            raise IndexError(f"index {part} is out of bounds for axis {axis} of length {a.shape[axis]}")
    return operator.getitem(a, index)


def getitem_backward(g: Array, index: Any, shape: tuple[int, ...], /) -> Array:
    # By the elements' numbers: `at` loses gradients where an int stands beside an array, and raises for no elements.
    places = getitem(mx.arange(prod(shape), dtype=mx.int64).reshape(shape), index)
    out = mx.zeros(prod(shape), wide := mx.float32 if g.dtype == mx.float16 else g.dtype)
    if g.size:
        out = out.at[places.reshape(-1)].add(g.astype(wide).reshape(-1))
    return out.reshape(shape).astype(g.dtype)


def matmul(a: Array, b: Array, /) -> Array:
    if mx.issubdtype(a.dtype, mx.floating):
        if mx.default_device().type != mx.cpu:
            return mx.matmul(a, b)
        # The wheels for Linux have the reference BLAS, which adds element by element.
        return mx.matmul(a.astype(mx.float64), b.astype(mx.float64)).astype(a.dtype)
    rows, columns = a if a.ndim > 1 else a[None], b if b.ndim > 1 else b[:, None]  # MLX has no products of integers
    product = sum(rows[..., None] * columns[..., None, :, :], axis=-2).astype(a.dtype)
    return product.squeeze([i for i, x in ((-2, a), (-1, b)) if x.ndim == 1])
