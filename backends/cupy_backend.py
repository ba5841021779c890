"""The GPU backend, in CuPy: the names of `numpy_backend.py`, in its order, for CUDA.

Every formula is the one that stands there. What differs, differs because a device does: nothing comes to the host
unasked, host and device arrays never mix, an index out of range raises nothing (so ids and index arrays are checked
on the host, before they are moved), and repeated indices in `a[i] += v` are lost (so they go through scatter_add).

In float32 and bfloat16 the fused primitives are the kernels of `cupy_kernels.py`, wherever those take the arrays; in
other dtypes, and along other axes, the formulas here. Products are cuBLAS's (`cublas.py`).
"""

import importlib.util
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from math import inf, pi, prod
from math import sqrt as _sqrt
from typing import Any, TypeAlias

import numpy as np

from . import host

try:
    import cupy
    import cupyx
    import cupyx.scipy.special

    from . import cublas, cupy_kernels
    from .cupy_memory import Explaining
except ImportError as error:
    raise ImportError(
        f"backend 'cupy': CuPy cannot be imported ({error}); install it for your CUDA version: "
        "pip install 'russellgrad[cuda13]' or 'russellgrad[cuda12]'"
    ) from error

Array: TypeAlias = Any  # cupy.ndarray; CuPy ships no type hints
DType: TypeAlias = Any
Shape: TypeAlias = tuple[int, ...]
Axis: TypeAlias = int | tuple[int, ...] | None

# bfloat16 is known to NumPy and CuPy once ml_dtypes is imported.
_MORE_DTYPES = ("bfloat16",) if importlib.util.find_spec("ml_dtypes") else ()
if _MORE_DTYPES:
    importlib.import_module("ml_dtypes")

name = "cupy"
_builtin_sum = sum  # before the primitive of this name

# --- In and out of the backend


def require_usable() -> None:
    """Raises RuntimeError where there is no CUDA device. From here on, running out of memory says what is in use."""
    if not cupy.cuda.is_available():
        raise RuntimeError(
            "backend 'cupy': CuPy is installed but finds no CUDA device; check the driver with nvidia-smi, "
            "or set RG_BACKEND=numpy"
        )
    if not isinstance(cupy.cuda.get_allocator(), Explaining):
        cupy.cuda.set_allocator(Explaining(cupy.cuda.get_allocator()))


def float_dtypes() -> tuple[str, ...]:
    return ("float16", "float32", "float64", *_MORE_DTYPES)


def is_array(x: Any) -> bool:
    return isinstance(x, cupy.ndarray)


def asarray(data: Any, dtype: DType = None) -> Array:
    if not is_array(data):
        return cupy.asarray(host.real_array(data, dtype, _MORE_DTYPES))
    host.check_real(data.dtype if dtype is None else np.dtype(dtype), _MORE_DTYPES)
    return cupy.asarray(data, dtype)


def copy(a: Array) -> Array:
    return cupy.array(a, order="C")


def to_host(a: Array) -> Any:
    return cupy.asnumpy(a, order="C")


def from_dlpack(x: Any) -> Array:
    array = cupy.from_dlpack(x)
    host.check_real(array.dtype, _MORE_DTYPES)
    return array


def astype(a: Array, dtype: DType) -> Array:
    return a.astype(dtype)


def zeros(shape: Shape, dtype: DType) -> Array:
    return cupy.zeros(shape, dtype)


def full(shape: Shape, value: float, dtype: DType) -> Array:
    return cupy.full(shape, value, dtype)


def arange(n: int) -> Array:
    return cupy.arange(n, dtype=np.int64)


def normal(shape: Shape, seed: int, counter: int, dtype: DType) -> Array:
    return cupy.asarray(host.normal(shape, seed, counter).astype(dtype))


def uniform(shape: Shape, key: Array, dtype: DType) -> Array:
    if np.dtype(dtype) == np.float16:  # as NumPy's backend does: rounded from float64
        return cupy_kernels.uniform(shape, np.float64, key).astype(dtype)
    return cupy_kernels.uniform(shape, dtype, key)


def numbers(values: Sequence[float], dtype: DType) -> Array:
    if cupy.cuda.get_current_stream().is_capturing():  # which no copy from the host can be part of
        return cupy.empty(len(values), dtype)
    return cupy.asarray(np.array(values, dtype))


def renumber(target: Array, values: Sequence[float]) -> None:
    target.set(np.array(values, target.dtype))


def assign(target: Array, source: Array) -> None:
    target[...] = source


def parts(flat: Array, shapes: Sequence[Shape]) -> list[Array]:
    ends = list(accumulate(map(prod, shapes)))
    return [flat[end - prod(shape) : end].reshape(shape) for shape, end in zip(shapes, ends, strict=True)]


def ids(ids: Any, upper: int, op: str) -> Array:
    if is_array(ids):  # reading them back waits for the device: give host ids where speed matters
        host.checked_ids(cupy.asnumpy(ids), upper, op)
        return ids.astype(np.int64)
    return cupy.asarray(host.checked_ids(ids, upper, op))


def targets(ids: Any, upper: int, ignore: int | None, op: str) -> tuple[Array, Array | None]:
    checked, counted = host.checked_targets(cupy.asnumpy(ids) if is_array(ids) else ids, upper, ignore, op)
    return cupy.asarray(checked), None if counted is None else cupy.asarray(counted)


# --- Elementwise, broadcasting


def _narrow(out: Array, *operands: Any) -> Array:
    """`out`; where a number beside bfloat16 made it float32, as CuPy does, bfloat16 again: numbers widen nothing."""
    if not _MORE_DTYPES or out.dtype != np.float32:
        return out
    names = {operand.dtype.name for operand in operands if is_array(operand)}
    return out.astype("bfloat16") if names == {"bfloat16"} else out


def add(a: Array, b: Array) -> Array:
    return _narrow(cupy.add(a, b), a, b)


def subtract(a: Array, b: Array) -> Array:
    return _narrow(cupy.subtract(a, b), a, b)


def multiply(a: Array, b: Array) -> Array:
    return _narrow(cupy.multiply(a, b), a, b)


def divide(a: Array, b: Array) -> Array:
    return _narrow(cupy.divide(a, b), a, b)


def power(a: Array, b: Array) -> Array:
    return _narrow(cupy.power(a, b), a, b)


def negative(a: Array) -> Array:
    return cupy.negative(a)


def exp(a: Array) -> Array:
    return cupy.exp(a)


def log(a: Array) -> Array:
    return cupy.log(a)


def sqrt(a: Array) -> Array:
    return cupy.sqrt(a)


def tanh(a: Array) -> Array:
    return cupy.tanh(a)


def sin(a: Array) -> Array:
    return cupy.sin(a)


def cos(a: Array) -> Array:
    return cupy.cos(a)


def erf(a: Array) -> Array:
    return cupyx.scipy.special.erf(a)


def abs(a: Array) -> Array:
    return cupy.abs(a)


def sign(a: Array) -> Array:
    return cupy.sign(a)


def maximum(a: Array, b: Array) -> Array:
    return _narrow(cupy.maximum(a, b), a, b)


def minimum(a: Array, b: Array) -> Array:
    return _narrow(cupy.minimum(a, b), a, b)


def where(condition: Array, a: Array, b: Array) -> Array:
    return _narrow(cupy.where(condition, a, b), a, b)


def equal(a: Array, b: Array) -> Array:
    return cupy.equal(a, b)


def not_equal(a: Array, b: Array) -> Array:
    return cupy.not_equal(a, b)


def less(a: Array, b: Array) -> Array:
    return cupy.less(a, b)


def less_equal(a: Array, b: Array) -> Array:
    return cupy.less_equal(a, b)


def greater(a: Array, b: Array) -> Array:
    return cupy.greater(a, b)


def greater_equal(a: Array, b: Array) -> Array:
    return cupy.greater_equal(a, b)


def logical_and(a: Array, b: Array) -> Array:
    return cupy.logical_and(a, b)


def logical_or(a: Array, b: Array) -> Array:
    return cupy.logical_or(a, b)


def logical_not(a: Array) -> Array:
    return cupy.logical_not(a)


# --- Reductions


def sum(a: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    return cupy.sum(a, axis=axis, keepdims=keepdims)


def max(a: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    return cupy.max(a, axis=axis, keepdims=keepdims)


def min(a: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    return cupy.min(a, axis=axis, keepdims=keepdims)


def argmax(a: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    return cupy.argmax(a, axis=axis, keepdims=keepdims)


# --- Shapes


def reshape(a: Array, shape: Shape) -> Array:
    return cupy.reshape(a, shape)


def transpose(a: Array, axes: Sequence[int] | None = None) -> Array:
    return cupy.transpose(a, axes)


def broadcast_to(a: Array, shape: Shape) -> Array:
    return cupy.broadcast_to(a, shape)


def expand_dims(a: Array, axis: int | tuple[int, ...]) -> Array:
    return cupy.expand_dims(a, axis)


def concatenate(arrays: Sequence[Array], axis: int) -> Array:
    """By copies into slices: cupy.concatenate may send a table of pointers to the device, which no capture can hold."""
    (first, *_), axis = arrays, axis % arrays[0].ndim
    lengths = [array.shape[axis] for array in arrays]
    if any(_without(array.shape, axis) != _without(first.shape, axis) for array in arrays):
        raise ValueError(f"the shapes must be equal except along axis {axis}")
    shape = (*first.shape[:axis], _builtin_sum(lengths), *first.shape[axis + 1 :])
    out, start = cupy.empty(shape, np.result_type(*(array.dtype for array in arrays))), 0
    for array, length in zip(arrays, lengths, strict=True):
        out[(*(slice(None),) * axis, slice(start, start + length))] = array
        start += length
    return out


def _without(shape: Shape, axis: int) -> Shape:
    return shape[:axis] + shape[axis + 1 :]


def prepare_index(index: Any, shape: Shape) -> Any:
    parts = host.as_tuple(index)
    prepared: list[Any] = []
    for part, axis in zip(parts, host.axes_of(parts, len(shape)), strict=True):
        if part is None or part is Ellipsis or isinstance(part, (slice, int)):
            prepared.append(part)
            continue
        # An index array on the device is read back to check it, which waits; a host one is checked, then moved.
        on_host = host.index_array(cupy.asnumpy(part) if is_array(part) else part)
        host.check_index_array(on_host, axis, shape)
        if on_host.dtype.kind == "b":  # its places, as integers: their number is the result's shape
            prepared.extend(cupy.asarray(places) for places in np.nonzero(on_host))
        else:
            prepared.append(cupy.asarray(on_host))  # a copy: backward uses it again
    return tuple(prepared)


def getitem(a: Array, index: Any) -> Array:
    return a[index]


def getitem_backward(g: Array, index: Any, shape: Shape) -> Array:
    out = cupy.zeros(shape, g.dtype)
    if host.is_basic(index):
        out[index] = g  # nothing is picked twice
    else:
        cupyx.scatter_add(out, index, g)  # atomics: the order of the additions, so the last bits, may vary
    return out


# --- Products


def set_matmul_precision(level: str) -> None:
    cublas.set_precision(level)


def matmul(a: Array, b: Array) -> Array:
    return cublas.matmul(a, b) if cublas.takes(a, b) else cupy.matmul(a, b)


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    rows = matmul(_rows(x), weight)  # (N, i) @ (i, o): one product, whatever the batch axes
    if bias is not None:
        rows += bias
    return rows.reshape(*x.shape[:-1], weight.shape[1])


def linear_backward(g: Array, x: Array, weight: Array, needs: Sequence[bool]) -> tuple[Array | None, ...]:
    need_x, need_weight, need_bias = needs
    g2 = _rows(g)  # (N, o)
    return (
        matmul(g2, weight.T).reshape(x.shape) if need_x else None,
        matmul(_rows(x).T, g2) if need_weight else None,
        _sum_of_rows(g2) if need_bias else None,
    )


def _exact_product(a: Array, b: Array) -> Array:
    """a @ b with all bits of the factors, whatever the matmul precision: for products that stand for sums."""
    return cublas.matmul(a, b, "highest") if cublas.takes(a, b) else cupy.matmul(a, b)


def _sum_of_rows(a: Array) -> Array:
    """(N, C) -> (C,), as a product with ones: CuPy's sum along the first axis is slow (cupy#2562)."""
    return _exact_product(cupy.ones((1, len(a)), a.dtype), a)[0]


def _rows(a: Array) -> Array:
    """(..., C) -> (N, C); the count is spelled out because -1 cannot be inferred when C is 0."""
    return a.reshape(prod(a.shape[:-1]), a.shape[-1])


# --- Fused: activations. Hendrycks & Gimpel, "Gaussian error linear units", arXiv:1606.08415, section 2.

_GELU_C = _sqrt(2.0 / pi)


def gelu(a: Array, approximate: str) -> tuple[Array, Array]:
    if cupy_kernels.takes(a):
        return cupy_kernels.gelu(a, approximate), a
    if approximate == "none":  # phi is the normal distribution function, its slope the normal density
        phi = 0.5 * (1.0 + erf(a * _sqrt(0.5)))
        density = cupy.exp(-0.5 * a * a) / _sqrt(2.0 * pi)
    else:  # (1 - tanh^2) / 2 = 2 phi (1 - phi)
        phi = 0.5 * (1.0 + cupy.tanh(_GELU_C * (a + 0.044715 * a * a * a)))
        density = 2.0 * phi * (1.0 - phi) * _GELU_C * (1.0 + 3.0 * 0.044715 * a * a)
    return a * phi, phi + a * density


def gelu_backward(g: Array, saved: Array, approximate: str) -> Array:
    if cupy_kernels.takes(g, saved):
        return cupy_kernels.gelu_backward(g, saved, approximate)
    return g * saved


def leaky_relu(a: Array, alpha: float) -> Array:
    return cupy_kernels.leaky_relu(a, alpha) if cupy_kernels.takes(a) else cupy.where(a > 0, a, alpha * a)


def leaky_relu_backward(g: Array, a: Array, alpha: float) -> Array:
    if cupy_kernels.takes(g, a):
        return cupy_kernels.leaky_relu_backward(g, a, alpha)
    return cupy.where(a > 0, g, alpha * g)


# --- Fused: rows


def _kernel_along(axis: int, *arrays: Array) -> bool:
    return axis in (-1, arrays[0].ndim - 1) and cupy_kernels.takes(*arrays)


def softmax(a: Array, axis: int) -> Array:
    if _kernel_along(axis, a):
        return cupy_kernels.softmax(a)
    if a.size == 0:
        return cupy.array(a)
    e = cupy.exp(a - cupy.max(a, axis=axis, keepdims=True))  # the largest exponent is 0: no overflow
    return e / cupy.sum(e, axis=axis, keepdims=True)


def softmax_backward(g: Array, y: Array, axis: int) -> Array:
    if _kernel_along(axis, g, y):
        return cupy_kernels.softmax_backward(g, y)
    return y * (g - cupy.sum(g * y, axis=axis, keepdims=True))


def log_softmax(a: Array, axis: int) -> Array:
    if _kernel_along(axis, a):
        return cupy_kernels.log_softmax(a)
    if a.size == 0:
        return cupy.array(a)
    z = a - cupy.max(a, axis=axis, keepdims=True)
    return z - cupy.log(cupy.sum(cupy.exp(z), axis=axis, keepdims=True))


def log_softmax_backward(g: Array, y: Array, axis: int) -> Array:
    if _kernel_along(axis, g, y):
        return cupy_kernels.log_softmax_backward(g, y)
    return g - cupy.exp(y) * cupy.sum(g, axis=axis, keepdims=True)


# Ba, Kiros & Hinton, "Layer normalization", arXiv:1607.06450, equation 4.


def layer_norm(x: Array, gamma: Array | None, beta: Array | None, eps: float) -> tuple[Array, Array, Array]:
    if cupy_kernels.takes(x, gamma, beta):
        return cupy_kernels.layer_norm(x, gamma, beta, eps)
    mean = cupy.mean(x, axis=-1, keepdims=True)  # (..., 1)
    centred = x - mean  # the variance from centred values: E[x^2] - E[x]^2 cancels when the mean is large
    rstd = 1.0 / cupy.sqrt(cupy.mean(centred * centred, axis=-1, keepdims=True) + eps)  # (..., 1)
    y = centred * rstd
    if gamma is not None:
        y = y * gamma
    if beta is not None:
        y = y + beta
    return y, mean, rstd


def layer_norm_backward(
    g: Array,
    x: Array,
    gamma: Array | None,
    mean: Array,
    rstd: Array,
    needs: Sequence[bool],
) -> tuple[Array | None, ...]:
    if cupy_kernels.takes(g, x, gamma):
        return cupy_kernels.layer_norm_backward(g, x, gamma, mean, rstd, needs)
    need_x, need_gamma, need_beta = needs
    normed = (x - mean) * rstd  # (..., C)
    gx = ggamma = gbeta = None
    if need_x:
        h = g if gamma is None else g * gamma
        # The gradient of centring takes out h's mean; that of scaling, its part along `normed`.
        gx = rstd * (h - cupy.mean(h, axis=-1, keepdims=True) - normed * cupy.mean(h * normed, axis=-1, keepdims=True))
    if need_gamma:
        ggamma = _sum_of_rows(_rows(g * normed))
    if need_beta:
        gbeta = _sum_of_rows(_rows(g))
    return gx, ggamma, gbeta


def embedding(weight: Array, ids: Array) -> Array:
    return cupy.take(weight, ids, axis=0)


_ONE_HOT_ELEMENTS = 1 << 24  # of one block of one-hot rows: 64 MiB in float32


def embedding_backward(g: Array, ids: Array, n_rows: int) -> Array:
    """The same bits every time, unlike with atomics.

    By the kernel, or as a one-hot product, (V, N) @ (N, C), in blocks of tokens, so that the one-hot matrix stays
    small. In that product a nan or inf in g reaches every row.
    """
    if cupy_kernels.takes(g) and cupy_kernels.embedding_takes(n_rows, g.shape[-1]):
        return cupy_kernels.embedding_backward(g, ids, n_rows)
    flat, rows = ids.ravel(), _rows(g)
    out = cupy.zeros((n_rows, g.shape[-1]), g.dtype)
    classes = cupy.arange(n_rows, dtype=np.int64)[:, None]
    block = _ONE_HOT_ELEMENTS // n_rows + 1 if n_rows else 1
    for start in range(0, flat.size, block):
        part = slice(start, start + block)
        out += _exact_product((classes == flat[None, part]).astype(g.dtype), rows[part])
    return out


def cross_entropy(logits: Array, ids: Array, counted: Array | None, excluded: int | None) -> tuple[Array, Array]:
    """The mean of -log softmax(logits)[id] over the rows that count; a class `excluded` has probability 0."""
    if cupy_kernels.takes(logits):
        return cupy_kernels.cross_entropy(logits, ids, counted, excluded)
    z = cupy.array(logits)  # (N, C)
    if excluded is not None:
        z[:, excluded] = -inf
    z -= cupy.max(z, axis=1, keepdims=True)
    target = z[cupy.arange(len(ids)), ids]  # (N,)
    probs = cupy.exp(z, out=z)
    total = cupy.sum(probs, axis=1, keepdims=True)  # (N, 1)
    losses = cupy.log(total[:, 0]) - target
    probs /= total
    if counted is None:
        return cupy.mean(losses), probs
    return (cupy.sum(cupy.where(counted, losses, 0)) / cupy.count_nonzero(counted)).astype(z.dtype), probs


def cross_entropy_backward(g: Array, probs: Array, ids: Array, counted: Array | None) -> Array:
    if cupy_kernels.takes(probs):
        return cupy_kernels.cross_entropy_backward(g, probs, ids, counted)
    out = cupy.array(probs)  # (N, C): softmax minus one-hot, over the number of rows that count
    out[cupy.arange(len(ids)), ids] -= 1
    if counted is None:
        out *= g / len(ids)
    else:
        out *= (counted * (g / cupy.count_nonzero(counted))).astype(g.dtype)[:, None]
    return out


# Vaswani et al., "Attention is all you need", arXiv:1706.03762, equation 1.


def attention(q: Array, k: Array, v: Array, mask: Array | None, causal: bool, offset: int) -> tuple[Array, Array]:
    if cupy_kernels.attention_takes(q, k, v):
        return cupy_kernels.attention(q, k, v, mask, causal, offset)
    scores = _scores(q, k, mask, causal, offset)
    if not scores.size:
        return matmul(scores, v), cupy.full((*scores.shape[:-1], 1), inf, scores.dtype)
    top = cupy.maximum(cupy.max(scores, axis=-1, keepdims=True), np.finfo(scores.dtype).min)
    weights = cupy.exp(scores - top)  # a row with everything hidden: all zeros
    total = cupy.sum(weights, axis=-1, keepdims=True)
    log_sum = cupy.where(total == 0, inf, cupy.log(total) + top)
    return matmul(weights / cupy.where(total == 0, 1, total), v), log_sum


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
    if cupy_kernels.attention_takes(q, k, v):
        return cupy_kernels.attention_backward(g, q, k, v, out, log_sum, mask, causal, offset, needs)
    need_q, need_k, need_v = needs
    weights = cupy.exp(_scores(q, k, mask, causal, offset) - log_sum)
    gq = gk = None
    if need_q or need_k:
        g_scores = matmul(g, cupy.swapaxes(v, -1, -2)) - cupy.sum(g * out, axis=-1, keepdims=True)
        g_scores *= weights * (1.0 / _sqrt(q.shape[-1]))  # (..., L, S)
        gq = matmul(g_scores, k) if need_q else None
        gk = matmul(cupy.swapaxes(g_scores, -1, -2), q) if need_k else None
    gv = matmul(cupy.swapaxes(weights, -1, -2), g) if need_v else None
    return gq, gk, gv


def _scores(q: Array, k: Array, mask: Array | None, causal: bool, offset: int) -> Array:
    """q k^T / sqrt(d): (..., L, S), -inf where hidden."""
    scores = matmul(q * (1.0 / _sqrt(q.shape[-1])), cupy.swapaxes(k, -1, -2))
    if mask is not None:
        scores = cupy.where(mask, -inf, scores)
    if causal:  # query i sees keys up to i + offset
        queries, keys = scores.shape[-2:]
        scores = cupy.where(cupy.arange(keys) > cupy.arange(queries)[:, None] + offset, -inf, scores)
    return scores


# --- Fused: one optimizer step, in place


def clip_scale(grads: Sequence[Array], max_norm: float) -> tuple[Array, Array]:
    """Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks", arXiv:1211.5063."""
    if len(grads) == 1 and cupy_kernels.takes(grads[0]):
        return cupy_kernels.clip_scale(grads[0], max_norm)
    squares = cupy.zeros((), _widened(grads[0]).dtype)
    for g in map(_widened, grads):
        squares = squares + cupy.sum(g * g)
    norm = cupy.sqrt(squares)
    return norm, cupy.minimum(max_norm / (norm + 1e-6), 1.0)


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
    if cupy_kernels.takes(p, m, v) and cupy_kernels.takes(g) and all(a.flags.c_contiguous for a in (p, m, v)):
        fits = low if low is not None and low.dtype.name == "bfloat16" else None
        cupy_kernels.adam_step(p, g, m, v, rates, clip, beta1, beta2, eps, weight_decay, decoupled, fits)
        if low is not None and fits is None:
            low[...] = p
        return
    rate, scale, decay = rates[0], rates[1], rates[2]
    g = g.astype(p.dtype, copy=False)
    if clip is not None:
        g = g * clip
    if weight_decay and decoupled:
        p *= 1.0 - decay
    elif weight_decay:
        g = g + weight_decay * p
    m *= beta1
    m += (1.0 - beta1) * g
    v *= beta2
    v += (1.0 - beta2) * (g * g)
    p -= rate * m / (cupy.sqrt(v) / scale + eps)
    if low is not None:
        low[...] = p


# --- A step as one recording


def can_capture() -> bool:
    return True


def capture(work: Callable[[], None]) -> Callable[[], None]:
    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(Explaining(pool.malloc)), stream:
        stream.begin_capture()
        try:
            work()
        except BaseException as error:
            cublas.release_workspace(stream)
            with suppress(Exception):  # the capture is broken, which the device says again
                stream.end_capture()
            if not isinstance(error, Exception):  # as Ctrl-C
                raise
            raise RuntimeError(
                f"compile_step: {_op_of(error)} cannot be recorded in a CUDA graph ({error}); do it outside the step, "
                "or run the step as it is"
            ) from error
        graph = stream.end_capture()
    return Replay(graph, pool, cublas.release_workspace(stream))


@dataclass(frozen=True)
class Replay:
    """A recording: its call does on the device what was recorded, and waits for nothing."""

    graph: Any
    pool: Any  # the memory that it uses, of which a graph keeps none alive
    workspace: Array | None  # cuBLAS's

    def __call__(self) -> None:
        self.graph.launch(cupy.cuda.get_current_stream())


def _op_of(error: BaseException) -> str:
    """The primitive in which it happened."""
    frame = error.__traceback__
    while frame is not None:
        code, module = frame.tb_frame.f_code, frame.tb_frame.f_globals.get("__name__")
        if module == __name__ and code.co_name != "capture":
            return code.co_name
        frame = frame.tb_next
    return "something in the step"
