"""CUDA C++ kernels on the CPU: `RawModule` and `RawKernel`, which g++ compiles together with `cuda_on_cpu.h`.

A kernel gets copies of its arrays, each next to guard pages: in one launch at its end, in the next at its start. So an
access out of bounds is an error that names the kernel, block, thread and argument. The order of blocks, warps and lanes
is random, and fixed by the launch's seed (`reseed`).

These are errors, though CuPy accepts them in silence: an array of another dtype than the pointer's, a Python number of
another size than the parameter's, too few or too many arguments, a grid or block of 0 (CuPy makes it 1).
"""

import ctypes
import itertools
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeGuard

import numpy as np

from .array import Host, ndarray, writable
from .library import (
    EXTERN_C,
    FINE,
    MOST_THREADS,
    STACK,
    STUCK,
    Function,
    Launch,
    Range,
    compiled,
    loaded,
    with_registry,
)
from .log import Misuse
from .pages import ALIGNMENT, Region, stacks
from .stream import submit

# The limits of every GPU since sm_80; some have more.
MOST_Z = 64  # threads
MOST_BLOCKS = (2**31 - 1, 65535, 65535)
SHARED_BY_DEFAULT, MOST_SHARED = 48 << 10, 99 << 10  # bytes of a block


# --- Arguments


_DTYPES: dict[str, str] = {
    "bool": "bool", "char": "int8", "signed char": "int8", "unsigned char": "uint8", "short int": "int16",
    "short unsigned int": "uint16", "int": "int32", "unsigned int": "uint32", "long int": "int64",
    "long unsigned int": "uint64", "long long int": "int64", "long long unsigned int": "uint64", "float": "float32",
    "double": "float64", "bf16": "bfloat16", "__nv_bfloat16": "bfloat16",
}  # fmt: skip
_VECTORS = {
    "char": "int8", "uchar": "uint8", "short": "int16", "ushort": "uint16", "int": "int32", "uint": "uint32",
    "longlong": "int64", "ulonglong": "uint64", "float": "float32", "double": "float64",
}  # fmt: skip


def _pointee(parameter: str) -> str | None:
    """The name of a pointer's dtype; None for void*. Raises Misuse for a type without a dtype."""
    element = re.sub(r"\b(const|volatile) ", "", parameter).removesuffix("*").strip()
    if element == "void":
        return None
    vector = re.fullmatch(r"([a-z]+)[234]", element)
    dtype = _VECTORS.get(vector[1]) if vector else _DTYPES.get(element)
    if dtype is None:
        raise Misuse(f"a pointer to {element}: no dtype is known for it")
    return dtype


def _scalar(parameter: str, value: Any) -> bytes:
    """The bytes that CuPy passes for a number: 8 for a Python int or float, a NumPy scalar's own size."""
    dtype = _DTYPES.get(parameter)
    if dtype is None:
        raise Misuse(f"takes {parameter}, which no argument of CuPy's is")
    fits = {bool: "bool", int: "int64", float: "float64"}.get(type(value))
    if fits is None:
        if not isinstance(value, (np.number, np.bool_)):
            raise TypeError(f"Unsupported type {type(value)}")  # as CuPy
        fits = value.dtype.name
    if fits != dtype:
        given = f"{type(value).__name__} {value!r}"
        raise Misuse(
            f"takes {parameter}, but got {given}, of which CuPy makes {fits}: the bytes are read as another type"
        )
    return np.array(value, dtype).tobytes()


@dataclass
class _Extent:
    """The range of host memory of one argument, or of several that share memory."""

    low: int
    high: int
    names: list[str]
    writes: bool


def _extent(position: int, parameter: str, host: Host) -> _Extent:
    low, high = np.lib.array_utils.byte_bounds(host) if host.size else (host.ctypes.data,) * 2
    name = f"argument {position} ({host.dtype} {host.shape})"
    return _Extent(low, high, [name], not parameter.startswith("const "))


def _joined(extents: Sequence[_Extent]) -> list[_Extent]:
    """The extents, with overlapping ones merged, so that arrays that share memory share it in the kernel."""
    joined: list[_Extent] = []
    for extent in sorted(extents, key=lambda e: (e.low, e.high)):
        last = joined[-1] if joined else None
        if last is not None and extent.low < last.high:
            last.high, last.writes = max(last.high, extent.high), last.writes or extent.writes
            last.names += extent.names
        else:
            joined.append(_Extent(extent.low, extent.high, [*extent.names], extent.writes))
    return joined


def _checked(parameters: Sequence[str], args: Any) -> list[ndarray | bytes]:
    """The arguments: arrays unchanged, numbers and null pointers as bytes.

    Raises:
        Misuse: another number of arguments, an array of another dtype, a number of another size.
        TypeError: what CuPy cannot pass.
    """
    if len(args) != len(parameters):
        raise Misuse(f"takes {len(parameters)} arguments, but got {len(args)}: the real one reads beyond its list")
    checked: list[ndarray | bytes] = []
    for i, (parameter, value) in enumerate(zip(parameters, args, strict=True)):
        try:
            checked.append(_checked_one(parameter, value))
        except (Misuse, TypeError) as error:
            raise type(error)(f"argument {i}: {error}") from None
    return checked


def _is_array(arg: ndarray | bytes) -> TypeGuard[ndarray]:
    return isinstance(arg, ndarray)


def _checked_one(parameter: str, value: Any) -> ndarray | bytes:
    if not parameter.endswith("*"):
        if isinstance(value, ndarray):
            raise Misuse(f"takes {parameter} by value, but got an array, of which CuPy passes the address")
        return _scalar(parameter, value)
    if value is None:
        raise Misuse("None: the real one makes no null pointer of it, but crashes; pass 0")
    if type(value) is int and value == 0:
        return bytes(8)
    if not isinstance(value, ndarray):
        raise Misuse(f"takes {parameter}, but got {type(value).__name__} {value!r}: an address of nobody knows what")
    wanted = _pointee(parameter)
    if wanted not in (None, value.dtype.name):
        raise Misuse(f"takes {parameter}, but got an array of {value.dtype}: the real one does not look")
    if not parameter.startswith("const "):
        writable(value)
    return value


# --- Launching

SECONDS = 120.0  # time limit of a kernel
_seeds = itertools.count()


def reseed(seed: int) -> None:
    """Give the next launch this seed, and each later one the next integer. Odd seeds put guards at the arrays' end."""
    global _seeds
    _seeds = itertools.count(seed)


class RawKernel:
    """Stands for cupy.RawKernel; g++ compiles the kernel for the CPU."""

    def __init__(
        self,
        code: str,
        name: str,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        *,
        enable_cooperative_groups: bool = False,
        jitify: Any = None,
    ) -> None:
        _refuse_options(backend, translate_cucomplex, enable_cooperative_groups, jitify)
        self.code, self.name, self.options = code, name, options
        self._names: tuple[str, ...] = (name,)
        self._most_dynamic: int | None = None

    @cached_property
    def _function(self) -> Function:
        source = with_registry(self.code, self._names)
        return loaded(compiled(source, _for_compiler(self.options))).functions[self.name]

    def compile(self, log_stream: Any = None) -> None:
        _ = self._function

    @property
    def shared_size_bytes(self) -> int:
        return self._function.shared_bytes

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        default = SHARED_BY_DEFAULT - self.shared_size_bytes
        return default if self._most_dynamic is None else self._most_dynamic

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, bytes: int) -> None:
        if bytes + self.shared_size_bytes > MOST_SHARED:
            raise Misuse(
                f"{self.name}: {bytes} bytes of dynamic shared memory and {self.shared_size_bytes} of static; "
                f"no more than {MOST_SHARED} are on every card since sm_80"
            )
        self._most_dynamic = bytes

    def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int = 0, stream: Any = None) -> None:
        """Raises Misuse for arguments that CuPy would accept wrongly, and for errors in the kernel."""
        if stream is not None:
            raise NotImplementedError("standin: a kernel on another stream than the current one")
        parameters = self._function.parameters
        with _named(self.name):
            self._check_shared(shared_mem)
            shape = _extents3("grid", grid), _extents3("block", block)
            checked = _checked(parameters, args)
        arrays = [(parameter, arg) for parameter, arg in zip(parameters, checked, strict=True) if _is_array(arg)]
        reads = [array._memory for parameter, array in arrays if parameter.startswith("const ")]
        writes = [array._memory for parameter, array in arrays if not parameter.startswith("const ")]
        hosts = [arg._host if _is_array(arg) else arg for arg in checked]
        submit(self.name, partial(_launch, self.name, self._function, *shape, hosts, shared_mem), reads, writes)

    def _check_shared(self, shared_mem: int) -> None:
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise Misuse(
                f"{shared_mem} bytes of dynamic shared memory, of which a block has "
                f"{self.max_dynamic_shared_size_bytes}; set kernel.max_dynamic_shared_size_bytes"
            )


class RawModule:
    """Stands for cupy.RawModule."""

    def __init__(
        self,
        code: str | None = None,
        *,
        path: str | None = None,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        enable_cooperative_groups: bool = False,
        name_expressions: Sequence[str] | None = None,
        jitify: Any = None,
    ) -> None:
        if (code is None) == (path is None):
            raise TypeError("Exactly one of `code` and `path` keyword arguments must be given.")
        if code is None:
            raise NotImplementedError("standin: a compiled module cannot run on the CPU; pass code=")
        _refuse_options(backend, translate_cucomplex, enable_cooperative_groups, jitify)
        self.code, self.options = code, options
        self.name_expressions = None if name_expressions is None else tuple(name_expressions)
        self._names = (*(self.name_expressions or ()), *EXTERN_C.findall(code))

    def compile(self, log_stream: Any = None) -> None:
        for name in self._names[:1]:
            self.get_function(name)

    def get_function(self, name: str) -> RawKernel:
        if name not in self._names:
            raise RuntimeError(f"CUDA_ERROR_NOT_FOUND: no kernel {name}; this module has {', '.join(self._names)}")
        kernel = RawKernel(self.code, name, self.options)
        kernel._names = self._names
        kernel.compile()  # as CuPy does here
        return kernel


def _refuse_options(backend: str, *others: Any) -> None:
    if backend != "nvrtc" or any(others):
        raise NotImplementedError("standin: only kernels for nvrtc, without cuComplex, cooperative groups or jitify")


def _for_compiler(options: Any) -> list[str]:
    """The NVRTC options that apply to g++."""
    if not isinstance(options, tuple):
        raise TypeError(f"Argument 'options' has incorrect type (expected tuple, got {type(options).__name__})")
    kept = [option for option in options if re.match(r"--?(std=|D)", option)]
    fast = {"--use_fast_math", "-use_fast_math", "-lineinfo", "--generate-line-info", "-default-device"}
    for option in options:
        if option not in kept and option not in fast:
            raise NotImplementedError(f"standin: what {option} means on the CPU is not known")
    standard = [] if any("std=" in option for option in kept) else ["-std=c++17"]
    return standard + [re.sub("^--", "-", option) for option in kept]


@contextmanager
def _named(kernel: str) -> Iterator[None]:
    try:
        yield
    except (Misuse, TypeError) as error:
        raise type(error)(f"{kernel}: {error}") from None


def _extents3(what: str, given: Any) -> tuple[int, int, int]:
    if not isinstance(given, tuple):
        raise TypeError(f"Argument '{what}' has incorrect type (expected tuple, got {type(given).__name__})")
    x, y, z = (*map(int, given), 1, 1)[:3]
    if min(x, y, z) < 1:
        raise Misuse(f"a {what} of {given}: the real one makes 1 of 0, and launches")
    if what == "block" and (x * y * z > MOST_THREADS or z > MOST_Z):
        raise Misuse(f"a block of {given}: a device has at most {MOST_THREADS} threads in one, and {MOST_Z} along z")
    if what == "grid" and any(n > most for n, most in zip((x, y, z), MOST_BLOCKS, strict=True)):
        raise Misuse(f"a grid of {given}: a device has at most {MOST_BLOCKS}")
    return x, y, z


def _launch(
    name: str,
    function: Function,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    args: Sequence[Host | bytes],
    shared_mem: int,
) -> None:
    """Run a kernel on checked arguments. Raises Misuse for an error in it."""
    seed = next(_seeds)
    at_end = bool(seed % 2)
    given = enumerate(zip(function.parameters, args, strict=True))
    extents = _joined([_extent(i, p, arg) for i, (p, arg) in given if not isinstance(arg, bytes)])
    regions = [Region(" and ".join(e.names), e.high - e.low, e.low % ALIGNMENT, at_end) for e in extents]
    dynamic = Region("dynamic shared memory", shared_mem, 0, at_end=True)
    try:
        for extent, region in zip(extents, regions, strict=True):
            ctypes.memmove(region.start, extent.low, region.size)
            if not extent.writes:
                region.forbid_writing()
        values = [arg if isinstance(arg, bytes) else _moved(arg, extents, regions) for arg in args]
        if error := _run(function, grid, block, values, seed, dynamic, regions):
            raise Misuse(f"{name}{error}")
        for extent, region in zip(extents, regions, strict=True):
            if extent.writes:
                ctypes.memmove(extent.low, region.start, region.size)
    finally:
        for region in (*regions, dynamic):
            region.free()


def _moved(array: Host, extents: Sequence[_Extent], regions: Sequence[Region]) -> bytes:
    """The array's address in its region, as the bytes of a pointer."""
    address = array.ctypes.data
    for extent, region in zip(extents, regions, strict=True):
        if extent.low <= address < extent.high or extent.low == address == extent.high:
            return (region.start + address - extent.low).to_bytes(8, sys.byteorder)
    raise AssertionError("an array outside of all extents")


def _run(
    function: Function,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    values: Sequence[bytes],
    seed: int,
    dynamic: Region,
    regions: Sequence[Region],
) -> str | None:
    """Run a kernel. Returns the error and its place, or None."""
    shared = (Range * max(1, len(function.shared)))(*(Range(*place) for place in function.shared))
    buffers = [ctypes.create_string_buffer(value, 16) for value in values]
    pointers = (ctypes.c_void_p * max(1, len(buffers)))(*map(ctypes.addressof, buffers))
    launch = Launch(
        grid=grid,
        block=block,
        seed=seed,
        seconds=SECONDS,
        arguments=ctypes.addressof(pointers),
        dynamic=Range(dynamic.start, dynamic.size),
        shared=ctypes.addressof(shared),
        n_shared=len(function.shared),
        stacks=stacks(),
    )
    status = function.library.run(ctypes.byref(launch), ctypes.c_void_p(function.call))
    if status != FINE:
        where = f", block {tuple(launch.at_block)}, thread {tuple(launch.at_thread)}: "
        return where + (launch.text.decode() if status == STUCK else _fault(function, launch, [*regions, dynamic]))
    missed = next(filter(None, (region.check_margins() for region in (*regions, dynamic))), None)
    return f": writes {missed}" if missed else None


def _fault(function: Function, launch: Launch, regions: Sequence[Region]) -> str:
    return function.library.line_of(launch.instruction or 0) + _why(launch, regions)


def _why(launch: Launch, regions: Sequence[Region]) -> str:
    if launch.signal in (signal.SIGILL, signal.SIGTRAP):
        return "an index beyond the end of a fixed-size array, or a load of an address not aligned to its type"
    if launch.signal == signal.SIGFPE:
        return "an integer division by zero, which on a device gives a number"
    if launch.signal == signal.SIGVTALRM:
        return f"still running after {SECONDS} seconds"
    address = launch.address or 0
    verb = {0: "reads", 1: "writes"}.get(launch.is_write, "touches")
    if stacks() <= address < stacks() + MOST_THREADS * STACK:
        return f"{verb} beyond the {STACK >> 10} KiB that the stack of a thread has here"
    for region in regions:
        if region.holds(address):
            return f"{verb} {region.misses(address)}"
    return f"{verb} address {address:#x}, far from every argument"
