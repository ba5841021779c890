"""TensorBackend: a backend whose arrays are Tensors. Gradients computed on it are Tensors, which have gradients too.

A rule is a pure function of a backend `xp`, so the same rules run on arrays and on Tensors. Every primitive here is an
operation of Tensors, one level below:

- a core primitive is the op of the same name, `xp.exp(a)` is `a.exp()`;
- so is the forward of a derived primitive, which keeps the fused ops;
- its backward is the formula in core primitives (`backends/formulas.py`), which has gradients because they have.

A Tensor's level is that of its backend. Tensors of arrays have level 0. A `TensorBackend` gets the next number, and its
arrays are Tensors of any lower level. An operation on Tensors of several levels runs at the highest one, where those of
lower levels are constants (`tensor.apply`).
"""

import importlib
import math
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import count
from typing import Any, cast
from weakref import WeakValueDictionary

from . import rules
from .autograd import is_grad_enabled
from .backend import DERIVED, ELEMENTWISE, Array, Backend, DType, Index, LoadedBackend, Shape
from .tensor import Tensor, apply

formulas: Any = importlib.import_module(f"{__package__}.backends.formulas")

_levels = count(1)


def bare(x: Any) -> Any:
    """The array of the root backend inside a Tensor of any level. Anything else is returned unchanged."""
    while isinstance(x, Tensor):
        x = x.data
    return x


def tracks(x: Any) -> bool:
    """Whether operations on x are recorded at any level: a Tensor that requires a gradient, outside `no_grad`."""
    while isinstance(x, Tensor):
        if x.requires_grad and is_grad_enabled(x.backend.level):
            return True
        x = x.data
    return False


def _op(rule: rules.Rule) -> Callable[..., Tensor]:
    """The primitive that applies a rule to its operands."""
    return lambda self, *operands: apply(rule, *operands)


def _on_root(name: str) -> Callable[..., Any]:
    """The root's primitive, on bare arrays: it has no gradient."""
    return lambda self, *args: self._wrap(getattr(self.root, name)(*map(bare, args)))


def _fused(differentiable: Callable[..., Any]) -> Callable[..., Any]:
    """The root's primitive if no operand tracks gradients, which is faster, else `differentiable`."""
    fast = _on_root(differentiable.__name__)

    @wraps(differentiable)
    def primitive(self: "TensorBackend", *args: Any) -> Any:
        return differentiable(self, *args) if any(map(tracks, args)) else fast(self, *args)

    return primitive


class TensorBackend(LoadedBackend):
    """A new level of Tensors over the arrays of `root`."""

    def __init__(self, root: Backend, name: str = "") -> None:
        self._root, self.name, self.level = root.root, name or root.name, next(_levels)
        self._same_level = WeakValueDictionary({self._root: self})  # weak: no reference cycle

    @property
    def root(self) -> Backend:
        return self._root

    def on(self, root: Backend) -> Backend:
        other = self._same_level.get(root.root)
        if other is None:
            other = self._same_level[root.root] = type(self)(root)
            other.level, other._same_level = self.level, self._same_level
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
        return Tensor._wrap(
            self.root.copy(array) if array is data else array, self.root
        )  # the caller may write into it

    def copy(self, a: Tensor) -> Tensor:
        return a  # nothing writes into a Tensor

    def to_host(self, a: Tensor) -> Any:
        return a.numpy()

    def dtype(self, a: Tensor) -> Any:
        return a.dtype

    def astype(self, a: Tensor, dtype: DType) -> Tensor:
        return apply(rules.astype, a, dtype=dtype)

    def prepare_index(self, index: Index, shape: Shape) -> Index:
        return self.root.prepare_index(tuple(map(bare, index)) if isinstance(index, tuple) else bare(index), shape)

    # --- Core: the op of the same name

    def where(self, condition: Tensor, a: Array, b: Array) -> Tensor:
        return apply(rules.where, a, b, condition=condition)

    def reshape(self, a: Tensor, shape: Shape) -> Tensor:
        return apply(rules.reshape, a, shape=shape)

    def transpose(self, a: Tensor, axes: Sequence[int] | None = None) -> Tensor:
        return apply(rules.transpose, a, axes=axes)

    def broadcast_to(self, a: Tensor, shape: Shape) -> Tensor:
        return apply(rules.broadcast_to, a, shape=shape)

    def expand_dims(self, a: Tensor, axis: int | tuple[int, ...]) -> Tensor:
        return apply(rules.expand_dims, a, axis=axis)

    def concatenate(self, arrays: Sequence[Tensor], axis: int) -> Tensor:
        return apply(rules.concatenate, *arrays, axis=axis)

    def getitem(self, a: Tensor, index: Index) -> Tensor:
        return apply(rules.getitem, a, index=index, check=False)

    def getitem_backward(self, g: Tensor, index: Index, shape: Shape) -> Tensor:
        return apply(rules.getitem_backward, g, index=index, shape=shape)

    # --- Derived: the forward is the op of the same name, the backward is the formula

    def leaky_relu(self, a: Tensor, alpha: float) -> Tensor:
        return apply(rules.leaky_relu, a, alpha=alpha)

    def softmax(self, a: Tensor, axis: int) -> Tensor:
        return apply(rules.softmax, a, axis=axis)

    def log_softmax(self, a: Tensor, axis: int) -> Tensor:
        return apply(rules.log_softmax, a, axis=axis)

    def embedding(self, weight: Tensor, ids: Array) -> Tensor:
        return apply(rules.embedding, weight, ids=ids, check=False)

    def embedding_backward(self, g: Tensor, ids: Array, n_rows: int) -> Tensor:
        return apply(rules.embedding_backward, g, ids=ids, n_rows=n_rows)

    def gelu(self, a: Tensor, approximate: str) -> tuple[Tensor, Any]:
        if tracks(a):
            return apply(rules.gelu, a, approximate=approximate), (a, None)
        out, saved = _on_root("gelu")(self, a, approximate)
        return out, (a, saved)

    def gelu_backward(self, g: Tensor, saved: Any, approximate: str) -> Tensor:
        a, of_root = saved
        if of_root is None or tracks(g):
            return cast(Tensor, formulas.gelu_backward(self, g, a, approximate))
        return cast(Tensor, _on_root("gelu_backward")(self, g, of_root, approximate))

    @_fused
    def layer_norm(
        self, x: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = rules._wide(self, x)
        mean, var = wide.mean(-1, keepdims=True), wide.var(-1, keepdims=True)
        return apply(rules.layer_norm, x, gamma, beta, eps=eps), mean, (var + eps) ** -0.5

    @_fused
    def cross_entropy(
        self, logits: Tensor, ids: Tensor, valid: Tensor | None, excluded_class: int | None
    ) -> tuple[Tensor, Tensor]:
        padding = None if valid is None else apply(rules.logical_not, valid)
        loss = apply(rules.cross_entropy, logits, ids=ids, ignore_index=None, excluded_class=excluded_class,
                     padding=padding, check=False)  # fmt: skip
        if excluded_class is not None:
            excluded = self.equal(self.arange(logits.shape[1]), excluded_class)
            logits = logits.masked_fill(excluded, -math.inf)
        return loss, rules._wide(self, logits).softmax(1)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, offset: int
    ) -> tuple[Tensor, Tensor | None]:
        if any(map(tracks, (q, k, v))):
            return apply(rules.attention, q, k, v, mask=mask, causal=causal, offset=offset), None
        out, log_sum = _on_root("attention")(self, q, k, v, mask, causal, offset)
        return out, log_sum

    def attention_backward(
        self, g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor | None, mask: Tensor | None,
        causal: bool, offset: int, needs: Sequence[bool],
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        if log_sum is not None and not any(map(tracks, (g, q, k, v))):
            args = g, q, k, v, out, log_sum, mask, causal, offset, needs
            return cast(tuple[Tensor | None, ...], _on_root("attention_backward")(self, *args))
        found = self._composed_attention_backward(g, q, k, v, out, mask, causal, offset, needs)
        return cast(tuple[Tensor | None, ...], found)

    @formulas._in_float32()  # type: ignore[untyped-decorator]
    def _composed_attention_backward(
        self, g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, mask: Tensor | None, causal: bool, offset: int,
        needs: Sequence[bool],
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        """As the formula, but the weights are a softmax, which is one op, instead of e^(scores - log_sum)."""
        scale = 1 / math.sqrt(q.shape[-1])
        weights = self._attention_weights(q * scale, k, mask, causal, offset)
        gv = weights.swapaxes(-1, -2) @ g if needs[2] else None
        if not (needs[0] or needs[1]):
            return None, None, gv
        g_weights = g @ v.swapaxes(-1, -2)
        g_scores = (g_weights - (g * out).sum(-1, keepdims=True)) * weights * scale
        gq = g_scores @ k if needs[0] else None
        gk = g_scores.swapaxes(-1, -2) @ q if needs[1] else None
        return gq, gk, gv

    def _attention_weights(self, q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, offset: int) -> Tensor:
        """softmax(q k^T), 0 at hidden keys."""
        hidden = mask
        if causal:
            last = self.arange(q.shape[-2]).expand_dims(1) + offset  # (L, 1)
            later = self.arange(k.shape[-2]) > last
            hidden = later if hidden is None else hidden | later
        scores = q @ k.swapaxes(-1, -2)
        if hidden is None:
            return scores.softmax()
        # A finite number: in rows with all keys hidden, the softmax of -inf would be nan.
        weights = scores.masked_fill(hidden, -1e30).softmax()
        some_rows_are_empty = mask is not None or offset < 0
        return weights.masked_fill(hidden, 0.0) if some_rows_are_empty else weights


def _reduction(rule: rules.Rule) -> Callable[..., Tensor]:
    def primitive(self: TensorBackend, a: Tensor, *, axis: Any = None, keepdims: bool = False) -> Tensor:
        return apply(rule, a, axis=axis, keepdims=keepdims)

    return primitive


for _name in (*ELEMENTWISE, "erf", "sigmoid", "relu", "clip", "matmul", "linear"):
    setattr(TensorBackend, _name, _op(getattr(rules, _name)))
for _name in ("sum", "max", "min", "argmax"):
    setattr(TensorBackend, _name, _reduction(getattr(rules, _name)))
for _name in (
    "full",
    "arange",
    "zeros",
    "normal",
    "uniform",
    "dropout_mask",
    "host_scalars",
    "check_ids",
    "check_targets",
):
    setattr(TensorBackend, _name, _on_root(_name))
for _name in DERIVED:
    if _name not in vars(TensorBackend):
        _formula = getattr(formulas, _name)
        setattr(TensorBackend, _name, _fused(_formula) if _name.endswith("_backward") else _formula)


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
