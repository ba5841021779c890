"""Data-parallel training: the processes that `mpiexec` started, each on its share of every batch.

    mpiexec -n 4 python train/train_transformer.py

Every process has the whole model, computes the gradient of its rows of the batch, and takes the same step with the sum
of all gradients: one all-reduce of the optimizer's flat gradient buffer. On a CPU that is MPI's, on CUDA devices
NCCL's, with a device for each process of a machine. docs/distributed.md says what that costs.
"""

import hashlib
import importlib
import os
import platform
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from russellgrad.backend import Array, Backend
from russellgrad.russelltransformer import Transformer
from train.checkpoints import newest
from train.launch import first_number

# By these a launcher tells a process how many it started: MPICH and Intel MPI, Open MPI; and Slurm's, that it did.
_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
_PMIX = "PMIX_RANK"
_LOCAL_RANKS = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK")
_ASKED_EVERY = 10  # steps: a question to all takes as long as a small message does


class Team:
    """The processes of a run: here, this one alone. What is done together with others does nothing."""

    rank, size = 0, 1
    folder: Path | None = None  # of the run, once it is known

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files and speaks."""
        return self.rank == 0

    def take_device(self, xp: Backend) -> None:
        """On CUDA, choose this process's device."""

    def introduction(self) -> str:
        """Who is which process and where: a launcher that reports one killed by the system knows no ranks."""
        return ""

    def agree_on(self, what: Mapping[str, Any]) -> None:
        """Raises ValueError, in every process, if they differ in one of these; names it and the processes."""

    def all_reduce(self, gradients: Array, xp: Backend) -> None:
        """Make an array the sum of everybody's, in place."""

    def sums(self, numbers: Sequence[float]) -> list[float]:
        """The sum of everybody's, for each number."""
        return list(numbers)

    def check_equal(self, model: Transformer) -> None:
        """Raises RuntimeError, in every process, if the parameters are not the same bits everywhere."""

    def anyone(self, flag: bool, step: int) -> bool:
        """Whether somebody's flag is set. Everybody asks, at every step; several processes hear at some of them."""
        return flag

    @contextmanager
    def together(self) -> Iterator[None]:
        """In the block, an error of one process ends all of them, and says where in the run's folder to go on from."""
        yield


ALONE = Team()


class MpiTeam(Team):
    """Several processes, by the package mpi4py."""

    def __init__(self, communicator: Any) -> None:
        self._mpi, self.rank, self.size = communicator, communicator.Get_rank(), communicator.Get_size()
        self._nccl: Any = None
        self._together = False

    def take_device(self, xp: Backend) -> None:
        if xp.name == "cupy":
            _nccl().use_device(first_number(_LOCAL_RANKS, default=0))

    def introduction(self) -> str:
        everybody = self._mpi.allgather((os.getpid(), platform.node()))
        return "\n".join(f"rank {rank} is process {pid} on {node}" for rank, (pid, node) in enumerate(everybody))

    def agree_on(self, what: Mapping[str, Any]) -> None:
        everybody: list[Mapping[str, Any]] = self._mpi.allgather(dict(what))
        for rank, theirs in enumerate(everybody):
            for name, value in everybody[0].items():
                if theirs.get(name) != value:
                    raise ValueError(
                        f"the processes were started with different arguments: {name} is {value!r} on rank 0 and "
                        f"{theirs.get(name)!r} on rank {rank}; start them all alike"
                    )

    def all_reduce(self, gradients: Array, xp: Backend) -> None:
        if xp.name == "cupy":
            self._nccl = self._nccl or _nccl().Nccl(self.rank, self.size)
            self._nccl.all_reduce(gradients)
        else:  # the array's own memory, of any backend on the host
            self._mpi.Allreduce(_in_place(), np.from_dlpack(gradients))

    def sums(self, numbers: Sequence[float]) -> list[float]:
        total = np.array(numbers, np.float64)
        self._mpi.Allreduce(_in_place(), total)
        return [float(number) for number in total]

    def check_equal(self, model: Transformer) -> None:
        digest = hashlib.sha256()
        for array in model.state_dict().values():
            digest.update(array.tobytes())
        everybody = self._mpi.allgather(digest.hexdigest())
        odd = [rank for rank, theirs in enumerate(everybody) if theirs != everybody[0]]
        if odd:
            raise RuntimeError(
                f"the parameters of ranks {', '.join(map(str, odd))} are no longer those of rank 0, so the processes "
                "train different models; give all of them the same libraries, processors and number of threads"
            )

    def anyone(self, flag: bool, step: int) -> bool:
        return step % _ASKED_EVERY == 0 and self.sums([flag])[0] > 0

    @contextmanager
    def together(self) -> Iterator[None]:
        outermost, self._together = not self._together, True
        try:
            yield
        except BaseException as error:
            if outermost and not (isinstance(error, SystemExit) and error.code in (None, 0)):
                self._end(error)
            raise

    def _end(self, error: BaseException) -> None:
        """The others may wait for this process for ever, so the launcher is told to end them."""
        kind = "" if isinstance(error, SystemExit) else f"{type(error).__name__}: "
        last = (newest(self.folder) if self.folder is not None else None) or "none"
        words = f"rank {self.rank} of {self.size} failed, which ends the run: {kind}{error}; last checkpoint: {last}"
        if os.environ.get("RG_TRACEBACK"):
            words += "\n" + "".join(traceback.format_exception(error))
        sys.stderr.write(words + "\n")  # at once, so that two processes' lines do not mix
        sys.stderr.flush()
        time.sleep(0.3)  # what the launcher has not passed on when it ends the run is lost
        self._mpi.Abort(1)


def _in_place() -> Any:
    from mpi4py import MPI

    return MPI.IN_PLACE


def _nccl() -> Any:
    return importlib.import_module("russellgrad.backends.nccl")


@cache
def join() -> Team:
    """The team that this process was started in: alone, unless a launcher as `mpiexec` started several.

    Raises ImportError if one did and mpi4py is not installed, and RuntimeError if mpi4py is another MPI's than the
    launcher: each process would train alone, and write the same files.
    """
    announced = first_number(_SIZES, default=1)
    if announced < 2 and _PMIX not in os.environ:
        return ALONE
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise ImportError(
            f"{announced} processes were started, and to train together they need the package mpi4py: "
            'pip install "russellgrad[mpi]"'
        ) from error
    size = MPI.COMM_WORLD.Get_size()
    if size < announced:
        library = MPI.Get_library_version().splitlines()[0]
        raise RuntimeError(
            f"{announced} processes were started, but mpi4py sees {size}: it is built on {library}, and the launcher "
            "is another MPI's; start them with the mpiexec of that one"
        )
    return MpiTeam(MPI.COMM_WORLD) if size > 1 else ALONE
