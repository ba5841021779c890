"""The autograd engine: backward, graph memory, hooks, no_grad and errors. The ops have test files of their own."""

import copy
import gc
import pickle
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import russellgrad as rg
from russellgrad import Tensor, custom_op, no_grad
from russellgrad.backend import Backend, load_backend
from tests.helpers import assert_close, check_against_torch, is_torch, module_of, once, rng, to_numpy
from tests.process import run_python

MIB = 1 << 20


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Disable the garbage collector: objects are freed by reference counting only."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def grad_of(x: Tensor) -> Any:
    assert x.grad is not None
    return x.grad


# --- Accumulation of gradients


def test_backward_accumulates_into_grad(backend: Backend) -> None:
    x = Tensor([2.0])
    (3 * x).backward()
    (x * x).backward()
    assert_close(x.grad, np.array([7.0]))
    x.zero_grad()
    assert x.grad is None


def test_accumulation_does_not_change_the_earlier_grad_array(backend: Backend) -> None:
    x = Tensor([2.0])
    (3 * x).backward()
    first = x.grad
    (3 * x).backward()
    assert_close(first, np.array([3.0]))
    assert_close(x.grad, np.array([6.0]))


def test_gradient_of_a_diamond_graph(backend: Backend) -> None:
    """Backward visits a tensor after all ops that use it, in any order of use."""

    def fn(x: Any) -> Any:
        a = x * 2
        b = a * x
        c = a + b
        return c * a + b * x

    check_against_torch(fn, fn, rng().normal(size=3))


def test_gradients_of_separate_graphs_accumulate_in_a_shared_leaf(backend: Backend) -> None:
    w = Tensor([3.0])
    for _ in range(2):
        (w * w).backward()
    assert_close(w.grad, np.array([12.0]))


def test_gradients_of_repeated_indices_accumulate(backend: Backend) -> None:
    x = Tensor([1.0, 2.0, 3.0])
    x[[0, 0, 0, 1]].sum().backward()
    assert_close(x.grad, np.array([3.0, 1.0, 0.0]))


def test_gradient_of_a_polynomial(backend: Backend) -> None:
    x = Tensor([2.0])
    y = x**2 + 3 * x + 1
    y.backward()
    assert_close(x.grad, np.array([7.0]))


def test_float32_stays_float32(backend: Backend) -> None:
    x = Tensor(np.ones((2, 3), np.float32))
    y = ((2 * x + 1.5) / 3 - np.float64(1.0)).tanh().mean() ** 2 * x.var()
    assert y.dtype == np.float32
    y.backward()
    assert backend.dtype(grad_of(x)) == np.float32


@pytest.mark.parametrize("symbol", ["+", "-", "*", "/", "**", "==", "!=", "<", "<=", ">", ">=", "@"])
def test_operators_with_an_array_on_the_left_return_tensors(backend: Backend, symbol: str) -> None:
    array = Tensor([1.0, 2.0]).data
    x = Tensor([3.0, 2.0])
    operate = eval(f"lambda a, b: a {symbol} b")
    out = operate(array, x)
    assert isinstance(out, Tensor)
    assert_close(out, np.asarray(operate(np.array([1.0, 2.0]), np.array([3.0, 2.0]))))
    if symbol not in ("@", "=="):
        assert isinstance(operate(1, x), Tensor)
        assert isinstance(operate(np.float64(1), x), Tensor)


def test_adding_a_tensor_to_an_array_in_place_raises(backend: Backend) -> None:
    total = Tensor([1.0]).data
    if is_torch(backend):  # PyTorch leaves the operator to Tensor, as in total = total + Tensor([2.0])
        total += Tensor([2.0])
        assert isinstance(total, Tensor) and total.requires_grad
        return
    with pytest.raises(TypeError):
        total += Tensor([2.0])  # an array cannot hold the gradient history


# --- Deep graphs


def deep(x: Tensor, n: int) -> Tensor:
    y = x
    for _ in range(n):
        y = y + 1.0
    return y


def test_backward_through_100_000_ops(backend: Backend) -> None:
    x = Tensor([1.0, 2.0])
    deep(x, 100_000).backward(Tensor([1.0, 3.0]))
    assert_close(x.grad, np.array([1.0, 3.0]))


def test_deleting_a_deep_graph_does_not_recurse(backend: Backend, no_collector: None) -> None:
    """Deletion must not recurse per node: a stack overflow would crash the process."""
    x = Tensor([1.0])
    y = deep(x, 100_000)
    node = weakref.ref(y._node)
    del y
    assert node() is None


# --- Memory, freed by reference counting only


def test_no_reference_cycles_after_backward(backend: Backend, no_collector: None) -> None:
    x, w = Tensor(np.ones((4, 4))), Tensor(np.ones((4, 4)))
    h = (x @ w).tanh()
    y = (rg.layer_norm(h) * h[::-1]).softmax().sum() + rg.cross_entropy(h, [0, 1, 2, 3])
    refs = [weakref.ref(thing) for thing in (x, w, h, y, x._node, w._node, h._node, y._node)]
    y.backward()
    refs.append(weakref.ref(x.grad))
    del x, w, h, y
    assert [ref() for ref in refs] == [None] * len(refs)


def test_no_reference_cycles_without_backward(backend: Backend, no_collector: None) -> None:
    x = Tensor(np.ones((4, 4)))
    array = weakref.ref(x.data)
    h = x.exp()
    out = weakref.ref(h.data)
    y = (h * x).sum()
    del x, h
    assert array() is not None  # the graph holds what its pullbacks need
    del y
    assert array() is None
    assert out() is None


def test_no_reference_cycles_after_an_error(backend: Backend, no_collector: None) -> None:
    x = Tensor(np.ones((4, 4)))
    array = weakref.ref(x.data)
    with pytest.raises(ValueError, match=r"^reshape: ") as caught:
        x.reshape(3, 3)
    with pytest.raises(ValueError, match=r"^linear: ") as caught:
        rg.linear(x, x[:2])
    del x, caught
    assert array() is None


def test_intermediate_arrays_are_freed_immediately(backend: Backend, no_collector: None) -> None:
    """The pullback of add captures no array, so only the tensor holds the result."""
    x = Tensor(np.ones(4))
    a = x + 1.0
    array = weakref.ref(a.data)
    b = a + 1.0
    del a
    assert array() is None
    b.backward(Tensor(np.ones(4)))


def test_unneeded_pullbacks_are_dropped(backend: Backend, no_collector: None) -> None:
    """In x * c only the gradient of c needs x's array. If c is a constant, the graph does not keep x's array."""
    x = Tensor(np.ones(4))
    a = x + 1.0
    array = weakref.ref(a.data)
    constant = Tensor(np.ones(4), requires_grad=False)
    y = a * constant
    del a
    assert array() is None
    y.backward(Tensor(np.ones(4)))
    assert_close(x.grad, np.ones(4))


def test_backward_frees_as_it_goes(backend: Backend, no_collector: None) -> None:
    """When the gradient reaches the first op, the arrays captured by later ops are already freed."""
    x = Tensor(np.ones(4))
    a = x.exp()
    b = a.exp()
    late = weakref.ref(b.data)
    y = (b * b).sum()
    del b
    seen: list[bool] = []
    a.register_hook(lambda g: seen.append(late() is None))
    y.backward()
    assert seen == [True]


def test_backward_frees_intermediate_gradients(backend: Backend, no_collector: None) -> None:
    x = Tensor(np.ones(4))
    a = x * 2.0
    b = a * 2.0
    y = (b * 2.0).sum()
    refs: list[weakref.ref[Any]] = []
    alive: list[bool] = []
    b.register_hook(lambda g: refs.append(weakref.ref(g)))
    x.register_hook(lambda g: alive.append(refs[0]() is not None))
    y.backward()
    assert alive == [False]


def test_each_pullback_is_freed_before_the_next_runs(backend: Backend, no_collector: None) -> None:
    dead: list[bool] = []

    @rg.custom_op
    def product(xp: Backend, a: Any, b: Any) -> Any:
        captured = weakref.ref(b)

        def pull_b(g: Any) -> Any:
            dead.append(captured() is None)
            return xp.multiply(g, a)

        return xp.multiply(a, b), lambda g: xp.multiply(g, b), pull_b

    x = Tensor(np.ones(4))
    product(x + 1.0, x + 2.0).backward(Tensor(np.ones(4)))
    assert dead == [True]


def test_an_accumulated_gradient_is_freed_immediately(backend: Backend, no_collector: None) -> None:
    """Once a gradient is added to the accumulated one, as at a residual connection, its array is freed."""
    parts: list[weakref.ref[Any]] = []
    dead: list[bool] = []

    @rg.custom_op
    def twice(xp: Backend, a: Any) -> Any:
        def pull(g: Any) -> Any:
            part = xp.multiply(g, 2)
            parts.append(weakref.ref(part))
            return part

        return xp.multiply(a, 2), pull

    x = Tensor(np.ones(4))
    a = x * 1.0
    a.register_hook(lambda g: dead.append(parts[0]() is None))
    (a + twice(a)).backward(Tensor(np.ones(4)))
    assert dead == [True]
    assert_close(x.grad, np.full(4, 3.0))


def test_a_chain_of_adds_keeps_no_intermediate_arrays(backend: Backend, no_collector: None) -> None:
    """100 adds of 1 MiB each. If nodes kept tensors alive, all 100 MiB would stay allocated."""
    if backend.name == "cupy" or is_torch(backend):
        pytest.skip("tracemalloc counts what Python and NumPy allocate, not what these arrays hold")
    x = Tensor(np.ones(MIB // 8))
    tracemalloc.start()
    try:
        y = x
        for _ in range(100):
            y = y + 1.0
        held, _ = tracemalloc.get_traced_memory()
        y.sum().backward()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1.5 * MIB
    assert peak < 5 * MIB


def test_backward_works_after_a_leaf_is_deleted(backend: Backend, no_collector: None) -> None:
    x, w = Tensor([2.0]), Tensor([3.0])
    y = x * w
    del w
    y.backward()
    assert_close(x.grad, np.array([3.0]))


def test_the_graph_keeps_no_tensor_alive(backend: Backend, no_collector: None) -> None:
    x = Tensor([2.0])
    a = x * 2.0
    tensor = weakref.ref(a)
    y = a * 3.0
    del a
    assert tensor() is None
    y.backward()
    assert_close(x.grad, np.array([6.0]))


# --- Freed and retained graphs

FREED = (
    r"^backward: the graph at 'multiply' was freed by an earlier backward\(\); "
    r"pass retain_graph=True to the earlier one$"
)


def test_a_second_backward_through_a_freed_graph_raises(backend: Backend) -> None:
    x = Tensor([2.0])
    y = x * x
    y.backward()
    with pytest.raises(RuntimeError, match=FREED):
        y.backward()
    assert_close(x.grad, np.array([4.0]))


def test_retain_graph_allows_a_second_loss_on_a_shared_graph(backend: Backend) -> None:
    x = Tensor([2.0])
    trunk = x * x
    first, second = trunk * 3.0, trunk.exp()
    first.backward(retain_graph=True)
    second.backward()
    assert_close(x.grad, np.array([12.0 + 4.0 * np.exp(4.0)]))
    again = trunk * 5.0
    with pytest.raises(RuntimeError, match=FREED):
        again.backward()


def test_retain_graph_allows_repeated_backward(backend: Backend) -> None:
    x = Tensor([1.0, 2.0])
    y = (rg.layer_norm(x, Tensor([2.0, 3.0])) * x).sum()
    y.backward(retain_graph=True)
    first = to_numpy(x.grad)
    y.backward(retain_graph=True)
    y.backward()
    assert_close(x.grad, 3 * first)


# --- Changes in place

CHANGED = r"^backward: an operand of '{}' was changed in place after it was used .*; run the forward pass again$"


def test_an_in_place_change_between_forward_and_backward_raises(backend: Backend) -> None:
    w, x = Tensor([2.0]), Tensor([3.0])
    y = w * x
    w.data -= 1.0
    with pytest.raises(RuntimeError, match=CHANGED.format("multiply")):
        y.backward()
    (w * x).backward()  # a new forward pass works
    assert_close(x.grad, np.array([1.0]))


def test_an_in_place_change_of_a_constant_raises(backend: Backend) -> None:
    """The gradient of x needs the constant's value from the forward pass."""
    x, constant = Tensor([3.0]), Tensor([2.0], requires_grad=False)
    y = x * constant
    constant.data *= 2.0
    with pytest.raises(RuntimeError, match=CHANGED.format("multiply")):
        y.backward()


@pytest.mark.parametrize("view", ["detach", "reshape", "T", "getitem", "squeeze", "expand_dims", "broadcast_to"])
def test_an_in_place_change_of_the_base_of_a_view_raises(backend: Backend, view: str) -> None:
    """A view shares the version counter of its base, also a view made under no_grad."""
    w, x = Tensor([[2.0, 2.0]]), Tensor([3.0])
    views = {
        "detach": lambda: w.detach(),
        "reshape": lambda: w.reshape(2),
        "T": lambda: w.T,
        "getitem": lambda: w[0],
        "squeeze": lambda: w.squeeze(),
        "expand_dims": lambda: w.expand_dims(0),
        "broadcast_to": lambda: w.broadcast_to(3, 2),
    }
    with no_grad():
        seen = views[view]()
    y = (x * seen).sum()
    w.data -= 1.0
    with pytest.raises(RuntimeError, match=CHANGED.format("multiply")):
        y.backward()


def test_replacing_data_is_not_an_in_place_change(backend: Backend) -> None:
    w, x = Tensor([2.0]), Tensor([3.0])
    y = w * x
    w.data = w.data - 1.0
    w.data -= 0.5  # changes the new array, which y does not use
    y.backward()
    assert_close(x.grad, np.array([2.0]))
    assert_close(w.grad, np.array([3.0]))


def test_in_place_changes_before_use_and_after_backward_are_allowed(backend: Backend) -> None:
    w = Tensor([2.0])
    for _ in range(3):
        w.zero_grad()
        (w * w).backward()
        w.data -= 0.25 * grad_of(w)
    assert_close(w, np.array([0.25]))


def test_changed_in_place_marks_a_partial_write(backend: Backend) -> None:
    w = Tensor([2.0, 3.0])
    y = w * w
    w.data[0] = 5.0
    w.changed_in_place()
    with pytest.raises(RuntimeError, match=CHANGED.format("multiply")):
        y.backward(Tensor([1.0, 1.0]))


def test_data_of_a_0d_tensor_takes_the_scalar_of_a_difference(backend: Backend) -> None:
    """NumPy's arithmetic on 0-d arrays gives scalars, not arrays."""
    x = Tensor(2.0)
    (x**2).backward()
    x.data = x.data - 0.25 * grad_of(x)
    assert backend.is_array(x.data)
    assert x.item() == 1.0
    assert x.requires_grad
    with pytest.raises(TypeError, match="got float; write"):
        x.data = 3.0


def test_setting_data_checks_backend_shape_and_dtype(backend: Backend) -> None:
    x = Tensor([1.0, 2.0])
    with pytest.raises(TypeError, match=rf"^data: must be an array of backend '{backend.name}', got list"):
        x.data = [1.0, 2.0]
    with pytest.raises(
        ValueError, match=r"^data: this tensor tracks gradients as \(2,\) float64; \(1,\) float64 needs"
    ):
        x.data = Tensor([1.0]).data
    with pytest.raises(ValueError, match=r"\(2,\) float32 needs a new Tensor"):
        x.data = Tensor([1.0, 2.0], dtype="float32").data
    free = Tensor([1.0], requires_grad=False)
    free.data = x.data
    assert free.shape == (2,)


# --- Gradients share no memory


def test_gradients_share_no_memory(backend: Backend) -> None:
    """The pullbacks of add return the upstream array itself and that of reshape a view of it; .grad is a copy."""
    a, b, c = Tensor([1.0, 2.0]), Tensor([3.0, 4.0]), Tensor([[5.0], [6.0]])
    given = Tensor([1.0, 1.0]).data
    (a + b + c.reshape(2)).backward(given)
    assert_close(a.grad, np.array([1.0, 1.0]))
    grad_of(a)[...] = 100.0
    given *= 10.0
    assert_close(b.grad, np.array([1.0, 1.0]))
    assert_close(c.grad, np.array([[1.0], [1.0]]))


def test_backward_of_a_leaf_accumulates_a_copy_of_the_gradient(backend: Backend) -> None:
    x = Tensor([1.0, 2.0])
    given = Tensor([3.0, 4.0]).data
    x.backward(given)
    given *= 2.0
    x.backward(given)
    assert_close(x.grad, np.array([9.0, 12.0]))


def test_the_gradient_of_a_sum_is_writable(backend: Backend) -> None:
    """The pullback of sum returns a broadcast view; .grad is a full array."""
    x = Tensor(np.ones((3, 4)))
    x.sum().backward()
    grad_of(x)[0] = 2.0
    assert_close(x.grad, np.array([[2.0] * 4, [1.0] * 4, [1.0] * 4]))


# --- backward's argument


def test_backward_checks_its_gradient_argument(backend: Backend) -> None:
    def make() -> Tensor:
        return Tensor([1.0, 2.0]) * 2.0

    with pytest.raises(
        RuntimeError, match=r"^backward: a tensor of shape \(2,\) needs gradient=, an array of that shape"
    ):
        make().backward()
    with pytest.raises(ValueError, match=r"^backward: gradient has shape \(1,\), this tensor \(2,\); they must agree"):
        make().backward(Tensor([1.0]))
    with pytest.raises(ValueError, match=r"^backward: gradient has shape \(\), this tensor \(2,\)"):
        make().backward(Tensor(1.0).data)
    for wrong in ([1.0, 1.0], 1.0, "1"):
        with pytest.raises(
            TypeError, match=rf"^backward: gradient must be a Tensor or an array of backend '{backend.name}'"
        ):
            make().backward(wrong)
    for tensor in (Tensor([1.0], requires_grad=False), Tensor([1, 2]) > 1):
        with pytest.raises(RuntimeError, match=r"^backward: this tensor tracks no gradients"):
            tensor.backward()


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_backward_of_one_element_needs_no_gradient(backend: Backend, shape: tuple[int, ...]) -> None:
    x = Tensor(np.full(shape, 3.0))
    (x * x).backward()
    assert_close(x.grad, np.full(shape, 6.0))


def test_backward_casts_its_gradient(backend: Backend) -> None:
    x = Tensor([1.0, 2.0], dtype="float32")
    (x * 2.0).backward(Tensor([1.0, 2.0]))
    assert backend.dtype(grad_of(x)) == np.float32


# --- Two backends


@pytest.fixture
def twin(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """A second backend: the same functions under another name."""
    monkeypatch.setitem(sys.modules, "tests.twin_backend", module_of(backend, "twin"))
    return load_backend("tests.twin_backend")


def test_mixing_backends_raises(backend: Backend, twin: Backend) -> None:
    here, there = Tensor([1.0]), Tensor([1.0], backend=twin)
    message = f"operands live on '{backend.name}' and 'twin'; move one with .to\\('twin'\\)"
    for name, call in {
        "add": lambda: here + there,
        "where": lambda: rg.where(there > 0, here, here),
        "getitem": lambda: here[Tensor(np.array([0]), backend=twin)],
        "masked_fill": lambda: here.masked_fill(there > 0, 1.0),
        "concatenate": lambda: Tensor.concatenate([here, there]),
        "backward": lambda: here.backward(there),
    }.items():
        with pytest.raises(TypeError, match=rf"^{name}: {message}"):
            call()


def test_to_is_differentiable(backend: Backend, twin: Backend) -> None:
    x = Tensor([2.0, 3.0])
    y = (x * x).to(twin)
    assert y.backend is twin
    assert x.to(backend) is x
    (y * Tensor([1.0, 10.0], backend=twin)).backward(Tensor([1.0, 1.0], backend=twin))
    assert_close(x.grad, np.array([4.0, 60.0]))


def test_where_with_numbers_uses_the_backend_of_the_mask(backend: Backend, twin: Backend) -> None:
    assert rg.where(Tensor([1.0], backend=twin) > 0, 1.0, 0.0).backend is twin


# --- Hooks


def test_hooks_receive_the_accumulated_gradient_once(backend: Backend) -> None:
    x = Tensor([2.0])
    seen: list[float] = []
    a = x * 1.0
    a.register_hook(lambda g: seen.append(to_numpy(g).item()))
    (a * 3.0 + a * 4.0).backward()
    assert seen == [7.0]


def test_hooks_run_in_order_and_replace_the_gradient(backend: Backend) -> None:
    x = Tensor([2.0, 3.0])
    seen: list[Any] = []

    def watch(g: Any) -> None:
        seen.append(to_numpy(g).tolist())

    x.register_hook(lambda g: g * 2.0)
    x.register_hook(watch)
    x.register_hook(lambda g: g + 1.0)
    x.backward(Tensor([1.0, 5.0]))
    assert seen == [[2.0, 10.0]]
    assert_close(x.grad, np.array([3.0, 11.0]))


def test_hooks_on_0d_tensors(backend: Backend) -> None:
    x = Tensor(2.0)
    y = x * 3.0
    y.register_hook(lambda g: g * 2.0)
    x.register_hook(lambda g: g * 5.0)
    y.backward()
    assert_close(x.grad, np.array(30.0))
    assert backend.is_array(x.grad)


def test_hooks_receive_arrays_of_the_backend(backend: Backend) -> None:
    seen: list[bool] = []
    x = Tensor(2.0)
    y = x * x
    for tensor in (x, y):
        tensor.register_hook(lambda g: seen.append(backend.is_array(g)))
    (y * y).backward()
    assert seen == [True, True]


def test_register_hook_returns_a_function_that_removes_the_hook(backend: Backend) -> None:
    x = Tensor([2.0])
    remove_first = x.register_hook(lambda g: g * 2.0)
    remove_second = x.register_hook(lambda g: g * 3.0)
    remove_first()
    remove_first()  # removing it again is no error
    x.register_hook(lambda g: g * 5.0)
    x.backward()
    assert_close(x.grad, np.array([15.0]))
    remove_second()
    x.backward()
    assert_close(x.grad, np.array([20.0]))


def test_removing_a_hook_twice_does_not_remove_a_later_one(backend: Backend) -> None:
    x = Tensor([2.0])
    remove = x.register_hook(lambda g: g * 2.0)
    remove()
    x.register_hook(lambda g: g * 5.0)
    remove()
    x.backward()
    assert_close(x.grad, np.array([5.0]))


@pytest.mark.parametrize("wrong", [None, 2.0, "print", [print], Tensor([1.0], backend="numpy")])
def test_what_is_no_function_raises(backend: Backend, wrong: Any) -> None:
    kind = type(wrong).__name__
    for x in (Tensor([1.0]), Tensor([1.0]) * 2):
        with pytest.raises(TypeError, match=f"^register_hook: needs a function of the gradient, got a {kind}"):
            x.register_hook(wrong)
        x.sum().backward()
    with pytest.raises(TypeError, match=f"^custom_op: needs a rule, .* got a {kind}"):
        custom_op(wrong)
    with pytest.raises(TypeError, match=f"^compile_step: needs a function, got a {kind}"):
        rg.compile_step(wrong)


def test_a_hook_changes_the_gradient_of_earlier_tensors(backend: Backend) -> None:
    x = Tensor([2.0])
    a = x * 3.0
    a.register_hook(lambda g: g * 10.0)
    (a * 1.0).backward()
    assert_close(x.grad, np.array([30.0]))


@pytest.mark.parametrize("wrong", [lambda g: g[:1], lambda g: [1.0, 2.0], lambda g: Tensor(g), lambda g: 1.0])
def test_a_hook_with_a_wrong_return_value_raises(backend: Backend, wrong: Any) -> None:
    x = Tensor([1.0, 2.0])
    x.register_hook(wrong)
    with pytest.raises(ValueError, match=rf"^register_hook: the hook of 'leaf' must return None or an array of backend "
                                         rf"'{backend.name}' and shape \(2,\)"):  # fmt: skip
        x.backward(Tensor([1.0, 1.0]))


def test_register_hook_requires_a_tensor_that_tracks_gradients(backend: Backend) -> None:
    with pytest.raises(RuntimeError, match=r"^register_hook: this tensor tracks no gradients"):
        Tensor([1]).astype("int64").register_hook(lambda g: None)


def test_retain_grad_keeps_the_gradient_of_an_intermediate(backend: Backend) -> None:
    x = Tensor([2.0])
    a, b = x * 3.0, x * 5.0
    a.retain_grad()
    (a * b).backward()
    assert_close(a.grad, np.array([10.0]))
    with pytest.warns(
        UserWarning, match=r"^grad: this tensor is not a leaf \(it comes from 'multiply'\).*retain_grad\(\)"
    ):
        assert b.grad is None
    x.retain_grad()  # no effect on a leaf
    with pytest.raises(RuntimeError, match=r"^retain_grad: this tensor tracks no gradients"):
        a.detach().retain_grad()


# --- Without gradients


def test_detach_shares_the_data_and_has_no_history(backend: Backend) -> None:
    x = Tensor([2.0])
    y = (x * x).detach()
    assert (y.requires_grad, y.is_leaf) == (False, True)
    (x * y).backward()
    assert_close(x.grad, np.array([4.0]))
    assert x.detach().data is x.data


def test_no_grad_as_a_context_manager(backend: Backend) -> None:
    x = Tensor([2.0])
    with no_grad():
        y = x * x
        made = Tensor([1.0])
        asked = Tensor([1.0], requires_grad=True)
        with no_grad():
            pass
        z = x * x  # the end of the inner context keeps the outer one in effect
    assert [t.requires_grad for t in (y, made, asked, z, x * x)] == [False, False, True, False, True]


def test_no_grad_ends_after_an_exception(backend: Backend) -> None:
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert (Tensor([1.0]) * 2.0).requires_grad


def test_no_grad_as_a_decorator(backend: Backend) -> None:
    @no_grad()
    def square(x: Tensor, depth: int = 0) -> Tensor:
        return x * x if depth == 0 else square(x, depth - 1)

    x = Tensor([2.0])
    assert not square(x, depth=2).requires_grad
    assert not square(x).requires_grad  # the decorator can be used again
    assert (x * x).requires_grad


def test_no_grad_as_a_decorator_in_two_threads(backend: Backend) -> None:
    """Each call restores the grad mode of its thread, in either order of ending."""
    barrier = threading.Barrier(2, timeout=20)
    errors: list[BaseException] = []

    @no_grad()
    def meet(first: bool) -> None:
        barrier.wait()  # both are inside
        if not first:
            barrier.wait()

    def run(first: bool) -> None:
        try:
            meet(first)
            if first:
                barrier.wait()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(first,)) for first in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_requires_grad_can_be_set_on_leaves_only(backend: Backend) -> None:
    x = Tensor([2.0], requires_grad=False)
    assert not (x * x).requires_grad
    x.requires_grad = True
    y = x * x
    y.backward()
    assert_close(x.grad, np.array([4.0]))
    with pytest.raises(RuntimeError, match=r"^requires_grad: can only be set on a leaf; use .detach\(\)"):
        y.requires_grad = False
    x.requires_grad = False
    assert not (x * x).requires_grad


def test_ints_and_bools_never_track_gradients(backend: Backend) -> None:
    for data in (np.array([1, 2]), [True, False]):
        x = Tensor(data)
        assert not x.requires_grad
        with pytest.raises(
            TypeError, match=rf"^requires_grad: only float tensors track gradients, this one is {x.dtype}"
        ):
            x.requires_grad = True
        with pytest.raises(TypeError, match=r"^requires_grad: only float tensors track gradients"):
            Tensor(data, requires_grad=True)


def test_piecewise_constant_ops_track_no_gradients(backend: Backend) -> None:
    x = Tensor([1.5, 2.5])
    for y in (x > 2.0, x.argmax(), x.astype("int64"), x == x):
        assert not y.requires_grad


def test_deepcopy_copies_leaves_only(backend: Backend) -> None:
    x = Tensor([1.0, 2.0], label="weight")
    (x * x).sum().backward()
    y = copy.deepcopy(x)
    assert (y.label, y.requires_grad, y.is_leaf, y.grad) == ("weight", True, True, None)
    y.data -= 1.0
    assert_close(x, np.array([1.0, 2.0]))
    shared = copy.deepcopy([x, x])
    assert shared[0] is shared[1]
    assert not copy.deepcopy(Tensor([1.0], requires_grad=False)).requires_grad
    with pytest.raises(RuntimeError, match=r"^deepcopy: only leaf tensors can be copied; call .detach\(\) first"):
        copy.deepcopy(x * x)


# --- Errors in rules


def test_a_gradient_of_the_wrong_shape_raises(backend: Backend) -> None:
    """(3, 2) has as many elements as (2, 3), so a reshape would hide the error."""

    @rg.custom_op
    def wrong(xp: Backend, a: Any, *, shape: tuple[int, ...]) -> Any:
        return xp.multiply(a, 1), lambda g: xp.zeros(shape, "float64")

    for shape in ((3, 2), (3,), (), (2, 1), (5, 2, 2)):
        x = Tensor(np.ones((2, 3)))
        with pytest.raises(
            ValueError, match=r"^backward: 'wrong' gave a gradient of shape .* for an operand of shape \(2, 3\)"
        ):
            wrong(x, shape=shape).sum().backward()


def test_a_rule_must_return_a_pullback_for_each_operand(backend: Backend) -> None:
    @rg.custom_op
    def lazy(xp: Backend, a: Any, b: Any) -> Any:
        return xp.add(a, b), lambda g: g

    with pytest.raises(TypeError, match=r"^lazy: the rule has 2 operands but returned 1 pullbacks"):
        lazy(Tensor([1.0]), Tensor([1.0]))


def test_a_pullback_that_is_no_function_raises(backend: Backend) -> None:
    @rg.custom_op
    def eager(xp: Backend, a: Any) -> Any:
        return xp.multiply(a, a), xp.multiply(a, 2)  # lacks the lambda

    with pytest.raises(TypeError, match=r"^eager: a pullback must be None or a function of the output's gradient"):
        eager(Tensor([1.0, 2.0]))

    @rg.custom_op
    def half_eager(xp: Backend, a: Any, b: Any) -> Any:
        return xp.multiply(a, b), lambda g: xp.multiply(g, b), a

    a, b = Tensor([1.0, 2.0]), Tensor([3.0, 4.0])
    with pytest.raises(TypeError, match=r"^half_eager: a pullback must be None or a function"):
        half_eager(a, b)
    half_eager(a, Tensor([3.0, 4.0], requires_grad=False)).sum().backward()  # the pullback of b is not needed
    assert to_numpy(a.grad).tolist() == [3.0, 4.0]


def test_torch_tensors_as_operands_raise(backend: Backend) -> None:
    theirs = torch.ones(1, requires_grad=True)
    with pytest.raises(
        TypeError, match=r"^multiply: (cannot take a torch.Tensor|this torch.Tensor requires gradients)"
    ):
        Tensor([1.0]) * theirs


@once
def test_a_deep_graph_does_not_fail_at_interpreter_exit() -> None:
    """At interpreter exit, modules are torn down in arbitrary order. Nothing may be printed or raised."""
    code = "from russellgrad import Tensor\ny = x = Tensor([1.0])\nfor _ in range(50_000): y = y * x\n"
    done = run_python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")


# --- Arrays changed between forward and backward


@pytest.mark.parametrize(
    "function",
    [Tensor.exp, Tensor.sqrt, Tensor.tanh, Tensor.sigmoid, Tensor.softmax, lambda t: 1 / t, lambda t: t.max()],
)
def test_an_in_place_change_of_the_output_raises(backend: Backend, function: Callable[[Tensor], Tensor]) -> None:
    """These pullbacks capture the output instead of the operand."""
    x = Tensor([1.0, 2.0])
    y = function(x)
    y.data *= 2
    with pytest.raises(RuntimeError, match="was changed in place after it was used"):
        y.backward(Tensor(np.ones(y.shape)))


def test_the_caller_may_change_masks_indices_and_array_operands(backend: Backend) -> None:
    """Ops copy masks, indices and array operands, so later changes have no effect."""
    index, mask, factor = np.array([0, 0]), np.array([True, False, False]), Tensor([2.0, 3.0, 4.0]).data
    x = Tensor([1.0, 2.0, 3.0])
    y = x[index].sum() + x.masked_fill(mask, 0.0).sum() + (x * factor).sum()
    index[:] = 2
    mask[:] = True
    factor *= 100
    y.backward()
    assert_close(x.grad, np.array([2.0 + 0 + 2, 1 + 3, 1 + 4]))


def test_a_hook_that_writes_in_place_changes_no_other_gradient(backend: Backend) -> None:
    def spoil(g: Any) -> None:
        g *= 10

    a, b = Tensor([1.0]), Tensor([2.0])
    a.register_hook(spoil)
    upstream = Tensor([1.0]).data
    (a + b).backward(upstream)
    for gradient in (a.grad, b.grad, upstream):
        assert_close(gradient, np.ones(1))


def test_a_rule_must_return_a_tuple(backend: Backend) -> None:
    bare = custom_op(lambda xp, a: xp.exp(a))
    with pytest.raises(TypeError, match=r"a rule must return a tuple \(output, pullback, ...\), not a"):
        bare(Tensor([1.0, 2.0]))


def test_a_copy_has_its_own_gradient(backend: Backend) -> None:
    a = Tensor([1.0])
    b = copy.copy(a)
    (b * 2).sum().backward()
    assert a.grad is None
    assert_close(b.grad, np.array([2.0]))
    with pytest.raises(TypeError, match="a Tensor is not pickled; keep"):
        pickle.dumps(a)


POSTPONED = """
from __future__ import annotations
from russellgrad.backend import Array, Backend
from russellgrad.rules import Float, View

def double(xp: Backend, a: Float) -> View:
    return xp.multiply(a, 2), lambda g: xp.multiply(g, 2)
"""


def test_marks_of_a_rule_with_postponed_annotations_are_read(backend: Backend) -> None:
    namespace: dict[str, Any] = {"__name__": __name__}
    exec(POSTPONED, namespace)
    double = namespace["double"]
    assert rg.rules.marks(double) == (True, True)
    assert custom_op(double)(Tensor(np.array([1, 2]))).dtype == "float64"


def test_a_custom_op_is_freed_with_what_it_captures(backend: Backend) -> None:
    class Captured:
        factor = 2.0

    def run() -> weakref.ref[Captured]:
        captured = Captured()

        def scale(xp: Backend, a: Any) -> Any:
            return xp.multiply(a, captured.factor), lambda g: xp.multiply(g, captured.factor)

        custom_op(scale)(Tensor([1.0])).backward()
        return weakref.ref(captured)

    watched = run()
    gc.collect()
    assert watched() is None
