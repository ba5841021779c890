"""Tensor: an array with automatic differentiation, and `apply`, which runs every operation on tensors.

`apply` takes the arrays of the operands, runs a rule from `russellgrad/rules.py` on their backend, and records a node
of the graph. Each operator and method of Tensor is one call of `apply`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from math import prod
from numbers import Integral, Number
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, cast
from warnings import warn
from weakref import ref

from . import rules
from .autograd import Hook, Node, Version, backward, is_grad_enabled, record
from .backend import Array, Axis, Backend, DType, Index, Shape, load_backend, resolve_backend
from .dtype import common_float, get_default_dtype, is_float, python_number, real_array
from .idioms import INSTEAD, instead, missing, numpy_names

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
    """A multi-dimensional array that records the operations on it, so that `backward` can compute gradients.

        x = Tensor([1.0, 2.0, 3.0])
        (x * x).sum().backward()
        x.grad  # [2. 4. 6.]

    Args:
        data: a number, nested lists, or an array. Numbers and lists get the default dtype (bools stay bool); arrays
            keep their dtype. The data is copied.
        dtype: a name such as "float32", or a dtype object.
        requires_grad: whether `backward` fills `.grad`. The default is True for float dtypes if gradients are enabled
            (see `no_grad`). Integer and bool tensors never track gradients.
        backend: a backend's name or module; by default the current one (`get_backend`).
        label: a name for the tensor, shown by `repr`.

    Attributes:
        data: the array, of the backend's type. Assign to it to replace the array.
        grad: the gradient that `backward` has accumulated, an array of the tensor's shape and dtype; None before that.
        backend: the backend of the array, an object with all primitives: `t.backend.name` is "numpy".
        label: the name given to the constructor.

    Raises:
        TypeError: data is a Tensor, contains Tensors, is not real numbers, or is an array of another device;
            requires_grad=True with an integer or bool dtype.
        ValueError: nested lists of different lengths; nan as an integer.
        OverflowError: a finite number that is out of the range of the dtype.
    """

    __slots__ = ("_array", "_grad", "_node", "_version", "backend", "label", "__weakref__")
    __array_ufunc__ = None  # array + tensor calls Tensor.__radd__ instead of a ufunc of NumPy or CuPy

    backend: Backend
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
        xp = resolve_backend(backend)
        if isinstance(data, Tensor) and xp.level <= data.backend.level:
            raise TypeError("Tensor: data is a Tensor already; use .detach(), .astype() or .to()")
        if xp.level and xp.is_array(data):  # within a transform: a leaf has no gradients of any order
            data = cast(Any, xp).detached(data)
        if dtype is None and not _has_dtype(data, xp):  # convert lists once, on the host
            data = real_array(load_backend("numpy"), data, "Tensor")
            dtype = None if data.dtype.kind == "b" else get_default_dtype()
        array = real_array(xp, data, "Tensor", dtype)
        self.backend = xp
        self.label = label
        self._grad = None
        self._array = xp.copy(array)
        self._node: Node | None = None
        self._version: Version = [0]
        self._start_tracking(requires_grad)

    @classmethod
    def _wrap(cls, data: Array, xp: Backend, node: Node | None = None, version: Version | None = None) -> "Tensor":
        """Wrap an array without copying it. Pass the version of another Tensor if the array shares its memory."""
        tensor = cls.__new__(cls)
        tensor._array, tensor._node, tensor.backend, tensor.label = data, node, xp, ""
        tensor._grad = None
        tensor._version = [0] if version is None else version
        return tensor

    def _start_tracking(self, requires_grad: bool | None) -> None:
        """Set requires_grad of a new tensor. The default is True for float dtypes if gradients are enabled."""
        if requires_grad is None:
            requires_grad = is_grad_enabled(self.backend.level) and is_float(self.dtype)
        self.requires_grad = requires_grad

    # --- Attributes

    @property
    def data(self) -> Array:
        """The array, of the backend's type. Assign to it to replace the array; `t.data -= step` updates it in place.

        After a write that does not assign to the attribute, such as `t.data[0] = 5.0`, call `changed_in_place()`.

        Raises (on assignment):
            TypeError: not an array of the tensor's backend, or not of real numbers or bools. ValueError: the tensor
                tracks gradients, and the new array has another shape or dtype. RuntimeError: inside a transform.
        """
        return self._array if not self.backend.level else cast(Any, self.backend).detached(self._array)

    @data.setter
    def data(self, array: Array) -> None:
        if array is self._array:
            self.changed_in_place()
            return
        if self.backend.in_transform:
            raise RuntimeError(
                "data: this tensor is inside a function that a transform differentiates, where the assignment would "
                "have no derivative; compute a new tensor, as in x = x - step"
            )
        if not self.backend.is_array(array):
            raise TypeError(
                f"data: must be an array of backend {self.backend.name!r}, got {type(array).__name__}; write x.data "
                "of a Tensor x, or Tensor(values).data"
            )
        array = real_array(self.backend, array, "data")
        dtype = self.backend.dtype(array)
        if self._node is not None and (array.shape != self.shape or dtype != self.dtype):
            raise ValueError(
                f"data: this tensor tracks gradients as {self.shape} {self.dtype}; "
                f"{array.shape} {dtype} needs a new Tensor"
            )
        self._array, self._version = array, [0]

    def changed_in_place(self) -> None:
        """Report a write into the memory of `.data`, so that a backward that needs the old values raises an error."""
        self._version[0] += 1

    @property
    def shape(self) -> Shape:
        """The length of each axis, a tuple of ints."""
        return cast(Shape, self._array.shape)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return int(self._array.ndim)

    @property
    def dtype(self) -> Any:
        """The dtype, a NumPy dtype object on every backend."""
        return self.backend.dtype(self._array)

    @property
    def size(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    @property
    def is_leaf(self) -> bool:
        """Whether the tensor is a leaf of the graph: created by the user, or by an operation that was not recorded."""
        return self._node is None or self._node.name == "leaf"

    @property
    def requires_grad(self) -> bool:
        """Whether the tensor tracks gradients. Only a leaf's can be set.

        Raises (on assignment):
            RuntimeError: the tensor is not a leaf.
            TypeError: set to True for an integer or bool dtype, or to anything but True and False.
        """
        return self._node is not None

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        if not self.is_leaf:
            raise RuntimeError("requires_grad: can only be set on a leaf; use .detach() for a tensor without history")
        if not isinstance(python_number(wanted), bool):
            raise TypeError(f"requires_grad: must be True or False, got {wanted!r}")
        if not wanted and self._node is not None and self.backend.in_transform:
            raise RuntimeError(
                "requires_grad: this tensor is the argument of a transform, which would get no gradient; use .detach() "
                "for a constant"
            )
        if not wanted:
            self._node = None
        elif not is_float(self.dtype):
            raise TypeError(f"requires_grad: only float tensors track gradients, this one is {self.dtype}")
        elif self._node is None:
            self._node = Node("leaf", self.backend, self._array)
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

    def __format__(self, spec: str) -> str:
        """Format the element of a tensor of size 1, as in f"{loss:.3f}"."""
        if not spec and self.ndim:
            return str(self)
        if self.size != 1:
            raise TypeError(
                f"format: shape {self.shape} cannot be formatted with {spec!r}; format one element, or .numpy()"
            )
        return format(self.item(), spec)

    # --- Gradients

    @property
    def grad(self) -> Array | None:
        """The gradient that `backward` has accumulated, an array of the tensor's shape and dtype; None before that.

        Assign an array or Tensor of that shape to replace it; another float dtype is cast. Reading it warns for a
        tensor that tracks gradients and is no leaf: `backward` fills it only after `retain_grad()`.

        Raises (on assignment):
            TypeError: not an array of the tensor's backend, or not of real numbers. ValueError: another shape.
        """
        if self._grad is None and self._node is not None and self._node.tensor_ref is None:
            warn(
                f"grad: this tensor is not a leaf (it comes from {self._node.name!r}), so backward does not fill its "
                ".grad; call .retain_grad() before backward, or read the .grad of a leaf",
                stacklevel=2,
            )
        return self.backend.exposed(self._grad) if self._grad is not None and self.backend.level else self._grad

    @grad.setter
    def grad(self, gradient: "Array | Tensor | None") -> None:
        if gradient is None:
            self._grad = None
        else:  # a Tensor's array is copied: a write into .grad must not change the Tensor
            array = self._as_gradient("grad", gradient)
            self._grad = self.backend.copy(array) if isinstance(gradient, Tensor) else array

    def _as_gradient(self, op: str, gradient: "Array | Tensor") -> Array:
        """The array of a gradient, in this tensor's dtype. Raises as `backward` does."""
        xp = self.backend
        if isinstance(gradient, Tensor) and not xp.level > gradient.backend.level:
            _same_backend(op, xp, gradient.backend)
            gradient = gradient._array
        elif not self.ndim and python_number(gradient) is not None:  # NumPy returns a scalar for a 0-d array times two
            gradient = xp.asarray(gradient)
        if not xp.is_array(gradient):
            raise TypeError(
                f"{op}: gradient must be a Tensor or an array of backend {xp.name!r}, got {type(gradient).__name__}; "
                f"make one with Tensor(gradient, backend={xp.name!r})"
            )
        array = real_array(xp, gradient, op)
        if array.shape != self.shape:
            raise ValueError(
                f"{op}: gradient has shape {array.shape}, this tensor {self.shape}; they must agree: reshape the "
                "gradient, or sum it over the axes that were broadcast"
            )
        return array if xp.dtype(array) == self.dtype else xp.astype(array, self.dtype)

    def backward(
        self, gradient: "Array | Tensor | None" = None, retain_graph: bool = False, *, create_graph: bool = False
    ) -> None:
        """Compute the gradients of this tensor, and add them to `.grad` of every leaf that it depends on.

        The gradients are arrays, without a graph. For gradients of gradients, use `russellgrad.grad`.

        Args:
            gradient: the gradient of a scalar with respect to this tensor: an array or Tensor of exactly this shape, on
                this backend. The default, for a tensor with one element, is 1.
            retain_graph: keep the graph for another call. By default the graph is freed during the call.
            create_graph: must be False; PyTorch's name for gradients that have a graph.

        Raises:
            TypeError: create_graph is True.
            RuntimeError: the tensor tracks no gradients; it has several elements and `gradient` is None; the graph was
                freed by an earlier backward; or an array that is needed was changed in place.
            ValueError: `gradient` has another shape. TypeError: it is on another backend, or not an array of real
                numbers.
        """
        if create_graph:
            raise TypeError(
                "backward: create_graph=True is not supported, because .grad is an array without a graph; write the "
                "computation as a function f of x, and call russellgrad.grad(f)(x): docs/second_derivatives.md"
            )
        if self.backend.in_transform:
            raise RuntimeError(
                "backward: this tensor was made inside a function that a transform differentiates, where .grad would "
                "be a constant; call russellgrad.grad inside, or return a value that is used outside"
            )
        if self._node is None:
            raise RuntimeError(
                "backward: this tensor tracks no gradients; build it from float tensors, not in no_grad(): set "
                "x.requires_grad = True before the first op on x"
            )
        xp = self.backend
        if gradient is None:
            if self.size != 1:
                raise RuntimeError(
                    f"backward: a tensor of shape {self.shape} needs gradient=, an array of that shape; or reduce it "
                    "to a scalar first: y.sum().backward()"
                )
            backward(self._node, xp.full(self.shape, 1, self.dtype), retain_graph)
        else:
            # A copy, so that the caller's array does not change if a pullback writes into its argument.
            backward(self._node, xp.copy(self._as_gradient("backward", gradient)), retain_graph)

    def zero_grad(self) -> None:
        """Set `.grad` to None."""
        self.grad = None

    def retain_grad(self) -> None:
        """Make `backward` fill `.grad` of this tensor although it is not a leaf.

        Raises RuntimeError if the tensor tracks no gradients.
        """
        if self._node is None:
            raise RuntimeError("retain_grad: this tensor tracks no gradients")
        self._node.tensor_ref = ref(self)

    def register_hook(self, hook: Hook) -> Callable[[], None]:
        """Register a function `hook(gradient)` that `backward` calls with this tensor's complete gradient, an array.

        The hook returns None, or an array that replaces the gradient. Hooks run in the order of registration.

            remove = x.register_hook(lambda g: print(g))

        Returns:
            A function that removes the hook.

        Raises:
            TypeError: the hook is not callable. RuntimeError: the tensor tracks no gradients.
        """
        if not callable(hook):
            raise TypeError(f"register_hook: needs a function of the gradient, got a {type(hook).__name__}")
        node = self._node
        if node is None:
            raise RuntimeError("register_hook: this tensor tracks no gradients")
        if node.hooks is None:
            node.hooks = {}
        key, hooks = object(), node.hooks
        hooks[key] = hook
        return lambda: cast(None, hooks.pop(key, None))

    def detach(self) -> "Tensor":
        """A tensor that shares this tensor's array and tracks no gradients of any order."""
        if self.backend.level:
            return cast(Tensor, cast(Any, self.backend).detached(self._array))
        return Tensor._wrap(self._array, self.backend, version=self._version)

    # --- Conversion

    def numpy(self) -> Any:
        """A copy of the data as a NumPy array on the host. Waits for the device."""
        return self.backend.to_host(self._array)

    def item(self) -> Any:
        """The element of a tensor of size 1, as a Python number. Raises ValueError for any other size."""
        return self._one_element("item")

    def _one_element(self, op: str) -> Any:
        if self.size != 1:
            raise ValueError(
                f"{op}: a tensor of shape {self.shape} has {self.size} elements, not one; reduce it, as in x.mean(), "
                "or call .numpy()"
            )
        return self.numpy().item()

    def to(self, backend: str | ModuleType | Backend) -> "Tensor":
        """Copy the tensor to another backend. Returns self if it is on that backend already.

        The operation is differentiable: the gradient is copied back. Raises as `set_backend` does.

            y = x.to("cupy")
        """
        source, target = self.backend.root, resolve_backend(backend).root
        if target is source:
            return self
        nodes = [self._node if is_grad_enabled(self.backend.level) else None]
        if self.backend.level:  # within a transform
            xp, move = self.backend.on(target), cast(Any, self.backend).moved
            array = move(self._array, target)
            node = record("to", xp, array, nodes, [lambda g: move(g, source)])
            return Tensor._wrap(array, xp, node, array._version)
        array = target.asarray(source.to_host(self._array))
        pull = [lambda g: source.asarray(target.to_host(g))]
        return Tensor._wrap(array, target, record("to", target, array, nodes, pull))

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            "a Tensor is not converted to an array implicitly; call .numpy(), or Tensor.stack for a list of tensors"
        )

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> NoReturn:
        raise TypeError(
            f"numpy.{function.__name__}: a Tensor is not converted to an array implicitly; call .numpy()"
            + (f", or write {remedy}" if (remedy := instead(function.__name__, Tensor)) else "")
        )

    if not TYPE_CHECKING:  # mypy would accept every attribute

        def __getattr__(self, name: str) -> NoReturn:  # called only for an attribute that does not exist
            remedy = f"; write {INSTEAD[name]}" if name in INSTEAD else ""
            raise AttributeError(f"'Tensor' object has no attribute {name!r}{remedy}", name=name, obj=self)

    def __dlpack__(self, **kwargs: Any) -> Any:
        """Export the array to another library without a copy, as in `torch.from_dlpack(tensor)`.

        Both share the memory. After a write by the other library, call `changed_in_place()`.

        Raises:
            BufferError: the tensor tracks gradients, has negative strides, or cannot be exported by its backend.
        """
        if self._node is not None or self.backend.level:
            raise BufferError("__dlpack__: this tensor tracks gradients, which would be lost; export .detach()")
        if any(stride < 0 for stride in getattr(self._array, "strides", ())):  # PyTorch aborts the process
            raise BufferError(
                "__dlpack__: this view has negative strides, which PyTorch does not support; export a copy, "
                "Tensor(x.data, requires_grad=False)"
            )
        return self._array.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return cast(tuple[int, int], self.detach()._array.__dlpack_device__())

    @staticmethod
    def from_dlpack(
        source: Any, *, requires_grad: bool | None = None, backend: str | ModuleType | Backend | None = None
    ) -> "Tensor":
        """Make a Tensor that shares the memory of `source`, any object with a `__dlpack__` method.

        The Tensor is a leaf. After a write by the other library, call `changed_in_place()`.

            x = Tensor.from_dlpack(torch.ones(3))

        Args:
            source: an array or tensor of another library.
            requires_grad, backend: as for the constructor.

        Raises:
            TypeError: `source` has no `__dlpack__`, or the backend cannot share memory.
            BufferError: `source` refuses to export (a PyTorch tensor that requires a gradient), or the backend does not
                support its dtype or device.
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
                raise  # the message is complete
            facts = f"{type(source).__module__}.{type(source).__name__}, {getattr(source, 'dtype', 'of unknown dtype')}"
            raise BufferError(
                f"from_dlpack: backend {xp.name!r} cannot share this memory ({facts}): {str(error).rstrip(' .')}; pass "
                "it without gradients, with a dtype and on a device of the backend: in PyTorch .detach(), .float(), "
                ".cpu() or .cuda()"
            ) from error
        tensor = Tensor._wrap(real_array(xp, array, "from_dlpack"), xp)
        tensor._start_tracking(requires_grad)
        return tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> "Tensor":
        if not self.is_leaf:
            raise RuntimeError("deepcopy: only leaf tensors can be copied; call .detach() first")
        copied = Tensor._wrap(self.backend.copy(self.data), self.backend)
        copied.label = self.label
        copied.requires_grad = self.requires_grad
        return copied

    def __copy__(self) -> "Tensor":
        return self.__deepcopy__({})  # a shallow copy would share the node, and with it the gradient

    def __reduce__(self) -> NoReturn:
        raise TypeError("pickle: a Tensor is not pickled; keep .numpy(), or a module's state_dict()")

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError(
                f"bool: the truth value of a tensor of shape {self.shape} is ambiguous; choose elements with "
                "where(x > 0, a, b), combine masks with & | ~ instead of and, or, not, find a tensor in a list with "
                "`is`, or test all elements with (x > 0).numpy().all()"
            )
        return bool(self.item())

    def __float__(self) -> float:
        return float(self._one_element("float"))

    def __int__(self) -> int:
        return int(self._one_element("int"))

    def __index__(self) -> int:
        """Use an integer tensor of size 1 as an index of a list: names[logits.argmax()]."""
        if self.dtype.kind not in "iu":
            raise TypeError(f"index: a tensor of dtype {self.dtype} is not an integer; call int(x) to round towards 0")
        return int(self._one_element("index"))

    def __contains__(self, x: Any) -> bool:
        return bool(apply(rules.equal, self, x).numpy().any())

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
    def __iadd__(self, other: Operand) -> "Tensor":         return _augmented(rules.add, "+=", self, other)
    def __isub__(self, other: Operand) -> "Tensor":         return _augmented(rules.subtract, "-=", self, other)
    def __imul__(self, other: Operand) -> "Tensor":         return _augmented(rules.multiply, "*=", self, other)
    def __itruediv__(self, other: Operand) -> "Tensor":     return _augmented(rules.divide, "/=", self, other)
    def __ipow__(self, other: Operand) -> "Tensor":         return _augmented(rules.power, "**=", self, other)
    def __imatmul__(self, other: Operand) -> "Tensor":      return _augmented(rules.matmul, "@=", self, other)
    def __pos__(self) -> "Tensor":                          return self
    def __neg__(self) -> "Tensor":                          return apply(rules.negative, self)
    def __abs__(self) -> "Tensor":                          return apply(rules.abs, self)

    # --- Comparisons: the result is a bool tensor

    def __eq__(self, other: object) -> "Tensor":            return _equality(rules.equal, self, other)  # type: ignore[override]
    def __ne__(self, other: object) -> "Tensor":            return _equality(rules.not_equal, self, other)  # type: ignore[override]
    def __lt__(self, other: Operand) -> "Tensor":           return _binary(rules.less, self, other)
    def __le__(self, other: Operand) -> "Tensor":           return _binary(rules.less_equal, self, other)
    def __gt__(self, other: Operand) -> "Tensor":           return _binary(rules.greater, self, other)
    def __ge__(self, other: Operand) -> "Tensor":           return _binary(rules.greater_equal, self, other)
    __hash__ = object.__hash__  # by identity, because == compares elements

    __floordiv__ = __rfloordiv__ = missing("x // y", "(x / y).floor()")
    __mod__ = __rmod__ = missing("x % y", "x - (x / y).floor() * y")
    __round__ = missing("round(x, n)", "round(x.item(), n), or x.numpy().round(n)")

    # --- Logic, for bool operands

    def __and__(self, other: Operand) -> "Tensor":          return _binary(rules.logical_and, self, other)
    def __rand__(self, other: Operand) -> "Tensor":         return _binary(rules.logical_and, other, self)
    def __or__(self, other: Operand) -> "Tensor":           return _binary(rules.logical_or, self, other)
    def __ror__(self, other: Operand) -> "Tensor":          return _binary(rules.logical_or, other, self)
    def __xor__(self, other: Operand) -> "Tensor":          return _binary(rules.logical_xor, self, other)
    def __rxor__(self, other: Operand) -> "Tensor":         return _binary(rules.logical_xor, other, self)
    def __invert__(self) -> "Tensor":                       return apply(rules.logical_not, self)

    # fmt: on

    # --- Elementwise: (...) -> (...)

    exp = _elementwise(rules.exp, "The exponential, e ** x.")
    expm1 = _elementwise(rules.expm1, "The exponential minus 1, accurate for x near 0.")
    log = _elementwise(rules.log, "The natural logarithm, nan for x < 0.")
    log1p = _elementwise(rules.log1p, "log(1 + x), accurate for x near 0.")
    log2 = _elementwise(rules.log2, "The base-2 logarithm.")
    sqrt = _elementwise(rules.sqrt, "The square root.")
    tanh = _elementwise(rules.tanh, "The hyperbolic tangent.")
    abs = _elementwise(rules.abs, "The absolute value. The gradient at 0 is 0.")
    sin = _elementwise(rules.sin, "The sine of x in radians.")
    cos = _elementwise(rules.cos, "The cosine of x in radians.")
    arctan = _elementwise(rules.arctan, "The inverse tangent, in radians.")
    floor = _elementwise(rules.floor, "The largest integer <= x, in the dtype of x. The gradient is 0.")
    ceil = _elementwise(rules.ceil, "The smallest integer >= x, in the dtype of x. The gradient is 0.")
    sigmoid = _elementwise(rules.sigmoid, "The logistic sigmoid, 1 / (1 + e ** -x).")
    relu = _elementwise(rules.relu, "max(x, 0). The gradient at 0 is 0.")

    def leaky_relu(self, alpha: float = 0.01) -> "Tensor":
        """x where x > 0, else alpha * x (Maas et al., ICML workshop 2013). The gradient at 0 is alpha."""
        return apply(rules.leaky_relu, self, alpha=alpha)

    def gelu(self, approximate: str = "none") -> "Tensor":
        """Gaussian error linear unit: x * Phi(x), where Phi is the standard normal distribution function.

        Hendrycks & Gimpel, arXiv:1606.08415.

        Args:
            approximate: "none" for the exact function, "tanh" for the approximation. Raises ValueError for any other.
        """
        return apply(rules.gelu, self, approximate=approximate)

    def maximum(self, other: Operand) -> "Tensor":
        """Elementwise maximum. nan propagates. Where both are equal, each gets half of the gradient."""
        return apply(rules.maximum, self, other)

    def minimum(self, other: Operand) -> "Tensor":
        """Elementwise minimum. nan propagates. Where both are equal, each gets half of the gradient."""
        return apply(rules.minimum, self, other)

    def astype(self, dtype: DType) -> "Tensor":
        """Cast to another dtype. The gradient is cast back; integer and bool results track no gradients.

        Raises TypeError for a dtype that is not of real numbers or bools.

            x.astype("float32")
        """
        return apply(rules.astype, self, dtype=dtype)

    @numpy_names
    def softmax(self, axis: int = -1) -> "Tensor":
        """exp(x) / sum(exp(x)) along `axis`, without overflow. Raises IndexError for an axis that x does not have."""
        return apply(rules.softmax, self, axis=axis)

    @numpy_names
    def log_softmax(self, axis: int = -1) -> "Tensor":
        """x - log(sum(exp(x))) along `axis`, without overflow. Raises IndexError for an axis that x does not have."""
        return apply(rules.log_softmax, self, axis=axis)

    @numpy_names
    def clip(self, min: Operand | None = None, max: Operand | None = None) -> "Tensor":
        """Limit the elements to [min, max]. The bounds are numbers, tensors or None; the gradient is 1 at the bounds.

        The result is `max` where min > max. Raises ValueError if both bounds are None.
        """
        if min is None and max is None:
            raise ValueError("clip: give min, max or both")
        return apply(rules.clip, self, min, max)

    def masked_fill(self, mask: Mask, value: Operand) -> "Tensor":
        """Replace the elements where `mask` is True with `value`, a number or 0-d tensor.

        Raises:
            TypeError: the mask is not bool. ValueError: the mask does not broadcast to the tensor's shape, or `value`
                has axes.

            scores.masked_fill(mask, -math.inf)
        """
        return apply(rules.masked_fill, self, value, mask=mask)

    def masked_multiply(self, mask: Mask, value: Operand) -> "Tensor":
        """Multiply the elements where `mask` is True by `value`; the others do not change.

        Raises:
            TypeError: the mask is not bool. ValueError: the mask does not broadcast to the tensor's shape.
        """
        return apply(rules.masked_multiply, self, value, mask=mask)

    # --- Reductions. axis: None (all axes), an int, or a tuple of ints; () reduces no axis

    @numpy_names
    def sum(self, axis: Axis = None, keepdims: bool = False) -> "Tensor":
        """The sum over `axis`. The sum of integers or bools is int64.

        Args:
            axis: an int, a tuple of ints, or None for all axes.
            keepdims: keep the reduced axes, with length 1.

        Raises:
            IndexError: an axis is out of range. ValueError: an axis is repeated.

            Tensor([[1.0, 2.0], [3.0, 4.0]]).sum(axis=0)  # [4. 6.]
        """
        return apply(rules.sum, self, axis=axis, keepdims=keepdims)

    @numpy_names
    def mean(self, axis: Axis = None, keepdims: bool = False) -> "Tensor":
        """The arithmetic mean over `axis`, as in `sum`. Raises TypeError for integer and bool tensors."""
        return apply(rules.mean, self, axis=axis, keepdims=keepdims)

    @numpy_names
    def var(self, axis: Axis = None, keepdims: bool = False, *, correction: float = 0) -> "Tensor":
        """The variance over `axis`, as in `sum`: the sum of squared deviations from the mean over n - correction.

        correction=0 is NumPy's default, correction=1 is PyTorch's. Raises TypeError for integer and bool tensors.
        """
        return apply(rules.var, self, axis=axis, correction=correction, keepdims=keepdims)

    @numpy_names
    def max(self, axis: Axis = None, keepdims: bool = False) -> "Tensor":
        """The maximum over `axis`, as in `sum`. Equal maxima share the gradient equally, as in `torch.amax`.

        Raises ValueError for an axis of length 0.
        """
        return apply(rules.max, self, axis=axis, keepdims=keepdims)

    @numpy_names
    def min(self, axis: Axis = None, keepdims: bool = False) -> "Tensor":
        """The minimum over `axis`, as in `sum`. Equal minima share the gradient equally, as in `torch.amin`.

        Raises ValueError for an axis of length 0.
        """
        return apply(rules.min, self, axis=axis, keepdims=keepdims)

    @numpy_names
    def argmax(self, axis: int | None = None, keepdims: bool = False) -> "Tensor":
        """The index (int64) of the first maximum along `axis`; in the flattened tensor if axis is None."""
        return apply(rules.argmax, self, axis=axis, keepdims=keepdims)

    # --- Shapes

    def transpose(self, axes: int | Sequence[int] | None = None, *more: int) -> "Tensor":
        """Permute the axes: `transpose(1, 0)` or `transpose((1, 0))`; by default, reverse them.

        Raises:
            ValueError: `axes` does not name each axis once. IndexError: an axis is out of range.

            x.transpose((0, 2, 1))  # (2, 3, 4) -> (2, 4, 3)
        """
        if more or isinstance(axes, Integral):
            axes = cast(Sequence[int], (axes, *more))
        return apply(rules.transpose, self, axes=axes)

    @property
    def T(self) -> "Tensor":
        """The tensor with its axes reversed: the transpose of a matrix."""
        return self.transpose()

    def swapaxes(self, axis1: int, axis2: int) -> "Tensor":
        """Swap two axes: `x.swapaxes(-1, -2)` transposes the matrices of a batch.

        Raises IndexError for an axis out of range.
        """
        first, second = (rules.normalize_axes("swapaxes", axis, self.ndim)[0] for axis in (axis1, axis2))
        axes = list(range(self.ndim))
        axes[first], axes[second] = second, first
        return self.transpose(axes)

    def reshape(self, *shape: int | Sequence[int]) -> "Tensor":
        """Change the shape: `reshape(2, 3)` or `reshape((2, 3))`. The elements keep their C order.

        One length may be -1; it is inferred. Raises ValueError if the number of elements changes.
        """
        return apply(rules.reshape, self, shape=_shape_from_args("reshape", shape))

    def broadcast_to(self, *shape: int | Sequence[int]) -> "Tensor":
        """Broadcast to a shape: `broadcast_to(2, 3)` or `broadcast_to((2, 3))`. The gradient is summed back.

        Raises ValueError for a shape to which the tensor does not broadcast.
        """
        return apply(rules.broadcast_to, self, shape=_shape_from_args("broadcast_to", shape))

    @numpy_names
    def squeeze(self, axis: Axis = None) -> "Tensor":
        """Remove axes of length 1, or those in `axis`. A longer axis in `axis` stays, as in PyTorch.

        Raises IndexError for an axis out of range.
        """
        return apply(rules.squeeze, self, axis=axis)

    @numpy_names
    def expand_dims(self, axis: int | tuple[int, ...]) -> "Tensor":
        """Insert a new axis of length 1 at each position in `axis`, an int or a tuple of ints.

        Raises IndexError for an axis out of range.

            x.expand_dims(0)  # (2, 3) -> (1, 2, 3)
        """
        return apply(rules.expand_dims, self, axis=axis)

    @staticmethod
    @numpy_names
    def concatenate(tensors: "Iterable[Tensor]", axis: int = 0) -> "Tensor":
        """Join tensors along an existing axis: (..., n_i, ...) -> (..., sum n_i, ...).

        Raises:
            ValueError: the list is empty, or the shapes differ in another axis. IndexError: the axis is out of range.

            Tensor.concatenate([a, b], axis=1)
        """
        return apply(rules.concatenate, *_check_tensors("concatenate", tensors), axis=axis)

    @staticmethod
    @numpy_names
    def stack(tensors: "Iterable[Tensor]", axis: int = 0) -> "Tensor":
        """Join tensors of equal shape along a new axis.

        Raises:
            ValueError: the list is empty, or the shapes differ. IndexError: the axis is out of range.

            Tensor.stack([a, b])  # (3,) and (3,) -> (2, 3)
        """
        return apply(rules.stack, *_check_tensors("stack", tensors), axis=axis)

    @numpy_names
    def split(self, size_or_sizes: int | Sequence[int], axis: int = 0) -> "list[Tensor]":
        """Split into pieces along `axis`, as `torch.split` does.

        Args:
            size_or_sizes: the length of each piece (the last may be shorter), or a list of all lengths.
            axis: the axis.

        Raises:
            ValueError: the lengths do not add up to the length of the axis, or a length is negative.
            IndexError: the axis is out of range.

            x.split(2)  # (5,) -> (2,), (2,), (1,)
        """
        (split_axis,) = rules.normalize_axes("split", axis, self.ndim)
        n = self.shape[split_axis]
        if isinstance(size_or_sizes, Integral) and not isinstance(size_or_sizes, bool):
            size_or_sizes = int(size_or_sizes)
            if size_or_sizes < 1:
                raise ValueError(f"split: the size of a piece must be positive, got {size_or_sizes}")
            sizes = [min(size_or_sizes, n - start) for start in range(0, n, size_or_sizes)] or [0]
        else:
            sizes = list(_shape_from_args("split", (size_or_sizes,)))
            if sum(sizes) != n or min(sizes, default=0) < 0:
                raise ValueError(f"split: sizes {sizes} do not add up to axis {axis} of shape {self.shape}")
        stops = list(accumulate(sizes))
        before = (slice(None),) * split_axis
        return [self[(*before, slice(stop - size, stop))] for size, stop in zip(sizes, stops, strict=True)]

    def __getitem__(self, index: Index) -> "Tensor":
        """x[index] with ints, slices, None, an ellipsis, bool masks and integer arrays.

        The gradients of elements that are selected several times add up.
        """
        parts = index if isinstance(index, tuple) else (index,)
        return apply(rules.getitem, self, index=tuple(_index(part, self.backend) for part in parts))

    def __setitem__(self, index: Index, value: Any) -> NoReturn:
        raise TypeError(
            "setitem: x[index] = value is not supported; make a new tensor with where(mask, value, x), or write into "
            "x.data and call x.changed_in_place()"
        )

    def __iter__(self) -> "Iterator[Tensor]":
        if not self.ndim:
            raise TypeError("iter: a 0-d tensor cannot be iterated over")
        return (self[i] for i in range(len(self)))


def apply(rule: rules.Rule, *operands: Operand, **params: Any) -> Tensor:
    """Run a rule on the arrays of `operands`, record a node for the output, and return the output as a Tensor.

    Raises:
        TypeError: the operands are on different backends, or one is not a Tensor, a number or an array of the backend.
        ValueError, IndexError, TypeError: an error of the rule or the backend, with the op's name and the shapes.
    """
    name = rule.__name__
    tensors = [value for value in (*operands, *params.values()) if isinstance(value, Tensor)]
    xp = tensors[0].backend if tensors else resolve_backend(None)
    recording = False
    for tensor in tensors:
        if tensor.backend is not xp:
            xp, tensors, operands, params = _lift(name, tensors, operands, params)
            recording = any(tensor._node is not None for tensor in tensors)
            break
        recording = recording or tensor._node is not None
    recording = recording and is_grad_enabled(xp.level)
    # A pullback must not see later writes. Writes into Tensors are detected; writes into the caller's arrays are not,
    # so those are copied.
    keep = xp.copy if recording else xp.asarray
    arrays: list[Any] = []
    for operand in operands:  # a loop: a comprehension takes longer for one or two operands
        arrays.append(operand._array if isinstance(operand, Tensor) else _operand(rule, operands, operand, xp, keep))
    if len(arrays) > 1:
        arrays = _promote(xp, arrays)
    has_float_result, is_view = rules.marks(rule)
    if has_float_result and not any(is_float(xp.dtype(a)) for a in arrays if xp.is_array(a)):
        arrays = [xp.astype(a, get_default_dtype()) if xp.is_array(a) else a for a in arrays]
    if params:
        params = _parameters(rule, params, xp, keep)
    try:
        result = rule(xp, *arrays, **params)
    except (ValueError, IndexError, TypeError, OverflowError) as error:
        if str(error).startswith(f"{name}: "):
            raise  # the message is complete
        raise _explain_error(rule, arrays, params, error) from error
    if not isinstance(result, tuple):
        raise TypeError(f"{name}: a rule must return a tuple (output, pullback, ...), not a {type(result).__name__}")
    out, *pullbacks = result
    if out.ndim == 0:
        out = xp.asarray(out)  # NumPy returns scalars for 0-d results
    version = tensors[0]._version if is_view else [0]
    node = None
    if recording:
        if xp.level:  # out is a Tensor of a lower level, whose array may be changed in place
            version = out._version
        nodes = [o._node if isinstance(o, Tensor) else None for o in operands]
        # Include the output's version, because some pullbacks hold the output (exp, softmax).
        node = record(name, xp, out, nodes, pullbacks, [version, *(tensor._version for tensor in tensors)])
    return Tensor._wrap(out, xp, node, version)


def _lift(
    op: str, tensors: list[Tensor], operands: tuple[Operand, ...], params: dict[str, Any]
) -> tuple[Backend, list[Tensor], tuple[Operand, ...], dict[str, Any]]:
    """The highest level among the tensors, and the arguments with tensors of lower levels as constants of that level.

    Raises TypeError for tensors of different roots.
    """
    for tensor in tensors:
        if tensor.backend.root is not tensors[0].backend.root:
            _same_backend(op, tensors[0].backend, tensor.backend)
    xp = max((tensor.backend for tensor in tensors), key=lambda backend: backend.level)

    def lifted(value: Any) -> Any:
        is_lower = isinstance(value, Tensor) and value.backend.level < xp.level
        return Tensor._wrap(value, xp, version=value._version) if is_lower else value

    operands = tuple(lifted(operand) for operand in operands)
    params = {name: lifted(value) for name, value in params.items()}
    return xp, [value for value in (*operands, *params.values()) if isinstance(value, Tensor)], operands, params


def _binary(rule: rules.Rule, a: Operand, b: Operand) -> Tensor:
    """Apply a rule as a binary operator.

    Returns NotImplemented for a type that may define the operator itself, as Python's data model requires. Numbers and
    built-in types do not; `apply` takes or refuses them.
    """
    for x, other in ((a, b), (b, a)):
        if type(x) is Tensor or type(x) in _PYTHON_NUMBERS:
            continue
        if not isinstance(x, (Tensor, *_BUILT_IN)) and not _has_dtype(x, other.backend):
            return cast(Tensor, NotImplemented)
    return apply(rule, a, b)


_BUILT_IN = (Number, str, bytes, bytearray, list, tuple, range, dict, set, type(None))


def _equality(rule: rules.Rule, a: Tensor, b: Any) -> Tensor:
    """As `_binary`. None, strings and objects are not equal to any tensor, as in PyTorch."""
    comparable = isinstance(b, (Tensor, Number, list, tuple)) or _has_dtype(b, a.backend)
    return _binary(rule, a, b) if comparable else cast(Tensor, NotImplemented)


def _augmented(rule: rules.Rule, operator: str, a: Tensor, b: Operand) -> Tensor:
    """`a += b`, which is `a = a + b`: a new tensor. Raises RuntimeError where that would replace a parameter."""
    if a._node is not None and a.is_leaf and not is_grad_enabled(a.backend.level):
        raise RuntimeError(
            f"{rule.__name__}: within no_grad(), `w {operator} x` would replace w, which tracks gradients, by a new "
            f"tensor that does not; to update w, write w.data {operator} x, with an array x, such as lr * w.grad; for "
            f"a new tensor, w = w {operator[:-1]} x"
        )
    return _binary(rule, a, b)


def _operand(
    rule: rules.Rule, operands: Sequence[Operand], value: Operand, xp: Backend, keep: Callable[[Array], Array]
) -> Any:
    """An operand that is not a Tensor: a Python number, an array, which is kept by `keep`, or None.

    Raises TypeError if the value is not an operand, or not of real numbers.
    """
    op, kind = rule.__name__, type(value)
    if kind in _PYTHON_NUMBERS:
        return value
    if _is_array(xp, value):
        return keep(real_array(xp, value, op))
    if value is None and not any(o is None and rules.needs_array(rule, i) for i, o in enumerate(operands)):
        return None
    if (number := python_number(value)) is not None:
        return number
    if hasattr(value, "__array__") and hasattr(value, "__len__") or isinstance(value, (list, tuple)):
        raise TypeError(
            f"{op}: cannot take a {kind.__module__}.{kind.__name__} with a tensor of backend {xp.name!r}; "
            f"pass a number or a Tensor, as in Tensor(x, backend={xp.name!r})"
        )
    what = repr(value) if value is None else f"{value!r}, a {kind.__name__}"
    raise TypeError(f"{op}: cannot take {what}; pass a real number of at most 64 bits, a bool or a Tensor")


def _parameters(
    rule: rules.Rule, params: dict[str, Any], xp: Backend, keep: Callable[[Array], Array]
) -> dict[str, Any]:
    """The parameters with Tensors replaced by their arrays, and NumPy's numbers by Python numbers.

    Raises TypeError for a number that is not real, and for anything but a number if the rule's annotation is float.
    """
    plain, annotations = {}, getattr(rule, "__annotations__", {})
    for name, value in params.items():
        if type(value) in _PYTHON_NUMBERS:
            plain[name] = value
        elif isinstance(value, Tensor) and annotations.get(name) is not float:
            plain[name] = value._array
        elif (number := python_number(value)) is not None:
            plain[name] = number
        elif annotations.get(name) is float or isinstance(value, Number):
            wanted = "a mask of bools" if name in ("mask", "condition") else "a real number"
            raise TypeError(f"{rule.__name__}: {name} must be {wanted}, got {value!r}")
        else:
            plain[name] = keep(real_array(xp, value, rule.__name__)) if _is_array(xp, value) else value
    return plain


def _index(part: Any, xp: Backend) -> Any:
    """Convert one part of an index: a Tensor to its array, an integer to a Python int."""
    if part is None or part is Ellipsis or type(part) in (int, slice):
        return part
    if isinstance(part, Tensor):
        _same_backend("getitem", xp.root, part.backend.root)
        part = part.detach()._array  # an index has no gradient, so its level does not matter
    number = python_number(part)
    root = xp.root
    if isinstance(number, bool) or root.is_array(part) and part.shape == () and root.dtype(part).kind == "b":
        raise TypeError("getitem: an index may not be one bool, which NumPy treats as a new axis; use a mask with axes")
    return part if number is None else number


def _is_array(xp: Backend, x: Any) -> bool:
    """Whether x is an array of the backend or, within a transform, of its root."""
    return xp.is_array(x) or xp.level > 0 and xp.root.is_array(x)


def _has_dtype(x: Any, xp: Backend) -> bool:
    """Whether x is an array: one of the backend, whose arrays need no `dtype` attribute, or of another library."""
    return hasattr(x, "dtype") or _is_array(xp, x)


def _same_backend(op: str, first: Backend, second: Backend) -> None:
    if first is not second:
        raise TypeError(
            f"{op}: operands live on {first.name!r} and {second.name!r}; move one with .to({second.name!r})"
        )


def _promote(xp: Backend, arrays: list[Any]) -> list[Any]:
    """Cast arrays of different dtypes to their common float dtype, if one of them is a float."""
    typed = [a for a in arrays if hasattr(a, "shape")]
    dtypes = [xp.dtype(a) for a in typed]
    if typed and dtypes[0].kind == "f" and dtypes.count(dtypes[0]) == len(typed):
        return arrays
    common = common_float(xp, typed)
    if common is None:
        if not any(type(a) is float for a in arrays):
            return arrays
        common = get_default_dtype()
    if not typed:  # numbers only: where(mask, 1.0, 0.0)
        return [xp.asarray(a, common) for a in arrays]
    return [xp.astype(a, common) if hasattr(a, "shape") and xp.dtype(a) != common else a for a in arrays]


def _explain_error(rule: rules.Rule, arrays: Sequence[Any], params: dict[str, Any], error: Exception) -> Exception:
    """The array library's error with the op's name, the shapes and, if known, a remedy."""
    shapes = " and ".join(str(a.shape) if hasattr(a, "shape") else repr(a) for a in arrays)
    given = "".join(f", {key}={value!r}" for key, value in params.items() if not hasattr(value, "shape"))
    remedy = getattr(rule, "remedy", "")
    if not remedy and "broadcast" in str(error):
        remedy = "shapes must be equal or broadcast: reshape or expand_dims one of them"
    kind = next(k for k in (IndexError, TypeError, OverflowError, ValueError) if isinstance(error, k))
    message = "; ".join(filter(None, [str(error).strip(), remedy]))
    if kind is ValueError and hasattr(rule, "remedy"):
        message = remedy
    return kind(f"{rule.__name__}: {shapes}{given}: {message}")


def _shape_from_args(op: str, shape: tuple[Any, ...]) -> Shape:
    """The shape from the arguments (2, 3) or ((2, 3),). Raises TypeError for anything but ints."""
    lengths = tuple(shape[0]) if len(shape) == 1 and hasattr(shape[0], "__iter__") else shape
    if not all(hasattr(n, "__index__") and not isinstance(n, bool) for n in lengths):
        raise TypeError(f"{op}: the lengths must be ints, as in {op}(2, 3) or {op}((2, 3)), got {shape}")
    return lengths


def _check_tensors(op: str, tensors: Iterable[Tensor]) -> Sequence[Tensor]:
    """The list. Raises ValueError if it is empty or a Tensor, TypeError if an element is not a Tensor."""
    if not isinstance(tensors, Iterable):
        raise TypeError(f"{op}: give a list of tensors, got a {type(tensors).__name__}")
    if isinstance(tensors, Tensor) or not (tensors := list(tensors)):
        raise ValueError(f"{op}: give a list of at least one tensor")
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: give a list of tensors; it holds a {type(tensor).__name__}")
    return tensors
