"""The op table: the forward and the pullbacks of each op, side by side.

A rule is a pure function of (xp, arrays, parameters). It returns the output and one pullback for each operand, or one
`Joint` pullback for all operands. A pullback takes `g`, the gradient of the output, and returns the gradient of its
operand. A pullback of None means that the operand gets no gradient. An operand may be a Python number.

`xp` is the backend. Rules call its primitives and apply no operators to arrays, so any object with these primitives can
run a rule. The engine sums a gradient over broadcast axes, so rules do not handle broadcasting. A pullback captures
only what it needs, for example a shape instead of an array.

Rules have the names of their ops. In this module `abs`, `sum`, `max` and `min` are therefore rules, not the builtins.

Annotations describe further properties of a rule. If an operand is annotated `Float`, the result is a float: integer
operands are cast to the default dtype before the rule runs. An operand annotated `Array | None` may be None. A rule
annotated `-> View` may return a view of its first operand, so an in-place change of one changes the other. The text of
`@remedy` is added to errors of the array library.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import prod
from numbers import Integral
from typing import Annotated, Any, TypeAlias, TypeVar, get_type_hints

from .autograd import Joint
from .backend import Array, AttentionDropout, Axis, Backend, DType, Index, Padding, Shape
from .dtype import is_float, python_number, real_array

Rule: TypeAlias = Callable[..., tuple[Any, ...]]
Result: TypeAlias = tuple[Any, ...]  # (output, pullback, ...)
View = Annotated[Result, "the output may share memory with the first operand"]
Float = Annotated[Array, "the result is a float"]
DropoutKey: TypeAlias = tuple[Array, float] | AttentionDropout  # without a dtype: that of the operands
_R = TypeVar("_R", bound=Rule)


def marks(rule: Rule) -> tuple[bool, bool]:
    """Whether an operand of the rule is annotated `Float`, and whether the rule is annotated `-> View`."""
    try:
        found: tuple[bool, bool] = rule._marks  # type: ignore[attr-defined]
    except AttributeError:
        annotations = getattr(rule, "__annotations__", {})
        if any(isinstance(annotation, str) for annotation in annotations.values()):  # of postponed evaluation
            annotations = get_type_hints(rule, include_extras=True)
        found = Float in annotations.values(), annotations.get("return") == View
        with suppress(AttributeError):  # a callable that takes no attributes
            rule._marks = found  # type: ignore[attr-defined]
    return found


def needs_array(rule: Rule, position: int) -> bool:
    """Whether the operand at `position` is annotated as an array that may not be None."""
    code = getattr(rule, "__code__", None)  # None: a callable that is no function
    names = code.co_varnames[1 : code.co_argcount] if code else ()
    return position < len(names) and rule.__annotations__.get(names[position]) in (Array, Float)


def remedy(text: str) -> Callable[[_R], _R]:
    """Decorator: add `text`, which says how to fix the call, to errors that the array library raises in the rule.

    Of a ValueError, `text` replaces the array library's message.
    """

    def mark(rule: _R) -> _R:
        vars(rule)["remedy"] = text
        return rule

    return mark


# fmt: off
# --- Arithmetic

def add(xp: Backend, a: Array, b: Array) -> Result:      return xp.add(a, b),      lambda g: g, lambda g: g
def subtract(xp: Backend, a: Array, b: Array) -> Result: return xp.subtract(a, b), lambda g: g, lambda g: xp.negative(g)
def multiply(xp: Backend, a: Array, b: Array) -> Result: return xp.multiply(a, b), lambda g: xp.multiply(g, b), lambda g: xp.multiply(g, a)
def negative(xp: Backend, a: Array) -> Result:           return xp.negative(a),    lambda g: xp.negative(g)

# --- Comparisons

def equal(xp: Backend, a: Array, b: Array) -> Result:         return xp.equal(a, b),         None, None
def not_equal(xp: Backend, a: Array, b: Array) -> Result:     return xp.not_equal(a, b),     None, None
def less(xp: Backend, a: Array, b: Array) -> Result:          return xp.less(a, b),          None, None
def less_equal(xp: Backend, a: Array, b: Array) -> Result:    return xp.less_equal(a, b),    None, None
def greater(xp: Backend, a: Array, b: Array) -> Result:       return xp.greater(a, b),       None, None
def greater_equal(xp: Backend, a: Array, b: Array) -> Result: return xp.greater_equal(a, b), None, None

# --- Logic, for bool operands

def logical_and(xp: Backend, a: Array, b: Array) -> Result: return xp.logical_and(*_check_bools("logical_and", xp, a, b)), None, None
def logical_or(xp: Backend, a: Array, b: Array) -> Result:  return xp.logical_or(*_check_bools("logical_or", xp, a, b)),   None, None
def logical_xor(xp: Backend, a: Array, b: Array) -> Result: return xp.not_equal(*_check_bools("logical_xor", xp, a, b)),   None, None
def logical_not(xp: Backend, a: Array) -> Result:           return xp.logical_not(*_check_bools("logical_not", xp, a)),    None

# --- Elementwise

def log(xp: Backend, a: Float) -> Result: return xp.log(a), lambda g: xp.divide(g, a)
def sin(xp: Backend, a: Float) -> Result: return xp.sin(a), lambda g: xp.multiply(g, xp.cos(a))
def cos(xp: Backend, a: Float) -> Result: return xp.cos(a), lambda g: xp.multiply(g, xp.negative(xp.sin(a)))
def log1p(xp: Backend, a: Float) -> Result: return xp.log1p(a), lambda g: xp.divide(g, xp.add(a, 1))
def expm1(xp: Backend, a: Float) -> Result: return xp.expm1(a), lambda g: xp.multiply(g, xp.exp(a))
def log2(xp: Backend, a: Float) -> Result: return xp.log2(a), lambda g: xp.divide(g, xp.multiply(a, math.log(2)))
def log10(xp: Backend, a: Float) -> Result: return xp.log10(a), lambda g: xp.divide(g, xp.multiply(a, math.log(10)))
def exp2(xp: Backend, a: Float) -> Result: return power(xp, 2.0, a)[::2]
def square(xp: Backend, a: Array) -> Result: return power(xp, a, 2)[:2]
def sinh(xp: Backend, a: Float) -> Result: return xp.sinh(a), lambda g: xp.multiply(g, xp.cosh(a))
def cosh(xp: Backend, a: Float) -> Result: return xp.cosh(a), lambda g: xp.multiply(g, xp.sinh(a))
def arcsin(xp: Backend, a: Float) -> Result: return xp.arcsin(a), lambda g: xp.divide(g, _root_of_1_minus_square(xp, a))
def arccos(xp: Backend, a: Float) -> Result: return xp.arccos(a), lambda g: xp.negative(xp.divide(g, _root_of_1_minus_square(xp, a)))
def arctan(xp: Backend, a: Float) -> Result: return xp.arctan(a), lambda g: xp.divide(g, xp.add(xp.multiply(a, a), 1))
def floor(xp: Backend, a: Array) -> Result: return _rounded(xp, xp.floor, a), lambda g: xp.zeros(g.shape, xp.dtype(g))
def ceil(xp: Backend, a: Array) -> Result: return _rounded(xp, xp.ceil, a), lambda g: xp.zeros(g.shape, xp.dtype(g))
def rint(xp: Backend, a: Array) -> Result: return _rounded(xp, xp.rint, a), lambda g: xp.zeros(g.shape, xp.dtype(g))
def abs(xp: Backend, a: Array) -> Result: return xp.abs(a), lambda g: xp.multiply(g, xp.sign(a))
def sign(xp: Backend, a: Array) -> Result: return xp.copy(a) if xp.dtype(a).kind == "b" else xp.sign(a), lambda g: xp.zeros(g.shape, xp.dtype(g))
def isnan(xp: Backend, a: Array) -> Result: return xp.not_equal(a, a), None
def isinf(xp: Backend, a: Array) -> Result: return xp.equal(xp.abs(a), math.inf), None
def isfinite(xp: Backend, a: Array) -> Result: return xp.less(xp.abs(a), math.inf), None
# fmt: on


def _root_of_1_minus_square(xp: Backend, a: Array) -> Array:
    """sqrt(1 - a^2), from the factors: near a = 1 and -1 the difference would cancel."""
    return xp.sqrt(xp.multiply(xp.subtract(1, a), xp.add(a, 1)))


def tan(xp: Backend, a: Float) -> Result:
    out = xp.divide(xp.sin(a), xp.cos(a))
    return out, lambda g: xp.multiply(g, xp.add(xp.multiply(out, out), 1))


def arctan2(xp: Backend, a: Float, b: Float) -> Result:
    def over_square(g: Array) -> Array:  # g / (a^2 + b^2)
        first, second = (square(xp, widened(xp, x))[0] if xp.is_array(x) else x * x for x in (a, b))
        return xp.divide(g, xp.add(first, second))

    return (
        xp.arctan2(a, b),
        lambda g: xp.multiply(over_square(g), b),
        lambda g: xp.negative(xp.multiply(over_square(g), a)),
    )


def erf(xp: Backend, a: Float) -> Result:
    slope = 2 / math.sqrt(math.pi)
    return xp.erf(a), lambda g: xp.multiply(g, xp.multiply(xp.exp(xp.negative(xp.multiply(a, a))), slope))


def _rounded(xp: Backend, function: Callable[[Array], Array], a: Array) -> Array:
    """function(a); integers are copied unchanged, where some libraries would return floats."""
    return function(a) if is_float(xp.dtype(a)) else xp.copy(a)


def round(xp: Backend, a: Array, *, decimals: int) -> Result:
    """To the nearest multiple of 10^-decimals; of two, the even one."""
    check_int("round: decimals", decimals)
    if decimals == 0 or decimals > 0 and not is_float(xp.dtype(a)):
        return rint(xp, a)
    if not is_float(xp.dtype(a)):
        raise TypeError(f"round: decimals < 0 needs a float tensor, got {xp.dtype(a)}; call .astype('float64') first")
    wide, scale = widened(xp, a), 10.0 ** (decimals if decimals > 0 else -decimals)
    if decimals < 0:
        nearest, pull = rint(xp, xp.divide(wide, scale))
        return _rounded_as(xp, xp.multiply(nearest, scale), a), pull
    is_whole = xp.greater_equal(xp.abs(wide), 2.0**52)  # has no decimals, and might overflow
    nearest, pull = rint(xp, xp.multiply(xp.where(is_whole, 0, wide), scale))
    return _rounded_as(xp, xp.where(is_whole, wide, xp.divide(nearest, scale)), a), pull


def floor_divide(xp: Backend, a: Array, b: Array) -> Result:
    _check_divisor("floor_divide", xp, a, b)
    out = xp.floor_divide(a, b)
    return out, *2 * (lambda g: xp.zeros(g.shape, xp.dtype(g)),)


def remainder(xp: Backend, a: Array, b: Array) -> Result:
    _check_divisor("remainder", xp, a, b)
    return xp.remainder(a, b), lambda g: g, lambda g: xp.negative(xp.multiply(g, xp.floor_divide(a, b)))


def _check_divisor(op: str, xp: Backend, a: Array, b: Array) -> None:
    """Raise ZeroDivisionError for integers by the number 0. NumPy gives 0 with a warning, CuPy 0 without one."""
    if isinstance(b, int) and b == 0 and not is_float(xp.dtype(a)):
        raise ZeroDivisionError(f"{op}: {xp.dtype(a)} by 0; floats give inf or nan: call .astype('float64') first")


def divide(xp: Backend, a: Float, b: Float) -> Result:
    out = xp.divide(a, b)
    return out, lambda g: xp.divide(g, b), lambda g: xp.negative(xp.multiply(g, xp.divide(out, b)))


def power(xp: Backend, a: Array, b: Array) -> Result:
    """a ** b. The gradient of a is 0 where b is 0, even for an infinite a; that of b is 0 where a is 0 and b >= 0."""
    out = xp.copy(a) if isinstance(b, (int, float)) and b == 1 else _power(xp, a, b)

    def pull_a(g: Array) -> Array:
        if isinstance(b, (int, float)):
            if b == 0:
                return xp.zeros(g.shape, xp.dtype(g))
            return xp.multiply(g, xp.multiply(_power(xp, a, b - 1), b))
        is_zero = xp.equal(b, 0)
        slope = xp.multiply(xp.power(a, xp.where(is_zero, 0, xp.subtract(b, 1))), b)
        return xp.multiply(xp.where(is_zero, 0, g), slope)

    def pull_b(g: Array) -> Array:
        if isinstance(a, (int, float)) and a != 0:
            return xp.multiply(g, xp.multiply(out, math.log(a) if a > 0 else math.nan))
        # The limit of a^b log a at a = 0.
        at_zero = xp.where(xp.greater_equal(b, 0), 0, xp.where(xp.less(b, 0), -math.inf, b))  # nan stays nan
        if isinstance(a, (int, float)):
            return xp.multiply(g, at_zero)
        is_zero = xp.equal(a, 0)
        return xp.multiply(g, xp.where(is_zero, at_zero, xp.multiply(out, xp.log(xp.where(is_zero, 1, a)))))

    return out, pull_a, pull_b


def _power(xp: Backend, a: Array, b: Array) -> Array:
    if isinstance(b, (int, float)):  # the general power is about 20 times slower than a product
        if b == 2:
            return xp.multiply(a, a)
        if b == 1:
            return a
        if b == 0.5:
            return xp.sqrt(a)
    return xp.power(a, b)


def exp(xp: Backend, a: Float) -> Result:
    out = xp.exp(a)
    return out, lambda g: xp.multiply(g, out)


def sqrt(xp: Backend, a: Float) -> Result:
    out = xp.sqrt(a)
    return out, lambda g: xp.divide(g, xp.multiply(out, 2))


def tanh(xp: Backend, a: Float) -> Result:
    out = xp.tanh(a)
    return out, lambda g: xp.multiply(g, xp.subtract(1, xp.multiply(out, out)))


def sigmoid(xp: Backend, a: Float) -> Result:
    out = xp.sigmoid(a)
    return out, lambda g: xp.multiply(g, xp.multiply(out, xp.subtract(1, out)))


def relu(xp: Backend, a: Array) -> Result:
    out = xp.relu(a)
    return out, lambda g: xp.where(xp.less_equal(out, 0), 0, g)


def leaky_relu(xp: Backend, a: Float, *, alpha: float) -> Result:
    return xp.leaky_relu(a, alpha), lambda g: xp.leaky_relu_backward(g, a, alpha)


def leaky_relu_backward(xp: Backend, g: Array, a: Array, *, alpha: float) -> Result:
    return xp.leaky_relu_backward(g, a, alpha), lambda gg: xp.leaky_relu_backward(gg, a, alpha), None


def elu(xp: Backend, a: Float, *, alpha: float) -> Result:
    is_positive = xp.greater(a, 0)
    below = xp.where(is_positive, 0, a)  # e^a may overflow for a positive a
    out = xp.where(is_positive, a, xp.multiply(xp.expm1(below), alpha))
    return out, lambda g: xp.where(is_positive, g, xp.multiply(g, xp.multiply(xp.exp(below), alpha)))


def silu(xp: Backend, a: Float) -> Result:
    s = xp.sigmoid(a)
    return xp.multiply(a, s), lambda g: xp.multiply(g, xp.multiply(s, xp.add(xp.multiply(a, xp.subtract(1, s)), 1)))


def swiglu(xp: Backend, gate: Float, up: Float) -> Result:
    if shape_of(gate) != shape_of(up):
        raise ValueError(f"swiglu: gate {shape_of(gate)} and up {shape_of(up)} must have the same shape")
    return xp.swiglu(gate, up), Joint(lambda g, needs: xp.swiglu_backward(g, gate, up, needs))


def softplus(xp: Backend, a: Float, *, beta: float, threshold: float) -> Result:
    """log(1 + e^z) / beta with z = beta a: e^z is at most 1, and `where` selects smooth functions, so there is no kink."""
    if beta == 0:
        raise ValueError("softplus: beta must not be 0")
    z = xp.multiply(a, beta)
    is_positive, is_linear = xp.greater(z, 0), xp.greater(z, threshold)
    log = xp.log1p(xp.exp(xp.where(is_positive, xp.negative(z), z)))
    out = xp.divide(xp.where(is_positive, xp.add(z, log), log), beta)
    return xp.where(is_linear, a, out), lambda g: xp.where(is_linear, g, xp.multiply(g, xp.sigmoid(z)))


def gelu(xp: Backend, a: Float, *, approximate: str) -> Result:
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    out, saved = xp.gelu(a, approximate)
    return out, lambda g: xp.gelu_backward(g, saved, approximate)


def gelu_backward(xp: Backend, g: Array, a: Array, *, approximate: str) -> Result:
    """g gelu'(a)."""
    _, saved = xp.gelu(a, approximate)
    return (
        xp.gelu_backward(g, saved, approximate),
        lambda gg: xp.gelu_backward(gg, saved, approximate),
        lambda gg: xp.multiply(xp.multiply(gg, g), gelu_second_derivative(xp, a, approximate)),
    )


def gelu_second_derivative(xp: Backend, a: Array, approximate: str) -> Array:
    """The second derivative of gelu, 2 Phi'(a) + a Phi''(a)."""
    square = xp.multiply(a, a)
    if approximate == "none":  # Phi' is the normal density, and Phi'' = -a Phi'
        density = xp.multiply(xp.exp(xp.multiply(square, -0.5)), 1 / math.sqrt(2 * math.pi))
        return xp.multiply(density, xp.subtract(2, square))
    # Phi = (1 + tanh(u)) / 2 with u = c (a + 0.044715 a^3)
    c = math.sqrt(2 / math.pi)
    du = xp.add(xp.multiply(square, 3 * 0.044715 * c), c)  # u'
    t = xp.tanh(xp.multiply(a, xp.add(xp.multiply(square, 0.044715 * c), c)))
    # Phi' = (1 - t^2) u' / 2, Phi'' = (1 - t^2) (u'' - 2 t u'^2) / 2
    ddu = xp.multiply(a, 6 * 0.044715 * c)  # u''
    second = xp.multiply(xp.subtract(ddu, xp.multiply(xp.multiply(t, 2), xp.multiply(du, du))), 0.5)
    return xp.multiply(xp.subtract(1, xp.multiply(t, t)), xp.add(du, xp.multiply(a, second)))


def maximum(xp: Backend, a: Array, b: Array) -> Result:
    return xp.maximum(a, b), lambda g: _grad_of_larger(xp, g, a, b), lambda g: _grad_of_larger(xp, g, b, a)


def minimum(xp: Backend, a: Array, b: Array) -> Result:
    return xp.minimum(a, b), lambda g: _grad_of_larger(xp, g, b, a), lambda g: _grad_of_larger(xp, g, a, b)


def _grad_of_larger(xp: Backend, g: Array, high: Array, low: Array) -> Array:
    """The gradient of the larger operand: g where high > low (or one is nan), g / 2 at ties, 0 where high < low."""
    return xp.where(xp.less(high, low), 0, xp.where(xp.equal(high, low), xp.multiply(g, 0.5), g))


def where(xp: Backend, a: Array, b: Array, *, condition: Any) -> Result:
    chosen = as_mask(xp, condition, "where")
    return (
        xp.where(chosen, a, b),
        lambda g: xp.where(chosen, g, 0),
        lambda g: xp.where(chosen, 0, g),
    )


def clip(xp: Backend, a: Array, low: Array | None, high: Array | None) -> Result:
    """min(max(a, low), high), which is `high` where low > high. The gradient of a is 1 at the bounds, too."""
    out = xp.clip(a, low, high)

    def pull_a(g: Array) -> Array:
        if low is not None:
            g = xp.where(xp.greater_equal(a, low), g, 0)
        return g if high is None else xp.where(xp.less_equal(a, high), g, 0)

    def pull_low(g: Array) -> Array:
        g = xp.where(xp.less(a, low), g, 0)
        return g if high is None else xp.where(xp.less(low, high), g, 0)

    def pull_high(g: Array) -> Array:
        above = xp.greater(a, high)
        return xp.where(above if low is None else xp.logical_or(above, xp.less(high, low)), g, 0)

    return out, pull_a, pull_low, pull_high


def nan_to_num(xp: Backend, a: Array, *, nan: float, posinf: float, neginf: float) -> Result:
    if not is_float(xp.dtype(a)):
        return xp.copy(a), None
    finite = xp.where(xp.equal(a, math.inf), posinf, xp.where(xp.equal(a, -math.inf), neginf, a))
    return xp.where(xp.equal(a, a), finite, nan), lambda g: xp.where(isfinite(xp, a)[0], g, 0)


@remedy("give the name of a dtype, such as 'float32', or a dtype of NumPy")
def astype(xp: Backend, a: Array, *, dtype: DType) -> Result:
    try:
        out = xp.astype(a, dtype)
    except ValueError as error:  # CuPy's for a dtype of objects or strings
        raise TypeError(str(error)) from error
    new = xp.dtype(out)
    if not (new.kind in "biu" or is_float(new)) or new.itemsize > 8:
        raise TypeError(f"astype: a tensor holds real numbers or bools, not {new}; use 'float64' or a narrower dtype")
    if not new.isnative:  # another byte order
        out = xp.astype(out, new.newbyteorder("="))
    # The engine casts every gradient to its operand's dtype.
    return out, (lambda g: g) if is_float(new) else None


# --- Masks


def _check_bools(op: str, xp: Backend, *operands: Array) -> tuple[Array, ...]:
    """The operands. Raises TypeError if one is not bool."""
    for operand in operands:
        if not (isinstance(operand, bool) or xp.is_array(operand) and xp.dtype(operand).kind == "b"):
            got = xp.dtype(operand) if xp.is_array(operand) else type(operand).__name__
            raise TypeError(f"{op}: the operands must be bool, got {got}; compare first, as in x > 0")
    return operands


def as_mask(xp: Backend, mask: Any, op: str) -> Array:
    """The mask, an array or nested lists, as an array of the backend. Raises TypeError if it is not bool."""
    array = real_array(xp, mask, op)
    if xp.dtype(array).kind != "b":
        raise TypeError(f"{op}: a mask must be boolean, got dtype {xp.dtype(array)}; compare first, as in x > 0")
    return array


def masked_fill(xp: Backend, a: Array, value: Array, *, mask: Any) -> Result:
    masked = _mask_for_shape(xp, a.shape, mask, "masked_fill")
    if shape_of(value) != ():
        raise ValueError(f"masked_fill: the value must be a number or a 0-d tensor, got shape {shape_of(value)}")
    return (
        xp.where(masked, value, a),
        lambda g: xp.where(masked, 0, g),
        lambda g: xp.where(masked, g, 0),
    )


def masked_multiply(xp: Backend, a: Array, value: Array, *, mask: Any) -> Result:
    masked = _mask_for_shape(xp, a.shape, mask, "masked_multiply")
    return (
        xp.where(masked, xp.multiply(a, value), a),
        lambda g: xp.where(masked, xp.multiply(g, value), g),
        lambda g: xp.where(masked, xp.multiply(g, a), 0),
    )


def _mask_for_shape(xp: Backend, shape: Shape, mask: Any, op: str) -> Array:
    """As `as_mask`. Raises ValueError if the mask does not broadcast to `shape`."""
    array = as_mask(xp, mask, op)
    if not fits(array.shape, shape):
        raise ValueError(f"{op}: a mask of shape {shape_of(array)} does not broadcast to shape {tuple(shape)}")
    return array


def fits(shape: Shape, wanted: Shape) -> bool:
    """Whether an array of `shape` broadcasts to the shape `wanted`."""
    pairs = zip(reversed(shape), reversed(wanted), strict=False)
    return len(shape) <= len(wanted) and all(n in (1, m) for n, m in pairs)


# --- Reductions


def normalize_axes(op: str, axis: Axis, ndim: int) -> tuple[int, ...]:
    """The axes as a tuple of nonnegative ints; None means all axes. `axis` may be a list, a range or an array, too.

    Raises IndexError for an axis out of range, ValueError for a repeated axis, TypeError for anything but ints.
    """
    if axis is None:
        return tuple(range(ndim))
    axes: Any = axis if isinstance(axis, (tuple, list, range)) or getattr(axis, "ndim", 0) == 1 else (axis,)
    if not all(isinstance(i, Integral) and not isinstance(i, bool) for i in axes):
        raise TypeError(f"{op}: axis must be an int, a tuple of ints or None, got {axis!r}")
    for i in axes:
        if not -ndim <= i < ndim:
            raise IndexError(f"{op}: axis {i} is out of range for a tensor of {ndim} axes")
    positive = tuple(int(i) % ndim for i in axes)
    if len(set(positive)) < len(positive):
        raise ValueError(f"{op}: axis {axis} names an axis twice")
    return positive


def one_axis(op: str, axis: int, ndim: int) -> int:
    """The axis as a nonnegative int. Raises as `normalize_axes` does, and TypeError for several axes."""
    axes = normalize_axes(op, axis, ndim)
    if len(axes) != 1:
        raise TypeError(f"{op}: axis must be one int, got {axis!r}")
    return axes[0]


def _keepdims_shape(shape: Shape, axes: Sequence[int]) -> Shape:
    """The shape of a reduction over `axes` with keepdims=True."""
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


def sum(xp: Backend, a: Array, *, axis: Axis, keepdims: bool) -> Result:
    axes, shape = normalize_axes("sum", axis, a.ndim), a.shape
    # axis=() copies the elements, with the dtype of a sum: int64 for bools: the sum over a new axis of length 1.
    out = xp.sum(a, axis=axes, keepdims=keepdims) if axes else xp.sum(xp.expand_dims(a, 0), axis=0)
    return out, lambda g: xp.broadcast_to(xp.reshape(g, _keepdims_shape(shape, axes)), shape)


def check_float(op: str, dtype: DType) -> None:
    if not is_float(dtype):
        raise TypeError(f"{op}: needs a float tensor, got dtype {dtype}; call .astype('float64') first")


def widened(xp: Backend, a: Array) -> Array:
    """Cast half precision to float32. A result is rounded back once, at the end; the engine casts gradients."""
    return a if xp.dtype(a).itemsize > 2 else xp.astype(a, "float32")


def _rounded_as(xp: Backend, value: Array, a: Array) -> Array:
    return value if xp.dtype(value) == xp.dtype(a) else xp.astype(value, xp.dtype(a))


def mean(xp: Backend, a: Array, *, axis: Axis, keepdims: bool) -> Result:
    check_float("mean", xp.dtype(a))
    axes = normalize_axes("mean", axis, a.ndim)
    total, pull = sum(xp, widened(xp, a), axis=axes, keepdims=keepdims)
    n = prod(a.shape[i] for i in axes)
    return _rounded_as(xp, xp.divide(total, n), a), lambda g: pull(_rounded_as(xp, xp.divide(widened(xp, g), n), g))


def var(xp: Backend, a: Array, *, axis: Axis, correction: float, keepdims: bool) -> Result:
    """The sum of squared deviations from the mean over max(n - correction, 0). E[x^2] - E[x]^2 would cancel.

    The first element is subtracted before: the rounding error of a mean that is much larger than the standard deviation
    would be in every deviation (Chan, Golub & LeVeque, "Algorithms for computing the sample variance", The American
    Statistician 37, 1983, on shifted data).
    """
    check_float("var", xp.dtype(a))
    if not math.isfinite(correction):
        raise ValueError(f"var: correction must be finite, got {correction}")
    axes, shape = normalize_axes("var", axis, a.ndim), a.shape
    wide = widened(xp, a)
    first = xp.getitem(wide, tuple(slice(0, 1) if i in axes else slice(None) for i in range(a.ndim)))
    shifted = xp.subtract(wide, first)
    centered = xp.subtract(shifted, mean(xp, shifted, axis=axes, keepdims=True)[0])
    n = prod(shape[i] for i in axes)
    divisor = float(n - correction if n > correction else 0)
    total = sum(xp, xp.multiply(centered, centered), axis=axes, keepdims=keepdims)[0]

    def pull(g: Array) -> Array:
        g = xp.reshape(widened(xp, g), _keepdims_shape(shape, axes))
        return xp.multiply(xp.multiply(centered, 2), xp.divide(g, divisor))

    return _rounded_as(xp, xp.divide(total, divisor), a), pull


def max(xp: Backend, a: Array, *, axis: Axis, keepdims: bool) -> Result:
    return _max_or_min("max", xp, a, axis, keepdims)


def min(xp: Backend, a: Array, *, axis: Axis, keepdims: bool) -> Result:
    return _max_or_min("min", xp, a, axis, keepdims)


def _max_or_min(op: str, xp: Backend, a: Array, axis: Axis, keepdims: bool) -> Result:
    """The largest or smallest element; ties share the gradient equally."""
    axes = normalize_axes(op, axis, a.ndim)
    if any(a.shape[i] == 0 for i in axes):
        raise ValueError(f"{op}: axis {axis} of shape {shape_of(a)} is empty, so it has no {op}")
    reduce = xp.max if op == "max" else xp.min
    out = reduce(a, axis=axes, keepdims=keepdims) if axes else xp.copy(a)
    kept = _keepdims_shape(a.shape, axes)

    def pull(g: Array) -> Array:
        g = widened(xp, g)  # the number of ties may be above 65,504
        ties = xp.astype(xp.equal(a, xp.reshape(out, kept)), xp.dtype(g))
        count = xp.sum(ties, axis=axes, keepdims=True) if axes else ties
        return xp.multiply(ties, xp.divide(xp.reshape(g, kept), count))

    return out, pull


def argmax(xp: Backend, a: Array, *, axis: int | None, keepdims: bool) -> Result:
    if axis is not None:
        axis = one_axis("argmax", axis, a.ndim)
    return xp.argmax(a, axis=axis, keepdims=keepdims), None


def argsort(xp: Backend, a: Array, *, axis: int) -> Result:
    return xp.argsort(a, one_axis("argsort", axis, a.ndim)), None


def cumsum(xp: Backend, a: Array, *, axis: int) -> Result:
    axis = one_axis("cumsum", axis, a.ndim)
    backwards = (*(slice(None),) * axis, slice(None, None, -1))
    return (
        xp.cumsum(a, axis),
        lambda g: xp.getitem(xp.cumsum(xp.getitem(g, backwards), axis), backwards),
    )


# --- Shapes


def copy(xp: Backend, a: Array) -> Result:
    return xp.copy(a), lambda g: g


def transpose(xp: Backend, a: Array, *, axes: Sequence[int] | None) -> View:
    if axes is None:
        return xp.transpose(a), lambda g: xp.transpose(g)
    order = normalize_axes("transpose", tuple(axes), a.ndim)
    if len(order) != a.ndim:
        swap = f"; to swap two axes, write swapaxes{tuple(axes)}" if len(order) == 2 else ""
        raise ValueError(
            f"transpose: axes {tuple(axes)} must name each of the {a.ndim} axes of shape {shape_of(a)} once{swap}"
        )
    inverse = sorted(range(a.ndim), key=order.__getitem__)
    return xp.transpose(a, order), lambda g: xp.transpose(g, inverse)


@remedy("the number of elements must stay the same, and one length may be -1")
def reshape(xp: Backend, a: Array, *, shape: Shape) -> View:
    old = a.shape
    return xp.reshape(a, shape), lambda g: xp.reshape(g, old)


def broadcast_to(xp: Backend, a: Array, *, shape: Shape) -> View:
    return xp.broadcast_to(a, shape), lambda g: g


def squeeze(xp: Backend, a: Array, *, axis: Axis) -> View:
    """Remove axes of length 1. A longer axis in `axis` stays, as in PyTorch."""
    axes = normalize_axes("squeeze", axis, a.ndim)
    return reshape(xp, a, shape=tuple(n for i, n in enumerate(a.shape) if i not in axes or n != 1))


def expand_dims(xp: Backend, a: Array, *, axis: int | tuple[int, ...]) -> View:
    old = a.shape
    axis = tuple(axis) if isinstance(axis, list) else axis
    return xp.expand_dims(a, axis), lambda g: xp.reshape(g, old)


@remedy("all axes but the joined one must agree")
def concatenate(xp: Backend, *arrays: Array, axis: int) -> Result:
    joined_axis = one_axis("concatenate", axis, arrays[0].ndim)
    pulls, start = [], 0
    for array in arrays:
        stop = start + array.shape[joined_axis]
        pulls.append(_slice_pullback(xp, joined_axis, start, stop))
        start = stop
    return xp.concatenate(arrays, joined_axis), *pulls


def _slice_pullback(xp: Backend, axis: int, start: int, stop: int) -> Callable[[Array], Array]:
    """The pullback of concatenate for one operand: its slice of the gradient."""
    return lambda g: xp.getitem(g, (*(slice(None),) * axis, slice(start, stop)))


def stack(xp: Backend, *arrays: Array, axis: int) -> Result:
    if any(array.shape != arrays[0].shape for array in arrays):
        shapes = ", ".join(str(shape_of(array)) for array in arrays)
        raise ValueError(f"stack: all tensors must have one shape, got {shapes}; concatenate joins unequal ones")
    joined_axis = one_axis("stack", axis, arrays[0].ndim + 1)
    out = xp.concatenate([xp.expand_dims(array, joined_axis) for array in arrays], joined_axis)
    return out, *(_select_pullback(xp, joined_axis, i) for i in range(len(arrays)))


def _select_pullback(xp: Backend, axis: int, i: int) -> Callable[[Array], Array]:
    """The pullback of stack for operand i: element i of the gradient along `axis`."""
    return lambda g: xp.getitem(g, (*(slice(None),) * axis, i))


@remedy("check the index against the shape")
def getitem(xp: Backend, a: Array, *, index: Index, check: bool = True) -> View:
    """If `check` is False, the index is from `prepare_index`."""
    shape, prepared = a.shape, xp.prepare_index(index, a.shape) if check else index
    return xp.getitem(a, prepared), lambda g: xp.getitem_backward(g, prepared, shape)


def getitem_backward(xp: Backend, g: Array, *, index: Index, shape: Shape) -> Result:
    return xp.getitem_backward(g, index, shape), lambda gg: xp.getitem(gg, index)


def at_set(xp: Backend, a: Array, value: Array, *, index: Index) -> Result:
    """a with `value` in place of a[index]."""
    prepared, shape, root = xp.prepare_index(index, a.shape), shape_of(a), xp.root
    ones = _ones_at(xp, "at_set", shape, prepared, shape_of(value))
    counts = root.getitem_backward(ones, prepared, shape)  # how often the index selects each element
    chosen = xp.asarray(root.greater(counts, 0))
    if shape_of(value) == ():  # where the index has an element twice, both times it is the same value
        return xp.where(chosen, value, a), lambda g: xp.where(chosen, 0, g), lambda g: xp.where(chosen, g, 0)
    has_arrays = any(root.is_array(part) for part in prepared)  # ints and slices select no element twice
    if has_arrays and prod(ones.shape) > 1 and root.to_host(root.max(counts)) > 1:
        raise ValueError(
            f"at_set: the index selects an element of shape {shape} twice, for which there are two values; select each "
            "element once, or sum the values with x.at(index).add(value)"
        )
    placed = xp.getitem_backward(xp.broadcast_to(value, ones.shape), prepared, shape)
    return xp.where(chosen, placed, a), lambda g: xp.where(chosen, 0, g), lambda g: xp.getitem(g, prepared)


def at_add(xp: Backend, a: Array, value: Array, *, index: Index) -> Result:
    """a with `value` added to a[index]. The values of repeated indices add up."""
    prepared = xp.prepare_index(index, a.shape)
    picked = _ones_at(xp, "at_add", a.shape, prepared, shape_of(value)).shape
    values = xp.broadcast_to(value, picked) if xp.is_array(value) else xp.full(picked, value, xp.dtype(a))
    return xp.add(a, xp.getitem_backward(values, prepared, a.shape)), lambda g: g, lambda g: xp.getitem(g, prepared)


def _ones_at(xp: Backend, op: str, shape: Shape, index: Index, value: Shape) -> Array:
    """An array of the root of ones, with the shape of a[index] for an array a of `shape`.

    Raises ValueError if a value of shape `value` does not broadcast to it.
    """
    root = xp.root
    ones = root.getitem(root.broadcast_to(root.full((), 1, "float32"), shape), index)
    if not fits(value, ones.shape):
        raise ValueError(
            f"{op}: a value of shape {value} does not broadcast to {shape_of(ones)}, the shape of x[index]; reshape the value"
        )
    return ones


# --- Products


def matmul(xp: Backend, a: Array, b: Array) -> Result:
    """A 1-D operand is a row on the left or a column on the right, and the result does not have that axis, as in NumPy."""
    if min_ndim(a, b) == 0:
        raise ValueError(
            f"matmul: operands of shape {shape_of(a)} and {shape_of(b)}: a 0-d operand is not allowed; use *"
        )
    b_ndim = b.ndim  # pull_b does not need b itself
    row, column = a.ndim == 1, b.ndim == 1
    if a.shape[-1] != b.shape[0 if column else -2]:
        raise ValueError(
            f"matmul: {shape_of(a)} @ {shape_of(b)}: {a.shape[-1]} and {b.shape[0 if column else -2]} must be equal: the last "
            f"axis of the first and the second-to-last or only axis of the second{_fitting_product(a.shape, b.shape)}"
        )

    def full(g: Array) -> Array:  # g with the removed axes of 1-D operands: (..., n, m)
        return xp.expand_dims(g, tuple(axis for axis, removed in ((-2, row), (-1, column)) if removed))

    def pull_a(g: Array) -> Array:
        if column and row:
            return xp.multiply(g, b)
        b_matrix = xp.expand_dims(b, 1) if column else b
        ga = xp.matmul(full(g), _swap(xp, b_matrix))  # (..., n, m) @ (..., m, k)
        return xp.reshape(ga, (*ga.shape[:-2], ga.shape[-1])) if row else ga

    def pull_b(g: Array) -> Array:
        if column and row:
            return xp.multiply(g, a)
        a_matrix, gm = xp.expand_dims(a, 0) if row else a, full(g)
        if b_ndim <= 2 and gm.ndim > 2:  # one product over all batches, instead of a sum of one for each batch
            n = prod(gm.shape[:-1])
            a_matrix = xp.reshape(a_matrix, (n, a_matrix.shape[-1]))
            gm = xp.reshape(gm, (n, gm.shape[-1]))
        gb = xp.matmul(_swap(xp, a_matrix), gm)  # (..., k, n) @ (..., n, m)
        return xp.reshape(gb, gb.shape[:-1]) if column else gb

    return xp.matmul(a, b), pull_a, pull_b


def _fitting_product(a: Shape, b: Shape) -> str:
    """What to write for matmul operands of shapes that do not fit, if a transpose or the other order makes them fit."""
    products = {
        "a @ b.T": len(b) == 2 and a[-1] == b[1],
        "a.T @ b": len(a) == 2 and a[0] == b[0 if len(b) == 1 else -2],
        "a @ b.swapaxes(-1, -2)": len(b) > 2 and a[-1] == b[-1],
        "a.swapaxes(-1, -2) @ b": len(a) > 2 and a[-2] == b[0 if len(b) == 1 else -2],
        "b @ a": b[-1] == a[0 if len(a) == 1 else -2],
    }
    fitting = [product for product, fits in products.items() if fits]
    return f"; {' or '.join(fitting)} would fit" if fitting else "; reshape or transpose one of them"


def _swap(xp: Backend, a: Array) -> Array:
    """The last two axes swapped: (..., n, m) -> (..., m, n)."""
    return xp.transpose(a, (*range(a.ndim - 2), a.ndim - 1, a.ndim - 2))


def linear(xp: Backend, x: Array, weight: Array, bias: Array | None) -> Result:
    shape = shape_of(weight)
    if len(shape) != 2 or shape_of(x)[-1:] != shape[:1]:
        hint = ": write linear(x, weight.T)" if len(shape) == 2 and shape_of(x)[-1:] == shape[1:] else ""
        raise ValueError(
            f"linear: x {shape_of(x)} does not fit weight {shape}; they must be (..., in) and (in, out){hint}"
        )
    if bias is not None and shape_of(bias) != shape[1:]:
        raise ValueError(f"linear: bias {shape_of(bias)} does not fit weight {shape}; it must be (out,)")

    return xp.linear(x, weight, bias), Joint(lambda g, needs: xp.linear_backward(g, x, weight, needs))


# --- Fused


def softmax(xp: Backend, a: Float, *, axis: int) -> Result:
    axis = one_axis("softmax", axis, a.ndim)
    out = xp.softmax(a, axis)
    return out, lambda g: xp.softmax_backward(g, out, axis)


def log_softmax(xp: Backend, a: Float, *, axis: int) -> Result:
    axis = one_axis("log_softmax", axis, a.ndim)
    out = xp.log_softmax(a, axis)
    return out, lambda g: xp.log_softmax_backward(g, out, axis)


def layer_norm(xp: Backend, x: Float, gamma: Array | None, beta: Array | None, *, eps: float) -> Result:
    if x.ndim == 0:
        raise ValueError("layer_norm: x is 0-d; it needs at least one axis")
    for name, parameter in (("gamma", gamma), ("beta", beta)):
        if parameter is not None and shape_of(parameter) != x.shape[-1:]:
            raise ValueError(
                f"layer_norm: {name} {shape_of(parameter)} does not fit x {shape_of(x)}; it must be {shape_of(x)[-1:]}"
            )
    out, mean, rstd = xp.layer_norm(x, gamma, beta, eps)

    return out, Joint(lambda g, needs: xp.layer_norm_backward(g, x, gamma, mean, rstd, needs))


def rms_norm(xp: Backend, x: Float, gamma: Array | None, *, eps: float) -> Result:
    if x.ndim == 0:
        raise ValueError("rms_norm: x is 0-d; it needs at least one axis")
    if gamma is not None and shape_of(gamma) != x.shape[-1:]:
        raise ValueError(
            f"rms_norm: gamma {shape_of(gamma)} does not fit x {shape_of(x)}; it must be {shape_of(x)[-1:]}"
        )
    out, r = xp.rms_norm(x, gamma, eps)
    return out, Joint(lambda g, needs: xp.rms_norm_backward(g, x, gamma, r, needs))


def rotary(xp: Backend, x: Array, *, cos: Array, sin: Array) -> Result:
    return xp.rotary(x, cos, sin), lambda g: xp.rotary(g, cos, xp.negative(sin))


def embedding(xp: Backend, weight: Array, *, ids: Any, check: bool = True) -> Result:
    """If `check` is False, ids are an array of the backend with ids in range. (Checking them waits for the device.)"""
    if weight.ndim != 2:
        raise ValueError(f"embedding: weight must be (rows, columns), got shape {shape_of(weight)}")
    n_rows = weight.shape[0]
    rows = xp.check_ids(ids, n_rows, "embedding") if check else ids
    return xp.embedding(weight, rows), lambda g: xp.embedding_backward(g, rows, n_rows)


def embedding_backward(xp: Backend, g: Array, *, ids: Array, n_rows: int) -> Result:
    return xp.embedding_backward(g, ids, n_rows), lambda gg: xp.embedding(gg, ids)


def cross_entropy(
    xp: Backend, logits: Float, *, ids: Any, ignore_index: int | None, excluded_class: int | None,
    padding: Array | None = None, check: bool = True,
) -> Result:  # fmt: skip
    """The mean over the valid targets; the softmax excludes `excluded_class`.

    If `check` is False, ids are an array of the backend with ids in range, and `padding` is True where they are not
    valid targets.
    """
    if logits.ndim == 0:
        raise ValueError("cross_entropy: logits are 0-d; they must be (..., classes)")
    classes, shape = logits.shape[-1], logits.shape
    if check:
        targets, valid = xp.check_targets(ids, classes, ignore_index, "cross_entropy")
    elif padding is None:
        targets, valid = ids, None
    else:  # the id of padding need not be a class
        targets, valid = xp.where(padding, 0, ids), xp.logical_not(padding)
    check_targets_shape("cross_entropy", shape, targets.shape)
    n = prod(shape[:-1])
    targets = xp.reshape(targets, (n,))
    valid = None if valid is None else xp.reshape(valid, (n,))
    loss, probs = xp.cross_entropy(xp.reshape(logits, (n, classes)), targets, valid, excluded_class)
    return loss, lambda g: xp.reshape(xp.cross_entropy_backward(g, probs, targets, valid), shape)


def check_targets_shape(op: str, logits: Shape, targets: Shape) -> None:
    """Raise ValueError if the shape of the targets is not that of the rows of the logits."""
    if targets != logits[:-1]:
        raise ValueError(
            f"{op}: logits {tuple(logits)} need ids of shape {tuple(logits[:-1])}, got {tuple(targets)}; "
            "ids are class numbers, one for each row of logits"
        )


def attention(
    xp: Backend, q: Float, k: Float, v: Float, *, mask: Any, causal: bool, offset: int,
    dropout: DropoutKey | None = None,
) -> Result:  # fmt: skip
    check_bool("attention: causal", causal)
    check_int("attention: offset", offset)
    _check_attention(q, k, v)
    scores = (*broadcast_shape(q.shape[:-2], k.shape[:-2]), q.shape[-2], k.shape[-2])
    masked = None if mask is None else _mask_for_shape(xp, scores, mask, "attention")
    drop = _dropout_args(xp, q, dropout)
    out, log_sum = xp.attention(q, k, v, masked, causal, offset, *drop)
    args = masked, causal, offset
    return out, Joint(lambda g, needs: xp.attention_backward(g, q, k, v, out, log_sum, *args, needs, *drop))


def _check_attention(q: Array, k: Array, v: Array) -> None:
    fits = min_ndim(q, k, v) >= 2 and q.shape[-1] == k.shape[-1] > 0 and k.shape[-2] == v.shape[-2]
    if not fits:
        raise ValueError(
            f"attention: q {shape_of(q)}, k {shape_of(k)} and v {shape_of(v)} do not fit; "
            "they must be (..., L, d), (..., S, d) and (..., S, dv)"
        )


def attention_shape(q: Array, k: Array, v: Array) -> Shape:
    """The shape (..., L, S) of the mask of dropout. Raises ValueError if the operands do not fit."""
    _check_attention(q, k, v)
    batch = broadcast_shape(broadcast_shape(q.shape[:-2], k.shape[:-2]), v.shape[:-2])
    return (*batch, q.shape[-2], k.shape[-2])


def _dropout_args(xp: Backend, q: Array, dropout: DropoutKey | None) -> tuple[AttentionDropout, ...]:
    """The last argument of a backend's attention; without dropout there is none, for backends that do not take it."""
    if dropout is None:
        return ()
    key, p, dtype = (*dropout, xp.dtype(q))[:3]
    return ((key, p, dtype),)


def attention_qkvpacked(
    xp: Backend, qkv: Float, *, n_heads: int, mask: Any, causal: bool, dropout: DropoutKey | None = None
) -> Result:
    """`attention` of each head, for concatenated queries, keys and values: (..., T, 3 C) -> (..., T, C)."""
    check_bool("attention_qkvpacked: causal", causal)
    shape = packed_shape(qkv, n_heads)
    *batch, length, width = qkv.shape
    n, d = len(batch), width // (3 * n_heads)
    masked = None if mask is None else _mask_for_shape(xp, shape, mask, "attention_qkvpacked")
    to_heads = (*range(n), n + 1, n, n + 2)  # (..., T, H, d) -> (..., H, T, d), and back
    separate = xp.reshape(qkv, (*batch, length, 3, n_heads, d))
    q, k, v = (xp.transpose(xp.getitem(separate, (..., i, slice(None), slice(None))), to_heads) for i in range(3))
    drop = _dropout_args(xp, q, dropout)
    out, log_sum = xp.attention(q, k, v, masked, causal, 0, *drop)

    def pull(g: Array) -> Array:
        g = xp.transpose(xp.reshape(g, (*batch, length, n_heads, d)), to_heads)
        grads = xp.attention_backward(g, q, k, v, out, log_sum, masked, causal, 0, (True, True, True), *drop)
        rows = [xp.reshape(xp.transpose(grad, to_heads), (*batch, length, n_heads * d)) for grad in grads]
        return xp.concatenate(rows, n + 1)

    return xp.reshape(xp.transpose(out, to_heads), (*batch, length, n_heads * d)), pull


def packed_shape(qkv: Array, n_heads: int) -> Shape:
    """The shape (..., n_heads, T, T) of the scores. Raises ValueError if qkv does not hold q, k and v of the heads."""
    check_int("attention_qkvpacked: n_heads", n_heads)
    if len(shape_of(qkv)) < 2 or n_heads < 1 or qkv.shape[-1] % (3 * n_heads) or not qkv.shape[-1]:
        raise ValueError(
            f"attention_qkvpacked: qkv {shape_of(qkv)} does not hold q, k and v of {n_heads} heads; "
            "it must be (..., T, 3 * n_heads * d)"
        )
    return (*qkv.shape[:-2], n_heads, qkv.shape[-2], qkv.shape[-2])


def check_bool(what: str, value: Any) -> None:
    """Raise TypeError for anything but True and False: "no" would count as True."""
    if not isinstance(value, bool):
        raise TypeError(f"{what} must be True or False, got {value!r}")


def check_int(what: str, value: Any) -> None:
    """Raise TypeError for anything but an integer, and for a bool."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{what} must be an int, got {value!r}")


def check_probability(what: str, value: Any, remedy: str = "") -> None:
    """Raise ValueError for anything but a number in [0, 1); `remedy` ends the message."""
    if (number := python_number(value)) is None or not 0 <= number < 1:
        raise ValueError(f"{what} must be in [0, 1), got {value!r}{remedy}")


def shape_of(operand: Array | float) -> Shape:
    """The shape of an array, or () for a number, as a tuple: PyTorch's is a subclass with a repr of its own."""
    return tuple(getattr(operand, "shape", ()))


def min_ndim(*operands: Array | float) -> int:
    """The smallest number of axes among the operands. (`min` is a rule here.)"""
    return sorted(len(shape_of(operand)) for operand in operands)[0]


def broadcast_shape(a: Shape, b: Shape) -> Shape:
    """The shape to which a and b broadcast. They must be compatible."""
    ndim = len(a) if len(a) > len(b) else len(b)
    padded = zip((1,) * (ndim - len(a)) + a, (1,) * (ndim - len(b)) + b, strict=True)
    return tuple(n if m == 1 else m for m, n in padded)


# --- Convolution and pooling. The functions in `russellgrad/ops/convolution.py` check the shapes.


def conv(
    xp: Backend, x: Array, weight: Array, bias: Array | None, *, stride: Shape, padding: Padding, dilation: Shape,
    groups: int,
) -> Result:  # fmt: skip
    sizes = stride, padding, dilation, groups
    return xp.conv(x, weight, bias, *sizes), Joint(lambda g, needs: xp.conv_backward(g, x, weight, *sizes, needs))


def max_pool(xp: Backend, x: Array, *, kernel: Shape, stride: Shape, padding: Padding, dilation: Shape) -> Result:
    """The gradient of a window goes to its first maximum."""
    shape, flat = x.shape, (prod(x.shape),)
    index = (xp.max_pool_indices(x, kernel, stride, padding, dilation),)
    return (
        xp.getitem(xp.reshape(x, flat), index),
        lambda g: xp.reshape(xp.getitem_backward(g, index, flat), shape),
    )


def avg_pool(
    xp: Backend, x: Float, *, kernel: Shape, stride: Shape, padding: Padding, counted: Padding, divisor: int | None
) -> Result:
    """A convolution of each channel with ones, divided by `divisor` or by the number of elements of each window.

    `counted` is the part of the padding that counts as elements.
    """
    wide, once = widened(xp, x), (1,) * len(kernel)
    n, c, *lengths = x.shape
    ones = xp.full((1, 1, *kernel), 1, xp.dtype(wide))
    sizes = stride, padding, once, 1
    size: Any = divisor or prod(kernel)
    if divisor is None and counted != padding:
        pairs = tuple(zip(padding, counted, strict=True))
        counted_lengths = (length + before + after for length, (before, after) in zip(lengths, counted, strict=True))
        rest = tuple((a - b, c - d) for (a, c), (b, d) in pairs)
        size = xp.conv(xp.full((1, 1, *counted_lengths), 1, xp.dtype(wide)), ones, None, stride, rest, once, 1)
    sums = xp.conv(xp.reshape(wide, (n * c, 1, *lengths)), ones, None, *sizes)
    out = xp.divide(xp.reshape(sums, (n, c, *sums.shape[2:])), size)

    def pull(g: Array) -> Array:
        g = xp.reshape(xp.divide(widened(xp, g), size), (n * c, 1, *g.shape[2:]))
        anything = xp.broadcast_to(xp.zeros((), xp.dtype(g)), (n * c, 1, *lengths))  # only its shape is needed
        return xp.reshape(xp.conv_backward(g, anything, ones, *sizes, (True, False, False))[0], (n, c, *lengths))

    return _rounded_as(xp, out, x), pull
