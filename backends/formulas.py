"""Formulas for the derived primitives, written in core primitives: the definition of what each one computes.

Each function takes the backend `xp`, followed by the arguments of the primitive of the same name in
`russellgrad/backend.py`. It uses only primitives of `xp` and the `shape` and `ndim` of arrays, and modifies no array. A
backend that does not define a primitive gets the formula. A backend with a faster implementation defines the name
itself; the conformance suite compares it with the formula in float64.

Shapes: `...` is any number of axes, C is the length of the last axis, N the number of rows (the product of the others).
"""

from collections.abc import Callable, Sequence
from functools import wraps
from itertools import product
from math import inf, pi, prod, sqrt
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np

from . import host

Xp: TypeAlias = Any  # a backend
Array: TypeAlias = Any  # an array of the backend
DType: TypeAlias = Any
Shape: TypeAlias = tuple[int, ...]
Padding: TypeAlias = tuple[tuple[int, int], ...]  # before and after, for each spatial axis
AttentionDropout: TypeAlias = tuple[Array, float, DType]  # key, p and dtype of `dropout_mask`
_Formula = TypeVar("_Formula", bound=Callable[..., Any])


# --- Shapes and dtypes


def _rows(xp: Xp, a: Array) -> Array:
    """(..., C) -> (N, C). N is explicit, because -1 cannot be inferred if C is 0."""
    return xp.reshape(a, (prod(a.shape[:-1]), a.shape[-1]))


def _swap(xp: Xp, a: Array) -> Array:
    """(..., n, m) -> (..., m, n)."""
    return xp.transpose(a, (*range(a.ndim - 2), a.ndim - 1, a.ndim - 2))


def _cast(xp: Xp, a: Array, dtype: DType) -> Array:
    """`a` itself if it has the dtype, else a cast copy."""
    return a if xp.dtype(a) == dtype else xp.astype(a, dtype)


def _at_least_float32(xp: Xp, a: Array) -> Array:
    """Cast half precision to float32: sums and squares in float16 overflow at 65,504."""
    return a if xp.dtype(a).itemsize > 2 else xp.astype(a, "float32")


def _in_float32(saved: int = 0) -> Callable[[_Formula], _Formula]:
    """Decorator: for a first operand in half precision, compute in float32 and round the results to its dtype.

    The last `saved` results, which are kept for backward, stay in float32.
    """

    def decorate(formula: _Formula) -> _Formula:
        @wraps(formula)
        def wide(xp: Xp, first: Array, *rest: Any) -> Any:
            dtype = xp.dtype(first)
            if dtype.itemsize > 2:
                return formula(xp, first, *rest)
            operands = [
                xp.astype(a, "float32") if xp.is_array(a) and xp.dtype(a) == dtype else a for a in (first, *rest)
            ]
            found = formula(xp, *operands)
            if not isinstance(found, tuple):
                return xp.astype(found, dtype)
            rounded = found[: len(found) - saved]
            return *(None if a is None else xp.astype(a, dtype) for a in rounded), *found[len(rounded) :]

        return cast(_Formula, wide)

    return decorate


# --- Setup and creation


def require_usable(xp: Xp) -> None:
    """Do nothing: a backend without this check can always be used."""


def zeros(xp: Xp, shape: Shape, dtype: DType) -> Array:
    """An array of zeros."""
    return xp.full(shape, 0, dtype)


def normal(xp: Xp, shape: Shape, seed: int, counter: int, dtype: DType) -> Array:
    """Standard normal random numbers, generated in float64 and rounded, both on the host: a device may lack float64."""
    return xp.asarray(host.normal(shape, seed, counter).astype(dtype))


def uniform(xp: Xp, shape: Shape, key: Array, dtype: DType) -> Array:
    """Uniform random numbers on [0, 1), generated and rounded on the host as in `normal`."""
    seed, low, high, start = (int(word) for word in xp.to_host(key))
    return xp.asarray(host.uniform(shape, seed, high << 64 | low, start).astype(dtype))


def dropout_mask(xp: Xp, shape: Shape, key: Array, p: float, dtype: DType) -> Array:
    kept = xp.greater_equal(xp.uniform(shape, key, dtype), p)
    return xp.multiply(xp.astype(kept, dtype), 1 / (1 - p))


def host_scalars(xp: Xp, values: Sequence[float], dtype: DType) -> Array:
    """An array (n,) of Python numbers."""
    return xp.asarray(np.array(values, dtype))


def check_ids(xp: Xp, ids: Any, upper: int, op: str) -> Array:
    """Ids, checked on the host. Ids that are arrays of the backend are copied to the host first."""
    return xp.asarray(host.checked_ids(xp.to_host(ids) if xp.is_array(ids) else ids, upper, op))


def check_targets(xp: Xp, ids: Any, upper: int, ignore: int | None, op: str) -> tuple[Array, Array | None]:
    """Targets of a loss, checked on the host, and which of them are valid."""
    checked, valid = host.checked_targets(xp.to_host(ids) if xp.is_array(ids) else ids, upper, ignore, op)
    return xp.asarray(checked), None if valid is None else xp.asarray(valid)


def prepare_index(xp: Xp, index: Any, shape: Shape) -> Any:
    """Check index arrays on the host and copy them to the backend. A mask becomes the indices of its True elements."""
    shape = tuple(shape)  # of PyTorch, a subclass of tuple with a repr of its own
    on_host = [xp.to_host(part) if xp.is_array(part) else part for part in host.as_tuple(index)]
    parts = [part if host.is_basic((part,)) else host.index_array(part) for part in on_host]
    prepared: list[Any] = []
    for part, axis in zip(parts, host.index_axes(tuple(parts), len(shape)), strict=True):
        if host.is_basic((part,)):
            prepared.append(part)
            continue
        host.check_index_array(part, axis, shape)
        # Ints or int64: PyTorch takes an array of uint8 for a mask, and reads an array without axes on the host.
        arrays = np.nonzero(part) if part.dtype.kind == "b" else [part.astype(np.int64)]
        prepared.extend(array if array.ndim else int(array) for array in arrays)
    host.check_broadcast([part.shape for part in prepared if isinstance(part, np.ndarray)])
    return tuple(xp.asarray(part) if isinstance(part, np.ndarray) else part for part in prepared)


def set_matmul_precision(xp: Xp, level: str) -> None:
    """Do nothing: products have full precision at every level."""


# --- Elementwise: (...) -> (...)

# Coefficients of the rational approximations in W. J. Cody, "Rational Chebyshev approximations for the error function",
# Mathematics of Computation 23 (1969), tables II to IV, as in his Fortran routine CALERF. Numerator, then denominator;
# highest power first.
ERF_SMALL = (
    (1.85777706184603153e-1, 3.16112374387056560e0, 1.13864154151050156e2, 3.77485237685302021e2,
     3.20937758913846947e3),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3),
)  # fmt: skip
ERFC_MIDDLE = (
    (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0, 6.61191906371416295e1,
     2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
     1.23033935479799725e3),
    (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
     3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3),
)  # fmt: skip
ERFC_LARGE = (
    (1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1,
     1.60837851487422766e-2, 6.58749161529837803e-4),
    (1.0, 2.56852019228982242e0, 1.87295284992346725e0, 5.27905102951428412e-1, 6.05183413124413191e-2,
     2.33520497626869185e-3),
)  # fmt: skip


def erf(xp: Xp, a: Array) -> Array:
    """The error function (Cody 1969): one rational function for each of three ranges of |a|.

    The relative error in float64 is below 1e-15.
    """
    x = _at_least_float32(xp, a)
    y = xp.abs(x)
    small = xp.where(xp.less_equal(y, 0.46875), x, 0)
    below = xp.multiply(small, _ratio(xp, ERF_SMALL, xp.multiply(small, small)))
    middle = xp.minimum(xp.maximum(y, 0.46875), 4.0)
    erfc = xp.multiply(xp.exp(xp.negative(xp.multiply(middle, middle))), _ratio(xp, ERFC_MIDDLE, middle))
    large = xp.minimum(xp.maximum(y, 4.0), 6.0)  # erf is 1 in double precision beyond 6
    z = xp.divide(1.0, xp.multiply(large, large))
    tail = xp.divide(xp.exp(xp.negative(xp.multiply(large, large))), large)
    far = xp.multiply(tail, xp.subtract(1 / sqrt(pi), xp.multiply(z, _ratio(xp, ERFC_LARGE, z))))
    above = xp.multiply(xp.sign(x), xp.subtract(1, xp.where(xp.less_equal(y, 4.0), erfc, far)))
    return _cast(xp, xp.where(xp.less_equal(y, 0.46875), below, above), xp.dtype(a))


def _ratio(xp: Xp, coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Array) -> Array:
    """The rational function at x, numerator / denominator, by Horner's method."""
    values = []
    for first, second, *rest in coefficients:
        value = xp.add(xp.multiply(x, first), second)
        for c in rest:
            value = xp.add(xp.multiply(value, x), c)
        values.append(value)
    return xp.divide(values[0], values[1])


def sigmoid(xp: Xp, a: Array) -> Array:
    """1 / (1 + e^-a), computed from e^-|a|, which does not overflow."""
    e = xp.exp(xp.negative(xp.abs(a)))
    return xp.divide(xp.where(xp.greater_equal(a, 0), 1, e), xp.add(e, 1))


def relu(xp: Xp, a: Array) -> Array:
    """max(a, 0)."""
    return xp.maximum(a, 0)


def clip(xp: Xp, a: Array, low: Array | None, high: Array | None) -> Array:
    """min(max(a, low), high); either bound may be None."""
    out = a if low is None else xp.maximum(a, low)
    return out if high is None else xp.minimum(out, high)


def leaky_relu(xp: Xp, a: Array, alpha: float) -> Array:
    """a where a > 0, else alpha a.

    Maas, Hannun & Ng, "Rectifier nonlinearities improve neural network acoustic models", ICML workshop 2013.
    """
    return xp.where(xp.greater(a, 0), a, xp.multiply(a, alpha))


def leaky_relu_backward(xp: Xp, g: Array, a: Array, alpha: float) -> Array:
    """g where a > 0, else alpha g."""
    return xp.where(xp.greater(a, 0), g, xp.multiply(g, alpha))


_GELU_C = sqrt(2 / pi)


def gelu(xp: Xp, a: Array, approximate: str) -> tuple[Array, Array]:
    """a Phi(a), where Phi is the standard normal distribution function or its tanh approximation.

    Hendrycks & Gimpel, "Gaussian error linear units", arXiv:1606.08415, section 2. Also returns a, saved for backward.
    """
    x = _at_least_float32(xp, a)
    return _cast(xp, xp.multiply(x, _normal_cdf(xp, x, approximate)), xp.dtype(a)), a


def gelu_backward(xp: Xp, g: Array, saved: Array, approximate: str) -> Array:
    """g (Phi(a) + a Phi'(a))."""
    a = _at_least_float32(xp, saved)
    cdf = _normal_cdf(xp, a, approximate)
    if approximate == "none":  # Phi' is the normal density
        a_slope = xp.multiply(a, xp.multiply(xp.exp(xp.multiply(xp.multiply(a, a), -0.5)), 1 / sqrt(2 * pi)))
    else:  # Phi' = 2 Phi (1 - Phi) c (1 + 3 * 0.044715 a^2); for large |a|, Phi (1 - Phi) is 0 before a^2 overflows
        inner = xp.add(xp.multiply(xp.multiply(a, a), 6 * _GELU_C * 0.044715), 2 * _GELU_C)
        a_slope = xp.multiply(xp.multiply(xp.multiply(a, cdf), xp.subtract(1, cdf)), inner)
    return _cast(xp, xp.multiply(g, xp.add(cdf, a_slope)), xp.dtype(g))


def gelu_value(xp: Xp, a: Array, approximate: str) -> Array:
    """The first result of `gelu`. A backend whose `gelu` computes its slope, too, has less to do here."""
    return xp.gelu(a, approximate)[0]


def _normal_cdf(xp: Xp, a: Array, approximate: str) -> Array:
    """The standard normal distribution function, or its tanh approximation."""
    if approximate == "none":
        return xp.multiply(xp.add(xp.erf(xp.multiply(a, sqrt(0.5))), 1), 0.5)
    inner = xp.multiply(a, xp.add(xp.multiply(xp.multiply(a, a), _GELU_C * 0.044715), _GELU_C))
    return xp.multiply(xp.add(xp.tanh(inner), 1), 0.5)


@_in_float32()
def swiglu(xp: Xp, gate: Array, up: Array) -> Array:
    """silu(gate) up, with silu(a) = a sigmoid(a): (...) (...) -> (...).

    Shazeer, "GLU variants improve transformer", arXiv:2002.05202, equation 5.
    """
    return xp.multiply(xp.multiply(gate, xp.sigmoid(gate)), up)


@_in_float32()
def swiglu_backward(
    xp: Xp, g: Array, gate: Array, up: Array, needs: Sequence[bool]
) -> tuple[Array | None, Array | None]:
    """The gradients of gate and up: g up silu'(gate) and g silu(gate), with silu' = s + silu (1 - s), s = sigmoid."""
    s = xp.sigmoid(gate)
    silu = xp.multiply(gate, s)
    slope = xp.add(s, xp.multiply(silu, xp.subtract(1, s))) if needs[0] else None
    return (
        xp.multiply(xp.multiply(g, up), slope) if needs[0] else None,
        xp.multiply(g, silu) if needs[1] else None,
    )


# --- Products


@_in_float32()
def linear(xp: Xp, x: Array, weight: Array, bias: Array | None) -> Array:
    """x weight + bias: (..., i) (i, o) (o,) -> (..., o)."""
    out = xp.matmul(_rows(xp, x), weight)  # one product for all batch axes
    if bias is not None:
        out = xp.add(out, bias)
    return xp.reshape(out, (*x.shape[:-1], weight.shape[1]))


@_in_float32()
def linear_backward(
    xp: Xp, g: Array, x: Array, weight: Array, needs: Sequence[bool]
) -> tuple[Array | None, Array | None, Array | None]:
    """The gradients of x, weight and bias: g weight^T, x^T g, and the sum of g over the rows."""
    rows = _rows(xp, g)
    return (
        xp.reshape(xp.matmul(rows, xp.transpose(weight)), x.shape) if needs[0] else None,
        xp.matmul(xp.transpose(_rows(xp, x)), rows) if needs[1] else None,
        xp.sum(rows, axis=0) if needs[2] else None,
    )


# --- Rows


@_in_float32()
def softmax(xp: Xp, a: Array, axis: int) -> Array:
    """e^a / sum e^a along `axis`. Subtracting the maximum first prevents overflow."""
    if 0 in a.shape:
        return xp.copy(a)
    e = xp.exp(xp.subtract(a, xp.max(a, axis=axis, keepdims=True)))
    return xp.divide(e, xp.sum(e, axis=axis, keepdims=True))


@_in_float32()
def softmax_backward(xp: Xp, g: Array, y: Array, axis: int) -> Array:
    """y (g - sum g y), where y is the output of softmax."""
    return xp.multiply(y, xp.subtract(g, xp.sum(xp.multiply(g, y), axis=axis, keepdims=True)))


@_in_float32()
def log_softmax(xp: Xp, a: Array, axis: int) -> Array:
    """a - log sum e^a along `axis`."""
    if 0 in a.shape:
        return xp.copy(a)
    z = xp.subtract(a, xp.max(a, axis=axis, keepdims=True))
    return xp.subtract(z, xp.log(xp.sum(xp.exp(z), axis=axis, keepdims=True)))


@_in_float32()
def log_softmax_backward(xp: Xp, g: Array, y: Array, axis: int) -> Array:
    """g - softmax(a) sum g, where softmax(a) = e^y and y is the output of log_softmax."""
    return xp.subtract(g, xp.multiply(xp.exp(y), xp.sum(g, axis=axis, keepdims=True)))


@_in_float32(saved=2)
def layer_norm(xp: Xp, x: Array, gamma: Array | None, beta: Array | None, eps: float) -> tuple[Array, Array, Array]:
    """(x - mean) / sqrt(variance + eps) * gamma + beta over the last axis: (..., C) (C,) (C,) -> (..., C).

    Ba, Kiros & Hinton, "Layer normalization", arXiv:1607.06450, equation 4. Also returns the mean and
    rstd = 1 / sqrt(variance + eps), both (..., 1). The variance is computed from x - mean, because E[x^2] - E[x]^2
    loses precision to cancellation.
    """
    mean = _row_means(xp, x)
    centered = xp.subtract(x, mean)
    rstd = xp.divide(1, xp.sqrt(xp.add(_row_means(xp, xp.multiply(centered, centered)), eps)))
    y = xp.multiply(centered, rstd)
    if gamma is not None:
        y = xp.multiply(y, gamma)
    if beta is not None:
        y = xp.add(y, beta)
    return y, mean, rstd


@_in_float32()
def layer_norm_backward(
    xp: Xp, g: Array, x: Array, gamma: Array | None, mean: Array, rstd: Array, needs: Sequence[bool]
) -> tuple[Array | None, Array | None, Array | None]:
    """The gradients of x, gamma and beta.

    With h = g gamma and normed = (x - mean) rstd, they are rstd (h - mean(h) - normed mean(h normed)), sum g normed,
    and sum g. The term mean(h) comes from the subtraction of the mean, the term with `normed` from the division by the
    standard deviation.
    """
    normed = xp.multiply(xp.subtract(x, mean), rstd)
    gx = ggamma = gbeta = None
    if needs[0]:
        h = g if gamma is None else xp.multiply(g, gamma)
        projection = xp.multiply(normed, _row_means(xp, xp.multiply(h, normed)))
        gx = xp.multiply(rstd, xp.subtract(xp.subtract(h, _row_means(xp, h)), projection))
    if needs[1]:
        ggamma = xp.sum(_rows(xp, xp.multiply(g, normed)), axis=0)
    if needs[2]:
        gbeta = xp.sum(_rows(xp, g), axis=0)
    return gx, ggamma, gbeta


@_in_float32(saved=1)
def rms_norm(xp: Xp, x: Array, gamma: Array | None, eps: float) -> tuple[Array, Array]:
    """x / sqrt(mean(x^2) + eps) * gamma over the last axis: (..., C) (C,) -> (..., C).

    Zhang & Sennrich, "Root mean square layer normalization", arXiv:1910.07467, equation 4. Also returns
    r = 1 / sqrt(mean(x^2) + eps), (..., 1).
    """
    r = xp.divide(1, xp.sqrt(xp.add(_row_means(xp, xp.multiply(x, x)), eps)))
    y = xp.multiply(x, r)
    return y if gamma is None else xp.multiply(y, gamma), r


@_in_float32()
def rms_norm_backward(
    xp: Xp, g: Array, x: Array, gamma: Array | None, r: Array, needs: Sequence[bool]
) -> tuple[Array | None, Array | None]:
    """The gradients of x and gamma: r (h - normed mean(h normed)) and sum g normed, h = g gamma and normed = x r."""
    normed = xp.multiply(x, r)
    gx = None
    if needs[0]:
        h = g if gamma is None else xp.multiply(g, gamma)
        gx = xp.multiply(r, xp.subtract(h, xp.multiply(normed, _row_means(xp, xp.multiply(h, normed)))))
    return gx, xp.sum(_rows(xp, xp.multiply(g, normed)), axis=0) if needs[1] else None


def _row_means(xp: Xp, a: Array) -> Array:
    """(..., C) -> (..., 1)."""
    return xp.divide(xp.sum(a, axis=-1, keepdims=True), max(a.shape[-1], 1))


@_in_float32()
def rotary(xp: Xp, x: Array, cos: Array, sin: Array) -> Array:
    """Rotate the pairs (a, b) = (x[i], x[i + D/2]) by angles: (a cos - b sin, b cos + a sin).

    Su et al., "RoFormer", arXiv:2104.09864, equation 34. x (..., D); cos and sin are broadcast to (..., D/2). The
    backward is a rotation by the negative angles.
    """
    half = x.shape[-1] // 2
    a, b = xp.getitem(x, (..., slice(0, half))), xp.getitem(x, (..., slice(half, None)))
    first = xp.subtract(xp.multiply(a, cos), xp.multiply(b, sin))
    second = xp.add(xp.multiply(b, cos), xp.multiply(a, sin))
    return xp.concatenate([first, second], x.ndim - 1)


def embedding(xp: Xp, weight: Array, ids: Array) -> Array:
    """Look up rows of a table: (V, C) (...) -> (..., C)."""
    return xp.getitem(weight, (ids,))


def embedding_backward(xp: Xp, g: Array, ids: Array, n_rows: int) -> Array:
    """The sum of the rows of g for each id: (..., C) (...) -> (n_rows, C)."""
    return xp.getitem_backward(g, (ids,), (n_rows, g.shape[-1]))


@_in_float32(saved=1)
def cross_entropy(
    xp: Xp, logits: Array, ids: Array, valid: Array | None, excluded_class: int | None
) -> tuple[Array, Array]:
    """The mean of -log softmax(logits)[id] over the valid rows: (N, C) (N,) (N,) -> (), and the softmax (N, C).

    The softmax excludes `excluded_class`: its probability is 0.
    """
    n, classes = logits.shape
    z = logits
    if excluded_class is not None:
        z = xp.where(xp.equal(xp.arange(classes), excluded_class), -inf, z)
    z = xp.subtract(z, xp.max(z, axis=1, keepdims=True))
    e = xp.exp(z)
    total = xp.sum(e, axis=1)
    losses = xp.subtract(xp.log(total), xp.getitem(z, (xp.arange(n), ids)))
    probs = xp.divide(e, xp.expand_dims(total, 1))
    if valid is None:
        return xp.divide(xp.sum(losses), n), probs
    return xp.divide(xp.sum(xp.where(valid, losses, 0)), _count(xp, valid, logits)), probs


@_in_float32()
def cross_entropy_backward(xp: Xp, g: Array, probs: Array, ids: Array, valid: Array | None) -> Array:
    """(softmax - one_hot(id)) g / n, with n the number of valid rows: () -> (N, C). Invalid rows get 0."""
    n, classes = probs.shape
    one_hot = xp.astype(xp.equal(xp.expand_dims(ids, 1), xp.arange(classes)), xp.dtype(probs))
    delta = xp.subtract(probs, one_hot)
    if valid is None:
        return xp.multiply(delta, xp.divide(g, n))
    return xp.multiply(delta, xp.expand_dims(xp.where(valid, xp.divide(g, _count(xp, valid, probs)), 0), 1))


def _count(xp: Xp, valid: Array, like: Array) -> Array:
    """The number of True elements, a 0-d array with the dtype of `like`."""
    return xp.astype(xp.asarray(xp.sum(valid)), xp.dtype(like))


# --- Attention. Vaswani et al., "Attention is all you need", arXiv:1706.03762, equation 1.


@_in_float32(saved=1)
def attention(
    xp: Xp, q: Array, k: Array, v: Array, mask: Array | None, causal: bool, offset: int,
    dropout: AttentionDropout | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """softmax(q k^T / sqrt(d)) v: (..., L, d) (..., S, d) (..., S, e) -> (..., L, e).

    With dropout, softmax(q k^T / sqrt(d)) is multiplied by its mask.

    Also returns the logsumexp of each query's scores, (..., L, 1), which is inf if all keys are hidden. Backward
    recomputes the weights from it (Dao et al., "FlashAttention", arXiv:2205.14135, algorithm 4).
    """
    scores = _scores(xp, q, k, mask, causal, offset)
    if k.shape[-2] == 0:
        return xp.matmul(scores, v), xp.full((*scores.shape[:-1], 1), inf, xp.dtype(scores))
    top = xp.max(scores, axis=-1, keepdims=True)
    top = xp.where(xp.equal(top, -inf), 0, top)  # if all keys are hidden, the weights are 0, not nan
    weights = xp.exp(xp.subtract(scores, top))
    total = xp.sum(weights, axis=-1, keepdims=True)
    hidden = xp.equal(total, 0)
    total = xp.where(hidden, 1, total)
    weights = xp.divide(weights, total)
    if dropout is not None:
        weights = xp.multiply(weights, _attention_dropout_mask(xp, scores.shape, v, dropout))
    return xp.matmul(weights, v), xp.where(hidden, inf, xp.add(xp.log(total), top))


@_in_float32()
def attention_backward(
    xp: Xp, g: Array, q: Array, k: Array, v: Array, out: Array, log_sum: Array, mask: Array | None, causal: bool,
    offset: int, needs: Sequence[bool], dropout: AttentionDropout | None = None,
) -> tuple[Array | None, Array | None, Array | None]:  # fmt: skip
    """The gradients of q, k and v, with all batch axes.

    Softmax's backward subtracts the sum of g_weights * weights over each row. It equals the sum of g * out, with
    out = weights v; but `out` is rounded in half precision. With dropout, out = (weights * drop) v and g_weights =
    (g v^T) * drop, so the two sums are equal, too.
    """
    weights = xp.exp(xp.subtract(_scores(xp, q, k, mask, causal, offset), log_sum))
    drop = None if dropout is None else _attention_dropout_mask(xp, weights.shape, v, dropout)
    dropped = weights if drop is None else xp.multiply(weights, drop)
    gv = xp.matmul(_swap(xp, dropped), g) if needs[2] else None
    if not (needs[0] or needs[1]):
        return None, None, gv
    g_weights = xp.matmul(g, _swap(xp, v))
    if drop is not None:
        g_weights = xp.multiply(g_weights, drop)
    along = xp.sum(xp.multiply(g_weights, weights), axis=-1, keepdims=True)
    g_scores = xp.multiply(xp.multiply(xp.subtract(g_weights, along), weights), 1 / sqrt(q.shape[-1]))
    gq = xp.matmul(g_scores, k) if needs[0] else None
    gk = xp.matmul(_swap(xp, g_scores), q) if needs[1] else None
    return gq, gk, gv


def _attention_dropout_mask(xp: Xp, scores: Shape, v: Array, dropout: AttentionDropout) -> Array:
    """The mask of dropout of the weights, in the dtype of v: (..., L, S), with the output's batch axes."""
    shape = (*np.broadcast_shapes(scores[:-2], v.shape[:-2]), *scores[-2:])
    return _cast(xp, xp.dropout_mask(shape, *dropout), xp.dtype(v))


def _scores(xp: Xp, q: Array, k: Array, mask: Array | None, causal: bool, offset: int) -> Array:
    """q k^T / sqrt(d), (..., L, S), -inf at hidden keys. If causal, query i sees the keys up to i + offset."""
    scores = xp.matmul(xp.multiply(q, 1 / sqrt(q.shape[-1])), _swap(xp, k))
    if mask is not None:
        scores = xp.where(mask, -inf, scores)
    if causal:
        last = xp.add(xp.expand_dims(xp.arange(q.shape[-2]), 1), offset)  # (L, 1)
        scores = xp.where(xp.greater(xp.arange(k.shape[-2]), last), -inf, scores)
    return scores


# --- Convolution and pooling. Dumoulin & Visin, "A guide to convolution arithmetic for deep learning", 2016,
# arXiv:1603.07285.


@_in_float32()
def conv(
    xp: Xp, x: Array, weight: Array, bias: Array | None, stride: Shape, padding: Padding, dilation: Shape, groups: int
) -> Array:
    """The windows of x, and one product: (N, C, *in) (O, C / groups, *kernel) (O,) -> (N, O, *out)."""
    kernel = weight.shape[2:]
    windows = _windows(xp, x, kernel, stride, padding, dilation)  # (C, K, N, *out), K elements in a window
    out = xp.matmul(_by_group(xp, weight, groups), _by_group(xp, windows, groups, 2))
    out = xp.reshape(out, (weight.shape[0], *windows.shape[2:]))
    if bias is not None:
        out = xp.add(out, xp.reshape(bias, (weight.shape[0], *(1,) * (x.ndim - 1))))
    return xp.copy(_swap_first(xp, out))


@_in_float32()
def conv_backward(
    xp: Xp, g: Array, x: Array, weight: Array, stride: Shape, padding: Padding, dilation: Shape, groups: int,
    needs: Sequence[bool],
) -> tuple[Array | None, Array | None, Array | None]:  # fmt: skip
    """The gradients of x, weight and bias: the same product with g, as in `linear_backward`."""
    rows, gx, gw = _by_group(xp, _swap_first(xp, g), groups), None, None  # (groups, O / groups, N * out)
    if needs[0]:
        columns = xp.matmul(_swap(xp, _by_group(xp, weight, groups)), rows)
        windows = xp.reshape(columns, (x.shape[1], prod(weight.shape[2:]), x.shape[0], *g.shape[2:]))
        gx = _windows_backward(xp, windows, x.shape, weight.shape[2:], stride, padding, dilation)
    if needs[1]:
        windows = _windows(xp, x, weight.shape[2:], stride, padding, dilation)
        gw = xp.reshape(xp.matmul(rows, _swap(xp, _by_group(xp, windows, groups, 2))), weight.shape)
    return gx, gw, xp.reshape(xp.sum(rows, axis=2), (weight.shape[0],)) if needs[2] else None


def max_pool_indices(xp: Xp, x: Array, kernel: Shape, stride: Shape, padding: Padding, dilation: Shape) -> Array:
    """Where the maximum of each window is, an index of x.reshape(-1): (N, C, *in) -> (N, C, *out), int64.

    Of equal elements it is the first, and of several nan the last, as in PyTorch. Each window must hold an element.
    """
    where_in_x = xp.reshape(xp.arange(prod(x.shape)), x.shape)
    # Padding has the position 0, elements of x those from 1.
    positions = _windows(xp, xp.add(where_in_x, 1), kernel, stride, padding, dilation)  # (C, K, N, *out)
    values = _windows(xp, x, kernel, stride, padding, dilation)
    is_inside = xp.greater(positions, 0)
    largest = xp.max(xp.where(is_inside, values, -inf), axis=1, keepdims=True)
    order = xp.reshape(xp.arange(prod(kernel)), (prod(kernel), *(1,) * (x.ndim - 1)))
    first = xp.where(xp.equal(values, largest), xp.subtract(prod(kernel), order), 0)
    last_nan = xp.where(xp.not_equal(values, values), xp.add(order, prod(kernel) + 1), first)
    chosen = xp.argmax(xp.where(is_inside, last_nan, -1), axis=1, keepdims=True)
    index = xp.sum(xp.where(xp.equal(order, chosen), xp.subtract(positions, 1), 0), axis=1)
    return xp.copy(_swap_first(xp, index))


def _windows(xp: Xp, x: Array, kernel: Shape, stride: Shape, padding: Padding, dilation: Shape) -> Array:
    """All windows of x, which is padded with zeros: (N, C, *in) -> (C, K, N, *out), K elements in a window."""
    padded_shape, inside = _padded(x.shape, padding)
    padded = _swap_first(xp, xp.getitem_backward(x, inside, padded_shape))
    slices = _window_slices(padded_shape, kernel, stride, dilation)
    return xp.concatenate([xp.expand_dims(xp.getitem(padded, index), 1) for index in slices], 1)


def _windows_backward(
    xp: Xp, g: Array, shape: Shape, kernel: Shape, stride: Shape, padding: Padding, dilation: Shape
) -> Array:
    """The sum of what each window has for an element of x: (C, K, N, *out) -> (N, C, *in), which is `shape`."""
    padded_shape, inside = _padded(shape, padding)
    swapped = (padded_shape[1], padded_shape[0], *padded_shape[2:])
    total = None
    for i, index in enumerate(_window_slices(padded_shape, kernel, stride, dilation)):
        part = xp.getitem_backward(xp.getitem(g, (slice(None), i)), index, swapped)
        total = part if total is None else xp.add(total, part)
    return xp.getitem(_swap_first(xp, total), inside)


def _padded(shape: Shape, padding: Padding) -> tuple[Shape, tuple[slice, ...]]:
    """The shape (N, C, *in) with padding, and the index of what is inside it."""
    pairs = tuple(zip(shape[2:], padding, strict=True))
    inside = (slice(None), slice(None), *(slice(before, before + n) for n, (before, _) in pairs))
    return (*shape[:2], *(before + n + after for n, (before, after) in pairs)), inside


def _window_slices(padded: Shape, kernel: Shape, stride: Shape, dilation: Shape) -> list[tuple[slice, ...]]:
    """For each element of a window, the slices that select it from all windows of a padded array."""
    axes = [
        [slice(i * d, n - d * (k - 1) + i * d, s) for i in range(k)]
        for n, k, s, d in zip(padded[2:], kernel, stride, dilation, strict=True)
    ]
    return [(slice(None), slice(None), *index) for index in product(*axes)]


def _swap_first(xp: Xp, a: Array) -> Array:
    """(N, C, ...) -> (C, N, ...)."""
    return xp.transpose(a, (1, 0, *range(2, a.ndim)))


def _by_group(xp: Xp, a: Array, groups: int, n_rows_axes: int = 1) -> Array:
    """(groups * m, ...) -> (groups, m * ..., ...): a matrix for each group, whose rows are the first axes."""
    rows = prod(a.shape[:n_rows_axes]) // groups
    return xp.reshape(a, (groups, rows, prod(a.shape[n_rows_axes:])))


# --- Optimizer steps. They return new arrays. (A backend's implementation may update the given arrays in place.)


def clip_scale(xp: Xp, grads: Sequence[Array], max_norm: float) -> tuple[Array, Array]:
    """The total norm of all gradients, and the factor min(1, max_norm / (norm + 1e-6)), both ().

    Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks", arXiv:1211.5063, section 3.2.
    """
    wide = [_at_least_float32(xp, g) for g in grads]
    squares = [xp.reshape(xp.sum(xp.multiply(g, g)), (1,)) for g in wide]
    # One sum: added one after the other, thousands of them have a large rounding error.
    norm = xp.asarray(xp.sqrt(xp.sum(xp.concatenate(squares, 0))))
    return norm, xp.asarray(xp.minimum(xp.divide(max_norm, xp.add(norm, 1e-6)), 1.0))


def sgd_step(
    xp: Xp, p: Array, g: Array, velocity: Array | None, rates: Array, clip: Array | None, momentum: float,
    nesterov: bool, weight_decay: float,
) -> tuple[Array, Array | None]:  # fmt: skip
    """SGD with momentum (Sutskever et al., "On the importance of initialization and momentum", ICML 2013).

    The form is PyTorch's. Returns p and the velocity. The velocity is None without momentum, and zeros before the first
    step.
    """
    g = _gradient(xp, p, g, clip)
    if weight_decay:
        g = xp.add(g, xp.multiply(p, weight_decay))
    if velocity is not None:
        velocity = xp.add(xp.multiply(velocity, momentum), g)
        g = xp.add(g, xp.multiply(velocity, momentum)) if nesterov else velocity
    return xp.subtract(p, xp.multiply(g, xp.getitem(rates, (0,)))), velocity


def adam_step(
    xp: Xp, p: Array, g: Array, m: Array, v: Array, rates: Array, clip: Array | None, beta1: float, beta2: float,
    eps: float, weight_decay: float, decoupled: bool, p_half: Array | None,
) -> tuple[Array, Array, Array, Array | None]:  # fmt: skip
    """Adam (Kingma & Ba, arXiv:1412.6980, algorithm 1); decoupled weight decay: Loshchilov & Hutter, arXiv:1711.05101.

    Returns p, m, v, and p cast to the dtype of `p_half`, or None if `p_half` is None.
    """
    rate, scale, decay = (xp.getitem(rates, (i,)) for i in range(3))
    g = _gradient(xp, p, g, clip)
    if weight_decay and decoupled:
        p = xp.multiply(p, xp.subtract(1.0, decay))
    elif weight_decay:
        g = xp.add(g, xp.multiply(p, weight_decay))
    m = xp.add(xp.multiply(m, beta1), xp.multiply(g, 1.0 - beta1))
    v = xp.add(xp.multiply(v, beta2), xp.multiply(xp.multiply(g, g), 1.0 - beta2))
    p = xp.subtract(p, xp.multiply(xp.divide(m, xp.add(xp.divide(xp.sqrt(v), scale), eps)), rate))
    return p, m, v, None if p_half is None else xp.astype(p, xp.dtype(p_half))


def _gradient(xp: Xp, p: Array, g: Array, clip: Array | None) -> Array:
    """g cast to the dtype of p, times the clipping factor."""
    g = _cast(xp, g, xp.dtype(p))
    return g if clip is None else xp.multiply(g, clip)
