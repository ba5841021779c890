"""Sphinx extension: lessons. A `{lesson}` directive, and a notebook of each lesson beside its page.

A notebook has the cells of the page. What Jupyter does not know is replaced: included source becomes a block of code,
and an admonition becomes a paragraph.
"""

import ast
import re
import shutil
import textwrap
from pathlib import Path

import nbformat
from docutils import nodes
from myst_nb.core.read import read_myst_markdown_notebook
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.util.docutils import SphinxDirective

INCLUDE = re.compile(r"^```\{literalinclude\} (\S+)\n((?::[\w-]+:.*\n)*)```$", re.MULTILINE)
LESSON = re.compile(r"^```\{lesson\} (.+)\n```$", re.MULTILINE)
ADMONITION = re.compile(r"^:::\{admonition\} (.+)\n(?::[\w-]+:.*\n)*([\s\S]*?)^:::$", re.MULTILINE)
DIRECTIVE = re.compile(r"^[ \t]*(?:```|:::)+\{\S*|\{[a-z:]+\}(?=`)", re.MULTILINE)  # and roles
DOWNLOAD = re.compile(r"\{download\}(`[^`]+`)")
LESSON_LINK = re.compile(r"\]\((\d\d_\w+)\.md(#[^)]*)?\)")  # to the notebook beside this one
PAGE_LINK = re.compile(r"\]\(((?!https?:)[^)#]+)\.(?:md|rst)(#[^)]*)?\)")


class Lesson(SphinxDirective):
    """The time that a lesson takes, and a link to its notebook."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        notebook = Path(self.env.docname).name + ".ipynb"
        link = f'<a class="reference" href="{notebook}" download>Download this lesson as a notebook</a>.'
        return [nodes.paragraph("", "", nodes.Text(f"Time: {self.arguments[0]}. "), nodes.raw("", link, format="html"))]


def source_of(path: Path, name: str) -> str:
    """The lines of a function or a class, as literalinclude's `:pyobject:` finds them."""
    code = path.read_text(encoding="utf-8")
    body = ast.parse(code).body
    for part in name.split("."):
        named = (ast.FunctionDef, ast.ClassDef)
        found = [node for node in body if isinstance(node, named) and node.name == part]
        if not found:
            raise SphinxError(f"literalinclude: {path} has no function or class {name}")
        node = found[-1]
        body = node.body
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return textwrap.dedent("\n".join(code.splitlines()[first - 1 : node.end_lineno]))


def for_jupyter(text: str, folder: Path) -> str:
    """The text of a page's Markdown cell in standard Markdown."""

    def included(match: re.Match[str]) -> str:
        path, options = match.groups()
        if others := set(re.findall(r"^:([\w-]+):", options, re.MULTILINE)) - {"pyobject", "caption", "dedent"}:
            raise SphinxError(f"literalinclude: notebooks do not know the option {', '.join(sorted(others))}")
        name = re.search(r":pyobject: (\S+)", options)
        code = source_of(folder / path, name[1]) if name else (folder / path).read_text(encoding="utf-8")
        return f"From `{path.replace('../', '')}`:\n\n```python\n{code}\n```"

    text = INCLUDE.sub(included, text)
    text = LESSON.sub(r"Time: \1.", text)
    text = ADMONITION.sub(r"**\1** \2", text)
    text = DOWNLOAD.sub(r"\1", text)
    text = LESSON_LINK.sub(r"](\1.ipynb\2)", text)
    if left := DIRECTIVE.search(text):
        raise SphinxError(f"a lesson has {left[0]!r}, which its notebook would show as text; see docs/_ext/lessons.py")
    return PAGE_LINK.sub(r"](\1.html\2)", text)


def notebook_of(page: Path) -> nbformat.NotebookNode:
    """The notebook of a page, without outputs."""
    notebook = read_myst_markdown_notebook(page.read_text(encoding="utf-8"), path=page)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = for_jupyter(cell.source, page.parent)
        elif {"hide-cell", "hide-input", "remove-cell"} & set(cell.metadata.get("tags", [])):
            cell.metadata["jupyter"] = {"source_hidden": True}
    return notebook


def write_notebooks(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        for page in sorted((Path(app.srcdir) / "course").glob("[0-9]*.md")):
            nbformat.write(notebook_of(page), Path(app.outdir) / "course" / f"{page.stem}.ipynb")
        for text in (Path(app.srcdir) / "course").glob("*.txt"):
            shutil.copy(text, Path(app.outdir) / "course")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("lesson", Lesson)
    app.connect("build-finished", write_notebooks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
