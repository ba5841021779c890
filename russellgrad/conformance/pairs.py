"""Cases of the primitives that have a backward.

A primitive and its backward are one `Pair`, with the inputs they are tried with. Each input gives three cases:

- the forward gives the expected values, in float64 and float32 and for every view of the operands;
- so does the backward, for what the expected forward saved;
- in float64, the backend's own forward and backward agree with central finite differences of that forward. This checks
  a gradient by itself, also where the backend shares its formula with the reference.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, TypeAlias

import numpy as np

from ..backend import Array, AttentionDropout, Backend, Shape
from .primitives import INDICES, cube, picked, ties
from .trial import Case, Trial, expected
from .values import dtypes_of, inf, nan, normal, titled, values
from .views import HostArray, typed

Arrays: TypeAlias = tuple[Any, ...]  # of the backend, or None


@dataclass(frozen=True)
class SampleInput:
    """What a pair is called with.

    Args:
        operands: float arrays on the host, each of which has a gradient; or None.
        args: the other arguments of the primitive; arrays among them are moved too.
        backward: whether there is a gradient to check.
        differences: whether finite differences can check it: no infinities, no overflow, and few elements.
    """

    title: str
    operands: tuple[Any, ...]
    args: tuple[Any, ...] = ()
    backward: bool = True
    differences: bool = True


@dataclass(frozen=True)
class Pair:
    """A primitive and its backward.

    Args:
        backward: the name of the backward.
        call: (xp, *operands, *args) -> a tuple of everything that the forward returns, the output first.
        pull: (xp, g, that tuple, needs, *operands, *args) -> a gradient for each operand; g is that of the output.
        joint: whether the backward takes `needs`, which says which gradients are wanted; all choices of it are tried.
        opaque: whether the backend decides what the forward returns besides the output. The backward then gets what the
            backend's own forward returned, not the expected values.
    """

    forward: str
    backward: str
    call: Callable[..., Arrays]
    pull: Callable[..., Arrays]
    samples: Sequence[SampleInput]
    joint: bool = False
    opaque: bool = False


def cases() -> Iterator[Case]:
    yield Case("embedding_backward", "the same bits every time", embedding_backward_is_deterministic)
    for choice, (title, a) in product(("none", "tanh"), ACTIVATED.items()):
        yield from values("gelu_value", f"{title}, {choice}", a, choice)
    for title, (a, angles) in ROTATED.items():
        yield from values("rotary", title, a, np.cos(angles), np.sin(angles))
    for pair in (gelu, leaky_relu, swiglu, softmax, log_softmax, layer_norm, rms_norm, linear, conv, embedding,
                 cross_entropy, attention, *getitem):  # fmt: skip
        for sample in pair.samples:
            yield from _forward(pair, sample)
            if sample.backward:
                yield from _backward(pair, sample)
            if sample.backward and sample.differences:
                yield _finite_differences(pair, sample)


def _forward(pair: Pair, sample: SampleInput) -> Iterator[Case]:
    for dtype in dtypes_of(sample.operands):

        def body(t: Trial, dtype: str = dtype) -> None:
            for hosts in t.each_view(*typed(sample.operands, dtype), *sample.args):
                found, wanted = pair.call(t.xp, *t.move(hosts)), expected(pair.forward, pair.call, *hosts)
                t.same(found[:1], wanted[:1]) if pair.opaque else t.same(found, wanted)

        yield Case(pair.forward, titled(sample.title, dtype), body)


def _backward(pair: Pair, sample: SampleInput) -> Iterator[Case]:
    n = len(sample.operands)
    there = tuple(operand is not None for operand in sample.operands)

    def pull(xp: Backend, g: Array, results: Arrays, *args: Any) -> Arrays:
        return pair.pull(xp, g, results, there, *args)

    def body(t: Trial, dtype: str) -> None:
        for hosts in t.each_view(*typed(sample.operands, dtype), *sample.args):
            results = expected(pair.forward, pair.call, *hosts)
            g = t.view.values(normal(*results[0].shape, seed=9).astype(dtype))
            wanted = expected(pair.backward, pull, g, results, *hosts)
            moved = t.move((g, () if pair.opaque else results, *hosts))
            if pair.opaque:
                moved = (moved[0], pair.call(t.xp, *moved[2:]), *moved[2:])
            for needs in product((False, True), repeat=n) if pair.joint else (there,):
                if any(need and not is_there for need, is_there in zip(needs, there, strict=True)):
                    continue
                found = pair.pull(t.xp, *moved[:2], needs, *moved[2:])
                for i, need in enumerate(needs):
                    if need:
                        what = f"with needs={needs}, " if pair.joint else ""
                        _same_gradient(t, found[i], wanted[i], np.shape(hosts[i]), f"{what}gradient {i}: ")

    for dtype in dtypes_of(sample.operands):
        yield Case(pair.backward, titled(sample.title, dtype), partial(body, dtype=dtype))


def _same_gradient(t: Trial, found: Array, wanted: HostArray, shape: Shape, what: str) -> None:
    """Equal when both are summed over the axes along which the operand, of this shape, was broadcast."""
    t.require(found is not None, f"{what}an array", "None")
    t.is_array(found, found.shape, str(wanted.dtype), what)
    t.same(t.backend.asarray(_fitted(t.host(found), shape)), _fitted(wanted, shape), what=what)


def _fitted(g: HostArray, shape: Shape) -> HostArray:
    extra = g.ndim - len(shape)
    stretched = (*range(extra), *(i + extra for i, n in enumerate(shape) if n == 1))
    return np.asarray(g.sum(stretched, keepdims=True)).reshape(shape) if g.shape != shape else g


def _finite_differences(pair: Pair, sample: SampleInput) -> Case:
    def body(t: Trial) -> None:
        args = t.move(sample.args)
        there = tuple(operand is not None for operand in sample.operands)
        operands = t.move(sample.operands)
        results = pair.call(t.xp, *operands, *args)
        g = normal(*results[0].shape, seed=9)

        def loss(hosts: Sequence[Any]) -> float:
            return float(np.sum(g * t.host(pair.call(t.xp, *t.move(tuple(hosts), watched=False), *args)[0])))

        slopes = [_slopes(loss, sample.operands, i) for i in range(len(operands))]
        found = pair.pull(t.xp, t.move(g), results, there, *operands, *args)
        for i, slope in enumerate(slopes):
            if slope is not None:
                gradient = _fitted(t.host(found[i]), slope.shape)
                t.same_values(gradient, slope, what=f"gradient {i}, by finite differences: ", atol=1e-7)

    return Case(pair.backward, f"{sample.title}, finite differences", body)


def _slopes(loss: Callable[[Sequence[Any]], float], operands: Sequence[Any], i: int) -> HostArray | None:
    """(loss(x + eps) - loss(x - eps)) / (2 eps) for each element of the i-th operand; the error is about 1e-9."""
    operand, eps = operands[i], 1e-6
    if operand is None:
        return None
    slopes = np.zeros(operand.shape)
    for place in np.ndindex(*operand.shape):
        both = []
        for step in (eps, -eps):
            moved = np.array(operand)
            moved[place] += step
            both.append(loss([*operands[:i], moved, *operands[i + 1 :]]))
        slopes[place] = (both[0] - both[1]) / (2 * eps)
    return slopes


# --- Activations

spread = np.linspace(-6, 6, 24)  # without 0, where leaky ReLU has no slope
ACTIVATED: dict[str, Any] = {
    "random": cube,
    "many": normal(2, 75, 33),
    "a range": spread,
    "far out": np.array([inf, -inf, nan, 0.0, -0.0, 50.0, -50.0, 1e6, -1e6]),
    "no axes": np.array(0.5),
    "empty": np.zeros((0, 3)),
}


def _activated(choices: Sequence[Any]) -> list[SampleInput]:
    return [
        SampleInput(f"{title}, {choice}", (a,), (choice,), differences=title not in ("far out", "many"))
        for choice in choices
        for title, a in ACTIVATED.items()
    ]


gelu = Pair(
    "gelu",
    "gelu_backward",
    lambda xp, a, choice: xp.gelu(a, choice),
    lambda xp, g, results, needs, a, choice: (xp.gelu_backward(g, results[1], choice),),
    _activated(("none", "tanh")),
    opaque=True,
)
leaky_relu = Pair(
    "leaky_relu",
    "leaky_relu_backward",
    lambda xp, a, alpha: (xp.leaky_relu(a, alpha),),
    lambda xp, g, results, needs, a, alpha: (xp.leaky_relu_backward(g, a, alpha),),
    _activated((0.01, 0.3)),
)
swiglu = Pair(
    "swiglu",
    "swiglu_backward",
    lambda xp, gate, up: (xp.swiglu(gate, up),),
    lambda xp, g, results, needs, gate, up: xp.swiglu_backward(g, gate, up, needs),
    [
        SampleInput(title, (a, normal(*a.shape, seed=1)), differences=title not in ("far out", "many"))
        for title, a in ACTIVATED.items()
    ],
    joint=True,
)

# --- Rows

ROWS = [
    *(SampleInput(f"axis {axis}", (cube,), (axis,)) for axis in (0, 1, 2, -1, -3)),
    SampleInput("ties", (ties,), (-1,)),
    SampleInput("long rows", (normal(3, 70),), (-1,), differences=False),
    SampleInput("one element", (np.array([[2.5]]),), (-1,)),
    SampleInput("no rows", (np.zeros((0, 3)),), (-1,)),
    SampleInput("empty rows", (np.zeros((2, 0)),), (-1,)),
    SampleInput("large", (np.array([[1000.0, 1001.0, 999.0], [-1000.0, -1001.0, -5000.0]]),), (-1,), differences=False),
    SampleInput("-inf among others", (np.array([[0.0, -inf, 1.0], [-inf, 2.0, -inf]]),), (-1,), differences=False),
    SampleInput("inf and nan", (np.array([[-inf, -inf], [inf, 0.0], [nan, 0.0]]),), (-1,), differences=False),
]
softmax = Pair(
    "softmax",
    "softmax_backward",
    lambda xp, a, axis: (xp.softmax(a, axis),),
    lambda xp, g, results, needs, a, axis: (xp.softmax_backward(g, results[0], axis),),
    ROWS,
)
log_softmax = Pair(
    "log_softmax",
    "log_softmax_backward",
    lambda xp, a, axis: (xp.log_softmax(a, axis),),
    lambda xp, g, results, needs, a, axis: (xp.log_softmax_backward(g, results[0], axis),),
    ROWS,
)

gamma, beta, eps = normal(4, seed=1), normal(4, seed=2), 1e-5
shifted = np.random.default_rng(3).integers(-4, 5, (3, 8)) + 2.0**20  # sums are exact, in float32 too
one_large = np.where(np.arange(70), normal(3, 70), 3000.0)  # the first element of each row, with a small gamma
scales = np.where(np.arange(70), 30.0, 0.1)
layer_norm = Pair(
    "layer_norm",
    "layer_norm_backward",
    lambda xp, x, gamma, beta, eps: xp.layer_norm(x, gamma, beta, eps),
    lambda xp, g, results, needs, x, gamma, beta, eps: xp.layer_norm_backward(g, x, gamma, *results[1:], needs),
    [
        SampleInput("random", (cube, gamma, beta), (eps,)),
        SampleInput("one row", (cube[0, 0], gamma, beta), (0.1,)),
        SampleInput("no gamma", (cube, None, beta), (eps,)),
        SampleInput("no beta", (cube, gamma, None), (eps,)),
        SampleInput("neither", (cube, None, None), (eps,)),
        SampleInput("a large eps", (cube, gamma, beta), (0.5,)),
        SampleInput("long rows", (normal(3, 70), normal(70, seed=1), normal(70, seed=2)), (eps,), differences=False),
        # The smallest standard deviation is 0.03, so that the gradient of x has elements of 50.
        SampleInput("many rows", (normal(2, 75, 4), gamma, beta), (eps,), differences=False),
        SampleInput("rows of one element", (normal(3, 1), gamma[:1], beta[:1]), (0.1,), differences=False),
        SampleInput("rows of equal elements", (np.full((2, 4), 3.0), gamma, beta), (0.1,), differences=False),
        SampleInput("a large mean", (shifted, normal(8), None), (eps,), differences=False),
        SampleInput("a large first element", (one_large, scales, None), (eps,), differences=False),
        SampleInput("no rows", (np.zeros((0, 4)), gamma, beta), (eps,)),
    ],
    joint=True,
)

rms_norm = Pair(
    "rms_norm",
    "rms_norm_backward",
    lambda xp, x, gamma, eps: xp.rms_norm(x, gamma, eps),
    lambda xp, g, results, needs, x, gamma, eps: xp.rms_norm_backward(g, x, gamma, results[1], needs),
    [
        SampleInput("random", (cube, gamma), (eps,)),
        SampleInput("one row", (cube[0, 0], gamma), (0.1,)),
        SampleInput("no gamma", (cube, None), (eps,)),
        SampleInput("a large eps", (cube, gamma), (0.5,)),
        SampleInput("long rows", (normal(3, 70), normal(70, seed=1)), (eps,), differences=False),
        SampleInput("many rows", (normal(2, 75, 4), gamma), (eps,), differences=False),
        SampleInput("rows of one element", (normal(3, 1), gamma[:1]), (0.1,), differences=False),
        SampleInput("rows of zeros", (np.zeros((2, 4)), gamma), (0.1,), differences=False),
        SampleInput("no rows", (np.zeros((0, 4)), gamma), (eps,)),
    ],
    joint=True,
)


ROTATED = {
    "random": (cube, normal(3, 2, seed=1)),
    "one row": (cube[0, 0], normal(2, seed=1)),
    "heads": (normal(2, 3, 5, 6), normal(5, 3, seed=1)),
    "other angles for each batch": (normal(2, 3, 5, 6), normal(2, 1, 5, 3, seed=1)),
    "many": (normal(9, 4, 33, 16), normal(1, 1, 33, 8, seed=1)),
    "no rows": (np.zeros((0, 3, 4)), normal(3, 2)),
}


# --- Products

linear = Pair(
    "linear",
    "linear_backward",
    lambda xp, x, weight, bias: (xp.linear(x, weight, bias),),
    lambda xp, g, results, needs, x, weight, bias: xp.linear_backward(g, x, weight, needs),
    [
        SampleInput("a batch of rows", (cube, normal(4, 5, seed=1), normal(5, seed=2))),
        SampleInput("rows", (cube[0], normal(4, 5, seed=1), normal(5, seed=2))),
        SampleInput("one row", (cube[0, 0], normal(4, 5, seed=1), normal(5, seed=2))),
        SampleInput("no bias", (cube, normal(4, 5, seed=1), None)),
        SampleInput("no rows", (cube[:0], normal(4, 5, seed=1), normal(5, seed=2))),
        SampleInput("no inputs", (np.zeros((3, 0)), np.zeros((0, 5)), normal(5, seed=2))),
        SampleInput(
            "larger", (normal(5, 13, 70) / 4, normal(70, 33, seed=1) / 4, normal(33, seed=2)), differences=False
        ),
    ],
    joint=True,
)  # fmt: skip


# --- Convolution. The last arguments are the stride, the padding, the dilation and the groups.


def _convolved(x: Shape, weight: Shape, bias: bool = True) -> tuple[Any, ...]:
    return normal(*x), normal(*weight, seed=1) / 4, normal(weight[0], seed=2) if bias else None


once, none = (1, 1), ((0, 0), (0, 0))
conv = Pair(
    "conv",
    "conv_backward",
    lambda xp, x, weight, bias, *sizes: (xp.conv(x, weight, bias, *sizes),),
    lambda xp, g, results, needs, x, weight, bias, *sizes: xp.conv_backward(g, x, weight, *sizes, needs),
    [
        SampleInput("two axes", _convolved((2, 3, 5, 4), (4, 3, 3, 2)), (once, none, once, 1)),
        SampleInput("padded", _convolved((2, 2, 4, 3), (3, 2, 3, 3)), (once, ((1, 1), (1, 1)), once, 1)),
        SampleInput("padded on one side", _convolved((2, 2, 4, 3), (3, 2, 2, 2)), (once, ((0, 1), (1, 0)), once, 1)),
        SampleInput("strides", _convolved((2, 2, 6, 5), (3, 2, 3, 2)), ((2, 3), ((1, 0), (0, 2)), once, 1)),
        SampleInput("dilated", _convolved((2, 2, 6, 5), (3, 2, 3, 2)), (once, ((1, 1), (0, 1)), (2, 3), 1)),
        SampleInput("two groups", _convolved((2, 4, 4, 3), (6, 2, 2, 2)), (once, none, once, 2)),
        SampleInput("a channel in each group", _convolved((2, 3, 5, 4), (3, 1, 3, 3)),
                    (once, ((1, 1), (1, 1)), once, 3)),
        SampleInput("a channel in each group, strides", _convolved((2, 3, 5, 4), (3, 1, 3, 3)),
                    ((2, 2), ((1, 1), (1, 1)), once, 3)),
        SampleInput("two outputs of a channel", _convolved((2, 3, 4, 3), (6, 1, 2, 2)), (once, none, once, 3)),
        SampleInput("a kernel of one element", _convolved((2, 3, 4, 3), (4, 3, 1, 1)), (once, none, once, 1)),
        SampleInput("a kernel of one element, groups", _convolved((2, 4, 4, 3), (2, 2, 1, 1)), (once, none, once, 2)),
        SampleInput("a kernel of the whole input", _convolved((2, 3, 4, 3), (4, 3, 4, 3)), (once, none, once, 1)),
        SampleInput("no bias", _convolved((2, 3, 4, 3), (4, 3, 2, 2), False), (once, none, once, 1)),
        SampleInput("one sample", _convolved((1, 2, 5, 3), (3, 2, 2, 2)), (once, none, once, 1)),
        SampleInput("no samples", _convolved((0, 2, 5, 3), (3, 2, 2, 2)), (once, none, once, 1)),
        SampleInput("one axis", _convolved((2, 3, 7), (4, 3, 3)), ((2,), ((1, 2),), (1,), 1)),
        SampleInput("three axes", _convolved((2, 2, 3, 4, 3), (2, 2, 2, 2, 2)),
                    ((1, 2, 1), ((0, 1), (1, 1), (0, 0)), (1, 1, 2), 1)),
        SampleInput("larger", _convolved((3, 5, 9, 11), (4, 5, 3, 3)), (once, ((1, 1), (1, 1)), once, 1),
                    differences=False),
        SampleInput("one larger sample", _convolved((1, 8, 11, 9), (3, 8, 3, 3)), (once, none, once, 1),
                    differences=False),
    ],
    joint=True,
)  # fmt: skip


# --- Rows by id

embedding = Pair(
    "embedding",
    "embedding_backward",
    lambda xp, weight, ids: (xp.embedding(weight, ids),),
    lambda xp, g, results, needs, weight, ids: (xp.embedding_backward(g, ids, weight.shape[0]),),
    [
        SampleInput("repeats", (normal(5, 3),), (np.array([[0, 2, 2], [4, 2, 0]]),)),
        SampleInput("one id", (normal(5, 3),), (np.array(3),)),
        SampleInput("no ids", (normal(5, 3),), (np.zeros((0,), np.int64),)),
        SampleInput("no ids, of two axes", (normal(5, 3),), (np.zeros((2, 0), np.int64),)),
        SampleInput("empty rows", (np.zeros((5, 0)),), (np.array([1, 1]),)),
        SampleInput("many repeats", (normal(41, 4),), (np.random.default_rng(5).integers(0, 41, (20, 10)),),
                  differences=False),
    ],
)  # fmt: skip

getitem = [
    Pair(
        "getitem",
        "getitem_backward",
        lambda xp, a, index=index: (picked(index, xp, a),),
        lambda xp, g, results, needs, a, index=index: (
            xp.getitem_backward(g, xp.prepare_index(index, a.shape), a.shape),
        ),
        [SampleInput(title, (a,))],
    )
    for title, a, index in [
        *((title, cube, index) for title, index in INDICES.items()),
        ("many repeats", cube, np.random.default_rng(6).integers(0, 2, (10, 2))),
        ("no axes", np.array(2.5), ()),
        ("of nothing", np.zeros((0, 3)), np.s_[:, 1]),
        ("of nothing, an empty list", np.zeros((0, 3)), []),
        ("of nothing, an empty list on a later axis", np.zeros((2, 0)), np.s_[:, []]),
        ("of nothing, two empty lists", np.zeros((0, 3)), ([], [])),
        ("of nothing, a mask", np.zeros((0, 3)), np.zeros(0, bool)),
    ]
]


# --- The loss

target_ids, some = np.array([1, 4, 0, 0, 2, 3]), np.array([True, False, True, True, False, True])
hidden_classes = np.where(np.eye(6, 5, 2) > 0, -inf, normal(6, 5))
cross_entropy = Pair(
    "cross_entropy",
    "cross_entropy_backward",
    lambda xp, logits, ids, valid, excluded: xp.cross_entropy(logits, ids, valid, excluded),
    lambda xp, g, results, needs, logits, ids, valid, excluded: (
        xp.cross_entropy_backward(g, results[1], ids, valid),
    ),
    [
        SampleInput("random", (normal(6, 5),), (target_ids, None, None)),
        SampleInput("some invalid", (normal(6, 5),), (target_ids, some, None)),
        SampleInput("one class excluded", (normal(6, 6),), (target_ids, None, 5)),
        SampleInput("some invalid, a class excluded", (normal(6, 6),), (target_ids, some, 5)),
        SampleInput("one row", (normal(1, 5),), (target_ids[:1], None, None)),
        SampleInput("one class", (normal(2, 1),), (np.array([0, 0]), None, None)),
        SampleInput("many classes", (normal(6, 70),), (10 * target_ids, some, 69), differences=False),
        SampleInput("large", (np.array([[1000.0, 0.0], [0.0, -1000.0], [-1000.0, 1000.0]]),),
                  (np.array([1, 0, 1]), None, None), differences=False),
        SampleInput("classes of -inf", (hidden_classes,), (target_ids, None, None), differences=False),
    ],
)  # fmt: skip


def embedding_backward_is_deterministic(t: Trial) -> None:
    ids = t.move(np.random.default_rng(5).integers(0, 3, 2000))
    g = t.move((normal(2000, 5) * 10.0 ** np.random.default_rng(1).integers(-4, 4, (2000, 1))).astype("float32"))
    first = t.host(t.xp.embedding_backward(g, ids, 3))
    for _ in range(3):
        t.same(t.xp.embedding_backward(g, ids, 3), first, atol=0.0, what="again: ")


# --- Attention


def _attention(
    xp: Backend, q: Array, k: Array, v: Array, mask: Array | None, causal: bool, offset: int, key: Array | None = None
) -> Arrays:
    return xp.attention(q, k, v, mask, causal, offset, *_dropout(key))


def _attention_backward(
    xp: Backend, g: Array, results: tuple[Array, Array], needs: Sequence[bool],
    q: Array, k: Array, v: Array, mask: Array | None, causal: bool, offset: int, key: Array | None = None,
) -> Arrays:  # fmt: skip
    return xp.attention_backward(g, q, k, v, *results, mask, causal, offset, needs, *_dropout(key))


def _dropout(key: Array | None) -> tuple[AttentionDropout, ...]:
    return () if key is None else ((key, 0.3, "float32"),)  # of one dtype, for the same mask in every dtype


def _operands(q: Shape, k: Shape, v: Shape) -> tuple[HostArray, ...]:
    return normal(*q), normal(*k, seed=1), normal(*v, seed=2)


plain = _operands((2, 4, 3), (2, 5, 3), (2, 5, 2))
heads = _operands((2, 3, 4, 2), (2, 3, 5, 2), (2, 3, 5, 2))
long_rows = _operands((2, 130, 8), (2, 150, 8), (2, 150, 8))
one_query = _operands((2, 3, 1, 2), (2, 3, 5, 2), (2, 3, 5, 2))
far = (np.array([[1000.0, 0.0], [0.0, -1000.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), normal(3, 2))


def _mask(*shape: int) -> HostArray:
    """True hides a key; of the first query, all of them."""
    mask = np.asarray(np.random.default_rng(7).random(shape) > 0.5)
    mask[(0,) * (len(shape) - 1)] = True
    return mask


OPEN = (None, False, 0)
KEY = np.array([7, 3, 2, 6], np.uint64)  # selects the numbers of dropout
attention = Pair(
    "attention",
    "attention_backward",
    _attention,
    _attention_backward,
    [
        SampleInput("random", plain, OPEN),
        SampleInput("no batch", _operands((4, 3), (5, 3), (5, 2)), OPEN),
        SampleInput("heads", heads, OPEN),
        SampleInput("batches that broadcast", _operands((2, 3, 4, 2), (1, 3, 5, 2), (5, 2)), OPEN),
        SampleInput("queries shared", _operands((4, 3), (2, 5, 3), (2, 5, 2)), OPEN),
        SampleInput("weights shared", _operands((4, 3), (5, 3), (2, 5, 2)), OPEN),
        SampleInput("one of each", _operands((1, 1), (1, 1), (1, 1)), OPEN),
        *(SampleInput(f"causal, offset {n}", plain, (None, True, n)) for n in (-10, -2, 0, 1, 3, 10)),
        *(SampleInput(f"a mask of shape {m.shape}", heads, (m, False, 0))
          for m in (_mask(4, 5), _mask(5), _mask(4, 1), _mask(2, 1, 1, 5), _mask(2, 3, 4, 5))),
        SampleInput("everything hidden", plain, (np.array(True), False, 0)),
        SampleInput("nothing hidden", plain, (np.array(False), False, 0)),
        SampleInput("a mask, causal", heads, (_mask(4, 5), True, 1)),
        SampleInput("a mask with more batch axes than queries",
                  _operands((4, 3), (2, 3, 5, 3), (5, 2)), (_mask(2, 3, 4, 5), False, 0)),
        SampleInput("one query", one_query, OPEN),
        SampleInput("one query, one row", _operands((1, 3, 1, 2), (1, 3, 5, 2), (1, 3, 5, 4)), OPEN),
        *(SampleInput(f"one query, {'' if mask is None else 'a mask, '}causal, offset {n}", one_query, (mask, True, n))
          for mask, n in ((_mask(2, 1, 1, 5), -1), (_mask(2, 1, 1, 5), 3), *((None, n) for n in (-2, 0, 2, 4)))),
        *(SampleInput(f"one query, a mask of shape {m.shape}", one_query, (m, False, 0))
          for m in (_mask(5), _mask(2, 1, 1, 5), _mask(2, 3, 1, 1))),
        SampleInput("one query, long rows", _operands((7, 1, 64), (7, 2048, 64), (7, 2048, 64)),
                  (_mask(7, 1, 2048), False, 0), differences=False),
        SampleInput("long", long_rows, OPEN, differences=False),
        SampleInput("long, causal", long_rows, (None, True, 0), differences=False),
        SampleInput("long, causal, a mask, offset 20", long_rows, (_mask(130, 150), True, 20), differences=False),
        SampleInput("dropout", heads, (*OPEN, KEY)),
        SampleInput("dropout, causal, a mask", plain, (_mask(4, 5), True, 1, KEY)),
        SampleInput("dropout, batches that broadcast", _operands((2, 3, 4, 2), (1, 3, 5, 2), (5, 2)), (*OPEN, KEY)),
        SampleInput("dropout, weights shared", _operands((4, 3), (5, 3), (2, 5, 2)), (*OPEN, KEY)),
        SampleInput("dropout, one query", one_query, (None, True, 3, KEY)),
        SampleInput("dropout, long, causal, offset 20", long_rows, (None, True, 20, KEY), differences=False),
        SampleInput("large scores", far, OPEN, backward=False),
        SampleInput("no keys", _operands((2, 3, 4), (2, 0, 4), (2, 0, 5)), OPEN),
        SampleInput("no queries", _operands((2, 0, 4), (2, 3, 4), (2, 3, 5)), (None, True, 0)),
        SampleInput("an empty batch", _operands((0, 3, 4), (0, 3, 4), (0, 3, 5)), OPEN),
    ],
    joint=True,
    opaque=True,
)  # fmt: skip
