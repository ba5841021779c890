"""What a training step is compared with: a large product, a copy in memory, and the primitives of the step itself."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import prod
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np

from benchmarks.candidates import ours
from benchmarks.candidates.model import Array, random
from russellgrad import get_backend
from russellgrad.backend import PRIMITIVES

ROWS = 3072  # rows and columns of the large product
COPIED = 256 << 20  # bytes

# Of one step: its seconds; primitive -> calls, seconds, operations of its products, bytes of its arrays.
Step: TypeAlias = tuple[float, dict[str, list[float]]]


def product(threads: str) -> Callable[[], None]:
    """A product of ROWS x ROWS, in the threads of the "BLAS", or in those of the "library" (its `linear`)."""
    a, b = random(ROWS, ROWS), random(ROWS, ROWS, seed=1)
    multiply: Callable[..., Any] = np.matmul if threads == "BLAS" else partial(get_backend().linear, bias=None)

    def call() -> None:
        multiply(a, b)

    return call


def copy(threads: str) -> Callable[[], None]:
    """A copy of COPIED bytes, in several threads."""
    source, target = np.ones(COPIED, np.uint8), np.zeros(COPIED, np.uint8)
    pairs = list(zip(np.split(target, int(threads)), np.split(source, int(threads)), strict=True))
    pool = ThreadPoolExecutor(int(threads))

    def call() -> None:
        list(pool.map(lambda pair: np.copyto(*pair), pairs))

    return call


def primitives(size: str, kind: str) -> Callable[[], Callable[[], list[Step]]]:
    """A training step whose primitives are "timed", or "counted", too: a Step for each one since the last result.

    A primitive that another one calls is a part of it.
    """
    step = ours.train_step(size, "whole")  # the timers are of one thread
    step()  # the optimizer's first step prepares its arrays
    steps: list[Step] = []
    record: dict[str, list[float]] = {}
    inside = False

    def wrap(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def primitive(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside:
                return function(*args, **kwargs)
            inside = True
            start = perf_counter()
            result = function(*args, **kwargs)
            seconds = perf_counter() - start
            entry = record.setdefault(name, [0, 0.0, 0, 0])
            entry[0] += 1
            entry[1] += seconds
            if kind == "counted":
                entry[2] += OPERATIONS[name](*args) if name in OPERATIONS else 0
                entry[3] += bytes_moved(args, result)
            inside = False
            return result

        return primitive

    backend = vars(get_backend())
    backend.update({name: wrap(name, backend[name]) for name in PRIMITIVES if callable(backend.get(name))})

    def call() -> Callable[[], list[Step]]:
        record.clear()
        start = perf_counter()
        step()
        steps.append((perf_counter() - start, {name: list(entry) for name, entry in record.items()}))
        return lambda: [steps.pop(0) for _ in range(len(steps))]

    return call


def _scores(q: Array, k: Array) -> float:
    """Multiplications and additions of one product of causal attention, which needs the scores j <= i only."""
    return q.size * (k.shape[-2] + 1)


# Backward of attention has four products. A fifth, which computes the scores again, saves memory and is not counted.
OPERATIONS: dict[str, Callable[..., float]] = {
    "matmul": lambda a, b: 2 * a.size * b.shape[-1],
    "linear": lambda x, weight, bias: 2 * x.size * weight.shape[-1],
    "linear_backward": lambda g, x, weight, needs: 2 * g.size * weight.shape[0] * sum(needs[:2]),
    "attention": lambda q, k, *rest: 2 * _scores(q, k),
    "attention_backward": lambda g, q, k, *rest: 4 * _scores(q, k),
}


def bytes_moved(args: Any, result: Any) -> float:
    """The bytes of the operands, read once, and of the results, written once.

    0 if the results are views of operands, or no arrays (as of `dtype`). `assign` has no result, and reads and writes.
    """
    operands = {id(array): array for array in _arrays(args)}
    results = list(_arrays(result))
    new = [x for x in results if id(x) in operands or not any(np.may_share_memory(x, y) for y in operands.values())]
    if not new and result is not None:
        return 0
    return sum(map(_bytes, [*operands.values(), *new]))


def _arrays(x: Any) -> Iterator[Array]:
    if isinstance(x, np.ndarray):
        yield x
    elif isinstance(x, tuple | list):
        for item in x:
            yield from _arrays(item)


def _bytes(x: Array) -> int:
    """Without axes along which the elements are repeated, as `broadcast_to` makes them."""
    return x.itemsize * prod(n for n, stride in zip(x.shape, x.strides, strict=True) if stride)
