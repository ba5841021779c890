"""Functions that create tensors, against NumPy and PyTorch: values, dtypes, gradients, errors."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import russellgrad as rg
from russellgrad import Tensor, no_grad, use_backend
from russellgrad.backend import Backend
from russellgrad.random import Generator
from tests.helpers import assert_close, once, to_numpy

inf, nan = math.inf, math.nan
LIKE = (rg.zeros_like, rg.ones_like, rg.randn_like, rg.rand_like)


@pytest.mark.parametrize("shape", [(), 0, 3, (2,), (2, 3), (2, 0, 3), [2, 3], np.int64(3), (np.int64(2), 3)])
def test_zeros_ones_and_full(backend: Backend, shape: Any) -> None:
    assert_close(rg.zeros(shape), np.zeros(shape))
    assert_close(rg.ones(shape), np.ones(shape))
    assert_close(rg.full(shape, fill_value=0.1), np.full(shape, 0.1))
    for dtype in ("float32", "float16", "int64", "uint8", "bool", np.float32, np.dtype("int32")):
        assert_close(rg.zeros(shape, dtype), np.zeros(shape, dtype))
        assert_close(rg.ones(shape, dtype=dtype), np.ones(shape, dtype))
        assert_close(rg.full(shape, 1, dtype), np.full(shape, 1, dtype))


def test_the_dtype_is_that_of_a_tensor_of_the_numbers(backend: Backend) -> None:
    for value in (2, 2.5, True, inf, nan):
        assert_close(rg.full(3, value), Tensor([value] * 3).numpy())
    scalars: list[Any] = [np.float32(2), np.int8(2), np.True_]
    for scalar in scalars:  # act as Python's numbers
        assert_close(rg.full(3, scalar), Tensor([scalar.item()] * 3).numpy())
    rg.set_default_dtype("float32")
    try:
        made = [
            rg.zeros(2),
            rg.ones(2),
            rg.full(2, 1),
            rg.arange(2.0),
            rg.linspace(0, 1),
            rg.eye(2),
            rg.randn(2),
            rg.rand(2),
        ]
        assert {str(x.dtype) for x in made} == {"float32"}
        assert rg.arange(2).dtype == np.int64
    finally:
        rg.set_default_dtype("float64")


ARANGES: list[tuple[Any, ...]] = [
    (5,), (0,), (-3,), (2, 8), (2, 8, 3), (2, 9, 3), (8, 2, -3), (8, 2), (5.0,), (0, 1, 0.1), (0.0, 1.0, 0.25),
    (1, -1, -0.5), (0.5, 3), (2**53, 2**53 + 3), (np.int32(4),), (np.float32(3),), (3, 3), (10, 0, -3), (0, 1, 0.3),
    (1, 0, 0.5),
]  # fmt: skip


@pytest.mark.parametrize("arguments", ARANGES, ids=str)
def test_arange(backend: Backend, arguments: tuple[Any, ...]) -> None:
    found = rg.arange(*arguments)
    plain = [x.item() if isinstance(x, np.generic) else x for x in arguments]
    assert_close(found, np.arange(*plain), atol=1e-15)
    assert found.requires_grad == (found.dtype.kind == "f")
    cast: dict[str, Any] = {"dtype": "float32"}
    assert_close(rg.arange(*arguments, **cast), np.arange(*plain).astype("float32"), atol=1e-7)


def test_arange_has_pytorchs_numbers(backend: Backend) -> None:
    assert_close(rg.arange(0, 1, 0.001), torch.arange(0, 1, 0.001, dtype=torch.float64), atol=1e-15)


@pytest.mark.parametrize("num", [0, 1, 2, 5, 50, 1000])
def test_linspace(backend: Backend, num: int) -> None:
    for start, stop in ((0, 1), (-1.5, 2), (3, -3), (2, 2), (0.1, 0.7)):
        assert_close(rg.linspace(start, stop, num), np.linspace(start, stop, num), atol=1e-15)
        assert_close(rg.linspace(start, stop, num, endpoint=False), np.linspace(start, stop, num, False), atol=1e-15)
        if num > 1:
            assert rg.linspace(start, stop, num).numpy()[-1] == stop
    assert rg.linspace(0, 1).shape == (50,)
    assert_close(rg.linspace(0, 10, num, dtype="float32"), np.linspace(0, 10, num, dtype="float32"), atol=1e-6)


def test_linspace_of_integers_rounds_down(backend: Backend) -> None:
    for start, stop, num in ((-2.5, 2.5, 3), (-1, 1, 4), (0, 10, 7), (5, -5, 4)):
        assert_close(rg.linspace(start, stop, num, dtype="int64"), np.linspace(start, stop, num, dtype="int64"))
    assert_close(rg.linspace(0, 1, 3, dtype="bool"), np.linspace(0, 1, 3, dtype="bool"))


def test_eye(backend: Backend) -> None:
    for arguments in ((3,), (2, 4), (4, 2), (0,), (3, 0), (3, 3, 1), (2, 4, 2), (3, 3, -1), (3, 3, 5), (1, 1)):
        assert_close(rg.eye(*arguments), np.eye(*arguments))
    for dtype in ("float32", "int64", "bool"):
        assert_close(rg.eye(2, dtype=dtype), np.eye(2, dtype=dtype))


# --- Random numbers


@pytest.mark.parametrize(("function", "name"), [(rg.randn, "normal"), (rg.rand, "uniform")])
def test_random_numbers_are_those_of_the_generator(backend: Backend, function: Any, name: str) -> None:
    wanted = to_numpy(getattr(Generator(7), name)((2, 3), "float64", backend))
    generator = Generator(7)
    for found in (function(2, 3, seed=7), function((2, 3), seed=7), function([2, 3], generator=generator)):
        assert_close(found, wanted, atol=0)
    following = function(2, 3, generator=generator).numpy()
    assert not np.array_equal(following, wanted)
    rg.manual_seed(7)
    assert_close(function(2, 3), wanted, atol=0)
    assert_close(function(2, 3), following, atol=0)
    assert function().shape == () and function(0).shape == function((0,)).shape == (0,) and function(3).shape == (3,)
    assert str(function(2, dtype="float32", seed=0).dtype) == "float32"


@pytest.mark.parametrize("function", [rg.randn, rg.rand])
def test_random_numbers_are_the_same_on_every_backend(backend: Backend, function: Any) -> None:
    for dtype in ("float64", "float32"):
        with use_backend("numpy"):
            wanted = function(40, 5, seed=3, dtype=dtype).numpy()
        assert_close(function(40, 5, seed=3, dtype=dtype), wanted, atol=0)


@once
def test_the_distributions() -> None:
    x, u = rg.randn(100_000, seed=1).numpy(), rg.rand(100_000, seed=1).numpy()
    assert abs(x.mean()) < 0.01 and abs(x.std() - 1) < 0.01 and abs((x < 1.0).mean() - 0.8413) < 0.005
    assert abs(u.mean() - 0.5) < 0.005 and abs(u.var() - 1 / 12) < 0.001 and 0 <= u.min() < u.max() < 1


def test_uniform_numbers_are_less_than_1_in_every_dtype(backend: Backend) -> None:
    for dtype in backend.float_dtypes():
        u = rg.rand(20_000, seed=0, dtype=dtype, requires_grad=False).astype("float64").numpy()
        assert 0 <= u.min() < 0.001 and 0.996 <= u.max() < 1


# --- Like another tensor


def test_like(backend: Backend) -> None:
    for x in (Tensor(np.ones((2, 3), np.float32)), Tensor([[1.0]]), Tensor(2.0), Tensor(np.zeros((0, 2)))):
        assert_close(rg.zeros_like(x), np.zeros_like(x.numpy()))
        assert_close(rg.ones_like(x), np.ones_like(x.numpy()))
        assert_close(rg.full_like(x, 0.5), np.full_like(x.numpy(), 0.5))
        assert_close(rg.randn_like(x, seed=4), rg.randn(x.shape, seed=4, dtype=x.dtype).numpy(), atol=0)
        assert_close(rg.rand_like(x, seed=4), rg.rand(x.shape, seed=4, dtype=x.dtype).numpy(), atol=0)
        for function in LIKE:
            assert str(function(x, dtype="float16").dtype) == "float16"
            assert function(x, requires_grad=False).requires_grad is False
    whole = Tensor(np.array([True, False]))
    assert_close(rg.zeros_like(whole), np.array([False, False]))
    assert_close(rg.zeros_like(whole, "int64"), np.array([0, 0]))


def test_like_keeps_the_backend(backend: Backend) -> None:
    with use_backend("strict"):
        x = Tensor([1.0])
    for function in LIKE:
        assert function(x).backend.name == "strict"
        assert function(x, backend=backend).backend is backend


def test_like_within_a_transform(backend: Backend) -> None:
    """A constant: the gradient of x * 1 + 2."""
    x = Tensor([1.0, 2.0], requires_grad=False)
    assert_close(rg.grad(lambda x: (x * rg.ones_like(x) + rg.full_like(x, 2.0)).sum())(x), np.ones(2))
    assert_close(rg.grad(lambda x: (x * rg.arange(2)).sum())(x), np.array([0.0, 1.0]))


# --- Gradients and backends

MAKERS: dict[str, Callable[..., Tensor]] = {
    "zeros": lambda **k: rg.zeros(2, **k), "ones": lambda **k: rg.ones(2, **k), "eye": lambda **k: rg.eye(2, **k),
    "full": lambda **k: rg.full(2, 0.5, **k), "arange": lambda **k: rg.arange(2.0, **k),
    "linspace": lambda **k: rg.linspace(0, 1, 2, **k),
    "randn": lambda **k: rg.randn(2, **k), "rand": lambda **k: rg.rand(2, **k),
    "zeros_like": lambda **k: rg.zeros_like(Tensor([1.0, 2.0]), **k),
    "randn_like": lambda **k: rg.randn_like(Tensor([1.0, 2.0]), **k),
}  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
def test_floats_track_gradients_as_those_of_tensor_do(backend: Backend, name: str) -> None:
    make = MAKERS[name]
    assert make().requires_grad and make().is_leaf and make().backend is backend
    assert not make(requires_grad=False).requires_grad
    with no_grad():
        assert not make().requires_grad
        assert make(requires_grad=True).requires_grad
    with use_backend("strict"):
        assert make(backend=backend).backend is backend
    x = make()
    (x * x).sum().backward()
    assert_close(x.grad, 2 * x.numpy())
    x.data -= 0.5  # its own memory


def test_integers_track_no_gradients(backend: Backend) -> None:
    assert not rg.zeros(2, "int64").requires_grad and not rg.ones(2, "bool").requires_grad
    with pytest.raises(TypeError, match="requires_grad: only float tensors track gradients, this one is int64"):
        rg.arange(3, requires_grad=True)


# --- Errors


def test_errors_name_the_function_and_the_remedy(backend: Backend) -> None:
    x, f = Tensor([1.0]), "float32"
    calls: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (TypeError, r"zeros: 3 is not a dtype; give the shape as one argument, as in zeros\(\(2, 3\)\)",
         lambda: rg.zeros(2, 3)),
        (TypeError, r"zeros: the lengths must be ints, .*, got 2\.5", lambda: rg.zeros(2.5)),  # type: ignore[arg-type]
        (TypeError, r"ones: the lengths must be ints, .*, got \(2, True\)", lambda: rg.ones((2, True))),
        (TypeError, r"ones: the lengths must be ints, .*, got None", lambda: rg.ones(None)),  # type: ignore[arg-type]
        (ValueError, r"full: lengths must not be negative, got \(2, -1\)", lambda: rg.full((2, -1), 0)),
        (TypeError, r"full: the value must be a real number or a bool, got '1'", lambda: rg.full(2, "1")),  # type: ignore[arg-type]
        (TypeError, r"full: the value must be a real number or a bool, got 1j", lambda: rg.full(2, 1j)),  # type: ignore[arg-type]
        (OverflowError, r"full: .*float32", lambda: rg.full(2, 1e300, f)),
        (OverflowError, r"full: .*uint8", lambda: rg.full(2, 300, "uint8")),
        (ValueError, r"full: .*int64", lambda: rg.full(2, nan, "int64")),
        (TypeError, r"zeros: backend '.*' has no dtype 'complex128'; it has bool, integers and float16,",
         lambda: rg.zeros(2, "complex128")),
        (TypeError, r"zeros: backend '.*' has no dtype 'nonsense'", lambda: rg.zeros(2, "nonsense")),
        (TypeError, r"zeros: backend '.*' has no dtype <class 'object'>", lambda: rg.zeros(2, object)),
        (OverflowError, r"arange: start, stop and step must fit int64, got 0, 1\d+ and 1", lambda: rg.arange(10**30)),
        (ValueError, r"arange: step must not be 0", lambda: rg.arange(0, 3, 0)),
        (ValueError, r"arange: stop must be a finite real number, got inf", lambda: rg.arange(inf)),
        (ValueError, r"arange: start must be a finite real number, got nan", lambda: rg.arange(nan, 3)),
        (TypeError, r"arange: step must be a finite real number, got '1'", lambda: rg.arange(0, 3, "1")),  # type: ignore[arg-type]
        (ValueError, r"linspace: stop must be a finite real number, got inf", lambda: rg.linspace(0, inf)),
        (TypeError, r"linspace: num must be an int, got 2\.0", lambda: rg.linspace(0, 1, 2.0)),  # type: ignore[arg-type]
        (ValueError, r"linspace: lengths must not be negative, got \(-1,\)", lambda: rg.linspace(0, 1, -1)),
        (ValueError, r"eye: lengths must not be negative", lambda: rg.eye(-1)),
        (TypeError, r"eye: k must be an int, got 0\.5", lambda: rg.eye(2, k=0.5)),  # type: ignore[arg-type]
        (TypeError, r"randn: the lengths must be ints, .*, got 2, 'float32'", lambda: rg.randn(2, f)),  # type: ignore[arg-type]
        (ValueError, r"rand: lengths must not be negative, got \(2, -3\)", lambda: rg.rand(2, -3)),
        (TypeError, r"randn: the numbers are floats; for dtype int64 write \.astype\('int64'\)",
         lambda: rg.randn(2, dtype="int64")),
        (TypeError, r"randn: give a seed or a generator, not both",
         lambda: rg.randn(2, seed=0, generator=Generator(0))),
        (TypeError, r"rand: generator must be a russellgrad\.random\.Generator, got 3; a number is a seed=",
         lambda: rg.rand(2, generator=3)),  # type: ignore[arg-type]
        (TypeError, r"Generator: the seed must be an int, got 1\.5", lambda: rg.randn(2, seed=1.5)),  # type: ignore[arg-type]
        (ValueError, r"Generator: the seed must be in \[0, 2\*\*64\), got -1", lambda: rg.randn(2, seed=-1)),
        (TypeError, r"zeros_like: needs a Tensor, got a list; zeros takes a shape", lambda: rg.zeros_like([1.0])),  # type: ignore[arg-type]
        (TypeError, r"randn_like: needs a Tensor, got a tuple; randn takes a shape", lambda: rg.randn_like((2, 3))),  # type: ignore[arg-type]
        (TypeError, r"requires_grad: must be True or False, got 1", lambda: rg.zeros_like(x, requires_grad=1)),
    ]  # fmt: skip
    for kind, message, call in calls:
        with pytest.raises(kind, match="^" + message):
            call()
