"""Random number generators that give the same numbers for the same seed on every backend.

The numbers come from a counter-based generator on the host. A draw (one array of random numbers) is a pure function of
the seed, the stream and the number of the draw, so the state of a `Generator` is three integers.
"""

from collections.abc import Callable
from math import frexp, prod

from .backend import Array, Backend, DType, Shape
from .dtype import largest
from .replay import host_scalars, restore_on_failure, run_in_every_step

WEIGHTS, EMBEDDINGS, DROPOUT, BATCHES = range(4)  # streams: independent sequences of one seed, one for each purpose


class Generator:
    """A pseudorandom number generator, as `torch.Generator`.

    `counter` is the number of the next draw. Set it to an earlier value to repeat draws.

    The numbers for a row of a batch depend on the row's index in the batch. A batch that is split into micro-batches,
    or over several processes, therefore gets the same numbers as the whole batch: see `start_batch` and
    `continue_batch`.

    Args:
        seed: in [0, 2**64).
        stream: selects one of the independent sequences of a seed (`WEIGHTS`, `EMBEDDINGS`, `DROPOUT`, `BATCHES`).

    Raises:
        ValueError: the seed is out of range. TypeError: it is not an int.
    """

    def __init__(self, seed: int, stream: int = WEIGHTS) -> None:
        if not hasattr(seed, "__index__") or isinstance(seed, bool):
            raise TypeError(f"Generator: the seed must be an int, got {seed!r}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"Generator: the seed must be in [0, 2**64), got {seed}")
        self.seed = int(seed)
        self.stream = stream
        self.counter = 0
        self._first_row = 0
        self._counter_of_batch = 0

    def start_batch(self, first_row: int = 0) -> None:
        """Start a new batch. The next draws are for its rows `first_row`, `first_row` + 1, ..."""
        restore_on_failure(self, self._snapshot)
        run_in_every_step(lambda: self._start_batch(first_row))

    def continue_batch(self, first_row: int) -> None:
        """Continue the batch of the last `start_batch` with its rows `first_row`, `first_row` + 1, ...

        Resets `counter` to its value at `start_batch`, so these rows get the same numbers as in one draw for the whole
        batch.
        """
        restore_on_failure(self, self._snapshot)
        run_in_every_step(lambda: self._continue_batch(first_row))

    def _snapshot(self) -> Callable[[], None]:
        before = self.counter, self._first_row, self._counter_of_batch

        def restore() -> None:
            self.counter, self._first_row, self._counter_of_batch = before

        return restore

    def _start_batch(self, first_row: int) -> None:
        self._first_row, self._counter_of_batch = first_row, self.counter

    def _continue_batch(self, first_row: int) -> None:
        self._first_row, self.counter = first_row, self._counter_of_batch

    def normal(self, shape: Shape, dtype: DType, xp: Backend) -> Array:
        """Draw an array of this shape and dtype from the standard normal distribution, on backend `xp`.

        Raises TypeError for a shape that is not of ints, or an unknown dtype.
        """
        return xp.normal(shape, self.seed, self._next(), dtype)

    def uniform(self, shape: Shape, dtype: DType, xp: Backend) -> Array:
        """Draw an array of this shape and dtype, uniform on [0, 1), on backend `xp`. The first axis is the batch's.

        Raises TypeError for a shape that is not of ints, or an unknown dtype.
        """
        values = xp.uniform(shape, self._key(shape, xp), dtype)
        return xp.minimum(values, frexp(largest(xp.dtype(values)))[0])  # below 1: rounding to the dtype may give 1

    def dropout_mask(self, shape: Shape, p: float, dtype: DType, xp: Backend) -> Array:
        """Draw a mask for dropout: 0 with probability p, else 1 / (1 - p). The first axis is the batch's.

        Raises TypeError for a shape that is not of ints, or an unknown dtype.
        """
        return xp.dropout_mask(shape, self._key(shape, xp), p, dtype)

    def _key(self, shape: Shape, xp: Backend) -> Array:
        """What selects the next draw: see `Derived.uniform` in russellgrad/backend.py."""
        row_size = prod(shape[1:])
        restore_on_failure(self, self._snapshot)

        def key() -> tuple[int, int, int, int]:
            number = self._next()
            return self.seed, number % 2**64, number >> 64, self._first_row * row_size

        return host_scalars(xp.root, key, "uint64")  # a replay updates it, and it has no gradient

    def _next(self) -> int:
        number = self.stream << 64 | self.counter
        self.counter += 1
        return number


_default = Generator(0)


def manual_seed(seed: int) -> None:
    """Set the seed of the default generator, which draws the weights of layers built without a seed or generator.

    Raises ValueError for a seed outside [0, 2**64), TypeError for anything but an int.
    """
    global _default
    _default = Generator(seed)


def default_generator() -> Generator:
    """The generator that layers use by default. Its initial seed is 0."""
    return _default
