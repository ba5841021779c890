"""The CUDA kernels of backends/cupy_kernels.cu against the NumPy reference, which computes in float64.

They run on a CUDA device if the CuPy backend is usable. Otherwise the same sources run on the CPU through the
stand-in's RawModule. There, each case runs with two orders of the warps and with a guard page before or after each
array. Each case runs twice and must give the same bits.
"""

import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from russellgrad import available_backends
from tests.helpers import rng
from tests.standin import MODULES, Misuse
from tests.standin.device import reseed

host: Any = importlib.import_module("russellgrad.backends.host")
numpy_backend: Any = importlib.import_module("russellgrad.backends.numpy_backend")

Array = Any
FLOAT32 = np.dtype(np.float32)

FILE = Path(__file__).resolve().parent.parent / "backends" / "cupy_kernels.py"
ON_DEVICE = os.environ.get("RG_CUPY") != "standin" and "cupy" in (
    [os.environ["RG_BACKEND"]] if os.environ.get("RG_BACKEND") else available_backends()
)
cupy: Any = importlib.import_module("cupy") if ON_DEVICE else MODULES["cupy"]

only_on_stand_in = pytest.mark.skipif(ON_DEVICE, reason="needs the stand-in, which checks each memory access")
if (os.environ.get("RG_BACKEND") or "cupy") != "cupy":
    pytest.skip("the CuPy kernels are tested with RG_CUPY=standin RG_BACKEND=cupy", allow_module_level=True)
pytestmark = pytest.mark.skipif(
    not ON_DEVICE and shutil.which("g++") is None, reason="the kernels need a CUDA device or g++"
)


def load(edit: Callable[[str], str] = str, names: Sequence[str] | None = None) -> Any:
    """Import cupy_kernels, on the device or the stand-in, with an edited source and only the templates `names`."""
    with pytest.MonkeyPatch.context() as patch:
        if not ON_DEVICE:
            for name, module in MODULES.items():
                patch.setitem(sys.modules, name, module)
        spec = importlib.util.spec_from_file_location("russellgrad.backends.kernels_under_test", FILE)
        assert spec is not None
        assert spec.loader is not None
        kernels: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(kernels)
    kernels.SOURCE = edit(kernels.SOURCE)
    if names is not None:
        kernels.NAME_EXPRESSIONS = tuple(name for name in kernels.NAME_EXPRESSIONS if name in names or "<" not in name)
    return kernels


@pytest.fixture(scope="module")
def kernels() -> Any:
    return load()


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> Any:
    return FLOAT32 if request.param == "float32" else bfloat16()


def bfloat16() -> Any:
    return np.dtype(pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes").bfloat16)


# --- Arrays on the host and the device


def random_array(shape: Sequence[int], dtype: Any, seed: int = 0, scale: float = 1.0) -> Array:
    """Normally distributed numbers, rounded to dtype."""
    return (scale * rng(seed).normal(size=shape)).astype(dtype)


def to_float64(*arrays: Array | None) -> Any:
    """The float arrays converted to float64, for the reference; other arrays unchanged."""
    return [None if a is None else a.astype(np.float64) if a.dtype.kind in "fV" else a for a in arrays]


def device(*arrays: Array | None) -> Any:
    return [None if a is None else cupy.asarray(a) for a in arrays]


def spread(a: Array) -> Array:
    """A strided copy on the device: every second element of a row, with an unaligned start."""
    buffer = cupy.asarray(np.zeros((*a.shape[:-1], 2 * a.shape[-1] + 3), a.dtype))
    view = buffer[..., 1 : 1 + 2 * a.shape[-1] : 2]
    view[...] = cupy.asarray(a)
    return view


def unaligned(a: Array) -> Array:
    """A contiguous copy on the device whose start is not a multiple of 16 bytes."""
    buffer = cupy.asarray(np.concatenate([a[:0].ravel(), np.zeros(1, a.dtype), a.ravel()]))
    return buffer[1:].reshape(a.shape)


def twice(f: Callable[[], Any]) -> list[Array]:
    """Run f() with two orders of the warps, check that the bits are equal, and return the results on the host."""
    runs = []
    for seed in (0, 1):
        if not ON_DEVICE:
            reseed(seed)
        results = f()
        results = results if isinstance(results, (tuple, list)) else (results,)
        runs.append([None if a is None else a.get() for a in results])
    for first, second in zip(*runs, strict=True):
        if first is not None:
            assert first.tobytes() == second.tobytes()
    return runs[0]


def assert_near(
    actual: Array, expected: Array, dtype: Any, *, atol: float = 2e-5, what: str = "", slack: Array | None = None
) -> None:
    """Compare with the reference within atol and `slack`; for bfloat16, also within one rounding (relative 2^-8)."""
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    assert actual.dtype == dtype, f"{what}: dtype {actual.dtype}, expected {dtype}"
    rtol = 2.0**-8 if actual.dtype.itemsize == 2 else 0.0
    actual = actual.astype(np.float64)
    if slack is not None:
        finite = np.isfinite(expected)
        actual = actual - np.clip(np.subtract(actual, expected, out=np.zeros_like(actual), where=finite), -slack, slack)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol, err_msg=what)


def check(
    f: Callable[[], Any], expected: Any, dtype: Any, *, atol: float = 2e-5, slack: Sequence[Array | None] = (None,) * 3
) -> list[Array]:
    """Run f() twice and compare its results with `expected`; both must be None at the same positions."""
    results = twice(f)
    wanted = expected if isinstance(expected, (tuple, list)) else (expected,)
    for i, (actual, reference) in enumerate(zip(results, wanted, strict=True)):
        assert (actual is None) == (reference is None)
        if actual is not None:
            assert_near(actual, np.asarray(reference), dtype, atol=atol, what=f"result {i}", slack=slack[i])
    return results


# Odd widths, a multiple of 16 bytes, more columns than threads in a block, more rows than a chunk, and empty arrays.
SHAPES = [(3, 1), (2, 3, 31), (5, 33), (9, 64), (3, 257), (2, 520), (1, 2100), (70, 16), (1, 1), (0, 5), (4, 0), (7,)]


# --- Sums of rows


@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 31), (33, 64), (2000, 5), (70, 520), (20_000, 8), (0, 5), (4, 0)], ids=str
)
def test_row_sums_match_reference(kernels: Any, dtype: Any, shape: tuple[int, int]) -> None:
    for a in (random_array(shape, dtype), np.full(shape, 0.1, dtype)):
        expected = a.astype(np.float64).sum(axis=0)
        for place in (cupy.asarray, unaligned):
            atol = 1e-6 * max(1.0, *np.abs(expected)) if expected.size else 0.0
            check(partial(kernels.row_sums, place(a)), expected, dtype, atol=atol)
    check(
        partial(kernels.row_sums, spread(random_array((100, 6), dtype))),
        random_array((100, 6), dtype).astype(np.float64).sum(0),
        dtype,
    )


# --- Sums and products of the elements of two arrays


@pytest.mark.parametrize("operation", ["ADD", "MULTIPLY"])
@pytest.mark.parametrize("one_row", [False, True])
@pytest.mark.parametrize("shape", [(3, 1), (2, 3, 31), (5, 33), (9, 64), (2, 520), (1, 2100), (70, 16)], ids=str)
def test_elementwise_matches_reference(
    kernels: Any, dtype: Any, shape: Sequence[int], one_row: bool, operation: str
) -> None:
    """Also in place, and of arrays that are not aligned to 16 bytes."""
    a, b = random_array(shape, dtype), random_array(shape[-1:] if one_row else shape, dtype, 1)
    x, y = to_float64(a, b)
    expected = x + y if operation == "ADD" else x * y
    for place in (cupy.asarray, unaligned):
        target, other = place(a), place(b)
        check(partial(kernels.elementwise, operation, target, other), expected, dtype)
        assert kernels.elementwise(operation, target, other, out=target) is target
        assert_near(target.get(), expected, dtype)


@pytest.mark.parametrize("widths", [(8, 16, 8), (3, 4, 9), (384, 384, 384), (1, 1)], ids=str)
def test_join_matches_reference(kernels: Any, dtype: Any, widths: Sequence[int]) -> None:
    arrays = [random_array((3, 7, width), dtype, seed) for seed, width in enumerate(widths)]
    for place in (cupy.asarray, unaligned):
        out = place(np.zeros((3, 7, sum(widths)), dtype))
        kernels.join([place(array) for array in arrays], out)
        assert out.get().tobytes() == np.concatenate(arrays, axis=-1).tobytes()


def test_elementwise_takes_large_dense_arrays_of_one_dtype(kernels: Any, dtype: Any) -> None:
    a, row = cupy.zeros((256, 256), dtype), cupy.zeros((256,), dtype)
    assert kernels.elementwise_takes(a, a) and kernels.elementwise_takes(a, row)
    for b in (a.T, a[:1], cupy.zeros((256, 1), dtype), row.astype("float64"), cupy.zeros((), dtype)):
        assert not kernels.elementwise_takes(a, b)
    assert not kernels.elementwise_takes(a[:255], a[:255])
    assert not kernels.elementwise_takes(a.T, a.T)
    assert kernels.join_takes([a, a]) and not kernels.join_takes([a, a.T])
    assert not kernels.join_takes([a, a.astype("float64")]) and not kernels.join_takes([a, a[:255]])


# --- Activations

LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "contiguous": lambda a: cupy.asarray(a),
    "spread": spread,
    "unaligned": unaligned,
}


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> Callable[[Array], Array]:
    return LAYOUTS[request.param]


def reference_activation(kind: str | float, a: Array) -> tuple[Array, Callable[[Array], Array]]:
    """In float64: the output, and the function from the output's gradient to the gradient of `a`."""
    if isinstance(kind, str):
        out, slope = numpy_backend.gelu(a, kind)
        return out, lambda g: g * slope
    if kind == 0:  # rules.relu
        return np.maximum(a, 0), lambda g: np.where(np.maximum(a, 0) <= 0, 0, g)
    return np.where(a > 0, a, kind * a), lambda g: np.where(a > 0, g, kind * g)


def forward_of(kernels: Any, kind: str | float) -> Callable[..., Any]:
    f = kernels.gelu if isinstance(kind, str) else kernels.leaky_relu
    return lambda a: f(a, kind)


def backward_of(kernels: Any, kind: str | float) -> Callable[..., Any]:
    f = kernels.gelu_backward if isinstance(kind, str) else kernels.leaky_relu_backward
    return lambda g, a: f(g, a, kind)


@pytest.mark.parametrize("shape", [(), *SHAPES, (1000, 40)], ids=str)
@pytest.mark.parametrize("kind", ["none", "tanh", 0.1, 0.0])
def test_activation_matches_reference(kernels: Any, dtype: Any, kind: str | float, shape: Sequence[int]) -> None:
    a, g = random_array(shape, dtype, scale=2.0), random_array(shape, dtype, 1)
    a.reshape(-1)[:3] = [0, -0.0, 30][: a.size]  # the kink at 0, and a large value
    da, dg = device(a, g)
    out, gradient = reference_activation(kind, *to_float64(a))
    check(lambda: forward_of(kernels, kind)(da), out, dtype)
    check(lambda: backward_of(kernels, kind)(dg, da), gradient(g.astype(np.float64)), dtype)


@pytest.mark.parametrize("kind", ["none", 0.1])
def test_activation_accepts_any_layout(kernels: Any, dtype: Any, kind: str | float, layout: Any) -> None:
    a, g = random_array((6, 5, 24), dtype), random_array((6, 5, 24), dtype, 1)
    out, gradient = reference_activation(kind, *to_float64(a))
    da, dg = layout(a), layout(g)
    check(lambda: forward_of(kernels, kind)(da), out, dtype)
    check(lambda: backward_of(kernels, kind)(dg, da), gradient(g.astype(np.float64)), dtype)


@pytest.mark.parametrize("kind", ["none", "tanh", 0.1, 0.0])
def test_activation_of_extreme_values_matches_reference(kernels: Any, kind: str | float) -> None:
    a = np.array([np.nan, np.inf, -np.inf, 1e20, -1e20, 3e38, -3e38, 1e-30], np.float32)
    with np.errstate(all="ignore"):
        out, gradient = reference_activation(kind, *to_float64(a))
        slope = gradient(np.ones(8))
    if kind == "tanh":
        slope[3:7] = [1, 0, 1, 0]  # the reference computes inf * 0 there
    (actual,) = twice(lambda: forward_of(kernels, kind)(cupy.asarray(a)))
    np.testing.assert_allclose(actual, out.astype(np.float32), rtol=1e-6)
    ones = cupy.asarray(np.ones(8, np.float32))
    (actual,) = twice(lambda: backward_of(kernels, kind)(ones, cupy.asarray(a)))
    np.testing.assert_allclose(actual, slope, rtol=0, atol=1e-6)


# --- Layer norm


def reference_layer_norm(eps: float, x: Array, gamma: Array | None, beta: Array | None) -> Any:
    if x.size == 0:
        empty = np.full((*x.shape[:-1], 1), np.nan)
        return x, empty, empty
    return numpy_backend.layer_norm(x, gamma, beta, eps)


def check_layer_norm(kernels: Any, f: Callable[[], Any], expected: Sequence[Array], dtype: Any) -> None:
    """Compare the results of f(); the last two, mean and rstd, are float32."""
    results = twice(f)
    for actual, reference in zip(results[:-2], expected[:-2], strict=True):
        assert_near(actual, reference, dtype)
    for actual, reference in zip(results[-2:], expected[-2:], strict=True):
        assert_near(actual, reference, FLOAT32, atol=1e-4)  # 1 / std is 300 where x is constant


@pytest.mark.parametrize("affine", [(True, True), (True, False), (False, True), (False, False)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer_norm_matches_reference(
    kernels: Any, dtype: Any, shape: Sequence[int], affine: tuple[bool, bool]
) -> None:
    x = random_array(shape, dtype)
    gamma, beta = (random_array(shape[-1:], dtype, 2 + i) if given else None for i, given in enumerate(affine))
    dx, dgamma, dbeta = device(x, gamma, beta)
    expected = reference_layer_norm(1e-5, *to_float64(x, gamma, beta))
    check_layer_norm(kernels, lambda: kernels.layer_norm(dx, dgamma, dbeta, 1e-5), expected, dtype)


def test_layer_norm_is_accurate_for_a_large_mean(kernels: Any) -> None:
    """The error of E[x^2] - E[x]^2 would be larger than the variance."""
    x = 1e4 + random_array((3, 64), FLOAT32)
    y, _, _ = reference_layer_norm(1e-5, x.astype(np.float64), None, None)
    assert_near(twice(lambda: kernels.layer_norm(cupy.asarray(x), None, None, 1e-5))[0], y, FLOAT32, atol=2e-3)


@pytest.mark.parametrize("with_gamma", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer_norm_backward_matches_reference(
    kernels: Any, dtype: Any, shape: Sequence[int], with_gamma: bool
) -> None:
    g, x = random_array(shape, dtype), random_array(shape, dtype, 1)
    gamma = random_array(shape[-1:], dtype, 3) if with_gamma else None
    _, mean, rstd = (a.astype(np.float32) for a in reference_layer_norm(1.0, *to_float64(x, None, None)))
    dg, dx, dgamma, dmean, drstd = device(g, x, gamma, mean, rstd)
    expected = numpy_backend.layer_norm_backward(*to_float64(g, x, gamma, mean, rstd), (True,) * 3)
    for needs in [(True, True, True), (True, False, False), (False, True, False), (False, False, True)]:
        wanted = [a if need else None for a, need in zip(expected, needs, strict=True)]
        check(partial(kernels.layer_norm_backward, dg, dx, dgamma, dmean, drstd, needs), wanted, dtype)


def test_layer_norm_accepts_any_layout(kernels: Any, dtype: Any, layout: Any) -> None:
    shape = (40, 5, 24)
    g, x = random_array(shape, dtype), random_array(shape, dtype, 1)
    gamma, beta = random_array((24,), dtype, 3), random_array((24,), dtype, 4)
    y, mean, rstd = numpy_backend.layer_norm(*to_float64(x, gamma, beta), 1e-5)
    dg, dx, dgamma, dbeta = layout(g), layout(x), layout(gamma), layout(beta)
    check_layer_norm(kernels, lambda: kernels.layer_norm(dx, dgamma, dbeta, 1e-5), (y, mean, rstd), dtype)
    mean, rstd = mean.astype(np.float32), rstd.astype(np.float32)
    expected = numpy_backend.layer_norm_backward(*to_float64(g, x, gamma, mean, rstd), (True,) * 3)
    dmean, drstd = layout(mean), layout(rstd)
    f = partial(kernels.layer_norm_backward, dg, dx, dgamma, dmean, drstd, (True, True, True))
    check(f, expected, dtype, atol=1e-4)  # sums of 200 numbers


# --- Softmax

NAMES = ["softmax", "log_softmax"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [*SHAPES, (3, 31), (2, 32), (9, 1000)], ids=str)
def test_softmax_matches_reference(kernels: Any, dtype: Any, name: str, shape: Sequence[int], layout: Any) -> None:
    a, g = random_array(shape, dtype, scale=3.0), random_array(shape, dtype, 1)
    y = getattr(numpy_backend, name)(a.astype(np.float64), -1)
    da, dg = layout(a), layout(g)
    check(lambda: getattr(kernels, name)(da), y, dtype)
    y = y.astype(dtype)  # backward gets the rounded output
    ga = getattr(numpy_backend, f"{name}_backward")(*to_float64(g, y), -1)
    check(lambda: getattr(kernels, f"{name}_backward")(dg, layout(y)), ga, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_softmax_of_non_finite_values_matches_reference(kernels: Any, name: str) -> None:
    rows = np.zeros((6, 40), np.float32)
    rows[0] = -np.inf
    rows[1, 35] = np.nan
    rows[2, 3] = np.inf
    rows[3, 1:] = -np.inf
    rows[4] = 3e38
    rows[5] = np.nan
    with np.errstate(all="ignore"):
        expected = getattr(numpy_backend, name)(rows.astype(np.float64), -1)
    check(lambda: getattr(kernels, name)(cupy.asarray(rows)), expected, FLOAT32)


# --- Cross-entropy


@pytest.mark.parametrize("which", ["all", "some", "one"])
@pytest.mark.parametrize("excluded", [None, 0, -1])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (5, 31), (9, 33), (40, 65), (1100, 3)], ids=str)
def test_cross_entropy_matches_reference(
    kernels: Any, dtype: Any, shape: tuple[int, int], excluded: int | None, which: str
) -> None:
    n, c = shape
    hidden = None if excluded is None or c == 1 else excluded % c  # a single class cannot be excluded
    logits, ids = random_array(shape, dtype, scale=2.0), rng(1).integers(0, c, n)
    ids[ids == hidden] = 1 if hidden == 0 else 0
    valid = None if which == "all" else rng(2).random(n) < 0.7
    if valid is not None:
        valid[:] = valid if which == "some" else False
        valid[-1] = True
    loss, probs = numpy_backend.cross_entropy(logits.astype(np.float64), ids, valid, hidden)
    dlogits, dids, dvalid = device(logits, ids, valid)
    actual, actual_probs = twice(lambda: kernels.cross_entropy(dlogits, dids, dvalid, hidden))
    assert_near(actual, loss, FLOAT32)
    assert_near(actual_probs, probs, dtype)
    g, probs = np.array(1.7, np.float32), probs.astype(dtype)
    expected = numpy_backend.cross_entropy_backward(*to_float64(g, probs), ids, valid)
    dg, dprobs = device(g, probs)
    check(lambda: kernels.cross_entropy_backward(dg, dprobs, dids, dvalid), expected, dtype)


def test_cross_entropy_maximum_ignores_the_excluded_class(kernels: Any, dtype: Any) -> None:
    """Subtracting the excluded logit, 200, would make the exponentials of all other classes underflow."""
    logits, ids = random_array((3, 5), dtype), np.array([0, 1, 4])
    logits[:, 2] = 200
    loss, probs = numpy_backend.cross_entropy(logits.astype(np.float64), ids, None, 2)
    actual, actual_probs = twice(lambda: kernels.cross_entropy(*device(logits, ids), None, 2))
    assert_near(actual, loss, FLOAT32)
    assert_near(actual_probs, probs, dtype)


def test_cross_entropy_accepts_any_layout(kernels: Any, dtype: Any, layout: Any) -> None:
    logits, ids, valid = random_array((12, 9), dtype), rng(1).integers(0, 9, 12), np.arange(12) % 3 > 0
    loss, probs = numpy_backend.cross_entropy(logits.astype(np.float64), ids, valid, None)
    d = layout(logits), layout(ids), layout(valid)
    actual, actual_probs = twice(lambda: kernels.cross_entropy(*d, None))
    assert_near(actual, loss, FLOAT32)
    assert_near(actual_probs, probs, dtype)
    g, probs = np.array(1.0, np.float32), probs.astype(dtype)
    expected = numpy_backend.cross_entropy_backward(*to_float64(g, probs), ids, valid)
    check(lambda: kernels.cross_entropy_backward(cupy.asarray(g), layout(probs), *d[1:]), expected, dtype)


def test_cross_entropy_of_non_finite_logits_matches_reference(kernels: Any) -> None:
    """The loss is infinite if the target has probability 0; nan logits give nan, in invalid rows too."""
    logits = np.zeros((4, 5), np.float32)
    logits[0, 2], logits[1, 1], logits[2] = -np.inf, np.nan, -np.inf
    ids, valid = np.array([2, 0, 0, 4]), np.array([True, False, False, True])
    with np.errstate(all="ignore"):
        loss, probs = numpy_backend.cross_entropy(logits.astype(np.float64), ids, valid, None)
        gradient = numpy_backend.cross_entropy_backward(np.float64(1.0), probs, ids, valid)
    d = device(logits, ids, valid)
    check(lambda: kernels.cross_entropy(*d, None), (loss, probs), FLOAT32)
    g = cupy.asarray(np.ones((), np.float32))
    check(lambda: kernels.cross_entropy_backward(g, cupy.asarray(probs.astype(np.float32)), *d[1:]), gradient, FLOAT32)
    with np.errstate(all="ignore"):
        loss, probs = numpy_backend.cross_entropy(logits[3:].astype(np.float64), ids[3:], None, 4)
    check(lambda: kernels.cross_entropy(d[0][3:], d[1][3:], None, 4), (loss, probs), FLOAT32)


def test_cross_entropy_of_an_empty_batch_is_nan(kernels: Any) -> None:
    logits, ids = device(np.zeros((0, 5), np.float32), np.zeros(0, np.int64))
    loss, probs = twice(lambda: kernels.cross_entropy(logits, ids, None, None))
    assert np.isnan(loss) and probs.shape == (0, 5)
    (gradient,) = twice(lambda: kernels.cross_entropy_backward(cupy.asarray(loss), logits, ids, None))
    assert gradient.shape == (0, 5)


# --- Attention


@pytest.fixture(autouse=True)
def _reference_takes_the_given_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's backward uses `out`, which is rounded here, as the kernels do; for few scores it would leave that to the
    formula, which computes it again."""
    monkeypatch.setattr(importlib.import_module("russellgrad.backends.numpy_attention"), "_FEW_SCORES", -1)


@dataclass(frozen=True)
class Attention:
    """The kernels of attention for a dtype, with float32 factors or rounded ones."""

    kernels: Any
    dtype: Any
    tf32: bool = False

    @property
    def is_exact(self) -> bool:
        return bool(self.dtype == FLOAT32 and not self.tf32)

    def forward(self, *args: Any) -> Any:
        return self.kernels.attention(*args, tf32=self.tf32)

    def backward(self, *args: Any) -> Any:
        return self.kernels.attention_backward(*args, tf32=self.tf32)


@pytest.fixture(params=["float32", "tf32", "bfloat16"])
def attention(request: pytest.FixtureRequest, kernels: Any) -> Attention:
    return attention_in(request.param, kernels)


def attention_in(name: str, kernels: Any) -> Attention:
    return Attention(kernels, bfloat16() if name == "bfloat16" else FLOAT32, name == "tf32")


def rounding_of_factors(
    attention: Attention, arrays: Sequence[Array], log_sum: Array, drop: Array | float, mask: Array | None,
    causal: bool, offset: int,
) -> list[Array | None]:  # fmt: skip
    """Bounds on the errors of out, log_sum and the gradients of q, k and v; `arrays` are g, q, k, v and out.

    Tensor cores round the factors of products: by at most 2^-8 of their size to bfloat16, 2^-11 to TF32. The weights
    and the gradients of the scores are factors, as in Dao, arXiv:2307.08691, and PyTorch. Rounding q, k, v and g (which
    in bfloat16 are given so) has an effect on the scores, too, and through them on the weights.
    """
    g, q, k, v, out = arrays
    scale, unit = 1 / np.sqrt(q.shape[-1]), 2.0**-11 if attention.tf32 else 2.0**-8
    given = unit if attention.tf32 else 0.0  # how much q, k, v and g are rounded
    hidden = np.arange(k.shape[-2]) > np.arange(q.shape[-2])[:, None] + (offset if causal else k.shape[-2])
    hidden = hidden if mask is None else hidden | mask
    weights = np.exp(np.where(hidden, -np.inf, q @ np.swapaxes(k, -1, -2) * scale - log_sum))
    slopes = weights * np.abs(g @ np.swapaxes(v, -1, -2) * drop - np.sum(g * out, -1, keepdims=True))
    g, q, k, v = np.abs(g), np.abs(q), np.abs(k), np.abs(v)
    relative = 2 * given * scale * (q @ np.swapaxes(k, -1, -2))  # the error of a weight, if its row has one sum
    of_sum = np.sum(weights * relative, -1, keepdims=True)
    dropped = weights * drop
    of_weights, of_out = dropped * (relative + unit + given), dropped * (relative + of_sum + unit + given)
    of_slopes = slopes * (relative + unit + given) + dropped * 2 * given * (g @ np.swapaxes(v, -1, -2))
    of_q, of_k, of_v = (
        scale * of_slopes @ k,
        scale * np.swapaxes(of_slopes, -1, -2) @ q,
        np.swapaxes(of_weights, -1, -2) @ g,
    )
    return [of_out @ v, of_sum, of_q, of_k, of_v]


def check_attention(
    attention: Attention,
    qkv: Sequence[Array],
    mask: Array | None = None,
    causal: bool = False,
    offset: int = 0,
    move: Callable[[Array], Array] | None = None,
    dropout: tuple[Array, float, Any] | None = None,
) -> tuple[Any, Any]:
    """Compare forward and backward with the reference. `move` copies q, k, v, g and out to the device."""
    to = move or (lambda a: cupy.asarray(a))
    (q, k, v), where, dtype = qkv, (mask, causal, offset), attention.dtype
    out, log_sum = numpy_backend.attention(*to_float64(q, k, v), *where, dropout)
    drop = 1.0 if dropout is None else mask_of_dropout((*out.shape[:-1], k.shape[-2]), *dropout)
    on_device = None if dropout is None else (cupy.asarray(dropout[0]), *dropout[1:])
    dq, dk, dv, dmask = to(q), to(k), to(v), device(mask)[0]
    g, rounded = random_array(out.shape, dtype, 9), out.astype(dtype)
    slack: list[Array | None] = [None] * 5
    if not attention.is_exact:
        slack = rounding_of_factors(attention, to_float64(g, q, k, v, rounded), log_sum, drop, *where)
    actual, actual_sum = twice(lambda: attention.forward(dq, dk, dv, dmask, causal, offset, on_device))
    assert_near(actual, out, dtype, what="out", slack=slack[0])
    assert_near(actual_sum, log_sum, FLOAT32, what="log_sum", slack=slack[1])
    out, log_sum = rounded, log_sum.astype(np.float32)
    needs = True, True, True
    expected = numpy_backend.attention_backward(*to_float64(g, q, k, v, out, log_sum), *where, needs, dropout)
    dg, dout, dlog_sum = to(g), to(out), cupy.asarray(log_sum)
    expected = [gradient.astype(np.float64) for gradient in expected]
    for needs in [(True, True, True), (True, False, False), (False, True, False), (False, False, True)]:
        wanted = [gradient if need else None for gradient, need in zip(expected, needs, strict=True)]
        args = (dg, dq, dk, dv, dout, dlog_sum, dmask, causal, offset, needs, on_device)
        check(partial(attention.backward, *args), wanted, dtype, atol=4e-5, slack=slack[2:])
    return dq, attention.forward(dq, dk, dv, dmask, causal, offset, on_device)[0]


def mask_of_dropout(shape: Sequence[int], key: Array, p: float, dtype: Any) -> Array:
    """The mask of dropout, in float64."""
    seed, low, high, start = map(int, key)
    drawn = host.uniform(tuple(shape), seed, high << 64 | low, start).astype(dtype)
    return np.where(drawn >= p, np.asarray(1 / (1 - p)).astype(dtype), 0).astype(np.float64)


def operands(batch: Sequence[int], n_queries: int, n_keys: int, d: int, e: int, dtype: Any) -> list[Array]:
    shapes = [(*batch, n_queries, d), (*batch, n_keys, d), (*batch, n_keys, e)]
    return [random_array(shape, dtype, seed) for seed, shape in enumerate(shapes)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 63, 64, 65, 200])
def test_attention_matches_reference_at_tile_boundaries(attention: Attention, n: int, causal: bool) -> None:
    check_attention(attention, operands((2,), n, n, 16, 16, attention.dtype), causal=causal)


@pytest.mark.parametrize(
    "widths",
    [(1, 1), (3, 5), (31, 33), (32, 32), (33, 8), (64, 64), (65, 1), (127, 128), (128, 100), (8, 128)],
    ids=str,
)
@pytest.mark.parametrize("lengths", [(5, 9), (40, 70)], ids=str)
def test_attention_matches_reference_for_any_head_width(
    attention: Attention, widths: tuple[int, int], lengths: tuple[int, int]
) -> None:
    assert attention.kernels.attention_takes(*device(*operands((), 1, 1, *widths, attention.dtype)))
    check_attention(attention, operands((2,), *lengths, *widths, attention.dtype), causal=True, offset=3)


@pytest.mark.parametrize("offset", [-200, -70, -33, -32, -1, 0, 1, 31, 32, 33, 70, 10**12, -(10**12)])
@pytest.mark.parametrize("lengths", [(70, 70), (3, 70), (70, 3)], ids=str)
def test_attention_with_an_offset_matches_reference(
    attention: Attention, lengths: tuple[int, int], offset: int
) -> None:
    """A negative offset masks all keys of the first queries; a large offset masks nothing."""
    check_attention(attention, operands((2,), *lengths, 8, 8, attention.dtype), causal=True, offset=offset)


@pytest.mark.parametrize("widths", [(20, 20), (40, 64), (100, 70)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "shape", [(2, 3, 37, 41), (2, 1, 1, 41), (1, 3, 37, 1), (37, 41), (41,), (3, 37, 41), (1, 1, 1, 1), ()], ids=str
)
def test_attention_with_a_mask_matches_reference(
    attention: Attention, shape: Sequence[int], causal: bool, widths: tuple[int, int]
) -> None:
    mask = rng(5).random(shape) < 0.4
    check_attention(attention, operands((2, 3), 37, 41, *widths, attention.dtype), np.asarray(mask), causal)


@pytest.mark.parametrize(
    ("batch", "lengths", "widths", "causal", "offset", "start", "p"),
    [
        ((2, 3), (70, 70), (20, 20), True, 0, 0, 0.2),
        ((2,), (65, 100), (64, 40), True, 20, 4 * 10**10 + 3, 0.5),
        ((2, 3), (33, 37), (100, 70), False, 0, 1, 0.2),
        ((1, 2, 2), (100, 64), (8, 8), True, -40, 6, 0.9),
        ((3,), (1, 31), (16, 16), False, 0, 2, 0.2),
    ],
    ids=str,
)
def test_attention_with_dropout_matches_reference(
    attention: Attention, batch: Sequence[int], lengths: tuple[int, int], widths: tuple[int, int], causal: bool,
    offset: int, start: int, p: float,
) -> None:  # fmt: skip
    """The weights that `dropout_mask` drops: from any position of the sequence, in rows that are no multiple of 32."""
    key = np.array([3, 5, 7, start], np.uint64)
    mask = rng(5).random(lengths) < 0.2
    qkv = operands(batch, *lengths, *widths, attention.dtype)
    check_attention(attention, qkv, mask, causal, offset, dropout=(key, p, attention.dtype))


@pytest.mark.parametrize("drawn", ["float32", "float64"])
def test_attention_takes_a_mask_of_dropout_in_another_dtype(attention: Attention, drawn: str) -> None:
    dropout = (np.array([3, 5, 7, 9], np.uint64), 0.3, np.dtype(drawn))
    check_attention(attention, operands((2,), 40, 40, 8, 8, attention.dtype), dropout=dropout)


def test_attention_with_dropout_without_queries_or_keys_is_zero(attention: Attention) -> None:
    key = np.zeros(4, np.uint64)
    for lengths in ((0, 5), (5, 0)):
        qkv = operands((2,), *lengths, 8, 8, attention.dtype)
        check_attention(attention, qkv, dropout=(key, 0.5, attention.dtype))


def test_attention_with_dropout_in_float16_is_left_to_the_formula(kernels: Any, dtype: Any) -> None:
    q, k, v = device(*operands((), 2, 2, 4, 4, dtype))
    key = cupy.zeros((4,), "uint64")
    assert kernels.attention_takes(q, k, v, (key, 0.5, dtype))
    assert not kernels.attention_takes(q, k, v, (key, 0.5, np.dtype("float16")))


def test_attention_of_fully_masked_rows_is_zero(attention: Attention) -> None:
    """A fully masked row has an output of zeros, an infinite log_sum and zero gradients."""
    mask = np.zeros((2, 40, 40), bool)
    mask[0, 3], mask[1] = True, True
    q, k, v = operands((2,), 40, 40, 8, 8, attention.dtype)
    check_attention(attention, (q, k, v), mask, True)
    out, log_sum = twice(lambda: attention.forward(*device(q, k, v, mask), True, 0))
    assert not out[0, 3].any() and not out[1].any()
    assert np.isinf(log_sum[0, 3]).all() and np.isinf(log_sum[1]).all() and np.isfinite(log_sum[0, 4:]).all()


@pytest.mark.parametrize(
    "batches",
    [
        ((), (), ()),
        ((3,), (1,), (3,)),
        ((2, 3), (3,), ()),
        ((2, 1), (1, 3), (2, 3)),
        ((2, 1, 3), (4, 1), (1,)),
        ((0,),) * 3,
    ],
    ids=str,
)
def test_attention_broadcasts_batch_axes(attention: Attention, batches: Sequence[Sequence[int]]) -> None:
    """The gradients keep all batch axes; they are not summed."""
    shapes = [(*batch, n, 6) for batch, n in zip(batches, (5, 7, 7), strict=True)]
    q, k, v = (random_array(shape, attention.dtype, seed) for seed, shape in enumerate(shapes))
    check_attention(attention, (q, k, v), np.arange(7) == 2)


@pytest.mark.parametrize("lengths", [(0, 5), (5, 0), (0, 0)], ids=str)
def test_attention_without_queries_or_keys_is_zero(attention: Attention, lengths: tuple[int, int]) -> None:
    q, k, v = operands((2, 3), *lengths, 4, 6, attention.dtype)
    g = random_array((2, 3, lengths[0], 6), attention.dtype)
    out, log_sum = twice(lambda: attention.forward(*device(q, k, v), None, False, 0))
    assert out.shape == g.shape and not out.any()
    assert np.isposinf(log_sum).all() and log_sum.shape == (2, 3, lengths[0], 1)
    args = (*device(g, q, k, v, out, log_sum), None, False, 0, (True, True, True))
    for gradient, operand in zip(twice(lambda: attention.backward(*args)), (q, k, v), strict=True):
        assert gradient.shape == operand.shape and not gradient.any()


def test_attention_of_zero_width_values_is_empty(attention: Attention) -> None:
    q, k, v = operands((2,), 5, 6, 4, 0, attention.dtype)
    out, log_sum = twice(lambda: attention.forward(*device(q, k, v), None, False, 0))
    assert out.shape == (2, 5, 0)
    expected = numpy_backend.attention(*to_float64(q, k, v), None, False, 0)[1]
    assert_near(log_sum, expected, FLOAT32, atol=1e-3 if attention.tf32 else 2e-5)


def split_heads_view(a: Array) -> Array:
    """(B, H, n, width) on the device as a view of (B, n, H, width), the layout after splitting the heads."""
    return cupy.asarray(np.ascontiguousarray(a.transpose(0, 2, 1, 3))).transpose(0, 2, 1, 3)


@pytest.mark.parametrize("width", [16, 5])
def test_attention_output_keeps_the_strides_of_the_query(attention: Attention, width: int) -> None:
    q, k, v = operands((2, 3), 33, 33, width, width, attention.dtype)
    dq, out = check_attention(attention, (q, k, v), causal=True, move=split_heads_view)
    assert out.strides == dq.strides
    _, out = check_attention(attention, (q, k, v), causal=True)
    assert out.flags.c_contiguous


@pytest.mark.parametrize("width", [16, 5])
def test_attention_accepts_any_layout(attention: Attention, width: int, layout: Any) -> None:
    check_attention(attention, operands((2, 3), 9, 33, width, width, attention.dtype), move=layout)


def test_attention_rescales_when_the_maximum_grows(attention: Attention) -> None:
    """The scores grow from tile to tile and overflow unless the maximum is subtracted."""
    q, k, v = operands((1,), 3, 200, 4, 4, attention.dtype)
    q[...], k[...] = 10.0, np.arange(-100, 100)[:, None] / 8  # not rounded by TF32 or bfloat16
    out, log_sum = numpy_backend.attention(*to_float64(q, k, v), None, False, 0)
    actual, actual_sum = twice(lambda: attention.forward(*device(q, k, v), None, False, 0))
    atol = 1e-4 if attention.is_exact else 2.0**-7  # scores of 250 already have errors of 3e-5
    assert_near(actual, out, attention.dtype, atol=atol)
    assert_near(actual_sum, log_sum, FLOAT32, atol=1e-4)


def test_attention_of_non_finite_scores_matches_reference(attention: Attention) -> None:
    """As in the reference, nan stays in its row, a score of inf gives nan, and -inf gives a weight of 0."""
    q, k, v = operands((1,), 5, 40, 4, 4, attention.dtype)
    k = np.abs(k)
    q[0, 1, 0], q[0, 2], q[0, 3] = np.nan, np.inf, -np.inf
    with np.errstate(all="ignore"):
        expected = numpy_backend.attention(*to_float64(q, k, v), None, False, 0)
    assert np.isnan(expected[0][0, 1:3]).all() and not expected[0][0, 3].any()
    out, log_sum = twice(lambda: attention.forward(*device(q, k, v), None, False, 0))
    assert_near(out, expected[0], attention.dtype, atol=2e-5 if attention.is_exact else 2.0**-7)
    assert_near(log_sum, expected[1], FLOAT32, atol=2.0**-7 if attention.tf32 else 2e-5)


INSTRUCTIONS = """
template <typename T>
__global__ void product(const unsigned* a, const unsigned* b, float* c) {
    const int lane = threadIdx.x;
    unsigned x[4];
    float z[4];
    for (int i = 0; i < 4; i++) x[i] = a[4 * lane + i], z[i] = c[4 * lane + i];
    mma<T>(z, x, b[2 * lane], b[2 * lane + 1]);
    for (int i = 0; i < 4; i++) c[4 * lane + i] = z[i];
}

__global__ void matrices(const bf16* rows, unsigned* straight, unsigned* transposed) {
    alignas(16) __shared__ bf16 tile[32][24];
    const int lane = threadIdx.x;
    unsigned x[4], y[4];
    for (int i = 0; i < 8; i++) tile[lane][i] = rows[8 * lane + i];
    __syncwarp();
    ldmatrix(x, tile[lane]);
    ldmatrix_trans(y, tile[lane]);
    for (int i = 0; i < 4; i++) straight[4 * lane + i] = x[i], transposed[4 * lane + i] = y[i];
}

__global__ void pairs(const float* x, const float* y, unsigned* out) {
    out[threadIdx.x] = cvt_bf16x2(x[threadIdx.x], y[threadIdx.x]);
}

__global__ void tf32(const float* x, unsigned* out) { out[threadIdx.x] = cvt_tf32(x[threadIdx.x]); }
"""


@pytest.fixture(scope="module")
def instruction(kernels: Any) -> Callable[[str], Any]:
    """The kernels of INSTRUCTIONS, by name, for one warp; on a device they test the indices against the hardware."""
    names = ("product<bf16>", "product<float>", "matrices", "pairs", "tf32")
    module = cupy.RawModule(code=kernels.SOURCE + INSTRUCTIONS, options=("-std=c++17",), name_expressions=names)
    return lambda name: partial(module.get_function(name), (1,), (32,))


def in_registers(elements: Array) -> Array:
    """(32, n) float32, or (32, 2 n) bfloat16, the first of two in the lower half of a register -> (32, n) uint32."""
    return np.ascontiguousarray(elements).view(np.uint32)


GROUP, IN_GROUP = np.arange(32)[:, None] // 4, np.arange(32)[:, None] % 4  # as PTX names them


def result_indices() -> tuple[Array, Array]:
    i = np.arange(4)
    return np.where(i < 2, GROUP, GROUP + 8), IN_GROUP * 2 + (i & 1)


def factors_bf16() -> Sequence[Array]:
    """Integers, whose sums are exact: a (16, 16), b (16, 8) and c (16, 8), and the lanes' fragments of them.

    The indices are those of the PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type".
    """
    a, b, c = (rng(seed).integers(-9, 10, shape) for seed, shape in enumerate([(16, 16), (16, 8), (16, 8)]))
    i = np.arange(8)
    a_row = np.where((i < 2) | ((i >= 4) & (i < 6)), GROUP, GROUP + 8)
    a_column = IN_GROUP * 2 + (i & 1) + np.where(i >= 4, 8, 0)
    i = np.arange(4)
    b_row = IN_GROUP * 2 + (i & 1) + np.where(i >= 2, 8, 0)
    of_a, of_b = a.astype(bfloat16())[a_row, a_column], b.astype(bfloat16())[b_row, GROUP]
    return a, b, c, in_registers(of_a), in_registers(of_b), c.astype(np.float32)[result_indices()]


def factors_tf32() -> Sequence[Array]:
    """As factors_bf16, with the indices of "Matrix fragments for mma.m16n8k8", and numbers of 11 bits, as TF32 has."""
    a, b, c = (rng(seed).integers(-2047, 2048, shape) for seed, shape in enumerate([(16, 8), (8, 8), (16, 8)]))
    a, b = a // 64 * 64 + 32, b % 64  # so sums are exact in float32
    i = np.arange(4)
    a_row, a_column = np.where(i % 2 == 0, GROUP, GROUP + 8), IN_GROUP + np.where(i >= 2, 4, 0)
    of_a, of_b = a.astype(np.float32)[a_row, a_column], b.astype(np.float32)[IN_GROUP + 4 * np.arange(2), GROUP]
    return a, b, c, in_registers(of_a), in_registers(of_b), c.astype(np.float32)[result_indices()]


@pytest.mark.parametrize(("name", "factors"), [("bf16", factors_bf16), ("float", factors_tf32)], ids=["bf16", "tf32"])
def test_mma_has_the_documented_fragments(
    instruction: Callable[[str], Any], name: str, factors: Callable[[], Sequence[Array]]
) -> None:
    a, b, c, *fragments = factors()
    of_a, of_b, of_c = device(*fragments)
    instruction(f"product<{name}>")((of_a, of_b, of_c))
    np.testing.assert_array_equal(of_c.get(), (a @ b + c)[result_indices()])


@only_on_stand_in
def test_mma_of_a_factor_that_is_not_rounded_raises(instruction: Callable[[str], Any]) -> None:
    """A device ignores the last 13 bits, which rounds towards zero."""
    *_, of_a, of_b, of_c = factors_tf32()
    of_b[5, 1] += 1
    with pytest.raises(Misuse, match="a factor of mma_tf32 is not rounded to TF32: a device would truncate it"):
        instruction("product<float>")(tuple(device(of_a, of_b, of_c)))


def test_ldmatrix_has_the_documented_fragments(instruction: Callable[[str], Any]) -> None:
    """Lane 8 i + j has the address of row j of matrix i."""
    matrices = np.arange(256).reshape(4, 8, 8).astype(bfloat16())
    results = [cupy.zeros((32, 4), np.uint32) for _ in range(2)]
    instruction("matrices")((cupy.asarray(matrices), *results))
    for result, of in zip(results, (matrices, matrices.swapaxes(1, 2)), strict=True):
        elements = of[:, GROUP, IN_GROUP * 2 + np.arange(2)]  # (matrix, lane, 2)
        np.testing.assert_array_equal(result.get(), in_registers(elements.swapaxes(0, 1).reshape(32, 8)))


def test_cvt_bf16x2_rounds_to_nearest_even(instruction: Callable[[str], Any]) -> None:
    x, y = random_array((32,), FLOAT32), random_array((32,), FLOAT32, 1)
    x[:6] = [np.inf, -np.inf, 3.4e38, 1.00390625, 1.01171875, -0.0]  # the fourth and fifth are ties
    out = cupy.zeros((32, 1), np.uint32)
    instruction("pairs")((*device(x, y), out))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out.get(), in_registers(np.stack([x, y], 1).astype(bfloat16())))


def test_cvt_tf32_rounds_ties_away_from_zero(instruction: Callable[[str], Any]) -> None:
    """To 11 significant bits. A nan stays one."""
    x = random_array((32,), FLOAT32)
    x[:8] = [np.nan, np.inf, -np.inf, -0.0, 1 + 2.0**-11, 1 + 3 * 2.0**-11, -1 - 2.0**-11, 1 + 2.0**-11 - 2.0**-23]
    out = cupy.zeros((32,), np.uint32)
    instruction("tf32")((cupy.asarray(x), out))
    rounded = out.get().view(np.float32)
    fraction, exponent = np.frexp(x[8:].astype(np.float64))
    expected = np.ldexp(np.sign(fraction) * np.floor(np.abs(fraction) * 2.0**11 + 0.5), exponent - 11)
    np.testing.assert_array_equal(rounded[8:], expected.astype(np.float32))
    up = 1 + 2.0**-10
    expected = np.array([np.nan, np.inf, -np.inf, -0.0, up, up + 2.0**-10, -up, 1], np.float32)
    np.testing.assert_array_equal(rounded[:8], expected)


@pytest.mark.parametrize("width", [32, 64, 128])
def test_attention_in_tf32_is_as_accurate_as_its_rounded_factors(kernels: Any, width: int) -> None:
    """Six factors are rounded, in three products one after another. An error that is evenly distributed in +-2^-11 has
    a standard deviation of 2^-11 / sqrt(3).
    """
    q, k, v = operands((3,), 150, 150, width, width, FLOAT32)
    g, where = random_array(q.shape, FLOAT32, 9), (None, True, 0)
    out, log_sum = numpy_backend.attention(*to_float64(q, k, v), *where)
    actual = [kernels.attention(*device(q, k, v), *where, tf32=True)[0]]
    given = (g, q, k, v, out.astype(np.float32), log_sum.astype(np.float32))
    expected = [out, *numpy_backend.attention_backward(*to_float64(*given), *where, (True,) * 3)]
    actual += kernels.attention_backward(*device(*given), *where, (True,) * 3, tf32=True)
    for result, reference in zip(actual, expected, strict=True):
        error = np.linalg.norm(result.get() - reference) / np.linalg.norm(reference)
        assert 1e-4 < error < np.sqrt(6 / 3) * 2.0**-11


@pytest.mark.parametrize("width", [32, 64, 128])
def test_attention_in_bfloat16_is_nearly_as_accurate_as_its_rounded_result(kernels: Any, width: int) -> None:
    """Rounding the factors adds about as much as rounding the result: the square root of 2 in all."""
    dtype = bfloat16()
    q, k, v = operands((3,), 150, 150, width, width, dtype)
    g, where = random_array(q.shape, dtype, 9), (None, True, 0)
    out, log_sum = numpy_backend.attention(*to_float64(q, k, v), *where)
    actual = [kernels.attention(*device(q, k, v), *where)[0]]
    given = (g, q, k, v, out.astype(dtype), log_sum.astype(np.float32))
    expected = [out, *numpy_backend.attention_backward(*to_float64(*given), *where, (True,) * 3)]
    actual += kernels.attention_backward(*device(*given), *where, (True,) * 3)
    for result, reference in zip(actual, expected, strict=True):
        error = result.get().astype(np.float64) - reference
        of_rounding = reference.astype(dtype).astype(np.float64) - reference
        assert np.mean(error**2) < 1.5**2 * np.mean(of_rounding**2)


def test_attention_of_too_wide_heads_raises(kernels: Any) -> None:
    q, k, v = device(*operands((), 2, 2, 129, 4, FLOAT32))
    assert not kernels.attention_takes(q, k, v)
    with pytest.raises(ValueError, match="the heads have width 129; the kernels take up to 128"):
        kernels.attention(q, k, v, None, False, 0)


def test_attention_takes_bfloat16_only_with_tensor_cores_for_it(
    kernels: Any, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = device(*operands((), 2, 2, 4, 4, dtype))
    assert kernels.attention_takes(q, k, v)
    monkeypatch.setattr(kernels, "_has_tensor_cores", lambda: False)  # before sm_80
    assert kernels.attention_takes(q, k, v) == (dtype == FLOAT32)


def test_attention_in_tf32_is_that_of_float32_without_tensor_cores(
    kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The instructions of tensor cores would end the program on a device before sm_80."""
    g, q, k, v = device(*(random_array((2, 5, 8), FLOAT32, seed) for seed in range(4)))
    monkeypatch.setattr(kernels, "_has_tensor_cores", lambda: False)

    def results(tf32: bool) -> list[Array]:
        out, log_sum = kernels.attention(q, k, v, None, True, 0, tf32=tf32)
        gradients = kernels.attention_backward(g, q, k, v, out, log_sum, None, True, 0, (True,) * 3, tf32=tf32)
        return [a.get() for a in (out, log_sum, *gradients)]

    for actual, expected in zip(results(True), results(False), strict=True):
        np.testing.assert_array_equal(actual, expected)


# --- Embedding


@pytest.mark.parametrize("n_rows", [1, 2, 97, 128, 384])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3, 31), (600, 33), (40, 300)], ids=str)
def test_embedding_backward_matches_reference(kernels: Any, dtype: Any, shape: Sequence[int], n_rows: int) -> None:
    g, ids = random_array(shape, dtype, scale=0.2), rng(1).integers(0, n_rows, shape[:-1])
    ids.reshape(-1)[::2] = n_rows - 1  # repeated ids
    expected = numpy_backend.embedding_backward(g.astype(np.float64), ids, n_rows)
    assert kernels.embedding_takes(n_rows)
    dg, dids = device(g, ids)
    check(lambda: kernels.embedding_backward(dg, dids, n_rows), expected, dtype)


def test_embedding_backward_accepts_any_layout(kernels: Any, dtype: Any, layout: Any) -> None:
    g, ids = random_array((30, 7), dtype), rng(1).integers(0, 5, 30)
    expected = numpy_backend.embedding_backward(g.astype(np.float64), ids, 5)
    check(lambda: kernels.embedding_backward(layout(g), layout(ids), 5), expected, dtype)


def test_embedding_backward_keeps_nan_in_its_row(kernels: Any) -> None:
    g, ids = random_array((20, 4), FLOAT32), np.arange(20) % 5
    g[3] = np.nan
    (out,) = twice(lambda: kernels.embedding_backward(*device(g, ids), 5))
    assert np.isnan(out[3]).all() and np.isfinite(np.delete(out, 3, 0)).all()


@pytest.mark.parametrize(("shape", "n_rows"), [((0, 4), 3), ((3, 0), 3), ((0, 4), 0)], ids=str)
def test_embedding_backward_of_empty_gradients_is_zero(kernels: Any, shape: Sequence[int], n_rows: int) -> None:
    g, ids = device(np.zeros(shape, np.float32), np.zeros(shape[:-1], np.int64))
    (out,) = twice(lambda: kernels.embedding_backward(g, ids, n_rows))
    assert out.shape == (n_rows, shape[-1]) and not out.any()


def test_embedding_backward_with_too_many_rows_raises(kernels: Any) -> None:
    assert not kernels.embedding_takes(385)
    with pytest.raises(ValueError, match="385 rows; the kernel takes up to 384"):
        kernels.embedding_backward(*device(np.zeros((2, 3), np.float32), np.zeros(2, np.int64)), 385)


# --- Optimizer steps


@pytest.mark.parametrize("n", [0, 1, 7, 1000, 5003, 3 * 10**6])
def test_clip_scale_matches_reference(kernels: Any, dtype: Any, n: int) -> None:
    g = random_array((n,), dtype, scale=1 / max(n, 1) ** 0.5)
    total = np.sum(g.astype(np.float64) ** 2)
    for max_norm in (0.1, 100.0):
        expected = np.sqrt(total), np.minimum(1, max_norm / (np.sqrt(total) + 1e-6))
        check(partial(kernels.clip_scale, cupy.asarray(g), max_norm), expected, FLOAT32)
        check(partial(kernels.clip_scale, unaligned(g), max_norm), expected, FLOAT32)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_clip_scale_of_non_finite_gradients_matches_reference(kernels: Any, bad: float) -> None:
    g = cupy.asarray(np.array([1, bad, 2], np.float32))
    expected = np.array(bad), np.array(np.nan if np.isnan(bad) else 0.0)
    check(lambda: kernels.clip_scale(g, 1.0), expected, FLOAT32)


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("n", [0, 1, 5, 64, 1023, 3000])
@pytest.mark.parametrize("place", ["aligned", "unaligned"])
def test_adam_step_matches_reference(
    kernels: Any, dtype: Any, n: int, weight_decay: float, decoupled: bool, place: str
) -> None:
    """Three steps; all but the first have a clip scale, and bfloat16 cases also write a bfloat16 copy."""
    has_low = dtype.itemsize == 2
    to = unaligned if place == "unaligned" else cupy.asarray
    start = [random_array((n,), FLOAT32, 1), np.zeros(n, np.float32), np.zeros(n, np.float32)]
    beta1, beta2, eps, lr = 0.9, 0.95, 1e-8, 0.01

    def steps() -> list[Array]:
        p, m, v = (to(a) for a in start)
        low = to(np.zeros(n, dtype)) if has_low else None
        for step in (1, 2, 3):
            g = to(random_array((n,), dtype, 10 + step))
            rates = np.array([lr / (1 - beta1**step), (1 - beta2**step) ** 0.5, lr * weight_decay], np.float32)
            clip = None if step == 1 else cupy.asarray(np.array(0.3, np.float32))
            args = (cupy.asarray(rates), clip, beta1, beta2, eps, weight_decay, decoupled)
            kernels.adam_step(p, g, m, v, *args, low)
        return [p, m, v, low]

    p, m, v = to_float64(*start)
    for step in (1, 2, 3):
        g = random_array((n,), dtype, 10 + step).astype(np.float64) * (
            1.0 if step == 1 else np.float64(np.float32(0.3))
        )
        rates = np.array([lr / (1 - beta1**step), (1 - beta2**step) ** 0.5, lr * weight_decay])
        numpy_backend.adam_step(p, g, m, v, rates, None, beta1, beta2, eps, weight_decay, decoupled, None)
    *actual, low = twice(steps)
    for a, b in zip(actual, (p, m, v), strict=True):
        assert_near(a, b, FLOAT32, atol=2e-6)
    if low is not None:
        assert low.tobytes() == actual[0].astype(dtype).tobytes()


def test_adam_step_rounds_the_low_precision_copy_to_nearest_even(kernels: Any) -> None:
    dtype = bfloat16()
    p = np.array([np.nan, np.inf, -np.inf, 3.4e38, 1.00390625, 1.01171875], np.float32)  # the last two are ties
    p.view(np.uint32)[0] = 0x7FFFFFFF  # a device's nan; rounding it up would give -0
    m, v, g = np.zeros(6, np.float32), np.zeros(6, np.float32), np.zeros(6, np.float32)

    def step() -> Array:
        rates, low = cupy.asarray(np.array([0, 1, 0], np.float32)), cupy.asarray(np.zeros(6, dtype))
        kernels.adam_step(*device(p, g, m, v), rates, None, 0.9, 0.9, 1e-8, 0.0, True, low)
        return low

    with np.errstate(invalid="ignore"):
        expected = p.astype(dtype)
    (actual,) = twice(step)
    assert np.isnan(actual[0])
    assert actual[1:].tobytes() == expected[1:].tobytes()


def test_adam_step_of_non_contiguous_arrays_raises(kernels: Any) -> None:
    a = cupy.asarray(np.zeros(6, np.float32))
    with pytest.raises(ValueError, match="updated in place and must be C-contiguous"):
        kernels.adam_step(a[::2], a[:3], a[:3], a[:3], a[:3], None, 0.9, 0.9, 1e-8, 0.0, True, None)


# --- Random numbers


@pytest.mark.parametrize("shape", [(), (1,), (3,), (4,), (5,), (7, 9), (5000,), (0, 3)], ids=str)
@pytest.mark.parametrize(
    ("seed", "counter", "start"),
    [(0, 0, 0), (3, 5, 1), (2**64 - 1, 2**63 - 1, 2), (7, 2 << 64 | 9, 4 * 10**10 + 3), (7, 1, 8)],
)
def test_uniform_matches_the_host_bitwise(
    kernels: Any, dtype: Any, shape: Sequence[int], seed: int, counter: int, start: int
) -> None:
    key = cupy.asarray(np.array([seed, counter % 2**64, counter >> 64, start], np.uint64))
    (actual,) = twice(lambda: kernels.uniform(shape, dtype, key))
    expected = host.uniform(tuple(shape), seed, counter, start).astype(dtype)
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    assert actual.tobytes() == expected.tobytes()
    for p in (0.2, 0.5):
        (actual,) = twice(partial(kernels.dropout_mask, shape, key, p, dtype))
        wanted = np.where(expected.astype(np.float64) < np.asarray(p, np.float32), 0, 1 / (1 - p)).astype(dtype)
        assert actual.tobytes() == wanted.tobytes()


# --- Accepted dtypes


def test_takes_rejects_float64_and_integers(kernels: Any) -> None:
    single, double, whole = (cupy.zeros((2,), name) for name in ("float32", "float64", "int64"))
    assert kernels.takes(single) and kernels.takes(single, None, single)
    assert not kernels.takes(double) and not kernels.takes(single, double) and not kernels.takes(whole)


def test_takes_requires_one_dtype(kernels: Any, dtype: Any) -> None:
    a = cupy.zeros((2,), dtype)
    assert kernels.takes(a, None)
    assert kernels.takes(a, cupy.zeros((2,), "float32")) == (dtype == np.float32)


def test_unsupported_dtypes_raise(kernels: Any) -> None:
    """Without the check, a kernel would read the bytes as float32."""
    double, single, ids = cupy.zeros((2, 3)), cupy.zeros((2, 3), "float32"), cupy.zeros((2,), "int32")
    for call in (
        lambda: kernels.softmax(double),
        lambda: kernels.gelu_backward(single, cupy.zeros((3,)), "none"),
        lambda: kernels.layer_norm_backward(single, single, None, double, double, (True, False, False)),
        lambda: kernels.cross_entropy(single, ids, None, None),
        lambda: kernels.attention(single, single, single, ids, False, 0),
        lambda: kernels.uniform((3,), np.float16, cupy.zeros((4,), "uint64")),
    ):
        with pytest.raises(TypeError, match=r"the kernels take arrays that are all float32|must be"):
            call()


# --- Injected errors, which these tests must detect

FORWARD, FORWARD_BF16, FORWARD_TF32 = "attention<32>", "attention_mma<bf16, 32>", "attention_mma<float, 32>"
OF_ATTENTION = ("attention{}<{}32>", "attention_backward_q{}<{}32>", "attention_backward_kv{}<{}32>")
ATTENTION = {
    "float32": [name.format("", "") for name in OF_ATTENTION],
    "tf32": [name.format("_mma", "float, ") for name in OF_ATTENTION],
    "bfloat16": [name.format("_mma", "bf16, ") for name in OF_ATTENTION],
}
START = "// q (B, H, L, d), k (B, H, S, d), v (B, H, S, e)"
BARRIERS = ("__syncthreads();", "__syncwarp();")
# TF32 runs the source of bfloat16, without the __syncwarp in store_rows.
N_BARRIERS = {"float32": 12, "tf32": 8, "bfloat16": 9}


def barriers(source: str, name: str) -> list[tuple[int, str]]:
    """Position and text of each barrier in the attention kernels for a dtype."""
    starts = [source.index(text) for text in (START, "// --- Attention on tensor cores", "// --- Embedding")]
    part = range(*starts[:2]) if name == "float32" else range(*starts[1:])
    used = BARRIERS[:1] if name == "tf32" else BARRIERS
    return [(i, barrier) for i in part for barrier in used if source.startswith(barrier, i)]


def attention_results(attention: Attention) -> list[Array]:
    q, k, v = (a[None] for a in operands((), 70, 70, 20, 20, attention.dtype))
    g = random_array(q.shape, attention.dtype, 9)
    dg, dq, dk, dv = device(g, q, k, v)
    out, log_sum = attention.forward(dq, dk, dv, None, True, 0)
    gradients = attention.backward(dg, dq, dk, dv, out, log_sum, None, True, 0, (True, True, True))
    return [a.get() for a in (out, log_sum, *gradients)]


@only_on_stand_in
@pytest.mark.parametrize(("name", "n"), [(name, n) for name, count in N_BARRIERS.items() for n in range(count)])
def test_missing_barrier_is_detected(name: str, n: int) -> None:
    names, source = ATTENTION[name], load().SOURCE
    assert len(barriers(source, name)) == N_BARRIERS[name]
    start, barrier = barriers(source, name)[n]
    wrong = load(lambda s: s[:start] + s[start + len(barrier) :], names)
    right = attention_results(attention_in(name, load(names=names)))

    def differs(seed: int) -> bool:
        reseed(seed)
        results = attention_results(attention_in(name, wrong))
        return any(a.tobytes() != b.tobytes() for a, b in zip(results, right, strict=True))

    assert any(differs(seed) for seed in range(20))


def call_layer_norm(kernels: Any) -> None:
    kernels.layer_norm(cupy.zeros((9, 5), "float32"), None, None, 1e-5)


def call_elementwise(kernels: Any) -> None:
    kernels.elementwise("ADD", cupy.zeros((5, 33), "float32"), cupy.zeros((33,), "float32"))


def call_gelu(kernels: Any) -> None:
    kernels.gelu(cupy.zeros((1, 33), "float32"), "none")


def call_attention(kernels: Any) -> None:
    a = cupy.zeros((1, 33, 32), "float32")
    kernels.attention(a, a, a, None, False, 0)


def call_attention_bf16(kernels: Any) -> None:
    a = cupy.zeros((1, 33, 32), bfloat16())
    kernels.attention(a, a, a, None, False, 0)


def call_attention_tf32(kernels: Any) -> None:
    a = cupy.zeros((1, 33, 32), "float32")
    kernels.attention(a, a, a, None, False, 0, tf32=True)


def call_masked_attention(kernels: Any) -> None:
    a = cupy.zeros((1, 33, 32), "float32")
    kernels.attention(a, a, a, cupy.zeros((33, 33), "bool"), False, 0)


def call_uniform(kernels: Any) -> None:
    kernels.uniform((5,), np.float32, cupy.zeros((4,), "uint64"))


def call_adam(kernels: Any) -> None:
    p, g, m, v = (cupy.zeros((5,), "float32") for _ in range(4))
    kernels.adam_step(p, g, m, v, cupy.ones((3,), "float32"), None, 0.9, 0.9, 1e-8, 0.0, True, None)


def call_embedding(kernels: Any) -> None:
    kernels.embedding_backward(cupy.zeros((3, 5), "float32"), cupy.zeros((3,), "int64"), 4)


# name: kernel, original text, replacement, call
BOUNDS_BUGS: dict[str, tuple[str, str, str, Callable[[Any], None]]] = {
    "one row too many": ("layer_norm<float, 1>", "if (row >= n) return;", "if (row > n) return;", call_layer_norm),
    "one row of an elementwise sum too many": (
        "elementwise<float, 1, ADD>",
        "if (row >= n) return;",
        "if (row > n) return;",
        call_elementwise,
    ),
    "one element too many": ("activation<float, 1, GELU>", "if (i >= n) return;", "if (i > n) return;", call_gelu),
    "one key too many": (FORWARD, "start + row < n &&", "start + row <= n &&", call_attention),
    "one query too many": (
        FORWARD,
        "if (query >= n_queries) continue;",
        "if (query > n_queries) continue;",
        call_attention,
    ),
    "one key too many in bfloat16": (FORWARD_BF16, "u * STEP < end", "u * STEP <= end", call_attention_bf16),
    "one key too many in TF32": (FORWARD_TF32, "u * STEP < end", "u * STEP <= end", call_attention_tf32),
    "one query too many in TF32": (
        FORWARD_TF32,
        "if (row >= n - start) continue;",
        "if (row > n - start) continue;",
        call_attention_tf32,
    ),
    "one query too many in bfloat16": (
        FORWARD_BF16,
        "if (start + row >= n || column >= width) continue;",
        "if (start + row > n || column >= width) continue;",
        call_attention_bf16,
    ),
    "one log sum too many in bfloat16": (
        FORWARD_BF16,
        "if (lane % 4 == 0 && query < n_queries) {",
        "if (lane % 4 == 0 && query <= n_queries) {",
        call_attention_bf16,
    ),
    "mask past the end": (FORWARD, "(query >= n_queries || mask", "(query > n_queries || mask", call_masked_attention),
    "one random number too many": ("uniform<float, false>", "at < n)", "at <= n)", call_uniform),
    "one weight too many": ("adam_step<float>", "j < i + 4 && j < n", "j < i + 4 && j <= n", call_adam),
    "table too small": ("embedding_backward<float>", "TABLE = 12288", "TABLE = 100", call_embedding),
}


@only_on_stand_in
@pytest.mark.parametrize("name", BOUNDS_BUGS)
def test_out_of_bounds_access_is_detected(name: str) -> None:
    kernel, original, replacement, call = BOUNDS_BUGS[name]
    assert original in load().SOURCE
    names = (kernel, "column_sums<float>")
    reseed(0)
    call(load(names=names))
    wrong = load(lambda source: source.replace(original, replacement), names)

    def raises_misuse(seed: int) -> bool:
        reseed(seed)
        try:
            call(wrong)
        except Misuse:
            return True
        return False

    assert any(raises_misuse(seed) for seed in (0, 1))  # arrays at the start and at the end of their pages
