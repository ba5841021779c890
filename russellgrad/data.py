"""Batches of arrays for training: shuffled, the same on every backend, and resumable."""

from collections.abc import Iterator, Mapping
from typing import Any

from .backend import Array, Shape, get_backend, load_backend
from .dtype import real_array
from .pytree import Pytree, tree_leaves, tree_unflatten
from .random import BATCHES, Generator
from .rules import check_bool, check_int
from .tensor import Tensor


def batches(
    arrays: Pytree, batch_size: int, seed: int = 0, *, shuffle: bool = True, drop_last: bool = False
) -> "Batches":
    """Batches of the rows of arrays. Each loop over the result is one epoch, with a new order.

        training = rg.data.batches((images, labels), 32, seed=0)
        for epoch in range(10):
            for x, y in training:
                ...

    Args:
        arrays: an array (n, ...), or a tuple, list or dict of arrays with the same n, which may be nested. An
            array is a NumPy array, also a memory-mapped one, a Tensor, or an array of the current backend.
        batch_size: the number of rows in a batch. The last batch of an epoch has fewer if batch_size does not divide n.
        seed: in [0, 2**64). The order of an epoch is a function of the seed and the number of the epoch: the same on
            every backend and machine.
        shuffle: whether to draw a new order for each epoch. Otherwise the rows stay in order.
        drop_last: whether to leave out a last batch with fewer rows.

    Returns:
        A `Batches`. A batch has the structure of `arrays`, with Tensors that track no gradients and keep the dtypes.
        They are copies of the rows: those of a NumPy array on the current backend, those of a Tensor on its own.

    Raises:
        ValueError: there are no arrays, their lengths differ, they are empty, batch_size is less than 1, drop_last
            leaves no batch, or the seed is out of range.
        TypeError: an array is something else, such as a list of numbers, or an argument has a wrong type.
    """
    return Batches(arrays, batch_size, seed, shuffle=shuffle, drop_last=drop_last)


class Batches:
    """What `batches` returns: an iterable over the batches of one epoch. `len()` is their number.

    A new loop begins the next epoch, even if the last loop was stopped early. Several iterators at once are
    independent: each is an epoch of its own. `epoch` and `state_dict` describe the one that began last.

    """

    def __init__(self, arrays: Pytree, batch_size: int, seed: int, *, shuffle: bool, drop_last: bool) -> None:
        check_int("batches: batch_size", batch_size)
        check_bool("batches: shuffle", shuffle)
        check_bool("batches: drop_last", drop_last)
        if batch_size < 1:
            raise ValueError(f"batches: batch_size must be at least 1, got {batch_size}")
        leaves = dict(_named_leaves("arrays", arrays))
        lengths = {name: _shape(name, leaf)[0] for name, leaf in leaves.items()}
        if len(set(lengths.values())) != 1:
            given = ", ".join(f"{name} has {n}" for name, n in lengths.items()) or "there are none"
            raise ValueError(f"batches: the arrays must have the same number of rows, but {given}")
        self._rows = next(iter(lengths.values()))
        if self._rows == 0:
            raise ValueError("batches: the arrays are empty; they need at least one row")
        self._arrays = tree_unflatten(arrays, iter([_source(leaf) for leaf in leaves.values()]))
        self._batch_size, self._shuffle, self._drop_last = int(batch_size), shuffle, drop_last
        if not len(self):
            raise ValueError(
                f"batches: drop_last=True leaves no batch: there are {self._rows} rows, and batch_size is {batch_size}"
            )
        self._seed = Generator(seed).seed
        self._epoch = 0
        self._batch = 0  # the next one of that epoch
        self._begun = False  # whether an iterator is in that epoch
        self._latest: object = None  # marks the iterator that began last

    @property
    def epoch(self) -> int:
        """The number of the epoch of the next batch, from 0. `load_state_dict` sets it."""
        return self._epoch

    def __len__(self) -> int:
        """The number of batches of an epoch."""
        return self._rows // self._batch_size if self._drop_last else -(-self._rows // self._batch_size)

    def __iter__(self) -> Iterator[Any]:
        """Begin the next epoch; after `load_state_dict`, continue with the batch after the saved one."""
        if self._begun:
            self._epoch, self._batch = self._epoch + 1, 0
        self._begun, self._latest = True, object()
        return self._iterate(self._epoch, self._batch, self._latest)

    def _iterate(self, epoch: int, first: int, mark: object) -> Iterator[Any]:
        """The batches of an epoch from number `first` on."""
        order, size = self._order(epoch), self._batch_size
        sources = tree_leaves(self._arrays)
        for i in range(first, len(self)):
            indices = order[i * size : (i + 1) * size]
            if self._latest is mark:
                is_last = i + 1 == len(self)
                self._epoch, self._batch = (epoch + 1, 0) if is_last else (epoch, i + 1)
                self._begun = not is_last
            yield tree_unflatten(self._arrays, iter([_select(source, indices) for source in sources]))

    def _order(self, epoch: int) -> Array:
        """The order of the rows in an epoch: int64 (n,), on the host."""
        host = load_backend("numpy")
        if not self._shuffle:
            return host.arange(self._rows)
        generator = Generator(self._seed, BATCHES)
        generator.counter = epoch
        return host.argsort(generator.uniform((self._rows,), "float64", host), 0)

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was taken, and the settings: ints and bools, for JSON.

        Save it with a checkpoint, also inside a loop; after `load_state_dict`, the next loop continues there.
        """
        position = {"seed": self._seed, "epoch": self.epoch, "batch": self._batch}
        return {**position, **self._settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at the position of a `state_dict`. The next loop is over the rest of its epoch. Sets the seed, too.

        Raises:
            ValueError: the state has another number of rows or other settings, or lacks an entry; names them.
            TypeError: it is not a mapping, or a number is not an int. Nothing changes then.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"load_state_dict: needs a state_dict, got a {type(state).__name__}")
        own = self.state_dict()
        if missing := [name for name in own if name not in state]:
            raise ValueError(f"load_state_dict: the state of batches lacks {', '.join(missing)}")
        problems = [
            f"{name} is {state[name]!r}, here {value!r}"
            for name, value in self._settings().items()
            if state[name] != value
        ]
        if problems:
            raise ValueError(f"load_state_dict: the state is of other batches: {'; '.join(problems)}")
        for name in ("epoch", "batch"):
            check_int(f"load_state_dict: {name}", state[name])
        if state["epoch"] < 0 or not 0 <= state["batch"] < len(self):
            raise ValueError(
                f"load_state_dict: there is no batch {state['batch']} in epoch {state['epoch']}; an epoch has "
                f"{len(self)} batches"
            )
        self._seed = Generator(state["seed"]).seed
        self._epoch, self._batch = int(state["epoch"]), int(state["batch"])
        self._begun, self._latest = False, None

    def _settings(self) -> dict[str, Any]:
        return {
            "rows": self._rows,
            "batch_size": self._batch_size,
            "shuffle": self._shuffle,
            "drop_last": self._drop_last,
        }


def _named_leaves(name: str, tree: Pytree) -> Iterator[tuple[str, Any]]:
    """The leaves, with names such as "arrays[0]['x']"."""
    if isinstance(tree, (Mapping, tuple, list)):
        for key, part in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _named_leaves(f"{name}[{key!r}]", part)
    else:
        yield name, tree


def _shape(name: str, leaf: Any) -> Shape:
    """The shape of an array. Raises TypeError for anything else, ValueError for one without axes."""
    is_array = isinstance(leaf, Tensor) or get_backend().is_array(leaf) or load_backend("numpy").is_array(leaf)
    if not is_array:
        kind = type(leaf)
        raise TypeError(
            f"batches: {name} is a {kind.__module__}.{kind.__name__}; give NumPy arrays, Tensors or arrays of the "
            "backend: numpy.array(values) for a list of numbers"
        )
    if not leaf.ndim:
        raise ValueError(f"batches: {name} has no axes; the first axis of an array numbers its rows")
    return tuple(leaf.shape)


def _source(leaf: Any) -> Any:
    """What batches are taken from: a NumPy array, or a Tensor that tracks no gradients. Copies no data.

    Raises TypeError for an array of other things than real numbers and bools.
    """
    if isinstance(leaf, Tensor):
        return leaf.detach()
    if load_backend("numpy").is_array(leaf):
        real_array(get_backend(), leaf[:0], "batches")
        return leaf
    return Tensor._wrap(leaf, get_backend())


def _select(source: Any, indices: Array) -> Tensor:
    """A copy of these rows, as a Tensor. Of a memory map, only they are read."""
    if isinstance(source, Tensor):
        return source[indices]
    xp = get_backend()
    return Tensor._wrap(real_array(xp, source[indices], "batches"), xp)
