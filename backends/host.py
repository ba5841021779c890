"""Host-side functions that all backends share: random numbers, and checks of ids and indices.

Random numbers come from a counter-based generator (Philox4x64-10: Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011). They are a pure function of (seed, counter) and the same on every backend.
"""

import math
from collections.abc import Sequence
from itertools import accumulate, chain
from math import prod
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
from numpy.ma import MaskedArray, MaskError

HostArray: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Shape: TypeAlias = tuple[int, ...]

# Elements of a row. Of longer rows, softmaxes that sum in one pass in float32 are not used: the error of such a sum
# grows with the number of elements, and is 4e-5 for 131,072 equal ones in 32 lanes.
LONG_ROW = 1 << 14


def _generator(seed: int, counter: int, block: int = 0) -> np.random.Generator:
    # The upper half of the 256-bit counter is `counter`. The generator increments the lower half for each four numbers.
    low, high = counter % 2**64, counter >> 64
    return np.random.Generator(np.random.Philox(key=seed, counter=np.array([block, 0, low, high], np.uint64)))


def normal(shape: Shape, seed: int, counter: int) -> HostArray:
    """Standard normal random numbers in float64, a function of (seed, counter)."""
    return np.asarray(_generator(seed, counter).standard_normal(shape))


def uniform(shape: Shape, seed: int, counter: int, start: int = 0) -> HostArray:
    """Uniform random numbers on [0, 1) in float64: elements `start` and following of the sequence (seed, counter)."""
    block, skip = divmod(start, 4)
    return np.asarray(_generator(seed, counter, block).random(skip + prod(shape))[skip:].reshape(shape))


def real_array(data: Any, dtype: Any = None, others: tuple[str, ...] = ()) -> HostArray:
    """`data` as a host array of real numbers or bools, in the machine's byte order.

    `others` are the names of further allowed dtypes.

    Raises:
        TypeError: complex numbers, strings, dates, objects, structured arrays, floats of more than 64 bits, or a masked
            array.
        ValueError: nested lists of different lengths; nan as an integer.
        OverflowError: a finite number that is out of the range of the dtype.
    """
    try:
        array = _array(data, "asarray")  # without a dtype: with a float dtype, NumPy reads "1" as 1.0 and None as nan
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        raise ValueError("asarray: the nested lists have different lengths; make them equally long") from error
    found = array.dtype
    if found.char not in _REAL:
        if (
            found.kind == "O"
            and array is not data
            and array.size
            and all(isinstance(number, int) for number in array.flat)
        ):
            raise OverflowError("asarray: an int is out of bounds for int64 and uint64; pass a float, such as 1e30")
        check_real(found, others)
    if dtype is None:
        return array if found.isnative else array.astype(found.newbyteorder("="))
    wanted = real_dtype(dtype, others)
    if found == wanted:
        return array
    if wanted.kind in "iu" and array.size:
        _check_integers(array, wanted)
        if found.kind == "f" and array is not data:
            return np.asarray(data, wanted)  # a list of ints and floats: floats do not represent all ints
    with np.errstate(over="ignore"):
        cast = array.astype(wanted)
    if wanted.kind not in "iub" and wanted.itemsize <= found.itemsize:
        overflow = np.isinf(cast) & np.isfinite(array)
        if overflow.any():
            bad = array[overflow][0]
            raise OverflowError(f"asarray: {bad} is out of bounds for {wanted}; use a wider dtype")
    return cast


def _check_integers(array: HostArray, wanted: Any) -> None:
    """Raise OverflowError for a number that an integer dtype cannot represent, ValueError for nan."""
    low, high, limits = array.min(), array.max(), np.iinfo(wanted)
    if low != low:
        raise ValueError(f"asarray: cannot convert float NaN to an integer, {wanted}; replace it first")
    for bad in (low, high):
        if not math.isfinite(bad) or not limits.min <= int(bad) <= limits.max:
            raise OverflowError(f"asarray: {bad} is out of bounds for {wanted}; use a wider dtype")


def check_real(dtype: Any, others: tuple[str, ...] = ()) -> None:
    """Raise TypeError for a dtype that is not of bools or of real numbers of at most 64 bits."""
    if not (dtype.kind in "biuf" and dtype.itemsize <= 8 or dtype.name in others):
        advice = _REAL_PARTS.get(dtype.kind, "")
        raise TypeError(f"asarray: cannot make an array of dtype {dtype}; pass real numbers or bools{advice}")


def real_dtype(dtype: Any, others: tuple[str, ...] = ()) -> Any:
    """The dtype in the machine's byte order. Raises as `check_real` does."""
    found = np.dtype(dtype)
    check_real(found, others)
    return found if found.isnative else found.newbyteorder("=")


_REAL = frozenset("?bhilqBHILQefd")  # NumPy's characters of bools, integers and floats of at most 64 bits
_REAL_PARTS = {
    "c": ", such as x.real, x.imag or abs(x)",
    "f": " of at most 64 bits, x.astype('float64')",
    "M": ", such as x.astype('int64')",
    "m": ", such as x.astype('int64')",
    "V": ", such as one field of a structured array, x['name']",
}  # what to pass instead, by the kind of the dtype


def _array(data: Any, op: str) -> HostArray:
    """np.asarray(data). Raises TypeError for a masked array, also in nested lists, or a tensor that PyTorch refuses."""
    try:
        array = np.asarray(data)
    except (MaskError, UserWarning):  # a masked element as an int; as a float, if warnings are errors
        check_unmasked(data, op)
        raise
    except (RuntimeError, TypeError) as error:
        if isinstance(error, TypeError) and "ScalarType" not in str(error):
            raise  # of another device's array; the message is complete
        raise TypeError(
            f"{op}: {str(error).rstrip('.')}; pass x.detach(), or x.detach().float() of bfloat16"
        ) from error
    if isinstance(data, (MaskedArray, list, tuple)):
        # NumPy makes masked elements nan. Only then look at the elements: a list may have many.
        elements = array.dtype.kind == "f" and np.isnan(array).any()
        check_unmasked(data, op, array.ndim + bool(elements))
    return array


def check_unmasked(data: Any, op: str, depth: int = 65) -> None:
    """Raise TypeError for a masked array, also in nested lists: NumPy would drop its mask without an error.

    Looks into lists up to this depth: 1 looks at `data` only, and NumPy's arrays have at most 64 axes.
    """
    lists: list[Any] = [[data]]
    for _ in range(max(depth, 1)):
        level = list(chain.from_iterable(lists))
        kinds = set(map(type, level))
        if any(issubclass(kind, MaskedArray) for kind in kinds):
            raise TypeError(
                f"{op}: the mask of a masked array would be lost; pass x.filled(value), or x.data and x.mask"
            )
        nested = {kind for kind in kinds if issubclass(kind, (list, tuple))}
        if not nested:
            return
        lists = level if nested == kinds else [part for part in level if type(part) in nested]


def checked_ids(ids: Any, upper: int, op: str) -> HostArray:
    """`ids` as an int64 host array, after checking 0 <= id < `upper`.

    Without the check, a device reads out of bounds without an error, and NumPy wraps negative ids.

    Raises:
        TypeError: the ids are not integers.
        IndexError: an id is out of range; names the id and the range.
    """
    array = _rectangular(ids, op)
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{op}: ids must be integers, got dtype {array.dtype}; make them with dtype='int64'")
    low, high = array.min(), array.max()
    if low < 0 or high >= upper:
        bad = int(low if low < 0 else high)
        raise IndexError(f"{op}: id {bad} is out of range; ids must be in [0, {upper})")
    return array.astype(np.int64)


def checked_targets(ids: Any, upper: int, ignore: int | None, op: str) -> tuple[HostArray, HostArray | None]:
    """Checked targets of a loss, with `ignore` replaced by 0, and a bool array that is True at valid targets.

    The bool array is None if all targets are valid. Raises as `checked_ids` does, and:
        ValueError: no target is valid.
    """
    if not (ignore is None or isinstance(ignore, Integral)) or isinstance(ignore, bool):
        raise TypeError(f"{op}: ignore_index must be an integer, got {ignore!r}")
    array = _rectangular(ids, op)
    valid = None if ignore is None else array != ignore
    if array.size == 0 or valid is not None and not valid.any():
        raise ValueError(f"{op}: all {array.size} ids are padding or ignored; at least one must be valid")
    if valid is None or valid.all():
        return checked_ids(array, upper, op), None
    return checked_ids(np.where(valid, array, 0), upper, op), valid


def _rectangular(ids: Any, op: str) -> HostArray:
    """`ids` as an array. Raises ValueError for rows of different lengths, TypeError for a masked array."""
    try:
        return _array(ids, op)
    except ValueError as error:
        raise ValueError(f"{op}: the rows of ids differ in length; fill the shorter ones with padding") from error


def as_tuple(index: Any) -> tuple[Any, ...]:
    """The index in `x[index]` as a tuple.

    Raises:
        TypeError: the index contains True or False, which NumPy treats as a new axis.
    """
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, bool) for part in parts):
        raise TypeError("getitem: an index may not be a bare True or False; use a bool array of the tensor's shape")
    return parts


def index_array(part: Any) -> HostArray:
    """A copy of a list or host array in an index. An empty list selects nothing.

    Raises IndexError for an array that is not of integers or bools, TypeError for a masked array.
    """
    # A copy, because backward uses it again, and the caller may change the array before that.
    array = np.array(_array(part, "getitem"))
    if array.size == 0 and isinstance(part, list):
        array = array.astype(np.int64)
    if array.ndim == 0 and array.dtype.kind == "b":
        raise TypeError("getitem: an index may not be one bool, which NumPy treats as a new axis; use a mask with axes")
    if array.dtype.kind not in "biu":
        raise IndexError(
            f"getitem: an index array must hold integers or bools, got dtype {array.dtype}; make it with dtype='int64'"
        )
    return array


def is_basic(index: tuple[Any, ...]) -> bool:
    """Whether `index` has only ints, slices, None and an ellipsis. It cannot select an element twice then."""
    return all(part is None or part is Ellipsis or isinstance(part, (slice, int)) for part in index)


def mask_ndim(part: Any) -> int:
    """The number of axes of a bool mask; 0 for anything else."""
    dtype = getattr(part, "dtype", None)
    return int(part.ndim) if dtype is not None and dtype.kind == "b" else 0


def index_axes(index: tuple[Any, ...], ndim: int) -> list[int]:
    """For each part of the index in `a[index]`, the first axis of `a` that it indexes. `a` has `ndim` axes.

    A bool mask indexes as many axes as it has, None indexes none, and the ellipsis indexes the remaining axes.
    """
    spans = [0 if part is None or part is Ellipsis else mask_ndim(part) or 1 for part in index]
    axis, axes = 0, []
    for part, span in zip(index, spans, strict=True):
        axes.append(axis)
        axis += ndim - sum(spans) if part is Ellipsis else span
    return axes


def check_index_array(array: HostArray, axis: int, shape: Shape) -> None:
    """Check an index array as NumPy does when it indexes, for backends that do not check.

    Raises:
        IndexError: an index outside [-n, n) for an axis of length n, a mask of another shape, or too many indices.
    """
    if array.dtype.kind == "b":
        if array.shape != shape[axis : axis + array.ndim]:
            raise IndexError(f"getitem: a mask of shape {array.shape} does not fit axis {axis} of shape {shape}")
        return
    if axis >= len(shape):
        raise IndexError(f"getitem: too many indices for shape {shape}")
    n = shape[axis]
    if array.size and (array.min() < -n or array.max() >= n):
        bad = int(array.min() if array.min() < -n else array.max())
        raise IndexError(f"getitem: index {bad} is out of bounds for axis {axis} with size {n}")


def check_broadcast(shapes: Sequence[Shape]) -> None:
    """Raises IndexError if index arrays of these shapes do not broadcast; CuPy raises ValueError."""
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        given = ", ".join(map(str, shapes))
        raise IndexError(f"getitem: index arrays of shapes {given} do not broadcast; give them equal shapes") from None


def split_flat(flat: Any, shapes: Sequence[Shape]) -> list[Any]:
    """Views of these shapes on a flat array (n,) of any library, one after the other."""
    ends = list(accumulate(map(prod, shapes)))
    return [flat[end - prod(shape) : end].reshape(shape) for shape, end in zip(shapes, ends, strict=True)]
