"""Random number generators that give the same numbers for the same seed on every backend.

The numbers come from a counter-based generator on the host. A draw (one array of random numbers) is a pure function of
the seed, the stream and the number of the draw, so the state of a `Generator` is three integers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from math import frexp, prod

from .backend import Array, Backend, DType, Shape
from .dtype import largest
from .replay import host_scalars, restore_on_failure, run_in_every_step

WEIGHTS, EMBEDDINGS, DROPOUT, BATCHES = range(4)  # streams: independent sequences of one seed, one for each purpose


@dataclass
class _State:
    counter: int = 0
    first_row: int = 0
    counter_of_batch: int = 0


class CopiedStates(dict["Generator", _State]):
    """The states of the generators that changed in a `copied_states`, and what was drawn there.

    Args:
        outer: that of the block around it.
    """

    def __init__(self, outer: "CopiedStates | None") -> None:
        super().__init__()
        self.outer = outer
        self.drawn: set[tuple[Generator, int, int]] = set()  # numbers of draws, with their first rows

    def add_draw(self, draw: "tuple[Generator, int, int]") -> None:
        """Note a draw. Raises RuntimeError if it was noted before."""
        if draw in self.drawn:
            raise RuntimeError(_SAME_NUMBERS)
        self.drawn.add(draw)


_SAME_NUMBERS = (
    "parallel_backward: two parts drew the same random numbers; call model.dropout.continue_batch(first_row), or "
    "Generator.continue_batch, in loss_of, before each forward pass"
)
_copies: ContextVar[CopiedStates | None] = ContextVar("russellgrad_generators", default=None)


@contextmanager
def copied_states() -> Iterator[CopiedStates]:
    """Inside the block, generators keep changes of their state in a copy. Each thread has copies of its own.

    Raises RuntimeError if a draw with the same first row repeats.
    """
    copies = CopiedStates(_copies.get())
    token = _copies.set(copies)
    try:
        yield copies
    finally:
        _copies.reset(token)


def keep_last_states(parts: Sequence[CopiedStates]) -> None:
    """Copy to each generator its final state from the last of several `copied_states` that changed it.

    Raises RuntimeError if two of these blocks drew the same numbers. No state changes then.
    """
    drawn = CopiedStates(None)
    for copies in parts:
        for draw in copies.drawn:
            drawn.add_draw(draw)
    if (outer := _copies.get()) is not None:
        for draw in drawn.drawn:
            outer.add_draw(draw)
    for copies in parts:
        for generator, state in copies.items():
            vars(generator._state).update(vars(state))


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
        self._own_state = _State()

    @property
    def counter(self) -> int:
        """The number of the next draw."""
        return self._state_in(_copies.get()).counter

    @counter.setter
    def counter(self, number: int) -> None:
        self._state.counter = number

    @property
    def _state(self) -> _State:
        """The state to change: a copy inside `copied_states`."""
        copies = _copies.get()
        if copies is None:
            return self._own_state
        if self not in copies:
            copies[self] = replace(self._state_in(copies.outer))
        return copies[self]

    def _state_in(self, copies: CopiedStates | None) -> _State:
        while copies is not None:
            if self in copies:
                return copies[self]
            copies = copies.outer
        return self._own_state

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
        before = replace(self._state_in(_copies.get()))

        def restore() -> None:
            vars(self._state).update(vars(before))

        return restore

    def _start_batch(self, first_row: int) -> None:
        self._state.first_row, self._state.counter_of_batch = first_row, self._state.counter

    def _continue_batch(self, first_row: int) -> None:
        self._state.first_row, self._state.counter = first_row, self._state.counter_of_batch

    def normal(self, shape: Shape, dtype: DType, xp: Backend) -> Array:
        """Draw an array of this shape and dtype from the standard normal distribution, on backend `xp`.

        Raises TypeError for a shape that is not of ints, or an unknown dtype, and RuntimeError in a part
        of `parallel_backward` that runs in one of several threads: all parts would get the same numbers.
        """
        if _copies.get() is not None:
            raise RuntimeError(
                "normal: parallel_backward cannot draw normal numbers in several threads, because all parts would get "
                "the same ones; draw them before the call"
            )
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
            return self.seed, number % 2**64, number >> 64, self._state.first_row * row_size

        return host_scalars(xp.root, key, "uint64")  # a replay updates it, and it has no gradient

    def _next(self) -> int:
        state = self._state
        if (copies := _copies.get()) is not None:
            copies.add_draw((self, state.counter, state.first_row))
        number = self.stream << 64 | state.counter
        state.counter += 1
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
