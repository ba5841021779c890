"""einsum, tensordot and outer against NumPy and PyTorch: every form of the subscripts, broadcasting, dtypes, errors."""

import builtins
import random
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch

from russellgrad import Tensor, einsum, outer, tensordot, use_backend
from russellgrad.backend import Backend
from russellgrad.ops import einsum as module
from tests.helpers import assert_close, check_against_torch, once, rng

Shapes = tuple[tuple[int, ...], ...]

# subscripts: shapes of the operands. PyTorch computes these, too.
CASES: list[tuple[str, Shapes]] = [
    ("ij,jk->ik", ((2, 3), (3, 4))), ("ij,jk", ((2, 3), (3, 4))), (" i j , j k -> k i ", ((2, 3), (3, 4))),
    ("ij->ji", ((2, 3),)), ("ba", ((2, 3),)), ("ij", ((2, 3),)), ("ij->", ((2, 3),)), ("ij->j", ((2, 3),)),
    ("ii", ((3, 3),)), ("ii->i", ((3, 3),)), ("iij->j", ((3, 3, 2),)), ("iij->ij", ((3, 3, 2),)),
    ("iijj->ij", ((3, 3, 2, 2),)), ("iii->i", ((2, 2, 2),)), ("iijj", ((3, 3, 2, 2),)),
    ("i,i", ((3,), (3,))), ("i,j", ((2,), (3,))), ("i,j->ji", ((2,), (3,))), ("ij,ij->ij", ((2, 3), (2, 3))),
    ("ij,ij->i", ((2, 3), (2, 3))), ("ij,kl->", ((2, 3), (4, 5))), ("ij,i->j", ((2, 3), (2,))),
    ("bij,bjk->bik", ((2, 3, 4), (2, 4, 5))), ("bij,bkj->bki", ((2, 3, 4), (2, 5, 4))),
    ("bhid,bhjd->bhij", ((2, 2, 3, 4), (2, 2, 5, 4))), ("...ij,...jk->...ik", ((5, 1, 2, 3), (4, 3, 4))),
    ("...ij,jk", ((5, 2, 3), (3, 4))), ("i...->...", ((2, 3, 4),)), ("...", ((2, 3),)), ("...,...", ((2, 3), (3,))),
    ("...i,...i->...", ((2, 1, 3), (4, 3))), ("i...,...i->...i", ((2, 3), (3, 2))), ("...ij->...ji", ((3, 4),)),
    ("Ab,bA->", ((2, 3), (3, 2))), ("aB,cB", ((2, 3), (4, 3))),
    ("ij,jk,kl->il", ((2, 3), (3, 4), (4, 5))), ("i,j,k->kji", ((2,), (3,), (4,))),
    ("ab,bc,ca->abc", ((2, 3), (3, 4), (4, 2))), ("bij,bjk,bkl,bl->bi", ((2, 3, 4), (2, 4, 5), (2, 5, 6), (2, 6))),
    ("i,i,i->", ((3,), (3,), (3,))), ("ij,j,i,ij->j", ((2, 3), (3,), (2,), (2, 3))),
    ("ij,ij->ij", ((1, 3), (2, 3))), ("ij,ij->i", ((1, 3), (2, 1))), ("ij,jk->ik", ((2, 1), (3, 4))),
    ("ij,j->ij", ((1, 2), (1,))), ("ij,jk->ik", ((2, 0), (0, 3))), ("ij->i", ((2, 0),)), ("ij,jk->ik",
        ((0, 2), (2, 3))),
    (",", ((), ())), (",i->i", ((), (3,))), ("->", ((),)),
]  # fmt: skip


@pytest.mark.parametrize("planned", [True, False])
@pytest.mark.parametrize(("subscripts", "shapes"), CASES)
def test_einsum_matches_pytorch(
    backend: Backend, subscripts: str, shapes: Shapes, planned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_opt_einsum(monkeypatch, not planned)
    operands = [rng(i).normal(size=shape) for i, shape in enumerate(shapes)]
    for dtype in ("float64", "float32"):
        check_against_torch(
            lambda *t: einsum(subscripts, *t), lambda *t: torch.einsum(subscripts, *t), *operands, dtype=dtype
        )
    assert_close(einsum(subscripts, *map(Tensor, operands)), np.einsum(subscripts, *operands))


def without_opt_einsum(monkeypatch: pytest.MonkeyPatch, missing: bool = True) -> None:
    module._order.cache_clear()
    if missing:
        monkeypatch.setattr(module, "find_spec", lambda name: None)


@pytest.mark.parametrize("seed", range(20))
def test_random_subscripts_match_numpy(backend: Backend, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    without_opt_einsum(monkeypatch, seed % 2 == 0)
    draw = random.Random(seed)
    for _ in range(10):
        sizes = {letter: draw.randint(1, 3) for letter in "abcde"}
        names = ["".join(draw.choices("abcde", k=draw.randint(0, 3))) for _ in range(draw.randint(1, 4))]
        used = sorted(set("".join(names)))
        output = "->" + "".join(draw.sample(used, draw.randint(0, len(used)))) if draw.random() < 0.7 else ""
        ones = [{letter for letter in name if draw.random() < 0.15} for name in names]  # these are broadcast
        operands = [
            rng(i).normal(size=[1 if c in one else sizes[c] for c in name])
            for i, (name, one) in enumerate(zip(names, ones, strict=True))
        ]
        subscripts = ",".join(names) + output
        wanted = np.asarray(np.einsum(subscripts, *operands))
        assert_close(einsum(subscripts, *map(Tensor, operands)), wanted, what=subscripts)


@once
def test_the_order_of_products_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """From left to right, a product of matrices with a vector takes matrix products; opt_einsum's takes none."""
    pytest.importorskip("opt_einsum")
    shapes = (200, 300), (300, 400), (400,)
    without_opt_einsum(monkeypatch, False)
    assert list(module._order(("ij", "jk", "k"), "i", shapes)) == [(1, 2), (0, 1)]
    without_opt_einsum(monkeypatch)
    assert list(module._order(("ij", "jk", "k"), "i", shapes)) == [(0, 1), (0, 1)]
    assert list(module._order(("a", "b", "c", "d"), "", ((1,),) * 4)) == [(0, 1), (0, 2), (0, 1)]


@once
def test_opt_einsum_is_imported_only_for_three_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *args: Any, real: Any = builtins.__import__, **kwargs: Any) -> Any:
        assert not name.startswith("opt_einsum")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert einsum("i,i", Tensor([1.0, 2.0]), Tensor([3.0, 4.0])).item() == 11.0


def test_operands_may_be_arrays_and_views(backend: Backend) -> None:
    a, b = rng(0).normal(size=(2, 3)), rng(1).normal(size=(4, 3))
    check_against_torch(
        lambda t: einsum("ij,jk->ik", t.T[::-1], t), lambda t: torch.einsum("ij,jk->ik", t.T.flip(0), t), a
    )
    check_against_torch(
        lambda t: einsum("ji,ki->jk", t.T.T, backend.asarray(b)),
        lambda t: torch.einsum("ji,ki->jk", t, torch.tensor(b)),
        a,
    )
    check_against_torch(lambda t: einsum("ij,ij->i", t, t), lambda t: (t * t).sum(1), a)
    x = Tensor(a)
    assert einsum("ij", x) is not x


def test_dtypes_of_products(backend: Backend) -> None:
    whole, flags = np.array([[1, 2], [3, 4]], "int32"), np.array([True, True])
    assert_close(einsum("ij,j->i", Tensor(whole), Tensor(flags)), np.array([3, 7]))
    assert_close(einsum("i,i", Tensor(flags), Tensor(flags)), np.array(2))
    assert_close(einsum("ij->j", Tensor(whole)), np.array([4, 6]))
    assert_close(tensordot(Tensor(whole), Tensor(flags), 1), np.array([3, 7]))
    single = Tensor([1.0, 2.0], dtype="float32")
    assert einsum("i,i", single, Tensor(flags)).dtype == np.float32
    assert einsum("i,i", single, Tensor([1.0, 1.0])).dtype == np.float64
    assert not einsum("ij->j", Tensor(whole)).requires_grad


ERRORS: dict[str, tuple[Callable[[Tensor, Tensor], Any], type[Exception], str]] = {
    "lengths": (
        lambda a, b: einsum("ij,jk->ik", a, b), ValueError,
        r"letter 'j' of 'ij,jk->ik' has length 3 in operand 0 of shape \(2, 3\) and 4 in operand 1 of shape \(4, 5\)",
    ),
    "lengths in one operand": (
        lambda a, b: einsum("ii", a), ValueError, r"letter 'i' of 'ii' has length 2 in operand 0 .* and 3 in operand 0",
    ),
    "a length of 1 in one operand": (
        lambda a, b: einsum("jj,ij->i", a[:1], a), ValueError, r"letter 'j' .* has length 1 in operand 0 .* and 3 in",
    ),
    "lengths of the ellipsis": (
        lambda a, b: einsum("...,...", a, b), ValueError, r"an axis of '\.\.\.' of .* has length 2 in operand 0",
    ),
    "too many letters": (
        lambda a, b: einsum("ijk", a), ValueError,
            r"operand 0 of shape \(2, 3\) has 2 axes, and 'ijk' of 'ijk' names 3",
    ),
    "too few letters": (lambda a, b: einsum("ij,j", a, b), ValueError,
        r"operand 1 of shape \(4, 5\) has 2 axes, and 'j'"),
    "too few axes for the ellipsis": (lambda a, b: einsum("...ijk", a), ValueError,
        r"operand 0 .* '\.\.\.ijk' .* names 3"),
    "unknown output": (lambda a, b: einsum("ij->iz", a), ValueError,
        r"the output of 'ij->iz' has the letter 'z', which no"),
    "repeated output": (lambda a, b: einsum("ij->ii", a), ValueError,
        r"the output of 'ij->ii' has the letter 'i' twice"),
    "no ellipsis in the output": (lambda a, b: einsum("...j->j", a), ValueError, r"the output of .* needs '\.\.\.'"),
    "two ellipses": (lambda a, b: einsum("...i...", a), ValueError, r"'\.\.\.' is there twice in operand 0"),
    "a digit": (lambda a, b: einsum("i1", a), ValueError, r"'1' in 'i1' is not valid there; write letters"),
    "a dot": (lambda a, b: einsum("i.j", a), ValueError, r"'\.' in 'i\.j' is not valid"),
    "a Greek letter": (lambda a, b: einsum("i\u03b1", a), ValueError, r"'\u03b1' in"),
    "two arrows": (lambda a, b: einsum("ij->i->j", a), ValueError, r"'-' in 'ij->i->j' is not valid"),
    "a comma in the output": (lambda a, b: einsum("ij->i,j", a), ValueError, r"',' in 'ij->i,j' is not valid"),
    "one operand": (lambda a, b: einsum("ij,jk", a), ValueError, r"'ij,jk' is for 2 operands, got 1"),
    "two operands": (lambda a, b: einsum("ij", a, b), ValueError, r"'ij' is for 1 operands, got 2"),
    "no operand": (lambda a, b: einsum("ij"), TypeError, r"give at least one Tensor"),
    "no subscripts": (lambda a, b: einsum(cast(Any, a), [0, 1]), TypeError,
        r"the subscripts must be a string, such as 'ij,jk->ik'"),
    "a list": (lambda a, b: einsum("ij,jk", a, [[1.0]]), TypeError,
        r"cannot take a builtins\.list with a tensor of backend"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_invalid_subscripts_name_the_letter(backend: Backend, name: str) -> None:
    call, kind, message = ERRORS[name]
    with pytest.raises(kind, match="^einsum: " + message):
        call(Tensor(np.ones((2, 3))), Tensor(np.ones((4, 5))))


@once
def test_operands_of_two_backends_raise() -> None:
    with use_backend("strict"):
        other = Tensor([1.0])
    for call in (lambda: einsum("i,i", Tensor([1.0]), other), lambda: outer(Tensor([1.0]), other)):
        with pytest.raises(TypeError, match=r"^(einsum|outer): operands live on"):
            call()


# --- tensordot and outer


@pytest.mark.parametrize("axes", [0, 1, 2, ([0], [1]), ([1, 2], [0, 1]), ([-1, 1], [1, 0]), ((), ())])
def test_tensordot_matches_pytorch(backend: Backend, axes: Any) -> None:
    a, b = rng(0).normal(size=(2, 3, 2)), rng(1).normal(size=(3, 2, 2) if axes != 1 else (2, 2))
    wanted = axes if isinstance(axes, int) else ([list(part) for part in axes])
    for dtype in ("float64", "float32"):
        check_against_torch(
            lambda s, t: tensordot(s, t, axes), lambda s, t: torch.tensordot(s, t, wanted), a, b, dtype=dtype
        )
    assert_close(tensordot(Tensor(a), Tensor(b), axes), np.tensordot(a, b, axes))


def test_tensordot_of_two_single_axes_and_empty_tensors(backend: Backend) -> None:
    a, b = rng(0).normal(size=(2, 3)), rng(1).normal(size=(4, 2))
    assert_close(tensordot(Tensor(a), Tensor(b), (0, 1)), np.tensordot(a, b, (0, 1)))
    check_against_torch(lambda s, t: tensordot(s, t), lambda s, t: torch.tensordot(s, t), a[:, :0], a[:, :0])
    check_against_torch(lambda s, t: tensordot(s, t, 0), lambda s, t: s * t, a, np.array(2.0))


def test_invalid_tensordot_raises(backend: Backend) -> None:
    a, b = Tensor(np.ones((2, 3))), Tensor(np.ones((4, 5)))
    with pytest.raises(
        ValueError, match=r"^tensordot: axes \(1,\) of shape \(2, 3\) and axes \(0,\) of shape \(4, 5\) must"
    ):
        tensordot(a, b, 1)
    with pytest.raises(ValueError, match=r"^tensordot: axes \(0, 1\) .* must have equal"):
        tensordot(a, b, ([0, 1], [0]))
    for axes in (3, -1):
        with pytest.raises(ValueError, match=rf"^tensordot: axes={axes} of shapes"):
            tensordot(a, b, axes)
    with pytest.raises(IndexError, match=r"^tensordot: axis 2 is out of range"):
        tensordot(a, b, ([2], [0]))
    for wrong in (1.0, True, "1", ([0],)):
        with pytest.raises(TypeError, match=r"^tensordot: axes must be an int or two lists"):
            tensordot(a, b, wrong)  # type: ignore[arg-type]


def test_outer_flattens(backend: Backend) -> None:
    a, b = rng(0).normal(size=(2, 3)), rng(1).normal(size=4)
    for dtype in ("float64", "float32"):
        check_against_torch(outer, lambda s, t: torch.outer(s.ravel(), t), a, b, dtype=dtype)
    check_against_torch(lambda s: outer(s, 2.0), lambda s: s.reshape(6, 1) * 2.0, a)
    assert_close(outer(Tensor(np.array([1, 2])), Tensor(np.array(3))), np.array([[3], [6]]))
    with pytest.raises(TypeError, match=r"^outer: cannot take a builtins.list"):
        outer(Tensor(b), [1.0])
    with pytest.raises(TypeError, match=r"^outer: give at least one Tensor, .* got builtins.float, builtins.int"):
        outer(1.0, 2)
