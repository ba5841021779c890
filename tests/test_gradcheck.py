"""gradcheck and custom_op: correct rules pass, wrong rules are reported, custom ops work like built-in ops."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import russellgrad as rg
from russellgrad import GradientError, Joint, Tensor, custom_op, gradcheck
from russellgrad.backend import Backend
from tests.helpers import assert_close, check_against_torch, rng


def normal(*shape: int, seed: int = 0) -> Tensor:
    return Tensor(rng(seed).normal(size=shape))


def positive(*shape: int, seed: int = 0) -> Tensor:
    return Tensor(np.abs(rng(seed).normal(size=shape)) + 0.5)


# --- Correct rules pass

CORRECT: dict[str, tuple[Callable[..., Tensor], Callable[[], list[Tensor]]]] = {
    "one input": (Tensor.tanh, lambda: [normal(2, 3)]),
    "several inputs": (
        lambda a, b, c: (a * b - c).exp() / (b * b + 1),
        lambda: [normal(2, 3, seed=i) for i in range(3)],
    ),
    "broadcasting": (lambda a, b: a * b + a / (b * b + 1), lambda: [normal(2, 1, 3), normal(4, 1, seed=1)]),
    "0-d": (lambda a, b: a * b.sin(), lambda: [Tensor(2.0), normal(3)]),
    "empty": (lambda a, b: a.sum(0) + b, lambda: [normal(0, 3), normal(3)]),
    "powers": (lambda a, b: a**b + a**3 + 2**b, lambda: [positive(4), normal(4, seed=1)]),
    "reductions": (lambda a: a.var(0, correction=1) + a.max(0) - a.mean(0), lambda: [normal(4, 3)]),
    "indices": (lambda a: a[[0, 0, 1], ::-1], lambda: [normal(2, 3)]),
    "matmul": (lambda a, b: a @ b, lambda: [normal(2, 3, 4), normal(4, 2, seed=1)]),
    "layer_norm": (rg.layer_norm, lambda: [normal(2, 4), normal(4, seed=1), normal(4, seed=2)]),
    "attention": (
        lambda q, k, v: rg.attention(q, k, v, causal=True),
        lambda: [normal(2, 3, 2), normal(2, 4, 2, seed=1), normal(2, 4, 3, seed=2)],
    ),
    "cross_entropy": (lambda x: rg.cross_entropy(x, [1, 0, 2]), lambda: [normal(3, 4)]),
    "gelu": (lambda a: a.gelu() + a.gelu("tanh"), lambda: [normal(5)]),
}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", CORRECT)
def test_correct_rules_pass(backend: Backend, name: str, order: int) -> None:
    fn, make = CORRECT[name]
    assert gradcheck(fn, make(), order=order) is True


def test_gradcheck_takes_a_single_tensor(backend: Backend) -> None:
    assert gradcheck(Tensor.exp, normal(3))


def test_constants_and_integers_are_passed_on(backend: Backend) -> None:
    constant = Tensor([1.0, 2.0], requires_grad=False)
    index = Tensor(np.array([1, 0, 1]))

    def fn(x: Tensor, c: Tensor, i: Tensor) -> Tensor:
        assert (c.requires_grad, i.dtype) == (False, np.int64)
        return (x * c)[i]

    assert gradcheck(fn, [normal(2), constant, index])


def test_gradcheck_does_not_change_its_inputs(backend: Backend) -> None:
    x = normal(3)
    before = x.numpy()
    gradcheck(Tensor.exp, x)
    assert x.grad is None
    assert_close(x, before)


def test_an_input_without_effect_has_a_zero_gradient(backend: Backend) -> None:
    assert gradcheck(lambda a, b: a * 2.0, [normal(2), normal(3)])


# --- Wrong rules are reported


@custom_op
def wrong_at_one_place(xp: Backend, a: Any, b: Any) -> Any:
    """a * b, with a wrong gradient of b in element (1, 2) only."""
    error = xp.reshape(xp.where(xp.equal(xp.arange(6), 5), 2.0, 1.0), (2, 3))
    return (
        xp.multiply(a, b),
        lambda g: xp.multiply(g, b),
        lambda g: xp.multiply(error, xp.multiply(g, a)),
    )


MESSAGE = re.compile(
    r"gradcheck: input (\d+), element (\(.*?\)): backward gives (\S+), finite differences (\S+), as the derivative of "
    r"(the output|output element \(.*?\)) \((\d+) of (\d+) elements of this input differ\)"
)


def failure(fn: Callable[..., Tensor], inputs: Tensor | list[Tensor]) -> tuple[str, ...]:
    """The parts of gradcheck's message: input, element, the two derivatives, output element, wrong of all elements."""
    with pytest.raises(GradientError) as caught:
        gradcheck(fn, inputs)
    assert isinstance(caught.value, AssertionError)
    found = MESSAGE.fullmatch(str(caught.value))
    assert found is not None, str(caught.value)
    return found.groups()


def test_the_error_names_the_element_and_the_two_derivatives(backend: Backend) -> None:
    a, b = Tensor(np.full((2, 3), 3.0)), normal(2, 3)
    k, element, by_backward, by_differences, of, wrong, size = failure(wrong_at_one_place, [a, b])
    assert (k, element, of, wrong, size) == ("1", "(1, 2)", "output element (1, 2)", "1", "6")
    assert float(by_backward) == pytest.approx(6.0, rel=1e-6)  # a is 3, and the rule doubles it
    assert float(by_differences) == pytest.approx(3.0, rel=1e-6)


WRONG: dict[str, Callable[..., Any]] = {
    "scaled": lambda xp, a: (xp.exp(a), lambda g: xp.multiply(xp.exp(a), xp.multiply(g, 1.01))),
    "wrong sign": lambda xp, a: (xp.cos(a), lambda g: xp.multiply(g, xp.sin(a))),
    "ignores g": lambda xp, a: (xp.exp(a), lambda g: xp.exp(a)),
    "permutes elements": lambda xp, a: (xp.add(a, 0), lambda g: xp.getitem(g, (slice(None, None, -1),))),
    "missing term": lambda xp, a: (xp.add(a, xp.exp(a)), lambda g: g),
    "nan": lambda xp, a: (xp.add(a, 0), lambda g: xp.full(g.shape, float("nan"), "float64")),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_rules_are_caught(backend: Backend, name: str) -> None:
    """gradcheck uses a random upstream gradient, since "permutes elements" would pass with ones."""
    with pytest.raises(GradientError, match=r"^gradcheck: input 0, element \(\d,\): backward gives "):
        gradcheck(custom_op(WRONG[name]), normal(4))


@custom_op
def wrong_at_order_two(xp: Backend, a: Any) -> Any:
    """a^3. The pullback is right to 1e-12, but floor has no slope."""
    constant = xp.multiply(xp.floor(xp.multiply(a, 1e12)), 1e-12)
    return xp.power(a, 3), lambda g: xp.multiply(g, xp.multiply(xp.multiply(constant, constant), 3))


def test_order_two_finds_wrong_gradients_of_gradients(backend: Backend) -> None:
    assert gradcheck(wrong_at_order_two, normal(3))
    with pytest.raises(
        GradientError, match=r"^gradcheck: order 2, the vjp of fn: input 0, element \(\d,\): backward gives 0"
    ):
        gradcheck(wrong_at_order_two, normal(3), order=2)


def test_order_three(backend: Backend) -> None:
    assert gradcheck(lambda a, b: (a * b).tanh(), [normal(2), normal(2, seed=1)], order=3)


@pytest.mark.parametrize(("order", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_order_must_be_a_positive_int(backend: Backend, order: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="gradcheck: order must be"):
        gradcheck(Tensor.exp, normal(2), order=order)


def test_a_forgotten_gradient_is_caught(backend: Backend) -> None:
    """`b.detach()` removes the gradient of b."""
    with pytest.raises(GradientError, match=r"^gradcheck: input 1, element \(\): backward gives 0, "):
        gradcheck(lambda a, b: a * b.detach(), [normal(3), Tensor(2.0)])


def test_the_error_of_a_scalar_output_gives_its_derivative(backend: Backend) -> None:
    wrong_sum = custom_op(lambda xp, a: (xp.sum(xp.multiply(a, a)), lambda g: xp.multiply(g, a)))
    k, element, by_backward, by_differences, of, wrong, size = failure(wrong_sum, Tensor([3.0, 4.0]))
    assert (k, element, of, wrong, size) == ("0", "(1,)", "the output", "2", "2")
    assert [float(by_backward), float(by_differences)] == pytest.approx([4.0, 8.0], rel=1e-6)


def test_the_error_of_a_product_gives_an_entry_of_the_jacobian(backend: Backend) -> None:
    """The derivative of y = w x with the transposed matrix: the message has the entry that is most wrong."""
    matrix = np.array([[1.0, 2.0], [7.0, 3.0]])

    def product(xp: Backend, x: Any) -> Any:
        w = xp.asarray(matrix)
        return xp.matmul(w, x), lambda g: xp.matmul(w, g)

    _, element, by_backward, by_differences, of, *_ = failure(custom_op(product), Tensor([1.0, 2.0]))
    i, j = int(element[1]), int(of[len("output element (")])
    assert [float(by_backward), float(by_differences)] == pytest.approx([matrix[i, j], matrix[j, i]], rel=1e-6)
    assert {i, j} == {0, 1}


def test_gradcheck_uses_the_given_tolerances(backend: Backend) -> None:
    nearly = custom_op(WRONG["scaled"])
    x = normal(4)
    assert gradcheck(nearly, x, rtol=0.02)
    assert gradcheck(nearly, x, atol=1.0)
    with pytest.raises(GradientError):
        gradcheck(Tensor.exp, x, atol=0, rtol=0)  # finite differences are never exact


# --- Invalid inputs


def test_invalid_inputs_and_outputs_raise(backend: Backend) -> None:
    x = normal(3)
    with pytest.raises(
        TypeError, match=r"^gradcheck: input 1 is float32; finite differences need float64, use .astype"
    ):
        gradcheck(lambda a, b: a * b, [x, Tensor([1.0], dtype="float32")])
    with pytest.raises(TypeError, match=r"^gradcheck: input 0 is a list; it must be a Tensor"):
        gradcheck(Tensor.exp, [[1.0]])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"^gradcheck: no input requires a gradient"):
        gradcheck(Tensor.exp, x.detach())
    with pytest.raises(ValueError, match=r"^gradcheck: no input requires a gradient"):
        gradcheck(Tensor.exp, [])
    with pytest.raises(TypeError, match=r"^gradcheck: the function returned a tuple; it must return one Tensor"):
        gradcheck(lambda a: (a, a), x)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match=r"^gradcheck: the output depends on no input that requires a gradient"):
        gradcheck(lambda a: a > 0, x)
    with pytest.raises(TypeError, match=r"^gradcheck: the output is float32; it must be float64"):
        gradcheck(lambda a: a.astype("float32"), x)


# --- Custom ops


@custom_op
def softplus(xp: Backend, a: Any) -> Any:
    """log(1 + e^a)."""
    return xp.log(xp.add(xp.exp(a), 1)), lambda g: xp.divide(g, xp.add(xp.exp(xp.negative(a)), 1))


@custom_op
def scaled_add(xp: Backend, a: Any, b: Any, *, scale: float) -> Any:
    """a + scale * b. The engine handles broadcasting, so the pullbacks need not."""
    return xp.add(a, xp.multiply(b, scale)), lambda g: g, lambda g: xp.multiply(g, scale)


@custom_op
def product_joint(xp: Backend, a: Any, b: Any) -> Any:
    """a * b with a joint pullback, which receives the flags of the operands that need a gradient."""

    def pull(g: Any, needs: Any) -> Any:
        needs_seen.append(list(needs))
        return xp.multiply(g, b) if needs[0] else None, xp.multiply(g, a) if needs[1] else None

    return xp.multiply(a, b), Joint(pull)


needs_seen: list[list[bool]] = []


@custom_op
def step(xp: Backend, a: Any) -> Any:
    """1 where a > 0, else 0: piecewise constant, so it has no gradient."""
    return xp.where(xp.greater(a, 0), 1.0, 0.0), None


def test_a_custom_op_agrees_with_pytorch(backend: Backend) -> None:
    assert (softplus.__name__, softplus.__doc__) == ("softplus", "log(1 + e^a).")
    check_against_torch(softplus, torch.nn.functional.softplus, rng().normal(size=(2, 3)))
    check_against_torch(softplus, torch.nn.functional.softplus, rng().normal(size=(2, 3)), dtype="float32")
    assert gradcheck(softplus, normal(2, 3))
    assert "op=softplus" in repr(softplus(normal(1)))


@pytest.mark.parametrize(("a", "b"), [((2, 3), (3,)), ((3,), (2, 3)), ((2, 1), (1, 3)), ((), (4,))])
def test_a_custom_op_broadcasts_and_takes_parameters(backend: Backend, a: Any, b: Any) -> None:
    check_against_torch(
        lambda x, y: scaled_add(x, y, scale=2.5),
        lambda x, y: x + 2.5 * y,
        rng().normal(size=a),
        rng(1).normal(size=b),
    )
    assert gradcheck(lambda x, y: scaled_add(x, y, scale=2.5), [normal(*a), normal(*b, seed=1)])


def test_a_custom_op_takes_numbers_and_arrays(backend: Backend) -> None:
    x = Tensor([1.0, 2.0])
    assert_close(scaled_add(x, 3, scale=2.0), np.array([7.0, 8.0]))
    assert_close(scaled_add(x.data, x, scale=2.0), np.array([3.0, 6.0]))


def test_a_custom_op_with_a_joint_pullback(backend: Backend) -> None:
    a, b = normal(2, 3), normal(3, seed=1)
    assert gradcheck(product_joint, [a, b])
    for needs in ((True, True), (True, False), (False, True)):
        needs_seen.clear()
        check_against_torch(
            product_joint, lambda x, y: x * y, rng().normal(size=(2, 3)), rng(1).normal(size=3), needs=needs
        )
        assert needs_seen == [list(needs)]


def test_a_custom_op_without_a_gradient(backend: Backend) -> None:
    assert not step(normal(3)).requires_grad
    check_against_torch(lambda x: x * step(x), lambda x: x * (x > 0).to(x.dtype), rng().normal(size=4))


def test_errors_of_a_custom_op_name_the_op(backend: Backend) -> None:
    with pytest.raises(ValueError, match=r"^scaled_add: \(2,\) and \(3,\), scale=1.0: .*broadcast"):
        scaled_add(normal(2), normal(3), scale=1.0)


@pytest.mark.parametrize("name", ["eps", "atol", "rtol"])
@pytest.mark.parametrize("bad", [None, "1e-6", True, float("nan"), -1.0, float("inf"), 0])
def test_steps_and_tolerances_are_numbers(backend: Backend, name: str, bad: Any) -> None:
    if name == "eps" or bad != 0:
        with pytest.raises((TypeError, ValueError), match=rf"^gradcheck: {name} must "):
            gradcheck(Tensor.tanh, normal(2), **{name: bad})
