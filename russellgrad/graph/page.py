"""Helpers for HTML pages of a single file: data as JSON in a script element, and a Content-Security-Policy.

`train/page.py` uses it, too.
"""

import base64
import hashlib
import json
from typing import Any


def content_policy(*scripts: str) -> str:
    """A Content-Security-Policy that allows no requests, and no script but these."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"


def json_for_script(data: Any) -> str:
    """JSON for a <script type="application/json"> element, which no text in it can close. Raises ValueError for nan."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
