"""All checks and measurements that need a GPU, in one command: `python -m benchmarks.gpu_report`.

With CuPy it first compiles the kernels, if CuPy's cache on disk does not have them. Then it takes at most 8 minutes. It
needs NumPy, PyTorch, pytest and hypothesis, CuPy for its backend, and ml_dtypes for bfloat16. It reports parity of
training with NumPy, bitwise repeatability, time and memory against PyTorch on the same device, and the result of the
test suite, in benchmarks/results/gpu.json and gpu.md for CuPy, else gpu-torch-cuda, gpu-torch-mps ... A part that fails
is reported with its error, and the other parts still run.

python -m benchmarks.gpu_report --backend torch        on the accelerator that PyTorch finds: CUDA, ROCm, MPS, XPU ...
python -m benchmarks.gpu_report --no-tests             without the test suite
python -m benchmarks.gpu_report --only tests           only some parts
RG_CUPY=standin python -m benchmarks.gpu_report --quick   without a GPU: tiny sizes, to check that everything runs
python -m benchmarks.gpu_report --quick --backend torch:cpu   the same, with PyTorch on the CPU

Exit status: 0 on success; 1 if a part failed; 2 if there is no CuPy or no device.
"""

import argparse
import json
import math
import platform
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from benchmarks import measure
from benchmarks.candidates.model import PRECISIONS
from benchmarks.gpu_checks import parity, repeatability, suite
from benchmarks.gpu_plan import MOST_SECONDS, Clock, Plan, Section, ours
from benchmarks.gpu_process import STANDIN, CandidateError, Process, install_standin
from benchmarks.gpu_timing import timing
from benchmarks.measure import Options, circumstances, default_name, write_atomically
from benchmarks.train_step import TINY
from russellgrad.backend import Backend, load_backend

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


def markdown(outcomes: Mapping[str, Outcome], facts: Mapping[str, Any], trial: str) -> str:
    lines = [f"# RussellGrad, not on a GPU: a trial {trial}" if trial else "# RussellGrad on a GPU"]
    lines.append("; ".join(f"{key}: {facts[key]}" for key in _FIRST if key in facts))
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


def write(name: str, outcomes: Mapping[str, Outcome], facts: Mapping[str, Any], trial: str) -> None:
    """Write benchmarks/results/<name>.json and <name>.md."""
    parts = {
        part: {"seconds": outcome.seconds, **asdict(replace(outcome.section, tables=[]))}
        for part, outcome in outcomes.items()
    }
    tables = {table.name: asdict(table) for outcome in outcomes.values() for table in outcome.section.tables}
    measure.RESULTS.mkdir(exist_ok=True)
    data = {**facts, "parts": parts, "tables": tables}
    write_atomically(measure.RESULTS / f"{name}.json", json.dumps(data, indent=1, ensure_ascii=False))
    write_atomically(measure.RESULTS / f"{name}.md", markdown(outcomes, facts, trial))


# --- The machine and its software


def facts_of_cupy() -> dict[str, Any]:
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


# Attributes of PyTorch's device properties, of which each type of device has some.
_PROPERTIES = {
    "compute capability": ("major", "minor"),
    "multiprocessors": ("multi_processor_count",),
    "architecture": ("gcnArchName",),
    "platform": ("platform_name",),
    "compute units": ("max_compute_units",),
    "driver": ("driver_version",),
}


def facts_of_torch(kind: str) -> dict[str, Any]:
    """The device and its software, as far as PyTorch knows them. MPS has no driver but the operating system."""
    versions = {f"{name.upper()} of torch": getattr(torch.version, name, None) for name in ("cuda", "hip", "xpu")}
    facts = {"operating system": platform.platform(), **{key: found for key, found in versions.items() if found}}
    if kind == "cpu":
        return {"device": "none: PyTorch on the CPU", **facts}
    module = torch.get_device_module(kind)
    if not hasattr(module, "get_device_properties"):
        name = getattr(torch.backends.mps, "get_name", lambda: "Apple GPU")() if kind == "mps" else kind
        return {"device": name, **facts}
    properties = module.get_device_properties()
    found = {
        label: ".".join(str(getattr(properties, name)) for name in names)
        for label, names in _PROPERTIES.items()
        if hasattr(properties, names[0])
    }
    memory = {"memory of the device, MiB": properties.total_memory // 2**20}
    driver = {"driver": _driver_version()} if torch.version.cuda and kind == "cuda" else {}
    return {"device": properties.name, **found, **memory, **driver, **facts}


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _driver_version() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown: nvidia-smi does not say"


_OF_THE_CPU = ("BLAS of NumPy", "BLAS of torch", "torch threads", "autograd", "mygrad", "scipy")
_FIRST = ("device", "backend", "dtypes", "driver", "operating system", "cupy", "torch", "CUDA of torch",
          "HIP of torch", "XPU of torch", "numpy", "date", "commit")  # fmt: skip


def facts(plan: Plan) -> dict[str, Any]:
    of_device = facts_of_cupy() if plan.backend == "cupy" else facts_of_torch(plan.torch_device)
    precisions = [*(["fp64"] if plan.float64 else []), *plan.precisions]
    used = {"backend": plan.backend, "dtypes": ", ".join(dict.fromkeys(PRECISIONS[name][0] for name in precisions))}
    everything = circumstances("benchmarks.gpu_report")
    return {key: value for key, value in everything.items() if key not in _OF_THE_CPU} | used | of_device


# --- The command line


def options() -> Options:
    parser = Options("Check and measure training on a GPU.", "gpu")
    parser.add_argument(
        "--backend", type=_backend_name, default="cupy", metavar="NAME",
        help="cupy (default), torch for the accelerator that PyTorch finds, or torch:KIND, as torch:xpu; the "
        "default name of its files is gpu-torch-mps or the like",
    )  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: all)")
    parser.add_argument("--no-tests", action="store_true", help="do not run the test suite")
    parser.add_argument(
        "--budget", type=seconds, default=BUDGET,
        help=f"seconds for all parts (default: {BUDGET:.0f}); a small budget shortens bursts and skips cases",
    )  # fmt: skip
    return parser


def seconds(text: str) -> float:
    number = float(text)  # argparse reports its ValueError
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, got {text}")
    return number


def _backend_name(text: str) -> str:
    if text.partition(":")[0] != "torch" and text != "cupy":
        raise argparse.ArgumentTypeError(f"{text!r} computes on no GPU: write cupy, torch or torch:KIND")
    return text


def backend_of(name: str) -> Backend:
    """The backend to report on. Raises an error in one line if it cannot be used, or "torch" finds no accelerator."""
    backend = load_backend(name)
    if name == "torch" and backend.name == "torch:cpu":
        raise RuntimeError(
            f"PyTorch {torch.__version__} finds no accelerator; use --backend torch:cpu for a trial on the CPU"
        )
    return backend


def plan_of(backend: Backend, budget: float, quick: bool, with_tests: bool) -> Plan:
    plan = Plan(Clock(budget), backend=backend.name, reserve=FOR_TESTS * budget if with_tests else 0.0)
    plan.capture, plan.float64 = hasattr(backend, "capture"), "float64" in backend.float_dtypes()
    bfloat16 = ["bf16"] if "bfloat16" in backend.float_dtypes() else []
    plan.precisions = ["fp32", *(["tf32"] if plan.torch_device == "cuda" else []), *bfloat16]
    if plan.torch_device == "cpu":
        plan.trial, plan.device = "on the CPU", "the CPU"
    elif plan.backend == "cupy" and STANDIN:
        plan.trial, plan.without_torch = "through the stand-in", "the stand-in is no device for it"
    elif plan.backend == "cupy" and not torch.cuda.is_available():
        plan.without_torch = f"{torch.__version__} here has no CUDA device"
    return replace(plan, sizes=[TINY], small=TINY, steps=4, repeated=4, turns=1, burst=0.0) if quick else plan


def main() -> None:
    given = options().parse_args()
    install_standin()
    try:
        backend = backend_of(given.backend)
    except (ImportError, RuntimeError, ValueError) as error:
        print(f"gpu_report: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    parts = {name: PARTS[name] for name in PARTS if name in given.only and not (name == "tests" and given.no_tests)}
    named = "gpu" if backend.name == "cupy" else f"gpu-{backend.name.replace(':', '-')}"
    given.name = given.name or default_name(named, given.quick)
    if backend.name == "cupy":  # PyTorch keeps nothing on disk
        compile_kernels(plan_of(backend, math.inf, given.quick, with_tests=False))
    plan = plan_of(backend, given.budget, given.quick, "tests" in parts)
    known = facts(plan)
    plan.device = plan.device if plan.trial else known["device"]
    latest: dict[str, Outcome] = {}

    def keep(outcomes: dict[str, Outcome]) -> None:
        latest.update(outcomes)
        write(given.name, outcomes, known, plan.trial)

    well = run(parts, plan, keep)
    for table in (table for outcome in latest.values() for table in main_tables(outcome)):
        print(f"\n{table}")
    print(f"written: {measure.RESULTS / given.name}.json and .md")
    raise SystemExit(0 if well else 1)


if __name__ == "__main__":
    main()
