"""The loss of a language model."""

from typing import Any

from . import rules
from .tensor import Tensor, apply
from .tokenizer import TokenIds


def cross_entropy_loss(predicted: Tensor, correct_indices: Any, pad_token_id: int) -> Tensor:
    """The mean of -log softmax(predicted)[correct] over the places that are not padding.

    Where `predicted` has a class for padding, that class is left out of the softmax: padding is never predicted.

    Args:
        predicted: logits, (..., classes).
        correct_indices: integers (...), as an array, nested lists or a Tensor, best on the host (see `embedding`); or
            (B, T) as `Tokenizer.ids` gives them.
        pad_token_id: the id that marks padding among them.

    Raises:
        IndexError: an id out of range. ValueError: shapes that do not fit, or nothing but padding.
    """
    classes = predicted.shape[-1] if predicted.ndim else 0
    excluded_class = pad_token_id if 0 <= pad_token_id < classes else None
    if isinstance(correct_indices, TokenIds):
        if (
            correct_indices.upper > max(classes, pad_token_id + 1)
            or correct_indices.values.shape != predicted.shape[:-1]
        ):
            raise ValueError(
                f"cross_entropy_loss: predicted {predicted.shape} does not fit ids {correct_indices.values.shape} "
                f"below {correct_indices.upper}; they must be of one batch, and of the model's own tokenizer"
            )
        return apply(
            rules.cross_entropy, predicted, ids=correct_indices.values, ignore_index=None,
            excluded_class=excluded_class, padding=correct_indices.padding, check=False,
        )  # fmt: skip
    return apply(
        rules.cross_entropy, predicted, ids=correct_indices, ignore_index=pad_token_id, excluded_class=excluded_class
    )
