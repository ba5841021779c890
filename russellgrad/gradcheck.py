"""A check of gradients that trusts no rule: central finite differences.

Backward gives the gradient of a scalar. So the output y of the function under test is projected on random weights w,
which makes L = sum(w * y): a mistake in any element of the output then shows, as it would not in a plain sum. For each
element x_i of each input,

    dL/dx_i  ~  (L(x_i + eps) - L(x_i - eps)) / (2 eps)

with an error of the order of eps^2 from the formula, and of 1e-16 / eps from rounding: eps = 1e-6 balances the two.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod

from .autograd import no_grad
from .backend import Array, Shape
from .dtype import is_float
from .tensor import Tensor


class GradientError(AssertionError):
    """Backward and finite differences disagree. The message names the input, the element and both numbers."""


def gradcheck(
    fn: Callable[..., Tensor],
    inputs: Tensor | Sequence[Tensor],
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
) -> bool:
    """Compare the gradients of `fn(*inputs)` with finite differences; True, or an exception that says what is off.

    Every element of every input that requires a gradient is moved, so the inputs should be small; and they should be
    away from kinks, as that of relu at 0, where there is no derivative to find. The inputs are copied: their `.grad`
    stays as it is.

    Args:
        fn: a function of the inputs that returns one Tensor of float64, the same at each call.
        inputs: a Tensor or several, of any shapes; the float ones must be float64. Integers are passed on as they are.
        eps: how far an element is moved, both ways.
        atol: how far the two gradients may be apart, beside
        rtol: this fraction of the finite difference.

    Raises:
        GradientError: a gradient is off; names the worst element of the first such input.
        TypeError: an input or the output that is no Tensor or not float64.
        ValueError: no input requires a gradient, or the output does not depend on one that does.
    """
    given = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    _check_inputs(given)
    leaves = [Tensor(x.data, requires_grad=x.requires_grad, backend=x.backend) for x in given]
    out = fn(*leaves)
    _check_output(out)
    weights = out.backend.normal(out.shape, 0, 0, "float64")  # seed 0: the same each time
    out.backward(weights)

    def loss_with(k: int, moved: Array) -> float:
        """L with the k-th input in another place."""
        with no_grad():
            operands = [Tensor(moved if i == k else x.data, backend=x.backend) for i, x in enumerate(given)]
            return float((fn(*operands) * weights).sum())

    for k, leaf in enumerate(leaves):
        if leaf.requires_grad:
            _compare(k, leaf, _slopes(leaf, partial(loss_with, k), eps), atol, rtol)
    return True


def _slopes(x: Tensor, loss: Callable[[Array], float], eps: float) -> list[float]:
    """The finite difference of `loss` for each element of x, in C order."""
    xp = x.backend
    places = xp.reshape(xp.arange(x.size), x.shape)
    slopes = []
    for i in range(x.size):
        step = xp.where(xp.equal(places, i), eps, 0.0)  # all but element i stay
        slopes.append((loss(xp.add(x.data, step)) - loss(xp.subtract(x.data, step))) / (2 * eps))
    return slopes


def _compare(k: int, leaf: Tensor, slopes: list[float], atol: float, rtol: float) -> None:
    """Raise GradientError for the element of input k that is furthest beyond its tolerance, if one is."""
    # No gradient at all is a gradient of zero: the output does not depend on this input.
    flat = [0.0] * leaf.size if leaf.grad is None else leaf.backend.to_host(leaf.grad).reshape(-1).tolist()
    pairs = list(zip(flat, slopes, strict=True))
    wrong = [i for i, (g, slope) in enumerate(pairs) if not abs(g - slope) <= atol + rtol * abs(slope)]  # nan is wrong
    if not wrong:
        return
    worst = max(wrong, key=lambda i: abs(pairs[i][0] - pairs[i][1]))
    g, slope = pairs[worst]
    raise GradientError(
        f"gradcheck: input {k}, element {_index_of(worst, leaf.shape)}: backward gives {g:.9g}, finite differences "
        f"{slope:.9g} ({len(wrong)} of {leaf.size} elements of this input are off)"
    )


def _index_of(place: int, shape: Shape) -> tuple[int, ...]:
    """The index of the element that stands at `place` in C order."""
    return tuple(place // prod(shape[axis + 1 :]) % n for axis, n in enumerate(shape))


def _check_inputs(inputs: list[Tensor]) -> None:
    for k, x in enumerate(inputs):
        if not isinstance(x, Tensor):
            raise TypeError(f"gradcheck: input {k} is a {type(x).__name__}; it must be a Tensor")
        if is_float(x.dtype) and x.dtype != "float64":
            raise TypeError(f"gradcheck: input {k} is {x.dtype}, too coarse for this; use .astype('float64')")
    if not any(x.requires_grad for x in inputs):
        raise ValueError("gradcheck: no input requires a gradient, so there is nothing to check")


def _check_output(out: Tensor) -> None:
    if not isinstance(out, Tensor):
        raise TypeError(f"gradcheck: the function returned a {type(out).__name__}; it must return one Tensor")
    if not out.requires_grad:
        raise ValueError("gradcheck: the output depends on no input that requires a gradient")
    if out.dtype != "float64":
        raise TypeError(f"gradcheck: the output is {out.dtype}, too coarse for this; it must be float64")
