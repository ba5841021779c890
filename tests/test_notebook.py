"""The output of a run in a Jupyter notebook. docs/notebooks.md checks it in a real kernel when the site is built."""

import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from russellgrad import Tensor
from tests.helpers import once
from tests.test_train import interrupt_at_step, small
from train import notebook, train_transformer
from train.checkpoints import find
from train.metrics import read_metrics
from train.notebook import NotebookProgress, kernel_display

pytestmark = once
SAMPLE = "\n<script>alert(1)</script> & \x1b[31m \U0001f600\n"


class Notebook:
    """A stand-in for IPython's `display`, and for the handle that it returns."""

    def __init__(self) -> None:
        self.pages: list[dict[str, str]] = []
        self.displays = 0
        self.fails_after = 10**9  # pages

    def display(self, page: dict[str, str], *, raw: bool, display_id: bool) -> "Notebook":
        assert raw and display_id
        self.displays += 1
        self.update(page, raw=raw)
        return self

    def update(self, page: dict[str, str], *, raw: bool) -> None:
        if len(self.pages) >= self.fails_after:
            raise OSError("the frontend is gone")
        self.pages.append(page)

    @property
    def last(self) -> str:
        return self.pages[-1]["text/html"]


def run_in(monkeypatch: pytest.MonkeyPatch, get_ipython: Callable[[], Any], display: Any = None) -> None:
    """Make IPython seem to be loaded."""
    for name, values in (("IPython", {"get_ipython": get_ipython}), ("IPython.display", {"display": display})):
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Notebook:
    """The output of a cell, in a kernel."""
    found = Notebook()
    run_in(monkeypatch, lambda: SimpleNamespace(kernel=object()), found.display)
    monkeypatch.delenv("RG_TRAIN_STEPS", raising=False)
    return found


# --- Where it is shown


def test_there_is_a_display_in_a_kernel_only(monkeypatch: pytest.MonkeyPatch, output: Notebook) -> None:
    def fail() -> Any:
        raise RuntimeError

    assert kernel_display() == output.display
    for get_ipython in (lambda: None, lambda: SimpleNamespace(), lambda: SimpleNamespace(kernel=None), fail):
        run_in(monkeypatch, get_ipython, output.display)  # no shell, that of a terminal, another one
        assert kernel_display() is None
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))  # as while it is being imported
    assert kernel_display() is None


def test_ipython_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    monkeypatch.setattr(notebook, "import_module", lambda name: pytest.fail(f"imported {name}"))
    assert kernel_display() is None


# --- What is shown


def test_a_run_has_one_output_with_bar_curve_and_sample(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: Notebook, text: str, tmp_path: Path
) -> None:
    pytest.importorskip("safetensors")
    monkeypatch.setattr(train_transformer, "_sample", lambda *_: SAMPLE)
    monkeypatch.setattr(notebook, "UPDATE_SECONDS", -1.0)
    result = small(text, tmp_path)
    assert output.displays == 1
    first, last = output.pages[0], output.pages[-1]
    assert first["text/plain"] == "no step yet"
    assert '<progress aria-label="Steps" max="6" value="0">' in first["text/html"]
    assert "<svg" not in first["text/html"]
    assert any(
        re.search(r"step 4 of 6  loss \d\.\d{4}  [\d,]+ tokens/s  0:00 left", p["text/plain"]) for p in output.pages
    )
    assert any("validation: 0 of 5 blocks" in p["text/plain"] for p in output.pages)
    assert re.fullmatch(r"6 of 6 steps in 0:\d\d, validation loss \d\.\d{4}", last["text/plain"])
    page = last["text/html"]
    assert f'<p class="facts">{last["text/plain"]}</p>' in page
    assert 'max="6" value="6"' in page
    assert page.count("<svg") == page.count('<path class="train"') == page.count('<path class="validation dots"') == 1
    assert f"{result.losses[0]:.4g} at step 1, {result.losses[-1]:.4g} at step 6" in page
    assert "<figcaption>Sample after step 6</figcaption>" in page
    assert "<pre>&lt;script&gt;alert(1)&lt;/script&gt; &amp; \\x1b[31m \U0001f600</pre>" in page

    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("backend numpy, float32; ")
    assert printed[-1].startswith("6 steps, seed 0, validation loss")
    assert len(printed) == 3  # and the best checkpoint
    assert read_metrics(tmp_path).samples == [(4, SAMPLE), (6, SAMPLE)]


def test_ids_differ_and_the_style_is_for_this_output_only(output: Notebook, tmp_path: Path) -> None:
    ids = []
    for _ in range(2):
        with NotebookProgress(output.display, tmp_path, 10) as progress:
            progress.update(2, [3.0, 2.0], 100.0)
        ids += re.findall(r' id="([^"]+)"', output.last)
        style, _, page = output.last.removeprefix('<div class="russellgrad-run"><style>').partition("</style>")
        assert re.fullmatch(r"\.russellgrad-run \{[^<]*\}", style) and style.count("{") == style.count("}")
        assert "<style" not in page and page.endswith("</div>")
    assert len(ids) == len(set(ids)) == 6


def test_updates_are_not_more_frequent_than_stated(
    monkeypatch: pytest.MonkeyPatch, output: Notebook, tmp_path: Path
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    with NotebookProgress(output.display, tmp_path, 1000) as progress:
        for step in range(1, 1001):
            now = step / 100
            progress.update(step, [1.0], 100.0)
            progress.sample(step, "text")
    assert 30 <= len(output.pages) <= 2 + 10 / notebook.UPDATE_SECONDS
    assert "1,000 of 1,000 steps in 0:10" in output.last


def test_a_long_curve_is_drawn_less_often(monkeypatch: pytest.MonkeyPatch, output: Notebook, tmp_path: Path) -> None:
    now, drawn = 0.0, []
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def chart(self: NotebookProgress) -> str:
        nonlocal now
        now += 0.1
        drawn.append(now)
        return ""

    monkeypatch.setattr(NotebookProgress, "_chart", chart)
    with NotebookProgress(output.display, tmp_path, 100) as progress:
        for step in range(1, 101):
            now += 1.0
            progress.update(step, [1.0], 100.0)
    assert np.diff(drawn[:-1]).min() >= 0.1 / notebook.DRAWING
    assert len(drawn) >= 15
    assert drawn[-1] == now  # at the end, in any case


def test_the_curve_of_a_resumed_run_begins_at_its_first_step(output: Notebook, text: str, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    first = small(text, tmp_path).losses
    second = train_transformer.train(resume=str(tmp_path), steps=9).losses
    assert output.displays == 2
    assert f"{first[0]:.4g} at step 1, {second[-1]:.4g} at step 9" in output.last
    assert len(re.findall(r"[ML]", re.findall(r'<path class="train" d="([^"]+)"', output.last)[0])) == 9
    assert any('max="9" value="6"' in page["text/html"] for page in output.pages)

    progress = NotebookProgress(output.display, tmp_path / "elsewhere", 9, first_step=6)  # without earlier metrics
    with progress:
        progress.update(8, [1.5, 1.25], 100.0)
    assert "1.5 at step 7, 1.25 at step 8" in output.last


# --- What does not stop a run


@pytest.mark.parametrize("pages", [0, 1, 3])
def test_a_display_that_fails_does_not_stop_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: Notebook, text: str, tmp_path: Path,
    pages: int,
) -> None:  # fmt: skip
    pytest.importorskip("safetensors")
    monkeypatch.setattr(notebook, "UPDATE_SECONDS", -1.0)
    output.fails_after = pages
    assert small(text, tmp_path).steps == 6
    assert len(output.pages) == pages
    printed = capsys.readouterr().out
    assert re.search(r"^step 6/6  loss \d\.\d{4}  [\d,]+ tokens/s  0:00 left$", printed, re.M)
    assert re.search(r"^step 6: validation loss \d\.\d{4} over 5 blocks, \d\.\d{4} bits per byte$", printed, re.M)
    assert "    | " in printed


def test_a_page_that_cannot_be_made_does_not_stop_the_run(
    monkeypatch: pytest.MonkeyPatch, output: Notebook, text: str, tmp_path: Path
) -> None:
    pytest.importorskip("safetensors")
    monkeypatch.setattr(notebook, "loss_chart", lambda *_: 1 / 0)
    assert small(text, tmp_path).steps == 6


def test_damaged_metrics_do_not_stop_the_output(output: Notebook, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("not JSON\n", encoding="utf-8")
    with NotebookProgress(output.display, tmp_path, 9, first_step=6) as progress:
        progress.update(7, [1.5], 100.0)
    assert "1.5 at step 7" in output.last


def test_an_interrupted_run_shows_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: Notebook, text: str, tmp_path: Path
) -> None:
    """The stop button of a notebook sends SIGINT."""
    pytest.importorskip("safetensors")
    interrupt_at_step(3, monkeypatch)
    assert small(text, tmp_path).signal == signal.SIGINT
    assert output.pages[-1]["text/plain"].startswith("3 of 6 steps in 0:")
    assert f"resume with: train(resume={str(tmp_path)!r})" in capsys.readouterr().out
    assert find(tmp_path).step == 3


def test_an_error_in_a_run_is_named(
    monkeypatch: pytest.MonkeyPatch, output: Notebook, text: str, tmp_path: Path
) -> None:
    pytest.importorskip("safetensors")
    monkeypatch.setattr(train_transformer, "train_step", lambda *args, **kwargs: (Tensor(float("nan")), None))
    with pytest.raises(FloatingPointError):
        small(text, tmp_path)
    assert output.pages[-1]["text/plain"] == "0 of 6 steps in 0:00, ended by FloatingPointError"
