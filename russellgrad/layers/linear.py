"""Linear layer."""

import math

from .. import init
from ..functional import linear
from ..module import Module
from ..random import Generator
from ..tensor import Tensor
from .check import check_input, flags, positive


class Linear(Module):
    """Linear map x W^T + b, as `torch.nn.Linear`.

    The initial weight and bias are uniform on [-1 / sqrt(in_features), 1 / sqrt(in_features)).

        Linear(3, 4)(Tensor([[1.0, 2.0, 3.0]])).shape  # (1, 4)

    Args:
        in_features: the length of the input's last axis.
        out_features: the length of the output's last axis.
        bias: whether to add a bias.
        generator: the generator of the initial weights; by default `random.default_generator()`.

    Attributes:
        weight: (out_features, in_features).
        bias: (out_features,), or None.

    Raises:
        ValueError: a size is not positive. TypeError: a size is not an int, or bias not a bool.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, generator: Generator | None = None
    ) -> None:
        positive("Linear", in_features=in_features, out_features=out_features)
        flags("Linear", bias=bias)
        self.in_features, self.out_features = in_features, out_features
        self.weight = init.kaiming_uniform((out_features, in_features), math.sqrt(5), generator=generator)
        bound = 1 / math.sqrt(in_features)
        self.bias = init.uniform((out_features,), -bound, bound, generator=generator) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features). Raises ValueError for an input of another shape."""
        check_input(self, x, lambda shape: shape[-1:] == (self.in_features,), f"(..., {self.in_features})")
        return linear(x, self.weight.T, self.bias)
