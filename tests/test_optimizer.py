"""Optimizers, gradient clipping and schedules against PyTorch, over 100 steps with given gradients."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import russellgrad as rg
from russellgrad import Tensor
from russellgrad.backend import Backend
from russellgrad.layers import Linear
from russellgrad.optimizer import (
    AdamOptimizer,
    AdamWOptimizer,
    Optimizer,
    SGDOptimizer,
    clip_grad_norm,
    constant,
    cosine,
    cosine_with_warmup,
    exponential,
)
from russellgrad.schedules import Schedule
from tests.helpers import assert_close, rng

SHAPES = [(3, 4), (5,), (), (2, 1, 3)]

CASES: list[tuple[type[Optimizer], type[torch.optim.Optimizer], dict[str, Any]]] = [
    (SGDOptimizer, torch.optim.SGD, {"lr": 0.1}),
    (SGDOptimizer, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (SGDOptimizer, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (SGDOptimizer, torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.1}),
    (AdamOptimizer, torch.optim.Adam, {"lr": 1e-2}),
    (AdamOptimizer, torch.optim.Adam, {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1}),
    (AdamWOptimizer, torch.optim.AdamW, {"lr": 1e-2}),
    (AdamWOptimizer, torch.optim.AdamW, {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.3}),
]


def parameters() -> tuple[list[Tensor], list[torch.Tensor]]:
    arrays = [rng(i).normal(size=shape) for i, shape in enumerate(SHAPES)]
    return [Tensor(a) for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]


def give_gradients(ours: list[Tensor], theirs: list[torch.Tensor], step: int, scale: float = 1.0) -> None:
    """Set the same random gradients on both sides; in every third step the last parameter has none."""
    draws = rng(1000 + step)
    for i, (p, t) in enumerate(zip(ours, theirs, strict=True)):
        g = scale * draws.normal(size=p.shape)
        if i == len(ours) - 1 and step % 3 == 0:
            p.grad, t.grad = None, None
        else:
            p.grad, t.grad = p.backend.asarray(g), torch.tensor(g)


def check_steps(
    ours: list[Tensor], theirs: list[torch.Tensor], optimizer: Optimizer, other: torch.optim.Optimizer, steps: int
) -> None:
    """Take steps with both optimizers on the same gradients and compare the parameters."""
    for step in range(steps):
        give_gradients(ours, theirs, step)
        optimizer.step()
        other.step()
    for p, t in zip(ours, theirs, strict=True):
        assert_close(p, t)


@pytest.mark.parametrize(("ours", "theirs", "options"), CASES)
def test_100_steps_match_pytorch(
    backend: Backend, ours: type[Optimizer], theirs: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    mine, reference = parameters()
    optimizer, other = ours(mine, **options), theirs(reference, **options)
    check_steps(mine, reference, optimizer, other, 100)


@pytest.mark.parametrize(("ours", "theirs", "options"), [CASES[1], CASES[7]])
def test_float32_parameters_stay_float32(
    backend: Backend, ours: type[Optimizer], theirs: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    a, g = rng().normal(size=(4, 5)).astype("float32"), rng(1).normal(size=(4, 5)).astype("float32")
    p, t = Tensor(a), torch.tensor(a, requires_grad=True)
    optimizer, other = ours([p], **options), theirs([t], **options)
    for _ in range(10):
        p.grad, t.grad = p.backend.asarray(g), torch.tensor(g)
        optimizer.step()
        other.step()
    assert_close(p, t)


def test_parameter_groups_have_their_own_options(backend: Backend) -> None:
    mine, reference = parameters()
    groups: list[dict[str, Any]] = [{"params": mine[:2], "weight_decay": 0.5}, {"params": mine[2:]}]
    optimizer = AdamWOptimizer(groups, lr=1e-2, weight_decay=0.0)
    groups = [{"params": reference[:2], "weight_decay": 0.5}, {"params": reference[2:]}]
    other = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.0)
    check_steps(mine, reference, optimizer, other, 20)


def test_repr_is_short(backend: Backend) -> None:
    mine = [Tensor(np.zeros(shape)) for shape in ((2, 3), (3,), ())]
    optimizer = SGDOptimizer(mine[:1], lr=lambda step: 0.5 / (step + 1), momentum=0.9)
    assert repr(optimizer) == (
        "SGDOptimizer(lr=0.5, steps_taken=0, 1 parameter of 6 elements, momentum=0.9, nesterov=False, weight_decay=0.0)"
    )
    mine[0].grad = mine[0].data
    optimizer.step()
    assert repr(optimizer).startswith("SGDOptimizer(lr=0.25, steps_taken=1, ")
    groups: list[dict[str, Any]] = [{"params": mine[:1], "weight_decay": 0.5}, {"params": mine[1:]}]
    assert repr(AdamWOptimizer(groups, lr=1e-3)) == (
        "AdamWOptimizer(lr=0.001, steps_taken=0\n"
        "  group 0: 1 parameter of 6 elements, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.5\n"
        "  group 1: 2 parameters of 4 elements, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01\n)"
    )


def test_repr_of_a_schedule_that_raises(backend: Backend) -> None:
    optimizer = SGDOptimizer([Tensor([1.0])], lr=lambda step: 1 / step)
    assert "lr=its schedule raises an error, " in repr(optimizer)


FORMULAS: list[tuple[Schedule, Callable[[int], float]]] = [
    (constant(0.1), lambda t: 0.1),
    (exponential(0.1, 0.95), lambda t: 0.1 * 0.95**t),
    (cosine(0.1, 80, 0.01), lambda t: 0.01 + 0.09 * (1 + math.cos(math.pi * min(t / 80, 1))) / 2),
    (
        cosine_with_warmup(0.1, 10, 80, 0.01),
        lambda t: 0.1 * (t + 1) / 11 if t < 10 else 0.01 + 0.09 * (1 + math.cos(math.pi * min((t - 10) / 70, 1))) / 2,
    ),
]


@pytest.mark.parametrize(("schedule", "formula"), FORMULAS)
def test_schedules_match_pytorch_lambda_lr(
    backend: Backend, schedule: Schedule, formula: Callable[[int], float]
) -> None:
    mine, reference = parameters()
    optimizer, other = SGDOptimizer(mine, lr=schedule), torch.optim.SGD(reference, lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(other, formula)
    for step in range(100):
        assert optimizer.lr == pytest.approx(other.param_groups[0]["lr"], rel=0, abs=1e-15)
        give_gradients(mine, reference, step)
        optimizer.step()
        other.step()
        scheduler.step()
    for p, t in zip(mine, reference, strict=True):
        assert_close(p, t)


def test_cosine_matches_pytorch(backend: Backend) -> None:
    other = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(other, 50, eta_min=0.02)
    schedule = cosine(0.3, 50, 0.02)
    for step in range(51):
        assert schedule(step) == pytest.approx(other.param_groups[0]["lr"], rel=0, abs=1e-14)
        other.step()
        scheduler.step()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_clip_grad_norm_matches_pytorch(backend: Backend, scale: float) -> None:
    """100 steps, with gradient norms mostly below and mostly above max_norm."""
    mine, reference = parameters()
    for step in range(100):
        give_gradients(mine, reference, step, scale)
        norm = clip_grad_norm(mine, 1.0)
        expected = torch.nn.utils.clip_grad_norm_(reference, 1.0)
        assert norm.item() == pytest.approx(expected.item(), rel=1e-14)
        for p, t in zip(mine, reference, strict=True):
            if t.grad is not None:
                assert_close(p.grad, t.grad)


def test_learning_rate_can_be_set(backend: Backend) -> None:
    p = Tensor([1.0])
    optimizer = SGDOptimizer([p], lr=0.5)
    optimizer.lr = 0.25
    p.grad = p.backend.asarray([1.0])
    optimizer.step()
    assert p.numpy()[0] == 0.75
    optimizer.zero_grad()
    assert p.grad is None


def test_step_between_forward_and_backward_raises(backend: Backend) -> None:
    p = Tensor([3.0])
    optimizer = SGDOptimizer([p], lr=0.1)
    loss = (p * p).sum()
    p.grad = p.backend.asarray([1.0])
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"'multiply' was changed in place after it was used"):
        loss.backward()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda p: SGDOptimizer([], lr=0.1), ValueError, "SGDOptimizer: no parameters"),
        (lambda p: SGDOptimizer([p, p], lr=0.1), ValueError, "a parameter is given twice"),
        (lambda p: SGDOptimizer([p * 2], lr=0.1), TypeError, "parameters must be leaf Tensors, got a Tensor"),
        (lambda p: SGDOptimizer(p.numpy(), lr=0.1), TypeError, "parameters must be leaf Tensors, got a float64"),
        (lambda p: SGDOptimizer([p], lr=-0.1), ValueError, "lr must not be negative, got -0.1"),
        (lambda p: AdamOptimizer([p], eps=-1.0), ValueError, "eps must not be negative"),
        (lambda p: AdamOptimizer([p], betas=(0.9, 1.0)), ValueError, r"betas must be in \[0, 1\)"),
        (lambda p: SGDOptimizer([p], lr=0.1, nesterov=True), ValueError, "nesterov needs a momentum"),
        (lambda p: AdamWOptimizer([{"params": [p], "decay": 1}]), ValueError, "unknown option decay; known: betas"),
        (lambda p: AdamOptimizer([{"params": [p], 1: 2}]), ValueError, "unknown option 1; known: betas"),  # type: ignore[arg-type]
        (
            lambda p: AdamOptimizer([{"params": [p], "lr": 1}]),
            ValueError,
            "unknown option lr; .*; lr is the same for all gr",
        ),
        (lambda p: AdamOptimizer([{"eps": 1.0}]), ValueError, "a group lacks 'params'; it has eps"),
        (lambda p: AdamOptimizer([{}]), ValueError, "a group lacks 'params'; it has no entries"),
        (lambda p: AdamOptimizer([{"params": [p]}, p]), TypeError, "parameters or groups, not both; got a Tensor"),
        (lambda p: AdamOptimizer([p, {"params": [p]}]), TypeError, "parameters or groups, not both; got a Tensor"),
        (lambda p: clip_grad_norm([p], 1.0), ValueError, r"no parameter has a gradient; call backward\(\) first"),
        (lambda p: cosine_with_warmup(0.1, 10, 10), ValueError, "0 <= warmup_steps < total_steps, got 10 and 10"),
    ],
)
def test_bad_arguments_raise(
    backend: Backend, build: Callable[[Tensor], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build(Tensor(np.ones(2)))


# --- Learning rates and options that are no numbers

NOT_NUMBERS: list[tuple[Any, type[Exception], str]] = [
    (None, TypeError, "must be a number, got None"),
    ("0.1", TypeError, "must be a number, got '0.1'"),
    (True, TypeError, "must be a number, got True"),
    (np.True_, TypeError, "must be a number, got a bool"),
    (0.1 + 0j, TypeError, "must be a number, got "),
    (np.complex64(0.1), TypeError, "must be a number, got a complex"),
    ([0.1], TypeError, "must be a number, got a list"),
    ({}, TypeError, "must be a number, got a dict"),
    (np.array([0.1, 0.2]), TypeError, r"must be a number, got a ndarray of shape \(2,\)"),
    (np.array([0.1]), TypeError, r"must be a number, got a ndarray of shape \(1,\)"),
    (np.ma.masked, TypeError, "must be a number, got a MaskedConstant"),
    (torch.tensor(0.1, requires_grad=True), TypeError, r"must be a number, got a Tensor; pass its \.item\(\)"),
    (math.nan, ValueError, "must be finite, got nan"),
    (np.float32(math.nan), ValueError, "must be finite, got nan"),
    (np.array(math.nan), ValueError, "must be finite, got nan"),
    (math.inf, ValueError, "must be finite, got inf"),
    (10**400, ValueError, "must be finite, got 1000"),
    (-1, ValueError, "must not be negative, got -1"),
    (-(10**400), ValueError, "must not be negative, got -1000"),
    (-math.inf, ValueError, "must not be negative, got -inf"),
    (np.float32(-0.5), ValueError, r"must not be negative, got -0\.5"),
    (np.int64(-1), ValueError, "must not be negative, got -1"),
    (np.array(-0.5), ValueError, r"must not be negative, got -0\.5"),
]
NUMBERS = [
    0.25,
    0,
    1,
    np.float64(0.25),
    np.float32(0.25),
    np.float16(0.25),
    np.int8(1),
    np.array(0.25),
    np.longdouble(1),
]


def refused(error: type[Exception], message: str, build: Callable[[], object]) -> None:
    with pytest.raises(error, match=message):
        build()


def given_a_gradient(backend: Backend) -> Tensor:
    p = Tensor([1.0, 2.0])
    p.grad = backend.asarray([1.0, 1.0])
    return p


@pytest.mark.parametrize(("value", "error", "message"), NOT_NUMBERS)
def test_a_rate_or_option_that_is_no_number_raises(
    backend: Backend, value: Any, error: type[Exception], message: str
) -> None:
    """When given to the constructor, in a group, later, and as an argument of a schedule."""
    p = Tensor(np.ones(2))
    optimizers: list[tuple[type[Optimizer], tuple[str, ...]]] = [
        (SGDOptimizer, ("lr", "momentum", "weight_decay")),
        (AdamOptimizer, ("lr", "eps", "weight_decay")),
        (AdamWOptimizer, ("lr", "eps", "weight_decay")),
    ]
    for kind, names in optimizers:
        for name in names:
            said = f"{kind.__name__}: {name} {message}"
            refused(error, said, lambda k=kind, n=name: k([p], **{"lr": 0.1, n: value}))  # type: ignore[misc]
            if name != "lr":
                group = {"params": [p], name: value}
                refused(error, said, lambda k=kind, g=group: k([g], lr=0.1))  # type: ignore[misc]
    optimizer = SGDOptimizer([p], lr=0.25)
    refused(error, f"SGDOptimizer: lr {message}", lambda: setattr(optimizer, "lr", value))
    assert optimizer.lr == 0.25
    schedules: list[tuple[Callable[..., object], str, dict[str, Any]]] = [
        (constant, "constant", {"lr": 0.1}),
        (exponential, "exponential", {"lr": 0.1, "gamma": 0.9}),
        (cosine_with_warmup, "cosine", {"lr": 0.1, "warmup_steps": 2, "total_steps": 9, "min_lr": 0.0}),
    ]
    for schedule, called, arguments in schedules:
        for name in arguments:
            refused(error, f"{called}: {name} {message}", lambda s=schedule, a={**arguments, name: value}: s(**a))  # type: ignore[misc]


@pytest.mark.parametrize("value", [0.5, None, "0.9", True, (0.9,), (0.9, 0.99, 0.999), {0.9, 0.99}, "ab"])
def test_betas_that_are_no_pair_raise(backend: Backend, value: Any) -> None:
    refused(
        TypeError, "AdamWOptimizer: betas must be two numbers", lambda: AdamWOptimizer([Tensor([1.0])], betas=value)
    )


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("value", [None, "0.9", True, math.nan, math.inf, -0.1, 1.0, np.float32(-0.1), np.array([0.9])])
def test_betas_outside_their_range_raise(backend: Backend, value: Any, place: int) -> None:
    betas = (value, 0.9) if place == 0 else (0.9, value)
    error = ValueError if isinstance(value, (float, np.float32)) else TypeError
    refused(
        error,
        r"AdamOptimizer: betas must be (in \[0, 1\)|a number), got",
        lambda: AdamOptimizer([Tensor([1.0])], betas=betas),
    )


@pytest.mark.parametrize("name", ["nesterov", "flat"])
@pytest.mark.parametrize("value", [None, 1, "no", 0.0])
def test_flags_that_are_no_bools_raise(backend: Backend, value: Any, name: str) -> None:
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, name: value}
    refused(
        TypeError, f"SGDOptimizer: {name} must be True or False, got", lambda: SGDOptimizer([Tensor([1.0])], **options)
    )


@pytest.mark.parametrize("value", NUMBERS)
def test_numbers_of_other_types_become_floats(backend: Backend, value: Any) -> None:
    """NumPy scalars and 0-d arrays, also those of the backend."""
    for number in (value, backend.asarray(np.asarray(value, "float64"))):
        p = given_a_gradient(backend)
        optimizer = SGDOptimizer([p], lr=number, momentum=number, weight_decay=number)
        assert [type(x) for x in (optimizer.lr, optimizer.groups[0]["momentum"])] == [float, float]
        assert optimizer.lr == optimizer.groups[0]["weight_decay"] == float(value)
        optimizer.step(max_norm=number if value else None)
        assert (AdamOptimizer([p], lr=lambda taken, n=number: n, eps=number).lr) == float(value)  # type: ignore[misc]


def test_a_pair_of_betas_may_be_a_list_or_an_array(backend: Backend) -> None:
    for betas in ([0.5, 0.75], np.array([0.5, 0.75]), (np.float32(0.5), np.array(0.75))):
        assert AdamOptimizer([Tensor([1.0])], betas=betas).groups[0]["betas"] == (0.5, 0.75)  # type: ignore[arg-type]


@pytest.mark.parametrize(("value", "error", "message"), NOT_NUMBERS)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_rate_from_a_schedule_that_is_no_number_raises(
    backend: Backend, value: Any, error: type[Exception], message: str, compiled: bool
) -> None:
    """The error names the schedule and the step. Nothing has changed, and the run can go on."""
    rates: list[Any] = [0.5, 0.25, 0.125, 0.5, value]

    def of_table(taken: int) -> Any:
        return rates[taken]

    p = Tensor([1.0, 2.0])
    optimizer = AdamOptimizer([p], lr=of_table)

    def step() -> None:
        optimizer.zero_grad()
        (p * p).sum().backward()
        optimizer.step(max_norm=1.0)

    run = rg.compile_step(step) if compiled else step
    for _ in range(4):
        run()
    before, parameter = optimizer.state_dict(), p.numpy()
    said = rf"AdamOptimizer: schedule .*of_table at step 4: the learning rate {message}"
    refused(error, said, run)
    refused(error, said, lambda: optimizer.lr)
    assert optimizer.steps_taken == 4
    assert p.numpy().tobytes() == parameter.tobytes()
    (state,), (own,) = before["state"], optimizer.state_dict()["state"]
    assert own["step"] == state["step"] == 4
    assert np.array_equal(own["m"], state["m"]) and np.array_equal(own["v"], state["v"])
    rates[4] = 0.5
    run()
    assert optimizer.steps_taken == optimizer.state_dict()["state"][0]["step"] == 5


def test_an_error_of_a_schedule_names_schedule_and_step(backend: Backend) -> None:
    optimizer = SGDOptimizer([given_a_gradient(backend)], lr=exponential(1.0, 1e200))
    optimizer.steps_taken = 2
    with pytest.raises(OverflowError) as caught:
        optimizer.step()
    assert caught.value.__notes__ == ["in SGDOptimizer: schedule exponential.<locals>.<lambda> at step 2"]
    assert optimizer.steps_taken == 2


def test_a_schedule_can_be_assigned(backend: Backend) -> None:
    optimizer = SGDOptimizer([Tensor([1.0])], lr=0.1)
    optimizer.lr = cosine(0.5, 10)
    assert optimizer.lr == 0.5
    optimizer.steps_taken = 10
    assert optimizer.lr == 0.0


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (SGDOptimizer, "momentum", None),
        (SGDOptimizer, "weight_decay", -1.0),
        (SGDOptimizer, "nesterov", "no"),
        (SGDOptimizer, "nesterov", True),  # without momentum
        (SGDOptimizer, "decay", 0.1),
        (AdamOptimizer, "betas", 0.9),
        (AdamOptimizer, "eps", math.nan),
        (AdamWOptimizer, "weight_decay", "0.1"),
    ],
)
def test_options_that_were_changed_to_no_number_raise_in_the_next_step(
    backend: Backend, kind: type[Optimizer], name: str, value: Any, flat: bool
) -> None:
    p = given_a_gradient(backend)
    optimizer = kind([p], lr=0.5, flat=flat)
    optimizer.groups[0][name] = value
    with pytest.raises((TypeError, ValueError), match=rf"^{kind.__name__}: .*{name}"):
        optimizer.step()
    assert p.numpy().tolist() == [1.0, 2.0]
    assert optimizer.steps_taken == 0
    assert optimizer.state == {}


def test_options_that_were_changed_apply_to_the_next_step(backend: Backend) -> None:
    p = given_a_gradient(backend)
    optimizer = SGDOptimizer([p], lr=1.0)
    optimizer.groups[0]["weight_decay"] = np.float32(0.5)
    optimizer.step()
    assert p.numpy().tolist() == [-0.5, 0.0]


def test_nesterov_needs_a_momentum_in_each_group(backend: Backend) -> None:
    p, q = Tensor([1.0]), Tensor([1.0])
    SGDOptimizer([{"params": [p], "momentum": 0.9}], lr=0.1, nesterov=True)
    groups: list[dict[str, Any]] = [{"params": [p]}, {"params": [q], "momentum": 0.0}]
    refused(
        ValueError,
        "SGDOptimizer: nesterov needs a momentum",
        lambda: SGDOptimizer(groups, lr=0.1, momentum=0.9, nesterov=True),
    )


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("1", TypeError, "must be a number, got '1'"),
        (True, TypeError, "must be a number, got True"),
        (np.array([1.0, 2.0]), TypeError, "must be a number, got a ndarray of shape"),
        (1j, TypeError, "must be a number, got 1j"),
        (math.nan, ValueError, "is nan; it must be positive"),
        (np.float32(-1.0), ValueError, "is -1; it must be positive"),
        (0, ValueError, "is 0; it must be positive"),
    ],
)
def test_a_max_norm_that_is_no_positive_number_raises(
    backend: Backend, value: Any, error: type[Exception], message: str
) -> None:
    p = given_a_gradient(backend)
    optimizer = SGDOptimizer([p], lr=0.5)
    refused(error, f"step: max_norm {message}", lambda: optimizer.step(max_norm=value))
    refused(error, f"clip_grad_norm: max_norm {message}", lambda: clip_grad_norm([p], value))
    refused(TypeError, "clip_grad_norm: max_norm must be a number, got None", lambda: clip_grad_norm([p], None))  # type: ignore[arg-type]
    assert p.numpy().tolist() == [1.0, 2.0]
    assert Tensor(p.grad).numpy().tolist() == [1.0, 1.0]
    assert optimizer.steps_taken == 0


def test_an_infinite_max_norm_only_measures(backend: Backend) -> None:
    """As in PyTorch."""
    p, t = given_a_gradient(backend), torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    t.grad = torch.ones(2, dtype=torch.float64)
    theirs = torch.nn.utils.clip_grad_norm_([t], math.inf).item()
    assert clip_grad_norm([p], math.inf).item() == pytest.approx(theirs, rel=1e-15)
    assert Tensor(p.grad).numpy().tolist() == [1.0, 1.0]
    norm = SGDOptimizer([p], lr=0.5).step(max_norm=math.inf)
    assert norm is not None and norm.item() == pytest.approx(math.sqrt(2))
    assert p.numpy().tolist() == [0.5, 1.5]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        {"steps_taken": None}, {"steps_taken": math.nan}, {"steps_taken": -1}, {"steps_taken": "3"},
        {"steps_taken": True}, {"steps_taken": 1.5}, {"step": None}, {"step": math.nan}, {"step": np.int64(-1)},
        {"step": "3"}, {"step": 0.5}, {"m": None}, {"m": [0.0, 0.0]}, {"v": 3.0}, {"v": "ab"},
        {"m": np.zeros(2, complex)},
        {"v": np.ma.masked_array([1.0, 2.0], [True, False])},
    ],
    ids=str,
)  # fmt: skip
def test_a_state_of_no_numbers_raises_and_changes_nothing(backend: Backend, change: dict[str, Any], flat: bool) -> None:
    p = given_a_gradient(backend)
    optimizer = AdamOptimizer([p], flat=flat)
    optimizer.step()
    state = optimizer.state_dict()
    ((name, value),) = change.items()
    wrong: dict[str, Any] = (
        {**state, **change} if name == "steps_taken" else {**state, "state": [{**state["state"][0], name: value}]}
    )
    with pytest.raises((TypeError, ValueError), match=rf"^AdamOptimizer: {name} "):
        optimizer.load_state_dict(wrong)
    after = optimizer.state_dict()
    assert after["steps_taken"] == after["state"][0]["step"] == 1
    assert all(np.array_equal(after["state"][0][key], state["state"][0][key]) for key in ("m", "v"))
    with pytest.raises(ValueError, match="AdamOptimizer: the state lacks kind, steps_taken; use a state_dict"):
        optimizer.load_state_dict(torch.optim.Adam([torch.zeros(1)]).state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "the state must be a dict, as state_dict"), ([1], "the state must be a dict, as state_dict"),
        ({"state": None}, "'state' must be a list .*, got None"), ({"state": {0: {}}}, "'state' must be a list"),
        ({"state": 5}, "'state' must be a list"), ({"state": [None]}, "the state of parameter 0 must be .*, got None"),
        ({"state": [[1]]}, "the state of parameter 0 must be .*, got a list"),
        ({"state": [{1: 2}]}, "the state of parameter 0 must be a dict with str keys, got the keys 1"),
        ({"steps_taken": 1e300}, r"steps_taken must be an integer of at most 2\*\*53"),
        ({"state": [{"step": 1e300}]}, r"step of parameter 0 must be an integer of at most 2\*\*53"),
    ],
    ids=str,
)  # fmt: skip
def test_a_state_of_other_types_raises_and_changes_nothing(backend: Backend, change: Any, message: str) -> None:
    optimizer = AdamOptimizer([given_a_gradient(backend)])
    optimizer.step()
    state = optimizer.state_dict()
    with pytest.raises((TypeError, ValueError), match=f"^AdamOptimizer: {message}"):
        optimizer.load_state_dict({**state, **change} if isinstance(change, dict) else change)
    assert optimizer.state_dict()["steps_taken"] == 1


def test_clip_grad_norm_keeps_the_dtype_of_each_gradient(backend: Backend) -> None:
    single, double = Tensor(np.ones(3, "float32")), Tensor(np.ones(3))
    (single.sum() * double.sum() * 9).backward()
    clip_grad_norm([single, double], 1.0)
    assert str(backend.dtype(single.grad)) == "float32"
    assert str(backend.dtype(double.grad)) == "float64"


def test_gradient_of_another_shape_raises(backend: Backend) -> None:
    p = Tensor([1.0, 2.0])
    optimizer = AdamOptimizer([p])
    with pytest.raises(
        ValueError, match=r"^grad: gradient has shape \(1,\), this tensor \(2,\); they must agree: resh"
    ):
        p.grad = backend.zeros((1,), "float64")
    p.requires_grad, p.grad = False, backend.zeros((2,), "float64")
    p.data = backend.zeros((1,), "float64")  # a tensor that tracks no gradients may get another shape
    with pytest.raises(ValueError, match=r"AdamOptimizer: parameter 0 has shape \(1,\), its gradient \(2,\)"):
        optimizer.step()
    assert p.numpy().tolist() == [0.0]


# --- flat=True: one array for all parameters


@pytest.mark.parametrize(("ours", "theirs", "options"), CASES)
def test_flat_steps_match_pytorch(
    backend: Backend, ours: type[Optimizer], theirs: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    """With max_norm too, whose norm is computed from the flat gradient array."""
    mine, reference = parameters()
    mine, reference = mine[:3], reference[:3]  # the parameters with a gradient in every step
    optimizer, other = ours(mine, **options, flat=True), theirs(reference, **options)
    for step in range(30):
        for i, (p, t) in enumerate(zip(mine, reference, strict=True)):
            g = rng(100 * step + i).normal(size=p.shape)
            optimizer.zero_grad() if i == 0 else None
            (p * Tensor(g, requires_grad=False)).sum().backward()
            t.grad = torch.tensor(g)
        norm = optimizer.step(max_norm=1.0)
        expected = torch.nn.utils.clip_grad_norm_(reference, 1.0)
        other.step()
        assert norm is not None
        assert norm.item() == pytest.approx(expected.item(), rel=1e-13)
    for p, t in zip(mine, reference, strict=True):
        assert_close(p, t)
    assert optimizer.flat_grad.ndim == 1  # type: ignore[union-attr]


def test_flat_parameter_groups_match_pytorch(backend: Backend) -> None:
    mine, reference = parameters()
    groups: list[dict[str, Any]] = [{"params": mine[:1], "weight_decay": 0.5}, {"params": mine[1:3]}]
    other_groups: list[dict[str, Any]] = [{"params": reference[:1], "weight_decay": 0.5}, {"params": reference[1:3]}]
    optimizer = AdamWOptimizer(groups, lr=1e-2, weight_decay=0.0, flat=True)
    other = torch.optim.AdamW(other_groups, lr=1e-2, weight_decay=0.0)
    for step in range(5):
        for i, (p, t) in enumerate(zip(mine[:3], reference[:3], strict=True)):
            g = rng(100 * step + i).normal(size=p.shape)
            p.grad, t.grad = backend.asarray(g), torch.tensor(g)
        optimizer.step()
        other.step()
    for p, t in zip(mine[:3], reference[:3], strict=True):
        assert_close(p, t)


def test_flat_copies_replaced_data_and_gradients(backend: Backend) -> None:
    """A new array set as .data, and gradients accumulated over two backward calls."""
    p, q = Tensor([1.0, 2.0]), Tensor([[3.0]])
    optimizer = SGDOptimizer([p, q], lr=0.5, flat=True)
    p.data = backend.asarray(np.array([10.0, 20.0]))
    for _ in range(2):
        ((p * p).sum() + (q * 4).sum()).backward()
    optimizer.step()
    assert p.numpy().tolist() == [-10, -20]
    assert q.numpy().tolist() == [[-1]]
    assert [g for g in Tensor(optimizer.flat_grad).numpy() if g] == [40, 80, 8]
    optimizer.zero_grad()
    assert p.grad is None
    ((p * 1).sum() + (q * 1).sum()).backward()
    assert [g for g in Tensor(optimizer.gather_grads()).numpy() if g] == [1, 1, 1]


def test_flat_sums_the_gradients_of_a_leaf_used_twice(backend: Backend) -> None:
    """Every use of a leaf, by one op or by two, adds its gradient."""
    w = Tensor(rng().normal(size=(3, 3)))
    optimizer = SGDOptimizer([w], lr=1.0, flat=True)
    for _ in range(2):  # in the second round the flat gradient array is reused
        before = w.numpy()
        optimizer.zero_grad()
        rg.linear(w, w).sum().backward()
        optimizer.step()
        t = torch.tensor(before, requires_grad=True)
        (t @ t).sum().backward()
        assert_close(w, before - t.grad.numpy())  # type: ignore[union-attr]


def test_two_flat_optimizers_can_share_parameters(backend: Backend) -> None:
    p = Tensor([1.0, 2.0])
    one, two = (SGDOptimizer([p], lr=lr, flat=True) for lr in (1.0, 10.0))
    for optimizer in (one, two, one):
        optimizer.zero_grad()
        p.sum().backward()
        optimizer.step()
    assert p.numpy().tolist() == [-11, -10]


def test_flat_misuse_raises(backend: Backend) -> None:
    p, q = Tensor([1.0, 2.0]), Tensor(np.ones(3, "float32"))
    with pytest.raises(ValueError, match="SGDOptimizer: flat=True needs parameters of one backend and dtype"):
        SGDOptimizer([p, q], lr=0.1, flat=True)
    r = Tensor([[3.0]])
    optimizer = SGDOptimizer([p, r], lr=0.1, flat=True)
    p.sum().backward()
    with pytest.raises(ValueError, match=r"parameter 1 of shape \(1, 1\) has no gradient, but flat=True needs one"):
        optimizer.step()
    r.sum().backward()
    with pytest.raises(ValueError, match="step: max_norm is 0; it must be positive"):
        optimizer.step(max_norm=0)
    with pytest.raises(ValueError, match="step: no parameter has a gradient"):
        SGDOptimizer([Tensor([1.0])], lr=0.1).step(max_norm=1.0)


def test_step_with_max_norm_keeps_the_gradients(backend: Backend) -> None:
    p, t = Tensor([3.0, 4.0]), torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    p.grad, t.grad = backend.asarray([30.0, 40.0]), torch.tensor([30.0, 40.0], dtype=torch.float64)
    norm = SGDOptimizer([p], lr=0.1).step(max_norm=2.0)
    torch.nn.utils.clip_grad_norm_([t], 2.0)
    torch.optim.SGD([t], lr=0.1).step()
    assert norm is not None
    assert norm.item() == 50
    assert_close(p, t)
    assert Tensor(p.grad).numpy().tolist() == [30, 40]


# --- Resuming from a state dict

RESUME_CASES = [*CASES, (AdamWOptimizer, torch.optim.AdamW, {"lr": cosine(1e-2, 20)})]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize(("before", "after"), [(False, False), (True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize(("kind", "_", "options"), RESUME_CASES)
def test_resumed_optimizer_matches_uninterrupted_run_bitwise(
    backend: Backend, kind: type[Optimizer], _: Any, options: dict[str, Any], before: bool, after: bool, dtype: str
) -> None:
    """A new optimizer, flat or not, loads the state and continues with the same bits as an uninterrupted one."""

    def run(p: list[Tensor], optimizer: Optimizer, steps: range) -> None:
        for step in steps:
            for i, tensor in enumerate(p):
                tensor.grad = backend.asarray(rng(10 * step + i).normal(size=tensor.shape).astype(dtype))
            optimizer.step(max_norm=1.0 if before == after else None)  # flat sums the norm in another order

    arrays = [rng(i).normal(size=shape).astype(dtype) for i, shape in enumerate(SHAPES)]
    whole, first, second = ([Tensor(a.copy()) for a in arrays] for _ in range(3))
    run(whole, kind(whole, **options, flat=after), range(8))
    interrupted = kind(first, **options, flat=before)
    run(first, interrupted, range(5))
    state = interrupted.state_dict()
    for p, q in zip(first, second, strict=True):
        q.data = backend.asarray(p.numpy())
    resumed = kind(second, **options, flat=after)
    resumed.load_state_dict(state)
    assert resumed.steps_taken == 5
    assert resumed.lr == interrupted.lr
    run(second, resumed, range(5, 8))
    for p, q in zip(whole, second, strict=True):
        assert p.numpy().tobytes() == q.numpy().tobytes()
    again = kind(second, **options, flat=before)
    again.load_state_dict(resumed.state_dict())
    for one, other in zip(again.state_dict()["state"], resumed.state_dict()["state"], strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_state_dict_before_the_first_step(backend: Backend) -> None:
    p = Tensor([1.0, 2.0])
    optimizer = AdamOptimizer([p], flat=True)
    assert optimizer.state_dict() == {"kind": "AdamOptimizer", "steps_taken": 0, "state": [{}]}
    optimizer.load_state_dict(optimizer.state_dict())
    p.grad = backend.asarray([1.0, 1.0])
    optimizer.step()
    assert_close(p, np.array([0.999, 1.999]), atol=1e-9)


def test_mismatched_state_dict_raises(backend: Backend) -> None:
    def after_a_step(kind: type[Optimizer], *values: Any, **options: Any) -> Optimizer:
        tensors = [Tensor(value) for value in values]
        for tensor in tensors:
            tensor.grad = backend.asarray(np.ones_like(tensor.numpy()))
        optimizer = kind(tensors, **options)
        optimizer.step()
        return optimizer

    adam = after_a_step(AdamOptimizer, np.ones(2), np.ones((2, 2)))
    before = adam.state_dict()
    for other, message in [
        (after_a_step(AdamOptimizer, np.ones(2)), "the state has 1 parameters, this optimizer has 2"),
        (after_a_step(AdamOptimizer, np.ones(2), np.ones(3)), r"m of parameter 1 is float64 \(3,\), expected"),
        (after_a_step(AdamOptimizer, np.ones(2), np.ones((2, 2), "float32")), "m of parameter 1 is float32"),
        (after_a_step(SGDOptimizer, np.ones(2), np.ones((2, 2)), lr=1.0, momentum=0.9),
         "the state is that of a SGDOptimizer; load it into one"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=f"AdamOptimizer: {message}"):
            adam.load_state_dict(other.state_dict())
    flat = AdamOptimizer(adam.params, flat=True)
    with pytest.raises(ValueError, match="flat=True needs one state for all"):
        flat.load_state_dict({**before, "state": [before["state"][0], {}]})
    momentum = after_a_step(SGDOptimizer, np.ones(2), lr=1.0, momentum=0.9)
    with pytest.raises(ValueError, match="has velocity, but this optimizer keeps none; build it with the options"):
        SGDOptimizer(momentum.params, lr=1.0).load_state_dict(momentum.state_dict())
    assert all(
        np.array_equal(was[name], own[name])
        for was, own in zip(before["state"], adam.state_dict()["state"], strict=True) for name in was
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_state_dict_of_groups_with_different_state(backend: Backend, dtype: str) -> None:
    """One group keeps a velocity; the other keeps nothing, or in half precision a float32 copy."""

    def build(tensors: list[Tensor]) -> SGDOptimizer:
        groups: list[dict[str, Any]] = [{"params": tensors[:1], "momentum": 0.9}, {"params": tensors[1:]}]
        return SGDOptimizer(groups, lr=0.1)

    tensors = [Tensor(np.ones(2, dtype)) for _ in range(2)]
    optimizer = build(tensors)
    for p in tensors:
        p.grad = backend.asarray(np.ones(2, dtype))
    optimizer.step()
    again = build([Tensor(p.numpy()) for p in tensors])
    again.load_state_dict(optimizer.state_dict())
    for p, q in zip(tensors, again.params, strict=True):
        q.grad = p.grad
    optimizer.step()
    again.step()
    for p, q in zip(tensors, again.params, strict=True):
        assert_close(q, p, atol=0)


# --- Parameters that are moved


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("ours", [SGDOptimizer, AdamOptimizer, AdamWOptimizer])
def test_a_step_after_the_parameters_were_cast_or_moved_raises(
    backend: Backend, ours: type[Optimizer], flat: bool
) -> None:
    other = "strict" if backend.name == "numpy" else "numpy"
    for move in (lambda p: p.astype("float32"), lambda p: p.to(other)):
        model = Linear(3, 2)
        optimizer = ours(model.parameters(), lr=0.1, flat=flat)

        def step(model: Linear = model, optimizer: Optimizer = optimizer) -> None:
            model.zero_grad()
            for p in model.parameters():
                (p * 2).sum().backward()
            optimizer.step(max_norm=1.0)

        step()
        move(model)
        before, steps_taken = model.state_dict(), optimizer.steps_taken
        message = (
            rf"{ours.__name__}: parameter 0 is float\d\d on backend .*, and was float64 on '{backend.name}' before;"
        )
        with pytest.raises(RuntimeError, match=message + r" build the optimizer after Module.to\(\) and astype\(\)"):
            step()
        for name, array in model.state_dict().items():
            np.testing.assert_array_equal(array, before[name])
        assert optimizer.steps_taken == steps_taken
