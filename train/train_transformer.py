"""Train the transformer on a text, character by character.

In Python, from the repository's root:

    from train.train_transformer import train
    train()                                # the defaults: Shakespeare's plays, a minute or two on two cores
    train(dataset="notes.txt", steps=500)  # any field of train.config.Config

On the command line: `python train/train_transformer.py --help`, which names the environment variables as well: a test
of an example sets RG_TRAIN_STEPS to cut it short.

The same seed gives the same losses: to the last bit on one machine with one backend, build of the libraries and number
of threads; on another backend within rounding.
"""

import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where `russellgrad` and `train` are

from russellgrad import (
    Tensor,
    compile_step,
    get_backend,
    get_default_dtype,
    get_matmul_precision,
    no_grad,
    set_default_dtype,
    set_matmul_precision,
)
from russellgrad.checkpoint import save_model
from russellgrad.loss import cross_entropy_loss
from russellgrad.optimizer import AdamWOptimizer
from russellgrad.russelltransformer import Transformer
from russellgrad.schedules import Schedule, constant, cosine, cosine_with_warmup, exponential
from russellgrad.tokenizer import Tokenizer
from train.config import Config, parse
from train.data import Ids, batches, load_text, split, validation_blocks
from train.progress import Progress, Stopwatch, clock, peak_memory, plain_errors

ENVIRONMENT = (
    "Environment: RG_BACKEND chooses the backend (numpy, numba, strict, cupy, or a module's dotted path). "
    "RG_NUM_THREADS is the number of threads on a CPU. RG_DATA_DIR is a folder with tinyshakespeare.txt, to train "
    "offline. RG_TRAIN_STEPS ends every run after so many steps at most."
)
READ_EVERY = 10  # steps: reading a loss waits for the device, so not every one is read at once


@dataclass(frozen=True)
class Result:
    """What a training run gives back."""

    config: Config
    model: Transformer  # in evaluation mode
    path: Path  # of model.safetensors
    losses: list[float]  # of each step's batch, before the step
    validation_losses: list[tuple[int, float]]  # (steps taken, loss)
    seconds: float  # wall time of the whole run
    tokens_per_second: float  # of the steps alone
    interrupted: bool  # ended by Ctrl-C


def train(config: Config | None = None, **overrides: Any) -> Result:
    """Train a model on the backend in use, and write it to `model.safetensors` in the configuration's folder.

    The validation loss is a mean over non-overlapping blocks of the text's last tenth: at intervals over `eval_blocks`
    of them, evenly spaced and always the same; once all the configured steps are done, over every one. The model is
    written each time. Ctrl-C ends the run after the step at hand, and what is trained so far is kept.

    Args:
        config: by default `Config()`.
        overrides: fields of it to change.

    Raises:
        ValueError: a field out of range, a dtype that the backend does not compute in, an unknown or unsuitable
            dataset, a prompt with characters that are not in it, a bad RG_TRAIN_STEPS.
        ImportError: the dataset or the model's file needs a package that is not installed.
        OSError: the folder cannot be written to, or the dataset cannot be read.
        FloatingPointError: a loss is not finite; names the step. The file written last stays.
    """
    config = replace(config or Config(), **overrides)
    _check_dtype(config)
    steps, started, watch = _steps_allowed(config.steps), time.perf_counter(), Stopwatch()
    text = load_text(config.dataset)
    path = _writable(config.folder) / "model.safetensors"
    model = build_model(config, text)
    training, validation = split(model.tokenizer.encode(text), config.block)
    prompt = _checked_prompt(config, model, text)
    optimizer = build_optimizer(config, model)
    stream, ids = batches(training, config.batch, config.block, config.seed), model.tokenizer.ids
    take_next = compile_step(partial(take_step, model, optimizer, clip=config.clip))
    losses: list[float] = []
    validation_losses: list[tuple[int, float]] = []
    unread: list[Tensor] = []

    with Progress(steps) as progress, Interruption() as interruption, _matmul_precision(config):
        for step, (inputs, targets) in enumerate(islice(stream, steps), start=1):
            with watch:
                unread.append(take_next(ids(inputs), ids(targets)))
                last = step == steps or interruption.requested
                due = last or step % config.eval_interval == 0
                if due or step % READ_EVERY == 0:
                    losses += read_losses(unread, already=len(losses))
                    unread.clear()
            if not unread:
                progress.update(step, losses[-1], step * config.batch * config.block / watch.seconds)
            if due:
                blocks = validation_blocks(
                    validation, config.block, None if step == config.steps else config.eval_blocks
                )
                loss = evaluate(model, *blocks, config.batch, step)
                validation_losses.append((step, loss))
                save_model(path, model, notes={"training": asdict(config), "steps": step})
                progress.say(f"step {step:,}: validation loss {loss:.4f} over {len(blocks[0]):,} blocks")
                if config.sample_tokens:
                    progress.say(_framed(_sample(config, model, prompt)))
            if last:
                break

    seconds, speed = time.perf_counter() - started, step * config.batch * config.block / watch.seconds
    result = Result(config, model.eval(), path, losses, validation_losses, seconds, speed, interruption.requested)
    print(summary(result), flush=True)
    return result


# --- What a run is made of


def build_model(config: Config, text: str) -> Transformer:
    """A new model in the configuration's dtype, whose vocabulary is the characters of `text`."""
    default = get_default_dtype()
    set_default_dtype(config.dtype)
    try:
        return Transformer(
            Tokenizer.from_text(text, config.block, config.width, seed=config.seed),
            config.layers,
            config.heads,
            config.ff_scale,
            activation=config.activation,
            output_projection=config.output_projection,
            final_norm=config.final_norm,
            dropout=config.dropout,
            seed=config.seed,
        )
    finally:
        set_default_dtype(default)


def build_optimizer(config: Config, model: Transformer) -> AdamWOptimizer:
    """AdamW with weight decay on matrices alone: none on biases, nor on the scales and shifts of layer norms."""
    parameters = model.parameters()
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamWOptimizer(groups, build_schedule(config), betas=(config.beta1, config.beta2), flat=True)


def build_schedule(config: Config) -> Schedule:
    lr, last, steps = config.learning_rate, config.last_learning_rate, config.steps
    match config.schedule:
        case "constant":
            return constant(lr)
        case "exponential":
            return exponential(lr, (last / lr) ** (1 / steps))
        case "cosine":
            return cosine(lr, steps, last)
        case _:
            return cosine_with_warmup(lr, config.warmup_steps, steps, last)


def take_step(model: Transformer, optimizer: AdamWOptimizer, inputs: Any, targets: Any, *, clip: float) -> Tensor:
    """One optimizer step on a batch, inputs and targets (B, T). Returns the loss before it; nothing waits for it."""
    optimizer.zero_grad()
    loss = cross_entropy_loss(model.forward(inputs), targets, model.tokenizer.pad_token_id)
    loss.backward()
    optimizer.step(max_norm=clip or None)
    return loss.detach()


def read_losses(unread: list[Tensor], already: int) -> list[float]:
    """The losses of the steps after the first `already`, fetched together. Raises FloatingPointError as `train`."""
    losses: list[float] = Tensor.stack(unread).numpy().tolist()
    for step, loss in enumerate(losses, start=already + 1):
        _check_finite(loss, f"the loss at step {step}")
    return losses


def evaluate(model: Transformer, inputs: Ids, targets: Ids, batch: int, step: int) -> float:
    """The mean loss over blocks (N, T), `batch` of them at a time, without dropout. Raises as `read_losses`."""
    pad, parts = model.tokenizer.pad_token_id, []
    model.eval()
    with no_grad():
        for i in range(0, len(inputs), batch):
            some = slice(i, i + batch)
            parts.append(cross_entropy_loss(model.forward(inputs[some]), targets[some], pad) * len(inputs[some]))
    model.train()
    mean = math.fsum(Tensor.stack(parts).numpy()) / len(inputs)
    _check_finite(mean, f"the validation loss after step {step}")
    return mean


def summary(result: Result) -> str:
    """The line a run ends with."""
    step, loss = result.validation_losses[-1]
    peak = peak_memory()
    return (
        (f"Stopped by Ctrl-C after step {step:,} of {result.config.steps:,}. " if result.interrupted else "")
        + f"{step:,} steps, seed {result.config.seed}, validation loss {loss:.4f}, {clock(result.seconds)} wall time, "
        + f"{result.tokens_per_second:,.0f} tokens/s, "
        + (f"peak memory {peak / 2**20:,.0f} MiB, " if peak else "")
        + f"model in {result.path}"
    )


class Interruption:
    """In the block Ctrl-C only sets `requested`, so that no step is left half done; a second one ends the program."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only there may a handler be set
            self._previous = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)


# --- Checks before the work, and small things


def _check_dtype(config: Config) -> None:
    xp = get_backend()
    if config.dtype not in xp.float_dtypes():
        raise ValueError(
            f"dtype {config.dtype}: backend {xp.name!r} computes in {', '.join(xp.float_dtypes())}; choose one of them"
            + ("; for bfloat16, RG_BACKEND=cupy and the package ml_dtypes" if config.dtype == "bfloat16" else "")
        )


@contextmanager
def _matmul_precision(config: Config) -> Iterator[None]:
    """In the block, products are computed as configured, if it is."""
    before = get_matmul_precision()
    set_matmul_precision(config.matmul_precision or before)
    try:
        yield
    finally:
        set_matmul_precision(before)


def _steps_allowed(configured: int) -> int:
    limit = os.environ.get("RG_TRAIN_STEPS")
    if not limit:
        return configured
    if not limit.isdecimal() or int(limit) < 1:
        raise ValueError(f"RG_TRAIN_STEPS must be a positive whole number, got {limit!r}")
    return min(configured, int(limit))


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


def _checked_prompt(config: Config, model: Transformer, text: str) -> str:
    """The samples' prompt: the configured one, or a new line, or the text's first character if it has no lines."""
    prompt = config.prompt or ("\n" if "\n" in text else text[0])
    model.tokenizer.encode(prompt)  # a ValueError now, not after the first interval
    return prompt


def _check_finite(loss: float, what: str) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(f"{what} is {loss}; lower the learning rate, or clip the gradient")


def _sample(config: Config, model: Transformer, prompt: str) -> str:
    return model.generate(
        prompt, config.sample_tokens, temperature=config.temperature, top_k=config.top_k, seed=config.seed
    )


def _framed(text: str) -> str:
    return "\n".join(f"    | {line}" for line in text.strip("\n").split("\n"))


if __name__ == "__main__":
    options = parse(description="Train a character-level transformer on a text.", epilog=ENVIRONMENT)
    with plain_errors(ValueError, ImportError, RuntimeError, TypeError):
        get_backend()
    with plain_errors(ValueError, ImportError, OSError, FloatingPointError):
        train(options)
