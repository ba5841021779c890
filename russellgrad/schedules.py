"""Learning-rate schedules: functions from the number of steps taken so far (0 for the first step) to a rate."""

import math
from collections.abc import Callable
from typing import TypeAlias

Schedule: TypeAlias = Callable[[int], float]


def constant(lr: float) -> Schedule:
    """A constant learning rate: lr(t) = lr."""
    return lambda step: lr


def exponential(lr: float, gamma: float) -> Schedule:
    """Exponential decay: lr(t) = lr * gamma^t."""
    return lambda step: lr * gamma**step


def cosine(lr: float, total_steps: int, min_lr: float = 0.0) -> Schedule:
    """Cosine annealing: lr(t) = min_lr + (lr - min_lr) (1 + cos(pi t / total_steps)) / 2, then min_lr.

    Loshchilov & Hutter, "SGDR", arXiv:1608.03983, equation 5, without restarts. Raises ValueError unless
    total_steps > 0.
    """
    return cosine_with_warmup(lr, 0, total_steps, min_lr)


def cosine_with_warmup(lr: float, warmup_steps: int, total_steps: int, min_lr: float = 0.0) -> Schedule:
    """Linear warm-up to lr, then cosine annealing to min_lr at step total_steps, then min_lr.

    lr(t) = lr (t + 1) / (warmup_steps + 1) for t < warmup_steps. After that, it is `cosine` with t and total_steps
    counted from the end of the warm-up. Raises ValueError unless 0 <= warmup_steps < total_steps.

        optimizer = AdamOptimizer(params, lr=cosine_with_warmup(1e-3, warmup_steps=100, total_steps=5000))
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"schedule: needs 0 <= warmup_steps < total_steps, got {warmup_steps} and {total_steps}")

    def schedule(step: int) -> float:
        if step < warmup_steps:
            return lr * (step + 1) / (warmup_steps + 1)
        progress = min((step - warmup_steps) / (total_steps - warmup_steps), 1.0)
        return min_lr + 0.5 * (lr - min_lr) * (1.0 + math.cos(math.pi * progress))

    return schedule
