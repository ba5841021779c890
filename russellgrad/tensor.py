"""Tensor: an array, its gradient, and one node of the graph that made it.

Everything that computes goes through `apply`: it takes the arrays out of the operands, runs a rule from
`russellgrad/rules.py` on their backend, and records a node. The operators and methods are that one call each.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import update_wrapper
from itertools import accumulate
from math import prod
from numbers import Integral, Real
from types import ModuleType
from typing import Any, NoReturn, TypeAlias, cast
from weakref import ref

from . import rules
from .autograd import Hook, Node, Version, backward, is_grad_enabled, record
from .backend import Array, Axis, Backend, DType, Index, Shape, resolve_backend
from .dtype import common_float, get_default_dtype, is_float

Number: TypeAlias = int | float
Operand: TypeAlias = Any  # a Tensor, a number, or an array of the tensor's backend
Mask: TypeAlias = Any  # bool: a Tensor, an array or nested lists

_PYTHON_NUMBERS: set[type] = {int, float, bool}


def _elementwise(rule: rules.Rule, doc: str) -> "Callable[[Tensor], Tensor]":
    """The method of Tensor that applies an elementwise rule."""

    def method(self: "Tensor") -> "Tensor":
        return apply(rule, self)

    method.__name__, method.__qualname__, method.__doc__ = rule.__name__, f"Tensor.{rule.__name__}", doc
    return method


class Tensor:
    """An array that remembers how it was computed.

    Args:
        data: a number, nested lists, or an array. Numbers and lists become the default dtype (lists of bools stay
            bool), arrays keep theirs. The data is copied.
        dtype: a name such as "float32", or a dtype object.
        requires_grad: whether `backward` fills `.grad`. By default, whether the dtype is a float one and gradients
            are enabled; integer and bool tensors never track gradients.
        backend: a name or module; by default the one in use (`get_backend`).
        label: a name of your own, shown by `repr`.

    Raises:
        TypeError: data that is a Tensor, holds Tensors, or is not real numbers; an array of another device;
            requires_grad=True with an integer or bool dtype.
    """

    __slots__ = ("_data", "_node", "_version", "backend", "grad", "label", "__weakref__")
    __array_ufunc__ = None  # array + tensor is the tensor's business, not that of NumPy or CuPy

    backend: Backend
    grad: Array | None
    label: str

    def __init__(
        self,
        data: Any,
        *,
        dtype: DType = None,
        requires_grad: bool | None = None,
        backend: str | ModuleType | Backend | None = None,
        label: str = "",
    ) -> None:
        if isinstance(data, Tensor):
            raise TypeError("Tensor: data is a Tensor already; use .detach(), .astype() or .to()")
        xp = resolve_backend(backend)
        array = xp.asarray(data)  # first as it is: asked for floats, NumPy would parse strings and take None for nan
        if dtype is None and not hasattr(data, "dtype") and xp.dtype(array).kind != "b":
            dtype = get_default_dtype()
        self.backend = xp
        self.label = label
        self.grad = None
        self._data = xp.copy(array if dtype is None else xp.asarray(array, dtype))
        self._node: Node | None = None
        self._version: Version = [0]
        self._start_tracking(requires_grad)

    @classmethod
    def _wrap(cls, data: Array, xp: Backend, node: Node | None = None, version: Version | None = None) -> "Tensor":
        """A Tensor around an array as it is; with the version of another Tensor if it is a view of that one's."""
        tensor = cls.__new__(cls)
        tensor._data, tensor._node, tensor.backend, tensor.label = data, node, xp, ""
        tensor.grad = None
        tensor._version = [0] if version is None else version
        return tensor

    def _start_tracking(self, requires_grad: bool | None) -> None:
        """Of a new tensor: track gradients if told to, or by default if it is of floats and gradients are enabled."""
        if requires_grad or requires_grad is None and is_grad_enabled() and is_float(self.dtype):
            self.requires_grad = True

    # --- What it is

    @property
    def data(self) -> Array:
        """The array, of the tensor's backend. Assign to it to replace it; `t.data -= step` changes it in place.

        After a write that goes past this attribute, as `t.data[0] = 5.0`, call `changed_in_place()`.
        """
        return self._data

    @data.setter
    def data(self, array: Array) -> None:
        if not self.backend.is_array(array):
            raise TypeError(f"data: must be an array of backend {self.backend.name!r}, got {type(array).__name__}")
        dtype = self.backend.dtype(array)
        if self._node is not None and (array.shape != self.shape or dtype != self.dtype):
            raise ValueError(
                f"data: this tensor tracks gradients as {self.shape} {self.dtype}; "
                f"{array.shape} {dtype} needs a new Tensor"
            )
        if array is self._data:
            self.changed_in_place()
        else:
            self._data, self._version = array, [0]

    def changed_in_place(self) -> None:
        """Say that `.data` was written into, so that a backward through its old values is an error."""
        self._version[0] += 1

    @property
    def shape(self) -> Shape:
        return cast(Shape, self._data.shape)

    @property
    def ndim(self) -> int:
        return int(self._data.ndim)

    @property
    def dtype(self) -> Any:
        """NumPy's dtype object, on every backend."""
        return self.backend.dtype(self._data)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def is_leaf(self) -> bool:
        """Whether no operation made it, or none that was recorded."""
        return self._node is None or self._node.name == "leaf"

    @property
    def requires_grad(self) -> bool:
        return self._node is not None

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        if not self.is_leaf:
            raise RuntimeError("requires_grad: only a leaf's can be set; use .detach() for a tensor without history")
        if not wanted:
            self._node = None
        elif not is_float(self.dtype):
            raise TypeError(f"requires_grad: only float tensors track gradients, this one is {self.dtype}")
        elif self._node is None:
            self._node = Node("leaf", self.backend, self._data)
            self._node.tensor_ref = ref(self)

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len: a 0-d tensor has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        numbers = str(self.numpy()).replace("\n", "\n       ")
        facts = [f"dtype={self.dtype}", f"backend={self.backend.name}"]
        if self._node is not None:
            facts.append(f"op={self._node.name}" if not self.is_leaf else "requires_grad=True")
        if self.label:
            facts.append(f"label={self.label!r}")
        return f"Tensor({numbers}, {', '.join(facts)})"

    # --- Gradients

    def backward(self, gradient: "Array | Tensor | None" = None, retain_graph: bool = False) -> None:
        """Add to `.grad` of every leaf below the derivative of this tensor, weighted by `gradient`.

        Args:
            gradient: an array or Tensor of exactly this shape, on this backend. A tensor of one element needs none.
            retain_graph: keep what backward needs, for a second call; otherwise it is freed as backward goes.

        Raises:
            RuntimeError: the tensor tracks no gradients; it has several elements and no gradient was given; its graph
                was freed by an earlier backward; an array it needs was changed in place since.
            ValueError: gradient of another shape. TypeError: on another backend, or no array.
        """
        if self._node is None:
            raise RuntimeError(
                "backward: this tensor tracks no gradients; build it from float tensors, not in no_grad()"
            )
        xp = self.backend
        if gradient is None:
            if self.size != 1:
                raise RuntimeError(f"backward: a tensor of shape {self.shape} needs gradient=, an array of that shape")
            backward(self._node, xp.full(self.shape, 1, self.dtype), retain_graph)
            return
        if isinstance(gradient, Tensor):
            _same_backend("backward", self.backend, gradient.backend)
            gradient = gradient._data
        if not xp.is_array(gradient):
            raise TypeError(
                f"backward: gradient must be a Tensor or an array of backend {xp.name!r}, got {type(gradient).__name__}"
            )
        if gradient.shape != self.shape:
            raise ValueError(
                f"backward: gradient has shape {gradient.shape}, this tensor {self.shape}; they must agree"
            )
        # A copy: what the caller gives may be memory that backward writes gradients into.
        backward(self._node, xp.astype(xp.copy(gradient), self.dtype), retain_graph)

    def zero_grad(self) -> None:
        """Forget the gradient: `.grad` is None again."""
        self.grad = None

    def retain_grad(self) -> None:
        """Have `backward` fill `.grad` of this tensor, too, which is no leaf. Raises RuntimeError without history."""
        if self._node is None:
            raise RuntimeError("retain_grad: this tensor tracks no gradients")
        self._node.tensor_ref = ref(self)

    def register_hook(self, hook: Hook) -> Callable[[], None]:
        """Call `hook(gradient)` when this tensor's whole gradient, an array, is known in a backward.

        A hook may return another array to take its place. Returns a function that removes the hook.
        Raises RuntimeError if the tensor tracks no gradients.
        """
        node = self._node
        if node is None:
            raise RuntimeError("register_hook: this tensor tracks no gradients")
        if node.hooks is None:
            node.hooks = {}
        key = max(node.hooks, default=0) + 1
        node.hooks[key] = hook
        hooks = node.hooks
        return lambda: cast(None, hooks.pop(key, None))

    def detach(self) -> "Tensor":
        """The same array (shared, not copied) without history."""
        return Tensor._wrap(self._data, self.backend, version=self._version)

    # --- Out of it

    def numpy(self) -> Any:
        """A copy of the data as a NumPy array on the host."""
        return self.backend.to_host(self._data)

    def item(self) -> Any:
        """The one element as a Python number. Raises ValueError if there are more."""
        if self.size != 1:
            raise ValueError(f"item: a tensor of shape {self.shape} has {self.size} elements, not one")
        return self.numpy().item()

    def to(self, backend: str | ModuleType | Backend) -> "Tensor":
        """This tensor on another backend; gradients come back through it. On its own backend: itself."""
        source, target = self.backend, resolve_backend(backend)
        if target is source:
            return self
        array = target.asarray(source.to_host(self._data))
        pull = [lambda g: source.asarray(target.to_host(g))]
        return Tensor._wrap(array, target, record("to", target, array, [self._node], pull))

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            "a Tensor does not turn into an array unasked; call .numpy(), or Tensor.stack for a list of them"
        )

    def __dlpack__(self, **kwargs: Any) -> Any:
        """The array's memory for another library, as in `torch.from_dlpack(tensor)`; both then share it.

        After a write from there, call `changed_in_place()`. Raises BufferError for a tensor that tracks gradients, for
        a view that runs backwards, and as the backend's array does.
        """
        if self._node is not None:
            raise BufferError("__dlpack__: this tensor tracks gradients, which would be lost; export .detach()")
        if any(stride < 0 for stride in getattr(self._data, "strides", ())):  # at which PyTorch ends the process
            raise BufferError(
                "__dlpack__: this view runs backwards, which PyTorch cannot do; export a copy, "
                "Tensor(x.data, requires_grad=False)"
            )
        return self._data.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return cast(tuple[int, int], self._data.__dlpack_device__())

    @staticmethod
    def from_dlpack(
        source: Any, *, requires_grad: bool | None = None, backend: str | ModuleType | Backend | None = None
    ) -> "Tensor":
        """A Tensor on the memory of `source` (anything with `__dlpack__`), which both then share.

        It is a leaf: no history of `source` comes with it. After a write from there, call `changed_in_place()`.

        Raises:
            TypeError: there is no `__dlpack__`.
            BufferError: `source` does not give its memory away (as PyTorch does not while it tracks gradients), or it
                is of a dtype or on a device that the backend has not.
        """
        xp = resolve_backend(backend)
        if not hasattr(xp, "from_dlpack"):
            raise TypeError(f"from_dlpack: backend {xp.name!r} cannot share memory; copy the data with Tensor(data)")
        if not hasattr(source, "__dlpack__"):
            raise TypeError(f"from_dlpack: a {type(source).__name__} has no __dlpack__; copy it with Tensor(data)")
        try:
            array = xp.from_dlpack(source)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            if str(error).startswith("__dlpack__: "):
                raise  # it speaks for itself
            facts = f"{type(source).__module__}.{type(source).__name__}, {getattr(source, 'dtype', 'of unknown dtype')}"
            raise BufferError(
                f"from_dlpack: backend {xp.name!r} cannot share this memory ({facts}): {str(error).rstrip(' .')}; give "
                "it without gradients, in a dtype and on a device of the backend: in PyTorch .detach(), .float(), "
                ".cpu() or .cuda()"
            ) from error
        tensor = Tensor._wrap(array, xp)
        tensor._start_tracking(requires_grad)
        return tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> "Tensor":
        if not self.is_leaf:
            raise RuntimeError("deepcopy: only leaf tensors can be copied; call .detach() first")
        copied = Tensor._wrap(self.backend.copy(self._data), self.backend)
        copied.label = self.label
        copied.requires_grad = self.requires_grad
        return copied

    def __copy__(self) -> "Tensor":
        return self.__deepcopy__({})  # two tensors with one node would send each other's gradients astray

    def __reduce__(self) -> NoReturn:
        raise TypeError("pickle: a Tensor is not pickled; keep .numpy(), or a module's state_dict()")

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    # fmt: off
    # --- Arithmetic

    def __add__(self, other: Operand) -> "Tensor":          return _binary(rules.add, self, other)
    def __radd__(self, other: Operand) -> "Tensor":         return _binary(rules.add, other, self)
    def __sub__(self, other: Operand) -> "Tensor":          return _binary(rules.subtract, self, other)
    def __rsub__(self, other: Operand) -> "Tensor":         return _binary(rules.subtract, other, self)
    def __mul__(self, other: Operand) -> "Tensor":          return _binary(rules.multiply, self, other)
    def __rmul__(self, other: Operand) -> "Tensor":         return _binary(rules.multiply, other, self)
    def __truediv__(self, other: Operand) -> "Tensor":      return _binary(rules.divide, self, other)
    def __rtruediv__(self, other: Operand) -> "Tensor":     return _binary(rules.divide, other, self)
    def __pow__(self, other: Operand) -> "Tensor":          return _binary(rules.power, self, other)
    def __rpow__(self, other: Operand) -> "Tensor":         return _binary(rules.power, other, self)
    def __matmul__(self, other: Operand) -> "Tensor":       return _binary(rules.matmul, self, other)
    def __rmatmul__(self, other: Operand) -> "Tensor":      return _binary(rules.matmul, other, self)
    def __neg__(self) -> "Tensor":                          return apply(rules.negative, self)
    def __abs__(self) -> "Tensor":                          return apply(rules.abs, self)

    # --- Comparisons: bool tensors

    def __eq__(self, other: object) -> "Tensor":            return _binary(rules.equal, self, other)  # type: ignore[override]
    def __ne__(self, other: object) -> "Tensor":            return _binary(rules.not_equal, self, other)  # type: ignore[override]
    def __lt__(self, other: Operand) -> "Tensor":           return _binary(rules.less, self, other)
    def __le__(self, other: Operand) -> "Tensor":           return _binary(rules.less_equal, self, other)
    def __gt__(self, other: Operand) -> "Tensor":           return _binary(rules.greater, self, other)
    def __ge__(self, other: Operand) -> "Tensor":           return _binary(rules.greater_equal, self, other)
    __hash__ = object.__hash__  # by identity: == compares elements

    # --- Logic: bool tensors, of bool operands

    def __and__(self, other: Operand) -> "Tensor":          return _binary(rules.logical_and, self, other)
    def __rand__(self, other: Operand) -> "Tensor":         return _binary(rules.logical_and, other, self)
    def __or__(self, other: Operand) -> "Tensor":           return _binary(rules.logical_or, self, other)
    def __ror__(self, other: Operand) -> "Tensor":          return _binary(rules.logical_or, other, self)
    def __xor__(self, other: Operand) -> "Tensor":          return _binary(rules.logical_xor, self, other)
    def __rxor__(self, other: Operand) -> "Tensor":         return _binary(rules.logical_xor, other, self)
    def __invert__(self) -> "Tensor":                       return apply(rules.logical_not, self)

    # fmt: on

    # --- Elementwise: (...) -> (...)

    exp = _elementwise(rules.exp, "e ** x.")
    expm1 = _elementwise(rules.expm1, "e ** x - 1, accurate for x near 0.")
    log = _elementwise(rules.log, "The natural logarithm.")
    log1p = _elementwise(rules.log1p, "log(1 + x), accurate for x near 0.")
    log2 = _elementwise(rules.log2, "The logarithm to the base 2.")
    sqrt = _elementwise(rules.sqrt, "The square root.")
    tanh = _elementwise(rules.tanh, "The hyperbolic tangent.")
    abs = _elementwise(rules.abs, "The absolute value. Its gradient at 0 is 0.")
    sin = _elementwise(rules.sin, "The sine of x in radians.")
    cos = _elementwise(rules.cos, "The cosine of x in radians.")
    arctan = _elementwise(rules.arctan, "The inverse tangent, in radians.")
    floor = _elementwise(rules.floor, "The largest integer not above x, as a float. Its gradient is 0.")
    ceil = _elementwise(rules.ceil, "The smallest integer not below x, as a float. Its gradient is 0.")
    sigmoid = _elementwise(rules.sigmoid, "1 / (1 + e ** -x).")
    relu = _elementwise(rules.relu, "max(x, 0). Its gradient at 0 is 0.")

    def leaky_relu(self, alpha: float = 0.01) -> "Tensor":
        """x where x > 0, else alpha * x (Maas et al., ICML workshop 2013)."""
        return apply(rules.leaky_relu, self, alpha=alpha)

    def gelu(self, approximate: str = "none") -> "Tensor":
        """x * phi(x), phi being the normal distribution function (Hendrycks & Gimpel, arXiv:1606.08415).

        Args:
            approximate: "none", or "tanh" for the approximation by tanh. Raises ValueError for another string.
        """
        return apply(rules.gelu, self, approximate=approximate)

    def maximum(self, other: Operand) -> "Tensor":
        """The larger of self and other, elementwise; nan wins; at ties each gets half the gradient."""
        return apply(rules.maximum, self, other)

    def minimum(self, other: Operand) -> "Tensor":
        """The smaller of self and other, elementwise; nan wins; at ties each gets half the gradient."""
        return apply(rules.minimum, self, other)

    def astype(self, dtype: DType) -> "Tensor":
        """The elements cast to another dtype. The gradient is cast back; integer results have none."""
        return apply(rules.astype, self, dtype=dtype)

    def softmax(self, axis: int = -1) -> "Tensor":
        """exp(x) / sum(exp(x)) along `axis`, without overflow. Raises IndexError for an axis that x does not have."""
        return apply(rules.softmax, self, axis=axis)

    def log_softmax(self, axis: int = -1) -> "Tensor":
        """x - log(sum(exp(x))) along `axis`, without overflow. Raises IndexError for an axis that x does not have."""
        return apply(rules.log_softmax, self, axis=axis)

    def clip(self, min: Operand | None = None, max: Operand | None = None) -> "Tensor":
        """The elements, no less than `min` and no more than `max`: numbers or tensors; `max` wins where they cross."""
        if min is None and max is None:
            raise ValueError("clip: give min, max or both")
        return apply(rules.clip, self, min, max)

    def masked_fill(self, mask: Mask, value: Operand) -> "Tensor":
        """`value`, a number or 0-d tensor, where `mask` is True. Raises TypeError for a mask that is not bool."""
        return apply(rules.masked_fill, self, value, mask=mask)

    def masked_multiply(self, mask: Mask, value: Operand) -> "Tensor":
        """The elements times `value` where `mask` is True, as they are elsewhere. Raises as `masked_fill` does."""
        return apply(rules.masked_multiply, self, value, mask=mask)

    # --- Reductions over axis: None for all, an int, or a tuple; () reduces nothing

    def sum(self, axis: Axis = None, keepdims: bool = False) -> "Tensor":
        return apply(rules.sum, self, axis=axis, keepdims=keepdims)

    def mean(self, axis: Axis = None, keepdims: bool = False) -> "Tensor":
        """The arithmetic mean. Raises TypeError for integers, whose mean is none."""
        return apply(rules.mean, self, axis=axis, keepdims=keepdims)

    def var(self, axis: Axis = None, keepdims: bool = False, *, correction: float = 0) -> "Tensor":
        """The variance: squared deviations from the mean, summed and divided by n - correction."""
        return apply(rules.var, self, axis=axis, correction=correction, keepdims=keepdims)

    def max(self, axis: Axis = None, keepdims: bool = False) -> "Tensor":
        """The largest element; ties share the gradient equally. Raises ValueError over an empty axis."""
        return apply(rules.max, self, axis=axis, keepdims=keepdims)

    def min(self, axis: Axis = None, keepdims: bool = False) -> "Tensor":
        """The smallest element; ties share the gradient equally. Raises ValueError over an empty axis."""
        return apply(rules.min, self, axis=axis, keepdims=keepdims)

    def argmax(self, axis: int | None = None, keepdims: bool = False) -> "Tensor":
        """The index of the largest element, the first of several; of the flattened tensor when axis is None."""
        return apply(rules.argmax, self, axis=axis, keepdims=keepdims)

    # --- Shapes

    def transpose(self, axes: Sequence[int] | None = None) -> "Tensor":
        """The axes in another order; reversed by default."""
        return apply(rules.transpose, self, axes=axes)

    @property
    def T(self) -> "Tensor":
        return self.transpose()

    def swapaxes(self, axis1: int, axis2: int) -> "Tensor":
        first, second = (rules.axes_of("swapaxes", axis, self.ndim)[0] for axis in (axis1, axis2))
        axes = list(range(self.ndim))
        axes[first], axes[second] = second, first
        return self.transpose(axes)

    def reshape(self, *shape: int | Sequence[int]) -> "Tensor":
        """The same elements in C order; one length may be -1. `reshape(2, 3)` or `reshape((2, 3))`."""
        return apply(rules.reshape, self, shape=_shape(shape))

    def broadcast_to(self, *shape: int | Sequence[int]) -> "Tensor":
        return apply(rules.broadcast_to, self, shape=_shape(shape))

    def squeeze(self, axis: Axis = None) -> "Tensor":
        """Without axes of length 1; a named axis that is longer stays."""
        return apply(rules.squeeze, self, axis=axis)

    def expand_dims(self, axis: int | tuple[int, ...]) -> "Tensor":
        """With a new axis of length 1 at `axis`."""
        return apply(rules.expand_dims, self, axis=axis)

    @staticmethod
    def concatenate(tensors: "Sequence[Tensor]", axis: int = 0) -> "Tensor":
        """Tensors joined along an axis they have. Raises ValueError for none."""
        return apply(rules.concatenate, *_several("concatenate", tensors), axis=axis)

    @staticmethod
    def stack(tensors: "Sequence[Tensor]", axis: int = 0) -> "Tensor":
        """Tensors of one shape, joined along a new axis. Raises ValueError for none, or shapes that differ."""
        return apply(rules.stack, *_several("stack", tensors), axis=axis)

    def split(self, size_or_sizes: int | Sequence[int], axis: int = 0) -> "list[Tensor]":
        """Pieces along `axis`: an int is the length of each (the last may be shorter), a list gives all lengths.

        Raises ValueError for lengths that do not add up to the axis.
        """
        (along,) = rules.axes_of("split", axis, self.ndim)
        n = self.shape[along]
        if isinstance(size_or_sizes, Integral):
            size_or_sizes = int(size_or_sizes)
            if size_or_sizes < 1:
                raise ValueError(f"split: the size of a piece must be positive, got {size_or_sizes}")
            sizes = [min(size_or_sizes, n - start) for start in range(0, n, size_or_sizes)] or [0]
        else:
            sizes = list(cast(Sequence[int], size_or_sizes))
            if sum(sizes) != n or min(sizes, default=0) < 0:
                raise ValueError(f"split: sizes {sizes} do not add up to axis {axis} of shape {self.shape}")
        stops = list(accumulate(sizes))
        before = (slice(None),) * along
        return [self[(*before, slice(stop - size, stop))] for size, stop in zip(sizes, stops, strict=True)]

    def __getitem__(self, index: Index) -> "Tensor":
        """x[...] with ints, slices, None, ellipsis, bool masks, integer arrays (repeats add up in the gradient)."""
        parts = index if isinstance(index, tuple) else (index,)
        return apply(rules.getitem, self, index=tuple(_index(part, self.backend) for part in parts))

    def __iter__(self) -> "Iterator[Tensor]":
        if not self.ndim:
            raise TypeError("iter: a 0-d tensor has no elements to go through")
        return (self[i] for i in range(len(self)))


def apply(rule: rules.Rule, *operands: Operand, **params: Any) -> Tensor:
    """Run a rule on the arrays of `operands` and record a node for its output.

    Raises:
        TypeError: operands on two backends, or one that is neither Tensor, number nor array of the backend.
        ValueError, IndexError, TypeError: what the rule or the backend says, with the op's name and the shapes.
    """
    name = rule.__name__
    tensors = [value for value in (*operands, *params.values()) if isinstance(value, Tensor)]
    xp = tensors[0].backend if tensors else resolve_backend(None)
    recording = False
    for tensor in tensors:
        if tensor.backend is not xp:
            _same_backend(name, xp, tensor.backend)
        recording = recording or tensor._node is not None
    recording = recording and is_grad_enabled()
    # A pullback may hold the caller's own array, which the caller may write into before backward; Tensors are watched.
    keep = xp.copy if recording else xp.asarray
    arrays: list[Any] = [o._data if isinstance(o, Tensor) else _operand(name, o, xp, keep) for o in operands]
    if len(arrays) > 1:
        arrays = _promote(xp, arrays)
    if rules.has_float_result(rule) and not any(is_float(xp.dtype(a)) for a in arrays if xp.is_array(a)):
        arrays = [xp.astype(a, get_default_dtype()) if xp.is_array(a) else a for a in arrays]
    if params:
        params = {key: _plain(value, xp, keep) for key, value in params.items()}
    try:
        result = rule(xp, *arrays, **params)
    except (ValueError, IndexError, TypeError, OverflowError) as error:
        if str(error).startswith(f"{name}: "):
            raise  # it speaks for itself
        raise _explained(rule, arrays, params, error) from error
    if not isinstance(result, tuple):
        raise TypeError(f"{name}: a rule must return a tuple (output, pullback, ...), not a {type(result).__name__}")
    out, *pullbacks = result
    if out.ndim == 0:
        out = xp.asarray(out)  # NumPy gives scalars, which are not arrays
    version = tensors[0]._version if rules.is_view(rule) else [0]
    node = None
    if recording:
        nodes = [o._node if isinstance(o, Tensor) else None for o in operands]
        # The output's own version too: the pullbacks of exp or softmax hold the output.
        node = record(name, xp, out, nodes, pullbacks, [version, *(tensor._version for tensor in tensors)])
    return Tensor._wrap(out, xp, node, version)


def custom_op(rule: rules.Rule) -> Callable[..., Tensor]:
    """Make an op of your own from a rule: `(xp, *arrays, **parameters) -> (output, pullback for each operand...)`.

    The returned function takes Tensors, numbers and arrays as operands and the parameters by keyword, and is
    differentiated like any op here. Each pullback takes the gradient of the output and returns that of its operand,
    broadcast shapes left as they are; None where there is no gradient. Check it with `gradcheck`.

        @custom_op
        def softplus(xp, a):
            return xp.log(xp.add(xp.exp(a), 1)), lambda g: xp.divide(g, xp.add(xp.exp(xp.negative(a)), 1))
    """

    def op(*operands: Operand, **params: Any) -> Tensor:
        return apply(rule, *operands, **params)

    return update_wrapper(op, rule)


def _binary(rule: rules.Rule, a: Operand, b: Operand) -> Tensor:
    """An operator: operands of a foreign type get their own say, as Python has it."""
    for operand in (a, b):
        if not isinstance(operand, (Tensor, Real)) and not hasattr(operand, "dtype"):
            return cast(Tensor, NotImplemented)
    return apply(rule, a, b)


def _plain(value: Any, xp: Backend, keep: Callable[[Array], Array]) -> Any:
    """The array of a Tensor, a number as a Python number, an array of the backend through `keep`; others as they are.

    A NumPy scalar would widen float32, which a Python number does not.
    """
    if isinstance(value, Tensor):
        return value._data
    if value is None or type(value) in _PYTHON_NUMBERS:
        return value
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    return keep(value) if xp.is_array(value) else value


def _operand(op: str, value: Operand, xp: Backend, keep: Callable[[Array], Array]) -> Array | Number | None:
    """As `_plain`, and an error for what is no operand."""
    plain = _plain(value, xp, keep)
    if plain is None or type(plain) in _PYTHON_NUMBERS or xp.is_array(plain):
        return plain
    raise TypeError(
        f"{op}: cannot take a {type(value).__module__}.{type(value).__name__} with a tensor on {xp.name!r}; "
        f"pass a number or a Tensor, as in Tensor(x, backend={xp.name!r})"
    )


def _index(part: Any, xp: Backend) -> Any:
    """One part of an index: an int as a Python int, and the array out of a Tensor."""
    if isinstance(part, Tensor):
        _same_backend("getitem", xp, part.backend)
        part = part._data
    if isinstance(part, bool) or getattr(part, "shape", None) == () and _dtype(xp, part).kind == "b":
        raise TypeError("getitem: an index may not be one bool, which NumPy takes for a new axis; use a mask with axes")
    return int(part) if isinstance(part, Integral) else part


def _dtype(xp: Backend, part: Any) -> Any:
    """Of an array of the backend, or of NumPy's."""
    return xp.dtype(part) if xp.is_array(part) else part.dtype


def _same_backend(op: str, first: Backend, second: Backend) -> None:
    if first is not second:
        raise TypeError(
            f"{op}: operands live on {first.name!r} and {second.name!r}; move one with .to({second.name!r})"
        )


def _promote(xp: Backend, arrays: list[Any]) -> list[Any]:
    """Bring arrays of different dtypes to their common float dtype, if one of them is a float."""
    typed = [a for a in arrays if hasattr(a, "shape")]
    dtypes = [xp.dtype(a) for a in typed]
    if typed and dtypes[0].kind == "f" and dtypes.count(dtypes[0]) == len(typed):
        return arrays
    common = common_float(xp, typed)
    if common is None:
        if not any(type(a) is float for a in arrays):
            return arrays
        common = get_default_dtype()
    if not typed:  # numbers alone: where(mask, 1.0, 0.0)
        return [xp.asarray(a, common) for a in arrays]
    return [xp.astype(a, common) if hasattr(a, "shape") and xp.dtype(a) != common else a for a in arrays]


def _explained(rule: rules.Rule, arrays: Sequence[Any], params: dict[str, Any], error: Exception) -> Exception:
    """The error with the op, the shapes and, where there is one, a remedy."""
    shapes = " and ".join(str(a.shape) if hasattr(a, "shape") else repr(a) for a in arrays)
    given = "".join(f", {key}={value!r}" for key, value in params.items() if not hasattr(value, "shape"))
    remedy = getattr(rule, "remedy", "")
    if not remedy and "broadcast" in str(error):
        remedy = "shapes must be equal or broadcast: reshape or expand_dims one of them"
    kind = next(k for k in (IndexError, TypeError, OverflowError, ValueError) if isinstance(error, k))
    return kind(f"{rule.__name__}: {shapes}{given}: {str(error).strip()}" + (f"; {remedy}" if remedy else ""))


def _shape(shape: tuple[Any, ...]) -> Shape:
    return tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], Integral) else shape


def _several(op: str, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    if isinstance(tensors, Tensor) or not len(tensors):
        raise ValueError(f"{op}: give a list of at least one tensor")
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: give a list of tensors; it holds a {type(tensor).__name__}")
    return tensors
