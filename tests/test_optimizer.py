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
        (lambda p: clip_grad_norm([p], 1.0), ValueError, r"no parameter has a gradient; call backward\(\) first"),
        (lambda p: cosine_with_warmup(0.1, 10, 10), ValueError, "0 <= warmup_steps < total_steps, got 10 and 10"),
    ],
)
def test_bad_arguments_raise(
    backend: Backend, build: Callable[[Tensor], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build(Tensor(np.ones(2)))


def test_clip_grad_norm_keeps_the_dtype_of_each_gradient(backend: Backend) -> None:
    single, double = Tensor(np.ones(3, "float32")), Tensor(np.ones(3))
    (single.sum() * double.sum() * 9).backward()
    clip_grad_norm([single, double], 1.0)
    assert str(single.grad.dtype) == "float32"  # type: ignore[union-attr]
    assert str(double.grad.dtype) == "float64"  # type: ignore[union-attr]


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
