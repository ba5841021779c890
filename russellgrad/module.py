"""Module: the base class of layers and models. It finds parameters, saves and loads them, and moves them."""

from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, Self

from .backend import Array, Backend, DType, Shape, get_backend, resolve_backend
from .dtype import get_default_dtype, is_float, real_array
from .random import Generator, default_generator
from .tensor import Tensor


class Module:
    """Base class of layers and models, as `torch.nn.Module`.

    A subclass defines `forward`; calling the module calls it. The parameters are all Tensors among the attributes, in
    lists or tuples among the attributes, and in the modules found there. No registration is needed.

        class Scale(Module):
            def __init__(self):
                self.factor = Tensor(1.0)

            def forward(self, x):
                return x * self.factor

    Attributes:
        training: whether the module is in training mode. See `train` and `eval`.
    """

    training: bool = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the output. Every subclass defines it; here it raises NotImplementedError."""
        raise NotImplementedError(f"{type(self).__name__}: define forward()")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each parameter once, with its dotted name, such as "blocks.0.attention.w_qkv"."""
        seen: set[int] = set()
        for name, member in self._members():
            if isinstance(member, Tensor) and id(member) not in seen:
                seen.add(id(member))
                yield name, member

    def parameters(self) -> list[Tensor]:
        """All parameters, each once: `optimizer = AdamOptimizer(model.parameters())`."""
        return [parameter for _, parameter in self.named_parameters()]

    def modules(self) -> Iterator["Module"]:
        """Yield this module and all modules inside it. A module that is used twice comes twice."""
        yield self
        yield from (member for _, member in self._members() if isinstance(member, Module))

    def _members(self) -> Iterator[tuple[str, "Tensor | Module"]]:
        """Yield every Tensor and module inside this one, with its dotted name."""
        for name, value in vars(self).items():
            several = isinstance(value, (list, tuple))
            for key, member in ((f"{name}.{i}", v) for i, v in enumerate(value)) if several else ((name, value),):
                if isinstance(member, (Tensor, Module)):
                    yield key, member
                if isinstance(member, Module):
                    yield from ((f"{key}.{path}", inner) for path, inner in member._members())

    # --- State

    def state_dict(self) -> dict[str, Any]:
        """A dict from each parameter's name to a copy of it as a NumPy array on the host."""
        return {name: parameter.numpy() for name, parameter in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set every parameter from the arrays of a `state_dict`. Parameters keep their dtype and backend.

        Raises:
            ValueError: lists all names that are missing from `state` or unexpected in it, all shapes that differ, and
                all entries that are not real numbers. The module does not change then.
        """
        own = dict(self.named_parameters())
        problems = [f"missing {name}" for name in own if name not in state]
        problems += [f"unexpected {name}" for name in state if name not in own]
        arrays: dict[str, Array] = {}
        for name, parameter in own.items():
            if name in state:
                try:
                    arrays[name] = _array_for(parameter, state[name], name)
                except (TypeError, ValueError) as error:
                    problems.append(str(error) if str(error).startswith(name) else f"{name}: {error}")
        if problems:
            raise ValueError(f"load_state_dict: {type(self).__name__} does not fit: {'; '.join(problems)}")
        for name, parameter in own.items():
            parameter.data = arrays[name]

    # --- Modes, backends, dtypes

    def train(self, mode: bool = True) -> Self:
        """Set training mode (or evaluation mode, if `mode` is False) for this module and all inside. Returns self.

        Dropout is active in training mode only.
        """
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Set evaluation mode, in which dropout does nothing. Returns self."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Set every parameter's `.grad` to None."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def to(self, backend: str | ModuleType | Backend) -> Self:
        """Move every parameter to another backend, in place. Returns self.

        Gradients are dropped. Build the optimizer after this call. Raises as `set_backend` does.
        """
        target = resolve_backend(backend)
        for parameter in self.parameters():
            _set_array(parameter, target, target.asarray(parameter.numpy()))
        return self

    def astype(self, dtype: DType) -> Self:
        """Cast every float parameter to another dtype, in place. Returns self.

        Gradients are dropped. Build the optimizer after this call. Raises ValueError for a dtype that is not one of the
        backend's float dtypes.
        """
        parameters = [p for p in self.parameters() if is_float(p.dtype)]
        xp = parameters[0].backend if parameters else get_backend()
        if str(dtype) not in xp.float_dtypes():
            raise ValueError(
                f"astype: a module's dtype must be a float dtype such as 'float32', got {dtype!r}; backend {xp.name!r} "
                f"supports {', '.join(xp.float_dtypes())}"
            )
        for parameter in parameters:
            _set_array(parameter, parameter.backend, parameter.backend.astype(parameter.data, dtype))
        return self


def _array_for(parameter: Tensor, value: Any, name: str) -> Array:
    """A copy of an entry of a state, in the dtype and on the backend of its parameter.

    Raises ValueError for another shape, TypeError for anything but real numbers.
    """
    xp = parameter.backend
    array = real_array(xp, value.numpy() if isinstance(value, Tensor) else value, name)
    if array.shape != parameter.shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {parameter.shape}")
    return xp.copy(xp.asarray(array, parameter.dtype))


def _set_array(parameter: Tensor, xp: Backend, array: Any) -> None:
    """Replace a parameter's array, on any backend and of any dtype. The Tensor object stays the same."""
    tracked = parameter.requires_grad
    parameter.requires_grad = False
    parameter.backend, parameter.grad = xp, None
    parameter.data = array
    parameter.requires_grad = tracked


def normal_parameter(shape: Shape, std: float, generator: Generator | None, label: str) -> Tensor:
    """A parameter with elements drawn from N(0, std^2), in the default dtype on the current backend."""
    xp = get_backend()
    draw = (generator or default_generator()).normal(shape, get_default_dtype(), xp)
    return Tensor(xp.multiply(draw, std), requires_grad=True, label=label)


def packed_parameter(parts: Sequence[Tensor], label: str) -> Tensor:
    """One parameter that concatenates matrices (rows, columns_i) along axis 1."""
    return Tensor(parts[0].backend.concatenate([part.data for part in parts], 1), requires_grad=True, label=label)


def constant_parameter(shape: Shape, value: float, label: str) -> Tensor:
    """A parameter filled with `value`, in the default dtype on the current backend."""
    return Tensor(get_backend().full(shape, value, get_default_dtype()), requires_grad=True, label=label)
