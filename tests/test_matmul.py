"""`@`, which follows NumPy's rules, and the fused `linear`, against PyTorch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from russellgrad import Tensor, linear
from russellgrad.backend import Backend
from tests.helpers import assert_close, check_against_torch, rng

DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])


def normal(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return rng(seed).normal(size=shape)


SHAPES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((3,), (3,)),
    ((3,), (3, 4)),
    ((2, 3), (3,)),
    ((2, 3), (3, 4)),
    ((3,), (5, 3, 4)),
    ((5, 2, 3), (3,)),
    ((3,), (6, 5, 3, 4)),
    ((6, 5, 2, 3), (3,)),
    ((2, 3), (5, 3, 4)),
    ((5, 2, 3), (3, 4)),
    ((6, 5, 2, 3), (3, 4)),
    ((5, 2, 3), (5, 3, 4)),
    ((1, 2, 3), (5, 3, 4)),
    ((5, 2, 3), (1, 3, 4)),
    ((6, 1, 2, 3), (5, 3, 4)),
    ((5, 2, 3), (6, 1, 3, 4)),
    ((6, 1, 2, 3), (1, 5, 3, 4)),
    ((1, 1), (1, 1)),
    ((2, 0), (0, 4)),  # an empty sum is 0
    ((0,), (0,)),
    ((0, 3), (3, 4)),
    ((2, 3), (3, 0)),
    ((0, 2, 3), (3, 4)),
    ((3,), (0, 3, 4)),
    ((0, 2, 3), (3,)),
    ((0, 2, 3), (1, 3, 4)),
]


@DTYPES
@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_matmul_matches_pytorch(backend: Backend, a: tuple[int, ...], b: tuple[int, ...], dtype: str) -> None:
    check_against_torch(lambda x, y: x @ y, lambda x, y: x @ y, normal(*a), normal(*b, seed=1), dtype=dtype)


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
@pytest.mark.parametrize(("a", "b"), SHAPES[:12])
def test_matmul_with_a_constant_operand(
    backend: Backend, a: tuple[int, ...], b: tuple[int, ...], needs: Sequence[bool]
) -> None:
    check_against_torch(lambda x, y: x @ y, lambda x, y: x @ y, normal(*a), normal(*b, seed=1), needs=needs)


def test_matmul_of_views(backend: Backend) -> None:
    check_against_torch(lambda x, y: x.T @ y.T, lambda x, y: x.T @ y.T, normal(3, 2), normal(4, 3, seed=1))
    check_against_torch(
        lambda x, y: x[::-1, ::2] @ y[:, ::-1],
        lambda x, y: x.flip(0)[:, ::2] @ y.flip(1),
        normal(3, 4),
        normal(2, 5, seed=1),
    )
    check_against_torch(
        lambda x, y: x.swapaxes(1, 2) @ y.broadcast_to(4, 3, 5),
        lambda x, y: x.swapaxes(1, 2) @ y.broadcast_to(4, 3, 5),
        normal(4, 3, 2),
        normal(3, 5, seed=1),
    )
    check_against_torch(lambda x: x @ x.T, lambda x: x @ x.T, normal(3, 4))


def test_matmul_with_backend_arrays(backend: Backend) -> None:
    array = Tensor(normal(3, 4)).data
    check_against_torch(lambda y: array @ y, lambda y: torch.tensor(normal(3, 4)) @ y, normal(4, 2, seed=1))
    check_against_torch(lambda x: x @ array, lambda x: x @ torch.tensor(normal(3, 4)), normal(2, 3, seed=1))


def test_matmul_promotes_dtypes(backend: Backend) -> None:
    whole = np.array([[1, 2], [3, 4]])
    assert_close(Tensor(whole) @ Tensor(whole), whole @ whole)
    out = Tensor(whole) @ Tensor([[0.5], [1.0]], dtype="float32")
    assert out.dtype == np.float32


def test_matmul_of_mismatched_shapes_raises(backend: Backend) -> None:
    with pytest.raises(ValueError, match=r"^matmul: \(2, 3\) @ \(2, 3\): 3 and 2 must be equal: the last axis"):
        Tensor(normal(2, 3)) @ Tensor(normal(2, 3))
    with pytest.raises(
        ValueError, match=r"^matmul: operands of shape \(\) and \(2, 3\): a 0-d operand is not allowed; use \*"
    ):
        Tensor(2.0) @ Tensor(normal(2, 3))
    for product in (lambda: Tensor(normal(3)) @ 2.0, lambda: 2 @ Tensor(normal(3))):
        with pytest.raises(ValueError, match="a 0-d operand is not allowed; use"):
            product()
    with pytest.raises(ValueError, match=r"^matmul: .*shapes must be equal or broadcast"):
        Tensor(normal(2, 2, 3)) @ Tensor(normal(3, 3, 2))  # batches 2 and 3


# --- linear: x @ weight + bias


@DTYPES
@pytest.mark.parametrize("shape", [(3,), (2, 3), (5, 2, 3), (0, 3), (2, 0, 3)])
def test_linear_matches_pytorch(backend: Backend, shape: tuple[int, ...], dtype: str) -> None:
    x, weight, bias = normal(*shape), normal(3, 4, seed=1), normal(4, seed=2)
    check_against_torch(linear, lambda x, w, b: x @ w + b, x, weight, bias, dtype=dtype)
    check_against_torch(linear, lambda x, w: x @ w, x, weight, dtype=dtype)
    check_against_torch(
        lambda x, w: linear(x.transpose(), w.T), lambda x, w: x.mT @ w.T if x.ndim > 1 else x @ w.T,
        normal(3, 2), normal(4, 3, seed=1), dtype=dtype,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_linear_sum_product_and_concatenate_of_large_arrays(backend: Backend, dtype: str) -> None:
    """Large enough for the kernel of the CuPy backend."""
    x, weight, bias = 0.1 * normal(2, 520, 8), normal(8, 64, seed=1), normal(64, seed=2)
    check_against_torch(
        lambda x, w, b: 0.1 * linear(x, w, b), lambda x, w, b: 0.1 * (x @ w + b), x, weight, bias, dtype=dtype
    )
    check_against_torch(
        lambda x, w, b: 0.1 * linear(x, w.T, b), lambda x, w, b: 0.1 * (x @ w.T + b), x, weight.T, bias, dtype=dtype
    )  # the gradient has the memory layout of the weight
    for shape in [(1040, 64), (64,)]:
        x, y = normal(1040, 64, seed=3), normal(*shape, seed=4)
        check_against_torch(lambda x, y: 0.1 * (x + y), lambda x, y: 0.1 * (x + y), x, y, dtype=dtype)
    check_against_torch(
        lambda x, y: Tensor.concatenate([x, x * y, y], axis=1), lambda x, y: torch.cat([x, x * y, y], dim=1),
        normal(1040, 64, seed=3), normal(1040, 64, seed=4), dtype=dtype,
    )  # fmt: skip


@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, False), (False, False, True), (True, False, True)]
)
def test_linear_with_constants(backend: Backend, needs: Sequence[bool]) -> None:
    check_against_torch(
        linear, lambda x, w, b: x @ w + b, normal(5, 2, 3), normal(3, 4, seed=1), normal(4, seed=2), needs=needs
    )


def test_linear_with_zero_features(backend: Backend) -> None:
    for n_in, n_out in ((0, 4), (3, 0)):
        check_against_torch(
            linear, lambda x, w, b: x @ w + b, normal(2, n_in), normal(n_in, n_out, seed=1), normal(n_out, seed=2)
        )


def test_linear_of_mismatched_shapes_raises(backend: Backend) -> None:
    x, weight, bias = Tensor(normal(2, 3)), Tensor(normal(3, 4)), Tensor(normal(4))
    with pytest.raises(ValueError, match=r"^linear: x \(2, 3\) does not fit weight \(4, 3\); they must be \(..., in\)"):
        linear(x, weight.T)
    with pytest.raises(ValueError, match=r"^linear: bias \(3,\) does not fit weight \(3, 4\); it must be \(out,\)"):
        linear(x, weight, bias[:3])
    with pytest.raises(ValueError, match=r"^linear: bias \(\) does not fit"):
        linear(x, weight, 1.0)
    with pytest.raises(ValueError, match=r"^linear: x \(\) does not fit"):
        linear(Tensor(1.0), weight)
    with pytest.raises(ValueError, match=r"^linear: x \(2, 3\) does not fit weight \(5, 3, 4\)"):
        linear(x, Tensor(normal(5, 3, 4)))
