"""The backend contract (the primitives of an array library), and loading and selecting backends.

A backend is a module that offers the functions of one array library under the names of `Core`, one line each. Each
primitive in `Derived` has a formula in core primitives (`backends/formulas.py`), which the loader uses if the module
does not define the name. The primitives in `Optional` may be missing. `russellgrad.conformance` tests a backend
against this contract.

Primitives take and return the backend's own arrays. An array has a tuple `shape` and an `ndim`; the library gets
everything else, such as the dtype, from the backend. 0-d results may be the array library's scalars, except from
`asarray` and `copy`. No primitive copies data to the host unless its comment says so. In the comments, `...` is any
number of axes. A primitive's backward follows it. A comment that does not fit beside a primitive is
above it.

Every primitive that sums, `sum` and `getitem_backward` as well as the derived ones, sums half precision (float16,
bfloat16) in float32 and rounds the result once. The error of a sum must not grow with the number of rows, along any axis:
it is summed pairwise, in blocks, or in a wider dtype. (`cumsum`, `getitem_backward` and `embedding_backward` may add one by one.)
"""

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from functools import partial, wraps
from threading import RLock
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, Self, TypeAlias, cast

from .scope import Scope

Array: TypeAlias = Any  # the backend's own array type: numpy.ndarray, cupy.ndarray, ...
DType: TypeAlias = Any  # a dtype object or its name, "float32"
Shape: TypeAlias = tuple[int, ...]
Padding: TypeAlias = tuple[tuple[int, int], ...]  # before and after, for each spatial axis
Axis: TypeAlias = int | tuple[int, ...] | None
Index: TypeAlias = Any  # the index in x[index]
AttentionDropout: TypeAlias = tuple[Array, float, DType]  # key, p and dtype of `dropout_mask`


# fmt: off
class Core(Protocol):
    """The primitives that every backend defines. Most of them are functions of the array library."""

    @property
    def name(self) -> str: ...                                                   # "numpy", "cupy", ...; unique

    # Conversion and creation
    def float_dtypes(self) -> tuple[str, ...]: ...                               # names of the float dtypes it supports; float32 among them
    def is_array(self, x: Any, /) -> bool: ...                                   # whether x is one of this backend's arrays
    # numbers, lists, host arrays, own arrays; copies only if needed; TypeError for anything but real numbers and bools
    def asarray(self, data: Any, /, dtype: DType = None) -> Array: ...
    def copy(self, a: Array, /) -> Array: ...                                    # (...) -> (...), C order, owned
    def to_host(self, a: Array, /) -> Any: ...                                   # (...) -> numpy.ndarray, a copy in C order; waits for the device
    def dtype(self, a: Array, /) -> Any: ...                                     # (...) -> numpy.dtype
    def astype(self, a: Array, dtype: DType, /) -> Array: ...                    # (...) -> (...)
    def full(self, shape: Shape, value: float, /, dtype: DType) -> Array: ...    # -> shape
    def arange(self, n: int, /) -> Array: ...                                    # -> (n,) int64

    # Elementwise, broadcasting. A Python number may be any operand, and does not change the dtype.
    def add(self, a: Array, b: Array, /) -> Array: ...                           # a + b
    def subtract(self, a: Array, b: Array, /) -> Array: ...                      # a - b
    def multiply(self, a: Array, b: Array, /) -> Array: ...                      # a * b
    def divide(self, a: Array, b: Array, /) -> Array: ...                        # a / b
    def floor_divide(self, a: Array, b: Array, /) -> Array: ...                  # the largest integer <= a / b, exactly; of integers an integer
    def remainder(self, a: Array, b: Array, /) -> Array: ...                     # a - b floor_divide(a, b), exactly; with the sign of b
    def power(self, a: Array, b: Array, /) -> Array: ...                         # a ** b
    def negative(self, a: Array, /) -> Array: ...                                # -a
    def exp(self, a: Array, /) -> Array: ...                                     # e ** a
    def expm1(self, a: Array, /) -> Array: ...                                   # e ** a - 1, accurate near 0
    def log(self, a: Array, /) -> Array: ...                                     # natural logarithm
    def log1p(self, a: Array, /) -> Array: ...                                   # log(1 + a), accurate near 0
    def log2(self, a: Array, /) -> Array: ...                                    # logarithm to the base 2
    def log10(self, a: Array, /) -> Array: ...                                   # logarithm to the base 10
    def sqrt(self, a: Array, /) -> Array: ...                                    # square root
    def tanh(self, a: Array, /) -> Array: ...                                    # hyperbolic tangent
    def sinh(self, a: Array, /) -> Array: ...                                    # hyperbolic sine
    def cosh(self, a: Array, /) -> Array: ...                                    # hyperbolic cosine
    def sin(self, a: Array, /) -> Array: ...                                     # sine
    def cos(self, a: Array, /) -> Array: ...                                     # cosine
    def arcsin(self, a: Array, /) -> Array: ...                                  # inverse sine
    def arccos(self, a: Array, /) -> Array: ...                                  # inverse cosine
    def arctan(self, a: Array, /) -> Array: ...                                  # inverse tangent
    def arctan2(self, a: Array, b: Array, /) -> Array: ...                       # the angle of the point (b, a), in [-pi, pi]
    def floor(self, a: Array, /) -> Array: ...                                   # the largest integer <= a
    def ceil(self, a: Array, /) -> Array: ...                                    # the smallest integer >= a
    def rint(self, a: Array, /) -> Array: ...                                    # the nearest integer; of two, the even one
    def abs(self, a: Array, /) -> Array: ...                                     # |a|
    def sign(self, a: Array, /) -> Array: ...                                    # -1, 0 or 1
    def maximum(self, a: Array, b: Array, /) -> Array: ...                       # the larger; nan propagates
    def minimum(self, a: Array, b: Array, /) -> Array: ...                       # the smaller; nan propagates
    def equal(self, a: Array, b: Array, /) -> Array: ...                         # bool
    def not_equal(self, a: Array, b: Array, /) -> Array: ...                     # bool
    def less(self, a: Array, b: Array, /) -> Array: ...                          # bool
    def less_equal(self, a: Array, b: Array, /) -> Array: ...                    # bool
    def greater(self, a: Array, b: Array, /) -> Array: ...                       # bool
    def greater_equal(self, a: Array, b: Array, /) -> Array: ...                 # bool
    def logical_and(self, a: Array, b: Array, /) -> Array: ...                   # bool
    def logical_or(self, a: Array, b: Array, /) -> Array: ...                    # bool
    def logical_not(self, a: Array, /) -> Array: ...                             # bool
    def where(self, condition: Array, a: Array, b: Array, /) -> Array: ...       # a where condition, else b

    # Reductions. axis: None (all axes), an int, or a tuple of ints
    def sum(self, a: Array, /, *, axis: Axis = None, keepdims: bool = False) -> Array: ...   # bools and integers give int64
    def max(self, a: Array, /, *, axis: Axis = None, keepdims: bool = False) -> Array: ...   # nan propagates
    def min(self, a: Array, /, *, axis: Axis = None, keepdims: bool = False) -> Array: ...   # nan propagates
    def argmax(self, a: Array, /, *, axis: int | None = None, keepdims: bool = False) -> Array: ...  # int64; the first index of the largest element

    # Along one axis
    def argsort(self, a: Array, axis: int, /) -> Array: ...                      # (...) -> (...) int64, the indices that sort; stable, nan last
    def cumsum(self, a: Array, axis: int, /) -> Array: ...                       # (...) -> (...) sums of the first elements, in float64 or wider; bools and integers give int64

    # Shapes, indices, products
    def reshape(self, a: Array, shape: Shape, /) -> Array: ...                   # (...) -> shape, C order; -1 is inferred
    def transpose(self, a: Array, axes: Sequence[int] | None = None, /) -> Array: ...  # axes permuted; None reverses them
    def broadcast_to(self, a: Array, shape: Shape, /) -> Array: ...              # (...) -> shape
    def expand_dims(self, a: Array, axis: int | tuple[int, ...], /) -> Array: ...  # a new axis of length 1 at axis
    def concatenate(self, arrays: Sequence[Array], axis: int, /) -> Array: ...   # n x (..., k_i, ...) -> (..., sum k_i, ...)
    def getitem(self, a: Array, index: Index, /) -> Array: ...                   # a[index], for an index from `prepare_index`
    def getitem_backward(self, g: Array, index: Index, shape: Shape, /) -> Array: ...  # zeros(shape), [index] += g; repeated indices accumulate; integers exactly
    def matmul(self, a: Array, b: Array, /) -> Array: ...                        # (..., n, k) @ (..., k, m) -> (..., n, m); 1-D operands as in NumPy


class Derived(Protocol):
    """The primitives with a formula in core primitives (`backends/formulas.py`). A backend defines one to be faster.

    A backend's function may return NotImplemented for arguments that it does not support; the formula is used then.
    `needs` has one bool for each operand, True where its gradient is needed. The other gradients may be None.
    """

    # Setup and creation
    def require_usable(self) -> None: ...                                        # RuntimeError says what to install or set
    def zeros(self, shape: Shape, dtype: DType) -> Array: ...                    # -> shape
    def normal(self, shape: Shape, seed: int, counter: int, dtype: DType) -> Array: ...   # -> shape; standard normal, a function of (seed, counter) alone
    # key (4,) uint64: seed, low and high half of the counter, position of the first element -> shape, in [0, 1)
    def uniform(self, shape: Shape, key: Array, dtype: DType) -> Array: ...
    # 0 where an element of `uniform` is less than p, else 1 / (1 - p) -> shape
    def dropout_mask(self, shape: Shape, key: Array, p: float, dtype: DType) -> Array: ...
    def host_scalars(self, values: Sequence[float], dtype: DType) -> Array: ...  # -> (n,); `update_scalars` can update it between replays
    def check_ids(self, ids: Any, upper: int, op: str) -> Array: ...             # (...) -> (...) int64, each in [0, upper), checked on the host
    # ids, and a bool array, False where they equal `ignore`; None if all are valid
    def check_targets(self, ids: Any, upper: int, ignore: int | None, op: str) -> tuple[Array, Array | None]: ...
    def prepare_index(self, index: Index, shape: Shape) -> Index: ...            # index arrays copied to the backend, bounds checked
    # of float32 products: at least float32 for "highest", TF32 for "high", bfloat16 for "medium"
    def set_matmul_precision(self, level: str) -> None: ...

    # Activations: (...) -> (...)
    def erf(self, a: Array) -> Array: ...                                        # error function, to 1e-15 in float64
    def sigmoid(self, a: Array) -> Array: ...                                    # 1 / (1 + e^-a)
    def relu(self, a: Array) -> Array: ...                                       # max(a, 0)
    def clip(self, a: Array, low: Array | None, high: Array | None) -> Array: ...  # min(max(a, low), high)
    def leaky_relu(self, a: Array, alpha: float) -> Array: ...                   # a where a > 0, else alpha a
    def leaky_relu_backward(self, g: Array, a: Array, alpha: float) -> Array: ...
    # a Phi(a), Phi the normal distribution function ("none") or its tanh approximation ("tanh"); an array for backward
    def gelu(self, a: Array, approximate: str) -> tuple[Array, Array]: ...
    def gelu_backward(self, g: Array, saved: Array, approximate: str) -> Array: ...
    def gelu_value(self, a: Array, approximate: str) -> Array: ...               # the first of gelu's results, where no backward follows
    def swiglu(self, gate: Array, up: Array) -> Array: ...                       # silu(gate) up, with silu(a) = a sigmoid(a)
    def swiglu_backward(self, g: Array, gate: Array, up: Array, needs: Sequence[bool]) -> tuple[Array | None, ...]: ...

    # Products
    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array: ...  # (..., i) (i, o) (o,) -> (..., o)
    def linear_backward(self, g: Array, x: Array, weight: Array, needs: Sequence[bool]) -> tuple[Array | None, ...]: ...  # (..., o) -> (..., i) (i, o) (o,)

    # Rows
    def softmax(self, a: Array, axis: int) -> Array: ...                         # e^a / sum e^a along axis
    def softmax_backward(self, g: Array, y: Array, axis: int) -> Array: ...      # y is softmax's output
    def log_softmax(self, a: Array, axis: int) -> Array: ...                     # a - log sum e^a along axis
    def log_softmax_backward(self, g: Array, y: Array, axis: int) -> Array: ...  # y is log_softmax's output
    # (..., C) (C,) (C,) -> (..., C), mean (..., 1), 1/std (..., 1)
    def layer_norm(
        self, x: Array, gamma: Array | None, beta: Array | None, eps: float,
    ) -> tuple[Array, Array, Array]: ...
    # (..., C) -> (..., C) (C,) (C,)
    def layer_norm_backward(
        self, g: Array, x: Array, gamma: Array | None, mean: Array, rstd: Array, needs: Sequence[bool],
    ) -> tuple[Array | None, ...]: ...
    # (..., C) (C,) -> (..., C), 1 / sqrt(mean(x^2) + eps) (..., 1)
    def rms_norm(self, x: Array, gamma: Array | None, eps: float) -> tuple[Array, Array]: ...
    # (..., C) -> (..., C) (C,)
    def rms_norm_backward(
        self, g: Array, x: Array, gamma: Array | None, r: Array, needs: Sequence[bool],
    ) -> tuple[Array | None, ...]: ...
    # each pair (x[i], x[i + D/2]) rotated by an angle: (..., D), cosines and sines broadcast to (..., D/2) -> (..., D)
    def rotary(self, x: Array, cos: Array, sin: Array) -> Array: ...
    def embedding(self, weight: Array, ids: Array) -> Array: ...                 # (V, C) (...) -> (..., C)
    def embedding_backward(self, g: Array, ids: Array, n_rows: int) -> Array: ...  # (..., C) (...) -> (n_rows, C); deterministic
    # (N, C) (N,) (N,) bool -> () mean loss, (N, C) probabilities; of half precision, the loss may be in float32
    def cross_entropy(
        self, logits: Array, ids: Array, valid: Array | None, excluded_class: int | None,
    ) -> tuple[Array, Array]: ...
    def cross_entropy_backward(self, g: Array, probs: Array, ids: Array, valid: Array | None) -> Array: ...  # () -> (N, C)
    # (..., L, d) (..., S, d) (..., S, e) -> (..., L, e), a value for backward; the formula's is the log sum exp of the scores (..., L, 1).
    # The weights are multiplied by `dropout_mask((..., L, S), *dropout)`, with the output's batch axes. Without dropout, this
    # argument is not passed
    def attention(
        self, q: Array, k: Array, v: Array, mask: Array | None, causal: bool, offset: int,
        dropout: AttentionDropout | None = None,
    ) -> tuple[Array, Array]: ...
    # (..., L, e) -> gradients of q, k, v
    def attention_backward(
        self, g: Array, q: Array, k: Array, v: Array, out: Array, log_sum: Array, mask: Array | None, causal: bool,
        offset: int, needs: Sequence[bool], dropout: AttentionDropout | None = None,
    ) -> tuple[Array | None, ...]: ...

    # Convolution and pooling. stride, dilation and kernel have a number for each spatial axis, and padding a pair:
    # (before, after). The sizes are positive, and fit.
    # (N, C, *in) (O, C / groups, *kernel) (O,) -> (N, O, *out)
    def conv(
        self, x: Array, weight: Array, bias: Array | None, stride: Shape, padding: Padding, dilation: Shape, groups: int,
    ) -> Array: ...
    # (N, O, *out) -> (N, C, *in) (O, C / groups, *kernel) (O,)
    def conv_backward(
        self, g: Array, x: Array, weight: Array, stride: Shape, padding: Padding, dilation: Shape, groups: int,
        needs: Sequence[bool],
    ) -> tuple[Array | None, ...]: ...
    # (N, C, *in) -> (N, C, *out) int64, where the maximum of each window is in x.reshape(-1): the first, or the last nan
    def max_pool_indices(
        self, x: Array, kernel: Shape, stride: Shape, padding: Padding, dilation: Shape,
    ) -> Array: ...

    # Optimizer steps. They may update the given arrays in place, and return the new arrays. Values that change from step
    # to step are passed in an array, so that a captured step can be replayed. g is scaled by the 0-d array `clip`, if given.
    def clip_scale(self, grads: Sequence[Array], max_norm: float) -> tuple[Array, Array]: ...  # -> () total norm, () min(1, max_norm / (norm + 1e-6))
    # rates (1,): lr -> p, velocity
    def sgd_step(
        self, p: Array, g: Array, velocity: Array | None, rates: Array, clip: Array | None, momentum: float,
        nesterov: bool, weight_decay: float,
    ) -> tuple[Array, Array | None]: ...
    # rates (3,): lr / (1 - beta1^t), sqrt(1 - beta2^t), lr weight_decay -> p, m, v, and p in the dtype of p_half, which
    # is the parameter in half precision
    def adam_step(
        self, p: Array, g: Array, m: Array, v: Array, rates: Array, clip: Array | None, beta1: float, beta2: float,
        eps: float, weight_decay: float, decoupled: bool, p_half: Array | None,
    ) -> tuple[Array, Array, Array, Array | None]: ...


class Optional(Protocol):
    """The primitives that a backend may lack: writing in place, sharing memory, capturing a step, threads, a whole block."""

    def from_dlpack(self, x: Any) -> Array: ...                                  # shares memory with the exporter
    # target[...] = source, cast to its dtype. Of a backend with `assign`, `getitem` of slices and integers is a view, so that
    # the target may be a part of an array
    def assign(self, target: Array, source: Array) -> None: ...
    def split_flat(self, flat: Array, shapes: Sequence[Shape]) -> list[Array]: ...  # (n,) -> consecutive views of these shapes
    def update_scalars(self, target: Array, values: Sequence[float]) -> None: ...  # target[:] = values, n numbers on the host
    # one Transformer block for one new token of one text, as `Decoder._block`: (1, 1, C) -> (1, 1, C). norms: gamma, beta and
    # eps of both layer norms; weights: w_qkv and w_out (or None) of attention, then w_in, b_in, w_out and b_out of the feed-
    # forward layer; activation: a key of `decoder.ACTIVATIONS`. Writes keys and values into the cache (1, 2, H, S, D) at
    # `position`. May return NotImplemented; the decoder then calls the single primitives
    def token_block(
        self, x: Array, norms: Sequence[tuple[Array, Array, float]], weights: Sequence[Array | None], activation: str,
        cache: Array, position: int,
    ) -> Array: ...
    # records the device work of work() without running it -> replay(); RuntimeError names an op that cannot be recorded
    def capture(self, work: Callable[[], None]) -> Callable[[], None]: ...
    # calls the functions, several at once, each in a copy of the caller's context. Returns when all are done. If one raises,
    # its exception is raised after the running ones end; the rest may not run. Goes with `n_threads`
    def run_tasks(self, tasks: Sequence[Callable[[], None]]) -> None: ...
    def n_threads(self) -> int: ...                                              # how many tasks run at once


class Backend(Core, Derived, Optional, Protocol):
    """All primitives. `hasattr(backend, name)` tells whether a backend has an optional one."""

    level: int                                                                   # 0; of a `TensorBackend`, 1 or more
    in_transform: bool                                                           # whether a transform made the level

    @property
    def root(self) -> "Backend": ...                                             # itself; of a `TensorBackend`, the backend below all levels
    def on(self, root: "Backend", /) -> "Backend": ...                           # this level on another root
    def exposed(self, a: Array, /) -> Array: ...                                 # the array that hooks and `.grad` return: itself
# fmt: on


CORE: tuple[str, ...] = tuple(name for name in vars(Core) if not name.startswith("_"))
DERIVED: tuple[str, ...] = tuple(name for name in vars(Derived) if not name.startswith("_"))
OPTIONAL: tuple[str, ...] = tuple(name for name in vars(Optional) if not name.startswith("_"))
PRIMITIVES = (*CORE, *DERIVED, *OPTIONAL)
ELEMENTWISE = CORE[CORE.index("add") : CORE.index("where")]
BUILTIN = ("numpy", "numba", "strict", "cupy", "torch")
ENTRY_POINT_GROUP = "russellgrad.backends"

_loaded: dict[str, Backend] = {}
_modules: dict[ModuleType, Backend] = {}
_loading = RLock()
_precision = "highest"
_default: Backend | None = None  # set by set_backend, or from RG_BACKEND at first use; None before that
_override: ContextVar[Backend | None] = ContextVar("russellgrad_backend", default=None)


class LoadedBackend:
    """A backend as the library uses it: a module's primitives, and formulas for the derived primitives that it lacks.

    A module is read once, when it is loaded. There is one backend for each module, which has one device, and a copy is
    the backend itself.
    """

    level = 0
    in_transform = False

    def __init__(self, module: ModuleType) -> None:
        formulas = importlib.import_module(f"{__package__}.backends.formulas")
        own = vars(self)
        own.update({name: getattr(module, name) for name in (*CORE, *OPTIONAL) if _defines(module, name)})
        for name in DERIVED:
            formula = partial(getattr(formulas, name), self)
            own[name] = _with_fallback(getattr(module, name), formula) if _defines(module, name) else formula

    @property
    def root(self) -> Backend:
        return cast(Backend, self)

    def on(self, root: Backend) -> Backend:
        return root

    def exposed(self, a: Array) -> Array:
        return a

    def __repr__(self) -> str:
        return f"<backend {vars(self)['name']!r}>"

    def __getattr__(self, name: str) -> Any:  # called only for an attribute that does not exist
        raise AttributeError(
            f"backend {vars(self).get('name')!r} has no primitive {name!r}; russellgrad/backend.py lists them"
            + (", this one as optional" if name in OPTIONAL else ""),
            name=name,
            obj=self,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __copy__(self) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"pickle: {self!r} cannot be pickled; pickle its name, and load it with load_backend(name)")


def _defines(module: ModuleType, name: str) -> bool:
    return getattr(module, name, None) is not None


def _with_fallback(own: Callable[..., Any], formula: Callable[..., Any]) -> Callable[..., Any]:
    """A backend's primitive that falls back to the formula if it returns NotImplemented."""

    @wraps(own)
    def primitive(*args: Any, **kwargs: Any) -> Any:
        result = own(*args, **kwargs)
        return formula(*args, **kwargs) if result is NotImplemented else result

    return primitive


def _build(module: ModuleType, name: str) -> Backend:
    """Build the backend of a module, after checking that the module has all core primitives and is usable here.

    Raises:
        TypeError: core primitives are missing, or what a capture needs; names them. ValueError: the module's name
            is not a string, or belongs to another backend. RuntimeError: the backend cannot be used on this machine;
            says what is missing.
    """
    missing = [primitive for primitive in CORE if not _defines(module, primitive)]
    if missing:
        raise TypeError(
            f"backend {name!r}: module {module.__name__} lacks {', '.join(missing[:5])}"
            + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            + "; a backend must define all names in russellgrad.backend.CORE"
        )
    if _defines(module, "run_tasks") != _defines(module, "n_threads"):
        raise TypeError(f"backend {name!r}: module {module.__name__} needs both run_tasks and n_threads, or none")
    if _defines(module, "capture") and not (_defines(module, "assign") and _defines(module, "update_scalars")):
        raise TypeError(
            f"backend {name!r}: module {module.__name__} has capture, which needs assign and update_scalars"
        )
    own = module.name
    if not isinstance(own, str) or not own:
        raise ValueError(f"backend {name!r}: the name in module {module.__name__} must be a string, got {own!r}")
    library = own.partition(":")[0]
    builtin = f"{__package__}.backends.{library}_backend"
    others = [other.__name__ for other, backend in _modules.items() if backend.name == own]
    others += [builtin] if library in BUILTIN else []
    others = [other for other in others if other != module.__name__]  # the module may be imported again
    if others:
        raise ValueError(
            f"backend {name!r}: module {module.__name__} has the name {own!r}, which is the name of {others[0]}; "
            "set `name` in the module to a unique one"
        )
    backend = cast(Backend, LoadedBackend(module))
    backend.require_usable()
    backend.set_matmul_precision(_precision)
    return backend


def load_backend(name: str) -> Backend:
    """Load a backend by its name: a built-in backend, an entry point, or the dotted path of a module.

    Entry points are those of the group `russellgrad.backends`. "torch" uses the accelerator that PyTorch finds, else
    the CPU; "torch:cpu" or "torch:mps" selects a device type. There is one backend for each device.

    Raises:
        ValueError: there is no backend of that name (lists the known names), or the module's `name` belongs to another
            backend.
        ImportError: its array library is not installed; says what to install.
        RuntimeError: the library cannot be used, such as CuPy without a CUDA device; says what is missing.
        TypeError: the module lacks core primitives.
    """
    if name not in _loaded:
        kind, _, root = name.partition(":")
        if kind == "tensor":  # Tensors as arrays, on NumPy or, as "tensor:strict", on another backend
            made: Backend = importlib.import_module(f"{__package__}.tensor_backend").recorded(
                load_backend(root or "numpy")
            )
            return _loaded.setdefault(name, made)
        if name in BUILTIN:
            module = importlib.import_module(f"{__package__}.backends.{name}_backend")
        elif kind == "torch":  # "torch:cpu": its module for a device
            module = importlib.import_module(f"{__package__}.backends.torch_backend").on_device(root)
        elif points := _entry_points().select(name=name):
            module = next(iter(points)).load()
        elif "." in name:
            module = _import_dotted(name)
        else:
            raise ValueError(
                f"unknown backend {name!r}: {_suggestion(name)}known are {', '.join(_known_names())}; "
                "or give the dotted path of a module, RG_BACKEND=package.module"
            )
        _loaded[name] = _backend_of(module, name)
    return _loaded[name]


def _backend_of(module: ModuleType, name: str) -> Backend:
    """The backend of a module. A module that is loaded under two names gives the same backend."""
    with _loading:  # two threads must not build two backends of one module
        if module not in _modules:
            _modules[module] = _build(module, name)
        return _modules[module]


def set_precision_of_backends(level: str) -> None:
    """Set the matmul precision of all loaded backends, and of backends that are loaded later."""
    global _precision
    _precision = level
    for backend in _modules.values():
        backend.set_matmul_precision(level)


def _import_dotted(path: str) -> ModuleType:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not (path + ".").startswith(error.name + "."):
            raise  # the module exists, but a module that it imports does not
        raise ValueError(
            f"unknown backend {path!r}: no module of that path; known names are {', '.join(_known_names())}"
        ) from error


def _suggestion(name: str) -> str:
    """A suggestion for an unknown name, or "". PyTorch's names of devices are known."""
    device = {"cpu": "numpy", "cuda": "cupy", "gpu": "cupy", "mps": "torch:mps", "xpu": "torch:xpu"}.get(
        name.lower().partition(":")[0]
    )
    if name.strip("0123456789") in ("float", "bfloat", "int", "uint", "bool"):
        return f"to cast, write x.astype({name!r}); "
    close = [device] if device else get_close_matches(name.lower(), _known_names(), 1)
    return f"did you mean {close[0]!r}? " if close else ""


def _entry_points() -> "EntryPoints":
    """The entry points of installed backends."""
    from importlib.metadata import entry_points  # here, because its import takes a third of the time of this package's

    return entry_points(group=ENTRY_POINT_GROUP)


def _known_names() -> list[str]:
    return [*BUILTIN, *sorted({point.name for point in _entry_points()} - set(BUILTIN))]


def available_backends() -> tuple[str, ...]:
    """The names of the backends that can be used on this machine, built-in ones first.

    A backend whose library is not installed, or whose device is missing, is left out.

        available_backends()  # ("numpy", "strict")
    """
    usable = []
    for name in _known_names():
        try:
            load_backend(name)
        except (ImportError, RuntimeError, TypeError, ValueError, AttributeError):  # the last three: an invalid module
            continue
        usable.append(name)
    return tuple(usable)


def resolve_backend(backend: "str | ModuleType | Backend | None") -> Backend:
    """A backend from its name, its module, or itself; None is the current one. Raises as `load_backend` does."""
    if backend is None:
        return get_backend()
    if isinstance(backend, str):
        return load_backend(backend)
    if isinstance(backend, LoadedBackend):
        return cast(Backend, backend)
    if isinstance(backend, ModuleType):
        return _backend_of(backend, backend.__name__)
    raise TypeError(
        f"backend must be a name or a module, got {type(backend).__name__}; a dtype goes to x.astype(dtype)"
    )


def get_backend() -> Backend:
    """The current backend, on which new tensors are created.

    It is set by the innermost `use_backend`, else by `set_backend`, else by the environment variable `RG_BACKEND`. The
    default is NumPy. Raises as `load_backend` does.
    """
    global _default
    override = _override.get()
    if override is not None:
        return override
    if _default is None:
        _default = load_backend(os.environ.get("RG_BACKEND") or "numpy")
    return _default


def set_backend(backend: str | ModuleType | Backend) -> None:
    """Set the current backend of the whole process. Existing tensors stay on their backends.

    Raises ValueError for an unknown name, ImportError for an array library that is not installed, and RuntimeError for
    a backend that cannot be used on this machine. Each message says what to do.

        set_backend("cupy")
    """
    global _default
    _default = resolve_backend(backend)


def use_backend(backend: str | ModuleType | Backend) -> Scope[Backend]:
    """Set the current backend inside a block, `with use_backend("cupy"):`, or a function, `@use_backend("cupy")`.

    Raises as `set_backend` does, on entering. Decorates generator functions, too: see `russellgrad.scope.Scope`.
    """
    return Scope("use_backend", partial(_using, backend))


@contextmanager
def _using(backend: str | ModuleType | Backend) -> Iterator[Backend]:
    token = _override.set(resolve_backend(backend))
    try:
        yield cast(Backend, _override.get())
    finally:
        _override.reset(token)


if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

    # mypy does not follow the mapping of backends/ to russellgrad.backends. This import checks them against the contract.
    from backends import cupy_backend, numba_backend, numpy_backend, strict_backend, torch_backend

    _numpy: Core = numpy_backend
    _numba: Core = numba_backend
    _strict: Core = strict_backend
    _cupy: Core = cupy_backend
    _torch: Core = torch_backend
