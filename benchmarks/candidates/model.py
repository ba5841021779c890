"""The model that every candidate trains: the default GPT of `train/train_transformer.py`, or a Llama of its size.

The GPT has exact GELU, an output projection, a final layer norm and no dropout. Every call gives the same weights.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import Any, TypeAlias

import numpy as np

from russellgrad import get_default_dtype, set_default_dtype
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer

Array: TypeAlias = np.ndarray[Any, Any]

CHARACTERS = "".join(chr(code) for code in range(33, 98))  # 65 characters, like Tiny Shakespeare
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.1
N_BATCHES = 8
LLAMA = "llama/"  # before the numbers of a size

# GPU candidates: the model's dtype and the level of `set_matmul_precision`, which PyTorch names in the same way.
PRECISIONS = {
    "fp64": ("float64", "highest"),
    "fp32": ("float32", "highest"),
    "tf32": ("float32", "high"),
    "bf16": ("bfloat16", "highest"),
}


@dataclass(frozen=True)
class Size:
    """The size of a model and its batch: "4/4/128/64/12", or "llama/4/4/128/64/12" with Llama's blocks.

    Llama has half as many heads of keys and values, `n_kv_heads`, as heads of queries.
    """

    layers: int
    heads: int
    width: int
    length: int
    batch: int
    blocks: str = ""  # or LLAMA

    @classmethod
    def parse(cls, text: str) -> "Size":
        numbers = text.removeprefix(LLAMA)
        layers, heads, width, length, batch = map(int, numbers.split("/"))
        return cls(layers, heads, width, length, batch, text.removesuffix(numbers))

    def __str__(self) -> str:
        return f"{self.blocks}{self.layers}/{self.heads}/{self.width}/{self.length}/{self.batch}"


def batches(size: Size) -> Iterator[tuple[Array, Array]]:
    """Endless batches of inputs and targets, each (B, T): random, and the same for every candidate."""
    ids = np.random.default_rng(0).integers(0, len(CHARACTERS), (N_BATCHES, size.batch, size.length + 1))
    return cycle([(batch[:, :-1].copy(), batch[:, 1:].copy()) for batch in ids])


def build_model(size: Size, dtype: str = "float32") -> Transformer:
    default = get_default_dtype()
    set_default_dtype(dtype)
    try:
        is_llama = size.blocks == LLAMA
        tokenizer = Tokenizer.from_text(CHARACTERS, size.length, size.width, seed=0, positional_encoding=not is_llama)
        if is_llama:
            return Transformer.llama(tokenizer, size.layers, size.heads, n_kv_heads=size.heads // 2, seed=0)
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


# --- For benchmarks/second_derivatives.py

CRITIC = 2, 64, 64, 1  # the widths of the critic of a two-dimensional GAN
CRITIC_BATCH = 64
MLP = 8, 32, 8


def mlp_arrays(widths: Sequence[int]) -> list[Array]:
    """The weight (in, out) and the bias of each layer of an MLP with tanh between the layers."""
    return [
        array
        for i, (n, m) in enumerate(pairwise(widths))
        for array in (random(n, m, seed=2 * i) / np.float32(n) ** 0.5, random(m, seed=2 * i + 1))
    ]


def direction(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """A random array in the shape and dtype of each array."""
    return {
        name: random(*array.shape, seed=1000 + i).astype(array.dtype) for i, (name, array) in enumerate(arrays.items())
    }


def fingerprint(arrays: Iterable[Array]) -> list[float]:
    """For each array, the norm of its sum with a random array of the same norm.

    Unlike the array's own norm, it depends on the signs and the order of the elements.
    """
    found = []
    for i, array in enumerate(arrays):
        other = random(*array.shape, seed=2000 + i)
        found.append(float(np.linalg.norm(array + other * (np.linalg.norm(array) / np.linalg.norm(other)))))
    return found
