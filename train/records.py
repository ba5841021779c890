"""What a run leaves behind, and says meanwhile: model.safetensors, checkpoints/, metrics.jsonl, lines on the terminal.

Of several processes that train together, rank 0 alone writes and speaks; for the others all of this does nothing.
"""

import hashlib
import platform
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from russellgrad import __version__
from russellgrad.checkpoint import save_model
from russellgrad.optimizer import Optimizer
from russellgrad.russelltransformer import Transformer
from train import checkpoints
from train.config import Config
from train.distributed import Team
from train.metrics import Metrics
from train.progress import Progress


class Records:
    """`with Records(...) as records:`. The run's folder is made at once, and what `--resume` names is found whole.

    Raises:
        OSError: the folder cannot be written to. ValueError: the checkpoint is damaged, of another text, or done with
            its steps; a new checkpoint would lie below others that are later.
    """

    def __init__(self, config: Config, steps: int, text: str, team: Team) -> None:
        self.config, self._steps, self._team = config, steps, team
        self.folder = _writable(config.folder)
        self.text_sha256 = hashlib.sha256(text.encode()).hexdigest()
        self.validation_losses: list[tuple[int, float]] = []
        self._stack, self._started, self._seconds = ExitStack(), time.perf_counter(), 0.0
        self._checkpoint = None if config.resume is None else self._find(config.resume)
        self.begun = 0 if self._checkpoint is None else self._checkpoint.step

    def _find(self, path: str) -> checkpoints.Checkpoint:
        checkpoint = checkpoints.find(path)
        if checkpoint.facts["text_sha256"] != self.text_sha256:
            raise ValueError(f"{checkpoint.path} was trained on another text than {self.config.dataset!r} is now")
        if checkpoint.step >= self._steps:
            raise ValueError(
                f"{checkpoint.path} has all {self._steps:,} steps; to train on, give more of them with --steps"
            )
        last = checkpoints.newest(self.folder)
        if last is not None and last.name > checkpoint.path.name:
            raise ValueError(
                f"{last} is later than {checkpoint.path}; resume from that, or give this run a folder of its own "
                "with --out"
            )
        return checkpoint

    def start(self, model: Transformer, optimizer: Optimizer) -> None:
        """Bring both to where the checkpoint left them, if the run goes on from one; move what is there else aside."""
        self.model, self.optimizer = model, optimizer
        if self._checkpoint is not None:
            self._checkpoint.restore(model, optimizer)
            self.validation_losses = [(step, loss) for step, loss in self._checkpoint.facts["validation_losses"]]
        if self._team.leads:
            checkpoints.tidy(self.folder)
            aside = checkpoints.set_aside(self.folder) if self._checkpoint is None else None
            if aside:
                print(f"checkpoints of an earlier run are now in {aside}", flush=True)

    def __enter__(self) -> Self:
        introduction = self._team.introduction()
        if self._team.leads:
            self._progress = self._stack.enter_context(Progress(self._steps, begun=self.begun))
            metrics = Metrics(self.folder, resume_at=self.begun or None, tensorboard=self.config.tensorboard)
            self._metrics = self._stack.enter_context(metrics)
            parameters, backend = self.model.parameters(), self.model.parameters()[0].backend.name
            self._metrics.run(config=asdict(self.config), parameters=sum(p.size for p in parameters), backend=backend)
            if introduction:
                self._progress.say(introduction)
            if self._checkpoint is not None:
                self._progress.say(f"resumed from {self._checkpoint.path}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, tb)

    # --- What is told

    def steps(self, last: int, losses: Sequence[float], norms: Sequence[float] | None, seconds: float) -> None:
        """Losses, and norms of the gradients, of the steps up to number `last`, and how long all so far have taken."""
        if self._team.leads:
            first, tokens = last - len(losses) + 1, len(losses) * self.config.batch * self.config.block
            tokens_per_second, self._seconds = tokens / (seconds - self._seconds), seconds
            rates = [self.optimizer.lr_schedule(step - 1) for step in range(first, last + 1)]
            self._metrics.steps(
                first, losses, learning_rates=rates, gradient_norms=norms, tokens_per_second=tokens_per_second,
                seconds=time.perf_counter() - self._started,
            )  # fmt: skip
            self._progress.update(last, losses[-1], tokens_per_second)

    def validation(self, step: int, loss: float, blocks: int) -> None:
        self.validation_losses.append((step, loss))
        if self._team.leads:
            self._metrics.validation(step, loss, blocks)
            self._progress.say(f"step {step:,}: validation loss {loss:.4f} over {blocks:,} blocks")

    def sample(self, step: int, text: str) -> None:
        if self._team.leads:
            self._metrics.sample(step, text)
            self._progress.say("\n".join(f"    | {line}" for line in text.strip("\n").split("\n")))

    @property
    def best(self) -> int | None:
        """The step with the least validation loss."""
        return min(self.validation_losses, key=lambda entry: entry[1])[0] if self.validation_losses else None

    def save(self, step: int) -> None:
        """A checkpoint, and the model."""
        if self._team.leads:
            facts = {
                "config": asdict(self.config), "text_sha256": self.text_sha256,
                "validation_losses": self.validation_losses, "backend": self.model.parameters()[0].backend.name,
                "versions": {"russellgrad": __version__, "numpy": np.__version__, "python": platform.python_version()},
            }  # fmt: skip
            path = checkpoints.save(self.folder, step, self.model, self.optimizer, facts)
            if self._team.size > 1:  # whose end may be the launcher's, which has no last word for it
                self._progress.say(f"checkpoint: {path}")
            checkpoints.prune(self.folder, self.config.keep, self.best)
            save_model(self.path, self.model, notes={"training": asdict(self.config), "steps": step})

    @property
    def path(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def last_checkpoint(self) -> str:
        return str(checkpoints.newest(self.folder) or "none")


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
