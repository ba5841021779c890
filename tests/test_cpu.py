"""The NumPy backend's thread pool, block-wise primitives and malloc settings."""

import gc
import importlib
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's convention

import russellgrad as rg
from russellgrad import Tensor, use_backend
from russellgrad.backend import Backend
from tests.helpers import assert_close, check_against_torch, rng
from tests.process import output_of, run_python

cpu: Any = importlib.import_module("russellgrad.backends.cpu")
numpy_attention: Any = importlib.import_module("russellgrad.backends.numpy_attention")
numpy_blocks: Any = importlib.import_module("russellgrad.backends.numpy_blocks")
numpy_fused: Any = importlib.import_module("russellgrad.backends.numpy_fused")


def normal(*shape: int, seed: int = 0) -> Any:
    return rng(seed).normal(size=shape)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Set the number of threads. Small inputs use several blocks (100 elements each) and all threads, too."""
    monkeypatch.setattr(cpu, "_n_threads", request.param)
    monkeypatch.setattr(cpu, "_queue", None)
    monkeypatch.setattr(cpu, "MIN_PART_TIME", 1e-9)
    monkeypatch.setattr(numpy_blocks, "_BLOCK", 100)
    monkeypatch.setattr(numpy_attention._AttentionOperands, "query_block_size", 4)
    with use_backend("numpy"):
        yield request.param


# --- The primitives, against PyTorch


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_blockwise_primitives_agree_with_pytorch(threads: int, rows: int, dtype: str) -> None:
    x, weight, bias = normal(rows, 2, 9), normal(9, 5, seed=1), normal(5, seed=2)
    scale = normal(9, seed=3)
    check_against_torch(rg.linear, lambda x, w, b: F.linear(x, w.T, b), x, weight, bias, dtype=dtype)
    check_against_torch(Tensor.gelu, F.gelu, x, dtype=dtype)
    check_against_torch(Tensor.sigmoid, torch.sigmoid, x, dtype=dtype)
    check_against_torch(lambda x: x.gelu("tanh"), lambda x: F.gelu(x, approximate="tanh"), x, dtype=dtype)
    check_against_torch(rg.layer_norm, lambda x, g, b: F.layer_norm(x, (9,), g, b), x, scale, scale, dtype=dtype)
    check_against_torch(rg.layer_norm, lambda x: F.layer_norm(x, (9,)), x, dtype=dtype)
    for axis in (0, -1):
        check_against_torch(
            lambda x, axis=axis: x.softmax(axis), lambda x, axis=axis: F.softmax(x, axis), x, dtype=dtype
        )
        check_against_torch(
            lambda x, axis=axis: x.log_softmax(axis), lambda x, axis=axis: F.log_softmax(x, axis), x, dtype=dtype
        )
    check_against_torch(lambda a, b: a @ b, torch.matmul, normal(rows, 9), weight, dtype=dtype)
    check_against_torch(lambda a, b: a @ b, torch.matmul, x, normal(rows, 9, 3), dtype=dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("queries", "keys", "offset"), [(11, 11, 0), (11, 13, 2), (9, 14, 5), (11, 11, -3), (2, 20, 1)]
)
def test_blockwise_attention_agrees_with_pytorch(
    threads: int, queries: int, keys: int, offset: int, dtype: str
) -> None:
    q, k, v = normal(3, 5, queries, 4), normal(3, 5, keys, 4, seed=1), normal(3, 5, keys, 6, seed=2)
    later = torch.arange(keys) > torch.arange(queries)[:, None] + offset
    padding = torch.tensor(rng(3).random((3, 1, 1, keys)) < 0.3)

    def reference(q: Any, k: Any, v: Any, hidden: Any) -> Any:
        scores = (q @ k.transpose(-1, -2) / 2).masked_fill(hidden, -1e30)
        return torch.softmax(scores, -1).masked_fill(hidden, 0) @ v

    check_against_torch(
        lambda q, k, v: rg.attention(q, k, v, causal=True, offset=offset),
        lambda q, k, v: reference(q, k, v, later), q, k, v, dtype=dtype,
    )  # fmt: skip
    check_against_torch(
        lambda q, k, v: rg.attention(q, k, v, padding.numpy(), causal=True, offset=offset),
        lambda q, k, v: reference(q, k, v, later | padding), q, k, v, dtype=dtype,
    )  # fmt: skip


def test_blockwise_attention_ignores_masked_keys(threads: int) -> None:
    """Infinities and nan in masked keys and values do not change the output."""
    q, k, v = (Tensor(normal(1, 8, 2, seed=i)) for i in range(3))
    expected = rg.attention(q, k, v, causal=True).numpy()
    k.data[0, 3] = np.inf  # within the first block of queries
    k.data[0, 5], v.data[0, 5] = np.inf, np.nan  # after the first block
    with np.errstate(invalid="ignore"):
        found = rg.attention(q, k, v, causal=True).numpy()
    assert np.array_equal(found[0, :3], expected[0, :3])


def test_layer_norm_does_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numpy_blocks, "_BLOCK", 100)
    monkeypatch.setattr(cpu, "MIN_PART_TIME", 1e-9)
    found: list[tuple[Any, Any]] = []
    for n in (1, 2, 3):
        monkeypatch.setattr(cpu, "_n_threads", n)
        x, gamma = (Tensor(normal(*shape), backend="numpy") for shape in ((50, 20), (20,)))
        rg.layer_norm(x, gamma).backward(Tensor(normal(50, 20, seed=1), backend="numpy"))
        found.append((x.grad, gamma.grad))
    for x_grad, gamma_grad in found[1:]:
        assert np.array_equal(x_grad, found[0][0])
        assert np.array_equal(gamma_grad, found[0][1])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("rows", [1, 3, 2000])
def test_layer_norm_of_rows_with_a_large_mean(backend: Backend, rows: int, dtype: str) -> None:
    """One row, few rows and many rows take different functions. A constant row gives 0; others are as in PyTorch."""
    constant = np.full((rows, 384), 1e6, dtype)
    assert_close(
        rg.layer_norm(Tensor(constant)).numpy(),
        np.zeros_like(constant),
        atol={"float64": 1e-12, "float32": 1e-5}[dtype],
    )
    x = 1e3 + rng().normal(size=(rows, 384))
    check_against_torch(
        lambda x: rg.layer_norm(x), lambda x: F.layer_norm(x, (384,)), x, dtype=dtype,
        atol={"float64": 1e-11, "float32": 2e-3}[dtype],
    )  # fmt: skip


def test_attention_of_one_query_ignores_hidden_keys_and_values(backend: Backend) -> None:
    """nan and infinity at hidden keys have no effect, and a query that sees no key gives 0."""
    q, k, v = (normal(2, 3, n, 4, seed=n) for n in (1, 5, 5))
    for offset in (-1, 0, 2):
        expected = rg.attention(Tensor(q), Tensor(k), Tensor(v), causal=True, offset=offset).numpy()
        hidden_k, hidden_v = k.copy(), v.copy()
        hidden_k[..., offset + 1 :, :], hidden_v[..., offset + 1 :, :] = np.inf, np.nan
        with np.errstate(invalid="ignore"):
            found = rg.attention(Tensor(q), Tensor(hidden_k), Tensor(hidden_v), causal=True, offset=offset).numpy()
        if backend.name in ("numpy", "numba"):
            assert np.array_equal(found, expected)
        assert (offset >= 0) or not expected.any()


# --- Threads


def test_run_parallel_covers_the_range_once(threads: int) -> None:
    for n in (0, 1, 2, 5, 100):
        counts = np.zeros(n, int)

        def work(start: int, stop: int, counts: Any = counts) -> None:
            counts[start:stop] += 1

        cpu.run_parallel(n, 1.0, work)
        assert (counts == 1).all()


def test_run_parallel_runs_short_work_in_the_callers_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_n_threads", 4)
    calls: list[tuple[int, int, str]] = []

    def work(start: int, stop: int) -> None:
        calls.append((start, stop, threading.current_thread().name))

    caller = threading.current_thread().name
    cpu.run_parallel(10, 1.9 * cpu.MIN_PART_TIME, work)
    assert calls == [(0, 10, caller)]
    calls.clear()
    cpu.run_parallel(10, 2 * cpu.MIN_PART_TIME, work)
    assert sorted(calls) == [(0, 5, caller), (5, 10, "russellgrad")]


@pytest.mark.parametrize("threads", [2, 3], indirect=True)
def test_run_parallel_raises_the_error_of_a_part(threads: int) -> None:
    def fail(start: int, stop: int) -> None:
        if start:
            raise KeyError(start)

    with pytest.raises(KeyError):
        cpu.run_parallel(10, 1.0, fail)
    cpu.run_parallel(10, 1.0, lambda start, stop: None)  # the threads still work


def test_run_parallel_uses_the_errstate_of_the_caller(threads: int) -> None:
    x = np.ones(1000)
    x[-1] = 0  # in the last part
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        cpu.run_parallel(len(x), 1.0, lambda start, stop: 1 / x[start:stop])
    with np.errstate(divide="ignore"):
        cpu.run_parallel(len(x), 1.0, lambda start, stop: 1 / x[start:stop])


@pytest.mark.parametrize("threads", [2, 3], indirect=True)
def test_run_parallel_can_be_nested(threads: int) -> None:
    counts = np.zeros(100, int)

    def inner(start: int, stop: int) -> None:
        counts[start:stop] += 1

    cpu.run_parallel(10, 1.0, lambda *outer: cpu.run_parallel(100, 1.0, inner))
    assert len(set(counts)) == 1  # every outer part ran the whole inner range


def test_run_parallel_within_a_part_stays_in_its_thread(threads: int) -> None:
    """Also within the part of the caller's thread: the other threads may be busy for long."""

    def outer(*_: int) -> None:
        thread, inner = threading.get_ident(), []
        cpu.run_parallel(100, 1.0, lambda start, stop: inner.append((threading.get_ident(), start, stop)))
        assert inner == [(thread, 0, 100)]

    cpu.run_parallel(10, 1.0, outer)
    seen: list[int] = []
    cpu.run_parallel(10, 1.0, lambda *_: seen.append(threading.get_ident()))
    assert len(seen) == threads  # the caller may use the threads again


def test_an_error_of_a_part_keeps_no_array_alive(threads: int) -> None:
    class Kept:
        pass

    def fail(start: int, stop: int) -> None:
        kept = Kept()
        references.append(weakref.ref(kept))
        raise KeyError(start)

    references: list[Any] = []
    gc.disable()
    try:
        with pytest.raises(KeyError):
            cpu.run_parallel(10, 1.0, fail)
        assert references and all(reference() is None for reference in references)
    finally:
        gc.enable()


def test_run_parallel_sets_one_blas_thread_and_restores_the_number(threads: int) -> None:
    count, set_count = cpu._openblas("get_num_threads"), cpu._openblas("set_num_threads")
    if count is None:
        pytest.skip("NumPy's BLAS is not OpenBLAS")
    before, within = count(), []
    set_count(2)
    try:
        cpu.run_parallel(10, 1.0, lambda start, stop: within.append(count()))
        assert set(within) == ({1} if threads > 1 else {2})
        assert count() == 2
        with pytest.raises(ZeroDivisionError):
            cpu.run_parallel(10, 1.0, lambda start, stop: within.append(1 // 0))
        assert count() == 2
    finally:
        set_count(before)


def test_matmul_can_be_called_from_several_threads(threads: int) -> None:
    a = normal(40, 30)
    expected, wrong = a @ a.T, []

    def caller() -> None:
        for _ in range(50):
            wrong.extend([] if np.allclose(numpy_fused.matmul(a, a.T), expected, atol=1e-12) else ["wrong"])

    callers = [threading.Thread(target=caller) for _ in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_starts_new_threads() -> None:
    program = """
import os, sys
from russellgrad import Tensor
from russellgrad.backends import cpu
cpu._n_threads, cpu.MIN_PART_TIME = 2, 1e-9
x = Tensor([[1.0, 2.0], [3.0, 4.0]])
print((x @ x).numpy().tolist(), flush=True)
child = os.fork()
if not child:
    print((x @ x).numpy().tolist(), flush=True)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    lines = output_of(program).splitlines()
    assert lines == ["[[7.0, 10.0], [15.0, 22.0]]"] * 2 + ["0"]


# --- The environment


def test_rg_num_threads_sets_the_number_of_threads() -> None:
    program = "from russellgrad.backends import cpu; print(cpu.n_threads())"
    assert output_of(program, RG_NUM_THREADS="3") == "3"
    assert int(output_of(program, RG_NUM_THREADS="")) >= 1
    failed = run_python("-c", program, RG_NUM_THREADS="many")
    assert "RG_NUM_THREADS must be a positive whole number, got 'many'" in failed.stderr
    failed = run_python("-c", "from russellgrad import Tensor; Tensor(1.0)", RG_NUM_THREADS="0")
    assert (
        failed.stderr.strip().split("\n")[-1].startswith("ValueError: RG_NUM_THREADS must be a positive whole number")
    )


@pytest.mark.skipif(sys.platform != "linux", reason="malloc is configured on Linux only")
@pytest.mark.parametrize("wanted", ["", "0"])
@pytest.mark.parametrize("name", ["numpy", "torch:cpu"])
def test_rg_malloc_controls_the_reuse_of_memory(name: str, wanted: str) -> None:
    """The memory of a freed large array is reused by the next one, unless RG_MALLOC=0."""
    program = """
import ctypes, resource
import numpy as np
from russellgrad import Tensor
Tensor([1.0])  # loads the backend
glibc = hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
np.ones(3_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(3_000_000)
print(glibc, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    glibc, faults = output_of(program, RG_MALLOC=wanted, RG_BACKEND=name).split()
    if glibc == "False":
        pytest.skip("another C library than glibc")
    assert (int(faults) < 100) is (wanted != "0")
