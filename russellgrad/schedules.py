"""Learning-rate schedules: functions from the number of steps taken so far (0 for the first step) to a rate."""

import math
from collections.abc import Callable
from numbers import Real
from typing import Any, TypeAlias

Schedule: TypeAlias = Callable[[int], float]


def to_float(value: Any, what: str, *, below: float = math.inf) -> float:
    """Convert a number in [0, below) to a float: a Python number, a NumPy scalar or a 0-d array.

    Args:
        value: the number.
        what: its name for error messages, such as "AdamOptimizer: eps".
        below: the number must be less than this.

    Raises:
        TypeError: the value is no real number: None, a bool, a string, a Tensor, an array with axes.
        ValueError: it is negative, nan, infinite, or not below the bound.
    """
    number = real(value, what)
    if not 0 <= number < below:
        wanted = f"be in [0, {below})" if below < math.inf else "not be negative" if number < 0 else "be finite"
        raise ValueError(f"{what} must {wanted}, got {value}")
    return number


def real(value: Any, what: str) -> float:
    """Convert a real number to a float, as `to_float` does, but of any sign or size, or nan."""
    if type(value) is float:  # in every step of an optimizer
        return value
    number, shape = value, getattr(value, "shape", None)
    # A Tensor or a masked array has an item() too, but would lose its graph or its mask.
    is_tensor = hasattr(value, "backend") or getattr(value, "requires_grad", False)
    if shape == () and not is_tensor and not hasattr(value, "mask"):
        number = value.item()
    if isinstance(number, bool) or not isinstance(number, Real):
        is_plain = value is None or isinstance(value, (bool, str, complex))
        got = repr(value) if is_plain else f"a {type(value).__name__}"
        raise TypeError(
            f"{what} must be a number, got {got}"
            + (f" of shape {tuple(shape)}" if shape else "")
            + ("; pass its .item()" if shape == () and is_tensor else "")
        )
    try:
        return float(number)
    except OverflowError:  # an int of more than 308 digits
        return math.inf if value > 0 else -math.inf


def constant(lr: float) -> Schedule:
    """A constant learning rate: lr(t) = lr. Raises as `to_float`."""
    rate = to_float(lr, "constant: lr")
    return lambda step: rate


def exponential(lr: float, gamma: float) -> Schedule:
    """Exponential decay: lr(t) = lr * gamma^t. Raises as `to_float`, for both arguments."""
    rate, factor = to_float(lr, "exponential: lr"), to_float(gamma, "exponential: gamma")
    return lambda step: rate * factor**step


def cosine(lr: float, total_steps: int, min_lr: float = 0.0) -> Schedule:
    """Cosine annealing: lr(t) = min_lr + (lr - min_lr) (1 + cos(pi t / total_steps)) / 2, then min_lr.

    Loshchilov & Hutter, "SGDR", arXiv:1608.03983, equation 5, without restarts. Raises ValueError unless
    total_steps > 0; also as `to_float`.
    """
    return cosine_with_warmup(lr, 0, total_steps, min_lr)


def cosine_with_warmup(lr: float, warmup_steps: int, total_steps: int, min_lr: float = 0.0) -> Schedule:
    """Linear warm-up to lr, then cosine annealing to min_lr at step total_steps, then min_lr.

    lr(t) = lr (t + 1) / (warmup_steps + 1) for t < warmup_steps. After that, it is `cosine` with t and total_steps
    counted from the end of the warm-up. Raises ValueError unless 0 <= warmup_steps < total_steps; also as `to_float`.

        optimizer = AdamOptimizer(params, lr=cosine_with_warmup(1e-3, warmup_steps=100, total_steps=5000))
    """
    first, last = to_float(lr, "cosine: lr"), to_float(min_lr, "cosine: min_lr")
    warmup, total = to_float(warmup_steps, "cosine: warmup_steps"), to_float(total_steps, "cosine: total_steps")
    if not warmup < total:
        raise ValueError(f"schedule: needs 0 <= warmup_steps < total_steps, got {warmup_steps} and {total_steps}")

    def schedule(step: int) -> float:
        if step < warmup:
            return first * (step + 1) / (warmup + 1)
        progress = min((step - warmup) / (total - warmup), 1.0)
        return last + 0.5 * (first - last) * (1.0 + math.cos(math.pi * progress))

    return schedule
