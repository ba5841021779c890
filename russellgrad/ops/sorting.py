"""Sorting, and selecting along an axis by indices."""

from typing import Any, Self

from .. import rules
from ..apply import TensorT, apply, index_part
from ..dtype import real_array
from ..idioms import numpy_names
from .operators import Operators
from .shapes import Shapes


class Sorting(Shapes, Operators):
    """The methods of Tensor that sort, and select along an axis."""

    __slots__ = ()

    @numpy_names
    def argsort(self, axis: int | None = -1) -> Self:
        """The indices (int64) that sort along `axis`, in ascending order; of the flattened tensor if axis is None.

        Equal elements keep their order, and nan comes last. Raises IndexError for an axis out of range.

            Tensor([3.0, 1.0, 2.0]).argsort()  # [1 2 0]
        """
        return apply(rules.argsort, self.ravel() if axis is None else self, axis=-1 if axis is None else axis)

    @numpy_names
    def sort(self, axis: int | None = -1) -> Self:
        """The elements in ascending order along `axis`; of the flattened tensor if axis is None. See `argsort`.

        The gradient goes to the elements where they were. (`torch.sort` returns the indices, too.) Raises IndexError
        for an axis that x does not have.

            Tensor([3.0, 1.0, 2.0]).sort()  # [1. 2. 3.]
        """
        x, axis = (self.ravel(), 0) if axis is None else (self, rules.one_axis("sort", axis, self.ndim))
        return _take(x, _array(x.argsort(axis)), axis)

    @numpy_names
    def topk(self, k: int, axis: int = -1) -> tuple[Self, Self]:
        """The k largest elements along `axis`, the largest first, and their indices (int64), as in `torch.topk`.

        Of equal elements the first comes first; nan counts as the largest. The gradient goes to the chosen elements.

        Raises:
            TypeError: k is not an int. ValueError: the axis has fewer than k elements, or k is negative.
            IndexError: the axis is out of range.

            values, indices = Tensor([3.0, 1.0, 2.0]).topk(2)  # [3. 2.] and [0 2]
        """
        rules.check_int("topk: k", k)
        axis = rules.one_axis("topk", axis, self.ndim)
        n = self.shape[axis]
        if not 0 <= k <= n:
            raise ValueError(f"topk: k={k} is not between 0 and {n}, the length of axis {axis} of shape {self.shape}")
        whole = (slice(None),) * axis
        # Sorted from the last element to the first, so that the first of equal elements is the last of them.
        backwards = self[(*whole, slice(None, None, -1))].argsort(axis)
        last = backwards[(*whole, slice(n - k, n))][(*whole, slice(None, None, -1))]
        indices = (n - 1) - last
        return _take(self, _array(indices), axis), indices

    @numpy_names
    def take_along_axis(self, indices: Any, axis: int | None = -1) -> Self:
        """The elements at `indices` along `axis`, as `numpy.take_along_axis` and `torch.gather` do.

        The gradients of elements that are selected several times add up.

        Args:
            indices: integers in [-n, n) for an axis of length n: a Tensor, array or nested lists, with as many axes as
                this tensor. The other axes have the same lengths, or are broadcast.
            axis: the axis. None selects from the flattened tensor.

        Raises:
            IndexError: an index or the axis is out of range. TypeError: the indices are not integers.
            ValueError: the shapes do not fit.

            x.take_along_axis(x.argsort(axis=1), axis=1)  # sorted
        """
        op = "take_along_axis"
        x, axis = (self.ravel(), 0) if axis is None else (self, rules.one_axis(op, axis, self.ndim))
        root = self.backend.root
        chosen = real_array(root, index_part(indices, self.backend), op)
        if 0 in chosen.shape and not hasattr(indices, "dtype"):  # an empty list
            chosen = root.astype(chosen, "int64")
        if root.dtype(chosen).kind not in "iu":
            raise TypeError(
                f"{op}: indices must be integers, got dtype {root.dtype(chosen)}; make them with .astype('int64')"
            )
        pairs = zip(chosen.shape, x.shape, strict=False)
        if chosen.ndim != x.ndim or any(i != axis and n != m and 1 not in (n, m) for i, (n, m) in enumerate(pairs)):
            raise ValueError(
                f"{op}: indices of shape {chosen.shape} do not fit shape {x.shape}: they need the same number of axes, "
                f"and equal lengths, or 1, except along axis {axis}"
            )
        try:
            (prepared,) = root.prepare_index((chosen,), (x.shape[axis],))
            return _take(x, prepared, axis)
        except IndexError as error:
            n = x.shape[axis]
            raise IndexError(
                f"{op}: an index is out of range for axis {axis} of shape {x.shape}; indices must be in [{-n}, {n})"
            ) from error


def _array(indices: Any) -> Any:
    """The array of the root."""
    return indices.detach()._array


def _take(x: TensorT, indices: Any, axis: int) -> TensorT:
    """The elements at `indices`, an array of the root with indices in range, along the nonnegative `axis`."""
    root, n_axes = x.backend.root, x.ndim
    places = [root.expand_dims(root.arange(n), tuple(j for j in range(n_axes) if j != i)) if i != axis else indices
              for i, n in enumerate(x.shape)]  # fmt: skip
    return apply(rules.getitem, x, index=tuple(places), check=False)
