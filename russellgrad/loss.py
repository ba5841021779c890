"""The loss of a language model."""

from typing import Any

from . import rules
from .tensor import Tensor, apply
from .tokenizer import TokenIds


def cross_entropy_loss(predicted: Tensor, correct_indices: Any, pad_token_id: int) -> Tensor:
    """Cross-entropy loss of a language model: the mean of -log softmax(predicted)[target] over non-padding targets.

    If `predicted` has a class for padding, the softmax excludes that class: a model never predicts padding.

    Args:
        predicted: logits (..., classes).
        correct_indices: target ids (...): an array, nested lists or a Tensor of integers, preferably on the host (see
            `embedding`); or the result (B, T) of `Tokenizer.ids`.
        pad_token_id: the id of padding among the targets.

    Returns:
        A 0-d Tensor.

    Raises:
        IndexError: an id is out of range. ValueError: the shapes do not match, or all targets are padding.
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
                f"below {correct_indices.upper}; use the same batch, and ids of the model's own tokenizer"
            )
        return apply(
            rules.cross_entropy, predicted, ids=correct_indices.values, ignore_index=None,
            excluded_class=excluded_class, padding=correct_indices.padding, check=False,
        )  # fmt: skip
    return apply(
        rules.cross_entropy, predicted, ids=correct_indices, ignore_index=pad_token_id, excluded_class=excluded_class
    )
