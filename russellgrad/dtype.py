"""The default dtype, and type promotion for operands of different dtypes."""

import os
from typing import Any

from .backend import Array, Backend, DType

_FLOATS = ("float32", "float64", "bfloat16")
_default: str | None = None  # set by set_default_dtype, or from RG_DTYPE at first use


def get_default_dtype() -> str:
    """The dtype of tensors made from Python numbers and lists.

    It is the one set by `set_default_dtype`, else the environment variable `RG_DTYPE`, else "float64". Raises
    ValueError for an RG_DTYPE that is not a float dtype.
    """
    global _default
    if _default is None:
        _default = _checked(os.environ.get("RG_DTYPE") or "float64", "RG_DTYPE")
    return _default


def set_default_dtype(dtype: DType) -> None:
    """Set the default dtype: "float32", "float64" or "bfloat16". Raises ValueError for any other.

    bfloat16 needs a backend that computes in it (`backend.float_dtypes()`), such as CuPy. On other backends, creating a
    bfloat16 Tensor raises TypeError.
    """
    global _default
    _default = _checked(dtype, "set_default_dtype")


def _checked(dtype: DType, who: str) -> str:
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", getattr(dtype, "__name__", repr(dtype)))
    if name not in _FLOATS:
        raise ValueError(f"{who}: the default dtype must be one of {', '.join(_FLOATS)}, got {name!r}")
    return str(name)


def is_float(dtype: Any) -> bool:
    """Whether a NumPy dtype is a floating-point one. bfloat16, an extension dtype, has kind "V"."""
    return bool(dtype.kind == "f" or dtype.kind == "V" and dtype.name == "bfloat16")


def common_float(xp: Backend, arrays: list[Array]) -> DType | None:
    """The float dtype to which arrays of different dtypes are promoted, or None if none of them is a float.

    The rule is PyTorch's: an integer array never widens a float array, and a 0-d array never widens an array with axes.
    (NumPy promotes float32 times int64 to float64.)
    """
    floats = [(xp.dtype(array), array.ndim) for array in arrays if is_float(xp.dtype(array))]
    with_axes = [dtype for dtype, ndim in floats if ndim]
    return max(with_axes or [dtype for dtype, _ in floats], key=lambda dtype: int(dtype.itemsize), default=None)
