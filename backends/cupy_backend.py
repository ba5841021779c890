"""The GPU backend, in CuPy: the core primitives by CuPy's own names, and CUDA kernels for the derived ones.

A device differs from a CPU: nothing is copied to the host unless it is asked for, host and device arrays never mix, an
index out of range raises nothing (so ids and index arrays are checked on the host, before they are moved), and repeated
indices in `a[i] += v` are lost (so they go through scatter_add).

In float32 and bfloat16 the derived primitives are the kernels of `cupy_kernels.py`, wherever those take the arrays;
otherwise they return NotImplemented, and `formulas.py` computes them. Products are cuBLAS's (`cublas.py`).
"""

import importlib.util
import operator
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from traceback import walk_tb
from types import FunctionType
from typing import Any, TypeAlias

import numpy as np

from . import formulas, host

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


def is_array(x: Any, /) -> bool:
    return isinstance(x, cupy.ndarray)


def asarray(data: Any, /, dtype: DType = None) -> Array:
    if not is_array(data):
        return cupy.asarray(host.real_array(data, dtype, _MORE_DTYPES))
    host.check_real(data.dtype if dtype is None else np.dtype(dtype), _MORE_DTYPES)
    return cupy.asarray(data, dtype)


def copy(a: Array, /) -> Array:
    return cupy.array(a, order="C")


def to_host(a: Array, /) -> Any:
    return cupy.asnumpy(a, order="C")


def from_dlpack(x: Any) -> Array:
    array = cupy.from_dlpack(x)
    host.check_real(array.dtype, _MORE_DTYPES)
    return array


def astype(a: Array, dtype: DType, /) -> Array:
    return a.astype(dtype)


dtype = operator.attrgetter("dtype")
full = cupy.full
zeros = cupy.zeros


def arange(n: int, /) -> Array:
    return cupy.arange(n, dtype=np.int64)


def uniform(shape: Shape, key: Array, dtype: DType) -> Array:
    if np.dtype(dtype) == np.float16:  # as the formula does: rounded from float64
        return cupy_kernels.uniform(shape, np.float64, key).astype(dtype)
    return cupy_kernels.uniform(shape, dtype, key)


def host_scalars(values: Sequence[float], dtype: DType) -> Array:
    if cupy.cuda.get_current_stream().is_capturing():  # which no copy from the host can be part of
        return cupy.empty(len(values), dtype)
    return cupy.asarray(np.array(values, dtype))


def update_scalars(target: Array, values: Sequence[float]) -> None:
    target.set(np.array(values, target.dtype))


def assign(target: Array, source: Array) -> None:
    target[...] = source


def split_flat(flat: Array, shapes: Sequence[Shape]) -> list[Array]:
    ends = list(accumulate(map(prod, shapes)))
    return [flat[end - prod(shape) : end].reshape(shape) for shape, end in zip(shapes, ends, strict=True)]


def check_ids(ids: Any, upper: int, op: str) -> Array:
    if is_array(ids):  # reading them back waits for the device: give host ids where speed matters
        host.checked_ids(cupy.asnumpy(ids), upper, op)
        return ids.astype(np.int64)
    return cupy.asarray(host.checked_ids(ids, upper, op))


# --- Elementwise, broadcasting


def _keeps_bfloat16(function: Callable[..., Array]) -> Callable[..., Array]:
    """The function; a Python number beside bfloat16 does not make the result float32, as it does in CuPy."""
    if not _MORE_DTYPES:
        return function

    def keeping(*operands: Any) -> Array:
        out = function(*operands)
        if out.dtype != np.float32:
            return out
        names = {operand.dtype.name for operand in operands if is_array(operand)}
        return out.astype("bfloat16") if names == {"bfloat16"} else out

    return keeping


add = _keeps_bfloat16(cupy.add)
subtract = _keeps_bfloat16(cupy.subtract)
multiply = _keeps_bfloat16(cupy.multiply)
divide = _keeps_bfloat16(cupy.divide)
power = _keeps_bfloat16(cupy.power)
negative = cupy.negative
exp = cupy.exp
log = cupy.log
sqrt = cupy.sqrt
tanh = cupy.tanh
sin = cupy.sin
cos = cupy.cos
erf = cupyx.scipy.special.erf
abs = cupy.abs
sign = cupy.sign
maximum = _keeps_bfloat16(cupy.maximum)
minimum = _keeps_bfloat16(cupy.minimum)
where = _keeps_bfloat16(cupy.where)
equal = cupy.equal
not_equal = cupy.not_equal
less = cupy.less
less_equal = cupy.less_equal
greater = cupy.greater
greater_equal = cupy.greater_equal
logical_and = cupy.logical_and
logical_or = cupy.logical_or
logical_not = cupy.logical_not

# --- Reductions

sum = cupy.sum
max = cupy.max
min = cupy.min
argmax = cupy.argmax

# --- Shapes and indices

reshape = cupy.reshape
transpose = cupy.transpose
broadcast_to = cupy.broadcast_to
expand_dims = cupy.expand_dims
getitem = operator.getitem


def concatenate(arrays: Sequence[Array], axis: int, /) -> Array:
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


def getitem_backward(g: Array, index: Any, shape: Shape, /) -> Array:
    out = cupy.zeros(shape, g.dtype)
    if host.is_basic(index):
        out[index] = g  # nothing is picked twice
    else:
        cupyx.scatter_add(out, index, g)  # atomics: the order of the additions, so the last bits, may vary
    return out


# --- Products


def set_matmul_precision(level: str) -> None:
    cublas.set_precision(level)


def matmul(a: Array, b: Array, /) -> Array:
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


# --- Activations and rows


def gelu(a: Array, approximate: str) -> Any:
    return (cupy_kernels.gelu(a, approximate), a) if cupy_kernels.takes(a) else NotImplemented


def gelu_backward(g: Array, saved: Array, approximate: str) -> Any:
    return cupy_kernels.gelu_backward(g, saved, approximate) if cupy_kernels.takes(g, saved) else NotImplemented


def leaky_relu(a: Array, alpha: float) -> Any:
    return cupy_kernels.leaky_relu(a, alpha) if cupy_kernels.takes(a) else NotImplemented


def leaky_relu_backward(g: Array, a: Array, alpha: float) -> Any:
    return cupy_kernels.leaky_relu_backward(g, a, alpha) if cupy_kernels.takes(g, a) else NotImplemented


def _last(axis: int, *arrays: Array) -> bool:
    """Whether the kernels take the arrays, and `axis` is their last."""
    return axis in (-1, arrays[0].ndim - 1) and cupy_kernels.takes(*arrays)


def softmax(a: Array, axis: int) -> Any:
    return cupy_kernels.softmax(a) if _last(axis, a) else NotImplemented


def softmax_backward(g: Array, y: Array, axis: int) -> Any:
    return cupy_kernels.softmax_backward(g, y) if _last(axis, g, y) else NotImplemented


def log_softmax(a: Array, axis: int) -> Any:
    return cupy_kernels.log_softmax(a) if _last(axis, a) else NotImplemented


def log_softmax_backward(g: Array, y: Array, axis: int) -> Any:
    return cupy_kernels.log_softmax_backward(g, y) if _last(axis, g, y) else NotImplemented


def layer_norm(x: Array, gamma: Array | None, beta: Array | None, eps: float) -> Any:
    return cupy_kernels.layer_norm(x, gamma, beta, eps) if cupy_kernels.takes(x, gamma, beta) else NotImplemented


def layer_norm_backward(
    g: Array, x: Array, gamma: Array | None, mean: Array, rstd: Array, needs: Sequence[bool]
) -> Any:
    if not cupy_kernels.takes(g, x, gamma):
        return NotImplemented
    return cupy_kernels.layer_norm_backward(g, x, gamma, mean, rstd, needs)


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


def cross_entropy(logits: Array, ids: Array, valid: Array | None, excluded_class: int | None) -> Any:
    if not cupy_kernels.takes(logits):
        return NotImplemented
    return cupy_kernels.cross_entropy(logits, ids, valid, excluded_class)


def cross_entropy_backward(g: Array, probs: Array, ids: Array, valid: Array | None) -> Any:
    return cupy_kernels.cross_entropy_backward(g, probs, ids, valid) if cupy_kernels.takes(probs) else NotImplemented


def attention(q: Array, k: Array, v: Array, mask: Array | None, causal: bool, offset: int) -> Any:
    if not cupy_kernels.attention_takes(q, k, v):
        return NotImplemented
    return cupy_kernels.attention(q, k, v, mask, causal, offset)


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
) -> Any:
    if not cupy_kernels.attention_takes(q, k, v):
        return NotImplemented
    return cupy_kernels.attention_backward(g, q, k, v, out, log_sum, mask, causal, offset, needs)


# --- Optimizer steps


def clip_scale(grads: Sequence[Array], max_norm: float) -> Any:
    if len(grads) != 1 or not cupy_kernels.takes(grads[0]):
        return NotImplemented
    return cupy_kernels.clip_scale(grads[0], max_norm)


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
) -> Any:
    dense = all(a is None or a.flags.c_contiguous for a in (p, m, v, low))
    if not (dense and cupy_kernels.takes(p, m, v) and p.dtype == np.float32 and cupy_kernels.takes(g)):
        return NotImplemented
    if low is not None and low.dtype.name != "bfloat16":
        return NotImplemented
    cupy_kernels.adam_step(p, g, m, v, rates, clip, beta1, beta2, eps, weight_decay, decoupled, low)
    return p, m, v, low


# --- A step as one recording


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
                f"compile_step: {_primitive_of(error)} cannot be recorded in a CUDA graph ({error}); do it outside the step, "
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


def _primitive_of(error: BaseException) -> str:
    """The outermost primitive in the traceback, whether this module or a formula computes it."""
    names = {
        value.__code__: name
        for name, value in (*vars(formulas).items(), *globals().items())
        if isinstance(value, FunctionType) and value.__name__ == name and not name.startswith("_") and name != "capture"
    }
    called = (names.get(frame.f_code) for frame, _ in walk_tb(error.__traceback__))
    return next(filter(None, called), "something in the step")
