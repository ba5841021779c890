"""Errors of the transforms, of ops inside them, and of what PyTorch has instead."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import russellgrad as rg
from russellgrad import (
    Joint,
    Module,
    Tensor,
    custom_op,
    functional_call,
    grad,
    hessian,
    hvp,
    jacobian,
    jvp,
    value_and_grad,
    vjp,
)
from russellgrad.backend import Backend, load_backend

X = [1.0, 2.0]
untyped: Any = rg  # for arguments of wrong types


def total(x: Tensor) -> Tensor:
    return (x * x).sum()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: untyped.grad(x), TypeError, r"grad: needs a function f, got a Tensor; .* grad\(f\)\(x\)"),
        (lambda x: untyped.vjp(3.0, x), TypeError, r"vjp: needs a function f, got a float; .* vjp\(f, x\)"),
        (lambda x: untyped.jvp(None, (x,), (x,)), TypeError, "jvp: needs a function f"),
        (lambda x: untyped.jacobian([total]), TypeError, "jacobian: needs a function f, got a list"),
        (lambda x: untyped.grad(total, argnums=0.5), TypeError, "argnums must be an int or a tuple of ints, .*got 0.5"),
        (lambda x: grad(total, argnums=True), TypeError, "argnums must be an int"),
        (lambda x: grad(total, argnums=()), TypeError, "argnums must be an int"),
        (
            lambda x: untyped.grad(total, x),
            TypeError,
            r"grad: takes a function .* write grad\(f\)\(x\), not grad\(f, x\)",
        ),
        (lambda x: untyped.hessian(total, (x,)), TypeError, r"write hessian\(f\)\(x\)"),
        (lambda x: untyped.jacobian(total, argnums="x"), TypeError, "argnums must be an int"),
        (lambda x: untyped.hessian(total, argnums=[0]), TypeError, "argnums must be an int"),
        (lambda x: grad(total, argnums=1)(x), ValueError, r"argnums=1 is out of range for 1 positional"),
        (lambda x: grad(total, argnums=-2)(x), ValueError, r"argnums=-2 is out of range"),
        (
            lambda x: grad(total)(x=x),
            ValueError,
            "for 0 positional arguments; pass the arguments to differentiate by position",
        ),
        (lambda x: grad(lambda a, b: a, argnums=(0, -2))(x, x), ValueError, "names an argument twice"),
        (lambda x: grad(lambda a: a * 2)(x), ValueError, r"grad: .* a 0-d Tensor, got shape \(2,\).*jacobian"),
        (lambda x: value_and_grad(lambda a: a)(x), ValueError, r"value_and_grad: .*got shape \(2,\)"),
        (lambda x: hvp(lambda a: a, x, x), ValueError, r"hvp: .*got shape \(2,\)"),
        (lambda x: hessian(lambda a: a)(x), ValueError, r"hessian: .*got shape \(2,\)"),
        (lambda x: grad(lambda a: (a.sum(), a.sum()))(x), ValueError, "grad: .* got a tuple; .*has_aux=True"),
        (
            lambda x: grad(lambda a: a.sum(), has_aux=True)(x),
            TypeError,
            "has_aux=True the function must return a tuple .*, got a Tensor",
        ),
        (
            lambda x: grad(lambda a: float(a.sum()))(x),
            TypeError,
            "grad: the function must return .* got a float; return the Tensor itself",
        ),
        (lambda x: grad(lambda a: None)(x), TypeError, "grad: the function returned None; add a return"),
        (
            lambda x: grad(lambda a: a.argmax())(x),
            TypeError,
            r"grad: the function returned int64 \(\), which has no gradient",
        ),
        (lambda x: jacobian(lambda a: a > 0)(x), TypeError, r"jacobian: the function returned bool \(2,\)"),
        (lambda x: vjp(lambda a: a.astype("int64"), x), TypeError, r"vjp: the function returned int64 \(2,\)"),
        (lambda x: jvp(lambda a: a > 0, (x,), (x,)), TypeError, r"jvp: the function returned bool \(2,\)"),
        (lambda x: untyped.grad(total, has_aux="no"), TypeError, "grad: has_aux must be True or False, got 'no'"),
        (lambda x: grad(total)(2.0), TypeError, "grad: argument 0 must be a float Tensor.*got float"),
        (lambda x: grad(total)(np.ones(2)), TypeError, r"grad: argument 0 .*got ndarray; make one with Tensor\(x\)"),
        (lambda x: grad(total)({"a": [x, 3]}), TypeError, "grad: argument 0 .*got int"),
        (lambda x: grad(total)(Tensor([1, 2], dtype="int64")), TypeError, r"grad: argument 0 .*int64 \(2,\)"),
        (lambda x: hvp(total, Tensor([True]), x), TypeError, r"hvp: x must be of a float dtype, got bool \(1,\)"),
        (lambda x: jvp(total, (3.0,), (x,)), TypeError, "jvp: argument 0 must be a float Tensor"),
        (lambda x: grad(total)([]), ValueError, "grad: the argument has no Tensor"),
        (lambda x: vjp(total), ValueError, "vjp: no inputs were passed"),
        (
            lambda x: vjp(lambda a: a * 2, x)[1](Tensor([1.0])),
            ValueError,
            r"pull: the gradient .* the output, Tensor\(2,\); got Tensor\(1,\)",
        ),
        (lambda x: vjp(lambda a: a * 2, x)[1](1.0), TypeError, "pull: the gradient must be a float Tensor"),
        (
            lambda x: vjp(lambda a: (a, a), x)[1](x),
            ValueError,
            r"pull: the gradient .*\(Tensor\(2,\), Tensor\(2,\)\); got Tensor",
        ),
        (
            lambda x: untyped.jvp(total, x, x),
            TypeError,
            r"jvp: inputs must be a tuple, got a Tensor; write jvp\(f, \(x,\), \(v,\)\)",
        ),
        (lambda x: untyped.jvp(total, (x,), x), TypeError, "jvp: tangents must be a tuple"),
        (lambda x: jvp(total, (x,), (x, x)), ValueError, "jvp: tangents must have the structure"),
        (lambda x: jvp(total, (x,), (Tensor(1.0),)), ValueError, r"jvp: tangents .*Tensor\(2,\).*Tensor\(\)"),
        (lambda x: hvp(total, x, Tensor(1.0)), ValueError, r"hvp: v .*Tensor\(2,\).*Tensor\(\)"),
        (lambda x: hvp(lambda p: total(p["a"]), {"a": x}, {"b": x}), ValueError, "hvp: v .*'a'.*'b'"),
    ],
)
def test_bad_input_is_an_error(
    backend: Backend, call: Callable[[Tensor], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(Tensor(X))


def test_backward_inside_a_transform_is_an_error_that_names_grad(backend: Backend) -> None:
    def f(x: Tensor) -> Tensor:
        total(x).backward()
        return (Tensor(x.grad) * x).sum()

    with pytest.raises(RuntimeError, match=r"backward: .*call russellgrad\.grad inside"):
        grad(f)(Tensor(X))

    def of_another_graph(x: Tensor) -> Tensor:
        w = Tensor(X)
        total(w).backward()
        return (Tensor(w.grad) * x).sum()

    assert grad(of_another_graph)(Tensor(X)).numpy().tolist() == [2.0, 4.0]


def test_an_argument_of_a_transform_keeps_tracking(backend: Backend) -> None:
    def f(x: Tensor) -> Tensor:
        x.requires_grad = False
        return total(x)

    with pytest.raises(RuntimeError, match=r"requires_grad: .* use \.detach\(\)"):
        grad(f)(Tensor(X))


def test_create_graph_is_an_error_that_names_grad(backend: Backend) -> None:
    x = Tensor(X)
    y = total(x)
    with pytest.raises(TypeError, match=r"create_graph=True is not supported.*russellgrad\.grad"):
        y.backward(create_graph=True)
    y.backward(create_graph=False)
    assert x.grad is not None


# --- Rules that do not go through xp


@custom_op
def forward_by_numpy(xp: Backend, a: Any) -> Any:
    return np.exp(a), lambda g: g


@custom_op
def pullback_by_numpy(xp: Backend, a: Any) -> Any:
    return xp.exp(a), lambda g: np.multiply(g, 2.0)


@custom_op
def joint_pullback_by_numpy(xp: Backend, a: Any) -> Any:
    return xp.exp(a), Joint(lambda g, needs: (np.multiply(g, 2.0),))


@custom_op
def method_of_arrays(xp: Backend, a: Any) -> Any:
    return a.conj(), lambda g: g


@custom_op
def pullback_gives_numpy(xp: Backend, a: Any) -> Any:
    return xp.exp(a), lambda g: np.ones(2)


@custom_op
def forward_gives_numpy(xp: Backend, a: Any) -> Any:
    return np.ones(2), lambda g: g


@custom_op
def host_copy(xp: Backend, a: Any) -> Any:
    e = xp.asarray(np.exp(xp.to_host(a)))
    return e, lambda g: xp.multiply(g, e)


BAD_RULES = (host_copy, forward_by_numpy, pullback_by_numpy, joint_pullback_by_numpy, method_of_arrays,
             pullback_gives_numpy, forward_gives_numpy)  # fmt: skip


@pytest.mark.parametrize("op", BAD_RULES, ids=lambda op: op.__name__)
@pytest.mark.parametrize("transform", [lambda f, x: grad(f)(x), lambda f, x: hvp(f, x, x)], ids=["grad", "hvp"])
def test_a_rule_that_calls_numpy_is_an_error_in_a_transform(
    backend: Backend, op: Callable[..., Tensor], transform: Callable[..., Any]
) -> None:
    with pytest.raises(TypeError, match=rf"{op.__name__}: .*must call the primitives of xp"):
        transform(lambda x: op(x).sum(), Tensor(X))


def test_the_pullbacks_of_a_custom_op_are_its_derivative_in_every_mode(backend: Backend) -> None:
    """A straight-through estimator, whose forward has another derivative: `sign` has 0."""

    @custom_op
    def straight_through(xp: Backend, a: Any) -> Any:
        return xp.sign(a), lambda g: g

    x, v = Tensor([0.5, -2.0]), Tensor([3.0, 1.0])

    def square(x: Tensor) -> Tensor:
        return (straight_through(x) ** 2).sum()

    assert grad(lambda x: straight_through(x).sum())(x).numpy().tolist() == [1.0, 1.0]
    assert jvp(straight_through, (x,), (v,))[1].numpy().tolist() == [3.0, 1.0]
    assert grad(square)(x).numpy().tolist() == [2.0, -2.0]
    assert hvp(square, x, v).numpy().tolist() == [6.0, 2.0]
    assert grad(lambda x: (grad(square)(x) * v).sum())(x).numpy().tolist() == [6.0, 2.0]
    assert jvp(grad(square), (x,), (v,))[1].numpy().tolist() == [6.0, 2.0]
    assert hessian(square)(x).numpy().tolist() == [[2.0, 0.0], [0.0, 2.0]]
    wide = jacobian(lambda s: straight_through(s * Tensor([1.0, 2.0, 3.0])))(Tensor(1.0))  # in forward mode
    assert wide.numpy().tolist() == [1.0, 2.0, 3.0]

    @custom_op
    def scaled(xp: Backend, a: Any, b: Any, *, by: float) -> Any:
        """a b, with three times the gradient, and b broadcast."""
        return xp.multiply(a, xp.multiply(b, by)), Joint(
            lambda g, needs: (xp.multiply(g, xp.multiply(b, 3 * by)), xp.multiply(g, xp.multiply(a, 3 * by)))
        )

    a, b = Tensor([[1.0, 2.0], [3.0, 4.0]]), Tensor([5.0, 6.0])
    out, tangent = jvp(lambda a, b: scaled(a, b, by=2.0), (a, b), (a, b))
    assert out.numpy().tolist() == [[10.0, 24.0], [30.0, 48.0]]
    assert tangent.numpy().tolist() == (6 * out.numpy()).tolist()


def test_data_is_a_constant_in_every_mode(backend: Backend) -> None:
    x, v = Tensor(X), Tensor([1.0, 10.0])

    def f(x: Tensor) -> Tensor:
        return Tensor(x.data, backend=x.backend, requires_grad=False) * x + x * x.data

    assert jvp(f, (x,), (v,))[1].numpy().tolist() == [2.0, 40.0]
    assert grad(lambda x: f(x).sum())(x).numpy().tolist() == [2.0, 4.0]
    assert jacobian(f)(x).numpy().tolist() == [[2.0, 0.0], [0.0, 4.0]]
    assert jacobian(lambda s: f(s * Tensor([1.0, 1.0])))(Tensor(3.0)).numpy().tolist() == [6.0, 6.0]


def test_a_rule_through_xp_is_differentiated_twice(backend: Backend) -> None:
    @custom_op
    def cube(xp: Backend, a: Any, *, scale: float) -> Any:
        return xp.multiply(a, xp.multiply(xp.multiply(a, a), scale)), lambda g: xp.multiply(
            g, xp.multiply(xp.multiply(a, a), 3 * scale)
        )

    assert hessian(lambda x: cube(x, scale=2.0).sum())(Tensor(X)).numpy().tolist() == [[12.0, 0.0], [0.0, 24.0]]
    assert jvp(lambda x: cube(x, scale=1.0), (Tensor(2.0),), (Tensor(1.0),))[1].item() == 12.0


# --- Other errors


def test_tensors_of_two_backends_do_not_mix_in_a_transform(backend: Backend) -> None:
    other = load_backend("strict" if backend.name != "strict" else "numpy")
    y = Tensor(X, backend=other)
    names = f"operands live on '{backend.name}' and '{other.name}'"
    for f in (grad(lambda x: (x * y).sum()), grad(lambda x: (y.detach() * x * x).sum()), jacobian(lambda x: x + y)):
        with pytest.raises(TypeError, match=r"operands live on .* move one with \.to"):
            f(Tensor(X))
    with pytest.raises(TypeError, match=names):
        grad(lambda x: (x * y).sum())(Tensor(X))


def test_directions_and_gradients_on_another_backend_are_errors(backend: Backend) -> None:
    there = "numpy" if backend.name == "strict" else "strict"
    x, elsewhere = Tensor(X), Tensor(X, backend=there)
    for call, what in (
        (lambda: jvp(total, (x,), (elsewhere,)), "jvp: tangents"),
        (lambda: hvp(total, x, elsewhere), "hvp: v"),
        (lambda: vjp(lambda x: x, x)[1](elsewhere), "pull: the gradient"),
    ):
        with pytest.raises(TypeError, match=rf"{what} must be on the backend of .*\.to\('{backend.name}'\)"):
            call()


@pytest.mark.parametrize("transform", [lambda f, x: grad(f)(x), lambda f, x: jvp(f, (x,), (x,))], ids=["grad", "jvp"])
def test_data_is_not_assigned_inside(backend: Backend, transform: Callable[..., Any]) -> None:
    def f(x: Tensor) -> Tensor:
        x.data = x.data * 2
        return x.sum()

    with pytest.raises(RuntimeError, match=r"data: this tensor is inside a function .* compute a new tensor"):
        transform(f, Tensor(X))


@pytest.mark.parametrize("change", [lambda m, b: m.to(b), lambda m, b: m.astype("float32")], ids=["to", "astype"])
def test_a_module_is_not_moved_or_cast_inside(backend: Backend, change: Callable[..., Any]) -> None:
    there = "numpy" if backend.name == "strict" else "strict"

    class Scale(Module):
        def __init__(self) -> None:
            self.w = Tensor(X)

        def forward(self) -> Tensor:
            change(self, there)
            return self.w.sum()

    module = Scale()
    with pytest.raises(RuntimeError, match=r"Scale: w is an argument of a transform.*before the call"):
        grad(lambda p: functional_call(module, p))(dict(module.named_parameters()))
    assert module.w.backend is backend and str(module.w.dtype) == "float64"


@pytest.mark.parametrize("transform", [lambda f, x: grad(f)(x), lambda f, x: jvp(f, (x,), (x,))], ids=["grad", "jvp"])
def test_a_tensor_inside_is_not_exported_without_its_gradients(backend: Backend, transform: Callable[..., Any]) -> None:
    def f(x: Tensor) -> Tensor:
        x.__dlpack_device__()
        x.__dlpack__()
        return x.sum()

    if not hasattr(Tensor(X).data, "__dlpack__"):
        pytest.skip("the backend's arrays are not exported")
    with pytest.raises(BufferError, match=r"__dlpack__: this tensor tracks gradients.*\.detach\(\)"):
        transform(f, Tensor(X))


def test_functional_call_checks_names_and_shapes(backend: Backend) -> None:
    class Scale(Module):
        def __init__(self) -> None:
            self.factor = Tensor(X)

        def forward(self, x: Tensor) -> Tensor:
            return self.factor * x

    module = Scale()
    with pytest.raises(
        ValueError, match="functional_call: Scale has no parameter or buffer 'weight'; its names are factor"
    ):
        functional_call(module, {"weight": Tensor(X)}, Tensor(X))
    with pytest.raises(ValueError, match=r"functional_call: factor has shape \(\), expected \(2,\)"):
        functional_call(module, {"factor": Tensor(1.0)}, Tensor(X))
    with pytest.raises(TypeError, match="functional_call: factor must be a Tensor, got a ndarray"):
        functional_call(module, {"factor": np.ones(2)}, Tensor(X))  # type: ignore[dict-item]


def test_an_input_that_is_changed_in_place_before_pull_is_an_error(backend: Backend) -> None:
    x = Tensor(X)
    _, pull = vjp(lambda x: x * x, x)
    x.changed_in_place()
    with pytest.raises(RuntimeError, match="'multiply' was changed in place"):
        pull(Tensor(X))
