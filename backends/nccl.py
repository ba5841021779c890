"""All-reduce over several CUDA devices, by NCCL through CuPy. MPI starts the processes; each has one device."""

import importlib
from typing import Any, TypeAlias

import cupy

Array: TypeAlias = Any


class Nccl:
    """The communicator of `size` processes, of which this one is `rank`.

    `use_device` has checked that CuPy finds NCCL: a process without it would let the others wait forever.
    """

    def __init__(self, rank: int, size: int) -> None:
        distributed = importlib.import_module("cupyx.distributed")  # warns if there is no NCCL
        self._backend = distributed.NCCLBackend(size, rank, use_mpi=True)

    def all_reduce(self, array: Array) -> None:
        """Replace a contiguous array by the sum over all processes, in place, on the current stream."""
        self._backend.all_reduce(array, array, op="sum", stream=cupy.cuda.get_current_stream())


def use_device(local_rank: int) -> str:
    """Make device number `local_rank` the current one, or the only one that this process sees.

    A launcher may show each process its own device only, by CUDA_VISIBLE_DEVICES.

    Returns:
        The address of the device on the PCI bus, which tells the devices of a machine apart.

    Raises:
        RuntimeError: CuPy finds no NCCL, or this machine has too few devices.
    """
    if not importlib.import_module("cupy.cuda.nccl").available:
        major = cupy.cuda.runtime.runtimeGetVersion() // 1000
        raise RuntimeError(
            "several processes on CUDA devices need NCCL, and CuPy finds none; install it: "
            f"pip install nvidia-nccl-cu{major}, or in a checkout pip install -e '.[nccl{major}]'"
        )
    count = cupy.cuda.runtime.getDeviceCount()
    if count > 1 and local_rank >= count:
        raise RuntimeError(
            f"process {local_rank} of this machine has no CUDA device of its own: there are {count} devices; start one "
            "process per device"
        )
    device = cupy.cuda.Device(local_rank if count > 1 else 0)
    device.use()
    return str(device.pci_bus_id)
