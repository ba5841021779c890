"""Shapes and indices of tensors."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from math import prod
from numbers import Integral
from typing import Any, NoReturn, Self, cast

from .. import rules
from ..apply import TensorBase, TensorT, apply, index_part
from ..backend import Axis, Index, Shape
from ..idioms import numpy_names


class Shapes(TensorBase):
    """The methods of Tensor that change the shape or select elements."""

    __slots__ = ()

    def transpose(self, axes: int | Sequence[int] | None = None, *more: int) -> Self:
        """Permute the axes: `transpose(1, 0)` or `transpose((1, 0))`; by default, reverse them.

        Raises:
            ValueError: `axes` does not name each axis once. IndexError: an axis is out of range.

            x.transpose((0, 2, 1))  # (2, 3, 4) -> (2, 4, 3)
        """
        if more or isinstance(axes, Integral):
            axes = cast(Sequence[int], (axes, *more))
        return apply(rules.transpose, self, axes=axes)

    @property
    def T(self) -> Self:
        """The tensor with its axes reversed: the transpose of a matrix."""
        return self.transpose()

    def swapaxes(self, axis1: int, axis2: int) -> Self:
        """Swap two axes: `x.swapaxes(-1, -2)` transposes the matrices of a batch.

        Raises IndexError for an axis out of range.
        """
        first, second = (rules.normalize_axes("swapaxes", axis, self.ndim)[0] for axis in (axis1, axis2))
        axes = list(range(self.ndim))
        axes[first], axes[second] = second, first
        return self.transpose(axes)

    def reshape(self, *shape: int | Sequence[int]) -> Self:
        """Change the shape: `reshape(2, 3)` or `reshape((2, 3))`. The elements keep their C order.

        One length may be -1; it is inferred. Raises ValueError if the number of elements changes.
        """
        return apply(rules.reshape, self, shape=shape_from_args("reshape", shape))

    @numpy_names
    def flatten(self, start: int = 0, end: int = -1) -> Self:
        """Join the axes from `start` to `end`, which is included, into one. A 0-d tensor gets one axis.

        Raises IndexError for an axis out of range, ValueError if `start` is after `end`.

            x.flatten(1)  # (2, 3, 4) -> (2, 12)
        """
        if not self.ndim:
            return self.reshape(1)
        first, last = (rules.one_axis("flatten", axis, self.ndim) for axis in (start, end))
        if first > last:
            raise ValueError(f"flatten: start={start} is after end={end} in a tensor of {self.ndim} axes; swap them")
        joined = prod(self.shape[first : last + 1])
        return self.reshape((*self.shape[:first], joined, *self.shape[last + 1 :]))

    def ravel(self) -> Self:
        """All elements in C order along one axis.

        Shapes: (...) -> (n,).

            x.ravel()  # (2, 3) -> (6,)
        """
        return self.reshape(-1)

    def copy(self) -> Self:
        """A copy with memory of its own. The gradient is passed on; for a tensor without history, call `detach` first.

        Shapes: (...) -> (...).

            x.copy()
        """
        return apply(rules.copy, self)

    def moveaxis(self, source: int | Sequence[int], destination: int | Sequence[int]) -> Self:
        """Move the axes `source` to the places `destination`. The others keep their order.

        Raises:
            IndexError: an axis is out of range. ValueError: an axis is repeated, or there are more axes than places.

            x.moveaxis(0, -1)  # (2, 3, 4) -> (3, 4, 2)
        """
        moved = rules.normalize_axes("moveaxis", cast(Axis, source), self.ndim)
        places = rules.normalize_axes("moveaxis", cast(Axis, destination), self.ndim)
        if len(moved) != len(places):
            raise ValueError(f"moveaxis: source {source} and destination {destination} must have as many axes")
        order = [axis for axis in range(self.ndim) if axis not in moved]
        for place, axis in sorted(zip(places, moved, strict=True)):
            order.insert(place, axis)
        return self.transpose(order)

    def broadcast_to(self, *shape: int | Sequence[int]) -> Self:
        """Broadcast to a shape: `broadcast_to(2, 3)` or `broadcast_to((2, 3))`. The gradient is summed back.

        Raises ValueError for a shape to which the tensor does not broadcast.
        """
        return apply(rules.broadcast_to, self, shape=shape_from_args("broadcast_to", shape))

    @numpy_names
    def squeeze(self, axis: Axis = None) -> Self:
        """Remove axes of length 1, or those in `axis`. A longer axis in `axis` stays, as in PyTorch.

        Raises IndexError for an axis out of range.
        """
        return apply(rules.squeeze, self, axis=axis)

    @numpy_names
    def expand_dims(self, axis: int | tuple[int, ...]) -> Self:
        """Insert a new axis of length 1 at each position in `axis`, an int or a tuple of ints.

        Raises IndexError for an axis out of range.

            x.expand_dims(0)  # (2, 3) -> (1, 2, 3)
        """
        return apply(rules.expand_dims, self, axis=axis)

    @staticmethod
    @numpy_names
    def concatenate(tensors: Iterable[TensorT], axis: int = 0) -> TensorT:
        """Join tensors along an existing axis: (..., n_i, ...) -> (..., sum n_i, ...).

        Raises:
            ValueError: the list is empty, or the shapes differ in another axis. IndexError: the axis is out of range.

            Tensor.concatenate([a, b], axis=1)
        """
        return apply(rules.concatenate, *_check_tensors("concatenate", tensors), axis=axis)

    @staticmethod
    @numpy_names
    def stack(tensors: Iterable[TensorT], axis: int = 0) -> TensorT:
        """Join tensors of equal shape along a new axis.

        Raises:
            ValueError: the list is empty, or the shapes differ. IndexError: the axis is out of range.

            Tensor.stack([a, b])  # (3,) and (3,) -> (2, 3)
        """
        return apply(rules.stack, *_check_tensors("stack", tensors), axis=axis)

    @numpy_names
    def split(self, size_or_sizes: int | Sequence[int], axis: int = 0) -> list[Self]:
        """Split into pieces along `axis`, as `torch.split` does.

        Args:
            size_or_sizes: the length of each piece (the last may be shorter), or a list of all lengths.
            axis: the axis.

        Raises:
            ValueError: the lengths do not add up to the length of the axis, or a length is negative.
            IndexError: the axis is out of range.

            x.split(2)  # (5,) -> (2,), (2,), (1,)
        """
        (split_axis,) = rules.normalize_axes("split", axis, self.ndim)
        n = self.shape[split_axis]
        if isinstance(size_or_sizes, Integral) and not isinstance(size_or_sizes, bool):
            size_or_sizes = int(size_or_sizes)
            if size_or_sizes < 1:
                raise ValueError(f"split: the size of a piece must be positive, got {size_or_sizes}")
            sizes = [min(size_or_sizes, n - start) for start in range(0, n, size_or_sizes)] or [0]
        else:
            sizes = list(shape_from_args("split", (size_or_sizes,)))
            if sum(sizes) != n or min(sizes, default=0) < 0:
                raise ValueError(f"split: sizes {sizes} do not add up to axis {axis} of shape {self.shape}")
        stops = list(accumulate(sizes))
        before = (slice(None),) * split_axis
        return [self[(*before, slice(stop - size, stop))] for size, stop in zip(sizes, stops, strict=True)]

    def __getitem__(self, index: Index) -> Self:
        """x[index] with ints, slices, None, an ellipsis, bool masks and integer arrays.

        The gradients of elements that are selected several times add up.
        """
        parts = index if isinstance(index, tuple) else (index,)
        return apply(rules.getitem, self, index=tuple(index_part(part, self.backend) for part in parts))

    def __setitem__(self, index: Index, value: Any) -> NoReturn:
        raise TypeError(
            "setitem: x[index] = value is not supported; make a new tensor with x.at(index).set(value) or "
            "where(mask, value, x), or write into x.data and call x.changed_in_place()"
        )

    def __iter__(self) -> Iterator[Self]:
        if not self.ndim:
            raise TypeError("iter: a 0-d tensor cannot be iterated over")
        return (self[i] for i in range(self.shape[0]))


def shape_from_args(op: str, shape: tuple[Any, ...]) -> Shape:
    """The shape from the arguments (2, 3) or ((2, 3),). Raises TypeError for anything but ints."""
    lengths = tuple(shape[0]) if len(shape) == 1 and hasattr(shape[0], "__iter__") else shape
    if not all(hasattr(n, "__index__") and not isinstance(n, bool) for n in lengths):
        raise TypeError(f"{op}: the lengths must be ints, as in {op}((2, 3)), got {', '.join(map(repr, shape))}")
    return tuple(n.__index__() for n in lengths)


def _check_tensors(op: str, tensors: Iterable[TensorT]) -> Sequence[TensorT]:
    """The list. Raises ValueError if it is empty or a Tensor, TypeError if an element is not a Tensor."""
    if not isinstance(tensors, Iterable):
        raise TypeError(f"{op}: give a list of tensors, got a {type(tensors).__name__}")
    if isinstance(tensors, TensorBase) or not (tensors := list(tensors)):
        raise ValueError(f"{op}: give a list of at least one tensor")
    for tensor in tensors:
        if not isinstance(tensor, TensorBase):
            raise TypeError(f"{op}: give a list of tensors; it holds a {type(tensor).__name__}")
    return tensors
