"""Sphinx extension: signatures in the API reference have the annotations of the source.

A type alias such as `Axis` keeps its name, which docs/api/index.rst explains. A function that is a method of Tensor has
the parameter `x`. The constructors of classes that only the library calls are left out.
"""

import ast
import inspect
import re
import textwrap
from typing import Any

from examples_of_names import MADE
from sphinx.application import Sphinx

LINKS = {"Generator": "random.Generator", "Tokenizer": "tokenizer.Tokenizer", "Report": "conformance.Report"}
LINKS |= {name: f"tracing.{name}" for name in ("Trace", "Drawing")} | {"Optimizer": "optimizer.Optimizer"}
LINKS |= {"GraphNode": "graph.node.GraphNode", "Values": "graph.values.Values", "At": "ops.indexing.At"}
LINKS |= {name: name for name in ("Tensor", "Module")} | {"Batches": "data.Batches"}
NAME = re.compile(r"(?<![\w.'\"])(" + "|".join(LINKS) + r")(?![\w'\"])")


def definition_of(obj: Any) -> ast.FunctionDef | None:
    """The `def` of a function, of a method, or of the constructor of a class. None if there is none to read."""
    if inspect.isclass(obj):
        obj = obj.__init__
    obj = inspect.unwrap(getattr(obj, "__func__", obj))
    if not inspect.isfunction(obj) or not obj.__module__.startswith("russellgrad"):
        return None
    try:
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(obj))).body
    except (OSError, SyntaxError, ValueError):
        return None
    if not isinstance(node, ast.FunctionDef):
        return None
    set_values(node.args.defaults, obj.__globals__)
    set_values(node.args.kw_defaults, obj.__globals__)
    return node


def written(annotation: ast.expr | None) -> ast.expr | None:
    """The annotation without quotes."""
    text = ast.unparse(annotation) if annotation else ""
    return ast.parse(text.replace("'", ""), mode="eval").body if text else None


def set_values(defaults: list[Any], names: dict[str, Any]) -> None:
    """Replace default values that are constants of the module, such as OPERATIONS, by what they are."""
    for i, default in enumerate(defaults):
        if isinstance(default, ast.Name) and default.id in names:  # not a built-in function
            defaults[i] = ast.Constant(names[default.id])


def signature_of(app: Sphinx, what: str, name: str, obj: Any, options: Any, *given: str) -> tuple[str, str] | None:
    """The signature and the return annotation, as `autodoc-process-signature` expects them."""
    if what == "class" and name.removeprefix("russellgrad.") in MADE:
        return "", ""
    node = definition_of(obj)
    if node is None or given == (None, None):
        return None
    arguments = node.args
    all_arguments = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    for argument in filter(None, all_arguments):
        argument.annotation = written(argument.annotation)
    returned = written(node.returns)
    result = ast.unparse(returned) if returned else ""
    positional = arguments.posonlyargs or arguments.args
    if what == "function" and positional and positional[0].arg == "self":
        positional[0].arg, positional[0].annotation = "x", ast.Name("Operand")
    elif what in ("method", "class") and positional and positional[0].arg in ("self", "cls"):
        del positional[0]
    parameters = ast.unparse(arguments)
    if what == "function" or name.startswith(("russellgrad.Tensor.", "russellgrad.ops.")):
        parameters, result = (re.sub(r"\b(Self|TensorT)\b", "Tensor", text) for text in (parameters, result))
    parameters, result = (NAME.sub(lambda m: f"~russellgrad.{LINKS[m[1]]}", text) for text in (parameters, result))
    return f"({parameters})", "" if what == "class" else result


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-signature", signature_of)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
