"""Speedup of training with two MPI processes on one machine: `python -m benchmarks.scaling`."""

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
    """The path of mpiexec: in the folder of Python, where packages from PyPI install it, or on the system's path."""
    return shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def seconds_a_step(size: str, processes: int, threads: int, steps: int) -> float:
    """Seconds per step of `train/train_transformer.py`, including the transfer of losses, without evaluation."""
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
        "Training with the command line, on the same batches. `russellgrad` is two MPI processes with one thread each "
        "on one machine; each processes half of every batch. A ratio of 0.5 to one process with one thread would be "
        "perfect scaling.",
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
    run_alone(tables, "scaling", "Time training with one process and with two.")
