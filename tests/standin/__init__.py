"""A strict stand-in for CuPy, which runs the CuPy backend and its kernels unchanged on a machine without a GPU.

Its arrays are opaque wrappers over NumPy arrays. It has only names and parameters that the real CuPy has (`compare.py`
checks this), raises where CuPy raises, and differs from NumPy where CuPy does. CUDA kernels run on the CPU, with a
block's threads in random order (`device.py`); `stream.py` has streams, graphs and memory. The elementwise functions
come from the contract, `russellgrad.backend.ELEMENTWISE`. The stand-in cannot show speed, the last bits of a device's
arithmetic, or a race between the threads of a kernel that shows in no order of its warps and lanes.

There are three kinds of errors:

- TypeError, ValueError and IndexError where the real CuPy raises them.
- AttributeError for a name, and TypeError for a keyword, that CuPy does not have.
- `Misuse` where CuPy silently gives a wrong result or makes a hidden copy: an index out of range (CuPy wraps it), a
  NumPy array or list as an index, iteration (one launch per element), `a @= b`, a kernel that reads or writes out of
  bounds, a race between streams. It is an AssertionError, so code that handles other errors does not catch it.

Waiting for the device is not an error, but is counted: `with record() as log: ...; log.syncs`.
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
    cupyx = _module("cupyx", scipy=scipy)
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
        __version__="14.2.0",
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
    """Make `import cupy` find the stand-in. Raises RuntimeError if the real CuPy was imported before."""
    if sys.modules.get("cupy", MODULES["cupy"]) is not MODULES["cupy"]:
        raise RuntimeError("standin: cupy was imported already; install the stand-in before anything imports it")
    sys.modules.update(MODULES)
    importlib.import_module("russellgrad.backends.cublas").load = cublas.load  # type: ignore[attr-defined]


_OURS = ("cublas", "cupy_kernels", "cupy_memory", "cupy_backend")


def load_backend() -> dict[str, Any]:
    """The modules of the CuPy backend, by name, loaded on the stand-in. Modules on another CuPy stay loaded."""
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
