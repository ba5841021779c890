"""Cases of the primitives that have no backward of their own, and of the optimizer's steps."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from ..backend import Array, Backend
from .trial import Case, Trial, reference
from .values import dtypes_of, inf, nan, normal, special, titled, values
from .views import CONTIGUOUS, HostArray, each, typed


def cases() -> Iterator[Case]:
    yield Case("erf", "to 1e-15 in float64", erf_is_exact)
    yield Case("prepare_index", "takes arrays of the backend, too", indices_of_its_own)
    yield Case("prepare_index", "it or getitem raises for what is no index here", indices_out_of_bounds)
    yield Case("prepare_index", "a copy: what the caller does to his array later does not show", indices_are_copied)
    for table in (unary, binary, comparisons, choices, reductions, shapes, indices, products, steps):
        yield from table()


# --- Elementwise

x, y = normal(3, 4), normal(3, 4, seed=1)
positive = np.abs(x) + 0.5
whole, small = np.array([[3, -2, 0], [7, 1, 1]]), np.array([1, -2, 1])

UNARY: dict[str, HostArray] = {
    "negative": x, "exp": x, "log": positive, "sqrt": positive, "tanh": x, "sin": 3 * x, "cos": 3 * x, "erf": x,
    "abs": x, "sign": x,
}  # fmt: skip
BINARY: dict[str, tuple[HostArray, HostArray]] = {
    "add": (x, y), "subtract": (x, y), "multiply": (x, y), "divide": (x, positive), "power": (positive, y),
    "maximum": (x, y), "minimum": (x, y),
}  # fmt: skip
COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
OF_INTEGERS = ("add", "subtract", "multiply", "maximum", "minimum", *COMPARISONS)
OF_ZEROS = ("negative", "abs", "sqrt", "multiply", "divide")  # here a zero's sign is part of the result


def unary() -> Iterator[Case]:
    for primitive, a in UNARY.items():
        yield from values(primitive, "random", a)
        yield from values(primitive, "no axes", np.array(a[1, 2]))
        yield from values(primitive, "empty", a[:0])
        yield from values(primitive, "special", special, signs=primitive in OF_ZEROS)
    yield from values("exp", "large", np.array([1000.0, -1000.0]))
    yield from values("tanh", "large", np.array([1000.0, -1000.0]))
    for primitive in ("negative", "abs", "sign"):
        yield from values(primitive, "integers", whole)


def binary() -> Iterator[Case]:
    for primitive, (a, b) in BINARY.items():
        yield from values(primitive, "random", a, b)
        yield from values(primitive, "broadcast", a[:, :1], b[0])
        yield from values(primitive, "a number on the right", a, 2.5)
        yield from values(primitive, "an int on the right", a, 2)
        yield from values(primitive, "a number on the left", 2.5, b)
        yield from values(primitive, "an int on the left", 2, b)
        yield from values(primitive, "no axes", np.array(a[1, 2]), np.array(b[0, 0]))
        yield from values(primitive, "no axes and some", np.array(a[1, 2]), b)
        yield from values(primitive, "empty", a[:0], b[0])
        yield from values(primitive, "special", special[:, None], special, signs=primitive in OF_ZEROS)
        yield from values(primitive, "special with a number", special, 1.0)
    for exponent in (-1, 0, 0.5, 3, -2.5):
        yield from values("power", f"to {exponent}", special, exponent)
    for primitive in OF_INTEGERS:
        yield from values(primitive, "integers", whole, small)
        yield from values(primitive, "integers and a number", whole, 2)


def comparisons() -> Iterator[Case]:
    for primitive in COMPARISONS:
        yield from values(primitive, "ties", np.round(x), np.round(y))
        yield from values(primitive, "broadcast", np.round(x)[:, :1], np.round(y)[0])
        yield from values(primitive, "a number on the right", np.round(x), 0)
        yield from values(primitive, "a number on the left", 0.0, np.round(x))
        yield from values(primitive, "no axes", np.array(1.0), np.array(1.0))
        yield from values(primitive, "empty", x[:0], y[:0])
        yield from values(primitive, "special", special[:, None], special)
    yes, no = np.array([[True], [False]]), np.array([True, False])
    for primitive in ("logical_and", "logical_or", "equal", "not_equal", "maximum"):
        yield from values(primitive, "bools", yes, no)
        yield from values(primitive, "no axes, bools", np.array(True), np.array(False))
    yield from values("logical_not", "bools", yes)
    yield from values("logical_not", "no axes", np.array(True))
    yield from values("logical_not", "empty", np.zeros((0, 2), bool))


def choices() -> Iterator[Case]:
    chosen = x > 0
    yield from values("where", "random", chosen, x, y)
    yield from values("where", "broadcast", chosen[:, :1], x[0], y)
    yield from values("where", "numbers on the right", chosen, x, 0)
    yield from values("where", "numbers on the left", chosen, -inf, x)
    yield from values("where", "two numbers", chosen, 1e-6, 0.0)
    yield from values("where", "no axes", np.array(True), np.array(1.0), np.array(2.0))
    yield from values("where", "empty", chosen[:0], x[:0], 1.0)
    yield from values("where", "what is not chosen does not show", np.array([True, False]), special[2:4], special[5:])
    yield from values("where", "integers", whole > 0, whole, small)


def erf_is_exact(t: Trial) -> None:
    points = np.concatenate([np.linspace(-7, 7, 501), [0.46875, 4.0, 6.0, 1e-300, 5e-324, -1e-8, 30.0, inf, -inf]])
    t.same(t.xp.erf(t.backend.asarray(points)), np.array([math.erf(point) for point in points]), atol=1e-15)


# --- Reductions

cube = normal(2, 3, 4)
ties = np.array([[1.0, 3.0, 3.0, 3.0], [2.0, 2.0, 2.0, 2.0], [-1.0, -1.0, 5.0, 5.0]])
AXES: tuple[Any, ...] = (None, 0, 1, -1, (0, 1), (-1, 0), (2, 0, 1), (1,))


def reductions() -> Iterator[Case]:
    for primitive in ("sum", "max", "min", "argmax"):
        for axis in AXES:
            if primitive == "argmax" and isinstance(axis, tuple):
                continue
            for keepdims in (False, True):
                yield from values(primitive, f"axis {axis}, keepdims {keepdims}", cube, axis, keepdims)
            yield from values(primitive, f"ties, axis {axis}", ties[:, None], axis)
        yield from values(primitive, "the defaults", cube)
        yield from values(primitive, "no axes", np.array(2.5))
        yield from values(primitive, "nothing along another axis", np.zeros((0, 3)), 1)
        yield from values(primitive, "infinities", np.array([[1.0, inf, inf], [-inf, -inf, 2.0]]), 1)
        yield from values(primitive, "integers", np.array([[3, 1, 3], [2, 7, 0]]), 1)
    for place in range(3):  # wherever it stands
        row = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
        row[:, place] = nan
        for primitive in ("sum", "max", "min"):
            yield from values(primitive, f"nan at {place} wins", row, 1)
            yield from values(primitive, f"nan at {place} wins, of all", row)
    yield from values("sum", "nothing", np.zeros((0, 3)), 0)
    yield from values("sum", "nothing at all", np.zeros((0, 3)))
    yield from values("sum", "bools to integers", np.array([[True, True], [False, True]]), 1)
    yield from values("sum", "bools, of all", np.array([[True, True], [False, True]]))
    yield from values("sum", "inf and -inf", np.array([inf, -inf]))


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
    """a[index] for an index that is still on the host: `prepare_index` moves it."""
    return xp.getitem(a, xp.prepare_index(index, a.shape))


def indices() -> Iterator[Case]:
    """Of floats, with the gradient, they are in `pairs.py`."""
    yield from values("getitem", "integers", whole_cube, call=partial(picked, [1, 1]))
    yield from values("getitem", "bools", whole_cube > 3, call=partial(picked, (0, [1, 1])))


def indices_of_its_own(t: Trial) -> None:
    a = t.backend.asarray(cube)
    for title, index in INDICES.items():
        if isinstance(index, np.ndarray):
            t.same(picked(t.backend.asarray(index), t.xp, a), cube[index], what=f"{title}: ")
    some = t.backend.asarray(np.array([2, 0]))
    t.same(picked((0, some, slice(1, None)), t.xp, a), cube[0, [2, 0], 1:])


def indices_out_of_bounds(t: Trial) -> None:
    a = t.backend.asarray(cube)
    for error, index in BAD_INDICES.values():
        t.raises(error, "", picked, index, t.xp, a)
        if isinstance(index, np.ndarray):
            t.raises(error, "", picked, t.backend.asarray(index), t.xp, a)


def indices_are_copied(t: Trial) -> None:
    given = np.array([1, 0])
    index = t.xp.prepare_index(given, (2,))
    given[:] = 0
    t.same(t.xp.getitem(t.backend.asarray([1.0, 2.0]), index), np.array([2.0, 1.0]))


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

SGD: dict[str, dict[str, Any]] = {
    "plain": {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
    "weight decay": {"momentum": 0.0, "nesterov": False, "weight_decay": 0.1},
    "momentum": {"momentum": 0.9, "nesterov": False, "weight_decay": 0.0},
    "momentum and weight decay": {"momentum": 0.9, "nesterov": False, "weight_decay": 0.1},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
}
ADAM: dict[str, dict[str, Any]] = {
    "plain": {"weight_decay": 0.0, "decoupled": False},
    "weight decay": {"weight_decay": 0.1, "decoupled": False},
    "decoupled weight decay": {"weight_decay": 0.1, "decoupled": True},
    "decoupled, no weight decay": {"weight_decay": 0.0, "decoupled": True},
}


def steps() -> Iterator[Case]:
    for shape in ((3, 4), (), (0, 3), (65, 7)):
        p, zeros = normal(*shape), np.zeros(shape)
        for title, options in SGD.items():
            state = (p, zeros if options["momentum"] else None)
            yield from _steps("sgd_step", f"{title}, shape {shape}", _sgd, state, options)
        for title, options in ADAM.items():
            yield from _steps("adam_step", f"{title}, shape {shape}", _adam, (p, zeros, zeros), options)
    yield Case("adam_step", "low is p, rounded", _adam_writes_low)
    for max_norm in (0.5, 1.0, 100.0):
        for title, grads in {"one": [normal(3, 4)], "several": [normal(3, 4), np.array(2.0), normal(65, 7)]}.items():
            yield from values("clip_scale", f"{title}, max_norm {max_norm}", grads, max_norm)
    yield from values("clip_scale", "no gradient at all", [np.zeros((2, 3)), np.zeros((0,))], 1.0)
    for primitive, body in (
        ("sgd_step", _sgd_of_halves),
        ("adam_step", _adam_of_halves),
        ("clip_scale", _norm_of_halves),
    ):
        yield Case(primitive, "gradients in half precision are computed with in float32", body)


def _sgd(xp: Backend, step: int, g: Array, p: Array, velocity: Array | None, options: dict[str, Any]) -> None:
    clip = None if step == 1 else xp.full((), 0.5, p.dtype)
    xp.sgd_step(p, g, velocity, xp.host_scalars([0.1 * step], p.dtype), clip, **options)


def _adam(xp: Backend, step: int, g: Array, p: Array, m: Array, v: Array, options: dict[str, Any]) -> None:
    clip = None if step == 1 else xp.full((), 0.5, p.dtype)
    rates = [0.1 / (1 - 0.9**step), (1 - 0.99**step) ** 0.5, 0.1 * options["weight_decay"]]
    xp.adam_step(p, g, m, v, xp.host_scalars(rates, p.dtype), clip, 0.9, 0.99, 1e-8, **options, low=None)


def _adam_writes_low(t: Trial) -> None:
    for low_dtype in _halves(t):
        p, g, m, v = (t.backend.copy(t.backend.asarray(normal(5, seed=i).astype("float32") ** 2)) for i in range(4))
        low = t.backend.zeros((5,), low_dtype)
        rates = t.backend.host_scalars([0.1, 0.5, 0.01], "float32")
        t.xp.adam_step(p, g, m, v, rates, None, 0.9, 0.99, 1e-8, 0.1, True, low)
        t.require(str(low.dtype) == low_dtype, low_dtype, str(low.dtype))
        t.same(t.backend.astype(low, "float32"), t.host(t.backend.astype(t.backend.astype(p, low_dtype), "float32")))


def _halves(t: Trial) -> list[str]:
    return [dtype for dtype in t.xp.float_dtypes() if dtype not in ("float32", "float64")]


def _gradients_in_half(t: Trial, scale: float) -> Iterator[tuple[Array, HostArray]]:
    """A gradient (5,) in each half precision, and its very values on the host in float32."""
    for dtype in _halves(t):
        g = t.backend.astype(t.backend.asarray((normal(5) * scale).astype("float32")), dtype)
        yield g, t.host(t.backend.astype(g, "float32"))


def _sgd_of_halves(t: Trial) -> None:
    for g, wide in _gradients_in_half(t, 1e-4):
        for clip in (None, np.array(1e-4, "float32")):  # of which the product is less than float16 has
            p, velocity, rates = np.ones(5, "float32"), np.zeros(5, "float32"), np.array([1e4], "float32")
            dp, dvelocity = t.move((p, velocity), watched=False)
            t.xp.sgd_step(dp, g, dvelocity, t.move(rates), t.move(clip), 0.9, False, 0.0)
            reference.sgd_step(p, wide, velocity, rates, clip, 0.9, False, 0.0)
            t.same((dp, dvelocity), (p, velocity), what=f"{g.dtype}: ")


def _adam_of_halves(t: Trial) -> None:
    for g, wide in _gradients_in_half(t, 1e-4):  # of which the square is less than float16 has
        p, m, v = np.ones(5, "float32"), np.zeros(5, "float32"), np.zeros(5, "float32")
        rates = np.array([0.1, 0.5, 0.0], "float32")
        dp, dm, dv = t.move((p, m, v), watched=False)
        t.xp.adam_step(dp, g, dm, dv, t.move(rates), None, 0.9, 0.99, 1e-8, 0.0, True, None)
        reference.adam_step(p, wide, m, v, rates, None, 0.9, 0.99, 1e-8, 0.0, True, None)
        t.same((dp, dm, dv), (p, m, v), what=f"{g.dtype}: ")


def _norm_of_halves(t: Trial) -> None:
    for g, wide in _gradients_in_half(t, 200.0):  # of which the square is more than float16 has
        for grads, expected in (([g], [wide]), ([g, g], [wide, wide])):
            t.same(t.xp.clip_scale(grads, 1.0), reference.clip_scale(expected, 1.0), atol=1e-3, what=f"{g.dtype}: ")


def _steps(
    primitive: str, title: str, take: Callable[..., None], state: tuple[Any, ...], options: dict[str, Any]
) -> Iterator[Case]:
    """Three steps change the parameter and its state, wherever they lie, and not the gradient."""
    for dtype in dtypes_of(*state):

        def body(t: Trial, state: tuple[Any, ...] = typed(state, dtype)) -> None:
            for hosts in t.each_view(*state):
                if t.view.values is not CONTIGUOUS.values:
                    continue  # there is no writing into a broadcast view
                changed, expected = t.move(hosts, watched=False), each(hosts, np.copy)
                for step in (1, 2, 3):
                    g = normal(*hosts[0].shape, seed=step).astype(hosts[0].dtype)
                    take(t.xp, step, t.move(g), *changed, options)
                    take(reference, step, g, *expected, options)
                    t.same(changed, expected, what=f"after step {step}: ")

        yield Case(primitive, titled(title, dtype), body)
