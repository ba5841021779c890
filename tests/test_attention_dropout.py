"""Dropout of the attention weights: softmax(scores) * mask, with the mask that a Generator draws for the weights."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import russellgrad as rg
from russellgrad import Tensor, attention, attention_qkvpacked
from russellgrad.backend import Backend
from russellgrad.layers import Dropout, MultiHeadAttention
from russellgrad.llama import GroupedQueryAttention
from russellgrad.random import DROPOUT, Generator, default_generator
from russellgrad.russelltransformer import AttentionLayer, Transformer
from russellgrad.tokenizer import Tokenizer
from tests.helpers import TOLERANCE, assert_close, rng, to_numpy
from tests.nanogpt import NanoGPT

Array = Any
Shapes = tuple[tuple[int, ...], ...]
P = 0.3


def mask_of(shape: tuple[int, ...], dtype: str, xp: Backend, seed: int = 5, p: float = P) -> Array:
    """The mask that `Generator(seed)` draws for weights of this shape."""
    return to_numpy(Tensor(Generator(seed).dropout_mask(shape, p, dtype, xp), backend=xp))


def torch_attention(qkv: Any, hidden: Array | None, causal: bool, offset: int, drop: Array) -> torch.Tensor:
    """In single steps. A row with everything hidden has weights of 0."""
    q, k, v = qkv
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    never = torch.zeros(scores.shape, dtype=torch.bool)
    if hidden is not None:
        never = never | torch.tensor(hidden)
    if causal:
        never = never | (torch.arange(k.shape[-2]) > torch.arange(q.shape[-2])[:, None] + offset)
    weights = scores.masked_fill(never, -1e30).softmax(-1).masked_fill(never, 0.0)
    return (weights * torch.tensor(drop)) @ v


def some_hidden(*shape: int) -> Array:
    """Some keys are hidden; from the first query, all of them."""
    hidden = rng(7).random(shape) > 0.5
    hidden[(0,) * (len(shape) - 1)] = True
    return hidden


HEADS = ((2, 3, 70, 8), (2, 3, 90, 8), (2, 3, 90, 5))  # more scores than the formula computes on NumPy, and two blocks
CASES: dict[str, tuple[Shapes, Array | None, bool, int]] = {
    "heads": (HEADS, None, False, 0),
    "causal": (HEADS, None, True, 0),
    "causal, offset 20": (HEADS, None, True, 20),
    "causal, offset -5": (HEADS, None, True, -5),
    "a mask": (HEADS, some_hidden(70, 90), False, 0),
    "a mask of each head, causal": (HEADS, some_hidden(2, 3, 70, 90), True, 3),
    "everything hidden": (HEADS, np.array(True), False, 0),
    "short rows, a block of several heads": (((3, 4, 20, 4), (3, 4, 33, 4), (3, 4, 33, 4)), None, True, 0),
    "long rows": (((2, 2, 130, 4), (2, 2, 600, 4), (2, 2, 600, 4)), None, True, 400),
    "grouped queries": (((2, 2, 3, 40, 4), (2, 2, 1, 40, 4), (2, 2, 1, 40, 4)), None, True, 0),
    "batches that broadcast": (((2, 3, 4, 2), (1, 3, 5, 2), (5, 2)), None, False, 0),
    "queries shared": (((40, 3), (2, 60, 3), (2, 60, 2)), None, False, 0),
    "values have more batch axes than the weights": (((40, 3), (60, 3), (2, 60, 2)), None, False, 0),
    "no batch": (((4, 3), (5, 3), (5, 2)), None, True, 0),
    "one query": (((3, 2, 1, 4), (3, 2, 30, 4), (3, 2, 30, 4)), None, False, 0),
    "no keys": (((2, 3, 4), (2, 0, 4), (2, 0, 5)), None, False, 0),
    "no queries": (((2, 0, 4), (2, 3, 4), (2, 3, 5)), None, True, 0),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_pytorch_with_the_same_mask(backend: Backend, case: str, dtype: str) -> None:
    if dtype not in backend.float_dtypes():
        pytest.skip(f"{backend.name} has no {dtype}")
    shapes, hidden, causal, offset = CASES[case]
    arrays = [rng(i).normal(size=shape).astype(dtype) for i, shape in enumerate(shapes)]
    q, k, v = (Tensor(array, requires_grad=True) for array in arrays)
    generator = Generator(5)
    out = attention(q, k, v, hidden, causal, offset, dropout_p=P, generator=generator)
    assert generator.counter == 1
    drop = mask_of((*out.shape[:-1], k.shape[-2]), dtype, backend)
    theirs = [torch.tensor(array, requires_grad=True) for array in arrays]
    expected = torch_attention(theirs, hidden, causal, offset, drop)
    g = rng(9).normal(size=out.shape).astype(dtype)
    atol = TOLERANCE[dtype]
    assert_close(out, expected, atol=atol)
    out.backward(Tensor(g, requires_grad=False).data)
    expected.backward(torch.tensor(g))
    for name, ours, other in zip("qkv", (q, k, v), theirs, strict=True):
        assert_close(Tensor(ours.grad, backend=backend), other.grad, atol=atol * 4, what=name)


@pytest.mark.parametrize("needed", ["q", "k", "v", "qk", "kv"])
def test_a_gradient_alone_is_that_of_all(backend: Backend, needed: str) -> None:
    arrays = {name: rng(i).normal(size=shape) for i, (name, shape) in enumerate(zip("qkv", HEADS, strict=True))}

    def gradients(names: str) -> dict[str, Array]:
        x = {name: Tensor(array, requires_grad=name in names) for name, array in arrays.items()}
        out = attention(x["q"], x["k"], x["v"], causal=True, dropout_p=P, generator=Generator(5))
        (out**2).sum().backward()
        return {name: Tensor(x[name].grad, backend=backend).numpy() for name in names}

    every = gradients("qkv")
    for name, found in gradients(needed).items():
        assert_close(found, every[name], atol=1e-12, what=name)


@pytest.mark.parametrize("hidden", [None, some_hidden(2, 1, 1, 50)], ids=["", "a mask"])
def test_packed_heads(backend: Backend, hidden: Array | None) -> None:
    array = rng().normal(size=(2, 50, 24))
    qkv = Tensor(array, requires_grad=True)
    out = attention_qkvpacked(qkv, 2, hidden, causal=True, dropout_p=P, generator=Generator(5))
    packed = torch.tensor(array, requires_grad=True)
    heads = packed.reshape(2, 50, 3, 2, 4).permute(2, 0, 3, 1, 4)
    expected = torch_attention(heads, hidden, True, 0, mask_of((2, 2, 50, 50), "float64", backend))
    expected = expected.transpose(1, 2).reshape(2, 50, 8)
    assert_close(out, expected)
    g = rng(1).normal(size=out.shape)
    out.backward(Tensor(g, requires_grad=False).data)
    expected.backward(torch.tensor(g))
    assert_close(Tensor(qkv.grad, backend=backend), packed.grad, atol=4e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_drops_the_weights_of_its_own_mask(backend: Backend, dtype: str) -> None:
    """The numbers are rounded to the dtype before they are compared with p."""
    if dtype not in backend.float_dtypes():
        pytest.skip(f"{backend.name} has no {dtype}")
    k = Tensor(np.zeros((2, 70, 70))).astype(dtype)
    v = Tensor(np.broadcast_to(np.eye(70), (2, 70, 70)).copy()).astype(dtype)
    out = attention(k, k, v, dropout_p=0.7, generator=Generator(5)).astype("float32").numpy()  # the weights
    mask = Tensor(Generator(5).dropout_mask((2, 70, 70), 0.7, dtype, backend), backend=backend)
    drop = mask.astype("float32").numpy()
    assert np.array_equal(out == 0, drop == 0)
    np.testing.assert_allclose(out, drop / 70, rtol=0.01)


def test_the_expected_fraction_is_dropped_and_the_mean_kept(backend: Backend) -> None:
    x, v = Tensor(np.zeros((4, 100, 4))), Tensor(np.broadcast_to(np.eye(100), (4, 100, 100)).copy())
    weights = attention(x, x, v, dropout_p=0.2, generator=Generator(1)).numpy()
    assert abs((weights == 0).mean() - 0.2) < 4 * math.sqrt(0.2 * 0.8 / weights.size)
    np.testing.assert_allclose(weights[weights != 0], 1 / 100 / 0.8, rtol=1e-12)
    again = attention(x, x, v, dropout_p=0.2, generator=Generator(1))
    assert np.array_equal(weights, again.numpy())
    assert not np.array_equal(weights, attention(x, x, v, dropout_p=0.2, generator=Generator(2)).numpy())


def test_without_dropout_nothing_is_drawn(backend: Backend) -> None:
    q, k, v = (Tensor(rng(i).normal(size=shape)) for i, shape in enumerate(HEADS))
    generator = Generator(5)
    expected = attention(q, k, v).numpy()
    for p in (0, 0.0, np.float32(0)):
        assert np.array_equal(attention(q, k, v, dropout_p=p, generator=generator).numpy(), expected)  # type: ignore[arg-type]
    assert generator.counter == 0


def test_the_default_generator_is_used(backend: Backend) -> None:
    x = Tensor(rng().normal(size=(3, 4)))
    before = default_generator().counter
    attention(x, x, x, dropout_p=0.5)
    attention_qkvpacked(Tensor(rng().normal(size=(3, 12))), 2, dropout_p=0.5)
    assert default_generator().counter == before + 2


@pytest.mark.parametrize("p", [1, 1.0, -0.1, math.nan, "0.5", None, 1 + 0j])
def test_the_probability_is_in_range(backend: Backend, p: Any) -> None:
    x, generator = Tensor(np.ones((3, 6))), Generator(5)
    for op, call in {
        "attention": lambda: attention(x, x, x, dropout_p=p, generator=generator),
        "attention_qkvpacked": lambda: attention_qkvpacked(x, 2, dropout_p=p, generator=generator),
    }.items():
        with pytest.raises(ValueError, match=rf"^{op}: dropout_p must be in \[0, 1\), got .*; pass 0 for no dropout"):
            call()
    assert generator.counter == 0


def test_operands_that_do_not_fit_draw_nothing(backend: Backend) -> None:
    x, y, generator = Tensor(np.ones((3, 4))), Tensor(np.ones((3, 5))), Generator(5)
    with pytest.raises(ValueError, match=r"^attention: q \(3, 4\), k \(3, 5\) and v \(3, 5\) do not fit"):
        attention(x, y, y, dropout_p=0.5, generator=generator)
    with pytest.raises(ValueError, match=r"^attention_qkvpacked: qkv \(3, 4\) does not hold q, k and v of 2 heads"):
        attention_qkvpacked(x, 2, dropout_p=0.5, generator=generator)
    with pytest.raises(TypeError, match=r"^attention: "):
        attention(x, x, "v", dropout_p=0.5, generator=generator)  # type: ignore[arg-type]
    assert generator.counter == 0


def test_rows_of_a_batch_get_the_numbers_of_the_whole_batch(backend: Backend) -> None:
    q = Tensor(rng().normal(size=(6, 2, 40, 4)))
    generator = Generator(5)
    generator.start_batch()
    whole = attention(q, q, q, causal=True, dropout_p=P, generator=generator).numpy()
    for first, last in ((0, 1), (1, 4), (4, 6)):
        generator.continue_batch(first)
        part = q[first:last]
        assert_close(attention(part, part, part, causal=True, dropout_p=P, generator=generator), whole[first:last])


# --- Derivatives


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (attention(q, k, v, causal=True, dropout_p=P, generator=Generator(5)) ** 2).sum()


def unfused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    later = np.arange(k.shape[-2]) > np.arange(q.shape[-2])[:, None]
    drop = Generator(5).dropout_mask(scores.shape, P, "float64", q.backend)
    return ((scores.masked_fill(later, -math.inf).softmax() * drop @ v) ** 2).sum()


def operands() -> list[Tensor]:
    return [Tensor(rng(i).normal(size=(2, n, 3))) for i, n in enumerate((4, 5, 5))]


@pytest.mark.parametrize("transform", [rg.grad, rg.hessian, rg.jacobian])
def test_derivatives_are_those_of_single_steps(backend: Backend, transform: Callable[..., Any]) -> None:
    q, k, v = operands()
    for f, x in ((lambda f: lambda q: f(q, k, v), q), (lambda f: lambda k: f(q, k, v), k)):
        assert_close(transform(f(fused))(x), transform(f(unfused))(x), atol=1e-12)


def test_products_with_derivatives_are_those_of_single_steps(backend: Backend) -> None:
    xs, vs = operands(), [Tensor(rng(9 - i).normal(size=x.shape)) for i, x in enumerate(operands())]
    (value, slope), (expected, expected_slope) = (rg.jvp(f, tuple(xs), tuple(vs)) for f in (fused, unfused))
    assert_close(value, expected)
    assert_close(slope, expected_slope)
    for ours, theirs in zip(*(rg.hvp(lambda x, f=f: f(*x), xs, vs) for f in (fused, unfused)), strict=True):
        assert_close(ours, theirs, atol=4e-12)


def test_gradcheck(backend: Backend) -> None:
    rg.gradcheck(fused, operands())


def test_a_trace_shows_it(backend: Backend) -> None:
    q, k, v = operands()
    with rg.trace() as t:
        loss = fused(q, k, v)
    t.backward(loss)
    assert "dropout" in str(next(node for node in t.nodes if node.name == "attention").parameters)


# --- Layers


def one_draw(p: float = P) -> Dropout:
    return Dropout(p, generator=Generator(5))


def test_attention_layer(backend: Backend) -> None:
    layer = AttentionLayer(2, 8, dropout=one_draw(), generator=Generator(1))
    x = Tensor(rng().normal(size=(3, 6, 8)))
    found = layer(x).numpy()
    qkv = rg.linear(x, layer.w_qkv)
    expected = attention_qkvpacked(qkv, 2, causal=True, dropout_p=P, generator=Generator(5)).numpy()
    assert np.array_equal(found, expected)
    assert np.array_equal(layer.eval()(x).numpy(), attention_qkvpacked(qkv, 2, causal=True).numpy())
    assert layer.dropout.generator is not None and layer.dropout.generator.counter == 1


@pytest.mark.parametrize("window", [None, 3])
def test_grouped_query_attention(backend: Backend, window: int | None) -> None:
    layer = GroupedQueryAttention(4, 2, 8, window=window, output_projection=False, dropout=one_draw())
    x = Tensor(rng().normal(size=(3, 6, 8)))
    weights = layer.weights(x).numpy()  # (B, H, T, T)
    drop = mask_of((3, 2, 2, 6, 6), "float64", backend).reshape(weights.shape)
    _, _, v = layer._heads(x, layer._positions(6, None, x))
    expected = (weights * drop) @ np.repeat(v.numpy(), 2, axis=1)
    assert_close(layer(x), expected.swapaxes(1, 2).reshape(3, 6, 8))
    without = weights @ np.repeat(v.numpy(), 2, axis=1)
    assert_close(layer.eval()(x), without.swapaxes(1, 2).reshape(3, 6, 8))


def test_multi_head_attention_uses_the_fused_op(backend: Backend) -> None:
    layer, x = MultiHeadAttention(8, 2, dropout=P, batch_first=True), Tensor(rng().normal(size=(2, 5, 8)))
    found = []
    for need_weights in (True, False):
        layer.dropout.generator = Generator(5)
        with rg.trace() as t:
            found.append(layer(x, x, x, need_weights=need_weights)[0])
        assert ("attention" in [node.name for node in t.nodes]) is not need_weights
    assert_close(found[0], found[1])


# --- The model


def model_of(n_layers: int = 2, **options: Any) -> Transformer:
    tokenizer = Tokenizer.from_text("abcdefgh", 6, 8, seed=0)
    gpt = {"activation": "gelu", "output_projection": True, "final_norm": True}
    model = Transformer(tokenizer, n_layers, 2, seed=3, **{**gpt, "attention_bias": True, **options})
    generator = rng(4)
    for p in model.parameters():
        p.data = backend_array(p, generator.normal(0, 0.3, p.shape))
    return model


def backend_array(like: Tensor, array: Array) -> Any:
    return like.backend.asarray(array.astype(str(like.dtype)))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_model_is_nanogpts_with_the_same_masks(
    backend: Backend, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(dropout=dropout, attention_dropout=0.2)
    twin = NanoGPT(8, 6, 2, 2, 8, bias=True).double()
    state = model.to_torch_state_dict(padding_row=False)
    twin.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
    ids, targets = rng(1).integers(0, 8, (3, 6)), rng(2).integers(0, 8, (3, 6))

    assert model.dropout.generator is model.attention_dropout.generator
    draws = Generator(3, DROPOUT)
    of_layer = [("attention", (3, 2, 6, 6)), ("output", (3, 6, 8)), ("output", (3, 6, 8))]
    masks: dict[str, list[Any]] = {"attention": [], "output": []}
    for kind, shape in [("output", (3, 6, 8)), *of_layer, *of_layer]:
        p = 0.2 if kind == "attention" else dropout
        if p:
            mask = draws.dropout_mask(shape, p, "float64", backend)
            masks[kind].append(torch.tensor(to_numpy(Tensor(mask, backend=backend))))
    remaining = {kind: iter(found) for kind, found in masks.items()}

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        kind = "attention" if x.ndim == 4 else "output"
        return x * next(remaining[kind], 1.0)

    monkeypatch.setattr(torch.nn.Dropout, "forward", forward)
    logits = model(ids)[..., :-1]
    expected = twin(torch.tensor(ids))
    assert_close(logits, expected, atol=1e-12)
    loss = rg.cross_entropy(logits.reshape(18, 8), targets.reshape(18))
    loss.backward()
    torch.nn.functional.cross_entropy(expected.reshape(18, 8), torch.tensor(targets.reshape(18))).backward()
    assert not any(list(rest) for rest in remaining.values())
    gradients = dict(twin.named_parameters())
    for i, block in enumerate(model.blocks):
        for ours, theirs in (("w_qkv", "c_attn"), ("w_out", "c_proj")):
            grad = Tensor(getattr(block.attention, ours).grad, backend=backend).numpy()
            assert_close(grad.T, gradients[f"transformer.h.{i}.attn.{theirs}.weight"].grad, atol=1e-12, what=ours)


@pytest.mark.parametrize("options", [{}, {"positions": "rotary", "n_kv_heads": 1}], ids=["gpt2", "grouped"])
def test_it_is_active_in_training_mode_only(backend: Backend, options: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_text("abcdefgh", 6, 8, seed=0, positional_encoding="positions" not in options)
    model = Transformer(tokenizer, 2, 2, attention_dropout=0.5, seed=3, **options)
    for p in model.parameters():
        p.data = backend_array(p, rng(4).normal(0, 0.5, p.shape))
    with_dropout = [model(["abcd"]).numpy() for _ in range(2)]
    assert not np.array_equal(*with_dropout)
    assert model.dropout.generator is not None and model.dropout.generator.counter == 4
    plain = Transformer(tokenizer, 2, 2, seed=3, **options)
    plain.load_state_dict(model.state_dict())
    assert np.array_equal(model.eval()(["abcd"]).numpy(), plain(["abcd"]).numpy())
    assert model.train().generate("ab", 4, temperature=0) == plain.generate("ab", 4, temperature=0)
    assert model.dropout.generator.counter == 4
    assert model.config()["attention_dropout"] == 0.5 and "attention_dropout" not in plain.config()


@pytest.mark.parametrize("p", [1.0, -0.1, "0.5"])
def test_the_models_probability_is_in_range(p: Any) -> None:
    with pytest.raises(ValueError, match=r"^Transformer: attention_dropout must be in \[0, 1\), got "):
        model_of(attention_dropout=p)
