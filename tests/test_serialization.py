"""rg.save and rg.load: parameters and buffers of any module, bit for bit, also to and from PyTorch's safetensors."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import russellgrad as rg
from russellgrad import Module, Tensor
from russellgrad.backend import Backend
from russellgrad.checkpoint import load_model
from russellgrad.layers import Linear, Sequential
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer
from tests.helpers import hide_package, once, rng

safetensors_torch = pytest.importorskip("safetensors.torch")


class Model(Module):
    """Arrays of many kinds: nested, frozen, integer, bool, 0-d, empty, transposed, half precision."""

    def __init__(self, seed: int = 0, width: int = 4) -> None:
        draws = rng(seed)

        def floats(*shape: int, dtype: str = "float64") -> Tensor:
            return Tensor(draws.normal(size=shape).astype(dtype))

        self.weight = floats(3, width)
        self.layers = [{"bias": floats(5, dtype="float32")}, {"bias": floats()}]
        self.empty = floats(0, 3)
        self.transposed = Tensor(floats(3, 2).data.T)
        self.frozen = Tensor(draws.normal(size=(2,)), requires_grad=False)
        self.num_batches_tracked = Tensor(np.array(draws.integers(2**40)))
        self.mask = Tensor(draws.random(3) < 0.5)
        self.small = Tensor(draws.integers(-9, 9, 4).astype("int8"))


def bits(module: Module) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in module.state_dict().items()}


def test_a_loaded_module_has_the_same_bits(backend: Backend, tmp_path: Path) -> None:
    model, other = Model(0), Model(1).eval()
    assert bits(model) != bits(other)
    path = rg.save(model, tmp_path / "model.safetensors")
    assert rg.load(path, other) is other
    assert bits(other) == bits(model)
    assert not other.training and other.weight.requires_grad and not other.frozen.requires_grad
    assert other.weight.backend is backend
    other.layers[1]["bias"].sum().backward()  # parameters still train


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_kept(backend: Backend, tmp_path: Path, dtype: str) -> None:
    if dtype not in backend.float_dtypes():
        pytest.skip(f"{backend.name} has no {dtype}")
    model, other = Model(0).astype(dtype), Model(1).astype(dtype)
    path = rg.save(model, tmp_path / "model.safetensors")
    found = safetensors_torch.load_file(path)
    assert found["weight"].dtype == getattr(torch, dtype)
    assert bits(rg.load(path, other)) == bits(model)
    wide = rg.load(path, Model(1).astype("float32"))  # a module keeps its own dtype
    np.testing.assert_array_equal(wide.weight.numpy(), model.weight.numpy().astype("float32"), strict=True)


def test_equal_models_give_equal_files_on_every_backend(backend: Backend, tmp_path: Path) -> None:
    first, second = (rg.save(Model(3), tmp_path / name).read_bytes() for name in ("a", "b"))
    with rg.use_backend("numpy"):
        assert rg.save(Model(3), tmp_path / "c").read_bytes() == first == second


def test_files_of_pytorch_load_and_pytorch_loads_ours(backend: Backend, tmp_path: Path) -> None:
    theirs = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).double()
    theirs(torch.tensor(rng(0).normal(size=(5, 3))))

    class Linear(Module):
        def __init__(self) -> None:
            self.weight, self.bias = Tensor(np.zeros((2, 3))), Tensor(np.zeros(2))

    class BatchNorm(Module):
        def __init__(self) -> None:
            self.weight, self.bias = Tensor(np.zeros(2)), Tensor(np.zeros(2))
            self.running_mean = Tensor(np.zeros(2), requires_grad=False)
            self.running_var = Tensor(np.zeros(2), requires_grad=False)
            self.num_batches_tracked = Tensor(np.array(0))

    class Sequential(Module, list[Module]):
        pass

    path = tmp_path / "torch.safetensors"
    safetensors_torch.save_file(theirs.state_dict(), path)
    ours = rg.load(path, Sequential([Linear(), BatchNorm()]))
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(ours.state_dict()[name], tensor.numpy(), strict=True)
    rg.save(ours, path)
    loaded = safetensors_torch.load_file(path)
    theirs.load_state_dict(loaded)
    safetensors_torch.save_file({"weight": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16)}, path)
    single = Linear()
    del single.bias
    single.weight = Tensor(np.zeros((1, 2), "float32"))
    np.testing.assert_array_equal(rg.load(path, single).weight.numpy(), np.array([[1.5, -2.0]], "float32"), strict=True)


def test_a_transformer_is_saved_as_any_module(backend: Backend, tmp_path: Path) -> None:
    one, other = (Transformer(Tokenizer.from_text("abc", 8, 16, seed=s), 1, 2, seed=s) for s in (0, 1))
    path = rg.save(one, tmp_path / "m.safetensors")
    assert bits(rg.load(path, other)) == bits(one)
    with pytest.raises(ValueError, match="was not written by save_model"):
        load_model(path)


def test_errors_list_every_name_and_name_the_file(backend: Backend, tmp_path: Path) -> None:
    path = rg.save(Model(), tmp_path / "model.safetensors")
    other: Any = Model(1, width=5)
    other.extra, other.count = Tensor([1.0]), Tensor(np.array(3))
    del other.mask, other.frozen
    other.small = Tensor(np.zeros(4))  # int8 values fit a float buffer
    other.num_batches_tracked = Tensor(np.zeros((1,), "int64"))
    before = bits(other)
    with pytest.raises(ValueError, match="does not fit") as raised:
        rg.load(path, other)
    message = str(raised.value)
    assert message.startswith(f"load: {path}: Model does not fit: ")
    for problem in (
        "missing extra", "missing count", "unexpected mask", "unexpected frozen",
        "weight has shape (3, 4), expected (3, 5)", "num_batches_tracked has shape (), expected (1,)",
    ):  # fmt: skip
        assert problem in message
    assert bits(other) == before
    floats: Any = Model(1)
    floats.num_batches_tracked = Tensor(np.array(0.5))
    rg.save(floats, path)
    with pytest.raises(ValueError, match="num_batches_tracked is float64, expected int64"):
        rg.load(path, Model())


@once
def test_a_shared_array_is_saved_once(tmp_path: Path) -> None:
    model = Sequential(*[Linear(2, 2)] * 2)
    assert set(safetensors_torch.load_file(rg.save(model, tmp_path / "model.safetensors"))) == {"0.weight", "0.bias"}
    assert rg.load(tmp_path / "model.safetensors", Sequential(*[Linear(2, 2)] * 2)).state_dict().keys() > {"1.bias"}


@once
def test_files_that_are_no_safetensors_files_raise(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match=f"load: there is no file {path}"):
        rg.load(path, Model())
    content = rg.save(Model(), path).read_bytes()
    for kept in (0, 7, 100, len(content) - 1):
        path.write_bytes(content[:kept])
        with pytest.raises(ValueError, match=f"load: {path} is not a complete safetensors file"):
            rg.load(path, Model())
    safetensors_torch.save_file({"weight": torch.zeros(2, dtype=torch.float8_e5m2)}, path)
    with pytest.raises(ValueError, match="weight has dtype F8_E5M2, which NumPy does not have"):
        rg.load(path, Model())


@once
def test_other_arguments_raise(tmp_path: Path) -> None:
    wrong: Any = "model.safetensors"
    with pytest.raises(TypeError, match=r"save: needs a Module, got a str; the module comes first"):
        rg.save(wrong, Model())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"load: needs a Module, got a str; the path comes first"):
        rg.load(Model(), wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="save: needs a Module, got a dict"):
        rg.save(Model().state_dict(), tmp_path / "m")  # type: ignore[arg-type]
    with pytest.raises(OSError, match="missing"):
        rg.save(Model(), tmp_path / "missing" / "m")


@once
def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = rg.save(Model(0), tmp_path / "m.safetensors")
    content = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        rg.save(Model(1), path)
    assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


@once
def test_a_link_stays_and_a_file_keeps_its_permissions(tmp_path: Path) -> None:
    path, link = tmp_path / "model.safetensors", tmp_path / "latest.safetensors"
    rg.save(Model(0), path)
    path.chmod(0o600)
    link.symlink_to(path.name)
    rg.save(Model(1), link)
    assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o600
    assert bits(rg.load(path, Model(0))) == bits(Model(1))
    assert len(list(tmp_path.iterdir())) == 2


@once
def test_only_files_are_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe, Path(".")):
        with pytest.raises(OSError, match="not a file that can be replaced"):
            rg.save(Model(), path)
    assert list(tmp_path.iterdir()) == [pipe] and pipe.is_fifo()


@once
def test_threads_that_write_one_file_do_not_meet(tmp_path: Path) -> None:
    path, models = tmp_path / "model.safetensors", [Model(seed) for seed in range(4)]
    written = {rg.save(model, path).read_bytes() for model in models}
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda model: rg.save(model, path), models * 25))
    assert path.read_bytes() in written and list(tmp_path.iterdir()) == [path]


@once
def test_the_name_of_the_metadata_is_refused(tmp_path: Path) -> None:
    module = Module()
    module.__dict__["__metadata__"] = Tensor(1.0)
    with pytest.raises(ValueError, match="an array is called"):
        rg.save(module, tmp_path / "model.safetensors")


@once
def test_without_safetensors_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_package(monkeypatch, "safetensors")
    with pytest.raises(ImportError, match=r'save: needs the package safetensors; pip install "russellgrad\[train\]"'):
        rg.save(Model(), tmp_path / "m")
    with pytest.raises(ImportError, match="load: needs the package safetensors"):
        rg.load(tmp_path / "m", Model())


@once
def test_a_module_without_arrays_is_saved(tmp_path: Path) -> None:
    assert rg.load(rg.save(Module(), tmp_path / "m"), Module()).state_dict() == {}
