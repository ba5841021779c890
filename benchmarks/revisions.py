"""Compares the time of a training step at several commits.

python -m benchmarks.revisions v1 v2 v3                 compares each commit with the previous one
RG_BACKEND=numba python -m benchmarks.revisions v1 v2 --sizes 4/4/128/64/12 --rounds 5

Each commit is checked out in a temporary git worktree and runs in its own processes, which take turns (A B C C B A). A
step is forward, backward, gradient clipping and AdamW with flat=True, as in `train/`.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from benchmarks.measure import ROOT
from benchmarks.train_step import SIZES

STEP = """
import statistics, sys, time
from benchmarks.candidates.model import LEARNING_RATE, WEIGHT_DECAY, Size, batches, build_model
from russellgrad.loss import cross_entropy_loss
from russellgrad.optimizer import AdamWOptimizer

size, seconds = Size.parse(sys.argv[1]), float(sys.argv[2])
model = build_model(size)
optimizer = AdamWOptimizer(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, flat=True)
data = batches(size)

def step():
    inputs, targets = next(data)
    optimizer.zero_grad()
    loss = cross_entropy_loss(model(inputs), targets, model.tokenizer.pad_token_id)
    loss.backward()
    optimizer.step(max_norm=1.0)
    return float(loss)

for _ in range(3):
    step()
times = []
while sum(times) < seconds or len(times) < 5:
    start = time.perf_counter()
    step()
    times.append(time.perf_counter() - start)
print(statistics.median(times))
"""


def step_time(checkout: Path, size: str, seconds: float) -> float:
    """The median seconds of a step, in a new process that runs the code of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", STEP, size, str(seconds)]
    done = subprocess.run(command, cwd=checkout, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def compare(checkouts: dict[str, Path], size: str, rounds: int, seconds: float) -> dict[str, float]:
    """The median of the step times of all rounds, by revision."""
    times: dict[str, list[float]] = {revision: [] for revision in checkouts}
    for turn in range(rounds):
        for revision in list(checkouts)[:: 1 if turn % 2 == 0 else -1]:
            times[revision].append(step_time(checkouts[revision], size, seconds))
    return {revision: statistics.median(found) for revision, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the time of a training step at several commits.")
    parser.add_argument("revisions", nargs="+", help="git revisions, the oldest first")
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="layers/heads/width/length/batch")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each revision")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a turn, which has at least 5 steps")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkouts = {revision: Path(folder) / f"{i}" for i, revision in enumerate(given.revisions)}
        try:
            for revision, path in checkouts.items():
                command = ["git", "worktree", "add", "--quiet", "--detach", str(path), revision]
                subprocess.run(command, cwd=ROOT, check=True)
            print(f"| size | {' | '.join(checkouts)} |\n|---|{'---|' * len(checkouts)}")
            for size in given.sizes:
                times = list(compare(checkouts, size, given.rounds, given.seconds).values())
                ratios = ["", *(f" ({b / a:.2f})" for a, b in pairwise(times))]
                cells = [f"{seconds * 1e3:.1f} ms{ratio}" for seconds, ratio in zip(times, ratios, strict=True)]
                print(f"| {size} | {' | '.join(cells)} |", flush=True)
        finally:
            for path in checkouts.values():
                if path.exists():
                    subprocess.run(["git", "worktree", "remove", "--force", str(path)], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
