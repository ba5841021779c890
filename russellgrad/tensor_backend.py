"""TensorBackend: a backend whose arrays are Tensors. Gradients computed on it are Tensors, which have gradients too.

A rule is a pure function of a backend `xp`, so the same rules run on arrays and on Tensors. Every primitive here is an
operation of Tensors, one level below:

- a core primitive is the op of the same name, `xp.exp(a)` is `a.exp()`;
- so is the forward of a derived primitive, which keeps the fused ops;
- its backward is the formula in core primitives (`backends/formulas.py`), so it has gradients too.

A Tensor's level is that of its backend. Tensors of arrays have level 0. A `TensorBackend` gets the next number, and its
arrays are Tensors of any lower level. An operation on Tensors of several levels runs at the highest one, where those of
lower levels are constants (`apply.apply`).
"""

import importlib
import math
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, TypeVar, cast

from . import rules
from .autograd import is_grad_enabled
from .backend import DERIVED, ELEMENTWISE, Array, AttentionDropout, Backend, DType, Index, LoadedBackend, Shape
from .tensor import Tensor, apply

formulas: Any = importlib.import_module(f"{__package__}.backends.formulas")

F = TypeVar("F", bound=Callable[..., Any])

_levels = count(1)


def bare(x: Any) -> Any:
    """The array of the root backend inside a Tensor of any level. Anything else is returned unchanged."""
    return x.detach()._array if isinstance(x, Tensor) else x


def _bare_index(index: Index) -> Index:
    return tuple(map(bare, index)) if isinstance(index, tuple) else bare(index)


def _bare_dropout(dropout: AttentionDropout | None) -> tuple[AttentionDropout, ...]:
    """The last argument of attention, if there is dropout."""
    return () if dropout is None else ((bare(dropout[0]), *dropout[1:]),)


def constants(args: Sequence[Any]) -> list[Any] | None:
    """The arguments with the root's arrays in place of Tensors; None if a Tensor is not a constant.

    A Tensor is a constant if operations on it are recorded at no level: it tracks no gradients, or in `no_grad`.
    """
    arrays = []
    for x in args:
        while isinstance(x, Tensor):
            level = x.backend.level
            is_dual = level > 0 and not isinstance(x._array, Tensor)
            if (x._node is not None or is_dual) and is_grad_enabled(level):
                return None
            x = x.detach() if is_dual else x._array
        arrays.append(_bare_index(x))  # an index may hold Tensors
    return arrays


def _for_constants(name: str) -> Callable[..., Any]:
    """The root's primitive, on its arrays. The result is a constant, too."""

    def primitive(self: "TensorBackend", *args: Any, **kwargs: Any) -> Any:
        return self._wrap(getattr(self.root, name)(*map(bare, args), **kwargs))

    return primitive


def _or_root(differentiable: Callable[..., Any], name: str = "", is_view: bool = False) -> Callable[..., Any]:
    """A primitive: `differentiable` or, if all operands are constants, the root's primitive, which is faster.

    `is_view` says that the output may share memory with the first operand.
    """
    name = name or differentiable.__name__

    def primitive(self: "TensorBackend", *args: Any, **kwargs: Any) -> Any:
        arrays = constants(args)
        if arrays is None:
            return differentiable(self, *args, **kwargs)
        out = self._wrap(getattr(self._root, name)(*arrays, **kwargs))
        if is_view and isinstance(args[0], Tensor):
            out._version = args[0]._version
        return out

    return primitive


def _op(rule: rules.Rule, *names: str, **parameters: Any) -> Callable[..., Any]:
    """The primitive that applies a rule to its operands.

    The arguments after the operands are the rule's parameters of these names. Others have the values of `parameters`.
    """
    n_operands = rule.__code__.co_argcount - 1  # without xp

    def differentiable(self: "TensorBackend", *args: Any, **kwargs: Any) -> Tensor:
        given = dict(zip(names, args[n_operands:], strict=False))
        return apply(rule, *args[:n_operands], **{**parameters, **given, **kwargs})

    return _or_root(differentiable, rule.__name__, rules.marks(rule)[1])


def attention_weights(xp: Any, q: Any, k: Any, mask: Any, causal: bool, offset: int) -> Any:
    """softmax(q k^T), (..., L, S), 0 at hidden keys."""
    hidden = mask
    if causal:
        last = xp.add(xp.expand_dims(xp.arange(q.shape[-2]), 1), offset)  # (L, 1)
        later = xp.greater(xp.arange(k.shape[-2]), last)
        hidden = later if hidden is None else xp.logical_or(hidden, later)
    scores = xp.matmul(q, formulas._swap(xp, k))
    if hidden is not None:
        # A finite number: in rows with all keys hidden, the softmax of -inf would be nan.
        scores = xp.add(scores, xp.multiply(xp.astype(hidden, xp.dtype(scores)), -1e30))
    weights = xp.softmax(scores, -1)
    some_rows_are_empty = mask is not None or causal and offset < 0
    return xp.where(hidden, 0.0, weights) if some_rows_are_empty else weights


@cast(Callable[[F], F], formulas._in_float32())
def _attention_backward(
    xp: Any, g: Any, q: Any, k: Any, v: Any, out: Any, log_sum: Any, mask: Any, causal: bool, offset: int,
    needs: Sequence[bool], dropout: AttentionDropout | None = None,
) -> tuple[Any, ...]:  # fmt: skip
    """As the formula, but the weights are a softmax, which is one op, instead of e^(scores - log_sum)."""
    scale = 1 / math.sqrt(q.shape[-1])
    scaled = xp.multiply(q, scale)
    weights = attention_weights(xp, scaled, k, mask, causal, offset)
    drop = None if dropout is None else formulas._attention_dropout_mask(xp, weights.shape, v, dropout)
    dropped = weights if drop is None else xp.multiply(weights, drop)
    gv = xp.matmul(formulas._swap(xp, dropped), g) if needs[2] else None
    if not (needs[0] or needs[1]):
        return None, None, gv
    along = xp.sum(xp.multiply(g, out), axis=-1, keepdims=True)
    g_weights = xp.matmul(g, formulas._swap(xp, v))
    if drop is not None:
        g_weights = xp.multiply(g_weights, drop)
    g_scores = xp.multiply(xp.subtract(g_weights, along), weights)
    gq = xp.multiply(xp.matmul(g_scores, k), scale) if needs[0] else None
    gk = xp.matmul(formulas._swap(xp, g_scores), scaled) if needs[1] else None
    return gq, gk, gv


_getitem = _op(rules.getitem, "index", check=False)


class TensorBackend(LoadedBackend):
    """A new level of Tensors over the arrays of `root`."""

    def __init__(self, root: Backend, name: str = "") -> None:
        self._root, self.name, self.level = root.root, name or root.name, next(_levels)

    @property
    def root(self) -> Backend:
        return self._root

    def on(self, root: Backend) -> Backend:
        if root.root is self._root:
            return cast(Backend, self)
        other = type(self)(root)
        other.level, other.in_transform = self.level, self.in_transform
        return cast(Backend, other)

    def _wrap(self, result: Any) -> Any:
        """Results of the root as Tensors of level 0."""
        if isinstance(result, tuple):
            return tuple(self._wrap(part) for part in result)
        if hasattr(result, "shape"):
            return Tensor._wrap(result if result.ndim else self.root.asarray(result), self.root)
        return result

    # --- Conversion and creation

    def float_dtypes(self) -> tuple[str, ...]:
        return self.root.float_dtypes()

    def is_array(self, x: Any) -> bool:
        return isinstance(x, Tensor) and x.backend.root is self.root

    def asarray(self, data: Any, dtype: DType = None) -> Tensor:
        if isinstance(data, Tensor):
            return data if dtype is None or data.dtype == dtype else data.astype(dtype)
        array = self.root.asarray(data, dtype)
        if array is data:  # the caller may write into it
            array = self.root.copy(array)
        return Tensor._wrap(array, self.root)

    def copy(self, a: Tensor) -> Tensor:
        return a  # nothing writes into a Tensor

    def to_host(self, a: Tensor) -> Any:
        return a.numpy()

    def dtype(self, a: Tensor) -> Any:
        return a.dtype

    def detached(self, a: Tensor) -> Tensor:
        """The array without gradients, as a Tensor of level 0."""
        return a.detach()

    def moved(self, a: Tensor, root: Backend) -> Tensor:
        """The array on another root, for `Tensor.to`."""
        return a.to(root)

    def prepare_index(self, index: Index, shape: Shape) -> Index:
        return self.root.prepare_index(_bare_index(index), shape)

    # --- Core: the op of the same name. (The elementwise primitives are added below.)

    astype = _op(rules.astype, "dtype")
    matmul = _op(rules.matmul)
    sum = _op(rules.sum, axis=None, keepdims=False)
    max = _op(rules.max, axis=None, keepdims=False)
    min = _op(rules.min, axis=None, keepdims=False)
    argmax = _op(rules.argmax, axis=None, keepdims=False)
    argsort = _op(rules.argsort, "axis")
    cumsum = _op(rules.cumsum, "axis")
    reshape = _op(rules.reshape, "shape")
    transpose = _op(rules.transpose, "axes", axes=None)
    broadcast_to = _op(rules.broadcast_to, "shape")
    expand_dims = _op(rules.expand_dims, "axis")

    def getitem(self, a: Tensor, index: Index) -> Tensor:
        return cast(Tensor, _getitem(self, a, _bare_index(index)))

    @_or_root
    def getitem_backward(self, g: Tensor, index: Index, shape: Shape) -> Tensor:
        return apply(rules.getitem_backward, g, index=_bare_index(index), shape=shape)

    @_or_root
    def where(self, condition: Tensor, a: Array, b: Array) -> Tensor:
        return apply(rules.where, a, b, condition=condition)

    def concatenate(self, arrays: Sequence[Tensor], axis: int) -> Tensor:
        return apply(rules.concatenate, *arrays, axis=axis)

    # --- Derived, with one output: the op of the same name. (The formulas of other backwards are added below.)

    erf = _op(rules.erf)
    sigmoid = _op(rules.sigmoid)
    relu = _op(rules.relu)
    clip = _op(rules.clip)
    leaky_relu = _op(rules.leaky_relu, "alpha")
    leaky_relu_backward = _op(rules.leaky_relu_backward, "alpha")
    linear = _op(rules.linear)
    conv = _op(rules.conv, "stride", "padding", "dilation", "groups")
    softmax = _op(rules.softmax, "axis")
    log_softmax = _op(rules.log_softmax, "axis")
    swiglu = _op(rules.swiglu)
    rotary = _op(rules.rotary, "cos", "sin")
    embedding = _op(rules.embedding, "ids", check=False)
    embedding_backward = _op(rules.embedding_backward, "ids", "n_rows")

    # --- Derived, with values that are saved for backward

    def gelu(self, a: Tensor, approximate: str) -> tuple[Tensor, Any]:
        if constants((a,)) is not None:
            out, saved = _for_constants("gelu")(self, a, approximate)
            return out, (a, saved)
        return apply(rules.gelu, a, approximate=approximate), (a, None)

    def gelu_backward(self, g: Tensor, saved: Any, approximate: str) -> Any:
        a, of_root = saved
        if of_root is not None and constants((g,)) is not None:
            return _for_constants("gelu_backward")(self, g, of_root, approximate)
        return apply(rules.gelu_backward, g, a, approximate=approximate)

    @_or_root
    def layer_norm(
        self, x: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = rules.widened(self, x)
        mean, var = wide.mean(-1, keepdims=True), wide.var(-1, keepdims=True)
        return apply(rules.layer_norm, x, gamma, beta, eps=eps), mean, (var + eps) ** -0.5

    @_or_root
    def rms_norm(self, x: Tensor, gamma: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
        mean_square = rules.widened(self, x).square().mean(-1, keepdims=True)
        return apply(rules.rms_norm, x, gamma, eps=eps), (mean_square + eps) ** -0.5

    @_or_root
    def cross_entropy(
        self, logits: Tensor, ids: Tensor, valid: Tensor | None, excluded_class: int | None
    ) -> tuple[Tensor, Tensor]:
        padding = None if valid is None else apply(rules.logical_not, valid)
        loss = apply(rules.cross_entropy, logits, ids=ids, ignore_index=None, excluded_class=excluded_class,
                     padding=padding, check=False)  # fmt: skip
        if excluded_class is not None:
            excluded = self.equal(self.arange(logits.shape[1]), excluded_class)
            logits = logits.masked_fill(excluded, -math.inf)
        return loss, rules.widened(self, logits).softmax(1)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, offset: int,
        dropout: AttentionDropout | None = None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        drop = _bare_dropout(dropout)
        if constants((q, k, v)) is not None:
            out, log_sum = _for_constants("attention")(self, q, k, v, mask, causal, offset, *drop)
            return out, log_sum
        given = {"dropout": drop[0]} if drop else {}
        return apply(rules.attention, q, k, v, mask=mask, causal=causal, offset=offset, **given), None

    def attention_backward(
        self, g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor | None, mask: Tensor | None,
        causal: bool, offset: int, needs: Sequence[bool], dropout: AttentionDropout | None = None,
    ) -> Any:  # fmt: skip
        args: tuple[Any, ...] = (g, q, k, v, out, log_sum, mask, causal, offset, needs, *_bare_dropout(dropout))
        is_constant = log_sum is not None and constants((g, q, k, v)) is not None
        return (_for_constants("attention_backward") if is_constant else _attention_backward)(self, *args)


for _name in ELEMENTWISE:
    setattr(TensorBackend, _name, _op(getattr(rules, _name)))
for _name in ("full", "arange", "zeros", "normal", "uniform", "dropout_mask", "host_scalars", "check_ids",
              "check_targets", "max_pool_indices"):  # fmt: skip
    setattr(TensorBackend, _name, _for_constants(_name))
for _name in DERIVED:
    if _name not in vars(TensorBackend):
        _formula = getattr(formulas, _name)
        setattr(TensorBackend, _name, _or_root(_formula) if _name.endswith("_backward") else _formula)


class _Recorded(TensorBackend):
    """A level whose arrays track gradients themselves, so that everything on it is recorded below."""

    def asarray(self, data: Any, dtype: DType = None) -> Tensor:
        array = super().asarray(data, dtype)
        if array.is_leaf and array.dtype.kind == "f" and not isinstance(data, Tensor):
            array.requires_grad = True
        return array


def recorded(root: Backend) -> Backend:
    """The backend "tensor": Tensors that track gradients, over `root`."""
    return cast(Backend, _Recorded(root, "tensor" if root.name == "numpy" else f"tensor:{root.name}"))
