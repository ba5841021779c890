"""Save and load any module's parameters and buffers as a safetensors file, and write files safely.

The file holds arrays and their names and no code, so it is safe to open a file from an unknown source.
"""

import errno
import json
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .module import Module

M = TypeVar("M", bound=Module)
# The dtypes of safetensors that NumPy has; BF16 is read as float32, which represents it exactly.
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1", "U64": "<u8",
    "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "?",
}  # fmt: skip


def save(module: Module, path: str | os.PathLike[str]) -> Path:
    """Write a module's parameters and buffers, frozen ones too, to a safetensors file and return the file's path.

    Each array keeps its name in `module.state_dict()`, its shape and its dtype, so `load` gives back the same bits.
    bfloat16 and float16 are not converted. The same arrays give the same bytes on every backend. An existing file is
    replaced atomically: after a crash, `path` holds the complete old file or the complete new one. It keeps its
    permissions. If `path` is a symbolic link, the file it points to is replaced.

        rg.save(model, "model.safetensors")
        rg.load("model.safetensors", model)

    The file has no configuration: `load` needs a module of the same shapes. `russellgrad.checkpoint.save_model` writes
    a Transformer with its configuration and vocabulary.

    Args:
        module: a module on any backend.
        path: the path of the file; its folder must exist.

    Raises:
        ImportError: `safetensors` is not installed.
        TypeError: `module` is not a Module, or has an array of a dtype that the format does not have; names it.
        ValueError: an array is called "__metadata__", which the format does not allow.
        OSError: the file cannot be written.
    """
    safetensors = require_safetensors("save")
    if not isinstance(module, Module):
        hint = "; the module comes first, save(module, path)" if isinstance(path, Module) else ""
        raise TypeError(f"save: needs a Module, got a {type(module).__name__}{hint}")
    state = module.state_dict()
    if "__metadata__" in state:
        raise ValueError("save: an array is called '__metadata__', which safetensors files do not allow; rename it")
    for name, array in state.items():
        if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
            raise TypeError(f"save: {name} has dtype {array.dtype}, which safetensors files do not have")
    # C-contiguous, because safetensors writes an array's memory without regard to its strides.
    content = safetensors.numpy.save({name: np.asarray(array, order="C") for name, array in state.items()})
    replace_file(Path(path), content)
    return Path(path)


def load(path: str | os.PathLike[str], module: M) -> M:
    """Set a module's parameters and buffers from a safetensors file, and return the module.

        model = rg.load("model.safetensors", Model())

    Names and shapes are those of `module.state_dict()`. The file may also come from another program, such as
    `safetensors.torch.save_file(torch_module.state_dict(), path)`. The module keeps its mode, its backend, and the
    dtype of each array: values are converted to it. Build optimizers after this call.

    Args:
        path: the path of the file.
        module: a module of the same names and shapes.

    Raises:
        ImportError: `safetensors` is not installed.
        TypeError: `module` is not a Module.
        OSError: the file does not exist or cannot be read.
        ValueError: the file is truncated or no safetensors file, or does not fit the module: lists all missing and
            unexpected names, all shapes that differ, and all arrays whose dtype or range does not fit. The module does
            not change then.
    """
    if not isinstance(module, Module):
        hint = "; the path comes first, load(path, module)" if isinstance(path, Module) else ""
        raise TypeError(f"load: needs a Module, got a {type(module).__name__}{hint}")
    _, state = read_safetensors(Path(path), "load")
    try:
        module.load_state_dict(state)
    except ValueError as error:
        raise ValueError(f"load: {path}: {str(error).removeprefix('load_state_dict: ')}") from error
    return module


def read_safetensors(path: Path, who: str) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """The metadata and the arrays of a safetensors file, by name; `who` begins the messages of errors.

    Raises as `load`, also ValueError for an array of a dtype that NumPy does not have, other than bfloat16.
    """
    safetensors = require_safetensors(who)
    if not path.is_file():
        raise FileNotFoundError(f"{who}: there is no file {path}")
    content = path.read_bytes()
    try:
        found = safetensors.deserialize(content)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{who}: {path} is not a complete safetensors file: {error}") from error
    arrays = {}
    for name, entry in found:
        if entry["dtype"] == "BF16":
            array = (np.frombuffer(entry["data"], "<u2").astype("<u4") << 16).view("<f4")
        elif entry["dtype"] in _DTYPES:
            array = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]])
        else:
            raise ValueError(f"{who}: {path}: {name} has dtype {entry['dtype']}, which NumPy does not have")
        arrays[name] = array.reshape(entry["shape"])
    return _header(content).get("__metadata__", {}), arrays


def _header(content: bytes) -> dict[str, Any]:
    """The header of a safetensors file.

    Format: the header's length (8 bytes), the header (JSON, padded with blanks to a multiple of 8), the arrays.
    """
    header: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header


def sort_metadata(content: bytes) -> bytes:
    """Sort the metadata in a safetensors file, which writes it in no fixed order: equal models give equal files."""
    header = _header(content)
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    new = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    new += b" " * (-len(new) % 8)
    return len(new).to_bytes(8, "little") + new + content[8 + int.from_bytes(content[:8], "little") :]


def replace_file(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Replace a file atomically: write a temporary file in the same folder, sync it to the disk, and rename it.

    The content may be an iterable of parts, which are written one after the other.

    The new file has the permissions of the old one. A symbolic link stays: the file it points to is replaced. If the
    process is killed before the rename, the temporary file remains; it is called `path` + process id + thread id +
    ".tmp".

    Raises OSError if the file cannot be written, or `path` is a folder or a device.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a file that can be replaced", str(path))
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        if path.exists():
            temporary.touch()
            temporary.chmod(path.stat().st_mode & 0o777)  # before the content is in it
        write_synced(temporary, content)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def write_synced(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write a file and sync its content to the disk. `sync_folder` syncs its name."""
    with path.open("wb") as file:
        for part in [content] if isinstance(content, bytes) else content:
            file.write(part)
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
