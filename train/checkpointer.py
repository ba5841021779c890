"""The checkpoints of a run: where to resume from, when to keep one, and the model file.

If several processes train together, rank 0 alone writes; all of them restore.
"""

try:
    import fcntl
except ImportError:  # as on Windows
    fcntl = None  # type: ignore[assignment]
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from russellgrad.checkpoint import save_model
from russellgrad.optimizer import Optimizer
from russellgrad.russelltransformer import Transformer
from russellgrad.serialization import replace_file, require_safetensors

from . import checkpoints
from .config import FIXED_ON_RESUME, Config, with_defaults
from .datasets import DATASETS
from .distributed import ProcessGroup
from .metrics import FILE, read_metrics, versions
from .progress import echo, option
from .tokens import Tokens


class Validation(NamedTuple):
    """A validation loss."""

    step: int  # the number of steps taken
    loss: float
    blocks: int  # of text, of which the loss is a mean; 0 if it is unknown, as in checkpoints of earlier versions


def best_validations(validations: Iterable[Validation]) -> list[Validation]:
    """The first validation with the smallest loss, for each number of blocks: others are not comparable."""
    best: dict[int, Validation] = {}
    for found in validations:
        if math.isfinite(found.loss) and (found.blocks not in best or found.loss < best[found.blocks].loss):
            best[found.blocks] = found
    return list(best.values())


class Checkpointer:
    """`with Checkpointer(...) as checkpointer:` restores the model and the optimizer if `config.resume` is set.

    Creates the run's folder. In the block the folder is locked: no other run can write into it. The outputs of an
    earlier run in the folder are moved to a subfolder; if the block raises before the first step is logged, they are
    moved back.

    Args:
        last_step: the last step of this run, by default `config.steps`.

    Attributes:
        validations: those so far, up to the checkpoint in a resumed run. `record` appends to them.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: the checkpoint is damaged, or belongs to a run with other settings or another text, or later
            checkpoints would be overwritten, or the dataset would be moved with the outputs of an earlier run.
        OSError: the folder cannot be written to; on entering, another run is writing into it.
    """

    def __init__(
        self,
        config: Config,
        tokens: Tokens,
        model: Transformer,
        optimizer: Optimizer,
        group: ProcessGroup,
        last_step: int | None = None,
    ) -> None:
        require_safetensors("train")  # now, not at the first checkpoint
        self.config, self._model, self._optimizer, self._group = config, model, optimizer, group
        self.folder = _make_folder(config.folder) if group.is_main else config.folder
        self.model_path = self.folder / checkpoints.MODEL
        self._text = tokens.text
        self._text_path = None if config.dataset in DATASETS else _absolute(config.dataset)
        self._text_sha256 = tokens.sha256
        self._checkpoint = None if config.resume is None else self._find(config.resume)
        self._copies_text = self._text_path is not None and self._needs_copy(self._text_path)
        if self._copies_text:
            self._text_path = os.path.abspath(self.folder / checkpoints.TEXT)
        self._last_step = config.steps if last_step is None else last_step
        state = None if self._checkpoint is None else self._checkpoint.state
        group.check_same({"text": self._text_sha256, "checkpoint": state})
        self.validations = [] if state is None else self._restored_validations(state)
        self._moved: Path | None = None  # the folder of the earlier run's outputs
        self._exit_stack = ExitStack()

    @property
    def start_step(self) -> int:
        """The number of steps that the run starts after: 0, or that of the checkpoint."""
        return 0 if self._checkpoint is None else self._checkpoint.step

    @property
    def saved_config(self) -> dict[str, Any] | None:
        """The settings in the checkpoint that the run is resumed from."""
        return None if self._checkpoint is None else self._checkpoint.state["config"]

    def _find(self, path: str) -> checkpoints.Checkpoint:
        checkpoint = checkpoints.find(path)
        # Earlier versions had fewer settings: those that they lacked had what is the default now.
        saved = {name: getattr(Config, name) for name in FIXED_ON_RESUME} | checkpoint.state["config"]
        saved, own = with_defaults(saved), with_defaults(vars(self.config))
        if changed := [name for name in FIXED_ON_RESUME if own[name] != saved[name]]:
            raise ValueError(
                f"resume: {checkpoint.path} belongs to a run with "
                + ", ".join(f"{option(name)} {saved[name]!r}, not {own[name]!r}" for name in changed)
                + "; leave these options out, or start a new run"
            )
        if checkpoint.step > self.config.steps:
            raise ValueError(
                f"{checkpoint.path} has {checkpoint.step:,} steps already, and {option('steps')} is "
                f"{self.config.steps:,}; set a larger number, or leave it out"
            )
        if checkpoint.state["text_sha256"] != self._text_sha256:
            raise ValueError(
                f"{checkpoint.path} was trained on another text than {self.config.dataset!r} has now; give the path of "
                f"its text with {option('dataset')}"
            )
        good, _ = checkpoints.later_checkpoints(checkpoint)
        if good and self._same_folder(checkpoint):
            raise ValueError(
                f"{good[-1]} is later than {checkpoint.path}; resume from the later one, or choose another folder for "
                f"this run with {option('out')}"
            )
        return checkpoint

    def _same_folder(self, checkpoint: checkpoints.Checkpoint) -> bool:
        """Whether the run continues in the folder of the run that it is resumed from."""
        return checkpoint.path.parent == (self.folder / checkpoints.FOLDER).resolve()

    def _needs_copy(self, text_path: str) -> bool:
        """Whether the run stores its text: that of a pipe, which is read only once, or another run's copy of it."""
        if not os.path.isfile(text_path):
            return self._text is not None
        if self._checkpoint is not None and self._same_folder(self._checkpoint):
            return False
        if checkpoints.is_output(self.folder, text_path):
            raise ValueError(
                f"dataset {self.config.dataset!r} has the path of an output of the run, which would move it; choose "
                f"another folder with {option('out')}"
            )
        return (
            self._text is not None and self._checkpoint is not None and os.path.basename(text_path) == checkpoints.TEXT
        )

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if self._group.is_main:
                stack.enter_context(_locked(self.folder))
            if self._checkpoint is not None:
                self._checkpoint.restore(self._model, self._optimizer)
            self._group.check_same_parameters(self._model)
            if self._group.is_main:  # last: a start that fails must leave the folder unchanged
                try:
                    self._prepare_folder()
                except BaseException:
                    self._move_back()
                    raise
                if self._checkpoint is not None:
                    echo(f"resumed from {self._checkpoint.path}")
            self._exit_stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is not None:
            self._move_back()
        self._exit_stack.__exit__(kind, error, tb)

    def _move_back(self) -> None:
        """After an error: move the outputs of an earlier run back, unless this run has outputs."""
        if self._moved is not None and not self._has_outputs():
            with suppress(OSError):  # the error is what to report
                checkpoints.move_back(self.folder, self._moved)
                echo(f"the outputs of the earlier run are in {self.folder} again")

    def _has_outputs(self) -> bool:
        """Whether the run has logged a step or written a checkpoint."""
        with suppress(FileNotFoundError):
            return bool(checkpoints.latest_checkpoint(self.folder) or read_metrics(self.folder).steps)
        return False

    def _prepare_folder(self) -> None:
        checkpoints.remove_unfinished(self.folder)
        if self._checkpoint is None or not self._same_folder(self._checkpoint):
            self._moved = checkpoints.move_earlier_run(self.folder)
            if self._moved is not None:
                echo(f"the outputs of an earlier run in {self.folder} are now in {self._moved}")
        else:
            for path in checkpoints.later_checkpoints(self._checkpoint)[1]:
                echo(f"a damaged checkpoint is now {checkpoints.mark_damaged(path)}")
        if self._copies_text and self._text is not None:
            path = self.folder / checkpoints.TEXT
            content = self._text.replace("\n", "\r\n").encode("utf-8-sig")  # what `load_text` undoes, for any text
            with checkpoints.explain_write_errors(self.folder, path):
                replace_file(path, content)

    def _restored_validations(self, state: dict[str, Any]) -> list[Validation]:
        """The validations that a run which was never stopped would have had up to the checkpoint.

        RG_TRAIN_STEPS may have added one after the last step; it stays if this run ends there, too. In checkpoints of
        earlier versions the loss after the last step is a mean over all blocks, and those before it over `eval_blocks`.
        """
        saved, blocks = state["config"], state.get("validation_blocks")
        losses = [Validation(step, loss, (blocks or {}).get(str(step), 0)) for step, loss in state["validation_losses"]]
        if losses and losses[-1].step in (state["step"], saved["steps"]):
            last = losses[-1].step
            scheduled = last in (saved["steps"], self._last_step) or last % saved["eval_interval"] == 0
            if not scheduled or blocks is None and last == saved["steps"] != self.config.steps:
                losses.pop()
        return losses

    def save(self, step: int) -> Path | None:
        """Write a checkpoint and the model file, and remove old checkpoints. Return its path on rank 0, else None."""
        if not self._group.is_main:
            return None
        extra: dict[str, Any] = {
            "config": asdict(self.config), "text_sha256": self._text_sha256, "dataset_path": self._text_path,
            **self._validation_state(), "backend": self._model.parameters()[0].backend.name, "versions": versions(),
        }  # fmt: skip
        path = checkpoints.save(self.folder, step, self._model, self._optimizer, extra)
        self._prune()
        self.save_model(step)
        return path

    def record(self, validation: Validation) -> Path | None:
        """Append a validation, and store it in the checkpoint of its step.

        If there is no such checkpoint and no earlier loss is as small, write one. Return its path on rank 0, else None.
        """
        self.validations.append(validation)
        path = checkpoints.path_of(self.folder, validation.step)
        if self._group.is_main and path.exists():
            with checkpoints.explain_write_errors(self.folder, path):
                checkpoints.add_validations(path, self._validation_state())
            self._prune()
        elif validation in best_validations(self.validations):
            return self.save(validation.step)
        return None

    def has_validated(self, step: int) -> bool:
        """Whether the loss after this step is known."""
        return any(found.step == step for found in self.validations)

    def _validation_state(self) -> dict[str, Any]:
        return {
            "validation_losses": [(step, loss) for step, loss, _ in self.validations],
            "validation_blocks": {str(step): blocks for step, _, blocks in self.validations},
        }

    def _prune(self) -> None:
        best = {validation.step for validation in best_validations(self.validations)}
        checkpoints.prune(self.folder, self.config.keep, best)

    def save_model(self, step: int) -> None:
        """Write the model file alone."""
        if self._group.is_main:
            with checkpoints.explain_write_errors(self.folder, self.model_path):
                save_model(self.model_path, self._model, notes={"training": asdict(self.config), "steps": step})

    @contextmanager
    def save_on_write_error(self, step: int) -> Iterator[None]:
        """In the block, an OSError, as of a full disk under the metrics, first writes a checkpoint of this step.

        The exception names the file and the last checkpoint, which is an earlier one if this cannot be written, either.
        """
        with checkpoints.explain_write_errors(self.folder, self.folder / FILE):
            try:
                yield
            except OSError:
                with suppress(OSError, FloatingPointError):
                    self.save(step)
                raise


def _absolute(path: str) -> str:
    """The absolute path of a file. Links in /dev, as /dev/stdin, are followed: they are of this process alone."""
    return os.path.realpath(path) if os.path.abspath(path).startswith(("/dev/", "/proc/")) else os.path.abspath(path)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """In the block, the folder is locked for this run. Raises OSError if another run has the lock. (Not on Windows.)"""
    if fcntl is None:
        yield
        return
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(
                f"another run is writing into {folder}; choose another folder with {option('out')}"
            ) from error
        yield


def _make_folder(folder: Path) -> Path:
    """Create the folder if it does not exist. Raises OSError if no file can be created in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write to the output folder {folder}: "
            f"{'it is a file' if isinstance(error, FileExistsError) else error.strerror}; "
            f"choose another with {option('out')}"
        ) from error
    return folder
