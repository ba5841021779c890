"""Time and memory of a training step by sequence length and batch size: `python -m benchmarks.growth`."""

from benchmarks import memory
from benchmarks.measure import Table, run_alone
from benchmarks.train_step import SIZE_HEAD, candidates, measure

LENGTHS = {str(length): f"4/4/128/{length}/4" for length in (64, 128, 256, 512, 1024)}
BATCHES = {str(batch): f"4/4/128/64/{batch}" for batch in (1, 4, 16, 64)}
TINY_LENGTHS = {"4": "1/2/8/4/2", "8": "1/2/8/8/2"}
TINY_BATCHES = {"1": "1/2/8/4/1", "2": "1/2/8/4/2"}
ROUNDS, SECONDS = 10, 12.0


def table(name: str, head: str, cases: dict[str, str], rounds: int) -> Table:
    """A table with a row for each case; `cases` maps labels to sizes."""
    first = next(iter(cases.values()))
    notes = [f"Forward, backward and AdamW, at {first} ({SIZE_HEAD}) and with other values of the {head}."]
    result = Table(name, f"A training step by {head}", head, "milliseconds", notes)
    for label, size in cases.items():
        result.add(label, measure(size, candidates(size), rounds, SECONDS))
    return result


def tables(quick: bool = False) -> list[Table]:
    lengths, batches, rounds = (TINY_LENGTHS, TINY_BATCHES, 1) if quick else (LENGTHS, BATCHES, ROUNDS)
    return [
        table("growth_length", "sequence length", lengths, rounds),
        table("growth_batch", "batch", batches, rounds),
        memory.table("growth_memory", "Peak memory of training by sequence length", "sequence length", lengths),
    ]


if __name__ == "__main__":
    run_alone(tables, "growth", "Time a training step by sequence length and batch.")
