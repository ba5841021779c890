"""A headless Chromium, told what to do by the DevTools protocol over a pipe: nothing to install but the browser."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_browser() -> str | None:
    """The path of an installed Chromium or Chrome; that in RG_BROWSER before others."""
    return os.environ.get("RG_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """`with Browser(path) as browser: browser.open(page)`; what goes wrong on a page is in `problems` and `requests`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.requests: list[str] = []  # the URLs of what a page loaded or tried to load
        self.problems: list[str] = []  # messages of the console, uncaught exceptions, failed requests
        self._count = 0

    def __enter__(self) -> Self:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        read_there, write_here = os.pipe()
        read_here, write_there = os.pipe()

        def as_3_and_4() -> None:  # where Chromium reads commands and writes answers
            high = [os.dup(fd) for fd in (read_there, write_there)]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
                 "--no-first-run", "--disable-background-networking", f"--user-data-dir={self._profile.name}"]  # fmt: skip
        self._process = subprocess.Popen(
            [self._path, *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            close_fds=False, preexec_fn=as_3_and_4,
        )  # fmt: skip
        os.close(read_there)
        os.close(write_there)
        self._commands, self._answers = os.fdopen(write_here, "wb"), os.fdopen(read_here, "rb")
        self._session: str | None = None
        pages = self.call("Target.getTargets")["targetInfos"]
        (target,) = [page["targetId"] for page in pages if page["type"] == "page"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
        self._commands.close()
        self._answers.close()
        self._profile.cleanup()

    def call(self, method: str, **parameters: Any) -> Any:
        """A command's result. Raises RuntimeError if it is refused or the browser is gone."""
        self._count += 1
        command = {"id": self._count, "method": method, "params": parameters}
        self._commands.write(json.dumps(command | ({"sessionId": self._session} if self._session else {})).encode() + b"\0")
        self._commands.flush()
        while (message := self._next()).get("id") != self._count:
            self._note(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        return message["result"]

    def open(self, page: Path, *, width: int = 1280, dark: bool = False) -> None:
        """Load a file at a width of so many CSS pixels, and wait until it is there."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page.resolve().as_uri())
        while (message := self._next()).get("method") != "Page.loadEventFired":
            self._note(message)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise RuntimeError(f"{expression}: {done['exceptionDetails']}")
        return done["result"].get("value")

    def point_at(self, selector: str, across: float, down: float) -> None:
        """Move the pointer to a place in an element, given in parts of its width and height."""
        box = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            "const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"
        )
        place = {"x": box[0] + across * box[2], "y": box[1] + down * box[3]}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **place)

    def screenshot(self, path: Path, *, full: bool = True) -> None:
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        path.write_bytes(base64.b64decode(taken["data"]))

    def _next(self) -> Any:
        """The next message; each ends with a zero byte."""
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
