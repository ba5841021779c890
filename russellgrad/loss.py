"""Losses with PyTorch's names and arguments, accuracy, and the loss of a language model.

x and target must have the same shape: the target is not broadcast. A loss has the dtype of x, and gives gradients
to every operand that tracks them, the target included. `reduction` is "mean", "sum", or "none" for the losses of all
elements.
"""

import math
from typing import Any

from . import rules
from .apply import Operand, is_array
from .backend import load_backend
from .dtype import is_float, python_number, real_array
from .tensor import Tensor, apply
from .tokenizer import TokenIds

_REDUCTIONS = ("mean", "sum", "none")


def mse_loss(x: Tensor, target: Operand, reduction: str = "mean") -> Tensor:
    """The mean squared error: (x - target)^2.

    Args:
        x: a float tensor (...).
        target: a Tensor or an array of x's backend, of x's shape.
        reduction: "mean" or "sum" over all elements, or "none".

    Raises:
        ValueError: an unknown reduction, a target of another shape, or the mean of no elements.
        TypeError: x is not a float Tensor, or the target not an operand.
    """
    x, target = _operands("mse_loss", reduction, x, target)
    return _reduced("mse_loss", (x - target).square(), reduction)


def l1_loss(x: Tensor, target: Operand, reduction: str = "mean") -> Tensor:
    """The mean absolute error: |x - target|. The gradient is 0 where they are equal.

    Arguments, shapes and errors are those of `mse_loss`.
    """
    x, target = _operands("l1_loss", reduction, x, target)
    return _reduced("l1_loss", (x - target).abs(), reduction)


def binary_cross_entropy_with_logits(
    x: Tensor, target: Operand, weight: Operand = None, reduction: str = "mean", pos_weight: Operand = None
) -> Tensor:
    """The cross-entropy of two classes: -log sigmoid(x) for target 1, -log sigmoid(-x) for target 0.

    A target between 0 and 1 is the probability of class 1. Large logits do not overflow. An infinite logit of the right
    sign gives loss 0; in PyTorch, nan.

    Args:
        x: logits, a float tensor (...).
        target: a Tensor or an array of x's backend, of x's shape; floats, integers or bools.
        weight: a factor for each loss; broadcast to x's shape.
        reduction: "mean" or "sum" over all elements, or "none". The mean divides by the number of elements.
        pos_weight: a factor for the term with target 1, for example the number of negatives over that of positives;
            broadcast to x's shape.

    Raises:
        ValueError: an unknown reduction, a target of another shape, a weight that does not broadcast, or the mean of no
            elements. TypeError: x is not a float Tensor, or another argument is not an operand.
    """
    op = "binary_cross_entropy_with_logits"
    x, target = _operands(op, reduction, x, target)
    # softplus(-x) = -log sigmoid(x). Without a threshold, the function is exact for every x.
    positive = _product(target, (-x).softplus(threshold=math.inf))
    if pos_weight is not None:
        positive = positive * _weight(op, "pos_weight", pos_weight, x)
    losses = positive + _product(1 - target, x.softplus(threshold=math.inf))
    if weight is not None:
        losses = losses * _weight(op, "weight", weight, x)
    return _reduced(op, losses, reduction)


def kl_div(x: Tensor, target: Operand, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """The Kullback-Leibler divergence of x from the target: target (log target - x), for log-probabilities x.

    For the mean divergence of a batch of distributions, use reduction="batchmean": as in PyTorch, "mean" divides by the
    number of all elements.

    Args:
        x: log-probabilities (...), as `log_softmax` returns them.
        target: probabilities, of x's shape; log-probabilities if `log_target` is True.
        reduction: "batchmean", the sum over the length of the first axis; "mean", "sum" or "none".
        log_target: whether the target is log-probabilities.

    The loss is 0 where the probability is 0. The gradient with respect to the target is -x there: the term
    target log target, whose slope is infinite, counts as constant. (PyTorch's gradient is nan.)

    Raises:
        ValueError: an unknown reduction, "batchmean" of a 0-d x, a target of another shape, or the mean of no elements.
        TypeError: x is not a float Tensor, the target not an operand, or log_target not a bool.
    """
    rules.check_bool("kl_div: log_target", log_target)
    x, target = _operands("kl_div", reduction, x, target, "batchmean")
    if log_target:
        p = target.exp()
        is_zero = (p == 0) & ~x.isnan()  # a target of -inf
        losses = p * (target.masked_fill(is_zero, 0) - x.masked_fill(is_zero, 0))
    else:
        losses = target * target.masked_fill(target == 0, 1).log() - _product(target, x)
    return _reduced("kl_div", losses, reduction)


def cross_entropy(
    logits: Tensor, ids: Any, ignore_index: int | None = None, *, weight: Operand = None, reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """The cross-entropy of classes: -log softmax(logits)[id], by default its mean.

    The classes are the last axis of the logits, whatever their number of axes. (In PyTorch, they are axis 1.)

        cross_entropy(logits, [2, 0])  # logits (2, C) -> ()

    Args:
        logits: (..., C).
        ids: (...), integers in [0, C), checked as in `embedding`; give them on the host if you can. Or probabilities of
            the classes, a float Tensor of the shape of the logits.
        ignore_index: ids with this value are ignored; it need not be a class. By default, none are.
        weight: a factor for each class, (C,). The mean then divides by the sum of the weights of the ids; with
            probabilities, by the number of rows, as in PyTorch.
        reduction: "mean" or "sum" over the ids that are not ignored, or "none" for all losses (...), 0 at ignored ids.
        label_smoothing: in [0, 1], the part of the probability that is spread evenly over all classes (Szegedy et al.,
            arXiv:1512.00567, section 7).

    Raises:
        IndexError: an id is out of range.
        ValueError: the shapes do not match, an unknown reduction, label_smoothing is not in [0, 1], the mean of no ids,
            or an ignore_index with probabilities.
        TypeError: the ids are not integers, or another argument has a wrong type.
    """
    op = "cross_entropy"
    _check_reduction(op, reduction)
    smoothing = python_number(label_smoothing)
    if smoothing is None or isinstance(smoothing, bool) or not 0 <= smoothing <= 1:
        raise ValueError(f"{op}: label_smoothing must be a number in [0, 1], got {label_smoothing!r}")
    has_probabilities = _are_probabilities(ids, logits)
    if not has_probabilities and weight is None and smoothing == 0 and reduction == "mean":  # fused
        return apply(rules.cross_entropy, logits, ids=ids, ignore_index=ignore_index, excluded_class=None)
    logits = _float_tensor(op, "the logits", logits)
    classes = logits.shape[-1] if logits.ndim else 0
    valid = None
    if has_probabilities:
        if ignore_index is not None:
            raise ValueError(f"{op}: ignore_index needs ids, not probabilities; leave out these rows, as logits[mask]")
        target = _operand(op, "the target", ids, logits)
        if reduction == "mean" and 0 in logits.shape[:-1]:
            raise ValueError(f"{op}: the logits {logits.shape} have no rows; their mean is not defined")
        rows = math.prod(logits.shape[:-1])
    else:
        found, valid, rows = _checked_ids(op, logits, ids, ignore_index)
        if reduction == "mean" and rows == 0:
            raise ValueError(f"{op}: all {found.size} ids are padding or ignored; at least one must be valid")
        one_hot = found.expand_dims(-1) == Tensor._wrap(found.backend.arange(classes), found.backend)  # (..., C)
        target = (one_hot if valid is None else one_hot & valid.expand_dims(-1)).astype(logits.dtype)
    smoothed = target if smoothing == 0 else target * (1 - smoothing) + smoothing / max(classes, 1)
    if weight is not None:
        weight = _operand(op, "weight", weight, logits)
        if weight.shape != (classes,):
            raise ValueError(f"{op}: weight {weight.shape} must have one element for each class, ({classes},)")
        smoothed = smoothed * weight
    losses = -_product(smoothed, logits.log_softmax()).sum(-1)  # (...)
    if valid is not None:
        losses = losses.masked_fill(~valid, 0)
    if reduction != "mean":
        return _reduced(op, losses, reduction)
    mean = losses.mean()  # over all rows: their sum overflows in half precision
    if weight is None or has_probabilities:
        return mean if rows == losses.size else mean * (losses.size / rows)
    weighted: Tensor = mean / (target * weight).sum(-1).mean()
    return weighted


def accuracy(logits: Tensor, ids: Any, ignore_index: int | None = None) -> Tensor:
    """The fraction of the ids that equal the class with the largest logit, the first one for ties.

        accuracy(Tensor([[0.1, 0.9], [0.8, 0.2]]), [1, 1]).item()  # 0.5

    Args:
        logits: (..., C), with the classes on the last axis.
        ids: (...), integers in [0, C).
        ignore_index: ids with this value are ignored.

    Returns:
        A 0-d Tensor of the default dtype, without a gradient.

    Raises:
        IndexError: an id is out of range. ValueError: the shapes do not match, or all ids are ignored. TypeError: the
            ids are not integers.
    """
    if not isinstance(logits, Tensor):
        raise TypeError(f"accuracy: the logits must be a Tensor, got a {type(logits).__name__}; write Tensor(logits)")
    found, valid, rows = _checked_ids("accuracy", logits, ids, ignore_index)
    if rows == 0:
        raise ValueError(f"accuracy: all {found.size} ids are ignored; at least one must be valid")
    hits = logits.detach().argmax(-1) == found
    return (hits if valid is None else hits & valid).sum() / rows


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


# --- Helpers of the losses


def _check_reduction(op: str, reduction: str, *more: str) -> None:
    """Raise ValueError for an unknown reduction."""
    if reduction not in (*_REDUCTIONS, *more):
        known = ", ".join(map(repr, (*_REDUCTIONS, *more)))
        raise ValueError(f"{op}: reduction must be one of {known}, got {reduction!r}")


def _operands(op: str, reduction: str, x: Any, target: Any, *more: str) -> tuple[Tensor, Tensor]:
    """x and the target as Tensors of one dtype. Raises for an unknown reduction, types or shapes that do not fit."""
    _check_reduction(op, reduction, *more)
    x = _float_tensor(op, "x", x)
    target = _operand(op, "the target", target, x)
    if target.shape != x.shape:
        raise ValueError(
            f"{op}: x {x.shape} and target {target.shape} must have the same shape; reshape one of them, or write "
            "target.broadcast_to(x.shape)"
        )
    return x, target


def _float_tensor(op: str, what: str, x: Any) -> Tensor:
    """x. Raises TypeError for anything but a float Tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {what} must be a float Tensor, got a {type(x).__name__}; write Tensor(x)")
    rules.check_float(op, x.dtype)
    return x


def _operand(op: str, what: str, value: Any, x: Tensor) -> Tensor:
    """A Tensor or an array of x's backend as a Tensor, in x's dtype. Raises TypeError for anything else."""
    tensor = value
    if not isinstance(value, Tensor):
        if not is_array(x.backend, value):
            raise TypeError(
                f"{op}: {what} must be a Tensor or an array of backend {x.backend.name!r}, got a "
                f"{type(value).__name__}; write Tensor(values, requires_grad=False)"
            )
        tensor = Tensor(value, requires_grad=False, backend=x.backend.root)
    cast: Tensor = tensor if tensor.dtype == x.dtype else tensor.astype(x.dtype)
    return cast


def _weight(op: str, what: str, value: Any, x: Tensor) -> Tensor:
    """The weight as a Tensor. Raises ValueError if it does not broadcast to x's shape."""
    weight = _operand(op, what, value, x)
    if not rules.fits(weight.shape, x.shape):
        raise ValueError(f"{op}: {what} {weight.shape} does not broadcast to x's shape {x.shape}; reshape it")
    return weight


def _product(factor: Tensor, x: Tensor) -> Tensor:
    """factor * x, and 0 where the factor is 0 and x is infinite: a term with probability 0 does not count."""
    return factor * x.masked_fill((factor == 0) & x.isinf(), 0)


def _reduced(op: str, losses: Tensor, reduction: str) -> Tensor:
    """The losses, or their sum or mean. Raises ValueError for the mean of no elements."""
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if reduction == "batchmean" and not losses.ndim:
        raise ValueError(f"{op}: x is 0-d; reduction='batchmean' needs a first axis")
    if losses.size == 0:
        raise ValueError(f"{op}: x {losses.shape} has no elements; their mean is not defined: use reduction='sum'")
    # The mean of the sums of the rows: the sum of all losses overflows in half precision.
    return losses.mean() if reduction == "mean" else losses.reshape(losses.shape[0], -1).sum(1).mean()


def _are_probabilities(target: Any, logits: Any) -> bool:
    """Whether the target of `cross_entropy` is probabilities: floats, with the shape of the logits."""
    if not isinstance(logits, Tensor) or getattr(target, "shape", None) != logits.shape:
        return False
    if isinstance(target, Tensor):
        return is_float(target.dtype)
    return is_array(logits.backend, target) and is_float(logits.backend.root.dtype(target))


def _checked_ids(op: str, logits: Tensor, ids: Any, ignore_index: int | None) -> tuple[Tensor, Tensor | None, int]:
    """The ids, which of them are not `ignore_index` (None for all), and their number. Ignored ones become 0.

    Raises IndexError, ValueError or TypeError as the fused `cross_entropy` does.
    """
    xp, host = logits.backend.root, load_backend("numpy")
    if logits.ndim == 0:
        raise ValueError(f"{op}: logits are 0-d; they must be (..., classes)")
    if isinstance(ids, Tensor):
        ids = ids.numpy()
    on_host = real_array(host, xp.to_host(ids) if xp.is_array(ids) else ids, op)
    counts = None
    if ignore_index is not None:
        rules.check_int(f"{op}: ignore_index", ignore_index)
        counts = host.asarray(host.not_equal(on_host, ignore_index))
        on_host = host.where(counts, on_host, 0)
    found = Tensor._wrap(xp.check_ids(on_host, logits.shape[-1], op), xp)
    rules.check_targets_shape(op, logits.shape, found.shape)
    if counts is None:
        return found, None, found.size
    return found, Tensor._wrap(xp.asarray(counts), xp), int(host.sum(counts))
