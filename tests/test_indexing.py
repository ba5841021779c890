"""x[index] for every kind of index, compared with a PyTorch gather of the flat positions that NumPy selects."""

import math
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
I = np.array  # noqa: E741 - a short name for the table below

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
    "None": np.s_[None],
    "None inside": np.s_[:, None, 1, None],
    "empty tuple": (),
    "list": [2, 0],
    "repeated": [3, 1, 3, 3],
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
    "separated arrays": np.s_[[0, 1], :, [2, 2]],
    "array and int": np.s_[[0, 1, 1], 2],
    "int, slice, array": np.s_[1, :, [2, 2, 0]],
    "array and slice": np.s_[1:3, [4, 4, 0], ::2],
    "array and None": np.s_[[0, 0], None, 1:],
    "array and ellipsis": np.s_[..., [5, 5]],
    "mask": mask,
    "mask of all axes": deep_mask,
    "mask list": [True, False, True, True],
    "mask on a later axis": np.s_[:, I([True, False, True, False, True])],
    "mask and slice": np.s_[mask, 1:4],
    "mask and int": np.s_[mask, 2],
    "mask and array": np.s_[[0, 0, 3], I([True, False, True, False, True]), 1:],
    "mask without True": np.zeros(4, bool),
    "ellipsis and mask": np.s_[..., I([True, False, True, False, True, False])],
}


def gather(t: torch.Tensor, index: Any) -> torch.Tensor:
    """x[index] by NumPy's rules: index an array of flat positions, then gather those elements."""
    positions = np.asarray(np.arange(t.numel()).reshape(t.shape)[index])
    return t.reshape(-1)[torch.tensor(positions.reshape(-1))].reshape(positions.shape)


@pytest.mark.parametrize("name", INDICES)
def test_getitem_matches_numpy_indexing(backend: Backend, name: str) -> None:
    index = INDICES[name]
    check_against_torch(lambda t: t[index], lambda t: gather(t, index), x)


@pytest.mark.parametrize("name", INDICES)
def test_getitem_of_a_view_matches_numpy_indexing(backend: Backend, name: str) -> None:
    index = INDICES[name]
    check_against_torch(
        lambda t: t.transpose((2, 1, 0))[::-1][index],
        lambda t: gather(t.permute(2, 1, 0).flip(0), index),
        np.ascontiguousarray(x.transpose(2, 1, 0)[:, :, ::-1]),
    )


@pytest.mark.parametrize("name", ["int", "step", "repeated", "two arrays", "mask", "separated arrays"])
def test_getitem_of_float32_matches_numpy_indexing(backend: Backend, name: str) -> None:
    index = INDICES[name]
    check_against_torch(lambda t: t[index], lambda t: gather(t, index), x, dtype="float32")


@pytest.mark.parametrize("name", ["array", "2-D array", "0-d array", "mask", "mask of all axes"])
def test_getitem_accepts_tensor_and_backend_array_indices(backend: Backend, name: str) -> None:
    index = INDICES[name]
    check_against_torch(lambda t: t[Tensor(index)], lambda t: gather(t, index), x)
    check_against_torch(lambda t: t[Tensor(index).data], lambda t: gather(t, index), x)


def test_getitem_accepts_tensors_mixed_with_slices(backend: Backend) -> None:
    index = Tensor(I([1, 1, 4]))
    check_against_torch(lambda t: t[1:, index, Tensor(I(2))], lambda t: t[1:, [1, 1, 4], 2], x)


def test_repeated_indices_accumulate_gradients(backend: Backend) -> None:
    """`grad[index] += g` would keep only one of the three gradients of element 0."""
    t = Tensor([10.0, 20.0, 30.0])
    t[[0, 0, 0, 2]].backward(Tensor([1.0, 2.0, 4.0, 8.0]))
    assert_close(t.grad, np.array([7.0, 0.0, 8.0]))


def test_many_repeated_indices_accumulate_gradients(backend: Backend) -> None:
    index = rng(5).integers(0, 7, size=(50, 40))
    check_against_torch(lambda t: t[index], lambda t: t[torch.tensor(index)], rng(6).normal(size=(7, 3)))


def test_getitem_of_0d_and_empty_tensors(backend: Backend) -> None:
    check_against_torch(lambda t: t[()], lambda t: t[()], I(2.0))
    check_against_torch(lambda t: t[...], lambda t: t[...], I(2.0))
    check_against_torch(lambda t: t[None], lambda t: t[None], I(2.0))
    check_against_torch(lambda t: t[:, 1], lambda t: t[:, 1], np.zeros((0, 3)))
    check_against_torch(lambda t: t[[]], lambda t: t[[]], np.zeros((0, 3)))


def test_getitem_of_integers_requires_no_grad(backend: Backend) -> None:
    whole = Tensor(I([3, 4, 5]))
    assert not whole[1:].requires_grad
    assert_close(whole[[2, 2, 0]], I([5, 5, 3]))


@pytest.mark.parametrize("index", [4, -5, (0, 5), [0, 4], [0, -5], I([[0], [7]]), np.s_[:, [5]], np.s_[0, 0, 0, 0]])
def test_out_of_range_index_raises(backend: Backend, index: Any) -> None:
    with pytest.raises(IndexError, match=r"^getitem: "):
        Tensor(x)[index]


def test_out_of_range_tensor_index_raises(backend: Backend) -> None:
    with pytest.raises(IndexError, match=r"^getitem: .*4"):
        Tensor(x)[Tensor(I([0, 4]))]


@pytest.mark.parametrize(
    "index", [[0.0, 1.0], I([1.5]), 1.0, np.ones((4, 4), bool), np.ones(5, bool), ([0, 1], [0, 1, 2])]
)
def test_invalid_index_raises(backend: Backend, index: Any) -> None:
    with pytest.raises(IndexError, match=r"^getitem: "):
        Tensor(x)[index]


def test_float_tensor_index_raises(backend: Backend) -> None:
    with pytest.raises(IndexError, match=r"^getitem: .*integer"):
        Tensor(x)[Tensor([0, 1])]  # Python numbers become the default float dtype


@pytest.mark.parametrize("index", [True, False, np.True_, I(True), np.s_[0, True]])
def test_single_bool_index_raises(backend: Backend, index: Any) -> None:
    with pytest.raises(TypeError, match=r"^getitem: an index may not be one bool"):
        Tensor(x)[index]
    with pytest.raises(TypeError, match=r"^getitem: an index may not be one bool"):
        Tensor(x)[Tensor(True)]


# --- x.at(index).set(value) and x.at(index).add(value)

AT: dict[str, Any] = {
    "int": 1, "negative": -1, "slice": slice(0, 1), "step": (slice(None), slice(None, None, 2)), "ellipsis": (..., 1),
    "reverse": slice(None, None, -1), "all ints": (1, 2, 3), "none": (None, 0), "empty": slice(1, 1), "list": [1, 0],
    "pairs": ([0, 1, 0], [1, 2, 2]), "second axis": (slice(None), [2, 0]), "array 2-D": ([[0], [1]], [[0, 1]]),
    "mask": np.arange(24).reshape(2, 3, 4) % 3 == 0, "mask of an axis": (slice(None), np.array([True, False, True])),
    "mask of none": np.zeros(2, bool), "whole": (), "empty list": [],
}  # fmt: skip


def at_by_torch(t: torch.Tensor, index: Any, value: Any, accumulate: bool) -> torch.Tensor:
    """By the numbers of the elements."""
    places = torch.tensor(np.arange(t.numel()).reshape(t.shape)[index].copy())
    values = torch.broadcast_to(torch.as_tensor(value, dtype=t.dtype), places.shape)
    return torch.index_put(t.reshape(-1), (places.reshape(-1),), values.reshape(-1), accumulate).reshape(t.shape)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", AT)
def test_at_matches_pytorch(backend: Backend, name: str, dtype: str) -> None:
    x, index = rng(0).normal(size=(2, 3, 4)), AT[name]
    shape = x[index].shape
    for value in (rng(1).normal(size=shape), rng(1).normal(size=shape[-1:]), np.array(2.5)):
        check_against_torch(
            lambda t, v: t.at(index).set(v), lambda t, v: at_by_torch(t, index, v, False), x, value, dtype=dtype
        )
        check_against_torch(
            lambda t, v: t.at(index).add(v), lambda t, v: at_by_torch(t, index, v, True), x, value, dtype=dtype
        )
    check_against_torch(lambda t: t.at(index).set(2), lambda t: at_by_torch(t, index, 2, False), x, dtype=dtype)
    check_against_torch(lambda t: t.at(index).add(0.5), lambda t: at_by_torch(t, index, 0.5, True), x, dtype=dtype)


def test_at_makes_new_tensors(backend: Backend) -> None:
    x = Tensor([1.0, 2.0, 3.0])
    assert x.at(0).set(5.0).tolist() == [5.0, 2.0, 3.0]
    assert x.at(x > 1.5).set(0.0).tolist() == [1.0, 0.0, 0.0]
    assert x.at(Tensor(np.array([2, 0]))).add(x[:2]).tolist() == [3.0, 2.0, 4.0]
    assert x.at(slice(1)).set(backend.asarray(np.array([7.0]))).tolist() == [7.0, 2.0, 3.0]
    assert x.tolist() == [1.0, 2.0, 3.0]
    assert Tensor(1.0).at(()).set(2.0).item() == 2.0


def test_at_add_sums_repeated_indices(backend: Backend) -> None:
    x, v = rng(0).normal(size=(3, 2)), rng(1).normal(size=(4, 2))
    index = [1, 0, 1, -2]
    check_against_torch(lambda t, u: t.at(index).add(u), lambda t, u: at_by_torch(t, index, u, True), x, v)
    check_against_torch(lambda t: t.at(index).add(0.5), lambda t: at_by_torch(t, index, 0.5, True), x)
    counts = Tensor(np.zeros(3, "int64")).at([0, 2, 2, 0, 0]).add(1)
    assert_close(counts, np.array([3, 0, 2]))
    large = Tensor(np.array([2**62, 0])).at([0, 0, 1]).add(Tensor(np.array([1, 2, 2**53 + 1])))
    assert_close(large, np.array([2**62 + 3, 2**53 + 1]))  # not by way of float64


def test_at_set_refuses_two_values_for_an_element(backend: Backend) -> None:
    x = Tensor(np.ones((3, 2)))
    for index in ([1, 1], [1, -2], ([0, 0], [1, 1])):
        with pytest.raises(ValueError, match=r"^at_set: the index selects an element of shape \(3, 2\) twice, .*\.add"):
            x.at(index).set(Tensor([[1.0, 2.0]]) if isinstance(index, list) else Tensor([1.0, 2.0]))
    check_against_torch(  # one value for all elements
        lambda t, v: t.at([1, 1]).set(v),
        lambda t, v: torch.stack([t[0], v.expand(2), t[2]]),
        np.ones((3, 2)),
        np.array(2.0),
    )


def test_at_keeps_the_dtype(backend: Backend) -> None:
    single, whole, flags = Tensor([1.0, 2.0], dtype="float32"), Tensor(np.array([1, 2], "int32")), Tensor([True, False])
    assert single.at(0).set(Tensor([[3.0]])[0, 0]).dtype == np.float32
    assert single.at(slice(None)).add(Tensor([1.0, 2.0])).dtype == np.float32
    assert single.at(0).set(Tensor(np.array(3))).tolist() == [3.0, 2.0]
    assert_close(whole.at(0).set(7), np.array([7, 2], "int32"))
    assert_close(whole.at([0, 0]).add(Tensor(np.array([1, 2]))), np.array([4, 2], "int32"))
    assert_close(flags.at(1).set(True), np.array([True, True]))
    v = Tensor([1.0, 2.0])
    single.at(slice(None)).set(v).sum().backward()
    assert v.grad is not None
    for wrong in (0.5, Tensor(0.5)):
        with pytest.raises(TypeError, match=r"^at_set: the value is a float, and x is int32; cast one of them"):
            whole.at(0).set(wrong)
        with pytest.raises(TypeError, match=r"^at_add: the value is a float, and x is int32; cast one of them"):
            whole.at(0).add(wrong)
    with pytest.raises(TypeError, match=r"^at_add: x is bool, and has no sums"):
        flags.at(0).add(True)


def test_at_keeps_the_dtype_of_x_for_a_number(backend: Backend) -> None:
    assert_close(Tensor([True, False]).at(1).set(2), np.array([True, True]))
    assert_close(Tensor(np.array([5, 6], "uint8")).at(0).set(True), np.array([1, 6], "uint8"))
    assert_close(Tensor(np.array([1.5, 2], "float16")).at(0).set(math.inf), np.array([math.inf, 2], "float16"))
    for dtype, large in (("int8", 300), ("uint8", -1), ("float16", 1e6), ("float32", 1e300)):
        x = Tensor(np.array([1, 2], dtype))
        for op, call in (("at_set", x.at(0).set), ("at_add", x.at(0).add)):
            with pytest.raises(OverflowError, match=rf"^{op}: .*{dtype}"):
                call(large)


def test_invalid_at_raises(backend: Backend) -> None:
    x = Tensor(np.ones((2, 3)))
    for call in (lambda v: x.at(0).set(v), lambda v: x.at(0).add(v)):
        with pytest.raises(
            ValueError, match=r"^at_\w+: a value of shape \(2,\) does not broadcast to \(3,\), the shape of x"
        ):
            call(Tensor([1.0, 2.0]))
        with pytest.raises(TypeError, match=r"^at_\w+: cannot take a builtins\.list"):
            call([1.0, 2.0, 3.0])
        with pytest.raises(TypeError, match=r"^at_\w+: cannot take 'a'"):
            call("a")
    for bad in (2, [0, 2], (0, 0, 0)):
        with pytest.raises(IndexError, match=r"^(at_set|getitem): "):
            x.at(bad).set(1.0)
