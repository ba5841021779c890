"""What every backend does on the host, in NumPy: random draws, and checks of ids and indices before they are used.

Random numbers come from one counter-based generator (Philox4x64-10: Salmon et al., "Parallel random numbers: as easy
as 1, 2, 3", SC 2011), so a draw is a pure function of (seed, counter) and the same on every backend.
"""

from math import prod
from typing import Any, TypeAlias

import numpy as np

HostArray: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Shape: TypeAlias = tuple[int, ...]


def _generator(seed: int, counter: int, block: int = 0) -> np.random.Generator:
    # The upper half of the 256-bit counter is ours, the lower half is what one draw walks through, in blocks of four.
    low, high = counter % 2**64, counter >> 64
    return np.random.Generator(np.random.Philox(key=seed, counter=np.array([block, 0, low, high], np.uint64)))


def normal(shape: Shape, seed: int, counter: int) -> HostArray:
    """Standard normal numbers in float64, fixed by (seed, counter)."""
    return np.asarray(_generator(seed, counter).standard_normal(shape))


def uniform(shape: Shape, seed: int, counter: int, start: int = 0) -> HostArray:
    """Numbers uniform on [0, 1) in float64, fixed by (seed, counter): of all that these give, those from `start` on."""
    block, before = divmod(start, 4)
    return np.asarray(_generator(seed, counter, block).random(before + prod(shape))[before:].reshape(shape))


def real_array(data: Any, dtype: Any = None, others: tuple[str, ...] = ()) -> HostArray:
    """`data` as a host array of numbers or bools. `others` are names of dtypes besides NumPy's own that will do.

    Raises:
        TypeError: complex numbers, strings, objects.
        ValueError: ragged nested lists.
    """
    array = np.asarray(data, dtype=dtype)
    check_real(array.dtype, others)
    return array


def check_real(dtype: Any, others: tuple[str, ...] = ()) -> None:
    """Raises TypeError for a dtype of complex numbers, strings or objects."""
    if dtype.kind not in "biuf" and dtype.name not in others:
        raise TypeError(f"asarray: cannot make an array of dtype {dtype}; pass real numbers or bools")


def checked_ids(ids: Any, upper: int, op: str) -> HostArray:
    """`ids` as an int64 host array, after checking 0 <= id < `upper`.

    A device indexes out of range without a word, and NumPy wraps negative ids, so both would train in silence on the
    wrong rows.

    Raises:
        TypeError: ids that are not integers.
        IndexError: an id out of range; names the id and the range.
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
    """Ids as `checked_ids` gives them, with those equal to `ignore` set to 0, and a bool array of those that count.

    The second is None where all of them count. Raises as `checked_ids` does, and:
        ValueError: no id counts, so there is no mean.
    """
    array = _rectangular(ids, op)
    counted = None if ignore is None else array != ignore
    if array.size == 0 or counted is not None and not counted.any():
        raise ValueError(f"{op}: all {array.size} ids are padding or ignored; at least one must count")
    if counted is None or counted.all():
        return checked_ids(array, upper, op), None
    return checked_ids(np.where(counted, array, 0), upper, op), counted


def _rectangular(ids: Any, op: str) -> HostArray:
    try:
        return np.asarray(ids)
    except ValueError as error:
        raise ValueError(f"{op}: the rows of ids differ in length; fill the shorter ones with padding") from error


def as_tuple(index: Any) -> tuple[Any, ...]:
    """The index of `x[index]` as a tuple.

    Raises:
        TypeError: a bare True or False, which NumPy would take for a new axis.
    """
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, bool) for part in parts):
        raise TypeError("getitem: an index may not be a bare True or False; use a bool array of the tensor's shape")
    return parts


def index_array(part: Any) -> HostArray:
    """A copy of a list or host array between the brackets of `x[...]`; an empty list picks nothing."""
    array = np.array(part)  # a copy: backward uses it again, whatever the caller has done to it by then
    if array.size == 0 and isinstance(part, list):
        array = array.astype(np.int64)
    if array.dtype.kind not in "biu":
        raise IndexError(
            f"getitem: an index array must hold integers or bools, got dtype {array.dtype}; make it with dtype='int64'"
        )
    return array


def is_basic(index: tuple[Any, ...]) -> bool:
    """Whether `index` holds only ints, slices, None and ellipsis: no element can then be picked twice."""
    return all(part is None or part is Ellipsis or isinstance(part, (slice, int)) for part in index)


def mask_ndim(part: Any) -> int:
    """The number of axes a bool mask spans; 0 for anything else."""
    dtype = getattr(part, "dtype", None)
    return int(part.ndim) if dtype is not None and dtype.kind == "b" else 0


def axes_of(index: tuple[Any, ...], ndim: int) -> list[int]:
    """The first axis of `a` that each part of `a[index]` speaks of, for an `a` with `ndim` axes.

    A bool mask spans as many axes as it has dimensions, None spans none, and the ellipsis spans what is left.
    """
    spans = [0 if part is None or part is Ellipsis else mask_ndim(part) or 1 for part in index]
    axis, axes = 0, []
    for part, span in zip(index, spans, strict=True):
        axes.append(axis)
        axis += ndim - sum(spans) if part is Ellipsis else span
    return axes


def check_index_array(array: HostArray, axis: int, shape: Shape) -> None:
    """What NumPy checks when it indexes, for backends that do not.

    Raises:
        IndexError: an integer outside [-n, n) for an axis of length n, a mask of another shape, too many indices.
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
