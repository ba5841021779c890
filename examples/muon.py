"""Compare an optimizer of one's own, Muon, with SGD and AdamW: python examples/muon.py

Muon (train/muon.py) replaces the momentum of a matrix by the nearest matrix with orthonormal rows or columns. A step
then moves all directions of the matrix equally, also those in which gradients are small.

Here a product of two matrices is fitted to a third one with the singular values 1, 1/2, 1/4, ... 1/128. SGD learns
their directions one after another, because the gradient is small in those of small values. Muon learns all at once.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to import russellgrad from the checkout
from russellgrad import Tensor
from russellgrad.optimizer import AdamWOptimizer, SGDOptimizer, cosine
from train.muon import Muon
from train.progress import echo  # like print; a closed pipe or a full disk is no error


def fit(build: Any, target: np.ndarray, steps: int) -> list[tuple[int, list[float]]]:
    """(step, relative error in the direction of each singular value of the target) while an optimizer fits it."""
    rng, found, n = np.random.default_rng(1), [], len(target)
    first, second = (Tensor(rng.normal(size=(n, n)) * 0.1 / math.sqrt(n)) for _ in range(2))
    optimizer = build([first, second])
    for step in range(steps + 1):
        error = second @ first - Tensor(target, requires_grad=False)
        if step % 50 == 0 or step == steps:
            left, values, right = np.linalg.svd(target)
            found.append((step, [abs(left[:, i] @ error.numpy() @ right[i]) / values[i] for i in range(n)]))
        optimizer.zero_grad()
        (error * error).sum().backward()
        optimizer.step()
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Muon against SGD and AdamW on a product of two matrices.")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps (default: 300)")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps must be positive, got {args.steps}")
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(8, 8)))[0] for _ in range(2))
    target = left * 0.5 ** np.arange(8) @ right
    for name, build in (
        ("SGD", lambda p: SGDOptimizer(p, cosine(1e-1, args.steps), momentum=0.9)),
        ("AdamW", lambda p: AdamWOptimizer(p, cosine(2e-2, args.steps), weight_decay=0.0)),
        ("Muon", lambda p: Muon(p, cosine(2e-2, args.steps), weight_decay=0.0)),
    ):
        echo(f"{name}: errors in the directions of the singular values 1, 1/2, ..., 1/128")
        for step, errors in fit(build, target, args.steps):
            echo(f"step {step:4}: {' '.join(f'{error:6.3f}' for error in errors)}")


if __name__ == "__main__":
    main()
