"""Save and load any module's parameters and buffers as a safetensors file, and write files safely.

The file holds arrays and their names and no code, so it is safe to open a file from an unknown source.
"""

import errno
import json
import math
import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .backend import Shape
from .module import Module

M = TypeVar("M", bound=Module)
# The dtypes of safetensors that NumPy has; BF16 is read as uint16 and becomes float32, which represents it exactly.
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1", "U64": "<u8",
    "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "?", "BF16": "<u2",
}  # fmt: skip


def save(module: Module, path: str | os.PathLike[str]) -> Path:
    """Write a module's parameters and buffers, frozen ones too, to a safetensors file and return the file's path.

    Each array keeps its name in `module.state_dict()`, the first if it has several, its shape and its dtype, so `load`
    gives back the same bits. bfloat16 and float16 are not converted. The same arrays give the same bytes on every
    backend. An existing file is replaced atomically: after a crash, `path` holds the complete old file or the complete
    new one. It keeps its permissions. If `path` is a symbolic link, the file it points to is replaced.

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
    state = {name: tensor.numpy() for name, tensor in module._named_tensors()}
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
        stored = np.frombuffer(entry["data"], _stored_dtype(entry["dtype"], f"{who}: {path}: {name}"))
        arrays[name] = _decoded(stored, entry["dtype"]).reshape(entry["shape"])
    return _header(content).get("__metadata__", {}), arrays


def _stored_dtype(dtype: str, what: str) -> str:
    """NumPy's name of a dtype of safetensors. Raises ValueError, which begins with `what`, for one it does not have."""
    if dtype not in _DTYPES:
        raise ValueError(f"{what} has dtype {dtype}, which NumPy does not have")
    return _DTYPES[dtype]


def _decoded(stored: np.ndarray, dtype: str) -> np.ndarray:
    """The values of an array that was read from a file: bfloat16, read as uint16, becomes float32."""
    if dtype != "BF16":
        return stored
    wide = stored.astype("<u4")
    wide <<= 16
    return wide.view("<f4")


class StoredArray(NamedTuple):
    """An array in a safetensors file, which `read` reads by itself."""

    path: Path
    dtype: str  # as in the file, such as "F32"
    shape: Shape
    start: int  # in bytes, from the beginning of the file

    def read(self) -> np.ndarray:
        """Read the array; bfloat16 becomes float32."""
        array = np.fromfile(self.path, _DTYPES[self.dtype], math.prod(self.shape), offset=self.start)
        return _decoded(array, self.dtype).reshape(self.shape)


def stored_arrays(path: Path, who: str) -> dict[str, StoredArray]:
    """The arrays of a safetensors file, by name, without their values. Raises as `read_safetensors`."""
    safetensors = require_safetensors(who)
    if not path.is_file():
        raise FileNotFoundError(f"{who}: there is no file {path}")
    try:
        with safetensors.safe_open(path, "numpy"):  # checks the header, and the size of the file
            pass
    except safetensors.SafetensorError as error:
        raise ValueError(f"{who}: {path} is not a complete safetensors file: {error}") from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        _stored_dtype(entry["dtype"], f"{who}: {path}: {name}")
    return {
        name: StoredArray(path, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
    }


def write_safetensors(
    path: Path, shapes: Mapping[str, tuple[str, Shape]], arrays: Iterable[np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Replace a file with a safetensors file, array by array, so that they need not fit into memory together.

    Args:
        shapes: the dtype, "F32" or "F64", and the shape of each array, by name.
        arrays: the arrays, in this order.
        metadata: the file's metadata.

    Raises OSError as `replace_file`.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape) in shapes.items():
        start, end = end, end + math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    types = [_DTYPES[dtype] for dtype, _ in shapes.values()]
    values = (np.ascontiguousarray(array, dtype).data.cast("B") for array, dtype in zip(arrays, types, strict=True))
    replace_file(path, chain([_encoded(header)], values))


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
    return _encoded(header) + content[8 + int.from_bytes(content[:8], "little") :]


def _encoded(header: Mapping[str, Any]) -> bytes:
    """The bytes of a safetensors file before its arrays."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def replace_file(path: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Replace a file atomically: write a temporary file in the same folder, sync it to the disk, and rename it.

    The content may be given in parts, which need not fit into memory together.

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


def write_synced(path: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Write a file and sync its content to the disk. `sync_folder` syncs its name."""
    with path.open("wb") as file:
        file.writelines([content] if isinstance(content, bytes) else content)
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
