"""The PyTorch backend: its arrays are torch.Tensors, on the accelerator that PyTorch finds, else on the CPU.

The core primitives are PyTorch's functions; the derived ones of `torch_fused.py` call its fused functions. PyTorch's
autograd never records: no array that the backend makes requires a gradient, and `asarray` refuses one that does.

The module is the backend of the default device. `on_device` gives a module with the same primitives for another one, in
which those that create arrays are methods of another `Device`.
"""

import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from types import ModuleType
from typing import Any, TypeAlias

from . import host, torch_arrays  # first, because it explains an ImportError of PyTorch

# isort: split
import torch

from . import torch_fused, torch_indexing

Array: TypeAlias = Any  # torch.Tensor
Axis: TypeAlias = int | tuple[int, ...] | None
Shape: TypeAlias = tuple[int, ...]

# --- Devices, creation, conversion

_device = torch_arrays.Device(torch_arrays.FOUND[0])
name, require_usable, capture = _device.name, _device.require_usable, _device.capture
float_dtypes, is_array, asarray = _device.float_dtypes, _device.is_array, _device.asarray
from_dlpack, astype, full, arange = _device.from_dlpack, _device.astype, _device.full, _device.arange
host_scalars, where, cumsum = _device.host_scalars, _device.where, _device.cumsum
to_host, copy, dtype = torch_arrays.to_host, torch_arrays.copy, torch_arrays.dtype
assign, update_scalars = torch_arrays.assign, torch_arrays.update_scalars
split_flat, set_matmul_precision = host.split_flat, torch.set_float32_matmul_precision


@cache
def on_device(kind: str) -> ModuleType:
    """The backend's module for a type of device. Raises ValueError if PyTorch has no such type."""
    try:
        known = torch.device(kind).type == kind
    except RuntimeError:
        known = False
    if not known:
        raise ValueError(
            f"unknown backend 'torch:{kind}': write torch:cpu, torch:cuda, torch:mps or torch:xpu, or torch for the "
            "device that PyTorch finds; for one of several GPUs, set CUDA_VISIBLE_DEVICES"
        )
    module, device = ModuleType(__name__), torch_arrays.Device(kind)
    vars(module).update({name: getattr(device, name, value) for name, value in globals().items()})
    return sys.modules[__name__] if kind == torch_arrays.FOUND[0] else module


# --- Elementwise


def _explaining(function: Callable[..., Array]) -> Callable[..., Array]:
    return partial(torch_arrays.explained, function)


def _binary(
    function: Callable[..., Array], *, takes_number: bool = True, compares: bool = False
) -> Callable[..., Array]:
    """`function` of two operands as NumPy promotes them. Some of PyTorch's functions do not take a number."""

    def elementwise(a: Array, b: Array, /) -> Array:
        a, b = torch_arrays.operands(a, b, compares=compares)
        if not (takes_number or isinstance(b, torch.Tensor)):
            b = torch.full((), b, dtype=a.dtype, device=a.device)
        return function(a, b)

    return _explaining(elementwise)


add, subtract, multiply = _binary(torch.add), _binary(torch.subtract), _binary(torch.multiply)
floor_divide, remainder = _binary(torch.floor_divide), _binary(torch.remainder)
equal, not_equal = _binary(torch.eq, compares=True), _binary(torch.ne, compares=True)
less, less_equal = _binary(torch.lt, compares=True), _binary(torch.le, compares=True)
greater, greater_equal = _binary(torch.gt, compares=True), _binary(torch.ge, compares=True)
arctan2 = _binary(torch.arctan2, takes_number=False)
maximum, minimum = _binary(torch.maximum, takes_number=False), _binary(torch.minimum, takes_number=False)
logical_and, logical_or = (_binary(f, takes_number=False) for f in (torch.logical_and, torch.logical_or))
logical_not, negative = torch.logical_not, _explaining(torch.negative)
exp, expm1, log, log1p, log2, log10 = torch.exp, torch.expm1, torch.log, torch.log1p, torch.log2, torch.log10
sqrt, tanh, sinh, cosh, sin, cos = torch.sqrt, torch.tanh, torch.sinh, torch.cosh, torch.sin, torch.cos
arcsin, arccos, arctan, floor, ceil, rint = torch.asin, torch.acos, torch.atan, torch.floor, torch.ceil, torch.round
erf, sigmoid = torch.erf, torch.sigmoid


def relu(a: Array) -> Any:
    return torch.relu(a) if a.is_floating_point() else NotImplemented


@_explaining
def abs(a: Array, /) -> Array:
    return torch.abs(a) if a.dtype != torch.bool else a.clone()


@_binary
def divide(a: Array, b: Array, /) -> Array:
    if not (a.is_floating_point() or b.is_floating_point()):  # PyTorch's default dtype is float32
        a = a.to(torch_arrays.WIDE[a.device])
    return torch.divide(a, b)


@_binary
def power(a: Array, b: Array, /) -> Array:
    if not (a.is_floating_point() or b.is_floating_point()) and b.device.type == "cpu" and bool((b < 0).any()):
        raise ValueError("integers to negative integer powers are not allowed")  # PyTorch gives 0; a device would wait
    return torch.pow(a, b)


@_explaining
def sign(a: Array, /) -> Array:
    return torch.where(a == a, torch.sign(a), a)  # torch.sign(nan) is 0


# --- Reductions, and along one axis


@_explaining
def _reduced(function: Callable[..., Array], a: Array, axis: Axis, keepdims: bool) -> Array:
    if axis == ():  # all axes in PyTorch, none in NumPy
        return function(a.unsqueeze(0), 0)
    if not (axis is None or isinstance(axis, int)) and not a.is_contiguous():
        a = a.contiguous()  # along several axes of other strides, PyTorch's sums are less accurate
    return function(a, tuple(range(a.ndim)) if axis is None else axis, keepdims)


def sum(a: Array, /, *, axis: Axis = None, keepdims: bool = False) -> Array:
    return _reduced(torch.sum, a, axis, keepdims)


def max(a: Array, /, *, axis: Axis = None, keepdims: bool = False) -> Array:
    return _reduced(torch.amax, a, axis, keepdims)


def min(a: Array, /, *, axis: Axis = None, keepdims: bool = False) -> Array:
    return _reduced(torch.amin, a, axis, keepdims)


def argmax(a: Array, /, *, axis: int | None = None, keepdims: bool = False) -> Array:
    if not (a.numel() if axis is None else a.shape[axis]):
        raise ValueError("the array is empty, so it has no largest element")
    return torch.argmax(a.to(torch.uint8) if a.dtype == torch.bool else a, axis, keepdims)


def argsort(a: Array, axis: int, /) -> Array:
    return torch.argsort(a, dim=axis, stable=True)


# --- Shapes, indices, products

reshape = _explaining(torch.reshape)


@_explaining
def broadcast_to(a: Array, shape: Shape, /) -> Array:
    if any(n < 0 for n in shape):  # keeps the length in PyTorch
        raise ValueError("lengths must not be negative")
    return torch.broadcast_to(a, shape)


@_explaining
def matmul(a: Array, b: Array, /) -> Array:
    return torch.matmul(*(torch_arrays.in_common_dtype(a, b) if a.dtype != b.dtype else (a, b)))


def transpose(a: Array, axes: Sequence[int] | None = None, /) -> Array:
    return a.permute(tuple(range(a.ndim)[::-1] if axes is None else axes))


def expand_dims(a: Array, axis: int | tuple[int, ...], /) -> Array:
    axes = (axis,) if isinstance(axis, int) else axis
    for i in sorted(range(a.ndim + len(axes))[i] for i in axes):
        a = a.unsqueeze(i)
    return a


@_explaining
def concatenate(arrays: Sequence[Array], axis: int, /) -> Array:
    return torch.cat(tuple(arrays), axis)


getitem, getitem_backward = torch_indexing.getitem, torch_indexing.getitem_backward

# --- Faster derived primitives

linear, linear_backward = torch_fused.linear, torch_fused.linear_backward
leaky_relu, leaky_relu_backward = torch_fused.leaky_relu, torch_fused.leaky_relu_backward
gelu, gelu_backward = torch_fused.gelu, torch_fused.gelu_backward
softmax, softmax_backward = torch_fused.softmax, torch_fused.softmax_backward
log_softmax, log_softmax_backward = torch_fused.log_softmax, torch_fused.log_softmax_backward
layer_norm, layer_norm_backward = torch_fused.layer_norm, torch_fused.layer_norm_backward
rms_norm, rms_norm_backward = torch_fused.rms_norm, torch_fused.rms_norm_backward
swiglu, swiglu_backward, rotary = torch_fused.swiglu, torch_fused.swiglu_backward, torch_fused.rotary
embedding, embedding_backward = torch_fused.embedding, torch_fused.embedding_backward
cross_entropy, cross_entropy_backward = torch_fused.cross_entropy, torch_fused.cross_entropy_backward
attention, attention_backward = torch_fused.attention, torch_fused.attention_backward
conv, conv_backward = torch_fused.conv, torch_fused.conv_backward
max_pool_indices, adam_step = torch_fused.max_pool_indices, torch_fused.adam_step
token_block = torch_fused.token_block
