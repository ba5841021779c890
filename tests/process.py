"""Run Python in a subprocess, with a clean sys.modules and a controlled environment."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def run_python(*arguments: str, cwd: Path = ROOT, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run `python *arguments` in `cwd`, without inherited RG_* variables. Does not check the exit status."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RG_", "PYTHON"))}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**inherited, "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def output_of(code: str, cwd: Path = ROOT, **environment: str) -> str:
    """The stripped standard output of `python -c code`. Fails with its standard error if the exit status is not 0."""
    done = run_python("-c", code, cwd=cwd, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# A signal that `nohup` or a shell's `&` ignores stays ignored across exec, so a child resets its signal handlers.
# Python itself ignores SIGPIPE and SIGXFSZ.
_WITH_DEFAULT_SIGNALS = """
import os, signal, sys
for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGPIPE", "SIGXFSZ"):
    signal.signal(getattr(signal, name), signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


@contextmanager
def running(*command: str, cwd: Path = ROOT, **options: Any) -> "Iterator[subprocess.Popen[Any]]":
    """Run `command` in a new session with default signal handling. On exit, kill all processes of that session."""
    if os.name == "posix":
        command = (sys.executable, "-c", _WITH_DEFAULT_SIGNALS, *command)
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    process = subprocess.Popen(command, cwd=cwd, start_new_session=True, **options)
    try:
        yield process
    finally:
        if os.name == "posix":
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent exits. Linux only."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_children(seconds: float = 10.0) -> list[str]:
    """Wait for this process's children to exit. Kill those that do not, and return their command lines. Linux only."""
    deadline = time.monotonic() + seconds
    while (left := _children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return list(left.values())


def _children() -> dict[int, str]:
    """The command lines of the running children, by process id."""
    pids = [int(pid) for listed in Path("/proc/self/task").glob("*/children") for pid in _read(listed).split()]
    commands = {pid: _read(Path(f"/proc/{pid}/cmdline")).replace("\0", " ").strip() for pid in pids}
    return {pid: command for pid, command in commands.items() if command}  # a zombie has no command line


def _read(file: Path) -> str:
    """The text of a file in /proc; empty if the thread or process has exited."""
    try:
        return file.read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
