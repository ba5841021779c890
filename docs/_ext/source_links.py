"""Sphinx extension: [source] links for names that are defined by an assignment or in a base class.

sphinx.ext.viewcode finds the `def` of a name in its module. Methods of Tensor are defined in the classes of
russellgrad/ops/, and functions such as `exp` by lines such as `exp = _function(Tensor.exp)`.
"""

import ast
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

Tag = tuple[str, int, int]  # kind, first line, last line
HEIRS = {"russellgrad.graph.document": "Trace"}  # the subclass in the reference, by the module of its base class


def definitions(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, Tag]]:
    """Names that the statements define, with their lines."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            kind = "class" if isinstance(node, ast.ClassDef) else "def"
            yield prefix + node.name, (kind, first, node.end_lineno or first)
            if isinstance(node, ast.ClassDef):
                yield from definitions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.Assign):
            targets = [name for target in node.targets for name in getattr(target, "elts", [target])]
            for target in targets:
                if isinstance(target, ast.Name):
                    yield prefix + target.id, ("def", node.lineno, node.end_lineno or node.lineno)


def find_source(app: Sphinx, modname: str) -> tuple[str, dict[str, Tag]] | None:
    """The source of a module of the library, and the lines of the names that it defines."""
    spec = find_spec(modname) if modname.startswith("russellgrad") else None
    if spec is None or spec.origin is None:
        return None
    code = Path(spec.origin).read_text(encoding="utf-8")
    tags = dict(reversed(list(definitions(ast.parse(code).body, ""))))  # the first definition counts: @overload
    of_tensor = modname.startswith("russellgrad.ops.") or modname == "russellgrad.apply"
    heir = "Tensor" if of_tensor else HEIRS.get(modname)
    for name, tag in list(tags.items()):
        if heir and "." in name:
            member = name.split(".", 1)[1]
            tags.setdefault(f"{heir}.{member}", tag)
            tags.setdefault(member, tag)  # the function of a static method
    return code, tags


def module_of_property(app: Sphinx, modname: str, name: str) -> str | None:
    """The module that defines a property; viewcode finds those of functions and classes by itself."""
    value: Any = import_module(modname) if modname else None
    for part in name.split("."):
        value = getattr(value, part, None)
    return getattr(value.fget, "__module__", None) if isinstance(value, property) else None


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("viewcode-follow-imported", module_of_property)
    app.connect("viewcode-find-source", find_source)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
