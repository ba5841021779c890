"""The smallest backend: only the names in `russellgrad.backend.CORE`, implemented with NumPy.

RG_BACKEND=tests.core_backend selects it. The derived primitives come from `russellgrad.backends.formulas`; nothing is
written in place.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from russellgrad.backend import CORE, PRIMITIVES, load_backend
from tests.helpers import module_of


def core_module(name: str, /, **changes: Any) -> ModuleType:
    """A backend module with the core names only; `changes` override or add names."""
    module = module_of(load_backend("numpy"), name, matmul=np.matmul)
    for primitive in set(PRIMITIVES) - set(CORE):
        vars(module).pop(primitive, None)
    vars(module).update(changes)
    return module


def read_only_module(name: str) -> ModuleType:
    """A core module whose primitives return read-only arrays."""
    module = core_module(name)
    for primitive in set(CORE) - {"name", "to_host", "dtype", "float_dtypes", "is_array"}:
        setattr(module, primitive, _read_only(getattr(module, primitive)))
    return module


def _read_only(function: Callable[..., Any]) -> Callable[..., Any]:
    def primitive(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if isinstance(result, np.ndarray):
            result = result.view()
            result.flags.writeable = False
        return result

    return primitive


class ThinArray:
    """An array with the two attributes that the library needs, and nothing else."""

    __slots__ = ("__weakref__", "_array")
    __array_ufunc__ = None

    def __init__(self, array: Any) -> None:
        self._array = np.asarray(array)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def ndim(self) -> int:
        return self._array.ndim


def thin_module(name: str) -> ModuleType:
    """A core module whose arrays are ThinArrays."""
    module = core_module(name, is_array=lambda x: isinstance(x, ThinArray))
    for primitive in set(CORE) - {"name", "is_array", "float_dtypes"}:
        setattr(module, primitive, _thin(getattr(module, primitive), wrapped=primitive != "to_host"))
    return module


def _thin(function: Callable[..., Any], wrapped: bool) -> Callable[..., Any]:
    def unwrap(x: Any) -> Any:
        if isinstance(x, (tuple, list)):
            return type(x)(map(unwrap, x))
        return x._array if isinstance(x, ThinArray) else x

    def primitive(*args: Any, **kwargs: Any) -> Any:
        result = function(*map(unwrap, args), **kwargs)
        return ThinArray(result) if wrapped and isinstance(result, (np.ndarray, np.generic)) else result

    return primitive


globals().update({primitive: getattr(core_module("core_only"), primitive) for primitive in CORE})
