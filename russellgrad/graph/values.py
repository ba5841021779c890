"""The value of an array at one moment, small enough to keep: all numbers of a small array, a summary of a large one."""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

NUMBERS = 64  # arrays of at most this many elements are kept entirely
ROWS, COLUMNS = 24, 32  # the largest heat map
NOT_FINITE = 255  # in a heat map, for nan and infinities; the finite numbers are 0 (the minimum) to 254 (the maximum)

HostArray: TypeAlias = Any  # a NumPy array


@dataclass(frozen=True)
class Values:
    """A copy or a summary of an array.

    Attributes:
        shape, dtype: of the array.
        numbers: the elements in C order, if there are at most NUMBERS; else None.
        low, high, mean: of the finite elements; nan if there are none.
        not_finite: the number of elements that are nan or infinite.
        grid: the heat map, one byte per cell, `rows` by `columns`; empty if `numbers` is not None. The array is taken
            as a matrix with its last axis as columns. Of a larger one the heat map shows every n-th row and column.
    """

    shape: tuple[int, ...]
    dtype: str
    numbers: tuple[float, ...] | None
    low: float
    high: float
    mean: float
    not_finite: int
    grid: bytes
    rows: int
    columns: int

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def text(self) -> str:
        """The numbers, or the range and mean of a large array."""
        return self._range() if self.numbers is None else ", ".join(map(number_text, self.numbers))

    def summary(self) -> str:
        """The value in one line, with what is not finite."""
        if not self.size:
            return "no elements"
        text = f"value {self.text()}" if self.size <= 8 else self._range()
        return f"{text}{f', {self.not_finite} not finite' if self.not_finite else ''}"

    def _range(self) -> str:
        return f"{number_text(self.low)} to {number_text(self.high)}, mean {number_text(self.mean)}"


def number_text(x: float) -> str:
    """The number with 5 significant digits."""
    return str(x) if isinstance(x, (bool, int)) else f"{x:.5g}"


def values_of(array: HostArray) -> Values:
    """The value of a NumPy array. The result does not share its memory."""
    shape, dtype = array.shape, str(array.dtype)
    small = math.prod(shape) <= NUMBERS
    numbers = tuple(array.reshape(-1).tolist()) if small else None
    if array.dtype.kind not in "fiub":
        array = array.astype("float32")  # bfloat16, which has no arithmetic of its own in NumPy
    if numbers is not None:
        finite = [float(x) for x in numbers if math.isfinite(x)]
        low, high = min(finite, default=math.nan), max(finite, default=math.nan)
        mean = _mean_of(finite) if finite else math.nan
        return Values(shape, dtype, numbers, low, high, mean, len(numbers) - len(finite), b"", 0, 0)
    wide = array.astype("float64").reshape(-1)
    finite_mask = abs(wide) < math.inf
    kept = wide if finite_mask.all() else wide[finite_mask]
    low, high, mean = (float(kept.min()), float(kept.max()), float(_mean(kept))) if len(kept) else (math.nan,) * 3
    grid, rows, columns = _heat_map(wide.reshape(-1, shape[-1]), low, high)
    return Values(shape, dtype, None, low, high, mean, len(wide) - len(kept), grid, rows, columns)


def _mean_of(numbers: list[float]) -> float:
    n = len(numbers)
    try:
        return math.fsum(numbers) / n
    except OverflowError:  # the sum is not finite, but the mean is
        return max(min(numbers), min(max(numbers), 2 * math.fsum(x / (2 * n) for x in numbers)))


def _mean(kept: HostArray) -> Any:
    largest = float(abs(kept).max())
    if not largest:
        return 0.0
    return (kept / largest).mean() * largest  # a sum of large numbers would overflow


def _heat_map(matrix: HostArray, low: float, high: float) -> tuple[bytes, int, int]:
    if matrix.shape[0] == 1 and matrix.shape[1] > COLUMNS:  # a vector, in rows
        width = COLUMNS
        matrix = matrix[0, : matrix.shape[1] // width * width].reshape(-1, width)
    picked = matrix[:: -(-matrix.shape[0] // ROWS), :: -(-matrix.shape[1] // COLUMNS)]
    if math.isnan(low):  # no element is finite
        low = high = 0.0
    span = (high / 2 - low / 2) or 1.0  # halves: the difference may be infinite
    is_finite = abs(picked) < math.inf
    scaled = picked.copy()
    scaled[~is_finite] = low
    cells = ((scaled / 2 - low / 2) / span * 254).round().astype("uint8")
    cells[~is_finite] = NOT_FINITE
    return cells.tobytes(), cells.shape[0], cells.shape[1]
