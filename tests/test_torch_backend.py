"""The PyTorch backend: its devices, its errors, no recording by PyTorch, exchange of runs with NumPy, and a device
that is not here (`tests/fake_device.py`)."""

import importlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.dlpack import from_dlpack as torch_from_dlpack

import russellgrad as rg
from russellgrad import Tensor, conformance, dtype, use_backend
from russellgrad import backend as selection
from russellgrad.backend import Backend, load_backend
from russellgrad.loss import cross_entropy_loss
from russellgrad.optimizer import AdamWOptimizer, SGDOptimizer
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer
from tests.fake_device import DEVICE, KIND, DeviceTensor, FakeDevice
from tests.helpers import assert_close, hide_package, rng
from tests.process import output_of, run_python
from tests.test_resume import RUN, run_until_signal
from train.train_transformer import train

torch_backend: Any = importlib.import_module("russellgrad.backends.torch_backend")
torch_arrays: Any = importlib.import_module("russellgrad.backends.torch_arrays")

Array = Any
pytestmark = pytest.mark.skipif(
    not (os.environ.get("RG_BACKEND") or "torch").startswith("torch"), reason="runs with RG_BACKEND=torch"
)


@pytest.fixture(autouse=True)
def _forget_backends(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the loaded backends and the default dtype after each test."""
    monkeypatch.setattr(dtype, "_default", dtype._default)
    monkeypatch.setattr(selection, "_loaded", dict(selection._loaded))
    monkeypatch.setattr(selection, "_modules", dict(selection._modules))
    monkeypatch.setattr(torch_arrays, "FOUND", torch_arrays.FOUND)
    monkeypatch.delenv("RG_TRAIN_STEPS", raising=False)
    yield
    torch_backend.on_device.cache_clear()


@pytest.fixture
def xp() -> Iterator[Backend]:
    with use_backend("torch:cpu") as backend:
        yield backend


# --- Devices


def test_a_device_has_one_backend_whatever_its_name() -> None:
    found = torch_arrays.FOUND[0]
    assert load_backend("torch") is load_backend(f"torch:{found}")
    assert repr(load_backend("torch:cpu")) == "<backend 'torch:cpu'>"
    assert Tensor([1.0], backend="torch:cpu").backend.name == "torch:cpu"
    assert "backend=torch:cpu" in repr(Tensor([1.0], backend="torch:cpu"))
    assert "torch" in rg.available_backends()


@pytest.mark.parametrize("kind", ["nonsense", "", "cpu:0", "cuda:1", "CUDA"])
def test_an_unknown_device_raises(kind: str) -> None:
    with pytest.raises(ValueError, match=f"^unknown backend 'torch:{kind}': write torch:cpu, .*, or torch for the"):
        load_backend(f"torch:{kind}")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_an_absent_device_raises(kind: str) -> None:
    with pytest.raises(RuntimeError, match=f"^backend 'torch:{kind}': PyTorch .* finds no '{kind}' device; install"):
        load_backend(f"torch:{kind}")


def test_errors_at_start_are_one_line_that_says_what_to_do() -> None:
    for name, said in (
        ("torch:nonsense", "unknown backend 'torch:nonsense'"),
        ("torch:meta", "finds no 'meta' device"),
    ):
        done = run_python("-m", "train.train_transformer", "--steps", "1", RG_BACKEND=name)
        (line,) = done.stderr.strip().splitlines()
        assert done.returncode and said in line and "RG_BACKEND" in line or "write torch" in line


@pytest.mark.parametrize("reason", ["absent", "old"])
def test_without_a_recent_pytorch_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    monkeypatch.delitem(selection._loaded, "torch", raising=False)
    for module in (torch_backend, torch_arrays):
        monkeypatch.delitem(sys.modules, module.__name__)
        monkeypatch.delattr(importlib.import_module("russellgrad.backends"), module.__name__.split(".")[-1])
    if reason == "absent":
        hide_package(monkeypatch, "torch")
    else:
        monkeypatch.delattr(torch, "accelerator")
    with pytest.raises(
        ImportError, match=r"^backend 'torch' needs PyTorch 2\.7 or later .*; pip install 'russellgrad\[torch\]'"
    ):
        load_backend("torch")


def test_the_first_line_of_a_run_and_the_help_name_the_device(
    xp: Backend, text: str, tmp_path: Path, capsys: Any
) -> None:
    train(dataset=text, out=str(tmp_path / "run"), **{**RUN, "steps": 3})
    assert "backend torch:cpu, float32; " in capsys.readouterr().out
    done = run_python("-m", "train.train_transformer", "--help", RG_BACKEND="torch")
    assert f"Selected now: {load_backend('torch').name}." in " ".join(done.stdout.split())


# --- Nothing runs under PyTorch's autograd


def small(xp: Backend, **options: Any) -> tuple[Transformer, AdamWOptimizer]:
    model = Transformer(Tokenizer.from_text("abcdef", 8, 16, seed=1), 2, 2, seed=1, **options)
    return model, AdamWOptimizer(model.parameters(), 1e-2)


def step(model: Transformer, optimizer: AdamWOptimizer, batch: list[str]) -> float:
    optimizer.zero_grad()
    loss = cross_entropy_loss(model(batch), model.tokenizer.targets(batch), model.tokenizer.pad_token_id)
    loss.backward()
    optimizer.step(max_norm=1.0)
    return float(loss.item())


def test_pytorch_records_no_operation_of_a_training_step(xp: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also not with its gradients enabled: neither of the arrays that primitives take and return requires one."""
    seen = []

    def watched(primitive: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = primitive(*args, **kwargs)
            for x in torch.utils._pytree.tree_leaves((args, result)):
                if isinstance(x, torch.Tensor):
                    seen.append(x.requires_grad or x.grad_fn is not None)
            return result

        return call

    for name in (*selection.CORE, *selection.DERIVED):
        if callable(getattr(xp, name)):
            monkeypatch.setitem(vars(xp), name, watched(getattr(xp, name)))
    model, optimizer = small(xp, dropout=0.1)
    with torch.enable_grad():
        step(model, optimizer, ["abcd", "ef"])
    assert len(seen) > 500 and not any(seen)


def test_a_torch_tensor_that_requires_gradients_is_refused(xp: Backend) -> None:
    theirs = torch.ones(2, requires_grad=True)
    x = Tensor([1.0, 2.0])
    tries: list[Callable[[], Any]] = [
        lambda: Tensor(theirs), lambda: x * theirs, lambda: x.backward(theirs), lambda: setattr(x, "grad", theirs),
        lambda: setattr(x, "data", theirs), lambda: Tensor(torch.nn.Parameter(theirs)),
    ]  # fmt: skip
    for attempt in tries:
        with pytest.raises(TypeError, match=r"this torch.Tensor requires gradients; pass x.detach\(\)"):
            attempt()
    assert_close(x * theirs.detach(), np.array([1.0, 2.0]))


# --- Arrays


def test_dlpack_shares_memory_with_torch_in_both_directions(xp: Backend) -> None:
    theirs = torch.zeros(3, dtype=torch.float64)
    x = Tensor.from_dlpack(theirs, requires_grad=False)
    theirs[0] = 5.0
    assert_close(x, np.array([5.0, 0.0, 0.0]))
    back = torch_from_dlpack(x)
    back[1] = 7.0
    assert_close(x, np.array([5.0, 7.0, 0.0]))
    assert back.data_ptr() == theirs.data_ptr() == x.data.data_ptr()
    host = np.from_dlpack(x)
    host[2] = 9.0
    assert theirs.tolist() == [5.0, 7.0, 9.0]


def test_data_of_other_layouts_and_dtypes_is_refused(xp: Backend) -> None:
    for bad in (torch.eye(2).to_sparse(), torch.ones(2, dtype=torch.complex64), torch.ones(2, dtype=torch.complex128)):
        with pytest.raises(TypeError, match=r"^Tensor: this torch.Tensor has the dtype torch\.(float32|complex)"):
            Tensor(bad)


def test_host_data_of_any_strides_and_dtype_is_copied(xp: Backend) -> None:
    given = np.arange(24.0).reshape(4, 6)
    constant = given.copy()
    constant.flags.writeable = False
    for a in (given[::-1, ::2], given.T, constant, given.astype(">f8"), np.broadcast_to(given[0], (3, 6)), given[1, 1]):
        x = Tensor(a)
        assert_close(x, np.asarray(a, "float64"))
    for name in ("uint16", "uint32", "uint64", "int8", "bool", "longlong", "ulonglong", "float16"):
        a = np.array([0, 1, 1], name)
        assert np.array_equal(Tensor(a).numpy(), a)
    a = np.ones(3)
    x = Tensor(xp.asarray(a))
    a[0] = 2.0
    assert_close(x, np.ones(3))


def test_indices_follow_numpy_where_pytorch_does_not(xp: Backend) -> None:
    a = rng().normal(size=(3, 4, 5))
    ids = np.array([1, 0, 1])
    indices: list[Any] = [
        np.s_[0, :, ids], np.s_[:, 1, ids], np.s_[ids, :, 2], np.s_[::-1], np.s_[:, ::-2, 1], np.s_[::-1, ids],
        np.s_[..., ids, None, ::-1], np.s_[ids.astype("uint8")], np.s_[a > 0],
        np.s_[2:0:-1, 3:1:-1], np.s_[1:2:-1], np.s_[np.array(1), :, ids], np.s_[np.array(1)],
    ]  # fmt: skip
    for index in indices:
        x = Tensor(a)
        assert_close(x[index], a[index])
        upstream = rng(1).normal(size=a[index].shape)
        x[index].backward(Tensor(upstream))
        expected = np.zeros_like(a)
        np.add.at(expected, index, upstream)
        assert_close(x.grad, expected)


def test_gradients_of_repeated_indices_are_the_same_bits_every_time(xp: Backend) -> None:
    """PyTorch adds float32 by atomics on a CPU, in several threads."""
    g = xp.asarray((rng().normal(size=200_000) * 10.0 ** rng(1).integers(-4, 4, 200_000)).astype("float32"))
    ids = xp.asarray(rng(2).integers(0, 3, 200_000))
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        found = {xp.to_host(xp.getitem_backward(g, (ids,), (3,))).tobytes() for _ in range(5)}
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


def test_errors_are_those_of_numpy(xp: Backend) -> None:
    cases: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (ValueError, r"^add: \(2,\) and \(3,\): .*broadcast", lambda: Tensor(np.ones(2)) + Tensor(np.ones(3))),
        (
            TypeError,
            "UInt16.*cast to another dtype",
            lambda: Tensor(np.ones(2, "uint16")) + Tensor(np.ones(2, "uint16")),
        ),
        (TypeError, "^subtract: .*bool", lambda: Tensor([True]) - Tensor([True])),
        (OverflowError, "^add: .*300 is out of bounds", lambda: Tensor(np.ones(1, "uint8")) + 300),
        (ValueError, "negative integer powers", lambda: Tensor(np.array([2])) ** -1),
        (ValueError, "negative integer powers", lambda: Tensor(np.array([2])) ** Tensor(np.array([-1]))),
    ]
    for error, message, function in cases:
        with pytest.raises(error, match=message):
            function()


def test_out_of_memory_stays_an_error_of_its_own() -> None:
    def fails(*args: Any) -> Any:
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError, match=r"^no memory$"):
        torch_backend._explaining(fails)()


# --- Training


def test_a_hundred_training_steps_equal_numpys_in_float64() -> None:
    losses: dict[str, Any] = {}
    for name in ("numpy", "torch:cpu"):
        with use_backend(name) as backend:
            model, optimizer = small(backend, dropout=0.1)
            before = model.state_dict()
            losses[name] = [step(model, optimizer, ["abcdefa", "bdf", "cc"]) for _ in range(100)]
            losses[f"{name} weights"] = {key: value.tobytes() for key, value in before.items()}
            losses[f"{name} text"] = model.eval().generate(["ab", "c"], 5)
    assert losses["numpy weights"] == losses["torch:cpu weights"]  # the same seed, the same bits
    np.testing.assert_allclose(losses["numpy"], losses["torch:cpu"], rtol=0, atol=1e-10)
    assert losses["numpy text"] == losses["torch:cpu text"]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_steps_in_inference_mode_equal_those_outside(xp: Backend, optimizer: str, flat: bool) -> None:
    """PyTorch refuses to write into a tensor that was made in inference mode, such as the optimizer's state."""

    def trained(first: Any) -> Any:
        parameter = Tensor(np.arange(3.0), requires_grad=True, backend=xp)
        made: Any = (
            AdamWOptimizer([parameter], 0.1, flat=flat)
            if optimizer == "AdamW"
            else SGDOptimizer([parameter], 0.1, momentum=0.9, flat=flat)
        )
        for context in (first, nullcontext(), torch.inference_mode(), nullcontext()):
            with context:
                made.zero_grad()
                (parameter * parameter).sum().backward()
                made.step(max_norm=0.5)
        return parameter.numpy()

    np.testing.assert_array_equal(trained(torch.inference_mode()), trained(nullcontext()))


def test_a_text_begun_in_inference_mode_goes_on_outside(xp: Backend) -> None:
    """PyTorch refuses to write into the cached keys and values that were made there."""

    def logits(first: Any) -> Any:
        with use_backend(xp):
            model = Transformer(Tokenizer(8, 12, 16, 8, vocabulary="abcdefgh", seed=0), 2, 2, seed=0)
        decoder = model.make_decoder()
        assert decoder is not None
        with first:
            decoder.next_logits([[1, 2, 3]])
        return [decoder.next_logits([[1, 2, 3, *more]]) for more in ([4], [4, 5])]

    np.testing.assert_array_equal(logits(torch.inference_mode()), logits(nullcontext()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_forked_child_computes_in_one_thread() -> None:
    """PyTorch's threads do not exist in a forked child, which would wait for them without end."""
    code = """
import os, signal
import numpy as np
import russellgrad as rg, torch
x = rg.Tensor(np.ones((512, 512), "float32"), backend="torch:cpu")
torch.set_num_threads(2)
before = x.exp().sum().item()
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    os._exit(torch.get_num_threads() if x.exp().sum().item() == before else 3)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), torch.get_num_threads())
"""
    assert output_of(code, OMP_NUM_THREADS="2") == "1 2"


@pytest.mark.parametrize("order", [("numpy", "torch:cpu"), ("torch:cpu", "numpy")], ids=["to torch", "from torch"])
def test_a_run_resumes_on_the_other_backend(
    monkeypatch: pytest.MonkeyPatch, text: str, tmp_path: Path, order: tuple[str, str]
) -> None:
    first, second = order
    with use_backend("numpy"):
        whole = train(dataset=text, out=str(tmp_path / "whole"), **{**RUN, "dtype": "float64"})
    with use_backend(first):
        begun = run_until_signal(monkeypatch, 5, text, tmp_path / "parts", dtype="float64")
    with use_backend(second):
        rest = train(resume=str(tmp_path / "parts"))
    assert len(begun.losses) > 0 and len(rest.losses) > 0
    np.testing.assert_allclose(begun.losses + rest.losses, whole.losses, rtol=0, atol=1e-10)


# --- A captured step


class Graph:
    """What a CUDA graph does, on the CPU: it runs the work again."""

    def __init__(self) -> None:
        self.work: Callable[[], None] | None = None

    def replay(self) -> None:
        raise AssertionError("the test reads the order of calls only")


def begun(calls: list[str]) -> Any:
    calls.append("begin")
    return nullcontext()


def test_capture_is_offered_on_cuda_alone_and_names_what_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_arrays.Device("cuda").capture is not None
    assert torch_arrays.Device("cpu").capture is None and torch_arrays.Device("mps").capture is None
    assert not hasattr(load_backend("torch:cpu"), "capture")
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: begun(calls))
    replay = torch_arrays.capture_graph(lambda: calls.append("work"))
    assert calls == ["begin", "work"] and replay.__name__ == "replay"

    def fails() -> None:
        raise RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capture")

    with pytest.raises(RuntimeError, match=r"^compile_step: the step cannot be recorded in a CUDA graph \(Cannot copy"):
        torch_arrays.capture_graph(fails)


# --- A device that is not here


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDevice]:
    """A device without float64, selected as the backend torch:meta, which refuses what devices refuse."""
    monkeypatch.setattr(torch_arrays, "FOUND", ("cpu", KIND))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: DEVICE.index)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)  # oneDNN, which only the CPU has
    dtype._warn_of_float32.cache_clear()
    with FakeDevice() as fake:
        module = torch_backend.on_device(KIND)
        vars(module)["to_host"] = fake.explicit(torch_backend.to_host)
        with use_backend(module):
            fake.refused.clear()  # which dtypes it has
            yield fake


def on(device: FakeDevice) -> Backend:
    return rg.get_backend()


def test_the_device_refuses_what_devices_refuse(device: FakeDevice) -> None:
    """The double itself: each of these is an error on MPS, or makes a program wait."""
    a = torch.ones((2, 3), device=DEVICE)
    assert isinstance(a, DeviceTensor) and a.device == DEVICE
    attempts: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: a + torch.ones(3), RuntimeError, "same device"),
        (lambda: a + torch.tensor(1.0), RuntimeError, "same device"),
        (lambda: a[torch.tensor([0])], RuntimeError, "same device"),
        (lambda: a.to(torch.float64), TypeError, "float64"),
        (lambda: torch.zeros(3, dtype=torch.uint16, device=DEVICE), TypeError, "uint16"),
        (lambda: a.sum().item(), TypeError, "waits for the device"),
        (lambda: bool(a.sum()), TypeError, "waits for the device"),
        (lambda: a.cpu(), TypeError, "waits for the device"),
        (lambda: torch.ones((2, 3)).copy_(a), TypeError, "waits for the device"),
        (lambda: a[a > 0], TypeError, "waits for"),
        (lambda: a.nonzero(), TypeError, "waits for the device"),
        (lambda: a.numpy(), RuntimeError, "not supported"),
        (lambda: a.tolist(), RuntimeError, "not supported"),
    ]
    for attempt, error, said in attempts:
        with pytest.raises(error, match=said):
            attempt()
    a[0] = 5.0
    a[1].mul_(3.0)
    assert device.explicit(torch_backend.to_host)(a).tolist() == [[5.0] * 3, [3.0] * 3]


def test_conformance_on_a_device_without_float64(device: FakeDevice) -> None:
    with pytest.warns(UserWarning, match="has no float64"):
        report = conformance.check(on(device))
    assert report.passed, str(report)
    assert set(report.missing) == {"float64", "uint16", "uint64", "capture", "run_tasks", "n_threads"}
    ran = {outcome.case.primitive for outcome in report.outcomes if outcome.passed}
    assert ran >= {*selection.CORE, *selection.DERIVED}
    assert not [refused for refused in device.refused if "ones" not in refused]


def test_lists_default_to_float32_with_one_line_that_says_so(device: FakeDevice) -> None:
    with pytest.warns(
        UserWarning,
        match="^backend 'torch:meta' has no float64: tensors made from numbers and lists are float32; set_d",
    ):
        x = Tensor([1.0, 2.0])
    assert [str(made.dtype) for made in (x, Tensor(1), rg.zeros(2), rg.arange(0, 1, 0.25), rg.randn(2), x + 1.5)] == (
        ["float32"] * 6
    )
    assert str(Tensor([1, 2]).mean().dtype) == str(Tensor(np.array([1, 2])).exp().dtype) == "float32"
    assert_close(rg.linspace(0, 1, 5), np.linspace(0, 1, 5, dtype="float32"))
    for attempt in (lambda: Tensor(np.ones(2)), lambda: x.astype("float64"), lambda: rg.zeros(2, "float64")):
        with pytest.raises(TypeError, match="float64"):
            attempt()
    with pytest.raises(TypeError, match="uint16"):
        Tensor(np.ones(2, "uint16"))


def test_a_training_run_and_generation_copy_nothing_to_the_host_unasked(
    device: FakeDevice, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**RUN, "dtype": "float32", "accumulate": 2, "sample_tokens": 5}
    found = train(dataset=text, out=str(tmp_path / "found"), **options)
    assert all(isinstance(p.data, DeviceTensor) for p in found.model.parameters())
    with use_backend("numpy"):
        expected = train(dataset=text, out=str(tmp_path / "expected"), **options)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=0, atol=2e-5)
    assert found.model.generate(["the", "line"], 4, temperature=0.0) == expected.model.generate(
        ["the", "line"], 4, temperature=0.0
    )
    resumed = train(resume=str(tmp_path / "expected"), steps=14)
    assert len(resumed.losses) == 2
    assert not device.refused


def test_float64_of_a_run_is_refused_by_name(device: FakeDevice, text: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="float64: backend 'torch:meta' does not compute in it; use float32 or bfloat16"
    ):
        train(dataset=text, out=str(tmp_path / "run"), **{**RUN, "dtype": "float64"})


def test_layers_of_all_kinds_run_on_the_device(device: FakeDevice) -> None:
    rg.set_default_dtype("float32")
    x = Tensor(rng().normal(size=(2, 3, 8, 8)).astype("float32"))
    layers: list[Any] = [rg.layers.Conv2d(3, 4, 3, padding=1), rg.layers.BatchNorm(4), rg.layers.MaxPool2d(2)]
    for layer in layers:
        layer.astype("float32")
        x = layer(x)
    x.sum().backward()
    a = Tensor(rng().normal(size=(4, 5)).astype("float32"))
    ids = np.array([1, 0, 1])
    for out in (a[ids], a[ids, :, None], a[a > 0], a.sort(1)[0], a.cumsum(0), a.topk(2)[0], a[::-1], a.var(), a.max(1)):
        out.sum().backward()
    assert not device.refused


# --- NumPy's rules, where PyTorch has others


@pytest.mark.parametrize(
    "other", [np.array(300), 300, 1.5, True, np.array(1.5), np.array([1.5, 2.5]), np.array([7, 8])]
)
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "int64", "float32", "float64"])
def test_operands_of_two_dtypes_are_promoted_as_in_numpy(dtype: str, other: Any) -> None:
    """Arrays without axes count as arrays, numbers as Python numbers: in NumPy, not in PyTorch."""
    numpy, xp = load_backend("numpy"), load_backend("torch:cpu")
    a = np.array([3, 1]).astype(dtype)
    moved = xp.asarray(other) if isinstance(other, np.ndarray) else other
    too_large = dtype == "uint8" and type(other) is int
    if dtype == "float32" and isinstance(other, np.ndarray) and other.dtype.kind == "i":
        pytest.skip("float64 in NumPy; the library casts before")
    names = ("add", "multiply", "divide", "maximum", "less", "equal", "power", "where", "remainder")
    for name in names:
        for first in (True, False):
            operands = (a, other) if first else (other, a)
            given = tuple(xp.asarray(a) if x is a else moved for x in operands)
            before = ((np.array([True, False]),), (xp.asarray([True, False]),)) if name == "where" else ((), ())
            if too_large and name not in ("less", "equal"):
                with pytest.raises(OverflowError, match="300 is out of bounds for uint8"):
                    getattr(xp, name)(*before[1], *given)
                continue
            if name == "power" and type(other) is not float and np.size(other) == 1:
                continue  # 3 ** 300 overflows
            if dtype == "bool" and name in ("remainder", "power", "divide"):
                continue  # NumPy computes these in int8 and float16
            expected = getattr(numpy, name)(*before[0], *operands)
            found = getattr(xp, name)(*before[1], *given)
            assert_close(xp.to_host(found), np.asarray(expected), atol=1e-6 if dtype == "float32" else 1e-12, what=name)


def test_operands_that_numpy_refuses() -> None:
    xp = load_backend("torch:cpu")
    with pytest.raises(ValueError, match="lengths must not be negative"):
        xp.broadcast_to(xp.asarray([1.0, 2.0]), (-1, 2))
    for axis in (None, 1):
        with pytest.raises(ValueError, match="the array is empty, so it has no largest element"):
            xp.argmax(xp.full((2, 0), 0.0, "float64"), axis=axis)
    with use_backend("torch:cpu"), pytest.raises(IndexError) as error:
        Tensor(np.ones((3, 4)))[np.ones((4, 4), bool)]
    assert "torch.Size" not in str(error.value) and "(3, 4)" in str(error.value)
    with use_backend("torch:cpu"), pytest.raises(TypeError, match=r"max: .*not implemented.*cast to another dtype"):
        Tensor(np.ones(3, np.uint16)).max()


@pytest.mark.parametrize("index", [
    np.s_[::-1], np.s_[5:1:-2], np.s_[1:5:-1], np.s_[::-3, 1], np.s_[:, ::-1], np.s_[::-1, ::-2], np.s_[..., 3:0:-1],
    np.s_[::-1, None, ::2], np.s_[[2, 0, 2], ::-1], np.s_[::-1, [1, 1, 3]], np.s_[-1:-100:-4],
], ids=str)  # fmt: skip
def test_slices_with_a_negative_step(index: Any) -> None:
    a = rng().normal(size=(7, 5))
    with use_backend("torch:cpu"):
        x = Tensor(a)
        out = x[index]
        assert_close(out.numpy(), a[index])
        g = rng(1).normal(size=out.shape)
        out.backward(Tensor(g, requires_grad=False))
        expected = np.zeros_like(a)
        np.add.at(expected, index, g)
        assert_close(to_host_array(x), expected)


def to_host_array(x: Tensor) -> Any:
    return x.backend.to_host(x.grad)


def test_sums_over_many_equal_elements_are_accurate_in_float32() -> None:
    """PyTorch's fused functions add some of them one by one; the error would grow with the number of elements."""
    n = 1 << 18
    with use_backend("torch:cpu"):
        x = Tensor(np.full((1, n), 0.1, np.float32))
        assert_close(x.softmax().numpy() * n, np.ones((1, n), np.float32), atol=2e-6)
        assert abs(float(rg.cross_entropy(x, [0])) - math.log(n)) < 2e-5
        image, weight = (Tensor(np.ones((1, 1, width, width), np.float32)) for width in (512, 1))
        bias = Tensor(np.zeros(1, np.float32))
        rg.conv2d(image, weight, bias).backward(Tensor(np.full((1, 1, 512, 512), 0.1, np.float32), requires_grad=False))
        assert abs(float(bias.backend.to_host(bias.grad)[0]) / (n * 0.1) - 1) < 1e-6


def test_negative_steps_of_unsigned_integers_and_two_numbers() -> None:
    xp = load_backend("torch:cpu")
    for kind in ("uint8", "uint16", "uint32", "uint64", "bool"):
        a = np.arange(6).reshape(2, 3).astype(kind)
        assert_close(xp.to_host(xp.getitem(xp.asarray(a), (slice(None), slice(None, None, -2)))), a[:, ::-2])
    assert float(xp.multiply(3, 2.0)) == float(xp.multiply(3.0, 2)) == 6.0
    assert xp.dtype(xp.add(3, 2.5)) == np.float64
