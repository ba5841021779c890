"""Cases that compare the values of one call with the expected ones."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..backend import ELEMENTWISE
from .trial import TOLERANCE, Case, Trial, expected
from .views import HostArray, arrays_in, typed

inf, nan = math.inf, math.nan
special = np.array([0.0, -0.0, 1.0, -2.0, inf, -inf, nan])
Call = Callable[..., Any]  # (xp, *arguments) -> the result


def normal(*shape: int, seed: int = 0) -> HostArray:
    return np.asarray(np.random.default_rng(seed).normal(size=shape))


def dtypes_of(*args: Any) -> tuple[str, ...]:
    """The float dtypes to run these arguments in; "" if none of them is a float array."""
    return tuple(TOLERANCE) if any(a.dtype.kind == "f" for a in arrays_in(args)) else ("",)


def titled(title: str, dtype: str) -> str:
    return f"{title}, {dtype}" if dtype else title


def values(
    primitive: str, title: str, *args: Any, call: Call | None = None, atol: float | None = None, signs: bool = False
) -> Iterator[Case]:
    """primitive(*args) gives the expected values, in float64 and float32 and for every view of the arrays.

    `call(xp, *args)` is called instead, if it is given. For an elementwise primitive the tolerance is relative to
    large values, because it may grow, as exp does.
    """
    made = call or (lambda xp, *args: getattr(xp, primitive)(*args))
    for dtype in dtypes_of(*args):
        given = typed(args, dtype)

        def body(t: Trial, given: tuple[Any, ...] = given) -> None:
            for hosts in t.each_view(*given):
                found, wanted = made(t.xp, *t.move(hosts)), expected(primitive, made, *hosts)
                t.same(found, wanted, atol=atol, signs=signs, relative=primitive in ELEMENTWISE)

        yield Case(primitive, titled(title, dtype), body)
