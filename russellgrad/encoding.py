"""Encodings: text to token ids, and token ids to text. A token is a character here, or part of a word in `bpe.py`."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol


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
            raise ValueError("Tokenizer: the vocabulary contains a character twice")

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


def check_id(i: int, size: int) -> int:
    """Return an id. Raises IndexError if it is outside [0, size): Python counts negative indices from the end."""
    if not 0 <= i < size:
        raise IndexError(f"Tokenizer: id {i} is out of range; ids must be in [0, {size})")
    return i


def encoding_from_config(config: Mapping[str, Any]) -> Encoding:
    """Build the encoding whose `config()` this is.

    Raises:
        ValueError: the kind of encoding is unknown. KeyError: an entry is missing.
        And the exceptions of the encoding's class.
    """
    options = dict(config)
    kind = options.pop("kind")
    if kind == "characters":
        return CharacterEncoding(**options)
    raise ValueError(f"unknown kind of encoding {kind!r}; use the release that wrote it")
