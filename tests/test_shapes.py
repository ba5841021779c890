"""Ops that change the shape or order of elements, against PyTorch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from russellgrad import Tensor
from russellgrad.backend import Backend
from tests.helpers import assert_close, check_against_torch, rng

Fn = Callable[..., Any]
x = rng(0).normal(size=(2, 3, 4))
ones = rng(1).normal(size=(1, 3, 1, 4))

# name: (RussellGrad's function, PyTorch's function, operand)
SHAPES: dict[str, tuple[Fn, Fn, np.ndarray[Any, Any]]] = {
    "transpose": (lambda t: t.transpose(), lambda t: t.permute(2, 1, 0), x),
    "transpose_axes": (lambda t: t.transpose((1, 2, 0)), lambda t: t.permute(1, 2, 0), x),
    "transpose_list": (lambda t: t.transpose([2, 0, 1]), lambda t: t.permute(2, 0, 1), x),
    "transpose_negative": (lambda t: t.transpose((-1, 0, -2)), lambda t: t.permute(-1, 0, -2), x),
    "transpose_1d": (lambda t: t.transpose((0,)), lambda t: t.clone(), x[0, 0]),
    "transpose_0d": (lambda t: t.transpose(), lambda t: t.clone(), x[0, 0, 0]),
    "T": (lambda t: t.T, lambda t: t.T, x[0]),
    "swapaxes": (lambda t: t.swapaxes(0, -1), lambda t: t.swapaxes(0, -1), x),
    "swapaxes_same": (lambda t: t.swapaxes(1, 1), lambda t: t.swapaxes(1, 1), x),
    "reshape": (lambda t: t.reshape(6, 4), lambda t: t.reshape(6, 4), x),
    "reshape_tuple": (lambda t: t.reshape((4, 3, 2)), lambda t: t.reshape(4, 3, 2), x),
    "reshape_infer": (lambda t: t.reshape(2, -1), lambda t: t.reshape(2, -1), x),
    "reshape_flat": (lambda t: t.reshape(-1), lambda t: t.reshape(-1), x),
    "reshape_numpy_ints": (lambda t: t.reshape(np.int64(6), np.int64(4)), lambda t: t.reshape(6, 4), x),
    "reshape_to_0d": (lambda t: t.reshape(()), lambda t: t.reshape(()), x[:1, :1, :1]),
    "reshape_from_0d": (lambda t: t.reshape(1, 1), lambda t: t.reshape(1, 1), x[0, 0, 0]),
    "reshape_empty": (lambda t: t.reshape(3, 0), lambda t: t.reshape(3, 0), x[:0]),
    "reshape_of_view": (lambda t: t.T[::-1].reshape(8, 3), lambda t: t.permute(2, 1, 0).flip(0).reshape(8, 3), x),
    "flatten": (lambda t: t.flatten(), lambda t: t.flatten(), x),
    "flatten_start": (lambda t: t.flatten(1), lambda t: t.flatten(1), x),
    "flatten_both": (lambda t: t.flatten(0, -2), lambda t: t.flatten(0, -2), x),
    "flatten_one_axis": (lambda t: t.flatten(1, 1), lambda t: t.flatten(1, 1), x),
    "flatten_0d": (lambda t: t.flatten(), lambda t: t.flatten(), x[0, 0, 0]),
    "flatten_empty": (lambda t: t.flatten(1), lambda t: t.flatten(1), x[:0]),
    "flatten_of_view": (lambda t: t.T.flatten(1), lambda t: t.permute(2, 1, 0).flatten(1), x),
    "ravel": (lambda t: t.ravel(), lambda t: t.ravel(), x),
    "ravel_0d": (lambda t: t.ravel(), lambda t: t.ravel(), x[0, 0, 0]),
    "copy": (lambda t: t.copy(), lambda t: t.clone(), x),
    "copy_0d": (lambda t: t.copy(), lambda t: t.clone(), x[0, 0, 0]),
    "copy_of_view": (lambda t: t.T[::2].copy(), lambda t: t.permute(2, 1, 0)[::2].clone(), x),
    "moveaxis": (lambda t: t.moveaxis(0, -1), lambda t: t.moveaxis(0, -1), x),
    "moveaxis_several": (lambda t: t.moveaxis((0, 1), (-1, 0)), lambda t: t.moveaxis((0, 1), (-1, 0)), x),
    "moveaxis_list": (lambda t: t.moveaxis([2, 0], [0, 1]), lambda t: t.moveaxis((2, 0), (0, 1)), x),
    "moveaxis_same": (lambda t: t.moveaxis(1, -2), lambda t: t.moveaxis(1, -2), x),
    "broadcast_to": (lambda t: t.broadcast_to(2, 3, 5, 4), lambda t: t.broadcast_to(2, 3, 5, 4), ones),
    "broadcast_to_new_axes": (lambda t: t.broadcast_to((5, 2, 3, 4)), lambda t: t.broadcast_to(5, 2, 3, 4), x),
    "broadcast_0d": (lambda t: t.broadcast_to(2, 3), lambda t: t.broadcast_to(2, 3), x[0, 0, 0]),
    "broadcast_to_empty": (lambda t: t.broadcast_to(0, 4), lambda t: t.broadcast_to(0, 4), x[0, :1]),
    "squeeze": (lambda t: t.squeeze(), lambda t: t.squeeze(), ones),
    "squeeze_axis": (lambda t: t.squeeze(0), lambda t: t.squeeze(0), ones),
    "squeeze_negative": (lambda t: t.squeeze(-2), lambda t: t.squeeze(-2), ones),
    "squeeze_tuple": (lambda t: t.squeeze((0, 2)), lambda t: t.squeeze((0, 2)), ones),
    "squeeze_long_axis": (lambda t: t.squeeze(1), lambda t: t.squeeze(1), ones),
    "squeeze_mixed": (lambda t: t.squeeze((0, 1)), lambda t: t.squeeze((0, 1)), ones),
    "squeeze_nothing": (lambda t: t.squeeze(()), lambda t: t.clone(), ones),
    "squeeze_0d": (lambda t: t.squeeze(), lambda t: t.squeeze(), x[0, 0, 0]),
    "expand_dims": (lambda t: t.expand_dims(1), lambda t: t.unsqueeze(1), x),
    "expand_dims_last": (lambda t: t.expand_dims(-1), lambda t: t.unsqueeze(-1), x),
    "expand_dims_tuple": (lambda t: t.expand_dims((0, -1)), lambda t: t[None, ..., None], x),
    "expand_dims_0d": (lambda t: t.expand_dims(0), lambda t: t.unsqueeze(0), x[0, 0, 0]),
    "iteration": (
        lambda t: sum((i + 1) * row for i, row in enumerate(t)),
        lambda t: sum((i + 1) * row for i, row in enumerate(t)),
        x,
    ),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", SHAPES)
def test_shape_op_matches_pytorch(backend: Backend, name: str, dtype: str) -> None:
    ours, theirs, operand = SHAPES[name]
    check_against_torch(ours, theirs, operand, dtype=dtype)


def test_shape_ops_of_integers_and_bools(backend: Backend) -> None:
    whole = np.arange(6).reshape(2, 3)
    assert_close(Tensor(whole).T, np.ascontiguousarray(whole.T))
    assert_close(Tensor(whole > 2).reshape(3, 2), (whole > 2).reshape(3, 2))


# --- Joining and splitting

a, b, c = rng(2).normal(size=(2, 3)), rng(3).normal(size=(4, 3)), rng(4).normal(size=(0, 3))


@pytest.mark.parametrize("axis", [0, -2])
def test_concatenate_matches_pytorch(backend: Backend, axis: int) -> None:
    check_against_torch(
        lambda *t: Tensor.concatenate(list(t), axis), lambda *t: torch.cat(t, axis), a, b, c, a + 1, dtype="float64"
    )
    check_against_torch(lambda *t: Tensor.concatenate(t, axis), lambda *t: torch.cat(t, axis), a, b, dtype="float32")


def test_concatenate_other_axis_and_constants(backend: Backend) -> None:
    check_against_torch(lambda *t: Tensor.concatenate(t, 1), lambda *t: torch.cat(t, 1), a, a[:, :1], a[:, ::-1])
    check_against_torch(lambda *t: Tensor.concatenate(t), lambda *t: torch.cat(t), a, b, a, needs=(False, True, False))


def test_joining_one_tensor_several_times_accumulates_gradients(backend: Backend) -> None:
    check_against_torch(lambda t: Tensor.concatenate([t, t, t.exp()], 1), lambda t: torch.cat([t, t, t.exp()], 1), a)
    check_against_torch(lambda t: Tensor.stack([t, t]), lambda t: torch.stack([t, t]), a)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_stack_matches_pytorch(backend: Backend, axis: int) -> None:
    check_against_torch(lambda *t: Tensor.stack(t, axis), lambda *t: torch.stack(t, axis), a, a + 1, 2 * a)


def test_stack_of_0d_tensors(backend: Backend) -> None:
    check_against_torch(lambda *t: Tensor.stack(t), lambda *t: torch.stack(t), a[0, 0], a[0, 1])


def test_joining_promotes_dtypes(backend: Backend) -> None:
    single, whole = Tensor([1.0], dtype="float32"), Tensor(np.array([2]))
    assert Tensor.concatenate([whole, single]).dtype == np.float32
    assert Tensor.stack([single, Tensor([1.0])]).dtype == np.float64


def test_joining_mismatched_tensors_raises(backend: Backend) -> None:
    t = Tensor(a)
    with pytest.raises(
        ValueError, match=r"^concatenate: \(2, 3\) and \(2, 2\), axis=0: all axes but the joined one must agree$"
    ):
        Tensor.concatenate([t, t[:, :2]])
    with pytest.raises(ValueError, match=r"^stack: all tensors must have one shape, got \(2, 3\), \(2, 2\)"):
        Tensor.stack([t, t[:, :2]])
    for join in (Tensor.concatenate, Tensor.stack):
        with pytest.raises(ValueError, match=rf"^{join.__name__}: give a list of at least one tensor"):
            join([])
        with pytest.raises(ValueError, match=rf"^{join.__name__}: give a list"):
            join(t)
        with pytest.raises(TypeError, match=rf"^{join.__name__}: give a list of tensors; it holds a float"):
            join([t, 1.0])  # type: ignore[type-var]
        with pytest.raises(IndexError, match=rf"^{join.__name__}: axis 5 is out of range"):
            join([t, t], 5)
    with pytest.raises(IndexError, match=r"^concatenate: axis 0 is out of range for a tensor of 0 axes"):
        Tensor.concatenate([Tensor(1.0), Tensor(2.0)])


@pytest.mark.parametrize(
    ("sizes", "axis"), [(2, 0), (2, 1), (3, -1), (100, 1), ([1, 2, 1], 2), ([3, 0], 1), ((2,), 0), (np.int64(2), 2)]
)
def test_split_matches_pytorch(backend: Backend, sizes: Any, axis: int) -> None:
    """The pieces have different weights, so a gradient sent to the wrong piece is detected."""
    # PyTorch accepts neither tuples nor NumPy integers.
    same = list(sizes) if isinstance(sizes, list | tuple) else int(sizes)
    pieces = torch.tensor(x).split(same, axis)
    assert [p.shape for p in Tensor(x).split(sizes, axis)] == [tuple(p.shape) for p in pieces]
    check_against_torch(
        lambda t: Tensor.concatenate([i * p for i, p in enumerate(t.split(sizes, axis))][::-1], axis),
        lambda t: torch.cat([i * p for i, p in enumerate(t.split(same, axis))][::-1], axis),
        x,
    )


def test_split_of_an_empty_tensor(backend: Backend) -> None:
    assert [p.shape for p in Tensor(x[:0]).split(2)] == [tuple(p.shape) for p in torch.tensor(x[:0]).split(2)]


def test_invalid_split_raises(backend: Backend) -> None:
    t = Tensor(x)
    for sizes in ([1, 1], [5, -2], []):
        with pytest.raises(ValueError, match=r"^split: sizes .* do not add up to axis 1 of shape \(2, 3, 4\)"):
            t.split(sizes, 1)
    with pytest.raises(ValueError, match=r"^split: the size of a piece must be positive, got 0"):
        t.split(0)
    with pytest.raises(IndexError, match=r"^split: axis 3 is out of range"):
        t.split(1, 3)


# --- Errors


def test_invalid_shape_arguments_raise(backend: Backend) -> None:
    t = Tensor(x)
    with pytest.raises(ValueError, match=r"^reshape: \(2, 3, 4\), shape=\(5, 5\): the number of elements must stay"):
        t.reshape(5, 5)
    with pytest.raises(ValueError, match=r"^transpose: axes \(0, 1\) must name each of the 3 axes"):
        t.transpose((0, 1))
    with pytest.raises(ValueError, match=r"^transpose: axis .* names an axis twice"):
        t.transpose((0, 1, 1))
    for call, message in {
        lambda: t.flatten(2, 1): r"^flatten: start=2 is after end=1",
        lambda: t.moveaxis((0, 1), 2): r"^moveaxis: source \(0, 1\) and destination 2 must have as many axes",
        lambda: t.moveaxis((0, 0), (1, 2)): r"^moveaxis: axis .* names an axis twice",
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
    for call, message in {
        lambda: t.flatten(3): r"^flatten: axis 3 is out of range",
        lambda: t.moveaxis(0, 3): r"^moveaxis: axis 3 is out of range",
        lambda: t.moveaxis(-4, 0): r"^moveaxis: axis -4 is out of range",
    }.items():
        with pytest.raises(IndexError, match=message):
            call()
    with pytest.raises(TypeError, match=r"^flatten: has no argument start_dim=; write start="):
        t.flatten(start_dim=1)  # type: ignore[call-arg]
    with pytest.raises(IndexError, match=r"^swapaxes: axis 3 is out of range"):
        t.swapaxes(0, 3)
    with pytest.raises(IndexError, match=r"^squeeze: axis 3 is out of range"):
        t.squeeze(3)
    with pytest.raises(IndexError, match=r"^expand_dims: "):
        t.expand_dims(5)
    with pytest.raises(ValueError, match=r"^broadcast_to: .*shapes must be equal or broadcast"):
        t.broadcast_to(2, 3, 5)


def test_a_copy_has_memory_of_its_own(backend: Backend) -> None:
    t = Tensor([1.0, 2.0])
    copied = t.detach().copy()
    copied.data *= 2
    assert (t.tolist(), copied.tolist()) == ([1.0, 2.0], [2.0, 4.0])
    assert t.copy().requires_grad


def test_tolist_gives_python_numbers(backend: Backend) -> None:
    assert Tensor([[1.5, 2.0], [3.0, 4.0]]).tolist() == [[1.5, 2.0], [3.0, 4.0]]
    assert Tensor(2.5).tolist() == 2.5
    assert Tensor(np.zeros((2, 0))).tolist() == [[], []]
    for value in (Tensor(np.array([1, 2])).tolist()[0], Tensor(np.array([True])).tolist()[0]):
        assert type(value) in (int, bool)
