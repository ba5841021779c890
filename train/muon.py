"""The optimizer Muon.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a matrix by the nearest
matrix with orthonormal rows or columns: U V^T for the singular value decomposition U S V^T. Five Newton-Schulz
iterations approximate it by matrix products. The scale 0.2 sqrt(max(rows, columns)) is that of Liu et al.,
arXiv:2502.16982, section 2.2: with it a step is as large as one of AdamW, so both have the same learning rate and
weight decay. Muon is for the matrices of hidden layers only; embeddings, output layers, gains and biases go to AdamW.
examples/muon.py compares it with SGD and AdamW.
"""

import math
from typing import Any

from russellgrad import Tensor, zeros_like
from russellgrad.optimizer import Optimizer, Schedule


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
