"""CUDA C++ kernels on the CPU: correct kernels give correct results, and each planted error is reported."""

import re
import shutil
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from tests.helpers import assert_close, once_on_cupy, rng
from tests.standin import MODULES, Misuse, device, library, record

cupy: Any = MODULES["cupy"]
Array = Any

pytestmark = [
    once_on_cupy,
    pytest.mark.skipif(
        shutil.which(library.COMPILER) is None, reason="no g++ here, which runs CUDA kernels on the CPU; install it"
    ),
]


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    device.reseed(0)


def kernel(code: str, name: str = "f", *names: str) -> Any:
    return cupy.RawModule(code=code, name_expressions=names or (name,)).get_function(name)


def on_device(a: Any, dtype: str = "float32") -> Array:
    return cupy.asarray(np.asarray(a, dtype))


# --- Correct kernels

COMMON = r"""
__device__ __forceinline__ float warp_sum(float x) {
    for (int offset = 16; offset; offset >>= 1) x += __shfl_xor_sync(0xffffffff, x, offset);
    return x;
}
__device__ float warp_max(float x) {
    for (int offset = 16; offset; offset >>= 1) x = max(x, __shfl_xor_sync(0xffffffffu, x, offset));
    return x;
}
"""

SOFTMAX = (
    COMMON
    + r"""
// One block per row.
template <typename T, int THREADS>
__global__ void __launch_bounds__(THREADS) softmax(const T* __restrict__ x, T* __restrict__ y, long long n) {
    __shared__ float parts[THREADS / 32];
    extern __shared__ __align__(16) float row[];
    for (long long i = threadIdx.x; i < n; i += THREADS) row[i] = (float)x[blockIdx.x * n + i];
    float top = -3.0e38f;
    for (long long i = threadIdx.x; i < n; i += THREADS) top = fmaxf(top, row[i]);
    top = warp_max(top);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = top;
    __syncthreads();
    for (int w = 0; w < THREADS / 32; ++w) top = fmaxf(top, parts[w]);
    BARRIER
    float sum = 0.0f;
    for (long long i = threadIdx.x; i < n; i += THREADS) sum += row[i] = expf(row[i] - top);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0.0f;
    for (int w = 0; w < THREADS / 32; ++w) sum += parts[w];
    for (long long i = threadIdx.x; i < n; i += THREADS) y[blockIdx.x * n + i] = (T)(row[i] / sum);
}
"""
)
SOFTMAX_NAMES = ("softmax<float, 128>", "softmax<double, 32>")


def softmax(code: str, name: str, threads: int, x: Array, *options: str) -> Array:
    y = cupy.empty_like(x)
    run = cupy.RawModule(code=code, options=options, name_expressions=SOFTMAX_NAMES).get_function(name)
    run((x.shape[0],), (threads,), (x, y, x.shape[1]), shared_mem=4 * x.shape[1])
    return y.get()


def softmax_error(code: str, name: str, threads: int, dtype: str, *options: str) -> float:
    x = rng().normal(size=(5, 300)).astype(dtype)
    e = np.exp(x - x.max(1, keepdims=True))
    return float(
        np.abs(softmax(code, name, threads, on_device(x, dtype), *options) - e / e.sum(1, keepdims=True)).max()
    )


@pytest.mark.parametrize(
    ("name", "threads", "dtype"), [(SOFTMAX_NAMES[0], 128, "float32"), (SOFTMAX_NAMES[1], 32, "float64")]
)
def test_softmax_kernel(name: str, threads: int, dtype: str) -> None:
    code = SOFTMAX.replace("BARRIER", "__syncthreads();")
    for _ in range(20):
        assert softmax_error(code, name, threads, dtype) < 1e-6  # float accumulation


def test_softmax_kernel_with_ucontext_fibers() -> None:
    code = SOFTMAX.replace("BARRIER", "__syncthreads();")
    assert softmax_error(code, SOFTMAX_NAMES[0], 128, "float32", "-DCUDA_ON_CPU_UCONTEXT") < 1e-6


def test_a_missing_barrier_gives_wrong_numbers_under_some_seeds() -> None:
    code = SOFTMAX.replace("BARRIER", "")
    errors = [softmax_error(code, SOFTMAX_NAMES[0], 128, "float32") for _ in range(20)]
    wrong = sum(not error < 1e-3 for error in errors)
    assert wrong > 3


def test_a_missing_warp_barrier_gives_wrong_numbers_under_some_seeds() -> None:
    code = """extern "C" __global__ void f(float* y) {
        __shared__ float s[32];
        s[threadIdx.x] = threadIdx.x;
        WAIT
        y[threadIdx.x] = s[(threadIdx.x + 1) % 32];
    }"""
    results = {}
    for wait in ("", "__syncwarp();", "__syncthreads();"):
        right = []
        for _ in range(10):
            y = cupy.empty((32,), "float32")
            kernel(code.replace("WAIT", wait))((1,), (32,), (y,))
            right.append(bool((y.get() == (np.arange(32) + 1) % 32).all()))
        results[wait] = right
    assert all(results["__syncwarp();"]) and all(results["__syncthreads();"])
    assert not all(results[""])


def test_thread_and_block_indices_in_three_dimensions() -> None:
    code = """extern "C" __global__ void f(int* y) {
        int t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
        int b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
        y[b * blockDim.x * blockDim.y * blockDim.z + t] += b * 1000 + t + 1;
    }"""
    y = cupy.zeros((24 * 30,), "int32")
    with record() as log:
        kernel(code)((2, 3, 4), (5, 3, 2), (y,))
    assert log.launches == {"f": 1}
    assert_close(y.get().reshape(24, 30), (np.arange(24)[:, None] * 1000 + np.arange(30) + 1).astype("int32"))


EXPRESSIONS: dict[str, Callable[[Array], Array]] = {
    "__shfl_sync(m, lane, 3)": lambda i: 3 + 0 * i,
    "__shfl_sync(m, lane, 3, 8)": lambda i: i // 8 * 8 + 3,
    "__shfl_xor_sync(m, lane, 5)": lambda i: i ^ 5,
    "__shfl_down_sync(m, lane, 4)": lambda i: np.where(i + 4 < 32, i + 4, i),
    "__shfl_down_sync(m, lane, 4, 16)": lambda i: np.where(i % 16 + 4 < 16, i + 4, i),
    "__shfl_up_sync(m, lane, 4)": lambda i: np.where(i >= 4, i - 4, i),
    "__shfl_up_sync(m, lane, 4, 16)": lambda i: np.where(i % 16 >= 4, i - 4, i),
    "(int)(__shfl_xor_sync(m, lane * 1e10, 1) / 1e10)": lambda i: i ^ 1,
    "(int)(__shfl_xor_sync(m, lane * 10000000000LL, 1) / 10000000000LL)": lambda i: i ^ 1,
    "(int)(__shfl_down_sync(m, lane * 0.5f, 1) * 2)": lambda i: np.minimum(i + 1, 31),
    "(int)(__ballot_sync(m, lane < 3))": lambda i: 7 + 0 * i,
    "__any_sync(m, lane == 30)": lambda i: 1 + 0 * i,
    "__any_sync(m, lane == 33)": lambda i: 0 * i,
    "__all_sync(m, lane < 32)": lambda i: 1 + 0 * i,
    "__all_sync(m, lane < 31)": lambda i: 0 * i,
    "__syncthreads_count(lane < 5)": lambda i: 5 + 0 * i,
    "__syncthreads_or(lane == 5)": lambda i: 1 + 0 * i,
    "__syncthreads_and(lane != 5)": lambda i: 0 * i,
    "(lane < 16 ? __shfl_xor_sync(0xffffu, lane, 1) : __shfl_xor_sync(0xffff0000u, lane, 2))": lambda i: np.where(
        i < 16, i ^ 1, i ^ 2
    ),
    "atomicAdd(y + 32, 1) * 0 + __float_as_int(__int_as_float(lane))": lambda i: i,
    "__float2int_rn(lane + 0.5f)": lambda i: np.rint(i + 0.5),
    "__float2int_rz(-lane - 0.5f)": lambda i: -i,
    "(int)__umul64hi((unsigned long long)lane << 32, 1ull << 33)": lambda i: 2 * i,
    "(int)__umulhi(lane << 16, 1u << 17)": lambda i: 2 * i,
    "__popc(lane)": lambda i: np.array([int(n).bit_count() for n in i]),
    "__clz(lane)": lambda i: np.array([32 - int(n).bit_length() for n in i]),
    "(int)make_float4(1, 2, 3, lane).w": lambda i: i,
    "(int)(fmaf(lane, 2.0f, 1.0f) + rsqrtf(4.0f) * 2)": lambda i: 2 * i + 2,
    "(int)(erff(0.0f) + tanhf(0.0f) + __expf(0.0f) + lane)": lambda i: i + 1,
}


def test_device_functions() -> None:
    """Compares the value of each expression in the 32 lanes of a warp; `i` is the lane index."""
    names = [f"f{n}" for n in range(len(EXPRESSIONS))]
    code = "".join(
        f"""extern "C" __global__ void {name}(int* y) {{
            int lane = threadIdx.x;
            unsigned m = 0xffffffff;
            y[lane] = {expression};
        }}"""
        for name, expression in zip(names, EXPRESSIONS, strict=True)
    )
    module = cupy.RawModule(code=code)
    for name, (expression, expected) in zip(names, EXPRESSIONS.items(), strict=True):
        y = cupy.zeros((33,), "int32")
        module.get_function(name)((1,), (32,), (y,))
        assert_close(y.get()[:32], np.asarray(expected(np.arange(32))).astype("int32"), what=expression)


def test_subnormals_are_flushed_within_kernels_only() -> None:
    code = 'extern "C" __global__ void f(float* x) { x[threadIdx.x] *= threadIdx.x ? 2.0f : 0.25f; }'
    x = on_device([1.2e-38, 1e-40])
    kernel(code)((1,), (2,), (x,))
    np.testing.assert_array_equal(x.get(), [0.0, 0.0])
    assert np.float32(1.2e-38) * np.float32(0.25) > 0


def test_overlapping_arrays_share_memory_in_a_kernel() -> None:
    code = 'extern "C" __global__ void f(const int* x, int* y) { for (int i = 0; i < 5; ++i) y[i] = x[i] + 1; }'
    for _ in range(2):
        a = on_device([0, 9, 9, 9, 9, 9], "int32")
        kernel(code)((1,), (1,), (a[:5], a[1:]))
        np.testing.assert_array_equal(a.get(), [0, 1, 2, 3, 4, 5])


def test_kernels_ignore_strides() -> None:
    code = 'extern "C" __global__ void f(const int* x, int* y) { y[threadIdx.x] = x[threadIdx.x]; }'
    a, y = on_device([[1, 2, 3], [4, 5, 6]], "int32"), cupy.empty((3, 2), "int32")
    kernel(code)((1,), (6,), (a.T, y))
    np.testing.assert_array_equal(y.get(), [[1, 2], [3, 4], [5, 6]])


def test_zero_as_an_argument_is_a_null_pointer() -> None:
    code = 'extern "C" __global__ void f(const int* x, const int* p, int* y) { *y = p ? *p : 7; }'
    y = cupy.empty((1,), "int32")
    kernel(code)((1,), (1,), (cupy.empty((0,), "int32"), 0, y))
    assert y.tolist() == [7]


def test_scalar_arguments() -> None:
    code = """extern "C" __global__ void f(double* y, long long a, double b, bool c, int d, float e, unsigned short g) {
        y[0] = a + b + c + d + e + g;
    }"""
    y = cupy.empty((1,))
    kernel(code)((1,), (1,), (y, 2**40, 0.5, True, np.int32(3), np.float32(0.25), np.uint16(4)))
    assert y.tolist() == [2**40 + 8.75]


def test_bfloat16_arguments() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    code = """struct bf16 { unsigned short bits; };
    template <typename T> __global__ void f(const T* x, float* y) {
        y[threadIdx.x] = __uint_as_float((unsigned)x[threadIdx.x].bits << 16);
    }"""
    x, y = rng().normal(size=5).astype(ml_dtypes.bfloat16), cupy.empty((5,), "float32")
    kernel(code, "f<bf16>")((1,), (5,), (cupy.asarray(x), y))
    np.testing.assert_array_equal(y.get(), x.astype("float32"))
    with pytest.raises(Misuse, match=r"argument 0: takes const bf16\*, but got an array of float32"):
        kernel(code, "f<bf16>")((1,), (5,), (y, y))


def test_kernels_of_the_same_name_in_two_modules() -> None:
    code = """template <typename T> __global__ void f(T* y) { __shared__ T s[1]; s[0] = NUMBER; y[0] = s[0]; }"""
    one, two = (kernel(code.replace("NUMBER", n), "f<int>") for n in "12")
    y = cupy.empty((1,), "int32")
    for run, expected in ((one, 1), (two, 2), (one, 1)):
        run((1,), (1,), (y,))
        assert y.tolist() == [expected]


# --- Faults in kernels: undefined behavior in CUDA is reported for every seed

BEYOND = "an index beyond the end of a fixed-size array"
FAULTS: dict[str, tuple[str, str]] = {
    "reads beyond the end": (
        "y[t] = x[t + 1];",
        r"^fault0, block \(0, 0, 0\), thread \(63, 0, 0\): line 4: reads 0 bytes after the end of argument 0 \(float32",
    ),
    "reads before the start": (
        "y[t] = x[t - 1];",
        r"\(0, 0, 0\): line 4: reads 4 bytes before the start of argument 0",
    ),
    "reads far away": ("y[t] = x[t + 1000000];", r"line 4: reads \d+ bytes after the end of argument 0"),
    "writes beyond the end": ("y[t + 1] = x[t];", r": (line 4: )?writes 0 bytes after the end of argument 1"),
    "writes before the start": ("y[t - 1] = x[t];", r": (line 4: )?writes 4 bytes before the start of argument 1"),
    "writes through const": ("((float*)x)[t] = 1.0f;", r"line 4: writes argument 0 .*, whose pointer is const"),
    "dynamic shared": (
        "extern __shared__ float s[]; s[t + 1] = 1.0f; y[t] = s[t];",
        "0 bytes after the end of dynamic",
    ),
    "static shared, written": ("__shared__ float s[64]; s[t + k] = 1.0f; y[t] = s[t];", BEYOND),
    "static shared, read": ("__shared__ float s[64]; s[t] = 1.0f; y[t] = s[t + k];", BEYOND),
    "an array in registers": ("float r[4] = {}; r[t % 4 + k] = 1.0f; y[t] = r[0];", BEYOND),
    "an unaligned load": ("y[t] = ((const float4*)(x + k))->x;", "a load of an address not aligned to its type"),
    "a division by zero": ("y[t] = t / (int)(k - 1);", "an integer division by zero"),
    "a deep recursion": ("y[t] = deep(1 << 20);", r"line 2: .* the stack of a thread"),
    "a barrier in a branch": (
        "if (t < 32) __syncthreads(); y[t] = 0;",
        r"line 4: waits at __syncthreads for thread \(63, 0, 0\), which has returned",
    ),
    "two different barriers": (
        "if (t < 40)\n__syncthreads();\nelse\n__syncthreads();",
        r"waits at __syncthreads for thread \(0, 0, 0\), which waits at the __syncthreads of line 5",
    ),
    "a shuffle in a branch": (
        "if (t % 2) y[t] = __shfl_xor_sync(0xffffffff, 1.0f, 2); else __syncthreads();",
        "waits with mask 0xffffffff for lane 30, which waits at the __syncthreads of line 4",
    ),
    "a shuffle from a returned lane": (
        "if (t < 8) return; y[t] = __shfl_sync(0xffffffff, 1.0f, 0);",
        "line 4: shuffles from lane 0, which has returned",
    ),
    "two different shuffles": (
        "if (t % 2)\ny[t] = __shfl_xor_sync(0xffffffff, 1.0f, 2);\nelse y[t] = __shfl_xor_sync(0xffffffff, 2.0f, 2);",
        "waits with mask 0xffffffff for lane 31, which waits at line 5, mask 0xffffffff",
    ),
    "a mask without the lane": ("y[t] = __shfl_sync(0xff, 1.0f, 0);", "mask 0x000000ff lacks the lane itself, 8"),
    "a product without a lane": (
        "unsigned a[4] = {}; float c[4] = {}; if (t % 32 != 3) mma_bf16(c, a, 0, 0); y[t] = c[0];",
        "line 4: an instruction of a whole warp, without lane 3, which has returned",
    ),
    "a product while a lane waits": (
        "unsigned a[4] = {}; float c[4] = {}; if (t % 32 != 3) mma_bf16(c, a, 0, 0);\n__syncwarp();",
        "for lane 3, which waits at line 5",
    ),
    "an unaligned row of a matrix": (
        "alignas(16) __shared__ short s[512]; unsigned a[4]; ldmatrix(a, s + 4 * t); y[t] = a[0];",
        "a load of an address not aligned to its type",
    ),
    "uninitialized static shared memory": ("__shared__ float s[64]; if (t) s[t] = 0; y[t] = s[t];", "nan"),
    "uninitialized dynamic shared memory": ("extern __shared__ float s[]; y[t] = s[t];", "nan"),
    "uninitialized shared memory of a function": ("y[t] = own(t);", "nan"),
    "uninitialized output": ("if (t) y[t] = 0;", "nan"),
}


@cache
def faults() -> dict[str, Any]:
    """A kernel for each fault, with the faulty statement on line 4, and a correct kernel."""
    names = [f"fault{n}" for n in range(len(FAULTS))]
    code = """
        __device__ __noinline__ float deep(int n) { volatile float x = n; return n ? deep(n - 1) + x : x; }
        __device__ __noinline__ float own(int t) { __shared__ float s[64]; if (t) s[t] = 0; return s[t]; }
        extern "C" __global__ void right(float* y) { y[threadIdx.x] = 1; }"""
    for name, (statement, _) in zip(names, FAULTS.values(), strict=True):
        code += f"""
#line 4
    extern "C" __global__ void {name}(const float* x, float* y, long long k) {{ int t = threadIdx.x; {statement} }}"""
    module, kinds = cupy.RawModule(code=code), (*FAULTS, "right")
    return {kind: module.get_function(name) for kind, name in zip(kinds, (*names, "right"), strict=True)}


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_reported(case: str, seed: int) -> None:
    _, message = FAULTS[case]
    x, y = cupy.ones((64,), "float32"), cupy.empty((64,), "float32")
    device.reseed(seed)
    error = error_of(lambda: faults()[case]((1,), (64,), (x, y, 1), shared_mem=256))
    if error is None:  # the read hit padding next to the array, or memory that was never written
        assert message == "nan" or case.startswith("reads")
        assert np.isnan(y.get()).any()
    else:
        assert re.search(message, error)
    faults()["right"]((1,), (64,), (y,))  # a later launch works
    assert y.get().all()


def error_of(call: Callable[[], Any]) -> str | None:
    try:
        call()
    except Misuse as error:
        return str(error)
    return None


@pytest.mark.parametrize("case", ["reads before the start", "reads beyond the end"])
def test_each_end_of_an_array_is_guarded_in_alternate_launches(case: str) -> None:
    f, arrays = faults()[case], (cupy.ones((64,), "float32"), cupy.empty((64,), "float32"), 1)
    errors = [error_of(lambda: f((1,), (64,), arrays)) is not None for _ in range(4)]
    assert errors == [case == "reads before the start", case == "reads beyond the end"] * 2


def test_a_kernel_that_does_not_end_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    f = kernel('extern "C" __global__ void f(volatile int* y) { while (*y == 0) {} }')
    monkeypatch.setattr(device, "SECONDS", 0.2)
    with pytest.raises(Misuse, match=r"f, block \(0, 0, 0\), thread \(\d, 0, 0\): (line 1: )?still running after 0.2"):
        f((1,), (4,), (cupy.zeros((1,), "int32"),))


# --- Launches that are refused

TAKES = 'extern "C" __global__ void f(const float* x, long long n, double a, bool b, int i) {}'

ARGS: tuple[Any, ...] = (cupy.ones((4,), "float32"), 1, 1.0, True, np.int32(1))
BAD_ARGUMENTS: dict[str, tuple[int, Any, str]] = {
    "another dtype": (0, cupy.ones((4,)), "takes const float*, but got an array of float64"),
    "a number for an array": (0, 5, "takes const float*, but got int 5"),
    "None for an array": (0, None, "None: the real one makes no null pointer of it"),
    "a NumPy array": (0, np.ones(4, "float32"), "takes const float*, but got ndarray"),
    "float for long long": (1, 1.0, "takes long long int, but got float 1.0, of which CuPy makes float64"),
    "an array for a number": (1, ARGS[0], "takes long long int by value, but got an array"),
    "NumPy's int32 for long long": (1, np.int32(1), "takes long long int, but got int32"),
    "int for double": (2, 1, "takes double, but got int 1"),
    "int for bool": (3, 1, "takes bool, but got int 1"),
    "int for int": (4, 1, "takes int, but got int 1, of which CuPy makes int64"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_an_argument_of_the_wrong_type_raises(case: str) -> None:
    place, value, message = BAD_ARGUMENTS[case]
    args = [*ARGS]
    args[place] = value
    with pytest.raises(Misuse, match=re.escape(f"f: argument {place}: {message}")):
        kernel(TAKES)((1,), (1,), tuple(args))


def test_a_wrong_number_of_arguments_raises() -> None:
    for args in (ARGS[:-1], (*ARGS, 1)):
        with pytest.raises(Misuse, match=f"f: takes 5 arguments, but got {len(args)}"):
            kernel(TAKES)((1,), (1,), args)
    with pytest.raises(TypeError, match="f: argument 1: Unsupported type <class 'str'>"):
        kernel(TAKES)((1,), (1,), (ARGS[0], "1", *ARGS[2:]))


@pytest.mark.parametrize(
    ("grid", "block", "message"),
    [
        ((0,), (1,), "a grid of (0,): the real one makes 1 of 0"),
        ((1,), (4, 0), "a block of (4, 0): the real one makes 1 of 0"),
        ((1,), (32, 33), "at most 1024 threads"),
        ((1,), (1, 1, 65), "64 along z"),
        ((1, 65536), (1,), "a grid of (1, 65536): a device has at most"),
    ],
)
def test_an_invalid_grid_or_block_raises(grid: Any, block: Any, message: str) -> None:
    with pytest.raises(Misuse, match=re.escape(message)):
        kernel(TAKES)(grid, block, ARGS)


def test_a_grid_must_be_a_tuple() -> None:
    with pytest.raises(TypeError, match="expected tuple, got list"):
        kernel(TAKES)([1], (1,), ARGS)


def test_a_broadcast_view_as_output_raises() -> None:
    f = kernel('extern "C" __global__ void f(float* y) {}')
    with pytest.raises(Misuse, match="broadcast view"):
        f((1,), (1,), (cupy.broadcast_to(cupy.ones((1,), "float32"), (3,)),))


def test_shared_memory_beyond_48_kib_must_be_requested() -> None:
    f = kernel("""extern "C" __global__ void f(float* y) {
        __shared__ float more[1024];
        extern __shared__ float s[];
        s[threadIdx.x * 16] = more[threadIdx.x] = threadIdx.x;
        y[threadIdx.x] = s[threadIdx.x * 16] + more[threadIdx.x];
    }""")
    assert f.shared_size_bytes == 4096
    assert f.max_dynamic_shared_size_bytes == 44 << 10
    y = cupy.empty((1024,), "float32")
    with pytest.raises(Misuse, match=r"set kernel\.max_dynamic_shared_size_bytes"):
        f((1,), (1024,), (y,), shared_mem=64 << 10)
    with pytest.raises(Misuse, match=f"no more than {99 << 10} are on every card"):
        f.max_dynamic_shared_size_bytes = 96 << 10
    f.max_dynamic_shared_size_bytes = 64 << 10
    f((1,), (1024,), (y,), shared_mem=64 << 10)
    np.testing.assert_array_equal(y.get(), 2 * np.arange(1024))


def test_get_function_and_compilation_errors() -> None:
    module = cupy.RawModule(code='extern "C" __global__ void f(float* y) {}')
    assert module.get_function("f").name == "f"
    with pytest.raises(RuntimeError, match="NOT_FOUND: no kernel g; this module has f"):
        module.get_function("g")
    with pytest.raises(RuntimeError, match="does not compile"):
        cupy.RawKernel('extern "C" __global__ void f(float* y) { y = z; }', "f").compile()
    with pytest.raises(TypeError, match="Exactly one"):
        cupy.RawModule()
    with pytest.raises(TypeError, match="expected tuple"):
        cupy.RawModule(code="", options=["-std=c++17"], name_expressions=("f",)).get_function("f")


@pytest.mark.parametrize("word", ["INFINITY", "NAN", "sizeof(uint32_t)", "M_PI"])
def test_names_from_standard_headers_are_not_defined(word: str) -> None:
    """CuPy compiles kernels without standard headers."""
    with pytest.raises(RuntimeError, match="poisoned"):
        kernel(f'extern "C" __global__ void f(float* y) {{ y[0] = {word}; }}')


def test_without_gcc_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match=r"no g\+\+ here.*install it"):
        kernel(TAKES)
