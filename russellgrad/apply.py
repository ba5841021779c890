"""`apply`, which runs every operation on tensors, and the state of a tensor that it needs.

`apply` takes the arrays of the operands, runs a rule from `russellgrad/rules.py` on their backend, and records a node
of the graph. Each operator and method of Tensor (`russellgrad/ops/`) is one call of `apply`.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from numbers import Number
from typing import Any, Self, TypeAlias, TypeVar, cast, overload

from . import rules
from .autograd import Hook, Node, Version, is_grad_enabled, record
from .backend import Array, Backend, Shape, resolve_backend
from .dtype import common_float, get_default_dtype, is_float, python_number, real_array

Operand: TypeAlias = Any  # a Tensor, a number, or an array of the tensor's backend
Mask: TypeAlias = Any  # bool: a Tensor, an array or nested lists
TensorT = TypeVar("TensorT", bound="TensorBase")

PYTHON_NUMBERS: set[type] = {int, float, bool}

# While a trace is active, what `apply` calls with (rule, operands, parameters, pullbacks, output): see `tracing.py`.
observer: Callable[[rules.Rule, Sequence[Operand], Mapping[str, Any], Sequence[Any], Any], None] | None = None


class TensorBase:
    """The state of a tensor: its array, its node in the graph, and its backend. The subclass in use is `Tensor`."""

    __slots__ = ("_array", "_grad", "_hooks", "_node", "_version", "backend", "label", "__weakref__")
    __array_ufunc__ = None  # array + tensor calls Tensor.__radd__ instead of a ufunc of NumPy or CuPy

    _array: Array
    _grad: Array | None
    _hooks: dict[object, Hook] | None  # of a leaf, while it tracks no gradients and has no node
    _node: Node | None
    _version: Version
    backend: Backend
    label: str

    @classmethod
    def _wrap(cls, data: Array, xp: Backend, node: Node | None = None, version: Version | None = None) -> Self:
        """Wrap an array without copying it. Pass the version of another Tensor if the array shares its memory."""
        tensor = cls.__new__(cls)
        tensor._array, tensor._node, tensor.backend, tensor.label = data, node, xp, ""
        tensor._grad = None
        tensor._version = [0] if version is None else version
        return tensor

    @property
    def shape(self) -> Shape:
        """The length of each axis, a tuple of ints."""
        return tuple(self._array.shape)  # PyTorch's is a subclass with a repr of its own

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


Tensor: type[TensorBase] = TensorBase  # `use_class` sets it to the subclass


def use_class(cls: type[TensorBase]) -> None:
    """Set the class of the tensors that `apply` makes."""
    global Tensor
    Tensor = cls


@overload
def apply(rule: rules.Rule, first: TensorT, *operands: Operand, **params: Any) -> TensorT: ...
@overload
def apply(rule: rules.Rule, *operands: Operand, **params: Any) -> Any: ...
def apply(rule: rules.Rule, *operands: Operand, **params: Any) -> Any:
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
        arrays = [xp.astype(a, get_default_dtype(xp)) if xp.is_array(a) else a for a in arrays]
    plain = _parameters(rule, params, xp, keep) if params else params
    try:
        result = rule(xp, *arrays, **plain)
    except (ValueError, IndexError, TypeError, OverflowError) as error:
        if str(error).startswith(f"{name}: "):
            raise  # the message is complete
        raise _explain_error(rule, arrays, plain, error) from error
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
    made = Tensor._wrap(out, xp, node, version)
    if (record_operation := observer) is not None:  # another thread may leave the block of the trace now
        record_operation(rule, operands, params, pullbacks, made)
    return made


def _lift(
    op: str, tensors: list[TensorBase], operands: tuple[Operand, ...], params: dict[str, Any]
) -> tuple[Backend, list[TensorBase], tuple[Operand, ...], dict[str, Any]]:
    """The highest level among the tensors, and the arguments with tensors of lower levels as constants of that level.

    Raises TypeError for tensors of different roots.
    """
    for tensor in tensors:
        if tensor.backend.root is not tensors[0].backend.root:
            same_backend(op, tensors[0].backend, tensor.backend)
    xp = max((tensor.backend for tensor in tensors), key=lambda backend: backend.level)

    def lifted(value: Any) -> Any:
        is_lower = isinstance(value, Tensor) and value.backend.level < xp.level
        return Tensor._wrap(value, xp, version=value._version) if is_lower else value

    operands = tuple(lifted(operand) for operand in operands)
    params = {name: lifted(value) for name, value in params.items()}
    return xp, [value for value in (*operands, *params.values()) if isinstance(value, Tensor)], operands, params


def _operand(
    rule: rules.Rule, operands: Sequence[Operand], value: Operand, xp: Backend, keep: Callable[[Array], Array]
) -> Any:
    """An operand that is not a Tensor: a Python number, an array, which is kept by `keep`, or None.

    Raises TypeError if the value is not an operand, or not of real numbers.
    """
    op, kind = rule.__name__, type(value)
    if kind in PYTHON_NUMBERS:
        return value
    if is_array(xp, value):
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
        if type(value) in PYTHON_NUMBERS:
            plain[name] = value
        elif isinstance(value, Tensor) and annotations.get(name) is not float:
            plain[name] = value._array
        elif (number := python_number(value)) is not None:
            plain[name] = number
        elif annotations.get(name) is float or isinstance(value, Number):
            wanted = "a mask of bools" if name in ("mask", "condition") else "a real number"
            raise TypeError(f"{rule.__name__}: {name} must be {wanted}, got {value!r}")
        else:
            plain[name] = keep(real_array(xp, value, rule.__name__)) if is_array(xp, value) else value
    return plain


def is_array(xp: Backend, x: Any) -> bool:
    """Whether x is an array of the backend or, within a transform, of its root."""
    return xp.is_array(x) or xp.level > 0 and xp.root.is_array(x)


def has_dtype(x: Any, xp: Backend) -> bool:
    """Whether x is an array: one of the backend, whose arrays need no `dtype` attribute, or of another library."""
    return hasattr(x, "dtype") or is_array(xp, x)


def same_backend(op: str, first: Backend, second: Backend) -> None:
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
        common = get_default_dtype(xp)
    if not typed:  # numbers only: where(mask, 1.0, 0.0)
        return [xp.asarray(a, common) for a in arrays]
    return [xp.astype(a, common) if hasattr(a, "shape") and xp.dtype(a) != common else a for a in arrays]


def _explain_error(rule: rules.Rule, arrays: Sequence[Any], params: dict[str, Any], error: Exception) -> Exception:
    """The array library's error with the op's name, the shapes and, if known, a remedy."""
    shapes = " and ".join(str(tuple(a.shape)) if hasattr(a, "shape") else repr(a) for a in arrays)
    given = "".join(f", {key}={value!r}" for key, value in params.items() if not hasattr(value, "shape"))
    remedy = getattr(rule, "remedy", "")
    if not remedy and "broadcast" in str(error):
        remedy = "shapes must be equal or broadcast: reshape or expand_dims one of them"
    kind = next(k for k in (IndexError, TypeError, OverflowError, ValueError) if isinstance(error, k))
    message = "; ".join(filter(None, [str(error).strip(), remedy]))
    if kind is ValueError and hasattr(rule, "remedy"):
        message = remedy
    return kind(f"{rule.__name__}: {shapes}{given}: {message}")


def index_part(part: Any, xp: Backend) -> Any:
    """Convert one part of an index: a Tensor to its array, an integer to a Python int."""
    if part is None or part is Ellipsis or type(part) in (int, slice):
        return part
    if isinstance(part, TensorBase):
        same_backend("getitem", xp.root, part.backend.root)
        part = cast(Any, part).detach()._array  # an index has no gradient, so its level does not matter
    number = python_number(part)
    root = xp.root
    if isinstance(number, bool) or root.is_array(part) and part.shape == () and root.dtype(part).kind == "b":
        raise TypeError("getitem: an index may not be one bool, which NumPy treats as a new axis; use a mask with axes")
    return part if number is None else number
