"""Random numbers: the same for the same seed on every backend.

A draw is a pure function of (seed, stream, number of the draw), made by a counter-based generator on the host, so the
state of a `Generator` is three integers.
"""

from .backend import Array, Backend, DType, Shape
from .replay import host_numbers

WEIGHTS, EMBEDDINGS, DROPOUT = range(3)  # streams: draws of one seed for different ends never coincide


class Generator:
    """A sequence of draws. `counter` is the number of the next one; set it to go back."""

    def __init__(self, seed: int, stream: int = WEIGHTS) -> None:
        if not 0 <= seed < 2**64:
            raise ValueError(f"Generator: the seed must be in [0, 2**64), got {seed}")
        self.seed = seed
        self.stream = stream
        self.counter = 0

    def normal(self, shape: Shape, dtype: DType, xp: Backend) -> Array:
        """Standard normal numbers of this shape, an array of backend `xp`."""
        return xp.normal(shape, self.seed, self._next(), dtype)

    def uniform(self, shape: Shape, dtype: DType, xp: Backend) -> Array:
        """Numbers uniform on [0, 1) of this shape, an array of backend `xp`."""
        return xp.uniform(shape, host_numbers(xp, self._key, "uint64"), dtype)

    def _key(self) -> tuple[int, int, int]:
        number = self._next()
        return self.seed, number % 2**64, number >> 64

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
