"""Training with other tokens than characters: tokenizers, bits per byte, files of tokens, large texts."""

import hashlib
import html
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from russellgrad.bpe import BPE
from russellgrad.checkpoint import load_model
from russellgrad.encoding import CharacterEncoding, Encoding, HubEncoding
from russellgrad.serialization import replace_file
from russellgrad.tokenizer import Tokenizer
from tests.helpers import once
from tests.process import run_python
from train import tokens
from train.config import Config, configure, parse
from train.data import batches, default_prompt, validation_blocks
from train.distributed import SINGLE_PROCESS
from train.generate import generate
from train.maps import visible
from train.metrics import read_metrics
from train.report import first_tokens, write_report
from train.tokens import bits_per_byte, count_bytes, load_tokens, map_tokens, read_chunks
from train.train_transformer import Result, train

pytest.importorskip("safetensors")

LINES = "The king's men say: caf\u00e9 \u4f60\u597d, we'll go 12 miles \U0001f600.\n\nNAME:\n  he said  so\t\n"
SMALL: dict[str, Any] = {
    "layers": 1, "heads": 2, "width": 16, "block": 8, "batch": 4, "steps": 6, "eval_interval": 4, "eval_blocks": 5,
    "sample_tokens": 5, "warmup": 2,
}  # fmt: skip


def make_text(n_words: int = 1500) -> str:
    return " ".join(np.random.default_rng(0).choice(LINES.split(" "), n_words))


TEXT = make_text()


@pytest.fixture(autouse=True)
def _no_step_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RG_TRAIN_STEPS", raising=False)


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "notes.txt"
    path.write_text(TEXT, encoding="utf-8", newline="")
    return str(path)


@pytest.fixture
def bpe_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bpe"
    folder.mkdir()
    BPE.train(TEXT, 300).save(folder)
    return folder


def small(dataset: str, out: Path, **options: Any) -> Result:
    return train(dataset=dataset, out=str(out), **{**SMALL, **options})


def config_of(dataset: str, out: Path, **options: Any) -> Config:
    return configure(dataset=dataset, out=str(out), **{**SMALL, **options})


# --- Tokenizers


def test_a_run_with_byte_pair_encoding(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = small(text, tmp_path / "run", tokenizer="bpe", vocab=300)
    expected = BPE.train(TEXT, 300)
    encoding = load_model(result.path).tokenizer.encoding
    assert isinstance(encoding, BPE)
    assert encoding.config() == expected.config()
    shown = capsys.readouterr().out
    assert f"{len(TEXT):,} characters, {len(expected.encode(TEXT)):,} tokens, vocabulary of 300; " in shown
    assert f"over 5 blocks, {read_metrics(tmp_path / 'run').bits_per_byte[6]:.4f} bits per byte\n" in shown
    texts = list(generate(tmp_path / "run", ["The king", "\u4f60\u597d \U0001f680"], 6))
    assert texts[0] == "The king"
    assert "\u4f60\u597d \U0001f680" in texts[-1]  # characters that the text does not have
    assert next(generate(tmp_path / "run", tokens=1)) == "\n"


@pytest.mark.parametrize("kind", ["folder", "tokenizer.json", "folder of tokenizer.json"])
def test_a_run_with_a_tokenizer_from_a_file(kind: str, text: str, bpe_folder: Path, tmp_path: Path) -> None:
    path = bpe_folder
    if kind != "folder":
        pytest.importorskip("tokenizers")
        HubEncoding.train(TEXT, 300).tokenizer.save(str(bpe_folder / "tokenizer.json"))
        path = bpe_folder / "tokenizer.json" if kind == "tokenizer.json" else bpe_folder
    result = small(text, tmp_path / "run", tokenizer=str(path))
    same = small(text, tmp_path / "same", tokenizer="bpe", vocab=300)
    assert result.losses == same.losses
    assert type(load_model(result.path).tokenizer.encoding) is (BPE if kind == "folder" else HubEncoding)
    assert "".join(generate(result.path, ["The"], 9)) == "".join(generate(same.path, ["The"], 9))


def test_a_resumed_run_keeps_its_tokenizer(text: str, bpe_folder: Path, tmp_path: Path) -> None:
    """Also when the tokenizer's file is another one now, or is gone."""
    whole = small(text, tmp_path / "whole", tokenizer=str(bpe_folder), steps=8, save_interval=4)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.rmtree(tmp_path / "part/checkpoints/step-00000008")
    shutil.rmtree(bpe_folder)
    part = train(resume=str(tmp_path / "part"))
    assert part.losses == whole.losses[4:]
    assert load_model(part.path).tokenizer.encoding.config() == load_model(whole.path).tokenizer.encoding.config()
    for options in ({"tokenizer": "char"}, {"tokenizer": "bpe", "vocab": 300}):
        with pytest.raises(ValueError, match=r"belongs to a run with tokenizer '.*bpe', not '(char|bpe)'"):
            train(resume=str(tmp_path / "part"), steps=9, **options)


def test_the_default_may_be_given_to_a_resumed_run(text: str, tmp_path: Path) -> None:
    """None stands for 1,024 tokens, and for as many heads of keys and values as there are heads."""
    small(text, tmp_path / "run", tokenizer="bpe", blocks="llama")
    assert train(resume=str(tmp_path / "run"), steps=8, vocab=1024, kv_heads=2).steps == 8
    with pytest.raises(ValueError, match="belongs to a run with vocab 1024, not 300; leave these options out"):
        train(resume=str(tmp_path / "run"), steps=9, vocab=300)


def test_checkpoints_of_earlier_versions_have_characters(text: str, tmp_path: Path) -> None:
    small(text, tmp_path / "run", steps=4)
    checkpoint = next((tmp_path / "run/checkpoints").iterdir())
    state = json.loads((checkpoint / "state.json").read_text())
    for name in ("tokenizer", "vocab"):
        del state["config"][name]
    (checkpoint / "state.json").write_text(json.dumps(state, indent=1) + "\n")
    sums = [line.split("  ")[1].strip() for line in (checkpoint / "SHA256SUMS").read_text().splitlines()]
    lines = [f"{hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()}  {name}\n" for name in sums]
    (checkpoint / "SHA256SUMS").write_text("".join(lines))
    assert train(resume=str(tmp_path / "run"), steps=6).steps == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "nowhere"}, "tokenizer: 'nowhere' is neither char, bpe nor a file; give a tokenizer.json"),
        ({"tokenizer": ""}, "tokenizer must not be empty"),
        ({"vocab": 300}, "vocab is a setting of bpe; tokenizer is char"),
        ({"tokenizer": "bpe", "vocab": 255}, "vocab must be at least 256, one token for each byte, got 255"),
        ({"tokenizer": "."}, r"tokenizer: \. has neither tokenizer\.json nor vocab\.json and merges"),
        (
            {"tokenizer": "bpe", "block": 5000},
            r"its training part has \d+ tokens \(of \d+\), and a block of 5000 needs",
        ),
    ],
)
def test_tokenizers_that_cannot_be_used_raise(options: dict[str, Any], message: str, text: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        small(text, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_special_token_of_the_files_is_one_token(text: str, bpe_folder: Path, tmp_path: Path) -> None:
    """As `Transformer.from_pretrained` reads them."""
    pytest.importorskip("tokenizers")
    encoding = BPE.load(bpe_folder)
    BPE({**encoding.vocab, "<|endoftext|>": 300}, encoding.merges).save(bpe_folder)
    Path(text).write_text(TEXT + "<|endoftext|>", encoding="utf-8", newline="")
    data = load_tokens(config_of(text, tmp_path, tokenizer=str(bpe_folder)), SINGLE_PROCESS)
    assert data.encoding.vocab_size == 301
    assert data.validation[-1] == 300


def test_a_text_of_another_alphabet_names_the_options_of_the_command_line(text: str, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    model = small(text, tmp_path / "run").model
    Path(text).write_text("\u03b1\u03b2" * 200, encoding="utf-8", newline="")
    message = (
        "dataset .*notes.txt has characters that the tokenizer of {} .*hub does not have: .\u03b1., .\u03b2.; use a"
    )
    folder = model.save_pretrained(tmp_path / "hub")
    for name, options in (("tokenizer", {"tokenizer": str(folder)}), ("init_from", {"init_from": str(folder)})):
        with pytest.raises(ValueError, match=message.format(name)):
            load_tokens(configure(dataset=text, out=str(tmp_path / "new"), block=8, **options), SINGLE_PROCESS)


def test_errors_of_the_command_line_are_one_line(text: str, tmp_path: Path) -> None:
    arguments = ["--dataset", text, "--out", str(tmp_path / "run"), "--tokenizer", "nowhere.json"]
    run = run_python("train/train_transformer.py", *arguments)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert "error: --tokenizer: 'nowhere.json' is neither char, bpe nor a file" in run.stderr
    assert parse(["--tokenizer", "bpe", "--vocab", "512"]).vocab == 512


def test_a_prompt_with_a_surrogate_raises(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prompt: Tokenizer: '\\ud800' is a surrogate"):
        small(text, tmp_path / "run", tokenizer="bpe", prompt="a\ud800")


def test_default_prompts(text: str, tmp_path: Path) -> None:
    assert default_prompt(load_model(small(text, tmp_path / "run", tokenizer="bpe").path).tokenizer) == "\n"
    assert default_prompt(Tokenizer.from_text("cab", 4, 4)) == "a"


# --- Bits per byte


def test_bits_per_byte_are_those_of_the_validation_blocks(text: str, tmp_path: Path) -> None:
    result = small(text, tmp_path / "run", tokenizer="bpe", vocab=300, eval_blocks=0)
    data = load_tokens(result.config, SINGLE_PROCESS)
    _, targets = validation_blocks(data.validation, 8)
    n_bytes = len(b"".join(data.encoding.token_bytes(i) for i in targets.ravel().tolist()))
    history = read_metrics(tmp_path / "run")
    for step, loss, blocks in history.validations:
        assert blocks == len(targets)
        nats = loss * targets.size
        np.testing.assert_allclose(history.bits_per_byte[step], nats / math.log(2) / n_bytes, rtol=1e-14)


def test_bits_per_byte_of_characters_count_their_bytes(text: str, tmp_path: Path) -> None:
    small(text, tmp_path / "run", eval_blocks=0)
    history = read_metrics(tmp_path / "run")
    _, loss, blocks = history.validations[-1]
    validation = TEXT[len(TEXT) * 9 // 10 :]
    n_bytes = len(validation[1 : 8 * blocks + 1].encode())
    assert n_bytes > 8 * blocks
    np.testing.assert_allclose(history.bits_per_byte[6], loss * 8 * blocks / math.log(2) / n_bytes, rtol=1e-14)


def test_bits_per_byte_of_bytes_that_are_equally_likely() -> None:
    assert bits_per_byte(math.log(256), 10, 10) == pytest.approx(8, abs=1e-14)
    assert bits_per_byte(math.log(256), 10, 40) == pytest.approx(2, abs=1e-14)
    assert bits_per_byte(1.0, 10, 0) == math.inf
    assert count_bytes(CharacterEncoding("a\u00e9\u4e2d"), np.array([[0, 1], [2, 2]])) == 9


# --- The report


def test_the_report_of_a_run_with_tokens(text: str, tmp_path: Path) -> None:
    small(text, tmp_path / "run", tokenizer="bpe", vocab=300, sample_tokens=30)
    page = write_report(tmp_path / "run", "The king's caf\u00e9", png=False).read_text(encoding="utf-8")
    bits = read_metrics(tmp_path / "run").bits_per_byte[6]
    for expected in ("nats per token", f"{bits:.4f}", "Bits per byte", "no token attends to a later one"):
        assert expected in page
    assert "character" not in page.partition("<pre>")[0].replace("one character, which", "")
    encoding = load_model(tmp_path / "run/model.safetensors").tokenizer.encoding
    for token in {encoding.decode([i]) for i in encoding.encode("The king's caf\u00e9")} | {" king", "'s"}:
        assert f">{html.escape(visible(token))}</text>" in page
    small(text, tmp_path / "characters")
    assert "nats per character" in write_report(tmp_path / "characters", png=False).read_text(encoding="utf-8")


@pytest.mark.parametrize("most", [1, 3, 8, 1000])
def test_the_prompt_of_the_maps_is_cut_to_the_context(most: int, text: str, tmp_path: Path) -> None:
    tokenizer = load_model(small(text, tmp_path / "run", tokenizer="bpe", vocab=300).path).tokenizer
    start = first_tokens(TEXT[:200], tokenizer, most)
    assert TEXT.startswith(start)
    assert 1 <= len(tokenizer.encode(start)) <= max(most, 4)
    assert start == TEXT[:200] or len(tokenizer.encode(TEXT[: len(start) + 1])) > most


# --- Folders of tokens


@pytest.fixture
def token_folder(bpe_folder: Path, tmp_path: Path) -> Path:
    """As nanoGPT's prepare.py writes it."""
    folder = tmp_path / "tokens"
    folder.mkdir()
    ids = np.array(BPE.load(bpe_folder).encode(TEXT), np.uint16)
    cut = len(ids) * 9 // 10
    ids[:cut].tofile(folder / "train.bin")
    ids[cut:].tofile(folder / "val.bin")
    (folder / "meta.pkl").write_bytes(b"not read")
    return folder


def test_a_folder_of_tokens_trains_as_its_text(token_folder: Path, bpe_folder: Path, text: str, tmp_path: Path) -> None:
    result = small(str(token_folder), tmp_path / "run", tokenizer=str(bpe_folder), steps=8, save_interval=4)
    same = small(text, tmp_path / "same", tokenizer="bpe", vocab=300, steps=8)
    assert result.losses == same.losses
    assert result.validation_losses == same.validation_losses
    assert read_metrics(tmp_path / "run").bits_per_byte == read_metrics(tmp_path / "same").bits_per_byte
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000008")
    assert train(resume=str(tmp_path / "run")).losses == result.losses[4:]
    with (token_folder / "train.bin").open("r+b") as file:
        file.write(b"\x01\x00")
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000008")
    with pytest.raises(ValueError, match="was trained on another text than"):
        train(resume=str(tmp_path / "run"))


def test_a_folder_of_tokens_is_mapped(token_folder: Path, bpe_folder: Path, tmp_path: Path) -> None:
    data = load_tokens(config_of(str(token_folder), tmp_path, tokenizer=str(bpe_folder)), SINGLE_PROCESS)
    assert isinstance(data.train, np.memmap) and isinstance(data.validation, np.memmap)
    inputs, targets = next(batches(data.train, 4, 8, seed=0))
    assert inputs.dtype == targets.dtype == np.int64
    assert not data.train.flags.writeable


def damaged(name: str, content: Any) -> Any:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content((folder / name).read_bytes()))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damaged("train.bin", lambda raw: raw[:-1]), r"train.bin is empty or truncated: it has [\d,]+ bytes"),
        (damaged("val.bin", lambda raw: b""), r"val.bin is empty or truncated: it has 0 bytes, .* \(uint16\)"),
        (damaged("val.bin", lambda raw: raw[:16]), "val.bin has 8 tokens, and a block of 8 needs 9; use a longer file"),
        (damaged("train.bin", lambda raw: raw + b"\x2c\x01"), "train.bin, read as uint16, has the id 300, and the"),
    ],
)  # fmt: skip
def test_damaged_files_of_tokens_raise(
    damage: Any, message: str, token_folder: Path, bpe_folder: Path, tmp_path: Path
) -> None:
    damage(token_folder)
    with pytest.raises(ValueError, match=message) as caught:
        small(str(token_folder), tmp_path / "run", tokenizer=str(bpe_folder))
    assert str(token_folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"tokenizer": "bpe"}])
def test_a_folder_of_tokens_needs_a_tokenizer(options: dict[str, Any], token_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has token ids without their text; .*: tokenizer and"):
        small(str(token_folder), tmp_path / "run", **options)


def test_a_folder_without_both_files_is_no_dataset(token_folder: Path, bpe_folder: Path, tmp_path: Path) -> None:
    (token_folder / "val.bin").unlink()
    with pytest.raises(ValueError, match=r"is a folder without train.bin and val.bin; set dataset to "):
        small(str(token_folder), tmp_path / "run", tokenizer=str(bpe_folder))


def test_more_than_65536_tokens_have_four_bytes(tmp_path: Path) -> None:
    encoding = CharacterEncoding("".join(map(chr, range(0x10000, 0x10000 + 70_000))))
    np.array([69_999, 0], "<u4").tofile(tmp_path / "train.bin")
    assert map_tokens(tmp_path / "train.bin", encoding, lambda raw: None).tolist() == [69_999, 0]


# --- Large texts


@pytest.fixture
def _chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "LARGE", 1000)
    monkeypatch.setattr(tokens, "CHUNK", 64)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("begin", ["", "\ufeff", "\n \n"])
@pytest.mark.parametrize("end", ["", " \n\t", "\r\n"])
def test_chunks_are_encoded_as_the_whole_text(begin: str, end: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    content = TEXT.replace("\n", "\r\n") + end
    path.write_text(begin + content, encoding="utf-8", newline="")
    whole = (begin + content).removeprefix("\ufeff").replace("\r\n", "\n")
    chunks = list(read_chunks(path))
    assert "".join(chunks) == whole
    assert len(chunks) > 50
    encodings: list[Encoding] = [BPE.train(TEXT, 400), CharacterEncoding("".join(sorted(set(whole))))]
    for encoding in encodings:
        assert [i for chunk in chunks for i in encoding.encode(chunk)] == encoding.encode(whole)


@pytest.mark.usefixtures("_chunks")
def test_chunks_of_white_space_alone(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a" + " \n" * 300 + "b" + "\n" * 300)
    chunks = list(read_chunks(tmp_path / "text.txt"))
    assert chunks == ["a", " \n" * 300 + "b", "\n" * 300]


@pytest.mark.usefixtures("_chunks")
def test_chunks_of_one_long_line(tmp_path: Path) -> None:
    """As of a text whose line ends are spaces: a chunk ends at a space, and is longer only if there is none."""
    (tmp_path / "text.txt").write_text(TEXT.replace("\n", " "), encoding="utf-8")
    chunks = list(read_chunks(tmp_path / "text.txt"))
    assert "".join(chunks) == TEXT.replace("\n", " ")
    assert max(map(len, chunks)) < 150
    (tmp_path / "text.txt").write_text("a \u4f60" + "\u4f60\u597d" * 100 + " b", encoding="utf-8")
    assert list(read_chunks(tmp_path / "text.txt")) == ["a", " \u4f60" + "\u4f60\u597d" * 100, " b"]


@pytest.mark.usefixtures("_chunks")
def test_a_large_text_that_is_not_utf8_raises(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(b"abc def\n" * 200 + b"\xff\n")
    with pytest.raises(ValueError, match=r"text.txt is not UTF-8 text \(byte 1600\)"):
        list(read_chunks(tmp_path / "text.txt"))


@pytest.mark.parametrize("options", [{}, {"tokenizer": "bpe", "vocab": 300}])
def test_a_large_text_trains_as_a_small_one(
    options: dict[str, Any], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = small(text, tmp_path / "small", steps=8, **options)
    monkeypatch.setattr(tokens, "LARGE", 1000)
    monkeypatch.setattr(tokens, "CHUNK", 64)
    monkeypatch.setattr(tokens, "BPE_CHUNKS", 10**6)
    result = small(text, tmp_path / "large", steps=8, save_interval=4, **options)
    assert result.losses == expected.losses
    assert result.validation_losses == expected.validation_losses
    (file,) = (tmp_path / "large").glob("tokens-*.bin")
    written = file.stat().st_mtime_ns
    shutil.rmtree(tmp_path / "large/checkpoints/step-00000008")
    assert train(resume=str(tmp_path / "large")).losses == expected.losses[4:]
    assert file.stat().st_mtime_ns == written  # it is used again
    monkeypatch.setattr(tokens, "LARGE", 10**9)
    shutil.rmtree(tmp_path / "large/checkpoints/step-00000008")
    assert train(resume=str(tmp_path / "large")).losses == expected.losses[4:]  # the text has the same checksum


@pytest.mark.usefixtures("_chunks")
def test_tokens_that_cannot_be_written_raise(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokens, "replace_file", full)
    with pytest.raises(OSError, match=r"cannot write the tokens of .* No space left on device; choose another"):
        small(text, tmp_path / "run")


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("damage", [lambda raw: raw[:2000], lambda raw: raw[:2000] + raw[2002:], lambda raw: b""])
def test_damaged_tokens_of_a_large_text_are_written_again(
    damage: Any, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every number in the file is an id, so only a checksum tells that the text is another one."""
    result = small(text, tmp_path / "run", steps=8, save_interval=4)
    (file,) = (tmp_path / "run").glob("tokens-*.bin")
    content = file.read_bytes()
    assert len(content) == 2 * len(TEXT) + 32
    assert content[-32:] == hashlib.sha256(content[:-32]).digest()
    file.write_bytes(damage(content))
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000008")
    capsys.readouterr()
    assert train(resume=str(tmp_path / "run")).losses == result.losses[4:]
    assert capsys.readouterr().out.startswith(f"{file} is damaged; it is written again\n")
    assert file.read_bytes() == content


@pytest.mark.usefixtures("_chunks")
def test_a_large_text_that_changes_while_it_is_encoded_raises(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changing(path: Path, content: Any) -> None:
        Path(text).write_text(TEXT + TEXT, encoding="utf-8", newline="")
        replace_file(path, content)

    monkeypatch.setattr(tokens, "replace_file", changing)
    with pytest.raises(ValueError, match=r"notes\.txt changed while it was read; start the run again"):
        small(text, tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


MEMORY = """
import resource, sys
from russellgrad.train import tokens
from russellgrad.train.train_transformer import train
tokens.LARGE, tokens.CHUNK = 2**20, 2**17
train(dataset=sys.argv[1], out=sys.argv[2], layers=1, heads=2, width=16, block=8, batch=4, steps=6, eval_interval=6,
      eval_blocks=5, sample_tokens=5, warmup=2, tokenizer=sys.argv[3])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


@once
@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_a_large_text_needs_constant_memory(tokenizer: str, tmp_path: Path) -> None:
    pytest.importorskip("resource")
    peaks = []
    for megabytes in (3, 13):
        path, part = tmp_path / f"{megabytes}.txt", (TEXT * 40).encode()[:1_000_000].rpartition(b"\n")[0]
        with path.open("wb") as file:
            while file.tell() < megabytes * 1_000_000:
                file.write(part)
        run = run_python("-c", MEMORY, str(path), str(tmp_path / path.stem), tokenizer)
        assert run.returncode == 0, run.stderr
        peaks.append(int(run.stdout.splitlines()[-1]))
    assert peaks[1] - peaks[0] < 5_000_000, peaks  # half of what the text has more; its ids in memory need 8 times it
