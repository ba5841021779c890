"""The `backend` fixture runs a test once for each usable backend, with that backend selected.

RG_BACKEND selects a single backend. RG_CUPY=standin replaces CuPy with the strict stand-in of `tests/standin`.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browser, find_browser
from tests.helpers import TEXT, largest_differences
from tests.process import adopt_orphans, end_children

STANDIN = os.environ.get("RG_CUPY") == "standin"
if STANDIN:
    from tests.standin import install

    install()

from russellgrad import available_backends, use_backend  # noqa: E402 - the stand-in must be installed first
from russellgrad.backend import Backend  # noqa: E402

BACKENDS = [os.environ["RG_BACKEND"]] if os.environ.get("RG_BACKEND") else list(available_backends())


@pytest.fixture(scope="session", autouse=True)
def _no_process_left() -> Iterator[None]:
    """Fail if a process that a test started, directly or through another process, is still running at the end."""
    if sys.platform != "linux":
        yield
        return
    adopt_orphans()
    yield
    left = end_children()
    assert not left, f"processes started by the tests are still running: {left}"


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    with use_backend(request.param) as xp:
        yield xp


@pytest.fixture(scope="module")
def browser_process() -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        pytest.skip("found no Chromium or Chrome; set RG_BROWSER to the path of one")
    with Browser(path) as process:
        yield process


@pytest.fixture
def browser(browser_process: Browser) -> Browser:
    """A browser, the same one for all tests of a file."""
    browser_process.requests, browser_process.problems = [], []
    return browser_process


def pytest_report_header() -> str:
    cupy = "its strict stand-in over NumPy, no GPU" if STANDIN else "the real package"
    return f"russellgrad backends: {', '.join(BACKENDS)}" + (f" (cupy is {cupy})" if "cupy" in BACKENDS else "")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With pytest-xdist: send a worker's largest differences to the process that prints the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["largest_differences"] = largest_differences


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """With pytest-xdist: merge the largest differences of a worker that has ended."""
    for dtype, found in getattr(node, "workeroutput", {}).get("largest_differences", {}).items():
        largest_differences[dtype] = max(largest_differences.get(dtype, (-1.0, "")), tuple(found))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for dtype, (difference, test) in sorted(largest_differences.items()):
        terminalreporter.write_line(f"largest difference from PyTorch in {dtype}: {difference:.2e} ({test})")


@pytest.fixture
def text(tmp_path: Path) -> str:
    """The path of a small text file to train on."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)
