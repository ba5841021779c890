"""Random numbers: the same for the same seed on every backend.

A draw is a pure function of (seed, stream, number of the draw), made by a counter-based generator on the host, so the
state of a `Generator` is three integers.
"""

from math import prod

from .backend import Array, Backend, DType, Shape
from .replay import host_scalars, on_host

WEIGHTS, EMBEDDINGS, DROPOUT = range(3)  # streams: draws of one seed for different ends never coincide


class Generator:
    """A sequence of draws. `counter` is the number of the next one; set it to go back.

    Each row of a batch has its own draws, by its number in the batch. Micro-batches, and the rows of a batch on several
    processes, therefore get the draws of the whole batch: see `start_batch` and `continue_batch`.
    """

    def __init__(self, seed: int, stream: int = WEIGHTS) -> None:
        if not 0 <= seed < 2**64:
            raise ValueError(f"Generator: the seed must be in [0, 2**64), got {seed}")
        self.seed = seed
        self.stream = stream
        self.counter = 0
        self._first_row = 0
        self._counter_of_batch = 0

    def start_batch(self, first_row: int = 0) -> None:
        """Start a new batch: the rows drawn next are rows `first_row`, `first_row` + 1, ... of the batch."""
        on_host(lambda: self._start_batch(first_row))

    def continue_batch(self, first_row: int) -> None:
        """Continue the batch that `start_batch` started with its rows `first_row`, `first_row` + 1, ...

        `counter` goes back to its value at `start_batch`, so these rows get the numbers that they would have got in one
        draw for the whole batch.
        """
        on_host(lambda: self._continue_batch(first_row))

    def _start_batch(self, first_row: int) -> None:
        self._first_row, self._counter_of_batch = first_row, self.counter

    def _continue_batch(self, first_row: int) -> None:
        self._first_row, self.counter = first_row, self._counter_of_batch

    def normal(self, shape: Shape, dtype: DType, xp: Backend) -> Array:
        """Standard normal numbers of this shape, an array of backend `xp`."""
        return xp.normal(shape, self.seed, self._next(), dtype)

    def uniform(self, shape: Shape, dtype: DType, xp: Backend) -> Array:
        """Numbers uniform on [0, 1) of this shape, an array of backend `xp`; the first axis is that of rows."""
        row = prod(shape[1:])  # elements of one

        def key() -> tuple[int, int, int, int]:
            number = self._next()
            return self.seed, number % 2**64, number >> 64, self._first_row * row

        return xp.uniform(shape, host_scalars(xp, key, "uint64"), dtype)

    def _next(self) -> int:
        number = self.stream << 64 | self.counter
        self.counter += 1
        return number


_default = Generator(0)


def manual_seed(seed: int) -> None:
    """Start the draws that name no generator of their own anew: the initial weights of layers built from here on."""
    global _default
    _default = Generator(seed)


def default_generator() -> Generator:
    """The generator of layers that are given none. It starts with seed 0."""
    return _default
