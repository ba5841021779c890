"""A program of benchmarks.peers. It needs only NumPy and the program's library."""

from collections.abc import Callable
from importlib import import_module

import numpy as np


def program(module: str, task: str, data_file: str, length: str) -> Callable[[], float]:
    """Function `task` of benchmarks.peers.<module>, on the arrays of an .npz file, for `length` steps or epochs."""
    run = getattr(import_module(f"benchmarks.peers.{module}"), task)
    with np.load(data_file) as arrays:
        data = list(arrays.values())
    return lambda: float(run(*data, int(length)))
