"""The tokens of a run: its encoding, and the ids of its text, from memory or from a file that is mapped into it.

A small text is encoded in memory. A text file of more than LARGE bytes is read in chunks and encoded into a file of
tokens in the run's folder. A folder that nanoGPT's scripts wrote has such files, train.bin and val.bin. A batch reads
only the blocks that it needs from a mapped file.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from russellgrad.bpe import BPE
from russellgrad.byte_level import WHITE_SPACE
from russellgrad.checkpoint import load_model
from russellgrad.encoding import CharacterEncoding, Encoding
from russellgrad.hub import read_options
from russellgrad.hub_tokenizer import load_encoding
from russellgrad.serialization import replace_file

from . import checkpoints
from .config import VOCAB, Config
from .data import Ids, split
from .datasets import DATASETS, decode_utf8, load_text
from .distributed import ProcessGroup
from .progress import echo, option

LARGE = 2**24  # bytes: larger text files are encoded in chunks
CHUNK = 2**20  # bytes of a chunk
BPE_CHUNKS = 64  # chunks of a large text that byte-pair encoding is trained on
DIGEST = 32  # bytes of SHA-256
FILES = ("train.bin", "val.bin")  # of a folder of tokens


@dataclass(frozen=True)
class Tokens:
    """The encoding of a run, and its tokens."""

    encoding: Encoding
    train: Ids
    validation: Ids
    sha256: str  # of the text, or of a folder's files
    size: str  # for the header, as "1,000 characters"
    text: str | None = None  # None if it is not in memory


def load_tokens(config: Config, group: ProcessGroup) -> Tokens:
    """The tokens of a run. A resumed run has the encoding of its checkpoint, unless a token is a character.

    Raises:
        ValueError: the text is too short, or has characters that the tokenizer does not have; a folder of tokens comes
            without a tokenizer; a file of tokens is truncated, or has ids that the tokenizer does not have.
        And the exceptions of `load_text` and of the tokenizer's files.
    """
    path = Path(config.dataset)
    if config.dataset not in DATASETS and path.is_dir() and all((path / name).is_file() for name in FILES):
        return _folder(config, path)
    if config.dataset not in DATASETS and path.is_file() and path.stat().st_size > LARGE:
        return _large_text(config, path, group)
    text = load_text(config.dataset, checkpoint=config.resume)
    encoding = _encoding(config, [text], "".join(sorted(set(text))))
    ids, sha256 = np.array(encoding.encode(text), np.int64), hashlib.sha256(text.encode()).hexdigest()
    return _of_text(config, encoding, ids, sha256, len(text), text)


def _of_text(config: Config, encoding: Encoding, ids: Ids, sha256: str, n: int, text: str | None = None) -> Tokens:
    """The tokens of a text of n characters."""
    size = f"{n:,} characters" + ("" if config.tokenizer == "char" else f", {len(ids):,} tokens")
    return Tokens(encoding, *split(ids, config.block, unit(config)), sha256, size, text)


def unit(config: Config) -> str:
    """The word for a token in messages: "character" or "token"."""
    return "character" if config.tokenizer == "char" else "token"


# --- Encodings


def _encoding(config: Config, texts: Iterable[str], characters: str) -> Encoding:
    """The encoding that `config.tokenizer` names: of the characters, trained on the texts, or from a file.

    Raises ValueError if it does not have all of the characters.
    """
    source = "tokenizer" if config.init_from is None else "init_from"
    encoding: Encoding
    if config.tokenizer == "char":
        encoding = CharacterEncoding(characters)
    elif config.resume is not None:  # the file may have changed
        encoding = load_model(checkpoints.find(config.resume).path / checkpoints.MODEL, "numpy").tokenizer.encoding
    elif config.tokenizer == "bpe":
        encoding = BPE.train(texts, VOCAB if config.vocab is None else config.vocab)
    elif Path(config.tokenizer).exists():
        size = None if config.init_from is None else read_options(Path(config.init_from))["vocab_size"]
        encoding = load_encoding(config.tokenizer, size, option(source))
    else:
        raise ValueError(
            f"{option('tokenizer')}: {config.tokenizer!r} is neither char, bpe nor a file; give a tokenizer.json, or a "
            "folder with one or with vocab.json and merges.txt"
        )
    known = encoding.vocabulary if isinstance(encoding, CharacterEncoding) and encoding.strict else characters
    if unknown := sorted(set(characters) - set(known)):
        more = " ..." if len(unknown) > 10 else ""
        raise ValueError(
            f"{option('dataset')} {config.dataset} has characters that the tokenizer of {option(source)} "
            f"{config.tokenizer} does not have: {', '.join(map(repr, unknown[:10]))}{more}; use a text without "
            "them" + ("" if config.init_from else f", or {option('tokenizer')} bpe")
        )
    return encoding


def count_bytes(encoding: Encoding, ids: Ids) -> int:
    """The number of UTF-8 bytes that ids (N, T) stand for."""
    lengths = np.array([len(encoding.token_bytes(i)) for i in range(encoding.vocab_size)])
    return sum(int(lengths[row].sum()) for row in ids)


def bits_per_byte(loss: float, n_tokens: int, n_bytes: int) -> float:
    """A loss in nats for each of n_tokens tokens, as bits for each of the n_bytes bytes that they stand for."""
    return loss * n_tokens / (math.log(2) * n_bytes) if n_bytes else math.inf


# --- A large text


def read_chunks(path: Path) -> Iterator[str]:
    """Yield a UTF-8 text in parts, which are encoded on their own as in the whole text.

    A part ends between a character and white space, where GPT-2's pattern splits every text. As in `load_text`, a
    byte-order mark is removed, and line ends become newlines. A part is longer than CHUNK bytes if there are no
    spaces or newlines in them. Raises ValueError if the text is not UTF-8.
    """
    rest, raw, offset = "", b"", 0
    with path.open("rb") as file:
        while more := file.read(CHUNK):
            end = max(more.rfind(b" "), more.rfind(b"\n")) + 1  # neither is a byte of another character
            if not end:
                raw += more
                continue
            raw += more[:end]
            text = rest + decode_utf8(raw, path, offset, first=offset == 0)
            offset, raw = offset + len(raw), more[end:]
            end = len(text.rstrip(WHITE_SPACE))
            if text[:end]:
                yield text[:end]
            rest = text[end:]
    if last := rest + decode_utf8(raw, path, offset, first=offset == 0):
        yield last


def _large_text(config: Config, path: Path, group: ProcessGroup) -> Tokens:
    characters: set[str] = set()
    digest, n = hashlib.sha256(), 0
    for text in read_chunks(path):
        characters.update(text)
        digest.update(text.encode())
        n += len(text)
    encoding = _encoding(config, _first(read_chunks(path), BPE_CHUNKS), "".join(sorted(characters)))
    key = json.dumps([digest.hexdigest(), encoding.config(), dtype_of(encoding).name]).encode()
    file = config.folder / f"tokens-{hashlib.sha256(key).hexdigest()[:16]}.bin"
    if group.is_main and not _is_complete(file):
        config.folder.mkdir(parents=True, exist_ok=True)
        try:
            replace_file(file, _encoded(path, encoding, digest.hexdigest()))
        except OSError as error:
            raise OSError(
                f"cannot write the tokens of {path} to {file}: {error.strerror or error}; choose another folder with "
                f"{option('out')}"
            ) from error
    group.check_same({"tokens": str(file)})  # the others wait for the file
    ids = map_tokens(file, encoding, n_bytes=file.stat().st_size - DIGEST)
    return _of_text(config, encoding, ids, digest.hexdigest(), n)


def _first(chunks: Iterator[str], n: int) -> Iterator[str]:
    for _, chunk in zip(range(n), chunks, strict=False):
        yield chunk


def _encoded(path: Path, encoding: Encoding, sha256: str) -> Iterator[bytes]:
    """The content of the file of a large text's tokens: the ids, and at its end their SHA-256.

    Raises ValueError if the text's SHA-256 is another one: the file's name contains that of the first reading.
    """
    text_digest, digest, dtype = hashlib.sha256(), hashlib.sha256(), dtype_of(encoding)
    for text in read_chunks(path):
        text_digest.update(text.encode())
        raw = np.array(encoding.encode(text), dtype).tobytes()
        digest.update(raw)
        yield raw
    if text_digest.hexdigest() != sha256:
        raise ValueError(f"{path} changed while it was read; start the run again when it is complete")
    yield digest.digest()


def _is_complete(file: Path) -> bool:
    """Whether there is such a file as `_encoded` gives, with the ids that were written."""
    if not file.exists():
        return False
    digest, left = hashlib.sha256(), file.stat().st_size - DIGEST
    with file.open("rb") as opened:
        while left > 0 and (raw := opened.read(min(left, CHUNK))):
            digest.update(raw)
            left -= len(raw)
        if digest.digest() == opened.read():
            return True
    echo(f"{file} is damaged; it is written again")
    return False


# --- Files of tokens


def _folder(config: Config, folder: Path) -> Tokens:
    if config.tokenizer in ("char", "bpe"):
        raise ValueError(
            f"dataset {config.dataset!r} has token ids without their text; give the tokenizer that it was "
            f"encoded with: {option('tokenizer')} and a tokenizer.json, or a folder with vocab.json and merges.txt"
        )
    encoding, digest = _encoding(config, (), ""), hashlib.sha256()
    parts = [map_tokens(folder / name, encoding, digest.update) for name in FILES]
    for name, part in zip(FILES, parts, strict=True):
        if len(part) <= config.block:
            raise ValueError(
                f"{folder / name} has {len(part)} tokens, and a block of {config.block} needs {config.block + 1}; use "
                f"a longer file or a smaller {option('block')}"
            )
    size = f"{sum(map(len, parts)):,} tokens"
    return Tokens(encoding, parts[0], parts[1], digest.hexdigest(), size)


def dtype_of(encoding: Encoding) -> np.dtype[Any]:
    """The dtype of a file of tokens: little-endian uint16, or uint32 for more than 65,536 tokens."""
    return np.dtype("<u2" if encoding.vocab_size <= 2**16 else "<u4")


def map_tokens(
    path: Path, encoding: Encoding, update: Callable[[bytes], object] = lambda raw: None, n_bytes: int | None = None
) -> Ids:
    """Map a file of tokens, (N,), after reading it once to check it. Each part that is read is passed to `update`.

    The tokens are in the first `n_bytes` bytes, by default all.

    Raises:
        ValueError: the file is empty, its size is not a multiple of the dtype's, or it has ids that the encoding does
            not have.
        OSError: the file cannot be read.
    """
    dtype, size = dtype_of(encoding), path.stat().st_size if n_bytes is None else n_bytes
    if not size or size % dtype.itemsize:
        raise ValueError(
            f"{path} is empty or truncated: it has {size:,} bytes, and a token is {dtype.itemsize} ({dtype.name}); "
            "write it again"
        )
    with path.open("rb") as file:
        while raw := file.read(min(CHUNK, size - file.tell())):
            if (largest := int(np.frombuffer(raw, dtype).max())) >= encoding.vocab_size:
                raise ValueError(
                    f"{path}, read as {dtype.name}, has the id {largest}, and the tokenizer has only "
                    f"{encoding.vocab_size:,} tokens; give the tokenizer that the file was encoded with: "
                    f"{option('tokenizer')}"
                )
            update(raw)
    ids: npt.NDArray[Any] = np.memmap(path, dtype, mode="r", shape=(size // dtype.itemsize,))
    return ids
