"""Module: the base class of layers and models. It finds parameters, saves and loads them, and moves them."""

from collections import UserList, deque
from collections.abc import Iterable, Iterator, Mapping, ValuesView
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any, Self

from .backend import Array, Backend, DType, get_backend, resolve_backend
from .dtype import is_float, real_array
from .summary import summary
from .tensor import Tensor


class Module:
    """Base class of layers and models, as `torch.nn.Module`.

    A subclass defines `forward`; calling the module calls it. No registration is needed: a module finds the Tensors and
    modules among its attributes, and in lists, tuples and dicts there, which may be nested. Each is found once, under
    the first of its names; `state_dict` has all of its names, as in PyTorch, unless modules hold each other in a
    cycle. In other objects, such as a dataclass, it finds none.

    A Tensor that tracks gradients is a parameter, which optimizers train. Any other is a buffer, such as a running mean
    or a frozen parameter: it is saved, loaded and moved with the parameters, and not trained. For a cache that is not
    to be saved, keep an array, `tensor.data`: a module does not see arrays.

        class Scale(Module):
            def __init__(self):
                self.factor = Tensor(1.0)

            def forward(self, x):
                return x * self.factor

    Attributes:
        training: whether the module is in training mode. See `train` and `eval`.
    """

    training: bool = True
    _frozen: tuple[str, ...] = ()  # the names of the parameters that `freeze` made buffers

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the output. Every subclass defines it; here it raises NotImplementedError."""
        raise NotImplementedError(f"{type(self).__name__}: define forward()")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each parameter with its dotted name, such as "blocks.0.attention.w_qkv"."""
        yield from ((name, tensor) for name, tensor in self._named_tensors() if tensor.requires_grad)

    def parameters(self) -> list[Tensor]:
        """All parameters: `optimizer = AdamOptimizer(model.parameters())`."""
        return [parameter for _, parameter in self.named_parameters()]

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each buffer, a Tensor that tracks no gradients, with its dotted name."""
        yield from ((name, tensor) for name, tensor in self._named_tensors() if not tensor.requires_grad)

    def buffers(self) -> list[Tensor]:
        """All buffers."""
        return [buffer for _, buffer in self.named_buffers()]

    def modules(self) -> Iterator["Module"]:
        """Yield this module and all modules inside it."""
        yield from (member for _, member in self._members() if isinstance(member, Module))

    def _named_tensors(self, all_names: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Yield each parameter and buffer with its dotted name, or with each of its names, if there is no cycle."""
        members: Iterable[tuple[str, Tensor | Module]] = self._members()
        if all_names:
            with suppress(_CycleError):
                members = list(self._members(all_names=True))
        yield from ((name, member) for name, member in members if isinstance(member, Tensor))

    def _members(self, all_names: bool = False) -> Iterator[tuple[str, "Tensor | Module"]]:
        """Yield this module, and every Tensor and module inside it, once, with its dotted name.

        With `all_names`, those that are held in several places come with each of their names.

        Raises:
            TypeError: a set holds a Tensor or a module: its order is not fixed. ValueError: two have the same name.
            _CycleError: with `all_names`, for a module that holds itself, perhaps inside others: names have no end.
        """
        pending: list[tuple[Any, Any]] = [("", self)]
        seen: dict[int, Any] = {}  # by id; also stops at cycles, such as a module that knows its parent
        names: dict[str, Any] = {}
        while pending:  # depth first; a stack instead of recursion, because modules may be nested deeply
            name, value = pending.pop()
            if value is _END:
                del seen[name]
                continue
            if id(value) in seen:
                if all_names:
                    raise _CycleError
                continue
            seen[id(value)] = value
            if all_names:
                pending.append((id(value), _END))  # comes after what is inside, so `seen` has what the value is in
            if isinstance(value, (Tensor, Module)):
                if names.setdefault(name, value) is not value:
                    raise ValueError(f"{type(self).__name__}: two members have the name {name}; rename one of them")
                yield name, value
            prefix = name and f"{name}."
            pending += [(f"{prefix}{key}", v) for key, v in _items(name, value) if isinstance(v, _SEARCHED)][::-1]

    def __repr__(self) -> str:
        """The tree of modules, parameters and buffers, with shapes and numbers of parameters."""
        return summary(self._members())

    # --- State

    def state_dict(self) -> dict[str, Any]:
        """A dict from the name of each parameter and buffer to a copy of it as a NumPy array on the host.

        A Tensor with several names, such as a tied weight, has one entry for each, all with the same array.
        """
        arrays = {id(tensor): tensor.numpy() for _, tensor in self._named_tensors()}
        return {name: arrays[id(tensor)] for name, tensor in self._named_tensors(all_names=True)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set every parameter and buffer from the arrays of a `state_dict`. Each keeps its dtype and backend.

        One entry for a Tensor with several names is enough.

        Raises:
            ValueError: lists all names that are missing from `state` or unexpected in it, all shapes that differ, and
                all entries that are no arrays of real numbers, are floats for an integer buffer, hold finite numbers
                that are out of the range of the dtype, or differ between two names of one Tensor. The module does not
                change then.
            TypeError: `state` is not a mapping.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"load_state_dict: needs a state_dict, got a {type(state).__name__}")
        own = dict(self._named_tensors(all_names=True))
        given = {id(tensor) for name, tensor in own.items() if name in state}
        problems = [f"missing {name}" for name, tensor in self._named_tensors() if id(tensor) not in given]
        problems += [f"unexpected {name}" for name in state if name not in own]
        arrays: dict[int, tuple[str, Array]] = {}  # of each Tensor, by id: the first name in `state`, the array
        for name, tensor in own.items():
            if name in state:
                try:
                    array = _loaded(name, state[name], tensor)
                except (TypeError, ValueError) as error:
                    problems.append(str(error))
                    continue
                first, other = arrays.setdefault(id(tensor), (name, array))
                if other is not array and not _same_bits(tensor.backend, other, array):
                    problems.append(f"{name} differs from {first}, which is the same Tensor")
        if problems:
            raise ValueError(f"load_state_dict: {type(self).__name__} does not fit: {'; '.join(problems)}")
        for _, tensor in self._named_tensors():
            tensor.data = arrays[id(tensor)][1]

    # --- Modes, backends, dtypes

    def train(self, mode: bool = True) -> Self:
        """Set training mode (or evaluation mode, if `mode` is False) for this module and all inside. Returns self.

        In training mode, `Dropout` is active, and `BatchNorm` normalizes by the batch.

        Raises TypeError if `mode` is not a bool.
        """
        if not isinstance(mode, bool):
            raise TypeError(f"train: mode must be True or False, got {mode!r}")
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Set evaluation mode: `Dropout` does nothing, `BatchNorm` uses its running averages. Returns self."""
        return self.train(False)

    def freeze(self) -> Self:
        """Make every parameter a buffer: it is no longer trained. Returns self.

        Build the optimizer after this call. It does not change the mode: call `eval` for layers such as
        dropout and batch normalization.

            model.layers[0].freeze()

        Raises RuntimeError if a parameter is the result of an operation, or the argument of a transform. Nothing
        changes then.
        """
        parameters = dict(self.named_parameters())
        self._check_leaves(parameters, "frozen")
        for module in self.modules():  # each, so that a part can be unfrozen alone
            module._frozen = tuple(dict.fromkeys((*module._frozen, *(name for name, _ in module.named_parameters()))))
        for parameter in parameters.values():
            parameter.requires_grad = False
            parameter.zero_grad()
        return self

    def unfreeze(self) -> Self:
        """Make the buffers that `freeze` made, here or in a module inside, parameters again. Returns self."""
        for module in self.modules():
            own = dict(module._named_tensors())
            for name in module._frozen:
                if name in own:
                    own[name].requires_grad = True
            module._frozen = ()
        return self

    def zero_grad(self) -> None:
        """Set `.grad` of every parameter and buffer to None."""
        for _, tensor in self._named_tensors():
            tensor.zero_grad()

    def to(self, backend: str | ModuleType | Backend) -> Self:
        """Move every parameter and buffer to another backend, in place. Returns self.

        Gradients are dropped. Build the optimizer after this call. Raises as `set_backend` does.
        """
        target = resolve_backend(backend)
        self._set_arrays(target, {name: target.asarray(tensor.numpy()) for name, tensor in self._named_tensors()})
        return self

    def astype(self, dtype: DType) -> Self:
        """Cast every parameter and float buffer to another dtype, in place. Returns self.

        Gradients are dropped. Build the optimizer after this call. Raises ValueError for a dtype that is not one of the
        backend's float dtypes.
        """
        floats = {name: tensor for name, tensor in self._named_tensors() if is_float(tensor.dtype)}
        xp = next(iter(floats.values())).backend if floats else get_backend()
        if str(dtype) not in xp.float_dtypes():
            raise ValueError(
                f"astype: a module's dtype must be a float dtype such as 'float32', got {dtype!r}; backend {xp.name!r} "
                f"supports {', '.join(xp.float_dtypes())}"
            )
        self._set_arrays(None, {name: tensor.backend.astype(tensor.data, dtype) for name, tensor in floats.items()})
        return self

    def _set_arrays(self, xp: Backend | None, arrays: Mapping[str, Array]) -> None:
        """Replace arrays, by name, with arrays of any dtype on backend `xp`. The Tensor objects stay the same."""
        own = dict(self._named_tensors())
        self._check_leaves({name: own[name] for name in arrays}, "moved or cast")
        for name, array in arrays.items():
            tensor = own[name]
            tracked = tensor.requires_grad
            tensor.requires_grad = False
            tensor.backend, tensor.grad = xp or tensor.backend, None
            tensor.data = array
            tensor.requires_grad = tracked

    def _check_leaves(self, tensors: Mapping[str, Tensor], done: str) -> None:
        """Raise RuntimeError for a Tensor that cannot be changed in place; `done` says what would be done to it."""
        for name, tensor in tensors.items():
            if tensor.backend.in_transform:
                raise RuntimeError(
                    f"{type(self).__name__}: {name} is an argument of a transform, which would get no gradient if it "
                    f"were {done} in place; do that before the call"
                )
            if not tensor.is_leaf:
                raise RuntimeError(
                    f"{type(self).__name__}: {name} is the result of an operation, which cannot be {done}; make it a "
                    "parameter, Tensor(x.data), or keep the array x.data"
                )


@contextmanager
def replaced_tensors(module: Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block, the module has these Tensors in place of its own of the same names.

    Raises as `transforms.functional_call` does.
    """
    if not isinstance(module, Module):
        raise TypeError(f"functional_call: needs a Module, got a {type(module).__name__}")
    if not isinstance(tensors, Mapping):
        raise TypeError(
            f"functional_call: needs one dict from names to Tensors, got a {type(tensors).__name__}; make it with "
            "dict(module.named_parameters()), or merge two: {**parameters, **buffers}"
        )
    own = dict(module._named_tensors(all_names=True))
    unknown = [name for name in tensors if name not in own]
    if unknown:
        known = ", ".join([*list(own)[:10], *["..."] * (len(own) > 10)])
        raise ValueError(
            f"functional_call: {type(module).__name__} has no parameter or buffer {', '.join(map(repr, unknown))}; its "
            f"names are {known}"
        )
    given: dict[int, str] = {}  # the first name of each of the module's Tensors, by id
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"functional_call: {name} must be a Tensor, got a {type(tensor).__name__}")
        if tensor.shape != own[name].shape:
            raise ValueError(f"functional_call: {name} has shape {tensor.shape}, expected {own[name].shape}")
        first = given.setdefault(id(own[name]), name)
        if tensors[first] is not tensor:
            raise ValueError(f"functional_call: {first} and {name} are one Tensor; give one of them, or the same twice")
    places: list[tuple[Any, Any, Any]] = []  # (container, key, what was there)
    try:
        _replace(module, {id(own[name]): tensor for name, tensor in tensors.items()}, {}, places)
        yield
    finally:
        for container, key, value in reversed(places):
            container[key] = value


def _replace(value: Any, new: Mapping[int, Tensor], seen: dict[int, Any], places: list[tuple[Any, Any, Any]]) -> Any:
    """The value with its Tensors replaced, by id, by those in `new`: containers in place, except for tuples."""
    if id(value) in new:
        return new[id(value)]
    if isinstance(value, Tensor) or not isinstance(value, _SEARCHED) or id(value) in seen:
        return seen.get(id(value), value)
    seen[id(value)] = value
    if isinstance(value, tuple):
        parts = [_replace(part, new, seen, places) for part in value]
        if any(part is not old for part, old in zip(parts, value, strict=True)):
            seen[id(value)] = value._make(parts) if hasattr(value, "_make") else type(value)(parts)
        return seen[id(value)]
    containers: list[Any] = [vars(value), value] if isinstance(value, Module) else [value]
    for container in containers:  # a module may be a list or a dict, too
        is_list = isinstance(container, (list, deque, UserList))
        items = container.items() if isinstance(container, Mapping) else enumerate(container) if is_list else ()
        for key, part in list(items):
            if (found := _replace(part, new, seen, places)) is not part:
                try:
                    container[key] = found
                except TypeError as error:  # a Mapping that cannot be written
                    raise TypeError(
                        f"functional_call: a {type(container).__name__} holds {key!r}, which cannot be replaced there; "
                        "keep it in a dict, list or tuple"
                    ) from error
                places.append((container, key, part))
    return value


class _CycleError(Exception):
    """A module holds itself."""


_END = object()  # in the traversal of a module: the end of what is inside a value
# The types of values among which, and inside which, a module searches.
_SEARCHED = (Tensor, Module, list, tuple, dict, deque, UserList, set, frozenset, ValuesView, Mapping)


def _items(name: str, value: Any) -> Iterator[tuple[Any, Any]]:
    """The attributes of a module, the elements of a list or the entries of a dict, with their names or keys."""
    if isinstance(value, Module):
        yield from vars(value).items()
    if isinstance(value, Mapping):  # a module may be a list or a dict, too
        yield from value.items()
    elif isinstance(value, (list, tuple, deque, UserList)):
        yield from enumerate(value)
    elif isinstance(value, (set, frozenset, ValuesView)) and any(isinstance(v, (Tensor, Module)) for v in value):
        raise TypeError(f"Module: {name} is a {type(value).__name__} with Tensors or modules; use a list or a dict")


def _same_bits(xp: Backend, a: Array, b: Array) -> bool:
    return bool(xp.to_host(a).tobytes() == xp.to_host(b).tobytes())


def _loaded(name: str, value: Any, own: Tensor) -> Array:
    """A copy of `value`, an entry of a state_dict, as an array that fits `own`. Raises TypeError or ValueError."""
    if not hasattr(value, "shape"):
        raise TypeError(f"{name} is a {type(value).__name__}, expected an array of shape {own.shape}")
    if tuple(value.shape) != own.shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {own.shape}")
    if isinstance(value, Tensor):
        value = value.numpy()
    if getattr(getattr(value, "dtype", None), "name", "") == "bfloat16":  # float32, which NumPy has, represents it
        value = value.astype("float32")
    try:  # the constructor checks and copies
        given = Tensor(value, requires_grad=False, backend=own.backend)
        if given.dtype == own.dtype:
            return given.data
        if is_float(own.dtype) or not is_float(given.dtype):
            return real_array(own.backend, given.numpy(), name, own.dtype)  # on the host, where ranges are checked
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{name}: {str(error).removeprefix(f'{name}: ')}") from error
    raise TypeError(f"{name} is {given.dtype}, expected {own.dtype}")
