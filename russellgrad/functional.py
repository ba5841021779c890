"""Functions of tensors: selection (`where`, `maximum`, `minimum`) and the fused ops (`linear`, `attention`, ...)."""

from typing import Any

from . import rules
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


def cross_entropy(logits: Tensor, ids: Any, ignore_index: int | None = None) -> Tensor:
    """The mean of -log softmax(logits)[id] over the ids that are not `ignore_index`.

    Shapes: logits (..., C), ids (...) integers in [0, C) -> (). Ids are checked as in `embedding`; give them on the
    host if you can.

    Raises:
        IndexError: an id is out of range. ValueError: the shapes do not match, or every id is `ignore_index`.
    """
    return apply(rules.cross_entropy, logits, ids=ids, ignore_index=ignore_index, excluded_class=None)


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
