"""What the host does anew for every run of a captured step.

A captured step (`russellgrad/compiled.py`) is a recording of what a device did. Replaying it runs no Python, so what
changes on the host from step to step, as the learning rate or the number of a draw, goes through here: outside a
capture it is done once, at once; in one it is kept, and done again before each replay.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from .backend import Array, Backend, DType

HostWork = Callable[[], None]


class Recording:
    """The host's part of a captured step."""

    def __init__(self) -> None:
        self.before_first: list[HostWork] = []  # what the capture itself could not do: copies to the device
        self.before_replay: list[HostWork] = []


_recording: ContextVar[Recording | None] = ContextVar("russellgrad_recording", default=None)


@contextmanager
def recording() -> Iterator[Recording]:
    """In the block, host work is recorded."""
    record = Recording()
    token = _recording.set(record)
    try:
        yield record
    finally:
        _recording.reset(token)


def is_recording() -> bool:
    return _recording.get() is not None


def on_replay(work: HostWork) -> None:
    """Do `work()` before each replay of the step that is being recorded, if one is."""
    record = _recording.get()
    if record is not None:
        record.before_replay.append(work)


def on_host(work: HostWork) -> None:
    """Do `work()`, once in every step."""
    work()
    on_replay(work)


def host_scalars(xp: Backend, work: Callable[[], Sequence[float]], dtype: DType) -> Array:
    """A new array (n,) with the numbers that `work()` gives, which it is asked for once in every step."""
    values = work()
    array = xp.host_scalars(values, dtype)
    record = _recording.get()
    if record is not None:
        record.before_first.append(lambda: xp.update_scalars(array, values))
        record.before_replay.append(lambda: xp.update_scalars(array, work()))
    return array
