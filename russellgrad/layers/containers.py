"""Sequential, which composes layers, and layers without parameters: Flatten and Identity."""

from collections.abc import Callable
from typing import Any

from ..module import Module
from ..tensor import Tensor
from .check import check_input


class Sequential(Module, list[Any]):
    """Apply layers one after the other, as `torch.nn.Sequential`. It is also a list of the layers.

        Sequential(Linear(2, 16), ReLU(), Linear(16, 1))

    A slice, a sum, a multiple and a copy are a Sequential of the same layers.

    Args:
        layers: modules, or functions of a Tensor, such as `Tensor.tanh`.

    Raises:
        TypeError: a layer cannot be called. For a layer that is added later, the call raises it.
    """

    __hash__ = object.__hash__  # type: ignore[assignment]  # a module equals itself only
    __eq__ = object.__eq__
    __ne__ = object.__ne__

    def __init__(self, *layers: Callable[[Any], Any]) -> None:
        super().__init__(layers)
        self._check()

    def _check(self) -> None:
        for i, layer in enumerate(self):
            if not callable(layer):
                advice = "; write Sequential(*layers)" if isinstance(layer, (list, tuple)) else ""
                raise TypeError(f"Sequential: layer {i} is a {type(layer).__name__}, expected a module{advice}")

    def forward(self, x: Any) -> Any:
        """Apply all layers: the input of the first layer -> the output of the last. Raises as the layers do."""
        self._check()
        for i, layer in enumerate(self):
            try:
                x = layer(x)
            except Exception as error:
                error.add_note(f"in layer {i} of a Sequential, {getattr(layer, '__name__', type(layer).__name__)}")
                raise
        return x

    def __getitem__(self, index: Any) -> Any:
        """Layer `index`; a Sequential of several for a slice."""
        found = super().__getitem__(index)
        return Sequential(*found) if isinstance(index, slice) else found

    def __add__(self, other: Any) -> "Sequential":
        return Sequential(*super().__add__(other))

    def __mul__(self, times: Any) -> "Sequential":
        return Sequential(*super().__mul__(times))

    __rmul__ = __mul__

    def copy(self) -> "Sequential":
        """A Sequential of the same layers."""
        return Sequential(*self)


class Flatten(Module):
    """Merge the axes from start_dim to end_dim, as `torch.nn.Flatten`. By default, all but the first.

    The call raises IndexError for axes that x does not have.

        Flatten()(zeros((32, 8, 4, 4))).shape  # (32, 128)
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Tensor) -> Tensor:
        """(..., n, ..., m, ...) -> (..., n ... m, ...). Raises IndexError for axes that x does not have."""
        check_input(self, x)
        return x.flatten(self.start_dim, self.end_dim)


class Identity(Module):
    """Return the input, as `torch.nn.Identity`."""

    def forward(self, x: Any) -> Any:
        """(...) -> (...)."""
        return x
