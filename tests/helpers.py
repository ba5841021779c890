"""Shared test utilities: comparison with PyTorch, random arrays, backend modules for tests."""

import builtins
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from russellgrad import Tensor
from russellgrad.backend import PRIMITIVES

TEXT = "".join(f"SPEAKER {i % 7}:\nThe {i}th line of {i * i}, all told.\n\n" for i in range(60))
TOLERANCE = {"float64": 1e-12, "float32": 2e-5}  # absolute; rtol is 0
largest_differences: dict[str, tuple[float, str]] = {}

once = pytest.mark.skipif(
    (os.environ.get("RG_BACKEND") or "numpy") != "numpy", reason="does not depend on RG_BACKEND; runs on numpy only"
)
once_on_cupy = pytest.mark.skipif(
    (os.environ.get("RG_BACKEND") or "cupy") != "cupy", reason="tests CuPy's backend or its stand-in; runs on cupy only"
)

Array = Any


def module_of(backend: Any, name: str, **changes: Any) -> ModuleType:
    """A backend module called `name` with the primitives of `backend`; `changes` override them."""
    module = ModuleType(name)
    own = {primitive: getattr(backend, primitive) for primitive in PRIMITIVES if hasattr(backend, primitive)}
    vars(module).update({**own, "name": name, **changes})
    return module


def hide_package(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make imports of a package and of its submodules fail, as if it were not installed."""
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith(package):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)


def is_torch(backend: Any) -> bool:
    """Whether the backend's arrays are torch.Tensors."""
    return str(backend.name).startswith("torch:")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def to_numpy(x: Any) -> Array:
    """Convert a Tensor, an array of any backend or a torch tensor to a NumPy array."""
    if isinstance(x, torch.Tensor):
        return x.detach().numpy()
    if isinstance(x, Tensor):
        return x.numpy()
    return x if isinstance(x, np.ndarray) else Tensor(x, requires_grad=False).numpy()


def assert_close(actual: Any, expected: Any, *, atol: float | None = None, what: str = "") -> None:
    """Assert equal shape and dtype, and values within `atol` (rtol is 0, nan equals nan).

    Records the largest difference of each dtype for the summary when `atol` is the default.
    """
    a, e = to_numpy(actual), to_numpy(expected)
    assert a.shape == e.shape, f"{what}: shape {a.shape}, expected {e.shape}"
    assert a.dtype == e.dtype, f"{what}: dtype {a.dtype}, expected {e.dtype}"
    if a.dtype.kind == "f" and a.size:
        with np.errstate(invalid="ignore"):
            gaps = np.abs(a - e)
        largest = float(np.max(gaps, initial=0.0, where=np.isfinite(gaps)))
        if atol is None and largest > largest_differences.get(str(a.dtype), (-1.0, ""))[0]:
            test = os.environ.get("PYTEST_CURRENT_TEST", "").split(" ")[0]
            largest_differences[str(a.dtype)] = (largest, test)
    tolerance = TOLERANCE.get(str(a.dtype), 0.0) if atol is None else atol
    np.testing.assert_allclose(a, e, rtol=0, atol=tolerance, err_msg=what)


def check_against_torch(
    ours: Callable[..., Tensor],
    theirs: Callable[..., torch.Tensor],
    *arrays: Array,
    dtype: str = "float64",
    atol: float | None = None,
    seed: int = 1,
    needs: Sequence[bool] | None = None,
) -> None:
    """Compare values and gradients of `ours(*tensors)` and `theirs(*torch_tensors)` for a random upstream gradient.

    Float arrays are cast to `dtype`. `needs` says which arrays require a gradient (default: all float arrays).
    """
    typed = [a.astype(dtype) if a.dtype.kind == "f" else a for a in map(np.asarray, arrays)]
    wanted = list(needs) if needs is not None else [a.dtype.kind == "f" for a in typed]
    mine = [Tensor(a, requires_grad=w) for a, w in zip(typed, wanted, strict=True)]
    reference = [torch.tensor(a, requires_grad=w) for a, w in zip(typed, wanted, strict=True)]
    out, expected = ours(*mine), theirs(*reference)
    assert_close(out, expected, atol=atol, what="value")
    upstream = rng(seed).normal(size=out.shape).astype(dtype)
    out.backward(Tensor(upstream, requires_grad=False))
    expected.backward(torch.tensor(upstream))
    for i, (x, t, w) in enumerate(zip(mine, reference, wanted, strict=True)):
        if w:
            assert x.grad is not None, f"operand {i} got no gradient"
            assert t.grad is not None
            assert x.backend.is_array(x.grad)
            assert_close(x.grad, t.grad, atol=atol, what=f"gradient of operand {i}")
        else:
            assert x.grad is None
