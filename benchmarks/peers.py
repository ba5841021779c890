"""The candidates of the training-step benchmark: this library, PyTorch eager, and the bare matrix products.

All do the same work from the same weights on the same batches: forward, backward and AdamW of the GPT that
`train/train_transformer.py` trains by default (exact GELU, output projection, final layer norm, no dropout).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own abbreviation

from russellgrad import set_default_dtype
from russellgrad.loss import cross_entropy_loss
from russellgrad.optimizer import AdamWOptimizer
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer

Ids: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Step: TypeAlias = Callable[[Ids, Ids], float]  # inputs and targets (B, T) -> the loss before the step

CHARACTERS = "".join(chr(code) for code in range(33, 98))  # 65, as Tiny Shakespeare has
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.1


@dataclass(frozen=True)
class Size:
    """A model and its batch."""

    layers: int
    heads: int
    width: int
    length: int
    batch: int

    def __str__(self) -> str:
        return f"{self.layers}/{self.heads}/{self.width}/{self.length}/{self.batch}"

    def random_batch(self, seed: int) -> tuple[Ids, Ids]:
        ids = np.random.default_rng(seed).integers(0, len(CHARACTERS), (self.batch, self.length + 1))
        return ids[:, :-1], ids[:, 1:]


def build_model(size: Size) -> Transformer:
    set_default_dtype("float32")
    tokenizer = Tokenizer.from_text(CHARACTERS, size.length, size.width, seed=0)
    return Transformer(
        tokenizer, size.layers, size.heads, activation="gelu", output_projection=True, final_norm=True, seed=0
    )


def russellgrad_step(size: Size) -> Step:
    model = build_model(size)
    optimizer = AdamWOptimizer(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    pad = model.tokenizer.pad_token_id

    def step(inputs: Ids, targets: Ids) -> float:
        optimizer.zero_grad()
        loss = cross_entropy_loss(model(inputs), targets, pad)
        loss.backward()
        optimizer.step()
        return float(loss)

    return step


def torch_step(size: Size, *, fused: bool) -> Step:
    """PyTorch eager with the kernels it would use: scaled_dot_product_attention, linear, layer_norm, cross_entropy."""
    p = {name: torch.tensor(array, requires_grad=True) for name, array in build_model(size).state_dict().items()}
    for name, weight in p.items():
        if ".w_" in name:  # (in, out) here, (out, in) in PyTorch: the layout its kernels are tuned for
            p[name] = weight.detach().T.contiguous().requires_grad_()
    optimizer = torch.optim.AdamW(list(p.values()), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=fused)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (size.width,), p[name + ".gamma"], p[name + ".beta"])

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.view(size.batch, size.length, size.heads, size.width // size.heads).transpose(1, 2)

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        table = p["tokenizer.token_embedding"]
        x = F.embedding(tokens, table) + p["tokenizer.positional_encoding"][: size.length]
        for i in range(size.layers):
            attention, ff = f"blocks.{i}.attention", f"blocks.{i}.feed_forward"
            h = norm(x, attention + "_norm")
            q, k, v = (heads(F.linear(h, p[f"{attention}.{w}"])) for w in ("w_q", "w_k", "w_v"))
            h = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
            x = x + F.linear(h, p[attention + ".w_out"])
            h = F.gelu(F.linear(norm(x, ff + "_norm"), p[ff + ".w_in"], p[ff + ".b_in"]))
            x = x + F.linear(h, p[ff + ".w_out"], p[ff + ".b_out"])
        return F.linear(norm(x, "final_norm"), table[:-1])  # padding is left out of the softmax

    def step(inputs: Ids, targets: Ids) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(forward(torch.from_numpy(inputs.copy())).flatten(0, 1), torch.tensor(targets).flatten())
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def products_step(size: Size) -> Step:
    """The matrix products of a step and nothing else, with NumPy, into memory that is there already."""
    rows, width, wide = size.batch * size.length, size.width, 4 * size.width
    inner, lots = width // size.heads, size.batch * size.heads
    shapes = [
        *[(1, rows, width, width)] * 4 * size.layers,
        *[(1, rows, width, wide), (1, rows, wide, width)] * size.layers,
        *[(lots, size.length, inner, size.length), (lots, size.length, size.length, inner)] * size.layers,
        (1, rows, width, len(CHARACTERS) + 1),
    ]
    draws = np.random.default_rng(0)
    work = []
    for n, a, b, c in shapes:  # out = x @ w; then the gradients of x and w
        x, w, g = (draws.standard_normal((n, *s), np.float32) for s in ((a, b), (b, c), (a, c)))
        work.append((x, w, g, np.empty_like(x), np.empty_like(w), np.empty_like(g)))

    def step(inputs: Ids, targets: Ids) -> float:
        for x, w, g, gx, gw, out in work:
            np.matmul(x, w, out=out)
            np.matmul(g, w.swapaxes(1, 2), out=gx)
            np.matmul(x.swapaxes(1, 2), g, out=gw)
        return float("nan")

    return step


CANDIDATES: dict[str, Callable[[Size], Step]] = {
    "russellgrad": russellgrad_step,
    "torch": lambda size: torch_step(size, fused=False),
    "torch, fused AdamW": lambda size: torch_step(size, fused=True),
    "matrix products": products_step,
}
