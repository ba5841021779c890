"""NumPy's primitives that go faster than the formulas: in blocks that stay in a core's cache, on several threads.

Memory gives a core a number or two in the time of a hundred operations, so going through a large array is what takes
time, not computing with it. The functions here take an array in blocks that stay in the cache from the first step of
a formula to the last, write each step's result over the previous one (`out=`), and share the blocks among threads.
What each function computes is defined by the function of its name in `formulas.py`.
"""

from collections.abc import Callable, Sequence
from math import inf, pi, prod
from math import sqrt as _sqrt
from typing import Any, TypeAlias

import numpy as np

from .cpu import run_parallel
from .formulas import ERF_SMALL, ERFC_LARGE, ERFC_MIDDLE

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
DType: TypeAlias = Any
Shape: TypeAlias = tuple[int, ...]

# --- Blocks and threads

_BLOCK = 1 << 17  # elements: smaller ones would stay in a nearer cache, but cost more in calls than that saves
_PASS = 2e-4  # microseconds for one elementary step on one element, about; `run_parallel` only needs the order of it
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
            formula(slice(i * length, min((i + 1) * length, n)))

    run_parallel(-(-n // length), n * width * passes * _PASS, part)


# --- Error function


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
    result[small] = x * _ratio(ERF_SMALL, x * x)
    middle = ~(small | large | np.isnan(y))
    x = y[middle]
    result[middle] *= 1.0 - np.exp(-x * x) * _ratio(ERFC_MIDDLE, x)
    large &= y <= 6.0
    x = y[large]
    z = 1.0 / (x * x)
    result[large] *= 1.0 - np.exp(-x * x) / x * (1.0 / _sqrt(pi) - z * _ratio(ERFC_LARGE, z))
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


# --- Products


def matmul(a: Array, b: Array) -> Array:
    if a.ndim < 2 or b.ndim < 2 or a.shape[:-2] != b.shape[:-2]:
        return np.asarray(np.matmul(a, b))
    *batch, n, k = a.shape
    if batch and batch[0] == 1:  # shared out by its next axis
        return matmul(a[0], b[0])[None]
    out = np.empty((*batch, n, b.shape[-1]), np.result_type(a, b))

    def part(start: int, stop: int) -> None:  # of the batch, or of the rows
        np.matmul(a[start:stop], b[start:stop] if batch else b, out=out[start:stop])

    run_parallel(len(out), 2 * out.size * k * _FLOP, part)
    return out


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    rows = _rows(x)  # (N, i) @ (i, o): one product, whatever the batch axes
    operands = (x, weight) if bias is None else (x, weight, bias)
    out = np.empty((len(rows), weight.shape[1]), np.result_type(*operands))

    def part(start: int, stop: int) -> None:
        np.matmul(rows[start:stop], weight, out=out[start:stop])
        if bias is not None:
            out[start:stop] += bias

    run_parallel(len(rows), 2 * out.size * weight.shape[0] * _FLOP, part)
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

    run_parallel(shares, 2 * n * i * o * (need_x + need_weight) * _FLOP, part)
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
    average = scale[:, None] / max(width, 1)  # g @ average: the mean of each row of g gamma
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


def cross_entropy(logits: Array, ids: Array, valid: Array | None, excluded_class: int | None) -> tuple[Array, Array]:
    """The mean of -log softmax(logits)[id] over the rows that count; a class `excluded` has probability 0."""
    z = np.array(logits)  # (N, C)
    if excluded_class is not None:
        z[:, excluded_class] = -np.inf
    z -= np.max(z, axis=1, keepdims=True)
    target = z[np.arange(len(ids)), ids]  # (N,)
    probs = np.exp(z, out=z)
    total = np.sum(probs, axis=1, keepdims=True)  # (N, 1)
    losses = np.log(total[:, 0]) - target
    probs /= total
    if valid is None:
        return np.asarray(np.mean(losses)), probs
    return np.asarray(np.sum(np.where(valid, losses, 0)) / np.count_nonzero(valid)).astype(z.dtype), probs


def cross_entropy_backward(g: Array, probs: Array, ids: Array, valid: Array | None) -> Array:
    out = np.array(probs)  # (N, C): softmax minus one-hot, over the number of rows that count
    out[np.arange(len(ids)), ids] -= 1
    if valid is None:
        out *= g / len(ids)
    else:
        out *= (valid * (g / np.count_nonzero(valid))).astype(g.dtype)[:, None]
    return out


# Vaswani et al., "Attention is all you need", arXiv:1706.03762, equation 1, by blocks of queries. Of the weights
# nothing is kept but the logarithm of each row's sum, from which backward computes them again (Dao et al.,
# "FlashAttention", arXiv:2205.14135, algorithm 4; here a block has all its keys at once). Keys after a block's last
# query are left out.


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
        places = np.arange(min(self.queries_at_once, q.shape[-2]))
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
        unseen = scores[..., max(second, 0) :]
        if unseen.shape[-1]:
            past = max(-second, 0)
            np.copyto(unseen, -inf, where=self.later[: unseen.shape[-2], past : past + unseen.shape[-1]])
        return scores

    def in_blocks(self, one: Callable[[_Part, _Part], None], products: int) -> None:
        """one(queries, keys) for all blocks; those of one head in turn, heads in several threads if that pays."""
        (n_batch, n_heads, n_queries, width), n_keys = self.q.shape, self.k.shape[2]
        score_rows = min(n_queries, self.queries_at_once) * n_keys  # of one head
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
                    end = min(i + self.queries_at_once, n_queries)
                    seen = min(end + self.offset, n_keys)
                    if seen > 0:
                        one((*some, slice(i, end)), (*some, slice(0, seen)))

        run_parallel(len(units), 2 * products * n_batch * n_heads * n_queries * n_keys * width * _FLOP, part)


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
    low: Array | None,
) -> tuple[Array, Array, Array, Array | None]:
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
    _in_blocks(formula, 14, n, p.size // max(n, 1))
    if low is not None:
        low[...] = p
    return p, m, v, low
