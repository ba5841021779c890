"""The checks of the project: `nox` runs all of them, `nox -s tests-numpy` runs one.

`nox -s tests-cupy` runs on a CUDA device if there is one, else on the strict stand-in in tests/standin, and prints
which. It installs the CuPy wheel for the driver it finds; `nox -s tests-cupy -- 12` (or 13) overrides the version.
Other positional arguments are passed to pytest: `nox -s tests-numpy -- -k attention`. Without arguments, the tests run
in one process per core; with arguments, in a single process, which starts faster (`-- -n auto ...` uses several).
"""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import nox

# pip, not uv: pip uses a CPU-only PyTorch from a configured index, uv would download CUDA with PyTorch.
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["tests-numpy", "tests-numba", "tests-cupy", "tests-torch", "lint", "types", "build", "docs"]
nox.options.error_on_external_run = True

TORCH = "torch==2.13.0"
TEST = (
    "--no-compile",  # compiling all of PyTorch to bytecode takes twice as long as installing it
    TORCH, "pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "ml_dtypes>=0.5",  # ml_dtypes has bfloat16
    "tokenizers>=0.20", "transformers>=5",
)  # fmt: skip
LINT = ("ruff==0.17.6",)
TYPES = ("--no-compile", "mypy==2.4.1", "nox", TORCH, "pytest>=8", "hypothesis>=6.100")
STRICT = ("conformance", "autograd", "tensor", "indexing", "optimizer", "russelltransformer")
# Limits the threads of the BLAS and PyTorch, which together could exceed the number of cores.
THREADS = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
# One process per core, with one thread each. A process needs about 1 GiB of memory.
WORKERS = ("-n", "auto", "--maxprocesses", "8", "--dist", "worksteal")
ONE_THREAD = dict.fromkeys(THREADS, "1")
CUPY = "14.2.*"  # without a device; tests/standin/compare.py and nvrtc.py use private functions of this version
# CUDA's run-time compiler, which needs no GPU. B200 (sm_100) needs version 12.8 or later.
NVRTC = {
    "12": ("nvidia-cuda-nvrtc-cu12==12.9.*", "nvidia-cuda-runtime-cu12==12.9.*"),
    "13": ("nvidia-cuda-nvrtc==13.0.*", "nvidia-cuda-runtime==13.0.*", "nvidia-cuda-crt==13.0.*"),
}


OPTIONAL = ("mpi4py>=4.0", "mpich", "micrograd==0.1.0")  # micrograd for the table in docs/coming_from.md


def run_tests(session: nox.Session, env: dict[str, str], arguments: Sequence[str] = (), *, workers: bool) -> None:
    """Run pytest, in one process per core if `workers`, else in one process."""
    session.run(
        "pytest", *(WORKERS if workers else ()), *arguments, env={**(ONE_THREAD if workers else THREADS), **env}
    )


@nox.session(name="tests-numpy")
def tests_numpy(session: nox.Session) -> None:
    """The test suite on NumPy; without arguments, then the most important tests on the strict backend too."""
    session.install(*TEST, "-e", ".[train,report,examples,tensorboard]")
    for wheels in OPTIONAL:  # some systems have no wheel
        session.run("python", "-m", "pip", "install", wheels, success_codes=[0, 1], silent=True)
    run_tests(session, {"RG_BACKEND": "numpy"}, session.posargs, workers=not session.posargs)
    if not session.posargs:
        files = [f"tests/test_{name}.py" for name in STRICT]
        run_tests(session, {"RG_BACKEND": "strict"}, ["-k", "strict", *files], workers=True)


@nox.session(name="tests-numba")
def tests_numba(session: nox.Session) -> None:
    """The test suite on the Numba backend."""
    session.install(*TEST, "-e", ".[train,fast]")
    run_tests(session, {"RG_BACKEND": "numba"}, session.posargs, workers=not session.posargs)


@nox.session(name="tests-torch")
def tests_torch(session: nox.Session) -> None:
    """The test suite on PyTorch's arrays, on the accelerator that PyTorch finds, else on the CPU."""
    session.install(*TEST, "-e", ".[train]")
    run_tests(session, {"RG_BACKEND": "torch"}, session.posargs, workers=not session.posargs)


@nox.session(name="tests-cupy")
def tests_cupy(session: nox.Session) -> None:
    """The test suite on CuPy: on a CUDA device, else on the stand-in."""
    posargs = list(session.posargs)
    driver = cuda_of_driver()
    cuda = posargs.pop(0) if posargs and posargs[0] in ("12", "13") else driver or "13"
    session.install(*TEST, "-e", ".[train]")
    if driver:
        session.install(f"cupy-cuda{cuda}x[ctk]>=14.2")  # [ctk]: CUDA's libraries, which only a device needs
    else:  # to compare names and signatures and to compile the kernels; optional, since some systems have no wheel
        for wheels in ([f"cupy-cuda{cuda}x=={CUPY}"], NVRTC[cuda]):
            session.run("python", "-m", "pip", "install", *wheels, success_codes=[0, 1], silent=True)
    env = {"RG_BACKEND": "cupy"}
    cupy = found_cupy(session)
    if "device" in cupy:
        session.log(f"tests-cupy: CuPy {cupy['version']} on the CUDA {cuda} device {cupy['device']}")
    else:
        checked = (
            f"compared with the names and signatures of CuPy {cupy['version']}" if cupy else "not compared with CuPy"
        )
        session.log(
            "tests-cupy: found no CUDA device, so no GPU is tested: backends/cupy_backend.py runs on the strict "
            f"stand-in, {checked}"
        )
        env["RG_CUPY"] = "standin"
    # A device has memory for one process.
    run_tests(session, env, posargs, workers=not posargs and "device" not in cupy)
    if "device" in cupy and not posargs:  # only the stand-in checks memory access and thread order
        run_tests(session, {**env, "RG_CUPY": "standin"}, ["tests/test_kernels.py"], workers=True)


PROBE = """
import json, sys
try:
    import cupy
except ImportError:
    print("probe", "{}")
    sys.exit()
found = {"version": cupy.__version__}
if cupy.cuda.is_available():
    found["device"] = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
print("probe", json.dumps(found))
"""


def found_cupy(session: nox.Session) -> dict[str, str]:
    """The "version" of the installed CuPy and the name of its "device", each if there is one."""
    output = str(session.run("python", "-c", PROBE, silent=True))
    (line,) = [line for line in output.splitlines() if line.startswith("probe ")]  # there may be warnings around it
    found: dict[str, str] = json.loads(line.removeprefix("probe "))
    return found


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff's linter and formatter."""
    session.install(*LINT)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict, which also checks the backends against the contract."""
    session.install(*TYPES, "-e", ".[train]")
    session.run("mypy")


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks against PyTorch on the CPU; not run by default. Arguments are passed to `python -m benchmarks`."""
    session.install(TORCH, "-e", ".[train,bench]")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site in docs/_build/html: runs its notebooks and their exercises. Warnings are errors.

    The Python blocks of the other pages run in tests/test_readme.py.
    """
    session.install("-e", ".[docs]")
    shutil.rmtree("docs/_build", ignore_errors=True)
    session.run(
        "sphinx-build", "-W", "--keep-going", "-q", "-j", "2", "-b", "html", "docs", "docs/_build/html",
        env={"RG_BACKEND": "numpy", **ONE_THREAD},
    )  # fmt: skip
    session.log("docs: open docs/_build/html/index.html")


@nox.session
def build(session: nox.Session) -> None:
    """Build the sdist and from it the wheel, and smoke-test the wheel in a clean environment."""
    session.install("build")
    dist = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    shutil.rmtree("build", ignore_errors=True)  # a stale build folder would ship deleted modules
    session.run("python", "-m", "build", "--outdir", str(dist))
    (wheel,) = dist.glob("*.whl")
    clean = dist.parent / "clean"
    session.run("python", "-m", "venv", "--clear", str(clean))
    python = str(next(p for p in (clean / "bin/python", clean / "Scripts/python.exe") if p.exists()))
    session.run(python, "-m", "pip", "install", "--quiet", str(wheel), external=True)
    session.chdir(dist)  # in the checkout, its folders would be imported, not the wheel
    session.run(python, "-I", "-c", SMOKE, external=True)
    session.run(python, "-m", "pip", "install", "--quiet", f"{wheel}[train]", external=True)
    empty = dist.parent / "empty"
    shutil.rmtree(empty, ignore_errors=True)
    empty.mkdir()
    session.chdir(empty)
    (empty / "notes.txt").write_text("To be, or not to be, that is the question.\n" * 40, encoding="utf-8")
    for name, *arguments in TRAIN:
        session.run(python, "-I", "-m", f"russellgrad.train.{name}", *arguments, external=True)
    session.log(f"build: in {empty}: {', '.join(sorted(path.name for path in Path('runs/notes').iterdir()))}")


SMOKE = """
import russellgrad, russellgrad.backends, sys
from russellgrad import Tensor
from russellgrad.loss import cross_entropy_loss
from russellgrad.optimizer import SGDOptimizer
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer
from russellgrad.tokenizer_constants import n_words, pad_token_id

x = Tensor([2.0]); y = x ** 2 + 3 * x + 1; y.backward(); assert x.grad.tolist() == [7.0]
model = Transformer(Tokenizer(n_words, 16, 8, pad_token_id), n_layers=1, n_attn_heads=2)
optimizer = SGDOptimizer(model.parameters(), lr=1e-2)
batch = ["To be", "or not"]
loss = cross_entropy_loss(model.forward(batch), model.tokenizer.targets(batch), pad_token_id)
loss.backward(); optimizer.step()
assert russellgrad.draw(Tensor([2.0]) * 3).svg().startswith("<svg")  # styles and scripts are in the wheel
from russellgrad import conformance
assert conformance.check("numpy").passed
assert "site-packages" in russellgrad.backends.__file__, russellgrad.backends.__file__
assert not {"torch", "cupy", "numba"} & set(sys.modules)
print("the wheel works:", russellgrad.__version__, russellgrad.__file__)
"""


TRAIN = (  # modules of russellgrad.train, and their arguments
    ("train_transformer", "--dataset", "notes.txt", "--steps", "3", "--layers", "1", "--width", "32", "--block", "16"),
    ("report", "runs/notes", "--no-png"),
    ("explore", "runs/notes"),
    ("generate", "runs/notes", "--tokens", "20"),
)


def cuda_of_driver() -> str | None:
    """The major CUDA version that the installed driver supports, "12" or "13"; None without a driver."""
    if shutil.which("nvidia-smi") is None:
        return None
    found = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False)
    version = re.search(r"CUDA Version:\s*(\d+)", found.stdout)
    return None if version is None else str(min(max(int(version[1]), 12), 13))
