"""Byte-pair encoding of UTF-8 bytes, as in GPT-2 (Radford et al. 2019, section 2.2; Sennrich et al., arXiv:1508.07909).

A text is split into words by GPT-2's pattern. A word starts as its bytes, and pairs of neighbours are merged in the
order in which training found them. `train` and `encode` give the results of the package `tokenizers` for ByteLevel BPE
without special tokens, except for characters that are newer than the Unicode version of Python.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from .byte_level import BYTE_OF, check_id, read_files, split_words, to_bytes, utf8, write_files


class BPE:
    """A byte-pair encoding, for `Tokenizer(encoding=...)`: `BPE.train(text, 1024).encode("to be")` is a list of ids.

    Args:
        vocab: the id of each token, which is written as in GPT-2's vocab.json; ids are 0 to len(vocab) - 1. Tokens that
            no merge makes, such as <|endoftext|>, are decoded but do not occur in encoded texts.
        merges: pairs of tokens, in the order in which they are merged.

    Raises:
        ValueError: the vocabulary lacks a byte, a merge's token or an id.
    """

    def __init__(self, vocab: Mapping[str, int], merges: Iterable[tuple[str, str]]) -> None:
        self.vocab, self.merges = dict(vocab), [(left, right) for left, right in merges]
        if sorted(self.vocab.values()) != list(range(len(self.vocab))):
            raise ValueError(f"BPE: the ids of {len(self.vocab)} tokens must be 0 to {len(self.vocab) - 1}, each once")
        needed = [*BYTE_OF, *(token for pair in self.merges for token in (*pair, "".join(pair)))]
        if missing := next((token for token in needed if token not in self.vocab), None):
            raise ValueError(f"BPE: the vocabulary lacks {missing!r}; it needs all 256 bytes and the merged tokens")
        self.vocab_size = len(self.vocab)
        self._bytes = [to_bytes(token) for token in sorted(self.vocab, key=self.vocab.__getitem__)]
        self._id_of_byte = [self.vocab[character] for character in sorted(BYTE_OF, key=BYTE_OF.__getitem__)]
        ids = [(self.vocab[left], self.vocab[right], self.vocab[left + right]) for left, right in self.merges]
        self._ranks = {(left, right): (rank, (left, right), new) for rank, (left, right, new) in enumerate(ids)}
        self._cache: dict[str, list[int]] = {}

    @classmethod
    def train(cls, text: str | Iterable[str], vocab_size: int) -> Self:
        """Merge the most frequent pair of neighbours until there are vocab_size tokens, or no pairs.

        Of pairs that are equally frequent, the one with the smallest ids is merged. `text` may be an iterable of parts,
        which are split into words on their own. Raises ValueError for vocab_size < 256.
        """
        if vocab_size < 256:
            raise ValueError(f"BPE: vocab_size must be at least 256, one token for each byte, got {vocab_size}")
        parts = [text] if isinstance(text, str) else text
        counts = Counter(word for part in parts for word in split_words(part))
        tokens, numbers = list(BYTE_OF), list(counts.values())
        id_of_byte = {byte: i for i, byte in enumerate(BYTE_OF.values())}
        words = [[id_of_byte[byte] for byte in utf8(word)] for word in counts]
        pairs: Counter[tuple[int, int]] = Counter()
        where: defaultdict[tuple[int, int], set[int]] = defaultdict(set)  # the words that a pair is or was in
        for i, word in enumerate(words):
            for pair in pairwise(word):
                pairs[pair] += numbers[i]
                where[pair].add(i)
        heap = [(-n, pair) for pair, n in pairs.items()]  # the first is the most frequent pair
        heapify(heap)
        merges: list[tuple[str, str]] = []
        while heap and heap[0][0] and len(tokens) < vocab_size:  # until no pair is left
            n, pair = heappop(heap)
            if -n != pairs[pair]:  # it is less frequent now
                heappush(heap, (-pairs[pair], pair))
                continue
            merges.append((tokens[pair[0]], tokens[pair[1]]))
            new, added = len(tokens), set()
            tokens.append("".join(merges[-1]))
            for i in where.pop(pair):
                for before in pairwise(words[i]):
                    pairs[before] -= numbers[i]
                words[i] = _merge(words[i], pair, new)
                for after in pairwise(words[i]):
                    pairs[after] += numbers[i]
                    if new in after:
                        where[after].add(i)
                        added.add(after)
            for pair in added:
                heappush(heap, (-pairs[pair], pair))
        return cls({token: i for i, token in enumerate(tokens)}, merges)

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Raises ValueError if it has a surrogate, which has no UTF-8 bytes."""
        return [i for word in split_words(text) for i in self._cache.get(word) or self._encode_word(word)]

    def _encode_word(self, word: str) -> list[int]:
        """Merge the pair that training found first, the leftmost of equal ones, while there is one: O(n log n)."""
        ids = [self._id_of_byte[byte] for byte in utf8(word)]
        n = len(ids)
        left, right = list(range(-1, n)), list(range(1, n + 1))  # the positions of neighbours
        heap = [(*self._ranks[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in self._ranks]
        heapify(heap)
        while heap:
            _, pair, new, i = heappop(heap)
            j = right[i]
            if j == n or (ids[i], ids[j]) != pair:  # one of them was merged with another
                continue
            ids[i], ids[j], right[i] = new, -1, right[j]
            left[right[i]] = i
            for a, b in ((left[i], i), (i, right[i])):
                if a >= 0 and b < n and (ids[a], ids[b]) in self._ranks:
                    heappush(heap, (*self._ranks[ids[a], ids[b]], a))
        ids = [i for i in ids if i >= 0]
        if n <= 256 and len(self._cache) < 2**16:  # limits the memory; long words are rare
            self._cache[word] = ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. Bytes that are not UTF-8 become U+FFFD. Raises IndexError for an id out of range."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, i: int) -> bytes:
        """The bytes of token `i`, which may be part of a character. Raises IndexError for an id out of range."""
        return self._bytes[check_id(i, self.vocab_size)]

    def config(self) -> dict[str, Any]:
        """The arguments as JSON values, and the kind "bpe"."""
        return {"kind": "bpe", "vocab": self.vocab, "merges": [list(pair) for pair in self.merges]}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write vocab.json and merges.txt, GPT-2's files, to a folder. Raises OSError if they cannot be written."""
        write_files(Path(folder), self.vocab, self.merges)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read vocab.json and merges.txt from a folder. Raises OSError if a file cannot be read, ValueError as BPE."""
        try:
            return cls(*read_files(Path(folder)))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder}: vocab.json and merges.txt are not GPT-2's files: {error}") from error


def _merge(word: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """The word with the pair replaced by `new`, from left to right."""
    merged: list[int] = []
    for token in word:
        if token == pair[1] and merged and merged[-1] == pair[0]:
            merged[-1] = new
        else:
            merged.append(token)
    return merged
