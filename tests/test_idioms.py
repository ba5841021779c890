"""Idioms of NumPy and PyTorch: they work, or the error says what to write instead."""

import asyncio
import contextvars
import math
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import russellgrad as rg
from russellgrad import Module, Tensor, compile_step, linear, no_grad, use_backend
from russellgrad.autograd import is_grad_enabled
from russellgrad.backend import Backend
from russellgrad.optimizer import AdamOptimizer, SGDOptimizer, clip_grad_norm
from tests.helpers import assert_close, check_against_torch, rng


def matrix() -> Tensor:
    return Tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


# --- Formatting, conversion to Python's types


@pytest.mark.parametrize("value", [2.3456, [2.3456], [[2.3456]]])
def test_one_element_is_formatted_like_a_number(backend: Backend, value: Any) -> None:
    loss = Tensor(value)
    assert [f"{loss:.3f}", f"{loss:>8.2f}", format(loss, ".1e")] == ["2.346", "    2.35", "2.3e+00"]
    assert "%.2f" % loss == "2.35"  # noqa: UP031 - by __float__
    assert f"{Tensor(np.array(7)):d}" == "7"


def test_without_a_format_0d_tensors_are_printed_as_numbers(backend: Backend) -> None:
    """As in NumPy and PyTorch."""
    assert f"{Tensor(2.5)}" == "2.5"
    assert f"{Tensor([2.5])}" == str(Tensor([2.5]))


def test_several_elements_have_no_format(backend: Backend) -> None:
    with pytest.raises(TypeError, match=r"^format: shape \(2,\) cannot be formatted with '\.3f'; .*or \.numpy\(\)$"):
        f"{Tensor([1.0, 2.0]):.3f}"


def test_an_integer_tensor_is_an_index(backend: Backend) -> None:
    assert ["a", "b", "c"][Tensor([1.0, 3.0, 2.0]).argmax()] == "b"
    assert list(range(Tensor(np.array([2])))) == [0, 1]
    with pytest.raises(TypeError, match=r"^index: a tensor of dtype float64 is not an integer; call int\(x\)"):
        [1, 2][Tensor(1.0)]
    with pytest.raises(ValueError, match=r"^index: a tensor of shape \(2,\) has 2 elements, not one; reduce it"):
        [1, 2][Tensor(np.array([0, 1]))]


def test_in_compares_elements(backend: Backend) -> None:
    assert 5.0 in matrix()
    assert 7.0 not in matrix()
    assert np.float32(2.0) in matrix()
    with pytest.raises(TypeError, match=r"^equal: cannot take 'a', a str"):
        "a" in matrix()  # noqa: B015


def test_the_truth_of_several_elements_says_what_to_write(backend: Backend) -> None:
    x = Tensor([1.0, 2.0])
    for condition in (lambda: not x, lambda: x > 0 and x < 2, lambda: x in [Tensor([1.0, 2.0])]):
        with pytest.raises(ValueError, match=r"^bool: .* is ambiguous; .*where.* & \| ~ .*`is`.*\(x > 0\)\.all\(\)"):
            condition()
    assert x in [x]


# --- Masks


def test_masks_take_bools_on_either_side(backend: Backend) -> None:
    mask = Tensor([True, False])
    for true in (True, np.True_, Tensor(True)):
        assert (mask & true).numpy().tolist() == (true & mask).numpy().tolist() == [True, False]
        assert (mask | true).numpy().tolist() == (true | mask).numpy().tolist() == [True, True]
        assert (mask ^ true).numpy().tolist() == (true ^ mask).numpy().tolist() == [False, True]
    assert (mask & mask).numpy().tolist() == [True, False]
    assert (~mask).numpy().tolist() == [False, True]
    for wrong in (
        lambda: mask & 1,
        lambda: ~Tensor([1.0]),
        lambda: mask | Tensor([1.0, 2.0]),
        lambda: np.int64(1) ^ mask,
    ):
        with pytest.raises(
            TypeError, match=r"^logical_\w+: the operands must be bool, got .*; compare first, as in x > 0"
        ):
            wrong()


# --- Axes


def test_transpose_takes_the_axes_one_by_one(backend: Backend) -> None:
    check_against_torch(lambda x: x.transpose(2, 0, 1), lambda t: t.permute(2, 0, 1), rng().normal(size=(2, 3, 4)))
    x = Tensor(rng().normal(size=(2, 3)))
    for y in (
        x.transpose(1, 0),
        x.transpose((1, 0)),
        x.transpose([1, 0]),
        x.transpose(axes=(1, 0)),
        x.transpose(-1, 0),
    ):
        assert_close(y, x.numpy().T)
    assert_close(Tensor([1.0]).transpose(np.int64(0)), np.array([1.0]))  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"each of the 3 axes of shape \(2, 3, 4\) once; to swap two axes, write swapaxes\(0, 1\)"
    ):
        Tensor(np.ones((2, 3, 4))).transpose(0, 1)


REDUCTIONS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "sum": lambda x, axis: x.sum(axis), "mean": lambda x, axis: x.mean(axis), "var": lambda x, axis: x.var(axis),
    "max": lambda x, axis: x.max(axis), "min": lambda x, axis: x.min(axis), "squeeze": lambda x, axis: x.squeeze(axis),
    "expand_dims": lambda x, axis: x.expand_dims(axis),
}  # fmt: skip


@pytest.mark.parametrize("op", REDUCTIONS)
def test_axis_may_be_a_list(backend: Backend, op: str) -> None:
    x, y = (Tensor(rng().normal(size=(2, 1, 3))) for _ in range(2))
    for axes in ([0, 1], [-1], [1], [np.int64(0), 2]):
        a, b = REDUCTIONS[op](x, axes), REDUCTIONS[op](y, tuple(axes))
        assert_close(a, b.numpy())
        (a * a).sum().backward()
        (b * b).sum().backward()
        assert x.grad is not None
        assert_close(x.grad, backend.to_host(y.grad))
        x.zero_grad()
        y.zero_grad()


@pytest.mark.parametrize("op", ["argmax", "softmax", "log_softmax"])
def test_one_axis_may_be_a_list_of_one(backend: Backend, op: str) -> None:
    assert_close(getattr(matrix(), op)(axis=[1]), getattr(matrix(), op)(axis=1).numpy())
    with pytest.raises(TypeError, match=rf"^{op}: axis must be one int, got \(0, 1\)"):
        getattr(matrix(), op)(axis=(0, 1))


@pytest.mark.parametrize("axes", [np.array([0, 1]), range(2), np.array([-1]), range(0)])
def test_axes_may_be_an_array_or_a_range(backend: Backend, axes: Any) -> None:
    x = Tensor(rng().normal(size=(2, 3)))
    for op in ("sum", "mean", "var", "max", "min"):
        assert_close(getattr(x, op)(axis=axes), getattr(x, op)(axis=tuple(axes)).numpy())


@pytest.mark.parametrize("axis", [True, 1.0, "0", [0, 1.0], [True], np.array([0.0]), np.array([[0]]), {0}])
def test_axes_are_ints(backend: Backend, axis: Any) -> None:
    with pytest.raises(TypeError, match=r"^sum: axis must be an int, a tuple of ints or None, got "):
        matrix().sum(axis)


KEYWORDS: dict[str, Callable[..., Any]] = {
    **{
        op: lambda op=op, **kwargs: getattr(matrix(), op)(**kwargs)
        for op in ("sum", "mean", "var", "max", "min", "argmax", "softmax", "log_softmax", "squeeze", "expand_dims")
    },
    "concatenate": lambda **kwargs: Tensor.concatenate([matrix(), matrix()], **kwargs),
    "stack": lambda **kwargs: Tensor.stack([matrix(), matrix()], **kwargs),
    "split": lambda **kwargs: matrix().split(1, **kwargs),
}


@pytest.mark.parametrize("op", KEYWORDS)
def test_the_names_of_pytorchs_arguments_are_answered(backend: Backend, op: str) -> None:
    with pytest.raises(TypeError, match=rf"^{op}: has no argument dim=; write axis=, as in NumPy$"):
        KEYWORDS[op](dim=0)
    if op in ("sum", "mean", "var", "max", "min", "argmax"):
        with pytest.raises(TypeError, match=rf"^{op}: has no argument keepdim=; write keepdims=, as in NumPy$"):
            KEYWORDS[op](axis=0, keepdim=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        KEYWORDS[op](nonsense=0)


def test_numpys_arguments_are_answered(backend: Backend) -> None:
    x: Any = matrix()
    calls: dict[str, Callable[[], Any]] = {
        r"var: has no argument ddof=; write correction=, as in NumPy": lambda: x.var(ddof=1),
        r"sum: has no argument dtype=; write x\.astype\(dtype\)": lambda: x.sum(dtype="float32"),
        r"mean: has no argument out=; write out = x\.method\(\)": lambda: x.mean(out=x),
        r"clip: has no argument a_min=; write min=": lambda: x.clip(a_min=0.0),
        r"clip: has no argument a_max=; write max=": lambda: x.clip(0.0, a_max=0.0),
        r"tril: has no argument diagonal=; write k=": lambda: x.tril(diagonal=1),
        r"triu: has no argument diagonal=; write k=": lambda: rg.triu(x, diagonal=1),  # type: ignore[call-arg]
        r"diagonal: has no argument dim1=; write axis1=": lambda: x.diagonal(dim1=0, dim2=1),
        r"sort: has no argument descending=; write x\.sort\(axis\)\.flip\(axis\)": lambda: x.sort(descending=True),
        r"backend must be a name or a module, got type; a dtype goes to x\.astype": lambda: x.to(np.float32),
        r"astype: .*; give the name of a dtype, such as 'float32'": lambda: x.astype(torch.float32),
        r"astype: ": lambda: x.astype("object"),
        r"data: must be an array .*; write x\.data of a Tensor": lambda: setattr(x, "data", matrix()),
        r"where: condition must be a mask of bools, got 1j": lambda: rg.where(1j, x, x),
        r"masked_fill: mask must be a mask of bools, got 1j": lambda: x.masked_fill(1j, 0.0),
        r"stack: give a list of tensors, got a int": lambda: Tensor.stack(3),  # type: ignore[arg-type]
        r"concatenate: give a list of tensors, got a NoneType": lambda: Tensor.concatenate(None),  # type: ignore[arg-type]
    }
    for message, call in calls.items():
        with pytest.raises(TypeError, match="^" + message):
            call()
    for name in ("float32", "bfloat16", "int64", "uint8", "bool"):
        with pytest.raises(ValueError, match=rf"^unknown backend '{name}': to cast, write x\.astype\('{name}'\)"):
            x.to(name)


def test_tensors_may_come_from_a_generator(backend: Backend) -> None:
    rows = list(matrix())
    assert_close(Tensor.stack(row for row in rows), matrix().numpy())
    assert_close(Tensor.concatenate(iter(rows)), matrix().numpy().reshape(-1))
    with pytest.raises(ValueError, match=r"^stack: give a list of at least one tensor"):
        Tensor.stack(iter(()))


def test_functions_and_var_name_their_arguments(backend: Backend) -> None:
    for function in (rg.softmax, rg.log_softmax):
        with pytest.raises(TypeError, match=rf"^{function.__name__}: has no argument dim=; write axis="):
            function(matrix(), dim=-1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^var: has no argument unbiased=; write correction="):
        matrix().var(unbiased=False)  # type: ignore[call-arg]


# --- NumPy's functions, PyTorch's methods, operators


@pytest.mark.parametrize(
    ("call", "remedy"),
    [
        (np.sum, "x.sum()"), (np.mean, "x.mean()"), (np.max, "x.max()"), (np.amin, "x.min()"), (np.var, "x.var()"),
        (np.std, "x.std()"), (np.argmax, "x.argmax()"), (np.transpose, "x.transpose()"),
        (np.squeeze, "x.squeeze()"), (np.linalg.norm, "x.norm()"), (np.ravel, "x.ravel()"),
        (partial(np.clip, a_min=0, a_max=1), "x.clip()"), (partial(np.reshape, shape=(3, 2)), "x.reshape()"),
        (lambda x: np.concatenate([x, x]), "Tensor.concatenate(tensors)"),
        (np.zeros_like, "zeros_like(x)"), (np.round, "x.round()"), (np.nan_to_num, "x.nan_to_num()"),
        (lambda x: np.stack([x]), "Tensor.stack(tensors)"), (np.copy, "x.copy()"),
        (np.sort, "x.sort()"), (np.cumsum, "x.cumsum()"), (lambda x: np.outer(x, x), "outer(x, y)"),
        (lambda x: np.einsum("ij->ji", x), "einsum(subscripts, x, y)"),
        (lambda x: np.vstack([x, x]), "Tensor.concatenate(tensors)"), (lambda x: np.dot(x, x), "x @ y"),
        (lambda x: np.where(x.numpy() > 0, x, 0), "where(condition, x, y)"), (np.shape, "x.shape"),
    ],
)  # fmt: skip
def test_numpys_functions_name_the_method(backend: Backend, call: Callable[..., Any], remedy: str) -> None:
    with pytest.raises(TypeError) as caught:
        call(matrix())
    message = str(caught.value)
    assert message.startswith("numpy.")
    assert message.endswith(f": a Tensor is not converted to an array implicitly; call .numpy(), or write {remedy}")


def test_numpys_other_functions_name_the_conversion(backend: Backend) -> None:
    for call in (np.median, lambda x: np.allclose(x, x), np.unique):
        with pytest.raises(TypeError, match=r"^numpy\.\w+: a Tensor is not converted .*; call \.numpy\(\)$"):
            call(matrix())
    for ufunc in (np.exp, np.abs, lambda x: np.matmul(x, x)):
        with pytest.raises(TypeError, match="Tensor"):
            ufunc(matrix())


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("view", "x.reshape(shape)"), ("permute", "x.transpose(axes)"), ("unsqueeze", "x.expand_dims(axis)"),
        ("clamp", "x.clip(min, max)"), ("clone", "x.copy()"), ("numel", "x.size"), ("dim", "x.ndim"),
        ("float", "x.astype('float32')"), ("cuda", "x.to('cupy')"), ("cpu", "x.to('numpy')"), ("mm", "x @ y"),
        ("amax", "x.max()"), ("movedim", "x.moveaxis(source, destination)"), ("t", "x.T"),
        ("gather", "x.take_along_axis(indices, axis)"),
        ("expand", "x.broadcast_to(shape)"), ("add_", "x.data += y"), ("detach_", "x = x.detach()"),
        ("zero_", "x.data = x.backend.zeros(x.shape, x.dtype)"), ("copy_", "x.data = x.backend.copy(y.data)"),
        ("atan2", "x.arctan2(y)"), ("asin", "x.arcsin()"), ("remainder", "x % y"),
        ("fill_", "x.data = x.backend.full(x.shape, value, x.dtype)"),
        ("masked_fill_", "x = x.masked_fill(mask, value)"),
    ],
)  # fmt: skip
def test_pytorchs_methods_name_ours(backend: Backend, name: str, remedy: str) -> None:
    assert hasattr(torch.Tensor, name)
    with pytest.raises(AttributeError) as caught:
        getattr(matrix(), name)
    assert str(caught.value) == f"'Tensor' object has no attribute {name!r}; write {remedy}"


def test_the_remedies_can_be_computed(backend: Backend) -> None:
    """Each expression that the errors advise, where it is complete."""
    from russellgrad.idioms import INSTEAD

    square = rng().random(size=(3, 3))
    names = {
        "x": Tensor(square), "y": Tensor(square), "tensors": [Tensor(square)], "condition": Tensor(square > 0),
        "Tensor": Tensor, "where": rg.where, "min": 0.0, "max": 1.0,
        "zeros_like": rg.zeros_like, "ones_like": rg.ones_like, "full_like": rg.full_like,
        "shape": (9, 1), "axis": 0, "axes": (1, 0), "size": 2, "source": 0, "destination": 1,
        "indices": [[0, 1, 2]], "index": slice(None), "repeats": 2,
        "einsum": rg.einsum, "tensordot": rg.tensordot, "outer": rg.outer, "subscripts": "ij,jk",
    }  # fmt: skip
    for name, expression in INSTEAD.items():
        if "'" in expression or "=" in expression.replace("axis=1", "").replace("!=", "") or name == "expand":
            continue  # needs another backend or dtype, is an assignment, or needs more axes
        assert eval(expression, {}, names) is not None, name


def test_an_unknown_attribute_has_pythons_error(backend: Backend) -> None:
    with pytest.raises(AttributeError, match=r"^'Tensor' object has no attribute 'nonsense'$"):
        matrix().nonsense  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(matrix(), "__array_interface__")


def test_pythons_functions_of_numbers_take_a_tensor(backend: Backend) -> None:
    x = Tensor([7.26, -7.0])
    quotient, rest = divmod(x, 2)
    assert_close(quotient, x.numpy() // 2)
    assert_close(rest, x.numpy() % 2)
    assert_close(divmod(3, x)[1], 3 % x.numpy())
    assert_close(round(x, 1), np.array([7.3, -7.0]))
    assert_close(round(x), np.array([7.0, -7.0]))
    assert (+x) is x
    assert math.sqrt(Tensor(4.0)) == 2.0


# --- Updates in place


@pytest.mark.parametrize("operator", ["+=", "-=", "*=", "/=", "**=", "@="])
def test_updating_a_parameter_within_no_grad_says_what_to_write(backend: Backend, operator: str) -> None:
    w = Tensor([[1.0, 2.0], [3.0, 4.0]])
    given, names = w, {"w": w, "step": backend.asarray(np.full((2, 2), 0.5))}
    with no_grad(), pytest.raises(RuntimeError) as caught:
        exec(f"w {operator} step", names)
    assert f"write w.data {operator} x, with an array x, such as lr * w.grad" in str(caught.value)
    assert names["w"] is given
    assert w.numpy().tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_the_advised_update_keeps_the_parameter(backend: Backend) -> None:
    w, t = Tensor([1.0, 2.0]), torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    given = w
    for _ in range(3):
        (w * w).sum().backward()
        (t * t).sum().backward()
        assert w.grad is not None
        assert t.grad is not None
        with no_grad():
            w.data -= 0.1 * w.grad
        with torch.no_grad():
            t -= 0.1 * t.grad
        w.zero_grad()
        t.grad = None
    assert w is given
    assert w.requires_grad
    assert_close(w, t)


def test_augmented_assignment_makes_a_new_tensor(backend: Backend) -> None:
    """Within no_grad(), too, where the tensor tracks no gradients."""
    total = start = Tensor(0.0)
    for i in range(3):
        total += Tensor([float(i)]).sum()
    total.backward()
    assert start.numpy() == 0.0
    assert_close(start.grad, np.array(1.0))
    with no_grad():
        y = first = start * 2.0
        y -= 1.0
        assert (y.item(), first.item()) == (-1.0, 0.0)
    mask = given = Tensor([True, False])
    mask &= Tensor([False, False])
    assert given.numpy().tolist() == [True, False]


# --- .grad


def test_grad_of_an_intermediate_warns(backend: Backend) -> None:
    x = Tensor([2.0])
    y = x * 3.0
    for tensor in (x, x.detach(), Tensor(np.array([1])), y.detach()):
        assert tensor.grad is None  # a leaf, or without gradients: no warning
    (y * y).backward()
    with pytest.warns(
        UserWarning, match=r"^grad: this tensor is not a leaf \(it comes from 'multiply'\).*\.retain_grad\(\)"
    ) as caught:
        assert y.grad is None
    assert caught[0].filename == __file__
    y = x * 3.0
    y.retain_grad()
    assert y.grad is None
    (y * y).backward()
    assert_close(y.grad, np.array([12.0]))
    z = x * 3.0
    z.zero_grad()
    with no_grad():
        assert (x * 3.0).grad is None


def test_a_tensor_as_grad_gives_its_array(backend: Backend) -> None:
    x, g = Tensor([1.0, 2.0]), Tensor([3.0, 4.0])
    x.grad = g
    assert backend.is_array(x.grad)
    x.grad *= 2.0
    assert_close(x.grad, np.array([6.0, 8.0]))
    assert_close(g, np.array([3.0, 4.0]))
    SGDOptimizer([x], lr=1.0).step()
    assert_close(x, np.array([-5.0, -6.0]))
    with use_other(backend) as other, pytest.raises(TypeError, match=rf"^grad: operands live on '{backend.name}' and"):
        x.grad = Tensor([1.0, 2.0], backend=other)


def use_other(backend: Backend) -> Any:
    """Another backend than the given one, selected."""
    return rg.use_backend("strict" if backend.name != "strict" else "numpy")


def test_grad_has_the_dtype_and_shape_of_the_tensor(backend: Backend) -> None:
    x, scalar = Tensor(np.ones(2, "float32")), Tensor(3.0)
    x.grad = backend.asarray(np.array([1.0, 2.0]))
    assert backend.dtype(x.grad) == "float32"
    scalar.grad = backend.asarray(2.0)
    scalar.grad *= 0.5  # NumPy's result is a scalar
    assert backend.is_array(scalar.grad)
    assert_close(scalar.grad, np.array(1.0))
    for shape in ((3,), (), (1, 2)):
        with pytest.raises(
            ValueError, match=r"^grad: gradient has shape .*, this tensor \(2,\); they must agree: reshape"
        ):
            x.grad = backend.zeros(shape, "float32")
    with pytest.raises(
        TypeError, match=rf"^grad: gradient must be .*; make one with Tensor\(gradient, backend='{backend.name}'\)"
    ):
        x.grad = [1.0, 2.0]


# --- Optimizers


def test_optimizers_take_named_parameters(backend: Backend) -> None:
    class Pair(Module):
        def __init__(self) -> None:
            self.a, self.b = Tensor([1.0]), Tensor([2.0])

    pair = Pair()
    assert SGDOptimizer(pair.named_parameters(), lr=0.1).params == [pair.a, pair.b]  # type: ignore[arg-type]
    groups = [{"params": list(pair.named_parameters()), "weight_decay": 0.5}]
    optimizer = AdamOptimizer(groups, lr=0.1)
    assert [id(p) for p in optimizer.params] == [id(pair.a), id(pair.b)]
    (pair.a * pair.b).sum().backward()
    norm = clip_grad_norm(pair.named_parameters(), 1.0)  # type: ignore[arg-type]
    assert norm.item() == pytest.approx(math.sqrt(5.0), rel=1e-12)


@pytest.mark.parametrize("params", ["tensor", "group", "module", "dict", "none"])
def test_optimizers_refuse_what_is_no_list_of_parameters(backend: Backend, params: str) -> None:
    given: dict[str, Any] = {
        "tensor": matrix(), "group": [{"params": matrix()}], "module": Module(), "dict": {"w": matrix()}, "none": None,
    }  # fmt: skip
    one = r"one Tensor; pass a list, \[p\]"
    got = {"tensor": one, "group": one, "module": "a Module", "dict": "a dict", "none": "a NoneType"}[params]
    with pytest.raises(TypeError, match=rf"^AdamOptimizer: the parameters must be a list of Tensors, .*, got {got}$"):
        AdamOptimizer(given[params], lr=0.1)


def test_clip_grad_norm_takes_one_tensor(backend: Backend) -> None:
    g = rng().normal(size=(3, 4))
    x, t = Tensor(np.zeros((3, 4))), torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    x.grad, t.grad = backend.asarray(g), torch.tensor(g)
    assert clip_grad_norm(x, 1.0).item() == pytest.approx(torch.nn.utils.clip_grad_norm_(t, 1.0).item(), rel=1e-14)
    assert_close(x.grad, t.grad)
    for wrong in ([g], Module(), None):
        with pytest.raises(TypeError, match=r"^clip_grad_norm: the parameters must be "):
            clip_grad_norm(wrong, 1.0)  # type: ignore[arg-type]


# --- Messages that end with what to write


@pytest.mark.parametrize(
    ("a", "b", "remedy"),
    [
        ((2, 3), (2, 3), "a @ b.T or a.T @ b would fit"), ((2, 3), (4, 3), "a @ b.T would fit"),
        ((3, 2), (3, 4), "a.T @ b would fit"), ((2, 3), (4, 2), "b @ a would fit"),
        ((2, 3), (2,), "a.T @ b or b @ a would fit"), ((5, 2, 3), (5, 4, 3), "a @ b.swapaxes(-1, -2) would fit"),
        ((2, 3), (4, 5), "reshape or transpose one of them"), ((3,), (4,), "reshape or transpose one of them"),
    ],
)  # fmt: skip
def test_matmul_names_the_product_that_fits(backend: Backend, a: Any, b: Any, remedy: str) -> None:
    x, y = Tensor(np.ones(a)), Tensor(np.ones(b))
    with pytest.raises(ValueError, match=r"^matmul: \(") as caught:
        x @ y
    assert str(caught.value).endswith("; " + remedy)
    for product in remedy.removesuffix(" would fit").split(" or ") if "fit" in remedy else ():
        eval(product, {}, {"a": x, "b": y})


def test_linear_names_the_transpose_of_pytorchs_weight(backend: Backend) -> None:
    x, weight = Tensor(np.ones((2, 3))), Tensor(np.ones((4, 3)))
    with pytest.raises(ValueError, match=r"^linear: .*: write linear\(x, weight\.T\)$"):
        linear(x, weight)
    assert linear(x, weight.T).shape == (2, 4)


def test_backward_names_what_to_write(backend: Backend) -> None:
    y = matrix() * 2.0
    with pytest.raises(
        RuntimeError, match=r"needs gradient=, an array of that shape; or reduce it .*: y\.sum\(\)\.backward\(\)$"
    ):
        y.backward()
    with pytest.raises(
        RuntimeError, match=r"^backward: this tensor tracks no gradients; .*set x\.requires_grad = True"
    ):
        y.detach().sum().backward()


def test_compile_step_names_what_to_pass(backend: Backend) -> None:
    step = compile_step(lambda x: x)
    for wrong in ([1.0], np.ones(2)):
        with pytest.raises(TypeError, match=r"^compile_step: argument 0 is a .*Tensor\(data, requires_grad=False\)$"):
            step(wrong)
    with pytest.raises(TypeError, match=r"return Tensors, or None: `return loss`, and call \.item\(\) on the result$"):
        compile_step(lambda x: x.item())(Tensor(1.0, requires_grad=False))
    with (
        use_other(backend) as other,
        pytest.raises(TypeError, match=rf"move them to one, with x\.to\('{backend.name}'\)$"),
    ):
        compile_step(lambda x, y: x)(
            Tensor(1.0, backend=backend, requires_grad=False), Tensor(1.0, backend=other, requires_grad=False)
        )


# --- no_grad as a decorator


def test_a_decorated_generator_disables_gradients_in_its_own_code_only(backend: Backend) -> None:
    seen: list[tuple[str, bool]] = []

    def body(n: int) -> Generator[Any, Any, str]:
        try:
            for i in range(n):
                try:
                    received = yield i, (Tensor([1.0]) * 2.0).requires_grad
                    seen.append((f"received {received}", torch.is_grad_enabled() and is_grad_enabled()))
                except KeyError:
                    seen.append(("KeyError", is_grad_enabled()))
        finally:
            seen.append(("finally", is_grad_enabled()))
        return "result"

    generator: Any = no_grad()(body)(3)
    assert next(generator) == (0, False)
    assert (Tensor([1.0]) * 2.0).requires_grad  # in the code between
    assert generator.send(5) == (1, False)
    assert generator.throw(KeyError) == (2, False)
    with pytest.raises(StopIteration) as caught:
        next(generator)
    assert caught.value.value == "result"
    assert seen == [("received 5", False), ("KeyError", False), ("received None", False), ("finally", False)]
    seen.clear()
    closed: Any = no_grad()(body)(3)
    next(closed)
    closed.close()
    assert seen == [("finally", False)]
    assert is_grad_enabled()


def test_a_decorated_generator_passes_its_errors_on(backend: Backend) -> None:
    @no_grad()
    def fails() -> Iterator[int]:
        yield 1
        raise ValueError("its own")

    values = fails()
    next(values)
    with pytest.raises(ValueError, match="its own"):
        next(values)
    assert is_grad_enabled()
    with pytest.raises(KeyError):
        fails().throw(KeyError)  # type: ignore[attr-defined]


def test_the_decorator_works_on_methods_and_without_parentheses(backend: Backend) -> None:
    class Model:
        @no_grad()
        def batches(self, n: int) -> Iterator[bool]:
            for _ in range(n):
                yield is_grad_enabled()

        @no_grad
        def predict(self) -> bool:
            """Docstring."""
            return is_grad_enabled()

        @staticmethod
        @no_grad
        def plain() -> bool:
            return is_grad_enabled()

    model = Model()
    assert list(model.batches(2)) == [False, False]
    assert (model.predict(), Model.plain(), is_grad_enabled()) == (False, False, True)
    assert (Model.predict.__name__, Model.predict.__doc__) == ("predict", "Docstring.")
    context = no_grad()
    with context, context:  # one object can be entered again
        assert not is_grad_enabled()
    assert is_grad_enabled()


@pytest.mark.parametrize("decorator", [no_grad, no_grad(), use_backend("numpy")], ids=["plain", "called", "backend"])
def test_decorators_refuse_what_is_no_function(decorator: Any) -> None:
    with pytest.raises(TypeError, match=r"^(no_grad|use_backend): decorates a function, got 5$"):
        decorator(5)


def test_use_backend_decorates_functions_and_generators() -> None:
    @use_backend("strict")
    def name() -> str:
        return Tensor([1.0]).backend.name

    @use_backend("strict")
    def names() -> Iterator[str]:
        for _ in range(2):
            yield Tensor([1.0]).backend.name

    with use_backend("numpy") as xp:
        assert xp.name == "numpy"
        assert (name(), *names()) == ("strict",) * 3
        for inside in names():
            assert (inside, Tensor([1.0]).backend.name) == ("strict", "numpy")
    with pytest.raises(ValueError, match="unknown backend"):
        use_backend("no_such")(name)()


def test_a_decorated_coroutine_does_not_affect_other_tasks(backend: Backend) -> None:
    @no_grad()
    async def inside() -> list[bool]:
        seen = [is_grad_enabled()]
        await asyncio.sleep(0)
        return [*seen, is_grad_enabled()]

    async def other() -> bool:
        await asyncio.sleep(0)
        return is_grad_enabled()

    async def run() -> Any:
        return await asyncio.gather(inside(), other(), inside()), await inside(), is_grad_enabled()

    assert contextvars.copy_context().run(asyncio.run, run()) == (
        [[False, False], True, [False, False]],
        [False, False],
        True,
    )


def test_async_generators_are_refused_and_classes_warn(backend: Backend) -> None:
    async def stream() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(TypeError, match=r"^no_grad: cannot decorate an async generator function; use `with no_grad"):
        no_grad()(stream)

    class Model:
        def __init__(self) -> None:
            self.enabled = is_grad_enabled()

    with pytest.warns(FutureWarning, match=r"^no_grad: of a class, only the constructor .*; decorate its methods"):
        build = no_grad()(Model)
    assert build().enabled is False
