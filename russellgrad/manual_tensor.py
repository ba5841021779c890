"""Reverse-mode differentiation in one file, to be read from top to bottom. It needs NumPy and nothing else of here.

The idea. A program turns numbers into numbers by small steps, say

    a = w * x;    b = a + c;    loss = b * b

and we ask how the loss changes when w changes a little: dloss/dw. The chain rule answers step by step, from the end:

    dloss/db = 2 b              how the last step turns a change of b into one of the loss
    dloss/da = dloss/db * 1     b = a + c passes a change of a on as it is
    dloss/dw = dloss/da * x     a = w * x multiplies a change of w by x

Each line needs the line above and one *local* derivative, which knows a single operation. So every operation below
writes down, beside its result, how to turn the gradient of its output into those of its operands. Going backward
through the steps once then gives the derivative of the loss with respect to everything, for about the price of
computing the loss. That is all there is to it; the rest of the file is that list of operations.

`russellgrad.Tensor` does the same with broadcasting, dtypes, GPUs and less memory. This one asks for operands of one
shape, so that nothing hides the idea.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Pull = Callable[[Array], Array]  # the gradient of an operation's output -> that of one operand


class Tensor:
    """An array, its gradient, and the step that made it.

    `parents` are the operands of that step, and `pulls` its local derivatives, one for each parent. A tensor that you
    make yourself has neither: it is a leaf. Together, tensors and their parents are a graph without cycles.
    """

    __array_ufunc__ = None  # so that array * tensor is refused, and not done element by element

    def __init__(self, data: Any, parents: "Sequence[Tensor]" = (), pulls: Sequence[Pull] = ()) -> None:
        self.data: Array = np.array(data, dtype=float)
        self.grad: Array | None = None  # dloss/dself, once backward has run
        self.parents, self.pulls = parents, pulls

    @property
    def shape(self) -> tuple[int, ...]:
        return np.shape(self.data)

    def __repr__(self) -> str:
        return f"Tensor({self.data}, grad={self.grad})"

    # --- Operations. g is the gradient of the result, dloss/dresult, and has its shape.

    # fmt: off
    def __add__(self, other: "Tensor | float") -> "Tensor":
        a, b = self, self._same(other, "+")
        return Tensor(a.data + b.data, (a, b), (
            lambda g: g,                                    # d(a + b)/da = 1
            lambda g: g,                                    # d(a + b)/db = 1
        ))

    def __mul__(self, other: "Tensor | float") -> "Tensor":
        a, b = self, self._same(other, "*")
        return Tensor(a.data * b.data, (a, b), (
            lambda g: g * b.data,                           # d(a b)/da = b
            lambda g: g * a.data,                           # d(a b)/db = a
        ))

    def __truediv__(self, other: "Tensor | float") -> "Tensor":
        a, b = self, self._same(other, "/")
        return Tensor(a.data / b.data, (a, b), (
            lambda g: g / b.data,                           # d(a / b)/da = 1 / b
            lambda g: -g * a.data / b.data**2,              # d(a / b)/db = -a / b^2
        ))

    def __pow__(self, n: float) -> "Tensor":
        if not isinstance(n, (int, float)):
            raise TypeError(f"**: the exponent must be a number, got a {type(n).__name__}")
        slope = n * self.data ** (n - 1) if n else np.zeros(self.shape)
        return Tensor(self.data**n, (self,), (lambda g: g * slope,))            # d(a^n)/da = n a^(n-1)

    def __matmul__(self, other: "Tensor") -> "Tensor":
        a, b = self, other
        if not isinstance(b, Tensor) or a.data.ndim != 2 or b.data.ndim != 2 or a.shape[1] != b.shape[0]:
            raise ValueError(f"@: needs shapes (n, k) and (k, m), got {a.shape} and {np.shape(getattr(b, 'data', b))}")
        # The result is C = A B, c_ij = sum_k a_ik b_kj. So a_ik meets the loss through all c_ij of its row, each time
        # with weight b_kj: dloss/da_ik = sum_j g_ij b_kj, which is G B^T. The same for b down the columns: A^T G.
        return Tensor(a.data @ b.data, (a, b), (
            lambda g: g @ b.data.T,                         # (n, m) @ (m, k) -> (n, k)
            lambda g: a.data.T @ g,                         # (k, n) @ (n, m) -> (k, m)
        ))

    def exp(self) -> "Tensor":
        out = np.exp(self.data)
        return Tensor(out, (self,), (lambda g: g * out,))                       # d(e^a)/da = e^a

    def log(self) -> "Tensor":
        return Tensor(np.log(self.data), (self,), (lambda g: g / self.data,))   # d(log a)/da = 1 / a

    def tanh(self) -> "Tensor":
        out = np.tanh(self.data)
        return Tensor(out, (self,), (lambda g: g * (1 - out * out),))           # d(tanh a)/da = 1 - tanh^2 a

    def relu(self) -> "Tensor":
        on = self.data > 0
        return Tensor(self.data * on, (self,), (lambda g: g * on,))             # 1 where a > 0, else 0

    def sum(self) -> "Tensor":
        # Every element has weight 1 in the sum, so each gets the one number g.
        return Tensor(np.sum(self.data), (self,), (lambda g: np.full(self.shape, g),))

    def transpose(self) -> "Tensor":
        return Tensor(self.data.T, (self,), (lambda g: g.T,))                   # elements move, and move back

    def reshape(self, *shape: int) -> "Tensor":
        return Tensor(self.data.reshape(shape), (self,), (lambda g: g.reshape(self.shape),))

    # What these are made of has its derivatives above.
    T = property(transpose)
    def mean(self) -> "Tensor":                              return self.sum() / self.data.size
    def __neg__(self) -> "Tensor":                           return self * -1.0
    def __sub__(self, other: "Tensor | float") -> "Tensor":  return self + -other
    def __radd__(self, other: float) -> "Tensor":            return self + other
    def __rmul__(self, other: float) -> "Tensor":            return self * other
    def __rsub__(self, other: float) -> "Tensor":            return -self + other
    def __rtruediv__(self, other: float) -> "Tensor":        return self._same(other, "/") / self
    # fmt: on

    def _same(self, other: "Tensor | float", symbol: str) -> "Tensor":
        """The other operand as a Tensor of this shape: a number is repeated, another shape is an error."""
        if isinstance(other, (int, float)):
            return Tensor(np.full(self.shape, other))
        if not isinstance(other, Tensor):
            raise TypeError(f"{symbol}: the other operand must be a Tensor or a number, got a {type(other).__name__}")
        if other.shape != self.shape:
            raise ValueError(
                f"{symbol}: shapes {self.shape} and {other.shape} differ; here both operands have one shape, "
                "russellgrad.Tensor is the one that broadcasts"
            )
        return other

    # --- Backward

    def backward(self) -> None:
        """Add dself/dleaf to `.grad` of every leaf that this one number was made from. Other tensors get theirs too."""
        if self.data.size != 1:
            raise ValueError(f"backward: starts from one number, got shape {self.shape}; take the sum or the mean")
        grads: dict[int, Array] = {id(self): np.ones(self.shape)}  # dself/dself = 1
        for tensor in reversed(self._in_order()):
            # All that was made from this tensor has been visited, so its gradient is complete.
            g = grads.pop(id(tensor))
            tensor.grad = g.copy() if tensor.grad is None else tensor.grad + g
            for parent, pull in zip(tensor.parents, tensor.pulls, strict=True):
                # A tensor that was used twice affects the loss in two ways, and the two add up.
                grads[id(parent)] = grads.get(id(parent), 0.0) + pull(g)

    def _in_order(self) -> "list[Tensor]":
        """The graph with each tensor after its parents (a topological order).

        Written as a depth-first walk on a stack of our own: one function call a step would overflow Python's.
        """
        order: list[Tensor] = []
        seen = {id(self)}
        stack = [(self, iter(self.parents))]
        while stack:
            tensor, parents = stack[-1]
            parent = next(parents, None)
            if parent is None:  # all parents are in the list: now this one may be
                order.append(tensor)
                stack.pop()
            elif id(parent) not in seen:
                seen.add(id(parent))
                stack.append((parent, iter(parent.parents)))
        return order


if __name__ == "__main__":
    # Fit y = 3 x - 1 by gradient descent: find slope and offset from five points.
    x = Tensor([[-2.0], [-1.0], [0.0], [1.0], [2.0]])  # (5, 1)
    y = 3 * x - 1
    ones = Tensor(np.ones((5, 1)))
    slope, offset = Tensor([[0.0]]), Tensor([[0.0]])
    for step in range(101):
        error = x @ slope + ones @ offset - y  # (5, 1)
        loss = (error**2).mean()
        slope.grad = offset.grad = None  # gradients add up, so start from none
        loss.backward()
        if step % 20 == 0:
            print(f"step {step:3}: loss {loss.data:.1e}, fit {slope.data.item():.4f} x + {offset.data.item():.4f}")
        for parameter in (slope, offset):
            assert parameter.grad is not None
            parameter.data = parameter.data - 0.1 * parameter.grad  # downhill
