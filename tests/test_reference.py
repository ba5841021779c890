"""Every entry of the API reference has an example that runs, the shapes of arrays that it takes, and its errors.

The build of the site runs the same examples and shows them with what they return.
"""

import inspect
import os
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from types import ModuleType
from typing import Any

import pytest

import russellgrad
from tests.helpers import once
from tests.process import ROOT

pytestmark = once

DIRECTIVE = re.compile(r"^\.\. auto(?:function|class|exception):: russellgrad\.(\S+)\n((?:   :.*\n)*)", re.MULTILINE)
ARRAYS = re.compile(r"\b(Tensor|TensorT|Operand|Array|Mask|Pytree)\b")
SHAPES = re.compile(r"shape|\bax[ie]s\b|->|\(\.\.\.|\([A-Z0-9]\w*, |\(n, |0-d|[Ee]lementwise|broadcast|scalar")
ERRORS = re.compile(r"[Rr]aises|[Ee]rrors (are|of)")
NO_ARRAYS = {f"Tensor.{name}" for name in ("changed_in_place", "retain_grad", "zero_grad")}  # in or out
NO_ERRORS = {
    "Module.train", "layers.Dropout.continue_batch", "layers.Dropout.start_batch", "layers.Identity.forward",
    "manual_tensor.Tensor", "random.Generator.continue_batch", "random.Generator.start_batch",
}  # fmt: skip


def load_examples() -> ModuleType:
    spec = spec_from_file_location("examples_of_names", ROOT / "docs/_ext/examples_of_names.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


examples = load_examples()


def resolve(name: str) -> Any:
    """The object that an entry documents: a function, a class, or a member of a class as the class defines it."""
    value: Any = russellgrad
    *parents, last = name.split(".")
    for part in parents:
        path = f"{value.__name__}.{part}"
        value = import_module(path) if inspect.ismodule(value) and find_spec(path) else getattr(value, part)
    return getattr(value, last) if inspect.ismodule(value) else inspect.getattr_static(value, last)


def members(cls: type, inherited: bool) -> Iterator[str]:
    bases = cls.__mro__[:-1] if inherited else (cls,)
    for name in dict.fromkeys(name for base in bases for name in vars(base)):
        value = inspect.getattr_static(cls, name)
        is_member = inspect.isroutine(value) or isinstance(value, (property, staticmethod, classmethod))
        if not name.startswith("_") and is_member:
            yield name


def entries() -> dict[str, Any]:
    """The entries of the API reference, by their names without "russellgrad."."""
    found = {}
    for page in sorted((ROOT / "docs" / "api").glob("*.rst")):
        for name, options in DIRECTIVE.findall(page.read_text(encoding="utf-8")):
            value = found[name] = resolve(name)
            if ":members:" in options:
                left_out = re.search(":exclude-members: (.*)", options)
                for member in members(value, ":inherited-members:" in options):
                    if left_out is None or member not in left_out[1].split(", "):
                        found[f"{name}.{member}"] = inspect.getattr_static(value, member)
    return found


ENTRIES = entries()


def function_of(value: Any) -> Any:
    """The function that has the signature."""
    value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    return value.__init__ if inspect.isclass(value) else inspect.unwrap(value)


def parameters(value: Any) -> list[inspect.Parameter]:
    if inspect.isclass(value) and value.__init__ is object.__init__:
        return []
    found = list(inspect.signature(function_of(value)).parameters.values())
    return [parameter for parameter in found if parameter.name not in ("self", "cls")]


def takes_arrays(name: str, value: Any) -> bool:
    """Whether it is a method of Tensor, or a parameter is annotated as an array; the source keeps names of aliases."""
    if inspect.isclass(value) or isinstance(value, property) or name in NO_ARRAYS:
        return False
    header = inspect.getsource(function_of(value)).partition('"""')[0].partition(") ->")[0]
    return name.startswith("Tensor.") or ARRAYS.search(header.partition("(")[2]) is not None


def test_entries_are_found() -> None:
    assert len(ENTRIES) > 350
    assert ENTRIES.keys() >= {"Tensor.exp", "exp", "Module.freeze", "layers.GRU.forward", "tracing.Trace.svg"}


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_has_an_example_of_it_that_runs(name: str) -> None:
    code = examples.find_example(name)
    assert code is not None, f"{name} has no example in docs/_ext/examples_of_names.py"
    last = name.split(".")[-2 if name.endswith(".forward") else -1]
    called = rf"\.{last}\b" if name.startswith("Tensor.") else rf"\b{last}\b"
    assert re.search(called, code) or name in examples.MADE
    if os.environ.get("RG_BACKEND", "numpy") != "numpy":
        pytest.skip("the site is built with NumPy")
    if name == "conformance.check":
        pytest.skip("slow; tests/test_conformance.py calls it")
    assert examples.run(code)


def test_every_example_is_of_an_entry() -> None:
    functions = {name for name in examples.EXAMPLES if f"Tensor.{name}" in ENTRIES}
    assert examples.EXAMPLES.keys() - ENTRIES.keys() - functions == set()


def test_an_example_shows_what_it_prints_and_its_last_value() -> None:
    code = "x = 1; print(x)\nfor i in range(2):\n    print(i)\nx + 1"
    shown = [">>> x = 1", ">>> print(x)", "1", ">>> for i in range(2):", "...     print(i)", "0", "1", ">>> x + 1", "2"]
    assert examples.run(code) == shown


@pytest.mark.parametrize("name", [name for name, value in ENTRIES.items() if takes_arrays(name, value)])
def test_an_entry_that_takes_arrays_states_shapes(name: str) -> None:
    assert SHAPES.search(inspect.getdoc(ENTRIES[name]) or "")


CALLS = [name for name, value in ENTRIES.items() if parameters(value) and name not in examples.MADE | NO_ERRORS]


@pytest.mark.parametrize("name", CALLS)
def test_an_entry_with_arguments_states_its_errors(name: str) -> None:
    assert ERRORS.search(inspect.getdoc(ENTRIES[name]) or "")
