"""The default dtype, and the common dtype of operands that differ."""

import os
from typing import Any

from .backend import Array, Backend, DType

_FLOATS = ("float32", "float64", "bfloat16")
_default: str | None = None  # set by set_default_dtype, or from RG_DTYPE at first use


def get_default_dtype() -> str:
    """The dtype that Python numbers and lists get: float64, or the environment's `RG_DTYPE`, or what was set."""
    global _default
    if _default is None:
        _default = _checked(os.environ.get("RG_DTYPE") or "float64", "RG_DTYPE")
    return _default


def set_default_dtype(dtype: DType) -> None:
    """Make "float32", "float64" or "bfloat16" the default. Raises ValueError for any other.

    bfloat16 is for backends that compute in it (`backend.float_dtypes()`), as CuPy; on another a Tensor of it is a
    TypeError.
    """
    global _default
    _default = _checked(dtype, "set_default_dtype")


def _checked(dtype: DType, who: str) -> str:
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", getattr(dtype, "__name__", repr(dtype)))
    if name not in _FLOATS:
        raise ValueError(f"{who}: the default dtype must be one of {', '.join(_FLOATS)}, got {name!r}")
    return str(name)


def is_float(dtype: Any) -> bool:
    return bool(dtype.kind == "f" or dtype.kind == "V" and dtype.name == "bfloat16")  # which NumPy itself has not


def common_float(xp: Backend, arrays: list[Array]) -> DType | None:
    """The float dtype that arrays of different dtypes are cast to, or None if none of them is a float.

    PyTorch's rule: an integer array never widens a float one, and a 0-d array never widens one with axes. NumPy's
    would turn float32 times int64 into float64.
    """
    floats = [(xp.dtype(array), array.ndim) for array in arrays if is_float(xp.dtype(array))]
    with_axes = [dtype for dtype, ndim in floats if ndim]
    return max(with_axes or [dtype for dtype, _ in floats], key=lambda dtype: int(dtype.itemsize), default=None)
