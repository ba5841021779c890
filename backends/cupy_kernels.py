"""The fused primitives of the CuPy backend as CUDA kernels: `cupy_kernels.cu`, compiled at the first call.

What each computes is defined by the function of its name in `numpy_backend.py`; shapes and sources of the formulas are
beside the kernels. They take:

- dtypes: arrays of float32, or of bfloat16 (as `ml_dtypes` defines it) throughout, and compute in float32; means, log
  sums, losses, norms and Adam's state are float32. `takes` says whether arrays are such; float64 is left to the caller.
- sizes: any, empty ones too, with less than 2^31 rows, and lengths of attention (L + S) below 2^31.
- layouts: any; what is not contiguous is copied first, but in attention, where only the last axis must be. Where rows
  are a multiple of 16 bytes and arrays begin at one, memory is read and written in pieces of 16 bytes.
- widths: attention's q and v up to 128 (`attention_takes`), embedding's tables up to 384 rows (`embedding_takes`).

Nothing here waits for the device, and every result has the same bits every time. An array of another dtype is a
TypeError; that shapes fit is up to the caller.
"""

from collections.abc import Sequence
from functools import cache
from math import nan, prod, sqrt
from pathlib import Path
from typing import Any, TypeAlias

import cupy
import numpy as np

Array: TypeAlias = Any  # cupy.ndarray; CuPy ships no type hints
DType: TypeAlias = Any
Shape: TypeAlias = tuple[int, ...]

# --- The module of kernels

SOURCE: str = Path(__file__).with_name("cupy_kernels.cu").read_text(encoding="utf-8")

_PACKS = {"float": 4, "bf16": 8}  # C++'s name of each dtype, and how many of it are 16 bytes
_PER_TYPE = (
    "column_sums", "softmax", "softmax_backward", "cross_entropy", "cross_entropy_backward", "embedding_backward",
    "squares", "adam_step",
)  # fmt: skip
_PER_PACK = ("layer_norm", "layer_norm_backward", "layer_norm_backward_columns")
_PER_ACTIVATION = ("activation",)
_GELU, _LEAKY_RELU = {"none": "GELU", "tanh": "GELU_TANH"}, "LEAKY_RELU"
_PER_WIDTH = ("attention", "attention_backward_q", "attention_backward_kv")
_WIDTHS = (32, 64, 128)  # of attention's tiles in shared memory

_TYPES_AND_PACKS = [f"{t}, {n}" for t, pack in _PACKS.items() for n in (1, pack)]
NAME_EXPRESSIONS: tuple[str, ...] = (
    "counted_mean",
    "norm_and_scale",
    *(f"uniform<{t}>" for t in (*_PACKS, "double")),
    *(f"{name}<{t}>" for name in _PER_TYPE for t in _PACKS),
    *(f"{name}<{pack}>" for name in _PER_PACK for pack in _TYPES_AND_PACKS),
    *(
        f"{name}<{pack}, {activation}>"
        for name in _PER_ACTIVATION
        for pack in _TYPES_AND_PACKS
        for activation in (*_GELU.values(), _LEAKY_RELU)
    ),
    *(f"{name}<{t}, {width}>" for name in _PER_WIDTH for t in _PACKS for width in _WIDTHS),
)


@cache
def _module() -> Any:
    return cupy.RawModule(code=SOURCE, options=("-std=c++17",), name_expressions=NAME_EXPRESSIONS)


@cache
def _kernel(name: str) -> Any:
    return _module().get_function(name)


def _launch(name: str, grid: tuple[int, ...], threads: int, *args: Any) -> None:
    """None stands for a null pointer, of which CuPy makes none itself."""
    _kernel(name)(grid, (threads,), tuple(0 if arg is None else arg for arg in args))


# --- What the kernels take

_WARPS = 8  # in a block of the kernels that go by rows or by columns, as in the source
_BLOCK = 32 * _WARPS
_MOST_BLOCKS = 4096  # of a kernel that goes by columns: enough to fill any device, and few partial sums


@cache  # of a dtype NumPy works out its name each time
def _name(dtype: DType) -> str:
    return str(dtype.name)


_TYPES = {"float32": "float", "bfloat16": "bf16"}


def takes(*arrays: Array | None) -> bool:
    """Whether all arrays are float32, or all are bfloat16. None counts as either."""
    dtypes = {array.dtype for array in arrays if array is not None}
    return len(dtypes) == 1 and _name(dtypes.pop()) in _TYPES


def _common_type(op: str, *arrays: Array | None) -> str:
    """C++'s name of the dtype. Raises TypeError."""
    if not takes(*arrays):
        given = ", ".join(str(array.dtype) for array in arrays if array is not None)
        raise TypeError(f"{op}: the kernels take float32 or bfloat16 throughout, got {given}; see takes()")
    return _TYPES[next(_name(array.dtype) for array in arrays if array is not None)]


def _check(op: str, dtype: str, **arrays: Array | None) -> None:
    """Raises TypeError for an array of another dtype."""
    for name, array in arrays.items():
        if array is not None and _name(array.dtype) != dtype:
            raise TypeError(f"{op}: {name} must be {dtype}, got {array.dtype}")


def _dense(array: Array | None) -> Array | None:
    """The array itself if its elements lie in order without gaps, else a copy."""
    return array if array is None or array.flags.c_contiguous else array.copy()


def _pack(type_name: str, c: int, *arrays: Array | None) -> int:
    """How many elements of a row of c the kernels take at once: 16 bytes of them if all arrays allow that, else 1."""
    pack = _PACKS[type_name]
    fits = c % pack == 0 and all(array is None or array.data.ptr % 16 == 0 for array in arrays)
    return pack if fits else 1


def _by_columns(n: int, c: int, pack: int) -> tuple[tuple[int, int], int]:
    """Grid, and rows of each block, for a kernel whose blocks have 32 packs of columns each."""
    across = -(-c // (32 * pack))
    chunk = max(32, -(-n * across // _MOST_BLOCKS))
    return (across, -(-n // chunk)), chunk


def _row_blocks(n: int) -> tuple[int]:
    return (-(-n // _WARPS),)


def _column_sums(type_name: str, partial: Array, *outs: Array | None) -> None:
    """(sets, m, C) float32 -> (C,) for each set, into those of `outs` that are not None."""
    sets, m, c = partial.shape
    first, second = outs if sets == 2 else (*outs, None)
    _launch(f"column_sums<{type_name}>", (-(-c // 32), sets), 1024, partial, first, second, m, c)


# --- Activations


def gelu(a: Array, approximate: str) -> Array:
    """(...) -> (...); `approximate` is "none" or "tanh"."""
    return _activation("gelu", _GELU[approximate], 0.0, a)


def gelu_backward(g: Array, a: Array, approximate: str) -> Array:
    """(...) (...) -> the gradient of a (...)."""
    return _activation("gelu_backward", _GELU[approximate], 0.0, a, g)


def leaky_relu(a: Array, alpha: float) -> Array:
    """(...) -> (...); alpha 0 is ReLU."""
    return _activation("leaky_relu", _LEAKY_RELU, alpha, a)


def leaky_relu_backward(g: Array, a: Array, alpha: float) -> Array:
    """(...) (...) -> the gradient of a (...)."""
    return _activation("leaky_relu_backward", _LEAKY_RELU, alpha, a, g)


def _activation(op: str, kind: str, alpha: float, a: Array, g: Array | None = None) -> Array:
    """act(a), or g act'(a) if there is a g."""
    t = _common_type(op, a, g)
    a, g, out = _dense(a), _dense(g), cupy.empty(a.shape, a.dtype)
    if out.size:
        pack = _pack(t, out.size, a, g, out)
        threads = out.size // pack
        _launch(f"activation<{t}, {pack}, {kind}>", (-(-threads // _BLOCK),), _BLOCK, a, g, out, threads, float(alpha))
    return out


# --- Layer norm


def layer_norm(x: Array, gamma: Array | None, beta: Array | None, eps: float) -> tuple[Array, Array, Array]:
    """(..., C) (C,) (C,) -> y (..., C), mean (..., 1) and 1 / standard deviation (..., 1), both float32."""
    t = _common_type("layer_norm", x, gamma, beta)
    x, gamma, beta, c = _dense(x), _dense(gamma), _dense(beta), x.shape[-1]
    y, per_row = cupy.empty(x.shape, x.dtype), (*x.shape[:-1], 1)
    if not x.size:
        return y, cupy.full(per_row, nan, np.float32), cupy.full(per_row, nan, np.float32)
    mean, rstd = cupy.empty(per_row, np.float32), cupy.empty(per_row, np.float32)
    n, pack = x.size // c, _pack(t, c, x, gamma, beta, y)
    name = f"layer_norm<{t}, {pack}>"
    _launch(name, _row_blocks(n), _BLOCK, x, gamma, beta, y, mean, rstd, n, c, float(eps))
    return y, mean, rstd


def layer_norm_backward(
    g: Array,
    x: Array,
    gamma: Array | None,
    mean: Array,
    rstd: Array,
    needs: Sequence[bool],
) -> tuple[Array | None, ...]:
    """Gradients of x, gamma and beta, None where not needed."""
    t = _common_type("layer_norm_backward", g, x, gamma)
    _check("layer_norm_backward", "float32", mean=mean, rstd=rstd)
    need_x, need_gamma, need_beta = needs
    g, x, gamma, c = _dense(g), _dense(x), _dense(gamma), x.shape[-1]
    mean, rstd = _dense(mean), _dense(rstd)
    gx = cupy.empty(x.shape, x.dtype) if need_x else None
    if not x.size:
        return gx, *(cupy.zeros((c,), x.dtype) if need else None for need in (need_gamma, need_beta))
    n, pack = x.size // c, _pack(t, c, g, x, gamma, gx)
    if need_x:
        name = f"layer_norm_backward<{t}, {pack}>"
        _launch(name, _row_blocks(n), _BLOCK, g, x, gamma, mean, rstd, gx, n, c)
    if not need_gamma and not need_beta:
        return gx, None, None
    grid, chunk = _by_columns(n, c, pack)
    partial = cupy.empty((2, grid[1], c), np.float32)
    _launch(f"layer_norm_backward_columns<{t}, {pack}>", grid, _BLOCK, g, x, mean, rstd, partial, n, c, chunk)
    ggamma, gbeta = (cupy.empty((c,), x.dtype) if need else None for need in (need_gamma, need_beta))
    _column_sums(t, partial, ggamma, gbeta)
    return gx, ggamma, gbeta


# --- Softmax along the last axis


def softmax(a: Array) -> Array:
    return _softmax("softmax", 0, a)


def softmax_backward(g: Array, y: Array) -> Array:
    return _softmax("softmax_backward", 0, g, y)


def log_softmax(a: Array) -> Array:
    return _softmax("softmax", 1, a)


def log_softmax_backward(g: Array, y: Array) -> Array:
    return _softmax("softmax_backward", 1, g, y)


def _softmax(name: str, logarithm: int, *arrays: Array) -> Array:
    t = _common_type(name, *arrays)
    dense, out = [_dense(array) for array in arrays], cupy.empty(arrays[0].shape, arrays[0].dtype)
    if out.size:
        c = out.shape[-1]
        n = out.size // c
        _launch(f"{name}<{t}>", _row_blocks(n), _BLOCK, *dense, out, n, c, logarithm)
    return out


# --- Cross-entropy


def cross_entropy(logits: Array, ids: Array, valid: Array | None, excluded_class: int | None) -> tuple[Array, Array]:
    """(N, C) (N,) int64 (N,) bool -> the mean loss () float32, and the probabilities (N, C)."""
    t = _common_type("cross_entropy", logits)
    _check("cross_entropy", "int64", ids=ids)
    _check("cross_entropy", "bool", valid=valid)
    logits, ids, valid, (n, c) = _dense(logits), _dense(ids), _dense(valid), logits.shape
    probs = cupy.empty((n, c), logits.dtype)
    if not probs.size:
        return cupy.full((), nan, np.float32), probs
    losses, loss, count = cupy.empty((n,), np.float32), cupy.empty((), np.float32), cupy.empty((), np.float32)
    none = -1 if excluded_class is None else excluded_class
    _launch(f"cross_entropy<{t}>", _row_blocks(n), _BLOCK, logits, ids, valid, losses, probs, n, c, none)
    _launch("counted_mean", (1,), 1024, losses, valid, count, loss, n)
    return loss, probs


def cross_entropy_backward(g: Array, probs: Array, ids: Array, valid: Array | None) -> Array:
    """() float32 (N, C) (N,) int64 (N,) bool -> (N, C)."""
    t = _common_type("cross_entropy_backward", probs)
    _check("cross_entropy_backward", "float32", g=g)
    _check("cross_entropy_backward", "int64", ids=ids)
    _check("cross_entropy_backward", "bool", valid=valid)
    probs, ids, valid, (n, c) = _dense(probs), _dense(ids), _dense(valid), probs.shape
    out = cupy.empty((n, c), probs.dtype)
    if not out.size:
        return out
    count = None if valid is None else cupy.empty((), np.float32)
    if valid is not None:
        _launch("counted_mean", (1,), 1024, None, valid, count, None, n)
    _launch(f"cross_entropy_backward<{t}>", _row_blocks(n), _BLOCK, g, probs, ids, valid, count, out, n, c)
    return out


# --- Attention


def attention_takes(q: Array, k: Array, v: Array) -> bool:
    return takes(q, k, v) and q.shape[-1] <= _WIDTHS[-1] and v.shape[-1] <= _WIDTHS[-1]


def attention(q: Array, k: Array, v: Array, mask: Array | None, causal: bool, offset: int) -> tuple[Array, Array]:
    """(..., L, d) (..., S, d) (..., S, e) -> (..., L, e) in memory like q, and log sum exp (..., L, 1) float32.

    `mask` is bool, True = hidden, (..., L, S) after broadcasting. Raises ValueError for widths beyond the kernels'.
    """
    heads = _Heads("attention", q, k, v, mask, causal, offset)
    q, k, v, mask = heads.q, heads.k, heads.v, heads.mask
    out, log_sum = _empty_like(q, v.shape[-1]), cupy.empty((*q.shape[:3], 1), np.float32)
    if log_sum.size:
        rows = 64 if heads.width <= 64 else 32
        steps = (*_steps(q, k, v), *_steps(mask, axes=4), *_steps(out))
        heads.launch("attention", q, rows, (q, k, v, mask, out, log_sum), steps)
    return heads.joined(out), heads.joined(log_sum)


def attention_backward(
    g: Array,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    log_sum: Array,
    mask: Array | None,
    causal: bool,
    offset: int,
    needs: Sequence[bool],
) -> tuple[Array | None, ...]:
    """Gradients of q, k and v in memory like these, with all batch axes; None where not needed."""
    heads = _Heads("attention_backward", q, k, v, mask, causal, offset, g, out)
    _check("attention_backward", "float32", log_sum=log_sum)
    q, k, v, mask, (need_q, need_k, need_v) = heads.q, heads.k, heads.v, heads.mask, needs
    g, out, log_sum = heads.split(g), heads.split(out), _dense(log_sum)
    gq, gk, gv = (_empty_like(a, a.shape[-1]) if need else None for a, need in zip((q, k, v), needs, strict=True))
    delta = cupy.empty(q.shape[:3], np.float32) if need_q or need_k else None
    if delta is not None and delta.size:
        pointers = (g, q, k, v, out, log_sum, mask, delta, gq)
        steps = (*_steps(g, q, k, v, out), *_steps(mask, axes=4), *_steps(gq))
        heads.launch("attention_backward_q", q, 32, pointers, steps)
    if (need_k or need_v) and k.shape[0] * k.shape[1] * k.shape[2]:
        pointers = (g, q, k, v, log_sum, delta, mask, gk, gv)
        steps = (*_steps(g, q, k, v), *_steps(mask, axes=4), *_steps(gk, gv))
        heads.launch("attention_backward_kv", k, 32, pointers, steps)
    return tuple(None if gradient is None else heads.joined(gradient) for gradient in (gq, gk, gv))


class _Heads:
    """The operands of attention as (B, H, L or S, width), whatever their batch axes, and how its kernels are called."""

    def __init__(
        self, op: str, q: Array, k: Array, v: Array, mask: Array | None, causal: bool, offset: int, *others: Array
    ) -> None:
        self.type = _common_type(op, q, k, v, *others)
        _check(op, "bool", mask=mask)
        widest = max(q.shape[-1], v.shape[-1])
        if widest > _WIDTHS[-1]:
            raise ValueError(
                f"{op}: heads are {widest} wide, the kernels take up to {_WIDTHS[-1]}; see attention_takes()"
            )
        self.width = next(width for width in _WIDTHS if widest <= width)
        batches = {a.shape[:-2] for a in (q, k, v)}
        self.batch: Shape = batches.pop() if len(batches) == 1 else np.broadcast_shapes(*batches)
        self.q, self.k, self.v = self.split(q), self.split(k), self.split(v)
        n_queries, n_keys = q.shape[-2], k.shape[-2]
        self.mask = None if mask is None else self._split(mask, (n_queries, n_keys))
        seen = max(-n_queries, min(offset, n_keys)) if causal else n_keys  # beyond, it makes no difference
        self.sizes = (self.q.shape[1], n_queries, n_keys, q.shape[-1], v.shape[-1], seen, 1.0 / sqrt(q.shape[-1]))

    def split(self, a: Array) -> Array:
        """(..., n, width) -> (B, H, n, width), a view wherever there can be one; the elements of a row side by side."""
        full = self._split(a, a.shape[-2:])
        return full if full.strides[-1] == full.itemsize or full.shape[-1] < 2 else full.copy()

    def _split(self, a: Array, last: Shape) -> Array:
        full = a if a.shape == (*self.batch, *last) else cupy.broadcast_to(a, (*self.batch, *last))
        if full.ndim < 4:
            return full[(None,) * (4 - full.ndim)]
        return full if full.ndim == 4 else full.reshape(prod(full.shape[:-3]), *full.shape[-3:])

    def joined(self, a: Array) -> Array:
        """(B, H, n, width) -> (..., n, width)."""
        if len(self.batch) <= 2:
            return a[(0,) * (2 - len(self.batch))]
        return a.reshape(*self.batch, *a.shape[-2:])

    def launch(
        self, name: str, blocked: Array, rows: int, pointers: Sequence[Array | None], steps: Sequence[int]
    ) -> None:
        """A block for each `rows` rows of each head of `blocked`."""
        b, h, n, _ = blocked.shape
        name = f"{name}<{self.type}, {self.width}>"
        _launch(name, (b * h * -(-n // rows),), 2 * rows, *pointers, *self.sizes, *steps)


def _steps(*arrays: Array | None, axes: int = 3) -> list[int]:
    """Of each array, how many elements lie between neighbours along each of the first axes."""
    return [0 if a is None else a.strides[axis] // a.itemsize for a in arrays for axis in range(axes)]


def _empty_like(a: Array, width: int) -> Array:
    """(B, H, n, width), in memory as (B, n, H, width) if `a` is: then what joins the heads needs no copy."""
    b, h, n, _ = a.shape
    if 0 < a.strides[1] < a.strides[2]:
        return cupy.empty((b, n, h, width), a.dtype).transpose(0, 2, 1, 3)
    return cupy.empty((b, h, n, width), a.dtype)


# --- Embedding

_TABLE = 12288  # floats, as in the source: a block adds up n_rows x (a multiple of 32) of the gradient in them


def embedding_takes(n_rows: int, c: int) -> bool:
    """Whether embedding_backward takes a table of (n_rows, c): up to 384 rows, of any length."""
    return n_rows * 32 <= _TABLE


def embedding_backward(g: Array, ids: Array, n_rows: int) -> Array:
    """(..., C) (...) int64 -> (n_rows, C): rows of g added up by id. Raises ValueError for too many rows."""
    t, c = _common_type("embedding_backward", g), g.shape[-1]
    _check("embedding_backward", "int64", ids=ids)
    if not embedding_takes(n_rows, c):
        raise ValueError(
            f"embedding_backward: {n_rows} rows, the kernel takes up to {_TABLE // 32}; see embedding_takes()"
        )
    if not g.size or not n_rows:
        return cupy.zeros((n_rows, c), g.dtype)
    g, ids = _dense(g), _dense(ids)
    n = ids.size
    threads = min(_TABLE // n_rows // 32 * 32, -(-c // 32) * 32, 256)
    chunk = max(256, -(-n // 256))
    chunks = -(-n // chunk)
    partial = cupy.empty((1, chunks, n_rows * c), np.float32)
    name = f"embedding_backward<{t}>"
    _launch(name, (-(-c // threads), chunks), threads, g, ids, partial, n, c, n_rows, chunk)
    out = cupy.empty((n_rows, c), g.dtype)
    _column_sums(t, partial, out)
    return out


# --- One optimizer step


def sum_of_squares(g: Array) -> Array:
    """(...) -> () float32."""
    return _norm_and_scale("sum_of_squares", g, 0.0)[0]


def clip_scale(g: Array, max_norm: float) -> tuple[Array, Array]:
    """(...) -> the norm () and min(1, max_norm / (norm + 1e-6)) (), both float32."""
    results = _norm_and_scale("clip_scale", g, max_norm)
    return results[1], results[2]


def _norm_and_scale(op: str, g: Array, max_norm: float) -> Array:
    t, g = _common_type(op, g), _dense(g)
    blocks = min(1024, -(-g.size // (256 * _PACKS[t])))
    partial, out = cupy.empty((blocks,), np.float32), cupy.empty((3,), np.float32)
    if blocks:
        _launch(f"squares<{t}>", (blocks,), 256, g, partial, g.size)
    _launch("norm_and_scale", (1,), 1024, partial, out, blocks, float(max_norm))
    return out


def adam_step(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    rates: Array,
    clip: Array | None,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    low: Array | None,
) -> None:
    """One step of Adam, in place on float32 p, m, v; `low`, bfloat16, becomes p rounded. All have one size.

    Args:
        rates: (3,) float32: lr / (1 - beta1^t), sqrt(1 - beta2^t), lr weight_decay. They and `clip` are read on the
            device, so a step that was captured can be replayed with others.
        clip: () float32, which g is multiplied by; None is 1.

    Raises:
        TypeError: another dtype. ValueError: p, m, v or low is not contiguous.
    """
    t = _common_type("adam_step", g)
    _check("adam_step", "float32", p=p, m=m, v=v, rates=rates, clip=clip)
    _check("adam_step", "bfloat16", low=low)
    if not all(array is None or array.flags.c_contiguous for array in (p, m, v, low)):
        raise ValueError("adam_step: p, m, v and low are changed in place, so they must be contiguous")
    if p.size:
        numbers = (float(beta1), float(beta2), float(eps), float(weight_decay), int(decoupled))
        grid = (-(-p.size // 1024),)
        _launch(f"adam_step<{t}>", grid, 256, p, _dense(g), m, v, rates, clip, low, p.size, *numbers)


# --- Random numbers


def uniform(shape: Shape, dtype: DType, key: Array) -> Array:
    """Numbers on [0, 1), the same as `host.uniform`'s, of float64 too.

    key (4,) uint64: seed, counter % 2^64, counter // 2^64, number of the first.
    """
    _check("uniform", "uint64", key=key)
    out = cupy.empty(shape, dtype)
    t = "double" if out.dtype == np.float64 else _common_type("uniform", out)
    if out.size:
        blocks = out.size // 4 + 2  # of four numbers: the first and the last may be in part
        _launch(f"uniform<{t}>", (-(-blocks // 256),), 256, out, _dense(key), out.size)
    return out
