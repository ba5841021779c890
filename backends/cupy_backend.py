"""The GPU backend, in CuPy: the core primitives by CuPy's own names, and CUDA kernels for the derived ones.

On a device, no array is copied to the host implicitly, and host and device arrays never mix. An index out of range
raises no error, so ids and index arrays are checked on the host before they are copied to the device. Repeated indices
in `a[i] += v` do not accumulate, so gradients of an index go through scatter_add.

In float32 and bfloat16 the kernels of `cupy_kernels.py` compute the derived primitives. For arrays that the kernels do
not take, a function returns NotImplemented, and the formula in `formulas.py` runs. Products use cuBLAS (`cublas.py`).
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
        "pip install 'russellgrad[cuda13]' or 'russellgrad[cuda12]', "
        "in a checkout pip install -e '.[cuda13]' or '.[cuda12]'"
    ) from error

Array: TypeAlias = Any  # cupy.ndarray; CuPy ships no type hints
DType: TypeAlias = Any
Shape: TypeAlias = tuple[int, ...]
Axis: TypeAlias = int | tuple[int, ...] | None

# Importing ml_dtypes adds bfloat16 to NumPy and CuPy.
_MORE_DTYPES = ("bfloat16",) if importlib.util.find_spec("ml_dtypes") else ()
if _MORE_DTYPES:
    importlib.import_module("ml_dtypes")

name = "cupy"

# --- In and out of the backend


def require_usable() -> None:
    """Raises RuntimeError if there is no CUDA device. Also makes out-of-memory errors list the arrays in use."""
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
    return a.astype(dtype)


dtype = operator.attrgetter("dtype")
full = cupy.full
zeros = cupy.zeros


def arange(n: int, /) -> Array:
    return cupy.arange(n, dtype=np.int64)


def normal(shape: Shape, seed: int, counter: int, dtype: DType) -> Array:
    return cupy.asarray(host.normal(shape, seed, counter).astype(dtype))  # rounded on the host, as on other backends


def uniform(shape: Shape, key: Array, dtype: DType) -> Array:
    """By a kernel in every dtype: the formula reads the key on the host, which waits for the device."""
    if np.dtype(dtype) == np.float16:  # as in the formula: rounded from float64
        return cupy_kernels.uniform(shape, np.float64, key).astype(dtype)
    return cupy_kernels.uniform(shape, dtype, key)


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


add = _keeps_bfloat16(cupy.add)
subtract = _keeps_bfloat16(cupy.subtract)
multiply = _keeps_bfloat16(cupy.multiply)
divide = _keeps_bfloat16(cupy.divide)
power = _keeps_bfloat16(cupy.power)
negative = cupy.negative
exp = cupy.exp
expm1 = cupy.expm1
log = cupy.log
log1p = cupy.log1p
log2 = cupy.log2
sqrt = cupy.sqrt
tanh = cupy.tanh
sin = cupy.sin
cos = cupy.cos
arctan = cupy.arctan
floor = cupy.floor
ceil = cupy.ceil
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
    """By copies into slices: cupy.concatenate may copy a table of pointers to the device, which a capture refuses."""
    if not arrays:
        raise ValueError("there are no arrays; pass at least one")
    axis = range(arrays[0].ndim)[axis]  # IndexError for one that is out of range
    before, after = arrays[0].shape[:axis], arrays[0].shape[axis + 1 :]
    if any((*array.shape[:axis], *array.shape[axis + 1 :]) != before + after for array in arrays):
        raise ValueError(f"the shapes must be equal except along axis {axis}")
    ends = list(accumulate(array.shape[axis] for array in arrays))
    out = cupy.empty((*before, ends[-1], *after), np.result_type(*(array.dtype for array in arrays)))
    for array, end in zip(arrays, ends, strict=True):
        out[(*(slice(None),) * axis, slice(end - array.shape[axis], end))] = array
    return out


def getitem_backward(g: Array, index: Any, shape: Shape, /) -> Array:
    out = cupy.zeros(shape, g.dtype)
    if host.is_basic(index):
        out[index] = g  # no element is picked twice
    else:
        cupyx.scatter_add(out, index, g)  # atomics: the order of the additions varies, and so do the last bits
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
    """a @ b at the "highest" precision, whatever `set_matmul_precision` says: for sums computed as products."""
    return cublas.matmul(a, b, "highest") if cublas.takes(a, b) else cupy.matmul(a, b)


def _sum_of_rows(a: Array) -> Array:
    """(N, C) -> (C,), as a product with ones: CuPy's sum over the first axis is slow (cupy#2562)."""
    return _exact_product(cupy.ones((1, len(a)), a.dtype), a)[0]


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
    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(Explaining(pool.malloc)), stream:
        stream.begin_capture()
        try:
            work()
        except BaseException as error:
            cublas.release_workspace(stream)
            with suppress(Exception):  # ending an invalid capture raises, too
                stream.end_capture()
            if not isinstance(error, Exception):  # such as KeyboardInterrupt
                raise
            raise RuntimeError(
                f"compile_step: {_primitive_of(error)} cannot be recorded in a CUDA graph ({error}); do it outside the "
                "step, or call the step without compile_step"
            ) from error
        graph = stream.end_capture()
    return Replay(graph, pool, cublas.release_workspace(stream))


@dataclass(frozen=True)
class Replay:
    """A recorded CUDA graph. Calling it launches the graph on the current stream, and does not wait."""

    graph: Any
    pool: Any  # the graph's memory, which the graph itself does not keep alive
    workspace: Array | None  # of cuBLAS

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
