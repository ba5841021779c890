"""Runs one candidate in its own process: `python -m benchmarks.worker MODULE FUNCTION ARGUMENT...`.

FUNCTION of benchmarks.candidates.MODULE takes the arguments and returns the callable to measure. Each line of the input
has the number of untimed calls and the number of timed calls. The answer is a JSON list: the seconds per timed call;
the result of the last call (a float, or the result of the function it returned, called outside the timing; else null);
and the peak resident memory in bytes, minus the resident memory after the imports.
"""

import importlib
import json
import sys
import time
from pathlib import Path

STATUS = Path("/proc/self/status")


def resident(what: str) -> float:
    """Resident bytes: "VmRSS" is the current value, "VmHWM" the peak; nan without /proc.

    This is not getrusage's ru_maxrss, which starts at the peak of the parent process.
    """
    if not STATUS.exists():
        return float("nan")
    (line,) = [line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(what)]
    return 1024.0 * int(line.split()[1])


def main() -> None:
    module, function, *arguments = sys.argv[1:]
    build = getattr(importlib.import_module(f"benchmarks.candidates.{module}"), function)
    after_imports = resident("VmRSS")
    call = build(*arguments)
    for line in sys.stdin:
        before, timed = map(int, line.split())
        for _ in range(before):
            call()
        start = time.perf_counter()
        for _ in range(timed):
            outcome = None  # freed before the next call, as in a training loop
            outcome = call()
        seconds = (time.perf_counter() - start) / timed
        numbers = outcome() if callable(outcome) else outcome if isinstance(outcome, float) else None
        print(json.dumps([seconds, numbers, resident("VmHWM") - after_imports]), flush=True)


if __name__ == "__main__":
    main()
