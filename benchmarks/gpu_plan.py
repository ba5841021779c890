"""What the parts of the report from a GPU share: how much is to be done in which time, and what came out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from benchmarks.measure import Table

Candidate: TypeAlias = tuple[str, ...]  # a module of benchmarks.candidates, and the arguments of its `build`
MOST_SECONDS = 150.0  # for one answer of a candidate: the first waits for its imports and compilers


class Clock:
    """The time that the whole report may take."""

    def __init__(self, budget: float) -> None:
        self._begun, self._budget = time.perf_counter(), budget

    def elapsed(self) -> float:
        return time.perf_counter() - self._begun

    def left(self) -> float:
        return self._budget - self.elapsed()

    def say(self, text: str) -> None:
        print(f"[{self.elapsed():6.1f} s] {text}", flush=True)


@dataclass
class Plan:
    """How much is done.

    Args:
        sizes: of the timing: layers/heads/width/length/batch.
        precisions: of the timing, keys of PRECISIONS.
        small: the size of the other parts.
        steps: of parity.
        repeated: steps of each run of repeatability.
        turns: of each case of the timing, at most.
        burst: seconds of steps on end, at most.
        least: seconds without which no case is begun.
        reserve: seconds kept for what comes after the timing.
        without_torch: why PyTorch is left out of the timing; empty if it is not.
    """

    clock: Clock
    sizes: Sequence[str] = ("6/6/384/256/64", "4/4/128/64/12")
    precisions: Sequence[str] = ("fp32", "tf32", "bf16")
    small: str = "2/4/64/32/8"
    steps: int = 100
    repeated: int = 50
    turns: int = 10
    burst: float = 0.25
    least: float = 20.0
    reserve: float = 0.0
    without_torch: str = ""

    def limit(self) -> float:
        """Seconds for a candidate's answer."""
        return min(self.clock.left(), MOST_SECONDS)


@dataclass
class Section:
    """What a part has to say.

    Args:
        verdict: in a line.
        lines: paragraphs of Markdown.
        tables: after them.
        data: the same for a machine.
        failures: what did not go as it should, each a text; none if all is well.
    """

    verdict: str
    lines: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def ours(size: str, precision: str, *, captured: bool = False, backend: str = "cupy", clip: float = 0.0) -> Candidate:
    """See benchmarks/candidates/gpu_ours.py."""
    return "gpu_ours", size, precision, "captured" if captured else "uncaptured", backend, str(clip)
