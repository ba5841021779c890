"""The optimizer Lion.

"Evolved sign momentum", Chen et al., arXiv:2302.06675, algorithm 2. It keeps one array for each parameter, AdamW two.
Its steps are larger than AdamW's, so the paper (section 5) advises a learning rate 3 to 10 times smaller, and a weight
decay larger by the same factor, because the decay in a step is their product. examples/lion.py compares the two.
"""

from typing import Any

from russellgrad import Tensor, zeros_like
from russellgrad.optimizer import Optimizer, Schedule


class Lion(Optimizer):
    """Lion. The first beta interpolates between the mean and the gradient, the second is the mean's decay rate."""

    elementwise = True  # with flat=True, one call updates a whole group

    def __init__(
        self,
        params: Any,
        lr: float | Schedule = 3e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        flat: bool = False,
    ) -> None:
        super().__init__(params, lr, flat=flat, betas=betas, weight_decay=weight_decay)

    def update(self, value: Tensor, grad: Tensor, state: dict[str, Any], options: dict[str, Any]) -> Tensor:
        """One step: value -= lr * (sign(beta1 * mean + (1 - beta1) * grad) + weight_decay * value)."""
        lr: Tensor = options["lr"]  # 0-d
        decay: float = options["weight_decay"]
        beta1, beta2 = options["betas"]
        mean = state["mean"] if state else zeros_like(value)
        direction: Tensor = (beta1 * mean + (1 - beta1) * grad).sign()
        state["mean"] = beta2 * mean + (1 - beta2) * grad
        return value - lr * (direction + decay * value)
