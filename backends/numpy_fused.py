"""Matrix products, softmax, layer norm, embedding and cross-entropy in NumPy, in blocks (`numpy_blocks.py`).

The function of the same name in `formulas.py` defines what each one computes.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from .cpu import run_parallel
from .numpy_blocks import FLOP_TIME, Array, block_length, is_half, row_max, row_means, row_sums, rows_of, run_in_blocks
from .numpy_sums import _ONE_THREAD, sum

_SMALL_PRODUCT = 1 << 18  # multiplications; OpenBLAS uses one thread for a product of no more

# --- Products


def matmul(a: Array, b: Array) -> Array:
    """np.matmul, split over threads along the first axis."""
    if a.ndim < 2 or b.ndim < 2 or a.shape[:-2] != b.shape[:-2]:
        return np.asarray(np.matmul(a, b))
    *batch, n, k = a.shape
    if batch and batch[0] == 1:  # split the next axis instead
        return matmul(a[0], b[0])[None]
    if a.size * b.shape[-1] <= _SMALL_PRODUCT:
        return np.asarray(np.matmul(a, b))
    out = np.empty((*batch, n, b.shape[-1]), np.result_type(a, b))

    def part(start: int, stop: int) -> None:  # of the batch, or of the rows
        np.matmul(a[start:stop], b[start:stop] if batch else b, out=out[start:stop])

    run_parallel(len(out), 2 * out.size * k * FLOP_TIME, part)
    return out


def linear(x: Array, weight: Array, bias: Array | None) -> Any:
    if is_half(x):
        return NotImplemented
    if x.size == x.shape[-1]:  # one row: the BLAS divides a large weight over its threads
        out = np.matmul(x, weight)
        return out if bias is None else np.add(out, bias)
    rows = rows_of(x)  # (N, i) @ (i, o): one product for all batch axes
    if len(rows) * weight.size <= _SMALL_PRODUCT:
        out = np.matmul(rows, weight)
        out = out if bias is None else np.add(out, bias)
        return out.reshape(*x.shape[:-1], weight.shape[1])
    operands = (x, weight) if bias is None else (x, weight, bias)
    out = np.empty((len(rows), weight.shape[1]), np.result_type(*operands))

    def part(start: int, stop: int) -> None:
        np.matmul(rows[start:stop], weight, out=out[start:stop])
        if bias is not None:
            out[start:stop] += bias

    run_parallel(len(rows), 2 * out.size * weight.shape[0] * FLOP_TIME, part)
    return out.reshape(*x.shape[:-1], weight.shape[1])


def linear_backward(g: Array, x: Array, weight: Array, needs: Sequence[bool]) -> Any:
    if is_half(g):
        return NotImplemented
    need_x, need_weight, need_bias = needs
    g2, rows = rows_of(g), rows_of(x)  # (N, o), (N, i)
    (n, o), i = g2.shape, weight.shape[0]
    gx = np.empty((n, i), g.dtype) if need_x else None
    # The gradient has the memory layout of the weight, so that an optimizer reads both in the same order.
    is_transposed = weight.flags.f_contiguous and not weight.flags.c_contiguous
    gw = np.empty((o, i) if is_transposed else (i, o), g.dtype) if need_weight else None
    left, right = (g2, rows) if is_transposed else (rows, g2)
    gb = np.empty(o, g.dtype) if need_bias else None
    shares = 64  # parts of each gradient; a thread computes the same parts of all three

    def part(start: int, stop: int) -> None:
        def share(length: int) -> slice:
            return slice(length * start // shares, length * stop // shares)

        if gx is not None:
            np.matmul(g2[share(n)], weight.T, out=gx[share(n)])
        if gw is not None:
            np.matmul(left[:, share(len(gw))].T, right, out=gw[share(len(gw))])
        if gb is not None:
            gb[share(o)] = sum(g2[:, share(o)], axis=0)

    run_parallel(shares, 2 * n * i * o * (need_x + need_weight) * FLOP_TIME, part)
    gw = gw.T if gw is not None and is_transposed else gw
    return None if gx is None else gx.reshape(x.shape), gw, gb


# --- Softmax


def softmax(a: Array, axis: int) -> Any:
    if is_half(a):
        return NotImplemented

    def formula(axis: int, a: Array, out: Array) -> None:
        np.subtract(a, _max(a, axis), out=out)  # prevents overflow
        np.exp(out, out=out)
        out /= _sum(out, axis)

    return _apply_along_axis(axis, formula, 12, a)


def softmax_backward(g: Array, y: Array, axis: int) -> Any:
    if is_half(g):
        return NotImplemented

    def formula(axis: int, g: Array, y: Array, out: Array) -> None:
        np.subtract(g, _sum(g * y, axis), out=out)
        out *= y

    return _apply_along_axis(axis, formula, 5, g, y)


def log_softmax(a: Array, axis: int) -> Any:
    if is_half(a):
        return NotImplemented

    def formula(axis: int, a: Array, out: Array) -> None:
        np.subtract(a, _max(a, axis), out=out)
        out -= np.log(_sum(np.exp(out), axis))

    return _apply_along_axis(axis, formula, 12, a)


def log_softmax_backward(g: Array, y: Array, axis: int) -> Any:
    if is_half(g):
        return NotImplemented

    def formula(axis: int, g: Array, y: Array, out: Array) -> None:
        np.exp(y, out=out)
        out *= _sum(g, axis)
        np.subtract(g, out, out=out)

    return _apply_along_axis(axis, formula, 10, g, y)


def _max(a: Array, axis: int) -> Array:
    return row_max(a) if axis == -1 and a.flags.c_contiguous else np.max(a, axis=axis, keepdims=True)


def _sum(a: Array, axis: int) -> Array:
    return row_sums(a) if axis == -1 else np.asarray(sum(a, axis=axis, keepdims=True))


def _apply_along_axis(axis: int, formula: Callable[..., None], passes: int, *arrays: Array) -> Array:
    """Call formula(axis, *arrays, out), in blocks of rows if `axis` is the last. All arrays have the same shape."""
    out = np.empty(arrays[0].shape, arrays[0].dtype)
    if out.size == 0:
        return out
    if axis not in (-1, out.ndim - 1):
        formula(axis, *arrays, out)
        return out
    rows = [rows_of(array) for array in (*arrays, out)]
    run_in_blocks(lambda block: formula(-1, *(array[block] for array in rows)), passes, len(rows[0]), out.shape[-1])
    return out


# --- Layer norm. Ba, Kiros & Hinton, "Layer normalization", arXiv:1607.06450, equation 4.


def layer_norm(x: Array, gamma: Array | None, beta: Array | None, eps: float) -> Any:
    if is_half(x):
        return NotImplemented
    if 0 < x.size <= _ONE_THREAD:
        formula_of_small = _layer_norm_row if x.size == x.shape[-1] else _layer_norm_small
        return formula_of_small(x, gamma, beta, eps)
    rows = rows_of(x)
    n, width = rows.shape
    y, mean, rstd = (np.empty((n, columns), rows.dtype) for columns in (width, 1, 1))
    count = max(width, 1)  # a row without elements has the mean 0

    def formula(block: slice) -> None:
        centered, m, r = y[block], mean[block], rstd[block]
        np.divide(row_sums(rows[block]), count, out=m)
        np.subtract(rows[block], m, out=centered)
        # The variance from x - mean: E[x^2] - E[x]^2 cancels if the mean is large.
        np.divide(row_sums(centered * centered), count, out=r)
        if np.any(m * m > r):  # the mean is large: correct its rounding error
            error = row_sums(centered) / count
            m += error
            centered -= error
            r -= error * error
        r += eps
        np.sqrt(r, out=r)
        np.divide(1.0, r, out=r)
        centered *= r
        if gamma is not None:
            centered *= gamma
        if beta is not None:
            centered += beta

    run_in_blocks(formula, 8, n, width)
    per_row = (*x.shape[:-1], 1)
    return y.reshape(x.shape), mean.reshape(per_row), rstd.reshape(per_row)


def _layer_norm_row(x: Array, gamma: Array | None, beta: Array | None, eps: float) -> tuple[Array, Array, Array]:
    """As `_layer_norm_small`, for one row, whose mean and variance are scalars: NumPy computes faster with these."""
    y, mean, rstd = normalized(x.reshape(-1), gamma, beta, eps)
    mean, rstd = np.array((mean, rstd), x.dtype).reshape(2, *x.shape[:-1], 1)
    return y.reshape(x.shape), mean, rstd


def normalized(x: Array, gamma: Array | None, beta: Array | None, eps: float) -> tuple[Array, Any, Any]:
    """Layer norm of a row (C,), computed in float64, with its mean and 1 / sqrt(variance + eps) as scalars."""
    row, average = x.astype(np.float64), _average(len(x))[:, 0]
    mean = row.dot(average)
    row -= mean
    variance = row.dot(row) / len(row)
    if mean * mean > variance:  # the mean is large: correct its rounding error
        error = row.dot(average)
        mean += error
        row -= error
        variance -= error * error
    rstd = 1.0 / np.sqrt(variance + eps)
    row *= rstd
    y = row.astype(x.dtype, copy=False)
    if gamma is not None:
        y *= gamma
    if beta is not None:
        y += beta
    return y, mean, rstd


def _layer_norm_small(x: Array, gamma: Array | None, beta: Array | None, eps: float) -> tuple[Array, Array, Array]:
    """As the formula, with fewer calls, which take all the time of a small array. In float64."""
    average = _average(x.shape[-1])
    y = x.astype(np.float64)
    mean = np.matmul(y, average)
    y -= mean
    rstd = np.matmul(y * y, average)
    if x.dtype == np.float64 and np.any(mean * mean > rstd):  # as in the formula: the mean is large
        error = np.matmul(y, average)
        mean += error
        y -= error
        rstd -= error * error
    rstd += eps
    np.sqrt(rstd, out=rstd)
    np.divide(1.0, rstd, out=rstd)
    y *= rstd
    y, mean, rstd = (array.astype(x.dtype, copy=False) for array in (y, mean, rstd))
    if gamma is not None:
        y *= gamma
    if beta is not None:
        y += beta
    return y, mean, rstd


@lru_cache(8)
def _average(n: int) -> Array:
    """(n, 1), of which a row's product is its mean."""
    return np.full((n, 1), 1.0 / n)


def layer_norm_backward(
    g: Array,
    x: Array,
    gamma: Array | None,
    mean: Array,
    rstd: Array,
    needs: Sequence[bool],
) -> Any:
    if is_half(g):
        return NotImplemented
    need_x, need_gamma, need_beta = needs
    gs, xs, means, rstds = rows_of(g), rows_of(x), rows_of(mean), rows_of(rstd)
    n, width = xs.shape
    gx = np.empty(xs.shape, g.dtype) if need_x else None
    scale = np.ones(width, g.dtype) if gamma is None else gamma
    length = block_length(n, width) or 1
    # The gradients of gamma and beta, summed in each block: the result does not depend on the number of threads.
    sums = np.empty((2, -(-n // length), width), g.dtype)

    def formula(block: slice) -> None:
        normed = xs[block] - means[block]
        normed *= rstds[block]
        g_normed = gs[block] * normed
        sums[0, block.start // length] = sum(g_normed, axis=0)
        sums[1, block.start // length] = sum(gs[block], axis=0)
        if gx is not None:
            # rstd (h - mean(h) - normed mean(h normed)), with h = g gamma.
            h = np.multiply(gs[block], scale, out=gx[block])
            h -= row_means(gs[block], scale)
            normed *= row_means(g_normed, scale)
            h -= normed
            h *= rstds[block]

    run_in_blocks(formula, 12, n, width)
    return (
        None if gx is None else gx.reshape(x.shape),
        sum(sums[0], axis=0) if need_gamma else None,
        sum(sums[1], axis=0) if need_beta else None,
    )


# --- Embedding, cross-entropy


def embedding(weight: Array, ids: Array) -> Array:
    return np.take(weight, ids, axis=0)


def embedding_backward(g: Array, ids: Array, n_rows: int) -> Any:
    """The sum of the rows of g for each id: sort by id, then sum each run of equal ids. np.add.at is slower.

    For long runs, one call for each takes less time than np.add.reduceat.
    """
    if is_half(g):
        return NotImplemented
    flat, rows = ids.ravel(), rows_of(g)
    out = np.zeros((n_rows, g.shape[-1]), g.dtype)
    if g.size <= 4096:
        np.add.at(out, flat, rows)
    else:
        order = np.argsort(flat, kind="stable")
        in_order, rows = flat[order], rows.take(order, axis=0)
        starts = np.flatnonzero(np.concatenate(([True], in_order[1:] != in_order[:-1])))
        if len(flat) < 16 * len(starts):
            out[in_order[starts]] = np.add.reduceat(rows, starts, axis=0)
        else:
            for start, stop in pairwise((*starts.tolist(), len(flat))):
                np.add.reduce(rows[start:stop], axis=0, out=out[in_order[start]])
    return out


def cross_entropy(logits: Array, ids: Array, valid: Array | None, excluded_class: int | None) -> Any:
    """The mean of -log softmax(logits)[id] over the valid rows, and the softmax; `excluded_class` has probability 0."""
    if is_half(logits):
        return NotImplemented
    z = np.array(logits)  # (N, C)
    if excluded_class is not None:
        z[:, excluded_class] = -np.inf
    z -= row_max(z)
    target = z[np.arange(len(ids)), ids]  # (N,)
    probs = np.exp(z, out=z)
    total = row_sums(probs)  # (N, 1)
    losses = np.log(total[:, 0]) - target
    probs /= total
    if valid is None:
        return np.asarray(np.mean(losses)), probs
    return np.asarray(np.sum(np.where(valid, losses, 0)) / np.count_nonzero(valid)).astype(z.dtype), probs


def cross_entropy_backward(g: Array, probs: Array, ids: Array, valid: Array | None) -> Any:
    if is_half(g):
        return NotImplemented
    if valid is None:
        scale = np.full((1, 1), g / len(ids), probs.dtype)
    else:
        scale = (valid * (g / np.count_nonzero(valid))).astype(probs.dtype)[:, None]
    out = probs * scale  # (N, C): (softmax - one-hot) / number of valid rows
    out[np.arange(len(ids)), ids] -= scale[:, 0]
    return out
