"""Sphinx extension: run the example of each name in the API reference, and show it with what it returns.

A name without an example, and an example that raises an error, are warnings.
"""

import ast
import inspect
import textwrap
from typing import Any

import examples_of_names
from sphinx.application import Sphinx
from sphinx.util import logging

import russellgrad

logger = logging.getLogger(__name__)


def run(code: str) -> list[str]:
    """Run statements separated by "; ", and return the lines of an interactive session."""
    russellgrad.manual_seed(0)
    namespace: dict[str, Any] = {"rg": russellgrad, "Tensor": russellgrad.Tensor}
    *first, last = ast.parse(code).body
    exec(compile(ast.Module(first, []), "<example>", "exec"), namespace)
    shown = [f">>> {ast.get_source_segment(code, statement)}" for statement in (*first, last)]
    if not isinstance(last, ast.Expr):
        exec(compile(ast.Module([last], []), "<example>", "exec"), namespace)
        return shown
    value = eval(compile(ast.Expression(last.value), "<example>", "eval"), namespace)
    return shown if value is None else shown + repr(value).splitlines()


def find_example(name: str, what: str) -> str | None:
    """The example of a name. A method of Tensor may have the example of the function."""
    short = name.removeprefix("russellgrad.")
    examples = examples_of_names.EXAMPLES
    if what == "method" and short.startswith("Tensor."):
        return examples.get(short, examples.get(short.removeprefix("Tensor.")))
    return examples.get(short)


def add_example(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Append the example of a function, a class or a method of Tensor to its docstring."""
    is_method = what in ("method", "property", "attribute")
    if what not in ("function", "class", "exception", "method", "property"):
        return
    code = find_example(name, what)
    if code is None:
        if not is_method and inspect.getdoc(obj):
            logger.warning("%s has no example in docs/_ext/examples_of_names.py", name)
        return
    try:
        session = run(code)
    except Exception as error:
        logger.warning("the example of %s raises %s: %s", name, type(error).__name__, error)
        return
    lines += ["", ".. code-block:: pycon", "", *textwrap.indent("\n".join(session), "   ").splitlines(), ""]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", add_example, priority=600)  # after napoleon's 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
