"""A graph as HTML: a fragment for notebooks, which needs no script, and the page to step through.

Each box is laid out once, with the boxes inside it closed. Opening one shows its own picture.
"""

from collections.abc import Iterator
from importlib.resources import files

from .events import Arrival
from .explorer import Explorer
from .layout import Box, boxes_of, lay_out
from .node import Graph, escaped, path_of
from .page import content_policy
from .svg import STYLE, picture, title_of

PAGE_STYLE, SCRIPT = (
    files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("explorer.css", "explorer.js")
)


def fragment_of(graph: Graph) -> str:
    """The picture of the outermost box, and below it one element for each box inside, which opens."""
    return f'<div class="rg-document"><style>{STYLE}</style>{_opened(graph, boxes_of(graph)[()])}</div>'


def _opened(graph: Graph, box: Box) -> str:
    inner = "".join(
        f"<details><summary>{escaped(title_of(graph, child))}</summary>{_opened(graph, child)}</details>"
        for child in box.children
        if isinstance(child, Box)
    )
    return f'<div style="overflow-x:auto">{_picture(graph, box)}</div>{inner}'


def _picture(graph: Graph, box: Box) -> str:
    return picture(graph, lay_out(box, lambda _: False, lambda b: title_of(graph, b)))


def page_of(graph: Graph, arrivals: list[Arrival]) -> str:
    """A complete page, which loads nothing."""
    boxes = list(_all_boxes(boxes_of(graph)[()]))
    explorer = Explorer(graph, arrivals)
    views = "\n".join(
        f'<div class="view" data-path="{path_of(box.scope)}"{" hidden" if box.scope else ""}>'
        f"{_picture(graph, box)}</div>"
        for box in boxes
    )
    backward = len(explorer.steps) - boxes[0].count()
    facts = f"{boxes[0].size_text()} forward{f', {backward:,} steps backward' if backward else ''}. {graph.note()}"
    return _PAGE.format(
        policy=content_policy(SCRIPT), css=STYLE + PAGE_STYLE, facts=escaped(facts.strip()), views=views,
        data=explorer.json(boxes, lambda box: title_of(graph, box)), script=SCRIPT,
        last=max(0, len(explorer.steps) - 1),
    )  # fmt: skip


def _all_boxes(box: Box) -> Iterator[Box]:
    yield box
    for child in box.children:
        if isinstance(child, Box):
            yield from _all_boxes(child)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>Step through a graph</title>
<style>{css}</style>
</head>
<body>
<header>
<h1>Step through a graph</h1>
<p>{facts}</p>
<noscript><p>Steps and values need JavaScript. The picture below does not.</p></noscript>
</header>
<div class="controls" role="group" aria-label="Steps">
<button type="button" id="first" aria-keyshortcuts="Home">First</button>
<button type="button" id="back" aria-keyshortcuts="ArrowLeft">Back</button>
<button type="button" id="next" aria-keyshortcuts="ArrowRight">Next</button>
<button type="button" id="last" aria-keyshortcuts="End">Last</button>
<button type="button" id="turn">Backward</button>
<input type="range" id="step" min="0" max="{last}" value="0" aria-label="Step">
<p id="said" role="status"></p>
</div>
<main>
<section class="graph" aria-label="Graph">
<nav id="path" aria-label="Modules"></nav>
<div id="views" tabindex="0" role="region" aria-label="Picture">
{views}
</div>
<div id="inside" role="group" aria-label="Modules inside"></div>
<label class="follow"><input type="checkbox" id="follow" checked> Open the module of each step</label>
</section>
<section id="details" aria-label="This step"></section>
</main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""
