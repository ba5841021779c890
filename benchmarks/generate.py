"""Speed and peak memory of greedy generation against PyTorch: `python -m benchmarks.generate`."""

from typing import Any

from benchmarks.candidates.model import Size
from benchmarks.measure import OURS, Candidate, Table, check_close, run_alone, take_turns
from benchmarks.memory import peak
from benchmarks.train_step import TORCH
from benchmarks.worker import STATUS

SIZES = ("4/4/128/64/1", "6/6/384/256/1")
BATCHES = (16, 64)
TINY = "1/2/8/4/1"
PAST, ROUNDS = 32, 5
BATCH_TOKENS = 32  # of each text in a batch
SIZE_HEAD = "layers/heads/width/length"
OURS_MIXED = f"{OURS}, different lengths"
OURS_UNCACHED, TORCH_UNCACHED = f"{OURS}, no cache", f"{TORCH}, no cache"

CACHED_NOTE = (
    "Greedy generation from a prompt that fills half the context until the context is full; processing the prompt is "
    "included. With a cache of keys and values, RussellGrad uses `Transformer.generate` and PyTorch a loop. Without a "
    "cache, both recompute all previous tokens for every new token. All four generated the same text. A ratio is a "
    "ratio of times: below 1 is faster."
)
PAST_NOTE = (
    f"Greedy generation of {PAST} tokens after a prompt that fills the context. Each new token drops the oldest one, "
    "which invalidates the cache: both recompute the whole context for every token. Both generated the same text."
)
BATCH_NOTE = (
    f"Greedy generation of {BATCH_TOKENS} tokens (or half the context, if that is less) for each of several texts at "
    "once, after prompts that fill half the context; the tokens of all texts count. The last column has RussellGrad "
    "with prompts of different lengths, from a quarter to half the context, which are padded."
)
MEMORY_NOTE = (
    "The peak resident set of a new process after generating the same text once, minus the resident set right after "
    "the imports; this includes the model. The keys and values are 2 x layers x length x width numbers for each text, "
    "0.25 MiB at 4/4/128/64, 4.5 MiB at 6/6/384/256, and half of that with Llama's blocks."
)


def candidates(size: str) -> dict[str, Candidate]:
    """The four candidates that generate the second half of the context."""
    half = Size.parse(size).length // 2
    kinds = {
        OURS: ("ours", "cached"), TORCH: ("torch_eager", "cached"),
        OURS_UNCACHED: ("ours", "recomputed"), TORCH_UNCACHED: ("torch_eager", "recomputed"),
    }  # fmt: skip
    return {name: (module, "generate", size, str(half), str(half), kind) for name, (module, kind) in kinds.items()}


def batch_candidates(size: str, tokens: int) -> dict[str, Candidate]:
    rest = ("generate", size, str(Size.parse(size).length // 2), str(tokens))
    return {OURS: ("ours", *rest, "cached"), TORCH: ("torch_eager", *rest, "cached"),
            OURS_MIXED: ("ours", *rest, "mixed")}  # fmt: skip


def add_row(table: Table, size: str, everyone: dict[str, Candidate], tokens: int, rounds: int) -> None:
    """Add a row with the seconds per token."""
    times = take_turns(everyone, rounds, check=check_close(f"{table.name} {size}", 0))
    each = {name: [seconds / tokens for seconds in turns] for name, turns in times.items()}
    table.add(size.rpartition("/")[0], each)


def same_as_torch(outcomes: dict[str, Any]) -> None:
    """The texts of prompts of one length are PyTorch's."""
    check_close("generate_batch", 0)({name: outcomes[name] for name in (OURS, TORCH)})


def tables(quick: bool = False, blocks: str = "") -> list[Table]:
    sizes, past, rounds = ([TINY], 2, 1) if quick else (SIZES, PAST, ROUNDS)
    sizes = [blocks + size for size in sizes]
    cached = Table("generate_cached", "Generation within the context", SIZE_HEAD, "tokens per second", [CACHED_NOTE])
    past_context = Table("generate", "Generation past the context", SIZE_HEAD, "tokens per second", [PAST_NOTE])
    batched = Table(
        "generate_batch", "Generation of several texts", f"{SIZE_HEAD}/texts", "tokens per second", [BATCH_NOTE]
    )
    memory = Table("generate_memory", "Peak memory of generation", SIZE_HEAD, "MiB", [MEMORY_NOTE])
    for size in sizes:
        length, everyone = Size.parse(size).length, candidates(size)
        add_row(cached, size, everyone, length // 2, rounds)
        rest = ("generate", size, str(length), str(past))
        filled: dict[str, Candidate] = {
            OURS: ("ours", *rest, "cached"),
            TORCH: ("torch_eager", *rest, "recomputed"),
        }
        add_row(past_context, size, filled, past, rounds)
        for n in (2,) if quick else BATCHES:
            several, steps = f"{size.rpartition('/')[0]}/{n}", min(BATCH_TOKENS, length // 2)
            measured = take_turns(batch_candidates(several, steps), rounds, check=same_as_torch)
            batched.add(several, {who: [seconds / (n * steps) for seconds in turns] for who, turns in measured.items()})
        if STATUS.exists():
            memory.add(size.rpartition("/")[0], {name: [peak(who)] for name, who in everyone.items()})
    return [cached, past_context, batched, memory]


if __name__ == "__main__":
    run_alone(tables, "generate", "Time greedy generation against PyTorch.")
