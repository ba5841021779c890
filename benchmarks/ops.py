"""Time of each op of the model, forward and backward, against PyTorch: `python -m benchmarks.ops`."""

from benchmarks.measure import OURS, Candidate, Table, check_close, run_alone, take_turns
from benchmarks.train_step import SIZE_HEAD, TINY, TORCH, TORCH_FUSED

SIZES = ("4/4/128/64/12", "6/6/384/256/16")
OPS = {
    "linear": "linear with bias, C to 4C",
    "gelu": "gelu",
    "gelu_tanh": 'gelu, "tanh"',
    "layer_norm": "layer_norm",
    "softmax": "softmax of attention's scores",
    "cross_entropy": "cross_entropy",
    "attention": "attention, causal",
    "embedding": "embedding",
    "add": "add, (B, T, C) and (T, C)",
    "sum": "sum over C",
}
ROUNDS, SECONDS, BURST = 7, 20.0, 0.03
SMALL = "2/2/32/16/4"
FORMULAS = f"{OURS}, formulas alone"


def candidates(op: str, size: str) -> dict[str, Candidate]:
    return {OURS: ("ours", "op", op, size), TORCH: ("torch_eager", "op", op, size)}


def optimizers(size: str) -> dict[str, Candidate]:
    return {
        OURS: ("ours", "adamw", size),
        TORCH: ("torch_eager", "adamw", size, "default"),
        TORCH_FUSED: ("torch_eager", "adamw", size, "fused"),
    }


def table(size: str, rounds: int, burst: float) -> Table:
    notes = [
        f"Forward and backward, with a random upstream gradient, with the shapes of {size} ({SIZE_HEAD}). All float "
        "operands get gradients. The norms of outputs and gradients agree within 1e-3.",
        "AdamW is one step of all parameters of the model, with random gradients.",
    ]
    result = Table(f"ops {size}", f"The ops at {size}", "op", "milliseconds", notes)
    cases = {label: candidates(op, size) for op, label in OPS.items()}
    for label, everyone in {**cases, "AdamW": optimizers(size)}.items():
        check = check_close(f"{label} at {size}", 1e-3)
        result.add(label, take_turns(everyone, rounds, seconds=SECONDS, burst=burst, check=check))
    return result


def small_table(size: str, rounds: int, burst: float) -> Table:
    notes = [
        "In float64, where calls take the time and not arithmetic. `formulas alone` is NumPy's core primitives, with "
        "the formulas of `backends/formulas.py` for all others. The losses agree within a relative 1e-9."
    ]
    result = Table("ops small", "A training step on small arrays", SIZE_HEAD, "milliseconds", notes)
    everyone: dict[str, Candidate] = {
        OURS: ("ours", "train_step", size, "whole", "float64"),
        FORMULAS: ("formulas_ours", "train_step", size),
        TORCH: ("torch_eager", "train_step", size, "default", "eager", "float64"),
    }
    check = check_close(f"small step {size}", 1e-9)
    result.add(size, take_turns(everyone, rounds, seconds=SECONDS, burst=burst, check=check))
    return result


def tables(quick: bool = False) -> list[Table]:
    if quick:
        return [table(TINY, 1, 0.0), small_table(TINY, 1, 0.0)]
    return [*(table(size, ROUNDS, BURST) for size in SIZES), small_table(SMALL, ROUNDS, BURST)]


if __name__ == "__main__":
    run_alone(tables, "ops", "Time each op against PyTorch.")
