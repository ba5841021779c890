"""In a checkout, the package `russellgrad.train` is the folder `train/` at the top.

An installed package has the folder's own files here instead.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "train")]
