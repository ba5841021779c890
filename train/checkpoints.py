"""Checkpoint files: everything that a training run needs to resume, on any backend.

In a run's folder, checkpoints/step-00000250/ has

    model.safetensors       the model, written by `russellgrad.checkpoint.save_model`; generate.py reads it
    optimizer.safetensors   the optimizer's arrays, named after the parameters
    state.json              step, configuration, counters of random generators, validation losses, versions
    SHA256SUMS              checksums of these three files, in the format of `sha256sum`
    validations.json        the validation losses with that of this step, which is computed after the rest is written

A checkpoint is written to a temporary folder, flushed to the disk, and renamed. A checkpoint with its final name is
therefore complete, even after a crash of the process or the machine. No file contains code.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from russellgrad.backend import Array
from russellgrad.checkpoint import load_model, save_model, upgrade_state
from russellgrad.optimizer import Optimizer
from russellgrad.russelltransformer import Transformer
from russellgrad.serialization import replace_file, sync_folder, write_synced

from .progress import echo, option

FORMAT = "russellgrad-checkpoint"
VERSION = 2
_READABLE = (1, 2)  # version 1 has separate matrices for queries, keys and values
FOLDER = "checkpoints"
MODEL = "model.safetensors"
_FILES = (MODEL, "optimizer.safetensors", "state.json")
_CHECKSUMS = "SHA256SUMS"
_VALIDATIONS = "validations.json"
TEXT = "dataset-copy.txt"  # in a run's folder: the text, if it came through a pipe
_EARLIER = "earlier-"  # prefix of subfolders with the outputs of earlier runs
_WRITING, _REMOVING = ".writing-", ".going-"  # prefixes of folders that are being written or removed
_RUN_OUTPUTS = (MODEL, FOLDER, TEXT, "metrics.jsonl", "tensorboard", "report.html", "attention.png", "loss.png",
                "learning_rate.png", "gradient_norm.png", "throughput.png")  # fmt: skip
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose checksums are correct."""

    path: Path
    state: dict[str, Any]  # the content of state.json, updated by that of validations.json

    @property
    def step(self) -> int:
        return int(self.state["step"])

    def restore(self, model: Transformer, optimizer: Optimizer) -> None:
        """Load parameters, optimizer state and dropout's counter into a model of the same shape and its optimizer.

        Raises:
            ValueError: the model has another shape or vocabulary, or the optimizer differs; names the difference.
        """
        saved = load_model(self.path / MODEL, "numpy")
        if saved.tokenizer.encoding.config() != model.tokenizer.encoding.config():
            raise ValueError(f"{self.path} has a model with another vocabulary; train on the same text")
        try:
            optimizer_state = self._optimizer_state(model, optimizer)  # first: its errors leave the model as it is
            model.load_state_dict(saved.state_dict())
            optimizer.load_state_dict(optimizer_state)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{self.path} does not fit this run: {error}") from error
        generator = model.dropout.generator
        if generator is not None:
            generator.counter = int(self.state["dropout_counter"])

    def _optimizer_state(self, model: Transformer, optimizer: Optimizer) -> dict[str, Any]:
        import safetensors.numpy

        by_name: dict[str, dict[str, Any]] = {}  # "m", "v" or "step" -> of each parameter
        for parameter, numbers in self.state["optimizer"]["numbers"].items():
            for name, number in numbers.items():
                by_name.setdefault(name, {})[parameter] = number
        for key, array in safetensors.numpy.load_file(self.path / "optimizer.safetensors").items():
            parameter, _, name = key.rpartition("/")
            by_name.setdefault(name, {})[parameter] = array
        kept: dict[str, dict[str, Any]] = {}
        for name, values in by_name.items():
            for parameter, value in (upgrade_state(values) if self.state["version"] == 1 else values).items():
                kept.setdefault(parameter, {})[name] = value
        names = _parameter_names(model)
        state = [kept.pop(names[id(p)], {}) for p in optimizer.params]
        if frozen := sorted(set(kept) & set(names.values())):
            raise ValueError(
                f"it has optimizer state for {', '.join(frozen)}, which this optimizer does not train; give it all "
                "parameters, and freeze them afterwards"
            )
        if kept:
            raise ValueError(f"it has optimizer state for {', '.join(sorted(kept))}, which this model does not have")
        return {**self.state["optimizer"], "state": state}


def _parameter_names(model: Transformer) -> dict[int, str]:
    tensors = [*model.named_parameters(), *model.named_buffers()]  # a frozen parameter is a buffer
    return {id(tensor): name for name, tensor in tensors}


def path_of(run: Path, step: int) -> Path:
    """The path of a checkpoint in a run's folder."""
    return run / FOLDER / f"step-{step:08}"


# --- Writing


def save(run: Path, step: int, model: Transformer, optimizer: Optimizer, extra: Mapping[str, Any]) -> Path:
    """Write the checkpoint after `step` steps into a run's folder, and return its path.

    Args:
        extra: more entries for state.json; anything that JSON can represent.

    Raises:
        FloatingPointError: a parameter or an array of the optimizer is not finite; nothing is written.
        OSError: the checkpoint cannot be written, as on a full disk; names the last checkpoint that exists.
        ImportError: `safetensors` is not installed.
    """
    folder, names = run / FOLDER, _parameter_names(model)
    optimizer_state = optimizer.state_dict()
    arrays: dict[str, Array] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for parameter, entries in zip(optimizer.params, optimizer_state["state"], strict=True):
        for name, value in entries.items():
            if isinstance(value, np.ndarray):
                arrays[f"{names[id(parameter)]}/{name}"] = np.asarray(value, order="C")
            else:
                numbers.setdefault(names[id(parameter)], {})[name] = value
    for name, array in [*model.state_dict().items(), *arrays.items()]:
        if not np.isfinite(array).all():
            good = latest_checkpoint(run) or "none"
            raise FloatingPointError(
                f"after step {step} {name} is not finite; the last good checkpoint is {good}: lower the learning "
                "rate, or clip the gradient"
            )
    generator = model.dropout.generator
    state = {
        "format": FORMAT, "version": VERSION, "step": step, **extra,
        "optimizer": {
            "kind": optimizer_state["kind"], "steps_taken": optimizer_state["steps_taken"], "numbers": numbers,
        },
        "dropout_counter": 0 if generator is None else generator.counter,
    }  # fmt: skip
    path, temporary = path_of(run, step), folder / f"{_WRITING}{os.getpid()}"
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True)
            sync_folder(run)
        temporary.mkdir(exist_ok=True)
        _write_files(temporary, model, arrays, state)
        if path.exists():  # as in a run that was resumed from an earlier checkpoint
            _remove(path)
        temporary.rename(path)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        last = latest_checkpoint(run)
        raise OSError(
            f"cannot write checkpoint {path}: {error.strerror or error}; "
            + (f"the last one is {last}: fix the cause, and {option('resume')}" if last else "there is no earlier one")
        ) from error
    return path


def _write_files(folder: Path, model: Transformer, arrays: Mapping[str, Array], state: Mapping[str, Any]) -> None:
    import safetensors.numpy

    save_model(folder / MODEL, model)
    write_synced(folder / "optimizer.safetensors", safetensors.numpy.save(dict(arrays)))
    write_synced(folder / "state.json", (json.dumps(state, indent=1) + "\n").encode())
    lines = [f"{_sha256(folder / name)}  {name}\n" for name in _FILES]
    write_synced(folder / _CHECKSUMS, "".join(lines).encode())
    sync_folder(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(path: Path) -> None:
    """Remove a checkpoint. It is renamed first, so that no incomplete checkpoint has its name at any time."""
    if not path.name.startswith(_REMOVING):
        renamed = path.with_name(f"{_REMOVING}{path.name}")
        shutil.rmtree(renamed, ignore_errors=True)
        path = path.rename(renamed)
    shutil.rmtree(path)


def add_validations(path: Path, validations: Mapping[str, Any]) -> None:
    """Replace entries of a checkpoint's state by these, which were computed after the checkpoint was written."""
    replace_file(path / _VALIDATIONS, (json.dumps(validations) + "\n").encode())


@contextmanager
def explain_write_errors(run: Path, path: Path) -> Iterator[None]:
    """In the block, an OSError gets a message that names the file, by default `path`, and the last checkpoint."""
    try:
        yield
    except OSError as error:
        last = latest_checkpoint(run)
        raise OSError(
            f"cannot write {error.filename or path}: {error.strerror or error}; "
            + (
                f"the last checkpoint is {last}: fix the cause, and {option('resume')}"
                if last
                else "there is no checkpoint"
            )
        ) from error


# --- A run's folder


def prune(run: Path, keep: int, best: Collection[int]) -> None:
    """Remove all checkpoints except the last `keep` and those of the steps in `best`.

    If one cannot be removed, a line is printed, and the next call tries again.
    """
    old = [path for step, path in _list_checkpoints(run / FOLDER)[:-keep] if step not in best]
    for path in [*old, *(run / FOLDER).glob(f"{_REMOVING}*")]:
        try:
            _remove(path)
        except OSError as error:
            echo(f"cannot remove the old checkpoint {path}: {error.strerror or error}; the next checkpoint tries again")


def remove_unfinished(run: Path) -> None:
    """Remove what a killed run had not finished writing or removing."""
    for path in [*(run / FOLDER).glob(f"{_WRITING}*"), *(run / FOLDER).glob(f"{_REMOVING}*")]:
        shutil.rmtree(path, ignore_errors=True)
    for name in (MODEL, TEXT, "tokens-*.bin", "metrics.jsonl", f"{FOLDER}/*/{_VALIDATIONS}"):
        for path in run.glob(f"{name}.*.tmp"):
            path.unlink(missing_ok=True)


def move_earlier_run(run: Path) -> Path | None:
    """Move the outputs of an earlier run to the subfolder earlier-1, or the next free number. Return its path.

    Returns None if there are no such outputs. Raises OSError if one cannot be moved; then all are where they were.
    """
    found = [path for name in _RUN_OUTPUTS if (path := run / name).exists()]
    if not found:
        return None
    number = 1
    while (destination := run / f"{_EARLIER}{number}").exists():
        number += 1
    try:
        destination.mkdir()
        for path in found:
            path.rename(destination / path.name)
    except BaseException as error:
        with suppress(OSError):  # the error is what to report
            _move_contents(destination, run)
        if isinstance(error, OSError):
            raise OSError(
                f"cannot move the outputs of an earlier run in {run} to {destination}: {error.strerror or error}; fix "
                f"the cause, or choose another folder with {option('out')}"
            ) from error
        raise
    return destination


def move_back(run: Path, earlier: Path) -> None:
    """Undo `move_earlier_run`. The outputs of the run that is in the folder now are removed."""
    for name in _RUN_OUTPUTS:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    _move_contents(earlier, run)


def _move_contents(source: Path, destination: Path) -> None:
    """Move all files to another folder, and remove the empty one."""
    for path in source.iterdir():
        path.rename(destination / path.name)
    source.rmdir()


def is_output(run: Path, path: str) -> bool:
    """Whether a path is that of an output of a run in this folder, or is in one, as in its checkpoints."""
    resolved = Path(path).resolve()
    return any((run / name).resolve() in (resolved, *resolved.parents) for name in _RUN_OUTPUTS)


def latest_earlier_run(run: Path, output: str) -> Path | None:
    """The subfolder of the last earlier run that has this output, MODEL or FOLDER; None if there is none."""
    numbered = [(path.name.removeprefix(_EARLIER), path) for path in run.glob(f"{_EARLIER}*")]
    found = [(int(number), path) for number, path in numbered if number.isdecimal() and (path / output).exists()]
    return max(found)[1] if found else None


def later_checkpoints(checkpoint: Checkpoint) -> tuple[list[Path], list[Path]]:
    """The checkpoints in the same folder that have more steps: (good ones, damaged ones)."""
    later = [path for step, path in _list_checkpoints(checkpoint.path.parent) if step > checkpoint.step]
    good = [path for path in later if _is_good(path)]
    return good, [path for path in later if path not in good]


def mark_damaged(path: Path) -> Path:
    """Rename a damaged checkpoint to damaged-step-..., so that a new one can have its name. Return the new path."""
    marked = path.with_name(f"damaged-{path.name}")
    shutil.rmtree(marked, ignore_errors=True)
    return path.rename(marked)


# --- Reading


def _list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Step and path of each checkpoint in a folder, in order of steps."""
    found = [(_NAME.fullmatch(path.name), path) for path in folder.glob("step-*")]
    return sorted((int(match[1]), path) for match, path in found if match)


def latest_checkpoint(run: Path, before: float = math.inf) -> Path | None:
    """The checkpoint with the most steps, less than `before`, in a run's folder; None if there is none."""
    checkpoints = [path for step, path in _list_checkpoints(run / FOLDER) if step < before]
    return checkpoints[-1] if checkpoints else None


def find(path: str | os.PathLike[str]) -> Checkpoint:
    """The checkpoint at a path, or the latest one if the path is a run's folder or a folder of checkpoints.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: the checkpoint is damaged or has another format version; names the last good one before it.
    """
    path = Path(path).resolve()
    if path.is_file():
        path = path.parent  # a file in a checkpoint, or in a run's folder
    checkpoint: Path | None = path
    if not _NAME.fullmatch(path.name):
        siblings = _list_checkpoints(path)
        checkpoint = siblings[-1][1] if siblings else latest_checkpoint(path)
    if checkpoint is None or not checkpoint.is_dir():
        moved = latest_earlier_run(path, FOLDER)
        resume = option("resume")
        remedy = f"an earlier run is in {moved}: {resume} {moved}" if moved else f"start the run without {resume}"
        raise FileNotFoundError(f"there is no checkpoint to resume from in {path}; {remedy}")
    try:
        return _read(checkpoint)
    except ValueError as error:
        last = int(checkpoint.name.removeprefix("step-"))
        earlier = [path for step, path in _list_checkpoints(checkpoint.parent) if step < last]
        good = next(filter(_is_good, reversed(earlier)), None)
        remedy = f"the last good one is {good}: {option('resume')} {good}" if good else "there is no earlier one"
        raise ValueError(f"{error}; {remedy}") from error


def _is_good(path: Path) -> bool:
    try:
        _read(path)
    except ValueError:
        return False
    return True


def _read(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises ValueError, which names the file, if a file is missing or its checksum is wrong."""
    try:
        _check_version(path)
        lines = (path / _CHECKSUMS).read_text(encoding="utf-8").splitlines(keepends=True)
        checksums = {name.removesuffix("\n"): digest for digest, _, name in (line.partition("  ") for line in lines)}
        if set(checksums) != set(_FILES) or not lines[-1].endswith("\n"):
            raise ValueError(f"checkpoint {path} is damaged: {_CHECKSUMS} does not list its files")
        for name, expected in checksums.items():
            if (found := _sha256(path / name)) != expected:
                raise ValueError(f"checkpoint {path} is damaged: the SHA-256 of {name} is {found}, not {expected}")
        state = json.loads((path / "state.json").read_bytes())
        if (path / _VALIDATIONS).exists():
            state.update(json.loads((path / _VALIDATIONS).read_bytes()))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"checkpoint {path} is damaged: {error}") from error
    return Checkpoint(path, state)


def _check_version(path: Path) -> None:
    """Check the format version, before the rest: another version may have other files and other checksums."""
    try:
        state = json.loads((path / "state.json").read_bytes())
        found = state["format"], state["version"]
    except (ValueError, TypeError, KeyError) as error:  # ValueError includes errors in JSON and in Unicode
        raise ValueError(f"checkpoint {path} is damaged: state.json: {error}") from error
    if found[0] != FORMAT or found[1] not in _READABLE:
        raise ValueError(
            f"checkpoint {path} has format {found[0]!r}, version {found[1]!r}; this release reads {FORMAT!r}, "
            f"{' and '.join(map(str, _READABLE))}: resume with the release that wrote it"
        )
