"""Cases of Tensors: two backends never mix, and data moves between them."""

import operator

import numpy as np

from ..tensor import Tensor
from .trial import Case, Trial, reference
from .values import normal


def cases() -> list[Case]:
    return [
        Case("Tensor", "two backends never mix", do_not_mix),
        Case("Tensor", "to another backend and back, with gradients", there_and_back),
        Case("Tensor", "data and gradients are the backend's arrays, without axes too", are_arrays),
    ]


def do_not_mix(t: Trial) -> None:
    own, foreign = Tensor([1.0], backend=t.backend), Tensor([1.0], backend=reference)
    for first, second in ((own, foreign), (foreign, own)):
        words = f"operands live on {first.backend.name!r} and {second.backend.name!r}"
        t.raises(TypeError, words, operator.add, first, second)
        t.raises(TypeError, words, operator.matmul, first, second)


def there_and_back(t: Trial) -> None:
    for dtype in t.floats():
        host = normal(2, 3).astype(dtype)
        x = Tensor(host, backend=t.backend)
        moved = (x * x).to(reference)
        t.require(moved.backend.root is reference, "a tensor on 'reference'", f"one on {moved.backend.name!r}")
        out = (moved * 3).to(t.backend) * x  # 3 x^3
        t.same(out.data, 3 * host**3)
        out.backward(t.move(np.ones_like(host)))
        t.same(x.grad, 9 * host**2, what="gradient: ")


def are_arrays(t: Trial) -> None:
    for dtype in t.floats():
        x = Tensor(np.array([1.0, 2.0], dtype), backend=t.backend)
        loss = ((x * x).sum() * 2 + 1).exp() * 0 + x[0] * 3
        t.same(loss.data, np.array(3.0, dtype))
        t.is_array(loss.data, (), dtype)
        loss.backward()
        t.same(x.grad, np.array([3.0, 0.0], dtype), what="gradient: ")
        t.require(type(loss.item()) is float, "a float from item()", repr(loss.item()))
