"""gradcheck: compare gradients with central finite differences.

Backward differentiates a scalar. The output y of the tested function is therefore reduced to L = sum(w * y) with random
weights w. (With a plain sum, errors in different elements could cancel.) For each element x_i of each input,

    dL/dx_i  ~  (L(x_i + eps) - L(x_i - eps)) / (2 eps)

The truncation error is of the order of eps^2, the rounding error of the order of 1e-16 / eps. eps = 1e-6 keeps both
small.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod

from .autograd import no_grad
from .backend import Array, Shape
from .dtype import is_float
from .tensor import Tensor


class GradientError(AssertionError):
    """Raised by `gradcheck` for a wrong gradient. The message names the input, the element and both values."""


def gradcheck(
    fn: Callable[..., Tensor],
    inputs: Tensor | Sequence[Tensor],
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
) -> bool:
    """Check the gradients of `fn(*inputs)` against finite differences, as `torch.autograd.gradcheck` does.

    `fn` is called twice for each element of each input that requires a gradient, so use small inputs. Keep them away
    from points where `fn` is not differentiable, such as 0 for relu. The inputs are copied; their `.grad` does not
    change.

        gradcheck(lambda a, b: (a @ b).tanh(), [Tensor([[1.0, 2.0]]), Tensor([[3.0], [4.0]])])

    Args:
        fn: a deterministic function of the inputs that returns one float64 Tensor.
        inputs: a Tensor or a sequence of Tensors, of any shapes. Float inputs must be float64.
        eps: the step of the finite differences.
        atol: the absolute tolerance.
        rtol: the relative tolerance, as a fraction of the finite difference.

    Returns:
        True.

    Raises:
        GradientError: a gradient differs; names the element with the largest error in the first such input.
        TypeError: an input or the output is not a Tensor, or a float one is not float64.
        ValueError: no input requires a gradient, or the output does not depend on one that does.
    """
    given = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    _check_inputs(given)
    leaves = [Tensor(x.data, requires_grad=x.requires_grad, backend=x.backend) for x in given]
    out = fn(*leaves)
    _check_output(out)
    weights = out.backend.normal(out.shape, 0, 0, "float64")  # seed 0: the same weights at each call
    out.backward(weights)

    def loss_with(k: int, moved: Array) -> float:
        """L, with the array of the k-th input replaced by `moved`."""
        with no_grad():
            operands = [Tensor(moved if i == k else x.data, backend=x.backend) for i, x in enumerate(given)]
            return float((fn(*operands) * weights).sum())

    for k, leaf in enumerate(leaves):
        if leaf.requires_grad:
            _compare(
                k, leaf, _slopes(leaf, partial(loss_with, k), eps), atol, rtol, Tensor(weights, backend=out.backend)
            )
    return True


def _slopes(x: Tensor, loss: Callable[[Array], float], eps: float) -> list[float]:
    """The finite difference of `loss` for each element of x, in C order."""
    xp = x.backend
    positions = xp.reshape(xp.arange(x.size), x.shape)
    slopes = []
    for i in range(x.size):
        step = xp.where(xp.equal(positions, i), eps, 0.0)  # changes element i only
        slopes.append((loss(xp.add(x.data, step)) - loss(xp.subtract(x.data, step))) / (2 * eps))
    return slopes


def _compare(k: int, leaf: Tensor, slopes: list[float], atol: float, rtol: float, weights: Tensor) -> None:
    """Raise GradientError if an element of input k is outside the tolerance; names the one with the largest error."""
    # .grad is None if the output does not depend on this input: the gradient is zero.
    flat = [0.0] * leaf.size if leaf.grad is None else leaf.backend.to_host(leaf.grad).reshape(-1).tolist()
    pairs = list(zip(flat, slopes, strict=True))
    wrong = [i for i, (g, slope) in enumerate(pairs) if not abs(g - slope) <= atol + rtol * abs(slope)]  # nan is wrong
    if not wrong:
        return
    worst = max(wrong, key=lambda i: abs(pairs[i][0] - pairs[i][1]))
    g, slope = pairs[worst]
    place = _unravel(worst, leaf.shape)
    raise GradientError(
        f"gradcheck: input {k}, element {place}: backward gives {g:.9g}, finite differences {slope:.9g} "
        f"({len(wrong)} of {leaf.size} elements of this input differ). Both are derivatives of sum(w * y), where y is "
        f"the output and w is random{_without_weight(g, slope, place, leaf.shape, weights)}"
    )


def _without_weight(g: float, slope: float, place: tuple[int, ...], shape: Shape, weights: Tensor) -> str:
    """The derivatives divided by the weight of the only y that can depend on the element; "" if it is not known."""
    if weights.size == 1:
        w, of = weights.item(), "y"
    elif weights.shape == shape:
        w, of = weights[place].item(), f"y{list(place)}, if the function is elementwise"
    else:
        return ""
    return f". Divided by w = {w:.9g}: {g / w:.9g} and {slope / w:.9g}, the derivatives of {of}"


def _unravel(position: int, shape: Shape) -> tuple[int, ...]:
    """The index of the element at `position` in C order, as `numpy.unravel_index`."""
    return tuple(position // prod(shape[axis + 1 :]) % n for axis, n in enumerate(shape))


def _check_inputs(inputs: list[Tensor]) -> None:
    for k, x in enumerate(inputs):
        if not isinstance(x, Tensor):
            raise TypeError(f"gradcheck: input {k} is a {type(x).__name__}; it must be a Tensor")
        if is_float(x.dtype) and x.dtype != "float64":
            raise TypeError(
                f"gradcheck: input {k} is {x.dtype}; finite differences need float64, use .astype('float64')"
            )
    if not any(x.requires_grad for x in inputs):
        raise ValueError("gradcheck: no input requires a gradient, so there is nothing to check")


def _check_output(out: Tensor) -> None:
    if not isinstance(out, Tensor):
        raise TypeError(f"gradcheck: the function returned a {type(out).__name__}; it must return one Tensor")
    if not out.requires_grad:
        raise ValueError("gradcheck: the output depends on no input that requires a gradient")
    if out.dtype != "float64":
        raise TypeError(f"gradcheck: the output is {out.dtype}; it must be float64")
