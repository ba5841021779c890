"""The strict backend: the operations it refuses, their error messages, and the operations it accepts.

These tests always run on the strict backend; the other tests can run on it too.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.dlpack

from russellgrad import Tensor, embedding, use_backend
from russellgrad.backend import load_backend
from tests.helpers import Array, once, rng
from tests.process import output_of

pytestmark = once

xp: Any = load_backend("strict")
HOST = np.ones((2, 3))


@pytest.fixture(autouse=True)
def _on_strict() -> Iterator[None]:
    with use_backend("strict"):
        yield


def ones(*shape: int, dtype: str = "float64") -> Array:
    return xp.full(shape or (2, 3), 1, dtype)


def single() -> Array:
    return ones(dtype="float32")


def int_array(*values: int) -> Array:
    return xp.asarray(np.array(values))


def assign(a: Array, index: Any, value: Any) -> None:
    a[index] = value


def add_in_place(a: Array, value: Any) -> None:
    a += value


def product_in_place(a: Array, b: Array) -> None:
    a @= b


def step(p: Array, g: Array, velocity: Any = None) -> None:
    xp.sgd_step(p, g, velocity, 0.1, 0.9 if velocity is not None else 0.0, False, 0.0)


def add_at(a: Array, index: Array, value: float) -> None:
    a[index] += value


def broadcast_view() -> Array:
    return xp.broadcast_to(ones(3), (2, 3))


# The error type, a word from the consequence on a GPU, a word from the remedy, and the refused actions by name.
REFUSALS: list[tuple[type[Exception], str, str, dict[str, Callable[[], Any]]]] = [
    # Implicit copies to the host
    (TypeError, "copies to the host must be explicit", "to_host", {
        "numpy.asarray": lambda: np.asarray(ones()),
        "numpy.array of a list": lambda: np.array([ones(), ones()]),
        "a list of arrays as data": lambda: Tensor([ones(), ones()]),
    }),
    (TypeError, "cannot read", "primitive", {
        "a NumPy function": lambda: np.concatenate([ones(), ones()]),
        "a NumPy reduction": lambda: np.sum(ones()),
        "a NumPy ufunc": lambda: np.exp(ones()),
        "a NumPy ufunc with out=": lambda: np.exp(ones(), out=ones()),
    }),
    (TypeError, "the program waits", "item", {
        "float()": lambda: float(xp.sum(ones())),
        "int()": lambda: int(xp.sum(ones())),
        "complex()": lambda: complex(xp.sum(ones())),
        "bool()": lambda: bool(xp.sum(ones())),
        "if condition": lambda: 1 if xp.sum(ones()) > 0 else 0,
        "string formatting": lambda: f"{xp.sum(ones()):.3f}",
        "index of a list": lambda: [1, 2][int_array(0, 1)[1]],
        "range": lambda: range(int_array(3)[0]),
    }),
    (TypeError, "a kernel launch", "tolist", {
        "iteration": lambda: list(ones()),
        "unpacking": lambda: (lambda a, b: a)(*ones()),
        "the builtin sum": lambda: sum(ones()),
        "the operator in": lambda: 1.0 in ones(),
    }),
    # Host and device arrays in one operation
    (TypeError, "do not mix", "asarray", {
        "a NumPy array on the right": lambda: ones() + HOST,
        "a NumPy array on the left": lambda: HOST * ones(),
        "a NumPy array in a comparison": lambda: ones() < HOST,
        "a NumPy array in a product": lambda: ones() @ HOST.T,
        "a NumPy array, in place": lambda: add_in_place(ones(), HOST),
        "into a NumPy array, in place": lambda: add_in_place(np.ones((2, 3)), ones()),
        "a list on the right": lambda: ones() * [1.0, 2.0, 3.0],
        "a list on the left": lambda: [1.0, 2.0, 3.0] + ones(),  # noqa: RUF005
        "a primitive of a NumPy array": lambda: xp.exp(HOST),
        "a primitive of a host and a device array": lambda: xp.add(ones(), HOST),
        "a primitive of a list": lambda: xp.add(ones(), [1.0, 2.0, 3.0]),
        "a NumPy array in a list of arrays": lambda: xp.concatenate([ones(), HOST], 0),
        "a NumPy array as the last operand": lambda: xp.where(ones() > 0, ones(), HOST),
        "assigning a NumPy array": lambda: assign(ones(), 0, HOST[0]),
        "assigning a list": lambda: assign(ones(), 0, [1.0, 2.0, 3.0]),
    }),
    (TypeError, "implicitly", "prepare_index", {
        "a NumPy array as the index": lambda: ones()[np.array([0, 1])],
        "a list as the index": lambda: ones()[[0, 1]],
        "a NumPy mask as the index": lambda: ones()[HOST > 0],
        "a list as the index of an assignment": lambda: assign(ones(), (slice(None), [0, 1]), 0.0),
        "getitem with an unprepared index": lambda: xp.getitem(ones(), ([0, 1],)),
    }),
    # Implicit float64
    (TypeError, "twice the memory", "float(x)", {
        "a NumPy scalar on the right": lambda: single() * np.float64(2.0),
        "a NumPy scalar on the left": lambda: np.float64(2.0) * single(),
        "a NumPy scalar in a primitive": lambda: xp.multiply(single(), np.float64(3.0)),
        "a NumPy integer scalar": lambda: single() * np.int64(2),
    }),
    (TypeError, "many times slower", "astype", {
        "float32 and float64": lambda: single() + ones(),
        "float32 and float64, in place": lambda: add_in_place(single(), ones()),
        "float32 and float64 in a primitive": lambda: xp.matmul(single(), ones(3, 2)),
        "float32 and float64 in sgd_step": lambda: step(single(), ones()),
        "float32 and 0-d float64": lambda: xp.add(single(), ones(1)[0]),
        "float16 and float64": lambda: xp.add(ones(dtype="float16"), ones()),
        "assigning float64 to float32": lambda: assign(single(), 0, ones(3)),
        "float32 and integers": lambda: xp.multiply(single(), int_array(1, 2, 3)),
        "a method with dtype float64": lambda: single().sum(dtype="float64"),
    }),
    # Indices out of range, which a device does not check
    (IndexError, "silently", "on the host", {
        "an index out of range": lambda: ones()[int_array(0, 2)],
        "a negative index out of range": lambda: ones()[:, int_array(-4)],
        "an index out of range after an ellipsis": lambda: ones()[..., int_array(3)],
        "an assignment out of range": lambda: assign(ones(), int_array(2), 1.0),
        "getitem out of range": lambda: xp.getitem(ones(), (int_array(2),)),
        "getitem_backward out of range": lambda: xp.getitem_backward(ones(1, 3), (int_array(2),), (2, 3)),
        "embedding out of range": lambda: xp.embedding(ones(), int_array(0, 2)),
        "embedding of a negative id": lambda: xp.embedding(ones(), int_array(-1)),
        "embedding_backward out of range": lambda: xp.embedding_backward(ones(1, 3), int_array(5), 5),
        "cross_entropy out of range": lambda: xp.cross_entropy(ones(), int_array(0, 3), None, None),
        "cross_entropy_backward of a negative id": lambda: xp.cross_entropy_backward(
            ones(1)[0], ones(), int_array(0, -1), None),
    }),
    # Race conditions of writes
    (ValueError, "undefined", "getitem_backward", {
        "two values for one element": lambda: assign(ones(), int_array(1, 1), ones()),
        "two values for one element, by a negative index": lambda: assign(ones(), (0, int_array(2, -1)), ones(2)),
        "two values for one element, in two axes": lambda: assign(ones(), (int_array(1, 1), int_array(2, 2)), ones(2)),
        "adding to repeated elements": lambda: add_at(ones(), int_array(0, 0), 1.0),
    }),
    (ValueError, "share memory", "copy", {
        "a broadcast view, in place": lambda: add_in_place(broadcast_view(), 1.0),
        "an assignment to a broadcast view": lambda: assign(broadcast_view(), 0, 1.0),
        "sgd_step of a broadcast parameter": lambda: step(broadcast_view(), ones()),
        "sgd_step with a broadcast velocity": lambda: step(ones(), ones(), broadcast_view()),
    }),
    (TypeError, "keep the old array", "matmul", {"@=": lambda: product_in_place(ones(3, 3), ones(3, 3))}),
]  # fmt: skip
REFUSED = {
    what: (error, on_a_gpu, instead, action)
    for error, on_a_gpu, instead, actions in REFUSALS
    for what, action in actions.items()
}


@pytest.mark.parametrize("what", REFUSED)
def test_misuse_raises_with_consequence_and_remedy(what: str) -> None:
    error, on_a_gpu, instead, action = REFUSED[what]
    with pytest.raises(error) as raised:
        action()
    message = str(raised.value)
    assert message.startswith("strict: ")
    _, consequence, remedy = message.split("; ")
    assert consequence.startswith("on a GPU ") and on_a_gpu in consequence
    assert instead in remedy


def test_refused_write_changes_nothing() -> None:
    a = single()
    for action in (lambda: add_in_place(a, ones()), lambda: step(a, ones()), lambda: assign(a, int_array(0, 5), 7.0)):
        with pytest.raises((TypeError, IndexError)):
            action()
    assert a.tolist() == [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]


def test_invalid_operands_raise() -> None:
    with pytest.raises(TypeError):
        add_in_place(ones(), Tensor([1.0, 1.0, 1.0]))
    with pytest.raises(TypeError):
        ones() + "1"
    with pytest.raises(TypeError, match="unhashable"):
        hash(ones())
    with pytest.raises(AttributeError):
        ones().label = "x"


# --- Accepted operations


def test_explicit_conversions_copy_to_the_host() -> None:
    a = xp.asarray([[1.0, 2.0], [3.0, 4.0]])
    x = Tensor(a)
    assert type(xp.to_host(a)) is type(x.numpy()) is np.ndarray
    assert a.tolist() == xp.to_host(a).tolist() == x.numpy().tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert xp.sum(a).item() == x.sum().item() == float(x.sum()) == 10.0
    assert str(a) == f"{a}" == "[[1. 2.]\n [3. 4.]]"
    assert repr(xp.sum(a)) == "strict.array(10.)"
    assert (a.shape, a.ndim, a.size, len(a), str(a.dtype)) == ((2, 2), 2, 4, 2, "float64")


def test_host_data_is_accepted_as_tensor_data_ids_and_indices() -> None:
    host = np.ones(3)
    x = Tensor(host)
    a = xp.asarray(host)
    host[:] = 7.0  # the device array does not share memory with the host
    assert a.tolist() == x.numpy().tolist() == [1.0, 1.0, 1.0]
    assert embedding(Tensor(HOST), [1, 0]).shape == (2, 3)
    assert x[[0, 0]].shape == x[np.array([True, False, True])].shape == (2,)
    with pytest.raises(IndexError, match=r"^getitem: .*index 5 is out of bounds"):
        x[[5]]
    with pytest.raises(IndexError, match=r"^embedding: id 5 is out of range"):
        embedding(Tensor(HOST), [5])


OPERATORS: list[Callable[[Any, Any], Any]] = [
    lambda a, b: a + b,
    lambda a, b: a - b,
    lambda a, b: a * b,
    lambda a, b: a / b,
    lambda a, b: a**b,
    lambda a, b: a @ b,
    lambda a, b: a == b,
    lambda a, b: a != b,
    lambda a, b: a < b,
    lambda a, b: a >= b,
    lambda a, b: -a,
    lambda a, b: abs(a - b),
    lambda a, b: 2 - a,
    lambda a, b: 1.0 / b,
    lambda a, b: (a > b) & (a < 0.5) | ~(b > 0.7),
    lambda a, b: a[0],
    lambda a, b: a[1, 1],
    lambda a, b: a.T,
    lambda a, b: a.sum(0),
    lambda a, b: a.mean(),
    lambda a, b: a.reshape(9).max(),
]


@pytest.mark.parametrize("operate", OPERATORS)
def test_operators_and_methods_match_numpy(operate: Callable[[Any, Any], Any]) -> None:
    for dtype in ("float64", "float32"):
        left, right = rng().random((3, 3)).astype(dtype), rng(1).random((3, 3)).astype(dtype)
        found, expected = operate(xp.asarray(left), xp.asarray(right)), np.asarray(operate(left, right))
        assert xp.is_array(found)  # 0-d results too
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(xp.to_host(found), expected)


def test_array_operators_defer_to_tensor() -> None:
    for operate in OPERATORS[:10]:
        left, right = rng().random((3, 3)), rng(1).random((3, 3))
        result = operate(xp.asarray(left), Tensor(right))
        assert isinstance(result, Tensor)
        np.testing.assert_array_equal(result.numpy(), operate(left, right))


def test_in_place_writes_are_kept() -> None:
    a = ones()
    view = a[0]
    a += 1
    a[1] = 5.0
    a[:, int_array(0, 2)] = xp.asarray([7.0, 8.0])  # each element is assigned once
    a[int_array(0, 0), 1] = -1.0  # assigned twice, but with one value
    assert a.tolist() == [[7.0, -1.0, 8.0], [7.0, 5.0, 8.0]]
    assert view.tolist() == [7.0, -1.0, 8.0]
    a[a < 0] = 0.0
    assert a.tolist() == [[7.0, 0.0, 8.0], [7.0, 5.0, 8.0]]


def test_copies_do_not_share_memory() -> None:
    a = ones(3)
    others = [copy.copy(a), copy.deepcopy(a), a.copy(), xp.copy(a)]
    a += 1
    assert all(other.tolist() == [1.0, 1.0, 1.0] for other in others)


def test_scalars_that_keep_the_dtype_are_accepted() -> None:
    for number in (2, 2.5, True, np.float32(2.5)):
        assert str((single() * number).dtype) == "float32"
        assert str((number * single()).dtype) == "float32"
    assert str((single() * np.float16(2.0)).dtype) == "float32"
    assert str((ones() * np.float64(2.0)).dtype) == "float64"
    assert str(xp.astype(single(), "float64").dtype) == "float64"  # an explicit cast
    assert str((int_array(1) * 2.5).dtype) == "float64"  # integers become float64


def test_tensor_casts_its_operands_to_one_dtype() -> None:
    x, wide = Tensor(np.ones(3, "float32")), Tensor(np.ones(3))
    assert str((x * np.float64(2.0)).dtype) == "float32"
    assert str((x * Tensor(np.arange(3))).dtype) == "float32"
    (x * wide).sum().backward()
    assert str(x.grad.dtype) == "float32"  # type: ignore[union-attr]


def test_dlpack_shares_memory() -> None:
    a = ones(3)
    theirs = torch.utils.dlpack.from_dlpack(a)
    theirs[0] = 5.0
    assert a.tolist() == [5.0, 1.0, 1.0]


def test_environment_selects_the_backend() -> None:
    code = "from russellgrad import Tensor; x = Tensor([2.0]); (x ** 2).backward(); print(x.grad, x.backend.name)"
    assert output_of(code, RG_BACKEND="strict") == "[4.] strict"
