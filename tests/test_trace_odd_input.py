"""Traces of odd input: extreme numbers, operands that are left out, arrays changed in place, hooks, other threads."""

import contextlib
import copy
import linecache
import math
import pickle
import threading
from typing import Any

import numpy as np
import pytest

import russellgrad as rg
from russellgrad import Module, Tensor, autograd, custom_op, layers, trace
from russellgrad.backend import Backend
from russellgrad.graph.node import GraphNode
from russellgrad.graph.values import values_of
from russellgrad.tracing import Trace
from tests.helpers import once, rng, to_numpy


def texts(node: GraphNode) -> list[str]:
    return [operand if isinstance(operand, str) else operand.label or operand.name for operand in node.operands]


@once
@pytest.mark.parametrize("numbers", [[1e308] * 3, [1.7976931348623157e308] * 63, [1e308, -1e308, 1e308, 1e308]])
def test_the_mean_of_huge_numbers_is_finite(numbers: list[float]) -> None:
    value = values_of(np.array(numbers))
    assert value.mean == pytest.approx(math.fsum(x / 64 for x in numbers) / len(numbers) * 64, rel=1e-12)
    assert value.low <= value.mean <= value.high


def test_numbers_of_numpy_are_shown_as_numbers(backend: Backend) -> None:
    x = Tensor([1.0, 2.0], label="x")
    with trace() as t:
        x * np.float64(3)
        x.clip(np.float32(0.5), np.int64(2))
    assert [node.title for node in t.nodes if node.kind == "op"] == ["multiply(·, 3)", "clip(·, 0.5, 2)"]


def test_an_operand_that_is_left_out_keeps_its_position(backend: Backend) -> None:
    x, b = Tensor(rng().normal(size=(2, 3)), label="x"), Tensor(np.zeros(3), label="b")
    with trace() as t:
        y = rg.layer_norm(x, None, b)
        y.label = "y"
        loss = rg.layer_norm(y).sum()
    t.backward(loss)
    first, second, last = (node for node in t.nodes if node.kind == "op")
    assert (texts(first), texts(second), texts(last)) == (["x", "None", "b"], ["y"], ["layer_norm"])
    for arrival in t.arrivals:
        assert all(arrival.node.operands[c.position] is c.target for c in arrival.contributions)


def test_of_an_operand_twice_the_pullback_that_ran_is_named(backend: Backend) -> None:
    second = custom_op(lambda xp, a, b: (xp.multiply(a, b), None, lambda g: xp.multiply(g, a)))
    x = Tensor([3.0])
    with trace() as t:
        y = second(x, x)
    t.backward(y)
    assert [c.position for c in t.arrivals[0].contributions] == [1]


def test_labels_of_outputs_are_recorded(backend: Backend) -> None:
    with trace() as t:
        hidden = Tensor([1.0]) * 2
        hidden.label = "hidden"
        loss = hidden.exp()
        loss.label = "loss"
    t.backward(loss)
    assert [node.label for node in t.nodes] == ["", "hidden", "loss"]


@pytest.mark.parametrize("grad", [True, False])
def test_an_output_that_is_changed_in_place_is_another_input(backend: Backend, grad: bool) -> None:
    x = Tensor([1.0, 2.0], requires_grad=grad)
    with trace() as t:
        y = x * 2
        y.data += 100
        y + 1
    assert [node.value and node.value.numbers for node in t.nodes] == [(1, 2), (2, 4), (102, 104), (103, 105)]
    assert t.nodes[-1].operands == [t.nodes[2], "1"] and t.nodes[2].kind == ("unrecorded" if grad else "constant")


def test_a_parameter_whose_repr_fails_is_recorded(backend: Backend) -> None:
    class NoRepr:
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    op = custom_op(lambda xp, a, option: (xp.multiply(a, 3), lambda g: xp.multiply(g, 3)))
    with trace() as t:
        op(Tensor([1.0]), option=NoRepr())
    assert t.nodes[-1].parameters == {"option": "<NoRepr>"}


class WithSet(Module):
    """`parameters()` raises an error, but a forward pass does not."""

    def __init__(self) -> None:
        self.layers = {layers.Linear(2, 2)}

    def forward(self, x: Tensor) -> Tensor:
        return next(iter(self.layers))(x)


def test_a_module_whose_members_have_no_names_is_traced(backend: Backend) -> None:
    with trace() as t:
        WithSet()(Tensor(np.ones((1, 2))))
    assert t.nodes[-1].scope == ("WithSet", "Linear")


@once
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("def double(xp, a):\n    return xp.add(a, a), lambda g: xp.multiply(g, 2)\n", "xp.add(a, a)"),
        (
            "double = lambda xp, a: (xp.add(a, a), lambda g: xp.multiply(g, 2))",
            "lambda xp, a: (xp.add(a, a), lambda g: xp.multiply(g, 2))",
        ),
    ],
)
def test_the_source_of_a_rule_in_a_notebook_is_its_cell(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = "/tmp/ipykernel_12/34.py"
    monkeypatch.setitem(linecache.cache, file, (len(text), None, text.splitlines(keepends=True), file))
    namespace: dict[str, Any] = {}
    exec(compile(text, file, "exec"), namespace)
    double = custom_op(namespace["double"])
    with trace() as t:
        double(Tensor([1.0]))
    forward, (pullback,) = t.nodes[-1].forward, t.nodes[-1].pullbacks
    assert forward is not None and forward.text == shown and forward.source.file == "notebook cell"
    assert pullback is not None and pullback.text == "lambda g: xp.multiply(g, 2)"


def test_a_trace_in_a_hook_records_the_block(backend: Backend) -> None:
    found: list[Trace] = []

    def hook(g: Any) -> None:
        with trace() as t:
            Tensor(g, requires_grad=False) * 2
        found.append(t)

    x = Tensor([1.0])
    x.register_hook(hook)
    (x * 3).backward()
    assert [node.name for node in found[0].nodes] == ["constant", "multiply"]


def test_an_operation_that_raises_is_not_recorded(backend: Backend) -> None:
    x = Tensor([1.0, 2.0])
    with trace() as t:
        with contextlib.suppress(ValueError):
            x + Tensor([1.0, 2.0, 3.0])
        y = x * 2
    assert [node.name for node in t.nodes] == ["leaf", "multiply"]
    t.backward(y, Tensor([1.0, 1.0], requires_grad=False))
    np.testing.assert_array_equal(to_numpy(x.grad), [2, 2])


@once
def test_bad_arguments_raise_without_a_with_statement() -> None:
    with pytest.raises(TypeError, match=r"for a matrix, write x\.trace\(\)"):
        rg.trace(Tensor([[1.0]]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="limit must be a positive int"):
        rg.trace(-1)


@once
def test_a_pass_in_another_thread_is_not_recorded() -> None:
    """Even if it starts between `t.backward` and the first node of its pass."""
    x, other = Tensor([1.0], label="x"), Tensor([2.0], label="other")
    with trace() as t:
        y, z = x * 2, other * 2
    real = autograd.backward

    def backward_after_another(*arguments: Any) -> None:
        assert z._node is not None
        thread = threading.Thread(target=real, args=(z._node, np.ones(1), False))
        thread.start()
        thread.join()
        real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("russellgrad.tensor.backward", backward_after_another)
        t.backward(y)
    assert to_numpy(other.grad) == [2]
    assert [arrival.node.label or arrival.node.name for arrival in t.arrivals] == ["multiply", "x"]


def test_a_trace_within_a_captured_step_raises(backend: Backend) -> None:
    if not hasattr(backend, "capture"):
        pytest.skip(f"{backend.name} captures no steps")

    def step(x: Tensor) -> Tensor:
        with trace():
            return x * 2

    compiled, x = rg.compile_step(step), Tensor([1.0], requires_grad=False)
    for _ in range(2):
        compiled(x)
    with pytest.raises(RuntimeError, match="trace the call of the compiled step instead"):
        compiled(x)  # captures the step
    with trace() as t:
        x * 3
    assert t.nodes[-1].name == "multiply"


def test_a_trace_can_be_copied_and_pickled(backend: Backend) -> None:
    x = y = Tensor([1.0], label="x")
    with trace() as t:
        for _ in range(2000):
            y = y * 1.0
    t.backward(y)
    for again in (pickle.loads(pickle.dumps(t)), copy.deepcopy(t)):
        assert repr(again) == repr(t) and again.dot() == t.dot()
        assert again.arrivals[0].node is again.nodes[-1]
    assert x.grad is not None
