"""Elementwise methods of tensors, softmax and masks: (...) -> (...)."""

from collections.abc import Callable
from typing import Self

from .. import rules
from ..apply import Mask, Operand, TensorBase, TensorT, apply
from ..backend import DType
from ..idioms import numpy_names


def _elementwise(rule: rules.Rule, doc: str) -> Callable[[TensorT], TensorT]:
    """The method of Tensor that applies an elementwise rule."""

    def method(self: TensorT) -> TensorT:
        return apply(rule, self)

    method.__name__, method.__qualname__, method.__doc__ = rule.__name__, f"Tensor.{rule.__name__}", doc
    return method


class Elementwise(TensorBase):
    """The elementwise methods of Tensor."""

    __slots__ = ()

    exp = _elementwise(rules.exp, "The exponential, e ** x.")
    expm1 = _elementwise(rules.expm1, "The exponential minus 1, accurate for x near 0.")
    log = _elementwise(rules.log, "The natural logarithm, nan for x < 0.")
    log1p = _elementwise(rules.log1p, "log(1 + x), accurate for x near 0.")
    log2 = _elementwise(rules.log2, "The base-2 logarithm.")
    sqrt = _elementwise(rules.sqrt, "The square root.")
    tanh = _elementwise(rules.tanh, "The hyperbolic tangent.")
    abs = _elementwise(rules.abs, "The absolute value. The gradient at 0 is 0.")
    sin = _elementwise(rules.sin, "The sine of x in radians.")
    cos = _elementwise(rules.cos, "The cosine of x in radians.")
    arctan = _elementwise(rules.arctan, "The inverse tangent, in radians.")
    floor = _elementwise(rules.floor, "The largest integer <= x, in the dtype of x. The gradient is 0.")
    ceil = _elementwise(rules.ceil, "The smallest integer >= x, in the dtype of x. The gradient is 0.")
    sigmoid = _elementwise(rules.sigmoid, "The logistic sigmoid, 1 / (1 + e ** -x).")
    relu = _elementwise(rules.relu, "max(x, 0). The gradient at 0 is 0.")

    def leaky_relu(self, alpha: float = 0.01) -> Self:
        """x where x > 0, else alpha * x (Maas et al., ICML workshop 2013). The gradient at 0 is alpha."""
        return apply(rules.leaky_relu, self, alpha=alpha)

    def gelu(self, approximate: str = "none") -> Self:
        """Gaussian error linear unit: x * Phi(x), where Phi is the standard normal distribution function.

        Hendrycks & Gimpel, arXiv:1606.08415.

        Args:
            approximate: "none" for the exact function, "tanh" for the approximation. Raises ValueError for any other.
        """
        return apply(rules.gelu, self, approximate=approximate)

    def maximum(self, other: Operand) -> Self:
        """Elementwise maximum. nan propagates. Where both are equal, each gets half of the gradient."""
        return apply(rules.maximum, self, other)

    def minimum(self, other: Operand) -> Self:
        """Elementwise minimum. nan propagates. Where both are equal, each gets half of the gradient."""
        return apply(rules.minimum, self, other)

    def astype(self, dtype: DType) -> Self:
        """Cast to another dtype. The gradient is cast back; integer and bool results track no gradients.

        Raises TypeError for a dtype that is not of real numbers or bools.

            x.astype("float32")
        """
        return apply(rules.astype, self, dtype=dtype)

    @numpy_names
    def softmax(self, axis: int = -1) -> Self:
        """exp(x) / sum(exp(x)) along `axis`, without overflow. Raises IndexError for an axis that x does not have."""
        return apply(rules.softmax, self, axis=axis)

    @numpy_names
    def log_softmax(self, axis: int = -1) -> Self:
        """x - log(sum(exp(x))) along `axis`, without overflow. Raises IndexError for an axis that x does not have."""
        return apply(rules.log_softmax, self, axis=axis)

    @numpy_names
    def clip(self, min: Operand | None = None, max: Operand | None = None) -> Self:
        """Limit the elements to [min, max]. The bounds are numbers, tensors or None; the gradient is 1 at the bounds.

        The result is `max` where min > max. Raises ValueError if both bounds are None.
        """
        if min is None and max is None:
            raise ValueError("clip: give min, max or both")
        return apply(rules.clip, self, min, max)

    def masked_fill(self, mask: Mask, value: Operand) -> Self:
        """Replace the elements where `mask` is True with `value`, a number or 0-d tensor.

        Raises:
            TypeError: the mask is not bool. ValueError: the mask does not broadcast to the tensor's shape, or `value`
                has axes.

            scores.masked_fill(mask, -math.inf)
        """
        return apply(rules.masked_fill, self, value, mask=mask)

    def masked_multiply(self, mask: Mask, value: Operand) -> Self:
        """Multiply the elements where `mask` is True by `value`; the others do not change.

        Raises:
            TypeError: the mask is not bool. ValueError: the mask does not broadcast to the tensor's shape.
        """
        return apply(rules.masked_multiply, self, value, mask=mask)
