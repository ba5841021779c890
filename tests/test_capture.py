"""Streams, graphs and memory pools of the CuPy stand-in: capture records work, launch runs it, races are detected."""

import gc
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from tests.helpers import assert_close, rng
from tests.standin import MODULES, Misuse, library, record

cupy: Any = MODULES["cupy"]
Array = Any


class Captured:
    """Captures the block `with self:` on a new stream with a new memory pool; `launch` runs the graph."""

    def __init__(self) -> None:
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.pool = cupy.cuda.MemoryPool()
        self.graph: Any = None

    def __enter__(self) -> "Captured":
        cupy.cuda.Device().synchronize()
        self.allocator = cupy.cuda.using_allocator(self.pool.malloc)
        self.allocator.__enter__()
        self.stream.__enter__()
        self.stream.begin_capture()
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self.graph = self.stream.end_capture()
        except RuntimeError:
            if error[0] is None:
                raise
        finally:
            self.stream.__exit__(*error)
            self.allocator.__exit__(*error)

    def launch(self) -> None:
        self.graph.launch(self.stream)
        self.stream.synchronize()


@pytest.fixture(autouse=True)
def _no_state_left() -> Iterator[None]:
    allocator = cupy.cuda.get_allocator()
    yield
    assert cupy.cuda.get_current_stream() == cupy.cuda.Stream.null
    assert cupy.cuda.get_allocator() == allocator
    cupy.ones((1,)).get()  # raises if a capture is in progress
    cupy.cuda.Device().synchronize()


def random(*shape: int, seed: int = 0) -> Array:
    return cupy.asarray(rng(seed).normal(size=shape))


# --- A capture records

IDS = np.array([2, 0, 2])

LEGAL: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "ufunc": (lambda a: cupy.exp(a) * 2 - a, lambda h: np.exp(h) * 2 - h),
    "ufunc of a number": (lambda a: 1 / (a * a + 1), lambda h: 1 / (h * h + 1)),
    "comparison": (lambda a: a > 0, lambda h: h > 0),
    "sum": (lambda a: cupy.sum(a, axis=0), lambda h: h.sum(0)),
    "mean and max": (lambda a: cupy.mean(a) + cupy.max(a, axis=1), lambda h: h.mean() + h.max(1)),
    "argmax": (lambda a: cupy.argmax(a, axis=1), lambda h: h.argmax(1)),
    "where": (lambda a: cupy.where(a > 0, a, 0.0), lambda h: np.where(h > 0, h, 0.0)),
    "clip": (lambda a: cupy.clip(a, -0.5, None), lambda h: np.clip(h, -0.5, None)),
    "views": (lambda a: a.T.reshape(2, 6)[1, ::2], lambda h: h.T.reshape(2, 6)[1, ::2]),
    "a view": (lambda a: a[1:].T, lambda h: h[1:].T),
    "a copy by reshape": (lambda a: a.T.ravel(), lambda h: h.T.ravel()),
    "copies": (lambda a: cupy.ascontiguousarray(a.T).copy().flatten(), lambda h: h.T.flatten()),
    "astype": (lambda a: a.astype("float32"), lambda h: h.astype("float32")),
    "take": (lambda a: cupy.take(a, ids(), axis=0), lambda h: h[IDS]),
    "index arrays": (lambda a: a[ids(), 1:], lambda h: h[IDS, 1:]),
    "new arrays": (
        lambda a: cupy.zeros((3, 4)) + cupy.full((4,), 2.0) + cupy.arange(4) + a,
        lambda h: 2 + np.arange(4) + h,
    ),
    "empty and fill": (lambda a: filled(cupy.empty(a.shape), 3.0), lambda h: np.full(h.shape, 3.0)),
    "in place": (lambda a: in_place(a.copy()), lambda h: in_place(h.copy())),
    "assignment": (lambda a: assigned(a.copy()), lambda h: assigned(h.copy())),
    "add.at": (lambda a: scattered(a.copy(), ids()), lambda h: h + np.array([[1.0], [0.0], [2.0]])),
    "isneginf": (lambda a: cupy.isneginf(cupy.log(a * 0)), lambda h: h == h),
}


def ids() -> Array:
    return _ids


_ids = cupy.asarray(IDS)


def filled(a: Array, value: float) -> Array:
    a.fill(value)
    return a


def in_place(a: Array) -> Array:
    a += 1
    a *= a
    a[1:] -= 2
    return a


def assigned(a: Array) -> Array:
    a[0] = a[1]
    a[:, 1] = 7.0
    return a


def scattered(a: Array, places: Array) -> Array:
    cupy.add.at(a, places, 1.0)
    return a


@pytest.mark.parametrize("case", LEGAL)
def test_capture_only_records_and_each_launch_runs_the_work(case: str) -> None:
    ours, numpys = LEGAL[case]
    a = random(3, 4)
    before = a.get()
    with record() as log, Captured() as captured:
        out = ours(a)
    assert not log.launches and not log.syncs["get"]
    np.testing.assert_array_equal(a.get(), before)
    expected = numpys(before)
    assert (out.shape, out.dtype) == (expected.shape, expected.dtype)
    assert case == "a view" or is_uninitialized(out.get())
    for seed in (1, 2):  # new values in the same memory
        a.set(rng(seed).normal(size=(3, 4)), captured.stream)
        with record() as log:
            captured.launch()
        assert log.graph_launches == 1 and not log.launches
        assert_close(out.get(), numpys(rng(seed).normal(size=(3, 4))), atol=1e-15)


def is_uninitialized(a: Array) -> bool:
    return bool(np.isnan(a).all() if a.dtype.kind == "f" else a.all() if a.dtype.kind == "b" else (a > 2**60).all())


def test_each_launch_repeats_in_place_operations() -> None:
    a = cupy.zeros((2,))
    with Captured() as captured:
        a += 1
        view = a[1:]
        view *= 2
    np.testing.assert_array_equal(a.get(), [0, 0])
    for expected in ([1, 2], [2, 6], [3, 14]):
        captured.launch()
        np.testing.assert_array_equal(a.get(), expected)


def test_each_launch_runs_a_captured_kernel() -> None:
    if shutil.which(library.COMPILER) is None:
        pytest.skip("no g++ here, which runs CUDA kernels on the CPU; install it")
    add = cupy.RawKernel('extern "C" __global__ void add(const int* x, int* y) { *y += *x; }', "add")
    x, y = cupy.ones((1,), "int32"), cupy.zeros((1,), "int32")
    with record() as log, Captured() as captured:
        x += 1
        add((1,), (1,), (x, y))
    assert log.captured == {"add": 2} and not log.launches
    for expected in (2, 5, 9):
        captured.launch()
        assert y.tolist() == [expected]


def test_the_log_counts_captured_operations_launches_and_allocations() -> None:
    a = cupy.ones((3,))
    with record() as log, Captured() as captured:
        cupy.exp(a + 1)
    assert log.captured == {"add": 1, "exp": 1}
    assert log.allocations == 2 and log.graph_launches == 0
    with record() as log:
        captured.launch()
        captured.launch()
    assert log.graph_launches == 2 and log.allocations == 0 and not log.captured


# --- Operations that cannot be captured

ILLEGAL: dict[str, tuple[type[BaseException], str, Callable[[Array], Any]]] = {
    "matmul": (NotImplementedError, "matmul in a capture: CuPy refuses cuBLAS", lambda a: cupy.matmul(a, a)),
    "@": (NotImplementedError, "matmul in a capture", lambda a: a @ a),
    "einsum": (NotImplementedError, "einsum in a capture", lambda a: cupy.einsum("ij->i", a)),
    "get": (Misuse, "get in a capture", lambda a: a.get()),
    "item": (Misuse, "item in a capture", lambda a: a[0, 0].item()),
    "tolist": (Misuse, "tolist in a capture", lambda a: a.tolist()),
    "bool": (Misuse, "bool in a capture", lambda a: bool(a[0, 0])),
    "float": (Misuse, "float in a capture", lambda a: float(a[0, 0])),
    "asnumpy": (Misuse, "asnumpy in a capture", cupy.asnumpy),
    "repr": (Misuse, "repr in a capture", repr),
    "asarray of host data": (Misuse, "array of host data in a capture", lambda a: cupy.asarray(np.ones(2))),
    "set": (Misuse, "set of host data in a capture", lambda a: a.set(np.ones((2, 2)))),
    "a mask": (Misuse, "mask index in a capture", lambda a: a[a > 0]),
    "assignment by a mask": (Misuse, "mask index in a capture", lambda a: a.__setitem__(a > 0, 0)),
    "stream.synchronize": (Misuse, "stream.synchronize in a", lambda a: cupy.cuda.get_current_stream().synchronize()),
    "device.synchronize": (Misuse, "device.synchronize in a capture", lambda a: cupy.cuda.Device().synchronize()),
    "event.synchronize": (Misuse, "event.synchronize in a capture", lambda a: cupy.cuda.Event().synchronize()),
    "sort": (NotImplementedError, "sort", lambda a: cupy.sort(a)),
    "concatenate": (NotImplementedError, "concatenate", lambda a: cupy.concatenate([a, a])),
    "another stream": (Misuse, "add on another stream", lambda a: on_another_stream(lambda: a + 1)),
    "uninitialized memory": (Misuse, "add reads an array of the capture's pool", lambda a: a + cupy.empty((2, 2))),
    "another capture": (RuntimeError, "a capture is under way", lambda a: cupy.cuda.Stream().begin_capture()),
    "a wrong shape": (ValueError, "broadcast", lambda a: a + cupy.empty((3,))),
}


def on_another_stream(work: Callable[[], Any]) -> None:
    with cupy.cuda.Stream(non_blocking=True):
        work()


@pytest.mark.parametrize("case", ILLEGAL)
def test_illegal_operations_in_a_capture_raise(case: str) -> None:
    error, message, misuse = ILLEGAL[case]
    a = random(2, 2)
    before = a.get()
    with pytest.raises(error) as raised, Captured():
        misuse(a)
    assert message in str(raised.value)
    np.testing.assert_array_equal(a.get(), before)


def test_a_synchronization_invalidates_the_capture() -> None:
    a, captured = random(2), Captured()
    with (
        pytest.raises(RuntimeError, match="cudaErrorStreamCaptureInvalidated: by get"),
        captured,
        pytest.raises(Misuse),
    ):
        a.get()


def test_begin_capture_on_the_null_stream_and_end_capture_without_begin_raise() -> None:
    with pytest.raises(RuntimeError, match="cannot capture on the default"):
        cupy.cuda.Stream.null.begin_capture()
    with pytest.raises(RuntimeError, match="not capturing"):
        cupy.cuda.Stream(non_blocking=True).end_capture()
    with pytest.raises(NotImplementedError):
        MODULES["cupy.cuda.graph"].Graph()


def test_is_capturing() -> None:
    with Captured() as captured:
        assert captured.stream.is_capturing()
        assert not cupy.cuda.Stream.null.is_capturing()
    assert not captured.stream.is_capturing()


def test_indices_are_checked_at_launch() -> None:
    a, places = random(3), cupy.asarray(np.array([0, 2]))
    with Captured() as captured:
        cupy.take(a, places)
    captured.launch()
    places.set(np.array([0, 3]), captured.stream)
    with pytest.raises(Misuse, match="take: 0 to 3 in an axis of length 3"):
        captured.launch()


# --- Memory


@pytest.mark.parametrize("allocator", [cupy.get_default_memory_pool().malloc, None])
def test_an_array_outside_the_pool_of_the_capture_must_outlive_the_graph(allocator: Any) -> None:
    a = cupy.ones((3,))
    with Captured() as captured, cupy.cuda.using_allocator(allocator):
        scale = cupy.empty((3,))
        out = a * scale
    scale.set(np.full(3, 2.0), captured.stream)  # no array of the graph shares its memory
    captured.launch()
    assert out.tolist() == [2.0, 2.0, 2.0]
    del scale
    with pytest.raises(Misuse, match="an array that the graph uses was freed"):
        captured.launch()


def test_launch_raises_if_the_pool_or_an_array_was_freed() -> None:
    a = random(3)
    with Captured() as captured:
        out = a + 1
    del a
    with pytest.raises(Misuse, match="an array that the graph uses was freed"):
        captured.launch()
    a = random(3)
    with Captured() as captured:
        out = a + 1
    captured.launch()
    del captured.pool, captured.allocator
    gc.collect()
    with pytest.raises(Misuse, match="the memory pool of the capture is gone"):
        captured.launch()
    assert out.shape == (3,)


def test_a_graph_does_not_keep_the_arrays_of_a_kernel_alive() -> None:
    if shutil.which(library.COMPILER) is None:
        pytest.skip("no g++ here, which runs CUDA kernels on the CPU; install it")
    fill = cupy.RawKernel('extern "C" __global__ void f(int* y) { *y = 1; }', "f")
    x, y = cupy.zeros((1,), "int32"), cupy.zeros((1,), "int32")
    with Captured() as captured:
        fill((1,), (1,), (x,))
        y + x
    captured.launch()
    del x
    with pytest.raises(Misuse, match="an array that the graph uses was freed"):
        captured.launch()


def test_arrays_freed_in_a_capture_return_to_its_pool() -> None:
    a = random(3)
    with Captured() as captured:
        out = (a + 1) * 2
    assert captured.pool.used_bytes() == 512 and captured.pool.total_bytes() == 1024
    assert out.shape == (3,)


def test_the_pool_of_a_captured_graph_cannot_be_used_elsewhere() -> None:
    a = random(3)
    with Captured() as captured:
        a + 1
    with cupy.cuda.using_allocator(captured.pool.malloc):
        with pytest.raises(Misuse, match="in the pool of a captured graph"):
            cupy.empty((1,))
        with pytest.raises(Misuse, match="in the pool of a captured graph"):
            captured.pool.free_all_blocks()
        captured.graph = None
        cupy.empty((1,))
        captured.pool.free_all_blocks()


def test_a_memory_pool_reports_its_size_and_enforces_its_limit() -> None:
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc), record() as log:
        a = cupy.empty((100,), "float32")
        view = a[1:]
        b = cupy.zeros((1024,), "uint8")
        assert pool.used_bytes() == 512 + 1024
        del a
        assert pool.used_bytes() == 512 + 1024  # the view keeps it
        del view, b
        assert (pool.used_bytes(), pool.total_bytes(), pool.free_bytes()) == (0, 1536, 1536)
        pool.free_all_blocks()
        assert pool.total_bytes() == 0
        pool.set_limit(size=1024)
        assert pool.get_limit() == 1024
        with pytest.raises(MODULES["cupy.cuda.memory"].OutOfMemoryError, match="limit set to: 1,024 bytes"):
            cupy.empty((1025,), "uint8")
    assert log.allocations == 2


def test_using_allocator_and_set_allocator() -> None:
    default, pool = cupy.cuda.get_allocator(), cupy.cuda.MemoryPool()
    with suppress(ZeroDivisionError), cupy.cuda.using_allocator(pool.malloc):
        assert cupy.cuda.get_allocator() == pool.malloc
        raise ZeroDivisionError
    assert cupy.cuda.get_allocator() == default
    cupy.cuda.set_allocator(pool.malloc)
    a = cupy.empty((1,))
    cupy.cuda.set_allocator(default)
    assert pool.used_bytes() == 512
    del a


# --- Streams


def stream() -> Any:
    return cupy.cuda.Stream(non_blocking=True)


def test_current_stream_follows_with_blocks_and_use() -> None:
    one, two = stream(), stream()
    assert one != two and one.ptr != two.ptr and one.ptr
    with one:
        assert cupy.cuda.get_current_stream() == one
        with two:
            assert cupy.cuda.get_current_stream() == two
        assert cupy.cuda.get_current_stream() == one
    one.use()
    assert cupy.cuda.get_current_stream() == one
    cupy.cuda.Stream.null.use()


def wait_for_the_stream(one: Any, two: Any) -> None:
    one.synchronize()


def wait_for_the_device(one: Any, two: Any) -> None:
    cupy.cuda.Device().synchronize()


def wait_for_an_event(one: Any, two: Any) -> None:
    two.wait_event(one.record())


def wait_for_an_event_on_the_host(one: Any, two: Any) -> None:
    one.record().synchronize()


WAITS = [wait_for_the_stream, wait_for_the_device, wait_for_an_event, wait_for_an_event_on_the_host]

RACES: dict[str, tuple[Callable[[Array], Any], Callable[[Array], Any]]] = {
    "read after write": (lambda a: a.fill(1), lambda a: a + 1),
    "write after write": (lambda a: a.fill(1), lambda a: a.fill(2)),
    "write after read": (lambda a: a + 1, lambda a: a.fill(1)),
    "get after write": (lambda a: a.fill(1), lambda a: a.get()),
    "set after read": (lambda a: a + 1, lambda a: a.set(np.ones(3))),
    "a view": (lambda a: a[:2].fill(1), lambda a: a[1:] + 1),
}


@pytest.mark.parametrize("case", RACES)
@pytest.mark.parametrize("wait", WAITS)
def test_a_race_between_streams_raises_unless_one_waits(case: str, wait: Callable[[Any, Any], None]) -> None:
    first, second = RACES[case]
    a, one, two = random(3), stream(), stream()
    for waits in (False, True):
        cupy.cuda.Device().synchronize()
        with one:
            first(a)
        if waits:
            wait(one, two)
        with two:
            if waits:
                second(a)
            else:
                with pytest.raises(Misuse, match="a race: another stream"):
                    second(a)


def test_ordered_or_read_only_access_is_not_a_race() -> None:
    a, one, two = random(3), stream(), stream()
    one.synchronize()
    cupy.cuda.Device().synchronize()
    with one:
        a + 1
    with two:
        a + 1  # both streams only read
        b = a + 1
        b += 1
        b.get()
    c = random(3)
    with cupy.cuda.Stream():  # a blocking stream synchronizes with the null stream
        c += 1
    c += 1


def test_graph_launches_are_checked_for_races() -> None:
    a = random(3)
    with Captured() as captured:
        out = a + 1
    captured.graph.launch(captured.stream)
    with pytest.raises(Misuse, match="a race"):
        out.get()  # on the null stream
    with pytest.raises(Misuse, match="a race"):
        a.fill(0)
    captured.stream.synchronize()
    out.get()
    a.fill(0)
    with pytest.raises(Misuse, match="a race"):
        captured.graph.launch(captured.stream)
    with captured.stream, pytest.raises(Misuse, match="a race"):
        captured.graph.launch()  # on the current stream


def test_elapsed_time() -> None:
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    with pytest.raises(RuntimeError, match="without a time"):
        cupy.cuda.get_elapsed_time(start, end)
    start.record()
    end.record()
    end.synchronize()
    assert cupy.cuda.get_elapsed_time(start, end) >= 0.0


# --- ndarray.set


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (np.ones((2, 3)), None),
        (np.ones((2, 3), "float32"), TypeError),
        (np.ones((3, 2)), ValueError),
        ([[1.0] * 3] * 2, TypeError),
        (cupy.ones((2, 3)), TypeError),
    ],
)
def test_set_takes_host_arrays_of_the_same_shape_and_dtype(value: Any, error: type[BaseException] | None) -> None:
    a = cupy.zeros((2, 3))
    with record() as log:
        if error:
            with pytest.raises(error):
                a.set(value)
        else:
            a.set(value)
    assert log.uploads == ({} if error else {"set": 1})
    assert a.get().all() == (error is None)


def test_set_requires_contiguous_memory() -> None:
    with pytest.raises(RuntimeError, match="non-contiguous"):
        cupy.zeros((4, 3))[::2].set(np.ones((2, 3)))
    a = cupy.zeros((3, 2))
    a.T.set(np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(a.get(), np.arange(6.0).reshape(2, 3).T)
