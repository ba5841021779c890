"""Train the transformer on a text, character by character.

In Python, from the repository's root:

    from train.train_transformer import train
    train()                                # the defaults: Shakespeare's plays, some minutes on two cores
    train(dataset="notes.txt", steps=500)  # any field of train.config.Config

On the command line: `python train/train_transformer.py --help`. In the environment, RG_BACKEND chooses the backend,
RG_DATA_DIR is a folder with tinyshakespeare.txt, and RG_TRAIN_STEPS ends every run after so many steps at most.

The same seed gives the same losses: to the last bit on one machine with one backend, build of the libraries and number
of threads; on another backend within rounding.
"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where `russellgrad` and `train` are

import numpy as np

from russellgrad import Tensor, get_default_dtype, no_grad, set_default_dtype
from russellgrad.checkpoint import save_model
from russellgrad.loss import cross_entropy_loss
from russellgrad.optimizer import AdamWOptimizer, clip_grad_norm
from russellgrad.russelltransformer import Transformer
from russellgrad.schedules import Schedule, constant, cosine, cosine_with_warmup, exponential
from russellgrad.tokenizer import Tokenizer
from train.config import Config, parse
from train.data import Ids, batches, load_text, split, validation_blocks
from train.progress import Progress, Stopwatch, clock, peak_memory

READ_EVERY = 10  # steps: reading a loss waits for the device, so it is not done at every one


@dataclass(frozen=True)
class Result:
    """What a training run gives back."""

    config: Config
    model: Transformer  # in evaluation mode
    path: Path  # of model.safetensors
    losses: list[float]  # of each step, before it
    validation_losses: list[tuple[int, float]]  # (steps taken, loss)
    seconds: float  # wall time of the whole run
    tokens_per_second: float  # of the steps alone
    interrupted: bool  # ended by Ctrl-C


def train(config: Config | None = None, **overrides: Any) -> Result:
    """Train a model on the backend in use, and write it to `model.safetensors` in the configuration's folder.

    The validation loss is the mean over non-overlapping blocks of the text's last tenth: at intervals over
    `eval_blocks` of them, evenly spaced, always the same; when all steps are done, over all of them. The model is
    written each time. Ctrl-C ends the run after the step at hand and keeps what is trained so far.

    Args:
        config: by default `Config()`.
        overrides: fields of it to change.

    Raises:
        ValueError: a field out of range, an unknown or unsuitable dataset, a prompt's character that is not in it,
            a bad RG_TRAIN_STEPS.
        ImportError: the dataset or the model's file needs a package that is not installed.
        OSError: the folder cannot be written to, or the dataset not be read.
        FloatingPointError: a loss is not finite; names the step. The file written last stays.
    """
    config = replace(config or Config(), **overrides)
    steps, started, watch = _steps_allowed(config.steps), time.perf_counter(), Stopwatch()
    path = _writable(config.folder) / "model.safetensors"
    text = load_text(config.dataset)
    model = build_model(config, text)
    prompt = _prompt(config, model, text)
    training, validation = split(np.array(model.tokenizer.encode(text), np.int64), config.block)
    optimizer = build_optimizer(config, model)
    losses, validation_losses, unread = list[float](), list[tuple[int, float]](), list[Tensor]()

    with Progress(steps) as progress, Interruption() as interruption:
        for step, batch in zip(range(1, steps + 1), batches(training, config.batch, config.block, config.seed)):
            with watch:
                unread.append(take_step(model, optimizer, *batch, clip=config.clip))
                last = step == steps or interruption.requested
                due = last or step % config.eval_interval == 0
                if due or step % READ_EVERY == 0:
                    losses += read_losses(unread, since=len(losses))
                    unread.clear()
            if not unread:
                progress.update(step, losses[-1], step * config.batch * config.block / watch.seconds)
            if due:
                inputs, targets = validation_blocks(
                    validation, config.block, at_most=None if step == config.steps else config.eval_blocks
                )
                validation_losses.append((step, evaluate(model, inputs, targets, config.batch, step)))
                save_model(path, model, notes={"training": asdict(config), "steps": step})
                progress.say(f"step {step:,}: validation loss {validation_losses[-1][1]:.4f} ({len(inputs):,} blocks)")
                if config.sample_tokens:
                    progress.say(_framed(sample(config, model, prompt)))
            if last:
                break

    result = Result(
        config, model.eval(), path, losses, validation_losses, time.perf_counter() - started,
        step * config.batch * config.block / watch.seconds, interruption.requested,
    )  # fmt: skip
    print(result.summary(), flush=True)
    return result


# --- The parts


def build_model(config: Config, text: str) -> Transformer:
    """A new model in the configuration's dtype, with the characters of `text` for its vocabulary."""
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
    return AdamWOptimizer(groups, build_schedule(config), betas=(config.beta1, config.beta2))


def build_schedule(config: Config) -> Schedule:
    lr, last, steps = config.learning_rate, config.last_learning_rate, config.steps
    if config.schedule == "cosine_with_warmup":
        return cosine_with_warmup(lr, config.warmup_steps, steps, last)
    if config.schedule == "cosine":
        return cosine(lr, steps, last)
    return exponential(lr, (last / lr) ** (1 / steps)) if config.schedule == "exponential" else constant(lr)


def take_step(model: Transformer, optimizer: AdamWOptimizer, inputs: Ids, targets: Ids, *, clip: float) -> Tensor:
    """One step on a batch (B, T). Returns the loss before it, which nothing has waited for yet."""
    optimizer.zero_grad()
    loss = cross_entropy_loss(model.forward(inputs), targets, model.tokenizer.pad_token_id)
    loss.backward()
    if clip:
        clip_grad_norm(optimizer.params, clip)
    optimizer.step()
    return loss.detach()


def read_losses(unread: list[Tensor], since: int) -> list[float]:
    """The losses of the steps after number `since`, read together. Raises FloatingPointError if one is not finite."""
    losses: list[float] = Tensor.stack(unread).numpy().tolist()
    for step, loss in enumerate(losses, start=since + 1):
        _check_finite(loss, f"the loss at step {step}")
    return losses


def evaluate(model: Transformer, inputs: Ids, targets: Ids, batch: int, step: int) -> float:
    """The mean loss over blocks (N, T), `batch` of them at a time, without dropout and gradients."""
    model.eval()
    with no_grad():
        parts = [
            cross_entropy_loss(model.forward(inputs[i : i + batch]), targets[i : i + batch], model.tokenizer.pad_token_id)
            * len(inputs[i : i + batch])
            for i in range(0, len(inputs), batch)
        ]
        mean = float(Tensor.stack(parts).numpy().sum(dtype=np.float64)) / len(inputs)
    model.train()
    _check_finite(mean, f"the validation loss after step {step}")
    return mean


def sample(config: Config, model: Transformer, prompt: str) -> str:
    return model.generate(
        prompt, config.sample_tokens, temperature=config.temperature, top_k=config.top_k, seed=config.seed
    )
