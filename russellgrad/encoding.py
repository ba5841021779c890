"""Encodings: text to token ids, and token ids to text. A token is a character here, or part of a word in `bpe.py`."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, Self

from .bpe import BPE
from .byte_level import BYTE_OF, check_id, to_bytes, utf8
from .serialization import install_command


class Encoding(Protocol):
    """What `Tokenizer(encoding=...)` needs: a map from text to token ids in [0, vocab_size), and back."""

    @property
    def vocab_size(self) -> int:
        """The number of tokens, without padding."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Raises ValueError for a text that has no ids."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. Bytes that are not UTF-8 become U+FFFD. Raises IndexError for an id out of range."""

    def token_bytes(self, i: int) -> bytes:
        """The UTF-8 bytes that token `i` stands for, which may be part of a character. Raises as `decode`."""

    def config(self) -> dict[str, Any]:
        """What `encoding_from_config` needs to build the same encoding: anything that JSON can represent."""


class CharacterEncoding:
    """One token for each character.

        CharacterEncoding("abc").encode("cab")  # [2, 0, 1]

    Args:
        vocabulary: the characters, each once; a character's id is its position.
        strict: if True, a character outside the vocabulary is an error; if False, it is skipped.

    Raises:
        ValueError: the vocabulary contains a character twice.
    """

    def __init__(self, vocabulary: str, strict: bool = True) -> None:
        self.vocabulary = vocabulary
        self.strict = strict
        self._id_of = {character: i for i, character in enumerate(vocabulary)}
        if len(self._id_of) != len(vocabulary):
            twice = next(character for character in vocabulary if vocabulary.count(character) > 1)
            raise ValueError(f"Tokenizer: the vocabulary contains a character twice, {twice!r}; remove one of them")

    @property
    def vocab_size(self) -> int:
        """The number of characters."""
        return len(self.vocabulary)

    def encode(self, text: str) -> list[int]:
        """Convert a text to a list of ids, one for each character.

        Raises:
            ValueError: a character is not in the vocabulary and the encoding is strict. Otherwise it is skipped.
        """
        if not self.strict:
            return [self._id_of[character] for character in text if character in self._id_of]
        try:
            return [self._id_of[character] for character in text]
        except KeyError as error:
            (character,) = error.args
            raise ValueError(
                f"Tokenizer: character {character!r} at position {text.index(character)} is not in the vocabulary of "
                f"{self.vocab_size}; pass a vocabulary= that contains it, or strict=False to skip such characters"
            ) from error

    def decode(self, ids: Iterable[int]) -> str:
        """Convert ids to a text. Raises IndexError for an id outside [0, vocab_size)."""
        return "".join([self.vocabulary[check_id(i, self.vocab_size)] for i in ids])

    def token_bytes(self, i: int) -> bytes:
        """The UTF-8 bytes of a character. Raises IndexError for an id outside [0, vocab_size)."""
        return self.vocabulary[check_id(i, self.vocab_size)].encode("utf-8", "surrogatepass")

    def config(self) -> dict[str, Any]:
        """The arguments, and the kind "characters"."""
        return {"kind": "characters", "vocabulary": self.vocabulary, "strict": self.strict}


# Decoders with which a text is the bytes of its tokens, one after the other.
_DECODERS = {"ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Strip"}


class HubEncoding:
    """A tokenizer of the package `tokenizers`, as models of Hugging Face have it in tokenizer.json.

        encoding = HubEncoding(Path("gpt2/tokenizer.json").read_text(encoding="utf-8"))

    Special tokens in a text, such as <|endoftext|>, are encoded as one token each. None is added.
    `hub_tokenizer.load_encoding` reads a file or a folder.

    Args:
        tokenizer: a `tokenizers.Tokenizer`, which is copied, or its JSON.
        vocab_size: the number of tokens; by default, and at least, the tokenizer's. Models may have more.

    Raises:
        ImportError: `tokenizers` is not installed.
        ValueError: the JSON is not that of a tokenizer, its decoder is not supported, or vocab_size is too small.
    """

    def __init__(self, tokenizer: Any, vocab_size: int | None = None, *, check_decoder: bool = True) -> None:
        self._json, package = tokenizer if isinstance(tokenizer, str) else tokenizer.to_str(), _tokenizers()
        try:
            self.tokenizer = package.Tokenizer.from_str(self._json)
        except Exception as error:  # the package raises no other class
            raise ValueError(
                f"HubEncoding: not the JSON of a tokenizer: {error}; give a file that `tokenizers` wrote"
            ) from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        vocab = self.tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values(), default=-1) + 1 if vocab_size is None else vocab_size
        if too_large := [token for token, i in vocab.items() if i >= self.vocab_size]:
            raise ValueError(f"HubEncoding: vocab_size {vocab_size} is too small: {too_large[0]!r} has a larger id")
        decoders = _flatten_decoders(json.loads(self._json).get("decoder"))
        unknown = [d["type"] for d in decoders if d["type"] not in _DECODERS or "Regex" in d.get("pattern", ())]
        if unknown and check_decoder:
            raise ValueError(
                f"HubEncoding: the tokenizer's decoder {', '.join(unknown)} is not supported: the bytes of a token may "
                "depend on its neighbors; use a byte-level or a SentencePiece tokenizer"
            )
        added = self.tokenizer.get_added_tokens_decoder()
        self._bytes = [b""] * self.vocab_size  # models may have ids that are no token's
        for token, i in vocab.items():
            self._bytes[i] = utf8(token) if i in added else _bytes_of(token, decoders)

    @classmethod
    def train(cls, text: str | Iterable[str], vocab_size: int) -> Self:
        """Train a byte-pair encoding, as `bpe.BPE.train`. Raises ValueError for vocab_size < 256."""
        if vocab_size < 256:
            raise ValueError(f"HubEncoding: vocab_size must be at least 256, one token for each byte, got {vocab_size}")
        tokenizers = _tokenizers()
        tokenizer = _byte_level(tokenizers.models.BPE())
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size, initial_alphabet=list(BYTE_OF), show_progress=False
        )
        tokenizer.train_from_iterator([text] if isinstance(text, str) else text, trainer)
        return cls(tokenizer)

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Raises ValueError if it has a surrogate, which has no UTF-8 bytes."""
        utf8(text)
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens included. Raises IndexError for an id out of range."""
        text: str = self.tokenizer.decode([check_id(i, self.vocab_size) for i in ids], skip_special_tokens=False)
        return text

    def token_bytes(self, i: int) -> bytes:
        """The bytes of token `i`, which may be part of a character. Raises IndexError for an id out of range."""
        return self._bytes[check_id(i, self.vocab_size)]

    def config(self) -> dict[str, Any]:
        """The tokenizer's JSON, the number of tokens, and the kind "tokenizers"."""
        return {"kind": "tokenizers", "tokenizer": self._json, "vocab_size": self.vocab_size}


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(f"HubEncoding: needs the package tokenizers; {install_command('hub')}") from error
    return tokenizers


def _byte_level(model: Any) -> Any:
    """A `tokenizers.Tokenizer` with GPT-2's pattern and bytes."""
    tokenizers = _tokenizers()
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def _flatten_decoders(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The decoders of a tokenizer's JSON, in order. Without a decoder, the package joins the tokens with spaces."""
    if decoder is None:
        return [{"type": "None"}]
    return (
        [part for inner in decoder["decoders"] for part in _flatten_decoders(inner)]
        if "decoders" in decoder
        else [decoder]
    )


def _bytes_of(token: str, decoders: list[dict[str, Any]]) -> bytes:
    """The bytes of a token, with the tokenizer's decoders: those of GPT-2, or of SentencePiece."""
    for decoder in decoders:
        if decoder["type"] == "ByteLevel":
            return to_bytes(token)
        if decoder["type"] == "ByteFallback" and re.fullmatch("<0x[0-9A-F]{2}>", token):
            return bytes([int(token[3:5], 16)])
        if decoder["type"] == "Replace" and "String" in decoder["pattern"]:
            token = token.replace(decoder["pattern"]["String"], decoder["content"])
        if decoder["type"] == "Metaspace":
            token = token.replace(decoder["replacement"], " ")
    return utf8(token)


def encoding_from_config(config: Mapping[str, Any]) -> Encoding:
    """Build the encoding whose `config()` this is.

    Raises:
        ValueError: the kind of encoding is unknown. KeyError: an entry is missing.
        And the exceptions of the encoding's class, as ImportError without `tokenizers`.
    """
    options = dict(config)
    kind = options.pop("kind")
    if kind == "characters":
        return CharacterEncoding(**options)
    if kind == "bpe":
        return BPE(**options)
    if kind == "tokenizers":
        return HubEncoding(**options, check_decoder=False)  # earlier versions took any
    raise ValueError(f"unknown kind of encoding {kind!r}; use the release that wrote it")
