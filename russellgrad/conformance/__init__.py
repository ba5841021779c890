"""Does a backend keep the contract `russellgrad.backend.Backend`? A public suite of cases, for any backend.

    python -m russellgrad.conformance mypackage.my_backend

or, from Python, `check("mypackage.my_backend")`, and each of `cases()` as a test of its own. NumPy's backend is the
reference: values agree with its within 1e-12 in float64 and 2e-5 in float32, for random data of the order of 1.
"""

from .report import Report, cases, check
from .trial import TOLERANCE, Case, Outcome

__all__ = ["TOLERANCE", "Case", "Outcome", "Report", "cases", "check"]
