"""custom_op: differentiable ops from rules that users write."""

from collections.abc import Callable, Sequence
from functools import partial, update_wrapper
from typing import Any

from .autograd import Joint, is_grad_enabled
from .backend import Array, Backend
from .dtype import is_float
from .forward_backend import Dual, primal
from .rules import Rule
from .tensor import Operand, Tensor, apply
from .transforms import vjp


def custom_op(rule: Rule) -> Callable[..., Tensor]:
    """Make a differentiable op from a rule: `(xp, *arrays, **parameters) -> (output, pullback, ...)`.

    The returned function takes the operands (Tensors, numbers, arrays) by position and the parameters by keyword. The
    rule returns one pullback for each operand. A pullback takes the gradient of the output and returns the gradient of
    its operand; it need not handle broadcasting. A pullback of None means no gradient. Check the op with `gradcheck`.

    The pullbacks define the derivative of the op, in forward mode and at every order too. Inside a transform, such as
    `grad`, the rule runs more than once, so it must give the same output for the same arrays. The arrays are Tensors
    there. The rule and its pullbacks therefore call the primitives of `xp`, and not the functions of an array library.
    `gradcheck(op, inputs, order=2)` checks second derivatives.

    Raises TypeError if the rule is not callable. The op raises TypeError inside a transform if the rule or a pullback
    passes a Tensor to NumPy, copies floats to the host, or returns an array that is no Tensor.

        @custom_op
        def softplus(xp, a):
            return xp.log(xp.add(xp.exp(a), 1)), lambda g: xp.divide(g, xp.add(xp.exp(xp.negative(a)), 1))
    """
    if not callable(rule):
        raise TypeError(f"custom_op: needs a rule, a function (xp, *arrays), got a {type(rule).__name__}")

    def in_transform(xp: Backend, *arrays: Array, **params: Any) -> Any:
        """The rule on Tensors. The output is the op on them: its pullbacks are its derivative at all levels."""
        result = _call(rule.__name__, xp, rule, _Primitives(xp), *arrays, **params)
        if not isinstance(result, tuple):
            return result
        pullbacks = (_checked_pullback(rule.__name__, xp, pull) for pull in result[1:])
        return _output(op, xp, arrays, params), *pullbacks

    update_wrapper(in_transform, rule)

    def op(*operands: Operand, **params: Any) -> Tensor:
        is_inside = any(isinstance(x, Tensor) and x.backend.level for x in (*operands, *params.values()))
        return apply(in_transform if is_inside else rule, *operands, **params)

    return update_wrapper(op, rule)


def _output(op: Callable[..., Tensor], xp: Backend, arrays: Sequence[Any], params: dict[str, Any]) -> Any:
    """The output of an op for arrays of `xp`, which are Tensors or Duals."""
    params = {name: primal(value) for name, value in params.items()}
    out = op(*map(primal, arrays), **params)
    places = [i for i, a in enumerate(arrays) if isinstance(a, Dual)]
    if not places or not is_float(out.dtype) or not is_grad_enabled(xp.level):
        return out

    def of_duals(*chosen: Tensor) -> Tensor:
        new = dict(zip(places, chosen, strict=True))
        return op(*(new.get(i, a) for i, a in enumerate(arrays)), **params)

    # The pullbacks are linear in the gradient: their own vector-Jacobian product is the Jacobian-vector product of op.
    _, pull = vjp(of_duals, *(arrays[i].primal for i in places))
    _, push = vjp(pull, out * 0.0)
    tangents = zip(*(arrays[i].tangents for i in places), strict=True)
    return Dual(out, [push(column)[0] for column in tangents])


class _Primitives:
    """The primitives of `xp` within a rule on Tensors. Those of a host copy have no gradient: an error."""

    def __init__(self, xp: Backend) -> None:
        self._xp = xp

    def __getattr__(self, name: str) -> Any:
        return getattr(self._xp, name)

    def to_host(self, a: Array) -> Any:
        if is_float(self._xp.dtype(a)):
            raise TypeError("to_host of an array of floats, whose copy has no gradient")
        return self._xp.to_host(a)


def _call(name: str, xp: Backend, function: Callable[..., Any], *args: Any, **params: Any) -> Any:
    """Call a rule or pullback on Tensors. Raises TypeError if it does not go through `xp`."""
    remedy = (
        "the arrays of a rule are Tensors there: the rule and its pullbacks must call the primitives of xp, such as "
        "xp.exp(a), instead of functions of NumPy"
    )
    try:
        result = function(*args, **params)
    except (TypeError, AttributeError) as error:
        raise TypeError(f"{name}: the rule failed inside a transform: {error}; {remedy}") from error
    for array in result if isinstance(result, tuple) else (result,):
        if hasattr(array, "shape") and not xp.is_array(array):
            kind = f"{type(array).__module__}.{type(array).__name__}"
            raise TypeError(f"{name}: the rule returned a {kind} inside a transform; {remedy}")
    return result


def _checked_pullback(name: str, xp: Backend, pull: Any) -> Any:
    if isinstance(pull, Joint):
        return Joint(partial(_call, name, xp, pull.pull))
    return pull if pull is None else partial(_call, name, xp, pull)
