"""Runs a GPU candidate in its own process, and communicates with that process.

Each candidate has its own process, so that libraries do not share memory pools, handles or a CUDA context, and so that
an error which corrupts a context does not affect other candidates. Each request ends with a synchronization, so the
device is idle between requests.

`python -m benchmarks.gpu_process MODULE ARGUMENT...` calls `build(ARGUMENT...)` of benchmarks.candidates.MODULE and
prepares the result. Each line of its input is a request: a JSON list of a name in REQUESTS and its arguments. Each
request is answered by one line: {"answer": ...} or {"error": traceback}.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

ROOT = Path(__file__).resolve().parent.parent
STANDIN = os.environ.get("RG_CUPY") == "standin"  # for tests without a GPU


# --- The candidate's process


class Candidate(Protocol):
    """A model that is trained on a device."""

    def prepare(self) -> None: ...

    def step(self) -> Any:
        """Take one step on the next batch. Returns the loss on the device, without synchronizing."""

    def read(self, loss: Any) -> float: ...

    def gradients(self) -> list[float]: ...

    def synchronize(self) -> None: ...

    def peak_memory(self) -> dict[str, int]: ...

    def launches(self) -> dict[str, int]: ...


def _losses(candidate: Candidate, steps: int) -> list[float]:
    return [candidate.read(candidate.step()) for _ in range(steps)]


def _seconds(candidate: Candidate, before: int, timed: int) -> float:
    """Seconds per step of `timed` steps after `before` untimed ones, with the device idle at the start and the end."""
    for _ in range(before):
        candidate.step()
    candidate.synchronize()
    start = time.perf_counter()
    for _ in range(timed):
        candidate.step()
    candidate.synchronize()
    return (time.perf_counter() - start) / timed


REQUESTS: dict[str, Callable[..., Any]] = {
    "losses": _losses,
    "gradients": lambda candidate: candidate.gradients(),
    "seconds": _seconds,
    "memory": lambda candidate: candidate.peak_memory(),
    "launches": lambda candidate: candidate.launches(),
    "save": lambda candidate, path: candidate.save(path),
}


def install_standin() -> None:
    """In tests: install the stand-in for CuPy before anything imports CuPy."""
    if STANDIN:
        from tests.standin import install

        install()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of a library must not mix with the answers
    module, *arguments = sys.argv[1:]
    candidate: Any = None
    failed = ""
    try:
        install_standin()
        candidate = importlib.import_module(f"benchmarks.candidates.{module}").build(*arguments)
        candidate.prepare()
    except Exception:
        failed = traceback.format_exc()
    for line in sys.stdin:
        name, *given = json.loads(line)
        try:
            answer = {"error": failed} if failed else {"answer": REQUESTS[name](candidate, *given)}
            if not failed:
                candidate.synchronize()
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


# --- The report's process


class CandidateError(RuntimeError):
    """An error in a candidate's process."""


class Process:
    """A candidate's process. It starts preparing at once; the first request waits for the preparation."""

    def __init__(self, *candidate: str) -> None:
        self.candidate = " ".join(candidate)
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - see __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu_process", *candidate],
            cwd=ROOT, env={**os.environ, "RG_BACKEND": "numpy"},  # each candidate chooses its own
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # it needs no cleanup; the driver frees its device memory
        self._process.communicate()
        self._errors.close()

    def ask(self, request: str, *arguments: Any, limit: float) -> Any:
        """The answer to a request. Raises CandidateError if it fails, the process ends, or `limit` seconds pass."""
        assert self._process.stdin is not None and self._process.stdout is not None
        timed_out = threading.Event()

        def stop() -> None:
            timed_out.set()
            self._process.kill()

        timer = threading.Timer(max(limit, 0.0), stop)
        timer.start()
        try:
            self._process.stdin.write(json.dumps([request, *arguments]) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            raise CandidateError(f"{self.candidate}: {request}: {self._why(timed_out.is_set(), limit)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise CandidateError(f"{self.candidate}: {request}:\n{answer['error']}")
        return answer["answer"]

    def _why(self, timed_out: bool, limit: float) -> str:
        """Why there was no answer."""
        if timed_out:
            return f"no answer within {limit:.0f} s, so it was stopped"
        status = self._process.wait()
        self._errors.seek(0)
        return f"its process ended with status {status}; the end of its errors:\n{self._errors.read()[-2000:]}"


if __name__ == "__main__":
    main()
