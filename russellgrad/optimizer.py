"""Optimizers: a step changes each parameter in place, given its gradient. And clipping, and the schedules."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from .backend import Array
from .dtype import common_float
from .schedules import Schedule, constant, cosine, cosine_with_warmup, exponential
from .tensor import Tensor

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
]

Params: TypeAlias = Iterable[Tensor] | Sequence[Mapping[str, Any]]


class Optimizer:
    """What the optimizers share: groups of parameters, and the learning rate.

    Args:
        params: parameters; or groups, each a dict with its "params" and options that differ from the optimizer's own:
            [{"params": matrices}, {"params": rest, "weight_decay": 0.0}].
        lr: the learning rate: a number, or a schedule, called with the number of steps taken so far.
        options: the optimizer's own, for groups that do not set them.

    Raises:
        ValueError: no parameters, one that comes twice, an unknown or negative option, a negative lr.
        TypeError: something that is not a Tensor, or a Tensor made by an operation.
    """

    def __init__(self, params: Params, lr: float | Schedule, **options: Any) -> None:
        name = type(self).__name__
        given: list[Any] = list(params)
        groups: list[Mapping[str, Any]] = given if given and isinstance(given[0], Mapping) else [{"params": given}]
        self.groups: list[dict[str, Any]] = []
        for group in groups:
            if unknown := set(group) - set(options) - {"params"}:
                raise ValueError(f"{name}: unknown option {', '.join(sorted(unknown))}; known: {', '.join(options)}")
            self.groups.append({**options, **group, "params": list(group["params"])})
        self.params: list[Tensor] = [p for group in self.groups for p in group["params"]]
        if not self.params:
            raise ValueError(f"{name}: no parameters; pass model.parameters()")
        for p in self.params:
            if not isinstance(p, Tensor) or not p.is_leaf:
                raise TypeError(f"{name}: can only change leaf Tensors, got {type(p).__name__} made by an operation")
        if len({id(p) for p in self.params}) < len(self.params):
            raise ValueError(f"{name}: a parameter comes twice, so a step would change it twice")
        for key, value in [("lr", lr), *((key, g[key]) for g in self.groups for key in options)]:
            if isinstance(value, (int, float)) and value < 0:
                raise ValueError(f"{name}: {key} must not be negative, got {value}")
        self.lr_schedule: Schedule = lr if callable(lr) else constant(lr)
        self.steps_taken = 0
        self.state: dict[int, dict[str, Any]] = {}  # by the parameter's place in `params`

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.lr_schedule(self.steps_taken)

    @lr.setter
    def lr(self, value: float) -> None:
        self.lr_schedule = constant(value)

    def zero_grad(self) -> None:
        """Forget every parameter's gradient."""
        for p in self.params:
            p.zero_grad()

    def step(self) -> None:
        """Change every parameter that has a gradient, in place."""
        lr, place = self.lr, 0
        for group in self.groups:
            for p in group["params"]:
                if p.grad is not None:
                    if p.grad.shape != p.shape:
                        raise ValueError(
                            f"{type(self).__name__}: parameter {place} has shape {p.shape}, "
                            f"its gradient {p.grad.shape}; they must agree"
                        )
                    self._update(p, p.grad, self.state.setdefault(place, {}), lr, group)
                    p.changed_in_place()
                place += 1
        self.steps_taken += 1

    def _update(self, p: Tensor, g: Array, state: dict[str, Any], lr: float, options: dict[str, Any]) -> None:
        raise NotImplementedError


class SGDOptimizer(Optimizer):
    """p -= lr * v, with v = momentum * v + g + weight_decay * p (Sutskever et al., ICML 2013, in PyTorch's form).

    Options: momentum, nesterov (step along g + momentum * v instead), weight_decay. Raises as `Optimizer`.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Schedule,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        if nesterov and not momentum:
            raise ValueError("SGDOptimizer: nesterov needs a momentum")
        super().__init__(params, lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)

    def _update(self, p: Tensor, g: Array, state: dict[str, Any], lr: float, options: dict[str, Any]) -> None:
        xp = p.backend
        if options["momentum"] and not state:
            state["velocity"] = xp.zeros(p.shape, p.dtype)
        xp.sgd_step(
            p.data, g, state.get("velocity"), lr, options["momentum"], options["nesterov"], options["weight_decay"]
        )


class AdamOptimizer(Optimizer):
    """Kingma & Ba, "Adam", arXiv:1412.6980, algorithm 1; weight decay, if any, is added to the gradient.

    Options: betas (of the two running means), eps, weight_decay. Raises as `Optimizer`, and ValueError for betas
    outside [0, 1).
    """

    decoupled = False

    def __init__(
        self,
        params: Params,
        lr: float | Schedule = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, betas=betas, eps=eps, weight_decay=weight_decay)
        for group in self.groups:
            if not all(0 <= beta < 1 for beta in group["betas"]):
                raise ValueError(f"{type(self).__name__}: betas must be in [0, 1), got {group['betas']}")

    def _update(self, p: Tensor, g: Array, state: dict[str, Any], lr: float, options: dict[str, Any]) -> None:
        xp = p.backend
        if not state:
            state.update(m=xp.zeros(p.shape, p.dtype), v=xp.zeros(p.shape, p.dtype), step=0)
        state["step"] += 1
        beta1, beta2 = options["betas"]
        xp.adam_step(
            p.data, g, state["m"], state["v"], state["step"], lr, beta1, beta2, options["eps"],
            options["weight_decay"], self.decoupled,
        )  # fmt: skip


class AdamWOptimizer(AdamOptimizer):
    """Adam with weight decay that shrinks the parameter itself (Loshchilov & Hutter, arXiv:1711.05101, algorithm 2)."""

    decoupled = True

    def __init__(
        self,
        params: Params,
        lr: float | Schedule = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, lr, betas=betas, eps=eps, weight_decay=weight_decay)


def clip_grad_norm(params: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients so that their common Euclidean norm is at most `max_norm`.

    Scales by min(1, max_norm / (norm + 1e-6)), PyTorch's form. Returns the norm before that, a 0-d Tensor; nothing
    waits for the device. Raises ValueError if no parameter has a gradient or max_norm is not positive.
    """
    with_grad = [p for p in params if p.grad is not None]
    if not with_grad or not max_norm > 0:
        what = "no parameter has a gradient; call backward() first" if not with_grad else f"max_norm is {max_norm}"
        raise ValueError(f"clip_grad_norm: {what}")
    xp = with_grad[0].backend
    dtype = common_float([p.grad for p in with_grad])
    squares = xp.full((), 0, dtype)
    for p in with_grad:
        square = xp.sum(xp.multiply(p.grad, p.grad))
        squares = xp.add(squares, square if p.dtype == dtype else xp.astype(square, dtype))
    norm = xp.sqrt(squares)
    scale = xp.minimum(xp.divide(max_norm, xp.add(norm, 1e-6)), 1)
    for p in with_grad:
        p.grad = xp.multiply(p.grad, xp.astype(scale, p.dtype))
    return Tensor(xp.asarray(norm), requires_grad=False, backend=xp)
