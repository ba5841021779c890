"""RussellGrad's transformer in PyTorch. Copy this file; it needs only PyTorch (`load` also needs safetensors).

Its parameters have nanoGPT's names and PyTorch's shapes, (out, in). Unlike nanoGPT, it has an additional embedding row
for padding, which no token attends to, and the options of RussellGrad's model.
docs/torch.md shows how to convert models in both directions.

Shapes: B texts of T tokens, C = embed_dim, H heads of width D = C / H.
"""

import inspect
import json
import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own abbreviation

ACTIVATIONS: Mapping[str, nn.Module] = {
    "leaky_relu": nn.LeakyReLU(0.01),
    "relu": nn.ReLU(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
}


class Attention(nn.Module):
    """Causal self-attention with n_heads heads: (B, T, C) -> (B, T, C)."""

    def __init__(self, width: int, n_heads: int, output_projection: bool, bias: bool, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout  # of the attention weights
        self.c_attn = nn.Linear(width, 3 * width, bias=bias)  # rows: queries, keys, values
        self.c_proj = nn.Linear(width, width, bias=bias) if output_projection else nn.Identity()

    def forward(self, x: Tensor, seen: Tensor | None) -> Tensor:
        """`seen` (B, 1, T, T) is True where a query (axis 2) attends to a key (axis 3); None is the causal mask."""
        joint = self.c_attn(x).unflatten(-1, (3, self.n_heads, -1))  # (B, T, 3, H, D)
        q, k, v = joint.permute(2, 0, 3, 1, 4).unbind()  # each (B, H, T, D)
        p = self.dropout if self.training else 0.0
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=p, is_causal=seen is None)
        return self.c_proj(heads.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """Two linear maps with an activation between them: (..., C) -> (..., C)."""

    def __init__(self, width: int, inner_width: int, activation: str) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, inner_width)
        self.activation = ACTIVATIONS[activation]
        self.c_proj = nn.Linear(inner_width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.activation(self.c_fc(x)))


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream: (B, T, C) -> (B, T, C)."""

    def __init__(self, attention: Attention, feed_forward: FeedForward, width: int, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = attention
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = feed_forward
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, seen: Tensor | None) -> Tensor:
        x = x + self.drop(self.attn(self.ln_1(x), seen))
        return x + self.drop(self.mlp(self.ln_2(x)))


class Body(nn.Module):
    """Everything except the logits; nanoGPT's `transformer`."""

    def __init__(self, n_classes: int, max_seq_len: int, blocks: list[Block], width: int, norm: bool, p: float) -> None:
        super().__init__()
        self.wte = nn.Embedding(n_classes, width)
        self.wpe = nn.Embedding(max_seq_len, width)
        self.drop = nn.Dropout(p)
        self.h = nn.ModuleList(blocks)
        self.ln_f = nn.LayerNorm(width) if norm else nn.Identity()

    def forward(self, tokens: Tensor, seen: Tensor | None) -> Tensor:
        x = self.drop(self.wte(tokens) + self.wpe.weight[: tokens.shape[1]])  # (B, T, C)
        for block in self.h:
            x = block(x, seen)
        return self.ln_f(x)


class Twin(nn.Module):
    """Tokens (B, T) -> logits (B, T, vocab_size + 1); the last class is padding, whose token is `vocab_size`.

    The twin of `model` is `Twin(tokenizer.vocab_size, tokenizer.max_seq_len, tokenizer.embed_dim, **model.config())`
    with `tokenizer = model.tokenizer`; the arguments are those of `russellgrad.russelltransformer.Transformer`.
    """

    def __init__(
        self,
        vocab_size: int,
        max_seq_len: int,
        embed_dim: int,
        n_layers: int,
        n_attn_heads: int,
        ff_scale_factor: int = 4,
        *,
        activation: str = "leaky_relu",
        output_projection: bool = False,
        final_norm: bool = False,
        attention_bias: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.pad_token_id = vocab_size
        blocks = [
            Block(
                Attention(embed_dim, n_attn_heads, output_projection, attention_bias, attention_dropout),
                FeedForward(embed_dim, ff_scale_factor * embed_dim, activation),
                embed_dim,
                dropout,
            )
            for _ in range(n_layers)
        ]
        self.transformer = Body(vocab_size + 1, max_seq_len, blocks, embed_dim, final_norm, dropout)
        self.lm_head = nn.Linear(embed_dim, vocab_size + 1, bias=False)
        self.lm_head.weight = self.transformer.wte.weight  # one parameter

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(self.transformer(tokens, self._seen(tokens)))

    def _seen(self, tokens: Tensor) -> Tensor | None:
        """(B, 1, T, T): True where the key is not later than the query and not padding. None without padding."""
        padding = tokens == self.pad_token_id
        if not padding.any():
            return None
        length = tokens.shape[1]
        earlier = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        return earlier & ~padding[:, None, None, :]


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of a file saved by RussellGrad, with the twin's names and shapes.

    A matrix is (in, out) in the file and (out, in) in the twin.
    """
    table = state["tokenizer.token_embedding"]
    new = {
        "transformer.wte.weight": table,
        "transformer.wpe.weight": state["tokenizer.positional_encoding"],
        "lm_head.weight": table,
    }
    if "final_norm.gamma" in state:
        new["transformer.ln_f.weight"] = state["final_norm.gamma"]
        new["transformer.ln_f.bias"] = state["final_norm.beta"]
    for i in range(sum(name.endswith("attention_norm.gamma") for name in state)):
        old = {name.removeprefix(f"blocks.{i}."): value for name, value in state.items()}
        block = {
            "ln_1.weight": old["attention_norm.gamma"],
            "ln_1.bias": old["attention_norm.beta"],
            "attn.c_attn.weight": old["attention.w_qkv"].T,
            "ln_2.weight": old["feed_forward_norm.gamma"],
            "ln_2.bias": old["feed_forward_norm.beta"],
            "mlp.c_fc.weight": old["feed_forward.w_in"].T,
            "mlp.c_fc.bias": old["feed_forward.b_in"],
            "mlp.c_proj.weight": old["feed_forward.w_out"].T,
            "mlp.c_proj.bias": old["feed_forward.b_out"],
        }
        if "attention.w_out" in old:
            block["attn.c_proj.weight"] = old["attention.w_out"].T
        biases = {"attn.c_attn.bias": "attention.b_qkv", "attn.c_proj.bias": "attention.b_out"}
        block |= {name: old[own] for name, own in biases.items() if own in old}
        new |= {f"transformer.h.{i}.{name}": value for name, value in block.items()}
    return new


def load(path: str | os.PathLike[str]) -> tuple[Twin, str]:
    """Load a file of `russellgrad.checkpoint.save_model` as a twin in evaluation mode. Returns it and the vocabulary.

    A character's token is its index in the vocabulary.

    Raises ValueError if the model's tokens are not characters, or it has options that the twin does not have.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        config = json.loads(file.metadata()["config"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    sizes = config["tokenizer"]
    if "vocabulary" not in sizes:
        raise ValueError(
            f"{path}: the model's tokens are not characters but those of an encoding of the kind "
            f"{sizes['encoding']['kind']!r}; load the model with russellgrad.checkpoint.load_model, and use its "
            "to_torch_state_dict() as docs/torch.md shows"
        )
    if other := config["model"].keys() - inspect.signature(Twin).parameters:
        raise ValueError(
            f"{path}: the twin has GPT-2's blocks, the model has other options: {', '.join(sorted(other))}"
        )
    vocabulary = sizes["vocabulary"]
    twin = Twin(len(vocabulary), sizes["max_seq_len"], sizes["embed_dim"], **config["model"])
    twin.to(state["tokenizer.token_embedding"].dtype).load_state_dict(renamed(state))
    return twin.eval(), vocabulary
