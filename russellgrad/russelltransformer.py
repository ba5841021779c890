"""The transformer: a decoder-only language model (Vaswani et al., arXiv:1706.03762; pre-norm: Xiong et al.,
arXiv:2002.04745; the logits tied to the embedding: Press & Wolf, arXiv:1608.05859).

Shapes: B texts of T tokens, C = embed_dim = hidden_size, H heads of width D = C / H.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Self, TypeVar

from . import generation, interchange
from .autograd import no_grad
from .functional import attention, attention_qkvpacked, layer_norm, linear
from .generation import KVCache, LayerCache, Sampling
from .module import Module, constant_parameter, normal_parameter, packed_parameter
from .random import DROPOUT, Generator, default_generator
from .tensor import Tensor
from .tokenizer import Tokenizer

Prompt = TypeVar("Prompt", str, list[str])

_STD = 0.02  # of initial weights, as in GPT-2 (Radford et al. 2019)

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": lambda x: x.leaky_relu(),
    "relu": lambda x: x.relu(),
    "gelu": lambda x: x.gelu(),
    "gelu_tanh": lambda x: x.gelu("tanh"),
}


class LayerNorm(Module):
    """Layer normalisation over the last axis, with a learned scale and shift: (..., dim) -> (..., dim)."""

    def __init__(self, dim: int, *, eps: float = 1e-5) -> None:
        self.gamma = constant_parameter((dim,), 1, "gamma")
        self.beta = constant_parameter((dim,), 0, "beta")
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.gamma, self.beta, self.eps)


class Dropout(Module):
    """In training, sets each element to 0 with probability p and scales the others by 1 / (1 - p).

    Srivastava et al., JMLR 15 (2014). The draws are those of `generator`, by default the default one; they are
    numbered, so a seed gives the same ones on every backend.
    Raises ValueError unless 0 <= p < 1.
    """

    def __init__(self, p: float, generator: Generator | None = None) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p must be in [0, 1), got {p}")
        self.p = p
        self.generator = generator

    def start_batch(self, first_row: int = 0) -> None:
        """Start a new batch, of which the next input has rows `first_row`, ...: see `Generator.start_batch`."""
        (self.generator or default_generator()).start_batch(first_row)

    def continue_batch(self, first_row: int) -> None:
        """Continue the batch with a micro-batch, its rows `first_row`, ...: see `Generator.continue_batch`."""
        (self.generator or default_generator()).continue_batch(first_row)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        generator = self.generator or default_generator()
        kept = x.backend.greater_equal(generator.uniform(x.shape, x.dtype, x.backend), self.p)
        out: Tensor = x * x.backend.multiply(x.backend.astype(kept, x.dtype), 1 / (1 - self.p))
        return out


class AttentionHead(Module):
    """One head of causal self-attention, spelled out: (B, T, hidden_size) -> (B, T, d_v).

    `AttentionLayer` computes the same for all heads at once.
    """

    def __init__(self, d_kq: int, d_v: int, hidden_size: int, *, generator: Generator | None = None) -> None:
        self.w_q = normal_parameter((hidden_size, d_kq), _STD, generator, "w_q")
        self.w_k = normal_parameter((hidden_size, d_kq), _STD, generator, "w_k")
        self.w_v = normal_parameter((hidden_size, d_v), _STD, generator, "w_v")

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """`padding` (B, T) is True at tokens that are padding, which no token then sees; the first must not be."""
        q, k, v = x @ self.w_q, x @ self.w_k, x @ self.w_v  # (B, T, d_kq), (B, T, d_kq), (B, T, d_v)
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])  # (B, T, T): query by key
        scores = scores.masked_fill(_later(scores.shape[-1], x), -math.inf)
        if padding is not None:
            scores = scores.masked_fill(padding.expand_dims(-2), -math.inf)
        return scores.softmax() @ v


def _later(length: int, like: Tensor) -> Tensor:
    """(T, T) bool: True where the key comes after the query."""
    places = Tensor(like.backend.arange(length), backend=like.backend)
    return places > places.expand_dims(-1)


class AttentionLayer(Module):
    """Causal self-attention with n_heads heads at once: (B, T, hidden_size) -> (B, T, hidden_size).

    `w_qkv` (C, 3 C) holds the weights of queries, keys and values side by side, so one product gives all three. In
    each, head h has columns h D to (h + 1) D: the output is that of n_heads `AttentionHead`s side by side.

    Args:
        n_heads: must divide hidden_size.
        hidden_size: C.
        output_projection: whether a learned matrix mixes the heads' outputs.
        output_std: of that matrix's initial values.

    Raises:
        ValueError: n_heads does not divide hidden_size.
    """

    def __init__(
        self,
        n_heads: int,
        hidden_size: int,
        *,
        output_projection: bool = False,
        output_std: float = _STD,
        generator: Generator | None = None,
    ) -> None:
        if n_heads < 1 or hidden_size % n_heads:
            raise ValueError(f"AttentionLayer: n_heads={n_heads} does not divide hidden_size={hidden_size}")
        self.n_heads = n_heads
        square = (hidden_size, hidden_size)
        # Drawn as three matrices: a seed gives the weights of three separate ones.
        self.w_qkv = packed_parameter([normal_parameter(square, _STD, generator, "") for _ in range(3)], "w_qkv")
        self.w_out = normal_parameter(square, output_std, generator, "w_out") if output_projection else None

    def forward(self, x: Tensor, padding: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        """`padding` (B, T) is True at tokens that are padding, which no token then sees.

        With a cache of S tokens, x are those that follow them, and see them too; `padding` is then (B, S + T).
        """
        hidden = None if padding is None else padding.expand_dims((-3, -2))  # (B, 1, 1, S + T)
        qkv = linear(x, self.w_qkv)  # (B, T, 3 C)
        if cache is None:
            joined = attention_qkvpacked(qkv, self.n_heads, mask=hidden, causal=True)  # (B, T, C)
        else:
            q, k, v = self._heads(qkv)  # (B, H, T, D)
            k, v = cache.extend(k, v)  # (B, H, S + T, D)
            heads = attention(q, k, v, mask=hidden, causal=True, offset=k.shape[-2] - q.shape[-2])  # (B, H, T, D)
            joined = heads.swapaxes(-3, -2).reshape(x.shape)
        return joined if self.w_out is None else linear(joined, self.w_out)

    def weights(self, x: Tensor) -> Tensor:
        """How much each token takes from each: (B, T, C) -> (B, H, T, T), query by key, rows that sum to 1.

        `forward` never has them as an array. They are softmax(q k^T / sqrt(D)), Vaswani et al., section 3.2.1.
        """
        q, k, _ = self._heads(linear(x, self.w_qkv))  # (B, H, T, D)
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
        return scores.masked_fill(_later(x.shape[-2], x), -math.inf).softmax()

    def _heads(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """(B, T, 3 C) -> queries, keys and values, each (B, H, T, D)."""
        separate = qkv.reshape(*qkv.shape[:-1], 3, self.n_heads, -1)  # (B, T, 3, H, D)
        return tuple(separate[..., i, :, :].swapaxes(-3, -2) for i in range(3))


class FFLayer(Module):
    """Two linear maps with an activation between them, for each token by itself: (..., hidden_size) -> the same.

    Args:
        proj_dim: the width between the two.
        hidden_size: C.
        activation: "leaky_relu", "relu", "gelu" or "gelu_tanh".
        output_std: of the second matrix's initial values.

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
        self.w_in = normal_parameter((hidden_size, proj_dim), _STD, generator, "w_in")
        self.b_in = constant_parameter((proj_dim,), 0, "b_in")
        self.w_out = normal_parameter((proj_dim, hidden_size), output_std, generator, "w_out")
        self.b_out = constant_parameter((hidden_size,), 0, "b_out")

    def forward(self, x: Tensor) -> Tensor:
        hidden = _ACTIVATIONS[self.activation](linear(x, self.w_in, self.b_in))
        return linear(hidden, self.w_out, self.b_out)


class Block(Module):
    """One layer of the transformer: attention, then feed-forward, each normalised first and added to its input."""

    def __init__(self, attention: AttentionLayer, feed_forward: FFLayer, hidden_size: int, dropout: Dropout) -> None:
        self.attention_norm = LayerNorm(hidden_size)
        self.attention = attention
        self.feed_forward_norm = LayerNorm(hidden_size)
        self.feed_forward = feed_forward
        self.dropout = dropout

    def forward(self, x: Tensor, padding: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        """The residual stream (B, T, C) -> (B, T, C). `padding` and `cache` are those of `AttentionLayer`."""
        x = x + self.dropout(self.attention(self.attention_norm(x), padding, cache))
        x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return x


class Transformer(Module):
    """A causal language model over a tokenizer's characters.

    Args:
        tokenizer: gives the vectors, and their width C; its parameters are the model's too.
        n_layers: the number of blocks.
        n_attn_heads: the heads of each; must divide C.
        ff_scale_factor: the feed-forward layer's width over C.
        activation: of the feed-forward layer: "leaky_relu", "relu", "gelu" or "gelu_tanh".
        output_projection: whether a learned matrix mixes the heads' outputs.
        final_norm: whether a layer norm comes before the logits.
        dropout: the probability of dropping an element, after the embedding and in each block; in training only.
        seed: of the initial weights and of dropout; by default the next draws of the default generator.

    Raises:
        ValueError: heads that do not divide C, an unknown activation, a dropout outside [0, 1), no layers.
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
        dropout: float = 0.0,
        seed: int | None = None,
    ) -> None:
        if n_layers < 1:
            raise ValueError(f"Transformer: n_layers must be positive, got {n_layers}")
        hidden_size = tokenizer.embed_dim
        self._config = {
            "n_layers": n_layers, "n_attn_heads": n_attn_heads, "ff_scale_factor": ff_scale_factor,
            "activation": activation, "output_projection": output_projection, "final_norm": final_norm,
            "dropout": dropout,
        }  # fmt: skip
        generator = None if seed is None else Generator(seed)
        # Each block adds to the stream twice; smaller last matrices keep its variance from growing (GPT-2).
        output_std = _STD / math.sqrt(2 * n_layers)
        self.tokenizer = tokenizer
        self.dropout = Dropout(dropout, None if seed is None else Generator(seed, DROPOUT))
        self.blocks = [
            Block(
                AttentionLayer(n_attn_heads, hidden_size, output_projection=output_projection,
                               output_std=output_std, generator=generator),
                FFLayer(ff_scale_factor * hidden_size, hidden_size, activation=activation,
                        output_std=output_std, generator=generator),
                hidden_size,
                self.dropout,
            )
            for _ in range(n_layers)
        ]  # fmt: skip
        self.final_norm = LayerNorm(hidden_size) if final_norm else None

    def config(self) -> dict[str, Any]:
        """The constructor's arguments after the tokenizer, without the seed: what a new model of this shape needs."""
        return dict(self._config)

    @classmethod
    def from_torch(
        cls,
        source: Any,
        tokenizer: Tokenizer,
        *,
        n_attn_heads: int,
        activation: str,
        dropout: float = 0.0,
        padding_row: bool = True,
    ) -> Self:
        """The model with the parameters of its twin in PyTorch (docs/torch_twin.py), in evaluation mode.

        The numbers of layers, the feed-forward layer's width, and whether there are an output projection and a final
        norm are read off the parameters; the heads and the activation cannot be. float32 and float64 are kept, bfloat16
        and float16 become float32. The model is on the tokenizer's backend, in memory of its own.

        Args:
            source: a state_dict of torch tensors or NumPy arrays, or a torch.nn.Module. A state_dict without any
                biases is taken, too: then they are 0. So is one under the names that torch.compile gives.
            tokenizer: of the sizes the parameters have; its embeddings are set to theirs.
            n_attn_heads, activation, dropout: as in `Transformer`.
            padding_row: whether the last row of the token embedding is padding's. nanoGPT has none: False adds a row
                of zeros, which changes nothing for the characters.

        Raises:
            ValueError: names that are missing or unexpected, shapes that differ, all of them at once; no floats, or
                floats of two dtypes; logits not tied to the token embedding. The tokenizer is then as it was.
            TypeError: neither a state_dict nor a module.
        """
        state = interchange.read_state(source)
        options = interchange.options_of(state, tokenizer, padding_row)
        model = cls(tokenizer, n_attn_heads=n_attn_heads, activation=activation, dropout=dropout, seed=0, **options)
        interchange.fill(model, state, padding_row)
        return model.eval()

    def to_torch_state_dict(self) -> dict[str, Any]:
        """A copy of every parameter as a NumPy array on the host, under the name and in the shape of its twin's.

        For `twin.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})`, the twin being
        that of docs/torch_twin.py. float32 and float64 are kept, bfloat16 becomes float32.
        """
        return interchange.to_torch_state_dict(self)

    def forward(self, batch: Any, cache: KVCache | None = None) -> Tensor:
        """A batch -> logits (B, T, vocab_size + 1) of each place's next token; the last class is padding.

        Args:
            batch: a list of B strings, integer ids (B, T), or what `Tokenizer.ids` gave. Raises as that does.
            cache: of what this model was fed before: the batch is what follows, and the cache holds it from then on.
                Raises ValueError for another model's, other texts than it holds, or more than max_seq_len tokens.
        """
        if cache is not None and cache.model is not self:
            raise ValueError("forward: the cache is another model's; make one with KVCache(model)")
        ids = self.tokenizer.ids(batch)
        first: int | Tensor = 0
        layers: list[LayerCache | None] = [None] * len(self.blocks)
        padding = None if ids.padding is None else Tensor(ids.padding, backend=ids.backend)
        if cache is not None:
            first, padding = cache.place(ids.values.shape, padding, ids.backend)
            layers = list(cache.layers)
        x = self.dropout(self.tokenizer.embed(ids.values, first))  # (B, T, C)
        for block, layer in zip(self.blocks, layers, strict=True):
            x = block(x, padding, layer)
        if self.final_norm is not None:
            x = self.final_norm(x)
        return linear(x, self.tokenizer.token_embedding.T)

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
        """The prompt and what follows it: all that `stream` gives; of a list of prompts, the list of their texts."""
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
        """What follows the prompt, in pieces, as it is drawn character by character from the model's predictions.

        Nothing is held back but what could be the start of `stop`. Of a list of prompts, which are read all at once,
        each item is a list: a piece for each prompt, "" where there is none. A text is what it would be if the others
        were others. Past max_seq_len the model sees the last max_seq_len characters. Padding is never drawn, and
        nothing dropped.

        Args:
            prompt: at least one character; or a list of prompts, at least one.
            max_new_tokens: the most characters that follow each.
            temperature: divides the logits; 0 takes the most likely character every time.
            top_k: draw from the k most likely characters only.
            top_p: draw only from the most likely ones whose probabilities add up to this: see `generation.Sampling`.
            stop: a text ends before this string, wherever it comes after the prompt.
            seed: of the draws, in [0, 2**64). Each row of a list has draws of its own.

        Raises:
            ValueError: an empty prompt, list or stop string, a character outside the vocabulary, a negative
                temperature or count, top_k < 1, top_p outside (0, 1], a seed out of range; while the pieces are drawn,
                logits that are not finite. TypeError: a prompt that is neither a string nor a list of strings.
        """
        sampling = Sampling(temperature, top_k, top_p)
        if isinstance(prompt, str):
            return (piece for (piece,) in generation.stream(self, [prompt], max_new_tokens, sampling, stop, seed))
        return generation.stream(self, prompt, max_new_tokens, sampling, stop, seed)

    def attention_maps(self, text: str) -> list[Any]:
        """How much each character of a text takes from each, in every layer: arrays (H, T, T), query by key.

        NumPy arrays on the host, of the parameters' dtype; each row sums to 1, and is 0 after the query's own place.

        Raises:
            ValueError: a text that is empty or longer than max_seq_len, or a character outside the vocabulary.
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
