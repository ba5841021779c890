"""The graph to draw: its nodes in the order in which they were made, and the modules that group them."""

import re
from dataclasses import dataclass, field
from html import escape
from typing import TypeAlias
from urllib.parse import quote

from .source import Span
from .values import Values

# The modules in which an operation ran, from the outermost: ("Transformer", "blocks.0", "attention"). The second call
# of a module within the same call of its parent is another scope: "dropout (2)".
Scope: TypeAlias = tuple[str, ...]

TITLE_LENGTH = 60  # longer labels and names of modules are shortened
NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(eq=False)
class GraphNode:
    """An operation or an input. Nodes link to their operands only, so there are no reference cycles.

    Attributes:
        index: the position in `Graph.nodes`.
        kind: "op"; "leaf", an input that tracks gradients; "constant", one that does not; or "unrecorded", the result
            of an operation from before the trace, or one that was changed in place.
        name: the name of the op, or the kind.
        shape, dtype: of the output.
        operands: the nodes of the operands; numbers, and None for an operand that was left out, as text.
        label: the name of the Tensor or parameter, if it has one.
        scope: the names of the modules that it ran in, outermost first.
        parameters: the parameters of the op as text, such as {"axis": "-1"}.
        value: the output, if it is known.
        forward: where the rule computes the output.
        pullbacks: where the rule computes the gradient of each operand; None where there is none. A joint pullback,
            which serves all operands, is there for each of them.
        saved: the arrays that the pullbacks hold until backward, as text.
        place: the line that called the operation: the name of its file, its number and its text.
    """

    index: int
    kind: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    operands: "list[GraphNode | str]" = field(default_factory=list)
    label: str = ""
    scope: Scope = ()
    parameters: dict[str, str] = field(default_factory=dict)
    value: Values | None = None
    forward: Span | None = None
    pullbacks: list[Span | None] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    place: tuple[str, int, str] | None = None

    @property
    def sources(self) -> "list[GraphNode]":
        """The operands that are nodes."""
        return [operand for operand in self.operands if isinstance(operand, GraphNode)]

    @property
    def title(self) -> str:
        """The label of an input; the name of an op with the numbers among its operands, `power(·, 2)`. Shortened."""
        if self.kind in ("leaf", "constant"):
            return shortened(self.label or self.name)
        if all(isinstance(operand, GraphNode) for operand in self.operands) or not self.operands:
            return shortened(self.name)
        return shortened(f"{self.name}({', '.join('·' if isinstance(o, GraphNode) else o for o in self.operands)})")

    @property
    def detail(self) -> str:
        """The shape, or the value of a tensor with one element."""
        if self.value is not None and self.value.size == 1 and len(self.shape) < 2:
            return f"{self.value.text()}"
        return shape_text(self.shape)

    def description(self) -> str:
        """One line for a reader of the picture who cannot see it."""
        operands = ", ".join(o.title if isinstance(o, GraphNode) else o for o in self.operands)
        text = f"{self.name}({operands})" if self.operands else self.title
        facts = [f"shape {shape_text(self.shape)}", self.dtype, *(f"{k}={v}" for k, v in self.parameters.items())]
        if self.label and self.label != text:
            facts.insert(0, self.label)
        return f"{text}: {', '.join(facts)}{'' if self.value is None else f'; {self.value.summary()}'}"


def shortened(text: str, length: int = TITLE_LENGTH) -> str:
    """The text, or its beginning and "…"."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def escaped(text: str) -> str:
    """The text for XML and HTML. Characters that XML does not allow, such as NUL, are replaced."""
    return escape(NOT_IN_XML.sub("\ufffd", text))


def path_of(scope: Scope) -> str:
    """The scope as a text, another one for each scope: a "/" in a name is escaped."""
    return "/".join(quote(name, safe=" ()", errors="surrogatepass") for name in scope)


def shape_text(shape: tuple[int, ...]) -> str:
    """The shape as NumPy prints it, with a no-break space: it is one word."""
    return str(tuple(shape)).replace(" ", "\u00a0")


@dataclass
class Graph:
    """What to draw.

    Attributes:
        nodes: every node after its operands.
        classes: the class name of the module of each scope.
        omitted: the number of nodes left out.
        outputs: the nodes to mark as results.
        offset: the number of nodes left out at the start, by `last`.
    """

    nodes: list[GraphNode] = field(default_factory=list)
    classes: dict[Scope, str] = field(default_factory=dict)
    omitted: int = 0
    outputs: list[GraphNode] = field(default_factory=list)
    offset: int = 0

    def note(self) -> str:
        """What the picture leaves out, as a sentence; empty if it is complete."""
        return f"{self.omitted:,} more node{'s are' if self.omitted > 1 else ' is'} left out." if self.omitted else ""

    def last(self, limit: int) -> "Graph":
        """The graph of its last `limit` nodes, or itself. Operands before them become text: "..."."""
        if len(self.nodes) <= limit:
            return self
        kept = self.nodes[-limit:]
        nodes: dict[int, GraphNode] = {}
        for i, node in enumerate(kept):
            operands = [nodes.get(o.index, "…") if isinstance(o, GraphNode) else o for o in node.operands]
            nodes[node.index] = GraphNode(**{**vars(node), "index": i, "operands": operands})
        outputs = [nodes[node.index] for node in self.outputs if node.index in nodes]
        return Graph(list(nodes.values()), self.classes, self.omitted + len(self.nodes) - limit, outputs, kept[0].index)


def common(a: Scope, b: Scope) -> int:
    """The number of scopes that contain both."""
    n = 0
    for one, other in zip(a, b, strict=False):
        if one != other:
            break
        n += 1
    return n
