"""New tensors with other values at an index: x.at(index).set(value) and x.at(index).add(value), after JAX's x.at."""

from typing import Any, Generic, Self, cast

from .. import rules
from ..apply import Operand, TensorBase, TensorT, apply, index_part, is_array
from ..backend import Index
from ..dtype import host_number, is_float, python_number


class At(Generic[TensorT]):
    """`x.at(index)`: the place x[index] in new tensors. The value is cast to the dtype of x.

    An index that is out of range raises IndexError in `set` and `add`.
    """

    def __init__(self, x: TensorT, index: Index) -> None:
        parts = index if isinstance(index, tuple) else (index,)
        self._x, self._index = x, tuple(index_part(part, x.backend) for part in parts)

    def set(self, value: Operand) -> TensorT:
        """A copy of x with `value` in place of x[index].

        `value` is a number, a Tensor or an array, and broadcasts to the shape of x[index]. It may have axes only if
        the index selects no element twice. (JAX leaves it undefined which of two values is written.)

        Raises:
            IndexError: the index is out of range. TypeError: the value is a float, and x is not.
            ValueError: the value does not broadcast, or the index selects an element twice.
            OverflowError: a number is out of the range of the dtype.

            Tensor([1.0, 2.0, 3.0]).at(0).set(5.0)  # [5. 2. 3.]
        """
        return apply(rules.at_set, self._x, self._value("at_set", value), index=self._index)

    def add(self, value: Operand) -> TensorT:
        """A copy of x with `value` added to x[index]. The values of an element that is selected several times add up.

        `value` is as for `set`, and broadcasts in the same way. Raises as `set` does, and TypeError for bool tensors.

            Tensor([1.0, 2.0, 3.0]).at([0, 0]).add(5.0)  # [11. 2. 3.]
        """
        if self._x.dtype.kind == "b":
            raise TypeError("at_add: x is bool, and has no sums; use x.at(index).set(value), or x.astype('int64')")
        return apply(rules.at_add, self._x, self._value("at_add", value), index=self._index)

    def _value(self, op: str, value: Operand) -> Any:
        """A Tensor or a Python number that fits the dtype of x; anything else as it is, for `apply` to refuse."""
        x = cast(Any, self._x)
        number = python_number(value)
        if number is None and not isinstance(value, TensorBase) and is_array(x.backend, value):
            value = type(x)(value, requires_grad=False, backend=x.backend.root)
        kind = "if"[isinstance(number, float)] if number is not None else ""
        if isinstance(value, TensorBase):
            kind = "f" if is_float(value.dtype) else value.dtype.kind
            value = apply(rules.astype, value, dtype=x.dtype) if value.dtype != x.dtype else value
        if kind == "f" and not is_float(x.dtype):
            raise TypeError(f"{op}: the value is a float, and x is {x.dtype}; cast one of them with .astype(dtype)")
        if number is None:
            return value
        host_number(op, number, x.dtype)  # checks the range
        return bool(number) if x.dtype.kind == "b" else number


class Indexing(TensorBase):
    """The method `at` of Tensor."""

    __slots__ = ()

    def at(self, index: Index) -> "At[Self]":
        """The place x[index] in new tensors: `x.at(index).set(value)`, `x.at(index).add(value)`.

        The index is that of x[index]. Write `numpy.s_[...]` for slices. Raises IndexError when it is used, if it is out
        of range.

            x.at((0, 1)).set(5.0)
            x.at(numpy.s_[:, 0]).add(y)
        """
        return At(self, index)
