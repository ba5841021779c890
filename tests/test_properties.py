"""Property-based tests with random shapes and axes, against PyTorch."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import BroadcastableShapes, mutually_broadcastable_shapes

import russellgrad as rg
from russellgrad import Tensor
from russellgrad.backend import Backend
from tests.helpers import check_against_torch, rng

# All examples of a test use the same backend, so setting up the fixture once per test is correct.
bounded = settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
shapes = st.lists(st.integers(0, 3), max_size=4).map(tuple)
seeds = st.integers(0, 1000)


def normal(shape: tuple[int, ...], seed: int) -> np.ndarray[Any, Any]:
    return np.asarray(rng(seed).normal(size=shape))


@bounded
@given(
    shapes=mutually_broadcastable_shapes(num_shapes=2, min_side=0, max_side=3, max_dims=4),
    op=st.sampled_from(["add", "sub", "mul", "div", "pow", "maximum", "where"]),
    seed=seeds,
)
def test_binary_ops_broadcast(backend: Backend, shapes: BroadcastableShapes, op: str, seed: int) -> None:
    mask = np.asarray(rng(seed).random(shapes.result_shape) > 0.5)
    ours, theirs = {
        "add": (lambda a, b: a + b, lambda a, b: a + b),
        "sub": (lambda a, b: a - b, lambda a, b: a - b),
        "mul": (lambda a, b: a * b, lambda a, b: a * b),
        "div": (lambda a, b: a / b, lambda a, b: a / b),
        "pow": (lambda a, b: (a * a + 0.5) ** b, lambda a, b: (a * a + 0.5) ** b),
        "maximum": (rg.maximum, torch.maximum),
        "where": (lambda a, b: rg.where(mask, a, b), lambda a, b: torch.where(torch.tensor(mask), a, b)),
    }[op]
    a, b = (normal(shape, seed + i) for i, shape in enumerate(shapes.input_shapes))
    check_against_torch(ours, theirs, a, np.where(b < 0, b - 0.5, b + 0.5))


@pytest.mark.parametrize("op", ["sum", "mean", "var", "max"])
@bounded
@given(data=st.data(), shape=st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple), seed=seeds)
def test_reductions_over_any_axes(backend: Backend, op: str, data: st.DataObject, shape: Any, seed: int) -> None:
    axes = tuple(data.draw(st.lists(st.sampled_from(range(len(shape))), min_size=1, unique=True), label="axes"))
    axis = tuple(i - len(shape) if data.draw(st.booleans(), label="negative") else i for i in axes)
    keep = data.draw(st.booleans(), label="keepdims")
    ours, theirs = {
        "sum": (lambda t: t.sum(axis, keep), lambda t: t.sum(axis, keep)),
        "mean": (lambda t: t.mean(axis, keep), lambda t: t.mean(axis, keep)),
        "var": (lambda t: t.var(axis, keepdims=keep), lambda t: t.var(axis, correction=0, keepdim=keep)),
        "max": (lambda t: t.max(axis, keep), lambda t: t.amax(axis, keep)),
    }[op]
    check_against_torch(ours, theirs, np.round(normal(shape, seed)))  # rounded to produce ties


@bounded
@given(data=st.data(), shape=shapes, seed=seeds)
def test_transposes_and_reshapes(backend: Backend, data: st.DataObject, shape: Any, seed: int) -> None:
    axes = tuple(data.draw(st.permutations(range(len(shape))), label="axes"))
    check_against_torch(
        lambda t: t.transpose(axes).reshape(int(np.prod(shape))).expand_dims(0),
        lambda t: t.permute(axes).reshape(int(np.prod(shape)))[None],
        normal(shape, seed),
    )


@bounded
@given(
    batch=mutually_broadcastable_shapes(num_shapes=2, min_side=0, max_side=3, max_dims=2),
    sides=st.tuples(*[st.integers(0, 3)] * 3),
    seed=seeds,
)
def test_matmul_broadcasts_batch_axes(
    backend: Backend, batch: BroadcastableShapes, sides: tuple[int, int, int], seed: int
) -> None:
    n, k, m = sides
    first, second = batch.input_shapes
    check_against_torch(
        lambda a, b: a @ b, lambda a, b: a @ b, normal((*first, n, k), seed), normal((*second, k, m), seed + 1)
    )


@bounded
@given(data=st.data(), shape=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple), seed=seeds)
def test_basic_indexing(backend: Backend, data: st.DataObject, shape: tuple[int, ...], seed: int) -> None:
    """PyTorch has no negative steps, so the reference gathers flat positions."""
    part = st.one_of(st.slices(4), st.just(Ellipsis), st.none())
    drawn = data.draw(st.lists(part, max_size=len(shape)), label="index")
    index = tuple(p for i, p in enumerate(drawn) if p is not Ellipsis or Ellipsis not in drawn[:i])
    positions = np.arange(int(np.prod(shape))).reshape(shape)[index]
    check_against_torch(
        lambda t: t[index],
        lambda t: t.reshape(-1)[torch.tensor(positions.reshape(-1).copy())].reshape(positions.shape),
        normal(shape, seed),
    )


@bounded
@given(ids=st.lists(st.integers(0, 4), max_size=12), seed=seeds)
def test_repeated_ids_accumulate_gradients(backend: Backend, ids: list[int], seed: int) -> None:
    rows = torch.tensor(ids, dtype=torch.int64)
    weight = normal((5, 3), seed)
    check_against_torch(lambda w: rg.embedding(w, ids), lambda w: w[rows], weight)
    check_against_torch(lambda w: w[ids], lambda w: w[rows], weight)
    check_against_torch(lambda w: Tensor.stack([*w, w[0]])[ids], lambda w: w[rows], weight)
