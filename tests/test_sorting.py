"""sort, argsort, topk and take_along_axis against PyTorch and NumPy: ties, nan, every dtype, views, errors."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from russellgrad import Tensor
from russellgrad.backend import Backend
from tests.helpers import assert_close, check_against_torch, rng

x = rng(0).normal(size=(3, 4, 5))
TIES = np.array([[2.0, 1.0, 2.0, 1.0, 2.0], [0.0, -0.0, 0.0, -1.0, 0.0], [3.0, 3.0, 3.0, 3.0, 3.0]])
SPECIAL = np.array([math.nan, 1.0, math.inf, -math.inf, math.nan, 0.0, -1.0])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_sort_and_topk_match_pytorch(backend: Backend, axis: int, dtype: str) -> None:
    check_against_torch(lambda t: t.sort(axis), lambda t: t.sort(axis).values, x, dtype=dtype)
    check_against_torch(lambda t: t.T[::-1].sort(axis), lambda t: t.permute(2, 1, 0).flip(0).sort(axis).values, x)
    for k in (0, 1, 2, x.shape[axis]):
        check_against_torch(lambda t, k=k: t.topk(k, axis)[0], lambda t, k=k: t.topk(k, axis).values, x, dtype=dtype)
        assert_close(Tensor(x).topk(k, axis)[1], torch.tensor(x).topk(k, axis).indices)
    assert_close(Tensor(x).argsort(axis), torch.tensor(x).argsort(axis))
    assert not Tensor(x).argsort(axis).requires_grad


def test_equal_elements_keep_their_order(backend: Backend) -> None:
    check_against_torch(lambda t: t.sort(1), lambda t: t.sort(stable=True, dim=1).values, TIES)
    assert_close(Tensor(TIES).argsort(1), torch.tensor(TIES).argsort(stable=True, dim=1))
    values, indices = Tensor(TIES).topk(3)
    assert indices.tolist() == [[0, 2, 4], [0, 1, 2], [0, 1, 2]]  # PyTorch's are in no order
    assert_close(values, np.take_along_axis(TIES, indices.numpy(), 1))
    many = rng(1).integers(0, 5, size=1000)
    assert_close(Tensor(many).argsort(), np.argsort(many, kind="stable"))


def test_nan_is_the_largest(backend: Backend) -> None:
    assert_close(Tensor(SPECIAL).sort(), np.sort(SPECIAL))
    assert_close(Tensor(SPECIAL).argsort(), np.argsort(SPECIAL, kind="stable"))
    values, indices = Tensor(SPECIAL).topk(4)
    assert_close(values, torch.tensor(SPECIAL).topk(4).values)
    assert indices.tolist() == [0, 4, 2, 1]


@pytest.mark.parametrize("dtype", ["int64", "int8", "uint8", "bool", "float16"])
def test_sorting_other_dtypes(backend: Backend, dtype: str) -> None:
    values = rng(2).integers(0, 200, size=(3, 7)).astype(dtype)
    assert_close(Tensor(values, requires_grad=False).sort(0), np.sort(values, 0))
    assert_close(Tensor(values).argsort(1), np.argsort(values, 1, kind="stable"))
    assert_close(Tensor(values).topk(3, 1)[0].detach(), np.sort(values, 1)[:, :-4:-1].copy())


def test_sorting_flattened_empty_and_single_elements(backend: Backend) -> None:
    check_against_torch(lambda t: t.sort(None), lambda t: t.ravel().sort().values, x)
    assert_close(Tensor(x).argsort(None), np.argsort(x, None, kind="stable"))
    assert Tensor(2.0).sort(None).tolist() == [2.0]
    for shape, axis in (((0, 3), 0), ((0, 3), 1), ((3, 0), 1), ((2, 1), 1)):
        check_against_torch(lambda t, axis=axis: t.sort(axis), lambda t, axis=axis: t.sort(axis).values, np.ones(shape))
        assert Tensor(np.ones(shape)).argsort(axis).shape == shape
    assert [part.shape for part in Tensor(np.ones((0, 3))).topk(2)] == [(0, 2), (0, 2)]
    with pytest.raises(IndexError, match=r"^sort: axis -1 is out of range for a tensor of 0 axes"):
        Tensor(2.0).sort()


def test_invalid_topk_raises(backend: Backend) -> None:
    t = Tensor(x)
    for k in (6, -1):
        with pytest.raises(ValueError, match=rf"^topk: k={k} is not between 0 and 5, the length of axis 2 of shape"):
            t.topk(k)
    for wrong in (1.0, True, None):
        with pytest.raises(TypeError, match=r"^topk: k must be an int"):
            t.topk(wrong)  # type: ignore[arg-type]
    with pytest.raises(IndexError, match=r"^topk: axis 3 is out of range"):
        t.topk(1, 3)
    with pytest.raises(TypeError, match=r"^topk: has no argument largest=; write \(-x\)\.topk\(k\)"):
        t.topk(1, largest=False)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^sort: has no argument descending=; write"):
        t.sort(descending=True)  # type: ignore[call-arg]


# --- take_along_axis


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_take_along_axis_matches_pytorch(backend: Backend, axis: int) -> None:
    shape = list(x.shape)
    shape[axis] = 6  # more than there are: repeats
    places = rng(3).integers(0, x.shape[axis], size=shape)
    given: tuple[Any, ...] = (places, places.tolist(), Tensor(places), backend.asarray(places), places.astype("uint8"))
    for indices in given:
        check_against_torch(
            lambda t, indices=indices: t.take_along_axis(indices, axis),
            lambda t: t.gather(axis, torch.tensor(places)),
            x,
        )
    check_against_torch(
        lambda t: t.take_along_axis(places - x.shape[axis], axis), lambda t: t.gather(axis, torch.tensor(places)), x
    )


def test_take_along_axis_broadcasts_and_takes_views(backend: Backend) -> None:
    places = np.array([[[2], [0], [0], [1]]])
    wide = torch.tensor(np.broadcast_to(places, (3, 4, 1)).copy())
    check_against_torch(lambda t: t.take_along_axis(places), lambda t: t.gather(2, wide), x)
    check_against_torch(lambda t: t.T.take_along_axis([[[0]] * 4] * 5, 2), lambda t: t.permute(2, 1, 0)[:, :, :1], x)
    check_against_torch(lambda t: t.take_along_axis([3, 3, -1], None), lambda t: t.ravel()[[3, 3, -1]], x)
    assert Tensor(x).take_along_axis(np.zeros((3, 4, 0), int)).shape == (3, 4, 0)
    assert Tensor([1.0]).take_along_axis([]).shape == (0,)
    assert Tensor([[1.0]]).take_along_axis([[]]).shape == (1, 0)
    assert_close(Tensor(np.array([[5, 6]])).take_along_axis([[1]]), np.array([[6]]))


def test_invalid_take_along_axis_raises(backend: Backend) -> None:
    t = Tensor(x)
    for shape in ((3, 4), (3, 3, 5), (2, 4, 1)):
        with pytest.raises(ValueError, match=r"^take_along_axis: indices of shape .* do not fit shape \(3, 4, 5\)"):
            t.take_along_axis(np.zeros(shape, int), 2)
    for bad in (5, -6):
        with pytest.raises(
            IndexError, match=r"^take_along_axis: an index is out of range for axis 2 of .* in \[-5, 5\)"
        ):
            t.take_along_axis(np.full((3, 4, 1), bad))
    for wrong in (np.zeros((3, 4, 1)), np.zeros((3, 4, 1), bool)):
        with pytest.raises(TypeError, match=r"^take_along_axis: indices must be integers, got dtype"):
            t.take_along_axis(wrong)
    with pytest.raises(IndexError, match=r"^take_along_axis: axis 3 is out of range"):
        t.take_along_axis(np.zeros((3, 4, 1), int), 3)
