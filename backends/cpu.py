"""Memory allocation and multithreading for the CPU backends.

NumPy's elementwise functions use one core. Its BLAS has its own threads, which keep their cores busy for some
milliseconds after each matrix product, waiting for the next one. The functions here split work over several threads.
While these threads run, the BLAS is limited to one thread in each, so that both do not compete for the same cores.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextvars import copy_context
from itertools import pairwise
from queue import SimpleQueue
from typing import Any

import numpy  # noqa: F401 - loads the BLAS that _blas_function finds

# --- Memory

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # <malloc.h>


def keep_freed_memory() -> None:
    """Let glibc's malloc keep up to 2 GiB of freed memory for reuse. Disable this with RG_MALLOC=0.

    By default, malloc returns large freed blocks (128 KiB; the threshold adapts up to 32 MiB) to the operating system,
    which clears every page again on the next allocation. In a training step this costs more than the arithmetic. Other
    C libraries have no such setting and are not changed.
    """
    if os.environ.get("RG_MALLOC") == "0" or sys.platform != "linux":
        return
    if hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # glibc's maximum; larger blocks use mmap
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 64 << 20)


def _blas_function(name: str) -> Any:
    """A function of the BLAS that NumPy is linked with, by its name; None if there is no such function."""
    umath = sys.modules.get("numpy._core._multiarray_umath")
    try:
        library = ctypes.CDLL(umath.__file__ if umath else None)  # also finds symbols of linked libraries
    except (OSError, TypeError):
        return None
    return getattr(library, name, None)


def _openblas(action: str) -> Any:
    """The function `openblas_<action>`. Its name differs between NumPy's wheels and other builds."""
    names = (f"scipy_openblas_{action}64_", f"openblas_{action}64_", f"openblas_{action}")
    return next(filter(None, map(_blas_function, names)), None)


def set_blas_threads(n: int) -> None:
    """Let OpenBLAS use n threads, and the functions here as many by default. Does nothing with another BLAS."""
    global _n_threads
    set_num_threads = _openblas("set_num_threads")
    if set_num_threads:
        set_num_threads(n)
        _n_threads = None  # `n_threads` asks again: the backend may have been in use before this


# --- Threads

MIN_PART_TIME = 80.0  # microseconds: the least work for another thread; waking up a thread takes about 40


def n_threads() -> int:
    """The number of threads: RG_NUM_THREADS, or by default that of OpenBLAS, at most 8 (1 with another BLAS).

    With 1 thread, everything runs in the caller's thread, and the BLAS uses its own threads.

    Raises:
        ValueError: RG_NUM_THREADS is not a positive whole number.
    """
    global _n_threads
    if _n_threads is None:
        setting = os.environ.get("RG_NUM_THREADS")
        if setting and (not setting.isdecimal() or int(setting) < 1):
            raise ValueError(f"RG_NUM_THREADS must be a positive whole number, got {setting!r}")
        blas_threads = _openblas("get_num_threads")
        _n_threads = int(setting) if setting else min(blas_threads(), 8) if blas_threads else 1
    return _n_threads


def run_parallel(n: int, cost: float, work: Callable[[int, int], None]) -> None:
    """Split range(n) into parts and call work(start, stop) for each, in several threads if there is enough work.

    Returns when all parts are done, and raises the exception of a part. Each part sees the caller's context variables,
    such as NumPy's errstate. A call from inside a part runs in that part's thread only.

    Args:
        n: the length of the range.
        cost: the approximate time of the whole range in one thread, in microseconds.
        work: the function to call for each part.
    """
    threads = n_threads()
    if threads == 1 or getattr(_thread_state, "is_worker", False):
        return work(0, n)
    parts = max(1, min(threads, n, int(cost / MIN_PART_TIME)))
    if parts == 1:
        with _one_blas_thread:
            return work(0, n)
    bounds = [n * i // parts for i in range(parts + 1)]
    with _one_blas_thread:
        done: SimpleQueue[BaseException | None] = SimpleQueue()
        others = [*pairwise(bounds)][1:]
        for start, stop in others:
            _task_queue(threads).put((copy_context(), work, start, stop, done))
        try:
            _thread_state.is_worker = True
            work(0, bounds[1])
        finally:
            _thread_state.is_worker = False
            errors = [done.get() for _ in others]
    try:
        for error in errors:
            if error is not None:
                raise error
    finally:
        error = None  # breaks the reference cycle error -> traceback -> this frame, which holds the arrays of `work`
        del errors


def run_tasks(tasks: Sequence[Callable[[], None]]) -> None:
    """Call the functions, consecutive ones in one thread. As `run_parallel`, but always in several threads."""

    def part(start: int, stop: int) -> None:
        for task in tasks[start:stop]:
            task()

    run_parallel(len(tasks), len(tasks) * MIN_PART_TIME, part)


class _OneBlasThread:
    """Context manager that limits the BLAS to one thread. Blocks in several threads may overlap."""

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

    def reset_after_fork(self) -> None:
        """Restore the BLAS threads in a forked child, where the threads inside a block no longer exist."""
        if self._depth:
            self._set(self._before)
        self._lock, self._depth = threading.Lock(), 0


def _task_queue(threads: int) -> SimpleQueue[Any]:
    """The queue from which the worker threads take their tasks. The first call starts the threads."""
    global _queue
    if _queue is None:
        queue: SimpleQueue[Any] = SimpleQueue()
        for _ in range(threads - 1):
            threading.Thread(target=_worker, args=(queue,), name="russellgrad", daemon=True).start()
        _queue = queue  # only after all threads have started
    return _queue


def _worker(queue: SimpleQueue[Any]) -> None:
    """The loop of a worker thread."""
    _thread_state.is_worker = True
    while True:
        context, work, start, stop, done = queue.get()
        try:
            context.run(work, start, stop)
            error = None
        except BaseException as raised:  # run_parallel raises it in the caller's thread
            error = raised
        del context, work  # free the arrays they hold before waiting for the next task
        done.put(error)
        del done, error


def _reset_after_fork() -> None:
    """Forget the worker threads in a forked child, where only the forking thread exists."""
    global _queue
    _queue = None
    _one_blas_thread.reset_after_fork()


_thread_state = threading.local()
_n_threads: int | None = None
_queue: SimpleQueue[Any] | None = None
_one_blas_thread = _OneBlasThread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
