"""The meaning of the transforms: nesting, no_grad, hooks, modules, structures, backends; against `torch.func`."""

import collections
import copy
import gc
import math
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from operator import itemgetter
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import russellgrad as rg
from russellgrad import Module, Tensor
from russellgrad.backend import Backend
from tests.helpers import Array, assert_close, once, rng

Fn = Callable[..., Any]
ATOL = 1e-12


def torch_jvp(f: Fn, inputs: Any, tangents: Any) -> Any:
    """torch.func.jvp by reverse mode: PyTorch takes five seconds to import its forward mode."""
    vjp: Any = torch.func.vjp  # a union of types, with and without has_aux
    out, pull = vjp(f, *inputs)
    _, pull_of_pull = vjp(pull, torch.utils._pytree.tree_map(torch.zeros_like, out))
    return out, pull_of_pull(tuple(tangents))[0]


PYTORCH = SimpleNamespace(
    grad=torch.func.grad, vjp=torch.func.vjp, jvp=torch_jvp, jacobian=torch.func.jacrev,
    hessian=lambda f, argnums=0: torch.func.jacrev(torch.func.grad(f, argnums), argnums),
    no_grad=torch.no_grad, stack=torch.stack,
    tensor=lambda x: torch.tensor(x, dtype=torch.float64),
)  # fmt: skip
OURS = SimpleNamespace(
    **{name: getattr(rg, name) for name in ("grad", "vjp", "jvp", "hessian", "jacobian", "no_grad")},
    stack=Tensor.stack, tensor=lambda x: Tensor(x, requires_grad=False),
)  # fmt: skip


def compare(f: Fn, *arrays: Any, atol: float = ATOL) -> None:
    """f(library, *tensors) gives the same in both libraries."""
    found = f(OURS, *(Tensor(a) for a in arrays))
    expected = f(PYTORCH, *(torch.tensor(a, dtype=torch.float64) for a in arrays))
    for i, (mine, reference) in enumerate(zip(_flat(found), _flat(expected), strict=True)):
        assert_close(mine, reference, atol=atol, what=f"result {i}")


def item(array: Any) -> Any:
    """The element of an array of any backend, such as `.grad`."""
    return array.item()


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = tuple(value.values())
    return [leaf for part in value for leaf in _flat(part)] if isinstance(value, (tuple, list)) else [value]


# --- Nesting

NESTINGS: dict[str, Fn] = {
    "x (d/dy x y)": lambda of, x: of.grad(lambda x: x * of.grad(lambda y: x * y)(x))(x),
    "x (d/dy (x + y))": lambda of, x: of.grad(lambda x: x * of.grad(lambda y: x + y)(x))(x),
    "the same point": lambda of, x: of.grad(lambda x: of.grad(lambda y: y * x * x)(x))(x),
    "inner function is constant in y": lambda of, x: of.grad(lambda x: of.grad(lambda y: x * x)(x) + x)(x),
    "outer function is constant in x": lambda of, x: of.grad(lambda x: of.grad(lambda y: y * y)(of.tensor(3.0)))(x),
    "inner point is a constant": lambda of, x: of.grad(lambda x: x * of.grad(lambda y: y * y * x)(of.tensor(3.0)))(x),
    "three levels": lambda of, x: of.grad(
        lambda x: x * of.grad(lambda y: x * y * of.grad(lambda z: (x * y * z).sin() * z)(y))(x)
    )(x),
    "fourth derivative": lambda of, x: of.grad(of.grad(of.grad(of.grad(lambda x: x.sin() * x))))(x),
    "twice the same inner one": lambda of, x: of.grad(
        lambda x: (lambda g: g(x) * g(x * x))(of.grad(lambda y: (x * y).exp()))
    )(x),
    "the inner function of two outer variables": lambda of, x: of.grad(
        lambda x: of.grad(lambda y: of.grad(lambda z: x * y * z * z)(x + y))(x * x)
    )(x),
    "jvp in grad": lambda of, x: of.grad(lambda x: of.jvp(lambda y: x * y * y, (x,), (x * x,))[1])(x),
    "grad in jvp": lambda of, x: of.jvp(lambda x: x * of.grad(lambda y: (x * y).sin())(x), (x,), (x,)),
    "jvp in jvp": lambda of, x: of.jvp(lambda x: x * of.jvp(lambda y: x * y * y, (x,), (x,))[1], (x,), (x,)),
    "vjp in grad": lambda of, x: of.grad(lambda x: of.vjp(lambda y: x * y * y, x)[1](x)[0] * x)(x),
    "value of vjp in grad": lambda of, x: of.grad(lambda x: of.vjp(lambda y: (x * y).sin(), x)[0] * x)(x),
    "jacobian in grad": lambda of, x: of.grad(
        lambda x: of.jacobian(lambda y: of.stack([x * y, y * y]))(x).sum() * x
    )(x),
    "hessian in grad": lambda of, x: of.grad(lambda x: of.hessian(lambda y: (x * y * y).sin())(x) * x)(x),
    "hvp of x and of v": lambda of, x: [
        of.grad(lambda x, v: of.jvp(of.grad(lambda y: (y * y * x).sin()), (x * v,), (v,))[1], (0, 1))(x, x * x)
    ],
    "a constant that depends on the outer variable": lambda of, x: of.grad(
        lambda x: (lambda c: of.grad(lambda y: c * y * y + c)(x * c))(x.exp())
    )(x),
    "grad in hessian": lambda of, x: of.hessian(lambda x: x * of.grad(lambda y: (x * y).sin())(x))(x),
}  # fmt: skip


@pytest.mark.parametrize("name", NESTINGS)
def test_nested_transforms_match_pytorch(backend: Backend, name: str) -> None:
    compare(NESTINGS[name], 0.8)


def test_perturbations_are_not_confused(backend: Backend) -> None:
    assert rg.grad(lambda x: x * rg.grad(lambda y: x * y)(x))(Tensor(2.0)).item() == 4
    assert rg.grad(lambda x: x * rg.grad(lambda y: x + y)(Tensor(1.0)))(Tensor(1.0)).item() == 1


def test_a_variable_of_an_ended_transform_is_an_ordinary_tensor(backend: Backend) -> None:
    """Its value is read, not differentiated: nothing breaks, and no gradient is wrong."""
    leaked = []

    def f(x: Tensor) -> Tensor:
        leaked.append(x * x)
        return leaked[-1] * x

    assert rg.grad(f)(Tensor(3.0)).item() == 27
    (square,) = leaked
    assert square.item() == 9 and (square + 1).item() == 10
    assert rg.grad(lambda y: y * square)(Tensor(2.0)).item() == 9


# --- no_grad and detach


@contextmanager
def nothing() -> Iterator[None]:
    yield


def no_grad_at(of: Any, x: Any, outside: bool, outer: bool, around: bool, inner: bool, after: bool) -> Any:
    """A product of a part in no_grad and one outside it, in two nested transforms; no_grad where the flags say."""
    at: Fn = lambda here: of.no_grad() if here else nothing()  # noqa: E731

    def inner_function(x: Any, y: Any) -> Any:
        with at(inner):
            part = (x * y).sin()
        return part * y * y * x

    def outer_function(x: Any) -> Any:
        with at(outer):
            part = x * x
        with at(around):
            gradient = of.grad(lambda y: inner_function(x, y))(x)
        with at(after):
            product = part * gradient
        return product * x

    with at(outside):
        return of.grad(outer_function)(x)


@pytest.mark.parametrize("flags", range(32))
def test_no_grad_at_two_levels_matches_pytorch(backend: Backend, flags: int) -> None:
    compare(lambda of, x: no_grad_at(of, x, *(bool(flags >> i & 1) for i in range(5))), 0.8)


NO_GRAD: dict[str, Fn] = {
    "a factor": lambda of, x: of.grad(lambda x: x * of.no_grad()(lambda: x * x)())(x),
    "everything": lambda of, x: of.grad(of.no_grad()(lambda x: x * x))(x),
    "the transform": lambda of, x: of.no_grad()(of.grad(lambda x: x * x * x))(x),
    "two transforms": lambda of, x: of.no_grad()(of.grad(of.grad(lambda x: x * x * x)))(x),
    "the inner transform": lambda of, x: of.grad(of.no_grad()(of.grad(lambda x: x * x * x)))(x),
    "a transform in no_grad in a transform, with outer x": lambda of, x: of.grad(
        lambda x: x * of.no_grad()(of.grad(lambda y: x * y * y))(x)
    )(x),
    "jvp": lambda of, x: of.no_grad()(lambda x: of.jvp(lambda y: y * y * y, (x,), (x,)))(x),
    "part of jvp": lambda of, x: of.grad(
        lambda x: of.no_grad()(lambda x: of.jvp(lambda y: x * y * y, (x,), (x,))[1])(x) * x
    )(x),
    "hessian": lambda of, x: of.no_grad()(of.hessian(lambda x: x * x * x))(x),
    "hessian in a factor": lambda of, x: of.grad(lambda x: x * of.no_grad()(of.hessian(lambda y: x * y * y * y))(x))(x),
    "no_grad twice": lambda of, x: of.no_grad()(
        of.grad(lambda x: x * of.no_grad()(lambda: of.grad(lambda y: y * y * x)(x))() * x)
    )(x),
    "detach": lambda of, x: of.grad(lambda x: x.detach() * x)(x),
    "detach, order 2": lambda of, x: of.grad(of.grad(lambda x: x.detach() * x * x))(x),
    "detach, order 3": lambda of, x: of.grad(of.grad(of.grad(lambda x: (x.detach() * x).exp())))(x),
    "detach of the outer variable": lambda of, x: of.grad(lambda x: x * of.grad(lambda y: x.detach() * y * y)(x))(x),
    "detach of the inner variable": lambda of, x: of.grad(lambda x: x * of.grad(lambda y: x * y.detach() * y)(x))(x),
    "detach of a product": lambda of, x: of.grad(lambda x: x * of.grad(lambda y: (x * y).detach() * y * x)(x))(x),
    "detach of an inner gradient": lambda of, x: of.grad(lambda x: x * of.grad(lambda y: x * y * y)(x).detach())(x),
    "detach in jvp": lambda of, x: of.jvp(lambda x: (x * x).detach() * x, (x,), (x,)),
    "detach of everything": lambda of, x: of.grad(lambda x: (x * x).detach())(x),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_GRAD)
def test_no_grad_and_detach_match_pytorch(backend: Backend, name: str) -> None:
    compare(NO_GRAD[name], 0.8)


def test_augmented_assignment_inside(backend: Backend) -> None:
    """`x += 1` is x = x + 1, in no_grad outside of the transform, too. There the parameters are constants."""

    def f(x: Tensor) -> Tensor:
        x += 1
        x *= x
        return x

    assert rg.grad(f)(Tensor(3.0)).item() == 8
    with rg.no_grad():
        assert rg.grad(f)(Tensor(3.0)).item() == 8
        assert rg.hessian(f)(Tensor(3.0)).item() == 2


def test_an_exception_inside_leaves_everything_as_before(backend: Backend) -> None:
    def failing(x: Tensor) -> Tensor:
        with rg.no_grad():
            rg.grad(lambda y: y * float("x"))(x)
        return x

    x = Tensor(3.0)
    for transform in (rg.grad(failing), lambda x: rg.jvp(failing, (x,), (x,)), rg.hessian(failing)):
        with pytest.raises(ValueError, match="could not convert string"):
            transform(x)
        (x * x).backward()
        assert item(x.grad) == 6
        x.zero_grad()
        assert rg.grad(rg.grad(lambda x: x * x * x))(x).item() == 18


@once  # the stand-in of CuPy runs kernels in one thread
def test_threads_do_not_share_levels(backend: Backend) -> None:
    def work(i: int) -> tuple[float, ...]:
        x = Tensor(float(i))
        second = rg.grad(rg.grad(lambda x: x * rg.grad(lambda y: x * y * y)(x)))  # of 2 x^3
        return tuple(second(x).item() for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(8))) == [(12.0 * i,) * 20 for i in range(8)]


def test_results_inside_no_grad_track_nothing(backend: Backend) -> None:
    x = Tensor([1.0, 2.0])

    def f(x: Tensor) -> Tensor:
        return (x * x * x).sum()

    v = Tensor([1.0, 0.5])
    transforms: list[Callable[[], Any]] = [
        lambda: rg.grad(f)(x),
        lambda: list(rg.value_and_grad(f)(x)),
        lambda: rg.hvp(f, x, v),
        lambda: list(rg.jvp(f, (x,), (v,))),
        lambda: rg.jacobian(lambda x: x * x)(x),
        lambda: rg.jacobian(f)(x),
        lambda: rg.jacobian(lambda x: (x[:1] * Tensor([1.0, 2.0, 3.0])) ** 2)(x),  # columns
        lambda: rg.hessian(f)(x),
        lambda: rg.vjp(f, x)[1](Tensor(2.0)),
    ]
    for transform in transforms:
        assert all(t.requires_grad for t in _flat(transform()))
        with rg.no_grad():
            inside = transform()
        assert not any(t.requires_grad for t in _flat(inside))
        for a, b in zip(_flat(inside), _flat(transform()), strict=True):
            assert_close(a, b)


def test_new_tensors_require_gradients_as_outside(backend: Backend) -> None:
    seen = []

    def f(x: Tensor) -> Tensor:
        seen.append(Tensor(1.0).requires_grad)
        with rg.no_grad():
            seen.append(Tensor(1.0).requires_grad)
        return x * Tensor(3.0)

    assert rg.grad(f)(Tensor(2.0)).item() == 3
    with rg.no_grad():
        rg.grad(f)(Tensor(2.0))
    assert seen == [True, False, False, False]


# --- Modules, backward, hooks


class Critic(Module):
    def __init__(self) -> None:
        self.w = Tensor(rng(1).normal(size=(3, 4)))
        self.b = Tensor(rng(2).normal(size=4))
        self.v = Tensor(rng(3).normal(size=4))

    def forward(self, x: Tensor) -> Tensor:
        return ((x @ self.w + self.b).tanh() @ self.v).sum()


def torch_critic(p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return ((x @ p["w"] + p["b"]).tanh() @ p["v"]).sum()


def test_a_gradient_penalty_reaches_the_weights(backend: Backend) -> None:
    critic, x = Critic(), rng(4).normal(size=(5, 3))
    p = {name: torch.tensor(value, requires_grad=True) for name, value in critic.state_dict().items()}
    theirs = torch.tensor(x, requires_grad=True)
    (penalty,) = torch.autograd.grad(torch_critic(p, theirs), theirs, create_graph=True)
    (penalty**2).sum().backward()
    hooked: list[Any] = []
    critic.w.register_hook(hooked.append)
    ours = Tensor(x)
    (rg.grad(critic)(ours) ** 2).sum().backward()
    for name, parameter in critic.named_parameters():
        expected = p[name].grad
        assert_close(parameter.grad, expected if expected is not None else np.zeros(parameter.shape), what=name)
        assert backend.is_array(parameter.grad)
    assert_close(ours.grad, theirs.grad)
    assert len(hooked) == 1  # called once, with the complete gradient
    assert_close(hooked[0], critic.w.grad)


def test_a_gradient_penalty_reaches_the_weights_from_detached_inputs_and_in_a_loss(backend: Backend) -> None:
    critic, x = Critic(), Tensor(rng(4).normal(size=(5, 3)), requires_grad=False)
    p = {name: torch.tensor(value, requires_grad=True) for name, value in critic.state_dict().items()}
    theirs = torch.tensor(x.numpy(), requires_grad=True)
    value = torch_critic(p, theirs)
    (gradient,) = torch.autograd.grad(value, theirs, create_graph=True)
    (value + 10 * ((gradient**2).sum(1).sqrt() - 1).pow(2).mean()).backward()
    out, gradient = rg.value_and_grad(critic)(x)
    (out + 10 * (((gradient**2).sum(1).sqrt() - 1) ** 2).mean()).backward()
    assert x.grad is None
    for name, parameter in critic.named_parameters():
        assert_close(parameter.grad, p[name].grad, what=name)


def test_frozen_parameters_get_no_gradient(backend: Backend) -> None:
    critic = Critic()
    critic.b.requires_grad = False
    (rg.grad(critic)(Tensor(rng(4).normal(size=(5, 3)))) ** 2).sum().backward()
    assert critic.b.grad is None and critic.w.grad is not None


def test_transforms_change_no_grad_attribute(backend: Backend) -> None:
    critic, x = Critic(), Tensor(rng(4).normal(size=(5, 3)))
    x.grad = Tensor(np.ones((5, 3)))
    rg.grad(critic)(x)
    rg.hvp(critic, x, x)
    rg.jvp(critic, (x,), (x,))
    rg.vjp(critic, x)[1](Tensor(1.0))
    rg.hessian(lambda b: rg.functional_call(critic, {"b": b}, x))(critic.b)
    assert all(parameter.grad is None for parameter in critic.parameters())
    assert_close(x.grad, np.ones((5, 3)))


def test_hooks_inside_the_function_run_and_may_replace_the_gradient(backend: Backend) -> None:
    calls: list[Tensor] = []

    def double(gradient: Tensor) -> Tensor:
        calls.append(gradient)
        return gradient * 2

    def f(x: Tensor) -> Tensor:
        y = x * x
        y.register_hook(double)
        return y * y

    assert rg.grad(f)(Tensor(3.0)).item() == 2 * 4 * 27
    assert [type(gradient) for gradient in calls] == [Tensor] and calls[0].item() == 18
    assert rg.grad(rg.grad(f))(Tensor(3.0)).item() == 24 * 9  # of 8 x^3

    def of_input(x: Tensor) -> Tensor:
        x.register_hook(lambda gradient: gradient * 10)
        return x * x

    assert rg.grad(of_input)(Tensor(3.0)).item() == 60


def test_a_hook_that_replaces_nothing_and_a_removed_hook(backend: Backend) -> None:
    seen: list[float] = []

    def f(x: Tensor) -> Tensor:
        y = x.exp()
        remove = y.register_hook(lambda gradient: gradient * 100)
        y.register_hook(lambda gradient: seen.append(gradient.item()))
        remove()
        return y * 3

    assert_close(rg.grad(f)(Tensor(1.0)), np.array(3 * math.e), atol=1e-14)
    assert seen == [3.0]


def test_a_hook_inside_may_return_an_array_of_the_backend_or_a_number(backend: Backend) -> None:
    for returned in (backend.full((), 5.0, "float64"), Tensor(5.0), 5.0):

        def f(x: Tensor, returned: Any = returned) -> Tensor:
            y = x * x
            y.register_hook(lambda gradient: returned)
            return y * y

        assert rg.grad(f)(Tensor(3.0)).item() == 30
        assert rg.grad(rg.grad(f))(Tensor(3.0)).item() == 10


def test_hooks_on_the_given_tensor_run_in_backward_alone(backend: Backend) -> None:
    x, calls = Tensor(3.0), []
    x.register_hook(lambda gradient: calls.append(gradient.item()))
    gradient = rg.grad(lambda x: x**3)(x)
    assert not calls
    gradient.backward()
    assert calls == [18.0] and item(x.grad) == 18.0


def test_retain_grad_inside_the_function(backend: Backend) -> None:
    kept: list[Any] = []

    def f(x: Tensor) -> Tensor:
        y = x * x
        y.retain_grad()
        kept.append(y)
        return y * x

    rg.grad(f)(Tensor(3.0))
    assert isinstance(kept[0].grad, Tensor) and kept[0].grad.item() == 3


def test_backward_of_another_graph_inside_the_function(backend: Backend) -> None:
    w = Tensor(5.0)

    def f(x: Tensor) -> Tensor:
        (w * w).backward()
        inner = Tensor(2.0)
        (inner * inner * inner).backward()
        return x * Tensor(inner.grad) * w

    x = Tensor(3.0)
    assert rg.grad(f)(x).item() == 60
    assert item(w.grad) == 10
    assert x.grad is None
    w.zero_grad()
    rg.grad(f)(x).backward()  # 12 w
    assert item(w.grad) == 10 + 12


def test_a_constant_of_the_function_gets_its_gradient_from_backward(backend: Backend) -> None:
    """As in PyTorch: at the level of a transform it is a constant, at its own level it is not."""
    w, x = Tensor(5.0), Tensor(3.0)
    value, gradient = rg.value_and_grad(lambda x: w * w * x * x)(x)
    value.backward(retain_graph=True)
    assert item(w.grad) == 90 and item(x.grad) == 150
    w.zero_grad()
    gradient.backward()
    assert item(w.grad) == 60


# --- pull


def test_pull_can_be_called_several_times(backend: Backend) -> None:
    x = Tensor([1.0, 2.0, 3.0])
    y, pull = rg.vjp(lambda x: x * x * x, x)
    assert_close(y, np.array([1.0, 8.0, 27.0]))
    for scale in (1.0, 2.0, -1.0):
        assert_close(pull(Tensor([scale, scale, scale]))[0], scale * np.array([3.0, 12.0, 27.0]))
    with rg.no_grad():
        inside = pull(Tensor([1.0, 1.0, 1.0]))[0]
    assert_close(inside, np.array([3.0, 12.0, 27.0]))
    assert not inside.requires_grad
    outside = pull(Tensor([1.0, 1.0, 1.0]))[0]
    outside.sum().backward()
    assert_close(x.grad, np.array([6.0, 12.0, 18.0]))


PULLS: dict[str, Fn] = {
    "its gradient is the transposed Jacobian": lambda of, one, x, u: of.grad(
        lambda u: (one(of.vjp(lambda x: (x * x).sin(), x)[1](u)) * x).sum()
    )(u),
    "made outside, called inside": lambda of, one, x, u: (
        lambda pull: of.grad(lambda u: (one(pull(u)) ** 3).sum())(u)
    )(of.vjp(lambda x: (x * x).sin(), x)[1]),
    "made outside, called inside twice": lambda of, one, x, u: (
        lambda pull: of.grad(lambda u: (of.grad(lambda v: (one(pull(u * v)) ** 3).sum())(u) ** 2).sum())(u)
    )(of.vjp(lambda x: (x * x).sin(), x)[1]),
    "made inside, called inside of another": lambda of, one, x, u: of.grad(
        lambda x: (lambda pull: of.grad(lambda u: (one(pull(u)) ** 3).sum())(u * x).sum())(
            of.vjp(lambda y: (y * y).sin() * x, x)[1]
        )
    )(x),
    "called twice inside": lambda of, one, x, u: of.grad(
        lambda x: (lambda pull: (one(pull(u)) * one(pull(x))).sum())(of.vjp(lambda y: (y * y).sin() * x, x)[1])
    )(x),
    "of the pull of a pull": lambda of, one, x, u: one(
        of.vjp(lambda u: one(of.vjp(lambda x: (x * x).sin(), x)[1](u)), u)[1](x)
    ),
    "the vjp of jvp": lambda of, one, x, u: one(
        of.vjp(lambda t: of.jvp(lambda x: (x * x).sin(), (x,), (t,))[1], u)[1](x)
    ),
    "made in no_grad": lambda of, one, x, u: one(of.no_grad()(lambda: of.vjp(lambda x: x * x, x))()[1](u)),
    "called in no_grad": lambda of, one, x, u: of.grad(
        lambda x: (lambda pull: (of.no_grad()(lambda: one(pull(u)))() * x).sum())(of.vjp(lambda y: x * y * y, x)[1])
    )(x),
}  # fmt: skip


@pytest.mark.parametrize("name", PULLS)
def test_pull_in_and_of_transforms_matches_pytorch(backend: Backend, name: str) -> None:
    def run(of: Any, x: Any, u: Any) -> Any:
        return PULLS[name](of, itemgetter(0), x, u)

    compare(run, rng(0).normal(size=3), rng(1).normal(size=3))


def test_pull_of_a_function_that_ran_in_no_grad_is_a_constant(backend: Backend) -> None:
    """Called outside, too. PyTorch differentiates the part that uses inputs, not intermediate results."""

    def f(x: Tensor) -> Tensor:
        with rg.no_grad():
            _, pull = rg.vjp(lambda y: x * y * y, x)
        return pull(Tensor(1.0))[0] * x  # 2 x^2, a constant, times x

    assert rg.grad(f)(Tensor(3.0)).item() == 18


def test_an_input_changed_in_place_after_vjp_is_an_error(backend: Backend) -> None:
    def changed(x: Tensor) -> None:
        x.data -= backend.full(x.shape, 1.0, "float64")

    for f in (lambda x: x * x, lambda x: (x.T * x.T).T, lambda x: x.exp() * x, lambda x: x[::1] @ x.T):
        x = Tensor(np.ones((2, 2)))
        _, pull = rg.vjp(f, x)
        pull(Tensor(np.ones((2, 2))))
        changed(x)
        with pytest.raises(RuntimeError, match="changed in place"):
            pull(Tensor(np.ones((2, 2))))

    x = Tensor(np.ones(3))
    out, pull = rg.vjp(lambda x: (x * 2).exp(), x)
    changed(out)  # exp's derivative is its output
    with pytest.raises(RuntimeError, match="changed in place"):
        pull(Tensor(np.ones(3)))

    x, w = Tensor(np.ones(3)), Tensor(np.ones(3))
    _, pull = rg.vjp(lambda x: x * w, x)
    changed(w)
    with pytest.raises(RuntimeError, match="changed in place"):
        pull(Tensor(np.ones(3)))

    x = Tensor(np.ones(3))
    gradient = rg.grad(lambda x: (x**3).sum())(x)
    changed(x)
    with pytest.raises(RuntimeError, match="changed in place"):
        gradient.sum().backward()

    def changes_its_input(x: Tensor) -> Tensor:
        y = (x * x).sum()
        changed(given)
        return y

    given = Tensor(np.ones(3))
    with pytest.raises(RuntimeError, match="changed in place"):
        rg.grad(changes_its_input)(given)


# --- vjp, jvp, jacobian, hessian


def two_outputs(of: Any, x: Any, w: Any) -> Any:
    return (x @ w).sin(), (x * x).sum()


@pytest.mark.parametrize("argnums", [0, 1, -1, (0,), (0, 1), (1, 0), (-1, 0)], ids=str)
def test_argnums_match_pytorch(backend: Backend, argnums: Any) -> None:
    x, w = rng(0).normal(size=(2, 3)), rng(1).normal(size=(3, 2))
    non_negative = tuple(i % 2 for i in argnums) if isinstance(argnums, tuple) else argnums % 2

    def run(of: Any, x: Any, w: Any) -> Any:
        at = non_negative if of is PYTORCH else argnums
        value = of.grad(lambda x, w: ((x @ w).sin() ** 2).sum(), at)(x, w)
        assert isinstance(value, tuple) is isinstance(argnums, tuple)
        return [value, of.jacobian(lambda x, w: (x @ w).sin(), at)(x, w),
                of.hessian(lambda x, w: ((x @ w).sin() ** 2).sum(), at)(x, w)]  # fmt: skip

    compare(run, x, w)


JACOBIANS: dict[str, tuple[Fn, tuple[int, ...]]] = {
    "rows": (lambda of, x: (x * x).sum(-1).sin(), (2, 3)),
    "columns": (lambda of, x: of.stack([x.sin(), x.cos(), x * x]), (2, 2)),
    "square": (lambda of, x: (x * x).sin(), (3,)),
    "scalar to many": (lambda of, x: of.stack([x, x * x, x.exp()]), ()),
    "many to scalar": (lambda of, x: (x * x).sum(), (2, 3)),
    "scalar to scalar": (lambda of, x: x.sin(), ()),
    "linear": (lambda of, x: x.T, (2, 3)),
    "constant": (lambda of, x: x * 0 + 3, (2,)),
    "empty input": (lambda of, x: x * x, (0,)),
    "empty output": (lambda of, x: x[:0], (3,)),
}


@pytest.mark.parametrize("name", JACOBIANS)
def test_jacobian_matches_pytorch(backend: Backend, name: str) -> None:
    f, shape = JACOBIANS[name]
    if "empty" not in name:
        compare(lambda of, x: of.jacobian(lambda x: f(of, x))(x), rng(0).normal(size=shape))
        # It can be differentiated: rows, columns and their derivatives.
        compare(lambda of, x: of.grad(lambda x: (of.jacobian(lambda x: f(of, x))(x) ** 2).sum())(x),
                rng(0).normal(size=shape))  # fmt: skip
        compare(lambda of, x: of.jacobian(of.jacobian(lambda x: f(of, x)))(x), rng(0).normal(size=shape))
    else:
        x = Tensor(rng(0).normal(size=shape))
        out = f(OURS, x)
        assert rg.jacobian(lambda x: f(OURS, x))(x).shape == (*out.shape, *shape)


def test_the_jacobian_of_an_output_that_does_not_depend_on_the_input_is_zero(backend: Backend) -> None:
    constant = Tensor([1.0, 2.0])
    for n in (1, 2, 5):
        assert_close(rg.jacobian(lambda x: constant)(Tensor(np.ones(n))), np.zeros((2, n)))
    found = rg.jacobian(lambda x: {"a": constant, "b": x * x})(Tensor([1.0, 2.0, 3.0]))
    assert_close(found["a"], np.zeros((2, 3)))
    assert_close(found["b"], np.diag([2.0, 4.0, 6.0]))
    _, tangent = rg.jvp(lambda x: (constant, x * 2), (Tensor([1.0]),), (Tensor([1.0]),))
    assert_close(tangent[0], np.zeros(2))
    assert_close(tangent[1], np.array([2.0]))
    assert_close(rg.grad(lambda x: constant.sum())(Tensor([1.0])), np.zeros(1))
    assert_close(rg.hvp(lambda x: constant.sum(), Tensor([1.0]), Tensor([1.0])), np.zeros(1))
    assert_close(rg.hessian(lambda x: x.sum())(Tensor([1.0, 2.0])), np.zeros((2, 2)))


def test_jvp_and_vjp_of_several_arguments_match_pytorch(backend: Backend) -> None:
    arrays = [rng(i).normal(size=shape) for i, shape in enumerate([(2, 3), (3, 2), (2, 3), (3, 2), (2, 2), ()])]

    def run(of: Any, x: Any, w: Any, dx: Any, dw: Any, g: Any, h: Any) -> Any:
        f: Fn = lambda x, w: two_outputs(of, x, w)  # noqa: E731
        value, tangent = of.jvp(f, (x, w), (dx, dw))
        out, pull = of.vjp(f, x, w)
        return [value, tangent, out, pull((g, h)), pull((g * 2, h))]

    compare(run, *arrays)


def test_hvp_matches_the_hessian(backend: Backend) -> None:
    x, v = Tensor(rng(0).normal(size=(2, 3))), Tensor(rng(1).normal(size=(2, 3)))

    def f(x: Tensor) -> Tensor:
        return ((x @ x.T).sin() * x.sum()).sum()

    full = rg.hessian(f)(x).reshape(6, 6) @ v.reshape(6)
    assert_close(rg.hvp(f, x, v), full.reshape(2, 3), atol=1e-12)
    assert_close(rg.jvp(rg.grad(f), (x,), (v,))[1], full.reshape(2, 3), atol=1e-12)


# --- Values


class Point(NamedTuple):
    x: Any
    more: Any


def test_values_keep_their_structure(backend: Backend) -> None:
    value: dict[str, Any] = {"a": [Tensor(1.0), (Tensor([2.0, 3.0]),)], "b": Point(Tensor([[4.0]]), {}), "c": []}

    def f(value: Any) -> Tensor:
        (a, (b,)), p = value["a"], value["b"]
        assert type(p) is Point and type(value["a"]) is list
        return a * (b * b).sum() * p.x.sum() ** 3

    found = rg.grad(f)(value)
    assert list(found) == ["a", "b", "c"] and found["c"] == []
    assert type(found["b"]) is Point and found["b"].more == {} and type(found["a"][1]) is tuple
    assert_close(found["a"][0], np.array(13.0 * 64))
    assert_close(found["a"][1][0], 64 * np.array([4.0, 6.0]))
    assert_close(found["b"].x, np.array([[13.0 * 48]]))
    product = rg.hvp(f, value, value)  # f is homogeneous of degree 6: H x = 5 grad
    assert type(product["b"]) is Point
    assert_close(product["b"].x, 5 * found["b"].x.numpy())
    out, tangent = rg.jvp(lambda v: Point(v["a"][0] * 2, [v["b"].x * v["b"].x]), (value,), (value,))
    assert type(out) is type(tangent) is Point
    assert_close(tangent.more[0], np.array([[32.0]]))
    out, pull = rg.vjp(lambda v: Point(v["a"][0] * 2, [v["b"].x * v["b"].x]), value)
    assert_close(pull(Point(Tensor(1.0), [Tensor([[1.0]])]))[0]["b"].x, np.array([[8.0]]))
    rows = rg.jacobian(lambda v: (v["a"][1][0] * v["a"][0], [v["b"].x]))(value)
    assert_close(rows[0]["a"][1][0], np.eye(2))
    assert_close(rows[0]["a"][0], np.array([2.0, 3.0]))
    assert_close(rows[1][0]["b"].x, np.ones((1, 1, 1, 1)))
    assert_close(rows[1][0]["a"][1][0], np.zeros((1, 1, 2)))
    pair = {"x": Tensor(3.0), "y": Tensor([1.0, 2.0])}
    blocks = rg.hessian(lambda p: p["x"] ** 2 * p["y"].sum())(pair)
    assert_close(blocks["x"]["x"], np.array(6.0))
    assert_close(blocks["x"]["y"], np.array([6.0, 6.0]))
    assert_close(blocks["y"]["x"], np.array([6.0, 6.0]))
    assert_close(blocks["y"]["y"], np.zeros((2, 2)))


def test_the_same_tensor_in_two_places_has_two_gradients(backend: Backend) -> None:
    x = Tensor(3.0)
    first, second = rg.grad(lambda a, b: a * a * b, (0, 1))(x, x)
    assert (first.item(), second.item()) == (18, 9)
    assert [g.item() for g in rg.grad(lambda pair: pair[0] * pair[0] * pair[1])([x, x])] == [18, 9]


def test_other_arguments_are_passed_on(backend: Backend) -> None:
    def f(x: Tensor, power: int, *, scale: float = 1.0, weights: Any = None) -> Tensor:
        assert weights is None or weights["w"] is w
        return (x**power * scale).sum() * (1 if weights is None else weights["w"])

    x, w = Tensor([1.0, 2.0]), Tensor(5.0)
    assert_close(rg.grad(f)(x, 3), np.array([3.0, 12.0]))
    assert_close(rg.grad(f)(x, 3, scale=2.0), np.array([6.0, 24.0]))
    value, gradient = rg.value_and_grad(f)(x, power=2, weights={"w": w})
    assert value.item() == 25
    assert_close(gradient, np.array([10.0, 20.0]))
    assert_close(rg.jacobian(lambda x, n: x**n)(x, 2), np.diag([2.0, 4.0]))
    assert_close(rg.hessian(f)(x, 3, scale=0.5), np.diag([3.0, 6.0]))


def test_outputs_that_are_inputs(backend: Backend) -> None:
    x = Tensor([1.0, 2.0])
    out, pull = rg.vjp(lambda x: (x, x, [x * x]), x)
    assert_close(out[0], x)
    assert_close(pull((x, x, [x]))[0], 2 * np.array([1.0, 2.0]) + 2 * np.array([1.0, 4.0]))
    assert rg.grad(lambda x: x)(Tensor(2.0)).item() == 1
    assert rg.jvp(lambda x: x, (x,), (x,))[1].shape == (2,)


# --- functional_call


class Layers(Module):
    """Parameters in a list, a tuple, a dict and a named tuple, tied twice, and a buffer."""

    def __init__(self) -> None:
        self.w = Tensor(2.0)
        self.items = [Tensor(3.0), self.w]
        self.pair = (Tensor(5.0), Point(Tensor(7.0), [self.w]))
        self.table: dict[str, Any] = {"a": Tensor(11.0), "nested": {"b": (Tensor(13.0),)}}
        self.buffer = Tensor(17.0, requires_grad=False)
        self.tied = self.w

    def forward(self, x: Tensor, power: int = 1) -> Tensor:
        assert type(self.pair) is tuple and type(self.pair[1]) is Point
        factors = [self.w, *self.items, self.pair[0], self.pair[1].x, *self.pair[1].more, self.table["a"],
                   self.table["nested"]["b"][0], self.buffer, self.tied]  # fmt: skip
        out = x
        for factor in factors:
            out = out * factor
        return out**power


def test_functional_call_replaces_parameters_everywhere(backend: Backend) -> None:
    module = Layers()
    own = dict(module._named_tensors())
    value = math.prod((3, 5, 7, 11, 13, 17)) * 2**4
    before = vars(module).copy()
    parameters = dict(module.named_parameters())
    assert list(parameters) == ["w", "items.0", "pair.0", "pair.1.0", "table.a", "table.nested.b.0"]
    found = rg.grad(lambda p: rg.functional_call(module, p, Tensor(1.0)))(parameters)
    assert list(found) == list(parameters)
    assert found["w"].item() == 4 * value / 2  # it occurs four times
    for name in list(parameters)[1:]:
        assert found[name].item() == value / own[name].item()
    second = rg.hessian(lambda w: rg.functional_call(module, {"w": w}, Tensor(1.0)))(module.w)
    assert second.item() == 12 * value / 4
    with_buffer = rg.functional_call(module, {"buffer": Tensor(0.5), "w": Tensor(1.0)}, Tensor(1.0), power=2)
    assert with_buffer.item() == (math.prod((3, 5, 7, 11, 13)) * 0.5) ** 2
    assert rg.grad(lambda b: rg.functional_call(module, {"buffer": b}, Tensor(1.0)))(Tensor(17.0)).item() == value / 17
    assert vars(module) == before and all(a is b for a, b in zip(vars(module).values(), before.values(), strict=True))
    assert dict(module._named_tensors()) == own
    assert module(Tensor(1.0)).item() == value


def test_functional_call_restores_the_module_after_an_exception(backend: Backend) -> None:
    class Failing(Layers):
        def forward(self, x: Tensor, power: int = 1) -> Tensor:
            super().forward(x)
            raise KeyError("failed")

    module = Failing()
    own = dict(module._named_tensors())
    with pytest.raises(KeyError, match="failed"):
        rg.functional_call(module, {name: t * 2 for name, t in own.items()}, Tensor(1.0))
    assert all(t is own[name] for name, t in module._named_tensors())
    assert module.items[1] is module.w is module.tied is module.pair[1].more[0]


def test_functional_call_of_a_mapping_that_cannot_be_written_changes_nothing(backend: Backend) -> None:
    class Constants(Module):
        def __init__(self) -> None:
            self.a = Tensor(2.0)
            self.table = MappingProxyType({"b": Tensor(3.0)})

        def forward(self) -> Tensor:
            return self.a * self.table["b"]

    module = Constants()
    with pytest.raises(TypeError, match="functional_call: a mappingproxy holds 'b', which cannot be replaced there"):
        rg.functional_call(module, {"a": Tensor(5.0), "table.b": Tensor(7.0)})
    assert module().item() == 6
    assert rg.functional_call(module, {"a": Tensor(5.0)}).item() == 15


def test_functional_call_of_a_module_that_is_a_list(backend: Backend) -> None:
    class Shift(Module):
        def __init__(self, by: float) -> None:
            self.by = Tensor(by)

        def forward(self, x: Tensor) -> Tensor:
            return (x + self.by) * x

    class Chain(Module, list):  # type: ignore[type-arg]
        def forward(self, x: Tensor) -> Tensor:
            for module in self:
                x = module(x)
            return x

    chain = Chain([Shift(2.0), Shift(3.0)])
    parameters = dict(chain.named_parameters())
    found = rg.grad(lambda p: rg.functional_call(chain, p, Tensor(1.0)))(parameters)
    assert {name: g.item() for name, g in found.items()} == {"0.by": 9, "1.by": 3}
    assert chain[0].by is parameters["0.by"]


def test_functional_call_of_a_module_that_returns_its_parameter(backend: Backend) -> None:
    class Constant(Module):
        def __init__(self) -> None:
            self.value = Tensor([1.0, 2.0])

        def forward(self) -> Tensor:
            return self.value

    module = Constant()
    new = Tensor([3.0, 4.0])
    assert rg.functional_call(module, {"value": new}) is new
    assert rg.functional_call(module, {}) is module.value
    _, pull = rg.vjp(lambda value: rg.functional_call(module, {"value": value}), new)
    assert_close(pull(Tensor([5.0, 6.0]))[0], np.array([5.0, 6.0]))


def test_functional_call_of_modules_in_containers(backend: Backend) -> None:
    class Scale(Module):
        def __init__(self, value: float) -> None:
            self.value = Tensor(value)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.value

    class Chain(Module):
        def __init__(self) -> None:
            shared = Scale(2.0)
            self.layers: list[Any] = [shared, (Scale(3.0), shared)]
            self.queue = collections.deque([Scale(5.0)])
            self.parent = [self]  # a cycle

        def forward(self, x: Tensor) -> Tensor:
            first, (second, third) = self.layers
            return self.queue[0](third(second(first(x))))

    module = Chain()
    parameters = dict(module.named_parameters())
    found = rg.grad(lambda p: rg.functional_call(module, p, Tensor(1.0)))(parameters)
    assert {name: g.item() for name, g in found.items()} == {
        "layers.0.value": 60, "layers.1.0.value": 20, "queue.0.value": 12,
    }  # fmt: skip


def test_functional_call_can_be_nested(backend: Backend) -> None:
    module = Layers()
    x = Tensor(1.0)

    def inner(w: Tensor) -> Tensor:
        return rg.functional_call(module, {"w": w}, x)

    class Outer(Module):
        def __init__(self) -> None:
            self.module = module

        def forward(self) -> Tensor:
            return inner(self.module.w * 2) * self.module.items[0]

    value = rg.functional_call(Outer(), {"module.w": Tensor(1.0)})
    assert value.item() == module(x).item() * 3
    assert module.w.item() == 2


def test_functional_call_errors(backend: Backend) -> None:
    module = Layers()
    with pytest.raises(
        ValueError,
        match=r"functional_call: Layers has no parameter or buffer 'weight', 'bias'; its names are w, items.0",
    ):
        rg.functional_call(module, {"weight": Tensor(1.0), "bias": Tensor(1.0)}, Tensor(1.0))
    with pytest.raises(ValueError, match=r"functional_call: w has shape \(1,\), expected \(\)"):
        rg.functional_call(module, {"w": Tensor([1.0])}, Tensor(1.0))
    with pytest.raises(TypeError, match="functional_call: w must be a Tensor, got a float"):
        rg.functional_call(module, {"w": 1.0}, Tensor(1.0))  # type: ignore[dict-item]
    one, other = (rg.functional_call(module, {name: Tensor(5.0)}, Tensor(1.0)).item() for name in ("w", "tied"))
    assert one == other
    assert module.w.item() == 2


# --- Backends, arrays, dtypes


def test_moving_to_another_backend_inside_is_differentiable(backend: Backend) -> None:
    there = "numpy" if backend.name == "strict" else "strict"

    def f(x: Tensor) -> Tensor:
        moved = (x * x).to(there)
        assert moved.backend.root.name == there
        return ((moved * x.to(there)).sin().to(backend) * x).sum()

    def plain(x: Tensor) -> Tensor:
        return ((x * x * x).sin() * x).sum()

    x, v = Tensor([0.3, 0.8]), Tensor([1.0, -2.0])
    for transform in (rg.grad, rg.hessian, lambda f: lambda x: rg.hvp(f, x, v), lambda f: rg.jacobian(rg.hessian(f)),
                      lambda f: lambda x: rg.jvp(f, (x,), (v,))[1]):  # fmt: skip
        found = transform(f)(x)
        assert found.backend.root is backend
        assert_close(found, transform(plain)(x), atol=1e-13)
    (rg.grad(f)(x) ** 2).sum().backward()
    y = Tensor(x.numpy())
    (rg.grad(plain)(y) ** 2).sum().backward()
    assert_close(x.grad, y.grad, atol=1e-13)


def test_an_output_on_another_backend(backend: Backend) -> None:
    there = "numpy" if backend.name == "strict" else "strict"
    x = Tensor([0.3, 0.8])
    out, pull = rg.vjp(lambda x: (x * x).to(there), x)
    assert out.backend.name == there
    found = pull(Tensor([1.0, 2.0], backend=there))[0]
    assert found.backend is backend
    assert_close(found, np.array([0.6, 3.2]))
    assert rg.grad(lambda x: (x * x).sum().to(there))(x).backend is backend
    out, tangent = rg.jvp(lambda x: (x * x).to(there), (x,), (x,))
    assert tangent.backend.name == there
    assert_close(tangent, 2 * x.numpy() ** 2)
    for f in (lambda x: (x * x).to(there), lambda x: (x * x).sum().to(there), lambda x: x[0].to(there) * x.to(there)):
        assert_close(rg.jacobian(f)(x), rg.jacobian(lambda x, f=f: f(x).to(backend))(x).to(there))


def test_two_ways_to_a_third_backend(backend: Backend) -> None:
    others = [name for name in rg.available_backends() if name != backend.name]
    if len(others) < 2:
        pytest.skip("needs three backends")
    first, second = others[:2]
    x, v = Tensor([1.0, 2.0]), Tensor([1.0, 0.0])

    def f(x: Tensor) -> Tensor:
        return (x.to(first).to(second) * x.to(second)).sum()

    assert_close(rg.grad(f)(x), np.array([2.0, 4.0]))
    assert_close(rg.jvp(f, (x,), (v,))[1], np.array(2.0))
    assert_close(rg.hvp(f, x, v), np.array([2.0, 0.0]))


def test_forward_mode_drops_what_no_grad_moves(backend: Backend) -> None:
    there = "numpy" if backend.name == "strict" else "strict"

    def f(x: Tensor) -> Tensor:
        with rg.no_grad():
            moved = x.to(there)
        return moved * 2

    x = Tensor([1.0, 2.0])
    assert_close(rg.jvp(f, (x,), (x,))[1], np.zeros(2))


@pytest.mark.parametrize("constant", [lambda x: x.data, Tensor.detach, copy.copy], ids=["data", "detach", "copy"])
def test_data_is_a_constant_of_every_mode(backend: Backend, constant: Fn) -> None:
    x, v = Tensor([1.0, 2.0], requires_grad=False), Tensor([1.0, -1.0], requires_grad=False)

    def f(x: Tensor) -> Tensor:
        return (x * constant(x)).sum()

    assert_close(rg.grad(f)(x), x.numpy())
    assert_close(rg.jvp(f, (x,), (v,))[1], (x * v).sum())
    assert_close(rg.hvp(f, x, v), (rg.hessian(f)(x) * v).sum(-1))
    twice = rg.jvp(lambda x: rg.jvp(f, (x,), (v,))[1], (x,), (v,))[1]
    assert_close(twice, (rg.hessian(f)(x) * v).sum(-1) @ v)


def test_arrays_and_masks_of_the_backend_inside(backend: Backend) -> None:
    array = backend.asarray(np.array([1.0, 2.0, 3.0]))
    mask = backend.asarray(np.array([True, False, True]))
    ids = backend.asarray(np.array([2, 2, 0]))
    host = np.array([True, False, True])

    def f(x: Tensor) -> Tensor:
        y = x * array + array * x - x / array
        y = y.masked_fill(mask, 0.5) + rg.where(mask, x, array) + rg.where(Tensor(host), x * x, 0.0)
        y = y[ids] * x[Tensor([0, 1, 2], dtype="int64")] + x[host].sum() + x[mask].sum() + rg.maximum(x, array)
        return (y * Tensor(array)).sum() + rg.embedding(x.reshape(3, 1), ids).sum() * x[Tensor(1, dtype="int64")]

    def theirs(x: torch.Tensor) -> torch.Tensor:
        a, m, i = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor(host), torch.tensor([2, 2, 0])
        y = x * a + a * x - x / a
        y = y.masked_fill(m, 0.5) + torch.where(m, x, a) + torch.where(m, x * x, 0.0)
        y = y[i] * x[torch.tensor([0, 1, 2])] + x[m].sum() + x[m].sum() + torch.maximum(x, a)
        return (y * a).sum() + x[i].sum() * x[1]

    x = rng(0).normal(size=3)
    assert_close(rg.grad(f)(Tensor(x)), torch.func.grad(theirs)(torch.tensor(x)), atol=1e-13)
    assert_close(rg.hessian(f)(Tensor(x)), PYTORCH.hessian(theirs)(torch.tensor(x)), atol=1e-13)


def test_the_callers_array_may_change_after_its_use(backend: Backend) -> None:
    if not hasattr(backend, "assign"):
        pytest.skip("the backend's arrays do not change")
    array = backend.copy(backend.asarray(np.array([1.0, 2.0])))
    _, pull = rg.vjp(lambda x: x * array, Tensor([1.0, 1.0]))
    backend.assign(array, backend.full((2,), 0.0, "float64"))
    assert_close(pull(Tensor([1.0, 1.0]))[0], np.array([1.0, 2.0]))


def test_new_tensors_inside(backend: Backend) -> None:
    def f(x: Tensor) -> Tensor:
        constant = Tensor([1.0, 2.0]) * Tensor(np.array([3.0, 4.0]))
        frozen = Tensor(x.numpy(), requires_grad=False)  # values, without the history
        return (x * x * constant + frozen * x + Tensor(2.0, backend=x.backend) * x).sum()

    x = Tensor([0.5, 0.25])
    assert_close(rg.grad(f)(x), 2 * x.numpy() * np.array([3.0, 8.0]) + x.numpy() + 2)
    assert_close(rg.hessian(f)(x), np.diag([6.0, 16.0]))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_dtypes_are_kept(backend: Backend, dtype: str) -> None:
    if dtype not in backend.float_dtypes():
        pytest.skip(f"the backend has no {dtype}")
    x = (rng(0).normal(size=(2, 3))).astype(dtype)
    atol = {"float32": 1e-5, "float16": 3e-2}[dtype]

    def f(x: Tensor) -> Tensor:
        return ((x @ x.T).softmax() * x.var(-1)).sum() + x.gelu().mean() * 2

    def fused(x: Tensor) -> Tensor:  # a query without a key; a variance above the largest float16
        hidden = np.array([[False, True], [True, True]])
        attended = rg.attention(x, x, x, mask=hidden) * x
        return attended.sum() + (rg.layer_norm(x * 1000) ** 3).sum() + rg.cross_entropy(x, [0, 2])

    wide, v = Tensor(x.astype("float64")), x[::-1].copy()
    single = Tensor(x)
    for found, expected in (
        (rg.grad(f)(single), rg.grad(f)(wide)),
        (rg.hvp(f, single, Tensor(v)), rg.hvp(f, wide, Tensor(v.astype("float64")))),
        (rg.hessian(f)(single), rg.hessian(f)(wide)),
        (rg.jvp(f, (single,), (Tensor(v),))[1], rg.jvp(f, (wide,), (Tensor(v.astype("float64")),))[1]),
        (rg.jacobian(lambda x: x.softmax())(single), rg.jacobian(lambda x: x.softmax())(wide)),
        (rg.hvp(fused, single, Tensor(v)), rg.hvp(fused, wide, Tensor(v.astype("float64")))),
    ):
        assert str(found.dtype) == dtype
        assert_close(found.astype("float64"), expected, atol=atol)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("op", ["sum", "mean", "var", "max", "min", "softmax", "gelu"])
def test_tangents_have_the_dtype_of_the_output(backend: Backend, op: str, dtype: str) -> None:
    if dtype not in backend.float_dtypes():
        pytest.skip(f"the backend has no {dtype}")
    x = Tensor(np.array([[1, 3, 3], [2, 2, 2]], dtype))
    out, tangent = rg.jvp(getattr(Tensor, op), (x,), (x,))
    assert out.dtype == tangent.dtype == dtype
    assert rg.hvp(lambda x: (getattr(x, op)() ** 2).sum(), x, x).dtype == dtype


def test_mixed_dtypes_match_pytorch(backend: Backend) -> None:
    x, w = rng(0).normal(size=(2, 3)).astype("float32"), rng(1).normal(size=(2, 3))

    def run(grad: Fn, x: Any, w: Any) -> Any:
        gradient = grad(lambda x, w: (x * w * w).sum(), (0, 1))
        return grad(lambda x, w: sum((g * g).sum() for g in gradient(x, w)), (0, 1))(x, w)

    found = run(rg.grad, Tensor(x), Tensor(w))
    expected = run(torch.func.grad, torch.tensor(x), torch.tensor(w))
    assert [str(g.dtype) for g in found] == ["float32", "float64"]
    for mine, reference in zip(found, expected, strict=True):
        assert_close(mine, reference, atol=1e-5)
    # A gradient of another float dtype is cast.
    _, pull = rg.vjp(lambda x: x * x, Tensor(x))
    assert str(pull(Tensor(w))[0].dtype) == "float32"


def test_casts_inside_match_pytorch(backend: Backend) -> None:
    def run(grad: Fn, cast: Fn, x: Any) -> Any:
        return grad(lambda x: (grad(lambda x: (cast(x) ** 3).sum())(x) * x).sum())(x)

    x = rng(0).normal(size=3)
    found = run(rg.grad, lambda x: x.astype("float32"), Tensor(x))
    assert_close(found, run(torch.func.grad, torch.Tensor.float, torch.tensor(x)), atol=1e-5)


# --- Depth and memory


@once
def test_deep_graphs(backend: Backend) -> None:
    def f(x: Tensor) -> Tensor:
        for _ in range(5000):
            x = x * 1.0001 + 0.0001
        return x * x

    x, one, slope = Tensor(1.0), Tensor(1.0), 1.0001**5000
    assert_close(rg.hvp(f, x, one), np.array(2 * slope**2), atol=1e-9)
    with rg.no_grad():
        assert_close(rg.jvp(f, (x,), (one,))[1], np.array(2 * slope * (slope + slope - 1)), atol=1e-9)


def test_memory_is_freed_without_the_garbage_collector(backend: Backend) -> None:
    seen: list[Any] = []

    def f(x: Tensor) -> Tensor:
        y = (x * x).exp()
        z = y.reshape(4).softmax() * y.reshape(4)
        moved = y.to("numpy").to(backend)
        parts = (x, x.backend, x._array, y, z, y._array, z._node, y._node, moved)
        seen.extend(weakref.ref(part) for part in parts if part is not None)  # forward mode has no nodes
        return (rg.layer_norm(y) * y).sum() + z.sum() + moved.sum()

    def use(x: Tensor) -> None:
        rg.grad(f)(x)
        rg.value_and_grad(f)(x)
        rg.hvp(f, x, x)
        rg.jvp(f, (x,), (x,))
        _, pull = rg.vjp(f, x)
        pull(Tensor(1.0))
        rg.jacobian(f)(x)
        rg.hessian(f)(x)
        rg.jacobian(lambda x: (f(x) * x).reshape(2, 2, 1) * Tensor(np.ones(3)))(x)  # columns
        (rg.grad(f)(x) ** 2).sum().backward()

    gc.collect()
    gc.disable()
    try:
        for tracked in (True, False):
            x = Tensor(np.array([[0.1, 0.2], [0.3, 0.4]]), requires_grad=tracked)
            seen.append(weakref.ref(x))
            if tracked:
                use(x)
            else:
                with rg.no_grad():
                    rg.hvp(f, x, x)
            del x
            alive = [reference() for reference in seen if reference() is not None]
            assert not alive
    finally:
        gc.enable()


def test_grad_frees_the_graph_during_backward(backend: Backend) -> None:
    """Only vjp and jacobian keep it."""
    x = Tensor(np.ones(3))
    with rg.no_grad():
        gradient = rg.grad(lambda x: (x * x).sum())(x)
    assert gradient.is_leaf and gradient._node is None


def custom_rule(xp: Any, a: Array) -> Any:
    out = xp.exp(a)
    return out, lambda g: xp.multiply(g, out)


def test_custom_ops_have_every_derivative(backend: Backend) -> None:
    op = rg.custom_op(custom_rule)
    f: Fn = lambda x: op(x * x)  # noqa: E731
    expected: Fn = lambda x: (x * x).exp()  # noqa: E731
    for _ in range(3):
        f, expected = rg.grad(f), torch.func.grad(expected)
        assert_close(f(Tensor(0.3)), expected(torch.tensor(0.3, dtype=torch.float64)), atol=1e-12)


class StraightThrough(torch.autograd.Function):
    """floor(a), with the gradient of `2 a`."""

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor) -> torch.Tensor:
        return a.floor()

    @staticmethod
    def backward(ctx: Any, *g: Any) -> Any:
        return g[0] * 2


@pytest.mark.parametrize("joint", [False, True])
def test_the_derivative_of_a_custom_op_is_its_pullback(backend: Backend, joint: bool) -> None:
    """In every mode and order, where the primitives of the forward have another derivative."""

    def rule(xp: Any, a: Array, b: Array) -> Any:
        def pull(g: Array) -> Array:
            return xp.multiply(g, 2)

        out = xp.multiply(xp.floor(a), b)
        return out, *([rg.Joint(lambda g, needs: (pull(g), None))] if joint else (pull, None))

    op = rg.custom_op(rule)
    ours: Fn = lambda x: (op(x, 1.0) ** 3).sum()  # noqa: E731
    theirs: Fn = lambda x: (StraightThrough.apply(x) ** 3).sum()  # noqa: E731
    x, v = np.array([1.3, 2.6]), np.array([0.5, -1.0])
    reference = torch.tensor(x, requires_grad=True)
    gradient = torch.autograd.grad(theirs(reference), reference, create_graph=True)[0]
    product = torch.autograd.grad(gradient @ torch.tensor(v), reference, create_graph=True)[0]
    third = torch.autograd.grad(product @ torch.tensor(v), reference)[0]

    given, direction = Tensor(x), Tensor(v)
    assert_close(rg.grad(ours)(given), gradient, atol=1e-12)
    assert_close(rg.jvp(ours, (given,), (direction,))[1], gradient @ torch.tensor(v), atol=1e-12)
    weights = Tensor([1.0, 2.0, 3.0])
    assert_close(rg.jacobian(lambda x: op(x[0], 1.0) * weights)(given)[:, 0], 2 * weights.numpy())  # in forward mode
    assert_close(rg.hessian(ours)(given) @ direction, product, atol=1e-12)
    assert_close(rg.hvp(ours, given, direction), product, atol=1e-12)
    times_v: Fn = lambda x: rg.hvp(ours, x, direction)  # noqa: E731
    assert_close(rg.grad(lambda x: (times_v(x) * direction).sum())(given), third, atol=1e-12)
    assert_close(rg.jvp(times_v, (given,), (direction,))[1], third, atol=1e-12)


def test_a_custom_op_broadcasts_in_forward_mode(backend: Backend) -> None:
    @rg.custom_op
    def product(xp: Any, a: Array, b: Array) -> Any:
        return xp.multiply(a, b), lambda g: xp.multiply(g, b), lambda g: xp.multiply(g, a)

    a, b = Tensor(rng(0).normal(size=(2, 3))), Tensor(rng(1).normal(size=3))
    for f, expected in ((product, lambda a, b: a * b), (lambda a, b: product(b, a), lambda a, b: a * b)):
        found = rg.jvp(f, (a, b), (a, b))[1]
        assert_close(found, rg.jvp(expected, (a, b), (a, b))[1], atol=1e-14)
        of_b = rg.jvp(lambda b, f=f: f(a, b), (b,), (b,))[1]
        assert_close(of_b, a * b, atol=1e-14)
