"""Host-side work of a captured training step, repeated before each replay.

`compile_step` (`russellgrad/compiled.py`) captures the device work of a step and replays it. A replay runs no Python
code of the step. Values that the host computes in every step, such as the learning rate or the counter of a random
generator, are updated through the functions here. Outside a capture they run the work once. During a capture they also
record it, and `compile_step` runs the recorded work before each replay.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from .backend import Array, Backend, DType

HostWork = Callable[[], None]


class HostRecording:
    """The host work of a captured step: what to run before its first replay, and before each later one."""

    def __init__(self) -> None:
        self.before_first: list[HostWork] = []  # copies to the device, which do not run during a capture
        self.before_replay: list[HostWork] = []
        self.undo: list[HostWork] = []  # reverts the host work, if the capture fails


_recording: ContextVar[HostRecording | None] = ContextVar("russellgrad_recording", default=None)


@contextmanager
def record_host_work() -> Iterator[HostRecording]:
    """Record the host work that runs inside the block. After an exception in the block, revert it."""
    record = HostRecording()
    token = _recording.set(record)
    try:
        yield record
    except BaseException:
        for work in reversed(record.undo):
            work()
        raise
    finally:
        _recording.reset(token)


def is_recording() -> bool:
    """Whether a step is being recorded in this context."""
    return _recording.get() is not None


def run_before_replay(work: HostWork) -> None:
    """Run `work()` before each replay of the step that is being recorded. Without a recording, do nothing."""
    record = _recording.get()
    if record is not None:
        record.before_replay.append(work)


def run_in_every_step(work: HostWork) -> None:
    """Run `work()` now, and again before each replay if a step is being recorded."""
    work()
    run_before_replay(work)


def undo_without_capture(work: HostWork) -> None:
    """Run `work()` if the step that is being recorded cannot be captured. Without a recording, do nothing."""
    record = _recording.get()
    if record is not None:
        record.undo.append(work)


def host_scalars(xp: Backend, work: Callable[[], Sequence[float]], dtype: DType) -> Array:
    """An array (n,) of the numbers that `work()` returns. Each replay calls `work()` again and updates the array."""
    values = work()
    array = xp.host_scalars(values, dtype)
    record = _recording.get()
    if record is not None:
        record.before_first.append(lambda: xp.update_scalars(array, values))
        record.before_replay.append(lambda: xp.update_scalars(array, work()))
    return array
