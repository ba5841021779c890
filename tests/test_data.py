"""The training and validation split of a text, and batches."""

from itertools import islice

import numpy as np
import pytest

from train import data


def test_split_is_by_position() -> None:
    training, validation = data.split(range(100), 5)
    assert training.tolist() == list(range(90))
    assert validation.tolist() == list(range(90, 100))


@pytest.mark.parametrize(("length", "block", "part"), [(4, 8, "training"), (100, 10, "validation")])
def test_split_of_a_short_text_raises(length: int, block: int, part: str) -> None:
    with pytest.raises(ValueError, match=f"too short: its {part} part .* a block of {block} needs {block + 1}"):
        data.split(range(length), block)


def test_targets_are_the_inputs_shifted_by_one_token() -> None:
    ids = np.arange(1000) ** 2  # so every difference of neighbors is unique
    for inputs, targets in islice(data.batches(ids, 4, 7, seed=3), 20):
        assert inputs.shape == targets.shape == (4, 7)
        starts = np.sqrt(inputs[:, 0]).astype(int)
        np.testing.assert_array_equal(inputs, [ids[i : i + 7] for i in starts])
        np.testing.assert_array_equal(targets, [ids[i + 1 : i + 8] for i in starts])


def test_batches_cover_both_ends_of_the_text() -> None:
    starts = {int(i) for inputs, _ in islice(data.batches(np.arange(10), 8, 7, seed=0), 50) for i in inputs[:, 0]}
    assert starts == {0, 1, 2}


def test_batch_i_depends_only_on_seed_and_i() -> None:
    ids = np.arange(10_000)
    first = [inputs for inputs, _ in islice(data.batches(ids, 4, 8, seed=1), 6)]
    for i in (5, 0, 3):
        np.testing.assert_array_equal(next(data.batches(ids, 4, 8, seed=1, start=i))[0], first[i])
    assert len({inputs.tobytes() for inputs in first}) == 6
    assert not np.array_equal(next(data.batches(ids, 4, 8, seed=2))[0], first[0])


def test_validation_blocks_do_not_overlap() -> None:
    inputs, targets = data.validation_blocks(np.arange(33), 8)
    np.testing.assert_array_equal(inputs, np.arange(32).reshape(4, 8))
    np.testing.assert_array_equal(targets, inputs + 1)
    assert len(data.validation_blocks(np.arange(32), 8)[0]) == 3  # the fourth block would lack a target


def test_at_most_spreads_validation_blocks_evenly() -> None:
    ids = np.arange(81)
    assert data.validation_blocks(ids, 8, at_most=5)[0][:, 0].tolist() == [0, 16, 32, 48, 64]
    assert len(data.validation_blocks(ids, 8, at_most=50)[0]) == 10
