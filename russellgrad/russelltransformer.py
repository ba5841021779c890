"""Transformer: a decoder-only language model, and its layers.

References: Vaswani et al., arXiv:1706.03762; pre-norm: Xiong et al., arXiv:2002.04745; output projection tied to the
token embedding: Press & Wolf, arXiv:1608.05859.

Shapes: B texts of T tokens, C = embed_dim = hidden_size, H heads of width D = C / H.
"""

import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from inspect import isfunction, signature
from pathlib import Path
from types import ModuleType
from typing import Any, Self, TypeAlias, TypeVar

from . import apply, generation, hub, init, interchange
from .autograd import no_grad
from .backend import Backend, DType, Shape
from .decoder import ACTIVATIONS, Decoder
from .functional import attention, attention_qkvpacked, layer_norm, linear
from .generation import KVCache, LayerCache, Sampling
from .layers import Dropout
from .layers.check import check_width, checked_eps, positive
from .llama import GroupedQueryAttention, RMSNorm, Rotary, SwiGLU
from .module import Module
from .random import DROPOUT, Generator
from .rules import check_probability
from .tensor import Tensor
from .tokenizer import Tokenizer

Prompt = TypeVar("Prompt", str, list[str])

_STD = init.GPT2_STD

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": lambda x: x.leaky_relu(),
    "relu": lambda x: x.relu(),
    "gelu": lambda x: x.gelu(),
    "gelu_tanh": lambda x: x.gelu("tanh"),
}


def _normal(shape: Shape, std: float, generator: Generator | None, label: str) -> Tensor:
    return init.normal(shape, std=std, generator=generator, label=label)


class LayerNorm(Module):
    """Layer normalization over the last axis, with learned scale `gamma` and shift `beta`.

    Ba et al., arXiv:1607.06450.

    Args:
        dim: the length of the last axis.
        eps: added to the variance for numerical stability.

    Raises:
        TypeError: dim is not an int. ValueError: eps is negative, nan or infinite.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5) -> None:
        self.gamma = init.ones((dim,), label="gamma")
        self.beta = init.zeros((dim,), label="beta")
        self.eps = checked_eps("LayerNorm", eps)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim). Raises ValueError for a last axis of another length."""
        return layer_norm(x, self.gamma, self.beta, self.eps)


class AttentionHead(Module):
    """One head of causal self-attention, written out step by step: (B, T, hidden_size) -> (B, T, d_v).

    Vaswani et al., arXiv:1706.03762, section 3.2.1. This class is for reading: the model uses `AttentionLayer`, which
    computes all heads at once.

    Args:
        d_kq: the length of keys and queries.
        d_v: the length of values.
        hidden_size: C, the length of the last axis of the input.
        generator: the generator of the initial weights; by default `random.default_generator()`.

    Raises:
        TypeError: a length is not an int.
    """

    def __init__(self, d_kq: int, d_v: int, hidden_size: int, *, generator: Generator | None = None) -> None:
        self.w_q = _normal((hidden_size, d_kq), _STD, generator, "w_q")
        self.w_k = _normal((hidden_size, d_kq), _STD, generator, "w_k")
        self.w_v = _normal((hidden_size, d_v), _STD, generator, "w_v")

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, T, hidden_size) -> (B, T, d_v).

        `padding` (B, T) is True at padding, which is hidden from all tokens. A row must not begin with padding. Raises
        ValueError for an input of another shape.
        """
        q, k, v = x @ self.w_q, x @ self.w_k, x @ self.w_v  # (B, T, d_kq), (B, T, d_kq), (B, T, d_v)
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])  # (B, T, T): query by key
        scores = scores.masked_fill(_causal_mask(scores.shape[-1], x), -math.inf)
        if padding is not None:
            scores = scores.masked_fill(padding.expand_dims(-2), -math.inf)
        return scores.softmax() @ v


def _causal_mask(length: int, like: Tensor) -> Tensor:
    """(T, T) bool, True where the key comes after the query; on the backend of `like`."""
    positions = Tensor(like.backend.arange(length), backend=like.backend)
    return positions > positions.expand_dims(-1)


class AttentionLayer(Module):
    """Causal multi-head self-attention: (B, T, hidden_size) -> (B, T, hidden_size).

    The parameter `w_qkv` (C, 3 C) concatenates the weights of queries, keys and values, so one product computes all
    three. In each of them, head h has the columns h D to (h + 1) D. The output concatenates the outputs of n_heads
    `AttentionHead`s.

    Args:
        n_heads: the number of heads; must divide hidden_size.
        hidden_size: C, the length of the last axis of the input.
        output_projection: whether to multiply the output by a learned matrix (C, C), which mixes the heads.
        bias: whether both products add a learned bias, `b_qkv` (3 C) and `b_out` (C), initially 0, as in GPT-2.
        dropout: applied to the attention weights in training mode; by default without dropout.
        output_std: the standard deviation of the output projection's initial values.
        generator: the generator of the initial weights; by default `random.default_generator()`.

    Raises:
        ValueError: n_heads does not divide hidden_size.
    """

    def __init__(
        self,
        n_heads: int,
        hidden_size: int,
        *,
        output_projection: bool = False,
        bias: bool = False,
        dropout: Dropout | None = None,
        output_std: float = _STD,
        generator: Generator | None = None,
    ) -> None:
        if n_heads < 1 or hidden_size % n_heads:
            raise ValueError(f"AttentionLayer: n_heads={n_heads} does not divide hidden_size={hidden_size}")
        self.n_heads = n_heads
        square = (hidden_size, hidden_size)
        # Drawn as three matrices, so that a seed gives the same weights as for three separate parameters.
        parts = [_normal(square, _STD, generator, "") for _ in range(3)]
        packed = parts[0].backend.concatenate([part.data for part in parts], 1)
        self.w_qkv = Tensor(packed, requires_grad=True, label="w_qkv")
        self.b_qkv = init.zeros((3 * hidden_size,), label="b_qkv") if bias else None
        self.w_out = _normal(square, output_std, generator, "w_out") if output_projection else None
        self.b_out = init.zeros((hidden_size,), label="b_out") if bias and output_projection else None
        self.dropout = Dropout(0.0) if dropout is None else dropout

    def forward(self, x: Tensor, padding: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C).

        Args:
            x: the input.
            padding: bool (B, T), True at padding, which is hidden from all tokens; None without padding.
            cache: the keys and values of the S tokens before x. The tokens of x see these tokens and are appended to
                the cache. `padding` is then (B, S + T).

        Raises:
            ValueError: x has another number of channels than hidden_size.
        """
        check_width(self, x, self.w_qkv)
        mask = None if padding is None else padding.expand_dims((-3, -2))  # (B, 1, 1, S + T)
        qkv = linear(x, self.w_qkv, self.b_qkv)  # (B, T, 3 C)
        p, generator = self.dropout.p if self.training else 0.0, self.dropout.generator
        if cache is None:
            out = attention_qkvpacked(qkv, self.n_heads, mask, True, dropout_p=p, generator=generator)  # (B, T, C)
        else:
            q, k, v = self._heads(qkv)  # (B, H, T, D)
            k, v = cache.extend(k, v)  # (B, H, S + T, D)
            offset = k.shape[-2] - q.shape[-2]
            heads = attention(q, k, v, mask, True, offset, dropout_p=p, generator=generator)  # (B, H, T, D)
            out = heads.swapaxes(-3, -2).reshape(x.shape)  # (B, T, C)
        return out if self.w_out is None else linear(out, self.w_out, self.b_out)

    def weights(self, x: Tensor) -> Tensor:
        """The attention weights softmax(q k^T / sqrt(D)): (B, T, C) -> (B, H, T, T), query by key. Each row sums to 1.

        `forward` does not compute this array; its fused attention uses less memory. Raises ValueError for an x with
        another number of channels than hidden_size.
        """
        check_width(self, x, self.w_qkv)
        q, k, _ = self._heads(linear(x, self.w_qkv, self.b_qkv))  # (B, H, T, D)
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
        return scores.masked_fill(_causal_mask(x.shape[-2], x), -math.inf).softmax()

    def _heads(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """(B, T, 3 C) -> queries, keys and values, each (B, H, T, D)."""
        separate = qkv.reshape(*qkv.shape[:-1], 3, self.n_heads, -1)  # (B, T, 3, H, D)
        return tuple(separate[..., i, :, :].swapaxes(-3, -2) for i in range(3))


class FFLayer(Module):
    """Feed-forward layer: two linear maps with an activation between them, applied to each token.

    Args:
        proj_dim: the width of the hidden layer.
        hidden_size: C, the width of input and output.
        activation: "leaky_relu", "relu", "gelu" or "gelu_tanh".
        output_std: the standard deviation of the second matrix's initial values.
        generator: the generator of the initial weights; by default `random.default_generator()`.

    Raises:
        ValueError: an unknown activation.
    """

    def __init__(
        self,
        proj_dim: int,
        hidden_size: int,
        *,
        activation: str = "leaky_relu",
        output_std: float = _STD,
        generator: Generator | None = None,
    ) -> None:
        if activation not in _ACTIVATIONS:
            raise ValueError(f"FFLayer: unknown activation {activation!r}; known are {', '.join(_ACTIVATIONS)}")
        self.activation = activation
        self.w_in = _normal((hidden_size, proj_dim), _STD, generator, "w_in")
        self.b_in = init.zeros((proj_dim,), label="b_in")
        self.w_out = _normal((proj_dim, hidden_size), output_std, generator, "w_out")
        self.b_out = init.zeros((hidden_size,), label="b_out")

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden_size) -> (..., hidden_size). Raises ValueError for an input of another shape."""
        check_width(self, x, self.w_in)
        hidden = _ACTIVATIONS[self.activation](linear(x, self.w_in, self.b_in))
        return linear(hidden, self.w_out, self.b_out)


Norm: TypeAlias = LayerNorm | RMSNorm
Attention: TypeAlias = AttentionLayer | GroupedQueryAttention
FeedForward: TypeAlias = FFLayer | SwiGLU
# The options that `config` always has. It leaves out the others where they are the default, so that earlier versions
# read the files of such models.
_FIRST = ("n_layers", "n_attn_heads", "ff_scale_factor", "activation", "output_projection", "final_norm", "dropout")
_NORMS: dict[str, Callable[..., Norm]] = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}


class Block(Module):
    """One transformer layer (pre-norm): x = x + attention(norm(x)); x = x + feed_forward(norm(x)).

    Args:
        attention: the attention layer.
        feed_forward: the feed-forward layer.
        hidden_size: C, the length of the last axis of the input.
        dropout: applied to the output of both layers before the addition.
        norm: makes each of the two norms, as norm(hidden_size).

    Raises:
        TypeError: hidden_size is not an int.
    """

    def __init__(
        self,
        attention: Attention,
        feed_forward: FeedForward,
        hidden_size: int,
        dropout: Dropout,
        norm: Callable[[int], Norm] = LayerNorm,
    ) -> None:
        self.attention_norm = norm(hidden_size)
        self.attention = attention
        self.feed_forward_norm = norm(hidden_size)
        self.feed_forward = feed_forward
        self.dropout = dropout

    def forward(self, x: Tensor, padding: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C). `padding`, `cache` and errors are those of `AttentionLayer.forward`."""
        x = x + self.dropout(self.attention(self.attention_norm(x), padding, cache))
        x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return x


class Transformer(Module):
    """A causal (decoder-only) language model over the tokens of a tokenizer.

        tokenizer = Tokenizer.from_text(text, max_seq_len=64, embed_dim=128)
        model = Transformer(tokenizer, n_layers=4, n_attn_heads=4)
        logits = model(["to be", "or not"])

    Args:
        tokenizer: the tokenizer, which computes the embeddings and sets C. Its parameters are part of the model.
        n_layers: the number of blocks.
        n_attn_heads: H, the number of attention heads in each block; must divide C.
        ff_scale_factor: the width of the feed-forward layers, as a multiple of C.
        activation: the activation of the feed-forward layers: "leaky_relu", "relu", "gelu" or "gelu_tanh".
        output_projection: whether the attention layers have an output projection.
        final_norm: whether to apply a layer norm before the logits.
        attention_bias: whether the attention layers have biases, as in GPT-2.
        norm: "layer_norm" or "rms_norm" (`llama.RMSNorm`).
        norm_eps: the eps of the norms.
        feed_forward: "mlp" (`FFLayer`) or "swiglu" (`llama.SwiGLU`, whose activation is fixed).
        ff_dim: the width of the feed-forward layers; by default ff_scale_factor * C, with "swiglu" 2/3 of that, rounded
            up to a multiple of 8.
        positions: "learned", in the tokenizer's embeddings, or "rotary" (`llama.Rotary`), for a tokenizer with
            positional_encoding=False.
        rope_base: the base of the rotary angles.
        n_kv_heads: the number of heads of keys and values (`llama.GroupedQueryAttention`); must divide n_attn_heads,
            which is the default.
        window: the number of tokens that a token sees, itself included (sliding-window attention); None: all before it.
        tied: whether the logits use the token embedding (Press & Wolf), or a matrix of their own, `output`
            (C, vocab_size + 1).
        dropout: the dropout probability, after the embedding and after each layer in a block.
        attention_dropout: the dropout probability of the attention weights, as `attn_pdrop` in GPT-2.
        seed: the seed of the initial weights and of dropout; by default both use `random.default_generator()`.

    Raises:
        ValueError: n_attn_heads does not divide C, n_kv_heads does not divide n_attn_heads, a number is not positive,
            norm_eps is negative, nan or infinite, a dropout is outside [0, 1), a name is unknown, "swiglu" is given an
            activation, or the tokenizer has a positional encoding with "rotary", or none with "learned".
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        n_layers: int,
        n_attn_heads: int,
        ff_scale_factor: int = 4,
        *,
        activation: str = "leaky_relu",
        output_projection: bool = False,
        final_norm: bool = False,
        attention_bias: bool = False,
        norm: str = "layer_norm",
        norm_eps: float = 1e-5,
        feed_forward: str = "mlp",
        ff_dim: int | None = None,
        positions: str = "learned",
        rope_base: float = 10000.0,
        n_kv_heads: int | None = None,
        window: int | None = None,
        tied: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        seed: int | None = None,
    ) -> None:
        if n_layers < 1:
            raise ValueError(f"Transformer: n_layers must be positive, got {n_layers}")
        hidden_size = tokenizer.embed_dim
        self._options = {
            "n_layers": n_layers, "n_attn_heads": n_attn_heads, "ff_scale_factor": ff_scale_factor,
            "activation": activation, "output_projection": output_projection, "final_norm": final_norm,
            "dropout": dropout, "attention_bias": attention_bias, "norm": norm, "norm_eps": norm_eps,
            "feed_forward": feed_forward, "ff_dim": ff_dim, "positions": positions, "rope_base": rope_base,
            "n_kv_heads": n_kv_heads, "window": window, "tied": tied, "attention_dropout": attention_dropout,
        }  # fmt: skip
        checked_eps("Transformer", norm_eps, "norm_eps")
        check_probability("Transformer: dropout", dropout)
        check_probability("Transformer: attention_dropout", attention_dropout)
        _check_names(norm=norm, feed_forward=feed_forward, positions=positions)
        if (positions == "rotary") != (tokenizer.positional_encoding is None):
            raise ValueError(
                f"Transformer: positions={positions!r} needs a tokenizer with "
                f"positional_encoding={positions == 'learned'}; build one, or change positions"
            )
        if ff_dim is not None:
            positive("Transformer", ff_dim=ff_dim)
        if feed_forward == "swiglu" and activation != signature(Transformer).parameters["activation"].default:
            raise ValueError(f"Transformer: 'swiglu' has an activation of its own; leave out activation={activation!r}")
        generator = None if seed is None else Generator(seed)
        # Each block adds to the residual stream twice. Smaller output matrices keep its variance constant (GPT-2).
        output_std = _STD / math.sqrt(2 * n_layers)
        shared: dict[str, Any] = {"output_std": output_std, "generator": generator}
        self.tokenizer = tokenizer
        # One generator for all dropout, so that `start_batch` of one of these starts the batch of both.
        self.dropout = Dropout(dropout, generator=None if seed is None else Generator(seed, DROPOUT))
        self.attention_dropout = Dropout(attention_dropout, generator=self.dropout.generator)

        def attention() -> Attention:
            options = {
                "output_projection": output_projection, "bias": attention_bias, "dropout": self.attention_dropout,
                **shared,
            }  # fmt: skip
            if positions == "learned" and n_kv_heads is None and window is None:
                return AttentionLayer(n_attn_heads, hidden_size, **options)
            base = rope_base if positions == "rotary" else None
            n_kv = n_attn_heads if n_kv_heads is None else n_kv_heads
            return GroupedQueryAttention(n_attn_heads, n_kv, hidden_size, rope_base=base, window=window, **options)

        def mlp() -> FeedForward:
            width = ff_scale_factor * hidden_size
            if feed_forward == "mlp":
                return FFLayer(width if ff_dim is None else ff_dim, hidden_size, activation=activation, **shared)
            return SwiGLU(-(-2 * width // 24) * 8 if ff_dim is None else ff_dim, hidden_size, **shared)

        make_norm = partial(_NORMS[norm], eps=norm_eps)
        self.blocks = [Block(attention(), mlp(), hidden_size, self.dropout, make_norm) for _ in range(n_layers)]
        self.final_norm = make_norm(hidden_size) if final_norm else None
        self.output = None if tied else _normal((hidden_size, tokenizer.vocab_size + 1), _STD, generator, "output")

    @classmethod
    def llama(
        cls,
        tokenizer: Tokenizer,
        n_layers: int,
        n_attn_heads: int,
        ff_scale_factor: int = 4,
        *,
        n_kv_heads: int | None = None,
        ff_dim: int | None = None,
        norm_eps: float = 1e-5,
        rope_base: float = 10000.0,
        window: int | None = None,
        tied: bool = False,
        attention_bias: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        seed: int | None = None,
    ) -> Self:
        """A model with the blocks of Llama: RMS norms, rotary positions, SwiGLU, and logits with a matrix of their own.

        Touvron et al., arXiv:2302.13971 and arXiv:2307.09288. With `n_kv_heads` and `window`, these are also the blocks
        of Mistral (arXiv:2310.06825).

            tokenizer = Tokenizer.from_text(text, max_seq_len=64, embed_dim=128, positional_encoding=False)
            model = Transformer.llama(tokenizer, n_layers=4, n_attn_heads=4, n_kv_heads=2)

        Args:
            tokenizer: a tokenizer with positional_encoding=False.
            n_layers, n_attn_heads, ff_scale_factor, n_kv_heads, ff_dim, norm_eps, rope_base, window, tied,
                attention_bias, dropout, attention_dropout, seed: as in `Transformer`.

        Raises:
            ValueError: as `Transformer`; also if C / n_attn_heads is odd.
        """
        return cls(
            tokenizer, n_layers, n_attn_heads, ff_scale_factor, output_projection=True, final_norm=True,
            norm="rms_norm", norm_eps=norm_eps, feed_forward="swiglu", ff_dim=ff_dim, positions="rotary",
            rope_base=rope_base, n_kv_heads=n_kv_heads, window=window, tied=tied, attention_bias=attention_bias,
            dropout=dropout, attention_dropout=attention_dropout, seed=seed,
        )  # fmt: skip

    def config(self) -> dict[str, Any]:
        """The constructor's arguments without tokenizer and seed: `Transformer(tokenizer, **model.config())`.

        Of attention_bias, norm, norm_eps, feed_forward, ff_dim, positions, rope_base, n_kv_heads, window, tied and
        attention_dropout, it has those that are not the default.
        """
        defaults = signature(Transformer).parameters
        return {
            name: value for name, value in self._options.items() if name in _FIRST or value != defaults[name].default
        }  # fmt: skip

    @classmethod
    def from_torch(
        cls,
        source: Any,
        tokenizer: Tokenizer,
        *,
        n_attn_heads: int,
        activation: str,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        padding_row: bool = True,
    ) -> Self:
        """Build a model from the parameters of the equivalent PyTorch model (docs/torch_twin.py).

        The parameters determine the number of layers, the width of the feed-forward layers, and whether there are
        output projections, biases in the attention and a final norm. The model is in evaluation mode and on the
        tokenizer's backend, and shares no memory with `source`. float32 and float64 parameters keep their dtype;
        bfloat16 and float16 become float32.

        Args:
            source: a torch.nn.Module, or a state_dict of torch tensors or NumPy arrays. Biases may be missing; they are
                0 then. What torch.compile and DistributedDataParallel add to names is removed. Causal masks among the
                buffers are left out.
            tokenizer: a tokenizer with the sizes of the parameters. Its embeddings are overwritten.
            n_attn_heads, activation, dropout, attention_dropout: as in `Transformer`.
            padding_row: whether the last row of the token embedding is that of padding. Set it to False for models
                without one, such as nanoGPT's: a row of zeros is added, which does not change the other logits.

        Raises:
            ValueError: lists all names that are missing or unexpected and all shapes that differ; or an entry is not a
                float tensor, the dtypes differ, or the logits are not tied to the token embedding. The tokenizer does
                not change then.
            TypeError: `source` is neither a state_dict nor a module.
        """
        state = interchange.read_state(source)
        options = interchange.options_of(state, tokenizer, padding_row)
        model = cls(
            tokenizer, n_attn_heads=n_attn_heads, activation=activation, dropout=dropout,
            attention_dropout=attention_dropout, seed=0, **options,
        )  # fmt: skip
        interchange.fill(model, state, padding_row)
        return model.eval()

    def to_torch_state_dict(self, *, padding_row: bool = True) -> dict[str, Any]:
        """The state_dict of the equivalent PyTorch model (docs/torch_twin.py), as copies in NumPy arrays on the host.

        float32 and float64 keep their dtype; bfloat16 becomes float32.

            state = model.to_torch_state_dict()
            twin.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})

        Args:
            padding_row: whether the token embedding has its last row, that of padding. The loss leaves out its logit,
                which is therefore arbitrary: a program that samples from all logits draws padding. Set it to False for
                a model without padding, such as nanoGPT's with a `vocab_size` of the number of characters.

        Raises:
            ValueError: the model has other parameters or buffers than a Transformer, or options that the PyTorch model
                lacks, such as those of `llama`.
        """
        return interchange.to_torch_state_dict(self, self.config(), padding_row)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        *,
        backend: str | ModuleType | Backend | None = None,
        dtype: DType | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        seed: int | None = None,
    ) -> Self:
        """Load a model from a folder of the Hugging Face hub: GPT-2 or Llama, in evaluation mode.

        The logits are those of `transformers`; the class for padding comes last. docs/hub.md lists the supported
        settings.

            model = Transformer.from_pretrained("gpt2")  # after `hf download openai-community/gpt2 --local-dir gpt2`

        Args:
            folder: a folder with config.json, model.safetensors or its shards, and tokenizer.json or GPT-2's vocab.json
                and merges.txt.
            backend: the backend of the parameters, by default the current one.
            dtype: the dtype of the parameters, by default that of the file; bfloat16 and float16 become float32.
            dropout, attention_dropout, seed: as in `Transformer`. The dropout of the folder's settings is not used.

        Raises:
            ImportError: `safetensors` is not installed, or `tokenizers`, for a tokenizer that needs it.
            OSError: the folder or a file in it does not exist or cannot be read.
            ValueError: another architecture, or a setting that the library does not support; a damaged file; tensors
                that are missing or unexpected or have another shape, which are all listed; a tokenizer with more tokens
                than the model.
        """
        return hub.from_pretrained(cls, folder, backend, dtype, dropout, attention_dropout, seed)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write the model to a folder that `transformers` loads as a GPT-2 or Llama, and return the folder's path.

        It writes config.json, model.safetensors, tokenizer.json and tokenizer_config.json, which replace those of a
        model in the folder. If that is interrupted, the folder has the earlier model, or no config.json. Other files
        are kept, also a tokenizer that is equal. The row of the token embedding for padding is left out; attention
        without biases gets biases of 0.

            model.save_pretrained("model")  # AutoModelForCausalLM.from_pretrained("model")

        Raises:
            ImportError: `safetensors` is not installed.
            OSError: a file cannot be written.
            FileExistsError: the folder has files of another model that programs would read with this one: an index of
                weights or, with another tokenizer, added_tokens.json, special_tokens_map.json, chat_template.jinja or
                generation_config.json; or model.safetensors is that of a run or of `save_model`. Nothing is written.
            ValueError: the model has options that neither architecture has, parameters of several dtypes, or a
                tokenizer that tokenizer.json cannot describe; nothing is written.
        """
        return hub.save_pretrained(self, folder)

    def forward(self, batch: Any, cache: KVCache | None = None) -> Tensor:
        """The logits (B, T, vocab_size + 1) of the next token at each position. The last class is padding.

        Args:
            batch: a list of B strings, integer ids (B, T), or the result of `Tokenizer.ids`.
            cache: a `KVCache` of this model with the tokens before the batch. The batch is appended to it.

        Raises:
            ValueError: the cache belongs to another model, holds another number of texts, or would exceed max_seq_len.
            Also the errors of `Tokenizer.ids`.
        """
        if cache is not None and cache.model is not self:
            raise ValueError("forward: the cache is another model's; make one with KVCache(model)")
        ids = self.tokenizer.ids(batch)
        first: int | Tensor = 0
        layers: list[LayerCache | None] = [None] * len(self.blocks)
        padding = None if ids.padding is None else Tensor(ids.padding, backend=ids.backend)
        if cache is not None:
            first, padding = cache.allocate(ids.values.shape, padding, ids.backend)
            layers = list(cache.layers)
        x = self.dropout(self.tokenizer.embed(ids.values, first))  # (B, T, C)
        for block, layer in zip(self.blocks, layers, strict=True):
            x = block(x, padding, layer)
        if self.final_norm is not None:
            x = self.final_norm(x)
        return linear(x, self.tokenizer.token_embedding.T if self.output is None else self.output)

    def make_decoder(self) -> Decoder | None:
        """Return a `Decoder`, with which `stream` computes logits on arrays, or None if `stream` must call `forward`.

        It is None if a submodule is not of the class that the constructor creates, a method was replaced, a parameter
        is missing, the parameters differ in dtype or backend or are arguments of a transform, or a `trace` is active.
        """
        kinds = {None if p is None else (p.backend, p.dtype) for p in _parameters_of(self, Transformer)}
        (kind, *others) = kinds
        if kind is None or others or kind[0].level or apply.observer is not None:
            return None
        return Decoder(self)

    def generate(
        self,
        prompt: Prompt,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: str | None = None,
        seed: int = 0,
    ) -> Prompt:
        """Generate text: returns the prompt followed by the new text, or a list of these for a list of prompts.

        Arguments and errors are those of `stream`.

            model.generate("ROMEO:", 100, temperature=0.8, top_k=10)
        """
        sampling = Sampling(temperature, top_k, top_p)
        if isinstance(prompt, str):
            return generation.generate(self, [prompt], max_new_tokens, sampling, stop, seed)[0]
        return generation.generate(self, prompt, max_new_tokens, sampling, stop, seed)

    def stream(
        self,
        prompt: Prompt,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: str | None = None,
        seed: int = 0,
    ) -> Iterator[Prompt]:
        """Generate text and yield it in pieces, token by token.

        The pieces do not include the prompt. Text that may be the start of `stop` is delayed until that is decided. If
        the bytes of a character are in several tokens, it comes with the last of them. For a list of prompts, which run
        as one batch, each item is a list with a piece for each prompt, which may be "". A text does not depend on the
        other prompts. The model sees the last max_seq_len tokens. Padding is never generated, and dropout is off.

            for piece in model.stream("ROMEO:", 100):
                print(piece, end="")

        Args:
            prompt: a string of at least one token, or a list of at least one such string.
            max_new_tokens: the maximum number of new tokens in each text.
            temperature: divides the logits; 0 always selects the most likely token (greedy decoding).
            top_k: sample from the k most likely tokens only.
            top_p: nucleus sampling; see `generation.Sampling`.
            stop: a text ends before the first occurrence of this string after the prompt.
            seed: the seed of the random numbers, in [0, 2**64). Each row of a list has its own random numbers.

        Raises:
            ValueError: a prompt, the list or the stop string is empty; a character is not in the vocabulary;
                temperature < 0, max_new_tokens < 0, top_k < 1, top_p outside (0, 1], or the seed is out of range. Also,
                during the iteration, logits that are not finite.
            TypeError: the prompt is neither a string nor a list of strings.
        """
        sampling = Sampling(temperature, top_k, top_p)
        if isinstance(prompt, str):
            return (piece for (piece,) in generation.stream(self, [prompt], max_new_tokens, sampling, stop, seed))
        return generation.stream(self, prompt, max_new_tokens, sampling, stop, seed)

    def attention_maps(self, text: str) -> list[Any]:
        """The attention weights of a text in every layer, in evaluation mode: a list of arrays (H, T, T), query by key.

        They are NumPy arrays on the host, with the parameters' dtype. Each row sums to 1; keys after the query have
        weight 0.

        Raises:
            ValueError: the text is empty or longer than max_seq_len, or a character is not in the vocabulary.
        """
        was_training = self.training
        self.eval()  # no dropout
        try:
            with no_grad():
                maps = []
                x = self.tokenizer.embed(self.tokenizer.ids([text]).values)  # (1, T, C)
                for block in self.blocks:
                    maps.append(block.attention.weights(block.attention_norm(x)).numpy()[0])
                    x = block(x)
        finally:
            self.train(was_training)
        return maps


def _check_names(**given: str) -> None:
    """Raise ValueError for an unknown name of an option of Transformer."""
    known = {"norm": _NORMS, "feed_forward": ("mlp", "swiglu"), "positions": ("learned", "rotary")}
    for option, name in given.items():
        if name not in known[option]:
            raise ValueError(f"Transformer: unknown {option} {name!r}; known are {', '.join(known[option])}")


# The decoder bypasses `forward`, so every module must be exactly this library's own. The attributes that the decoder
# reads of each class, and their classes; those of _MAY_BE_NONE may be None.
_NORM = (LayerNorm, RMSNorm)
_ATTENTION: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("w_qkv", "b_qkv", "w_out", "b_out"), (Tensor,)), "dropout": (Dropout,),
}  # fmt: skip
_READ: dict[type[Module], dict[str, tuple[type, ...]]] = {
    Transformer: {"tokenizer": (Tokenizer,), "dropout": (Dropout,), "final_norm": _NORM, "output": (Tensor,)},
    Tokenizer: {"token_embedding": (Tensor,), "positional_encoding": (Tensor,)},
    Block: {
        "attention_norm": _NORM, "attention": (AttentionLayer, GroupedQueryAttention), "feed_forward_norm": _NORM,
        "feed_forward": (FFLayer, SwiGLU), "dropout": (Dropout,),
    },
    AttentionLayer: _ATTENTION,
    GroupedQueryAttention: {**_ATTENTION, "rotary": (Rotary,)},
    FFLayer: dict.fromkeys(("w_in", "b_in", "w_out", "b_out"), (Tensor,)),
    SwiGLU: dict.fromkeys(("w_gate", "w_up", "w_down"), (Tensor,)),
    LayerNorm: {"gamma": (Tensor,), "beta": (Tensor,)},
    RMSNorm: {"gamma": (Tensor,)},
    Rotary: {},
    Dropout: {},
}  # fmt: skip
_MAY_BE_NONE = {
    (Transformer, "final_norm"), (Transformer, "output"), (Tokenizer, "positional_encoding"),
    (GroupedQueryAttention, "rotary"),
    *((cls, name) for cls in (AttentionLayer, GroupedQueryAttention) for name in ("b_qkv", "w_out", "b_out")),
}  # fmt: skip
_METHODS = {cls: {name: getattr(cls, name) for name in ("__call__", *vars(cls)) if isfunction(getattr(cls, name))}
            for cls in _READ}  # fmt: skip


def _parameters_of(value: Any, *classes: type[Any]) -> Iterator[Tensor | None]:
    """The Tensors that the decoder reads of a value of one of these classes: itself, or those of a module.

    None is among them if the value is of no such class, has a replaced method, or the decoder does not support it.
    """
    if classes == (Tensor,):
        yield value if isinstance(value, Tensor) else None
        return
    cls = type(value)
    if cls not in classes or any(
        name in vars(value) or getattr(cls, name, None) is not method for name, method in _METHODS[cls].items()
    ):
        yield None
        return
    for name, parts in _READ[cls].items():
        found = vars(value).get(name)
        if found is not None or (cls, name) not in _MAY_BE_NONE:
            yield from _parameters_of(found, *parts)
    if cls is FFLayer and value.activation not in ACTIVATIONS:
        yield None
    if cls is Transformer:
        blocks = vars(value).get("blocks")
        for block in blocks if isinstance(blocks, (list, tuple)) and blocks else [None]:
            yield from _parameters_of(block, Block)
