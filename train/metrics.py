"""The metrics of a training run: `metrics.jsonl` in the run's folder and, optionally, TensorBoard files.

Each line is a JSON object with a "step". Lines are in the order of events:

    {"step": 0, "run": {"config": {...}, "versions": {...}, "backend": ..., "parameters": ..., "started": ...}}
    {"step": 1, "loss": ..., "learning_rate": ..., "gradient_norm": ..., "tokens_per_second": ..., "seconds": ...}
    {"step": 250, "validation_loss": ..., "blocks": 240, "bits_per_byte": ...}
    {"step": 250, "sample": "..."}

A "run" line is the first line, and the first line after each resumption, with the step that the run resumed from.
Numbers that are not finite, which JSON does not have, are written as the strings "NaN", "Infinity" and "-Infinity";
Python's `float` reads them.
"""

import json
import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from russellgrad import __version__
from russellgrad.serialization import install_command, replace_file

FILE = "metrics.jsonl"
TENSORBOARD = "tensorboard"  # folder of its files, in the run's folder
# Packages whose versions are written, if they are installed.
PACKAGES = ("numpy", "numba", "cupy-cuda12x", "cupy-cuda13x", "torch")


class Metrics:
    """`with Metrics(folder) as metrics:` appends lines to `metrics.jsonl`. Each call writes all of its lines, or none.

    An existing file is not overwritten: it is renamed to `metrics.1.jsonl`, or the next free number.

    Args:
        folder: the run's folder; must exist.
        resume_at: append to an existing file after this step. Lines of later steps are removed, and so is an incomplete
            last line. If there is no file, a new one is created.
        tensorboard: whether to write the same metrics for TensorBoard, to the subfolder `tensorboard`.

    Raises:
        ValueError: resume_at is less than 1; on entering, a line of the existing file has another format.
        ImportError: `tensorboard` is set and the package tensorboardX is not installed.
        OSError: on entering or later, a file cannot be written; the exception's `filename` names it.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, resume_at: int | None = None, tensorboard: bool = False
    ) -> None:
        if resume_at is not None and resume_at < 1:
            raise ValueError(f"Metrics: resume_at must be at least 1, got {resume_at}; leave it out for a new run")
        self.path = Path(folder) / FILE
        self._resume_at = resume_at
        self._last_step = resume_at or 0
        self._seconds_before = 0.0  # of the earlier parts of a resumed run
        self._file: BinaryIO | None = None
        self._make_writer = _summary_writer() if tensorboard else None
        self._writer: Any = None

    def __enter__(self) -> Self:
        if self._resume_at is None:
            _rename_existing(self.path.parent)
        elif self.path.exists():
            kept = [line for line in _lines(self.path) if _is_kept(line, self._resume_at)]
            self._seconds_before = max((line["seconds"] for line in kept if "seconds" in line), default=0.0)
            replace_file(self.path, "".join(map(_to_json, kept)).encode())
        self._file = self.path.open("ab", buffering=0)  # a buffer would keep lines that a full disk does not take
        if self._make_writer is not None:
            purge = (
                None if self._resume_at is None else self._resume_at + 1
            )  # TensorBoard hides this step and later ones
            suffix = f".{os.getpid()}.{self._last_step}"  # the default name only has seconds, and may not be unique
            folder = str(self.path.parent / TENSORBOARD)
            self._writer = self._make_writer(folder, purge_step=purge, filename_suffix=suffix)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            with suppress(*[OSError] if error else []):  # the error is what to report
                self._writer.close()

    def run(self, *, config: Mapping[str, Any], parameters: int, backend: str) -> None:
        """Write the "run" line: the configuration, the number of parameters and the backend's name.

        Versions of Python and of packages, the machine and the time are added. Call this first.
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
            with _naming(self.path.parent / TENSORBOARD):
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
        """Write the lines of steps first_step, first_step + 1, ..., whose losses were read from the device together.

        Args:
            first_step: the number of the first of these steps; steps are counted from 1.
            losses: the loss of each step's batch, before the step, in nats per token.
            learning_rates: the learning rate of each step.
            gradient_norms: the gradient norm of each step, before clipping; None if it was not computed.
            tokens_per_second: the mean over these steps; written for each of them.
            seconds: the time since this process started training; written for each of these steps, plus the time of the
                earlier parts of a resumed run.

        Raises:
            ValueError: the sequences have different lengths, or a step is already in the file.
        """
        norms: Sequence[float | None] = [None] * len(losses) if gradient_norms is None else gradient_norms
        if not len(losses) == len(learning_rates) == len(norms):
            raise ValueError(
                f"Metrics.steps: {len(losses)} losses, {len(learning_rates)} learning rates and {len(norms)} gradient "
                "norms; pass one of each for every step"
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

    def validation(self, step: int, loss: float, blocks: int, bits_per_byte: float | None = None) -> None:
        """Write the validation loss after `step` steps, in nats per token: a mean over `blocks` blocks of text.

        The same loss in bits per byte of the text, if it is given, compares runs with different tokens.
        """
        line: dict[str, Any] = {"step": step, "validation_loss": float(loss), "blocks": blocks}
        if bits_per_byte is not None:
            line["bits_per_byte"] = float(bits_per_byte)
        self._write([line])
        self._scalars(line, *[name for name in ("validation_loss", "bits_per_byte") if name in line])

    def sample(self, step: int, text: str) -> None:
        """Write a text that the model generated after `step` steps."""
        self._write([{"step": step, "sample": text}])
        if self._writer is not None:
            with _naming(self.path.parent / TENSORBOARD):
                self._writer.add_text("sample", "    " + text.replace("\n", "\n    "), step)  # a Markdown code block
                self._writer.flush()

    def _write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        if self._file is None:
            raise RuntimeError("Metrics: the file is not open; write inside a `with Metrics(...) as metrics:`")
        left, size = memoryview("".join(map(_to_json, lines)).encode()), os.fstat(self._file.fileno()).st_size
        with _naming(self.path):
            try:
                while left:
                    left = left[self._file.write(left) :]
            except OSError:
                with suppress(OSError):
                    self._file.truncate(size)  # a part of a line would join the next line
                raise

    def _scalars(self, line: Mapping[str, Any], *names: str) -> None:
        if self._writer is not None:
            with _naming(self.path.parent / TENSORBOARD):
                for name in names:
                    if line[name] is not None:
                        self._writer.add_scalar(name, line[name], line["step"])
                self._writer.flush()


def versions() -> dict[str, str]:
    """The versions of this library, of Python, and of the packages in PACKAGES that are installed."""
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
    """The content of a metrics.jsonl, as lists. Gradient norms that were not computed are nan."""

    runs: list[tuple[int, dict[str, Any]]] = field(default_factory=list)  # (step it started after, "run" object)
    steps: list[int] = field(default_factory=list)  # this list and the next five have one entry for each step
    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    tokens_per_second: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    validations: list[tuple[int, float, int]] = field(default_factory=list)  # (step, loss, blocks)
    bits_per_byte: dict[int, float] = field(default_factory=dict)  # by step, of validations; not in older files
    samples: list[tuple[int, str]] = field(default_factory=list)  # (step, text)


def read_metrics(path: str | os.PathLike[str]) -> History:
    """Read a metrics.jsonl file, or that in a run's folder. An incomplete last line is ignored.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file cannot be read.
        ValueError: a line has another format; names the line.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; a training run writes it to its folder")
    history = History()
    for line in _lines(path):
        step = line["step"]
        if "run" in line:
            history.runs.append((step, line["run"]))
        elif "validation_loss" in line:
            history.validations.append((step, line["validation_loss"], line["blocks"]))
            if "bits_per_byte" in line:
                history.bits_per_byte[step] = float(line["bits_per_byte"])
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


_KINDS: tuple[dict[str, type], ...] = (  # the kinds of lines: keys and the types of their values
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

_RUN = {"config": dict, "versions": dict, "parameters": int}  # entries of a "run" object and their types


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the checked object of each line. An incomplete last line, from a killed process, is ignored.

    Raises ValueError for any other line that has another format.
    """
    raw = path.read_bytes().split(b"\n")
    for number, text in enumerate(raw, start=1):
        if not text:
            continue
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            if number == len(raw):
                return
            raise ValueError(f"{path}, line {number}, is not JSON ({error}); remove the line") from error
        try:
            yield _checked(line)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ValueError(f"{path}, line {number}: {error}; remove the line") from error


def _checked(line: Any) -> dict[str, Any]:
    """Convert the numbers of a line to float. Raises TypeError or ValueError if the line is of no known kind."""
    kind = next((kind for kind in _KINDS if isinstance(line, dict) and kind.keys() <= line.keys()), None)
    if kind is None:
        raise ValueError("not a step, a validation, a sample or a run")
    for name, wanted in kind.items():
        value = line[name]
        if wanted is float and not (name == "gradient_norm" and value is None):
            line[name] = float(value)
        elif wanted is not float and (not isinstance(value, wanted) or isinstance(value, bool)):
            raise TypeError(f"{name} is {value!r}, not of type {wanted.__name__}")
    for name, wanted in _RUN.items() if "run" in kind else ():
        if not isinstance(value := line["run"].get(name, wanted()), wanted):
            raise TypeError(f"{name} of the run is {value!r}, not of type {wanted.__name__}")
    checked: dict[str, Any] = line
    return checked


# --- Files


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """In the block, an OSError gets the path of the file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _to_json(line: Mapping[str, Any]) -> str:
    numbers = {k: json.dumps(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    return json.dumps(numbers, allow_nan=False) + "\n"  # only ASCII, so that any sample can be written


def _is_kept(line: Mapping[str, Any], resume_at: int) -> bool:
    """Whether a line is kept on resuming: lines up to this step, except the \"run\" line of a part without steps."""
    step: int = line["step"]
    return step < resume_at if "run" in line else step <= resume_at


def _rename_existing(folder: Path) -> None:
    """Rename metrics.jsonl to metrics.1.jsonl, or the next free number, and TensorBoard's folder accordingly."""
    if not (folder / FILE).exists() and not (folder / TENSORBOARD).exists():
        return
    number = 1
    while (folder / f"metrics.{number}.jsonl").exists() or (folder / f"{TENSORBOARD}.{number}").exists():
        number += 1
    for name, new_name in ((FILE, f"metrics.{number}.jsonl"), (TENSORBOARD, f"{TENSORBOARD}.{number}")):
        if (folder / name).exists():
            (folder / name).rename(folder / new_name)


def _summary_writer() -> Any:
    """tensorboardX.SummaryWriter: the package tensorboard has no writer, and PyTorch's writer needs PyTorch."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            f"tensorboard: writing its files needs the package tensorboardX; {install_command('tensorboard')}"
        ) from error
    return SummaryWriter
