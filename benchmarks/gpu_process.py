"""A candidate on the GPU in a process of its own, and both ends of the line to it.

One process each, so that no library's memory pool, handles or CUDA context meet another's, and so that an error which
spoils a context spoils no other candidate. Between two requests a process has nothing on the device: each request ends
with a wait for it.

`python -m benchmarks.gpu_process MODULE ARGUMENT...` prepares what `build(ARGUMENT...)` of benchmarks.candidates.MODULE
gives. Each line of its input is a request, a name of REQUESTS and its arguments in JSON, and is answered by a line:
{"answer": ...}, or {"error": the traceback}.
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


# --- In the candidate's process


class Candidate(Protocol):
    """A model in training on a device."""

    def prepare(self) -> None: ...

    def step(self) -> Any:
        """One step on the next batch. Returns the loss before it, on the device: nothing waits."""

    def read(self, loss: Any) -> float: ...

    def gradients(self) -> list[float]: ...

    def synchronize(self) -> None: ...

    def peak_memory(self) -> dict[str, int]: ...

    def launches(self) -> dict[str, int]: ...


def _losses(candidate: Candidate, steps: int) -> list[float]:
    return [candidate.read(candidate.step()) for _ in range(steps)]


def _seconds(candidate: Candidate, before: int, timed: int) -> float:
    """Of one step, with the device idle at both ends of the timed ones; `before` as many go uncounted."""
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
    """In tests: the stand-in for CuPy, before anything imports that."""
    if STANDIN:
        from tests.standin import install

        install()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
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


# --- In the report's


class CandidateError(RuntimeError):
    """What went wrong in a candidate's process."""


class Process:
    """A candidate's process. It prepares itself from the start; the first request waits for that."""

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
        self._process.kill()  # it has nothing to tidy up, and the driver frees its memory
        self._process.communicate()
        self._errors.close()

    def ask(self, request: str, *arguments: Any, limit: float) -> Any:
        """The answer to a request. Raises CandidateError: it failed, ended, or took more than `limit` seconds."""
        assert self._process.stdin is not None and self._process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
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
            raise CandidateError(f"{self.candidate}: {request}: {self._why(late.is_set(), limit)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise CandidateError(f"{self.candidate}: {request}:\n{answer['error']}")
        return answer["answer"]

    def _why(self, late: bool, limit: float) -> str:
        """It gave no answer."""
        if late:
            return f"no answer within {limit:.0f} s, so it was stopped"
        status = self._process.wait()
        self._errors.seek(0)
        return f"its process ended with status {status}; the end of its errors:\n{self._errors.read()[-2000:]}"


if __name__ == "__main__":
    main()
