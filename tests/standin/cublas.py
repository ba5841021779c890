"""The C functions of cuBLAS that `backends/cublas.py` calls, on the memory of the stand-in's arrays.

They check more than cuBLAS does, which reads past the end of an array in silence, and allocates a workspace within a
capture if none was set after the stream.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from .array import Host
from .log import Misuse
from .stream import get_current_stream, memory_at, submit

OK, INVALID_VALUE, NOT_SUPPORTED = 0, 7, 15  # of cublasStatus_t

# Values of cudaDataType_t and cublasComputeType_t, the compute types of each dtype, and the precision of the factors.
_DTYPES = {0: "float32", 1: "float64", 2: "float16", 14: "bfloat16"}
_FRACTION_BITS = {68: 23, 70: 52, 75: 7, 77: 10}  # float32, float64, float32 with bfloat16 or TF32 factors
_COMPUTE = {"float32": (68, 75, 77), "float64": (70,), "float16": (68,), "bfloat16": (68,)}


@dataclass
class _Handle:
    stream: int = 0
    workspace: int | None = None
    math_mode: int = 0


class Library:
    """The libcublas of one process."""

    def __init__(self) -> None:
        self._handles: dict[int, _Handle] = {}

    def cublasCreate_v2(self, handle: Any) -> int:
        number = len(self._handles) + 1
        self._handles[number] = _Handle()
        handle._obj.value = number
        return OK

    def cublasSetStream_v2(self, handle: Any, stream: Any) -> int:
        used = self._handles[handle.value]
        used.stream, used.workspace = stream.value or 0, None
        return OK

    def cublasSetMathMode(self, handle: Any, mode: int) -> int:
        self._handles[handle.value].math_mode = mode
        return OK

    def cublasSetWorkspace_v2(self, handle: Any, workspace: Any, size: Any) -> int:
        if not workspace.value or size.value < 32 << 20:
            raise Misuse(f"cuBLAS: a workspace of {size.value} bytes at {workspace.value}; give 32 MiB")
        self._handles[handle.value].workspace = workspace.value
        return OK

    def cublasGemmStridedBatchedEx_64(
        self, handle: Any, op_a: int, op_b: int, m: Any, n: Any, k: Any, alpha: Any,
        a: Any, a_type: int, lda: Any, stride_a: Any, b: Any, b_type: int, ldb: Any, stride_b: Any, beta: Any,
        c: Any, c_type: int, ldc: Any, stride_c: Any, count: Any, compute: int, algorithm: int,
    ) -> int:  # fmt: skip
        """C (m, n) = alpha op(A) op(B) + beta C, column-major, `count` times."""
        m, n, k, lda, ldb, ldc, count = _whole(m, n, k, lda, ldb, ldc, count)
        stride_a, stride_b, stride_c = _whole(stride_a, stride_b, stride_c)
        used = self._handles[handle.value]
        if used.workspace is None:
            raise Misuse("cuBLAS: the handle has no workspace of its own; set one after each change of stream")
        if a_type in (2, 14) and not used.math_mode & 16:
            raise Misuse("cuBLAS: sums may be in half precision; set the math mode that disallows it")
        if min(stride_a, stride_b, stride_c) < 0:
            return INVALID_VALUE
        if not a_type == b_type == c_type or a_type not in _DTYPES or compute not in _COMPUTE[_DTYPES[a_type]]:
            return NOT_SUPPORTED
        rows_a, rows_b = (m if op_a == 0 else k), (k if op_b == 0 else n)
        if min(m, n, k, count) < 1 or lda < rows_a or ldb < rows_b or ldc < m or algorithm != -1:
            return INVALID_VALUE
        dtype = np.dtype(_DTYPES[a_type])
        first = _matrices(a, dtype, count, stride_a, rows_a, k if op_a == 0 else m, lda)
        second = _matrices(b, dtype, count, stride_b, rows_b, n if op_b == 0 else k, ldb)
        result = _matrices(c, dtype, count, stride_c, m, n, ldc)
        scale, keep = alpha._obj.value, beta._obj.value

        memories = [memory_at(pointer.value) for pointer in (a, b, c)]

        def multiply(kept: Any = tuple(memory.host for memory in memories)) -> None:
            left, right = (_rounded(x, compute) for x in (first, second))
            left = left if op_a == 0 else left.swapaxes(1, 2)
            right = right if op_b == 0 else right.swapaxes(1, 2)
            with np.errstate(all="ignore"):
                product = scale * (left @ right)
                result[...] = (product + keep * result if keep else product).astype(dtype)

        if used.stream != get_current_stream().ptr:
            raise Misuse("cuBLAS: the handle is set to another stream than the current one; call cublasSetStream")
        submit("gemm", multiply, memories[:2], [*memories[2:], memory_at(used.workspace)])
        return OK


def _whole(*numbers: Any) -> list[int]:
    """The values of c_int64 arguments. ctypes passes a Python int as a C int of 32 bits."""
    if not all(isinstance(number, ctypes.c_int64) for number in numbers):
        raise Misuse("cuBLAS: sizes, leading axes and strides of a function with _64 are c_int64")
    return [number.value for number in numbers]


def _matrices(pointer: Any, dtype: Any, count: int, stride: int, rows: int, columns: int, leading: int) -> Host:
    """(count, rows, columns) over device memory, column-major."""
    size = dtype.itemsize
    length = ((count - 1) * stride + (columns - 1) * leading + rows) * size
    memory = (ctypes.c_ubyte * length).from_address(pointer.value)
    strides = (stride * size, size, leading * size)
    return np.ndarray((count, rows, columns), dtype, memory, strides=strides)


def _rounded(x: Host, compute: int) -> Host:
    """The factors rounded to the compute type's precision; half precision becomes float32."""
    if x.dtype.itemsize == 2:
        return x.astype(np.float32)
    bits = 23 - _FRACTION_BITS[compute]
    if x.dtype == np.float64 or bits == 0:
        return x
    whole = np.array(x, order="K").view(np.uint32)
    last, half = whole >> np.uint32(bits) & 1, np.uint32(1 << (bits - 1))  # half way goes to the even one
    return ((whole + (half - 1) + last) & np.uint32(2**32 - 2**bits)).view(np.float32)


_library = Library()


def load() -> Library:
    return _library
