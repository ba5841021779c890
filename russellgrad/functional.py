"""Functions of tensors: of several operands (`where`, `maximum`), fused (`linear`, `attention`), and the methods.

Each method of Tensor in `russellgrad/ops/`, except `trace`, is a function, too: `exp(x)` is `x.exp()`, and
`sum(x, axis=0)` is `x.sum(axis=0)`.
"""

from collections.abc import Callable
from functools import wraps
from types import FunctionType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from . import rules
from .backend import Shape, resolve_backend
from .dtype import python_number
from .random import Generator, default_generator
from .tensor import Mask, Operand, Tensor, apply

P = ParamSpec("P")
R = TypeVar("R")


def where(condition: Mask, a: Operand, b: Operand) -> Tensor:
    """Elements of a where `condition` is True, else of b. The three operands are broadcast.

    Raises TypeError for a condition that is not bool, ValueError for shapes that cannot be broadcast.

        where(x > 0, x, 0.0)
    """
    return apply(rules.where, a, b, condition=condition)


def maximum(a: Operand, b: Operand) -> Tensor:
    """Elementwise maximum. nan propagates. Where a equals b, each gets half of the gradient.

    The operands are broadcast. Raises ValueError for shapes that cannot be.
    """
    return apply(rules.maximum, a, b)


def minimum(a: Operand, b: Operand) -> Tensor:
    """Elementwise minimum. nan propagates. Where a equals b, each gets half of the gradient.

    The operands are broadcast. Raises ValueError for shapes that cannot be.
    """
    return apply(rules.minimum, a, b)


def arctan2(a: Operand, b: Operand) -> Tensor:
    """The angle of the point (b, a) in radians, in [-pi, pi]: `arctan2(y, x)`. The operands are broadcast.

    Raises ValueError for shapes that cannot be broadcast.
    """
    return apply(rules.arctan2, a, b)


def layer_norm(x: Tensor, gamma: Operand = None, beta: Operand = None, eps: float = 1e-5) -> Tensor:
    """Layer normalization over the last axis: (x - mean) / sqrt(variance + eps) * gamma + beta.

    Ba et al., arXiv:1607.06450, equation 4.

    Shapes: x (..., C), gamma and beta (C,) or None -> (..., C). Raises ValueError for other shapes.
    """
    return apply(rules.layer_norm, x, gamma, beta, eps=eps)


def rms_norm(x: Tensor, gamma: Operand = None, eps: float = 1e-5) -> Tensor:
    """Root mean square normalization over the last axis: x / sqrt(mean(x^2) + eps) * gamma.

    Zhang & Sennrich, arXiv:1910.07467, equation 4. In half precision, it computes in float32.

    Shapes: x (..., C), gamma (C,) or None -> (..., C). Raises ValueError for other shapes.
    """
    return apply(rules.rms_norm, x, gamma, eps=eps)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """The gated activation of a SwiGLU layer: silu(gate) * up, with silu(a) = a * sigmoid(a).

    Shazeer, arXiv:2002.05202, equation 5. Shapes: gate (...), up (...) -> (...). Raises ValueError for other shapes.
    """
    return apply(rules.swiglu, gate, up)


def linear(x: Tensor, weight: Tensor, bias: Operand = None) -> Tensor:
    """Linear map, x @ weight + bias.

    Shapes: x (..., in), weight (in, out), bias (out,) or None -> (..., out). Raises ValueError for other shapes.
    """
    return apply(rules.linear, x, weight, bias)


def embedding(weight: Tensor, indices: Any) -> Tensor:
    """Look up rows of `weight` (rows, C): indices (...) -> (..., C). The gradients of repeated indices add up.

    Args:
        weight: the table, one row for each index.
        indices: an array, nested lists or a Tensor of integers in [0, rows). Indices on the host are checked before
            they are copied. Checking indices on a device copies them to the host and waits for the device.

    Raises:
        IndexError: an index is out of range. TypeError: the indices are not integers.
    """
    return apply(rules.embedding, weight, ids=indices)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask = None,
    causal: bool = False,
    offset: int = 0,
    *,
    dropout_p: float = 0.0,
    generator: Generator | None = None,
) -> Tensor:
    """Scaled dot-product attention: softmax(q k^T / sqrt(d)) v (Vaswani et al., arXiv:1706.03762, equation 1).

    Shapes: q (..., L, d), k (..., S, d), v (..., S, e) -> (..., L, e).

    Args:
        mask: bool, broadcast to (..., L, S). True hides a key from a query (the opposite of PyTorch's
            `scaled_dot_product_attention`).
        causal: query i sees the keys up to i + offset.
        offset: 0 aligns the first query with the first key; S - L aligns the last query with the last key, as a
            key-value cache needs.
        dropout_p: the probability of dropout of the attention weights, in [0, 1): the softmax is multiplied by
            `generator.dropout_mask((..., L, S), dropout_p, dtype, backend)`, with the batch axes of the output. As
            PyTorch's `scaled_dot_product_attention`, it applies dropout whenever dropout_p > 0: pass 0 in evaluation.
        generator: the generator of the random numbers; by default `random.default_generator()`.

    If all keys are hidden from a query, its output and gradients are 0. Raises ValueError for other shapes, or for a
    dropout_p outside [0, 1).
    """
    dropout = _dropout("attention", dropout_p, generator, lambda: rules.attention_shape(q, k, v), (q, k, v))
    return apply(rules.attention, q, k, v, mask=mask, causal=causal, offset=offset, **dropout)


def _dropout(
    op: str, p: float, generator: Generator | None, shape: Callable[[], Shape], operands: tuple[Operand, ...]
) -> dict[str, rules.DropoutKey]:
    """The parameter `dropout` of an attention rule, whose weights have this shape. Without dropout there is none."""
    rules.check_probability(f"{op}: dropout_p", p, "; pass 0 for no dropout")
    if not p or not rules.min_ndim(*operands):  # `apply` or the rule refuses an operand without axes
        return {}
    xp = next((x.backend for x in operands if isinstance(x, Tensor)), resolve_backend(None))
    return {"dropout": ((generator or default_generator())._key(shape(), xp), float(p))}


def attention_qkvpacked(
    qkv: Tensor,
    n_heads: int,
    mask: Mask = None,
    causal: bool = False,
    *,
    dropout_p: float = 0.0,
    generator: Generator | None = None,
) -> Tensor:
    """Multi-head self-attention on packed queries, keys and values (named as in FlashAttention).

    Shapes: qkv (..., T, 3 C) -> (..., T, C). The last axis of qkv concatenates q, k and v; each of them concatenates
    its n_heads heads.

    Args:
        n_heads: the number of heads; must divide C.
        mask: bool, broadcast to (..., n_heads, T, T). True hides a key from a query.
        causal: query i sees the keys up to i.
        dropout_p, generator: as in `attention`; the weights are (..., n_heads, T, T).

    Raises ValueError for shapes that do not match, or for a dropout_p outside [0, 1).
    """
    op = "attention_qkvpacked"
    dropout = _dropout(op, dropout_p, generator, lambda: rules.packed_shape(qkv, n_heads), (qkv,))
    return apply(rules.attention_qkvpacked, qkv, n_heads=n_heads, mask=mask, causal=causal, **dropout)


# --- The methods of Tensor, as functions


def _function(method: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Operand, P], R]:
    """The function of a method. Its first argument may also be a number or an array, as an operand may."""
    name = method.__name__

    @wraps(method)
    def function(x: Operand, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return method(x if isinstance(x, Tensor) else _constant(name, x), *args, **kwargs)

    function.__qualname__, function.__module__ = name, __name__
    return function


def _constant(op: str, x: Any) -> Tensor:
    """A Tensor of a number or an array of the current backend. Raises TypeError for anything else."""
    if python_number(x) is None and not resolve_backend(None).is_array(x):
        kind = type(x)
        raise TypeError(
            f"{op}: cannot take a {kind.__module__}.{kind.__name__}; pass a Tensor, as in {op}(Tensor(x)), a number or "
            f"an array of backend {resolve_backend(None).name!r}"
        )
    return Tensor(x, requires_grad=False)


# ops/elementwise.py
exp = _function(Tensor.exp)
expm1 = _function(Tensor.expm1)
log = _function(Tensor.log)
log1p = _function(Tensor.log1p)
exp2 = _function(Tensor.exp2)
log2 = _function(Tensor.log2)
log10 = _function(Tensor.log10)
square = _function(Tensor.square)
sqrt = _function(Tensor.sqrt)
tanh = _function(Tensor.tanh)
sinh = _function(Tensor.sinh)
cosh = _function(Tensor.cosh)
abs = _function(Tensor.abs)
sin = _function(Tensor.sin)
cos = _function(Tensor.cos)
tan = _function(Tensor.tan)
arcsin = _function(Tensor.arcsin)
arccos = _function(Tensor.arccos)
arctan = _function(Tensor.arctan)
erf = _function(Tensor.erf)
sign = _function(Tensor.sign)
isnan = _function(Tensor.isnan)
isinf = _function(Tensor.isinf)
isfinite = _function(Tensor.isfinite)
floor = _function(Tensor.floor)
ceil = _function(Tensor.ceil)
sigmoid = _function(Tensor.sigmoid)
relu = _function(Tensor.relu)
silu = _function(Tensor.silu)
leaky_relu = _function(Tensor.leaky_relu)
gelu = _function(Tensor.gelu)
softplus = _function(Tensor.softplus)
elu = _function(Tensor.elu)
round = _function(Tensor.round)
nan_to_num = _function(Tensor.nan_to_num)
astype = _function(Tensor.astype)
log_softmax = _function(Tensor.log_softmax)
clip = _function(Tensor.clip)
masked_fill = _function(Tensor.masked_fill)
masked_multiply = _function(Tensor.masked_multiply)
# ops/shapes.py
transpose = _function(Tensor.transpose)
swapaxes = _function(Tensor.swapaxes)
reshape = _function(Tensor.reshape)
flatten = _function(Tensor.flatten)
ravel = _function(Tensor.ravel)
copy = _function(Tensor.copy)
moveaxis = _function(Tensor.moveaxis)
broadcast_to = _function(Tensor.broadcast_to)
squeeze = _function(Tensor.squeeze)
expand_dims = _function(Tensor.expand_dims)
split = _function(Tensor.split)
concatenate, stack = Tensor.concatenate, Tensor.stack
# ops/reductions.py
sum = _function(Tensor.sum)
mean = _function(Tensor.mean)
var = _function(Tensor.var)
std = _function(Tensor.std)
norm = _function(Tensor.norm)
logsumexp = _function(Tensor.logsumexp)
prod = _function(Tensor.prod)
cumsum = _function(Tensor.cumsum)
cumprod = _function(Tensor.cumprod)
any = _function(Tensor.any)
all = _function(Tensor.all)
max = _function(Tensor.max)
min = _function(Tensor.min)
argmax = _function(Tensor.argmax)
argmin = _function(Tensor.argmin)
# ops/rearranging.py
flip = _function(Tensor.flip)
roll = _function(Tensor.roll)
repeat = _function(Tensor.repeat)
tile = _function(Tensor.tile)
pad = _function(Tensor.pad)
tril = _function(Tensor.tril)
triu = _function(Tensor.triu)
diagonal = _function(Tensor.diagonal)
# Not trace: russellgrad.trace records operations (tracing.py).
# ops/sorting.py
argsort = _function(Tensor.argsort)
sort = _function(Tensor.sort)
topk = _function(Tensor.topk)
take_along_axis = _function(Tensor.take_along_axis)

if not TYPE_CHECKING:  # a type checker reads __all__ only where it is a list of strings
    __all__ = [
        name for name, value in globals().items()
        if isinstance(value, FunctionType) and name[0] != "_"
        and value.__module__.startswith((__name__, f"{__package__}.ops."))  # not what is imported
    ]  # fmt: skip
