"""Arithmetic, comparisons, elementwise functions and masks against PyTorch: values, gradients, dtypes, edge cases."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's convention

import russellgrad as rg
from russellgrad import Tensor
from russellgrad.backend import Backend
from tests.helpers import assert_close, check_against_torch, is_torch, rng, to_numpy

DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])
Fn = Callable[..., Any]


def floor_divide(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """torch.floor_divide has no gradient; this one has zeros."""
    return torch.div(a, b, rounding_mode="floor")


normal = rng(0).normal(size=(3, 4))
positive = np.abs(normal) + 0.5
other = rng(1).normal(size=(3, 4))
factor = np.where(other < 0, other - 0.5, other + 0.5)  # a divisor, bounded away from 0

# name: ours, theirs, operands
UNARY: dict[str, tuple[Fn, Fn, np.ndarray[Any, Any]]] = {
    "neg": (lambda x: -x, lambda x: -x, normal),
    "exp": (Tensor.exp, torch.exp, normal),
    "expm1": (Tensor.expm1, torch.expm1, normal),
    "log": (Tensor.log, torch.log, positive),
    "log1p": (Tensor.log1p, torch.log1p, positive),
    "exp2": (Tensor.exp2, torch.exp2, normal),
    "log2": (Tensor.log2, torch.log2, positive),
    "log10": (Tensor.log10, torch.log10, positive),
    "square": (Tensor.square, torch.square, normal),
    "sqrt": (Tensor.sqrt, torch.sqrt, positive),
    "tanh": (Tensor.tanh, torch.tanh, normal),
    "sinh": (Tensor.sinh, torch.sinh, normal),
    "cosh": (Tensor.cosh, torch.cosh, normal),
    "abs": (Tensor.abs, torch.abs, normal),
    "builtin_abs": (abs, abs, normal),
    "sin": (Tensor.sin, torch.sin, normal),
    "cos": (Tensor.cos, torch.cos, normal),
    "tan": (Tensor.tan, torch.tan, normal / 2),
    "arcsin": (Tensor.arcsin, torch.arcsin, np.tanh(normal)),
    "arccos": (Tensor.arccos, torch.arccos, np.tanh(normal)),
    "arctan": (Tensor.arctan, torch.arctan, normal),
    "erf": (Tensor.erf, torch.erf, normal),
    "sign": (Tensor.sign, torch.sign, normal),
    "round": (Tensor.round, torch.round, 3 * normal),
    "builtin_round": (round, torch.round, 3 * normal),
    "round_2": (lambda x: x.round(2), lambda x: x.round(decimals=2), 3 * normal),
    "builtin_round_2": (lambda x: round(x, 2), lambda x: x.round(decimals=2), 3 * normal),
    "round_-1": (lambda x: x.round(-1), lambda x: x.round(decimals=-1), 100 * normal),
    "nan_to_num": (Tensor.nan_to_num, torch.nan_to_num, normal),
    "floor": (Tensor.floor, torch.floor, 3 * normal),
    "ceil": (Tensor.ceil, torch.ceil, 3 * normal),
    "sigmoid": (Tensor.sigmoid, torch.sigmoid, normal),
    "relu": (Tensor.relu, torch.relu, normal),
    "silu": (Tensor.silu, F.silu, 3 * normal),
    "elu": (Tensor.elu, F.elu, 3 * normal),
    "elu_0.5": (lambda x: x.elu(0.5), lambda x: F.elu(x, 0.5), 3 * normal),
    "softplus": (Tensor.softplus, F.softplus, 20 * normal),
    "softplus_2_5": (lambda x: x.softplus(2, 5), lambda x: F.softplus(x, 2, 5), 5 * normal),
    "softplus_-1": (lambda x: x.softplus(-1), lambda x: F.softplus(x, -1), 3 * normal),
    "leaky_relu": (Tensor.leaky_relu, torch.nn.functional.leaky_relu, normal),
    "leaky_relu_0.2": (lambda x: x.leaky_relu(0.2), lambda x: torch.nn.functional.leaky_relu(x, 0.2), normal),
    "gelu": (Tensor.gelu, torch.nn.functional.gelu, 3 * normal),
    "gelu_tanh": (
        lambda x: x.gelu("tanh"),
        lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        3 * normal,
    ),
    "clip": (lambda x: x.clip(-0.5, 0.5), lambda x: x.clip(-0.5, 0.5), normal),
    "clip_min": (lambda x: x.clip(min=-0.5), lambda x: x.clip(min=-0.5), normal),
    "clip_max": (lambda x: x.clip(max=0.5), lambda x: x.clip(max=0.5), normal),
    "pow_0": (lambda x: x**0, lambda x: x**0, normal),
    "pow_1": (lambda x: x**1, lambda x: x**1, normal),
    "pow_2": (lambda x: x**2, lambda x: x**2, normal),
    "pow_3": (lambda x: x**3, lambda x: x**3, normal),
    "pow_half": (lambda x: x**0.5, lambda x: x**0.5, positive),
    "pow_1.5": (lambda x: x**1.5, lambda x: x**1.5, positive),
    "pow_-1": (lambda x: x**-1, lambda x: x**-1, positive),
    "pow_-2.5": (lambda x: x**-2.5, lambda x: x**-2.5, positive),
    "rpow": (lambda x: 2.5**x, lambda x: 2.5**x, normal),
    "rpow_0": (lambda x: 0**x, lambda x: 0**x, positive),
    "rpow_1": (lambda x: 1**x, lambda x: 1**x, normal),
    "add_number": (lambda x: x + 2.5, lambda x: x + 2.5, normal),
    "radd": (lambda x: 2 + x, lambda x: 2 + x, normal),
    "sub_number": (lambda x: x - 2.5, lambda x: x - 2.5, normal),
    "rsub": (lambda x: 2 - x, lambda x: 2 - x, normal),
    "mul_number": (lambda x: x * 2.5, lambda x: x * 2.5, normal),
    "rmul": (lambda x: 2 * x, lambda x: 2 * x, normal),
    "div_number": (lambda x: x / 2.5, lambda x: x / 2.5, normal),
    "rdiv": (lambda x: 2 / x, lambda x: 2 / x, factor),
    "floordiv_number": (lambda x: x // 0.7, lambda x: floor_divide(x, torch.tensor(0.7).to(x.dtype)), 3 * normal),
    "rfloordiv": (lambda x: 2 // x, lambda x: floor_divide(torch.tensor(2.0).to(x.dtype), x), factor),
    "mod_number": (lambda x: x % 0.7, lambda x: x % 0.7, 3 * normal),
    "mod_minus": (lambda x: x % -0.7, lambda x: x % -0.7, 3 * normal),
    "rmod": (lambda x: 2 % x, lambda x: torch.tensor(2.0).to(x.dtype) % x, factor),
    "divmod": (
        lambda x: sum(divmod(x, 0.7)),
        lambda x: floor_divide(x, torch.tensor(0.7).to(x.dtype)) + x % 0.7,
        normal,
    ),
    "same_twice": (lambda x: x * x + x / x - x, lambda x: x * x + x / x - x, factor),
    "identity_cast": (lambda x: x.astype(x.dtype), lambda x: x.to(x.dtype), normal),
}

BINARY: dict[str, tuple[Fn, Fn, np.ndarray[Any, Any], np.ndarray[Any, Any]]] = {
    "add": (lambda a, b: a + b, lambda a, b: a + b, normal, other),
    "sub": (lambda a, b: a - b, lambda a, b: a - b, normal, other),
    "mul": (lambda a, b: a * b, lambda a, b: a * b, normal, other),
    "div": (lambda a, b: a / b, lambda a, b: a / b, normal, factor),
    "pow": (lambda a, b: a**b, lambda a, b: a**b, positive, other),
    "floordiv": (lambda a, b: a // b, lambda a, b: floor_divide(a, b), 3 * normal, factor),
    "mod": (lambda a, b: a % b, lambda a, b: a % b, 3 * normal, factor),
    "arctan2": (rg.arctan2, torch.arctan2, normal, other),
    "arctan2_method": (Tensor.arctan2, torch.arctan2, normal, other),
    "maximum": (rg.maximum, torch.maximum, normal, other),
    "minimum": (rg.minimum, torch.minimum, normal, other),
    "maximum_method": (Tensor.maximum, torch.maximum, normal, other),
    "minimum_method": (Tensor.minimum, torch.minimum, normal, other),
    "where": (
        lambda a, b: rg.where(other > 0, a, b),
        lambda a, b: torch.where(torch.tensor(other > 0), a, b),
        normal,
        other,
    ),
}


@DTYPES
@pytest.mark.parametrize("name", UNARY)
def test_unary_ops(backend: Backend, name: str, dtype: str) -> None:
    ours, theirs, x = UNARY[name]
    check_against_torch(ours, theirs, x, dtype=dtype)


LAYOUTS: dict[str, tuple[Fn, Fn]] = {
    "transposed": (lambda x: x.T, lambda x: x.T),
    "strided": (lambda x: x[::2, 1::2], lambda x: x[::2, 1::2]),
    "reversed": (lambda x: x[::-1, ::-1], lambda x: x.flip(0, 1)),
    "broadcast": (lambda x: x[:1].broadcast_to(5, 4), lambda x: x[:1].expand(5, 4)),
    "0-d": (lambda x: x[1, 2], lambda x: x[1, 2]),
    "empty": (lambda x: x[:0], lambda x: x[:0]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", UNARY)
def test_unary_ops_on_views(backend: Backend, name: str, layout: str) -> None:
    ours, theirs, x = UNARY[name]
    mine, reference = LAYOUTS[layout]
    check_against_torch(lambda x: ours(mine(x)), lambda x: theirs(reference(x)), x)


@DTYPES
@pytest.mark.parametrize("name", BINARY)
def test_binary_ops(backend: Backend, name: str, dtype: str) -> None:
    ours, theirs, a, b = BINARY[name]
    check_against_torch(ours, theirs, a, b, dtype=dtype)


@pytest.mark.parametrize("name", [n for n in BINARY if "method" not in n])
@pytest.mark.parametrize(
    ("rows_a", "rows_b"),
    [
        (np.s_[:, :], np.s_[0]),  # (3, 4) with (4,)
        (np.s_[0], np.s_[:, :]),  # (4,) with (3, 4)
        (np.s_[:, :1], np.s_[:1, :]),  # (3, 1) with (1, 4): both broadcast
        (np.s_[0, 0], np.s_[:, :]),  # 0-d
        (np.s_[:, :], np.s_[0, 0]),
        (np.s_[:, None, :1], np.s_[None, :, :]),  # (3, 1, 1) with (1, 3, 4)
        (np.s_[:0], np.s_[:1]),  # (0, 4) with (1, 4)
        (np.s_[0, 0], np.s_[0, 0]),
    ],
)
def test_binary_ops_broadcast(backend: Backend, name: str, rows_a: Any, rows_b: Any) -> None:
    ours, theirs, a, b = BINARY[name]
    if name == "where":  # its condition must broadcast, too
        ours = lambda a, b: rg.where(True, a, b)  # noqa: E731
        theirs = lambda a, b: torch.where(torch.tensor(True), a, b)  # noqa: E731
    check_against_torch(ours, theirs, a[rows_a], b[rows_b])


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
@pytest.mark.parametrize("name", BINARY)
def test_binary_ops_with_a_constant_operand(backend: Backend, name: str, needs: tuple[bool, bool]) -> None:
    ours, theirs, a, b = BINARY[name]
    check_against_torch(ours, theirs, a, b, needs=needs)


@pytest.mark.parametrize("name", [n for n in BINARY if "method" not in n and n != "where"])
def test_binary_ops_on_views(backend: Backend, name: str) -> None:
    ours, theirs, a, b = BINARY[name]
    check_against_torch(lambda a, b: ours(a.T, b[::-1].T), lambda a, b: theirs(a.T, b.flip(0).T), a, b)


@pytest.mark.parametrize(
    "name", ["add", "sub", "mul", "div", "floordiv", "mod", "arctan2", "pow", "maximum", "minimum"]
)
def test_arrays_and_numpy_scalars_as_operands(backend: Backend, name: str) -> None:
    """An array of the tensor's backend is a constant on either side; a NumPy scalar acts as a Python number."""
    ours, theirs, a, b = BINARY[name]
    array = Tensor(b).data
    check_against_torch(lambda a: ours(a, array), lambda a: theirs(a, torch.tensor(b)), a)
    check_against_torch(lambda a: ours(Tensor(a.data).data, a), lambda a: theirs(a.detach(), a), np.abs(a))
    scalar = np.float64(1.7)
    for dtype in ("float64", "float32"):
        check_against_torch(
            lambda a: ours(a, scalar), lambda a: theirs(a, torch.tensor(1.7, dtype=a.dtype)), a, dtype=dtype
        )
        check_against_torch(
            lambda b: ours(scalar, b), lambda b: theirs(torch.tensor(1.7, dtype=b.dtype), b), b, dtype=dtype
        )


def test_arrays_of_other_libraries_as_operands_raise(backend: Backend) -> None:
    if is_torch(backend):  # one of its own arrays
        assert_close(Tensor([1.0]) + torch.ones(1), np.array([2.0]))
        return
    with pytest.raises(TypeError, match=r"^add: cannot take a torch\.Tensor"):
        Tensor([1.0]) + torch.ones(1)


# --- Comparisons


@pytest.mark.parametrize("symbol", ["==", "!=", "<", "<=", ">", ">="])
def test_comparisons_give_bool_tensors_without_gradient(backend: Backend, symbol: str) -> None:
    compare: Fn = eval(f"lambda a, b: a {symbol} b")
    a, b = np.array([1.0, 2.0, 3.0, np.nan]), np.array([2.0, 2.0, 2.0, 2.0])
    for left, right in [
        (Tensor(a), Tensor(b)),
        (Tensor(a), 2),
        (Tensor(a), Tensor(b).data),
        (Tensor(a).data, Tensor(b)),
    ]:
        out = compare(left, right)
        assert isinstance(out, Tensor)
        assert not out.requires_grad
        assert_close(out, compare(a, b))
    assert_close(compare(2.0, Tensor(a)), compare(b, a))
    assert_close(compare(Tensor(a[:, None]), Tensor(b)), compare(a[:, None], b))


def test_comparison_with_other_objects(backend: Backend) -> None:
    x = Tensor([1.0])
    equal: object = x == None  # noqa: E711 - tests the operator itself
    unequal: object = x != "one"
    assert (equal, unequal) == (False, True)
    with pytest.raises(TypeError):
        x < "one"  # noqa: B015


# --- Dtypes


def test_ints_and_bools_never_widen_float32(backend: Backend) -> None:
    x = Tensor([1.5, 2.5], dtype="float32")
    for mate in (
        Tensor(np.array([1, 2])),
        Tensor(np.array([1, 2], np.int32)),
        Tensor([True, False]),
        Tensor(np.array(3)),
        2,
        2.5,
        True,
        np.float64(2.5),
        np.float32(2.5),
        np.int64(2),
    ):
        for out in (x + mate, mate + x, x * mate, mate - x, x / (mate + 1), x ** (mate), rg.maximum(x, mate)):
            assert out.dtype == np.float32, f"with {mate!r}"
            out.backward(Tensor([1.0, 1.0], dtype="float32"))
    assert x.grad is not None
    assert backend.dtype(x.grad) == np.float32


def test_0d_float64_does_not_widen_float32(backend: Backend) -> None:
    x, s = Tensor([1.0, 2.0], dtype="float32"), Tensor(3.0, dtype="float64")
    out = x * s
    assert out.dtype == np.float32
    out.backward(Tensor([1.0, 10.0], dtype="float32"))
    assert_close(s.grad, np.array(21.0))  # in its own dtype, float64
    assert (x * Tensor([3.0], dtype="float64")).dtype == np.float64  # a 1-d float64 tensor does, as in PyTorch


def test_0d_tensors_stay_arrays_and_keep_their_dtype(backend: Backend) -> None:
    """NumPy operations on 0-d arrays return scalars, which would promote float32 to float64."""
    x = Tensor(np.float32(2.0))
    for out in (x * np.float64(3.0), np.float64(3.0) / x, x**2, x.exp() + 1, -x, x.sum(), x > 1, x.relu(), x.sigmoid()):
        assert out.backend.is_array(out.data)
        assert out.dtype in (np.float32, np.bool_)


def test_a_zero_exponent_gives_a_zero_gradient(backend: Backend) -> None:
    for exponent in (0, Tensor([0.0, 0.0])):
        x = Tensor([2.0, math.inf])
        (x**exponent).backward(Tensor([math.inf, 1.0]))
        assert_close(x.grad, np.zeros(2))


@pytest.mark.parametrize("default", ["float64", "float32"])
def test_float_functions_of_ints_return_the_default_dtype(backend: Backend, default: str) -> None:
    rg.set_default_dtype(default)
    try:
        x = Tensor(np.array([1, 2, 3]))
        outs = [
            x / 2, 1 / x, x / x, x * 0.5, 0.5 + x, x**0.5, x.exp(), x.log(), x.sqrt(), x.tanh(), x.sin(), x.cos(),
            x.log10(), x.exp2(), x.sinh(), x.cosh(), x.tan(), (x // 3).arcsin(), (x // 3).arccos(), x.arctan2(x),
            x.erf(), x.silu(), x.elu(), x.softplus(), x // 0.5, 2.5 % x,
            x.sigmoid(), x.gelu(), x.leaky_relu(), x.softmax(), x.log_softmax(), x.clip(0.5, 2),
            rg.where(x > 1, x, 0.5), rg.where(x > 1, 1.0, 0.5),
        ]  # fmt: skip
        assert [str(out.dtype) for out in outs] == [default] * len(outs)
        assert not any(out.requires_grad for out in outs)
        whole = [x + 1, 2 * x, -x, x**2, x.abs(), x.relu(), x.clip(1, 2), x.maximum(2), rg.where(x > 1, x, 0), x + x]
        whole += [x // 2, x % 2, x.sign(), x.round(), x.round(2), x.square(), x.nan_to_num()]
        assert [str(out.dtype) for out in whole] == ["int64"] * len(whole)
    finally:
        rg.set_default_dtype("float64")


def test_astype_casts_values_and_gradients(backend: Backend) -> None:
    x = Tensor([1.25, 2.5], dtype="float64")
    y = x.astype("float32")
    assert y.dtype == np.float32
    y.backward(Tensor([1.0, 3.0], dtype="float32"))
    assert_close(x.grad, np.array([1.0, 3.0]))
    whole = x.astype("int64")
    assert (whole.dtype, whole.requires_grad) == (np.int64, False)
    assert_close(whole, np.array([1, 2]))


# --- Edge cases: values and gradients equal PyTorch's

QUIET = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the infinities here are intended
inf, nan = math.inf, math.nan

EDGES: dict[str, tuple[Fn, Fn, list[list[float]]]] = {
    "abs at 0": (
        Tensor.abs,
        torch.abs,
        [[0.0, -0.0, inf, -inf]],
    ),  # nan is left out: its gradient is nan here and 0 in PyTorch
    "relu at 0": (Tensor.relu, torch.relu, [[0.0, -0.0, inf, -inf, nan]]),
    "leaky_relu at 0": (Tensor.leaky_relu, torch.nn.functional.leaky_relu, [[0.0, -0.0, inf, -inf, nan]]),
    "sqrt at 0": (Tensor.sqrt, torch.sqrt, [[0.0, inf, -1.0]]),
    "log at 0": (Tensor.log, torch.log, [[0.0, inf, -1.0]]),
    "sigmoid of large values": (Tensor.sigmoid, torch.sigmoid, [[1000.0, -1000.0, inf, -inf, nan, 0.0, 40.0, -40.0]]),
    "tanh of large values": (Tensor.tanh, torch.tanh, [[400.0, -400.0, inf, -inf, nan, 0.0]]),
    "gelu of large values": (Tensor.gelu, torch.nn.functional.gelu, [[0.0, 40.0, -40.0, 1e8, -1e8, nan]]),
    "gelu tanh of large values": (
        lambda x: x.gelu("tanh"),
        lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        [[0.0, 40.0, -40.0, 1e8, -1e8, 1e15, nan]],
    ),
    # nan is left out: its gradient is nan here and 1 in PyTorch
    "elu at 0": (Tensor.elu, F.elu, [[0.0, -0.0, 1000.0, -1000.0, inf, -inf]]),
    "elu 0.5 at 0": (lambda x: x.elu(0.5), lambda x: F.elu(x, 0.5), [[0.0, -0.0, 1000.0, -1000.0, inf, -inf]]),
    "silu of large values": (Tensor.silu, F.silu, [[0.0, 1000.0, -1000.0, nan]]),
    "softplus of large values": (
        Tensor.softplus,
        F.softplus,
        [[0.0, -0.0, 19.9, 20.0, 20.1, -20.1, 1000.0, -1000.0, inf, -inf, nan]],
    ),
    "sign": (Tensor.sign, torch.sign, [[0.0, -0.0, inf, -inf]]),
    "round halves": (
        Tensor.round,
        torch.round,
        [[0.5, 1.5, 2.5, -0.5, -1.5, 0.49999999999999994, 2**52 + 1, inf, nan]],
    ),
    "round large numbers": (
        lambda x: x.round(2),
        lambda x: x.double().round().to(x.dtype),
        [[1.7e308, -1e307, 2.0**52, 2.0**60 + 2.0**40]],
    ),
    "round 1": (lambda x: x.round(1), lambda x: x.round(decimals=1), [[0.25, 0.35, -0.05, 1e15, inf, nan]]),
    "square": (Tensor.square, torch.square, [[0.0, -1.0, inf, -inf, nan]]),
    "exp2": (Tensor.exp2, torch.exp2, [[0.0, 3.0, -1.0, 1100.0, -1100.0, inf, -inf, nan]]),
    "log10": (Tensor.log10, torch.log10, [[1.0, 0.0, inf, -1.0]]),
    "sinh of large values": (Tensor.sinh, torch.sinh, [[0.0, 710.2, -710.2, 800.0, inf, -inf, nan]]),
    "cosh of large values": (Tensor.cosh, torch.cosh, [[0.0, 710.2, -710.2, 800.0, inf, -inf, nan]]),
    "tan": (Tensor.tan, torch.tan, [[0.0, -0.0, 1e5, math.pi, nan]]),
    "erf of large values": (Tensor.erf, torch.erf, [[0.0, 6.0, -30.0, inf, -inf, nan]]),
    "arcsin at the bounds": (Tensor.arcsin, torch.arcsin, [[1.0, -1.0, 0.0, 2.0, nan]]),
    "arccos at the bounds": (Tensor.arccos, torch.arccos, [[1.0, -1.0, 0.0, 2.0, nan]]),
    "arctan2 on the axes": (
        rg.arctan2,
        torch.arctan2,
        [[0.0, -0.0, 1.0, -1.0, 0.0, -0.0, 1.0, nan], [1.0, 1.0, 0.0, 0.0, -1.0, -1.0, 1e150, 1.0]],
    ),
    "nan_to_num": (Tensor.nan_to_num, torch.nan_to_num, [[1.0, nan, inf, -inf, -0.0]]),
    "nan_to_num with numbers": (
        lambda x: x.nan_to_num(0.5, neginf=2, posinf=np.float64(3)),
        lambda x: x.nan_to_num(0.5, neginf=2.0, posinf=3.0),
        [[1.0, nan, inf, -inf, -0.0]],
    ),
    "x % y": (
        lambda a, b: a % b,
        lambda a, b: a % b,
        [
            [7.0, -7.0, 7.0, -7.0, 1.0, 6.0, -6.0, 0.0, 0.3, nan, 1.0],
            [2.0, 2.0, -2.0, -2.0, 0.1, 3.0, 3.0, 3.0, 0.1, 1.0, nan],
        ],
    ),
    "x // y": (
        lambda a, b: a // b,
        floor_divide,
        [
            [7.0, -7.0, 7.0, -7.0, 1.0, 6.0, -6.0, 0.0, 0.3, nan, 1.0],
            [2.0, 2.0, -2.0, -2.0, 0.1, 3.0, 3.0, 3.0, 0.1, 1.0, nan],
        ],
    ),
    "x // 0": (lambda a, b: a // b, floor_divide, [[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]),
    "x ** 0": (lambda x: x**0, lambda x: x**0, [[0.0, 1.0, inf, -inf, nan]]),
    "x ** 1": (lambda x: x**1, lambda x: x**1, [[0.0, 1.0, inf, -inf, nan]]),
    "x ** 2": (lambda x: x**2, lambda x: x**2, [[0.0, -1.0, inf, -inf, nan]]),
    "x ** 0.5": (lambda x: x**0.5, lambda x: x**0.5, [[0.0, 4.0, inf]]),
    "x ** -1": (lambda x: x**-1, lambda x: x**-1, [[0.0, inf, -inf]]),
    "0 ** x": (lambda x: 0**x, lambda x: 0**x, [[0.0, 1.0, 2.5, -1.0, inf]]),
    "(-2) ** x": (lambda x: (-2) ** x, lambda x: (-2) ** x, [[0.0, 1.0, 2.0]]),
    "x ** y": (
        lambda a, b: a**b,
        lambda a, b: a**b,
        [[0.0, 0.0, 0.0, 0.0, 2.0, inf, nan, -2.0, inf, 0.0], [0.0, 1.0, 2.0, -1.0, 0.0, 0.0, 0.0, 3.0, 2.0, 0.5]],
    ),
    "divide by 0": (lambda a, b: a / b, lambda a, b: a / b, [[1.0, 0.0, -1.0], [0.0, 0.0, 0.0]]),
    "maximum ties": (rg.maximum, torch.maximum, [[1.0, 2.0, 2.0, nan, 1.0], [1.0, 2.0, 3.0, 1.0, nan]]),
    "minimum ties": (rg.minimum, torch.minimum, [[1.0, 2.0, 2.0, nan, 1.0], [1.0, 2.0, 3.0, 1.0, nan]]),
    "clip at the bounds": (lambda x: x.clip(-1, 1), lambda x: x.clip(-1, 1), [[-1.0, 1.0, 0.0, -2.0, 2.0, inf]]),
    "clip with min > max": (lambda x: x.clip(1, -1), lambda x: x.clip(1, -1), [[-1.0, 1.0, 0.0, -2.0, 2.0]]),
    "clip with tensors": (
        lambda x, a, b: x.clip(a, b),
        torch.clip,
        # min < max: inside, at either bound, below, above; min > max: between, below, above, at either bound; all equal
        [
            [0.0, -1.0, 1.0, -2.0, 2.0, 0.0, -2.0, 2.0, 1.0, -1.0, 1.0],
            [-1.0, -1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
            [1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0, -1.0, 1.0],
        ],
    ),
    "clip with a min tensor": (
        lambda x, a: x.clip(min=a),
        lambda x, a: torch.clip(x, min=a),
        [[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]],
    ),
    "clip with a max tensor": (
        lambda x, b: x.clip(max=b),
        lambda x, b: torch.clip(x, max=b),
        [[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]],
    ),
    "where ignores nan": (
        lambda a, b: rg.where(np.array([True, False]), a, b),
        lambda a, b: torch.where(torch.tensor([True, False]), a, b),
        [[1.0, nan], [inf, 2.0]],
    ),
}


@QUIET
@pytest.mark.parametrize("name", EDGES)
def test_edge_cases(backend: Backend, name: str) -> None:
    ours, theirs, operands = EDGES[name]
    check_against_torch(ours, theirs, *map(np.array, operands))


def test_clip_requires_a_bound(backend: Backend) -> None:
    with pytest.raises(ValueError, match="clip: give min, max or both"):
        Tensor([1.0]).clip()


def test_clip_bounds_broadcast(backend: Backend) -> None:
    check_against_torch(lambda x, a, b: x.clip(a, b), torch.clip, normal, other[0] - 0.5, other[:, :1] + 0.5)


def test_pow_1_returns_a_copy(backend: Backend) -> None:
    x = Tensor([1.0, 2.0])
    y = x**1
    x.data -= 1
    assert_close(y, np.array([1.0, 2.0]))


# --- erf, which NumPy lacks


def test_erf_is_accurate_to_1e_15(backend: Backend) -> None:
    points = np.concatenate(
        [np.linspace(-7, 7, 2001), [0.46875, 4.0, 6.0, 1e-300, 5e-324, -1e-8, 1e-4, 30.0, inf, -inf]]
    )
    exact = np.array([math.erf(x) for x in points])
    found = to_numpy(backend.erf(Tensor(points).data))
    np.testing.assert_allclose(found, exact, rtol=1e-15, atol=0)
    assert np.isnan(to_numpy(backend.erf(Tensor([nan]).data))).all()


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 3), (2, 0, 3)])
def test_erf_shapes_and_float32(backend: Backend, shape: tuple[int, ...]) -> None:
    x = rng(3).normal(size=shape).astype("float32")
    assert_close(backend.erf(Tensor(x).data), torch.erf(torch.tensor(x)))


def test_gelu_with_an_unknown_approximation_raises(backend: Backend) -> None:
    with pytest.raises(ValueError, match="gelu: approximate must be 'none' or 'tanh', got 'fast'"):
        Tensor([1.0]).gelu("fast")


# --- Masks

mask = other > 0


@DTYPES
def test_masked_fill(backend: Backend, dtype: str) -> None:
    torch_mask = torch.tensor(mask)
    for hidden in (mask, mask.tolist(), Tensor(mask), Tensor(mask).data):
        check_against_torch(
            lambda x, hidden=hidden: x.masked_fill(hidden, -1e9), lambda x: x.masked_fill(torch_mask, -1e9), normal,
            dtype=dtype,
        )  # fmt: skip
    check_against_torch(
        lambda x: x.masked_fill(mask[0], -inf), lambda x: x.masked_fill(torch_mask[0], -inf), normal, dtype=dtype
    )


@DTYPES
def test_masked_fill_with_a_tensor(backend: Backend, dtype: str) -> None:
    """The gradient of the 0-d value is the sum over the filled elements."""
    check_against_torch(
        lambda x, v: x.masked_fill(mask[:, 2:3], v),
        lambda x, v: x.masked_fill(torch.tensor(mask[:, 2:3]), v),
        normal,
        np.array(3.5),
        dtype=dtype,
    )


@DTYPES
def test_masked_multiply(backend: Backend, dtype: str) -> None:
    chosen = torch.tensor(mask)
    check_against_torch(
        lambda x: x.masked_multiply(mask, 2.5), lambda x: torch.where(chosen, x * 2.5, x), normal, dtype=dtype
    )
    check_against_torch(
        lambda x, v: x.masked_multiply(Tensor(mask[0]), v),
        lambda x, v: torch.where(chosen[0], x * v, x),
        normal,
        np.array(-1.5),
        dtype=dtype,
    )
    check_against_torch(
        lambda x, v: x.masked_multiply(mask, v),
        lambda x, v: torch.where(chosen, x * v, x),
        normal,
        other[0],
        dtype=dtype,
    )


@pytest.mark.parametrize("wrong", [mask.astype("int64"), mask.astype("float64")])
def test_masks_must_be_boolean(backend: Backend, wrong: Any) -> None:
    x = Tensor(normal)
    for name, call in {
        "masked_fill": lambda: x.masked_fill(wrong, 0.0),
        "masked_multiply": lambda: x.masked_multiply(Tensor(wrong), 2.0),
        "where": lambda: rg.where(Tensor(wrong), x, x),
    }.items():
        with pytest.raises(TypeError, match=f"{name}: a mask must be boolean, got dtype {wrong.dtype}"):
            call()


def test_masks_and_fill_values_must_broadcast(backend: Backend) -> None:
    x = Tensor(normal)
    with pytest.raises(
        ValueError, match=r"masked_fill: a mask of shape \(2, 3, 4\) does not broadcast to shape \(3, 4\)"
    ):
        x.masked_fill(np.stack([mask, mask]), 0.0)
    with pytest.raises(ValueError, match=r"masked_multiply: a mask of shape \(2, 4\)"):
        x.masked_multiply(mask[:2], 0.0)
    with pytest.raises(ValueError, match=r"masked_fill: the value must be a number or a 0-d tensor, got shape \(4,\)"):
        x.masked_fill(mask, Tensor(other[0]))


# --- where


@DTYPES
def test_where_broadcasts_its_condition_and_operands(backend: Backend, dtype: str) -> None:
    condition = mask[:, None, :]  # (3, 1, 4)
    check_against_torch(
        lambda a, b: rg.where(Tensor(condition), a, b),
        lambda a, b: torch.where(torch.tensor(condition), a, b),
        normal[:1],
        other[:, :1],
        dtype=dtype,
    )
    check_against_torch(
        lambda a: rg.where(condition, a, 0.5),
        lambda a: torch.where(torch.tensor(condition), a, 0.5),
        normal,
        dtype=dtype,
    )
    check_against_torch(
        lambda a: rg.where(condition, 1, a), lambda a: torch.where(torch.tensor(condition), 1, a), normal, dtype=dtype
    )


# --- Errors


def test_shapes_that_do_not_broadcast_raise(backend: Backend) -> None:
    with pytest.raises(ValueError, match=r"add: \(3, 4\) and \(3,\): .*shapes must be equal or broadcast"):
        Tensor(normal) + Tensor([1.0, 2.0, 3.0])


def test_dtype_errors_do_not_mention_broadcasting(backend: Backend) -> None:
    """An error that is not about shapes does not mention broadcasting."""
    with pytest.raises(TypeError) as caught:
        Tensor([True]) - Tensor([True])
    assert "subtract: " in str(caught.value)
    assert "broadcast" not in str(caught.value)


@pytest.mark.parametrize("wrong", [None, "1", [1.0], (1.0,), {}, 1j])
def test_operands_of_other_types_raise(backend: Backend, wrong: Any) -> None:
    with pytest.raises(TypeError):
        Tensor([1.0]) + wrong
    with pytest.raises(TypeError):
        wrong - Tensor([1.0])


@pytest.mark.parametrize("name", ["log1p", "expm1"])
def test_log1p_and_expm1_are_accurate_near_zero(backend: Backend, name: str) -> None:
    x = np.array([1e-3, -1e-5, 1e-10, -1e-15, 1e-300])
    for dtype, rtol in (("float64", 1e-15), ("float32", 2e-7)):
        typed = x.astype(dtype)
        found = getattr(Tensor(typed), name)().numpy()
        np.testing.assert_allclose(found, getattr(torch, name)(torch.tensor(typed)).numpy(), rtol=rtol, atol=0)


ACCURATE: dict[str, tuple[list[float], float]] = {
    "arcsin": ([1e-300, -1e-8, 0.5, 1 - 1e-16, 1 - 1e-10, -1.0], 0.9),
    "arccos": ([1e-300, -1e-8, 0.5, 1 - 1e-16, 1 - 1e-10, -1.0], 0.9),
    "sinh": ([1e-300, -1e-8, 1e-4, 30.0, 710.4], 88.0),
    "cosh": ([1e-300, -1e-8, 1e-4, 30.0, 710.4], 88.0),
    "tan": ([1e-300, -1e-8, math.pi / 2, math.pi, 3.0, 1e5], 3.0),
    "log10": ([1e-300, 1e-5, 1.0, 1 + 1e-12, 1000.0, 1e22], 1000.0),
    "exp2": ([1e-300, -1e-8, 3.0, 10.0, 1023.0, -1074.0, 0.5], 100.0),
    "erf": ([1e-300, -1e-8, 0.5, 3.0, 30.0], 3.0),
}


@pytest.mark.parametrize("name", ACCURATE)
def test_functions_are_accurate_near_0_and_at_large_values(backend: Backend, name: str) -> None:
    """Within a few units in the last place of the mathematical function of the same number."""
    points, largest_of_float32 = ACCURATE[name]
    function: Fn = getattr(math, {"arcsin": "asin", "arccos": "acos"}.get(name, name))
    for dtype, rtol in (("float64", 1e-15), ("float32", 5e-7)):
        x = np.array([p for p in points if dtype == "float64" or 1e-30 < abs(p) <= largest_of_float32], dtype)
        exact = np.array([function(float(value)) for value in x])
        np.testing.assert_allclose(getattr(Tensor(x), name)().numpy(), exact, rtol=rtol, atol=0)


def test_exp2_and_log10_of_whole_numbers_are_exact(backend: Backend) -> None:
    """On a device, exp2 may differ in the last place, as CUDA's pow and exp2 do."""
    powers = np.arange(-20.0, 20.0)
    exact = np.array([2.0**n for n in range(-20, 20)])
    np.testing.assert_array_max_ulp(Tensor(powers).exp2().numpy(), exact, maxulp=1 if backend.name == "cupy" else 0)
    assert_close(Tensor(np.array([10.0**n for n in range(20)])).log10(), np.arange(20.0), atol=0)


def test_gradients_of_inverse_functions_near_the_bounds(backend: Backend) -> None:
    """1 / sqrt(1 - x^2) to 15 digits, where 1 - x * x has lost 8 of them."""
    gap = 2.0**-30
    for x in (1 - gap, gap - 1):
        slope = 1 / math.sqrt(gap * (2 - gap))
        for name, sign in (("arcsin", 1), ("arccos", -1)):
            tensor = Tensor([x])
            getattr(tensor, name)().backward()
            np.testing.assert_allclose(to_numpy(tensor.grad), [sign * slope], rtol=1e-15)


def test_arctan2_in_half_precision_has_the_gradients_of_large_operands(backend: Backend) -> None:
    y, x = (Tensor(np.array([value], np.float16)) for value in (300.0, 400.0))
    y.arctan2(x).backward()
    assert_close(y.grad, np.array([400 / 500**2], np.float16), atol=1e-6)
    assert_close(x.grad, np.array([-300 / 500**2], np.float16), atol=1e-6)


def test_softplus_is_accurate_far_below_0(backend: Backend) -> None:
    x = np.array([-30.0, -300.0, -700.0])
    np.testing.assert_allclose(Tensor(x).softplus().numpy(), np.exp(x), rtol=1e-12)
    assert Tensor([800.0]).softplus(threshold=1e9).item() == 800  # where e^x overflows


def test_floor_division_is_exact(backend: Backend) -> None:
    """0.1 is a little more than a tenth, so 1 // 0.1 is 9, as in Python; the quotient of floats rounds to 10."""
    a, b = np.array([1.0, 1.0, -1.0, 5.0, 3e20, 1e-20]), np.array([0.1, -0.1, 0.1, 0.7, 7.0, -1e20])
    for x, y in ((Tensor(a), Tensor(b)), (Tensor(a[0]), Tensor(b)), (Tensor(a), Tensor(b[0]))):
        assert_close(x // y, np.floor_divide(x.numpy(), y.numpy()), atol=0)
        assert_close(x % y, np.remainder(x.numpy(), y.numpy()), atol=0)
    assert [(1.0 // Tensor(0.1)).item(), (1.0 % Tensor(0.1)).item()] == [1.0 // 0.1, 1.0 % 0.1]


def test_division_with_remainder_of_infinities(backend: Backend) -> None:
    """As in Python: -1 % inf is inf."""
    a, b = Tensor([1.0, -1.0, inf, 1.0]), Tensor([inf, inf, 2.0, -inf])
    with np.errstate(invalid="ignore"):
        assert_close(a % b, np.array([1.0, inf, nan, -inf]))
        assert_close(a // b, np.array([0.0, -1.0, nan, -1.0]))


@pytest.mark.parametrize("dtype", ["int64", "int32", "int8", "uint8"])
def test_division_of_integers(backend: Backend, dtype: str) -> None:
    a, b = np.array([7, -7, 7, -7, 0, 100]).astype(dtype), np.array([2, 2, -2, -2, 3, 7]).astype(dtype)
    assert_close(Tensor(a) // Tensor(b), a // b)
    assert_close(Tensor(a) % Tensor(b), a % b)
    assert_close(Tensor(a) // 3, a // 3)
    assert_close(7 % Tensor(b), 7 % b)
    big = Tensor(np.array([2**62 + 1]))
    assert [(big // 2).item(), (big % 2).item()] == [2**61, 1]


def test_integers_by_the_number_0_raise(backend: Backend) -> None:
    x = Tensor(np.array([1, 2]))
    with pytest.raises(ZeroDivisionError, match=r"^floor_divide: int64 by 0; .*astype\('float64'\)"):
        x // 0
    with pytest.raises(ZeroDivisionError, match=r"^remainder: int64 by 0"):
        x % 0


def test_division_in_place_makes_a_new_tensor(backend: Backend) -> None:
    x = y = Tensor([7.0, -7.0])
    x //= 2
    y %= 2
    assert_close(x, np.array([3.0, -4.0]))
    assert_close(y, np.array([1.0, 1.0]))


def test_tests_of_nan_and_infinity(backend: Backend) -> None:
    x = np.array([1.0, nan, inf, -inf, -0.0])
    for dtype in ("float64", "float32", "float16"):
        for name in ("isnan", "isinf", "isfinite"):
            found = getattr(Tensor(x.astype(dtype)), name)()
            assert_close(found, getattr(np, name)(x))
            assert not found.requires_grad
    for whole in (
        np.array([1, -3]),
        np.array([True, False]),
        np.array([200], np.uint8),
        np.zeros((0, 2)),
        np.array(2.0),
    ):
        for name in ("isnan", "isinf", "isfinite"):
            assert_close(getattr(Tensor(whole), name)(), getattr(np, name)(whole))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_nan_to_num_gives_the_largest_number_of_the_dtype(backend: Backend, dtype: str) -> None:
    x = np.array([nan, inf, -inf, 1.0], dtype)
    assert_close(Tensor(x).nan_to_num(), np.nan_to_num(x), atol=0)


def test_integers_and_bools_keep_their_dtype(backend: Backend) -> None:
    for a in (np.array([3, -2, 0]), np.array([200, 0], np.uint8), np.array([True, False])):
        x = Tensor(a)
        assert_close(x.sign(), np.sign(a.astype("int64")).astype(a.dtype))
        for found in (x.round(), x.round(2), x.nan_to_num(), x.nan_to_num(0.5)):
            assert_close(found, a)
        assert_close(x.square(), a * a)


def test_elementwise_functions_name_what_is_wrong(backend: Backend) -> None:
    x: Any = Tensor([1.0, 2.0])
    with pytest.raises(ValueError, match=r"^arctan2: \(2,\) and \(3,\): .*shapes must be equal or broadcast"):
        x.arctan2(Tensor([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match=r"^remainder: \(2,\) and \(3,\): .*shapes must be equal or broadcast"):
        x % Tensor([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"^softplus: beta must not be 0"):
        x.softplus(beta=0)
    for call in (
        lambda: x.softplus("1"),
        lambda: x.elu(alpha=None),
        lambda: x.nan_to_num("0"),
        lambda: x.nan_to_num(0, "1"),
    ):
        with pytest.raises(TypeError, match=r"^\w+: \w+ must be a real number, got "):
            call()
    with pytest.raises(TypeError, match=r"^round: decimals must be an int, got 1\.5"):
        x.round(1.5)
    with pytest.raises(TypeError, match=r"^round: decimals < 0 needs a float tensor, got int64; call \.astype"):
        Tensor(np.array([15])).round(-1)
    with pytest.raises(TypeError, match=r"^floor_divide: cannot take '2', a str"):
        x // "2"
    with pytest.raises(TypeError, match=r"^arctan2: cannot take None"):
        x.arctan2(None)


def test_floor_and_ceil_keep_integers(backend: Backend) -> None:
    x = Tensor(np.array([2**53 + 1, -3]))
    for found in (x.floor(), x.ceil(), x.round()):
        assert_close(found, np.array([2**53 + 1, -3]))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_of_large_numbers_in_half_precision(backend: Backend, approximate: str) -> None:
    x = Tensor(np.array([300, -300, 60000, -60000, 2], np.float16))
    y = x.gelu(approximate)
    y.backward(Tensor(np.ones(5, np.float16), requires_grad=False))
    assert y.numpy().tolist()[:4] == [300, 0, 60000, 0]
    assert to_numpy(x.grad).tolist()[:4] == [1, 0, 1, 0]


def test_logical_operators(backend: Backend) -> None:
    a, b = Tensor(np.array([True, True, False])), Tensor(np.array([True, False, False]))
    for found, expected in {
        a & b: [True, False, False], a | b: [True, True, False], a ^ b: [False, True, False], ~a: [False, False, True],
        True & b: [True, False, False], b | True: [True] * 3, True ^ b: [False, True, True],
    }.items():  # fmt: skip
        assert found.dtype == bool and found.numpy().tolist() == expected
        assert not found.requires_grad
    for wrong in (lambda: a & 1, lambda: a | Tensor([1.0, 2.0, 3.0]), lambda: ~Tensor([1])):
        with pytest.raises(TypeError, match=r"logical_\w+: .*bool.*compare first, as in x > 0"):
            wrong()


def test_half_precision_is_kept_by_every_elementwise_op(backend: Backend) -> None:
    """A Python number or a mask beside an operand does not change its dtype."""
    for dtype in set(backend.float_dtypes()) - {"float32", "float64"}:
        x = Tensor(np.array([0.5, 2.0], np.float32)).astype(dtype)
        mask = Tensor(np.array([True, False]))
        for found in (
            x + 1.5, 1.5 - x, x * 2.5, x / 3.0, x**2.5, -x, x.exp(), x.log(), x.log1p(), x.tanh(), x.sigmoid(),
            x.relu(), x.leaky_relu(0.1), x.gelu(), x.gelu("tanh"), x.clip(0.1, 1.5), x.maximum(1.5), x.floor(),
            x.log10(), x.exp2(), x.square(), x.sinh(), x.cosh(), x.tan(), x.arctan2(1.5), x.erf(), x.sign(), x.silu(),
            x.round(), x.round(1), x.elu(), x.softplus(), x.nan_to_num(), x // 1.5, x % 1.5, 1.5 // x, 1.5 % x,
            x.clip(0.0, 1.0).arcsin(), x.clip(0.0, 1.0).arccos(),
            x.arctan(), rg.where(mask, x, 0.5), rg.where(mask, 0.5, x), x.masked_fill(mask, 1.5),
            x.masked_multiply(mask, 1.5),
        ):  # fmt: skip
            assert str(found.dtype) == dtype
