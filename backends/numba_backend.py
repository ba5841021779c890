"""The Numba backend: the NumPy backend with its slowest primitives compiled by Numba.

NumPy makes one pass over an array for each step of a formula. A compiled loop does all steps in one pass, with SIMD
instructions. The kernels are for float32, the usual dtype for training; other dtypes use the NumPy backend's functions.
Kernels run in the threads of `cpu.run_parallel`, each on a range of rows. They do not use Numba's own threads, which
may abort the process if two Python threads use them at the same time.
"""

from collections.abc import Callable, Sequence
from math import inf, pi
from math import sqrt as _sqrt
from typing import Any

import numpy as np

from . import (
    numba_convolution,
    numpy_activations,
    numpy_attention,
    numpy_fused,
    numpy_llama,
    numpy_optimizer,
    numpy_token,
)
from .cpu import MIN_PART_TIME, run_parallel
from .formulas import AttentionDropout
from .numba_compile import compiled, is_float32
from .numpy_attention import _AttentionOperands, _BlockIndex
from .numpy_backend import *  # noqa: F403 - all primitives that are not redefined below
from .numpy_blocks import Array, rows_of
from .numpy_sums import sum

name = "numba"

# --- The exponential, written out: a loop that calls a library function is not vectorized

_f = np.float32  # every constant is float32, because Numba computes in float64 with Python floats
_ZERO, _HALF, _ONE, _TWO, _INF = map(_f, (0.0, 0.5, 1.0, 2.0, inf))
_LOG2_E = _f(1.4426950408889634)
# The high part of ln 2 has 9 bits, so its product with a small integer is exact.
_LN2_HIGH, _LN2_LOW = _f(0.693359375), _f(-2.12194440e-4)
_E0, _E1, _E2, _E3, _E4, _E5 = map(
    _f, (5.0000001201e-1, 1.6666665459e-1, 4.1665795894e-2, 8.3334519073e-3, 1.3981999507e-3, 1.9875691500e-4)
)
_TO_INTEGER = _f(1.5 * 2**23)  # adding it to a small number puts the nearest integer in the last bits


@compiled("contract")
def _exp(x: Any) -> Any:
    """e^x = 2^n e^r, |r| <= ln 2 / 2, with the reduction and the polynomial of Cephes' expf (S. L. Moshier, 1989).

    The error is at most 1 ulp. The result is 0 below -87.7 and inf above 88.4, and nan for nan.
    """
    x = _f(-88.0) if x < _f(-88.0) else x
    x = _f(89.0) if x > _f(89.0) else x
    shifted = x * _LOG2_E + _TO_INTEGER
    n = shifted - _TO_INTEGER
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    e_r = (((((_E5 * r + _E4) * r + _E3) * r + _E2) * r + _E1) * r + _E0) * r * r + r + _ONE
    bits_of_2_n = (_f(shifted).view(np.int32) + np.int32(127)) << np.int32(23)
    return e_r * np.int32(bits_of_2_n).view(np.float32)


def _run(kernel: Callable[..., None], cost: float, rows: Sequence[Array], *others: Any) -> None:
    """Call kernel(*rows, *others), or in several threads if there is enough work, each with its part of the `rows`.

    `cost` is the approximate time in one thread, in microseconds. One part needs no setting of the BLAS's threads.
    """
    if cost < 2 * MIN_PART_TIME:
        return kernel(*rows, *others)

    def part(start: int, stop: int) -> None:
        kernel(*(array[start:stop] for array in rows), *others)

    run_parallel(len(rows[0]), cost, part)


# --- Fused: activations


def gelu(a: Array, approximate: str) -> tuple[Array, Array]:
    if not is_float32(a) or a.size == 0:
        return numpy_activations.gelu(a, approximate)
    flat = np.ascontiguousarray(a).reshape(-1)
    out, slope = np.empty_like(flat), np.empty_like(flat)
    _run(_gelu_exact if approximate == "none" else _gelu_tanh, flat.size * 3.3e-4, (flat, out, slope))
    return out.reshape(a.shape), slope.reshape(a.shape)


def gelu_value(a: Array, approximate: str) -> Array:
    return gelu(a, approximate)[0]


_SQRT_HALF, _DENSITY_AT_0 = _f(_sqrt(0.5)), _f(1.0 / _sqrt(2.0 * pi))
_P, _A1, _A2, _A3, _A4, _A5 = map(
    _f, (0.3275911, 0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
)  # fmt: skip


@compiled("contract", "reassoc")
def _gelu_exact(a: Array, out: Array, slope: Array) -> None:
    """Phi by Abramowitz & Stegun, "Handbook of mathematical functions", 7.1.26, with an absolute error below 1e-7.

    erfc(x) = polynomial(1 / (1 + p x)) e^(-x^2) for x >= 0. The density needs the same exponential.
    """
    for i in range(a.size):
        x = a[i]
        bell = _exp(-_HALF * x * x)
        t = _ONE / (_ONE + _P * _SQRT_HALF * np.abs(x))
        tail = _HALF * bell * t * (_A1 + t * (_A2 + t * (_A3 + t * (_A4 + t * _A5))))
        cdf = tail if x < _ZERO else _ONE - tail
        out[i] = x * cdf
        slope[i] = cdf + x * bell * _DENSITY_AT_0


_GELU_C, _GELU_C3 = _f(_sqrt(2.0 / pi)), _f(_sqrt(2.0 / pi) * 0.044715)


@compiled("contract", "reassoc")
def _gelu_tanh(a: Array, out: Array, slope: Array) -> None:
    """Phi = (1 + tanh(u)) / 2 = 1 / (1 + e^(-2u)), u = c (a + 0.044715 a^3), and so Phi' = 2 Phi (1 - Phi) u'."""
    for i in range(a.size):
        x = a[i]
        cdf = _ONE / (_ONE + _exp(-_TWO * x * (_GELU_C + _GELU_C3 * x * x)))
        out[i] = x * cdf
        slope[i] = cdf + x * cdf * (_ONE - cdf) * _TWO * (_GELU_C + _f(3.0) * _GELU_C3 * x * x)


def swiglu(gate: Array, up: Array) -> Any:
    if not is_float32(gate, up) or gate.size == 0:
        return numpy_llama.swiglu(gate, up)
    a, b = (np.ascontiguousarray(array).reshape(-1) for array in (gate, up))
    out = np.empty_like(a)
    _run(_swiglu, a.size * 2e-4, (a, b, out))
    return out.reshape(gate.shape)


@compiled("contract")  # reordered, gate * up could overflow
def _swiglu(gate: Array, up: Array, out: Array) -> None:
    for i in range(gate.size):
        out[i] = gate[i] / (_ONE + _exp(-gate[i])) * up[i]


def swiglu_backward(g: Array, gate: Array, up: Array, needs: Sequence[bool]) -> Any:
    if not is_float32(g, gate, up) or gate.size == 0:
        return numpy_llama.swiglu_backward(g, gate, up, needs)
    arrays = [np.ascontiguousarray(array).reshape(-1) for array in (g, gate, up)]
    grads = np.empty_like(arrays[1]), np.empty_like(arrays[1])
    _run(_swiglu_backward, gate.size * 3e-4, (*arrays, *grads))
    return tuple(grad.reshape(gate.shape) if need else None for grad, need in zip(grads, needs, strict=True))


@compiled("contract", "reassoc")
def _swiglu_backward(g: Array, gate: Array, up: Array, g_gate: Array, g_up: Array) -> None:
    """silu' = s + silu (1 - s), with s = sigmoid(gate)."""
    for i in range(g.size):
        s = _ONE / (_ONE + _exp(-gate[i]))
        silu = gate[i] * s
        g_gate[i] = g[i] * up[i] * (s + silu * (_ONE - s))
        g_up[i] = g[i] * silu


# --- Fused: rows


def softmax(a: Array, axis: int) -> Any:
    if not is_float32(a) or a.size == 0 or axis not in (-1, a.ndim - 1):
        return numpy_fused.softmax(a, axis)
    rows = np.ascontiguousarray(rows_of(a))
    out = np.empty_like(rows)
    _softmax_of_rows(rows, out)
    return out.reshape(a.shape)


def _softmax_of_rows(rows: Array, out: Array) -> tuple[Array, Array]:
    """Write the softmax of each row into `out`, which may be `rows`.

    Returns each row's maximum and its sum of e^(row - maximum), both (N,).
    """
    top, total = np.empty(len(rows), _f), np.empty(len(rows), _f)
    _run(_softmax, rows.size * 7e-4, (rows, out, top, total))
    return top, total


@compiled("contract", "reassoc")
def _softmax(rows: Array, out: Array, top: Array, total: Array) -> None:
    lanes = np.empty(_LANES, _f)
    for i in range(len(rows)):
        row = out[i]
        for j in range(row.size):
            row[j] = rows[i, j]
        top[i], total[i] = _exp_of_row(row, lanes)
        inverse = _ONE / total[i]
        for j in range(row.size):
            row[j] *= inverse


def softmax_backward(g: Array, y: Array, axis: int) -> Any:
    if not is_float32(g, y) or g.size == 0 or axis not in (-1, g.ndim - 1):
        return numpy_fused.softmax_backward(g, y, axis)
    gs, ys = np.ascontiguousarray(rows_of(g)), np.ascontiguousarray(rows_of(y))
    out = np.empty_like(gs)
    _run(_softmax_backward, gs.size * 3.3e-4, (gs, ys, out))
    return out.reshape(g.shape)


@compiled("contract", "reassoc")
def _softmax_backward(g: Array, y: Array, out: Array) -> None:
    for i in range(len(g)):
        along = _ZERO
        for j in range(g.shape[1]):
            along += g[i, j] * y[i, j]
        for j in range(g.shape[1]):
            out[i, j] = y[i, j] * (g[i, j] - along)


_LANES = 16  # independent maxima, so that the loop is vectorized
_PART = 1024  # elements of a row that are summed before they are added to the others
_LEAST = np.finfo(_f).min


@compiled("contract", "reassoc")
def _exp_of_row(row: Array, lanes: Array) -> tuple[Any, Any]:
    """row = e^(row - top), in place, with top the maximum (the lowest finite number if all are -inf).

    Returns top and the sum of the new row.
    """
    whole = row.size - row.size % _LANES
    for lane in range(_LANES):
        lanes[lane] = _LEAST
    for j in range(0, whole, _LANES):
        for lane in range(_LANES):
            lanes[lane] = row[j + lane] if row[j + lane] > lanes[lane] else lanes[lane]
    top = _LEAST
    for lane in range(_LANES):
        top = lanes[lane] if lanes[lane] > top else top
    for j in range(whole, row.size):
        top = row[j] if row[j] > top else top
    total: Any = 0.0  # in float64, because the parts are added one by one
    for start in range(0, row.size, _PART):  # the error of one sum of a long row grows with its length
        part, sum_of_part = row[start : start + _PART], _ZERO
        for j in range(part.size):
            weight = _exp(part[j] - top)
            part[j] = weight
            sum_of_part += weight
        total += sum_of_part
    return top, _f(total)


def layer_norm(x: Array, gamma: Array | None, beta: Array | None, eps: float) -> Any:
    if not is_float32(x, gamma, beta) or x.size == 0:
        return numpy_fused.layer_norm(x, gamma, beta, eps)
    rows = np.ascontiguousarray(rows_of(x))
    n, width = rows.shape
    y, mean, rstd = np.empty_like(rows), np.empty(n, _f), np.empty(n, _f)
    scale, shift = _or_full(gamma, width, 1.0), _or_full(beta, width, 0.0)
    _run(_layer_norm, x.size * 1.6e-4, (rows, y, mean, rstd), scale, shift, _f(eps))
    per_row = (*x.shape[:-1], 1)
    return y.reshape(x.shape), mean.reshape(per_row), rstd.reshape(per_row)


def _or_full(a: Array | None, n: int, value: float) -> Array:
    """The array `a`, or an array (n,) filled with `value` if it is None."""
    return np.full(n, value, _f) if a is None else np.ascontiguousarray(a)


@compiled("contract", "reassoc")
def _layer_norm(x: Array, y: Array, mean: Array, rstd: Array, gamma: Array, beta: Array, eps: Any) -> None:
    n, width = x.shape
    for i in range(n):
        total = _ZERO
        for j in range(width):
            total += x[i, j]
        m = total / _f(width)
        error, squares = _ZERO, _ZERO  # of the mean, which matters if the mean is large
        for j in range(width):
            error += x[i, j] - m
            squares += (x[i, j] - m) * (x[i, j] - m)
        error /= _f(width)
        m += error
        r = _ONE / np.sqrt(squares / _f(width) - error * error + eps)
        for j in range(width):
            y[i, j] = (x[i, j] - m) * r * gamma[j] + beta[j]
        mean[i], rstd[i] = m, r


# Rows in a block of the sums for gamma and beta, so that the result does not depend on the number of threads.
_ROWS = 64


def layer_norm_backward(
    g: Array,
    x: Array,
    gamma: Array | None,
    mean: Array,
    rstd: Array,
    needs: Sequence[bool],
) -> Any:
    if not is_float32(g, x, gamma, mean, rstd) or x.size == 0:
        return numpy_fused.layer_norm_backward(g, x, gamma, mean, rstd, needs)
    gs, xs = np.ascontiguousarray(rows_of(g)), np.ascontiguousarray(rows_of(x))
    means, rstds = mean.ravel(), rstd.ravel()
    n, width = xs.shape
    scale = _or_full(gamma, width, 1.0)
    gx, sums = np.empty_like(gs), np.zeros((-(-n // _ROWS), 2, width), _f)

    def part(start: int, stop: int) -> None:
        rows = slice(start * _ROWS, stop * _ROWS)
        _layer_norm_backward(gs[rows], xs[rows], scale, means[rows], rstds[rows], gx[rows], sums[start:stop])

    run_parallel(len(sums), x.size * 3.5e-4, part)
    gradients = gx.reshape(x.shape), sum(sums[:, 0], axis=0), sum(sums[:, 1], axis=0)
    return tuple(gradient if need else None for gradient, need in zip(gradients, needs, strict=True))


@compiled("contract", "reassoc")
def _layer_norm_backward(g: Array, x: Array, gamma: Array, mean: Array, rstd: Array, gx: Array, sums: Array) -> None:
    """gx = rstd (h - mean(h) - normed mean(h normed)), with h = g gamma and normed = (x - mean) rstd."""
    n, width = x.shape
    for i in range(n):
        m, r, g_gamma, g_beta = mean[i], rstd[i], sums[i // _ROWS, 0], sums[i // _ROWS, 1]
        total, along = _ZERO, _ZERO
        for j in range(width):
            normed = (x[i, j] - m) * r
            h = g[i, j] * gamma[j]
            total += h
            along += h * normed
            g_gamma[j] += g[i, j] * normed
            g_beta[j] += g[i, j]
        total /= _f(width)
        along /= _f(width)
        for j in range(width):
            gx[i, j] = (g[i, j] * gamma[j] - total - (x[i, j] - m) * r * along) * r


def rms_norm(x: Array, gamma: Array | None, eps: float) -> Any:
    if not is_float32(x, gamma) or x.size == 0:
        return numpy_llama.rms_norm(x, gamma, eps)
    rows = np.ascontiguousarray(rows_of(x))
    y, r = np.empty_like(rows), np.empty(len(rows), _f)
    _run(_rms_norm, x.size * 1e-4, (rows, y, r), _or_full(gamma, x.shape[-1], 1.0), _f(eps))
    return y.reshape(x.shape), r.reshape(*x.shape[:-1], 1)


@compiled("contract", "reassoc")
def _rms_norm(x: Array, y: Array, r: Array, gamma: Array, eps: Any) -> None:
    n, width = x.shape
    for i in range(n):
        squares = _ZERO
        for j in range(width):
            squares += x[i, j] * x[i, j]
        scale = _ONE / np.sqrt(squares / _f(width) + eps)
        for j in range(width):
            y[i, j] = x[i, j] * scale * gamma[j]
        r[i] = scale


def rms_norm_backward(g: Array, x: Array, gamma: Array | None, r: Array, needs: Sequence[bool]) -> Any:
    if not is_float32(g, x, gamma, r) or x.size == 0:
        return numpy_llama.rms_norm_backward(g, x, gamma, r, needs)
    gs, xs, scales = np.ascontiguousarray(rows_of(g)), np.ascontiguousarray(rows_of(x)), r.ravel()
    n, width = xs.shape
    weight = _or_full(gamma, width, 1.0)
    gx, sums = np.empty_like(gs), np.zeros((-(-n // _ROWS), width), _f)

    def part(start: int, stop: int) -> None:
        rows = slice(start * _ROWS, stop * _ROWS)
        _rms_norm_backward(gs[rows], xs[rows], weight, scales[rows], gx[rows], sums[start:stop])

    run_parallel(len(sums), x.size * 2e-4, part)
    return gx.reshape(x.shape) if needs[0] else None, sum(sums, axis=0) if needs[1] else None


@compiled("contract", "reassoc")
def _rms_norm_backward(g: Array, x: Array, gamma: Array, r: Array, gx: Array, sums: Array) -> None:
    """gx = r (h - normed mean(h normed)), with h = g gamma and normed = x r."""
    n, width = x.shape
    for i in range(n):
        scale, g_gamma, along = r[i], sums[i // _ROWS], _ZERO
        for j in range(width):
            normed = x[i, j] * scale
            along += g[i, j] * gamma[j] * normed
            g_gamma[j] += g[i, j] * normed
        along *= scale / _f(width)
        for j in range(width):
            gx[i, j] = (g[i, j] * gamma[j] - x[i, j] * along) * scale


def embedding_backward(g: Array, ids: Array, n_rows: int) -> Any:
    if not is_float32(g):
        return numpy_fused.embedding_backward(g, ids, n_rows)
    out = np.zeros((n_rows, g.shape[-1]), g.dtype)
    _embedding_backward(np.ascontiguousarray(rows_of(g)), ids.ravel(), out)
    return out


@compiled("contract", "reassoc")
def _embedding_backward(g: Array, ids: Array, out: Array) -> None:
    """Add the rows in order, in one thread, so that the result is deterministic."""
    for i in range(ids.size):
        row = out[ids[i]]
        for j in range(row.size):
            row[j] += g[i, j]


def cross_entropy(logits: Array, ids: Array, valid: Array | None, excluded_class: int | None) -> Any:
    if not is_float32(logits) or logits.size == 0:
        return numpy_fused.cross_entropy(logits, ids, valid, excluded_class)
    probs = np.array(logits, order="C")  # (N, C), logits until the softmax
    if excluded_class is not None:
        probs[:, excluded_class] = -inf
    target = probs[np.arange(len(ids)), ids]  # (N,)
    top, total = _softmax_of_rows(probs, probs)
    losses = np.log(total) - (target - top)
    if valid is None:
        return np.asarray(np.mean(losses)), probs
    return np.asarray(np.sum(np.where(valid, losses, 0)) / np.count_nonzero(valid)).astype(_f), probs


def attention(
    q: Array, k: Array, v: Array, mask: Array | None, causal: bool, offset: int, dropout: AttentionDropout | None = None
) -> Any:
    """As in numpy_attention.py, with everything between the two products in one pass."""
    if not is_float32(q, k, v):
        return numpy_attention.attention(q, k, v, mask, causal, offset, dropout)
    if dropout is None and numpy_attention.takes_one_query(q, k, v, causal, offset):
        return numpy_attention.one_query(q, k, v, mask, causal, offset, _softmax_of)
    heads = _AttentionOperands(q, k, v, mask, causal, offset)
    out = np.zeros_like(heads.q, shape=(*heads.q.shape[:-1], v.shape[-1]))
    log_sum = np.full(heads.q.shape[:-1], inf, _f)

    def one(queries: _BlockIndex, keys: _BlockIndex) -> None:
        weights = (heads.q[queries] * heads.scale) @ np.swapaxes(heads.k[keys], -1, -2)
        if heads.mask is not None:
            np.copyto(weights, -inf, where=heads.mask[(*queries, keys[2])])
        _attention_weights(weights, log_sum[queries], queries[2].start + heads.offset + 1)
        if dropout is not None:
            weights *= heads.dropout_mask(queries, keys, dropout)
        np.matmul(weights, heads.v[keys], out=out[queries])

    heads.run_in_blocks(one, products=2)
    return heads.merge(out), heads.merge(log_sum[..., None])


@compiled("contract", "reassoc")
def _attention_weights(scores: Array, log_sum: Array, seen_by_first: int) -> None:
    """Softmax of the scores, in place, and their logsumexp. Each query sees one more key than the previous query."""
    n_batch, n_heads, n_queries, n_keys = scores.shape
    lanes = np.empty(_LANES, _f)
    for b, h, i in np.ndindex(n_batch, n_heads, n_queries):
        row = scores[b, h, i]
        seen = seen_by_first + i
        seen = 0 if seen < 0 else n_keys if seen > n_keys else seen
        top, total = _exp_of_row(row[:seen], lanes)
        hidden = total == _ZERO
        log_sum[b, h, i] = _INF if hidden else top + np.log(total)
        inverse = _ZERO if hidden else _ONE / total
        for j in range(seen):
            row[j] *= inverse
        for j in range(seen, n_keys):
            row[j] = _ZERO


def _softmax_of(scores: Array) -> Array:
    """Softmax of each row of an array in C order, in place. Returns the logsumexp of each row's scores, (..., 1)."""
    log_sum = np.empty((*scores.shape[:-1], 1), _f)
    n_keys = scores.shape[-1]
    _attention_weights(scores.reshape(1, 1, -1, n_keys), log_sum.reshape(1, 1, -1), n_keys)
    return log_sum


# --- Generation: one token of one text through a block, in one call


def token_block(
    x: Array,
    norms: Sequence[tuple[Array, Array, float]],
    weights: Sequence[Array | None],
    activation: str,
    cache: Array,
    position: int,
) -> Any:
    (gamma, beta, eps), (gamma_2, beta_2, eps_2) = norms
    w_qkv, w_out, w_in, b_in, w_down, b_down = (_NO_WEIGHT if weight is None else weight for weight in weights)
    arrays = x, gamma, beta, gamma_2, beta_2, cache, w_qkv, w_out, w_in, b_in, w_down, b_down
    if x.size != x.shape[-1] or not is_float32(*arrays) or not all(a.flags.c_contiguous for a in arrays):
        return numpy_token.token_block(x, norms, weights, activation, cache, position)
    out = np.empty_like(x)
    _token_block(
        x.reshape(1, -1), gamma, beta, _f(eps), gamma_2, beta_2, _f(eps_2), w_qkv, w_out, w_in, b_in, w_down, b_down,
        _ACTIVATIONS.index(activation), cache[0], position, out.reshape(1, -1),
    )  # fmt: skip
    return out


_NO_WEIGHT = np.zeros((0, 0), _f)
_ACTIVATIONS = "gelu", "gelu_tanh", "relu", "leaky_relu"


@compiled("contract", "reassoc")
def _token_block(
    x: Array, gamma: Array, beta: Array, eps: Any, gamma_2: Array, beta_2: Array, eps_2: Any, w_qkv: Array,
    w_out: Array, w_in: Array, b_in: Array, w_down: Array, b_down: Array, activation: int, cache: Array, position: int,
    out: Array,
) -> None:  # fmt: skip
    width, (n_heads, _, d) = x.size, cache.shape[1:]
    normed, mean, rstd = np.empty_like(x), np.empty(1, _f), np.empty(1, _f)
    _layer_norm(x, normed, mean, rstd, gamma, beta, eps)
    qkv, attended = np.zeros(3 * width, _f), np.zeros(width, _f)
    _add_product(normed[0], w_qkv, qkv)
    lanes, weights = np.empty(_LANES, _f), np.empty(position + 1, _f)
    for h in range(n_heads):
        keys, values, start = cache[0, h], cache[1, h], h * d
        query, head = qkv[start : start + d], attended[start : start + d]
        for i in range(d):
            keys[position, i] = qkv[width + start + i]
            values[position, i] = qkv[2 * width + start + i]
        for j in range(position + 1):
            score = _ZERO
            for i in range(d):
                score += query[i] * keys[j, i]
            weights[j] = score / np.sqrt(_f(d))
        _, total = _exp_of_row(weights, lanes)
        for j in range(position + 1):
            weight = weights[j] / total
            for i in range(d):
                head[i] += weight * values[j, i]
    out[:] = x
    if w_out.size:
        _add_product(attended, w_out, out[0])
    else:
        out[0] += attended
    _layer_norm(out, normed, mean, rstd, gamma_2, beta_2, eps_2)
    hidden = b_in.copy()
    _add_product(normed[0], w_in, hidden)
    if activation == 0:
        _gelu_exact(hidden, hidden, np.empty_like(hidden))
    elif activation == 1:
        _gelu_tanh(hidden, hidden, np.empty_like(hidden))
    else:
        for i in range(hidden.size):
            if hidden[i] < _ZERO:
                hidden[i] = _ZERO if activation == 2 else hidden[i] * _f(0.01)
    out[0] += b_down
    _add_product(hidden, w_down, out[0])


@compiled("contract", "reassoc")
def _add_product(row: Array, weight: Array, out: Array) -> None:
    """out += row @ weight. Four rows of the weight at a time, so that `out` is read and written less often."""
    n, width = weight.shape
    whole = n - n % 4
    for i in range(0, whole, 4):
        a, b, c, d = row[i], row[i + 1], row[i + 2], row[i + 3]
        for j in range(width):
            out[j] += a * weight[i, j] + b * weight[i + 1, j] + c * weight[i + 2, j] + d * weight[i + 3, j]
    for i in range(whole, n):
        for j in range(width):
            out[j] += row[i] * weight[i, j]


conv = numba_convolution.conv
conv_backward = numba_convolution.conv_backward

# --- Fused: one optimizer step, in place


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
    if not is_float32(p, g, m, v) or not all(array.flags.carray for array in (p, m, v)):
        return numpy_optimizer.adam_step(p, g, m, v, rates, clip, beta1, beta2, eps, weight_decay, decoupled, p_half)
    rate, scale, decay = rates.tolist()
    grow = 1.0 if clip is None else float(clip)
    if weight_decay and not decoupled:
        g, grow = g * _f(grow) + weight_decay * p, 1.0
    shrink = 1.0 - decay if decoupled else 1.0
    numbers = [_f(x) for x in (grow, shrink, beta1, 1.0 - beta1, beta2, 1.0 - beta2, scale, eps, rate)]
    arrays = [array.reshape(-1) for array in (p, g, m, v)]
    _run(_adam_step, p.size * 2e-4, arrays, *numbers)
    if p_half is not None:
        p_half[...] = p
    return p, m, v, p_half


@compiled("contract", "reassoc")
def _adam_step(
    p: Array, g: Array, m: Array, v: Array,
    grow: Any, shrink: Any, beta1: Any, new1: Any, beta2: Any, new2: Any, scale: Any, eps: Any, rate: Any,
) -> None:  # fmt: skip
    for i in range(p.size):
        slope = grow * g[i]
        m[i] = beta1 * m[i] + new1 * slope
        v[i] = beta2 * v[i] + new2 * slope * slope
        p[i] = shrink * p[i] - rate * (m[i] / (np.sqrt(v[i]) / scale + eps))
