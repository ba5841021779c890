"""Reverse-mode differentiation over a graph of nodes. It knows no op: a node's pullbacks are all it has.

A tensor that needs a gradient has one node. A node links to the nodes of its operands, never to tensors, so an
intermediate array lives only as long as a pullback holds it, and there are no reference cycles. Leaf gradients reach
their tensor by a weak reference. Every node has a number larger than those of its operands; backward walks nodes by
falling number, so each is reached after all that depends on it, however deep the graph.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from heapq import heappop, heappush
from itertools import count
from numbers import Real
from typing import Any, NamedTuple, Protocol, TypeAlias
from weakref import ReferenceType

from .backend import Array, Backend, DType, Shape

Pullback: TypeAlias = Callable[[Array], Array]  # gradient of the output -> gradient of one operand
Hook: TypeAlias = Callable[[Array], Array | None]
Version: TypeAlias = list[int]  # [how often an array was changed in place], one list for all tensors that share it

_order = count()
_filled: "ContextVar[dict[int, HoldsGrad] | None]" = ContextVar("russellgrad_filled", default=None)
_grad_enabled: ContextVar[bool] = ContextVar("russellgrad_grad_enabled", default=True)


class Joint(NamedTuple):
    """One pullback for all operands: (gradient, which operands need one) -> a gradient or None for each."""

    pull: Callable[[Array, Sequence[bool]], tuple[Array | None, ...]]


class HoldsGrad(Protocol):
    grad: Array | None


class Node:
    """What backward needs to know of one array: where its gradient goes, and how."""

    __slots__ = ("name", "xp", "shape", "dtype", "order", "parents", "pullbacks", "versions", "holder", "hooks",
                 "__weakref__")  # fmt: skip

    def __init__(
        self,
        name: str,
        xp: Backend,
        array: Array,
        parents: "Sequence[Node | None]" = (),
        pullbacks: Sequence[Any] = (),
        versions: Sequence[Version] = (),
    ) -> None:
        self.name = name
        self.xp = xp
        self.shape: Shape = array.shape
        self.dtype: DType = xp.dtype(array)
        self.order = next(_order)
        # One entry an operand; None where it needs no gradient. Both are None once backward has freed the node.
        self.parents: Sequence[Node | None] | None = parents
        self.pullbacks: Sequence[Any] | None = pullbacks
        # An array changed in place after a pullback captured it would give wrong gradients in silence.
        self.versions = [(version, version[0]) for version in versions]
        self.holder: ReferenceType[HoldsGrad] | None = None  # the tensor whose .grad is to be filled
        self.hooks: dict[int, Hook] | None = None

    def gradients(self, g: Array, retain_graph: bool) -> "Iterator[tuple[Node, Array]]":
        """Each operand's node with the gradient for it. Lets go of every pullback as soon as it is done."""
        parents, pullbacks = self.parents, self.pullbacks
        if parents is None or pullbacks is None:
            raise RuntimeError(
                f"backward: the graph at {self.name!r} was freed by an earlier backward(); "
                "pass retain_graph=True to the earlier one"
            )
        for version, then in self.versions:
            if version[0] != then:
                raise RuntimeError(
                    f"backward: an operand of {self.name!r} was changed in place after it was used "
                    "(by an optimizer step?); run the forward pass again"
                )
        if not retain_graph and parents:
            self.parents = self.pullbacks = None
        if len(pullbacks) == 1 and isinstance(pullbacks[0], Joint):
            results = pullbacks[0].pull(g, [parent is not None for parent in parents])
            del pullbacks
            for parent, result in zip(parents, results, strict=True):
                if parent is not None and result is not None:
                    yield parent, result
            return
        waiting = list(zip(parents, pullbacks, strict=True))[::-1]
        del pullbacks
        while waiting:
            parent, pull = waiting.pop()
            if parent is not None and pull is not None:
                yield parent, pull(g)

    def deliver(self, g: Array) -> Array:
        """Run the hooks on the whole gradient, and hand it to the tensor that wants it."""
        for hook in list(self.hooks.values()) if self.hooks else ():
            changed = hook(self.xp.copy(g))  # others may share g, and a hook may write
            if changed is not None:
                if isinstance(changed, Real):  # what NumPy makes of a 0-d array times two
                    changed = self.xp.asarray(changed)
                if not self.xp.is_array(changed) or changed.shape != self.shape:
                    raise ValueError(
                        f"register_hook: the hook of {self.name!r} must return None or an array of "
                        f"backend {self.xp.name!r} and shape {self.shape}"
                    )
                g = fit(self, changed, "register_hook")
        tensor = self.holder() if self.holder else None
        if tensor is not None:
            _note_filled(tensor)
            # A gradient may be shared with another tensor's or be a view, so .grad is always an array of its own.
            had = tensor.grad
            tensor.grad = self.xp.copy(g) if had is None else self.xp.asarray(self.xp.add(had, g))
        return g


@contextmanager
def filled_grads() -> "Iterator[dict[int, HoldsGrad]]":
    """In the block, the tensors whose `.grad` backward fills are noted, by id; one that has a gradient is an error."""
    filled: dict[int, HoldsGrad] = {}
    token = _filled.set(filled)
    try:
        yield filled
    finally:
        _filled.reset(token)


def _note_filled(tensor: HoldsGrad) -> None:
    filled = _filled.get()
    if filled is None:
        return
    if tensor.grad is not None and id(tensor) not in filled:
        raise RuntimeError(
            "backward: a tensor has a gradient from before the step that is recorded, to which each replay would add "
            "what it was then; call zero_grad() within the step, before backward()"
        )
    filled[id(tensor)] = tensor


def record(
    name: str,
    xp: Backend,
    out: Array,
    nodes: Sequence[Node | None],
    pullbacks: Sequence[Any],
    versions: Sequence[Version] = (),
) -> Node | None:
    """A node for `out`, or None if no operand needs a gradient. Pullbacks that nobody needs are let go here."""
    if not _grad_enabled.get() or not any(nodes):
        return None
    if len(pullbacks) == 1 and isinstance(pullbacks[0], Joint):
        return Node(name, xp, out, nodes, pullbacks, versions)
    if len(pullbacks) != len(nodes):
        raise TypeError(f"{name}: the rule has {len(nodes)} operands but returned {len(pullbacks)} pullbacks")
    needed = [pull if node is not None else None for node, pull in zip(nodes, pullbacks, strict=True)]
    if not any(needed):
        return None  # a step of the function with no gradient: a comparison, a cast to integers
    return Node(name, xp, out, nodes, needed, versions)


def fit(operand: Node, g: Array, op: str) -> Array:
    """Sum a gradient over the axes along which its operand was broadcast, and bring it to the operand's dtype.

    Raises:
        ValueError: the operand does not broadcast to the gradient's shape; the rule of `op` is wrong.
    """
    xp, shape = operand.xp, operand.shape
    if g.shape != shape:
        extra = g.ndim - len(shape)
        if extra < 0 or any(n not in (1, m) for n, m in zip(shape, g.shape[extra:], strict=True)):
            raise ValueError(f"backward: {op!r} gave a gradient of shape {g.shape} for an operand of shape {shape}")
        stretched = [i + extra for i, n in enumerate(shape) if n == 1 and g.shape[i + extra] != 1]
        g = xp.reshape(xp.sum(g, axis=(*range(extra), *stretched)), shape)
    return g if xp.dtype(g) == operand.dtype else xp.astype(g, operand.dtype)


def backward(root: Node, gradient: Array, retain_graph: bool) -> None:
    """Send `gradient` from `root` down to the leaves, and add to their tensors' `.grad`.

    Raises:
        RuntimeError: a node was freed by an earlier backward, or an array it needs has changed since.
    """
    grads: dict[int, Array] = {root.order: gradient}
    nodes: dict[int, Node] = {root.order: root}
    heap = [-root.order]
    while heap:
        order = -heappop(heap)
        node, g = nodes.pop(order), grads.pop(order)
        g = node.deliver(g)
        for parent, result in node.gradients(g, retain_graph):
            part = fit(parent, result, node.name)
            if parent.order in grads:
                # Never +=: add hands the same array to both its parents.
                grads[parent.order] = parent.xp.add(grads[parent.order], part)
            else:
                grads[parent.order] = part
            if parent.order not in nodes:
                nodes[parent.order] = parent
                heappush(heap, -parent.order)
            del result, part  # before the next pullback makes another of their size


@contextmanager
def no_grad() -> Iterator[None]:
    """`with no_grad():` or `@no_grad()`: operations inside record nothing, and new tensors track no gradients."""
    token = _grad_enabled.set(False)
    try:
        yield
    finally:
        _grad_enabled.reset(token)


def is_grad_enabled() -> bool:
    """Whether operations are being recorded here: not inside `no_grad()`."""
    return _grad_enabled.get()
