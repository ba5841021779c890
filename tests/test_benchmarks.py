"""The benchmarks run at tiny sizes for one turn and report the expected tables. No timing is asserted."""

import json
import math
import os
import re
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__ as everything
from benchmarks import (
    convolution,
    generate,
    growth,
    limit,
    measure,
    memory,
    ops,
    overhead,
    pretrained,
    readme,
    second_derivatives,
    step_peers,
    train_step,
)
from benchmarks.candidates import limits
from benchmarks.candidates.model import LLAMA, Size
from benchmarks.measure import OURS, Candidate, Table, Worker, check_close
from benchmarks.peers import __main__ as peers
from benchmarks.peers import with_torch
from benchmarks.peers.tasks import TASKS
from benchmarks.train_step import TINY, TORCH, TORCH_FUSED
from benchmarks.worker import STATUS
from tests.process import ROOT, run_python

pytestmark = pytest.mark.skipif(
    os.environ.get("RG_BACKEND", "numpy") != "numpy", reason="the benchmarks compare NumPy with PyTorch on the CPU"
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use NumPy, do not pause between turns, and write results to a temporary folder."""
    monkeypatch.setenv("RG_BACKEND", "numpy")
    monkeypatch.setattr(measure, "REST", 0.0)
    monkeypatch.setattr(measure, "RESULTS", tmp_path)


def check_table(table: Table, cases: int, peers: set[str]) -> None:
    """Check that the table has one row per case, with finite positive numbers, in JSON and in Markdown."""
    assert len(table.rows) == cases
    for row in table.rows:
        assert set(row) == {"case", "turns", table.unit, "ratio"}
        assert set(row[table.unit]) == {OURS, *peers}
        assert set(row["ratio"]) == peers
        for numbers in row[table.unit].values():
            assert 0 < numbers["least"] <= numbers["median"] <= numbers["most"] < math.inf
        assert all(0 < ratio < math.inf for ratio in row["ratio"].values())
        assert f"\n| {row['case']} | " in table.markdown()
    json.dumps(table.rows, allow_nan=False)


def numpy_peers() -> set[str]:
    return set(overhead.numpy_peers())


def test_train_step_table() -> None:
    """The benchmark itself compares the losses of the candidates."""
    (table,) = train_step.tables(quick=True)
    check_table(table, 1, {TORCH, TORCH_FUSED, train_step.WHOLE, "matrix products"})


def test_other_libraries_give_the_same_losses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those that are installed: the benchmark compares the losses, which depend on the gradients and on AdamW."""
    others = [name for name in step_peers.LIBRARIES if name not in (f"{OURS}, Numba", step_peers.COMPILED)]
    monkeypatch.setattr("sys.argv", ["step_peers", "--quick", "--name", "some", "--only", *others])
    step_peers.main()
    table = json.loads((tmp_path / "some.json").read_text(encoding="utf-8"))["tables"]["train_step_peers"]
    *measured, quoted = table["rows"]
    assert quoted["library"].startswith("llm.c") and quoted["how"].startswith("quoted: its README")
    missing = [name for name in others if any(note.startswith(f"Not measured: {name} (") for note in table["notes"])]
    assert {OURS, TORCH, TORCH_FUSED}.isdisjoint(missing)
    assert [row["library"] for row in measured] == [name for name in others if name not in missing]
    for row in measured:
        assert row["how"] == "measured" and row["case"] == TINY
        assert 0 < row["ratio"] < math.inf and 0 < row["milliseconds"]["median"] < math.inf
    text = (tmp_path / "some.md").read_text(encoding="utf-8")
    assert f"\n| {TINY} | {TORCH} | measured | " in text and f"\n| {quoted['case']} | {quoted['library']} | " in text
    assert measure.HOW_TO_READ not in text  # the ratios are to PyTorch


def test_other_losses_are_an_error_and_a_slow_library_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = {name: (sys.executable, dict(step_peers.LIBRARIES[name].environment)) for name in (OURS, TORCH)}
    monkeypatch.setattr(step_peers, "SLOW", 0.0)
    assert step_peers.measure_size(TINY, libraries, 1, 0.0) == {}
    assert step_peers.expected_seconds("2/2/16/4/2", {}) == 0
    assert step_peers.expected_seconds("2/2/16/4/2", {TINY: 1.0, "4/2/16/8/2": 20.0}) == 5.0  # of 8 and 20 / 4
    other = replace(step_peers.LIBRARIES[TORCH], module="products", arguments=())
    monkeypatch.setattr(step_peers, "LIBRARIES", {**step_peers.LIBRARIES, TORCH: other})
    monkeypatch.setattr(Worker, "call", lambda worker, *counts: (1e-3, 1.0 + worker.candidate[0].count("d"), 0.0))
    with pytest.raises(RuntimeError, match="the candidates did not do the same"):
        step_peers.measure_size(TINY, libraries, 1, 0.0)


def test_pretrained_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `transformers`, whose import takes seconds in each of its processes."""
    ours = pretrained.candidates
    monkeypatch.setattr(pretrained, "candidates", lambda *work: dict.fromkeys(ours(*work), ours(*work)[OURS]))
    tables = pretrained.tables(quick=True)
    assert [table.name for table in tables] == ["pretrained_generate", "pretrained_step", "pretrained_memory"]
    for table, cases in zip(tables, (1, 1, 2 * STATUS.exists()), strict=True):
        check_table(table, cases, {pretrained.TORCH})


def test_limit_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "SHOWN", 0.0)  # on a busy machine, a primitive may be a small part of the step
    whole, parts = limit.tables(quick=True)
    (row,) = whole.rows
    numbers = {key: value for key, value in row.items() if key != "case"}
    assert all(0 < value < math.inf for value in numbers.values())
    assert max(row["peak"], row["memory"]) <= row["limit"] < row["primitives"]
    assert sum(part["ms"] for part in parts.rows) == pytest.approx(row["timed"])
    assert sum(part["share"] for part in parts.rows) == pytest.approx(100)
    assert {"linear", "linear_backward", "attention_backward", limit.OTHERS, limit.PYTHON} <= {
        part["case"] for part in parts.rows
    }
    for table in (whole, parts):
        assert f"\n| {table.rows[0]['case']} | " in table.markdown()
        json.dumps(table.rows, allow_nan=False)


def test_the_operations_of_a_step_are_those_of_its_products() -> None:
    """Forward and backward of the linear layers and the logits are 6 operations for each weight and token."""
    work = limit.counted(TINY)
    layers, heads, width, length, batch = map(int, TINY.split("/"))
    tokens, inner, classes = batch * length, width // heads, 66
    weights = layers * 12 * width**2
    scores = batch * heads * length * (length + 1) // 2
    assert work["attention"][2] == layers * 2 * 2 * scores * inner
    assert work["attention_backward"][2] == layers * 4 * 2 * scores * inner
    total = sum(operations for _, _, operations, _ in work.values())
    assert total == 6 * tokens * (weights + width * classes) + layers * 6 * 2 * scores * inner


def test_bytes_are_those_of_operands_and_results() -> None:
    a, row = np.zeros((3, 4), np.float32), np.zeros(4, np.float32)
    assert limits.bytes_moved((a, row), a + row) == 48 + 16 + 48
    assert limits.bytes_moved((a, a), a * a) == 48 + 48  # one operand
    assert limits.bytes_moved((a, (4, 3)), a.T) == 0  # a view
    assert limits.bytes_moved((a, np.broadcast_to(row, (3, 4))), a) == 48 + 16 + 48  # in place
    assert limits.bytes_moved((a,), a.dtype) == 0
    assert limits.bytes_moved((a, np.ones_like(a)), None) == 48 + 48  # assign
    assert limits.bytes_moved(([a, row], 1.0), (np.zeros(2), None)) == 48 + 16 + 16


def test_ops_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "OPS", {"attention": "attention"})
    table, small = ops.tables(quick=True)
    optimizer = table.rows.pop()
    assert set(optimizer["ratio"]) == {TORCH, TORCH_FUSED}
    check_table(table, 1, {TORCH})
    check_table(small, 1, {ops.FORMULAS, TORCH})


def test_every_op_gives_the_same_norms_as_pytorch() -> None:
    """Compares the norms of the output and of each gradient, in this process."""
    from benchmarks.candidates import ours, torch_eager

    for op in ops.OPS:
        outcomes: dict[str, Any] = {
            OURS: ours.op(op, TINY)()(),
            TORCH: torch_eager.op(op, TINY)()(),
        }
        check_close(op, 1e-4)(outcomes)


def test_convolution_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "MODES", {"both": "forward and backward"})
    (table,) = convolution.tables(quick=True)
    check_table(table, 1, {TORCH})


def test_every_convolution_gives_the_same_norms_as_pytorch() -> None:
    from benchmarks.candidates import conv_cases, conv_ours, conv_torch

    for case in conv_cases.CASES:
        for mode in convolution.MODES:
            outcomes: dict[str, Any] = {OURS: conv_ours.op(case, mode)()(), TORCH: conv_torch.op(case, mode)()()}
            check_close(f"{case}, {mode}", 1e-4)(outcomes)


def test_peers_of_an_op_that_are_not_installed_are_skipped_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "installed", lambda name: False)
    monkeypatch.setattr(overhead, "OPS", ())
    assert "autograd, mygrad" in overhead.op_table(1, 0.0).notes[-1]


def test_overhead_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "MODES", {"both": "forward and backward"})
    monkeypatch.setattr(overhead, "OPS", ("add",))
    table, *imports = overhead.tables(quick=True)
    check_table(table, 1, {TORCH, *numpy_peers()})
    for one in imports:
        check_table(one, 1, {TORCH})
    assert [one.name for one in imports] == ["import", "import_all"]


@pytest.mark.skipif(not STATUS.exists(), reason="the benchmark reads the peak memory from Linux's /proc")
def test_memory_table() -> None:
    (table,) = memory.tables(quick=True)
    check_table(table, 1, {TORCH})


def test_small_ops_run_with_and_without_gradients() -> None:
    from benchmarks.candidates import ours

    assert not ours.small_op("multiply", "plain")().requires_grad
    assert ours.small_op("multiply", "recorded")().requires_grad
    for module in ("ours", "torch_eager"):
        with Worker((module, "small_op", "multiply", "plain")) as worker:
            assert worker.call(timed=2)[0] > 0


def test_growth_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurements are replaced by constants; the tests above cover them."""
    monkeypatch.setattr(growth, "measure", lambda size, candidates, *limits: {name: [1.0] for name in candidates})
    monkeypatch.setattr(memory, "peak", lambda candidate: 1.0)
    tables = growth.tables(quick=True)
    for table in tables[:3]:
        check_table(table, 2, {TORCH, TORCH_FUSED})
    for table in tables[3:]:
        check_table(table, 2 * STATUS.exists(), {TORCH})
    names = ["growth_length", "growth_batch", "growth_width"]
    assert [table.name for table in tables] == [*names, "growth_memory", "growth_memory_batch", "growth_memory_width"]


def test_figures_of_an_earlier_run_are_shown(tmp_path: Path) -> None:
    """Of the run of the same name, or of the one that is given; a case that it lacks gets a dash."""
    facts = measure.circumstances("benchmarks")
    for name, seconds in {"some": 0.004, "other": 0.003}.items():
        table = Table("step", "", "size", "milliseconds")
        table.add("a", {OURS: [seconds], TORCH: [0.002]})
        measure.write(name, [table], {**facts, "commit": name, "date": "2026-01-02T03"})
        assert "before" not in (tmp_path / f"{name}.md").read_text(encoding="utf-8")
    for before, shown in {None: "4.00 | 2.00", "other": "3.00 | 1.50"}.items():
        table = Table("step", "", "size", "milliseconds")
        for case in ("a", "b"):
            table.add(case, {OURS: [0.001], TORCH: [0.002]})
        measure.write("new" if before else "some", [table], facts, before=before)
        text = (tmp_path / ("new.md" if before else "some.md")).read_text(encoding="utf-8")
        assert f"| ratio to torch | turns | {OURS} before, ms | ratio to torch before |" in text
        assert f"| a | 1.00 | 2.00 | 0.50 | 1 | {shown} |" in text
        assert "| b | 1.00 | 2.00 | 0.50 | 1 | - | - |" in text
        assert f"\n- before: {before or 'some'}, 2026-01-02, {before or 'some'}, {facts['processor']}" in text
    with pytest.raises(FileNotFoundError, match="--before no_such"):
        measure.write("new", [], facts, before="no_such")


def test_command_line_writes_json_and_markdown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks", "--quick", "--only", "generate", "--name", "some"])
    everything.main()
    data = json.loads((tmp_path / "some.json").read_text(encoding="utf-8"))
    text = (tmp_path / "some.md").read_text(encoding="utf-8")
    assert list(data["tables"]) == ["generate_cached", "generate", "generate_batch", "generate_memory"]
    cached, past, batched, peak = (Table(**table) for table in data["tables"].values())
    ways = {TORCH, generate.OURS_UNCACHED, generate.TORCH_UNCACHED}
    mixed = {TORCH, generate.OURS_MIXED}
    for table, cases, others in (
        (cached, 1, ways), (past, 1, {TORCH}), (batched, 1, mixed), (peak, STATUS.exists(), ways),
    ):  # fmt: skip
        check_table(table, cases, others)
        assert table.markdown() in text
    assert data["command"] == "python -m benchmarks --quick --only generate --name some"
    for fact in ("date", "commit", "processor", "cores", "BLAS of NumPy", "BLAS of torch", "torch threads", "numpy"):
        assert f"\n- {fact}: {data[fact]}\n" in text
    assert set(everything.PARTS) == {
        "train_step",
        "ops",
        "convolution",
        "overhead",
        "memory",
        "growth",
        "generate",
        "second_derivatives",
    }


def test_command_line_for_llama(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The benchmarks themselves compare losses and texts with those of a Llama in PyTorch."""
    monkeypatch.setattr("sys.argv", ["benchmarks", "--quick", "--blocks", "llama", "--name", "some"])
    everything.main()
    tables = json.loads((tmp_path / "some.json").read_text(encoding="utf-8"))["tables"]
    assert [*tables] == ["train_step", "memory", "generate_cached", "generate", "generate_batch", "generate_memory"]
    assert all(row["case"].startswith(LLAMA) for table in tables.values() for row in table["rows"])
    assert str(Size.parse(LLAMA + TINY)) == LLAMA + TINY and Size.parse(TINY).blocks == ""


def test_second_derivatives_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark itself compares the derivatives of the candidates."""
    monkeypatch.setattr(second_derivatives, "TORCH_WAYS", {"torch": ("double backward", "composed")})
    monkeypatch.setattr(second_derivatives, "SMALL", {"Jacobian": "full_jacobian"})
    monkeypatch.setattr(second_derivatives, "hips", list)
    monkeypatch.setattr(second_derivatives, "peak", lambda candidate: 1.0)
    product, passes, one, *peers, small, peak = second_derivatives.tables(quick=True)
    for table in (product, passes, one):
        check_table(table, 1, {TORCH})
    assert not any(table.rows for table in peers)
    check_table(small, 2, {TORCH, second_derivatives.TORCH_FUNC})
    check_table(peak, STATUS.exists(), {TORCH})
    times, multiples = (table.rows[0][table.unit][OURS]["median"] for table in (product, passes))
    assert multiples == pytest.approx(times / one.rows[0][one.unit][OURS]["median"])  # in the one turn


def test_peers_table_has_a_row_for_each_program_and_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "TASKS", {"line": TASKS["line"]})
    table = peers.table([OURS], {}, quick=True)
    assert [(row["task"], row["library"]) for row in table.rows] == [("line", OURS), ("line", TORCH)]
    for row in table.rows:
        seconds = row["seconds"]
        assert 0 < seconds["least"] <= seconds["median"] <= seconds["most"] < math.inf
        assert 0 < row["first"] < math.inf and 0 < row["ratio"] < math.inf and 0 <= row["result"] < math.inf
        assert f"\n| {row['task']} | {row['library']} | {row['lines']} | " in table.markdown()
    json.dumps(table.rows, allow_nan=False)


@pytest.mark.parametrize(
    ("task", "length", "tolerance"),
    [("line", 200, 1e-5), ("points", 300, 0.05), ("digits", 5, 0.05), ("images", 5, 0.1)],
)
def test_a_program_gives_the_same_result_with_pytorch(task: str, length: int, tolerance: float, tmp_path: Path) -> None:
    """The mean squared error of the line, which has converged; accuracies from other initial weights."""
    if task in ("digits", "images"):
        pytest.importorskip("sklearn")
    data = TASKS[task].data()
    np.savez(tmp_path / "data.npz", *data)
    with Worker(("peers", "program", "ours", task, str(tmp_path / "data.npz"), str(length)), environment={}) as worker:
        ours = worker.call()[1]  # in a process of its own, since the program sets the default dtype
    theirs = getattr(with_torch, task)(*data, length)
    assert ours == pytest.approx(theirs, abs=tolerance)
    assert task == "line" or ours > 0.75


def test_a_peer_that_is_not_installed_is_skipped_and_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = replace(peers.PEERS[TORCH], check="import no_such_module", install="pip install it")
    monkeypatch.setattr(peers, "PEERS", {"missing": missing, TORCH: peers.PEERS[TORCH]})
    monkeypatch.setattr(peers, "TASKS", {"line": TASKS["line"]})
    row = {"task": "line", "library": TORCH, "lines": 1, "first": 1.0, "ratio": 1.0, "result": 1.0}
    row["seconds"] = dict.fromkeys(("median", "least", "most"), 1.0)
    monkeypatch.setattr(
        peers, "measure_task", lambda name, candidates, *more: [row] if set(candidates) == {TORCH} else []
    )
    monkeypatch.setattr("sys.argv", ["peers", "--quick", "--name", "some", "--only", "missing"])
    peers.main()
    table = json.loads((tmp_path / "some.json").read_text(encoding="utf-8"))["tables"]["peers"]
    assert table["rows"] == [row]
    first, second = table["notes"][len(peers.NOTES) :]
    assert first == (
        "Not measured: missing (ModuleNotFoundError: No module named 'no_such_module'). Install: pip install it."
    )
    assert second.startswith("torch: Python ")
    text = (tmp_path / "some.md").read_text(encoding="utf-8")
    assert (
        first in text and "| line | torch | 1 | 1.00 | 1.00 (1.00 to 1.00) | 1.00 | mean squared error 1.00 |" in text
    )


@pytest.mark.parametrize("argument", [f"no_such={sys.executable}", "tinygrad=/no/such/python", "tinygrad"])
def test_a_library_or_an_interpreter_that_does_not_exist_is_an_error(
    argument: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["peers", "--python", argument])
    with pytest.raises(SystemExit):
        peers.main()
    assert f"--python {argument}: needs a library (russellgrad, " in capsys.readouterr().err


def test_lines_of_code_counts_what_a_program_uses(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(
        '''"""A docstring."""
import numpy

setting = numpy.float32(1)

def unused():
    return 0

@decorator
class Model:
    # a comment

    size = 1

def train(model):
    return model.size

def program():
    return train(
        Model())
''',
        encoding="utf-8",
    )
    assert peers.lines_of_code(path, "program") == 1 + 3 + 2 + 3
    assert peers.lines_of_code(path, "unused") == 1 + 2


def derivative(candidate: Candidate, *more: str) -> list[float]:
    """The result of a candidate, in this process."""
    module, function, *arguments = candidate
    numbers: list[float] = getattr(import_module(f"benchmarks.candidates.{module}"), function)(*arguments, *more)()()
    return numbers


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # by torch.func, which calls it
def test_second_derivatives_agree_in_float64() -> None:
    """All ways to compute the transformer's Hessian-vector product and its Jacobian-vector product."""
    everyone = second_derivatives.hvp_candidates(TINY)
    tangents = second_derivatives.small_candidates("jacobian_vector_product", TINY)
    if second_derivatives.hips():
        everyone["autograd"] = ("second_autograd", "hessian_vector_product", TINY)
    for name, group in {"hvp": everyone, "jvp": tangents}.items():
        check_close(name, 1e-12)({who: derivative(candidate, "float64") for who, candidate in group.items()})


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_the_derivatives_of_small_networks_agree() -> None:
    for function in second_derivatives.SMALL.values():
        everyone = second_derivatives.small_candidates(function)
        check_close(function, 1e-5)({who: derivative(candidate) for who, candidate in everyone.items()})


def test_a_wrong_sign_or_order_changes_the_fingerprint() -> None:
    from benchmarks.candidates.model import fingerprint, random

    array = random(3, 4)
    for other in (-array, array[::-1]):
        with pytest.raises(RuntimeError, match="did not do the same"):
            check_close("fingerprint", 1e-3)({"a": fingerprint([array]), "b": fingerprint([other])})


def test_candidates_with_different_results_raise() -> None:
    check = check_close("this", 1e-3)
    check({"a": [1.0, 2.0], "b": [1.0, 2.001], "none": None})
    with pytest.raises(RuntimeError, match="this: the candidates did not do the same"):
        check({"a": 1.0, "b": 1.01})


def test_a_candidate_that_fails_raises() -> None:
    with Worker(("ours", "op", "no_such_op", TINY)) as worker, pytest.raises(RuntimeError, match="no_such_op"):
        worker.call()


def test_require_cpu_refuses_a_gpu_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    measure.require_cpu()
    on_mps = SimpleNamespace(__dlpack_device__=lambda: (8, 0))
    monkeypatch.setattr("russellgrad.get_backend", lambda: SimpleNamespace(name="mps", zeros=lambda *args: on_mps))
    with pytest.raises(SystemExit, match="RG_BACKEND=numpy"):
        measure.require_cpu()


def test_chart_is_drawn_as_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks import chart

    table = Table("train_step", "", "", "milliseconds")
    table.add(TINY, {OURS: [1.0], TORCH: [2.0], TORCH_FUSED: [4.0]})
    now = {**measure.circumstances("benchmarks"), "tables": {"train_step": {"rows": table.rows}}}
    assert chart.ratios_in(now) == {TINY: 0.5}
    chart.draw({"before": now, "now": now}, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_chart_of_a_file_without_a_training_step_raises(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks import chart

    (tmp_path / "old.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"old\.json has no training step; measure it with"):
        chart._load("old")


def test_the_tables_on_the_page_match_the_results() -> None:
    """Run `python -m benchmarks.readme` if this fails: it updates the page after a benchmark run."""
    text = readme.PAGE.read_text(encoding="utf-8")
    assert text.partition(readme.BEGIN)[2].partition(readme.END)[0] == readme.figures()
    assert text.partition(readme.BEGIN_PEERS)[2].partition(readme.END)[0] == readme.peer_figures()


def test_a_new_results_file_appears_on_the_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The rows name its machine and commit. A file without any table of the page is left out."""
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    table = Table("train_step", "", "", "milliseconds")
    table.add(TINY, {OURS: [0.001], TORCH: [0.002], TORCH_FUSED: [0.004], "matrix products": [0.0005]})
    measure.write("laptop", [table], {**measure.circumstances("benchmarks"), "commit": "abc1234", "processor": "Other"})
    measure.write("ops-alone", [], measure.circumstances("benchmarks"))
    runs = readme.load_runs()
    assert list(runs) == ["laptop"]
    text = readme.figures()
    assert f"{runs['laptop']['date'][:10]}, abc1234 | Other, " in text
    assert f"| {TINY} | laptop | numpy | 1.0 ms | 0.50 | 0.25 | 2.00 | - | - |" in text


def test_limits_and_peers_of_the_step_appear_on_the_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    assert readme.step_peers_parts() == readme.limit_parts() == []
    facts = {**measure.circumstances("benchmarks"), "commit": "abc1234", "processor": "Other"}
    rows = [
        {"case": size, "library": library, "how": "measured", "ratio": ratio, "milliseconds": {"median": ms}}
        for size, library, ratio, ms in (("a", OURS, 0.5, 1.0), ("a", TORCH, 1.0, 2.0), ("b", TORCH, 1.0, 30.0))
    ]
    table = measure.Rows("train_step_peers", "", {}, ["A note."], [*rows, step_peers.QUOTED])
    monkeypatch.setattr(measure.Rows, "markdown", lambda table: "\n\n| limits |")
    measure.write("step-peers", [table], facts)
    text = "\n".join(readme.step_peers_parts())
    assert f"| {OURS} | measured | 1.00 ms, 0.50 | - |\n| {TORCH} | measured | 2.00 ms, 1.00 | 30.0 ms, 1.00 |" in text
    assert "8 threads: 1324 ms at 12/12/768/64/4, 50,257 tokens | - | - |" in text
    assert "A note." in text and "abc1234, Other" in text
    limits = measure.Rows("limits", "", {}, ["Why.", "This machine."], [{"case": "a"}, {"case": "b"}])
    first = [{"case": limit.PYTHON, "ms": 2.0, "limit": 0.0}, {"case": "linear", "ms": 1.0, "limit": 0.25}]
    second = [{"case": "add", "ms": 3.0, "limit": 1.0}, {"case": limit.OTHERS, "ms": 4.0, "limit": 1.0}]
    sizes = [measure.Rows(f"limit {size}", "", {}, [], rows) for size, rows in {"a": first, "b": second}.items()]
    for name in ("limit", "limit-numba"):
        measure.write(name, [limits, *sizes], facts)
    text = "\n".join(readme.limit_parts())
    assert text.count("Why.") == 1 and text.count("| limits |") == text.count("This machine.") == 2
    assert "| linear | 1.00 (0.25) | - |\n| add | - | 3.00 (1) |\n" in text
    for last in (f"| {limit.PYTHON} | 2.00 (0) | - |", f"| {limit.OTHERS} | - | 4.00 (1) |"):
        assert text.rindex(last) > text.rindex("| add |")


def test_the_summary_has_the_ratios_of_the_tables_and_a_dash_for_a_missing_run() -> None:
    size, ratio = "4/4/128/64/12", {TORCH: 0.5}
    run = {"tables": {"train_step": {"rows": [{"case": size, "ratio": ratio}]}}}
    first = readme.summary_table({readme.NEWEST[1]: run}).splitlines()[2]
    assert first == f"| time of a training step, {size} | - | 0.50 |"
    runs = readme.load_runs()
    assert "| - |" not in readme.summary_table(runs)  # every figure of the page's summary was measured


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_revisions_compares_commits() -> None:
    done = run_python("-m", "benchmarks.revisions", "HEAD", "HEAD~0", "--sizes", TINY, "--rounds=1", "--seconds=0.01")
    assert done.returncode == 0, done.stderr
    *_, row = done.stdout.splitlines()
    assert re.fullmatch(rf"\| {TINY} \| [\d.]+ ms \| [\d.]+ ms \([\d.]+\) \|", row)
