"""CUDA C++ compiled for the CPU: g++ builds a shared library from the kernels and `cuda_on_cpu.h`."""

import ctypes
import fcntl
import hashlib
import itertools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HEADER = Path(__file__).with_name("cuda_on_cpu.h")

COMPILER = "g++"
FLAGS = (
    "-O2", "-g1", "-w", "-shared", "-fPIC", "-pthread",
    "-fvisibility=hidden", "-fno-gnu-unique",  # two modules may have kernels of the same name
    "-fno-exceptions", "-fno-ipa-icf", "-fno-strict-aliasing", "-fno-math-errno", "-U_FORTIFY_SOURCE",
    "-ftrivial-auto-var-init=pattern",  # uninitialized local floats are -1.7e38
    "-fsanitize=bounds,alignment", "-fsanitize-undefined-trap-on-error",
)  # fmt: skip


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "russellgrad-standin"


@cache
def _compiler_version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]


def compiled(source: str, options: Sequence[str]) -> Path:
    """The shared library of `source`, from the cache if it was compiled before.

    Raises:
        RuntimeError: if g++ is missing or does not compile the source.
    """
    compiler = shutil.which(COMPILER)
    if compiler is None:
        raise RuntimeError(
            f"standin: there is no {COMPILER} here to run CUDA kernels on the CPU; install it (package g++)"
        )
    text = f'#include "{HEADER.name}"\n{source}'
    key = "\0".join((text, HEADER.read_text(), *FLAGS, *options, _compiler_version(compiler)))
    library = _cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()}.so"
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    with _lock(library.with_suffix(".lock")):
        if not library.exists():  # another process may have compiled it in the meantime
            _compile(text, [compiler, *FLAGS, *options], library)
    return library


def _compile(text: str, command: Sequence[str], library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:  # renamed when complete
        (Path(folder) / "kernels.cpp").write_text(text)
        command = [*command, f"-I{HEADER.parent}", "-o", "kernels.so", "kernels.cpp"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"standin: {COMPILER} does not compile the kernels:\n{done.stderr}")
        os.replace(Path(folder) / "kernels.so", library)


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Hold the lock of this name in the with block; other processes wait."""
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


DYNAMIC_SHARED = re.compile(r"\bextern\s+__shared__\s+([^;\[\]]+?)\s*\b(\w+)\s*\[\s*\]\s*;")
EXTERN_C = re.compile(r'extern\s+"C"\s+__global__\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?void\s+'
                       r"(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)")  # fmt: skip


def with_registry(code: str, names: Sequence[str]) -> str:
    """The source for g++: dynamic shared memory becomes a pointer, and a table of the kernels is appended."""
    body = DYNAMIC_SHARED.sub(r"\1* \2 = cuda_on_cpu::dynamic_shared();", code)
    entries = "".join(f'    CUDA_ON_CPU_KERNEL("{name}", {name}),\n' for name in names)
    return f"""#line 1 "kernels.cu"
{body}
#line 1 "registry"
extern "C" __attribute__((visibility("default"))) const cuda_on_cpu::Entry cuda_on_cpu_kernels[] = {{
{entries}    {{}}}};
extern "C" __attribute__((visibility("default"))) int cuda_on_cpu_run(cuda_on_cpu::Launch* launch, void (*f)(void**)) {{
    return cuda_on_cpu::run(launch, f);
}}
"""


# --- Mirrors of the structures in cuda_on_cpu.h


class Range(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("bytes", ctypes.c_longlong)]


class Launch(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("seed", ctypes.c_ulonglong),
        ("seconds", ctypes.c_double),
        ("arguments", ctypes.c_void_p),
        ("dynamic", Range),
        ("shared", ctypes.c_void_p),
        ("n_shared", ctypes.c_longlong),
        ("stacks", ctypes.c_void_p),
        ("at_block", ctypes.c_uint * 3),
        ("at_thread", ctypes.c_uint * 3),
        ("signal", ctypes.c_int),
        ("is_write", ctypes.c_int),
        ("address", ctypes.c_void_p),
        ("instruction", ctypes.c_void_p),
        ("text", ctypes.c_char * 512),
    ]


class _Entry(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
        ("call", ctypes.c_void_p),
        ("parameters", ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_char_p))),
    ]


FINE, STUCK, FAULT = range(3)
MOST_THREADS = 1024
STACK, STACK_GUARD = 256 << 10, 4 << 10  # bytes per CUDA thread


@dataclass
class Function:
    """One compiled kernel."""

    library: "Library"
    call: int
    parameters: tuple[str, ...]  # C++ types, as g++ writes them
    shared: list[tuple[int, int]]  # address and bytes of each array in shared memory

    @property
    def shared_bytes(self) -> int:
        return sum(size for _, size in self.shared)


class Library:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._loaded = ctypes.PyDLL(str(path))  # PyDLL keeps the GIL, so one launch runs at a time
        self.run = self._loaded.cuda_on_cpu_run
        self._symbols = [*_symbols(path)]
        table = ctypes.addressof(ctypes.c_char.in_dll(self._loaded, "cuda_on_cpu_kernels"))
        self.base = table - next(start for name, start, _ in self._symbols if name == "cuda_on_cpu_kernels")
        entries = [*self._entries(table)]
        names = {self.base + start: name for name, start, _ in self._symbols}
        self._prefixes = {entry.address: _prefix_of_locals(names[entry.address]) for entry in entries}
        self.functions = {
            entry.name.decode(): Function(self, entry.call, _parameters(entry), [*self._shared_of(entry.address)])
            for entry in entries
        }

    @staticmethod
    def _entries(table: int) -> Iterator[_Entry]:
        for i in itertools.count():
            entry = _Entry.from_address(table + i * ctypes.sizeof(_Entry))
            if not entry.name:
                return
            yield entry

    def _shared_of(self, kernel: int) -> Iterator[tuple[int, int]]:
        """Address and size of the shared arrays of the kernel at an address, and of functions that are not kernels.

        In C++ they are static local variables. Their mangled names start with _ZZ and the function's mangled name.
        """
        others = tuple(prefix for address, prefix in self._prefixes.items() if address != kernel)
        for name, start, size in self._symbols:
            if name.startswith("_ZZ") and not name.startswith((*others, "_ZZN11cuda_on_cpu")):
                yield self.base + start, size

    def line_of(self, instruction: int) -> str:
        """The source line of an instruction, as "line 12: ", or "" if the debugging information does not have it."""
        tool = shutil.which("addr2line")
        if tool is None:
            return ""
        command = [tool, "-i", "-e", str(self.path), hex(instruction - self.base)]
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        lines = re.findall(r"kernels\.cu:(\d+)", found)
        return f"line {lines[0]}: " if lines else ""


def _symbols(library: Path) -> Iterator[tuple[str, int, int]]:
    """Name, address in the file and size of each symbol the library defines."""
    for line in subprocess.run(["nm", "-S", library], capture_output=True, text=True, check=True).stdout.splitlines():
        words = line.split()
        if len(words) == 4:
            yield words[3], int(words[0], 16), int(words[1], 16)


def _prefix_of_locals(mangled: str) -> str:
    """The common prefix of the mangled names of a function's static variables."""
    return f"_ZZ{mangled.removeprefix('_Z') if mangled.startswith('_Z') else f'{len(mangled)}{mangled}'}E"


def _parameters(entry: _Entry) -> tuple[str, ...]:
    listed = entry.parameters()
    return tuple(_type_in(text) for text in itertools.takewhile(bool, (listed[i] for i in itertools.count())))


def _type_in(text: bytes) -> str:
    """The type T in "constexpr const char* pretty() [with T = const float*]"."""
    return re.findall(r"T = (.*?)(?:; .*)?\]$", text.decode())[0]


@cache
def loaded(path: Path) -> Library:
    return Library(path)
