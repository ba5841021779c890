"""Sphinx extension: links from a page to files outside docs/ become downloads, so they work offline.

The pages are also read in the repository, where `[text](../examples/lion.py)` opens the file. There, the text of a link
to a page may be its file name, `[cuda.md](cuda.md)`; on the site it is the title of the page or the section.
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

FILE_NAME = re.compile(r"\[[\w./]+\.md\]\((?!\.\./)([\w./]+\.md(?:#[\w-]+)?)\)")
LINK = re.compile(r"(!?)\[([^\]]*)\]\((\.\./[^)#\s]+)(?:#[^)]*)?\)")


def rewrite_links(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace links to files by the download role, links to folders by their text, and file names by titles."""
    folder = Path(app.env.doc2path(docname)).parent

    def replacement(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        path = folder / target
        if image or not path.exists() or path.resolve().is_relative_to(app.srcdir):
            return match[0]  # MyST reports it, if it does not exist
        plain = text.replace("`", "")
        return f"{{download}}`{plain} <{target}>`" if path.is_file() else text

    source[0] = FILE_NAME.sub(r"[](\1)", LINK.sub(replacement, source[0]))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", rewrite_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
