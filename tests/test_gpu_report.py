"""The GPU report, tested without a GPU: on the CuPy stand-in, and on PyTorch's arrays on the CPU."""

import json
import math
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import gpu_checks, gpu_profile, gpu_report, gpu_timing, measure
from benchmarks.candidates.gpu_graph import graph_nodes
from benchmarks.candidates.gpu_ours import Ours
from benchmarks.candidates.gpu_torch import Torch, peak_memory
from benchmarks.candidates.model import Size
from benchmarks.gpu_checks import Run, differences, suite, what_differs
from benchmarks.gpu_plan import Clock, Plan, Section, ours
from benchmarks.gpu_process import CandidateError, Process
from benchmarks.gpu_timing import CAPTURED, TOLERANCE, off, timing
from benchmarks.measure import OURS
from benchmarks.train_step import TINY, TORCH
from russellgrad import get_matmul_precision, set_matmul_precision
from tests.process import run_python

STANDIN = os.environ.get("RG_CUPY") == "standin"
pytestmark = [
    pytest.mark.skipif(
        not STANDIN and bool(os.environ.get("RG_BACKEND")),
        reason="the GPU report is tested with the CuPy stand-in: RG_CUPY=standin RG_BACKEND=cupy",
    ),
    pytest.mark.skipif(shutil.which("g++") is None, reason="the stand-in compiles the kernels with g++"),
]
SECONDS = 60.0  # timeout for an answer, long enough to compile the kernels for the stand-in


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Use the stand-in, write results to a temporary folder, and restore the matmul precisions after each test."""
    monkeypatch.setenv("RG_CUPY", "standin")
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    ours, theirs = get_matmul_precision(), torch.get_float32_matmul_precision()
    yield
    set_matmul_precision(ours)
    torch.set_float32_matmul_precision(theirs)


def plan(budget: float = SECONDS, **options: Any) -> Plan:
    tiny: dict[str, Any] = {"sizes": [TINY], "small": TINY, "precisions": ["fp32"], "steps": 2, "repeated": 4}
    return Plan(
        Clock(budget), **{**tiny, "turns": 2, "burst": 0.0, "without_torch": "a test", "trial": "in a test", **options}
    )


# --- The whole report


def report(folder: Path, *arguments: str) -> tuple[str, dict[str, Any], str]:
    """The output, JSON and Markdown of `python -m benchmarks.gpu_report`, in which nothing fails."""
    arguments = ("--quick", "--no-tests", *arguments, "--name", str(folder / "gpu"))
    done = run_python("-m", "benchmarks.gpu_report", *arguments, RG_CUPY="standin")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in folder.iterdir()} == {"gpu.json", "gpu.md"}
    data = json.loads((folder / "gpu.json").read_text(encoding="utf-8"))
    return done.stdout, data, (folder / "gpu.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], str]:
    return report(tmp_path_factory.mktemp("results"))


def test_report_of_parity_and_repeatability(written: tuple[str, dict[str, Any], str]) -> None:
    _, data, text = written
    exact, single = (data["parts"]["parity"]["data"][precision] for precision in ("fp64", "fp32"))
    assert exact["met"] and exact["losses"] <= exact["aim"] == 1e-10
    assert 0 < exact["parameters"] <= 1e-10  # nonzero: two different computations are compared
    assert single["aim"] is None and 0 < single["parameters"] < 1e-3
    assert "aim 1e-10: met" in data["parts"]["parity"]["verdict"]
    assert set(data["parts"]["repeatability"]["data"].values()) == {""}
    assert text.count(": the same bits\n") == 3


def test_report_of_timing(written: tuple[str, dict[str, Any], str]) -> None:
    printed, data, text = written
    cases = [f"{TINY}, {precision}" for precision in ("fp32", "tf32", "bf16")]
    found = data["parts"]["timing"]["data"]
    assert list(found) == cases
    for case in cases:
        assert set(found[case]["losses"]) == {OURS, CAPTURED}
        assert found[case]["off"][CAPTURED] == {"losses": 0, "norms": 0}
        assert found[case]["memory"][OURS]["recorded"] == 0 < found[case]["memory"][CAPTURED]["recorded"]
    assert (
        len({tuple(found[case]["losses"][OURS]) for case in cases}) == 3
    )  # the three precisions give different losses
    for name in ("gpu_step", "gpu_tokens", "gpu_memory"):
        table = measure.Table(**data["tables"][name])
        assert [row["case"] for row in table.rows] == [row for case in cases for row in (case, f"{case}, captured")]
        assert table.markdown() in text and table.markdown() in printed
    assert "PyTorch is left out: the stand-in is no device for it." in text


def test_report_of_the_environment(written: tuple[str, dict[str, Any], str]) -> None:
    printed, data, text = written
    assert text.startswith("# RussellGrad, not on a GPU: a trial through the stand-in\n")
    assert data["command"].startswith("python -m benchmarks.gpu_report --quick --no-tests")
    for fact in ("date", "commit", "device", "python", "numpy", "torch"):
        assert f"\n- {fact}: {data[fact]}\n" in text + "\n"
    assert "\n[" in printed and " s] timing: 1/2/8/4/2, bf16\n" in printed


def test_report_on_pytorchs_arrays(tmp_path: Path) -> None:
    _, data, text = report(tmp_path, "--backend", "torch:cpu")
    assert text.startswith("# RussellGrad, not on a GPU: a trial on the CPU\n\ndevice: none: PyTorch on the CPU; ")
    assert data["backend"] == "torch:cpu" and data["dtypes"] == "float64, float32, bfloat16"
    for fact in ("device", "backend", "dtypes", "torch", "operating system", "date", "commit"):
        assert f"{fact}: {data[fact]}" in text.split("\n")[2]
    assert data["parts"]["parity"]["data"]["fp64"]["met"] and data["parts"]["parity"]["data"]["fp32"]["aim"] is None
    assert data["parts"]["repeatability"]["data"] == {"first uncaptured and second uncaptured": ""}
    found = data["parts"]["timing"]["data"]
    cases = [f"{TINY}, {precision}" for precision in ("fp32", "bf16")]  # no TF32 but on CUDA
    assert list(found) == cases
    for case in cases:
        assert set(found[case]["losses"]) == {OURS, TORCH} and found[case]["memory"] == {OURS: {}, TORCH: {}}
    assert 0 < found[cases[0]]["off"][OURS]["norms"] < 1e-5  # nonzero: two libraries are compared
    assert [row["case"] for row in data["tables"]["gpu_step"]["rows"]] == cases
    assert "Peak memory: not measured on this device." in text and "## A training step on the CPU\n" in text
    assert "torch:cpu has no CUDA graphs" in text and "max_memory" not in text and "CuPy" not in text


@pytest.mark.parametrize(("arguments", "error"), [
    ((), "gpu_report: backend 'cupy': CuPy "),
    (("--backend", "torch:cuda"), "gpu_report: backend 'torch:cuda': PyTorch "),
    (("--backend", "torch:nonsense"), "gpu_report: unknown backend 'torch:nonsense': write torch:cpu, "),
])  # fmt: skip
def test_without_a_device_the_report_exits_with_an_error(arguments: tuple[str, ...], error: str) -> None:
    done = run_python("-m", "benchmarks.gpu_report", *arguments, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(error)
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
def test_without_an_accelerator_the_error_names_a_trial_on_the_cpu() -> None:
    done = run_python("-m", "benchmarks.gpu_report", "--backend", "torch")
    assert (done.returncode, done.stdout) == (2, "")
    reason = f"PyTorch {torch.__version__} finds no accelerator"
    assert done.stderr == f"gpu_report: {reason}; use --backend torch:cpu for a trial on the CPU\n"


def test_a_backend_on_the_host_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu_report.options().parse_args(["--backend", "numpy"])
    assert ended.value.code == 2
    assert "'numpy' computes on no GPU: write cupy, torch or torch:KIND" in capsys.readouterr().err


@pytest.mark.parametrize("budget", ["nan", "-1", "0", "inf", "long"])
def test_a_budget_that_is_no_positive_number_is_refused(budget: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu_report.options().parse_args([f"--budget={budget}"])
    assert ended.value.code == 2
    assert "argument --budget: " in capsys.readouterr().err


def backend(name: str, *dtypes: str, **primitives: Any) -> Any:
    return SimpleNamespace(name=name, float_dtypes=lambda: dtypes, **primitives)


def test_the_plan_follows_what_the_device_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_report, "STANDIN", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def found(backend: Any) -> tuple[Any, ...]:
        plan = gpu_report.plan_of(backend, 100.0, quick=False, with_tests=True)
        return plan.torch_device, plan.float64, plan.capture, plan.precisions, plan.trial, plan.without_torch

    every = ("float32", "float64", "bfloat16")
    assert found(backend("torch:mps", "float32")) == ("mps", False, False, ["fp32"], "", "")
    assert found(backend("torch:xpu", *every)) == ("xpu", True, False, ["fp32", "bf16"], "", "")
    for name in ("torch:cuda", "cupy"):
        given = backend(name, *every, capture=None)
        assert found(given) == ("cuda", True, True, ["fp32", "tf32", "bf16"], "", "")
    assert found(backend("torch:cpu", *every))[-2:] == ("on the CPU", "")


def test_candidates_are_captured_on_cuda_alone() -> None:
    on_cuda = gpu_timing.candidates(TINY, "fp32", plan(backend="torch:cuda", without_torch=""))
    assert on_cuda == {
        OURS: ("gpu_ours", TINY, "fp32", "uncaptured", "torch:cuda", "0.0"),
        CAPTURED: ("gpu_ours", TINY, "fp32", "captured", "torch:cuda", "0.0"),
        TORCH: ("gpu_torch", TINY, "fp32", "uncaptured", "cuda"),
        gpu_timing.TORCH_GRAPH: ("gpu_torch", TINY, "fp32", "captured", "cuda"),
    }
    on_mps = gpu_timing.candidates(TINY, "fp32", plan(backend="torch:mps", without_torch="", capture=False))
    assert on_mps == {
        OURS: ("gpu_ours", TINY, "fp32", "uncaptured", "torch:mps", "0.0"),
        TORCH: ("gpu_torch", TINY, "fp32", "uncaptured", "mps"),
    }


def test_facts_and_memory_of_pytorchs_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {
        "cuda": SimpleNamespace(
            get_device_properties=lambda: SimpleNamespace(
                name="H100", major=9, minor=0, total_memory=3 << 20, multi_processor_count=132
            ),
            max_memory_reserved=lambda: 7, max_memory_allocated=lambda: 5,
        ),
        "xpu": SimpleNamespace(
            get_device_properties=lambda: SimpleNamespace(name="Arc", total_memory=1 << 20, driver_version="1.3")
        ),
        "mps": SimpleNamespace(driver_allocated_memory=lambda: 3, current_allocated_memory=lambda: 2),
    }  # fmt: skip
    monkeypatch.setattr(torch, "get_device_module", modules.__getitem__)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.mps, "get_name", lambda: "Apple M4", raising=False)
    monkeypatch.setattr(gpu_report, "_driver_version", lambda: "580")
    system = {"operating system": platform.platform(), "CUDA of torch": "13.0"}
    assert gpu_report.facts_of_torch("cuda") == system | {
        "device": "H100", "compute capability": "9.0", "multiprocessors": "132", "memory of the device, MiB": 3,
        "driver": "580",
    }  # fmt: skip
    assert gpu_report.facts_of_torch("xpu") == system | {
        "device": "Arc", "memory of the device, MiB": 1, "driver": "1.3"
    }  # fmt: skip
    assert gpu_report.facts_of_torch("mps") == system | {"device": "Apple M4"}
    assert peak_memory("cuda") == {"reserved": 7, "allocated": 5}
    assert peak_memory("mps") == {"reserved": 3}
    assert peak_memory("xpu") == {}


@pytest.mark.parametrize(("arguments", "name"), [
    ("--name some", "some"),
    ("", "gpu"),
    ("--backend torch:mps", "gpu-torch-mps"),
    ("--backend torch --quick", "gpu-torch-xpu-quick"),
])  # fmt: skip
def test_a_part_that_raises_is_reported(
    arguments: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(plan: Plan) -> Section:
        raise ZeroDivisionError("on purpose")

    def fine(plan: Plan) -> Section:
        return Section("well done", ["It ran."], data={"answer": 42})

    monkeypatch.setattr(gpu_report, "PARTS", {"parity": broken, "tests": fine})
    monkeypatch.setattr(gpu_report, "load_backend", lambda name: backend("torch:xpu" if name == "torch" else name))
    monkeypatch.setattr(gpu_report, "compile_kernels", lambda plan: None)
    monkeypatch.setattr(gpu_report, "install_standin", lambda: None)
    monkeypatch.setattr(gpu_report, "facts", lambda plan: {"device": "none"})
    monkeypatch.setattr("sys.argv", ["gpu_report", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        gpu_report.main()
    assert ended.value.code == 1
    text, data = (tmp_path / f"{name}.md").read_text(), json.loads((tmp_path / f"{name}.json").read_text())
    assert "FAILED: ZeroDivisionError: on purpose; failures: 1, below" in text
    assert "Traceback" in text and "in broken" in text and "It ran." in text
    assert "Traceback" in data["parts"]["parity"]["failures"][0]
    assert data["parts"]["tests"]["data"] == {"answer": 42}
    assert "tests: well done" in capsys.readouterr().out


# --- Candidates


def run(candidate: Any, steps: int = 10) -> tuple[list[float], list[float]]:
    """Return the losses of `steps` steps and the gradient norms."""
    candidate.prepare()
    return [candidate.read(candidate.step()) for _ in range(steps)], candidate.gradients()


def test_pytorchs_model_gives_our_losses() -> None:
    size = Size.parse(TINY)
    (losses, norms), (others, other_norms) = (
        run(Ours(size, "fp32", backend="numpy")),
        run(Torch(size, "fp32", device="cpu")),
    )
    np.testing.assert_allclose(losses, others, rtol=1e-6, atol=0)
    np.testing.assert_allclose(norms, other_norms, rtol=1e-5, atol=0)
    assert len(set(losses)) == 10


def test_pytorchs_model_in_bfloat16_gives_our_losses() -> None:
    size = Size.parse(TINY)
    losses, norms = run(Torch(size, "bf16", device="cpu"))
    single = run(Ours(size, "fp32", backend="numpy"))[0]
    with Process(*ours(TINY, "bf16", captured=True)) as process:
        mine, my_norms = process.ask("losses", 10, limit=SECONDS), process.ask("gradients", limit=SECONDS)
    gaps = off({OURS: mine, TORCH: losses}, {OURS: my_norms, TORCH: norms}, own=False)[OURS]
    assert gaps["losses"] < TOLERANCE["bf16"] / 10
    assert gaps["norms"] < gpu_timing.OF_NORMS
    assert losses != single and mine != single  # both are in bfloat16


def test_pytorchs_bfloat16_weights_have_float32_master_weights() -> None:
    candidate = Torch(Size.parse(TINY), "bf16", device="cpu")
    run(candidate, 3)
    for parameter, master in zip(candidate.parameters, candidate._masters, strict=True):
        assert parameter.dtype == torch.bfloat16 and master.dtype == torch.float32
        assert torch.equal(parameter, master.bfloat16())
    assert any(not torch.equal(p.float(), m) for p, m in zip(candidate.parameters, candidate._masters, strict=True))


def test_a_candidate_that_fails_raises() -> None:
    with Process("gpu_ours", TINY, "fp99", "uncaptured") as process:
        for _ in range(2):
            with pytest.raises(
                CandidateError, match=r"(?s)gpu_ours 1/2/8/4/2 fp99 uncaptured: losses:.*KeyError: 'fp99'"
            ):
                process.ask("losses", 1, limit=SECONDS)
    with Process(*ours(TINY, "fp32", backend="numpy")) as process:
        assert len(process.ask("losses", 1, limit=SECONDS)) == 1
        with pytest.raises(CandidateError, match="no answer within 0 s, so it was stopped"):
            process.ask("losses", 10**6, limit=0.2)
        with pytest.raises(CandidateError, match="its process ended with status -9"):
            process.ask("losses", 1, limit=SECONDS)


def test_timing_continues_without_a_failed_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {OURS: ours(TINY, "fp32"), CAPTURED: ("gpu_ours", TINY, "fp32", "wrong")}
    monkeypatch.setattr(gpu_timing, "candidates", lambda *arguments: given)
    section = timing(plan())
    steps, _, memory = section.tables
    assert [row["case"] for row in steps.rows] == [row["case"] for row in memory.rows] == [f"{TINY}, fp32"]
    assert steps.rows[0]["turns"] == 2
    assert len(section.failures) == 1
    assert f"{TINY}, fp32: {CAPTURED}: gpu_ours" in section.failures[0] and "KeyError: 'wrong'" in section.failures[0]


def test_cases_skipped_for_lack_of_time_are_named() -> None:
    section = timing(plan(budget=10.0, precisions=["fp32", "tf32"]))
    assert f"Left out for want of time: {TINY}, fp32; {TINY}, tf32." in section.lines
    assert section.failures == [f"no time was left for {TINY}, fp32; {TINY}, tf32"]
    section = timing(plan(reserve=SECONDS))
    assert section.failures


class Driver:
    """cuGraphGetNodes and cuGraphNodeGetType of a graph at address 7, with nodes at 1, 2, ..."""

    kinds = (0, 0, 1, 2, 0, 5)

    def cuGraphGetNodes(self, graph: Any, nodes: Any, count: Any) -> int:
        if graph.value != 7:
            return 400
        count._obj.value = len(self.kinds)
        for i in range(len(self.kinds) if nodes is not None else 0):
            nodes[i] = i + 1
        return 0

    def cuGraphNodeGetType(self, node: Any, kind: Any) -> int:
        kind._obj.value = self.kinds[node.value - 1]
        return 0


def test_graph_nodes_are_counted_by_kind() -> None:
    assert graph_nodes(7, Driver()) == {"kernels": 3, "copies": 1, "fills": 1, "others": 1}
    with pytest.raises(RuntimeError, match="cuGraphGetNodes: CUDA's driver answers with status 400"):
        graph_nodes(8, Driver())


# --- Comparisons


def test_deviations_of_losses_and_gradient_norms() -> None:
    losses = {OURS: [1.0, 2.0], TORCH: [1.0, 2.002]}
    norms = {OURS: [3.0, 0.5], TORCH: [4.0, 1.0]}
    own, whole = off(losses, norms, own=True), off(losses, norms, own=False)
    assert own[TORCH] == whole[TORCH] == {"losses": 0, "norms": 0}
    assert own[OURS] == {"losses": pytest.approx(1e-3, rel=1e-2), "norms": 0.5}
    assert whole[OURS]["norms"] == pytest.approx(1 / math.hypot(4, 1))
    assert off({OURS: [math.nan], TORCH: [1.0]}, {OURS: [1.0], TORCH: [1.0]}, own=True)[OURS]["losses"] == math.inf
    (failure,) = gpu_timing._not_the_same(own, 1e-4)
    assert failure.startswith(f"{OURS} does not compute the same: losses 1.0e-03 off (tolerance 0.0001)")


def test_differences_of_runs() -> None:
    a = Run([1.0, 2.0, 3.0], {"w": np.array([1.0, 2.0]), "b": np.zeros(1)})
    b = Run([1.0, 2.5, 3.25], {"w": np.array([1.0, 2.0]), "b": np.array([0.125])})
    assert differences(a, b) == {"losses": 0.5, "step": 2, "parameters": 0.125, "parameter": "b"}
    assert what_differs(a, a) == ""
    assert what_differs(a, b) == "losses from step 2 on differ; 1 of 2 parameters differ, as b"
    minus = replace(a, parameters={**a.parameters, "b": -np.zeros(1)})
    assert what_differs(a, minus) == "1 of 2 parameters differ, as b"  # bitwise: -0.0 differs from 0.0
    lost = replace(a, losses=[1.0, math.nan, 9.0])
    assert differences(a, lost)["losses"] == math.inf and differences(a, lost)["step"] == 2
    assert what_differs(lost, lost) == "losses from step 2 on differ"


@pytest.mark.parametrize(("gap", "met"), [(0.5e-10, True), (2e-10, False), (math.nan, False)])
def test_parity_reports_whether_the_aim_is_met(gap: float, met: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(candidate: Any, steps: int, plan: Plan) -> Run:
        return Run([gap if "cupy" in candidate else 0.0] * steps, {"w": np.zeros(2)})

    monkeypatch.setattr(gpu_checks, "trained", trained)
    section = gpu_checks.parity(plan())
    assert section.data["fp64"]["met"] is met
    assert ("NOT MET" in section.verdict) is not met
    assert len(section.failures) == (not met)


@pytest.mark.parametrize(("gap", "met"), [(0.9e-3, True), (2e-3, False)])
def test_parity_without_float64_has_an_aim_in_float32(gap: float, met: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(candidate: Any, steps: int, plan: Plan) -> Run:
        assert "fp32" in candidate
        return Run([gap if "torch:mps" in candidate else 0.0] * steps, {"w": np.zeros(2)})

    monkeypatch.setattr(gpu_checks, "trained", trained)
    section = gpu_checks.parity(plan(backend="torch:mps", float64=False))
    assert section.data["fp32"] == {
        "losses": gap, "step": 1, "parameters": 0, "parameter": "w", "aim": 1e-3, "met": met
    }  # fmt: skip
    assert "The device has no float64, so fp32 has an aim, 0.001" in section.lines[0]
    assert ("0.001: met |" in section.lines[-1]) is met and len(section.failures) == (not met)


def test_runs_that_differ_bitwise_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(candidate: Any, steps: int, plan: Plan) -> Run:
        return Run([1.0 if "captured" in candidate else 2.0] * steps, {"w": np.zeros(2)})

    monkeypatch.setattr(gpu_checks, "trained", trained)
    section = gpu_checks.repeatability(plan())
    assert section.failures == ["first uncaptured and first captured: losses from step 1 on differ"]
    assert section.verdict == "NOT the same bits"


# --- The test suite within the report

TESTS = """
import time
import pytest

def test_fine():
    pass

def test_broken():
    assert 1 == 2, "one is not two"

@pytest.mark.skip(reason="no reason at all")
def test_left_out():
    pass

def test_slow():
    time.sleep(SECONDS)
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_suite_reports_failures_and_a_timeout(stopped: bool, tmp_path: Path) -> None:
    path = tmp_path / "test_some.py"
    path.write_text(TESTS.replace("SECONDS", "60" if stopped else "0"), encoding="utf-8")
    section = suite(plan(gpu_checks.STOPPING + 5.0 if stopped else 60.0), [str(path), "-ra"])
    assert ("stopped after" in section.verdict) is stopped
    assert f"1 failed, {1 if stopped else 2} passed, 1 skipped in " in section.verdict
    assert section.data["stopped"] is stopped
    kept = "\n".join(section.data["lines"])
    assert "test_broken - AssertionError: one is not two" in kept and "no reason at all" in kept
    assert kept in section.lines[1]
    assert len(section.failures) == 1 and "assert 1 == 2" in section.failures[0]


def test_suite_without_failures(tmp_path: Path) -> None:
    path = tmp_path / "test_some.py"
    path.write_text("import os\ndef test_fine(): assert os.environ['RG_BACKEND'] == 'torch:cpu'", encoding="utf-8")
    section = suite(plan(backend="torch:cpu"), [str(path)])
    assert section.verdict.startswith("1 passed in ") and not section.failures
    assert section.lines[0].startswith("`RG_BACKEND=torch:cpu python -m pytest -q`: 1 passed")


def test_profile_sums_the_kernels_of_a_step() -> None:
    events = [("add", 2.0), ("attention", 30.0), ("add", 4.0), ("attention", 34.0)]
    assert gpu_profile.table(events, steps=2) == [
        "   0.035 ms    2.0 launches in all",
        "   0.032 ms    1.0 x     32.0 us  attention",
        "   0.003 ms    1.0 x      3.0 us  add",
    ]
