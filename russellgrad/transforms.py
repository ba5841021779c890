"""Transforms: functions that turn a function of Tensors into its derivatives, as in `torch.func` and JAX.

    grad(lambda x: (x**3).sum())(Tensor([2.0]))         # [12.]
    grad(grad(lambda x: x**3))(Tensor(2.0))             # 12.0

The results are Tensors, so transforms nest, and `backward` can differentiate a result with respect to tensors that
require gradients. A transform evaluates the function at a new level (`TensorBackend`): its inputs become Tensors whose
arrays are the given Tensors, and `backward` on them computes gradients that are Tensors.

In the arguments and results, a value is a Tensor, or a tuple, list or dict of values.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .autograd import Joint, Node, backward, record_from, recorded_from
from .backend import Shape
from .dtype import is_float
from .forward_backend import Dual, ForwardBackend, primal
from .module import Module, replaced_tensors
from .tensor import Tensor
from .tensor_backend import TensorBackend

Function = Callable[..., Any]
Value = Any  # a Tensor, or a tuple, list or dict of values


def grad(f: Function, argnums: int | tuple[int, ...] = 0) -> Function:
    """The function that computes the gradient of `f`, as `jax.grad` and `torch.func.grad`.

    Args:
        f: a function that returns one float Tensor with one element and no axes.
        argnums: the position of the argument to differentiate, or a tuple of positions. These arguments are values of
            float Tensors; the others are passed on.

    Returns:
        A function of the arguments of `f`. It returns the gradient, with the structure, shapes and dtypes of that
        argument; for a tuple of positions, a tuple of gradients. It is zero where `f` does not depend on the argument.

    Raises (when called):
        TypeError: an argument or the output is not a float Tensor. ValueError: the output has axes.

        grad(lambda w, x: (x @ w).tanh().sum())(w, x)  # the shape of w
    """
    gradient = _value_and_grad("grad", f, argnums)

    return lambda *args, **kwargs: gradient(*args, **kwargs)[1]


def value_and_grad(f: Function, argnums: int | tuple[int, ...] = 0) -> Function:
    """As `grad`, but the function returns a tuple of the output of `f` and the gradient.

    loss, gradient = value_and_grad(f)(x)
    """
    return _value_and_grad("value_and_grad", f, argnums)


def _value_and_grad(op: str, f: Function, argnums: int | tuple[int, ...]) -> Function:
    _check_function(op, f)
    _check_argnums(op, argnums)

    def of_f(*args: Any, **kwargs: Any) -> tuple[Value, Value]:
        evaluated = _Evaluated(op, f, args, kwargs, argnums)
        return evaluated.out, evaluated.gradients(_one(op, evaluated.out), retain_graph=False)

    return of_f


def vjp(f: Function, *inputs: Value) -> tuple[Value, Function]:
    """Evaluate `f(*inputs)`, and return the output and `pull`, which computes vector-Jacobian products.

    `pull(gradient)` takes the gradient of a scalar with respect to the output, and returns that with respect to the
    inputs: a value like the input, or a tuple of them for several inputs. It can be called repeatedly; the graph is
    kept until `pull` is deleted. As `jax.vjp` and `torch.func.vjp`.

    Raises:
        TypeError: an input or an output is not a float Tensor. ValueError (`pull`): the gradient has another shape.

        y, pull = vjp(lambda x: x * x, Tensor([1.0, 2.0]))
        pull(Tensor([1.0, 10.0]))  # [2. 40.]
    """
    _check_function("vjp", f)
    evaluated = _Evaluated("vjp", f, inputs, {}, tuple(range(len(inputs))))

    def pull(gradient: Value) -> Value:
        found = evaluated.gradients(_matching("vjp: gradient", gradient, evaluated.out), retain_graph=True)
        return found[0] if len(inputs) == 1 else found

    return evaluated.out, pull


def jvp(f: Function, inputs: Sequence[Value], tangents: Sequence[Value]) -> tuple[Value, Value]:
    """Evaluate `f(*inputs)`, and return the output and its directional derivative, a Jacobian-vector product.

    As `jax.jvp` and `torch.func.jvp`. It is computed in forward mode, together with the output and without a graph.

    Args:
        inputs: a tuple of the arguments of `f`.
        tangents: the direction: a tuple of values with the structure, shapes and dtypes of `inputs`.

    Raises:
        TypeError: an input or an output is not a float Tensor; inputs or tangents are not a tuple or list.
        ValueError: the tangents do not have the structure and the shapes of the inputs.

        jvp(lambda x: x**3, (Tensor(2.0),), (Tensor(1.0),))  # 8.0 and 12.0
    """
    _check_function("jvp", f)
    for name, given in (("inputs", inputs), ("tangents", tangents)):
        if not isinstance(given, (tuple, list)):
            raise TypeError(f"jvp: {name} must be a tuple of the arguments, got a {type(given).__name__}")
    argnums = tuple(range(len(inputs)))
    _arguments("jvp", argnums, inputs)
    direction = _leaves(_matching("jvp: tangents", tuple(tangents), tuple(inputs)))
    evaluated = _Evaluated("jvp", f, inputs, {}, argnums, [[tangent] for tangent in direction], tracks=False)
    return evaluated.out, _filled(evaluated.out, (tangent for (tangent,) in evaluated.tangents))


def hvp(f: Function, x: Value, v: Value) -> Value:
    """The Hessian-vector product of `f` at x: the derivative of the gradient of `f` in the direction v.

    It is the jvp of the gradient, costs about four times as much as the gradient and never builds the Hessian
    (Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6, 1994). Inside `no_grad()` it takes
    less time and memory; the result then cannot be differentiated further.

    Raises:
        TypeError: x is not a value of float Tensors. ValueError: v does not have its structure and shapes, or f(x) has
            axes.

        hvp(lambda x: (x**3).sum(), Tensor([1.0, 2.0]), Tensor([1.0, 0.0]))  # [6. 0.]
    """
    _check_function("hvp", f)
    _float_leaves("hvp: x", x)
    direction = [[tangent] for tangent in _leaves(_matching("hvp: v", v, x))]
    evaluated = _Evaluated("hvp", f, (x,), {}, 0, direction)
    return evaluated.tangents_of_gradients(_one("hvp", evaluated.out))


def jacobian(f: Function, argnums: int | tuple[int, ...] = 0) -> Function:
    """The function that computes the Jacobian of `f`: the derivative of each element of the output.

    For an output of shape (n, ...) and an argument of shape (m, ...), the result is (n, ..., m, ...), with
    result[i, j] = d output[i] / d argument[j]. For values, it is a value like the output, of values like the argument.

    It evaluates `f` once and takes one backward pass for each element of the output. If the argument has fewer elements
    than the output, it evaluates `f` a second time, in forward mode, with one tangent for each element of the argument.

    Raises (when called):
        TypeError: the argument or the output is not a float Tensor.

        jacobian(lambda x: x * x)(Tensor([1.0, 2.0]))  # [[2. 0.] [0. 4.]]
    """
    return _jacobian("jacobian", f, argnums)


def hessian(f: Function, argnums: int | tuple[int, ...] = 0) -> Function:
    """The function that computes the Hessian of `f`: the Jacobian of its gradient.

    For an argument of shape (n, ...), the result is (n, ..., n, ...). It takes one backward pass through the gradient
    for each element of the argument; for large arguments, use `hvp`. As `jax.hessian` and `torch.func.hessian`.

    Raises (when called): as `grad` does.

        hessian(lambda x: (x**3).sum())(Tensor([1.0, 2.0]))  # [[6. 0.] [0. 12.]]
    """
    gradient = _value_and_grad("hessian", f, argnums)
    return _jacobian("hessian", lambda *args, **kwargs: gradient(*args, **kwargs)[1], argnums)


def functional_call(module: Module, tensors: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """Call a module with other Tensors in place of its parameters and buffers, as `torch.func.functional_call`.

    It makes the output a function of the parameters, which transforms can differentiate. The module itself does not
    change. Not for use by several threads on one module.

        parameters = dict(model.named_parameters())
        grad(lambda p: loss_of(functional_call(model, p, x)))(parameters)

    Args:
        module: the module.
        tensors: from names, as in `named_parameters` and `named_buffers`, to Tensors of the same shapes. For the other
            names, the module's own Tensors are used.
        args, kwargs: the arguments of the call.

    Raises:
        ValueError: a name is unknown, or a shape differs. TypeError: a value is not a Tensor.
    """
    with replaced_tensors(module, tensors):
        return module(*args, **kwargs)


def _jacobian(op: str, f: Function, argnums: int | tuple[int, ...]) -> Function:
    _check_function(op, f)
    _check_argnums(op, argnums)

    def of_f(*args: Any, **kwargs: Any) -> Value:
        evaluated = _Evaluated(op, f, args, kwargs, argnums)
        xs, ys = evaluated.arguments, _leaves(evaluated.out)
        if sum(x.size for x in xs) < sum(y.size for y in ys):
            return _columns(op, f, args, kwargs, argnums, xs)
        rows = [[evaluated.row(k, unit) for unit in _units(y)] for k, y in enumerate(ys)]
        blocks = [[_block([row[j] for row in rows[k]], 0, y, x) for j, x in enumerate(xs)] for k, y in enumerate(ys)]
        return _filled(evaluated.out, (evaluated.like_arguments(row) for row in blocks))

    return of_f


def _columns(
    op: str, f: Function, args: Sequence[Any], kwargs: Mapping[str, Any], argnums: int | tuple[int, ...],
    xs: Sequence[Tensor],
) -> Value:  # fmt: skip
    """The Jacobian in forward mode: one evaluation, with a tangent for each element of xs, the arguments."""
    total, first, tangents, places = sum(x.size for x in xs), 0, [], []
    for x in xs:
        zero, units = _constant(x, x.shape, 0), list(_units(x))
        tangents.append([*[zero] * first, *units, *[zero] * (total - first - x.size)])
        places.append(slice(first, first + x.size))
        first += x.size
    evaluated = _Evaluated(op, f, args, kwargs, argnums, tangents, tracks=False)
    blocks = [
        [_block(column[place], -1, y, x) for place, x in zip(places, xs, strict=True)]
        for y, column in zip(_leaves(evaluated.out), evaluated.tangents, strict=True)
    ]
    return _filled(evaluated.out, (evaluated.like_arguments(row) for row in blocks))


def _units(t: Tensor) -> Iterator[Tensor]:
    """For each element, a tensor of the shape of t that is 1 there and 0 elsewhere."""
    xp = t.backend.root
    positions = xp.reshape(xp.arange(t.size), t.shape)
    return (Tensor._wrap(xp.astype(xp.equal(positions, i), t.dtype), xp) for i in range(t.size))


def _block(parts: Sequence[Tensor], axis: int, y: Tensor, x: Tensor) -> Tensor:
    """The Jacobian dy/dx, y.shape + x.shape, from its rows (axis 0) or columns (axis -1)."""
    shape = (*y.shape, *x.shape)
    return Tensor.stack(parts, axis).reshape(shape) if parts else _constant(x, shape, 0)


# --- Evaluation at a level


class _Evaluated:
    """The output of a function at a new level.

    Args:
        op: the name of the transform, for messages.
        f, args, kwargs: the function and its arguments.
        argnums: the positions of the arguments that are differentiated.
        tangents: for forward mode, the tangents of each Tensor in these arguments.
        tracks: whether to record a graph, for `gradients`.

    Attributes:
        out: the output, a value of Tensors of lower levels.
        tangents: for forward mode, the tangents of each Tensor in the output.
        arguments: the Tensors in the arguments that are differentiated.
    """

    def __init__(
        self, op: str, f: Function, args: Sequence[Any], kwargs: Mapping[str, Any], argnums: int | tuple[int, ...],
        tangents: Sequence[Sequence[Tensor]] | None = None, tracks: bool = True,
    ) -> None:  # fmt: skip
        positions = _positions(op, argnums, len(args))
        self._argnums, self._given = argnums, tuple(args[i] for i in positions)
        self.arguments = _arguments(op, positions, self._given)
        root = self.arguments[0].backend.root
        level = TensorBackend(root) if tangents is None else ForwardBackend(root)
        arrays = self.arguments if tangents is None else map(Dual, self.arguments, tangents)
        self._inputs = [
            Tensor._wrap(array, level.on(x.backend.root), version=x._version)
            for x, array in zip(self.arguments, arrays, strict=True)
        ]
        for tensor in self._inputs:
            tensor.requires_grad = tracks
        lifted = dict(zip(positions, _filled(self._given, iter(self._inputs)), strict=True))
        self._recorded_from = min(level.level, recorded_from())
        with record_from(self._recorded_from):
            out = f(*(lifted.get(i, arg) for i, arg in enumerate(args)), **kwargs)
        outputs = _float_leaves(f"{op}: the output", out)
        depends = [tensor.backend.level == level.level for tensor in outputs]
        # The node of an output is None if it does not depend on the inputs.
        self._nodes = [t._node if is_here else None for t, is_here in zip(outputs, depends, strict=True)]
        lower = [t._array if is_here else t for t, is_here in zip(outputs, depends, strict=True)]
        self.out = _filled(out, map(primal, lower))
        n = 0 if tangents is None else len(tangents[0])
        self.tangents = [a.tangents if isinstance(a, Dual) else [_constant(a, a.shape, 0)] * n for a in lower]

    def gradients(self, gradient: Value, retain_graph: bool) -> Value:
        """The gradients of the arguments for a gradient of the output, which has its structure."""
        return self.like_arguments(self._backward(self._nodes, _leaves(gradient), retain_graph))

    def tangents_of_gradients(self, gradient: Value) -> Value:
        """The derivatives of `gradients`, in the direction of the tangents."""
        with record_from(self._recorded_from):
            found = self._backward(self._nodes, _leaves(gradient), retain_graph=False)
        zeros = (_constant(x, x.shape, 0) for x in self.arguments)
        pairs = zip(found, zeros, strict=True)
        return self.like_arguments([g.tangents[0] if isinstance(g, Dual) else zero for g, zero in pairs])

    def row(self, k: int, gradient: Tensor) -> list[Tensor]:
        """The gradient of each Tensor in the arguments, for a gradient of the k-th Tensor in the output."""
        return self._backward([self._nodes[k]], [gradient], True)

    def like_arguments(self, tensors: Sequence[Tensor]) -> Value:
        """The tensors in the structure of the differentiated argument, or of the tuple of them."""
        values = _filled(self._given, iter(tensors))
        return values if isinstance(self._argnums, tuple) else values[0]

    def _backward(self, nodes: Sequence[Node | None], gradients: Sequence[Tensor], retain_graph: bool) -> list[Any]:
        # If the function ran inside no_grad(), what is below its level is not recorded now either.
        with record_from(max(recorded_from(), self._recorded_from)):
            return _gradients(nodes, gradients, self._inputs, retain_graph)


def _arguments(op: str, positions: Sequence[int], given: Sequence[Value]) -> list[Tensor]:
    """The Tensors in the differentiated arguments. Raises TypeError if one is not of floats, ValueError for none."""
    found = [
        leaf for i, value in zip(positions, given, strict=True) for leaf in _float_leaves(f"{op}: argument {i}", value)
    ]
    if not found:
        raise ValueError(f"{op}: there is no Tensor to differentiate with respect to")
    return found


def _gradients(
    nodes: Sequence[Node | None], gradients: Sequence[Tensor], inputs: Sequence[Tensor], retain_graph: bool
) -> list[Tensor]:
    """The gradients of `inputs`, leaves of one level, for gradients of outputs with these nodes."""
    outputs = [(node, gradient) for node, gradient in zip(nodes, gradients, strict=True) if node is not None]
    before = [tensor._grad for tensor in inputs]
    for tensor in inputs:
        tensor._grad = None
    if outputs:
        roots, parts = zip(*outputs, strict=True)
        # A node above all outputs: one pass computes all gradients.
        top = Node("outputs", roots[0].xp, parts[0], roots, [Joint(lambda g, needs: parts)])
        backward(top, parts[0], retain_graph)
    found = [_constant(tensor, tensor.shape, 0) if tensor._grad is None else tensor._grad for tensor in inputs]
    for tensor, gradient in zip(inputs, before, strict=True):
        tensor._grad = gradient
    return found


def _one(op: str, out: Value) -> Tensor:
    """The gradient of the output with respect to itself, 1. Raises ValueError if it is not a Tensor without axes."""
    if not isinstance(out, Tensor) or out.ndim:
        what = f"shape {out.shape}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise ValueError(
            f"{op}: the function must return a Tensor without axes, got {what}; reduce it, as in y.sum(), or use vjp "
            "or jacobian"
        )
    return _constant(out, (), 1)


def _constant(like: Tensor, shape: Shape, value: float) -> Tensor:
    """A tensor of level 0 with the dtype of `like`, filled with `value`."""
    xp = like.backend.root
    return Tensor._wrap(xp.full(shape, value, like.dtype), xp)


# --- Values: nested tuples, lists and dicts of Tensors


def _leaves(value: Value) -> list[Any]:
    """The Tensors of a value in order, and anything else that is no tuple, list or dict."""
    if isinstance(value, Mapping):
        return [leaf for part in value.values() for leaf in _leaves(part)]
    if isinstance(value, (tuple, list)):
        return [leaf for part in value for leaf in _leaves(part)]
    return [value]


def _filled(value: Value, leaves: Iterator[Any]) -> Value:
    """The value with its leaves replaced by the next ones of `leaves`."""
    if isinstance(value, Mapping):
        return {key: _filled(part, leaves) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [_filled(part, leaves) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return next(leaves)


def _structure(value: Value) -> str:
    """The nesting and the shapes, as text: two values with the same text have the same structure."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_structure(part)}" for key, part in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        parts = ", ".join(map(_structure, value))
        return f"[{parts}]" if isinstance(value, list) else f"({parts},)"
    return f"Tensor{value.shape}" if isinstance(value, Tensor) else type(value).__name__


def _float_leaves(what: str, value: Value) -> list[Tensor]:
    """The leaves of a value. Raises TypeError if one is not a float Tensor."""
    found = _leaves(value)
    for leaf in found:
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"{what} must be a float Tensor, or a tuple, list or dict of them, got {type(leaf).__name__}; make one "
                "with Tensor(x)"
            )
        if not is_float(leaf.dtype):
            raise TypeError(f"{what} must be of a float dtype, got {leaf.dtype} {leaf.shape}; cast it with .astype()")
    return found


def _matching(what: str, value: Value, like: Value) -> Value:
    """The value, in the dtypes of `like`. Raises ValueError if it has not the structure and the shapes of `like`."""
    leaves = _float_leaves(what, value)
    if _structure(value) != _structure(like):
        raise ValueError(f"{what} must have the structure and shapes of {_structure(like)}, got {_structure(value)}")
    pairs = zip(leaves, _leaves(like), strict=True)
    return _filled(value, (t if t.dtype == other.dtype else t.astype(other.dtype) for t, other in pairs))


def _check_function(op: str, f: Any) -> None:
    if not callable(f):
        raise TypeError(
            f"{op}: needs a function, got a {type(f).__name__}; for the gradient of a Tensor y call y.backward()"
        )


def _check_argnums(op: str, argnums: Any) -> None:
    positions = argnums if isinstance(argnums, tuple) else (argnums,)
    if not positions or not all(isinstance(i, int) and not isinstance(i, bool) for i in positions):
        raise TypeError(f"{op}: argnums must be an int or a tuple of ints, got {argnums!r}")


def _positions(op: str, argnums: int | tuple[int, ...], n: int) -> list[int]:
    """The positions as nonnegative ints, for n arguments."""
    positions = argnums if isinstance(argnums, tuple) else (argnums,)
    if not all(-n <= i < n for i in positions):
        raise ValueError(f"{op}: argnums={argnums} is out of range: {n} arguments were passed by position")
    found = [i % n for i in positions]
    if len(set(found)) < len(found):
        raise ValueError(f"{op}: argnums={argnums} names an argument twice")
    return found
