"""The arrays of the PyTorch backend: their devices and dtypes, and their conversion from and to the host."""

import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeAlias

import numpy as np

from . import cpu, host

try:
    import torch
    from torch.utils import dlpack

    torch.accelerator.current_device_index  # noqa: B018
    _accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
except (ImportError, AttributeError, OSError) as error:  # AttributeError: before version 2.7 there is no such function
    _found = f"found {torch.__version__}" if isinstance(error, AttributeError) else str(error)
    raise ImportError(
        f"backend 'torch' needs PyTorch 2.7 or later ({_found}); pip install 'russellgrad[torch]', in a checkout "
        "pip install -e '.[torch]', or the build for your GPU from https://pytorch.org"
    ) from error

Array: TypeAlias = Any  # torch.Tensor
DType: TypeAlias = Any
Shape: TypeAlias = tuple[int, ...]

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


# --- Devices


class Device:
    """The primitives that create arrays on a device: "cpu", "cuda", "mps", "xpu" or another type that PyTorch has."""

    def __init__(self, kind: str) -> None:
        self.kind, self.name, self.device = kind, f"torch:{kind}", torch.device(kind)
        self.capture = capture_graph if kind == "cuda" else None
        self.lacking: set[Any] = set()

    def require_usable(self) -> None:
        """Set up the device, and memory on the CPU. Raises RuntimeError if PyTorch finds no such device."""
        if self.kind not in FOUND:
            raise RuntimeError(
                f"backend {self.name!r}: PyTorch {torch.__version__} finds no {self.kind!r} device; install the "
                "PyTorch build for it from https://pytorch.org, or set RG_BACKEND=torch for the device that it finds"
            )
        if self.kind == "cpu":
            cpu.keep_freed_memory()
        else:
            self.device = torch.device(self.kind, torch.accelerator.current_device_index())
        self.lacking = {dtype for dtype in _NOT_EVERYWHERE if not self._has(dtype)}
        WIDE[self.device] = torch.float32 if torch.float64 in self.lacking else torch.float64

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
                what = (
                    "requires gradients"
                    if data.requires_grad
                    else f"has the dtype {data.dtype} and the layout {data.layout}"
                )
                remedy = "x.detach(), or x.detach().float() of bfloat16"
                if not data.requires_grad:
                    remedy = "a dense tensor of real numbers, such as x.to_dense(), x.real, or x.float() for bfloat16"
                raise TypeError(f"asarray: this torch.Tensor {what}; pass {remedy}")
            wanted = self._checked(data.dtype if dtype is None else _torch_dtype(dtype))
            if wanted == data.dtype or data.device.type != "cpu":
                return data.to(self.device, wanted)
            data = to_host(data)  # checks that the numbers fit
        # A copy: PyTorch has no read-only arrays.
        array = np.array(host.real_array(data, dtype, _MORE_DTYPES), order="C")
        wanted = self._checked(_TO_TORCH[array.dtype])
        bits = "int16" if wanted == torch.bfloat16 else array.dtype.name  # a name, as NumPy has several types of int64
        return torch.from_numpy(array.view(bits)).view(wanted).to(self.device)

    def _checked(self, dtype: Any) -> Any:
        """PyTorch's dtype itself. Raises TypeError if the device does not have it."""
        if dtype in self.lacking:
            narrower = "float32" if dtype == torch.float64 else "int64"
            raise TypeError(f"device {self.device} has no {_TO_NUMPY[dtype]}; use {narrower}")
        return dtype

    def from_dlpack(self, x: Any) -> Array:
        host.check_unmasked(x, "from_dlpack")
        if isinstance(x, np.ndarray) and not x.flags.writeable:  # PyTorch would write into it
            raise BufferError("from_dlpack: the array is read-only, which PyTorch does not support; pass x.copy()")
        array = dlpack.from_dlpack(x)
        if array.device != self.device:
            raise TypeError(
                f"from_dlpack: cannot share memory of device {array.device} with backend {self.name!r}; copy it with "
                f"Tensor(x, backend={self.name!r})"
            )
        return self.asarray(array)

    def full(self, shape: Shape, value: float, /, dtype: DType) -> Array:
        return torch.full(shape, value, dtype=self._checked(_torch_dtype(dtype)), device=self.device)

    def astype(self, a: Array, dtype: DType, /) -> Array:
        if (dtype := np.dtype(dtype).newbyteorder("=")) not in _TO_TORCH:
            raise TypeError(f"astype: a tensor holds real numbers or bools, not {dtype}; cast to 'float64' or narrower")
        return a.to(self._checked(_TO_TORCH[dtype]), copy=True)

    def arange(self, n: int, /) -> Array:
        return torch.arange(n, device=self.device)

    def host_scalars(self, values: Sequence[float], dtype: DType) -> Array:
        if self.kind == "cuda" and torch.cuda.is_current_stream_capturing():  # a capture refuses copies from the host
            # `update_scalars` writes to it before each replay. Allocated on another stream, it does not share memory
            # with the graph's temporary arrays.
            with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call, unused-ignore]
                return torch.empty(len(values), dtype=_torch_dtype(dtype), device=self.device)
        made = torch.from_numpy(np.array(values, dtype))
        return made if made.dtype == torch.uint64 else made.to(self.device, self._checked(made.dtype))

    def where(self, condition: Array, a: Array, b: Array, /) -> Array:
        if not isinstance(a, torch.Tensor) and not isinstance(b, torch.Tensor):
            dtype = WIDE[self.device] if isinstance(a, float) or isinstance(b, float) else None
            a, b = (torch.full((), x, dtype=dtype, device=self.device) for x in (a, b))
        return explained(torch.where, condition, *operands(a, b))

    def cumsum(self, a: Array, axis: int, /) -> Array:
        if not a.is_floating_point():
            return torch.cumsum(a, axis, dtype=torch.int64)
        return torch.cumsum(a, axis, dtype=WIDE[self.device]).to(a.dtype)


def capture_graph(work: Callable[[], None]) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            work()
    except Exception as error:
        raise RuntimeError(
            f"compile_step: the step cannot be recorded in a CUDA graph ({error}); move copies between host and device "
            "out of the step (dropout copies its random numbers), or call the step without compile_step"
        ) from error
    return graph.replay  # type: ignore[no-any-return, unused-ignore]


FOUND = ("cpu",) if _accelerator is None else (_accelerator.type, "cpu")  # the default device is the first


if hasattr(os, "register_at_fork"):  # a forked child has none of PyTorch's threads, and would wait for them
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


# --- Operands of two dtypes

WIDE: dict[Any, Any] = {}  # device -> float64, or float32 where there is none


def operands(a: Array, b: Array, *, compares: bool = False) -> tuple[Array, Array]:
    """Both operands in their common dtype, as in NumPy: PyTorch's functions ignore the dtype of a 0-d tensor.

    A Python number takes the dtype of the array, or float64 if it is a float and the array is not. Beside a float array
    it stays a number as the second operand.
    """
    if not isinstance(a, torch.Tensor):
        if not isinstance(b, torch.Tensor):
            b = torch.tensor(b, dtype=torch.float64 if isinstance(b, float) else None)
        b, a = _array_and_number(b, a, compares)
    elif not isinstance(b, torch.Tensor):
        if not a.is_floating_point():
            a, b = _array_and_number(a, b, compares)
    elif a.dtype != b.dtype and not (a.ndim and b.ndim):
        return in_common_dtype(a, b)
    return a, b


def in_common_dtype(a: Array, b: Array) -> tuple[Array, Array]:
    common = torch.promote_types(a.dtype, b.dtype)
    return a.to(common), b.to(common)


def _array_and_number(a: Array, x: float, compares: bool) -> tuple[Array, Array]:
    dtype = a.dtype
    if isinstance(x, float) and not dtype.is_floating_point:
        dtype = WIDE[a.device]
    elif isinstance(x, int) and not isinstance(x, bool) and not dtype.is_floating_point:
        if dtype == torch.bool:
            dtype = torch.int64
        elif not torch.iinfo(dtype).min <= x <= torch.iinfo(dtype).max:  # PyTorch would wrap it around
            if not compares:
                raise OverflowError(f"{x} is out of bounds for {_TO_NUMPY[dtype]}; cast with x.astype('int64')")
            dtype = torch.int64
    return a.to(dtype), torch.full((), x, dtype=dtype, device=a.device)


# --- Conversion


def explained(function: Callable[..., Array], *args: Any) -> Array:
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


def to_host(a: Array, /) -> Any:
    if a.dtype == torch.bfloat16:
        return to_host(a.contiguous().view(torch.int16)).view("bfloat16")
    return np.array(a.cpu().resolve_neg().numpy(), order="C")


def copy(a: Array, /) -> Array:
    return a.clone(memory_format=torch.contiguous_format)


def dtype(a: Array, /) -> Any:
    return _TO_NUMPY[a.dtype]


def writes_in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let `function` write into tensors that were made in `torch.inference_mode`, also outside of it.

    PyTorch refuses that. Such tensors are the state of an optimizer whose first step ran there, and the cached keys and
    values of a text whose first token was generated there.
    """
    in_inference_mode = torch.inference_mode()(function)

    @wraps(function)
    def write(*args: Any) -> Any:
        made_there = any(isinstance(x, torch.Tensor) and x.is_inference() for x in args)
        return (in_inference_mode if made_there else function)(*args)

    return write


@writes_in_place
def assign(target: Array, source: Array) -> None:
    target.copy_(source)


@writes_in_place
def update_scalars(target: Array, values: Sequence[float]) -> None:
    target.copy_(torch.from_numpy(np.array(values, dtype(target))))
