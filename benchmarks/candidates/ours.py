"""RussellGrad in each benchmark. A builder takes strings and returns the callable to time."""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.candidates.model import (
    LEARNING_RATE,
    WEIGHT_DECAY,
    Array,
    Size,
    batches,
    build_model,
    op_operands,
    random,
)
from russellgrad import (
    Tensor,
    attention,
    cross_entropy,
    embedding,
    get_backend,
    layer_norm,
    linear,
    no_grad,
    parallel_backward,
)
from russellgrad.loss import cross_entropy_loss
from russellgrad.optimizer import AdamWOptimizer
from russellgrad.parallel import n_parts

get_backend()  # imports its library, which peak memory leaves out as it leaves out PyTorch's import


def train_step(size: str, kind: str = "parallel", dtype: str = "float32") -> Callable[[], float]:
    """A training step; `kind`: "parallel", a part of the batch in each thread as in training, or "whole"."""
    model = build_model(Size.parse(size), dtype)
    optimizer = AdamWOptimizer(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    data, pad = batches(Size.parse(size)), model.tokenizer.pad_token_id
    rows, n_tokens = Size.parse(size).batch, Size.parse(size).batch * Size.parse(size).length
    flops = 6 * sum(p.size for p in model.parameters()) * n_tokens
    parts = n_parts(rows, flops) if kind == "parallel" else 1

    def loss_of(part: tuple[Array, Array]) -> Tensor:
        inputs, targets = part
        loss = cross_entropy_loss(model(inputs), targets, pad)
        return loss if parts == 1 else loss * (1 / parts)

    def step() -> float:
        inputs, targets = next(data)
        optimizer.zero_grad()
        losses = parallel_backward(loss_of, zip(np.split(inputs, parts), np.split(targets, parts), strict=True))
        optimizer.step()
        return sum(map(float, losses))

    return step


def generate(size: str, n_prompt: str, tokens: str, kind: str) -> Callable[[], Callable[[], list[list[int]]]]:
    """Greedy generation of `tokens` tokens after each of the batch's prompts, which have `n_prompt` characters.

    `kind` is "cached" (`Transformer.generate`), "mixed" (the same, of prompts of half to all of these characters), or
    "recomputed" (the whole context for every token, as in nanoGPT).
    """
    model = build_model(Size.parse(size))
    tokenizer = model.tokenizer
    prompts = next(batches(Size.parse(size)))[0][:, : int(n_prompt)].tolist()
    if kind == "mixed":
        prompts = [prompt[row % (len(prompt) // 2 + 1) :] for row, prompt in enumerate(prompts)]

    def new(rows: list[list[int]]) -> list[list[int]]:
        return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]

    def cached() -> Callable[[], list[list[int]]]:
        texts = model.generate([tokenizer.decode(prompt) for prompt in prompts], int(tokens), temperature=0)
        return lambda: new([tokenizer.encode(text) for text in texts])

    def recomputed() -> Callable[[], list[list[int]]]:
        rows = [list(prompt) for prompt in prompts]
        with no_grad():
            for _ in range(int(tokens)):
                logits = model([row[-tokenizer.max_seq_len :] for row in rows])[:, -1, : tokenizer.vocab_size]
                for row, token in zip(rows, logits.argmax(axis=-1).tolist(), strict=True):
                    row.append(token)
        return lambda: new(rows)

    return {"cached": cached, "mixed": cached, "recomputed": recomputed}[kind]


def op(name: str, size: str) -> Callable[[], Callable[[], list[float]]]:
    """Forward and backward, with a random upstream gradient."""
    arrays, ids = op_operands(name, Size.parse(size))
    operands = [Tensor(array, requires_grad=True) for array in arrays]
    forwards: dict[str, Callable[..., Tensor]] = {
        "linear": linear,
        "gelu": lambda x: x.gelu(),
        "gelu_tanh": lambda x: x.gelu("tanh"),
        "layer_norm": layer_norm,
        "softmax": lambda x: x.softmax(),
        "cross_entropy": lambda logits: cross_entropy(logits, ids),
        "attention": lambda q, k, v: attention(q, k, v, causal=True),
        "embedding": lambda weight: embedding(weight, ids),
        "add": lambda a, b: a + b,
        "sum": lambda x: x.sum(axis=-1),
    }
    forward = forwards[name]
    upstream = Tensor(random(*forward(*operands).shape), requires_grad=False)

    def call() -> Callable[[], list[float]]:
        for operand in operands:
            operand.zero_grad()
        out = forward(*operands)
        out.backward(upstream)
        return lambda: [_norm(out), *(_norm(Tensor(operand.grad)) for operand in operands)]

    return call


def _norm(x: Tensor) -> float:
    return float(np.linalg.norm(x.numpy()))


def adamw(size: str) -> Callable[[], Callable[[], list[float]]]:
    """One step of all parameters of the model, with random gradients."""
    parameters = build_model(Size.parse(size)).parameters()
    optimizer = AdamWOptimizer(parameters, LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for parameter in parameters:
        gradient: Array = random(*parameter.shape)
        parameter.grad = parameter.backend.asarray(gradient)

    def call() -> Callable[[], list[float]]:
        optimizer.step()
        return lambda: [_norm(parameter) for parameter in parameters]

    return call


def small_op(name: str, mode: str) -> Callable[[], Any]:
    """One op on 4 elements. `mode`: "plain" (forward), "recorded" (forward with a graph) or "both" (and backward)."""
    a, b = (Tensor(random(4, seed=seed), requires_grad=mode != "plain") for seed in (1, 2))
    upstream = Tensor(random(4), requires_grad=False)
    forward = {"add": lambda: a + b, "multiply": lambda: a * b}[name]

    def both() -> None:
        a.zero_grad()
        b.zero_grad()
        forward().backward(upstream)

    return both if mode == "both" else forward
