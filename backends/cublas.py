"""Matrix products on a CUDA device, through cuBLAS's C interface.

`cupy.matmul` cannot be captured in a CUDA graph, copies operands of more than two axes and their views, and has no
choice of precision for float32. Here a stack of matrices is one strided batch, transposed operands are not copied, and
a cuBLAS handle of its own keeps its stream and workspace during a capture. A row-major product (n, k) @ (k, m) is the
column-major product (m, k) @ (k, n).
"""

import ctypes
import threading
from math import prod
from typing import Any, TypeAlias

import cupy

Array: TypeAlias = Any
Shape: TypeAlias = tuple[int, ...]

# Values of cudaDataType_t and cublasComputeType_t, from CUDA's headers library_types.h and cublas_api.h.
_DATA_TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
_FULL = {"float32": 68, "float64": 70, "float16": 68, "bfloat16": 68}  # float16 and bfloat16 accumulate in float32
_OF_FLOAT32 = {"highest": 68, "high": 77, "medium": 75}  # factors as float32, TF32, bfloat16
_DEFAULT_ALGORITHM = -1
_DISALLOW_REDUCED_PRECISION = 16  # of cublasMath_t: partial sums of half precision in float32, too
_WORKSPACE = 32 << 20  # bytes, cuBLAS's recommendation for Hopper; without one a captured product would allocate

_precision = "highest"
_mine = threading.local()  # two threads must not share a handle


def set_precision(level: str) -> None:
    """Set the precision of float32 products: "highest", "high" or "medium"."""
    global _precision
    _precision = level


def rounds_float32() -> bool:
    """Whether products may round float32 factors: the level is "high" or "medium"."""
    return _precision != "highest"


def takes(a: Array, b: Array) -> bool:
    """Whether `matmul` takes these: both have the same float dtype and at least one axis."""
    return a.dtype == b.dtype and a.dtype.name in _DATA_TYPES and a.ndim > 0 and b.ndim > 0


def matmul(a: Array, b: Array, precision: str | None = None) -> Array:
    """(..., n, k) @ (..., k, m) -> (..., n, m), of float16, bfloat16, float32 or float64; batch axes broadcast.

    As in NumPy, a 1-D operand (k,) is a row on the left and a column on the right, and that axis is dropped from the
    result.

    Args:
        precision: of float32 factors; by default the level of `set_precision`.

    Raises:
        ValueError: the shapes do not fit. RuntimeError: cuBLAS returns an error.
    """
    if a.ndim == 1 or b.ndim == 1:
        rows, columns = a[None] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b
        out = matmul(rows, columns, precision)  # (..., n, m)
        n, m = out.shape[-2:]
        return out.reshape(out.shape[:-2] + (n,) * (a.ndim > 1) + (m,) * (b.ndim > 1))
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"matmul: shapes {a.shape} and {b.shape} do not fit: the last axis of the first has length {a.shape[-1]}, "
            f"the last but one of the second {b.shape[-2]}; they must be equal"
        )
    batch = _broadcast(a.shape[:-2], b.shape[:-2])
    n, k, m = a.shape[-2], a.shape[-1], b.shape[-1]
    out = cupy.empty((*batch, n, m), a.dtype)
    if out.size == 0:
        return out
    if k == 0:
        out.fill(0)
        return out
    if batch and b.ndim == 2 and (rows := _as_rows(a)) is not None:  # one product, not one per matrix
        _gemm(rows, b, out.reshape(-1, m), precision)
    else:
        _gemm(cupy.broadcast_to(a, (*batch, n, k)), cupy.broadcast_to(b, (*batch, k, m)), out, precision)
    return out


def _broadcast(a: Shape, b: Shape) -> Shape:
    longest = len(a) if len(a) > len(b) else len(b)
    padded = list(zip((1,) * (longest - len(a)) + a, (1,) * (longest - len(b)) + b, strict=True))
    if any(m != n and 1 not in (m, n) for m, n in padded):
        raise ValueError(f"matmul: batch axes {a} and {b} do not fit: shapes must be equal or broadcast")
    return tuple(n if m == 1 else m for m, n in padded)


def _as_rows(a: Array) -> Array | None:
    """(..., n, k) as a view (N, k); None if that needs a copy."""
    return a.reshape(-1, a.shape[-1]) if a.flags.c_contiguous else None


def _gemm(a: Array, b: Array, out: Array, precision: str | None) -> None:
    """out = a @ b, one product per matrix of the batch. All three have the same batch axes."""
    (a, a_op, lda, stride_a), (b, b_op, ldb, stride_b) = _layout(a), _layout(b)
    n, k, m = a.shape[-2], a.shape[-1], b.shape[-1]
    kind = out.dtype.name
    compute = _OF_FLOAT32[precision or _precision] if kind == "float32" else _FULL[kind]
    scalar = ctypes.c_double if kind == "float64" else ctypes.c_float
    one, zero = scalar(1), scalar(0)
    dtype, pointer, whole = _DATA_TYPES[kind], ctypes.c_void_p, ctypes.c_int64
    library, handle = _current_handle()
    status = library.cublasGemmStridedBatchedEx_64(  # _64 takes sizes of 2^31 and more
        handle, b_op, a_op, whole(m), whole(n), whole(k), ctypes.byref(one),
        pointer(b.data.ptr), dtype, whole(ldb), whole(stride_b),
        pointer(a.data.ptr), dtype, whole(lda), whole(stride_a), ctypes.byref(zero),
        pointer(out.data.ptr), dtype, whole(m), whole(n * m),
        whole(prod(out.shape[:-2])), compute, _DEFAULT_ALGORITHM,
    )  # fmt: skip
    _check(status, f"cublasGemmStridedBatchedEx: {a.shape} @ {b.shape} of {kind}")


def _layout(a: Array) -> tuple[Array, int, int, int]:
    """The array (a copy if cuBLAS cannot read it), 1 if it is transposed, leading dimension, stride of the batch."""
    step = _batch_step(a)
    if step is not None:
        rows, columns = a.shape[-2:]
        row_step, column_step = (stride // a.itemsize for stride in a.strides[-2:])
        if (column_step == 1 or columns == 1) and (row_step >= columns or rows == 1):
            return a, 0, columns if rows == 1 else row_step, step
        if (row_step == 1 or rows == 1) and (column_step >= rows or columns == 1):
            return a, 1, rows if columns == 1 else column_step, step
    a = cupy.array(a, order="C")
    return a, 0, a.shape[-1], a.shape[-2] * a.shape[-1]


def _batch_step(a: Array) -> int | None:
    """The stride of the batch in elements; None if the batch axes are not one strided batch."""
    step, count = 0, 1
    for length, stride in zip(reversed(a.shape[:-2]), reversed(a.strides[:-2]), strict=True):
        if length == 1:
            continue
        if count == 1:
            step = stride // a.itemsize
        elif stride // a.itemsize != step * count:
            return None
        count *= length
    return step if step >= 0 else None  # cuBLAS takes no negative stride


# --- Handles


class _Handle:
    """A cuBLAS handle of this thread for one device."""

    def __init__(self) -> None:
        self.library, self.pointer = load(), ctypes.c_void_p()
        _check(self.library.cublasCreate_v2(ctypes.byref(self.pointer)), "cublasCreate")
        _check(self.library.cublasSetMathMode(self.pointer, _DISALLOW_REDUCED_PRECISION), "cublasSetMathMode")
        self.stream: int | None = None  # the stream the handle is set to
        self.workspaces: dict[int, Array] = {}  # one per stream, since streams may run at the same time

    def set_stream(self, stream: int) -> None:
        if stream not in self.workspaces:
            self.workspaces[stream] = cupy.empty(_WORKSPACE, "uint8")
        _check(self.library.cublasSetStream_v2(self.pointer, ctypes.c_void_p(stream)), "cublasSetStream")
        # After cublasSetStream, which resets the workspace.
        workspace = ctypes.c_void_p(self.workspaces[stream].data.ptr)
        _check(
            self.library.cublasSetWorkspace_v2(self.pointer, workspace, ctypes.c_size_t(_WORKSPACE)),
            "cublasSetWorkspace",
        )
        self.stream = stream


def _handles() -> dict[int, _Handle]:
    handles: dict[int, _Handle] = vars(_mine).setdefault("handles", {})
    return handles


def _current_handle() -> tuple[Any, Any]:
    """The library, and this thread's handle for the current device, set to the current stream."""
    device, stream = cupy.cuda.Device().id, cupy.cuda.get_current_stream().ptr
    handles = _handles()
    if device not in handles:
        handles[device] = _Handle()
    handle = handles[device]
    if handle.stream != stream:
        handle.set_stream(stream)
    return handle.library, handle.pointer


def release_workspace(stream: Any) -> Array | None:
    """Remove and return the workspace of a stream after its capture. Keep it alive as long as the captured graph."""
    handle = _handles().get(cupy.cuda.Device().id)
    if handle is None:
        return None
    if handle.stream == stream.ptr:
        handle.stream = None  # a later stream may get the same address
    return handle.workspaces.pop(stream.ptr, None)


def load() -> Any:
    """The library libcublas. Raises RuntimeError if it is not found."""
    cupy.cuda.device.get_cublas_handle()  # CuPy finds and loads the library
    major = cupy.cuda.runtime.runtimeGetVersion() // 1000
    for file in (f"libcublas.so.{major}", f"cublas64_{major}.dll"):
        try:
            return ctypes.CDLL(file)
        except OSError:
            continue
    raise RuntimeError(
        f"backend 'cupy': cuBLAS for CUDA {major} is not found; install it: pip install 'cupy-cuda{major}x[ctk]'"
    )


def _check(status: int, call: str) -> None:
    if status:
        raise RuntimeError(f"{call}: cuBLAS returned status {status}; cublasStatus_t in its documentation explains it")
