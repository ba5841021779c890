"""Shared by the benchmarks: timing candidates in turns, tables of results, and facts about the machine."""

import argparse
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np
import torch

import russellgrad

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
OURS = "russellgrad"
LEAST_TURNS = 5
REST = 0.15  # seconds: OpenBLAS's threads spin for 0.1 s after a product and would slow the next candidate

Candidate: TypeAlias = tuple[str, ...]  # a module of benchmarks.candidates, a function of it, and its arguments


# --- Time


class Worker:
    """A candidate in its own process, so that libraries do not share threads or a memory allocator.

    Args:
        python: the interpreter, for a candidate whose library is installed in an environment of its own.
        environment: variables to add to this process's.
    """

    def __init__(
        self, candidate: Candidate, python: str = sys.executable, environment: Mapping[str, str] | None = None
    ) -> None:
        self.candidate = candidate
        if environment is None:
            # Others import russellgrad for the model's weights, but must not get its memory allocator settings.
            environment = {} if candidate[0].endswith("ours") else {"RG_MALLOC": "0"}
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", *candidate],
            cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self.process.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.__exit__(kind, error, trace)  # closes the pipes, which ends the process, and waits for it

    def call(self, before: int = 0, timed: int = 1) -> tuple[float, Any, float]:
        """Seconds per timed call, the result of the last call, and the peak memory: see benchmarks/worker.py."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{before} {timed}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"benchmarks: the process of {' '.join(self.candidate)} failed; its error is above")
        seconds, outcome, memory = json.loads(answer)
        return seconds, outcome, memory


def take_turns(
    candidates: Mapping[str, Candidate],
    rounds: int,
    *,
    seconds: float = math.inf,
    burst: float = 0.0,
    check: Callable[[dict[str, Any]], None] = lambda outcomes: None,
) -> dict[str, list[float]]:
    """Seconds per call, by candidate and turn.

    The candidates take turns (A B A B), so that other load on the machine affects all of them equally. In a turn, each
    candidate is called as often as the slowest one can be in `burst` seconds, at least once. The same number of untimed
    calls goes before, unless a call takes more than half a second.

    Args:
        rounds: the number of turns.
        seconds: after this time, the benchmark ends as soon as LEAST_TURNS are complete.
        check: called after the first turn with the last result of each candidate, by name; raises if they differ.
            (Later results may differ: rounding errors grow over hundreds of training steps in float32.)
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(candidate)) for name, candidate in candidates.items()}
        for worker in workers.values():
            worker.call()  # includes what a library loads on first use
        slowest = max(worker.call()[0] for worker in workers.values())
        timed = max(1, round(burst / slowest))
        before = timed if slowest < 0.5 else 0
        begun = time.perf_counter()
        for turn in range(rounds):
            if turn >= LEAST_TURNS and time.perf_counter() - begun > seconds:
                break
            outcomes = {}
            for name, worker in workers.items():
                time.sleep(REST)
                took, outcomes[name], _ = worker.call(before, timed)
                times[name].append(took)
            if turn == 0:
                check(outcomes)
    return times


def check_close(what: str, relative: float) -> Callable[[dict[str, Any]], None]:
    """A check that the results of the candidates agree within a relative tolerance; None is not compared."""

    def check(outcomes: dict[str, Any]) -> None:
        given = [np.asarray(outcome) for outcome in outcomes.values() if outcome is not None]
        if not all(np.allclose(given[0], other, rtol=relative, atol=0) for other in given):
            raise RuntimeError(f"benchmarks: {what}: the candidates did not do the same: {outcomes}")

    return check


# --- Tables

# unit -> its symbol in a column's head, and the conversion of a measured number to that unit.
UNITS: dict[str, tuple[str, Callable[[float], float]]] = {
    "milliseconds": ("ms", lambda seconds: 1e3 * seconds),
    "microseconds": ("µs", lambda seconds: 1e6 * seconds),
    "tokens per second": ("tokens/s", lambda seconds_a_token: 1 / seconds_a_token),
    "MiB": ("MiB", lambda n_bytes: n_bytes / 2**20),
    "passes": ("passes", lambda passes: passes),
}


@dataclass
class Table:
    """The results of a benchmark: a row for each case, a column for each candidate.

    Args:
        name: its key in the JSON file.
        head: the head of the first column, which names the cases.
        unit: a key of UNITS.
        notes: paragraphs above the table that explain the measurement.
        before: RussellGrad's medians of an earlier run by case, and the ratios to the second candidate: see `compare`.
    """

    name: str
    title: str
    head: str
    unit: str
    notes: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    before: dict[str, list[float]] = field(default_factory=dict)

    def add(self, case: str, measured: Mapping[str, Sequence[float]]) -> None:
        """Add a row from each candidate's numbers by turn, in seconds or bytes. A ratio is RussellGrad / the other."""
        convert, ours = UNITS[self.unit][1], measured[OURS]
        shown = {name: [convert(x) for x in numbers] for name, numbers in measured.items()}
        self.rows.append({
            "case": case,
            "turns": len(ours),
            self.unit: {name: spread(x) for name, x in shown.items()},
            "ratio": {
                name: statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
                for name, theirs in measured.items()
                if name != OURS
            },
        })  # fmt: skip
        ratios = [f"{ratio:.2f} of {name}" for name, ratio in self.rows[-1]["ratio"].items()]
        median = f"{three_digits(self.rows[-1][self.unit][OURS]['median'])} {UNITS[self.unit][0]}"
        print(f"{self.name} {case}: {', '.join([median, *ratios])}", flush=True)

    def compare(self, earlier: Mapping[str, Any]) -> None:
        """Add the figures of an earlier run: the content of its JSON file. Nothing if it has no such table."""
        for row in earlier["tables"].get(self.name, {"rows": []})["rows"]:
            if self.unit in row and row["ratio"]:
                self.before[row["case"]] = [row[self.unit][OURS]["median"], next(iter(row["ratio"].values()))]

    def markdown(self) -> str:
        names = list(dict.fromkeys(name for row in self.rows for name in row[self.unit]))
        unit = UNITS[self.unit][0]
        head = [self.head, *(f"{name}, {unit}" for name in names), *(f"ratio to {name}" for name in names[1:]), "turns"]
        if self.before:
            head += [f"{OURS} before, {unit}", f"ratio to {names[1]} before"]
        lines = []
        for row in self.rows:
            measured = [_spread(row[self.unit][name]) if name in row[self.unit] else "-" for name in names]
            ratios = [f"{row['ratio'][name]:.2f}" if name in row["ratio"] else "-" for name in names[1:]]
            lines.append([row["case"], *measured, *ratios, str(row["turns"])])
            if self.before:
                median, ratio = self.before.get(row["case"], (None, None))
                lines[-1] += ["-" if median is None else three_digits(median), "-" if ratio is None else f"{ratio:.2f}"]
        return "\n\n".join([f"## {self.title}", *self.notes, to_markdown(head, lines)])


@dataclass
class Rows:
    """A table of any columns: `columns` maps keys of a row to the heads. Numbers are shown with three digits."""

    name: str
    title: str
    columns: dict[str, str]
    notes: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def markdown(self) -> str:
        lines = [[_cell(row.get(key)) for key in self.columns] for row in self.rows]
        return "\n\n".join([f"## {self.title}", *self.notes, to_markdown(list(self.columns.values()), lines)])


def to_markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def _cell(value: Any) -> str:
    """A string, an integer, a float, a spread, or None for a cell without a value."""
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return _spread(value)
    return three_digits(value) if isinstance(value, float) else str(value)


def spread(numbers: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(numbers), "least": min(numbers), "most": max(numbers)}


def three_digits(x: float) -> str:
    """Three significant digits, or all digits of the integer part."""
    return f"{x:.{max(0, 2 - math.floor(math.log10(abs(x))))}f}" if x else "0"


def _spread(numbers: Mapping[str, float]) -> str:
    median, least, most = (three_digits(numbers[key]) for key in ("median", "least", "most"))
    return median if least == most else f"{median} ({least} to {most})"


HOW_TO_READ = (
    "Each figure is the median of all turns (minimum to maximum); everything is in float32. Each candidate has its own "
    f"process. The candidates take turns (A B A B), after a pause of {REST} s and as many untimed calls as timed ones "
    "(none if a call takes more than half a second). In one process they would slow each other down: OpenBLAS's "
    "threads spin for a tenth of a second after a matrix product. A ratio is RussellGrad's time or memory divided by "
    "the other candidate's: the median of the ratios within each turn. Below 1, RussellGrad is better."
)


def write(name: str, tables: Sequence[Table | Rows], facts: Mapping[str, Any], *, before: str | None = None) -> None:
    """Write benchmarks/results/<name>.json and <name>.md, beside the figures of the run `before` (default: `name`).

    Raises FileNotFoundError if `before` is given and has no results.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{before or name}.json"
    if before and not path.exists():
        raise FileNotFoundError(f"benchmarks: --before {before}: there is no {path}")
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        facts = {
            **facts,
            "before": f"{before or name}, {earlier['date'][:10]}, {earlier['commit']}, {earlier['processor']}",
        }
        for table in tables:
            if isinstance(table, Table):
                table.compare(earlier)
    data = {**facts, "tables": {table.name: asdict(table) for table in tables}}
    text = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    how_to_read = [HOW_TO_READ] if any(isinstance(table, Table) for table in tables) else []
    parts = ["# RussellGrad, measured", *how_to_read, *(table.markdown() for table in tables), "## Circumstances", text]
    write_atomically(RESULTS / f"{name}.json", json.dumps(data, indent=1, ensure_ascii=False))
    write_atomically(RESULTS / f"{name}.md", "\n\n".join(parts))
    print(f"written: {RESULTS / name}.json and .md")


def write_atomically(path: Path, text: str) -> None:
    """Write a temporary file and rename it to `path`, so that the file is never incomplete."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


# --- Command lines


class Options(argparse.ArgumentParser):
    """A parser with the options that all parts share; `before` for those that compare their tables with a run."""

    def __init__(self, description: str, name: str, *, before: bool = False) -> None:
        super().__init__(description=description)
        self._name = name
        self.add_argument("--name", help=f"name of the files in benchmarks/results (default: {name} or {name}-quick)")
        if before:
            self.add_argument("--before", help="the run whose figures are shown beside the new ones (default: --name)")
        self.add_argument("--quick", action="store_true", help="tiny sizes and one turn, to check that it runs")

    def given(self) -> argparse.Namespace:
        given = self.parse_args()
        given.name = given.name or default_name(self._name, given.quick)
        return given


def default_name(name: str, quick: bool) -> str:
    """The name of the results, which keeps those of a quick run apart from the real ones."""
    return name + ("-quick" if quick else "")


def run_alone(part: Callable[[bool], Sequence[Table | Rows]], name: str, description: str) -> None:
    """The command line of one part."""
    given = Options(description, name, before=True).given()
    require_cpu()
    write(given.name, part(given.quick), circumstances(f"benchmarks.{name}"), before=given.before)


def require_cpu() -> None:
    """Exit with an error if the active backend computes on a GPU, since the timing does not synchronize."""
    xp = russellgrad.get_backend()
    if xp.zeros((), "float32").__dlpack_device__()[0] != 1:  # DLPack's number of the CPU
        raise SystemExit(
            f"benchmarks: the comparison is with PyTorch on the CPU, but the backend is {xp.name!r}; set "
            "RG_BACKEND=numpy"
        )


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def left_out(names: Sequence[str]) -> list[str]:
    """A note that lists libraries that are not installed; empty if there are none."""
    return [f'Not measured, since not installed: {", ".join(names)} (`pip install -e ".[bench]"`).'] if names else []


# --- The machine and its software


def circumstances(module: str) -> dict[str, Any]:
    """The date, the command (`python -m module`), the commit, the machine and the versions of the software."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([f"python -m {module}", *sys.argv[1:]]),
        "commit": _commit(),
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "backend": russellgrad.get_backend().name,
        "BLAS of NumPy": _numpy_blas(),
        "BLAS of torch": _torch_blas(),
        "torch threads": torch.get_num_threads(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_TUNING) and k != "RG_DATA_DIR"},
        "python": platform.python_version(),
        **{name: _version(name) for name in ("russellgrad", "numpy", "torch", "autograd", "mygrad", "scipy")},
    }


# Prefixes of environment variables that affect performance.
_TUNING = (
    "OPENBLAS_", "MKL_", "OMP_", "KMP_", "GOMP_", "MALLOC_", "RG_",
    "CUBLAS_", "CUDA_DEVICE_", "CUDA_LAUNCH_", "CUPY_ACCELERATORS", "CUPY_TF32", "NVIDIA_TF32_", "PYTORCH_",
)  # fmt: skip


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
        return git("rev-parse", "--short", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    facts = dict([part.strip() for part in line.split(":", 1)] for line in lines if ":" in line)
    numbers = f"family {facts.get('cpu family')}, model {facts.get('model')}"
    return f"{facts.get('model name', platform.processor())} ({numbers})"


def _numpy_blas() -> str:
    """The BLAS library, the architecture whose kernels it uses, and its number of threads."""
    if not installed("threadpoolctl"):
        return "unknown: threadpoolctl is not installed"
    from threadpoolctl import threadpool_info

    return "; ".join(
        f"{pool['internal_api']} {pool['version']} for {pool.get('architecture')}, {pool['num_threads']} threads"
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    )


def _torch_blas() -> str:
    settings = dict(item.strip().split("=", 1) for item in torch.__config__.show().split(",") if "=" in item)
    library = settings.get("LAPACK_INFO", "unknown")
    return f"{library}; kernels of PyTorch's own for {torch.backends.cpu.get_cpu_capability()}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
