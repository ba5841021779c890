"""Output of a program on the terminal: a progress bar, or plain lines without a terminal or without `rich`."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from russellgrad.checkpoint import install_command

PLAIN_LINES = 20  # about this many in a run


class Progress:
    """`with Progress(n_steps) as progress:` shows the steps done, the loss, the speed and the time left.

    Args:
        n_steps: the number of the last step.
        first_step: steps that were done before, in a resumed run.
        terminal: whether to draw a bar; by default whether the standard output is a terminal.
    """

    def __init__(self, n_steps: int, *, first_step: int = 0, terminal: bool | None = None) -> None:
        self.n_steps, self._first_step = n_steps, first_step
        self._terminal = sys.stdout.isatty() if terminal is None else terminal
        self._steps_per_line = max(1, n_steps // PLAIN_LINES)
        self._lines_printed = first_step // self._steps_per_line
        self._bar: Any = None
        self._start_time = time.perf_counter()

    def __enter__(self) -> Self:
        if self._terminal:
            try:
                self._bar = _rich_bar()
            except ImportError:
                print(f"For a progress bar install the package rich: {install_command('train')}")
            else:
                self._bar.start()
                self._bar.add_task("training", total=self.n_steps, completed=self._first_step, facts="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Show that `step` steps are done, the last of them with this loss."""
        seconds_per_step = (time.perf_counter() - self._start_time) / (step - self._first_step)
        left = format_duration(seconds_per_step * (self.n_steps - step))
        facts = f"loss {loss:.4f}  {tokens_per_second:,.0f} tokens/s  {left} left"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, facts=facts)
        elif step // self._steps_per_line > self._lines_printed or step == self.n_steps:
            self._lines_printed = step // self._steps_per_line
            echo(f"step {step:,}/{self.n_steps:,}  {facts}")

    def echo(self, text: str) -> None:
        """Print a text, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            echo(text)


def echo(text: str, end: str = "\n") -> bool:
    """Print a text and flush. If the output is a closed pipe, as after `| head`, it is discarded from then on.

    Returns:
        False if the output is a closed pipe.
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


def format_duration(seconds: float) -> str:
    """A duration as 4:07 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def peak_memory() -> int | None:
    """The peak memory of this process so far, in bytes; None where the system does not report it (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def exit_on_error(*kinds: type[Exception]) -> Iterator[None]:
    """For a command line: exceptions of these kinds end the program with their message and no traceback."""
    try:
        yield
    except kinds as error:
        sys.exit(f"{Path(sys.argv[0]).name}: error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
