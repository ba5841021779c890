"""Elementwise methods of tensors, softmax and masks: (...) -> (...)."""

from collections.abc import Callable
from typing import Self

from .. import rules
from ..apply import Mask, Operand, TensorBase, TensorT, apply
from ..backend import DType
from ..dtype import largest
from ..idioms import numpy_names


def _elementwise(rule: rules.Rule, doc: str) -> Callable[[TensorT], TensorT]:
    """The method of Tensor that applies an elementwise rule."""

    def method(self: TensorT) -> TensorT:
        return apply(rule, self)

    method.__name__, method.__qualname__ = rule.__name__, f"Tensor.{rule.__name__}"
    method.__doc__ = f"{doc}\n\nShapes: (...) -> (...)."
    return method


class Elementwise(TensorBase):
    """The elementwise methods of Tensor."""

    __slots__ = ()

    exp = _elementwise(rules.exp, "The exponential, e ** x.")
    expm1 = _elementwise(rules.expm1, "The exponential minus 1, accurate for x near 0.")
    log = _elementwise(rules.log, "The natural logarithm, nan for x < 0.")
    log1p = _elementwise(rules.log1p, "log(1 + x), accurate for x near 0.")
    exp2 = _elementwise(rules.exp2, "2 ** x.")
    log2 = _elementwise(rules.log2, "The base-2 logarithm.")
    log10 = _elementwise(rules.log10, "The base-10 logarithm.")
    square = _elementwise(rules.square, "x * x, in the dtype of x.")
    sqrt = _elementwise(rules.sqrt, "The square root.")
    tanh = _elementwise(rules.tanh, "The hyperbolic tangent.")
    sinh = _elementwise(rules.sinh, "The hyperbolic sine.")
    cosh = _elementwise(rules.cosh, "The hyperbolic cosine.")
    abs = _elementwise(rules.abs, "The absolute value. The gradient at 0 is 0.")
    sin = _elementwise(rules.sin, "The sine of x in radians.")
    cos = _elementwise(rules.cos, "The cosine of x in radians.")
    tan = _elementwise(rules.tan, "The tangent of x in radians.")
    arcsin = _elementwise(rules.arcsin, "The inverse sine, in radians, nan for |x| > 1.")
    arccos = _elementwise(rules.arccos, "The inverse cosine, in radians, nan for |x| > 1.")
    arctan = _elementwise(rules.arctan, "The inverse tangent, in radians.")
    erf = _elementwise(rules.erf, "The error function, the integral of 2 / sqrt(pi) * e ** -t^2 over t from 0 to x.")
    sign = _elementwise(rules.sign, "-1, 0 or 1, in the dtype of x; nan for nan. The gradient is 0.")
    isnan = _elementwise(rules.isnan, "Whether an element is nan: a bool tensor.")
    isinf = _elementwise(rules.isinf, "Whether an element is inf or -inf: a bool tensor.")
    isfinite = _elementwise(rules.isfinite, "Whether an element is neither nan nor infinite: a bool tensor.")
    floor = _elementwise(rules.floor, "The largest integer <= x, in the dtype of x. The gradient is 0.")
    ceil = _elementwise(rules.ceil, "The smallest integer >= x, in the dtype of x. The gradient is 0.")
    sigmoid = _elementwise(rules.sigmoid, "The logistic sigmoid, 1 / (1 + e ** -x).")
    relu = _elementwise(rules.relu, "max(x, 0). The gradient at 0 is 0.")
    silu = _elementwise(rules.silu, "x * sigmoid(x), also called swish (Ramachandran et al., arXiv:1710.05941).")

    def leaky_relu(self, alpha: float = 0.01) -> Self:
        """x where x > 0, else alpha * x (Maas et al., ICML workshop 2013). The gradient at 0 is alpha.

        Shapes: (...) -> (...). Raises TypeError if alpha is not a number.
        """
        return apply(rules.leaky_relu, self, alpha=alpha)

    def gelu(self, approximate: str = "none") -> Self:
        """Gaussian error linear unit: x * Phi(x), where Phi is the standard normal distribution function.

        Hendrycks & Gimpel, arXiv:1606.08415. Shapes: (...) -> (...).

        Args:
            approximate: "none" for the exact function, "tanh" for the approximation. Raises ValueError for any other.
        """
        return apply(rules.gelu, self, approximate=approximate)

    def softplus(self, beta: float = 1, threshold: float = 20) -> Self:
        """log(1 + e ** (beta * x)) / beta, a smooth relu (Dugas et al., NIPS 2000).

        Where beta * x > threshold, the result is x, as in PyTorch. Shapes: (...) -> (...). Raises ValueError if beta
        is 0.
        """
        return apply(rules.softplus, self, beta=beta, threshold=threshold)

    def elu(self, alpha: float = 1) -> Self:
        """x where x > 0, else alpha * (e ** x - 1) (Clevert et al., arXiv:1511.07289). The gradient at 0 is alpha.

        Shapes: (...) -> (...). Raises TypeError if alpha is not a number.
        """
        return apply(rules.elu, self, alpha=alpha)

    def round(self, decimals: int = 0) -> Self:
        """Round to `decimals` decimal places; of two nearest numbers, to the even one. The gradient is 0.

        Shapes: (...) -> (...). Integers stay integers. Raises TypeError if decimals is not an int, or negative and x is
        of integers.

            Tensor([0.5, 1.5, 2.25]).round()  # [0. 2. 2.]
        """
        return apply(rules.round, self, decimals=decimals)

    def arctan2(self, other: Operand) -> Self:
        """The angle of the point (other, self) in radians, in [-pi, pi]: `y.arctan2(x)`. They are broadcast.

        Raises ValueError for shapes that cannot be broadcast.
        """
        return apply(rules.arctan2, self, other)

    def nan_to_num(self, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Self:
        """Replace nan by `nan`, inf by `posinf` and -inf by `neginf`. The gradient of replaced elements is 0.

        By default, inf becomes the largest finite number of the dtype, and -inf its negative. Integers do not change.
        Shapes: (...) -> (...). Raises TypeError if an argument is not a number.
        """
        posinf = largest(self.dtype) if posinf is None else posinf
        neginf = -largest(self.dtype) if neginf is None else neginf
        return apply(rules.nan_to_num, self, nan=nan, posinf=posinf, neginf=neginf)

    def maximum(self, other: Operand) -> Self:
        """Elementwise maximum. nan propagates. Where both are equal, each gets half of the gradient.

        The operands are broadcast. Raises ValueError for shapes that cannot be.
        """
        return apply(rules.maximum, self, other)

    def minimum(self, other: Operand) -> Self:
        """Elementwise minimum. nan propagates. Where both are equal, each gets half of the gradient.

        The operands are broadcast. Raises ValueError for shapes that cannot be.
        """
        return apply(rules.minimum, self, other)

    def astype(self, dtype: DType) -> Self:
        """Cast to another dtype. The gradient is cast back; integer and bool results track no gradients.

        Shapes: (...) -> (...). Raises TypeError for a dtype that is not of real numbers or bools.

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

        The result is `max` where min > max. The operands are broadcast. Raises ValueError if both bounds are None, or
        for shapes that cannot be broadcast.
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
