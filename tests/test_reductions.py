"""sum, mean, var, max, min and argmax against PyTorch: axis arguments, ties, empty and 0-d tensors."""

import math
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
AXES: list[int | tuple[int, ...]] = [0, 1, -1, -3, (0, 1), (-1, 0), (2, 0, 1), (1,)]


def every_axis(ndim: int) -> tuple[int, ...]:
    return tuple(range(ndim))


# name: (RussellGrad's function, PyTorch's function); both take (tensor, axes, keepdims)
REDUCTIONS: dict[str, tuple[Fn, Fn]] = {
    "sum": (lambda t, axis, keep: t.sum(axis, keep), lambda t, axis, keep: t.sum(axis, keep)),
    "mean": (lambda t, axis, keep: t.mean(axis, keep), lambda t, axis, keep: t.mean(axis, keep)),
    "max": (lambda t, axis, keep: t.max(axis, keep), lambda t, axis, keep: t.amax(axis, keep)),
    "min": (lambda t, axis, keep: t.min(axis, keep), lambda t, axis, keep: t.amin(axis, keep)),
    "var": (
        lambda t, axis, keep: t.var(axis, keepdims=keep),
        lambda t, axis, keep: t.var(axis, correction=0, keepdim=keep),
    ),
    "var_1": (
        lambda t, axis, keep: t.var(axis, keep, correction=1),
        lambda t, axis, keep: t.var(axis, correction=1, keepdim=keep),
    ),
    "var_half": (
        lambda t, axis, keep: t.var(axis, correction=0.5, keepdims=keep),
        lambda t, axis, keep: t.var(axis, correction=0.5, keepdim=keep),
    ),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduction_matches_pytorch(
    backend: Backend, name: str, axis: int | tuple[int, ...], keepdims: bool, dtype: str
) -> None:
    ours, theirs = REDUCTIONS[name]
    if name in ("var_1", "var_half") and axis == 0:
        axis = 1  # axis 0 has only two elements, too few to test corrections well
    check_against_torch(lambda t: ours(t, axis, keepdims), lambda t: theirs(t, axis, keepdims), x, dtype=dtype)


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_axis_none_reduces_all(backend: Backend, name: str, keepdims: bool) -> None:
    ours, theirs = REDUCTIONS[name]
    check_against_torch(lambda t: ours(t, None, keepdims), lambda t: theirs(t, every_axis(t.ndim), keepdims), x)


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "var"])
def test_empty_axis_tuple_reduces_nothing(backend: Backend, name: str) -> None:
    """axis=() reduces over no axis. PyTorch reduces over all axes then, so the reference is an identity or zero."""
    ours, _ = REDUCTIONS[name]
    theirs: Fn = (lambda t: t * 0) if name == "var" else (lambda t: t * 1)
    check_against_torch(lambda t: ours(t, (), False), theirs, x)
    check_against_torch(lambda t: ours(t, (), True), theirs, x)
    t = Tensor(x)
    assert ours(t, (), False).data is not t.data


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "var"])
def test_reductions_of_0d_tensors(backend: Backend, name: str) -> None:
    ours, _ = REDUCTIONS[name]
    theirs: Fn = (lambda t: t * 0) if name == "var" else (lambda t: t * 1)
    check_against_torch(lambda t: ours(t, None, False), theirs, np.array(2.5))


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_of_views(backend: Backend, name: str) -> None:
    ours, theirs = REDUCTIONS[name]
    check_against_torch(
        lambda t: ours(t.transpose((2, 0, 1))[::-1, :, 1:], (0, 2), False),
        lambda t: theirs(t.permute(2, 0, 1).flip(0)[:, :, 1:], (0, 2), False),
        x,
    )
    check_against_torch(
        lambda t: ours(t.broadcast_to(5, 4), 0, True), lambda t: theirs(t.expand(5, 4), 0, True), x[0, 0]
    )


TIES = np.array([[1.0, 3.0, 3.0, 3.0], [2.0, 2.0, 2.0, 2.0], [-1.0, -1.0, 5.0, 0.0]])


@pytest.mark.parametrize("axis", [0, 1, (0, 1)])
@pytest.mark.parametrize("name", ["max", "min"])
def test_ties_share_the_gradient(backend: Backend, name: str, axis: int | tuple[int, ...]) -> None:
    ours, theirs = REDUCTIONS[name]
    check_against_torch(lambda t: ours(t, axis, False), lambda t: theirs(t, axis, False), TIES)


@pytest.mark.parametrize("name", ["max", "min"])
def test_max_and_min_of_infinities(backend: Backend, name: str) -> None:
    ours, theirs = REDUCTIONS[name]
    values = np.array([[1.0, math.inf, math.inf], [-math.inf, -math.inf, 2.0]])
    check_against_torch(lambda t: ours(t, 1, False), lambda t: theirs(t, 1, False), values)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # 0 / 0 where no element equals nan
@pytest.mark.parametrize("name", ["max", "min"])
def test_max_and_min_propagate_nan(backend: Backend, name: str) -> None:
    ours, theirs = REDUCTIONS[name]
    check_against_torch(
        lambda t: ours(t, 1, False), lambda t: theirs(t, 1, False), np.array([[1.0, math.nan, 3.0], [1.0, 2.0, 3.0]])
    )


@pytest.mark.filterwarnings("ignore:.*degrees of freedom:UserWarning")  # PyTorch warns about empty reductions
def test_reductions_of_empty_tensors(backend: Backend) -> None:
    empty = np.zeros((0, 3))
    check_against_torch(lambda t: t.sum(0), lambda t: t.sum(0), empty)
    check_against_torch(lambda t: t.sum(), lambda t: t.sum(), empty)
    for name, (ours, theirs) in REDUCTIONS.items():  # the result is empty too
        check_against_torch(
            lambda t, ours=ours: ours(t, 1, False), lambda t, theirs=theirs: theirs(t, 1, False), empty, seed=len(name)
        )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # 0 / 0
@pytest.mark.filterwarnings("ignore:.*degrees of freedom:UserWarning")
def test_mean_and_var_over_empty_axes_are_nan(backend: Backend) -> None:
    empty = np.zeros((2, 0))
    check_against_torch(lambda t: t.mean(1), lambda t: t.mean(1), empty)
    check_against_torch(lambda t: t.var(1), lambda t: t.var(1, correction=0), empty)
    check_against_torch(lambda t: t.var(1, correction=1), lambda t: t.var(1, correction=1), np.ones((2, 1)))
    assert_close(Tensor(x).var(1, correction=4), torch.tensor(x).var(1, correction=4))  # inf


@pytest.mark.parametrize("name", ["max", "min"])
def test_max_and_min_over_empty_axes_raise(backend: Backend, name: str) -> None:
    empty = Tensor(np.zeros((2, 0, 3)))
    for call in (lambda: getattr(empty, name)(1), lambda: getattr(empty, name)(), lambda: getattr(empty, name)((0, 1))):
        with pytest.raises(ValueError, match=rf"^{name}: axis .* of shape \(2, 0, 3\) is empty, so it has no {name}"):
            call()
    assert getattr(empty, name)(0).shape == (0, 3)


@pytest.mark.parametrize("name", ["mean", "var"])
def test_mean_and_var_of_integers_raise(backend: Backend, name: str) -> None:
    for wrong in (np.array([1, 2]), np.array([True, False])):
        with pytest.raises(TypeError, match=rf"^{name}: needs a float tensor, got dtype {wrong.dtype}; call .astype"):
            getattr(Tensor(wrong), name)()


def test_reductions_of_integers_and_bools(backend: Backend) -> None:
    whole = np.array([[3, 1], [2, 7]])
    assert_close(Tensor(whole).sum(0), whole.sum(0))
    assert_close(Tensor(whole).max(1), whole.max(1))
    assert_close(Tensor(whole > 2).sum(), np.array(2))
    assert_close(Tensor(True).sum(), np.array(1))
    assert_close(Tensor(whole > 2).sum(()), (whole > 2).astype(int))
    assert not Tensor(whole).sum().requires_grad


def test_var_is_accurate_for_a_large_mean(backend: Backend) -> None:
    """E[x^2] - E[x]^2 would lose all digits here: the squares are 1e16, the variance is 1.25."""
    check_against_torch(
        lambda t: t.var(), lambda t: t.var(correction=0), np.array([1e8, 1e8 + 1, 1e8 + 2, 1e8 + 3]), atol=1e-12
    )


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "var", "argmax"])
def test_invalid_axis_raises(backend: Backend, name: str) -> None:
    t = Tensor(x)
    for axis in (3, -4):
        with pytest.raises(IndexError, match=rf"^{name}: axis {axis} is out of range for a tensor of 3 axes"):
            getattr(t, name)(axis)
    if name != "argmax":
        with pytest.raises(ValueError, match=rf"^{name}: axis .* names an axis twice"):
            getattr(t, name)((1, -2))


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_argmax_matches_pytorch(backend: Backend, axis: int, keepdims: bool) -> None:
    out = Tensor(x).argmax(axis, keepdims)
    assert not out.requires_grad
    assert_close(out, torch.tensor(x).argmax(axis, keepdims))


def test_argmax_over_all_axes(backend: Backend) -> None:
    assert Tensor(x).argmax().item() == int(x.argmax())
    assert Tensor(TIES).argmax(1).numpy().tolist() == [1, 0, 2]  # the first of equal maxima
    assert Tensor(2.0).argmax().item() == 0
    with pytest.raises(ValueError, match=r"^argmax: "):
        Tensor(np.zeros((0,))).argmax()
