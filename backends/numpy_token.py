"""Generation in NumPy: a block of the transformer on one token, in few calls."""

from collections.abc import Callable, Sequence
from math import sqrt as _sqrt
from typing import Any

import numpy as np

from .numpy_activations import gelu_value, leaky_relu
from .numpy_blocks import Array, is_half
from .numpy_fused import normalized

_SMALL_WEIGHT = 1 << 16  # elements; the BLAS's threads would go on spinning after a larger product


def token_block(
    x: Array,
    norms: Sequence[tuple[Array, Array, float]],
    weights: Sequence[Any],
    activation: str,
    cache: Array,
    position: int,
) -> Any:
    """On a row (C,) and a cache (2, H, S, D). It makes few calls of NumPy: their overhead takes most of the time."""
    w_qkv, w_out, w_in, b_in, w_down, b_down = weights
    if x.size != x.shape[-1] or is_half(x) or w_in.size > _SMALL_WEIGHT:
        return NotImplemented
    row = x.reshape(-1)
    qkv = normalized(row, *norms[0])[0].dot(w_qkv).reshape(3, cache.shape[2], 1, cache.shape[4])
    cache[0, :, :, position : position + 1] = qkv[1:]
    keys, values = cache[0, :, :, : position + 1]
    scores = np.matmul(qkv[0] * (1.0 / _sqrt(qkv.shape[-1])), keys.swapaxes(1, 2))  # (H, 1, S)
    scores -= np.maximum.reduce(scores, axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= np.add.reduce(scores, axis=-1, keepdims=True)
    attended = np.matmul(scores, values).reshape(-1)
    row = row + (attended if w_out is None else attended.dot(w_out))
    hidden = normalized(row, *norms[1])[0].dot(w_in)
    hidden += b_in
    out = _ACTIVATIONS[activation](hidden).dot(w_down)
    out += b_down
    out += row
    return out.reshape(x.shape)


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda a: gelu_value(a, "none"),
    "gelu_tanh": lambda a: gelu_value(a, "tanh"),
    "relu": lambda a: np.maximum(a, 0),
    "leaky_relu": lambda a: leaky_relu(a, 0.01),
}
