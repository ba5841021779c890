"""Python in a process of its own: a clean sys.modules, an environment of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run_python(*arguments: str, cwd: Path = ROOT, **environment: str) -> "subprocess.CompletedProcess[str]":
    """`python *arguments` in `cwd`, with no RG_* variable but those given. Does not check the exit status."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RG_", "PYTHON"))}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**inherited, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def output_of(code: str, cwd: Path = ROOT, **environment: str) -> str:
    """What `code` prints. Fails with its error, if it has one."""
    done = run_python("-c", code, cwd=cwd, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
