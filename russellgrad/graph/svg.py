"""A graph as SVG: one picture of a box, with the boxes inside it open or closed."""

from collections.abc import Iterator
from importlib.resources import files
from itertools import pairwise

from .layout import (
    NODE_HEIGHT,
    SMALL_CHARACTER,
    Box,
    Placed,
    Point,
    boxes_of,
    columns,
    depth_to_open,
    lay_out,
    node_width,
)
from .node import Graph, GraphNode, escaped, path_of, shortened

VISIBLE = 40  # by default, boxes are open to the depth at which at most this many items are in the picture
STYLE = files(__package__).joinpath("graph.css").read_text(encoding="utf-8")


def svg_of(graph: Graph, depth: int | None = None) -> str:
    """The picture of a graph as a complete SVG document.

    Boxes are open to `depth`: 0 shows only the outermost modules, closed. By default, as many as fit.
    """
    opened = depth_to_open(graph, VISIBLE) if depth is None else depth
    placed = lay_out(boxes_of(graph)[()], lambda box: len(box.scope) <= opened, lambda box: title_of(graph, box))
    return picture(graph, placed, style=STYLE)


def title_of(graph: Graph, box: Box) -> str:
    """The name of a box with the class of its module: `blocks.0: Block`."""
    if not box.scope:
        return ""
    name, kind = box.scope[-1], graph.classes.get(box.scope, "")
    return shortened(name if name.split(" (")[0] == kind or not kind else f"{name}: {kind}")


def picture(graph: Graph, placed: Placed, style: str = "") -> str:
    """The SVG of a box that is laid out."""
    width, height = placed.width, placed.height + (22 if graph.note() else 0)
    labels = "".join(_port_labels(placed))
    top = 18 if labels else 0
    of = f" of {title_of(graph, placed.box)}" if placed.box.scope else ""
    label = f"Graph{of}: {placed.box.size_text()}. {graph.note()}".strip()
    note = f'<text class="note" x="8" y="{height - 8:.0f}">{escaped(graph.note())}</text>' if graph.note() else ""
    width = max(width, 7 * len(graph.note()) + 16)
    css = f"<style>{style}</style>" if style else ""
    body = "\n".join(_contents(graph, placed))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="rg-graph" role="img" aria-label="{escaped(label)}" '
        f'width="{width:.0f}" height="{height + top:.0f}" viewBox="0 {-top} {width:.0f} {height + top:.0f}">{css}\n'
        f"{labels}{body}\n{note}</svg>"
    )


def _port_labels(placed: Placed) -> Iterator[str]:
    """What enters a box that is shown by itself: the names of the nodes outside, as far as there is room."""
    right = 0.0
    for index, x in sorted(placed.entering.items(), key=lambda port: port[1]):
        title = placed.box.entering[index].title
        half = SMALL_CHARACTER * columns(title) / 2
        if x - half >= right and x + half <= placed.width:
            yield f'<text class="detail" x="{x:.1f}" y="-6">{escaped(title)}</text>'
            right = x + half + 6


def _contents(graph: Graph, placed: Placed) -> Iterator[str]:
    """The elements of a box: boxes inside it first, then edges, then nodes, so that no edge covers a text."""
    for item, x, y in placed.items:
        if isinstance(item, Placed):
            yield _box(graph, item, x, y)
    arrows = {(x, bottom) for _, points in placed.wires for x, bottom, _ in points[-1:]}
    wires: dict[int, list[list[Point]]] = {}
    for source, points in placed.wires:
        wires.setdefault(source, []).append(points)
    for source, of_source in wires.items():
        yield f'<path class="wire" data-from="{source}" d="{_path(of_source)}"/>'
    ports = {(x, 0.0) for x in placed.entering.values()} | {(x, placed.height) for x in placed.leaving.values()}
    for x, y in sorted(arrows - {(x, y) for x, y in arrows if y >= placed.height - 0.5 and placed.leaving}):
        yield f'<path class="arrow" d="M{x:.1f},{y:.1f}l-3.5,-7h7z"/>'
    for x, y in sorted(ports) if placed.box.scope else ():
        yield f'<circle class="port" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'
    for item, x, y in placed.items:
        if isinstance(item, GraphNode):
            yield node_element(graph, item, x, y)


def _box(graph: Graph, placed: Placed, x: float, y: float) -> str:
    box, title = placed.box, escaped(title_of(graph, placed.box))
    frame = f'<rect width="{placed.width:.1f}" height="{placed.height:.1f}" rx="6"/>'
    name = path_of(box.scope)
    place = f'data-box="{name}" transform="translate({x:.1f},{y:.1f})"'
    if placed.is_open:
        inner = "\n".join(_contents(graph, placed))
        return f'<g class="box" {place}>{frame}\n{inner}<text class="name" x="10" y="17">{title}</text></g>'
    middle = placed.width / 2
    return (
        f'<g class="box closed" {place}><title>{title}: {box.size_text()}</title>'
        f'<rect class="behind" x="3" y="3" width="{placed.width:.1f}" height="{placed.height:.1f}" rx="6"/>{frame}'
        f'<text x="{middle:.1f}" y="16">{title}</text>'
        f'<text class="detail" x="{middle:.1f}" y="29">{box.size_text()}</text></g>'
    )


def node_element(graph: Graph, node: GraphNode, x: float, y: float) -> str:
    """A node: a rectangle with its title and its shape."""
    width = node_width(node)
    kinds = [node.kind, *(["output"] if node in graph.outputs else [])]
    kinds += ["not-finite"] if node.value is not None and node.value.not_finite else []
    radius = 4 if node.kind in ("op", "unrecorded") else NODE_HEIGHT / 2
    return (
        f'<g class="node {" ".join(kinds)}" data-node="{node.index}" transform="translate({x:.1f},{y:.1f})">'
        f"<title>{escaped(node.description())}</title>"
        f'<rect width="{width:.1f}" height="{NODE_HEIGHT:.0f}" rx="{radius:.0f}"/>'
        f'<text x="{width / 2:.1f}" y="16">{escaped(node.title)}</text>'
        f'<text class="detail" x="{width / 2:.1f}" y="29">{escaped(node.detail)}</text></g>'
    )


def _path(wires: list[list[Point]]) -> str:
    """Smooth lines through the points, vertical at each of them. A part that several wires share is drawn once."""
    parts: dict[tuple[Point, Point, bool], str] = {}
    for points in wires:
        for i, (start, end) in enumerate(pairwise(points)):
            (x, _, y), (to_x, top, bottom) = start, end
            middle = (y + top) / 2
            text = f"M{x:.1f},{y:.1f}C{x:.1f},{middle:.1f} {to_x:.1f},{middle:.1f} {to_x:.1f},{top:.1f}"
            is_last = i == len(points) - 2
            parts[start, end, is_last] = text if is_last or bottom <= top else f"{text}V{bottom:.1f}"
    return "".join(parts.values())
