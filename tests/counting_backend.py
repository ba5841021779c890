"""An example of a third-party backend: the NumPy backend with a counter for each primitive.

RG_BACKEND=tests.counting_backend selects it by its dotted path. A package can also name one in the entry point group
`russellgrad.backends`. `tests/core_backend.py` is the smallest backend.
"""

import functools
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from russellgrad.backend import PRIMITIVES, load_backend

name = "counting"
calls: Counter[str] = Counter()


def _counted(primitive: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def counting(*args: Any, **kwargs: Any) -> Any:
        calls[primitive] += 1
        return function(*args, **kwargs)

    return counting


for _primitive in PRIMITIVES:
    if _primitive != "name" and hasattr(load_backend("numpy"), _primitive):
        setattr(sys.modules[__name__], _primitive, _counted(_primitive, getattr(load_backend("numpy"), _primitive)))
