"""Matrix products on a CUDA device, by cuBLAS's C interface with a handle of our own.

CuPy's product serves, but for three things: it cannot be captured in a CUDA graph, it copies operands of more than two
axes and views of them, and it does not let one choose how float32 is multiplied. Here a stack of matrices is one
strided batch, transposed operands are read where they lie, and a handle keeps its stream and its workspace through a
capture. Row-major (n, k) @ (k, m) is cuBLAS's column-major (m, k) @ (k, n).
"""

import ctypes
import threading
from math import prod
from typing import Any, TypeAlias

import cupy

Array: TypeAlias = Any
Shape: TypeAlias = tuple[int, ...]

# Of cudaDataType_t and cublasComputeType_t, in CUDA's headers library_types.h and cublas_api.h.
_DATA_TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
_FULL = {"float32": 68, "float64": 70, "float16": 68, "bfloat16": 68}  # halves are summed in float32
_OF_FLOAT32 = {"highest": 68, "high": 77, "medium": 75}  # float32; its factors as TF32; its factors as bfloat16
_DEFAULT_ALGORITHM = -1
_IN_FULL_REDUCTIONS = 16  # of cublasMath_t: partial sums of halves in float32, too
_WORKSPACE = 32 << 20  # bytes: what cuBLAS recommends for Hopper; without one a captured product would allocate

_precision = "highest"
_mine = threading.local()  # a handle may not be used by two threads at once


def set_precision(level: str) -> None:
    """How float32 is multiplied from here on: one of "highest", "high" and "medium"."""
    global _precision
    _precision = level


def takes(a: Array, b: Array) -> bool:
    """Whether `matmul` is for these: both of one float dtype, and neither without axes."""
    return a.dtype == b.dtype and a.dtype.name in _DATA_TYPES and a.ndim > 0 and b.ndim > 0


def matmul(a: Array, b: Array, precision: str | None = None) -> Array:
    """(..., n, k) @ (..., k, m) -> (..., n, m), of float16, bfloat16, float32 or float64; batch axes broadcast.

    One axis (k,) is a row at the left and a column at the right, without which the result is given, as in NumPy.

    Args:
        precision: of float32, in place of the one that `set_precision` chose.

    Raises:
        ValueError: shapes that do not fit. RuntimeError: what cuBLAS refuses.
    """
    if a.ndim == 1 or b.ndim == 1:
        rows, columns = a[None] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b
        out = matmul(rows, columns, precision)  # (..., n, m)
        n, m = out.shape[-2:]
        return out.reshape(out.shape[:-2] + (n,) * (a.ndim > 1) + (m,) * (b.ndim > 1))
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(f"matmul: {a.shape} and {b.shape} do not fit: {a.shape[-1]} is not {b.shape[-2]}")
    batch = _broadcast(a.shape[:-2], b.shape[:-2])
    n, k, m = a.shape[-2], a.shape[-1], b.shape[-1]
    out = cupy.empty((*batch, n, m), a.dtype)
    if out.size == 0:
        return out
    if k == 0:
        out.fill(0)
        return out
    if batch and b.ndim == 2 and (rows := _as_rows(a)) is not None:  # one product instead of one for each in the batch
        _gemm(rows, b, out.reshape(-1, m), precision)
    else:
        _gemm(cupy.broadcast_to(a, (*batch, n, k)), cupy.broadcast_to(b, (*batch, k, m)), out, precision)
    return out


def _broadcast(a: Shape, b: Shape) -> Shape:
    longest = len(a) if len(a) > len(b) else len(b)
    padded = list(zip((1,) * (longest - len(a)) + a, (1,) * (longest - len(b)) + b, strict=True))
    if any(m != n and 1 not in (m, n) for m, n in padded):
        raise ValueError(f"matmul: batch axes {a} and {b}: shapes must be equal or broadcast")
    return tuple(n if m == 1 else m for m, n in padded)


def _as_rows(a: Array) -> Array | None:
    """(..., n, k) as (N, k), if that is a view."""
    return a.reshape(-1, a.shape[-1]) if a.flags.c_contiguous else None


def _gemm(a: Array, b: Array, out: Array, precision: str | None) -> None:
    """One product, or one for each in the batch; all three with the same batch axes."""
    (a, a_op, lda, stride_a), (b, b_op, ldb, stride_b) = _layout(a), _layout(b)
    n, k, m = a.shape[-2], a.shape[-1], b.shape[-1]
    kind = out.dtype.name
    compute = _OF_FLOAT32[precision or _precision] if kind == "float32" else _FULL[kind]
    scalar = ctypes.c_double if kind == "float64" else ctypes.c_float
    one, zero = scalar(1), scalar(0)
    dtype, pointer, whole = _DATA_TYPES[kind], ctypes.c_void_p, ctypes.c_int64
    library, handle = _prepared()
    status = library.cublasGemmStridedBatchedEx_64(  # sizes of 2^31 and more do not fit the one without _64
        handle, b_op, a_op, whole(m), whole(n), whole(k), ctypes.byref(one),
        pointer(b.data.ptr), dtype, whole(ldb), whole(stride_b),
        pointer(a.data.ptr), dtype, whole(lda), whole(stride_a), ctypes.byref(zero),
        pointer(out.data.ptr), dtype, whole(m), whole(n * m),
        whole(prod(out.shape[:-2])), compute, _DEFAULT_ALGORITHM,
    )  # fmt: skip
    _check(status, f"cublasGemmStridedBatchedEx: {a.shape} @ {b.shape} of {kind}")


def _layout(a: Array) -> tuple[Array, int, int, int]:
    """The array, or a copy of it where cuBLAS could not read it; transposed or not; leading axis; step of the batch."""
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
    """Elements from one matrix of the batch to the next; None if the batch axes have no common step."""
    step, count = 0, 1
    for length, stride in zip(reversed(a.shape[:-2]), reversed(a.strides[:-2]), strict=True):
        if length == 1:
            continue
        if count == 1:
            step = stride // a.itemsize
        elif stride // a.itemsize != step * count:
            return None
        count *= length
    return step if step >= 0 else None  # which cuBLAS may refuse


# --- Handles


class _Handle:
    """This thread's handle for one device."""

    def __init__(self) -> None:
        self.library, self.pointer = load(), ctypes.c_void_p()
        _check(self.library.cublasCreate_v2(ctypes.byref(self.pointer)), "cublasCreate")
        _check(self.library.cublasSetMathMode(self.pointer, _IN_FULL_REDUCTIONS), "cublasSetMathMode")
        self.stream: int | None = None  # that it is set to
        self.workspaces: dict[int, Array] = {}  # for each stream its own: what runs on two may run at the same time

    def set_stream(self, stream: int) -> None:
        if stream not in self.workspaces:
            self.workspaces[stream] = cupy.empty(_WORKSPACE, "uint8")
        _check(self.library.cublasSetStream_v2(self.pointer, ctypes.c_void_p(stream)), "cublasSetStream")
        # After the stream: setting that puts the library's own workspace back.
        workspace = ctypes.c_void_p(self.workspaces[stream].data.ptr)
        _check(
            self.library.cublasSetWorkspace_v2(self.pointer, workspace, ctypes.c_size_t(_WORKSPACE)),
            "cublasSetWorkspace",
        )
        self.stream = stream


def _handles() -> dict[int, _Handle]:
    handles: dict[int, _Handle] = vars(_mine).setdefault("handles", {})
    return handles


def _prepared() -> tuple[Any, Any]:
    """The library, and this thread's handle for the device and the stream in use."""
    device, stream = cupy.cuda.Device().id, cupy.cuda.get_current_stream().ptr
    handles = _handles()
    if device not in handles:
        handles[device] = _Handle()
    handle = handles[device]
    if handle.stream != stream:
        handle.set_stream(stream)
    return handle.library, handle.pointer


def release_workspace(stream: Any) -> Array | None:
    """The workspace of a stream that this thread multiplies on no more; what was recorded there goes on using it."""
    handle = _handles().get(cupy.cuda.Device().id)
    if handle is None:
        return None
    if handle.stream == stream.ptr:
        handle.stream = None  # another stream may come to have this one's address
    return handle.workspaces.pop(stream.ptr, None)


def load() -> Any:
    """libcublas. Raises RuntimeError where it is not found."""
    cupy.cuda.device.get_cublas_handle()  # CuPy finds the library, wherever it was installed, and loads it
    major = cupy.cuda.runtime.runtimeGetVersion() // 1000
    for file in (f"libcublas.so.{major}", f"cublas64_{major}.dll"):
        try:
            return ctypes.CDLL(file)
        except OSError:
            continue
    raise RuntimeError(
        f"backend 'cupy': cuBLAS for CUDA {major} is not found; install it with CuPy: cupy-cuda{major}x[ctk]"
    )


def _check(status: int, call: str) -> None:
    if status:
        raise RuntimeError(f"{call}: cuBLAS answers with status {status} (see cublasStatus_t in its documentation)")
