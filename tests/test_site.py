"""The API reference describes every public name once. `nox -s docs` builds the site."""

import inspect
import re
from collections import Counter
from importlib import import_module
from types import ModuleType

import pytest

import russellgrad
from russellgrad import data, init, layers, optimizer, russelltransformer, tokenizer
from tests.process import ROOT

DIRECTIVE = re.compile(r"^\.\. auto(?:function|class|exception):: russellgrad\.(\S+)$", re.MULTILINE)
DOCUMENTED = Counter(
    name
    for page in sorted((ROOT / "docs" / "api").glob("*.rst"))
    for name in DIRECTIVE.findall(page.read_text(encoding="utf-8"))
)
NOT_PUBLIC = {"optimizer.supports_flat", "tokenizer.TokenIds"}


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
    "module", [russellgrad, data, init, layers, optimizer, russelltransformer, tokenizer], ids=lambda m: m.__name__
)
def test_the_api_reference_describes_every_public_name_once(module: ModuleType) -> None:
    assert {name: DOCUMENTED[name] for name in public_names(module)} == dict.fromkeys(public_names(module), 1)


def test_every_name_in_the_api_reference_exists() -> None:
    for name in DOCUMENTED:
        *parts, last = name.split(".")
        assert hasattr(import_module(".".join(["russellgrad", *parts])), last), name
