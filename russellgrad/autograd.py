"""Reverse-mode automatic differentiation: the graph of nodes, `backward`, and `no_grad`.

The engine does not depend on particular ops. A node holds pullbacks: functions that turn the gradient of the node's
output into the gradient of one operand. (PyTorch calls them backward functions.)

A tensor that requires a gradient has one node. A node links to the nodes of its operands, never to tensors. An
intermediate array is therefore freed as soon as no pullback holds it, and there are no reference cycles. A leaf's node
refers to its tensor by a weak reference. Every node has a number larger than those of its operands. Backward visits
nodes by decreasing number, so it visits a node after all nodes that depend on it. It uses no recursion, so the depth
of the graph is not limited.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import inf
from numbers import Real
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeAlias, TypeVar, overload
from weakref import ReferenceType

from .backend import Array, Backend, DType, Shape
from .dtype import real_array
from .scope import Scope

P = ParamSpec("P")
R = TypeVar("R")
Pullback: TypeAlias = Callable[[Array], Array]  # gradient of the output -> gradient of one operand
Hook: TypeAlias = Callable[[Array], Array | None]
# [number of in-place changes of an array]. A list, because it is mutable: all tensors that share memory share one list,
# and each sees the changes through the others.
Version: TypeAlias = list[int]

_order = count()
_filled_grads: "ContextVar[dict[int, HasGrad] | None]" = ContextVar("russellgrad_filled", default=None)
_collected: "ContextVar[CollectedGrads | None]" = ContextVar("russellgrad_collected", default=None)
# Operations at this level and above are recorded (`Backend.level`): at 0 all of them, in no_grad() none.
_recorded_from: ContextVar[float] = ContextVar("russellgrad_recorded_from", default=0)


class Joint(NamedTuple):
    """One pullback for all operands of a rule.

    `pull(g, needs)` takes the gradient of the output and one bool for each operand, True where its gradient is needed.
    It returns one gradient, or None, for each operand. A rule returns `out, Joint(pull)`.
    """

    pull: Callable[[Array, Sequence[bool]], tuple[Array | None, ...]]


class HasGrad(Protocol):
    """A tensor, as far as backward knows it: `grad`, and the array itself, which backward writes without checks."""

    _grad: Array | None

    @property
    def grad(self) -> Array | None: ...

    @grad.setter
    def grad(self, gradient: Array | None, /) -> None: ...


class Node:
    """A node of the graph: the operation that made an array, its operands' nodes, and its pullbacks."""

    __slots__ = ("name", "xp", "shape", "dtype", "order", "parents", "pullbacks", "versions", "tensor_ref", "hooks",
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
        self.shape: Shape = tuple(array.shape)
        self.dtype: DType = xp.dtype(array)
        self.order = next(_order)
        # One entry for each operand, None where it needs no gradient. Backward sets both to None to free the node.
        self.parents: Sequence[Node | None] | None = parents
        self.pullbacks: Sequence[Any] | None = pullbacks
        # Saved to detect in-place changes: a pullback whose array has changed would give a wrong gradient.
        self.versions = [(version, version[0]) for version in versions]
        self.tensor_ref: ReferenceType[HasGrad] | None = None  # the tensor whose .grad backward fills
        self.hooks: dict[object, Hook] | None = None  # in the order of registration

    def gradients(self, g: Array, retain_graph: bool) -> "Iterator[tuple[Node, Array]]":
        """Yield each operand's node and gradient. Frees each pullback after its call, unless `retain_graph`."""
        parents, pullbacks = self.parents, self.pullbacks
        if parents is None or pullbacks is None:
            raise RuntimeError(
                f"backward: the graph at {self.name!r} was freed by an earlier backward(); "
                "pass retain_graph=True to the earlier one"
            )
        for version, saved in self.versions:
            if version[0] != saved:
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
        # Pop each pullback and drop the tuple, so that the arrays that a pullback holds are freed right after its call.
        remaining = list(zip(parents, pullbacks, strict=True))[::-1]
        del pullbacks
        while remaining:
            parent, pull = remaining.pop()
            if parent is not None and pull is not None:
                yield parent, pull(g)

    def accumulate_grad(self, g: Array) -> Array:
        """Run the hooks on the complete gradient, add it to the tensor's `.grad`, and return it."""
        for hook in list(self.hooks.values()) if self.hooks else ():
            changed = hook(self.xp.exposed(self.xp.copy(g)))  # g may be shared, and a hook may write into it
            if changed is not None:
                # A scalar: of a 0-d array times two. An array of the root: within a transform.
                if self.xp.is_array(changed) or self.xp.root.is_array(changed) or isinstance(changed, Real):
                    changed = real_array(self.xp, changed, "register_hook")
                if not self.xp.is_array(changed) or changed.shape != self.shape:
                    raise ValueError(
                        f"register_hook: the hook of {self.name!r} must return None or an array of "
                        f"backend {self.xp.name!r} and shape {self.shape}"
                    )
                g = unbroadcast(self, changed, "register_hook")
        tensor = self.tensor_ref() if self.tensor_ref else None
        if tensor is not None:
            collected = _collected.get()
            if collected is not None and self.order < collected.since:
                old = collected[id(tensor)].grad if id(tensor) in collected else None
                collected[id(tensor)] = CollectedGrad(tensor, self.order, self.xp, _sum_of_grads(self.xp, old, g))
            else:
                _note_filled(tensor)
                tensor._grad = _sum_of_grads(self.xp, tensor._grad, g)
        return g


def _sum_of_grads(xp: Backend, old: Array | None, g: Array) -> Array:
    """g may be a view or shared with another tensor, so the result is a new array."""
    return xp.copy(g) if old is None else xp.asarray(xp.add(old, g))


class CollectedGrad(NamedTuple):
    """A leaf's gradient that is not yet in its tensor's `.grad`."""

    tensor: HasGrad
    order: int  # of its node
    xp: Backend
    grad: Array


class CollectedGrads(dict[int, CollectedGrad]):
    """The gradients of a `collect_grads`, by id of the tensor. Leaves created inside the block get `.grad` as usual."""

    def __init__(self) -> None:
        super().__init__()
        self.since = next(_order)  # nodes with a lower order existed before the block


@contextmanager
def collect_grads() -> Iterator[CollectedGrads]:
    """Inside the block, backward collects the gradients of leaves from before it, instead of adding them to `.grad`."""
    collected = CollectedGrads()
    token = _collected.set(collected)
    try:
        yield collected
    finally:
        _collected.reset(token)


def is_collecting() -> bool:
    """Whether the caller is inside `collect_grads`: in a part of `parallel_backward`, in one of several threads."""
    return _collected.get() is not None


def add_collected(collected: CollectedGrads) -> None:
    """Move the gradients of a `collect_grads` to the `.grad` of their tensors, or to the block around it.

    Each one is freed right after its addition.
    """
    outer = _collected.get()
    while collected:
        key, found = collected.popitem()
        tensor, order, xp, grad = found
        if outer is not None and order < outer.since:
            outer[key] = found._replace(grad=xp.asarray(xp.add(outer[key].grad, grad))) if key in outer else found
        else:
            tensor._grad = grad if tensor._grad is None else xp.asarray(xp.add(tensor._grad, grad))


@contextmanager
def track_filled_grads() -> "Iterator[dict[int, HasGrad]]":
    """Collect, by id, the tensors whose `.grad` backward fills inside the block.

    Inside the block, backward raises RuntimeError for a tensor that already had a gradient.
    """
    filled: dict[int, HasGrad] = {}
    token = _filled_grads.set(filled)
    try:
        yield filled
    finally:
        _filled_grads.reset(token)


def _note_filled(tensor: HasGrad) -> None:
    filled = _filled_grads.get()
    if filled is None:
        return
    if tensor._grad is not None and id(tensor) not in filled:
        raise RuntimeError(
            "backward: a tensor has a gradient from before the recorded step, so every replay would add that old "
            "value; call zero_grad() within the step, before backward()"
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
    """Return a node for `out`, or None if no operand needs a gradient. Pullbacks of other operands are dropped.

    For the caller to check: `is_grad_enabled`.
    """
    if not any(nodes):
        return None
    if len(pullbacks) == 1 and isinstance(pullbacks[0], Joint):
        return Node(name, xp, out, nodes, pullbacks, versions)
    if len(pullbacks) != len(nodes):
        raise TypeError(f"{name}: the rule has {len(nodes)} operands but returned {len(pullbacks)} pullbacks")
    needed = [pull if node is not None else None for node, pull in zip(nodes, pullbacks, strict=True)]
    found = False
    for pull in needed:
        if callable(pull):
            found = True
        elif pull is not None:
            raise TypeError(f"{name}: a pullback must be None or a function of the output's gradient, `lambda g: ...`")
    if not found:
        return None  # the op has no gradient: a comparison, a cast to integers
    return Node(name, xp, out, nodes, needed, versions)


def unbroadcast(operand: Node, g: Array, op: str) -> Array:
    """Sum a gradient over the axes along which its operand was broadcast, and cast it to the operand's dtype.

    Raises:
        ValueError: the operand's shape does not broadcast to the gradient's shape, so the rule of `op` is wrong.
    """
    xp, shape = operand.xp, operand.shape
    if g.shape != shape:
        extra = g.ndim - len(shape)
        if extra < 0 or any(n not in (1, m) for n, m in zip(shape, g.shape[extra:], strict=True)):
            raise ValueError(
                f"backward: {op!r} gave a gradient of shape {tuple(g.shape)} for an operand of shape {shape}"
            )
        stretched = [i + extra for i, n in enumerate(shape) if n == 1 and g.shape[i + extra] != 1]
        g = xp.reshape(xp.sum(g, axis=(*range(extra), *stretched)), shape)
    return g if xp.dtype(g) == operand.dtype else xp.astype(g, operand.dtype)


class Observer(Protocol):
    """What `backward` reports to: see `tracing.py`."""

    def arrived(self, node: Node, g: Array) -> None:
        """`node` has its complete gradient; its pullbacks run next."""

    def sent(self, node: Node, parent: Node, result: Array, part: Array, total: Array) -> None:
        """A pullback of `node` returned `result`; summed to the shape of `parent` it is `part`, and with the gradients
        that arrived there before, `total`."""


# Of the next call of `backward` in this thread.
observer: ContextVar[Observer | None] = ContextVar("russellgrad_observer", default=None)


def backward(root: Node, gradient: Array, retain_graph: bool) -> None:
    """Propagate `gradient` from `root` to the leaves, and add each leaf's gradient to the `.grad` of its tensor.

    Raises:
        RuntimeError: a node was freed by an earlier backward, or an array that it needs was changed in place.
    """
    grads: dict[int, Array] = {root.order: gradient}
    nodes: dict[int, Node] = {root.order: root}
    heap = [-root.order]
    report = observer.get()
    while heap:
        order = -heappop(heap)
        node, g = nodes.pop(order), grads.pop(order)
        g = node.accumulate_grad(g)
        if report is not None:
            report.arrived(node, g)
        for parent, result in node.gradients(g, retain_graph):
            part = unbroadcast(parent, result, node.name)
            if parent.order in grads:
                # Never +=: the rule of `add` returns the same array for both operands.
                grads[parent.order] = parent.xp.add(grads[parent.order], part)
            else:
                grads[parent.order] = part
            if report is not None:
                report.sent(node, parent, result, part, grads[parent.order])
            if parent.order not in nodes:
                nodes[parent.order] = parent
                heappush(heap, -parent.order)
            del result, part  # free them before the next pullback allocates


@contextmanager
def record_from(level: float) -> Iterator[None]:
    """Inside the block, record the operations at `level` and above, and no others."""
    token = _recorded_from.set(level)
    try:
        yield
    finally:
        _recorded_from.reset(token)


def recorded_from() -> float:
    """The level from which operations are recorded: 0, or infinity inside `no_grad()`; others inside transforms."""
    return _recorded_from.get()


@overload
def no_grad() -> Scope[None]: ...
@overload
def no_grad(function: Callable[P, R]) -> Callable[P, R]: ...
def no_grad(function: Callable[P, R] | None = None) -> Scope[None] | Callable[P, R]:
    """Disable gradient tracking, as a context manager, `with no_grad():`, or a decorator, `@no_grad()`.

    Operations inside record no graph, and new tensors do not require gradients. Decorates generator and coroutine
    functions, too: see `russellgrad.scope.Scope`. Transforms, such as `grad`, that are called inside work as outside;
    their results track no gradients. Raises TypeError for an argument that is not a function.
    """
    scope = Scope("no_grad", partial(record_from, inf))
    return scope if function is None else scope(function)


def is_grad_enabled(level: int = 0) -> bool:
    """Whether operations on tensors of this level record a graph: False inside `no_grad()`."""
    return level >= _recorded_from.get()
