"""Sphinx extension: read the library's docstrings, which are plain text, as reStructuredText.

An indented block after a blank line is an example, so it becomes a block of code. Characters that mean something in
reStructuredText, such as `*` and `|`, are escaped. Sections such as "Args:" are left to sphinx.ext.napoleon.
"""

import re
from typing import Any

from sphinx.application import Sphinx

# Headings such as "Raises (when called):" become "Raises:", which napoleon knows.
RAISES = re.compile(r"^(\s*)(?:Raises(?: \([^)]+\)|, .+)|The .+ raises):(.*)$")
SECTION = re.compile(r"^\s*(Args|Returns|Raises|Attributes|Yields):\s*$")
NEXT_ERROR = re.compile(r"\. ([A-Z]\w+Error(?: \([^)]*\))?):")
COLON = "\ue000"  # for private use: no text has it
LITERAL = re.compile(r"(`[^`]*`)")
PAGE = re.compile(r"docs/(\w+)\.md")


def indent_of(line: str) -> int:
    return len(line) - len(line.lstrip())


def escape(line: str) -> str:
    """The line with *, | and trailing underscores escaped, except between backticks and in names such as *args."""
    parts = LITERAL.split(line)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"(?<!^)([*|])|(?<=\w)(_)(?!\w)", r"\\\1\2", parts[i])
        if i == 0 and re.match(r"\s*[*|]", parts[i]):
            parts[i] = re.sub(r"([*|])", r"\\\1", parts[i], count=1)
        parts[i] = PAGE.sub(r":doc:`/\1`", parts[i]).replace("->", "→")  # an arrow does not break
    return re.sub(r"(`[^`]+`)(?=\w)", r"\1\\ ", "".join(parts))  # `Tensor`s


def convert(lines: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText for napoleon."""
    result: list[str] = []
    base = 0  # the indent of the first line of the current paragraph or section
    in_code = False
    section: re.Match[str] | None = None
    for i, line in enumerate(lines):
        indent = indent_of(line)
        starts_paragraph = bool(line.strip()) and (not i or not lines[i - 1].strip())
        in_code = in_code and (indent > base or not line.strip())
        if starts_paragraph and not in_code:
            if indent > base:
                in_code = True
                result += [" " * base + ".. code-block:: python", ""]
            base = min(indent, base) if in_code else indent
        if line.strip() and not in_code:
            line = RAISES.sub(r"\1Raises:\2", line)
            section = SECTION.match(line) or (None if starts_paragraph else section)
            line = line if SECTION.match(line) else escape(line)
            if section and section[1] == "Raises" and indent > base:  # one entry a line
                line = NEXT_ERROR.sub(rf".\n{' ' * (base + 4)}\1:", line)
        result += line.split("\n")
    return result


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = convert(lines)
    if what == "property" and lines:  # napoleon would read "text: more text" as a type and a description
        lines[0] = lines[0].replace(":", COLON)


def restore(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [line.replace(COLON, ":") for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process, priority=400)  # before napoleon's 500
    app.connect("autodoc-process-docstring", restore, priority=550)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
