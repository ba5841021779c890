"""The transformer against PyTorch. Can be run as a script, or as `python -m tests.test_russelltransformer`."""

import sys

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from russellgrad import Tensor, manual_seed
from russellgrad.backend import Backend
from russellgrad.layers import Dropout
from russellgrad.loss import cross_entropy_loss
from russellgrad.optimizer import AdamWOptimizer, SGDOptimizer
from russellgrad.random import Generator
from russellgrad.russelltransformer import AttentionHead, AttentionLayer, FFLayer, Transformer
from russellgrad.tokenizer import Tokenizer
from tests import torch_twin
from tests.helpers import assert_close, check_against_torch, rng
from tests.torch_twin import randomise, torch_params

TEXT = "the cat sat on the mat"
GPT: dict[str, Any] = {"activation": "gelu", "output_projection": True, "final_norm": True}
VARIANTS: list[dict[str, Any]] = [{}, GPT, {"activation": "gelu_tanh"}, {"activation": "relu", "final_norm": True},
                                  {**GPT, "attention_bias": True}]  # fmt: skip
BATCH = ["the cat", "a", "sat sat sat", "mmmm"]  # padded by different amounts, with repeated letters


def small_model(seed: int = 0, **options: Any) -> Transformer:
    tokenizer = Tokenizer.from_text(TEXT, max_seq_len=12, embed_dim=16, seed=seed)
    return Transformer(tokenizer, 2, 4, seed=seed, **options)


def padding_of(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(B, T) bool: row i has i padding positions at its end."""
    batch, length = x.shape[:2]
    return np.arange(length) >= length - np.arange(batch)[:, None]


def check_parameters(module: Any, params: dict[str, torch.Tensor]) -> None:
    for name, parameter in module.named_parameters():
        assert_close(parameter.grad, params[name].grad, what=name)


def check_attention(module: AttentionHead | AttentionLayer, twin: Callable[..., torch.Tensor], padded: bool) -> None:
    """Compare `module(x, padding)` with `twin(parameters, x, padding)`: values and all gradients."""
    randomise(module)
    x = rng(1).normal(size=(4, 6, 8))
    mask = padding_of(x) if padded else None
    params = torch_params(module)
    check_against_torch(
        lambda x: module(x, None if mask is None else Tensor(mask)),
        lambda x: twin(params, x, None if mask is None else torch.tensor(mask)),
        x,
    )
    check_parameters(module, params)


@pytest.mark.parametrize("padded", [False, True])
def test_attention_head_matches_pytorch(backend: Backend, padded: bool) -> None:
    check_attention(AttentionHead(3, 5, 8), torch_twin.attention_head, padded)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_attention_layer_matches_pytorch(backend: Backend, padded: bool, projected: bool, bias: bool) -> None:
    layer = AttentionLayer(2, 8, output_projection=projected, bias=bias)
    check_attention(layer, lambda p, x, padding: torch_twin.attention_layer(p, x, 2, padding), padded)


def test_attention_layer_equals_its_concatenated_heads(backend: Backend) -> None:
    layer = AttentionLayer(4, 8)
    randomise(layer)
    x = Tensor(rng(1).normal(size=(3, 5, 8)))
    padding = Tensor(padding_of(x.numpy()))
    separate = dict(zip(("w_q", "w_k", "w_v"), np.split(layer.w_qkv.numpy(), 3, axis=1), strict=True))
    heads = []
    for h in range(4):
        head = AttentionHead(2, 2, 8)
        head.load_state_dict({name: weight[:, 2 * h : 2 * h + 2] for name, weight in separate.items()})
        heads.append(head(x, padding))
    assert_close(layer(x, padding), Tensor.concatenate(heads, axis=-1))


@pytest.mark.parametrize("options", VARIANTS[:2])
def test_attention_maps_match_the_weights_of_attention_heads(
    backend: Backend, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`AttentionHead` returns weights @ v, which are the weights if w_v is the pseudo-inverse of x (v = identity)."""
    model = small_model(**options, dropout=0.3)
    randomise(model, std=0.7)
    maps = model.attention_maps(TEXT[:11])
    assert model.training
    seen, forward = [], AttentionLayer.forward

    def recording(self: AttentionLayer, x: Tensor, *rest: Any) -> Tensor:
        seen.append((self, x))
        return forward(self, x, *rest)

    monkeypatch.setattr(AttentionLayer, "forward", recording)
    model.eval().forward([TEXT[:11]])
    assert len(maps) == len(seen) == 2
    for found, (layer, x) in zip(maps, seen, strict=True):
        assert found.shape == (4, 11, 11)
        inverse = np.linalg.pinv(x.numpy()[0])  # (16, 11)
        for h, weights in enumerate(found):
            head, columns = AttentionHead(4, 11, 16), np.s_[:, 4 * h : 4 * h + 4]
            w_q, w_k, _ = np.split(layer.w_qkv.numpy(), 3, axis=1)
            head.load_state_dict({"w_q": w_q[columns], "w_k": w_k[columns], "w_v": inverse})
            assert_close(weights, head(x)[0], atol=1e-12)
        np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=0, atol=1e-14)
        assert not np.triu(found, 1).any()
        assert np.ptp(found[:, -1]) > 0.2  # the weights differ, so a mix-up of heads would show


def test_attention_maps_of_one_character_and_of_invalid_texts(backend: Backend) -> None:
    (first, second) = small_model().astype("float32").attention_maps("c")
    for found in (first, second):
        assert_close(found, np.ones((4, 1, 1), np.float32), atol=0.0)
    with pytest.raises(ValueError, match="the text '' is empty"):
        small_model().attention_maps("")
    with pytest.raises(ValueError, match="a text of 13 tokens is longer than max_seq_len=12"):
        small_model().attention_maps("the cat sat o")


@pytest.mark.parametrize("activation", list(torch_twin.ACTIVATIONS))
def test_feed_forward_matches_pytorch(backend: Backend, activation: str) -> None:
    layer = FFLayer(12, 4, activation=activation)
    randomise(layer)
    params = torch_params(layer)
    check_against_torch(layer, lambda x: torch_twin.feed_forward(params, x, activation), rng(1).normal(size=(3, 5, 4)))
    check_parameters(layer, params)


@pytest.mark.parametrize("options", VARIANTS)
def test_model_and_loss_match_pytorch(backend: Backend, options: dict[str, Any]) -> None:
    model = small_model(**options)
    randomise(model)
    params = torch_params(model)
    pad = model.tokenizer.pad_token_id
    ids, targets = Tensor(model.tokenizer.ids(BATCH).values).numpy(), np.array(model.tokenizer.targets(BATCH))
    logits = model(BATCH)
    expected = torch_twin.transformer(params, ids, model.config(), pad)
    assert_close(logits, expected, what="logits")
    loss, wanted = cross_entropy_loss(logits, targets, pad), torch_twin.loss(expected, targets, pad)
    assert_close(loss, wanted, what="loss")
    loss.backward(Tensor(1.7))
    wanted.backward(torch.tensor(1.7, dtype=torch.float64))
    check_parameters(model, params)


@pytest.mark.parametrize("options", VARIANTS[:2])
def test_gradients_from_the_logits_match_pytorch(backend: Backend, options: dict[str, Any]) -> None:
    model = small_model(**options)
    randomise(model)
    params = torch_params(model)
    ids = rng().integers(0, model.tokenizer.vocab_size, (3, 12))
    upstream = rng(2).normal(size=(3, 12, model.tokenizer.vocab_size + 1))
    model(ids).backward(Tensor(upstream))
    torch_twin.transformer(params, ids, model.config(), model.tokenizer.pad_token_id).backward(torch.tensor(upstream))
    check_parameters(model, params)


def train_both(
    options: dict[str, Any],
    ours: Callable[[Transformer], Any],
    theirs: Callable[[list[torch.Tensor]], torch.optim.Optimizer],
) -> tuple[Transformer, dict[str, torch.Tensor]]:
    """Train the same model in both libraries for 100 steps on the same batches."""
    model = small_model(**options)
    params = torch_params(model)
    mine, reference = ours(model), theirs(list(params.values()))
    pad, draws = model.tokenizer.pad_token_id, rng(5)
    for _ in range(100):
        ids = draws.integers(0, model.tokenizer.vocab_size, (4, 9))
        ids[1, 6:] = pad
        targets = np.concatenate([ids[:, 1:], np.full((4, 1), pad)], axis=1)
        mine.zero_grad()
        loss = cross_entropy_loss(model(ids), targets, pad)
        loss.backward()
        mine.step()
        reference.zero_grad()
        expected = torch_twin.loss(torch_twin.transformer(params, ids, model.config(), pad), targets, pad)
        expected.backward()
        reference.step()
        assert_close(loss, expected, atol=1e-11)
    return model, params


def test_100_steps_of_sgd_match_pytorch(backend: Backend) -> None:
    model, params = train_both({}, lambda m: SGDOptimizer(m.parameters(), lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1))
    for name, parameter in model.named_parameters():
        assert_close(parameter, params[name], what=name)


def test_100_steps_of_adamw_match_pytorch(backend: Backend) -> None:
    """atol is 1e-10, since Adam divides by the root of the mean squared gradient.

    Where a gradient is about eps = 1e-8, a difference of 1e-16 in it moves the parameter by up to
    lr * 1e-16 / 1e-8 = 1e-11 in each step.
    """
    model, params = train_both(
        GPT,
        lambda m: AdamWOptimizer(m.parameters(), lr=1e-3, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1),
    )
    for name, parameter in model.named_parameters():
        assert_close(parameter, params[name], atol=1e-10, what=name)


def test_float32_model_stays_float32(backend: Backend) -> None:
    model = small_model(**GPT)
    randomise(model)
    reference = model.state_dict()
    model.astype("float32")
    double = small_model(**GPT)
    double.load_state_dict(reference)
    ids = rng().integers(0, model.tokenizer.vocab_size, (3, 12))
    losses = []
    for m in (model, double):
        logits = m(ids)
        losses.append(cross_entropy_loss(logits, ids, m.tokenizer.pad_token_id))
        losses[-1].backward()
    assert str(losses[0].dtype) == "float32"
    for (name, single), wide in zip(model.named_parameters(), double.parameters(), strict=True):
        assert single.grad is not None
        assert str(backend.dtype(single.grad)) == "float32"
        expected = Tensor(wide.grad).astype("float32")
        # float32 has 7 digits, and the model chains about 30 sums of up to 64 terms
        assert_close(single.grad, expected, atol=2e-4 * max(1.0, float(np.abs(expected.numpy()).max())), what=name)


def test_padding_does_not_change_other_logits(backend: Backend) -> None:
    model = small_model(**GPT)
    randomise(model)
    alone = model(["the cat"])
    with_longer = model(["the cat", "sat sat sat"])
    assert_close(with_longer[:1, :7], alone)


def test_logits_do_not_depend_on_later_characters(backend: Backend) -> None:
    model = small_model()
    randomise(model)
    first, second = model(["the cat"]), model(["the mat"])
    assert_close(first[:, :4], second[:, :4])
    assert np.abs(first.numpy()[:, 4:] - second.numpy()[:, 4:]).max() > 1e-3


def test_model_can_learn_a_sentence(backend: Backend) -> None:
    model = small_model(**GPT)
    optimizer = AdamWOptimizer(model.parameters(), lr=1e-2)
    ids = np.array([model.tokenizer.encode(TEXT[i : i + 12]) for i in range(10)])
    for _ in range(60):
        optimizer.zero_grad()
        loss = cross_entropy_loss(model(ids[:, :-1]), ids[:, 1:], model.tokenizer.pad_token_id)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3  # log(11) = 2.4 before training
    assert model.generate("the cat ", 3, temperature=0) == "the cat sat"


def test_generate_is_reproducible_and_follows_its_options(backend: Backend) -> None:
    model = small_model()
    text = model.generate("the", 30, seed=3)  # longer than max_seq_len = 12
    assert text.startswith("the")
    assert len(text) == 33
    assert set(text) <= set(model.tokenizer.vocabulary)
    assert text == model.generate("the", 30, seed=3)
    assert text != model.generate("the", 30, seed=4)
    assert model.generate("the", 5, temperature=0) == model.generate("the", 5, top_k=1, seed=9)
    assert model.generate("the", 0) == "the"


def test_generate_never_samples_padding(backend: Backend) -> None:
    model = small_model()
    state = model.state_dict()
    state["tokenizer.token_embedding"][-1] = 100 * state["tokenizer.token_embedding"].sum(0)
    model.load_state_dict(state)
    assert len(model.generate("t", 40)) == 41


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "the prompt is empty"),
        ("THE", {}, "character 'T' at position 0"),
        ("the", {"temperature": -1.0}, "temperature >= 0"),
        ("the", {"top_k": 0}, "top_k >= 1"),
    ],
)
def test_generate_with_bad_arguments_raises(
    backend: Backend, prompt: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        small_model().generate(prompt, 5, **options)


def test_dropout_masks_and_scales_reproducibly(backend: Backend) -> None:
    x = Tensor(np.ones((200, 50)))
    dropout = Dropout(0.2, generator=Generator(3))
    y = dropout(x)
    values = y.numpy()
    assert set(np.unique(values)) == {0.0, 1.25}
    assert abs((values == 0).mean() - 0.2) < 0.02
    y.backward(Tensor(np.full(y.shape, 3.0)))
    assert_close(x.grad, 3 * values)
    assert not np.array_equal(values, dropout(x).numpy())
    assert np.array_equal(values, Dropout(0.2, generator=Generator(3))(x).numpy())  # the same seed gives the same draws
    assert dropout.eval()(x) is x
    with pytest.raises(ValueError, match=r"Dropout: p must be in \[0, 1\), got 1"):
        Dropout(1.0)


def test_dropout_without_a_generator_uses_the_default_one(backend: Backend) -> None:
    x = Tensor(np.ones((20, 50)))
    manual_seed(7)
    first, second = Dropout(0.5)(x).numpy(), Dropout(0.5)(x).numpy()
    assert not np.array_equal(first, second)
    manual_seed(7)
    assert np.array_equal(Dropout(0.5)(x).numpy(), first)
    manual_seed(0)


def test_dropout_is_active_only_in_training_mode(backend: Backend) -> None:
    model = small_model(dropout=0.5)
    evaluated = small_model().state_dict()
    assert all(np.array_equal(a, evaluated[name]) for name, a in model.state_dict().items())
    assert not np.array_equal(model(["the"]).numpy(), model(["the"]).numpy())
    model.eval()
    assert np.array_equal(model(["the"]).numpy(), model(["the"]).numpy())
    model.train()
    model.generate("the", 2)
    assert model.training


def test_same_seed_gives_the_same_model(backend: Backend) -> None:
    first, same, other = (small_model(seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], same[name]) for name in first)
    assert not np.array_equal(first["blocks.0.attention.w_qkv"], other["blocks.0.attention.w_qkv"])
    assert not np.array_equal(first["blocks.0.attention.w_qkv"], first["blocks.1.attention.w_qkv"])


def test_packed_qkv_weights_equal_three_separate_draws(backend: Backend) -> None:
    """A seed gives w_qkv the values that it gives three separate matrices."""
    layer, head = AttentionLayer(2, 8, generator=Generator(5)), AttentionHead(8, 8, 8, generator=Generator(5))
    assert np.array_equal(layer.w_qkv.numpy(), np.concatenate([w.numpy() for w in (head.w_q, head.w_k, head.w_v)], 1))


def test_bad_arguments_raise(backend: Backend) -> None:
    with pytest.raises(ValueError, match="n_heads=3 does not divide hidden_size=8"):
        AttentionLayer(3, 8)
    with pytest.raises(ValueError, match="unknown activation 'swish'; known are leaky_relu"):
        FFLayer(8, 4, activation="swish")
    with pytest.raises(ValueError, match="n_layers must be positive"):
        Transformer(Tokenizer.from_text(TEXT, 4, 8), 0, 2)
