"""A backend on trial: a case calls its primitives and holds what comes back against what NumPy's give.

Everything here goes through the contract alone, so it works for the arrays of any backend. NumPy is on the host's side.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from types import ModuleType
from typing import Any, cast

import numpy as np

from ..backend import PRIMITIVES, Array, Backend, Shape, load_backend, resolve_backend
from .views import CONTIGUOUS, VIEWS, HostArray, arrays_in, each

TOLERANCE = {"float64": 1e-12, "float32": 2e-5}  # absolute, for data of the order of 1; other dtypes must be equal

reference = load_backend("numpy")

# NumPy's elementwise functions give a scalar for operands without axes, so theirs alone need not be an array.
_ELEMENTWISE = PRIMITIVES[PRIMITIVES.index("add") : PRIMITIVES.index("logical_not") + 1]


class Mismatch(AssertionError):  # noqa: N818 - not an error of the suite's, but what it looks for
    """What was expected of the backend, and what came instead."""

    def __init__(self, expected: str, came: str) -> None:
        super().__init__(f"expected {expected}, came {came}")
        self.expected, self.came = expected, came


@dataclass(frozen=True)
class Outcome:
    """What came of a case. The last three say what was called, expected and given, and are empty where it passed."""

    case: "Case"
    differences: dict[str, float]  # the largest from the reference, by dtype
    called: str = ""
    expected: str = ""
    came: str = ""

    @property
    def passed(self) -> bool:
        return not self.expected

    def __str__(self) -> str:
        if self.passed:
            return f"passed  {self.case}"
        return f"FAILED  {self.case}\n  called    {self.called}\n  expected  {self.expected}\n  came      {self.came}"


@dataclass(frozen=True)
class Case:
    """One thing that the contract asks of a primitive."""

    primitive: str  # its name in the contract; "Tensor" for what a Tensor asks of several
    title: str
    body: Callable[["Trial"], None] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.primitive}: {self.title}"

    def run(self, backend: str | ModuleType | Backend) -> Outcome:
        """Try the case. Raises as `load_backend` does, and nothing for what the backend does wrong."""
        trial = Trial(resolve_backend(backend))
        try:
            with np.errstate(all="ignore"):  # nan and inf are part of it
                self.body(trial)
        except Mismatch as mismatch:
            return Outcome(self, trial.differences, trial.called(), mismatch.expected, mismatch.came)
        except Exception as error:
            return Outcome(self, trial.differences, trial.called(), "no error", _words(error))
        return Outcome(self, trial.differences)

    def check(self, backend: str | ModuleType | Backend) -> None:
        """Raise AssertionError, with what was called, expected and given, if the backend fails the case."""
        outcome = self.run(backend)
        if not outcome.passed:
            raise AssertionError(str(outcome))


class Trial:
    """The backend as a case sees it. `xp` is its module, with the last call noted for the report."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.xp = cast(Backend, _Noting(self))
        self.differences: dict[str, float] = {}
        self.last: tuple[str, tuple[Any, ...], dict[str, Any]] | None = None
        self.view = CONTIGUOUS  # how arrays are laid out when they are moved
        self._watched: list[tuple[HostArray, Array]] = []  # what was moved, and must stay as it is

    # --- To the backend and back

    def each_view(self, *args: Any) -> Iterator[tuple[Any, ...]]:
        """The host arguments, once for every view. What is moved meanwhile is laid out so, and must stay unchanged."""
        for view in VIEWS if any(a.ndim for a in arrays_in(args)) else (CONTIGUOUS,):
            self.view = view
            self._watched.clear()
            yield each(args, view.values)
            for host, moved in self._watched:
                if not np.array_equal(host, self.host(moved), equal_nan=host.dtype.kind == "f"):
                    raise Mismatch("operands left as they are", f"{self.host(moved)!r} in place of {host!r}")
        self.view = CONTIGUOUS

    def move(self, x: Any, watched: bool = True) -> Any:
        """Host arrays as the backend's: one, or those in a tuple or list. All else stays as it is."""

        def laid_out(a: HostArray) -> Array:
            moved = self.view.lay(self.backend, a) if a.ndim else CONTIGUOUS.lay(self.backend, a)
            if watched:
                self._watched.append((np.array(a), moved))
            return moved

        return each(x, laid_out)

    def host(self, x: Array) -> HostArray:
        """An array on the host, or a number as an array there."""
        return np.asarray(self.backend.to_host(x) if self.backend.is_array(x) else x)

    # --- What may be expected

    def require(self, condition: bool, expected: str, came: str) -> None:
        if not condition:
            raise Mismatch(expected, came)

    def same(
        self, found: Any, expected: Any, *, what: str = "", atol: float | None = None, signs: bool = False
    ) -> None:
        """The backend's `found` is the host's `expected`: in kind, shape, dtype and, up to `atol`, in value.

        nan is equal to nan. Both may be None, or tuples. `signs` tells 0 from -0.
        """
        if isinstance(expected, tuple):
            is_so = isinstance(found, tuple) and len(found) == len(expected)
            self.require(is_so, f"{what}a tuple of {len(expected)}", self.described(found))
            for i, (one, other) in enumerate(zip(found, expected, strict=True)):
                self.same(one, other, what=f"{what}result {i}: ", atol=atol, signs=signs)
        elif expected is None:
            self.require(found is None, f"{what}None", self.described(found))
        else:
            wanted = np.asarray(expected)
            self.is_array(found, wanted.shape, str(wanted.dtype), what)
            gaps = self.same_values(self.host(found), wanted, what=what, atol=atol, signs=signs)
            if wanted.dtype.kind == "f":
                dtype, largest = str(wanted.dtype), float(np.max(gaps, initial=0.0))
                self.differences[dtype] = max(self.differences.get(dtype, 0.0), largest)

    def is_array(self, found: Any, shape: Shape, dtype: str, what: str = "") -> None:
        """`found` is an array of the backend, of this shape and dtype, and says so where the library asks it."""
        wanted = f"{what}an array of the backend, {dtype} {shape}"
        if not self.backend.is_array(found):
            scalar = not shape and self.last is not None and self.last[0] in _ELEMENTWISE and hasattr(found, "dtype")
            self.require(scalar, wanted, f"{type(found).__module__}.{type(found).__name__}: {self.described(found)}")
            found = self.backend.asarray(found)
        facts = (type(found.shape), found.shape, str(found.dtype), found.ndim, found.size)
        is_so = facts == (tuple, shape, dtype, len(shape), prod(shape))
        self.require(is_so, wanted, f"{found.dtype} {found.shape}, ndim {found.ndim}, size {found.size}")
        kind, width = np.dtype(dtype).kind, np.dtype(dtype).itemsize
        is_so = (found.dtype.kind, found.dtype.itemsize) == (kind, width) and found.dtype == dtype
        self.require(is_so, f"{what}a dtype equal to {dtype!r}, of kind {kind!r}, itemsize {width}", repr(found.dtype))

    def same_values(
        self, found: HostArray, expected: HostArray, *, what: str = "", atol: float | None = None, signs: bool = False
    ) -> HostArray:
        """Two host arrays of one shape are equal up to `atol`. Returns how far they are apart."""
        same = (found == expected) | ((found != found) & (expected != expected))
        gaps = np.zeros(same.shape)
        if expected.dtype.kind == "f":
            np.copyto(gaps, np.abs(np.subtract(found, expected, dtype=np.float64)), where=~same)
            gaps[np.isnan(gaps)] = np.inf  # one of the two is nan
            same = gaps <= (TOLERANCE.get(str(expected.dtype), 0.0) if atol is None else atol)
            if signs:
                same &= np.isnan(expected) | (np.signbit(found) == np.signbit(expected))
        if not same.all():
            worst = int(np.argmax(np.where(same, -1.0, gaps)))
            place = tuple(int(i) for i in np.unravel_index(worst, same.shape))
            at = f" at {place}" if place else ""
            count = f"; {np.count_nonzero(~same)} of {same.size} elements are off" if place else ""
            raise Mismatch(f"{what}{expected[place]!r}{at}", f"{found[place]!r}{count}")
        return gaps

    def raises(self, error: type[Exception], word: str, function: Callable[..., Any], *args: Any) -> None:
        """function(*args) raises this error, and its message has `word` in it."""
        wanted = error.__name__ + (f" that says {word!r}" if word else "")
        try:
            result = function(*args)
        except Exception as raised:
            self.require(isinstance(raised, error) and word in str(raised), wanted, _words(raised))
        else:
            raise Mismatch(wanted, f"no error, but {self.described(result)}")

    # --- Words for the report

    def called(self) -> str:
        """The last call, and how the arrays lay."""
        if self.last is None:
            return "nothing yet"
        name, args, kwargs = self.last
        in_place = name.endswith("_step")  # so what was given is gone
        words = [self.described(arg, not in_place) for arg in args]
        words += [f"{key}={self.described(value, not in_place)}" for key, value in kwargs.items()]
        return f"{name}({', '.join(words)})" + (f" on {self.view.title} views" if self.view is not CONTIGUOUS else "")

    def described(self, x: Any, values: bool = True) -> str:
        """An argument or result: of arrays dtype and shape and, if they are small and `values`, what is in them."""
        if isinstance(x, (tuple, list)):
            parts = ", ".join(self.described(part, values) for part in x)
            return f"[{parts}]" if isinstance(x, list) else f"({parts})"
        if not hasattr(x, "dtype") or not hasattr(x, "shape"):
            return repr(x)
        words = f"{x.dtype} {tuple(x.shape)}"
        if not values or not 0 < x.size <= 8:
            return words
        try:
            return f"{words} {self.host(x).tolist()}"
        except Exception:  # to_host may be what is broken
            return words


class _Noting:
    """A backend whose last call its trial knows of."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._trial.backend, name)
        if not callable(value):
            return value

        def noted(*args: Any, **kwargs: Any) -> Any:
            self._trial.last = (name, args, kwargs)
            return value(*args, **kwargs)

        return noted


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
