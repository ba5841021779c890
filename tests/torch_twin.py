"""The model in PyTorch, as functions of a dict of parameters with the names of `state_dict()`.

`transformer` runs the model of docs/torch_twin.py; the layers are implemented here.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's convention

from docs import torch_twin as documented
from russellgrad.module import Module
from tests.helpers import rng

Params = Mapping[str, torch.Tensor]

ACTIVATIONS = documented.ACTIVATIONS


def torch_params(module: Module) -> dict[str, torch.Tensor]:
    """The module's parameters as torch leaf tensors, by name."""
    return {name: torch.tensor(array, requires_grad=True) for name, array in module.state_dict().items()}


def randomise(module: Module, seed: int = 0, std: float = 0.3) -> None:
    """Set all parameters to normal draws of standard deviation `std`: initial values are too small to reveal errors."""
    draws = rng(seed)
    module.load_state_dict(
        {name: draws.normal(0, std, p.shape).astype(str(p.dtype)) for name, p in module.named_parameters()}
    )


def attention_head(p: Params, x: torch.Tensor, padding: torch.Tensor | None = None) -> torch.Tensor:
    return _attend(x @ p["w_q"], x @ p["w_k"], x @ p["w_v"], padding)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
    """Causal attention without F.scaled_dot_product_attention, as an independent check of masks and scale."""
    length = q.shape[-2]
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    if padding is not None:
        hidden = hidden | padding.unsqueeze(-2)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v


def attention_layer(p: Params, x: torch.Tensor, n_heads: int, padding: torch.Tensor | None = None) -> torch.Tensor:
    batch, length, width = x.shape

    def heads(w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (x @ w + b).view(batch, length, n_heads, width // n_heads).transpose(1, 2)

    hidden = None if padding is None else padding.unsqueeze(1)
    biases = p["b_qkv"].chunk(3) if "b_qkv" in p else (torch.zeros(()),) * 3
    q, k, v = (heads(w, b) for w, b in zip(p["w_qkv"].chunk(3, dim=1), biases, strict=True))
    out = _attend(q, k, v, hidden).transpose(1, 2).reshape(x.shape)
    return out @ p["w_out"] + p.get("b_out", torch.zeros(())) if "w_out" in p else out


def feed_forward(p: Params, x: torch.Tensor, activation: str) -> torch.Tensor:
    return ACTIVATIONS[activation](x @ p["w_in"] + p["b_in"]) @ p["w_out"] + p["b_out"]


def layer_norm(p: Params, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], p["gamma"], p["beta"])


def transformer(p: Params, ids: np.ndarray[Any, Any], config: Mapping[str, Any], pad_token_id: int) -> torch.Tensor:
    """Logits (B, T, vocab_size + 1) from ids (B, T)."""
    length, width = p["tokenizer.positional_encoding"].shape
    twin = documented.Twin(pad_token_id, length, width, **config)
    return torch.func.functional_call(twin, documented.renamed(p), torch.tensor(ids))


def loss(logits: torch.Tensor, targets: np.ndarray[Any, Any], pad_token_id: int) -> torch.Tensor:
    """Cross-entropy over the characters. Excludes the padding class and ignores targets that are padding."""
    wanted = torch.tensor(targets).flatten()
    return F.cross_entropy(logits[..., :-1].flatten(0, 1)[wanted != pad_token_id], wanted[wanted != pad_token_id])
