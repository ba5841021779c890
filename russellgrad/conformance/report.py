"""All the cases, and what a backend makes of them."""

from dataclasses import dataclass
from functools import cache
from types import ModuleType

from ..backend import PRIMITIVES, Backend, resolve_backend
from . import inout, pairs, primitives, tensors
from .trial import TOLERANCE, Case, Outcome


@cache
def cases() -> tuple[Case, ...]:
    """Every case, in the contract's order of primitives. `str(case)` is its name, and no two have the same."""
    found = [*inout.cases(), *primitives.cases(), *pairs.cases(), *tensors.cases()]
    order = [*PRIMITIVES, "Tensor"]
    return tuple(sorted(found, key=lambda case: order.index(case.primitive)))


def check(backend: str | ModuleType | Backend) -> "Report":
    """Try every case on a backend: a built-in name, an entry point, a dotted path, or a module.

    Raises as `russellgrad.backend.load_backend` does for a backend that is unknown, not usable here, or lacks names.
    """
    xp = resolve_backend(backend)
    return Report(xp.name, tuple(case.run(xp) for case in cases()))


@dataclass(frozen=True)
class Report:
    """What came of the cases. As text, a table with a line for each primitive, and what is wrong below it."""

    backend: str
    outcomes: tuple[Outcome, ...]

    @property
    def failures(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if not outcome.passed)

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def failed_primitives(self) -> tuple[str, ...]:
        """The names of the primitives that failed a case."""
        return tuple(dict.fromkeys(outcome.case.primitive for outcome in self.failures))

    def __str__(self) -> str:
        names = tuple(dict.fromkeys(outcome.case.primitive for outcome in self.outcomes))
        lines = [_line("", "cases", [*TOLERANCE], ""), *(self._row(name) for name in names), ""]
        lines += [f"{failure}\n" for failure in self.failures]
        failed = f"{len(self.failures)} failed: {', '.join(self.failed_primitives)}" if self.failures else "all passed"
        return "\n".join([*lines, f"{self.backend}: {len(self.outcomes)} cases, {failed}"])

    def _row(self, primitive: str) -> str:
        """The number of cases, the largest differences from NumPy where there were floats, and what came of them."""
        mine = [outcome for outcome in self.outcomes if outcome.case.primitive == primitive]
        largest = []
        for dtype in TOLERANCE:
            found = [outcome.differences[dtype] for outcome in mine if dtype in outcome.differences]
            largest.append(f"{max(found):.1e}" if found else "-")
        failed = sum(not outcome.passed for outcome in mine)
        return _line(primitive, str(len(mine)), largest, f"{failed} FAILED" if failed else "passed")


def _line(name: str, count: str, differences: list[str], verdict: str) -> str:
    return f"{name:<24}{count:>6}{''.join(f'{d:>10}' for d in differences)}  {verdict}".rstrip()
