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

from .cpu import MIN_PART_TIME, run_parallel

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Axis: TypeAlias = int | tuple[int, ...] | None

_SMALL = 1024  # elements that are summed in float64 at once
_BLOCK = 16  # rows that are added one by one
_FEW = 64  # rows whose blocks are not summed in float64
_ONE_THREAD = 9216  # elements of a product; OpenBLAS uses several threads for more
_WIDTH = 256  # much shorter rows are joined to about this length
_ADD_TIME = 1e-4  # approximate time of one addition, in microseconds, for `run_parallel`
_reduce: Any = np.add.reduce
_ONES = {dtype: np.ones(8 * _BLOCK, dtype) for dtype in (np.dtype(np.float32), np.dtype(np.float64))}


def sum(a: Array, /, *, axis: Axis = None, keepdims: bool = False) -> Any:
    """The sum over `axis`. Half precision is summed in float32, bools and integers in int64."""
    if a.dtype not in _ONES:
        if a.dtype.kind == "f":
            return sum(a.astype(np.float32), axis=axis, keepdims=keepdims).astype(a.dtype)
        return _reduce(a, axis=axis, keepdims=keepdims, dtype=np.int64)
    if a.size <= _SMALL:
        return _reduce(a, axis=axis, keepdims=keepdims, dtype=np.float64).astype(a.dtype)
    axes = tuple(range(a.ndim)) if axis is None else normalize_axis_tuple(axis, a.ndim)
    if len(axes) == a.ndim and a.flags.c_contiguous or prod([a.shape[i] for i in axes]) <= _BLOCK:
        return _reduce(a, axis=axes, keepdims=keepdims)
    total = _sum(a, axes).astype(a.dtype, copy=False)
    return np.expand_dims(total, axes) if keepdims else total


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
        whole = n // _BLOCK * _BLOCK
        head, tail = np.split(a, [whole], axis)
        blocks = head.reshape(*before, n // _BLOCK, _BLOCK, *after)
        parts = [_reduce(blocks, axis=axis + 1)]
        if whole < n:
            parts.append(_reduce(tail, axis=axis, keepdims=True))
        total = _sum(np.concatenate(parts, axis), (axis,))
    return _sum(total, tuple(others)) if others else total


def _sum_rows(x: Array) -> Array:
    """(..., N, C) -> (..., C), in float64 if N is above 64. The elements of a row are contiguous."""
    *before, n, c = x.shape
    if n <= _BLOCK:
        return np.asarray(_reduce(x, axis=-2))
    if n <= 2 * _BLOCK:
        return np.asarray(_reduce(x[..., :_BLOCK, :], axis=-2) + _reduce(x[..., _BLOCK:, :], axis=-2))
    if x.size > _ONE_THREAD and c <= _WIDTH // 4 and x.strides[-2] == c * x.itemsize:  # join short rows to longer ones
        joined = min(_WIDTH // c, n // _BLOCK)
        m, rest = divmod(n, joined)
        sums = _sum_rows(x[..., : n - rest, :].reshape(*before, m, joined * c)).reshape(*before, joined, c)
        parts = [sums, _sum_rows(x[..., n - rest :, :])[..., None, :]] if rest else [sums]
        return _sum_rows(np.concatenate(parts, axis=-2, dtype=np.float64))
    sums = _sum_blocks(x)
    if sums.shape[-2] > _BLOCK and sums.size > _SMALL:
        sums = _sum_blocks(sums)
    if sums.shape[-2] > _BLOCK and sums.size > _SMALL:
        return _sum_rows(sums.astype(np.float64))
    return np.asarray(_reduce(sums, axis=-2, dtype=np.float64 if n > _FEW else None))


def _sum_blocks(x: Array) -> Array:
    """(..., N, C) -> (..., M, C): the sums of blocks of rows."""
    *before, n, c = x.shape
    ones, cost = _ONES[x.dtype], x.size * _ADD_TIME
    # OpenBLAS adds the rows of the last columns one by one, if C is not a multiple of its width.
    length = _BLOCK if c % _BLOCK or cost < MIN_PART_TIME / 4 else 8 * _BLOCK
    m, rest = divmod(n, length)
    one_thread = cost < MIN_PART_TIME and length * c < _ONE_THREAD
    if one_thread and not rest:
        return np.asarray(np.matmul(ones[:length], x.reshape(*before, m, length, c)))
    sums = np.empty((*before, m + (rest > 0), c), x.dtype)

    def part(start: int, stop: int) -> None:  # of the columns, in units of _BLOCK
        columns = slice(start * _BLOCK, stop * _BLOCK)
        if m:
            blocks = x[..., : n - rest, columns].reshape(*before, m, length, -1)
            np.matmul(ones[:length], blocks, out=sums[..., :m, columns])  # faster than np.add.reduce
        if rest:
            np.matmul(ones[:rest], x[..., n - rest :, columns], out=sums[..., m, columns])

    units = -(-c // _BLOCK)
    if one_thread:
        part(0, units)
    else:
        run_parallel(units, cost, part)
    return sums
