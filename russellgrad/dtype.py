"""The default dtype, type promotion, and the conversion of everything that enters the library to real numbers."""

import os
from functools import cache
from numbers import Integral, Real
from typing import Any, TypeAlias
from warnings import warn

from .backend import Array, Backend, DType, load_backend

Number: TypeAlias = int | float

_FLOATS = ("float32", "float64", "bfloat16")
_default: str | None = None  # set by set_default_dtype, or from RG_DTYPE at first use


def get_default_dtype(xp: Backend | None = None) -> str:
    """The dtype of tensors made from Python numbers and lists; `xp` is their backend, if it may lack float64.

    It is the one set by `set_default_dtype`, else the environment variable `RG_DTYPE`, else "float64". On a backend
    that has no float64, such as "torch:mps", it is "float32" instead of "float64", and the first call there warns of
    that. Raises ValueError for an RG_DTYPE that is not a float dtype.
    """
    global _default
    if _default is None:
        _default = _checked(os.environ.get("RG_DTYPE") or "float64", "RG_DTYPE")
    if _default == "float64" and xp is not None and widest_float(xp) != "float64":
        _warn_of_float32(xp.name)
        return "float32"
    return _default


@cache  # once for each backend
def _warn_of_float32(name: str) -> None:
    warn(
        f"backend {name!r} has no float64: tensors made from numbers and lists are float32; "
        "set_default_dtype('float32') silences this",
        stacklevel=4,
    )


def widest_float(xp: Backend) -> str:
    """ "float64", or "float32" on a backend that has no float64."""
    return "float64" if "float64" in xp.float_dtypes() else "float32"


def set_default_dtype(dtype: DType) -> None:
    """Set the default dtype: "float32", "float64" or "bfloat16". Raises ValueError for any other.

    bfloat16 needs a backend that computes in it (`backend.float_dtypes()`), such as CuPy or PyTorch. On other backends,
    creating a bfloat16 Tensor raises TypeError.
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


def largest(dtype: Any) -> float:
    """The largest finite number of a float dtype. (np.finfo does not know bfloat16.)"""
    digits, exponent = {"float16": (11, 16), "bfloat16": (8, 128), "float32": (24, 128)}.get(dtype.name, (53, 1024))
    return (2 - 2.0 ** (1 - digits)) * 2.0 ** (exponent - 1)


def common_float(xp: Backend, arrays: list[Array]) -> DType | None:
    """The float dtype to which arrays of different dtypes are promoted, or None if none of them is a float.

    The rule is PyTorch's: an integer array never widens a float array, and a 0-d array never widens an array with axes.
    (NumPy promotes float32 times int64 to float64.)
    """
    floats = [(xp.dtype(array), array.ndim) for array in arrays if is_float(xp.dtype(array))]
    with_axes = [dtype for dtype, ndim in floats if ndim]
    return max(with_axes or [dtype for dtype, _ in floats], key=lambda dtype: int(dtype.itemsize), default=None)


def real_array(xp: Backend, data: Any, op: str, dtype: DType = None) -> Array:
    """`data` as an array of the backend, of real numbers or bools. Copies only if needed.

    The constructor, operands, masks, gradients and loaded states all go through this function.

    Raises, with `op` in the message:
        TypeError: complex numbers, strings, None, dates, objects, structured arrays, floats of more than 64 bits,
            masked arrays, or a dtype that the backend does not have.
        ValueError: nested lists of different lengths; nan as an integer.
        OverflowError: a finite number that is out of the range of the dtype. (An array on a device is not checked.)
    """
    try:
        return xp.asarray(data, dtype)
    except (TypeError, ValueError, OverflowError) as error:
        kind = next(kind for kind in (TypeError, ValueError, OverflowError) if isinstance(error, kind))
        message = str(error).removeprefix("asarray: ")
        if dtype is None and message == str(error):
            raise  # of another device's array; the message is complete
        if dtype is not None:
            message = (
                f"cannot make an array of dtype {dtype} on backend {xp.name!r} ({message}); its float dtypes are "
                f"{', '.join(xp.float_dtypes())}"
            )
        raise kind(f"{op}: {message}") from error


def host_number(op: str, number: Number, dtype: Any) -> Array:
    """A Python number as a 0-d array on the host, of a NumPy dtype. Raises as `real_array` does."""
    return real_array(load_backend("numpy"), number, op, dtype if dtype.kind != "V" else "float32")


def python_number(value: Any) -> Number | None:
    """The Python number for a real number or bool of Python or NumPy; None for anything else.

    NumPy scalars become Python numbers, because they would widen float32.
    """
    if value is None or isinstance(value, tuple):  # frequent among parameters
        return None
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    if isinstance(value, bool) or kind == "b" and not hasattr(value, "__len__"):  # numpy.bool_, which is no Real
        return bool(value)
    if isinstance(value, int) or kind in ("i", "u") and isinstance(value, Integral):  # timedelta64 is Integral, too
        return int(value)
    is_wide = kind == "f" and value.dtype.itemsize > 8  # numpy.longdouble: refused, as in an array
    return float(value) if isinstance(value, float) or kind == "f" and isinstance(value, Real) and not is_wide else None
