"""Tokenizer: text to token ids, and token ids to embedding vectors. A token is one character, or that of an encoding.

Ids 0 to vocab_size - 1 are the tokens. Id vocab_size is padding, which is added on the right.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from . import init, rules, tokenizer_constants
from .backend import Array, Backend
from .encoding import CharacterEncoding, Encoding
from .module import Module
from .random import EMBEDDINGS, Generator
from .tensor import Tensor, apply


@dataclass(frozen=True)
class TokenIds:
    """A batch of token ids that `Tokenizer.ids` has checked on the host and copied to the backend."""

    values: Array  # (B, T) int64
    padding: Array | None  # (B, T) bool, True at padding; None if there is no padding
    upper: int  # all ids are less than this
    backend: Backend


class Tokenizer(Module):
    """A tokenizer with learned token embeddings and learned positional encodings. By default a token is a character.

        tokenizer = Tokenizer.from_text(text, max_seq_len=64, embed_dim=128)
        tokenizer.encode("hello")  # a list of 5 ids

        encoding = BPE.train(text, 1024)  # from russellgrad.bpe
        Tokenizer(1024, 64, 128, 1024, encoding=encoding)

    Args:
        vocab_size: the number of tokens.
        max_seq_len: the length of the longest text, in tokens.
        embed_dim: the length of an embedding vector, C.
        pad_token_id: the id of padding; must be vocab_size.
        vocabulary: the characters, each once; by default those of `tokenizer_constants`.
        encoding: the map between text and ids, as `bpe.BPE`, instead of `vocabulary`.
        strict: if True, a character outside the vocabulary is an error; if False, it is skipped. For characters only.
        positional_encoding: whether the embeddings have a learned positional encoding. False for a model with rotary
            positions; the attribute is None then.
        seed: the seed of the initial embeddings; by default they come from the default generator.

    Attributes:
        encoding: the `Encoding`, which exists always.

    Raises:
        ValueError: vocab_size is not the number of tokens, the vocabulary contains a character twice, pad_token_id is
            not vocab_size, or a size is not positive; an encoding is given with a vocabulary or with strict=False.
    """

    def __init__(
        self,
        vocab_size: int,
        max_seq_len: int,
        embed_dim: int,
        pad_token_id: int,
        *,
        vocabulary: str | None = None,
        encoding: Encoding | None = None,
        strict: bool = True,
        positional_encoding: bool = True,
        seed: int | None = None,
    ) -> None:
        if encoding is None:
            encoding = CharacterEncoding(tokenizer_constants.vocabulary if vocabulary is None else vocabulary, strict)
        elif vocabulary is not None or not strict:
            raise ValueError("Tokenizer: vocabulary and strict are for characters; leave them out with an encoding")
        elif vocab_size != encoding.vocab_size:
            raise ValueError(
                f"Tokenizer: vocab_size is {vocab_size}, but the encoding has {encoding.vocab_size} tokens; pass "
                "encoding.vocab_size"
            )
        if vocab_size != encoding.vocab_size:
            raise ValueError(
                f"Tokenizer: vocab_size is {vocab_size}, but the vocabulary has {encoding.vocab_size} characters; "
                "pass vocabulary=, or build the tokenizer with Tokenizer.from_text"
            )
        if pad_token_id != vocab_size:
            raise ValueError(f"Tokenizer: pad_token_id must be vocab_size, {vocab_size}, got {pad_token_id}")
        if min(vocab_size, max_seq_len, embed_dim) < 1:
            raise ValueError(
                f"Tokenizer: sizes must be positive, got vocab_size={vocab_size}, max_seq_len={max_seq_len}, "
                f"embed_dim={embed_dim}"
            )
        self.encoding = encoding
        self.vocab_size = vocab_size
        self.max_seq_len = max_seq_len
        self.embed_dim = embed_dim
        self.pad_token_id = pad_token_id
        generator = None if seed is None else Generator(seed, EMBEDDINGS)
        # One row for each token and one for padding. The model's output projection uses the same matrix.
        self.token_embedding = init.normal(
            (vocab_size + 1, embed_dim), std=0.02, generator=generator, label="token_embedding"
        )
        self.positional_encoding = (
            init.normal((max_seq_len, embed_dim), std=0.02, generator=generator, label="positional_encoding")
            if positional_encoding
            else None
        )

    @classmethod
    def from_text(cls, text: str, max_seq_len: int, embed_dim: int, **options: Any) -> Self:
        """Build a tokenizer whose vocabulary is the sorted set of characters in `text`.

        `options` are further arguments of the constructor. Raises ValueError for an empty text.
        """
        vocabulary = "".join(sorted(set(text)))
        return cls(len(vocabulary), max_seq_len, embed_dim, len(vocabulary), vocabulary=vocabulary, **options)

    # --- Text and ids

    @property
    def vocabulary(self) -> str:
        """The characters. Raises AttributeError for another encoding: its `token_bytes` has the bytes of a token."""
        return self._characters().vocabulary

    @property
    def strict(self) -> bool:
        """Whether a character outside the vocabulary is an error. Raises AttributeError as `vocabulary`."""
        return self._characters().strict

    def _characters(self) -> CharacterEncoding:
        if not isinstance(self.encoding, CharacterEncoding):
            raise AttributeError(
                f"Tokenizer: the tokens of {type(self.encoding).__name__} are not characters; use tokenizer.encoding, "
                "whose token_bytes(i) are the bytes of a token"
            )
        return self.encoding

    def encode(self, text: str) -> list[int]:
        """Convert a text to a list of ids, for characters one for each.

        Raises:
            ValueError: a character is not in the vocabulary and the tokenizer is strict. Otherwise it is skipped.
        """
        return self.encoding.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Convert ids to a text. Padding is skipped. Raises IndexError for an id outside [0, vocab_size]."""
        tokens = []
        for i in ids:
            if not 0 <= i <= self.vocab_size:
                raise IndexError(f"Tokenizer: id {i} is out of range; ids must be in [0, {self.vocab_size}]")
            if i != self.pad_token_id:
                tokens.append(i)
        return self.encoding.decode(tokens)

    def ids(self, batch: Any) -> TokenIds:
        """Convert a batch to checked ids (B, T) on the parameters' backend.

        Args:
            batch: a list of B strings, padded to the length T of the longest; or integer ids (B, T), as an array,
                nested lists or a Tensor, which may include padding; or TokenIds, which are returned unchanged.

        Raises:
            TypeError: the batch is a single string. IndexError: an id is out of range.
            ValueError: the batch or a text is empty, a text is longer than max_seq_len, or a character is not in the
                vocabulary.
        """
        if isinstance(batch, TokenIds):
            return self._check_token_ids(batch)
        xp, pad = self.token_embedding.backend.root, self.pad_token_id
        batch = self._rows(batch)
        ids, valid = xp.check_targets(batch, self.vocab_size + 1, pad, "Tokenizer")
        if ids.ndim != 2:
            raise ValueError(f"Tokenizer: ids must be (batch, length), got shape {tuple(ids.shape)}")
        if ids.shape[1] > self.max_seq_len:
            raise ValueError(
                f"Tokenizer: a text of {ids.shape[1]} tokens is longer than max_seq_len={self.max_seq_len}; "
                "cut it, or build the tokenizer with a larger max_seq_len"
            )
        upper = self.vocab_size + 1
        if valid is None:
            return TokenIds(ids, None, upper, xp)
        return TokenIds(xp.where(valid, ids, pad), xp.logical_not(valid), upper, xp)

    def _check_token_ids(self, ids: TokenIds) -> TokenIds:
        """Check TokenIds, which another tokenizer may have made, without reading the ids from the device."""
        if ids.backend is not self.token_embedding.backend.root:
            raise TypeError(
                f"Tokenizer: ids on {ids.backend.name!r}, parameters on {self.token_embedding.backend.name!r}; "
                "call tokenizer.ids(batch) after moving the model"
            )
        if ids.upper > self.vocab_size + 1 or ids.values.shape[1] > self.max_seq_len:
            raise ValueError(
                f"Tokenizer: ids below {ids.upper} of {ids.values.shape[1]} tokens, made by a tokenizer with "
                f"another vocabulary or length than this one's {self.vocab_size} and {self.max_seq_len}; use ids of "
                "this tokenizer"
            )
        return ids

    def _rows(self, batch: Any) -> Any:
        """Convert texts to lists of ids of equal length, and a Tensor to its array. Return other batches unchanged."""
        if isinstance(batch, str):
            raise TypeError("Tokenizer: the batch is a single string; wrap it in a list, [text]")
        if _is_texts(batch):
            rows = [self._encode_nonempty(text) for text in batch]
            longest = max(map(len, rows))
            return [row + [self.pad_token_id] * (longest - len(row)) for row in rows]
        return batch.data if isinstance(batch, Tensor) else batch

    def _encode_nonempty(self, text: str) -> list[int]:
        """As `encode`. Raises ValueError if there are no ids."""
        row = self.encode(text)
        if not row:
            why = "is empty" if not text else "has no character of the vocabulary"
            raise ValueError(f"Tokenizer: the text {text!r} {why}; give at least one character")
        return row

    def targets(self, batch: Any) -> list[list[int]]:
        """The training targets of a batch: at each position the id of the next token, (B, T). The last is padding.

        `batch` is as in `ids`, but not TokenIds. Raises TypeError for a single string, ValueError for an empty batch or
        text, or a character that is not in the vocabulary.
        """
        rows = self._rows(batch)
        rows = rows.tolist() if hasattr(rows, "tolist") else rows
        return [[*row[1:], self.pad_token_id] for row in rows]

    # --- Embeddings

    def embed(self, ids: Array, first: int | Tensor = 0) -> Tensor:
        """Token embedding plus positional encoding, if there is one, of each token: (B, T) -> (B, T, C).

        It raises no errors of its own: `ids` has checked the values.

        Args:
            ids: the `values` of TokenIds, which are not checked again.
            first: the position of the first token in each row: one int for all rows, or an int64 Tensor (B, 1). All
                positions, up to first + T - 1, must be less than max_seq_len.
        """
        tokens = apply(rules.embedding, self.token_embedding, ids=ids, check=False)
        if self.positional_encoding is None:
            return tokens
        if isinstance(first, int):
            return tokens + self.positional_encoding[first : first + ids.shape[1]]
        positions = first + first.backend.arange(ids.shape[1])  # (B, T)
        return tokens + apply(rules.embedding, self.positional_encoding, ids=positions, check=False)

    def forward(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Embed a batch, which is as in `ids`. Raises as `ids` does.

        Returns:
            The embeddings (B, T, C), the ids (B, T), and the padding mask (B, T), True at padding.
        """
        ids, xp = self.ids(batch), self.token_embedding.backend.root
        mask = xp.full(ids.values.shape, False, "bool") if ids.padding is None else ids.padding
        return self.embed(ids.values), Tensor(ids.values, backend=xp), Tensor(mask, backend=xp)


def _is_texts(batch: Any) -> bool:
    """Whether the batch is a sequence of strings. Raises ValueError for an empty one."""
    if not isinstance(batch, Sequence):
        return False
    if not len(batch):
        raise ValueError("Tokenizer: the batch is empty; give at least one text")
    return all(isinstance(text, str) for text in batch)
