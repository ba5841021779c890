"""Output of a program on the terminal: a progress bar, or plain lines without a terminal or without `rich`.

No output is worth a training run: writing to the standard output never raises. Characters that its encoding lacks are
written as escapes such as \\u20ac. After an error, as when the terminal is gone or the disk full, output is discarded.
"""

import io
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO, cast

import russellgrad
from russellgrad.serialization import install_command

PLAIN_LINES = 20  # about this many in a run
VALIDATION_SECONDS = 5.0  # between two plain lines of a validation
MIN_WIDTH = 60  # columns: in a narrower terminal the bar and the number of steps are cut off


class Progress:
    """`with Progress(n_steps) as progress:` shows the steps done, the loss, the speed and the time left.

    Args:
        n_steps: the number of the last step.
        first_step: steps that were done before, in a resumed run.
        terminal: whether to draw a bar; by default whether the standard output is a terminal that `rich` animates.
    """

    def __init__(self, n_steps: int, *, first_step: int = 0, terminal: bool | None = None) -> None:
        self.n_steps, self._first_step = n_steps, first_step
        self._terminal = terminal
        self._steps_per_line = max(1, n_steps // PLAIN_LINES)
        self._lines_printed = first_step // self._steps_per_line
        self._bar: Any = None
        self._facts = ""  # of the last step
        self._start_time = self._last_line = time.perf_counter()

    def __enter__(self) -> Self:
        wanted = is_terminal() if self._terminal is None else self._terminal
        if wanted:
            try:
                bar = _rich_bar()
            except ImportError:
                echo(f"For a progress bar install the package rich: {install_command('train')}")
                return self
            if self._terminal or _is_animated(bar.console):
                self._bar = bar
                self._bar.start()
                self._bar.add_task("training", total=self.n_steps, completed=self._first_step, facts="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, losses: Sequence[float], tokens_per_second: float) -> None:
        """Show that `step` steps are done, the last of them with these losses."""
        self._facts = self._describe(step, losses[-1], tokens_per_second)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, facts=self._facts)
        elif step // self._steps_per_line > self._lines_printed or step == self.n_steps:
            self._lines_printed = step // self._steps_per_line
            echo(f"step {step:,}/{self.n_steps:,}  {self._facts}")

    def _describe(self, step: int, loss: float, tokens_per_second: float) -> str:
        seconds_per_step = (time.perf_counter() - self._start_time) / (step - self._first_step)
        left = format_duration(seconds_per_step * (self.n_steps - step))
        return f"loss {loss:.4f}  {tokens_per_second:,.0f} tokens/s  {left} left"

    def validating(self, blocks: int, n_blocks: int) -> None:
        """Show how many blocks of a validation are done. Call this at the start, with 0, and at the end, too."""
        now, facts = time.perf_counter(), f"validation: {blocks:,} of {n_blocks:,} blocks"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], facts=facts if blocks < n_blocks else self._facts)
        elif not blocks:
            self._last_line = now
        elif now - self._last_line > VALIDATION_SECONDS and blocks < n_blocks:
            self._last_line = now
            echo(facts)

    def validation(self, step: int, loss: float, n_blocks: int, bits_per_byte: float) -> None:
        """Print a validation loss, also in bits per byte."""
        self.echo(
            f"step {step:,}: validation loss {loss:.4f} over {n_blocks:,} blocks, {bits_per_byte:.4f} bits per byte"
        )

    def sample(self, step: int, text: str) -> None:
        """Print a text that the model generated after `step` steps, with escapes for control characters."""
        self.echo("\n".join(f"    | {escape_controls(line)}" for line in text.strip("\n").split("\n")))

    def echo(self, text: str) -> None:
        """Print a text, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.out(text, highlight=False)  # exactly: no markup, no emoji codes, no wrapped lines
        else:
            echo(text)


def echo(text: str, end: str = "\n") -> bool:
    """Print a text and flush.

    Returns:
        False if it cannot be written: there is no output, its pipe is closed, its terminal gone or its disk full. Then
        it is discarded from then on.
    """
    return _write(sys.stdout, text + end)


def _write(stream: Any, text: str) -> bool:
    """Write a text to a standard stream, which may be None or any object, and flush. Does not raise: see `echo`."""
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            stream.write(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding))
        if hasattr(stream, "flush"):
            stream.flush()
    except Exception as error:
        redirected = isinstance(error, OSError) and _redirect_to_nowhere(stream)
        if redirected and stream is not sys.stderr and not isinstance(error, BrokenPipeError):  # as after `| head`
            _write(sys.stderr, f"standard output is discarded from now on: {error}\n")
        return False
    return True


def _redirect_to_nowhere(stream: Any) -> bool:
    """Redirect a stream to the null device, also for what Python flushes when it exits. Return whether it worked."""
    with suppress(Exception):  # not every stream has a file descriptor
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
        return True
    return False


def is_terminal() -> bool:
    """Whether the standard output is a terminal."""
    try:
        return bool(sys.stdout.isatty())
    except Exception:  # it is None or closed, or has no such method
        return False


class _Output(io.TextIOBase):
    """The standard output as a file for `rich`, by `_write`."""

    def __init__(self) -> None:
        self._stream = sys.stdout

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a property, not an attribute
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        _write(self._stream, text)
        return len(text)

    def isatty(self) -> bool:
        return is_terminal()

    def fileno(self) -> int:
        return self._stream.fileno()


def _rich_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as RichProgress

    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}", markup=False)
    return RichProgress(*columns, console=Console(file=cast(TextIO, _Output())))


def _is_animated(console: Any) -> bool:
    """Whether `rich` redraws a bar on this console; on others, as with TERM=dumb, it shows the bar at the end only."""
    return (
        console.is_terminal and console.is_interactive and not console.is_dumb_terminal and console.width >= MIN_WIDTH
    )


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all control characters but the tab and the newline


def escape_controls(text: str) -> str:
    """Replace control characters by escapes such as \\x1b: in a terminal they would move the cursor, or worse."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


_on_command_line = ContextVar("_on_command_line", default=False)


@contextmanager
def command_line() -> Iterator[None]:
    """In the block, `option` gives names of command-line options."""
    token = _on_command_line.set(True)
    try:
        yield
    finally:
        _on_command_line.reset(token)


def is_command_line() -> bool:
    """Whether this is in a block of `command_line`."""
    return _on_command_line.get()


def option(name: str) -> str:
    """How messages call a field of Config: save_interval in Python, --save-interval on the command line."""
    return "--" + name.replace("_", "-") if is_command_line() else name


def command(script: str) -> str:
    """The command that runs a file of this package: in a checkout by its path, else by the name of its module."""
    file = Path(__file__).resolve().with_name(f"{script}.py")
    if file.parent.parent == Path(russellgrad.__file__).resolve().parent:
        return f"python -m russellgrad.train.{script}"
    with suppress(OSError, ValueError):  # the current folder may have been deleted, and the file may be elsewhere
        file = file.relative_to(Path.cwd())
    return f"python {shlex.quote(str(file))}"


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
