"""What a backward pass did, node by node."""

from dataclasses import dataclass

from .node import GraphNode
from .values import Values


@dataclass(eq=False)
class Contribution:
    """The gradient that one pullback sent to an operand.

    Attributes:
        position: the position of the operand.
        target: its node.
        part: the gradient, in the operand's shape.
        before: the sum of the gradients that had arrived there; None for the first.
        total: the sum with `part`.
        shape: the shape that the pullback returned. It differs from that of `part` if the operand was broadcast: the
            engine has summed over the broadcast axes.
    """

    position: int
    target: GraphNode
    part: Values
    before: Values | None
    total: Values
    shape: tuple[int, ...]


@dataclass(eq=False)
class Arrival:
    """A node that has its complete gradient, and what its pullbacks did.

    Attributes:
        node: the node.
        gradient: the sum of all its contributions, after the hooks.
        contributions: what the pullbacks sent, in order.
        frees: whether the pullbacks were freed: not if the graph is retained, nor of a leaf.
        freed: the arrays that they held, as text.
        fills: whether the gradient was added to `.grad` of a Tensor.
    """

    node: GraphNode
    gradient: Values
    contributions: list[Contribution]
    frees: bool
    freed: list[str]
    fills: bool
