"""Multi-head attention."""

import math
from typing import Any

from .. import init
from ..backend import Shape
from ..functional import attention, linear
from ..module import Module
from ..random import Generator
from ..tensor import Mask, Tensor
from .check import flags, positive
from .dropout import Dropout
from .linear import Linear


class MultiHeadAttention(Module):
    """Multi-head attention, as `torch.nn.MultiheadAttention`. Vaswani et al., arXiv:1706.03762, section 3.2.2.

    Shapes: N sequences of L queries and S keys with E = embed_dim, H = num_heads.

        x = zeros((2, 5, 8))
        MultiHeadAttention(8, 2, batch_first=True)(x, x, x)[0].shape  # (2, 5, 8)

    Args:
        embed_dim: E, the length of the last axis of queries, keys and values.
        num_heads: H; must divide E.
        dropout: the probability of dropout of the attention weights.
        bias: whether the projections have biases.
        batch_first: whether sequences are (N, L, E) instead of (L, N, E). (In PyTorch, other arguments precede it.)
        generator: the generator of the initial weights; by default `random.default_generator()`.

    Attributes:
        in_proj_weight: (3 E, E), the weights of queries, keys and values; in_proj_bias: (3 E,), or None.
        out_proj: the `Linear` layer of the output.
        dropout: the `Dropout` layer.

    Raises:
        ValueError: a size is not positive, or num_heads does not divide embed_dim. TypeError: one is not an int.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        batch_first: bool = False,
        generator: Generator | None = None,
    ) -> None:
        positive("MultiHeadAttention", embed_dim=embed_dim, num_heads=num_heads)
        flags("MultiHeadAttention", bias=bias, batch_first=batch_first)
        if embed_dim % num_heads:
            raise ValueError(f"MultiHeadAttention: num_heads={num_heads} does not divide embed_dim={embed_dim}")
        self.embed_dim, self.num_heads, self.batch_first = embed_dim, num_heads, batch_first
        self.in_proj_weight = init.xavier_uniform((3 * embed_dim, embed_dim), generator=generator)
        self.in_proj_bias = init.zeros((3 * embed_dim,)) if bias else None
        self.out_proj = Linear(embed_dim, embed_dim, bias, generator=generator)
        if bias:
            self.out_proj.bias = init.zeros((embed_dim,))
        self.dropout = Dropout(dropout)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Mask = None,
        need_weights: bool = True,
        attn_mask: Mask = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Queries (L, N, E), keys and values (S, N, E) -> output (L, N, E), weights (N, L, S) or None.

        With batch_first, (N, L, E) and (N, S, E). For unbatched inputs, (L, E) and (S, E), no other shape has N.

        Args:
            query, key, value: the same Tensor three times for self-attention.
            key_padding_mask: bool (N, S), True at keys that are hidden from all queries.
            need_weights: whether to return the attention weights. False is faster: it uses the fused op `attention`.
            attn_mask: bool (L, S) or (N H, L, S), True where a key is hidden from a query. (PyTorch also has float
                masks, which are added to the scores.)
            average_attn_weights: whether to return the mean of the weights over the heads, instead of (N, H, L, S).
            is_causal: whether query i attends to keys 0 to i only. It needs no `attn_mask`.

        The weights of a query are 0 if all keys are hidden from it; in PyTorch, they are nan.

        Raises:
            ValueError: the shapes do not fit. TypeError: an argument is not a Tensor, or a mask not bool.
        """
        switches = {"need_weights": need_weights, "average_attn_weights": average_attn_weights, "is_causal": is_causal}
        flags("MultiHeadAttention", **switches)
        self._check_inputs(query, key, value)
        is_batch = query.ndim == 3
        q, k, v = (self._heads(x, is_batch) for x in self._project(query, key, value))  # (N, H, L, D), (N, H, S, D)
        hidden = self._hidden((*q.shape[:-1], k.shape[-2]), is_batch, key_padding_mask, attn_mask, q)
        weights = None
        if need_weights:
            weights = self.dropout(_weights(q, k, hidden, is_causal))  # (N, H, L, S)
            out = weights @ v
        else:
            out = attention(
                q, k, v, hidden, is_causal,
                dropout_p=self.dropout.p if self.training else 0.0, generator=self.dropout.generator,
            )  # fmt: skip
        out = self.out_proj(out.swapaxes(1, 2).flatten(2))  # (N, L, H, D) -> (N, L, E)
        found = weights if need_weights else None
        if found is not None and average_attn_weights:
            found = found.mean(1)
        if not is_batch:
            return out[0], None if found is None else found[0]
        return out if self.batch_first else out.swapaxes(0, 1), found

    def _check_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        for name, x in (("query", query), ("key", key), ("value", value)):
            if not isinstance(x, Tensor):
                raise TypeError(
                    f"MultiHeadAttention: {name} must be a Tensor, got a {type(x).__name__}; write Tensor(x)"
                )
        e, batch = self.embed_dim, 0 if self.batch_first else 1
        if not (
            query.ndim == key.ndim in (2, 3)
            and query.shape[-1] == key.shape[-1] == e
            and key.shape == value.shape
            and (query.ndim == 2 or query.shape[batch] == key.shape[batch])
        ):
            shapes = f"(N, L, {e}) and (N, S, {e})" if self.batch_first else f"(L, N, {e}) and (S, N, {e})"
            raise ValueError(
                f"MultiHeadAttention: query {query.shape}, key {key.shape} and value {value.shape} do not fit; "
                f"expected a query and equal shapes of key and value, {shapes}, or (L, {e}) and (S, {e})"
            )

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Queries, keys and values: each (..., E) -> (..., E)."""
        e = self.embed_dim
        if query is key is value:  # one product for all three
            return linear(query, self.in_proj_weight.T, self.in_proj_bias).split(e, -1)
        weights = self.in_proj_weight.split(e)
        biases: Any = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.split(e)
        return [linear(x, w.T, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)]

    def _heads(self, x: Tensor, is_batch: bool) -> Tensor:
        """(L, N, E), (N, L, E) or (L, E) -> (N, H, L, D)."""
        if not is_batch:
            x = x.expand_dims(0)
        elif not self.batch_first:
            x = x.swapaxes(0, 1)
        return x.reshape(*x.shape[:2], self.num_heads, self.embed_dim // self.num_heads).swapaxes(1, 2)

    def _hidden(
        self, scores: Shape, is_batch: bool, key_padding_mask: Mask, attn_mask: Mask, like: Tensor
    ) -> Tensor | None:
        """Both masks as one that broadcasts to the scores, (N, H, L, S), or None."""
        n, h, length, keys = scores
        found = []
        if key_padding_mask is not None:
            expected = ((n, keys) if is_batch else (keys,),)
            mask = _mask("key_padding_mask", key_padding_mask, like, expected)
            found.append(mask.reshape(n, 1, 1, keys))
        if attn_mask is not None:
            mask = _mask("attn_mask", attn_mask, like, ((length, keys), (n * h, length, keys)))
            found.append(mask if mask.ndim == 2 else mask.reshape(scores))
        if not found:
            return None
        return found[0] if len(found) == 1 else found[0] | found[1]


def _weights(q: Tensor, k: Tensor, hidden: Tensor | None, is_causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(D)), 0 where hidden: (N, H, L, D), (N, H, S, D) -> (N, H, L, S)."""
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    if is_causal:
        xp = q.backend.root
        queries, keys = (Tensor._wrap(xp.arange(n), xp) for n in scores.shape[-2:])
        later = keys > queries.expand_dims(-1)
        hidden = later if hidden is None else hidden | later
    if hidden is None:
        return scores.softmax()
    is_row_hidden = hidden.all(-1, keepdims=True)  # softmax would be nan
    return scores.masked_fill(hidden & ~is_row_hidden, -math.inf).softmax().masked_fill(hidden, 0)


def _mask(name: str, mask: Any, like: Tensor, expected: tuple[Shape, ...]) -> Tensor:
    """The mask as a Tensor. Raises TypeError if it is not bool, ValueError for another shape."""
    if not isinstance(mask, Tensor):
        mask = Tensor(mask, requires_grad=False, backend=like.backend.root)
    if mask.dtype.kind != "b":
        raise TypeError(
            f"MultiHeadAttention: {name} must be bool, got {mask.dtype}; True hides a key: write mask < 0 for a mask "
            "of 0 and -inf"
        )
    if mask.shape not in expected:
        shapes = " or ".join(map(str, expected))
        raise ValueError(f"MultiHeadAttention: {name} has shape {mask.shape}, expected {shapes}")
    found: Tensor = mask
    return found
