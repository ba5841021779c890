"""All cases, and the report on a backend."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from types import ModuleType

from ..backend import PRIMITIVES, Backend, resolve_backend
from . import inout, pairs, primitives, tensors
from .trial import TOLERANCE, Case, Outcome


@cache
def cases() -> tuple[Case, ...]:
    """Every case, in the contract's order of primitives. `str(case)` is its unique name."""
    found = [*inout.cases(), *primitives.cases(), *pairs.cases(), *tensors.cases()]
    order = [*PRIMITIVES, "Tensor"]
    return tuple(sorted(found, key=lambda case: order.index(case.primitive)))


def check(backend: str | ModuleType | Backend) -> "Report":
    """Run every case on a backend: a built-in name, an entry point, a dotted path, or a module.

    Raises as `russellgrad.backend.load_backend` does for a backend that is unknown, not usable here, or lacks names.
    """
    xp = resolve_backend(backend)
    return Report(xp.name, tuple(case.run(xp) for case in cases()))


@dataclass(frozen=True)
class Report:
    """The outcomes of the cases. As text: a table with a line for each primitive, then the failures, then a summary.

    Attributes:
        backend: the name of the backend.
        outcomes: one for each case.
    """

    backend: str
    outcomes: tuple[Outcome, ...]

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The outcomes of the cases that failed."""
        return tuple(outcome for outcome in self.outcomes if outcome.failed)

    @property
    def skipped(self) -> tuple[Outcome, ...]:
        """The outcomes of the cases that were skipped."""
        return tuple(outcome for outcome in self.outcomes if outcome.skipped)

    @property
    def passed(self) -> bool:
        """Whether no case failed. Skipped cases do not count."""
        return not self.failures

    @property
    def failed_primitives(self) -> tuple[str, ...]:
        """The names of the primitives that failed a case."""
        return tuple(dict.fromkeys(outcome.case.primitive for outcome in self.failures))

    @property
    def missing(self) -> tuple[str, ...]:
        """The names of the optional primitives that the backend lacks and a case needs."""
        return _unique(name for outcome in self.skipped for name in outcome.missing)

    def __str__(self) -> str:
        names = _unique(outcome.case.primitive for outcome in self.outcomes)
        lines = [_line("", "cases", [*self._dtypes], ""), *(self._row(name) for name in names), ""]
        lines += [f"{failure}\n" for failure in self.failures]
        skipped = f"{len(self.skipped)} skipped: {', '.join(self.missing)}; " if self.skipped else ""
        failed = f"{len(self.failures)} failed: {', '.join(self.failed_primitives)}" if self.failures else "all passed"
        return "\n".join([*lines, f"{self.backend}: {len(self.outcomes)} cases, {skipped}{failed}"])

    @property
    def _dtypes(self) -> tuple[str, ...]:
        """The columns of differences: float64, float32, and the half precisions in which cases ran."""
        return _unique((*TOLERANCE, *sorted(dtype for outcome in self.outcomes for dtype in outcome.differences)))

    def _row(self, primitive: str) -> str:
        """The number of cases, the largest differences of floats from the reference, and the result."""
        mine = [outcome for outcome in self.outcomes if outcome.case.primitive == primitive]
        largest = []
        for dtype in self._dtypes:
            found = [outcome.differences[dtype] for outcome in mine if dtype in outcome.differences]
            largest.append(f"{max(found):.1e}" if found else "-")
        n_failed, skipped = sum(outcome.failed for outcome in mine), [o for o in mine if o.skipped]
        results = [f"{n_failed} FAILED"] if n_failed else ["passed"] if len(skipped) < len(mine) else []
        if skipped:
            results.append(f"{len(skipped)} skipped: no {', '.join(_unique(n for o in skipped for n in o.missing))}")
        return _line(primitive, str(len(mine)), largest, ", ".join(results))


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _line(name: str, count: str, differences: list[str], result: str) -> str:
    return f"{name:<24}{count:>6}{''.join(f'{d:>10}' for d in differences)}  {result}".rstrip()
