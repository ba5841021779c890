"""The backend of the example, examples/mlx_backend.py: conformance, training and generation. Skipped without MLX."""

import importlib
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from russellgrad import Tensor, conformance, manual_seed, use_backend
from russellgrad.backend import CORE, DERIVED, OPTIONAL, load_backend
from russellgrad.loss import cross_entropy_loss
from russellgrad.optimizer import AdamWOptimizer
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer
from tests.helpers import TEXT, once

mx = pytest.importorskip("mlx.core", reason="needs MLX: pip install 'mlx[cpu]'")
pytestmark = once
PATH = "examples.mlx_backend"


@pytest.fixture(scope="module")
def without_float64() -> ModuleType:
    """The module as it is on a GPU, where there is no float64; its arrays are on the CPU."""
    known = sys.modules.pop(PATH, None)
    module = importlib.import_module(PATH)
    if known is not None:
        sys.modules[PATH] = known
    vars(module).update(name="mlx_without_float64", _has_float64=False)
    return module


@pytest.mark.parametrize("case", conformance.cases(), ids=str)
def test_conformance_case(case: conformance.Case) -> None:
    case.check(PATH)


def test_names_are_the_core_primitives() -> None:
    names = set(vars(importlib.import_module(PATH)))
    assert set(CORE) <= names and not {*DERIVED, *OPTIONAL} & names


@pytest.mark.filterwarnings("ignore:backend 'mlx_without_float64' has no float64")
def test_conformance_without_float64(without_float64: ModuleType) -> None:
    """A case that needs float64 is skipped, and one in float32 checks every primitive that the backend has.

    Those of half precision are not skipped.
    """
    report = conformance.check(without_float64)
    assert report.passed, str(report)
    passed = {outcome.case.primitive for outcome in report.outcomes if outcome.passed}
    assert {*CORE, *DERIVED, "Tensor"} <= passed
    assert not any("float64" in outcome.differences for outcome in report.outcomes)
    assert not any("half precision" in outcome.case.title for outcome in report.skipped)


@pytest.mark.filterwarnings("ignore:backend 'mlx_without_float64' has no float64")
def test_lists_are_float32_without_float64(without_float64: ModuleType) -> None:
    with use_backend(without_float64):
        assert Tensor([1.0, 2.0]).dtype == np.float32
        with pytest.raises(TypeError, match="MLX has no float64 on the GPU; cast to float32"):
            Tensor([1.0], dtype="float64")


def test_asarray_refuses_arrays_of_mlx_that_are_not_real_numbers() -> None:
    xp = load_backend(PATH)
    for dtype in (mx.bfloat16, mx.complex64):
        with pytest.raises(TypeError, match="cannot make an array of MLX's"):
            xp.asarray(mx.zeros((2,), dtype))


def trained(backend: Any) -> tuple[list[float], list[str]]:
    """The losses of 20 steps, and generated texts."""
    manual_seed(0)
    with use_backend(backend):
        tokenizer = Tokenizer.from_text(TEXT, max_seq_len=16, embed_dim=16, seed=1)
        model = Transformer(tokenizer, n_layers=2, n_attn_heads=2, activation="gelu", dropout=0.1, seed=1)
        optimizer = AdamWOptimizer(model.parameters(), lr=1e-2)
        losses = []
        for i in range(20):
            texts = [TEXT[16 * i : 16 * i + 16], TEXT[16 * i + 8 : 16 * i + 24]]
            loss = cross_entropy_loss(model(texts), tokenizer.targets(texts), tokenizer.pad_token_id)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(max_norm=1.0)
            losses.append(loss.item())
        model.eval()
        return losses, model.generate(["The "], 12, seed=3)


def test_training_and_generation_equal_numpys() -> None:
    (losses, text), (wanted, wanted_text) = trained(PATH), trained("numpy")
    np.testing.assert_allclose(losses, wanted, rtol=0, atol=1e-10)
    assert text == wanted_text and losses[-1] < losses[0]
