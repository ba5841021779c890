"""Check a backend against the contract in `russellgrad.backend`: a suite of cases, for any backend.

    python -m russellgrad.conformance mypackage.my_backend

From Python, use `check("mypackage.my_backend")`, or make each of `cases()` a test.

What the expected values are:

- of a core primitive, what NumPy's own function gives for the same arrays, in the same dtype;
- of a derived primitive, what its formula in `backends/formulas.py` gives on NumPy in float64, for the same arrays
  widened to float64; the result is rounded to the dtype of the case.

The reference backend that computes both has NumPy's functions for the core primitives and formulas for all others. A
backend without derived primitives of its own shares these formulas, so it is checked by the core cases, and by finite
differences: every gradient is compared with central differences of the backend's own forward.

Values agree within 1e-12 in float64 and 2e-5 in float32, absolute, for random data of the order of 1. For elementwise
primitives the tolerance is multiplied by max(1, |expected|), because a function such as exp grows. In float16 and
bfloat16 they agree within one rounding of the result in float64. A case that needs an optional primitive or a dtype
which the backend lacks is skipped, and reported as skipped.
"""

from .report import Report, cases, check
from .trial import TOLERANCE, Case, Outcome

__all__ = ["TOLERANCE", "Case", "Outcome", "Report", "cases", "check"]
