"""RussellGrad's training step in float64 on the formulas: a backend of NumPy's core primitives."""

from collections.abc import Callable
from types import ModuleType

import numpy as np

from benchmarks.candidates import ours
from russellgrad import set_backend
from russellgrad.backend import CORE, load_backend


def train_step(size: str) -> Callable[[], float]:
    module, numpy = ModuleType("formulas_alone"), load_backend("numpy")
    vars(module).update({name: getattr(numpy, name) for name in CORE} | {"name": "formulas", "matmul": np.matmul})
    set_backend(module)
    return ours.train_step(size, "whole", "float64")
