"""russellgrad.data.batches: order, structure, resuming, errors."""

import json
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import russellgrad as rg
from russellgrad import Tensor, use_backend
from russellgrad.backend import Backend
from russellgrad.data import Batches, batches
from tests.helpers import once, rng
from tests.process import ROOT

Array = Any
Pair = namedtuple("Pair", ["x", "y"])
ROWS = np.arange(10)


def taken(found: Any) -> list[list[int]]:
    return [batch.tolist() for batch in found]


def flat(found: Any) -> list[int]:
    return [row for batch in taken(found) for row in batch]


def test_the_orders_are_the_same_on_every_backend_and_machine(backend: Backend) -> None:
    found = batches(ROWS, 4, seed=3)
    assert taken(found) == [[2, 6, 7, 3], [9, 0, 4, 8], [1, 5]]
    assert taken(found) == [[5, 9, 1, 2], [8, 3, 0, 6], [4, 7]]
    assert flat(batches(Tensor(ROWS), 10, seed=2**64 - 1)) == [4, 6, 3, 0, 7, 5, 1, 2, 8, 9]
    for epoch, order in enumerate(map(flat, [batches(np.arange(1000), 64, seed=5)] * 2)):
        draws = np.random.Generator(np.random.Philox(key=5, counter=[0, 0, epoch, 3])).random(1000)
        assert order == np.argsort(draws).tolist()


@pytest.mark.parametrize("batch_size", [1, 3, 5, 10, 11])
@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_has_every_row_once(backend: Backend, batch_size: int, drop_last: bool) -> None:
    if drop_last and batch_size > 10:
        return
    found = batches(ROWS, batch_size, drop_last=drop_last)
    orders = []
    for epoch in range(3):
        assert found.epoch == epoch
        epoch_batches = taken(found)
        sizes = [len(batch) for batch in epoch_batches]
        assert len(sizes) == len(found) and set(sizes[:-1]) <= {batch_size}
        rows = [row for batch in epoch_batches for row in batch]
        assert len(set(rows)) == len(rows) == (10 // batch_size * batch_size if drop_last else 10)
        orders.append(rows)
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_without_shuffling_the_order_is_that_of_the_arrays(backend: Backend) -> None:
    found = batches(ROWS, 4, shuffle=False)
    assert taken(found) == taken(found) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_seeds_give_different_orders(backend: Backend) -> None:
    assert flat(batches(ROWS, 10, seed=0)) != flat(batches(ROWS, 10, seed=1))
    rg.manual_seed(5)
    before = rg.random.default_generator().counter
    flat(batches(ROWS, 10, seed=0))
    assert rg.random.default_generator().counter == before


def test_a_batch_has_the_structure_of_the_arrays(backend: Backend) -> None:
    x, y = rng().normal(size=(10, 2, 3)).astype(np.float32), np.arange(10, dtype=np.int32)
    mask = y > 4
    (given,) = batches((x, y), 10, shuffle=False)
    assert type(given) is tuple
    np.testing.assert_array_equal(given[0].numpy(), x)
    assert [part.dtype.name for part in given] == ["float32", "int32"]
    assert not given[0].requires_grad and given[0].backend is backend
    (nested,) = batches({"x": [x, mask], "pair": Pair(y, x.astype(np.float16))}, 10)
    assert list(nested) == ["x", "pair"] and type(nested["x"]) is list and type(nested["pair"]) is Pair
    assert nested["x"][1].dtype == bool and nested["pair"].y.dtype == np.float16
    order = nested["pair"].x.numpy()
    np.testing.assert_array_equal(nested["x"][0].numpy(), x[order])
    np.testing.assert_array_equal(nested["x"][1].numpy(), mask[order])


def test_tensors_and_arrays_of_the_backend(backend: Backend) -> None:
    x = Tensor(rng().normal(size=(5, 2)))
    for given in (x, x.data, x.detach()):
        for batch in batches(given, 2, shuffle=False):
            assert batch.backend is backend and not batch.requires_grad
        np.testing.assert_array_equal(np.concatenate([b.numpy() for b in batches(given, 2, shuffle=False)]), x.numpy())
    with use_backend("numpy"):
        assert next(iter(batches(x, 2))).backend is backend


def test_a_batch_is_a_copy(backend: Backend) -> None:
    for given in (np.ones((4, 2)), Tensor(np.ones((4, 2)))):
        for shuffle in (True, False):
            batch = next(iter(batches(given, 4, shuffle=shuffle)))
            batch.data = batch.backend.multiply(batch.data, 2)
            batch.data *= 2
            assert Tensor(given).numpy().max() == 1 if not isinstance(given, Tensor) else given.numpy().max() == 1


def test_a_view_and_another_byte_order(backend: Backend) -> None:
    x = np.arange(12, dtype=">i4").reshape(2, 6).T[::-1]
    (batch,) = batches(x, 6, shuffle=False)
    np.testing.assert_array_equal(batch.numpy(), x)


@once
def test_of_a_memory_map_only_the_rows_are_read(tmp_path: Path) -> None:
    """A sparse file of 1 TiB cannot be read whole."""
    path = tmp_path / "rows.bin"
    rows = 1 << 14
    with path.open("wb") as file:
        try:
            file.truncate(rows << 26)
        except OSError:
            pytest.skip("the file system has no sparse files of this size")
    mapped = np.memmap(path, np.float64, "r", shape=(rows, 1 << 23))
    batch = next(iter(batches(mapped[:, :3], 4)))
    assert batch.shape == (4, 3) and batch.numpy().max() == 0
    del mapped


# --- Resuming


@pytest.mark.parametrize("stop", range(8))
@pytest.mark.parametrize("shuffle", [True, False])
def test_resuming_gives_the_batches_that_an_uninterrupted_run_gives(backend: Backend, shuffle: bool, stop: int) -> None:
    def run(found: Batches, epochs: int) -> list[list[int]]:
        return [batch.tolist() for _ in range(found.epoch, epochs) for batch in found]

    whole = run(batches(ROWS, 4, 7, shuffle=shuffle), 3)
    first = batches(ROWS, 4, 7, shuffle=shuffle)
    done: list[list[int]] = []
    state = json.dumps(first.state_dict())
    for _ in range(3):
        for batch in first:
            if len(done) < stop:
                done.append(batch.tolist())
                state = json.dumps(first.state_dict())
    second = batches(ROWS, 4, 1, shuffle=shuffle)
    second.load_state_dict(json.loads(state))
    assert done + run(second, 3) == whole
    assert second.epoch == 3


def test_a_loop_that_is_left_early_is_followed_by_the_next_epoch(backend: Backend) -> None:
    whole = [taken(found) for found in [batches(ROWS, 4)] * 3]
    found = batches(ROWS, 4)
    for batch in found:
        assert batch.tolist() == whole[0][0]
        break
    assert found.state_dict()["batch"] == 1
    assert taken(found) == whole[1]
    for i, batch in enumerate(found):  # all batches taken, then left
        assert batch.tolist() == whole[2][i]
        if i == 2:
            break
    assert found.epoch == 3


def test_two_iterators_are_two_epochs(backend: Backend) -> None:
    whole = [taken(found) for found in [batches(ROWS, 4)] * 3]
    found = batches(ROWS, 4)
    pairs = [(a.tolist(), b.tolist()) for a, b in zip(found, found, strict=True)]
    assert pairs == list(zip(whole[0], whole[1], strict=True))
    assert found.epoch == 2
    first, second = iter(found), iter(found)
    next(second)
    state = found.state_dict()
    assert (state["epoch"], state["batch"]) == (3, 1)
    assert next(first).tolist() == whole[2][0]
    assert found.state_dict() == state  # that of the iterator that began last


def test_loading_a_state_leaves_a_running_iterator_alone(backend: Backend) -> None:
    found = batches(ROWS, 4)
    state = found.state_dict()
    running = iter(found)
    first = next(running).tolist()
    found.load_state_dict(state)
    next(running)
    assert found.state_dict() == state
    assert next(iter(found)).tolist() == first


def test_states_that_do_not_fit(backend: Backend) -> None:
    found = batches(ROWS, 4)
    state = found.state_dict()
    assert state == {
        "seed": 0, "epoch": 0, "batch": 0, "rows": 10, "batch_size": 4, "shuffle": True, "drop_last": False,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"^load_state_dict: the state is of other batches: rows is 10, here 11$"):
        batches(np.arange(11), 4).load_state_dict(state)
    with pytest.raises(ValueError, match=r"batch_size is 4, here 5; shuffle is True, here False$"):
        batches(ROWS, 5, shuffle=False).load_state_dict(state)
    with pytest.raises(ValueError, match=r"^load_state_dict: the state of batches lacks epoch, rows$"):
        found.load_state_dict({name: state[name] for name in state if name not in ("epoch", "rows")})
    for name, bad, error in (("batch", 3, ValueError), ("batch", -1, ValueError), ("epoch", -1, ValueError),
                             ("epoch", 1.0, TypeError), ("batch", "1", TypeError), ("seed", -1, ValueError),
                             ("seed", None, TypeError)):  # fmt: skip
        with pytest.raises(error):
            found.load_state_dict({**state, "epoch": 5, name: bad})
    with pytest.raises(TypeError, match=r"^load_state_dict: needs a state_dict, got a list"):
        found.load_state_dict([1])  # type: ignore[arg-type]
    assert found.state_dict() == state


# --- Errors


def test_arrays_that_do_not_fit(backend: Backend) -> None:
    x = np.zeros((3, 2))
    with pytest.raises(ValueError, match=r"^batches: the arrays must .*, but arrays\[0\] has 3, arrays\[1\] has 4$"):
        batches((x, np.zeros(4)), 2)
    with pytest.raises(ValueError, match=r"arrays\['x'\] has 3, arrays\['y'\]\[0\] has 2"):
        batches({"x": x, "y": [Tensor(np.zeros(2))]}, 2)
    with pytest.raises(ValueError, match=r"^batches: the arrays must have the same number of rows, but there are none"):
        batches((), 2)
    with pytest.raises(ValueError, match=r"^batches: the arrays are empty"):
        batches(x[:0], 2)
    with pytest.raises(ValueError, match=r"^batches: arrays\[1\] has no axes"):
        batches((x, np.array(3.0)), 2)
    for bad, name in (([1, 2, 3], r"arrays\[0\]"), ("text", "arrays"), ({"x": None}, r"arrays\['x'\]")):
        with pytest.raises(TypeError, match=rf"^batches: {name} is a builtins\.\w+; give NumPy arrays, Tensors or "):
            batches(bad, 2)
    for wrong in (np.array(["a", "b"]), np.array([1j, 2]), np.ma.masked_array([1, 2], [True, False])):
        with pytest.raises(TypeError, match=r"^batches: "):
            batches(wrong, 2)


def test_bad_arguments(backend: Backend) -> None:
    for bad, error in ((0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError), (None, TypeError)):
        with pytest.raises(error, match=r"^batches: batch_size must be "):
            batches(ROWS, bad)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"^batches: drop_last=True leaves no batch: there are 10 rows, and batch_size"
    ):
        batches(ROWS, 11, drop_last=True)
    for flag in ("shuffle", "drop_last"):
        given: Any = {flag: 1}
        with pytest.raises(TypeError, match=rf"^batches: {flag} must be True or False, got 1"):
            batches(ROWS, 2, **given)
    with pytest.raises(ValueError, match=r"^Generator: the seed must be in"):
        batches(ROWS, 2, -1)


@once
def test_the_module_is_imported_at_first_use() -> None:
    program = (
        "import sys, russellgrad as rg; assert 'russellgrad.data' not in sys.modules; "
        "assert len(rg.data.batches(rg.zeros(3), 2)) == 2"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_epoch_is_read_only(backend: Backend) -> None:
    """An assignment within an epoch would be off by one: the next loop begins the epoch after it."""
    training = batches(np.arange(4), 2)
    with pytest.raises(AttributeError):
        training.epoch = 3  # type: ignore[misc]
