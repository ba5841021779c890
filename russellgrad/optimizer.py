"""Optimizers (SGD, Adam, AdamW), gradient clipping, and learning-rate schedules."""

import math
from collections.abc import Mapping
from typing import Any

from .backend import Array
from .base_optimizer import Optimizer, Params
from .clip_grad import clip_grad_norm
from .optimizer_update import write_back
from .param_group import supports_flat
from .replay import host_scalars
from .schedules import Schedule, constant, cosine, cosine_with_warmup, exponential

__all__ = [
    "AdamOptimizer",
    "AdamWOptimizer",
    "Optimizer",
    "SGDOptimizer",
    "Schedule",
    "clip_grad_norm",
    "constant",
    "cosine",
    "cosine_with_warmup",
    "exponential",
    "supports_flat",
]


class SGDOptimizer(Optimizer):
    """Stochastic gradient descent: v = momentum * v + g + weight_decay * p; p -= lr * v.

    Sutskever et al., "On the importance of initialization and momentum", ICML 2013, in PyTorch's form.

        optimizer = SGDOptimizer(model.parameters(), lr=1e-2, momentum=0.9)

    Args:
        momentum: the factor of the previous velocity; 0 keeps no velocity.
        nesterov: use g + momentum * v as the update direction. Needs a momentum.
        weight_decay: the factor of an L2 penalty, added to the gradient.

    The other arguments and the errors are those of `Optimizer`; also ValueError for nesterov without momentum.
    """

    elementwise = True

    def __init__(
        self,
        params: Params,
        lr: float | Schedule,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        flat: bool = False,
    ) -> None:
        super().__init__(params, lr, flat=flat, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)

    def _check_options(self, group: dict[str, Any]) -> dict[str, Any]:
        super()._check_options(group)
        if group["nesterov"] and not group["momentum"]:
            raise ValueError(f"{type(self).__name__}: nesterov needs a momentum")
        return group

    def _state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("velocity",) if group["momentum"] else ()

    def _update(
        self, p: Array, g: Array, clip: Array | None, half: Array | None, state: dict[str, Any], options: dict[str, Any]
    ) -> tuple[Array, Array | None]:
        xp = self.params[0].backend
        if options["momentum"] and "velocity" not in state:
            state["velocity"] = xp.zeros(p.shape, xp.dtype(p))
        rates = host_scalars(xp, lambda: (self._lr,), xp.dtype(p))
        velocity = state.get("velocity")
        new, new_velocity = xp.sgd_step(
            p, g, velocity, rates, clip, options["momentum"], options["nesterov"], options["weight_decay"]
        )
        if velocity is not None:
            state["velocity"] = write_back(xp, velocity, new_velocity)
        return write_back(xp, p, new), None if half is None else write_back(xp, half, xp.astype(new, xp.dtype(half)))


class AdamOptimizer(Optimizer):
    """Adam (Kingma & Ba, arXiv:1412.6980, algorithm 1).

        optimizer = AdamOptimizer(model.parameters(), lr=1e-3, betas=(0.9, 0.95))

    Args:
        betas: the decay rates of the running means of the gradient and of its square.
        eps: added to the denominator for numerical stability.
        weight_decay: the factor of an L2 penalty, added to the gradient.

    The other arguments and the errors are those of `Optimizer`; also ValueError for betas outside [0, 1).
    """

    elementwise = True
    decoupled = False

    def __init__(
        self,
        params: Params,
        lr: float | Schedule = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        flat: bool = False,
    ) -> None:
        super().__init__(params, lr, flat=flat, betas=betas, eps=eps, weight_decay=weight_decay)

    def _state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return "m", "v", "step"

    def _update(
        self, p: Array, g: Array, clip: Array | None, half: Array | None, state: dict[str, Any], options: dict[str, Any]
    ) -> tuple[Array, Array | None]:
        xp = self.params[0].backend
        if "m" not in state:
            state.update(m=xp.zeros(p.shape, xp.dtype(p)), v=xp.zeros(p.shape, xp.dtype(p)), step=0)
        beta1, beta2 = options["betas"]

        def rates() -> tuple[float, float, float]:
            state["step"] += 1
            rate = self._lr / (1 - beta1 ** state["step"])
            return rate, math.sqrt(1 - beta2 ** state["step"]), self._lr * options["weight_decay"]

        given = p, state["m"], state["v"], half
        new = xp.adam_step(
            p, g, state["m"], state["v"], host_scalars(xp, rates, xp.dtype(p)), clip, beta1, beta2, options["eps"],
            options["weight_decay"], self.decoupled, half,
        )  # fmt: skip
        p, state["m"], state["v"], half = (write_back(xp, old, array) for old, array in zip(given, new, strict=True))
        return p, half


class AdamWOptimizer(AdamOptimizer):
    """Adam with decoupled weight decay: p *= 1 - lr * weight_decay before each update.

    Loshchilov & Hutter, arXiv:1711.05101, algorithm 2. Arguments and errors are those of `AdamOptimizer`.
    """

    decoupled = True

    def __init__(
        self,
        params: Params,
        lr: float | Schedule = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        flat: bool = False,
    ) -> None:
        super().__init__(params, lr, betas=betas, eps=eps, weight_decay=weight_decay, flat=flat)
