"""Text from a language model: a cache of keys and values, the draws, and the text as it is made.

Shapes: B texts, S places of each in the cache, T new tokens; H heads of width D.
"""

import math
import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

from .autograd import no_grad
from .backend import Backend, Shape
from .module import Module
from .tensor import Tensor
from .tokenizer import Tokenizer


class LanguageModel(Protocol):
    """What generation needs of a model: `russelltransformer.Transformer` is one."""

    tokenizer: Tokenizer

    @property
    def blocks(self) -> Sequence[Module]: ...

    def modules(self) -> Iterator[Module]: ...

    def forward(self, batch: Any, cache: "KVCache | None" = None) -> Tensor:
        """The logits (B, T, vocab_size + 1) of a batch that follows what the cache holds."""


# --- The cache


class LayerCache:
    """One layer's keys and values, each (B, H, S, D)."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep those of T more tokens, (B, H, T, D), and give all, (B, H, S + T, D)."""
        if self.keys is not None and self.values is not None:
            keys = Tensor.concatenate([self.keys, keys], axis=-2)
            values = Tensor.concatenate([self.values, values], axis=-2)
        self.keys, self.values = keys, values
        return keys, values


class KVCache:
    """The keys and values of the tokens that a model has been fed, so that none is computed twice.

    `model(batch, cache)` feeds it tokens that follow those before: their logits are what they would be if all were fed
    at once. Padding on the right of a row counts for nothing; what is fed after it follows the row's last character.

    Args:
        model: whose keys and values they are. They are those of its parameters when they were fed.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.layers = [LayerCache() for _ in model.blocks]
        self.length = 0  # S: the places taken in every row, max_seq_len at most
        self.n_texts = 0
        self._tokens: int | Tensor = 0  # how many of each row's places are no padding; int64 (B, 1) once rows differ
        self._padding: Tensor | None = None  # (B, S) bool, once there is any

    def place(self, shape: Shape, padding: Tensor | None, xp: Backend) -> tuple[int | Tensor, Tensor | None]:
        """Take places for T more tokens of each row, of shape (B, T), with their padding (B, T) if there is any.

        Returns:
            The position of each row's first one, as `Tokenizer.embed` takes it, and the padding (B, S + T).

        Raises:
            ValueError: another number of rows than before, or more places than max_seq_len.
        """
        (n_rows, n_new), most = shape, self.model.tokenizer.max_seq_len
        if self.length and n_rows != self.n_texts:
            raise ValueError(
                f"KVCache: it holds {self.n_texts} texts and was given tokens of {n_rows}; feed all of them, or name "
                "those that go on with keep()"
            )
        if self.length + n_new > most:
            raise ValueError(
                f"KVCache: {self.length} places are taken, and {n_new} more exceed max_seq_len={most}; start a new "
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

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only, in this order."""
        for layer in self.layers:
            if layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        if isinstance(self._tokens, Tensor):
            self._tokens = self._tokens[rows]
        if self._padding is not None:
            self._padding = self._padding[rows]
        self.n_texts = len(rows)


# --- The draws


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from the logits of its place. Temperature comes first, then top_k, then top_p.

    Args:
        temperature: divides the logits; 0 takes the most likely token every time.
        top_k: draw from the k most likely only; of equal ones the first in the vocabulary count as more likely.
        top_p: draw from the fewest of the most likely, and no fewer, whose probabilities add up to at least this
            (nucleus sampling: Holtzman et al., arXiv:1904.09751, section 3.1).

    Raises:
        ValueError: temperature < 0, top_k < 1, top_p outside (0, 1].
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"generate: needs temperature >= 0, got {self.temperature}; 0 takes the most likely token")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"generate: needs top_k >= 1, got {self.top_k}; None draws from all")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"generate: needs top_p in (0, 1], got {self.top_p}; None draws from all")

    def choices(self, logits: Sequence[float]) -> tuple[list[int], list[float]]:
        """The tokens that may be drawn, the most likely first, and their probabilities up to a common factor."""
        if not math.isfinite(sum(logits)):
            raise ValueError("generate: the model's logits hold nan or inf; check its parameters")
        ranked = sorted(range(len(logits)), key=logits.__getitem__, reverse=True)[: self.top_k]
        if self.temperature == 0:
            return ranked[:1], [1.0]
        weights = [math.exp((logits[i] - logits[ranked[0]]) / self.temperature) for i in ranked]
        if self.top_p is not None:
            nucleus = bisect_left(list(accumulate(weights)), self.top_p * sum(weights)) + 1
            return ranked[:nucleus], weights[:nucleus]
        return ranked, weights

    def draw(self, logits: Sequence[float], draws: random.Random) -> int:
        """A token's id."""
        tokens, weights = self.choices(logits)
        return draws.choices(tokens, weights)[0]


# --- The text as it is made


class _Text:
    """A text that is being written. It ends before `stop`, if there is one."""

    def __init__(self, ids: list[int], draws: random.Random, stop: str | None) -> None:
        self.ids = ids
        self.draws = draws
        self.stopped = False
        self._stop = stop
        self._held = ""  # the start of the stop string, perhaps

    def add(self, character: str) -> str:
        """Take one character more, and give what is known by now to come before the stop string."""
        text, stop = self._held + character, self._stop or ""
        if stop and text.endswith(stop):
            self.stopped, self._held = True, ""
            return text.removesuffix(stop)
        held = next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def rest(self) -> str:
        """What was held back, now that nothing follows it."""
        return self._held


def stream(
    model: LanguageModel,
    prompts: Sequence[str],
    max_new_tokens: int,
    sampling: Sampling,
    stop: str | None = None,
    seed: int = 0,
) -> Iterator[list[str]]:
    """The pieces of text that follow the prompts as they are made, one for each prompt, "" where there is none yet.

    See `Transformer.stream`. Raises at once, not at the first piece.
    """
    vocabulary = model.tokenizer.vocabulary
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
    if missing := [character for character in stop or "" if character not in vocabulary]:
        raise ValueError(
            f"generate: the stop string {stop!r} would never be written: {missing[0]!r} is not in the vocabulary"
        )
    # A seed is less than 2**64, so no two texts draw the same numbers, and none hangs on what the others are.
    texts = [_Text(_encode(model, p), random.Random(seed + (row << 64)), stop) for row, p in enumerate(prompts)]
    return _pieces(model, texts, max_new_tokens, sampling)


def generate(
    model: LanguageModel,
    prompts: Sequence[str],
    max_new_tokens: int,
    sampling: Sampling,
    stop: str | None = None,
    seed: int = 0,
) -> list[str]:
    """The prompts, each with all its pieces."""
    steps = list(stream(model, prompts, max_new_tokens, sampling, stop, seed))
    starts = [model.tokenizer.decode(model.tokenizer.encode(prompt)) for prompt in prompts]
    return [start + "".join(pieces[row] for pieces in steps) for row, start in enumerate(starts)]


def _encode(model: LanguageModel, prompt: str) -> list[int]:
    ids = model.tokenizer.encode(prompt)
    if not ids:
        why = "is empty" if not prompt else f"{prompt!r} has no character of the vocabulary"
        raise ValueError(f"generate: the prompt {why}; give at least one character of the vocabulary")
    return ids


def _pieces(model: LanguageModel, texts: list[_Text], max_new_tokens: int, sampling: Sampling) -> Iterator[list[str]]:
    reader, writing = _Reader(model), list(enumerate(texts))  # those that go on, with their rows
    for _ in range(max_new_tokens):
        pieces = [""] * len(texts)
        for (row, text), logits in zip(writing, reader.read([text.ids for _, text in writing]), strict=True):
            text.ids.append(sampling.draw(logits, text.draws))
            pieces[row] = text.add(model.tokenizer.vocabulary[text.ids[-1]])
        if any(pieces):
            yield pieces
        if going := [i for i, (_, text) in enumerate(writing) if not text.stopped]:
            reader.keep(going)
            writing = [writing[i] for i in going]
        else:
            return
    if any(rest := [text.rest() for text in texts]):
        yield rest


class _Reader:
    """Reads texts as they grow by a token at a time, and says what may come next."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.cache = KVCache(model)
        self._modules = list(model.modules())

    def read(self, rows: list[list[int]]) -> list[list[float]]:
        """The logits of each row's next character, on the host: all that comes back from a device in a step.

        Past max_seq_len every position is another token's than before, and with it every key and value. So a full cache
        is begun anew with the last max_seq_len tokens of each row; it is full again unless all rows are shorter.
        """
        tokenizer = self.model.tokenizer
        if self.cache.length == tokenizer.max_seq_len:
            self.cache = KVCache(self.model)
        new = [row[-1:] if self.cache.length else row[-tokenizer.max_seq_len :] for row in rows]
        lengths = [len(row) for row in new]
        padded = [row + [tokenizer.pad_token_id] * (max(lengths) - len(row)) for row in new]
        with no_grad(), _evaluating(self._modules):
            logits = self.model.forward(padded, self.cache)  # (B, T, vocab_size + 1)
            even = min(lengths) == max(lengths)
            last = logits[:, -1] if even else logits[list(range(len(rows))), [n - 1 for n in lengths]]
        return [row[: tokenizer.vocab_size] for row in last.numpy().tolist()]  # without padding's

    def keep(self, rows: list[int]) -> None:
        """Go on with these of the rows of the last `read`."""
        if len(rows) < self.cache.n_texts:
            self.cache.keep(rows)


@contextmanager
def _evaluating(modules: Sequence[Module]) -> Iterator[None]:
    """Evaluation mode in the block, and each module's own mode again after it: between pieces it is its user's."""
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
