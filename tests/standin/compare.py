"""Compares the stand-in, and the backend that runs on it, with the real CuPy. It computes nothing and needs no GPU.

`python -m tests.standin.compare` prints one line per difference. It runs in a process of its own, which has the modules
of both.
"""

import ast
import importlib
import inspect
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from russellgrad.backend import PRIMITIVES, Backend

from . import MODULES
from .array import UFUNCS

BACKENDS = Path(__file__).resolve().parent.parent.parent / "backends"
BACKEND = BACKENDS / "cupy_backend.py"

# Names that the stand-in defines only to raise Misuse, and those that every Python class has.
_REFUSALS = {"__contains__", "__imatmul__", "__del__", "__weakref__", "__slots__", "__annotations__"}

Parameters: TypeAlias = set[str] | None  # names; None where any name is accepted


def parameters(function: Callable[..., Any]) -> Parameters:
    """The names of a function's parameters.

    CuPy's compiled functions have no signature that `inspect` can read; it is the first line of their docstring.
    """
    if type(function).__name__ == "ufunc":
        return {"out", "dtype", "casting"}
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return _documented_parameters(function.__doc__ or "")
    if any(p.kind is p.VAR_KEYWORD for p in found):
        return None
    return {p.name for p in found if p.kind not in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY)}


def _documented_parameters(doc: str) -> Parameters:
    """The names in "ndarray.get(self, stream=None, tuple shape, *, order='C') -> ..."."""
    match = re.match(r"[\w.]+\((.*)\)", doc.strip().split("\n")[0])
    if not match:
        return None
    names = (part.split("=")[0].split() for part in match[1].split(","))
    return {words[-1] for words in names if words and not words[-1].startswith(("*", "/"))}


def missing_names(name: str, ours: Any, real: Any) -> Iterator[str]:
    """Public names and operators of ours that the real one does not have."""
    for attribute in vars(ours):
        public = not attribute.startswith("_") or (attribute.startswith("__") and isinstance(ours, type))
        if public and attribute not in _REFUSALS and not hasattr(real, attribute):
            yield f"{name}.{attribute}: CuPy has no such name"


def unknown_parameters(name: str, ours: Any, real: Any) -> Iterator[str]:
    """Parameters that ours takes and the real one does not."""
    for attribute in vars(ours):
        function = getattr(ours, attribute)
        theirs = getattr(real, attribute, None)
        if attribute.startswith("_") or isinstance(function, (type, ModuleType)) or not callable(function):
            continue
        mine, known = parameters(function), parameters(theirs) if callable(theirs) else None
        if mine is not None and known is not None:
            yield from (f"{name}.{attribute}: CuPy's takes no {p}" for p in sorted(mine - known - {"self"}))


def classes(module: Any) -> Iterator[type]:
    """The stand-in's own classes in one of its modules, which also has NumPy's scalar types."""
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__.startswith(__package__) and value.__name__ != "ufunc":
            yield value


def unknown_constructor_parameters(ours: type, real: type) -> Iterator[str]:
    mine, known = parameters(ours), parameters(real)
    if mine is not None and known is not None:
        yield from (f"{ours.__name__}: CuPy's takes no {p}" for p in sorted(mine - known))


def different_dtypes(real: ModuleType, special: ModuleType) -> Iterator[str]:
    """Ufuncs whose result has another dtype than CuPy's, for operands of each common dtype."""
    for name, function in UFUNCS.items():
        theirs = getattr(special if name == "erf" else real, name)
        for signature in getattr(theirs, "types", ()):
            operands, result = signature.split("->")
            if set(operands) <= set("fdqB"):
                got = function(*(MODULES["cupy"].ones((1,), char) for char in operands)).dtype.char
                # On this platform l and q are both int64.
                if got.replace("l", "q") != result.replace("l", "q"):
                    yield f"{name}: {signature} in CuPy, but {operands}->{got} in the stand-in"


def different_dtypes_with_bfloat16(real: Any, special: Any) -> Iterator[str]:
    """The same for operands of bfloat16 and another dtype or Python number. Empty if ml_dtypes is not installed.

    CuPy's choice of a loop needs no device. Raises RuntimeError if CuPy no longer has the private function for it.
    """
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        return
    others = (*map(np.dtype, ("?", "e", "f", "d", "i", "l", bfloat16)), 2, 2.0)
    for name, function in UFUNCS.items():
        theirs = getattr(special if name == "erf" else real, name)
        if name in ("matmul", "invert") or name.startswith("bitwise"):
            continue  # not with floats
        for other in others if theirs.nin == 2 else (None,):
            operands = [np.dtype(bfloat16), other][: theirs.nin]
            ours = function(*(x if isinstance(x, (int, float)) else MODULES["cupy"].ones((1,), x) for x in operands))
            expected = _result_dtype(theirs, operands)
            if ours.dtype != expected:
                yield f"{name} of {operands}: {expected} in CuPy, but {ours.dtype} in the stand-in"


def _result_dtype(ufunc: Any, operands: Sequence[Any]) -> Any:
    """Of dtypes and Python numbers."""
    weak = tuple(type(x) if isinstance(x, (int, float)) else False for x in operands)
    dtypes = tuple(np.dtype(type(x)) if isinstance(x, (int, float)) else x for x in operands)
    try:
        return ufunc._ops._guess_routine_from_in_types(dtypes, weak).out_types[0]
    except (AttributeError, TypeError) as error:
        raise RuntimeError(
            f"compare: written for CuPy 14.2, whose private choice of a ufunc's loop this CuPy has not: {error}"
        ) from error


class Tensorlike:
    """An operand that implements every reflected operator, as a Tensor does."""

    __array_ufunc__ = None

    def _asked(self, other: Any) -> Any:
        return self

    __radd__ = __rsub__ = __rmul__ = __rtruediv__ = __rpow__ = __rmatmul__ = _asked
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _asked


OPERATORS = ("add", "sub", "mul", "truediv", "pow", "matmul", "eq", "ne", "lt", "le", "gt", "ge")
IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ipow")


def different_deference(real: Any) -> Iterator[str]:
    """Operators that defer to a Tensor-like operand in only one of the stand-in and CuPy."""
    # Without a device no array can be made, but an uninitialised one serves here.
    array = real.ones((1,)) if real.cuda.is_available() else real.ndarray.__new__(real.ndarray, _no_init=True)
    for name in OPERATORS + IN_PLACE:
        theirs, ours = _defers(array, name), _defers(MODULES["cupy"].ones((1,)), name)
        if theirs != ours:
            yield f"{name}: CuPy {'defers' if theirs else 'does not defer'} to a Tensor-like; the stand-in differs"


def _defers(array: Any, name: str) -> bool:
    try:
        return isinstance(getattr(operator, name)(array, Tensorlike()), Tensorlike)
    except Exception:  # any error: it did not defer
        return False


# --- Names that the backend uses


def uses(source: str) -> Iterator[tuple[str, ast.Call | None]]:
    """Each dotted name under cupy or cupyx in `source`, with the call if it is one."""
    tree = ast.parse(source)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        dotted = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        if re.fullmatch(r"cupyx?(\.\w+)+", dotted):
            yield dotted, calls.get(id(node))


def unusable(source: str, modules: dict[str, Any]) -> Iterator[str]:
    """Uses of cupy and cupyx in `source` that fail: a missing name, a call that does not fit the signature."""
    for dotted, call in uses(source):
        try:
            value = _resolve(dotted, modules)
        except AttributeError:
            yield f"{dotted}: no such name"
            continue
        known = parameters(value) if call else None
        if call and known is not None:
            yield from (f"{dotted}: takes no {k.arg}" for k in call.keywords if k.arg not in known)
            yield from _misfit(dotted, value, call)


def _misfit(dotted: str, function: Callable[..., Any], call: ast.Call) -> Iterator[str]:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*call.args, **{k.arg: k.value for k in call.keywords if k.arg})
    except TypeError as error:
        yield f"{dotted}: {error}"


# Names of the contract that the backend takes from CuPy directly, as in `exp = cupy.exp`.
_DIRECT = re.compile(r"^(\w+) = (?:_keeps_bfloat16\()?(cupyx?[\w.]+)\)?(?: *#.*)?$", re.MULTILINE)


def unfit(source: str, modules: dict[str, Any]) -> Iterator[str]:
    """CuPy functions that `source` offers as a primitive and that cannot be called as the contract says."""
    for name, dotted in _DIRECT.findall(source):
        if name not in PRIMITIVES:
            continue
        _, *expected = inspect.signature(getattr(Backend, name)).parameters.values()  # without self
        function = _resolve(dotted, modules)
        if type(function).__name__ == "ufunc":
            if function.nin != len(expected):
                yield f"{name} = {dotted}: takes {function.nin} operands, the contract has {len(expected)}"
            continue
        positional = [p for p in expected if p.kind is not p.KEYWORD_ONLY]
        keywords = {p.name: p for p in expected if p.kind is p.KEYWORD_ONLY}
        try:
            bound = inspect.signature(function).bind(*positional, **keywords)
        except TypeError as error:
            yield f"{name} = {dotted}: {error}"
            continue
        for theirs, ours in bound.arguments.items():  # what has a name in the contract has its place in CuPy's, too
            if ours.kind is not ours.POSITIONAL_ONLY and ours.name != theirs:
                yield f"{name} = {dotted}: {ours.name} is where CuPy takes {theirs}"


def _resolve(dotted: str, modules: dict[str, Any]) -> Any:
    root, *path = dotted.split(".")
    value = modules[root]
    for name in path:
        value = getattr(value, name)
    return value


OTHERS_HAVE = {
    "append",
    "extend",
    "items",
    "join",
    "kind",
    "name",
    "c_contiguous",
    "f_contiguous",
}  # lists, dicts, strings, ...


def array_attributes(source: str) -> set[str]:
    """The attributes in `source` of values that may be arrays: not of modules, and not of its own objects."""
    roots = re.compile(
        r"(cupyx?|np|host|importlib|operator|sys|cublas|cupy_kernels|self|stream|pool|error|frame|value|names|name)(\.|$)"
    )
    return {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and not roots.match(ast.unparse(node.value))
    }


def complaints() -> list[str]:
    real = {name: importlib.import_module(name) for name in MODULES}
    found: list[str] = []
    for name, ours in MODULES.items():
        found += missing_names(name, ours, real[name])
        found += unknown_parameters(name, ours, real[name])
        for cls in classes(ours):
            theirs = getattr(real[name], cls.__name__)
            found += missing_names(cls.__name__, cls, theirs)
            found += unknown_parameters(cls.__name__, cls, theirs)
            found += unknown_constructor_parameters(cls, theirs)
    found += different_dtypes(real["cupy"], real["cupyx.scipy.special"])
    found += different_dtypes_with_bfloat16(real["cupy"], real["cupyx.scipy.special"])
    found += different_deference(real["cupy"])
    for file in sorted([*BACKENDS.glob("cupy*.py"), BACKENDS / "cublas.py"]):
        found += [f"{file.name}, CuPy: {line}" for line in unusable(file.read_text(), real)]
    found += [f"backend, CuPy: {line}" for line in unfit(BACKEND.read_text(), real)]
    for attribute in sorted(array_attributes(BACKEND.read_text()) - OTHERS_HAVE):
        if not hasattr(real["cupy"].ndarray, attribute):
            found.append(f"backend, CuPy: arrays have no {attribute}")
    return found


if __name__ == "__main__":
    print("\n".join(complaints()))
