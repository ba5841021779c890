"""Optimizers (SGD, Adam, AdamW), gradient clipping, and learning-rate schedules."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from .replay import host_scalars, restore_on_failure, run_before_replay, run_in_every_step
from .schedules import Schedule, constant, cosine, cosine_with_warmup, exponential, real, to_float
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
    """Base class of the optimizers: parameter groups, the learning rate, and the state of each parameter.

    For parameters in half precision the optimizer keeps a float32 copy ("master") and adds the updates to it. Most
    updates would be rounded away otherwise (Micikevicius et al., "Mixed precision training", arXiv:1710.03740,
    section 3.1).

        optimizer = AdamOptimizer(model.parameters(), lr=1e-3)
        optimizer.zero_grad(); loss.backward(); optimizer.step()

    Args:
        params: parameters, or parameter groups: dicts with a list "params" and options for that group only, as in
            [{"params": matrices}, {"params": rest, "weight_decay": 0.0}].
        lr: the learning rate: a number, or a schedule, which is called with the number of steps taken so far. Each
            rate must be a finite number that is not negative.
        flat: store all parameters in one array and all gradients in another (`flat_grad`), so that a step is one pass
            over each group. Each `.data` becomes a view of the flat array, and so does each `.grad` after
            `gather_grads` or `step`. Every parameter must have a gradient at every step. Tensors that shared memory
            with a `.data` before, such as a `detach()`, no longer do. `supports_flat` tells whether a backend can.
        options: the defaults of the optimizer's options, for groups that do not set them.

    Attributes:
        params: all parameters, in order.
        groups: the parameter groups, with all options.
        steps_taken: the number of steps taken so far.
        flat_grad: the flat array of all gradients; None unless flat.

    Raises:
        ValueError: no parameters, a parameter given twice, an unknown option, or an lr or option that is negative, nan
            or infinite. With flat: parameters of several dtypes or backends, or a backend that cannot write in place.
        TypeError: a parameter that is not a Tensor, or a Tensor that an operation returned; an lr or option that is not
            a number. A 0-d array is a number; bools, strings and Tensors are not accepted.
    """

    def __init__(self, params: Params, lr: float | Schedule, *, flat: bool = False, **options: Any) -> None:
        name = type(self).__name__
        given = _listed(name, params)
        groups = given if any(isinstance(p, Mapping) for p in given) else [{"params": given}]
        for group in groups:
            if not isinstance(group, Mapping):
                raise TypeError(
                    f"{name}: give parameters or groups, not both; got a {type(group).__name__} beside a group"
                )
            if "params" not in group:
                raise ValueError(f"{name}: a group lacks 'params'; it has {', '.join(map(str, group)) or 'no entries'}")
        self._known = tuple(options)
        self.groups: list[dict[str, Any]] = []
        for group in groups:
            self.groups.append(self._check_options({**options, **group, "params": _listed(name, group["params"])}))
        self.params: list[Tensor] = [p for group in self.groups for p in group["params"]]
        self._check_params()
        self.lr = lr
        self.steps_taken = 0
        self.flat_grad: Array | None = None
        self._units: Sequence[Param | FlatGroup]
        if _flag(flat, f"{name}: flat"):
            self._units, self.flat_grad = flat_groups(self.groups, name)
        else:
            self._units = [Param(p, group) for group in self.groups for p in group["params"]]
        # Keys: the parameter's index in `params`; if flat, the group's index among the groups that have parameters.
        self.state: dict[int, dict[str, Any]] = {}
        self._lr = 0.0  # the learning rate of the current step
        self._master_versions: dict[int, Versions] = {}  # the parameters' versions when the master copies were updated

    def _check_params(self) -> None:
        name = type(self).__name__
        if not self.params:
            raise ValueError(f"{name}: no parameters; pass model.parameters()")
        for p in self.params:
            if not isinstance(p, Tensor) or not p.is_leaf:
                got = "a Tensor returned by an operation" if isinstance(p, Tensor) else f"a {type(p).__name__}"
                raise TypeError(f"{name}: parameters must be leaf Tensors, got {got}")
        if len({id(p) for p in self.params}) < len(self.params):
            raise ValueError(f"{name}: a parameter is given twice; pass each parameter once")

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__}: an optimizer is not copied; build one on the copied model's parameters"
        )

    def _check_options(self, group: dict[str, Any]) -> dict[str, Any]:
        """Convert a group's options to Python numbers and bools, in place, and return the group."""
        name = type(self).__name__
        if unknown := set(group) - {*self._known, "params"}:
            given, known = ", ".join(sorted(map(str, unknown))), ", ".join(self._known)
            advice = "; lr is one for all groups, an argument of the optimizer" if "lr" in unknown else ""
            raise ValueError(f"{name}: unknown option {given}; known: {known}{advice}")
        group.update({key: _OPTIONS[key](group[key], f"{name}: {key}") for key in self._known if key in _OPTIONS})
        return group

    @property
    def lr(self) -> float:
        """The learning rate of the next step. Assign a number, which makes it constant, or a schedule.

        Raises ValueError or TypeError, as the constructor, for the number that is assigned and for the number that the
        schedule returns.
        """
        schedule, step = self.lr_schedule, self.steps_taken
        name = f"{type(self).__name__}: schedule {getattr(schedule, '__qualname__', repr(schedule))} at step {step}"
        try:
            rate = schedule(step)
        except Exception as error:
            error.add_note(f"in {name}")
            raise
        return to_float(rate, f"{name}: the learning rate")

    @lr.setter
    def lr(self, value: float | Schedule) -> None:
        name = type(self).__name__
        self.lr_schedule: Schedule = value if callable(value) else constant(to_float(value, f"{name}: lr"))

    def zero_grad(self) -> None:
        """Set every parameter's `.grad` to None."""
        for p in self.params:
            p.zero_grad()

    def gather_grads(self) -> Array | None:
        """Copy every parameter's gradient into the flat gradient array and return that array; None unless flat.

        `step` calls this itself. Call it before `step` to modify all gradients at once, as an all-reduce does.

        Raises:
            RuntimeError: a parameter was given a new array, and the step is being recorded.
        """
        for unit in self._units:
            unit.gather()
        return self.flat_grad

    def step(self, max_norm: float | None = None) -> Tensor | None:
        """Update every parameter that has a gradient.

        Args:
            max_norm: clip the gradients for this step: scale them by min(1, max_norm / (norm + 1e-6)), with norm their
                total Euclidean norm, as `torch.nn.utils.clip_grad_norm_` does. The arrays in `.grad` do not change.

        Returns:
            The norm before clipping, a 0-d Tensor; None without max_norm. The call does not wait for the device.

        Raises:
            ValueError: a gradient's shape differs from its parameter's; max_norm is not positive; with max_norm, no
                parameter has a gradient; with flat, some parameter has no gradient. Also, with TypeError, for an option
                that was changed, or a learning rate that the schedule returned, as in the constructor. Nothing is
                updated then.
        """
        self._check_grads()
        if max_norm is not None:
            max_norm = _checked_max_norm("step", max_norm)
        restore_on_failure(self, self._snapshot)
        run_in_every_step(self._start_step)
        self.gather_grads()
        arrays = [p.data for p in self.params]
        run_before_replay(lambda: self._check_unchanged(arrays))
        norm = clip = None
        xp = self.params[0].backend
        if max_norm is not None:
            grads = [self.flat_grad] if self.flat_grad is not None else _grads("step", self.params)
            norm, clip = _clip_scale(xp, grads, max_norm)
        for place, unit in enumerate(self._units):
            if unit.grad is not None:
                state = self.state.setdefault(place, {})
                half = unit.value if xp.dtype(unit.value).itemsize < 4 else None
                value = unit.value if half is None else self._master_copy(place, unit, state)
                dtype = xp.dtype(value)
                scale = clip if clip is None or xp.dtype(clip) == dtype else xp.astype(clip, dtype)
                new, new_half = self._update(value, unit.grad, scale, half, state, unit.options)
                if half is not None:
                    state["master"] = new
                unit.value = new if half is None else new_half
        run_in_every_step(self._finish_step)
        return None if norm is None else Tensor._wrap(norm, xp)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, for a checkpoint. It does not include the parameters, the learning rate and options.

        Returns:
            {"kind": class name, "steps_taken": int, "state": list with one dict for each parameter, in order}. Each
            dict maps names ("m", "v", ...) to numbers or to NumPy arrays of the parameter's shape. The format does not
            depend on flat or on the backend.
        """
        state: list[dict[str, Any]] = []
        for place, unit in enumerate(self._units):
            own: list[dict[str, Any]] = [{} for _ in unit.params]
            for name, value in self.state.get(place, {}).items():
                if name == "master" and not same_versions(self._master_versions.get(place), versions(unit)):
                    continue  # out of date: the next step copies the parameter again
                xp = unit.params[0].backend
                values = map(xp.to_host, unit.split(value)) if xp.is_array(value) else [value] * len(own)
                for each, part in zip(own, values, strict=True):
                    each[name] = part
            state += own
        return {"kind": type(self).__name__, "steps_taken": self.steps_taken, "state": state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state that `state_dict` returned.

        Load the parameters first, and build the optimizer with the options it had.

        Raises:
            ValueError: the state belongs to another optimizer class, or to parameters of other shapes or dtypes; names
                the parameter. Or it lacks an entry, or a number of steps is negative, nan or more than 2**53.
            TypeError: the state or a part of it is of another type, or a number of steps is no number. The optimizer
                does not change then.
        """
        optimizer = type(self).__name__
        if not isinstance(state, Mapping):
            raise TypeError(f"{optimizer}: the state must be a dict, as state_dict() returns, got {_type_of(state)}")
        if missing := {"kind", "steps_taken", "state"} - set(state):
            raise ValueError(f"{optimizer}: the state lacks {', '.join(sorted(missing))}; use a state_dict()")
        if state["kind"] != optimizer:
            raise ValueError(f"{optimizer}: the state is that of a {state['kind']}; load it into one")
        steps_taken = _count(state["steps_taken"], f"{optimizer}: steps_taken")
        if not isinstance(state["state"], (list, tuple)):
            got = _type_of(state["state"])
            raise TypeError(f"{optimizer}: 'state' must be a list with a dict for each parameter, got {got}")
        for place, own in enumerate(state["state"]):
            if not isinstance(own, Mapping) or not all(isinstance(key, str) for key in own):
                got = f"the keys {', '.join(map(repr, own))}" if isinstance(own, Mapping) else _type_of(own)
                raise TypeError(f"{optimizer}: the state of parameter {place} must be a dict with str keys, got {got}")
        given = [dict(own) for own in state["state"]]
        for place, own in enumerate(given):
            if "step" in own:
                own["step"] = _count(own["step"], f"{optimizer}: step of parameter {place}")
        if len(given) != len(self.params):
            raise ValueError(
                f"{optimizer}: the state has {len(given)} parameters, this optimizer has {len(self.params)}"
            )
        kept = [self._state_names(group) for group in self.groups for _ in group["params"]]
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
        self.steps_taken = steps_taken
        self._master_versions = {place: versions(unit) for place, unit in enumerate(self._units)}

    def _state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the entries in a parameter's state, for this group's options."""
        return ()

    def _check_state(self, what: str, p: Tensor, own: Mapping[str, Any], kept: tuple[str, ...]) -> None:
        name, is_half = type(self).__name__, p.dtype.itemsize < 4
        dtype = "float32" if is_half else str(p.dtype)
        known = {*kept, "master"} if is_half else set(kept)
        if own and not set(kept) <= set(own) <= known:
            raise ValueError(
                f"{name}: the state of {what} has {', '.join(sorted(own))}, but this optimizer keeps "
                f"{', '.join(sorted(known)) or 'none'}; build it with the options of the saved one"
            )
        for key, value in own.items():
            if key == "step":  # a number, checked before
                continue
            found = f"{getattr(value, 'dtype', type(value).__name__)} {getattr(value, 'shape', '')}".strip()
            if found != f"{dtype} {p.shape}" or hasattr(value, "mask"):
                raise ValueError(f"{name}: {key} of {what} is {found}, expected a NumPy array, {dtype} {p.shape}")

    def _load(self, unit: Param | FlatGroup, state: dict[str, Any], given: Sequence[Mapping[str, Any]]) -> None:
        """Load one unit's state. Existing arrays are updated in place, because a recorded step may use them."""
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

    def _master_copy(self, place: int, unit: Param | FlatGroup, state: dict[str, Any]) -> Array:
        """The float32 copy of the parameters, updated first if anything but a step has changed them."""
        xp = unit.params[0].backend
        if not same_versions(self._master_versions.get(place), versions(unit)):
            refuse_while_recording("a parameter in half precision was changed")
            if "master" in state and hasattr(xp, "assign"):  # in place: a recorded step may use it
                xp.assign(state["master"], unit.value)
            else:
                state["master"] = xp.astype(unit.value, "float32")
        return state["master"]

    def _check_unchanged(self, arrays: list[Array]) -> None:
        """Check before a replay that parameters and master copies still are the recorded ones.

        Raises:
            RuntimeError: a parameter has a new array, or was changed without its float32 copy.
        """
        name = type(self).__name__
        for p, array in zip(self.params, arrays, strict=True):
            if p.data is not array:
                raise RuntimeError(
                    f"{name}: a parameter of shape {p.shape} was given a new array after the step was captured; "
                    "call compile_step again"
                )
        for place, unit in enumerate(self._units):
            if "master" in self.state.get(place, {}) and not same_versions(
                self._master_versions[place], versions(unit)
            ):
                raise RuntimeError(
                    f"{name}: a parameter in half precision was changed after the step was captured, and its float32 "
                    "copy was not; take one step uncompiled, then call compile_step again"
                )

    def _start_step(self) -> None:
        for group in self.groups:
            self._check_options(group)
        self._lr = self.lr

    def _snapshot(self) -> Callable[[], None]:
        """Return a function that restores the step numbers and which arrays the state has, not their values."""
        steps_taken, lr = self.steps_taken, self._lr
        states = {place: dict(state) for place, state in self.state.items()}

        def restore() -> None:
            self.steps_taken, self._lr = steps_taken, lr
            self.state = {place: self.state[place] for place in states}  # the same dicts, which recordings use
            for place, before in states.items():
                self.state[place].clear()
                self.state[place].update(before)

        return restore

    def _finish_step(self) -> None:
        for p in self.params:
            if p.grad is not None:
                p.changed_in_place()
        self._master_versions = {place: versions(unit) for place, unit in enumerate(self._units)}
        self.steps_taken += 1

    def _update(
        self, p: Array, g: Array, clip: Array | None, half: Array | None, state: dict[str, Any], options: dict[str, Any]
    ) -> tuple[Array, Array | None]:
        """Update p from its gradient g, scaled by `clip` if given.

        Returns the new p, and for half precision the new parameter `half`, of which p is the float32 copy.
        """
        raise NotImplementedError


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
            state["velocity"] = _write_back(xp, velocity, new_velocity)
        return _write_back(xp, p, new), None if half is None else _write_back(xp, half, xp.astype(new, xp.dtype(half)))


class AdamOptimizer(Optimizer):
    """Adam (Kingma & Ba, arXiv:1412.6980, algorithm 1).

        optimizer = AdamOptimizer(model.parameters(), lr=1e-3, betas=(0.9, 0.95))

    Args:
        betas: the decay rates of the running means of the gradient and of its square.
        eps: added to the denominator for numerical stability.
        weight_decay: the factor of an L2 penalty, added to the gradient.

    The other arguments and the errors are those of `Optimizer`; also ValueError for betas outside [0, 1).
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
        p, state["m"], state["v"], half = (_write_back(xp, old, array) for old, array in zip(given, new, strict=True))
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


def _listed(op: str, params: Any) -> list[Any]:
    """The parameters or groups as a list, with the pairs (name, parameter) of `named_parameters()` replaced.

    Raises TypeError for a single Tensor (the list would hold its rows), a dict, and what cannot be iterated over.
    """
    if isinstance(params, (Tensor, Mapping)) or not isinstance(params, Iterable):
        what = "one Tensor; pass a list, [p]" if isinstance(params, Tensor) else f"a {type(params).__name__}"
        raise TypeError(f"{op}: the parameters must be a list of Tensors, such as model.parameters(), got {what}")
    pairs = ((p[1] if isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], str) else p) for p in params)
    return list(pairs)


def _write_back(xp: Backend, old: Array, new: Array) -> Array:
    """Copy `new` into `old` and return `old`, as a recorded step needs. Without in-place writes, return `new`."""
    if new is None or new is old:
        return new
    if not hasattr(xp, "assign"):
        return xp.asarray(new)
    xp.assign(old, new)
    return old


def _type_of(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _count(value: Any, what: str) -> int:
    number = to_float(value, what)
    if not number.is_integer() or number > 2**53:  # float64 represents all integers up to it
        raise ValueError(f"{what} must be an integer of at most 2**53, got {value}")
    return int(number)


def _flag(value: Any, what: str) -> bool:
    if not isinstance(getattr(value, "item", lambda: value)(), bool):  # item(): np.bool_
        raise TypeError(f"{what} must be True or False, got {value!r}")
    return bool(value)


def _betas(value: Any, what: str) -> tuple[float, float]:
    is_pair = isinstance(value, (tuple, list)) or getattr(value, "ndim", 0) == 1
    if not is_pair or len(value) != 2:
        raise TypeError(f"{what} must be two numbers, got {value!r}")
    first, second = (to_float(beta, what, below=1) for beta in value)
    return first, second


# Each returns the option as a Python number, pair or bool, or raises TypeError or ValueError.
_OPTIONS: Mapping[str, Callable[[Any, str], Any]] = {
    "momentum": to_float,
    "nesterov": _flag,
    "weight_decay": to_float,
    "betas": _betas,
    "eps": to_float,
}


def clip_grad_norm(params: Iterable[Tensor] | Tensor, max_norm: float) -> Tensor:
    """Clip all gradients, so that their total Euclidean norm is at most `max_norm`.

    Scales each gradient by min(1, max_norm / (norm + 1e-6)), as `torch.nn.utils.clip_grad_norm_` does. `params` may be
    one parameter, too. With `max_norm=math.inf` no gradient changes.

    Returns:
        The norm before clipping, a 0-d Tensor. The call does not wait for the device.

    Raises:
        ValueError: no parameter has a gradient, or max_norm is not positive. TypeError: a parameter is not a Tensor, or
            max_norm is not a number.
    """
    max_norm = _checked_max_norm("clip_grad_norm", max_norm)
    given = [params] if isinstance(params, Tensor) else _listed("clip_grad_norm", params)
    if wrong := [type(p).__name__ for p in given if not isinstance(p, Tensor)]:
        raise TypeError(f"clip_grad_norm: the parameters must be Tensors, such as model.parameters(), got a {wrong[0]}")
    with_grad = [p for p in given if p.grad is not None]
    grads = _grads("clip_grad_norm", with_grad)
    xp = with_grad[0].backend
    norm, scale = _clip_scale(xp, grads, max_norm)
    for p in with_grad:
        p.grad = xp.multiply(p.grad, xp.astype(scale, p.dtype))
    return Tensor._wrap(norm, xp)


def _grads(op: str, params: list[Tensor]) -> list[Array]:
    grads = [p.grad for p in params if p.grad is not None]
    if not grads:
        raise ValueError(f"{op}: no parameter has a gradient; call backward() first")
    return grads


def _checked_max_norm(op: str, value: Any) -> float:
    max_norm = real(value, f"{op}: max_norm")
    if not max_norm > 0:
        raise ValueError(f"{op}: max_norm is {max_norm:g}; it must be positive")
    return max_norm


def _clip_scale(xp: Backend, grads: list[Array], max_norm: float) -> tuple[Array, Array]:
    dtype = common_float(xp, grads)
    return xp.clip_scale([g if xp.dtype(g) == dtype else xp.astype(g, dtype) for g in grads], max_norm)
