"""Cases of the primitives that have no backward of their own, and of the optimizer's steps."""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from ..backend import ELEMENTWISE, Array, Backend, Core
from .trial import EPS, Case, Trial, expected, reference
from .values import dtypes_of, inf, nan, normal, special, titled, values
from .views import CONTIGUOUS, HostArray, typed


def cases() -> Iterator[Case]:
    yield Case("erf", "to 1e-15 in float64", erf_is_exact)
    yield Case("prepare_index", "takes the backend's own arrays", indices_of_its_own)
    yield Case("prepare_index", "it or getitem raises for an invalid index", indices_out_of_bounds)
    yield Case("prepare_index", "a copy: later changes of the given array have no effect", indices_are_copied)
    yield Case("sum", "half precision keeps its dtype", sums_of_halves)
    for table in (
        elementwise,
        choices,
        clipping,
        reductions,
        long_sums,
        in_half,
        shapes,
        indices,
        products,
        pooling,
        steps,
    ):
        yield from table()


# --- Elementwise: the cases of a primitive follow from its name and its number of operands in the contract

x, y = normal(3, 4), normal(3, 4, seed=1)
positive, positive_y = np.abs(x) + 0.5, np.abs(y) + 0.5
whole, small = np.array([[3, -2, 0], [7, 1, 1]]), np.array([1, -2, 1])
yes, no = np.array([[True], [False]]), np.array([True, False])

FLOATS: dict[str, tuple[HostArray, HostArray]] = {
    "random": (x, y),
    "positive": (positive, positive_y),  # log, sqrt and power are nan for most negative numbers
    "whole numbers": (np.round(x), np.round(y)),  # with ties, which comparisons tell apart
}
OF_BOOLS = ("logical_and", "logical_or", "logical_not")  # these take bools alone
ALSO_OF_BOOLS = ("equal", "not_equal", "maximum")
ALSO_OF_INTEGERS = (
    "add", "subtract", "multiply", "maximum", "minimum", "equal", "not_equal", "less", "less_equal", "greater",
    "greater_equal", "negative", "abs", "sign", "floor_divide", "remainder",
)  # fmt: skip
SIGNED_ZEROS = ("negative", "abs", "sqrt", "multiply", "divide")  # the sign of a zero is part of these results
DERIVED_UNARY = ("erf", "sigmoid", "relu")


def n_operands(primitive: str) -> int:
    """The number of operands of an elementwise core primitive, from the contract."""
    return len(inspect.signature(getattr(Core, primitive)).parameters) - 1  # without self


def elementwise() -> Iterator[Case]:
    for primitive in (*ELEMENTWISE, *DERIVED_UNARY):
        n = 1 if primitive in DERIVED_UNARY else n_operands(primitive)
        if primitive not in OF_BOOLS:
            yield from unary(primitive) if n == 1 else binary(primitive)
        if primitive in (*OF_BOOLS, *ALSO_OF_BOOLS):
            yield from values(primitive, "bools", *(yes, no)[:n])
            yield from values(primitive, "bools, no axes", *(np.array(True), np.array(False))[:n])
            yield from values(primitive, "bools, empty", *(yes[:0], no)[:n])
        if primitive in ALSO_OF_INTEGERS:
            yield from values(primitive, "integers", *(whole, small)[:n])
    for exponent in (-1, 0, 0.5, 3, -2.5):
        # Whether -inf to the power 0.5 is inf, as in IEEE 754, or nan, as sqrt(-inf), is left to the backend.
        base = special[special != -np.inf] if exponent == 0.5 else special
        yield from values("power", f"to {exponent}", base, exponent)


def unary(primitive: str) -> Iterator[Case]:
    for title, (a, _) in FLOATS.items():
        yield from values(primitive, title, a)
        yield from values(primitive, f"{title}, no axes", np.array(a[1, 2]))
    yield from values(primitive, "a range", np.linspace(-9, 3, 25))
    yield from values(primitive, "large", np.array([1000.0, -1000.0]))
    yield from values(primitive, "empty", x[:0])
    yield from values(primitive, "special", special, signs=primitive in SIGNED_ZEROS)


def binary(primitive: str) -> Iterator[Case]:
    for title, (a, b) in FLOATS.items():
        yield from values(primitive, title, a, b)
        yield from values(primitive, f"{title}, broadcast", a[:, :1], b[0])
        for number in (2.5, 2, 0):
            yield from values(primitive, f"{title}, {number} on the right", a, number)
            yield from values(primitive, f"{title}, {number} on the left", number, b)
        yield from values(primitive, f"{title}, no axes", np.array(a[1, 2]), np.array(b[0, 0]))
        yield from values(primitive, f"{title}, no axes and some", np.array(a[1, 2]), b)
    yield from values(primitive, "equal operands", x, x)
    yield from values(primitive, "empty", x[:0], y[0])
    yield from values(primitive, "special", special[:, None], special, signs=primitive in SIGNED_ZEROS)
    yield from values(primitive, "special, 1.0 on the right", special, 1.0)
    if primitive in ALSO_OF_INTEGERS:
        yield from values(primitive, "integers, 2 on the right", whole, 2)
    yield from half_and_number(primitive)


halves = np.array([-3.5, -2.0, -0.25, 0.0, 0.5, 1.0, 2.75])  # exact in float16 and bfloat16


def half_and_number(primitive: str, *first: HostArray) -> Iterator[Case]:
    """primitive(*first, a, b) of an array in half precision and a Python number. The result keeps the dtype."""

    def body(t: Trial, on_the_left: bool) -> None:
        for dtype, number in product(t.halves(), (2.5, 2, 0)):
            operands = (number, halves) if on_the_left else (halves, number)
            moved = [t.half(a, dtype) if isinstance(a, np.ndarray) else a for a in operands]
            found = getattr(t.xp, primitive)(*t.move(first), *moved)
            wanted = getattr(reference, primitive)(*first, *operands)
            t.same_half(found, wanted, dtype, atol=EPS[dtype], relative=True)

    yield Case(primitive, "half precision, a number on the right", partial(body, on_the_left=False))
    yield Case(primitive, "half precision, a number on the left", partial(body, on_the_left=True))


def choices() -> Iterator[Case]:
    chosen = x > 0
    yield from values("where", "random", chosen, x, y)
    yield from values("where", "broadcast", chosen[:, :1], x[0], y)
    yield from values("where", "a number on the right", chosen, x, 0)
    yield from values("where", "a number on the left", chosen, -inf, x)
    yield from values("where", "two numbers", chosen, 1e-6, 0.0)
    yield from values("where", "no axes", np.array(True), np.array(1.0), np.array(2.0))
    yield from values("where", "empty", chosen[:0], x[:0], 1.0)
    yield from values("where", "special values that are not selected", no, special[2:4], special[5:])
    yield from values("where", "integers", whole > 0, whole, small)
    yield from half_and_number("where", halves > 0)


def clipping() -> Iterator[Case]:
    for low, high in ((-0.5, 0.5), (None, 0.5), (-0.5, None), (None, None), (0, 1), (0.5, -0.5)):
        yield from values("clip", f"from {low} to {high}", x, low, high)
    yield from values("clip", "bounds that are arrays", x, -np.abs(y), np.abs(y[0]))
    yield from values("clip", "an array and a number", x, -np.abs(y), 0.5)
    yield from values("clip", "bounds with more axes", x[0], np.array(-0.5), np.abs(y))
    yield from values("clip", "no axes", np.array(2.5), 0.0, 1.0)
    yield from values("clip", "empty", x[:0], -0.5, 0.5)
    yield from values("clip", "special", special, -1.5, 1.5)
    yield from values("clip", "at the bounds", np.array([-1.0, 0.0, 1.0]), -1.0, 1.0)
    yield from values("clip", "integers", whole, -1, 2)


def erf_is_exact(t: Trial) -> None:
    points = np.concatenate([np.linspace(-7, 7, 501), [0.46875, 4.0, 6.0, 1e-300, 5e-324, -1e-8, 30.0, inf, -inf]])
    t.same(t.xp.erf(t.backend.asarray(points)), np.array([math.erf(point) for point in points]), atol=1e-15)


# --- Pooling

pooled = normal(2, 3, 7, 6)


def pooling() -> Iterator[Case]:
    once, none = (1, 1), ((0, 0), (0, 0))
    few = np.maximum(np.round(pooled), 0)
    with_nan = np.where(few > 1, nan, few)
    sizes: dict[str, tuple[Any, ...]] = {
        "": ((2, 2), (2, 2), none, once),
        ", overlapping": ((3, 2), (1, 1), none, once),
        ", padded": ((3, 2), (2, 1), ((1, 1), (1, 0)), once),
        ", dilated": ((2, 3), (1, 2), ((1, 0), (0, 1)), (2, 2)),
        ", gaps": ((2, 1), (3, 2), none, once),
    }
    for title, args in sizes.items():
        yield from values("max_pool_indices", f"random{title}", pooled, *args)
        yield from values("max_pool_indices", f"ties{title}", few, *args)
        yield from values("max_pool_indices", f"nan{title}", with_nan, *args)
        yield from values("max_pool_indices", f"-inf{title}", np.where(few > 0, few, -inf), *args)
        yield from values("max_pool_indices", f"no samples{title}", few[:0], *args)
    yield from values("max_pool_indices", "one axis", pooled[0], (3,), (2,), ((1, 1),), (1,))


# --- Reductions

cube = normal(2, 3, 4)
ties = np.array([[1.0, 3.0, 3.0, 3.0], [2.0, 2.0, 2.0, 2.0], [-1.0, -1.0, 5.0, 5.0]])
AXES: tuple[Any, ...] = (None, 0, 1, -1, (0, 1), (-1, 0), (2, 0, 1), (1,))


def reduced(primitive: str, title: str, a: HostArray, **options: Any) -> Iterator[Case]:
    """Of primitive(a, **options): axis and keepdims are keyword arguments."""
    yield from values(primitive, title, a, call=lambda xp, a: getattr(xp, primitive)(a, **options))


def reductions() -> Iterator[Case]:
    for primitive, axis in product(("argsort", "cumsum"), (0, 1, 2, -1)):
        yield from values(primitive, f"axis {axis}", cube, axis)
        yield from values(primitive, f"ties, axis {axis}", ties[:, None], axis)
        yield from values(primitive, f"integers, axis {axis}", whole_cube % 5, axis)
        yield from values(primitive, f"bools, axis {axis}", whole_cube % 5 > 2, axis)
        yield from values(primitive, f"empty, axis {axis}", cube[:, :0], axis)
    yield from values("argsort", "nan last, the zeros in order", np.array([nan, 0.0, -0.0, inf, nan, -inf, -1.0]), 0)
    yield from values("argsort", "many ties", np.arange(5000) % 7 * 1.0, 0)
    yield from values("cumsum", "large integers", np.array([2**62, 1, 1]), 0)
    for primitive in ("sum", "max", "min", "argmax"):
        for axis in AXES:
            if primitive == "argmax" and isinstance(axis, tuple):
                continue
            for keepdims in (False, True):
                title = f"axis {axis}, keepdims {keepdims}"
                yield from reduced(primitive, title, cube, axis=axis, keepdims=keepdims)
            yield from reduced(primitive, f"ties, axis {axis}", ties[:, None], axis=axis)
        yield from reduced(primitive, "the defaults", cube)
        yield from reduced(primitive, "no axes", np.array(2.5))
        yield from reduced(primitive, "nothing along another axis", np.zeros((0, 3)), axis=1)
        yield from reduced(primitive, "infinities", np.array([[1.0, inf, inf], [-inf, -inf, 2.0]]), axis=1)
        yield from reduced(primitive, "integers", np.array([[3, 1, 3], [2, 7, 0]]), axis=1)
    for place in range(3):  # a reduction may compute the last elements of a row in another way
        row = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
        row[:, place] = nan
        for primitive in ("sum", "max", "min"):
            yield from reduced(primitive, f"nan at {place} wins", row, axis=1)
            yield from reduced(primitive, f"nan at {place} wins, all axes", row)
    yield from reduced("sum", "nothing", np.zeros((0, 3)), axis=0)
    yield from reduced("sum", "nothing, all axes", np.zeros((0, 3)))
    yield from reduced("sum", "bools to integers", np.array([[True, True], [False, True]]), axis=1)
    yield from reduced("sum", "bools, all axes", np.array([[True, True], [False, True]]))
    yield from reduced("sum", "inf and -inf", np.array([inf, -inf]))
    for dtype in ("uint8", "int8", "uint16", "int32", "uint64"):
        yield from reduced("sum", f"{dtype} to int64", np.full((3, 2), 100, dtype), axis=0)


def sums_of_halves(t: Trial) -> None:
    for dtype in t.halves():
        for axis in (None, 0, 1):
            t.same_half(t.xp.sum(t.half(ties, dtype), axis=axis), ties.sum(axis), dtype, atol=0.0)


# --- Accuracy: sums whose error grows with the number of elements if these are added one by one

tenths = np.full((1 << 17, 2), 0.1, np.float32)  # a column is 13107.2; in float32, one by one, 13093.6
total_of_tenths: HostArray = np.asarray(np.sum(tenths, axis=0, dtype=np.float64))
LONG_SUMS: dict[str, tuple[HostArray, Any]] = {
    "rows": (tenths, 0),
    "rows in between": (tenths.reshape(2, -1, 2), 1),
    "rows of two axes": (tenths.reshape(256, -1, 2), (0, 1)),
    "long rows of two axes": (tenths.reshape(1024, 16, 16), (0, 1)),
    "every second column": (np.repeat(tenths, 2, axis=1)[:, ::2], 0),
    "rows in reverse": (tenths[::-1], 0),
    "columns": (tenths.T, 1),
    "everything": (tenths, None),
}


def long_sums() -> Iterator[Case]:
    """In float32, within 1e-6 of the sum in float64."""
    for title, (a, axis) in LONG_SUMS.items():
        yield Case("sum", f"many elements: {title}", partial(_sum_is_accurate, a, axis))
    yield Case("cumsum", "many rows", _last_sum_is_accurate)
    yield Case("linear_backward", "many rows: the gradient of the bias", _bias_is_accurate)
    yield Case("layer_norm_backward", "many rows: the gradients of gamma and beta", _scale_and_shift_are_accurate)
    yield Case("rms_norm_backward", "many rows: the gradient of gamma", _scale_of_rms_norm_is_accurate)
    yield Case("conv_backward", "many rows: the gradient of the bias", _bias_of_conv_is_accurate)
    for primitive, axis in product(("softmax", "log_softmax"), (0, -1)):
        title = f"many elements along the {'last' if axis else 'first'} axis"
        yield Case(primitive, title, partial(_softmax_is_accurate, primitive, axis))
    yield Case("cross_entropy", "many classes", _cross_entropy_is_accurate)


def _is_accurate(t: Trial, found: Array, wanted: HostArray, what: str = "") -> None:
    t.same(found, wanted.astype(np.float32), atol=1e-6 * float(np.max(np.abs(wanted))), what=what)


def _sum_is_accurate(a: HostArray, axis: Any, t: Trial) -> None:
    moved = t.backend.asarray(a)
    if a.strides[0] < 0:  # views on the backend
        moved = t.backend.getitem(t.backend.asarray(a[::-1]), (slice(None, None, -1),))
    elif a.strides == (16, 8):
        moved = t.backend.getitem(t.backend.asarray(a.base), (slice(None), slice(None, None, 2)))
    _is_accurate(t, t.xp.sum(moved, axis=axis), np.asarray(np.sum(a, axis=axis, dtype=np.float64)))


def _last_sum_is_accurate(t: Trial) -> None:
    found = t.xp.cumsum(t.backend.asarray(tenths), 0)
    _is_accurate(t, t.backend.getitem(found, (-1,)), total_of_tenths)


def _bias_is_accurate(t: Trial) -> None:
    x, weight = t.move((np.ones((len(tenths), 1), np.float32), np.ones((1, 2), np.float32)))
    found = t.xp.linear_backward(t.move(tenths), x, weight, (False, False, True))[2]
    _is_accurate(t, found, total_of_tenths)


def _scale_and_shift_are_accurate(t: Trial) -> None:
    n = len(tenths)
    x = np.tile(np.array([1.0, 3.0], np.float32), (n, 1))
    mean, rstd = np.full((n, 1), 2.0, np.float32), np.ones((n, 1), np.float32)
    g, x, gamma, mean, rstd = t.move((tenths, x, np.ones(2, np.float32), mean, rstd))
    found = t.xp.layer_norm_backward(g, x, gamma, mean, rstd, (False, True, True))
    _is_accurate(t, found[1], total_of_tenths * np.array([-1.0, 1.0]), "gradient of gamma: ")
    _is_accurate(t, found[2], total_of_tenths, "gradient of beta: ")


def _scale_of_rms_norm_is_accurate(t: Trial) -> None:
    ones, r = np.ones_like(tenths), np.ones((len(tenths), 1), np.float32)
    g, x, gamma, r = t.move((tenths, ones, ones[0], r))
    _is_accurate(t, t.xp.rms_norm_backward(g, x, gamma, r, (False, True))[1], total_of_tenths)


def _bias_of_conv_is_accurate(t: Trial) -> None:
    n = len(tenths)
    g, x, weight = t.move((tenths.reshape(n, 2, 1), np.ones((n, 1, 1), np.float32), np.ones((2, 1, 1), np.float32)))
    found = t.xp.conv_backward(g, x, weight, (1,), ((0, 0),), (1,), 1, (False, False, True))[2]
    _is_accurate(t, found, total_of_tenths)


def _softmax_is_accurate(primitive: str, axis: int, t: Trial) -> None:
    logits = np.log(tenths if axis == 0 else tenths.T)
    logits[0, 0] = 0.0  # the largest element, so that the terms of the sum are tenths
    found = getattr(t.xp, primitive)(t.move(logits), axis)
    _is_accurate(t, found, getattr(reference, primitive)(logits.astype(np.float64), axis))


def _cross_entropy_is_accurate(t: Trial) -> None:
    logits, ids = np.log(tenths.T), np.array([1, 1])
    logits[:, 0] = 0.0  # as for softmax
    logits_there, ids_there = t.move((logits, ids))
    loss, probs = t.xp.cross_entropy(logits_there, ids_there, None, None)
    wanted = reference.cross_entropy(logits.astype(np.float64), ids, None, None)
    _is_accurate(t, loss, np.asarray(wanted[0]), "loss: ")
    _is_accurate(t, probs, wanted[1], "probabilities: ")


# --- Half precision: sums are in float32, and the result is rounded once


def in_half() -> Iterator[Case]:
    """The operands are exact in float16 and bfloat16."""
    n = 4096
    ones, ids = np.ones((n, 2)), np.zeros(n, np.int64)
    spread = np.array([[1000.0, -1000.0, 500.0, 0.0]])
    far = np.array([[256.0, 0.0], [0.0, -256.0], [128.0, 128.0]])
    columns = np.array([[1.0, 3.0]] * n)
    half: dict[str, tuple[str, Callable[..., Any], tuple[Any, ...]]] = {
        "many rows": ("sum", lambda xp, a: xp.sum(a, axis=0), (ones,)),
        "all elements": ("sum", lambda xp, a: xp.sum(a), (ones,)),
        "repeated indices": (
            "getitem_backward",
            lambda xp, g, ids: xp.getitem_backward(g, xp.prepare_index((ids,), (2, 2)), (2, 2)),
            (ones, ids),
        ),
        "many rows, one after the other": ("cumsum", lambda xp, a: xp.cumsum(a, 0), (ones,)),
        "repeated ids": ("embedding_backward", lambda xp, g, ids: xp.embedding_backward(g, ids, 2), (ones, ids)),
        "many elements": ("softmax", lambda xp, a: xp.softmax(a, -1), (np.zeros((1, 70000)),)),
        "many gradients": ("softmax_backward", lambda xp, *a: xp.softmax_backward(*a, -1), (ones.T, ones.T / n)),
        "many elements ": ("log_softmax", lambda xp, a: xp.log_softmax(a, -1), (np.zeros((1, 70000)),)),
        "many gradients ": (
            "log_softmax_backward", lambda xp, *a: xp.log_softmax_backward(*a, -1), (ones.T, -8 * ones.T),
        ),
        "large elements": ("layer_norm", lambda xp, x: xp.layer_norm(x, None, None, 1e-5)[0], (spread,)),
        "many rows, gamma": (
            "layer_norm_backward",
            lambda xp, g, x: xp.layer_norm_backward(
                g, x, None, *xp.layer_norm(x, None, None, 1e-5)[1:], (False, True, True)
            )[1:],
            (ones, columns),
        ),
        "large elements ": ("rms_norm", lambda xp, x: xp.rms_norm(x, None, 1e-5)[0], (spread,)),
        "many rows, gamma ": (
            "rms_norm_backward",
            lambda xp, g, x: xp.rms_norm_backward(g, x, None, xp.rms_norm(x, None, 1e-5)[1], (False, True))[1:],
            (ones, columns),
        ),
        "a gate": ("swiglu", lambda xp, *a: xp.swiglu(*a), (spread / 512, spread)),
        "gradients of a gate": (
            "swiglu_backward", lambda xp, *a: xp.swiglu_backward(*a, (True, True)), (spread / 32, spread / 512, spread),
        ),
        "rotated pairs": ("rotary", lambda xp, *a: xp.rotary(*a), (spread, far[:1] / 256, far[2:] / 256)),
        "many rows, bias": (
            "linear_backward",
            lambda xp, g, x, weight: xp.linear_backward(g, x, weight, (False, True, True))[1:],
            (ones, ones[:, :1], ones[:1]),
        ),
        "many losses": (  # the loss itself may be in float32
            "cross_entropy",
            lambda xp, a, ids: xp.astype(xp.cross_entropy(a, ids, None, None)[0], xp.dtype(a)),
            (8 * ones, ids),
        ),
        "a large window": (
            "conv",
            lambda xp, x, weight: xp.conv(x, weight, None, (1,), ((0, 0),), (1,), 1),
            (ones.reshape(1, 2, -1), ones.reshape(1, 2, -1)),
        ),
        "many windows": (
            "conv_backward",
            lambda xp, g, x, weight: xp.conv_backward(g, x, weight, (1,), ((0, 0),), (1,), 1, (False, True, True))[1:],
            (ones.reshape(1, 1, -1), ones.reshape(1, 1, -1), ones[:1, :1].reshape(1, 1, 1)),
        ),
        "large scores": ("attention", lambda xp, q, k, v: xp.attention(q, k, v, None, False, 0)[0], (far, far, far)),
        "many keys": (
            "attention", lambda xp, q, k, v: xp.attention(q, k, v, None, False, 0)[0], (ones[:3], ones, ones),
        ),
    }  # fmt: skip
    for title, (primitive, call, operands) in half.items():
        yield Case(
            primitive, f"half precision is summed in float32: {title.strip()}", partial(_in_half, call, operands)
        )


def _in_half(call: Callable[..., Any], operands: tuple[Any, ...], t: Trial) -> None:
    """Within one rounding of what the formulas give in float64."""
    wanted = call(reference, *operands)
    for dtype in t.halves():
        found = call(t.xp, *(t.half(a, dtype) if a.dtype.kind == "f" else t.move(a) for a in operands))
        for one, other in zip(found, wanted, strict=True) if isinstance(wanted, tuple) else [(found, wanted)]:
            t.same_half(one, other, dtype, atol=EPS[dtype] * float(np.max(np.abs(other))) + 2.0**-24)


# --- Shapes

whole_cube = np.arange(24).reshape(2, 3, 4)


def shapes() -> Iterator[Case]:
    for shape in ((24,), (4, 6), (2, 1, 12), (-1,), (3, -1), (2, 3, 4)):
        yield from values("reshape", f"to {shape}", cube, shape)
    yield from values("reshape", "one element to no axes", np.array([[2.5]]), ())
    yield from values("reshape", "no axes to one", np.array(2.5), (1, 1))
    yield from values("reshape", "empty", np.zeros((0, 3)), (3, 0, 2))
    yield from values("reshape", "integers", whole_cube, (6, 4))
    for axes in (None, (2, 0, 1), [1, 0, 2], (0, 1, 2)):
        yield from values("transpose", f"{axes}", cube, axes)
    yield from values("transpose", "no axes", np.array(2.5))
    yield from values("transpose", "empty", np.zeros((0, 3)))
    for n in (5, 1, 0):
        yield from values("broadcast_to", f"a new axis of {n}", cube, (n, 2, 3, 4))
    yield from values("broadcast_to", "its own shape", cube, (2, 3, 4))
    yield from values("broadcast_to", "axes of one", cube[:, :1], (2, 5, 4))
    yield from values("broadcast_to", "no axes to some", np.array(2.5), (2, 3))
    yield from values("broadcast_to", "bools", np.array([[True], [False]]), (2, 3))
    for place in (0, 1, -1, 3, (0, 2), (-1, 0)):
        yield from values("expand_dims", f"{place}", cube, place)
    yield from values("expand_dims", "no axes", np.array(2.5), 0)
    for axis in (0, 1, 2):
        yield from values("concatenate", f"axis {axis}", [cube, -cube], axis)
    yield from values("concatenate", "unequal lengths", [cube, cube[:, :1], cube[:, :0]], 1)
    yield from values("concatenate", "one array", [cube], 0)
    yield from values("concatenate", "a tuple of arrays", (x, y), 1)
    yield from values("concatenate", "integers", [whole, whole[:1]], 0)
    yield from values("concatenate", "bools", [whole > 0, whole > 1], 1)


# --- Indices

floor = np.array([[True, False, True], [False, False, True]])
INDICES: dict[str, Any] = {
    "an int": 1, "a negative int": -1, "all ints": (1, -2, 3), "a slice": np.s_[:1], "steps": np.s_[::2, 1::3],
    "negative steps": np.s_[::-1, ::-2], "a slice out of range": np.s_[5:9], "an empty slice": np.s_[1:1],
    "ellipsis": np.s_[...], "ellipsis first": np.s_[..., 0], "ellipsis in the middle": np.s_[1, ..., 2:4],
    "None": np.s_[None], "None inside": np.s_[:, None, 1, None], "an empty tuple": (), "a list": [1, 0],
    "repeats": [1, 0, 1, 1], "negative ints in a list": [-1, 0, -1], "an empty list": [],
    "an empty list on a later axis": np.s_[:, []], "two empty lists": ([], []), "an int and an empty list": (1, []),
    "an array": np.array([0, 0, 1]), "an array of two axes": np.array([[0, 1], [1, 1]]),
    "an array of no axes": np.array(1), "an empty array": np.zeros((0, 2), np.int64),
    "int32": np.array([1, 1], np.int32), "uint8": np.array([1, 1], np.uint8),
    "on a later axis": np.s_[:, [1, 1, 2]], "two lists": ([0, 1, 1], [2, 0, 0]),
    "two arrays, broadcast": (np.array([[0], [1]]), np.array([2, 0, 2])), "arrays apart": np.s_[[0, 1], :, [2, 2]],
    "a list and an int": np.s_[[0, 1, 1], 2], "an int, a slice, a list": np.s_[1, :, [2, 2, 0]],
    "a list and None": np.s_[[0, 0], None, 1:], "ellipsis and a list": np.s_[..., [3, 3]], "a mask": floor,
    "a mask of all": cube > 0, "a mask as a list": [True, False], "a mask on a later axis": np.s_[:, floor[0]],
    "a mask and a slice": np.s_[floor, 1:3], "a mask and an int": np.s_[floor, 2],
    "a mask and a list": np.s_[[0, 1], floor[0]], "a mask of nothing": np.zeros(2, bool),
}  # fmt: skip
BAD_INDICES: dict[str, tuple[type[Exception], Any]] = {
    "an int": (IndexError, 2), "a negative int": (IndexError, -3), "a list": (IndexError, [0, 2]),
    "a negative list": (IndexError, [0, -3]), "an array": (IndexError, np.array([[0], [7]])),
    "a list on a later axis": (IndexError, np.s_[:, [3]]), "behind an ellipsis": (IndexError, np.s_[..., [4]]),
    "behind a mask": (IndexError, (floor, [4, 4, 4])), "too many": (IndexError, np.s_[0, 0, 0, [0]]),
    "floats": (IndexError, [0.0, 1.0]), "a mask of another shape": (IndexError, np.ones((2, 2), bool)),
    "a longer mask": (IndexError, np.ones(3, bool)), "one bool": (TypeError, True),
}  # fmt: skip


def picked(index: Any, xp: Backend, a: Array) -> Array:
    """a[index] for an index on the host, which `prepare_index` copies to the backend."""
    return xp.getitem(a, xp.prepare_index(index, a.shape))


def indices() -> Iterator[Case]:
    """The cases of floats, with the gradient, are in `pairs.py`."""
    yield from values("getitem", "integers", whole_cube, call=partial(picked, [1, 1]))
    yield from values("getitem", "bools", whole_cube > 3, call=partial(picked, (0, [1, 1])))
    large = np.array([2**62 + 1, 3, 2**53 + 1])
    yield from values("getitem_backward", "large integers", large, call=partial(added, ([1, 0, 1],)))


def added(index: Any, xp: Backend, g: Array) -> Array:
    """zeros(2) with g added at the index on the host."""
    return xp.getitem_backward(g, xp.prepare_index(index, (2,)), (2,))


def indices_of_its_own(t: Trial) -> None:
    host = cube.astype("float32")
    a = t.backend.asarray(host)
    for title, index in INDICES.items():
        if isinstance(index, np.ndarray):
            t.same(picked(t.backend.asarray(index), t.xp, a), host[index], what=f"{title}: ")
    some = t.backend.asarray(np.array([2, 0]))
    t.same(picked((0, some, slice(1, None)), t.xp, a), host[0, [2, 0], 1:])


def indices_out_of_bounds(t: Trial) -> None:
    a = t.backend.asarray(cube.astype("float32"))
    for error, index in BAD_INDICES.values():
        t.raises(error, "", picked, index, t.xp, a)
        if isinstance(index, np.ndarray):
            t.raises(error, "", picked, t.backend.asarray(index), t.xp, a)


def indices_are_copied(t: Trial) -> None:
    given = np.array([1, 0])
    index = t.xp.prepare_index(given, (2,))
    given[:] = 0
    t.same(t.xp.getitem(t.backend.asarray([1, 2]), index), np.array([2, 1]))


# --- Products

PRODUCTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "matrices": ((3, 4), (4, 5)), "a batch": ((2, 3, 4), (2, 4, 5)), "two batch axes": ((2, 6, 3, 4), (2, 6, 4, 5)),
    "a batch of one": ((1, 2, 3, 4), (1, 2, 4, 5)), "a batch and a matrix": ((2, 3, 4), (4, 5)),
    "a matrix and a batch": ((3, 4), (2, 4, 5)), "batches that broadcast": ((2, 1, 3, 4), (6, 4, 5)),
    "a row and a column": ((4,), (4,)), "a row and a matrix": ((4,), (4, 5)), "a matrix and a column": ((3, 4), (4,)),
    "a row and a batch": ((4,), (2, 4, 5)), "a batch and a column": ((2, 3, 4), (4,)), "no rows": ((0, 4), (4, 5)),
    "nothing to sum": ((3, 0), (0, 5)), "no batch": ((0, 3, 4), (0, 4, 5)), "one element": ((1, 1), (1, 1)),
    "larger": ((65, 70), (70, 33)),
}  # fmt: skip


def products() -> Iterator[Case]:
    for title, (a, b) in PRODUCTS.items():
        yield from values("matmul", title, normal(*a), normal(*b, seed=1))
    yield from values("matmul", "integers", whole, whole.T.copy())


# --- Optimizer steps

SGD: dict[str, tuple[float, bool, float]] = {  # momentum, nesterov, weight decay
    "plain": (0.0, False, 0.0),
    "weight decay": (0.0, False, 0.1),
    "momentum": (0.9, False, 0.0),
    "momentum and weight decay": (0.9, False, 0.1),
    "nesterov": (0.9, True, 0.01),
}
ADAM: dict[str, tuple[float, bool]] = {  # weight decay, decoupled
    "plain": (0.0, False),
    "weight decay": (0.1, False),
    "decoupled weight decay": (0.1, True),
    "decoupled, no weight decay": (0.0, True),
}
Arrays = tuple[Any, ...]  # the parameter and its state; None where there is no velocity


def steps() -> Iterator[Case]:
    for shape in ((3, 4), (), (0, 3), (65, 7)):
        p, zeros = normal(*shape), np.zeros(shape)
        for title, sgd in SGD.items():
            state = (p, zeros if sgd[0] else None)
            yield from _steps("sgd_step", f"{title}, shape {shape}", partial(_sgd, *sgd), state)
        for title, adam in ADAM.items():
            yield from _steps("adam_step", f"{title}, shape {shape}", partial(_adam, *adam), (p, zeros, zeros))
    yield Case("adam_step", "p_half is p, rounded", _adam_returns_p_half)
    for max_norm in (0.5, 1.0, 100.0):
        for title, grads in {"one": [normal(3, 4)], "several": [normal(3, 4), np.array(2.0), normal(65, 7)]}.items():
            yield from values("clip_scale", f"{title}, max_norm {max_norm}", grads, max_norm)
    yield from values("clip_scale", "gradients of zeros", [np.zeros((2, 3)), np.zeros((0,))], 1.0)
    for primitive, body in (
        ("sgd_step", _sgd_of_halves),
        ("adam_step", _adam_of_halves),
        ("clip_scale", _norm_of_halves),
    ):
        yield Case(primitive, "gradients in half precision are computed with in float32", body)


def _steps(primitive: str, title: str, take: Callable[..., Arrays], state: Arrays) -> Iterator[Case]:
    """Three steps. The returned arrays are the new state, whether they are the given ones or not."""
    for dtype in dtypes_of(*state):

        def body(t: Trial, dtype: str = dtype) -> None:
            for hosts in t.each_view(*typed(state, dtype)):
                if t.view.values is not CONTIGUOUS.values:
                    continue  # a step in place cannot write into a broadcast view
                found, wanted = t.move(hosts, watched=False), hosts
                for step in (1, 2, 3):
                    g = normal(*hosts[0].shape, seed=step).astype(hosts[0].dtype)
                    found = take(t.xp, step, t.move(g), *found)
                    wanted = expected(primitive, lambda xp, *args, n=step: take(xp, n, *args), g, *wanted)
                    t.same(found, wanted, what=f"after step {step}: ")

        yield Case(primitive, titled(title, dtype), body)


def _sgd(
    momentum: float, nesterov: bool, weight_decay: float, xp: Backend, step: int, g: Array, p: Array, velocity: Any
) -> Arrays:
    rates, clip = xp.host_scalars([0.1 * step], xp.dtype(p)), None if step == 1 else xp.full((), 0.5, xp.dtype(p))
    return xp.sgd_step(p, g, velocity, rates, clip, momentum, nesterov, weight_decay)


def _adam(
    weight_decay: float, decoupled: bool, xp: Backend, step: int, g: Array, p: Array, m: Array, v: Array
) -> Arrays:
    clip = None if step == 1 else xp.full((), 0.5, xp.dtype(p))
    numbers = [0.1 / (1 - 0.9**step), (1 - 0.99**step) ** 0.5, 0.1 * weight_decay]
    rates = xp.host_scalars(numbers, xp.dtype(p))
    return xp.adam_step(p, g, m, v, rates, clip, 0.9, 0.99, 1e-8, weight_decay, decoupled, None)[:3]


def _adam_returns_p_half(t: Trial) -> None:
    for dtype in t.halves():
        p, g, m, v = (t.backend.copy(t.backend.asarray(normal(5, seed=i).astype("float32") ** 2)) for i in range(4))
        p_half = t.backend.zeros((5,), dtype)
        rates = t.backend.host_scalars([0.1, 0.5, 0.01], "float32")
        p, _, _, p_half = t.xp.adam_step(p, g, m, v, rates, None, 0.9, 0.99, 1e-8, 0.1, True, p_half)
        t.is_array(p_half, (5,), dtype)
        t.same(t.backend.astype(p_half, "float32"), t.host(t.backend.astype(t.backend.astype(p, dtype), "float32")))


def _gradients_in_half(t: Trial, scale: float) -> Iterator[tuple[Array, HostArray]]:
    """A gradient (5,) in each half precision, and the same values on the host in float32."""
    for dtype in t.halves():
        g = t.half(normal(5) * scale, dtype)
        yield g, t.host(t.backend.astype(g, "float32"))


def _of_halves(t: Trial, primitive: str, g: Array, wide: HostArray, state: Sequence[HostArray], *args: Any) -> None:
    """primitive(p, g, *state, *args), for a gradient g in half precision with the values `wide`."""

    def call(xp: Backend, p: Array, g: Array, *rest: Any) -> Any:
        return getattr(xp, primitive)(p, g, *rest)

    p, *rest = state
    dp, *drest = t.move(list(state), watched=False)
    found = call(t.xp, dp, g, *drest, *t.move(args))
    t.same(found, expected(primitive, call, p, wide, *rest, *args), what=f"{t.backend.dtype(g)}: ")


def _sgd_of_halves(t: Trial) -> None:
    state, rates = (np.ones(5, "float32"), np.zeros(5, "float32")), np.array([1e4], "float32")
    for g, wide in _gradients_in_half(t, 1e-4):
        for clip in (None, np.array(1e-4, "float32")):  # g * clip underflows in float16
            _of_halves(t, "sgd_step", g, wide, state, rates, clip, 0.9, False, 0.0)


def _adam_of_halves(t: Trial) -> None:
    state = np.ones(5, "float32"), np.zeros(5, "float32"), np.zeros(5, "float32")
    rates = np.array([0.1, 0.5, 0.0], "float32")
    for g, wide in _gradients_in_half(t, 1e-4):  # g * g underflows in float16
        _of_halves(t, "adam_step", g, wide, state, rates, None, 0.9, 0.99, 1e-8, 0.0, True, None)


def _norm_of_halves(t: Trial) -> None:
    for g, wide in _gradients_in_half(t, 200.0):  # the sum of g * g overflows in float16
        for grads, others in (([g], [wide]), ([g, g], [wide, wide])):
            wanted = expected("clip_scale", lambda xp, *args: xp.clip_scale(*args), others, 1.0)
            t.same(t.xp.clip_scale(grads, 1.0), wanted, atol=1e-3, what=f"{t.backend.dtype(g)}: ")
