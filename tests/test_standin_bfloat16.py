"""bfloat16 on the stand-in: arithmetic, promotion, and the functions that do not support it.

`tests.standin.compare` checks that the result dtypes are those of CuPy.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.helpers import once_on_cupy, rng
from tests.standin import MODULES

ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes")
pytestmark = once_on_cupy

cupy: Any = MODULES["cupy"]
Array = Any

BF16 = np.dtype(ml_dtypes.bfloat16)


def int_array(*values: int) -> Array:
    return cupy.asarray(np.array(values))


def assert_same(actual: Array, expected: Array) -> None:
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual.get(), expected)


def in_bfloat16(*shape: int, seed: int = 0) -> tuple[Array, Array]:
    host = rng(seed).normal(size=shape).astype(BF16)
    return cupy.asarray(host), host.astype("float32")


def test_arithmetic_in_bfloat16_rounds_after_each_operation() -> None:
    (a, x), (b, y) = in_bfloat16(5, 4), in_bfloat16(4, seed=1)
    assert_same(a + b, (x + y).astype(BF16))
    assert_same(a * b - a, ((x * y).astype(BF16).astype("float32") - x).astype(BF16))
    assert_same(cupy.exp(a), np.exp(x).astype(BF16))
    assert_same(a > b, x > y)
    a += b
    assert_same(a, (x + y).astype(BF16))


def test_promotion_of_bfloat16_matches_cupy() -> None:
    a, _ = in_bfloat16(3)
    assert (a * 2).dtype == (a * True).dtype == cupy.maximum(a, a).dtype == BF16
    # CuPy does not treat a Python float as weak here.
    assert (a * 2.0).dtype == (a + cupy.ones((3,), "float32")).dtype == np.float32
    assert (a + cupy.ones((3,), "int64")).dtype == np.float64
    # CuPy has no bfloat16 loop for them.
    assert cupy.where(a > 0, a, a).dtype == cupy.clip(a, 0, None).dtype == np.float32
    with pytest.raises(NotImplementedError, match="bfloat16 and int8"):
        a + cupy.ones((3,), "int8")


def test_sum_of_bfloat16_is_accumulated_in_float32() -> None:
    a = cupy.ones((1000,), BF16)  # in bfloat16 the sum stays at 256
    assert cupy.sum(a).dtype == BF16
    assert float(cupy.sum(a)) == 1000.0
    assert cupy.sum(a, dtype="float32").dtype == np.float32
    assert cupy.max(a).dtype == cupy.prod(a).dtype == BF16


def test_matmul_of_bfloat16_accepts_only_two_matrices() -> None:
    (a, x), (b, y) = in_bfloat16(3, 300), in_bfloat16(300, 2, seed=1)
    assert_same(a @ b, (x @ y).astype(BF16))
    for left, right in ((a[None], b), (a[0], b), (a, b.astype("float32"))):
        with pytest.raises(NotImplementedError, match="product of bfloat16 for two matrices only"):
            left @ right


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (TypeError, lambda a: cupy.add.at(a, (int_array(0),), 1.0)),
        (NotImplementedError, cupy.mean),
        (NotImplementedError, cupy.argmax),
        (NotImplementedError, lambda a: cupy.einsum("i->", a)),
    ],
)
def test_unsupported_bfloat16_functions_raise(error: type[BaseException], call: Callable[[Array], Any]) -> None:
    with pytest.raises(error):
        call(cupy.ones((3,), BF16))


def test_copies_and_casts_of_bfloat16_are_exact() -> None:
    a, x = in_bfloat16(4, 3)
    assert np.isnan(cupy.empty((2,), BF16).get().astype("float32")).all()
    assert_same(a.T[1:].copy(), x.T[1:].astype(BF16))
    assert_same(cupy.take(a, int_array(2, 0), axis=0), x[[2, 0]].astype(BF16))
    assert_same(a.astype("float32"), x)
    assert_same(cupy.asarray(x).astype(BF16), x.astype(BF16))
    a[1] = 0.1
    assert a.get()[1, 0] == BF16.type(0.1)
