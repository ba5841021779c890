"""The GPU backend, in CuPy: the core primitives by CuPy's own names, and CUDA kernels for the derived ones.

On a device, no array is copied to the host implicitly, and host and device arrays never mix. An index out of range
raises no error, so ids and index arrays are checked on the host before they are copied to the device. Repeated indices
in `a[i] += v` do not accumulate, so gradients of an index go through cupy.add.at.

In float32 and bfloat16 the kernels of `cupy_kernels.py` compute the derived primitives. For arrays that the kernels do
not take, a function returns NotImplemented, and the formula in `formulas.py` runs. Products use cuBLAS (`cublas.py`).
"""

import importlib.util
import operator
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from inspect import unwrap
from itertools import accumulate
from math import prod
from traceback import walk_tb
from types import FunctionType
from typing import Any, TypeAlias

import numpy as np

from . import formulas, host
from .formulas import AttentionDropout

try:
    import cupy
    import cupyx.scipy.special

    from . import cublas, cupy_kernels
    from .cupy_memory import Explaining
except ImportError as error:
    raise ImportError(
        f"backend 'cupy': CuPy cannot be imported ({error}); install it for your CUDA version: "
        "pip install 'russellgrad[cuda13]' or 'russellgrad[cuda12]', "
        "in a checkout pip install -e '.[cuda13]' or '.[cuda12]'"
    ) from error

Array: TypeAlias = Any  # cupy.ndarray; CuPy ships no type hints
DType: TypeAlias = Any
Shape: TypeAlias = tuple[int, ...]
Axis: TypeAlias = int | tuple[int, ...] | None

# Importing ml_dtypes adds bfloat16 to NumPy and CuPy, which need NumPy 2.1.2 for it.
_HAS_BFLOAT16 = importlib.util.find_spec("ml_dtypes") and np.lib.NumpyVersion(np.__version__) >= "2.1.2"
_MORE_DTYPES = ("bfloat16",) if _HAS_BFLOAT16 else ()
if _MORE_DTYPES:
    importlib.import_module("ml_dtypes")

name = "cupy"

# --- In and out of the backend


def require_usable() -> None:
    """Raises RuntimeError if there is no CUDA device, or CuPy is too old.

    Also makes out-of-memory errors list the arrays in use.
    """
    if np.lib.NumpyVersion(cupy.__version__) < "14.2.0":  # earlier ones lose templates in the kernel cache (cupy#10177)
        raise RuntimeError(f"backend 'cupy': CuPy is {cupy.__version__}; install version 14.2 or later")
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
    return cupy.asarray(data, host.real_dtype(data.dtype if dtype is None else dtype, _MORE_DTYPES))


def copy(a: Array, /) -> Array:
    return cupy.array(a, order="C")


def to_host(a: Array, /) -> Any:
    return cupy.asnumpy(a, order="C")


def from_dlpack(x: Any) -> Array:
    array = cupy.from_dlpack(x)
    host.check_real(array.dtype, _MORE_DTYPES)
    return array


def astype(a: Array, dtype: DType, /) -> Array:
    return a.astype(np.dtype(dtype).newbyteorder("="))  # CuPy has no other byte order


dtype = operator.attrgetter("dtype")
full = cupy.full
zeros = cupy.zeros


def arange(n: int, /) -> Array:
    return cupy.arange(n, dtype=np.int64)


def uniform(shape: Shape, key: Array, dtype: DType) -> Array:
    """By a kernel in every dtype: the formula reads the key on the host, which waits for the device."""
    if np.dtype(dtype) == np.float16:  # as in the formula: rounded from float64
        return cupy_kernels.uniform(shape, np.float64, key).astype(dtype)
    return cupy_kernels.uniform(shape, dtype, key)


def dropout_mask(shape: Shape, key: Array, p: float, dtype: DType) -> Any:
    return NotImplemented if np.dtype(dtype) == np.float16 else cupy_kernels.dropout_mask(shape, key, p, dtype)


def host_scalars(values: Sequence[float], dtype: DType) -> Array:
    if cupy.cuda.get_current_stream().is_capturing():  # a capture cannot contain a copy from the host
        # The host writes to this array before each launch. An array from the capture's own pool could have the memory
        # of a temporary array, to which the graph writes earlier in each launch.
        with cupy.cuda.using_allocator(cupy.get_default_memory_pool().malloc):
            return cupy.empty(len(values), dtype)
    return cupy.asarray(np.array(values, dtype))


def update_scalars(target: Array, values: Sequence[float]) -> None:
    target.set(np.array(values, target.dtype))


def assign(target: Array, source: Array) -> None:
    target[...] = source


split_flat = host.split_flat


def check_ids(ids: Any, upper: int, op: str) -> Array:
    if is_array(ids):
        host.checked_ids(cupy.asnumpy(ids), upper, op)  # waits for the device; ids on the host do not
        return ids.astype(np.int64)
    return cupy.asarray(host.checked_ids(ids, upper, op))


# --- Elementwise, broadcasting


def _keeps_bfloat16(function: Callable[..., Array]) -> Callable[..., Array]:
    """`function`, but bfloat16 with a Python number gives bfloat16; in CuPy it gives float32."""
    if not _MORE_DTYPES:
        return function

    def keeping(*operands: Any) -> Array:
        out = function(*operands)
        if out.dtype != np.float32:
            return out
        names = {operand.dtype.name for operand in operands if is_array(operand)} - {"bool"}  # the condition of `where`
        return out.astype("bfloat16") if names == {"bfloat16"} else out

    return keeping


def _of_large_arrays(operation: str, function: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """`function`, but with a faster kernel for large arrays of one shape."""
    general = _keeps_bfloat16(function)

    def elementwise(a: Array, b: Array) -> Array:
        if is_array(a) and is_array(b) and a.shape == b.shape and cupy_kernels.elementwise_takes(a, b):
            return cupy_kernels.elementwise(operation, a, b)
        return general(a, b)

    return elementwise


add = _of_large_arrays("ADD", cupy.add)
subtract = _keeps_bfloat16(cupy.subtract)
multiply = _of_large_arrays("MULTIPLY", cupy.multiply)
divide = _keeps_bfloat16(cupy.divide)
power = _keeps_bfloat16(cupy.power)
negative = cupy.negative
exp = cupy.exp
expm1 = cupy.expm1
log = cupy.log
log1p = cupy.log1p
log2 = cupy.log2
log10 = cupy.log10
sqrt = cupy.sqrt
tanh = cupy.tanh
sinh = cupy.sinh
cosh = cupy.cosh
sin = cupy.sin
cos = cupy.cos
arcsin = cupy.arcsin
arccos = cupy.arccos
arctan = cupy.arctan
arctan2 = _keeps_bfloat16(cupy.arctan2)
floor = cupy.floor
ceil = cupy.ceil
rint = cupy.rint
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


def erf(a: Array) -> Array:
    """CuPy's has no half precision."""
    wide = a if a.dtype in (np.float32, np.float64) else a.astype(np.float32)
    return cupyx.scipy.special.erf(wide).astype(a.dtype, copy=False)


def _has_floats(*operands: Any) -> bool:
    return any(x.dtype.kind not in "biu" if is_array(x) else isinstance(x, float) for x in operands)


_fmod = _keeps_bfloat16(cupy.fmod)


def floor_divide(a: Array, b: Array, /) -> Array:
    """From fmod, which is exact. CuPy's function is floor(a / b) for floats: 1.0 // 0.1 is 10.0 there, and not 9.0."""
    if not _has_floats(a, b):
        return cupy.floor_divide(a, b)
    left = _fmod(a, b)
    quotient = subtract(cupy.rint(divide(subtract(a, left), b)), _is_borrowed(left, b))
    return where(cupy.equal(b, 0), divide(a, b), quotient)


def remainder(a: Array, b: Array, /) -> Array:
    if not _has_floats(a, b):
        return cupy.remainder(a, b)
    left = _fmod(a, b)
    return where(_is_borrowed(left, b), add(left, b), left)


def _is_borrowed(left: Array, b: Array) -> Array:
    """Where fmod's result, which has the sign of the dividend, does not have the sign of the divisor b."""
    return logical_and(not_equal(left, 0), not_equal(less(left, 0), cupy.less(b, 0)))


# --- Reductions


_FEW = 1024  # elements of a sum: a thread of CuPy's kernel adds a sixteenth of them, one by one
_ROWS = 64  # in a block


def sum(a: Array, /, *, axis: Axis = None, keepdims: bool = False) -> Array:
    """Sums of many elements by the kernel, or in blocks, whose sums are added in float64."""
    if a.dtype.kind in "biu":  # CuPy's sum of unsigned integers is uint64
        return cupy.sum(a, axis=axis, dtype=np.int64, keepdims=keepdims)
    if a.dtype == np.float16:
        return sum(a.astype(np.float32), axis=axis, keepdims=keepdims).astype(np.float16)
    axes = () if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(sorted(range(a.ndim)[i] for i in axes))
    added = prod(a.shape[i] for i in axes)
    if added <= _FEW or len(axes) == a.ndim:
        return cupy.sum(a, axis=axis, keepdims=keepdims)
    if axes == tuple(range(len(axes))) and cupy_kernels.takes(a):
        total = cupy_kernels.row_sums(a.reshape(added, -1))
        return total.reshape(((1,) * len(axes) if keepdims else ()) + a.shape[len(axes) :])
    dtype = a.dtype
    if dtype.kind != "f":  # bfloat16
        a = a.astype(np.float32)
    for i in axes:
        a = _sums_of_blocks(a, i) if a.shape[i] > 1 else a
    return cupy.sum(a, axis=axes, dtype=np.float64, keepdims=keepdims).astype(dtype, copy=False)


def _sums_of_blocks(a: Array, axis: int) -> Array:
    """(..., n, ...) -> (..., n / 64, rounded up, ...)."""
    m, rest = divmod(a.shape[axis], _ROWS)
    before, after, skipped = a.shape[:axis], a.shape[axis + 1 :], (slice(None),) * axis
    parts = []
    if m:
        blocks = a[(*skipped, slice(m * _ROWS))].reshape(*before, m, _ROWS, *after)
        parts.append(cupy.sum(blocks, axis=axis + 1))
    if rest:
        parts.append(cupy.sum(a[(*skipped, slice(m * _ROWS, None))], axis=axis, keepdims=True))
    return concatenate(parts, axis) if len(parts) > 1 else parts[0]


max = cupy.max
min = cupy.min
argmax = cupy.argmax

# --- Along one axis


def argsort(a: Array, axis: int, /) -> Array:
    """By CuPy's, which is stable. Bools and half precision are cast to dtypes that every version of CuPy sorts."""
    if not a.size:
        return cupy.zeros(a.shape, np.int64)
    if a.dtype.kind == "b":
        a = a.astype(np.uint8)
    elif a.dtype.kind not in "iu" and a.dtype != np.float64:
        a = a.astype(np.float32, copy=False)
    return cupy.argsort(a, axis)


def cumsum(a: Array, axis: int, /) -> Array:
    if a.dtype.kind in "biu":
        return cupy.cumsum(a.astype(np.int64), axis)
    return cupy.cumsum(a.astype(np.float64), axis).astype(a.dtype, copy=False)


# --- Shapes and indices

reshape = cupy.reshape
transpose = cupy.transpose
broadcast_to = cupy.broadcast_to
expand_dims = cupy.expand_dims
getitem = operator.getitem


def concatenate(arrays: Sequence[Array], axis: int, /) -> Array:
    """By copies into slices: cupy.concatenate may copy a table of pointers to the device, which a capture refuses."""
    if not arrays:
        raise ValueError("there are no arrays; pass at least one")
    axis = range(arrays[0].ndim)[axis]  # IndexError for one that is out of range
    before, after = arrays[0].shape[:axis], arrays[0].shape[axis + 1 :]
    if any((*array.shape[:axis], *array.shape[axis + 1 :]) != before + after for array in arrays):
        raise ValueError(f"the shapes must be equal except along axis {axis}")
    ends = list(accumulate(array.shape[axis] for array in arrays))
    out = cupy.empty((*before, ends[-1], *after), np.result_type(*(array.dtype for array in arrays)))
    if axis == out.ndim - 1 and cupy_kernels.join_takes(arrays):
        cupy_kernels.join(arrays, out)
        return out
    for array, end in zip(arrays, ends, strict=True):
        out[(*(slice(None),) * axis, slice(end - array.shape[axis], end))] = array
    return out


def getitem_backward(g: Array, index: Any, shape: Shape, /) -> Array:
    if host.is_basic(index):
        out = cupy.zeros(shape, g.dtype)
        out[index] = g  # no element is picked twice
        return out
    if g.dtype.kind in "iu":  # cupy.add.at does not take int64; sums of uint64 have the same bits
        total = cupy.zeros(shape, np.uint64)
        cupy.add.at(total, index, g.astype(np.int64).astype(np.uint64))
        return total.astype(np.int64).astype(g.dtype, copy=False)
    # Atomics: the order of the additions varies, and so do the last bits. There are none for bfloat16.
    wide = np.result_type(g.dtype, np.float32)
    out = cupy.zeros(shape, wide)
    cupy.add.at(out, index, g.astype(wide, copy=False))
    return out.astype(g.dtype, copy=False)


# --- Products


def set_matmul_precision(level: str) -> None:
    cublas.set_precision(level)


def matmul(a: Array, b: Array, /) -> Array:
    return cublas.matmul(a, b) if cublas.takes(a, b) else cupy.matmul(a, b)


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    rows = matmul(_rows(x), weight)  # (N, i) @ (i, o): one product, whatever the batch axes
    if bias is not None and cupy_kernels.elementwise_takes(rows, bias):
        cupy_kernels.elementwise("ADD", rows, bias, out=rows)
    elif bias is not None:
        rows += bias
    return rows.reshape(*x.shape[:-1], weight.shape[1])


def linear_backward(g: Array, x: Array, weight: Array, needs: Sequence[bool]) -> tuple[Array | None, ...]:
    need_x, need_weight, need_bias = needs
    g2, rows = _rows(g), _rows(x)  # (N, o), (N, i)
    # The gradient has the memory layout of the weight, so that an optimizer reads both in the same order.
    is_transposed = weight.flags.f_contiguous and not weight.flags.c_contiguous
    return (
        matmul(g2, weight.T).reshape(x.shape) if need_x else None,
        (matmul(g2.T, rows).T if is_transposed else matmul(rows.T, g2)) if need_weight else None,
        _sum_of_rows(g2) if need_bias else None,
    )


def _exact_product(a: Array, b: Array) -> Array:
    """a @ b at the "highest" precision, whatever `set_matmul_precision` says: for sums computed as products."""
    return cublas.matmul(a, b, "highest") if cublas.takes(a, b) else cupy.matmul(a, b)


def _sum_of_rows(a: Array) -> Array:
    """(N, C) -> (C,). CuPy's sum over the first axis is slow (cupy#2562): by the kernel, or as a product with ones."""
    return cupy_kernels.row_sums(a) if cupy_kernels.takes(a) else _exact_product(cupy.ones((1, len(a)), a.dtype), a)[0]


def _rows(a: Array) -> Array:
    """(..., C) -> (N, C). The number of rows is given: with C = 0 it could not be inferred."""
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
    """Whether `axis` is the last axis, and the kernels take the arrays."""
    return axis in (-1, arrays[0].ndim - 1) and cupy_kernels.takes(*arrays)


def softmax(a: Array, axis: int) -> Any:
    return cupy_kernels.softmax(a) if _last(axis, a) and a.shape[-1] <= host.LONG_ROW else NotImplemented


def softmax_backward(g: Array, y: Array, axis: int) -> Any:
    return cupy_kernels.softmax_backward(g, y) if _last(axis, g, y) else NotImplemented


def log_softmax(a: Array, axis: int) -> Any:
    return cupy_kernels.log_softmax(a) if _last(axis, a) and a.shape[-1] <= host.LONG_ROW else NotImplemented


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


_ONE_HOT_ELEMENTS = 1 << 24  # in one block of the one-hot matrix: 64 MiB in float32


def embedding_backward(g: Array, ids: Array, n_rows: int) -> Array:
    """Deterministic, which atomics are not.

    By the kernel for up to 384 rows, else as a product with the one-hot matrix, (V, N) @ (N, C), in blocks of tokens
    that bound the size of that matrix. In the product a nan or inf in g reaches every row.
    """
    if cupy_kernels.takes(g) and cupy_kernels.embedding_takes(n_rows):
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
    if not cupy_kernels.takes(probs) or g.dtype != np.float32:  # the formula's loss may be in half precision
        return NotImplemented
    return cupy_kernels.cross_entropy_backward(g, probs, ids, valid)


def attention(
    q: Array, k: Array, v: Array, mask: Array | None, causal: bool, offset: int, dropout: AttentionDropout | None = None
) -> Any:
    if not cupy_kernels.attention_takes(q, k, v, dropout):
        return NotImplemented
    return cupy_kernels.attention(q, k, v, mask, causal, offset, dropout, tf32=cublas.rounds_float32())


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
    dropout: AttentionDropout | None = None,
) -> Any:
    if not cupy_kernels.attention_takes(q, k, v, dropout):
        return NotImplemented
    tf32 = cublas.rounds_float32()
    return cupy_kernels.attention_backward(g, q, k, v, out, log_sum, mask, causal, offset, needs, dropout, tf32=tf32)


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
    p_half: Array | None,
) -> Any:
    dense = all(a is None or a.flags.c_contiguous for a in (p, m, v, p_half))
    if not (dense and cupy_kernels.takes(p, m, v) and p.dtype == np.float32 and cupy_kernels.takes(g)):
        return NotImplemented
    if p_half is not None and p_half.dtype.name != "bfloat16":
        return NotImplemented
    cupy_kernels.adam_step(p, g, m, v, rates, clip, beta1, beta2, eps, weight_decay, decoupled, p_half)
    return p, m, v, p_half


# --- A step as one recording


def capture(work: Callable[[], None]) -> Callable[[], None]:
    cupy.get_default_memory_pool().free_all_blocks()  # left by uncaptured steps; the capture has a pool of its own
    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(Explaining(pool.malloc)), stream:
        stream.begin_capture()
        try:
            work()
        except BaseException as error:
            cublas.release_workspace(stream)
            with suppress(Exception):  # ending an invalid capture raises, too
                stream.end_capture()
            _release(pool)
            if not isinstance(error, Exception):  # such as KeyboardInterrupt
                raise
            raise RuntimeError(
                f"compile_step: {_primitive_of(error)} cannot be recorded in a CUDA graph ({error}); do it outside the "
                "step, or call the step without compile_step"
            ) from error
        graph = stream.end_capture()
    return Replay(graph, pool, cublas.release_workspace(stream))


class Replay:
    """A recorded CUDA graph. Calling it launches the graph on the current stream, and does not wait.

    Args:
        pool: the graph's memory, which the graph itself does not keep alive.
        workspace: the memory of cuBLAS.
    """

    def __init__(self, graph: Any, pool: Any, workspace: Array | None) -> None:
        self.graph, self.pool, self.workspace = graph, pool, workspace

    def __call__(self) -> None:
        self.graph.launch(cupy.cuda.get_current_stream())

    def __del__(self) -> None:
        self.graph = self.workspace = None
        if not sys.is_finalizing():  # the driver frees the memory of a process that ends
            _release(self.pool)


_released: list[Any] = []  # pools of earlier graphs, with memory of arrays that still exist


def _release(pool: Any) -> None:
    """Free the memory of a graph that is not needed any more, and of earlier ones.

    A MemoryPool of CuPy 14.2 does not free its memory when it is collected.
    """
    _released.append(pool)
    for pool in _released:
        pool.free_all_blocks()
    _released[:] = [pool for pool in _released if pool.total_bytes()]


def _primitive_of(error: BaseException) -> str:
    """The outermost primitive in the traceback, whether this module or a formula computes it."""
    names = {}
    for name, value in (*vars(formulas).items(), *globals().items()):
        if (
            isinstance(value, FunctionType)
            and value.__name__ == name
            and not name.startswith("_")
            and name != "capture"
        ):
            value = unwrap(value)  # a formula without its decorator
            names[value.__code__] = name
    called = (names.get(frame.f_code) for frame, _ in walk_tb(error.__traceback__))
    return next(filter(None, called), "something in the step")
