"""A trained model in one file: its parameters, its configuration and its vocabulary, in the safetensors format.

Such a file holds arrays and text, never code, so one from a stranger can be opened.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .backend import Backend, resolve_backend
from .russelltransformer import Transformer
from .tokenizer import Tokenizer

FORMAT = "russellgrad-transformer"
VERSION = "2"
_READABLE = ("1", "2")  # version 1 has separate matrices for queries, keys and values: see `upgrade_state`


def save_model(path: str | os.PathLike[str], model: Transformer, *, notes: Mapping[str, Any] | None = None) -> Path:
    """Write a model to a safetensors file and return its path.

    The file at `path` is at any time the old one or the whole new one, even if the process or the machine dies.

    Args:
        path: of the file; its folder must exist.
        model: on any backend; its parameters are copied to the host.
        notes: what else to keep in the file, such as the settings of the training; anything that JSON can hold.

    Raises:
        ImportError: `safetensors` is not installed.
        OSError: the file cannot be written.
    """
    safetensors = _safetensors("save_model")
    tokenizer = model.tokenizer
    config = {
        "model": model.config(),
        "tokenizer": {
            "vocabulary": tokenizer.vocabulary,
            "max_seq_len": tokenizer.max_seq_len,
            "embed_dim": tokenizer.embed_dim,
            "strict": tokenizer.strict,
        },
        "notes": dict(notes or {}),
    }
    # Rows in order: safetensors writes the memory of an array as it lies.
    state = {name: np.ascontiguousarray(_widened(array)) for name, array in model.state_dict().items()}
    header = {"format": FORMAT, "version": VERSION, "config": json.dumps(config)}
    replace_file(Path(path), _in_order(safetensors.numpy.save(state, header)))
    return Path(path)


def _in_order(content: bytes) -> bytes:
    """The same file with its metadata sorted: safetensors writes them in any order, and equal models are equal files.

    The format: 8 bytes, the header's length; the header, JSON, with blanks to a multiple of 8; the arrays.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    new = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    new += b" " * (-len(new) % 8)
    return len(new).to_bytes(8, "little") + new + content[end:]


def _widened(array: Any) -> Any:
    """bfloat16 as float32, which holds it exactly: readers of the file need not know it."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def load_model(path: str | os.PathLike[str], backend: str | ModuleType | Backend | None = None) -> Transformer:
    """The model in a file that `save_model` wrote, in evaluation mode, on `backend` (by default the one in use).

    Raises:
        ImportError: `safetensors` is not installed.
        OSError: there is no such file, or it cannot be read.
        ValueError: the file is cut off or foreign, has another format version, or lacks something a model needs.
    """
    header, state = _read(Path(path))
    if header.get("format") != FORMAT:
        raise ValueError(f"load_model: {path} was not written by save_model: its metadata does not say {FORMAT!r}")
    if header.get("version") not in _READABLE:
        raise ValueError(
            f"load_model: {path} has format version {header.get('version')!r}, this release reads "
            f"{' and '.join(map(repr, _READABLE))}; "
            "load it with the release that wrote it"
        )
    try:
        model = _build(json.loads(header["config"]))
        dtypes = {str(array.dtype) for array in state.values()} or {"float64"}
        if not dtypes <= {"float32", "float64"} or len(dtypes) > 1:
            raise ValueError(f"its parameters have dtype {', '.join(sorted(dtypes))}; a model has float32 or float64")
        model.astype(dtypes.pop()).load_state_dict(upgrade_state(state))
    except (KeyError, TypeError, ValueError) as error:
        what = f"its metadata lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"load_model: {path} does not hold a whole model: {what}") from error
    return model.to(resolve_backend(backend)).eval()


def upgrade_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """A model's state under today's names.

    The matrices w_q, w_k and w_v (C, C) of an attention layer become one, w_qkv (C, 3 C). It works for whatever else
    is kept of each parameter, too, such as Adam's moments; of numbers, which are the same for all three, one stays.
    """
    upgraded = dict(state)
    for layer in [name.removesuffix(".w_q") for name in state if name.endswith(".attention.w_q")]:
        parts = [upgraded.pop(f"{layer}.{name}") for name in ("w_q", "w_k", "w_v")]
        upgraded[f"{layer}.w_qkv"] = np.concatenate(parts, axis=1) if np.ndim(parts[0]) else parts[0]
    return upgraded


def _build(config: Mapping[str, Any]) -> Transformer:
    """A model of the shape that `config` describes; its values are to be loaded yet."""
    options = dict(config["tokenizer"])
    size = len(options["vocabulary"])
    tokenizer = Tokenizer(size, options.pop("max_seq_len"), options.pop("embed_dim"), size, **options, seed=0)
    return Transformer(tokenizer, **config["model"], seed=0)  # seeds: so that no draw of the default generator is used


def _read(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """The metadata and the arrays of a safetensors file."""
    safetensors = _safetensors("load_model")
    if not path.is_file():
        raise FileNotFoundError(f"load_model: there is no file {path}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"load_model: {path} is not a whole safetensors file: {error}") from error


def replace_file(path: Path, content: bytes) -> None:
    """Write beside `path`, bring it to the disk, and only then take the place of what is there.

    A process that is killed meanwhile leaves a file whose name is that of `path`, its own number, and .tmp.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write_synced(beside, content)
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise
    sync_folder(path.parent)


def write_synced(path: Path, content: bytes) -> None:
    """A file that is on the disk when this returns, but for its name: see `sync_folder`."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk: new, changed and gone ones. Windows cannot, and does so by itself."""
    if os.name == "posix":
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _safetensors(who: str) -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(f'{who}: needs the package safetensors; pip install "russellgrad[train]"') from error
    return safetensors
