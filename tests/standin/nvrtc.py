"""Compiles CUDA kernels for real GPUs, as CuPy does, on a machine without one, and lists the resources of each.

`python -m tests.standin.nvrtc russellgrad.backends.cupy_kernels` compiles SOURCE and NAME_EXPRESSIONS of a module,
`python -m tests.standin.nvrtc kernels.cu 'f<float>' g` the kernels of a file. --json prints JSON. It runs in a process
of its own with the real CuPy, whose private functions it uses. It was written for CuPy 14.2, and raises RuntimeError if
they are missing.
"""

import argparse
import importlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ARCHITECTURES = (80, 90, 100)  # A100, H100 and H200, B200
WHEELS = ("nvidia-cuda-nvrtc==13.0.*", "nvidia-cuda-runtime==13.0.*", "nvidia-cuda-crt==13.0.*")
WRITTEN_FOR = "14.2"


@dataclass
class Resources:
    """The resources of one kernel on one architecture, from ptxas. Local memory is a thread's stack, off the chip."""

    kernel: str
    architecture: int
    registers: int
    spilled_bytes: int  # stores and loads
    local_bytes: int  # a thread
    shared_bytes: int  # a block, without dynamic shared memory


def resources(
    source: str, names: Sequence[str], options: tuple[str, ...], architectures: Sequence[int]
) -> Iterator[Resources]:
    """The resources of the kernels `names` on each architecture.

    Raises:
        RuntimeError: CuPy lacks the private functions that this uses; ptxas's log lacks a kernel.
        cupy.cuda.compiler.CompileException: it does not compile.
    """
    for architecture in architectures:
        mangled, log = _compiled(source, tuple(names), options, architecture)
        found = dict(_parts(log))
        for name in names:
            part = found.get(mangled[name])
            if part is None:
                raise RuntimeError(f"nvrtc: nothing about {name} on sm_{architecture} in ptxas's log:\n{log}")
            yield _parsed(name, architecture, part)


def _compiled(
    source: str, names: tuple[str, ...], options: tuple[str, ...], architecture: int
) -> tuple[dict[str, str], str]:
    """The mangled name of each kernel, and ptxas's log."""
    import cupy
    from cupy.cuda import compiler

    log = io.StringIO()
    with _private(cupy):
        assembled = (
            *cupy._core.core.assemble_cupy_compiler_options(options),
            "-ftz=true",  # what CuPy adds to every compilation
            f"-arch=sm_{architecture}",
            "--device-as-default-execution-space",
            "--ptxas-options=-v",
        )
        made = compiler._NVRTCProgram(source, "kernels.cu", name_expressions=names, method="cubin")
    _, mangled = made.compile(assembled, log)
    return mangled, log.getvalue()


@contextmanager
def _private(cupy: Any) -> Iterator[None]:
    try:
        yield
    except (AttributeError, TypeError) as error:
        raise RuntimeError(
            f"nvrtc: written for CuPy {WRITTEN_FOR}, whose private compiler functions CuPy {cupy.__version__} has not: "
            f"{error}; bring tests/standin/nvrtc.py up to it"
        ) from error


def _parts(log: str) -> Iterator[tuple[str, str]]:
    """Each kernel's mangled name, and its part of the log."""
    parts = re.split(r"Compiling entry function '(\S+)' for 'sm_\w+'", log)
    yield from zip(parts[1::2], parts[2::2], strict=True)


def _parsed(name: str, architecture: int, text: str) -> Resources:
    def number(pattern: str) -> int:
        return sum(map(int, re.findall(pattern, text)))

    if not re.search(r"Used \d+ registers", text) or "bytes stack frame" not in text:
        raise RuntimeError(f"nvrtc: ptxas's log about {name} is not as expected:\n{text}")
    return Resources(
        kernel=name,
        architecture=architecture,
        registers=number(r"Used (\d+) registers"),
        spilled_bytes=number(r"(\d+) bytes spill"),
        local_bytes=number(r"(\d+) bytes stack frame") + number(r"(\d+) bytes cumulative stack"),
        shared_bytes=number(r"(\d+) bytes smem"),
    )


def missing() -> str | None:
    """What to install before kernels can be compiled here; None if nothing is missing."""
    try:
        import cupy
        from cupy.cuda import compiler
    except ImportError:
        return "CuPy is not installed; `nox -s tests-cupy` installs it"
    with _private(cupy):
        load = compiler._get_nvrtc_version
    try:
        load()
    except Exception as error:  # the loader's own, of which there are several
        first = str(error).strip().split("\n")[0]
        return f"NVRTC cannot be loaded ({first}); pip install {' '.join(WHEELS)}"
    return None


def _asked(what: Sequence[str]) -> tuple[str, Sequence[str], tuple[str, ...]]:
    """Source, names and options of the kernels on the command line."""
    if what[0].endswith(".cu"):
        return Path(what[0]).read_text(), what[1:], ("-std=c++17",)
    module: Any = importlib.import_module(what[0])
    return module.SOURCE, module.NAME_EXPRESSIONS, getattr(module, "OPTIONS", ("-std=c++17",))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.standin.nvrtc", description=__doc__)
    parser.add_argument("what", nargs="+", help="a module, or a .cu file and its kernels")
    parser.add_argument("--architectures", nargs="+", type=int, default=ARCHITECTURES, help="such as 90; default: all")
    parser.add_argument("--matching", default="", help="a regular expression of the kernels; default: all")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    lacking = missing()
    if args.json and lacking:
        print(json.dumps({"missing": lacking}))
        return
    if lacking:
        parser.error(lacking)
    source, names, options = _asked(args.what)
    names = [name for name in names if re.search(args.matching, name)]
    found = resources(source, names, options, args.architectures)
    if args.json:
        print(json.dumps({"kernels": [asdict(one) for one in found]}))
        return
    print(f"{'kernel':50} {'sm':>4} {'registers':>9} {'spilled':>8} {'local':>6} {'shared':>7}  (bytes)")
    for r in found:
        numbers = f"{r.registers:9} {r.spilled_bytes:8} {r.local_bytes:6} {r.shared_bytes:7}"
        print(f"{r.kernel:50} {r.architecture:4} {numbers}")


if __name__ == "__main__":
    main()
