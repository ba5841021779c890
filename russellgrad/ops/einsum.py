"""Products of tensors along named axes: `einsum`, `tensordot` and `outer`, by matrix products."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from math import prod
from numbers import Integral
from typing import Any

from .. import rules
from ..apply import Operand, is_array, same_backend
from ..backend import Shape
from ..dtype import is_float, python_number
from ..tensor import Tensor


def einsum(subscripts: str, *operands: Operand) -> Tensor:
    """Multiply the operands and sum over axes that are named by letters, as `numpy.einsum` does.

    Each operand has a letter for each axis. An axis whose letter is not in the output is summed over. Without "->", the
    output has the letters that are there once, in alphabetical order. "..." is any number of axes, which are broadcast.
    A letter twice in one operand is the diagonal. An axis of length 1 is broadcast to the length of its letter.

    Two operands at a time are multiplied by one matrix product. The order is that of the package `opt_einsum`, if it is
    installed, else from left to right. If no operand is a float, the result is int64.

    Args:
        subscripts: the letters, such as "ij,jk->ik".
        operands: Tensors, and arrays of their backend.

    Raises:
        ValueError: a letter has two lengths, or is in the output and in no operand, or there is not one letter for each
            axis; names the letter. TypeError: the subscripts are not a string, or an operand is not a Tensor.

        einsum("ij,jk->ik", a, b)  # a @ b
        einsum("bij->bji", x)  # transposes
        einsum("ii", x)  # the trace
    """
    if not isinstance(subscripts, str):
        raise TypeError(f"einsum: the subscripts must be a string, such as 'ij,jk->ik', got {subscripts!r}")
    tensors = _summable(_tensors("einsum", operands))
    inputs, output = _parse(subscripts, [tensor.shape for tensor in tensors])
    lengths = _lengths(subscripts, inputs, tensors)
    terms = [_distinct(tensor, letters, lengths) for tensor, letters in zip(tensors, inputs, strict=True)]
    names = tuple("".join(letters) for _, letters in terms)
    for positions in _order(names, output, tuple(tensor.shape for tensor, _ in terms)):
        chosen = [terms.pop(i) for i in sorted(positions, reverse=True)][::-1]
        while len(chosen) > 1:
            needed = set(output).union(*(letters for _, letters in (*terms, *chosen[2:])))
            chosen[:2] = [_product(*chosen[0], *chosen[1], needed)]
        terms.append(chosen[0])
    out, letters = _summed(*terms[0], set(output))
    missing = [letter for letter in output if letter not in letters]  # of length 1 everywhere
    out = out.reshape((*out.shape, *(lengths[letter] for letter in missing)))
    letters = [*letters, *missing]
    out = out.transpose([letters.index(letter) for letter in output])
    return out.copy() if any(out is operand for operand in operands) else out


def tensordot(a: Operand, b: Operand, axes: int | Sequence[int | Sequence[int]] = 2) -> Tensor:
    """Multiply a and b, and sum over pairs of axes, as `numpy.tensordot` does, by one matrix product.

    The result has the other axes of a, then those of b. If neither is a float, it is int64.

    Args:
        a, b: Tensors, or one of them an array of the other's backend.
        axes: n for the last n axes of a and the first n of b; or two lists, the axes of a and those of b.

    Raises:
        ValueError: the axes do not have the same lengths, or there are not as many. IndexError: an axis is out of
            range. TypeError: `axes` is something else, or an operand is not a Tensor.

        tensordot(a, b, 1)  # (2, 3) and (3, 4) -> (2, 4)
        tensordot(a, b, ([0, 1], [1, 0]))  # (2, 3, 4) and (3, 2, 5) -> (4, 5)
    """
    left, right = _summable(_tensors("tensordot", (a, b)))
    of_a: Any
    of_b: Any
    if isinstance(axes, Integral) and not isinstance(axes, bool):
        n = int(axes)
        if not 0 <= n <= min(left.ndim, right.ndim):
            raise ValueError(
                f"tensordot: axes={n} of shapes {left.shape} and {right.shape}; they must have so many axes"
            )
        of_a, of_b = range(left.ndim - n, left.ndim), range(n)
    elif isinstance(axes, (tuple, list)) and len(axes) == 2:
        of_a, of_b = axes
    else:
        raise TypeError(f"tensordot: axes must be an int or two lists, of the axes of a and of b, got {axes!r}")
    of_a = rules.normalize_axes("tensordot", of_a, left.ndim)
    of_b = rules.normalize_axes("tensordot", of_b, right.ndim)
    summed_a, summed_b = [left.shape[i] for i in of_a], [right.shape[i] for i in of_b]
    if summed_a != summed_b:
        raise ValueError(
            f"tensordot: axes {of_a} of shape {left.shape} and axes {of_b} of shape {right.shape} must have equal "
            f"lengths, got {summed_a} and {summed_b}"
        )
    rest_a = [i for i in range(left.ndim) if i not in of_a]
    rest_b = [i for i in range(right.ndim) if i not in of_b]
    rows, columns, n = [left.shape[i] for i in rest_a], [right.shape[i] for i in rest_b], prod(summed_a)
    left = left.transpose([*rest_a, *of_a]).reshape((prod(rows), n))
    right = right.transpose([*of_b, *rest_b]).reshape((n, prod(columns)))
    return (left @ right).reshape((*rows, *columns))


def outer(a: Operand, b: Operand) -> Tensor:
    """The products of all elements of a and all elements of b, which are flattened: (n,) and (m,) -> (n, m).

    a and b are Tensors, or one of them an array of the other's backend. Raises TypeError for anything else.

        outer(Tensor([1.0, 2.0]), Tensor([3.0, 4.0]))  # [[3. 4.] [6. 8.]]
    """
    rows, columns = _tensors("outer", (a, b))
    return rows.ravel().expand_dims(1) * columns.ravel()


def _tensors(op: str, operands: Sequence[Operand]) -> list[Tensor]:
    """The operands as Tensors. Raises TypeError for several backends, or what is not a Tensor, an array or a number."""
    given = [operand for operand in operands if isinstance(operand, Tensor)]
    if not given:
        raise TypeError(
            f"{op}: give at least one Tensor, as in Tensor(x), got {', '.join(map(_kind, operands)) or 'none'}"
        )
    xp = max((tensor.backend for tensor in given), key=lambda backend: backend.level)
    for tensor in given:
        same_backend(op, xp.root, tensor.backend.root)
    found = []
    for operand in operands:
        if not isinstance(operand, Tensor):
            if not is_array(xp, operand) and python_number(operand) is None:
                raise TypeError(
                    f"{op}: cannot take a {_kind(operand)} with a tensor of backend {xp.name!r}; pass a Tensor, as in "
                    f"Tensor(x, backend={xp.name!r})"
                )
            operand = Tensor(operand, requires_grad=False, backend=xp.root)
        found.append(operand)
    return found


def _summable(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors, cast to int64 if none is a float: sums of integers are int64."""
    return tensors if any(is_float(x.dtype) for x in tensors) else [x.astype("int64") for x in tensors]


def _kind(x: Any) -> str:
    return f"{type(x).__module__}.{type(x).__name__}"


# --- Parsing

_ELLIPSIS = "\u2026"  # its axes get the characters from here on, which are not letters of einsum


def _parse(subscripts: str, shapes: Sequence[Shape]) -> tuple[list[list[str]], str]:
    """The letters of each operand and of the output, with one more for each axis of an ellipsis.

    Raises ValueError for subscripts that are malformed, or do not fit the shapes.
    """
    compact = subscripts.replace(" ", "").replace("...", _ELLIPSIS)
    left, arrow, right = compact.partition("->")
    names = left.split(",")
    wrong = [c for c in compact.replace("->", "", 1) if not (c.isascii() and c.isalpha() or c in f",{_ELLIPSIS}")]
    if wrong or "," in right:
        raise ValueError(
            f"einsum: {(wrong or [','])[0]!r} in {subscripts!r} is not valid there; write letters, '...', commas "
            "between operands, and '->' before the output"
        )
    if len(names) != len(shapes):
        raise ValueError(f"einsum: {subscripts!r} is for {len(names)} operands, got {len(shapes)}")
    for i, name in enumerate((*names, right)):
        if name.count(_ELLIPSIS) > 1:
            where = "the output" if i == len(names) else f"operand {i}"
            raise ValueError(f"einsum: '...' is there twice in {where} of {subscripts!r}")
    n_more = 0
    for i, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        n_letters = len(name.replace(_ELLIPSIS, ""))
        if n_letters > len(shape) or n_letters < len(shape) and _ELLIPSIS not in name:
            raise ValueError(
                f"einsum: operand {i} of shape {shape} has {len(shape)} axes, and {name.replace(_ELLIPSIS, '...')!r} "
                f"of {subscripts!r} names {n_letters}; write one letter for each axis, or '...'"
            )
        n_more = max(n_more, len(shape) - n_letters)
    extra = "".join(chr(ord(_ELLIPSIS) + 1 + i) for i in range(n_more))
    inputs = []
    for name, shape in zip(names, shapes, strict=True):
        more = len(shape) - len(name.replace(_ELLIPSIS, ""))
        inputs.append(list(name.replace(_ELLIPSIS, extra[n_more - more :])))
    if not arrow:
        counts = Counter(left)
        once = sorted(letter for letter, n in counts.items() if n == 1 and letter.isalpha())
        return inputs, extra + "".join(once)
    if n_more and _ELLIPSIS not in right:
        raise ValueError(f"einsum: the output of {subscripts!r} needs '...', because an operand has it")
    for letter, n in Counter(right).items():
        if n > 1:
            raise ValueError(f"einsum: the output of {subscripts!r} has the letter {letter!r} twice")
        if letter != _ELLIPSIS and letter not in left:
            raise ValueError(f"einsum: the output of {subscripts!r} has the letter {letter!r}, which no operand has")
    return inputs, right.replace(_ELLIPSIS, extra)


def _lengths(subscripts: str, inputs: Sequence[Sequence[str]], tensors: Sequence[Tensor]) -> dict[str, int]:
    """The length of each letter's axes. Those of length 1 are broadcast. Raises ValueError for two other lengths."""
    found: dict[str, tuple[int, int]] = {}  # the length, and the operand that has it
    for i, (letters, tensor) in enumerate(zip(inputs, tensors, strict=True)):
        for letter, n in zip(letters, tensor.shape, strict=True):
            length, j = found.get(letter, (n, i))
            in_this = tensor.shape[letters.index(letter)]  # no axis is broadcast to another one of the same operand
            if n != in_this or n != length and 1 not in (n, length):
                length, j = (length, j) if n == in_this else (in_this, i)
                name = f"letter {letter!r}" if letter < _ELLIPSIS else "an axis of '...'"
                raise ValueError(
                    f"einsum: {name} of {subscripts!r} has length {length} in operand {j} of shape {tensors[j].shape} "
                    f"and {n} in operand {i} of shape {tensor.shape}; it must have one length"
                )
            found[letter] = (n, i) if length == 1 else (length, j)
    return {letter: n for letter, (n, _) in found.items()}


@lru_cache(maxsize=256)
def _order(names: Sequence[str], output: str, shapes: Sequence[Shape]) -> Sequence[tuple[int, ...]]:
    """The positions of the operands of each product. They are removed, and the product is appended."""
    if len(names) > 2 and find_spec("opt_einsum"):
        path: Sequence[tuple[int, ...]] = import_module("opt_einsum").contract_path(
            f"{','.join(names)}->{''.join(c for c in output if any(c in name for name in names))}", *shapes, shapes=True
        )[0]
        return path
    return [(0, 1)][: len(names) - 1] + [(0, n) for n in range(len(names) - 2, 0, -1)]


# --- Products of operands whose letters are distinct


def _distinct(x: Tensor, letters: Sequence[str], lengths: dict[str, int]) -> tuple[Tensor, list[str]]:
    """The diagonal of each letter that is there twice, without axes that are broadcast."""
    names = list(letters)
    while len(set(names)) < len(names):
        letter = next(c for c in names if names.count(c) > 1)
        first, second, *_ = (i for i, c in enumerate(names) if c == letter)
        x = x.diagonal(0, first, second)
        names = [c for i, c in enumerate(names) if i not in (first, second)] + [letter]
    kept = [i for i, c in enumerate(names) if x.shape[i] == lengths[c]]
    if len(kept) < len(names):
        x = x.reshape([x.shape[i] for i in kept])
    return x, [names[i] for i in kept]


def _summed(x: Tensor, letters: Sequence[str], kept: Iterable[str]) -> tuple[Tensor, list[str]]:
    """x summed over the letters that are not in `kept`."""
    axes = tuple(i for i, c in enumerate(letters) if c not in kept)
    return (x.sum(axes) if axes else x), [c for c in letters if c in kept]


def _product(a: Tensor, of_a: list[str], b: Tensor, of_b: list[str], needed: set[str]) -> tuple[Tensor, list[str]]:
    """The product of two operands, summed over the letters that are not needed any more."""
    a, of_a = _summed(a, of_a, needed.union(of_b))
    b, of_b = _summed(b, of_b, needed.union(of_a))
    batch = [c for c in of_a if c in of_b and c in needed]
    summed = [c for c in of_a if c in of_b and c not in needed]
    rows, columns = [c for c in of_a if c not in of_b], [c for c in of_b if c not in of_a]
    size = {**dict(zip(of_a, a.shape, strict=True)), **dict(zip(of_b, b.shape, strict=True))}
    batch_shape = [size[c] for c in batch]
    n, k, m = (prod(size[c] for c in group) for group in (rows, summed, columns))
    left = a.transpose([of_a.index(c) for c in (*batch, *rows, *summed)])
    right = b.transpose([of_b.index(c) for c in (*batch, *summed, *columns)])
    left, right = left.reshape((*batch_shape, n, k)), right.reshape((*batch_shape, k, m))
    # A sum of one product needs no matrix product.
    out = left @ right if summed else left * right
    letters = [*batch, *rows, *columns]
    return out.reshape([size[c] for c in letters]), letters
