"""Settings that must be in place before NumPy is imported."""

import os
from collections.abc import Sequence

_LOCAL_SIZES = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")  # set by MPICH and Intel MPI, by Open MPI


def env_int(names: Sequence[str], default: int) -> int:
    """The value of the first of these environment variables that is set to a number."""
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdecimal()), default)


def divide_cores() -> None:
    """Divide the machine's cores among the processes that `mpiexec` started on it, by OPENBLAS_NUM_THREADS.

    Without this the OpenBLAS of each process starts one thread for each core, and the processes slow each other down.
    Does nothing if OPENBLAS_NUM_THREADS or OMP_NUM_THREADS is set.
    """
    local_size = env_int(_LOCAL_SIZES, default=1)
    if local_size > 1 and "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        os.environ.setdefault("OPENBLAS_NUM_THREADS", str(max(1, cores // local_size)))
