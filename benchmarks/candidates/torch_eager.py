"""PyTorch (eager) in each benchmark. A builder takes strings and returns the callable to time."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own abbreviation

from benchmarks.candidates.model import (
    LEARNING_RATE,
    LLAMA,
    WEIGHT_DECAY,
    Size,
    batches,
    build_model,
    op_operands,
    random,
)

Cache: TypeAlias = dict[int, tuple[torch.Tensor, torch.Tensor]]  # a layer's keys and values, (B, H, S, D)


def model(
    size: Size, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[list[torch.Tensor], Callable[..., torch.Tensor]]:
    """The parameters, and the forward pass: tokens (B, T), a cache or None -> logits (B, T, characters).

    It uses PyTorch's fused functions: scaled_dot_product_attention, linear, layer_norm. With a cache of S tokens, it
    expects one more token.
    """
    weights = build_model(size).state_dict()
    p = {name: torch.tensor(w, dtype=dtype, device=device, requires_grad=True) for name, w in weights.items()}
    for name, weight in p.items():
        if ".w_" in name:
            p[name] = _to_linear_layout(weight)
    if size.blocks == LLAMA:
        return list(p.values()), _llama(size, p)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (size.width,), p[name + ".gamma"], p[name + ".beta"])

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], size.heads, size.width // size.heads).transpose(1, 2)

    def forward(tokens: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        table = p["tokenizer.token_embedding"]
        first = cache[0][0].shape[-2] if cache else 0  # S
        x = F.embedding(tokens, table) + p["tokenizer.positional_encoding"][first : first + tokens.shape[1]]
        for i in range(size.layers):
            attention, ff = f"blocks.{i}.attention", f"blocks.{i}.feed_forward"
            h = norm(x, attention + "_norm")
            q, k, v = map(heads, F.linear(h, p[attention + ".w_qkv"]).chunk(3, dim=-1))
            if cache is not None:
                if first:
                    k, v = torch.cat([cache[i][0], k], dim=-2), torch.cat([cache[i][1], v], dim=-2)
                cache[i] = k, v
            h = F.scaled_dot_product_attention(q, k, v, is_causal=first == 0).transpose(1, 2).reshape(x.shape)
            x = x + F.linear(h, p[attention + ".w_out"])
            h = F.gelu(F.linear(norm(x, ff + "_norm"), p[ff + ".w_in"], p[ff + ".b_in"]))
            x = x + F.linear(h, p[ff + ".w_out"], p[ff + ".b_out"])
        return F.linear(norm(x, "final_norm"), table[:-1])  # padding is left out of the softmax

    return list(p.values()), forward


def _llama(size: Size, p: dict[str, torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The forward pass of `model` with Llama's blocks. Tables hold the cosines and sines of all positions."""
    d, n_kv, table = size.width // size.heads, size.heads // 2, p["tokenizer.token_embedding"]
    n_rotated = size.heads + n_kv  # heads of queries and of keys
    angles = torch.arange(size.length)[:, None].double() * 10000.0 ** (torch.arange(0, d, 2).double() / -d)
    cos, sin = (torch.cat([part, part], -1).to(table) for part in (angles.cos(), angles.sin()))

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.rms_norm(x, (size.width,), p[name + ".gamma"], 1e-5)

    def rotate(x: torch.Tensor, first: int) -> torch.Tensor:
        rows = slice(first, first + x.shape[-2])
        a, b = x.chunk(2, dim=-1)
        return x * cos[rows] + torch.cat([-b, a], dim=-1) * sin[rows]

    def forward(tokens: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        first = cache[0][0].shape[-2] if cache else 0  # S
        x = F.embedding(tokens, table)
        for i in range(size.layers):
            attention, ff = f"blocks.{i}.attention", f"blocks.{i}.feed_forward"
            h = F.linear(norm(x, attention + "_norm"), p[attention + ".w_qkv"])
            heads = h.view(*x.shape[:2], -1, d).transpose(1, 2)
            q, k = rotate(heads[:, :n_rotated], first).split([size.heads, n_kv], dim=1)
            v = heads[:, n_rotated:]
            if cache is not None:
                if first:
                    k, v = torch.cat([cache[i][0], k], dim=-2), torch.cat([cache[i][1], v], dim=-2)
                cache[i] = k, v
            h = F.scaled_dot_product_attention(q, k, v, is_causal=first == 0, enable_gqa=True)
            x = x + F.linear(h.transpose(1, 2).reshape(x.shape), p[attention + ".w_out"])
            h = norm(x, ff + "_norm")
            h = F.silu(F.linear(h, p[ff + ".w_gate"])) * F.linear(h, p[ff + ".w_up"])
            x = x + F.linear(h, p[ff + ".w_down"])
        return F.linear(norm(x, "final_norm"), p["output"].T[:-1])  # padding is left out of the softmax

    return forward


def _to_linear_layout(weight: torch.Tensor) -> torch.Tensor:
    """Convert (in, out) to (out, in), the layout of PyTorch's linear."""
    return weight.detach().T.contiguous().requires_grad_()


def _adamw(parameters: list[torch.Tensor], kind: str) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=kind == "fused")


def train_step(size: str, kind: str, mode: str = "eager", dtype: str = "float32") -> Callable[[], float]:
    """A training step; `kind` of AdamW is "default" or "fused", `mode` "eager" or "compiled" (`torch.compile`)."""
    parameters, forward = model(Size.parse(size), getattr(torch, dtype))
    optimizer = _adamw(parameters, kind)
    data = batches(Size.parse(size))

    def loss_of(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(forward(inputs).flatten(0, 1), targets.flatten())

    if mode == "compiled":
        loss_of = torch.compile(loss_of)

    def step() -> float:
        inputs, targets = map(torch.from_numpy, next(data))
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(inputs, targets)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def generate(size: str, n_prompt: str, tokens: str, kind: str) -> Callable[[], Callable[[], list[list[int]]]]:
    """Greedy generation after `n_prompt` characters; `kind`: "cached", or "recomputed" (the context at every token)."""
    _, forward = model(Size.parse(size))
    prompts = torch.from_numpy(next(batches(Size.parse(size)))[0][:, : int(n_prompt)])
    window = Size.parse(size).length

    @torch.inference_mode()
    def call() -> Callable[[], list[list[int]]]:
        ids = prompts
        cache: Cache | None = {} if kind == "cached" else None
        for _ in range(int(tokens)):
            new = ids[:, -1:] if cache else ids[:, -window:]
            ids = torch.cat([ids, forward(new, cache)[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
        return lambda: ids[:, int(n_prompt) :].tolist()

    return call


def op(name: str, size: str) -> Callable[[], Callable[[], list[float]]]:
    """Forward and backward, with a random upstream gradient."""
    arrays, ids_array = op_operands(name, Size.parse(size))
    operands = [torch.tensor(array, requires_grad=True) for array in arrays]
    if name == "linear":
        operands[1] = _to_linear_layout(operands[1])
    ids = torch.from_numpy(ids_array)
    forwards: dict[str, Callable[..., torch.Tensor]] = {
        "linear": F.linear,
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "layer_norm": lambda x, gamma, beta: F.layer_norm(x, x.shape[-1:], gamma, beta),
        "softmax": lambda x: F.softmax(x, dim=-1),
        "cross_entropy": lambda logits: F.cross_entropy(logits, ids),
        "attention": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "embedding": lambda weight: F.embedding(ids, weight),
        "add": lambda a, b: a + b,
        "sum": lambda x: x.sum(dim=-1),
    }
    forward = forwards[name]
    upstream = torch.tensor(random(*forward(*operands).shape))

    def call() -> Callable[[], list[float]]:
        for operand in operands:
            operand.grad = None
        out = forward(*operands)
        out.backward(upstream)
        return lambda: [_norm(out), *(_norm(operand.grad) for operand in operands if operand.grad is not None)]

    return call


def _norm(x: torch.Tensor) -> float:
    return float(x.detach().norm())


def adamw(size: str, kind: str) -> Callable[[], Callable[[], list[float]]]:
    """One step of all parameters of the model, with random gradients."""
    arrays = build_model(Size.parse(size)).state_dict().values()
    parameters = [torch.tensor(array, requires_grad=True) for array in arrays]
    optimizer = _adamw(parameters, kind)
    for parameter in parameters:
        parameter.grad = torch.tensor(random(*parameter.shape))

    def call() -> Callable[[], list[float]]:
        optimizer.step()
        return lambda: [_norm(parameter) for parameter in parameters]

    return call


def small_op(name: str, mode: str) -> Callable[[], Any]:
    """One op on 4 elements. `mode`: "plain" (forward), "recorded" (forward with a graph) or "both" (and backward)."""
    a, b = (torch.tensor(random(4, seed=seed), requires_grad=True) for seed in (1, 2))
    upstream = torch.tensor(random(4))
    forward = {"add": lambda: a + b, "multiply": lambda: a * b}[name]

    def both() -> None:
        a.grad = b.grad = None
        forward().backward(upstream)

    if mode == "plain":
        torch.set_grad_enabled(False)
    return both if mode == "both" else forward
