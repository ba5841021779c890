"""A training run in pictures: `python train/report.py runs/shakespeare` writes `report.html` into that folder.

The page is one file that needs no network: curves of the losses, the learning rate, the gradient's norm and the speed,
the samples, maps of the model's attention, the settings. The pictures are written as PNG files besides. docs/report.md
says how to read them. RG_BACKEND chooses the backend that computes the attention.
"""

import argparse
import base64
import hashlib
import html
import json
import math
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where `russellgrad` and `train` are

from russellgrad import get_backend
from russellgrad.checkpoint import load_model
from train.chart import Chart, Floats, Series, chart_html, figure_class, number, readings, step_axis, write_png
from train.maps import VISIBLE, maps_html, write_maps_png
from train.metrics import FILE, History, read_metrics
from train.progress import exit_on_error, format_duration

MODEL = "model.safetensors"
PROMPT = 32  # characters of a prompt, if none is given
LONGEST_PROMPT = 48  # characters of any: more could not be read beside the maps
SAMPLES = 12  # shown on the page, evenly over the run
SAMPLE_CHARACTERS = 2000  # shown of each
ROWS = 20  # of the table of numbers
ASSETS = Path(__file__).resolve().parent / "assets"


@dataclass(frozen=True)
class Attention:
    """Of a model for a text of T characters."""

    text: str
    cut: int  # characters that the prompt had beyond it
    maps: list[npt.NDArray[Any]]  # (H, T, T) of each layer, query by key


def write_report(folder: str | os.PathLike[str], prompt: str | None = None, *, png: bool = True) -> Path:
    """Write report.html, and the same pictures as PNG files, into a run's folder. Returns the page's path.

    Args:
        folder: with the run's metrics.jsonl, and its model.safetensors for the maps of attention.
        prompt: the text of these maps; by default how the last sample begins. Of a long one the beginning is taken.
        png: whether to write the PNG files, for which matplotlib is needed.

    Raises:
        FileNotFoundError: the folder has no metrics.jsonl, or a prompt is given and there is no model.
        ValueError: a damaged metrics.jsonl or model; metrics without a step; a prompt outside the model's vocabulary.
        ImportError: matplotlib or safetensors is needed and not installed.
        OSError: the folder cannot be written to.
    """
    folder = Path(folder)
    if png:
        figure_class()  # an ImportError now, not after the work
    history = read_metrics(folder / FILE)
    if not history.steps:
        raise ValueError(f"{folder / FILE} has no training step yet; train for a while first")
    attention = attend(folder / MODEL, history, prompt)
    charts = charts_of(history)
    page = folder / "report.html"
    page.write_text(page_html(folder.resolve().name, history, charts, attention), encoding="utf-8", newline="\n")
    if png:
        steps = step_axis(charts)
        for chart in charts:
            write_png(chart, steps, folder / f"{chart.key}.png")
        if attention is not None:
            write_maps_png(attention.maps, attention.text, folder / "attention.png")
    return page


# --- What is shown


def attend(path: Path, history: History, prompt: str | None) -> Attention | None:
    """The attention of the model in `path`; None without one, unless a prompt is given. Raises as `write_report`."""
    if prompt is None and not path.exists():
        return None
    model = load_model(path)
    if prompt is None:
        last = history.samples[-1][1].strip()[:PROMPT] if history.samples else ""
        if not set(last) <= set(model.tokenizer.vocabulary):
            raise ValueError(f"{path} does not know the last sample's characters: it is of another run; give a prompt")
        prompt = last or model.generate(model.tokenizer.vocabulary[0], PROMPT - 1, temperature=0)
    text = prompt[: min(LONGEST_PROMPT, model.tokenizer.max_seq_len)]
    return Attention(text, len(prompt) - len(text), model.attention_maps(text))


def charts_of(history: History) -> list[Chart]:
    """Loss, learning rate, gradient norm, throughput."""
    steps, losses = np.array(history.steps, float), np.array(history.losses, float)
    validations = np.array([entry[:2] for entry in history.validations], float).reshape(-1, 2)
    validation = Series("validation", validations[:, 0], validations[:, 1], "validation", dots=len(validations) <= 100)
    clip = setting(history, "grad_clip")
    # What was read together has one time and one speed: a point at the last of these steps.
    read = [i for i in range(len(steps)) if i + 1 == len(steps) or history.seconds[i + 1] != history.seconds[i]]
    return [
        Chart("loss", "Loss", "nats per character",
              (*smoothed("each step's batch", steps, losses), *([validation] if len(validations) else []))),
        Chart("learning_rate", "Learning rate", "",
              (Series("learning rate", steps, np.array(history.learning_rates)),), from_zero=True),
        Chart("gradient_norm", "Gradient norm", "norm before clipping",
              smoothed("each step", steps, np.array(history.gradient_norms)),
              reference=(float(clip), f"clipped at {number(float(clip))}") if clip else None),
        Chart("throughput", "Throughput", "tokens per second",
              smoothed("each reading", steps[read], np.array(history.tokens_per_second)[read], "readings"),
              from_zero=True),
    ]  # fmt: skip


def smoothed(name: str, steps: Floats, values: Floats, what: str = "steps") -> tuple[Series, ...]:
    """The values as they are, and of 500 or more the mean of the last hundredth of them besides."""
    window = len(steps) // 100
    if window < 5:
        return (Series(name, steps, values),)
    mean = Series(f"mean of {window:,} {what}", steps, trailing_mean(values, window))
    return Series(name, steps, values, faint=True), mean


def trailing_mean(values: Floats, window: int) -> Floats:
    """At each place the mean of those of the last `window` values that are finite, values (n,) -> (n,); nan of none."""
    finite, ones = np.isfinite(values), np.ones(window)
    # Each sum by itself: differences of running sums would carry a single huge value into all the later ones.
    sums = np.convolve(np.where(finite, values, 0.0), ones)[: len(values)]
    counts = np.convolve(finite.astype(float), ones)[: len(values)]
    means: Floats = np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0.5)
    return means


def setting(history: History, name: str) -> Any:
    """A setting of the run, of its last part if it was resumed; None if the metrics do not tell."""
    return history.runs[-1][1].get("config", {}).get(name) if history.runs else None


def describe(chart: Chart) -> str:
    """A chart in words: each curve's first, least, greatest and last value."""
    parts = []
    for series in chart.series:
        finite = series.y[np.isfinite(series.y)]
        if series.faint:
            continue
        if not finite.size:
            parts.append(f"{series.name}: no finite value")
            continue
        x = series.x[np.isfinite(series.y)]
        parts.append(
            f"{series.name}: {number(finite[0])} at step {x[0]:,.0f}, {number(finite[-1])} at step {x[-1]:,.0f}, "
            f"least {number(finite.min())}, greatest {number(finite.max())}"
        )
    return ". ".join(parts) + "."


def remarks(history: History) -> list[str]:
    """What a reader should know before believing the curves."""
    found = []
    bad = [step for step, loss in zip(history.steps, history.losses, strict=True) if not math.isfinite(loss)]
    if bad:
        found.append(f"The loss was not finite at {len(bad):,} of the steps, first at step {bad[0]:,}.")
    missing = history.steps[-1] - len(history.steps)
    if missing:
        found.append(f"{missing:,} of the {history.steps[-1]:,} steps are not in {FILE}.")
    resumed = [step for step, _ in history.runs if step]
    if resumed:
        found.append(f"The run was resumed after step {', '.join(f'{step:,}' for step in resumed)}.")
    return found


# --- The page


def page_html(name: str, history: History, charts: Sequence[Chart], attention: Attention | None) -> str:
    """The whole page. Its policy forbids it to load anything and to run any script but its own."""
    steps = step_axis(charts)
    title = html.escape(f"Training run: {name}")
    style, script = ((ASSETS / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    data = json.dumps(readings(charts, steps)).replace("<", "\\u003c")  # no text can end the element
    figures = "".join(chart_html(chart, steps, describe(chart)) for chart in charts)
    notes = "".join(f'<p class="remark">{html.escape(remark)}</p>\n' for remark in remarks(history))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
{facts_html(history)}{notes}</header>
<main>
<section aria-labelledby="curves">
<h2 id="curves">Curves</h2>
<div class="charts">
{figures}</div>
{numbers_html(history)}</section>
{attention_html(attention)}{samples_html(history)}{settings_html(history)}</main>
<script type="application/json" id="readings">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def facts_html(history: History) -> str:
    """The run in a few figures."""
    facts = [("steps", f"{history.steps[-1]:,}")]
    if history.validations:
        _, loss, blocks = history.validations[-1]
        facts.append(("validation loss", f"{loss:.4f} nats ({loss / math.log(2):.3f} bits) per character"))
        best = min(history.validations, key=lambda entry: (not math.isfinite(entry[1]), entry[1]))
        if best[1] < loss and best[2] == blocks:  # over other blocks it would not compare
            facts.append(("least validation loss", f"{best[1]:.4f} at step {best[0]:,}"))
    facts.append(("time", format_duration(history.seconds[-1])))
    facts.append(("throughput", f"{statistics.median(history.tokens_per_second):,.0f} tokens per second"))
    if history.runs:
        facts.append(("parameters", f"{history.runs[-1][1].get('parameters', 0):,}"))
        facts.append(("backend", str(history.runs[-1][1].get("backend", ""))))
    items = "".join(f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in facts)
    return f'<dl class="facts">{items}</dl>\n'


def numbers_html(history: History) -> str:
    """About ROWS rows of the curves' numbers, for those who cannot see them or want to copy them."""
    columns = (history.losses, history.learning_rates, history.gradient_norms, history.tokens_per_second)
    training = [
        (f"{history.steps[i]:,}", *(number(values[i]) for values in columns), format_duration(history.seconds[i]))
        for i in _spread(range(len(history.steps)), ROWS)
    ]
    validation = [
        (f"{step:,}", number(loss), f"{blocks:,}") for step, loss, blocks in _spread(history.validations, ROWS)
    ]
    heads = ("Step", "Loss, nats per character", "Learning rate", "Gradient norm", "Tokens per second", "Time")
    return (
        '<details><summary>The curves in numbers</summary><div class="wide" tabindex="0" role="group" '
        'aria-label="Tables of numbers">\n'
        + _table("Training", training, heads)
        + _table("Validation", validation, ("Step", "Loss, nats per character", "Blocks of text"))
        + "</div></details>\n"
    )


def attention_html(attention: Attention | None) -> str:
    if attention is None:
        content = f"<p>There is no {MODEL} in the folder, so there is no attention to show.</p>\n"
    else:
        cut = f" The prompt had {attention.cut:,} characters more." if attention.cut else ""
        text = html.escape(attention.text.replace("\n", "\n".translate(VISIBLE)))
        content = (
            f"<p>Down the characters of <q>{text}</q>, across those each one takes from. Each "
            f"row adds up to 1, and no character sees a later one.{cut} Beside each head: the mean weight on the "
            f"character itself, on the one before it and on the first.</p>\n{maps_html(attention.maps, attention.text)}"
        )
    return f'<section aria-labelledby="attention">\n<h2 id="attention">Attention</h2>\n{content}</section>\n'


def samples_html(history: History) -> str:
    """Samples evenly over the run; the last one is open."""
    if not history.samples:
        return ""
    shown = _spread(history.samples, SAMPLES)
    losses = {step: loss for step, loss, _ in history.validations}
    parts = []
    for i, (step, text) in enumerate(shown, start=1):
        loss = f", validation loss {losses[step]:.4f}" if step in losses else ""
        cut = f"\n... and {len(text) - SAMPLE_CHARACTERS:,} characters more" if len(text) > SAMPLE_CHARACTERS else ""
        parts.append(
            f"<details{' open' if i == len(shown) else ''}><summary>Step {step:,}{loss}</summary>\n"
            f"<pre>{html.escape(text[:SAMPLE_CHARACTERS] + cut)}</pre></details>\n"
        )
    left = f"<p>{len(shown)} of {len(history.samples):,}.</p>\n" if len(shown) < len(history.samples) else ""
    heading = '<h2 id="samples">Samples</h2>\n'
    return f'<section aria-labelledby="samples">\n{heading}{left}{"".join(parts)}</section>\n'


def settings_html(history: History) -> str:
    """The settings and versions, of each part of a run that was resumed."""
    parts = []
    for step, facts in history.runs:
        settings = [(name, _shown(value)) for name, value in facts.get("config", {}).items()]
        place = [(name, _shown(facts.get(name))) for name in ("started", "machine", "backend")]
        place += [(f"version of {name}", str(version)) for name, version in facts.get("versions", {}).items()]
        heading = f"<h3>From step {step + 1:,}</h3>\n" if len(history.runs) > 1 else ""
        tables = _table("What was asked for", settings) + _table("Where it ran", place)
        parts.append(f'{heading}<div class="tables">{tables}</div>\n')
    if not parts:
        parts = ["<p>The metrics do not tell the run's settings.</p>\n"]
    return f'<section aria-labelledby="settings">\n<h2 id="settings">Settings</h2>\n{"".join(parts)}</section>\n'


def _table(caption: str, rows: Sequence[Sequence[str]], heads: Sequence[str] = ()) -> str:
    """A <table> the first column of which names its rows."""

    def row(first: str, *cells: str) -> str:
        others = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        return f'<tr><th scope="row">{html.escape(first)}</th>{others}</tr>\n'

    names = "".join(f'<th scope="col">{html.escape(head)}</th>' for head in heads)
    head = f"<thead><tr>{names}</tr></thead>" if heads else ""
    return (
        f"<table><caption>{caption}</caption>{head}<tbody>\n{''.join(row(*cells) for cells in rows)}</tbody></table>\n"
    )


def _shown(value: Any) -> str:
    """A setting for people."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "default"}[value]
    return number(value) if isinstance(value, float) else str(value)


def _spread(entries: Sequence[Any], most: int) -> list[Any]:
    """At most so many of them, evenly, the first and the last included."""
    if len(entries) <= most:
        return list(entries)
    return [entries[round(i)] for i in np.linspace(0, len(entries) - 1, most)]


# --- The command line


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write report.html and PNG files into the folder of a training run.")
    parser.add_argument("folder", help="the run's folder, with its metrics.jsonl and model.safetensors")
    parser.add_argument("--prompt", help="the text to show attention for (default: how the last sample begins)")
    parser.add_argument("--png", action=argparse.BooleanOptionalAction, default=True, help="also write PNG files")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    options = parse()
    with exit_on_error(ValueError, ImportError, RuntimeError, TypeError):
        get_backend()
    with exit_on_error(ValueError, ImportError, OSError):
        print(write_report(options.folder, options.prompt, png=options.png))
