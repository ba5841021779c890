"""Every test runs once for each backend that is usable here: the `backend` fixture puts it in use.

RG_BACKEND narrows it to one. RG_CUPY=standin puts the strict stand-in of `tests/standin` in place of CuPy.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import TEXT, largest_differences
from tests.process import adopt_orphans, end_children

STANDIN = os.environ.get("RG_CUPY") == "standin"
if STANDIN:
    from tests.standin import install

    install()

from russellgrad import available_backends, use_backend  # noqa: E402 - after the stand-in took CuPy's place
from russellgrad.backend import Backend  # noqa: E402

BACKENDS = [os.environ["RG_BACKEND"]] if os.environ.get("RG_BACKEND") else list(available_backends())


@pytest.fixture(scope="session", autouse=True)
def _no_process_left() -> Iterator[None]:
    """No test leaves a process that still runs, not even one that a process of its own started."""
    if sys.platform != "linux":
        yield
        return
    adopt_orphans()
    yield
    left = end_children()
    assert not left, f"the tests left processes that were still running: {left}"


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    with use_backend(request.param) as xp:
        yield xp


def pytest_report_header() -> str:
    cupy = "its strict stand-in over NumPy, no GPU" if STANDIN else "the real package"
    return f"russellgrad backends: {', '.join(BACKENDS)}" + (f" (cupy is {cupy})" if "cupy" in BACKENDS else "")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With pytest-xdist: what a worker hands to the process that prints the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["largest_differences"] = largest_differences


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """With pytest-xdist: a worker has ended."""
    for dtype, found in getattr(node, "workeroutput", {}).get("largest_differences", {}).items():
        largest_differences[dtype] = max(largest_differences.get(dtype, (-1.0, "")), tuple(found))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for dtype, (difference, test) in sorted(largest_differences.items()):
        terminalreporter.write_line(f"largest difference from PyTorch in {dtype}: {difference:.2e} ({test})")


@pytest.fixture
def text(tmp_path: Path) -> str:
    """The path of a text to train on."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)
