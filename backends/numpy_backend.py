"""The NumPy backend: core primitives are NumPy's functions; other files have faster derived primitives.

`sum` comes from `numpy_sums.py`: np.sum is not accurate along a leading axis.

The contract, `russellgrad/backend.py`, defines each primitive. The remaining derived primitives come from `formulas.py`.
"""

import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from . import (
    cpu,
    host,
    numpy_activations,
    numpy_attention,
    numpy_convolution,
    numpy_fused,
    numpy_llama,
    numpy_optimizer,
    numpy_sums,
    numpy_token,
)

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
DType: TypeAlias = Any
Shape: TypeAlias = tuple[int, ...]

name = "numpy"

# --- Setup, creation, conversion


def require_usable() -> None:
    """Set up memory and threads. Raises ValueError for an RG_NUM_THREADS that is not a positive whole number."""
    cpu.n_threads()
    cpu.keep_freed_memory()


def float_dtypes() -> tuple[str, ...]:
    return ("float16", "float32", "float64")


def is_array(x: Any, /) -> bool:
    return isinstance(x, np.ndarray)


def copy(a: Array, /) -> Array:
    return np.array(a, order="C")


def from_dlpack(x: Any) -> Array:
    host.check_unmasked(x, "from_dlpack")
    array = np.from_dlpack(x)
    host.check_real(array.dtype)
    return array


def astype(a: Array, dtype: DType, /) -> Array:
    return a.astype(dtype)  # np.astype does not accept scalars, which NumPy returns for 0-d results


asarray = host.real_array
to_host = copy
dtype = operator.attrgetter("dtype")
full = np.full
zeros = np.zeros
arange = np.arange

# --- Elementwise, broadcasting

add = np.add
subtract = np.subtract
multiply = np.multiply
divide = np.divide
floor_divide = np.floor_divide
remainder = np.remainder
power = np.power
negative = np.negative
exp = np.exp
expm1 = np.expm1
log = np.log
log1p = np.log1p
log2 = np.log2
log10 = np.log10
sqrt = np.sqrt
tanh = np.tanh
sinh = np.sinh
cosh = np.cosh
sin = np.sin
cos = np.cos
arcsin = np.arcsin
arccos = np.arccos
arctan = np.arctan
arctan2 = np.arctan2
floor = np.floor
ceil = np.ceil
rint = np.rint
abs = np.absolute
sign = np.sign
maximum = np.maximum
minimum = np.minimum
where = np.where
equal = np.equal
not_equal = np.not_equal
less = np.less
less_equal = np.less_equal
greater = np.greater
greater_equal = np.greater_equal
logical_and = np.logical_and
logical_or = np.logical_or
logical_not = np.logical_not

# --- Reductions

sum = numpy_sums.sum
max = np.max
min = np.min
argmax = np.argmax

# --- Along one axis


def argsort(a: Array, axis: int, /) -> Array:
    return np.argsort(a, axis, kind="stable")


def cumsum(a: Array, axis: int, /) -> Array:
    if a.dtype.kind in "biu":
        return np.cumsum(a, axis, np.int64)
    return np.cumsum(a, axis, np.float64).astype(a.dtype, copy=False)


# --- Shapes and indices

reshape = np.reshape
transpose = np.transpose
broadcast_to = np.broadcast_to
expand_dims = np.expand_dims
concatenate = np.concatenate
getitem = operator.getitem


def prepare_index(index: Any, shape: Shape) -> Any:
    # NumPy checks the bounds when it indexes.
    parts = host.as_tuple(index)
    if host.is_basic(parts):
        return parts
    return tuple(part if host.is_basic((part,)) else host.index_array(part) for part in parts)


def getitem_backward(g: Array, index: Any, shape: Shape, /) -> Array:
    dtype = g.dtype
    if host.is_basic(index) or len(index) == 1 and host.mask_ndim(index[0]):
        out = np.zeros(shape, g.dtype)
        out[index] = g  # selects no element twice
        return out
    out = np.zeros(shape, g.dtype if g.dtype.kind in "iu" else np.promote_types(g.dtype, np.float32))
    g = g.astype(out.dtype, copy=False)  # np.add.at is slow for operands of two dtypes
    if len(index) == len(shape) == 1 and index[0].shape == g.shape:  # and for an index that is not 1-D
        np.add.at(out, index[0].ravel(), g.ravel())
    else:
        np.add.at(out, index, g)
    return out.astype(dtype, copy=False)


# --- Faster derived primitives

matmul = numpy_fused.matmul
linear = numpy_fused.linear
linear_backward = numpy_fused.linear_backward
erf = numpy_activations.erf
gelu = numpy_activations.gelu
gelu_backward = numpy_activations.gelu_backward
gelu_value = numpy_activations.gelu_value
sigmoid = numpy_activations.sigmoid
leaky_relu = numpy_activations.leaky_relu
leaky_relu_backward = numpy_activations.leaky_relu_backward
softmax = numpy_fused.softmax
softmax_backward = numpy_fused.softmax_backward
log_softmax = numpy_fused.log_softmax
log_softmax_backward = numpy_fused.log_softmax_backward
layer_norm = numpy_fused.layer_norm
layer_norm_backward = numpy_fused.layer_norm_backward
rms_norm, rms_norm_backward = numpy_llama.rms_norm, numpy_llama.rms_norm_backward
swiglu, swiglu_backward, rotary = numpy_llama.swiglu, numpy_llama.swiglu_backward, numpy_llama.rotary
embedding = numpy_fused.embedding
embedding_backward = numpy_fused.embedding_backward
cross_entropy = numpy_fused.cross_entropy
cross_entropy_backward = numpy_fused.cross_entropy_backward
conv = numpy_convolution.conv
conv_backward = numpy_convolution.conv_backward
max_pool_indices = numpy_convolution.max_pool_indices
attention = numpy_attention.attention
attention_backward = numpy_attention.attention_backward
token_block = numpy_token.token_block
sgd_step = numpy_optimizer.sgd_step
adam_step = numpy_optimizer.adam_step

# --- In place


def update_scalars(target: Array, values: Sequence[float]) -> None:
    target[:] = values


def assign(target: Array, source: Array) -> None:
    target[...] = source


split_flat = host.split_flat

# --- Threads

run_tasks = cpu.run_tasks
n_threads = cpu.n_threads
