"""The model for libraries with NumPy's functions, and AdamW for those that have none.

The model uses only operations that these libraries share. Activations are (B * T, C), since matrix products are faster
than batched products in these libraries. A mean is a sum times 1/n, since the gradient of their `mean` divides by a
NumPy integer, which makes it float64.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from benchmarks.candidates.model import LEARNING_RATE, WEIGHT_DECAY, Array, Size

Value: TypeAlias = Any  # an array or the library's tensor

SQRT_HALF = math.sqrt(0.5)


@dataclass(frozen=True)
class Library:
    """The functions that differ between the libraries."""

    numpy: Any  # the library's namespace of NumPy functions
    gelu: Callable[[Value], Value]
    softmax: Callable[[Value], Value]  # along the last axis
    cross_entropy: Callable[[Value, Array], Value]  # logits (N, classes), targets (N,) -> the mean
    constant: Callable[[Array], Value] = lambda array: array  # a NumPy array as an operand


def loss_of(library: Library, p: Mapping[str, Value], size: Size, inputs: Array, targets: Array) -> Value:
    """The mean cross-entropy of a batch (B, T)."""
    return library.cross_entropy(logits_of(library, p, size, inputs), targets.reshape(-1))


def logits_of(library: Library, p: Mapping[str, Value], size: Size, inputs: Array) -> Value:
    """The logits of a batch, (B * T, characters)."""
    xp, table = library.numpy, p["tokenizer.token_embedding"]
    x = xp.reshape(table[inputs] + p["tokenizer.positional_encoding"], (-1, size.width))
    for i in range(size.layers):
        start = f"blocks.{i}."
        w = {name.removeprefix(start): value for name, value in p.items() if name.startswith(start)}
        h = _layer_norm(xp, x, w["attention_norm.gamma"], w["attention_norm.beta"])
        x = x + xp.matmul(_attention(library, h, w, size), w["attention.w_out"])
        h = _layer_norm(xp, x, w["feed_forward_norm.gamma"], w["feed_forward_norm.beta"])
        h = library.gelu(xp.matmul(h, w["feed_forward.w_in"]) + w["feed_forward.b_in"])
        x = x + (xp.matmul(h, w["feed_forward.w_out"]) + w["feed_forward.b_out"])
    h = _layer_norm(xp, x, p["final_norm.gamma"], p["final_norm.beta"])
    return xp.matmul(h, xp.transpose(table[:-1]))


def _layer_norm(xp: Any, x: Value, gamma: Value, beta: Value) -> Value:
    each = 1 / x.shape[-1]
    centred = x - xp.sum(x, axis=-1, keepdims=True) * each
    variance = xp.sum(centred * centred, axis=-1, keepdims=True) * each
    return centred / xp.sqrt(variance + 1e-5) * gamma + beta


def _attention(library: Library, h: Value, w: Mapping[str, Value], size: Size) -> Value:
    """Causal self-attention of all heads: (B * T, C) -> (B * T, C)."""
    xp, inner = library.numpy, size.width // size.heads
    later = library.constant(np.triu(np.full((size.length, size.length), -np.inf, np.float32), 1))

    qkv = xp.reshape(xp.matmul(h, w["attention.w_qkv"]), (size.batch, size.length, 3, size.heads, inner))
    q, k, v = (xp.transpose(qkv[:, :, i], (0, 2, 1, 3)) for i in range(3))
    scores = xp.matmul(q, xp.transpose(k, (0, 1, 3, 2))) * (1 / math.sqrt(inner)) + later
    return xp.reshape(xp.transpose(xp.matmul(library.softmax(scores), v), (0, 2, 1, 3)), h.shape)


class AdamW:
    """AdamW in NumPy, in place (Loshchilov & Hutter, arXiv:1711.05101, algorithm 2)."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.arrays, self.steps = arrays, 0
        self.means = {name: (np.zeros_like(array), np.zeros_like(array)) for name, array in arrays.items()}

    def step(self, gradients: Mapping[str, Array]) -> None:
        """Update the arrays. Raises TypeError for a gradient of another dtype: the times would not be comparable."""
        self.steps += 1
        for name, p in self.arrays.items():
            g, (m, v) = gradients[name], self.means[name]
            if g.dtype != p.dtype:
                raise TypeError(f"AdamW: {name} is {p.dtype}, but its gradient {g.dtype}; keep the model in {p.dtype}")
            m += (1 - 0.9) * (g - m)
            v += (1 - 0.999) * (g * g - v)
            p *= 1 - LEARNING_RATE * WEIGHT_DECAY
            p -= LEARNING_RATE / (1 - 0.9**self.steps) * m / (np.sqrt(v / (1 - 0.999**self.steps)) + 1e-8)
