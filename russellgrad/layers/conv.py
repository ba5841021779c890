"""Convolution layers."""

import math
from typing import ClassVar

from .. import init
from ..module import Module
from ..ops.convolution import Sizes, check_groups, convolve, paddings, sizes
from ..random import Generator
from ..tensor import Tensor
from .check import flags, positive


class _Conv(Module):
    """A convolution over the last `n_axes` axes."""

    n_axes: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        generator: Generator | None = None,
    ) -> None:
        name = type(self).__name__
        positive(name, in_channels=in_channels, out_channels=out_channels)
        check_groups(name, groups, in_channels, out_channels)
        flags(name, bias=bias)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = sizes(name, "kernel_size", kernel_size, self.n_axes, 1)
        self.stride = sizes(name, "stride", stride, self.n_axes, 1)
        self.padding = padding
        self.dilation = sizes(name, "dilation", dilation, self.n_axes, 1)
        paddings(name, padding, self.kernel_size, self.stride, self.dilation)
        self.groups = groups
        fan_in = in_channels // groups * math.prod(self.kernel_size)
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = init.kaiming_uniform(shape, math.sqrt(5), generator=generator)
        bound = 1 / math.sqrt(fan_in)
        self.bias = init.uniform((out_channels,), -bound, bound, generator=generator) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, *spatial) -> (N, out_channels, *spatial), or both without N.

        Raises ValueError for other shapes, and if the kernel is larger than the padded input.
        """
        return convolve(
            type(self).__name__, self.n_axes, x, self.weight, self.bias, self.stride, self.padding, self.dilation,
            self.groups, "the layer",
        )  # fmt: skip


class Conv1d(_Conv):
    """Convolution over the last axis, as `torch.nn.Conv1d`: (N, in_channels, L) or (in_channels, L).

    See `conv2d` for the formula. There is no `padding_mode`: padding is zeros. The initial weight and bias are uniform
    on [-b, b) with b = 1 / sqrt(in_channels / groups * kernel_size).

        Conv1d(3, 8, 5, padding="same")(Tensor(np.zeros((2, 3, 20)))).shape  # (2, 8, 20)

    Args:
        in_channels, out_channels: channels of the input and the output.
        kernel_size, stride, dilation: an int, or a tuple of one.
        padding: an int, a tuple of one, "same" or "valid".
        groups: the number of groups that input and output channels are split into. An output channel depends on the
            input channels of its group only. It must divide both numbers of channels.
        bias: whether to add a bias.
        generator: the generator of the initial weights; by default `random.default_generator()`.

    Attributes:
        weight: (out_channels, in_channels / groups, kernel_size).
        bias: (out_channels,), or None.

    Raises:
        ValueError: a size is not positive, the groups do not divide the channels, or "same" with a stride above 1.
        TypeError: a size is not an int.
    """

    n_axes = 1


class Conv2d(_Conv):
    """Convolution over the last two axes, as `torch.nn.Conv2d`: (N, in_channels, H, W) or (in_channels, H, W).

    See `conv2d` for the formula. There is no `padding_mode`: padding is zeros. The initial weight and bias are uniform
    on [-b, b) with b = 1 / sqrt(in_channels / groups * kh * kw).

        Conv2d(3, 8, 3, padding=1)(Tensor(np.zeros((2, 3, 32, 32)))).shape  # (2, 8, 32, 32)

    Args:
        in_channels, out_channels: channels of the input and the output.
        kernel_size, stride, dilation: an int for both axes, or one for each.
        padding: an int for both axes, one for each, "same" or "valid".
        groups: the number of groups that input and output channels are split into. An output channel depends on the
            input channels of its group only. It must divide both numbers of channels.
        bias: whether to add a bias.
        generator: the generator of the initial weights; by default `random.default_generator()`.

    Attributes:
        weight: (out_channels, in_channels / groups, kh, kw).
        bias: (out_channels,), or None.

    Raises:
        ValueError: a size is not positive, the groups do not divide the channels, or "same" with a stride above 1.
        TypeError: a size is not an int.
    """

    n_axes = 2
