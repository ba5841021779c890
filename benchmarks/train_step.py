"""Time of a training step against PyTorch (eager) and the matrix products alone; benchmarks.step_peers has others.

python -m benchmarks.train_step                  all sizes: a few minutes
python -m benchmarks.train_step --sizes 4/4/128/64/12 --rounds 30
python -m benchmarks.train_step --sizes llama/4/4/128/64/12     with Llama's blocks
"""

import math
from collections.abc import Sequence

from benchmarks.candidates.model import LLAMA, Size
from benchmarks.measure import (
    OURS,
    Candidate,
    Options,
    Table,
    check_close,
    circumstances,
    require_cpu,
    take_turns,
    write,
)

SIZES = ("4/4/128/64/12", "4/4/64/64/64", "6/6/384/256/16", "8/8/384/64/64")
TINY = "1/2/8/4/2"
SIZE_HEAD = "layers/heads/width/length/batch"
TORCH, TORCH_FUSED = "torch", "torch, fused AdamW"
WHOLE = "russellgrad, whole batch"
ROUNDS, SECONDS = 20, 30.0
BURST = 0.4  # seconds of consecutive steps: the first steps after a pause are slower, and training has no pauses

NOTES = [
    "Forward, backward and AdamW of the same model, from the same weights and on the same batches. The losses agree "
    "within a relative 1e-4 in the first turn, after about ten steps at the small sizes.",
    "`russellgrad` divides the batch over the threads with `parallel_backward`, as training does. `russellgrad, whole "
    "batch` is one forward and one backward, whose operations are divided over the threads.",
    "`torch` is eager, with scaled_dot_product_attention and its default AdamW. `matrix products` are only the matrix "
    "products of the step, in NumPy; those of attention are full (T x T), although causal attention needs half.",
]


def candidates(size: str) -> dict[str, Candidate]:
    """RussellGrad and PyTorch."""
    return {
        OURS: ("ours", "train_step", size),
        TORCH: ("torch_eager", "train_step", size, "default"),
        TORCH_FUSED: ("torch_eager", "train_step", size, "fused"),
    }


def measure(size: str, everyone: dict[str, Candidate], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds per step, by candidate and turn. Raises RuntimeError if the losses of the candidates differ."""
    check = check_close(f"train_step {size}", 1e-4)
    burst = 0.0 if size.removeprefix(LLAMA) == TINY else BURST  # TINY takes so many steps in BURST that losses diverge
    return take_turns(everyone, rounds, seconds=seconds, burst=burst, check=check)


def table(sizes: Sequence[str], rounds: int = ROUNDS, seconds: float = SECONDS) -> Table:
    result = Table("train_step", "A training step", SIZE_HEAD, "milliseconds", NOTES)
    for size in sizes:
        everyone = candidates(size) | {
            WHOLE: ("ours", "train_step", size, "whole"),
            "matrix products": ("products", "train_step", size),
        }
        result.add(size, measure(size, everyone, rounds, seconds))
    return result


def tables(quick: bool = False, blocks: str = "") -> list[Table]:
    return [table([blocks + TINY], 1)] if quick else [table([blocks + size for size in SIZES])]


def main() -> None:
    parser = Options("Time a training step against PyTorch, in one run.", "train_step", before=True)
    parser.add_argument("--sizes", nargs="+", type=Size.parse, help=f"{SIZE_HEAD} (default: {' '.join(SIZES)})")
    parser.add_argument(
        "--rounds", type=int, help=f"turns for each size (default: {ROUNDS}, or fewer after {SECONDS:.0f} s)"
    )
    given = parser.given()
    require_cpu()
    sizes = [str(size) for size in given.sizes or ()] or ([TINY] if given.quick else SIZES)
    rounds = given.rounds or (1 if given.quick else ROUNDS)
    result = table(sizes, rounds, math.inf if given.rounds else SECONDS)
    write(given.name, [result], circumstances("benchmarks.train_step"), before=given.before)


if __name__ == "__main__":
    main()
