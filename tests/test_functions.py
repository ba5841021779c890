"""The methods of Tensor as functions: rg.exp(x) is x.exp()."""

import builtins
import inspect
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import russellgrad as rg
from russellgrad import Tensor, functional
from russellgrad.backend import Backend
from tests.helpers import assert_close, once, rng
from tests.process import ROOT

NOT_FUNCTIONS = {"at"}
EXPLICIT = {"arctan2", "maximum", "minimum", "softmax"}  # written out in functional.py, softmax.py


def methods() -> dict[str, Any]:
    """The public methods of Tensor that are defined in russellgrad/ops/."""
    return {
        name: value
        for cls in Tensor.__mro__
        if ".ops." in cls.__module__
        for name, value in vars(cls).items()
        if name[0] != "_" and not isinstance(value, property) and name not in NOT_FUNCTIONS
    }


def test_every_method_that_computes_is_a_function_of_the_package() -> None:
    assert len(methods()) > 55
    for name, method in methods().items():
        if name == "trace":  # russellgrad.trace records operations
            continue
        function = getattr(rg, name)
        assert callable(function) and inspect.getdoc(function), name
        if name not in EXPLICIT:
            assert inspect.getdoc(function) == inspect.getdoc(getattr(Tensor, name)), name
            assert inspect.signature(function) == inspect.signature(getattr(Tensor, name)), name
            assert function.__name__ == name and not isinstance(method, property)


@once
def test_no_function_has_the_name_of_a_submodule() -> None:
    """An import of the submodule would replace it. (softmax is bound after its import.)"""
    files = {path.stem for path in (ROOT / "russellgrad").glob("*.py")}
    assert not files & set(vars(functional)["__all__"])
    assert callable(rg.softmax)


@once
def test_a_star_import_keeps_pythons_functions() -> None:
    assert not {name for name in rg.__all__ if hasattr(builtins, name)}
    assert {"exp", "reshape", "zeros", "concatenate", "softplus"} <= set(rg.__all__)
    assert {"abs", "max", "min", "round", "sum"} <= set(vars(rg))
    assert len(set(rg.__all__)) == len(rg.__all__)
    code = "from russellgrad import *; print(sum([1, 2]), max(1, 2), abs(-1), exp(zeros(1)).item())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["3", "2", "1", "1.0"]


def test_functions_give_what_the_methods_give(backend: Backend) -> None:
    x = Tensor(rng().random((2, 3)))
    for name in ("exp", "log10", "silu", "sum", "mean", "max", "transpose", "round", "isnan", "softplus"):
        assert_close(getattr(rg, name)(x), getattr(x, name)().numpy())
    assert_close(rg.sum(x, axis=0, keepdims=True), x.sum(0, True).numpy())
    assert_close(rg.reshape(x, 3, 2), x.reshape(3, 2).numpy())
    assert_close(rg.clip(x, 0.2, max=0.5), x.clip(0.2, 0.5).numpy())
    assert_close(rg.concatenate([x, x], axis=1), Tensor.concatenate([x, x], axis=1).numpy())
    assert_close(rg.split(x, 2, axis=1)[1], x.numpy()[:, 2:])
    rg.sum(rg.square(x)).backward()
    assert_close(x.grad, 2 * x.numpy())


def test_functions_are_differentiated_by_transforms(backend: Backend) -> None:
    x = Tensor(rng().random(3), requires_grad=False)
    assert_close(rg.grad(lambda x: rg.sum(rg.tan(x)))(x), 1 + np.tan(x.numpy()) ** 2)
    assert_close(rg.jvp(rg.sinh, (x,), (rg.ones_like(x),))[1], np.cosh(x.numpy()))


def test_functions_take_numbers_and_arrays_of_the_backend(backend: Backend) -> None:
    assert_close(rg.exp(0), np.array(1.0))
    assert_close(rg.arctan2(1.0, Tensor([1.0], dtype="float32")), np.array([np.pi / 4], np.float32))
    array = Tensor([1.0, 4.0]).data
    assert_close(rg.sqrt(array), np.array([1.0, 2.0]))
    assert not rg.sqrt(array).requires_grad


@pytest.mark.parametrize("wrong", [[1.0], "1", None, (1.0,), 1j])
def test_functions_refuse_what_is_no_operand(backend: Backend, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"^exp: cannot take a builtins\.\w+; pass a Tensor, as in exp\(Tensor\(x\)\)"):
        rg.exp(wrong)
    with pytest.raises(TypeError, match=r"^sum: cannot take a builtins\.\w+; pass a Tensor"):
        rg.sum(wrong, axis=0)


def test_functions_name_the_arguments_of_numpy_and_pytorch(backend: Backend) -> None:
    x: Any = Tensor([1.0])
    with pytest.raises(TypeError, match=r"^sum: has no argument dim=; write axis=, as in NumPy$"):
        rg.sum(x, dim=0)  # type: ignore[call-arg]
