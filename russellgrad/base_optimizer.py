"""The base class of the optimizers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

from .backend import Array, Backend
from .clip_grad import all_grads, checked_max_norm, total_norm_and_scale
from .optimizer_options import OPTIONS, count, flag, listed, type_of
from .param_group import (
    FlatGroup,
    Param,
    Versions,
    flat_groups,
    refuse_while_recording,
    same_versions,
    versions,
)
from .replay import host_scalars, restore_on_failure, run_before_replay, run_in_every_step
from .schedules import Schedule, constant, to_float
from .tensor import Tensor

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
        given = listed(name, params)
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
            self.groups.append(self._check_options({**options, **group, "params": listed(name, group["params"])}))
        self.params: list[Tensor] = [p for group in self.groups for p in group["params"]]
        self._check_params()
        self.lr = lr
        self.steps_taken = 0
        self.flat_grad: Array | None = None
        self._units: Sequence[Param | FlatGroup]
        if flag(flat, f"{name}: flat"):
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
        group.update({key: OPTIONS[key](group[key], f"{name}: {key}") for key in self._known if key in OPTIONS})
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
            max_norm = checked_max_norm("step", max_norm)
        restore_on_failure(self, self._snapshot)
        run_in_every_step(self._start_step)
        self.gather_grads()
        arrays = [p.data for p in self.params]
        run_before_replay(lambda: self._check_unchanged(arrays))
        norm = clip = None
        xp = self.params[0].backend
        if max_norm is not None:
            grads = [self.flat_grad] if self.flat_grad is not None else all_grads("step", self.params)
            norm, clip = total_norm_and_scale(xp, grads, max_norm)
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
            raise TypeError(f"{optimizer}: the state must be a dict, as state_dict() returns, got {type_of(state)}")
        if missing := {"kind", "steps_taken", "state"} - set(state):
            raise ValueError(f"{optimizer}: the state lacks {', '.join(sorted(missing))}; use a state_dict()")
        if state["kind"] != optimizer:
            raise ValueError(f"{optimizer}: the state is that of a {state['kind']}; load it into one")
        steps_taken = count(state["steps_taken"], f"{optimizer}: steps_taken")
        if not isinstance(state["state"], (list, tuple)):
            got = type_of(state["state"])
            raise TypeError(f"{optimizer}: 'state' must be a list with a dict for each parameter, got {got}")
        for place, own in enumerate(state["state"]):
            if not isinstance(own, Mapping) or not all(isinstance(key, str) for key in own):
                got = f"the keys {', '.join(map(repr, own))}" if isinstance(own, Mapping) else type_of(own)
                raise TypeError(f"{optimizer}: the state of parameter {place} must be a dict with str keys, got {got}")
        given = [dict(own) for own in state["state"]]
        for place, own in enumerate(given):
            if "step" in own:
                own["step"] = count(own["step"], f"{optimizer}: step of parameter {place}")
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


def write_back(xp: Backend, old: Array, new: Array) -> Array:
    """Copy `new` into `old` and return `old`, as a recorded step needs. Without in-place writes, return `new`."""
    if new is None or new is old:
        return new
    if not hasattr(xp, "assign"):
        return xp.asarray(new)
    xp.assign(old, new)
    return old
