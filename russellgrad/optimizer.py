"""Optimizers: a step changes each parameter in place, given its gradient. And clipping, and the schedules."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

from .backend import Array, Backend
from .dtype import common_float
from .param_group import (
    FlatGroup,
    Param,
    Versions,
    flat_groups,
    refuse_while_recording,
    same_versions,
    supports_flat,
    versions,
)
from .replay import host_scalars, on_host, on_replay
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
    "supports_flat",
]

Params: TypeAlias = Iterable[Tensor] | Sequence[Mapping[str, Any]]


class Optimizer:
    """What the optimizers share: groups of parameters, and the learning rate.

    Of parameters in half precision it keeps a copy in float32 ("master"), to which the steps are added: most would be
    lost in a rounding otherwise (Micikevicius et al., "Mixed precision training", arXiv:1710.03740, section 3.1).

    Args:
        params: parameters; or groups, each a dict with its "params" and options that differ from the optimizer's own:
            [{"params": matrices}, {"params": rest, "weight_decay": 0.0}].
        lr: the learning rate: a number, or a schedule, called with the number of steps taken so far.
        flat: keep all parameters in one array and all gradients in another (`flat_grad`), of which each Tensor's
            `.data` is a part, and each `.grad` once `gather_grads` or `step` has collected it. A step is then one pass
            over each group. Every parameter must have a gradient at every step. What shared memory with a `.data`
            before, such as a `detach()`, no longer does. `supports_flat` says whether a backend allows it.
        options: the optimizer's own, for groups that do not set them.

    Raises:
        ValueError: no parameters, one that comes twice, an unknown or negative option, a negative lr; flat and
            parameters of several dtypes or backends, or a backend that cannot write in place.
        TypeError: something that is not a Tensor, or a Tensor made by an operation.
    """

    def __init__(self, params: Params, lr: float | Schedule, *, flat: bool = False, **options: Any) -> None:
        name = type(self).__name__
        given: list[Any] = list(params)
        groups: list[Mapping[str, Any]] = given if given and isinstance(given[0], Mapping) else [{"params": given}]
        self.groups: list[dict[str, Any]] = []
        for group in groups:
            if unknown := set(group) - set(options) - {"params"}:
                raise ValueError(f"{name}: unknown option {', '.join(sorted(unknown))}; known: {', '.join(options)}")
            self.groups.append({**options, **group, "params": list(group["params"])})
        self.params: list[Tensor] = [p for group in self.groups for p in group["params"]]
        self._check_params()
        for key, value in [("lr", lr), *((key, g[key]) for g in self.groups for key in options)]:
            if isinstance(value, (int, float)) and value < 0:
                raise ValueError(f"{name}: {key} must not be negative, got {value}")
        self.lr_schedule: Schedule = lr if callable(lr) else constant(lr)
        self.steps_taken = 0
        self.flat_grad: Array | None = None
        self._units: Sequence[Param | FlatGroup]
        if flat:
            self._units, self.flat_grad = flat_groups(self.groups, name)
        else:
            self._units = [Param(p, group) for group in self.groups for p in group["params"]]
        # By the parameter's place in `params`; if flat, by the group's among those that have parameters.
        self.state: dict[int, dict[str, Any]] = {}
        self._rate = 0.0  # the learning rate of the step at hand
        self._seen: dict[int, Versions] = {}  # the versions of parameters that their copies in float32 are of

    def _check_params(self) -> None:
        name = type(self).__name__
        if not self.params:
            raise ValueError(f"{name}: no parameters; pass model.parameters()")
        for p in self.params:
            if not isinstance(p, Tensor) or not p.is_leaf:
                raise TypeError(f"{name}: can only change leaf Tensors, got {type(p).__name__} made by an operation")
        if len({id(p) for p in self.params}) < len(self.params):
            raise ValueError(f"{name}: a parameter comes twice, so a step would change it twice")

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__}: an optimizer is not copied; build one on the copied model's parameters"
        )

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

    def gather_grads(self) -> Array | None:
        """Copy every parameter's gradient into the flat gradient array, and return it; None unless flat.

        `step` does this by itself. Call it before `step` to change all gradients at once, as an all-reduce does.
        Raises RuntimeError while a step is recorded if a parameter was given a new array.
        """
        for unit in self._units:
            unit.gather()
        return self.flat_grad

    def step(self, max_norm: float | None = None) -> Tensor | None:
        """Change every parameter that has a gradient, in place.

        Args:
            max_norm: scale the gradients for this step so that their common Euclidean norm is at most this, by
                min(1, max_norm / (norm + 1e-6)), PyTorch's form; the arrays in `.grad` stay as they are.

        Returns:
            That norm before scaling, a 0-d Tensor; None without max_norm. Nothing waits for the device.

        Raises:
            ValueError: a gradient of another shape than its parameter; none at all, and a max_norm; none of some
                parameter, and flat; a max_norm that is not positive.
        """
        self._check_grads()
        self.gather_grads()
        arrays = [p.data for p in self.params]
        on_replay(lambda: self._check_unchanged(arrays))
        on_host(self._choose_rate)
        norm = clip = None
        xp = self.params[0].backend
        if max_norm is not None:
            grads = [self.flat_grad] if self.flat_grad is not None else _grads("step", self.params)
            norm, clip = _clip_scale("step", xp, grads, max_norm)
        for place, unit in enumerate(self._units):
            if unit.grad is not None:
                state = self.state.setdefault(place, {})
                low = unit.value if xp.dtype(unit.value).itemsize < 4 else None
                value = unit.value if low is None else self._master(place, unit, state)
                dtype = xp.dtype(value)
                scale = clip if clip is None or xp.dtype(clip) == dtype else xp.astype(clip, dtype)
                new, new_low = self._update(value, unit.grad, scale, low, state, unit.options)
                if low is not None:
                    state["master"] = new
                unit.value = new if low is None else new_low
        on_host(self._count)
        return None if norm is None else Tensor._wrap(norm, xp)

    def state_dict(self) -> dict[str, Any]:
        """What the next steps depend on, but for the parameters, the learning rate and the options.

        Returns:
            {"kind": the class's name, "steps_taken": int, "state": [{name: number, or NumPy array of the parameter's
            shape}, ...]}, a dict for each of `params`, in their order. It is the same whether flat or not, on every
            backend.
        """
        state: list[dict[str, Any]] = []
        for place, unit in enumerate(self._units):
            own: list[dict[str, Any]] = [{} for _ in unit.params]
            for name, value in self.state.get(place, {}).items():
                if name == "master" and not same_versions(self._seen.get(place), versions(unit)):
                    continue  # out of date: the next step makes it anew
                xp = unit.params[0].backend
                values = map(xp.to_host, unit.split(value)) if xp.is_array(value) else [value] * len(own)
                for each, part in zip(own, values, strict=True):
                    each[name] = part
            state += own
        return {"kind": type(self).__name__, "steps_taken": self.steps_taken, "state": state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave: on parameters that were loaded before, and with the same options.

        Raises:
            ValueError: it is of other parameters, or of another optimizer or dtype; says where. Nothing is changed.
        """
        given: list[Mapping[str, Any]] = list(state["state"])
        if state["kind"] != type(self).__name__:
            raise ValueError(f"{type(self).__name__}: the state is of a {state['kind']}; load it into one of these")
        if len(given) != len(self.params):
            raise ValueError(
                f"{type(self).__name__}: the state is of {len(given)} parameters, this has {len(self.params)}"
            )
        kept = [self._kept(group) for group in self.groups for _ in group["params"]]
        for place, (p, own) in enumerate(zip(self.params, given, strict=True)):
            self._check_state(f"parameter {place}", p, own, kept[place])
        rest = iter(given)
        for unit in self._units:
            numbers = [{k: v for k, v in next(rest).items() if not hasattr(v, "shape")} for _ in unit.params]
            if any(own != numbers[0] for own in numbers):
                raise ValueError(f"{type(self).__name__}: flat=True needs one state for all, got {numbers}")
        for place, unit in enumerate(self._units):
            unit.gather()
            self._load(unit, self.state.setdefault(place, {}), given[: len(unit.params)])
            given = given[len(unit.params) :]
        self.steps_taken = int(state["steps_taken"])
        self._seen = {place: versions(unit) for place, unit in enumerate(self._units)}

    def _kept(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of what a step keeps of this group's parameters for the next."""
        return ()

    def _check_state(self, what: str, p: Tensor, own: Mapping[str, Any], kept: tuple[str, ...]) -> None:
        name, low = type(self).__name__, p.dtype.itemsize < 4
        dtype = "float32" if low else str(p.dtype)
        known = {*kept, "master"} if low else set(kept)
        if own and not set(kept) <= set(own) <= known:
            raise ValueError(
                f"{name}: the state of {what} has {', '.join(sorted(own))}, but this optimizer keeps "
                f"{', '.join(sorted(known)) or 'none'}; give this one the options that the state was made with"
            )
        for key, value in own.items():
            if hasattr(value, "shape") and (value.shape != p.shape or str(value.dtype) != dtype):
                raise ValueError(
                    f"{name}: {key} of {what} is {value.dtype} {tuple(value.shape)}, expected {dtype} {p.shape}"
                )

    def _load(self, unit: Param | FlatGroup, state: dict[str, Any], given: Sequence[Mapping[str, Any]]) -> None:
        """In place where there is an array already: a recorded step may use it."""
        xp, first = unit.params[0].backend, given[0]
        for name in [name for name in state if name not in first]:
            del state[name]
        for name, value in first.items():
            if not hasattr(value, "shape"):  # a number
                state[name] = value
                continue
            if not hasattr(xp, "assign"):
                state[name] = xp.copy(xp.asarray(value))
                continue
            if name not in state:
                state[name] = xp.zeros(unit.value.shape, value.dtype)
            for part, own in zip(unit.split(state[name]), given, strict=True):
                xp.assign(part, xp.asarray(own[name]))

    def _check_grads(self) -> None:
        name = type(self).__name__
        for place, p in enumerate(self.params):
            if p.grad is None and self.flat_grad is not None:
                raise ValueError(
                    f"{name}: parameter {place} of shape {p.shape} has no gradient, but flat=True needs one of each; "
                    "call backward() first, or leave the parameter out"
                )
            if p.grad is not None and p.grad.shape != p.shape:
                raise ValueError(
                    f"{name}: parameter {place} has shape {p.shape}, its gradient {p.grad.shape}; they must agree"
                )

    def _master(self, place: int, unit: Param | FlatGroup, state: dict[str, Any]) -> Array:
        """The float32 copy, made again if a parameter was changed by anything but a step."""
        xp = unit.params[0].backend
        if not same_versions(self._seen.get(place), versions(unit)):
            refuse_while_recording("a parameter in half precision was changed")
            if "master" in state and hasattr(xp, "assign"):  # in place: a recorded step may use it
                xp.assign(state["master"], unit.value)
            else:
                state["master"] = xp.astype(unit.value, "float32")
        return state["master"]

    def _check_unchanged(self, arrays: list[Array]) -> None:
        """Before a replay: it goes on changing the arrays that it was recorded with, and float32 copies as they are."""
        name = type(self).__name__
        for p, array in zip(self.params, arrays, strict=True):
            if p.data is not array:
                raise RuntimeError(
                    f"{name}: a parameter of shape {p.shape} was given a new array after the step was recorded; "
                    "call compile_step again"
                )
        for place, unit in enumerate(self._units):
            if "master" in self.state.get(place, {}) and not same_versions(self._seen[place], versions(unit)):
                raise RuntimeError(
                    f"{name}: a parameter in half precision was changed after the step was recorded, and its float32 "
                    "copy was not; take a step as it is, and call compile_step again"
                )

    def _choose_rate(self) -> None:
        self._rate = self.lr

    def _count(self) -> None:
        for p in self.params:
            if p.grad is not None:
                p.changed_in_place()
        self._seen = {place: versions(unit) for place, unit in enumerate(self._units)}
        self.steps_taken += 1

    def _update(
        self, p: Array, g: Array, clip: Array | None, low: Array | None, state: dict[str, Any], options: dict[str, Any]
    ) -> tuple[Array, Array | None]:
        """Take a step along g times clip. Returns p and `low`, of which p is the float32 copy, as `_stored` does."""
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
        flat: bool = False,
    ) -> None:
        if nesterov and not momentum:
            raise ValueError("SGDOptimizer: nesterov needs a momentum")
        super().__init__(params, lr, flat=flat, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)

    def _kept(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("velocity",) if group["momentum"] else ()

    def _update(
        self, p: Array, g: Array, clip: Array | None, low: Array | None, state: dict[str, Any], options: dict[str, Any]
    ) -> tuple[Array, Array | None]:
        xp = self.params[0].backend
        if options["momentum"] and "velocity" not in state:
            state["velocity"] = xp.zeros(p.shape, xp.dtype(p))
        rates = host_scalars(xp, lambda: (self._rate,), xp.dtype(p))
        velocity = state.get("velocity")
        new, new_velocity = xp.sgd_step(
            p, g, velocity, rates, clip, options["momentum"], options["nesterov"], options["weight_decay"]
        )
        if velocity is not None:
            state["velocity"] = _stored(xp, velocity, new_velocity)
        return _stored(xp, p, new), None if low is None else _stored(xp, low, xp.astype(new, xp.dtype(low)))


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
        flat: bool = False,
    ) -> None:
        super().__init__(params, lr, flat=flat, betas=betas, eps=eps, weight_decay=weight_decay)
        for group in self.groups:
            if not all(0 <= beta < 1 for beta in group["betas"]):
                raise ValueError(f"{type(self).__name__}: betas must be in [0, 1), got {group['betas']}")

    def _kept(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return "m", "v", "step"

    def _update(
        self, p: Array, g: Array, clip: Array | None, low: Array | None, state: dict[str, Any], options: dict[str, Any]
    ) -> tuple[Array, Array | None]:
        xp = self.params[0].backend
        if "m" not in state:
            state.update(m=xp.zeros(p.shape, xp.dtype(p)), v=xp.zeros(p.shape, xp.dtype(p)), step=0)
        beta1, beta2 = options["betas"]

        def rates() -> tuple[float, float, float]:
            state["step"] += 1
            rate = self._rate / (1 - beta1 ** state["step"])
            return rate, math.sqrt(1 - beta2 ** state["step"]), self._rate * options["weight_decay"]

        given = p, state["m"], state["v"], low
        new = xp.adam_step(
            p, g, state["m"], state["v"], host_scalars(xp, rates, xp.dtype(p)), clip, beta1, beta2, options["eps"],
            options["weight_decay"], self.decoupled, low,
        )  # fmt: skip
        p, state["m"], state["v"], low = (_stored(xp, old, array) for old, array in zip(given, new, strict=True))
        return p, low


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
        flat: bool = False,
    ) -> None:
        super().__init__(params, lr, betas=betas, eps=eps, weight_decay=weight_decay, flat=flat)


def _stored(xp: Backend, old: Array, new: Array) -> Array:
    """`old` with the numbers of `new`, if the backend can write in place, as a recorded step needs; else `new`."""
    if new is None or new is old:
        return new
    if not hasattr(xp, "assign"):
        return xp.asarray(new)
    xp.assign(old, new)
    return old


def clip_grad_norm(params: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients so that their common Euclidean norm is at most `max_norm`.

    Scales by min(1, max_norm / (norm + 1e-6)), PyTorch's form. Returns the norm before that, a 0-d Tensor; nothing
    waits for the device. Raises ValueError if no parameter has a gradient or max_norm is not positive.
    """
    with_grad = [p for p in params if p.grad is not None]
    grads = _grads("clip_grad_norm", with_grad)
    xp = with_grad[0].backend
    norm, scale = _clip_scale("clip_grad_norm", xp, grads, max_norm)
    for p in with_grad:
        p.grad = xp.multiply(p.grad, xp.astype(scale, p.dtype))
    return Tensor._wrap(norm, xp)


def _grads(op: str, params: list[Tensor]) -> list[Array]:
    grads = [p.grad for p in params if p.grad is not None]
    if not grads:
        raise ValueError(f"{op}: no parameter has a gradient; call backward() first")
    return grads


def _clip_scale(op: str, xp: Backend, grads: list[Array], max_norm: float) -> tuple[Array, Array]:
    if not max_norm > 0:
        raise ValueError(f"{op}: max_norm is {max_norm}; it must be positive")
    dtype = common_float(xp, grads)
    return xp.clip_scale([g if xp.dtype(g) == dtype else xp.astype(g, dtype) for g in grads], max_norm)
