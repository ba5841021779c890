"""compile_step: a recorded step gives the results of the plain step on every backend; on CUDA it launches a graph."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest

from russellgrad import (
    Tensor,
    compile_step,
    concatenate,
    einsum,
    functional_call,
    grad,
    hvp,
    jvp,
    set_default_dtype,
    set_matmul_precision,
)
from russellgrad.backend import Backend
from russellgrad.layers import Dropout
from russellgrad.loss import cross_entropy_loss
from russellgrad.optimizer import AdamWOptimizer, SGDOptimizer, cosine_with_warmup
from russellgrad.random import Generator
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer
from tests.helpers import assert_close, rng
from train.data import MicroBatch
from train.train_transformer import train_step

Step = Callable[..., Any]


def model_and_optimizer(
    dtype: str = "float64", flat: bool = True, **options: Any
) -> tuple[Transformer, AdamWOptimizer]:
    set_default_dtype(dtype)
    try:
        tokenizer = Tokenizer.from_text("abcdef", 8, 8, seed=1)
        model = Transformer(
            tokenizer, 2, 2, activation="gelu", output_projection=True, final_norm=True, seed=2, **options
        )
    finally:
        set_default_dtype("float64")
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return model, AdamWOptimizer(groups, cosine_with_warmup(1e-2, 3, 20, 1e-3), flat=flat)


@pytest.mark.parametrize("wrap", [lambda step: step, compile_step], ids=["plain", "compiled"])
def test_each_step_drops_other_attention_weights(backend: Backend, wrap: Callable[[Step], Step]) -> None:
    """The loss of the same batch and the same parameters differs from step to step, also in replays."""
    model, _ = model_and_optimizer(attention_dropout=0.5)
    inputs, targets = map(model.tokenizer.ids, batch(1))
    step = wrap(lambda ids, targets: cross_entropy_loss(model(ids), targets, model.tokenizer.pad_token_id))
    losses = [float(step(inputs, targets).item()) for _ in range(6)]
    assert len(set(losses)) == 6


def batch(seed: int, shape: tuple[int, int] = (3, 8), padded: bool = False) -> tuple[Any, Any]:
    ids = rng(seed).integers(0, 6, (shape[0], shape[1] + 1))
    if padded:
        ids[0, shape[1] // 2 :] = 6
    return ids[:, :-1], ids[:, 1:]


def take(model: Transformer, step: Step, inputs: Any, targets: Any) -> float:
    return float(step(MicroBatch(model.tokenizer.ids(inputs), model.tokenizer.ids(targets)))[0].item())


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("options", [{}, {"dropout": 0.3}, {"attention_dropout": 0.3}, {"flat": False}], ids=str)
def test_a_compiled_step_equals_the_plain_step(backend: Backend, dtype: str, options: dict[str, Any]) -> None:
    """Losses, parameters, optimizer state and a later plain step are bitwise equal, with a schedule and dropout."""
    runs = []
    for wrap in (lambda step: step, compile_step):
        model, optimizer = model_and_optimizer(dtype, **options)
        step = wrap(partial(train_step, model, optimizer, grad_clip=0.5))
        losses = [take(model, step, *batch(seed)) for seed in range(8)]
        losses += [
            train_step(model, optimizer, MicroBatch(*batch(9)), grad_clip=0.5)[0].item()
        ]  # an uncompiled step after the recorded ones
        runs.append((losses, model.state_dict(), optimizer.steps_taken, optimizer.state))
    (losses, state, taken, kept), (others, other_state, also_taken, also_kept) = runs
    assert losses == others
    assert taken == also_taken == 9
    for name in state:
        assert np.array_equal(state[name], other_state[name]), name
    for place, values in kept.items():
        assert values["step"] == also_kept[place]["step"] == 9
        assert np.array_equal(Tensor(values["v"]).numpy(), Tensor(also_kept[place]["v"]).numpy())
    assert len(set(losses)) == 9


def run_sgd(
    wrap: Callable[[Step], Step], dtype: str, options: dict[str, Any]
) -> tuple[list[float], list[Any], list[dict[str, Any]]]:
    """The gradient norms of 6 steps, then the parameters and the optimizer state."""
    w, v = (Tensor(rng(i).normal(size=(3, 2)).tolist(), dtype=dtype) for i in range(2))
    optimizer = SGDOptimizer([w, v], lr=lambda taken: 0.1 / (taken + 1), momentum=0.9, **options)

    def step(x: Tensor) -> Tensor | None:
        optimizer.zero_grad()
        (w * v * x).sum().backward()
        return optimizer.step(max_norm=0.5)

    run = wrap(step)
    inputs = [Tensor(rng(10 + i).normal(size=(3, 2)).tolist(), dtype=dtype, requires_grad=False) for i in range(6)]
    return [run(x).item() for x in inputs], [w.numpy(), v.numpy()], optimizer.state_dict()["state"]


@pytest.mark.parametrize("kind", ["gradient penalty", "curvature"])
def test_a_compiled_step_with_transforms_equals_the_plain_step(backend: Backend, kind: str) -> None:
    """A loss with a gradient of the network, or with a Hessian-vector product, and dropout in the network."""
    runs = []
    for wrap in (lambda step: step, compile_step):
        weights = [Tensor(rng(i).normal(size=shape) / 3) for i, shape in enumerate(((3, 8), (8,)))]
        optimizer = SGDOptimizer(weights, lr=lambda taken: 0.1 / (taken + 1), momentum=0.9)
        dropout = Dropout(0.3, generator=Generator(5))

        def critic(x: Tensor, weights: Any = weights, dropout: Dropout = dropout) -> Tensor:
            return (dropout((x @ weights[0]).gelu()) @ weights[1]).tanh().sum()

        def step(x: Tensor, optimizer: Any = optimizer, critic: Any = critic) -> Tensor:
            optimizer.zero_grad()
            vector = grad(critic)(x) if kind == "gradient penalty" else hvp(critic, x, x)
            loss = (vector * vector).sum() + critic(x)
            loss.backward()
            optimizer.step()
            return loss

        run = wrap(step)
        inputs = [Tensor(rng(10 + i).normal(size=(4, 3)), requires_grad=False) for i in range(7)]
        runs.append(([run(x).item() for x in inputs], [w.numpy() for w in weights]))
    assert runs[0][0] == runs[1][0]
    assert len(set(runs[0][0])) == 7
    for one, other in zip(runs[0][1], runs[1][1], strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"nesterov": True, "weight_decay": 0.1}, {"flat": True}], ids=str)
def test_a_compiled_sgd_step_with_momentum_equals_the_plain_step(
    backend: Backend, dtype: str, options: dict[str, Any]
) -> None:
    """Norms, parameters, velocities and, in bfloat16, the float32 master weights are bitwise equal."""
    if dtype not in backend.float_dtypes():
        pytest.skip(f"{backend.name} has no {dtype}")
    norms, params, state = run_sgd(lambda step: step, dtype, options)
    others, other_params, other_state = run_sgd(compile_step, dtype, options)
    assert norms == others
    assert len(set(norms)) == 6
    assert all(np.array_equal(a, b) for a, b in zip(params, other_params, strict=True))
    for own, other in zip(state, other_state, strict=True):
        assert set(own) == ({"velocity", "master"} if dtype == "bfloat16" else {"velocity"})
        assert all(np.array_equal(own[name], other[name]) for name in own)


@pytest.mark.parametrize("dropout", [{}, {"dropout": 0.3}, {"attention_dropout": 0.3}], ids=str)
@pytest.mark.parametrize("transform", ["grad", "hvp", "jvp"])
def test_a_compiled_step_with_a_transform_equals_the_plain_step(
    backend: Backend, transform: str, dropout: dict[str, Any]
) -> None:
    """A loss that contains derivatives; captures and replays draw new dropout masks."""
    runs = []
    for wrap in (lambda step: step, compile_step):
        model, optimizer = model_and_optimizer(**dropout)
        parameters = dict(model.named_parameters())
        directions = {
            name: Tensor(rng(i).normal(size=p.shape), requires_grad=False)
            for i, (name, p) in enumerate(parameters.items())
        }

        def step(ids: Any, targets: Any, model: Any = model, optimizer: Any = optimizer, p: Any = parameters,
                 v: Any = directions) -> Tensor:  # fmt: skip
            def loss_of(p: dict[str, Tensor]) -> Tensor:
                return cross_entropy_loss(functional_call(model, p, ids), targets, model.tokenizer.pad_token_id)

            optimizer.zero_grad()
            if transform == "jvp":
                loss = jvp(loss_of, (p,), (v,))[1]
            else:
                found = grad(loss_of)(p) if transform == "grad" else hvp(loss_of, p, v)
                loss = sum(((g * g).sum() for g in found.values()), loss_of(p))
            loss.backward()
            optimizer.step()
            return loss

        run, ids = wrap(step), model.tokenizer.ids
        losses = [run(*map(ids, batch(seed))).item() for seed in range(5)]
        runs.append((losses, model.state_dict()))
    assert runs[0][0] == runs[1][0]
    for name, array in runs[0][1].items():
        assert np.array_equal(array, runs[1][1][name])


def test_other_shapes_are_recorded_separately(backend: Backend) -> None:
    given = [batch(0), batch(1), batch(2), batch(3, (2, 5)), batch(4), batch(5, (2, 5)), batch(6, padded=True)]
    given += [batch(7, (2, 5)), batch(8, padded=True), batch(9, padded=True), batch(10), batch(11, padded=True)]
    runs = []
    for wrap in (lambda step: step, compile_step):
        model, optimizer = model_and_optimizer()
        step = wrap(partial(train_step, model, optimizer, grad_clip=1.0))
        runs.append(([take(model, step, *some) for some in given], model.state_dict()))
    assert runs[0][0] == runs[1][0]
    for name, array in runs[0][1].items():
        assert np.array_equal(array, runs[1][1][name])


def test_another_matmul_precision_is_recorded_separately(backend: Backend) -> None:
    levels = ["highest"] * 4 + ["medium"] * 4 + ["highest"] * 2
    runs = []
    for wrap in (lambda step: step, compile_step):
        model, optimizer = model_and_optimizer("float32")
        step, losses = wrap(partial(train_step, model, optimizer, grad_clip=0.5)), []
        try:
            for seed, level in enumerate(levels):
                set_matmul_precision(level)
                losses.append(take(model, step, *batch(seed)))
        finally:
            set_matmul_precision("highest")
        runs.append(losses)
    assert runs[0] == runs[1]


def test_arguments_may_be_tensors_numbers_and_keywords(backend: Backend) -> None:
    w = Tensor([1.0, 2.0])
    optimizer = SGDOptimizer([w], lr=lambda taken: 0.1 * (taken + 1))

    @compile_step
    def step(x: Tensor, power: int, *, scale: float = 1.0, unused: None = None) -> tuple[Tensor, Tensor]:
        optimizer.zero_grad()
        loss = ((w * x) ** power * scale).sum()
        loss.backward()
        optimizer.step()
        return loss, w * 1

    expected = np.array([1.0, 2.0])
    for i in range(6):
        x = rng(i).normal(size=2)
        loss, after = step(Tensor(x, requires_grad=False), 2, scale=0.5)
        assert loss.item() == pytest.approx(float(np.sum((expected * x) ** 2) * 0.5), rel=1e-14)
        expected = expected - 0.1 * (i + 1) * expected * x * x
        assert_close(after, expected, atol=1e-14)
        assert not loss.requires_grad
    loss, _ = step(Tensor(np.ones(2), requires_grad=False), 3, scale=0.5)
    assert loss.item() == pytest.approx(float(np.sum(expected**3) * 0.5), rel=1e-14)


def test_results_are_not_overwritten_by_the_next_step(backend: Backend) -> None:
    model, optimizer = model_and_optimizer()
    step = compile_step(partial(train_step, model, optimizer, grad_clip=0.0))
    ids = model.tokenizer.ids
    losses = [step(MicroBatch(ids(inputs), ids(targets)))[0] for inputs, targets in map(batch, range(6))]
    assert len({loss.item() for loss in losses}) == 6


def test_host_arrays_as_arguments_raise(backend: Backend) -> None:
    model, optimizer = model_and_optimizer()
    step = compile_step(partial(train_step, model, optimizer, grad_clip=0.0))
    with pytest.raises(
        TypeError, match=r"compile_step: argument 0\[1\] is a ndarray; pass Tensors, numbers, or ids that"
    ):
        step(MicroBatch(model.tokenizer.ids(batch(0)[0]), batch(0)[1]))


@pytest.mark.parametrize(
    ("work", "op"),
    [
        (lambda x: x * x.item(), "to_host"),
        (lambda x: x * Tensor(np.ones(2), requires_grad=False), "asarray"),
        (lambda x: x[x > 0], "prepare_index"),
    ],
    ids=["item", "host data", "mask"],
)
def test_an_operation_that_cannot_be_recorded_is_named(
    backend: Backend, work: Callable[[Tensor], Tensor], op: str
) -> None:
    if not hasattr(backend, "capture"):
        pytest.skip(f"{backend.name} has no capture")
    step = compile_step(lambda x: work(x.sum() if op == "to_host" else x))
    x = Tensor([1.0, 2.0], requires_grad=False)
    assert_close(step(x), step(x))
    with pytest.raises(RuntimeError, match=f"compile_step: {op} cannot be recorded in a CUDA graph"):
        step(x)
    assert_close(x * 2, np.array([2.0, 4.0]))  # the device still works


def test_operations_with_constants_can_be_recorded(backend: Backend) -> None:
    works: list[Callable[[Tensor], Tensor]] = [
        lambda x: x.pad(1, 0.5), lambda x: x.at(0).set(2.0), lambda x: x.at(0).add(2.0), lambda x: x.at(0).set(x[1]),
        lambda x: x.at(slice(None, None, -1)).set(x * 2), lambda x: x.at((None, slice(1))).add(x[1:2]),
        lambda x: x.tril(), lambda x: x.diagonal(1), lambda x: x.roll(1, 0), lambda x: x.repeat(2, 1),
        lambda x: x.norm(3, 0), lambda x: x.prod(0), lambda x: x.logsumexp(), lambda x: einsum("ij,kj->ik", x, x),
        lambda x: x.sort(0), lambda x: x.topk(2)[0], lambda x: x.cumsum(1), lambda x: x // 0.3, lambda x: x % 0.3,
        lambda x: x.std(0), lambda x: x.argmax(1) + x.argsort(), lambda x: concatenate([x] * 3, 1),
    ]  # fmt: skip
    for work in works:
        step = compile_step(work)
        for number in range(4):
            x = Tensor(rng(number).standard_normal((3, 3)), requires_grad=False)
            assert_close(step(x), work(x).numpy())


@pytest.mark.parametrize("flat", [False, True])
def test_a_failed_capture_has_not_taken_a_step(backend: Backend, flat: bool) -> None:
    """Then parameters, Adam's state, the schedule and dropout's counter are as if the call had not been made."""
    if not hasattr(backend, "capture"):
        pytest.skip(f"{backend.name} has no capture")
    runs = []
    for failing_call in (None, 3):
        model, optimizer = model_and_optimizer(dropout=0.3, flat=flat)
        calls: list[int] = []

        def work(micro_batch: MicroBatch, model: Any = model, optimizer: Any = optimizer, calls: Any = calls) -> Any:
            calls.append(len(calls) + 1)
            result = train_step(model, optimizer, micro_batch)
            if calls[-1] == failing_call:  # noqa: B023
                raise KeyboardInterrupt
            return result

        step: Any = compile_step(work)
        losses = []
        for seed in range(6):
            if seed == 2 and failing_call:
                with pytest.raises(KeyboardInterrupt):
                    take(model, step, *batch(seed))
                assert optimizer.steps_taken == 2
                assert all(p.grad is None for p in model.parameters())
            losses.append(take(model, step, *batch(seed)))
        runs.append((losses, model.state_dict(), optimizer.state_dict()))
    (losses, parameters, state), (losses_after, parameters_after, state_after) = runs
    assert losses == losses_after
    assert state["steps_taken"] == state_after["steps_taken"]
    for before, after in [(parameters, parameters_after), *zip(state["state"], state_after["state"], strict=True)]:
        for name, value in before.items():
            np.testing.assert_array_equal(value, after[name])


@pytest.mark.parametrize("value", [None, math.nan, ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("failing_call", [3, 4, 6])
def test_a_schedule_that_fails_in_a_captured_step_changes_nothing(
    backend: Backend, value: Any, failing_call: int
) -> None:
    """In the capture or in a replay, after another optimizer and dropout have done their host work."""
    if not hasattr(backend, "capture"):
        pytest.skip(f"{backend.name} has no capture")
    runs = []
    for fails in (False, True):
        failing = [False]

        def rate(step: int, failing: list[bool] = failing) -> float:
            if failing[0] and isinstance(value, type):
                raise value
            return value if failing[0] else 0.1 / (step + 1)

        v, w, dropout = Tensor([1.0, 2.0]), Tensor([3.0, 4.0]), Dropout(0.5, generator=Generator(1))
        optimizers = AdamWOptimizer([v], lr=0.1), SGDOptimizer([w], rate)

        def work(x: Tensor, v: Any = v, w: Any = w, dropout: Any = dropout, optimizers: Any = optimizers) -> Tensor:
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss = (dropout(v * x) * w).sum()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            return loss

        step, x, losses = compile_step(work), Tensor(np.array([1.0, 0.5]), requires_grad=False), []
        for call in range(1, 9):
            if fails and call == failing_call:
                failing[0] = True
                error = value if isinstance(value, type) else TypeError if value is None else ValueError
                with pytest.raises(error) as raised:
                    step(x)
                assert "CUDA graph" not in str(raised.value)
                failing[0] = False
            losses.append(step(x).item())
        runs.append((losses, v.numpy().tolist(), w.numpy().tolist(), [o.steps_taken for o in optimizers]))
    assert runs[0] == runs[1]


ONE = np.ones(2)


def minimize(w: Tensor, optimizer: Any) -> Callable[[Tensor], Tensor]:
    @compile_step
    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = (w * x).sum()
        loss.backward()
        optimizer.step()
        return loss

    return step


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("before", [2, 4])
def test_a_replaced_parameter_array_raises_if_recorded(backend: Backend, flat: bool, before: int) -> None:
    """Replaced before or after the step is recorded: the recorded step would still use the old array."""
    w = Tensor([1.0, 2.0])
    step = minimize(w, SGDOptimizer([w], lr=0.5, flat=flat))
    for _ in range(before):
        step(Tensor(ONE, requires_grad=False))
    w.requires_grad = False
    w.data = backend.asarray([10.0, 20.0])
    w.requires_grad = True
    if hasattr(backend, "capture") and (flat or before == 4):
        with pytest.raises(RuntimeError, match=r"was given a new array .* compile_step again"):
            step(Tensor(ONE, requires_grad=False))
    else:
        step(Tensor(ONE, requires_grad=False))
        assert_close(w, np.array([9.5, 19.5]))


def test_a_changed_half_precision_parameter_raises_if_recorded(backend: Backend) -> None:
    """The optimizer updates its float32 master copy, which a recorded step cannot refresh from the parameter."""
    w = Tensor(np.array([1.0, 2.0], "float16"))
    step = minimize(w, SGDOptimizer([w], lr=0.5))
    one = Tensor(np.ones(2, "float16"), requires_grad=False)
    for _ in range(4):
        step(one)
    w.data -= w.data
    if hasattr(backend, "capture"):
        with pytest.raises(RuntimeError, match="in half precision was changed after the step was captured"):
            step(one)
    else:
        step(one)
        assert_close(w, np.array([-0.5, -0.5], "float16"), atol=0)


@pytest.mark.parametrize("flat", [False, True])
def test_grad_holds_the_gradients_of_the_last_call(backend: Backend, flat: bool) -> None:
    """Also if `.grad` was cleared between calls."""
    w, v = Tensor([1.0, 2.0]), Tensor([3.0, 4.0])
    optimizer = SGDOptimizer([w], lr=0.0, flat=flat)

    @compile_step
    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        v.zero_grad()
        loss = (w * x * v).sum()
        loss.backward()
        return loss

    for i in range(6):
        x = rng(i).normal(size=2)
        step(Tensor(x, requires_grad=False))
        assert_close(v.grad, np.array([1.0, 2.0]) * x, atol=1e-15)
        assert_close(w.grad, np.array([3.0, 4.0]) * x, atol=1e-15)
        if i % 2:
            optimizer.zero_grad()
            v.zero_grad()


def test_accumulating_gradients_over_recorded_calls_raises(backend: Backend) -> None:
    w = Tensor([1.0, 2.0])
    step = compile_step(lambda x: (w * x).sum().backward())
    x = Tensor(ONE, requires_grad=False)
    for _ in range(2):
        step(x)
    assert_close(w.grad, 2 * ONE)
    if hasattr(backend, "capture"):
        with pytest.raises(RuntimeError, match=r"a gradient from before .* call zero_grad\(\) within the step"):
            step(x)
    else:
        step(x)
        assert_close(w.grad, 3 * ONE)


def test_arguments_that_track_gradients_raise(backend: Backend) -> None:
    with pytest.raises(
        TypeError, match=r"compile_step: argument x is a Tensor that tracks gradients, .* pass \.detach"
    ):
        compile_step(lambda x: x)(x=Tensor([1.0]))


def test_results_other_than_tensors_and_none_raise(backend: Backend) -> None:
    with pytest.raises(TypeError, match="compile_step: the step returned a float; return Tensors, or None"):
        compile_step(lambda x: x.item())(Tensor([1.0], requires_grad=False))
    with pytest.raises(TypeError, match="compile_step: the step returned a list"):
        compile_step(lambda x: [x])(Tensor([1.0], requires_grad=False))
    assert compile_step(lambda: None)() is None


def test_an_interrupted_recording_leaves_the_step_usable(backend: Backend) -> None:
    """KeyboardInterrupt propagates, and the step and the device still work."""
    calls = []

    @compile_step
    def step(x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return x @ x

    x = Tensor(ONE, requires_grad=False)
    assert_close(step(x), step(x))
    with pytest.raises(KeyboardInterrupt):
        step(x)
    assert_close(step(x), np.array(2.0))
    assert_close(x @ x, np.array(2.0))


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


def test_named_tuples_keep_their_type(backend: Backend) -> None:
    step = compile_step(lambda pair: Pair(pair.left + pair.right, pair.left * pair.right))
    for i in range(4):
        left, right = (Tensor([1.0 + i, x], requires_grad=False) for x in (2.0, 3.0))
        found = step(Pair(left, right))
        assert type(found) is Pair
        assert_close(found.left, [2.0 + 2 * i, 5.0])
        assert_close(found.right, [(1.0 + i) ** 2, 6.0])
