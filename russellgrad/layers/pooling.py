"""Pooling layers."""

from ..module import Module
from ..ops.convolution import Sizes, avg_pool, check_divisor, max_pool, pool_sizes
from ..tensor import Tensor


class MaxPool2d(Module):
    """The maximum of each window, as `torch.nn.MaxPool2d`: (N, C, H, W) or (C, H, W) -> the same axes.

    The arguments are those of `max_pool2d`. There is no `return_indices`.

        MaxPool2d(2)(Tensor(np.zeros((1, 3, 8, 8)))).shape  # (1, 3, 4, 4)

    Raises:
        ValueError: a size is not positive, or the padding is more than half the kernel. TypeError: a size is not an
            int.
    """

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
    ) -> None:
        pool_sizes("MaxPool2d", kernel_size, stride, padding, dilation, ceil_mode)
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.dilation, self.ceil_mode = padding, dilation, ceil_mode

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) or (C, H, W) -> the same axes. Raises ValueError if x is smaller than the kernel."""
        return max_pool("MaxPool2d", x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)


class AvgPool2d(Module):
    """The mean of each window, as `torch.nn.AvgPool2d`: (N, C, H, W) or (C, H, W) -> the same axes.

    The arguments are those of `avg_pool2d`.

        AvgPool2d(2)(Tensor(np.zeros((1, 3, 8, 8)))).shape  # (1, 3, 4, 4)

    Raises:
        ValueError: a size is not positive, the padding is more than half the kernel, or the divisor is 0. TypeError: a
            size is not an int.
    """

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        pool_sizes("AvgPool2d", kernel_size, stride, padding, 1, ceil_mode)
        check_divisor("AvgPool2d", count_include_pad, divisor_override)
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.ceil_mode = padding, ceil_mode
        self.count_include_pad, self.divisor_override = count_include_pad, divisor_override

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) or (C, H, W) -> the same axes. Raises ValueError if x is smaller than the kernel."""
        return avg_pool(
            "AvgPool2d", x, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad,
            self.divisor_override,
        )  # fmt: skip
