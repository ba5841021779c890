"""Convolution and pooling in NumPy: windows and one matrix product, in blocks that fit the cache, on several threads.

The formulas in `formulas.py` write all windows to memory. Here a block has those of a few samples, or of some rows of
one sample. The product takes most of the time.

Copying windows is faster the longer the runs of neighbouring elements are. With a stride of 1, outputs are therefore
computed for all columns of the padded input, which are too many by the kernel's width minus 1. Then the elements at one
place of all windows of a sample and channel are one run. The surplus columns of the product are dropped.
"""

from collections.abc import Sequence
from itertools import pairwise, product
from math import prod
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .cpu import run_parallel
from .numpy_blocks import FLOP_TIME, STEP_TIME, Array, Shape, is_half
from .numpy_sums import sum

Padding: TypeAlias = tuple[tuple[int, int], ...]

_SHARES = 16  # of the sum over blocks: the gradient of the weight does not depend on the number of threads


class Block(NamedTuple):
    """Some samples, and some rows of their outputs."""

    samples: slice
    rows: slice
    n_samples: int
    n_rows: int


class Windows:
    """The windows of x (N, C, H, W), as columns of matrices, one for each group and block of outputs.

    Outputs and their gradients are matrices (groups, O / groups, samples * rows * width) here.
    """

    # Bytes of the windows in a block. Smaller ones would fit a faster cache, but Python's lock passes from thread to
    # thread at each call of a NumPy function, which takes longer than a short call.
    block_bytes = 1 << 22

    def __init__(
        self, x: Array, weight: Array, stride: Shape, padding: Padding, dilation: Shape, groups: int,
        may_have_surplus: bool = True,
    ) -> None:  # fmt: skip
        self.x, self.groups, self.stride, self.dilation = x, groups, stride, dilation
        (self.n, self.c, *self.lengths), self.o, self.kernel = x.shape, weight.shape[0], weight.shape[2:]
        (self.top, _), (self.left, _) = padding
        self.padded = tuple(n + before + after for n, (before, after) in zip(self.lengths, padding, strict=True))
        spans = (d * (k - 1) for k, d in zip(self.kernel, dilation, strict=True))
        self.out = tuple((n - span - 1) // s + 1 for n, span, s in zip(self.padded, spans, stride, strict=True))
        # The number of columns to compute. With surplus columns, the runs of windows are long, those of outputs short.
        is_worthwhile = self.c * prod(self.kernel) > self.o and self.padded[1] <= 1.5 * self.out[1]
        self.width = self.padded[1] if may_have_surplus and stride == (1, 1) and is_worthwhile else self.out[1]
        self.is_x = self.kernel == stride == (1, 1) and self.padded == tuple(self.lengths)
        self.size = self.c // groups * self.kernel[0] * self.kernel[1]  # of a window

    def blocks(self) -> list[list[Block]]:
        """All blocks, as one list for each group of samples."""
        rows, row_bytes = self.out[0], self.groups * self.size * self.width * self.x.itemsize
        fitting = max(1, self.block_bytes // max(1, row_bytes))
        n_samples = 1 if self.is_x else max(1, min(fitting // rows, -(-self.n // 2)))  # two blocks for two threads
        pieces = max(-(-rows // fitting), min(rows, 2 if self.n == 1 else 1))
        n_blocks = -(-self.n // n_samples)  # none if there are no samples
        bounds = [rows * i // pieces for i in range(pieces + 1)]
        return [
            [
                Block(slice(start, stop), slice(first, last), stop - start, last - first)
                for first, last in pairwise(bounds)
            ]
            for start, stop in pairwise(self.n * i // max(n_blocks, 1) for i in range(n_blocks + 1))
        ]

    # Products

    def times(self, weight: Array, block: Block) -> Array:
        """The product of the weight (groups, O / groups, size) and the windows of a block."""
        return np.asarray(np.matmul(weight, self.columns(block)))

    def weight_gradient(self, block: Block, g: Array) -> Array:
        """The gradient of the weight, transposed: (groups, size, O / groups)."""
        return np.asarray(np.matmul(self.columns(block), g.swapaxes(1, 2)))  # in OpenBLAS faster than g windows^T

    def add_gradient(self, block: Block, weight: Array, g: Array, to: Any) -> None:
        """Add the gradient of the windows of a block to what `start` returned."""
        transposed = weight.swapaxes(1, 2)
        # np.matmul is slow for the outer product of (..., n, 1) and (..., 1, m).
        columns = transposed * g if g.shape[1] == 1 else np.matmul(transposed, g)
        if self.is_x:
            to[:, 0, block.rows] = columns.reshape(self.c, -1, self.width)
        else:
            self.add(block, columns, to[1])

    def start(self, gx: Array) -> Any:
        """Where `add_gradient` adds the gradient of some samples, gx (samples, C, H, W)."""
        return gx.swapaxes(0, 1) if self.is_x else self.zeros(len(gx), self.padded[0])

    def finish(self, to: Any, gx: Array) -> None:
        """Write the sums of `add_gradient` to gx."""
        if not self.is_x:
            inside = to[0][:, :, self.top : self.top + self.lengths[0], self.left : self.left + self.lengths[1]]
            gx[...] = inside.swapaxes(0, 1)

    # Copies between the layouts of arrays and matrices

    def columns(self, block: Block) -> Array:
        """The windows of a block: (groups, size, samples * rows * width)."""
        if self.is_x:
            return self.x[block.samples.start, :, block.rows].reshape(self.groups, self.size, -1)
        columns = np.empty((self.c, *self.kernel, block.n_samples, block.n_rows, self.width), self.x.dtype)
        self.copy(block, self.pad(block), columns)
        return columns.reshape(self.groups, self.size, -1)

    def pad(self, block: Block) -> Array:
        """The part of x that a block sees, padded, as `zeros` returns it."""
        height = self.height(block.n_rows)
        padded, flat = self.zeros(block.n_samples, height)
        first = block.rows.start * self.stride[0] - self.top
        inside = slice(max(first, 0), min(first + height, self.lengths[0]))
        if inside.stop > inside.start:
            target = padded[:, :, inside.start - first : inside.stop - first, self.left : self.left + self.lengths[1]]
            target[...] = self.x[block.samples, :, inside].swapaxes(0, 1)
        return flat

    def copy(self, block: Block, flat: Array, columns: Array) -> None:
        """Write the windows of a padded input to `columns` (C, *kernel, samples, rows, width)."""
        np.copyto(columns, self._view(flat, block, self.height(block.n_rows)))

    def add(self, block: Block, columns: Array, flat: Array) -> None:
        """Add the gradients of the windows of a block to a padded gradient of all rows."""
        views = self._view(flat[block.rows.start * self.stride[0] * self.padded[1] :], block, self.padded[0])
        columns = columns.reshape(views.shape)
        for i, j in product(*map(range, self.kernel)):
            np.add(views[:, i, j], columns[:, i, j], out=views[:, i, j])

    def write(self, block: Block, found: Array, bias: Array | None, out: Array) -> None:
        """Write the outputs of a block and the bias to out."""
        found = found.reshape(self.o, block.n_samples, block.n_rows, self.width)[..., : self.out[1]].swapaxes(0, 1)
        target = out[block.samples, :, block.rows]
        if bias is None:
            target[...] = found
        else:
            np.add(found, bias[:, None, None], out=target)

    def read(self, block: Block, g: Array) -> Array:
        """The gradient of the outputs of a block; 0 in surplus columns."""
        part = g[block.samples, :, block.rows]
        if block.n_samples == 1 and self.width == self.out[1]:
            return np.asarray(part[0].reshape(self.groups, self.o // self.groups, -1))
        rows = np.empty((self.o, block.n_samples, block.n_rows, self.width), g.dtype)
        rows[..., : self.out[1]] = part.swapaxes(0, 1)
        rows[..., self.out[1] :] = 0
        return np.asarray(rows.reshape(self.groups, self.o // self.groups, -1))

    def height(self, n_rows: int) -> int:
        """The rows of the padded input that n_rows rows of outputs see."""
        return int((n_rows - 1) * self.stride[0] + self.dilation[0] * (self.kernel[0] - 1) + 1)

    def zeros(self, n_samples: int, height: int) -> tuple[Array, Array]:
        """Zeros (C, samples, height, W), and the same as (n,) with some more, which surplus columns see."""
        shape = (self.c, n_samples, height, self.padded[1])
        flat = np.zeros(prod(shape) + self.dilation[1] * (self.kernel[1] - 1), self.x.dtype)
        return flat[: prod(shape)].reshape(shape), flat

    def _view(self, flat: Array, block: Block, height: int) -> Array:
        """All windows in a padded input of this height, a view: (C, *kernel, samples, rows, width)."""
        row = self.padded[1]
        steps = (block.n_samples * height * row, row * self.dilation[0], self.dilation[1], height * row,
                 row * self.stride[0], self.stride[1])  # fmt: skip
        shape = (self.c, *self.kernel, block.n_samples, block.n_rows, self.width)
        return as_strided(flat, shape, tuple(step * flat.itemsize for step in steps))


def conv(
    x: Array, weight: Array, bias: Array | None, stride: Shape, padding: Padding, dilation: Shape, groups: int
) -> Any:
    return convolve(Windows, x, weight, bias, stride, padding, dilation, groups)


def conv_backward(
    g: Array, x: Array, weight: Array, stride: Shape, padding: Padding, dilation: Shape, groups: int,
    needs: Sequence[bool],
) -> Any:  # fmt: skip
    return convolve_backward(Windows, g, x, weight, stride, padding, dilation, groups, needs)


def convolve(
    windows: type[Windows], x: Array, weight: Array, bias: Array | None, stride: Shape, padding: Padding,
    dilation: Shape, groups: int,
) -> Any:  # fmt: skip
    """`conv` with this class of windows."""
    if is_half(x) or x.ndim > 4:
        return NotImplemented
    if x.ndim == 3:  # (N, C, W) is (N, C, 1, W)
        x, weight = _with_row(x, weight)
        return convolve(windows, x, weight, bias, *_with_axis(stride, padding, dilation), groups)[:, :, 0]
    w = windows(x, weight, stride, padding, dilation, groups)
    matrices = weight.reshape(groups, w.o // groups, w.size)
    out = np.empty((w.n, w.o, *w.out), x.dtype)
    blocks = [block for of_samples in w.blocks() for block in of_samples]

    def part(start: int, stop: int) -> None:
        for block in blocks[start:stop]:
            w.write(block, w.times(matrices, block), bias, out)

    run_parallel(len(blocks), _cost(w, out.size, 1), part)
    return out


def convolve_backward(
    windows: type[Windows], g: Array, x: Array, weight: Array, stride: Shape, padding: Padding, dilation: Shape,
    groups: int, needs: Sequence[bool], may_have_surplus: bool = True,
) -> Any:  # fmt: skip
    """`conv_backward` with this class of windows."""
    if is_half(g) or x.ndim > 4:
        return NotImplemented
    if x.ndim == 3:
        g, x, weight = _with_row(g, x, weight)
        gx, gw, gb = convolve_backward(windows, g, x, weight, *_with_axis(stride, padding, dilation), groups, needs)
        return None if gx is None else gx[:, :, 0], None if gw is None else gw[:, :, 0], gb
    w = windows(x, weight, stride, padding, dilation, groups, may_have_surplus)
    matrices = weight.reshape(groups, w.o // groups, w.size)
    of_samples = w.blocks()
    shares = min(_SHARES, len(of_samples))
    gx = np.empty(x.shape, g.dtype) if needs[0] else None
    gw = np.zeros((shares, groups, w.size, w.o // groups), g.dtype)
    gb = np.zeros((shares, w.o))  # float64, because the blocks are added one by one

    def one(share: int, blocks: Sequence[Block]) -> None:
        part = None if gx is None else gx[blocks[0].samples]
        to = None if part is None else w.start(part)
        for block in blocks:
            rows = w.read(block, g)
            if needs[1]:
                gw[share] += w.weight_gradient(block, rows)
            if needs[2]:
                gb[share] += np.add.reduce(rows, axis=-1).reshape(-1)
            if to is not None:
                w.add_gradient(block, matrices, rows, to)
        if part is not None:
            w.finish(to, part)

    def some(start: int, stop: int) -> None:
        for share in range(start, stop):
            for blocks in of_samples[len(of_samples) * share // shares : len(of_samples) * (share + 1) // shares]:
                one(share, blocks)

    run_parallel(shares, _cost(w, g.size, needs[0] + needs[1]), some)
    if w.width > w.out[1] and not (np.isfinite(weight).all() and np.isfinite(gw).all()):
        # In surplus columns g is 0, and 0 times inf is nan.
        return convolve_backward(windows, g, x, weight, stride, padding, dilation, groups, needs, False)
    return (
        gx,
        sum(gw, axis=0).swapaxes(1, 2).reshape(weight.shape) if needs[1] else None,
        sum(gb, axis=0).astype(g.dtype) if needs[2] else None,
    )


def _with_row(*arrays: Array) -> tuple[Array, ...]:
    return tuple(array[:, :, None] for array in arrays)


def _with_axis(stride: Shape, padding: Padding, dilation: Shape) -> tuple[Shape, Padding, Shape]:
    return (1, *stride), ((0, 0), *padding), (1, *dilation)


def _cost(w: Windows, n_outputs: int, products: int) -> float:
    """The time of products of windows, in microseconds."""
    n_elements = n_outputs // max(w.o, 1) * w.groups * w.size
    return float(products * (2 * n_outputs * w.size * FLOP_TIME + (n_elements + n_outputs) * STEP_TIME))


# --- Max pooling


def max_pool_indices(x: Array, kernel: Shape, stride: Shape, padding: Padding, dilation: Shape) -> Any:
    """The maximum of all elements at one place of the windows and the next, and then the first place that has it."""
    if x.ndim != 4:
        return NotImplemented
    n, c, height, width = x.shape
    (top, bottom), (left, right) = padding
    planes = x.reshape(n * c, height, width)
    out, firsts, places, slices = [], [], [], []
    for length, pads, k, s, d in zip((height, width), padding, kernel, stride, dilation, strict=True):
        out.append((length + pads[0] + pads[1] - d * (k - 1) - 1) // s + 1)
        places.append(np.arange(out[-1]) * s - pads[0])  # where windows begin
        firsts.append(np.maximum(0, -(places[-1] // d)))  # their first elements inside x
        slices.append([slice(i * d, i * d + (out[-1] - 1) * s + 1, s) for i in range(k)])
    begin = places[0][:, None] * width + places[1]
    steps = np.array([i * dilation[0] * width + j * dilation[1] for i, j in product(*map(range, kernel))])
    indices = np.empty((n * c, *out), np.int64)
    is_padded = any((top, bottom, left, right))
    small = np.uint8 if len(steps) < 256 else np.int64
    first = (firsts[0][:, None] * kernel[1] + firsts[1]).astype(small)
    length = max(1, (1 << 20) // (x.itemsize * max(1, height * width)))
    lowest = -np.inf if x.dtype.kind == "f" else False if x.dtype.kind == "b" else np.iinfo(x.dtype).min

    def formula(block: slice) -> None:
        padded = np.pad(planes[block], ((0, 0), *padding), constant_values=lowest) if is_padded else planes[block]
        values = [padded[:, rows, columns] for rows, columns in product(*slices)]
        best = values[0].copy()
        for value in values[1:]:
            np.maximum(best, value, out=best)
        # The number of elements before the first maximum.
        place, is_before = np.zeros(best.shape, small), np.ones(best.shape, bool)
        for value in values[:-1]:
            is_before &= value != best
            place += is_before.view(np.uint8)
        is_nan = best != best
        if is_nan.any():
            for i, value in enumerate(values):
                place[is_nan & (value != value)] = i
        if is_padded:  # which may be the first in windows of the lowest value
            np.copyto(place, first, where=best == lowest)
        found = np.take(steps, place, out=indices[block])
        found += begin
        found += (np.arange(block.start, block.stop) * (height * width))[:, None, None]

    def part(start: int, stop: int) -> None:
        for i in range(start, stop, length):
            formula(slice(i, min(i + length, stop)))

    run_parallel(len(planes), indices.size * len(steps) * 3 * STEP_TIME, part)
    return indices.reshape(n, c, *out)
