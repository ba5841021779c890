"""Shared by the parts of the GPU report: the plan with its time budget, and the sections of results."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from benchmarks.measure import Table

Candidate: TypeAlias = tuple[str, ...]  # a module of benchmarks.candidates and the arguments of its `build`
MOST_SECONDS = 150.0  # for one answer of a candidate; the first includes imports and compilation


class Clock:
    """The time budget of the whole report."""

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
    """The sizes, steps and time limits of a report.

    Args:
        sizes: sizes to time, as layers/heads/width/length/batch.
        precisions: precisions to time, keys of PRECISIONS.
        small: the size used by the other parts.
        steps: training steps of the parity check.
        repeated: training steps of each run of the repeatability check.
        turns: most turns for each case of the timing.
        burst: most seconds of consecutive steps in one turn.
        least: seconds that must be left to start another case.
        reserve: seconds reserved for the parts after the timing.
        without_torch: why PyTorch is not timed; empty if it is timed.
        backend: "cupy", or a torch backend by its full name, such as "torch:mps".
        float64: whether the device has float64.
        capture: whether a step can be captured as a CUDA graph.
        device: the name of the device, in the titles of the tables.
        trial: what runs in place of a GPU, as "on the CPU"; empty on a GPU.
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
    backend: str = "cupy"
    float64: bool = True
    capture: bool = True
    device: str = "the GPU"
    trial: str = ""

    @property
    def torch_device(self) -> str:
        """The type of PyTorch's device: "cuda" for CuPy."""
        return self.backend.partition(":")[2] or "cuda"

    def limit(self) -> float:
        """Seconds for a candidate's answer."""
        return min(self.clock.left(), MOST_SECONDS)


@dataclass
class Section:
    """The results of one part.

    Args:
        verdict: the result in one line.
        lines: paragraphs of Markdown.
        tables: tables that follow the paragraphs.
        data: the same results for the JSON file.
        failures: one text for each failure; empty if all is well.
    """

    verdict: str
    lines: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def ours(size: str, precision: str, *, captured: bool = False, backend: str = "cupy", clip: float = 0.0) -> Candidate:
    """RussellGrad as a candidate: see benchmarks/candidates/gpu_ours.py."""
    return "gpu_ours", size, precision, "captured" if captured else "uncaptured", backend, str(clip)
