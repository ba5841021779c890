"""Normalization layers. They reshape their input to rows and call `layer_norm` or `rms_norm`."""

from collections.abc import Callable, Sequence
from math import prod

from .. import init
from ..autograd import is_collecting, no_grad
from ..backend import Array, get_backend
from ..functional import layer_norm, rms_norm
from ..module import Module
from ..replay import run_in_every_step
from ..tensor import Tensor
from .check import check_input, checked_eps, flags, positive


class LayerNorm(Module):
    """Layer normalization over the last axes, as `torch.nn.LayerNorm`. Ba et al., arXiv:1607.06450.

        LayerNorm(64)

    Args:
        normalized_shape: the lengths of the last axes, which are normalized together; an int is one axis.
        eps: added to the variance for numerical stability.
        elementwise_affine: whether to multiply by a learned weight.
        bias: whether to add a learned bias, too.

    Attributes:
        weight, bias: normalized_shape, initially ones and zeros; or None.

    Raises:
        ValueError: a length is not positive, or eps is negative, nan or infinite. TypeError: a length is not an int.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
    ) -> None:
        self.normalized_shape = _shape("LayerNorm", normalized_shape)
        flags("LayerNorm", elementwise_affine=elementwise_affine, bias=bias)
        self.eps = checked_eps("LayerNorm", eps)
        self.weight = init.ones(self.normalized_shape) if elementwise_affine else None
        self.bias = init.zeros(self.normalized_shape) if elementwise_affine and bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., *normalized_shape) -> the same. Raises ValueError for another shape."""
        _check_last(self, x, self.normalized_shape)
        weight, bias = (p if p is None else p.flatten() for p in (self.weight, self.bias))
        return _over_last(x, self.normalized_shape, lambda rows: layer_norm(rows, weight, bias, self.eps))


class RMSNorm(Module):
    """Root mean square normalization, x / sqrt(mean(x^2) + eps), as `torch.nn.RMSNorm`.

    Zhang & Sennrich, arXiv:1910.07467, equation 4.

    Args:
        normalized_shape: the lengths of the last axes, which are normalized together; an int is one axis.
        eps: added to the mean for numerical stability; by default the machine epsilon of the input's dtype.
        elementwise_affine: whether to multiply by a learned weight.

    Attributes:
        weight: normalized_shape, initially ones; or None.

    Raises:
        ValueError: a length is not positive, or eps is negative, nan or infinite. TypeError: a length is not an int.
    """

    def __init__(
        self, normalized_shape: int | Sequence[int], eps: float | None = None, elementwise_affine: bool = True
    ) -> None:
        self.normalized_shape = _shape("RMSNorm", normalized_shape)
        flags("RMSNorm", elementwise_affine=elementwise_affine)
        self.eps = None if eps is None else checked_eps("RMSNorm", eps)
        self.weight = init.ones(self.normalized_shape) if elementwise_affine else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., *normalized_shape) -> the same. Raises ValueError for another shape."""
        _check_last(self, x, self.normalized_shape)
        eps = (2.0**-52 if x.dtype.itemsize == 8 else 2.0**-23) if self.eps is None else self.eps
        weight = None if self.weight is None else self.weight.flatten()
        return _over_last(x, self.normalized_shape, lambda rows: rms_norm(rows, weight, eps))


def _over_last(x: Tensor, shape: tuple[int, ...], norm: Callable[[Tensor], Tensor]) -> Tensor:
    """The norm of x over its last axes, which have this shape: (..., *shape) -> the same."""
    if len(shape) == 1:
        return norm(x)
    return norm(x.reshape(*x.shape[: x.ndim - len(shape)], prod(shape))).reshape(x.shape)


class GroupNorm(Module):
    """Group normalization, as `torch.nn.GroupNorm`: each group of channels of a sample is normalized together.

    Wu & He, arXiv:1803.08494, equation 7.

    Args:
        num_groups: the number of groups; must divide num_channels.
        num_channels: C, the length of axis 1.
        eps: added to the variance for numerical stability.
        affine: whether each channel has a learned weight and bias.

    Attributes:
        weight, bias: (C,), initially ones and zeros; or None.

    Raises:
        ValueError: num_groups does not divide num_channels, or eps is negative, nan or infinite.
    """

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        positive("GroupNorm", num_groups=num_groups, num_channels=num_channels)
        flags("GroupNorm", affine=affine)
        if num_channels % num_groups:
            raise ValueError(f"GroupNorm: num_groups={num_groups} does not divide num_channels={num_channels}")
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, checked_eps("GroupNorm", eps)
        self.weight = init.ones((num_channels,)) if affine else None
        self.bias = init.zeros((num_channels,)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) -> the same. Raises ValueError for another shape."""
        check_input(self, x, lambda shape: shape[1:2] == (self.num_channels,), f"(N, {self.num_channels}, ...)")
        rows = x.reshape(x.shape[0], self.num_groups, prod(x.shape[1:]) // self.num_groups)
        return _per_channel(layer_norm(rows, eps=self.eps).reshape(x.shape), self.weight, self.bias)


class BatchNorm(Module):
    """Batch normalization, as `torch.nn.BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d`, in one class.

    In training mode, each channel is normalized by its mean and variance over the batch and all positions. In
    evaluation mode, running averages of these are used. Ioffe & Szegedy, arXiv:1502.03167, algorithms 1 and 2.

    Args:
        num_features: C, the length of axis 1.
        eps: added to the variance for numerical stability.
        momentum: the weight of the new value in the running averages; None gives all batches equal weight.
        affine: whether each channel has a learned weight and bias.
        track_running_stats: whether to keep running averages; without them, evaluation mode uses the batch, too.

    Attributes:
        weight, bias: (C,), initially ones and zeros; or None.
        running_mean, running_var, num_batches_tracked: buffers (C,), (C,) and (); or None. The running variance is
            the unbiased one, as in PyTorch.

    Raises:
        ValueError: num_features is not positive, or eps is negative, nan or infinite. TypeError: num_features is not an
            int.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        positive("BatchNorm", num_features=num_features)
        flags("BatchNorm", affine=affine, track_running_stats=track_running_stats)
        self.num_features, self.eps, self.momentum = num_features, checked_eps("BatchNorm", eps), momentum
        self.weight = init.ones((num_features,)) if affine else None
        self.bias = init.zeros((num_features,)) if affine else None
        self.running_mean = self.running_var = self.num_batches_tracked = None
        if track_running_stats:
            self.running_mean, self.running_var = init.zeros((num_features,)), init.ones((num_features,))
            self.running_mean.requires_grad = self.running_var.requires_grad = False
            self.num_batches_tracked = Tensor(get_backend().full((), 0, "int64"))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) -> the same.

        Raises ValueError for another shape, and, if the batch is used, for fewer than two values in each channel.
        """
        check_input(self, x, lambda shape: shape[1:2] == (self.num_features,), f"(N, {self.num_features}, ...)")
        wide = _wide(x)
        if not self.training and self.running_mean is not None and self.running_var is not None:
            scale = (_wide(self.running_var) + self.eps) ** -0.5
            normalized = (wide - _as_channels(self.running_mean, x.ndim)) * _as_channels(scale, x.ndim)
        else:
            channels = wide.swapaxes(0, 1)  # (C, N, ...)
            rows = channels.reshape(self.num_features, x.size // self.num_features)
            if rows.shape[1] < 2:
                raise ValueError(
                    f"BatchNorm: x has shape {x.shape}, with {rows.shape[1]} values in each channel, whose variance "
                    "needs at least two; use a larger batch or eval()"
                )
            if self.training:
                self._track(rows.detach())
            normalized = layer_norm(rows, eps=self.eps).reshape(channels.shape).swapaxes(0, 1)
        out = _per_channel(normalized, self.weight, self.bias)
        return out if wide is x else out.astype(x.dtype)

    def _track(self, rows: Tensor) -> None:
        """Update the running averages by a batch (C, values)."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        if is_collecting():
            raise RuntimeError(
                f"{type(self).__name__}: cannot update running averages in a part of parallel_backward; call eval(), "
                "set track_running_stats=False, or compute the whole batch with backward()"
            )
        with no_grad():
            _write(self.num_batches_tracked, (self.num_batches_tracked + 1).data)
            factor = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            for running, new in ((self.running_mean, rows.mean(1)), (self.running_var, rows.var(1, correction=1))):
                _write(running, (running + (new - running) * factor).astype(running.dtype).data)


def _wide(x: Tensor) -> Tensor:
    """x, in float32 if it has half precision, in which squares overflow."""
    wide: Tensor = x if x.dtype.itemsize > 2 else x.astype("float32")
    return wide


def _write(buffer: Tensor, array: Array) -> None:
    """Replace the values of a buffer: in place if the backend can, so that a captured step repeats it."""
    if buffer.backend.level or not hasattr(buffer.backend, "assign"):
        buffer.data = array
        return
    buffer.backend.assign(buffer.data, array)
    run_in_every_step(buffer.changed_in_place)


def _per_channel(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """x * weight + bias, along axis 1: (N, C, ...) (C,) (C,) -> (N, C, ...)."""
    x = x if weight is None else x * _as_channels(weight, x.ndim)
    return x if bias is None else x + _as_channels(bias, x.ndim)


def _as_channels(x: Tensor, ndim: int) -> Tensor:
    """(C,) -> (C, 1, ...), to broadcast along axis 1 of a Tensor with `ndim` axes."""
    return x.reshape(-1, *(1,) * (ndim - 2))


def _shape(layer: str, normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    """The lengths as a tuple. Raises as `positive` does, and ValueError for no lengths."""
    lengths = tuple(normalized_shape) if isinstance(normalized_shape, Sequence) else (normalized_shape,)
    if not lengths:
        raise ValueError(f"{layer}: normalized_shape must have at least one length, got {normalized_shape!r}")
    for length in lengths:
        positive(layer, normalized_shape=length)
    return tuple(map(int, lengths))


def _check_last(layer: Module, x: Tensor, lengths: tuple[int, ...]) -> None:
    check_input(layer, x, lambda shape: shape[-len(lengths) :] == lengths, f"(..., {', '.join(map(str, lengths))})")
