"""Memory layouts of operands: a primitive gives the same result for all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ..backend import Array, Backend

HostArray: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class View:
    """A kind of view.

    Args:
        lay: (xp, host array) -> an array of the backend with its values in this layout.
        values: host array -> one of the same shape, with values that this layout can have.
    """

    title: str
    lay: Callable[[Backend, HostArray], Array]
    values: Callable[[HostArray], HostArray] = lambda a: a


def _contiguous(xp: Backend, a: HostArray) -> Array:
    return xp.asarray(np.array(a, order="C"))


def _transposed(xp: Backend, a: HostArray) -> Array:
    return xp.transpose(_contiguous(xp, a.T))


def _every_second(xp: Backend, a: HostArray) -> Array:
    """Every second element of each axis, in reverse, of an array with nan between them."""
    wide = np.full([2 * n for n in a.shape], np.nan if a.dtype.kind == "f" else 0, a.dtype)
    index = (slice(None, None, -2),) * a.ndim
    wide[index] = a
    return xp.getitem(xp.asarray(wide), index)


def _stretched(xp: Backend, a: HostArray) -> Array:
    """The first row, broadcast, if all rows are equal."""
    if not len(a) or not np.array_equal(a, _rows_alike(a), equal_nan=a.dtype.kind == "f"):
        return _contiguous(xp, a)
    return xp.broadcast_to(_contiguous(xp, a[:1]), a.shape)


def _rows_alike(a: HostArray) -> HostArray:
    return np.repeat(a[:1], len(a), axis=0) if a.ndim and len(a) else a


CONTIGUOUS = View("contiguous", _contiguous)
VIEWS = (
    CONTIGUOUS,
    View("transposed", _transposed),
    View("every-second", _every_second),
    View("broadcast", _stretched, _rows_alike),
)


def arrays_in(x: Any) -> list[HostArray]:
    """The host arrays in an argument: itself, or those in a tuple or list."""
    if isinstance(x, (tuple, list)):
        return [array for part in x for array in arrays_in(part)]
    return [x] if isinstance(x, np.ndarray) else []


def each(x: Any, change: Callable[[HostArray], Any]) -> Any:
    """x with `change` applied to each of `arrays_in(x)`."""
    if type(x) in (tuple, list):
        return type(x)(each(part, change) for part in x)
    return change(x) if isinstance(x, np.ndarray) else x


def typed(x: Any, dtype: str) -> Any:
    """x with its float arrays in `dtype`; unchanged for ""."""
    return each(x, lambda a: a.astype(dtype) if dtype and a.dtype.kind == "f" else a)
