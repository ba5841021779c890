"""The array of the stand-in, and the log of what a device would have done."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

Host = Any  # a NumPy array, on the side that real device memory hides

_order = np.random.default_rng(0)  # the order in which threads of a scatter get their turn


class Misuse(AssertionError):
    """What CuPy does without a word, but wrongly or slowly."""


# --- The log


@dataclass(eq=False)
class Log:
    """How often what was done, by name, while `record` was open."""

    launches: Counter[str] = field(default_factory=Counter)
    syncs: Counter[str] = field(default_factory=Counter)  # the host waited for the device
    uploads: Counter[str] = field(default_factory=Counter)  # copies from the host to the device


_open: list[Log] = []


@contextmanager
def record() -> Iterator[Log]:
    log = Log()
    _open.append(log)
    try:
        yield log
    finally:
        _open.remove(log)


def launched(name: str) -> None:
    for log in _open:
        log.launches[name] += 1


def synced(name: str) -> None:
    for log in _open:
        log.syncs[name] += 1


def uploaded(name: str) -> None:
    for log in _open:
        log.uploads[name] += 1


# --- The array


class ndarray:
    """Stands for cupy.ndarray. It holds a NumPy array and gives it to nobody who does not ask for a copy."""

    __slots__ = ("__weakref__", "_host")
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    _host: Host

    def __init__(self, shape: Any, dtype: Any = float, *, order: str = "C") -> None:
        self._host = rubbish(shape, dtype, order)

    # What it is: known on the host

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
    def itemsize(self) -> int:
        return int(self._host.itemsize)

    @property
    def nbytes(self) -> int:
        return int(self._host.nbytes)

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(self._host.strides)

    @property
    def flags(self) -> Any:
        return self._host.flags

    @property
    def data(self) -> "MemoryPointer":
        return MemoryPointer(int(self._host.ctypes.data))

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    # To the host: each of these waits

    def get(self, *, order: str = "C") -> Host:
        return to_host(self, "get", order)

    def item(self) -> Any:
        return to_host(self, "item").item()

    def tolist(self) -> Any:
        return to_host(self, "tolist").tolist()

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError("the truth value of an array with no or more than one element is ambiguous")
        return bool(to_host(self, "bool"))

    def __int__(self) -> int:
        return int(to_host(self, "int"))

    def __float__(self) -> float:
        return float(to_host(self, "float"))

    def __complex__(self) -> complex:
        return complex(to_host(self, "complex"))

    def __repr__(self) -> str:
        return repr(to_host(self, "repr"))

    def __str__(self) -> str:
        return str(to_host(self, "str"))

    def __format__(self, format_spec: str) -> str:
        return format(to_host(self, "format"), format_spec)

    def __array__(self, dtype: Any = None, copy: Any = None) -> NoReturn:
        raise TypeError("Implicit conversion to a NumPy array is not allowed; use .get() to ask for it")

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> NoReturn:
        raise TypeError(f"standin: numpy.{func.__name__} on a device array; call cupy.{func.__name__}")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        # NumPy comes here for `numpy_array + cupy_array` and `numpy_scalar + cupy_array`.
        ours = UFUNCS.get(ufunc.__name__)
        if method != "__call__" or ours is None or kwargs:
            return NotImplemented
        return ours(*inputs)

    # Another library on the same device could share the memory; there is none, so only the stand-in itself can.

    def __dlpack_device__(self) -> tuple[int, int]:
        return DLPACK_CUDA, 0

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: bool | None = None
    ) -> Any:
        if dl_device is not None and dl_device[0] == DLPACK_CPU:
            return to_host(self, "__dlpack__").__dlpack__(max_version=max_version)
        return DeviceCapsule(np.array(self._host) if copy else self._host)

    # Refused, since each element would be a launch; and what names there are not

    def __iter__(self) -> NoReturn:
        raise Misuse("iteration over a device array: a launch an element")

    def __contains__(self, x: Any) -> NoReturn:
        raise Misuse("`in` on a device array: a launch and a wait an element")

    def __imatmul__(self, other: Any) -> NoReturn:
        raise Misuse("`a @= b`: CuPy has none, so Python rebinds the name and the array stays as it was")

    # Indexing

    def __getitem__(self, slices: Any) -> "ndarray":
        index = index_of(self, slices)
        if is_advanced(index):
            launched("getitem")
            return wrap(self._host[index])
        return wrap(self._host[index if Ellipsis in index else (*index, Ellipsis)])  # a view, of one element too

    def __setitem__(self, slices: Any, value: Any) -> None:
        launched("setitem")
        index, new = index_of(self, slices), operand(value)
        target = writable(self)
        if not is_advanced(index):
            target[index] = new
            return
        places, values = _scattered(target, index, new, drop_leading_ones=True)
        target[places] = values

    def scatter_add(self, slices: Any, value: Any) -> None:
        if self.dtype.char not in "ilILqQefd" or self.dtype == np.int64:
            raise TypeError("scatter_add only supports int32, float16, float32, float64, uint32, uint64")
        launched("scatter_add")
        index, more = index_of(self, slices), operand(value)
        target = writable(self)
        if not is_advanced(index):
            target[index] += more
            return
        places, values = _scattered(target, index, more)
        np.add.at(target, places, values)

    def take(self, indices: Any, axis: int | None = None) -> "ndarray":
        if not isinstance(indices, ndarray):
            raise Misuse(f"take: indices are a {type(indices).__name__}, a hidden copy to the device")
        length = self.size if axis is None else self.shape[axis]
        check_bounds(indices._host, length, "take")
        launched("take")
        return wrap(np.take(self._host, indices._host, axis))

    # Same elements, another shape: views where NumPy gives one

    @property
    def T(self) -> "ndarray":
        return wrap(self._host.T)

    def reshape(self, *shape: Any, order: str = "C") -> "ndarray":
        return wrap(self._host.reshape(*shape, order=order))

    def ravel(self, order: str = "C") -> "ndarray":
        return wrap(self._host.ravel(order))

    def flatten(self, order: str = "C") -> "ndarray":
        return wrap(self._host.flatten(order))

    def transpose(self, *axes: Any) -> "ndarray":
        return wrap(self._host.transpose(*axes))

    def swapaxes(self, axis1: int, axis2: int) -> "ndarray":
        return wrap(self._host.swapaxes(axis1, axis2))

    def squeeze(self, axis: Any = None) -> "ndarray":
        return wrap(self._host.squeeze(axis))

    # Copies

    def astype(
        self, dtype: Any, order: str = "K", casting: None = None, subok: None = None, copy: bool = True
    ) -> "ndarray":
        if casting is not None or subok is not None:
            raise TypeError("astype: casting and subok are not supported")  # CuPy takes the names, not the values
        launched("astype")
        with np.errstate(all="ignore"):
            return wrap(self._host.astype(numeric(dtype), order=order, copy=copy))

    def copy(self, order: str = "C") -> "ndarray":
        launched("copy")
        return wrap(self._host.copy(order))

    def __copy__(self) -> "ndarray":
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> "ndarray":
        return self.copy()

    def fill(self, value: Any) -> None:
        launched("fill")
        writable(self)[...] = operand(value)

    # Reductions: 0-d results stay arrays

    def sum(self, axis: Any = None, dtype: Any = None, *, keepdims: bool = False) -> "ndarray":
        return _reduced("sum", self, axis=axis, dtype=dtype, keepdims=keepdims)

    def prod(self, axis: Any = None, dtype: Any = None, *, keepdims: bool = False) -> "ndarray":
        return _reduced("prod", self, axis=axis, dtype=dtype, keepdims=keepdims)

    def mean(self, axis: Any = None, dtype: Any = None, *, keepdims: bool = False) -> "ndarray":
        return _reduced("mean", self, axis=axis, dtype=dtype, keepdims=keepdims)

    def max(self, axis: Any = None, *, keepdims: bool = False) -> "ndarray":
        return _reduced("max", self, axis=axis, keepdims=keepdims)

    def min(self, axis: Any = None, *, keepdims: bool = False) -> "ndarray":
        return _reduced("min", self, axis=axis, keepdims=keepdims)

    def argmax(self, axis: Any = None, *, keepdims: bool = False) -> "ndarray":
        return _reduced("argmax", self, axis=axis, keepdims=keepdims)

    def any(self, axis: Any = None, *, keepdims: bool = False) -> "ndarray":
        return _reduced("any", self, axis=axis, keepdims=keepdims)

    def all(self, axis: Any = None, *, keepdims: bool = False) -> "ndarray":
        return _reduced("all", self, axis=axis, keepdims=keepdims)

    def sort(self, axis: int = -1) -> None:
        launched("sort")
        writable(self).sort(axis)


@dataclass(frozen=True)
class MemoryPointer:
    """Where an array's memory is. The host could follow the pointer, but on a device it cannot."""

    ptr: int


DLPACK_CPU, DLPACK_CUDA = 1, 2


@dataclass
class DeviceCapsule:
    """What a DLPack capsule is to the stand-in; no other library can open it."""

    host: Host


# --- Between the wrapper and what is in it


def wrap(host: Host) -> ndarray:
    array = ndarray.__new__(ndarray)
    array._host = np.asarray(host)  # NumPy's scalars become 0-d arrays: CuPy has no scalars
    return array


def operand(x: Any) -> Any:
    """What a kernel takes: a device array or a scalar. Raises TypeError for lists and NumPy arrays."""
    if isinstance(x, ndarray):
        return x._host
    if type(x) in (bool, int, float, complex) or isinstance(x, (np.number, np.bool_)):
        return x
    raise TypeError(f"Unsupported type {type(x)}")


def array_operand(name: str, x: Any) -> Host:
    if not isinstance(x, ndarray):
        raise TypeError(f"{name}: only cupy arrays, got {type(x)}")
    return x._host


def to_host(a: ndarray, how: str, order: str = "C") -> Host:
    synced(how)
    return np.array(a._host, order=order)  # type: ignore[call-overload]


def writable(a: ndarray) -> Host:
    if not a._host.flags.writeable:
        raise Misuse("writes into a broadcast view: its elements share memory, so threads race")
    return a._host


def numeric(dtype: Any) -> Any:
    """The dtype, if a device knows it. Raises ValueError."""
    known = np.dtype(dtype)
    if known.char not in "?bBhHiIlLqQefdFD" and known.name != "bfloat16":
        raise ValueError(f"Unsupported dtype {known}")
    return known


def rubbish(shape: Any, dtype: Any, order: str = "C") -> Host:
    """New memory: nan, True or a large number, so that what reads it before writing it is seen."""
    kind = numeric(dtype).kind
    return np.full(shape, np.nan if kind in "fcV" else True if kind == "b" else np.iinfo(dtype).max - 8, dtype, order)  # type: ignore[call-overload]


def _reduced(name: str, a: ndarray, **options: Any) -> ndarray:
    launched(name)
    with np.errstate(all="ignore"):
        return wrap(getattr(np, name)(a._host, **options))


# --- Indices


def index_of(a: ndarray, slices: Any) -> tuple[Any, ...]:
    """The index for NumPy, with arrays unwrapped and their bounds checked.

    Raises:
        Misuse: a list or NumPy array (a hidden copy), a bare bool, an integer array out of bounds.
        IndexError: anything else that is no index; an array of another dtype.
    """
    index: list[Any] = []
    for part in slices if isinstance(slices, tuple) else (slices,):
        if isinstance(part, ndarray):
            if part.dtype.kind not in "biu":
                raise IndexError(f"arrays used as indices must be of integer or boolean type, not {part.dtype}")
            index.append(part._host)
        elif isinstance(part, (bool, np.bool_, list, tuple, np.ndarray)):
            raise Misuse(f"a {type(part).__name__} as an index: a hidden copy to the device")
        elif part is None or part is Ellipsis or isinstance(part, (slice, int, np.integer)):
            index.append(part)
        else:
            raise IndexError(f"only integers, slices, ellipsis, None and arrays are valid indices, not {type(part)}")
    _check_index(a.shape, index)
    return tuple(index)


def is_advanced(index: tuple[Any, ...]) -> bool:
    return any(isinstance(part, np.ndarray) for part in index)


def _check_index(shape: tuple[int, ...], index: list[Any]) -> None:
    """Bounds of the integer arrays; what else can be wrong NumPy finds, with CuPy's error."""
    spans = [_axes_of_part(part) for part in index]
    axis = 0
    for part, span in zip(index, spans, strict=True):
        if isinstance(part, np.ndarray) and part.dtype.kind == "b":
            synced("mask index")  # how many are True is the result's shape
        elif isinstance(part, np.ndarray) and axis < len(shape):
            check_bounds(part, shape[axis], "index")
        axis += len(shape) - sum(spans) if part is Ellipsis else span


def _axes_of_part(part: Any) -> int:
    if part is None or part is Ellipsis:
        return 0
    return part.ndim if isinstance(part, np.ndarray) and part.dtype.kind == "b" else 1


def check_bounds(places: Host, length: int, what: str) -> None:
    if places.size and (places.min() < -length or places.max() >= length):
        raise Misuse(f"{what}: {places.min()} to {places.max()} in an axis of length {length}; CuPy wraps in silence")


def _scattered(target: Host, index: tuple[Any, ...], value: Any, drop_leading_ones: bool = False) -> tuple[Any, Host]:
    """Each place that `index` names and its value, in random order: which of several threads is last, none knows."""
    numbers = np.arange(target.size).reshape(target.shape)[index]
    values = np.asarray(value)
    while drop_leading_ones and values.ndim > numbers.ndim and values.shape[0] == 1:
        values = values[0]
    order = _order.permutation(numbers.size)
    places = np.unravel_index(numbers.ravel()[order], target.shape)
    return places, np.broadcast_to(values, numbers.shape).ravel()[order]


# --- Operators


UFUNCS: dict[str, Callable[..., ndarray]] = {}  # filled by functions.py


def _defers(x: ndarray, other: Any) -> bool:
    """Whether the other operand's reflected operator is to be asked, as CuPy decides it (NEP 13, then priority)."""
    if isinstance(other, ndarray):
        return False
    try:
        return other.__array_ufunc__ is None
    except AttributeError:
        return bool(x.__array_priority__ < getattr(other, "__array_priority__", 0))


def _operator(name: str, reflected: bool = False) -> Callable[[ndarray, Any], Any]:
    def operate(self: ndarray, other: Any) -> Any:
        if _defers(self, other):
            return NotImplemented
        return UFUNCS[name](other, self) if reflected else UFUNCS[name](self, other)

    return operate


def _in_place(name: str) -> Callable[[ndarray, Any], ndarray]:
    return lambda self, other: UFUNCS[name](self, other, out=self)


def _unary(name: str) -> Callable[[ndarray], ndarray]:
    return lambda self: UFUNCS[name](self)


for _short, _long in {"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "pow": "power"}.items():
    setattr(ndarray, f"__{_short}__", _operator(_long))
    setattr(ndarray, f"__r{_short}__", _operator(_long, reflected=True))
    setattr(ndarray, f"__i{_short}__", _in_place(_long))
for _short, _long in {"matmul": "matmul", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor"}.items():
    setattr(ndarray, f"__{_short}__", _operator(_long))
    setattr(ndarray, f"__r{_short}__", _operator(_long, reflected=True))
for _short, _long in {
    "eq": "equal",
    "ne": "not_equal",
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
}.items():
    setattr(ndarray, f"__{_short}__", _operator(_long))
for _short, _long in {"neg": "negative", "abs": "absolute", "invert": "invert"}.items():
    setattr(ndarray, f"__{_short}__", _unary(_long))
