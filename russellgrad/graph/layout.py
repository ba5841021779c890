"""A layered drawing of a graph (Sugiyama, Tagawa and Toda, 1981), with a box for each module.

A box is laid out by itself, and is then one item of the box around it. An edge that enters or leaves a box does so at a
port, a place on its top or bottom border. The layout of a box has these steps:

1. Layers: each item is below its operands. Inputs are just above their first use.
2. An edge over several layers gets a bend in each of them. The edges of one source share their bends.
3. Order within the layers: towards the mean position of the neighbors, down and up in turn. The order with the fewest
   crossings is kept.
4. Horizontal positions: towards the mean of the neighbors, by least squares without overlap (pool adjacent violators).
"""

from bisect import bisect_right, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias
from unicodedata import east_asian_width

from .node import Graph, GraphNode, Scope, common

CHARACTER, SMALL_CHARACTER = 7.3, 6.1  # widths in the two font sizes of a picture, which are monospaced
NODE_HEIGHT, PADDING, TITLE = 36.0, 12.0, 24.0
GAP, ROW_GAP = 18.0, 26.0  # between the items of a layer, and between layers
ORDER_SWEEPS, POSITION_SWEEPS = 8, 40
BENDS = 6_000  # in one box; the longest edges of a larger one go straight, behind the items, and do not move them
NUDGE = 1e-4  # how much the place of an edge's end on its item counts in the order, per unit of length

Key: TypeAlias = tuple[str, int] | tuple[str, int, int]
Point: TypeAlias = tuple[float, float, float]  # of a wire: x, and the y at which it arrives there and leaves


@dataclass(eq=False)
class Box:
    """The nodes and boxes of one scope, in the order in which they ran.

    `entering` has the nodes outside that have edges to the inside, and `leaving` those inside with edges to it.
    """

    scope: Scope
    children: "list[GraphNode | Box]" = field(default_factory=list)
    entering: dict[int, GraphNode] = field(default_factory=dict)
    leaving: dict[int, GraphNode] = field(default_factory=dict)

    def count(self) -> int:
        """The number of operations inside."""
        pending, found = [self], 0
        while pending:
            box = pending.pop()
            found += sum(isinstance(child, GraphNode) and child.kind == "op" for child in box.children)
            pending += [child for child in box.children if isinstance(child, Box)]
        return found

    def size_text(self) -> str:
        """The number of operations inside, as text."""
        n = self.count()
        return f"{n:,} operation{'s' if n != 1 else ''}"


@dataclass
class Placed:
    """A box with the positions of its items, relative to its top left corner."""

    box: Box
    width: float = 0.0
    height: float = 0.0
    items: "list[tuple[GraphNode | Placed, float, float]]" = field(default_factory=list)  # with left and top
    wires: list[tuple[int, list[Point]]] = field(default_factory=list)  # with the index of the source
    entering: dict[int, float] = field(default_factory=dict)  # x of the ports, by the index of the source
    leaving: dict[int, float] = field(default_factory=dict)
    is_open: bool = True


def boxes_of(graph: Graph) -> dict[Scope, Box]:
    """The box of each scope; that of () has everything."""
    boxes: dict[Scope, Box] = {(): Box(())}

    def box(scope: Scope) -> Box:
        if scope not in boxes:
            boxes[scope] = Box(scope)
            box(scope[:-1]).children.append(boxes[scope])
        return boxes[scope]

    for node in graph.nodes:
        box(node.scope).children.append(node)
        for source in node.sources:
            shared = common(source.scope, node.scope)
            for depth in range(shared + 1, len(node.scope) + 1):
                box(node.scope[:depth]).entering[source.index] = source
            for depth in range(shared + 1, len(source.scope) + 1):
                box(source.scope[:depth]).leaving[source.index] = source
    return boxes


def depth_to_open(graph: Graph, visible: int) -> int:
    """The greatest depth to which all boxes can be open with at most `visible` items in the picture. At least 0."""
    depths = [len(node.scope) for node in graph.nodes]
    scopes = {node.scope[:depth] for node in graph.nodes for depth in range(1, len(node.scope) + 1)}
    depth = 0
    while depth < max(depths, default=0):
        nodes = sum(d <= depth + 1 for d in depths)
        if nodes + sum(len(scope) == depth + 2 for scope in scopes) > visible:
            break
        depth += 1
    return depth


def lay_out(box: Box, is_open: Callable[[Box], bool], title: Callable[[Box], str]) -> Placed:
    """Place the items of a box. Boxes inside for which `is_open` is False are drawn closed, as one item.

    `title` is the text of a box, which must fit in it.
    """
    inside: dict[int, Placed] = {}
    for child in box.children:
        if isinstance(child, Box):
            inside[id(child)] = lay_out(child, is_open, title) if is_open(child) else _closed(child, title(child))
    return _Layout(box, inside, 2 * PADDING + CHARACTER * columns(title(box)) if box.scope else 0.0).placed()


def node_width(node: GraphNode) -> float:
    """The width of a node's rectangle."""
    return max(CHARACTER * columns(node.title), SMALL_CHARACTER * columns(node.detail), 24.0) + 16.0


def columns(text: str) -> int:
    """The width of a text in characters: those of Chinese, for example, take two columns."""
    return len(text) if text.isascii() else sum(2 if east_asian_width(c) in "WF" else 1 for c in text)


def _closed(box: Box, title: str) -> Placed:
    detail = box.size_text()
    width = max(CHARACTER * columns(title), SMALL_CHARACTER * len(detail)) + 32.0
    entering, leaving = (dict.fromkeys(ports, width / 2) for ports in (box.entering, box.leaving))
    return Placed(box, width, NODE_HEIGHT, entering=entering, leaving=leaving, is_open=False)


@dataclass(eq=False)
class _Vertex:
    """An item, a bend of edges, or a port."""

    width: float
    height: float
    rank: int = 0
    x: float = 0.0  # of the middle
    # The vertices above and below, with the x of the edge's end there, of its end here, and its weight.
    up: "list[tuple[_Vertex, float, float, int]]" = field(default_factory=list)
    down: "list[tuple[_Vertex, float, float, int]]" = field(default_factory=list)
    place: float = 0.0  # in its layer

    @property
    def is_bend(self) -> bool:
        return not self.height


class _Layout:
    """The steps for one box."""

    def __init__(self, box: Box, inside: dict[int, Placed], least_width: float) -> None:
        self.box, self.inside, self.least_width = box, inside, least_width
        self.vertices: dict[Key, _Vertex] = {}
        self.edges: list[tuple[Key, Key, int, float, float]] = []  # from, to, source, x of the ends in their items
        self._make_items()
        self._make_edges()
        self._rank()
        self._bend()

    def _make_items(self) -> None:
        self.home: dict[int, Key] = {}  # the vertex of a source: by its index
        for source in self.box.entering:
            self.vertices["in", source] = _Vertex(6.0, 0.0)
            self.home[source] = ("in", source)
        for i, child in enumerate(self.box.children):
            if isinstance(child, Box):
                placed = self.inside[id(child)]
                self.vertices["item", i] = _Vertex(placed.width, placed.height)
                self.home.update(dict.fromkeys(child.leaving, ("item", i)))
            else:
                self.vertices["item", i] = _Vertex(node_width(child), NODE_HEIGHT)
                self.home[child.index] = ("item", i)
        for source in self.box.leaving:
            self.vertices["out", source] = _Vertex(6.0, 0.0)

    def _make_edges(self) -> None:
        for i, child in enumerate(self.box.children):
            if isinstance(child, Box):
                placed = self.inside[id(child)]
                ends = [(source, x - placed.width / 2) for source, x in placed.entering.items()]
            else:
                sources, width = child.sources, min(node_width(child) - 16, 16.0 * len(child.sources))
                ends = [(s.index, width * ((k + 0.5) / len(sources) - 0.5)) for k, s in enumerate(sources)]
            for source, x in ends:
                self._edge(source, ("item", i), x)
        for source in self.box.leaving:
            self._edge(source, ("out", source), 0.0)

    def _edge(self, source: int, to: Key, x: float) -> None:
        start = self.home[source]
        if start == to:  # of a box whose result comes back to it
            return
        offset = 0.0
        if start[0] == "item" and isinstance(child := self.box.children[start[1]], Box):
            placed = self.inside[id(child)]
            offset = placed.leaving[source] - placed.width / 2
        self.edges.append((start, to, source, offset, x))

    def _rank(self) -> None:
        """The children are in the order in which they ran, so an operand comes before its uses. Inputs come first."""
        position = {key: 0 if key[0] == "in" else i for i, key in enumerate(self.vertices, 1)}
        for i, child in enumerate(self.box.children):
            if isinstance(child, GraphNode) and not child.sources:
                position["item", i] = 0
        into: dict[Key, list[Key]] = {key: [] for key in self.vertices}
        uses: dict[Key, list[Key]] = {key: [] for key in self.vertices}
        for start, to, *_ in self.edges:
            if position[start] < position[to]:
                into[to].append(start)
                uses[start].append(to)
        first = 1 if self.box.entering else 0
        for key, vertex in self.vertices.items():
            vertex.rank = 0 if key[0] == "in" else max([first, *(self.vertices[k].rank + 1 for k in into[key])])
        for key, vertex in self.vertices.items():
            if key[0] == "item" and not into[key] and uses[key]:
                vertex.rank = max(first, min(self.vertices[k].rank for k in uses[key]) - 1)
        last = max((v.rank for key, v in self.vertices.items() if key[0] == "item"), default=0) + 1
        for key, vertex in self.vertices.items():
            if key[0] == "out":
                vertex.rank = last
        # An edge against the order, of code that runs alternately inside and outside of a module, is not drawn.
        self.edges = [edge for edge in self.edges if self.vertices[edge[0]].rank < self.vertices[edge[1]].rank]

    def _bend(self) -> None:
        self.routes: list[tuple[int, list[Key], float, float]] = []
        seen: set[tuple[Key, Key]] = set()
        self.edges.sort(key=lambda edge: self.vertices[edge[1]].rank - self.vertices[edge[0]].rank)
        most = len(self.vertices) + BENDS
        for start, to, source, out, into in self.edges:
            route: list[Key] = [start]
            ranks = range(self.vertices[start].rank + 1, self.vertices[to].rank)
            if len(self.vertices) + len(ranks) > most:
                self.routes.append((source, [start, to], out, into))
                continue
            for rank in ranks:
                key: Key = ("bend", source, rank)
                if key not in self.vertices:
                    self.vertices[key] = _Vertex(4.0, 0.0, rank)
                route.append(key)
            route.append(to)
            self.routes.append((source, route, out, into))
            for i, (one, other) in enumerate(pairwise(route)):
                if (one, other) in seen and other != to:
                    continue
                seen.add((one, other))
                a, b = self.vertices[one], self.vertices[other]
                at_a, at_b = out if i == 0 else 0.0, into if other == to else 0.0
                weight = 8 if a.is_bend and b.is_bend else 3 if a.is_bend or b.is_bend else 1
                a.down.append((b, at_b, at_a, weight))
                b.up.append((a, at_a, at_b, weight))
        n = max((vertex.rank for vertex in self.vertices.values()), default=-1) + 1
        self.layers: list[list[_Vertex]] = [[] for _ in range(n)]
        for vertex in self.vertices.values():
            self.layers[vertex.rank].append(vertex)

    def placed(self) -> Placed:
        self._order()
        self._position()
        return self._result()

    def _order(self) -> None:
        best, fewest = [list(layer) for layer in self.layers], None
        self._number()
        for sweep in range(ORDER_SWEEPS):
            down = sweep % 2 == 0
            for layer in self.layers if down else self.layers[::-1]:
                for vertex in layer:
                    near = vertex.up if down else vertex.down
                    if near:
                        vertex.place = sum(v.place + NUDGE * at for v, at, _, _ in near) / len(near)
                layer.sort(key=lambda vertex: vertex.place)
                _number_layer(layer)
            crossings = sum(map(_crossings, self.layers))
            if fewest is None or crossings < fewest:
                best, fewest = [list(layer) for layer in self.layers], crossings
            if not crossings:
                break
        self.layers = best

    def _number(self) -> None:
        for layer in self.layers:
            _number_layer(layer)

    def _position(self) -> None:
        for layer in self.layers:
            at = 0.0
            for vertex in layer:
                vertex.x = at + vertex.width / 2
                at += vertex.width + GAP
        for sweep in range(POSITION_SWEEPS):
            for layer in self.layers if sweep % 2 else self.layers[::-1]:
                for vertex, x in zip(layer, _without_overlap(layer), strict=True):
                    vertex.x = x

    def _result(self) -> Placed:
        everything = self.vertices.values()
        left = min((v.x - v.width / 2 for v in everything), default=0.0)
        width = max((v.x + v.width / 2 for v in everything), default=0.0) - left
        wide = max(width + 2 * PADDING, self.least_width)
        shift = (wide - width) / 2 - left
        tops, heights, top = [], [], TITLE + 6 if self.box.scope else PADDING
        for rank, layer in enumerate(self.layers):
            height = max((v.height for v in layer), default=0.0)
            border = all(key[0] in ("in", "out") for key, v in self.vertices.items() if v.rank == rank)
            tops.append(0.0 if border and not rank and self.box.entering else top)
            heights.append(height)
            top += height + (ROW_GAP if not border or rank else 4.0)
        has_exit_row = bool(self.box.leaving)
        bottom = (top - ROW_GAP if has_exit_row else top - ROW_GAP + PADDING) if self.layers else top
        placed = Placed(self.box, wide, bottom)
        for i, child in enumerate(self.box.children):
            vertex = self.vertices["item", i]
            y = tops[vertex.rank] + (heights[vertex.rank] - vertex.height) / 2
            item = self.inside[id(child)] if isinstance(child, Box) else child
            placed.items.append((item, vertex.x + shift - vertex.width / 2, y))
        placed.entering = {source: self.vertices["in", source].x + shift for source in self.box.entering}
        placed.leaving = {source: self.vertices["out", source].x + shift for source in self.box.leaving}
        for source, route, out, into in self.routes:
            points = []
            for key in route:
                v = self.vertices[key]
                row, height = tops[v.rank], heights[v.rank]
                y = row + (height - v.height) / 2
                is_item = key[0] == "item"
                x = v.x + shift + (out if key == route[0] else into if key == route[-1] else 0.0)
                points.append((x, y if is_item else row, y + v.height if is_item else row + height))
            placed.wires.append((source, points))
        return placed


def _number_layer(layer: list[_Vertex]) -> None:
    for i, vertex in enumerate(layer):
        vertex.place = i / max(1, len(layer) - 1)


def _crossings(layer: list[_Vertex]) -> int:
    """The crossings of the edges from a layer to the next."""
    ends: list[float] = []
    found = 0
    for vertex in layer:
        below = [v.place + NUDGE * there for v, there, _, _ in sorted(vertex.down, key=lambda edge: edge[2])]
        found += sum(len(ends) - bisect_right(ends, place) for place in below)
        for place in below:
            insort(ends, place)
    return found


def _without_overlap(layer: list[_Vertex]) -> Iterator[float]:
    """The positions nearest to the means of the neighbors, in the order of the layer."""
    blocks: list[tuple[float, int, list[float]]] = []  # mean, number, the distances from the first vertex
    distance, previous = 0.0, None
    for vertex in layer:
        near = [*vertex.up, *vertex.down]
        total = sum(weight for *_, weight in near)
        wanted = sum(weight * (v.x + there - here) for v, there, here, weight in near) / total if near else vertex.x
        if previous is not None:
            distance += (previous.width + vertex.width) / 2 + GAP
        previous = vertex
        mean, number, distances = wanted - distance, 1, [distance]
        while blocks and blocks[-1][0] > mean:
            m, n, before = blocks.pop()
            mean, number, distances = (m * n + mean * number) / (n + number), n + number, before + distances
        blocks.append((mean, number, distances))
    for mean, _, distances in blocks:
        yield from (mean + d for d in distances)
