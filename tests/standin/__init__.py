"""A strict stand-in for CuPy: the CuPy backend and its kernels, unchanged, run through it on a machine without a GPU.

Its arrays are opaque wrappers over NumPy arrays. It has only names that the real CuPy has, with parameters that the
real ones take (`compare.py` holds it to that), refuses what the real one refuses, and differs from NumPy where the
real one does. CUDA kernels run on the CPU, a block's threads in random order (`device.py`); streams, graphs and memory
are those of `stream.py`. What it cannot show: speed, the last bits of a device's arithmetic, a race between the threads
of a kernel that no order of its warps and lanes brings out.

Three kinds of refusal:

- TypeError, ValueError, IndexError where the real one raises them, too.
- AttributeError, or TypeError for a keyword, where it has no such name.
- `Misuse` where the real one goes on in silence, to a wrong answer or a hidden copy: an index out of range (it wraps),
  a NumPy array or list as an index, iteration (a launch an element), `a @= b`, a kernel that reads or writes out of
  bounds, a race between streams. It is an AssertionError, so that code that handles other errors does not handle it.

What waits for the device is no error, but is counted: `with record() as log: ...; log.syncs`.
"""

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from . import cublas, device, functions, stream
from .array import ndarray
from .log import Log, Misuse, record

__all__ = ["MODULES", "Log", "Misuse", "install", "load_backend", "ndarray", "record"]


def _module(name: str, **contents: Any) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, loader=None)
    vars(module).update(contents)
    return module


_OF_CUDA = (
    "Device", "Event", "MemoryPointer", "MemoryPool", "Stream", "get_allocator", "get_current_stream",
    "get_elapsed_time", "set_allocator", "using_allocator",
)  # fmt: skip


def _modules() -> dict[str, ModuleType]:
    special = _module("cupyx.scipy.special", erf=functions.erf)
    scipy = _module("cupyx.scipy", special=special)
    cupyx = _module("cupyx", scipy=scipy, scatter_add=functions.scatter_add)
    memory = _module("cupy.cuda.memory", MemoryPointer=stream.MemoryPointer, OutOfMemoryError=stream.OutOfMemoryError)
    graph = _module("cupy.cuda.graph", Graph=stream.Graph)
    cuda = _module(
        "cupy.cuda",
        is_available=lambda: True,
        memory=memory,
        graph=graph,
        **{name: getattr(stream, name) for name in _OF_CUDA},
    )
    cupy = _module(
        "cupy",
        cuda=cuda,
        get_default_memory_pool=stream.get_default_memory_pool,
        RawKernel=device.RawKernel,
        RawModule=device.RawModule,
        **functions.ELEMENTWISE,
        **{name: getattr(functions, name) for name in functions.__all__},
    )
    return {module.__name__: module for module in (cupy, cuda, memory, graph, cupyx, scipy, special)}


MODULES = _modules()


def install() -> None:
    """Put the stand-in where `import cupy` finds it.

    Raises:
        RuntimeError: the real CuPy was imported before.
    """
    if sys.modules.get("cupy", MODULES["cupy"]) is not MODULES["cupy"]:
        raise RuntimeError("standin: cupy was imported already; install the stand-in before anything imports it")
    sys.modules.update(MODULES)
    importlib.import_module("russellgrad.backends.cublas").load = cublas.load  # type: ignore[attr-defined]


_OURS = ("cublas", "cupy_kernels", "cupy_memory", "cupy_backend")


def load_backend() -> dict[str, Any]:
    """The modules of the CuPy backend on the stand-in, by name, beside those that another CuPy may have."""
    package = importlib.import_module("russellgrad.backends")
    names = [*MODULES, *(f"{package.__name__}.{name}" for name in _OURS)]
    kept = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    kept_attributes = {name: vars(package).pop(name) for name in _OURS if name in vars(package)}
    sys.modules.update(MODULES)
    try:
        loaded: dict[str, Any] = {name: importlib.import_module(f"{package.__name__}.{name}") for name in _OURS}
        loaded["cublas"].load = cublas.load
        return loaded
    finally:
        for name in names:
            sys.modules.pop(name, None)
        for name in _OURS:
            vars(package).pop(name, None)
        sys.modules.update(kept)
        vars(package).update(kept_attributes)
