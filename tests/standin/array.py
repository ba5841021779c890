"""The array of the stand-in: an opaque wrapper over a NumPy array.

Every computation goes through `made`, which returns a new array, or `changed`, which writes into one. Both pass the
work to `submit` of stream.py, which runs it at once, or in a capture records it for the same memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import numpy as np

from .log import Misuse
from .stream import (
    Memory,
    MemoryPointer,
    Stream,
    allocate,
    capturing,
    downloaded,
    pointer_to,
    refuse_unknown,
    submit,
    synced,
    uploaded,
)

Host = Any  # a NumPy array, the memory of the device

_order = np.random.default_rng(0)  # the order in which the threads of a scatter run


# --- The array


class ndarray:
    """Stands for cupy.ndarray. It holds a NumPy array, and gives out copies only."""

    __slots__ = ("__weakref__", "_host", "_memory")
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    _host: Host
    _memory: Memory

    def __init__(self, shape: Any, dtype: Any = float, *, order: str = "C") -> None:
        self._host = rubbish(shape, dtype, order)
        self._memory = allocate(self.nbytes)

    # Attributes known on the host

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
    def data(self) -> MemoryPointer:
        return pointer_to(self._memory, self._host)

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    # Copies to the host: each waits for the device

    def get(self, stream: Stream | None = None, order: str = "C") -> Host:
        return to_host(self, "get", order, stream)

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
        # NumPy calls this for `numpy_array + cupy_array` and `numpy_scalar + cupy_array`.
        ours = UFUNCS.get(ufunc.__name__)
        if method != "__call__" or ours is None or kwargs:
            return NotImplemented
        return ours(*inputs)

    # DLPack: without a device, only the stand-in itself can share the memory

    def __dlpack_device__(self) -> tuple[int, int]:
        return DLPACK_CUDA, 0

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: bool | None = None
    ) -> Any:
        if dl_device is not None and dl_device[0] == DLPACK_CPU:
            return to_host(self, "__dlpack__").__dlpack__(max_version=max_version)
        return DeviceCapsule(self.copy() if copy else self)

    # Misuse: one launch per element; operators that CuPy does not have

    def __iter__(self) -> NoReturn:
        raise Misuse("iteration over a device array: one launch per element")

    def __contains__(self, x: Any) -> NoReturn:
        raise Misuse("`in` on a device array: one launch and one wait per element")

    def __imatmul__(self, other: Any) -> NoReturn:
        raise Misuse("`a @= b`: CuPy has no @=, so Python rebinds the name and does not change the array")

    # Indexing

    def __getitem__(self, slices: Any) -> "ndarray":
        index, arrays = index_of(slices)
        if arrays:
            return made("getitem", partial(_picked, index), self, *arrays)
        return view(self, self._host[index if Ellipsis in index else (*index, Ellipsis)])  # of one element, too

    def __setitem__(self, slices: Any, value: Any) -> None:
        index, arrays = index_of(slices)
        changed("setitem", self, partial(_assign, index), value, *arrays)

    def take(self, indices: Any, axis: int | None = None) -> "ndarray":
        if not isinstance(indices, ndarray):
            raise Misuse(f"take: indices are a {type(indices).__name__}, a hidden copy to the device")
        return made("take", partial(_taken, axis), self, indices)

    # A copy from the host into this array

    def set(self, arr: Host, stream: Stream | None = None) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if arr.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not (self.flags.c_contiguous or self.flags.f_contiguous):
            raise RuntimeError("Cannot set to non-contiguous array")
        uploaded("set", [self._memory], stream)
        writable(self)[...] = arr

    # The same elements in another shape: views where NumPy gives views

    @property
    def T(self) -> "ndarray":
        return view(self, self._host.T)

    def reshape(self, *shape: Any, order: str = "C") -> "ndarray":
        return _same_elements(self, lambda host: host.reshape(*shape, order=order))

    def ravel(self, order: str = "C") -> "ndarray":
        return _same_elements(self, lambda host: host.ravel(order))

    def flatten(self, order: str = "C") -> "ndarray":
        return made("copy", lambda host: host.flatten(order), self)

    def transpose(self, *axes: Any) -> "ndarray":
        return view(self, self._host.transpose(*axes))

    def swapaxes(self, axis1: int, axis2: int) -> "ndarray":
        return view(self, self._host.swapaxes(axis1, axis2))

    def squeeze(self, axis: Any = None) -> "ndarray":
        return view(self, self._host.squeeze(axis))

    # Copies

    def astype(
        self, dtype: Any, order: str = "K", casting: None = None, subok: None = None, copy: bool = True
    ) -> "ndarray":
        if casting is not None or subok is not None:
            raise TypeError("astype: casting and subok are not supported")  # CuPy takes the names, not the values
        known = numeric(dtype)
        if not copy and known == self.dtype:
            return self
        return made("astype", lambda host: host.astype(known, order=order), self)

    def copy(self, order: str = "C") -> "ndarray":
        return made("copy", lambda host: host.copy(order), self)

    def __copy__(self) -> "ndarray":
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> "ndarray":
        return self.copy()

    def fill(self, value: Any) -> None:
        changed("fill", self, partial(_assign, (Ellipsis,)), value)

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
        refuse_unknown("sort")
        changed("sort", self, lambda host: host.sort(axis))


DLPACK_CPU, DLPACK_CUDA = 1, 2


@dataclass
class DeviceCapsule:
    """The stand-in's DLPack capsule, which no other library can read."""

    array: ndarray


# --- Between the wrapper and its NumPy array


def _wrapped(host: Host, memory: Memory) -> ndarray:
    array = ndarray.__new__(ndarray)
    array._host, array._memory = np.asarray(host), memory  # NumPy's scalars become 0-d arrays: CuPy has no scalars
    return array


def new(host: Host) -> ndarray:
    """A device array that owns a new NumPy array."""
    return _wrapped(host, allocate(host.nbytes))


def view(of: ndarray, host: Host) -> ndarray:
    """An array that shares the memory of `of`."""
    return _wrapped(host, of._memory)


def _same_elements(a: ndarray, function: Callable[[Host], Host]) -> ndarray:
    """A view where NumPy gives a view, else a copy."""
    host = function(a._host)
    return view(a, host) if host.size == 0 or np.may_share_memory(host, a._host) else made("copy", function, a)


def operand(x: Any) -> Any:
    """The NumPy array of a device array, or a scalar. Raises TypeError for lists and NumPy arrays."""
    if isinstance(x, ndarray):
        return x._host
    if type(x) in (bool, int, float, complex) or isinstance(x, (np.number, np.bool_)):
        return x
    raise TypeError(f"Unsupported type {type(x)}")


def check_array(name: str, x: Any) -> ndarray:
    if not isinstance(x, ndarray):
        raise TypeError(f"{name}: only cupy arrays, got {type(x)}")
    return x


def made(name: str, function: Callable[..., Any], *operands: Any) -> ndarray:
    """A new array, `function` of the operands. Operands are device arrays, passed as NumPy arrays, and scalars."""
    hosts = [operand(x) for x in operands]
    reads = [x._memory for x in operands if isinstance(x, ndarray)]
    with np.errstate(all="ignore"):  # a device gives no floating-point warnings
        result = np.asarray(function(*_for_now(hosts)))
    if not capturing():
        array = new(result)
        submit(name, _nothing, reads, [array._memory])
        return array
    array = new(np.array(rubbish((), result.dtype)) + np.zeros_like(result))
    target = array._host  # the graph keeps the NumPy array alive, but not the device array, as on a device
    submit(name, partial(_later, lambda: np.copyto(target, function(*hosts))), reads, [array._memory])
    return array


def changed(name: str, target: ndarray, function: Callable[..., None], *operands: Any) -> None:
    """Runs `function(target, *operands)`, which writes into the target, on NumPy arrays."""
    hosts = [writable(target), *map(operand, operands)]
    reads = [x._memory for x in operands if isinstance(x, ndarray)]
    if capturing():
        with np.errstate(all="ignore"):
            function(*_for_now(hosts))  # raises for wrong shapes and dtypes
    submit(name, partial(_later, lambda: function(*hosts)), reads, [target._memory])


def _nothing() -> None:
    pass


def _later(work: Callable[[], None]) -> None:
    with np.errstate(all="ignore"):
        work()


def _for_now(hosts: list[Any]) -> list[Any]:
    """The operands; in a capture, where their values are not known yet, zeros of their shapes and dtypes."""
    return [np.zeros_like(h) if isinstance(h, np.ndarray) else h for h in hosts] if capturing() else hosts


def to_host(a: ndarray, how: str, order: str = "C", stream: Stream | None = None) -> Host:
    downloaded(how, [a._memory], stream)
    return np.array(a._host, order=order)  # type: ignore[call-overload]


def writable(a: ndarray) -> Host:
    if not a._host.flags.writeable:
        raise Misuse("a write into a broadcast view: its elements share memory, so threads race")
    return a._host


def numeric(dtype: Any) -> Any:
    """The dtype. Raises ValueError for one that CuPy does not support."""
    known = np.dtype(dtype)
    if known.char not in "?bBhHiIlLqQefdFD" and known.name != "bfloat16":
        raise ValueError(f"Unsupported dtype {known}")
    if not known.isnative:
        raise ValueError(f"Unsupported dtype {known} with big-endian byte-order")
    return known


def rubbish(shape: Any, dtype: Any, order: str = "C") -> Host:
    """New memory, filled with nan, True or a large number, so that a read before the first write shows."""
    kind = numeric(dtype).kind
    return np.full(shape, np.nan if kind in "fcV" else True if kind == "b" else np.iinfo(dtype).max - 8, dtype, order)  # type: ignore[call-overload]


_REDUCES_BFLOAT16 = {"sum", "prod", "max", "min"}


def _reduced(name: str, a: ndarray, **options: Any) -> ndarray:
    if a.dtype.name != "bfloat16":
        return made(name, lambda host: getattr(np, name)(host, **options), a)
    if name not in _REDUCES_BFLOAT16:
        raise NotImplementedError(f"standin: what CuPy's {name} makes of bfloat16 is not known")
    if options.get("dtype") is not None:
        return _reduced(name, a.astype(options.pop("dtype")), **options)
    return made(name, lambda host: getattr(np, name)(host.astype(np.float32), **options).astype(host.dtype), a)


# --- Indices


def index_of(slices: Any) -> tuple[tuple[Any, ...], list[ndarray]]:
    """The index with `_ARRAY` in place of each array, and the arrays.

    Raises:
        Misuse: a list or NumPy array (a hidden copy), a bare bool.
        IndexError: any other value that is not an index; an array of another dtype.
    """
    index: list[Any] = []
    arrays: list[ndarray] = []
    for part in slices if isinstance(slices, tuple) else (slices,):
        if isinstance(part, ndarray):
            if part.dtype.kind not in "biu":
                raise IndexError(f"arrays used as indices must be of integer or boolean type, not {part.dtype}")
            if part.dtype.kind == "b":
                synced("mask index")  # the number of True elements is the result's length
            index.append(_ARRAY)
            arrays.append(part)
        elif isinstance(part, (bool, np.bool_, list, tuple, np.ndarray)):
            raise Misuse(f"a {type(part).__name__} as an index: a hidden copy to the device")
        elif part is None or part is Ellipsis or isinstance(part, (slice, int, np.integer)):
            index.append(part)
        else:
            raise IndexError(f"only integers, slices, ellipsis, None and arrays are valid indices, not {type(part)}")
    return tuple(index), arrays


_ARRAY = object()


def _filled(index: tuple[Any, ...], arrays: tuple[Host, ...], shape: tuple[int, ...]) -> tuple[Any, ...]:
    """The index for NumPy. Raises Misuse for an integer array out of bounds; NumPy checks the rest."""
    left = iter(arrays)
    filled = tuple(next(left) if part is _ARRAY else part for part in index)
    np.broadcast_shapes(*(part.shape for part in filled if _is_of_ints(part)))  # ValueError, as in CuPy
    spans = [_axes_of_part(part) for part in filled]
    axis = 0
    for part, span in zip(filled, spans, strict=True):
        if _is_of_ints(part) and axis < len(shape):
            check_bounds(part, shape[axis], "index")
        axis += len(shape) - sum(spans) if part is Ellipsis else span
    return filled


def _is_of_ints(part: Any) -> bool:
    return isinstance(part, np.ndarray) and part.dtype.kind != "b"


def _axes_of_part(part: Any) -> int:
    if part is None or part is Ellipsis:
        return 0
    return part.ndim if isinstance(part, np.ndarray) and part.dtype.kind == "b" else 1


def check_bounds(places: Host, length: int, what: str) -> None:
    if places.size and (places.min() < -length or places.max() >= length):
        raise Misuse(f"{what}: {places.min()} to {places.max()} in an axis of length {length}; CuPy wraps in silence")


def _picked(index: tuple[Any, ...], a: Host, *arrays: Host) -> Host:
    return a[_filled(index, arrays, a.shape)]


def _taken(axis: int | None, a: Host, places: Host) -> Host:
    check_bounds(places, a.size if axis is None else a.shape[axis], "take")
    return np.take(a, places, axis)


def _assign(index: tuple[Any, ...], target: Host, value: Any, *arrays: Host) -> None:
    if not arrays:
        target[index] = value
        return
    places, values = _scattered(target, _filled(index, arrays, target.shape), value, drop_leading_ones=True)
    target[places] = values


def add_at(a: ndarray, indices: Any, b: Any) -> None:
    """cupy.add.at. It sums repeated elements in any order. cupyx.scatter_add is deprecated, with a warning."""
    if a.dtype.char not in "ilILqQefd" or a.dtype == np.int64:
        raise TypeError("cupy.add.at only supports int32, float16, float32, float64, uint32, uint64")
    index, arrays = index_of(indices)
    changed("add.at", a, partial(_add_at, index), b, *arrays)


def _add_at(index: tuple[Any, ...], target: Host, value: Any, *arrays: Host) -> None:
    if not arrays:
        target[index] += value
        return
    places, values = _scattered(target, _filled(index, arrays, target.shape), value)
    np.add.at(target, places, values)


def _scattered(target: Host, index: tuple[Any, ...], value: Any, drop_leading_ones: bool = False) -> tuple[Any, Host]:
    """The places that `index` selects and their values, in random order, since the order of threads is undefined."""
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
    """Whether to defer to the other operand's reflected operator, by CuPy's rules (NEP 13, then array priority)."""
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
