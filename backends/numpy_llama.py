"""The primitives of Llama's blocks in NumPy: RMS norm, the gated activation and the rotation, in blocks and threads."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from .numpy_activations import one_plus_exp
from .numpy_blocks import Array, block_length, is_half, row_means, row_sums, rows_of, run_in_blocks
from .numpy_sums import sum

# Zhang & Sennrich, "Root mean square layer normalization", arXiv:1910.07467, equation 4.


def rms_norm(x: Array, gamma: Array | None, eps: float) -> Any:
    if is_half(x):
        return NotImplemented
    if 0 < x.size == x.shape[-1] <= 1024:  # one row, whose scale is a scalar: NumPy computes faster with these
        row = x.reshape(-1)
        scale = 1.0 / np.sqrt(row.dot(row) / row.size + eps)
        y = row * scale
        if gamma is not None:
            y *= gamma
        return y.reshape(x.shape), np.full((*x.shape[:-1], 1), scale)
    rows = rows_of(x)
    n, width = rows.shape
    y, r = np.empty((n, width), x.dtype), np.empty((n, 1), x.dtype)

    def formula(block: slice) -> None:
        row, out, scale = rows[block], y[block], r[block]
        np.multiply(row, row, out=out)
        np.divide(row_sums(out), max(width, 1), out=scale)
        scale += eps
        np.sqrt(scale, out=scale)
        np.divide(1.0, scale, out=scale)
        np.multiply(row, scale, out=out)
        if gamma is not None:
            out *= gamma

    run_in_blocks(formula, 4, n, width)
    return y.reshape(x.shape), r.reshape(*x.shape[:-1], 1)


def rms_norm_backward(g: Array, x: Array, gamma: Array | None, r: Array, needs: Sequence[bool]) -> Any:
    if is_half(g):
        return NotImplemented
    need_x, need_gamma = needs
    gs, xs, scales = rows_of(g), rows_of(x), rows_of(r)
    n, width = xs.shape
    gx = np.empty(xs.shape, g.dtype) if need_x else None
    weight = np.ones(width, g.dtype) if gamma is None else gamma
    length = block_length(n, width) or 1
    sums = np.empty((-(-n // length), width), g.dtype)  # of each block, so that threads do not change the result

    def formula(block: slice) -> None:
        normed = xs[block] * scales[block]
        g_normed = gs[block] * normed
        if need_gamma:
            sums[block.start // length] = sum(g_normed, axis=0)
        if gx is not None:
            normed *= row_means(g_normed, weight)
            h = np.multiply(gs[block], weight, out=gx[block])
            h -= normed
            h *= scales[block]

    run_in_blocks(formula, 8, n, width)
    return None if gx is None else gx.reshape(x.shape), sum(sums, axis=0) if need_gamma else None


_UNCHECKED = np.errstate(over="ignore", invalid="ignore")

# Shazeer, "GLU variants improve transformer", arXiv:2002.05202, equation 5.


def swiglu(gate: Array, up: Array) -> Any:
    if is_half(gate):
        return NotImplemented
    a, b = gate.reshape(-1), up.reshape(-1)
    out = np.empty(a.shape, gate.dtype)

    @_UNCHECKED
    def formula(block: slice) -> None:
        y = one_plus_exp(a[block], out[block])
        np.divide(a[block], y, out=y)
        y *= b[block]

    run_in_blocks(formula, 9, a.size)
    return out.reshape(gate.shape)


def swiglu_backward(g: Array, gate: Array, up: Array, needs: Sequence[bool]) -> Any:
    if is_half(g):
        return NotImplemented
    gs, a, b = g.reshape(-1), gate.reshape(-1), up.reshape(-1)
    g_gate, g_up = np.empty(a.shape, g.dtype), np.empty(a.shape, g.dtype)

    @_UNCHECKED
    def formula(block: slice) -> None:
        slope, silu = g_gate[block], g_up[block]
        sigmoid = one_plus_exp(a[block], np.empty_like(slope))
        np.divide(1.0, sigmoid, out=sigmoid)
        np.multiply(a[block], sigmoid, out=silu)
        np.subtract(1.0, sigmoid, out=slope)
        slope *= silu
        slope += sigmoid
        slope *= b[block]
        slope *= gs[block]
        silu *= gs[block]

    run_in_blocks(formula, 15, a.size)
    return tuple(x.reshape(gate.shape) if need else None for x, need in zip((g_gate, g_up), needs, strict=True))


# Su et al., "RoFormer", arXiv:2104.09864, equation 34.

_FEW = 1024


def rotary(x: Array, cos: Array, sin: Array) -> Any:
    if is_half(x) or x.size <= _FEW:  # for which preparing takes longer than all of the formula
        return NotImplemented
    if x.ndim < 3:
        return rotary(x[None], cos, sin)[0]
    half, per_item = x.shape[-1] // 2, cos.ndim == x.ndim and len(cos) > 1
    out = np.empty_like(x)  # with the memory layout of x
    # (cos, cos) and (-sin, sin) in this layout, so that loops are longer than half a row.
    c, s = np.empty_like(x if per_item else x[:1]), np.empty_like(x if per_item else x[:1])
    c[..., :half] = c[..., half:] = cos
    s[..., half:] = sin
    np.negative(sin, out=s[..., :half])
    c, s = np.broadcast_to(c, x.shape), np.broadcast_to(s, x.shape)

    def formula(block: slice) -> None:
        y, swapped = np.multiply(x[block], c[block], out=out[block]), np.empty_like(x[block])
        swapped[..., :half] = x[block, ..., half:]
        swapped[..., half:] = x[block, ..., :half]
        swapped *= s[block]
        y += swapped

    run_in_blocks(formula, 6, len(x), prod(x.shape[1:]))
    return out
