"""GPT-2's bytes, words and files: bytes as printable characters, and the pattern that splits a text into words."""

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any
from unicodedata import category

from .serialization import replace_file

# GPT-2's files write a byte as a printable character: itself, or for the others one from U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
# In the order of the bytes' ids in GPT-2.
BYTE_OF = {chr(b): b for b in _PRINTABLE} | {chr(0x100 + n): b for n, b in enumerate(_OTHERS)}
# Unicode's White_Space. Python's \s has U+001C to U+001F, too.
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


@cache
def _pattern() -> re.Pattern[str]:
    """GPT-2's pattern. Python's re lacks its classes \\p{L}, letters, and \\p{N}, numbers."""
    classes = {"L": "", "N": ""}
    for kind, run in groupby(map(chr, range(0x110000)), key=lambda character: category(character)[0]):
        if kind in classes:
            characters = list(run)
            classes[kind] += f"{characters[0]}-{characters[-1]}"  # none of them is special in [...]
    letter, number, space = *classes.values(), WHITE_SPACE
    words = rf"'(?:[stmd]|re|ve|ll)| ?[{letter}]+| ?[{number}]+| ?(?:[^\w{space}]|_)+"
    return re.compile(rf"{words}|[{space}]+(?![^{space}])|[{space}]+")


def split_words(text: str) -> list[str]:
    """Split a text into words, which join to the text: `split_words("Is it?")` is ["Is", " it", "?"]."""
    words: list[str] = _pattern().findall(text)
    return words


def to_bytes(token: str) -> bytes:
    """The bytes of a token, written as in GPT-2's vocab.json; if it has other characters, those of its text."""
    if BYTE_OF.keys() >= set(token):
        return bytes(BYTE_OF[character] for character in token)
    return utf8(token)


def utf8(text: str) -> bytes:
    """The UTF-8 bytes of a text. Raises ValueError for a surrogate, which has none."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"Tokenizer: {text[error.start]!r} is a surrogate, which UTF-8 cannot encode; remove it"
        ) from error


def check_id(i: int, size: int) -> int:
    """Return an id. Raises IndexError if it is outside [0, size): Python counts negative indices from the end."""
    if not 0 <= i < size:
        raise IndexError(f"Tokenizer: id {i} is out of range; ids must be in [0, {size})")
    return i


def write_files(folder: Path, vocab: Mapping[str, int], merges: Iterable[tuple[str, str]]) -> None:
    """Write GPT-2's vocab.json and merges.txt."""
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    replace_file(folder / "vocab.json", json.dumps(vocab, ensure_ascii=False).encode())
    replace_file(folder / "merges.txt", ("\n".join(lines) + "\n").encode())


def read_files(folder: Path) -> tuple[dict[str, int], Any]:
    """The content of vocab.json and merges.txt. Raises OSError, and ValueError for what is not JSON or UTF-8."""
    lines = (folder / "merges.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    merges = [line.split(" ") for line in lines[lines[0].startswith("#version") :] if line]
    return json.loads((folder / "vocab.json").read_bytes()), merges
