"""Activations as modules, with PyTorch's names and arguments. Each is also a method of Tensor."""

from typing import Any

from ..module import Module
from ..tensor import Tensor
from .check import check_input


class _Activation(Module):
    """An activation, which takes Tensors of every shape."""

    def __call__(self, x: Any) -> Tensor:
        check_input(self, x)
        out: Tensor = self.forward(x)
        return out


class ReLU(_Activation):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...). Raises TypeError if x is not a Tensor."""
        return x.relu()


class LeakyReLU(_Activation):
    """x where x > 0, else negative_slope x. Its call raises TypeError if `negative_slope` is not a number."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...). Raises TypeError if x is not a Tensor."""
        return x.leaky_relu(self.negative_slope)


class ELU(_Activation):
    """x where x > 0, else alpha (e^x - 1). Clevert et al., arXiv:1511.07289, equation 15.

    Its call raises TypeError if `alpha` is not a number.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...). Raises TypeError if x is not a Tensor."""
        return x.elu(self.alpha)


class GELU(_Activation):
    """x Phi(x), with Phi the cumulative distribution function of N(0, 1). approximate="tanh" approximates it.

    Hendrycks & Gimpel, arXiv:1606.08415, section 2. Its call raises ValueError for another value of `approximate`.
    """

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...). Raises ValueError if `approximate` is not "none" or "tanh"."""
        return x.gelu(self.approximate)


class SiLU(_Activation):
    """x sigmoid(x), also called swish. Ramachandran et al., arXiv:1710.05941."""

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...). Raises TypeError if x is not a Tensor."""
        return x.silu()


class Sigmoid(_Activation):
    """1 / (1 + e^-x)."""

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...). Raises TypeError if x is not a Tensor."""
        return x.sigmoid()


class Tanh(_Activation):
    """Hyperbolic tangent."""

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...). Raises TypeError if x is not a Tensor."""
        return x.tanh()


class Softplus(_Activation):
    """log(1 + e^(beta x)) / beta, a smooth `ReLU`; x itself where beta x > threshold.

    Its call raises ValueError if `beta` is 0.
    """

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        self.beta, self.threshold = beta, threshold

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...). Raises ValueError if beta is 0."""
        return x.softplus(self.beta, self.threshold)


class Softmax(_Activation):
    """e^x / sum e^x along the axis `dim`. Its call raises IndexError for an axis that x does not have."""

    def __init__(self, dim: int = -1) -> None:
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...). Raises IndexError for an axis that x does not have."""
        return x.softmax(self.dim)


class LogSoftmax(_Activation):
    """x - log sum e^x along the axis `dim`. Its call raises IndexError for an axis that x does not have."""

    def __init__(self, dim: int = -1) -> None:
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...). Raises IndexError for an axis that x does not have."""
        return x.log_softmax(self.dim)
