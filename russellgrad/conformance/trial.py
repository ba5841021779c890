"""Run a case on a backend: call its primitives, and compare the results with the expected values.

Everything here goes through the contract alone, so it works for the arrays of any backend. NumPy is on the host's side.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any, cast
from unittest import SkipTest

import numpy as np

from ..backend import CORE, DERIVED, OPTIONAL, Array, Backend, LoadedBackend, Shape, load_backend, resolve_backend
from .views import CONTIGUOUS, VIEWS, HostArray, arrays_in, each, typed

TOLERANCE = {"float64": 1e-12, "float32": 2e-5}  # for data of the order of 1; other dtypes must be equal
EPS = {
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
}  # the spacing of half precision above 1; the rounding error is half of it


def _reference() -> Backend:
    """NumPy's functions for the core primitives, and formulas for all others."""
    numpy, module = load_backend("numpy"), ModuleType(f"{__package__}.reference")
    core = {name: getattr(numpy, name) for name in CORE}
    vars(module).update({**core, "name": "reference", "matmul": np.matmul})
    return resolve_backend(module)


reference = _reference()


def expected(primitive: str, call: Callable[..., Any], *args: Any) -> Any:
    """What call(xp, *args) should give, for host arrays: see the package's docstring. A host array, or a tuple."""
    if primitive not in DERIVED:
        return call(reference, *args)
    dtype = next((str(a.dtype) for a in arrays_in(args) if a.dtype.kind == "f"), "")
    return _rounded(call(reference, *typed(args, "float64")), dtype)


def _rounded(x: Any, dtype: str) -> Any:
    if isinstance(x, tuple):
        return tuple(_rounded(part, dtype) for part in x)
    return typed(np.asarray(x), dtype) if isinstance(x, (np.ndarray, np.generic)) else x


class _Missing(Exception):  # noqa: N818 - the case does not apply
    """The case uses a dtype which the backend's device does not have; `args` has its name."""


class Mismatch(AssertionError):  # noqa: N818 - a finding of the suite, not an error in it
    """The result of the backend differs from the expected one."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.expected, self.got = expected, got


@dataclass(frozen=True)
class Outcome:
    """The result of a case: passed, failed or skipped.

    Attributes:
        case: the case.
        differences: the largest differences from the expected values, by dtype.
        called, expected, got: what failed, as text; empty unless the case failed.
        missing: the optional primitives and dtypes that the case needs and the backend lacks.
    """

    case: "Case"
    differences: dict[str, float]
    called: str = ""
    expected: str = ""
    got: str = ""
    missing: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether the backend's result differs from the expected one, or a primitive raised an error."""
        return bool(self.expected)

    @property
    def skipped(self) -> bool:
        """Whether the backend lacks an optional primitive, or a dtype, that the case needs."""
        return bool(self.missing)

    @property
    def passed(self) -> bool:
        """Whether the case ran and did not fail."""
        return not (self.failed or self.skipped)

    def __str__(self) -> str:
        if self.skipped:
            return f"skipped  {self.case}: no {', '.join(self.missing)}"
        if self.passed:
            return f"passed  {self.case}"
        return f"FAILED  {self.case}\n  called    {self.called}\n  expected  {self.expected}\n  got       {self.got}"


@dataclass(frozen=True)
class Case:
    """One requirement of the contract on a primitive.

    Attributes:
        primitive: its name in the contract; "Tensor" for what a Tensor requires of several.
        title: what is required.
        body: the function that checks it.
        needs: the names of other optional primitives that the case uses.
    """

    primitive: str
    title: str
    body: Callable[["Trial"], None] = field(repr=False)
    needs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.primitive}: {self.title}"

    def run(self, backend: str | ModuleType | Backend) -> Outcome:
        """Run the case. Raises as `load_backend` does; an error in a primitive is a failure of the case."""
        xp = resolve_backend(backend)
        needed = (self.primitive, *self.needs) if self.primitive in OPTIONAL else self.needs
        missing = tuple(name for name in needed if not hasattr(xp, name))
        trial = Trial(xp if "float64" in xp.float_dtypes() else cast(Backend, _WithoutFloat64(xp)))
        if missing:
            return Outcome(self, {}, missing=missing)
        try:
            with np.errstate(all="ignore"):  # some cases compute nan and inf
                self.body(trial)
        except _Missing as lacking:
            return Outcome(self, {}, missing=lacking.args)
        except Mismatch as mismatch:
            return Outcome(self, trial.differences, trial.called(), mismatch.expected, mismatch.got)
        except Exception as error:
            return Outcome(self, trial.differences, trial.called(), "no error", _message(error))
        return Outcome(self, trial.differences)

    def check(self, backend: str | ModuleType | Backend) -> None:
        """Run the case as a test.

        Raises:
            AssertionError: the backend fails the case; says what was called, expected and got.
            unittest.SkipTest: the backend lacks an optional primitive that the case needs. pytest skips the test.
        """
        outcome = self.run(backend)
        if outcome.skipped:
            raise SkipTest(f"{self}: the backend has no {', '.join(outcome.missing)}")
        if outcome.failed:
            raise AssertionError(str(outcome))


class Trial:
    """A backend while a case runs on it. `xp` is the backend too, and notes its last call for the report."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.xp = cast(Backend, _Noting(self))
        self.differences: dict[str, float] = {}
        self.last: tuple[str, tuple[Any, ...], dict[str, Any]] | None = None
        self.view = CONTIGUOUS  # the layout that `move` gives arrays
        self._watched: list[tuple[HostArray, Array]] = []  # moved arrays, which must stay unchanged

    # --- To the backend and back

    def each_view(self, *args: Any) -> Iterator[tuple[Any, ...]]:
        """The host arguments, once for every view: `move` then gives arrays its layout. They must stay unchanged."""
        for view in VIEWS if any(a.ndim for a in arrays_in(args)) else (CONTIGUOUS,):
            self.view = view
            self._watched.clear()
            yield each(args, view.values)
            for host, moved in self._watched:
                if not np.array_equal(host, self.host(moved), equal_nan=host.dtype.kind == "f"):
                    raise Mismatch("operands unchanged", f"{self.host(moved)!r} instead of {host!r}")
        self.view = CONTIGUOUS

    def move(self, x: Any, watched: bool = True) -> Any:
        """Host arrays to the backend's: one, or those in a tuple or list. Everything else is returned unchanged."""

        def laid_out(a: HostArray) -> Array:
            if a.dtype == np.uint64 and a.ndim == 1:  # a key of a draw, made as the library makes it
                return self.backend.host_scalars(a.tolist(), "uint64")
            moved = self.view.lay(self.backend, a) if a.ndim else CONTIGUOUS.lay(self.backend, a)
            if watched:
                self._watched.append((np.array(a), moved))
            return moved

        return each(x, laid_out)

    def host(self, x: Array) -> HostArray:
        """A result on the host."""
        return np.asarray(self.backend.to_host(x if self.backend.is_array(x) else self.backend.asarray(x)))

    # --- Dtypes

    def floats(self) -> list[str]:
        """Those of float64 and float32 that the backend has."""
        return [dtype for dtype in TOLERANCE if dtype in self.backend.float_dtypes()]

    def halves(self) -> list[str]:
        """The names of the half precisions that the backend has: float16, bfloat16."""
        return [dtype for dtype in self.backend.float_dtypes() if dtype not in TOLERANCE]

    def half(self, a: HostArray, dtype: str) -> Array:
        """`a` in half precision, by way of float32, which every backend has."""
        return self.backend.astype(self.backend.asarray(a.astype("float32")), dtype)

    # --- Checks

    def require(self, condition: bool, expected: str, got: str) -> None:
        if not condition:
            raise Mismatch(expected, got)

    def same(
        self,
        found: Any,
        expected: Any,
        *,
        what: str = "",
        atol: float | None = None,
        signs: bool = False,
        relative: bool = False,
    ) -> None:
        """The backend's `found` equals the host's `expected` in kind, shape, dtype and, up to `atol`, in value.

        nan is equal to nan. Both may be None, or tuples. With `relative`, the tolerance is atol * max(1, |expected|).
        With `signs`, 0 and -0 differ.
        """
        if isinstance(expected, tuple):
            is_so = isinstance(found, tuple) and len(found) == len(expected)
            self.require(is_so, f"{what}a tuple of {len(expected)}", self.described(found))
            for i, (one, other) in enumerate(zip(found, expected, strict=True)):
                self.same(one, other, what=f"{what}result {i}: ", atol=atol, signs=signs, relative=relative)
        elif expected is None:
            self.require(found is None, f"{what}None", self.described(found))
        else:
            wanted = np.asarray(expected)
            if wanted.dtype == np.float64 and isinstance(self.backend, _WithoutFloat64):
                raise _Missing("float64")
            self.is_array(found, wanted.shape, str(wanted.dtype), what)
            gaps = self.same_values(self.host(found), wanted, what=what, atol=atol, signs=signs, relative=relative)
            if wanted.dtype.kind == "f":
                self._note_difference(str(wanted.dtype), gaps)

    def same_half(self, found: Any, expected: Any, dtype: str, *, atol: float, relative: bool = False) -> None:
        """An array in half precision equals the host's `expected`, computed in float64. As `same`; bools are equal."""
        what, wanted = f"{dtype}: ", np.asarray(expected)
        if wanted.dtype.kind != "f":
            return self.same(found, wanted, what=what)
        self.is_array(found, wanted.shape, dtype, what)
        values = self.host(self.backend.astype(found, "float32"))
        self._note_difference(dtype, self.same_values(values, wanted, what=what, atol=atol, relative=relative))

    def _note_difference(self, dtype: str, gaps: HostArray) -> None:
        self.differences[dtype] = max(self.differences.get(dtype, 0.0), float(np.max(gaps, initial=0.0)))

    def is_array(self, found: Any, shape: Shape, dtype: str, what: str = "") -> None:
        """`found` is an array of the backend with this shape and dtype; without axes, it may be a scalar."""
        wanted = f"{what}an array of the backend, {dtype} {shape}"
        if not self.backend.is_array(found):
            may_be_scalar = self.last is not None and self.last[0] not in ("asarray", "copy")
            scalar = not shape and may_be_scalar and hasattr(found, "shape")
            self.require(scalar, wanted, f"{type(found).__module__}.{type(found).__name__}: {self.described(found)}")
        found_dtype = self.backend.dtype(found)
        facts = (isinstance(found.shape, tuple), found.shape, found.ndim, str(found_dtype))
        wrong = f"{found_dtype} {found.shape!r}, ndim {found.ndim}"
        self.require(facts == (True, shape, len(shape), dtype), wanted, wrong)
        self.require(isinstance(found_dtype, np.dtype), f"{what}numpy.dtype({dtype!r}) as dtype", repr(found_dtype))

    def same_values(
        self,
        found: HostArray,
        expected: HostArray,
        *,
        what: str = "",
        atol: float | None = None,
        signs: bool = False,
        relative: bool = False,
    ) -> HostArray:
        """Two host arrays of one shape are equal up to `atol`.

        Returns the differences; with `relative`, divided by max(1, |expected|).
        """
        same = (found == expected) | ((found != found) & (expected != expected))
        gaps = np.zeros(same.shape)
        if expected.dtype.kind == "f":
            np.copyto(gaps, np.abs(np.subtract(found, expected, dtype=np.float64)), where=~same)
            gaps[np.isnan(gaps)] = np.inf  # one of the two is nan
            if relative:
                gaps /= np.where(np.isfinite(expected), np.maximum(1.0, np.abs(expected)), 1.0)
            same = gaps <= (TOLERANCE.get(str(expected.dtype), 0.0) if atol is None else atol)
            if signs:
                same &= np.isnan(expected) | (np.signbit(found) == np.signbit(expected))
        if not same.all():
            worst = int(np.argmax(np.where(same, -1.0, gaps)))
            place = tuple(int(i) for i in np.unravel_index(worst, same.shape))
            at = f" at {place}" if place else ""
            count = f"; {np.count_nonzero(~same)} of {same.size} elements differ" if place else ""
            raise Mismatch(f"{what}{expected[place]!r}{at}", f"{found[place]!r}{count}")
        return gaps

    def raises(self, error: type[Exception], word: str, function: Callable[..., Any], *args: Any) -> None:
        """function(*args) raises this error, and its message has `word` in it."""
        wanted = error.__name__ + (f" that says {word!r}" if word else "")
        try:
            result = function(*args)
        except Exception as raised:
            self.require(isinstance(raised, error) and word in str(raised), wanted, _message(raised))
        else:
            raise Mismatch(wanted, f"no error, but {self.described(result)}")

    # --- Descriptions for the report

    def called(self) -> str:
        """The last call, and the layout of its arrays."""
        if self.last is None:
            return "no primitive"
        name, args, kwargs = self.last
        in_place = name.endswith("_step")  # the given values may be overwritten
        words = [self.described(arg, not in_place) for arg in args]
        words += [f"{key}={self.described(value, not in_place)}" for key, value in kwargs.items()]
        return f"{name}({', '.join(words)})" + (f" on {self.view.title} views" if self.view is not CONTIGUOUS else "")

    def described(self, x: Any, values: bool = True) -> str:
        """An argument or result. Of an array: its dtype and shape, and with `values` the elements of a small one."""
        if isinstance(x, (tuple, list)):
            parts = ", ".join(self.described(part, values) for part in x)
            return f"[{parts}]" if isinstance(x, list) else f"({parts})"
        try:
            own = self.backend.is_array(x)
            if not own and not isinstance(x, np.ndarray):
                return repr(x)
            words = f"{self.backend.dtype(x) if own else x.dtype} {tuple(x.shape)}"
            elements = self.host(x)
            return f"{words} {elements.tolist()}" if values and 0 < elements.size <= 8 else words
        except Exception:  # is_array, dtype or to_host may be what is wrong
            return f"{type(x).__name__} {getattr(x, 'shape', '')}".rstrip()


class _WithoutFloat64(LoadedBackend):
    """A backend whose device has no float64, and maybe no unsigned integers.

    A call by a case that asks for them, where the backend's error says so, ends the case. An error about another dtype
    than the call asks for is a failure: it comes from a primitive that uses float64 for a result in float32.
    """

    def __init__(self, backend: Backend) -> None:
        vars(self).update(vars(backend))
        for name in ("asarray", "astype", "full", "zeros", "normal", "uniform", "dropout_mask"):
            vars(self)[name] = partial(self._checked, getattr(backend, name))

    def _checked(self, primitive: Callable[..., Any], *args: Any) -> Any:
        try:
            return primitive(*args)
        except TypeError as error:
            lacking = [dtype for dtype in ("float64", "uint16", "uint32", "uint64") if f"has no {dtype}" in str(error)]
            # The last argument is the dtype, but for asarray(data).
            if lacking and (np.asarray(args[0]).dtype if len(args) == 1 else np.dtype(args[-1])).name in lacking:
                raise _Missing(*lacking) from error
            raise


class _Noting:
    """A backend that notes its last call in a Trial."""

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


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
