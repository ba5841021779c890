"""Where a rule computes its output and its gradients: the text of the function, and the part of it that runs."""

import ast
import linecache
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any, TypeAlias

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """The text of a function, and where it is: `first` is the number of its first line."""

    file: str
    first: int
    text: str


@dataclass(frozen=True)
class Span:
    """A part of a source: from (line, column) up to (line, column), counted from 0 within its text."""

    source: Source
    start: tuple[int, int]
    end: tuple[int, int]

    @property
    def text(self) -> str:
        """The part itself."""
        lines = self.source.text.split("\n")[self.start[0] : self.end[0] + 1]
        lines[-1] = lines[-1][: self.end[1]]
        lines[0] = lines[0][self.start[1] :]
        return "\n".join(lines)

    @property
    def line(self) -> int:
        """The number of its first line in the file."""
        return self.source.first + self.start[0]


class Sources:
    """Finds and keeps the sources of functions. Returns None for a function whose source is not to be had."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[list[str], list[Function], list[ast.stmt]]] = {}
        self._spans: dict[CodeType, Span | None] = {}
        self._outputs: dict[tuple[CodeType, tuple[Span | None, ...]], Span | None] = {}

    def forward(self, rule: Any, pullbacks: Sequence[Span | None]) -> Span | None:
        """Where a rule computes its output: the first element of what it returns.

        Of several return statements, the one that ran is the one with the pullbacks that the rule returned.
        """
        code = _code(rule)
        if code is None:
            return None
        key = code, tuple(pullbacks)
        if key not in self._outputs:
            self._outputs[key] = self._forward(code, [span for span in pullbacks if span])
        return self._outputs[key]

    def pullback(self, function: Any) -> Span | None:
        """A pullback: a lambda or a function inside a rule."""
        code = _code(function)
        if code is None:
            return None
        if code not in self._spans:
            self._spans[code] = self._pullback(code)
        return self._spans[code]

    def _functions(self, file: str) -> tuple[list[str], list[Function], list[ast.stmt]]:
        """The lines of a file, its functions, and the statements outside of functions."""
        if file not in self._files:
            lines = linecache.getlines(file)
            try:
                tree = ast.parse("".join(lines))
            except (SyntaxError, ValueError):  # ValueError: it has null bytes
                lines, tree = [], ast.Module([], [])
            functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
            self._files[file] = lines, functions, tree.body
        return self._files[file]

    def _enclosing(self, code: CodeType) -> tuple[ast.stmt | None, list[str]]:
        """The outermost function with the first line of the code; of a lambda outside of functions, the statement."""
        lines, functions, statements = self._functions(code.co_filename)
        line = code.co_firstlineno
        for found in (functions, statements):
            around = [f for f in found if _first_line(f) <= line <= (f.end_lineno or 0)]
            if around:
                return min(around, key=_first_line), lines
        return None, lines

    def _forward(self, code: CodeType, pullbacks: list[Span]) -> Span | None:
        lines, functions, _ = self._functions(code.co_filename)
        mine = [f for f in functions if f.name == code.co_name and _first_line(f) == code.co_firstlineno]
        if not mine:
            return self._pullback(code)  # a lambda
        function = mine[0]
        returned = [node.value for node in _own_nodes(function) if isinstance(node, ast.Return) and node.value]
        first = _first_line(function)
        made = {span.start[0] + first for span in pullbacks if span.source.first == first}
        with_pullback = [value for value in returned if made & {*range(value.lineno, (value.end_lineno or 0) + 1)}]
        output = next(reversed(with_pullback or returned), None)
        if isinstance(output, ast.Tuple) and output.elts:
            output = output.elts[0]
        if isinstance(output, ast.Name):
            output = _assigned(function, output.id) or output
        return None if output is None else _span(code.co_filename, lines, function, output)

    def _pullback(self, code: CodeType) -> Span | None:
        function, lines = self._enclosing(code)
        if function is None:
            return None
        if code.co_name != "<lambda>":
            found = [node for node in ast.walk(function) if isinstance(node, Function) and node.name == code.co_name
                     and _first_line(node) == code.co_firstlineno]  # fmt: skip
            return _span(code.co_filename, lines, function, found[0]) if found else None
        places = [(line, column) for line, _, column, _ in code.co_positions() if line and column is not None]
        places = [place for place in places if place != (code.co_firstlineno, 0)]  # the start of the code itself
        fitting = [node for node in ast.walk(function) if isinstance(node, ast.Lambda) and _contains(node.body, places)]
        return _span(code.co_filename, lines, function, min(fitting, key=_length)) if fitting else None


def short_path(file: str, parts: int) -> str:
    """The last parts of a path. A cell of a notebook has a temporary file, whose name says nothing."""
    return "notebook cell" if "ipykernel_" in file else "/".join(Path(file).parts[-parts:])


def _code(function: Any) -> CodeType | None:
    code = getattr(function, "__code__", None)
    return code if isinstance(code, CodeType) else None


def _first_line(statement: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(decorator.lineno for decorator in decorators)])


def _own_nodes(function: Function) -> Iterator[ast.AST]:
    """The nodes of a function, in order, without those of the functions inside it."""
    pending: list[ast.AST] = []
    pending += function.body[::-1]
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, (*Function.__args__, ast.Lambda)):
            pending += list(ast.iter_child_nodes(node))[::-1]


def _assigned(function: Function, name: str) -> ast.expr | None:
    """The last value that the function assigns to a name."""
    found = None
    for node in _own_nodes(function):
        if isinstance(node, ast.Assign):
            targets = [t for target in node.targets for t in getattr(target, "elts", [target])]
            if any(isinstance(t, ast.Name) and t.id == name for t in targets):
                found = node.value
    return found


def _contains(body: ast.expr, places: list[tuple[int, int]]) -> bool:
    start, end = (body.lineno, body.col_offset), (body.end_lineno or 0, body.end_col_offset or 0)
    return bool(places) and all(start <= place <= end for place in places)


def _length(node: ast.Lambda) -> tuple[int, int]:
    lines = (node.body.end_lineno or 0) - node.body.lineno
    return lines, (node.body.end_col_offset or 0) - (0 if lines else node.body.col_offset)


def _span(file: str, lines: list[str], function: ast.stmt, part: ast.expr | Function) -> Span:
    first = _first_line(function)
    text = [line.rstrip("\n") for line in lines[first - 1 : function.end_lineno]]
    indent = min((len(line) - len(line.lstrip()) for line in text if line.strip()), default=0)
    source = Source(short_path(file, 2), first, "\n".join(line[indent:] for line in text))

    def place(line: int, column: int) -> tuple[int, int]:  # ast counts bytes
        return line - first, len(lines[line - 1].encode()[:column].decode()) - indent

    start = (_first_line(part), part.col_offset) if isinstance(part, Function) else (part.lineno, part.col_offset)
    return Span(source, place(*start), place(part.end_lineno or 0, part.end_col_offset or 0))
