"""The text of a module: its tree of modules, parameters and buffers, with shapes and numbers of parameters."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from .dtype import python_number
from .tensor import Tensor

WIDTH = 72  # the numbers of longer lines are not aligned


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
    members = list(members)
    frozen = _frozen(members)
    rows: list[_Row] = []
    above: list[tuple[str, int]] = []  # the prefix of each module around this line, and its row
    for name, value in members:
        while above and not name.startswith(above[-1][0]):
            above.pop()
        own = name[len(above[-1][0]) :] if above else name
        if not isinstance(value, Tensor):
            rows.append(_Row(len(above), own, _title(value), 0))
            above.append((f"{name}." if name else "", len(rows) - 1))
            continue
        kind = "" if value.requires_grad else " frozen" if id(value) in frozen else f" {value.dtype} buffer"
        count = value.size if value.requires_grad else 0
        rows.append(_Row(len(above), own, f"{value.shape}{kind}", count))
        for _, place in above:
            rows[place] = rows[place]._replace(trained=rows[place].trained + count)
    return _table(_merged(rows))


def _frozen(members: Iterable[tuple[str, Any]]) -> set[int]:
    """The ids of the parameters that `Module.freeze` has frozen. A shared one may be printed in another module."""
    found: set[int] = set()
    for module in (member for _, member in members if not isinstance(member, Tensor) and member._frozen):
        names = set(module._frozen)
        found |= {id(tensor) for name, tensor in module._named_tensors() if name in names}
    return found


def _title(module: Any) -> str:
    """The class of a module with its settings: public attributes that are numbers, strings, or tuples of these."""
    settings = {
        name: value
        for name, value in ((name, _plain(value)) for name, value in vars(module).items())
        if value is not None and not name.startswith("_") and name != "training"
    }
    arguments = ", ".join(f"{name}={_short(repr(value))}" for name, value in settings.items())
    return type(module).__name__ + (f"({arguments})" if arguments else "")


def _plain(value: Any) -> Any:
    """The value as a Python number, a string or a tuple of these; None for anything else."""
    if isinstance(value, tuple):
        parts = tuple(map(_plain, value))
        return None if not parts or None in parts else parts
    return str(value) if isinstance(value, str) else python_number(value)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


def _merged(rows: list[_Row]) -> list[_Row]:
    """Merge each run of equal modules with names that end in consecutive numbers."""
    ends, merged = _ends(rows), []
    after: dict[int, int] = {}  # the row after the first module of a run -> the row after the run
    i = 0
    while i < len(rows):
        first = last = rows[i]
        end, n = ends[i], 1
        while (
            ends[i] - i > 1
            and end < len(rows)
            and rows[end] == last._replace(name=_next(last.name))
            and rows[end + 1 : ends[end]] == rows[i + 1 : ends[i]]
        ):
            last, end, n = rows[end], ends[end], n + 1
        if n > 1:
            after[ends[i]] = end
            first = first._replace(
                name=f"{first.name} to {last.name}", text=f"{n} x {first.text}", trained=n * first.trained
            )
        merged.append(first)
        i += 1
        while i in after:
            i = after[i]
    return merged


def _ends(rows: list[_Row]) -> list[int]:
    """For each row, the index after the rows inside it."""
    ends, around = [len(rows)] * len(rows), list[int]()
    for i, row in enumerate(rows):
        while around and rows[around[-1]].depth >= row.depth:
            ends[around.pop()] = i
        around.append(i)
    return ends


def _next(name: str) -> str:
    """The name with the number at its end increased by 1; "" without a number."""
    stem, _, number = name.rpartition(".")
    return f"{stem}.{int(number) + 1}".removeprefix(".") if number.isdecimal() else ""


def _table(rows: list[_Row]) -> str:
    """The rows with indented names and aligned numbers."""
    lines = [f"{'  ' * row.depth}{row.name}{': ' if row.name else ''}{row.text}" for row in rows]
    counts = [f"{row.trained:,}" if row.trained else "" for row in rows]
    width, digits = max((n for line in lines if (n := len(line)) <= WIDTH), default=0), max(map(len, counts))
    table = [f"{line:{width}}  {count:>{digits}}".rstrip() for line, count in zip(lines, counts, strict=True)]
    return "\n".join([f"{table[0]} parameters" if counts[0] else table[0], *table[1:]])
