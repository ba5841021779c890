"""The checkpoints of a run: where to resume from, when to keep one, and the model file.

If several processes train together, rank 0 alone writes; all of them restore.
"""

try:
    import fcntl
except ImportError:  # as on Windows
    fcntl = None  # type: ignore[assignment]
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from russellgrad.checkpoint import require_safetensors, save_model
from russellgrad.optimizer import Optimizer
from russellgrad.russelltransformer import Transformer
from train import checkpoints
from train.config import FIXED_ON_RESUME, Config
from train.distributed import ProcessGroup
from train.metrics import versions
from train.progress import echo

Losses = list[tuple[int, float]]  # (steps taken, validation loss)


class Checkpointer:
    """`with Checkpointer(...) as checkpointer:` restores the model and the optimizer if `config.resume` is set.

    Creates the run's folder. In the block the folder is locked: no other run can write into it. The outputs of an
    earlier run in the folder are moved to a subfolder.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: the checkpoint is damaged, or belongs to a run with other settings or another text, or later
            checkpoints would be overwritten.
        OSError: the folder cannot be written to; on entering, another run is writing into it.
    """

    def __init__(
        self, config: Config, text: str, model: Transformer, optimizer: Optimizer, group: ProcessGroup
    ) -> None:
        require_safetensors("train")  # now, not at the first checkpoint
        self.config, self._model, self._optimizer, self._group = config, model, optimizer, group
        self.folder = _make_folder(config.folder) if group.is_main else config.folder
        self.model_path = self.folder / checkpoints.MODEL
        self._text_sha256 = hashlib.sha256(text.encode()).hexdigest()
        self._checkpoint = None if config.resume is None else self._find(config.resume)
        state = None if self._checkpoint is None else self._checkpoint.state
        group.check_same({"text": self._text_sha256, "checkpoint": state})
        self._exit_stack = ExitStack()

    @property
    def start_step(self) -> int:
        """The number of steps that the run starts after: 0, or that of the checkpoint."""
        return 0 if self._checkpoint is None else self._checkpoint.step

    def _find(self, path: str) -> checkpoints.Checkpoint:
        checkpoint = checkpoints.find(path)
        saved = checkpoint.state["config"]
        if changed := [name for name in FIXED_ON_RESUME if getattr(self.config, name) != saved[name]]:
            raise ValueError(
                f"resume: {checkpoint.path} belongs to a run with "
                + ", ".join(f"{name} {saved[name]!r}, not {getattr(self.config, name)!r}" for name in changed)
                + "; leave these options out, or start a new run"
            )
        if checkpoint.step > self.config.steps:
            raise ValueError(
                f"{checkpoint.path} has {checkpoint.step:,} steps already, and steps is {self.config.steps:,}; set a "
                "larger number, or leave it out"
            )
        if checkpoint.state["text_sha256"] != self._text_sha256:
            raise ValueError(f"{checkpoint.path} was trained on another text than {self.config.dataset!r} has now")
        good, _ = checkpoints.later_checkpoints(checkpoint)
        if good and self._same_folder(checkpoint):
            raise ValueError(
                f"{good[-1]} is later than {checkpoint.path}; resume from the later one, or choose another folder for "
                "this run with --out"
            )
        return checkpoint

    def _same_folder(self, checkpoint: checkpoints.Checkpoint) -> bool:
        """Whether the run continues in the folder of the run that it is resumed from."""
        return checkpoint.path.parent == (self.folder / checkpoints.FOLDER).resolve()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if self._group.is_main:
                stack.enter_context(_locked(self.folder))
            if self._checkpoint is not None:
                self._checkpoint.restore(self._model, self._optimizer)
            self._group.check_same_parameters(self._model)
            if self._group.is_main:  # last: a start that fails must leave the folder unchanged
                self._prepare_folder()
                if self._checkpoint is not None:
                    echo(f"resumed from {self._checkpoint.path}")
            self._exit_stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._exit_stack.__exit__(kind, error, tb)

    def _prepare_folder(self) -> None:
        checkpoints.remove_unfinished(self.folder)
        if self._checkpoint is None or not self._same_folder(self._checkpoint):
            if destination := checkpoints.move_earlier_run(self.folder):
                echo(f"the outputs of an earlier run in {self.folder} are now in {destination}")
        else:
            for path in checkpoints.later_checkpoints(self._checkpoint)[1]:
                echo(f"a damaged checkpoint is now {checkpoints.mark_damaged(path)}")

    def restored_validation_losses(self) -> Losses:
        """The validation losses up to the checkpoint; empty in a new run.

        A loss after the last step of the earlier part is left out, as after `--steps` or RG_TRAIN_STEPS, unless it is
        at a multiple of `eval_interval`: it is a mean over other blocks.
        """
        if self._checkpoint is None:
            return []
        state, config = self._checkpoint.state, self.config
        return [
            (step, loss)
            for step, loss in state["validation_losses"]
            if step == config.steps or step % config.eval_interval == 0 and step != state["config"]["steps"]
        ]

    def save(self, step: int, validation_losses: Losses) -> Path | None:
        """Write a checkpoint and the model file, and remove old checkpoints. Return its path on rank 0, else None."""
        if not self._group.is_main:
            return None
        extra: dict[str, Any] = {
            "config": asdict(self.config), "text_sha256": self._text_sha256, "validation_losses": validation_losses,
            "backend": self._model.parameters()[0].backend.name, "versions": versions(),
        }  # fmt: skip
        path = checkpoints.save(self.folder, step, self._model, self._optimizer, extra)
        checkpoints.prune(self.folder, self.config.keep, best_step(validation_losses, self.config))
        self.save_model(step)
        return path

    def save_model(self, step: int) -> None:
        """Write the model file alone."""
        if self._group.is_main:
            with checkpoints.explain_write_errors(self.folder):
                save_model(self.model_path, self._model, notes={"training": asdict(self.config), "steps": step})


def best_step(validation_losses: Sequence[tuple[int, float]], config: Config) -> int | None:
    """The step with the smallest validation loss; None if there is none.

    The last step of the run is left out: its loss is a mean over all blocks, and its checkpoint is kept anyway.
    """
    comparable = [(loss, step) for step, loss in validation_losses if step != config.steps]
    return min(comparable)[1] if comparable else None


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
            raise OSError(f"another run is writing into {folder}; choose another folder with out") from error
        yield


def _make_folder(folder: Path) -> Path:
    """Create the folder if it does not exist. Raises OSError if no file can be created in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write to the output folder {folder}: {error.strerror}; choose another with out"
        ) from error
    return folder
