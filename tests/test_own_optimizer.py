"""Optimizers that define `update` equal the built-in ones in every mode; what `update` gets wrong is an error."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import russellgrad as rg
from russellgrad import Tensor, compile_step, use_backend
from russellgrad.backend import Backend
from russellgrad.base_optimizer import Optimizer
from russellgrad.optimizer import AdamWOptimizer, SGDOptimizer, cosine_with_warmup, supports_flat
from tests.core_backend import core_module, read_only_module, thin_module
from tests.helpers import rng

SHAPES = [(3, 4), (5,), (), (2, 1, 3)]
Build = Callable[..., Optimizer]


class SGD(Optimizer):
    """SGD with Nesterov momentum."""

    elementwise = True

    def __init__(self, params: Any, lr: Any, *, flat: bool = False, momentum: float = 0.9, weight_decay: float = 0.1):
        super().__init__(params, lr, flat=flat, momentum=momentum, weight_decay=weight_decay)

    def update(self, value: Tensor, grad: Tensor, state: dict[str, Any], options: dict[str, Any]) -> Tensor:
        grad = grad + options["weight_decay"] * value
        state["velocity"] = options["momentum"] * state["velocity"] + grad if state else grad
        return value - options["lr"] * (grad + options["momentum"] * state["velocity"])


class Adam(Optimizer):
    """AdamW. The 0-d entries are 1 - beta^t."""

    elementwise = True

    def __init__(
        self, params: Any, lr: Any, *, flat: bool = False, betas: Any = (0.9, 0.99), weight_decay: float = 0.1
    ):
        super().__init__(params, lr, flat=flat, betas=betas, weight_decay=weight_decay)

    def update(self, value: Tensor, grad: Tensor, state: dict[str, Any], options: dict[str, Any]) -> Tensor:
        if not state:
            state.update(m=rg.zeros_like(value), v=rg.zeros_like(value))
            state.update(a=rg.zeros_like(options["lr"]), b=rg.zeros_like(options["lr"]))
        beta1, beta2 = options["betas"]
        state["m"] = beta1 * state["m"] + (1 - beta1) * grad
        state["v"] = beta2 * state["v"] + (1 - beta2) * grad * grad
        state["a"], state["b"] = beta1 * state["a"] + (1 - beta1), beta2 * state["b"] + (1 - beta2)
        value = value * (1 - options["lr"] * options["weight_decay"])
        return value - options["lr"] / state["a"] * state["m"] / ((state["v"] / state["b"]).sqrt() + 1e-8)


class ByParameter(Adam):
    """With flat=True, it gets one parameter at a time."""

    elementwise = False


def built_in(own: type[Optimizer], params: Any, lr: Any, *, flat: bool = False, **options: Any) -> Optimizer:
    if own is SGD:
        return SGDOptimizer(
            params, lr, flat=flat, **{"momentum": 0.9, "weight_decay": 0.1, "nesterov": True, **options}
        )
    return AdamWOptimizer(params, lr, flat=flat, **{"betas": (0.9, 0.99), "weight_decay": 0.1, **options})


OWN: list[type[Optimizer]] = [SGD, Adam, ByParameter]


def parameters(dtype: str = "float64") -> list[Tensor]:
    return [Tensor(rng(i).normal(size=shape).astype(dtype), requires_grad=True) for i, shape in enumerate(SHAPES)]


def groups(params: list[Tensor]) -> list[dict[str, Any]]:
    return [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.0}]


def take_steps(optimizer: Optimizer, steps: range, max_norm: float | None, skip: bool) -> None:
    for step in steps:
        draws = rng(1000 + step)
        for i, p in enumerate(optimizer.params):
            g = draws.normal(size=p.shape).astype("float32" if p.dtype.itemsize < 4 else str(p.dtype))
            p.grad = None
            if not (skip and i == 2 and step % 3 == 0):
                p.grad = p.backend.astype(p.backend.asarray(g), str(p.dtype))
        optimizer.step(max_norm)


def check_equal(ours: Optimizer, theirs: Optimizer, atol: float = 1e-12) -> None:
    for p, q in zip(ours.params, theirs.params, strict=True):
        assert p.dtype == q.dtype
        np.testing.assert_allclose(
            p.numpy().astype("float64"), q.numpy().astype("float64"), rtol=0, atol=atol, strict=True
        )


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("own", OWN)
def test_100_steps_equal_those_of_the_built_in_optimizer(
    backend: Backend, own: type[Optimizer], flat: bool, max_norm: float | None
) -> None:
    """With groups, a schedule, clipping, and steps in which a parameter has no gradient."""
    if flat and not supports_flat(backend):
        pytest.skip("writes nothing in place")
    ours, theirs = (
        build(groups(parameters()), lr=cosine_with_warmup(1e-2, 5, 100), flat=flat)
        for build in (own, lambda *args, **kwargs: built_in(own, *args, **kwargs))
    )
    for optimizer in (ours, theirs):
        take_steps(optimizer, range(100), max_norm, skip=not flat)
    check_equal(ours, theirs)


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 2e-6), ("float16", 2e-3), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("own", OWN)
def test_other_dtypes_equal_those_of_the_built_in_optimizer(
    backend: Backend, own: type[Optimizer], flat: bool, dtype: str, atol: float
) -> None:
    """In half precision by a float32 copy: updates far below the precision of the parameter add up."""
    if dtype not in backend.float_dtypes():
        pytest.skip(f"{backend.name} has no {dtype}")
    ours = own(groups(parameters(dtype)), lr=1e-5 if dtype != "float32" else 1e-2, flat=flat)
    theirs = built_in(own, groups(parameters(dtype)), lr=ours.lr, flat=flat)
    for optimizer in (ours, theirs):
        take_steps(optimizer, range(30), 1.0, skip=False)
    check_equal(ours, theirs, atol)
    for mine, other in zip(ours.state_dict()["state"], theirs.state_dict()["state"], strict=True):
        if dtype != "float32":
            assert str(mine["master"].dtype) == "float32"
            np.testing.assert_allclose(mine["master"], other["master"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
@pytest.mark.parametrize("formats", [(False, False), (True, True), (False, True), (True, False)])
@pytest.mark.parametrize("own", OWN)
def test_a_loaded_state_continues_bitwise(
    backend: Backend, own: type[Optimizer], formats: tuple[bool, bool], dtype: str
) -> None:
    optimizer = own(groups(parameters(dtype)), lr=1e-2, flat=formats[0])
    take_steps(optimizer, range(5), 1.0, skip=False)
    state = copy.deepcopy(optimizer.state_dict())
    entries = {"velocity"} if own is SGD else {"m", "v", "a", "b"}
    for p, entry in zip(optimizer.params, state["state"], strict=True):
        assert set(entry) == entries | ({"master"} if dtype == "float16" else set())
        assert all(isinstance(x, np.ndarray) and x.shape in (p.shape, ()) for x in entry.values())
    copies = [Tensor(p.numpy(), requires_grad=True) for p in optimizer.params]
    resumed = own(groups(copies), lr=1e-2, flat=formats[1])
    resumed.load_state_dict(state)
    for each in (optimizer, resumed):
        take_steps(each, range(5, 10), 1.0, skip=False)
    if formats[0] == formats[1]:
        assert [p.numpy().tobytes() for p in optimizer.params] == [p.numpy().tobytes() for p in resumed.params]
    check_equal(optimizer, resumed, 1e-12 if dtype == "float64" else 1e-3)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("own", OWN)
def test_a_compiled_step_equals_the_plain_one(backend: Backend, own: type[Optimizer], flat: bool, dtype: str) -> None:
    """With a learning rate that changes in each replay; a state that is loaded between replays is used."""
    runs = []
    for wrap in (lambda step: step, compile_step):
        params = parameters(dtype)
        optimizer = own(groups(params), lr=lambda taken: 0.01 * (taken + 1), flat=flat)

        def work(x: Tensor, params: Any = params, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            sum((x * p**2).sum() for p in params).backward()
            norm: Tensor = optimizer.step(max_norm=0.5)
            return norm

        step, norms = wrap(work), []
        for i in range(8):
            norms.append(step(Tensor(np.array(i + 1.0, dtype), requires_grad=False)).item())
            if i == 5:
                state = copy.deepcopy(optimizer.state_dict())
                for entries in state["state"]:
                    entries.update({name: x / 2 for name, x in entries.items() if name in ("velocity", "m")})
                optimizer.load_state_dict(state)
        runs.append((norms, [p.numpy().tobytes() for p in params], optimizer.steps_taken))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("make", [core_module, read_only_module, thin_module])
@pytest.mark.parametrize("own", OWN)
def test_backends_that_write_nothing_in_place(make: Callable[..., Any], own: type[Optimizer]) -> None:
    with use_backend(make("own_optimizer_core")) as core:
        ours = own(groups(parameters()), lr=cosine_with_warmup(1e-2, 5, 20))
        before = ours.params[0].data
        take_steps(ours, range(10), 0.5, skip=True)
        np.testing.assert_array_equal(core.to_host(before), rng(0).normal(size=SHAPES[0]))
        resumed = own(groups([Tensor(p.numpy()) for p in ours.params]), lr=cosine_with_warmup(1e-2, 5, 20))
        resumed.load_state_dict(copy.deepcopy(ours.state_dict()))
        take_steps(ours, range(10, 20), 0.5, skip=True)
        take_steps(resumed, range(10, 20), 0.5, skip=True)
    with use_backend("numpy"):
        theirs = built_in(own, groups(parameters()), lr=cosine_with_warmup(1e-2, 5, 20))
        take_steps(theirs, range(20), 0.5, skip=True)
    check_equal(ours, theirs)
    check_equal(resumed, theirs)


# --- Aliases, and states of other shapes


def own_optimizer(update: Callable[..., Any], **attributes: Any) -> type[Optimizer]:
    return type("Own", (Optimizer,), {"update": lambda self, *args: update(*args), **attributes})


def run_own(update: Callable[..., Any], steps: int = 1, shape: tuple[int, ...] = (2, 3), **options: Any) -> Optimizer:
    p = Tensor(np.ones(shape))
    optimizer = own_optimizer(update, **options.pop("attributes", {}))([p], lr=0.5, **options)
    for step in range(steps):
        p.grad = p.backend.asarray(np.full(shape, step + 1.0))
        optimizer.step()
    return optimizer


def test_entries_that_share_memory_are_kept_apart(backend: Backend) -> None:
    """The state may hold the value, the gradient and views of them, and entries may be exchanged."""

    def update(value: Tensor, grad: Tensor, state: dict[str, Any], options: dict[str, Any]) -> Tensor:
        if not state:
            state.update(one=grad, two=grad, value=value, view=value.T, older=rg.zeros_like(value))
        else:
            state["older"], state["one"], state["two"] = state["one"], state["two"] + 1, state["older"]
            state["value"], state["view"] = value, value.T
        return value - grad if state["one"] is not grad else value

    optimizer = run_own(update, steps=4)
    (found,) = optimizer.state_dict()["state"]
    value, one, two, older = 1.0, 1.0, 1.0, 0.0
    previous = value
    for step in range(2, 5):
        older, one, two = one, two + 1, older
        previous, value = value, value - step
    expected = {"one": one, "two": two, "older": older, "value": previous}
    for name, number in expected.items():
        np.testing.assert_array_equal(found[name], np.full((2, 3), number), err_msg=name)
    np.testing.assert_array_equal(found["view"], np.full((3, 2), previous))
    np.testing.assert_array_equal(optimizer.params[0].numpy(), np.full((2, 3), value))


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("n_steps", [0, 1])
def test_a_state_of_parameters_that_took_no_step_loads(backend: Backend, flat: bool, n_steps: int) -> None:
    """In half precision: it has no float32 copy."""
    params = [Tensor(np.ones(2, "float16")) for _ in range(2)]
    optimizer = SGDOptimizer(params, 0.5, flat=flat and n_steps == 0)
    params[0].grad = backend.asarray(np.ones(2, "float16"))
    if n_steps:
        optimizer.step()
    other = SGDOptimizer(params, 0.5, flat=optimizer.flat_grad is not None)
    other.load_state_dict(optimizer.state_dict())
    params[1].grad = backend.asarray(np.ones(2, "float16"))
    other.step()
    assert [p.tolist() for p in params] == [[0.5 - 0.5 * n_steps] * 2, [0.5] * 2]


class FailsAtTheSecond(Optimizer):
    """Raises for parameters of the value 2."""

    def update(self, value: Tensor, grad: Tensor, state: dict[str, Any], options: dict[str, Any]) -> Tensor:
        if value.item() == 2:
            raise KeyError("second")
        return value - options["lr"] * grad


def test_a_failure_in_the_middle_of_a_step_is_not_hidden_from_backward(backend: Backend) -> None:
    """A backward pass that needs the old value of a parameter that was updated raises."""
    first, second = Tensor(1.0), Tensor(2.0)
    optimizer = FailsAtTheSecond([first, second], 0.1)
    loss = first * first * first + second
    loss.backward(retain_graph=True)
    with pytest.raises(KeyError, match="second"):
        optimizer.step()
    assert optimizer.steps_taken == 0 and first.item() == pytest.approx(0.7) and second.item() == 2
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


@pytest.mark.parametrize(
    "build", [lambda p: SGDOptimizer(p, 1.0), lambda p: SGD(p, 1.0, momentum=0.0, weight_decay=0.0)], ids=["SGD", "own"]
)
def test_a_change_of_a_parameter_without_a_gradient_is_not_lost(backend: Backend, build: Build) -> None:
    """In half precision, also if another parameter was updated in between: the float32 copy is made again."""
    first, second = (Tensor(np.ones(2, "float16")) for _ in range(2))
    optimizer = build([first, second])
    for p in (first, second):
        p.grad = backend.zeros((2,), "float16")
    optimizer.step()
    second.data = backend.asarray(np.full(2, 5, "float16"))
    second.grad = None
    optimizer.step()  # of the first
    second.grad = backend.asarray(np.ones(2, "float16"))
    optimizer.step()
    assert second.tolist() == [4, 4]


def test_the_old_value_may_be_returned(backend: Backend) -> None:
    """As in an average of earlier values: the array that is returned is overwritten in the same step."""

    def update(value: Tensor, grad: Tensor, state: dict[str, Any], options: dict[str, Any]) -> Tensor:
        last = state.get("last", value)
        state["last"] = value - grad
        return last

    optimizer = run_own(update, steps=3)
    np.testing.assert_array_equal(optimizer.params[0].numpy(), np.full((2, 3), -1.0))  # 1, 0, -1


def test_a_state_of_other_shapes_and_numbers(backend: Backend) -> None:
    """As of Adafactor: a row and a column for a matrix. A number counts the steps."""

    def update(value: Tensor, grad: Tensor, state: dict[str, Any], options: dict[str, Any]) -> Tensor:
        if not state:
            state.update(row=rg.zeros((2,)), column=rg.zeros((3,)), steps=0, mask=grad > 0)
        state["row"], state["column"] = state["row"] + grad.sum(axis=1), state["column"] + grad.sum(axis=0)
        state["steps"] += 1
        return value - options["lr"] * grad

    optimizer = run_own(update, steps=3)
    (state,) = optimizer.state_dict()["state"]
    assert state["steps"] == 3 and state["mask"].dtype == bool
    np.testing.assert_array_equal(state["row"], np.full(2, 18.0))
    other = run_own(update)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    (loaded,) = other.state_dict()["state"]
    assert loaded["steps"] == 3
    for name in ("row", "column", "mask"):
        np.testing.assert_array_equal(loaded[name], state[name], strict=True)


# --- Errors


class Undefined(Optimizer):
    pass


def test_without_update_the_error_names_the_signature(backend: Backend) -> None:
    p = Tensor([1.0])
    p.grad = p.data
    optimizer = Undefined([p], lr=0.1)
    with pytest.raises(NotImplementedError, match=r"Undefined: define update\(self, value, grad, state, options\)"):
        optimizer.step()


def entries(**given: Any) -> Callable[..., Any]:
    """An `update` that puts these into the state."""

    def update(value: Tensor, grad: Tensor, state: dict[str, Any], options: dict[str, Any]) -> Tensor:
        state.update(given)
        return value

    return update


@pytest.mark.parametrize(
    ("update", "error", "message"),
    [
        (lambda value, *_: None, TypeError, "update must return the new value, a Tensor, got a NoneType"),
        (lambda value, *_: value.data, TypeError, "update must return the new value, a Tensor, got a"),
        (lambda value, *_: value.sum(), ValueError, r"update returned a value of shape \(\), expected \(2, 3\)"),
        (lambda value, *_: value.T, ValueError, r"update returned a value of shape \(3, 2\), expected"),
        (lambda value, *_: value.astype("float32"), TypeError, "update returned a value of dtype float32 .*float64"),
        (entries(m=None), TypeError, r"state\['m'\] must be a Tensor or a number, got a NoneType"),
        (entries(m=[1.0]), TypeError, r"state\['m'\] must be a Tensor or a number, got a list"),
        (entries(m=np.ones(2)), TypeError, r"state\['m'\] must be a Tensor or a number, got a ndarray"),
        (entries(master=1.0), ValueError, r"state\['master'\]: keys must be strings without '/', other than 'master'"),
        (entries(**{"a/b": 1.0}), ValueError, r"state\['a/b'\]: keys must be strings"),
    ],
)
def test_a_wrong_result_raises_and_changes_nothing(
    backend: Backend, update: Callable[..., Any], error: type[Exception], message: str
) -> None:
    p = Tensor(np.ones((2, 3)))
    p.grad = p.data
    optimizer = own_optimizer(update)([p], lr=0.5)
    with pytest.raises(error, match=f"Own: {message}"):
        optimizer.step()
    np.testing.assert_array_equal(p.numpy(), np.ones((2, 3)))
    assert optimizer.state_dict()["state"] == [{}] and optimizer.steps_taken == 0


@pytest.mark.parametrize(
    ("second", "error", "message"),
    [
        ({}, ValueError, "the state has the entries none, but had m after the step before; create all"),
        ({"m": 1.0, "n": 2.0}, ValueError, "the state has the entries m, n, but had m"),
        ({"m": 2.0}, TypeError, r"state\['m'\] was a Tensor, now a float"),
        ({"m": (3,)}, ValueError, r"state\['m'\] is now of shape \(3,\), expected \(2,\)"),
        ({"m": "float32"}, TypeError, r"state\['m'\] is now of dtype float32 .*, expected float64"),
    ],
)
def test_the_entries_of_the_first_step_stay(
    backend: Backend, second: dict[str, Any], error: type[Exception], message: str
) -> None:
    def update(value: Tensor, grad: Tensor, state: dict[str, Any], options: dict[str, Any]) -> Tensor:
        if not state:
            state["m"] = rg.zeros((2,))
        else:
            state.clear()
            for name, x in second.items():
                is_tensor = isinstance(x, (tuple, str))
                shape, dtype = (x if isinstance(x, tuple) else (2,)), (x if isinstance(x, str) else "float64")
                state[name] = rg.zeros(shape).astype(dtype) if is_tensor else x
        return value

    with pytest.raises(error, match=f"Own: {message}"):
        run_own(update, steps=2)


def test_a_flat_state_has_the_shape_of_the_value_or_none(backend: Backend) -> None:
    if not supports_flat(backend):
        pytest.skip("writes nothing in place")
    update = entries(m=Tensor(np.ones(3), requires_grad=False))
    with pytest.raises(ValueError, match=r"Own: state\['m'\] has shape \(3,\). .* a flat array \(\d+,\), and"):
        run_own(update, flat=True, attributes={"elementwise": True})
    run_own(update, flat=True)


def test_a_number_that_changes_in_a_captured_step_raises(backend: Backend) -> None:
    if not hasattr(backend, "capture"):
        pytest.skip(f"{backend.name} has no capture")

    def update(value: Tensor, grad: Tensor, state: dict[str, Any], options: dict[str, Any]) -> Tensor:
        state["steps"] = state.get("steps", 0) + 1
        return value - options["lr"] * grad

    p, q = Tensor([1.0, 2.0]), Tensor([1.0])
    optimizer = own_optimizer(update)([p], lr=0.5)

    def work(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = (x * p).sum()
        loss.backward()
        optimizer.step()
        return loss

    step, x = compile_step(work), Tensor([1.0, 1.0], requires_grad=False)
    step(x), step(x)
    with pytest.raises(RuntimeError, match=r"Own: state\['steps'\] is a number, .*keep it as a 0-d Tensor"):
        step(x)
    assert optimizer.steps_taken == 2 and optimizer.state_dict()["state"] == [{"steps": 2}]

    late = own_optimizer(entries(m=Tensor([0.0], requires_grad=False)))([q], lr=0.5)
    calls: list[int] = []

    def late_work(x: Tensor) -> Tensor:
        calls.append(1)
        late.zero_grad()
        loss = (x * q).sum()
        if len(calls) > 2:
            loss.backward()
        late.step()
        return loss

    step = compile_step(late_work)
    step(x), step(x)
    with pytest.raises(RuntimeError, match=r"Own: a parameter of shape \(1,\) has its first step in a captured step"):
        step(x)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"m": "text"}, r"m of parameter 0 is str, expected a NumPy array of real numbers, or a number"),
        ({"m": None}, r"m of parameter 0 is NoneType"),
        ({"m": np.ones(3, complex)}, r"m of parameter 0 is complex128 \(3,\)"),
        ({"m": np.ma.masked_array(np.ones(3))}, r"m of parameter 0 is float64 \(3,\)"),
    ],
)
def test_a_state_that_is_no_numbers_does_not_load(backend: Backend, entry: dict[str, Any], message: str) -> None:
    optimizer = Adam([Tensor(np.ones(3))], lr=0.1)
    state = {"kind": "Adam", "steps_taken": 1, "state": [entry]}
    with pytest.raises(TypeError, match=f"Adam: {message}"):
        optimizer.load_state_dict(state)
    assert optimizer.state_dict()["state"] == [{}]


def test_a_loaded_state_of_another_shape_raises_in_the_next_step(backend: Backend) -> None:
    one, other = SGD([Tensor(np.ones(3))], lr=0.1), SGD([Tensor(np.ones((2, 3)))], lr=0.1)
    take_steps(one, range(1), None, skip=False)
    other.load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match=r"SGD: state\['velocity'\] is now of shape \(2, 3\), expected \(3,\)"):
        take_steps(other, range(1), None, skip=False)
    flat = SGD(parameters(), lr=0.1, flat=True) if supports_flat(backend) else None
    if flat is not None:
        state = {"kind": "SGD", "steps_taken": 1, "state": [{"velocity": np.ones(3)} for _ in SHAPES]}
        with pytest.raises(ValueError, match="SGD: flat=True needs one state for all parameters of a group"):
            flat.load_state_dict(state)
