"""Output to the terminal never ends a run, and shows samples exactly."""

import errno
import io
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from russellgrad.checkpoint import save_model
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer
from tests.process import ROOT, run_python, running
from tests.test_train import SMALL, flags, small
from train import progress, train_transformer
from train.checkpoints import find
from train.metrics import read_metrics
from train.progress import Progress, echo, escape_controls

pytest.importorskip("safetensors")
pytestmark = pytest.mark.skipif(
    os.environ.get("RG_BACKEND", "numpy") != "numpy", reason="output does not depend on the backend"
)
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX terminals and files")

GRIN = "\U0001f600"
SAMPLE = f"{GRIN} :smile: [bold]b[/bold] \x1b[31mred\x1b[0m \x07\r\x9b2J\tend"  # what a terminal or rich would change
SHOWN = f"{GRIN} :smile: [bold]b[/bold] \\x1b[31mred\\x1b[0m \\x07\\r\\x9b2J\tend"


@pytest.fixture(autouse=True)
def _no_step_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RG_TRAIN_STEPS", raising=False)


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """A run whose samples consist of characters that ASCII, cp1252 and Latin-1 lack."""
    path = tmp_path / "text.txt"
    path.write_text(f"{GRIN}\u4e2d" * 300, encoding="utf-8")
    arguments = flags(**SMALL, dataset=path, out=tmp_path / "out")
    return [str(ROOT / "train/train_transformer.py"), *arguments]


# --- Encodings and streams


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "cp1252"},
        {"PYTHONIOENCODING": "latin-1:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ":strict"},
    ],
    ids=str,
)
def test_characters_that_the_encoding_lacks_are_escaped(
    command: list[str], tmp_path: Path, environment: dict[str, Any]
) -> None:
    done = run_python(*command, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "    | \\u4e2d" in done.stdout  # the prompt, the first character of the vocabulary
    assert find(tmp_path / "out").step == 6
    assert read_metrics(tmp_path / "out").samples[-1][1].startswith("\u4e2d")
    written = run_python("train/generate.py", str(tmp_path / "out"), "--tokens", "3", **environment)
    assert (written.returncode, written.stderr) == (0, "")
    assert written.stdout.count("\\") == 4


class OnlyWrite:
    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text


class Broken:
    encoding, error = "utf-8", OSError(errno.EIO, "Input/output error")

    def write(self, text: str) -> int:
        raise self.error

    def isatty(self) -> bool:
        raise ValueError("I/O operation on closed file")


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, object(), Broken(), closed(), OnlyWrite()], ids=lambda x: type(x).__name__)
def test_a_run_needs_no_standard_output(
    monkeypatch: pytest.MonkeyPatch, text: str, tmp_path: Path, stream: Any
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert small(text, tmp_path).steps == 6
        assert echo("text") == isinstance(stream, OnlyWrite)
    if isinstance(stream, OnlyWrite):
        assert "step 6: validation loss" in stream.text


@posix
@pytest.mark.parametrize("redirection", [">&-", ">/dev/full", ">/dev/full 2>&1", ">&- 2>&-"])
def test_a_closed_or_full_standard_output_does_not_end_the_run(
    command: list[str], tmp_path: Path, redirection: str
) -> None:
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, *command]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    full = "standard output is discarded from now on: [Errno 28] No space left on device\n"
    assert done.stderr == (full if redirection == ">/dev/full" else "")
    assert find(tmp_path / "out").step == 6
    assert read_metrics(tmp_path / "out").steps == list(range(1, 7))


@posix
def test_a_run_in_the_background_with_nohup(command: list[str], tmp_path: Path) -> None:
    """`nohup` ignores SIGHUP, and a shell's `&` ignores SIGINT; SIGTERM still stops the run."""
    command = [*command, "--steps", "1000000", "--eval-interval", "1000000", "--save-interval", "50"]
    script = 'nohup "$@" & echo $!; wait $!; echo $?'
    with running("/bin/sh", "-c", script, "sh", sys.executable, *command, cwd=tmp_path, text=True) as shell:
        assert shell.stdout is not None and shell.stderr is not None
        number = int(shell.stdout.readline())
        wait_for(tmp_path / "out" / "checkpoints")
        os.kill(number, signal.SIGHUP)
        time.sleep(0.2)
        os.kill(number, signal.SIGTERM)
        output = shell.stdout.read()
    assert output.endswith("\n143\n"), output
    assert "Stopped by SIGTERM after step" in output
    assert find(tmp_path / "out").step > 0


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.exists()


# --- Terminals


class Terminal:
    """A pseudo-terminal, and a process in it that ignores SIGHUP."""

    def __init__(self, *command: str, **environment: str) -> None:
        self.master, slave = os.openpty()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RG_", "PYTHON"))}
        ignore = (
            "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", ignore, sys.executable, *command],
            stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, cwd=ROOT, start_new_session=True,
            env={**inherited, "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "200", **environment},
        )  # fmt: skip
        os.close(slave)

    def read(self) -> str:
        """All output, until the process exits."""
        output = b""
        while select.select([self.master], [], [], 60)[0]:
            try:
                received = os.read(self.master, 1 << 16)
            except OSError:  # EIO, after the last process has closed the terminal
                break
            output += received
        return output.decode().replace("\r\n", "\n")

    def end(self) -> None:
        with suppress(OSError):
            os.close(self.master)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    started: list[Terminal] = []
    yield started
    for terminal in started:
        terminal.end()


@posix
@pytest.mark.parametrize(
    "environment",
    [
        {"TERM": "dumb"}, {"TERM": "DUMB"}, {"TERM": "unknown"}, {"TTY_COMPATIBLE": "0"}, {"TTY_INTERACTIVE": "0"},
        {"COLUMNS": "20"},
    ],
    ids=str,
)  # fmt: skip
def test_a_terminal_without_animation_gets_lines(
    command: list[str], terminals: list[Terminal], environment: dict[str, str]
) -> None:
    terminals.append(Terminal(*command, **environment))
    output = terminals[0].read()
    assert terminals[0].process.wait(60) == 0, output
    assert "\nstep 6/6  loss " in output
    assert "\x1b" not in output


@posix
@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_terminal_that_is_gone_does_not_end_the_run(
    command: list[str], terminals: list[Terminal], tmp_path: Path, term: str
) -> None:
    pytest.importorskip("rich")
    steps = {"--steps": "1000", "--save-interval": "100", "--eval-interval": "100"}
    terminals.append(Terminal(*command, *[part for pair in steps.items() for part in pair], TERM=term))
    wait_for(tmp_path / "out" / "checkpoints")
    os.close(terminals[0].master)  # writing fails with EIO from now on
    assert terminals[0].process.wait(60) == 0
    assert find(tmp_path / "out").step == 1000
    assert read_metrics(tmp_path / "out").steps == list(range(1, 1001))


@posix
def test_generated_text_is_escaped_in_a_terminal_only(tmp_path: Path, terminals: list[Terminal]) -> None:
    model = Transformer(Tokenizer.from_text("\x1b[31m", 8, 16, seed=0), 1, 2, seed=0)
    arguments = ["train/generate.py", str(save_model(tmp_path / "model.safetensors", model)), "--tokens", "40"]
    written = run_python(*arguments).stdout
    assert "\x1b" in written
    terminals.append(Terminal(*arguments))
    assert terminals[0].read() == written.replace("\x1b", "\\x1b")


# --- Samples


@pytest.mark.parametrize("terminal", [True, False])
def test_samples_are_shown_exactly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, tmp_path: Path, terminal: bool
) -> None:
    """Neither rich's markup nor its emoji codes change them; control characters are escaped; the metrics have them."""
    pytest.importorskip("rich")
    monkeypatch.setattr(train_transformer, "_sample", lambda *_: SAMPLE)
    if terminal:
        monkeypatch.setattr(progress, "is_terminal", lambda: True)
        monkeypatch.setenv("TERM", "xterm")
    small(text, tmp_path)
    output = capsys.readouterr().out
    shown = re.escape(f"    | {SHOWN}\n")
    assert re.search(shown.replace("\\\t", " +") if terminal else shown, output)  # rich expands tabs
    assert read_metrics(tmp_path).samples == [(4, SAMPLE), (6, SAMPLE)]


def test_control_characters_are_escaped() -> None:
    assert escape_controls(SAMPLE) == SHOWN
    assert escape_controls("a\tb\nc \u00e9\u202e") == "a\tb\nc \u00e9\u202e"
    for code in [*range(32), *range(127, 160)]:
        assert escape_controls(chr(code)).isprintable() or chr(code) in "\t\n"


def test_a_sample_that_fails_is_not_tried_again(monkeypatch: pytest.MonkeyPatch, text: str, tmp_path: Path) -> None:
    def fail(*_: Any) -> str:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(train_transformer, "_sample", fail)
        with pytest.raises(MemoryError):
            small(text, tmp_path)
        assert find(tmp_path).step == 4
        with pytest.raises(MemoryError):  # the next one
            train_transformer.train(resume=str(tmp_path))
        assert find(tmp_path).step == 6
        assert train_transformer.train(resume=str(tmp_path)).steps == 6


def test_a_change_of_the_learning_rate_is_one_line_above_the_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, tmp_path: Path
) -> None:
    pytest.importorskip("rich")
    small(text, tmp_path)
    monkeypatch.setattr(progress, "is_terminal", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    train_transformer.train(resume=str(tmp_path), steps=24, learning_rate=1e-3)
    line = "step 7: learning_rate is 0.001 instead of 0.002, steps is 24 instead of 6\n"
    assert line in capsys.readouterr().out


# --- The progress of a validation


def test_a_long_validation_shows_its_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, tmp_path: Path
) -> None:
    small(text, tmp_path, eval_blocks=0, steps=2, warmup=1)
    assert "validation: " not in capsys.readouterr().out  # it takes less than five seconds
    monkeypatch.setattr(progress, "VALIDATION_SECONDS", -1.0)
    small(text, tmp_path, eval_blocks=0, steps=2, warmup=1)
    assert "validation: 4 of 33 blocks\nvalidation: 8 of 33 blocks\n" in capsys.readouterr().out


def test_the_progress_bar_shows_a_validation(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    with Progress(10, terminal=True) as bar:
        bar.update(5, [1.25], 1000)
        bar.validating(0, 20)
        bar.validating(12, 20)
        assert bar._bar.tasks[0].fields["facts"] == "validation: 12 of 20 blocks"
        bar.validating(20, 20)
        assert bar._bar.tasks[0].fields["facts"].startswith("loss 1.2500")
