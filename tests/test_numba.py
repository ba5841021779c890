"""The Numba backend's kernels against the NumPy backend, in float32. The other tests run on Numba too."""

import importlib
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import russellgrad as rg
from russellgrad import available_backends
from russellgrad.backend import load_backend
from russellgrad.decoder import Decoder
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer
from tests.helpers import Array, rng
from tests.process import ROOT, output_of, run_python

pytest.importorskip("numba")

cpu: Any = importlib.import_module("russellgrad.backends.cpu")
load_backend("numba")  # sets up the module
numba_backend: Any = importlib.import_module("russellgrad.backends.numba_backend")
numpy_backend: Any = load_backend("numpy")


def normal(*shape: int, seed: int = 0) -> Array:
    return rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run every primitive on 1, 2 or 3 threads, for small arrays too."""
    monkeypatch.setattr(cpu, "_n_threads", request.param)
    monkeypatch.setattr(cpu, "_queue", None)
    monkeypatch.setattr(cpu, "MIN_PART_TIME", 1e-9)
    count: int = request.param
    return count


def check(primitive: str, *args: Any, atol: float = 2e-6) -> None:
    """Compare with NumPy: float32 up to rounding, float64 bitwise, since NumPy's function then runs."""
    ours, reference = getattr(numba_backend, primitive), getattr(numpy_backend, primitive)
    with np.errstate(all="ignore"):
        for found, expected in zip(tuple_of(ours(*args)), tuple_of(reference(*args)), strict=True):
            assert (found is None) is (expected is None)
            if found is not None:
                assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
                np.testing.assert_allclose(found, expected, rtol=2e-6, atol=atol)
        wide = [x.astype(np.float64) if isinstance(x, np.ndarray) and x.dtype == np.float32 else x for x in args]
        for found, expected in zip(tuple_of(ours(*wide)), tuple_of(reference(*wide)), strict=True):
            assert found is None or np.array_equal(found, expected, equal_nan=True)


def tuple_of(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


# --- exp and gelu


def test_exp_is_within_one_ulp_and_handles_extreme_values() -> None:
    x = np.linspace(-87, 88, 100_001, dtype=np.float32)
    found = np.array([numba_backend._exp(a) for a in x])
    expected = np.exp(x.astype(np.float64))
    assert np.max(np.abs(found - expected) / np.spacing(expected.astype(np.float32))) < 1.01
    ends = np.array([-np.inf, -200, 200, np.inf, np.nan, 0.0], np.float32)
    assert np.array_equal([numba_backend._exp(a) for a in ends], [0, 0, np.inf, np.inf, np.nan, 1], equal_nan=True)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_matches_numpy(threads: int, approximate: str) -> None:
    # Where Phi is near 1, 1 - Phi has an error of 6e-8, and the slope multiplies it by up to 20.
    check("gelu", np.linspace(-12, 12, 10_001, dtype=np.float32), approximate, atol=3e-6)
    check("gelu", np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e20, -1e20], np.float32), approximate)
    for a in (normal(3, 0), normal(6, 7)[::2, ::-1], normal(5, 6).T):
        check("gelu", a, approximate, atol=3e-6)
    check("gelu", normal(), approximate, atol=3e-6)


# --- Functions of rows


ROWS = [(1, 1), (7, 3), (2, 5, 16), (130, 33), (3, 0), (0, 3), (4,)]


@pytest.mark.parametrize("shape", ROWS)
def test_softmax_matches_numpy(threads: int, shape: tuple[int, ...]) -> None:
    a = normal(*shape)
    check("softmax", a, -1)
    check("softmax", np.stack([a, a], -1)[..., 0], len(shape) - 1)
    check("softmax", a, 0) if shape[0] else None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -3e38])
def test_softmax_of_extreme_values_matches_numpy(value: float) -> None:
    a = normal(4, 20)
    a[1, 3] = a[2, 19] = a[3] = value
    check("softmax", a, -1)


@pytest.mark.parametrize("shape", ROWS)
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_forward_and_backward_match_numpy(threads: int, shape: tuple[int, ...], affine: bool) -> None:
    width = shape[-1]
    x, g = normal(*shape), normal(*shape, seed=1)
    gamma, beta = (normal(width, seed=2), normal(2 * width, seed=3)[::2]) if affine else (None, None)
    check("layer_norm", x, gamma, beta, 1e-5, atol=1e-5)
    _, mean, rstd = numpy_backend.layer_norm(x, gamma, beta, 1e-1) if width else (x, x[..., :0], x[..., :0])
    if width:
        for needs in [(True, True, True), (True, False, False), (False, True, False)]:
            check("layer_norm_backward", g, x, gamma, mean, rstd, needs, atol=2e-5)
        doubled = np.stack([x, x], -1)[..., 0]
        check("layer_norm_backward", doubled, doubled, gamma, mean, rstd, (True, True, True), atol=2e-5)


@pytest.mark.parametrize("shape", ROWS)
@pytest.mark.parametrize("affine", [True, False])
def test_rms_norm_forward_and_backward_match_numpy(threads: int, shape: tuple[int, ...], affine: bool) -> None:
    width = shape[-1]
    x, g = normal(*shape), normal(*shape, seed=1)
    gamma = normal(2 * width, seed=3)[::2] if affine else None
    check("rms_norm", x, gamma, 1e-5, atol=1e-5)
    if width:
        _, r = numpy_backend.rms_norm(x, gamma, 1e-1)
        for needs in [(True, True), (True, False), (False, True)]:
            check("rms_norm_backward", g, x, gamma, r, needs, atol=2e-5)
        doubled = np.stack([x, x], -1)[..., 0]
        check("rms_norm_backward", doubled, doubled, gamma, r, (True, True), atol=2e-5)


@pytest.mark.parametrize("shape", ROWS)
def test_swiglu_forward_and_backward_match_numpy(threads: int, shape: tuple[int, ...]) -> None:
    gate, up, g = 20 * normal(*shape), normal(*shape, seed=1), normal(*shape, seed=2)
    check("swiglu", gate, up, atol=1e-5)
    check("swiglu", np.stack([gate, up], -1)[..., 0], up, atol=1e-5)
    for needs in [(True, True), (True, False), (False, True)]:
        check("swiglu_backward", g, gate, up, needs, atol=2e-5)


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "MIN_PART_TIME", 1e-9)
    x, g, gamma = normal(500, 20), normal(500, 20, seed=1), normal(20, seed=2)
    found = []
    for n in (1, 2, 3):
        monkeypatch.setattr(cpu, "_n_threads", n)
        _, mean, rstd = numba_backend.layer_norm(x, gamma, None, 1e-5)
        gradients = numba_backend.layer_norm_backward(g, x, gamma, mean, rstd, (True, True, True))
        gradients += numba_backend.rms_norm_backward(g, x, gamma, rstd, (True, True))
        found.append([*gradients, *numba_backend.gelu(x, "none"), numba_backend.softmax(x, -1)])
    for others in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(others, found[0], strict=True))


def test_embedding_backward_matches_numpy() -> None:
    ids = rng().integers(0, 5, (3, 40))
    check("embedding_backward", normal(3, 40, 6), ids, 7)
    check("embedding_backward", normal(40, 3, 6).swapaxes(0, 1), ids, 7)
    check("embedding_backward", normal(0, 6), ids[:0, 0], 7)


def test_cross_entropy_matches_numpy(threads: int) -> None:
    logits, ids = 1000 + 10 * normal(30, 17), rng().integers(0, 16, 30)
    check("cross_entropy", logits, ids, None, None)
    check("cross_entropy", np.asfortranarray(logits), ids, rng(1).random(30) < 0.5, 16)
    check("cross_entropy", logits, ids, np.zeros(30, bool), None)
    logits[3] = -np.inf
    check("cross_entropy", logits, ids, None, None)


# --- Attention


@pytest.mark.parametrize("offset", [0, 3, -2])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_matches_numpy(threads: int, masked: bool, causal: bool, offset: int) -> None:
    q, k, v = normal(2, 3, 70, 8), normal(2, 1, 73, 8, seed=1), normal(3, 73, 5, seed=2)
    mask = rng(3).random((2, 1, 70, 73)) < 0.3 if masked else None
    if mask is not None:
        mask[0, 0, 5] = True  # a fully masked query
    check("attention", q, k, v, mask, causal, offset)
    side_by_side = normal(2, 70, 3, 8).swapaxes(1, 2)
    check("attention", side_by_side, side_by_side, side_by_side, None, causal, 0)


def test_attention_of_non_finite_values_matches_numpy() -> None:
    q, k, v = normal(8, 2), normal(8, 2, seed=1), normal(8, 2, seed=2)
    k[3], q[6, 0] = np.inf, np.nan
    check("attention", q, k, v, None, True, 0)


# --- Other functions


@pytest.mark.parametrize("primitive", ["softmax_backward", "gelu_value"])
def test_other_elementwise_kernels_match_numpy(threads: int, primitive: str) -> None:
    for a in (normal(5, 7), normal(3, 4, 33)[:, ::2], normal(2, 0), normal(6, 4).T):
        args = (a, "none") if primitive == "gelu_value" else (a, a + a, -1)
        check(primitive, *args, atol=4e-6)
    if primitive == "softmax_backward":
        check(primitive, normal(5, 7), normal(5, 7, seed=1), 0)


# --- Generation


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "leaky_relu"])
@pytest.mark.parametrize("projection", [True, False])
def test_one_token_in_one_call_gives_the_logits_of_forward(
    activation: str, projection: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, backend = [], load_backend("numba")

    def watched(*args: Any) -> Any:
        results.append(numba_backend.token_block(*args))
        return results[-1]

    monkeypatch.setattr(backend, "token_block", watched)
    with rg.use_backend("numba"):
        # 18 columns, which are no multiple of the rows that a product takes at once.
        tokenizer = Tokenizer.from_text("abcdefgh", max_seq_len=6, embed_dim=18, seed=0)
        model = Transformer(tokenizer, 2, 3, activation=activation, output_projection=projection, seed=0)
        model = model.astype("float32")
        decoder, row = model.make_decoder(), [1, 2]
        assert isinstance(decoder, Decoder)
        for step in range(6):  # the first, and from the fifth on, fill the cache
            (found,) = decoder.next_logits([row])
            np.testing.assert_allclose(found, model([row[-6:]]).numpy()[0, -1, :-1], rtol=0, atol=1e-5)
            row.append(step)
        assert len(results) == 2 * 4 and NotImplemented not in [type(result) for result in results]
        assert all(isinstance(result, np.ndarray) for result in results)
        decoder = model.make_decoder()
        assert isinstance(decoder, Decoder)
        decoder.next_logits([[1, 2, 3], [4]])  # two texts
        decoder.select([1])  # whose keys include padding
        (found,) = decoder.next_logits([[4, 5]])
        np.testing.assert_allclose(found, model([[4, 5]]).numpy()[0, -1, :-1], rtol=0, atol=1e-5)
        assert len(results) == 2 * 4


def test_token_block_leaves_transposed_weights_and_float64_to_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_backend.numpy_token, "token_block", lambda *args: NotImplemented)

    def call(dtype: str, order: Any) -> Any:
        x, gamma, cache = normal(1, 1, 8).astype(dtype), np.ones(8, dtype), np.zeros((1, 2, 2, 5, 4), dtype)
        shapes: list[tuple[int, ...]] = [(8, 24), (8, 8), (8, 12), (12,), (12, 8), (8,)]
        weights = [np.array(normal(*shape), dtype, order=order) for shape in shapes]
        return numba_backend.token_block(x, [(gamma, gamma, 1e-5)] * 2, weights, "relu", cache, 0)

    assert call("float64", "C") is NotImplemented
    assert call("float32", "F") is NotImplemented
    assert call("float32", "C").shape == (1, 1, 8)


# --- Adam


@pytest.mark.parametrize("clip", [None, np.array(0.5, np.float32)])
@pytest.mark.parametrize(("weight_decay", "decoupled"), [(0.0, True), (0.1, True), (0.1, False)])
def test_adam_step_matches_numpy(threads: int, weight_decay: float, decoupled: bool, clip: Any) -> None:
    for make in (lambda a: a, lambda a: np.asfortranarray(a), lambda a: np.repeat(a, 2, 1)[:, ::2], lambda a: a[0, 0]):
        states = []
        for backend in (numba_backend, numpy_backend):
            p, g, m, v = (np.asarray(make(normal(6, 7, seed=i))) for i in range(4))
            m[...], v[...] = 0, 0
            for step in (1, 2, 3):
                rates = np.array([0.1 / (1 - 0.9**step), (1 - 0.99**step) ** 0.5, 0.1 * weight_decay])
                backend.adam_step(p, g, m, v, rates, clip, 0.9, 0.99, 1e-8, weight_decay, decoupled, None)
            states.append((p, m, v))
        for found, expected in zip(*states, strict=True):
            np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)


def test_adam_step_of_a_read_only_array_raises() -> None:
    p, g, m, v = (normal(3, seed=i) for i in range(4))
    p.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        numba_backend.adam_step(p, g, m, np.abs(v), np.ones(3), None, 0.9, 0.99, 1e-8, 0.0, True, None)


# --- Numba itself


def test_concurrent_calls_are_correct(threads: int) -> None:
    a = normal(40, 30)
    expected, wrong = numba_backend.gelu(a, "none")[0], []

    def caller() -> None:
        for _ in range(50):
            wrong.extend([] if np.array_equal(numba_backend.gelu(a, "none")[0], expected) else ["wrong"])

    callers = [threading.Thread(target=caller) for _ in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert not wrong


def test_backend_works_without_a_writable_cache_folder(tmp_path: Path) -> None:
    """Numba can write its cache neither beside the source, as in a system-wide installation, nor in the home folder."""
    library = tmp_path / "library"
    shutil.copytree(ROOT / "russellgrad", library / "russellgrad", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(
        ROOT / "backends",
        library / "russellgrad" / "backends",
        ignore=shutil.ignore_patterns("__pycache__"),
        dirs_exist_ok=True,
    )
    obstacle = library / "russellgrad" / "backends" / "__pycache__"  # a file stops the superuser too
    obstacle.touch()
    program = "from russellgrad import Tensor; print(Tensor([[1.0, 2.0]], dtype='float32').gelu().shape)"
    environment = {"PYTHONPATH": str(library), "RG_BACKEND": "numba", "HOME": str(obstacle), "XDG_CACHE_HOME": ""}
    assert output_of(program, cwd=tmp_path, **environment) == "(1, 2)"


def test_missing_numba_error_names_the_extra() -> None:
    without = "import sys; sys.modules['numba'] = None; import russellgrad; "
    failed = run_python("-c", without + "russellgrad.set_backend('numba')")
    assert failed.stderr.strip().split("\n")[-1].startswith("ImportError: backend 'numba': Numba cannot be imported (")
    assert "pip install 'russellgrad[fast]'" in failed.stderr
    assert "numba" not in output_of(without + "print(russellgrad.available_backends())")
    assert "numba" in available_backends()
    assert "numba" in sys.modules
