"""The array of the strict backend: a NumPy array that may do only what an array on a GPU may.

What works with NumPy's arrays and goes wrong on a device, in silence or slowly, is an error here, and the error says
what a GPU would do and what to write instead. What is asked for in words works: `to_host`, `item()`, `tolist()`,
printing, and DLPack, by which others can use the memory.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeAlias

import numpy as np

from . import host

Host: TypeAlias = np.ndarray[Any, np.dtype[Any]]  # what a StrictArray hides

# What arrays of NumPy and of CuPy both have, and models use; astype is the one that may widen.
_METHODS = ("all", "any", "argmax", "copy", "max", "mean", "min", "prod", "ravel", "reshape", "squeeze", "std", "sum",
            "swapaxes", "transpose", "var")  # fmt: skip


def refusal(error: type[Exception], what: str, on_a_gpu: str, instead: str) -> Exception:
    """The error for something that is not to be done: what it was, what a GPU makes of it, what to write instead."""
    return error(f"strict: {what}; on a GPU {on_a_gpu}: {instead}")


class StrictArray:
    """Stands for an array on a device."""

    __slots__ = ("__weakref__", "_host")
    __hash__ = None  # type: ignore[assignment]  # == compares elements

    _host: Host

    def __init__(self, array: Any) -> None:
        self._host = np.asarray(array)  # what NumPy made a scalar has no axes, and stays an array

    # --- What the host knows of it

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

    # --- To the host, because somebody asked

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

    # --- To the host, unasked

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise refusal(
            TypeError,
            f"an array of shape {self.shape} was to become a NumPy array by itself",
            "nothing is copied to the host unasked",
            "ask with xp.to_host(a), or Tensor.numpy()",
        )

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> NoReturn:
        raise refusal(
            TypeError,
            f"numpy.{function.__name__} on an array of the backend",
            "NumPy cannot read its memory",
            "call the backend's primitive, xp.<name>(a), or a Tensor's method",
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """NumPy comes here for `numpy_array + a` and `numpy_scalar + a`, and for `numpy.exp(a)`."""
        if method == "__call__" and not kwargs and any(isinstance(x, np.generic) for x in inputs):
            return computed(ufunc.__name__, ufunc, *inputs)
        if any(isinstance(x, np.ndarray) for x in inputs):
            raise mixed(ufunc.__name__, np.ndarray)
        return self.__array_function__(ufunc, (), inputs, kwargs)

    def _to_number(self, how: str, instead: str) -> NoReturn:
        raise refusal(
            TypeError,
            f"{how} of an array of shape {self.shape}",
            "the program stops there until the device has caught up",
            instead,
        )

    def __bool__(self) -> NoReturn:
        self._to_number("bool(), or `if`,", "decide elementwise with xp.where, or ask with a.item()")

    def __int__(self) -> NoReturn:
        self._to_number("int()", "ask with a.item()")

    def __index__(self) -> NoReturn:
        self._to_number("use as a whole number", "ask with a.item()")

    def __float__(self) -> NoReturn:
        self._to_number("float()", "ask with a.item()")

    def __complex__(self) -> NoReturn:
        self._to_number("complex()", "ask with a.item()")

    def __format__(self, spec: str) -> str:
        if spec:
            self._to_number(f"format {spec!r}", "ask with a.item()")
        return str(self)

    def __iter__(self) -> Iterator[Any]:
        raise refusal(
            TypeError,
            f"iteration over an array of shape {self.shape}",
            "each element is a launch of its own",
            "compute with the whole array, index it with a[i], or ask for a.tolist()",
        )

    def __contains__(self, x: Any) -> bool:
        raise refusal(
            TypeError,
            f"`in` of an array of shape {self.shape}",
            "each element is a launch and a wait",
            "compare with xp.equal(a, x), or search in a.tolist()",
        )

    # --- Indices

    def __getitem__(self, index: Any) -> "StrictArray":
        return StrictArray(self._host[host_index("a[index]", index, self.shape)])

    def __setitem__(self, index: Any, value: Any) -> None:
        places, new = host_index("a[index] = v", index, self.shape), operand("a[index] = v", value)
        check_dtypes("a[index] = v", [self._host, new])
        check_writable("a[index] = v", self)
        if not host.is_basic(places) and np.size(new) > 1:
            chosen = np.arange(self.size).reshape(self.shape)[places]
            if np.unique(chosen).size < chosen.size:
                raise refusal(
                    ValueError,
                    "a[index] = v: the index names an element twice",
                    "which of its values stays is left to chance",
                    "let each be named once; to add up values, xp.getitem_backward does",
                )
        self._host[places] = new

    def __imatmul__(self, other: Any) -> "StrictArray":
        raise refusal(
            TypeError,
            "`a @= b`",
            "there is no such operator, so Python makes it a = a @ b, and whoever else has the array keeps the old one",
            "write a = xp.matmul(a, b)",
        )

    # --- What keeps or sums up the elements

    @property
    def T(self) -> "StrictArray":
        return StrictArray(self._host.T)

    def astype(self, dtype: Any) -> "StrictArray":
        return StrictArray(self._host.astype(dtype))

    def __copy__(self) -> "StrictArray":
        return StrictArray(self._host.copy())

    def __deepcopy__(self, memo: dict[int, Any]) -> "StrictArray":
        return StrictArray(self._host.copy())


# --- Between the array and what is in it


def mixed(name: str, kind: type) -> Exception:
    return refusal(
        TypeError,
        f"{name} of an array of the backend and a {kind.__module__}.{kind.__name__}",
        "arrays of the host and of the device never mix",
        "move it first, with xp.asarray(x) or Tensor(x)",
    )


def operand(name: str, x: Any) -> Any:
    """The NumPy array in a StrictArray; a number as it is. Raises TypeError for whatever else holds numbers."""
    if isinstance(x, StrictArray):
        return x._host
    if isinstance(x, (np.ndarray, list, tuple)):
        raise mixed(name, type(x))
    return x


def host_index(name: str, index: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """The index for NumPy. Raises TypeError for lists and NumPy arrays in it, IndexError for what is out of bounds."""
    parts = host.as_tuple(index)
    for part in parts:
        if isinstance(part, (np.ndarray, list)):
            raise refusal(
                TypeError,
                f"{name} with a {type(part).__module__}.{type(part).__name__} as the index",
                "it would be copied to the device, in each call and unasked",
                "index a Tensor, or with xp.getitem(a, xp.prepare_index(index, a.shape))",
            )
    found = tuple(part._host if isinstance(part, StrictArray) else part for part in parts)
    for part, axis in zip(found, host.index_axes(found, len(shape)), strict=True):
        if isinstance(part, np.ndarray):
            try:
                host.check_index_array(part, axis, shape)
            except IndexError as error:
                raise refusal(
                    IndexError,
                    f"{name}: {error}",
                    "it wraps around in silence, or reads memory that is not the array's",
                    "check indices on the host, as xp.prepare_index does",
                ) from None
    return found


def check_dtypes(name: str, operands: Sequence[Any], results: Any = ()) -> None:
    """Raises TypeError where float64 meets a narrower float, or comes of narrower ones. Operands: NumPy's, numbers."""
    floats = {str(x.dtype) for x in operands if isinstance(x, np.ndarray) and x.dtype.kind == "f"}
    several = results if isinstance(results, tuple) else (results,)
    wide = any(getattr(x, "dtype", None) == np.float64 for x in several)
    if not floats or floats == {"float64"} or not ("float64" in floats or wide):
        return
    given = " and ".join(f"{x.dtype} {x.shape}" if hasattr(x, "dtype") else repr(x) for x in operands)
    raise refusal(
        TypeError,
        f"{name} of {given}" + (" gives float64" if wide else ""),
        "float64 takes twice the memory and, on most, many times as long",
        "bring arrays to one dtype with xp.astype, and pass numbers as Python's, float(x), which widen nothing",
    )


def check_writable(name: str, a: StrictArray) -> None:
    """Raises ValueError for a view that NumPy makes read-only, since several of its elements share their memory."""
    if not a._host.flags.writeable:
        raise refusal(
            ValueError,
            f"{name} writes into a view of shape {a.shape} that is read-only, as broadcast_to gives it",
            "its elements share memory, so several are written to one place and chance decides which stays",
            "write into xp.copy(a)",
        )


def computed(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> StrictArray:
    """function(*args), with arrays of the backend taken out of their cover, and the result put into one."""
    operands = [operand(name, x) for x in args]
    check_dtypes(name, operands)
    result = function(*operands, **kwargs)
    check_dtypes(name, operands, result)
    return StrictArray(result)


# --- Operators and methods


def _foreign(x: Any) -> bool:
    """Whether an operand is to have its own say: neither array nor number. A Tensor is such a one."""
    return not isinstance(x, (StrictArray, np.ndarray, np.generic, list, tuple, int, float))


def _operator(name: str, function: Callable[..., Any]) -> Callable[[StrictArray, Any], Any]:
    return lambda self, other: NotImplemented if _foreign(other) else computed(name, function, self, other)


def _reflected(name: str, function: Callable[..., Any]) -> Callable[[StrictArray, Any], Any]:
    return lambda self, other: NotImplemented if _foreign(other) else computed(name, function, other, self)


def _in_place(name: str, function: Callable[..., Any]) -> Callable[[StrictArray, Any], Any]:
    def operate(self: StrictArray, other: Any) -> Any:
        if _foreign(other):
            raise TypeError(f"strict: an array cannot hold what {name} with a {type(other).__name__} gives, in place")
        check_writable(f"in-place {name}", self)
        computed(f"in-place {name}", function, self, other, out=self._host)
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
    setattr(StrictArray, f"__{_short}__", lambda self, ufunc=_ufunc: computed(ufunc.__name__, ufunc, self))
for _name in _METHODS:
    setattr(StrictArray, _name, _method(_name))
