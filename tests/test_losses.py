"""The losses and the accuracy, against PyTorch."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own abbreviation

import russellgrad as rg
from russellgrad import Tensor
from russellgrad.backend import Backend
from tests.helpers import Array, assert_close, check_against_torch, rng

Fn = Callable[..., Any]
DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])
SHAPES = pytest.mark.parametrize("shape", [(), (4,), (2, 3, 4)])
BINARY = rg.binary_cross_entropy_with_logits
F_BINARY = F.binary_cross_entropy_with_logits
inf = math.inf


def normal(*shape: int, seed: int = 0) -> Array:
    return rng(seed).normal(size=shape)


def constant(array: Any) -> Tensor:
    return Tensor(array, requires_grad=False)


def probabilities(*shape: int) -> Array:
    drawn = rng(5).random(shape)
    return drawn / drawn.sum(-1, keepdims=True) if shape else drawn


# --- Losses of x and a target of its shape

PAIRS: dict[str, tuple[Fn, Fn]] = {
    "mse_loss": (rg.mse_loss, F.mse_loss),
    "l1_loss": (rg.l1_loss, F.l1_loss),
    "binary_cross_entropy_with_logits": (BINARY, F_BINARY),
}


@DTYPES
@SHAPES
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("loss", PAIRS)
def test_losses(backend: Backend, loss: str, reduction: str, shape: tuple[int, ...], dtype: str) -> None:
    ours, theirs = PAIRS[loss]
    check_against_torch(
        lambda x, t: ours(x, t, reduction=reduction),
        lambda x, t: theirs(x, t, reduction=reduction),
        3 * normal(*shape), rng(1).random(shape), dtype=dtype,
    )  # fmt: skip


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
@pytest.mark.parametrize("loss", [*PAIRS, "kl_div"])
def test_gradients_of_one_operand(backend: Backend, loss: str, needs: tuple[bool, bool]) -> None:
    ours, theirs = {**PAIRS, "kl_div": (rg.kl_div, F.kl_div)}[loss]
    check_against_torch(
        lambda x, t: ours(x, t, reduction="sum"), lambda x, t: theirs(x, t, reduction="sum"),
        normal(2, 3), rng(1).random((2, 3)), needs=needs,
    )  # fmt: skip


@pytest.mark.parametrize("loss", PAIRS)
def test_losses_of_a_tensor_with_itself_and_of_views(backend: Backend, loss: str) -> None:
    ours, theirs = PAIRS[loss]
    check_against_torch(lambda x: ours(x, x), lambda x: theirs(x, x), normal(2, 3))
    check_against_torch(
        lambda x, t: ours(x.T, t[::-1]), lambda x, t: theirs(x.mT, t.flip(0)), normal(3, 2), normal(2, 3)
    )


@pytest.mark.parametrize("loss", PAIRS)
def test_targets_may_be_arrays_of_the_backend_integers_or_bools(backend: Backend, loss: str) -> None:
    ours, theirs = PAIRS[loss]
    x = normal(2, 2)
    for given in (np.array([[0, 1], [1, 0]]), np.array([[False, True], [True, True]])):
        expected = theirs(torch.tensor(x), torch.tensor(given, dtype=torch.float64))
        assert_close(ours(Tensor(x), Tensor(given)), expected)
        assert_close(ours(Tensor(x), Tensor(given).data), expected)


def test_the_loss_has_the_dtype_of_x(backend: Backend) -> None:
    x, other = Tensor(np.zeros(2, np.float32)), Tensor(np.ones(2))
    for loss in (rg.mse_loss, rg.l1_loss, BINARY, rg.kl_div):
        assert loss(x, other).dtype == "float32"
    assert BINARY(x, other, other, pos_weight=other).dtype == "float32"
    assert rg.cross_entropy(x, 1, weight=other).dtype == "float32"


def test_l1_loss_at_equal_elements_and_ties(backend: Backend) -> None:
    x = np.array([1.0, -2.0, 0.0, 3.0])
    check_against_torch(rg.l1_loss, F.l1_loss, x, np.array([1.0, -2.0, -0.0, 1.0]))


@DTYPES
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("pos_weight", [None, (), (3,), (2, 1), (2, 3)])
@pytest.mark.parametrize("weight", [None, (3,), (2, 3)])
def test_binary_cross_entropy_with_weights(
    backend: Backend, weight: Any, pos_weight: Any, reduction: str, dtype: str
) -> None:
    given = [rng(i).random(shape) + 0.5 for i, shape in enumerate((weight, pos_weight)) if shape is not None]

    def named(loss: Fn) -> Fn:
        def call(x: Any, target: Any, *weights: Any) -> Any:
            names = [n for n, shape in (("weight", weight), ("pos_weight", pos_weight)) if shape is not None]
            return loss(x, target, reduction=reduction, **dict(zip(names, weights, strict=True)))

        return call

    check_against_torch(
        named(BINARY),
        named(F_BINARY),
        normal(2, 3),
        rng(1).random((2, 3)),
        *given,
        dtype=dtype,
        needs=[True, True, False, False][: 2 + len(given)],
    )


@DTYPES
def test_binary_cross_entropy_at_targets_0_and_1_and_large_logits(backend: Backend, dtype: str) -> None:
    x = np.array([3.0, 3.0, -3.0, -3.0, 25.0, -25.0, 800.0, 800.0, -800.0, -800.0, 0.0])
    target = np.array([0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    check_against_torch(
        lambda x, t: BINARY(x, t, reduction="none"), lambda x, t: F_BINARY(x, t, reduction="none"), x, target,
        dtype=dtype,
    )  # fmt: skip


def test_binary_cross_entropy_of_infinite_logits(backend: Backend) -> None:
    """PyTorch's losses are nan where ours are 0."""
    x, target = Tensor([inf, -inf, inf, -inf]), constant([1.0, 0.0, 0.0, 1.0])
    losses = BINARY(x, target, reduction="none")
    assert losses.tolist() == [0.0, 0.0, inf, inf]
    losses.sum().backward()
    assert_close(x.grad, np.array([0.0, 0.0, 1.0, -1.0]))


# --- kl_div


@DTYPES
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "batchmean"])
@pytest.mark.parametrize("shape", [(4,), (2, 3, 4)])
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")  # of PyTorch
def test_kl_div(backend: Backend, shape: tuple[int, ...], reduction: str, dtype: str) -> None:
    x, target = np.log(probabilities(*shape)), probabilities(*shape[::-1]).T
    for log_target, given in ((False, target), (True, np.log(target))):
        check_against_torch(
            lambda x, t, log=log_target: rg.kl_div(x, t, reduction, log),
            lambda x, t, log=log_target: F.kl_div(x, t, reduction=reduction, log_target=log),
            x, given, dtype=dtype,
        )  # fmt: skip


def test_kl_div_where_the_target_is_0(backend: Backend) -> None:
    x, target = np.log([0.5, 0.25, 0.25]), np.array([0.0, 0.4, 0.6])
    check_against_torch(
        lambda x: rg.kl_div(x, constant(target), "none"),
        lambda x: F.kl_div(x, torch.tensor(target), reduction="none"), x,
    )  # fmt: skip
    ours, t = Tensor(x), Tensor(target)
    rg.kl_div(ours, t, "sum").backward()
    assert t.grad is not None
    assert_close(Tensor(t.grad).numpy()[0], -x[0])  # PyTorch's is nan
    assert_close(Tensor(t.grad).numpy()[1:], (np.log(target[1:]) + 1 - x[1:]))


def test_kl_div_of_probabilities_that_are_0(backend: Backend) -> None:
    """In x, in the target, and in both. PyTorch's loss is nan if both are."""
    x, target = Tensor([-inf, -inf, math.log(0.5)]), Tensor([0.0, 0.5, 0.5])
    assert rg.kl_div(x, target, "none").tolist() == [0.0, inf, 0.0]
    log_target = Tensor([-inf, math.log(0.5), math.log(0.5)])
    losses = rg.kl_div(x, log_target, "none", log_target=True)
    assert losses.tolist() == [0.0, inf, 0.0]
    x, log_target = Tensor([-inf, math.log(0.5)]), Tensor([-inf, math.log(0.5)])
    rg.kl_div(x, log_target, "sum", log_target=True).backward()
    assert_close(x.grad, np.array([0.0, -0.5]))
    assert_close(log_target.grad, np.array([0.0, 0.5]))
    assert math.isnan(rg.kl_div(Tensor([math.nan]), constant([-inf]), log_target=True).item())
    assert math.isnan(rg.kl_div(Tensor([math.nan]), constant([0.0])).item())


# --- cross_entropy

C = 5
IDS = rng(1).integers(0, C, size=(2, 3))


def theirs_of(ids: Array, ignore: int | None = None, **given: Any) -> Fn:
    """PyTorch's cross_entropy, with the classes on the last axis."""

    def call(x: torch.Tensor, *weight: torch.Tensor) -> torch.Tensor:
        options = {
            **given,
            **({"weight": weight[0]} if weight else {}),
            **({} if ignore is None else {"ignore_index": ignore}),
        }
        return F.cross_entropy(x.reshape(-1, x.shape[-1]), torch.tensor(ids).reshape(-1), **options).reshape(
            ids.shape if given.get("reduction") == "none" else ()
        )

    return call


@DTYPES
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore", [None, -100, 2])
@pytest.mark.parametrize("shape", [(2, 3), (3,), ()])
def test_cross_entropy(
    backend: Backend, shape: tuple[int, ...], ignore: int | None, weighted: bool, smoothing: float, reduction: str,
    dtype: str,
) -> None:  # fmt: skip
    ids = IDS[(0,) * (2 - len(shape))].copy() if shape else np.array(3)
    assert ids.shape == shape
    if ignore is not None and shape:
        ids[..., 1] = ignore
    weight = [rng(3).random(C) + 0.5] if weighted else []
    for given in (ids, Tensor(ids), ids.tolist()):
        check_against_torch(
            lambda x, *w, given=given: rg.cross_entropy(
                x, given, ignore, weight=w[0] if w else None, reduction=reduction, label_smoothing=smoothing
            ),
            theirs_of(ids, ignore, reduction=reduction, label_smoothing=smoothing),
            normal(*shape, C), *weight, needs=[True, False][: 1 + weighted], dtype=dtype,
        )  # fmt: skip


@DTYPES
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_of_probabilities(
    backend: Backend, weighted: bool, smoothing: float, reduction: str, dtype: str
) -> None:
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}

    def ours(x: Tensor, target: Tensor, *weight: Tensor) -> Tensor:
        return rg.cross_entropy(x, target, weight=weight[0] if weight else None, **options)

    def theirs(x: torch.Tensor, target: torch.Tensor, *weight: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(x.movedim(-1, 1), target.movedim(-1, 1), weight[0] if weight else None, **options)

    weight = [rng(3).random(C) + 0.5] if weighted else []
    needs = [True, True, False][: 2 + weighted]
    check_against_torch(ours, theirs, normal(2, 3, C), probabilities(2, 3, C), *weight, needs=needs, dtype=dtype)


def test_cross_entropy_of_probabilities_that_are_an_array_of_the_backend(backend: Backend) -> None:
    x, target = Tensor(normal(2, C)), constant(probabilities(2, C))
    assert_close(rg.cross_entropy(x, target.data), rg.cross_entropy(x, target))


def test_cross_entropy_of_one_hot_probabilities_and_infinite_logits(backend: Backend) -> None:
    """A class with probability 0 does not count, as with ids. (PyTorch's loss is nan.)"""
    logits = np.array([[0.5, -inf, 1.0], [-inf, -inf, 2.0]])
    x, y = Tensor(logits), Tensor(logits)
    expected, found = rg.cross_entropy(x, [0, 2]), rg.cross_entropy(y, constant([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    assert_close(found, expected)
    found.backward()
    expected.backward()
    assert_close(y.grad, x.grad)
    check_against_torch(
        lambda x: rg.cross_entropy(x, [0, 2], reduction="none"),
        lambda x: F.cross_entropy(x, torch.tensor([0, 2]), reduction="none"), logits,
    )  # fmt: skip
    assert rg.cross_entropy(Tensor(logits), [0, 2], label_smoothing=0.1).item() == inf  # as PyTorch
    assert rg.cross_entropy(Tensor([[0.0, -inf]]), [1], reduction="sum").item() == inf


def test_binary_cross_entropy_weights_may_track_gradients(backend: Backend) -> None:
    """PyTorch has no gradients of the weights: compared with the formula."""

    def theirs(x: torch.Tensor, t: torch.Tensor, w: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        return -(w * (p * t * F.logsigmoid(x) + (1 - t) * F.logsigmoid(-x))).mean()

    weights = rng(3).random(3), rng(4).random((2, 1))
    check_against_torch(
        lambda x, t, w, p: BINARY(x, t, w, pos_weight=p), theirs, normal(2, 3), rng(1).random((2, 3)), *weights
    )


def test_cross_entropy_weight_may_track_gradients(backend: Backend) -> None:
    """PyTorch has no gradient of the weight: compared with the formula."""
    logits, weight = normal(6, C), rng(3).random(C) + 0.5
    picked = torch.tensor(IDS).reshape(-1)

    def theirs(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        losses = -w[picked] * x.log_softmax(-1)[torch.arange(6), picked]
        return losses.sum() / w[picked].sum()

    check_against_torch(lambda x, w: rg.cross_entropy(x, IDS.reshape(-1), weight=w), theirs, logits, weight)


def test_cross_entropy_without_ids_that_count(backend: Backend) -> None:
    logits = Tensor(normal(2, C))
    assert rg.cross_entropy(logits, [3, 3], 3, reduction="sum").item() == 0
    assert rg.cross_entropy(logits, [3, 3], 3, reduction="none").tolist() == [0, 0]
    assert rg.cross_entropy(logits[:0], np.zeros(0, np.int64), reduction="sum").item() == 0
    assert rg.cross_entropy(logits[:0], np.zeros(0, np.int64), reduction="none").shape == (0,)
    with pytest.raises(ValueError, match=r"^cross_entropy: all 2 ids are padding or ignored; at least one must be"):
        rg.cross_entropy(logits, [3, 3], 3, label_smoothing=0.1)
    with pytest.raises(ValueError, match=r"^cross_entropy: the logits \(0, 5\) have no rows"):
        rg.cross_entropy(logits[:0], constant(np.zeros((0, C))))


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # of PyTorch itself
def test_cross_entropy_within_transforms(backend: Backend) -> None:
    x, target, weight = normal(2, C), probabilities(2, C), rng(3).random(C)
    ids = np.array([1, 3])
    found = rg.hessian(lambda x: rg.cross_entropy(x, Tensor(ids), weight=Tensor(weight), label_smoothing=0.2))(
        Tensor(x)
    )
    expected = torch.func.hessian(
        lambda x: F.cross_entropy(x, torch.tensor(ids), torch.tensor(weight), label_smoothing=0.2)
    )(torch.tensor(x))
    assert_close(found, expected)
    of_target = rg.grad(lambda x, t: rg.cross_entropy(x, t), argnums=1)(Tensor(x), Tensor(target))
    assert_close(of_target, -torch.tensor(x).log_softmax(-1) / 2)


# --- Errors

OTHER = constant(np.zeros((2, 1)))
X = np.zeros((2, 3))


def test_a_target_that_would_be_broadcast_is_refused(backend: Backend) -> None:
    x = Tensor(X)
    for loss in (rg.mse_loss, rg.l1_loss, BINARY, rg.kl_div):
        for shape in ((2, 1), (3,), (), (1, 2, 3)):
            name = loss.__name__
            with pytest.raises(
                ValueError, match=rf"^{name}: x \(2, 3\) and target \([\d, ]*\) must have the same shape"
            ):
                loss(x, Tensor(np.zeros(shape)))


@pytest.mark.parametrize("bad", ["avg", "batchmean", None, 0, ""])
def test_reductions_that_a_loss_does_not_have(backend: Backend, bad: Any) -> None:
    x = Tensor(X)
    calls: dict[str, Fn] = {loss.__name__: loss for loss in (rg.mse_loss, rg.l1_loss, BINARY, rg.kl_div)}
    for name, loss in calls.items():
        if (name, bad) != ("kl_div", "batchmean"):
            with pytest.raises(ValueError, match=rf"^{name}: reduction must be one of 'mean', 'sum', 'none'.*, got "):
                loss(x, x, reduction=bad)
    with pytest.raises(ValueError, match=r"^cross_entropy: reduction must be one of 'mean', 'sum', 'none', got "):
        rg.cross_entropy(x, [0, 1], reduction=bad)


def test_the_mean_of_no_elements_is_refused_and_its_sum_is_0(backend: Backend) -> None:
    x = Tensor(np.zeros((0, 3)))
    for loss in (rg.mse_loss, rg.l1_loss, BINARY, rg.kl_div):
        with pytest.raises(ValueError, match=rf"^{loss.__name__}: x \(0, 3\) has no elements"):
            loss(x, x)
        assert loss(x, x, reduction="sum").item() == 0
        assert loss(x, x, reduction="none").shape == (0, 3)
    with pytest.raises(ValueError, match=r"^kl_div: x is 0-d; reduction='batchmean' needs a first axis"):
        rg.kl_div(Tensor(0.0), Tensor(1.0), "batchmean")


@pytest.mark.parametrize("bad", [[[0.0] * 3] * 2, 1.0, None, "x", torch.zeros(2, 3)])
def test_operands_that_are_no_tensors(backend: Backend, bad: Any) -> None:
    x = Tensor(X)
    if backend.is_array(bad):
        bad = "x"
    for loss in (rg.mse_loss, rg.l1_loss, BINARY, rg.kl_div):
        with pytest.raises(TypeError, match=rf"^{loss.__name__}: the target must be a Tensor or an array of backend"):
            loss(x, bad)
        with pytest.raises(TypeError, match=rf"^{loss.__name__}: x must be a float Tensor, got a"):
            loss(bad, x)
    with pytest.raises(TypeError, match=r"^mse_loss: needs a float tensor, got dtype int64"):
        rg.mse_loss(Tensor([1, 2], dtype="int64"), Tensor([1.0, 2.0]))
    with pytest.raises(TypeError, match=r"^kl_div: log_target must be True or False, got 1"):
        rg.kl_div(x, x, log_target=1)  # type: ignore[arg-type]


def test_weights_that_do_not_fit(backend: Backend) -> None:
    x = Tensor(X)
    for name in ("weight", "pos_weight"):
        given: dict[str, Any] = {name: Tensor(np.zeros((2, 2, 3)))}
        message = rf"^binary_cross_entropy_with_logits: {name} \(2, 2, 3\) does not broadcast to x's shape \(2, 3\)"
        with pytest.raises(ValueError, match=message):
            BINARY(x, x, **given)
    for shape in ((2,), (1,), (), (1, 3)):
        with pytest.raises(
            ValueError, match=r"^cross_entropy: weight \(.*\) must have one element for each class, \(3,\)"
        ):
            rg.cross_entropy(x, [0, 1], weight=Tensor(np.ones(shape)))
    with pytest.raises(TypeError, match=r"^cross_entropy: weight must be a Tensor or an array of backend"):
        rg.cross_entropy(x, [0, 1], weight=[1.0, 2.0, 3.0])


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan, inf, "0.1", None, True, Tensor([0.1, 0.2])])
def test_label_smoothing_is_in_0_to_1(backend: Backend, bad: Any) -> None:
    with pytest.raises(ValueError, match=r"^cross_entropy: label_smoothing must be a number in \[0, 1\], got "):
        rg.cross_entropy(Tensor(X), [0, 1], label_smoothing=bad)


def test_cross_entropy_errors(backend: Backend) -> None:
    logits = Tensor(normal(2, C))
    smooth: dict[str, Any] = {"label_smoothing": 0.1}
    for wrong, bad in (([0, -1], -1), ([5, 0], 5), ([-100, 0], -100)):
        with pytest.raises(IndexError, match=rf"^cross_entropy: id {bad} is out of range; ids must be in \[0, 5\)"):
            rg.cross_entropy(logits, wrong, **smooth)
    with pytest.raises(IndexError, match=r"^cross_entropy: id -1 is out of range"):
        rg.cross_entropy(logits, [-100, -1], ignore_index=-100, **smooth)
    with pytest.raises(ValueError, match=r"^cross_entropy: logits \(2, 5\) need ids of shape \(2,\), got \(3,\)"):
        rg.cross_entropy(logits, [0, 1, 2], **smooth)
    with pytest.raises(ValueError, match=r"^cross_entropy: logits are 0-d"):
        rg.cross_entropy(Tensor(1.0), 0, **smooth)
    with pytest.raises(TypeError, match=r"^cross_entropy: ids must be integers"):
        rg.cross_entropy(logits, [0.0, 1.0], **smooth)
    with pytest.raises(TypeError, match=r"^cross_entropy: ids must be integers"):
        rg.cross_entropy(logits, Tensor([0.0, 1.0]), **smooth)
    with pytest.raises(TypeError, match=r"^cross_entropy: ignore_index must be an int"):
        rg.cross_entropy(logits, [0, 1], ignore_index=1.0, **smooth)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^cross_entropy: ignore_index needs ids, not probabilities"):
        rg.cross_entropy(logits, constant(probabilities(2, C)), ignore_index=0)
    with pytest.raises(TypeError, match=r"^cross_entropy: the logits must be a float Tensor"):
        rg.cross_entropy([1.0, 2.0], 0, **smooth)  # type: ignore[arg-type]


# --- accuracy


def test_accuracy(backend: Backend) -> None:
    logits, ids = normal(4, 3, C), rng(1).integers(0, C, (4, 3))
    hits = torch.tensor(logits).argmax(-1).numpy() == ids
    for given in (ids, Tensor(ids), ids.tolist()):
        found = rg.accuracy(Tensor(logits), given)
        assert_close(found, np.array(hits.mean()))
        assert not found.requires_grad
    assert_close(rg.accuracy(Tensor(logits), ids, ignore_index=2), np.array(hits[ids != 2].mean()))
    assert_close(rg.accuracy(Tensor(logits), np.where(ids == 2, -1, ids), -1), np.array(hits[ids != 2].mean()))
    assert rg.accuracy(Tensor([0.1, 0.7, 0.2]), 1).item() == 1
    assert f"{rg.accuracy(Tensor([[0.1, 0.7], [0.2, 0.1]]), [1, 1]):.2f}" == "0.50"


def test_accuracy_takes_the_first_of_equal_logits(backend: Backend) -> None:
    logits = Tensor([[2.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-inf, -inf, -inf]])
    assert rg.accuracy(logits, [0, 0, 0]).item() == 1
    assert rg.accuracy(logits, [1, 2, 1]).item() == 0


def test_accuracy_errors(backend: Backend) -> None:
    logits = Tensor(normal(2, C))
    with pytest.raises(IndexError, match=r"^accuracy: id 5 is out of range; ids must be in \[0, 5\)"):
        rg.accuracy(logits, [5, 0])
    with pytest.raises(ValueError, match=r"^accuracy: logits \(2, 5\) need ids of shape \(2,\), got \(3,\)"):
        rg.accuracy(logits, [0, 1, 2])
    with pytest.raises(ValueError, match=r"^accuracy: all 2 ids are ignored"):
        rg.accuracy(logits, [3, 3], ignore_index=3)
    with pytest.raises(ValueError, match=r"^accuracy: all 0 ids are ignored"):
        rg.accuracy(logits[:0], [])
    with pytest.raises(TypeError, match=r"^accuracy: ids must be integers"):
        rg.accuracy(logits, [0.0, 1.0])
    with pytest.raises(TypeError, match=r"^accuracy: the logits must be a Tensor, got a list"):
        rg.accuracy([[1.0, 2.0]], [0])  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_means_of_many_rows_do_not_overflow_in_half_precision(backend: Backend, dtype: str) -> None:
    if dtype not in backend.float_dtypes():
        pytest.skip(f"{backend.name} has no {dtype}")
    draws = rng(4)
    values, ids = draws.normal(size=(70_000, 3)), draws.integers(0, 3, 70_000)
    x = Tensor(values, requires_grad=False).astype(dtype)
    exact = torch.from_numpy(x.astype("float64").numpy())
    weight = np.array([2.0, 1.0, 4.0])
    typed = Tensor(weight, requires_grad=False).astype(dtype)
    for given, theirs in ((None, None), (typed, torch.from_numpy(weight))):
        found = rg.cross_entropy(x, ids, 0, weight=given, label_smoothing=0.1)
        wanted = F.cross_entropy(exact, torch.from_numpy(ids), ignore_index=0, weight=theirs, label_smoothing=0.1)
        assert found.astype("float64").item() == pytest.approx(wanted.item(), rel=2e-2)
    p, log_q = np.abs(values), -4 * np.abs(values[::-1])
    found = rg.kl_div(
        Tensor(log_q, requires_grad=False).astype(dtype), Tensor(p, requires_grad=False).astype(dtype), "batchmean"
    )
    wanted = F.kl_div(torch.from_numpy(log_q.copy()), torch.from_numpy(p), reduction="batchmean")
    assert found.astype("float64").item() == pytest.approx(wanted.item(), rel=2e-2)


def test_cross_entropy_without_rows_and_classes(backend: Backend) -> None:
    logits = Tensor(np.ones((0, 0)))
    assert rg.cross_entropy(logits, np.zeros(0, int), reduction="sum", label_smoothing=0.1).item() == 0
