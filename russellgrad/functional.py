"""Functions of the package on tensors: those that have no one main tensor, and the fused ones."""

from typing import Any

from . import rules
from .tensor import Mask, Operand, Tensor, apply


def where(condition: Mask, a: Operand, b: Operand) -> Tensor:
    """a where `condition` (bool) is True, else b; all three broadcast. Raises TypeError for other conditions."""
    return apply(rules.where, a, b, condition=condition)


def maximum(a: Operand, b: Operand) -> Tensor:
    """The larger of a and b, elementwise; nan wins; at ties each gets half the gradient."""
    return apply(rules.maximum, a, b)


def minimum(a: Operand, b: Operand) -> Tensor:
    """The smaller of a and b, elementwise; nan wins; at ties each gets half the gradient."""
    return apply(rules.minimum, a, b)


def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """x - log(sum(exp(x))) along `axis`, without overflow: (...) -> (...)."""
    return x.log_softmax(axis)


def layer_norm(x: Tensor, gamma: Operand = None, beta: Operand = None, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * gamma + beta over the last axis (Ba et al., arXiv:1607.06450, eq. 4).

    Shapes: x (..., C), gamma and beta (C,) or None -> (..., C). Raises ValueError for shapes that do not fit.
    """
    return apply(rules.layer_norm, x, gamma, beta, eps=eps)


def linear(x: Tensor, weight: Tensor, bias: Operand = None) -> Tensor:
    """x @ weight + bias: (..., in), (in, out), (out,) or None -> (..., out). Raises ValueError for other shapes."""
    return apply(rules.linear, x, weight, bias)


def embedding(weight: Tensor, indices: Any) -> Tensor:
    """Rows of `weight` (rows, C) by number: indices (...) -> (..., C); repeated rows add up in the gradient.

    Indices are an array, nested lists or a Tensor of integers. Given on the host they are checked before they move;
    reading device ones back to check them waits for the device.

    Raises:
        IndexError: an index below 0 or past the last row. TypeError: not integers.
    """
    return apply(rules.embedding, weight, ids=indices)


def cross_entropy(logits: Tensor, ids: Any, ignore_index: int | None = None) -> Tensor:
    """The mean of -log softmax(logits)[id] over the ids that are not `ignore_index`.

    Shapes: logits (..., C), ids (...) integers in [0, C) -> (). Like `embedding`, it prefers ids on the host.

    Raises:
        IndexError: an id out of range. ValueError: shapes that do not fit, or no id that counts.
    """
    return apply(rules.cross_entropy, logits, ids=ids, ignore_index=ignore_index, excluded_class=None)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, causal: bool = False, offset: int = 0) -> Tensor:
    """softmax(q k^T / sqrt(d)) v (Vaswani et al., arXiv:1706.03762, eq. 1).

    Shapes: q (..., L, d), k (..., S, d), v (..., S, e) -> (..., L, e).

    Args:
        mask: bool, broadcast to (..., L, S); True hides a key from a query.
        causal: query i sees keys up to i + offset.
        offset: 0 aligns the first query with the first key; S - L the last with the last, as a cache needs.

    A query that sees nothing gives zeros, and zero gradients. Raises ValueError for shapes that do not fit.
    """
    return apply(rules.attention, q, k, v, mask=mask, causal=causal, offset=offset)


def attention_qkvpacked(qkv: Tensor, n_heads: int, mask: Mask = None, causal: bool = False) -> Tensor:
    """`attention` of n_heads heads on packed queries, keys and values, as a single product with (C, 3 C) gives them.

    Shapes: qkv (..., T, 3 C): q, k and v side by side, each with its heads side by side -> (..., T, C).

    Args:
        mask: bool, broadcast to (..., n_heads, T, T); True hides a key from a query.
        causal: query i sees keys up to i.

    Raises ValueError for shapes that do not fit. The name is FlashAttention's.
    """
    return apply(rules.attention_qkvpacked, qkv, n_heads=n_heads, mask=mask, causal=causal)
