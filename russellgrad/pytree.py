"""Pytrees: nested tuples, lists and dicts of Tensors, as arguments and results of transforms (JAX's term)."""

from collections.abc import Iterator, Mapping
from typing import Any

from .dtype import is_float
from .tensor import Tensor

Pytree = Any  # a Tensor, or a tuple, list or dict of pytrees


def tree_leaves(tree: Pytree) -> list[Any]:
    """The leaves in order: the Tensors, and anything else that is not a tuple, list or dict."""
    if isinstance(tree, Mapping):
        return [leaf for part in tree.values() for leaf in tree_leaves(part)]
    if isinstance(tree, (tuple, list)):
        return [leaf for part in tree for leaf in tree_leaves(part)]
    return [tree]


def tree_unflatten(tree: Pytree, new: Iterator[Any]) -> Pytree:
    """The pytree with each leaf replaced by the next one of `new`."""
    if isinstance(tree, Mapping):
        return {key: tree_unflatten(part, new) for key, part in tree.items()}
    if isinstance(tree, (tuple, list)):
        parts = [tree_unflatten(part, new) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return next(new)


def structure(tree: Pytree) -> str:
    """The nesting and the shapes, as text."""
    if isinstance(tree, Mapping):
        return "{" + ", ".join(f"{key!r}: {structure(part)}" for key, part in tree.items()) + "}"
    if isinstance(tree, (tuple, list)):
        parts = ", ".join(map(structure, tree))
        return f"[{parts}]" if isinstance(tree, list) else f"({parts}{',' * (len(tree) == 1)})"
    return f"Tensor{tree.shape}" if isinstance(tree, Tensor) else type(tree).__name__


def float_leaves(what: str, tree: Pytree) -> list[Tensor]:
    """The leaves. Raises TypeError if one is not a float Tensor."""
    found = tree_leaves(tree)
    for leaf in found:
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"{what} must be a float Tensor, or a tuple, list or dict of them, got {type(leaf).__name__}; make one "
                "with Tensor(x)"
            )
        if not is_float(leaf.dtype):
            raise TypeError(f"{what} must be of a float dtype, got {leaf.dtype} {leaf.shape}; cast it with .astype()")
    return found


def matching(what: str, tree: Pytree, name: str, like: Pytree) -> Pytree:
    """The pytree, with the order of keys and the dtypes of `like`, which is called `name`.

    Raises TypeError if a leaf is not a float Tensor or on another backend than that of `like`, ValueError if the pytree
    does not have the structure and the shapes of `like`.
    """
    float_leaves(what, tree)
    try:
        found = tree_leaves(_matched(tree, like))
    except _MismatchError:
        raise ValueError(
            f"{what} must have the structure and the shapes of {name}, {structure(like)}; got {structure(tree)}"
        ) from None
    for leaf, other in zip(found, tree_leaves(like), strict=True):
        if leaf.backend.root is not other.backend.root:
            raise TypeError(
                f"{what} must be on the backend of {name}, {other.backend.name!r}, got one on {leaf.backend.name!r}; "
                f"move it with .to({other.backend.name!r})"
            )
    return tree_unflatten(like, iter(found))


class _MismatchError(Exception):
    pass


def _matched(tree: Pytree, like: Pytree) -> Pytree:
    if isinstance(like, Mapping) and isinstance(tree, Mapping) and tree.keys() == like.keys():
        return {key: _matched(tree[key], like[key]) for key in like}
    if isinstance(like, (tuple, list)) and isinstance(tree, (tuple, list)) and len(tree) == len(like):
        return [_matched(*pair) for pair in zip(tree, like, strict=True)]
    if not isinstance(like, Tensor) or not isinstance(tree, Tensor) or tree.shape != like.shape:
        raise _MismatchError
    return tree if tree.dtype == like.dtype else tree.astype(like.dtype)
