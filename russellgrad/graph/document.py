"""What traces and drawings have in common: how they are shown in a notebook and written to files."""

import os
from pathlib import Path

from ..serialization import replace_file
from .dot import dot_of
from .events import Arrival
from .html import fragment_of, page_of
from .node import Graph, GraphNode
from .svg import svg_of

DRAWN = 2_000  # nodes in a picture: more would be slow to show, and no one would read them


class Document:
    """A graph that can be shown and written, with the backward passes through it.

    Attributes:
        nodes: the operations and their inputs.
        arrivals: what happened in the backward passes, in the order of the engine: one entry for each node visited.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.arrivals: list[Arrival] = []

    @property
    def nodes(self) -> list[GraphNode]:
        """The operations and their inputs, every one after its operands."""
        return self._graph.nodes

    def svg(self, path: str | os.PathLike[str] | None = None, *, depth: int | None = None) -> str:
        """The picture as SVG text. Written to a file, too, if `path` is given.

        Args:
            path: the file to write.
            depth: how many levels of modules are open. 0 shows the outermost modules closed; by default, as many levels
                are open as give a picture of up to 40 items.

        Raises:
            ValueError: `depth` is negative. OSError: the file cannot be written.
        """
        if depth is not None and (isinstance(depth, bool) or not isinstance(depth, int) or depth < 0):
            raise ValueError(f"svg: depth must be an int of at least 0, got {depth!r}")
        return _write(path, svg_of(self._graph.last(DRAWN), depth))

    def dot(self, path: str | os.PathLike[str] | None = None) -> str:
        """The graph as text for Graphviz, with a cluster for each module. Written to a file, too, if `path` is given.

        Raises OSError if the file cannot be written.
        """
        return _write(path, dot_of(self._graph.last(DRAWN)))

    def html(self, path: str | os.PathLike[str]) -> Path:
        """Write a page to step through the operations and the backward pass in a browser. Return its path.

        The page is one file that needs no network. An existing file is replaced atomically. Raises OSError if it cannot
        be written.
        """
        _write(path, page_of(self._graph.last(DRAWN), self.arrivals))
        return Path(path)

    def _repr_svg_(self) -> str:
        return self.svg()

    def _repr_html_(self) -> str:
        return fragment_of(self._graph.last(DRAWN))


def _write(path: str | os.PathLike[str] | None, text: str) -> str:
    """Replace the file, if there is a path, and return the text. Raises OSError, which names the path."""
    if path is not None:
        try:
            replace_file(Path(path), text.encode("utf-8"))
        except OSError as error:  # it may name the temporary file
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    return text
