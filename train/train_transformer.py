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
import shlex
import signal
import sys
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
    from train.launch import share_cores

    share_cores()  # before NumPy starts its threads

from russellgrad import (
    Tensor,
    __version__,
    compile_step,
    get_backend,
    get_default_dtype,
    get_matmul_precision,
    no_grad,
    set_default_dtype,
    set_matmul_precision,
)
from russellgrad.loss import cross_entropy_loss
from russellgrad.optimizer import AdamWOptimizer, Optimizer
from russellgrad.russelltransformer import Transformer
from russellgrad.schedules import Schedule, constant, cosine, cosine_with_warmup, exponential
from russellgrad.tokenizer import Tokenizer
from train.config import Config, configure, parse
from train.data import Ids, Part, batches, in_parts, load_text, split, validation_blocks
from train.distributed import ALONE, Team, join
from train.progress import Stopwatch, clock, peak_memory, plain_errors, say
from train.records import Records

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
    losses: list[float]  # of each step's batch, before the step; of a resumed run, from there on
    validation_losses: list[tuple[int, float]]  # (steps taken, loss)
    seconds: float  # wall time of the whole run
    tokens_per_second: float  # of the steps alone
    steps: int  # taken in all
    signal: int | None  # that ended the run early, as Ctrl-C's


def train(config: Config | None = None, **settings: Any) -> Result:
    """Train a model on the backend in use; its model, checkpoints and metrics go to the configuration's folder.

    The validation loss is a mean over non-overlapping blocks of the text's last tenth: at intervals over `eval_blocks`
    of them, evenly spaced and always the same; once all the configured steps are done, over every one. SIGINT (Ctrl-C),
    SIGTERM and SIGHUP end the run after the step at hand, with a checkpoint to resume from. A resumed run gives the
    bits of one that never stopped.

    Args:
        config: by default what `train.config.configure` makes of the settings.
        settings: fields of it, and `preset`; of a given one, fields to change.

    Raises:
        ValueError: a field out of range, a dtype that the backend does not compute in, an unknown or unsuitable
            dataset, a prompt with characters that are not in it, a bad RG_TRAIN_STEPS; a checkpoint that is damaged or
            not of this run.
        ImportError: the dataset, the files or several processes need a package that is not installed.
        OSError: the folder cannot be written to, or the dataset cannot be read.
        FloatingPointError: a loss or gradient is not finite; names the step, its batch and the last checkpoint.
    """
    team = join()
    with team.together():
        if config is not None and "resume" in settings:
            raise ValueError("train: resume has the settings of its checkpoint; give it without a config")
        config = configure(**settings) if config is None else replace(config, **settings)
        team.folder = config.folder
        team.take_device(get_backend())
        steps = _steps_allowed(config.steps)
        team.agree_on(
            {"version": __version__, "backend": get_backend().name, "RG_TRAIN_STEPS": steps, **asdict(config)}
        )
        return _train(config, steps, team)


def _train(config: Config, steps: int, team: Team) -> Result:
    """The training loop."""
    _check(config, team)
    started, watch, text = time.perf_counter(), Stopwatch(), load_text(config.dataset)
    model = build_model(config, text)
    optimizer = build_optimizer(config, model)
    training, held_back = split(model.tokenizer.encode(text), config.block)
    prompt = _checked_prompt(config, model, text)
    records = Records(config, text, team, model, optimizer)
    team.agree_on(records.identity)
    next_step = partial(take_step, model, optimizer, clip=config.grad_clip, team=team)
    # Between processes, MPI or NCCL adds gradients up, which is no part of a recording.
    take_next = compile_step(next_step) if team.size == 1 else next_step
    losses: list[float] = []
    unread: list[tuple[Tensor, Tensor | None]] = []

    def validate(step: int) -> None:
        blocks = validation_blocks(held_back, config.block, None if step == config.steps else config.eval_blocks)
        loss = evaluate(model, *blocks, config.batch, team)
        _check_finite(loss, f"validation loss after step {step}", records)
        records.validation(step, loss, len(blocks[0]))
        if config.sample_tokens and team.leads:
            records.sample(step, _sample(config, model, prompt))

    with records, Interruption() as interruption, _matmul_precision(config):
        team.check_equal(model)
        if records.lacks_validation:
            validate(records.begun)
        step, stopping = records.begun, False
        stream = batches(training, config.batch, config.block, config.seed, start=records.begun)
        for step, batch in enumerate(islice(stream, max(0, steps - records.begun)), start=records.begun + 1):
            with watch:
                unread.append(take_next(*_parts(config, model, batch, team)))
                stopping = step < steps and team.anyone(interruption.signal is not None, step)
                last = step == steps or stopping
                due = not stopping and (step % config.eval_interval == 0 or last)
                saving = last or step % config.checkpoint_interval == 0
                if due or saving or step % READ_EVERY == 0:
                    some, norms = read(unread, step, config, records, team)
                    losses += some
                    unread.clear()
            if not unread:
                records.steps(step, some, norms, watch.seconds)
            if due or saving:
                team.check_equal(model)
            if due:
                validate(step)
            if saving or due and records.best == step:
                records.save(step)
            if stopping:
                break
        if not losses:  # resumed after its last step: it may have been killed before this
            records.save_model(step)

    model.dropout.rows_from(0)
    seconds, speed = time.perf_counter() - started, len(losses) * config.batch * config.block / (watch.seconds or 1.0)
    result = Result(
        config, model.eval(), records.path, losses, records.validation_losses, seconds, speed, step,
        interruption.signal or signal.SIGTERM if stopping else None,  # which another process may have got
    )  # fmt: skip
    if team.leads:
        say(summary(result, team.size))
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


def take_step(
    model: Transformer, optimizer: Optimizer, *parts: Part, clip: float, team: Team = ALONE
) -> tuple[Tensor, Tensor | None]:
    """One optimizer step on a batch, in parts of ids that are on the device: see `train.data.in_parts`.

    Returns the batch's loss before the step (this process's part of it) and, if they are clipped to `clip`, the norm of
    the gradients. Nothing waits for either.
    """
    optimizer.zero_grad()
    loss: Tensor | None = None
    for inputs, targets, first, share in parts:
        model.dropout.rows_from(first, again=first != parts[0][2])
        part = cross_entropy_loss(model.forward(inputs), targets, model.tokenizer.pad_token_id)
        part = part if share is None else part * share
        part.backward()
        loss = part.detach() if loss is None else loss + part.detach()
    team.all_reduce(optimizer.gather_grads(), get_backend())
    norm = optimizer.step(max_norm=clip or None)
    assert loss is not None
    return loss, norm


def _parts(config: Config, model: Transformer, batch: tuple[Ids, Ids], team: Team) -> Iterator[Part]:
    """This process's rows of a batch, checked on the host and moved to the device."""
    ids, pad = model.tokenizer.ids, model.tokenizer.pad_token_id
    for part in in_parts(*batch, config.accumulate, pad, team.rank, team.size):
        yield part._replace(inputs=ids(part.inputs), targets=ids(part.targets))


def read(
    unread: list[tuple[Tensor, Tensor | None]], last: int, config: Config, records: Records, team: Team
) -> tuple[list[float], list[float] | None]:
    """Losses, and norms of gradients, of the steps up to number `last`, fetched from the device together.

    Raises FloatingPointError for one that is not finite.
    """
    losses = team.sums(Tensor.stack([loss for loss, _ in unread]).numpy().tolist())
    clipped = [norm for _, norm in unread if norm is not None]
    norms: list[float] | None = Tensor.stack(clipped).numpy().tolist() if clipped else None
    for what, values in (("loss", losses), ("norm of the gradient", norms or [])):
        for step, value in enumerate(values, start=last - len(values) + 1):
            _check_finite(value, f"{what} at step {step}", records, f" on batch {step - 1} of seed {config.seed}")
    return losses, norms


def _check_finite(value: float, what: str, records: Records, where: str = "") -> None:
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the {what} is {value}{where}; the last good checkpoint is {records.last_checkpoint}: lower the learning "
            "rate, or clip the gradient"
        )


def evaluate(model: Transformer, inputs: Ids, targets: Ids, batch: int, team: Team = ALONE) -> float:
    """The mean loss over blocks (N, T), `batch` of them at a time, without dropout; each process takes its share."""
    pad, parts = model.tokenizer.pad_token_id, []
    model.eval()
    with no_grad():
        for i in range(team.rank * batch, len(inputs), team.size * batch):
            some = slice(i, i + batch)
            parts.append(cross_entropy_loss(model.forward(inputs[some]), targets[some], pad) * len(inputs[some]))
    model.train()
    (total,) = team.sums([math.fsum(Tensor.stack(parts).numpy()) if parts else 0.0])
    return total / len(inputs)


def summary(result: Result, processes: int = 1) -> str:
    """What a run ends with."""
    peak, config = peak_memory(), result.config
    losses = dict(result.validation_losses)
    loss = f"validation loss {losses[result.steps]:.4f}, " if result.steps in losses else ""
    speed = f"{result.tokens_per_second:,.0f} tokens/s, " if result.losses else "no step was left to take, "
    stopped = ""
    if result.signal is not None:
        launcher = f"mpiexec -n {processes} " if processes > 1 else ""
        stopped = (
            f"Stopped by {signal.Signals(result.signal).name} after step {result.steps:,} of {config.steps:,}; go on "
            f"with: {launcher}python train/train_transformer.py --resume {shlex.quote(str(config.folder))}\n"
        )
    return (
        f"{stopped}{result.steps:,} steps, seed {config.seed}, {loss}{clock(result.seconds)} wall time, {speed}"
        + (f"peak memory {peak / 2**20:,.0f} MiB, " if peak else "")
        + f"model in {result.path}"
    )


_ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interruption:
    """In the block signals that end a program only set `signal`, so no step is left half done; a second one ends it.

    They are SIGINT (Ctrl-C), SIGTERM, and SIGHUP, which the end of a terminal sends, unless `nohup` had it ignored.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only there may a handler be set
            for number in _ENDING:
                if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


# --- Checks before the work, and small things


def _check(config: Config, team: Team) -> None:
    xp = get_backend()
    if config.batch % (config.accumulate * team.size):
        raise ValueError(
            f"batch {config.batch} cannot be divided into {config.accumulate} parts for each of {team.size} processes; "
            f"choose a multiple of {config.accumulate * team.size}"
        )
    if team.size > 1 and xp.name == "cupy" and config.dtype == "bfloat16":
        raise ValueError("dtype bfloat16: CuPy's NCCL adds no bfloat16 up; with several processes choose float32")
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


def _checked_prompt(config: Config, model: Transformer, text: str) -> str:
    """The samples' prompt: the configured one, or a new line, or the text's first character if it has no lines."""
    prompt = config.prompt or ("\n" if "\n" in text else text[0])
    model.tokenizer.encode(prompt)  # a ValueError now, not after the first interval
    return prompt


def _sample(config: Config, model: Transformer, prompt: str) -> str:
    return model.generate(
        prompt, config.sample_tokens, temperature=config.temperature, top_k=config.top_k, seed=config.seed
    )


def main() -> None:
    with plain_errors(ImportError, RuntimeError):
        team = join()  # before anything that can fail, so that no process waits for one that has not begun
    with team.together():
        config = parse(description="Train a character-level transformer on a text.", epilog=ENVIRONMENT)
        with plain_errors(ValueError, ImportError, RuntimeError, TypeError):
            get_backend()
        with plain_errors(ValueError, ImportError, OSError, FloatingPointError):
            result = train(config)
    if result.signal is not None:
        sys.exit(128 + result.signal)


if __name__ == "__main__":
    main()
