"""The API reference describes every public name once, and tables of names are right. `nox -s docs` builds the site."""

import contextlib
import inspect
import math
import re
from collections import Counter
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import russellgrad
from russellgrad import Tensor, data, init, layers, llama, optimizer, russelltransformer, tokenizer, use_backend
from tests.helpers import once
from tests.process import ROOT

pytestmark = once

DIRECTIVE = re.compile(r"^\.\. auto(?:function|class|exception):: russellgrad\.(\S+)$", re.MULTILINE)
DOCUMENTED = Counter(
    name
    for page in sorted((ROOT / "docs" / "api").glob("*.rst"))
    for name in DIRECTIVE.findall(page.read_text(encoding="utf-8"))
)
NOT_PUBLIC = {"init.skip_draws", "optimizer.supports_flat", "tokenizer.TokenIds"}


def public_names(module: ModuleType) -> set[str]:
    """The functions and classes in __all__, else those that the module defines."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    names = [name for name in getattr(module, "__all__", own) if not name.startswith("_")]
    prefix = module.__name__.removeprefix("russellgrad").lstrip(".")
    found = {name: getattr(module, name) for name in names}
    return {
        f"{prefix}.{name}".lstrip(".")
        for name, value in found.items()
        if inspect.isfunction(value) or inspect.isclass(value)
    } - NOT_PUBLIC


@pytest.mark.parametrize(
    "module",
    [russellgrad, data, init, layers, llama, optimizer, russelltransformer, tokenizer],
    ids=lambda m: m.__name__,
)
def test_the_api_reference_describes_every_public_name_once(module: ModuleType) -> None:
    assert {name: DOCUMENTED[name] for name in public_names(module)} == dict.fromkeys(public_names(module), 1)


def test_every_name_in_the_api_reference_exists() -> None:
    for name in DOCUMENTED:
        *parts, last = name.split(".")
        assert hasattr(import_module(".".join(["russellgrad", *parts])), last), name


def rows(page: str, columns: int) -> list[tuple[str, ...]]:
    """The code in the rows of the tables that have this number of columns of code."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    row = re.compile(rf"\|( `[^`]+` \|){{{columns}}}")
    return [tuple(re.findall(r"`([^`]+)`", line)) for line in lines if row.fullmatch(line)]


@pytest.mark.parametrize(("theirs", "here"), rows("docs/coming_from.md", 2))
def test_numpy_names_in_the_table_match_the_names_here(theirs: str, here: str) -> None:
    a = np.random.default_rng(0).normal(size=(3, 4))
    wanted = eval(theirs, {"np": np, "a": a})
    got = eval(here, {"rg": russellgrad, "Tensor": Tensor, "x": Tensor(a, backend="numpy")})
    np.testing.assert_allclose(got if isinstance(got, np.ndarray) else got.numpy(), wanted, rtol=0, atol=1e-12)


MICROGRAD = rows("docs/coming_from.md", 3)


@pytest.mark.parametrize(("theirs", "here", "result"), MICROGRAD)
def test_names_in_the_table_of_micrograd_have_the_results_shown(theirs: str, here: str, result: str) -> None:
    a, b = Tensor(2.0, backend="numpy"), Tensor(-3.0, backend="numpy")
    assert float(eval(here, {"rg": russellgrad, "Tensor": Tensor, "a": a, "b": b})) == float(result)


@pytest.mark.parametrize(("theirs", "here", "result"), MICROGRAD)
def test_micrograd_gives_the_results_in_the_table(theirs: str, here: str, result: str) -> None:
    value = pytest.importorskip("micrograd.engine", reason="micrograd is not installed").Value
    names = {"Value": value, "a": value(2.0), "b": value(-3.0)}
    *statements, expression = theirs.split("; ")
    for statement in statements:
        exec(statement, names)
    found = eval(expression, names)
    assert float(getattr(found, "data", found)) == float(result)


def test_picture_of_a_trace_is_that_of_the_code_above_it() -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/trace.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    with use_backend("numpy"), contextlib.redirect_stdout(None):
        exec(compile(code[1], "docs/trace.md", "exec"), names)
    assert names["t"].svg() == (ROOT / "docs/trace.svg").read_text(encoding="utf-8")


SHEET = "docs/course/rules_sheet.md"
# The sheet defines names in its text, as in `m = a > b`.
DEFINED = re.findall(r"`(\w+) = ([^`]+)`", (ROOT / SHEET).read_text(encoding="utf-8"))


@pytest.mark.parametrize("row", rows(SHEET, 3) + rows(SHEET, 4) + rows(SHEET, 5), ids=lambda row: row[0])
def test_formulas_of_the_sheet_of_rules_match_the_library(row: tuple[str, ...]) -> None:
    operation, result, *gradients = row
    rng = np.random.default_rng(0)
    shapes = [(1, 1, 8), (1, 1, 3)] if "conv1d" in operation else [(3, 4)] * 3
    arrays = [rng.uniform(0.3, 1.5, size=shape) for shape in shapes]
    tensors = [Tensor(array, backend="numpy") for array in arrays]
    names: dict[str, Any] = {"np": np, "rg": russellgrad}
    names |= {"s": softmax, "P": normal_cdf, "mean": row_mean, "std": row_std}
    names |= {name: one_channel(array) for name, array in zip("abc", arrays, strict=False)}
    names |= dict(zip("xyz", tensors, strict=False))

    def evaluate(formula: str) -> Any:
        for name, definition in DEFINED:
            if name not in names and re.search(rf"\b{name}\b", formula):
                names[name] = evaluate(definition)
        return eval(formula, names)

    out = evaluate(operation)
    np.testing.assert_allclose(one_channel(out.numpy()), evaluate(result), rtol=0, atol=1e-12)
    gradient = rng.normal(size=out.shape)
    names["g"] = one_channel(gradient)
    out.backward(Tensor(gradient, backend="numpy"))
    for tensor, formula in zip(tensors, gradients, strict=False):
        assert tensor.grad is not None
        np.testing.assert_allclose(one_channel(tensor.grad), evaluate(formula), rtol=0, atol=1e-12)


def one_channel(a: Any) -> Any:
    """The array of a convolution, (1, 1, n), as (n,); another array unchanged."""
    return a[0, 0] if a.shape[:2] == (1, 1) else a


def softmax(a: np.ndarray) -> Any:
    e = np.exp(a)
    return e / e.sum(axis=-1, keepdims=True)


def normal_cdf(a: np.ndarray) -> Any:
    return np.vectorize(lambda value: (1 + math.erf(value / math.sqrt(2))) / 2)(a)


def row_mean(a: np.ndarray) -> Any:
    return a.mean(axis=-1, keepdims=True)


def row_std(a: np.ndarray) -> Any:
    return np.sqrt(a.var(axis=-1, keepdims=True) + 1e-5)
