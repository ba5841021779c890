"""The report of a training run: the content of its page, its pictures, its errors, and its behavior in a browser."""

import base64
import hashlib
import json
import math
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from russellgrad.backend import Backend
from russellgrad.checkpoint import load_model, save_model
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer
from tests.browser import Browser, check_no_requests, check_page_fits
from tests.helpers import hide_package, rng
from tests.page import EVIL, Page
from tests.process import run_python
from train.chart import BUCKETS, Axis, Chart, Series, downsample, format_number, value_axis
from train.maps import maps_html
from train.metrics import Metrics
from train.report import trailing_mean, write_report

pytest.importorskip("safetensors")

VOCABULARY = "".join(sorted(set(EVIL + "abc \nROMEO:")))


def make_run(
    folder: Path,
    steps: int = 40,
    *,
    model: bool = True,
    losses: list[float] | None = None,
    sample: str = "\nROMEO: abc",
) -> Path:
    """Write a run's folder, with metrics of falling losses and a small model."""
    folder.mkdir(parents=True, exist_ok=True)
    draws = rng(0)
    losses = losses or (2 + 2 * np.exp(-np.arange(steps) / (steps / 4)) + 0.1 * draws.normal(size=steps)).tolist()
    with Metrics(folder) as metrics:
        metrics.run(config={"grad_clip": 1.0, "dataset": EVIL, "dropout": 0.0}, parameters=1234, backend="numpy")
        for first in range(1, steps + 1, 10):
            chunk = losses[first - 1 : first + 9]
            norms = draws.uniform(0.5, 2, len(chunk)).tolist()
            rates = [2e-3] * len(chunk)
            metrics.steps(
                first, chunk, learning_rates=rates, gradient_norms=norms, tokens_per_second=25000 + first, seconds=first
            )
            metrics.validation(first + len(chunk) - 1, 2.5 + 1 / first, 240)
            metrics.sample(first + len(chunk) - 1, sample)
    if model:
        tokenizer = Tokenizer(len(VOCABULARY), 64, 8, len(VOCABULARY), vocabulary=VOCABULARY, seed=0)
        save_model(folder / "model.safetensors", Transformer(tokenizer, 2, 2, seed=0))
    return folder


# --- The page


def page_of(folder: Path, **options: Any) -> Page:
    path = write_report(folder, **{"png": False, **options})
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_page_checks_detect_errors() -> None:
    for bad in (
        "<p><b></p></b>", "<p>", "<p id=a></p><p id=a></p>", "<img src='http://example.org/a.png'>",
        "<b onclick='a'></b>", "<link href='style.css'>", "<svg aria-labelledby='none'></svg>", "<use href='#none'/>",
    ):  # fmt: skip
        with pytest.raises(AssertionError):
            Page(bad)


@pytest.mark.parametrize("steps", [1, 2, 20, 999])
def test_page_is_complete_and_self_contained(steps: int, tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", steps))
    assert page.text["title"][0] == "Training run: run"  # the other titles are in the SVGs
    assert len(page.all("h1")) == 1
    figures = [given["class"] for given in page.all("figure")]
    assert figures == ["chart"] * 4 + ["map"] * 4
    for svg in page.all("svg"):
        assert svg.get("aria-hidden") == "true" or svg["role"] == "img"
        assert svg.get("aria-hidden") == "true" or svg.get("aria-label") or svg.get("aria-labelledby")
    assert sum("at step" in text for text in page.text["desc"]) == 4
    (style,) = page.text["style"]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style


def test_content_security_policy_allows_only_the_page_script(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path))
    (policy,) = [given["content"] for given in page.all("meta") if given.get("http-equiv") == "Content-Security-Policy"]
    scripts = [text for text in page.text["script"] if not text.startswith("{")]
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digests[0]}'"
    assert len(page.all("script")) == 2


def test_text_is_escaped(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "<b>'&\"", sample=EVIL)
    page = page_of(folder, prompt=EVIL[:40])
    assert len(page.all("script")) == 2
    assert not page.all("img")
    assert not page.all("b") or {given.get("style", "")[:7] for given in page.all("b")} == {"opacity"}
    assert page.text["title"][0] == "Training run: <b>'&\""
    assert set(page.text["pre"]) == {EVIL}
    assert EVIL[:40] in page.text["q"]
    assert EVIL in page.text["td"]
    assert ">&lt;</text>" in (folder / "report.html").read_text(encoding="utf-8")


def test_page_shows_numbers_and_settings(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path, 40))
    facts = dict(zip(page.text["dt"], page.text["dd"], strict=True))
    assert facts["steps"] == "40"
    assert (
        facts["validation loss"] == f"{2.5 + 1 / 31:.4f} nats ({(2.5 + 1 / 31) / math.log(2):.3f} bits) per character"
    )
    assert facts["time"] == "0:31"
    assert facts["throughput"] == "25,016 tokens per second"
    assert facts["parameters"] == "1,234"
    assert {"Training", "Validation", "Configuration", "Environment"} == set(page.text["caption"])
    assert {"version of numpy", "dropout", "40"} <= set(page.text["th"])
    assert "Step 10, validation loss 3.5000" in page.text["summary"]


def test_page_reports_gaps_resumption_and_non_finite_losses(tmp_path: Path) -> None:
    losses = [3.0] * 40
    losses[4], losses[7] = math.nan, math.inf
    folder = make_run(tmp_path, 40, losses=losses)
    with Metrics(folder, resume_at=20) as metrics:
        metrics.run(config={}, parameters=1, backend="numpy")
        metrics.steps(31, [2.0], learning_rates=[1.0], gradient_norms=None, tokens_per_second=1, seconds=1)
    said = " ".join(page_of(folder).text["p"])
    assert "The loss was not finite at 2 of the steps, first at step 5." in said
    assert "10 of the 31 steps are not in metrics.jsonl." in said
    assert "The run was resumed after step 20." in said


def test_diverged_run_has_a_report(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path, 20, losses=[math.nan] * 20))
    assert "each step's batch: no finite value" in page.text["desc"][0]
    assert not any("nan" in given["d"] for given in page.all("path"))


def test_long_run_is_downsampled(tmp_path: Path) -> None:
    losses = (3 + 0.1 * rng(0).normal(size=50_000)).tolist()
    losses[12_345] = 9.75  # downsampling must keep the peak
    folder = make_run(tmp_path, 50_000, losses=losses, sample="abc " * 1000)
    page = page_of(folder)
    assert (folder / "report.html").stat().st_size < 1_000_000
    points = json.loads(next(text for text in page.text["script"] if text.startswith("{")))["charts"]["loss"]["series"]
    assert points[0]["y"][points[0]["x"].index(12_346)] == "9.75"
    assert len(points[0]["x"]) <= 2 * BUCKETS + 2
    assert all(len(text) < 2100 for text in page.text["pre"])
    assert "... and 2,000 more characters" in page.text["pre"][0]
    assert "12 of 5,000 samples." in page.text["p"]


# --- Attention


def opacities(url: str) -> np.ndarray[Any, Any]:
    """The opacity of each pixel in a PNG of train/maps.py. A PNG chunk has a length, a name, data and a checksum."""
    raw, at, chunks = base64.b64decode(url.removeprefix("data:image/png;base64,")), 8, {}
    while at < len(raw):
        length, kind = struct.unpack_from(">I4s", raw, at)
        data = raw[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", raw, at + 8 + length)[0] == zlib.crc32(kind + data)
        chunks[kind], at = data, at + 12 + length
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    return np.frombuffer(chunks[b"tRNS"], np.uint8)[rows[:, 1:]]


def test_maps_show_the_attention_of_the_model(backend: Backend, tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    page = page_of(folder, prompt="ROMEO: abc")
    maps = load_model(folder / "model.safetensors").attention_maps("ROMEO: abc")
    shown = [opacities(given["href"]) for given in page.all("image")]
    assert len(shown) == 4
    for picture, weights in zip(shown, [head for heads in maps for head in heads], strict=True):
        assert picture.shape == (10, 10)
        np.testing.assert_allclose((picture / 255) ** 2, weights, rtol=0, atol=0.005)  # 255 opacities, squared
    assert page.text["text"] == list("ROMEO:\u2423abc") * 2


def test_prompt_defaults_to_the_last_sample_or_generated_text(tmp_path: Path) -> None:
    assert "ROMEO: abc" in page_of(make_run(tmp_path / "a", sample="\nROMEO: abc")).text["q"]
    (text,) = page_of(make_run(tmp_path / "b", sample="\n")).text["q"]
    assert len(text) == 32


def test_long_prompt_is_truncated_with_a_note(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path), prompt="abc" * 40)
    assert "abc" * 16 in page.text["q"]
    assert "The prompt has 72 more characters." in " ".join(page.text["p"])


def test_map_of_one_character_is_explained() -> None:
    text = maps_html([np.ones((1, 1, 1))], "a")
    assert "one character, which attends to itself" in text


def test_run_without_a_model_has_no_maps(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path, model=False))
    assert "The folder has no model.safetensors, so there are no attention maps." in page.text["p"]
    with pytest.raises(FileNotFoundError, match=r"there is no file .*model\.safetensors"):
        write_report(tmp_path, "abc", png=False)


# --- Downsampling, axes and number formats


def test_downsample_keeps_few_points_and_extremes() -> None:
    x = np.arange(10_000.0)
    y = rng(1).normal(size=10_000)
    y[100:200] = np.nan
    few = Series("few", x[: 2 * BUCKETS], y[: 2 * BUCKETS])
    np.testing.assert_array_equal(downsample(few), (few.x, few.y))
    kept_x, kept_y = downsample(Series("many", x, y))
    assert len(kept_x) <= 2 * BUCKETS + 2
    np.testing.assert_array_equal(kept_y, y[kept_x.astype(int)])
    assert (np.diff(kept_x) > 0).all()
    assert (kept_x[0], kept_x[-1]) == (0, 9999)
    assert (np.nanmin(kept_y), np.nanmax(kept_y)) == (np.nanmin(y), np.nanmax(y))
    assert np.isnan(kept_y).any()


@pytest.mark.parametrize("window", [1, 3, 50])
def test_trailing_mean_matches_numpy(window: int) -> None:
    values = rng(2).normal(size=20)
    values[3], values[9] = np.nan, np.inf
    expected = [
        np.mean([v for v in values[max(0, i + 1 - window) : i + 1] if np.isfinite(v)] or [np.nan]) for i in range(20)
    ]
    np.testing.assert_allclose(trailing_mean(values, window), expected, rtol=0, atol=1e-13)


def test_trailing_mean_recovers_after_a_huge_value() -> None:
    values = np.full(30, 0.5)
    values[4] = 1e30
    np.testing.assert_array_equal(trailing_mean(values, 5)[9:], 0.5)
    values[3:6] = 1e308  # their sum is infinite, without a warning
    np.testing.assert_array_equal(np.isfinite(trailing_mean(values, 5)), [*[True] * 4, *[False] * 5, *[True] * 21])


def test_trailing_mean_of_a_million_values_takes_no_longer_for_a_wide_window() -> None:
    """`train` draws the curve in a notebook again and again. A time that grows with the window would be minutes."""
    n, window = 1_000_000, 50_000
    means = trailing_mean(np.arange(float(n)), window)
    np.testing.assert_allclose(means[window:], np.arange(float(window), n) - (window - 1) / 2)


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        (Axis(0, 10), [0, 2, 4, 6, 8, 10]),
        (Axis(0.5, 20.5), [5, 10, 15, 20]),
        (Axis(1.51, 1.74), [1.55, 1.6, 1.65, 1.7]),
        (Axis(0.001, 0.0011), [0.001, 0.00102, 0.00104, 0.00106, 0.00108, 0.0011]),
        (Axis(-3e9, 3e9), [-2e9, 0, 2e9]),
        (Axis(0.3, 30, log=True), [0.5, 1, 2, 5, 10, 20]),
        (Axis(1e-6, 1e12, log=True), [1e-6, 1e-3, 1, 1e3, 1e6, 1e9, 1e12]),
    ],
)
def test_axis_ticks(axis: Axis, expected: list[float]) -> None:
    ticks = axis.ticks()
    assert ticks == pytest.approx(expected, rel=1e-9)
    places = axis.positions(np.array(ticks))
    assert (places > -0.001).all()
    assert (places < 1.001).all()
    labels = [label for label, _ in axis.tick_labels()]
    assert len(set(labels)) == len(labels)
    assert [float(label.replace(",", "")) for label in labels] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 3.0], Axis(0.92, 3.08)),
        ([1.0, 1000.0], Axis(1 / 1.1, 1100, log=True)),
        ([0.0, 1000.0], Axis(-40, 1040)),
        ([2.0, 2.0], Axis(1.9, 2.1)),
        ([0.0, 0.0], Axis(-0.5, 0.5)),
        ([np.nan, np.inf], Axis(0, 1)),
        ([], Axis(0, 1)),
    ],
)
def test_value_axis_range(values: list[float], expected: Axis) -> None:
    y = np.array(values, float)
    axis = value_axis(Chart("a", "a", "a", (Series("a", np.arange(len(y), dtype=float), y),)))
    assert (axis.low, axis.high) == pytest.approx((expected.low, expected.high))
    assert axis.log == expected.log


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (12345.6, "12,346"), (1.81437, "1.814"), (0.002, "0.002"), (2e-5, "2e-5"), (1.234567e-7, "1.23e-7"), (0, "0"),
        (3.2e9, "3.2e9"), (-0.5, "-0.5"), (999.96, "1000"), (math.nan, "nan"), (-math.inf, "-inf"),
    ],
)  # fmt: skip
def test_format_number(value: float, shown: str) -> None:
    assert format_number(value) == shown


# --- PNG files


def test_png_files_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_report(make_run(tmp_path, 600))
    names = {"loss.png", "learning_rate.png", "gradient_norm.png", "throughput.png", "attention.png"}
    assert {path.name for path in tmp_path.glob("*.png")} == names
    for path in tmp_path.glob("*.png"):
        raw = path.read_bytes()
        assert raw.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", raw[16:24])
        assert width >= 500
        assert height >= 500


def test_missing_matplotlib_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path)
    hide_package(monkeypatch, "matplotlib")
    with pytest.raises(
        ImportError, match=r'PNG files need matplotlib; pip install "russellgrad\[report\]", or .*; png=False writes'
    ):
        write_report(folder)
    assert not (folder / "report.html").exists()
    assert write_report(folder, png=False).exists()


def test_missing_matplotlib_on_the_command_line_names_its_option(tmp_path: Path) -> None:
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib/__init__.py").write_text("raise ImportError", encoding="utf-8")
    done = run_python("train/report.py", str(make_run(tmp_path / "run")), PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "; --no-png writes the page only\n" in done.stderr


# --- Errors, and the command line


def test_metrics_without_a_step_raise(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        metrics.run(config={}, parameters=1, backend="numpy")
    with pytest.raises(ValueError, match=r"metrics\.jsonl has no training step yet; train for a while first"):
        write_report(tmp_path, png=False)


def test_model_of_another_run_raises(tmp_path: Path) -> None:
    folder = make_run(tmp_path, sample="\u00a7")
    with pytest.raises(ValueError, match="lacks characters of the last sample, so it is of another run"):
        write_report(folder, png=False)


def test_command_line_writes_the_report(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    done = run_python("train/report.py", str(folder), "--no-png", "--prompt", "abc")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / "report.html")
    assert not list(folder.glob("*.png"))
    assert "<q>abc</q>" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "arguments", "environment", "message"),
    [
        ("none", ["--prompt", "\u00a7"], {}, "character '\u00a7' at position 0 is not in the vocabulary"),
        ("metrics", [], {}, "line 2, is not JSON"),
        ("model", [], {}, "is not a complete safetensors file"),
        ("folder", [], {}, "metrics.jsonl; a training run writes it to its folder"),
        ("none", [], {"RG_BACKEND": "nympy"}, "unknown backend 'nympy'"),
    ],
)
def test_command_line_errors_are_one_line(
    damage: str, arguments: list[str], environment: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = make_run(tmp_path / "run")
    if damage == "metrics":
        raw = (folder / "metrics.jsonl").read_bytes()
        (folder / "metrics.jsonl").write_bytes(re.sub(rb"\n.", b"\n", raw, count=1))
    if damage == "model":
        raw = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    if damage == "folder":
        folder = tmp_path / "elsewhere"
    done = run_python("train/report.py", str(folder), "--no-png", *arguments, **environment)
    assert done.returncode == 1
    assert done.stderr.startswith("report.py: error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (folder / "report.html").exists()


# --- In a browser


def test_page_works_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    report = write_report(make_run(tmp_path, 600, sample=EVIL), EVIL[:12], png=False)
    check_page_fits(browser, report)
    assert browser.evaluate("window.pwned") is None
    assert browser.evaluate("document.querySelector('pre').textContent") == EVIL
    check_value_readout(browser)
    check_no_requests(browser, report)


def check_value_readout(browser: Browser) -> None:
    """Check that the pointer and the slider show the values and that the arrow keys move the slider."""
    slider = "document.querySelector('.slider input')"
    browser.point_at("#chart-loss svg", 0.5, 0.5)
    assert browser.evaluate("document.querySelectorAll('.cursor').length") == 4
    found = browser.evaluate("document.querySelector('#chart-loss .reading').textContent")
    match = re.fullmatch(
        r"each step's batch \S+ \(step (\d+)\), mean of 6 steps \S+ \(step \d+\), validation .*", found
    )
    assert match, found
    assert abs(int(match[1]) - 300) <= 3
    browser.evaluate(f"{slider}.value = 100; {slider}.dispatchEvent(new Event('input'))")
    assert browser.evaluate("document.querySelector('.slider output').textContent") == "100"
    browser.evaluate(f"{slider}.focus()")
    before = browser.evaluate(f"Number({slider}.value)")
    for kind in ("rawKeyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key="ArrowLeft", code="ArrowLeft", windowsVirtualKeyCode=37)
    assert browser.evaluate(f"Number({slider}.value)") == pytest.approx(before - 5.99)
    assert browser.evaluate(f"{slider}.getAttribute('aria-valuetext')").startswith("step 94: ")


def test_browser_reports_page_errors(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<img src='none.png'><script>console.log('said'); nonsense()</script>", encoding="utf-8")
    browser.open(page)
    browser.evaluate("1")
    assert any(url.endswith("none.png") for url in browser.requests)
    problems = "\n".join(browser.problems)
    for part in ("request failed", "said", "nonsense is not defined"):
        assert part in problems
