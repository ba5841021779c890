"""The array class of the strict backend: a NumPy array restricted to what an array on a GPU can do.

Operations that work with NumPy arrays but are wrong or slow on a GPU raise an error here. The error says what happens
on a GPU and what to write instead. Explicit conversions work: `to_host`, `item()`, `tolist()`, printing, and DLPack.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeAlias

import numpy as np

from . import host

HostArray: TypeAlias = np.ndarray[Any, np.dtype[Any]]  # the array inside a StrictArray

# Methods that both NumPy and CuPy arrays have and models use. astype, which may widen, is separate.
_METHODS = ("all", "any", "argmax", "copy", "max", "mean", "min", "prod", "ravel", "reshape", "squeeze", "std", "sum",
            "swapaxes", "transpose", "var")  # fmt: skip


def gpu_error(error: type[Exception], problem: str, consequence: str, remedy: str) -> Exception:
    """The exception for an operation that the strict backend rejects.

    Args:
        error: the type of the exception.
        problem: the rejected operation.
        consequence: what happens on a GPU.
        remedy: what to write instead.
    """
    return error(f"strict: {problem}; on a GPU {consequence}; {remedy}")


class StrictArray:
    """A NumPy array that behaves like an array on a GPU."""

    __slots__ = ("__weakref__", "_host")
    __hash__ = None  # type: ignore[assignment]  # == compares elements

    _host: HostArray

    def __init__(self, array: Any) -> None:
        self._host = np.asarray(array)  # a scalar, NumPy's 0-d result, becomes an array

    # --- Attributes that need no copy from the device

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._host.shape)

    @property
    def dtype(self) -> Any:
        return self._host.dtype

    @property
    def ndim(self) -> int:
        return int(self._host.ndim)

    @property
    def size(self) -> int:
        return int(self._host.size)

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(self._host.strides)

    @property
    def flags(self) -> Any:
        return self._host.flags

    def __len__(self) -> int:
        return len(self._host)

    # --- Explicit copies to the host

    def item(self) -> Any:
        return self._host.item()

    def tolist(self) -> Any:
        return self._host.tolist()

    def __repr__(self) -> str:
        return f"strict.{self._host!r}"

    def __str__(self) -> str:
        return str(self._host)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._host.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        device, number = self._host.__dlpack_device__()
        return int(device), number

    # --- Implicit copies to the host: errors

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise gpu_error(
            TypeError,
            f"implicit conversion of an array of shape {self.shape} to a NumPy array",
            "copies to the host must be explicit",
            "call xp.to_host(a) or Tensor.numpy()",
        )

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> NoReturn:
        raise gpu_error(
            TypeError,
            f"numpy.{function.__name__} of an array of the backend",
            "NumPy cannot read the array's memory",
            "call the backend's primitive, xp.<name>(a), or a method of Tensor",
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """NumPy calls this for `numpy_array + a`, `numpy_scalar + a`, and `numpy.exp(a)`."""
        if method == "__call__" and not kwargs and any(isinstance(x, np.generic) for x in inputs):
            return apply_numpy(ufunc.__name__, ufunc, *inputs)
        if any(isinstance(x, np.ndarray) for x in inputs):
            raise mixed_arrays_error(ufunc.__name__, np.ndarray)
        return self.__array_function__(ufunc, (), inputs, kwargs)

    def _to_number(self, operation: str, remedy: str = "call a.item()") -> NoReturn:
        raise gpu_error(
            TypeError,
            f"{operation} of an array of shape {self.shape}",
            "the program waits until the device has finished",
            remedy,
        )

    def __bool__(self) -> NoReturn:
        self._to_number("bool(), or `if`,", "select elementwise with xp.where, or call a.item()")

    def __int__(self) -> NoReturn:
        self._to_number("int()")

    def __index__(self) -> NoReturn:
        self._to_number("use as an integer")

    def __float__(self) -> NoReturn:
        self._to_number("float()")

    def __complex__(self) -> NoReturn:
        self._to_number("complex()")

    def __format__(self, spec: str) -> str:
        if spec:
            self._to_number(f"format {spec!r}")
        return str(self)

    def __iter__(self) -> Iterator[Any]:
        raise gpu_error(
            TypeError,
            f"iteration over an array of shape {self.shape}",
            "each element needs a kernel launch",
            "compute with the whole array, index it with a[i], or call a.tolist()",
        )

    def __contains__(self, x: Any) -> bool:
        raise gpu_error(
            TypeError,
            f"`in` of an array of shape {self.shape}",
            "each element needs a kernel launch and a copy to the host",
            "compare with xp.equal(a, x), or search in a.tolist()",
        )

    # --- Indices

    def __getitem__(self, index: Any) -> "StrictArray":
        return StrictArray(self._host[unwrap_index("a[index]", index, self.shape)])

    def __setitem__(self, index: Any, value: Any) -> None:
        places, new = unwrap_index("a[index] = v", index, self.shape), unwrap("a[index] = v", value)
        check_dtypes("a[index] = v", [self._host, new])
        check_writable("a[index] = v", self)
        if not host.is_basic(places) and np.size(new) > 1:
            chosen = np.arange(self.size).reshape(self.shape)[places]
            if np.unique(chosen).size < chosen.size:
                raise gpu_error(
                    ValueError,
                    "a[index] = v: the index selects an element twice",
                    "it is undefined which of the values is written",
                    "select each element once, or add up values with xp.getitem_backward",
                )
        self._host[places] = new

    def __imatmul__(self, other: Any) -> "StrictArray":
        raise gpu_error(
            TypeError,
            "`a @= b`",
            "the operator does not exist, so Python runs a = a @ b, and other references keep the old array",
            "write a = xp.matmul(a, b)",
        )

    # --- Methods

    @property
    def T(self) -> "StrictArray":
        return StrictArray(self._host.T)

    def astype(self, dtype: Any) -> "StrictArray":
        return StrictArray(self._host.astype(dtype))

    def __copy__(self) -> "StrictArray":
        return StrictArray(self._host.copy())

    def __deepcopy__(self, memo: dict[int, Any]) -> "StrictArray":
        return StrictArray(self._host.copy())


# --- Conversion between StrictArrays and NumPy arrays


def mixed_arrays_error(name: str, kind: type) -> Exception:
    """The exception for an operation of a StrictArray and an array or list on the host."""
    return gpu_error(
        TypeError,
        f"{name} of an array of the backend and a {kind.__module__}.{kind.__name__}",
        "host and device arrays do not mix",
        "copy it to the backend first, with xp.asarray(x) or Tensor(x)",
    )


def unwrap(name: str, x: Any) -> Any:
    """The NumPy array in a StrictArray. Returns numbers unchanged. Raises TypeError for NumPy arrays and lists."""
    if isinstance(x, StrictArray):
        return x._host
    if isinstance(x, (np.ndarray, list, tuple)):
        raise mixed_arrays_error(name, type(x))
    return x


def unwrap_index(name: str, index: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """The index for NumPy. Raises TypeError for lists and NumPy arrays in it, IndexError for indices out of bounds."""
    parts = host.as_tuple(index)
    for part in parts:
        if isinstance(part, (np.ndarray, list)):
            raise gpu_error(
                TypeError,
                f"{name} with a {type(part).__module__}.{type(part).__name__} as the index",
                "every call copies the index to the device implicitly",
                "index a Tensor, or call xp.getitem(a, xp.prepare_index(index, a.shape))",
            )
    found = tuple(part._host if isinstance(part, StrictArray) else part for part in parts)
    for part, axis in zip(found, host.index_axes(found, len(shape)), strict=True):
        if isinstance(part, np.ndarray):
            try:
                host.check_index_array(part, axis, shape)
            except IndexError as error:
                raise gpu_error(
                    IndexError,
                    f"{name}: {error}",
                    "the index silently wraps around or reads out of bounds",
                    "check indices on the host, as xp.prepare_index does",
                ) from None
    return found


def check_dtypes(name: str, operands: Sequence[Any], results: Any = ()) -> None:
    """Raise TypeError for operations of float64 and a narrower float, or with a float64 result of narrower operands.

    The operands are NumPy arrays and numbers.
    """
    floats = {str(x.dtype) for x in operands if isinstance(x, np.ndarray) and x.dtype.kind == "f"}
    several = results if isinstance(results, tuple) else (results,)
    wide = any(getattr(x, "dtype", None) == np.float64 for x in several)
    if not floats or floats == {"float64"} or not ("float64" in floats or wide):
        return
    given = " and ".join(f"{x.dtype} {x.shape}" if hasattr(x, "dtype") else repr(x) for x in operands)
    raise gpu_error(
        TypeError,
        f"{name} of {given}" + (" gives float64" if wide else ""),
        "float64 takes twice the memory and is many times slower",
        "cast arrays to one dtype with xp.astype, and pass Python numbers, float(x), which do not widen",
    )


def check_writable(name: str, a: StrictArray) -> None:
    """Raise ValueError for a read-only view, such as one of broadcast_to, in which elements share memory."""
    if not a._host.flags.writeable:
        raise gpu_error(
            ValueError,
            f"{name} writes into a read-only view of shape {a.shape}, such as the result of broadcast_to",
            "its elements share memory, so it is undefined which value is written",
            "write into xp.copy(a)",
        )


def apply_numpy(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> StrictArray:
    """Call a NumPy function on unwrapped arguments and wrap the result. Raises as `unwrap` and `check_dtypes` do."""
    operands = [unwrap(name, x) for x in args]
    check_dtypes(name, operands)
    result = function(*operands, **kwargs)
    check_dtypes(name, operands, result)
    return StrictArray(result)


# --- Operators and methods


def _is_foreign(x: Any) -> bool:
    """Whether an operand is neither an array nor a number, but for example a Tensor. Python calls its operator then."""
    return not isinstance(x, (StrictArray, np.ndarray, np.generic, list, tuple, int, float))


def _operator(name: str, function: Callable[..., Any]) -> Callable[[StrictArray, Any], Any]:
    return lambda self, other: NotImplemented if _is_foreign(other) else apply_numpy(name, function, self, other)


def _reflected(name: str, function: Callable[..., Any]) -> Callable[[StrictArray, Any], Any]:
    return lambda self, other: NotImplemented if _is_foreign(other) else apply_numpy(name, function, other, self)


def _in_place(name: str, function: Callable[..., Any]) -> Callable[[StrictArray, Any], Any]:
    def operate(self: StrictArray, other: Any) -> Any:
        if _is_foreign(other):
            raise TypeError(
                f"strict: in-place {name} with a {type(other).__name__} is not possible; use arrays or numbers"
            )
        check_writable(f"in-place {name}", self)
        apply_numpy(f"in-place {name}", function, self, other, out=self._host)
        return self

    return operate


def _method(name: str) -> Callable[..., StrictArray]:
    def method(self: StrictArray, *args: Any, **kwargs: Any) -> StrictArray:
        result = getattr(self._host, name)(*args, **kwargs)
        check_dtypes(name, [self._host], result)
        return StrictArray(result)

    return method


_ARITHMETIC: dict[str, np.ufunc] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.divide, "pow": np.power, "matmul": np.matmul,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip
_COMPARISONS: dict[str, np.ufunc] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
_UNARY: dict[str, np.ufunc] = {"neg": np.negative, "abs": np.absolute, "invert": np.invert}

for _short, _ufunc in _ARITHMETIC.items():
    setattr(StrictArray, f"__{_short}__", _operator(_ufunc.__name__, _ufunc))
    setattr(StrictArray, f"__r{_short}__", _reflected(_ufunc.__name__, _ufunc))
    if _short != "matmul":
        setattr(StrictArray, f"__i{_short}__", _in_place(_ufunc.__name__, _ufunc))
for _short, _ufunc in _COMPARISONS.items():
    setattr(StrictArray, f"__{_short}__", _operator(_ufunc.__name__, _ufunc))
for _short, _ufunc in _UNARY.items():
    setattr(StrictArray, f"__{_short}__", lambda self, ufunc=_ufunc: apply_numpy(ufunc.__name__, ufunc, self))
for _name in _METHODS:
    setattr(StrictArray, _name, _method(_name))
