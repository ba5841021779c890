"""Peak memory of training against PyTorch: `python -m benchmarks.memory`. Linux only."""

from collections.abc import Sequence

from benchmarks.measure import OURS, Table, Worker, run_alone
from benchmarks.train_step import SIZE_HEAD, SIZES, TINY, TORCH, candidates
from benchmarks.worker import STATUS

STEPS = 5
NOTE = (
    f"The peak resident set of a new process after {STEPS} training steps (VmHWM), minus the resident set right after "
    "the imports, before the model is built (VmRSS). It includes code that a library loads only at the first step, "
    f"which is nearly all of the memory at {TINY} ({SIZE_HEAD})."
)


def table(name: str, title: str, head: str, cases: dict[str, str]) -> Table:
    """A table with a row for each case; `cases` maps labels to sizes."""
    result = Table(name, title, head, "MiB", [NOTE])
    if not STATUS.exists():
        result.notes.append(f"Not measured: needs {STATUS}, which only Linux has.")
        return result
    for label, size in cases.items():
        result.add(label, {who: [peak(candidates(size)[who])] for who in (OURS, TORCH)})
    return result


def peak(candidate: Sequence[str]) -> float:
    """Peak bytes, minus the bytes after the imports."""
    with Worker(tuple(candidate)) as worker:
        return worker.call(before=STEPS - 1)[2]


def tables(quick: bool = False, blocks: str = "") -> list[Table]:
    sizes = [blocks + size for size in ([TINY] if quick else [TINY, *SIZES])]
    return [table("memory", "Peak memory of training", SIZE_HEAD, {size: size for size in sizes})]


if __name__ == "__main__":
    run_alone(tables, "memory", "Measure the peak memory of training against PyTorch.")
