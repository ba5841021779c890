"""All checks and measurements that need a GPU, in one command: `python -m benchmarks.gpu_report`.

It first compiles the kernels, if CuPy's cache on disk does not have them. Then it takes at most 8 minutes. It needs
NumPy, CuPy, PyTorch, pytest and hypothesis (and ml_dtypes for bfloat16). It writes benchmarks/results/gpu.json and
gpu.md: parity of training on CuPy and NumPy, bitwise repeatability, time and memory against PyTorch, and the result of
the test suite on CuPy. A part that fails is reported with its error, and the other parts still run.

python -m benchmarks.gpu_report --no-tests             without the test suite
python -m benchmarks.gpu_report --only tests           only some parts
RG_CUPY=standin python -m benchmarks.gpu_report --quick   without a GPU: tiny sizes, to check that everything runs

Exit status: 0 on success; 1 if a part failed; 2 if there is no CuPy or no device.
"""

import json
import math
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from benchmarks import measure
from benchmarks.gpu_checks import parity, repeatability, suite
from benchmarks.gpu_plan import MOST_SECONDS, Clock, Plan, Section, ours
from benchmarks.gpu_process import STANDIN, CandidateError, Process, install_standin
from benchmarks.gpu_timing import timing
from benchmarks.measure import Options, circumstances, write_atomically
from benchmarks.train_step import TINY
from russellgrad.backend import load_backend

PARTS: dict[str, Callable[[Plan], Section]] = {
    "parity": parity,
    "repeatability": repeatability,
    "timing": timing,
    "tests": suite,  # last, with all the remaining time
}
BUDGET = 480.0  # seconds
FOR_TESTS = 0.5  # fraction of the budget


@dataclass
class Outcome:
    """The section and the duration of a part."""

    section: Section
    seconds: float


def run(parts: Mapping[str, Callable[[Plan], Section]], plan: Plan, keep: Callable[[dict[str, Outcome]], None]) -> bool:
    """Run the parts in order and call `keep` with the outcomes after each. Returns whether there were no failures."""
    outcomes: dict[str, Outcome] = {}
    for name, part in parts.items():
        begun = plan.clock.elapsed()
        plan.clock.say(name)
        try:
            section = part(plan)
        except Exception as error:
            section = Section(
                f"FAILED: {type(error).__name__}: {_first_line(error)}", failures=[traceback.format_exc()]
            )
        outcomes[name] = Outcome(section, plan.clock.elapsed() - begun)
        plan.clock.say(f"{name}: {section.verdict}")
        for failure in section.failures:
            plan.clock.say(f"{name}: failed: {failure}")
        keep(outcomes)
    return not any(outcome.section.failures for outcome in outcomes.values())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def compile_kernels(plan: Plan) -> None:
    """Take a few steps in each precision: CuPy keeps what it compiles on disk, so that no candidate waits for it."""
    for precision in ("fp64", *plan.precisions):
        plan.clock.say(f"compiling the kernels of {precision}")
        with suppress(CandidateError), Process(*ours(plan.small, precision, clip=1.0)) as process:
            process.ask("losses", 2, limit=MOST_SECONDS)  # an error is reported by the parts


# --- The report


def markdown(outcomes: Mapping[str, Outcome], facts: Mapping[str, Any]) -> str:
    lines = ["# RussellGrad on a GPU" if not STANDIN else "# RussellGrad, not on a GPU: a trial through the stand-in"]
    lines.append("\n".join(
        f"- {name}, {outcome.seconds:.0f} s: {outcome.section.verdict}"
        + (f"; failures: {len(outcome.section.failures)}, below" if outcome.section.failures else "")
        for name, outcome in outcomes.items()
    ))  # fmt: skip
    for name, outcome in outcomes.items():
        lines += [f"## {name.capitalize()}", *outcome.section.lines, *main_tables(outcome)]
    failures = [(name, failure) for name, outcome in outcomes.items() for failure in outcome.section.failures]
    if failures:
        lines += ["## What failed", *(f"{name}:\n\n````text\n{failure.strip()}\n````" for name, failure in failures)]
    lines += ["## Circumstances", "\n".join(f"- {key}: {value}" for key, value in facts.items())]
    return "\n\n".join(lines)


def main_tables(outcome: Outcome) -> list[str]:
    return [table.markdown() for table in outcome.section.tables if table.rows]


def write(name: str, outcomes: Mapping[str, Outcome], facts: Mapping[str, Any]) -> None:
    """Write benchmarks/results/<name>.json and <name>.md."""
    parts = {
        part: {"seconds": outcome.seconds, **asdict(replace(outcome.section, tables=[]))}
        for part, outcome in outcomes.items()
    }
    tables = {table.name: asdict(table) for outcome in outcomes.values() for table in outcome.section.tables}
    measure.RESULTS.mkdir(exist_ok=True)
    data = {**facts, "parts": parts, "tables": tables}
    write_atomically(measure.RESULTS / f"{name}.json", json.dumps(data, indent=1, ensure_ascii=False))
    write_atomically(measure.RESULTS / f"{name}.md", markdown(outcomes, facts))


# --- The machine and its software


def facts_of_device() -> dict[str, Any]:
    if STANDIN:
        return {"device": "none: CuPy's stand-in over NumPy, on the CPU"}
    import cupy

    runtime = cupy.cuda.runtime
    device = runtime.getDeviceProperties(0)
    return {
        "device": device["name"].decode(),
        "compute capability": f"{device['major']}.{device['minor']}",
        "multiprocessors": device["multiProcessorCount"],
        "memory of the device, MiB": device["totalGlobalMem"] // 2**20,
        "driver": _driver_version(),
        "CUDA of the driver": _cuda_version(runtime.driverGetVersion()),
        "CUDA runtime": _cuda_version(runtime.runtimeGetVersion()),
        "cupy": cupy.__version__,
        "CUDA of torch": torch.version.cuda,
    }


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _driver_version() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown: nvidia-smi does not say"


_OF_THE_CPU = ("backend", "BLAS of NumPy", "BLAS of torch", "torch threads", "autograd", "mygrad", "scipy")


def facts() -> dict[str, Any]:
    everything = circumstances("benchmarks.gpu_report")
    return {key: value for key, value in everything.items() if key not in _OF_THE_CPU} | facts_of_device()


# --- The command line


def options() -> Options:
    parser = Options("Check and measure training on a GPU.", "gpu")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: all)")
    parser.add_argument("--no-tests", action="store_true", help="do not run the test suite")
    parser.add_argument(
        "--budget", type=float, default=BUDGET,
        help=f"seconds for all parts (default: {BUDGET:.0f}); a small budget shortens bursts and skips cases",
    )  # fmt: skip
    return parser


def plan_of(budget: float, quick: bool, with_tests: bool) -> Plan:
    clock = Clock(budget)
    precisions = ["fp32", "tf32", "bf16"] if "bfloat16" in load_backend("cupy").float_dtypes() else ["fp32", "tf32"]
    without_torch = "the stand-in is no device for it" if STANDIN else ""
    if not without_torch and not torch.cuda.is_available():
        without_torch = f"{torch.__version__} here has no CUDA device"
    reserve = FOR_TESTS * budget if with_tests else 0.0
    plan = Plan(clock, precisions=precisions, reserve=reserve, without_torch=without_torch)
    return replace(plan, sizes=[TINY], small=TINY, steps=4, repeated=4, turns=1, burst=0.0) if quick else plan


def main() -> None:
    given = options().given()
    install_standin()
    try:
        load_backend("cupy")
    except (ImportError, RuntimeError) as error:
        print(f"gpu_report: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    parts = {name: PARTS[name] for name in PARTS if name in given.only and not (name == "tests" and given.no_tests)}
    compile_kernels(plan_of(math.inf, given.quick, with_tests=False))
    plan, known = plan_of(given.budget, given.quick, "tests" in parts), facts()
    latest: dict[str, Outcome] = {}

    def keep(outcomes: dict[str, Outcome]) -> None:
        latest.update(outcomes)
        write(given.name, outcomes, known)

    well = run(parts, plan, keep)
    for table in (table for outcome in latest.values() for table in main_tables(outcome)):
        print(f"\n{table}")
    print(f"written: {measure.RESULTS / given.name}.json and .md")
    raise SystemExit(0 if well else 1)


if __name__ == "__main__":
    main()
