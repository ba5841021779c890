"""Byte-pair encoding against the package `tokenizers`: the same merges, and the same ids."""

import copy
import json
import random
import sys
import time
import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from russellgrad.bpe import BPE
from russellgrad.byte_level import BYTE_OF, split_words
from russellgrad.checkpoint import load_model, save_model
from russellgrad.encoding import Encoding, HubEncoding, _byte_level, encoding_from_config
from russellgrad.hub_tokenizer import load_encoding
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer
from tests.helpers import once
from train.datasets import play_to_text

pytestmark = once

PLAY = play_to_text(
    "# A play\n\n**FIRST LORD**\n\nWhat's the news? We'll go -- I've heard 'tis so;\nthey're gone to the king's "
    "court, and he'd say it.\n\n**SECOND LORD**\n\nThe king, the king! I'm for the lord's hall.\n" * 20
)
SAMPLES = [
    PLAY[:2000],
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01 \u6211\u4eec\u5728\u8fd9\u91cc\u3002" * 3,
    "\U0001f600\U0001f469\u200d\U0001f4bb ok \U0001f1ea\U0001f1fa!",
    "e\u0301 n\u0303o \u0915\u094d\u0937 \u0e01\u0e33",  # combining marks are neither letters nor numbers
    "1 22 \u0663\u0664 \u00bd\u00b2 \u2167 \u3007 \u4e00 \U0001d7d8 \u2460x",  # numbers of other kinds; a letter
    "a_b __c__ _1 d'_ 's 'S it's IT'S 'll 're''ve",
    " a  b   \n\n c\t\td \n", "\x1c\x1d\x1e\x1f a\x85b\u00a0c\u2003\u2003d\u200be\ufeff \u2028", " ", "\n\n", "",
    np.random.default_rng(0).bytes(3000).decode("utf-8", "replace"),
    "aaaaaaa " * 9 + "abababa", "a" * 3000,
]  # fmt: skip


SIZE = 320  # tokens


@cache
def reference(vocab_size: int = SIZE, text: str = PLAY) -> HubEncoding:
    pytest.importorskip("tokenizers")
    return HubEncoding.train(text, vocab_size)


def merges_of(encoding: HubEncoding) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and the merges of a trained `tokenizers.Tokenizer`."""
    model = json.loads(encoding.tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


@cache
def trained(vocab_size: int = SIZE) -> BPE:
    return BPE.train(PLAY, vocab_size)


# --- Against `tokenizers`


@pytest.mark.parametrize("vocab_size", [256, 257, 300, 600, 5000])
def test_training_gives_the_merges_of_tokenizers(vocab_size: int) -> None:
    text = "".join(SAMPLES) * 2
    ours, (vocab, merges) = BPE.train(text, vocab_size), merges_of(reference(vocab_size, text))
    assert ours.merges == merges
    assert ours.vocab == vocab
    assert ours.vocab_size <= vocab_size
    assert (vocab_size == 5000) == (ours.vocab_size < vocab_size)  # no pair is left


@pytest.mark.parametrize("seed", range(30))
def test_ties_and_repeated_characters_are_merged_as_in_tokenizers(seed: int) -> None:
    draws = random.Random(seed)
    text = "".join(draws.choices("aab \u00e9\n"[: draws.randint(2, 6)], k=draws.randint(1, 400)))
    assert (BPE.train(text, 340).vocab, BPE.train(text, 340).merges) == merges_of(reference(340, text))


@pytest.mark.parametrize("text", SAMPLES)
def test_encoding_gives_the_ids_of_tokenizers(text: str) -> None:
    ids = trained().encode(text)
    assert ids == reference().encode(text)
    assert trained().decode(ids) == reference().decode(ids) == text
    assert b"".join(map(trained().token_bytes, ids)) == b"".join(map(reference().token_bytes, ids)) == text.encode()


@pytest.mark.parametrize("seed", range(30))
def test_merges_in_any_order_give_the_ids_of_tokenizers(seed: int) -> None:
    """As in files that training did not write: a merge may use a token that a later one makes."""
    tokenizers = pytest.importorskip("tokenizers")
    draws = random.Random(seed)
    vocab, merges = merges_of(reference(256 + 30, "".join(draws.choices("abc ", k=300))))
    draws.shuffle(merges)
    expected = HubEncoding(_byte_level(tokenizers.models.BPE(vocab, merges)))
    for text in ("".join(draws.choices("abc ", k=200)), "".join(draws.choices("abc", k=200))):
        assert BPE(vocab, merges).encode(text) == expected.encode(text)


def test_a_long_word_is_encoded_in_a_moment() -> None:
    """A line of 100,000 letters without spaces: one pass for each of the merges takes 30 times as long."""
    draws = random.Random(0)
    word = "".join(draws.choices("etaoinshrdlu", k=100_000))
    text = " ".join("".join(draws.choices("etaoinshrdlu", k=6)) for _ in range(3000))
    encoding = BPE.train(text, 1500)
    start = time.process_time()
    ids = encoding.encode(word)
    assert time.process_time() - start < 3
    assert encoding.decode(ids) == word
    assert word not in encoding._cache


# tokenizers knows letters of newer versions of Unicode than Python, so characters that are not assigned are left out.
@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs", "Cn"))))
def test_any_text_has_the_ids_of_tokenizers(text: str) -> None:
    ids = trained().encode(text)
    assert ids == reference().encode(text)
    assert trained().decode(ids) == text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, SIZE - 1)))
def test_any_ids_have_the_text_of_tokenizers(ids: list[int]) -> None:
    """Also ids whose bytes are not UTF-8."""
    assert trained().decode(ids) == reference().decode(ids)


def test_every_character_is_a_letter_a_number_a_space_or_another_as_in_tokenizers() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    assigned = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cs", "Cn")]
    for start in range(0, len(assigned), 20_000):
        text = "".join(f"a{c}1{c}!{c}" for c in assigned[start : start + 20_000])
        assert split_words(text) == [text[a:b] for _, (a, b) in words.pre_tokenize_str(text)]


def test_the_pattern_of_gpt2() -> None:
    assert split_words("It's  we'll IT'S 3rd x_1\n\n b ") == [
        "It", "'s", " ", " we", "'ll", " IT", "'", "S", " 3", "rd", " x", "_", "1", "\n\n", " b", " "
    ]  # fmt: skip
    assert split_words("") == []
    assert all("".join(split_words(text)) == text for text in SAMPLES)


def test_bytes_as_characters() -> None:
    alphabet = pytest.importorskip("tokenizers").pre_tokenizers.ByteLevel.alphabet()
    assert set(BYTE_OF) == set(alphabet)
    assert sorted(BYTE_OF.values()) == list(range(256))
    assert list(BYTE_OF) == sorted(BYTE_OF)  # the order of the ids in tokenizers and in GPT-2
    assert (BYTE_OF["a"], BYTE_OF["\u0120"], BYTE_OF["\u010a"]) == (97, 32, 10)


# --- BPE alone


def test_the_first_merges_of_a_small_text() -> None:
    encoding = BPE.train("low low lower", 260)
    assert encoding.merges == [("l", "o"), ("lo", "w"), ("\u0120", "low"), ("e", "r")]
    assert encoding.encode("low lower") == [257, 258, 259]
    assert [encoding.token_bytes(i) for i in (257, 258, 259)] == [b"low", b" low", b"er"]


def test_a_text_in_parts() -> None:
    """Parts that begin with the white space before a word have the words of the text."""
    ends = [i for i in range(1, len(PLAY)) if PLAY[i].isspace() and not PLAY[i - 1].isspace()]
    parts = [PLAY[a:b] for a, b in pairwise([0, *ends, len(PLAY)])]
    assert BPE.train(iter(parts), 350).merges == BPE.train(PLAY, 350).merges
    assert BPE.train([], 300).vocab_size == 256


def test_random_bytes_round_trip() -> None:
    ids = np.random.default_rng(1).integers(0, SIZE, 2000).tolist()
    raw = b"".join(map(trained().token_bytes, ids))
    assert trained().decode(ids) == raw.decode("utf-8", "replace")
    for i in (-1, SIZE):
        with pytest.raises(IndexError, match=rf"id {i} is out of range; ids must be in \[0, {SIZE}\)"):
            trained().decode([i])


def test_the_cache_of_words_is_limited() -> None:
    encoding = BPE.train("ab", 256)
    text = " ".join(f"{i:x}" for i in range(40_000))
    ids = [encoding.encode(text) for _ in range(2)]
    assert ids[0] == ids[1] == list(map(encoding.vocab.get, text.replace(" ", "\u0120")))
    assert len(encoding._cache) <= 2**16


def test_a_surrogate_raises() -> None:
    pytest.importorskip("tokenizers")
    encodings: list[Encoding] = [trained(), reference()]
    for encoding in encodings:
        with pytest.raises(ValueError, match=r"'\\ud800' is a surrogate, which UTF-8 cannot encode; remove it"):
            encoding.encode("a \ud800")


# --- Files


def test_files_are_those_of_gpt2(tmp_path: Path) -> None:
    encoding = trained()
    encoding.save(tmp_path)
    first = " ".join(encoding.merges[0])
    assert (tmp_path / "merges.txt").read_text(encoding="utf-8").startswith(f"#version: 0.2\n{first}\n")
    assert json.loads((tmp_path / "vocab.json").read_bytes()) == encoding.vocab
    copy = BPE.load(tmp_path)
    assert (copy.vocab, copy.merges) == (encoding.vocab, encoding.merges)
    files = [str(tmp_path / name) for name in ("vocab.json", "merges.txt")]
    theirs = HubEncoding(_byte_level(pytest.importorskip("tokenizers").models.BPE.from_file(*files)))
    for text in SAMPLES:
        assert copy.encode(text) == theirs.encode(text) == encoding.encode(text)
        assert theirs.decode(theirs.encode(text)) == text


def test_files_of_tokenizers_are_read(tmp_path: Path) -> None:
    reference().tokenizer.model.save(str(tmp_path))
    assert BPE.load(tmp_path).encode(PLAY) == reference().encode(PLAY)


def test_a_vocabulary_with_a_special_token(tmp_path: Path) -> None:
    """As GPT-2's: <|endoftext|> is decoded, and is not encoded."""
    encoding = trained()
    BPE({**encoding.vocab, "<|endoftext|>": SIZE}, encoding.merges).save(tmp_path)
    special = BPE.load(tmp_path)
    assert special.vocab_size == SIZE + 1
    assert special.decode([*special.encode("the"), SIZE]) == "the<|endoftext|>"
    assert SIZE not in special.encode("<|endoftext|>")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", b"{", "vocab.json and merges.txt are not GPT-2's files: "),
        ("vocab.json", b"[1]", "are not GPT-2's files"),
        ("vocab.json", b'{"a": 0}', r"lacks '!'; it needs all 256 bytes and the merged tokens"),
        ("vocab.json", b'{"a": 5}', "the ids of 1 tokens must be 0 to 0, each once"),
        ("vocab.json", b'{"a": "b"}', "are not GPT-2's files"),
        ("merges.txt", b"#version: 0.2\na b c\n", "are not GPT-2's files: too many values"),
        ("merges.txt", b"q z\n", "the vocabulary lacks 'qz'"),
        ("merges.txt", b"\xff\n", "are not GPT-2's files"),
    ],
)
def test_damaged_files_raise(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    trained().save(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        BPE.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        BPE.load(tmp_path)


def test_a_small_vocab_size_raises() -> None:
    with pytest.raises(ValueError, match="BPE: vocab_size must be at least 256, one token for each byte, got 255"):
        BPE.train("abc", 255)
    pytest.importorskip("tokenizers")
    with pytest.raises(ValueError, match="HubEncoding: vocab_size must be at least 256"):
        HubEncoding.train("abc", 255)


# --- Models


def model_of(encoding: Encoding) -> Transformer:
    size = encoding.vocab_size
    return Transformer(Tokenizer(size, 16, 8, size, encoding=encoding, seed=0), 1, 2, seed=0)


@pytest.mark.parametrize("kind", ["bpe", "tokenizers"])
def test_a_model_is_saved_with_its_encoding(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    pytest.importorskip("tokenizers")
    encoding: Encoding = trained() if kind == "bpe" else reference()
    model = model_of(encoding)
    loaded = load_model(save_model(tmp_path / "model.safetensors", model))
    assert type(loaded.tokenizer.encoding) is type(encoding)
    assert loaded.tokenizer.encoding.config() == encoding.config()
    assert loaded.tokenizer.encode(PLAY) == encoding.encode(PLAY)
    assert loaded.generate("the king", 20, seed=1) == model.eval().generate("the king", 20, seed=1)
    assert copy.deepcopy(model).tokenizer.encode(PLAY) == encoding.encode(PLAY)


def test_generation_with_parts_of_characters() -> None:
    model = model_of(trained())
    for seed in range(5):
        pieces = list(model.stream("the", 60, seed=seed))
        assert "the" + "".join(pieces) == model.generate("the", 60, seed=seed)
        assert all(pieces)


@pytest.mark.parametrize("kind", ["bpe", "tokenizers"])
def test_configurations(kind: str) -> None:
    pytest.importorskip("tokenizers")
    encoding: Encoding = trained() if kind == "bpe" else reference()
    config = json.loads(json.dumps(encoding.config()))
    assert config["kind"] == kind
    assert encoding_from_config(config).encode(PLAY) == encoding.encode(PLAY)


# --- HubEncoding


def sentencepiece() -> Any:
    """A tokenizer as Llama's: spaces as U+2581, and bytes for characters that are not in the vocabulary."""
    tokenizers = pytest.importorskip("tokenizers")
    vocab = {"<unk>": 0, "<s>": 1, **{f"<0x{b:02X}>": 2 + b for b in range(256)}}
    for token in ("\u2581", "a", "b", "\u2581a", "ab"):
        vocab[token] = len(vocab)
    model = tokenizers.models.BPE(vocab, [("\u2581", "a"), ("a", "b")], unk_token="<unk>", byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(model)
    n, d = tokenizers.normalizers, tokenizers.decoders
    tokenizer.normalizer = n.Sequence([n.Prepend("\u2581"), n.Replace(" ", "\u2581")])
    tokenizer.decoder = d.Sequence([d.Replace("\u2581", " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


def test_a_tokenizer_as_llamas() -> None:
    encoding = HubEncoding(sentencepiece())
    ids = encoding.encode("ab \u00e9a")
    assert [encoding.token_bytes(i) for i in ids] == [b" a", b"b", b" ", b"\xc3", b"\xa9", b"a"]
    assert encoding.decode(ids) == "ab \u00e9a"
    assert encoding.token_bytes(1) == b"<s>"
    assert encoding.vocab_size == 263


def test_special_tokens_and_options_of_the_file(tmp_path: Path) -> None:
    tokenizer = pytest.importorskip("tokenizers").Tokenizer.from_str(reference().tokenizer.to_str())
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=10)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        encoding = load_encoding(path)
        assert encoding.encode(PLAY) == reference().encode(PLAY)  # neither cut nor padded
        assert encoding.encode("the<|endoftext|>")[-1:] == [SIZE]
        assert encoding.decode([SIZE]) == "<|endoftext|>"
        assert encoding.token_bytes(SIZE) == b"<|endoftext|>"


def test_more_ids_than_tokens() -> None:
    encoding = HubEncoding(reference().tokenizer, vocab_size=512)
    assert encoding.vocab_size == 512
    assert (encoding.token_bytes(511), encoding.decode([511])) == (b"", "")
    assert encoding_from_config(encoding.config()).vocab_size == 512
    with pytest.raises(ValueError, match=f"vocab_size {SIZE - 1} is too small"):
        HubEncoding(reference().tokenizer, vocab_size=SIZE - 1)
    tokenizers = pytest.importorskip("tokenizers")
    pieces = tokenizers.Tokenizer(tokenizers.models.WordPiece({"a": 0, "##b": 1}, unk_token="a"))
    pieces.decoder = tokenizers.decoders.WordPiece()
    with pytest.raises(ValueError, match="the tokenizer's decoder WordPiece is not supported"):
        HubEncoding(pieces)


def test_bytes_are_those_of_the_decoders(tmp_path: Path) -> None:
    """Their names, such as ByteLevel, may also be in the text that a decoder replaces."""
    tokenizers = pytest.importorskip("tokenizers")
    d, vocab = tokenizers.decoders, {"\u00e9": 0, "_a": 1, "ByteLevel": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="_a"))
    tokenizer.decoder = d.Sequence([d.Replace("ByteLevel", "b"), d.Sequence([d.Replace("_", " "), d.Fuse()])])
    encoding = HubEncoding(tokenizer)
    assert [encoding.token_bytes(i) for i in range(3)] == ["\u00e9".encode(), b" a", b"b"]
    assert encoding.decode([0, 1, 2]) == "\u00e9 ab"
    for decoder, name in ((None, "None"), (d.Sequence([d.Replace(tokenizers.Regex("_"), " ")]), "Replace")):
        tokenizer.decoder = decoder
        with pytest.raises(ValueError, match=f"the tokenizer's decoder {name} is not supported: the bytes of a token"):
            HubEncoding(tokenizer)
        config = {"kind": "tokenizers", "tokenizer": tokenizer.to_str(), "vocab_size": 3}
        assert encoding_from_config(config).token_bytes(2) == b"ByteLevel"  # a model file of an earlier version


def test_files_that_are_no_tokenizers_raise(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    with pytest.raises(
        FileNotFoundError, match=rf"load_encoding: {tmp_path} has neither tokenizer.json nor vocab.json"
    ):
        load_encoding(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"load_encoding: there is no file or folder .*tokenizer\.json"):
        load_encoding(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match=rf"{path} is not a tokenizer: HubEncoding: not the JSON of a tokenizer: "):
        load_encoding(tmp_path)
    path.unlink()
    (tmp_path / "vocab.json").write_text("{")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(ValueError, match=rf"{tmp_path}: vocab.json and merges.txt are not GPT-2's files"):
        load_encoding(tmp_path)
    for i in (-1, SIZE):
        with pytest.raises(IndexError, match=f"id {i} is out of range"):
            reference().decode([i])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(
        ImportError, match=r"HubEncoding: needs the package tokenizers; pip install \"russellgrad\[hub\]"
    ):
        encoding_from_config({"kind": "tokenizers", "tokenizer": "{}", "vocab_size": 1})
