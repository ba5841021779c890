"""Convolution of the Numba backend: compiled loops around the matrix product, for float32.

`numpy_convolution.py` describes the windows. Compiled loops are used for all that is not the product.
A convolution with one channel in each group, such as a depthwise one or the sums of an average pooling, has no
product at all.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from .numba_compile import compiled, is_float32
from .numpy_blocks import Array, Shape
from .numpy_convolution import Block, Padding, Windows, convolve, convolve_backward

# --- Runs of elements, of flat arrays. Numba checks a signed index for being negative, which an unsigned one is not.

_u = np.uint64
Sizes: TypeAlias = tuple[int, ...]  # what `CompiledWindows.runs` returns


@compiled()
def _copy_run(target: Array, i: int, source: Array, j: int, step: int, n: int) -> None:
    """target[i + q] = source[j + q step]."""
    k, m = _u(i), _u(j)
    if step == 1:
        for q in range(_u(n)):
            target[k + q] = source[m + q]
    else:
        for q in range(_u(n)):
            target[k + q] = source[m + q * _u(step)]


@compiled("contract")
def _add_run(target: Array, i: int, step: int, source: Array, j: int, n: int, scale: Any) -> None:
    """target[i + q step] += scale source[j + q]."""
    k, m = _u(i), _u(j)
    if step == 1:
        for q in range(_u(n)):
            target[k + q] += scale * source[m + q]
    else:
        for q in range(_u(n)):
            target[k + q * _u(step)] += scale * source[m + q]


@compiled("contract", "reassoc")
def _gather_run(target: Array, i: int, source: Array, j: int, step: int, n: int, scale: Any) -> None:
    """target[i + q] += scale source[j + q step]."""
    k, m = _u(i), _u(j)
    if step == 1:
        for q in range(_u(n)):
            target[k + q] += scale * source[m + q]
    else:
        for q in range(_u(n)):
            target[k + q] += scale * source[m + q * _u(step)]


@compiled("contract", "reassoc")
def _dot_run(a: Array, i: int, b: Array, j: int, step: int, n: int) -> Any:
    """The sum of a[i + q] b[j + q step]."""
    k, m, total = _u(i), _u(j), np.float32(0)
    if step == 1:
        for q in range(_u(n)):
            total += a[k + q] * b[m + q]
    else:
        for q in range(_u(n)):
            total += a[k + q] * b[m + q * _u(step)]
    return total


# --- Windows and one product


class CompiledWindows(Windows):
    """The windows of a float32 array, which is contiguous.

    With surplus columns, all rows of a sample at one place of the windows are one run, else each row is one.
    """

    def __init__(self, x: Array, weight: Array, *sizes: Any) -> None:
        super().__init__(np.ascontiguousarray(x), weight, *sizes)
        self.is_by_channel = self.c == self.o == self.groups  # no product, but a sum of runs

    def times(self, weight: Array, block: Block) -> Array:
        if not self.is_by_channel:
            return super().times(weight, block)
        out = np.zeros((self.c, 1, block.n_samples * block.n_rows * self.width), np.float32)
        _times(self.pad(block), weight, out, self.runs(block, self.height(block.n_rows)))
        return out

    def weight_gradient(self, block: Block, g: Array) -> Array:
        if not self.is_by_channel:
            return super().weight_gradient(block, g)
        gw = np.empty((self.groups, self.size, 1), np.float32)
        _weight_gradient(self.pad(block), g, gw, self.runs(block, self.height(block.n_rows)))
        return gw

    def add_gradient(self, block: Block, weight: Array, g: Array, to: Any) -> None:
        if not self.is_by_channel or self.is_x:
            return super().add_gradient(block, weight, g, to)
        flat = to[1][block.rows.start * self.stride[0] * self.padded[1] :]
        _add_gradient(flat, weight, g, self.runs(block, self.padded[0]))

    def pad(self, block: Block) -> Array:
        padded, flat = self.zeros(block.n_samples, self.height(block.n_rows))
        _pad(self.x[block.samples], padded, block.rows.start * self.stride[0] - self.top, self.left)
        return flat

    def finish(self, to: Any, gx: Array) -> None:
        if not self.is_x:
            _crop(to[0], gx, self.top, self.left)

    def copy(self, block: Block, flat: Array, columns: Array) -> None:
        _copy(flat, columns, self.runs(block, self.height(block.n_rows)))

    def add(self, block: Block, columns: Array, flat: Array) -> None:
        flat = flat[block.rows.start * self.stride[0] * self.padded[1] :]
        _add(flat, columns, self.runs(block, self.padded[0]))

    def write(self, block: Block, found: Array, bias: Array | None, out: Array) -> None:
        shifts = np.zeros(self.o, np.float32) if bias is None else np.ascontiguousarray(bias)
        shape = (self.o, block.n_samples, block.n_rows, self.width)
        _write(found.reshape(shape), shifts, out[block.samples], block.rows.start)

    def read(self, block: Block, g: Array) -> Array:
        if block.n_samples == 1 and self.width == self.out[1]:
            return super().read(block, g)
        rows = np.zeros((self.o, block.n_samples, block.n_rows, self.width), np.float32)
        _read(rows, np.ascontiguousarray(g[block.samples]), block.rows.start)
        return rows.reshape(self.groups, self.o // self.groups, -1)

    def runs(self, block: Block, height: int) -> Sizes:
        """Where the runs of a block are in a padded input of this height, for the loops below.

        The kernel; samples, and the elements between them; elements between rows and columns of a window; runs, the
        elements of one, and the elements of the input between two runs and between two elements of one.
        """
        row = self.padded[1]
        is_one = self.stride == (1, 1) and self.width == row
        runs = (1, block.n_rows * row) if is_one else (block.n_rows, self.width)
        steps = height * row, row * self.dilation[0], self.dilation[1]
        return *self.kernel, block.n_samples, *steps, *runs, row * self.stride[0], self.stride[1]


@compiled()
def _copy(flat: Array, columns: Array, sizes: Sizes) -> None:
    """columns (C, *kernel, samples, rows, width) = the windows of a padded input."""
    kh, kw, n, plane, di, dj, runs, length, between, step = sizes
    target, k = columns.ravel(), 0
    for c, i, j in np.ndindex(columns.shape[0], kh, kw):
        for b in range(n):
            for r in range(runs):
                _copy_run(target, k, flat, (c * n + b) * plane + i * di + j * dj + r * between, step, length)
                k += length


@compiled()
def _add(flat: Array, columns: Array, sizes: Sizes) -> None:
    """Add columns to a padded gradient where `_copy` reads the input."""
    kh, kw, n, plane, di, dj, runs, length, between, step = sizes
    source, size = columns.ravel(), runs * length
    channels = source.size // (kh * kw * n * size)
    for c, b in np.ndindex(channels, n):  # the gradient of a sample stays in the cache
        for i, j in np.ndindex(kh, kw):
            m = (((c * kh + i) * kw + j) * n + b) * size
            for r in range(runs):
                k = (c * n + b) * plane + i * di + j * dj + r * between
                _add_run(flat, k, step, source, m + r * length, length, np.float32(1))


@compiled()
def _times(flat: Array, weight: Array, out: Array, sizes: Sizes) -> None:
    """Add the weight (C, 1, size) times the windows of a padded input to out (C, 1, samples * rows * width)."""
    kh, kw, n, plane, di, dj, runs, length, between, step = sizes
    target, size = out.ravel(), runs * length
    for c, b in np.ndindex(len(out), n):
        for i, j in np.ndindex(kh, kw):
            scale = weight[c, 0, i * kw + j]
            for r in range(runs):
                m = (c * n + b) * plane + i * di + j * dj + r * between
                _gather_run(target, (c * n + b) * size + r * length, flat, m, step, length, scale)


@compiled()
def _weight_gradient(flat: Array, g: Array, gw: Array, sizes: Sizes) -> None:
    """gw (C, size, 1) = the sums of the windows of a padded input times g (C, 1, samples * rows * width)."""
    kh, kw, n, plane, di, dj, runs, length, between, step = sizes
    source, size = g.ravel(), runs * length
    gw[:] = 0
    for c, b in np.ndindex(len(gw), n):
        for i, j in np.ndindex(kh, kw):
            for r in range(runs):
                m = (c * n + b) * plane + i * di + j * dj + r * between
                gw[c, i * kw + j, 0] += _dot_run(source, (c * n + b) * size + r * length, flat, m, step, length)


@compiled()
def _add_gradient(flat: Array, weight: Array, g: Array, sizes: Sizes) -> None:
    """Add the products of the weight (C, 1, size) and g (C, 1, samples * rows * width) to a padded gradient."""
    kh, kw, n, plane, di, dj, runs, length, between, step = sizes
    source, size = g.ravel(), runs * length
    for c, b in np.ndindex(len(g), n):
        for i, j in np.ndindex(kh, kw):
            for r in range(runs):
                k = (c * n + b) * plane + i * di + j * dj + r * between
                m = (c * n + b) * size + r * length
                _add_run(flat, k, step, source, m, length, weight[c, 0, i * kw + j])


@compiled()
def _pad(x: Array, padded: Array, first: int, left: int) -> None:
    """padded (C, samples, height, W) = x (samples, C, H, W) from the row `first`, which may be negative."""
    channels, n, height, width = padded.shape
    source, target, (rows, length) = x.ravel(), padded.ravel(), x.shape[2:]
    for c, b in np.ndindex(channels, n):
        for row in range(max(first, 0), min(first + height, rows)):
            k = ((c * n + b) * height + row - first) * width + left
            _copy_run(target, k, source, ((b * channels + c) * rows + row) * length, 1, length)


@compiled()
def _crop(padded: Array, gx: Array, top: int, left: int) -> None:
    """gx (samples, C, H, W) = padded (C, samples, height, W) without the padding."""
    n, channels, rows, length = gx.shape
    source, target, (height, width), k = padded.ravel(), gx.ravel(), padded.shape[2:], 0
    for b, c in np.ndindex(n, channels):
        for row in range(rows):
            _copy_run(target, k, source, ((c * n + b) * height + row + top) * width + left, 1, length)
            k += length


@compiled()
def _write(found: Array, bias: Array, out: Array, first: int) -> None:
    """out (samples, O, H, W) = found (O, samples, rows, width) + bias, for the rows from `first`."""
    channels, n, rows, width = found.shape
    source, target, (height, length) = found.ravel(), out.ravel(), out.shape[2:]
    for b, o in np.ndindex(n, channels):
        for row in range(rows):
            k, m = _u(((b * channels + o) * height + first + row) * length), _u(((o * n + b) * rows + row) * width)
            for q in range(_u(length)):
                target[k + q] = source[m + q] + bias[o]


@compiled()
def _read(rows: Array, g: Array, first: int) -> None:
    """rows (O, samples, rows, width) = g (samples, O, H, W), for the rows from `first`."""
    channels, n, n_rows, width = rows.shape
    source, target, (height, length) = g.ravel(), rows.ravel(), g.shape[2:]
    for b, o in np.ndindex(n, channels):
        for row in range(n_rows):
            k, m = ((o * n + b) * n_rows + row) * width, ((b * channels + o) * height + first + row) * length
            _copy_run(target, k, source, m, 1, length)


def conv(
    x: Array, weight: Array, bias: Array | None, stride: Shape, padding: Padding, dilation: Shape, groups: int
) -> Any:
    windows = _windows(stride, groups, x, weight, bias)
    return convolve(windows, x, weight, bias, stride, padding, dilation, groups)


def conv_backward(
    g: Array, x: Array, weight: Array, stride: Shape, padding: Padding, dilation: Shape, groups: int,
    needs: Sequence[bool],
) -> Any:  # fmt: skip
    windows = _windows(stride, groups, x, weight, g)
    return convolve_backward(windows, g, x, weight, stride, padding, dilation, groups, needs)


def _windows(stride: Shape, groups: int, x: Array, weight: Array, other: Array | None) -> type[Windows]:
    """The faster class: with strides, the runs of a convolution by channel are short, and NumPy's product is faster."""
    is_by_channel = x.shape[1] == weight.shape[0] == groups
    is_compiled = is_float32(x, weight, other) and not (is_by_channel and max(stride) > 1)
    return CompiledWindows if is_compiled else Windows
