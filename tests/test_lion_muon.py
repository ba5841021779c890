"""The optimizers in train/, Lion and Muon, against PyTorch."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from russellgrad import Tensor
from russellgrad.backend import Backend
from russellgrad.optimizer import cosine_with_warmup, supports_flat
from tests.helpers import assert_close, rng
from train.lion import Lion
from train.muon import Muon, orthogonalize

SHAPES = [(3, 4), (6, 2), (5, 5), (1, 7), (4,), ()]


def tensors(shapes: list[tuple[int, ...]]) -> tuple[list[Tensor], list[torch.Tensor]]:
    arrays = [rng(i).normal(size=shape) for i, shape in enumerate(shapes)]
    return [Tensor(a) for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]


def give_gradients(ours: list[Tensor], theirs: list[torch.Tensor], step: int) -> None:
    draws = rng(1000 + step)
    for p, t in zip(ours, theirs, strict=True):
        g = draws.normal(size=p.shape) * 10.0 ** draws.integers(-3, 3)
        p.grad, t.grad = p.backend.asarray(g), torch.tensor(g)


@pytest.mark.parametrize("flat", [False, True])
def test_100_steps_of_lion_match_its_pseudocode_in_pytorch(backend: Backend, flat: bool) -> None:
    """Algorithm 2 of arXiv:2302.06675, with groups, a schedule and clipping."""
    if flat and not supports_flat(backend):
        pytest.skip("writes nothing in place")
    ours, theirs = tensors(SHAPES)
    schedule = cosine_with_warmup(1e-2, 5, 100)
    groups = [{"params": ours[:3]}, {"params": ours[3:], "weight_decay": 0.0}]
    optimizer = Lion(groups, schedule, betas=(0.9, 0.98), weight_decay=0.3, flat=flat)
    means = [torch.zeros_like(t) for t in theirs]
    for step in range(100):
        give_gradients(ours, theirs, step)
        norm = torch.nn.utils.clip_grad_norm_(theirs, 5.0)
        assert_close(optimizer.step(max_norm=5.0), norm)
        with torch.no_grad():
            for i, (t, mean) in enumerate(zip(theirs, means, strict=True)):
                assert t.grad is not None
                c = 0.9 * mean + (1 - 0.9) * t.grad
                t -= schedule(step) * (torch.sign(c) + (0.3 if i < 3 else 0.0) * t)
                means[i] = 0.98 * mean + (1 - 0.98) * t.grad
        for p, t in zip(ours, theirs, strict=True):
            assert_close(p, t)


@pytest.mark.filterwarnings("ignore:.*lr_scheduler:UserWarning")
@pytest.mark.parametrize("flat", [False, True])
def test_100_steps_of_muon_match_pytorch(backend: Backend, flat: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.optim.Muon, which computes in bfloat16 unless told otherwise; AdamW for the other group."""
    if flat and not supports_flat(backend):
        pytest.skip("writes nothing in place")
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
    ours, theirs = tensors(SHAPES)
    schedule = cosine_with_warmup(1e-2, 5, 100)
    groups = [{"params": ours[:4]}, {"params": ours[4:], "use_muon": False, "weight_decay": 0.0}]
    optimizer = Muon(groups, schedule, weight_decay=0.3, flat=flat)
    muon = torch.optim.Muon(theirs[:4], lr=1.0, weight_decay=0.3, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(theirs[4:], lr=1.0, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(100):
        give_gradients(ours, theirs, step)
        optimizer.step()
        for other in (muon, adamw):
            other.param_groups[0]["lr"] = schedule(step)
            other.step()
        for p, t in zip(ours, theirs, strict=True):
            assert_close(p, t)


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3), (1, 4), (1, 1)])
def test_orthogonalize_keeps_singular_vectors_and_brings_singular_values_near_1(
    backend: Backend, shape: tuple[int, int]
) -> None:
    matrix = rng(0).normal(size=shape)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    found = orthogonalize(Tensor(1e-3 * matrix)).numpy()
    expected = values / np.linalg.norm(values)
    for _ in range(5):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    np.testing.assert_allclose(found, left * expected @ right, rtol=0, atol=1e-12)
    assert expected.min() > 0.6 and expected.max() < 1.3


def test_orthogonalize_of_zeros_is_zero(backend: Backend) -> None:
    np.testing.assert_array_equal(orthogonalize(Tensor(np.zeros((3, 2)))).numpy(), np.zeros((3, 2)))


def test_a_step_of_muon_is_as_large_as_one_of_adamw(backend: Backend) -> None:
    """A root mean square of about 0.2 lr: section 2.2 of arXiv:2502.16982."""
    for shape in ((16, 16), (8, 64), (64, 8)):
        p = Tensor(np.zeros(shape))
        p.grad = p.backend.asarray(rng(0).normal(size=shape))
        Muon([p], lr=1.0).step()
        rms = math.sqrt(float(np.mean(p.numpy() ** 2)))
        assert 0.15 < rms < 0.25


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_muon_refuses_what_is_no_matrix(backend: Backend, shape: tuple[int, ...]) -> None:
    p: Any = Tensor(np.ones(shape))
    message = r"Muon: needs matrices, got shape \(.*\); put it in a group with use_muon=False"
    with pytest.raises(ValueError, match=message):
        Muon([Tensor(np.ones((2, 2))), p])
    Muon([{"params": [p], "use_muon": False}])
