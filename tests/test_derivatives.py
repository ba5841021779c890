"""Derivatives of order 1, 2 and 3 of every op, and of order 2 of the transformer, against PyTorch in float64."""

import inspect
import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's convention

import russellgrad as rg
from russellgrad import Tensor, rules
from russellgrad.backend import Backend
from russellgrad.llama import Rotary
from russellgrad.loss import cross_entropy_loss
from russellgrad.random import DROPOUT, Generator
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer
from tests import torch_twin
from tests.helpers import Array, assert_close, rng
from tests.torch_twin import randomise, torch_params

Fn = Callable[..., Any]
ATOL = 1e-10

# --- The table. name: ours, theirs, operands

normal = rng(0).normal(size=(2, 3))
other = rng(1).normal(size=(2, 3))
row = rng(2).normal(size=3)
column = rng(3).normal(size=(2, 1))
scalar = np.array(0.7)
positive = np.abs(normal) + 0.5
divisor = np.where(other < 0, other - 0.5, other + 0.5)
kinks = np.array([-1.0, 0.0, 1.0, 0.0, -0.0, 2.0])  # 0 and the bounds of clip
ties = np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
batch = rng(4).normal(size=(2, 3, 4))
empty = np.zeros((0, 3))
mask = np.array([[True, False, True], [False, False, True]])

Case = tuple[Fn, Fn, tuple[Array, ...]]
CASES: dict[str, Case] = {}


def same(name: str, f: Fn, *operands: Array) -> None:
    """A case where the same expression computes both."""
    CASES[name] = (f, f, operands)


def case(name: str, ours: Fn, theirs: Fn, *operands: Array) -> None:
    CASES[name] = (ours, theirs, operands)


UNARY: dict[str, tuple[Fn, Fn, Sequence[Array]]] = {
    "negative": (lambda x: -x, lambda x: -x, [normal]),
    "exp": (Tensor.exp, torch.exp, [normal]),
    "expm1": (Tensor.expm1, torch.expm1, [normal]),
    "log": (Tensor.log, torch.log, [positive]),
    "log1p": (Tensor.log1p, torch.log1p, [positive]),
    "exp2": (Tensor.exp2, torch.exp2, [normal]),
    "log2": (Tensor.log2, torch.log2, [positive]),
    "log10": (Tensor.log10, torch.log10, [positive]),
    "square": (Tensor.square, torch.square, [normal, kinks]),
    "sqrt": (Tensor.sqrt, torch.sqrt, [positive]),
    "tanh": (Tensor.tanh, torch.tanh, [normal]),
    "sinh": (Tensor.sinh, torch.sinh, [normal]),
    "cosh": (Tensor.cosh, torch.cosh, [normal]),
    "sin": (Tensor.sin, torch.sin, [normal]),
    "cos": (Tensor.cos, torch.cos, [normal]),
    "tan": (Tensor.tan, torch.tan, [normal / 2]),
    "arcsin": (Tensor.arcsin, torch.arcsin, [normal / 3]),
    "arccos": (Tensor.arccos, torch.arccos, [normal / 3]),
    "arctan": (Tensor.arctan, torch.arctan, [normal]),
    "erf": (Tensor.erf, torch.erf, [normal, 3 * normal]),
    "rint": (Tensor.round, torch.round, [3 * normal, kinks]),
    "round 1": (lambda x: x.round(1), lambda x: x.round(decimals=1), [3 * normal, kinks]),
    "nan_to_num": (Tensor.nan_to_num, torch.nan_to_num, [normal, kinks]),
    "floor_divide 0.7": (lambda x: x // 0.7, lambda x: torch.div(x, 0.7, rounding_mode="floor"), [3 * normal]),
    "remainder 0.7": (lambda x: x % 0.7, lambda x: x % 0.7, [3 * normal]),
    "silu": (Tensor.silu, F.silu, [normal, 3 * normal, kinks]),
    "elu": (Tensor.elu, F.elu, [normal, 3 * normal]),
    "elu 0.5": (lambda x: x.elu(0.5), lambda x: F.elu(x, 0.5), [normal, 3 * normal]),
    "softplus": (Tensor.softplus, F.softplus, [normal, 20 * normal, kinks]),
    "softplus 2, 1.5": (lambda x: x.softplus(2, 1.5), lambda x: F.softplus(x, 2, 1.5), [normal, kinks]),
    "softplus(x) * x": (lambda x: x.softplus() * x, lambda x: F.softplus(x) * x, [normal, kinks]),
    "silu(x) * x": (lambda x: x.silu() * x, lambda x: F.silu(x) * x, [normal, kinks]),
    "floor": (Tensor.floor, torch.floor, [3 * normal, kinks]),
    "ceil": (Tensor.ceil, torch.ceil, [3 * normal, kinks]),
    "sign": (Tensor.sign, torch.sign, [normal, kinks]),
    "abs": (Tensor.abs, torch.abs, [normal, kinks]),
    "sigmoid": (Tensor.sigmoid, torch.sigmoid, [normal, 20 * normal, kinks]),
    "relu": (Tensor.relu, torch.relu, [normal, kinks]),
    "leaky_relu": (Tensor.leaky_relu, F.leaky_relu, [normal, kinks]),
    "leaky_relu 0.3": (lambda x: x.leaky_relu(0.3), lambda x: F.leaky_relu(x, 0.3), [normal, kinks]),
    "leaky_relu 0": (lambda x: x.leaky_relu(0.0), lambda x: F.leaky_relu(x, 0.0), [normal, kinks]),
    "leaky_relu -1": (lambda x: x.leaky_relu(-1.0), torch.abs, [normal]),
    "gelu": (Tensor.gelu, F.gelu, [normal, 3 * normal, kinks]),
    "gelu tanh": (lambda x: x.gelu("tanh"), lambda x: F.gelu(x, approximate="tanh"), [normal, 3 * normal, kinks]),
    "astype": (lambda x: x.astype("float64"), lambda x: x.double(), [normal]),
    "astype int64": (lambda x: x.astype("int64"), lambda x: x.long().double(), [3 * normal]),
    "clip": (lambda x: x.clip(-1, 1), lambda x: x.clip(-1, 1), [normal, kinks]),
    "clip low": (lambda x: x.clip(min=0.0), lambda x: x.clip(min=0.0), [normal, kinks]),
    "clip high": (lambda x: x.clip(max=0.0), lambda x: x.clip(max=0.0), [normal, kinks]),
    "clip low > high": (lambda x: x.clip(1, 0), lambda x: x.clip(1, 0), [normal, kinks]),
    **{
        f"power {b}": (lambda x, b=b: x**b, lambda x, b=b: x**b, [positive])
        for b in (0, 1, 2, 3, 4, -1, -2, 0.5, -0.5, 1.5, 2.0, 3.0)
    },
    **{
        f"power {b} at 0": (lambda x, b=b: x**b, lambda x, b=b: x**b, [normal, kinks])
        for b in (0, 1, 2, 3, 4, 5, 2.0, 3.0, 0.0)
    },
    **{f"{a} ** x": (lambda x, a=a: a**x, lambda x, a=a: a**x, [normal]) for a in (2, 0.5, 1, 3.0)},
    "1 - x": (lambda x: 1 - x, lambda x: 1 - x, [normal]),
    "1 / x": (lambda x: 1 / x, lambda x: 1 / x, [divisor]),
    "x / 3": (lambda x: x / 3, lambda x: x / 3, [normal]),
    "relu(x) * x": (lambda x: x.relu() * x, lambda x: x.relu() * x, [normal, kinks]),
    "|x| * x": (lambda x: x.abs() * x, lambda x: x.abs() * x, [normal, kinks]),
    "relu(x) ** 2": (lambda x: x.relu() ** 2, lambda x: x.relu() ** 2, [normal, kinks]),
    "relu(x) ** 3": (lambda x: x.relu() ** 3, lambda x: x.relu() ** 3, [normal, kinks]),
    "relu(x) * |x| * x": (lambda x: x.relu() * x.abs() * x, lambda x: x.relu() * x.abs() * x, [normal, kinks]),
    "relu(relu(x))": (lambda x: x.relu().relu(), lambda x: x.relu().relu(), [normal, kinks]),
    "x * x": (lambda x: x * x, lambda x: x * x, [normal]),
    "x + x": (lambda x: x + x, lambda x: x + x, [normal]),
    "x - x": (lambda x: x - x, lambda x: x - x, [normal]),
    "x / x": (lambda x: x / x, lambda x: x / x, [divisor]),
    "x ** x": (lambda x: x**x, lambda x: x**x, [positive]),
    "maximum(x, x)": (lambda x: x.maximum(x), lambda x: torch.maximum(x, x), [normal]),
    "minimum(x, x)": (lambda x: x.minimum(x), lambda x: torch.minimum(x, x), [normal]),
    "maximum(x, 0)": (lambda x: rg.maximum(x, 0), lambda x: torch.maximum(x, torch.zeros_like(x)), [normal, kinks]),
    "minimum(0.0, x)": (lambda x: rg.minimum(0.0, x), lambda x: torch.minimum(torch.zeros_like(x), x), [normal, kinks]),
    "clip(x, x, x)": (lambda x: x.clip(x, x), lambda x: x.clip(x, x), [normal]),
    "where(x > 0, x * x, -x)": (
        lambda x: rg.where(x > 0, x * x, -x), lambda x: torch.where(x > 0, x * x, -x), [normal, kinks],
    ),
    "where(x > 0, x, 1.0)": (lambda x: rg.where(x > 0, x, 1.0), lambda x: torch.where(x > 0, x, 1.0), [normal, kinks]),
    "where(x == 0, 2.0, x)": (
        lambda x: rg.where(x == 0, 2.0, x.exp()), lambda x: torch.where(x == 0, 2.0, x.exp()), [normal, kinks],
    ),
    "masked_fill(x < 0)": (
        lambda x: x.masked_fill(x < 0, 0.5), lambda x: x.masked_fill(x < 0, 0.5), [normal, kinks],
    ),
    "comparisons as factors": (
        lambda x: x * (x >= 0) * (x != 1) * (x <= 2) * ~(x < -1),
        lambda x: x * (x >= 0) * (x != 1) * (x <= 2) * ~(x < -1),
        [normal, kinks],
    ),
}  # fmt: skip

for _name, (_ours, _theirs, _operands) in UNARY.items():
    for _i, _operand in enumerate(_operands):
        case(f"{_name} {_i or ''}".strip(), _ours, _theirs, _operand)
    # No axes, no elements, and views that are not contiguous.
    case(f"{_name}, no axes", _ours, _theirs, np.array(_operands[0].flat[1]))
    case(f"{_name}, empty", _ours, _theirs, empty)
    case(
        f"{_name}, view", lambda x, f=_ours: f(x.T[::2]), lambda x, f=_theirs: f(x.T[::2]),
        _operands[0].reshape(2, 3),
    )  # fmt: skip

BINARY: dict[str, tuple[Fn, Fn, Array, Array]] = {
    "add": (lambda a, b: a + b, lambda a, b: a + b, normal, other),
    "subtract": (lambda a, b: a - b, lambda a, b: a - b, normal, other),
    "multiply": (lambda a, b: a * b, lambda a, b: a * b, normal, other),
    "divide": (lambda a, b: a / b, lambda a, b: a / b, normal, divisor),
    "power": (lambda a, b: a**b, lambda a, b: a**b, positive, other),
    "floor_divide": (
        lambda a, b: a // b, lambda a, b: torch.div(a, b, rounding_mode="floor"), 3 * normal, divisor,
    ),
    "remainder": (lambda a, b: a % b, lambda a, b: a % b, 3 * normal, divisor),
    "arctan2": (rg.arctan2, torch.arctan2, normal, other),
    "maximum": (rg.maximum, torch.maximum, normal, other),
    "minimum": (rg.minimum, torch.minimum, normal, other),
    "where": (
        lambda a, b: rg.where(a > b, a * a, b), lambda a, b: torch.where(a > b, a * a, b), normal, other,
    ),
    "clip by b": (lambda a, b: a.clip(b), lambda a, b: a.clip(b), normal, other),
    "clip by b, high": (lambda a, b: a.clip(max=b), lambda a, b: a.clip(max=b), normal, other),
    "clip by b and -b": (lambda a, b: a.clip(b, -b), lambda a, b: a.clip(b, -b), normal, other),
}  # fmt: skip
for _name, (_ours, _theirs, _a, _b) in BINARY.items():
    case(_name, _ours, _theirs, _a, _b)
    case(f"{_name}, row", _ours, _theirs, _a, _b[0])
    case(f"{_name}, column", _ours, _theirs, _a, _b[:, :1])
    case(f"{_name}, outer", _ours, _theirs, _a[:, :1], _b[0])
    case(f"{_name}, more axes", _ours, _theirs, _a[0], _b.reshape(2, 1, 3))
    case(f"{_name}, no axes", _ours, _theirs, _a[0, 0], _b[0, 1])
    case(f"{_name}, scalar", _ours, _theirs, _a, _b[0, 1])
    case(f"{_name}, scalar first", _ours, _theirs, _a[0, 0], _b)
    case(f"{_name}, empty", _ours, _theirs, empty, _b[0])
    case(
        f"{_name}, views", lambda a, b, f=_ours: f(a.T, b.T[-3:]), lambda a, b, f=_theirs: f(a.T, b.T[-3:]), _a, _b,
    )  # fmt: skip

_tied = np.array([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]]), np.array([[0.0, 2.0, 2.0], [2.0, 1.0, 1.0]])
case("maximum at ties", rg.maximum, torch.maximum, *_tied)
case("minimum at ties", rg.minimum, torch.minimum, *_tied)
case("maximum at ties, times", lambda a, b: rg.maximum(a, b) * a * b, lambda a, b: torch.maximum(a, b) * a * b, *_tied)
case("minimum(a, b) maximum(a, b)", lambda a, b: rg.minimum(a, b) * rg.maximum(a, b),
     lambda a, b: torch.minimum(a, b) * torch.maximum(a, b), *_tied)  # fmt: skip
_bounds = np.array([0.0, 0.0, 1.0, 1.0]), np.array([1.0, 0.0, 0.0, 2.0])
for _x in (0.0, 0.5, 1.0, 2.0, -1.0):
    same(f"clip {_x}, tensors", lambda x, low, high: x.clip(low, high), np.full(4, _x), *_bounds)
same("clip, arrays as bounds of three shapes", lambda x, low, high: x.clip(low, high), normal, row - 1, column + 1)
case("clip, number and tensor", lambda x, high: x.clip(0.0, high), lambda x, high: x.clip(torch.zeros(1), high),
     kinks, np.abs(rng(6).normal(size=6)))  # fmt: skip

# power: a base of 0 and below, with an exponent that is a tensor
case("power of negative bases, integers", lambda a: a ** Tensor([2.0, 3.0, -1.0]),
     lambda a: a ** torch.tensor([2.0, 3.0, -1.0], dtype=torch.float64), -positive)  # fmt: skip
case("power at 0, constant exponents", lambda a: a ** Tensor([2.0, 3.0, 4.0, 5.0]),
     lambda a: a ** torch.tensor([2.0, 3.0, 4.0, 5.0], dtype=torch.float64), np.zeros(4))  # fmt: skip
case("power, constant base", lambda b: Tensor(positive) ** b, lambda b: torch.tensor(positive) ** b, normal)
case("power, integer exponents", lambda a: a ** Tensor([1, 2, 3], dtype="int64"),
     lambda a: a ** torch.tensor([1, 2, 3]), normal)  # fmt: skip

# Masks
case("where, mask", lambda a, b: rg.where(mask, a, b), lambda a, b: torch.where(torch.tensor(mask), a, b),
     normal, other)  # fmt: skip
case("where, broadcast", lambda a, b: rg.where(mask[:, :1], a, b),
     lambda a, b: torch.where(torch.tensor(mask[:, :1]), a, b), row, column)  # fmt: skip
case("where, a number", lambda a: rg.where(Tensor(mask), a, 2), lambda a: torch.where(torch.tensor(mask), a, 2), normal)
case("where, broadcast condition", lambda a, b: rg.where(mask, a, b),
     lambda a, b: torch.where(torch.tensor(mask), a, b), scalar, row[0])  # fmt: skip
case("masked_fill", lambda a: a.masked_fill(mask, 0.3), lambda a: a.masked_fill(torch.tensor(mask), 0.3), normal)
case("masked_fill, tensor", lambda a, v: a.masked_fill(mask, v), lambda a, v: a.masked_fill(torch.tensor(mask), v),
     normal, scalar)  # fmt: skip
case("masked_fill, row", lambda a, v: a.masked_fill(mask[0], v * v),
     lambda a, v: a.masked_fill(torch.tensor(mask[0]), v * v), normal, scalar)  # fmt: skip
case("masked_fill -inf, softmax", lambda a: a.masked_fill(mask, -math.inf).softmax(),
     lambda a: a.masked_fill(torch.tensor(mask), -math.inf).softmax(-1), normal)  # fmt: skip
case("masked_multiply", lambda a: a.masked_multiply(mask, 0.3),
     lambda a: torch.where(torch.tensor(mask), a * 0.3, a), normal)  # fmt: skip
case("masked_multiply, tensors", lambda a, v: a.masked_multiply(mask, v),
     lambda a, v: torch.where(torch.tensor(mask), a * v, a), normal, row)  # fmt: skip
case("masked_multiply by itself", lambda a: a.masked_multiply(mask[1], a),
     lambda a: torch.where(torch.tensor(mask[1]), a * a, a), normal)  # fmt: skip


def torch_norm(x: Any, p: float, dims: Any) -> Any:
    """Composed: PyTorch's derivatives of order 2 and 3 are nan for some p."""
    a = x.abs()
    if math.isinf(p):
        return a.amax(dims) if p > 0 else a.amin(dims)
    return (x * x).sum(dims).sqrt() if p == 2 else (a**p).sum(dims) ** (1 / p)


def torch_prod(x: Any, axis: int) -> Any:
    """Composed: PyTorch's derivatives of order 2 and 3 are wrong or nan where two elements are 0."""
    out = torch.ones_like(x.select(axis, 0))
    for part in x.unbind(axis):
        out = out * part
    return out


def torch_cumprod(x: Any, axis: int) -> Any:
    parts = x.unbind(axis)
    return torch.stack([torch_prod(torch.stack(parts[: i + 1]), 0) for i in range(len(parts))], axis)


# Reductions
AXES: list[Any] = [None, 0, 1, -1, (0, 2), (), (0, 1, 2)]
for _axis in AXES:
    for _keepdims in (False, True):
        _t = f"axis={_axis}, keepdims={_keepdims}"
        _given = {"axis": _axis, "keepdims": _keepdims}
        _dims: Any = tuple(range(3)) if _axis is None else _axis
        # PyTorch reduces all axes for an empty tuple.
        _torch = {"dim": _dims, "keepdim": _keepdims}
        for _op, _their in (
            ("sum", lambda x, **k: x if k["dim"] == () else x.sum(**k)),
            ("mean", lambda x, **k: x if k["dim"] == () else x.mean(**k)),
            ("var", lambda x, **k: x * 0 if k["dim"] == () else x.var(correction=0, **k)),
            ("max", lambda x, **k: x if k["dim"] == () else x.amax(**k)),
            ("min", lambda x, **k: x if k["dim"] == () else x.amin(**k)),
        ):
            case(f"{_op} {_t}", lambda x, op=_op, given=_given: getattr(x, op)(**given),
                 lambda x, f=_their, given=_torch: f(x, **given), batch)  # fmt: skip
for _axis in (0, 1, None, (0, 1)):
    _dims = (0, 1) if _axis is None else _axis
    for _op in ("max", "min"):
        case(f"{_op} of ties, axis={_axis}", lambda x, op=_op, axis=_axis: getattr(x, op)(axis=axis),
             lambda x, op=_op, dim=_dims: getattr(x, f"a{op}")(dim=dim), ties)  # fmt: skip
        case(f"{_op} of ties, axis={_axis}, times", lambda x, op=_op, axis=_axis: getattr(x, op)(axis, True) * x,
             lambda x, op=_op, dim=_dims: getattr(x, f"a{op}")(dim, True) * x, ties)  # fmt: skip
for _c in (1, 0.5, 2):
    same(f"var correction={_c}", lambda x, c=_c: x.var(-1, correction=c), batch)
case("var, standard deviation", lambda x: (x.var(-1) + 1e-3).sqrt(),
     lambda x: (x.var(-1, correction=0) + 1e-3).sqrt(), batch)  # fmt: skip
case("var, equal elements", lambda x: x.var(-1), lambda x: x.var(-1, correction=0), np.ones((2, 3)))
for _op in ("sum", "mean", "var", "max", "min"):
    _their = {"max": torch.amax, "min": torch.amin, "var": lambda x: x * 0}.get(_op, getattr(torch, _op))
    case(f"{_op}, no axes", lambda x, op=_op: getattr(x, op)(), lambda x, f=_their: f(x), scalar)
    case(f"{_op} of a view", lambda x, op=_op: getattr(x.T[::-1], op)(0),
         lambda x, op=_op: {"max": x.T.flip(0).amax, "min": x.T.flip(0).amin,
                            "var": lambda d: x.T.flip(0).var(d, correction=0)}.get(op, getattr(x.T.flip(0), op))(0),
         normal)  # fmt: skip
case("sum, empty", lambda x: x.sum(0), lambda x: x.sum(0), empty)
case("sum, empty axis", lambda x: x.sum(1), lambda x: x.sum(1), empty)
case("max, empty", lambda x: x.max(1), lambda x: x.amax(1), empty)
case("argmax as a factor", lambda x: x.argmax(-1) * x.sum(-1), lambda x: x.argmax(-1) * x.sum(-1), batch)
case("x.max() ** 2 - x.min()", lambda x: x.max() ** 2 - x.min(), lambda x: x.amax() ** 2 - x.amin(), normal)

for _axis in (None, 0, 1, (0, 2)):
    _dims = tuple(range(3)) if _axis is None else _axis
    case(f"std axis={_axis}", lambda x, axis=_axis: x.std(axis),
         lambda x, d=_dims: x.std(d, correction=0), batch)  # fmt: skip
    case(f"logsumexp axis={_axis}", lambda x, axis=_axis: x.logsumexp(axis), lambda x, d=_dims: x.logsumexp(d), batch)
    for _p in (2, 1, math.inf, -math.inf, 3, 2.5):
        case(f"norm {_p} axis={_axis}", lambda x, p=_p, axis=_axis: x.norm(p, axis),
             lambda x, p=_p, d=_dims: torch_norm(x, p, d), batch)  # fmt: skip
_zeros = np.array([[1.5, 2.0, -3.0, 0.5], [0.0, 2.0, -1.0, 3.0], [0.0, 4.0, 0.0, 2.0]])
for _name, _factors in (
    ("", batch),
    (" with zeros", _zeros),
    (", one element", batch[:1, :1, :1]),
    (", view", _zeros.T[::-1].copy()),
):
    for _axis in range(_factors.ndim):
        case(f"prod{_name}, axis={_axis}", lambda x, a=_axis: x.prod(a), lambda x, a=_axis: torch_prod(x, a), _factors)
        case(f"cumprod{_name}, axis={_axis}", lambda x, a=_axis: x.cumprod(a),
             lambda x, a=_axis: torch_cumprod(x, a), _factors)  # fmt: skip
        same(f"cumsum{_name}, axis={_axis}", lambda x, a=_axis: x.cumsum(a), _factors)
case("prod of all", lambda x: x.prod(), lambda x: torch_prod(x.ravel(), 0), _zeros[:2])
case("prod of two axes", lambda x: x.prod((0, 2)), lambda x: torch_prod(torch_prod(x, 2), 0), batch)
case("prod, empty", lambda x: x.prod(0) + x.sum(0), lambda x: x.sum(0) + 1, empty)
case("cumsum of all", lambda x: x.cumsum(), lambda x: x.ravel().cumsum(0), batch)
case("argmin, any, all as factors", lambda x: x.argmin(-1) * x.sum(-1) * x.any() * x.all(),
     lambda x: x.argmin(-1) * x.sum(-1), batch)  # fmt: skip

# Sorting
for _axis in (0, 1, -1):
    case(f"sort axis={_axis}", lambda x, a=_axis: x.sort(a), lambda x, a=_axis: x.sort(a).values, batch)
    case(f"topk axis={_axis}", lambda x, a=_axis: x.topk(2, a)[0], lambda x, a=_axis: x.topk(2, a).values, batch)
    case(f"argsort as a factor, axis={_axis}", lambda x, a=_axis: x * x.argsort(a),
         lambda x, a=_axis: x * x.argsort(a), batch)  # fmt: skip
case("sort of ties", lambda x: x.sort(1), lambda x: x.sort(stable=True, dim=1).values, ties)
case("sort of all", lambda x: x.sort(None), lambda x: x.ravel().sort().values, batch)
_places = np.array([[0, 0, 2, 1], [1, 1, 1, 1], [-1, 2, -3, 0]])
case("take_along_axis", lambda x: x.take_along_axis(_places[None], 1),
     lambda x: x.gather(1, torch.tensor(np.broadcast_to(_places % 3, (2, 3, 4)).copy())), batch)  # fmt: skip

# Rearranging
case("flip", lambda x: x.flip(), lambda x: x.flip(0, 1, 2), batch)
case("flip axes", lambda x: x.flip((0, -1)), lambda x: x.flip(0, -1), batch)
same("roll", lambda x: x.roll(4), batch)
same("roll axes", lambda x: x.roll((1, -2), (0, 2)), batch)
case("repeat", lambda x: x.repeat(2, 1), lambda x: x.repeat_interleave(2, 1), batch)
case("repeat, each", lambda x: x.repeat([1, 0, 3], 1), lambda x: x.repeat_interleave(torch.tensor([1, 0, 3]), 1), batch)
same("tile", lambda x: x.tile((2, 1, 2)), batch)
case("pad", lambda x: x.pad(((1, 0), (2, 1)), 0.5), lambda x: F.pad(x, (2, 1, 1, 0), value=0.5), normal)
same("tril and triu", lambda x: x.tril(-1) + x.triu(1) * x, batch)
same("diagonal", lambda x: x.diagonal(1, 0, 2), batch)
case("trace", lambda x: x.trace(), lambda x: x.diagonal().sum(), normal)
same("flatten", lambda x: x.flatten(1), batch)
same("ravel, moveaxis", lambda x: x.moveaxis(0, -1).ravel(), batch)
case("copy", lambda x: x.copy() * x, lambda x: x.clone() * x, normal)

# Convolution and pooling: rules conv, max_pool and avg_pool
_image, _kernel, _shift = rng(7).normal(size=(2, 4, 5, 4)), rng(8).normal(size=(6, 2, 3, 2)), rng(9).normal(size=6)
_relu = np.maximum(np.round(_image), 0)  # with ties
case("conv", lambda x, w, b: rg.conv2d(x, w, b, (2, 1), (1, 0), (1, 2), 2),
     lambda x, w, b: F.conv2d(x, w, b, (2, 1), (1, 0), (1, 2), 2), _image, _kernel, _shift)  # fmt: skip
case("conv, same", lambda x, w: rg.conv1d(x, w, padding="same"), lambda x, w: F.conv1d(F.pad(x, (0, 1)), w),
     _image[0, :, 0], _kernel[:, :, 0].repeat(2, 1))  # fmt: skip
case("conv of x and a weight of x", lambda x: rg.conv2d(x, x[:1, :, :2, :2] * 2),
     lambda x: F.conv2d(x, x[:1, :, :2, :2] * 2), _image)  # fmt: skip
case("conv of constants and a bias", lambda b: rg.conv2d(Tensor(_image), Tensor(_kernel), b * b, groups=2),
     lambda b: F.conv2d(torch.tensor(_image), torch.tensor(_kernel), b * b, groups=2), _shift)  # fmt: skip
case("max_pool", lambda x: rg.max_pool2d(x, (3, 2), 1, 1), lambda x: F.max_pool2d(x, (3, 2), 1, 1), _image)
case("max_pool of ties, times", lambda x: rg.max_pool2d(x, 2) ** 2, lambda x: F.max_pool2d(x, 2) ** 2, _relu)
case("avg_pool", lambda x: rg.avg_pool2d(x, (3, 2), 1, 1, count_include_pad=False),
     lambda x: F.avg_pool2d(x, (3, 2), 1, 1, count_include_pad=False), _image)  # fmt: skip
case("conv, relu, max_pool", lambda x, w, b: rg.max_pool2d(rg.conv2d(x, w, b, 1, 1, 1, 2).relu(), 2),
     lambda x, w, b: F.max_pool2d(F.conv2d(x, w, b, 1, 1, 1, 2).relu(), 2), _image, _kernel, _shift)  # fmt: skip

# Other values at an index: rules at_set and at_add
case("at_set", lambda a, b: a.at(1).set(b), lambda a, b: torch.stack([a[0], b]), normal, row)
case("at_set, a number", lambda a: a.at(([0, 1, 1], [2, 0, 0])).set(0.5),
     lambda a: torch.where(torch.tensor([[False, False, True], [True, False, False]]), 0.5, a), normal)  # fmt: skip
case("at_set, array index", lambda a, b: a.at(([1, 0], [0, 2])).set(b), lambda a, b: torch.index_put(
     a, (torch.tensor([1, 0]), torch.tensor([0, 2])), b), normal, row[:2])  # fmt: skip
case("at_set, mask", lambda a, b: a.at(mask).set(b), lambda a, b: torch.where(torch.tensor(mask), b, a), normal, scalar)
case("at_add", lambda a, b: a.at([1, 0, 1]).add(b), lambda a, b: torch.index_put(
     a, (torch.tensor([1, 0, 1]),), b, accumulate=True), normal, rng(6).normal(size=(3, 3)))  # fmt: skip
case("at_add, slice", lambda a, b: a.at((slice(None), slice(1))).add(b * b),
     lambda a, b: torch.cat([a[:, :1] + b * b, a[:, 1:]], 1), normal, column)  # fmt: skip
case("at_add of itself", lambda a: a.at(0).add(a[1] * a[0]), lambda a: torch.stack([a[0] + a[1] * a[0], a[1]]), normal)

# Shapes and indices
for _axes in (None, (1, 0, 2), (2, 0, 1), (-1, 0, 1)):
    case(f"transpose {_axes}", lambda x, axes=_axes: x.transpose(axes) ** 2,
         lambda x, axes=_axes: x.permute(axes or (2, 1, 0)) ** 2, batch)  # fmt: skip
same("T", lambda x: x.T @ x, normal)
same("swapaxes", lambda x: x.swapaxes(0, -1), batch)
same("reshape", lambda x: x.reshape(3, 2), normal)
same("reshape -1", lambda x: x.T.reshape(-1), normal)
same("reshape to no axes", lambda x: x.reshape(()), np.ones((1, 1)))
same("broadcast_to", lambda x: x.broadcast_to((4, 2, 3)), normal)
same("broadcast_to of a column", lambda x: x.broadcast_to((2, 3)) * x, column)
same("broadcast_to of no axes", lambda x: x.broadcast_to((2, 3)), scalar)
same("squeeze", lambda x: x.squeeze(), batch[:, :1])
same("squeeze axis", lambda x: x.squeeze(1), batch[:, :1])
case("squeeze tuple", lambda x: x.squeeze((0, 1)), lambda x: x.squeeze((0, 1)), batch[:1, :1])
case("expand_dims", lambda x: x.expand_dims(1), lambda x: x.unsqueeze(1), normal)
case("expand_dims, tuple", lambda x: x.expand_dims((0, -1)), lambda x: x[None, ..., None], normal)
for _axis in (0, 1, -1):
    case(f"concatenate {_axis}", lambda a, b, axis=_axis: Tensor.concatenate([a, b, a * a], axis),
         lambda a, b, axis=_axis: torch.cat([a, b, a * a], axis), normal, other)  # fmt: skip
    case(f"stack {_axis}", lambda a, b, axis=_axis: Tensor.stack([a, b, a], axis),
         lambda a, b, axis=_axis: torch.stack([a, b, a], axis), normal, other)  # fmt: skip
case("concatenate, lengths differ", lambda a, b: Tensor.concatenate([a, b], 1), lambda a, b: torch.cat([a, b], 1),
     normal, column)  # fmt: skip
case("concatenate, with an empty one", lambda a, b: Tensor.concatenate([a, b]), lambda a, b: torch.cat([a, b]),
     normal, empty)  # fmt: skip
case("concatenate, with a constant", lambda a: Tensor.concatenate([a, Tensor(other)]),
     lambda a: torch.cat([a, torch.tensor(other)]), normal)  # fmt: skip
case("stack, no axes", lambda a, b: Tensor.stack([a, b, a * b]), lambda a, b: torch.stack([a, b, a * b]),
     scalar, np.array(0.2))  # fmt: skip
case("split", lambda x: Tensor.stack([p * (i + 1) for i, p in enumerate(x.split(1, 1))]),
     lambda x: torch.stack([p * (i + 1) for i, p in enumerate(x.split(1, 1))]), normal)  # fmt: skip
case("split sizes", lambda x: (lambda a, b: a.sum(1) * b.sum(1))(*x.split([1, 2], 1)),
     lambda x: (lambda a, b: a.sum(1) * b.sum(1))(*x.split([1, 2], 1)), normal)  # fmt: skip
case("iteration", lambda x: Tensor.stack([r * r for r in x]), lambda x: torch.stack([r * r for r in x]), normal)
INDICES: dict[str, Any] = {
    "int": 1, "negative int": -1, "slice": slice(0, 1), "step": (slice(None), slice(0, 3, 2)), "ellipsis": (..., 1),
    "none": (None, 1), "none in the middle": (slice(None), None, 1), "int and slice": (1, slice(1, None)),
    "empty slice": slice(1, 1), "list": [1, 0], "repeated": [0, 0, 1, 0], "negative repeated": [-1, 1, 0],
    "second axis": (slice(None), [2, 2, 0]), "pairs": ([0, 1, 0], [1, 2, 1]), "array 2-D": ([[0, 1], [1, 1]],),
    "mask": batch < 0.5,
    "mask of one axis": np.array([True, False]),
    "mask of the second axis": (slice(None), np.array([True, False, True])),
    "mask of two axes": np.array([[True, False, True], [False, False, True]]), "empty list": ([],),
    "all ints": (1, 2, 3), "list around an ellipsis": ([0, 1, 1], ..., [0, 0, 2]), "mask of none": np.zeros(2, bool),
    "separated": ([0, 1, 1], slice(None), [1, 1, 0]),
}  # fmt: skip


def as_torch_index(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(as_torch_index, index))
    if isinstance(index, list):
        return torch.tensor(index, dtype=torch.int64)
    return torch.tensor(index) if isinstance(index, np.ndarray) else index


for _name, _index in INDICES.items():
    case(f"getitem, {_name}", lambda x, i=_index: x[i], lambda x, i=_index: x[as_torch_index(i)], batch)
case("getitem, negative step", lambda x: x[::-1, ::-2], lambda x: x.flip((0, 1))[:, ::2], batch)
case("getitem, integer Tensor", lambda x: x[Tensor([1, 1, 0], dtype="int64")], lambda x: x[[1, 1, 0]], batch)
case("getitem, mask of x", lambda x: x[x > 0] ** 2, lambda x: x[x > 0] ** 2, batch)
case("getitem, argmax", lambda x: x[x.argmax(0), Tensor([0, 1, 2], dtype="int64")] ** 2,
     lambda x: x[x.argmax(0), torch.arange(3)] ** 2, normal)  # fmt: skip
same("getitem, no axes", lambda x: x[()] * x[None], scalar)
same("getitem of getitem", lambda x: x[1:][:, [0, 0, 2]][0, :, 1] * x[0, 0, 1], batch)

# Products
SHAPES = [
    ((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 2)), ((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((2, 3), (5, 3, 4)),
    ((5, 2, 3), (5, 3, 4)), ((5, 1, 2, 3), (4, 3, 2)), ((3,), (5, 3, 2)), ((5, 2, 3), (3,)), ((1, 2, 3), (5, 3, 2)),
    ((0, 3), (3, 2)), ((2, 0), (0, 3)), ((2, 3), (3, 0)), ((0,), (0,)), ((1, 1), (1, 1)), ((2, 1, 2, 3), (1, 5, 3, 1)),
]  # fmt: skip
for _a, _b in SHAPES:
    same(f"matmul {_a} {_b}", lambda a, b: a @ b, rng(5).normal(size=_a), rng(6).normal(size=_b))
same("matmul of views", lambda a, b: a.T @ b.T, normal, rng(6).normal(size=(4, 2)))
same("matmul twice", lambda a: a @ a @ a, rng(7).normal(size=(3, 3)))
same("matmul, vector twice", lambda a: (a @ a) * a, row)
_w, _b = rng(8).normal(size=(3, 5)), rng(9).normal(size=5)
X_SHAPES: list[tuple[int, ...]] = [(2, 3), (3,), (4, 2, 3), (0, 3), (2, 1, 2, 3)]
for _shape in X_SHAPES:
    case(f"linear {_shape}", rg.linear, lambda x, w, b: x @ w + b, rng(5).normal(size=_shape), _w, _b)
    case(f"linear {_shape}, no bias", rg.linear, lambda x, w: x @ w, rng(5).normal(size=_shape), _w)
case("linear, constant x", lambda w, b: rg.linear(Tensor(normal), w, b),
     lambda w, b: torch.tensor(normal) @ w + b, _w, _b)  # fmt: skip
case("linear, w twice", lambda w: rg.linear(w, w.T, w[:, 0]), lambda w: w @ w.T + w[:, 0], normal)

EINSUMS: dict[str, list[tuple[int, ...]]] = {
    "ij,jk->ik": [(2, 3), (3, 4)], "ij,jk": [(2, 3), (3, 4)], "ii->i": [(3, 3)], "ii": [(3, 3)], "ij->ji": [(2, 3)],
    "...ij,...jk->...ik": [(5, 2, 3), (3, 4)], "i,j->ij": [(2,), (3,)], "ij,ij->": [(2, 3), (2, 3)],
    "bij,bjk,bk->bi": [(2, 2, 3), (2, 3, 4), (2, 4)], "ij,i->j": [(2, 3), (2,)], "ij->": [(2, 3)],
    "iij,jk->ik": [(2, 2, 3), (3, 2)],
}  # fmt: skip
for _name, _shapes in EINSUMS.items():
    case(f"einsum {_name}", lambda *x, s=_name: rg.einsum(s, *x), lambda *x, s=_name: torch.einsum(s, *x),
         *(rng(5 + i).normal(size=s) for i, s in enumerate(_shapes)))  # fmt: skip
case("tensordot", rg.tensordot, torch.tensordot, rng(5).normal(size=(2, 3, 2)), rng(6).normal(size=(3, 2, 2)))
case("outer", lambda a, b: rg.outer(a, b), lambda a, b: torch.outer(a.ravel(), b.ravel()), normal, row)

# Rows
for _axis in (-1, 0, 1):
    for _op in ("softmax", "log_softmax"):
        case(f"{_op} axis={_axis}", lambda x, op=_op, axis=_axis: getattr(x, op)(axis),
             lambda x, op=_op, axis=_axis: getattr(x, op)(axis), batch)  # fmt: skip
        case(f"{_op} axis={_axis}, view", lambda x, op=_op, axis=_axis: getattr(x.T[:, ::2], op)(axis),
             lambda x, op=_op, axis=_axis: getattr(x.permute(2, 1, 0)[:, ::2], op)(axis), batch)  # fmt: skip
case("softmax, empty", lambda x: x.softmax(), lambda x: x.softmax(-1), empty)
case("log_softmax, empty", lambda x: x.log_softmax(), lambda x: x.log_softmax(-1), empty)
case("softmax, ties", lambda x: x.softmax(), lambda x: x.softmax(-1), ties)
case("softmax, one class", lambda x: x.softmax(), lambda x: x.softmax(-1), column)
case("rg.softmax, rg.log_softmax", lambda x: rg.softmax(x) * rg.log_softmax(x),
     lambda x: x.softmax(-1) * x.log_softmax(-1), batch)  # fmt: skip


def torch_layer_norm(x: Any, gamma: Any = None, beta: Any = None, eps: float = 1e-5) -> Any:
    """Composed: the third derivative of PyTorch 2.13's F.layer_norm is wrong."""
    centered = x - x.mean(-1, keepdim=True)
    y = centered / ((centered * centered).mean(-1, keepdim=True) + eps).sqrt()
    y = y if gamma is None else y * gamma
    return y if beta is None else y + beta


_gamma, _beta = rng(8).normal(size=4), rng(9).normal(size=4)
case("layer_norm", rg.layer_norm, torch_layer_norm, batch, _gamma, _beta)
case("layer_norm, no beta", rg.layer_norm, torch_layer_norm, batch, _gamma)
case("layer_norm, no gamma", lambda x, b: rg.layer_norm(x, None, b), lambda x, b: torch_layer_norm(x, None, b),
     batch, _beta)  # fmt: skip
case("layer_norm, x alone", rg.layer_norm, torch_layer_norm, batch)
case("layer_norm, eps", lambda x: rg.layer_norm(x, eps=0.3), lambda x: torch_layer_norm(x, eps=0.3), batch)
case("layer_norm, one row", rg.layer_norm, torch_layer_norm, batch[0, 0], _gamma, _beta)
case("layer_norm, view", lambda x, g, b: rg.layer_norm(x.swapaxes(0, 1)[::2], g, b),
     lambda x, g, b: torch_layer_norm(x.swapaxes(0, 1)[::2], g, b), batch, _gamma, _beta)  # fmt: skip
case("layer_norm, constant x", lambda g, b: rg.layer_norm(Tensor(batch), g, b),
     lambda g, b: torch_layer_norm(torch.tensor(batch), g, b), _gamma, _beta)  # fmt: skip
case("layer_norm, constant gamma", lambda x: rg.layer_norm(x, Tensor(_gamma), Tensor(_beta)),
     lambda x: torch_layer_norm(x, torch.tensor(_gamma), torch.tensor(_beta)), batch)  # fmt: skip
case("layer_norm, empty", rg.layer_norm, torch_layer_norm, batch[:0], _gamma, _beta)
case("layer_norm, x is gamma and beta", lambda x: rg.layer_norm(x, x, x), lambda x: torch_layer_norm(x, x, x), _gamma)


def torch_rms_norm(x: Any, gamma: Any = None, eps: float = 1e-5) -> Any:
    y = x / ((x * x).mean(-1, keepdim=True) + eps).sqrt()
    return y if gamma is None else y * gamma


def torch_rotary(x: Any, positions: Any) -> Any:
    d = x.shape[-1]
    angles = positions[:, None, :, None] * 10000.0 ** (torch.arange(0, d, 2, dtype=torch.float64) / -d)
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


case("rms_norm", rg.rms_norm, torch_rms_norm, batch, _gamma)
case("rms_norm, x alone", rg.rms_norm, torch_rms_norm, batch)
case("rms_norm, eps", lambda x: rg.rms_norm(x, eps=0.3), lambda x: torch_rms_norm(x, eps=0.3), batch)
case("rms_norm, one row", rg.rms_norm, torch_rms_norm, batch[0, 0], _gamma)
case("rms_norm, view", lambda x, g: rg.rms_norm(x.swapaxes(0, 1)[::2], g),
     lambda x, g: torch_rms_norm(x.swapaxes(0, 1)[::2], g), batch, _gamma)  # fmt: skip
case("rms_norm, constant x", lambda g: rg.rms_norm(Tensor(batch), g), lambda g: torch_rms_norm(torch.tensor(batch), g),
     _gamma)  # fmt: skip
case("rms_norm, constant gamma", lambda x: rg.rms_norm(x, Tensor(_gamma)),
     lambda x: torch_rms_norm(x, torch.tensor(_gamma)), batch)  # fmt: skip
case("rms_norm, empty", rg.rms_norm, torch_rms_norm, batch[:0], _gamma)
case("rms_norm, x is gamma", lambda x: rg.rms_norm(x, x), lambda x: torch_rms_norm(x, x), _gamma)
case("swiglu", rg.swiglu, lambda a, b: F.silu(a) * b, 3 * normal, normal + 1)
case("swiglu, gate is up", lambda a: rg.swiglu(a, a), lambda a: F.silu(a) * a, normal)
case(
    "swiglu, constant gate", lambda b: rg.swiglu(Tensor(normal), b), lambda b: F.silu(torch.tensor(normal)) * b, normal
)
case("swiglu, constant up", lambda a: rg.swiglu(a, Tensor(normal)), lambda a: F.silu(a) * torch.tensor(normal), normal)
case("rotary", lambda x: Rotary(4)(x, Tensor(range(x.shape[-2]), dtype="int64")),
     lambda x: torch_rotary(x[None], torch.arange(x.shape[-2])[None])[0], batch)  # fmt: skip

_table = rng(3).normal(size=(5, 3))
for _name, _rows in (("repeats", [[0, 2, 2], [4, 0, 2]]), ("one", 3), ("none", np.zeros((0,), "int64"))):
    case(f"embedding, {_name}", lambda w, rows=_rows: rg.embedding(w, rows),
         lambda w, rows=_rows: w[torch.tensor(rows)], _table)  # fmt: skip
case("embedding, ids a Tensor", lambda w: rg.embedding(w * w, Tensor([1, 1, 0], dtype="int64")),
     lambda w: F.embedding(torch.tensor([1, 1, 0]), w * w), _table)  # fmt: skip

_logits, _ids = rng(3).normal(size=(2, 3, 5)), np.array([[0, 4, 4], [2, 4, 1]])


def torch_cross_entropy(logits: Any, ids: Any, ignore: int = -100, excluded: int | None = None) -> Any:
    if excluded is not None:
        logits = logits.masked_fill(torch.arange(logits.shape[-1]) == excluded, -math.inf)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), torch.tensor(ids).reshape(-1), ignore_index=ignore)


case("cross_entropy", lambda x: rg.cross_entropy(x, _ids), lambda x: torch_cross_entropy(x, _ids), _logits)
case("cross_entropy, ids a Tensor", lambda x: rg.cross_entropy(x, Tensor(_ids)), lambda x: torch_cross_entropy(x, _ids),
     _logits)  # fmt: skip
case("cross_entropy, ignore_index", lambda x: rg.cross_entropy(x, _ids, ignore_index=4),
     lambda x: torch_cross_entropy(x, _ids, 4), _logits)  # fmt: skip
case("cross_entropy, ignore_index out of range", lambda x: rg.cross_entropy(x, np.where(_ids == 4, -1, _ids), -1),
     lambda x: torch_cross_entropy(x, _ids, 4), _logits)  # fmt: skip
case("cross_entropy, one row", lambda x: rg.cross_entropy(x, 2), lambda x: torch_cross_entropy(x, 2), _logits[0, 0])
case("cross_entropy_loss, excluded class", lambda x: cross_entropy_loss(x, _ids, 4),
     lambda x: torch_cross_entropy(x, _ids, 4, excluded=4), _logits)  # fmt: skip
case("cross_entropy_loss, no such class", lambda x: cross_entropy_loss(x, np.where(_ids == 4, 9, _ids), 9),
     lambda x: torch_cross_entropy(x, np.where(_ids == 4, 9, _ids), 9), _logits)  # fmt: skip
case("cross_entropy of a view", lambda x: rg.cross_entropy(x.T, _ids.T[1]),
     lambda x: torch_cross_entropy(x.mT, _ids.T[1]), rng(3).normal(size=(5, 2)))  # fmt: skip
_class_weight, _probs = rng(4).random(5) + 0.5, rng(5).random((2, 3, 5))
case("cross_entropy, weight and label_smoothing",
     lambda x, w: rg.cross_entropy(x, _ids, 4, weight=w, label_smoothing=0.1),
     lambda x, w: _weighted(x, w, 0.1), _logits, _class_weight)  # fmt: skip
case("cross_entropy of probabilities", lambda x, t: rg.cross_entropy(x, t, label_smoothing=0.2, reduction="sum"),
     lambda x, t: F.cross_entropy(x.movedim(-1, 1), t.movedim(-1, 1), label_smoothing=0.2, reduction="sum"),
     _logits, _probs)  # fmt: skip


def _weighted(x: Any, w: Any, smoothing: float) -> Any:
    """cross_entropy of `_ids` without those that are 4; PyTorch's own has no gradient of the weight."""
    valid = torch.tensor(_ids != 4)
    one_hot = F.one_hot(torch.tensor(_ids), 5)[valid].double()
    smooth = one_hot * (1 - smoothing) + smoothing / 5
    return -(smooth * w * x[valid].log_softmax(-1)).sum() / (one_hot * w).sum()


case("mse_loss", rg.mse_loss, F.mse_loss, normal, other)
case("l1_loss", rg.l1_loss, F.l1_loss, normal, other)
case("binary_cross_entropy_with_logits", rg.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits,
     10 * normal, positive)  # fmt: skip
case("binary_cross_entropy_with_logits, pos_weight",
     lambda x, t, p: rg.binary_cross_entropy_with_logits(x, t, pos_weight=p, reduction="none"),
     lambda x, t, p: -(p * t * F.logsigmoid(x) + (1 - t) * F.logsigmoid(-x)), normal, positive, row)  # fmt: skip
case("kl_div", lambda x, t: rg.kl_div(x, t, "batchmean"), lambda x, t: F.kl_div(x, t, reduction="batchmean"), normal,
     positive)  # fmt: skip
case("kl_div, log_target", lambda x, t: rg.kl_div(x, t, "sum", True),
     lambda x, t: F.kl_div(x, t, reduction="sum", log_target=True), normal, other)  # fmt: skip


def torch_attention(q: Any, k: Any, v: Any, mask: Any = None, causal: bool = False, offset: int = 0) -> Any:
    """Composed; 0 for queries without a key."""
    length, keys = q.shape[-2], k.shape[-2]
    hidden = torch.zeros(length, keys, dtype=torch.bool)
    if causal:
        hidden = torch.arange(keys) > torch.arange(length)[:, None] + offset
    if mask is not None:
        hidden = hidden | torch.tensor(mask)
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(hidden, -1e30)
    return scores.softmax(-1).masked_fill(hidden, 0.0) @ v


def draws(*shapes: tuple[int, ...]) -> list[Array]:
    return [rng(20 + i).normal(size=shape) for i, shape in enumerate(shapes)]


_qkv = draws((2, 3, 4), (2, 5, 4), (2, 5, 2))
_some = rng(7).random((2, 3, 5)) < 0.4
_all = _some.copy()
_all[0, 1] = True  # all keys of a query are hidden
ATTENTION: dict[str, tuple[list[Array], dict[str, Any]]] = {
    "plain": (_qkv, {}),
    "causal": (_qkv, {"causal": True}),
    "offset": (_qkv, {"causal": True, "offset": 2}),
    "negative offset": (_qkv, {"causal": True, "offset": -1}),
    "all rows hidden": (_qkv, {"causal": True, "offset": -3}),
    "mask": (_qkv, {"mask": _some}),
    "mask hides all keys": (_qkv, {"mask": _all}),
    "mask hides everything": (_qkv, {"mask": np.ones((3, 5), bool)}),
    "mask and causal": (_qkv, {"mask": _all, "causal": True, "offset": 1}),
    "mask of keys": (_qkv, {"mask": _some[:, :1]}),
    "no batch": ([a[0] for a in _qkv], {}),
    "broadcast keys": ([_qkv[0], _qkv[1][0], _qkv[2][:1]], {"mask": _all, "causal": True}),
    "broadcast queries": ([_qkv[0][0], _qkv[1], _qkv[2][0]], {}),
    "values have more axes": ([_qkv[0][0], _qkv[1][0], _qkv[2]], {}),
    "one key": (draws((2, 3, 4), (2, 1, 4), (2, 1, 2)), {}),
    "no queries": (draws((2, 0, 4), (2, 5, 4), (2, 5, 2)), {"causal": True}),
    "four axes": (draws((2, 2, 3, 4), (2, 1, 3, 4), (1, 2, 3, 2)), {"causal": True}),
}  # fmt: skip
for _name, (_arrays, _given) in ATTENTION.items():
    case(f"attention, {_name}", lambda q, k, v, given=_given: rg.attention(q, k, v, **given),
         lambda q, k, v, given=_given: torch_attention(q, k, v, **given), *_arrays)  # fmt: skip
case("attention of one tensor", lambda x: rg.attention(x, x, x, causal=True),
     lambda x: torch_attention(x, x, x, causal=True), _qkv[0])  # fmt: skip
case("attention, constant keys", lambda q: rg.attention(q, Tensor(_qkv[1]), Tensor(_qkv[2])),
     lambda q: torch_attention(q, torch.tensor(_qkv[1]), torch.tensor(_qkv[2])), _qkv[0])  # fmt: skip
case("attention, constant queries and values", lambda k: rg.attention(Tensor(_qkv[0]), k, Tensor(_qkv[2])),
     lambda k: torch_attention(torch.tensor(_qkv[0]), k, torch.tensor(_qkv[2])), _qkv[1])  # fmt: skip
case("attention, values alone", lambda v: rg.attention(Tensor(_qkv[0]), Tensor(_qkv[1]), v, mask=_all),
     lambda v: torch_attention(torch.tensor(_qkv[0]), torch.tensor(_qkv[1]), v, _all), _qkv[2])  # fmt: skip
case("attention of views", lambda q, k, v: rg.attention(q.T, k.T, v[::-1]),
     lambda q, k, v: torch_attention(q.T, k.T, v.flip(0)), *draws((4, 3), (4, 5), (5, 2)))  # fmt: skip


def torch_packed(x: Any, heads: int, hidden: Any = None, causal: bool = False) -> Any:
    q, k, v = x.unflatten(-1, (3, heads, -1)).movedim(-3, 0).transpose(-2, -3)
    return torch_attention(q, k, v, hidden, causal).transpose(-2, -3).flatten(-2)


_packed = rng(30).normal(size=(2, 3, 12))
for _heads in (1, 2):
    case(f"attention_qkvpacked, {_heads} heads", lambda x, h=_heads: rg.attention_qkvpacked(x, h, causal=True),
         lambda x, h=_heads: torch_packed(x, h, None, True), _packed)  # fmt: skip
_hidden = rng(7).random((2, 1, 3, 3)) < 0.4
_hidden[0, 0, 1] = True
case("attention_qkvpacked, mask", lambda x: rg.attention_qkvpacked(x, 2, mask=_hidden),
     lambda x: torch_packed(x, 2, _hidden), _packed)  # fmt: skip
case("attention_qkvpacked, mask and causal", lambda x: rg.attention_qkvpacked(x, 2, mask=_hidden, causal=True),
     lambda x: torch_packed(x, 2, _hidden, True), _packed)  # fmt: skip
case("attention_qkvpacked, no batch", lambda x: rg.attention_qkvpacked(x, 2), lambda x: torch_packed(x, 2), _packed[0])


def directions_of(constant: Fn, xs: Sequence[Any]) -> list[list[Any]]:
    generator = rng(10)
    return [[constant(generator.normal(size=tuple(x.shape))) for x in xs] for _ in range(3)]


def along(vectors: Sequence[Any], direction: Sequence[Any]) -> Any:
    return sum((a * b).sum() for a, b in zip(vectors, direction, strict=True))


def scalar_function(f: Fn, constant: Fn, direction: Sequence[Any]) -> Fn:
    """(<w, y> + <w, sin(y + 1)>) (1 + <v, xs>), where y = f(*xs): not linear in y, and uses each operand twice."""

    def function(*xs: Any) -> Any:
        y = f(*xs)
        weights = constant(rng(11).normal(size=tuple(y.shape)))
        return (weights * (y + (y + 1).sin())).sum() * (1 + along(xs, direction))

    return function


def derivatives(f: Fn, grad: Fn, constant: Fn, xs: Sequence[Any]) -> list[Any]:
    """The derivatives of order 1, 2 and 3 of `scalar_function`, for all operands.

    Order 1 is its gradient. Each further order is the gradient of the product of the last one with random arrays.
    """
    directions = directions_of(constant, xs)
    argnums = tuple(range(len(xs)))
    gradients = [grad(scalar_function(f, constant, directions[0]), argnums)]
    for direction in directions[1:]:
        last = gradients[-1]
        gradients.append(grad(lambda *xs, g=last, d=direction: along(g(*xs), d), argnums))
    return [gradient(*xs) for gradient in gradients]


def our_constant(array: Array) -> Tensor:
    return Tensor(array, requires_grad=False)


@pytest.mark.parametrize("name", CASES)
def test_derivatives_match_pytorch(backend: Backend, name: str) -> None:
    ours, theirs, operands = CASES[name]
    operands = tuple(np.asarray(operand) for operand in operands)
    expected = derivatives(theirs, torch.func.grad, torch.tensor, [torch.tensor(a) for a in operands])
    for tracked in (True, False):  # fused primitives run where nothing is tracked below
        found = derivatives(ours, rg.grad, our_constant, [Tensor(a, requires_grad=tracked) for a in operands])
        for order, (mine, reference) in enumerate(zip(found, expected, strict=True), 1):
            for i, (a, b) in enumerate(zip(mine, reference, strict=True)):
                assert np.isfinite(b.numpy()).all(), "not a reference"
                assert_close(a, b, atol=ATOL, what=f"order {order}, operand {i}, tracked: {tracked}")


@pytest.mark.parametrize("name", CASES)
def test_forward_mode_matches_pytorch(backend: Backend, name: str) -> None:
    """jvp, hvp and jvp of hvp give the derivatives of order 1, 2 and 3 of `derivatives`."""
    ours, theirs, operands = CASES[name]
    operands = tuple(np.asarray(operand) for operand in operands)
    expected = derivatives(theirs, torch.func.grad, torch.tensor, [torch.tensor(a) for a in operands])
    for tracked in (True, False):
        xs = tuple(Tensor(a, requires_grad=tracked) for a in operands)
        directions = directions_of(our_constant, xs)
        function = scalar_function(ours, our_constant, directions[0])

        def hessian_times(xs: tuple[Tensor, ...], f: Fn = function, v: Any = tuple(directions[1])) -> Any:
            return rg.hvp(lambda xs: f(*xs), xs, v)

        what = f"tracked: {tracked}, order"
        slope = sum((a.numpy() * b.numpy()).sum() for a, b in zip(expected[0], directions[2], strict=True))
        assert_close(rg.jvp(function, xs, directions[2])[1], np.asarray(slope), atol=ATOL, what=f"{what} 1")
        for mine, reference in zip(hessian_times(xs), expected[1], strict=True):
            assert_close(mine, reference, atol=ATOL, what=f"{what} 2")
        third = rg.jvp(hessian_times, (xs,), (tuple(directions[2]),))[1]
        for mine, reference in zip(third, expected[2], strict=True):
            assert_close(mine, reference, atol=ATOL, what=f"{what} 3")


@pytest.mark.parametrize("argnums", [path for n in (1, 2, 3) for path in itertools.product((0, 1), repeat=n)], ids=str)
def test_derivatives_of_powers_of_0_are_their_limits(backend: Backend, argnums: tuple[int, ...]) -> None:
    """Derivatives of a ** b at a = 0 that are finite. PyTorch returns nan for most derivatives with respect to b."""

    def at(exponent: float) -> float:
        derivative: Fn = lambda a, b: a**b  # noqa: E731
        for argnum in argnums:
            derivative = rg.grad(derivative, argnum)
        return float(derivative(Tensor(0.0), Tensor(exponent)))

    of_a = argnums.count(0)
    for exponent in (3.5, 4.0, 5.0):
        assert at(exponent) == 0
    if of_a == len(argnums):  # b (b - 1) ... is not 0 where a ** 0 remains
        assert at(float(of_a)) == math.factorial(of_a)
    if of_a == 0:
        assert at(0.5) == at(1.0) == at(2.0) == 0
    if of_a == 1:
        assert at(1.5) == at(2.0) == 0


def test_derivatives_of_powers_of_the_number_0_are_0(backend: Backend) -> None:
    x = np.array([0.5, 1.0, 3.0])
    for derivative in derivatives(lambda b: 0**b, rg.grad, our_constant, [Tensor(x)]):
        assert np.isfinite(derivative[0].numpy()).all()
    f: Fn = lambda b: 0**b  # noqa: E731
    for _ in range(3):
        f = rg.grad(f)
        assert f(Tensor(2.0)).item() == 0


def test_derivatives_of_constant_powers_at_0(backend: Backend) -> None:
    """a ** 0 and a ** 1 with exponents that are tensors, where PyTorch has nan at order 2."""
    for exponent in (0.0, 1.0):
        f: Fn = lambda a, b=exponent: a ** Tensor(b)  # noqa: E731
        for order in (1, 2, 3):
            f = rg.grad(f)
            assert f(Tensor(0.0)).item() == (exponent if order == 1 else 0)


def test_every_rule_has_a_case() -> None:
    """By name: `sum` of "sum axis=0, keepdims=True"."""
    text = " ".join(CASES) + " custom"
    without_a_derivative = {"equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "argmax",
                            "isnan", "isinf", "isfinite",
                            "logical_and", "logical_or", "logical_xor", "logical_not"}  # fmt: skip
    of_backward = {"getitem_backward", "embedding_backward", "leaky_relu_backward", "gelu_backward"}  # of order 2
    helpers = {"as_mask", "widened", "gelu_second_derivative"}
    ops = {
        name for name, rule in vars(rules).items()
        if inspect.isfunction(rule) and rule.__module__ == rules.__name__ and name[0] != "_"
        and next(iter(inspect.signature(rule).parameters), "") == "xp" and name not in helpers
    }  # fmt: skip
    assert len(ops) > 60
    missing = [op for op in ops - without_a_derivative - of_backward if not re.search(rf"\b{op}\b", text)]
    assert not missing


# --- The whole model

OPTIONS: list[dict[str, Any]] = [
    {"activation": activation, "output_projection": True, "final_norm": True, "dropout": 0.3}
    for activation in torch_twin.ACTIVATIONS
] + [{}, {"activation": "gelu", "output_projection": True}]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(map(str, options.values())))
def test_hessian_vector_product_of_the_transformer_matches_pytorch(
    backend: Backend, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer.from_text("the cat sat on the mat", max_seq_len=12, embed_dim=16, seed=0)
    model = Transformer(tokenizer, 2, 4, seed=3, **options)
    randomise(model)
    pad, texts = tokenizer.pad_token_id, ["the cat", "a", "sat sat sat"]  # padded by different amounts
    ids, targets = Tensor(tokenizer.ids(texts).values).numpy(), np.array(tokenizer.targets(texts))
    directions = {name: rng(5).normal(size=p.shape) for name, p in model.named_parameters()}

    draws = Generator(3, DROPOUT)
    masks = [Tensor(draws.dropout_mask((*ids.shape, 16), 0.3, "float64", backend)).numpy() for _ in range(5)]
    remaining = map(torch.tensor, masks)
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: x * next(remaining) if self.p else x)
    parameters = torch_params(model)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the fused one has no second derivative
        loss = torch_twin.loss(torch_twin.transformer(parameters, ids, model.config(), pad), targets, pad)
    gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
    along: Any = sum((g * torch.tensor(v)).sum() for g, v in zip(gradients, directions.values(), strict=True))
    expected = dict(zip(parameters, torch.autograd.grad(along, list(parameters.values())), strict=True))

    def loss_of(parameters: dict[str, Tensor]) -> Tensor:
        return cross_entropy_loss(rg.functional_call(model, parameters, texts), targets, pad)

    v = {name: our_constant(direction) for name, direction in directions.items()}
    for tracked in (True, False):
        model.dropout.generator = Generator(3, DROPOUT)
        own = {name: p if tracked else p.detach() for name, p in model.named_parameters()}
        found = rg.hvp(loss_of, own, v)
        assert list(found) == list(expected)
        for name, product in found.items():
            assert product.requires_grad is tracked
            assert_close(product, expected[name], atol=ATOL, what=name)
