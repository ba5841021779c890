"""Reductions, and sums and products along an axis, against PyTorch: axis arguments, ties, empty and 0-d tensors."""

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


def torch_prod(t: Any, axis: Any, keep: bool) -> Any:
    """PyTorch's takes one axis."""
    for i in sorted((a % t.ndim for a in ((axis,) if isinstance(axis, int) else axis)), reverse=True):
        t = t.prod(i, keep)
    return t


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
    "std": (
        lambda t, axis, keep: t.std(axis, keepdims=keep),
        lambda t, axis, keep: t.std(axis, correction=0, keepdim=keep),
    ),
    "std_half": (
        lambda t, axis, keep: t.std(axis, keep, correction=0.5),
        lambda t, axis, keep: t.std(axis, correction=0.5, keepdim=keep),
    ),
    "logsumexp": (lambda t, axis, keep: t.logsumexp(axis, keep), lambda t, axis, keep: t.logsumexp(axis, keep)),
    "prod": (lambda t, axis, keep: t.prod(axis, keep), torch_prod),
    **{
        f"norm {p}": (
            lambda t, axis, keep, p=p: t.norm(p, axis, keep),
            lambda t, axis, keep, p=p: torch.linalg.vector_norm(t, p, axis, keep),
        )
        for p in (2, 1, math.inf, -math.inf, 3, 2.5, -1)
    },
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
    if name in ("var_1", "var_half", "std", "std_half") and axis == 0:
        axis = 1  # axis 0 has only two elements, too few to test corrections well
    check_against_torch(lambda t: ours(t, axis, keepdims), lambda t: theirs(t, axis, keepdims), x, dtype=dtype)


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_axis_none_reduces_all(backend: Backend, name: str, keepdims: bool) -> None:
    ours, theirs = REDUCTIONS[name]
    check_against_torch(lambda t: ours(t, None, keepdims), lambda t: theirs(t, every_axis(t.ndim), keepdims), x)


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "var", "prod", "logsumexp"])
def test_empty_axis_tuple_reduces_nothing(backend: Backend, name: str) -> None:
    """axis=() reduces over no axis. PyTorch reduces over all axes then, so the reference is an identity or zero."""
    ours, _ = REDUCTIONS[name]
    theirs: Fn = (lambda t: t * 0) if name == "var" else (lambda t: t * 1)
    check_against_torch(lambda t: ours(t, (), False), theirs, x)
    check_against_torch(lambda t: ours(t, (), True), theirs, x)
    t = Tensor(x)
    assert ours(t, (), False).data is not t.data


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "var", "prod", "logsumexp", "norm 2", "norm 3"])
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
    check_against_torch(lambda t: t.prod(0), lambda t: t.prod(0), empty)
    check_against_torch(lambda t: t.prod(), lambda t: t.prod(), empty)
    check_against_torch(lambda t: t.logsumexp(0), lambda t: t.logsumexp(0), empty)
    check_against_torch(lambda t: t.norm(axis=0), lambda t: torch.linalg.vector_norm(t, dim=0), empty)
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


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "var", "argmax", "argmin", "std", "prod", "logsumexp",
                                  "any", "all", "cumsum", "cumprod", "sort", "argsort", "flip"])  # fmt: skip
def test_invalid_axis_raises(backend: Backend, name: str) -> None:
    t = Tensor(x)
    for axis in (3, -4):
        with pytest.raises(IndexError, match=rf"^{name}: axis {axis} is out of range for a tensor of 3 axes"):
            getattr(t, name)(axis)
    if name in ("argmax", "argmin", "cumsum", "cumprod", "sort", "argsort"):
        with pytest.raises(TypeError, match=rf"^{name}: axis must be one int, got \(0, 1\)"):
            getattr(t, name)((0, 1))
    else:
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


def test_argmin_matches_pytorch(backend: Backend) -> None:
    for axis in (0, 1, -1):
        for keepdims in (False, True):
            out = Tensor(x).argmin(axis, keepdims)
            assert not out.requires_grad
            assert_close(out, torch.tensor(x).argmin(axis, keepdims))
    assert Tensor(x).argmin().item() == int(x.argmin())
    assert Tensor(TIES).argmin(1).numpy().tolist() == [0, 0, 0]  # the first of equal minima
    assert Tensor(2.0).argmin().item() == 0
    assert Tensor([1.0, math.nan, -math.inf]).argmin().item() == 1  # the first nan
    for dtype in ("uint8", "int64", "bool"):
        whole = np.array([[1, 0, 255], [3, 7, 2]]).astype(dtype)
        assert_close(Tensor(whole).argmin(1), whole.argmin(1))
    assert Tensor(np.array([5, -(2**63), 2**63 - 1])).argmin().item() == 1
    for empty in (np.zeros(0), np.zeros((2, 0))):
        with pytest.raises(ValueError, match=r"^argmin: shape .* has no elements along the axis"):
            Tensor(empty).argmin(-1)
    assert Tensor(np.zeros((2, 0))).argmin(0).shape == (0,)


# --- Standard deviation, norm, logsumexp


def test_the_gradients_of_std_and_norm_are_0_at_0(backend: Backend) -> None:
    same, zeros = np.ones((2, 3)), np.array([[0.0, 0.0], [3.0, 0.0]])
    check_against_torch(lambda t: t.std(1), lambda t: t.std(1, correction=0), same)
    alone = Tensor(2.0)
    alone.std().backward()
    assert alone.grad is not None and Tensor(alone.grad).item() == 0
    for p in (2, 1, math.inf, 3, 1.5):
        check_against_torch(
            lambda t, p=p: t.norm(p, 1), lambda t, p=p: torch.linalg.vector_norm(t, p, 1), zeros, dtype="float32"
        )
    # A sum of powers with an infinite derivative at 0; PyTorch's gradient is 0 there, too.
    check_against_torch(lambda t: t.norm(0.5, 1), lambda t: torch.linalg.vector_norm(t, 0.5, 1), zeros)
    check_against_torch(
        lambda t: t.norm(0, 1) + t.sum(1), lambda t: torch.linalg.vector_norm(t, 0, 1) + t.sum(1), zeros
    )


def test_norm_of_integers_and_bad_orders(backend: Backend) -> None:
    assert_close(Tensor(np.array([3, 4])).norm(), np.array(5.0))
    assert_close(Tensor(np.array([[3, -4], [0, 1]])).norm(1, axis=1), np.array([7.0, 1.0]))
    t = Tensor(x)
    for wrong in ("fro", None, True, [2]):
        with pytest.raises(
            TypeError, match=r"^norm: ord must be a number, such as 2, 1 or math.inf, got .*; a Frobenius"
        ):
            t.norm(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^norm: ord must be a number.*got nan"):
        t.norm(math.nan)
    with pytest.raises(ValueError, match=r"^norm: shape \(0,\) has no elements"):
        Tensor(np.zeros(0)).norm(math.inf)
    with pytest.raises(IndexError, match=r"^norm: axis 3 is out of range"):
        t.norm(axis=3)
    with pytest.raises(TypeError, match=r"^norm: has no argument p=; write ord="):
        t.norm(p=2)  # type: ignore[call-arg]


def test_std_of_integers_raises(backend: Backend) -> None:
    for wrong in (np.array([1, 2]), np.array([True, False])):
        with pytest.raises(TypeError, match=rf"^std: needs a float tensor, got dtype {wrong.dtype}; call .astype"):
            Tensor(wrong).std()


def test_logsumexp_is_stable(backend: Backend) -> None:
    large = np.array([[1000.0, 1000.0], [-1000.0, -1001.0], [0.0, -math.inf], [1e30, 0.0]])
    for axis in (0, 1):
        check_against_torch(lambda t, axis=axis: t.logsumexp(axis), lambda t, axis=axis: t.logsumexp(axis), large)
    inf = Tensor([[-math.inf, -math.inf], [1.0, 1.0]])
    out = inf.logsumexp(1)
    assert_close(out, np.array([-math.inf, 1 + math.log(2)]))
    out.sum().backward()
    assert_close(inf.grad, np.array([[0.0, 0.0], [0.5, 0.5]]))  # PyTorch has nan
    assert Tensor([math.inf, 0.0], requires_grad=False).logsumexp().item() == math.inf
    assert math.isnan(Tensor([math.nan, 0.0], requires_grad=False).logsumexp().item())
    assert_close(Tensor(np.array([0, 0])).logsumexp(), np.array(math.log(2)))


def test_half_precision_is_widened(backend: Backend) -> None:
    """The squares, sums and products overflow in float16; the results do not."""
    half = Tensor(np.array([300.0, 400.0], "float16"))
    for out, wanted in ((half.norm(), 500), (half.std(), 50), (half.logsumexp(), 400)):
        assert out.dtype == np.float16
        assert_close(out, np.array(wanted, "float16"))
    for scale in (300.0, 2.0**-13):  # the variance overflows, or is rounded to 0
        far = Tensor(np.array([scale, -scale], "float16"))
        out = far.std()
        out.backward()
        assert_close(out, np.array(scale, "float16"))
        assert_close(far.grad, np.array([0.5, -0.5], "float16"))
    rows = Tensor(np.array([300.0, 0.0625, 400.0, 0.0625], "float16"))
    assert rows.prod().item() == np.float16(300 * 400 / 256)
    assert rows.cumprod()[-1].item() == np.float16(300 * 400 / 256)
    ones = Tensor(np.ones(4096, "float16"))
    assert ones.cumsum()[-1].item() == 4096
    assert ones.norm(1).item() == 4096


# --- Products

ZEROS = np.array([[1.5, 2.0, -3.0, 0.5], [0.0, 2.0, -1.0, 3.0], [0.0, 4.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]])


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_products_with_zeros_match_pytorch(backend: Backend, axis: int, dtype: str) -> None:
    check_against_torch(lambda t: t.prod(axis), lambda t: t.prod(axis), ZEROS, dtype=dtype)
    check_against_torch(lambda t: t.cumprod(axis), lambda t: t.cumprod(axis), ZEROS, dtype=dtype)
    check_against_torch(lambda t: t.cumsum(axis), lambda t: t.cumsum(axis), ZEROS, dtype=dtype)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 7, 8, 9])
def test_products_and_sums_of_every_length(backend: Backend, n: int) -> None:
    values = rng(5).normal(size=(2, n, 2))
    for name in ("prod", "cumprod", "cumsum"):
        check_against_torch(lambda t, name=name: getattr(t, name)(1), lambda t, name=name: getattr(t, name)(1), values)
        check_against_torch(
            lambda t, name=name: getattr(t.T[::-1], name)(1),
            lambda t, name=name: getattr(t.permute(2, 1, 0).flip(0), name)(1),
            values,
        )


def test_cumulative_sums_and_products_of_flattened_and_0d_tensors(backend: Backend) -> None:
    for name in ("cumprod", "cumsum"):
        check_against_torch(
            lambda t, name=name: getattr(t, name)(), lambda t, name=name: getattr(t.ravel(), name)(0), x
        )
        t = Tensor(2.0)
        assert_close(getattr(t, name)(), np.array([2.0]))
        one = Tensor([2.0])
        assert getattr(one, name)(0).data is not one.data
        with pytest.raises(TypeError, match=rf"^{name}: has no argument dim=; write axis="):
            getattr(t, name)(dim=0)


def test_products_and_sums_of_integers_and_bools(backend: Backend) -> None:
    for whole in (np.array([[3, 1, 2], [2, 7, 0]], "int32"), np.array([[True, True, False], [True, True, True]])):
        for name in ("prod", "cumprod", "cumsum"):
            for axis in (0, 1, None):
                wanted = getattr(np, name)(whole, axis).astype("int64")
                assert_close(getattr(Tensor(whole), name)(axis), np.asarray(wanted))
    assert_close(Tensor(np.zeros((0, 2), "int32")).prod(0), np.ones(2, "int64"))


# --- any and all


@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 2), ()])
def test_any_and_all_are_numpys(backend: Backend, axis: Any) -> None:
    some = rng(3).random((2, 3, 4)) < 0.7
    values = np.where(rng(3).random((2, 3, 4)) < 0.3, 0.0, x)
    for given in (some, values, some.astype("int32"), ~some[:, :0], np.full((1, 1, 1), math.nan)):
        for name in ("any", "all"):
            for keepdims in (False, True):
                out = getattr(Tensor(given), name)(axis, keepdims)
                assert not out.requires_grad
                assert_close(out, np.asarray(getattr(np, name)(given, axis, keepdims=keepdims)))
    assert bool((Tensor(x) > -100).all()) and not (Tensor(x) > 100).any()
