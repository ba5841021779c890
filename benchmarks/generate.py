"""Tokens per second of greedy generation against PyTorch: `python -m benchmarks.generate`."""

from benchmarks.measure import OURS, Table, check_close, run_alone, take_turns
from benchmarks.train_step import TORCH

SIZES = ("4/4/128/64/1", "6/6/384/256/1")
TOKENS, ROUNDS = 32, 7


def tables(quick: bool = False) -> list[Table]:
    sizes, tokens, rounds = (["1/2/8/4/1"], 2, 1) if quick else (SIZES, TOKENS, ROUNDS)
    notes = [
        f"Greedy, {tokens} tokens after a prompt that fills the context. Both compute the whole context anew for every "
        "token: ours with `Transformer.generate`, PyTorch in a plain loop. Both chose the same tokens. The ratio is of "
        "times: below 1 is faster than PyTorch."
    ]
    result = Table("generate", "Generation", "layers/heads/width/length", "tokens per second", notes)
    for size in sizes:
        everyone = {
            OURS: ("ours", "generate", size, str(tokens)),
            TORCH: ("torch_eager", "generate", size, str(tokens)),
        }
        times = take_turns(everyone, rounds, check=check_close(f"generate {size}", 0))
        each = {name: [seconds / tokens for seconds in turns] for name, turns in times.items()}
        result.add(size.rpartition("/")[0], each)
    return [result]


if __name__ == "__main__":
    run_alone(tables, "generate", "Time greedy generation against PyTorch.")
