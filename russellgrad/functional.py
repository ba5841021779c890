"""Functions of tensors: of several operands (`where`, `maximum`), fused (`linear`, `attention`), and the methods.

Each method of Tensor in `russellgrad/ops/` is a function, too: `exp(x)` is `x.exp()`, and `sum(x, axis=0)` is
`x.sum(axis=0)`.
"""

import sys
from collections.abc import Callable
from functools import wraps
from types import FunctionType
from typing import TYPE_CHECKING, Any

from . import rules
from .backend import resolve_backend
from .dtype import python_number
from .idioms import numpy_names
from .tensor import Mask, Operand, Tensor, apply


def where(condition: Mask, a: Operand, b: Operand) -> Tensor:
    """Elements of a where `condition` is True, else of b. The three operands are broadcast.

    Raises TypeError for a condition that is not bool.

        where(x > 0, x, 0.0)
    """
    return apply(rules.where, a, b, condition=condition)


def maximum(a: Operand, b: Operand) -> Tensor:
    """Elementwise maximum. nan propagates. Where a equals b, each gets half of the gradient."""
    return apply(rules.maximum, a, b)


def minimum(a: Operand, b: Operand) -> Tensor:
    """Elementwise minimum. nan propagates. Where a equals b, each gets half of the gradient."""
    return apply(rules.minimum, a, b)


def arctan2(a: Operand, b: Operand) -> Tensor:
    """The angle of the point (b, a) in radians, in [-pi, pi]: `arctan2(y, x)`. The operands are broadcast."""
    return apply(rules.arctan2, a, b)


@numpy_names
def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """x - log(sum(exp(x))) along `axis`, without overflow: (...) -> (...).

    Raises IndexError for an axis that x does not have.
    """
    return x.log_softmax(axis)


def layer_norm(x: Tensor, gamma: Operand = None, beta: Operand = None, eps: float = 1e-5) -> Tensor:
    """Layer normalization over the last axis: (x - mean) / sqrt(variance + eps) * gamma + beta.

    Ba et al., arXiv:1607.06450, equation 4.

    Shapes: x (..., C), gamma and beta (C,) or None -> (..., C). Raises ValueError for other shapes.
    """
    return apply(rules.layer_norm, x, gamma, beta, eps=eps)


def linear(x: Tensor, weight: Tensor, bias: Operand = None) -> Tensor:
    """Linear map, x @ weight + bias.

    Shapes: x (..., in), weight (in, out), bias (out,) or None -> (..., out). Raises ValueError for other shapes.
    """
    return apply(rules.linear, x, weight, bias)


def embedding(weight: Tensor, indices: Any) -> Tensor:
    """Look up rows of `weight` (rows, C): indices (...) -> (..., C). The gradients of repeated indices add up.

    Args:
        weight: the table, one row for each index.
        indices: an array, nested lists or a Tensor of integers in [0, rows). Indices on the host are checked before
            they are copied. Checking indices on a device copies them to the host and waits for the device.

    Raises:
        IndexError: an index is out of range. TypeError: the indices are not integers.
    """
    return apply(rules.embedding, weight, ids=indices)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, causal: bool = False, offset: int = 0) -> Tensor:
    """Scaled dot-product attention: softmax(q k^T / sqrt(d)) v (Vaswani et al., arXiv:1706.03762, equation 1).

    Shapes: q (..., L, d), k (..., S, d), v (..., S, e) -> (..., L, e).

    Args:
        mask: bool, broadcast to (..., L, S). True hides a key from a query (the opposite of PyTorch's
            `scaled_dot_product_attention`).
        causal: query i sees the keys up to i + offset.
        offset: 0 aligns the first query with the first key; S - L aligns the last query with the last key, as a
            key-value cache needs.

    If all keys are hidden from a query, its output and gradients are 0. Raises ValueError for other shapes.
    """
    return apply(rules.attention, q, k, v, mask=mask, causal=causal, offset=offset)


def attention_qkvpacked(qkv: Tensor, n_heads: int, mask: Mask = None, causal: bool = False) -> Tensor:
    """Multi-head self-attention on packed queries, keys and values (named as in FlashAttention).

    Shapes: qkv (..., T, 3 C) -> (..., T, C). The last axis of qkv concatenates q, k and v; each of them concatenates
    its n_heads heads.

    Args:
        n_heads: the number of heads; must divide C.
        mask: bool, broadcast to (..., n_heads, T, T). True hides a key from a query.
        causal: query i sees the keys up to i.

    Raises ValueError for shapes that do not match.
    """
    return apply(rules.attention_qkvpacked, qkv, n_heads=n_heads, mask=mask, causal=causal)


# --- The methods of Tensor, as functions

_METHODS_ONLY = ("at", "tolist")  # they give no Tensor


def _functions() -> dict[str, Callable[..., Any]]:
    """The public functions and methods in `russellgrad/ops/`, by name."""
    found: dict[str, Callable[..., Any]] = {}
    for cls in (cls for cls in Tensor.__mro__ if cls.__module__.startswith(f"{__package__}.ops.")):
        for name, value in vars(sys.modules[cls.__module__]).items():
            if isinstance(value, FunctionType) and value.__module__ == cls.__module__:
                found[name] = value
        for name, value in vars(cls).items():
            if isinstance(value, staticmethod):
                found[name] = getattr(cls, name)
            elif isinstance(value, FunctionType):
                found[name] = _function(name, value)
    return {name: found[name] for name in found if name[0] != "_" and name not in _METHODS_ONLY}


def _function(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a method. Its first argument may also be a number or an array, as an operand may."""

    @wraps(method)
    def function(x: Any, *args: Any, **kwargs: Any) -> Any:
        return method(x if isinstance(x, Tensor) else _constant(name, x), *args, **kwargs)

    function.__qualname__, function.__module__ = name, __name__
    return function


def _constant(op: str, x: Any) -> Tensor:
    """A Tensor of a number or an array of the current backend. Raises TypeError for anything else."""
    if python_number(x) is None and not resolve_backend(None).is_array(x):
        kind = type(x)
        raise TypeError(
            f"{op}: cannot take a {kind.__module__}.{kind.__name__}; pass a Tensor, as in {op}(Tensor(x)), a number or "
            f"an array of backend {resolve_backend(None).name!r}"
        )
    return Tensor(x, requires_grad=False)


if TYPE_CHECKING:  # a type checker needs the names; tests/test_functions.py compares them with the methods
    # ops/shapes.py
    transpose, swapaxes, reshape, broadcast_to = Tensor.transpose, Tensor.swapaxes, Tensor.reshape, Tensor.broadcast_to
    squeeze, expand_dims, concatenate, stack = Tensor.squeeze, Tensor.expand_dims, Tensor.concatenate, Tensor.stack
    split = Tensor.split
    # ops/reductions.py
    sum, mean, var, max, min, argmax = Tensor.sum, Tensor.mean, Tensor.var, Tensor.max, Tensor.min, Tensor.argmax
    # ops/elementwise.py
    exp, expm1, log, log1p, exp2, log2 = Tensor.exp, Tensor.expm1, Tensor.log, Tensor.log1p, Tensor.exp2, Tensor.log2
    log10, square, sqrt, tanh, sinh = Tensor.log10, Tensor.square, Tensor.sqrt, Tensor.tanh, Tensor.sinh
    cosh, abs, sin, cos, tan, arcsin = Tensor.cosh, Tensor.abs, Tensor.sin, Tensor.cos, Tensor.tan, Tensor.arcsin
    arccos, arctan, erf, sign, isnan = Tensor.arccos, Tensor.arctan, Tensor.erf, Tensor.sign, Tensor.isnan
    isinf, isfinite, floor, ceil, sigmoid = Tensor.isinf, Tensor.isfinite, Tensor.floor, Tensor.ceil, Tensor.sigmoid
    relu, silu, leaky_relu, gelu, softplus = Tensor.relu, Tensor.silu, Tensor.leaky_relu, Tensor.gelu, Tensor.softplus
    elu, round, nan_to_num, astype, clip = Tensor.elu, Tensor.round, Tensor.nan_to_num, Tensor.astype, Tensor.clip
    masked_fill, masked_multiply = Tensor.masked_fill, Tensor.masked_multiply
    # ops/reductions.py, more
    std, norm, logsumexp, prod = Tensor.std, Tensor.norm, Tensor.logsumexp, Tensor.prod
    cumsum, cumprod, any, all = Tensor.cumsum, Tensor.cumprod, Tensor.any, Tensor.all
    argmin = Tensor.argmin
    # ops/rearranging.py, more
    flip, roll, repeat, tile = Tensor.flip, Tensor.roll, Tensor.repeat, Tensor.tile
    pad, tril, triu, diagonal = Tensor.pad, Tensor.tril, Tensor.triu, Tensor.diagonal
    trace = Tensor.trace
    # ops/sorting.py, more
    argsort, sort, topk, take_along_axis = Tensor.argsort, Tensor.sort, Tensor.topk, Tensor.take_along_axis
    # ops/shapes.py, more
    flatten, ravel, copy, moveaxis = Tensor.flatten, Tensor.ravel, Tensor.copy, Tensor.moveaxis
else:
    globals().update({name: function for name, function in _functions().items() if name not in globals()})
    __all__ = [
        name for name, value in globals().items()
        if isinstance(value, FunctionType) and name[0] != "_"
        and value.__module__.startswith((__name__, f"{__package__}.ops."))  # not what is imported
    ]  # fmt: skip
