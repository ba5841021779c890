"""Save and load a trained model (parameters, configuration and encoding) as one safetensors file.

The file holds arrays and text and no code, so it is safe to open a file from an unknown source.
"""

import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .backend import Backend, Shape, resolve_backend, use_backend
from .dtype import get_default_dtype, set_default_dtype
from .encoding import CharacterEncoding, encoding_from_config
from .russelltransformer import Transformer
from .serialization import read_safetensors, replace_file, require_safetensors, sort_metadata
from .tokenizer import Tokenizer

FORMAT = "russellgrad-transformer"
VERSION = "2"
_READABLE = ("1", "2")  # version 1 has separate matrices for queries, keys and values: see `upgrade_state`


def save_model(path: str | os.PathLike[str], model: Transformer, *, notes: Mapping[str, Any] | None = None) -> Path:
    """Write a model to a safetensors file and return the file's path.

    An existing file is replaced atomically: after a crash, `path` holds the complete old file or the complete new one.

        save_model("model.safetensors", model)

    Args:
        path: the path of the file; its folder must exist.
        model: a model on any backend. Its parameters, frozen ones too, are copied to the host; bfloat16 and float16 are
            written as float32. `load_model` builds a Transformer, also from a model of a subclass.
        notes: more to store in the file, such as training settings: anything that JSON can represent.

    Raises:
        ImportError: `safetensors` is not installed.
        OSError: the file cannot be written.
        ValueError: `load_model` could not load the file, because the model has other parameters or buffers than a
            Transformer of its configuration, or several dtypes; names them. An existing file does not change then.
        TypeError: `model` is not a Transformer, or the notes hold something that JSON cannot represent.
    """
    safetensors = require_safetensors("save_model")
    if not isinstance(model, Transformer):
        raise TypeError(
            f"save_model: needs a Transformer, got a {type(model).__name__}; save other modules with russellgrad.save"
        )
    if not isinstance(notes, Mapping | None):
        raise TypeError(f"save_model: the notes must be a dict, got a {type(notes).__name__}")
    tokenizer = model.tokenizer
    config = {
        "model": model.config(),
        "tokenizer": {
            **_encoding_config(tokenizer),
            "max_seq_len": tokenizer.max_seq_len,
            "embed_dim": tokenizer.embed_dim,
        },
        "notes": dict(notes or {}),
    }
    # C-contiguous, because safetensors writes an array's memory without regard to its strides.
    state = {name: np.ascontiguousarray(_widened(tensor.numpy())) for name, tensor in model._named_tensors()}
    try:
        text = json.dumps(config, default=_plain)
    except TypeError as error:  # also of a key
        raise TypeError(f"save_model: JSON cannot represent the notes: {error}") from error
    header = {"format": FORMAT, "version": VERSION, "config": text}
    _check_loadable(config["tokenizer"], json.loads(text), state)
    replace_file(Path(path), sort_metadata(safetensors.numpy.save(state, header)))
    return Path(path)


def _encoding_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The entries of the tokenizer's encoding: for characters those that files of earlier versions have."""
    if isinstance(tokenizer.encoding, CharacterEncoding):
        return {"vocabulary": tokenizer.vocabulary, "strict": tokenizer.strict}
    return {"encoding": tokenizer.encoding.config()}


def _widened(array: Any) -> Any:
    """Cast bfloat16, which NumPy does not have, and float16 to float32, which represents both exactly."""
    return array.astype(np.float32) if array.dtype.name in ("bfloat16", "float16") else array


def _plain(value: Any) -> Any:
    """A NumPy scalar as a Python number, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__}; leave it out")


def _check_loadable(tokenizer: Mapping[str, Any], config: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Raise ValueError if `load_model` could not load this configuration, as JSON gives it back, and this state."""
    try:
        _dtype_of(state)
        if config["tokenizer"].get("vocabulary") != tokenizer.get("vocabulary"):
            raise ValueError("JSON joins surrogates in its vocabulary to one character; leave them out of the text")
        if config["tokenizer"] != tokenizer:
            raise ValueError("JSON changes the config() of its encoding; use str, int, list and dict")
        expected = _shapes(json.dumps({**config, "notes": {}}))
        problems = [f"missing {name}" for name in expected if name not in state]
        problems += [f"unexpected {name}" for name in state if name not in expected]
        problems += [
            f"{name} has shape {array.shape}, expected {expected[name]}"
            for name, array in state.items()
            if name in expected and array.shape != expected[name]
        ]
        if problems:
            raise ValueError(f"a Transformer of its config() has other parameters: {'; '.join(problems)}")
    except (TypeError, ValueError) as error:
        raise ValueError(f"save_model: load_model could not load this model: {error}") from error


@lru_cache(maxsize=1)  # a run saves one model often
def _shapes(config: str) -> dict[str, Shape]:
    """The names and shapes of the parameters of the model that `load_model` builds from this configuration, as JSON."""
    return {name: parameter.shape for name, parameter in _build(json.loads(config), "float32").named_parameters()}


def _dtype_of(state: Mapping[str, Any]) -> str:
    """The dtype of a model's parameters. Raises ValueError if they have several, or one that files do not have."""
    dtypes = {str(array.dtype) for array in state.values()} or {"float64"}
    if not dtypes <= {"float32", "float64"} or len(dtypes) > 1:
        raise ValueError(
            f"its parameters have dtype {', '.join(sorted(dtypes))}; a model has float32 or float64, as after astype()"
        )
    return dtypes.pop()


def load_model(path: str | os.PathLike[str], backend: str | ModuleType | Backend | None = None) -> Transformer:
    """Load a model from a file that `save_model` wrote, in evaluation mode.

        model = load_model("model.safetensors")

    Args:
        path: the path of the file.
        backend: the backend of the model's parameters, by default the current one.

    Raises:
        ImportError: `safetensors` is not installed, or `tokenizers`, for a model that needs it.
        OSError: the file does not exist or cannot be read.
        ValueError: the file is truncated, was not written by save_model, has another format version, or lacks
            something that a model needs.
    """
    header, state = read_safetensors(Path(path), "load_model")
    if header.get("format") != FORMAT:
        raise ValueError(
            f"load_model: {path} was not written by save_model: its format is not {FORMAT!r}; see russellgrad.load"
        )
    if header.get("version") not in _READABLE:
        raise ValueError(
            f"load_model: {path} has format version {header.get('version')!r}, this release reads "
            f"{' and '.join(map(repr, _READABLE))}; load it with the release that wrote it"
        )
    try:
        model = _build(json.loads(header["config"]), _dtype_of(state))
        model.load_state_dict(upgrade_state(state) if header["version"] == "1" else state)
    except (KeyError, TypeError, ValueError) as error:
        what = f"its metadata lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"load_model: {path} does not contain a complete model: {what}") from error
    return model.to(resolve_backend(backend)).eval()


def upgrade_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the state of a Transformer from before `w_qkv`, for `load_state_dict`.

    The matrices w_q, w_k and w_v (C, C) of an attention layer become one, w_qkv (C, 3 C). This also works for what an
    optimizer keeps for each parameter, such as Adam's moments. Numbers, such as Adam's step, must be equal for the
    three, and one is kept. A state that has none of the three names, or not all of them, is left unchanged.

    Raises:
        ValueError: three numbers that differ.
    """
    upgraded = dict(state)
    for layer in [name.removesuffix(".w_q") for name in state if name.endswith(".attention.w_q")]:
        names = [f"{layer}.{matrix}" for matrix in ("w_q", "w_k", "w_v")]
        if f"{layer}.w_qkv" in state or not all(name in state for name in names):
            continue
        parts = [upgraded.pop(name) for name in names]
        if not np.ndim(parts[0]) and len(set(parts)) > 1:
            raise ValueError(f"upgrade_state: {', '.join(names)} have the numbers {parts}, which must be equal")
        upgraded[f"{layer}.w_qkv"] = np.concatenate(parts, axis=1) if np.ndim(parts[0]) else parts[0]
    return upgraded


def _build(config: Mapping[str, Any], dtype: str) -> Transformer:
    """Build a model from its configuration, on the host. The parameters' values are loaded afterwards."""
    options = dict(config["tokenizer"])
    if "encoding" in options:
        options["encoding"] = encoding_from_config(options["encoding"])
    size = options["encoding"].vocab_size if "encoding" in options else len(options["vocabulary"])
    default = get_default_dtype()
    set_default_dtype(dtype)
    try:
        with use_backend("numpy"):
            options["positional_encoding"] = config["model"].get("positions") != "rotary"
            tokenizer = Tokenizer(size, options.pop("max_seq_len"), options.pop("embed_dim"), size, **options, seed=0)
            # A seed, so as not to advance the default generator.
            return Transformer(tokenizer, **config["model"], seed=0)
    finally:
        set_default_dtype(default)
