"""Save and load a trained model (parameters, configuration and vocabulary) as one safetensors file.

The file holds arrays and text and no code, so it is safe to open a file from an unknown source.
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
    """Write a model to a safetensors file and return the file's path.

    An existing file is replaced atomically: after a crash, `path` holds the complete old file or the complete new one.

        save_model("model.safetensors", model)

    Args:
        path: the path of the file; its folder must exist.
        model: a model on any backend. Its parameters are copied to the host; bfloat16 is written as float32.
        notes: more to store in the file, such as training settings: anything that JSON can represent.

    Raises:
        ImportError: `safetensors` is not installed.
        OSError: the file cannot be written.
    """
    safetensors = require_safetensors("save_model")
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
    # C-contiguous, because safetensors writes an array's memory without regard to its strides.
    state = {name: np.ascontiguousarray(_widened(array)) for name, array in model.state_dict().items()}
    header = {"format": FORMAT, "version": VERSION, "config": json.dumps(config)}
    replace_file(Path(path), _sort_metadata(safetensors.numpy.save(state, header)))
    return Path(path)


def _sort_metadata(content: bytes) -> bytes:
    """Sort the metadata in a safetensors file, which writes it in no fixed order: equal models give equal files.

    Format: the header's length (8 bytes), the header (JSON, padded with blanks to a multiple of 8), the arrays.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    new = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    new += b" " * (-len(new) % 8)
    return len(new).to_bytes(8, "little") + new + content[end:]


def _widened(array: Any) -> Any:
    """Cast bfloat16 to float32, which represents it exactly, because NumPy has no bfloat16."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def load_model(path: str | os.PathLike[str], backend: str | ModuleType | Backend | None = None) -> Transformer:
    """Load a model from a file that `save_model` wrote, in evaluation mode.

        model = load_model("model.safetensors")

    Args:
        path: the path of the file.
        backend: the backend of the model's parameters, by default the current one.

    Raises:
        ImportError: `safetensors` is not installed.
        OSError: the file does not exist or cannot be read.
        ValueError: the file is truncated, was not written by save_model, has another format version, or lacks
            something that a model needs.
    """
    header, state = _read(Path(path))
    if header.get("format") != FORMAT:
        raise ValueError(f"load_model: {path} was not written by save_model: its format is not {FORMAT!r}")
    if header.get("version") not in _READABLE:
        raise ValueError(
            f"load_model: {path} has format version {header.get('version')!r}, this release reads "
            f"{' and '.join(map(repr, _READABLE))}; load it with the release that wrote it"
        )
    try:
        model = _build(json.loads(header["config"]))
        dtypes = {str(array.dtype) for array in state.values()} or {"float64"}
        if not dtypes <= {"float32", "float64"} or len(dtypes) > 1:
            raise ValueError(f"its parameters have dtype {', '.join(sorted(dtypes))}; a model has float32 or float64")
        state = upgrade_state(state) if header["version"] == "1" else state
        model.astype(dtypes.pop()).load_state_dict(state)
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


def _build(config: Mapping[str, Any]) -> Transformer:
    """Build a model from its configuration. The parameters' values are loaded afterwards."""
    options = dict(config["tokenizer"])
    size = len(options["vocabulary"])
    tokenizer = Tokenizer(size, options.pop("max_seq_len"), options.pop("embed_dim"), size, **options, seed=0)
    return Transformer(tokenizer, **config["model"], seed=0)  # a seed, so as not to advance the default generator


def _read(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """The metadata and the arrays of a safetensors file."""
    safetensors = require_safetensors("load_model")
    if not path.is_file():
        raise FileNotFoundError(f"load_model: there is no file {path}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"load_model: {path} is not a complete safetensors file: {error}") from error


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file atomically: write a temporary file in the same folder, sync it to the disk, and rename it.

    If the process is killed before the rename, the temporary file remains; it is called `path` + process id + ".tmp".
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write_synced(temporary, content)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and sync its content to the disk. `sync_folder` syncs its name."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Sync a folder to the disk, so that new, renamed and deleted files survive a crash. Windows needs no such call."""
    if os.name == "posix":
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def install_command(extra: str) -> str:
    """The commands that install an extra of this package, for error messages."""
    return f'pip install "russellgrad[{extra}]", or in a checkout pip install -e ".[{extra}]"'


def require_safetensors(who: str) -> Any:
    """Import safetensors. Raises ImportError, which says what to install."""
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(f"{who}: needs the package safetensors; {install_command('train')}") from error
    return safetensors
