"""flip, roll, repeat, tile, pad, triangles and diagonals against PyTorch and NumPy."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's convention

from russellgrad import Tensor
from russellgrad.backend import Backend
from tests.helpers import assert_close, check_against_torch, rng

Fn = Callable[..., Any]
x = rng(0).normal(size=(2, 3, 4))

# name: (RussellGrad's function, PyTorch's function, operand)
OPS: dict[str, tuple[Fn, Fn, np.ndarray[Any, Any]]] = {
    "flip": (lambda t: t.flip(), lambda t: t.flip(0, 1, 2), x),
    "flip axis": (lambda t: t.flip(1), lambda t: t.flip(1), x),
    "flip axes": (lambda t: t.flip((0, -1)), lambda t: t.flip(0, -1), x),
    "flip 0d": (lambda t: t.flip(), lambda t: t.clone(), x[0, 0, 0]),
    "flip empty": (lambda t: t.flip(0), lambda t: t.flip(0), x[:0]),
    "roll": (lambda t: t.roll(5), lambda t: t.roll(5), x),
    "roll back": (lambda t: t.roll(-1, 2), lambda t: t.roll(-1, 2), x),
    "roll far": (lambda t: t.roll(11, 1), lambda t: t.roll(11, 1), x),
    "roll by 0": (lambda t: t.roll(0, 1), lambda t: t.roll(0, 1), x),
    "roll axes": (lambda t: t.roll((1, -2), (0, 2)), lambda t: t.roll((1, -2), (0, 2)), x),
    "roll axes by one shift": (lambda t: t.roll(1, (0, 2)), lambda t: t.roll((1, 1), (0, 2)), x),
    "roll an axis twice": (lambda t: t.roll((1, 2), (1, 1)), lambda t: t.roll(3, 1), x[:, :, :2]),
    "roll view": (lambda t: t.T.roll(1, 0), lambda t: t.permute(2, 1, 0).roll(1, 0), x),
    "roll 0d": (lambda t: t.roll(1), lambda t: t.clone(), x[0, 0, 0]),
    "roll empty": (lambda t: t.roll(1, 0), lambda t: t.roll(1, 0), x[:0]),
    "repeat": (lambda t: t.repeat(2), lambda t: t.repeat_interleave(2), x),
    "repeat axis": (lambda t: t.repeat(2, axis=1), lambda t: t.repeat_interleave(2, 1), x),
    "repeat last": (lambda t: t.repeat(3, -1), lambda t: t.repeat_interleave(3, -1), x),
    "repeat each": (lambda t: t.repeat([2, 0, 1], 1), lambda t: t.repeat_interleave(torch.tensor([2, 0, 1]), 1), x),
    "repeat by an array": (
        lambda t: t.repeat(np.array([2, 0, 1]), 1), lambda t: t.repeat_interleave(torch.tensor([2, 0, 1]), 1), x,
    ),
    "repeat by a Tensor": (
        lambda t: t.repeat(Tensor(np.array([1, 3])), 0), lambda t: t.repeat_interleave(torch.tensor([1, 3]), 0), x,
    ),
    "repeat by a list of one": (lambda t: t.repeat([2], 1), lambda t: t.repeat_interleave(2, 1), x),
    "repeat 0 times": (lambda t: t.repeat(0, 1), lambda t: t.repeat_interleave(0, 1), x),
    "repeat none of each": (lambda t: t.repeat([0, 0], 0), lambda t: t[:0], x),
    "repeat 0d": (lambda t: t.repeat(3), lambda t: t.repeat_interleave(3), x[0, 0, 0]),
    "repeat empty": (lambda t: t.repeat(2, 1), lambda t: t.repeat_interleave(2, 1), x[:0]),
    "repeat view": (lambda t: t.T.repeat(2, 0), lambda t: t.permute(2, 1, 0).repeat_interleave(2, 0), x),
    "tile": (lambda t: t.tile(2), lambda t: t.tile(2), x),
    "tile axes": (lambda t: t.tile(2, 1, 3), lambda t: t.tile(2, 1, 3), x),
    "tile tuple": (lambda t: t.tile((2, 3)), lambda t: t.tile(2, 3), x),
    "tile more axes": (lambda t: t.tile((2, 1, 1, 2)), lambda t: t.tile(2, 1, 1, 2), x),
    "tile once": (lambda t: t.tile(1), lambda t: t.tile(1), x),
    "tile nothing": (lambda t: t.tile(()), lambda t: t.clone(), x),
    "tile 0 times": (lambda t: t.tile(0), lambda t: t.tile(0), x),
    "tile 0d": (lambda t: t.tile((2, 3)), lambda t: t.tile(2, 3), x[0, 0, 0]),
    "pad": (lambda t: t.pad(((0, 0), (1, 0), (2, 1))), lambda t: F.pad(t, (2, 1, 1, 0)), x),
    "pad value": (lambda t: t.pad(((1, 0), (0, 0), (0, 2)), value=2.5),
        lambda t: F.pad(t, (0, 2, 0, 0, 1, 0), value=2.5), x),
    "pad -inf": (lambda t: t.pad(1, -math.inf), lambda t: F.pad(t, (1,) * 6, value=-math.inf), x),
    "pad pair": (lambda t: t.pad((1, 2)), lambda t: F.pad(t, (1, 2) * 3), x),
    "pad pair in a tuple": (lambda t: t.pad(((1, 2),)), lambda t: F.pad(t, (1, 2) * 3), x),
    "pad (n,)": (lambda t: t.pad((1,)), lambda t: F.pad(t, (1,) * 6), x),
    "pad ((n,), ...)": (lambda t: t.pad(((1,), (0,), (2,))), lambda t: F.pad(t, (2, 2, 0, 0, 1, 1)), x),
    "pad dict": (lambda t: t.pad({-1: (1, 2), 0: 1}), lambda t: F.pad(t, (1, 2, 0, 0, 1, 1)), x),
    "pad by 0": (lambda t: t.pad(0), lambda t: t.clone(), x),
    "pad 0d": (lambda t: t.pad(1), lambda t: t.clone(), x[0, 0, 0]),
    "pad empty": (lambda t: t.pad(1, 3.0), lambda t: F.pad(t, (1,) * 6, value=3.0), x[:0]),
    "pad view": (lambda t: t.T.pad(1), lambda t: F.pad(t.permute(2, 1, 0), (1,) * 6), x),
    **{
        f"{name} {k}": (lambda t, n=name, k=k: getattr(t, n)(k), lambda t, n=name, k=k: getattr(t, n)(k), x)
        for name in ("tril", "triu") for k in (0, 1, -1, 5, -5)
    },
    "tril empty": (lambda t: t.tril(), lambda t: t.tril(), x[:, :0]),
    **{
        f"diagonal {args}": (lambda t, a=args: t.diagonal(*a), lambda t, a=args: t.diagonal(*a), x)
        for args in ((), (1,), (-1,), (2,), (0, 1, 2), (1, -1, -2), (-1, 2, 0), (3, 1, 2), (-2, 1, 2))
    },
    "diagonal far": (lambda t: t.diagonal(7), lambda t: t.diagonal(3), x),
    "diagonal empty": (lambda t: t.diagonal(), lambda t: t.diagonal(), x[:0]),
    "trace": (lambda t: t.trace(), lambda t: t.trace(), x[0]),
    "trace of three axes": (lambda t: t.trace(1, 1, 2), lambda t: t.diagonal(1, 1, 2).sum(-1), x),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", OPS)
def test_rearranging_matches_pytorch(backend: Backend, name: str, dtype: str) -> None:
    ours, theirs, operand = OPS[name]
    check_against_torch(ours, theirs, operand, dtype=dtype)


def test_values_beside_the_triangle_do_not_matter(backend: Backend) -> None:
    square = np.array([[1.0, math.nan], [2.0, 3.0]])
    check_against_torch(lambda t: t.tril(), lambda t: t.tril(), square)


def test_rearranging_integers_and_bools(backend: Backend) -> None:
    for a in (np.arange(6).reshape(2, 3), np.arange(6).reshape(2, 3) % 2 > 0):
        t = Tensor(a)
        for found, wanted in (
            (t.flip(1), np.flip(a, 1)), (t.roll(1), np.roll(a, 1)), (t.repeat(2, 0), np.repeat(a, 2, 0)),
            (t.tile((2, 1)), np.tile(a, (2, 1))), (t.pad(1, 1), np.pad(a, 1, constant_values=1)),
            (t.tril(), np.tril(a)), (t.diagonal(), np.diagonal(a)),
        ):  # fmt: skip
            assert_close(found, np.ascontiguousarray(wanted))
            assert not found.requires_grad
    assert_close(Tensor(np.arange(6, dtype="int32").reshape(2, 3)).trace(), np.array(4))  # sums are int64


def test_arguments_may_be_arrays_and_empty(backend: Backend) -> None:
    t: Any = Tensor(x)
    assert_close(t.roll([], []), x)
    assert_close(t.roll([], 0), x)
    assert_close(t.roll(1, ()), x)
    assert_close(t.roll(np.array([1, 2]), np.array([0, -1])), np.roll(x, (1, 2), (0, -1)))
    assert_close(t.roll(Tensor(np.array(1)), Tensor(np.array([0, 1]))), np.roll(x, 1, (0, 1)))
    assert_close(t.pad({1: np.array([1, 2])}), np.pad(x, ((0, 0), (1, 2), (0, 0))))


def test_results_share_no_memory_where_nothing_changes(backend: Backend) -> None:
    t = Tensor(x, requires_grad=False)
    for same in (t.roll(0, 0), t.tile(1), t.pad(0), t.repeat(1, 0)):
        same.data *= 2
        assert_close(t, x)


ERRORS: dict[str, tuple[Fn, type[Exception], str]] = {
    "pad negative": (lambda t: t.pad(-1), ValueError,
        r"pad: the widths must not be negative, got -1; cut elements off"),
    "pad one negative": (lambda t: t.pad(((0, 0), (1, -1), (0, 0))), ValueError,
        r"pad: the widths must not be negative"),
    "pad too few": (lambda t: t.pad(((1, 1), (2, 2))), ValueError,
        r"pad: pad_width .* does not fit shape \(2, 3, 4\); give"),
    "pad ragged": (lambda t: t.pad(((1, 1), (2,), (0, 0))), ValueError, r"pad: pad_width .* does not fit shape"),
    "pad floats": (lambda t: t.pad(1.5), TypeError, r"pad: the widths must be ints, got 1.5"),
    "pad bools": (lambda t: t.pad(True), TypeError, r"pad: the widths must be ints, got True"),
    "pad axis": (lambda t: t.pad({3: 1}), IndexError, r"pad: axis 3 is out of range"),
    "pad mode": (lambda t: t.pad(1, constant_values=1), TypeError,
        r"pad: has no argument constant_values=; write value="),
    "pad value": (lambda t: t.pad(1, "a"), TypeError, r"pad: value must be a real number, got 'a'"),
    "pad value of integers": (
        lambda t: t.astype("int64").pad(1, 0.5), TypeError, r"pad: a tensor of dtype int64 cannot hold the value 0.5",
    ),
    "repeat negative": (lambda t: t.repeat(-1, 0), ValueError, r"repeat: repeats \[-1\] must be an int >= 0"),
    "repeat too many": (lambda t: t.repeat([1, 2, 3], 0), ValueError,
        r"repeat: repeats .* of the 2 elements along axis 0"),
    "repeat float": (lambda t: t.repeat(1.5, 0), TypeError, r"repeat: repeats must be an int or several, got 1.5"),
    "repeat axis": (lambda t: t.repeat(1, 3), IndexError, r"repeat: axis 3 is out of range"),
    "tile negative": (lambda t: t.tile(-1), ValueError, r"tile: reps \[-1\] must not be negative"),
    "tile float": (lambda t: t.tile(1.5), TypeError, r"tile: reps must be an int or several"),
    "roll float": (lambda t: t.roll(1.5, 0), TypeError, r"roll: shift must be an int or several"),
    "roll lengths": (lambda t: t.roll((1, 2), (0, 1, 2)), ValueError, r"roll: shift .* and axis .* must have the same"),
    "roll axis": (lambda t: t.roll(1, 3), IndexError, r"roll: axis 3 is out of range"),
    "flip axis": (lambda t: t.flip(3), IndexError, r"flip: axis 3 is out of range"),
    "flip dims": (lambda t: t.flip(dims=(0,)), TypeError, r"flip: has no argument dims=; write axis="),
    "tril 1d": (lambda t: t[0, 0].tril(), ValueError,
        r"tril: needs a matrix, or several \(\.\.\., n, m\), got shape \(4,\)"),
    "triu k": (lambda t: t.triu(0.5), TypeError, r"triu: k must be an int, got 0.5"),
    "diagonal 1d": (lambda t: t[0, 0].diagonal(), ValueError, r"diagonal: needs at least 2 axes, got shape \(4,\)"),
    "diagonal axes": (lambda t: t.diagonal(0, 1, -2), ValueError, r"diagonal: axis1=1 and axis2=-2 are the same axis"),
    "diagonal axis": (lambda t: t.diagonal(0, 0, 3), IndexError, r"diagonal: axis 3 is out of range"),
    "trace offset": (lambda t: t.trace(1.0), TypeError, r"trace: offset must be an int, got 1.0"),
    "trace 1d": (lambda t: t[0, 0].trace(), ValueError, r"trace: needs at least 2 axes"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_invalid_arguments_raise(backend: Backend, name: str) -> None:
    call, kind, message = ERRORS[name]
    with pytest.raises(kind, match="^" + message):
        call(Tensor(x))
