"""Encodings: the `encoding` argument of Tokenizer, saving and loading, and generation from tokens that are bytes."""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from russellgrad.checkpoint import load_model, save_model
from russellgrad.encoding import CharacterEncoding, encoding_from_config
from russellgrad.generation import _Completion, _Decoder
from russellgrad.russelltransformer import Transformer
from russellgrad.serialization import read_safetensors
from russellgrad.tokenizer import Tokenizer
from tests.helpers import once

pytestmark = once


class ByteEncoding:
    """One token for each byte of the UTF-8 text: every character but ASCII's is in several tokens."""

    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")

    def token_bytes(self, i: int) -> bytes:
        return bytes([i])

    def config(self) -> dict[str, Any]:
        return {"kind": "bytes"}


def byte_model() -> Transformer:
    return Transformer(Tokenizer(256, 16, 8, 256, encoding=ByteEncoding(), seed=0), 1, 2, seed=0)


def generating(model: Transformer, ids: Iterable[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a model generate these ids at temperature 0, whatever its parameters."""
    given = iter(ids)

    class Decoder:
        def next_logits(self, rows: list[list[int]]) -> list[list[float]]:
            token = next(given)
            return [[float(i == token) for i in range(256)] for _ in rows]

        def select(self, rows: list[int]) -> None: ...

    monkeypatch.setattr(model, "make_decoder", Decoder, raising=False)


def test_a_character_encoding_is_what_a_vocabulary_is() -> None:
    by_name = Tokenizer(3, 6, 4, 3, vocabulary="cab", seed=0)
    tokenizer = Tokenizer(3, 6, 4, 3, encoding=CharacterEncoding("cab"), seed=0)
    assert tokenizer.vocabulary == by_name.vocabulary == "cab"
    assert tokenizer.strict is by_name.strict is True
    assert tokenizer.encode("abc") == by_name.encode("abc") == [1, 2, 0]
    assert tokenizer.encoding.config() == by_name.encoding.config()
    assert not Tokenizer(3, 6, 4, 3, encoding=CharacterEncoding("cab", strict=False)).strict


def test_the_characters_bytes_and_errors() -> None:
    encoding = CharacterEncoding("a\u00e9\u4e2d\ud800")
    assert [encoding.token_bytes(i) for i in range(3)] == [b"a", b"\xc3\xa9", b"\xe4\xb8\xad"]
    assert encoding.decode([2, 0, 3]) == "\u4e2da\ud800"
    for i in (-1, 4):
        for method in (encoding.token_bytes, lambda i: encoding.decode([i])):
            with pytest.raises(IndexError, match=rf"id {i} is out of range; ids must be in \[0, 4\)"):
                method(i)
    with pytest.raises(ValueError, match="contains a character twice"):
        CharacterEncoding("aba")


def test_tokens_that_are_no_characters_have_no_vocabulary() -> None:
    tokenizer = byte_model().tokenizer
    for name in ("vocabulary", "strict"):
        with pytest.raises(AttributeError, match="tokens of ByteEncoding are not characters; use "):
            getattr(tokenizer, name)


def test_a_tokenizer_with_an_encoding() -> None:
    tokenizer = byte_model().tokenizer
    assert tokenizer.encode("\u00e9!") == [0xC3, 0xA9, ord("!")]
    assert tokenizer.decode([0xC3, 0xA9, 256, ord("!"), 256]) == "\u00e9!"
    embeddings, ids, padding = tokenizer(["\u00e9!", "a"])
    assert embeddings.shape == (2, 3, 8)
    assert ids.numpy().tolist() == [[0xC3, 0xA9, 33], [97, 256, 256]]
    assert padding.numpy().tolist() == [[False] * 3, [False, True, True]]
    with pytest.raises(ValueError, match="a text of 18 tokens is longer than max_seq_len=16"):
        tokenizer(["\u00e9" * 9])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": "ab"}, "vocabulary and strict are for characters; leave them out with an encoding"),
        ({"strict": False}, "vocabulary and strict are for characters"),
    ],
)
def test_an_encoding_with_options_of_characters_raises(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tokenizer(256, 6, 4, 256, encoding=ByteEncoding(), **options)


def test_another_number_of_tokens_raises() -> None:
    with pytest.raises(ValueError, match=r"vocab_size is 255, but the encoding has 256 tokens; pass encoding.vocab_si"):
        Tokenizer(255, 6, 4, 255, encoding=ByteEncoding())


# --- Files


@pytest.mark.parametrize("strict", [True, False])
def test_files_of_characters_are_as_in_earlier_versions(tmp_path: Path, strict: bool) -> None:
    pytest.importorskip("safetensors")
    model = Transformer(Tokenizer.from_text("abc", 8, 4, strict=strict, seed=0), 1, 2, seed=0)
    path = save_model(tmp_path / "model.safetensors", model)
    config = json.loads(read_safetensors(path, "")[0]["config"])
    assert config["tokenizer"] == {"vocabulary": "abc", "strict": strict, "max_seq_len": 8, "embed_dim": 4}
    loaded = load_model(path).tokenizer
    assert (loaded.vocabulary, loaded.strict) == ("abc", strict)
    assert loaded.encoding.config() == model.tokenizer.encoding.config()


def test_a_file_that_load_model_could_not_load_is_not_written(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    with pytest.raises(ValueError, match="load_model could not load this model: unknown kind of encoding 'bytes'; use"):
        save_model(tmp_path / "model.safetensors", byte_model())
    assert not list(tmp_path.iterdir())


def test_configurations_of_encodings() -> None:
    encoding = CharacterEncoding("ab", strict=False)
    copy = encoding_from_config(json.loads(json.dumps(encoding.config())))
    assert isinstance(copy, CharacterEncoding)
    assert (copy.vocabulary, copy.strict) == ("ab", False)


# --- Generation


TEXT = "a\u00e9\u4e2d\U0001f600e\u0301!"  # one to four bytes each


def test_a_character_in_several_tokens_is_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    model = byte_model()
    generating(model, TEXT.encode(), monkeypatch)
    assert list(model.stream("x", len(TEXT.encode()), temperature=0)) == list(TEXT)


def test_an_incomplete_character_at_the_end_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    model = byte_model()
    raw = "a\u4e2d".encode()[:-1]
    generating(model, raw, monkeypatch)
    assert list(model.stream("x", len(raw), temperature=0)) == ["a", "\ufffd"]


@pytest.mark.parametrize(
    ("stop", "expected"), [("\u4e2d", "xa\u00e9"), ("\U0001f600e", "xa\u00e9\u4e2d"), ("?", "x" + TEXT)]
)
def test_a_stop_string_is_found_in_the_text(stop: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = byte_model()
    generating(model, TEXT.encode(), monkeypatch)
    assert model.generate("x", len(TEXT.encode()), temperature=0, stop=stop) == expected


def test_a_stop_string_within_a_token_ends_the_text() -> None:
    text = _Completion([], random.Random(0), "lo w")
    assert [text.add(piece) for piece in ("hel", "lo", "lo wor")] == ["he", "l", "lo"]
    assert text.stopped
    assert text.flush("more") == ""


@pytest.mark.parametrize("seed", range(20))
def test_pieces_join_to_the_decoded_ids(seed: int) -> None:
    """Any bytes: what streaming shows is the text of all ids at once."""
    generator = np.random.default_rng(seed)
    raw = bytearray(TEXT.encode() * 3)
    for i in generator.integers(0, len(raw), 8):
        raw[i] = generator.integers(0, 256)
    decoder = _Decoder(ByteEncoding())
    assert "".join(map(decoder.decode, raw)) + decoder.flush() == ByteEncoding().decode(raw)


def test_random_models_stream_what_generate_returns() -> None:
    model = byte_model()
    pieces = list(model.stream(["\u00e9", "ab"], 40, seed=1))
    texts = model.generate(["\u00e9", "ab"], 40, seed=1)
    assert [start + "".join(step[row] for step in pieces) for row, start in enumerate(("\u00e9", "ab"))] == texts
    assert "\ufffd" in texts[0]
