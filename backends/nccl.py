"""Sums over several CUDA devices, by NCCL through CuPy; MPI only starts them. A process has one device."""

from typing import Any, TypeAlias

import cupy
import cupyx.distributed

Array: TypeAlias = Any


class Nccl:
    """This process's end of a communicator of `size` processes.

    Raises RuntimeError where CuPy has no NCCL, and ImportError without mpi4py.
    """

    def __init__(self, rank: int, size: int) -> None:
        self._backend = cupyx.distributed.NCCLBackend(size, rank, use_mpi=True)

    def all_reduce(self, array: Array) -> None:
        """Make a contiguous array the sum of everybody's, in place, in the order of the current stream."""
        self._backend.all_reduce(array, array, op="sum", stream=cupy.cuda.get_current_stream())


def use_device(local_rank: int) -> None:
    """Each process of a machine computes on a device of its own. Raises RuntimeError where there are too few."""
    count = cupy.cuda.runtime.getDeviceCount()
    if local_rank >= count:
        raise RuntimeError(
            f"process {local_rank} of this machine has no CUDA device of its own: there are {count}; start as many "
            "processes as devices"
        )
    cupy.cuda.Device(local_rank).use()
