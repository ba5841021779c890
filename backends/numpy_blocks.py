"""Blocks of rows that fit into the cache, on several threads, for the derived primitives in NumPy.

Elementwise NumPy code on large arrays is limited by memory bandwidth, not by arithmetic. `run_in_blocks` calls a
formula on blocks of an array that stay in the cache during all its steps. Each step writes its result over the
previous one (`out=`).
"""

from collections.abc import Callable
from math import prod
from typing import Any, TypeAlias

import numpy as np

from .cpu import run_parallel
from .numpy_sums import _ONE_THREAD

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Shape: TypeAlias = tuple[int, ...]

_BLOCK = 1 << 17  # elements; smaller blocks would fit a faster cache, but need more calls
STEP_TIME = 2e-4  # approximate time of one elementwise step on one element, in microseconds, for `run_parallel`
FLOP_TIME = 1e-5  # approximate time of one floating-point operation in a matrix product, in microseconds


def block_length(n: int, width: int) -> int:
    """The number of rows in a block, for n rows of `width` elements: all rows, or n split into an even number."""
    blocks = -(-n * width // _BLOCK)
    return n if blocks < 2 else -(-n // (-(-blocks // 2) * 2))


def run_in_blocks(formula: Callable[[slice], None], passes: int, n: int, width: int = 1) -> None:
    """Call formula(block) for blocks of n rows of `width` elements, in several threads if there is enough work.

    `passes` is the number of elementwise steps in the formula.
    """
    if n == 0:
        return
    length = block_length(n, width)
    if length == n and n * width <= _ONE_THREAD:  # for the BLAS, too, so that nothing needs to be set
        return formula(slice(0, n))

    def part(start: int, stop: int) -> None:
        for i in range(start, stop):
            formula(slice(i * length, min((i + 1) * length, n)))

    run_parallel(-(-n // length), n * width * passes * STEP_TIME, part)


def rows_of(a: Array) -> Array:
    """(..., C) -> (N, C). N is explicit, because -1 cannot be inferred if C is 0."""
    return a.reshape(prod(a.shape[:-1]), a.shape[-1])


def row_sums(a: Array) -> Array:
    """(..., C) -> (..., 1). A matrix product is several times faster than np.sum for short rows."""
    if a.shape[-1] > 1024:  # the error of a product grows with the length
        return np.asarray(np.add.reduce(a, axis=-1, keepdims=True))
    return np.asarray(a @ np.ones((a.shape[-1], 1), a.dtype))


def row_means(a: Array, weight: Array) -> Array:
    """The mean of each row of a * weight: (n, C), (C,) -> (n, 1)."""
    if len(weight) > 1024:
        return np.asarray(row_sums(a * weight) / a.dtype.type(len(weight)))
    return np.asarray(a @ (weight[:, None] / max(len(weight), 1)))


def row_max(a: Array) -> Array:
    """(..., C) -> (..., 1), of an array in C order with C > 0. np.max takes up to five times as long for short rows."""
    rows = rows_of(a)
    index = np.argmax(rows, axis=1)  # nan is the largest, as in np.max
    index += np.arange(0, rows.size, rows.shape[1])
    return np.asarray(rows.ravel()[index].reshape(*a.shape[:-1], 1))


def is_half(a: Array) -> bool:
    """Whether `a` is in half precision, for which the formulas run: they compute in float32."""
    return a.dtype.itemsize < 4
