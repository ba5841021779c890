"""The base class of the optimizers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NoReturn, TypeAlias

from .backend import Array, Backend
from .clip_grad import all_grads, checked_max_norm, total_norm_and_scale
from .optimizer_options import OPTIONS, count, flag, listed, type_of
from .optimizer_update import MASTER, check_loaded_entry, run_update, write_back
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

    A subclass defines `update`, and passes its options with their defaults to this constructor. docs/own_optimizer.md
    shows how.

        class SignSGD(Optimizer):
            def update(self, value, grad, state, options):
                return value - options["lr"] * grad.sign()

    Args:
        params: parameters, or parameter groups: dicts with a list "params" and options for that group only, as in
            [{"params": matrices}, {"params": rest, "weight_decay": 0.0}].
        lr: the learning rate: a number, or a schedule, which is called with the number of steps taken so far. Each
            rate must be a finite number that is not negative.
        flat: store all parameters in one array and all gradients in another (`flat_grad`), so that a step of an
            elementwise optimizer is one pass over each group. Each `.data` becomes a view of the flat array, and so
            does each `.grad` after `gather_grads` or `step`. Every parameter must have a gradient at every step.
            Tensors that shared memory with a `.data` before, such as a `detach()`, no longer do. `supports_flat` tells
            whether a backend can.
        options: the defaults of the optimizer's options, for groups that do not set them.

    Attributes:
        elementwise: a class attribute: whether each element of the new value depends only on the same element of the
            gradient and the state, as in SGD and Adam. With flat=True, `update` then gets all parameters of a
            group as one array (n,). Otherwise it gets one parameter at a time.
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

    elementwise: ClassVar[bool] = False

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
        self._flat: list[FlatGroup] = []
        if flag(flat, f"{name}: flat"):
            self._flat, self.flat_grad = flat_groups(self.groups, name)
        # What one call of `_update` updates.
        self._units: Sequence[Param | FlatGroup] = [Param(p, group) for group in self.groups for p in group["params"]]
        if self.elementwise and self._flat:
            self._units = self._flat
        # Keys: the index in `_units`.
        self.state: dict[int, dict[str, Any]] = {}
        self._lr = 0.0  # the learning rate of the current step
        # The backend and dtype of each parameter in the first step, or when they were made part of a flat array.
        self._placement = self._current_placement() if flat else []
        self._master_versions: dict[int, Versions] = {}  # the parameters' versions when the master copies were updated

    def _current_placement(self) -> list[tuple[Backend, Any]]:
        return [(p.backend, p.dtype) for p in self.params]

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

    def __repr__(self) -> str:
        """The learning rate of the next step, and of each group the number of parameters and the options."""
        try:
            rate = f"{self.lr:g}"
        except Exception:  # of the schedule
            rate = "its schedule raises an error"
        groups = []
        for group in self.groups:
            options = "".join(f", {name}={value}" for name, value in group.items() if name != "params")
            n, elements = len(group["params"]), sum(p.size for p in group["params"])
            groups.append(f"{n} parameter{'s' * (n != 1)} of {elements:,} elements{options}")
        if len(groups) > 1:
            groups = ["", *(f"group {i}: {text}" for i, text in enumerate(groups))]
        return f"{type(self).__name__}(lr={rate}, steps_taken={self.steps_taken}" + (
            f", {groups[0]})" if len(groups) == 1 else "\n  ".join(groups) + "\n)"
        )

    def _check_options(self, group: dict[str, Any]) -> dict[str, Any]:
        """Convert a group's options to Python numbers and bools, in place, and return the group."""
        name = type(self).__name__
        if unknown := set(group) - {*self._known, "params"}:
            given, known = ", ".join(sorted(map(str, unknown))), ", ".join(self._known)
            advice = "; lr is the same for all groups: pass it to the optimizer" if "lr" in unknown else ""
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
        """Copy every parameter's gradient into the flat gradient array (n,) and return that array; None unless flat.

        Between the gradients of two parameters there may be zeros, since each begins at a multiple of 8 elements.
        `step` calls this itself. Call it before `step` to modify all gradients at once, as an all-reduce does.

        Raises:
            RuntimeError: a parameter was given a new array, and the step is being recorded; or a parameter was moved to
                another backend or cast.
        """
        self._placement = self._placement or self._current_placement()
        for place, (p, (xp, dtype)) in enumerate(zip(self.params, self._placement, strict=True)):
            if p.backend is not xp or p.dtype != dtype:
                raise RuntimeError(
                    f"{type(self).__name__}: parameter {place} is {p.dtype} on backend {p.backend.name!r}, and was "
                    f"{dtype} on {xp.name!r} before; build the optimizer after Module.to() and astype()"
                )
        for group in self._flat:
            group.gather()
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
                updated then. If `update` raises, earlier parameters are updated, and `steps_taken` does not change.
            RuntimeError: a parameter was moved to another backend or cast after the first step, or with flat before.
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
                    state[MASTER] = new
                unit.value = new if half is None else new_half
                run_in_every_step(partial(self._mark_updated, place, unit))
        run_in_every_step(self._finish_step)
        return None if norm is None else Tensor._wrap(norm, xp)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, for a checkpoint, without the parameters, the learning rate and the options.

        Returns:
            A dict with the class name as "kind", the int "steps_taken", and "state", a list with one dict for each
            parameter, in order. Each of these maps names ("m", "v", ...) to numbers or to NumPy arrays. The format does
            not depend on flat or on the backend.
        """
        state: list[dict[str, Any]] = []
        for place, unit in enumerate(self._units):
            own: list[dict[str, Any]] = [{} for _ in unit.params]
            for name, value in self.state.get(place, {}).items():
                if name == MASTER and not same_versions(self._master_versions.get(place), versions(unit)):
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
        if len(given) != len(self.params):
            raise ValueError(
                f"{optimizer}: the state has {len(given)} parameters, this optimizer has {len(self.params)}"
            )
        kept = [self._state_names(group) for group in self.groups for _ in group["params"]]
        for place, (p, own) in enumerate(zip(self.params, given, strict=True)):
            self._check_state(f"parameter {place}", p, own, kept[place])
        rest = iter(given)
        for unit in self._units:
            own = [next(rest) for _ in unit.params]
            if isinstance(unit, FlatGroup):
                self._check_one_state(unit, own)
        self.gather_grads()
        for place, unit in enumerate(self._units):
            self._load(unit, self.state.setdefault(place, {}), given[: len(unit.params)])
            given = given[len(unit.params) :]
        self.steps_taken = steps_taken
        self._master_versions = {place: versions(unit) for place, unit in enumerate(self._units)}

    def _state_names(self, group: Mapping[str, Any]) -> tuple[str, ...] | None:
        """The names of the entries in a parameter's state, for this group's options; None if `update` chooses them.

        All but "step", a number, are arrays of the parameter's shape.
        """
        return None

    def _check_state(self, what: str, p: Tensor, own: dict[str, Any], kept: tuple[str, ...] | None) -> None:
        """Check a parameter's loaded state. Converts its number of steps to an int."""
        name, is_half = type(self).__name__, p.dtype.itemsize < 4
        dtype = "float32" if is_half else str(p.dtype)
        if kept is None:
            for key, value in own.items():
                if key != MASTER:
                    check_loaded_entry(f"{name}: {key} of {what}", value)
            kept = tuple(key for key in own if key != MASTER)
            exact: tuple[str, ...] = (MASTER,)
        else:
            if "step" in own:
                own["step"] = count(own["step"], f"{name}: step of {what}")
            exact = (*(key for key in own if key != "step"),)
        known = {*kept, MASTER} if is_half else set(kept)
        if own and not set(kept) <= set(own) <= known:
            raise ValueError(
                f"{name}: the state of {what} has {', '.join(sorted(own))}, but this optimizer keeps "
                f"{', '.join(sorted(known)) or 'none'}; build it with the options of the saved one"
            )
        for key, value in own.items():
            found = f"{getattr(value, 'dtype', type(value).__name__)} {getattr(value, 'shape', '')}".strip()
            if key in exact and (found != f"{dtype} {p.shape}" or hasattr(value, "mask")):
                raise ValueError(f"{name}: {key} of {what} is {found}, expected a NumPy array, {dtype} {p.shape}")

    def _check_one_state(self, unit: FlatGroup, given: Sequence[Mapping[str, Any]]) -> None:
        """Check that the parameters of a flat array have one state: equal numbers, and arrays of their own shapes."""
        names = list(dict.fromkeys(key for own in given for key in own))
        for key in names:
            values: list[Any] = [own.get(key) for own in given]
            if not _have_shapes(values, unit) and any(_has_axes(v) or v != values[0] for v in values):
                found = ", ".join(f"shape {v.shape}" if _has_axes(v) else str(v) for v in values)
                raise ValueError(
                    f"{type(self).__name__}: flat=True needs one state for all parameters of a group: the same entries "
                    f"and numbers, and arrays of the parameters' shapes; got for {key}: {found}"
                )

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
            is_flat = isinstance(unit, FlatGroup) and _have_shapes([own[name] for own in given], unit)
            shape = unit.value.shape if is_flat else value.shape
            if name not in state or state[name].shape != shape or xp.dtype(state[name]) != value.dtype:
                state[name] = xp.zeros(shape, value.dtype)
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
                    f"{name}: parameter {place} has shape {p.shape}, its gradient {tuple(p.grad.shape)}; they "
                    "must agree"
                )

    def _master_copy(self, place: int, unit: Param | FlatGroup, state: dict[str, Any]) -> Array:
        """The float32 copy of the parameters, updated first if anything but a step has changed them."""
        xp = unit.params[0].backend
        if MASTER not in state or not same_versions(self._master_versions.get(place), versions(unit)):
            refuse_while_recording("a parameter in half precision was changed")
            if MASTER in state and hasattr(xp, "assign"):  # in place: a recorded step may use it
                xp.assign(state[MASTER], unit.value)
            else:
                state[MASTER] = xp.astype(unit.value, "float32")
        return state[MASTER]

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
            if MASTER in self.state.get(place, {}) and not same_versions(
                self._master_versions.get(place), versions(unit)
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

    def _mark_updated(self, place: int, unit: Param | FlatGroup) -> None:
        for p in unit.params:
            p.changed_in_place()
        self._master_versions[place] = versions(unit)

    def _finish_step(self) -> None:
        self.steps_taken += 1

    def update(self, value: Tensor, grad: Tensor, state: dict[str, Any], options: dict[str, Any]) -> Tensor:
        """Compute the new value of a parameter. Every subclass defines it; here it raises NotImplementedError.

        It runs under `no_grad`, once for each parameter that has a gradient in each step.

            def update(self, value, grad, state, options):
                if not state:
                    state["velocity"] = zeros_like(value)
                state["velocity"] = options["momentum"] * state["velocity"] + grad
                return value - options["lr"] * state["velocity"]

        Args:
            value: the parameter, or its float32 copy if the parameter is in half precision.
            grad: its gradient, clipped if the step clips, of the value's shape and dtype. With flat=True and
                `elementwise`, value and grad are all parameters and gradients of a group, each as one array (n,).
            state: the parameter's own dict, empty in its first step, for what the next step needs: Tensors of any
                shape, and numbers. All entries are created in the first step, and Tensors keep their shapes and
                dtypes; with flat=True and `elementwise`, the shape of the value or (). After the call the optimizer
                copies each Tensor into memory of its own, which it overwrites in the next step. A number cannot
                change in a captured step (`compile_step`): keep a count as a 0-d Tensor.
            options: the options of the parameter's group, such as options["momentum"], and options["lr"], the learning
                rate of this step, a 0-d Tensor of the value's dtype, which a captured step updates in each replay.

        Returns:
            The new value, of the value's shape and dtype. The optimizer copies it into the parameter.

        `step` raises TypeError or ValueError for a result or a state that differs from this, RuntimeError for a number
        that changes in a captured step, and for the first step of a parameter in one.
        """
        raise NotImplementedError(
            f"{type(self).__name__}: define update(self, value, grad, state, options), which returns the new value"
        )

    def _update(
        self, p: Array, g: Array, clip: Array | None, half: Array | None, state: dict[str, Any], options: dict[str, Any]
    ) -> tuple[Array, Array | None]:
        """Update p from its gradient g, scaled by `clip` if given: by `update`, or in a subclass by a fused primitive.

        Returns the new p, and for half precision the new parameter `half`, of which p is the float32 copy.
        """
        xp = self.params[0].backend
        dtype = xp.dtype(p)
        g = g if xp.dtype(g) == dtype else xp.astype(g, dtype)
        g = g if clip is None else xp.multiply(g, clip)
        lr = xp.reshape(host_scalars(xp, lambda: (self._lr,), dtype), ())
        name, is_flat = type(self).__name__, self.elementwise and bool(self._flat)
        p = run_update(self.update, name, xp, p, g, lr, state, options, is_flat)
        return p, None if half is None else write_back(xp, half, xp.astype(p, xp.dtype(half)))


def _have_shapes(values: Sequence[Any], unit: Param | FlatGroup) -> bool:
    """Whether the values are arrays of the shapes of the unit's parameters."""
    return all(getattr(v, "shape", None) == p.shape for v, p in zip(values, unit.params, strict=True))


def _has_axes(value: Any) -> bool:
    return bool(getattr(value, "ndim", 0))
