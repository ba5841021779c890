"""The teaching Tensor of manual_tensor.py, compared with russellgrad.Tensor, and its errors."""

import runpy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import russellgrad
from russellgrad import manual_tensor
from russellgrad.backend import Backend
from russellgrad.manual_tensor import Tensor as ManualTensor
from tests.helpers import assert_close, once, rng

Expression = Callable[..., Any]

normal = [rng(i).normal(size=(3, 3)) for i in range(3)]
positive = [np.abs(array) + 0.5 for array in normal]

# Each expression runs with both classes and returns a 0-d tensor.
EXPRESSIONS: dict[str, tuple[Expression, list[np.ndarray[Any, Any]]]] = {
    "polynomial": (lambda a: (a**3 - 2 * a**2 + a * 5 - 1).sum(), normal),
    "arithmetic": (lambda a, b, c: ((a + b) * c - a / b).sum(), positive),
    "numbers": (lambda a: (1 + a - 2 * a + (3 - a) * (a - 4) + 5 / a + a / 6).sum(), positive),
    "negation": (lambda a, b: (-a * -b).mean(), normal),
    "powers": (lambda a, b: (a**0.5 + b**-1.5 + a**0 + b**1).sum(), positive),
    "functions": (lambda a, b, c: (a.exp() * b.log() + c.tanh()).mean(), positive),
    "relu": (lambda a, b: (a.relu() * b.relu() + a).sum(), normal),
    "matmul": (lambda a, b, c: ((a @ b).tanh() @ c).sum(), normal),
    "transposes": (lambda a, b: (a.T @ b.transpose() * a).sum(), normal),
    "shapes": (lambda a, b: (a.reshape(1, 9) @ b.reshape(9, 1)).sum(), normal),
    "reused": (lambda a: (a * a + a.exp() * a).sum() * a.mean(), normal),
    "softmax loss": (lambda a: (a.exp().sum()).log() - a.mean(), normal),
    "network": (lambda x, w1, w2: (((x @ w1).tanh() @ w2 - x) ** 2).mean(), normal),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_manual_tensor_matches_tensor(backend: Backend, name: str) -> None:
    expression, arrays = EXPRESSIONS[name]
    count = expression.__code__.co_argcount
    manual = [ManualTensor(array) for array in arrays[:count]]
    ours = [russellgrad.Tensor(array) for array in arrays[:count]]
    value, expected = expression(*manual), expression(*ours)
    assert_close(np.asarray(value.data), expected.numpy())
    value.backward()
    expected.backward()
    for mine, theirs in zip(manual, ours, strict=True):
        assert mine.grad is not None
        assert_close(mine.grad, theirs.grad)


def test_gradients_accumulate_over_two_backward_calls() -> None:
    x = ManualTensor([2.0])
    (3 * x).backward()
    (x * x).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [7.0]


def test_gradients_do_not_share_memory() -> None:
    a, b = ManualTensor([1.0]), ManualTensor([2.0])
    (a + b).backward()
    assert a.grad is not None
    a.grad *= 100
    assert b.grad is not None
    assert b.grad.tolist() == [1.0]


@once
def test_backward_through_a_deep_graph() -> None:
    x = ManualTensor([1.0])
    y = x
    for _ in range(20_000):
        y = y + 1.0
    y.backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0]


def test_invalid_operands_raise() -> None:
    a, b = ManualTensor(np.ones((2, 3))), ManualTensor(np.ones(3))
    for symbol, operate in {"+": lambda: a + b, "*": lambda: a * b, "/": lambda: a / b}.items():
        with pytest.raises(ValueError, match=rf"^\{symbol}: shapes \(2, 3\) and \(3,\) differ"):
            operate()
    with pytest.raises(ValueError, match=r"^\+: shapes \(2, 3\) and \(3,\) differ"):
        a - b
    with pytest.raises(ValueError, match=r"^@: needs shapes \(n, k\) and \(k, m\), got \(2, 3\) and \(2, 3\)"):
        a @ a
    for wrong in (b, 2.0, np.ones((3, 2))):
        with pytest.raises(ValueError, match=r"^@: needs shapes"):
            a @ wrong  # type: ignore[operator]
    with pytest.raises(TypeError, match=r"^\*\*: the exponent must be a number, got a Tensor"):
        a**a  # type: ignore[operator]
    for operand in ([1.0], np.ones((2, 3)), None):
        with pytest.raises(TypeError, match=r"^\+: the other operand must be a Tensor or a number, got a"):
            a + operand  # type: ignore[operator]
    with pytest.raises(TypeError, match=r"^\*: the other operand must be a Tensor or a number, got a ndarray"):
        np.ones((2, 3)) * a  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"^backward: starts from one number, got shape \(2, 3\)"):
        a.backward()


def test_example_fits_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    done = runpy.run_path(str(manual_tensor.__file__), run_name="__main__")
    assert done["slope"].data.item() == pytest.approx(3.0, abs=1e-6)
    assert done["offset"].data.item() == pytest.approx(-1.0, abs=1e-6)
    assert capsys.readouterr().out.count("step") == 6


def test_file_needs_only_numpy() -> None:
    """The file is short and runs alone, without the russellgrad package."""
    with open(str(manual_tensor.__file__)) as file:
        source = file.read()
    code = "import sys; exec(sys.stdin.read(), {'__name__': 'alone'}); print('russellgrad' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], input=source, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr
    assert source.count("\n") < 200
