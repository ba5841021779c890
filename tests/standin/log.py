"""Counts, by name, of the work that a device would do, while `record` is open."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


class Misuse(AssertionError):
    """A use that CuPy accepts in silence, but that is wrong or slow."""


@dataclass(eq=False)
class Log:
    """The counts of one `record` block, by name."""

    launches: Counter[str] = field(default_factory=Counter)
    syncs: Counter[str] = field(default_factory=Counter)  # the host waited for the device
    uploads: Counter[str] = field(default_factory=Counter)  # copies from the host to the device
    captured: Counter[str] = field(default_factory=Counter)  # went into a graph instead of being launched
    graph_launches: int = 0
    allocations: int = 0


_open: list[Log] = []


@contextmanager
def record() -> Iterator[Log]:
    log = Log()
    _open.append(log)
    try:
        yield log
    finally:
        _open.remove(log)


def count(what: str, name: str) -> None:
    for log in _open:
        getattr(log, what)[name] += 1


def count_one(what: str) -> None:
    for log in _open:
        setattr(log, what, getattr(log, what) + 1)
