"""The time of a training step against PyTorch eager, other autograd libraries and the bare matrix products, in one run.

python -m benchmarks.train_step                  all sizes; some minutes
python -m benchmarks.train_step --sizes 4/4/128/64/12 --rounds 30
"""

import math
from collections.abc import Sequence

from benchmarks.candidates.model import Size
from benchmarks.measure import (
    LEAST_TURNS,
    OURS,
    Candidate,
    Options,
    Table,
    check_close,
    circumstances,
    installed,
    left_out,
    require_cpu,
    take_turns,
    write,
)

SIZES = ("4/4/128/64/12", "4/4/64/64/64", "6/6/384/256/16", "8/8/384/64/64")
SMALL = SIZES[:2]  # the only ones of the other libraries over NumPy, which are slow
TINY = "1/2/8/4/2"
SIZE_HEAD = "layers/heads/width/length/batch"
TORCH, TORCH_FUSED = "torch", "torch, fused AdamW"
ROUNDS, SECONDS = 20, 30.0
BURST = 0.4  # seconds of steps on end: right after a rest the first ones are slower, and training has no rests

NUMPY_PEERS = {"autograd": "hips_autograd", "mygrad": "my_grad"}
NOTES = [
    "Forward, backward and AdamW of one model, from the same weights on the same batches; the losses were checked to "
    "agree within 1e-4 of themselves in the first turn, after some ten steps at the small sizes.",
    "`torch` is eager, with scaled_dot_product_attention and its default AdamW. `matrix products` are the step's own "
    "products with NumPy and nothing else; attention's are done in full (T x T), though a causal one needs only half.",
]
PEER_NOTES = [
    "`autograd` and `mygrad` run at the two small sizes, with AdamW written in NumPy; their gradients were checked to "
    "be float32. MyGrad has no erf: its exact GELU is a custom operation over SciPy's. Its memory guarding is off.",
]


def candidates(size: str) -> dict[str, Candidate]:
    """Ours and PyTorch's."""
    return {
        OURS: ("ours", "train_step", size),
        TORCH: ("torch_eager", "train_step", size, "default"),
        TORCH_FUSED: ("torch_eager", "train_step", size, "fused"),
    }


def numpy_peers() -> list[str]:
    return [name for name in NUMPY_PEERS if installed(name) and installed("scipy")]


def measure(size: str, everyone: dict[str, Candidate], rounds: int, seconds: float) -> dict[str, list[float]]:
    """The seconds of a step, by candidate and turn. Raises RuntimeError if the candidates' losses differ."""
    check = check_close(f"train_step {size}", 1e-4)
    burst = 0.0 if size == TINY else BURST  # in which so small a model takes so many steps that the losses drift apart
    return take_turns(everyone, rounds, seconds=seconds, burst=burst, check=check)


def table(sizes: Sequence[str], rounds: int = ROUNDS, seconds: float = SECONDS) -> Table:
    result = Table("train_step", "A training step", SIZE_HEAD, "milliseconds", NOTES)
    for size in sizes:
        everyone = candidates(size) | {"matrix products": ("products", "train_step", size)}
        result.add(size, measure(size, everyone, rounds, seconds))
    return result


def peers_table(sizes: Sequence[str], rounds: int = LEAST_TURNS) -> Table:
    """By itself, since the slowest candidate sets the length of all bursts."""
    missing = [name for name in NUMPY_PEERS if name not in numpy_peers()]
    title = "A training step in other libraries over NumPy"
    result = Table("train_step_peers", title, SIZE_HEAD, "milliseconds", [*PEER_NOTES, *left_out(missing)])
    for size in sizes if len(missing) < len(NUMPY_PEERS) else ():
        peers: dict[str, Candidate] = {name: (NUMPY_PEERS[name], "train_step", size) for name in numpy_peers()}
        result.add(size, measure(size, {OURS: candidates(size)[OURS]} | peers, rounds, math.inf))
    return result


def tables(quick: bool = False) -> list[Table]:
    return [table([TINY], 1), peers_table([TINY], 1)] if quick else [table(SIZES), peers_table(SMALL)]


def main() -> None:
    parser = Options("Time a training step against PyTorch, in one run.", "train_step")
    parser.add_argument("--sizes", nargs="+", type=Size.parse, help=f"{SIZE_HEAD} (default: {' '.join(SIZES)})")
    parser.add_argument(
        "--rounds", type=int, help=f"turns of each size (default: {ROUNDS}, fewer past {SECONDS:.0f} s of them)"
    )
    given = parser.given()
    require_cpu()
    sizes = [str(size) for size in given.sizes or ()] or ([TINY] if given.quick else SIZES)
    rounds = given.rounds or (1 if given.quick else ROUNDS)
    result = table(sizes, rounds, math.inf if given.rounds else SECONDS)
    write(given.name, [result], circumstances("benchmarks.train_step"))


if __name__ == "__main__":
    main()
