"""The settings of a training run: one frozen dataclass, from which the command line is derived; and named ones."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from train.checkpoints import FOLDER, find

_ACTIVATIONS = ("leaky_relu", "relu", "gelu", "gelu_tanh")
_SCHEDULES = ("constant", "exponential", "cosine", "cosine_with_warmup")


def _option(default: Any, text: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices})


# fmt: off
@dataclass(frozen=True)
class Config:
    """What `train` is to do. Each field is an option of the command line too, and its text is the option's help.

    Raises:
        ValueError: a value out of range; names the field.
    """

    dataset: str = _option("shakespeare", "shakespeare, tinyshakespeare (downloaded once), or the path of a UTF-8 text")
    out: str | None = _option(None, "the run's folder, for its model, checkpoints and metrics (default: runs/ and the "
                              "dataset's name)")
    resume: str | None = _option(None, "go on from the last checkpoint of this run's folder, or from this checkpoint, "
                                 "with its settings (default without a path: the folder of --out)")

    layers: int = _option(4, "transformer blocks")
    heads: int = _option(4, "attention heads of each block; must divide the width")
    width: int = _option(128, "length of a token's vector")
    ff_scale: int = _option(4, "width of the feed-forward layers, as a multiple of the width")
    block: int = _option(64, "characters the model sees at once")
    activation: str = _option("gelu", "of the feed-forward layers", _ACTIVATIONS)
    output_projection: bool = _option(True, "mix the heads' outputs by a learned matrix")
    final_norm: bool = _option(True, "a layer norm before the logits")
    dropout: float = _option(0.0, "probability of dropping an element")
    dtype: str = _option("float32", "of the parameters and what is computed; bfloat16 needs CuPy, and keeps float32 "
                         "copies of the parameters", ("float32", "float64", "bfloat16"))
    matmul_precision: str | None = _option(None, "how a GPU multiplies float32: all of it, as TF32 or as bfloat16 "
                                           "(default: highest)", ("highest", "high", "medium"))

    steps: int = _option(2000, "optimizer steps")
    batch: int = _option(12, "blocks of text in a step")
    learning_rate: float = _option(2e-3, "the largest learning rate")
    min_learning_rate: float | None = _option(None, "that at the end of the schedule (default: a tenth of it)")
    schedule: str = _option("cosine_with_warmup", "of the learning rate over the steps", _SCHEDULES)
    warmup: int | None = _option(None, "steps of warm-up (default: a twentieth of all)")
    beta1: float = _option(0.9, "AdamW's decay of the mean of gradients")
    beta2: float = _option(0.99, "AdamW's decay of the mean of squared gradients")
    weight_decay: float = _option(0.1, "AdamW's weight decay, of matrices only")
    grad_clip: float = _option(1.0, "largest norm of the gradient; 0 does not clip")
    accumulate: int = _option(1, "parts that a step's batch is taken in, one after the other, to need less memory")
    seed: int = _option(0, "of initial weights, batches, dropout and samples")

    eval_interval: int = _option(250, "steps from one validation loss and sample to the next")
    eval_blocks: int = _option(240, "blocks of the validation part used for it; the last one uses them all")
    save_interval: int | None = _option(None, "steps from one checkpoint to the next (default: those of eval-interval)")
    keep: int = _option(2, "how many checkpoints to keep, besides the best; the oldest go")
    tensorboard: bool = _option(False, "write the metrics for TensorBoard, too")
    prompt: str | None = _option(None, "how a sample begins (default: a new line)")
    sample_tokens: int = _option(200, "characters of a sample; 0 for none")
    temperature: float = _option(0.8, "of samples; 0 takes the most likely character every time")
    top_k: int | None = _option(None, "draw samples from so many of the most likely characters (default: from all)")
    # fmt: on

    def __post_init__(self) -> None:
        for option in fields(self):
            value, choices = getattr(self, option.name), option.metadata["choices"]
            if choices and value is not None and value not in choices:
                raise ValueError(f"{option.name} must be one of {', '.join(choices)}, got {value!r}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{option.name} must be a finite number, got {value}")
            if isinstance(value, (int, float)) and value < 0:
                raise ValueError(f"{option.name} must not be negative, got {value}")
        for name in ("layers", "heads", "width", "ff_scale", "block", "steps", "batch", "learning_rate",
                     "eval_interval", "eval_blocks", "top_k", "accumulate", "save_interval", "keep"):  # fmt: skip
            if getattr(self, name) == 0:
                raise ValueError(f"{name} must be positive, got 0")
        if self.batch % self.accumulate:
            raise ValueError(f"accumulate must divide the batch: {self.accumulate} does not divide {self.batch}")
        if self.width % self.heads:
            raise ValueError(f"heads must divide the width: {self.heads} does not divide {self.width}")
        for name in ("dropout", "beta1", "beta2"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.seed >= 2**64:
            raise ValueError(f"seed must be in [0, 2**64), got {self.seed}")
        if self.schedule == "cosine_with_warmup" and self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup must be less than steps: {self.warmup_steps} is not less than {self.steps}; give another "
                "warmup, or cut the run short with RG_TRAIN_STEPS"
            )
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(f"min_learning_rate {self.min_learning_rate} is above learning_rate {self.learning_rate}")
        if self.schedule == "exponential" and not self.final_learning_rate:
            raise ValueError("min_learning_rate must be positive for the schedule exponential")

    @property
    def warmup_steps(self) -> int:
        return self.steps // 20 if self.warmup is None else self.warmup

    @property
    def final_learning_rate(self) -> float:
        return self.learning_rate / 10 if self.min_learning_rate is None else self.min_learning_rate

    @property
    def checkpoint_interval(self) -> int:
        return self.eval_interval if self.save_interval is None else self.save_interval

    @property
    def folder(self) -> Path:
        return Path("runs", Path(self.dataset).stem) if self.out is None else Path(self.out)


# nanoGPT's set-up for characters of Tiny Shakespeare (its config/train_shakespeare_char.py, and its README for a CPU).
# On the CPU the learning rate is twice its: see the figures in the README.
PRESETS: dict[str, dict[str, Any]] = {
    "shakespeare-cpu": {
        "dataset": "tinyshakespeare", "layers": 4, "heads": 4, "width": 128, "block": 64, "batch": 12, "dropout": 0.0,
        "steps": 2000, "learning_rate": 2e-3, "warmup": 100, "eval_interval": 250,
    },
    "shakespeare-gpu": {
        "dataset": "tinyshakespeare", "layers": 6, "heads": 6, "width": 384, "block": 256, "batch": 64, "dropout": 0.2,
        "steps": 5000, "learning_rate": 1e-3, "warmup": 100, "eval_interval": 250, "matmul_precision": "high",
    },
}  # fmt: skip

# What a checkpoint is of: a resumed run cannot have others. (Nor another text, of which the checksum is compared.)
FIXED_ON_RESUME = ("layers", "heads", "width", "ff_scale", "block", "activation", "output_projection", "final_norm",
         "dropout", "dtype", "batch", "seed")  # fmt: skip


def configure(preset: str | None = None, **given: Any) -> Config:
    """A configuration: what is given, and the rest of a preset, of the checkpoint that is resumed, or by default.

    Raises:
        ValueError: a value out of range, an unknown preset, a preset and a checkpoint, a damaged checkpoint or one that
            is in no run's folder. TypeError: an unknown setting. FileNotFoundError: no checkpoint.
    """
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    if given.get("resume") is None:
        return Config(**{**PRESETS.get(preset or "", {}), **given})
    if preset is not None:
        raise ValueError("resume and preset: a resumed run has the settings of its checkpoint; leave the preset out")
    where = {name: given[name] for name in ("out", "dataset") if name in given}
    checkpoint = find(given["resume"] or Config(**where).folder)
    own = {**given, "resume": str(checkpoint.path)}
    if "out" not in given:
        if checkpoint.path.parent.name != FOLDER:
            raise ValueError(f"resume: {checkpoint.path} is in no run's folder; say with out where the run is to go on")
        own["out"] = str(checkpoint.path.parent.parent)
    try:
        return Config(**{**checkpoint.state["config"], **own})
    except TypeError as error:
        raise ValueError(f"resume: {checkpoint.path} is of another release, with other settings: {error}") from error


def parse(arguments: Sequence[str] | None = None, **about: Any) -> Config:
    """The configuration that a command line asks for; by default the process's. Exits with usage if it is not valid."""
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS, **about)
    parser.add_argument("--preset", choices=PRESETS, help="settings of a known run, which others given change")
    types = get_type_hints(Config)
    for option in fields(Config):
        kind = (get_args(types[option.name]) or (types[option.name],))[0]  # int | None reads an int
        text = option.metadata["help"] + ("" if option.default is None else f" (default: {option.default})")
        flag, text = "--" + option.name.replace("_", "-"), text.replace("%", "%%")
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
        elif option.name == "resume":
            parser.add_argument(flag, nargs="?", const="", metavar="PATH", help=text)
        else:
            parser.add_argument(flag, type=kind, choices=option.metadata["choices"], help=text)
    try:
        return configure(**vars(parser.parse_args(arguments)))
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
