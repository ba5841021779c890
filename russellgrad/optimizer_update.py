"""Call `Optimizer.update`, as a subclass defines it, and store what it returns in the optimizer's arrays."""

from collections.abc import Callable, Mapping
from typing import Any

from .autograd import no_grad
from .backend import Array, Backend
from .dtype import is_float, python_number
from .replay import is_recording
from .tensor import Tensor

Update = Callable[[Tensor, Tensor, dict[str, Any], dict[str, Any]], Tensor]
MASTER = "master"  # the entry of a parameter's state with its float32 copy, which `update` gets as the value


def run_update(
    update: Update, name: str, xp: Backend, value: Array, grad: Array, lr: Array, state: dict[str, Any],
    options: Mapping[str, Any], is_flat: bool,
) -> Array:  # fmt: skip
    """Call `update` and store the new state. Returns the new value. Both are written into the old arrays if possible.

    Args:
        name: the optimizer's class, for messages.
        value, grad: of one parameter, or flat arrays (n,) of a group; of the same dtype.
        lr: the learning rate, 0-d.
        state: the parameter's arrays and numbers; updated.
        is_flat: whether the arrays are flat.

    Raises:
        TypeError: `update` did not return a Tensor of the value's dtype, or put anything but Tensors and numbers into
            the state.
        ValueError: it returned another shape; the state has other entries than after the first step, or an entry of
            another shape; with flat arrays, an entry has neither the value's shape nor (); an entry is called "master".
        RuntimeError: a step is being recorded, and a number in the state changed, or this is the parameter's first
            step.
    """
    old = {key: Tensor._wrap(x, xp) if xp.is_array(x) else x for key, x in state.items() if key != MASTER}
    given_value, given_grad, new = Tensor._wrap(value, xp), Tensor._wrap(grad, xp), dict(old)
    given_options = {key: option for key, option in options.items() if key != "params"}
    with no_grad():
        result = update(given_value, given_grad, new, {**given_options, "lr": Tensor._wrap(lr, xp)})
    if not isinstance(result, Tensor):
        raise TypeError(f"{name}: update must return the new value, a Tensor, got a {type(result).__name__}")
    _check_fits(f"{name}: update returned a value", result, given_value)
    for key, entry in new.items():
        new[key] = _checked_entry(f"{name}: state[{key!r}]", key, entry, xp)
        if is_flat and isinstance(entry, Tensor) and entry.shape not in ((), given_value.shape):
            raise ValueError(
                f"{name}: state[{key!r}] has shape {entry.shape}. With flat=True and elementwise = True the value is a "
                f"flat array {given_value.shape}, and each entry has its shape or (); or set elementwise = False in "
                "the class"
            )
    if old or not new:
        _check_same_entries(name, old, new)
    elif is_recording():
        raise RuntimeError(
            f"{name}: a parameter of shape {given_value.shape} has its first step in a captured step, whose replays "
            "would reset its state; take one step uncompiled, then call compile_step again"
        )
    # A result may be, or view, an array that is written below; such a one is copied first.
    shared = {id(x._version) for x in (given_value, given_grad, *old.values()) if isinstance(x, Tensor)}
    new_value = _unshared(xp, value, result, shared)
    arrays = {
        key: (xp.copy(entry.data) if key not in old else _unshared(xp, state[key], entry, shared))
        if isinstance(entry, Tensor)
        else entry
        for key, entry in new.items()
    }
    for key, entry in arrays.items():
        state[key] = write_back(xp, state[key], entry) if key in old and xp.is_array(entry) else entry
    return write_back(xp, value, new_value)


def _check_fits(what: str, found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape:
        raise ValueError(f"{what} of shape {found.shape}, expected {expected.shape}")
    if found.dtype != expected.dtype or found.backend is not expected.backend:
        raise TypeError(
            f"{what} of dtype {found.dtype} on backend {found.backend.name!r}, expected {expected.dtype} on "
            f"{expected.backend.name!r}"
        )


def _checked_entry(what: str, key: Any, entry: Any, xp: Backend) -> Any:
    if not isinstance(key, str) or key == MASTER or "/" in key:
        raise ValueError(f"{what}: keys must be strings without '/', other than {MASTER!r}")
    if isinstance(entry, Tensor):
        if entry.backend is not xp:
            raise TypeError(f"{what} is on backend {entry.backend.name!r}, expected {xp.name!r}")
        return entry
    number = python_number(entry)
    if number is None:
        raise TypeError(f"{what} must be a Tensor or a number, got a {type(entry).__name__}")
    return number


def _check_same_entries(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    if old.keys() != new.keys():
        raise ValueError(
            f"{name}: the state has the entries {', '.join(new) or 'none'}, but had {', '.join(old)} after the step "
            "before; create all of them in the first step, when it is empty"
        )
    for key, before in old.items():
        if isinstance(before, Tensor) != isinstance(new[key], Tensor):
            raise TypeError(f"{name}: state[{key!r}] was a {type(before).__name__}, now a {type(new[key]).__name__}")
        if isinstance(before, Tensor):
            _check_fits(f"{name}: state[{key!r}] is now", new[key], before)
        elif is_recording() and new[key] != before:
            raise RuntimeError(
                f"{name}: state[{key!r}] is a number, which replays of a captured step would not change; keep it as a "
                "0-d Tensor"
            )


def _unshared(xp: Backend, old: Array, new: Tensor, shared: set[int]) -> Array:
    """The array of `new`; a copy if it is, or views, one of the arrays of `shared` other than `old` itself."""
    return xp.copy(new.data) if id(new._version) in shared and new.data is not old else new.data


def write_back(xp: Backend, old: Array, new: Array) -> Array:
    """Copy `new` into `old` and return `old`, as a recorded step needs. Without in-place writes, return `new`."""
    if new is None or new is old:
        return new
    if not hasattr(xp, "assign"):
        return xp.asarray(new)
    xp.assign(old, new)
    return old


def check_loaded_entry(what: str, value: Any) -> None:
    """Check an entry of a loaded state: an array of real numbers, or a number. Raises TypeError."""
    dtype: Any = getattr(value, "dtype", None)
    if hasattr(value, "shape"):
        is_array = hasattr(dtype, "kind") and not hasattr(value, "mask") and not isinstance(value, Tensor)
        if is_array and (dtype.kind in "iub" or is_float(dtype)):
            return
    elif python_number(value) is not None:
        return
    found = f"{dtype or type(value).__name__} {getattr(value, 'shape', '')}".strip()
    raise TypeError(f"{what} is {found}, expected a NumPy array of real numbers, or a number")
