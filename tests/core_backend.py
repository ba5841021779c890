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


globals().update({primitive: getattr(core_module("core_only"), primitive) for primitive in CORE})
