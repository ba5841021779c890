"""Text generation: the key-value cache, sampling, and streaming.

Shapes: B texts, S cached positions of each text, T new tokens; H heads of width D.
"""

import codecs
import math
import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

from . import apply
from .autograd import no_grad
from .backend import Backend, Shape
from .encoding import CharacterEncoding, Encoding
from .module import Module
from .tensor import Tensor
from .tokenizer import Tokenizer


class LanguageModel(Protocol):
    """The interface of a model that can generate text, such as `russelltransformer.Transformer`.

    Generation calls `forward` with a `KVCache`. A model may have a faster way of its own: a method `make_decoder` that
    returns an object with the methods `next_logits` and `select` of `decoder.Decoder`, or None, for `forward`. It is
    called at the first piece of a text, and again when a `trace` begins or ends.
    """

    tokenizer: Tokenizer

    @property
    def blocks(self) -> Sequence[Module]:
        """The layers; the cache has one entry for each."""

    def modules(self) -> Iterator[Module]:
        """As `Module.modules`."""

    def forward(self, batch: Any, cache: "KVCache | None" = None) -> Tensor:
        """The logits (B, T, vocab_size + 1) of a batch that follows the tokens in the cache."""


# --- The cache


class LayerCache:
    """One layer's keys and values, each (B, H, S, D)."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def length(self) -> int:
        """The number of cached positions, S."""
        return 0 if self.keys is None else self.keys.shape[-2]

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append the keys and values of T tokens, (B, H, T, D), and return all of them, (B, H, S + T, D)."""
        if self.keys is not None and self.values is not None:
            keys = Tensor.concatenate([self.keys, keys], axis=-2)
            values = Tensor.concatenate([self.values, values], axis=-2)
        self.keys, self.values = keys, values
        return keys, values


class KVCache:
    """Key-value cache: the keys and values of all tokens so far, so that each step computes only those of new tokens.

    `model(batch, cache)` appends a batch to the cache. Its logits are those of all tokens in one batch. Rows may be
    padded on the right: padding is ignored, and the next tokens continue after the row's last token.

        cache = KVCache(model)
        logits = model(["to be"], cache)
        logits = model([" or"], cache)  # continues "to be"

    The call of the model raises ValueError for another number of rows than before, and if the tokens exceed
    max_seq_len.

    Args:
        model: the model. After a change of its parameters, start a new cache.

    Attributes:
        length: the number of cached positions in each row, S; at most max_seq_len.
        n_texts: the number of rows, B.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.layers = [LayerCache() for _ in model.blocks]
        self.length = 0
        self.n_texts = 0
        self._tokens: int | Tensor = 0  # tokens in each row without padding; int64 (B, 1) once rows differ
        self._padding: Tensor | None = None  # (B, S) bool; None without padding

    def allocate(self, shape: Shape, padding: Tensor | None, xp: Backend) -> tuple[int | Tensor, Tensor | None]:
        """Allocate positions for a batch of shape (B, T), with its padding mask (B, T) or None.

        Returns:
            The position of each row's first new token, for `Tokenizer.embed`, and the padding mask (B, S + T) or None.

        Raises:
            ValueError: the number of rows differs from before, or the positions exceed max_seq_len.
        """
        (n_rows, n_new), most = shape, self.model.tokenizer.max_seq_len
        if self.length and n_rows != self.n_texts:
            raise ValueError(
                f"KVCache: it holds {self.n_texts} texts and was given tokens of {n_rows}; give tokens of all "
                "texts, or call select() first"
            )
        if self.length + n_new > most:
            raise ValueError(
                f"KVCache: it holds {self.length} tokens, and {n_new} more exceed max_seq_len={most}; start a new "
                f"cache with the last {most} tokens"
            )
        first = self._tokens
        if self._padding is None and padding is None:
            self._tokens = first + n_new
        else:
            before, added = (
                Tensor(xp.full((n_rows, n), False, "bool"), backend=xp) if mask is None else mask
                for n, mask in ((self.length, self._padding), (n_new, padding))
            )
            self._padding = Tensor.concatenate([before, added], axis=1)
            self._tokens = first + n_new - added.astype("int64").sum(axis=1, keepdims=True)
        self.length, self.n_texts = self.length + n_new, n_rows
        return first, self._padding

    def select(self, rows: list[int]) -> None:
        """Keep only these rows, in this order. Drops the texts that are complete."""
        for layer in self.layers:
            if layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        if isinstance(self._tokens, Tensor):
            self._tokens = self._tokens[rows]
        if self._padding is not None:
            self._padding = self._padding[rows]
        self.n_texts = len(rows)


# --- Sampling


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters: how to draw the next token from its logits. Applies temperature, then top_k, then top_p.

    Args:
        temperature: divides the logits; 0 always selects the most likely token (greedy decoding).
        top_k: sample from the k most likely tokens only; among equal logits, lower ids come first. None: no limit.
        top_p: sample from the smallest set of most likely tokens whose probabilities sum to at least top_p (nucleus
            sampling: Holtzman et al., arXiv:1904.09751, section 3.1). None: no limit.

    Raises:
        ValueError: temperature < 0, top_k < 1, top_p outside (0, 1].
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(
                f"generate: needs temperature >= 0, got {self.temperature}; 0 selects the most likely token"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"generate: needs top_k >= 1, got {self.top_k}; leave it out to sample from all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(
                f"generate: needs top_p in (0, 1], got {self.top_p}; leave it out to sample from all tokens"
            )

    def choices(self, logits: Sequence[float]) -> tuple[list[int], list[float]]:
        """The candidate tokens, most likely first, and their unnormalized probabilities.

        Raises ValueError for logits that are not finite.
        """
        if not math.isfinite(sum(logits)):
            raise ValueError("generate: the model's logits contain nan or inf; check its parameters")
        if self.temperature == 0:
            return [max(range(len(logits)), key=logits.__getitem__)], [1.0]  # of equal ones the first, as below
        ranked = sorted(range(len(logits)), key=logits.__getitem__, reverse=True)[: self.top_k]
        exp, largest, temperature = math.exp, logits[ranked[0]], self.temperature
        weights = [exp((logits[i] - largest) / temperature) for i in ranked]
        if self.top_p is not None:
            nucleus = bisect_left(list(accumulate(weights)), self.top_p * sum(weights)) + 1
            return ranked[:nucleus], weights[:nucleus]
        return ranked, weights

    def draw(self, logits: Sequence[float], draws: random.Random) -> int:
        """Draw the id of the next token with the random number generator `draws`."""
        tokens, weights = self.choices(logits)
        return draws.choices(tokens, weights)[0]


# --- Streaming


class _Decoder:
    """Decodes tokens one at a time. A character whose bytes are in several tokens comes with the last of them."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def decode(self, token: int) -> str:
        """The text that is complete with this token."""
        if isinstance(self._encoding, CharacterEncoding):
            return self._encoding.vocabulary[token]
        return self._utf8.decode(self._encoding.token_bytes(token))

    def flush(self) -> str:
        """U+FFFD for bytes of an incomplete character, at the end."""
        return self._utf8.decode(b"", final=True)


class _Completion:
    """A text that is being generated: its ids, its random numbers, and the search for its stop string."""

    def __init__(self, ids: list[int], draws: random.Random, stop: str | None) -> None:
        self.ids = ids
        self.draws = draws
        self.stopped = False
        self._stop = stop
        self._pending = ""  # text that may be the start of the stop string

    def add(self, piece: str) -> str:
        """Add a piece of text. Returns the text that can be shown now: it is not part of the stop string."""
        text, stop = self._pending + piece, self._stop or ""
        if stop and stop in text:
            self.stopped, self._pending = True, ""
            return text.partition(stop)[0]
        n_pending = next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)
        self._pending = text[len(text) - n_pending :]
        return text[: len(text) - n_pending]

    def flush(self, piece: str = "") -> str:
        """Add the last piece, at the end of the generation. Returns the text that was not shown before."""
        if self.stopped:
            return ""
        return self.add(piece) + self._pending


def stream(
    model: LanguageModel,
    prompts: Sequence[str],
    max_new_tokens: int,
    sampling: Sampling,
    stop: str | None = None,
    seed: int = 0,
) -> Iterator[list[str]]:
    """Generate text after the prompts. Each item is a list with a piece of text for each prompt, which may be "".

    See `Transformer.stream` for the arguments and errors. Invalid arguments raise at the call, not at the first piece.
    """
    if not isinstance(prompts, Sequence) or not all(isinstance(prompt, str) for prompt in prompts):
        raise TypeError("generate: the prompt must be a string or a list of strings")
    if not prompts:
        raise ValueError("generate: the list of prompts is empty; give at least one")
    if max_new_tokens < 0:
        raise ValueError(f"generate: needs max_new_tokens >= 0, got {max_new_tokens}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"generate: the seed must be in [0, 2**64), got {seed}")
    if stop == "":
        raise ValueError("generate: the stop string is empty; give at least one character, or None")
    encoding = model.tokenizer.encoding
    known = encoding.vocabulary if isinstance(encoding, CharacterEncoding) else stop or ""
    if missing := [character for character in stop or "" if character not in known]:
        raise ValueError(f"generate: the stop string {stop!r} cannot occur: {missing[0]!r} is not in the vocabulary")
    # Each row has its own random numbers, so a text does not depend on the other prompts. Seeds are less than 2**64.
    texts = [_Completion(_encode(model, p), random.Random(seed + (row << 64)), stop) for row, p in enumerate(prompts)]
    return _pieces(model, texts, max_new_tokens, sampling)


def generate(
    model: LanguageModel,
    prompts: Sequence[str],
    max_new_tokens: int,
    sampling: Sampling,
    stop: str | None = None,
    seed: int = 0,
) -> list[str]:
    """The complete texts: each prompt followed by all its pieces. Arguments and errors are those of `stream`."""
    steps = list(stream(model, prompts, max_new_tokens, sampling, stop, seed))
    starts = [model.tokenizer.decode(model.tokenizer.encode(prompt)) for prompt in prompts]
    return [start + "".join(pieces[row] for pieces in steps) for row, start in enumerate(starts)]


def _encode(model: LanguageModel, prompt: str) -> list[int]:
    """The prompt's ids. Raises ValueError if there are none."""
    ids = model.tokenizer.encode(prompt)
    if not ids:
        why = "is empty" if not prompt else f"{prompt!r} has no character of the vocabulary"
        raise ValueError(f"generate: the prompt {why}; give at least one character of the vocabulary")
    return ids


def _pieces(
    model: LanguageModel, texts: list[_Completion], max_new_tokens: int, sampling: Sampling
) -> Iterator[list[str]]:
    """Generate the pieces of text, one list for each step that completes a piece."""
    decoder, active = _decoder(model), list(enumerate(texts))  # (row, text) of the texts that are not complete
    to_text, observer = [_Decoder(model.tokenizer.encoding) for _ in texts], apply.observer
    for _ in range(max_new_tokens):
        if apply.observer is not observer:  # a trace began or ended: it sees what Tensors compute
            decoder, observer = _decoder(model), apply.observer
        pieces = [""] * len(texts)
        for (row, text), logits in zip(active, decoder.next_logits([text.ids for _, text in active]), strict=True):
            text.ids.append(sampling.draw(logits, text.draws))
            pieces[row] = text.add(to_text[row].decode(text.ids[-1]))
        if any(pieces):
            yield pieces
        if continuing := [i for i, (_, text) in enumerate(active) if not text.stopped]:
            decoder.select(continuing)
            active = [active[i] for i in continuing]
        else:
            return
    if any(rest := [text.flush(decode.flush()) for text, decode in zip(texts, to_text, strict=True)]):
        yield rest


class _NextLogits(Protocol):
    """Computes the next token's logits for texts that grow by one token at a time."""

    def next_logits(self, rows: list[list[int]]) -> list[list[float]]:
        """The logits (vocab_size) of each row's next token. Each row has one token more than in the last call."""

    def select(self, rows: list[int]) -> None:
        """Keep only these rows of the last `next_logits`."""


def _decoder(model: LanguageModel) -> _NextLogits:
    """What the model's `make_decoder` returns; if it has none, or that returns None, `forward` with a KVCache."""
    own: _NextLogits | None = getattr(model, "make_decoder", lambda: None)()
    return _CachedDecoder(model) if own is None else own


class _CachedDecoder:
    """Computes the next token's logits for texts that grow by one token at a time, with a key-value cache."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.cache = KVCache(model)
        self._modules = list(model.modules())

    def next_logits(self, rows: list[list[int]]) -> list[list[float]]:
        """The logits (vocab_size) of each row's next token. Only these are copied from the device in a step.

        When the cache is full, a new cache is filled with the last max_seq_len tokens of each row, because the position
        of every token changes, and with it every key and value.
        """
        tokenizer = self.model.tokenizer
        if self.cache.length == tokenizer.max_seq_len:
            self.cache = KVCache(self.model)
        new = [row[-1:] if self.cache.length else row[-tokenizer.max_seq_len :] for row in rows]
        lengths = [len(row) for row in new]
        padded = [row + [tokenizer.pad_token_id] * (max(lengths) - len(row)) for row in new]
        with no_grad(), _eval_mode(self._modules):
            logits = self.model.forward(padded, self.cache)  # (B, T, vocab_size + 1)
            equal_lengths = min(lengths) == max(lengths)
            last = logits[:, -1] if equal_lengths else logits[list(range(len(rows))), [n - 1 for n in lengths]]
        return [row[: tokenizer.vocab_size] for row in last.numpy().tolist()]  # drop the padding class

    def select(self, rows: list[int]) -> None:
        """Keep only these rows of the last `next_logits`."""
        if len(rows) < self.cache.n_texts:
            self.cache.select(rows)


@contextmanager
def _eval_mode(modules: Sequence[Module]) -> Iterator[None]:
    """Set evaluation mode inside the block, and restore each module's mode after it.

    `stream` yields outside the block, so the caller sees the model's own mode between pieces.
    """
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
