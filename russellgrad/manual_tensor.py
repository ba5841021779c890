"""Reverse-mode automatic differentiation in one file. Read it from top to bottom. It needs only NumPy.

Suppose that a program computes a loss in small steps:

    a = w * x
    b = a + c
    loss = b * b

How does the loss change when we change w a little? The chain rule computes this derivative, dloss/dw, step by step,
starting at the loss:

    dloss/db = 2 * b            because loss = b * b
    dloss/da = dloss/db * 1     because b = a + c, and so db/da = 1
    dloss/dw = dloss/da * x     because a = w * x, and so da/dw = x

Each line uses the result of the line above and one local derivative, the derivative of a single operation. Therefore
every operation in this file returns its result together with its local derivatives: functions that turn the gradient
of the result into the gradients of the operands. One walk backward through all operations then gives the derivative of
the loss with respect to every tensor, for about the cost of computing the loss. This is backpropagation.

`russellgrad.Tensor` does the same, and adds broadcasting, dtypes and GPUs. To keep the idea visible, this Tensor
requires that both operands of an operation have the same shape.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Pullback = Callable[[Array], Array]  # takes the gradient of the result, returns the gradient of one operand


class Tensor:
    """An array, its gradient, and the operation that computed it.

    `parents` are the operands of the operation. `pullbacks` are its local derivatives, one for each parent. A tensor
    that you create yourself is a leaf: it has no parents. The tensors and their parents form a directed acyclic graph.
    """

    __array_ufunc__ = None  # makes `array * tensor` an error; NumPy would multiply element by element

    def __init__(self, data: Any, parents: "Sequence[Tensor]" = (), pullbacks: Sequence[Pullback] = ()) -> None:
        self.data: Array = np.array(data, dtype=float)
        self.grad: Array | None = None  # dloss/dself; backward() computes it
        self.parents, self.pullbacks = parents, pullbacks

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""
        return np.shape(self.data)

    def __repr__(self) -> str:
        return f"Tensor({self.data}, grad={self.grad})"

    # --- Operations. In each pullback, g is the gradient of the result, dloss/dresult. It has the shape of the result.

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
        # The result is C = A B, that is, c_ij = sum_k a_ik b_kj. The element a_ik occurs in every c_ij of row i, with
        # the factor b_kj. So dloss/da_ik = sum_j g_ij b_kj, which is G B^T. In the same way, dloss/dB is A^T G.
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
        positive = self.data > 0
        return Tensor(self.data * positive, (self,), (lambda g: g * positive,)) # 1 where a > 0, else 0

    def sum(self) -> "Tensor":
        # d(sum)/da_i = 1, so the gradient of every element is the number g.
        return Tensor(np.sum(self.data), (self,), (lambda g: np.full(self.shape, g),))

    def transpose(self) -> "Tensor":
        return Tensor(self.data.T, (self,), (lambda g: g.T,))                   # the gradient is transposed back

    def reshape(self, *shape: int) -> "Tensor":
        return Tensor(self.data.reshape(shape), (self,), (lambda g: g.reshape(self.shape),))

    # These combine the operations above, so they need no derivatives of their own.
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
        """The other operand. A number becomes a tensor of this shape; a tensor of another shape is an error."""
        if isinstance(other, (int, float)):
            return Tensor(np.full(self.shape, other))
        if not isinstance(other, Tensor):
            raise TypeError(f"{symbol}: the other operand must be a Tensor or a number, got a {type(other).__name__}")
        if other.shape != self.shape:
            raise ValueError(
                f"{symbol}: shapes {self.shape} and {other.shape} differ; use operands of the same shape, or "
                "russellgrad.Tensor, which broadcasts"
            )
        return other

    # --- Backward

    def backward(self) -> None:
        """Compute dself/dt for every tensor t in the graph of this single number, and add it to t.grad."""
        if self.data.size != 1:
            raise ValueError(f"backward: starts from one number, got shape {self.shape}; take the sum or the mean")
        grads: dict[int, Array] = {id(self): np.ones(self.shape)}  # dself/dself = 1
        for tensor in reversed(self._topological_order()):
            # All operations on this tensor have been visited, so its gradient is complete.
            g = grads.pop(id(tensor))
            tensor.grad = g.copy() if tensor.grad is None else tensor.grad + g
            for parent, pullback in zip(tensor.parents, tensor.pullbacks, strict=True):
                # A tensor that is used twice gets the sum of two gradients.
                grads[id(parent)] = grads.get(id(parent), 0.0) + pullback(g)

    def _topological_order(self) -> "list[Tensor]":
        """All tensors in the graph, each after its parents.

        A depth-first search with an explicit stack: recursion would exceed Python's limit in a deep graph.
        """
        order: list[Tensor] = []
        seen = {id(self)}
        stack = [(self, iter(self.parents))]
        while stack:
            tensor, parents = stack[-1]
            parent = next(parents, None)
            if parent is None:  # all parents are in the list, so this tensor is next
                order.append(tensor)
                stack.pop()
            elif id(parent) not in seen:
                seen.add(id(parent))
                stack.append((parent, iter(parent.parents)))
        return order


if __name__ == "__main__":
    # Fit a line to five points of y = 3 x - 1 by gradient descent.
    x = Tensor([[-2.0], [-1.0], [0.0], [1.0], [2.0]])  # (5, 1)
    y = 3 * x - 1
    ones = Tensor(np.ones((5, 1)))
    slope, offset = Tensor([[0.0]]), Tensor([[0.0]])
    for step in range(101):
        error = x @ slope + ones @ offset - y  # (5, 1)
        loss = (error**2).mean()
        slope.grad = offset.grad = None  # backward() adds to .grad, so reset it
        loss.backward()
        if step % 20 == 0:
            print(f"step {step:3}: loss {loss.data:.1e}, fit {slope.data.item():.4f} x + {offset.data.item():.4f}")
        for parameter in (slope, offset):
            assert parameter.grad is not None
            parameter.data = parameter.data - 0.1 * parameter.grad  # a step against the gradient
