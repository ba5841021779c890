"""Today's blocks: each layer of Llama and the whole model against PyTorch, the cache, and Hugging Face's Llama."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's convention

import russellgrad as rg
from russellgrad import Tensor
from russellgrad.backend import Backend
from russellgrad.checkpoint import load_model, save_model
from russellgrad.generation import KVCache
from russellgrad.interchange import LLAMA_NAMES
from russellgrad.llama import GroupedQueryAttention, RMSNorm, Rotary, SwiGLU
from russellgrad.loss import cross_entropy_loss
from russellgrad.module import Module
from russellgrad.optimizer import AdamWOptimizer
from russellgrad.russelltransformer import AttentionLayer, Block, FFLayer, LayerNorm, Transformer
from russellgrad.tokenizer import Tokenizer
from tests.helpers import assert_close, check_against_torch, rng
from tests.torch_twin import Params, randomise, torch_params

TEXT = "the cat sat on the mat"
BATCH = ["the cat", "a", "sat sat sat", "mmmm"]  # padded by different amounts
CONTEXT = 12
LLAMA: dict[str, Any] = {
    "output_projection": True, "final_norm": True, "norm": "rms_norm", "feed_forward": "swiglu", "positions": "rotary",
    "tied": False,
}  # fmt: skip
OPTIONS: list[dict[str, Any]] = [  # each option alone, then together
    {"norm": "rms_norm", "norm_eps": 0.1, "final_norm": True},
    {"feed_forward": "swiglu"},
    {"feed_forward": "swiglu", "ff_dim": 20},
    {"activation": "gelu", "ff_dim": 20},
    {"positions": "rotary"},
    {"n_kv_heads": 1},
    {"n_kv_heads": 2, "attention_bias": True},
    {"window": 3},
    {"window": 1, "positions": "rotary"},
    {"tied": False},
    LLAMA,
    {**LLAMA, "n_kv_heads": 2, "window": 4, "rope_base": 100.0, "attention_bias": True, "tied": True},
]


def small_model(seed: int = 0, **options: Any) -> Transformer:
    tokenizer = Tokenizer.from_text(TEXT, CONTEXT, 16, seed=seed, positional_encoding="positions" not in options)
    return Transformer(tokenizer, 2, 4, seed=seed, **options)


def small_llama(**options: Any) -> Transformer:
    return small_model(**{**LLAMA, **options})


def random_model(**options: Any) -> Transformer:
    model = small_model(**options)
    randomise(model)
    return model


def random_llama(**options: Any) -> Transformer:
    return random_model(**{**LLAMA, **options})


# --- The reference in PyTorch


def torch_rms_norm(p: Params, x: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], p["gamma"], eps)


def torch_swiglu(p: Params, x: torch.Tensor) -> torch.Tensor:
    return (F.silu(x @ p["w_gate"]) * (x @ p["w_up"])) @ p["w_down"]


def torch_rotary(x: torch.Tensor, positions: torch.Tensor, base: float = 10000.0) -> torch.Tensor:
    """As in Hugging Face's Llama: x cos + rotate_half(x) sin. x (B, H, T, D), positions (B, T)."""
    d = x.shape[-1]
    frequencies = 1.0 / (base ** (torch.arange(0, d, 2, dtype=torch.float64) / d))
    angles = positions[:, None, :, None].double() * frequencies
    angles = torch.cat([angles, angles], -1)
    rotated_half = torch.cat([-x[..., d // 2 :], x[..., : d // 2]], -1)
    return x * angles.cos() + rotated_half * angles.sin()


def torch_attention(
    p: Params, x: torch.Tensor, n_heads: int, n_kv: int, *, padding: torch.Tensor | None = None,
    base: float | None = None, window: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """Keys and values are repeated for each query head. Padding is on the right, so a position is an index."""
    batch, length, width = x.shape
    d = width // n_heads
    q, k, v = (x @ p["w_qkv"] + p.get("b_qkv", torch.zeros(()))).split([width, n_kv * d, n_kv * d], -1)
    q, k, v = (part.view(batch, length, -1, d).transpose(1, 2) for part in (q, k, v))
    if base is not None:
        positions = torch.arange(length).expand(batch, length)
        q, k = torch_rotary(q, positions, base), torch_rotary(k, positions, base)
    k, v = (part.repeat_interleave(n_heads // n_kv, 1) for part in (k, v))
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    if window is not None:
        hidden = hidden | torch.ones(length, length, dtype=torch.bool).tril(-window)
    if padding is not None:
        hidden = hidden | padding[:, None, None, :]
    # A query that sees no key gives 0: only padding does, within a window.
    weights = (q @ k.transpose(-1, -2) / math.sqrt(d)).masked_fill(hidden, -torch.inf).softmax(-1).nan_to_num()
    out = (weights @ v).transpose(1, 2).reshape(x.shape)
    return out @ p["w_out"] + p.get("b_out", torch.zeros(())) if "w_out" in p else out


def part(p: Params, prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix + "."): value for name, value in p.items() if name.startswith(prefix + ".")}


def torch_model(p: Params, model: Transformer, batch: Any) -> torch.Tensor:
    """The logits of a model with these parameters and the model's configuration."""
    c = {"norm": "layer_norm", "norm_eps": 1e-5, "feed_forward": "mlp", "window": None, "rope_base": 10000.0,
         **model.config()}  # fmt: skip
    ids = torch.from_numpy(Tensor(model.tokenizer.ids(batch).values).numpy())
    padding = ids == model.tokenizer.pad_token_id

    def norm(p: Params, x: torch.Tensor) -> torch.Tensor:
        if c["norm"] == "rms_norm":
            return torch_rms_norm(p, x, c["norm_eps"])
        return F.layer_norm(x, x.shape[-1:], p["gamma"], p["beta"], c["norm_eps"])

    def mlp(p: Params, x: torch.Tensor) -> torch.Tensor:
        if c["feed_forward"] == "swiglu":
            return torch_swiglu(p, x)
        act = F.gelu if c["activation"] == "gelu" else F.leaky_relu
        return act(x @ p["w_in"] + p["b_in"]) @ p["w_out"] + p["b_out"]

    x = F.embedding(ids, p["tokenizer.token_embedding"])
    if "tokenizer.positional_encoding" in p:
        x = x + p["tokenizer.positional_encoding"][: ids.shape[1]]
    n_heads, base = c["n_attn_heads"], c["rope_base"] if c.get("positions") == "rotary" else None
    for i in range(c["n_layers"]):
        b = part(p, f"blocks.{i}")
        x = x + torch_attention(
            part(b, "attention"), norm(part(b, "attention_norm"), x), n_heads, c.get("n_kv_heads", n_heads),
            padding=padding, base=base, window=c["window"],
        )  # fmt: skip
        x = x + mlp(part(b, "feed_forward"), norm(part(b, "feed_forward_norm"), x))
    if c["final_norm"]:
        x = norm(part(p, "final_norm"), x)
    return x @ (p["output"] if "output" in p else p["tokenizer.token_embedding"].T)


def check_layer(layer: Module, ours: Any, theirs: Any, shape: tuple[int, ...]) -> None:
    """Compare outputs and all gradients of a layer for a random upstream gradient."""
    randomise(layer)
    params = torch_params(layer)
    check_against_torch(ours, lambda x: theirs(params, x), rng(1).normal(size=shape))
    for name, parameter in layer.named_parameters():
        assert_close(parameter.grad, params[name].grad, what=name)


# --- Each layer


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 0, 8), (2, 3, 4, 8)])
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_rms_norm(backend: Backend, shape: tuple[int, ...], eps: float) -> None:
    layer = RMSNorm(8, eps=eps)
    check_layer(layer, layer, lambda p, x: torch_rms_norm(p, x, eps), shape)


def test_rms_norm_in_half_precision_computes_in_float32(backend: Backend) -> None:
    if "float16" not in backend.float_dtypes():
        pytest.skip(f"{backend.name} has no float16")
    layer = RMSNorm(4).astype("float16")
    out = layer(Tensor(np.array([[1e3, -2e3, 3e3, 4e3]], "float16")))  # the squares exceed float16
    assert str(out.dtype) == "float16"
    assert_close(out.astype("float32"), np.array([[0.3651, -0.7303, 1.0954, 1.4606]], "float32"), atol=2e-3)


@pytest.mark.parametrize("shape", [(8,), (2, 3, 8), (0, 8)])
def test_swiglu(backend: Backend, shape: tuple[int, ...]) -> None:
    layer = SwiGLU(12, 8)
    check_layer(layer, layer, torch_swiglu, shape)


@pytest.mark.parametrize("base", [10000.0, 500000.0, 2.5])
@pytest.mark.parametrize("positions", [[[0, 1, 2, 3, 4]], [[3, 4, 5, 6, 7], [0, 0, 1, 1, 400]]])
def test_rotary(backend: Backend, base: float, positions: list[list[int]]) -> None:
    rotary = Rotary(6, base)
    check_against_torch(
        lambda x: rotary(x, Tensor(np.array(positions)).expand_dims(1)),
        lambda x: torch_rotary(x, torch.tensor(positions), base),
        rng().normal(size=(2, 3, 5, 6)),
    )


def test_rotary_products_depend_on_distances_only(backend: Backend) -> None:
    rotary, (q, k) = Rotary(8), (Tensor(a) for a in rng().normal(size=(2, 1, 1, 1, 8)))

    def product(at: int, to: int) -> float:
        return float((rotary(q, Tensor(np.array([[at]]))) * rotary(k, Tensor(np.array([[to]])))).sum().item())

    assert abs(product(7, 3) - product(104, 100)) < 1e-12
    assert abs(product(7, 3) - product(7, 4)) > 1e-3
    assert_close(rotary(q, Tensor(np.array([[0]]))), q, atol=0.0)


def test_rotary_angles_of_a_float32_model_are_exact_at_large_positions(backend: Backend) -> None:
    x = rng().normal(size=(1, 1, 1, 8)).astype("float32")
    out = Rotary(8)(Tensor(x), Tensor(np.array([[100_003]])))
    expected = torch_rotary(torch.tensor(x).double(), torch.tensor([[100_003]])).float()
    atol = None if "float64" in backend.float_dtypes() else 0.05
    assert_close(out, expected, atol=atol)


ATTENTION: list[dict[str, Any]] = [
    {"n_kv_heads": 4}, {"n_kv_heads": 2}, {"n_kv_heads": 1}, {"n_kv_heads": 2, "rope_base": 50.0},
    {"n_kv_heads": 2, "window": 1}, {"n_kv_heads": 4, "window": 3}, {"n_kv_heads": 4, "window": 6},
    {"n_kv_heads": 2, "rope_base": 10000.0, "window": 4, "bias": True},
    {"n_kv_heads": 2, "bias": True, "output_projection": False},
]  # fmt: skip


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("options", ATTENTION)
def test_grouped_query_attention(backend: Backend, options: dict[str, Any], padded: bool) -> None:
    layer = GroupedQueryAttention(4, hidden_size=16, **options)
    lengths = [6, 5, 2] if padded else [6, 6, 6]
    mask = np.arange(6) >= np.array(lengths)[:, None]
    real = torch.tensor(~mask)[:, :, None]
    check_layer(
        layer,
        lambda x: layer(x, Tensor(mask) if padded else None) * Tensor(real.double().numpy(), requires_grad=False),
        lambda p, x: real
        * torch_attention(
            p, x, 4, options["n_kv_heads"], padding=torch.tensor(mask) if padded else None,
            base=options.get("rope_base"), window=options.get("window"),
        ),
        (3, 6, 16),
    )  # fmt: skip


def test_with_as_many_heads_of_keys_it_is_multi_head_attention(backend: Backend) -> None:
    ours, plain = GroupedQueryAttention(4, 4, 16, bias=True), AttentionLayer(4, 16, output_projection=True, bias=True)
    randomise(ours)
    plain.load_state_dict(ours.state_dict())
    x = Tensor(rng(1).normal(size=(2, 5, 16)))
    assert_close(ours(x), plain(x))
    assert_close(ours.weights(x), plain.weights(x))


@pytest.mark.parametrize("options", ATTENTION)
def test_weights_are_those_of_the_output(backend: Backend, options: dict[str, Any]) -> None:
    layer = GroupedQueryAttention(4, hidden_size=16, **options)
    randomise(layer)
    x = Tensor(rng(1).normal(size=(2, 5, 16)))
    weights = layer.weights(x).numpy()  # (B, H, T, T)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=0, atol=1e-14)
    seen = np.tri(5, dtype=bool) & ~np.tri(5, k=-options.get("window", 5), dtype=bool)
    assert ((weights > 0) == seen).all()
    n_kv = options["n_kv_heads"]
    biases = layer.b_qkv.numpy() if layer.b_qkv is not None else 0.0
    v = (x.numpy() @ layer.w_qkv.numpy() + biases)[..., -4 * n_kv :].reshape(2, 5, n_kv, 4).swapaxes(1, 2)
    out = (weights @ v.repeat(4 // n_kv, axis=1)).swapaxes(1, 2).reshape(2, 5, 16)
    layer.w_out = layer.b_out = None
    assert_close(layer(x), out)


# --- The model


@pytest.mark.parametrize("options", OPTIONS)
def test_model_matches_pytorch(backend: Backend, options: dict[str, Any]) -> None:
    """Logits, and the gradients of all parameters, of a batch with padding."""
    model = random_model(**options)
    params = torch_params(model)
    logits, expected = model(BATCH), torch_model(params, model, BATCH)
    real = np.arange(11) < np.array([len(text) for text in BATCH])[:, None]
    upstream = rng(5).normal(size=logits.shape) * real[..., None]
    assert_close(logits.numpy()[real], expected.detach().numpy()[real])
    logits.backward(Tensor(upstream, requires_grad=False))
    expected.backward(torch.from_numpy(upstream))
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, params[name].grad, what=name)


def test_llama_is_the_model_of_these_options(backend: Backend) -> None:
    tokenizer = Tokenizer.from_text(TEXT, CONTEXT, 16, seed=0, positional_encoding=False)
    model = Transformer.llama(tokenizer, 2, 4, n_kv_heads=2, ff_dim=24, rope_base=500.0, norm_eps=1e-6, seed=0)
    assert model.config() == {
        "n_layers": 2, "n_attn_heads": 4, "ff_scale_factor": 4, "activation": "leaky_relu", "dropout": 0.0, **LLAMA,
        "n_kv_heads": 2, "ff_dim": 24, "rope_base": 500.0, "norm_eps": 1e-6,
    }  # fmt: skip
    again = Transformer(tokenizer, **model.config(), seed=0)
    assert all(np.array_equal(a, again.state_dict()[name]) for name, a in model.state_dict().items())
    assert {name: p.shape for name, p in model.named_parameters()} == {
        "tokenizer.token_embedding": (11, 16),
        **{f"blocks.{i}.{name}": shape for i in range(2) for name, shape in {
            "attention_norm.gamma": (16,), "attention.w_qkv": (16, 32), "attention.w_out": (16, 16),
            "feed_forward_norm.gamma": (16,), "feed_forward.w_gate": (16, 24), "feed_forward.w_up": (16, 24),
            "feed_forward.w_down": (24, 16)}.items()},
        "final_norm.gamma": (16,),
        "output": (16, 11),
    }  # fmt: skip
    norms = [module for module in model.modules() if isinstance(module, RMSNorm)]
    assert [norm.eps for norm in norms] == [1e-6] * 5
    assert all(block.attention.rotary.base == 500.0 for block in model.blocks)  # type: ignore[union-attr]
    text = str(model)
    assert "rotary: Rotary" in text and "w_gate: (16, 24)" in text and "positional_encoding" not in text


@pytest.mark.parametrize(("width", "scale", "expected"), [(16, 4, 48), (16, 3, 32), (12, 1, 8), (48, 4, 128)])
def test_the_default_width_of_swiglu_is_two_thirds(backend: Backend, width: int, scale: int, expected: int) -> None:
    """Rounded up to a multiple of 8."""
    model = Transformer(Tokenizer.from_text("ab", 4, width), 1, 2, scale, feed_forward="swiglu")
    assert model.blocks[0].feed_forward.w_up.shape == (width, expected)  # type: ignore[union-attr]


def test_a_block_takes_any_of_the_layers(backend: Backend) -> None:
    x = Tensor(rng().normal(size=(2, 3, 8)))
    for attention in (AttentionLayer(2, 8), GroupedQueryAttention(2, 1, 8)):
        for feed_forward in (FFLayer(12, 8), SwiGLU(12, 8)):
            for norm in (LayerNorm, RMSNorm):
                block = Block(attention, feed_forward, 8, rg.layers.Dropout(0.0), norm)
                assert type(block.attention_norm) is type(block.feed_forward_norm) is norm
                after = x + attention(block.attention_norm(x))
                assert_close(block(x), after + feed_forward(block.feed_forward_norm(after)))


def test_a_model_of_earlier_options_has_no_new_entries_in_its_config(backend: Backend) -> None:
    model = Transformer(Tokenizer.from_text(TEXT, CONTEXT, 16), 1, 2)
    assert set(model.config()) == {
        "n_layers", "n_attn_heads", "ff_scale_factor", "activation", "output_projection", "final_norm", "dropout"
    }  # fmt: skip


def test_training_and_modes(backend: Backend) -> None:
    model = small_llama(n_kv_heads=2, dropout=0.3)
    assert not np.array_equal(model(BATCH).numpy(), model(BATCH).numpy())
    model.eval()
    assert np.array_equal(model(BATCH).numpy(), model(BATCH).numpy())
    model = small_llama(n_kv_heads=2, window=8)
    optimizer = AdamWOptimizer(model.parameters(), lr=1e-2)
    ids = np.array([model.tokenizer.encode(TEXT[i : i + 12]) for i in range(10)])
    for _ in range(60):
        optimizer.zero_grad()
        loss = cross_entropy_loss(model(ids[:, :-1]), ids[:, 1:], model.tokenizer.pad_token_id)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3  # log(11) = 2.4 before training
    assert model.generate("the cat ", 3, temperature=0) == "the cat sat"


def test_a_compiled_step_equals_the_plain_step(backend: Backend) -> None:
    ids = [rng(seed).integers(0, 10, (3, CONTEXT)) for seed in range(5)]
    ids[2][0, 7:] = 10  # padding
    runs = []
    for wrap in (lambda step: step, rg.compile_step):
        model = random_llama(n_kv_heads=2, window=4)
        optimizer = AdamWOptimizer(model.parameters(), lr=1e-2)

        def step(batch: Any, model: Transformer = model, optimizer: AdamWOptimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = model(batch).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        run = wrap(step)
        runs.append([run(model.tokenizer.ids(batch)).item() for batch in (*ids, *ids)])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 10


def test_attention_maps(backend: Backend) -> None:
    model = random_llama(n_kv_heads=2, window=4, dropout=0.5)
    maps, text = model.attention_maps(TEXT[:CONTEXT]), TEXT[:CONTEXT]
    assert [found.shape for found in maps] == [(4, CONTEXT, CONTEXT)] * 2
    x = model.eval().tokenizer.embed(model.tokenizer.ids([text]).values)
    for block, found in zip(model.blocks, maps, strict=True):
        assert_close(found, block.attention.weights(block.attention_norm(x))[0])
        x = block(x)


def test_float32_and_another_backend(backend: Backend) -> None:
    model = random_llama(n_kv_heads=2, window=4)
    expected = model(BATCH).numpy().astype("float32")
    assert_close(model.astype("float32")(BATCH), expected, atol=2e-5)
    assert_close(model.to("strict")(BATCH), expected, atol=2e-5)
    assert {p.backend.name for p in model.parameters()} == {"strict"}
    assert len(model.generate("the", 20)) == 23


@pytest.mark.parametrize("options", OPTIONS)
def test_model_files(backend: Backend, tmp_path: Path, options: dict[str, Any]) -> None:
    pytest.importorskip("safetensors")
    model = random_model(**options)
    loaded = load_model(save_model(tmp_path / "model.safetensors", model))
    assert loaded.config() == model.config()
    assert (loaded.tokenizer.positional_encoding is None) == ("positions" in options)
    assert np.array_equal(loaded(BATCH).numpy(), model(BATCH).numpy())


def test_second_derivatives_and_transforms(backend: Backend) -> None:
    """`grad` runs the model on Tensors as arrays, with padding, too."""
    model = random_llama(n_kv_heads=2, window=2)
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return rg.functional_call(model, parameters, ["the", "a"]).square().mean()

    found = rg.grad(loss)(parameters)
    model(["the", "a"]).square().mean().backward()
    for name, parameter in parameters.items():
        assert_close(found[name], parameter.grad, what=name)
    tangents = {name: Tensor(rng(1).normal(size=p.shape), requires_grad=False) for name, p in parameters.items()}
    step = 1e-5
    product = rg.hvp(loss, parameters, tangents)
    sides = [
        rg.grad(loss)({name: p.detach() + tangents[name] * (sign * step) for name, p in parameters.items()})
        for sign in (1, -1)
    ]
    for name in parameters:
        difference = (sides[0][name].numpy() - sides[1][name].numpy()) / (2 * step)
        np.testing.assert_allclose(product[name].numpy(), difference, rtol=1e-4, atol=1e-5)


# --- The cache


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("sizes", [[1] * CONTEXT, [5, 1, 1, 1, 4], [CONTEXT], [3, 9]])
def test_tokens_fed_in_chunks_give_the_logits_of_a_full_pass(
    backend: Backend, options: dict[str, Any], sizes: list[int]
) -> None:
    model = random_model(**options)
    ids = rng().integers(0, model.tokenizer.vocab_size, (3, CONTEXT))
    cache, expected, done = KVCache(model), model(ids), 0
    for size in sizes:
        assert_close(model(ids[:, done : done + size], cache), expected[:, done : done + size])
        done += size
    assert cache.layers[0].keys is not None
    assert cache.layers[0].keys.shape == (3, options.get("n_kv_heads", 4), CONTEXT, 4)


@pytest.mark.parametrize("options", OPTIONS)
def test_padded_chunks_and_selected_rows_give_the_logits_of_each_text_alone(
    backend: Backend, options: dict[str, Any]
) -> None:
    model = random_model(**options)
    pad, cache = model.tokenizer.pad_token_id, KVCache(model)
    texts: list[list[int]] = [[], [], []]
    chunks: list[tuple[list[int], list[int] | None]] = [
        ([2, 2, 2], None), ([1, 4, 2], [2, 0, 1]), ([1, 1, 1], [2, 1]), ([3, 1], None),
    ]  # fmt: skip
    for lengths, kept in chunks:
        new = [rng(n + row).integers(0, pad, n).tolist() for row, n in enumerate(lengths)]
        texts = [text + more for text, more in zip(texts, new, strict=True)]
        logits = model([more + [pad] * (max(lengths) - len(more)) for more in new], cache)
        for row, (text, n) in enumerate(zip(texts, lengths, strict=True)):
            assert_close(logits[row, :n], model([text])[0, len(text) - n :], what=f"text {row}")
        if kept is not None:
            cache.select(kept)
            texts = [texts[row] for row in kept]


@pytest.mark.parametrize("options", [{**LLAMA, "n_kv_heads": 2}, {**LLAMA, "window": 3}])
def test_a_padded_row_has_the_logits_of_its_text_alone(backend: Backend, options: dict[str, Any]) -> None:
    model = random_model(**options)
    logits = model(BATCH)
    for row, text in enumerate(BATCH):
        assert_close(logits[row, : len(text)], model([text])[0], what=text)


# --- Errors


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: small_model(norm="batch_norm"), ValueError, "unknown norm 'batch_norm'; known are layer_norm, rms_n"),
        (lambda: small_model(feed_forward="glu"), ValueError, "unknown feed_forward 'glu'; known are mlp, swiglu"),
        (lambda: small_model(positions="alibi"), ValueError, "unknown positions 'alibi'; known are learned, rotary"),
        (lambda: small_model(feed_forward="swiglu", activation="gelu"), ValueError, "leave out activation='gelu'"),
        (lambda: small_model(n_kv_heads=3), ValueError, "n_kv_heads=3 must divide n_heads=4"),
        (lambda: small_model(window=0), ValueError, "window must be positive, got 0"),
        (lambda: small_model(ff_dim=0), ValueError, "ff_dim must be positive, got 0"),
        (lambda: small_model(n_kv_heads=2.0), TypeError, "n_kv_heads must be an int, got 2.0"),
        (lambda: Transformer.llama(Tokenizer.from_text("ab", 4, 8), 1, 2), ValueError,
         "positions='rotary' needs a tokenizer with positional_encoding=False"),
        (lambda: Transformer(Tokenizer.from_text("ab", 4, 8, positional_encoding=False), 1, 2), ValueError,
         "positions='learned' needs a tokenizer with positional_encoding=True"),
        (lambda: Transformer.llama(Tokenizer.from_text("ab", 4, 6, positional_encoding=False), 1, 2), ValueError,
         "Rotary: head_dim must be even, got 3"),
        (lambda: Rotary(4, 0.0), ValueError, "base must be positive, got 0.0"),
        (lambda: GroupedQueryAttention(3, 1, 8), ValueError, "n_heads=3, which must divide hidden_size=8"),
        (lambda: RMSNorm(4)(Tensor(np.ones((2, 1)))), ValueError, r"x has shape \(2, 1\), expected \(..., 4\)"),
        (lambda: SwiGLU(6, 4)(Tensor(np.ones((2, 3)))), ValueError, r"^SwiGLU: x has shape \(2, 3\), .* \(..., 4\)"),
        (lambda: FFLayer(6, 4)(Tensor(np.ones((2, 3)))), ValueError, r"^FFLayer: x has shape \(2, 3\), .* \(..., 4\)"),
        (lambda: FFLayer(6, 4)(np.ones((2, 4))), TypeError, "^FFLayer: needs a Tensor, got a ndarray"),
        (lambda: AttentionLayer(2, 4)(Tensor(np.ones((2, 5, 3)))), ValueError, "^AttentionLayer: x has shape"),
        (lambda: AttentionLayer(2, 4).weights(Tensor(np.ones((2, 5, 3)))), ValueError, "^AttentionLayer: x has shape"),
        (lambda: GroupedQueryAttention(2, 1, 4)(Tensor(np.ones((2, 5, 3)))), ValueError,
         r"^GroupedQueryAttention: x has shape \(2, 5, 3\), expected \(B, T, 4\)"),
        (lambda: GroupedQueryAttention(2, 1, 4).weights(Tensor(np.ones((5, 4)))), ValueError,
         r"^GroupedQueryAttention: x has shape \(5, 4\), expected \(B, T, 4\)"),
        (lambda: Rotary(4)(Tensor(np.ones((2, 2))), Tensor(np.array([0, 1]))), ValueError, r"expected \(..., 4\)"),
    ],
)  # fmt: skip
def test_errors(backend: Backend, make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("options", [o for o in OPTIONS if set(o) - {"activation"}])
def test_a_model_without_a_twin_is_not_exported(backend: Backend, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^to_torch_state_dict: .* no counterpart in the PyTorch model"):
        small_model(**options).to_torch_state_dict()


# --- Hugging Face's Llama


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": True}, {"attention_bias": True}])
def test_hugging_face_llama(
    backend: Backend, options: dict[str, Any], exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random LlamaForCausalLM has the same logits.

    It computes norms and angles in float32, whatever the dtype; if `exact`, in float64.
    """
    pytest.importorskip("transformers")
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama import modeling_llama

    if exact:
        monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", float64_rotary)
        monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", float64_rms_norm)
    tokenizer = Tokenizer.from_text(TEXT, CONTEXT, 32, positional_encoding=False)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT, rms_norm_eps=1e-6, **options,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    tied = options.get("tie_word_embeddings", False)
    model = Transformer.llama(
        tokenizer, 2, 4, n_kv_heads=2, ff_dim=40, norm_eps=1e-6, tied=tied,
        attention_bias=options.get("attention_bias", False), seed=0,
    )  # fmt: skip
    state = {name: tensor.detach().numpy() for name, tensor in theirs.state_dict().items()}
    model.load_state_dict(from_llama_state(model, state))
    ids = rng().integers(0, tokenizer.vocab_size, (3, CONTEXT))
    logits = theirs(torch.tensor(ids)).logits
    assert_close(model(ids)[..., :-1], logits, atol=1e-10 if exact else 1e-5)


def from_llama_state(model: Transformer, state: dict[str, Any]) -> dict[str, Any]:
    """The state of our model from that of a LlamaForCausalLM, which it uses up. Padding gets zeros."""
    own = {}
    for name, array in model.state_dict().items():
        first, i, rest = (*name.split(".", 2), "", "")[:3]  # blocks.0.attention.w_qkv
        key, number = (f"blocks.{{}}.{rest}", i) if first == "blocks" else (name, "")
        rows = np.concatenate([state.pop(part.format(number)) for part in LLAMA_NAMES[key]])  # (out, in) or (out,)
        if name in ("tokenizer.token_embedding", "output"):
            rows = np.concatenate([rows, np.zeros_like(rows[:1])])
        own[name] = rows if name == "tokenizer.token_embedding" else rows.T
        assert own[name].shape == array.shape
    assert set(state) <= ({"lm_head.weight"} if model.output is None else set())
    return own


def float64_rms_norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], self.weight, self.variance_epsilon)


def float64_rotary(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    d, base = self.config.hidden_size // self.config.num_attention_heads, 10000.0
    frequencies = base ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    angles = position_ids[..., None].double() * frequencies
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()
