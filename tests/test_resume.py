"""Resumed training is bitwise identical to uninterrupted training; gradient accumulation equals the whole batch."""

import signal
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from russellgrad import Tensor, parallel
from russellgrad.backend import Backend, available_backends, use_backend
from russellgrad.checkpoint import load_model
from russellgrad.optimizer import SGDOptimizer
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer
from tests.helpers import rng
from tests.test_train import SMALL
from train import checkpoints, train_transformer
from train.data import split_batch
from train.metrics import read_metrics
from train.train_transformer import Result, train, train_step

pytest.importorskip("safetensors")

RUN: dict[str, Any] = {**SMALL, "steps": 12, "eval_interval": 3, "save_interval": 2, "dropout": 0.1, "sample_tokens": 0}


@pytest.fixture(autouse=True)
def _no_step_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RG_TRAIN_STEPS", raising=False)


def run(text: str, out: Path, **options: Any) -> Result:
    return train(dataset=text, out=str(out), **{**RUN, **options})


def run_until_signal(monkeypatch: pytest.MonkeyPatch, after: int, text: str, out: Path, **options: Any) -> Result:
    """Run until SIGTERM is raised in step `after`."""
    train_step, taken = train_transformer.train_step, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        taken.append(1)
        if len(taken) == after:
            signal.raise_signal(signal.SIGTERM)
        return train_step(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(train_transformer, "train_step", interrupted)
        return run(text, out, **options)


def parameters(path: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in load_model(path, "numpy").state_dict().items()}


# --- Resuming


@pytest.mark.parametrize(
    "options",
    [
        {}, {"dtype": "float64"}, {"schedule": "constant"}, {"accumulate": 2}, {"dropout": 0.0, "grad_clip": 0.0},
        {"attention_dropout": 0.2}, {"dropout": 0.0, "attention_dropout": 0.2},
        {"dtype": "bfloat16"}, {"optimizer": "sgd"}, {"optimizer": "lion"}, {"optimizer": "muon"},
        {"optimizer": "muon", "dtype": "bfloat16"},
    ],
    ids=str,
)  # fmt: skip
def test_resumed_run_matches_uninterrupted_run_bitwise(
    backend: Backend,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    tmp_path: Path,
    options: dict[str, Any],
) -> None:
    if options.get("dtype", "float32") not in backend.float_dtypes():
        pytest.skip(f"{backend.name} has no bfloat16")
    whole = run(text, tmp_path / "whole", **options)
    if hasattr(backend, "capture"):  # a replayed step runs no Python: limit the steps instead
        monkeypatch.setenv("RG_TRAIN_STEPS", "5")
        first = run(text, tmp_path / "parts", **options)
        monkeypatch.delenv("RG_TRAIN_STEPS")
    else:
        first = run_until_signal(monkeypatch, 5, text, tmp_path / "parts", **options)
        assert first.signal == signal.SIGTERM
    rest = train(resume=str(tmp_path / "parts"))
    assert first.losses + rest.losses == whole.losses
    assert rest.validation_losses == whole.validation_losses
    assert rest.steps == 12
    assert parameters(rest.path) == parameters(whole.path)
    one, two = (checkpoints.latest_checkpoint(out) for out in (tmp_path / "whole", tmp_path / "parts"))
    assert one is not None and two is not None
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (one / file).read_bytes() == (two / file).read_bytes()
    steps = read_metrics(tmp_path / "parts").steps
    assert steps == list(range(1, 13))


def test_checkpoint_resumes_on_another_backend(
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    tmp_path: Path,
) -> None:
    with use_backend("numpy"):
        whole = run(text, tmp_path / "whole", dtype="float64")
    for name in available_backends():
        monkeypatch.setenv("RG_TRAIN_STEPS", "6")
        with use_backend("numpy"):
            run(text, tmp_path / name, dtype="float64")
        monkeypatch.delenv("RG_TRAIN_STEPS")
        with use_backend(name):
            rest = train(resume=str(tmp_path / name))
        np.testing.assert_allclose(rest.losses, whole.losses[6:], rtol=0, atol=1e-10)


# --- Threads


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "optimizer": "sgd"}], ids=str)
def test_training_in_several_threads(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, text: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Each thread computes its rows. The result is that of one thread, and a resumed run has the same bits."""
    cpu = import_module("russellgrad.backends.cpu")
    counts: list[int] = []

    def counted(inputs: Any, targets: Any, parts: int, *others: Any) -> Any:
        counts.append(parts)
        return split_batch(inputs, targets, parts, *others)

    monkeypatch.setattr(train_transformer, "split_batch", counted)
    monkeypatch.setattr(parallel, "MIN_FLOPS", 1.0)  # or a small model would have one part
    options = {"dtype": "float64", "dropout": 0.3, "batch": 6, **options}
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(cpu, "_n_threads", threads)
        monkeypatch.setattr(cpu, "_queue", None)
        counts.clear()
        results.append(run(text, tmp_path / str(threads), **options))
        rows = 6 // options.get("accumulate", 1)
        most = max(n for n in range(1, threads + 1) if rows % n == 0) if hasattr(backend, "n_threads") else 1
        assert set(counts) == {most * options.get("accumulate", 1)}
    for result in results[1:]:
        np.testing.assert_allclose(result.losses, results[0].losses, rtol=0, atol=1e-10)
        for name, array in results[0].model.state_dict().items():
            np.testing.assert_allclose(result.model.state_dict()[name], array, rtol=0, atol=1e-10)
    monkeypatch.setenv("RG_TRAIN_STEPS", "5")
    first = run(text, tmp_path / "parts", **options)
    monkeypatch.delenv("RG_TRAIN_STEPS")
    rest = train(resume=str(tmp_path / "parts"))
    assert first.losses + rest.losses == results[-1].losses
    assert parameters(rest.path) == parameters(results[-1].path)


def test_micro_batches_run_one_after_another(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, text: str, tmp_path: Path
) -> None:
    """Only the parts of one micro-batch are in memory at the same time, whatever the number of threads."""
    monkeypatch.setattr(import_module("russellgrad.backends.cpu"), "_n_threads", 3)
    monkeypatch.setattr(import_module("russellgrad.backends.cpu"), "_queue", None)
    calls = []

    def counted(loss_of: Any, parts: Any) -> Any:
        calls.append(len(parts))
        return parallel.parallel_backward(loss_of, parts)

    monkeypatch.setattr(train_transformer, "parallel_backward", counted)
    run(text, tmp_path, batch=6, accumulate=3, steps=2, warmup=0)
    assert calls == [1] * 6 if not hasattr(backend, "capture") else set(calls) == {1}
    if hasattr(backend, "n_threads"):
        calls.clear()
        monkeypatch.setattr(parallel, "MIN_FLOPS", 1.0)
        run(text, tmp_path, batch=6, accumulate=2, steps=2, warmup=0)
        assert calls == [3] * 4


# --- Gradient accumulation


@pytest.mark.parametrize("dropout", [{}, {"dropout": 0.3}, {"dropout": 0.3, "attention_dropout": 0.2}], ids=str)
def test_gradient_accumulation_matches_the_whole_batch(
    backend: Backend,
    text: str,
    tmp_path: Path,
    dropout: dict[str, float],
) -> None:
    options = {"dtype": "float64", "batch": 6, "dropout": 0.0, **dropout}
    whole = run(text, tmp_path, **options)
    for parts in (2, 3, 6):
        result = run(text, tmp_path, accumulate=parts, **options)
        np.testing.assert_allclose(result.losses, whole.losses, rtol=0, atol=1e-12)
        for name, array in whole.model.state_dict().items():
            np.testing.assert_allclose(result.model.state_dict()[name], array, rtol=0, atol=1e-10)


@pytest.mark.parametrize("split_into", [(2, 1), (3, 1), (1, 3), (2, 3)], ids=str)
def test_gradient_accumulation_of_a_padded_batch_matches_the_whole_batch(
    backend: Backend, split_into: tuple[int, int]
) -> None:
    """Parts are weighted by their number of tokens, so their gradients sum to the whole batch's, with dropout too."""
    parts, size = split_into
    ids = rng(3).integers(0, 5, (6, 9))
    ids[0, 4:], ids[3, 2:], ids[5, 7:] = 5, 5, 5
    gradients, losses = [], []
    for divided in (False, True):
        tokenizer = Tokenizer.from_text("abcde", 8, 8, seed=1)
        model = Transformer(tokenizer, 1, 2, dropout=0.3, attention_dropout=0.2, seed=2)
        optimizer = SGDOptimizer(model.parameters(), lr=0.0, flat=True)
        ranks = range(size) if divided else range(1)
        total, loss = 0.0, 0.0
        for rank in ranks:
            assert model.dropout.generator is not None
            model.dropout.generator.counter = 0
            given = split_batch(ids[:, :-1], ids[:, 1:], parts if divided else 1, 5, rank, len(ranks))
            part, _ = train_step(model, optimizer, *given, grad_clip=0.0)
            total = total + Tensor(optimizer.flat_grad).numpy()
            loss += part.item()
        gradients.append(total)
        losses.append(loss)
    assert abs(losses[0] - losses[1]) <= 1e-12
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=0, atol=1e-12)
    assert np.abs(gradients[0]).max() > 0.01
