"""The softmax function."""

from .tensor import Tensor


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along `axis`, without overflow: (...) -> (...).

    Raises IndexError for an axis that x does not have.
    """
    return x.softmax(axis)
