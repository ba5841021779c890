"""Helpers for the tests of explore.py: a small model, and its page in a browser."""

import json
import time
from pathlib import Path
from typing import Any

from russellgrad.autograd import no_grad
from russellgrad.checkpoint import save_model
from russellgrad.encoding import CharacterEncoding, Encoding
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer
from tests.browser import Browser
from tests.helpers import rng

VOCABULARY = "\n !'abcdefghij\u00e9\U0001f600<"  # beyond ASCII, and beyond 16 bits
CONTEXT = 12

TEXT = "document.getElementById('text').value"


def make_model(
    folder: Path,
    dtype: str = "float64",
    *,
    vocabulary: str = VOCABULARY,
    encoding: Encoding | None = None,
    **options: Any,
) -> Path:
    """Write a small model with random parameters, all of which change the logits."""
    encoding = CharacterEncoding(vocabulary) if encoding is None else encoding
    size = encoding.vocab_size
    tokenizer = Tokenizer(size, CONTEXT, 12, size, encoding=encoding, seed=0)
    model = Transformer(tokenizer, **{"n_layers": 2, "n_attn_heads": 3, "seed": 0, **options}).to("numpy")
    draws = rng(1)
    for name, parameter in model.named_parameters():
        center = 1.0 if name.endswith("gamma") else 0.0
        parameter.data = draws.normal(center, 0.4, parameter.shape)
    model.astype(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    return save_model(folder / "model.safetensors", model)


def open_page(browser: Browser, page: Path, **options: Any) -> None:
    browser.open(page, **options)
    assert browser.problems == []


def logits_of_library(model: Transformer, ids: list[int]) -> Any:
    with no_grad():
        return model.forward([ids]).numpy()[0, :, : model.tokenizer.vocab_size]


def set_value(browser: Browser, name: str, value: str) -> None:
    field = f"document.getElementById({json.dumps(name)})"
    browser.evaluate(f"{field}.value = {json.dumps(value)}; {field}.dispatchEvent(new Event('input'))")


def wait_for_text(browser: Browser, length: int) -> str:
    """The text, once it has so many characters and the generation has ended."""
    for _ in range(1000):
        ended = "document.getElementById('generate').textContent === 'Generate'"
        if browser.evaluate(f"[...{TEXT}].length === {length} && {ended}"):
            return browser.evaluate(TEXT)
        time.sleep(0.01)
    raise AssertionError(f"the text is {browser.evaluate(TEXT)!r}, not of {length} characters")
