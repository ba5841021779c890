"""Operators of tensors: arithmetic, comparisons and logic."""

from numbers import Number
from typing import Any, Self, cast

from .. import rules
from ..apply import PYTHON_NUMBERS, Operand, TensorBase, TensorT, apply, has_dtype
from ..autograd import is_grad_enabled


class Operators(TensorBase):
    """The operators of Tensor."""

    __slots__ = ()

    # fmt: off
    # --- Arithmetic

    def __add__(self, other: Operand) -> Self:          return _binary(rules.add, self, other)
    def __radd__(self, other: Operand) -> Self:         return _reflected(rules.add, self, other)
    def __sub__(self, other: Operand) -> Self:          return _binary(rules.subtract, self, other)
    def __rsub__(self, other: Operand) -> Self:         return _reflected(rules.subtract, self, other)
    def __mul__(self, other: Operand) -> Self:          return _binary(rules.multiply, self, other)
    def __rmul__(self, other: Operand) -> Self:         return _reflected(rules.multiply, self, other)
    def __truediv__(self, other: Operand) -> Self:      return _binary(rules.divide, self, other)
    def __rtruediv__(self, other: Operand) -> Self:     return _reflected(rules.divide, self, other)
    def __floordiv__(self, other: Operand) -> Self:     return _binary(rules.floor_divide, self, other)
    def __rfloordiv__(self, other: Operand) -> Self:    return _reflected(rules.floor_divide, self, other)
    def __mod__(self, other: Operand) -> Self:          return _binary(rules.remainder, self, other)
    def __rmod__(self, other: Operand) -> Self:         return _reflected(rules.remainder, self, other)
    def __divmod__(self, other: Operand) -> tuple[Self, Self]:  return self // other, self % other
    def __rdivmod__(self, other: Operand) -> tuple[Self, Self]: return other // self, other % self
    def __pow__(self, other: Operand) -> Self:          return _binary(rules.power, self, other)
    def __rpow__(self, other: Operand) -> Self:         return _reflected(rules.power, self, other)
    def __matmul__(self, other: Operand) -> Self:       return _binary(rules.matmul, self, other)
    def __rmatmul__(self, other: Operand) -> Self:      return _reflected(rules.matmul, self, other)
    def __iadd__(self, other: Operand) -> Self:         return _augmented(rules.add, "+=", self, other)
    def __isub__(self, other: Operand) -> Self:         return _augmented(rules.subtract, "-=", self, other)
    def __imul__(self, other: Operand) -> Self:         return _augmented(rules.multiply, "*=", self, other)
    def __itruediv__(self, other: Operand) -> Self:     return _augmented(rules.divide, "/=", self, other)
    def __ifloordiv__(self, other: Operand) -> Self:    return _augmented(rules.floor_divide, "//=", self, other)
    def __imod__(self, other: Operand) -> Self:         return _augmented(rules.remainder, "%=", self, other)
    def __ipow__(self, other: Operand) -> Self:         return _augmented(rules.power, "**=", self, other)
    def __imatmul__(self, other: Operand) -> Self:      return _augmented(rules.matmul, "@=", self, other)
    def __pos__(self) -> Self:                          return self
    def __neg__(self) -> Self:                          return apply(rules.negative, self)
    def __abs__(self) -> Self:                          return apply(rules.abs, self)
    def __round__(self, n: int | None = None) -> Self:  return apply(rules.round, self, decimals=n or 0)

    # --- Comparisons: the result is a bool tensor

    def __eq__(self, other: object) -> Self:            return _equality(rules.equal, self, other)  # type: ignore[override]
    def __ne__(self, other: object) -> Self:            return _equality(rules.not_equal, self, other)  # type: ignore[override]
    def __lt__(self, other: Operand) -> Self:           return _binary(rules.less, self, other)
    def __le__(self, other: Operand) -> Self:           return _binary(rules.less_equal, self, other)
    def __gt__(self, other: Operand) -> Self:           return _binary(rules.greater, self, other)
    def __ge__(self, other: Operand) -> Self:           return _binary(rules.greater_equal, self, other)
    __hash__ = object.__hash__  # by identity, because == compares elements

    # --- Logic, for bool operands

    def __and__(self, other: Operand) -> Self:          return _binary(rules.logical_and, self, other)
    def __rand__(self, other: Operand) -> Self:         return _reflected(rules.logical_and, self, other)
    def __or__(self, other: Operand) -> Self:           return _binary(rules.logical_or, self, other)
    def __ror__(self, other: Operand) -> Self:          return _reflected(rules.logical_or, self, other)
    def __xor__(self, other: Operand) -> Self:          return _binary(rules.logical_xor, self, other)
    def __rxor__(self, other: Operand) -> Self:         return _reflected(rules.logical_xor, self, other)
    def __invert__(self) -> Self:                       return apply(rules.logical_not, self)

    # fmt: on

    def __contains__(self, x: Any) -> bool:
        return bool(self.backend.to_host(apply(rules.equal, self, x)._array).any())


def _binary(rule: rules.Rule, a: TensorT, b: Operand) -> TensorT:
    """Apply a rule as a binary operator.

    Returns NotImplemented for a type that may define the operator itself, as Python's data model requires. Numbers and
    built-in types do not; `apply` takes or refuses them.
    """
    if type(a) is type(b):  # two Tensors, the most frequent case
        return apply(rule, a, b)
    for x, other in ((a, b), (b, a)):
        if isinstance(x, TensorBase) or type(x) in PYTHON_NUMBERS:
            continue
        if not isinstance(x, (TensorBase, *_BUILT_IN)) and not has_dtype(x, other.backend):
            return cast(TensorT, NotImplemented)
    return apply(rule, a, b)


_BUILT_IN = (Number, str, bytes, bytearray, list, tuple, range, dict, set, type(None))


def _reflected(rule: rules.Rule, b: TensorT, a: Operand) -> TensorT:
    """As `_binary`, for an operator that Python calls on its second operand."""
    return _binary(rule, a, b)  # type: ignore[no-any-return]


def _equality(rule: rules.Rule, a: TensorT, b: Any) -> TensorT:
    """As `_binary`. None, strings and objects are not equal to any tensor, as in PyTorch."""
    comparable = isinstance(b, (TensorBase, Number, list, tuple)) or has_dtype(b, a.backend)
    return _binary(rule, a, b) if comparable else cast(TensorT, NotImplemented)


def _augmented(rule: rules.Rule, operator: str, a: TensorT, b: Operand) -> TensorT:
    """`a += b`, which is `a = a + b`: a new tensor. Raises RuntimeError where that would replace a parameter."""
    if a._node is not None and a._node.name == "leaf" and not is_grad_enabled(a.backend.level):
        raise RuntimeError(
            f"{rule.__name__}: within no_grad(), `w {operator} x` would replace w, which tracks gradients, by a new "
            f"tensor that does not; to update w, write w.data {operator} x, with an array x, such as lr * w.grad; for "
            f"a new tensor, w = w {operator[:-1]} x"
        )
    return _binary(rule, a, b)
