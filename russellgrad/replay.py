"""Host-side work of a captured training step, repeated before each replay.

`compile_step` (`russellgrad/compiled.py`) captures the device work of a step and replays it. A replay runs no Python
code of the step. Values that the host computes in every step, such as the learning rate or the counter of a random
generator, are updated through the functions here. Outside a capture they run the work once. During a capture they also
record it, and `compile_step` runs the recorded work before each replay.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from .backend import Array, Backend, DType

T = TypeVar("T")
HostWork = Callable[[], None]
Snapshot = Callable[[], HostWork]  # remembers the state of an object, and returns a function that restores it


class HostRecording:
    """The host work of a captured step: what to run before its first replay, and before each later one."""

    def __init__(self) -> None:
        self.before_first: list[HostWork] = []  # copies to the device, which do not run during a capture
        self.before_replay: list[HostWork] = []
        self.snapshots: dict[int, Snapshot] = {}  # of the objects that the work changes, by id
        self.restore: list[HostWork] = []  # their states before the step that is being captured
        self.error: Exception | None = None  # that ended the work

    def run_before_replay(self) -> None:
        """Run the work before a replay. After an exception the objects have their states of before."""
        restore = [snapshot() for snapshot in self.snapshots.values()]
        try:
            for work in self.before_replay:
                work()
        except BaseException:
            for work in restore:
                work()
            raise


_recording: ContextVar[HostRecording | None] = ContextVar("russellgrad_recording", default=None)


@contextmanager
def record_host_work() -> Iterator[HostRecording]:
    """Record the host work that runs inside the block. After an exception in the block, revert it.

    An exception of the work itself, such as that of a schedule, is raised as it is.
    """
    record = HostRecording()
    token = _recording.set(record)
    try:
        yield record
    except BaseException as error:
        for work in record.restore:
            work()
        if record.error is not None and isinstance(error, Exception):
            raise record.error from None  # not what the capture made of it
        raise
    finally:
        _recording.reset(token)


def is_recording() -> bool:
    """Whether a step is being recorded in this context."""
    return _recording.get() is not None


def restore_on_failure(owner: object, snapshot: Snapshot) -> None:
    """Restore the state of `owner` if the step that is being recorded cannot be captured, or its host work fails.

    Call this before the host work changes `owner`. Without a recording, do nothing.
    """
    record = _recording.get()
    if record is not None and id(owner) not in record.snapshots:
        record.snapshots[id(owner)] = snapshot
        record.restore.append(snapshot())


def run_before_replay(work: HostWork) -> None:
    """Run `work()` before each replay of the step that is being recorded. Without a recording, do nothing."""
    record = _recording.get()
    if record is not None:
        record.before_replay.append(work)


def run_in_every_step(work: HostWork) -> None:
    """Run `work()` now, and again before each replay if a step is being recorded."""
    _run(work)
    run_before_replay(work)


def host_scalars(xp: Backend, work: Callable[[], Sequence[float]], dtype: DType) -> Array:
    """An array (n,) of the numbers that `work()` returns. Each replay calls `work()` again and updates the array."""
    values = _run(work)
    array = xp.host_scalars(values, dtype)
    record = _recording.get()
    if record is not None:
        record.before_first.append(lambda: xp.update_scalars(array, values))
        record.before_replay.append(lambda: xp.update_scalars(array, work()))
    return array


def _run(work: Callable[[], T]) -> T:
    try:
        return work()
    except Exception as error:
        if (record := _recording.get()) is not None:
            record.error = error
        raise
