"""Tensor: an array with automatic differentiation. Its operators and methods that compute are in `russellgrad/ops/`."""

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn, cast
from warnings import warn
from weakref import ref

from . import apply as _apply
from .apply import Mask, Operand, has_dtype, same_backend, use_class
from .autograd import Hook, Node, backward, is_grad_enabled, record
from .backend import Array, Backend, DType, load_backend, resolve_backend
from .dtype import get_default_dtype, is_float, python_number, real_array
from .idioms import INSTEAD, instead
from .ops.indexing import Indexing
from .ops.rearranging import Rearranging
from .ops.sorting import Sorting

__all__ = ["Mask", "Operand", "Tensor", "apply"]


class Tensor(Rearranging, Sorting, Indexing):
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

    __slots__ = ()

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
        if dtype is None and not has_dtype(data, xp):  # convert lists once, on the host
            data = real_array(load_backend("numpy"), data, "Tensor")
            dtype = None if data.dtype.kind == "b" else get_default_dtype(xp)
        array = real_array(xp, data, "Tensor", dtype)
        self.backend = xp
        self.label = label
        self._grad = None
        self._array = xp.copy(array)
        self._node = self._hooks = None
        self._version = [0]
        self._start_tracking(requires_grad)

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
        if not self.ndim and getattr(array, "shape", None) == () and not isinstance(array, Tensor):
            array = self.backend.asarray(array)  # NumPy returns a scalar for a difference of 0-d arrays
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
                f"{tuple(array.shape)} {dtype} needs a new Tensor"
            )
        self._array, self._version = array, [0]

    def changed_in_place(self) -> None:
        """Report a write into the memory of `.data`, so that a backward that needs the old values raises an error."""
        self._version[0] += 1

    @property
    def is_leaf(self) -> bool:
        """Whether the tensor is a leaf of the graph: created by the user, or by an operation that was not recorded."""
        return self._node is None or self._node.name == "leaf"

    @property
    def requires_grad(self) -> bool:
        """Whether the tensor tracks gradients. Only a leaf's can be set. It keeps its hooks.

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
            if self._node is not None:
                self._hooks = self._node.hooks
            self._node = None
        elif not is_float(self.dtype):
            raise TypeError(f"requires_grad: only float tensors track gradients, this one is {self.dtype}")
        elif self._node is None:
            self._node = Node("leaf", self.backend, self._array)
            self._node.tensor_ref, self._node.hooks = ref(self), getattr(self, "_hooks", None)

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
            same_backend(op, xp, gradient.backend)
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
                f"{op}: gradient has shape {tuple(array.shape)}, this tensor {self.shape}; they must agree: reshape "
                "the gradient, or sum it over the axes that were broadcast"
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

        The hook returns None, or an array of the same shape that replaces the gradient. Hooks run in the order of
        registration.

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
        """A tensor of the same shape, which shares this tensor's array and tracks no gradients of any order."""
        if self.backend.level:
            return cast(Tensor, cast(Any, self.backend).detached(self._array))
        return Tensor._wrap(self._array, self.backend, version=self._version)

    # --- Conversion

    def numpy(self) -> Any:
        """A copy of the data as a NumPy array of the same shape, on the host. Waits for the device."""
        return self.backend.to_host(self._array)

    def tolist(self) -> Any:
        """The data as nested lists of Python numbers; a number for a 0-d tensor. Waits for the device."""
        return self.numpy().tolist()

    def item(self) -> Any:
        """The element of a tensor with one element, of any shape, as a Python number. Raises ValueError for others."""
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

        Shapes: (...) -> (...). The operation is differentiable: the gradient is copied back. Raises as `set_backend`.

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

        The Tensor is a leaf, of the shape of `source`. After a write by the other library, call `changed_in_place()`.

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
                "`is`, or test all elements with (x > 0).all()"
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


use_class(Tensor)
apply = cast("Callable[..., Tensor]", _apply.apply)
