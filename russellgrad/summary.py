"""The text of a module: its tree of modules, parameters and buffers, with shapes and numbers of parameters."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from .tensor import Tensor


class _Row(NamedTuple):
    """A line of the tree."""

    depth: int
    name: str  # relative to the module above
    text: str  # the class of a module, the shape of a Tensor
    trained: int  # the number of elements that are trained


def summary(members: Iterable[tuple[str, Any]]) -> str:
    """The tree of a module, from the names and values of all modules and Tensors inside it, itself first.

    Modules of a list that print alike are printed once, as "blocks.0 to blocks.3: 4 x Block".
    """
    rows: list[_Row] = []
    above: list[tuple[str, int]] = []  # the prefix of each module around this line, and its row
    frozen: set[str] = set()
    for name, value in members:
        while above and not name.startswith(above[-1][0]):
            above.pop()
        own = name[len(above[-1][0]) :] if above else name
        if not isinstance(value, Tensor):
            rows.append(_Row(len(above), own, _title(value), 0))
            above.append((f"{name}." if name else "", len(rows) - 1))
            frozen.update(above[-1][0] + parameter for parameter in value._frozen)
            continue
        kind = "" if value.requires_grad else " frozen" if name in frozen else f" {value.dtype} buffer"
        count = value.size if value.requires_grad else 0
        rows.append(_Row(len(above), own, f"{value.shape}{kind}", count))
        for _, place in above:
            rows[place] = rows[place]._replace(trained=rows[place].trained + count)
    return _table(_merged(rows))


def _title(module: Any) -> str:
    """The class of a module with its settings: public attributes that are numbers, strings, or tuples of numbers."""
    plain = (bool, int, float, str)
    settings = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training"
        if isinstance(value, plain) or isinstance(value, tuple) and value and all(isinstance(v, plain) for v in value)
    }
    arguments = ", ".join(f"{name}={_short(repr(value))}" for name, value in settings.items())
    return type(module).__name__ + (f"({arguments})" if arguments else "")


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


def _merged(rows: list[_Row]) -> list[_Row]:
    """Merge each run of equal modules with names that end in consecutive numbers."""
    merged: list[_Row] = []
    while rows:
        first, inside, rest = _split(rows)
        last, n = first, 1
        while rest:
            following, same, after = _split(rest)
            if following != last._replace(name=_next(last.name)) or same != inside or not inside:
                break
            last, n, rest = following, n + 1, after
        if n > 1:
            first = first._replace(
                name=f"{first.name} to {last.name}", text=f"{n} x {first.text}", trained=n * first.trained
            )
        merged.append(first)
        rows = inside + rest
    return merged


def _split(rows: list[_Row]) -> tuple[_Row, list[_Row], list[_Row]]:
    """The first row, the rows inside it, and the rest."""
    end = next((i for i, row in enumerate(rows) if i and row.depth <= rows[0].depth), len(rows))
    return rows[0], rows[1:end], rows[end:]


def _next(name: str) -> str:
    """The name with the number at its end increased by 1; "" without a number."""
    stem, _, number = name.rpartition(".")
    return f"{stem}.{int(number) + 1}".removeprefix(".") if number.isdecimal() else ""


def _table(rows: list[_Row]) -> str:
    """The rows with indented names and aligned numbers."""
    lines = [f"{'  ' * row.depth}{row.name}{': ' if row.name else ''}{row.text}" for row in rows]
    counts = [f"{row.trained:,}" if row.trained else "" for row in rows]
    width, digits = max(map(len, lines)), max(map(len, counts))
    table = [f"{line:{width}}  {count:>{digits}}".rstrip() for line, count in zip(lines, counts, strict=True)]
    return "\n".join([f"{table[0]} parameters" if counts[0] else table[0], *table[1:]])
