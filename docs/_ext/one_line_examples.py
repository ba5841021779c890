"""Sphinx extension: run the example of each name in the API reference, and show it with what it returns.

A name without an example, and an example that raises an error, are warnings.
"""

import inspect
import re
import textwrap
from typing import Any

from examples_of_names import find_example, run
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

KINDS = ("function", "class", "exception", "method", "property")
BLOCK = re.compile(r"\.\. code-block:: python\n\n((?:[ ]+\S.*\n|\n)+)")


def runs(block: str, session: list[str]) -> bool:
    """Whether a session runs the code of a block in a docstring, apart from comments and `rg.`.

    It replaces a block of one line in any case: two examples of one line would show the same.
    """
    if len(block.split("\n")) < 4:  # the line and two line breaks
        return True

    def words(code: str) -> str:
        return re.sub(r"#.*|\b(rg|russellgrad)\.|\s", "", code)

    return words(block) in words("\n".join(line[4:] for line in session if line[:3] in (">>>", "...")))


def add_example(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Append the example of a name to its docstring, in place of a block of code that it runs."""
    short = name.removeprefix("russellgrad.")
    if what not in KINDS or not inspect.getdoc(obj):
        return
    code = find_example(short)
    if code is None:
        logger.warning("%s has no example in docs/_ext/examples_of_names.py", name)
    elif not short.endswith(".forward"):
        try:
            session = run(code)
        except Exception as error:
            logger.warning("the example of %s raises %s: %s", name, type(error).__name__, error)
            return
        text = "\n".join(lines) + "\n"
        for block in BLOCK.finditer(text):
            if runs(block[1], session):
                text = text.replace(block[0], "\n")
        shown = textwrap.indent("\n".join(session), "   ")
        lines[:] = f"{text}\n.. code-block:: pycon\n\n{shown}\n".splitlines()


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", add_example, priority=600)  # after napoleon's 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
