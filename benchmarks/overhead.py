"""Overhead of an op on tiny tensors, and import time: `python -m benchmarks.overhead`."""

import os
import subprocess
import sys

from benchmarks.measure import OURS, ROOT, Table, installed, left_out, run_alone, take_turns
from benchmarks.train_step import TORCH

NUMPY_PEERS = {"autograd": "hips_autograd", "mygrad": "my_grad"}
MODULES = {OURS: "ours", TORCH: "torch_eager", **NUMPY_PEERS}
MODES = {"plain": "forward, no gradients", "recorded": "forward, recorded", "both": "forward and backward"}
OPS = ("add", "multiply")
ROUNDS, BURST = 7, 0.05


def numpy_peers() -> list[str]:
    return [name for name in NUMPY_PEERS if installed(name) and installed("scipy")]


def op_table(rounds: int, burst: float) -> Table:
    missing = [name for name in NUMPY_PEERS if name not in numpy_peers()]
    notes = [
        "One op on two tensors of 4 elements. Backward uses a given upstream gradient and computes the gradients of "
        "both operands. `autograd` has no tensor class: its forward without gradients calls the function on arrays; "
        "the other modes use `make_vjp`.",
        *left_out(missing),
    ]
    result = Table("overhead", "One op on 4 elements", "op", "microseconds", notes)
    for op in OPS:
        for mode, label in MODES.items():
            everyone = {name: (MODULES[name], "small_op", op, mode) for name in (OURS, TORCH, *numpy_peers())}
            result.add(f"{op}, {label}", take_turns(everyone, rounds, burst=burst))
    return result


def import_seconds(module: str, first: str) -> float:
    """Seconds to import `module` in a new process, which has imported the modules `first`."""
    code = f"import {first}; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def import_table(name: str, first: str, note: str, rounds: int) -> Table:
    result = Table(name, "Importing it", "what", "milliseconds", [f"In a new process each time, {note}."])
    times: dict[str, list[float]] = {OURS: [], TORCH: []}
    for _ in range(1 + rounds):
        for module, seconds in times.items():
            seconds.append(import_seconds(module, first))
    # Without the first run, which writes the compiled files that an installed package has.
    result.add("import", {module: seconds[1:] for module, seconds in times.items()})
    return result


def tables(quick: bool = False) -> list[Table]:
    rounds, burst = (1, 0.0) if quick else (ROUNDS, BURST)
    return [
        op_table(rounds, burst),
        import_table("import", "time, numpy", "after `import numpy`", rounds),
        import_table("import_all", "time", "with what it imports", rounds),
    ]


if __name__ == "__main__":
    run_alone(tables, "overhead", "Time ops on 4 elements, and the imports, against PyTorch.")
