"""Token ids for training: the split into training and validation text, batches, and micro-batches.

Ids are NumPy arrays on the host. A batch moves to the device when the model embeds it.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from russellgrad.encoding import CharacterEncoding
from russellgrad.tokenizer import Tokenizer

from .progress import option

Ids: TypeAlias = npt.NDArray[np.integer[Any]]

_BATCH_STREAM = 1 << 32  # of the random generator


class MicroBatch(NamedTuple):
    """Some rows of a batch. The batch's loss is the sum of loss_weight times the loss of each micro-batch."""

    inputs: Any  # (b, T): ids on the host, or the result of `Tokenizer.ids`
    targets: Any  # (b, T), as inputs
    first_row: int = 0  # the row of the batch that inputs[0] is
    loss_weight: float | None = None  # the fraction of the batch's targets that are in this micro-batch; None means 1


def split(ids: Sequence[int] | Ids, block: int, unit: str = "character") -> tuple[Ids, Ids]:
    """Split N ids by position: the first 90 % for training, the rest for validation. `unit` is for the message.

    Raises:
        ValueError: a part is shorter than `block` + 1, which is a block and its last target.
    """
    array, cut = ids if isinstance(ids, np.ndarray) else np.array(ids, np.int64), len(ids) * 9 // 10
    parts = array[:cut], array[cut:]
    for name, part in zip(("training", "validation"), parts, strict=True):
        if len(part) <= block:
            raise ValueError(
                f"the text is too short: its {name} part has {len(part)} {unit}s (of {len(ids)}), and a block of "
                f"{block} needs {block + 1}; use a longer text or a smaller {option('block')}"
            )
    return parts


def check_prompt(prompt: str, tokenizer: Tokenizer) -> None:
    """Raise ValueError if the tokenizer is strict and its vocabulary lacks a character of the prompt.

    Also if an encoding of other tokens has no ids for it.
    """
    if not isinstance(tokenizer.encoding, CharacterEncoding):
        try:
            tokenizer.encode(prompt)
        except ValueError as error:
            raise ValueError(f"{option('prompt')}: {error}") from error
        return
    known = set(tokenizer.vocabulary)
    for position, character in enumerate(prompt):
        if tokenizer.strict and character not in known:
            raise ValueError(
                f"{option('prompt')}: character {character!r} at position {position} is not in the vocabulary of the "
                "model; use characters of the text that it was trained on"
            )


def default_prompt(tokenizer: Tokenizer) -> str:
    """A newline, or the first character of a vocabulary without newlines."""
    characters = tokenizer.encoding
    if isinstance(characters, CharacterEncoding) and "\n" not in characters.vocabulary:
        return characters.vocabulary[0]
    return "\n"


def batches(ids: Ids, batch_size: int, block: int, seed: int, start: int = 0) -> Iterator[tuple[Ids, Ids]]:
    """Yield batches without end: inputs and targets, both (batch_size, block), with targets one token later.

    Blocks start at random positions. Batch i is a function of (seed, i) alone, so any batch can be computed again:
    `next(batches(ids, 12, 64, seed, start=i))`. The third word of Philox's counter is i. The fourth separates this
    stream from those of `russellgrad.random`, which are numbered from 0.

    Args:
        start: the number of the first batch.
    """
    step = start
    while True:
        generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, step, _BATCH_STREAM]))
        starts = generator.integers(0, len(ids) - block, size=batch_size)  # (B,); the last target is ids[-1]
        windows = ids[starts[:, None] + np.arange(block + 1)].astype(np.int64)  # (B, T + 1)
        yield windows[:, :-1], windows[:, 1:]
        step += 1


def split_batch(
    inputs: Ids, targets: Ids, n_micro_batches: int, ignore_index: int, rank: int = 0, world_size: int = 1
) -> Iterator[MicroBatch]:
    """Yield the micro-batches of process `rank`: n_micro_batches of B / (n_micro_batches world_size) rows each.

    Args:
        inputs, targets: the batch of all processes, (B, T).
        ignore_index: the target id that does not count in the loss, as padding.

    Raises:
        ValueError: B is not a multiple of n_micro_batches world_size, or all targets are ignored.
    """
    batch = len(inputs)
    if batch % (n_micro_batches * world_size):
        raise ValueError(
            f"a batch of {batch} rows cannot be split into {n_micro_batches} micro-batches for each of {world_size} "
            f"processes; use a multiple of {n_micro_batches * world_size}"
        )
    total = np.count_nonzero(targets != ignore_index)
    if not total:
        raise ValueError("all targets of the batch are padding; there is no loss")
    rows = batch // (n_micro_batches * world_size)
    start = rank * n_micro_batches * rows
    for first_row in range(start, start + n_micro_batches * rows, rows):
        part = slice(first_row, first_row + rows)
        weight = np.count_nonzero(targets[part] != ignore_index) / total
        yield MicroBatch(inputs[part], targets[part], first_row, None if weight == 1 else weight)


def validation_blocks(ids: Ids, block: int, at_most: int | None = None) -> tuple[Ids, Ids]:
    """Return non-overlapping blocks of `ids`: inputs and targets, both (n, block).

    Args:
        at_most: return this number of blocks, evenly spaced and always the same; by default all of them. A remainder
            that is shorter than a block is left out.
    """
    n = (len(ids) - 1) // block
    inputs, targets = ids[: n * block].reshape(n, block), ids[1 : n * block + 1].reshape(n, block)
    if at_most is None or at_most >= n:
        return inputs, targets
    chosen = np.arange(at_most) * n // at_most
    return inputs[chosen], targets[chosen]
