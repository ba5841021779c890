"""Write an optimizer, Muon, and compare it with SGD and AdamW: python examples/muon.py

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a matrix by the nearest
matrix with orthonormal rows or columns: U V^T for the singular value decomposition U S V^T. A step then moves all
directions of the matrix equally, also those in which gradients are small. Five Newton-Schulz iterations approximate
it by matrix products. The scale 0.2 sqrt(max(rows, columns)) is that of Liu et al., arXiv:2502.16982, section 2.2: with
it a step is as large as one of AdamW, so both have the same learning rate and weight decay. Muon is for the matrices of
hidden layers only; embeddings, output layers, gains and biases go to AdamW.

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
from russellgrad import Tensor, zeros_like
from russellgrad.optimizer import AdamWOptimizer, Optimizer, Schedule, SGDOptimizer, cosine
from train.progress import echo  # like print; a closed pipe or a full disk is no error


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """A matrix with the singular vectors of the given one, and singular values near 1: between about 0.7 and 1.2.

    Newton-Schulz iterations: X becomes a X + b X X^T X + c (X X^T)^2 X, an odd polynomial of the singular values.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x * x).sum().sqrt().clip(min=1e-7)  # the largest singular value is at most the Frobenius norm
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(Optimizer):
    """Muon with Nesterov momentum; AdamW for the groups with use_muon=False, which has the betas and eps.

    Raises ValueError for a parameter of a Muon group that is not a matrix.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Schedule = 2e-3,
        *,
        use_muon: bool = True,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        flat: bool = False,
    ) -> None:
        options = {"momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, lr, flat=flat, use_muon=use_muon, **options)
        for p in (p for group in self.groups if group["use_muon"] for p in group["params"]):
            if p.ndim != 2:
                raise ValueError(f"Muon: needs matrices, got shape {p.shape}; put it in a group with use_muon=False")

    def update(self, value: Tensor, grad: Tensor, state: dict[str, Any], options: dict[str, Any]) -> Tensor:
        """One step, by Muon or by AdamW."""
        lr: Tensor = options["lr"]  # 0-d
        decayed: Tensor = value * (1 - lr * options["weight_decay"])
        if options["use_muon"]:
            momentum = options["momentum"]
            mean = momentum * (state["mean"] if state else zeros_like(value)) + (1 - momentum) * grad
            state["mean"] = mean
            direction = momentum * mean + (1 - momentum) * grad  # Nesterov's
            return decayed - lr * (0.2 * math.sqrt(max(value.shape))) * orthogonalize(direction)
        if not state:
            state.update(m=zeros_like(value), v=zeros_like(value), m_weight=zeros_like(lr), v_weight=zeros_like(lr))
        for name, beta, x in zip("mv", options["betas"], (grad, grad * grad), strict=True):
            state[name] = beta * state[name] + (1 - beta) * x
            state[f"{name}_weight"] = beta * state[f"{name}_weight"] + (1 - beta)  # 1 - beta^t, without cancellation
        m: Tensor = state["m"] / state["m_weight"]
        v: Tensor = state["v"] / state["v_weight"]
        adam: Tensor = m / (v.sqrt() + options["eps"])
        return decayed - lr * adam


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
