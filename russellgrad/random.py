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

    Each sample of a batch has draws of its own by its number in the batch, so a batch that is shared out among
    processes or taken in parts gets the draws of the whole one: see `rows_from`.
    """

    def __init__(self, seed: int, stream: int = WEIGHTS) -> None:
        if not 0 <= seed < 2**64:
            raise ValueError(f"Generator: the seed must be in [0, 2**64), got {seed}")
        self.seed = seed
        self.stream = stream
        self.counter = 0
        self._first_row = 0
        self._counter_of_batch = 0

    def rows_from(self, first: int, *, again: bool = False) -> None:
        """What is drawn next are rows `first`, `first` + 1, ... of what is drawn for the whole batch.

        Args:
            first: number of the first sample at hand in the batch.
            again: for more rows of the batch that the last call without `again` began: its draws begin anew.
        """
        on_host(lambda: self._set_rows(first, again))

    def _set_rows(self, first: int, again: bool) -> None:
        if again:
            self.counter = self._counter_of_batch
        self._first_row, self._counter_of_batch = first, self.counter

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
