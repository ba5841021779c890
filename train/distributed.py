"""Data-parallel training: process groups over MPI and NCCL, in the words of torch.distributed.

    mpiexec -n 4 python train/train_transformer.py

Every process has the whole model, computes the gradient for its rows of the batch, and takes the same optimizer step
with the sum of all gradients, which is one all-reduce of the optimizer's flat gradient array: by MPI on a CPU, by NCCL
on CUDA, with one device for each process of a machine. docs/distributed.md describes the costs.
"""

import hashlib
import importlib
import os
import platform
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from russellgrad.backend import Array, Backend
from russellgrad.russelltransformer import Transformer
from russellgrad.serialization import install_command

from .checkpoints import latest_checkpoint

# The launchers of MPICH and Intel MPI, and of Open MPI, set the number of processes; Slurm only sets a rank.
_WORLD_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
_PMIX_RANK = "PMIX_RANK"
_LOCAL_SIZES = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")  # set by MPICH and Intel MPI, by Open MPI
_STOP_INTERVAL = 10  # steps between two calls of `any_rank` that communicate: each takes the time of a small message


class ProcessGroup:
    """The processes of a run. This class is a group of one process, for which every operation is trivial."""

    rank, world_size = 0, 1
    run_folder: Path | None = None  # for the message of `abort_on_error`

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the files and prints."""
        return self.rank == 0

    def set_device(self, xp: Backend) -> None:
        """On CUDA, use a device that no other process of this machine uses. Raises RuntimeError if there is none."""

    def describe(self) -> str:
        """Rank, process id and host name of each process: a launcher that reports a killed process has no ranks."""
        return ""

    def check_same(self, values: Mapping[str, Any]) -> None:
        """Raise ValueError, in every process, if a value is not equal on all ranks; names it and the rank."""

    def check_same_parameters(self, model: Transformer) -> None:
        """Raise RuntimeError, in every process, if the parameters are not bitwise equal on all ranks."""

    def all_reduce(self, array: Array, xp: Backend) -> None:
        """Replace an array, in place, by its sum over all ranks."""

    def all_reduce_scalars(self, values: Sequence[float]) -> list[float]:
        """The sum of each number over all ranks."""
        return list(values)

    def any_rank(self, flag: bool, step: int) -> bool:
        """Whether the flag is set on any rank. Every rank calls this after every step.

        Several processes communicate in every tenth step only; in other steps the result is False.
        """
        return flag

    @contextmanager
    def abort_on_error(self) -> Iterator[None]:
        """In the block, an exception in one process ends all of them, with a message that names the last checkpoint."""
        yield


SINGLE_PROCESS = ProcessGroup()


class MpiProcessGroup(ProcessGroup):
    """Several processes, which communicate through mpi4py, and through NCCL for arrays on CUDA devices."""

    def __init__(self, communicator: Any) -> None:
        self._mpi, self.rank, self.world_size = communicator, communicator.Get_rank(), communicator.Get_size()
        self._nccl: Any = None
        self._aborts_on_error = False

    def set_device(self, xp: Backend) -> None:
        if xp.name != "cupy":
            return
        of_machine = self._mpi.Split_type(_mpi4py().COMM_TYPE_SHARED)  # the processes that share memory
        device = _nccl().use_device(of_machine.Get_rank())
        devices = of_machine.allgather(device)
        if devices.count(device) > 1:
            ranks = ", ".join(str(rank) for rank, other in enumerate(devices) if other == device)
            raise RuntimeError(
                f"processes {ranks} of this machine use the same CUDA device, {device}, which NCCL does not allow; "
                "start one process per device"
            )

    def describe(self) -> str:
        processes = self._mpi.allgather((os.getpid(), platform.node()))
        return "\n".join(f"rank {rank} is process {pid} on {node}" for rank, (pid, node) in enumerate(processes))

    def check_same(self, values: Mapping[str, Any]) -> None:
        gathered: list[Mapping[str, Any]] = self._mpi.allgather(dict(values))
        for rank, theirs in enumerate(gathered):
            for name, value in gathered[0].items():
                if theirs.get(name) != value:
                    raise ValueError(
                        f"the processes were started with different arguments: {name} is {value!r} on rank 0 and "
                        f"{theirs.get(name)!r} on rank {rank}; start all of them with the same ones"
                    )

    def check_same_parameters(self, model: Transformer) -> None:
        digest = hashlib.sha256()
        for array in model.state_dict().values():
            digest.update(array.tobytes())
        gathered = self._mpi.allgather(digest.hexdigest())
        different = [rank for rank, theirs in enumerate(gathered) if theirs != gathered[0]]
        if different:
            raise RuntimeError(
                f"the parameters on ranks {', '.join(map(str, different))} differ from those on rank 0, so the "
                "processes train different models; use the same libraries, processors and number of threads for all"
            )

    def all_reduce(self, array: Array, xp: Backend) -> None:
        if xp.name == "cupy":
            self._nccl = self._nccl or _nccl().Nccl(self.rank, self.world_size)
            self._nccl.all_reduce(array)
        else:  # from_dlpack shares memory with the array of any backend on the host
            self._mpi.Allreduce(_mpi4py().IN_PLACE, np.from_dlpack(array))

    def all_reduce_scalars(self, values: Sequence[float]) -> list[float]:
        total = np.array(values, np.float64)
        self._mpi.Allreduce(_mpi4py().IN_PLACE, total)
        return [float(value) for value in total]

    def any_rank(self, flag: bool, step: int) -> bool:
        return step % _STOP_INTERVAL == 0 and self.all_reduce_scalars([flag])[0] > 0

    @contextmanager
    def abort_on_error(self) -> Iterator[None]:
        outermost, self._aborts_on_error = not self._aborts_on_error, True
        try:
            yield
        except BaseException as error:
            if outermost and not (isinstance(error, SystemExit) and error.code in (None, 0)):
                self._abort(error)
            raise

    def _abort(self, error: BaseException) -> None:
        """Print the error and end all processes: the others may wait for this one forever."""
        kind = "" if isinstance(error, SystemExit) else f"{type(error).__name__}: "
        checkpoint = (latest_checkpoint(self.run_folder) if self.run_folder is not None else None) or "none"
        message = (
            f"rank {self.rank} of {self.world_size} failed, which ends the run: {kind}{error}; "
            f"last checkpoint: {checkpoint}"
        )
        if os.environ.get("RG_TRACEBACK"):
            message += "\n" + "".join(traceback.format_exception(error))
        with suppress(Exception):  # without a standard error, too, the other processes must end
            sys.stderr.write(message + "\n")  # in one call, so that the lines of two processes do not mix
            sys.stderr.flush()
        time.sleep(0.3)  # Abort discards output that the launcher has not forwarded yet
        self._mpi.Abort(1)


def _mpi4py() -> Any:
    return importlib.import_module("mpi4py.MPI")


def _nccl() -> Any:
    return importlib.import_module("russellgrad.backends.nccl")


@cache
def init_process_group() -> ProcessGroup:
    """The process group of this run: of one process, unless a launcher such as `mpiexec` started several.

    Raises:
        ImportError: several processes were started and mpi4py is not installed.
        RuntimeError: mpi4py is built on another MPI than the launcher's: each process would train alone and write the
            same files.
    """
    launched = _env_int(_WORLD_SIZES, default=1)
    if launched < 2 and _PMIX_RANK not in os.environ:
        return SINGLE_PROCESS
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise ImportError(
            f"{launched} processes were started; to train together they need the package mpi4py: "
            + install_command("mpi")
        ) from error
    size = MPI.COMM_WORLD.Get_size()
    if size < launched:
        library = MPI.Get_library_version().splitlines()[0]
        raise RuntimeError(
            f"{launched} processes were started, but mpi4py sees {size}: it is built on {library}, and the launcher "
            "belongs to another MPI; start the processes with the mpiexec of mpi4py's MPI"
        )
    if size < 2:
        return SINGLE_PROCESS
    _divide_cores()
    return MpiProcessGroup(MPI.COMM_WORLD)


def _divide_cores() -> None:
    """Divide the machine's cores among the processes that `mpiexec` started on it.

    Without this the OpenBLAS of each process uses one thread for each core, and the processes slow each other down.
    Does nothing if OPENBLAS_NUM_THREADS or OMP_NUM_THREADS is set, or if the launcher does not tell their number.
    """
    processes = _env_int(_LOCAL_SIZES, default=1)
    if processes > 1 and "OMP_NUM_THREADS" not in os.environ and "OPENBLAS_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = max(1, cores // processes)
        importlib.import_module("russellgrad.backends.cpu").set_blas_threads(threads)


def _env_int(names: Sequence[str], default: int) -> int:
    """The value of the first of these environment variables that is set to a number."""
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdecimal()), default)
