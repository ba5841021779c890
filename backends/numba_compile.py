"""Compilation of kernels by Numba, for the Numba backend."""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import numpy as np

try:
    import numba
except ImportError as error:
    raise ImportError(
        f"backend 'numba': Numba cannot be imported ({error}); install it: pip install 'russellgrad[fast]', "
        "or in a checkout pip install -e '.[fast]'"
    ) from error

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])


def compiled(*fastmath: str) -> Callable[[_Kernel], _Kernel]:
    """Decorator that compiles a kernel at its first call and caches it on disk for later processes.

    `fastmath` lists flags of LLVM that preserve nan and inf: "contract" (fused multiply-add), and "reassoc" (reordered
    sums, needed for SIMD), which must not be used where the code relies on exact rounding.
    """

    def decorate(kernel: _Kernel) -> _Kernel:
        options = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath)}
        try:
            dispatcher: _Kernel = numba.njit(cache=True, **options)(kernel)
        except RuntimeError:  # no folder for the cache is writable
            dispatcher = numba.njit(**options)(kernel)
        return dispatcher

    return decorate


_FLOAT32 = np.dtype(np.float32)


def is_float32(*arrays: Array | None) -> bool:
    """Whether all arrays that are given are float32."""
    for array in arrays:  # noqa: SIM110 - takes half the time of all()
        if array is not None and array.dtype != _FLOAT32:
            return False
    return True
