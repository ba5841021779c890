"""Backends that define only the core primitives, with writable arrays and with read-only arrays."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from russellgrad import Tensor, conformance, gradcheck, use_backend
from russellgrad import backend as selection
from russellgrad.backend import CORE, DERIVED, OPTIONAL, Backend, load_backend
from russellgrad.loss import cross_entropy_loss
from russellgrad.optimizer import AdamOptimizer, AdamWOptimizer, Optimizer, SGDOptimizer
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer
from tests.core_backend import core_module, read_only_module, thin_module
from tests.helpers import module_of, once, rng
from tests.process import output_of
from tests.test_resume import RUN, parameters, run_until_signal
from train import checkpoints
from train.train_transformer import train

pytestmark = once
KINDS: dict[str, Callable[[str], ModuleType]] = {
    "core_only": core_module, "read_only": read_only_module, "thin": thin_module,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _forget_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the loaded backends after each test."""
    monkeypatch.setattr(selection, "_loaded", dict(selection._loaded))
    monkeypatch.setattr(selection, "_modules", dict(selection._modules))
    monkeypatch.delenv("RG_TRAIN_STEPS", raising=False)


@pytest.fixture(params=KINDS)
def module(request: pytest.FixtureRequest) -> ModuleType:
    return KINDS[request.param](request.param)


@pytest.fixture
def core(module: ModuleType) -> Iterator[Backend]:
    with use_backend(module) as xp:
        yield xp


def public_names(x: Any) -> set[str]:
    return {name for name in vars(x) if not name.startswith("_")}


def test_the_loader_adds_the_formulas_and_leaves_the_module_unchanged(module: ModuleType, core: Backend) -> None:
    assert public_names(module) == set(CORE)
    assert public_names(core) == {*CORE, *DERIVED}
    assert not any(hasattr(core, name) for name in OPTIONAL)


def test_the_read_only_backend_returns_read_only_arrays() -> None:
    with use_backend(read_only_module("read_only")) as xp:
        a = xp.asarray([1.0])
        stepped, _ = xp.sgd_step(a, a, None, a, None, 0.0, False, 0.0)
        for array in (a, xp.copy(a), xp.full((2,), 1, "float64"), xp.softmax(a, 0), stepped):
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0
        host = np.ones(3)
        xp.asarray(host)
        host[0] = 2.0  # the user's array stays writable


def test_the_library_asks_an_array_for_its_shape_and_ndim_only(core: Backend) -> None:
    """The dtype of the backend's own arrays is kept, and they can be operands, indices and masks."""
    for dtype in ("float32", "int64", "bool"):
        assert Tensor(core.asarray(np.ones(3, dtype))).dtype == dtype
    x, raw = Tensor(rng().normal(size=(2, 3))), core.asarray(np.ones((2, 3)))
    for result in (x + raw, raw + x if type(raw) is np.ndarray else x * raw, x == raw):
        assert isinstance(result, Tensor)
    mask = Tensor(np.array([[True, False, True], [False, True, False]]))
    assert np.array_equal(x[mask].numpy(), x.numpy()[mask.numpy()])
    assert np.array_equal(x[[1, 0], Tensor(np.array([2, 2]))].numpy(), x.numpy()[[1, 0], [2, 2]])
    y = Tensor(rng(1).normal(size=(2, 3, 10)))
    assert np.array_equal(y[mask, Tensor(np.array([7]))].numpy(), y.numpy()[mask.numpy(), np.array([7])])


def test_dropout_gradcheck_and_generation(core: Backend) -> None:
    tokenizer = Tokenizer.from_text("abc", 8, 8, seed=1)
    model = Transformer(tokenizer, 1, 2, dropout=0.5, seed=1)
    cross_entropy_loss(model(["abca", "b"]), tokenizer.targets(["abca", "b"]), tokenizer.pad_token_id).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert [len(text) for text in model.generate(["ab", "c"], 3)] == [5, 4]
    gradcheck(lambda a: (a * a).sum(), Tensor([3.0, 4.0]))


# --- Conformance


def test_a_core_backend_passes_conformance(core: Backend) -> None:
    report = conformance.check(core)
    assert report.passed, str(report)
    assert {outcome.case.primitive for outcome in report.outcomes if outcome.passed} == {*CORE, *DERIVED, "Tensor"}
    assert {outcome.case.primitive for outcome in report.skipped} <= {*OPTIONAL, "asarray", "copy"}
    assert set(report.missing) == set(OPTIONAL)
    last = str(report).splitlines()[-1]
    names = ", ".join(report.missing)
    assert last == f"{core.name}: {len(report.outcomes)} cases, {len(report.skipped)} skipped: {names}; all passed"


def test_a_core_backend_can_be_selected_by_its_dotted_path() -> None:
    code = "import russellgrad as rg; x = rg.Tensor([2.0]); x.gelu().backward(); print(x.backend.name, x.grad.shape)"
    assert output_of(code, RG_BACKEND="tests.core_backend") == "core_only (1,)"


def test_not_implemented_from_a_derived_function_runs_the_formula() -> None:
    """When a derived function returns NotImplemented, the formula runs."""
    derived = {name: lambda *args: NotImplemented for name in DERIVED}
    module = module_of(load_backend("numpy"), "never_implemented", **derived)
    with use_backend(module) as xp:
        assert all(getattr(xp, name) is not derived[name] for name in DERIVED)
        report = conformance.check(xp)
    assert report.passed, str(report)
    assert {outcome.case.primitive for outcome in report.outcomes if outcome.passed} >= set(DERIVED)


# --- Training


def run(text: str, out: Path, **options: Any) -> Any:
    return train(dataset=text, out=str(out), **{**RUN, **options})


@pytest.mark.parametrize(("dtype", "atol"), [("float64", 1e-12), ("float32", 2e-5)])
def test_training_losses_agree_with_numpy(core: Backend, text: str, tmp_path: Path, dtype: str, atol: float) -> None:
    found = run(text, tmp_path / "found", dtype=dtype)
    with use_backend("numpy"):
        expected = run(text, tmp_path / "expected", dtype=dtype)
    assert len(found.losses) == RUN["steps"]
    np.testing.assert_allclose(found.losses, expected.losses, rtol=0, atol=atol)
    ours, theirs = np.array(found.validation_losses), np.array(expected.validation_losses)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate": 2, "grad_clip": 0.0}, {"dtype": "float64", "optimizer": "lion"}, {"optimizer": "muon"}],
    ids=str,
)
def test_a_resumed_run_is_bitwise_equal_to_an_uninterrupted_one(
    core: Backend, monkeypatch: pytest.MonkeyPatch, text: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    whole = run(text, tmp_path / "whole", **options)
    first = run_until_signal(monkeypatch, 5, text, tmp_path / "parts", **options)
    rest = train(resume=str(tmp_path / "parts"))
    assert first.losses + rest.losses == whole.losses
    assert rest.validation_losses == whole.validation_losses
    assert parameters(rest.path) == parameters(whole.path)
    one, two = (checkpoints.latest_checkpoint(tmp_path / name) for name in ("whole", "parts"))
    assert one is not None and two is not None
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


# --- Optimizers


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda params: SGDOptimizer(params, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "plain sgd": lambda params: SGDOptimizer(params, 0.1),
    "adam": lambda params: AdamOptimizer(params, 0.1, weight_decay=0.1),
    "adamw": lambda params: AdamWOptimizer(params, 0.1, weight_decay=0.1),
}


def take_steps(optimizer: Optimizer, p: Tensor, n: int, first: int = 0) -> None:
    for step in range(first, first + n):
        p.grad = p.backend.asarray(rng(step).normal(size=p.shape).astype(str(p.dtype)))
        optimizer.step(max_norm=0.5)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_steps_agree_with_numpy(core: Backend, name: str, dtype: str) -> None:
    """Steps, also from a loaded state, equal NumPy's. Steps do not change arrays read before them."""
    data = rng(9).normal(size=(3, 4)).astype(dtype)
    expected = Tensor(data.copy(), backend="numpy")
    take_steps(OPTIMIZERS[name]([expected]), expected, 4)
    found = Tensor(data.copy(), backend=core)
    before = found.data
    optimizer = OPTIMIZERS[name]([found])
    take_steps(optimizer, found, 2)
    np.testing.assert_array_equal(core.to_host(before), data)
    assert core.dtype(found.data) == np.dtype(dtype)
    resumed = Tensor(found.numpy(), backend=core)
    other = OPTIMIZERS[name]([resumed])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take_steps(optimizer, found, 2, first=2)
    take_steps(other, resumed, 2, first=2)
    assert found.numpy().tobytes() == resumed.numpy().tobytes()
    atol = {"float64": 1e-12, "float32": 2e-5, "float16": 2e-3}[dtype]
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=atol)


def test_a_flat_optimizer_names_the_missing_primitives(core: Backend) -> None:
    with pytest.raises(ValueError, match=f"{core.name!r} has no assign and split_flat; use flat=False"):
        SGDOptimizer([Tensor([1.0])], 0.1, flat=True)


# --- Loading errors


@pytest.mark.parametrize("primitive", [name for name in CORE if name != "name"])
def test_a_missing_core_name_raises(primitive: str) -> None:
    module = core_module("incomplete")
    delattr(module, primitive)
    with pytest.raises(
        TypeError, match=f"'incomplete': module incomplete lacks {primitive}; a backend must define all names"
    ):
        selection.resolve_backend(module)


def test_a_module_without_core_names_raises_with_their_list() -> None:
    with pytest.raises(TypeError, match=f"module empty lacks {', '.join(CORE[:5])} and {len(CORE) - 5} more; a"):
        selection.resolve_backend(ModuleType("empty"))


def test_a_core_backend_with_the_name_of_another_raises() -> None:
    selection.resolve_backend(core_module("mine"))
    for name, owner in (("numpy", "numpy_backend"), ("cupy", "cupy_backend"), ("mine", "mine")):
        with pytest.raises(ValueError, match=f"module other has the name '{name}', which is .*{owner}; set"):
            selection.resolve_backend(core_module("other", name=name))
