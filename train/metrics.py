"""The numbers of a training run: `metrics.jsonl` in the run's folder, and TensorBoard's files if they are wanted.

One JSON object a line, each with its "step", in this order of events:

    {"step": 0, "run": {"config": {...}, "versions": {...}, "backend": ..., "parameters": ..., "started": ...}}
    {"step": 1, "loss": ..., "learning_rate": ..., "gradient_norm": ..., "tokens_per_second": ..., "seconds": ...}
    {"step": 250, "validation_loss": ..., "blocks": 240}
    {"step": 250, "sample": "..."}

A line "run" comes first, and again wherever the run was resumed, with the step it went on from. JSON has no numbers
that are not finite: they are the strings "NaN", "Infinity" and "-Infinity", which Python's `float` reads.
"""

import json
import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from russellgrad import __version__
from russellgrad.checkpoint import replace_file

FILE = "metrics.jsonl"
TENSORBOARD = "tensorboard"  # the folder of its files, in the run's
INSTALL_TENSORBOARD = 'pip install "russellgrad[tensorboard]"'
PACKAGES = ("numpy", "numba", "cupy-cuda12x", "cupy-cuda13x")  # whose versions a run tells, if installed


class Metrics:
    """`with Metrics(folder) as metrics:` appends what it is told to `metrics.jsonl`, and brings it there at once.

    What an earlier run left in the folder is moved aside, to `metrics.1.jsonl` and so on; nothing is overwritten.

    Args:
        folder: of the run; must exist.
        resume_at: go on after this step: the lines of later ones are dropped, as is a last line that was cut short.
            Without a file to go on with, a new one is begun.
        tensorboard: whether to write the same for TensorBoard, into the folder `tensorboard` of the run's.

    Raises:
        ValueError: resume_at is less than 1; on entering, a line of the file that is resumed is not one of this format.
        ImportError: tensorboard is asked for and the package tensorboardX is not installed.
        OSError: on entering or later, the folder cannot be written to.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, resume_at: int | None = None, tensorboard: bool = False
    ) -> None:
        if resume_at is not None and resume_at < 1:
            raise ValueError(f"Metrics: resume_at must be at least 1, got {resume_at}; leave it out for a new run")
        self.path = Path(folder) / FILE
        self._resume_at = resume_at
        self._last_step = resume_at or 0
        self._seconds_before = 0.0  # of a resumed run, by its earlier parts
        self._file: TextIO | None = None
        self._make_writer = _summary_writer() if tensorboard else None
        self._writer: Any = None

    def __enter__(self) -> Self:
        if self._resume_at is None:
            _move_aside(self.path.parent)
        elif self.path.exists():
            kept = [line for line in _lines(self.path) if _is_before(line, self._resume_at)]
            self._seconds_before = max((line["seconds"] for line in kept if "seconds" in line), default=0.0)
            replace_file(self.path, "".join(map(_to_json, kept)).encode())
        self._file = self.path.open("a", encoding="utf-8", newline="\n")
        if self._make_writer is not None:
            purge = None if self._resume_at is None else self._resume_at + 1  # this step and later ones are hidden
            suffix = f".{os.getpid()}.{self._last_step}"  # its names tell seconds only: two in one would be one file
            folder = str(self.path.parent / TENSORBOARD)
            self._writer = self._make_writer(folder, purge_step=purge, filename_suffix=suffix)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()

    def run(self, *, config: Mapping[str, Any], parameters: int, backend: str) -> None:
        """The facts of the run, before all else: its settings, the number of its parameters, its backend's name.

        The versions of Python and of the packages, the machine, and the time are added.
        """
        facts = {
            "config": dict(config),
            "versions": versions(),
            "machine": f"{platform.machine()}, {platform.system()}",
            "backend": backend,
            "parameters": parameters,
            "started": datetime.now().astimezone().isoformat(" ", "seconds"),
        }
        self._write([{"step": self._resume_at or 0, "run": facts}])
        if self._writer is not None:
            text = json.dumps(facts, indent=4)
            self._writer.add_text("run", "    " + text.replace("\n", "\n    "), self._resume_at or 0)

    def steps(
        self,
        first_step: int,
        losses: Sequence[float],
        *,
        learning_rates: Sequence[float],
        gradient_norms: Sequence[float] | None,
        tokens_per_second: float,
        seconds: float,
    ) -> None:
        """What one reading of the device gave: the numbers of the steps first_step, first_step + 1, ...

        Args:
            first_step: the number of the first of them; steps are counted from 1.
            losses: of each step's batch, before the step, in nats per token.
            learning_rates: of each step.
            gradient_norms: of each step, before clipping; None where nobody computed them.
            tokens_per_second: over these steps; stands at each of them.
            seconds: since this process began to train, at the end of these steps; stands at each of them, with what
                the earlier parts of a resumed run took added.

        Raises:
            ValueError: sequences of different lengths; a step that is already there.
        """
        norms: Sequence[float | None] = [None] * len(losses) if gradient_norms is None else gradient_norms
        if not len(losses) == len(learning_rates) == len(norms):
            raise ValueError(
                f"Metrics.steps: {len(losses)} losses, {len(learning_rates)} learning rates and {len(norms)} gradient "
                "norms; give one of each for a step"
            )
        if first_step <= self._last_step:
            raise ValueError(f"Metrics.steps: step {first_step} is already there; the last one is {self._last_step}")
        lines = [
            {
                "step": step,
                "loss": float(loss),
                "learning_rate": float(rate),
                "gradient_norm": None if norm is None else float(norm),
                "tokens_per_second": float(tokens_per_second),
                "seconds": round(self._seconds_before + seconds, 3),
            }
            for step, (loss, rate, norm) in enumerate(zip(losses, learning_rates, norms, strict=True), first_step)
        ]
        self._write(lines)
        self._last_step = first_step + len(lines) - 1
        for line in lines:
            self._scalars(line, "loss", "learning_rate", "gradient_norm", "tokens_per_second")

    def validation(self, step: int, loss: float, blocks: int) -> None:
        """The validation loss after `step` steps, in nats per token, a mean over so many blocks of text."""
        line = {"step": step, "validation_loss": float(loss), "blocks": blocks}
        self._write([line])
        self._scalars(line, "validation_loss")

    def sample(self, step: int, text: str) -> None:
        """A text that the model wrote after `step` steps."""
        self._write([{"step": step, "sample": text}])
        if self._writer is not None:
            self._writer.add_text("sample", "    " + text.replace("\n", "\n    "), step)  # a block of code, in Markdown
            self._writer.flush()

    def _write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        if self._file is None:
            raise RuntimeError("Metrics: nothing is open; write inside a `with Metrics(...) as metrics:`")
        self._file.write("".join(map(_to_json, lines)))
        self._file.flush()

    def _scalars(self, line: Mapping[str, Any], *names: str) -> None:
        if self._writer is not None:
            for name in names:
                if line[name] is not None:
                    self._writer.add_scalar(name, line[name], line["step"])
            self._writer.flush()


def versions() -> dict[str, str]:
    """The versions of this library and of Python, and of those of PACKAGES that are installed."""
    found = {"russellgrad": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


# --- Reading


@dataclass
class History:
    """What a metrics.jsonl holds, as lists for pictures. Numbers that nobody computed are nan."""

    runs: list[tuple[int, dict[str, Any]]] = field(default_factory=list)  # (step it began after, facts)
    steps: list[int] = field(default_factory=list)  # this list and the next five belong together
    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    tokens_per_second: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    validations: list[tuple[int, float, int]] = field(default_factory=list)  # (step, loss, blocks)
    samples: list[tuple[int, str]] = field(default_factory=list)  # (step, text)


def read_metrics(path: str | os.PathLike[str]) -> History:
    """The history in a metrics.jsonl, or in that of a run's folder. A last line that was cut short is left out.

    Raises:
        FileNotFoundError: there is none. OSError: it cannot be read.
        ValueError: a line is not one of this format; names it.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; a training run writes it into its folder")
    history = History()
    for line in _lines(path):
        step = line["step"]
        if "run" in line:
            history.runs.append((step, line["run"]))
        elif "validation_loss" in line:
            history.validations.append((step, line["validation_loss"], line["blocks"]))
        elif "sample" in line:
            history.samples.append((step, line["sample"]))
        else:
            history.steps.append(step)
            history.losses.append(line["loss"])
            history.learning_rates.append(line["learning_rate"])
            history.gradient_norms.append(math.nan if line["gradient_norm"] is None else line["gradient_norm"])
            history.tokens_per_second.append(line["tokens_per_second"])
            history.seconds.append(line["seconds"])
    return history


_KINDS: tuple[dict[str, type], ...] = (  # the keys of a line, one of these sets, and what float() or isinstance takes
    {"step": int, "run": dict},
    {"step": int, "validation_loss": float, "blocks": int},
    {"step": int, "sample": str},
    {
        "step": int,
        "loss": float,
        "learning_rate": float,
        "gradient_norm": float,
        "tokens_per_second": float,
        "seconds": float,
    },
)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file, one a line, checked. One that has no end of line and is not whole was cut short: no error.

    Raises ValueError for any other that is not of this format.
    """
    raw = path.read_bytes().split(b"\n")
    for number, text in enumerate(raw, start=1):
        if not text:
            continue
        try:
            line = json.loads(text)
        except ValueError as error:
            if number == len(raw):
                return
            raise ValueError(f"{path}, line {number}, is not JSON ({error}); remove the line") from error
        try:
            yield _checked(line)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}; remove the line") from error


def _checked(line: Any) -> dict[str, Any]:
    """A line with its numbers as such. Raises TypeError or ValueError if it is none of the kinds."""
    kind = next((kind for kind in _KINDS if isinstance(line, dict) and kind.keys() <= line.keys()), None)
    if kind is None:
        raise ValueError("not a step, a validation, a sample or the facts of a run")
    for name, wanted in kind.items():
        value = line[name]
        if wanted is float and not (name == "gradient_norm" and value is None):
            line[name] = float(value)
        elif wanted is not float and (not isinstance(value, wanted) or isinstance(value, bool)):
            raise TypeError(f"{name} is {value!r}, not of type {wanted.__name__}")
    checked: dict[str, Any] = line
    return checked


# --- Files


def _to_json(line: Mapping[str, Any]) -> str:
    numbers = {k: json.dumps(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    return json.dumps(numbers, allow_nan=False) + "\n"  # ASCII alone, so that any text a sample holds can be written


def _is_before(line: Mapping[str, Any], resume_at: int) -> bool:
    """Whether a line stays on resuming; the facts of a run that took no step before that do not."""
    step: int = line["step"]
    return step < resume_at if "run" in line else step <= resume_at


def _move_aside(folder: Path) -> None:
    """metrics.jsonl becomes metrics.1.jsonl, or the next number that is free, and TensorBoard's folder likewise."""
    if not (folder / FILE).exists() and not (folder / TENSORBOARD).exists():
        return
    number = 1
    while (folder / f"metrics.{number}.jsonl").exists() or (folder / f"{TENSORBOARD}.{number}").exists():
        number += 1
    for name, aside in ((FILE, f"metrics.{number}.jsonl"), (TENSORBOARD, f"{TENSORBOARD}.{number}")):
        if (folder / name).exists():
            (folder / name).rename(folder / aside)


def _summary_writer() -> Any:
    """tensorboardX's class: TensorBoard has no writer of its own, and PyTorch's needs PyTorch."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(f"tensorboard: its files need the package tensorboardX; {INSTALL_TENSORBOARD}") from error
    return SummaryWriter
