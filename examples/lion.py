"""Compare an optimizer of one's own, Lion, with AdamW: python examples/lion.py

Lion (train/lion.py) moves each element of a parameter by exactly the learning rate, in the direction of the sign of a
moving average of gradients.

Here both train a small network to tell two spirals apart. With AdamW's learning rate, Lion oscillates around
the minimum. The losses are means over 100 steps.
"""

import argparse
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to import russellgrad from the checkout
from russellgrad import Tensor, cross_entropy, linear
from russellgrad.optimizer import AdamWOptimizer
from train.lion import Lion
from train.progress import echo  # like print; a closed pipe or a full disk is no error


def spirals(rng: np.random.Generator, n: int) -> tuple[Tensor, np.ndarray]:
    """Points (n, 2) of two spirals, and the spiral of each, (n,)."""
    labels, turn = rng.integers(2, size=n), 3 * np.pi * np.sqrt(rng.random(n))
    angle = turn + np.pi * labels
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1) * turn[:, None] / 5
    return Tensor(points + 0.03 * rng.normal(size=(n, 2)), requires_grad=False), labels


def train(build: Any, steps: int) -> list[float]:
    """The loss of each step, on new points, while an optimizer trains a network with two hidden layers."""
    rng, sizes, losses = np.random.default_rng(0), [2, 64, 64, 2], []
    weights = [Tensor(rng.normal(size=(m, n)) * np.sqrt(2 / m)) for m, n in pairwise(sizes)]
    biases = [Tensor(np.zeros(n)) for n in sizes[1:]]
    optimizer = build([{"params": weights}, {"params": biases, "weight_decay": 0.0}])
    for _ in range(steps):
        x, labels = spirals(rng, 256)
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            x = linear(x, weight, bias).relu()
        loss = cross_entropy(linear(x, weights[-1], biases[-1]), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Lion against AdamW on two spirals.")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps (default: 1000)")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps must be positive, got {args.steps}")
    for name, build in (
        ("AdamW, learning rate 0.01, weight decay 0.01", lambda p: AdamWOptimizer(p, 1e-2, weight_decay=0.01)),
        ("Lion, learning rate 0.001, weight decay 0.1", lambda p: Lion(p, 1e-3, weight_decay=0.1)),
        ("Lion, learning rate 0.01, weight decay 0.01", lambda p: Lion(p, 1e-2, weight_decay=0.01)),
    ):
        echo(name)
        losses = train(build, args.steps)
        for first in range(0, args.steps, 100):
            last = min(first + 100, args.steps)
            echo(f"steps {first + 1:4} to {last:4}: loss {np.mean(losses[first:last]):.4f}")


if __name__ == "__main__":
    main()
