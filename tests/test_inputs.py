"""What may enter the library: real numbers and bools. Everything else is refused, wherever it is given."""

import datetime
import math
import warnings
from collections.abc import Callable
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from russellgrad import (
    Module,
    Tensor,
    attention,
    attention_qkvpacked,
    cross_entropy,
    custom_op,
    embedding,
    layer_norm,
    linear,
    manual_seed,
    maximum,
    where,
)
from russellgrad.backend import Backend
from russellgrad.dtype import get_default_dtype, set_default_dtype
from russellgrad.optimizer import AdamOptimizer, SGDOptimizer
from russellgrad.random import Generator
from tests.helpers import assert_close, is_torch

masked = np.ma.masked_array([1.0, 2.0], [False, True])
REFUSED: dict[str, Any] = {
    "complex": 1j, "numpy.complex64": np.complex64(1j), "a complex array": np.array([1j, 2]),
    "a complex array without axes": np.array(1j), "None": None, "str": "3", "bytes": b"3", "numpy.str_": np.str_("3"),
    "an array of strings": np.array(["1", "2"]), "an array of bytes": np.array([b"1", b"2"]), "object": object(),
    "an array of objects": np.array([1, 2], object), "an object array without axes": np.array(1.0, object),
    "Decimal": Decimal("1.5"), "Fraction": Fraction(1, 2), "datetime64": np.datetime64("2020"),
    "an array of dates": np.array(["2020", "2021"], "M8[D]"), "timedelta64": np.timedelta64(3, "s"),
    "an array of time differences": np.array([1, 2], "m8[s]"), "datetime": datetime.datetime(2020, 1, 1),
    "a masked array": masked, "numpy.ma.masked": np.ma.masked,
    "a masked array of bools": np.ma.masked_array([True, False]),
    "a structured array": np.array([(1, 2.0)] * 2, "i4,f4"),
    "a record array": np.rec.array([(1,)], dtype=[("a", "f8")]),
    "void": np.void(b"ab"), "set": {1.0}, "dict": {}, "ragged lists": [[1.0], [1.0, 2.0]],
    "a list with None": [1.0, None],
    "a list with a complex": [1.0, 1j], "strings": ["1", "2"], "a list of masked arrays": [masked, masked],
    "a list with numpy.ma.masked": [np.ma.masked, 1.0], "Decimals": [Decimal("1.5"), 1.0], "a function": len,
    "a complex torch.Tensor": torch.ones(2, dtype=torch.complex64), "longdouble": np.longdouble(1),
    "an array of longdouble": np.ones(2, np.longdouble),
}  # fmt: skip

# Operands, the op that the error names, and the call.
OPERANDS: dict[str, tuple[str, Callable[[Tensor, Any], Any]]] = {
    "x + bad": ("add", lambda x, bad: x + bad), "bad + x": ("add", lambda x, bad: bad + x),
    "x - bad": ("subtract", lambda x, bad: x - bad), "bad - x": ("subtract", lambda x, bad: bad - x),
    "x * bad": ("multiply", lambda x, bad: x * bad), "bad * x": ("multiply", lambda x, bad: bad * x),
    "x / bad": ("divide", lambda x, bad: x / bad), "bad / x": ("divide", lambda x, bad: bad / x),
    "x ** bad": ("power", lambda x, bad: x**bad), "bad ** x": ("power", lambda x, bad: bad**x),
    "x @ bad": ("matmul", lambda x, bad: x @ bad), "bad @ x": ("matmul", lambda x, bad: bad @ x),
    "x < bad": ("less", lambda x, bad: x < bad), "bad <= x": ("greater_equal", lambda x, bad: bad <= x),
    "maximum": ("maximum", lambda x, bad: x.maximum(bad)),
    "maximum, first": ("maximum", lambda x, bad: maximum(bad, x)),
    "minimum": ("minimum", lambda x, bad: x.minimum(bad)),
    "where, second": ("where", lambda x, bad: where([True, False], x, bad)),
    "where, first": ("where", lambda x, bad: where([True, False], bad, x)),
    "masked_fill": ("masked_fill", lambda x, bad: x.masked_fill([True, False], bad)),
    "masked_multiply": ("masked_multiply", lambda x, bad: x.masked_multiply([True, False], bad)),
    "clip, max": ("clip", lambda x, bad: x.clip(0.0, bad if bad is not None else "")),
    "linear": ("linear", lambda x, bad: linear(x, bad)),
    "layer_norm, x": ("layer_norm", lambda x, bad: layer_norm(bad, x)),
    "layer_norm, gamma": ("layer_norm", lambda x, bad: layer_norm(x, bad if bad is not None else "")),
    "attention": ("attention", lambda x, bad: attention(Tensor([[1.0]]), Tensor([[1.0]]), bad)),
}  # fmt: skip
MASKS: dict[str, Callable[[Tensor, Any], Any]] = {
    "where": lambda x, bad: where(bad, x, x), "masked_fill": lambda x, bad: x.masked_fill(bad, 0.0),
    "masked_multiply": lambda x, bad: x.masked_multiply(bad, 0.0),
}  # fmt: skip
GRADIENTS: dict[str, Callable[[Tensor, Any], Any]] = {
    "backward": lambda x, bad: (x * 2.0).backward(bad), "grad": lambda x, bad: setattr(x, "grad", bad),
    "data": lambda x, bad: setattr(x.detach(), "data", bad),
}  # fmt: skip
NUMBERS: dict[str, Callable[[Tensor, Any], Any]] = {
    "leaky_relu": lambda x, bad: x.leaky_relu(bad), "layer_norm": lambda x, bad: layer_norm(x, eps=bad),
    "var": lambda x, bad: x.var(correction=bad),
}  # fmt: skip


def refused(call: Callable[[Tensor, Any], Any], bad: Any, op: str) -> None:
    """Assert that the call raises an error that names the op. A warning would be an error, too: see pyproject.toml."""
    try:
        found = call(Tensor([1.0, 2.0]), bad)
    except (TypeError, ValueError) as error:
        assert op in str(error)  # noqa: PT017 - the same check for many calls
    else:
        pytest.fail(f"{op} took {bad!r} and gave {found!r}")


@pytest.mark.parametrize("what", REFUSED)
def test_the_constructor_refuses(backend: Backend, what: str) -> None:
    for dtype in (None, "float64", "bool"):
        refused(partial(make, dtype), REFUSED[what], "Tensor: ")


def make(dtype: str | None, _: Tensor, data: Any) -> Tensor:
    return Tensor(data, dtype=dtype)


@pytest.mark.parametrize("what", REFUSED)
def test_operands_are_refused(backend: Backend, what: str) -> None:
    for form, (op, call) in OPERANDS.items():
        is_operator = form.startswith(("x ", "bad "))
        if what == "Fraction" and form == "bad ** x":
            continue  # Python computes float(bad) ** x
        # Python's own error: an object of another library might define the operator.
        foreign = what in ("object", "a function", "datetime")
        # A masked array calls NumPy's function, which refuses the Tensor.
        numpys = isinstance(REFUSED[what], np.ma.MaskedArray) and form.startswith("bad ")
        refused(call, REFUSED[what], "" if is_operator and (foreign or numpys) else op)


@pytest.mark.parametrize("what", [what for what in REFUSED if what != "a masked array of bools"])
def test_masks_are_refused(backend: Backend, what: str) -> None:
    for op, call in MASKS.items():
        refused(call, REFUSED[what], op)


def test_masks_with_a_mask_are_refused(backend: Backend) -> None:
    for op, call in MASKS.items():
        refused(call, np.ma.masked_array([True, False], [True, False]), op)


@pytest.mark.parametrize("what", [what for what in REFUSED if what != "None"])
def test_indices_are_refused(backend: Backend, what: str) -> None:
    for index in (REFUSED[what], (slice(None), REFUSED[what])):
        with pytest.raises((TypeError, IndexError, ValueError), match=r"^getitem: "):
            Tensor([[1.0, 2.0], [3.0, 4.0]])[index]


def test_masked_indices_and_ids_are_refused(backend: Backend) -> None:
    ids = np.ma.masked_array([0, 1], [True, False])
    weight = Tensor([[1.0, 2.0], [3.0, 4.0]])
    calls: dict[str, Callable[[], Any]] = {
        "getitem": lambda: weight[ids],
        "embedding": lambda: embedding(weight, ids),
        "cross_entropy": lambda: cross_entropy(weight, ids),
    }
    for op, call in calls.items():
        with pytest.raises(
            TypeError, match=rf"^{op}: the mask of a masked array would be lost; pass x\.filled\(value\)"
        ):
            call()
    with pytest.raises(TypeError, match=r"^embedding: the mask of a masked array"):
        embedding(weight, [[np.ma.masked, 1]])


@pytest.mark.parametrize("what", [what for what in REFUSED if what != "None"])
def test_gradients_and_data_are_refused(backend: Backend, what: str) -> None:
    for op, call in GRADIENTS.items():
        refused(call, REFUSED[what], op)


@pytest.mark.parametrize("what", REFUSED)
def test_numbers_are_refused(backend: Backend, what: str) -> None:
    for op, call in NUMBERS.items():
        refused(call, REFUSED[what], f"{op}: ")


def test_a_number_may_not_be_a_tensor_whose_gradient_would_be_lost(backend: Backend) -> None:
    with pytest.raises(TypeError, match=r"^leaky_relu: alpha must be a real number, got Tensor\(0.1"):
        Tensor([1.0]).leaky_relu(Tensor(0.1))  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["a complex array", "a masked array", "an array of objects", "str", "Fraction"])
def test_hooks_may_not_return_them(backend: Backend, what: str) -> None:
    x = Tensor([1.0, 2.0])
    x.register_hook(lambda g: REFUSED[what])
    with pytest.raises((TypeError, ValueError), match=r"^register_hook: "):
        (x * 2.0).sum().backward()


def test_memory_of_other_dtypes_is_not_shared(backend: Backend) -> None:
    for bad in (torch.ones(2, dtype=torch.complex64), np.ones(2, complex), masked):
        with pytest.raises((TypeError, BufferError), match=r"^from_dlpack: "):
            Tensor.from_dlpack(bad)


# --- Comparisons with == and !=


def test_none_and_strings_are_equal_to_no_tensor(backend: Backend) -> None:
    x = Tensor([1.0, 2.0])
    others: list[Any] = [None, "1", object(), len, {}, datetime.date(2020, 1, 1)]
    for other in others:
        found: list[Any] = [x == other, other == x, x != other]
        assert found == [False, False, True]


@pytest.mark.parametrize("what", ["complex", "Decimal", "Fraction", "ragged lists", "a masked array", "timedelta64"])
def test_comparing_with_numbers_and_lists_that_a_tensor_cannot_hold_raises(backend: Backend, what: str) -> None:
    refused(lambda x, bad: x == bad, REFUSED[what], "equal: " if what != "a masked array" else "")
    refused(lambda x, bad: x != bad, REFUSED[what], "not_equal: " if what != "a masked array" else "")


def test_comparing_with_a_list_raises_with_the_remedy(backend: Backend) -> None:
    with pytest.raises(TypeError, match=r"^equal: cannot take a builtins\.list .*; pass a number or a Tensor"):
        Tensor([1.0]) == [1.0]  # noqa: B015


# --- What is taken


class Size(IntEnum):
    TWO = 2


@pytest.mark.parametrize(
    "number",
    [2, 2.0, True, np.float16(2), np.float32(2), np.float64(2), np.int8(2), np.uint64(2), np.bool_(True), Size.TWO],
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_numbers_on_either_side_do_not_change_the_dtype(backend: Backend, number: Any, dtype: str) -> None:
    x = Tensor(np.array([1.0, 4.0], dtype))
    value = float(number)
    for got, wanted in (
        (number * x, [value, 4 * value]), (x * number, [value, 4 * value]), (number - x, [value - 1, value - 4]),
        (x / number, [1 / value, 4 / value]), (number / x, [value, value / 4]), (x**number, [1.0, 4.0**value]),
        (number + x, [1 + value, 4 + value]), (x.maximum(number), [value, 4.0]),
    ):  # fmt: skip
        assert isinstance(got, Tensor)
        assert_close(got, np.array(wanted, dtype))
    assert (number < x).numpy().tolist() == [value < 1, value < 4]
    assert (x == number).numpy().tolist() == [value == 1, False]


def test_numbers_that_do_not_fit_the_dtype_raise(backend: Backend) -> None:
    for value, dtype in ((300, "uint8"), ([-1], "uint8"), ([2**31], "int32"), ([[1], [2**40]], "int32")):
        with pytest.raises(OverflowError, match=rf"^Tensor: cannot make an array of dtype {dtype} .*out of bounds for"):
            Tensor(value, dtype=dtype)
    with pytest.raises(ValueError, match=r"^Tensor: cannot make an array of dtype int64 .*cannot convert float NaN"):
        Tensor([1.0, float("nan")], dtype="int64")
    assert Tensor([2**64 - 1], dtype="uint64").item() == 2**64 - 1
    assert Tensor([1.75, -1.75], dtype="int8").numpy().tolist() == [1, -1]
    assert Tensor([2, 0], dtype="bool").numpy().tolist() == [True, False]


@pytest.mark.parametrize(
    ("data", "dtype", "error"),
    [
        (np.array([1, 300]), "uint8", OverflowError), (np.array([-1.0, 1.0]), "uint8", OverflowError),
        (np.array([2**63, 1], "uint64"), "int64", OverflowError), (np.array([1.0, np.nan]), "int32", ValueError),
        (np.array([-np.inf, 0.0]), "int8", OverflowError), (np.array([2.0**63, 0.0]), "int64", OverflowError),
        (torch.tensor([300, 1]), "uint8", OverflowError), ([np.array(300), 1], "uint8", OverflowError),
        (np.array([1.0, 1e300]), "float32", OverflowError),
        (np.array([65535, 1], "uint16"), "float16", OverflowError), ([1.0, 1e300], "float32", OverflowError),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_the_dtype_raise(backend: Backend, data: Any, dtype: str, error: type) -> None:
    """As lists do. In a state, too, where the error names the entry, and nothing is loaded."""
    with pytest.raises(error, match=rf"^Tensor: cannot make an array of dtype {dtype} "):
        Tensor(data, dtype=dtype)
    if hasattr(data, "shape"):
        module = Pair()
        module.a, module.b = (Tensor(np.ones(2, dtype), requires_grad=False) for _ in range(2))
        with pytest.raises(ValueError, match=r"^load_state_dict: Pair does not fit: b"):
            module.load_state_dict({"a": np.zeros(2, dtype), "b": data})
        assert module.a.numpy().tolist() == [1, 1]


def test_arrays_that_fit_the_dtype_are_cast(backend: Backend) -> None:
    assert Tensor(np.array([255.5, -0.5]), dtype="uint8").numpy().tolist() == [255, 0]
    assert Tensor([2**53 + 1, 1.5], dtype="int64").numpy().tolist() == [2**53 + 1, 1]  # float64 has no 2**53 + 1
    assert Tensor(np.array([True]), dtype="int8").numpy().tolist() == [1]
    assert Tensor(np.zeros(0), dtype="uint8").shape == (0,)
    assert np.isinf(Tensor(np.array([np.inf, -np.inf]), dtype="float32").numpy()).all()


def test_a_default_dtype_that_cannot_represent_a_number_raises(backend: Backend) -> None:
    before = get_default_dtype()
    set_default_dtype("float32")
    try:
        with pytest.raises(OverflowError, match=r"^Tensor: .*1e\+300 is out of bounds for float32"):
            Tensor(1e300)
    finally:
        set_default_dtype(before)
    for data in (2**70, [1, -(2**70)]):
        with pytest.raises(
            OverflowError, match=r"^Tensor: .*an int is out of bounds for int64 and uint64; pass a float"
        ):
            Tensor(data)


@pytest.mark.filterwarnings("ignore:Warning. converting a masked element")
@pytest.mark.parametrize(
    "data",
    [
        [1.0, np.ma.masked], [[[1.0], [np.ma.masked]]], [1, np.ma.array(5, mask=True)], [[1.0, 2.0], masked],
        ([1.0], (np.ma.masked,)), [np.array([1.0]), np.ma.array([1.0], mask=True)],
    ],
)  # fmt: skip
def test_masked_elements_of_lists_are_found(backend: Backend, data: Any) -> None:
    with pytest.raises(TypeError, match=r"^Tensor: .*the mask of a masked array would be lost"):
        Tensor(data)


@pytest.mark.parametrize("bad", ["1", 1.0, 1j, np.float64(1.0), [1], True, np.True_])
def test_ignore_index_is_an_integer(backend: Backend, bad: Any) -> None:
    with pytest.raises(TypeError, match=r"^cross_entropy: ignore_index must be "):
        cross_entropy(Tensor([[1.0, 2.0], [3.0, 4.0]]), [0, 1], ignore_index=bad)


@pytest.mark.parametrize("bad", [None, "a", 0.5, 1.0, math.nan, True, np.float32(1), 1j, [1]])
def test_the_offset_and_the_number_of_heads_are_ints(backend: Backend, bad: Any) -> None:
    x = Tensor(np.ones((3, 6)))
    for causal in (True, False):
        with pytest.raises(TypeError, match=r"^attention: offset must be (an int|a real number), got "):
            attention(x, x, x, causal=causal, offset=bad)
    with pytest.raises(TypeError, match=r"^attention_qkvpacked: n_heads must be (an int|a real number), got "):
        attention_qkvpacked(x, bad)
    assert attention(x, x, x, causal=True, offset=np.int64(1)).shape == (3, 6)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", ["no", None, 0, 1.0, [True], np.int64(1)])
def test_flags_are_bools(backend: Backend, bad: Any) -> None:
    x = Tensor(np.ones((3, 6)))
    calls: dict[str, Callable[[], Any]] = {
        "attention: causal": lambda: attention(x, x, x, causal=bad),
        "attention_qkvpacked: causal": lambda: attention_qkvpacked(x, 2, causal=bad),
        "requires_grad:": lambda: setattr(x, "requires_grad", bad),
    }
    if bad is not None:  # the constructor's default
        calls["requires_grad: "] = lambda: Tensor([1.0], requires_grad=bad)
    for name, call in calls.items():
        with pytest.raises(TypeError, match=rf"^{name} ?must be True or False, got "):
            call()
    assert x.requires_grad
    assert not Tensor([1.0], requires_grad=np.False_).requires_grad  # type: ignore[arg-type]
    assert attention(x, x, x, causal=np.True_).shape == (3, 6)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_correction_of_var_is_finite(backend: Backend, bad: float) -> None:
    with pytest.raises(ValueError, match=r"^var: correction must be finite, got "):
        Tensor([1.0, 2.0]).var(correction=bad)


@pytest.mark.parametrize("bad", [1.5, 1.0, "1", None, True, np.float64(1.0)])
def test_seeds_are_ints(bad: Any) -> None:
    for call in (manual_seed, Generator):
        with pytest.raises(TypeError, match=r"^Generator: the seed must be an int, got "):
            call(bad)
    assert Generator(np.uint64(2**64 - 1)).seed == 2**64 - 1  # type: ignore[arg-type]


def test_the_size_of_a_piece_is_no_bool(backend: Backend) -> None:
    for bad in (True, np.True_):
        with pytest.raises(TypeError, match=r"^split: the lengths must be ints"):
            Tensor([1.0, 2.0]).split(bad)  # type: ignore[arg-type]
        for op in ("reshape", "broadcast_to"):
            with pytest.raises(TypeError, match=rf"^{op}: the lengths must be ints"):
                getattr(Tensor([1.0]), op)(bad)


def test_shapes_are_ints(backend: Backend) -> None:
    for bad in (3.0, "3", None, "111", [1.0, 3], [None], np.float64(3.0)):
        for op in ("reshape", "broadcast_to", "split"):
            with pytest.raises(TypeError, match=rf"^{op}: the lengths must be ints, as in {op}\(\(2, 3\)\)"):
                getattr(Tensor([1.0, 2.0, 3.0]), op)(bad)
    assert Tensor([1.0, 2.0]).reshape(np.array([2, 1])).shape == (2, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["f8", "f4", "i8", "u2"])
def test_byte_orders_are_converted(backend: Backend, order: str, dtype: str) -> None:
    array = np.array([1, 2, 3], order + dtype)
    x = Tensor(array)
    assert_close(x, array.astype(dtype))
    assert x.dtype.isnative
    assert_close(Tensor(array, dtype="float32"), np.array([1.0, 2.0, 3.0], "float32"))
    assert_close(Tensor([4.0, 5.0, 6.0])[np.array([2, 0], f"{order}i8")], np.array([6.0, 4.0]))
    assert Tensor([1.0], dtype=f"{order}f4").dtype == np.dtype("float32")
    assert Tensor([1.0]).astype(f"{order}f4").dtype == np.dtype("float32")
    assert_close(Tensor([1.0]).astype(f"{order}f4"), np.array([1.0], "float32"))


def test_byte_orders_of_operands_are_converted() -> None:
    """On the NumPy backend, whose arrays can have another order."""
    x = Tensor([1.0, 2.0], backend="numpy")
    big = np.array([3.0, 4.0], ">f8")
    y = x * big
    y.backward(big)
    assert y.dtype.isnative
    assert x.grad is not None
    assert x.grad.dtype.isnative
    assert_close(x.grad, np.array([9.0, 16.0]))
    x.grad = big
    assert x.grad.dtype.isnative
    x.requires_grad = False
    x.data = big
    assert x.dtype.isnative


def test_a_numpy_matrix_is_an_array_of_two_axes(backend: Backend) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        x = Tensor(np.matrix([[1.0, 2.0]]))
    assert type(x.numpy()) is np.ndarray
    assert_close(x * x, np.array([[1.0, 4.0]]))


def test_a_custom_op_may_take_none_unless_its_annotation_says_array(backend: Backend) -> None:
    def shift(xp: Backend, a: Any, b: Any = None) -> Any:
        return xp.add(a, 1.0 if b is None else b), lambda g: g, lambda g: g

    del shift.__annotations__["b"]
    assert_close(custom_op(shift)(Tensor([1.0]), None), np.array([2.0]))
    with pytest.raises(TypeError, match=r"^shift: cannot take None"):
        custom_op(shift)(None, Tensor([1.0]))


# --- States


class Pair(Module):
    def __init__(self) -> None:
        self.a, self.b = Tensor([1.0, 2.0]), Tensor([[3.0]])


BAD_ENTRIES: dict[str, Any] = {
    "complex": np.array([[1j]]), "strings": np.array([["1"]]), "objects": np.array([[None]]), "None": None,
    "masked": np.ma.masked_array([[1.0]], [[True]]), "dates": np.array([["2020"]], "M8[D]"), "shape": np.ones((2, 1)),
    "complex torch.Tensor": torch.ones((1, 1), dtype=torch.complex64), "ragged": [[1.0], [1.0, 2.0]], "a string": "3",
    "a number": 3.0, "longdouble": np.ones((1, 1), np.longdouble),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_ENTRIES)
def test_a_module_never_loads_half_a_state(backend: Backend, what: str) -> None:
    """The bad entry is the last one; the error names it."""
    pair = Pair()
    with pytest.raises(ValueError, match=r"^load_state_dict: Pair does not fit: b"):
        pair.load_state_dict({"a": np.array([8.0, 9.0]), "b": BAD_ENTRIES[what]})
    assert_close(pair.a, np.array([1.0, 2.0]))
    assert_close(pair.b, np.array([[3.0]]))


def test_a_module_loads_tensors_and_other_byte_orders(backend: Backend) -> None:
    pair, source = Pair(), Tensor([[5.0]], requires_grad=False)
    pair.load_state_dict({"a": np.array([8, 9], ">i4"), "b": source})
    assert_close(pair.a, np.array([8.0, 9.0]))
    source.data *= 2.0
    assert_close(pair.b, np.array([[5.0]]))
    pair.load_state_dict({"a": np.array([6.0, 7.0], "float32"), "b": torch.tensor([[4.0]])})
    assert_close(pair.a, np.array([6.0, 7.0]))
    assert_close(pair.b, np.array([[4.0]]))


@pytest.mark.parametrize("bad", [torch.ones(1, 1, requires_grad=True), torch.ones(1, 1, dtype=torch.bfloat16)])
def test_tensors_that_pytorch_does_not_convert_say_what_to_pass(backend: Backend, bad: torch.Tensor) -> None:
    if is_torch(backend) and bad.dtype == torch.bfloat16:
        pytest.skip("this backend has bfloat16")
    for data in (bad, [bad], [bad[0, 0]]):
        for dtype in (None, "float32"):
            with pytest.raises(
                TypeError, match=r"^Tensor: .*; pass x\.detach\(\), or x\.detach\(\)\.float\(\) of bfloat16"
            ):
                Tensor(data, dtype=dtype)
    with pytest.raises(TypeError, match=r"^getitem: .*; pass x\.detach\(\)"):
        Tensor([1.0])[[bad]]
    pair = Pair()
    with pytest.raises(ValueError, match=r"^load_state_dict: Pair does not fit: b: .*; pass x\.detach\(\), or"):
        pair.load_state_dict({"a": np.array([8.0, 9.0]), "b": bad})
    assert_close(pair.a, np.array([1.0, 2.0]))
    pair.load_state_dict({"a": np.array([8.0, 9.0]), "b": bad.detach().float()})
    assert_close(pair.b, np.array([[1.0]]))


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("m", np.ma.masked_array([1.0, 2.0], [True, False])), ("m", np.array([1j, 2])), ("m", np.array(["1", "2"])),
        ("m", None), ("m", "1"), ("v", np.ones(3)), ("v", np.ones(2, "float32")), ("step", None), ("step", "3"),
        ("step", 1.5), ("step", -1), ("step", 1j), ("step", np.ones(2)),
    ],
)  # fmt: skip
def test_an_optimizer_never_loads_half_a_state(backend: Backend, key: str, bad: Any) -> None:
    p, q = Tensor([1.0, 2.0]), Tensor([3.0, 4.0])
    optimizer = AdamOptimizer([p, q], lr=0.1)
    (p * q).sum().backward()
    optimizer.step()
    before = optimizer.state_dict()
    other = optimizer.state_dict()
    other["state"][0]["m"] = np.array([7.0, 7.0])
    other["state"][1][key] = bad
    with pytest.raises((TypeError, ValueError), match=rf"^AdamOptimizer: .*{key} of parameter 1"):
        optimizer.load_state_dict(other)
    for was, now in zip(before["state"], optimizer.state_dict()["state"], strict=True):
        assert set(was) == set(now)
        assert all(np.array_equal(was[name], now[name]) for name in was)


@pytest.mark.parametrize("bad", [None, "3", -1, 1.5, 1j])
def test_an_optimizer_refuses_a_number_of_steps_that_is_none(backend: Backend, bad: Any) -> None:
    optimizer = SGDOptimizer([Tensor([1.0])], lr=0.1, momentum=0.9)
    state = {**optimizer.state_dict(), "state": [{"velocity": np.array([5.0])}], "steps_taken": bad}
    with pytest.raises((TypeError, ValueError), match=r"^SGDOptimizer: steps_taken must (be|not be) "):
        optimizer.load_state_dict(state)
    assert optimizer.state == {}


def test_a_model_file_with_other_dtypes_is_refused(backend: Backend, tmp_path: Path) -> None:
    import safetensors.numpy

    from russellgrad.checkpoint import load_model, save_model
    from russellgrad.russelltransformer import Transformer
    from russellgrad.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_text("to be", max_seq_len=4, embed_dim=4, seed=1)
    path = save_model(tmp_path / "model.safetensors", Transformer(tokenizer, n_layers=1, n_attn_heads=1, seed=1))
    with safetensors.safe_open(path, framework="numpy") as file:
        header, state = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    safetensors.numpy.save_file({name: array.astype("int64") for name, array in state.items()}, path, header)
    with pytest.raises(ValueError, match="its parameters have dtype int64; a model has float32 or float64"):
        load_model(path)


# --- Mixed dtypes


@pytest.mark.parametrize("dtypes", [("float32", "float64"), ("float64", "float32"), ("float16", "float64")])
@pytest.mark.parametrize("residual", ["x + layer_norm(x)", "layer_norm(x + r)", "layer_norm(x) + r"])
def test_layer_norm_of_mixed_dtypes_with_a_residual(backend: Backend, dtypes: tuple[str, str], residual: str) -> None:
    """The same on every backend: the wider dtype, and gradients in the dtype of each operand. PyTorch refuses it."""
    x, r = (Tensor(np.array([[0.5, 1.5, 4.0], [2.0, 0.25, 1.0]], dtype)) for dtype in dtypes)
    gamma, beta = Tensor(np.array([1.0, 2.0, 0.5], dtypes[1])), Tensor(np.array([0.5, 0.0, 1.0], dtypes[1]))
    y = {
        "x + layer_norm(x)": lambda: x + layer_norm(x, gamma, beta),
        "layer_norm(x + r)": lambda: layer_norm(x + r, gamma, beta),
        "layer_norm(x) + r": lambda: layer_norm(x, gamma, beta) + r,
    }[residual]()
    assert y.dtype == "float64"
    (y * y).sum().backward()
    wide = [torch.tensor(t.numpy().astype("float64"), requires_grad=True) for t in (x, r, gamma, beta)]
    a, b, g, h = wide
    norm = torch.nn.functional.layer_norm
    z = {
        "x + layer_norm(x)": lambda: a + norm(a, (3,), g, h),
        "layer_norm(x + r)": lambda: norm(a + b, (3,), g, h),
        "layer_norm(x) + r": lambda: norm(a, (3,), g, h) + b,
    }[residual]()
    (z * z).sum().backward()
    assert_close(y, z)
    for mine, theirs in zip((x, r, gamma, beta), wide, strict=True):
        if theirs.grad is not None:
            assert mine.grad is not None
            assert mine.backend.dtype(mine.grad) == mine.dtype
            tolerance = {"float16": 2e-2, "float32": 2e-5, "float64": 1e-12}[str(mine.dtype)]
            assert_close(mine.grad, theirs.grad.numpy().astype(str(mine.dtype)), atol=tolerance)
