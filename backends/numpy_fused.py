"""Fused NumPy implementations of derived primitives: in cache-sized blocks, in place, on several threads.

Elementwise NumPy code on large arrays is limited by memory bandwidth, not by arithmetic. The functions here process an
array in blocks that stay in the cache during all steps of a formula, write each result over the previous one (`out=`),
and distribute the blocks over threads. The function of the same name in `formulas.py` defines what each one computes.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from math import pi, prod
from math import sqrt as _sqrt
from typing import Any, TypeAlias

import numpy as np

from .cpu import run_parallel
from .formulas import ERF_SMALL, ERFC_LARGE, ERFC_MIDDLE
from .numpy_sums import _ONE_THREAD, sum

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
DType: TypeAlias = Any
Shape: TypeAlias = tuple[int, ...]

# --- Blocks and threads

_BLOCK = 1 << 17  # elements; smaller blocks would fit a faster cache, but need more calls
_STEP_TIME = 2e-4  # approximate time of one elementwise step on one element, in microseconds, for `run_parallel`
_SMALL_WEIGHT = 1 << 16  # elements; the BLAS's threads would go on spinning after a larger product
_FLOP_TIME = 1e-5  # approximate time of one floating-point operation in a matrix product, in microseconds
_SMALL_PRODUCT = 1 << 18  # multiplications; OpenBLAS uses one thread for a product of no more


def _block_length(n: int, width: int) -> int:
    """The number of rows in a block, for n rows of `width` elements: all rows, or n split into an even number."""
    blocks = -(-n * width // _BLOCK)
    return n if blocks < 2 else -(-n // (-(-blocks // 2) * 2))


def _run_in_blocks(formula: Callable[[slice], None], passes: int, n: int, width: int = 1) -> None:
    """Call formula(block) for blocks of n rows of `width` elements, in several threads if there is enough work.

    `passes` is the number of elementwise steps in the formula.
    """
    if n == 0:
        return
    length = _block_length(n, width)
    if length == n and n * width <= _ONE_THREAD:  # for the BLAS, too, so that nothing needs to be set
        return formula(slice(0, n))

    def part(start: int, stop: int) -> None:
        for i in range(start, stop):
            formula(slice(i * length, min((i + 1) * length, n)))

    run_parallel(-(-n // length), n * width * passes * _STEP_TIME, part)


# --- Error function


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Array) -> Array:
    """The rational function at x, numerator / denominator, by Horner's method."""
    values = []
    for polynomial in coefficients:
        value = np.full_like(x, polynomial[0])
        for c in polynomial[1:]:
            value *= x
            value += c
        values.append(value)
    return np.asarray(values[0] / values[1])


def erf(a: Array) -> Array:
    """The error function (Cody 1969): one rational function for each of three ranges of |a|.

    The relative error in float64 is below 5e-16. float32 uses one polynomial, which is ten times as fast; its absolute
    error is below 1.4e-7.
    """
    if a.dtype.itemsize <= 4:
        single: Array = np.asarray(a, dtype=np.float32)
        return _erf_single(single, np.minimum(single * single, _LARGE), _ERF_OF_X).astype(a.dtype, copy=False)
    wide = np.atleast_1d(a).astype(np.float64, copy=False)
    y = np.abs(wide)
    result = np.sign(wide)  # erf is 1 in double precision beyond 6
    small = y <= 0.46875
    large = y > 4.0
    x = wide[small]
    result[small] = x * _ratio(ERF_SMALL, x * x)
    middle = ~(small | large | np.isnan(y))
    x = y[middle]
    result[middle] *= 1.0 - np.exp(-x * x) * _ratio(ERFC_MIDDLE, x)
    large &= y <= 6.0
    x = y[large]
    z = 1.0 / (x * x)
    result[large] *= 1.0 - np.exp(-x * x) / x * (1.0 / _sqrt(pi) - z * _ratio(ERFC_LARGE, z))
    return np.asarray(result.reshape(a.shape), dtype=a.dtype)


def _single(*numbers: float) -> tuple[Array, ...]:
    """The numbers as 0-d arrays in float32. NumPy takes twice as long with a Python number and a small array."""
    return tuple(np.array(number, np.float32) for number in numbers)


# Coefficients, highest power first, of a polynomial in x^2 that approximates atanh(erf(x)) / x on 0 < x <= 4. Fitted
# by least squares, weighted to minimize the maximum error of erf, which is 6e-8.
_ERF_SINGLE = (
    1.58950415e-7, -5.98555505e-6, 8.97119216e-5, -6.25718141e-4, -1.84385045e-4, 1.02765482e-1, 1.12837971,
)  # fmt: skip
_ERF_OF_X = _single(*_ERF_SINGLE)
_ERF_OF_SCALED = _single(*(c * 0.5 ** (6.5 - i) for i, c in enumerate(_ERF_SINGLE)))  # of x / sqrt(2), in x
_ONE, _HALF, _MINUS_HALF, _DENSITY_AT_0, _LARGE = _single(1.0, 0.5, -0.5, 1.0 / _sqrt(2.0 * pi), 256.0)


def _erf_single(x: Array, square: Array, coefficients: tuple[Array, ...]) -> Array:
    """erf in float32, as tanh of a polynomial. `square` is at most 256, where the polynomial does not overflow."""
    value = np.asarray(square * coefficients[0])
    for c in coefficients[1:-1]:
        value += c
        value *= square
    value += coefficients[-1]
    value *= x
    return np.asarray(np.tanh(value, out=value))


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

    run_parallel(len(out), 2 * out.size * k * _FLOP_TIME, part)
    return out


def linear(x: Array, weight: Array, bias: Array | None) -> Any:
    if _is_half(x):
        return NotImplemented
    if x.size == x.shape[-1]:  # one row: the BLAS divides a large weight over its threads
        out = np.matmul(x, weight)
        return out if bias is None else np.add(out, bias)
    rows = _rows(x)  # (N, i) @ (i, o): one product for all batch axes
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

    run_parallel(len(rows), 2 * out.size * weight.shape[0] * _FLOP_TIME, part)
    return out.reshape(*x.shape[:-1], weight.shape[1])


def linear_backward(g: Array, x: Array, weight: Array, needs: Sequence[bool]) -> Any:
    if _is_half(g):
        return NotImplemented
    need_x, need_weight, need_bias = needs
    g2, rows = _rows(g), _rows(x)  # (N, o), (N, i)
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

    run_parallel(shares, 2 * n * i * o * (need_x + need_weight) * _FLOP_TIME, part)
    gw = gw.T if gw is not None and is_transposed else gw
    return None if gx is None else gx.reshape(x.shape), gw, gb


def _rows(a: Array) -> Array:
    """(..., C) -> (N, C). N is explicit, because -1 cannot be inferred if C is 0."""
    return a.reshape(prod(a.shape[:-1]), a.shape[-1])


def _row_sums(a: Array) -> Array:
    """(..., C) -> (..., 1). A matrix product is several times faster than np.sum for short rows."""
    if a.shape[-1] > 1024:  # the error of a product grows with the length
        return np.asarray(np.add.reduce(a, axis=-1, keepdims=True))
    return np.asarray(a @ np.ones((a.shape[-1], 1), a.dtype))


def _row_max(a: Array) -> Array:
    """(..., C) -> (..., 1), of an array in C order with C > 0. np.max takes up to five times as long for short rows."""
    rows = _rows(a)
    index = np.argmax(rows, axis=1)  # nan is the largest, as in np.max
    index += np.arange(0, rows.size, rows.shape[1])
    return np.asarray(rows.ravel()[index].reshape(*a.shape[:-1], 1))


def _is_half(a: Array) -> bool:
    """Whether `a` is in half precision, for which the formulas run: they compute in float32."""
    return a.dtype.itemsize < 4


# --- Fused: activations. Hendrycks & Gimpel, "Gaussian error linear units", arXiv:1606.08415, section 2.

_GELU_C = _sqrt(2.0 / pi)


def gelu(a: Array, approximate: str) -> tuple[Array, Array]:
    """a Phi(a), and its derivative Phi(a) + a Phi'(a), computed together while a is in the cache."""
    out, slope = _gelu(a, approximate, True)
    assert slope is not None
    return out, slope


def gelu_value(a: Array, approximate: str) -> Array:
    return _gelu(a, approximate, False)[0]


def _gelu(a: Array, approximate: str, with_slope: bool) -> tuple[Array, Array | None]:
    if a.dtype.itemsize < 4:  # squares overflow in half precision
        results = _gelu(a.astype(np.float32), approximate, with_slope)
        return results[0].astype(a.dtype), None if results[1] is None else results[1].astype(a.dtype)
    exact = _gelu_exact_single if a.dtype.itemsize == 4 else _gelu_exact
    formula = exact if approximate == "none" else _gelu_tanh
    flat = a.reshape(-1)
    out = np.empty(flat.shape, a.dtype)
    if not with_slope:
        _run_in_blocks(lambda block: formula(flat[block], out[block], None), 19, flat.size)
        return out.reshape(a.shape), None
    slope = np.empty(flat.shape, a.dtype)
    _run_in_blocks(lambda block: formula(flat[block], out[block], slope[block]), 25, flat.size)
    return out.reshape(a.shape), slope.reshape(a.shape)


def gelu_backward(g: Array, saved: Array, approximate: str) -> Array:
    return _multiply(g, saved)


def _gelu_exact_single(a: Array, out: Array, slope: Array | None) -> None:
    """Phi is the standard normal distribution function, Phi' its density. In float32."""
    square = a * a
    np.minimum(square, _LARGE, out=square)
    cdf = _erf_single(a, square, _ERF_OF_SCALED)
    cdf += _ONE
    cdf *= _HALF
    np.multiply(a, cdf, out=out)
    if slope is not None:
        np.multiply(square, _MINUS_HALF, out=slope)
        np.exp(slope, out=slope)
        slope *= a
        slope *= _DENSITY_AT_0
        slope += cdf


def _gelu_exact(a: Array, out: Array, slope: Array | None) -> None:
    cdf = erf(a * _sqrt(0.5))
    cdf += 1.0
    cdf *= 0.5
    np.multiply(a, cdf, out=out)
    if slope is not None:
        np.multiply(a, a, out=slope)
        slope *= -0.5
        np.exp(slope, out=slope)
        slope *= a
        slope *= 1.0 / _sqrt(2.0 * pi)
        slope += cdf


def _gelu_tanh(a: Array, out: Array, slope: Array | None) -> None:
    """Phi = (1 + tanh(c (a + 0.044715 a^3))) / 2, so Phi' = 2 Phi (1 - Phi) c (1 + 3 * 0.044715 a^2)."""
    square = a * a
    cdf = np.multiply(square, _GELU_C * 0.044715)
    cdf += _GELU_C
    cdf *= a
    np.tanh(cdf, out=cdf)
    cdf += 1.0
    cdf *= 0.5
    np.multiply(a, cdf, out=out)
    if slope is not None:
        np.subtract(1.0, cdf, out=slope)
        slope *= out  # a Phi (1 - Phi), which is 0 for large |a|, before the square overflows
        square *= 6.0 * _GELU_C * 0.044715
        square += 2.0 * _GELU_C
        slope *= square
        slope += cdf


# Maas, Hannun & Ng, "Rectifier nonlinearities improve neural network acoustic models", ICML workshop 2013, section 2.


def leaky_relu(a: Array, alpha: float) -> Array:
    return _multiply(a, a, alpha)


def leaky_relu_backward(g: Array, a: Array, alpha: float) -> Array:
    return _multiply(g, a, alpha)


def _multiply(g: Array, by: Array, alpha: float | None = None) -> Array:
    """g * by, or with alpha, g * (1 where by > 0, else alpha)."""
    gs, slopes = g.reshape(-1), by.reshape(-1)
    out = np.empty(gs.shape, g.dtype)
    low = None if alpha is None else np.asarray([1.0, alpha], g.dtype)

    def formula(block: slice) -> None:
        slope = slopes[block] if low is None else np.where(slopes[block] > 0, low[0], low[1])
        np.multiply(gs[block], slope, out=out[block])

    _run_in_blocks(formula, 1 if low is None else 3, gs.size)
    return out.reshape(g.shape)


# --- Fused: rows


def softmax(a: Array, axis: int) -> Any:
    if _is_half(a):
        return NotImplemented

    def formula(axis: int, a: Array, out: Array) -> None:
        np.subtract(a, _max(a, axis), out=out)  # prevents overflow
        np.exp(out, out=out)
        out /= _sum(out, axis)

    return _apply_along_axis(axis, formula, 12, a)


def softmax_backward(g: Array, y: Array, axis: int) -> Any:
    if _is_half(g):
        return NotImplemented

    def formula(axis: int, g: Array, y: Array, out: Array) -> None:
        np.subtract(g, _sum(g * y, axis), out=out)
        out *= y

    return _apply_along_axis(axis, formula, 5, g, y)


def log_softmax(a: Array, axis: int) -> Any:
    if _is_half(a):
        return NotImplemented

    def formula(axis: int, a: Array, out: Array) -> None:
        np.subtract(a, _max(a, axis), out=out)
        out -= np.log(_sum(np.exp(out), axis))

    return _apply_along_axis(axis, formula, 12, a)


def log_softmax_backward(g: Array, y: Array, axis: int) -> Any:
    if _is_half(g):
        return NotImplemented

    def formula(axis: int, g: Array, y: Array, out: Array) -> None:
        np.exp(y, out=out)
        out *= _sum(g, axis)
        np.subtract(g, out, out=out)

    return _apply_along_axis(axis, formula, 10, g, y)


def _max(a: Array, axis: int) -> Array:
    return _row_max(a) if axis == -1 and a.flags.c_contiguous else np.max(a, axis=axis, keepdims=True)


def _sum(a: Array, axis: int) -> Array:
    return _row_sums(a) if axis == -1 else np.asarray(sum(a, axis=axis, keepdims=True))


def _apply_along_axis(axis: int, formula: Callable[..., None], passes: int, *arrays: Array) -> Array:
    """Call formula(axis, *arrays, out), in blocks of rows if `axis` is the last. All arrays have the same shape."""
    out = np.empty(arrays[0].shape, arrays[0].dtype)
    if out.size == 0:
        return out
    if axis not in (-1, out.ndim - 1):
        formula(axis, *arrays, out)
        return out
    rows = [_rows(array) for array in (*arrays, out)]
    _run_in_blocks(lambda block: formula(-1, *(array[block] for array in rows)), passes, len(rows[0]), out.shape[-1])
    return out


# Ba, Kiros & Hinton, "Layer normalization", arXiv:1607.06450, equation 4.


def layer_norm(x: Array, gamma: Array | None, beta: Array | None, eps: float) -> Any:
    if _is_half(x):
        return NotImplemented
    if 0 < x.size <= _ONE_THREAD:
        formula_of_small = _layer_norm_row if x.size == x.shape[-1] else _layer_norm_small
        return formula_of_small(x, gamma, beta, eps)
    rows = _rows(x)
    n, width = rows.shape
    y, mean, rstd = (np.empty((n, columns), rows.dtype) for columns in (width, 1, 1))
    count = max(width, 1)  # a row without elements has the mean 0

    def formula(block: slice) -> None:
        centered, m, r = y[block], mean[block], rstd[block]
        np.divide(_row_sums(rows[block]), count, out=m)
        np.subtract(rows[block], m, out=centered)
        # The variance from x - mean: E[x^2] - E[x]^2 cancels if the mean is large.
        np.divide(_row_sums(centered * centered), count, out=r)
        if np.any(m * m > r):  # the mean is large: correct its rounding error
            error = _row_sums(centered) / count
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

    _run_in_blocks(formula, 8, n, width)
    per_row = (*x.shape[:-1], 1)
    return y.reshape(x.shape), mean.reshape(per_row), rstd.reshape(per_row)


def _layer_norm_row(x: Array, gamma: Array | None, beta: Array | None, eps: float) -> tuple[Array, Array, Array]:
    """As `_layer_norm_small`, for one row, whose mean and variance are scalars: NumPy computes faster with these."""
    y, mean, rstd = _normalized(x.reshape(-1), gamma, beta, eps)
    mean, rstd = np.array((mean, rstd), x.dtype).reshape(2, *x.shape[:-1], 1)
    return y.reshape(x.shape), mean, rstd


def _normalized(x: Array, gamma: Array | None, beta: Array | None, eps: float) -> tuple[Array, Any, Any]:
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
    if _is_half(g):
        return NotImplemented
    need_x, need_gamma, need_beta = needs
    gs, xs, means, rstds = _rows(g), _rows(x), _rows(mean), _rows(rstd)
    n, width = xs.shape
    gx = np.empty(xs.shape, g.dtype) if need_x else None
    scale = np.ones(width, g.dtype) if gamma is None else gamma
    average = scale[:, None] / max(width, 1)  # g @ average: the mean of each row of g gamma
    length = _block_length(n, width) or 1
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
            h -= gs[block] @ average
            normed *= g_normed @ average
            h -= normed
            h *= rstds[block]

    _run_in_blocks(formula, 12, n, width)
    return (
        None if gx is None else gx.reshape(x.shape),
        sum(sums[0], axis=0) if need_gamma else None,
        sum(sums[1], axis=0) if need_beta else None,
    )


def embedding(weight: Array, ids: Array) -> Array:
    return np.take(weight, ids, axis=0)


def embedding_backward(g: Array, ids: Array, n_rows: int) -> Any:
    """The sum of the rows of g for each id: sort by id, then sum each run of equal ids. np.add.at is slower.

    For long runs, one call for each takes less time than np.add.reduceat.
    """
    if _is_half(g):
        return NotImplemented
    flat, rows = ids.ravel(), _rows(g)
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
    if _is_half(logits):
        return NotImplemented
    z = np.array(logits)  # (N, C)
    if excluded_class is not None:
        z[:, excluded_class] = -np.inf
    z -= _row_max(z)
    target = z[np.arange(len(ids)), ids]  # (N,)
    probs = np.exp(z, out=z)
    total = _row_sums(probs)  # (N, 1)
    losses = np.log(total[:, 0]) - target
    probs /= total
    if valid is None:
        return np.asarray(np.mean(losses)), probs
    return np.asarray(np.sum(np.where(valid, losses, 0)) / np.count_nonzero(valid)).astype(z.dtype), probs


def cross_entropy_backward(g: Array, probs: Array, ids: Array, valid: Array | None) -> Any:
    if _is_half(g):
        return NotImplemented
    if valid is None:
        scale = np.full((1, 1), g / len(ids), probs.dtype)
    else:
        scale = (valid * (g / np.count_nonzero(valid))).astype(probs.dtype)[:, None]
    out = probs * scale  # (N, C): (softmax - one-hot) / number of valid rows
    out[np.arange(len(ids)), ids] -= scale[:, 0]
    return out


# --- Generation


def token_block(
    x: Array,
    norms: Sequence[tuple[Array, Array, float]],
    weights: Sequence[Any],
    activation: str,
    cache: Array,
    position: int,
) -> Any:
    """On a row (C,) and a cache (2, H, S, D). It makes few calls of NumPy: their overhead takes most of the time."""
    w_qkv, w_out, w_in, b_in, w_down, b_down = weights
    if x.size != x.shape[-1] or _is_half(x) or w_in.size > _SMALL_WEIGHT:
        return NotImplemented
    row = x.reshape(-1)
    qkv = _normalized(row, *norms[0])[0].dot(w_qkv).reshape(3, cache.shape[2], 1, cache.shape[4])
    cache[0, :, :, position : position + 1] = qkv[1:]
    keys, values = cache[0, :, :, : position + 1]
    scores = np.matmul(qkv[0] * (1.0 / _sqrt(qkv.shape[-1])), keys.swapaxes(1, 2))  # (H, 1, S)
    scores -= np.maximum.reduce(scores, axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= np.add.reduce(scores, axis=-1, keepdims=True)
    attended = np.matmul(scores, values).reshape(-1)
    row = row + (attended if w_out is None else attended.dot(w_out))
    hidden = _normalized(row, *norms[1])[0].dot(w_in)
    hidden += b_in
    out = _ACTIVATIONS[activation](hidden).dot(w_down)
    out += b_down
    out += row
    return out.reshape(x.shape)


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda a: gelu_value(a, "none"),
    "gelu_tanh": lambda a: gelu_value(a, "tanh"),
    "relu": lambda a: np.maximum(a, 0),
    "leaky_relu": lambda a: leaky_relu(a, 0.01),
}

# --- Optimizer steps, in place


def sgd_step(
    p: Array,
    g: Array,
    velocity: Array | None,
    rates: Array,
    clip: Array | None,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> tuple[Array, Array | None]:
    g = g.astype(p.dtype, copy=False)
    if clip is not None:
        g = g * clip
    if weight_decay:
        g = g + weight_decay * p
    if velocity is not None:
        velocity *= momentum
        velocity += g
        g = g + momentum * velocity if nesterov else velocity
    p -= rates[0] * g
    return p, velocity


def adam_step(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    rates: Array,
    clip: Array | None,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    p_half: Array | None,
) -> tuple[Array, Array, Array, Array | None]:
    rate, scale, decay = rates.tolist()
    arrays = [np.atleast_1d(array) for array in (p, g, m, v)]  # views, so writes update the parameters

    def formula(block: slice) -> None:
        p, g, m, v = (array[block] for array in arrays)
        g = g.astype(p.dtype, copy=False)
        if clip is not None:
            g = g * clip
        if weight_decay and decoupled:
            p *= 1.0 - decay
        elif weight_decay:
            g = g + weight_decay * p
        work = g * (1.0 - beta1)
        m *= beta1
        m += work
        np.multiply(g, g, out=work)
        work *= 1.0 - beta2
        v *= beta2
        v += work
        np.sqrt(v, out=work)
        work /= scale
        work += eps
        np.divide(m, work, out=work)
        work *= rate
        p -= work

    n = len(arrays[0])
    _run_in_blocks(formula, 14, n, p.size // max(n, 1))
    if p_half is not None:
        p_half[...] = p
    return p, m, v, p_half
