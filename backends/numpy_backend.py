"""The CPU backend, in NumPy: the readable reference of every primitive.

Names, order and signatures are those of the contract, `russellgrad/backend.py`; shapes are in the comments there and
beside the fused primitives here. What another backend computes with a kernel is defined by what stands here.
"""

from collections.abc import Sequence
from math import pi, prod
from math import sqrt as _sqrt
from typing import Any, TypeAlias

import numpy as np

from . import host

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
DType: TypeAlias = Any
Shape: TypeAlias = tuple[int, ...]
Axis: TypeAlias = int | tuple[int, ...] | None

name = "numpy"

# --- In and out of the backend


def require_usable() -> None:
    """NumPy can always be used."""


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


def uniform(shape: Shape, seed: int, counter: int, dtype: DType) -> Array:
    return host.uniform(shape, seed, counter).astype(dtype)


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
    x = np.clip(np.asarray(a, dtype=np.float32), -4.1, 4.1)  # beyond 4 erf is 1 to single precision
    z = x * x
    value = np.full_like(z, _ERF_SINGLE[0])
    for c in _ERF_SINGLE[1:]:
        value *= z
        value += c
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


def matmul(a: Array, b: Array) -> Array:
    return np.asarray(np.matmul(a, b))


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    rows = _rows(x) @ weight  # (N, i) @ (i, o): one product, whatever the batch axes
    if bias is not None:
        rows += bias
    return rows.reshape(*x.shape[:-1], weight.shape[1])


def linear_backward(g: Array, x: Array, weight: Array, needs: Sequence[bool]) -> tuple[Array | None, ...]:
    need_x, need_weight, need_bias = needs
    g2 = _rows(g)  # (N, o)
    return (
        (g2 @ weight.T).reshape(x.shape) if need_x else None,
        _rows(x).T @ g2 if need_weight else None,
        g2.sum(0) if need_bias else None,
    )


def _rows(a: Array) -> Array:
    """(..., C) -> (N, C); the count is spelled out because -1 cannot be inferred when C is 0."""
    return a.reshape(prod(a.shape[:-1]), a.shape[-1])


# --- Fused: activations. Hendrycks & Gimpel, "Gaussian error linear units", arXiv:1606.08415, section 2.

_GELU_C = _sqrt(2.0 / pi)


def gelu(a: Array, approximate: str) -> tuple[Array, Array]:
    if approximate == "none":  # Phi, the normal distribution function
        phi = 0.5 * (1.0 + erf(a * _sqrt(0.5)))
    else:
        phi = 0.5 * (1.0 + np.tanh(_GELU_C * (a + 0.044715 * a * a * a)))
    return a * phi, phi


def gelu_backward(g: Array, a: Array, phi: Array, approximate: str) -> Array:
    if approximate == "none":  # phi' is the normal density
        slope = np.exp(-0.5 * a * a) / _sqrt(2.0 * pi)
    else:  # (1 - tanh^2) / 2 = 2 phi (1 - phi)
        slope = 2.0 * phi * (1.0 - phi) * _GELU_C * (1.0 + 3.0 * 0.044715 * a * a)
    return np.asarray(g * (phi + a * slope))


# --- Fused: rows


def softmax(a: Array, axis: int) -> Array:
    if a.size == 0:
        return np.array(a)
    e = np.exp(a - np.max(a, axis=axis, keepdims=True))  # the largest exponent is 0: no overflow
    return np.asarray(e / np.sum(e, axis=axis, keepdims=True))


def softmax_backward(g: Array, y: Array, axis: int) -> Array:
    return np.asarray(y * (g - np.sum(g * y, axis=axis, keepdims=True)))


def log_softmax(a: Array, axis: int) -> Array:
    if a.size == 0:
        return np.array(a)
    z = a - np.max(a, axis=axis, keepdims=True)
    return np.asarray(z - np.log(np.sum(np.exp(z), axis=axis, keepdims=True)))


def log_softmax_backward(g: Array, y: Array, axis: int) -> Array:
    return np.asarray(g - np.exp(y) * np.sum(g, axis=axis, keepdims=True))


# Ba, Kiros & Hinton, "Layer normalization", arXiv:1607.06450, equation 4.


def layer_norm(x: Array, gamma: Array | None, beta: Array | None, eps: float) -> tuple[Array, Array, Array]:
    mean = np.mean(x, axis=-1, keepdims=True)  # (..., 1)
    centred = x - mean  # the variance from centred values: E[x^2] - E[x]^2 cancels when the mean is large
    rstd = 1.0 / np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + eps)  # (..., 1)
    y = centred * rstd
    if gamma is not None:
        y = y * gamma
    if beta is not None:
        y = y + beta
    return np.asarray(y), mean, rstd


def layer_norm_backward(
    g: Array, x: Array, gamma: Array | None, mean: Array, rstd: Array, needs: Sequence[bool]
) -> tuple[Array | None, ...]:
    need_x, need_gamma, need_beta = needs
    normed = (x - mean) * rstd  # (..., C)
    gx = ggamma = gbeta = None
    if need_x:
        h = g if gamma is None else g * gamma
        # The gradient of centring takes out h's mean; that of scaling, its part along `normed`.
        gx = rstd * (h - np.mean(h, axis=-1, keepdims=True) - normed * np.mean(h * normed, axis=-1, keepdims=True))
    if need_gamma:
        ggamma = _rows(g * normed).sum(0)
    if need_beta:
        gbeta = _rows(g).sum(0)
    return gx, ggamma, gbeta


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


# Vaswani et al., "Attention is all you need", arXiv:1706.03762, equation 1.


def attention(q: Array, k: Array, v: Array, mask: Array | None, causal: bool, offset: int) -> tuple[Array, Array]:
    scores = (q * (1.0 / _sqrt(q.shape[-1]))) @ np.swapaxes(k, -1, -2)  # (..., L, S)
    if mask is not None:
        np.copyto(scores, -np.inf, where=np.broadcast_to(mask, scores.shape))
    if causal:  # query i sees keys up to i + offset
        queries, keys = scores.shape[-2:]
        np.copyto(scores, -np.inf, where=np.arange(keys) > np.arange(queries)[:, None] + offset)
    if scores.size:
        top = np.max(scores, axis=-1, keepdims=True)
        weights = np.exp(scores - np.where(np.isneginf(top), 0, top))  # a row with everything hidden: all zeros
        total = np.sum(weights, axis=-1, keepdims=True)
        weights /= np.where(total == 0, 1, total)
    else:
        weights = scores
    return np.asarray(weights @ v), weights


def attention_backward(
    g: Array, q: Array, k: Array, v: Array, weights: Array, needs: Sequence[bool]
) -> tuple[Array | None, ...]:
    need_q, need_k, need_v = needs
    gq = gk = None
    if need_q or need_k:
        gw = softmax_backward(g @ np.swapaxes(v, -1, -2), weights, -1) * (1.0 / _sqrt(q.shape[-1]))  # (..., L, S)
        gq = gw @ k if need_q else None
        gk = np.swapaxes(gw, -1, -2) @ q if need_k else None
    gv = np.swapaxes(weights, -1, -2) @ g if need_v else None
    return gq, gk, gv


# --- Fused: one optimizer step, in place


def sgd_step(
    p: Array,
    g: Array,
    velocity: Array | None,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> None:
    """Sutskever et al., "On the importance of initialization and momentum", ICML 2013, in the form PyTorch uses.

    `velocity` is None without momentum, and zeros before the first step.
    """
    if weight_decay:
        g = g + weight_decay * p
    if velocity is not None:
        velocity *= momentum
        velocity += g
        g = g + momentum * velocity if nesterov else velocity
    p -= lr * g


def adam_step(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """Kingma & Ba, "Adam", arXiv:1412.6980, algorithm 1; decoupled decay: Loshchilov & Hutter, arXiv:1711.05101."""
    if weight_decay and decoupled:
        p *= 1.0 - lr * weight_decay
    elif weight_decay:
        g = g + weight_decay * p
    m *= beta1
    m += (1.0 - beta1) * g
    v *= beta2
    v += (1.0 - beta2) * (g * g)
    scale = _sqrt(1.0 - beta2**step)
    p -= (lr / (1.0 - beta1**step)) * m / (np.sqrt(v) / scale + eps)
