"""cross_entropy_loss, the loss of a language model, against PyTorch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own abbreviation

from russellgrad import Tensor
from russellgrad.backend import Backend
from russellgrad.loss import cross_entropy_loss
from russellgrad.tokenizer import Tokenizer
from tests.helpers import assert_close, check_against_torch, rng

PAD = 6


def ids(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return rng(2).integers(0, PAD, shape)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("classes", [PAD, PAD + 1])
def test_padding_targets_and_class_are_excluded(backend: Backend, classes: int, dtype: str) -> None:
    targets = ids(4, 5)
    targets[1, 3:] = targets[3, 0] = PAD
    valid = targets != PAD
    check_against_torch(
        lambda z: cross_entropy_loss(z, targets, PAD),
        lambda z: F.cross_entropy(z[valid][:, :PAD], torch.tensor(targets[valid])),
        rng().normal(size=(4, 5, classes)),
        dtype=dtype,
    )


def test_logit_of_the_padding_class_does_not_change_the_loss(backend: Backend) -> None:
    logits = rng().normal(size=(3, PAD + 1))
    plain = cross_entropy_loss(Tensor(logits), ids(3), PAD)
    logits[:, PAD] = 1e6
    assert_close(cross_entropy_loss(Tensor(logits), ids(3), PAD), plain)


def test_large_loss_does_not_overflow(backend: Backend) -> None:
    logits = Tensor([[0.0, 1000.0]])
    loss = cross_entropy_loss(logits, [0], -1)
    assert loss.item() == 1000.0
    loss.backward()
    assert_close(logits.grad, np.array([[-1.0, 1.0]]))


def test_targets_may_be_lists_arrays_or_tensors(backend: Backend) -> None:
    logits = Tensor(rng().normal(size=(2, 3, PAD + 1)))
    rows = [[0, 1, PAD], [2, PAD, PAD]]
    expected = cross_entropy_loss(logits, rows, PAD)
    for targets in (np.array(rows), np.array(rows, dtype=np.int32), Tensor(np.array(rows))):
        assert_close(cross_entropy_loss(logits, targets, PAD), expected)


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        ([PAD, PAD], ValueError, "all 2 ids are padding or ignored"),
        ([0, PAD + 1], IndexError, r"id 7 is out of range; ids must be in \[0, 7\)"),
        ([0, -1], IndexError, "id -1 is out of range"),
        ([0, 1, 2], ValueError, r"logits \(2, 7\) need ids of shape \(2,\), got \(3,\)"),
        ([0.0, 1.0], TypeError, "ids must be integers"),
    ],
)
def test_bad_targets_raise(backend: Backend, targets: list[float], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"cross_entropy: .*{message}"):
        cross_entropy_loss(Tensor(np.zeros((2, PAD + 1))), targets, PAD)


@pytest.mark.parametrize(("letters", "rows"), [("abcdefg", ["abc"]), ("abc", ["abc", "cab"]), ("abc", ["ab"])])
def test_token_ids_that_do_not_match_the_logits_raise(backend: Backend, letters: str, rows: list[str]) -> None:
    """TokenIds are not range-checked again, so ids of another vocabulary would index outside the logits."""
    ids = Tokenizer.from_text(letters, 6, 4).ids(rows)
    with pytest.raises(ValueError, match=r"cross_entropy_loss: predicted \(1, 3, 4\) does not fit ids"):
        cross_entropy_loss(Tensor(np.zeros((1, 3, 4))), ids, 3)


def test_token_ids_give_the_same_loss_as_lists(backend: Backend) -> None:
    tokenizer, logits = Tokenizer.from_text("abc", 6, 4), rng().normal(size=(2, 3, 4))
    given = [[0, 1, 2], [2, 3, 3]]
    checked = cross_entropy_loss(Tensor(logits), tokenizer.ids(given), tokenizer.pad_token_id)
    assert_close(checked, cross_entropy_loss(Tensor(logits), given, tokenizer.pad_token_id), atol=0)
