"""The model of explore.py in a browser: its logits and its text are those of the library."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from russellgrad import Tensor
from russellgrad.bpe import BPE
from russellgrad.byte_level import BYTE_OF
from russellgrad.checkpoint import load_model
from russellgrad.encoding import HubEncoding
from russellgrad.generation import Sampling
from tests.browser import Browser, check_no_requests
from tests.explore_page import (
    CONTEXT,
    TEXT,
    VOCABULARY,
    logits_of_library,
    make_model,
    open_page,
    set_value,
    wait_for_text,
)
from tests.helpers import rng
from tests.test_bpe import SAMPLES
from train.explore import write_page

pytest.importorskip("safetensors")

CONFIGURATIONS: list[dict[str, Any]] = [
    {"activation": "leaky_relu"},
    {"activation": "relu", "output_projection": True, "n_layers": 1},
    {"activation": "gelu", "output_projection": True, "final_norm": True, "attention_bias": True},
    {"activation": "gelu_tanh", "final_norm": True, "n_attn_heads": 1, "ff_scale_factor": 3, "dropout": 0.5},
]

LOGITS = """((ids) => {
  const cache = new KVCache(model);
  for (const part of ids) model.forward(part, cache);
  return ids.flat().map((_, t) => [...model.logits(cache, t)]);
})"""


def logits_of_page(browser: Browser, *parts: list[int]) -> Any:
    """The logits that the page computes for tokens that are appended to its cache in these parts."""
    return np.array(browser.evaluate(f"{LOGITS}({json.dumps(parts)})"))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_logits_equal_the_library(browser: Browser, tmp_path: Path, dtype: str) -> None:
    """One character, random lengths, full context, padding, and tokens appended to a cache."""
    pages, draws = [], rng(2)
    for number, options in enumerate(CONFIGURATIONS):
        file = make_model(tmp_path / str(number), dtype, **options)
        model, pad = load_model(file, backend="numpy"), len(VOCABULARY)
        pages.append(write_page(file, "a"))
        open_page(browser, pages[-1])
        for length in (1, 5, CONTEXT, *draws.integers(2, CONTEXT, 3).tolist()):
            ids = draws.integers(0, pad, length).tolist()
            expected = logits_of_library(model, ids)
            assert np.abs(expected).max() > 1
            np.testing.assert_allclose(logits_of_page(browser, ids), expected, rtol=0, atol=1e-4)
            cut = length // 2
            in_parts = logits_of_page(browser, ids[:cut], ids[cut:])
            np.testing.assert_allclose(in_parts, expected, rtol=0, atol=1e-4)
            padded = [*ids, *[pad] * (CONTEXT - length)]
            np.testing.assert_allclose(
                logits_of_page(browser, padded), logits_of_library(model, padded), rtol=0, atol=1e-4
            )
            inside = [ids[0], pad, *ids[1 : CONTEXT - 1]]  # not the padding that the library adds, but allowed
            np.testing.assert_allclose(
                logits_of_page(browser, inside), logits_of_library(model, inside), rtol=0, atol=1e-4
            )
    check_no_requests(browser, *pages)


def test_float16_page_has_the_logits_of_rounded_weights(browser: Browser, tmp_path: Path) -> None:
    file = make_model(tmp_path, activation="gelu", output_projection=True, final_norm=True)
    model = load_model(file, backend="numpy")
    exact = logits_of_library(model, list(range(CONTEXT)))
    for parameter in model.parameters():
        parameter.data = parameter.data.astype("float16").astype("float64")
    whole = write_page(file, "a").stat().st_size
    page = write_page(file, "a", dtype="float16")
    assert page.stat().st_size < whole
    open_page(browser, page)
    found, expected = logits_of_page(browser, list(range(CONTEXT))), logits_of_library(model, list(range(CONTEXT)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert np.abs(expected - exact).max() > 1e-4  # the rounding shows, so the test can fail


def test_half_precision_is_decoded_exactly(browser: Browser, tmp_path: Path) -> None:
    open_page(browser, write_page(make_model(tmp_path), "a"))
    bits = np.concatenate([np.arange(0, 2**16, 37), [0, 1, 1023, 1024, 0x7BFF, 0x8001, 0xFBFF]]).astype(np.uint16)
    bits = bits[np.isfinite(bits.view(np.float16))]
    found = browser.evaluate(f"{bits.tolist()}.map(decodeHalf)")
    np.testing.assert_array_equal(np.array(found, float), bits.view(np.float16).astype(float))


@pytest.mark.parametrize("activation", ["leaky_relu", "relu", "gelu", "gelu_tanh"])
def test_activations_equal_the_library(browser: Browser, tmp_path: Path, activation: str) -> None:
    open_page(browser, write_page(make_model(tmp_path), "a"))
    edges = np.sqrt(2) * np.array([-4, 0.46875, 0.4687501, 4])  # of the ranges of erf
    values = np.concatenate([np.linspace(-9, 9, 997), edges, [-1e4, 0, 1e4]])
    x = Tensor(values, requires_grad=False, backend="numpy")
    expected = x.gelu("tanh") if activation == "gelu_tanh" else getattr(x, activation)()
    found = browser.evaluate(f"{values.tolist()}.map(ACTIVATIONS.{activation})")
    np.testing.assert_allclose(np.array(found, float), expected.numpy(), rtol=1e-12, atol=1e-7)


def test_tokens_after_padding_in_a_cache_continue_the_text(browser: Browser, tmp_path: Path) -> None:
    file, pad = make_model(tmp_path), len(VOCABULARY)
    model = load_model(file, backend="numpy")
    open_page(browser, write_page(file, "a"))
    found = logits_of_page(browser, [3, 1, 4, pad, pad], [5, 2])[[0, 1, 2, 5, 6]]
    np.testing.assert_allclose(found, logits_of_library(model, [3, 1, 4, 5, 2]), rtol=0, atol=1e-4)


# --- Generation


@pytest.mark.parametrize("prompt", ["a", "bad face <\u00e9\U0001f600 hide! 'jig' deface\nabc"])
def test_greedy_text_is_that_of_the_library_past_the_context(browser: Browser, tmp_path: Path, prompt: str) -> None:
    for number, options in enumerate(CONFIGURATIONS[1:3]):
        file = make_model(tmp_path / str(number), **options)
        expected = load_model(file, backend="numpy").generate(prompt, 4 * CONTEXT, temperature=0)
        open_page(browser, write_page(file, prompt))
        set_value(browser, "temperature", "0")
        set_value(browser, "characters", str(4 * CONTEXT))
        browser.evaluate("document.getElementById('generate').click()")
        assert wait_for_text(browser, len(expected)) == expected
        assert browser.problems == []


def test_sampling_probabilities_equal_the_library(browser: Browser, tmp_path: Path) -> None:
    open_page(browser, write_page(make_model(tmp_path), "a"))
    tied = rng(3).permutation([2.5] * 4 + [1.0] * 4 + [-3.0] * 2).tolist()
    logits = [*tied, *rng(3).normal(0, 2, 10).tolist()]
    for temperature, top_k in ((1.0, 0), (0.3, 2), (0.5, 5), (2.0, 20), (0, 0), (0, 7), (1.5, 1), (1e-308, 0)):
        tokens, weights = Sampling(temperature, top_k or None).choices(logits)
        expected = np.zeros(20)
        expected[tokens] = np.array(weights) / sum(weights)
        found = browser.evaluate(f"[...samplingProbabilities(new Float64Array({logits}), {temperature}, {top_k})]")
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_drawn_tokens_have_their_probabilities(browser: Browser, tmp_path: Path) -> None:
    open_page(browser, write_page(make_model(tmp_path), "a"))
    counts = browser.evaluate(
        "(() => { const counts = [0, 0, 0, 0], generator = new Generator(5);"
        "for (let i = 0; i < 20000; i++) counts[draw([0.5, 0, 0.2, 0.3], generator)]++; return counts; })()"
    )
    np.testing.assert_allclose(np.array(counts) / 20000, [0.5, 0, 0.2, 0.3], rtol=0, atol=0.015)
    seeds = "[0, 1, 2, 2654435769, 4294967295].map((seed) => new Generator(seed).random())"
    assert len(set(browser.evaluate(seeds))) == 5


def test_a_seed_gives_the_same_text_in_one_part_or_several(browser: Browser, tmp_path: Path) -> None:
    page = write_page(make_model(tmp_path), "ab")
    texts = []
    for seed, parts in ((3, [30]), (3, [1, 9, 20]), (4, [30])):
        open_page(browser, page)
        set_value(browser, "seed", str(seed))
        set_value(browser, "temperature", "3")
        for i, count in enumerate(parts):
            set_value(browser, "characters", str(count))
            browser.evaluate("document.getElementById('generate').click()")
            text = wait_for_text(browser, 2 + sum(parts[: i + 1]))
        texts.append(text)
    assert texts[0] == texts[1] != texts[2]
    browser.evaluate("document.getElementById('reset').click()")
    assert browser.evaluate(TEXT) == "ab"


# --- Byte-pair encoding


def byte_pairs() -> BPE:
    return BPE.train("\n".join(SAMPLES), 330)


def test_byte_pair_encoding_gives_the_ids_of_the_library(browser: Browser, tmp_path: Path) -> None:
    encoding = byte_pairs()
    open_page(browser, write_page(make_model(tmp_path, encoding=encoding), "The king"))
    for text in SAMPLES:
        assert browser.evaluate(f"model.bpe.encode({json.dumps(text)})") == encoding.encode(text)
    merges = [
        ("ab", "a"),
        ("a", "b"),
    ]  # an order that training does not give: the second merge makes a pair of the first
    vocab = {token: i for i, token in enumerate([*BYTE_OF, "ab", "aba"])}
    tokens = json.dumps({"tokens": list(vocab), "merges": merges})
    assert browser.evaluate(f"new BPE({tokens}).encode('abab')") == BPE(vocab, merges).encode("abab")
    expected = [list(encoding.token_bytes(i)) for i in range(encoding.vocab_size)]
    assert browser.evaluate("model.bpe.tokens.map((_, id) => [...model.bpe.bytesOf(id)])") == expected


def test_text_of_tokens_is_that_of_the_library(browser: Browser, tmp_path: Path) -> None:
    """Greedy text; the library's last character may be incomplete, which the page does not show."""
    file = make_model(tmp_path, encoding=byte_pairs())
    prompt, n = "The king's caf\u00e9", 9
    open_page(browser, write_page(file, prompt))
    assert browser.evaluate("[...document.querySelectorAll('#strip span')].map((s) => s.textContent)") == [
        load_model(file).tokenizer.decode([i]).replace(" ", "\u2423")
        for i in load_model(file).tokenizer.encode(prompt)[-CONTEXT:]
    ]
    set_value(browser, "temperature", "0")
    set_value(browser, "characters", str(n))
    browser.evaluate("document.getElementById('generate').click()")
    for _ in range(1000):
        if f"{n} tokens in " in browser.evaluate("document.getElementById('status').textContent"):
            break
        time.sleep(0.01)
    expected = load_model(file).generate(prompt, n, temperature=0)
    shown = browser.evaluate(TEXT)
    assert expected.startswith(shown) and expected.removeprefix(shown) in ("", "\ufffd")
    assert "character" not in browser.evaluate("document.body.innerText").replace("caf", "")


def test_tokens_of_other_encodings_are_an_error(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    file = make_model(tmp_path, encoding=HubEncoding.train("the king", 260))
    with pytest.raises(
        ValueError, match=r"model.safetensors: the page has characters and .* those of HubEncoding; report"
    ):
        write_page(file, "the")
