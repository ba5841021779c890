"""Byte-pair encoding of UTF-8 bytes, as in GPT-2 (Radford et al. 2019, section 2.2; Sennrich et al., arXiv:1508.07909).

A text is split into words by GPT-2's pattern. A word starts as its bytes, and pairs of neighbours are merged in the
order in which training found them. `train` and `encode` give the results of the package `tokenizers` for ByteLevel BPE
without special tokens, except for characters that are newer than the Unicode version of Python.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from .byte_level import BYTE_OF, check_id, split_words, to_bytes, utf8
from .serialization import replace_file

LONGEST_CACHED = 256  # characters: longer words are rare, and 65,536 of them would need much memory


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
        counts: Counter[str] = Counter()
        for part in [text] if isinstance(text, str) else text:
            counts.update(split_words(part))
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
            tokens.append("".join(merges[-1]))
            added = set()
            for i in where.pop(pair):
                for changed, by in _merge(words[i], pair, len(tokens) - 1):
                    pairs[changed] += by * numbers[i]
                    if by > 0:
                        where[changed].add(i)
                        added.add(changed)
            for changed in added:
                heappush(heap, (-pairs[changed], changed))
        return cls({token: i for i, token in enumerate(tokens)}, merges)

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Raises ValueError if it has a surrogate, which has no UTF-8 bytes."""
        ids: list[int] = []
        for word in split_words(text):
            found = self._cache.get(word)
            if found is None:
                found = self._encode_word(word)
                if len(self._cache) >= 2**16:
                    self._cache.clear()
                if len(word) <= LONGEST_CACHED:
                    self._cache[word] = found
            ids += found
        return ids

    def _encode_word(self, word: str) -> list[int]:
        """Merge the pair that training found first, the leftmost of equal ones, until no pair is one of the merges.

        A heap of the pairs takes O(n log n): a word may be a long line without spaces.
        """
        ids = [self._id_of_byte[byte] for byte in utf8(word)]
        n = len(ids)
        left, right = list(range(-1, n - 1)), list(range(1, n + 1))  # the positions of neighbours
        heap = [(*self._ranks[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in self._ranks]
        heapify(heap)
        while heap:
            _, pair, new, i = heappop(heap)
            j = right[i]
            if j == n or (ids[i], ids[j]) != pair:  # one of them was merged with another
                continue
            ids[i], ids[j], right[i] = new, -1, right[j]
            if right[i] < n:
                left[right[i]] = i
            for a, b in ((left[i], i), (i, right[i])):
                if a >= 0 and b < n and (ids[a], ids[b]) in self._ranks:
                    heappush(heap, (*self._ranks[ids[a], ids[b]], a))
        return [i for i in ids if i >= 0]

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
        lines = ["#version: 0.2", *(f"{left} {right}" for left, right in self.merges)]
        replace_file(Path(folder, "vocab.json"), json.dumps(self.vocab, ensure_ascii=False).encode())
        replace_file(Path(folder, "merges.txt"), ("\n".join(lines) + "\n").encode())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read vocab.json and merges.txt from a folder. Raises OSError if a file cannot be read, ValueError as BPE."""
        try:
            lines = Path(folder, "merges.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
            merges: Any = [line.split(" ") for line in lines[lines[0].startswith("#version") :] if line]
            return cls(json.loads(Path(folder, "vocab.json").read_bytes()), merges)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder}: vocab.json and merges.txt are not GPT-2's files: {error}") from error


def _merge(word: list[int], pair: tuple[int, int], new: int) -> list[tuple[tuple[int, int], int]]:
    """Replace the pair in the word, from left to right. Return pairs of neighbours, and by how much each changes."""
    changes: list[tuple[tuple[int, int], int]] = []
    merged: list[int] = []  # a new list: deleting from a long word would move the rest of it each time
    i, n = 0, len(word)
    while i < n:
        if i + 1 == n or (word[i], word[i + 1]) != pair:
            merged.append(word[i])
            i += 1
            continue
        if merged:
            changes += [((merged[-1], pair[0]), -1), ((merged[-1], new), 1)]
        merged.append(new)
        i += 2
        if i < n:
            changes += [((pair[1], word[i]), -1), ((new, word[i]), 1)]
    word[:] = merged
    return changes
