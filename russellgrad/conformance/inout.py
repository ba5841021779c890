"""Cases of setup, creation and conversion, random draws, ids and indices, and of writing in place."""

import time
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from ..backend import Array, Shape
from ..precision import get_matmul_precision
from .trial import EPS, Case, Trial, reference
from .values import inf, nan, normal, special, values
from .views import HostArray, typed


def cases() -> Iterator[Case]:
    yield Case("name", "a string", name_is_a_string)
    yield Case("require_usable", "returns on a usable backend", require_usable_returns)
    yield Case("float_dtypes", "names, float32 among them", float_dtypes_are_names)
    yield Case("float_dtypes", "each can be computed in", float_dtypes_are_usable)
    yield Case("is_array", "of its own arrays only", is_array_of_its_own)
    yield Case("dtype", "a numpy.dtype", dtype_is_numpys)
    yield Case("asarray", "does not copy its own array", asarray_does_not_copy, needs=("assign",))
    yield Case("copy", "shares no memory", copy_is_owned, needs=("assign",))
    yield Case("to_host", "an owned, writable numpy.ndarray in C order", to_host_is_owned)
    yield Case("from_dlpack", "shares memory with the exporter", from_dlpack_shares, needs=("assign",))
    yield Case("asarray", "rejects data that is not real numbers", asarray_rejects)
    yield Case("asarray", "an array, not a scalar, of a result without axes", asarray_of_scalars)
    yield Case("normal", "a function of seed and counter alone", partial(has_no_state, "normal"))
    yield Case("uniform", "a function of seed and counter alone", partial(has_no_state, "uniform"))
    yield Case("normal", "half precision", partial(draws_in_half, "normal"))
    yield Case("uniform", "half precision", partial(draws_in_half, "uniform"))
    yield Case("uniform", "the tail of a longer draw", tail_of_a_draw)
    yield Case("host_scalars", "each dtype", scalars_on_the_backend)
    yield Case("update_scalars", "overwrites in place", scalars_are_updated)
    yield Case("assign", "in place, broadcast, cast to the dtype of the target", assign_writes)
    yield Case("assign", "writes into an array through its slices", assign_writes_through_slices)
    yield Case("split_flat", "the elements one after the other", parts_of_a_flat_array)
    yield Case("split_flat", "shares memory with the flat array", parts_share_memory, needs=("assign",))
    yield Case("token_block", "the result of the primitives that it replaces", token_block_is_a_block)
    yield Case("set_matmul_precision", "takes every level", takes_every_level)
    yield Case("capture", "records without running, and replays repeatedly", capture_replays, needs=("assign",))
    yield Case("capture", "host_scalars keep their values", capture_keeps_scalars, needs=("assign", "update_scalars"))
    yield Case("run_tasks", "calls each task once, in the context of the caller", tasks_run)
    yield Case("run_tasks", "raises the error of a task when none runs any more", task_errors_are_raised)
    yield Case("n_threads", "a positive int", n_threads_is_positive)
    yield Case("check_ids", "int64, from the host and from the device", ids_in_range)
    yield Case("check_ids", "raises errors that name the op", ids_are_checked)
    yield Case("check_ids", "a copy: later changes of the given array have no effect", ids_are_copied)
    yield Case("check_targets", "False where an id is ignored", targets_in_range)
    yield Case("check_targets", "None instead of bools if all are valid", targets_that_are_all_valid)
    yield Case("check_targets", "raises errors that name the op", targets_are_checked)
    for dtype in DTYPES:
        yield from of_dtype(dtype)
    yield from arrays()
    yield from random_numbers()


# --- Arrays

DTYPES = ("bool", "uint8", "int32", "int64", "float32", "float64")


def name_is_a_string(t: Trial) -> None:
    t.require(isinstance(t.xp.name, str) and t.xp.name != "", "a name", repr(t.xp.name))


def require_usable_returns(t: Trial) -> None:
    t.xp.require_usable()


def float_dtypes_are_names(t: Trial) -> None:
    found = t.xp.float_dtypes()
    is_so = all(isinstance(name, str) for name in found)
    t.require(is_so and "float32" in found, "names, float32 among them", repr(found))


def float_dtypes_are_usable(t: Trial) -> None:
    one_and_two = t.backend.asarray(np.array([1.0, 2.0], np.float32))
    for dtype in t.xp.float_dtypes():
        a = t.backend.astype(one_and_two, dtype)
        t.is_array(a, (2,), dtype, f"astype to {dtype}: ")
        for title, found, wanted in (
            ("full", t.backend.full((2,), 1.5, dtype), [1.5, 1.5]),
            ("zeros", t.backend.zeros((2,), dtype), [0.0, 0.0]),
            ("times itself", t.backend.multiply(a, a), [1.0, 4.0]),
            ("plus a Python number", t.backend.add(a, 0.5), [1.5, 2.5]),
            ("2 minus it", t.backend.subtract(2, a), [1.0, 0.0]),
        ):
            t.is_array(found, (2,), dtype, f"{title}, {dtype}: ")
            t.same(t.backend.astype(found, "float32"), np.array(wanted, np.float32), what=f"{title}, {dtype}: ")


def dtype_is_numpys(t: Trial) -> None:
    for name in dict.fromkeys((*DTYPES[:-2], *t.backend.float_dtypes())):
        a = t.backend.astype(t.backend.asarray([[1, 0]]), name)
        without_axes = t.backend.max(a)  # it may be a scalar
        for array in (a, t.backend.transpose(a), without_axes, t.backend.astype(t.backend.zeros((0,), "int64"), name)):
            found = t.xp.dtype(array)
            is_so = isinstance(found, np.dtype) and found == np.dtype(name) and str(found) == name
            t.require(is_so, f"numpy.dtype({name!r})", repr(found))


def is_array_of_its_own(t: Trial) -> None:
    own = t.backend.asarray([1])
    t.require(t.xp.is_array(own) is True, "True", "False")
    for other in (1, 1.0, True, None, "1", [1.0], (1.0,), object()):
        found = t.xp.is_array(other)
        t.require(found is False, f"False for {other!r}", repr(found))


COPIED: dict[str, HostArray] = {
    "random": normal(3, 4), "no axes": np.array(2.5), "empty": np.zeros((2, 0)), "special": special,
    "integers": np.array([[1, 2], [3, 4]]), "bools": np.array([True, False]),
}  # fmt: skip
DATA: dict[str, Any] = {
    "a number": 2.5, "an int": 3, "a bool": True, "a list": [1.0, 2.0], "ints": [1, 2], "bools": [True, False],
    "nested lists": [[1, 2.5], [3, 4]], "a tuple": (1.0, 2.0), "an empty list": [], "a range": range(3),
}  # fmt: skip


def of_dtype(dtype: str) -> Iterator[Case]:
    array = np.array([[0, 1, 2], [3, 4, 5]]).astype(dtype)
    yield from values("asarray", f"a host array of {dtype}", call=lambda xp: xp.asarray(array))
    yield from values("asarray", f"a host view of {dtype}", call=lambda xp: xp.asarray(array[:, ::-2].T))
    yield from values("asarray", f"a list as {dtype}", [1, 0, 1], dtype)
    yield from values("asarray", f"its own array as {dtype}", np.array([[1, 0], [1, 1]]), dtype)
    yield from values("astype", f"ints to {dtype}", np.array([[0, 1], [7, 2]]), dtype)
    yield from values("astype", f"bools to {dtype}", np.array([True, False]), dtype)
    yield from values("astype", f"floats to {dtype}", np.array([[0.0, 1.75], [2.5, 100.0]]), dtype)
    yield from values("astype", f"nothing to {dtype}", np.zeros((0, 3)), dtype)
    for shape in ((2, 3), (), (0, 3)):
        yield from values("zeros", f"{dtype}, shape {shape}", shape, dtype)
        yield from values("full", f"{dtype}, shape {shape}", shape, 1, dtype)


def arrays() -> Iterator[Case]:
    for title, data in DATA.items():
        yield from values("asarray", title, data)
    for title, array in COPIED.items():
        yield from values("copy", title, array, atol=0.0, signs=True)
        yield from values("to_host", title, array, call=lambda xp, a: xp.asarray(xp.to_host(a)), atol=0.0, signs=True)
    yield from values("astype", "special", special, "float32", signs=True)
    yield from values("astype", "a dtype object", normal(3), np.dtype("float32"))
    for value in (2.5, -0.0, inf, nan):
        yield from values("full", f"of {value}", (2, 1), value, "float32", signs=True)
    for n in (0, 1, 5):
        yield from values("arange", f"{n}", n)


def asarray_does_not_copy(t: Trial) -> None:
    a = t.backend.copy(t.backend.asarray(np.ones(3)))
    b = t.xp.asarray(a)
    _subtract_one(t, a)
    t.same(b, np.zeros(3))


def copy_is_owned(t: Trial) -> None:
    a = t.backend.copy(t.backend.asarray(np.ones(3)))
    b = t.xp.copy(a)
    _subtract_one(t, b)
    t.same(a, np.ones(3))
    t.same(b, np.zeros(3))


def asarray_of_scalars(t: Trial) -> None:
    for given in (2.5, np.array(2.5), np.float64(2.5), t.backend.sum(t.backend.asarray([1.0, 1.5]))):
        t.same(t.xp.asarray(given), np.array(2.5))
    t.same(t.xp.copy(t.backend.sum(t.backend.asarray([1.0, 1.5]))), np.array(2.5))


def _subtract_one(t: Trial, a: Array) -> None:
    """In place."""
    t.backend.assign(a, t.backend.subtract(a, 1.0))


SCALARS: dict[str, list[float]] = {"float64": [0.5, -2.0], "float32": [1.5], "uint64": [2**64 - 1, 0, 7]}


def scalars_on_the_backend(t: Trial) -> None:
    for dtype in (*t.floats(), "uint64"):
        given = SCALARS[dtype]
        scalars = t.xp.host_scalars(given, dtype)
        t.same(scalars, np.array(given, dtype), atol=0.0)


def scalars_are_updated(t: Trial) -> None:
    for dtype in (*t.floats(), "uint64"):
        given = SCALARS[dtype]
        scalars = t.backend.host_scalars([0] * len(given), dtype)
        t.xp.update_scalars(scalars, given)
        t.same(scalars, np.array(given, dtype), atol=0.0)


def assign_writes(t: Trial) -> None:
    for source in (normal(2, 3), normal(3), np.array(2.0), normal(2, 3).astype("float32")):
        for target in (np.zeros((2, 3)), np.zeros((2, 3), np.float32)):
            written = t.backend.copy(t.backend.asarray(target))
            t.xp.assign(written, t.move(source))
            t.same(written, np.broadcast_to(source, (2, 3)).astype(target.dtype), atol=0.0)


def assign_writes_through_slices(t: Trial) -> None:
    """A part that slices select is a view, so that writing into it changes the array."""
    for index in ((slice(1, 2),), (..., slice(0, 2), slice(None)), (slice(None), 0)):
        expected = normal(3, 2, 4, 2)
        whole = t.backend.copy(t.backend.asarray(expected))
        t.xp.assign(t.xp.getitem(whole, index), t.backend.full(expected[index].shape, 7.0, "float64"))
        expected[index] = 7.0
        t.same(whole, expected, atol=0.0)


BLOCK_SHAPES: list[Shape] = [(8, 24), (8, 8), (8, 12), (12,), (12, 8), (8,)]  # of w_qkv, w_out, w_in, b_in ...


def token_block_is_a_block(t: Trial) -> None:
    for dtype, activation, with_w_out in product(t.floats(), ("gelu", "relu"), (True, False)):
        arrays = [normal(*shape, seed=i) for i, shape in enumerate([(1, 1, 8), *[(8,)] * 4, *BLOCK_SHAPES])]
        x, gamma, beta, gamma_2, beta_2, *weights = typed(tuple(arrays), dtype)
        if not with_w_out:
            weights[1] = None
        old = typed((normal(1, 2, 2, 5, 4),), dtype)[0]
        for position in (0, 3):
            cache = t.backend.copy(t.backend.asarray(old))
            norms = [(t.move(gamma), t.move(beta), 1e-5), (t.move(gamma_2), t.move(beta_2), 0.1)]
            found = t.xp.token_block(
                t.move(x), norms, [None if w is None else t.move(w) for w in weights], activation, cache, position
            )
            if found is not NotImplemented:
                want, wanted_cache = _block_of(x, (gamma, beta), (gamma_2, beta_2), weights, activation, old, position)
                t.same(found, want)
                t.same(cache, wanted_cache)


def _block_of(
    x: HostArray, norm: Any, norm_2: Any, weights: Any, activation: str, old: HostArray, position: int
) -> tuple[HostArray, HostArray]:
    """The expected result, and the cache after it."""
    xp, (w_qkv, w_out, w_in, b_in, w_down, b_down) = reference, weights
    (gamma, beta), (gamma_2, beta_2) = norm, norm_2
    qkv = xp.linear(xp.layer_norm(x, gamma, beta, 1e-5)[0], w_qkv, None).reshape(1, 3, 2, 1, 4)
    cache = old.copy()
    cache[:, :, :, position : position + 1] = qkv[:, 1:]
    keys, values = cache[:, 0, :, : position + 1], cache[:, 1, :, : position + 1]
    attended = xp.attention(qkv[:, 0], keys, values, None, False, 0)[0].reshape(x.shape)
    x = x + (attended if w_out is None else xp.linear(attended, w_out, None))
    hidden = xp.linear(xp.layer_norm(x, gamma_2, beta_2, 0.1)[0], w_in, b_in)
    hidden = xp.gelu(hidden, "none")[0] if activation == "gelu" else xp.relu(hidden)
    return x + xp.linear(hidden, w_down, b_down), cache


PART_SHAPES: list[Shape] = [(3,), (), (0, 2), (1, 3)]


def parts_of_a_flat_array(t: Trial) -> None:
    parts = t.xp.split_flat(t.backend.asarray(np.arange(7.0)), PART_SHAPES)
    for part, wanted in zip(parts, ([0.0, 1.0, 2.0], 3.0, np.zeros((0, 2)), [[4.0, 5.0, 6.0]]), strict=True):
        t.require(t.backend.is_array(part), "an array of the backend", type(part).__name__)
        t.same(part, np.asarray(wanted))


def parts_share_memory(t: Trial) -> None:
    flat = t.backend.copy(t.backend.asarray(np.arange(7.0)))
    for part in t.xp.split_flat(flat, PART_SHAPES):
        _subtract_one(t, part)
    t.same(flat, np.arange(7.0) - 1, what="after a write to each part: ")


def takes_every_level(t: Trial) -> None:
    a, b = normal(3, 4).astype("float32"), normal(4, 5, seed=1).astype("float32")
    try:
        for level, atol in {"medium": 0.1, "high": 0.02, "highest": 2e-5}.items():
            t.xp.set_matmul_precision(level)
            t.same(t.xp.matmul(t.move(a), t.move(b)), a @ b, atol=atol, what=f"{level}: ")
            if "float64" in t.backend.float_dtypes():
                t.same(t.xp.matmul(*t.move((a.astype("float64"), b.astype("float64")))), a.astype("float64") @ b)
    finally:
        t.backend.set_matmul_precision(get_matmul_precision())


def capture_replays(t: Trial) -> None:
    a = t.backend.copy(t.backend.asarray(np.ones(3)))
    _subtract_one(t, a)  # compiles what the work needs
    replay = t.xp.capture(partial(_subtract_one, t, a))
    t.same(a, np.zeros(3), what="after the capture: ")
    replay()
    replay()
    t.same(a, np.full(3, -2.0), what="after two replays: ")


def capture_keeps_scalars(t: Trial) -> None:
    """A captured step writes to temporary arrays, whose memory must not become that of the scalars."""
    a = t.backend.copy(t.backend.asarray(np.ones(3)))
    values, scalars = [1.0, 2.0, 3.0], []

    def work() -> None:
        t.xp.multiply(t.xp.multiply(a, 5.0), 5.0)  # its memory is free again
        scalars.append(t.xp.host_scalars(values, np.float64))
        t.xp.assign(a, t.xp.add(a, scalars[-1]))

    work()  # compiles what the work needs
    replay = t.xp.capture(work)
    for values, wanted in (([1.0, 1.0, 1.0], [3.0, 4.0, 5.0]), ([0.5, 1.0, 2.0], [3.5, 5.0, 7.0])):
        t.xp.update_scalars(scalars[-1], values)
        replay()
        t.same(a, np.array(wanted), what="after a replay: ")


_CONTEXT: ContextVar[int] = ContextVar("conformance", default=0)


def tasks_run(t: Trial) -> None:
    results: list[Any] = [None] * 5

    def task(i: int) -> None:
        results[i] = t.backend.add(t.backend.asarray([1.0 * i]), _CONTEXT.get())

    token = _CONTEXT.set(7)
    try:
        t.xp.run_tasks([partial(task, i) for i in range(5)])
        t.xp.run_tasks([])
    finally:
        _CONTEXT.reset(token)
    for i, result in enumerate(results):
        t.require(result is not None, "a call of each task", f"none of task {i}")
        t.same(result, np.array([i + 7.0]), what=f"task {i}: ")


def task_errors_are_raised(t: Trial) -> None:
    begun, ended = [], []

    def task(i: int) -> None:
        if i == 1:
            raise KeyError("task 1")
        begun.append(i)
        time.sleep(0.02)
        ended.append(i)

    try:
        t.xp.run_tasks([partial(task, i) for i in range(3)])
    except KeyError as error:
        t.require(error.args == ("task 1",), "the error of task 1", repr(error))
    else:
        t.require(False, "KeyError", "no error")
    t.require(sorted(begun) == sorted(ended), "no task that still runs", f"begun {begun}, ended {ended}")


def n_threads_is_positive(t: Trial) -> None:
    found = t.xp.n_threads()
    t.require(isinstance(found, int) and found > 0, "a positive int", repr(found))


def to_host_is_owned(t: Trial) -> None:
    a = t.backend.asarray(normal(3, 4).T.astype("float32"))
    for array in (a, t.backend.transpose(a), t.backend.broadcast_to(t.backend.asarray([1]), (2, 3))):
        before = np.array(t.backend.to_host(array))
        found = t.xp.to_host(array)
        t.require(type(found) is np.ndarray, "a numpy.ndarray", type(found).__name__)
        facts = (found.flags.c_contiguous, found.flags.writeable)
        t.require(facts == (True, True), "C-contiguous and writable", f"C-contiguous {facts[0]}, writable {facts[1]}")
        found[...] = 7.0
        t.same(array, before, what="the array, after a write to its copy: ")


def from_dlpack_shares(t: Trial) -> None:
    a = t.backend.copy(t.backend.asarray(np.ones(3)))
    b = t.xp.from_dlpack(a)
    t.same(b, np.ones(3))
    _subtract_one(t, a)
    t.same(b, np.zeros(3))


def asarray_rejects(t: Trial) -> None:
    masked = np.ma.masked_array([1.0, 2.0], [False, True])
    for data in (None, "1", ["1", "2"], [1, None], 1j, np.array([1j]), object(), np.array(["a"]), masked, [masked]):
        t.raises(TypeError, "", t.xp.asarray, data)
    for dtype in ("complex64", object, "U1"):
        t.raises(TypeError, "", t.xp.asarray, [1.0], dtype)
        t.raises(TypeError, "", t.xp.asarray, t.backend.asarray([1]), dtype)
    t.raises(ValueError, "", t.xp.asarray, [[1.0, 2.0], [3.0]])


# --- Random numbers


def random_numbers() -> Iterator[Case]:
    """The same bits on every backend."""
    for primitive in ("normal", "uniform"):
        for seed, counter in ((0, 0), (1, 0), (0, 1), (2**64 - 1, 5), (7, 2 << 64 | 3)):
            for dtype in ("float64", "float32"):
                title = f"seed {seed}, counter {counter}, {dtype}"
                yield from values(primitive, title, (3, 5), *_draw(primitive, seed, counter), dtype, atol=0.0)
        for shape in ((), (0,), (7,), (2, 0, 3), (2, 3, 4), (1000,)):
            for dtype in ("float64", "float32"):
                yield from values(primitive, f"shape {shape}, {dtype}", shape, *_draw(primitive, 3, 4), dtype, atol=0.0)

    for dtype in ("float64", "float32"):
        for p in (0.2, 0.5):
            arguments = (3, 5), *_draw("uniform", 7, 2 << 64 | 3, 6), p
            yield from values("dropout_mask", f"p = {p}, {dtype}", *arguments, dtype, atol=0.0)
        yield from values("dropout_mask", f"empty, {dtype}", (2, 0), *_draw("uniform", 3, 4), 0.1, dtype, atol=0.0)


def _draw(primitive: str, seed: int, counter: int, start: int = 0) -> tuple[Any, ...]:
    """The arguments that select a draw."""
    if primitive == "normal":
        return seed, counter
    return (np.array([seed, counter % 2**64, counter >> 64, start], np.uint64),)


def tail_of_a_draw(t: Trial) -> None:
    """A draw from position `start` on gives the elements of the whole draw from there on."""
    for dtype in t.floats():
        whole = t.host(t.xp.uniform((40,), t.move(_draw("uniform", 1, 2)[0]), dtype))
        for start in range(9):
            rest = t.xp.uniform((5, 6), t.move(_draw("uniform", 1, 2, start)[0]), dtype)
            t.same(rest, whole[start : start + 30].reshape(5, 6), atol=0.0, what=f"from position {start}: ")


def has_no_state(primitive: str, t: Trial) -> None:
    def draw(seed: int, counter: int) -> Array:
        found: Array = getattr(t.xp, primitive)((4,), *t.move(_draw(primitive, seed, counter)), "float32")
        return found

    first = t.host(draw(1, 2))
    for seed, counter in ((1, 3), (2, 2)):
        other = t.host(draw(seed, counter))
        t.require(not np.any(first == other), "other numbers than with seed 1, counter 2", f"{other.tolist()}")
    t.same(draw(1, 2), first, atol=0.0, what="second call: ")


def draws_in_half(primitive: str, t: Trial) -> None:
    """The numbers in float64, rounded to half precision."""
    for dtype in t.halves():
        arguments = _draw(primitive, 1, 2)
        wanted = getattr(reference, primitive)((3, 5), *arguments, "float64")
        found = getattr(t.xp, primitive)((3, 5), *t.move(arguments), dtype)
        t.same_half(found, wanted, dtype, atol=EPS[dtype] / 2, relative=True)


# --- Ids and targets

IDS: dict[str, Any] = {
    "a list": [0, 4, 2], "nested lists": [[0, 1], [1, 4]], "a number": 3, "an empty list": [],
    "a host array": np.array([[1, 1, 0]]), "int32": np.array([4, 0], np.int32), "uint8": np.array([4, 0], np.uint8),
    "an empty array": np.zeros((2, 0), np.int64),
}  # fmt: skip


def ids_in_range(t: Trial) -> None:
    for title, ids in IDS.items():
        expected = np.asarray(ids, np.int64)
        t.same(t.xp.check_ids(ids, 5, "test"), expected, what=f"{title}: ")
        if isinstance(ids, np.ndarray):
            t.same(t.xp.check_ids(t.backend.asarray(ids), 5, "test"), expected, what=f"{title}, moved: ")


def ids_are_checked(t: Trial) -> None:
    for ids in ([0, -1], [5], [[1, 2], [3, 100]]):
        for given in (ids, np.array(ids), t.backend.asarray(np.array(ids))):
            t.raises(IndexError, "the op", t.xp.check_ids, given, 5, "the op")
    for wrong in (np.array([1.0], "float32"), np.array([True])):
        for given in (wrong.tolist(), wrong, t.backend.asarray(wrong)):
            t.raises(TypeError, "the op", t.xp.check_ids, given, 5, "the op")
    t.raises(ValueError, "the op", t.xp.check_ids, [[0, 1], [2]], 5, "the op")
    t.raises(IndexError, "the op", t.xp.check_ids, [0], 0, "the op")


def ids_are_copied(t: Trial) -> None:
    given = np.array([1, 2])
    found = t.xp.check_ids(given, 5, "test")
    given[:] = 0
    t.same(found, np.array([1, 2]))


def targets_in_range(t: Trial) -> None:
    some = np.array([True, False, True])
    for ignore in (-100, 4, 2, 99):
        for given in ([1, ignore, 0], np.array([1, ignore, 0]), t.backend.asarray(np.array([1, ignore, 0]))):
            ids, valid = t.xp.check_targets(given, 5, ignore, "test")
            t.same(valid, some, what="valid: ")
            chosen = t.host(ids)[some]
            t.require(chosen.tolist() == [1, 0], "the valid ids unchanged, [1, 0]", f"{chosen.tolist()}")
            t.is_array(ids, (3,), "int64")
            in_range = np.all((t.host(ids) >= 0) & (t.host(ids) < 5))
            t.require(bool(in_range), "all ids in range, ignored ones too", f"{t.host(ids).tolist()}")


def targets_that_are_all_valid(t: Trial) -> None:
    for ignore in (None, 3):
        t.same(t.xp.check_targets([[1, 0], [4, 4]], 5, ignore, "test"), (np.array([[1, 0], [4, 4]]), None))


def targets_are_checked(t: Trial) -> None:
    t.raises(IndexError, "the op", t.xp.check_targets, [0, 5], 5, None, "the op")
    t.raises(IndexError, "the op", t.xp.check_targets, [0, -1, -100], 5, -100, "the op")
    t.raises(TypeError, "the op", t.xp.check_targets, [0.0, 1.0], 5, None, "the op")
    t.raises(ValueError, "the op", t.xp.check_targets, [3, 3], 5, 3, "the op")
    t.raises(ValueError, "the op", t.xp.check_targets, [], 5, None, "the op")
