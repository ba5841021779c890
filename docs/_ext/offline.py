"""Sphinx extension: the build fails if a page loads a script, style or picture from another site."""

import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import SphinxError

EXTERNAL = re.compile(r"""<(?:(?:script|img|iframe)\b[^>]*\bsrc|link\b[^>]*\bhref)=["'](?:https?:)?//[^"']*""")


def check_pages(app: Sphinx, exception: Exception | None) -> None:
    """Raise SphinxError with the first external resource of each page that has one."""
    if exception is None and app.builder.format == "html":
        pages = sorted(Path(app.outdir).rglob("*.html"))
        found = {page: EXTERNAL.search(page.read_text(encoding="utf-8")) for page in pages}
        lines = [f"{page.name}: {match[0]}" for page, match in found.items() if match]
        if lines:
            raise SphinxError("pages must work offline, but these load from other sites:\n" + "\n".join(lines))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", check_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
