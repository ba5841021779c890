"""Data parallelism over threads: each thread computes the gradient of a part of the batch.

The backends divide large operations over threads. Dividing the batch instead takes fewer switches between threads: each
thread runs the whole forward and backward pass of its part, and waits for the others once.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

from . import apply
from .autograd import CollectedGrads, add_collected, collect_grads
from .backend import get_backend
from .random import CopiedStates, copied_states, keep_last_states
from .replay import is_recording
from .tensor import Tensor

PartT = TypeVar("PartT")


MIN_FLOPS = 1.5e9  # of a part; with less, contention for Python's GIL costs more than another thread saves


def n_parts(rows: int, flops: float) -> int:
    """The number of equal parts into which to divide a batch of `rows` rows for `parallel_backward`.

    It is the largest divisor of `rows` that is at most the number of threads of the current backend and leaves each
    part at least 1.5 GFLOP. For smaller parts, contention for Python's global interpreter lock (GIL) costs more than
    another thread saves (benchmarks/README.md).

        n_parts(12, 6 * n_parameters * n_tokens)

    Args:
        rows: the number of rows of the batch.
        flops: the floating-point operations of forward and backward for these rows: about 6 for each parameter and
            token in a transformer (Kaplan et al., "Scaling laws for neural language models", arXiv:2001.08361,
            section 2.1).
    """
    xp = get_backend()
    most = min(xp.n_threads(), int(flops / MIN_FLOPS)) if hasattr(xp, "n_threads") else 1
    return max((n for n in range(1, min(rows, most) + 1) if rows % n == 0), default=1)


def parallel_backward(loss_of: Callable[[PartT], Tensor], parts: Iterable[PartT]) -> list[Tensor]:
    """Call `loss_of(part).backward()` for each part of a batch, in several threads, and return the detached losses.

        halves = [(x[:32], y[:32]), (x[32:], y[32:])]
        losses = parallel_backward(lambda part: cross_entropy(model(part[0]), part[1]) * 0.5, halves)

    Use it in place of `loss.backward()` where `n_parts` returns more than 1, with as many parts. The gradients are
    added to `.grad` as sequential calls would add them, up to rounding: a thread takes consecutive parts, and the sums
    of the threads are added in the order of the parts. Results are bitwise reproducible for the same parts and number
    of threads. The losses of the parts must add up to that of the batch: for a mean, multiply each one by its share of
    the batch.

    With dropout, each part must know the index in the batch of its first row. It then gets the random numbers that its
    rows have in the whole batch:

        model.dropout.start_batch()

        def loss_of(part):
            model.dropout.continue_batch(part.first_row)
            return cross_entropy(model(part.x), part.y) * part.share

    The number of threads is at most that of the backend (`RG_NUM_THREADS` on NumPy and Numba). With one thread, on a
    backend without threads, and inside `trace` or `compile_step`, the parts run one after another in the caller's
    thread. Each thread needs memory for a gradient of every parameter. Gradients reach `.grad` when the call returns:
    inside `loss_of`, `.grad` does not contain them, and `zero_grad` does not clear them. After an exception, some
    `.grad`s may have changed.

    Args:
        loss_of: computes the loss of a part, a 0-d Tensor.
        parts: the parts of a batch, of about equal size: anything that `loss_of` takes.

    Raises:
        RuntimeError: in several threads, two parts drew the same random numbers, because `loss_of` did not call
            `continue_batch`; `loss_of` drew from a normal distribution; or it updated a `BatchNorm`'s running averages.
        Exception: that of `loss_of` or of backward.
    """
    parts = list(parts)
    losses: list[Any] = [None] * len(parts)

    def run(start: int, stop: int) -> None:
        for i in range(start, stop):
            loss = loss_of(parts[i])
            loss.backward()
            losses[i] = loss.detach()

    xp = get_backend()
    threads = min(len(parts), xp.n_threads()) if hasattr(xp, "run_tasks") else 1
    if apply.observer is not None or is_recording():
        threads = 1
    if threads < 2:
        run(0, len(parts))
        return losses
    collected: dict[int, CollectedGrads] = {}
    states: dict[int, CopiedStates] = {}

    def task(i: int) -> None:
        with collect_grads() as collected[i], copied_states() as states[i]:
            run(len(parts) * i // threads, len(parts) * (i + 1) // threads)

    xp.run_tasks([partial(task, i) for i in range(threads)])
    keep_last_states([states[i] for i in range(threads)])
    for i in range(threads):
        add_collected(collected[i])
    return losses
