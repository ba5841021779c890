"""The model that every candidate trains: the default GPT of `train/train_transformer.py`.

It has exact GELU, an output projection, a final layer norm and no dropout. Every call gives the same weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any, TypeAlias

import numpy as np

from russellgrad import get_default_dtype, set_default_dtype
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer

Array: TypeAlias = np.ndarray[Any, Any]

CHARACTERS = "".join(chr(code) for code in range(33, 98))  # 65 characters, like Tiny Shakespeare
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.1
N_BATCHES = 8

# GPU candidates: the model's dtype and the level of `set_matmul_precision`, which PyTorch names in the same way.
PRECISIONS = {
    "fp64": ("float64", "highest"),
    "fp32": ("float32", "highest"),
    "tf32": ("float32", "high"),
    "bf16": ("bfloat16", "highest"),
}


@dataclass(frozen=True)
class Size:
    """The size of a model and its batch."""

    layers: int
    heads: int
    width: int
    length: int
    batch: int

    @classmethod
    def parse(cls, text: str) -> "Size":
        return cls(*map(int, text.split("/")))

    def __str__(self) -> str:
        return f"{self.layers}/{self.heads}/{self.width}/{self.length}/{self.batch}"


def batches(size: Size) -> Iterator[tuple[Array, Array]]:
    """Endless batches of inputs and targets, each (B, T): random, and the same for every candidate."""
    ids = np.random.default_rng(0).integers(0, len(CHARACTERS), (N_BATCHES, size.batch, size.length + 1))
    return cycle([(batch[:, :-1].copy(), batch[:, 1:].copy()) for batch in ids])


def build_model(size: Size, dtype: str = "float32") -> Transformer:
    default = get_default_dtype()
    set_default_dtype(dtype)
    try:
        tokenizer = Tokenizer.from_text(CHARACTERS, size.length, size.width, seed=0)
        return Transformer(
            tokenizer, size.layers, size.heads, activation="gelu", output_projection=True, final_norm=True, seed=0
        )
    finally:
        set_default_dtype(default)


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def op_operands(op: str, size: Size) -> tuple[list[Array], Array]:
    """The float arrays of an op's operands in this model, and ids for the ops that need them."""
    b, t, c, h, classes = size.batch, size.length, size.width, size.heads, len(CHARACTERS) + 1
    tokens = (b, t, c)
    shapes: dict[str, list[tuple[int, ...]]] = {
        "linear": [tokens, (c, 4 * c), (4 * c,)],
        "gelu": [(b, t, 4 * c)],
        "gelu_tanh": [(b, t, 4 * c)],
        "layer_norm": [tokens, (c,), (c,)],
        "softmax": [(b, h, t, t)],
        "cross_entropy": [(b * t, classes)],
        "attention": [(b, h, t, c // h)] * 3,
        "embedding": [(classes, c)],
        "add": [tokens, (t, c)],
        "sum": [tokens],
    }
    arrays = [random(*shape, seed=seed) for seed, shape in enumerate(shapes[op])]
    ids = np.random.default_rng(0).integers(0, len(CHARACTERS), (b * t,) if op == "cross_entropy" else (b, t))
    return arrays, ids
