"""The PyTorch backend: its arrays are torch.Tensors, on the accelerator that PyTorch finds, else on the CPU.

The core primitives are PyTorch's functions; the derived ones of `torch_fused.py` call its fused functions. PyTorch's
autograd never records: no array requires a gradient, and `asarray` refuses one that does.

The module is the backend of the default device. `on_device` gives the same primitives for another one.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from . import host

try:
    import torch
    from torch.utils import dlpack

    torch.accelerator.current_device_index  # noqa: B018
    _accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
except (ImportError, AttributeError) as error:  # AttributeError: before version 2.7 there is no such function
    raise ImportError(
        f"backend 'torch': no PyTorch 2.7 or later can be imported ({error}); pip install 'russellgrad[torch]', in a "
        "checkout pip install -e '.[torch]', or the build for your GPU from https://pytorch.org"
    ) from error

from . import torch_fused, torch_indexing

Array: TypeAlias = Any  # torch.Tensor
DType: TypeAlias = Any
Shape: TypeAlias = tuple[int, ...]
Axis: TypeAlias = int | tuple[int, ...] | None

_MORE_DTYPES = ("bfloat16",) if importlib.util.find_spec("ml_dtypes") else ()
if _MORE_DTYPES:
    importlib.import_module("ml_dtypes")  # adds bfloat16 to NumPy
_INTEGERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
_FLOATS = ("float16", "float32", "float64", *_MORE_DTYPES)
_TO_NUMPY = {getattr(torch, dtype): np.dtype(dtype) for dtype in ("bool", *_INTEGERS, *_FLOATS)}
_TO_TORCH: dict[Any, Any] = {key: ours for ours, dtype in _TO_NUMPY.items() for key in (dtype, dtype.name)}
_NOT_EVERYWHERE = (torch.float64, torch.uint16, torch.uint32, torch.uint64)  # MPS, and some GPUs of Intel


def _torch_dtype(dtype: DType) -> Any:
    """PyTorch's dtype. Raises TypeError if it is not of real numbers."""
    return _TO_TORCH.get(dtype) or _TO_TORCH[host.real_dtype(dtype, _MORE_DTYPES)]


# --- What depends on the device


class Device:
    """The primitives that create arrays on a device: "cpu", "cuda", "mps", "xpu" or another type that PyTorch has."""

    def __init__(self, kind: str) -> None:
        self.kind, self.name, self.device = kind, f"torch:{kind}", torch.device(kind)
        self.capture = _capture if kind == "cuda" else None
        self.lacking: set[Any] = set()
        self.wide = torch.float64

    def require_usable(self) -> None:
        """Raises RuntimeError if PyTorch finds no such device."""
        if self.kind not in _FOUND:
            raise RuntimeError(
                f"backend {self.name!r}: PyTorch {torch.__version__} finds no {self.kind!r} device; install its build "
                f"for that device from https://pytorch.org, or set RG_BACKEND=torch"
            )
        if self.kind != "cpu":
            self.device = torch.device(self.kind, torch.accelerator.current_device_index())
        self.lacking = {dtype for dtype in _NOT_EVERYWHERE if not self._has(dtype)}
        self.wide = torch.float32 if torch.float64 in self.lacking else torch.float64

    def _has(self, dtype: Any) -> bool:
        try:
            torch.ones(1, dtype=dtype, device=self.device)
        except (TypeError, RuntimeError):
            return False
        return True

    def float_dtypes(self) -> tuple[str, ...]:
        return tuple(dtype for dtype in _FLOATS if _TO_TORCH[dtype] not in self.lacking)

    def is_array(self, x: Any, /) -> bool:  # uint64, the dtype of the keys of random draws, stays on the host
        return isinstance(x, torch.Tensor) and (x.device == self.device or x.dtype == torch.uint64)

    def asarray(self, data: Any, /, dtype: DType = None) -> Array:
        if isinstance(data, torch.Tensor):
            if data.requires_grad or data.dtype not in _TO_NUMPY or data.layout != torch.strided:
                what = "requires gradients" if data.requires_grad else f"has {data.dtype}, {data.layout}"
                raise TypeError(
                    f"asarray: this torch.Tensor {what}; pass x.detach(), or x.detach().float() of bfloat16, dense and "
                    "of real numbers"
                )
            wanted = self._checked(data.dtype if dtype is None else _torch_dtype(dtype))
            if wanted == data.dtype or data.device.type != "cpu":
                return data.to(self.device, wanted)
            data = to_host(data)  # checks that the numbers fit
        array = np.array(
            host.real_array(data, dtype, _MORE_DTYPES), order="C"
        )  # a copy: PyTorch has no read-only arrays
        wanted = self._checked(_TO_TORCH[array.dtype])
        bits = "int16" if wanted == torch.bfloat16 else array.dtype.name  # a name, as NumPy has several types of int64
        return torch.from_numpy(array.view(bits)).view(wanted).to(self.device)

    def _checked(self, dtype: Any) -> Any:
        """PyTorch's dtype itself. Raises TypeError if the device does not have it."""
        if dtype in self.lacking:
            raise TypeError(f"asarray: device {self.device} has no {_TO_NUMPY[dtype]}; cast to float32 or int64")
        return dtype

    def from_dlpack(self, x: Any) -> Array:
        host.check_unmasked(x, "from_dlpack")
        if isinstance(x, np.ndarray) and not x.flags.writeable:  # PyTorch would write into it
            raise BufferError("the memory is read-only, which PyTorch does not support")
        array = dlpack.from_dlpack(x)
        if array.device != self.device:
            raise TypeError(f"from_dlpack: memory of {array.device} cannot be shared with {self.name!r}; copy it there")
        return self.asarray(array)

    def full(self, shape: Shape, value: float, /, dtype: DType) -> Array:
        return torch.full(shape, value, dtype=self._checked(_torch_dtype(dtype)), device=self.device)

    def astype(self, a: Array, dtype: DType, /) -> Array:
        if (dtype := np.dtype(dtype).newbyteorder("=")) not in _TO_TORCH:
            raise TypeError(f"astype: a tensor holds real numbers or bools, not {dtype}; cast to 'float64' or narrower")
        return a.to(self._checked(_TO_TORCH[dtype]), copy=True)

    def arange(self, n: int, /) -> Array:
        return torch.arange(n, device=self.device)

    def normal(self, shape: Shape, seed: int, counter: int, dtype: DType) -> Array:
        return self.asarray(host.normal(shape, seed, counter).astype(dtype))

    def uniform(self, shape: Shape, key: Array, dtype: DType) -> Array:
        seed, low, high, start = key.tolist()
        return self.asarray(host.uniform(shape, seed, high << 64 | low, start).astype(dtype))

    def host_scalars(self, values: Sequence[float], dtype: DType) -> Array:
        if self.kind == "cuda" and torch.cuda.is_current_stream_capturing():  # a capture refuses copies from the host
            # `update_scalars` writes to it before each replay. Allocated on another stream, it does not share memory
            # with the graph's temporary arrays.
            with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call, unused-ignore]
                return torch.empty(len(values), dtype=_torch_dtype(dtype), device=self.device)
        made = torch.from_numpy(np.array(values, dtype))
        return made if made.dtype == torch.uint64 else made.to(self.device, self._checked(made.dtype))

    def where(self, condition: Array, a: Array, b: Array, /) -> Array:
        if isinstance(a, float) and not isinstance(b, torch.Tensor):
            a = torch.full((), a, dtype=self.wide, device=self.device)
        return _explained(torch.where, condition, a, b)

    def cumsum(self, a: Array, axis: int, /) -> Array:
        if not a.is_floating_point():
            return torch.cumsum(a, axis, dtype=torch.int64)
        return torch.cumsum(a, axis, dtype=self.wide).to(a.dtype)


def _capture(work: Callable[[], None]) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            work()
    except Exception as error:
        raise RuntimeError(
            f"compile_step: the step cannot be recorded in a CUDA graph ({error}); do what copies from or to the host "
            "outside the step, or call the step without compile_step"
        ) from error
    return graph.replay  # type: ignore[no-any-return, unused-ignore]


_FOUND = ("cpu",) if _accelerator is None else (_accelerator.type, "cpu")
_device = Device(_FOUND[0])
name, require_usable, float_dtypes, capture = (
    _device.name,
    _device.require_usable,
    _device.float_dtypes,
    _device.capture,
)
is_array, asarray, from_dlpack, full = _device.is_array, _device.asarray, _device.from_dlpack, _device.full
astype, where, cumsum = _device.astype, _device.where, _device.cumsum
arange, normal, uniform, host_scalars = _device.arange, _device.normal, _device.uniform, _device.host_scalars


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
            "device that PyTorch finds; CUDA_VISIBLE_DEVICES selects one of several"
        )
    module, device = ModuleType(__name__), Device(kind)
    vars(module).update({name: getattr(device, name, value) for name, value in globals().items()})
    return sys.modules[__name__] if kind == _FOUND[0] else module


# --- Conversion


def to_host(a: Array, /) -> Any:
    if a.dtype == torch.bfloat16:
        return to_host(a.contiguous().view(torch.int16)).view("bfloat16")
    return np.array(a.cpu().resolve_neg().numpy(), order="C")


def copy(a: Array, /) -> Array:
    return a.clone(memory_format=torch.contiguous_format)


def dtype(a: Array, /) -> Any:
    return _TO_NUMPY[a.dtype]


def assign(target: Array, source: Array) -> None:
    target.copy_(source)


def update_scalars(target: Array, values: Sequence[float]) -> None:
    target.copy_(torch.from_numpy(np.array(values, dtype(target))))


split_flat, set_matmul_precision = host.split_flat, torch.set_float32_matmul_precision

# --- Elementwise


def _explained(function: Callable[..., Array], *args: Any) -> Array:
    """function(*args), but PyTorch's RuntimeError for bad operands becomes the exception that NumPy raises."""
    try:
        return function(*args)
    except RuntimeError as error:
        text = str(error).partition("\n")[0].rstrip(".")
        if isinstance(error, NotImplementedError) or "not supported" in text:
            raise TypeError(f"{text}; cast to another dtype") from error
        if type(error) is not RuntimeError:  # out of memory, an error of the device
            raise
        raise ValueError(f"shapes do not broadcast: {text}" if "must match" in text else text) from error


def _explaining(function: Callable[..., Array]) -> Callable[..., Array]:
    return partial(_explained, function)


def _number(x: float, beside: Array) -> Array:
    """A Python number as an array without axes, of the dtype of the array that it stands beside."""
    if not isinstance(beside, torch.Tensor):
        return torch.tensor(x, dtype=torch.float64 if isinstance(x, float) else None)
    dtype = beside.dtype
    if isinstance(x, int) and not dtype.is_floating_point and dtype != torch.bool:
        if not torch.iinfo(dtype).min <= x <= torch.iinfo(dtype).max:  # PyTorch would wrap it around
            raise OverflowError(f"{x} is out of bounds for {dtype}")
    elif not isinstance(x, bool) and dtype == torch.bool:
        dtype = torch.int64 if isinstance(x, int) else torch.float64
    return torch.full((), x, dtype=dtype, device=beside.device)


def _binary(function: Callable[..., Array], takes_number: bool = True) -> Callable[..., Array]:
    """`function` for a Python number as either operand. PyTorch takes none as the first, and some functions none."""

    def elementwise(a: Array, b: Array, /) -> Array:
        if not isinstance(a, torch.Tensor):
            a = _number(a, b)
        elif not isinstance(b, torch.Tensor) and not (takes_number and (a.is_floating_point() or type(b) is float)):
            b = _number(b, a)
        return function(a, b)

    return _explaining(elementwise)


add, subtract, multiply, divide = (_binary(f) for f in (torch.add, torch.subtract, torch.multiply, torch.divide))
floor_divide, remainder = _binary(torch.floor_divide), _binary(torch.remainder)
equal, not_equal, less, less_equal = (_binary(f) for f in (torch.eq, torch.ne, torch.lt, torch.le))
greater, greater_equal, arctan2 = _binary(torch.gt), _binary(torch.ge), _binary(torch.arctan2, False)
maximum, minimum = _binary(torch.maximum, False), _binary(torch.minimum, False)
logical_and, logical_or = _binary(torch.logical_and, False), _binary(torch.logical_or, False)
logical_not, negative = torch.logical_not, _explaining(torch.negative)
exp, expm1, log, log1p, log2, log10 = torch.exp, torch.expm1, torch.log, torch.log1p, torch.log2, torch.log10
sqrt, tanh, sinh, cosh, sin, cos = torch.sqrt, torch.tanh, torch.sinh, torch.cosh, torch.sin, torch.cos
arcsin, arccos, arctan, floor, ceil, rint = torch.asin, torch.acos, torch.atan, torch.floor, torch.ceil, torch.round
erf, sigmoid, relu = torch.erf, torch.sigmoid, torch.relu


def abs(a: Array, /) -> Array:
    return torch.abs(a) if a.dtype != torch.bool else a.clone()


@_binary
def power(a: Array, b: Array, /) -> Array:
    if not (a.is_floating_point() or b.is_floating_point()) and b.device.type == "cpu" and bool((b < 0).any()):
        raise ValueError("integers to negative integer powers are not allowed")  # PyTorch gives 0
    return torch.pow(a, b)


def sign(a: Array, /) -> Array:
    return torch.where(a == a, torch.sign(a), a)  # torch.sign(nan) is 0


# --- Reductions, and along one axis


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
    if axis is None and not a.numel():
        raise ValueError("there are no elements, of which one would be chosen")
    return torch.argmax(a.to(torch.uint8) if a.dtype == torch.bool else a, axis, keepdims)


def argsort(a: Array, axis: int, /) -> Array:
    return torch.argsort(a, dim=axis, stable=True)


# --- Shapes, indices, products

reshape, broadcast_to = _explaining(torch.reshape), _explaining(torch.broadcast_to)
matmul = _explaining(torch.matmul)


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
embedding, embedding_backward = torch_fused.embedding, torch_fused.embedding_backward
cross_entropy, cross_entropy_backward = torch_fused.cross_entropy, torch_fused.cross_entropy_backward
attention, attention_backward = torch_fused.attention, torch_fused.attention_backward
conv, conv_backward = torch_fused.conv, torch_fused.conv_backward
max_pool_indices, adam_step = torch_fused.max_pool_indices, torch_fused.adam_step
