"""What lets NumPy use a CPU well: freed memory that is kept, and a few threads.

NumPy's elementwise loops run on one core; its BLAS has threads of its own, which keep their cores busy for some
milliseconds after each product, waiting for the next. So while parts of an array are worked on by the threads here,
the BLAS is held to one thread in each, and the two never fight over a core.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from contextvars import copy_context
from itertools import pairwise
from queue import SimpleQueue
from typing import Any

import numpy  # noqa: F401 - loads the BLAS that is looked for below

# --- Memory

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # <malloc.h>


def keep_freed_memory() -> None:
    """Have glibc keep freed blocks for the next array, up to 2 GiB of them; RG_MALLOC=0 prevents it.

    By default it hands every freed block beyond 128 KiB (32 MiB at most, as it adapts) back to the system, which then
    clears each page of it anew when it is first touched: in a training step that costs more than the arithmetic. Other
    C libraries have no such call, and are left as they are.
    """
    if os.environ.get("RG_MALLOC") == "0" or sys.platform != "linux":
        return
    if hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest that glibc takes; larger blocks are mapped one by one
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 64 << 20)


def _blas_function(name: str) -> Any:
    """A function of the BLAS that NumPy is linked with, by its name; None if it has none of that name."""
    umath = sys.modules.get("numpy._core._multiarray_umath")
    try:
        library = ctypes.CDLL(umath.__file__ if umath else None)  # finds what it is linked with, too
    except (OSError, TypeError):
        return None
    return getattr(library, name, None)


def _openblas(action: str) -> Any:
    """`openblas_<action>`, under the names it has in NumPy's own wheels and elsewhere."""
    names = (f"scipy_openblas_{action}64_", f"openblas_{action}64_", f"openblas_{action}")
    return next(filter(None, map(_blas_function, names)), None)


# --- Threads

WORTH = 80.0  # microseconds: what a part must take for another thread to pay, which takes some 40 to wake up


def n_threads() -> int:
    """RG_NUM_THREADS, or as many as OpenBLAS would use, but no more than 8; 1 with another BLAS.

    With 1 everything runs in the caller's thread, and the BLAS keeps its own threads.
    Raises ValueError for an RG_NUM_THREADS that is not a positive whole number.
    """
    global _n_threads
    if _n_threads is None:
        asked = os.environ.get("RG_NUM_THREADS")
        if asked and (not asked.isdecimal() or int(asked) < 1):
            raise ValueError(f"RG_NUM_THREADS must be a positive whole number, got {asked!r}")
        of_blas = _openblas("get_num_threads")
        _n_threads = int(asked) if asked else min(of_blas(), 8) if of_blas else 1
    return _n_threads


def run_parallel(n: int, cost: float, work: Callable[[int, int], None]) -> None:
    """Call work(start, stop) for parts that together make up range(n), in as many threads as pay for themselves.

    Args:
        cost: what all of it takes in one thread, in microseconds, roughly.

    Returns when all parts are done. Raises what a part raises. NumPy's errstate is the caller's in each. Called from
    within a part, it has that part's thread alone.
    """
    threads = n_threads()
    if threads == 1 or getattr(_here, "serving", False):
        return work(0, n)
    parts = max(1, min(threads, n, int(cost / WORTH)))
    bounds = [n * i // parts for i in range(parts + 1)]
    with _one_blas_thread:
        done: SimpleQueue[BaseException | None] = SimpleQueue()
        others = [*pairwise(bounds)][1:]
        for start, stop in others:
            _tasks(threads).put((copy_context(), work, start, stop, done))
        try:
            work(0, bounds[1])
        finally:
            errors = [done.get() for _ in others]
    try:
        for error in errors:
            if error is not None:
                raise error
    finally:
        del errors  # an error holds this frame, and so the arrays of `work`


class _OneBlasThread:
    """In the block the BLAS uses the caller's thread alone. Blocks in several threads may overlap."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = self._before = 0
        self._set, self._get = _openblas("set_num_threads"), _openblas("get_num_threads")

    def __enter__(self) -> None:
        if self._set and self._get:
            with self._lock:
                self._depth += 1
                if self._depth == 1:
                    self._before = self._get()
                    self._set(1)

    def __exit__(self, *error: object) -> None:
        if self._set and self._get:
            with self._lock:
                self._depth -= 1
                if not self._depth:
                    self._set(self._before)

    def leave_all(self) -> None:
        """In a forked child, where the threads that were in a block are gone."""
        if self._depth:
            self._set(self._before)
        self._lock, self._depth = threading.Lock(), 0


def _tasks(threads: int) -> SimpleQueue[Any]:
    """The queue that the other threads wait at. They start with the first task."""
    global _queue
    if _queue is None:
        queue: SimpleQueue[Any] = SimpleQueue()
        for _ in range(threads - 1):
            threading.Thread(target=_serve, args=(queue,), name="russellgrad", daemon=True).start()
        _queue = queue  # not before there is someone to serve it
    return _queue


def _serve(queue: SimpleQueue[Any]) -> None:
    _here.serving = True
    while True:
        context, work, start, stop, done = queue.get()
        try:
            context.run(work, start, stop)
            error = None
        except BaseException as raised:  # the caller's to see, whatever it is
            error = raised
        del context, work  # and the arrays they hold, while waiting for the next
        done.put(error)
        del done, error


def _forget_threads() -> None:
    """In a forked child only the forking thread is left."""
    global _queue
    _queue = None
    _one_blas_thread.leave_all()


_here = threading.local()
_n_threads: int | None = None
_queue: SimpleQueue[Any] | None = None
_one_blas_thread = _OneBlasThread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
