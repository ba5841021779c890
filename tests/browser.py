"""Control a headless Chromium through the DevTools protocol over a pipe. Needs no package, only the browser."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 100  # timeout: the browser is killed this time after the last page was opened
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--remote-debugging-pipe",
)  # fmt: skip
# Replaces itself by the browser, which reads commands from file descriptor 3 and writes answers to file descriptor 4.
LAUNCHER = """
import os, sys
commands, answers = (os.dup(int(number)) for number in sys.argv[1:3])
os.dup2(commands, 3); os.dup2(answers, 4)
os.set_inheritable(3, True); os.set_inheritable(4, True)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_browser() -> str | None:
    """The path in RG_BROWSER, else the path of an installed Chromium or Chrome, else None."""
    if os.name != "posix":
        return None  # pass_fds is POSIX only
    return os.environ.get("RG_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A browser process: `with Browser(path) as browser: browser.open(page)`.

    `requests` lists the URLs that pages requested, `problems` the errors and console messages.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.requests: list[str] = []  # the URL of each request of a page, failed ones included
        self.problems: list[str] = []  # console messages, uncaught exceptions and failed requests
        self._count = 0
        self._session: str | None = None  # the page's session id, once it is attached

    def __enter__(self) -> Self:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        read_there, write_here = os.pipe()
        read_here, write_there = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(read_there), str(write_there), self._path, *FLAGS,
             f"--user-data-dir={self._profile.name}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=(read_there, write_there),
        )  # fmt: skip
        os.close(read_there)
        os.close(write_there)
        self._commands, self._answers = os.fdopen(write_here, "wb"), os.fdopen(read_here, "rb")
        self._start_watchdog()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._watchdog.cancel()
        self._process.terminate()
        self._process.wait(timeout=20)
        self._commands.close()
        self._answers.close()
        self._profile.cleanup()

    def _start_watchdog(self) -> None:
        """Start the timer that ends a browser that hangs."""
        self._watchdog = threading.Timer(SECONDS, self._process.kill)
        self._watchdog.daemon = True
        self._watchdog.start()

    def call(self, method: str, **parameters: Any) -> Any:
        """Send a command and return its result. Raises RuntimeError if it fails or the browser has exited."""
        self._count += 1
        command = {"id": self._count, "method": method, "params": parameters}
        self._commands.write(
            json.dumps(command | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        self._commands.flush()
        while (message := self._next()).get("id") != self._count:
            self._note(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        return message["result"]

    def open(self, page: Path, *, width: int = 1280, dark: bool = False) -> None:
        """Load a file in a viewport `width` CSS pixels wide, and wait until it has loaded."""
        self._watchdog.cancel()
        self._start_watchdog()
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        url = page.resolve().as_uri()
        self.call("Page.navigate", url=url)
        while self.evaluate("location.href + ' ' + document.readyState") != f"{url} complete":
            time.sleep(0.01)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise RuntimeError(f"{expression}: {done['exceptionDetails']}")
        return done["result"].get("value")

    def point_at(self, selector: str, across: float, down: float) -> None:
        """Move the pointer to a point in an element, given as fractions of its width and height."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        box = self.evaluate(f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()")
        place = {"x": box["x"] + across * box["width"], "y": box["y"] + down * box["height"]}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **place)

    def _next(self) -> Any:
        """Read the next message; a message ends with a zero byte."""
        message = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            if not byte:
                raise RuntimeError(f"{self._path} ended with status {self._process.wait(timeout=20)}")
            message += byte
        return json.loads(message)

    def _note(self, message: Any) -> None:
        method, found = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"])
        elif method == "Network.loadingFailed":
            self.problems.append(f"request failed: {found['errorText']}")
        elif method == "Runtime.consoleAPICalled":
            self.problems.append(f"console: {found['args']}")
        elif method == "Runtime.exceptionThrown":
            self.problems.append(f"exception: {found['exceptionDetails']}")
        elif method == "Log.entryAdded":
            self.problems.append(f"log: {found['entry']['text']}")


def check_page_fits(browser: Browser, page: Path) -> None:
    """Check that a page fits a wide and a narrow window, and is light or dark as the user prefers."""
    for width in (1200, 390):
        for dark in (False, True):
            browser.open(page, width=width, dark=dark)
            assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"too wide for {width}"
            background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
            assert background == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")


def check_no_requests(browser: Browser, *pages: Path) -> None:
    """Check that the browser requested these pages and nothing else, and reported no problem."""
    assert {url for url in browser.requests if not url.startswith("data:")} == {p.resolve().as_uri() for p in pages}
    assert browser.problems == []
