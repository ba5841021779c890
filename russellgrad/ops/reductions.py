"""Reductions of tensors. axis: None (all axes), an int, or a tuple of ints; () reduces no axis."""

from typing import Self

from .. import rules
from ..apply import TensorBase, apply
from ..backend import Axis
from ..idioms import numpy_names


class Reductions(TensorBase):
    """The reductions of Tensor."""

    __slots__ = ()

    @numpy_names
    def sum(self, axis: Axis = None, keepdims: bool = False) -> Self:
        """The sum over `axis`. The sum of integers or bools is int64.

        Args:
            axis: an int, a tuple of ints, or None for all axes.
            keepdims: keep the reduced axes, with length 1.

        Raises:
            IndexError: an axis is out of range. ValueError: an axis is repeated.

            Tensor([[1.0, 2.0], [3.0, 4.0]]).sum(axis=0)  # [4. 6.]
        """
        return apply(rules.sum, self, axis=axis, keepdims=keepdims)

    @numpy_names
    def mean(self, axis: Axis = None, keepdims: bool = False) -> Self:
        """The arithmetic mean over `axis`, as in `sum`. Raises TypeError for integer and bool tensors."""
        return apply(rules.mean, self, axis=axis, keepdims=keepdims)

    @numpy_names
    def var(self, axis: Axis = None, keepdims: bool = False, *, correction: float = 0) -> Self:
        """The variance over `axis`, as in `sum`: the sum of squared deviations from the mean over n - correction.

        correction=0 is NumPy's default, correction=1 is PyTorch's. Raises TypeError for integer and bool tensors.
        """
        return apply(rules.var, self, axis=axis, correction=correction, keepdims=keepdims)

    @numpy_names
    def max(self, axis: Axis = None, keepdims: bool = False) -> Self:
        """The maximum over `axis`, as in `sum`. Equal maxima share the gradient equally, as in `torch.amax`.

        Raises ValueError for an axis of length 0.
        """
        return apply(rules.max, self, axis=axis, keepdims=keepdims)

    @numpy_names
    def min(self, axis: Axis = None, keepdims: bool = False) -> Self:
        """The minimum over `axis`, as in `sum`. Equal minima share the gradient equally, as in `torch.amin`.

        Raises ValueError for an axis of length 0.
        """
        return apply(rules.min, self, axis=axis, keepdims=keepdims)

    @numpy_names
    def argmax(self, axis: int | None = None, keepdims: bool = False) -> Self:
        """The index (int64) of the first maximum along `axis`; in the flattened tensor if axis is None."""
        return apply(rules.argmax, self, axis=axis, keepdims=keepdims)
