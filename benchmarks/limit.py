"""A training step against the limits of the machine, and where the rest goes: `python -m benchmarks.limit`.

RG_BACKEND=numba python -m benchmarks.limit --name limit-numba
"""

import statistics
import time
from contextlib import ExitStack
from typing import Any

from benchmarks import measure
from benchmarks.candidates.limits import COPIED, ROWS, Step
from benchmarks.measure import Candidate, Rows, Worker, run_alone
from benchmarks.train_step import BURST, SIZE_HEAD, SIZES, TINY

ROUNDS, CALLS = 7, 20
SHOWN = 0.005  # of the step: primitives that take less are shown together
OTHERS, PYTHON = "other primitives", "between the primitives"

MACHINE_NOTE = (
    "A roofline bound. `products, peak` is the number of floating-point operations of the step's matrix products, "
    f"divided by the best rate of one product of {ROWS} x {ROWS}. `memory` is the number of bytes that its primitives "
    f"read and write, divided by the best rate of a copy of {COPIED >> 20} MiB. A primitive's limit is the larger of "
    "both, and `limit` is the sum over all primitives. Each primitive of forward, backward and AdamW reads its "
    "operands once and writes its results once: fewer and larger primitives would move fewer bytes. Causal attention "
    "counts only the scores that are not masked; its backward counts four products. Caches are faster than memory: "
    "small arrays may take less than `memory`."
)
STEP_NOTE = (
    "`products, NumPy` are the products in their own shapes, as in `benchmarks.train_step`, with all scores of "
    "attention. `primitives` is the time in primitives, and `Python` everything outside them: rules, graph, backward, "
    "batches, and freeing large arrays. Both are parts of `step, timed`, which has a timer around each primitive; "
    "`step` has none. The step is one forward and one backward of the whole batch, without `parallel_backward`, "
    "because the timers are of one thread."
)
PRIMITIVES_NOTE = (
    "The time in each primitive of the backend, of one step. `limit` is the larger of the products at the peak rate "
    "and the bytes at the rate of a copy; `above` is what a primitive takes beyond it. If a primitive calls others, "
    f"they are parts of it. Primitives below {100 * SHOWN} % of the step are added up."
)
LIMITS = {
    "case": SIZE_HEAD,
    "peak": "products, peak, ms",
    "products": "products, NumPy, ms",
    "memory": "memory, ms",
    "limit": "limit, ms",
    "primitives": "primitives, ms",
    "python": "Python, ms",
    "step": "step, ms",
    "ratio": "step / limit",
    "timed": "step, timed, ms",
}
COLUMNS = {
    "case": "primitive",
    "calls": "calls",
    "ms": "ms",
    "share": "% of the step",
    "peak": "products, peak, ms",
    "memory": "memory, ms",
    "limit": "limit, ms",
    "above": "above, ms",
}


def rates(rounds: int) -> tuple[float, float]:
    """Operations per second of a large product, and bytes per second of a copy: the best of all calls."""

    def least(*candidates: Candidate) -> float:
        with ExitStack() as stack:
            workers = [stack.enter_context(Worker(candidate)) for candidate in candidates]
            return min(worker.call(before=1)[0] for _ in range(rounds) for worker in workers)

    seconds = least(("limits", "product", "BLAS"), ("limits", "product", "library"))
    return 2 * ROWS**3 / seconds, 2 * COPIED / least(("limits", "copy", "1"), ("limits", "copy", "2"))


def steps(size: str, rounds: int, burst: float) -> tuple[float, float, list[Step]]:
    """Seconds of a step and of its products in NumPy, the medians of all turns; and all steps with timers."""
    everyone: dict[str, Candidate] = {
        "step": ("ours", "train_step", size, "whole"),
        "products": ("products", "train_step", size),
        "timed": ("limits", "primitives", size, "timed"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in everyone}
    recorded: list[Step] = []
    with ExitStack() as stack:
        # "limits" runs this library: with its allocator settings, as the step itself.
        workers = {name: stack.enter_context(Worker(who, environment={})) for name, who in everyone.items()}
        for worker in workers.values():
            worker.call()
        timed = max(1, round(burst / max(worker.call()[0] for worker in workers.values())))
        for _ in range(rounds):
            for name, worker in workers.items():
                time.sleep(measure.REST)
                took, outcome, _ = worker.call(timed, timed)
                seconds[name].append(took)
                recorded += outcome[-timed:] if name == "timed" else []
    return statistics.median(seconds["step"]), statistics.median(seconds["products"]), recorded


def counted(size: str) -> dict[str, list[float]]:
    """Of each primitive in one step: calls, seconds, operations, bytes."""
    with Worker(("limits", "primitives", size, "counted"), environment={}) as worker:
        worker.call()
        (step,) = worker.call()[1]
    return dict(step[1])


def primitive_rows(
    work: dict[str, list[float]], recorded: list[Step], speed: float, bandwidth: float
) -> list[dict[str, Any]]:
    """A row for each primitive, the slowest first, and one for the time between them, in ms; medians of all steps."""
    step = 1e3 * statistics.median(seconds for seconds, _ in recorded)
    rows: list[dict[str, Any]] = []
    for name, (calls, _, operations, moved) in work.items():
        peak, memory = 1e3 * operations / speed, 1e3 * moved / bandwidth
        ms = 1e3 * statistics.median(entries[name][1] for _, entries in recorded)
        rows.append({"case": name, "calls": int(calls), "ms": ms, "peak": peak, "memory": memory})
        rows[-1]["limit"] = max(peak, memory)
    rows.sort(key=lambda row: -row["ms"])
    small = [row for row in rows if row["ms"] < SHOWN * step]
    rows = [row for row in rows if row not in small]
    rows.append({"case": OTHERS} | {key: sum(row[key] for row in small) for key in ("calls", *list(rows[0])[2:])})
    rows.append({"case": PYTHON, "ms": step - sum(row["ms"] for row in rows), "limit": 0.0})
    for row in rows:
        row |= {"share": 100 * row["ms"] / step, "above": row["ms"] - row["limit"]}
    return rows


def tables(quick: bool = False) -> list[Rows]:
    sizes, rounds, burst = ([TINY], 1, 0.0) if quick else (SIZES, ROUNDS, BURST)
    speed, bandwidth = rates(1 if quick else CALLS)
    machine = f"This machine: {speed / 1e9:.0f} GFLOP/s, and {bandwidth / 1e9:.0f} GB/s read and written."
    limits = Rows(
        "limits", "A training step against the limits of the machine", LIMITS, [MACHINE_NOTE, STEP_NOTE, machine]
    )
    parts = []
    for size in sizes:
        step, products, recorded = steps(size, rounds, burst)
        part = Rows(f"limit {size}", f"The primitives of a step at {size}", COLUMNS, [PRIMITIVES_NOTE])
        part.rows = primitive_rows(counted(size), recorded, speed, bandwidth)
        parts.append(part)
        *primitives, python = part.rows
        total = {key: sum(row[key] for row in primitives) for key in ("ms", "peak", "memory", "limit")}
        step, products = 1e3 * step, 1e3 * products
        limits.rows.append({
            "case": size, **total, "primitives": total["ms"], "products": products, "python": python["ms"],
            "step": step, "ratio": step / total["limit"], "timed": total["ms"] + python["ms"],
        })  # fmt: skip
        print(limits.rows[-1], flush=True)
    return [limits, *parts]


if __name__ == "__main__":
    run_alone(tables, "limit", "Compare a training step with the limits of the machine.")
