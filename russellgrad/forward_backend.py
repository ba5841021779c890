"""ForwardBackend: a backend whose arrays carry derivatives with them, for forward-mode differentiation (`jvp`).

An array is a `Dual`: a Tensor and its tangents, the derivatives along some directions. A primitive computes its output
and, from the tangents of its operands, those of the output. `jvp` needs no graph.

    d(a b) = da b + a db

An elementwise primitive multiplies a tangent by its derivative, as its pullback multiplies a gradient: the pullback
computes the tangent. A linear primitive is applied to the tangent itself. The backward of a derived primitive, which
second derivatives need, is the formula in core primitives.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar, cast

from . import rules
from .autograd import is_grad_enabled
from .backend import DERIVED, ELEMENTWISE, AttentionDropout, Backend, DType, Shape
from .dtype import is_float
from .tensor import Tensor
from .tensor_backend import TensorBackend, attention_weights, formulas

F = TypeVar("F", bound=Callable[..., Any])
Push: TypeAlias = Callable[..., Any]  # one tangent of each operand, or None -> the tangent of the output


class Dual:
    """A Tensor of a lower level and its tangents, Tensors of its shape."""

    __slots__ = ("primal", "tangents", "__weakref__")

    def __init__(self, primal: Any, tangents: Sequence[Any]) -> None:
        self.primal, self.tangents = primal, tangents

    @property
    def shape(self) -> Shape:
        return tuple(self.primal.shape)

    @property
    def ndim(self) -> int:
        return int(self.primal.ndim)

    @property
    def _version(self) -> Any:
        return self.primal._version


def primal(x: Any) -> Any:
    """The Tensor in a Dual. Anything else is returned unchanged."""
    return x.primal if isinstance(x, Dual) else x


def _primitive(name: str, differentiate: Callable[..., tuple[Any, Push]]) -> Callable[..., Any]:
    """A primitive with one output. `differentiate(xp, *operands)` gives the output and `push`."""
    without_tangents = getattr(TensorBackend, name)

    def primitive(self: "ForwardBackend", *args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(arg, Dual) for arg in args):
            return without_tangents(self, *args, **kwargs)
        out, push = differentiate(self.below, *map(primal, args), **kwargs)
        return self.with_tangents(out, push, *args)

    return primitive


def _total(xp: Backend, parts: Sequence[Any], shape: Shape) -> Any:
    total = parts[0]
    for part in parts[1:]:
        total = xp.add(total, part)
    return total if total.shape == shape else xp.broadcast_to(total, shape)


def _elementwise(rule: rules.Rule) -> Callable[..., tuple[Any, Push]]:
    def differentiate(xp: Backend, *operands: Any, **parameters: Any) -> tuple[Any, Push]:
        out, *pulls = rule(xp, *operands, **parameters)

        def push(*tangents: Any) -> Any:
            pairs = zip(pulls, tangents, strict=True)
            parts = [pull(t) for pull, t in pairs if t is not None and pull is not None]
            return _total(xp, parts, out.shape) if parts else xp.zeros(out.shape, xp.dtype(out))

        return out, push

    return differentiate


def _linear(name: str) -> Callable[..., tuple[Any, Push]]:
    def differentiate(xp: Backend, a: Any, *rest: Any, **kwargs: Any) -> tuple[Any, Push]:
        return getattr(xp, name)(a, *rest, **kwargs), lambda t, *_: getattr(xp, name)(t, *rest, **kwargs)

    return differentiate


def _extremum(rule: rules.Rule) -> Callable[..., tuple[Any, Push]]:
    def differentiate(xp: Backend, a: Any, axis: Any = None, keepdims: bool = False) -> tuple[Any, Push]:
        out, pull = rule(xp, a, axis=axis, keepdims=keepdims)
        share = pull(xp.full(out.shape, 1, xp.dtype(out)))  # 1 / n at each of n ties
        return out, lambda t: xp.sum(xp.multiply(share, t), axis=axis, keepdims=keepdims)

    return differentiate


def _integers(name: str) -> Callable[..., tuple[Any, Any]]:
    """A primitive whose results are integers, which have no tangents."""
    return lambda xp, *args, **kwargs: (getattr(xp, name)(*args, **kwargs), None)


def _where(xp: Backend, condition: Any, a: Any, b: Any) -> tuple[Any, Push]:
    out = xp.where(condition, a, b)
    return out, lambda _, ta, tb: _total(
        xp, [xp.where(condition, 0 if ta is None else ta, 0 if tb is None else tb)], out.shape
    )


def _matmul(xp: Backend, a: Any, b: Any) -> tuple[Any, Push]:
    out = xp.matmul(a, b)

    def push(ta: Any, tb: Any) -> Any:
        parts = [] if ta is None else [xp.matmul(ta, b)]
        return _total(xp, parts if tb is None else [*parts, xp.matmul(a, tb)], out.shape)

    return out, push


def _affine(xp: Backend, x: Any, weight: Any, bias: Any) -> tuple[Any, Push]:
    out = xp.linear(x, weight, bias)

    def push(tx: Any, tw: Any, tb: Any) -> Any:
        parts = [] if tx is None else [xp.linear(tx, weight, tb)]
        if tw is not None:
            parts.append(xp.linear(x, tw, None if parts else tb))
        return _total(xp, parts or [tb], out.shape)

    return out, push


def _conv(xp: Backend, x: Any, weight: Any, bias: Any, *sizes: Any) -> tuple[Any, Push]:
    out = xp.conv(x, weight, bias, *sizes)

    def push(tx: Any, tw: Any, tb: Any, *_: Any) -> Any:
        parts = [] if tx is None else [xp.conv(tx, weight, tb, *sizes)]
        if tw is not None:
            parts.append(xp.conv(x, tw, None if parts else tb, *sizes))
        if not parts:
            parts.append(xp.reshape(tb, (tb.shape[0], *(1,) * (out.ndim - 2))))
        return _total(xp, parts, out.shape)

    return out, push


def _softmax(xp: Backend, a: Any, axis: int) -> tuple[Any, Push]:
    y = xp.softmax(a, axis)
    return y, lambda t, _: xp.softmax_backward(t, y, axis)  # the Jacobian is symmetric


def _log_softmax(xp: Backend, a: Any, axis: int) -> tuple[Any, Push]:
    y = xp.log_softmax(a, axis)
    weights = xp.exp(y)
    return y, lambda t, _: xp.subtract(t, xp.sum(xp.multiply(weights, t), axis=axis, keepdims=True))


def _leaky_relu(xp: Backend, a: Any, alpha: float) -> tuple[Any, Push]:
    return xp.leaky_relu(a, alpha), lambda t, _: xp.leaky_relu_backward(t, a, alpha)


@cast(Callable[[F], F], formulas._in_float32())
def _attention(
    xp: Any, q: Any, k: Any, v: Any, mask: Any, causal: bool, offset: int, dropout: AttentionDropout | None
) -> Any:
    scaled = xp.multiply(q, 1 / math.sqrt(q.shape[-1]))
    weights = attention_weights(xp, scaled, k, mask, causal, offset)
    if dropout is not None:
        weights = xp.multiply(weights, formulas._attention_dropout_mask(xp, weights.shape, v, dropout))
    return xp.matmul(weights, v)


class ForwardBackend(TensorBackend):
    """A new level of Duals over the arrays of `root`. An array without tangents is a Tensor of a lower level.

    Tensors of the level may require gradients. The gradients are Duals, with the tangents of the gradients: `hvp`.
    """

    def __init__(self, root: Backend) -> None:
        super().__init__(root)
        self.below = TensorBackend(self.root)  # the primitives of Tensors

    def is_array(self, x: Any) -> bool:
        return super().is_array(primal(x))

    def asarray(self, data: Any, dtype: DType = None) -> Any:
        if isinstance(data, Tensor) and data.backend.level == self.level:
            data = data._array
        if isinstance(data, Dual):
            return data if dtype is None or data.primal.dtype == dtype else self.astype(data, dtype)
        return super().asarray(data, dtype)

    def exposed(self, a: Any) -> Tensor:
        """A Dual as a Tensor of this level, which has operators."""
        return Tensor._wrap(a, self, version=a._version) if isinstance(a, Dual) else a

    def to_host(self, a: Any) -> Any:
        return primal(a).numpy()

    def dtype(self, a: Any) -> Any:
        return primal(a).dtype

    def detached(self, a: Any) -> Tensor:
        return super().detached(primal(a))

    def moved(self, a: Any, root: Backend) -> Any:
        moved = super().moved(primal(a), root)
        return self.with_tangents(moved, lambda t: t.to(root), a)

    def with_tangents(self, out: Tensor, push: Push, *operands: Any) -> Any:
        """The output with its tangents, in its dtype. The output alone if it is no float or no operand has some."""
        columns = [operand.tangents if isinstance(operand, Dual) else None for operand in operands]
        n = max(0 if column is None else len(column) for column in columns)
        if not n or not is_float(out.dtype) or not is_grad_enabled(self.level):
            return out
        tangents = [push(*(None if column is None else column[i] for column in columns)) for i in range(n)]
        return Dual(out, [t if t.dtype == out.dtype else t.astype(out.dtype) for t in tangents])

    # --- Primitives with a list of operands, or several outputs

    def concatenate(self, arrays: Sequence[Any], axis: int) -> Any:
        xp = self.below

        def push(*tangents: Any) -> Any:
            pairs = zip(arrays, tangents, strict=True)
            return xp.concatenate([xp.zeros(a.shape, xp.dtype(primal(a))) if t is None else t for a, t in pairs], axis)

        return self.with_tangents(super().concatenate([primal(a) for a in arrays], axis), push, *arrays)

    def gelu(self, a: Any, approximate: str) -> tuple[Any, Any]:
        if not isinstance(a, Dual):
            return super().gelu(a, approximate)
        out, saved = self.below.gelu(a.primal, approximate)
        return self.with_tangents(out, lambda t: self.below.gelu_backward(t, saved, approximate), a), (a, saved)

    def gelu_backward(self, g: Any, saved: Any, approximate: str) -> Any:
        a, xp = saved[0], self.below
        if not isinstance(g, Dual) and not isinstance(a, Dual):
            return super().gelu_backward(g, saved, approximate)
        below = saved[1] if isinstance(a, Dual) else saved

        def push(tg: Any, ta: Any) -> Any:
            parts = [] if tg is None else [xp.gelu_backward(tg, below, approximate)]
            if ta is not None:
                slope = rules.gelu_second_derivative(xp, a.primal, approximate)
                parts.append(xp.multiply(xp.multiply(ta, primal(g)), slope))
            return _total(xp, parts, g.shape)

        return self.with_tangents(xp.gelu_backward(primal(g), below, approximate), push, g, a)

    def attention(
        self, q: Any, k: Any, v: Any, mask: Any, causal: bool, offset: int, dropout: AttentionDropout | None = None
    ) -> tuple[Any, Any]:
        if not any(isinstance(a, Dual) for a in (q, k, v)):
            return super().attention(q, k, v, mask, causal, offset, dropout)
        return _attention(self, q, k, v, mask, causal, offset, dropout), None


_FORWARD: dict[str, Callable[..., tuple[Any, Push]]] = {
    **{name: _elementwise(getattr(rules, name)) for name in (*ELEMENTWISE, "erf", "sigmoid", "relu", "clip")},
    **{name: _linear(name) for name in ("astype", "sum", "cumsum", "reshape", "transpose", "broadcast_to",
                                        "expand_dims", "getitem", "getitem_backward", "embedding",
                                        "embedding_backward", "rotary")},
    **{name: _integers(name) for name in ("argmax", "argsort", "max_pool_indices")},
    "max": _extremum(rules.max), "min": _extremum(rules.min), "where": _where, "matmul": _matmul,
    "linear": _affine, "conv": _conv, "softmax": _softmax, "log_softmax": _log_softmax, "leaky_relu": _leaky_relu,
}  # fmt: skip
for _name, _differentiate in _FORWARD.items():
    setattr(ForwardBackend, _name, _primitive(_name, _differentiate))


def _formula(name: str) -> Callable[..., Any]:
    """The formula if an operand is a Dual. It differentiates itself, as it is written in core primitives."""
    formula, without_tangents = getattr(formulas, name), getattr(TensorBackend, name)

    def primitive(self: ForwardBackend, *args: Any) -> Any:
        return (formula if any(isinstance(arg, Dual) for arg in args) else without_tangents)(self, *args)

    return primitive


_FORMULAS = "layer_norm", "rms_norm", "swiglu", "cross_entropy"
for _name in (*_FORMULAS, *(name for name in DERIVED if name.endswith("_backward"))):
    if _name not in (*vars(ForwardBackend), "attention_backward"):
        setattr(ForwardBackend, _name, _formula(_name))
