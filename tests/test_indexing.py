"""x[...] in all its forms, against PyTorch; where PyTorch lacks the form, against a gather of flat positions."""

from typing import Any

import numpy as np
import pytest
import torch

from russellgrad import Tensor
from russellgrad.backend import Backend
from tests.helpers import assert_close, check_against_torch, rng

x = rng(0).normal(size=(4, 5, 6))
mask = rng(1).normal(size=(4, 5)) > 0
deep_mask = rng(2).normal(size=(4, 5, 6)) > 0
I = np.array  # noqa: E741 - short, for the table below

INDICES: dict[str, Any] = {
    "int": 1,
    "negative int": -1,
    "numpy int": np.int64(2),
    "all ints": (1, -2, 3),
    "slice": np.s_[1:3],
    "step": np.s_[::2, 1::3],
    "negative step": np.s_[::-1, ::-2],
    "negative bounds": np.s_[-3:-1, :-2],
    "out of range slice": np.s_[10:20],
    "empty slice": np.s_[3:1],
    "ellipsis": np.s_[...],
    "ellipsis first": np.s_[..., 0],
    "ellipsis middle": np.s_[1, ..., 2:4],
    "none": np.s_[None],
    "none inside": np.s_[:, None, 1, None],
    "empty tuple": (),
    "list": [2, 0],
    "repeats": [3, 1, 3, 3],
    "negative in list": [-1, 0, -1],
    "empty list": [],
    "array": I([0, 0, 2]),
    "2-D array": I([[0, 1], [3, 3]]),
    "0-d array": I(2),
    "int32 array": I([1, 1], np.int32),
    "uint8 array": I([1, 1], np.uint8),
    "empty array": np.zeros((0, 2), np.int64),
    "array on a later axis": np.s_[:, [1, 1, 4]],
    "two arrays": ([0, 1, 1], [2, 3, 3]),
    "two arrays broadcast": (I([[0], [1]]), I([2, 3, 2])),
    "arrays apart": np.s_[[0, 1], :, [2, 2]],
    "array and int": np.s_[[0, 1, 1], 2],
    "int, slice, array": np.s_[1, :, [2, 2, 0]],
    "array and slice": np.s_[1:3, [4, 4, 0], ::2],
    "array and none": np.s_[[0, 0], None, 1:],
    "array and ellipsis": np.s_[..., [5, 5]],
    "mask": mask,
    "mask of all": deep_mask,
    "mask list": [True, False, True, True],
    "mask on a later axis": np.s_[:, I([True, False, True, False, True])],
    "mask and slice": np.s_[mask, 1:4],
    "mask and int": np.s_[mask, 2],
    "mask and array": np.s_[[0, 0, 3], I([True, False, True, False, True]), 1:],
    "mask of nothing": np.zeros(4, bool),
    "ellipsis and mask": np.s_[..., I([True, False, True, False, True, False])],
}


def gather(t: torch.Tensor, index: Any) -> torch.Tensor:
    """x[index] by NumPy's own rules: what the same index picks from the flat positions."""
    positions = np.asarray(np.arange(t.numel()).reshape(t.shape)[index])
    return t.reshape(-1)[torch.tensor(positions.reshape(-1))].reshape(positions.shape)


@pytest.mark.parametrize("name", INDICES)
def test_index(backend: Backend, name: str) -> None:
    index = INDICES[name]
    check_against_torch(lambda t: t[index], lambda t: gather(t, index), x)


@pytest.mark.parametrize("name", INDICES)
def test_index_of_a_view(backend: Backend, name: str) -> None:
    index = INDICES[name]
    check_against_torch(
        lambda t: t.transpose((2, 1, 0))[::-1][index],
        lambda t: gather(t.permute(2, 1, 0).flip(0), index),
        np.ascontiguousarray(x.transpose(2, 1, 0)[:, :, ::-1]),
    )


@pytest.mark.parametrize("name", ["int", "step", "repeats", "two arrays", "mask", "arrays apart"])
def test_index_float32(backend: Backend, name: str) -> None:
    index = INDICES[name]
    check_against_torch(lambda t: t[index], lambda t: gather(t, index), x, dtype="float32")


@pytest.mark.parametrize("name", ["array", "2-D array", "0-d array", "mask", "mask of all"])
def test_index_by_tensor_and_by_its_array(backend: Backend, name: str) -> None:
    index = INDICES[name]
    check_against_torch(lambda t: t[Tensor(index)], lambda t: gather(t, index), x)
    check_against_torch(lambda t: t[Tensor(index).data], lambda t: gather(t, index), x)


def test_index_by_tensors_among_others(backend: Backend) -> None:
    index = Tensor(I([1, 1, 4]))
    check_against_torch(lambda t: t[1:, index, Tensor(I(2))], lambda t: t[1:, [1, 1, 4], 2], x)


def test_repeats_add_up(backend: Backend) -> None:
    """Plain `grad[index] += g` would keep one of the three."""
    t = Tensor([10.0, 20.0, 30.0])
    t[[0, 0, 0, 2]].backward(Tensor([1.0, 2.0, 4.0, 8.0]))
    assert_close(t.grad, np.array([7.0, 0.0, 8.0]))


def test_many_repeats(backend: Backend) -> None:
    index = rng(5).integers(0, 7, size=(50, 40))
    check_against_torch(lambda t: t[index], lambda t: t[torch.tensor(index)], rng(6).normal(size=(7, 3)))


def test_index_of_0d_and_empty(backend: Backend) -> None:
    check_against_torch(lambda t: t[()], lambda t: t[()], I(2.0))
    check_against_torch(lambda t: t[...], lambda t: t[...], I(2.0))
    check_against_torch(lambda t: t[None], lambda t: t[None], I(2.0))
    check_against_torch(lambda t: t[:, 1], lambda t: t[:, 1], np.zeros((0, 3)))
    check_against_torch(lambda t: t[[]], lambda t: t[[]], np.zeros((0, 3)))


def test_ints_have_no_gradient(backend: Backend) -> None:
    whole = Tensor(I([3, 4, 5]))
    assert not whole[1:].requires_grad
    assert_close(whole[[2, 2, 0]], I([5, 5, 3]))


@pytest.mark.parametrize("index", [4, -5, (0, 5), [0, 4], [0, -5], I([[0], [7]]), np.s_[:, [5]], np.s_[0, 0, 0, 0]])
def test_out_of_range(backend: Backend, index: Any) -> None:
    with pytest.raises(IndexError, match=r"^getitem: "):
        Tensor(x)[index]


def test_out_of_range_by_tensor(backend: Backend) -> None:
    with pytest.raises(IndexError, match=r"^getitem: .*4"):
        Tensor(x)[Tensor(I([0, 4]))]


@pytest.mark.parametrize(
    "index", [[0.0, 1.0], I([1.5]), 1.0, np.ones((4, 4), bool), np.ones(5, bool), ([0, 1], [0, 1, 2])]
)
def test_what_is_no_index(backend: Backend, index: Any) -> None:
    with pytest.raises(IndexError, match=r"^getitem: "):
        Tensor(x)[index]


def test_a_float_tensor_is_no_index(backend: Backend) -> None:
    with pytest.raises(IndexError, match=r"^getitem: .*integer"):
        Tensor(x)[Tensor([0, 1])]  # numbers make floats


@pytest.mark.parametrize("index", [True, False, np.True_, I(True), np.s_[0, True]])
def test_one_bool_is_no_index(backend: Backend, index: Any) -> None:
    with pytest.raises(TypeError, match=r"^getitem: an index may not be one bool"):
        Tensor(x)[index]
    with pytest.raises(TypeError, match=r"^getitem: an index may not be one bool"):
        Tensor(x)[Tensor(True)]
