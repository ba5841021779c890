"""Logging of a run: metrics.jsonl, TensorBoard, and the terminal or the notebook.

If several processes train together, rank 0 alone writes and prints.
"""

import math
import time
from contextlib import ExitStack
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Self

from russellgrad import Tensor
from russellgrad.optimizer import Optimizer
from russellgrad.russelltransformer import Transformer

from .checkpoints import explain_write_errors, latest_checkpoint
from .config import Config
from .distributed import ProcessGroup
from .metrics import Metrics
from .notebook import NotebookProgress, kernel_display
from .progress import Progress

READ_INTERVAL = 10  # steps: reading a loss waits for the device, so several losses are read at once


class RunLogger:
    """`with RunLogger(...) as logger:` logs losses, validation losses and samples. The run's folder must exist.

    Args:
        start_step: the number of steps that were taken before, in a resumed run.

    Raises:
        ImportError: `config.tensorboard` is set and tensorboardX is not installed.
        OSError: on entering or later, a file cannot be written; `filename` names it.
    """

    def __init__(
        self, config: Config, model: Transformer, optimizer: Optimizer, group: ProcessGroup, start_step: int = 0
    ) -> None:
        self.config, self._model, self._optimizer, self._group = config, model, optimizer, group
        self.losses: list[float] = []  # of each step since start_step that has been read
        self.seconds = 0.0  # of these steps, without validation and checkpoints
        self._start_step = start_step
        self._unread: list[tuple[Tensor, Tensor | None]] = []  # losses and gradient norms on the device
        self._start_time = self._resumed_at = time.perf_counter()
        self._exit_stack = ExitStack()
        if group.is_main:  # here rather than on entering, because this fails without tensorboardX
            self._metrics = Metrics(config.folder, resume_at=start_step or None, tensorboard=config.tensorboard)

    def __enter__(self) -> Self:
        processes = self._group.describe()
        if self._group.is_main:
            folder, parameters = self.config.folder, self._model.parameters()
            with ExitStack() as stack, explain_write_errors(folder, self._metrics.path):
                stack.enter_context(self._metrics)
                self._metrics.run(
                    config=asdict(self.config),
                    parameters=sum(p.size for p in parameters),
                    backend=parameters[0].backend.name,
                )
                show = kernel_display()
                self._progress = stack.enter_context(
                    Progress(self.config.steps, first_step=self._start_step)
                    if show is None
                    else NotebookProgress(show, folder, self.config.steps, first_step=self._start_step)
                )
                if processes:
                    self._progress.echo(processes)
                self._exit_stack = stack.pop_all()
        self._resumed_at = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._exit_stack.__exit__(kind, error, tb)

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second in the steps so far."""
        return len(self.losses) * self.config.batch * self.config.block / (self.seconds or 1.0)

    def log_step(self, step: int, loss: Tensor, gradient_norm: Tensor | None, flush: bool = False) -> None:
        """Log a step: this process's part of the loss, and the gradient norm. Every rank calls this for every step.

        The values stay on the device until ten steps are logged, or until `flush`.

        Raises:
            FloatingPointError: a loss or gradient norm is not finite; names the step and its batch.
        """
        self._unread.append((loss, gradient_norm))
        if flush or step % READ_INTERVAL == 0:
            self._flush(step)

    def _flush(self, last: int) -> None:
        losses = self._group.all_reduce_scalars(Tensor.stack([loss for loss, _ in self._unread]).numpy().tolist())
        on_device = [norm for _, norm in self._unread if norm is not None]
        norms: list[float] | None = Tensor.stack(on_device).numpy().tolist() if on_device else None
        self._unread.clear()
        # Steps before one that is not finite are logged like others.
        steps = zip(losses, norms or losses, strict=True)
        finite = list(takewhile(lambda values: all(map(math.isfinite, values)), steps))
        first, n, seconds = last - len(losses) + 1, len(finite), time.perf_counter() - self._resumed_at
        self.losses += losses[:n]
        self.seconds += seconds
        if self._group.is_main and finite:
            tokens_per_second = n * self.config.batch * self.config.block / seconds
            self._metrics.steps(
                first,
                losses[:n],
                learning_rates=[self._optimizer.lr_schedule(step - 1) for step in range(first, first + n)],
                gradient_norms=norms and norms[:n],
                tokens_per_second=tokens_per_second,
                seconds=time.perf_counter() - self._start_time,
            )
            self._progress.update(first + n - 1, losses[:n], tokens_per_second)
        for what, values in (("loss", losses), ("gradient norm", norms or [])):
            for value in values[n : n + 1]:
                batch = f" on batch {first + n - 1} of seed {self.config.seed}"
                check_finite(value, f"{what} at step {first + n}", self.config.folder, batch)
        self._resumed_at = time.perf_counter()

    def log_validating(self, blocks: int, n_blocks: int) -> None:
        """Show the progress of a validation. Call this with blocks = 0 first."""
        if self._group.is_main:
            self._progress.validating(blocks, n_blocks)

    def log_validation(self, step: int, loss: float, n_blocks: int, bits_per_byte: float) -> None:
        """Log the validation loss after `step` steps, a mean over `n_blocks` blocks of text, also in bits per byte."""
        self.log_validating(n_blocks, n_blocks)
        if self._group.is_main:
            self._metrics.validation(step, loss, n_blocks, bits_per_byte)
            self._progress.validation(step, loss, n_blocks, bits_per_byte)

    def log_sample(self, step: int, sample: str) -> None:
        """Log a text that the model generated after `step` steps."""
        if self._group.is_main:
            self._metrics.sample(step, sample)
            self._progress.sample(step, sample)

    def echo(self, text: str) -> None:
        """Print a text that is not empty, above the progress bar if there is one."""
        if text and self._group.is_main:
            self._progress.echo(text)

    def resume_clock(self) -> None:
        """Leave the time since the last step, of a validation and a checkpoint, out of the tokens per second."""
        self._resumed_at = time.perf_counter()

    def log_checkpoint(self, path: Path | None) -> None:
        """Print the path of a checkpoint if several processes train: the launcher may end a run without a message."""
        if path is not None and self._group.world_size > 1:
            self._progress.echo(f"checkpoint: {path}")


def check_finite(value: float, what: str, run: Path, where: str = "", before: float = math.inf) -> None:
    """Raise FloatingPointError if a value is not finite.

    The message names it and the last checkpoint of the run, which has less than `before` steps.
    """
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the {what} is {value}{where}; the last good checkpoint is {latest_checkpoint(run, before) or 'none'}: "
            "lower the learning rate, or clip the gradient"
        )
