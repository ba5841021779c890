"""A graph as text for Graphviz: `dot -Tsvg graph.dot`."""

from collections.abc import Iterator

from .layout import Box, boxes_of
from .node import NOT_IN_XML, Graph, GraphNode
from .svg import title_of

_STYLES = {
    "op": 'shape=box, style="rounded,filled", fillcolor="#e3ecf8"',
    "leaf": 'shape=box, style="rounded,filled", fillcolor="#dcefdc"',
    "constant": 'shape=box, style="rounded,filled", fillcolor="#eeeff1"',
    "unrecorded": 'shape=box, style="rounded,dashed"',
}


def dot_of(graph: Graph) -> str:
    """The graph in the DOT language, with a cluster for each module."""
    lines = ["digraph {", "  node [fontname=monospace, fontsize=11];"]
    lines += _lines(graph, boxes_of(graph)[()], "  ")
    for node in graph.nodes:
        lines += [f"  n{source.index} -> n{node.index};" for source in node.sources]
    if graph.note():
        lines.append(f"  label={_quoted(graph.note())};")
    return "\n".join([*lines, "}", ""])


def _lines(graph: Graph, box: Box, indent: str) -> Iterator[str]:
    for child in box.children:
        if isinstance(child, GraphNode):
            text = _quoted(f"{child.title}\n{child.detail}")
            yield f"{indent}n{child.index} [label={text}, {_STYLES[child.kind]}];"
        else:
            name = _quoted("cluster " + "/".join(child.scope))
            yield f"{indent}subgraph {name} {{"
            yield f"{indent}  label={_quoted(title_of(graph, child))};"
            yield from _lines(graph, child, indent + "  ")
            yield f"{indent}}}"


def _quoted(text: str) -> str:
    escaped = NOT_IN_XML.sub("\ufffd", text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
