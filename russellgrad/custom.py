"""custom_op: differentiable ops from rules that users write."""

from collections.abc import Callable, Sequence
from functools import partial, update_wrapper
from typing import Any, cast

from .autograd import Joint
from .backend import Array, Backend
from .forward_backend import ForwardBackend, primal
from .rules import Rule
from .tensor import Operand, Tensor, apply
from .transforms import constant, grad


def custom_op(rule: Rule) -> Callable[..., Tensor]:
    """Make a differentiable op from a rule: `(xp, *arrays, **parameters) -> (output, pullback, ...)`.

    The returned function takes the operands (Tensors, numbers, arrays) by position and the parameters by keyword. The
    rule returns one pullback for each operand. A pullback takes the gradient of the output and returns the gradient of
    its operand; it need not handle broadcasting. A pullback of None means no gradient. Check the op with `gradcheck`.

    Inside a transform, such as `grad`, the arrays are Tensors. The rule and its pullbacks therefore call the primitives
    of `xp`, and not the functions of an array library. The rule is called for each level of transforms, and must give
    the same output each time. The derivative of the op is the pullback in forward mode, too, which needs it to be
    linear.

    Raises TypeError if the rule is not callable. The op raises TypeError inside a transform, if the rule or a pullback
    does not go through `xp`.

        @custom_op
        def softplus(xp, a):
            return xp.log(xp.add(xp.exp(a), 1)), lambda g: xp.divide(g, xp.add(xp.exp(xp.negative(a)), 1))
    """
    if not callable(rule):
        raise TypeError(f"custom_op: needs a rule, a function (xp, *arrays), got a {type(rule).__name__}")

    def on_tensors(xp: Backend, *arrays: Array, **params: Any) -> Any:
        """The rule inside a transform: its pullbacks are the derivatives of the op, of every order and mode."""
        result = _checked(rule, xp, arrays, params)
        if not isinstance(result, tuple):
            return result
        # The output of the op itself, one level below: what `xp` recorded has the derivative of the primitives.
        primals, plain = tuple(map(primal, arrays)), {key: primal(value) for key, value in params.items()}
        out = op(*primals, **plain)
        if isinstance(xp, ForwardBackend):
            _, *pulls = _checked(rule, xp.below, primals, plain)
            out = xp.with_tangents(out, partial(_push, out, pulls), *arrays)
        return out, *result[1:]

    update_wrapper(on_tensors, rule)

    def op(*operands: Operand, **params: Any) -> Tensor:
        in_transform = any(isinstance(x, Tensor) and x.backend.level for x in (*operands, *params.values()))
        return apply(on_tensors if in_transform else rule, *operands, **params)

    return update_wrapper(op, rule)


def _checked(rule: Rule, xp: Backend, arrays: Sequence[Array], params: dict[str, Any]) -> Any:
    """The result of the rule on Tensors, with an error for what does not go through `xp`, in the pullbacks, too."""
    name = rule.__name__
    result = _on_tensors(name, xp, rule, xp, *arrays, **params)
    return (result[0], *(_checked_pullback(name, xp, p) for p in result[1:])) if isinstance(result, tuple) else result


def _push(out: Tensor, pulls: Sequence[Any], *tangents: Tensor | None) -> Tensor:
    """The tangent of the output: the transposes of the pullbacks, which are linear, times the operands' tangents."""

    def along(g: Tensor) -> Tensor:
        if len(pulls) == 1 and isinstance(pulls[0], Joint):
            parts = pulls[0].pull(g, [t is not None for t in tangents])
        else:
            parts = tuple(None if pull is None else pull(g) for pull in pulls)
        pairs = zip(parts, tangents, strict=True)
        return sum(((part * t).sum() for part, t in pairs if part is not None and t is not None), (g * 0).sum())

    return cast(Tensor, grad(along)(constant(out, out.shape, 0)))


def _on_tensors(name: str, xp: Backend, function: Callable[..., Any], *args: Any, **params: Any) -> Any:
    """Call a rule or pullback on Tensors. Raises TypeError if it does not go through `xp`."""
    remedy = (
        "inside a transform, the arrays of a rule are Tensors: the rule and its pullbacks must call the primitives of "
        "xp, such as xp.exp(a), instead of functions of NumPy"
    )
    try:
        result = function(*args, **params)
    except (TypeError, AttributeError) as error:
        raise TypeError(f"{name}: {error}; {remedy}") from error
    for array in result if isinstance(result, tuple) else (result,):
        if hasattr(array, "shape") and not xp.is_array(array):
            raise TypeError(f"{name}: returned a {type(array).__module__}.{type(array).__name__}; {remedy}")
    return result


def _checked_pullback(name: str, xp: Backend, pull: Any) -> Any:
    if isinstance(pull, Joint):
        return Joint(partial(_on_tensors, name, xp, pull.pull))
    return pull if pull is None else partial(_on_tensors, name, xp, pull)
