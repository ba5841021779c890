"""Dropout layer."""

from ..module import Module
from ..random import Generator, default_generator
from ..rules import check_probability
from ..tensor import Tensor
from .check import check_input


class Dropout(Module):
    """Dropout: in training mode, sets each element to 0 with probability p and scales the others by 1 / (1 - p).

    As `torch.nn.Dropout`. Srivastava et al., JMLR 15 (2014). The same seed drops the same elements on every backend.

    Args:
        p: the probability, in [0, 1).
        generator: the generator of the random numbers; by default `random.default_generator()`.

    Raises:
        ValueError: p is not a number in [0, 1).
    """

    def __init__(self, p: float = 0.5, *, generator: Generator | None = None) -> None:
        check_probability("Dropout: p", p)
        self.p = float(p)
        self.generator = generator

    def start_batch(self, first_row: int = 0) -> None:
        """Start a new batch. The next input is its rows `first_row`, `first_row` + 1, ...: `Generator.start_batch`."""
        (self.generator or default_generator()).start_batch(first_row)

    def continue_batch(self, first_row: int) -> None:
        """Continue the batch with its rows `first_row`, `first_row` + 1, ...: `Generator.continue_batch`."""
        (self.generator or default_generator()).continue_batch(first_row)

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...). In evaluation mode, or for p = 0, returns x itself. Raises TypeError if x is not a Tensor."""
        check_input(self, x)
        if not self.training or not self.p:
            return x
        generator = self.generator or default_generator()
        out: Tensor = x * generator.dropout_mask(x.shape, self.p, x.dtype, x.backend)
        return out
