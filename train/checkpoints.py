"""Checkpoints: all that a training run needs to go on as if it had never stopped, on any backend.

In a run's folder, checkpoints/step-00000250/ holds

    model.safetensors       the model, as `russellgrad.checkpoint.save_model` writes it: generate.py takes it
    optimizer.safetensors   the optimizer's arrays, named after the parameters
    state.json              the rest: step, configuration, counters of random generators, validation losses, versions
    SHA256SUMS              checksums of these three, as `sha256sum -c` reads them

A checkpoint is written into a folder beside, brought to the disk, and renamed, so one that has its name is whole, even
if the process or the machine dies. Nothing in it is code.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from russellgrad.backend import Array
from russellgrad.checkpoint import load_model, save_model, sync_folder, upgrade_state, write_synced
from russellgrad.optimizer import Optimizer
from russellgrad.russelltransformer import Transformer

FORMAT = "russellgrad-checkpoint"
VERSION = 2
_READABLE = (1, 2)  # version 1 has separate matrices for queries, keys and values
FOLDER = "checkpoints"
_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
_SUMS = "SHA256SUMS"
_WRITING, _GOING = ".writing-", ".going-"
_OF_A_RUN = ("model.safetensors", FOLDER, "metrics.jsonl", "tensorboard", "report.html", "attention.png", "loss.png",
             "learning_rate.png", "gradient_norm.png", "throughput.png")  # fmt: skip
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole."""

    path: Path
    facts: dict[str, Any]  # of state.json

    @property
    def step(self) -> int:
        return int(self.facts["step"])

    def restore(self, model: Transformer, optimizer: Optimizer) -> None:
        """Bring a new model of the same shape, and its optimizer, to where they were.

        Raises ValueError for a model of another shape or vocabulary, or another optimizer; names what differs.
        """
        saved = load_model(self.path / "model.safetensors", "numpy")
        if saved.tokenizer.vocabulary != model.tokenizer.vocabulary:
            raise ValueError(
                f"{self.path} is of a model with another vocabulary; train on the text that it was made on"
            )
        try:
            model.load_state_dict(saved.state_dict())
            optimizer.load_state_dict(self._optimizer_state(model, optimizer))
        except (KeyError, ValueError) as error:
            raise ValueError(f"{self.path} does not fit this run: {error}") from error
        draws = model.dropout.generator
        if draws is not None:
            draws.counter = int(self.facts["dropout_counter"])

    def _optimizer_state(self, model: Transformer, optimizer: Optimizer) -> dict[str, Any]:
        import safetensors.numpy

        by_name: dict[str, dict[str, Any]] = {}  # "m", "v" or "step" -> of each parameter
        for parameter, numbers in self.facts["optimizer"]["numbers"].items():
            for name, number in numbers.items():
                by_name.setdefault(name, {})[parameter] = number
        for key, array in safetensors.numpy.load_file(self.path / "optimizer.safetensors").items():
            parameter, _, name = key.rpartition("/")
            by_name.setdefault(name, {})[parameter] = array
        kept: dict[str, dict[str, Any]] = {}
        for name, values in by_name.items():
            for parameter, value in upgrade_state(values).items():
                kept.setdefault(parameter, {})[name] = value
        names = _names(model)
        state = [kept.pop(names[id(p)], {}) for p in optimizer.params]
        if kept:
            raise ValueError(f"it has optimizer state of {', '.join(sorted(kept))}, which this model has not")
        return {**self.facts["optimizer"], "state": state}


def _names(model: Transformer) -> dict[int, str]:
    return {id(parameter): name for name, parameter in model.named_parameters()}


# --- Writing


def save(run: Path, step: int, model: Transformer, optimizer: Optimizer, facts: Mapping[str, Any]) -> Path:
    """Write the checkpoint after `step` steps into a run's folder, and return its path.

    Args:
        facts: what else state.json is to hold; anything that JSON can.

    Raises:
        FloatingPointError: a parameter, or what the optimizer keeps of one, is not finite: it would be no good.
        OSError: it cannot be written, as with a full disk; names the last checkpoint that is there.
        ImportError: `safetensors` is not installed.
    """
    folder, names = run / FOLDER, _names(model)
    state = optimizer.state_dict()
    arrays: dict[str, Array] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for parameter, own in zip(optimizer.params, state["state"], strict=True):
        for name, value in own.items():
            if isinstance(value, np.ndarray):
                arrays[f"{names[id(parameter)]}/{name}"] = np.ascontiguousarray(value)
            else:
                numbers.setdefault(names[id(parameter)], {})[name] = value
    if broken := [
        name for name, array in [*model.state_dict().items(), *arrays.items()] if not np.isfinite(array).all()
    ]:
        raise FloatingPointError(
            f"after step {step} {broken[0]} is not finite; the last good checkpoint is {newest(run)}: lower the "
            "learning rate, or clip the gradient"
        )
    draws = model.dropout.generator
    about = {
        "format": FORMAT, "version": VERSION, "step": step, **facts,
        "optimizer": {"kind": state["kind"], "steps_taken": state["steps_taken"], "numbers": numbers},
        "dropout_counter": 0 if draws is None else draws.counter,
    }  # fmt: skip
    path, beside = folder / f"step-{step:08}", folder / f"{_WRITING}{os.getpid()}"
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True)
            sync_folder(run)
        beside.mkdir(exist_ok=True)
        _write(beside, model, arrays, about)
        _take_the_place_of(path, beside)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        last = newest(run)
        raise OSError(
            f"cannot write checkpoint {path}: {error.strerror or error}; "
            + (f"the last one is {last}: put that right, and --resume" if last else "there is no earlier one")
        ) from error
    return path


def _write(folder: Path, model: Transformer, arrays: Mapping[str, Array], about: Mapping[str, Any]) -> None:
    import safetensors.numpy

    save_model(folder / "model.safetensors", model)
    write_synced(folder / "optimizer.safetensors", safetensors.numpy.save(dict(arrays)))
    write_synced(folder / "state.json", (json.dumps(about, indent=1) + "\n").encode())
    sums = [f"{_sum(folder / name)}  {name}\n" for name in _FILES]
    write_synced(folder / _SUMS, "".join(sums).encode())
    sync_folder(folder)


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _take_the_place_of(path: Path, beside: Path) -> None:
    """Rename; a checkpoint that has the name already, as in a run that is resumed from an earlier one, goes."""
    if path.exists():
        _remove(path)
    beside.rename(path)
    sync_folder(path.parent)


def _remove(path: Path) -> None:
    """A checkpoint loses its name before its files, so no half one is ever there."""
    doomed = path.with_name(f"{_GOING}{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def prune(run: Path, keep: int, best: int | None) -> None:
    """Remove all checkpoints but the last `keep` and that of step `best`."""
    for step, path in _all(run / FOLDER)[:-keep]:
        if step != best:
            _remove(path)


def tidy(run: Path) -> None:
    """Remove what a run that was killed had not finished writing, or removing."""
    for leftover in [*(run / FOLDER).glob(f"{_WRITING}*"), *(run / FOLDER).glob(f"{_GOING}*")]:
        shutil.rmtree(leftover, ignore_errors=True)
    for name in ("model.safetensors", "metrics.jsonl"):
        for unfinished in run.glob(f"{name}.*.tmp"):
            unfinished.unlink(missing_ok=True)


def set_aside(run: Path) -> Path | None:
    """Move what an earlier run left in its folder to earlier-1 there, or the next number that is free."""
    found = [path for name in _OF_A_RUN if (path := run / name).exists()]
    if not found:
        return None
    number = 1
    while (aside := run / f"earlier-{number}").exists():
        number += 1
    aside.mkdir()
    for path in found:
        path.rename(aside / path.name)
    return aside


def later(checkpoint: Checkpoint) -> tuple[list[Path], list[Path]]:
    """The checkpoints beside this one and after it: good ones, and damaged ones."""
    after = [path for step, path in _all(checkpoint.path.parent) if step > checkpoint.step]
    good = [path for path in after if _is_good(path)]
    return good, [path for path in after if path not in good]


def mark_damaged(path: Path) -> Path:
    """Take a checkpoint's name away, so that none of its number is in the way."""
    marked = path.with_name(f"damaged-{path.name}")
    shutil.rmtree(marked, ignore_errors=True)
    return path.rename(marked)


# --- Reading


def _all(folder: Path) -> list[tuple[int, Path]]:
    """Step and path of each checkpoint in a folder of them, the oldest first."""
    found = [(_NAME.fullmatch(path.name), path) for path in folder.glob("step-*")]
    return sorted((int(match[1]), path) for match, path in found if match)


def newest(run: Path) -> Path | None:
    """The path of the last checkpoint in a run's folder; None without one."""
    checkpoints = _all(run / FOLDER)
    return checkpoints[-1][1] if checkpoints else None


def find(path: str | os.PathLike[str]) -> Checkpoint:
    """The checkpoint at a path, or the last one of the run whose folder, or folder of checkpoints, it is.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of another version of the format; names the last good one before it.
    """
    path = Path(path).resolve()
    if path.is_file():
        path = path.parent  # of a file in a run's folder, or in a checkpoint's
    checkpoint: Path | None = path
    if not _NAME.fullmatch(path.name):
        beside = _all(path)
        checkpoint = beside[-1][1] if beside else newest(path)
    if checkpoint is None or not checkpoint.is_dir():
        raise FileNotFoundError(f"there is no checkpoint to resume from in {path}; start the run without --resume")
    try:
        return _read(checkpoint)
    except ValueError as error:
        last = int(checkpoint.name.removeprefix("step-"))
        before = [path for step, path in _all(checkpoint.parent) if step < last]
        good = next(filter(_is_good, reversed(before)), None)
        earlier = f"the last good one is {good}: --resume {good}" if good else "there is no earlier one"
        raise ValueError(f"{error}; {earlier}") from error


def _is_good(path: Path) -> bool:
    try:
        _read(path)
    except ValueError:
        return False
    return True


def _read(path: Path) -> Checkpoint:
    """Raises ValueError, naming the file, unless everything is as it was written."""
    try:
        _check_version(path)
        lines = (path / _SUMS).read_text(encoding="utf-8").splitlines(keepends=True)
        sums = {name.removesuffix("\n"): found for found, _, name in (line.partition("  ") for line in lines)}
        if set(sums) != set(_FILES) or not lines[-1].endswith("\n"):
            raise ValueError(f"checkpoint {path} is damaged: {_SUMS} does not name its files")
        for name, expected in sums.items():
            if (found := _sum(path / name)) != expected:
                raise ValueError(f"checkpoint {path} is damaged: the SHA-256 of {name} is {found}, not {expected}")
        facts = json.loads((path / "state.json").read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"checkpoint {path} is damaged: {error}") from error
    return Checkpoint(path, facts)


def _check_version(path: Path) -> None:
    """First: another version may have other files, and other checksums."""
    try:
        facts = json.loads((path / "state.json").read_bytes())
        found = facts["format"], facts["version"]
    except (ValueError, TypeError, KeyError) as error:  # of JSON and of Unicode, too
        raise ValueError(f"checkpoint {path} is damaged: state.json: {error}") from error
    if found[0] != FORMAT or found[1] not in _READABLE:
        raise ValueError(
            f"checkpoint {path} has format {found[0]!r}, version {found[1]!r}; this release reads {FORMAT!r}, "
            f"{' and '.join(map(str, _READABLE))}: resume with the release that wrote it"
        )
