"""All-reduce over several CUDA devices, by NCCL through CuPy. MPI starts the processes; each has one device."""

from typing import Any, TypeAlias

import cupy
import cupyx.distributed

Array: TypeAlias = Any


class Nccl:
    """The communicator of `size` processes, of which this one is `rank`.

    Raises:
        RuntimeError: CuPy has no NCCL. ImportError: mpi4py is not installed.
    """

    def __init__(self, rank: int, size: int) -> None:
        self._backend = cupyx.distributed.NCCLBackend(size, rank, use_mpi=True)

    def all_reduce(self, array: Array) -> None:
        """Replace a contiguous array by the sum over all processes, in place, on the current stream."""
        self._backend.all_reduce(array, array, op="sum", stream=cupy.cuda.get_current_stream())


def use_device(local_rank: int) -> None:
    """Make device number `local_rank` the current one. Raises RuntimeError if this machine has too few devices."""
    count = cupy.cuda.runtime.getDeviceCount()
    if local_rank >= count:
        raise RuntimeError(
            f"process {local_rank} of this machine has no CUDA device of its own: there are {count} devices; start one "
            "process per device"
        )
    cupy.cuda.Device(local_rank).use()
