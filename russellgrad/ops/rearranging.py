"""Rearranging, repeating and padding the elements of tensors; diagonals and triangles of matrices."""

from collections.abc import Sequence
from itertools import chain
from typing import Any, Self, TypeVar, cast

from .. import rules
from ..apply import TensorBase
from ..backend import Axis, load_backend
from ..dtype import host_number, is_float, python_number, real_array
from ..idioms import numpy_names
from .reductions import Reductions

RearrangingT = TypeVar("RearrangingT", bound="Rearranging")


class Rearranging(Reductions):
    """The methods of Tensor that rearrange, repeat and pad."""

    __slots__ = ()

    @numpy_names
    def flip(self, axis: Axis = None) -> Self:
        """Reverse the order of the elements along `axis`, an int or a tuple of ints; along all axes if it is None.

        Raises IndexError for an axis out of range.

            Tensor([1.0, 2.0, 3.0]).flip()  # [3. 2. 1.]
        """
        axes = rules.normalize_axes("flip", axis, self.ndim)
        return self[tuple(slice(None, None, -1 if i in axes else 1) for i in range(self.ndim))]

    @numpy_names
    def roll(self, shift: int | Sequence[int], axis: int | Sequence[int] | None = None) -> Self:
        """Shift the elements by `shift` places along `axis`; those that pass the end come in at the start.

        Args:
            shift: an int, or one for each axis.
            axis: an int or several, or None, which shifts the flattened tensor and restores its shape.

        Raises:
            IndexError: an axis is out of range. TypeError: a shift is not an int. ValueError: there are not as many
                shifts as axes.

            Tensor([1.0, 2.0, 3.0]).roll(1)  # [3. 1. 2.]
        """
        if axis is None:
            flat = self.ravel()
            for one in _ints("roll", "shift", shift):
                flat = _rolled(flat, one, 0)
            return flat.reshape(self.shape)
        axes, shifts, out = _ints("roll", "axis", axis), _ints("roll", "shift", shift), self
        if len(shifts) == 1:
            shifts *= len(axes)
        elif len(axes) == 1:
            axes *= len(shifts)
        if len(shifts) != len(axes):
            raise ValueError(f"roll: shift {shift} and axis {axis} must have the same length")
        for one, i in zip(shifts, axes, strict=True):  # an axis may be there twice
            out = _rolled(out, one, rules.one_axis("roll", i, self.ndim))
        return out.copy() if out is self else out

    @numpy_names
    def repeat(self, repeats: Any, axis: int | None = None) -> Self:
        """Repeat each element `repeats` times along `axis`; of the flattened tensor if axis is None, as in NumPy.

        `repeats` is an int, or one for each element along the axis. (PyTorch's `repeat` is `tile` here.)

        Raises:
            TypeError: the repeats are not ints. ValueError: they are negative, or not one for each element.
            IndexError: the axis is out of range.

            Tensor([1.0, 2.0]).repeat(2)  # [1. 1. 2. 2.]
        """
        if axis is None:
            return self.ravel().repeat(repeats, 0)
        axis = rules.one_axis("repeat", axis, self.ndim)
        n, counts = self.shape[axis], _ints("repeat", "repeats", repeats)
        if len(counts) not in (1, n) or min(counts, default=0) < 0:
            raise ValueError(
                f"repeat: repeats {counts} must be an int >= 0, or one for each of the {n} elements along axis {axis} "
                f"of shape {self.shape}"
            )
        if len(counts) == 1:
            before, after = self.shape[: axis + 1], self.shape[axis + 1 :]
            out = self.expand_dims(axis + 1).broadcast_to((*before, counts[0], *after)).copy()
            return out.reshape((*before[:-1], n * counts[0], *after))
        rows = [i for i, count in enumerate(counts) for _ in range(count)]
        return self[(*(slice(None),) * axis, rows)]

    def tile(self, *reps: int | Sequence[int]) -> Self:
        """Repeat the tensor reps[i] times along axis i: `tile(2, 3)` or `tile((2, 3))`.

        The shorter one of the shape and `reps` is filled with 1 at the front. Raises TypeError for anything but ints,
        ValueError for negative ones.

            Tensor([1.0, 2.0]).tile(2)  # [1. 2. 1. 2.]
        """
        counts = _ints("tile", "reps", reps[0] if len(reps) == 1 else reps)
        if min(counts, default=0) < 0:
            raise ValueError(f"tile: reps {counts} must not be negative")
        ndim = max(self.ndim, len(counts))
        counts = [1] * (ndim - len(counts)) + counts
        shape = [1] * (ndim - self.ndim) + list(self.shape)
        pairs = list(zip(counts, shape, strict=True))
        separate = self.reshape([length for n in shape for length in (1, n)])
        repeated = separate.broadcast_to(list(chain.from_iterable(pairs))).copy()
        return repeated.reshape([count * n for count, n in pairs])

    @numpy_names
    def pad(self, pad_width: Any, value: float = 0) -> Self:
        """Add elements with the number `value` before and after those of each axis.

        Args:
            pad_width: as in `numpy.pad`: ((before, after), ...) for each axis; (before, after) or ((before, after),)
                for all axes; an int, or (n,), for both sides of all axes; or a dict of axes, {axis: (before, after)}.
            value: a number that the dtype of the tensor represents.

        Raises:
            TypeError: a width is not an int, or the value does not fit the dtype. ValueError: a width is negative, or
                there is not one pair for each axis. IndexError: an axis of a dict is out of range.

            x.pad(((1, 0), (2, 1)))  # (2, 3) -> (3, 6)
        """
        number = python_number(value)
        if number is None:
            raise TypeError(f"pad: value must be a real number, got {value!r}")
        if host_number("pad", number, self.dtype).item() != number and not is_float(self.dtype):
            raise TypeError(
                f"pad: a tensor of dtype {self.dtype} cannot hold the value {value!r}; cast it with .astype"
            )
        out = self
        for axis, sides in enumerate(_pad_width(pad_width, self.shape)):
            before, after = (_constant(out, number, axis, width) for width in sides)
            if any(sides):
                out = self.concatenate([before, out, after], axis)
        return out.copy() if out is self else out

    @numpy_names
    def tril(self, k: int = 0) -> Self:
        """The lower triangle of matrices (..., n, m), with 0 above diagonal k.

        Raises ValueError for fewer than 2 axes.

            x.tril()
        """
        return _triangle("tril", self, k)

    @numpy_names
    def triu(self, k: int = 0) -> Self:
        """The upper triangle of matrices (..., n, m), with 0 below diagonal k.

        Raises ValueError for fewer than 2 axes.

            x.triu(1)
        """
        return _triangle("triu", self, k)

    @numpy_names
    def diagonal(self, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Self:
        """The diagonals of the matrices of axes `axis1` and `axis2`, along a new last axis, as in NumPy.

        Element i is that at (i, i + offset). Raises IndexError for an axis out of range, ValueError for fewer than 2
        axes or equal ones.

            x.diagonal()  # (3, 3) -> (3,)
        """
        return _diagonal("diagonal", self, offset, axis1, axis2)

    @numpy_names
    def trace(self, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Self:
        """The sum of `diagonal(offset, axis1, axis2)`.

        Shapes: (n, m) -> (). Raises as `diagonal`.

            Tensor([[1.0, 2.0], [3.0, 4.0]]).trace()  # 5.0
        """
        return _diagonal("trace", self, offset, axis1, axis2).sum(-1)


def _host(op: str, values: Any) -> Any:
    """Numbers, nested lists or an array as an array on the host."""
    return real_array(
        load_backend("numpy"), cast(Any, values).numpy() if isinstance(values, TensorBase) else values, op
    )


def _ints(op: str, what: str, values: Any) -> list[int]:
    """One or several ints as a list. Raises TypeError for anything else, ValueError for more than one axis."""
    array = _host(op, values)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{op}: {what} must be an int or several, got {values!r}")
    if array.ndim > 1:
        raise ValueError(f"{op}: {what} must be an int or several along one axis, got {values!r}")
    return cast(list[int], array.astype("int64").reshape(-1).tolist())


def _rolled(x: RearrangingT, shift: int, axis: int) -> RearrangingT:
    n = x.shape[axis]
    if not n or shift % n == 0:
        return x
    first, last = x.split([n - shift % n, shift % n], axis)
    return x.concatenate([last, first], axis)


def _pad_width(given: Any, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """NumPy's forms of pad_width as (before, after) of each axis."""
    if isinstance(given, dict):
        pairs: Any = [(0, 0)] * len(shape)
        for axis, sides in given.items():
            pairs[rules.one_axis("pad", axis, len(shape))] = load_backend("numpy").broadcast_to(sides, (2,))
        given = pairs
    try:
        widths = _host("pad", given)
        pairs = load_backend("numpy").broadcast_to(widths, (len(shape), 2)).tolist()
    except ValueError as error:
        raise ValueError(
            f"pad: pad_width {given!r} does not fit shape {shape}; give ((before, after), ...) with one pair for each "
            "axis, or one pair or int for all"
        ) from error
    if widths.dtype.kind not in "iu" and widths.size:
        raise TypeError(f"pad: the widths must be ints, got {given!r}")
    if widths.size and widths.min() < 0:
        raise ValueError(f"pad: the widths must not be negative, got {given!r}; cut elements off with x[1:-1]")
    return cast(list[tuple[int, int]], pairs)


def _constant(x: RearrangingT, value: float, axis: int, width: int) -> RearrangingT:
    """`width` elements along `axis`, with the shape and dtype of x otherwise."""
    root = x.backend.root
    return type(x)._wrap(root.full((*x.shape[:axis], width, *x.shape[axis + 1 :]), value, x.dtype), root)


def _triangle(op: str, x: RearrangingT, k: int) -> RearrangingT:
    rules.check_int(f"{op}: k", k)
    if x.ndim < 2:
        raise ValueError(f"{op}: needs a matrix, or several (..., n, m), got shape {x.shape}")
    root = x.backend.root
    rows, columns = root.expand_dims(root.arange(x.shape[-2]), 1), root.arange(x.shape[-1])
    diagonal = root.add(rows, int(k))  # the column of diagonal k in each row
    hidden = root.greater(columns, diagonal) if op == "tril" else root.less(columns, diagonal)
    return x.masked_fill(hidden, False if x.dtype.kind == "b" else 0)


def _diagonal(op: str, x: RearrangingT, offset: int, axis1: int, axis2: int) -> RearrangingT:
    rules.check_int(f"{op}: offset", offset)
    if x.ndim < 2:
        raise ValueError(f"{op}: needs at least 2 axes, got shape {x.shape}")
    first_axis, second_axis = (rules.one_axis(op, axis, x.ndim) for axis in (axis1, axis2))
    if first_axis == second_axis:
        raise ValueError(f"{op}: axis1={axis1} and axis2={axis2} are the same axis of shape {x.shape}")
    moved = x.moveaxis((first_axis, second_axis), (-2, -1))
    *others, n, m = moved.shape
    first, length = (offset, min(n, m - offset)) if offset >= 0 else (-offset * m, min(n + offset, m))
    length = max(length, 0)
    elements = moved.reshape((*others, n * m))  # those of a diagonal are m + 1 apart
    return elements[..., first : first + length * (m + 1) : m + 1]
