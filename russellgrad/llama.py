"""The layers of Llama and Mistral, which replace those of GPT-2 in a `Block`: `Transformer.llama` builds the model.

A block is x = x + attention(norm(x)); x = x + feed_forward(norm(x)) in both:

    part            GPT-2                       Llama
    norm            LayerNorm                   RMSNorm: no mean, no shift
    feed_forward    FFLayer                     SwiGLU: a gate in place of the activation
    attention       AttentionLayer              GroupedQueryAttention: fewer heads of keys and values
    positions       added to the embeddings     Rotary: queries and keys are rotated in each attention layer

Touvron et al., "LLaMA", arXiv:2302.13971, section 2.2, and "Llama 2", arXiv:2307.09288, section 2.2.

Shapes: B texts of T tokens after S cached ones, C = hidden_size. H heads of queries and K heads of keys and values, of
width D = C / H. Each head of keys serves G = H / K heads of queries.
"""

import math

from . import init, rules
from .functional import attention, linear, rms_norm, swiglu
from .generation import LayerCache
from .layers.check import check_input, check_width, checked_eps, positive
from .layers.dropout import Dropout
from .module import Module
from .random import Generator
from .tensor import Tensor, apply


class RMSNorm(Module):
    """Root mean square normalization over the last axis, with a learned scale: x / sqrt(mean(x^2) + eps) * gamma.

    Zhang & Sennrich, arXiv:1910.07467, equation 4. In half precision, it computes in float32. `layers.RMSNorm` is the
    same with PyTorch's names.

    Args:
        dim: the length of the last axis.
        eps: added to the mean for numerical stability.

    Raises:
        TypeError: dim is not an int. ValueError: eps is negative, nan or infinite.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5) -> None:
        self.gamma = init.ones((dim,), label="gamma")
        self.eps = checked_eps("RMSNorm", eps)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim). Raises ValueError for a last axis of another length."""
        check_input(self, x, lambda shape: shape[-1:] == self.gamma.shape, f"(..., {self.gamma.size})")
        return rms_norm(x, self.gamma, self.eps)


class SwiGLU(Module):
    """Feed-forward layer with a gate: (silu(x w_gate) * (x w_up)) w_down, applied to each token.

    Shazeer, arXiv:2002.05202, equation 6. silu(x) = x sigmoid(x). With three matrices instead of two, a hidden layer of
    2/3 of the width has the same number of parameters.

    Args:
        proj_dim: the width of the hidden layer.
        hidden_size: C, the width of input and output.
        output_std: the standard deviation of the initial values of `w_down`.
        generator: the generator of the initial weights; by default `random.default_generator()`.

    Raises:
        TypeError: a width is not an int.
    """

    def __init__(
        self,
        proj_dim: int,
        hidden_size: int,
        *,
        output_std: float = init.GPT2_STD,
        generator: Generator | None = None,
    ) -> None:
        self.w_gate = init.normal((hidden_size, proj_dim), std=init.GPT2_STD, generator=generator, label="w_gate")
        self.w_up = init.normal((hidden_size, proj_dim), std=init.GPT2_STD, generator=generator, label="w_up")
        self.w_down = init.normal((proj_dim, hidden_size), std=output_std, generator=generator, label="w_down")

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden_size) -> (..., hidden_size). Raises ValueError for an input of another shape."""
        check_width(self, x, self.w_gate)
        return linear(swiglu(linear(x, self.w_gate), linear(x, self.w_up)), self.w_down)


class Rotary(Module):
    """Rotary position embedding: rotates each query and key by angles in proportion to its position.

    The product of a query and a key then depends on the distance between them, not on their positions. Su et al.,
    arXiv:2104.09864, equation 34; here, as in Hugging Face's Llama, elements i and i + D/2 are a pair, not 2i and 2i+1.
    The pair (a, b) becomes (a cos - b sin, b cos + a sin).

    Args:
        head_dim: D, the width of a head, which must be even.
        base: the pair i is rotated by base^(-2i/D) in each position.

    Raises:
        ValueError: head_dim is odd or not positive, or base is not positive. TypeError: head_dim is not an int.
    """

    def __init__(self, head_dim: int, base: float = 10000.0) -> None:
        positive("Rotary", head_dim=head_dim)
        if head_dim % 2:
            raise ValueError(f"Rotary: head_dim must be even, got {head_dim}; take another number of heads")
        if not base > 0:
            raise ValueError(f"Rotary: base must be positive, got {base}")
        self.head_dim = head_dim
        self.base = float(base)

    def angles(self, positions: Tensor) -> Tensor:
        """The angle of each pair at integer positions: (...) -> (..., D/2), in float64 if the backend has it.

        It raises no errors of its own.
        """
        xp = positions.backend
        dtype = "float64" if "float64" in xp.float_dtypes() else "float32"
        pairs = Tensor(xp.arange(self.head_dim // 2), backend=xp).astype(dtype)
        frequencies = self.base ** (pairs * -2 / self.head_dim)
        return positions.astype(dtype).expand_dims(-1) * frequencies

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotate queries or keys: x (..., T, D), positions int64, broadcast to (..., T) -> (..., T, D).

        Raises ValueError for a last axis of another length.
        """
        check_input(self, x, lambda shape: shape[-1:] == (self.head_dim,), f"(..., {self.head_dim})")
        angles = self.angles(positions)
        cos, sin = angles.cos().astype(x.dtype), angles.sin().astype(x.dtype)
        return apply(rules.rotary, x, cos=cos, sin=sin)


class GroupedQueryAttention(Module):
    """Causal self-attention in which groups of query heads share a head of keys and values: (B, T, C) -> (B, T, C).

    Ainslie et al., arXiv:2305.13245, section 2.2. With n_kv_heads = n_heads it is multi-head attention, with 1
    multi-query attention. The cache of keys and values is K / H of that of multi-head attention. The parameter `w_qkv`
    (C, (H + 2 K) D) concatenates the heads of queries, of keys and of values.

    Args:
        n_heads: H, the number of heads of queries; must divide hidden_size.
        n_kv_heads: K, the number of heads of keys and values; must divide n_heads.
        hidden_size: C, the length of the last axis of the input.
        rope_base: the base of a `Rotary` that rotates queries and keys; None without one, if the embeddings have
            positions.
        window: sliding-window attention (Mistral, Jiang et al., arXiv:2310.06825, section 2): a token sees the last
            `window` tokens, of which it is one. None: all tokens before it.
        output_projection, bias, dropout, output_std, generator: as in `AttentionLayer`.

    Raises:
        ValueError: n_heads does not divide hidden_size, n_kv_heads does not divide n_heads, a number is not positive,
            or there is a rope_base and D is odd. TypeError: a number is not an int.
    """

    def __init__(
        self,
        n_heads: int,
        n_kv_heads: int,
        hidden_size: int,
        *,
        rope_base: float | None = None,
        window: int | None = None,
        output_projection: bool = True,
        bias: bool = False,
        dropout: Dropout | None = None,
        output_std: float = init.GPT2_STD,
        generator: Generator | None = None,
    ) -> None:
        name = "GroupedQueryAttention"
        positive(name, n_heads=n_heads, n_kv_heads=n_kv_heads, hidden_size=hidden_size)
        if window is not None:
            positive(name, window=window)
        if hidden_size % n_heads or n_heads % n_kv_heads:
            raise ValueError(
                f"{name}: n_kv_heads={n_kv_heads} must divide n_heads={n_heads}, which must divide "
                f"hidden_size={hidden_size}"
            )
        head_dim = hidden_size // n_heads
        self.n_heads, self.n_kv_heads, self.window = n_heads, n_kv_heads, window
        self.rotary = None if rope_base is None else Rotary(head_dim, rope_base)
        packed = (hidden_size, (n_heads + 2 * n_kv_heads) * head_dim)
        self.w_qkv = init.normal(packed, std=init.GPT2_STD, generator=generator, label="w_qkv")
        self.b_qkv = init.zeros(packed[1:], label="b_qkv") if bias else None
        square = (hidden_size, hidden_size)
        self.w_out = (
            init.normal(square, std=output_std, generator=generator, label="w_out") if output_projection else None
        )
        self.b_out = init.zeros((hidden_size,), label="b_out") if bias and output_projection else None
        self.dropout = Dropout(0.0) if dropout is None else dropout

    def forward(self, x: Tensor, padding: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C).

        Args:
            x: the input.
            padding: bool (B, S + T), True at padding, which is hidden from all tokens and takes no position; None
                without padding.
            cache: the keys and values of the S tokens before x. The tokens of x see these tokens and are appended to
                the cache.

        Raises:
            ValueError: x has another shape.
        """
        self._check(x)
        n_cached = 0 if cache is None else cache.length
        positions = self._positions(n_cached + x.shape[-2], padding, x)  # (B or 1, S + T)
        q, k, v = self._heads(x, positions[:, n_cached:])
        if cache is not None:
            k, v = cache.extend(k, v)  # (B, K, S + T, D)
        mask = self._window_mask(positions, n_cached)
        if padding is not None:
            hidden = padding.expand_dims((1, 2, 3))  # (B, 1, 1, 1, S + T)
            mask = hidden if mask is None else mask | hidden
        groups = self._groups(q)  # (B, K, G, T, D): keys and values are broadcast over the G queries of a group
        out = attention(
            groups, k.expand_dims(2), v.expand_dims(2), mask=mask, causal=True, offset=n_cached,
            dropout_p=self.dropout.p if self.training else 0.0, generator=self.dropout.generator,
        )  # fmt: skip
        out = out.reshape(q.shape).swapaxes(1, 2).reshape(x.shape)  # (B, T, C)
        return out if self.w_out is None else linear(out, self.w_out, self.b_out)

    def weights(self, x: Tensor) -> Tensor:
        """The attention weights softmax(q k^T / sqrt(D)): (B, T, C) -> (B, H, T, T), query by key. Each row sums to 1.

        Raises ValueError for an x of another shape.
        """
        self._check(x)
        positions = self._positions(x.shape[-2], None, x)
        q, k, _ = self._heads(x, positions)
        scores = self._groups(q) @ k.expand_dims(2).swapaxes(-1, -2) / math.sqrt(q.shape[-1])  # (B, K, G, T, T)
        mask, later = self._window_mask(positions, 0), positions > positions.expand_dims(-1)
        scores = scores.masked_fill(later if mask is None else later | mask, -math.inf)
        return scores.softmax().reshape(*q.shape[:-1], x.shape[-2])

    def _check(self, x: Tensor) -> None:
        channels = self.w_qkv.shape[0]
        check_input(self, x, lambda shape: len(shape) == 3 and shape[2] == channels, f"(B, T, {channels})")

    def _positions(self, length: int, padding: Tensor | None, like: Tensor) -> Tensor:
        """The position of each token, the number of tokens before it that are not padding: (B or 1, S + T)."""
        if padding is None:
            return Tensor(like.backend.arange(length), backend=like.backend).expand_dims(0)
        tokens = (~padding).astype("int64")
        return tokens.cumsum(axis=1) - tokens

    def _heads(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, C) -> queries (B, H, T, D), keys (B, K, T, D) and values (B, K, T, D)."""
        n_q, n_kv = self.n_heads, self.n_kv_heads
        qkv = linear(x, self.w_qkv, self.b_qkv)  # (B, T, (H + 2 K) D)
        heads = qkv.reshape(*x.shape[:-1], n_q + 2 * n_kv, -1).swapaxes(1, 2)  # (B, H + 2 K, T, D)
        qk, v = heads.split([n_q + n_kv, n_kv], axis=1)
        if self.rotary is not None:
            qk = self.rotary(qk, positions.expand_dims(1))  # positions (B or 1, 1, T)
        q, k = qk.split([n_q, n_kv], axis=1)
        return q, k, v

    def _groups(self, q: Tensor) -> Tensor:
        """(B, H, T, D) -> (B, K, G, T, D)."""
        return q.reshape(q.shape[0], self.n_kv_heads, -1, *q.shape[2:])

    def _window_mask(self, positions: Tensor, n_cached: int) -> Tensor | None:
        """True at keys before a query's window: (B or 1, 1, 1, T, S + T); None if the window holds all of them."""
        if self.window is None or positions.shape[-1] <= self.window:
            return None
        keys, queries = positions.expand_dims((1, 2, 3)), positions[:, n_cached:].expand_dims((1, 2, 4))
        return keys <= queries - self.window
