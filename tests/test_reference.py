"""Every entry of the API reference has an example that runs, the shapes of arrays that it takes, and its errors.

The build of the site runs the same examples and shows them with what they return.
"""

import importlib.util
import inspect
import os
import re
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest

from tests.process import ROOT

DIRECTIVE = re.compile(r"^\.\. auto(?:function|class|exception):: russellgrad\.(\S+)\n((?:   :.*\n)*)", re.MULTILINE)
ARRAYS = re.compile(r"\b(Tensor|TensorT|Operand|Array|Mask|Pytree)\b")
SHAPES = re.compile(r"shape|\bax[ie]s\b|->|\(\.\.\.|\([A-Z0-9]\w*, |\(n, |0-d|[Ee]lementwise|broadcast|scalar")
ERRORS = re.compile(r"[Rr]aises|[Ee]rrors (are|of)")


def load_examples() -> ModuleType:
    spec = importlib.util.spec_from_file_location("examples_of_names", ROOT / "docs/_ext/examples_of_names.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


examples = load_examples()


def resolve(name: str) -> Any:
    """What the name of an entry stands for: a function, a class, or the member of a class as it is defined there."""
    parts = name.split(".")
    value: Any = import_module("russellgrad")
    for i, part in enumerate(parts):
        try:  # a module first: `russellgrad.softmax` is both, but no entry is in that module
            value = import_module(".".join(["russellgrad", *parts[: i + 1]])) if i + 1 < len(parts) else None
        except ImportError:
            value = None
        if value is None:
            owner = import_module(".".join(["russellgrad", *parts[:i]]))
            for last in parts[i:]:
                owner = getattr(owner, last) if last != parts[-1] or inspect.ismodule(owner) else static(owner, last)
            return owner
    return value


def static(owner: Any, name: str) -> Any:
    return inspect.getattr_static(owner, name)


def members(cls: type, inherited: bool) -> Iterator[str]:
    bases = cls.__mro__[:-1] if inherited else (cls,)
    for name in dict.fromkeys(name for base in bases for name in vars(base)):
        value = static(cls, name)
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
                        found[f"{name}.{member}"] = static(value, member)
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


def source_of(value: Any) -> str:
    """The annotations of the parameters as the source has them: aliases keep their names there."""
    text = inspect.getsource(function_of(value))
    return text.partition('"""')[0]


def test_entries_are_found() -> None:
    assert len(ENTRIES) > 350
    assert ENTRIES.keys() >= {"Tensor.at", "Tensor.exp", "exp", "Module.freeze", "layers.GRU.forward", "tracing.Trace.svg"}


@pytest.mark.skipif(os.environ.get("RG_BACKEND", "numpy") != "numpy", reason="the site is built with NumPy")
@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_has_an_example_of_it_that_runs(name: str) -> None:
    code = examples.find_example(name)
    assert code is not None, f"{name} has no example in docs/_ext/examples_of_names.py"
    last = name.split(".")[-2 if name.endswith(".forward") else -1]
    assert re.search(rf"(?<!\w){last}(?!\w)", code) or inspect.isclass(ENTRIES[name])
    assert examples.run(code)


def test_every_example_is_of_an_entry() -> None:
    functions = {name for name in examples.EXAMPLES if f"Tensor.{name}" in ENTRIES}
    assert examples.EXAMPLES.keys() - ENTRIES.keys() - functions == set()


def test_entries_that_take_arrays_state_shapes() -> None:
    taking = {
        name
        for name, value in ENTRIES.items()
        if not isinstance(value, property)
        and not inspect.isclass(value)
        and (name.startswith("Tensor.") or ARRAYS.search(source_of(value)))
    }
    missing = {name for name in taking if not SHAPES.search(inspect.getdoc(ENTRIES[name]) or "")}
    assert sorted(missing) == []


def test_entries_with_arguments_state_their_errors() -> None:
    missing = {
        name
        for name, value in ENTRIES.items()
        if parameters(value) and not ERRORS.search(inspect.getdoc(value) or "")
    }
    assert sorted(missing) == []
