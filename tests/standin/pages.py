"""Memory for kernels: arrays next to guard pages, and the stacks of a block's threads."""

import ctypes
import itertools
import os
from functools import cache

import numpy as np

from .array import Host
from .library import MOST_THREADS, STACK, STACK_GUARD

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_PROT_NONE, _PROT_READ, _PROT_READ_WRITE = 0, 1, 3
_MAP_PRIVATE_ANONYMOUS_NORESERVE = 0x4022


def _reserve(size: int, what: str) -> int:
    """The address of `size` reserved bytes, without access."""
    address = _libc.mmap(None, size, _PROT_NONE, _MAP_PRIVATE_ANONYMOUS_NORESERVE, -1, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise MemoryError(f"standin: no memory for {what}, {size} bytes")
    return int(address)


def _allow(address: int, size: int, protection: int) -> None:
    if _libc.mprotect(address, size, protection):
        raise OSError(ctypes.get_errno(), "standin: mprotect failed")


@cache
def stacks() -> int:
    """The address of the stacks of a block's threads, each above a guard."""
    start = _reserve(MOST_THREADS * STACK, "the threads' stacks")
    for thread in range(MOST_THREADS):
        _allow(start + thread * STACK + STACK_GUARD, STACK - STACK_GUARD, _PROT_READ_WRITE)
    return start


GUARD = 16 << 20  # bytes on either side
PAGE = os.sysconf("SC_PAGESIZE")
ALIGNMENT = 16  # of the widest load; an address keeps its place within it

_margins = itertools.cycle(range(0x7FA1, 0x7FB0))  # signalling nans in float and bfloat16, which no operation gives


class Region:
    """`size` bytes whose end, or else whose start, meets a guard page, but for up to 15 bytes."""

    def __init__(self, what: str, size: int, phase: int, at_end: bool) -> None:
        self.what, self.size = what, size
        self._pages = -(-(size + phase) // PAGE) * PAGE
        self._mapped = self._pages + 2 * GUARD
        base = _reserve(self._mapped, what)
        self._base, self._first = base, base + GUARD
        last = self._first + self._pages - size
        self.start = last - (last - phase) % ALIGNMENT if at_end else self._first + phase
        _allow(self._first, self._pages, _PROT_READ_WRITE)
        self._untouched = np.full(self._pages // 2, next(_margins), np.uint16).view(np.uint8)
        self._bytes[:] = self._untouched

    @property
    def _bytes(self) -> Host:
        return np.ctypeslib.as_array((ctypes.c_ubyte * self._pages).from_address(self._first))

    def free(self) -> None:
        _libc.munmap(self._base, self._mapped)

    def forbid_writing(self) -> None:
        _allow(self._first, self._pages, _PROT_READ)

    def holds(self, address: int) -> bool:
        return self._base <= address < self._base + self._mapped

    def misses(self, address: int) -> str:
        """Where an address without access lies relative to the memory."""
        if address < self.start:
            return f"{self.start - address} bytes before the start of {self.what}"
        if address >= self.start + self.size:
            return f"{address - self.start - self.size} bytes after the end of {self.what}"
        return f"{self.what}, whose pointer is const"

    def check_margins(self) -> str | None:
        """Where a kernel wrote between the memory and the guard pages, if it did."""
        inside = slice(self.start - self._first, self.start - self._first + self.size)
        for margin in (slice(inside.start), slice(inside.stop, None)):
            touched = self._bytes[margin] != self._untouched[margin]
            if touched.any():
                return self.misses(self._first + (margin.start or 0) + int(np.argmax(touched)))
        return None
