"""The units that an optimizer updates: a single parameter, or a group of parameters stored in one flat array."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from .autograd import Version
from .backend import Array, Backend
from .replay import is_recording
from .tensor import Tensor

Versions: TypeAlias = list[tuple[Version, int]]


class Param:
    """One parameter, with the options of its group."""

    def __init__(self, p: Tensor, options: dict[str, Any]) -> None:
        self.params, self.options = [p], options

    @property
    def value(self) -> Array:
        """The parameter's array."""
        return self.params[0].data

    @value.setter
    def value(self, array: Array) -> None:
        (p,) = self.params
        if array is not p.data:  # the backend cannot write in place and returned a new array
            p.data = array

    @property
    def grad(self) -> Array | None:
        """The parameter's gradient."""
        return self.params[0].grad

    def split(self, array: Array) -> list[Array]:
        """Split an array of a group into one array for each parameter: here, `array` itself, of any shape."""
        return [array]


class FlatGroup:
    """Parameters stored one after the other in one flat array, and their gradients in another.

    Each parameter's `.data` and `.grad` are views of these arrays.
    """

    def __init__(self, params: list[Tensor], value: Array, grad: Array, options: dict[str, Any]) -> None:
        self.params, self.value, self.grad, self.options = params, value, grad, options
        self._views = list(zip(params, self.split(value), self.split(grad), strict=True))

    def gather(self) -> None:
        """Copy each `.data` and `.grad` that is not a view of the flat arrays into them, and make it a view again."""
        for p, value, grad in self._views:
            if p.data is not value:
                refuse_while_recording("a parameter was given a new array")
                p.backend.assign(value, p.data)
                p.data = value
            if p.grad is not None and p.grad is not grad:
                p.backend.assign(grad, p.grad)
                p.grad = grad

    def split(self, array: Array) -> list[Array]:
        """Split a flat array of the shape of `value` into views, one for each parameter, in the parameter's shape.

        An array of another shape, such as a number of steps, 0-d, is the same for each parameter.
        """
        if array.shape != self.value.shape:
            return [array] * len(self.params)
        xp = self.params[0].backend
        chunks = xp.split_flat(array, [(_padded(p.size),) for p in self.params])
        return [xp.split_flat(chunk, [p.shape])[0] for p, chunk in zip(self.params, chunks, strict=True)]


def flat_groups(groups: Sequence[dict[str, Any]], op: str) -> tuple[list[FlatGroup], Array]:
    """Build a FlatGroup for each group that has parameters. Returns the groups and the flat array of all gradients.

    Raises ValueError for parameters of several dtypes or backends, or a backend that cannot write in place.
    """
    params: list[Tensor] = [p for group in groups for p in group["params"]]
    kinds = {(p.backend.name, str(p.dtype)) for p in params}
    if len(kinds) > 1:
        raise ValueError(f"{op}: flat=True needs parameters of one backend and dtype, got {kinds}")
    xp, dtype = params[0].backend, params[0].dtype
    if not supports_flat(xp):
        raise ValueError(
            f"{op}: flat=True needs a backend that writes in place, and {xp.name!r} has no assign and split_flat; "
            "use flat=False"
        )
    filled = [group for group in groups if group["params"]]
    sizes = [(sum(_padded(p.size) for p in group["params"]),) for group in filled]
    value, grad = (xp.zeros((sum(size for (size,) in sizes),), dtype) for _ in range(2))
    arrays = zip(filled, xp.split_flat(value, sizes), xp.split_flat(grad, sizes), strict=True)
    flat = [FlatGroup(group["params"], values, grads, group) for group, values, grads in arrays]
    for flat_group in flat:
        flat_group.gather()
    return flat, grad


def supports_flat(xp: Backend) -> bool:
    """Whether optimizers support `flat=True` on this backend: it must write in place and return views of an array."""
    return hasattr(xp, "assign") and hasattr(xp, "split_flat")


def _padded(size: int) -> int:
    """The size rounded up to a multiple of 8 elements, so that each parameter starts at a multiple of 16 bytes.

    A GPU reads 16 aligned bytes at once.
    """
    return -(-size // 8) * 8


def refuse_while_recording(what: str) -> None:
    """Raise RuntimeError during a recording: it would repeat a copy that must happen only once."""
    if is_recording():
        raise RuntimeError(f"step: {what} since the last step; take one step uncompiled, then call compile_step again")


def versions(unit: Param | FlatGroup) -> Versions:
    """Each parameter's version list, with the number of in-place changes so far."""
    return [(p._version, p._version[0]) for p in unit.params]


def same_versions(a: Versions | None, b: Versions) -> bool:
    """Whether no parameter has changed between the two calls of `versions`. False if `a` is None."""
    return a is not None and all(one is other and m == n for (one, m), (other, n) in zip(a, b, strict=True))
