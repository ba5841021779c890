"""Traces: recorded operations, modules and backward passes. A trace does not change results or memory."""

import contextlib
import errno
import gc
import inspect
import math
import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest

import russellgrad as rg
from russellgrad import Tensor, custom_op, draw, layers, rules, trace
from russellgrad.backend import Backend
from russellgrad.graph.node import GraphNode
from russellgrad.graph.values import NUMBERS, values_of
from russellgrad.tracing import Trace
from tests.helpers import once, rng, to_numpy
from tests.process import output_of


def names(t: Trace) -> list[str]:
    return [node.name for node in t.nodes if node.kind == "op"]


def the(t: Any, name: str) -> GraphNode:
    (found,) = [node for node in t.nodes if node.name == name or node.label == name]
    return found


def numbers(node: GraphNode) -> list[float]:
    assert node.value is not None and node.value.numbers is not None
    return list(node.value.numbers)


# --- Operations


def test_records_each_operation_with_its_operands_and_values(backend: Backend) -> None:
    x = Tensor([2.0, -1.0], label="x")
    with trace() as t:
        y = x**2 + 3 * x + 1
    assert names(t) == ["power", "multiply", "add", "add"]
    power, multiply, first, last = (node for node in t.nodes if node.kind == "op")
    assert [o if isinstance(o, str) else o.label for o in power.operands] == ["x", "2"]
    assert [o if isinstance(o, str) else o.label for o in multiply.operands] == ["3", "x"]
    assert first.operands == [power, multiply] and last.operands == [first, "1"]
    assert power.operands[0] is multiply.operands[1]  # one node for one tensor
    assert [numbers(n) for n in (power, multiply, first, last)] == [[4, 1], [6, -3], [10, -2], [11, -1]]
    assert {(node.shape, node.dtype) for node in t.nodes} == {((2,), "float64")}
    assert t._graph.outputs == [last]
    assert power.place is not None and power.place[0] == "test_trace.py" and power.place[2] == "y = x**2 + 3 * x + 1"
    np.testing.assert_array_equal(to_numpy(y), numbers(last))


def test_the_file_of_an_operation_in_a_notebook_is_its_cell(backend: Backend) -> None:
    with trace() as t:
        exec(compile("x * 2", "/tmp/ipykernel_12/1279845975.py", "exec"), {"x": Tensor([1.0])})
    assert t.nodes[-1].place == ("notebook cell", 1, "")


def test_inputs_are_leaves_constants_or_from_before_the_trace(backend: Backend) -> None:
    w, x = Tensor([1.0]), Tensor([2.0], requires_grad=False)
    before = w.exp()
    with trace() as t:
        before * x + w
    assert [(node.kind, node.name) for node in t.nodes if node.kind != "op"] == [
        ("unrecorded", "exp"), ("constant", "constant"), ("leaf", "leaf")
    ]  # fmt: skip


def test_tensors_among_the_parameters_are_operands(backend: Backend) -> None:
    x = Tensor(rng().normal(size=(3, 4)))
    with trace() as t:
        (x > 0).label = "mask"
        rg.where(x > 0, x, 0.0)
    where = the(t, "where")
    assert [o if isinstance(o, str) else o.name for o in where.operands] == ["leaf", "0", "greater"]
    with trace() as t:
        x.sum(axis=1, keepdims=True)
        x[1:, ..., ::2]
    assert the(t, "sum").parameters == {"axis": "1", "keepdims": "True"}
    assert the(t, "getitem").parameters == {"index": "(1:, ..., ::2)"}


def test_values_are_copied(backend: Backend) -> None:
    x = Tensor([1.0, 2.0], label="x")
    with trace() as t:
        x * 2
        x.data = x.data + 10  # a new value: another node
        x * 2
        x.data += 100  # in place
        x * 2
    assert [numbers(node) for node in t.nodes if node.label == "x"] == [[1, 2], [11, 12], [111, 112]]
    assert [numbers(node) for node in t.nodes if node.name == "multiply"] == [[2, 4], [22, 24], [222, 224]]


def test_large_values_are_summarised(backend: Backend) -> None:
    data = rng().normal(size=(40, 70))
    with trace() as t:
        Tensor(data) * 1.0
    value = the(t, "multiply").value
    assert value is not None and value.numbers is None
    assert (value.low, value.high) == (data.min(), data.max())
    assert value.mean == pytest.approx(data.mean(), abs=1e-14)
    picked = data[::2, ::3]
    expected = np.round((picked - data.min()) / np.ptp(data) * 254)
    assert (value.rows, value.columns) == picked.shape
    assert np.abs(np.frombuffer(value.grid, np.uint8).reshape(picked.shape) - expected).max() <= 1


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3)), np.array(3), np.array([True, False]), np.zeros((100, 0, 3)), np.full(1000, 3),
        np.full(1000, np.nan), np.full((9, 9), np.inf), np.array([1e308, -1e308] * 200), np.ones(1000, bool),
        np.array([np.nan, 1.0, -np.inf]), np.arange(1000, dtype="float16"), np.full((1, 5000), 1e-320),
    ],
)  # fmt: skip
def test_values_of_any_array(array: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = values_of(array)
    finite = array[np.isfinite(array)].astype("float64")
    assert (value.shape, value.size) == (array.shape, array.size)
    assert value.not_finite == array.size - finite.size
    assert (value.numbers is not None) == (array.size <= NUMBERS)
    assert len(value.grid) == value.rows * value.columns <= 24 * 32
    if finite.size:
        assert (value.low, value.high) == (finite.min(), finite.max())
        assert value.mean == pytest.approx((finite / 1e3).mean() * 1e3, rel=1e-12)
    else:
        assert math.isnan(value.low) and math.isnan(value.high) and math.isnan(value.mean)
    assert value.summary()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_float_dtype(backend: Backend, dtype: str) -> None:
    if dtype not in backend.float_dtypes():
        pytest.skip(f"{backend.name} has no {dtype}")
    with trace() as t:
        y = (Tensor(np.arange(100.0), requires_grad=True).astype(dtype) * 2).sum()
    t.backward(y)
    assert numbers(the(t, "sum")) == pytest.approx([9900], rel=0.01)
    assert the(t, "sum").dtype == dtype


def test_nothing_is_different_under_a_trace(backend: Backend) -> None:
    def run(traced: bool) -> list[Any]:
        rg.manual_seed(3)
        model = layers.Sequential(layers.Linear(5, 7), layers.Tanh(), layers.Dropout(0.5), layers.Linear(7, 3))
        x = Tensor(rng().normal(size=(4, 5)))
        if traced:
            with trace() as t:
                loss = rg.cross_entropy(model(x), [0, 1, 2, 0])
            t.backward(loss)
        else:
            loss = rg.cross_entropy(model(x), [0, 1, 2, 0])
            loss.backward()
        return [to_numpy(loss), *(to_numpy(p.grad) for p in [x, *model.parameters()])]

    for plain, traced in zip(run(False), run(True), strict=True):
        np.testing.assert_array_equal(plain, traced)


# --- The source of rules


@once
def test_source_of_a_rule_and_its_pullbacks() -> None:
    with trace() as t:
        Tensor([2.0]) * Tensor([3.0])
        Tensor([2.0]).exp()
        Tensor([[1.0]]) @ Tensor([[1.0]])
        rg.softmax(Tensor([1.0, 2.0]))
    multiply = the(t, "multiply")
    assert multiply.forward is not None and multiply.forward.text == "xp.multiply(a, b)"
    assert [p and p.text for p in multiply.pullbacks] == ["lambda g: xp.multiply(g, b)", "lambda g: xp.multiply(g, a)"]
    lines, first = inspect.getsourcelines(rules.multiply)
    assert (multiply.forward.source.file, multiply.forward.line) == ("russellgrad/rules.py", first)
    assert multiply.forward.source.text + "\n" == "".join(lines)
    matmul = the(t, "matmul")
    assert matmul.forward is not None and matmul.forward.text == "xp.matmul(a, b)"
    assert [p.text.split("(")[0] for p in matmul.pullbacks if p] == ["def pull_a", "def pull_b"]
    softmax = the(t, "softmax")
    assert softmax.forward is not None and softmax.forward.text == "xp.softmax(a, axis)"
    assert [p.text for p in softmax.pullbacks if p] == ["lambda g: xp.softmax_backward(g, out, axis)"]


@once
def test_every_rule_of_the_library_has_a_source() -> None:
    model = layers.Sequential(layers.Conv2d(1, 2, 3), layers.BatchNorm(2), layers.GELU(), layers.MaxPool2d(2))
    attention, lstm = layers.MultiHeadAttention(8, 2), layers.LSTM(4, 8)
    with trace() as t:
        a = model(Tensor(rng().normal(size=(2, 1, 10, 10)))).var() + Tensor([1.0, 2.0]).norm().maximum(1.0)
        h = lstm(Tensor(rng().normal(size=(3, 2, 4))))[0]
        loss = a.sum() + attention(h, h, h)[0].clip(-1, 1).sort().cumsum(0).prod(0).mean()
    t.backward(loss)
    for node in t.nodes:
        if node.kind == "op":
            assert node.forward is not None, node.name
            assert node.forward.text in node.forward.source.text
            for pullback in filter(None, node.pullbacks):
                assert pullback.text.startswith(("lambda", "def")), (node.name, pullback.text)
    for arrival in t.arrivals:
        for c in arrival.contributions:
            assert arrival.node.pullbacks[c.position], arrival.node.name


@once
def test_rules_without_a_source_are_recorded() -> None:
    namespace: dict[str, Any] = {}
    exec("def double(xp, a): return xp.multiply(a, 2), lambda g: xp.multiply(g, 2)", namespace)
    double = custom_op(namespace["double"])
    own = custom_op(lambda xp, a: (xp.multiply(a, 3), lambda g: xp.multiply(g, 3)))
    with trace() as t:
        y = own(double(Tensor(1.0)))
    t.backward(y)
    assert the(t, "double").forward is None and the(t, "double").pullbacks == [None]
    assert the(t, "<lambda>").pullbacks[0] is not None
    assert "".join(p.text for p in the(t, "<lambda>").pullbacks if p) == "lambda g: xp.multiply(g, 3)"


@once
def test_of_several_return_statements_the_one_that_ran_is_shown() -> None:
    with trace() as t:
        Tensor(np.ones((2, 3))).T.transpose((1, 0))
    texts = [n.forward.text for n in t.nodes if n.name == "transpose" and n.forward]
    assert texts == ["xp.transpose(a)", "xp.transpose(a, order)"]


def test_arrays_are_operands(backend: Backend) -> None:
    mask = backend.asarray([1.0, 0.0], "float64")
    with trace() as t:
        Tensor([2.0, 3.0]) * mask
    assert [(n.kind, numbers(n)) for n in t.nodes] == [("leaf", [2, 3]), ("constant", [1, 0]), ("op", [2, 0])]
    assert the(t, "multiply").operands == t.nodes[:2]


# --- Modules


class Twice(rg.Module):
    def __init__(self) -> None:
        self.inner = [layers.Linear(3, 3), layers.Linear(3, 3)]
        self.act = layers.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.inner:
            x = self.act(layer(x))
        return x + 1


def test_modules_group_the_operations(backend: Backend) -> None:
    model, x = Twice(), Tensor(np.ones((2, 3)), label="x")
    with trace() as t:
        y = model(x) * 2
        model.forward(y)
    scopes = [node.scope for node in t.nodes if node.name in ("linear", "relu", "add", "multiply")]
    assert scopes[:6] == [
        ("Twice", "inner.0"), ("Twice", "act"), ("Twice", "inner.1"), ("Twice", "act (2)"), ("Twice",), ()
    ]  # fmt: skip
    assert scopes[6:8] == [("Twice (2)", "inner.0"), ("Twice (2)", "act")]
    assert t._graph.classes["Twice", "inner.0"] == "Linear"
    assert the(t, "x").scope == ()  # an argument of the calls
    assert [n.scope for n in t.nodes if n.label == "weight"] == [("Twice", "inner.0"), ("Twice", "inner.1")]


def test_an_error_in_a_module_does_not_change_later_scopes(backend: Backend) -> None:
    model = Twice()
    with trace() as t:
        with pytest.raises(ValueError, match="Linear: x has shape"):
            model(Tensor(np.ones((2, 4))))
        Tensor([1.0]).exp()
    assert the(t, "exp").scope == ()


# --- Backward


def test_backward_is_recorded_in_the_order_of_the_engine(backend: Backend) -> None:
    x = Tensor([2.0], label="x")
    with trace() as t:
        y = x**2 + 3 * x + 1
    t.backward(y)
    np.testing.assert_array_equal(to_numpy(x.grad), [7])
    assert [a.node.name for a in t.arrivals] == ["add", "add", "multiply", "power", "leaf"]
    assert [a.gradient.numbers for a in t.arrivals] == [(1.0,), (1.0,), (1.0,), (1.0,), (7.0,)]
    multiply, power, leaf = t.arrivals[2:]
    (first,), (second,) = multiply.contributions, power.contributions
    assert (first.position, first.part.numbers, first.before) == (1, (3.0,), None)
    assert (second.position, second.part.numbers) == (0, (4.0,))
    assert second.before is first.total and second.total.numbers == (7.0,)
    assert leaf.gradient is second.total and leaf.fills and not multiply.fills and not leaf.contributions
    assert multiply.freed == [] and power.freed == ["a (1,)"]


def test_backward_of_an_operand_used_twice_and_of_broadcasting(backend: Backend) -> None:
    x, b = Tensor(rng().normal(size=(2, 3)), label="x"), Tensor([1.0, 2.0, 3.0], label="b")
    with trace() as t:
        y = x * x + b
    upstream = rng(1).normal(size=(2, 3))
    t.backward(y, Tensor(upstream, requires_grad=False), retain_graph=True)
    (add, multiply) = t.arrivals[0], next(a for a in t.arrivals if a.node.name == "multiply")
    of_b = next(c for c in add.contributions if c.target.label == "b")
    assert (of_b.shape, of_b.part.shape) == ((2, 3), (3,))
    np.testing.assert_allclose(of_b.part.numbers or (), upstream.sum(0), rtol=0, atol=1e-12)
    assert [c.position for c in multiply.contributions] == [0, 1]
    assert multiply.contributions[1].before is multiply.contributions[0].total
    np.testing.assert_allclose(
        multiply.contributions[1].total.numbers or (), to_numpy(x.grad).reshape(-1), rtol=0, atol=1e-12
    )
    assert all(a.freed == [] for a in t.arrivals)  # retain_graph
    t.backward(y, Tensor(upstream, requires_grad=False))  # another pass
    assert len(t.arrivals) == 8
    assert multiply.node.saved and t.arrivals[5].freed == multiply.node.saved


def test_backward_shows_what_hooks_change(backend: Backend) -> None:
    x = Tensor([1.0], label="x")
    x.register_hook(lambda g: g * 10)
    with trace() as t:
        y = x * 2
    t.backward(y)
    assert t.arrivals[0].contributions[0].total.numbers == (2.0,)
    assert t.arrivals[1].gradient.numbers == (20.0,)


def test_backward_through_operations_from_before_the_trace(backend: Backend) -> None:
    x = Tensor([2.0], label="x")
    before = x * x
    with trace() as t:
        y = before + x
    t.backward(y)
    np.testing.assert_array_equal(to_numpy(x.grad), [5])
    assert [a.node.name for a in t.arrivals] == ["add", "multiply", "leaf"]
    assert t.arrivals[-1].gradient.numbers == (5.0,)


# --- Transforms


def test_of_a_transform_the_operations_of_the_function_are_recorded(backend: Backend) -> None:
    x = Tensor([1.0, 2.0], label="x")

    def f(x: Tensor) -> Tensor:
        return (x.sin() * x).sum()

    for transform in (rg.grad(f), rg.grad(lambda x: rg.grad(f)(x).sum()), lambda x: rg.jvp(f, (x,), (x,))[0]):
        with trace() as t:
            result: Tensor = transform(x)
        assert names(t)[:3] == ["sin", "multiply", "sum"]
        np.testing.assert_allclose(numbers(the(t, "sin")), np.sin([1, 2]), rtol=0, atol=1e-12)
    assert result.shape == ()
    with trace() as t:
        y = (rg.grad(f)(x) * 3).sum()
    assert names(t) == ["sin", "multiply", "sum", "multiply", "sum"]
    t.backward(y)
    np.testing.assert_allclose(
        to_numpy(x.grad), 3 * (2 * np.cos([1, 2]) - np.array([1, 2]) * np.sin([1, 2])), atol=1e-12
    )


# --- What a trace must not do


def test_a_trace_holds_no_tensors_and_makes_no_cycles(backend: Backend) -> None:
    gc.collect()
    gc.disable()
    try:
        model, x = layers.Linear(3, 3), Tensor(np.ones((2, 3)))
        with trace() as t:
            hidden = model(x)
            y = hidden.exp().sum()
        t.backward(y)
        dead = [ref(value) for value in (model, x, hidden, y, *model.parameters())]
        model.weight, model.bias = None, None  # type: ignore[assignment]
        del model, x, hidden, y
        assert [r() for r in dead] == [None] * len(dead)
        nodes = [ref(node) for node in t.nodes]
        del t
        assert [r() for r in nodes] == [None] * len(nodes)
    finally:
        gc.enable()


def test_observer_is_removed_after_an_error(backend: Backend) -> None:
    found: list[Trace] = []
    with contextlib.suppress(ZeroDivisionError), trace() as t:
        found.append(t)
        Tensor([1.0]).exp()
        raise ZeroDivisionError
    Tensor([1.0]).log()
    assert names(found[0]) == ["exp"]
    with trace() as t, pytest.raises(RuntimeError, match="another trace is active"), trace():
        pass
    with trace() as t:
        Tensor([1.0]).sin()
    assert names(t) == ["sin"]


@once
def test_other_threads_are_not_recorded() -> None:
    with trace() as t:
        thread = threading.Thread(target=lambda: Tensor([1.0]).exp())
        thread.start()
        thread.join()
        Tensor([1.0]).sin()
    assert names(t) == ["sin"]


@once
def test_import_does_not_load_traces() -> None:
    code = (
        "import sys, russellgrad as rg; print([n for n in sys.modules if 'russellgrad.graph' in n or 'tracing' in n])"
    )
    assert output_of(code) == "[]"
    assert output_of("import russellgrad as rg, russellgrad.tracing; print(callable(rg.trace), callable(rg.draw))") == (
        "True True"
    )


def test_compile_step_runs_its_step_within_a_trace(backend: Backend) -> None:
    step = rg.compile_step(lambda x: x * 2 + 1)
    x = Tensor([1.0], requires_grad=False)
    for _ in range(4):  # where the backend captures, the last calls are replays
        step(x)
    with trace() as t:
        np.testing.assert_array_equal(to_numpy(step(x)), [3])
    assert names(t) == ["multiply", "add"]


# --- Limits and bad input


def test_a_full_trace_says_so(backend: Backend) -> None:
    x = Tensor([1.0])
    with trace(limit=3) as t:
        y = x
        for _ in range(5):
            y = y * 2
    assert len(names(t)) == 3
    assert "2 more nodes are left out." in t.svg()
    with pytest.raises(ValueError, match=r"not recorded; the trace is full: pass limit= to russellgrad.trace, now 3"):
        t.backward(y)


@once
def test_a_graph_of_100000_nodes_is_drawn_in_part() -> None:
    x = y = Tensor([1.0])
    for _ in range(100_000):
        y = y * 1.0001
    drawing = draw(y, limit=500)
    assert len(drawing.nodes) == 500
    assert "99,501 more nodes are left out." in drawing.svg(depth=0)
    assert drawing.nodes[0].operands == ["…"]
    assert x.grad is None


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "limit": (lambda: trace(0).__enter__(), ValueError, "trace: limit must be a positive int, got 0"),
    "matrix": (lambda: trace(Tensor([[1.0]])).__enter__(), TypeError, r"for a matrix, write x\.trace\(\)"),  # type: ignore[arg-type]
    "draw limit": (lambda: draw(Tensor([1.0]), limit=True), ValueError, "draw: limit must be a positive int"),
    "draw array": (lambda: draw(np.ones(2)), TypeError, "draw: needs a Tensor, got a ndarray"),  # type: ignore[arg-type]
    "draw constant": (lambda: draw(Tensor([True])), RuntimeError, "draw: this tensor tracks no gradients"),
    "depth": (lambda: draw(Tensor([1.0])).svg(depth=-1), ValueError, "svg: depth must be an int of at least 0"),
}


@once
@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


def test_errors_of_backward(backend: Backend) -> None:
    x = Tensor([1.0, 2.0])
    outside = x * 2
    with trace() as t:
        y, constant = x * 3, Tensor([1.0], requires_grad=False) + 1
    with pytest.raises(ValueError, match="this tensor was not recorded; compute it inside"):
        t.backward(outside.sum())
    with pytest.raises(RuntimeError, match="needs gradient="):
        t.backward(y)
    with pytest.raises(RuntimeError, match="tracks no gradients"):
        t.backward(constant)
    with pytest.raises(TypeError, match=r"Trace\.backward: needs a Tensor"):
        t.backward(1.0)  # type: ignore[arg-type]
    t.backward(y, Tensor([1.0, 1.0]))
    with pytest.raises(RuntimeError, match="was freed by an earlier backward"):
        t.backward(y, Tensor([1.0, 1.0]))
    with pytest.raises(RuntimeError, match=r"draw: the graph at 'multiply' was freed by backward\(\)"):
        draw(y)


def test_nan_is_shown(backend: Backend) -> None:
    with trace() as t:
        y = Tensor([1.0, math.nan]) * 0
    t.backward(y, Tensor([1.0, 1.0]))
    value = the(t, "multiply").value
    assert value is not None and value.not_finite == 1
    classes = re.findall(r'class="node ([^"]*)"', t.svg())
    assert classes == ["leaf not-finite", "op output not-finite"]


@once
def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    drawing = draw(Tensor([1.0]) * 2)
    for write in (drawing.svg, drawing.dot, drawing.html):
        with pytest.raises(FileNotFoundError, match="missing"):
            write(tmp_path / "missing" / "graph")
        with pytest.raises(OSError, match=f"not a file that can be replaced: '{tmp_path}'"):
            write(tmp_path)
        write(tmp_path / "graph")
        assert (tmp_path / "graph").stat().st_size > 100


@once
def test_a_file_is_replaced_only_by_a_complete_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "graph"
    path.write_text("before")

    def full(temporary: Path, content: bytes) -> None:
        temporary.write_bytes(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device", str(temporary))

    monkeypatch.setattr("russellgrad.serialization.write_synced", full)
    drawing = draw(Tensor([1.0]) * 2)
    for write in (drawing.svg, drawing.dot, drawing.html):
        with pytest.raises(OSError, match=f"No space left on device: '{path}'$"):
            write(path)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
