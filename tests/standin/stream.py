"""Streams, graphs and memory of the stand-in's `cupy.cuda`.

All work goes through `submit`, which runs it at once. In a capture, `submit` only records the work, as a device does;
it runs when the graph is launched, on the memory it was recorded with.

Two errors that are silent on a device are `Misuse` here. One is the reuse of memory that a graph still needs: a graph
keeps no memory alive, so memory allocated in a capture must come from a pool of its own that lives as long as the
graph. The other is a race: work on one stream that reads or overwrites memory in use on another stream without waiting
for it.
"""

import itertools
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .log import Misuse, count, count_one

Work = Callable[[], None]

# --- Memory


class Memory:
    """The memory of one allocation, which an array and its views share."""

    def __init__(self, size: int, pool: "MemoryPool | None") -> None:
        self.size = size
        self._pool = None if pool is None else weakref.ref(pool)
        self.written: tuple[int, int] | None = None  # order and tick of the last write
        self.read: dict[int, int] = {}  # order: tick of the last read since that write
        # From the pool of a capture. Memory of the default pool must outlive the graph, also if a capture allocates it.
        self.in_capture = _capture is not None and pool not in (None, _default_pool)
        self.host: Any = None  # the NumPy array of the last pointer taken

    @property
    def pool(self) -> "MemoryPool | None":
        return None if self._pool is None else self._pool()

    def __del__(self) -> None:
        if pool := self.pool:
            pool._used -= self.size


class MemoryPointer:
    """Stands for cupy.cuda.MemoryPointer. `ptr` is an address on the host."""

    def __init__(self, mem: Memory, offset: int) -> None:
        self.mem, self.ptr = mem, offset


# The memory of each pointer taken, by address: a C function gets only the number.
_pointed_to: weakref.WeakValueDictionary[int, Memory] = weakref.WeakValueDictionary()


def pointer_to(memory: Memory, host: Any) -> MemoryPointer:
    address = int(host.ctypes.data)
    _pointed_to[address], memory.host = memory, host
    return MemoryPointer(memory, address)


def memory_at(address: int) -> Memory:
    """The memory at an address. Raises Misuse if no array begins there, or the array was freed."""
    try:
        return _pointed_to[address]
    except KeyError:
        raise Misuse(f"a pointer to {address}, where no array begins; take it from array.data.ptr") from None


class OutOfMemoryError(MemoryError):
    pass


ROUND = 512  # bytes: pools allocate multiples of it


class MemoryPool:
    """Stands for cupy.cuda.MemoryPool, which keeps freed memory, even when the pool itself is collected.

    Attributes:
        _leaked: bytes that collected pools have kept.
    """

    _leaked = 0

    def __init__(self, allocator: Any = None) -> None:
        self._used = self._total = self._limit = 0
        self._graphs: weakref.WeakSet[Graph] = weakref.WeakSet()

    def __del__(self) -> None:
        MemoryPool._leaked += self._total

    def malloc(self, size: int) -> MemoryPointer:
        self._check_graphs("an array made", "gets memory that the graph writes to")
        size = -(-size // ROUND) * ROUND
        if self._limit and self._used + size > self._limit:
            raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes (limit set to: {self._limit:,} bytes)")
        self._used += size
        self._total = max(self._total, self._used)
        return MemoryPointer(Memory(size, self), 0)

    def _check_graphs(self, what: str, why: str) -> None:
        if _capture is None and any(True for _ in self._graphs):  # len would count graphs that are being collected
            raise Misuse(
                f"{what} in the pool of a captured graph, after the capture: {why}; leave that pool to the graph"
            )

    def free_all_blocks(self, stream: Any = None) -> None:
        self._check_graphs("free_all_blocks", "the graph goes on using what is freed")
        self._total = self._used

    def used_bytes(self) -> int:
        return self._used

    def total_bytes(self) -> int:
        return self._total

    def free_bytes(self) -> int:
        return self._total - self._used

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        if fraction is not None:
            raise NotImplementedError("standin: a fraction of a device's memory, which there is none of")
        self._limit = size or 0

    def get_limit(self) -> int:
        return self._limit


Allocator = Callable[[int], MemoryPointer]


def _without_pool(size: int) -> MemoryPointer:
    return MemoryPointer(Memory(size, None), 0)


_default_pool = MemoryPool()
_allocator: Allocator = _default_pool.malloc


def get_default_memory_pool() -> MemoryPool:
    return _default_pool


def set_allocator(allocator: Allocator | None = None) -> None:
    global _allocator
    _allocator = allocator or _without_pool


def get_allocator() -> Allocator:
    return _allocator


@contextmanager
def using_allocator(allocator: Allocator | None = None) -> Iterator[None]:
    before = get_allocator()
    set_allocator(allocator)
    try:
        yield
    finally:
        set_allocator(before)


def allocate(size: int) -> Memory:
    """Memory for a new array, from the current allocator."""
    memory = _allocator(size).mem
    count_one("allocations")
    if _capture is not None and memory.in_capture:
        _capture.pools.add(memory.pool)
    return memory


# --- Order: a tick is one piece of work on a stream. Blocking streams, which wait for each other, share one order


class _Order:
    """The work that has finished before the next work on a stream, or on the host: the last tick of each order."""

    def __init__(self) -> None:
        self.known: dict[int, int] = {}

    def learn(self, known: dict[int, int]) -> None:
        for order, tick in known.items():
            self.known[order] = max(tick, self.known.get(order, 0))

    def knows(self, order: int, tick: int) -> bool:
        return tick <= self.known.get(order, 0)


_orders: dict[int, _Order] = {}  # of the null stream (number 0) and of each non-blocking stream
_addresses = itertools.count(4096, 64)  # of streams
_host = _Order()  # the work that the host has waited for


class Stream:
    """Stands for cupy.cuda.Stream. Blocking streams are ordered with the null stream."""

    null: "Stream"

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: int | None = None
    ) -> None:
        if ptds or priority is not None:
            raise NotImplementedError("standin: per-thread default streams and priorities")
        self.device_id = 0
        self.ptr = 0 if null else next(_addresses)
        self.is_non_blocking = non_blocking
        self._number = self.ptr if non_blocking else 0
        self._ticks = _orders.setdefault(self._number, _Order())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self) -> int:
        return self.ptr

    def __enter__(self) -> "Stream":
        _streams.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _streams.pop()

    def use(self) -> "Stream":
        _streams[-1] = self
        return self

    def synchronize(self) -> None:
        synced("stream.synchronize", self)

    def record(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: "Event") -> None:
        self._ticks.learn(event._known)

    def begin_capture(self, mode: int | None = None) -> None:
        global _capture
        if not self.ptr:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if _capture is not None:
            raise RuntimeError("cudaErrorIllegalState: a capture is under way")
        _capture = _Capture(self)

    def end_capture(self) -> "Graph":
        global _capture
        if _capture is None or _capture.stream != self:
            raise RuntimeError("cudaErrorIllegalState: this stream is not capturing")
        capture, _capture = _capture, None
        if capture.spoilt:
            raise RuntimeError(f"cudaErrorStreamCaptureInvalidated: by {capture.spoilt}")
        return Graph._of(capture)

    def is_capturing(self) -> bool:
        return _capture is not None and _capture.stream == self

    def _advance(self) -> int:
        """The tick of the next piece of work on this stream."""
        tick = self._ticks.known.get(self._number, 0) + 1
        self._ticks.known[self._number] = tick
        return tick


Stream.null = Stream(null=True)
_streams = [Stream.null]  # the current one is the last


def get_current_stream(device_id: int = -1) -> Stream:
    return _streams[-1]


class Event:
    """Stands for cupy.cuda.Event."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self._known: dict[int, int] = {}
        self._time: float | None = None
        self._timing = not disable_timing

    def record(self, stream: Stream | None = None) -> None:
        if _capture is not None:
            raise NotImplementedError("standin: an event in a capture")
        self._known = dict((stream or get_current_stream())._ticks.known)
        self._time = time.perf_counter()

    def synchronize(self) -> None:
        _refuse_in_capture("event.synchronize")
        count("syncs", "event.synchronize")
        _host.learn(self._known)


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    """The time between two events in milliseconds, measured on the host."""
    if start_event._time is None or end_event._time is None or not (start_event._timing and end_event._timing):
        raise RuntimeError("cudaErrorInvalidResourceHandle: an event without a time")
    return 1000.0 * (end_event._time - start_event._time)


class Device:
    """Stands for cupy.cuda.Device; there is one device."""

    def __init__(self, device: int | None = None) -> None:
        if device:
            raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self.id = 0

    @property
    def compute_capability(self) -> str:
        return "80"

    @property
    def mem_info(self) -> tuple[int, int]:
        return (1 << 34) - _default_pool.total_bytes(), 1 << 34

    def synchronize(self) -> None:
        _refuse_in_capture("device.synchronize")
        count("syncs", "device.synchronize")
        for order in _orders.values():
            _host.learn(order.known)


# --- Capture


class _Capture:
    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.spoilt = ""  # the call that invalidated the capture
        self.work: list[Work] = []
        self.pools: set[MemoryPool | None] = set()
        self.reads: set[Memory] = set()
        self.writes: set[Memory] = set()


_capture: _Capture | None = None


def capturing() -> bool:
    return _capture is not None


class Graph:
    """Stands for cupy.cuda.graph.Graph."""

    _work: list[Work]
    _pools: list[weakref.ref[MemoryPool]]
    _reads: list[weakref.ref[Memory]]
    _writes: list[weakref.ref[Memory]]
    _others: list[weakref.ref[Memory]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("currently this class cannot be initiated by the user")

    @classmethod
    def _of(cls, capture: _Capture) -> "Graph":
        graph = cls.__new__(cls)
        graph._work = capture.work
        graph._pools = [weakref.ref(pool) for pool in capture.pools if pool is not None]
        graph._reads, graph._writes = ([weakref.ref(m) for m in those] for those in (capture.reads, capture.writes))
        graph._others = [weakref.ref(m) for m in capture.reads | capture.writes if not m.in_capture]
        for pool in capture.pools:
            if pool is not None:
                pool._graphs.add(graph)
        return graph

    def upload(self, stream: Stream | None = None) -> None:
        _refuse_in_capture("graph.upload")

    def launch(self, stream: Stream | None = None) -> None:
        _refuse_in_capture("graph.launch")
        if any(pool() is None for pool in self._pools):
            raise Misuse("graph.launch: the memory pool of the capture is gone; keep it for as long as the graph")
        if any(memory() is None for memory in self._others):
            raise Misuse("graph.launch: an array that the graph uses was freed; keep it for as long as the graph")
        count_one("graph_launches")
        _in_order(
            stream or get_current_stream(), *([m for r in refs if (m := r())] for refs in (self._reads, self._writes))
        )
        for work in self._work:
            work()


def _refuse_in_capture(what: str) -> None:
    if _capture is not None:
        _capture.spoilt = _capture.spoilt or what
        raise Misuse(f"{what} in a capture, in which no work runs that the host could wait for")


def refuse_cublas(what: str) -> None:
    if _capture is not None:
        raise NotImplementedError(f"{what} in a capture: CuPy refuses cuBLAS there (cupy#6290)")


def refuse_unknown(what: str) -> None:
    if _capture is not None:
        raise NotImplementedError(f"standin: whether CuPy can capture {what} is not known")
    return None


# --- What arrays and kernels call


def submit(name: str, work: Work, reads: Sequence[Memory], writes: Sequence[Memory]) -> None:
    """Run the work on the current stream; in a capture, record it.

    Raises Misuse for work on another stream than the capturing one, and for a race.
    """
    stream = get_current_stream()
    if _capture is None:
        count("launches", name)
        _in_order(stream, reads, writes)
        work()
        return
    if stream != _capture.stream:
        _capture.spoilt = _capture.spoilt or name
        raise Misuse(f"{name} on another stream than the capturing one: it is not captured; make that one current")
    if any(memory.in_capture and memory not in _capture.writes for memory in reads):
        _capture.spoilt = _capture.spoilt or name
        raise Misuse(
            f"{name} reads an array of the capture's pool to which the graph has not written: the memory is that of "
            "arrays freed earlier in the capture, so the graph overwrites what is written before a launch; allocate "
            "such an array outside the capture's pool"
        )
    count("captured", name)
    _capture.work.append(work)
    _capture.reads.update(reads)
    _capture.writes.update(writes)


def synced(how: str, stream: Stream | None = None) -> None:
    """The host waits for a stream, the current one by default."""
    _refuse_in_capture(how)
    count("syncs", how)
    _host.learn((stream or get_current_stream())._ticks.known)


def uploaded(name: str, writes: Sequence[Memory] = (), stream: Stream | None = None) -> None:
    """A copy from the host to the device, on the current stream by default."""
    _refuse_in_capture(f"{name} of host data")
    count("uploads", name)
    _in_order(stream or get_current_stream(), (), writes)


def downloaded(how: str, reads: Sequence[Memory], stream: Stream | None = None) -> None:
    """A copy from the device to the host, on the current stream by default. The host waits for it."""
    _refuse_in_capture(how)
    _in_order(stream or get_current_stream(), reads, ())
    synced(how, stream)


def _in_order(stream: Stream, reads: Sequence[Memory], writes: Sequence[Memory]) -> None:
    """Order the next piece of work on a stream. Raises Misuse if other streams may still use its memory."""
    known = stream._ticks

    def done(order: int, tick: int) -> bool:
        return known.knows(order, tick) or _host.knows(order, tick)

    for memory in (*reads, *writes):
        if memory.written and not done(*memory.written):
            raise Misuse(
                "a race: another stream may not have written yet what this one uses; synchronize or wait_event"
            )
    for memory in writes:
        if not all(done(*reading) for reading in memory.read.items()):
            raise Misuse(
                "a race: another stream may not have read yet what this one overwrites; synchronize or wait_event"
            )
    tick = stream._advance()
    for memory in reads:
        memory.read[stream._number] = tick
    for memory in writes:
        memory.written, memory.read = (stream._number, tick), {}
