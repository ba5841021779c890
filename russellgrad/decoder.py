"""Decoder: the next token's logits of a Transformer, computed on arrays with a preallocated key-value cache.

For one token of a small model, creating Tensors takes longer than the arithmetic. Here the model's
formulas run on its parameters' arrays. Only the last token of each text goes through the last layer's second half,
because no other output of that layer is used.

Shapes: B texts, S cached positions of each text, T new tokens; H heads of width D, C = H D.
"""

from collections.abc import Callable
from typing import Any

from .backend import Array, Backend

ACTIVATIONS: dict[str, Callable[[Backend, Array], Array]] = {
    "leaky_relu": lambda xp, x: xp.leaky_relu(x, 0.01),
    "relu": lambda xp, x: xp.relu(x),
    "gelu": lambda xp, x: xp.gelu_value(x, "none"),
    "gelu_tanh": lambda xp, x: xp.gelu_value(x, "tanh"),
}


def _data(parameter: Any) -> Array | None:
    """The array of a parameter that a layer may lack."""
    return None if parameter is None else parameter.data


class Decoder:
    """Computes the next token's logits for texts that grow by one token at a time; see `Transformer.make_decoder`.

    The logits are those of `Transformer.forward` in evaluation mode, within rounding. Parameters are read at each step.

    Args:
        model: a Transformer whose parameters are on one backend and have one dtype.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.xp: Backend = model.tokenizer.token_embedding.backend
        self._dtype = model.tokenizer.token_embedding.dtype
        self.length = 0  # cached positions of each text, S; as many as max_seq_len when the cache is full
        self._n_tokens: list[int] = []  # of each text, without padding
        self._padding: Array | None = None  # (B, 1, 1, max_seq_len) bool, True at padding; None without padding
        self._cache: list[Array] = []  # of each layer, keys and values (B, 2, H, max_seq_len, D); S without `assign`

    def next_logits(self, rows: list[list[int]]) -> list[list[float]]:
        """The logits (vocab_size) of each row's next character. Each row is a text's tokens so far.

        Each row has one token more than in the last call, and only that token is computed. When the cache is full, it
        is filled again from the last max_seq_len tokens of each row, because the position of every token changes, and
        so do all keys and values. It is also filled again after the model was moved to another backend or dtype.
        """
        tokenizer, table = self.model.tokenizer, self.model.tokenizer.token_embedding
        most = tokenizer.max_seq_len
        if self.length == most or table.backend is not self.xp or table.dtype != self._dtype:
            self.length, self.xp, self._dtype = 0, table.backend, table.dtype
        if self.length:
            new = [row[-1:] for row in rows]
        else:
            new, self._cache, self._n_tokens = [row[-most:] for row in rows], [], [0] * len(rows)
            self._padding = self._padding_of(new)
        logits = self._forward(new)
        return [row[: tokenizer.vocab_size] for row in self.xp.to_host(logits).tolist()]  # without the padding class

    def select(self, rows: list[int]) -> None:
        """Keep only these rows of the last `next_logits`, in this order."""
        if rows == list(range(len(self._n_tokens))):
            return
        xp = self.xp
        for i, cached in enumerate(self._cache):
            self._cache[i] = xp.getitem(cached, xp.prepare_index((rows,), cached.shape))
        if self._padding is not None:
            self._padding = xp.getitem(self._padding, xp.prepare_index((rows,), self._padding.shape))
        self._n_tokens = [self._n_tokens[row] for row in rows]

    # --- The forward pass

    def _forward(self, new: list[list[int]]) -> Array:
        """The logits of each row's last token, (B, vocab_size + 1), after these new tokens."""
        xp, model, lengths = self.xp, self.model, [len(row) for row in new]
        x = self._embed(new, lengths)
        *blocks, last = model.blocks
        for i, block in enumerate(blocks):
            x = self._block(i, block, x)
        x = self._block(len(blocks), last, x, lengths)
        if model.final_norm is not None:
            x = self._normalized(model.final_norm, x)
        self.length += max(lengths)
        self._n_tokens = [before + n for before, n in zip(self._n_tokens, lengths, strict=True)]
        return xp.linear(
            xp.reshape(x, (len(new), x.shape[-1])), xp.transpose(model.tokenizer.token_embedding.data), None
        )

    def _embed(self, new: list[list[int]], lengths: list[int]) -> Array:
        """The token embeddings plus the positional encodings, (B, T, C)."""
        xp, tokenizer, longest = self.xp, self.model.tokenizer, max(lengths)
        ids = [row + [tokenizer.pad_token_id] * (longest - len(row)) for row in new]
        positions, first = tokenizer.positional_encoding.data, self._n_tokens
        if min(first) == max(first):
            encoding = xp.getitem(positions, (slice(first[0], first[0] + longest),))
        else:
            encoding = xp.embedding(positions, xp.asarray([[n + i for i in range(longest)] for n in first], "int64"))
        table = tokenizer.token_embedding.data
        if len(ids) == longest == 1:  # a slice takes less time than an array of ids
            return xp.add(xp.getitem(table, (None, slice(ids[0][0], ids[0][0] + 1))), encoding)
        return xp.add(xp.embedding(table, xp.asarray(ids, "int64")), encoding)

    def _block(self, i: int, block: Any, x: Array, lengths: list[int] | None = None) -> Array:
        """(B, T, C) -> (B, T, C), as `Block.forward`; with lengths, of the last token of each row only, (B, 1, C)."""
        xp, attention, feed_forward = self.xp, block.attention, block.feed_forward
        if self.length and x.shape[:2] == (1, 1) and self._padding is None and hasattr(xp, "token_block"):
            out = self._token_block(i, block, x)
            if out is not NotImplemented:
                return out
        qkv = xp.linear(self._normalized(block.attention_norm, x), attention.w_qkv.data, _data(attention.b_qkv))
        heads = self._heads(qkv, attention.n_heads)
        cached = self._extend(i, xp.getitem(heads, (slice(None), slice(1, 3))))  # (B, 2, H, S + T, D)
        if lengths is not None and x.shape[1] > 1:
            x, heads = self._last(x, lengths), self._heads(self._last(qkv, lengths), attention.n_heads)
        padding = self._padding
        if padding is not None:
            padding = xp.getitem(padding, (..., slice(0, cached.shape[3])))
        q, k, v = (
            xp.getitem(heads, (slice(None), 0)),
            xp.getitem(cached, (slice(None), 0)),
            xp.getitem(cached, (slice(None), 1)),
        )
        out, _ = xp.attention(q, k, v, padding, x.shape[1] > 1, 0)  # (B, H, T, D)
        if x.shape[1] > 1:
            out = xp.transpose(out, (0, 2, 1, 3))
        out = xp.reshape(out, x.shape)
        if attention.w_out is not None:
            out = xp.linear(out, attention.w_out.data, _data(attention.b_out))
        x = xp.add(x, out)
        hidden = xp.linear(self._normalized(block.feed_forward_norm, x), feed_forward.w_in.data, feed_forward.b_in.data)
        hidden = ACTIVATIONS[feed_forward.activation](xp, hidden)
        return xp.add(x, xp.linear(hidden, feed_forward.w_out.data, feed_forward.b_out.data))

    def _token_block(self, i: int, block: Any, x: Array) -> Array:
        """As `_block`, for one text, in one primitive: the calls of a small model take longer than its arithmetic.

        NotImplemented for a block that the primitive does not compute: it has no biases in the attention.
        """
        attention, ff = block.attention, block.feed_forward
        if attention.b_qkv is not None or attention.b_out is not None:
            return NotImplemented
        norms = [
            (norm.gamma.data, norm.beta.data, norm.eps) for norm in (block.attention_norm, block.feed_forward_norm)
        ]
        tensors = (attention.w_qkv, attention.w_out, ff.w_in, ff.b_in, ff.w_out, ff.b_out)
        weights = [_data(tensor) for tensor in tensors]
        return self.xp.token_block(x, norms, weights, ff.activation, self._cache[i], self.length)

    def _heads(self, qkv: Array, n_heads: int) -> Array:
        """(B, T, 3 C) -> queries, keys and values, (B, 3, H, T, D)."""
        xp, (b, t, c) = self.xp, qkv.shape
        if t == 1:
            return xp.reshape(qkv, (b, 3, n_heads, 1, c // (3 * n_heads)))
        return xp.transpose(xp.reshape(qkv, (b, t, 3, n_heads, c // (3 * n_heads))), (0, 2, 3, 1, 4))

    def _normalized(self, norm: Any, x: Array) -> Array:
        return self.xp.layer_norm(x, norm.gamma.data, norm.beta.data, norm.eps)[0]

    def _last(self, a: Array, lengths: list[int]) -> Array:
        """The last token of each row: (B, T, C) -> (B, 1, C)."""
        xp, (b, t, c) = self.xp, a.shape
        if min(lengths) == t:
            return xp.getitem(a, (slice(None), slice(t - 1, t)))
        index = xp.asarray([[row * t + n - 1] for row, n in enumerate(lengths)], "int64")
        return xp.embedding(xp.reshape(a, (b * t, c)), index)

    # --- The cache

    def _padding_of(self, rows: list[list[int]]) -> Array | None:
        """The mask of the padding on the right of shorter rows, (B, 1, 1, max_seq_len); None if there is none."""
        longest, most = max(map(len, rows)), self.model.tokenizer.max_seq_len
        if min(map(len, rows)) == longest:
            return None
        return self.xp.asarray([[[[len(row) <= i < longest for i in range(most)]]] for row in rows], "bool")

    def _extend(self, i: int, new: Array) -> Array:
        """Add keys and values of T tokens, (B, 2, H, T, D), to layer i. Returns all of them, (B, 2, H, S + T, D)."""
        xp, most, (*before, t, d) = self.xp, self.model.tokenizer.max_seq_len, new.shape
        end = self.length + t
        if t == most:  # the cache is full: the next call fills it again
            return new
        if not hasattr(xp, "assign"):
            if self.length:
                new = xp.concatenate([self._cache[i], new], 3)
                self._cache[i] = new
            else:
                self._cache.append(new)
            return new
        if not self.length:
            self._cache.append(xp.zeros((*before, most, d), xp.dtype(new)))
        xp.assign(xp.getitem(self._cache[i], (..., slice(self.length, end), slice(None))), new)
        return xp.getitem(self._cache[i], (..., slice(0, end), slice(None)))
