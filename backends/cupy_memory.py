"""Out-of-memory errors on a device that list the arrays in use."""

import gc
from collections import Counter
from collections.abc import Callable
from typing import Any

import cupy

MIB = 2**20


class Explaining:
    """An allocator that adds a note to CuPy's OutOfMemoryError: the arrays in use, the pool, the device."""

    def __init__(self, allocate: Callable[[int], Any]) -> None:
        self._allocate = allocate

    def __call__(self, size: int) -> Any:
        try:
            return self._allocate(size)
        except cupy.cuda.memory.OutOfMemoryError as error:
            error.add_note(in_use())
            raise


def in_use() -> str:
    """The arrays on the device by dtype and shape, largest total first; the pool and its limit; the device's memory."""
    largest: dict[int, Any] = {}  # the largest array of each allocation, which views share
    for array in gc.get_objects():
        if issubclass(type(array), cupy.ndarray):
            piece = id(array.data.mem)
            if piece not in largest or array.nbytes > largest[piece].nbytes:
                largest[piece] = array
    sizes: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for array in largest.values():
        sizes[str(array.dtype), array.shape] += array.nbytes
    kinds = [f"{size / MIB:,.1f} MiB of {dtype} {shape}" for (dtype, shape), size in sizes.most_common(5)]
    pool = cupy.get_default_memory_pool()
    free, total = cupy.cuda.Device().mem_info
    limit = f"{pool.get_limit() / MIB:,.0f} MiB" if pool.get_limit() else "none"
    return (
        f"in use: {len(largest)} arrays, {sizes.total() / MIB:,.1f} MiB ({'; '.join(kinds)}); the pool has "
        f"{pool.total_bytes() / MIB:,.1f} MiB, limit {limit}; the device has {free / MIB:,.0f} of "
        f"{total / MIB:,.0f} MiB free. A smaller batch or length, or dtype bfloat16, needs less."
    )
