"""Function transforms: derivatives of functions of Tensors, as in `torch.func` and JAX.

    grad(lambda x: (x**3).sum())(Tensor([2.0]))         # [12.]
    grad(grad(lambda x: x**3))(Tensor(2.0))             # 12.0

The results are Tensors, so transforms nest, and `backward` can differentiate a result with respect to tensors that
require gradients. Inside `no_grad()` transforms work as well; their results then track no gradients, which takes less
time and memory.

A transform calls the function with Tensors of a new level, whose arrays are the given Tensors (`TensorBackend`). The
gradients that a backward pass computes there are Tensors of lower levels. In forward mode each array also holds its
tangents (`ForwardBackend`).

Arguments and results may be pytrees: a Tensor, or a tuple, list or dict of pytrees. Inside the function, `x.data`,
`x.numpy()`, `x.item()` and `x.detach()` are constants.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

from .autograd import Joint, Node, backward, record_from, recorded_from
from .backend import Shape
from .dtype import is_float
from .forward_backend import Dual, ForwardBackend, primal
from .module import Module, replaced_tensors
from .pytree import Pytree, float_leaves, matching, tree_leaves, tree_unflatten
from .rules import check_bool
from .tensor import Tensor
from .tensor_backend import TensorBackend

Function = Callable[..., Any]
ArgNums = int | tuple[int, ...]


def grad(f: Function, argnums: ArgNums = 0, has_aux: bool = False) -> Function:
    """Return a function that computes the gradient of `f`, as `jax.grad` and `torch.func.grad`.

    Args:
        f: a function that returns a 0-d float Tensor; with `has_aux`, a tuple of it and of any other results.
        argnums: the position of the argument to differentiate, or a tuple of positions. These arguments are pytrees of
            float Tensors; the others are passed unchanged.
        has_aux: whether `f` also returns other results, which are not differentiated.

    Returns:
        A function of the arguments of `f`. It returns the gradient, a pytree with the structure, shapes and dtypes of
        the argument; for a tuple of positions, a tuple of gradients. With `has_aux`, a tuple of the gradient and the
        other results. The gradient is zero if `f` does not depend on the argument. (A module that `f` calls has its own
        parameters: see `functional_call`.)

    Raises (when called):
        TypeError: an argument or the output is not a float Tensor. ValueError: the output has axes; `argnums` is out of
            range or names an argument twice; or the argument has no Tensor.

        grad(lambda w, x: (x @ w).tanh().sum())(w, x)  # the shape of w
    """
    both = _value_and_grad("grad", f, argnums, has_aux)

    def derivative(*args: Any, **kwargs: Any) -> Any:
        value, gradient = both(*args, **kwargs)
        return (gradient, value[1]) if has_aux else gradient

    return derivative


def value_and_grad(f: Function, argnums: ArgNums = 0, has_aux: bool = False) -> Function:
    """As `grad`, but the function returns a tuple of the output of `f` and the gradient, as `jax.value_and_grad`.

    With `has_aux`, the output is a tuple. Arguments and errors are those of `grad`. (`torch.func.grad_and_value` has
    the other order.)

        loss, gradient = value_and_grad(f)(x)
    """
    return _value_and_grad("value_and_grad", f, argnums, has_aux)


def _value_and_grad(op: str, f: Function, argnums: ArgNums, has_aux: bool) -> Function:
    _check_function(op, f)
    _check_argnums(op, argnums)
    check_bool(f"{op}: has_aux", has_aux)

    def derivative(*args: Any, **kwargs: Any) -> tuple[Any, Pytree]:
        evaluated = _Evaluation(op, f, args, kwargs, argnums, has_aux=has_aux)
        gradient = evaluated.gradients(_output_gradient(op, evaluated.out), retain_graph=False)
        return (evaluated.out, evaluated.aux) if has_aux else evaluated.out, gradient

    return derivative


def vjp(f: Function, *inputs: Pytree) -> tuple[Pytree, Function]:
    """Return `f(*inputs)` and a function `pull` that computes vector-Jacobian products.

    `pull(gradient)` takes the gradient of a scalar with respect to the output, and returns a tuple of the gradients
    with respect to the inputs. It can be called repeatedly; the graph is kept until `pull` is deleted. As `jax.vjp` and
    `torch.func.vjp`.

    Raises:
        TypeError: an input or an output is not a float Tensor. ValueError (`pull`): the gradient does not have the
            structure and the shapes of the output.

        y, pull = vjp(lambda x: x * x, Tensor([1.0, 2.0]))
        pull(Tensor([1.0, 10.0]))  # ([2. 40.],)
    """
    _check_function("vjp", f)
    evaluated = _Evaluation("vjp", f, inputs, {}, tuple(range(len(inputs))))

    def pull(gradient: Pytree) -> tuple[Pytree, ...]:
        given = matching("pull: the gradient", gradient, "the output", evaluated.out)
        found: tuple[Pytree, ...] = evaluated.gradients(given, retain_graph=True)
        return found

    return evaluated.out, pull


def jvp(f: Function, inputs: Sequence[Pytree], tangents: Sequence[Pytree]) -> tuple[Pytree, Pytree]:
    """Return `f(*inputs)` and its directional derivative, a Jacobian-vector product.

    As `jax.jvp` and `torch.func.jvp`. It is computed in forward mode, together with the output; there is no backward
    pass.

    Args:
        inputs: a tuple of the arguments of `f`.
        tangents: the direction: a tuple with the structure and the shapes of `inputs`. It is cast to their dtypes.

    Raises:
        TypeError: an input or an output is not a float Tensor; inputs or tangents are not a tuple or list.
        ValueError: the tangents do not have the structure and the shapes of the inputs.

        jvp(lambda x: x**3, (Tensor(2.0),), (Tensor(1.0),))  # 8.0 and 12.0
    """
    _check_function("jvp", f)
    for name, given in (("inputs", inputs), ("tangents", tangents)):
        if not isinstance(given, (tuple, list)):
            raise TypeError(f"jvp: {name} must be a tuple, got a {type(given).__name__}; write jvp(f, (x,), (v,))")
    argnums = tuple(range(len(inputs)))
    _arguments("jvp", argnums, inputs)
    direction = tree_leaves(matching("jvp: tangents", tuple(tangents), "inputs", tuple(inputs)))
    evaluated = _Evaluation("jvp", f, inputs, {}, argnums, [[tangent] for tangent in direction], tracks=False)
    return evaluated.out, tree_unflatten(evaluated.out, (tangent for (tangent,) in evaluated.tangents))


def hvp(f: Function, x: Pytree, v: Pytree) -> Pytree:
    """The Hessian-vector product of `f` at x: the derivative of the gradient of `f` in the direction v.

    It is computed as the forward-mode derivative of a backward pass, at about three times the cost of the gradient, and
    without the Hessian (Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6, 1994).

    Args:
        f: a function of x that returns a 0-d float Tensor.
        x: the argument. A tuple is one argument: for f(a, b), write `hvp(lambda p: f(*p), (a, b), (v, w))`.
        v: the direction, with the structure and the shapes of x. It is cast to the dtypes of x.

    Returns:
        The product, with the structure, shapes and dtypes of x.

    Raises:
        TypeError: x, v or f(x) is not of float Tensors. ValueError: v does not have the structure and the shapes of x,
            or f(x) has axes.

        hvp(lambda x: (x**3).sum(), Tensor([1.0, 2.0]), Tensor([1.0, 0.0]))  # [6. 0.]
    """
    _check_function("hvp", f)
    float_leaves("hvp: x", x)
    direction = [[tangent] for tangent in tree_leaves(matching("hvp: v", v, "x", x))]
    evaluated = _Evaluation("hvp", f, (x,), {}, 0, direction)
    return evaluated.tangents_of_gradients(_output_gradient("hvp", evaluated.out))


def jacobian(f: Function, argnums: ArgNums = 0) -> Function:
    """Return a function that computes the Jacobian of `f`, the derivative of each element of the output.

    The result has the shape of the output followed by that of the argument: result[i, j] = d output[i] / d argument[j]
    for vectors. If the argument is a pytree, or `argnums` a tuple, the result is a pytree or tuple like it. If the
    output is a pytree, the result is a pytree like it, with such a result in place of each Tensor.

    It evaluates `f` once, and takes one backward pass for each element of the output. If the argument has fewer
    elements than the output, it evaluates `f` a second time, in forward mode, with one tangent for each element of the
    argument. (`torch.func.jacrev` does the first, `jacfwd` the second, both for all elements at once.)

    Raises (when called):
        TypeError: the argument or the output is not of float Tensors. ValueError: as `grad`, for `argnums`.

        jacobian(lambda x: x * x)(Tensor([1.0, 2.0]))  # [[2. 0.] [0. 4.]]
    """
    return _jacobian("jacobian", f, argnums)


def hessian(f: Function, argnums: ArgNums = 0) -> Function:
    """Return a function that computes the Hessian of `f`, the Jacobian of its gradient.

    For an argument of shape (n, ...), the result is (n, ..., n, ...). It takes one backward pass through the gradient
    for each element of the argument; for large arguments, use `hvp`. As `jax.hessian` and `torch.func.hessian`.

    Raises (when called): as `grad` does.

        hessian(lambda x: (x**3).sum())(Tensor([1.0, 2.0]))  # [[6. 0.] [0. 12.]]
    """
    both = _value_and_grad("hessian", f, argnums, has_aux=False)
    return _jacobian("hessian", lambda *args, **kwargs: both(*args, **kwargs)[1], argnums)


def functional_call(module: Module, tensors: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """Call a module with other Tensors in place of its parameters and buffers, as `torch.func.functional_call`.

    It makes the output a function of the parameters, which transforms can differentiate. The module's attributes are
    replaced during the call, and restored after it, so two threads must not do this with one module at the same time.

        parameters = dict(model.named_parameters())
        grad(lambda p: loss_of(functional_call(model, p, x)))(parameters)

    Args:
        module: the module.
        tensors: a dict from names, those of `named_parameters` and `named_buffers`, to Tensors of the same shapes. The
            module's own Tensors are used for names that are not in it.
        args, kwargs: the arguments of the call.

    Raises:
        ValueError: a name is unknown, or a shape differs. TypeError: `module` is not a Module, `tensors` not a dict, or
            a value not a Tensor.
    """
    with replaced_tensors(module, tensors):
        return module(*args, **kwargs)


def _jacobian(op: str, f: Function, argnums: ArgNums) -> Function:
    _check_function(op, f)
    _check_argnums(op, argnums)

    def derivative(*args: Any, **kwargs: Any) -> Pytree:
        evaluated = _Evaluation(op, f, args, kwargs, argnums)
        xs, ys = evaluated.arguments, tree_leaves(evaluated.out)
        if sum(x.size for x in xs) < sum(y.size for y in ys):
            return _jacobian_in_forward_mode(op, f, args, kwargs, argnums, xs)
        rows = [[evaluated.row(k, unit) for unit in _standard_basis(y)] for k, y in enumerate(ys)]
        blocks = [
            [_jacobian_block([row[j] for row in rows[k]], 0, y, x) for j, x in enumerate(xs)] for k, y in enumerate(ys)
        ]
        return tree_unflatten(evaluated.out, (evaluated.like_arguments(row) for row in blocks))

    return derivative


def _jacobian_in_forward_mode(
    op: str, f: Function, args: Sequence[Any], kwargs: Mapping[str, Any], argnums: ArgNums,
    xs: Sequence[Tensor],
) -> Pytree:  # fmt: skip
    """The Jacobian in forward mode: one evaluation, with a tangent for each element of xs, the arguments."""
    total, first, tangents, places = sum(x.size for x in xs), 0, [], []
    for x in xs:
        zero, units = constant(x, x.shape, 0), list(_standard_basis(x))
        tangents.append([*[zero] * first, *units, *[zero] * (total - first - x.size)])
        places.append(slice(first, first + x.size))
        first += x.size
    evaluated = _Evaluation(op, f, args, kwargs, argnums, tangents, tracks=False)
    blocks = [
        [_jacobian_block(column[place], -1, y, x) for place, x in zip(places, xs, strict=True)]
        for y, column in zip(tree_leaves(evaluated.out), evaluated.tangents, strict=True)
    ]
    return tree_unflatten(evaluated.out, (evaluated.like_arguments(row) for row in blocks))


def _standard_basis(t: Tensor) -> Iterator[Tensor]:
    """For each element, a tensor of the shape of t that is 1 there and 0 elsewhere."""
    xp = t.backend.root
    positions = xp.reshape(xp.arange(t.size), t.shape)
    return (Tensor._wrap(xp.astype(xp.equal(positions, i), t.dtype), xp) for i in range(t.size))


def _jacobian_block(parts: Sequence[Tensor], axis: int, y: Tensor, x: Tensor) -> Tensor:
    """The Jacobian dy/dx, y.shape + x.shape, from its rows (axis 0) or columns (axis -1)."""
    shape = (*y.shape, *x.shape)
    return Tensor.stack(parts, axis).reshape(shape) if parts else constant(x, shape, 0)


# --- Evaluation at a level


class _Evaluation:
    """The output of a function at a new level.

    Args:
        op: the name of the transform, for messages.
        f, args, kwargs: the function and its arguments.
        argnums: the positions of the arguments that are differentiated.
        tangents: for forward mode, the tangents of each Tensor in these arguments.
        tracks: whether to record a graph, for `gradients`.
        has_aux: whether the function returns a tuple of the output and other results.

    Attributes:
        out: the output, a pytree of Tensors of lower levels.
        aux: the other results.
        tangents: for forward mode, the tangents of each Tensor in the output.
        arguments: the Tensors in the arguments that are differentiated.
    """

    def __init__(
        self, op: str, f: Function, args: Sequence[Any], kwargs: Mapping[str, Any], argnums: ArgNums,
        tangents: Sequence[Sequence[Tensor]] | None = None, tracks: bool = True, has_aux: bool = False,
    ) -> None:  # fmt: skip
        positions = _positions(op, argnums, len(args))
        self._argnums, self._given = argnums, tuple(args[i] for i in positions)
        self.arguments = _arguments(op, positions, self._given)
        root = self.arguments[0].backend.root
        level = TensorBackend(root) if tangents is None else ForwardBackend(root)
        level.in_transform = True
        arrays = self.arguments if tangents is None else map(Dual, self.arguments, tangents)
        self._inputs = [
            Tensor._wrap(array, level.on(x.backend.root), version=x._version)
            for x, array in zip(self.arguments, arrays, strict=True)
        ]
        for tensor in self._inputs:
            tensor.requires_grad = tracks
        lifted = dict(zip(positions, tree_unflatten(self._given, iter(self._inputs)), strict=True))
        self._level, self._recorded_from = level.level, min(level.level, recorded_from())
        with record_from(self._recorded_from):
            out = f(*(lifted.get(i, arg) for i, arg in enumerate(args)), **kwargs)
        if has_aux:
            if not isinstance(out, tuple) or len(out) != 2:
                got = f"a tuple of {len(out)}" if isinstance(out, tuple) else f"a {type(out).__name__}"
                raise TypeError(
                    f"{op}: with has_aux=True the function must return a tuple (output, other results), got {got}"
                )
            out, aux = out
            self.aux = tree_unflatten(aux, (self._lower(t) for t in tree_leaves(aux)))
        outputs = _outputs(op, out)
        # The node of an output is None if it does not depend on the inputs.
        self._nodes = [t._node if t.backend.level == self._level else None for t in outputs]
        self.out = tree_unflatten(out, map(self._lower, outputs))
        n = 0 if tangents is None else len(tangents[0])
        self.tangents = [
            t._array.tangents if isinstance(t._array, Dual) and t.backend.level == self._level
            else [constant(t, t.shape, 0)] * n
            for t in outputs
        ]  # fmt: skip

    def _lower(self, x: Any) -> Any:
        """The Tensor of a lower level in a Tensor of this one. Anything else is returned unchanged."""
        return primal(x._array) if isinstance(x, Tensor) and x.backend.level == self._level else x

    def gradients(self, gradient: Pytree, retain_graph: bool) -> Pytree:
        """The gradients of the arguments for a gradient of the output, which has its structure."""
        return self.like_arguments(self._backward(self._nodes, tree_leaves(gradient), retain_graph))

    def tangents_of_gradients(self, gradient: Pytree) -> Pytree:
        """The derivatives of `gradients`, in the direction of the tangents."""
        with record_from(self._recorded_from):
            found = self._backward(self._nodes, tree_leaves(gradient), retain_graph=False)
        zeros = (constant(x, x.shape, 0) for x in self.arguments)
        pairs = zip(found, zeros, strict=True)
        return self.like_arguments([g.tangents[0] if isinstance(g, Dual) else zero for g, zero in pairs])

    def row(self, k: int, gradient: Tensor) -> list[Tensor]:
        """The gradient of each Tensor in the arguments, for a gradient of the k-th Tensor in the output."""
        return self._backward([self._nodes[k]], [gradient], True)

    def like_arguments(self, tensors: Sequence[Tensor]) -> Pytree:
        """The tensors in the structure of the differentiated argument, or of the tuple of them."""
        values = tree_unflatten(self._given, iter(tensors))
        return values if isinstance(self._argnums, tuple) else values[0]

    def _backward(self, nodes: Sequence[Node | None], gradients: Sequence[Tensor], retain_graph: bool) -> list[Any]:
        # If the function ran inside no_grad(), what is below its level is not recorded now either.
        with record_from(max(recorded_from(), self._recorded_from)):
            return _gradients(nodes, gradients, self._inputs, retain_graph)


def _arguments(op: str, positions: Sequence[int], given: Sequence[Pytree]) -> list[Tensor]:
    """The Tensors in the differentiated arguments. Raises TypeError if one is not of floats, ValueError for none."""
    found = [
        leaf for i, value in zip(positions, given, strict=True) for leaf in float_leaves(f"{op}: argument {i}", value)
    ]
    if not found:
        what = "no inputs were passed; write y, pull = vjp(f, x)" if op == "vjp" else "the argument has no Tensor"
        raise ValueError(f"{op}: {what}")
    return found


def _outputs(op: str, out: Pytree) -> list[Tensor]:
    """The Tensors in the output of a function. Raises TypeError if a leaf is not a float Tensor."""
    if out is None:
        raise TypeError(f"{op}: the function returned None; add a return statement")
    found = tree_leaves(out)
    for leaf in found:
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"{op}: the function must return a float Tensor, or a tuple, list or dict of them, got a "
                f"{type(leaf).__name__}; return the Tensor itself, since .item(), .numpy() and float() make constants"
            )
        if not is_float(leaf.dtype):
            raise TypeError(
                f"{op}: the function returned {leaf.dtype} {leaf.shape}, which has no gradient; return a float Tensor "
                "that differentiable operations compute from the argument"
            )
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
    found = [constant(tensor, tensor.shape, 0) if tensor._grad is None else tensor._grad for tensor in inputs]
    for tensor, gradient in zip(inputs, before, strict=True):
        tensor._grad = gradient
    return found


def _output_gradient(op: str, out: Pytree) -> Tensor:
    """The gradient of the output with respect to itself, 1. Raises ValueError if it is not a Tensor without axes."""
    several = "; for several outputs, use vjp or jacobian" if op in ("grad", "value_and_grad") else ""
    if not isinstance(out, Tensor):
        aux = "; for a loss and other results, pass has_aux=True" if several else ""
        raise ValueError(f"{op}: the function must return one 0-d Tensor, got a {type(out).__name__}{aux}{several}")
    if out.ndim:
        raise ValueError(
            f"{op}: the function must return a 0-d Tensor, got shape {out.shape}; reduce it, as in y.sum(){several}"
        )
    return constant(out, (), 1)


def constant(like: Tensor, shape: Shape, value: float) -> Tensor:
    """A tensor of level 0 with the dtype of `like`, filled with `value`."""
    xp = like.backend.root
    return Tensor._wrap(xp.full(shape, value, like.dtype), xp)


# --- Arguments


_CALLS = {"vjp": "vjp(f, x)", "jvp": "jvp(f, (x,), (v,))", "hvp": "hvp(f, x, v)"}


def _check_function(op: str, f: Any) -> None:
    if not callable(f):
        call = _CALLS.get(op, f"{op}(f)(x)")
        raise TypeError(f"{op}: needs a function f, got a {type(f).__name__}; pass the function itself: {call}")


def _check_argnums(op: str, argnums: Any) -> None:
    positions = argnums if isinstance(argnums, tuple) else (argnums,)
    if any(isinstance(i, Tensor) or hasattr(i, "shape") and i.shape for i in positions):
        raise TypeError(f"{op}: takes a function and returns a function: write {op}(f)(x), not {op}(f, x)")
    if not positions or not all(isinstance(i, Integral) and not isinstance(i, bool) for i in positions):
        raise TypeError(f"{op}: argnums must be an int or a tuple of ints, such as (0, 1), got {argnums!r}")


def _positions(op: str, argnums: ArgNums, n: int) -> list[int]:
    """The positions as nonnegative ints, for n arguments."""
    positions = argnums if isinstance(argnums, tuple) else (argnums,)
    if not all(-n <= i < n for i in positions):
        raise ValueError(
            f"{op}: argnums={argnums} is out of range for {n} positional arguments; pass the arguments to "
            "differentiate by position"
        )
    found = [int(i) % n for i in positions]
    if len(set(found)) < len(found):
        raise ValueError(f"{op}: argnums={argnums} names an argument twice")
    return found
