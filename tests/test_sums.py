"""Accuracy of sums: many elements along any axis, half precision, and integers. PyTorch's errors are the bound."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from russellgrad import Tensor
from russellgrad.backend import Backend
from russellgrad.functional import attention, embedding, layer_norm, linear
from russellgrad.loss import cross_entropy
from tests.helpers import rng

Host = np.ndarray[Any, np.dtype[Any]]
Fn = Callable[..., Any]


def error(found: Any, exact: Any) -> float:
    """The largest error, relative to the largest exact value."""
    host = found.numpy() if isinstance(found, Tensor) else found
    exact = np.asarray(exact)
    return float(np.max(np.abs(np.asarray(host, exact.dtype) - exact)) / max(np.max(np.abs(exact)), 1e-30))


# --- Many elements


def near(*shape: int, mean: float = 1000.0, dtype: str = "float32") -> Host:
    return (rng(0).random(shape) + mean).astype(dtype)


VIEWS: dict[str, tuple[Host, Any]] = {  # the array and the axes that are summed
    "rows": (near(200_000, 2), 0),
    "wide rows": (near(5000, 300), 0),
    "few wide rows": (near(100, 20_000), 0),
    "rows in between": (near(3, 50_000, 5), 1),
    "rows of two axes": (near(300, 400, 3), (0, 1)),
    "outer and inner": (near(300, 4, 400), (0, 2)),
    "transposed": (near(2, 200_000).T, 0),
    "permuted": (near(300, 3, 400).transpose(2, 1, 0), (0, 2)),
    "every second column": (near(100_000, 4)[:, ::2], 0),
    "some columns": (near(50_000, 9)[:, 3:8], 0),
    "in reverse": (near(100_000, 2)[::-1, ::-1], 0),
    "every second row": (near(200_000, 2)[::2], 0),
    "a column": (near(200_000, 2)[:, :1], 0),
    "broadcast": (np.broadcast_to(near(2), (200_000, 2)), 0),
    "broadcast columns": (np.broadcast_to(near(100_000, 1), (100_000, 3)), 0),
    "everything": (near(100_000, 2), None),
    "everything, every second column": (near(100_000, 4)[:, ::2], None),
}


@pytest.mark.parametrize("op", ["sum", "mean", "var"])
@pytest.mark.parametrize("view", VIEWS)
def test_long_sums_are_as_accurate_as_pytorchs(backend: Backend, view: str, op: str) -> None:
    a, axis = VIEWS[view]
    x = Tensor(np.array(a)) if backend.name == "cupy" else Tensor._wrap(backend.asarray(a), backend)
    axes = tuple(range(a.ndim)) if axis is None else axis
    options = {"correction": 0} if op == "var" else {}
    theirs = getattr(torch.tensor(np.ascontiguousarray(a)), op)(axes, **options).numpy()
    exact = getattr(np.asarray(a, np.float64), op)(axes)
    kept = getattr(x, op)(axis, keepdims=True)
    found = getattr(x, op)(axis)
    assert found.shape == exact.shape
    bound = 1e-6 if backend.name == "cupy" else 2.5e-7  # CuPy's threads add some elements one by one
    assert error(found, exact) <= max(1.2 * error(theirs, exact), bound)
    np.testing.assert_array_equal(kept.numpy().reshape(exact.shape), found.numpy())


@pytest.mark.parametrize("rows", [17, 48, 64, 65, 100, 500, 8192])
@pytest.mark.parametrize("columns", [1, 9, 33, 64, 65, 70, 100, 300, 384])
@pytest.mark.parametrize("value", [0.1, 0.3])
def test_every_column_of_equal_elements_is_accurate(backend: Backend, rows: int, columns: int, value: float) -> None:
    """Equal elements have equal roundings, which do not cancel. A BLAS adds its last columns in another way."""
    a = np.full((rows, columns + 3), value, np.float32)
    for part in (a[:, 3:], a[:, :columns], a[:, ::2], np.ascontiguousarray(a[:, 3:])):
        bound = 1e-5 if backend.name == "cupy" else 3e-7  # the stand-in adds up to 1,024 rows one by one
        assert error(Tensor(part).sum(0), part.astype(np.float64).sum(0)) <= bound


@pytest.mark.parametrize("shape", [(50_000, 3), (3000, 300), (100, 20_000), (3, 20_000, 5)])
def test_long_sums_in_float64(backend: Backend, shape: tuple[int, ...]) -> None:
    a = near(*shape, dtype="float64")
    axis = len(shape) - 2
    wide = a.astype(np.longdouble).sum(axis)
    assert error(Tensor(a).sum(axis), wide) <= (
        2e-15 if backend.name == "cupy" else 6e-16
    )  # one by one it is up to 2e-14


def test_mean_and_variance_of_a_million_rows(backend: Backend) -> None:
    a = near(1_000_000, 2)
    x, exact = Tensor(a), a.astype(np.float64)
    np.testing.assert_allclose(x.mean(0).numpy(), exact.mean(0), rtol=1e-7)
    np.testing.assert_allclose(x.var(0).numpy(), exact.var(0), rtol=1e-6)


@pytest.mark.parametrize("mean", [0.0, 1e3, 1e6])
def test_variance_of_a_large_mean_does_not_depend_on_the_rounding_of_the_mean(backend: Backend, mean: float) -> None:
    a = near(5000, 3, mean=mean)
    for axis in (0, 1, None):
        np.testing.assert_allclose(Tensor(a).var(axis).numpy(), a.astype(np.float64).var(axis), rtol=1e-5)


@pytest.mark.parametrize("mean", [0.0, 1e3, 1e6])
def test_gradient_of_the_variance_of_a_large_mean(backend: Backend, mean: float) -> None:
    a = near(500, 3, mean=mean)
    wide = a.astype(np.float64)
    for axis in (0, 1, None):
        x = Tensor(a)
        x.var(axis).sum().backward()
        exact = 2 * (wide - wide.mean(axis, keepdims=True)) / (a.size if axis is None else a.shape[axis])
        assert error(backend.to_host(x.grad), exact) <= 1e-6


@pytest.mark.parametrize("outlier", [1e4, 1e7])
def test_variance_with_an_outlier_in_the_first_row(backend: Backend, outlier: float) -> None:
    a = rng(0).normal(size=(5000, 3)).astype("float32")
    a[0] = outlier
    bound = 16 * 2.0**-24  # a block of 16 rows with the outlier may be added one by one, and lose the others
    np.testing.assert_allclose(Tensor(a).var(0).numpy(), a.astype(np.float64).var(0), rtol=bound)


def test_variance_of_equal_elements_is_not_negative(backend: Backend) -> None:
    for value in (0.1, 1e-3, 1000.1):
        variance = Tensor(np.full((999, 3), value, np.float32)).var(0).numpy()
        assert (variance >= 0).all()
        assert (variance <= 1e-13 * max(1, value**2)).all()


N = 262_144


def test_gradients_that_are_sums_over_many_rows(backend: Backend) -> None:
    """Of a bias, a broadcast operand, and layer norm's gamma and beta."""
    g = Tensor(np.full((N, 2), 0.1, np.float32), requires_grad=False)
    x = Tensor(np.tile(np.array([1.0, 3.0], np.float32), (N, 1)))
    ones = [Tensor(np.ones(2, np.float32)) for _ in range(5)]
    linear(x, Tensor(np.eye(2, dtype="float32")), ones[0]).backward(g)
    (x + ones[1]).backward(g)
    (x * 0 + ones[2] * 1).backward(g)
    layer_norm(x, ones[3], ones[4]).backward(g)
    total = N * float(np.float32(0.1))
    for operand, exact in zip(ones, (1, 1, 1, None, 1), strict=True):
        wanted = total * (np.array([-1.0, 1.0]) / np.sqrt(1 + 1e-5) if exact is None else np.ones(2))
        assert error(backend.to_host(operand.grad), wanted) <= 1e-6


def test_softmax_along_a_long_first_axis(backend: Backend) -> None:
    a = rng(1).normal(size=(N, 2)).astype("float32")
    e = np.exp(a.astype(np.float64))
    exact = e / e.sum(0)
    assert error(Tensor(a).softmax(0), exact) <= 5e-7
    assert error(Tensor(a).log_softmax(0), np.log(exact)) <= 5e-7


@pytest.mark.parametrize("width", [100, 1000, 5000, 200_000])
def test_layer_norm_of_rows_with_a_large_mean(backend: Backend, width: int) -> None:
    a = near(3, width)
    exact = torch.layer_norm(torch.tensor(a).double(), (width,)).numpy()
    theirs = torch.layer_norm(torch.tensor(a), (width,)).numpy()
    found = layer_norm(Tensor(a)).numpy()
    one_rounding_of_the_mean = 2.0**-15 / 0.28
    assert np.abs(found - exact).max() <= max(np.abs(theirs - exact).max(), 1.1 * one_rounding_of_the_mean)


def test_norm_and_loss_over_many_elements(backend: Backend) -> None:
    grads = [backend.asarray(np.full((N, 2), 0.1, np.float32)) for _ in range(2)]
    assert error(backend.to_host(backend.clip_scale(grads, 1.0)[0]), np.sqrt(4 * N) * float(np.float32(0.1))) <= 1e-6
    logits, ids = rng(2).normal(size=(N, 2)).astype("float32"), rng(3).integers(0, 2, N)
    exact = torch.nn.functional.cross_entropy(torch.tensor(logits).double(), torch.tensor(ids)).numpy()
    assert error(cross_entropy(Tensor(logits), ids), exact) <= 1e-6


@pytest.mark.parametrize("k", [1, 2, 1000, 10_000])
def test_norm_over_many_gradients(backend: Backend, k: int) -> None:
    grads = [backend.asarray(np.full(4, 0.1, np.float32)) for _ in range(k)]
    norm = backend.to_host(backend.clip_scale(grads, 1.0)[0])
    assert error(norm, np.sqrt(4 * k) * float(np.float32(0.1))) <= 4e-7  # PyTorch's is 3.8e-7 for 1,000


# --- Half precision


def halves(backend: Backend) -> list[str]:
    return [dtype for dtype in backend.float_dtypes() if dtype not in ("float32", "float64")]


def ids_of(n: int) -> Host:
    return rng(4).integers(0, 3, n)


# name: (RussellGrad's function, PyTorch's function, operands)
IN_HALF: dict[str, tuple[Fn, Fn, list[Host]]] = {
    "sum over rows": (lambda x: x.sum(0), lambda x: x.sum(0), [np.ones((4096, 2))]),
    "sum": (lambda x: x.sum(), lambda x: x.sum(), [rng(0).normal(size=(5000, 3))]),
    "mean": (lambda x: x.mean(), lambda x: x.mean(), [np.full(70_000, 1.5)]),
    "mean over rows": (lambda x: x.mean(0), lambda x: x.mean(0), [rng(0).normal(size=(70_000, 2)) + 3]),
    "var": (lambda x: x.var(0), lambda x: x.var(0, correction=0), [rng(0).normal(size=(7000, 2)) * 200]),
    "max of many ties": (lambda x: x.max(), lambda x: x.amax(), [np.ones(70_000)]),
    "softmax": (lambda x: x.softmax(-1), lambda x: x.softmax(-1), [np.zeros(70_000)]),
    "softmax over rows": (lambda x: x.softmax(0), lambda x: x.softmax(0), [rng(1).normal(size=(5000, 3))]),
    "log_softmax": (lambda x: x.log_softmax(-1), lambda x: x.log_softmax(-1), [rng(1).normal(size=(3, 5000))]),
    "layer_norm": (layer_norm, lambda x: torch.layer_norm(x, (4,)), [np.array([[1000.0, -1000.0, 500.0, 0.0]])]),
    "layer_norm of many rows": (
        layer_norm,
        lambda x, gamma, beta: torch.layer_norm(x, (64,), gamma, beta),
        [rng(0).normal(size=(3000, 64)) * 300 + 100, rng(1).normal(size=64), rng(2).normal(size=64)],
    ),
    "linear": (
        linear,
        lambda x, weight, bias: x @ weight + bias,
        [rng(0).normal(size=(5000, 8)), rng(1).normal(size=(8, 3)), rng(2).normal(size=3)],
    ),
    "a broadcast operand": (lambda x, y: x + y, lambda x, y: x + y, [np.zeros((5000, 3)), np.ones(3)]),
    "embedding": (
        lambda weight: embedding(weight, ids_of(5000)),
        lambda weight: weight[torch.tensor(ids_of(5000))],
        [rng(0).normal(size=(3, 4))],
    ),
    "repeated indices": (
        lambda x: x[ids_of(5000)], lambda x: x[torch.tensor(ids_of(5000))], [rng(0).normal(size=(3, 4))],
    ),
    "cross_entropy": (
        lambda x: cross_entropy(x, ids_of(70_000)),
        lambda x: torch.nn.functional.cross_entropy(x.reshape(-1, 3), torch.tensor(ids_of(70_000))),
        [rng(0).normal(size=(70_000, 3)) * 3],
    ),
    "attention with large scores": (
        attention, torch.nn.functional.scaled_dot_product_attention,
        [rng(i).normal(size=(2, 40, 16)) * scale for i, scale in enumerate((20, 20, 1))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_HALF)
def test_half_precision_is_summed_in_float32(backend: Backend, name: str) -> None:
    """The output and the gradients are within 1.5 roundings of float64, or as near to it as PyTorch's."""
    ours, theirs, operands = IN_HALF[name]
    for dtype in halves(backend):
        single, eps = getattr(torch, dtype), torch.finfo(getattr(torch, dtype)).eps
        hosts = [torch.tensor(operand).to(single).double().numpy() for operand in operands]
        xs = [Tensor(backend.astype(backend.asarray(host), dtype)) for host in hosts]
        exact, rough = ([torch.tensor(h).to(t).requires_grad_() for h in hosts] for t in (torch.float64, single))
        out, wanted, rounded = ours(*xs), theirs(*exact), theirs(*rough)
        g = torch.tensor(rng(9).normal(size=tuple(wanted.shape))).to(single)
        out.backward(backend.astype(backend.asarray(g.double().numpy()), str(out.dtype)))
        wanted.backward(g.double())
        rounded.backward(g)
        found = [out.data, *(x.grad for x in xs)]
        for i, (array, a, b) in enumerate(
            zip(found, (wanted, *(x.grad for x in exact)), (rounded, *(x.grad for x in rough)), strict=True)
        ):
            assert i == 0 or str(backend.dtype(array)) == dtype
            host = backend.to_host(backend.astype(array, "float64"))
            right, torchs = a.detach().numpy(), b.detach().double().numpy()
            rounded_out = name.startswith("attention") and backend.name == "cupy" and dtype == "bfloat16"
            # That kernel rounds the weights for their product, and its backward uses the rounded output, as
            # FlashAttention does. With large scores both matter.
            factor = 12 if rounded_out else 0.75
            one_rounding = factor * eps * np.abs(right).max() + 2.0**-24
            error_of_torch = np.abs(np.nan_to_num(torchs, nan=0, posinf=0, neginf=0) - right).max()
            assert np.isfinite(host).all(), (dtype, i)
            assert np.abs(host - right).max() <= max(one_rounding, error_of_torch), (dtype, i)


@pytest.mark.filterwarnings("ignore:overflow")
def test_named_cases_in_half_precision(backend: Backend) -> None:
    for dtype in halves(backend):

        def half(values: Any, dtype: str = dtype) -> Tensor:
            return Tensor(backend.astype(backend.asarray(np.asarray(values, np.float32)), dtype))

        def host(x: Tensor) -> list[float]:
            return np.asarray(backend.to_host(backend.astype(x.data, "float64"))).ravel().tolist()

        assert host(half(np.ones((4096, 2))).sum(0)) == [4096, 4096]
        assert host(half(np.ones(100_000)).mean()) == [1]
        assert host(half(np.zeros(65_536)).softmax(-1))[:2] == [2.0**-16, 2.0**-16]
        assert host(half(np.full((2, 3), 200.0)).var(0)) == [0, 0, 0]
        np.testing.assert_allclose(
            host(layer_norm(half([1000, -1000, 500, 0]))), [1.18, -1.52, 0.507, -0.169], rtol=9e-3
        )
        assert host(half(np.full(70_000, 1.0)).sum()) == [np.inf if dtype == "float16" else 70_144]


# --- Integers


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"])
def test_sums_of_integers_are_int64(backend: Backend, dtype: str) -> None:
    x = Tensor(np.ones((2, 2), dtype))
    assert str(x.sum().dtype) == str(x.sum(0).dtype) == str(x.sum(()).dtype) == "int64"
    assert (x.sum() - 5).item() == -1
    assert Tensor(np.full((300, 2), 1, dtype)).sum(0).numpy().tolist() == [300, 300]
