"""A graph as HTML: a fragment for notebooks, and a page. Each box is shown once; it opens below its parent."""

from html import escape

from .events import Arrival
from .layout import Box, boxes_of, lay_out
from .node import Graph
from .svg import STYLE, picture, title_of


def fragment_of(graph: Graph) -> str:
    """The picture of the outermost box, and below it one element for each box inside, which opens. Needs no script."""
    return f'<div class="rg-document"><style>{STYLE}</style>{_opened(graph, boxes_of(graph)[()])}</div>'


def page_of(graph: Graph, arrivals: list[Arrival]) -> str:
    """A complete page."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Graph</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"></head>\n'
        f"<body>{fragment_of(graph)}</body></html>\n"
    )


def _opened(graph: Graph, box: Box) -> str:
    placed = lay_out(box, lambda _: False, lambda b: title_of(graph, b))
    inner = "".join(
        f"<details><summary>{escape(title_of(graph, child))}</summary>{_opened(graph, child)}</details>"
        for child in box.children
        if isinstance(child, Box)
    )
    return f'<div class="rg-scroll">{picture(graph, placed)}</div>{inner}'
