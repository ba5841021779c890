"""Fused attention in NumPy: in blocks of queries, on several threads, without an array of all weights."""

from collections.abc import Callable, Sequence
from itertools import product
from math import inf, prod
from math import sqrt as _sqrt
from typing import Any, TypeAlias

import numpy as np

from . import host
from .cpu import MIN_PART_TIME, run_parallel
from .formulas import AttentionDropout
from .numpy_blocks import FLOP_TIME, Array, block_length, is_half, row_max, row_sums

# Attention (Vaswani et al., "Attention is all you need", arXiv:1706.03762, equation 1), in blocks of queries. Weights
# are not stored. Backward recomputes them from each row's logsumexp (Dao et al., "FlashAttention", arXiv:2205.14135,
# algorithm 4; here a block has all its keys at once). Causal attention skips the keys after a block's last query.


def attention(
    q: Array, k: Array, v: Array, mask: Array | None, causal: bool, offset: int, dropout: AttentionDropout | None = None
) -> Any:
    """The output, and the logsumexp of each query's scores, which is inf if all keys are hidden."""
    if is_half(q):
        return NotImplemented
    if dropout is None and takes_one_query(q, k, v, causal, offset):
        return one_query(q, k, v, mask, causal, offset)
    heads = _AttentionOperands(q, k, v, mask, causal, offset)
    out = np.zeros_like(heads.q, shape=(*heads.q.shape[:-1], v.shape[-1]))  # with the memory layout of q
    log_sum = np.full((*heads.q.shape[:-1], 1), inf, q.dtype)

    def one(queries: _BlockIndex, keys: _BlockIndex) -> None:
        weights = heads.scores(queries, keys)
        top = row_max(weights)
        np.maximum(top, np.finfo(top.dtype).min, out=top)  # if all keys are hidden, the weights are 0, not nan
        weights -= top
        np.exp(weights, out=weights)
        total = row_sums(weights)
        hidden = total == 0
        total += hidden
        if dropout is not None:
            weights *= heads.dropout_mask(queries, keys, dropout)
        np.matmul(weights, heads.v[keys], out=out[queries])
        out[queries] /= total
        log_sum[queries] = np.where(hidden, inf, np.log(total) + top)

    heads.run_in_blocks(one, products=2)
    return heads.merge(out), heads.merge(log_sum)


def attention_backward(
    g: Array,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    log_sum: Array,
    mask: Array | None,
    causal: bool,
    offset: int,
    needs: Sequence[bool],
    dropout: AttentionDropout | None = None,
) -> Any:
    """The gradients have all batch axes, including those along which an operand was broadcast."""
    if is_half(q) or prod(out.shape[:-1]) * k.shape[-2] <= _FEW_SCORES:
        return NotImplemented
    heads = _AttentionOperands(q, k, v, mask, causal, offset)
    g, out, log_sum = heads.split(g), heads.split(out), heads.split(log_sum)
    gq, gk, gv = (
        np.zeros_like(operand) if need else None
        for operand, need in zip((heads.q, heads.k, heads.v), needs, strict=True)
    )

    def one(queries: _BlockIndex, keys: _BlockIndex) -> None:
        weights = heads.scores(queries, keys)
        weights -= log_sum[queries]
        np.exp(weights, out=weights)
        drop = None if dropout is None else heads.dropout_mask(queries, keys, dropout)
        if gv is not None:
            gv[keys] += np.swapaxes(weights if drop is None else weights * drop, -1, -2) @ g[queries]
        if gq is None and gk is None:
            return
        g_scores = g[queries] @ np.swapaxes(heads.v[keys], -1, -2)
        if drop is not None:
            g_scores *= drop
        # Softmax's backward subtracts the sum of g_weights * weights over each row, which equals that of g * out, also
        # with dropout: g_weights = (g v^T) * drop, and out = (weights * drop) v.
        g_scores -= row_sums(g[queries] * out[queries])
        weights *= heads.scale
        g_scores *= weights
        if gq is not None:
            np.matmul(g_scores, heads.k[keys], out=gq[queries])
        if gk is not None:
            gk[keys] += np.swapaxes(g_scores, -1, -2) @ heads.q[queries]

    heads.run_in_blocks(one, products=5)
    return tuple(None if gradient is None else heads.merge(gradient) for gradient in (gq, gk, gv))


_FEW_SCORES = 4096  # for which preparing the blocks takes longer than all of the formula


def takes_one_query(q: Array, k: Array, v: Array, causal: bool, offset: int) -> bool:
    """Whether `one_query` takes the operands: one query for each head, as in generation, that sees a key.

    Also a few queries that see all keys, as in generation with grouped queries.
    """
    if causal and (offset < 0 or q.shape[-2] > 1):
        return False
    return (
        q.shape[-2] <= _FEW_QUERIES
        and q.ndim > 2
        and q.shape[:-2] == k.shape[:-2] == v.shape[:-2]
        and q.size > 0 < k.size
    )


_FEW_QUERIES = 8  # for more, blocks are faster
_READ_TIME = 2e-4  # approximate time of both products for one element of the keys, in microseconds
_LIMITS = {np.dtype(dtype): np.finfo(dtype) for dtype in (np.float32, np.float64)}


def _softmax_of(scores: Array) -> Array:
    """Softmax of each row, in place, 0 if all are -inf. Returns the logsumexp, (..., 1), inf if all are -inf."""
    limits = _LIMITS[scores.dtype]
    top = np.maximum.reduce(scores, axis=-1, keepdims=True, initial=limits.min)
    scores -= top
    np.exp(scores, out=scores)
    # At least 1, to which `tiny` adds nothing; if all keys are hidden, the weights are 0.
    total = np.add.reduce(scores, axis=-1, keepdims=True, initial=limits.tiny)
    scores /= total
    log_sum: Array = np.log(total)
    log_sum += top
    log_sum[total < 1] = inf
    return log_sum


def one_query(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    causal: bool,
    offset: int,
    softmax_of: Callable[[Array], Array] = _softmax_of,
) -> tuple[Array, Array]:
    """As `attention`, for one query for each head: reading the keys and values takes the time, and no blocks help."""
    *batch, n_keys, width = k.shape
    if mask is not None:
        mask = np.broadcast_to(mask, (*q.shape[:-1], n_keys))
    if causal and offset + 1 < n_keys:
        seen = slice(0, offset + 1)
        k, v, mask = k[..., seen, :], v[..., seen, :], None if mask is None else mask[..., seen]
    scale = 1.0 / _sqrt(width)

    def formula(q: Array, k: Array, v: Array, mask: Array | None) -> tuple[Array, Array]:
        weights = np.matmul(q * scale, k.swapaxes(-1, -2), order="C")
        if mask is not None:
            np.copyto(weights, -inf, where=mask)
        log_sum = softmax_of(weights)
        return np.matmul(weights, v), log_sum

    axis = next((i for i, n in enumerate(batch) if n > 1), 0)  # is split
    if k.size * _READ_TIME < 2 * MIN_PART_TIME or axis:
        return formula(q, k, v, mask)
    out, log_sum = np.empty((*q.shape[:-1], v.shape[-1]), q.dtype), np.empty((*q.shape[:-1], 1), q.dtype)

    def part(start: int, stop: int) -> None:
        rows = slice(start, stop)
        out[rows], log_sum[rows] = formula(q[rows], k[rows], v[rows], None if mask is None else mask[rows])

    run_parallel(len(q), k.size * _READ_TIME, part)
    return out, log_sum


_BlockIndex: TypeAlias = tuple[slice, slice, slice]  # slices of the axes B, H, and L or S


class _AttentionOperands:
    """The operands of attention, reshaped to (B, H, L or S, width), and the blocks in which they are processed."""

    query_block_size = 64

    def __init__(self, q: Array, k: Array, v: Array, mask: Array | None, causal: bool, offset: int) -> None:
        self.batch = q.shape[:-2]
        if not self.batch == k.shape[:-2] == v.shape[:-2]:
            self.batch = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
        self.q, self.k, self.v = self.split(q), self.split(k), self.split(v)
        self.scale = 1.0 / _sqrt(q.shape[-1])
        scores = (*self.batch, q.shape[-2], k.shape[-2])
        self.mask = None if mask is None else self.split(np.broadcast_to(mask, scores))
        self.offset = offset if causal else k.shape[-2]
        positions = np.arange(min(self.query_block_size, q.shape[-2]))
        self.later = positions >= positions[:, None]  # (query, key - 1): whether the key comes after the query

    def split(self, a: Array) -> Array:
        """(..., n, width) -> (B, H, n, width), a view if possible."""
        full = a if a.shape[:-2] == self.batch else np.broadcast_to(a, (*self.batch, *a.shape[-2:]))
        if full.ndim < 4:
            return full[(None,) * (4 - full.ndim)]
        return full.reshape(prod(full.shape[:-3]), *full.shape[-3:])

    def merge(self, a: Array) -> Array:
        """(B, H, n, width) -> (..., n, width)."""
        return a.reshape(*self.batch, *a.shape[-2:])

    def scores(self, queries: _BlockIndex, keys: _BlockIndex) -> Array:
        """q k^T / sqrt(d) of a block, -inf at hidden keys. Query i sees the keys up to i + offset."""
        scores: Array = (self.q[queries] * self.scale) @ np.swapaxes(self.k[keys], -1, -2)
        if self.mask is not None:
            np.copyto(scores, -inf, where=self.mask[(*queries, keys[2])])
        first_hidden = queries[2].start + self.offset + 1  # the first key that is hidden from the block's first query
        tail = scores[..., max(first_hidden, 0) :]
        if tail.shape[-1]:
            skip = max(-first_hidden, 0)
            np.copyto(tail, -inf, where=self.later[: tail.shape[-2], skip : skip + tail.shape[-1]])
        return scores

    def dropout_mask(self, queries: _BlockIndex, keys: _BlockIndex, dropout: AttentionDropout) -> Array:
        """A block of the mask of dropout of the weights (B, H, L, S): 0 with probability p, else 1 / (1 - p).

        It draws all keys of the block's queries, which are consecutive numbers: within a head, or in all heads of the
        block if that has all queries.
        """
        key, p, dtype = dropout
        seed, low, high, first = map(int, key)
        (_, n_heads, n_queries, _), n_keys = self.q.shape, self.k.shape[2]
        b, h, i = (range(n)[axis] for axis, n in zip(queries, self.q.shape, strict=False))
        mask = np.empty((len(b), len(h), len(i), keys[2].stop), dtype)
        parts = [(b[0], h[0])] if len(i) == n_queries else [*product(b, h)]
        for part, (batch, head) in zip(mask.reshape(len(parts), -1, *mask.shape[2:]), parts, strict=True):
            start = first + ((batch * n_heads + head) * n_queries + i[0]) * n_keys
            drawn = host.uniform((len(part), len(i), n_keys), seed, high << 64 | low, start)[..., keys[2]]
            np.greater_equal(drawn.astype(dtype), p, out=part)
        mask *= 1 / (1 - p)
        return mask.astype(self.q.dtype, copy=False)

    def run_in_blocks(self, one: Callable[[_BlockIndex, _BlockIndex], None], products: int) -> None:
        """Call one(queries, keys) for all blocks. Blocks of one head run in sequence, heads in several threads.

        `products` is the number of matrix products in `one`.
        """
        (n_batch, n_heads, n_queries, width), n_keys = self.q.shape, self.k.shape[2]
        score_rows = min(n_queries, self.query_block_size) * n_keys  # of one head
        h_step = block_length(n_heads, score_rows) or 1
        b_step = block_length(n_batch, n_heads * score_rows) or 1
        units = [
            (slice(b, b + b_step), slice(h, h + h_step))
            for b in range(0, n_batch, b_step)
            for h in range(0, n_heads, h_step)
        ]

        def part(start: int, stop: int) -> None:
            for batch_and_heads in units[start:stop]:
                for i in range(0, n_queries, self.query_block_size):
                    end = min(i + self.query_block_size, n_queries)
                    seen = min(end + self.offset, n_keys)
                    if seen > 0:
                        one((*batch_and_heads, slice(i, end)), (*batch_and_heads, slice(0, seen)))

        run_parallel(len(units), 2 * products * n_batch * n_heads * n_queries * n_keys * width * FLOP_TIME, part)
