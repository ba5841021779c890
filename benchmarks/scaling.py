"""What another process brings to training: `python -m benchmarks.scaling`, on this machine, by mpiexec."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import OURS, ROOT, Table, left_out, run_alone
from benchmarks.train_step import SIZE_HEAD
from train.metrics import read_metrics

SIZES = ("4/4/128/64/12", "4/4/128/64/48", "6/6/192/128/16")
ALONE, ALL_THREADS = "1 process, 1 thread", "1 process, 2 threads"
SKIPPED, STEPS, ROUNDS = 10, 30, 5  # steps before the timed ones; timed ones; turns


def launcher() -> str | None:
    """The path of mpiexec: where Python is, as PyPI's packages put it there, or on the system's path."""
    return shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def seconds_a_step(size: str, processes: int, threads: int, steps: int) -> float:
    """Of training by `train/train_transformer.py`, its loop's reading of losses included, but no evaluation."""
    layers, heads, width, block, batch = size.split("/")
    mpiexec = launcher()
    assert mpiexec is not None
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "layers": layers, "heads": heads, "width": width, "block": block, "batch": batch, "out": folder,
            "steps": 10**6, "eval-interval": 10**6, "eval-blocks": 1, "sample-tokens": 0, "warmup": 1,
        }  # fmt: skip
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        subprocess.run(
            [mpiexec, "-n", str(processes), sys.executable, "train/train_transformer.py", *arguments],
            cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
            env={**os.environ, "OPENBLAS_NUM_THREADS": str(threads), "RG_TRAIN_STEPS": str(SKIPPED + steps)},
        )  # fmt: skip
        history = read_metrics(folder)
    at = dict(zip(history.steps, history.seconds, strict=True))
    return (at[SKIPPED + steps] - at[SKIPPED]) / steps


def tables(quick: bool = False) -> list[Table]:
    notes = [
        "Training as the command line does it, of the same batches: `russellgrad` is two processes of one thread, each "
        "with half of every batch, by MPI on one machine. A ratio is theirs: 0.5 of one process with one thread would "
        "be perfect.",
    ]
    result = Table("scaling", "Two processes", SIZE_HEAD, "milliseconds", notes)
    if launcher() is None:
        result.notes += left_out(["mpiexec (pip install mpi4py mpich)"])
        return [result]
    rounds, steps = (1, 10) if quick else (ROUNDS, STEPS)
    for size in SIZES[:1] if quick else SIZES:
        times: dict[str, list[float]] = {OURS: [], ALONE: [], ALL_THREADS: []}
        for _ in range(rounds):
            for name, (processes, threads) in {OURS: (2, 1), ALONE: (1, 1), ALL_THREADS: (1, 2)}.items():
                times[name].append(seconds_a_step(size, processes, threads, steps))
        result.add(size, times)
    return [result]


if __name__ == "__main__":
    run_alone(tables, "scaling", "Time training by one process and by two.")
