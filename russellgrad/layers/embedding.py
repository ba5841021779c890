"""Embedding layer."""

from typing import Any

from .. import init
from ..functional import embedding, where
from ..module import Module
from ..random import Generator
from ..rules import check_int
from ..tensor import Tensor
from .check import positive


class Embedding(Module):
    """A table of vectors, looked up by index, as `torch.nn.Embedding`.

    The initial weight is drawn from N(0, 1).

        Embedding(10, 3)([[1, 2, 4, 5]]).shape  # (1, 4, 3)

    Args:
        num_embeddings: the number of rows.
        embedding_dim: the length of a row.
        padding_idx: an index whose row is initially zero and gets no gradient; -1 is the last row.
        generator: the generator of the initial weight; by default `random.default_generator()`.

    Attributes:
        weight: (num_embeddings, embedding_dim).

    Raises:
        ValueError: a size is not positive, or padding_idx is out of range. TypeError: one is not an int.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        generator: Generator | None = None,
    ) -> None:
        positive("Embedding", num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.weight = init.normal((num_embeddings, embedding_dim), generator=generator)
        self.padding_idx = padding_idx
        if padding_idx is not None:
            check_int("Embedding: padding_idx", padding_idx)
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise ValueError(
                    f"Embedding: padding_idx must be within num_embeddings={num_embeddings}, got {padding_idx}"
                )
            self.padding_idx = padding_idx % num_embeddings
            xp = self.weight.backend
            is_padding = xp.equal(xp.expand_dims(xp.arange(num_embeddings), 1), self.padding_idx)
            self.weight.data = xp.where(is_padding, 0, self.weight.data)

    def forward(self, x: Any) -> Tensor:
        """Indices (...) -> (..., embedding_dim).

        x is an array, nested lists or a Tensor of integers in [0, num_embeddings), preferably on the host: see
        `russellgrad.embedding`. Raises IndexError for an index out of range, TypeError for other dtypes.
        """
        out = embedding(self.weight, x)
        if self.padding_idx is None:
            return out
        indices = x if isinstance(x, Tensor) else Tensor(x, dtype="int64", backend=out.backend.root)
        return where((indices == self.padding_idx).expand_dims(-1), out.detach(), out)
