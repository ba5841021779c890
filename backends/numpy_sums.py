"""Sums in NumPy with small rounding errors along every axis.

Along the innermost axis in memory NumPy sums pairwise. Along any other axis it adds one row after the other, so that
the error grows with the number of rows: the mean of a million rows of float32 near 1000 becomes 1010. Here rows are
summed in blocks, and the sums of the blocks in float64 (N. J. Higham, "The accuracy of floating point summation", SIAM
Journal on Scientific Computing 14, 1993, section 3).
"""

from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from .cpu import run_parallel

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Axis: TypeAlias = int | tuple[int, ...] | None

_SMALL = 1024  # elements that are summed in float64 at once
_FEW = 16  # rows that are added one by one
_BLOCK = 64  # rows in a block; twice as many if there are many
_ONE_THREAD = 9216  # elements of a product; OpenBLAS uses several threads for more
_STRIDED_BLOCK = 32  # as _BLOCK, for np.add.reduce
_WIDTH = 256  # much shorter rows are joined to about this length
_ADD_TIME = 1e-4  # approximate time of one addition, in microseconds, for `run_parallel`
_reduce: Any = np.add.reduce
_ONES = {dtype: np.ones(2 * _BLOCK, dtype) for dtype in (np.dtype(np.float32), np.dtype(np.float64))}


def sum(a: Array, /, *, axis: Axis = None, keepdims: bool = False) -> Any:
    """The sum over `axis`. Half precision is summed in float32, bools and integers in int64."""
    if a.dtype not in _ONES:
        if a.dtype.kind == "f":
            return sum(a.astype(np.float32), axis=axis, keepdims=keepdims).astype(a.dtype)
        return _reduce(a, axis=axis, keepdims=keepdims, dtype=np.int64)
    if a.size <= _SMALL:
        return _reduce(a, axis=axis, keepdims=keepdims, dtype=np.float64).astype(a.dtype)
    axes = tuple(range(a.ndim)) if axis is None else normalize_axis_tuple(axis, a.ndim)
    if len(axes) == a.ndim and a.flags.c_contiguous or prod([a.shape[i] for i in axes]) <= _FEW:
        return _reduce(a, axis=axes, keepdims=keepdims)
    total = _sum(a, axes).astype(a.dtype, copy=False)
    return np.expand_dims(total, axes) if keepdims else total


def sum_rows(a: Array) -> Array:
    """(N, C) -> (C,). The elements of a row are contiguous."""
    return _sum_rows(a).astype(a.dtype, copy=False)


def _sum(a: Array, axes: tuple[int, ...]) -> Array:
    """The sum of a float32 or float64 array over nonnegative axes, perhaps in float64."""
    if not a.flags.c_contiguous:
        order = sorted(range(a.ndim), key=lambda i: (a.shape[i] > 1, -abs(a.strides[i])))
        if order != list(range(a.ndim)):  # sum in the order of memory
            total = _sum(a.transpose(order), tuple(order.index(i) for i in axes))
            kept = [i for i in order if i not in axes]
            return total.transpose(sorted(range(len(kept)), key=kept.__getitem__))
    *others, axis = sorted(axes)
    if a.strides[axis] < 0:
        a = np.flip(a, axis)
    while others and others[-1] == axis - 1 and a.strides[axis - 1] == a.shape[axis] * a.strides[axis]:
        axis = others.pop()  # one axis of memory
        a = a.reshape(*a.shape[:axis], -1, *a.shape[axis + 2 :])
    before, n, after = a.shape[:axis], a.shape[axis], a.shape[axis + 1 :]
    if a.strides[axis] == 0:  # equal elements
        total = a[(slice(None),) * axis + (0,)] * n
    elif prod(after) == 1:  # pairwise
        total = _reduce(a, axis=axis)
    elif a[(0,) * (axis + 1)].flags.c_contiguous:
        total = _sum_rows(a.reshape(*before, n, -1) if len(after) > 1 else a).reshape(before + after)
    else:
        whole = n // _STRIDED_BLOCK * _STRIDED_BLOCK
        head, tail = np.split(a, [whole], axis)
        blocks = head.reshape(*before, n // _STRIDED_BLOCK, _STRIDED_BLOCK, *after)
        parts = [_reduce(blocks, axis=axis + 1)]
        if whole < n:
            parts.append(_reduce(tail, axis=axis, keepdims=True))
        total = _sum(np.concatenate(parts, axis), (axis,))
    return _sum(total, tuple(others)) if others else total


def _sum_rows(x: Array) -> Array:
    """(..., N, C) -> (..., C), in float64 if N is above 64. The elements of a row are contiguous."""
    *before, n, c = x.shape
    if n <= _FEW:
        return np.asarray(_reduce(x, axis=-2))
    ones = _ONES[x.dtype]
    if n <= _BLOCK and x.size < _ONE_THREAD:
        return np.asarray(np.matmul(ones[:n], x))  # faster than np.add.reduce
    if n > _BLOCK and c <= _WIDTH // 4 and x.strides[-2] == c * x.itemsize:  # several short rows are one longer row
        joined = min(_WIDTH // c, n // _FEW)
        m, rest = divmod(n, joined)
        sums = _sum_rows(x[..., : n - rest, :].reshape(*before, m, joined * c)).reshape(*before, joined, c)
        parts = [sums, _sum_rows(x[..., n - rest :, :])[..., None, :]] if rest else [sums]
        return _sum_rows(np.concatenate(parts, axis=-2, dtype=np.float64))
    length = _BLOCK if n <= 4 * _BLOCK else 2 * _BLOCK
    m, rest = divmod(n, length)
    sums = np.empty((*before, m + (rest > 0), c), x.dtype)

    def part(start: int, stop: int) -> None:  # of the columns
        if m:
            blocks = x[..., : m * length, start:stop].reshape(*before, m, length, stop - start)
            np.matmul(ones[:length], blocks, out=sums[..., :m, start:stop])
        if rest:
            np.matmul(ones[:rest], x[..., m * length :, start:stop], out=sums[..., m, start:stop])

    run_parallel(c, x.size * _ADD_TIME, part)
    if m + (rest > 0) <= _FEW:
        return np.asarray(_reduce(sums, axis=-2, dtype=np.float64)) if m else sums[..., 0, :]
    return _sum_rows(sums.astype(np.float64))
