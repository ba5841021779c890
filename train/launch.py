"""What must be settled before NumPy is imported."""

import os
from collections.abc import Sequence

_LOCAL_SIZES = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")  # of MPICH and Intel MPI, of Open MPI


def first_number(names: Sequence[str], default: int) -> int:
    """Of the first of these environment variables that has one."""
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdecimal()), default)


def share_cores() -> None:
    """Share this machine's cores out among the processes that `mpiexec` started on it.

    Unless OPENBLAS_NUM_THREADS or OMP_NUM_THREADS say how.

    NumPy's OpenBLAS starts a thread for each core otherwise, in each of them, and they get in each other's way.
    """
    local = first_number(_LOCAL_SIZES, default=1)
    if local > 1 and "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        os.environ.setdefault("OPENBLAS_NUM_THREADS", str(max(1, cores // local)))
