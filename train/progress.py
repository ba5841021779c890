"""What a training run says: a bar on a terminal, plain lines elsewhere or without the package `rich`."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PLAIN_LINES = 20  # about so many in a run


class Stopwatch:
    """`with watch:` adds the time the block takes to `watch.seconds`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = 0.0

    def __enter__(self) -> Self:
        self._since = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.seconds += time.perf_counter() - self._since


class Progress:
    """`with Progress(steps) as progress:` shows how far the run is, its loss, its speed and the time left.

    Args:
        total: the number of steps.
        begun: those that were done before.
        terminal: whether to draw a bar; by default whether the standard output is a terminal.
    """

    def __init__(self, total: int, *, begun: int = 0, terminal: bool | None = None) -> None:
        self.total, self._begun = total, begun
        self._terminal = sys.stdout.isatty() if terminal is None else terminal
        self._every = max(1, total // PLAIN_LINES)
        self._said = begun // self._every  # the number of the last plain line
        self._bar: Any = None
        self._started = time.perf_counter()

    def __enter__(self) -> Self:
        if self._terminal:
            try:
                self._bar = _rich_bar()
            except ImportError:
                print('There is a progress bar with the package rich: pip install "russellgrad[train]"')
            else:
                self._bar.start()
                self._bar.add_task("training", total=self.total, completed=self._begun, facts="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Say that `step` steps are done, the last of them with this loss."""
        left = (time.perf_counter() - self._started) / (step - self._begun) * (self.total - step)
        facts = f"loss {loss:.4f}  {tokens_per_second:,.0f} tokens/s  {clock(left)} left"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, facts=facts)
        elif step // self._every > self._said or step == self.total:
            self._said = step // self._every
            say(f"step {step:,}/{self.total:,}  {facts}")

    def say(self, text: str) -> None:
        """Print a text, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            say(text)


def say(text: str, end: str = "\n") -> bool:
    """Print a text at once. Where nobody reads the output any more, as in `| head`, nothing is said from then on.

    Returns whether somebody may have read it.
    """
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _rich_bar() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}", markup=False))


def clock(seconds: float) -> str:
    """A duration as 4:07, or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def peak_memory() -> int | None:
    """The most memory this process has held so far, in bytes; None where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def plain_errors(*kinds: type[Exception]) -> Iterator[None]:
    """For a command line: ends the program with the message of an error of these kinds, without its traceback."""
    try:
        yield
    except kinds as error:
        sys.exit(f"{Path(sys.argv[0]).name}: error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
