"""train/explore.py: the page's content, its use by pointer and keyboard, and errors."""

import base64
import errno
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from russellgrad.autograd import no_grad
from russellgrad.backend import Backend
from russellgrad.checkpoint import load_model, save_model
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer
from tests.browser import Browser, check_no_requests, check_page_fits
from tests.explore_page import (
    TEXT,
    VOCABULARY,
    logits_of_library,
    make_model,
    open_page,
    set_value,
    wait_for_text,
)
from tests.page import EVIL, Page
from tests.process import run_python
from tests.test_report import make_run
from train.explore import write_page

pytest.importorskip("safetensors")

# --- The page


def test_page_is_complete_and_self_contained(tmp_path: Path) -> None:
    page = write_page(make_model(tmp_path / "<b>'&\""), EVIL[0] + "a")
    parsed = Page(page.read_text(encoding="utf-8"))
    assert parsed.text["title"][0] == "Model: <b>'&\""
    assert len(parsed.all("h1")) == 1
    labelled = {given["for"] for given in parsed.all("label") if "for" in given}
    for field in parsed.all("textarea") + parsed.all("select") + parsed.all("input"):
        assert field["id"] in labelled or field["type"] == "number"  # those are inside of their labels
    assert len([script for script in parsed.all("script") if "type" not in script]) == 2


@pytest.mark.parametrize("options", [{"norm": "rms_norm"}, {"window": 4}, {"tied": False}])
def test_a_model_with_other_blocks_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    file = make_model(tmp_path, **options)
    with pytest.raises(
        ValueError, match=f"computes GPT-2's blocks, the model has other options: {next(iter(options))}"
    ):
        write_page(file, "a")


def test_text_cannot_close_elements(browser: Browser, tmp_path: Path) -> None:
    file = make_run(tmp_path / "run", sample=EVIL) / "model.safetensors"
    page = write_page(file, EVIL)
    open_page(browser, page)
    assert browser.evaluate(TEXT) == EVIL
    assert browser.evaluate("window.pwned") is None
    check_no_requests(browser, page)


def test_page_fits_its_window_light_and_dark(browser: Browser, tmp_path: Path) -> None:
    page = write_page(make_model(tmp_path), "bad face")
    check_page_fits(browser, page)
    check_no_requests(browser, page)


def test_page_shows_probabilities_norms_and_attention(browser: Browser, tmp_path: Path) -> None:
    file, prompt = make_model(tmp_path, activation="gelu", final_norm=True), "bad face\nhi"
    model = load_model(file, backend="numpy")
    open_page(browser, write_page(file, prompt))
    logits = logits_of_library(model, model.tokenizer.encode(prompt))[-1]
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    ranked = np.argsort(-probabilities, kind="stable")
    browser.evaluate("document.getElementById('all').click()")
    rows = browser.evaluate("[...document.querySelectorAll('#next tbody tr')].map((row) => row.innerText.split('\\t'))")
    assert len(rows) == len(VOCABULARY)
    symbols = str.maketrans({" ": "\u2423", "\n": "\u21b5"})
    for row, i in zip(rows, ranked, strict=True):
        assert row[:2] == [VOCABULARY[i].translate(symbols), f"{100 * probabilities[i]:.1f} %"]
    norms = browser.evaluate("[...document.querySelectorAll('#norms tbody td:nth-child(2)')].map((c) => c.innerText)")
    with no_grad():
        x = model.tokenizer.embed(model.tokenizer.ids([prompt]).values)
        expected = [float(np.linalg.norm(x.numpy()[0, -1]))]
        for block in model.blocks:
            x = block(x)
            expected.append(float(np.linalg.norm(x.numpy()[0, -1])))
    np.testing.assert_allclose(np.array(norms, float), expected, rtol=6e-3)
    for layer, heads in enumerate(model.attention_maps(prompt)):
        for head, weights in enumerate(heads):
            opacities = painted(browser, layer, head)
            np.testing.assert_allclose((opacities / 255) ** 2, weights, rtol=0, atol=0.005)


def painted(browser: Browser, layer: int, head: int) -> Any:
    """The opacities that a map's canvas shows, (T, T)."""
    canvas = f"document.querySelectorAll('.heads')[{layer}].querySelectorAll('canvas')[{head}]"
    size = browser.evaluate(f"{canvas}.width")
    found = browser.evaluate(f"[...{canvas}.getContext('2d').getImageData(0, 0, {size}, {size}).data]")
    return np.array(found).reshape(size, size, 4)[..., 3]


def test_weights_can_be_read_by_pointer_and_keyboard(browser: Browser, tmp_path: Path) -> None:
    file, prompt = make_model(tmp_path), "bad face"
    weights = load_model(file, backend="numpy").attention_maps(prompt)
    open_page(browser, write_page(file, prompt))
    browser.point_at(".heads canvas", 2.5 / 8, 5.5 / 8)
    captions = "[...document.querySelectorAll('figcaption')].map((caption) => caption.textContent)"
    expected = [f"Head {h + 1}  a \u2192 d  {100 * heads[h, 5, 2]:.1f} %" for heads in weights for h in range(3)]
    assert browser.evaluate(captions) == expected
    assert browser.evaluate("document.getElementById('strip').querySelector('.query').textContent") == "a"
    press(browser, "key", "ArrowLeft", 37)
    value = browser.evaluate("document.getElementById('key').ariaValueText")
    assert value.startswith("\u201ca\u201d, character 2 of 8; layer 1, head 1: ")
    assert re.findall(r": ([\d.]+) %", value) == [f"{100 * heads[h, 5, 1]:.1f}" for heads in weights for h in range(3)]
    press(browser, "query", "Home", 36)
    assert browser.evaluate("document.getElementById('query').ariaValueText") == "\u201cb\u201d, character 1 of 8"
    assert browser.evaluate("document.getElementById('after').textContent").startswith(
        "After \u201cb\u201d, character 1"
    )


def test_the_selected_character_and_what_follows_it(browser: Browser, tmp_path: Path) -> None:
    file = make_model(tmp_path)
    open_page(browser, write_page(file, "bad face"))
    window, actual = "document.getElementById('window').textContent", "document.querySelector('#next .actual')"
    assert browser.evaluate(window) == "8 of at most 12 characters."
    assert browser.evaluate(actual) is None  # nothing follows the last character
    browser.evaluate("document.getElementById('all').click()")
    browser.point_at(".heads canvas", 6.5 / 8, 3.5 / 8)  # above the diagonal: a character attends to no later one
    assert browser.evaluate("['query', 'key'].map((id) => document.getElementById(id).value)") == ["4", "4"]
    assert browser.evaluate(f"{actual}.textContent") == "f"
    assert " In the text \u201cf\u201d follows: " in browser.evaluate("document.getElementById('after').textContent")
    open_page(browser, write_page(file, "bad face bad face"))
    assert browser.evaluate(window) == "The last 12 characters; the 5 before them are outside the model's context."


def press(browser: Browser, name: str, key: str, code: int, **text: str) -> None:
    """Focus an element and press a key."""
    browser.evaluate(f"document.getElementById({json.dumps(name)}).focus()")
    for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)


def test_keyboard_generates_stops_and_types(browser: Browser, tmp_path: Path) -> None:
    page = write_page(make_model(tmp_path), "ab")
    open_page(browser, page)
    press(browser, "one", "Enter", 13, text="\r")
    assert wait_for_text(browser, 3).startswith("ab")
    assert browser.evaluate("document.activeElement.id") == "one"
    assert "1 character in " in browser.evaluate("document.getElementById('status').textContent")
    set_value(browser, "characters", "100000")
    press(browser, "seed", "Enter", 13, text="\r")  # submits the form
    assert browser.evaluate("document.getElementById('generate').textContent") == "Stop"
    press(browser, "generate", "Escape", 27)
    length = browser.evaluate(f"[...{TEXT}].length")
    assert 3 < length < 10_000
    time.sleep(0.05)
    assert browser.evaluate("document.getElementById('generate').textContent") == "Generate"
    browser.evaluate(
        "document.getElementById('reset').click(); document.getElementById('text').setSelectionRange(1, 1)"
    )
    press(browser, "text", "c", 67, text="c")
    assert browser.evaluate(f"[{TEXT}, document.getElementById('text').selectionStart]") == ["acb", 2]
    assert browser.evaluate("document.getElementById('query').max") == "3"
    assert browser.problems == []


def test_page_names_bad_input(browser: Browser, tmp_path: Path) -> None:
    open_page(browser, write_page(make_model(tmp_path), "ab"))
    message, one = "document.getElementById('message').textContent", "document.getElementById('one').disabled"
    set_value(browser, "text", "aXbXY")
    assert "the vocabulary lacks \u201cX\u201d, \u201cY\u201d" in browser.evaluate(message)
    assert browser.evaluate(one)
    set_value(browser, "text", "")
    assert "the text is empty" in browser.evaluate(message)
    set_value(browser, "text", "a")
    assert browser.evaluate(message) == ""
    assert not browser.evaluate(one)
    set_value(browser, "temperature", "-1")
    browser.evaluate("document.getElementById('generate').click()")
    assert browser.evaluate(TEXT) == "a"
    assert browser.evaluate("document.activeElement.id") == "temperature"  # the browser's message is there


def test_characters_outside_the_vocabulary_are_skipped_unless_strict(browser: Browser, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_text("abc", 4, 4, strict=False, seed=0)
    open_page(browser, write_page(save_model(tmp_path / "model.safetensors", Transformer(tokenizer, 1, 1, seed=0))))
    set_value(browser, "text", "aXb")
    assert browser.evaluate("document.getElementById('message').textContent") == ""
    assert browser.evaluate("document.getElementById('strip').textContent") == "ab"
    set_value(browser, "text", "X")
    assert "the text is empty" in browser.evaluate("document.getElementById('message').textContent")


def test_a_vocabulary_of_70000_characters(browser: Browser, tmp_path: Path) -> None:
    """More than the arguments that a function of JavaScript can have."""
    vocabulary = "".join(map(chr, range(0x10000, 0x10000 + 70_000)))
    page = write_page(make_model(tmp_path, vocabulary=vocabulary, n_layers=1), vocabulary[5])
    open_page(browser, page)
    assert browser.evaluate("document.getElementById('strip').textContent") == vocabulary[5]
    assert browser.evaluate("document.querySelectorAll('#next tbody tr').length") == 12
    check_no_requests(browser, page)


# --- Errors, and the command line


def test_first_text_is_the_last_sample_or_generated(backend: Backend, tmp_path: Path) -> None:
    def first(page: Path) -> str:
        texts = Page(page.read_text(encoding="utf-8")).text["script"]
        return json.loads(next(text for text in texts if text.startswith("{")))["prompt"]

    run = make_run(tmp_path / "run", sample="\nROMEO: abc")
    assert first(write_page(run)) == "ROMEO: abc"
    assert first(write_page(run, "cab")) == "cab"
    assert len(first(write_page(make_model(tmp_path / "model"), output=tmp_path / "page.html"))) == 32


def test_page_replaces_only_a_complete_page(tmp_path: Path) -> None:
    file = make_model(tmp_path)
    page = write_page(file, "a")
    before = page.read_bytes()
    with pytest.raises(ValueError, match="not in the vocabulary"):
        write_page(file, "X")
    assert page.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["explore.html", "model.safetensors"]


def test_model_of_another_run_raises(tmp_path: Path) -> None:
    run = make_run(tmp_path, sample="\u00a7")
    with pytest.raises(
        ValueError, match=r"lacks characters of the last sample, so it is of another run; give a prompt"
    ):
        write_page(run)


def test_values_that_the_dtype_lacks_raise(tmp_path: Path) -> None:
    file = make_model(tmp_path)
    model = load_model(file, backend="numpy")
    name, parameter = next(model.named_parameters())
    parameter.data[0, 0] = 1e5
    save_model(file, model)
    assert write_page(file, "a").exists()
    with pytest.raises(ValueError, match=rf"{name} has values that are not finite in float16; use dtype float32"):
        write_page(file, "a", dtype="float16")
    parameter.data[0, 0] = np.nan
    save_model(file, model)
    with pytest.raises(ValueError, match=rf"{name} has values that are not finite in float32$"):
        write_page(file, "a")
    with pytest.raises(ValueError, match="unknown dtype 'int8'; a page has float32 or float16"):
        write_page(file, "a", dtype="int8")
    with pytest.raises(TypeError, match="prompt: needs a str, got a bytes"):
        write_page(file, b"a")  # type: ignore[arg-type]


def test_names_of_files_that_are_not_utf_8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"run\xff")
    try:
        folder.mkdir()
    except OSError:  # the file system has only UTF-8
        pytest.skip("no such names here")
    assert write_page(make_model(folder), "a").stat().st_size > 1000


def test_large_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = make_model(tmp_path)
    monkeypatch.setattr("train.explore.MAX_BYTES", 2**13)
    with pytest.raises(ValueError, match=r"the weights need 0 MiB, a page holds 0; use dtype float16"):
        write_page(file, "a")


def test_command_line_writes_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    done = run_python("train/explore.py", str(run), "--prompt", "abc", "--dtype", "float16")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(run / "explore.html")
    page = tmp_path / "page.html"
    done = run_python("train/explore.py", str(run / "model.safetensors"), "--output", str(page))
    assert done.returncode == 0, done.stderr
    assert page.exists()


def damage(folder: Path, how: str) -> None:
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    if how == "vocabulary":  # the header's length stays the same
        file.write_bytes(raw.replace(b'\\"vocabulary\\": \\"', b'\\"vocabulary\\":\\"x', 1))
        assert file.read_bytes() != raw
    elif how == "half":
        file.write_bytes(raw[: len(raw) // 2])
    elif how == "missing":
        file.unlink()


@pytest.mark.parametrize(
    ("how", "arguments", "environment", "message"),
    [
        ("none", ["--prompt", "\u00a7"], {}, "--prompt: character '\u00a7' at position 0 is not in the vocabulary"),
        ("none", ["--prompt", ""], {}, "--prompt: it has no character of the model's vocabulary"),
        ("vocabulary", [], {}, "does not contain a complete model: "),
        ("half", [], {}, "is not a complete safetensors file"),
        ("missing", [], {}, "there is no file"),
        ("none", ["--output", "none/page.html"], {}, "cannot write none/page.html: No such file or directory; "),
        ("none", [], {"RG_BACKEND": "nympy"}, "unknown backend 'nympy'"),
    ],
)  # fmt: skip
def test_command_line_errors_are_one_line(
    how: str, arguments: list[str], environment: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = make_run(tmp_path / "run")
    damage(folder, how)
    done = run_python("train/explore.py", str(folder), *arguments, **environment)
    assert done.returncode == 1
    assert done.stderr.startswith("explore.py: error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (folder / "explore.html").exists()


def test_read_only_folder_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = make_model(tmp_path / "run")

    def refuse(path: Path, content: bytes) -> None:  # as for a user who is not root, for whom no folder is read-only
        raise PermissionError(errno.EACCES, "Permission denied", f"{path}.1.tmp")

    with monkeypatch.context() as patch:
        patch.setattr("train.explore.replace_file", refuse)
        with pytest.raises(OSError, match=r"cannot write .*explore\.html: Permission denied; output writes"):
            write_page(file, "a")
    assert write_page(file, "a", output=tmp_path / "page.html").exists()


def test_weights_in_the_page_are_the_parameters(tmp_path: Path) -> None:
    file = make_model(tmp_path, "float32", output_projection=True)
    texts = Page(write_page(file, "a").read_text(encoding="utf-8")).text["script"]
    config = json.loads(next(text for text in texts if text.startswith("{")))
    raw = np.frombuffer(base64.b64decode(max((t for t in texts if re.fullmatch(r"[\w+/=]+", t)), key=len)), "<f4")
    state = load_model(file, backend="numpy").state_dict()
    assert [parameter["name"] for parameter in config["parameters"]] == list(state)
    assert raw.size == sum(array.size for array in state.values())
    np.testing.assert_array_equal(raw[: state["tokenizer.token_embedding"].size].reshape(-1, 12),
                                  state["tokenizer.token_embedding"])  # fmt: skip
