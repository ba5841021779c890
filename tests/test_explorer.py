"""The page to step through a graph: its content, and its behavior in a browser."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import russellgrad as rg
from russellgrad import Module, Tensor, draw, layers, trace
from russellgrad.graph.document import Document
from russellgrad.tracing import Trace
from tests.browser import Browser
from tests.helpers import once, rng
from tests.page import EVIL, Page

pytestmark = once


def polynomial() -> Trace:
    x = Tensor([2.0], label="x")
    with trace() as t:
        y = x**2 + 3 * x + 1
    t.backward(y)
    return t


class Net(Module):
    """Values of all kinds: small, large, of 3 axes, broadcast, bool, with nan."""

    def __init__(self) -> None:
        self.first, self.second = layers.Linear(6, 40), layers.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        return rg.where(hidden > 0, hidden, 0.0) @ self.second.weight.T + Tensor([0.5, 1.0, 2.0])


def network() -> Trace:
    rg.manual_seed(0)
    model, x = Net(), Tensor(rng().normal(size=(2, 3, 6)), label=EVIL)
    with trace() as t:
        loss = (model(x) * Tensor([1.0, math.nan, 1.0], requires_grad=False))[..., ::2].mean()
    t.backward(loss)
    return t


def written(document: Document, folder: Path) -> tuple[Path, Page, Any]:
    """The path of a page, its elements and its data."""
    path = document.html(folder / "graph.html")
    page = Page(path.read_text(encoding="utf-8"))
    return path, page, json.loads(page.text["script"][0])


@pytest.mark.parametrize("document", [polynomial, network, lambda: draw(Tensor([1.0]).exp())])
def test_page_is_complete_and_self_contained(document: Any, tmp_path: Path) -> None:
    _, page, data = written(document(), tmp_path)
    assert len(page.all("h1")) == 1 and len(page.all("script")) == 2
    (style,) = [text for text in page.text["style"] if ":root" in text]
    assert "url(" not in style and "@import" not in style and style.count("prefers-color-scheme: dark") == 2
    (policy,) = [given["content"] for given in page.all("meta") if "http-equiv" in given]
    digest = base64.b64encode(hashlib.sha256(page.text["script"][1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert [given["data-path"] for given in page.all("div") if given.get("class") == "view"] == [
        box["path"] for box in data["boxes"]
    ]
    for svg in page.all("svg"):
        assert svg["role"] == "img" and svg["aria-label"]


def test_data_has_every_step_and_value(tmp_path: Path) -> None:
    t = network()
    _, _, data = written(t, tmp_path)
    operations = [node for node in t.nodes if node.kind == "op"]
    assert [step["node"] for step in data["steps"]] == [n.index for n in [*operations, *(a.node for a in t.arrivals)]]
    for node, shown in zip(t.nodes, data["nodes"], strict=True):
        value = data["values"][shown["value"]]
        assert node.value is not None and tuple(value["shape"]) == node.shape
        if node.value.numbers is not None:
            expected = [str(x) if isinstance(x, bool) or not math.isfinite(x) else x for x in node.value.numbers]
            assert value["numbers"] == expected
        else:
            assert (value["low"], value["high"], value["mean"]) == (node.value.low, node.value.high, node.value.mean)
            assert base64.b64decode(value["grid"]) == node.value.grid
    for arrival, step in zip(t.arrivals, data["steps"][len(operations) :], strict=True):
        for c, shown in zip(arrival.contributions, step["contributions"], strict=True):
            span = shown["span"]
            assert span is not None, arrival.node.name
            lines = data["sources"][span[0]]["text"].split("\n")[span[1] : span[3] + 1]
            assert lines[0][span[2] :].startswith(("lambda", "def ")) and c.target.index == shown["to"]


def test_of_a_large_graph_the_last_steps_are_on_the_page(tmp_path: Path) -> None:
    x = Tensor([1.0])
    with trace(limit=5000) as t:
        y = x
        for _ in range(2500):
            y = y * 1.0
    t.backward(y)
    path, page, data = written(t, tmp_path)
    assert len(data["nodes"]) == 2000 and len(data["steps"]) == 4000
    assert data["steps"][-1]["node"] == 0 and data["nodes"][0]["operands"] == ["…", "1"]
    assert "501 more nodes are left out." in " ".join(page.text["p"])
    assert path.stat().st_size < 6_000_000


def test_text_is_escaped(tmp_path: Path) -> None:
    path, page, data = written(network(), tmp_path)
    assert len(page.all("script")) == 2 and not page.all("img")
    assert EVIL in [node["label"] for node in data["nodes"]]
    assert path.read_text(encoding="utf-8").count("</script>") == 2


# --- In a browser


@pytest.fixture
def browser(browser: Browser) -> Iterator[Browser]:
    """The browser of all tests, which must report no problem and no request for anything but the page."""
    yield browser
    assert browser.problems == []
    assert all(url.startswith(("file:", "data:")) for url in browser.requests)


def press(browser: Browser, key: str) -> None:
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)


def said(browser: Browser) -> str:
    return str(browser.evaluate("document.getElementById('said').textContent"))


def click(browser: Browser, selector: str) -> None:
    browser.evaluate(
        f"document.querySelector({json.dumps(selector)}).dispatchEvent(new MouseEvent('click', {{bubbles: true}}))"
    )


# Each step in turn, by the button: what is said, the figures with their numbers, the marked source, and all text.
ALL_STEPS = """(() => {
  const found = [], all = (selector, of) => [...document.querySelectorAll(selector)].map(of);
  for (let i = 0; i <= Number(document.getElementById("step").max); i++) {
    if (i) document.getElementById("next").click();
    found.push({
      said: document.getElementById("said").textContent,
      figures: all("#details figure", (f) => [...f.querySelectorAll("td")]
        .map((td) => [td.dataset.value, td.innerText])),
      marked: all("mark", (mark) => mark.textContent).join(""),
      text: document.getElementById("details").textContent,
      overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    });
  }
  return found;
})()"""


def extremes() -> Trace:
    """Numbers of every size, which are shown with 5 digits, and integers, which JavaScript may not have."""
    numbers = [10000.4, -12340.2, 99999.7, 1e300, 123456.7, 0.1, 100.5, 5e-324, 1.2e-10, 20000.3, 1e5, -1e-4, 1234567.0]
    x = Tensor([*numbers, *(rng().normal(size=20) * 10.0 ** np.arange(-10, 10))], label="x")
    with trace() as t:
        y = x * 1
        Tensor([2**62, 2**53 + 1, -7], dtype="int64") * 1
    t.backward(y, Tensor(x.data, requires_grad=False))
    return t


@pytest.mark.parametrize("make", [polynomial, network, extremes])
def test_values_shown_equal_the_librarys_in_every_step(browser: Browser, make: Any, tmp_path: Path) -> None:
    t = make()
    path, _, data = written(t, tmp_path)
    browser.open(path)
    shown = browser.evaluate(ALL_STEPS)
    operations = [node for node in t.nodes if node.kind == "op"]
    assert len(shown) == len(data["steps"]) == len(operations) + len(t.arrivals)
    for i, (node, step) in enumerate(zip(operations, shown, strict=False)):
        assert step["said"].startswith(f"Step {i + 1} of {len(shown)}, forward: {node.title}")
        known = [None if isinstance(operand, str) else operand.value for operand in node.operands]
        for figure, value in zip(step["figures"], [*known, node.value], strict=True):
            same(figure, value)
        assert node.forward is not None and squeezed(step["marked"]) == squeezed(node.forward.text)
        assert node.place is not None and node.place[2] in step["text"]
    for arrival, step in zip(t.arrivals, shown[len(operations) :], strict=True):
        assert f", backward: {arrival.node.title}" in step["said"]
        expected = [arrival.gradient]
        for c in arrival.contributions:
            expected += [c.part] if c.before is None else [c.before, c.part, c.total]
        for figure, value in zip(step["figures"], expected, strict=True):
            same(figure, value)
        assert ("Freed: " in step["text"]) == arrival.frees
        assert ("It is added to .grad" in step["text"]) == arrival.fills
        assert all(held in step["text"] for held in arrival.freed)


def same(shown: list[list[str]], value: Any) -> None:
    """The numbers in a table are the value's: the data to the last bit, the text to 5 digits.

    A large value has no table.
    """
    numbers = [] if value is None or value.numbers is None else value.numbers
    assert len(shown) == len(numbers)
    for (exact, text), number in zip(shown, numbers, strict=True):
        assert exact == str(number) if isinstance(number, bool) else type(number)(exact) == number or math.isnan(number)
        if not isinstance(number, bool) and math.isfinite(number):
            assert float(text) == pytest.approx(number, rel=5.1e-5, abs=0)


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def test_large_values_are_heat_maps_with_a_name(browser: Browser, tmp_path: Path) -> None:
    t = network()
    path, _, _ = written(t, tmp_path)
    browser.open(path)
    number = next(i for i, node in enumerate(n for n in t.nodes if n.kind == "op") if node.name == "relu")
    for _ in range(number):
        click(browser, "#next")
    label = browser.evaluate("[...document.querySelectorAll('canvas')].at(-1).getAttribute('aria-label')")
    assert re.fullmatch(r"Heat map of relu: 0 to [\d.]+, mean [\d.]+", label)
    alphas = browser.evaluate(
        "(c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 === 3))"
        "([...document.querySelectorAll('canvas')].at(-1))"
    )
    node = next(node for node in t.nodes if node.name == "relu")
    assert node.value is not None
    assert [alpha > 0 for alpha in alphas] == [cell > 0 for cell in node.value.grid]


def test_a_heat_map_of_huge_numbers_has_both_colors(browser: Browser, tmp_path: Path) -> None:
    """Their difference, 2e308, is infinite."""
    with trace() as t:
        Tensor(np.array([1e308, -1e308] * 200), requires_grad=False) * 1
    browser.open(t.html(tmp_path / "graph.html"))
    pixels = browser.evaluate(
        "(c => [...c.getContext('2d').getImageData(0, 0, 2, 1).data])(document.querySelector('canvas'))"
    )
    assert pixels[0] > pixels[2] and pixels[4] < pixels[6]  # red and blue


def test_keys_buttons_and_slider_step(browser: Browser, tmp_path: Path) -> None:
    path, _, _ = written(polynomial(), tmp_path)
    browser.open(path)
    assert said(browser).startswith("Step 1 of 9, forward: power(·, 2)")
    for key, expected in (
        ("ArrowRight", 2),
        ("ArrowRight", 3),
        ("ArrowLeft", 2),
        ("End", 9),
        ("ArrowRight", 9),
        ("Home", 1),
    ):
        press(browser, key)
        assert said(browser).startswith(f"Step {expected} of 9"), key
    for button, expected in (("#next", 2), ("#back", 1), ("#last", 9), ("#first", 1), ("#turn", 5)):
        click(browser, button)
        assert said(browser).startswith(f"Step {expected} of 9"), button
    assert said(browser) == "Step 5 of 9, backward: add(·, 1), sends gradients to add"
    browser.evaluate("document.getElementById('step').focus()")
    press(browser, "ArrowRight")
    slider = browser.evaluate("[document.getElementById('step').value, document.getElementById('step').ariaValueText]")
    assert said(browser).startswith("Step 6 of 9") and slider[0] == "5"
    click(browser, '[data-node="1"]')
    assert said(browser).startswith("Step 8 of 9, backward: power")  # of a node, the step backward
    click(browser, "#first")
    click(browser, '[data-node="2"]')
    assert said(browser).startswith("Step 2 of 9, forward: multiply")


def test_modules_open_and_follow_the_steps(browser: Browser, tmp_path: Path) -> None:
    path, _, _ = written(network(), tmp_path)
    browser.open(path)
    shown = "[...document.querySelectorAll('.view')].filter(v => !v.hidden).map(v => v.dataset.path)"
    assert browser.evaluate(shown) == ["Net/first"]
    click(browser, '#path [data-open="Net"]')
    assert browser.evaluate(shown) == ["Net"]
    assert browser.evaluate("document.activeElement.getAttribute('aria-current')") == "true"
    assert browser.evaluate("[...document.querySelectorAll('#inside button')].map(b => b.textContent)") == [
        "first: Linear"
    ]
    assert browser.evaluate("document.querySelectorAll('.view:not([hidden]) .closed.current').length") == 1
    click(browser, ".view:not([hidden]) .closed")
    assert browser.evaluate(shown) == ["Net/first"]
    browser.evaluate("document.getElementById('follow').checked = false")
    click(browser, '#path [data-open=""]')
    click(browser, "#last")
    assert browser.evaluate(shown) == [""]


@pytest.mark.parametrize("width", [320, 400, 1200])
def test_page_fits_in_light_and_dark(browser: Browser, tmp_path: Path, width: int) -> None:
    path, _, data = written(network(), tmp_path)
    colors = set()
    for dark in (False, True):
        browser.open(path, width=width, dark=dark)
        colors.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert [step["overflow"] for step in browser.evaluate(ALL_STEPS)] == [0] * len(data["steps"])
    assert len(colors) == 2


def test_every_control_has_a_name_and_regions_that_scroll_take_the_focus(browser: Browser, tmp_path: Path) -> None:
    path, _, _ = written(network(), tmp_path)
    browser.open(path, width=400)
    click(browser, "#turn")
    click(browser, "#next")
    tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    controls = [
        n for n in tree if n.get("role", {}).get("value") in ("button", "slider", "checkbox", "image", "region")
    ]
    assert len(controls) > 8
    assert all(n.get("name", {}).get("value") for n in controls)
    scrolling = browser.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => e.tabIndex < 0 && (s =>"
        " /auto|scroll/.test(s.overflowY) && e.scrollHeight > e.clientHeight + 1"
        " || /auto|scroll/.test(s.overflowX) && e.scrollWidth > e.clientWidth)(getComputedStyle(e)))"
        ".map(e => e.className)"
    )
    assert scrolling == []
    assert browser.evaluate("document.getElementById('said').getAttribute('role')") == "status"


def test_the_picture_shows_what_is_computed_and_where_gradients_are(browser: Browser, tmp_path: Path) -> None:
    browser.open(polynomial().html(tmp_path / "graph.html"))  # x, power, multiply, add, add

    def nodes_with(name: str) -> list[int]:
        return [int(i) for i in browser.evaluate(f"[...document.querySelectorAll('.{name}')].map(g => g.dataset.node)")]

    assert (nodes_with("todo"), nodes_with("gradient"), nodes_with("current")) == ([2, 3, 4], [], [1])
    click(browser, "#turn")
    assert (nodes_with("todo"), nodes_with("gradient"), nodes_with("current")) == ([], [4], [4])
    click(browser, "#last")
    assert (nodes_with("todo"), nodes_with("gradient"), nodes_with("current")) == ([], [0, 1, 2, 3, 4], [0])


def test_the_current_node_is_scrolled_into_view(browser: Browser, tmp_path: Path) -> None:
    y = Tensor([1.0])
    for _ in range(100):
        y = y * 2
    browser.open(draw(y).html(tmp_path / "graph.html"))
    inside = (
        "(() => { const pane = document.getElementById('views').getBoundingClientRect(),"
        " box = document.querySelector('.current').getBoundingClientRect();"
        " return box.top >= pane.top && box.bottom <= pane.bottom; })()"
    )
    for button in ("#last", "#first"):
        click(browser, button)
        assert browser.evaluate(inside), button


def test_sums_of_gradients_are_explained(browser: Browser, tmp_path: Path) -> None:
    x, b = Tensor(rng().normal(size=(2, 3)), label="x"), Tensor([1.0, 2.0, 3.0], label="b")
    with trace() as t:
        y = x * x + b
    t.backward(y, Tensor(np.ones((2, 3)), requires_grad=False))
    browser.open(t.html(tmp_path / "graph.html"))
    click(browser, "#turn")
    text = "document.getElementById('details').textContent"
    broadcast = "The pullback returns (2, 3); it is summed to (3,), because the operand was broadcast."
    twice = "A gradient has arrived there before. The two are added."
    assert broadcast in browser.evaluate(text) and twice not in browser.evaluate(text)
    for _ in range(2):
        click(browser, "#next")
        if "multiply" in said(browser):
            break
    assert twice in browser.evaluate(text) and broadcast not in browser.evaluate(text)


class WithNames(Module):
    """Modules in a dict, whose keys may be any text."""

    def __init__(self, *names: str) -> None:
        self.parts = {name: layers.Sequential(layers.Linear(2, 2)) for name in names}

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts.values():
            x = part(x)
        return x


def test_any_names_fit_and_open_their_module(browser: Browser, tmp_path: Path) -> None:
    model = WithNames("a/0", "a", "\x00\ud800\r\n'\"<>&", "名前😀", "long" * 100)
    with trace() as t:
        loss = model(Tensor(np.ones((1, 2)), label="w" * 400)).sum()
    t.backward(loss)
    path, _, data = written(t, tmp_path)
    assert len({box["path"] for box in data["boxes"]}) == len(data["boxes"]) == 12
    for width in (320, 1200):
        browser.open(path, width=width)
        shown = browser.evaluate(ALL_STEPS)
        assert [step["overflow"] for step in shown] == [0] * len(data["steps"])
    browser.evaluate("document.getElementById('first').click()")
    for i, node in enumerate(n for n in t.nodes if n.kind == "op"):
        if i:
            click(browser, "#next")
        found = browser.evaluate("document.querySelectorAll('.view:not([hidden]) .current[data-node]').length")
        assert found == 1, node.scope
        assert not node.scope or " / ".join(node.scope).replace("\r", "") in shown[i]["text"].replace("\r", "")


def test_buttons_keep_the_focus_at_the_ends(browser: Browser, tmp_path: Path) -> None:
    browser.open(polynomial().html(tmp_path / "graph.html"))
    for button, disabled in (("last", "next"), ("first", "back")):
        browser.evaluate(f"document.getElementById('{button}').focus()")
        click(browser, f"#{button}")
        focused = "new Promise((answer) => setTimeout(() => answer(document.activeElement.id), 100))"
        assert browser.evaluate(focused) == button  # a disabled one would lose it in the next frame
        assert browser.evaluate(f"document.getElementById('{disabled}').ariaDisabled") == "true"
    browser.evaluate("document.getElementById('follow').focus()")
    press(browser, "ArrowRight")
    assert said(browser).startswith("Step 2")


def test_nodes_from_before_the_trace_are_no_leaves(browser: Browser, tmp_path: Path) -> None:
    before = Tensor([1.0]).exp()
    with trace() as t:
        y = before * 2
    t.backward(y)
    browser.open(t.html(tmp_path / "graph.html"))
    click(browser, "#last")
    assert said(browser) == "Step 3 of 3, backward: exp, sends no gradient to a recorded node"
    text = browser.evaluate("document.getElementById('details').textContent")
    assert "Freed: the pullbacks of exp." in text


def test_graphs_without_steps_or_values(browser: Browser, tmp_path: Path) -> None:
    browser.open(draw(Tensor([1.0])).html(tmp_path / "leaf.html"))
    assert said(browser) == "There are no steps."
    assert browser.evaluate("document.getElementById('next').ariaDisabled") == "true"
    browser.open(draw(Tensor([1.0], label="x").exp().log()).html(tmp_path / "draw.html"))
    assert said(browser) == "Step 1 of 2, forward: exp, (1,) float64"
    press(browser, "ArrowRight")
    assert "the value is not known" in browser.evaluate("document.getElementById('details').textContent")
    assert browser.evaluate("document.getElementById('turn').hidden")
