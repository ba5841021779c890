"""Text generation: the KV cache against the full forward pass, sampling, stop strings and streaming."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from russellgrad import Tensor
from russellgrad.autograd import is_grad_enabled
from russellgrad.backend import Backend
from russellgrad.generation import KVCache, Sampling, _CachedDecoder, _Completion
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer
from tests.helpers import assert_close, rng
from tests.test_russelltransformer import VARIANTS, small_model
from tests.torch_twin import randomise

WINDOW = 12  # max_seq_len of small_model
PROMPTS = ["the c", "a", "sat sat sat", "mmm"]


def random_model(**options: Any) -> Transformer:
    """A model with large random parameters, whose probabilities are far from uniform, so that errors show."""
    model = small_model(**options)
    randomise(model)
    return model


def record_shapes(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """A list that receives the ids' shape of each later forward pass. Asserts that no pass records gradients."""
    shapes, forward = [], model.forward

    def watched(batch: Any, cache: KVCache | None = None) -> Tensor:
        assert not is_grad_enabled()
        shapes.append(np.shape(batch))
        return forward(batch, cache)

    monkeypatch.setattr(model, "forward", watched)
    return shapes


# --- The cache


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("sizes", [[1] * WINDOW, [5, 1, 1, 1, 4], [WINDOW], [3, 9]])
def test_tokens_fed_in_chunks_give_the_logits_of_a_full_pass(
    backend: Backend, options: dict[str, Any], sizes: list[int]
) -> None:
    model = random_model(**options)
    ids = rng().integers(0, model.tokenizer.vocab_size, (3, WINDOW))
    cache, expected, done = KVCache(model), model(ids), 0
    for size in sizes:
        assert cache.length == done
        assert_close(model(ids[:, done : done + size], cache), expected[:, done : done + size])
        done += size
    assert cache.length == WINDOW


def test_padded_chunks_give_the_logits_of_each_text_alone(backend: Backend) -> None:
    """Chunks padded to different lengths: each text gets the same logits as alone."""
    model = random_model()
    pad, cache = model.tokenizer.pad_token_id, KVCache(model)
    texts: list[list[int]] = [[], [], []]
    for lengths in ([2, 2, 2], [1, 4, 2], [1, 1, 1], [3, 1, 2]):
        new = [rng(n).integers(0, pad, n).tolist() for n in lengths]
        texts = [text + more for text, more in zip(texts, new, strict=True)]
        longest = max(lengths)
        logits = model([more + [pad] * (longest - len(more)) for more in new], cache)
        for row, (text, n) in enumerate(zip(texts, lengths, strict=True)):
            assert_close(logits[row, :n], model([text])[0, len(text) - n :], what=f"text {row}")


def test_float32_stays_float32(backend: Backend) -> None:
    model = random_model().astype("float32")
    cache = KVCache(model)
    ids = rng().integers(0, model.tokenizer.vocab_size, (2, 6))
    for part in (ids[:, :5], ids[:, 5:]):
        logits = model(part, cache)
    assert_close(logits, model(ids)[:, -1:])


def test_select_keeps_the_cache_of_the_chosen_texts(backend: Backend) -> None:
    model = random_model()
    cache = KVCache(model)
    ids = rng().integers(0, model.tokenizer.vocab_size, (4, 9))
    padded = ids[:, :5].copy()
    padded[1, 3:] = model.tokenizer.pad_token_id
    model(padded, cache)
    rows = [3, 1]
    cache.select(rows)
    logits = model(ids[rows, 5:], cache)
    assert_close(logits[0], model(ids[3:])[0, 5:])
    assert_close(logits[1], model(np.delete(ids[1:2], [3, 4], axis=1))[0, 3:])


def test_cache_errors(backend: Backend) -> None:
    model, other = small_model(), small_model()
    cache = KVCache(model)
    model([[1] * 10] * 2, cache)
    with pytest.raises(ValueError, match="it holds 10 tokens, and 3 more exceed max_seq_len=12; start a new cache"):
        model([[1] * 3] * 2, cache)
    with pytest.raises(ValueError, match="it holds 2 texts and was given tokens of 3"):
        model([[1]] * 3, cache)
    with pytest.raises(ValueError, match="the cache is another model's"):
        other([[1]] * 2, cache)
    assert cache.length == 10
    model([[1] * 2] * 2, cache)  # the cache still works after the errors


# --- Cached decoding


@pytest.mark.parametrize("options", VARIANTS)
def test_cached_logits_equal_those_of_each_text_alone(backend: Backend, options: dict[str, Any]) -> None:
    """Prompts of different lengths, some of which end early, up to far beyond the context window."""
    model = random_model(**options)
    decoder, draws = _CachedDecoder(model), rng()
    rows = [model.tokenizer.encode(prompt) for prompt in [*PROMPTS, "the cat sat on the mat"[:20]]]
    for step in range(30):
        for row, logits in zip(rows, decoder.next_logits(rows), strict=True):
            assert_close(np.array(logits), model([row[-WINDOW:]])[0, -1, :-1], what=f"step {step}")
            row.append(int(draws.integers(0, model.tokenizer.vocab_size)))
        if step in (1, 4, 25):
            left = {1: [0, 1, 2, 3], 4: [1, 3], 25: [1]}[
                step
            ]  # the first removal drops the text longer than the window, the second a long one
            decoder.select(left)
            rows = [rows[i] for i in left]


def test_only_new_tokens_are_fed_within_the_window(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    shapes = record_shapes(model, monkeypatch)
    model.generate("the", WINDOW)
    assert shapes == [(1, 3), *[(1, 1)] * (WINDOW - 3), *[(1, WINDOW)] * 2]


def test_a_full_cache_is_refilled_after_its_longest_text_ends(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, same = random_model(), random_model()
    shapes = record_shapes(model, monkeypatch)
    decoder = _CachedDecoder(model)
    rows = [[1] * 10, [2] * 3]
    decoder.next_logits(rows)
    decoder.select([1])
    (row,) = rows[1:]
    for _ in range(6):
        row.append(1)
        (logits,) = decoder.next_logits([row])
        assert_close(np.array(logits), same([row])[0, -1, :-1])
    assert shapes == [(2, 10), (1, 1), (1, 1), (1, 6), (1, 1), (1, 1), (1, 1)]


def test_each_step_copies_one_row_of_logits_per_text_to_the_host(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, read, to_host = small_model(), [], backend.to_host

    def watched(array: Any) -> Any:
        read.append(array.shape)
        return to_host(array)

    monkeypatch.setattr(backend, "to_host", watched)
    model.generate(PROMPTS, 15)
    assert read == [(4, model.tokenizer.vocab_size + 1)] * 15


def test_a_text_does_not_depend_on_the_other_prompts(backend: Backend) -> None:
    model = random_model()
    together = model.generate(PROMPTS, 25, seed=5, temperature=3.0, stop="e")
    for row, prompt in enumerate(PROMPTS):
        others = ["t" * (row + 1)] * len(PROMPTS)
        others[row] = prompt
        assert model.generate(others, 25, seed=5, temperature=3.0, stop="e")[row] == together[row]
    assert together[0] == model.generate(PROMPTS[0], 25, seed=5, temperature=3.0, stop="e")


def test_each_row_and_seed_draws_differently(backend: Backend) -> None:
    model = small_model()  # nearly uniform probabilities
    texts = [text for seed in range(3) for text in model.generate(["a"] * 3, 20, seed=seed)]
    assert len(set(texts)) == 9


# --- Sampling


def probabilities(logits: np.ndarray[Any, Any], temperature: float, top_k: int | None, top_p: float | None) -> Any:
    """The probability of each token: an independent implementation for distinct logits."""
    p = np.exp((logits - logits.max()) / temperature)
    if top_k is not None:
        p[np.argsort(-logits)[top_k:]] = 0
    p /= p.sum()
    if top_p is not None:
        kept = min(n for n in range(1, len(p) + 1) if np.sort(p)[::-1][:n].sum() >= top_p or n == len(p))
        p[np.argsort(-p)[kept:]] = 0
        p /= p.sum()
    return p


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("top_k", [None, 1, 4, 100])
@pytest.mark.parametrize("top_p", [None, 1e-6, 0.5, 0.9, 1.0])
def test_choices_give_the_expected_probabilities(temperature: float, top_k: int | None, top_p: float | None) -> None:
    logits = 3 * rng(3).normal(size=10)
    tokens, weights = Sampling(temperature, top_k, top_p).choices(logits.tolist())
    found = np.zeros(10)
    found[tokens] = np.array(weights) / sum(weights)
    assert_close(found, probabilities(logits, temperature, top_k, top_p))
    assert tokens == sorted(tokens, key=lambda i: -logits[i])


def test_top_p_keeps_the_smallest_sufficient_set() -> None:
    logits = np.log([4.0, 2.0, 1.0, 1.0]).tolist()  # 1/2, 1/4, 1/8, 1/8, exact in binary
    for top_p, count in ((0.1, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.76, 3), (0.875, 3), (0.9, 4), (1.0, 4)):
        assert Sampling(top_p=top_p).choices(logits)[0] == [0, 1, 2, 3][:count], top_p


def test_ties_are_broken_by_the_order_of_the_vocabulary() -> None:
    assert Sampling(top_k=2).choices([0.0, 1.0, 1.0, 1.0])[0] == [1, 2]
    assert Sampling(0).choices([0.0, 1.0, 1.0])[0] == [1]


@pytest.mark.parametrize("temperature", [0.0, 1e-300, float("inf")])
def test_extreme_temperatures(temperature: float) -> None:
    tokens, weights = Sampling(temperature).choices([-900.0, 5.0, 900.0])
    assert [w for w in weights if w] == [1.0] * (3 if temperature > 1 else 1)
    assert tokens[0] == 2


def test_draws_follow_the_probabilities() -> None:
    sampling, draws, logits = Sampling(0.7, top_p=0.9), random.Random(0), [0.3, 2.0, 1.0, 0.9, -1.0]
    counts = np.bincount([sampling.draw(logits, draws) for _ in range(20_000)], minlength=5)
    np.testing.assert_allclose(counts / 20_000, probabilities(np.array(logits), 0.7, None, 0.9), rtol=0, atol=0.015)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_non_finite_logits_raise(bad: float, temperature: float) -> None:
    with pytest.raises(ValueError, match="the model's logits contain nan or inf"):
        Sampling(temperature).choices([0.0, bad, 1.0])


# --- Streaming and stop strings


@pytest.mark.parametrize("stop", ["a", "ab", "aa", "aab", "abab", "abaab", "b" * 40])
def test_only_a_possible_start_of_the_stop_string_is_held_back(stop: str) -> None:
    draws = random.Random(stop)
    for _ in range(50):
        characters = "".join(draws.choices("ab", k=30))
        text, shown = _Completion([], draws, stop), ""
        for i, character in enumerate(characters):
            shown += text.add(character)
            so_far = characters[: i + 1]
            if stop in so_far:
                assert text.stopped
                break
            assert not text.stopped
            could_stop = [n for n in range(len(stop)) if so_far.endswith(stop[:n])]
            assert shown == so_far[: len(so_far) - max(could_stop)]
        assert shown + text.flush() == characters.partition(stop)[0]


def test_without_a_stop_string_nothing_is_held_back() -> None:
    text = _Completion([], random.Random(0), None)
    assert [text.add(character) for character in "abc"] == ["a", "b", "c"]
    assert text.flush() == ""


@pytest.mark.parametrize("prompt", ["the", PROMPTS])
@pytest.mark.parametrize("stop", [None, " ", "at"])
def test_stream_yields_the_text_of_generate(backend: Backend, prompt: Any, stop: str | None) -> None:
    model = small_model()
    pieces = list(model.stream(prompt, 40, seed=2, stop=stop))
    text = model.generate(prompt, 40, seed=2, stop=stop)
    whole = model.generate(prompt, 40, seed=2)
    if isinstance(prompt, str):
        prompt, text, whole = [prompt], [text], [whole]
        pieces = [[piece] for piece in pieces]
    assert all(any(step) for step in pieces)
    for row, start in enumerate(prompt):
        assert start + "".join(step[row] for step in pieces) == text[row]
        added = whole[row].removeprefix(start)
        assert text[row] == start + (added.partition(stop)[0] if stop else added)
    if stop:
        assert text != whole


def test_finished_texts_are_dropped_from_the_batch(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    shapes = record_shapes(model, monkeypatch)
    texts = model.generate(["a"] * 4, 100, stop=" ")
    lengths = [
        len(text) for text in texts
    ]  # the prompt's character and one per draw, less the stop: equals the number of draws
    assert len(set(lengths)) > 1
    assert [shape[0] for shape in shapes] == [sum(n > step for n in lengths) for step in range(max(lengths))]


def test_stream_yields_each_character_after_its_forward_pass(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    shapes = record_shapes(model, monkeypatch)
    for n, piece in enumerate(model.stream("the", 20), 1):
        assert len(piece) == 1
        assert len(shapes) == n


def test_stream_restores_modes_between_pieces(backend: Backend) -> None:
    model = random_model(dropout=0.5)
    model.blocks[0].attention.eval()
    modes = [module.training for module in model.modules()]
    text = random_model().generate("the", 20, temperature=3.0)
    for piece, expected in zip(model.stream("the", 20, temperature=3.0), text[3:], strict=True):
        assert piece == expected  # no dropout
        assert [module.training for module in model.modules()] == modes
        assert is_grad_enabled()
        model(["the", "cat"]).sum().backward()


def test_a_prompt_with_unknown_characters_for_a_lenient_tokenizer(backend: Backend) -> None:
    tokenizer = Tokenizer.from_text("abc", 8, 16, strict=False, seed=0)
    model = Transformer(tokenizer, 1, 2, seed=0)
    assert model.generate("aXb", 0) == "ab"
    with pytest.raises(ValueError, match="the prompt 'X' has no character of the vocabulary"):
        model.generate("X", 1)


# --- Errors


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "the prompt is empty; give at least one character"),
        (["the", ""], {}, "the prompt is empty; give at least one character"),
        ([], {}, "the list of prompts is empty; give at least one"),
        (["the", "THE"], {}, "character 'T' at position 0 is not in the vocabulary"),
        ("the", {"max_new_tokens": -1}, "max_new_tokens >= 0, got -1"),
        ("the", {"temperature": -1.0}, "temperature >= 0, got -1.0"),
        ("the", {"temperature": float("nan")}, "temperature >= 0, got nan"),
        ("the", {"top_k": 0}, "top_k >= 1, got 0"),
        ("the", {"top_p": 0.0}, r"top_p in \(0, 1\], got 0.0"),
        ("the", {"top_p": 1.1}, r"top_p in \(0, 1\], got 1.1"),
        ("the", {"top_p": float("nan")}, r"top_p in \(0, 1\], got nan"),
        ("the", {"stop": ""}, "the stop string is empty; give at least one character"),
        ("the", {"stop": "aX"}, "the stop string 'aX' cannot occur: 'X' is not in the vocabulary"),
        ("the", {"seed": -1}, r"seed must be in \[0, 2\*\*64\), got -1"),
    ],
)
def test_invalid_settings_raise_immediately(prompt: Any, options: dict[str, Any], message: str) -> None:
    model = small_model()
    settings = {"max_new_tokens": 5, **options}
    calls: Sequence[Callable[..., Any]] = (
        model.generate,
        model.stream,
    )  # stream must raise before its first piece is requested
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call(prompt, **settings)


@pytest.mark.parametrize("prompt", [5, [1, 2], None])
def test_a_prompt_of_another_type_raises(prompt: Any) -> None:
    with pytest.raises(TypeError, match="the prompt must be a string or a list of strings"):
        small_model().generate(prompt, 5)
