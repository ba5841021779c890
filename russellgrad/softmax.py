"""The softmax function."""

from .idioms import numpy_names
from .tensor import Tensor


@numpy_names
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along `axis`, without overflow: (...) -> (...).

    Raises IndexError for an axis that x does not have.
    """
    return x.softmax(axis)
