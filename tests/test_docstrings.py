"""Every public name of the package, and every public method and property of its classes, has a docstring."""

import inspect
from collections.abc import Iterator

import pytest

import russellgrad
from russellgrad import (
    base_optimizer,
    bpe,
    clip_grad,
    data,
    encoding,
    generation,
    init,
    layers,
    llama,
    optimizer,
    random,
    russelltransformer,
    serialization,
    tokenizer,
    tracing,
)
from russellgrad.graph import document, events, layout, node, source, values
from russellgrad.module import Module
from russellgrad.tensor import Tensor
from tests.helpers import once

pytestmark = once

MODULES = (
    base_optimizer,
    bpe,
    clip_grad,
    data,
    encoding,
    generation,
    init,
    llama,
    optimizer,
    random,
    russelltransformer,
    serialization,
    tokenizer,
    tracing,
    document,
    events,
    layout,
    node,
    source,
    values,
)


def public_classes() -> list[type]:
    """Tensor, Module, and the public classes that the modules define."""
    classes = [Tensor, Module, *(value for value in vars(layers).values() if inspect.isclass(value))]
    for module in MODULES:
        classes += [
            value
            for name, value in vars(module).items()
            if inspect.isclass(value) and value.__module__ == module.__name__ and not name.startswith("_")
        ]
    return classes


def public_members(cls: type) -> Iterator[tuple[str, object]]:
    """The public methods and properties that the class itself defines; of Tensor, those of its bases, too."""
    bases = cls.__mro__ if cls is Tensor else (cls,)
    for name, value in ((name, value) for base in bases for name, value in vars(base).items()):
        if not name.startswith("_") and (inspect.isroutine(value) or isinstance(value, (property, staticmethod))):
            yield name, value


def has_docstring(value: object) -> bool:
    return bool((getattr(value, "__doc__", None) or "").strip())


def test_public_classes_and_members_are_found() -> None:
    names = {cls.__name__ for cls in public_classes()}
    assert names >= {
        "Tensor", "Module", "Optimizer", "SGDOptimizer", "AdamOptimizer", "AdamWOptimizer", "Generator", "Tokenizer",
        "AttentionHead", "AttentionLayer", "FFLayer", "LayerNorm", "Dropout", "Block", "Transformer", "KVCache",
    }  # fmt: skip
    assert {name for name, _ in public_members(Tensor)} >= {"shape", "T", "sum", "exp", "stack", "backward"}


@pytest.mark.parametrize("cls", public_classes(), ids=lambda cls: cls.__name__)
def test_every_public_member_has_a_docstring(cls: type) -> None:
    assert has_docstring(cls)
    assert [name for name, value in public_members(cls) if not has_docstring(value)] == []


def test_every_public_name_has_a_docstring() -> None:
    assert [name for name in russellgrad.__all__ if not has_docstring(getattr(russellgrad, name))] == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_function_has_a_docstring(module: object) -> None:
    functions = [
        value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == vars(module)["__name__"] and not name.startswith("_")
    ]
    assert [function.__name__ for function in functions if not has_docstring(function)] == []
