"""gradcheck: compare gradients with central finite differences.

Backward differentiates a scalar. The output y of the tested function is therefore reduced to L = sum(w * y) with random
weights w. (With a plain sum, errors in different elements could cancel.) For each element x_i of each input,

    dL/dx_i  ~  (L(x_i + eps) - L(x_i - eps)) / (2 eps)

The truncation error is of the order of eps^2, the rounding error of the order of 1e-16 / eps. eps = 1e-6 keeps both
small.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import inf, isnan, prod

from .autograd import no_grad
from .backend import Array, Shape
from .dtype import is_float
from .rules import check_int
from .schedules import to_float
from .tensor import Tensor
from .transforms import vjp


class GradientError(AssertionError):
    """Raised by `gradcheck` for a wrong gradient. The message names the input, the element and both derivatives."""


def gradcheck(
    fn: Callable[..., Tensor],
    inputs: Tensor | Sequence[Tensor],
    *,
    order: int = 1,
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
        order: the highest order of derivative to check. 2 checks the gradients of the gradients, too, as
            `torch.autograd.gradgradcheck` does: `vjp` of `fn` is checked as a function of the inputs and of the
            gradient of the output.
        eps: the step of the finite differences.
        atol: the absolute tolerance.
        rtol: the relative tolerance, as a fraction of the finite difference.

    Returns:
        True.

    Raises:
        GradientError: a gradient differs; names the element with the largest error in the first such input.
        TypeError: an input or the output is not a Tensor, or a float one is not float64.
            Also eps, atol or rtol, if it is not a number.
        ValueError: no input requires a gradient, or the output does not depend on one that does. Also eps, if it is not
            positive and finite, atol and rtol, if they are negative or not finite, and order, if it is less than 1.
    """
    check_int("gradcheck: order", order)
    if order < 1:
        raise ValueError(f"gradcheck: order must be at least 1, got {order}")
    eps, atol, rtol = (to_float(v, f"gradcheck: {n}") for n, v in (("eps", eps), ("atol", atol), ("rtol", rtol)))
    if not eps:
        raise ValueError("gradcheck: eps must be positive, got 0")
    given = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    _check_inputs(given)
    leaves = _leaves(given)
    out = fn(*leaves)
    _check_output(out)
    weights = out.backend.normal(out.shape, 0, 0, "float64")  # seed 0: the same weights at each call
    out.backward(weights)

    def loss_with(k: int, array: Array) -> float:
        """L, with the array of the k-th input replaced by `array`."""
        return float((_output_with(fn, given, k, array) * weights).sum())

    for k, leaf in enumerate(leaves):
        if leaf.requires_grad:
            slopes = _slopes(given[k], partial(loss_with, k), eps)
            if wrong := _wrong_elements(leaf, slopes, atol, rtol):
                raise GradientError(_explain(fn, given, k, wrong, eps))
    if order > 1:
        upstream = Tensor(out.backend.normal(out.shape, 1, 0, "float64"), requires_grad=True, backend=out.backend)
        try:
            gradcheck(_gradients_of(fn, given), [*given, upstream], order=order - 1, eps=eps, atol=atol, rtol=rtol)
        except GradientError as error:
            message = str(error).removeprefix("gradcheck: ")
            message = message.replace(f"input {len(given)}, element", "the gradient of the output, element")
            raise GradientError(f"gradcheck: order 2, the vjp of fn: {message}") from None
    return True


def _gradients_of(fn: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Callable[..., Tensor]:
    """A function of the inputs and the output's gradient. It returns the gradients of the inputs, concatenated."""
    positions = [i for i, x in enumerate(inputs) if x.requires_grad]

    def gradients(*args: Tensor) -> Tensor:
        *xs, upstream = args

        def of_chosen(*chosen: Tensor) -> Tensor:
            new = dict(zip(positions, chosen, strict=True))
            return fn(*(new.get(i, x) for i, x in enumerate(xs)))

        _, pull = vjp(of_chosen, *(xs[i] for i in positions))
        found = pull(upstream)
        parts: list[Tensor] = [g.reshape(-1) for g in found]
        return Tensor.concatenate(parts)

    return gradients


def _output_with(fn: Callable[..., Tensor], inputs: list[Tensor], k: int, array: Array) -> Tensor:
    """fn(*inputs), with the array of the k-th input replaced by `array`."""
    with no_grad():
        return fn(*(Tensor(array if i == k else x.data, backend=x.backend) for i, x in enumerate(inputs)))


def _moved(x: Tensor, i: int, eps: float) -> tuple[Array, Array]:
    """x + eps and x - eps in element i, counted in C order, and x elsewhere."""
    xp = x.backend
    step = xp.where(xp.equal(xp.reshape(xp.arange(x.size), x.shape), i), eps, 0.0)
    return xp.add(x.data, step), xp.subtract(x.data, step)


def _slopes(x: Tensor, loss: Callable[[Array], float], eps: float) -> list[float]:
    """The finite difference of `loss` for each element of x, in C order."""
    pairs = (_moved(x, i, eps) for i in range(x.size))
    return [(loss(above) - loss(below)) / (2 * eps) for above, below in pairs]


def _wrong_elements(leaf: Tensor, slopes: list[float], atol: float, rtol: float) -> list[int]:
    """The elements, counted in C order, whose gradient is outside the tolerance; the largest error first."""
    # .grad is None if the output does not depend on this input: the gradient is zero.
    flat = [0.0] * leaf.size if leaf.grad is None else leaf.backend.to_host(leaf.grad).reshape(-1).tolist()
    errors = [_distance(g, slope) for g, slope in zip(flat, slopes, strict=True)]
    wrong = [i for i, error in enumerate(errors) if not error <= atol + rtol * abs(slopes[i])]
    return sorted(wrong, key=errors.__getitem__, reverse=True)


def _explain(fn: Callable[..., Tensor], inputs: list[Tensor], k: int, wrong: list[int], eps: float) -> str:
    """The message for the worst element: its two derivatives of the output element for which they differ most."""
    x, i = inputs[k], wrong[0]
    above, below = (_output_with(fn, inputs, k, array).numpy().reshape(-1) for array in _moved(x, i, eps))
    slopes = ((above - below) / (2 * eps)).tolist()
    leaves = _leaves(inputs)
    out = fn(*leaves)
    xp, positions = out.backend, out.backend.arange(out.size)
    by_backward = []
    for j in range(out.size):
        leaves[k].zero_grad()
        out.backward(xp.astype(xp.equal(xp.reshape(positions, out.shape), j), "float64"), retain_graph=True)
        grad = leaves[k].grad
        by_backward.append(0.0 if grad is None else x.backend.to_host(grad).reshape(-1)[i].item())
    j = max(range(out.size), key=lambda j: _distance(by_backward[j], slopes[j]))
    of = f"output element {_unravel(j, out.shape)}" if out.ndim else "the output"
    return (
        f"gradcheck: input {k}, element {_unravel(i, x.shape)}: backward gives {by_backward[j]:.9g}, finite "
        f"differences {slopes[j]:.9g}, as the derivative of {of} ({len(wrong)} of {x.size} elements of this input "
        "differ)"
    )


def _distance(a: float, b: float) -> float:
    """|a - b|, or infinity if one is nan."""
    return inf if isnan(a - b) else abs(a - b)


def _leaves(inputs: list[Tensor]) -> list[Tensor]:
    return [Tensor(x.data, requires_grad=x.requires_grad, backend=x.backend) for x in inputs]


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
