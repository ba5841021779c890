"""Time and memory of a training step by sequence length, batch size and width: `python -m benchmarks.growth`."""

from benchmarks import memory
from benchmarks.measure import Table, run_alone
from benchmarks.train_step import SIZE_HEAD, candidates, measure

LENGTHS = {str(length): f"4/4/128/{length}/4" for length in (64, 128, 256, 512, 1024)}
BATCHES = {str(batch): f"4/4/128/64/{batch}" for batch in (1, 4, 16, 64)}
HEADS = {64: 4, 128: 4, 256: 4, 384: 6, 512: 8, 768: 12}  # 16 to 64 elements in each head
WIDTHS = {str(width): f"4/{heads}/{width}/64/12" for width, heads in HEADS.items()}
TINY_LENGTHS = {"4": "1/2/8/4/2", "8": "1/2/8/8/2"}
TINY_BATCHES = {"1": "1/2/8/4/1", "2": "1/2/8/4/2"}
TINY_WIDTHS = {"8": "1/2/8/4/2", "16": "1/2/16/4/2"}
ROUNDS, SECONDS = 10, 12.0


def table(head: str, cases: dict[str, str], rounds: int) -> Table:
    """A table with a row for each case; `cases` maps labels to sizes."""
    notes = [f"Forward, backward and AdamW, at {', '.join(cases.values())} ({SIZE_HEAD})."]
    result = Table(f"growth_{head.split()[-1]}", f"A training step by {head}", head, "milliseconds", notes)
    for label, size in cases.items():
        result.add(label, measure(size, candidates(size), rounds, SECONDS))
    return result


def tables(quick: bool = False) -> list[Table]:
    lengths, batches, widths, rounds = (
        (TINY_LENGTHS, TINY_BATCHES, TINY_WIDTHS, 1) if quick else (LENGTHS, BATCHES, WIDTHS, ROUNDS)
    )
    growing = {"sequence length": lengths, "batch": batches, "width": widths}
    names = {"sequence length": "growth_memory", "batch": "growth_memory_batch", "width": "growth_memory_width"}
    return [
        *(table(head, cases, rounds) for head, cases in growing.items()),
        *(
            memory.table(names[head], f"Peak memory of training by {head}", head, cases)
            for head, cases in growing.items()
        ),
    ]


if __name__ == "__main__":
    run_alone(tables, "growth", "Time a training step by sequence length, batch and width.")
