"""Derived primitives of the PyTorch backend: PyTorch's functions that have a forward and a separate backward.

These are the functions that PyTorch's autograd uses; here the rules call them. For arguments that they do not take,
and where they are less accurate than the contract asks, a function returns NotImplemented, and the formula runs.
(Products, among them the weights' gradients of linear layers and convolutions, sum as the BLAS and oneDNN do.)
"""

from collections.abc import Callable, Sequence
from math import inf, isfinite, prod
from typing import Any, TypeAlias

import torch
from torch.nn import functional

from . import host, torch_arrays
from .formulas import AttentionDropout

Array: TypeAlias = Any  # torch.Tensor
Shape: TypeAlias = tuple[int, ...]
Padding: TypeAlias = tuple[tuple[int, int], ...]

HALF = (torch.float16, torch.bfloat16)
_INFINITE = torch.tensor(inf, device="cpu")  # a number of steps
_aten = torch.ops.aten


def _is_rounded(a: Array) -> bool:
    """Whether PyTorch may round sums to half precision; on CUDA it sums in float32."""
    return a.dtype in HALF and a.device.type != "cuda"


def linear(x: Array, weight: Array, bias: Array | None) -> Any:
    return NotImplemented if _is_rounded(x) else functional.linear(x, weight.T, bias)


def linear_backward(g: Array, x: Array, weight: Array, needs: Sequence[bool]) -> Any:
    if _is_rounded(g):
        return NotImplemented
    g2, rows = g.reshape(prod(g.shape[:-1]), g.shape[-1]), x.reshape(prod(x.shape[:-1]), x.shape[-1])
    return (
        torch.mm(g2, weight.T).reshape(x.shape) if needs[0] else None,
        torch.mm(rows.T, g2) if needs[1] else None,
        torch.sum(g2, 0) if needs[2] else None,
    )


def leaky_relu(a: Array, alpha: float) -> Array:
    return functional.leaky_relu(a, alpha)


def leaky_relu_backward(g: Array, a: Array, alpha: float) -> Array:
    return _aten.leaky_relu_backward(g, a, alpha, False)


def gelu(a: Array, approximate: str) -> tuple[Array, Array]:
    out = functional.gelu(a, approximate=approximate)
    if a.device.type == "cpu" and not isfinite(out.sum(dtype=torch.float32)):
        out = functional.gelu(a.double(), approximate=approximate).to(a.dtype)  # oneDNN's float32 gives nan for inf
    return out, a


def gelu_backward(g: Array, saved: Array, approximate: str) -> Array:
    return _aten.gelu_backward(g, saved, approximate=approximate)


def _last(a: Array, axis: int) -> bool:
    """Whether PyTorch's softmax is used. Along other axes than the last one, it adds the elements one by one."""
    return axis in (-1, a.ndim - 1) and a.shape[-1] <= host.LONG_ROW and not _is_rounded(a)


def softmax(a: Array, axis: int) -> Any:
    return NotImplemented if not _last(a, axis) else torch.softmax(a, axis)


def softmax_backward(g: Array, y: Array, axis: int) -> Any:
    return NotImplemented if not _last(y, axis) else _aten._softmax_backward_data(g, y, axis, y.dtype)


def log_softmax(a: Array, axis: int) -> Any:
    return NotImplemented if not _last(a, axis) else torch.log_softmax(a, axis)


def log_softmax_backward(g: Array, y: Array, axis: int) -> Any:
    return NotImplemented if not _last(y, axis) else _aten._log_softmax_backward_data(g, y, axis, y.dtype)


def layer_norm(x: Array, gamma: Array | None, beta: Array | None, eps: float) -> Any:
    if x.dtype in HALF or not x.numel():
        return NotImplemented
    # PyTorch's function alone is not accurate for a mean that is large beside the standard deviation. (Another number
    # than the mean, such as the row's first element, may be so large that the difference rounds the others off.)
    if x.device.type == "cpu":  # on other devices, reading the largest mean would wait
        normalized = torch.native_layer_norm(x, x.shape[-1:], gamma, beta, eps)
        if (normalized[1] * normalized[2]).abs().max() <= 4:
            return normalized
    mean = x.mean(-1, keepdim=True)
    out, rest, rstd = torch.native_layer_norm(x - mean, x.shape[-1:], gamma, beta, eps)
    return out, rest.add_(mean), rstd


def layer_norm_backward(
    g: Array, x: Array, gamma: Array | None, mean: Array, rstd: Array, needs: Sequence[bool]
) -> Any:
    """The gradient of x by PyTorch; the other two here, since PyTorch adds the rows one by one in float32."""
    if x.dtype in HALF or not x.numel():
        return NotImplemented
    gx = ggamma = gbeta = None
    centered = torch.sub(x, mean).contiguous()  # for a mean that is large, as in layer_norm
    if needs[0]:  # PyTorch's function ignores the strides of the mean and rstd
        gamma = None if gamma is None else gamma.contiguous()
        rest = (torch.zeros_like(mean), rstd.contiguous(), gamma, None, [True, False, False])
        gx = _aten.native_layer_norm_backward(g.contiguous(), centered, x.shape[-1:], *rest)[0]
    rows = tuple(range(x.ndim - 1))
    if needs[1]:
        product = centered.mul_(rstd).mul_(g)
        ggamma = product.sum(rows) if rows else product
    if needs[2]:
        gbeta = g.sum(rows) if rows else g.clone()
    return gx, ggamma, gbeta


def rms_norm(x: Array, gamma: Array | None, eps: float) -> Any:
    if x.dtype in HALF or not x.numel():
        return NotImplemented
    r = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    y = x * r
    return y if gamma is None else y.mul_(gamma), r


def rms_norm_backward(g: Array, x: Array, gamma: Array | None, r: Array, needs: Sequence[bool]) -> Any:
    if x.dtype in HALF or not x.numel():
        return NotImplemented
    normed = x * r
    g_normed = g * normed
    rows = tuple(range(x.ndim - 1))
    ggamma = (g_normed.sum(rows) if rows else g_normed) if needs[1] else None
    if not needs[0]:
        return None, ggamma
    h = g.clone() if gamma is None else g * gamma
    along = (g_normed if gamma is None else g_normed * gamma).mean(-1, keepdim=True)
    return h.addcmul_(normed, along, value=-1).mul_(r), ggamma


def swiglu(gate: Array, up: Array) -> Any:
    return NotImplemented if gate.dtype in HALF else functional.silu(gate).mul_(up)


def swiglu_backward(g: Array, gate: Array, up: Array, needs: Sequence[bool]) -> Any:
    if g.dtype in HALF:
        return NotImplemented
    return (
        _aten.silu_backward(g * up, gate) if needs[0] else None,
        functional.silu(gate).mul_(g) if needs[1] else None,
    )


def rotary(x: Array, cos: Array, sin: Array) -> Any:
    if x.dtype in HALF:
        return NotImplemented
    cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def embedding(weight: Array, ids: Array) -> Array:
    return torch.embedding(weight, ids)


def embedding_backward(g: Array, ids: Array, n_rows: int) -> Any:
    return NotImplemented if _is_rounded(g) else _aten.embedding_dense_backward(g, ids, n_rows, -1, False)


def cross_entropy(logits: Array, ids: Array, valid: Array | None, excluded_class: int | None) -> Any:
    if logits.dtype in HALF or logits.shape[1] > host.LONG_ROW:
        return NotImplemented
    if excluded_class is not None:
        logits = logits.clone()
        logits[:, excluded_class] = -inf
    log_probs = torch.log_softmax(logits, 1)
    losses = log_probs.gather(1, ids[:, None])[:, 0]
    if valid is None:
        return -losses.mean(), log_probs.exp_()
    return -torch.where(valid, losses, 0).sum() / valid.sum(), log_probs.exp_()


def cross_entropy_backward(g: Array, probs: Array, ids: Array, valid: Array | None) -> Any:
    if g.dtype != probs.dtype:  # of half precision
        return NotImplemented
    scale = g / len(ids) if valid is None else torch.where(valid, g / valid.sum(), 0)[:, None]
    out = probs * scale
    return out.scatter_add_(1, ids[:, None], -scale.expand(len(ids), 1))


def _flash(q: Array, k: Array, v: Array, mask: Array | None, causal: bool, offset: int) -> bool:
    """Whether PyTorch's attention on the CPU takes the arguments. Other devices have none with a backward for all.

    Several heads of queries may share one head of keys and values.
    """
    return (
        q.device.type == "cpu" and mask is None and not (causal and offset) and 0 not in (*q.shape, *k.shape)
        and q.shape[:-3] == k.shape[:-3] and k.shape[-3:-2] in (q.shape[-3:-2], (1,)) and k.shape[:-2] == v.shape[:-2]
        and q.shape[-1] == v.shape[-1] and q.dtype not in HALF
    )  # fmt: skip


def _heads(a: Array) -> Array:
    """(..., L, d) -> (B, H, L, d), contiguous along d: for other strides PyTorch's function gives wrong results."""
    four = a if a.ndim == 4 else a.reshape(prod(a.shape[:-3]), *(1,) * (3 - a.ndim), *a.shape[-3:])
    return four if four.stride(-1) == 1 else four.contiguous()


def attention(
    q: Array, k: Array, v: Array, mask: Array | None, causal: bool, offset: int, dropout: AttentionDropout | None = None
) -> Any:
    if dropout is not None or not _flash(q, k, v, mask, causal, offset):
        return NotImplemented
    out, log_sum = _aten._scaled_dot_product_flash_attention_for_cpu(*map(_heads, (q, k, v)), 0.0, causal)
    return out.reshape(q.shape), log_sum.reshape(*q.shape[:-1], 1)


def attention_backward(
    g: Array, q: Array, k: Array, v: Array, out: Array, log_sum: Array, mask: Array | None, causal: bool, offset: int,
    needs: Sequence[bool], dropout: AttentionDropout | None = None,
) -> Any:  # fmt: skip
    if dropout is not None or not _flash(q, k, v, mask, causal, offset):
        return NotImplemented
    four = tuple(map(_heads, (g, q, k, v, out)))
    grads = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *four, log_sum.reshape(four[1].shape[:-1]), 0.0, causal
    )
    return tuple(grad.reshape(a.shape) for grad, a in zip(grads, (q, k, v), strict=True))


def _padded(x: Array, padding: Padding) -> tuple[Array, Shape]:
    """x and the padding that PyTorch's convolution adds, which is equal on both sides: else it is added here."""
    if all(before == after for before, after in padding):
        return x, tuple(before for before, _ in padding)
    return functional.pad(x, [n for pair in reversed(padding) for n in pair]), (0,) * len(padding)


def conv(
    x: Array, weight: Array, bias: Array | None, stride: Shape, padding: Padding, dilation: Shape, groups: int
) -> Any:
    if _is_rounded(x):
        return NotImplemented
    x, around = _padded(x, padding)
    return torch.convolution(x, weight, bias, stride, around, dilation, False, (0,) * len(stride), groups)


def conv_backward(
    g: Array, x: Array, weight: Array, stride: Shape, padding: Padding, dilation: Shape, groups: int,
    needs: Sequence[bool],
) -> Any:  # fmt: skip
    if _is_rounded(x):
        return NotImplemented
    wide, around = _padded(x, padding)
    sizes = (stride, around, dilation, False, (0,) * len(stride), groups, [*needs[:2], False])
    gx, gw, _ = _aten.convolution_backward(g, wide, weight, None, *sizes)
    if wide is not x and gx is not None:
        inside = (slice(before, before + n) for n, (before, _) in zip(x.shape[2:], padding, strict=True))
        gx = gx[(slice(None), slice(None), *inside)]
    gb = torch.sum(g, (0, *range(2, g.ndim))) if needs[2] else None  # PyTorch's own adds one by one
    return gx, gw, gb


def max_pool_indices(x: Array, kernel: Shape, stride: Shape, padding: Padding, dilation: Shape) -> Any:
    pads = [before for before, after in padding if before == after]
    if (
        not x.is_floating_point()
        or not x.numel()
        or len(kernel) != 2
        or len(pads) != 2
        or any(2 * n > k for n, k in zip(pads, kernel, strict=True))
    ):
        return NotImplemented
    found = _aten.max_pool2d_with_indices(x, kernel, stride, pads, dilation)[1]
    plane = torch.arange(prod(x.shape[:2]), device=x.device).reshape(*x.shape[:2], 1, 1)
    return found + plane * prod(x.shape[2:])


@torch_arrays.writes_in_place
def adam_step(
    p: Array, g: Array, m: Array, v: Array, rates: Array, clip: Array | None, beta1: float, beta2: float,
    eps: float, weight_decay: float, decoupled: bool, p_half: Array | None,
) -> tuple[Array, Array, Array, Array | None]:  # fmt: skip
    g = g.to(p.dtype) if clip is None else g.to(p.dtype) * clip
    if weight_decay and decoupled:
        p.mul_(1.0 - rates[2])
        weight_decay = 0.0
    if p.device.type == "cpu" and p.dtype not in HALF and all(a.is_contiguous() for a in (p, g, m, v)):
        # On other devices, reading the rates would wait. At an infinite step, PyTorch's function has no bias
        # correction: rates has it. rate m / (sqrt(v) / scale + eps) = rate scale m / (sqrt(v) + eps scale)
        rate, scale, _ = rates.tolist()
        torch._fused_adam_(
            [p], [g], [m], [v], [], [_INFINITE], lr=rate * scale, beta1=beta1, beta2=beta2, weight_decay=weight_decay,
            eps=eps * scale, amsgrad=False, maximize=False,
        )  # fmt: skip
    else:
        if weight_decay:
            g = torch.add(g, p, alpha=weight_decay)
        m.mul_(beta1).add_(g, alpha=1.0 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1.0 - beta2)
        denominator = torch.sqrt(v).div_(rates[1]).add_(eps)
        p.sub_(torch.div(m, denominator, out=denominator).mul_(rates[0]))
    return p, m, v, None if p_half is None else p_half.copy_(p)


@torch_arrays.writes_in_place
def token_block(
    x: Array, norms: Sequence[tuple[Array, Array, float]], weights: Sequence[Any], activation: str, cache: Array,
    position: int,
) -> Any:  # fmt: skip
    w_qkv, w_out, w_in, b_in, w_down, b_down = weights
    if x.dtype in HALF:
        return NotImplemented
    row, (_, _, n_heads, _, d) = x.view(1, -1), cache.shape
    qkv = torch.mm(_normalized(row, *norms[0]), w_qkv).view(1, 3, n_heads, 1, d)
    cache.narrow(3, position, 1).copy_(qkv.narrow(1, 1, 2))
    keys, values = cache.narrow(3, 0, position + 1).unbind(1)
    attended = functional.scaled_dot_product_attention(qkv.select(1, 0), keys, values).view(1, -1)
    row = row + attended if w_out is None else torch.addmm(row, attended, w_out)
    hidden = torch.addmm(b_in, _normalized(row, *norms[1]), w_in)
    return torch.addmm(row, _ACTIVATIONS[activation](hidden), w_down).add_(b_down).view(x.shape)


def _normalized(x: Array, gamma: Array, beta: Array, eps: float) -> Array:
    return torch.layer_norm(x - x.mean(-1, keepdim=True), x.shape[-1:], gamma, beta, eps)  # see layer_norm


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    # for inf, as gelu; a few elements
    "gelu": lambda a: functional.gelu(a.double()).to(a.dtype) if a.device.type == "cpu" else functional.gelu(a),
    "gelu_tanh": lambda a: functional.gelu(a, approximate="tanh"),
    "relu": torch.relu,
    "leaky_relu": functional.leaky_relu,
}
