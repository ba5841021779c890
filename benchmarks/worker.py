"""One candidate in a process of its own: `python -m benchmarks.worker MODULE FUNCTION ARGUMENT...`.

FUNCTION of benchmarks.candidates.MODULE, given the arguments, returns what is to be called. Each line of the input
says how many calls go before and how many are timed. The answer, a line of JSON, is the seconds of a timed call, the
numbers that the last one returned (itself, or as a function that is called after the clock has stopped; else None),
and the peak of the resident memory in bytes, beyond what was resident after the imports.
"""

import importlib
import json
import sys
import time
from pathlib import Path

STATUS = Path("/proc/self/status")


def resident(what: str) -> float:
    """Bytes: "VmRSS" now, "VmHWM" at the peak; nan where there is no /proc.

    Not getrusage's ru_maxrss: that begins at the peak of the process which started this one.
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
