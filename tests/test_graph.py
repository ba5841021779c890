"""Pictures of graphs: the layout, SVG and Graphviz text."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import russellgrad as rg
from russellgrad import Tensor, draw, layers, trace
from russellgrad.graph import layout
from russellgrad.graph.layout import BENDS, NODE_HEIGHT, Placed, boxes_of, depth_to_open, lay_out, node_width
from russellgrad.graph.node import Graph, GraphNode, common
from russellgrad.graph.svg import svg_of, title_of
from tests.helpers import once, rng
from tests.page import EVIL

pytestmark = once
SVG = "{http://www.w3.org/2000/svg}"


def random_graph(seed: int, size: int = 60, names: str = "abc", depth: int = 3) -> Graph:
    """Operations on earlier nodes, in modules that are entered and left like calls."""
    draws, calls = rng(seed), 0
    nodes: list[GraphNode] = []
    scope: list[str] = []
    for i in range(size):
        if len(scope) < depth and draws.random() < 0.3:
            calls += 1
            scope = [*scope, f"{draws.choice(list(names))} ({calls})"]
        elif scope and draws.random() < 0.3:
            scope = scope[:-1]
        operands = [nodes[j] for j in draws.integers(max(0, i - 12), i, size=draws.integers(0, 4))] if i else []
        kind = "op" if operands else "leaf"
        nodes.append(GraphNode(i, kind, f"op{i}", (i, 2), "float64", list(operands), scope=tuple(scope)))
    return Graph(nodes, outputs=nodes[-1:])


def placed(graph: Graph, depth: int) -> Placed:
    return lay_out(boxes_of(graph)[()], lambda box: len(box.scope) <= depth, lambda box: title_of(graph, box))


def rectangles(
    item: Placed, x: float = 0.0, y: float = 0.0
) -> Iterator[tuple[Any, float, float, float, float, Placed]]:
    """Each item in a box and the open boxes inside: the item, left, top, right, bottom, and the box around it."""
    for child, left, top in item.items:
        size = (child.width, child.height) if isinstance(child, Placed) else (node_width(child), NODE_HEIGHT)
        yield child, x + left, y + top, x + left + size[0], y + top + size[1], item
        if isinstance(child, Placed):
            yield from rectangles(child, x + left, y + top)


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_items_do_not_overlap_and_boxes_contain_theirs(seed: int, depth: int) -> None:
    whole = placed(random_graph(seed), depth)
    siblings: dict[int, list[tuple[float, float, float, float]]] = {}
    for _, left, top, right, bottom, around in rectangles(whole):
        siblings.setdefault(id(around), []).append((left, top, right, bottom))
        assert left >= -0.1 and top >= -0.1 and right <= whole.width + 0.1 and bottom <= whole.height + 0.1
    for boxes in siblings.values():
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                assert a[2] <= b[0] + 0.1 or b[2] <= a[0] + 0.1 or a[3] <= b[1] + 0.1 or b[3] <= a[1] + 0.1
    for child, left, top, right, bottom, _ in rectangles(whole):
        if isinstance(child, Placed) and child.is_open:
            for _, x0, y0, x1, y1, _ in rectangles(child, left, top):
                assert left <= x0 and top <= y0 and x1 <= right and y1 <= bottom


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_every_edge_goes_down_from_its_source_to_its_use(seed: int, depth: int) -> None:
    graph = random_graph(seed)
    whole = placed(graph, depth)
    boxes = [whole, *(item for item, *_ in rectangles(whole) if isinstance(item, Placed) and item.is_open)]
    for box in boxes:
        starts = {(round(x, 3), round(y, 3)) for x, y in outlets(box)}
        ends = {(round(x, 3), round(y, 3)) for x, y in inlets(box)}
        for _, points in box.wires:
            assert all(a[2] <= b[1] + 0.01 for a, b in pairwise(points)), "a wire goes up"
            assert near((points[0][0], points[0][2]), starts) and near((points[-1][0], points[-1][1]), ends)
    if depth == 3:  # an edge has a wire in each box that it is in, from the box of its source to that of its use
        wires = {(s.index, n.index): len(s.scope) + len(n.scope) - 2 * common(s.scope, n.scope) + 1
                 for n in graph.nodes for s in n.sources}  # fmt: skip
        assert max(wires.values()) > 2
        assert {s for s, _ in wires} == {source for box in boxes for source, _ in box.wires}


def near(point: tuple[float, float], points: set[tuple[float, float]]) -> bool:
    return any(abs(point[0] - x) < 60 and abs(point[1] - y) < 0.01 for x, y in points)


def outlets(box: Placed) -> Iterator[tuple[float, float]]:
    """Where edges may start: below items, and at ports on the top border."""
    yield from ((x, 0.0) for x in box.entering.values())
    for item, left, _, right, bottom, around in rectangles(box):
        if around is box:
            if isinstance(item, Placed):
                yield from ((left + x, bottom) for x in item.leaving.values())
            else:
                yield (left + right) / 2, bottom


def inlets(box: Placed) -> Iterator[tuple[float, float]]:
    """Where edges may end: above items, and at ports on the bottom border."""
    yield from ((x, box.height) for x in box.leaving.values())
    for item, left, top, right, _, around in rectangles(box):
        if around is box:
            if isinstance(item, Placed):
                yield from ((left + x, top) for x in item.entering.values())
            else:
                yield (left + right) / 2, top


@pytest.mark.parametrize("seed", range(4))
def test_svg_has_each_node_once_and_an_edge_from_each_source(seed: int) -> None:
    graph = random_graph(seed)
    root = ElementTree.fromstring(svg_of(graph, depth=9))
    shown = [int(g.attrib["data-node"]) for g in root.iter(f"{SVG}g") if "data-node" in g.attrib]
    assert sorted(shown) == list(range(len(graph.nodes)))
    sources = {s.index for node in graph.nodes for s in node.sources}
    assert {int(p.attrib["data-from"]) for p in root.iter(f"{SVG}path") if "data-from" in p.attrib} == sources
    closed = ElementTree.fromstring(svg_of(graph, depth=0))
    assert len([g for g in closed.iter(f"{SVG}g") if "data-node" in g.attrib]) == sum(not n.scope for n in graph.nodes)


def test_depth_by_default_shows_a_readable_number_of_items() -> None:
    model = layers.Sequential(*(layers.Sequential(*(layers.Linear(2, 2) for _ in range(12))) for _ in range(4)))
    with trace() as t:
        model(Tensor(np.ones((1, 2))))
    assert depth_to_open(t._graph, 40) == 1
    assert t.svg() == t.svg(depth=1)
    assert t.svg().count('class="box closed"') == 4
    assert t.svg(depth=2).count('class="box closed"') == 48
    assert "closed" not in t.svg(depth=3).split("</style>")[1]


def test_text_is_escaped() -> None:
    x = Tensor([1.0], label=EVIL)
    with trace() as t:
        y = x * 2
    for svg in (t.svg(), draw(y).svg(), t._repr_html_().replace('<div class="rg-document">', "<div>")):
        assert "<script" not in svg and "<img" not in svg
    root = ElementTree.fromstring(t.svg())
    assert f"{EVIL[:59]}…" in [text.text for text in root.iter(f"{SVG}text")]
    assert any(EVIL in (title.text or "") for title in root.iter(f"{SVG}title"))
    x.label = '"a"\nb'
    with trace() as t:
        x * 2
    assert '\\"' in t.dot() and "\n" not in t.dot().split("[label=")[1].split("];")[0]


def test_labels_that_xml_does_not_allow() -> None:
    with trace() as t:
        Tensor([1.0], label="a\x00b\x1b\ud800") * 2
    root = ElementTree.fromstring(t.svg())
    assert "a\ufffdb\ufffd\ufffd" in [text.text for text in root.iter(f"{SVG}text")]
    for text in (t.svg(), t.dot(), t._repr_html_()):
        assert "\x00" not in text and text.encode("utf-8")


def test_long_labels_are_shortened_and_wide_characters_fit() -> None:
    with trace() as t:
        Tensor([1.0], label="w" * 10_000) * 2
    root = ElementTree.fromstring(t.svg())
    assert float(root.attrib["width"]) < 600
    assert any("w" * 10_000 in (title.text or "") for title in root.iter(f"{SVG}title"))
    wide, narrow = (GraphNode(0, "leaf", "leaf", (), "float64", label=label) for label in ("名前名前", "name"))
    assert node_width(wide) > 1.5 * node_width(narrow)


def test_pictures_have_names() -> None:
    with trace() as t:
        Tensor([1.0], label="x") * 2
    root = ElementTree.fromstring(t.svg())
    assert root.attrib["role"] == "img" and root.attrib["aria-label"] == "Graph: 1 operation."
    assert "multiply(x, 2): shape (1,), float64; value 2" in [e.text for e in root.iter(f"{SVG}title")]


def test_dot_has_clusters_and_edges() -> None:
    model = layers.Sequential(layers.Linear(2, 2), layers.ReLU())
    with trace() as t:
        model(Tensor(np.ones((1, 2)), label="x"))
    text = t.dot()
    assert text.count("subgraph") == 3 == text.count("}") - 1
    assert text.count("->") == sum(len(node.sources) for node in t.nodes)


def test_an_input_is_just_above_its_first_use() -> None:
    a, b = (GraphNode(i, "leaf", "leaf", (), "float64", label="ab"[i]) for i in range(2))
    first = GraphNode(2, "op", "first", (), "float64", [a])
    second = GraphNode(3, "op", "second", (), "float64", [first])
    third = GraphNode(4, "op", "third", (), "float64", [second, b])
    last = GraphNode(5, "op", "last", (), "float64", [third, b])
    tops = {item.title: top for item, _, top, *_ in rectangles(placed(Graph([a, b, first, second, third, last]), 0))}
    assert tops["a"] < tops["first"] < tops["second"] == tops["b"] < tops["third"] < tops["last"]


def test_the_order_of_a_layer_avoids_crossings(monkeypatch: pytest.MonkeyPatch) -> None:
    def crossings(sweeps: int) -> int:
        monkeypatch.setattr(layout, "ORDER_SWEEPS", sweeps)
        found = 0
        for seed in range(6):
            one = layout._Layout(boxes_of(random_graph(seed, depth=0))[()], {}, 0.0)
            one._order()
            one._number()
            found += sum(map(layout._crossings, one.layers))
        return found

    none, first, all_of_them = crossings(0), crossings(1), crossings(8)
    assert all_of_them < 0.9 * first < 0.5 * none


def test_an_edge_against_the_order_is_left_out() -> None:
    """Code that runs alternately inside and outside of one call cannot be drawn as one box with edges downward."""
    a = GraphNode(0, "leaf", "a", (), "float64", scope=("m",))
    b = GraphNode(1, "op", "b", (), "float64", [a])
    c = GraphNode(2, "op", "c", (), "float64", [b, a], scope=("m",))
    for depth in (0, 1):
        ElementTree.fromstring(svg_of(Graph([a, b, c]), depth))


def test_empty_graphs_and_single_nodes() -> None:
    with trace() as t:
        pass
    assert Graph(omitted=1).note() == "1 more node is left out."
    assert "0 operations" in t.svg() and t.dot().startswith("digraph")
    assert len(draw(Tensor([1.0])).nodes) == 1
    assert rg.draw(Tensor([1.0]))._repr_svg_().startswith("<svg")


def test_a_layout_of_2000_nodes_in_one_box() -> None:
    graph = random_graph(0, size=2000, depth=0)
    assert len(list(rectangles(placed(graph, 0)))) == 2000


def test_long_edges_of_a_large_box_have_no_bends() -> None:
    """The first nodes are operands of all others, as the weights of a recurrent layer."""
    nodes = [GraphNode(i, "leaf", "w", (), "float64") for i in range(30)]
    for i in range(30, 1000):
        nodes.append(GraphNode(i, "op", "op", (), "float64", [nodes[i % 30], nodes[i - 1]]))
    whole = placed(Graph(list(nodes)), 0)
    assert len(whole.wires) == 2 * 970
    assert all(points[0][2] < points[-1][1] for _, points in whole.wires)
    assert sum(len({*points[1:-1]}) for _, points in whole.wires) > BENDS / 2
    assert len({(source, point) for source, points in whole.wires for point in points[1:-1]}) <= BENDS
