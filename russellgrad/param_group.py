"""What an optimizer changes at once: one parameter, or a group of parameters in one flat array."""

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
        return self.params[0].data

    @value.setter
    def value(self, array: Array) -> None:
        (p,) = self.params
        if array is not p.data:  # of a backend that cannot write in place
            p.data = array

    @property
    def grad(self) -> Array | None:
        return self.params[0].grad

    def gather(self) -> None:
        """There is nothing to collect."""

    def split(self, array: Array) -> list[Array]:
        """The part of an array like `value` that belongs to each parameter."""
        return [array]


class FlatGroup:
    """Parameters side by side in one array, and their gradients in another; each Tensor has a view of both."""

    def __init__(self, params: list[Tensor], value: Array, grad: Array, options: dict[str, Any]) -> None:
        self.params, self.value, self.grad, self.options = params, value, grad, options
        self._views = list(zip(params, self.split(value), self.split(grad), strict=True))

    def gather(self) -> None:
        """Copy arrays that were set as `.data` or `.grad` into the flat ones, and set the views again."""
        for p, value, grad in self._views:
            if p.data is not value:
                refuse_while_recording("a parameter was given a new array")
                p.backend.assign(value, p.data)
                p.data = value
            if p.grad is not None and p.grad is not grad:
                p.backend.assign(grad, p.grad)
                p.grad = grad

    def split(self, array: Array) -> list[Array]:
        """Views of an array like `value`, one for each parameter, in its shape."""
        xp = self.params[0].backend
        chunks = xp.split_flat(array, [(_padded(p.size),) for p in self.params])
        return [xp.split_flat(chunk, [p.shape])[0] for p, chunk in zip(self.params, chunks, strict=True)]


def flat_groups(groups: Sequence[dict[str, Any]], op: str) -> tuple[list[FlatGroup], Array]:
    """A FlatGroup for each group that has parameters, and the flat array of all gradients.

    Raises ValueError for parameters of several dtypes or backends, or on a backend that cannot write in place.
    """
    params: list[Tensor] = [p for group in groups for p in group["params"]]
    kinds = {(p.backend.name, str(p.dtype)) for p in params}
    if len(kinds) > 1:
        raise ValueError(f"{op}: flat=True needs parameters of one backend and dtype, got {kinds}")
    xp, dtype = params[0].backend, params[0].dtype
    if not supports_flat(xp):
        raise ValueError(
            f"{op}: flat=True needs a backend that writes in place, and {xp.name!r} has no assign and split_flat; "
            "leave flat out"
        )
    filled = [group for group in groups if group["params"]]
    sizes = [(sum(_padded(p.size) for p in group["params"]),) for group in filled]
    value, grad = (xp.zeros((sum(size for (size,) in sizes),), dtype) for _ in range(2))
    arrays = zip(filled, xp.split_flat(value, sizes), xp.split_flat(grad, sizes), strict=True)
    made = [FlatGroup(group["params"], values, grads, group) for group, values, grads in arrays]
    for group in made:
        group.gather()
    return made, grad


def supports_flat(xp: Backend) -> bool:
    """Whether an optimizer on this backend can be `flat`: the backend writes in place and gives views of an array."""
    return hasattr(xp, "assign") and hasattr(xp, "split_flat")


def _padded(size: int) -> int:
    """Elements from one parameter to the next: a multiple of 16 bytes, the most that a GPU reads at once."""
    return -(-size // 8) * 8


def refuse_while_recording(what: str) -> None:
    """What the optimizer copies once would be recorded, and repeated in every replay. Raises RuntimeError."""
    if is_recording():
        raise RuntimeError(f"step: {what} since the last step; take one step uncompiled, then call compile_step again")


def versions(unit: Param | FlatGroup) -> Versions:
    """How often each parameter has been changed in place."""
    return [(p._version, p._version[0]) for p in unit.params]


def same_versions(a: Versions | None, b: Versions) -> bool:
    return a is not None and all(one is other and m == n for (one, m), (other, n) in zip(a, b, strict=True))
