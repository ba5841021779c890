"""Learning-rate schedules: functions of the number of steps taken so far, 0 for the first step."""

import math
from collections.abc import Callable
from typing import TypeAlias

Schedule: TypeAlias = Callable[[int], float]


def constant(lr: float) -> Schedule:
    """lr(t) = lr."""
    return lambda step: lr


def exponential(lr: float, gamma: float) -> Schedule:
    """lr(t) = lr * gamma^t."""
    return lambda step: lr * gamma**step


def cosine(lr: float, total_steps: int, min_lr: float = 0.0) -> Schedule:
    """lr(t) = min_lr + (lr - min_lr) (1 + cos(pi t / total_steps)) / 2, and min_lr from total_steps on.

    Loshchilov & Hutter, "SGDR", arXiv:1608.03983, equation 5, without restarts.
    """
    return cosine_with_warmup(lr, 0, total_steps, min_lr)


def cosine_with_warmup(lr: float, warmup_steps: int, total_steps: int, min_lr: float = 0.0) -> Schedule:
    """Linear up to lr over the first steps, then a cosine down to min_lr at total_steps, and min_lr from there on.

    lr(t) = lr (t + 1) / (warmup_steps + 1) for t < warmup_steps, else as in `cosine`, with t and total_steps counted
    from the end of the warm-up. Raises ValueError unless 0 <= warmup_steps < total_steps.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"schedule: needs 0 <= warmup_steps < total_steps, got {warmup_steps} and {total_steps}")

    def schedule(step: int) -> float:
        if step < warmup_steps:
            return lr * (step + 1) / (warmup_steps + 1)
        progress = min((step - warmup_steps) / (total_steps - warmup_steps), 1.0)
        return min_lr + 0.5 * (lr - min_lr) * (1.0 + math.cos(math.pi * progress))

    return schedule
