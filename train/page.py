"""Pages of one file that need no network: the parts that report.py and explore.py share."""

import html
from collections.abc import Iterable
from pathlib import Path

from russellgrad.graph.page import content_policy as content_policy
from russellgrad.graph.page import json_for_script as json_for_script

_ASSETS = Path(__file__).resolve().parent / "assets"


def read_asset(name: str) -> str:
    """The text of a file in train/assets."""
    return (_ASSETS / name).read_text(encoding="utf-8")


def facts_list(facts: Iterable[tuple[str, str]]) -> str:
    """Names and values as a <dl>."""
    items = "".join(f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in facts)
    return f'<dl class="facts">{items}</dl>\n'
