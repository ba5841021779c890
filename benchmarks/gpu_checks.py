"""Correctness on a GPU: parity with NumPy, bitwise repeatability, and the test suite."""

import importlib.util
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_plan import Candidate, Plan, Section, ours
from benchmarks.gpu_process import ROOT, Process
from benchmarks.train_step import SIZE_HEAD

# The largest allowed difference from NumPy: in float64, and on a device without float64 in float32.
AIM, AIM_FLOAT32 = 1e-10, 1e-3
CLIP = 0.5  # less than the norm of the first gradients, so that clipping takes effect


@dataclass
class Run:
    losses: list[float]
    parameters: dict[str, Any]


def trained(candidate: Candidate, steps: int, plan: Plan) -> Run:
    """Train a model for `steps` steps in a new process."""
    with Process(*candidate) as process, tempfile.TemporaryDirectory() as folder:
        losses = process.ask("losses", steps, limit=plan.limit())
        path = Path(folder) / "parameters.npz"
        process.ask("save", str(path), limit=plan.limit())
        with np.load(path) as arrays:
            return Run(losses, dict(arrays))


# --- Parity with NumPy


def parity(plan: Plan) -> Section:
    """Compare the same training on NumPy and on the device."""
    section = Section("", lines=[
        f"{plan.steps} training steps of {plan.small} ({SIZE_HEAD}) on NumPy and on {plan.backend}, both in the dtype "
        f"of the row: forward, backward, clipping to a norm of {CLIP}, AdamW. Both start from the same weights and use "
        "the same random ids, drawn on the host."
        + (" CuPy computes fp64 with the formulas and fp32 with the kernels." if plan.backend == "cupy" else "")
        + ("" if plan.float64 else f" The device has no float64, so fp32 has an aim, {AIM_FLOAT32:g}: the two sum in "
           "different orders, and a step of Adam makes a difference of rounding up to the learning rate, 1e-3, of a "
           "gradient near 0."),
        "| | largest difference of losses | at step | largest difference of final parameters | parameter | aim |\n"
        "| --- | --- | --- | --- | --- | --- |",
    ])  # fmt: skip
    for precision, aim in (("fp64", AIM), ("fp32", None)) if plan.float64 else (("fp32", AIM_FLOAT32),):
        numpy, device = (
            trained(ours(plan.small, precision, backend=name, clip=CLIP), plan.steps, plan)
            for name in ("numpy", plan.backend)
        )
        found = differences(numpy, device)
        met = aim is None or max(found["losses"], found["parameters"]) <= aim
        shown = "none" if aim is None else f"{aim:g}: {'met' if met else 'NOT MET'}"
        section.data[precision] = {**found, "aim": aim, "met": met}
        section.lines[-1] += (
            f"\n| {precision} | {found['losses']:.2e} | {found['step']} | {found['parameters']:.2e} "
            f"| `{found['parameter']}` | {shown} |"
        )
        plan.clock.say(f"parity, {precision}: losses {found['losses']:.2e}, parameters {found['parameters']:.2e}")
        if not met:
            section.failures.append(f"{precision}: {plan.backend} is not within {aim:g} of NumPy: {found}")
        if aim is not None:
            largest = max(found["losses"], found["parameters"])
            section.verdict = f"{precision} within {largest:.1e} of NumPy over {plan.steps} steps, aim {shown}"
    return section


def differences(a: Run, b: Run) -> dict[str, Any]:
    """Largest differences of losses, with the step from 1, and of parameters, with the name. nan counts as infinite."""
    losses = {step: _gap(x, y) for step, (x, y) in enumerate(zip(a.losses, b.losses, strict=True), start=1)}
    parameters = {name: _gap(array, b.parameters[name]) for name, array in a.parameters.items()}
    step, name = max(losses, key=losses.__getitem__), max(parameters, key=parameters.__getitem__)
    return {"losses": losses[step], "step": step, "parameters": parameters[name], "parameter": name}


def _gap(a: Any, b: Any) -> float:
    gap = float(np.max(np.abs(np.subtract(a, b))))
    return math.inf if math.isnan(gap) else gap


# --- Repeatability


def repeatability(plan: Plan) -> Section:
    """Compare runs in new processes bit for bit: uncaptured, and captured where the backend captures steps."""
    runs: dict[str, Run] = {}
    for name in ("uncaptured", "captured")[: 1 + plan.capture]:
        for which in ("first", "second"):
            candidate = ours(plan.small, "fp32", captured=name == "captured", backend=plan.backend, clip=CLIP)
            run = trained(candidate, plan.repeated, plan)
            runs[f"{which} {name}"] = run
            plan.clock.say(f"repeatability: {which} {name} run, last loss {run.losses[-1]:.6f}")
    pairs = [
        ("first uncaptured", "second uncaptured"),
        ("first captured", "second captured"),
        ("first uncaptured", "first captured"),
    ]
    found = {f"{a} and {b}": what_differs(runs[a], runs[b]) for a, b in pairs if b in runs}
    failures = [f"{pair}: {what}" for pair, what in found.items() if what]
    lines = [
        f"{plan.repeated} training steps of {plan.small} in fp32, each run in its own process: forward, backward, "
        "clipping, AdamW. All losses and all final parameters were compared bit for bit.",
        "\n".join(f"- {pair}: {what or 'the same bits'}" for pair, what in found.items()),
    ]
    if not plan.capture:
        lines.append(f"A step is not captured: {plan.backend} has no CUDA graphs.")
    same = "the same bits in all runs" + (", captured or not" if plan.capture else "")
    verdict = "NOT the same bits" if failures else same
    return Section(verdict, lines, data=found, failures=failures)


def what_differs(a: Run, b: Run) -> str:
    """A description of the differences; empty if there are none."""
    steps = [step for step, (x, y) in enumerate(zip(a.losses, b.losses, strict=True), start=1) if x != y]
    names = [name for name, array in a.parameters.items() if array.tobytes() != b.parameters[name].tobytes()]
    losses = f"losses from step {steps[0]} on differ" if steps else ""
    parameters = f"{len(names)} of {len(a.parameters)} parameters differ, as {names[0]}" if names else ""
    return "; ".join(filter(None, (losses, parameters)))


# --- The test suite

# Without pytest-benchmark, whose warnings would be errors.
_ARGUMENTS = ("-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:benchmark")
_MOST_WORKERS = 8  # a CUDA context takes about 500 MiB of the device
_KEPT = re.compile(r"^(FAILED|ERROR|SKIPPED|XFAIL|XPASS|largest difference)")
_SUMMARY = re.compile(r"^=* ?((no tests ran|\d+ \w+)(, \d+ \w+)* in [\d.]+s.*?) ?=*$")
STOPPING = 20.0  # seconds for pytest to report its results after the interrupt


def suite(plan: Plan, arguments: Sequence[str] = ()) -> Section:
    """Run the test suite on the device within the remaining time, or only what `arguments` of pytest say."""
    limit = max(plan.clock.left() - STOPPING, 1.0)
    workers = min(os.cpu_count() or 1, _MOST_WORKERS)
    if not arguments and workers > 1 and importlib.util.find_spec("xdist"):
        arguments = ("-n", str(workers), "--dist", "worksteal")
    command = f"RG_BACKEND={plan.backend} python -m pytest -q"
    plan.clock.say(f"tests: {command} {' '.join(arguments)}, within {limit:.0f} s")
    output, status, stopped = _pytest([*_ARGUMENTS, *arguments], plan.backend, limit)
    lines = output.splitlines()
    summaries = [match[1] for match in map(_SUMMARY.match, lines) if match]
    verdict = (summaries or ["no summary"])[-1] + (
        f"; stopped after {limit:.0f} s, before all tests ran" if stopped else ""
    )
    kept = [line for line in lines if _KEPT.match(line)]
    section = Section(verdict, [f"`{command}`: {verdict}."])
    section.data = {"summary": verdict, "status": status, "stopped": stopped, "lines": kept}
    if kept:
        section.lines.append("\n".join(["```text", *kept, "```"]))
    if status or stopped:
        details = output.partition("= FAILURES =")[2] or output
        section.failures.append(f"pytest, status {status}: {verdict}\n{_shortened(details)}")
    return section


def _shortened(text: str, most: int = 20_000) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}\n[...]\n{text[-most // 2 :]}"


def _pytest(arguments: Sequence[str], backend: str, limit: float) -> tuple[str, int, bool]:
    """Output, exit status, and whether the time limit stopped pytest."""
    environment: Mapping[str, str] = {
        **os.environ,
        "RG_BACKEND": backend,
        "COLUMNS": "200",
    }  # wide enough for pytest not to truncate skip reasons
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *arguments],
            cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=_interruptible,
        )  # fmt: skip
        stopped = False
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            stopped = True
            process.send_signal(signal.SIGINT)  # pytest then reports the results so far
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOPPING)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also ends processes that the tests started
        status = process.wait()
        output.seek(0)
        return output.read(), status, stopped


def _interruptible() -> None:
    """Restore the default SIGINT handler: background jobs of a shell, and their children, ignore interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
