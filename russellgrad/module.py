"""Module: what has parameters, and other modules inside."""

from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, Self

from .backend import Backend, DType, Shape, get_backend, resolve_backend
from .dtype import get_default_dtype, is_float
from .random import Generator, default_generator
from .tensor import Tensor


class Module:
    """A function with parameters. Write `forward`; a call of the module is a call of it.

    Its parameters are the Tensors among its attributes and those of the modules among them, lists of either included.
    """

    training: bool = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__}: write forward()")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Each parameter once, with its path of attribute names: "blocks.0.attention.w_qkv"."""
        seen: set[int] = set()
        for name, member in self._members():
            if isinstance(member, Tensor) and id(member) not in seen:
                seen.add(id(member))
                yield name, member

    def parameters(self) -> list[Tensor]:
        return [parameter for _, parameter in self.named_parameters()]

    def modules(self) -> Iterator["Module"]:
        """This module and all those inside it."""
        yield self
        yield from (member for _, member in self._members() if isinstance(member, Module))

    def _members(self) -> Iterator[tuple[str, "Tensor | Module"]]:
        """Every Tensor and module below this one, with its path."""
        for name, value in vars(self).items():
            several = isinstance(value, (list, tuple))
            for key, member in ((f"{name}.{i}", v) for i, v in enumerate(value)) if several else ((name, value),):
                if isinstance(member, (Tensor, Module)):
                    yield key, member
                if isinstance(member, Module):
                    yield from ((f"{key}.{path}", inner) for path, inner in member._members())

    # --- State

    def state_dict(self) -> dict[str, Any]:
        """A copy of every parameter as a NumPy array on the host, by name."""
        return {name: parameter.numpy() for name, parameter in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set every parameter from host arrays; each keeps its own dtype and backend.

        Raises:
            ValueError: names missing from `state`, unexpected in it, and shapes that differ, all of them at once;
                nothing is then changed.
        """
        own = dict(self.named_parameters())
        problems = [f"missing {name}" for name in own if name not in state]
        problems += [f"unexpected {name}" for name in state if name not in own]
        problems += [
            f"{name} has shape {tuple(state[name].shape)}, expected {parameter.shape}"
            for name, parameter in own.items()
            if name in state and tuple(state[name].shape) != parameter.shape
        ]
        if problems:
            raise ValueError(f"load_state_dict: {type(self).__name__} does not fit: {'; '.join(problems)}")
        for name, parameter in own.items():
            xp = parameter.backend
            parameter.data = xp.copy(xp.asarray(state[name], parameter.dtype))

    # --- Modes and places

    def train(self, mode: bool = True) -> Self:
        """Training mode: dropout drops."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Evaluation mode: dropout does nothing."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget every parameter's gradient."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def to(self, backend: str | ModuleType | Backend) -> Self:
        """Move every parameter to another backend, in place; gradients are dropped. Build the optimizer after this."""
        target = resolve_backend(backend)
        for parameter in self.parameters():
            _replace(parameter, target, target.asarray(parameter.numpy()))
        return self

    def astype(self, dtype: DType) -> Self:
        """Change the dtype of every float parameter, in place; gradients are dropped. Build the optimizer after this.

        Raises ValueError for a dtype that is no float one, or none of the parameters' backend.
        """
        parameters = [p for p in self.parameters() if is_float(p.dtype)]
        xp = parameters[0].backend if parameters else get_backend()
        if str(dtype) not in xp.float_dtypes():
            raise ValueError(
                f"astype: a module's dtype must be a float one, as 'float32', got {dtype!r}; on {xp.name!r} there are "
                f"{', '.join(xp.float_dtypes())}"
            )
        for parameter in parameters:
            _replace(parameter, parameter.backend, parameter.backend.astype(parameter.data, dtype))
        return self


def _replace(parameter: Tensor, xp: Backend, array: Any) -> None:
    """Give a parameter another array, so that whoever holds the parameter sees it."""
    tracked = parameter.requires_grad
    parameter.requires_grad = False
    parameter.backend, parameter.grad = xp, None
    parameter.data = array
    parameter.requires_grad = tracked


def normal_parameter(shape: Shape, std: float, generator: Generator | None, label: str) -> Tensor:
    """A parameter drawn from the normal distribution with mean 0, in the default dtype on the backend in use."""
    xp = get_backend()
    draw = (generator or default_generator()).normal(shape, get_default_dtype(), xp)
    return Tensor(xp.multiply(draw, std), requires_grad=True, label=label)


def packed_parameter(parts: Sequence[Tensor], label: str) -> Tensor:
    """One parameter that holds several matrices (rows, columns_i) side by side."""
    return Tensor(parts[0].backend.concatenate([part.data for part in parts], 1), requires_grad=True, label=label)


def constant_parameter(shape: Shape, value: float, label: str) -> Tensor:
    """A parameter full of `value`, in the default dtype on the backend in use."""
    return Tensor(get_backend().full(shape, value, get_default_dtype()), requires_grad=True, label=label)
