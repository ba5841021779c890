"""Pages of one file that need no network: the parts that report.py and explore.py share."""

import base64
import hashlib
import html
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_ASSETS = Path(__file__).resolve().parent / "assets"


def read_asset(name: str) -> str:
    """The text of a file in train/assets."""
    return (_ASSETS / name).read_text(encoding="utf-8")


def content_policy(*scripts: str) -> str:
    """A Content-Security-Policy that allows no requests, and no script but these."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"


def json_for_script(data: Any) -> str:
    """JSON for a <script type="application/json"> element, which no text in it can close."""
    return json.dumps(data).replace("<", "\\u003c")


def facts_list(facts: Iterable[tuple[str, str]]) -> str:
    """Names and values as a <dl>."""
    items = "".join(f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in facts)
    return f'<dl class="facts">{items}</dl>\n'
