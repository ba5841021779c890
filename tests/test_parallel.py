"""parallel_backward: gradients of the parts of a batch, computed in several threads."""

import importlib
import threading
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import russellgrad as rg
from russellgrad import Tensor, layers, no_grad
from russellgrad.backend import Backend
from russellgrad.parallel import n_parts, parallel_backward
from russellgrad.random import Generator, default_generator
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer
from tests.helpers import assert_close, rng

cpu: Any = importlib.import_module("russellgrad.backends.cpu")
N = 12  # rows of a batch


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The number of threads, on the backends that have any."""
    monkeypatch.setattr(cpu, "_n_threads", request.param)
    monkeypatch.setattr(cpu, "_queue", None)
    return int(request.param)


def runs_in_threads(backend: Backend, threads: int) -> bool:
    return threads > 1 and hasattr(backend, "run_tasks")


def build_model(dropout: float = 0.0, attention_dropout: float = 0.0) -> Transformer:
    tokenizer = Tokenizer.from_text("abcdefgh", 6, 8, seed=0)
    options: dict[str, Any] = {"dropout": dropout, "attention_dropout": attention_dropout}
    return Transformer(tokenizer, 2, 2, activation="gelu", final_norm=True, seed=0, **options)


def batch() -> tuple[Any, Any]:
    ids = rng().integers(0, 8, (N, 7))
    return ids[:, :-1], ids[:, 1:]


def loss_of_rows(model: Transformer, start: int, stop: int) -> Tensor:
    """The rows' part of the batch's mean loss."""
    inputs, targets = batch()
    loss = rg.cross_entropy(model(inputs[start:stop]), targets[start:stop])
    return loss * ((stop - start) / N)


def grad_of(x: Tensor) -> Any:
    return x.backend.to_host(x.grad).tolist()


def gradients(model: Transformer) -> dict[str, Any]:
    return {name: p.backend.to_host(p.grad) for name, p in model.named_parameters()}


@pytest.mark.parametrize("bounds", [[0, 12], [0, 6, 12], [0, 4, 8, 12], [0, 1, 5, 6, 10, 12]])
@pytest.mark.parametrize("dropout", [(0.0, 0.0), (0.4, 0.0), (0.0, 0.4), (0.3, 0.4)], ids=str)
def test_the_gradients_are_those_of_the_whole_batch(
    backend: Backend, threads: int, bounds: list[int], dropout: tuple[float, float]
) -> None:
    whole, model = build_model(*dropout), build_model(*dropout)
    for _ in range(2):  # the second time, gradients and random numbers continue
        whole.dropout.start_batch()
        expected = loss_of_rows(whole, 0, N)
        expected.backward()

        def loss_of(rows: tuple[int, int]) -> Tensor:
            model.dropout.continue_batch(rows[0])
            return loss_of_rows(model, *rows)

        model.dropout.start_batch()
        losses = parallel_backward(loss_of, pairwise(bounds))
        assert len(losses) == len(bounds) - 1 and all(loss._node is None for loss in losses)
        assert_close(sum(float(loss) for loss in losses), float(expected), atol=1e-12)
    assert whole.dropout.generator is not None and model.dropout.generator is not None
    assert model.dropout.generator.counter == whole.dropout.generator.counter
    for name, expected_gradient in gradients(whole).items():
        assert_close(gradients(model)[name], expected_gradient, atol=1e-12, what=name)


def test_the_same_parts_give_the_same_bits(backend: Backend, threads: int) -> None:
    def one() -> list[bytes]:
        model = build_model()
        parallel_backward(lambda rows: loss_of_rows(model, *rows), [(0, 5), (5, 9), (9, N)])
        return [gradient.tobytes() for gradient in gradients(model).values()]

    assert one() == one() == one()


def test_the_parts_run_at_the_same_time(backend: Backend, threads: int) -> None:
    x = Tensor([1.0, 2.0], requires_grad=True)
    barrier = threading.Barrier(threads if runs_in_threads(backend, threads) else 1)

    def loss_of(i: float) -> Tensor:
        barrier.wait(timeout=20)  # passes only if all parts have begun
        return (x * i).sum()

    parallel_backward(loss_of, [1.0] * threads)
    assert grad_of(x) == [threads] * 2


def test_an_error_of_a_part_changes_no_gradient(backend: Backend, threads: int) -> None:
    x = Tensor([1.0, 2.0], requires_grad=True)
    before = x.grad = backend.asarray([5.0, 5.0], x.dtype)

    def loss_of(i: int) -> Tensor:
        if i == 3:
            raise KeyError("part 3")
        return x.sum()

    with pytest.raises(KeyError, match="part 3"):
        parallel_backward(loss_of, range(4))
    if runs_in_threads(backend, threads):
        assert x.grad is before
    x.zero_grad()
    parallel_backward(loss_of, range(3))
    assert grad_of(x) == [3.0, 3.0]


def test_other_leaves_hooks_and_frozen_parameters(backend: Backend, threads: int) -> None:
    """A leaf that only one part uses, one without a gradient, and a hook, which sees each part's gradient."""
    a, b = Tensor([1.0], requires_grad=True), Tensor([2.0], requires_grad=True)
    frozen, seen = Tensor([3.0], requires_grad=False), []
    a.register_hook(lambda g: seen.append(float(backend.to_host(g)[0])))
    parallel_backward(lambda i: (a * i + (b if i == 2 else frozen)).sum(), [1.0, 2.0, 3.0])
    assert grad_of(a) == [6.0]
    assert grad_of(b) == [1.0]
    assert frozen.grad is None and sorted(seen) == [1.0, 2.0, 3.0]


def test_nested_calls_and_later_backward(backend: Backend, threads: int) -> None:
    x = Tensor([1.0, 2.0], requires_grad=True)

    def loss_of(i: float) -> Tensor:
        parallel_backward(lambda j: (x * i * j).sum(), [1.0, 10.0, 100.0])
        return (x * i).sum()

    parallel_backward(loss_of, [1.0, 2.0])
    assert grad_of(x) == [3 * 112.0] * 2
    x.sum().backward()
    assert grad_of(x) == [3 * 112.0 + 1] * 2


def test_an_error_after_a_nested_call_changes_no_gradient(backend: Backend, threads: int) -> None:
    if not runs_in_threads(backend, threads):
        return
    x = Tensor([1.0, 2.0], requires_grad=True)

    def loss_of(i: int) -> Tensor:
        parallel_backward(lambda j: (x * j).sum(), [1.0, 2.0, 3.0])
        raise KeyError(i)

    with pytest.raises(KeyError):
        parallel_backward(loss_of, range(3))
    assert x.grad is None


def test_transforms_and_leaves_of_a_part(backend: Backend, threads: int) -> None:
    """Derivatives that a part computes, and backward of leaves that it makes, are as outside."""
    x = Tensor([1.0, 2.0, 3.0], requires_grad=True)

    def cubes(x: Tensor) -> Tensor:
        return (x**3).sum()

    def loss_of(i: float) -> Tensor:
        inner = Tensor([4.0], requires_grad=True)
        (inner * i).sum().backward()
        (inner * i).sum().backward()
        assert grad_of(inner) == [2 * i]
        inner.zero_grad()
        assert inner.grad is None
        product = rg.grad(cubes)(x)
        return (product * product).sum() * i  # 9 x^4

    parallel_backward(loss_of, [1.0, 2.0, 3.0])
    assert_close(x.grad, 6.0 * 36 * np.array([1.0, 8.0, 27.0]))


def test_traces_in_two_parts_at_once_are_an_error(backend: Backend, threads: int) -> None:
    x, refused = Tensor([1.0, 2.0], requires_grad=True), threading.Event()

    def loss_of(i: float) -> Tensor:
        try:
            with rg.trace():
                assert not runs_in_threads(backend, threads) or refused.wait(timeout=30)
                return (x * i).sum()
        except RuntimeError:
            refused.set()
            raise

    several = pytest.raises(RuntimeError, match=r"trace: another trace is active.* around the call")
    with several if runs_in_threads(backend, threads) else nullcontext():
        parallel_backward(loss_of, [1.0, 2.0])


def test_the_sums_of_the_threads_are_added_in_order(backend: Backend, threads: int) -> None:
    values = [1.0, 3e16, -3e16, 7.0, 1e16, -2.0, -1e16]
    x = Tensor([1.0], requires_grad=True)
    parallel_backward(lambda i: (x * i).sum(), values)
    n = threads if runs_in_threads(backend, threads) else 1
    bounds = [len(values) * i // n for i in range(n + 1)]
    expected = sum(sum(values[a:b]) for a, b in pairwise(bounds))
    assert grad_of(x) == [expected]


def test_no_parts_and_one_part(backend: Backend, threads: int) -> None:
    x = Tensor([2.0], requires_grad=True)
    assert parallel_backward(lambda part: x.sum(), []) == [] and x.grad is None
    assert [float(loss) for loss in parallel_backward(lambda part: (x * part).sum(), [3.0])] == [6.0]
    assert grad_of(x) == [3.0]


def test_the_context_of_the_caller_is_that_of_the_parts(backend: Backend, threads: int) -> None:
    x = Tensor([2.0], requires_grad=True)
    with no_grad(), pytest.raises(RuntimeError, match="backward"):
        parallel_backward(lambda part: x.sum(), range(3))

    def loss_of(part: int) -> Tensor:
        assert rg.get_backend() is backend
        return x.sum()

    parallel_backward(loss_of, range(3))


def test_random_numbers_that_would_be_the_same_in_several_parts(backend: Backend, threads: int) -> None:
    x, drop = Tensor(np.ones((N, 3)), requires_grad=True), layers.Dropout(0.5, generator=Generator(0))
    if not runs_in_threads(backend, threads):
        parallel_backward(lambda rows: drop(x[rows]).sum(), [slice(0, 6), slice(6, 12)])
        return
    with pytest.raises(RuntimeError, match=r"parallel_backward: two parts drew the same random numbers.*continue"):
        parallel_backward(lambda rows: drop(x[rows]).sum(), [slice(0, 6), slice(6, 12)])
    assert x.grad is None
    with pytest.raises(RuntimeError, match="normal: parallel_backward cannot draw normal numbers in several threads"):
        parallel_backward(lambda rows: (x[rows] * rg.randn(6, 3)).sum(), [slice(0, 6), slice(6, 12)])
    before = default_generator().counter
    rg.randn(2)
    assert default_generator().counter == before + 1

    def draws(parts: list[tuple[int, int]]) -> int:
        """The counter after parts with a first row and a number of draws."""
        generator = Generator(1)
        generator.start_batch()

        def loss_of(part: tuple[int, int]) -> Tensor:
            generator.continue_batch(part[0])
            for _ in range(part[1]):
                generator.uniform((2,), "float64", backend)
            return x.sum()

        parallel_backward(loss_of, parts)
        return generator.counter

    assert draws([(0, 3), (4, 2), (8, 1)]) == 1  # the last part's
    assert draws([(0, 0), (0, 0), (0, 0)]) == 0
    for parts in ([(0, 1), (0, 1), (8, 1)], [(0, 1), (4, 1), (0, 1), (8, 1)], [(0, 1), (4, 1), (8, 1), (8, 1)]):
        with pytest.raises(RuntimeError, match="two parts drew the same random numbers"):
            draws(parts)


def test_a_nested_call_has_the_random_state_of_the_part_around_it(backend: Backend, threads: int) -> None:
    x, generator = Tensor([1.0], requires_grad=True), Generator(0)

    def loss_of(i: int) -> Tensor:
        generator.counter = 5 + i

        def inner(j: int) -> Tensor:
            assert generator.counter == 5 + i
            generator.start_batch(j)
            return x.sum()

        parallel_backward(inner, range(4))
        assert generator.counter == 5 + i
        return x.sum()

    parallel_backward(loss_of, range(3))
    assert generator.counter == 7


def test_batch_norm_keeps_no_running_averages_of_parts(backend: Backend, threads: int) -> None:
    layer, x = layers.BatchNorm(3), Tensor(rng().normal(size=(N, 3)))
    parts = [slice(0, 6), slice(6, 12)]
    if runs_in_threads(backend, threads):
        with pytest.raises(
            RuntimeError, match="BatchNorm: cannot update running averages in a part of parallel_backward"
        ):
            parallel_backward(lambda rows: layer(x[rows]).sum(), parts)
    layer.eval()
    parallel_backward(lambda rows: layer(x[rows]).sum(), parts)


def test_a_trace_sees_the_parts_one_after_another(backend: Backend, threads: int) -> None:
    x = Tensor([1.0, 2.0], requires_grad=True)
    caller = threading.get_ident()

    def loss_of(i: float) -> Tensor:
        assert threading.get_ident() == caller
        return (x * i).sum()

    with rg.trace() as trace:
        parallel_backward(loss_of, [1.0, 2.0, 3.0])
    assert "6 operations" in str(trace)
    assert grad_of(x) == [6.0, 6.0]


def test_the_number_of_parts(backend: Backend, threads: int) -> None:
    """It divides the rows, and is limited by the threads and by the work."""
    most = threads if runs_in_threads(backend, threads) else 1
    assert n_parts(12, 1e12) == most
    assert n_parts(7, 1e12) == 1
    assert n_parts(1, 1e12) == 1
    assert n_parts(4, 1e12) == min(most, 2)  # 3 does not divide 4
    assert n_parts(12, 2.9e9) == n_parts(12, 0) == 1
    assert n_parts(12, 3.1e9) == min(most, 2)
