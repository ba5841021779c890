"""What a run leaves behind, and says meanwhile: model.safetensors, checkpoints/, metrics.jsonl, lines on the terminal.

Of several processes that train together, rank 0 alone writes and speaks; for the others all of this does nothing.
"""

try:
    import fcntl
except ImportError:  # as on Windows
    fcntl = None  # type: ignore[assignment]
import hashlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from russellgrad.checkpoint import save_model
from russellgrad.optimizer import Optimizer
from russellgrad.russelltransformer import Transformer
from train import checkpoints
from train.config import FIXED, Config
from train.distributed import Team
from train.metrics import Metrics, versions
from train.progress import Progress, say


class Records:
    """`with Records(...) as records:`. The run's folder is made at once, and what `resume` names is found whole.

    Raises:
        OSError: the folder cannot be written to, or another run is writing into it. ValueError: the checkpoint is
            damaged, or of other settings or another text; there are later ones.
    """

    def __init__(self, config: Config, text: str, team: Team, model: Transformer, optimizer: Optimizer) -> None:
        self.config, self._team, self._model, self._optimizer = config, team, model, optimizer
        self.folder = _writable(config.folder) if team.leads else config.folder
        self.text_sha256 = hashlib.sha256(text.encode()).hexdigest()
        self.validation_losses: list[tuple[int, float]] = []
        self._stack, self._started, self._seconds = ExitStack(), time.perf_counter(), 0.0
        self._checkpoint = None if config.resume is None else self._find(config.resume)
        self.begun = 0 if self._checkpoint is None else self._checkpoint.step

    def _find(self, path: str) -> checkpoints.Checkpoint:
        checkpoint = checkpoints.find(path)
        saved = checkpoint.facts["config"]
        if changed := [name for name in FIXED if getattr(self.config, name) != saved[name]]:
            raise ValueError(
                f"resume: {checkpoint.path} is of a run with "
                + ", ".join(f"{name} {saved[name]!r}, not {getattr(self.config, name)!r}" for name in changed)
                + "; leave these out, or start a new run"
            )
        if checkpoint.step > self.config.steps:
            raise ValueError(
                f"{checkpoint.path} has {checkpoint.step:,} steps already, and steps is {self.config.steps:,}; give "
                "more, or leave it out"
            )
        if checkpoint.facts["text_sha256"] != self.text_sha256:
            raise ValueError(f"{checkpoint.path} was trained on another text than {self.config.dataset!r} is now")
        good, _ = checkpoints.later(checkpoint)
        if good and self._goes_on_there(checkpoint):
            raise ValueError(
                f"{good[-1]} is later than {checkpoint.path}; resume from that, or give this run a folder of its own "
                "with --out"
            )
        return checkpoint

    def _goes_on_there(self, checkpoint: checkpoints.Checkpoint) -> bool:
        """Whether the run goes on in the folder of the one that it is resumed from."""
        return checkpoint.path.parent == (self.folder / checkpoints.FOLDER).resolve()

    @property
    def identity(self) -> dict[str, Any]:
        """What the processes of a run must have in common, besides its settings."""
        found = None if self._checkpoint is None else self._checkpoint.facts
        return {"text": self.text_sha256, "checkpoint": found}

    def __enter__(self) -> Self:
        introduction = self._team.introduction()
        with ExitStack() as stack:
            if self._team.leads:
                stack.enter_context(_locked(self.folder))
                self._make_room()
            if self._checkpoint is not None:
                self._checkpoint.restore(self._model, self._optimizer)
                self._restore_validation(self._checkpoint.facts)
            if self._team.leads:
                self._progress = stack.enter_context(Progress(self.config.steps, begun=self.begun))
                metrics = Metrics(self.folder, resume_at=self.begun or None, tensorboard=self.config.tensorboard)
                with self._on_disk():
                    self._metrics = stack.enter_context(metrics)
                    parameters = self._model.parameters()
                    self._metrics.run(
                        config=asdict(self.config), parameters=sum(p.size for p in parameters),
                        backend=parameters[0].backend.name,
                    )  # fmt: skip
                if introduction:
                    self._progress.say(introduction)
                if self._checkpoint is not None:
                    self._progress.say(f"resumed from {self._checkpoint.path}")
            self._stack = stack.pop_all()
        return self

    def _make_room(self) -> None:
        """Move aside what is in the run's way."""
        checkpoints.tidy(self.folder)
        if self._checkpoint is None or not self._goes_on_there(self._checkpoint):
            if aside := checkpoints.set_aside(self.folder):
                say(f"what an earlier run left in {self.folder} is now in {aside}")
        else:
            for damaged in checkpoints.later(self._checkpoint)[1]:
                say(f"a damaged checkpoint is now {checkpoints.mark_damaged(damaged)}")

    def _restore_validation(self, facts: Mapping[str, Any]) -> None:
        """Without those of where RG_TRAIN_STEPS or fewer steps ended the run before: they are over other blocks."""
        for step, loss in facts["validation_losses"]:
            between = step % self.config.eval_interval == 0 and step != facts["config"]["steps"]
            if between or step == self.config.steps:
                self.validation_losses.append((step, loss))

    @property
    def lacks_validation(self) -> bool:
        """Whether the run was stopped just before the one that was due."""
        due = self.begun and self.begun % self.config.eval_interval == 0 or self.begun == self.config.steps
        return bool(due) and self.begun not in dict(self.validation_losses)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, tb)

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        """In the block, what cannot be written says where to go on from."""
        try:
            yield
        except OSError as error:
            raise OSError(
                f"cannot write into {self.folder}: {error.strerror or error}; the last checkpoint is "
                f"{self.last_checkpoint}: put that right, and --resume"
            ) from error

    # --- What is told

    def steps(self, last: int, losses: Sequence[float], norms: Sequence[float] | None, seconds: float) -> None:
        """Losses, and norms of the gradients, of the steps up to number `last`, and how long all so far have taken."""
        if self._team.leads:
            first, tokens = last - len(losses) + 1, len(losses) * self.config.batch * self.config.block
            tokens_per_second, self._seconds = tokens / (seconds - self._seconds), seconds
            rates = [self._optimizer.lr_schedule(step - 1) for step in range(first, last + 1)]
            with self._on_disk():
                self._metrics.steps(
                    first, losses, learning_rates=rates, gradient_norms=norms, tokens_per_second=tokens_per_second,
                    seconds=time.perf_counter() - self._started,
                )  # fmt: skip
            self._progress.update(last, losses[-1], tokens_per_second)

    def validation(self, step: int, loss: float, blocks: int) -> None:
        self.validation_losses.append((step, loss))
        if self._team.leads:
            with self._on_disk():
                self._metrics.validation(step, loss, blocks)
            self._progress.say(f"step {step:,}: validation loss {loss:.4f} over {blocks:,} blocks")

    def sample(self, step: int, text: str) -> None:
        if self._team.leads:
            with self._on_disk():
                self._metrics.sample(step, text)
            self._progress.say("\n".join(f"    | {line}" for line in text.strip("\n").split("\n")))

    @property
    def best(self) -> int | None:
        """The step with the least validation loss; but for the last, which is over other blocks, and kept anyway."""
        comparable = [(loss, step) for step, loss in self.validation_losses if step != self.config.steps]
        return min(comparable)[1] if comparable else None

    def save(self, step: int) -> None:
        """A checkpoint, and the model."""
        if self._team.leads:
            facts = {
                "config": asdict(self.config), "text_sha256": self.text_sha256,
                "validation_losses": self.validation_losses, "backend": self._model.parameters()[0].backend.name,
                "versions": versions(),
            }  # fmt: skip
            path = checkpoints.save(self.folder, step, self._model, self._optimizer, facts)
            if self._team.size > 1:  # whose end may be the launcher's, which has no last word for it
                self._progress.say(f"checkpoint: {path}")
            checkpoints.prune(self.folder, self.config.keep, self.best)
            self.save_model(step)

    def save_model(self, step: int) -> None:
        if self._team.leads:
            with self._on_disk():
                save_model(self.path, self._model, notes={"training": asdict(self.config), "steps": step})

    @property
    def path(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def last_checkpoint(self) -> str:
        return str(checkpoints.newest(self.folder) or "none")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """In the block, another run cannot write into the folder. Raises OSError if one does. (Not on Windows.)"""
    if fcntl is None:
        yield
        return
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(f"another run is writing into {folder}; choose another folder with out") from error
        yield


def _writable(folder: Path) -> Path:
    """The folder, made if need be. Raises OSError if no file can be made in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write to the output folder {folder}: {error.strerror}; choose another with out"
        ) from error
    return folder
