"""Tokens per second of greedy generation against PyTorch, and the memory it takes: `python -m benchmarks.generate`."""

from benchmarks.candidates.model import Size
from benchmarks.measure import OURS, Candidate, Table, check_close, run_alone, take_turns
from benchmarks.memory import peak
from benchmarks.train_step import TORCH
from benchmarks.worker import STATUS

SIZES = ("4/4/128/64/1", "6/6/384/256/1")
TINY = "1/2/8/4/1"
PAST, ROUNDS = 32, 5
SIZE_HEAD = "layers/heads/width/length"
OURS_ANEW, TORCH_ANEW = f"{OURS}, no cache", f"{TORCH}, no cache"

CACHED_NOTE = (
    "Greedy, from a prompt that fills half the context until it is full, reading the prompt included. With a cache of "
    "keys and values, ours with `Transformer.generate`, PyTorch in a loop; and without one, where both compute the "
    "text so far anew for every token. All four wrote the same text. A ratio is of times: below 1 is faster."
)
PAST_NOTE = (
    f"Greedy, {PAST} tokens after a prompt that fills the context. Its first token is given up for each new one, so no "
    "cache holds: both compute the whole context anew for every token. Both wrote the same text."
)
MEMORY_NOTE = (
    "The peak resident set of a fresh process after the same text once, less that right after the imports: the model, "
    "too. The keys and values alone are 2 x layers x length x width numbers for each text: 0.25 MiB at 4/4/128/64, 4.5 "
    "MiB at 6/6/384/256."
)


def candidates(size: str) -> dict[str, Candidate]:
    """The four ways to write the second half of the context."""
    half = Size.parse(size).length // 2
    kinds = {
        OURS: ("ours", "cached"), TORCH: ("torch_eager", "cached"),
        OURS_ANEW: ("ours", "recomputed"), TORCH_ANEW: ("torch_eager", "recomputed"),
    }  # fmt: skip
    return {name: (module, "generate", size, str(half), str(half), kind) for name, (module, kind) in kinds.items()}


def measured(table: Table, size: str, everyone: dict[str, Candidate], tokens: int, rounds: int) -> None:
    """A row of seconds a token."""
    times = take_turns(everyone, rounds, check=check_close(f"{table.name} {size}", 0))
    each = {name: [seconds / tokens for seconds in turns] for name, turns in times.items()}
    table.add(size.rpartition("/")[0], each)


def tables(quick: bool = False) -> list[Table]:
    sizes, past, rounds = ([TINY], 2, 1) if quick else (SIZES, PAST, ROUNDS)
    cached = Table("generate_cached", "Generation within the context", SIZE_HEAD, "tokens per second", [CACHED_NOTE])
    beyond = Table("generate", "Generation past the context", SIZE_HEAD, "tokens per second", [PAST_NOTE])
    memory = Table("generate_memory", "Peak memory of generation", SIZE_HEAD, "MiB", [MEMORY_NOTE])
    for size in sizes:
        length, everyone = Size.parse(size).length, candidates(size)
        measured(cached, size, everyone, length // 2, rounds)
        rest = ("generate", size, str(length), str(past))
        filled: dict[str, Candidate] = {
            OURS: ("ours", *rest, "cached"),
            TORCH: ("torch_eager", *rest, "recomputed"),
        }
        measured(beyond, size, filled, past, rounds)
        if STATUS.exists():
            memory.add(size.rpartition("/")[0], {name: [peak(who)] for name, who in everyone.items()})
    return [cached, beyond, memory]


if __name__ == "__main__":
    run_alone(tables, "generate", "Time greedy generation against PyTorch.")
