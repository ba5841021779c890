"""The configuration of a training run: a dataclass, the command line derived from it, and presets."""

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from numbers import Real
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, get_args, get_type_hints

import numpy as np

from russellgrad.hub import read_options

from .checkpoints import FOLDER, TEXT, Checkpoint, find
from .progress import command_line, option

_ACTIVATIONS = ("leaky_relu", "relu", "gelu", "gelu_tanh")
DTYPES = ("float32", "float64", "bfloat16")
# The optimizers, and the defaults of the settings that each of them uses.
OPTIMIZERS: dict[str, dict[str, float]] = {
    "adamw": {"learning_rate": 2e-3, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99},
    "sgd": {"learning_rate": 0.1, "weight_decay": 0.0, "momentum": 0.9},
    "lion": {"learning_rate": 6e-4, "weight_decay": 0.3, "beta1": 0.9, "beta2": 0.99},
    "muon": {"learning_rate": 2e-3, "weight_decay": 0.1, "momentum": 0.95, "beta1": 0.9, "beta2": 0.99},
}
VOCAB = 1024  # default number of tokens of byte-pair encoding
_PATHS = ("dataset", "out", "resume", "tokenizer", "init_from")
BLOCKS = ("gpt2", "llama")
_OF_GPT2 = ("activation", "output_projection", "final_norm")  # settings that Llama's blocks do not have
_SCHEDULES = ("constant", "exponential", "cosine", "cosine_with_warmup")


def _defaults(name: str) -> str:
    """The defaults of a setting, for its help."""
    return "default: " + ", ".join(f"{key} {used[name]:g}" for key, used in OPTIMIZERS.items() if name in used)


def _option(default: Any, text: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices})


# fmt: off
@dataclass(frozen=True)
class Config:
    """The configuration of `train`. Each field is also a command-line option, and its text is the option's help.

    NumPy scalars, and paths for strings, are converted to the fields' types.

    Raises:
        TypeError: a value has another type; names the field.
        ValueError: a value is out of range; names the field.
    """

    dataset: str = _option("shakespeare", "shakespeare, tinyshakespeare (downloaded once), the path of a UTF-8 text or "
                           "of a folder with train.bin and val.bin")
    out: str | None = _option(None, "folder for the model, the checkpoints and the metrics (default: runs/ and the "
                              "name of the dataset)")
    resume: str | None = _option(None, "resume from a checkpoint, or from the last one in a run's folder, with its "
                                 "settings (without a path: from the folder of --out)")

    tokenizer: str = _option("char", "char for characters, bpe for byte-pair encoding of the text, or the path of a "
                             "tokenizer.json, or of a folder with one or with vocab.json and merges.txt")
    vocab: int | None = _option(None, f"tokens of byte-pair encoding, at least 256 (default: {VOCAB})")

    init_from: str | None = _option(None, "start from the weights of a model: a folder of the Hugging Face hub with a "
                                    "GPT-2, Llama or Mistral, which sets the tokenizer and the sizes of the model")
    layers: int = _option(4, "transformer blocks")
    heads: int = _option(4, "attention heads in each block; must divide the width")
    width: int = _option(128, "embedding dimension")
    ff_scale: int = _option(4, "width of the feed-forward layers, as a multiple of the width")
    blocks: str = _option("gpt2", "layers of the blocks: GPT-2's, or Llama's (RMS norm, SwiGLU, rotary positions, "
                          "untied logits)", BLOCKS)
    kv_heads: int | None = _option(None, "heads of keys and values in Llama's blocks; must divide the heads (default: "
                                   "as many)")
    block: int = _option(64, "context length in tokens")
    activation: str = _option("gelu", "activation function of the feed-forward layers", _ACTIVATIONS)
    output_projection: bool = _option(True, "apply a learned matrix to the concatenated heads")
    final_norm: bool = _option(True, "apply a layer norm before the logits")
    dropout: float = _option(0.0, "dropout probability of the embedding and of each layer's output")
    attention_dropout: float = _option(0.0, "dropout probability of the attention weights")
    dtype: str = _option("float32", "dtype of parameters and activations; bfloat16 needs the backend cupy or torch "
                         "and ml_dtypes, and keeps float32 copies of the parameters", DTYPES)
    matmul_precision: str | None = _option(None, "precision of float32 matrix products on a GPU: float32, TF32 or "
                                           "bfloat16 (default: highest)", ("highest", "high", "medium"))

    steps: int = _option(2000, "optimizer steps")
    batch: int = _option(12, "batch size: blocks of text in each step")
    optimizer: str = _option("adamw", "optimizer: AdamW, SGD with Nesterov momentum, Lion, or Muon for the blocks' "
                             "matrices with AdamW for the rest", tuple(OPTIMIZERS))
    learning_rate: float | None = _option(None, f"maximum learning rate ({_defaults('learning_rate')})")
    min_learning_rate: float | None = _option(None, "learning rate at the end of the schedule (default: a tenth of "
                                              "the maximum)")
    schedule: str = _option("cosine_with_warmup", "learning-rate schedule", _SCHEDULES)
    warmup: int | None = _option(None, "warmup steps (default: a twentieth of the steps)")
    momentum: float | None = _option(None, f"momentum of SGD and Muon ({_defaults('momentum')})")
    beta1: float | None = _option(None, "AdamW's decay rate for the mean of the gradient; Lion's weight of that mean "
                                  f"in a step ({_defaults('beta1')})")
    beta2: float | None = _option(None, "AdamW's decay rate for the mean of the squared gradient; Lion's for the mean "
                                  f"of the gradient ({_defaults('beta2')})")
    weight_decay: float | None = _option(None, f"weight decay, for matrices only ({_defaults('weight_decay')})")
    grad_clip: float = _option(1.0, "maximum norm of the gradient; 0 does not clip")
    accumulate: int = _option(1, "micro-batches that each batch is split into, to use less memory")
    seed: int = _option(0, "random seed for initial weights, batches, dropout and samples")

    eval_interval: int = _option(250, "steps between validations, each with a sample")
    eval_blocks: int = _option(240, "blocks of text in each validation, evenly spaced; 0 for all blocks")
    save_interval: int | None = _option(None, "steps between checkpoints (default: eval-interval)")
    keep: int = _option(2, "number of recent checkpoints to keep, besides the best")
    tensorboard: bool = _option(False, "also write the metrics for TensorBoard")
    prompt: str | None = _option(None, "prompt of the samples (default: a newline)")
    sample_tokens: int = _option(200, "length of a sample in tokens; 0 for no samples")
    temperature: float = _option(0.8, "temperature of the samples; 0 always takes the most likely token")
    top_k: int | None = _option(None, "sample from the k most likely tokens only (default: all)")
    # fmt: on

    def __post_init__(self) -> None:
        for name, value in _converted(vars(self)).items():
            object.__setattr__(self, name, value)
        for setting in fields(self):
            name, value, choices = setting.name, getattr(self, setting.name), setting.metadata["choices"]
            if choices and value is not None and value not in choices:
                raise ValueError(f"{option(name)} must be one of {', '.join(choices)}, got {value!r}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{option(name)} must be a finite number, got {value}")
            if isinstance(value, (int, float)) and value < 0:
                raise ValueError(f"{option(name)} must not be negative, got {value}")
            if isinstance(value, int) and value >= 2**63 and name != "seed":
                raise ValueError(f"{option(name)} must be less than 2**63, got {value}")
        for name in _PATHS:
            if getattr(self, name) == "":
                raise ValueError(f"{option(name)} must not be empty")
        for name in ("layers", "heads", "width", "ff_scale", "block", "steps", "batch", "learning_rate",
                     "eval_interval", "top_k", "accumulate", "save_interval", "keep", "kv_heads"):  # fmt: skip
            if getattr(self, name) == 0:
                raise ValueError(f"{option(name)} must be positive, got 0")
        if self.vocab is not None and self.tokenizer != "bpe":
            raise ValueError(f"{option('vocab')} is a setting of bpe; {option('tokenizer')} is {self.tokenizer}")
        if self.vocab is not None and self.vocab < 256:
            raise ValueError(f"{option('vocab')} must be at least 256, one token for each byte, got {self.vocab}")
        if self.batch % self.accumulate:
            raise ValueError(
                f"{option('accumulate')} must divide the batch: {self.accumulate} does not divide {self.batch}"
            )
        if self.width % self.heads:
            raise ValueError(f"{option('heads')} must divide the width: {self.heads} does not divide {self.width}")
        if self.kv_heads is not None and self.blocks != "llama":
            raise ValueError(f"{option('kv_heads')} is a setting of Llama's blocks; {option('blocks')} is gpt2")
        if self.heads % (self.kv_heads or 1):
            raise ValueError(
                f"{option('kv_heads')} must divide the heads: {self.kv_heads} does not divide {self.heads}"
            )
        if self.blocks == "llama" and self.init_from is None:
            for name in _OF_GPT2:
                if getattr(self, name) != getattr(Config, name):
                    raise ValueError(f"{option(name)} is a setting of GPT-2's blocks; {option('blocks')} is llama")
            if self.width // self.heads % 2:
                raise ValueError(
                    f"{option('blocks')} llama rotates pairs of channels, so {option('width')} / {option('heads')} "
                    f"must be even, got {self.width} / {self.heads}"
                )
        for name in ("dropout", "attention_dropout", "momentum", "beta1", "beta2"):
            if (getattr(self, name) or 0) >= 1:
                raise ValueError(f"{option(name)} must be in [0, 1), got {getattr(self, name)}")
        for name in ("momentum", "beta1", "beta2"):
            if getattr(self, name) is not None and name not in OPTIMIZERS[self.optimizer]:
                users = ", ".join(key for key, used in OPTIMIZERS.items() if name in used)
                raise ValueError(f"{option(name)} is a setting of {users}; {option('optimizer')} is {self.optimizer}")
        if self.seed >= 2**64:
            raise ValueError(f"{option('seed')} must be in [0, 2**64), got {self.seed}")
        if self.schedule == "cosine_with_warmup" and self.warmup_steps >= self.steps:
            raise ValueError(
                f"{option('warmup')} must be less than {option('steps')}: {self.warmup_steps} is not less than "
                f"{self.steps}; set another {option('warmup')}, or limit the steps of the run with RG_TRAIN_STEPS"
            )
        if self.final_learning_rate > self.of_optimizer("learning_rate"):
            raise ValueError(
                f"{option('min_learning_rate')} {self.min_learning_rate} is above {option('learning_rate')} "
                f"{self.of_optimizer('learning_rate')}"
            )
        if self.schedule == "exponential" and not self.final_learning_rate:
            raise ValueError(f"{option('min_learning_rate')} must be positive for the schedule exponential")

    def of_optimizer(self, name: str) -> float:
        """A setting in OPTIMIZERS: the given value, or the default of the optimizer."""
        value = getattr(self, name)
        return OPTIMIZERS[self.optimizer][name] if value is None else float(value)

    @property
    def warmup_steps(self) -> int:
        """The number of warmup steps."""
        return self.steps // 20 if self.warmup is None else self.warmup

    @property
    def final_learning_rate(self) -> float:
        """The learning rate at the end of the schedule."""
        if self.min_learning_rate is not None:
            return self.min_learning_rate
        return self.of_optimizer("learning_rate") / 10

    @property
    def checkpoint_interval(self) -> int:
        """The number of steps between checkpoints."""
        return self.eval_interval if self.save_interval is None else self.save_interval

    def validates_at(self, step: int) -> bool:
        """Whether there is a validation after this step."""
        return step % self.eval_interval == 0 or step == self.steps

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path("runs", Path(self.dataset).stem) if self.out is None else Path(self.out)


_TYPES = get_type_hints(Config)  # of each field, such as int or int | None


def _converted(given: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the values of fields of Config to the fields' types. Raises TypeError, which names the field."""
    return {name: _convert(name, value) for name, value in given.items() if name in _TYPES}


def _convert(name: str, value: Any) -> Any:
    types = get_args(_TYPES[name]) or (_TYPES[name],)
    plain = value
    if isinstance(value, (np.generic, np.ndarray)) and value.ndim == 0 and not np.ma.is_masked(value):
        plain = value.item()
    if float in types and isinstance(plain, Real) and not isinstance(plain, bool):
        try:
            return float(plain)
        except OverflowError:
            return math.inf
    if str in types and isinstance(plain, os.PathLike) and name in _PATHS:
        plain = os.fspath(plain)
    if type(plain) not in types:
        expected = " or ".join("None" if kind is NoneType else kind.__name__ for kind in types)
        raise TypeError(f"{option(name)} must be of type {expected}, got {value!r} of type {type(value).__name__}")
    return plain


# nanoGPT's settings for Tiny Shakespeare: config/train_shakespeare_char.py, and those of its README for a CPU. The CPU
# preset has twice nanoGPT's learning rate, which gives a smaller validation loss.
PRESETS: dict[str, dict[str, Any]] = {
    "shakespeare-cpu": {
        "dataset": "tinyshakespeare", "layers": 4, "heads": 4, "width": 128, "block": 64, "batch": 12, "dropout": 0.0,
        "steps": 2000, "learning_rate": 2e-3, "warmup": 100, "eval_interval": 250,
    },
    "shakespeare-gpu": {
        "dataset": "tinyshakespeare", "layers": 6, "heads": 6, "width": 384, "block": 256, "batch": 64, "dropout": 0.2,
        "attention_dropout": 0.2, "steps": 5000, "learning_rate": 1e-3, "warmup": 100, "eval_interval": 250,
        "matmul_precision": "high",
    },
}  # fmt: skip

# Fields that a resumed run cannot change. (It cannot change the text either: its checksum is compared.)
FIXED_ON_RESUME = (
    "tokenizer", "vocab", "init_from", "layers", "heads", "width", "ff_scale", "blocks", "kv_heads", "block",
    "activation", "output_projection", "final_norm", "dropout", "attention_dropout", "dtype", "optimizer", "batch",
    "seed",
)  # fmt: skip


def with_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Replace None by the value that it stands for, in the settings that are fixed on resume."""
    return {
        **settings, "vocab": settings["vocab"] or VOCAB, "kv_heads": settings["kv_heads"] or settings["heads"]
    }  # fmt: skip


def check_names(given: Mapping[str, Any]) -> None:
    """Raise TypeError if a name is not that of a field of Config."""
    if unknown := sorted(given.keys() - _TYPES.keys()):
        meant = [word for name in unknown for word in get_close_matches(name, _TYPES, 1, 0.7)]
        hint = f"; did you mean {', '.join(meant)}?" if meant else ""
        raise TypeError(f"there is no setting {', '.join(unknown)}{hint}")


def configure(preset: str | None = None, **given: Any) -> Config:
    """Return a configuration with the given fields; the others come from the checkpoint, the preset or the defaults.

    Args:
        preset: a name in PRESETS; not together with `resume`.
        given: fields of Config. `resume` names a checkpoint or a run's folder; "" means the folder of `out`.

    Raises:
        ValueError: a value is out of range; the preset is unknown, or given together with `resume`; the checkpoint is
            damaged, or is not in a run's folder and `out` is not given.
        TypeError: a field is unknown, or a value has another type.
        FileNotFoundError: there is no checkpoint to resume from.
    """
    check_names(given)
    given = _converted(given)
    if preset is not None and not isinstance(preset, str):
        raise TypeError(f"preset must be of type str or None, got {preset!r} of type {type(preset).__name__}")
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    if given.get("resume") is None:
        settings = {**PRESETS.get(preset or "", {}), **given}
        if "learning_rate" not in given and settings.get("optimizer", "adamw") != "adamw":
            settings.pop("learning_rate", None)  # the presets' is AdamW's
        if settings.get("init_from"):
            settings |= _settings_of(settings["init_from"], settings)
        return Config(**settings)
    if preset is not None:
        raise ValueError(
            f"{option('resume')} and {option('preset')}: a resumed run has the settings of its checkpoint; leave the "
            "preset out"
        )
    location = {name: given[name] for name in ("out", "dataset") if name in given}
    checkpoint = find(given["resume"] or Config(**location).folder)
    overrides = {**given, "resume": str(checkpoint.path)}
    if "out" not in given:
        if checkpoint.path.parent.name != FOLDER:
            raise ValueError(
                f"resume: {checkpoint.path} is not in a run's folder; set {option('out')} to the folder of the resumed "
                "run"
            )
        overrides["out"] = str(checkpoint.path.parent.parent)
    try:
        return Config(**{**checkpoint.state["config"], "dataset": _dataset(checkpoint), **overrides})
    except TypeError as error:
        raise ValueError(
            f"resume: {checkpoint.path} was written by another release, with other settings: {error}"
        ) from error


def _settings_of(folder: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a folder of the hub sets. Raises ValueError if those that are given contradict it."""
    options = read_options(Path(folder))
    width, longest = options["embed_dim"], options["max_seq_len"]
    inner = options["ff_dim"] if "ff_dim" in options else options["ff_scale_factor"] * width
    found = {
        "tokenizer": folder, "layers": options["n_layers"], "heads": options["n_attn_heads"], "width": width,
        "output_projection": options["output_projection"], "final_norm": options["final_norm"],
    }  # fmt: skip
    if "activation" in options:
        found["activation"] = options["activation"]
    else:
        found |= {"blocks": "llama", "kv_heads": options.get("n_kv_heads")}
    found |= {} if inner % width else {"ff_scale": inner // width}
    fixed = ("tokenizer", "vocab", "layers", "heads", "width", "ff_scale", "blocks", "kv_heads", "activation",
             "output_projection", "final_norm")  # fmt: skip
    if other := [name for name in fixed if name in given and given[name] != found.get(name)]:
        raise ValueError(
            f"{option('init_from')} {folder} sets "
            + ", ".join(f"{option(name)}" + (f" to {found[name]}" if name in found else "") for name in other)
            + f", got {', '.join(str(given[name]) for name in other)}; leave {'it' if len(other) == 1 else 'them'} out"
        )
    if given.get("block", 1) > longest:
        raise ValueError(
            f"{option('block')} {given['block']} is longer than the context of {folder}, {longest} tokens; choose a "
            "smaller one"
        )
    return {**found, "block": given.get("block", min(Config.block, longest))}


def _dataset(checkpoint: Checkpoint) -> str:
    """The dataset of a checkpoint: the copy in its run's folder, or the file's absolute path, or as it was given."""
    path = checkpoint.state.get("dataset_path") or ""
    if os.path.basename(path) == TEXT and (copy := checkpoint.path.parent.parent / TEXT).is_file():
        return str(copy)  # the path is that of a folder that may have been moved since
    return path if os.path.isfile(path) or os.path.isdir(path) else str(checkpoint.state["config"]["dataset"])


# The first option of each group of the command line's help, and the group's title.
_GROUPS = {
    "dataset": "files", "tokenizer": "tokens", "layers": "model", "steps": "training",
    "eval_interval": "validation, checkpoints, metrics",
    "prompt": "samples",
}  # fmt: skip

# Options as PyTorch, Hugging Face or nanoGPT call them.
_OTHER_NAMES = {
    "--lr": "--learning-rate", "--max-lr": "--learning-rate", "--batch-size": "--batch", "--block-size": "--block",
    "--context-length": "--block", "--n-layer": "--layers", "--n-layers": "--layers", "--n-head": "--heads",
    "--n-heads": "--heads", "--n-embd": "--width", "--embed-dim": "--width", "--max-iters": "--steps",
    "--data": "--dataset", "--out-dir": "--out", "--vocab-size": "--vocab",
}  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            known = [name for name in self._option_string_actions if name.startswith("--")]
            words = [word.partition("=")[0].replace("_", "-") for word in message.split()]
            unknown = [word for word in words if word.startswith("--")]
            meant = [_OTHER_NAMES.get(word) or "".join(get_close_matches(word, known, 1, 0.7)) for word in unknown]
            if any(meant):
                message += f"; did you mean {' '.join(filter(None, meant))}?"
        super().error(message)


def parse(arguments: Sequence[str] | None = None, **parser_options: Any) -> Config:
    """Parse a command line, by default that of this process. Exits with an error message if it is not valid."""
    parser = _Parser(argument_default=argparse.SUPPRESS, **parser_options)
    parser.add_argument("--preset", choices=PRESETS, help="a set of settings; other options override it")
    group: Any = parser
    for setting in fields(Config):
        if setting.name in _GROUPS:
            group = parser.add_argument_group(_GROUPS[setting.name])
        kind = (get_args(_TYPES[setting.name]) or (_TYPES[setting.name],))[0]  # int | None reads an int
        text = setting.metadata["help"] + ("" if setting.default is None else f" (default: {setting.default})")
        flag, text = "--" + setting.name.replace("_", "-"), text.replace("%", "%%")
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
        elif setting.name == "resume":
            group.add_argument(flag, nargs="?", const="", metavar="PATH", help=text)
        else:
            group.add_argument(flag, type=kind, choices=setting.metadata["choices"], help=text)
    with command_line():
        try:
            return configure(**vars(parser.parse_args(arguments)))
        except (ValueError, OSError) as error:
            parser.exit(2, f"{parser.prog}: error: {error}\n")
