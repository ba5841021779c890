"""What the tests share: the comparison with PyTorch, and random arrays."""

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
    (os.environ.get("RG_BACKEND") or "numpy") != "numpy", reason="does not depend on RG_BACKEND: runs with NumPy's"
)

Array = Any


def module_of(backend: Any, name: str, **changes: Any) -> ModuleType:
    """A module with a backend's primitives under another name, and with changes."""
    module = ModuleType(name)
    own = {primitive: getattr(backend, primitive) for primitive in PRIMITIVES if hasattr(backend, primitive)}
    vars(module).update({**own, "name": name, **changes})
    return module


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def to_numpy(x: Any) -> Array:
    """A Tensor, an array of any backend or a torch tensor, as a NumPy array."""
    if isinstance(x, torch.Tensor):
        return x.detach().numpy()
    if isinstance(x, Tensor):
        return x.numpy()
    return x if isinstance(x, np.ndarray) else Tensor(x, requires_grad=False).numpy()


def assert_close(actual: Any, expected: Any, *, atol: float | None = None, what: str = "") -> None:
    """Equal within atol and rtol=0, nan equal to nan, in shape and dtype too; remembers the largest difference."""
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
    """Values and gradients of `ours(*tensors)` against `theirs(*torch_tensors)`, with a random upstream gradient.

    Float arrays are brought to `dtype`. `needs` says which of them require a gradient (all the float ones by default).
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
