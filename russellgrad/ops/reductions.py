"""Reductions of tensors, and sums and products along an axis.

axis: None (all axes), an int, or a tuple of ints; () reduces no axis.
"""

import math
from collections.abc import Iterable
from typing import Any, Self, TypeVar, cast

from .. import rules
from ..apply import TensorBase, TensorT, apply
from ..backend import Axis
from ..dtype import get_default_dtype, is_float, python_number
from ..idioms import numpy_names
from .elementwise import Elementwise
from .operators import Operators
from .shapes import Shapes

ReductionsT = TypeVar("ReductionsT", bound="Reductions")


class Reductions(Elementwise, Shapes, Operators):
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
    def std(self, axis: Axis = None, keepdims: bool = False, *, correction: float = 0) -> Self:
        """The standard deviation over `axis`, the square root of `var`. Its gradient is 0 where the elements are equal.

        correction=0 is NumPy's default, correction=1 is PyTorch's. Raises as `var` does.

            Tensor([1.0, 3.0]).std()  # 1.0
        """
        rules.check_float("std", self.dtype)
        axes = rules.normalize_axes("std", axis, self.ndim)
        return _rounded(_sqrt(_widened(self).var(axes, keepdims, correction=correction)), self)

    @numpy_names
    def norm(self, ord: float = 2, axis: Axis = None, keepdims: bool = False) -> Self:
        """The vector norm over `axis`: sum(|x| ** ord) ** (1 / ord), as `torch.linalg.vector_norm`.

        Args:
            ord: 2, 1 or any other number; inf for the largest, -inf for the smallest |x|; 0 for the number of elements
                that are not 0.
            axis, keepdims: as in `sum`. Over several axes, the norm of all their elements, not a norm of a matrix.

        The gradient is 0 where the norm is 0. Integers are cast to the default dtype.

        Raises:
            TypeError: ord is not a number. ValueError: ord is nan, or the largest or smallest of no elements.
            IndexError: an axis is out of range.

            Tensor([3.0, 4.0]).norm()  # 5.0
        """
        order = python_number(ord)
        if order is None or isinstance(order, bool):
            raise TypeError(
                f"norm: ord must be a number, such as 2, 1 or math.inf, got {ord!r}; a Frobenius norm is x.norm()"
            )
        if math.isnan(order):
            raise ValueError("norm: ord must be a number, such as 2, 1 or math.inf, got nan")
        axes = rules.normalize_axes("norm", axis, self.ndim)
        x = _widened(self)
        if math.isinf(order):
            _check_not_empty("norm", self, axes)
            found = x.abs().max(axes, keepdims) if order > 0 else x.abs().min(axes, keepdims)
        elif order == 0:
            found = apply(rules.not_equal, x, 0).sum(axes, keepdims).astype(x.dtype)
        elif order == 1:
            found = x.abs().sum(axes, keepdims)
        elif order == 2:
            found = _sqrt((x * x).sum(axes, keepdims))
        else:
            is_zero = apply(rules.equal, x, 0)  # where the derivative of a power may be infinite
            powers = (x.masked_fill(is_zero, 1).abs() ** order).masked_fill(is_zero, 0 if order > 0 else math.inf)
            total = powers.sum(axes, keepdims)
            is_zero = apply(rules.equal, total, 0)
            found = (total.masked_fill(is_zero, 1) ** (1 / order)).masked_fill(is_zero, 0)
        return _rounded(found, self)

    @numpy_names
    def logsumexp(self, axis: Axis = None, keepdims: bool = False) -> Self:
        """log(sum(exp(x))) over `axis`, as in `sum`, without overflow. Integers are cast to the default dtype.

        The result is -inf where all elements are -inf, or there are none; the gradient is 0 there. Raises IndexError as
        `sum`.

            Tensor([1000.0, 1000.0]).logsumexp()  # 1000.6931
        """
        axes = rules.normalize_axes("logsumexp", axis, self.ndim)
        x = _widened(self)
        is_empty = 0 in (self.shape[i] for i in axes)
        constant: Self = cast(Any, x).detach()  # the result does not depend on the shift
        largest = constant.sum(axes, True) if is_empty else constant.max(axes, True)
        shift = largest.masked_fill(~(largest.abs() < math.inf), 0)  # inf - inf is nan
        total = (x - shift).exp().sum(axes, keepdims)
        is_zero = apply(rules.equal, total, 0)
        out = total.masked_fill(is_zero, 1).log().masked_fill(is_zero, -math.inf)
        return _rounded(out + (shift if keepdims else shift.reshape(out.shape)), self)

    @numpy_names
    def prod(self, axis: Axis = None, keepdims: bool = False) -> Self:
        """The product over `axis`, as in `sum`. The product of no elements is 1; of integers or bools, it is int64.

        The elements are multiplied in pairs, the products again in pairs, and so on. There is no division by elements,
        so that derivatives of every order are right where elements are 0. A product of some elements may overflow where
        NumPy's, from left to right, does not: [0, 1e200, 1, 1e200] gives nan. Raises IndexError as `sum`.

            Tensor([2.0, 3.0, 4.0]).prod()  # 24.0
        """
        axes = rules.normalize_axes("prod", axis, self.ndim)
        out = _widened(self) if is_float(self.dtype) else self.astype("int64")
        for i in axes:
            out = _product(out, i)
        out = self.copy() if out is self else _rounded(out, self)
        return out if keepdims else out.reshape([n for i, n in enumerate(self.shape) if i not in axes])

    @numpy_names
    def cumsum(self, axis: int | None = None) -> Self:
        """The sums of the first 1, 2, ... elements along `axis`; of the flattened tensor if axis is None.

        The sums of integers or bools are int64. Raises IndexError for an axis that is out of range.

            Tensor([1.0, 2.0, 3.0]).cumsum()  # [1. 3. 6.]
        """
        x = self.reshape(-1) if axis is None else self
        return apply(rules.cumsum, x, axis=0 if axis is None else axis)

    @numpy_names
    def cumprod(self, axis: int | None = None) -> Self:
        """The products of the first 1, 2, ... elements along `axis`; of the flattened tensor if axis is None.

        The products of integers or bools are int64. Derivatives of every order are right where elements are 0. It takes
        log2(n) products of the whole tensor for an axis of length n (Hillis & Steele, "Data parallel algorithms",
        Communications of the ACM 29, 1986), which may overflow as in `prod`. Raises IndexError for an axis that is out
        of range.

            Tensor([1.0, 2.0, 3.0]).cumprod()  # [1. 2. 6.]
        """
        x = self.reshape(-1) if axis is None else self
        axis = 0 if axis is None else rules.one_axis("cumprod", axis, self.ndim)
        out = _widened(x) if is_float(x.dtype) else x.astype("int64")
        n, step = x.shape[axis], 1
        while step < n:  # each element is the product of the last `step` elements
            first, later = out.split([step, n - step], axis)
            out = self.concatenate([first, later * out.split([n - step, step], axis)[0]], axis)
            step *= 2
        return self.copy() if out is self else _rounded(out, x)

    @numpy_names
    def any(self, axis: Axis = None, keepdims: bool = False) -> Self:
        """Whether an element over `axis`, as in `sum`, is True or not 0: a bool tensor. False for no elements.

        Raises IndexError as `sum`.

            (x > 0).any()
        """
        n_true = apply(rules.not_equal, self, 0).sum(rules.normalize_axes("any", axis, self.ndim), keepdims)
        return n_true > 0

    @numpy_names
    def all(self, axis: Axis = None, keepdims: bool = False) -> Self:
        """Whether all elements over `axis`, as in `sum`, are True or not 0: a bool tensor. True for no elements.

        Raises IndexError as `sum`.

            (x > 0).all()
        """
        n_false = apply(rules.equal, self, 0).sum(rules.normalize_axes("all", axis, self.ndim), keepdims)
        return apply(rules.equal, n_false, 0)

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
        """The index (int64) of the first maximum along `axis`; in the flattened tensor if axis is None.

        Raises ValueError for an axis of length 0, IndexError for an axis that x does not have.
        """
        return apply(rules.argmax, self, axis=axis, keepdims=keepdims)

    @numpy_names
    def argmin(self, axis: int | None = None, keepdims: bool = False) -> Self:
        """The index (int64) of the first minimum along `axis`; in the flattened tensor if axis is None.

        The index of the first nan, if there is one. Raises ValueError for an axis of length 0.
        """
        axes = None if axis is None else rules.one_axis("argmin", axis, self.ndim)
        _check_not_empty("argmin", self, range(self.ndim) if axes is None else (axes,))
        is_least = self == self.min(axes, keepdims=True)
        return (is_least | (self != self)).argmax(axes, keepdims)  # nan is not equal to itself


def _widened(x: TensorT) -> TensorT:
    """x in float32 if it is in half precision, in the default dtype if it is not a float."""
    if not is_float(x.dtype):
        return apply(rules.astype, x, dtype=get_default_dtype(x.backend))
    return x if x.dtype.itemsize > 2 else apply(rules.astype, x, dtype="float32")


def _rounded(y: TensorT, x: TensorT) -> TensorT:
    """y in the dtype of x, if that is in half precision."""
    return apply(rules.astype, y, dtype=x.dtype) if is_float(x.dtype) and x.dtype != y.dtype else y


def _check_not_empty(op: str, x: TensorBase, axes: Iterable[int]) -> None:
    if 0 in (x.shape[i] for i in axes):
        raise ValueError(f"{op}: shape {x.shape} has no elements along the axis, of which one would be chosen")


def _sqrt(x: ReductionsT) -> ReductionsT:
    """The square root, with a derivative of 0 at 0."""
    is_zero = apply(rules.equal, x, 0)
    return x.masked_fill(is_zero, 1).sqrt().masked_fill(is_zero, 0)


def _product(x: ReductionsT, axis: int) -> ReductionsT:
    """The product along `axis`, which keeps length 1."""
    n = x.shape[axis]
    if n == 0:
        return x.sum(axis, True) + 1
    while n > 1:
        first, second, rest = x.split([n // 2, n // 2, n % 2], axis)
        x = first * second if n % 2 == 0 else x.concatenate([first * second, rest], axis)
        n = x.shape[axis]
    return x
