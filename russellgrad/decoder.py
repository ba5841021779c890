"""Decoder: the next token's logits of a Transformer, computed on arrays with a key-value cache.

For one token of a small model, creating Tensors takes longer than the arithmetic. Here the model's
formulas run on its parameters' arrays. Only the last token of each text goes through the last layer's second half,
because no other output of that layer is used.

Shapes: B texts, S cached positions of each text, T new tokens; H heads of queries and K of keys and values, of width D;
C = H D. In GPT-2's attention, K = H.
"""

from collections.abc import Callable
from typing import Any

from .autograd import no_grad
from .backend import Array, Backend
from .tensor import Tensor

ACTIVATIONS: dict[str, Callable[[Backend, Array], Array]] = {
    "leaky_relu": lambda xp, x: xp.leaky_relu(x, 0.01),
    "relu": lambda xp, x: xp.relu(x),
    "gelu": lambda xp, x: xp.gelu_value(x, "none"),
    "gelu_tanh": lambda xp, x: xp.gelu_value(x, "tanh"),
}


def _layer_norm(xp: Backend, norm: Any, x: Array) -> Array:
    return xp.layer_norm(x, norm.gamma.data, norm.beta.data, norm.eps)[0]


def _rms_norm(xp: Backend, norm: Any, x: Array) -> Array:
    return xp.rms_norm(x, norm.gamma.data, norm.eps)[0]


def _mlp(xp: Backend, layer: Any, x: Array) -> Array:
    hidden = ACTIVATIONS[layer.activation](xp, xp.linear(x, layer.w_in.data, layer.b_in.data))
    return xp.linear(hidden, layer.w_out.data, layer.b_out.data)


def _swiglu(xp: Backend, layer: Any, x: Array) -> Array:
    hidden = xp.swiglu(xp.linear(x, layer.w_gate.data, None), xp.linear(x, layer.w_up.data, None))
    return xp.linear(hidden, layer.w_down.data, None)


# The forward passes of the modules of a block on arrays, by class name: (..., C) -> (..., C).
_LAYERS: dict[str, Callable[[Backend, Any, Array], Array]] = {
    "LayerNorm": _layer_norm, "RMSNorm": _rms_norm, "FFLayer": _mlp, "SwiGLU": _swiglu,
}  # fmt: skip
FIRST_ROOM = 1024  # tokens in a new cache of keys and values; max_seq_len may be so many that memory does not hold them
_GPT2 = ["LayerNorm", "AttentionLayer", "LayerNorm", "FFLayer"]  # the parts of a block that `token_block` computes


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
        self._positions: Array | None = None  # of cached tokens, (B, 1, 1, max_seq_len); None: their index in the cache
        self._cache: list[Array] = []  # of each layer, keys and values (B, 2, K, >= S, D); S without `assign`
        self._rotations: dict[tuple[int, float], Array] = {}  # see `_rotation`
        self._in_token_block: list[bool] = []  # of each block, whether `token_block` computes its parts

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
            self._reserve()
        else:
            new, self._cache, self._n_tokens = [row[-most:] for row in rows], [], [0] * len(rows)
            self._rotations = {}
            self._padding, self._positions = self._padding_of(new)
            self._in_token_block = [
                [type(part).__name__ for part in (b.attention_norm, b.attention, b.feed_forward_norm, b.feed_forward)]
                == _GPT2
                for b in self.model.blocks
            ]
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
        if self._positions is not None:
            self._positions = xp.getitem(self._positions, xp.prepare_index((rows,), self._positions.shape))
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
            x = _LAYERS[type(model.final_norm).__name__](xp, model.final_norm, x)
        self.length += max(lengths)
        self._n_tokens = [before + n for before, n in zip(self._n_tokens, lengths, strict=True)]
        weight = xp.transpose(model.tokenizer.token_embedding.data) if model.output is None else model.output.data
        return xp.linear(xp.reshape(x, (len(new), x.shape[-1])), weight, None)

    def _embed(self, new: list[list[int]], lengths: list[int]) -> Array:
        """The token embeddings plus the positional encodings, (B, T, C)."""
        xp, tokenizer, longest = self.xp, self.model.tokenizer, max(lengths)
        ids = [row + [tokenizer.pad_token_id] * (longest - len(row)) for row in new]
        table = tokenizer.token_embedding.data
        if len(ids) == longest == 1:  # a slice takes less time than an array of ids
            tokens = xp.getitem(table, (None, slice(ids[0][0], ids[0][0] + 1)))
        else:
            tokens = xp.embedding(table, xp.asarray(ids, "int64"))
        if tokenizer.positional_encoding is None:
            return tokens
        return xp.add(tokens, self._rows_at_positions(tokenizer.positional_encoding.data, longest))

    def _rows_at_positions(self, table: Array, t: int) -> Array:
        """The rows of a table (max_seq_len, n) at the positions of T new tokens: (T, n), or (B, T, n)."""
        xp, first = self.xp, self._n_tokens
        if min(first) == max(first):
            return xp.getitem(table, (slice(first[0], first[0] + t),))
        return xp.embedding(table, xp.asarray([[n + i for i in range(t)] for n in first], "int64"))

    def _block(self, i: int, block: Any, x: Array, lengths: list[int] | None = None) -> Array:
        """(B, T, C) -> (B, T, C), as `Block.forward`; with lengths, of the last token of each row only, (B, 1, C)."""
        xp, attention = self.xp, block.attention
        if (
            self.length
            and x.shape[:2] == (1, 1)
            and self._padding is None
            and self._in_token_block[i]
            and hasattr(xp, "token_block")
        ):
            out = self._token_block(i, block, x)
            if out is not NotImplemented:
                return out
        normed = _LAYERS[type(block.attention_norm).__name__](xp, block.attention_norm, x)
        qkv = xp.linear(normed, attention.w_qkv.data, _data(attention.b_qkv))  # (B, T, (H + 2 K) D)
        n_q = attention.n_heads
        n_kv = getattr(attention, "n_kv_heads", n_q)
        if getattr(attention, "rotary", None) is not None:
            qkv = self._rotated(attention.rotary, qkv, n_q + n_kv)
        heads = self._heads(qkv, n_q + 2 * n_kv)
        b, _, t, d = heads.shape
        cached = self._extend(i, xp.reshape(xp.getitem(heads, (slice(None), slice(n_q, None))), (b, 2, n_kv, t, d)))
        if lengths is not None and t > 1:
            x, heads, t = self._last(x, lengths), self._heads(self._last(qkv, lengths), n_q + 2 * n_kv), 1
        mask = self._mask(getattr(attention, "window", None), t, cached.shape[3], lengths)
        q = xp.getitem(heads, (slice(None), slice(0, n_q)))  # (B, H, T, D)
        k, v = xp.getitem(cached, (slice(None), 0)), xp.getitem(cached, (slice(None), 1))  # (B, K, S + T, D)
        out = self._attention(q, k, v, mask)
        if attention.w_out is not None:
            out = xp.linear(out, attention.w_out.data, _data(attention.b_out))
        x = xp.add(x, out)
        normed = _LAYERS[type(block.feed_forward_norm).__name__](xp, block.feed_forward_norm, x)
        return xp.add(x, _LAYERS[type(block.feed_forward).__name__](xp, block.feed_forward, normed))

    def _attention(self, q: Array, k: Array, v: Array, mask: Array | None) -> Array:
        """Causal attention of queries (B, H, T, D) to keys and values (B, K, S + T, D): (B, T, C). If T > 1, S is 0."""
        xp, (b, n_q, t, d), n_kv = self.xp, q.shape, k.shape[1]
        if t == 1:
            if n_q > n_kv:  # the queries of a group see the same keys: they are rows
                q = xp.reshape(q, (b, n_kv, n_q // n_kv, d))
            return xp.reshape(xp.attention(q, k, v, mask, False, 0)[0], (b, 1, n_q * d))
        if n_q > n_kv:  # keys and values are broadcast over a group: (B, K, G, T, D)
            q = xp.reshape(q, (b, n_kv, n_q // n_kv, t, d))
            k, v = xp.expand_dims(k, 2), xp.expand_dims(v, 2)
            mask = None if mask is None else xp.expand_dims(mask, 2)
        out, _ = xp.attention(q, k, v, mask, True, 0)
        return xp.reshape(xp.transpose(xp.reshape(out, (b, n_q, t, d)), (0, 2, 1, 3)), (b, t, n_q * d))

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

    def _heads(self, qkv: Array, n: int) -> Array:
        """(B, T, n D) -> (B, n, T, D)."""
        xp, (b, t, c) = self.xp, qkv.shape
        if t == 1:
            return xp.reshape(qkv, (b, n, 1, c // n))
        return xp.transpose(xp.reshape(qkv, (b, t, n, c // n)), (0, 2, 1, 3))

    # --- Positions

    def _rotated(self, rotary: Any, qkv: Array, n: int) -> Array:
        """The packed heads, of which `Rotary` rotates the first n, those of queries and keys: same shape."""
        xp, half = self.xp, rotary.head_dim // 2
        heads = xp.reshape(qkv, (*qkv.shape[:2], -1, 2 * half))  # (B, T, H + 2 K, D)
        angles = self._rotation(rotary, qkv.shape[1])  # (T, 1, D) or (B, T, 1, D)
        cos, sin = xp.getitem(angles, (..., slice(0, half))), xp.getitem(angles, (..., slice(half, None)))
        every = slice(None)
        rotated = xp.rotary(xp.getitem(heads, (every, every, slice(0, n))), cos, sin)
        rest = xp.getitem(heads, (every, every, slice(n, None)))
        return xp.reshape(xp.concatenate([rotated, rest], 2), qkv.shape)

    def _rotation(self, rotary: Any, t: int) -> Array:
        """The cosines and sines of the angles of T new tokens, (T, 1, D) or (B, T, 1, D): those of `Rotary.forward`."""
        xp, most, key = self.xp, self.model.tokenizer.max_seq_len, (rotary.head_dim, rotary.base)
        if key not in self._rotations:
            with no_grad():
                angles = rotary.angles(Tensor(xp.arange(most), backend=xp)).data  # (max_seq_len, D / 2)
            parts = [xp.astype(part, self._dtype) for part in (xp.cos(angles), xp.sin(angles))]
            self._rotations[key] = xp.concatenate(parts, 1)
        return xp.expand_dims(self._rows_at_positions(self._rotations[key], t), -2)

    def _mask(self, window: int | None, t: int, end: int, lengths: list[int] | None) -> Array | None:
        """The keys that T queries do not see, (B or 1, 1, T or 1, S + T): padding, and keys before the window; or None.

        With lengths, there is one query in each row, the last of these new tokens.
        """
        xp, padding = self.xp, self._padding
        if padding is not None:
            padding = xp.getitem(padding, (..., slice(0, end)))
        if window is None or end <= window:
            return padding
        keys = xp.arange(end) if self._positions is None else xp.getitem(self._positions, (..., slice(0, end)))
        first = self._n_tokens if lengths is None else [n + k - 1 for n, k in zip(self._n_tokens, lengths, strict=True)]
        early = xp.asarray([[[[n + i - window] for i in range(t)]] for n in first], "int64")
        hidden = xp.less_equal(keys, early)
        return hidden if padding is None else xp.logical_or(hidden, padding)

    def _last(self, a: Array, lengths: list[int]) -> Array:
        """The last token of each row: (B, T, C) -> (B, 1, C)."""
        xp, (b, t, c) = self.xp, a.shape
        if min(lengths) == t:
            return xp.getitem(a, (slice(None), slice(t - 1, t)))
        index = xp.asarray([[row * t + n - 1] for row, n in enumerate(lengths)], "int64")
        return xp.embedding(xp.reshape(a, (b * t, c)), index)

    # --- The cache

    def _padding_of(self, rows: list[list[int]]) -> tuple[Array | None, Array | None]:
        """The mask of the padding on the right of shorter rows, and the position of each cached token.

        Both are (B, 1, 1, max_seq_len); None without padding. The positions of padding are not defined.
        """
        longest, most = max(map(len, rows)), self.model.tokenizer.max_seq_len
        if min(map(len, rows)) == longest:
            return None, None
        padding = [[[[len(row) <= i < longest for i in range(most)]]] for row in rows]
        positions = [[[[i if i < longest else i - longest + len(row) for i in range(most)]]] for row in rows]
        return self.xp.asarray(padding, "bool"), self.xp.asarray(positions, "int64")

    def _reserve(self) -> None:
        """Make room for another token: a full cache becomes twice as long, up to max_seq_len."""
        xp, most = self.xp, self.model.tokenizer.max_seq_len
        for i, cached in enumerate(self._cache):
            *before, room, d = cached.shape
            if room > self.length or not hasattr(xp, "assign"):
                return
            self._cache[i] = xp.zeros((*before, min(2 * room, most), d), xp.dtype(cached))
            xp.assign(xp.getitem(self._cache[i], (..., slice(0, room), slice(None))), cached)

    def _extend(self, i: int, new: Array) -> Array:
        """Add keys and values of T tokens, (B, 2, K, T, D), to layer i. Returns all of them, (B, 2, K, S + T, D)."""
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
            room = min(max(2 * t, FIRST_ROOM), most)
            self._cache.append(xp.zeros((*before, room, d), xp.dtype(new)))
        xp.assign(xp.getitem(self._cache[i], (..., slice(self.length, end), slice(None))), new)
        return xp.getitem(self._cache[i], (..., slice(0, end), slice(None)))
