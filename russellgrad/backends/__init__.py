"""In a checkout, the package `russellgrad.backends` is the folder `backends/` at the top.

An installed package has the folder's own files here instead.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "backends")]
