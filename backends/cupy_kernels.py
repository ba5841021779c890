"""The CUDA kernels of the CuPy backend: `cupy_kernels.cu`, compiled at the first call that needs them.

The function of the same name in `formulas.py` defines what each one computes. Shapes and sources are beside the
kernels. The kernels take:

- dtypes: all arrays float32, or all bfloat16 (of the package ml_dtypes). They compute in float32; means, log sums,
  losses, norms and Adam's state are float32. `takes` checks this. float64 is left to the formulas. Attention in
  bfloat16, or with factors rounded to TF32, has kernels of its own, for the tensor cores that devices have since sm_80
  (`attention_takes`).
- sizes: any, 0 too, with fewer than 2^31 rows; in attention L + S must be below 2^31.
- layouts: any. An array that is not contiguous is copied first; attention needs only a contiguous last axis. Memory is
  read and written 16 bytes at a time where rows are a multiple of 16 bytes and arrays are aligned to 16.
- widths: attention's q and v up to 128 (`attention_takes`), embedding's tables up to 384 rows (`embedding_takes`).

No function waits for the device. Results are deterministic. Every function raises TypeError for an array of another
dtype, and does not check shapes.
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
AttentionDropout: TypeAlias = tuple[Array, float, DType]  # key, p and dtype of `dropout_mask`

# --- The module of kernels

SOURCE: str = Path(__file__).with_name("cupy_kernels.cu").read_text(encoding="utf-8")

_PACKS = {"float": 4, "bf16": 8}  # the C++ name of each dtype, and the number of elements in 16 bytes
_PER_TYPE = (
    "column_sums", "softmax", "softmax_backward", "cross_entropy", "cross_entropy_backward", "embedding_backward",
    "squares", "adam_step",
)  # fmt: skip
_PER_PACK = ("row_sums", "layer_norm", "layer_norm_backward", "layer_norm_backward_columns")
_PER_ACTIVATION = ("activation",)
_GELU, _LEAKY_RELU = {"none": "GELU", "tanh": "GELU_TANH"}, "LEAKY_RELU"
_PER_WIDTH = ("attention", "attention_backward_q", "attention_backward_kv")
_WIDTHS = (32, 64, 128)  # of attention's tiles in shared memory: the templates' D
_DROP = ("", ", true")  # without dropout, and with it

_TYPES_AND_PACKS = [f"{t}, {n}" for t, pack in _PACKS.items() for n in (1, pack)]
NAME_EXPRESSIONS: tuple[str, ...] = (
    "valid_mean",
    "norm_and_scale",
    *(f"uniform<{t}, {mask}>" for t in (*_PACKS, "double") for mask in ("false", "true")),
    *(f"elementwise<{pack}, {operation}>" for pack in _TYPES_AND_PACKS for operation in ("ADD", "MULTIPLY", "COPY")),
    *(f"{name}<{t}>" for name in _PER_TYPE for t in _PACKS),
    *(f"{name}<{pack}>" for name in _PER_PACK for pack in _TYPES_AND_PACKS),
    *(
        f"{name}<{pack}, {activation}>"
        for name in _PER_ACTIVATION
        for pack in _TYPES_AND_PACKS
        for activation in (*_GELU.values(), _LEAKY_RELU)
    ),
    *(f"dropout_bits<{t}>" for t in (*_PACKS, "double")),
    *(f"{name}<{width}{drop}>" for name in _PER_WIDTH for width in _WIDTHS for drop in _DROP),
    *(f"{name}_mma<{t}, {width}{drop}>" for name in _PER_WIDTH for t in _PACKS for width in _WIDTHS for drop in _DROP),
)


def _is_of_dropout(name: str) -> bool:
    """Whether the kernel is one of attention with dropout."""
    return name.startswith("dropout_bits") or "attention" in name and name.endswith(f"{_DROP[1]}>")


@cache
def _module(of_dropout: bool) -> Any:
    """The kernels of attention with dropout, which take as long to compile as those without, or all others."""
    names = tuple(name for name in NAME_EXPRESSIONS if _is_of_dropout(name) == of_dropout)
    return cupy.RawModule(code=SOURCE, options=("-std=c++17",), name_expressions=names)


@cache
def _kernel(name: str) -> Any:
    return _module(_is_of_dropout(name)).get_function(name)


def _launch(name: str, grid: tuple[int, ...], threads: int, *args: Any, shared: int = 0) -> None:
    """None is passed as a null pointer, which CuPy does not do. `shared`: bytes of dynamic shared memory."""
    if shared:
        _allow_shared(name, shared, cupy.cuda.Device().id)
    _kernel(name)(grid, (threads,), tuple(0 if arg is None else arg for arg in args), shared_mem=shared)


@cache  # once per device
def _allow_shared(name: str, shared: int, device: int) -> None:
    """Let a kernel have this much dynamic shared memory; without that, a launch fails above 48 KiB."""
    _kernel(name).max_dynamic_shared_size_bytes = shared


# --- What the kernels take

_WARPS = 8  # per block of the row and column kernels, as in the source
_BLOCK = 32 * _WARPS
_MOST_BLOCKS = 4096  # of a column kernel: enough to fill any device, with few partial sums
_MOST_ROWS = 512  # per block of a column kernel, and an eighth per thread, which adds them one by one
_GRID_Y = 65535  # CUDA's limit


@cache  # NumPy computes the name of a dtype at each access
def _name(dtype: DType) -> str:
    return str(dtype.name)


_TYPES = {"float32": "float", "bfloat16": "bf16"}


def takes(*arrays: Array | None) -> bool:
    """Whether all arrays are float32, or all are bfloat16. None is ignored."""
    dtypes = {array.dtype for array in arrays if array is not None}
    return len(dtypes) == 1 and _name(dtypes.pop()) in _TYPES


def _common_type(op: str, *arrays: Array | None) -> str:
    """The C++ name of the arrays' common dtype. Raises TypeError if there is none that the kernels take."""
    if not takes(*arrays):
        given = ", ".join(str(array.dtype) for array in arrays if array is not None)
        raise TypeError(
            f"{op}: the kernels take arrays that are all float32 or all bfloat16, got {given}; cast them with astype"
        )
    return _TYPES[next(_name(array.dtype) for array in arrays if array is not None)]


def _check(op: str, dtype: str, **arrays: Array | None) -> None:
    """Raises TypeError for an array whose dtype is not `dtype`."""
    for name, array in arrays.items():
        if array is not None and _name(array.dtype) != dtype:
            raise TypeError(f"{op}: {name} must be {dtype}, got {array.dtype}; cast it with astype")


def _dense(array: Array | None) -> Array | None:
    """The array itself if it is C-contiguous, else a contiguous copy."""
    return array if array is None or array.flags.c_contiguous else array.copy()


def _pack(type_name: str, c: int, *arrays: Array | None) -> int:
    """Elements per access in rows of length c: 16 bytes' worth if all arrays are aligned for it, else 1."""
    pack = _PACKS[type_name]
    fits = c % pack == 0 and all(array is None or array.data.ptr % 16 == 0 for array in arrays)
    return pack if fits else 1


def _by_columns(n: int, c: int, pack: int) -> tuple[tuple[int, int], int]:
    """The grid of a column kernel, each block of which has 32 packs of columns; and the number of rows per block."""
    across = -(-c // (32 * pack))
    chunk = max(32, min(_MOST_ROWS, -(-n * across // _MOST_BLOCKS)), -(-n // _GRID_Y))
    return (across, -(-n // chunk)), chunk


def _row_blocks(n: int) -> tuple[int]:
    return (-(-n // _WARPS),)


def _column_sums(type_name: str, partial: Array, *outs: Array | None) -> None:
    """(sets, m, C) float32 -> (C,) for each set, written to `outs`; None skips a set."""
    sets, m, c = partial.shape
    first, second = outs if sets == 2 else (*outs, None)
    _launch(f"column_sums<{type_name}>", (-(-c // 32), sets), 1024, partial, first, second, m, c)


# --- Sums of rows


def row_sums(a: Array) -> Array:
    """(N, C) -> (C,), with an error that does not grow with N."""
    t, (n, c) = _common_type("sum", a), a.shape
    if not a.size:
        return cupy.zeros((c,), a.dtype)
    a, out = _dense(a), cupy.empty((c,), a.dtype)
    pack = _pack(t, c, a)
    grid, chunk = _by_columns(n, c, pack)
    partial = cupy.empty((1, grid[1], c), np.float32)
    _launch(f"row_sums<{t}, {pack}>", grid, _BLOCK, a, partial, n, c, chunk)
    _column_sums(t, partial, out)
    return out


# --- Sums and products of the elements of two arrays, and copies

_ROWS_OF_A_THREAD = 4  # as in the source
_LARGE = 1 << 16  # elements: CuPy takes no longer for smaller arrays


def elementwise_takes(a: Array, b: Array) -> bool:
    """Whether `elementwise` takes a (..., C) and b, (..., C) or (C,): large, dense, of one dtype of the kernels."""
    return bool(
        a.size >= _LARGE
        and b.shape in (a.shape, a.shape[-1:])
        and a.flags.c_contiguous
        and b.flags.c_contiguous
        and takes(a, b)
    )


def elementwise(operation: str, a: Array, b: Array, out: Array | None = None) -> Array:
    """a + b ("ADD") or a b ("MULTIPLY"): (..., C), and (..., C) or (C,) -> (..., C).

    The result is written to `out` if given, which may be `a`. CuPy's own functions move one element per thread at a
    time, and reach a third of a device's bandwidth in bfloat16.
    """
    _common_type(operation.lower(), a, b)
    out = cupy.empty(a.shape, a.dtype) if out is None else out
    c = a.shape[-1]
    _elementwise(operation, a, b, out, c if b.shape == a.shape else 0, c)
    return out


def join_takes(arrays: Sequence[Array]) -> bool:
    """Whether `join` takes these: large, dense, of one dtype that the kernels take."""
    return all(array.size >= _LARGE and array.flags.c_contiguous for array in arrays) and takes(*arrays)


def join(arrays: Sequence[Array], out: Array) -> None:
    """(..., C_i) -> (..., sum of C_i): copies the arrays, one after the other along the last axis, into `out`."""
    first = 0
    for array in arrays:
        part = out[..., first : first + array.shape[-1]]
        _elementwise("COPY", array, None, part, 0, out.shape[-1])
        first += array.shape[-1]


def _elementwise(operation: str, a: Array, b: Array | None, out: Array, b_step: int, out_step: int) -> None:
    t, c = _common_type(operation.lower(), a, out), a.shape[-1]
    n, pack = a.size // c, _pack(t, c, a, b, out)
    if out_step % pack:
        pack = 1
    threads = -(-n // _ROWS_OF_A_THREAD) * (c // pack)
    name = f"elementwise<{t}, {pack}, {operation}>"
    _launch(name, (-(-threads // _BLOCK),), _BLOCK, a, b, out, n, c, b_step, out_step)


# --- Activations


def gelu(a: Array, approximate: str) -> Array:
    """(...) -> (...); `approximate` is "none" or "tanh"."""
    return _activation("gelu", _GELU[approximate], 0.0, a)


def gelu_backward(g: Array, a: Array, approximate: str) -> Array:
    """(...) (...) -> the gradient of a (...)."""
    return _activation("gelu_backward", _GELU[approximate], 0.0, a, g)


def leaky_relu(a: Array, alpha: float) -> Array:
    """(...) -> (...); alpha = 0 is ReLU."""
    return _activation("leaky_relu", _LEAKY_RELU, alpha, a)


def leaky_relu_backward(g: Array, a: Array, alpha: float) -> Array:
    """(...) (...) -> the gradient of a (...)."""
    return _activation("leaky_relu_backward", _LEAKY_RELU, alpha, a, g)


def _activation(op: str, kind: str, alpha: float, a: Array, g: Array | None = None) -> Array:
    """act(a), or g act'(a) if g is given."""
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
    """Gradients of x (..., C), gamma (C,) and beta (C,); None for those that `needs` leaves out."""
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
    """(N, C) (N,) int64 (N,) bool -> the mean loss over valid rows () float32, and the probabilities (N, C)."""
    t = _common_type("cross_entropy", logits)
    _check("cross_entropy", "int64", ids=ids)
    _check("cross_entropy", "bool", valid=valid)
    logits, ids, valid, (n, c) = _dense(logits), _dense(ids), _dense(valid), logits.shape
    probs = cupy.empty((n, c), logits.dtype)
    if not probs.size:
        return cupy.full((), nan, np.float32), probs
    losses, loss, count = cupy.empty((n,), np.float32), cupy.empty((), np.float32), cupy.empty((), np.float32)
    excluded = -1 if excluded_class is None else excluded_class
    _launch(f"cross_entropy<{t}>", _row_blocks(n), _BLOCK, logits, ids, valid, losses, probs, n, c, excluded)
    _launch("valid_mean", (1,), 1024, losses, valid, count, loss, n)
    return loss, probs


def cross_entropy_backward(g: Array, probs: Array, ids: Array, valid: Array | None) -> Array:
    """() float32 (N, C) (N,) int64 (N,) bool -> the gradient of the logits (N, C)."""
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
        _launch("valid_mean", (1,), 1024, None, valid, count, None, n)
    _launch(f"cross_entropy_backward<{t}>", _row_blocks(n), _BLOCK, g, probs, ids, valid, count, out, n, c)
    return out


# --- Attention


@cache
def _has_tensor_cores() -> bool:
    """Whether the device has those for bfloat16 and TF32."""
    return int(cupy.cuda.Device().compute_capability) >= 80


def attention_takes(q: Array, k: Array, v: Array, dropout: AttentionDropout | None = None) -> bool:
    """Whether q and v have widths up to 128, all have one dtype of the kernels, and the device has its tensor cores.

    The numbers of dropout may be in any dtype but float16.
    """
    if dropout is not None and np.dtype(dropout[2]) == np.float16:
        return False
    fits = takes(q, k, v) and q.shape[-1] <= _WIDTHS[-1] and v.shape[-1] <= _WIDTHS[-1]
    return fits and (q.dtype == np.float32 or _has_tensor_cores())


def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    causal: bool,
    offset: int,
    dropout: AttentionDropout | None = None,
    *,
    tf32: bool = False,
) -> tuple[Array, Array]:
    """(..., L, d) (..., S, d) (..., S, e) -> (..., L, e) in q's memory layout, and log sum exp (..., L, 1) float32.

    `mask` is bool, True = hidden, and broadcasts to (..., L, S). With `tf32`, the factors of float32 products are
    rounded to TF32 if the device has tensor cores for it. `dropout` is the key, p and dtype of `dropout_mask`, whose
    numbers decide which weights are dropped. Raises ValueError if d or e is above 128.
    """
    heads = _Heads("attention", q, k, v, mask, causal, offset, dropout, tf32)
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
    dropout: AttentionDropout | None = None,
    *,
    tf32: bool = False,
) -> tuple[Array | None, ...]:
    """Gradients of q, k and v, in their memory layout and with all batch axes; None for those `needs` leaves out."""
    heads = _Heads("attention_backward", q, k, v, mask, causal, offset, dropout, tf32, g, out)
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
    """The operands of attention as (B, H, L or S, width), for any number of batch axes; launches its kernels."""

    def __init__(
        self,
        op: str,
        q: Array,
        k: Array,
        v: Array,
        mask: Array | None,
        causal: bool,
        offset: int,
        dropout: AttentionDropout | None,
        tf32: bool,
        *others: Array,
    ) -> None:
        self.type = _common_type(op, q, k, v, *others)
        self.on_tensor_cores = self.type == "bf16" or (tf32 and _has_tensor_cores())
        _check(op, "bool", mask=mask)
        widest = max(q.shape[-1], v.shape[-1])
        if widest > _WIDTHS[-1]:
            raise ValueError(
                f"{op}: the heads have width {widest}; the kernels take up to {_WIDTHS[-1]}; ask attention_takes first"
            )
        self.width = next(width for width in _WIDTHS if widest <= width)
        batches = {a.shape[:-2] for a in (q, k, v)}
        self.batch: Shape = batches.pop() if len(batches) == 1 else np.broadcast_shapes(*batches)
        self.q, self.k, self.v = self.split(q), self.split(k), self.split(v)
        n_queries, n_keys = q.shape[-2], k.shape[-2]
        self.mask = None if mask is None else self._split(mask, (n_queries, n_keys))
        limit = max(-n_queries, min(offset, n_keys)) if causal else n_keys  # a larger offset hides nothing more
        self.sizes = (self.q.shape[1], n_queries, n_keys, q.shape[-1], v.shape[-1], limit, 1.0 / sqrt(q.shape[-1]))
        self.drop: tuple[Array | None, float] = (None, 1.0)
        if dropout is not None:
            self.drop = self._dropped(op, n_queries, n_keys, limit, *dropout)

    def _dropped(
        self, op: str, n_queries: int, n_keys: int, limit: int, key: Array, p: float, dtype: DType
    ) -> tuple[Array, float]:
        """The weights that dropout keeps, as bits, and the factor on these weights."""
        _check(op, "uint64", key=key)
        dtype = np.dtype(dtype)
        t = "double" if dtype == np.float64 else _TYPES[_name(dtype)]
        words = -(-n_keys // 32)
        n = self.q.shape[0] * self.q.shape[1] * n_queries * words
        kept = cupy.empty((n + 64 * words + 2,), np.uint32)  # more, as kernels also read those of the rest of a tile
        if n:
            args = (kept, _dense(key), n, n_queries, n_keys, limit, float(p))
            _launch(f"dropout_bits<{t}>", (-(-n // 256),), 256, *args)
        return kept, float(np.asarray(1 / (1 - p)).astype(dtype))

    def split(self, a: Array) -> Array:
        """(..., n, width) -> (B, H, n, width), a view if possible, with a contiguous last axis."""
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
        """One block per head of `blocked` and `rows` of its rows, or 64 of them on tensor cores."""
        b, h, n, _ = blocked.shape
        drop = _DROP[self.drop[0] is not None]
        full_name, shared = f"{name}<{self.width}{drop}>", 0
        if self.on_tensor_cores:
            full_name, rows = f"{name}_mma<{self.type}, {self.width}{drop}>", 64
            tile = 32 if self.width <= 64 else 16
            rows_in_shared = (64 if name == "attention" else 128) + 2 * tile
            shared = rows_in_shared * (self.width * blocked.itemsize + 16)  # as in the source
        args = (*pointers, *self.sizes, *steps, *self.drop)
        _launch(full_name, (b * h * -(-n // rows),), 2 * rows, *args, shared=shared)


def _steps(*arrays: Array | None, axes: int = 3) -> list[int]:
    """The strides of each array along its first `axes` axes, in elements."""
    return [0 if a is None else a.strides[axis] // a.itemsize for a in arrays for axis in range(axes)]


def _empty_like(a: Array, width: int) -> Array:
    """(B, H, n, width), laid out as (B, n, H, width) if `a` is, so that joining the heads needs no copy."""
    b, h, n, _ = a.shape
    if 0 < a.strides[1] < a.strides[2]:
        return cupy.empty((b, n, h, width), a.dtype).transpose(0, 2, 1, 3)
    return cupy.empty((b, h, n, width), a.dtype)


# --- Embedding

_TABLE = 12288  # floats in shared memory, as in the source: each block sums n_rows x (a multiple of 32) columns


def embedding_takes(n_rows: int) -> bool:
    """Whether embedding_backward takes a table of n_rows: up to 384, of any width."""
    return n_rows * 32 <= _TABLE


def embedding_backward(g: Array, ids: Array, n_rows: int) -> Array:
    """(..., C) (...) int64 -> (n_rows, C): the rows of g summed by id. Raises ValueError for more than 384 rows."""
    t, c = _common_type("embedding_backward", g), g.shape[-1]
    _check("embedding_backward", "int64", ids=ids)
    if not embedding_takes(n_rows):
        raise ValueError(
            f"embedding_backward: the table has {n_rows} rows; the kernel takes up to {_TABLE // 32}; "
            "ask embedding_takes first"
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


def clip_scale(g: Array, max_norm: float) -> tuple[Array, Array]:
    """(...) -> the norm () and min(1, max_norm / (norm + 1e-6)) (), both float32."""
    t, g = _common_type("clip_scale", g), _dense(g)
    blocks = min(1024, -(-g.size // (256 * _PACKS[t])))
    partial, out = cupy.empty((blocks,), np.float32), cupy.empty((2,), np.float32)
    if blocks:
        _launch(f"squares<{t}>", (blocks,), 256, g, partial, g.size)
    _launch("norm_and_scale", (1,), 1024, partial, out, blocks, float(max_norm))
    return out[0], out[1]


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
    p_half: Array | None,
) -> None:
    """One Adam step. Updates float32 p, m and v in place, and writes p to `p_half` in bfloat16. All have one size.

    Args:
        rates: (3,) float32: lr / (1 - beta1^t), sqrt(1 - beta2^t), lr weight_decay. The kernel reads them and `clip`
            on the device, so a replay of a captured step uses their new values.
        clip: () float32, the factor on g; None is 1.

    Raises:
        TypeError: an array has another dtype. ValueError: p, m, v or p_half is not contiguous.
    """
    t = _common_type("adam_step", g)
    _check("adam_step", "float32", p=p, m=m, v=v, rates=rates, clip=clip)
    _check("adam_step", "bfloat16", p_half=p_half)
    if not all(array is None or array.flags.c_contiguous for array in (p, m, v, p_half)):
        raise ValueError("adam_step: p, m, v and p_half are updated in place and must be C-contiguous; copy them first")
    if p.size:
        numbers = (float(beta1), float(beta2), float(eps), float(weight_decay), int(decoupled))
        grid = (-(-p.size // 1024),)
        _launch(f"adam_step<{t}>", grid, 256, p, _dense(g), m, v, rates, clip, p_half, p.size, *numbers)


# --- Random numbers


def uniform(shape: Shape, dtype: DType, key: Array) -> Array:
    """Uniform numbers in [0, 1), those of `host.uniform`, in float32, bfloat16 or float64.

    key (4,) uint64: seed, counter % 2^64, counter // 2^64, position of the first number in the sequence.
    """
    return _uniform("uniform", shape, dtype, key, mask=False)


def dropout_mask(shape: Shape, key: Array, p: float, dtype: DType) -> Array:
    """0 where an element of `uniform` is less than p, else 1 / (1 - p), in the same dtypes."""
    return _uniform("dropout_mask", shape, dtype, key, mask=True, p=p)


def _uniform(op: str, shape: Shape, dtype: DType, key: Array, mask: bool, p: float = 0.0) -> Array:
    _check(op, "uint64", key=key)
    out = cupy.empty(shape, dtype)
    t = "double" if out.dtype == np.float64 else _common_type(op, out)
    if out.size:
        blocks = out.size // 4 + 2  # of four numbers; the first and the last may be used in part
        name = f"uniform<{t}, {str(mask).lower()}>"
        _launch(name, (-(-blocks // 256),), 256, out, _dense(key), out.size, float(p), 1 / (1 - p))
    return out
