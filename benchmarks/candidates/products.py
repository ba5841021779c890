"""A lower bound for a training step: only its matrix products, in NumPy, into preallocated arrays."""

from collections.abc import Callable

import numpy as np

from benchmarks.candidates.model import CHARACTERS, LLAMA, Size, random


def train_step(size: str) -> Callable[[], None]:
    """The products of attention are full (T x T), although causal attention needs only half of them."""
    s = Size.parse(size)
    rows, width, wide = s.batch * s.length, s.width, 4 * s.width
    inner, n_batches = width // s.heads, s.batch * s.heads
    weights = [*[(width, width)] * 4, (width, wide), (wide, width)]
    if s.blocks == LLAMA:  # half as many keys and values; a feed-forward layer of 2/3 of the width, with a gate
        gate = (width, -(-wide // 12) * 8)
        weights = [*[(width, width)] * 3, gate, gate, gate[::-1]]
    shapes = [
        *[(1, rows, *weight) for weight in weights] * s.layers,
        *[(n_batches, s.length, inner, s.length), (n_batches, s.length, s.length, inner)] * s.layers,
        (1, rows, width, len(CHARACTERS) + 1),
    ]
    work = []
    for n, a, b, c in shapes:  # out = x @ w, then the gradients of x and w
        x, w, g = random(n, a, b), random(n, b, c), random(n, a, c)
        work.append((x, w, g, np.empty_like(x), np.empty_like(w), np.empty_like(g)))

    def step() -> None:
        for x, w, g, gx, gw, out in work:
            np.matmul(x, w, out=out)
            np.matmul(g, w.swapaxes(1, 2), out=gx)
            np.matmul(x.swapaxes(1, 2), g, out=gw)

    return step
