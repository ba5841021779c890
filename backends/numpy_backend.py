"""The CPU backend, in NumPy: the readable reference of every primitive.

Names, order and signatures are those of the contract, `russellgrad/backend.py`; shapes are in the comments there and
beside the fused primitives here. What another backend computes with a kernel is defined by what stands here.

A large array is slow to go through, not to compute with: memory gives a core a number or two in the time of a hundred
operations. So the fused primitives take an array in blocks that stay in a core's cache from the first step of their
formula to the last, write each step where the one before was (`out=`), and share the blocks out among threads.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from math import inf, pi, prod
from math import sqrt as _sqrt
from typing import Any, TypeAlias

import numpy as np

from . import host
from .cpu import in_parts, keep_freed_memory, n_threads

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
DType: TypeAlias = Any
Shape: TypeAlias = tuple[int, ...]
Axis: TypeAlias = int | tuple[int, ...] | None

name = "numpy"
_builtin_max, _builtin_min = max, min  # before the primitives of these names

# --- Blocks and parts

_BLOCK = 1 << 17  # elements: smaller ones would stay in a nearer cache, but cost more in calls than that saves
_PASS = 2e-4  # microseconds for one elementary step on one element, about; `in_parts` only needs the order of it
_FLOP = 1e-5  # microseconds for one operation of a product, likewise


def _block_length(n: int, width: int) -> int:
    """How many of n rows of `width` elements make a block: all of them, or a part of an even number."""
    blocks = -(-n * width // _BLOCK)
    return n if blocks < 2 else -(-n // (-(-blocks // 2) * 2))


def _in_blocks(formula: Callable[[slice], None], passes: int, n: int, width: int = 1) -> None:
    """formula(block) for blocks that make up n rows of `width` elements, in several threads if that pays."""
    if n == 0:
        return
    length = _block_length(n, width)

    def part(start: int, stop: int) -> None:
        for i in range(start, stop):
            formula(slice(i * length, _builtin_min((i + 1) * length, n)))

    in_parts(-(-n // length), n * width * passes * _PASS, part)


# --- In and out of the backend


def require_usable() -> None:
    """NumPy can always be used. Raises ValueError for an RG_NUM_THREADS that is no number."""
    n_threads()
    keep_freed_memory()


def float_dtypes() -> tuple[str, ...]:
    return ("float16", "float32", "float64")


def is_array(x: Any) -> bool:
    return isinstance(x, np.ndarray)


def asarray(data: Any, dtype: DType = None) -> Array:
    return host.real_array(data, dtype)


def copy(a: Array) -> Array:
    return np.array(a, order="C")


def to_host(a: Array) -> Array:
    return np.array(a, order="C")


def from_dlpack(x: Any) -> Array:
    array = np.from_dlpack(x)
    host.check_real(array.dtype)
    return array


def astype(a: Array, dtype: DType) -> Array:
    return a.astype(dtype)


def zeros(shape: Shape, dtype: DType) -> Array:
    return np.zeros(shape, dtype)


def full(shape: Shape, value: float, dtype: DType) -> Array:
    return np.full(shape, value, dtype)


def arange(n: int) -> Array:
    return np.arange(n, dtype=np.int64)


def normal(shape: Shape, seed: int, counter: int, dtype: DType) -> Array:
    return host.normal(shape, seed, counter).astype(dtype)


def uniform(shape: Shape, key: Array, dtype: DType) -> Array:
    seed, low, high, start = (int(word) for word in key)
    return host.uniform(shape, seed, high << 64 | low, start).astype(dtype)


def numbers(values: Sequence[float], dtype: DType) -> Array:
    return np.array(values, dtype)


def renumber(target: Array, values: Sequence[float]) -> None:
    target[:] = values


def assign(target: Array, source: Array) -> None:
    target[...] = source


def parts(flat: Array, shapes: Sequence[Shape]) -> list[Array]:
    ends = list(accumulate(map(prod, shapes)))
    return [flat[end - prod(shape) : end].reshape(shape) for shape, end in zip(shapes, ends, strict=True)]


def ids(ids: Any, upper: int, op: str) -> Array:
    return host.checked_ids(ids, upper, op)


def targets(ids: Any, upper: int, ignore: int | None, op: str) -> tuple[Array, Array | None]:
    return host.checked_targets(ids, upper, ignore, op)


# --- Elementwise, broadcasting


def add(a: Array, b: Array) -> Array:
    return np.add(a, b)


def subtract(a: Array, b: Array) -> Array:
    return np.subtract(a, b)


def multiply(a: Array, b: Array) -> Array:
    return np.multiply(a, b)


def divide(a: Array, b: Array) -> Array:
    return np.divide(a, b)


def power(a: Array, b: Array) -> Array:
    return np.power(a, b)


def negative(a: Array) -> Array:
    return np.negative(a)


def exp(a: Array) -> Array:
    return np.exp(a)


def log(a: Array) -> Array:
    return np.log(a)


def sqrt(a: Array) -> Array:
    return np.sqrt(a)


def tanh(a: Array) -> Array:
    return np.tanh(a)


def sin(a: Array) -> Array:
    return np.sin(a)


def cos(a: Array) -> Array:
    return np.cos(a)


# Coefficients of the three rational approximations in W. J. Cody, "Rational Chebyshev approximations for the error
# function", Mathematics of Computation 23 (1969), tables II to IV, as in his Fortran CALERF: numerator, denominator,
# highest power first.
_ERF_SMALL = (
    (1.85777706184603153e-1, 3.16112374387056560e0, 1.13864154151050156e2, 3.77485237685302021e2, 3.20937758913846947e3),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3),
)  # fmt: skip
_ERFC_MIDDLE = (
    (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0, 6.61191906371416295e1, 2.98635138197400131e2,
     8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3, 1.23033935479799725e3),
    (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
     3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3),
)  # fmt: skip
_ERFC_LARGE = (
    (1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1,
     1.60837851487422766e-2, 6.58749161529837803e-4),
    (1.0, 2.56852019228982242e0, 1.87295284992346725e0, 5.27905102951428412e-1, 6.05183413124413191e-2,
     2.33520497626869185e-3),
)  # fmt: skip


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Array) -> Array:
    """Numerator over denominator at x, both by Horner's scheme."""
    values = []
    for polynomial in coefficients:
        value = np.full_like(x, polynomial[0])
        for c in polynomial[1:]:
            value *= x
            value += c
        values.append(value)
    return np.asarray(values[0] / values[1])


def erf(a: Array) -> Array:
    """Cody (1969): three ranges of |a|, each its own rational function; largest error 5e-16, relative.

    In float32 one formula without ranges is ten times as fast; largest error 1.4e-7, absolute.
    """
    if a.dtype.itemsize <= 4:
        return _erf_single(a)
    wide = np.atleast_1d(a).astype(np.float64, copy=False)
    y = np.abs(wide)
    result = np.sign(wide)  # 1 to double precision beyond 6
    small = y <= 0.46875
    large = y > 4.0
    x = wide[small]
    result[small] = x * _ratio(_ERF_SMALL, x * x)
    middle = ~(small | large | np.isnan(y))
    x = y[middle]
    result[middle] *= 1.0 - np.exp(-x * x) * _ratio(_ERFC_MIDDLE, x)
    large &= y <= 6.0
    x = y[large]
    z = 1.0 / (x * x)
    result[large] *= 1.0 - np.exp(-x * x) / x * (1.0 / _sqrt(pi) - z * _ratio(_ERFC_LARGE, z))
    return np.asarray(result.reshape(a.shape), dtype=a.dtype)


# Highest power first: atanh(erf(x)) / x as a polynomial in x^2, fitted to it on 0 < x <= 4 by least squares, weighted
# so that the largest error of the resulting erf is least: 6e-8.
_ERF_SINGLE = (
    1.58950415e-7, -5.98555505e-6, 8.97119216e-5, -6.25718141e-4, -1.84385045e-4, 1.02765482e-1, 1.12837971,
)  # fmt: skip


def _erf_single(a: Array) -> Array:
    x = np.asarray(a, dtype=np.float32)
    z = x * x
    value = z * _ERF_SINGLE[0]
    with np.errstate(over="ignore"):  # far out the polynomial overflows, and tanh is 1 all the same
        for c in _ERF_SINGLE[1:-1]:
            value += c
            value *= z
        value += _ERF_SINGLE[-1]
        value *= x
    return np.asarray(np.tanh(value), dtype=a.dtype)


def abs(a: Array) -> Array:
    return np.abs(a)


def sign(a: Array) -> Array:
    return np.sign(a)


def maximum(a: Array, b: Array) -> Array:
    return np.maximum(a, b)


def minimum(a: Array, b: Array) -> Array:
    return np.minimum(a, b)


def where(condition: Array, a: Array, b: Array) -> Array:
    return np.where(condition, a, b)


def equal(a: Array, b: Array) -> Array:
    return np.equal(a, b)


def not_equal(a: Array, b: Array) -> Array:
    return np.not_equal(a, b)


def less(a: Array, b: Array) -> Array:
    return np.less(a, b)


def less_equal(a: Array, b: Array) -> Array:
    return np.less_equal(a, b)


def greater(a: Array, b: Array) -> Array:
    return np.greater(a, b)


def greater_equal(a: Array, b: Array) -> Array:
    return np.greater_equal(a, b)


def logical_and(a: Array, b: Array) -> Array:
    return np.logical_and(a, b)


def logical_or(a: Array, b: Array) -> Array:
    return np.logical_or(a, b)


def logical_not(a: Array) -> Array:
    return np.logical_not(a)


# --- Reductions


def sum(a: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    return np.asarray(np.sum(a, axis=axis, keepdims=keepdims))


def max(a: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    return np.asarray(np.max(a, axis=axis, keepdims=keepdims))


def min(a: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    return np.asarray(np.min(a, axis=axis, keepdims=keepdims))


def argmax(a: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    return np.asarray(np.argmax(a, axis=axis, keepdims=keepdims))


# --- Shapes


def reshape(a: Array, shape: Shape) -> Array:
    return np.reshape(a, shape)


def transpose(a: Array, axes: Sequence[int] | None = None) -> Array:
    return np.transpose(a, axes)


def broadcast_to(a: Array, shape: Shape) -> Array:
    return np.broadcast_to(a, shape)


def expand_dims(a: Array, axis: int | tuple[int, ...]) -> Array:
    return np.expand_dims(a, axis)


def concatenate(arrays: Sequence[Array], axis: int) -> Array:
    return np.concatenate(arrays, axis)


def prepare_index(index: Any, shape: Shape) -> Any:
    # NumPy checks bounds itself, when it indexes.
    parts = host.as_tuple(index)
    return tuple(host.index_array(part) if isinstance(part, (list, np.ndarray)) else part for part in parts)


def getitem(a: Array, index: Any) -> Array:
    return np.asarray(a[index])


def getitem_backward(g: Array, index: Any, shape: Shape) -> Array:
    out = np.zeros(shape, g.dtype)
    if host.is_basic(index) or _is_one_mask(index):
        out[index] = g  # nothing is picked twice
    else:
        np.add.at(out, index, g)
    return out


def _is_one_mask(index: tuple[Any, ...]) -> bool:
    return len(index) == 1 and host.mask_ndim(index[0]) > 0


# --- Products


def set_matmul_precision(level: str) -> None:
    """A CPU is no faster for less: products are always of whole float32 numbers."""


def matmul(a: Array, b: Array) -> Array:
    if a.ndim < 2 or b.ndim < 2 or a.shape[:-2] != b.shape[:-2]:
        return np.asarray(np.matmul(a, b))
    *batch, n, k = a.shape
    if batch and batch[0] == 1:  # shared out by its next axis
        return matmul(a[0], b[0])[None]
    out = np.empty((*batch, n, b.shape[-1]), np.result_type(a, b))

    def part(start: int, stop: int) -> None:  # of the batch, or of the rows
        np.matmul(a[start:stop], b[start:stop] if batch else b, out=out[start:stop])

    in_parts(len(out), 2 * out.size * k * _FLOP, part)
    return out


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    rows = _rows(x)  # (N, i) @ (i, o): one product, whatever the batch axes
    operands = (x, weight) if bias is None else (x, weight, bias)
    out = np.empty((len(rows), weight.shape[1]), np.result_type(*operands))

    def part(start: int, stop: int) -> None:
        np.matmul(rows[start:stop], weight, out=out[start:stop])
        if bias is not None:
            out[start:stop] += bias

    in_parts(len(rows), 2 * out.size * weight.shape[0] * _FLOP, part)
    return out.reshape(*x.shape[:-1], weight.shape[1])


def linear_backward(g: Array, x: Array, weight: Array, needs: Sequence[bool]) -> tuple[Array | None, ...]:
    need_x, need_weight, need_bias = needs
    g2, rows = _rows(g), _rows(x)  # (N, o), (N, i)
    (n, o), i = g2.shape, weight.shape[0]
    gx = np.empty((n, i), g.dtype) if need_x else None
    gw = np.empty((i, o), g.dtype) if need_weight else None
    gb = np.empty(o, g.dtype) if need_bias else None
    shares = 64  # of each gradient; a thread takes the same share of all three

    def part(start: int, stop: int) -> None:
        def share(length: int) -> slice:
            return slice(length * start // shares, length * stop // shares)

        if gx is not None:
            np.matmul(g2[share(n)], weight.T, out=gx[share(n)])
        if gw is not None:
            np.matmul(rows[:, share(i)].T, g2, out=gw[share(i)])
        if gb is not None:
            np.sum(g2[:, share(o)], axis=0, out=gb[share(o)])

    in_parts(shares, 2 * n * i * o * (need_x + need_weight) * _FLOP, part)
    return None if gx is None else gx.reshape(x.shape), gw, gb


def _rows(a: Array) -> Array:
    """(..., C) -> (N, C); the count is spelled out because -1 cannot be inferred when C is 0."""
    return a.reshape(prod(a.shape[:-1]), a.shape[-1])


def _row_sums(a: Array) -> Array:
    """(..., C) -> (..., 1). As a product it is several times faster than np.sum along short rows."""
    if a.dtype.itemsize < 4:  # half precision overflows at 65,504
        return np.asarray(np.sum(a, axis=-1, keepdims=True, dtype=np.float32))
    return np.asarray(a @ np.ones((a.shape[-1], 1), a.dtype))


# --- Fused: activations. Hendrycks & Gimpel, "Gaussian error linear units", arXiv:1606.08415, section 2.

_GELU_C = _sqrt(2.0 / pi)


def gelu(a: Array, approximate: str) -> tuple[Array, Array]:
    """a phi(a), and its slope, phi(a) + a phi'(a), computed together while a is in the cache."""
    formula = _gelu_exact if approximate == "none" else _gelu_tanh
    flat = a.reshape(-1)
    out, slope = np.empty(flat.shape, a.dtype), np.empty(flat.shape, a.dtype)
    _in_blocks(lambda block: formula(flat[block], out[block], slope[block]), 25, flat.size)
    return out.reshape(a.shape), slope.reshape(a.shape)


def gelu_backward(g: Array, saved: Array, approximate: str) -> Array:
    return _multiplied(g, saved)


def _gelu_exact(a: Array, out: Array, slope: Array) -> None:
    """phi is the normal distribution function, phi' its density."""
    phi = erf(a * _sqrt(0.5))
    phi += 1.0
    phi *= 0.5
    np.multiply(a, phi, out=out)
    density = np.multiply(a, a, out=slope)
    density *= -0.5
    np.exp(density, out=density)
    density *= a
    density *= 1.0 / _sqrt(2.0 * pi)
    slope += phi


def _gelu_tanh(a: Array, out: Array, slope: Array) -> None:
    """phi = (1 + tanh(c (a + 0.044715 a^3))) / 2, so phi' = 2 phi (1 - phi) c (1 + 3 * 0.044715 a^2)."""
    square = a * a
    phi = np.multiply(square, _GELU_C * 0.044715)
    phi += _GELU_C
    phi *= a
    np.tanh(phi, out=phi)
    phi += 1.0
    phi *= 0.5
    np.multiply(a, phi, out=out)
    np.subtract(1.0, phi, out=slope)
    slope *= out  # a phi (1 - phi), which is 0 far out, where the square is infinite in time
    square *= 6.0 * _GELU_C * 0.044715
    square += 2.0 * _GELU_C
    slope *= square
    slope += phi


# Maas, Hannun & Ng, "Rectifier nonlinearities improve neural network acoustic models", ICML workshop 2013, section 2.


def leaky_relu(a: Array, alpha: float) -> Array:
    return _multiplied(a, a, alpha)


def leaky_relu_backward(g: Array, a: Array, alpha: float) -> Array:
    return _multiplied(g, a, alpha)


def _multiplied(g: Array, by: Array, alpha: float | None = None) -> Array:
    """g * by; with an alpha, g * (1 where by > 0, else alpha)."""
    gs, slopes = g.reshape(-1), by.reshape(-1)
    out = np.empty(gs.shape, g.dtype)
    low = None if alpha is None else np.asarray([1.0, alpha], g.dtype)

    def formula(block: slice) -> None:
        slope = slopes[block] if low is None else np.where(slopes[block] > 0, low[0], low[1])
        np.multiply(gs[block], slope, out=out[block])

    _in_blocks(formula, 1 if low is None else 3, gs.size)
    return out.reshape(g.shape)


def _total(sums: Array) -> Array:
    """(blocks, C) -> (C,)."""
    return np.asarray(np.sum(sums, axis=0))


# --- Fused: rows


def softmax(a: Array, axis: int) -> Array:
    def formula(axis: int, a: Array, out: Array) -> None:
        np.subtract(a, np.max(a, axis=axis, keepdims=True), out=out)  # the largest exponent is 0: no overflow
        np.exp(out, out=out)
        out /= np.sum(out, axis=axis, keepdims=True)

    return _along(axis, formula, 12, a)


def softmax_backward(g: Array, y: Array, axis: int) -> Array:
    def formula(axis: int, g: Array, y: Array, out: Array) -> None:
        np.subtract(g, np.sum(g * y, axis=axis, keepdims=True), out=out)
        out *= y

    return _along(axis, formula, 5, g, y)


def log_softmax(a: Array, axis: int) -> Array:
    def formula(axis: int, a: Array, out: Array) -> None:
        np.subtract(a, np.max(a, axis=axis, keepdims=True), out=out)
        out -= np.log(np.sum(np.exp(out), axis=axis, keepdims=True))

    return _along(axis, formula, 12, a)


def log_softmax_backward(g: Array, y: Array, axis: int) -> Array:
    def formula(axis: int, g: Array, y: Array, out: Array) -> None:
        np.exp(y, out=out)
        out *= np.sum(g, axis=axis, keepdims=True)
        np.subtract(g, out, out=out)

    return _along(axis, formula, 10, g, y)


def _along(axis: int, formula: Callable[..., None], passes: int, *arrays: Array) -> Array:
    """formula(axis, *arrays, out), in blocks of rows if `axis` is the last; all have one shape."""
    out = np.empty(arrays[0].shape, arrays[0].dtype)
    if out.size == 0:
        return out
    if axis not in (-1, out.ndim - 1):
        formula(axis, *arrays, out)
        return out
    rows = [_rows(array) for array in (*arrays, out)]
    _in_blocks(lambda block: formula(-1, *(array[block] for array in rows)), passes, len(rows[0]), out.shape[-1])
    return out


# Ba, Kiros & Hinton, "Layer normalization", arXiv:1607.06450, equation 4.


def layer_norm(x: Array, gamma: Array | None, beta: Array | None, eps: float) -> tuple[Array, Array, Array]:
    rows = _rows(x)
    n, width = rows.shape
    y, mean, rstd = (np.empty((n, columns), rows.dtype) for columns in (width, 1, 1))

    def formula(block: slice) -> None:
        centred, m, r = y[block], mean[block], rstd[block]
        np.divide(_row_sums(rows[block]), width, out=m)
        np.subtract(rows[block], m, out=centred)
        # The variance from centred values: E[x^2] - E[x]^2 cancels when the mean is large.
        np.divide(_row_sums(centred * centred), width, out=r)
        r += eps
        np.sqrt(r, out=r)
        np.divide(1.0, r, out=r)
        centred *= r
        if gamma is not None:
            centred *= gamma
        if beta is not None:
            centred += beta

    _in_blocks(formula, 8, n, width)
    per_row = (*x.shape[:-1], 1)
    return y.reshape(x.shape), mean.reshape(per_row), rstd.reshape(per_row)


def layer_norm_backward(
    g: Array,
    x: Array,
    gamma: Array | None,
    mean: Array,
    rstd: Array,
    needs: Sequence[bool],
) -> tuple[Array | None, ...]:
    need_x, need_gamma, need_beta = needs
    gs, xs, means, rstds = _rows(g), _rows(x), _rows(mean), _rows(rstd)
    n, width = xs.shape
    gx = np.empty(xs.shape, g.dtype) if need_x else None
    scale = np.ones(width, g.dtype) if gamma is None else gamma
    average = scale[:, None] / _builtin_max(width, 1)  # g @ average: the mean of each row of g gamma
    length = _block_length(n, width) or 1
    # Of gamma's gradient and of beta's, block by block: so the order of summation is the same with any threads.
    sums = np.empty((2, -(-n // length), width), g.dtype)

    def formula(block: slice) -> None:
        normed = xs[block] - means[block]
        normed *= rstds[block]
        along = gs[block] * normed
        np.sum(along, axis=0, out=sums[0, block.start // length])
        np.sum(gs[block], axis=0, out=sums[1, block.start // length])
        if gx is not None:
            # With h = g gamma: the gradient of centring takes out h's mean; that of scaling, its part along `normed`.
            h = np.multiply(gs[block], scale, out=gx[block])
            h -= gs[block] @ average
            normed *= along @ average
            h -= normed
            h *= rstds[block]

    _in_blocks(formula, 12, n, width)
    return (
        None if gx is None else gx.reshape(x.shape),
        _total(sums[0]) if need_gamma else None,
        _total(sums[1]) if need_beta else None,
    )


def embedding(weight: Array, ids: Array) -> Array:
    return np.take(weight, ids, axis=0)


def embedding_backward(g: Array, ids: Array, n_rows: int) -> Array:
    """Rows of g added up by id: sorted by id, each run of equal ids is one sum. np.add.at is several times slower."""
    flat, rows = ids.ravel(), _rows(g)
    out = np.zeros((n_rows, g.shape[-1]), g.dtype)
    if flat.size:
        order = np.argsort(flat, kind="stable")
        in_order = flat[order]
        starts = np.flatnonzero(np.concatenate(([True], in_order[1:] != in_order[:-1])))
        out[in_order[starts]] = np.add.reduceat(rows[order], starts, axis=0)
    return out


def cross_entropy(logits: Array, ids: Array, counted: Array | None, excluded: int | None) -> tuple[Array, Array]:
    """The mean of -log softmax(logits)[id] over the rows that count; a class `excluded` has probability 0."""
    z = np.array(logits)  # (N, C)
    if excluded is not None:
        z[:, excluded] = -np.inf
    z -= np.max(z, axis=1, keepdims=True)
    target = z[np.arange(len(ids)), ids]  # (N,)
    probs = np.exp(z, out=z)
    total = np.sum(probs, axis=1, keepdims=True)  # (N, 1)
    losses = np.log(total[:, 0]) - target
    probs /= total
    if counted is None:
        return np.asarray(np.mean(losses)), probs
    return np.asarray(np.sum(np.where(counted, losses, 0)) / np.count_nonzero(counted)).astype(z.dtype), probs


def cross_entropy_backward(g: Array, probs: Array, ids: Array, counted: Array | None) -> Array:
    out = np.array(probs)  # (N, C): softmax minus one-hot, over the number of rows that count
    out[np.arange(len(ids)), ids] -= 1
    if counted is None:
        out *= g / len(ids)
    else:
        out *= (counted * (g / np.count_nonzero(counted))).astype(g.dtype)[:, None]
    return out


# Vaswani et al., "Attention is all you need", arXiv:1706.03762, equation 1, by blocks of queries. Of the weights nothing
# is kept but the logarithm of each row's sum, from which backward computes them again (Dao et al., "FlashAttention",
# arXiv:2205.14135, algorithm 4; here a block has all its keys at once). Keys after a block's last query are left out.


def attention(q: Array, k: Array, v: Array, mask: Array | None, causal: bool, offset: int) -> tuple[Array, Array]:
    """The output, and log sum exp of each query's scores; inf where all are hidden."""
    heads = _Heads(q, k, v, mask, causal, offset)
    out = np.zeros_like(heads.q, shape=(*heads.q.shape[:-1], v.shape[-1]))  # in memory like q, heads side by side
    log_sum = np.full((*heads.q.shape[:-1], 1), inf, np.result_type(q.dtype, np.float32))

    def one(queries: _Part, keys: _Part) -> None:
        weights = heads.scores(queries, keys)
        top = np.max(weights, axis=-1, keepdims=True)
        np.maximum(top, np.finfo(top.dtype).min, out=top)  # a row with everything hidden: weights of 0, not nan
        weights -= top
        np.exp(weights, out=weights)
        total = _row_sums(weights)
        hidden = total == 0
        total += hidden
        np.matmul(weights, heads.v[keys], out=out[queries])
        out[queries] /= total
        log_sum[queries] = np.where(hidden, inf, np.log(total) + top)

    heads.in_blocks(one, products=2)
    return heads.joined(out), heads.joined(log_sum)


def attention_backward(
    g: Array,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    log_sum: Array,
    mask: Array | None,
    causal: bool,
    offset: int,
    needs: Sequence[bool],
) -> tuple[Array | None, ...]:
    """Each gradient has all batch axes, those too along which its operand was broadcast."""
    heads = _Heads(q, k, v, mask, causal, offset)
    g, out, log_sum = heads.split(g), heads.split(out), heads.split(log_sum)
    gq, gk, gv = (
        np.zeros_like(operand) if need else None
        for operand, need in zip((heads.q, heads.k, heads.v), needs, strict=True)
    )

    def one(queries: _Part, keys: _Part) -> None:
        weights = heads.scores(queries, keys)
        weights -= log_sum[queries]
        np.exp(weights, out=weights)
        if gv is not None:
            gv[keys] += np.swapaxes(weights, -1, -2) @ g[queries]
        if gq is None and gk is None:
            return
        g_scores = g[queries] @ np.swapaxes(heads.v[keys], -1, -2)
        # What softmax's backward takes off, a row's sum of g_weights * weights, is that of its g * out.
        g_scores -= _row_sums(g[queries] * out[queries])
        weights *= heads.scale
        g_scores *= weights
        if gq is not None:
            np.matmul(g_scores, heads.k[keys], out=gq[queries])
        if gk is not None:
            gk[keys] += np.swapaxes(g_scores, -1, -2) @ heads.q[queries]

    heads.in_blocks(one, products=5)
    return tuple(None if gradient is None else heads.joined(gradient) for gradient in (gq, gk, gv))


_Part: TypeAlias = tuple[slice, slice, slice]  # of B, of H, and of L or S


class _Heads:
    """The operands of attention as (B, H, L or S, width), whatever their batch axes, and the blocks to take them in."""

    queries_at_once = 64

    def __init__(self, q: Array, k: Array, v: Array, mask: Array | None, causal: bool, offset: int) -> None:
        self.batch = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
        self.q, self.k, self.v = self.split(q), self.split(k), self.split(v)
        self.scale = 1.0 / _sqrt(q.shape[-1])
        scores = (*self.batch, q.shape[-2], k.shape[-2])
        self.mask = None if mask is None else self.split(np.broadcast_to(mask, scores))
        self.offset = offset if causal else k.shape[-2]
        places = np.arange(_builtin_min(self.queries_at_once, q.shape[-2]))
        self.later = places >= places[:, None]  # of the keys from the second on

    def split(self, a: Array) -> Array:
        """(..., n, width) -> (B, H, n, width), a view wherever there can be one."""
        full = np.broadcast_to(a, (*self.batch, *a.shape[-2:]))
        if full.ndim < 4:
            return full[(None,) * (4 - full.ndim)]
        return full.reshape(prod(full.shape[:-3]), *full.shape[-3:])

    def joined(self, a: Array) -> Array:
        """(B, H, n, width) -> (..., n, width)."""
        return a.reshape(*self.batch, *a.shape[-2:])

    def scores(self, queries: _Part, keys: _Part) -> Array:
        """q k^T / sqrt(d) of a block, -inf where hidden. Query i sees keys up to i + offset."""
        scores: Array = (self.q[queries] * self.scale) @ np.swapaxes(self.k[keys], -1, -2)
        if self.mask is not None:
            np.copyto(scores, -inf, where=self.mask[(*queries, keys[2])])
        second = queries[2].start + self.offset + 1  # the first query does not see it; all see those before it
        unseen = scores[..., _builtin_max(second, 0) :]
        if unseen.shape[-1]:
            past = _builtin_max(-second, 0)
            np.copyto(unseen, -inf, where=self.later[: unseen.shape[-2], past : past + unseen.shape[-1]])
        return scores

    def in_blocks(self, one: Callable[[_Part, _Part], None], products: int) -> None:
        """one(queries, keys) for all blocks; those of one head in turn, heads in several threads if that pays."""
        (n_batch, n_heads, n_queries, width), n_keys = self.q.shape, self.k.shape[2]
        score_rows = _builtin_min(n_queries, self.queries_at_once) * n_keys  # of one head
        h_step = _block_length(n_heads, score_rows) or 1
        b_step = _block_length(n_batch, n_heads * score_rows) or 1
        units = [
            (slice(b, b + b_step), slice(h, h + h_step))
            for b in range(0, n_batch, b_step)
            for h in range(0, n_heads, h_step)
        ]

        def part(start: int, stop: int) -> None:
            for some in units[start:stop]:
                for i in range(0, n_queries, self.queries_at_once):
                    end = _builtin_min(i + self.queries_at_once, n_queries)
                    seen = _builtin_min(end + self.offset, n_keys)
                    if seen > 0:
                        one((*some, slice(i, end)), (*some, slice(0, seen)))

        in_parts(len(units), 2 * products * n_batch * n_heads * n_queries * n_keys * width * _FLOP, part)


# --- Fused: one optimizer step, in place


def clip_scale(grads: Sequence[Array], max_norm: float) -> tuple[Array, Array]:
    """Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks", arXiv:1211.5063."""
    squares = np.zeros((), _widened(grads[0]).dtype)
    for g in map(_widened, grads):
        squares = squares + np.sum(g * g)
    norm = np.sqrt(squares)
    return np.asarray(norm), np.asarray(np.minimum(max_norm / (norm + 1e-6), 1.0))


def _widened(g: Array) -> Array:
    """Half precision as float32: what is squared or summed up in it overflows."""
    return g if g.dtype.itemsize > 2 else g.astype(np.float32)


def sgd_step(
    p: Array,
    g: Array,
    velocity: Array | None,
    rates: Array,
    clip: Array | None,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> None:
    """Sutskever et al., "On the importance of initialization and momentum", ICML 2013, in the form PyTorch uses.

    `velocity` is None without momentum, and zeros before the first step.
    """
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
    low: Array | None,
) -> None:
    """Kingma & Ba, "Adam", arXiv:1412.6980, algorithm 1; decoupled decay: Loshchilov & Hutter, arXiv:1711.05101."""
    rate, scale, decay = rates.tolist()
    arrays = [np.atleast_1d(array) for array in (p, g, m, v)]  # views: what is written into them stays

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
    _in_blocks(formula, 14, n, p.size // _builtin_max(n, 1))
    if low is not None:
        low[...] = p


# --- A step as one recording


def can_capture() -> bool:
    return False


def capture(work: Callable[[], None]) -> Callable[[], None]:
    raise RuntimeError(f"backend {name!r}: there is no device whose work could be recorded")
