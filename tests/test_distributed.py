"""Distributed training with a real mpiexec: equality with a single process, refused arguments, and failures."""

import importlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.scaling import launcher
from russellgrad import use_backend
from russellgrad.bpe import BPE
from tests.process import run_python, running
from tests.test_train import SMALL, flags
from train import distributed, tokens, train_transformer
from train.checkpoints import find
from train.config import Config
from train.data import split_batch
from train.distributed import MpiProcessGroup
from train.metrics import read_metrics
from train.train_transformer import train

pytest.importorskip("safetensors")

MPIEXEC = launcher()
with_mpi = pytest.mark.skipif(
    MPIEXEC is None or importlib.util.find_spec("mpi4py") is None,
    reason="no mpiexec or no mpi4py here; pip install mpi4py mpich",
)
RUN: dict[str, Any] = {**SMALL, "batch": 8, "steps": 20, "eval_interval": 10, "dropout": 0.2, "attention_dropout": 0.2,
                       "dtype": "float64"}  # fmt: skip


def start(ranks: int, *arguments: str, **environment: str) -> "AbstractContextManager[subprocess.Popen[str]]":
    """Start `mpiexec -n ranks python *arguments`, without environment variables inherited from another launcher."""
    assert MPIEXEC is not None
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RG_", "PMI", "MPI", "OMPI"))}
    return running(
        MPIEXEC, "-n", str(ranks), sys.executable, *arguments, text=True,
        env={**inherited, "RG_BACKEND": "numpy", "OPENBLAS_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def run_ranks(ranks: int, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    with start(ranks, *arguments, **environment) as process:
        output, errors = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


TRAIN = "train/train_transformer.py"


@with_mpi
@pytest.mark.parametrize(
    ("ranks", "accumulate", "optimizer"),
    [(2, 1, "adamw"), (2, 2, "adamw"), (4, 1, "adamw"), (4, 2, "adamw"), (2, 1, "lion"), (2, 1, "muon")],
)
def test_a_distributed_run_equals_a_single_process_run(
    text: str, tmp_path: Path, ranks: int, accumulate: int, optimizer: str
) -> None:
    """With dropout, whose draws depend on the sample only. Compares losses and gradient norms."""
    options: dict[str, Any] = {**RUN, "optimizer": optimizer}
    with use_backend("numpy"):
        whole = train(dataset=text, out=str(tmp_path / "one"), **options)
    done = run_ranks(ranks, TRAIN, *flags(**options, dataset=text, out=tmp_path / "several", accumulate=accumulate))
    assert done.returncode == 0, done.stderr
    history = read_metrics(tmp_path / "several")
    np.testing.assert_allclose(history.losses, whole.losses, rtol=0, atol=1e-10)
    np.testing.assert_allclose(history.gradient_norms, read_metrics(tmp_path / "one").gradient_norms, rtol=0, atol=1e-9)
    found = find(tmp_path / "several").state["validation_losses"]
    np.testing.assert_allclose(found, whole.validation_losses, rtol=0, atol=1e-10)
    assert done.stdout.count("20 steps, seed 0, validation loss") == 1  # one rank prints


@with_mpi
def test_a_run_can_be_resumed_with_more_processes(text: str, tmp_path: Path) -> None:
    with use_backend("numpy"):
        whole = train(dataset=text, out=str(tmp_path / "one"), **RUN)
    done = run_ranks(2, TRAIN, *flags(**RUN, dataset=text, out=tmp_path / "two"), RG_TRAIN_STEPS="7")
    assert done.returncode == 0, done.stderr
    done = run_ranks(4, TRAIN, "--resume", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(read_metrics(tmp_path / "two").losses, whole.losses, rtol=0, atol=1e-10)


LARGE_TEXT = """
import sys
from train import tokens
from train.config import parse
from train.train_transformer import train
tokens.LARGE, tokens.CHUNK = 100, 64
train(parse(sys.argv[1:]))
"""


@with_mpi
@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_several_processes_share_a_file_of_tokens(
    text: str, tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 writes it. A resumed run finds it, and writes it again if it is damaged."""
    options = {**RUN, "tokenizer": tokenizer, "dataset": text, **({"vocab": 260} if tokenizer == "bpe" else {})}
    monkeypatch.setattr(tokens, "LARGE", 100)
    monkeypatch.setattr(tokens, "CHUNK", 64)
    with use_backend("numpy"):
        whole = train(out=str(tmp_path / "one"), **options)
    out = tmp_path / "two"
    done = run_ranks(2, "-c", LARGE_TEXT, *flags(**options, out=out), RG_TRAIN_STEPS="10")
    assert done.returncode == 0, done.stderr
    (file,) = out.glob("tokens-*.bin")
    content = file.read_bytes()
    assert content == next((tmp_path / "one").glob("tokens-*.bin")).read_bytes()
    file.write_bytes(content[:-1])
    done = run_ranks(2, "-c", LARGE_TEXT, "--resume", str(out))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is damaged; it is written again") == 1
    assert file.read_bytes() == content
    np.testing.assert_allclose(read_metrics(out).losses, whole.losses, rtol=0, atol=1e-10)
    assert not list(out.glob("*.tmp"))


@with_mpi
def test_several_processes_read_a_folder_of_tokens(text: str, tmp_path: Path) -> None:
    encoding = BPE.train(Path(text).read_text(encoding="utf-8"), 260)
    encoding.save(tmp_path)
    for name in ("train.bin", "val.bin"):
        np.array(encoding.encode(Path(text).read_text(encoding="utf-8")), "<u2").tofile(tmp_path / name)
    options = {**RUN, "dataset": tmp_path, "tokenizer": tmp_path}
    with use_backend("numpy"):
        whole = train(out=str(tmp_path / "one"), **options)
    done = run_ranks(2, TRAIN, *flags(**options, out=tmp_path / "two"), RG_TRAIN_STEPS="10")
    assert done.returncode == 0, done.stderr
    (tmp_path / "vocab.json").unlink()  # the checkpoint has the tokenizer
    done = run_ranks(2, TRAIN, "--resume", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(read_metrics(tmp_path / "two").losses, whole.losses, rtol=0, atol=1e-10)


@with_mpi
def test_different_arguments_raise(text: str, tmp_path: Path) -> None:
    program = (
        "import os; from train.train_transformer import train; "
        f"train(dataset={text!r}, out={str(tmp_path / 'out')!r}, seed=int(os.environ['PMI_RANK']) // 2, **{SMALL!r})"
    )
    done = run_ranks(4, "-c", program)
    assert done.returncode != 0
    assert (
        "different arguments: seed is 0 on rank 0 and 1 on rank 2; start all of them with the same ones" in done.stderr
    )
    assert not (tmp_path / "out").exists()


@with_mpi
@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("os.chdir(out + rank); train(dataset='text.txt', out=out, **options)", "different arguments: text is '"),
        ("train(dataset=text, out=out, **{**options, 'accumulate': 1 + 2 * int(rank)})", "accumulate must divide"),
        ("os.environ['RG_TRAIN_STEPS'] = str(3 + int(rank)); train(dataset=text, out=out, **options)",
         "different arguments: RG_TRAIN_STEPS is 3 on rank 0 and 4 on rank 1"),
        ("train(dataset=text, out=out, **{**options, 'batch': 9})",
         "batch 9 cannot be split into 1 micro-batches for each"),
    ],
)  # fmt: skip
def test_a_setup_error_on_one_rank_ends_all(text: str, tmp_path: Path, program: str, message: str) -> None:
    out = tmp_path / "out"
    for rank in (0, 1):
        (tmp_path / f"out{rank}").mkdir()
        (tmp_path / f"out{rank}" / "text.txt").write_text(Path(text).read_text()[:: 1 - 2 * rank])  # reversed on rank 1
    header = "import os; from train.train_transformer import train; rank = os.environ['PMI_RANK']; "
    header += f"text, out, options = {text!r}, {str(out)!r}, {SMALL!r}; "
    done = run_ranks(2, "-c", header + program)
    assert done.returncode != 0
    assert message in done.stderr
    assert not (out / "checkpoints").exists()


@with_mpi
def test_invalid_arguments_on_one_rank_end_all(text: str, tmp_path: Path) -> None:
    good, bad = (flags(**SMALL, dataset=text, out=tmp_path / "out", seed=seed) for seed in (0, -1))
    done = run_ranks(1, TRAIN, *good, ":", "-n", "1", sys.executable, TRAIN, *bad)
    assert done.returncode != 0
    assert "seed must not be negative" in done.stderr


@with_mpi
def test_different_initial_parameters_raise(text: str, tmp_path: Path) -> None:
    """The check runs before the first step and before the first checkpoint."""
    program = (
        "import os; from train import train_transformer; build = train_transformer.build_model\n"
        "def other(config, text):\n"
        "    model = build(config, text)\n"
        "    w = model.blocks[0].attention.w_qkv\n"
        "    w.data *= 1 + int(os.environ['PMI_RANK'])\n"
        "    return model\n"
        "train_transformer.build_model = other\n"
        f"train_transformer.train(dataset={text!r}, out={str(tmp_path / 'out')!r}, **{SMALL!r})"
    )
    done = run_ranks(2, "-c", program)
    assert done.returncode != 0
    assert "the parameters on ranks 1 differ from those on rank 0" in done.stderr
    assert not (tmp_path / "out" / "checkpoints").exists()


@with_mpi
def test_the_launcher_of_another_mpi_raises(tmp_path: Path) -> None:
    """Without this check each process would train separately and write the same files."""
    done = run_python(TRAIN, "--out", str(tmp_path / "out"), OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="1")
    assert done.returncode != 0
    assert "2 processes were started, but mpi4py sees 1: it is built on MPICH" in done.stderr
    assert not (tmp_path / "out").exists()


FAILS = """
import os, sys
from train import train_transformer
train_step, taken = train_transformer.train_step, []
def failing(*args, **kwargs):
    taken.append(1)
    if len(taken) == 15 and os.environ["PMI_RANK"] == "1":
        {how}
    return train_step(*args, **kwargs)
train_transformer.train_step = failing
train_transformer.train(dataset={text!r}, out={out!r}, **{options!r})
"""


@with_mpi
@pytest.mark.parametrize("how", ["raise MemoryError('of a rank')", "os.kill(os.getpid(), 9)"])
def test_a_rank_that_dies_ends_the_run(text: str, tmp_path: Path, how: str) -> None:
    out = tmp_path / "out"
    done = run_ranks(2, "-c", FAILS.format(how=how, text=text, out=str(out), options={**RUN, "steps": 10_000}))
    said = done.stdout + done.stderr
    assert done.returncode != 0
    checkpoint = find(out)
    assert checkpoint.step == 10
    if "raise" in how:
        assert (
            f"rank 1 of 2 failed, which ends the run: MemoryError: of a rank; last checkpoint: {checkpoint.path}"
            in said
        )
    else:
        killed = re.search(r"PID (\d+) RUNNING AT", said)  # printed by MPICH's launcher
        assert killed is not None, said
        assert f"rank 1 is process {killed[1]} on " in said
        assert said.count(f"checkpoint: {checkpoint.path}") == 1


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@with_mpi
def test_a_signal_to_one_rank_stops_all(text: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = {**RUN, "steps": 10_000, "eval_interval": 10_000}
    with start(2, TRAIN, *flags(**options, dataset=text, out=out)) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (out / "metrics.jsonl").exists():
            time.sleep(0.01)
        time.sleep(0.5)
        ranks = [rank for proxy in children(process.pid) for rank in children(proxy)]
        assert len(ranks) == 2
        os.kill(ranks[1], signal.SIGTERM)  # the signal is forwarded to the other ranks
        output, errors = process.communicate(timeout=60)
    assert find(out).step % 10 == 0, errors
    assert "resume with: mpiexec -n 2 python train/train_transformer.py --resume" in output


@pytest.mark.skipif(importlib.util.find_spec("mpi4py") is not None, reason="mpi4py is installed")
def test_without_mpi4py_the_error_names_the_package(tmp_path: Path) -> None:
    done = run_python(TRAIN, "--out", str(tmp_path / "out"), PMI_SIZE="2", PMI_RANK="0")
    assert done.returncode != 0
    assert (
        '2 processes were started; to train together they need the package mpi4py: pip install "russel' in done.stderr
    )


def test_split_batch_weights_micro_batches_by_their_tokens() -> None:
    inputs, targets = np.arange(24).reshape(6, 4), np.arange(24).reshape(6, 4) % 3
    targets[1, 1:] = 9
    targets[4] = 9
    n_valid = int((targets != 9).sum())
    for parts, size in ((1, 1), (2, 1), (3, 2), (1, 6)):
        found = [part for rank in range(size) for part in split_batch(inputs, targets, parts, 9, rank, size)]
        assert len(found) == parts * size
        assert np.array_equal(np.concatenate([part.inputs for part in found]), inputs)
        assert [part.first_row for part in found] == list(range(0, 6, 6 // (parts * size)))
        shares = [1 if part.loss_weight is None else part.loss_weight for part in found]
        expected = [(part.targets != 9).sum() / n_valid for part in found]
        np.testing.assert_allclose(shares, expected, rtol=0, atol=1e-15)
    with pytest.raises(
        ValueError, match="a batch of 6 rows cannot be split into 2 micro-batches for each of 2 processes; use"
    ):
        list(split_batch(inputs, targets, 2, 9, 0, 2))
    with pytest.raises(ValueError, match="all targets of the batch are padding"):
        list(split_batch(inputs, np.full_like(targets, 9), 1, 9))


# --- CUDA devices


def nccl(monkeypatch: pytest.MonkeyPatch, devices: Sequence[str], available: bool = True) -> Any:
    """backends/nccl.py with a CuPy that sees devices with these addresses on the PCI bus."""
    used: list[int] = []
    runtime = SimpleNamespace(getDeviceCount=lambda: len(devices), runtimeGetVersion=lambda: 13000)
    cuda = SimpleNamespace(
        runtime=runtime,
        Device=lambda number: SimpleNamespace(use=lambda: used.append(number), pci_bus_id=devices[number]),
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", SimpleNamespace(available=available))
    monkeypatch.delitem(sys.modules, "russellgrad.backends.nccl", raising=False)
    module: Any = importlib.import_module("russellgrad.backends.nccl")
    monkeypatch.delitem(sys.modules, "russellgrad.backends.nccl")
    module.used = used
    return module


def test_each_process_takes_its_device_or_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nccl(monkeypatch, ["a", "b"])
    assert [module.use_device(rank) for rank in (0, 1)] == ["a", "b"]
    with pytest.raises(RuntimeError, match="process 2 of this machine has no CUDA device of its own: there are 2"):
        module.use_device(2)
    assert module.used == [0, 1]
    assert nccl(monkeypatch, ["c"]).use_device(3) == "c"  # its launcher shows it this device only


def test_a_missing_nccl_raises_before_any_communication(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nccl(monkeypatch, ["a"], available=False)
    with pytest.raises(RuntimeError, match="need NCCL, and CuPy finds none; install it: pip install nvidia-nccl-cu13"):
        module.use_device(0)


@pytest.mark.parametrize(("local_size", "threads"), [("4", 2), ("16", 1)])
def test_the_cores_of_a_machine_are_divided(monkeypatch: pytest.MonkeyPatch, local_size: str, threads: int) -> None:
    cpu, called = importlib.import_module("russellgrad.backends.cpu"), list[int]()
    monkeypatch.setattr(cpu, "_openblas", lambda action: called.append if action == "set_num_threads" else None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cpu, "_n_threads", 8)  # as after a use of the backend
    for name in ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "RG_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "3")
        monkeypatch.setenv("MPI_LOCALNRANKS", local_size)
        distributed._divide_cores()
        monkeypatch.delenv("MPI_LOCALNRANKS")
        assert called == []  # the user's number applies
        monkeypatch.delenv(name)
    distributed._divide_cores()
    assert called == []  # the number of processes on this machine is not known
    monkeypatch.setenv("MPI_LOCALNRANKS", local_size)
    distributed._divide_cores()
    assert called == [threads]
    monkeypatch.setattr(cpu, "_openblas", lambda action: lambda *n: called.append(*n) if n else called[-1])
    assert cpu.n_threads() == threads  # of the elementwise functions
    monkeypatch.setattr(cpu, "_openblas", lambda action: None)  # another BLAS
    distributed._divide_cores()


@pytest.mark.parametrize(("size", "divided"), [("2", [None]), ("1", [])])
def test_a_process_group_of_several_divides_the_cores(
    monkeypatch: pytest.MonkeyPatch, size: str, divided: list[None]
) -> None:
    communicator = SimpleNamespace(Get_size=lambda: int(size), Get_rank=lambda: 0)
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=SimpleNamespace(COMM_WORLD=communicator)))
    for name in ("PMIX_RANK", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PMI_SIZE", size)
    called = list[None]()
    monkeypatch.setattr(distributed, "_divide_cores", lambda: called.append(None))
    assert distributed.init_process_group.__wrapped__().world_size == int(size)
    assert called == divided


class Communicator:
    """An MPI communicator, in which the other processes of this machine use the devices `others`."""

    def __init__(self, others: Sequence[str]) -> None:
        self.others = others

    def Get_rank(self) -> int:
        return len(self.others)

    def Get_size(self) -> int:
        return 1 + len(self.others)

    def Split_type(self, kind: str) -> "Communicator":
        assert kind == "of one machine"
        return self

    def allgather(self, value: str) -> list[str]:
        return [*self.others, value]


@pytest.mark.parametrize(("others", "shared"), [(["a"], False), (["a", "b"], True)])
def test_two_processes_on_one_device_raise(others: list[str], shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.distributed._nccl", lambda: SimpleNamespace(use_device=lambda rank: "b"))
    monkeypatch.setattr("train.distributed._mpi4py", lambda: SimpleNamespace(COMM_TYPE_SHARED="of one machine"))
    group: Any = MpiProcessGroup(Communicator(others))
    error = pytest.raises(RuntimeError, match="processes 1, 2 of this machine use the same CUDA device, b")
    with error if shared else nullcontext():
        group.set_device(SimpleNamespace(name="cupy"))


def test_several_processes_need_cupy_or_arrays_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    several: Any = SimpleNamespace(world_size=2)
    train_transformer._check_supported(Config(), several)
    on_mps = SimpleNamespace(
        name="mps", assign=None, split_flat=None, zeros=lambda *args: SimpleNamespace(__dlpack_device__=lambda: (8, 0))
    )
    monkeypatch.setattr(train_transformer, "get_backend", lambda: on_mps)
    with pytest.raises(ValueError, match="backend 'mps' trains in one process; for several, set RG_BACKEND=cupy"):
        train_transformer._check_supported(Config(), several)
