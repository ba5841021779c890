"""Steps of SGD and Adam in NumPy, in place."""

import numpy as np

from .numpy_blocks import Array, run_in_blocks


def sgd_step(
    p: Array,
    g: Array,
    velocity: Array | None,
    rates: Array,
    clip: Array | None,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> tuple[Array, Array | None]:
    g = g.astype(p.dtype, copy=False)
    if clip is not None:
        g = g * clip
    if weight_decay:
        g = g + weight_decay * p
    if velocity is not None:
        velocity *= momentum
        velocity += g
        g = g + momentum * velocity if nesterov else velocity
    p -= rates[0] * g
    return p, velocity


def adam_step(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    rates: Array,
    clip: Array | None,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    p_half: Array | None,
) -> tuple[Array, Array, Array, Array | None]:
    rate, scale, decay = rates.tolist()
    arrays = [np.atleast_1d(array) for array in (p, g, m, v)]  # views, so writes update the parameters

    def formula(block: slice) -> None:
        p, g, m, v = (array[block] for array in arrays)
        g = g.astype(p.dtype, copy=False)
        if clip is not None:
            g = g * clip
        if weight_decay and decoupled:
            p *= 1.0 - decay
        elif weight_decay:
            g = g + weight_decay * p
        work = g * (1.0 - beta1)
        m *= beta1
        m += work
        np.multiply(g, g, out=work)
        work *= 1.0 - beta2
        v *= beta2
        v += work
        np.sqrt(v, out=work)
        work /= scale
        work += eps
        np.divide(m, work, out=work)
        work *= rate
        p -= work

    n = len(arrays[0])
    run_in_blocks(formula, 14, n, p.size // max(n, 1))
    if p_half is not None:
        p_half[...] = p
    return p, m, v, p_half
