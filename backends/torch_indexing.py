"""Indices of the PyTorch backend: NumPy's meaning where PyTorch has another one, or none."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from . import host

Array: TypeAlias = Any  # torch.Tensor
Shape: TypeAlias = tuple[int, ...]


def _is_negative(part: Any) -> bool:
    return isinstance(part, slice) and part.step is not None and part.step < 0


def getitem(a: Array, index: Any, /) -> Array:
    if any(map(_is_negative, index)):
        axes, index = _mirrored(index, a.shape)
        a = _flip(a, axes)
    return a[_with_arrays(index)]


def _flip(a: Array, axes: Sequence[int]) -> Array:
    """a.flip(axes), also of the unsigned dtypes for which PyTorch has none."""
    signed = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}.get(a.dtype)
    return a.flip(axes) if signed is None else a.view(signed).flip(axes).view(a.dtype)


def _mirrored(index: Sequence[Any], shape: Shape) -> tuple[list[int], list[Any]]:
    """The axes of slices with a negative step, which PyTorch lacks, and the index after a flip of these axes."""
    parts, flipped = list(index), []
    plain = tuple(0 if isinstance(part, torch.Tensor) else part for part in parts)
    for i, axis in enumerate(host.index_axes(plain, len(shape))):
        if _is_negative(parts[i]):
            taken, last = range(shape[axis])[parts[i]], shape[axis] - 1
            parts[i] = slice(last - taken[0], last - taken[-1] + 1, -taken.step) if taken else slice(0, 0)
            flipped.append(axis)
    return flipped, parts


def _with_arrays(index: Sequence[Any]) -> tuple[Any, ...]:
    """The index for PyTorch. NumPy makes arrays of ints that stand beside arrays."""
    arrays = [part for part in index if isinstance(part, torch.Tensor)]
    if not arrays or len(arrays) == len(index):
        return tuple(index)
    return tuple(torch.full((1,), i, device=arrays[0].device) if isinstance(i, int) else i for i in index)


def getitem_backward(g: Array, index: Any, shape: Shape, /) -> Array:
    if any(map(_is_negative, index)):
        axes, parts = _mirrored(index, shape)
        return _flip(getitem_backward(g, tuple(parts), shape), axes)
    if host.is_basic(index):
        out = torch.zeros(shape, dtype=g.dtype, device=g.device)
        out[index] = g  # selects no element twice
        return out
    # On the CPU, several threads add float32 by atomics, in any order; one thread adds float64.
    wide = torch.float64 if g.device.type == "cpu" else torch.promote_types(g.dtype, torch.float32)
    out = torch.zeros(shape, dtype=wide if g.is_floating_point() else g.dtype, device=g.device)
    slices: list[Any] = []
    arrays: list[Array | None] = []
    rest = len(shape) - sum(part is not None and part is not ... for part in index)
    for part in _with_arrays(index):
        is_array = isinstance(part, torch.Tensor)
        slices.append(slice(None) if is_array else part)
        arrays += [None] * rest if part is ... else [part if is_array else None]
    torch.ops.aten.index_put_(out[tuple(slices)], arrays, g.to(out.dtype), True)
    return out.to(g.dtype)
