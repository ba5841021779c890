"""What must be settled before NumPy is imported."""

import os

_LOCAL_SIZES = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")  # of MPICH and Intel MPI, of Open MPI


def share_cores() -> None:
    """Share this machine's cores out among the processes that `mpiexec` started on it.

    Unless OPENBLAS_NUM_THREADS or OMP_NUM_THREADS say how.

    NumPy's OpenBLAS starts a thread for each core otherwise, in each of them, and they get in each other's way.
    """
    local = next((int(os.environ[name]) for name in _LOCAL_SIZES if os.environ.get(name, "").isdecimal()), 1)
    if local > 1 and "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        os.environ.setdefault("OPENBLAS_NUM_THREADS", str(max(1, cores // local)))
