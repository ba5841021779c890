"""Convolution and pooling: `conv1d`, `conv2d`, `max_pool2d` and `avg_pool2d`, with PyTorch's arguments and results."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from .. import rules
from ..apply import Operand, apply
from ..backend import Padding, Shape
from ..rules import check_bool, check_int
from ..tensor import Tensor

Sizes: TypeAlias = int | Sequence[int]  # one number for all spatial axes, or a number for each


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Operand = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """Convolution over the last axis, as `torch.nn.functional.conv1d`; see `conv2d`.

    Shapes: x (N, C, L) or (C, L), weight (O, C / groups, k), bias (O,) or None -> (N, O, L') or (O, L'). Raises as
    `conv2d`.

        conv1d(x, weight, padding="same")  # L' = L
    """
    return convolve("conv1d", 1, x, weight, bias, stride, padding, dilation, groups)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Operand = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """Convolution over the last two axes, as `torch.nn.functional.conv2d`.

    out[n, o, i, j] = bias[o] + sum over c, a, b of weight[o, c, a, b] x[n, c, i stride + a dilation, j stride +
    b dilation], where x is padded with zeros (Dumoulin & Visin, arXiv:1603.07285). The kernel is not flipped.

    Shapes: x (N, C, H, W) or (C, H, W), weight (O, C / groups, kh, kw), bias (O,) or None -> (N, O, H', W') or (O, H',
    W'), with H' = (H + the padding - dilation (kh - 1) - 1) // stride + 1. The formula of W' is the same.

    Args:
        stride, dilation: an int, or one for each spatial axis.
        padding: the number of zeros on each side: an int, or one for each spatial axis. "valid" is 0. "same" gives the
            output the size of x, for stride 1 only; if the total is odd, the extra zero is at the end.
        groups: the number of groups that input and output channels are split into. An output channel depends on the
            input channels of its group only. It must divide both numbers of channels.

    Raises:
        ValueError: the shapes do not fit, the kernel is larger than the padded input, "same" with a stride above 1, or
            the groups do not divide the channels. TypeError: an argument is not an int.

        conv2d(x, weight, bias, stride=2, padding=1)
    """
    return convolve("conv2d", 2, x, weight, bias, stride, padding, dilation, groups)


def max_pool2d(
    x: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The maximum of each window, as `torch.nn.functional.max_pool2d`.

    Shapes: x (N, C, H, W) or (C, H, W) -> (N, C, H', W') or (C, H', W').

    nan propagates. The gradient goes to the maximum; for ties, to the first.

    Args:
        kernel_size, stride, padding, dilation: an int, or one for each spatial axis. The default stride is the
            kernel size. Padding is never the maximum.
        ceil_mode: whether a last window may extend beyond the end of x: H' and W' are then rounded up.

    Raises ValueError for sizes that do not fit and a padding of more than half the kernel, and TypeError for sizes that
    are not ints.

        max_pool2d(x, 2)  # (N, C, H // 2, W // 2)
    """
    return max_pool("max_pool2d", x, kernel_size, stride, padding, dilation, ceil_mode)


def avg_pool2d(
    x: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window, as `torch.nn.functional.avg_pool2d`.

    Shapes: x (N, C, H, W) or (C, H, W) -> (N, C, H', W') or (C, H', W').

    Args:
        kernel_size, stride, padding, ceil_mode: as in `max_pool2d`. The padding is zeros.
        count_include_pad: whether the mean includes the padding.
        divisor_override: divide the sum of a window by this number.

    Raises ValueError for sizes that do not fit, a padding of more than half the kernel and a divisor of 0, and
    TypeError for sizes that are not ints.

        avg_pool2d(x, 2)  # (N, C, H // 2, W // 2)
    """
    return avg_pool(
        "avg_pool2d", x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )  # fmt: skip


# --- For an op or a layer of any number of spatial axes; `op` is its name in errors


def convolve(
    op: str,
    n_axes: int,
    x: Tensor,
    weight: Tensor,
    bias: Operand,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
    expecting: str = "the weight",
) -> Tensor:
    """Convolution over the last `n_axes` axes. Errors say that `expecting` expects another x."""
    shape = rules.shape_of(weight)
    if len(shape) != n_axes + 2:
        raise ValueError(f"{op}: weight {shape} must be {_shape_text('out', 'in / groups', _KERNEL, n_axes)}")
    n_out, n_in, *kernel = shape
    if not n_in:
        raise ValueError(f"{op}: weight {shape} has no input channels")
    check_groups(op, groups, groups * n_in, n_out)
    check_channels(op, x, n_axes, n_in * groups, expecting)
    if bias is not None and rules.shape_of(bias) != (n_out,):
        raise ValueError(f"{op}: bias {rules.shape_of(bias)} does not fit weight {shape}; it must be ({n_out},)")
    strides, dilations = sizes(op, "stride", stride, n_axes, 1), sizes(op, "dilation", dilation, n_axes, 1)
    pads = paddings(op, padding, tuple(kernel), strides, dilations)
    output_lengths(op, x, tuple(kernel), strides, pads, dilations)
    return _apply_to_batch(
        rules.conv, n_axes, x, weight, bias, stride=strides, padding=pads, dilation=dilations, groups=int(groups)
    )


def max_pool(
    op: str, x: Tensor, kernel_size: Sizes, stride: Sizes | None, padding: Sizes, dilation: Sizes, ceil_mode: bool
) -> Tensor:
    """`max_pool2d`."""
    check_channels(op, x, 2)
    kernel, strides, pads, dilations = pool_sizes(op, kernel_size, stride, padding, dilation, ceil_mode)
    padded = _pooled_padding(op, x, kernel, strides, pads, dilations, ceil_mode)
    _check_elements(op, x, kernel, strides, padded, dilations)
    return _apply_to_batch(rules.max_pool, 2, x, kernel=kernel, stride=strides, padding=padded, dilation=dilations)


def avg_pool(
    op: str,
    x: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None,
    padding: Sizes,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """`avg_pool2d`."""
    check_channels(op, x, 2)
    check_divisor(op, count_include_pad, divisor_override)
    kernel, strides, pads, _ = pool_sizes(op, kernel_size, stride, padding, 1, ceil_mode)
    padded = _pooled_padding(op, x, kernel, strides, pads, (1, 1), ceil_mode)
    counted = tuple(
        (pad, min(pad, after)) if count_include_pad else (0, 0) for pad, (_, after) in zip(pads, padded, strict=True)
    )
    divisor = None if divisor_override is None else int(divisor_override)
    return _apply_to_batch(
        rules.avg_pool, 2, x, kernel=kernel, stride=strides, padding=padded, counted=counted, divisor=divisor
    )


def _apply_to_batch(rule: rules.Rule, n_axes: int, x: Tensor, *operands: Operand, **params: Any) -> Tensor:
    """Apply a rule that takes (N, C, *spatial). An x without the axis N gets one, and the result does not have it."""
    if x.ndim == n_axes + 2:
        return apply(rule, x, *operands, **params)
    out = apply(rule, x.expand_dims(0), *operands, **params)
    return out.reshape(out.shape[1:])


# --- Checks

_LETTERS, _KERNEL = {1: ("L",), 2: ("H", "W")}, {1: ("k",), 2: ("kh", "kw")}


def _shape_text(first: str, second: str, names: dict[int, tuple[str, ...]], n_axes: int) -> str:
    return f"({', '.join([first, second, *names[n_axes]])})"


def check_channels(op: str, x: Any, n_axes: int, channels: int | None = None, expecting: str = "the op") -> None:
    """Raise TypeError if x is no Tensor, ValueError if it is not (N, channels, *spatial) or (channels, *spatial)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: needs a Tensor, got a {type(x).__name__}; write Tensor(x)")
    expected = _shape_text("N", "C" if channels is None else str(channels), _LETTERS, n_axes)
    if x.ndim not in (n_axes + 1, n_axes + 2):
        unbatched = expected.replace("N, ", "")
        raise ValueError(f"{op}: x {x.shape} has {x.ndim} axes, {expecting} expects {expected} or {unbatched}")
    found = x.shape[-n_axes - 1]
    if channels is not None and found != channels:
        raise ValueError(f"{op}: x {x.shape} has {found} channels, {expecting} expects {expected}")


def sizes(op: str, name: str, value: Any, n_axes: int, least: int) -> Shape:
    """A number for each spatial axis. Raises TypeError for anything but ints, ValueError for one below `least`."""
    given = tuple(value) if isinstance(value, (tuple, list)) else (value,) * n_axes
    for number in given:
        check_int(f"{op}: {name}", number)
    if len(given) == 1:  # as PyTorch: (3,) for both axes
        given *= n_axes
    if len(given) != n_axes:
        raise ValueError(f"{op}: {name} must be an int or a tuple of length {n_axes}, got {value!r}")
    if any(number < least for number in given):
        raise ValueError(f"{op}: {name} must be at least {least}, got {value!r}")
    return tuple(int(number) for number in given)


def paddings(op: str, padding: Any, kernel: Shape, stride: Shape, dilation: Shape) -> Padding:
    """The zeros before and after each spatial axis. Raises ValueError for an unknown word, and "same" with a stride."""
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(f"{op}: padding must be 'same', 'valid' or an int, got {padding!r}")
        if padding == "valid":
            return ((0, 0),) * len(kernel)
        if any(s != 1 for s in stride):
            raise ValueError(f"{op}: padding='same' needs a stride of 1, got {stride}; give the padding as a number")
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((p, p) for p in sizes(op, "padding", padding, len(kernel), 0))


def check_groups(op: str, groups: Any, n_in: int, n_out: int) -> None:
    """Raise TypeError if `groups` is not an int, ValueError if it is not positive or does not divide the channels."""
    check_int(f"{op}: groups", groups)
    if groups < 1:
        raise ValueError(f"{op}: groups must be positive, got {groups}")
    if n_in % groups or n_out % groups:
        raise ValueError(f"{op}: groups={groups} must divide the {n_in} input channels and the {n_out} output channels")


def check_divisor(op: str, count_include_pad: Any, divisor_override: Any) -> None:
    """Raise TypeError if these are not a bool and an int or None, ValueError for a divisor of 0."""
    check_bool(f"{op}: count_include_pad", count_include_pad)
    if divisor_override is not None:
        check_int(f"{op}: divisor_override", divisor_override)
        if divisor_override == 0:
            raise ValueError(f"{op}: divisor_override must not be 0")


def pool_sizes(
    op: str, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any
) -> tuple[Shape, ...]:
    """The kernel, stride, padding and dilation of a pooling, two each. Raises ValueError for too much padding."""
    check_bool(f"{op}: ceil_mode", ceil_mode)
    kernel, dilations = sizes(op, "kernel_size", kernel_size, 2, 1), sizes(op, "dilation", dilation, 2, 1)
    strides, pads = sizes(op, "stride", kernel if stride is None else stride, 2, 1), sizes(op, "padding", padding, 2, 0)
    if any(pad > _span(k, d) // 2 for pad, k, d in zip(pads, kernel, dilations, strict=True)):
        raise ValueError(f"{op}: padding {pads} must be at most half the kernel {_kernel_text(kernel, dilations)}")
    return kernel, strides, pads, dilations


def _span(kernel: int, dilation: int) -> int:
    """The length that a dilated kernel spans."""
    return dilation * (kernel - 1) + 1


def _kernel_text(kernel: Shape, dilation: Shape) -> str:
    return f"{kernel}" + (f" with dilation {dilation}" if any(d > 1 for d in dilation) else "")


def output_lengths(
    op: str, x: Tensor, kernel: Shape, stride: Shape, padding: Padding, dilation: Shape, ceil_mode: bool = False
) -> Shape:
    """The lengths of the output's spatial axes. Raises ValueError if the kernel is larger than the padded input."""
    lengths = x.shape[-len(kernel) :]
    padded = tuple(n + before + after for n, (before, after) in zip(lengths, padding, strict=True))
    spans = tuple(map(_span, kernel, dilation))
    out = []
    for n, padded_n, (before, _), span, s in zip(lengths, padded, padding, spans, stride, strict=True):
        rest = padded_n - span
        count = (-(-rest // s) if ceil_mode else rest // s) + 1
        if ceil_mode and (count - 1) * s >= n + before:  # the last window must not begin in the padding after x
            count -= 1
        out.append(count)
    if min(out) < 1 or 0 in lengths or 0 in kernel:
        with_padding = "" if padded == lengths else f", padded to {padded},"
        raise ValueError(
            f"{op}: x {x.shape}{with_padding} gives no output: the kernel {_kernel_text(kernel, dilation)} needs at "
            f"least {spans}"
        )
    return tuple(out)


def _pooled_padding(
    op: str, x: Tensor, kernel: Shape, stride: Shape, pads: Shape, dilation: Shape, ceil_mode: bool
) -> Padding:
    """The padding that windows cover: at the end it may be less than `pads`, or more with `ceil_mode`."""
    both = tuple((pad, pad) for pad in pads)
    counts = output_lengths(op, x, kernel, stride, both, dilation, ceil_mode)
    ends = (
        (count - 1) * s + _span(k, d) - pad - n
        for count, s, k, d, pad, n in zip(counts, stride, kernel, dilation, pads, x.shape[-2:], strict=True)
    )
    return tuple((pad, max(0, end)) for pad, end in zip(pads, ends, strict=True))


def _check_elements(op: str, x: Tensor, kernel: Shape, stride: Shape, padding: Padding, dilation: Shape) -> None:
    """Raise ValueError if a window contains padding only, which only a dilated kernel can have."""
    for n, k, s, (before, after), d in zip(x.shape[-2:], kernel, stride, padding, dilation, strict=True):
        if d > 1 and before:
            starts = range(-before, n + after - _span(k, d) + 1, s)
            if any(all(not 0 <= start + i * d < n for i in range(k)) for start in starts):
                raise ValueError(
                    f"{op}: x {x.shape} with padding {padding}: a window of the kernel "
                    f"{_kernel_text(kernel, dilation)} contains padding only; use less padding"
                )
