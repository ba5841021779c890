"""NVRTC compiles the kernels for real GPUs without register spills. Compiling needs no GPU."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import once_on_cupy
from tests.process import ROOT, output_of, run_python
from tests.standin import MODULES, library, nvrtc

pytestmark = once_on_cupy

KERNELS = ROOT / "backends" / "cupy_kernels.py"
Kernel = dict[str, Any]  # the fields of `nvrtc.Resources`


@cache
def compiled(*what: str) -> list[Kernel]:
    """The resources of the compiled kernels. Skips the test, with a hint what to install, if NVRTC is missing."""
    done = run_python("-m", "tests.standin.nvrtc", "--json", *what)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    if "missing" in answer:
        pytest.skip(f"no kernel is compiled for a GPU: {answer['missing']}")
    return answer["kernels"]


def compile_body(folder: Path, body: str) -> list[Kernel]:
    file = folder / "kernels.cu"
    file.write_text(f"template <typename T> __global__ void f(T* y, const T* x, int k) {{ {body} }}")
    return compiled(str(file), "f<float>", "f<double>")


def test_kernels_are_compiled_for_each_architecture(tmp_path: Path) -> None:
    found = compile_body(tmp_path, "__shared__ T s[64]; s[threadIdx.x] = x[threadIdx.x]; __syncthreads(); y[0] = s[k];")
    assert [(r["kernel"], r["architecture"]) for r in found] == [
        (kernel, architecture) for architecture in (80, 90, 100) for kernel in ("f<float>", "f<double>")
    ]
    for r in found:
        assert 4 < r["registers"] < 64
        assert r["spilled_bytes"] == r["local_bytes"] == 0
        assert r["shared_bytes"] == 64 * (4 if r["kernel"] == "f<float>" else 8)


def test_stand_in_reports_the_same_shared_memory(tmp_path: Path) -> None:
    if shutil.which(library.COMPILER) is None:
        pytest.skip("running CUDA kernels on the CPU needs g++; install it")
    found = compile_body(tmp_path, "__shared__ T s[3]; __shared__ char c[5]; s[k] = c[k] = x[k]; y[1] = s[0] + c[1];")
    code, names = (tmp_path / "kernels.cu").read_text(), ("f<float>", "f<double>")
    module = MODULES["cupy"].RawModule(code=code, name_expressions=names)
    assert {r["kernel"]: r["shared_bytes"] for r in found} == {
        name: module.get_function(name).shared_size_bytes for name in names
    }


def test_local_memory_is_reported(tmp_path: Path) -> None:
    indexed = compile_body(tmp_path, "T r[40] = {}; for (int i = 0; i < k; ++i) r[int(x[i])] += x[i]; y[0] = r[k];")
    assert all(r["local_bytes"] >= 160 for r in indexed)


def test_register_spills_are_reported(tmp_path: Path) -> None:
    file = tmp_path / "spills.cu"
    sums = "".join(f"float a{i} = x[{i} + threadIdx.x];" for i in range(200))
    uses = "".join(f"y[{i} + threadIdx.x] = a{i} * a{(i * 7 + 3) % 200};" for i in range(200))
    file.write_text(
        f"__global__ void __launch_bounds__(1024) f(float* y, const float* x) {{ {sums} __syncthreads(); {uses} }}"
    )
    assert any(r["spilled_bytes"] > 0 for r in compiled(str(file), "f"))


@pytest.mark.parametrize("body", ["y[0] = z;", "y[0] = INFINITY;", "uint32_t n = 0; y[n] = 0;"])
def test_compile_error_is_reported(tmp_path: Path, body: str) -> None:
    compile_body(tmp_path, "y[k] = 0;")  # skips the test if NVRTC is missing
    (tmp_path / "kernels.cu").write_text(f"template <typename T> __global__ void f(T* y) {{ {body} }}")
    done = run_python("-m", "tests.standin.nvrtc", str(tmp_path / "kernels.cu"), "f<float>")
    assert done.returncode == 1
    assert "CompileException" in done.stderr
    assert "is undefined" in done.stderr


def test_unsupported_cupy_version_raises() -> None:
    """The compiler functions of CuPy are private. If they are missing, the error names the supported version."""
    code = """
import sys, types
cupy, cuda = types.ModuleType("cupy"), types.ModuleType("cupy.cuda")
cupy.__version__, cupy._core, cuda.compiler = "99.1", types.SimpleNamespace(), types.SimpleNamespace()
cupy.cuda = cuda
sys.modules.update({"cupy": cupy, "cupy.cuda": cuda})
from tests.standin import nvrtc
for call in (nvrtc.missing, lambda: [*nvrtc.resources("", ("f",), (), (80,))]):
    try:
        call()
    except RuntimeError as error:
        print(error)
"""
    lines = output_of(code).splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "written for CuPy 14.2" in line
        assert "CuPy 99.1 has not" in line


def test_missing_names_the_session_that_installs_cupy() -> None:
    code = "import sys; sys.modules['cupy'] = None; from tests.standin import nvrtc; print(nvrtc.missing())"
    assert output_of(code) == "CuPy is not installed; `nox -s tests-cupy` installs it"
    assert all("13.0" in wheel for wheel in nvrtc.WHEELS)


@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)  # one test each, so that they can run in parallel
@pytest.mark.parametrize("matching", ["true>$", "^(?!.*true>$)"], ids=["dropout", "others"])
def test_backend_kernels_use_no_spills_and_no_local_memory(architecture: int, matching: str) -> None:
    if not KERNELS.exists():
        pytest.skip("there is no backends/cupy_kernels.py")
    found = compiled("russellgrad.backends.cupy_kernels", "--architectures", str(architecture), "--matching", matching)
    assert found
    for r in found:
        assert r["architecture"] == architecture
        assert r["spilled_bytes"] == 0, r
        assert r["local_bytes"] == 0, r
