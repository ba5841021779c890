"""What the page needs to know of a graph and its backward passes, as JSON: nodes, steps, values and sources."""

import base64
import math
from collections.abc import Callable
from typing import Any

from .events import Arrival
from .layout import Box
from .node import Graph, GraphNode, path_of
from .page import json_for_script
from .source import Source, Span
from .values import Values

EXACT = 2**53  # larger integers have no exact number in JavaScript


class Explorer:
    """Collects values and sources, each of them once, and gives them numbers."""

    def __init__(self, graph: Graph, arrivals: list[Arrival]) -> None:
        self._graph = graph
        self._values: list[Any] = []
        self._sources: list[Any] = []
        self._value_numbers: dict[int, int] = {}
        self._source_numbers: dict[Source, int] = {}
        self.nodes = [self._node(node) for node in graph.nodes]
        self.steps: list[Any] = [{"node": node.index} for node in graph.nodes if node.kind == "op"]
        for arrival in arrivals:
            if arrival.node.index >= graph.offset:
                self.steps.append(self._arrival(arrival))

    def json(self, boxes: list[Box], title: Callable[[Box], str]) -> str:
        """The data as text that can stand in a script element."""
        data = {
            "nodes": self.nodes, "steps": self.steps, "values": self._values, "sources": self._sources,
            "boxes": [{"path": path_of(box.scope), "scope": box.scope, "title": title(box)} for box in boxes],
            "note": self._graph.note(),
        }  # fmt: skip
        return json_for_script(data)

    def _node(self, node: GraphNode) -> dict[str, Any]:
        return {
            "kind": node.kind, "name": node.name, "title": node.title, "label": node.label, "shape": node.shape,
            "dtype": node.dtype, "scope": path_of(node.scope), "parameters": node.parameters, "saved": node.saved,
            "operands": [o.index if isinstance(o, GraphNode) else o for o in node.operands],
            "value": self._value(node.value), "forward": self._span(node.forward), "place": node.place,
        }  # fmt: skip

    def _arrival(self, arrival: Arrival) -> dict[str, Any]:
        node = arrival.node
        contributions = []
        for c in arrival.contributions:
            span = node.pullbacks[c.position] if node.pullbacks else None  # none of an operation before the trace
            contributions.append({
                "operand": c.position, "to": c.target.index - self._graph.offset, "title": c.target.title,
                "part": self._value(c.part), "before": self._value(c.before), "total": self._value(c.total),
                "shape": c.shape, "span": self._span(span),
            })  # fmt: skip
        return {
            "node": node.index - self._graph.offset, "gradient": self._value(arrival.gradient),
            "contributions": contributions, "freed": arrival.freed, "frees": arrival.frees, "fills": arrival.fills,
        }  # fmt: skip

    def _value(self, value: Values | None) -> int | None:
        if value is None:
            return None
        if id(value) not in self._value_numbers:
            self._value_numbers[id(value)] = len(self._values)
            facts: dict[str, Any] = {
                "shape": value.shape, "dtype": value.dtype, "low": _number(value.low), "high": _number(value.high),
                "mean": _number(value.mean), "notFinite": value.not_finite,
            }  # fmt: skip
            if value.numbers is not None:
                facts["numbers"] = [_number(x) for x in value.numbers]
            else:
                grid = base64.b64encode(value.grid).decode()
                facts.update(grid=grid, rows=value.rows, columns=value.columns)
            self._values.append(facts)
        return self._value_numbers[id(value)]

    def _span(self, span: Span | None) -> list[int] | None:
        if span is None:
            return None
        source = span.source
        if source not in self._source_numbers:
            self._source_numbers[source] = len(self._sources)
            self._sources.append({"file": source.file, "first": source.first, "text": source.text})
        return [self._source_numbers[source], *span.start, *span.end]


def _number(x: float) -> float | str:
    """JSON has no nan, and JavaScript no large integers."""
    if isinstance(x, bool):
        return str(x)
    if isinstance(x, int):
        return x if abs(x) <= EXACT else str(x)
    return x if math.isfinite(x) else str(x)
