"""Report of a training run: `python train/report.py runs/shakespeare` writes `report.html` to that folder.

The page is one file that needs no network. It has curves of the losses, the learning rate, the gradient norm and the
throughput, attention maps, samples and settings. Curves and maps are also written as PNG files. docs/report.md explains
how to read them. RG_BACKEND selects the backend that computes the attention.
"""

import argparse
import html
import math
import os
import runpy
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

if __name__ == "__main__" and not getattr(__spec__, "parent", None):  # run as a file: run the module instead
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    runpy.run_module("russellgrad.train.report", run_name="__main__")
    sys.exit()

from russellgrad import get_backend
from russellgrad.checkpoint import load_model
from russellgrad.encoding import CharacterEncoding
from russellgrad.russelltransformer import Transformer
from russellgrad.serialization import replace_file
from russellgrad.tokenizer import Tokenizer

from .chart import (
    Chart,
    Floats,
    Series,
    chart_html,
    figure_class,
    format_number,
    script_data,
    step_axis,
    write_png,
)
from .maps import VISIBLE, maps_html, write_maps_png
from .metrics import FILE, History, read_metrics
from .page import content_policy, facts_list, json_for_script, read_asset
from .progress import command_line, echo, exit_on_error, format_duration

MODEL = "model.safetensors"
PROMPT = 32  # characters of the default prompt
MAX_PROMPT = 48  # tokens: the labels of more would be too small to read
SAMPLES = 12  # on the page, evenly spaced over the run
SAMPLE_CHARACTERS = 2000  # of each sample on the page
ROWS = 20  # of each table of numbers


@dataclass(frozen=True)
class Attention:
    """The attention weights of a model on a text of T tokens."""

    text: str
    tokens: Sequence[str]  # the texts of the tokens
    cut: int  # characters of the prompt after this text
    maps: list[npt.NDArray[Any]]  # one for each layer, (H, T, T): head, query, key


def write_report(folder: str | os.PathLike[str], prompt: str | None = None, *, png: bool = True) -> Path:
    """Write report.html, and its charts and maps as PNG files, to a run's folder. Return the path of the page.

    Args:
        folder: the run's folder, with metrics.jsonl, and model.safetensors for the attention maps.
        prompt: the text of the attention maps; by default the start of the last sample. A long prompt is cut.
        png: whether to write the PNG files, which needs matplotlib.

    Raises:
        FileNotFoundError: the folder has no metrics.jsonl, or a prompt is given and there is no model.
        ValueError: metrics.jsonl or the model is damaged; metrics.jsonl has no step; the prompt has characters that are
            not in the model's vocabulary.
        ImportError: matplotlib or safetensors is needed and not installed.
        OSError: the folder cannot be written to.
    """
    folder = Path(folder)
    if png:
        figure_class()  # raises ImportError now, not at the end
    history = read_metrics(folder / FILE)
    if not history.steps:
        raise ValueError(f"{folder / FILE} has no training step yet; train for a while first")
    attention = compute_attention(folder / MODEL, history, prompt)
    charts = make_charts(history)
    page = folder / "report.html"
    replace_file(page, page_html(folder.resolve().name, history, charts, attention).encode("utf-8", "backslashreplace"))
    if png:
        steps = step_axis(charts)
        for chart in charts:
            write_png(chart, steps, folder / f"{chart.key}.png")
        if attention is not None:
            write_maps_png(attention.maps, attention.tokens, folder / "attention.png")
    return page


# --- The data


def compute_attention(path: Path, history: History, prompt: str | None) -> Attention | None:
    """The attention maps of the model in `path`; None if there is no file and no prompt. Raises as `write_report`."""
    if prompt is None and not path.exists():
        return None
    model = load_model(path)
    if prompt is None:
        prompt = default_prompt(model, history.samples, path)
    text = first_tokens(prompt, model.tokenizer, min(MAX_PROMPT, model.tokenizer.max_seq_len))
    tokens = [model.tokenizer.decode([i]) for i in model.tokenizer.encode(text)]
    return Attention(text, tokens, len(prompt) - len(text), model.attention_maps(text))


def first_tokens(text: str, tokenizer: Tokenizer, most: int) -> str:
    """The longest start of a text that has at most `most` tokens. Raises ValueError as `Tokenizer.encode`."""
    end = len(text)
    while (n := len(tokenizer.encode(text[:end]))) > most and end > 1:
        end -= max(1, (n - most) // 4)  # a character has at most 4 bytes, which may all be tokens
    return text[:end]


def default_prompt(model: Transformer, samples: Sequence[tuple[int, str]], path: Path) -> str:
    """The start of a run's last sample, or of generated text if there is none.

    Raises ValueError if the vocabulary of the model, which is that in `path`, lacks a character of the sample.
    """
    last, encoding = samples[-1][1].strip()[:PROMPT] if samples else "", model.tokenizer.encoding
    if isinstance(encoding, CharacterEncoding) and not set(last) <= set(encoding.vocabulary):
        raise ValueError(f"{path} lacks characters of the last sample, so it is of another run; give a prompt")
    first = encoding.vocabulary[0] if isinstance(encoding, CharacterEncoding) else "\n"
    return last or model.generate(first, PROMPT - 1, temperature=0)


def make_charts(history: History) -> list[Chart]:
    """The charts of loss, learning rate, gradient norm and throughput."""
    steps = np.array(history.steps, float)
    clip = setting(history, "grad_clip")
    # Steps whose losses were read together have the same time and throughput: one point, at the last of them.
    read = [i for i in range(len(steps)) if i + 1 == len(steps) or history.seconds[i + 1] != history.seconds[i]]
    return [
        loss_chart("loss", history),
        Chart("learning_rate", "Learning rate", "",
              (Series("learning rate", steps, np.array(history.learning_rates)),), from_zero=True),
        Chart("gradient_norm", "Gradient norm", "norm before clipping",
              smoothed("each step", steps, np.array(history.gradient_norms)),
              reference=(float(clip), f"clipped at {format_number(float(clip))}") if clip else None),
        Chart("throughput", "Throughput", "tokens per second",
              smoothed("each reading", steps[read], np.array(history.tokens_per_second)[read], "readings"),
              from_zero=True),
    ]  # fmt: skip


def loss_chart(key: str, history: History) -> Chart:
    """The chart of the training and the validation loss."""
    steps, losses = np.array(history.steps, float), np.array(history.losses, float)
    series = smoothed("each step's batch", steps, losses)
    if history.validations:
        validations = np.array([entry[:2] for entry in history.validations], float)
        few = len(validations) <= 100
        series = *series, Series("validation", validations[:, 0], validations[:, 1], "validation", dots=few)
    return Chart(key, "Loss", f"nats per {unit(history)}", series)


def smoothed(name: str, steps: Floats, values: Floats, what: str = "steps") -> tuple[Series, ...]:
    """The values; for 500 or more, also a trailing mean over a hundredth of them."""
    window = len(steps) // 100
    if window < 5:
        return (Series(name, steps, values),)
    mean = Series(f"mean of {window:,} {what}", steps, trailing_mean(values, window))
    return Series(name, steps, values, faint=True), mean


def trailing_mean(values: Floats, window: int) -> Floats:
    """The mean of the finite ones among the last `window` values, (n,) -> (n,); nan if there is none."""
    finite = np.isfinite(values)
    sums = _trailing_sum(np.where(finite, values, 0.0), window)
    counts = _trailing_sum(finite.astype(float), window)
    means: Floats = np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0.5)
    return means


def _trailing_sum(values: Floats, window: int) -> Floats:
    """The sum of the last `window` values, (n,) -> (n,), in time proportional to n.

    Cut into parts of `window` values, it is the end of one part and the start of the next. Not the difference of two
    cumulative sums: there the rounding of one huge value stays in all later sums.
    """
    n = len(values)
    parts = np.zeros((-(-n // window) + 1, window))
    parts.ravel()[window : window + n] = values
    with np.errstate(over="ignore"):
        ends, starts = parts[:, ::-1].cumsum(axis=1)[:, ::-1], parts.cumsum(axis=1)
        starts[1:, :-1] += ends[:-1, 1:]
    return starts[1:].ravel()[:n]


def setting(history: History, name: str) -> Any:
    """A setting of the run, of its last part if it was resumed; None if it is not in the metrics."""
    return history.runs[-1][1].get("config", {}).get(name) if history.runs else None


def unit(history: History) -> str:
    """The word for a token of the run: "character" or "token"."""
    if not history.runs:
        return "token"
    return "character" if setting(history, "tokenizer") in ("char", None) else "token"  # earlier versions had no other


def describe(chart: Chart) -> str:
    """Describe a chart in words: the first, last, smallest and largest value of each curve."""
    parts = []
    for series in chart.series:
        finite = series.y[np.isfinite(series.y)]
        if series.faint:
            continue
        if not finite.size:
            parts.append(f"{series.name}: no finite value")
            continue
        x = series.x[np.isfinite(series.y)]
        first, last, smallest, largest = map(format_number, (finite[0], finite[-1], finite.min(), finite.max()))
        parts.append(
            f"{series.name}: {first} at step {x[0]:,.0f}, {last} at step {x[-1]:,.0f}, min {smallest}, max {largest}"
        )
    return ". ".join(parts) + "."


def notes_on(history: History) -> list[str]:
    """Notes on what makes the curves incomplete: losses that are not finite, missing steps, resumptions."""
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
    """The page. Its Content-Security-Policy allows no requests, and no script but its own."""
    steps = step_axis(charts)
    title = html.escape(f"Training run: {name}")
    style, script = read_asset("chart.css") + read_asset("report.css"), read_asset("report.js")
    data = json_for_script(script_data(charts, steps))
    figures = "".join(chart_html(chart, steps, describe(chart)) for chart in charts)
    notes = "".join(f'<p class="note">{html.escape(note)}</p>\n' for note in notes_on(history))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{content_policy(script)}">
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
{attention_html(attention, unit(history))}{samples_html(history)}{settings_html(history)}</main>
<script type="application/json" id="readings">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def facts_html(history: History) -> str:
    """The most important numbers of the run."""
    facts = [("steps", f"{history.steps[-1]:,}")]
    if history.validations:
        last, loss, blocks = history.validations[-1]
        facts.append(("validation loss", f"{loss:.4f} nats ({loss / math.log(2):.3f} bits) per {unit(history)}"))
        if last in history.bits_per_byte:
            facts.append(("bits per byte", f"{history.bits_per_byte[last]:.4f}"))
        comparable = [entry for entry in history.validations if entry[2] == blocks]  # means over the same blocks
        best = min(comparable, key=lambda entry: (not math.isfinite(entry[1]), entry[1]))
        if best[1] < loss:
            facts.append(("smallest validation loss", f"{best[1]:.4f} at step {best[0]:,}"))
    facts.append(("time", format_duration(history.seconds[-1])))
    facts.append(("throughput", f"{statistics.median(history.tokens_per_second):,.0f} tokens per second"))
    if history.runs:
        facts.append(("parameters", f"{history.runs[-1][1].get('parameters', 0):,}"))
        facts.append(("backend", str(history.runs[-1][1].get("backend", ""))))
    return facts_list(facts)


def numbers_html(history: History) -> str:
    """Tables of the curves, at most ROWS rows each, for readers who cannot see the curves or want to copy numbers."""
    columns = (history.losses, history.learning_rates, history.gradient_norms, history.tokens_per_second)
    training = [
        (
            f"{history.steps[i]:,}",
            *(format_number(values[i]) for values in columns),
            format_duration(history.seconds[i]),
        )
        for i in _evenly_spaced(range(len(history.steps)), ROWS)
    ]
    validation = [
        (
            f"{step:,}",
            format_number(loss),
            f"{history.bits_per_byte[step]:.4f}" if step in history.bits_per_byte else "",
            f"{blocks:,}",
        )
        for step, loss, blocks in _evenly_spaced(history.validations, ROWS)
    ]
    loss = f"Loss, nats per {unit(history)}"
    heads = ("Step", loss, "Learning rate", "Gradient norm", "Tokens per second", "Time")
    return (
        '<details><summary>The curves as tables</summary><div class="wide" tabindex="0" role="group" '
        'aria-label="Tables of numbers">\n'
        + _table("Training", training, heads)
        + _table("Validation", validation, ("Step", loss, "Bits per byte", "Blocks of text"))
        + "</div></details>\n"
    )


def attention_html(attention: Attention | None, unit: str = "character") -> str:
    """The attention maps, with an explanation."""
    if attention is None:
        content = f"<p>The folder has no {MODEL}, so there are no attention maps.</p>\n"
    else:
        cut = f" The prompt has {attention.cut:,} more characters." if attention.cut else ""
        text = html.escape(attention.text.replace("\n", "\n".translate(VISIBLE)))
        content = (
            f"<p>Attention weights for <q>{text}</q>: each row is a query, each column a key. A row sums to 1, and no "
            f"{unit} attends to a later one.{cut} The numbers of each head are the mean weights on the {unit} "
            f"itself, on the previous one and on the first.</p>\n{maps_html(attention.maps, attention.tokens)}"
        )
    return f'<section aria-labelledby="attention">\n<h2 id="attention">Attention</h2>\n{content}</section>\n'


def samples_html(history: History) -> str:
    """At most SAMPLES samples, evenly spaced over the run; the last one is expanded."""
    if not history.samples:
        return ""
    shown = _evenly_spaced(history.samples, SAMPLES)
    losses = {step: loss for step, loss, _ in history.validations}
    parts = []
    for i, (step, text) in enumerate(shown, start=1):
        loss = f", validation loss {losses[step]:.4f}" if step in losses else ""
        cut = f"\n... and {len(text) - SAMPLE_CHARACTERS:,} more characters" if len(text) > SAMPLE_CHARACTERS else ""
        parts.append(
            f"<details{' open' if i == len(shown) else ''}><summary>Step {step:,}{loss}</summary>\n"
            f"<pre>{html.escape(text[:SAMPLE_CHARACTERS] + cut)}</pre></details>\n"
        )
    left = f"<p>{len(shown)} of {len(history.samples):,} samples.</p>\n" if len(shown) < len(history.samples) else ""
    heading = '<h2 id="samples">Samples</h2>\n'
    return f'<section aria-labelledby="samples">\n{heading}{left}{"".join(parts)}</section>\n'


def settings_html(history: History) -> str:
    """Tables of the configuration and the environment, for each part of a resumed run."""
    parts = []
    for step, facts in history.runs:
        settings = [(name, _format_setting(value)) for name, value in facts.get("config", {}).items()]
        environment = [(name, _format_setting(facts.get(name))) for name in ("started", "machine", "backend")]
        environment += [(f"version of {name}", str(version)) for name, version in facts.get("versions", {}).items()]
        heading = f"<h3>From step {step + 1:,}</h3>\n" if len(history.runs) > 1 else ""
        tables = _table("Configuration", settings) + _table("Environment", environment)
        parts.append(f'{heading}<div class="tables">{tables}</div>\n')
    if not parts:
        parts = ["<p>The metrics do not have the run's settings.</p>\n"]
    return f'<section aria-labelledby="settings">\n<h2 id="settings">Settings</h2>\n{"".join(parts)}</section>\n'


def _table(caption: str, rows: Sequence[Sequence[str]], heads: Sequence[str] = ()) -> str:
    """A <table> whose first column has the row headers."""

    def row(first: str, *cells: str) -> str:
        others = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        return f'<tr><th scope="row">{html.escape(first)}</th>{others}</tr>\n'

    names = "".join(f'<th scope="col">{html.escape(head)}</th>' for head in heads)
    head = f"<thead><tr>{names}</tr></thead>" if heads else ""
    return (
        f"<table><caption>{caption}</caption>{head}<tbody>\n{''.join(row(*cells) for cells in rows)}</tbody></table>\n"
    )


def _format_setting(value: Any) -> str:
    """Format a setting."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "default"}[value]
    return format_number(value) if isinstance(value, float) else str(value)


def _evenly_spaced(entries: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the entries, evenly spaced, with the first and the last."""
    if len(entries) <= most:
        return list(entries)
    return [entries[round(i)] for i in np.linspace(0, len(entries) - 1, most)]


# --- The command line


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write report.html and PNG files to the folder of a training run.")
    parser.add_argument("folder", help="the run's folder, with metrics.jsonl and model.safetensors")
    parser.add_argument("--prompt", help="text of the attention maps (default: the start of the last sample)")
    parser.add_argument("--png", action=argparse.BooleanOptionalAction, default=True, help="also write PNG files")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    options = parse()
    with exit_on_error(ValueError, ImportError, RuntimeError, TypeError):
        get_backend()
    with command_line(), exit_on_error(ValueError, ImportError, OSError):
        echo(str(write_report(options.folder, options.prompt, png=options.png)))
