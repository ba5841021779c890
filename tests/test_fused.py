"""softmax, log_softmax, layer_norm, embedding, cross_entropy and attention against PyTorch, with edge cases."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's convention

import russellgrad as rg
from russellgrad import Tensor
from russellgrad.backend import Backend
from tests.helpers import assert_close, check_against_torch, rng

DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])
inf = math.inf


def normal(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return rng(seed).normal(size=shape)


# --- softmax, log_softmax

SOFTMAXES = pytest.mark.parametrize(
    ("ours", "theirs"),
    [(rg.softmax, torch.softmax), (rg.log_softmax, torch.log_softmax)],
    ids=["softmax", "log_softmax"],
)


@DTYPES
@SOFTMAXES
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_softmax(backend: Backend, ours: Any, theirs: Any, axis: int, dtype: str) -> None:
    check_against_torch(lambda x: ours(x, axis), lambda x: theirs(x, axis), normal(2, 3, 4), dtype=dtype)


@SOFTMAXES
def test_softmax_as_a_method(backend: Backend, ours: Any, theirs: Any) -> None:
    check_against_torch(lambda x: getattr(x, ours.__name__)(), lambda x: theirs(x, -1), normal(2, 3))
    check_against_torch(lambda x: getattr(x, ours.__name__)(0), lambda x: theirs(x, 0), normal(2, 3))


@SOFTMAXES
def test_softmax_of_views(backend: Backend, ours: Any, theirs: Any) -> None:
    check_against_torch(lambda x: ours(x.T[::-1, ::2], 0), lambda x: theirs(x.T.flip(0)[:, ::2], 0), normal(4, 3))
    check_against_torch(lambda x: ours(x.broadcast_to(3, 4), 0), lambda x: theirs(x.broadcast_to(3, 4), 0), normal(4))


@SOFTMAXES
@pytest.mark.parametrize("shape", [(2, 0), (0, 3), (0,), (2, 0, 3), (1, 1)])
def test_softmax_of_empty_tensors(backend: Backend, ours: Any, theirs: Any, shape: tuple[int, ...]) -> None:
    for axis in range(len(shape)):
        check_against_torch(lambda x, axis=axis: ours(x, axis), lambda x, axis=axis: theirs(x, axis), normal(*shape))


@SOFTMAXES
def test_softmax_does_not_overflow(backend: Backend, ours: Any, theirs: Any) -> None:
    rows = np.array([[1000.0, 1001.0, 999.0], [-1000.0, -1001.0, -5000.0], [1e300, 0.0, -1e300], [0.0, -inf, 1.0]])
    check_against_torch(lambda x: ours(x), lambda x: theirs(x, -1), rows)


@SOFTMAXES
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # inf - inf
def test_softmax_of_infinities(backend: Backend, ours: Any, theirs: Any) -> None:
    rows = np.array([[-inf, -inf], [inf, 0.0], [math.nan, 0.0]])
    check_against_torch(lambda x: ours(x), lambda x: theirs(x, -1), rows)


@SOFTMAXES
def test_softmax_with_an_axis_out_of_range_raises(backend: Backend, ours: Any, theirs: Any) -> None:
    for x, axis in ((Tensor(normal(2, 3)), 2), (Tensor(1.0), -1)):
        with pytest.raises(IndexError, match=rf"^{ours.__name__}: axis {axis} is out of range for a tensor of"):
            ours(x, axis)


# --- layer_norm


def reference_layer_norm(x: Any, gamma: Any = None, beta: Any = None) -> Any:
    return F.layer_norm(x, x.shape[-1:], gamma, beta, 1e-5)


@DTYPES
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (0, 4), (3, 1)])
def test_layer_norm(backend: Backend, shape: tuple[int, ...], dtype: str) -> None:
    x, gamma, beta = normal(*shape), normal(shape[-1], seed=1), normal(shape[-1], seed=2)
    check_against_torch(rg.layer_norm, reference_layer_norm, x, gamma, beta, dtype=dtype)
    check_against_torch(rg.layer_norm, reference_layer_norm, x, dtype=dtype)
    check_against_torch(rg.layer_norm, reference_layer_norm, x, gamma, dtype=dtype)
    check_against_torch(
        lambda x, beta: rg.layer_norm(x, None, beta),
        lambda x, beta: reference_layer_norm(x, None, beta),
        x,
        beta,
        dtype=dtype,
    )


@pytest.mark.parametrize(
    "needs",
    [(True, False, False), (False, True, False), (False, False, True), (False, True, True), (True, False, True)],
)
def test_layer_norm_with_constant_operands(backend: Backend, needs: Sequence[bool]) -> None:
    check_against_torch(
        rg.layer_norm, reference_layer_norm, normal(2, 3, 4), normal(4, seed=1), normal(4, seed=2), needs=needs
    )


def test_layer_norm_eps(backend: Backend) -> None:
    check_against_torch(
        lambda x: rg.layer_norm(x, eps=0.5), lambda x: F.layer_norm(x, x.shape[-1:], eps=0.5), normal(3, 4)
    )
    check_against_torch(
        rg.layer_norm, reference_layer_norm, np.full((2, 4), 3.0)
    )  # variance 0: only eps in the denominator


def test_layer_norm_of_views(backend: Backend) -> None:
    check_against_torch(
        lambda x, w: rg.layer_norm(x.T[:, ::-1], w[::2]),
        lambda x, w: reference_layer_norm(x.T.flip(1), w[::2]),
        normal(4, 3),
        normal(8, seed=1),
    )


@pytest.mark.parametrize(("dtype", "mean"), [("float64", 1e8), ("float32", 1024.0 * 1024.0)])
def test_layer_norm_with_a_large_mean(backend: Backend, dtype: str, mean: float) -> None:
    """E[x^2] - E[x]^2 would cancel completely. Integer noise keeps the mean and the differences exact."""
    noise = rng(3).integers(-4, 5, size=(3, 8)).astype(dtype)
    gamma = normal(8).astype(dtype)
    upstream = Tensor(normal(3, 8, seed=4).astype(dtype), requires_grad=False)
    grads = []
    for shift in (mean, 0.0):
        x = Tensor(noise + np.array(shift, dtype))
        out = rg.layer_norm(x, Tensor(gamma))
        out.backward(upstream)
        grads += [out, x.grad]
    assert_close(grads[0], grads[2])
    assert_close(grads[1], grads[3])


def test_layer_norm_errors(backend: Backend) -> None:
    x = Tensor(normal(3, 4))
    with pytest.raises(ValueError, match=r"^layer_norm: gamma \(3,\) does not fit x \(3, 4\); it must be \(4,\)"):
        rg.layer_norm(x, Tensor(normal(3)))
    with pytest.raises(ValueError, match=r"^layer_norm: beta \(1, 4\) does not fit"):
        rg.layer_norm(x, None, Tensor(normal(1, 4)))
    with pytest.raises(ValueError, match=r"^layer_norm: gamma \(\) does not fit"):
        rg.layer_norm(x, 1.0)
    with pytest.raises(ValueError, match=r"^layer_norm: x is 0-d"):
        rg.layer_norm(Tensor(1.0))


# --- rms_norm


def reference_rms_norm(x: Any, gamma: Any = None, eps: float = 1e-5) -> Any:
    return F.rms_norm(x, x.shape[-1:], gamma, eps)


@DTYPES
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (0, 4), (3, 1)])
def test_rms_norm(backend: Backend, shape: tuple[int, ...], dtype: str) -> None:
    x, gamma = normal(*shape), normal(shape[-1], seed=1)
    check_against_torch(rg.rms_norm, reference_rms_norm, x, gamma, dtype=dtype)
    check_against_torch(rg.rms_norm, reference_rms_norm, x, dtype=dtype)
    for needs in ((True, False), (False, True)):
        check_against_torch(rg.rms_norm, reference_rms_norm, x, gamma, dtype=dtype, needs=needs)


def test_rms_norm_edge_cases(backend: Backend) -> None:
    check_against_torch(lambda x: rg.rms_norm(x, eps=0.5), lambda x: reference_rms_norm(x, eps=0.5), normal(3, 4))
    check_against_torch(rg.rms_norm, reference_rms_norm, np.zeros((2, 4)))  # only eps in the denominator
    check_against_torch(
        lambda x, w: rg.rms_norm(x.T[:, ::-1], w[::2]),
        lambda x, w: reference_rms_norm(x.T.flip(1), w[::2]),
        normal(4, 3),
        normal(8, seed=1),
    )
    check_against_torch(lambda x: rg.rms_norm(x, x), lambda x: reference_rms_norm(x, x), normal(4))
    check_against_torch(rg.rms_norm, reference_rms_norm, normal(600, 300), normal(300))  # several blocks


def test_rms_norm_errors(backend: Backend) -> None:
    x = Tensor(normal(3, 4))
    with pytest.raises(ValueError, match=r"^rms_norm: gamma \(3,\) does not fit x \(3, 4\); it must be \(4,\)"):
        rg.rms_norm(x, Tensor(normal(3)))
    with pytest.raises(ValueError, match=r"^rms_norm: gamma \(\) does not fit"):
        rg.rms_norm(x, 1.0)
    with pytest.raises(ValueError, match=r"^rms_norm: x is 0-d"):
        rg.rms_norm(Tensor(1.0))


# --- swiglu


@DTYPES
@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 4), (0, 4), (300, 600)])
def test_swiglu(backend: Backend, shape: tuple[int, ...], dtype: str) -> None:
    gate, up = 3 * normal(*shape), normal(*shape, seed=1)
    for needs in ((True, True), (True, False), (False, True)):
        check_against_torch(rg.swiglu, lambda a, b: F.silu(a) * b, gate, up, dtype=dtype, needs=needs)


def test_swiglu_edge_cases(backend: Backend) -> None:
    check_against_torch(lambda a: rg.swiglu(a, a), lambda a: F.silu(a) * a, normal(3, 4))
    check_against_torch(
        lambda a, b: rg.swiglu(a.T[:, ::-1], b[::2]),
        lambda a, b: F.silu(a.T.flip(1)) * b[::2],
        normal(4, 3),
        normal(6, 4),
    )
    check_against_torch(rg.swiglu, lambda a, b: F.silu(a) * b, np.array([0.0, 1000.0, -1000.0]), normal(3))
    gate, up = np.array([-50.0, -100.0, -1e30], np.float32), np.array([1e37, 4e36, 1e10], np.float32)
    found = rg.swiglu(Tensor(np.tile(gate, 20)), Tensor(np.tile(up, 20))).numpy()
    expected = (F.silu(torch.tensor(gate)) * torch.tensor(up)).numpy()
    np.testing.assert_allclose(found.reshape(20, 3), np.tile(expected, (20, 1)), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"^swiglu: gate \(3,\) and up \(2, 3\) must have the same shape"):
        rg.swiglu(Tensor(normal(3)), Tensor(normal(2, 3)))


# --- layer_norm of a residual sum


def residual(x: Any, r: Any, gamma: Any = None, beta: Any = None) -> Any:
    """The result uses the sum and its norm, so the gradient of the sum has two contributions."""
    total = x + r
    ours = isinstance(x, Tensor)
    normed: Any = rg.layer_norm(total, gamma, beta) if ours else F.layer_norm(total, x.shape[-1:], gamma, beta)
    return total * total + normed * 3


@DTYPES
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (0, 4), (3, 2)])
def test_layer_norm_of_a_residual_sum(backend: Backend, shape: tuple[int, ...], dtype: str) -> None:
    arrays = normal(*shape), normal(*shape, seed=1)
    check_against_torch(residual, residual, *arrays, dtype=dtype)
    check_against_torch(residual, residual, *arrays, normal(shape[-1], seed=2), normal(shape[-1], seed=3), dtype=dtype)


@pytest.mark.parametrize(
    "needs", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 1, 0, 1)], ids=lambda needs: str(needs)
)
def test_layer_norm_of_a_residual_sum_with_constants(backend: Backend, needs: Sequence[bool]) -> None:
    arrays = normal(3, 4), normal(3, 4, seed=1), normal(4, seed=2), normal(4, seed=3)
    check_against_torch(residual, residual, *arrays, needs=[bool(need) for need in needs])


def test_layer_norm_of_a_residual_sum_of_the_same_tensor(backend: Backend) -> None:
    check_against_torch(lambda x: residual(x, x), lambda x: residual(x, x), normal(3, 4))
    check_against_torch(lambda x: residual(x.T, x.T[::-1]), lambda x: residual(x.T, x.T.flip(0)), normal(4, 3))


def test_layer_norm_of_integers(backend: Backend) -> None:
    x, gamma = Tensor(np.array([[1, 2, 4]])), Tensor(np.array([1, 2, 3]))
    for normed in (rg.layer_norm(x), rg.layer_norm(x, gamma)):
        assert normed.dtype == "float64"
    assert_close(normed, rg.layer_norm(x.astype("float64"), gamma.astype("float64")))


def test_layer_norm_of_an_operand_used_several_times(backend: Backend) -> None:
    """The gradients of all uses of an operand accumulate."""

    def several(x: Any) -> Any:
        norm: Any = rg.layer_norm if isinstance(x, Tensor) else lambda x: F.layer_norm(x, x.shape[-1:])
        return norm(x) * norm(x * 2) + x.tanh() + norm(norm(x))

    check_against_torch(several, several, normal(3, 4))


# --- embedding

ids = np.array([[0, 2, 2], [4, 2, 0]])


@DTYPES
def test_embedding(backend: Backend, dtype: str) -> None:
    weight = normal(5, 3)
    for given in (ids, ids.tolist(), Tensor(ids), Tensor(ids).data, ids.astype("int32"), ids.astype("uint8")):
        check_against_torch(
            lambda w, given=given: rg.embedding(w, given),
            lambda w: F.embedding(torch.tensor(ids), w),
            weight,
            dtype=dtype,
        )


@pytest.mark.parametrize("given", [np.array(3), np.array([1]), np.zeros((0,), int), np.zeros((2, 0), int)])
def test_embedding_shapes(backend: Backend, given: np.ndarray[Any, Any]) -> None:
    check_against_torch(lambda w: rg.embedding(w, given), lambda w: F.embedding(torch.tensor(given), w), normal(5, 3))


def test_embedding_of_empty_ids_and_empty_rows(backend: Backend) -> None:
    assert rg.embedding(Tensor(normal(5, 3)), []).shape == (0, 3)
    check_against_torch(lambda w: rg.embedding(w, [1, 1]), lambda w: w[[1, 1]], np.zeros((2, 0)))


def test_embedding_of_a_view(backend: Backend) -> None:
    check_against_torch(
        lambda w: rg.embedding(w.T[::-1], ids), lambda w: F.embedding(torch.tensor(ids), w.T.flip(0)), normal(3, 5)
    )


def test_embedding_of_repeated_ids(backend: Backend) -> None:
    many = rng(5).integers(0, 11, size=(40, 50))
    check_against_torch(lambda w: rg.embedding(w, many), lambda w: F.embedding(torch.tensor(many), w), normal(11, 4))


@pytest.mark.parametrize(("wrong", "bad"), [([0, -1], -1), ([5], 5), ([[1, 2], [3, 100]], 100)])
def test_embedding_ids_out_of_range_raise(backend: Backend, wrong: Any, bad: int) -> None:
    weight = Tensor(normal(5, 3))
    message = rf"^embedding: id {bad} is out of range; ids must be in \[0, 5\)"
    for given in (wrong, Tensor(np.array(wrong))):
        with pytest.raises(IndexError, match=message):
            rg.embedding(weight, given)


def test_embedding_errors(backend: Backend) -> None:
    with pytest.raises(TypeError, match=r"^embedding: ids must be integers, got dtype float64"):
        rg.embedding(Tensor(normal(5, 3)), [1.0])
    with pytest.raises(TypeError, match=r"^embedding: ids must be integers, got dtype bool"):
        rg.embedding(Tensor(normal(5, 3)), [True])
    with pytest.raises(ValueError, match=r"^embedding: weight must be \(rows, columns\), got shape \(3,\)"):
        rg.embedding(Tensor(normal(3)), [0])


# --- cross_entropy


@DTYPES
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (1, 1)])
def test_cross_entropy(backend: Backend, shape: tuple[int, ...], dtype: str) -> None:
    targets = rng(1).integers(0, shape[-1], size=shape[:-1])
    flat = torch.tensor(targets).reshape(-1)
    for given in (targets, Tensor(targets), targets.tolist()):
        check_against_torch(
            lambda x, given=given: rg.cross_entropy(x, given),
            lambda x: F.cross_entropy(x.reshape(-1, shape[-1]), flat),
            normal(*shape),
            dtype=dtype,
        )


@DTYPES
@pytest.mark.parametrize("ignore", [-100, 2, 99])
def test_cross_entropy_ignore_index(backend: Backend, ignore: int, dtype: str) -> None:
    targets = np.array([[1, ignore, 0], [ignore, 4, ignore]])
    check_against_torch(
        lambda x: rg.cross_entropy(x, targets, ignore_index=ignore),
        lambda x: F.cross_entropy(x.reshape(-1, 5), torch.tensor(targets).reshape(-1), ignore_index=ignore),
        normal(2, 3, 5),
        dtype=dtype,
    )


def test_cross_entropy_without_ignored_targets(backend: Backend) -> None:
    targets = np.array([1, 0])
    check_against_torch(
        lambda x: rg.cross_entropy(x, targets, ignore_index=3),
        lambda x: F.cross_entropy(x, torch.tensor(targets)),
        normal(2, 5),
    )


def test_cross_entropy_of_views(backend: Backend) -> None:
    targets = np.array([1, 0, 2])
    check_against_torch(
        lambda x: rg.cross_entropy(x.T[:, ::-1], targets),
        lambda x: F.cross_entropy(x.T.flip(1), torch.tensor(targets)),
        normal(4, 3),
    )


@DTYPES
def test_cross_entropy_does_not_overflow(backend: Backend, dtype: str) -> None:
    """e^1000 is inf and log 0 is -inf; neither may occur in intermediate results."""
    logits = np.array([[1000.0, 0.0], [0.0, -1000.0], [-1000.0, 1000.0]])
    targets = np.array([1, 0, 1])
    check_against_torch(
        lambda x: rg.cross_entropy(x, targets), lambda x: F.cross_entropy(x, torch.tensor(targets)), logits, dtype=dtype
    )
    assert rg.cross_entropy(Tensor(logits[:1], dtype=dtype), [1]).item() == 1000.0


def test_cross_entropy_of_classes_with_logit_minus_infinity(backend: Backend) -> None:
    logits = np.array([[0.5, -inf, 1.0], [-inf, -inf, 2.0]])
    targets = np.array([0, 2])
    check_against_torch(
        lambda x: rg.cross_entropy(x, targets), lambda x: F.cross_entropy(x, torch.tensor(targets)), logits
    )


def test_cross_entropy_errors(backend: Backend) -> None:
    logits = Tensor(normal(2, 5))
    for wrong, bad in (([0, -1], -1), ([5, 0], 5), ([-100, 0], -100)):
        with pytest.raises(IndexError, match=rf"^cross_entropy: id {bad} is out of range; ids must be in \[0, 5\)"):
            rg.cross_entropy(logits, wrong)
    with pytest.raises(IndexError, match=r"^cross_entropy: id -1 is out of range"):
        rg.cross_entropy(logits, [-100, -1], ignore_index=-100)
    with pytest.raises(ValueError, match=r"^cross_entropy: .*at least one must be valid"):
        rg.cross_entropy(logits, [3, 3], ignore_index=3)
    with pytest.raises(ValueError, match=r"^cross_entropy: .*at least one must be valid"):
        rg.cross_entropy(logits[:0], [])
    with pytest.raises(ValueError, match=r"^cross_entropy: logits \(2, 5\) need ids of shape \(2,\), got \(3,\)"):
        rg.cross_entropy(logits, [0, 1, 2])
    with pytest.raises(ValueError, match=r"^cross_entropy: logits are 0-d"):
        rg.cross_entropy(Tensor(1.0), 0)
    with pytest.raises(TypeError, match=r"^cross_entropy: ids must be integers"):
        rg.cross_entropy(logits, [0.0, 1.0])


# --- attention


def reference_attention(q: Any, k: Any, v: Any, hidden: Any = None) -> Any:
    """Attention in elementary PyTorch ops. A query with all keys masked gives zeros."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if hidden is None:
        return torch.softmax(scores, -1) @ v
    hidden = hidden.broadcast_to(scores.shape)
    weights = torch.softmax(scores.masked_fill(hidden, -1e300 if scores.dtype == torch.float64 else -1e30), -1)
    return weights.masked_fill(hidden, 0) @ v


def causal_mask(queries: int, keys: int, offset: int = 0) -> np.ndarray[Any, Any]:
    return np.arange(keys) > np.arange(queries)[:, None] + offset


@DTYPES
@pytest.mark.parametrize(
    ("q", "k", "v"),
    [
        ((4, 3), (5, 3), (5, 2)),
        ((2, 4, 3), (2, 5, 3), (2, 5, 2)),
        ((2, 6, 4, 3), (2, 6, 5, 3), (2, 6, 5, 3)),
        ((2, 6, 4, 3), (1, 6, 5, 3), (5, 3)),  # keys and values broadcast over the batch
        ((4, 3), (2, 5, 3), (2, 5, 2)),  # queries broadcast
        ((4, 3), (5, 3), (2, 5, 2)),  # attention weights broadcast
        ((1, 1), (1, 1), (1, 1)),
    ],
)
def test_attention(backend: Backend, q: Any, k: Any, v: Any, dtype: str) -> None:
    operands = normal(*q), normal(*k, seed=1), normal(*v, seed=2)
    check_against_torch(rg.attention, reference_attention, *operands, dtype=dtype)
    causal = torch.tensor(causal_mask(q[-2], k[-2]))
    check_against_torch(
        lambda q, k, v: rg.attention(q, k, v, causal=True),
        lambda q, k, v: reference_attention(q, k, v, causal),
        *operands,
        dtype=dtype,
    )


def test_attention_equals_scaled_dot_product_attention(backend: Backend) -> None:
    operands = normal(2, 3, 4, 8), normal(2, 3, 4, 8, seed=1), normal(2, 3, 4, 8, seed=2)
    check_against_torch(rg.attention, F.scaled_dot_product_attention, *operands)
    check_against_torch(
        lambda q, k, v: rg.attention(q, k, v, causal=True),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        *operands,
    )


@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, False), (False, False, True), (True, False, True)]
)
def test_attention_with_constant_operands(backend: Backend, needs: Sequence[bool]) -> None:
    check_against_torch(
        rg.attention,
        reference_attention,
        normal(2, 4, 3),
        normal(2, 5, 3, seed=1),
        normal(2, 5, 2, seed=2),
        needs=needs,
    )


@DTYPES
@pytest.mark.parametrize("offset", [-10, -2, 0, 1, 3, 10])
def test_attention_offset(backend: Backend, offset: int, dtype: str) -> None:
    """-10 masks every key for every query, 10 masks none."""
    hidden = torch.tensor(causal_mask(3, 5, offset))
    check_against_torch(
        lambda q, k, v: rg.attention(q, k, v, causal=True, offset=offset),
        lambda q, k, v: reference_attention(q, k, v, hidden),
        normal(2, 3, 4),
        normal(2, 5, 4, seed=1),
        normal(2, 5, 2, seed=2),
        dtype=dtype,
    )


@DTYPES
@pytest.mark.parametrize("shape", [(4, 5), (5,), (1, 5), (4, 1), (2, 1, 1, 5), (2, 3, 4, 5), (3, 4, 5), ()])
def test_attention_mask(backend: Backend, shape: tuple[int, ...], dtype: str) -> None:
    """True masks a key. The masks here mask all keys of some queries."""
    hidden = np.asarray(rng(7).random(shape) > 0.5)
    if shape:
        hidden[(0,) * (len(shape) - 1)] = True
    operands = normal(2, 3, 4, 6), normal(2, 3, 5, 6, seed=1), normal(2, 3, 5, 2, seed=2)
    for given in (hidden, Tensor(hidden), hidden.tolist()):
        check_against_torch(
            lambda q, k, v, given=given: rg.attention(q, k, v, given),
            lambda q, k, v: reference_attention(q, k, v, torch.tensor(hidden)),
            *operands,
            dtype=dtype,
        )
    check_against_torch(
        lambda q, k, v: rg.attention(q, k, v, mask=hidden, causal=True, offset=1),
        lambda q, k, v: reference_attention(q, k, v, torch.tensor(hidden | causal_mask(4, 5, 1))),
        *operands,
        dtype=dtype,
    )


def test_attention_mask_with_more_batch_axes_than_the_queries(backend: Backend) -> None:
    hidden = rng(3).random((2, 3, 4, 5)) < 0.4
    check_against_torch(
        lambda q, k, v: rg.attention(q, k, v, hidden),
        lambda q, k, v: reference_attention(q, k, v, torch.tensor(hidden)),
        normal(4, 3), normal(2, 3, 5, 3, seed=1), normal(5, 2, seed=2),
    )  # fmt: skip


def test_attention_of_fully_masked_queries(backend: Backend) -> None:
    """A query with all keys masked gives exact zeros and zero gradients, never nan."""
    q, k, v = Tensor(normal(2, 3)), Tensor(normal(4, 3, seed=1)), Tensor(normal(4, 2, seed=2))
    out = rg.attention(q, k, v, mask=np.array([[True], [False]]))
    out.backward(Tensor(normal(2, 2, seed=3)))
    assert out.numpy()[0].tolist() == [0.0, 0.0]
    assert Tensor(q.grad).numpy()[0].tolist() == [0.0, 0.0, 0.0]
    assert Tensor(q.grad).numpy()[1].all()
    out = rg.attention(q, k, v, mask=np.array(True))
    for leaf in (q, k, v):
        leaf.zero_grad()
    out.backward(Tensor(normal(2, 2, seed=3)))
    for array in (out, q.grad, k.grad, v.grad):
        assert not Tensor(array.data if isinstance(array, Tensor) else array).numpy().any()


def test_attention_of_large_scores(backend: Backend) -> None:
    check_against_torch(
        rg.attention,
        reference_attention,
        1e4 * normal(3, 4),
        10 * normal(5, 4, seed=1),
        normal(5, 2, seed=2),
        atol=1e-8,
    )


@pytest.mark.parametrize(
    ("q", "k", "v"),
    [((2, 3, 4), (2, 0, 4), (2, 0, 5)), ((2, 0, 4), (2, 3, 4), (2, 3, 5)), ((0, 3, 4), (0, 3, 4), (0, 3, 5))],
    ids=["no keys", "no queries", "no batch"],
)
@pytest.mark.parametrize("causal", [False, True])
def test_attention_of_empty_operands(backend: Backend, q: Any, k: Any, v: Any, causal: bool) -> None:
    """Without keys the output is zero, the value of an empty sum."""
    check_against_torch(
        lambda q, k, v: rg.attention(q, k, v, causal=causal), reference_attention, normal(*q), normal(*k), normal(*v)
    )


def test_attention_of_views(backend: Backend) -> None:
    """q, k and v are views of one (B, T, 3 * H * d) tensor, as in a model."""

    def heads(x: Any, i: int) -> Any:
        return x[:, :, 6 * i : 6 * (i + 1)].reshape(2, 4, 3, 2).swapaxes(1, 2)

    check_against_torch(
        lambda x: rg.attention(heads(x, 0), heads(x, 1), heads(x, 2), causal=True),
        lambda x: F.scaled_dot_product_attention(heads(x, 0), heads(x, 1), heads(x, 2), is_causal=True),
        normal(2, 4, 18),
    )


def reference_qkvpacked(qkv: torch.Tensor, hidden: torch.Tensor | None = None, heads: int = 2) -> torch.Tensor:
    separate = [part.unflatten(-1, (heads, -1)).transpose(-3, -2) for part in qkv.chunk(3, dim=-1)]
    return reference_attention(separate[0], separate[1], separate[2], hidden).transpose(-3, -2).flatten(-2)


@DTYPES
@pytest.mark.parametrize("shape", [(4, 12), (2, 4, 12), (2, 3, 1, 6), (0, 4, 12), (2, 0, 6)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_attention_qkvpacked(backend: Backend, shape: tuple[int, ...], dtype: str, causal: bool) -> None:
    length = shape[-2]
    hidden = torch.tensor(causal_mask(length, length, 0)) if causal else torch.zeros(length, length, dtype=torch.bool)
    check_against_torch(
        lambda qkv: rg.attention_qkvpacked(qkv, 2, causal=causal),
        lambda qkv: reference_qkvpacked(qkv, hidden),
        normal(*shape),
        dtype=dtype,
    )


def test_attention_qkvpacked_with_a_mask_and_on_views(backend: Backend) -> None:
    mask = np.asarray(rng(7).random((2, 1, 4, 4)) > 0.5)
    check_against_torch(
        lambda qkv: rg.attention_qkvpacked(qkv, 2, mask, causal=True),
        lambda qkv: reference_qkvpacked(qkv, torch.tensor(mask | causal_mask(4, 4, 0))),
        normal(2, 4, 12),
    )
    check_against_torch(
        lambda x: rg.attention_qkvpacked(x.swapaxes(0, 2)[:, ::-1], 2),
        lambda x: reference_qkvpacked(x.transpose(0, 2).flip(1), torch.zeros(4, 4, dtype=torch.bool)),
        normal(12, 4, 2),
    )


def test_attention_qkvpacked_errors(backend: Backend) -> None:
    for shape, heads in (((4, 10), 2), ((4, 12), 0), ((12,), 2), ((4, 0), 2)):
        with pytest.raises(ValueError, match=r"attention_qkvpacked: qkv .* does not hold q, k and v"):
            rg.attention_qkvpacked(Tensor(normal(*shape)), heads)
    with pytest.raises(ValueError, match="attention_qkvpacked: a mask of shape"):
        rg.attention_qkvpacked(Tensor(normal(4, 12)), 2, np.zeros((3, 3), bool))


def test_attention_errors(backend: Backend) -> None:
    q, k, v = Tensor(normal(4, 3)), Tensor(normal(5, 3)), Tensor(normal(5, 2))
    message = r"^attention: q \(.*\), k \(.*\) and v \(.*\) do not fit; they must be \(..., L, d\)"
    for operands in ((q, v, v), (q, k, v[:4]), (q[0], k, v), (q[:, :0], k[:, :0], v)):
        with pytest.raises(ValueError, match=message):
            rg.attention(*operands)
    with pytest.raises(TypeError, match=r"^attention: a mask must be boolean, got dtype float64"):
        rg.attention(q, k, v, mask=np.zeros((4, 5)))
    for shape in ((5, 4), (2, 4, 5)):
        with pytest.raises(ValueError, match=r"^attention: a mask of shape .* does not broadcast to shape \(4, 5\)"):
            rg.attention(q, k, v, mask=np.zeros(shape, bool))
    with pytest.raises(ValueError, match=r"^attention: "):
        rg.attention(Tensor(normal(2, 4, 3)), Tensor(normal(3, 5, 3)), Tensor(normal(3, 5, 3)))


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_norms_sum_long_rows_accurately(backend: Backend, name: str) -> None:
    """Sums of equal numbers: an error in each addition would be one in the same direction."""
    values = np.tile(np.repeat([0.1, 0.3], 2048), (3, 1))
    values[:, ::7] *= -1
    reference = reference_rms_norm if name == "rms_norm" else lambda x, w: F.layer_norm(x, x.shape[-1:], w)
    x, gamma = (
        torch.tensor(a, requires_grad=True) for a in (values.astype("float32").astype("float64"), np.full(4096, 0.3))
    )
    reference(x, gamma).backward(torch.full((3, 4096), 0.3, dtype=torch.float64))
    ours, weight = Tensor(values.astype("float32")), Tensor(np.full(4096, 0.3, "float32"))
    getattr(rg, name)(ours, weight).backward(Tensor(np.full((3, 4096), 0.3, "float32")))
    assert_close(Tensor(ours.grad, requires_grad=False).astype("float64"), x.grad, atol=3e-6)  # the terms are up to 0.4
