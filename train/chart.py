"""Charts of curves over the steps of a run, rendered as HTML with inline SVG, and as PNG by matplotlib."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from russellgrad.serialization import install_command

from .progress import is_command_line

Floats = npt.NDArray[np.float64]

BUCKETS = 400  # a long curve is downsampled to the minimum and the maximum of each bucket
# Blue and vermilion of Okabe and Ito's palette, which is made for all kinds of colour vision; on white.
COLOURS = {"train": "#0072b2", "validation": "#d55e00"}


@dataclass(frozen=True)
class Series:
    """One curve: y over increasing x, with a gap where y is not finite."""

    name: str
    x: Floats
    y: Floats
    colour: str = "train"  # a key of COLOURS
    faint: bool = False
    dots: bool = False  # whether to draw a dot at each point


@dataclass(frozen=True)
class Chart:
    """Curves over steps, with a common axis for their values.

    Args:
        key: part of the ids of its HTML elements, and the name of its PNG file.
        reference: a value to mark with a dashed line, and its label.
        from_zero: whether the axis starts at 0.
    """

    key: str
    title: str
    unit: str
    series: tuple[Series, ...]
    reference: tuple[float, str] | None = None
    from_zero: bool = False


@dataclass(frozen=True)
class Axis:
    """An axis from low to high, linear or logarithmic. Positions on it are from 0 to 1."""

    low: float
    high: float
    log: bool = False

    def positions(self, values: Floats) -> Floats:
        """Values (n,) -> positions (n,); nan where there is none, as for 0 on a logarithmic axis."""
        with np.errstate(divide="ignore", invalid="ignore"):
            low, high, at = (np.log(v) if self.log else v for v in (self.low, self.high, np.asarray(values, float)))
            places = (at - low) / (high - low)
        return np.where(np.isfinite(places), places, np.nan)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values on the axis, about `most` of them."""
        if not self.log:
            step = _round_up((self.high - self.low) / most)
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            return [i * step for i in range(first, last + 1)]
        low, high = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        factors = (1, 2, 5) if high - low <= 3 else (1,)
        every = max(1, (high - low) // most)
        values = [factor * 10.0**power for power in range(low, high + 1, every) for factor in factors]
        return [value for value in values if self.low * 0.999 <= value <= self.high * 1.001]

    def tick_labels(self, most: int = 5) -> list[tuple[str, float]]:
        """The label and the position of each tick."""
        ticks = self.ticks(most)
        places = self.positions(np.array(ticks, float)).tolist()
        if self.log or len(ticks) < 2 or not 1e-5 < ticks[1] - ticks[0] < 1e9:
            return list(zip(map(format_number, ticks), places, strict=True))
        decimals = max(
            0, math.ceil(-math.log10(ticks[1] - ticks[0]) - 1e-9)
        )  # the same number of decimals for all labels
        return [(f"{tick:,.{decimals}f}", place) for tick, place in zip(ticks, places, strict=True)]


def _round_up(size: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not less than `size`."""
    power = 10.0 ** math.floor(math.log10(size))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= size * (1 - 1e-9)), 10 * power)


def step_axis(charts: Sequence[Chart]) -> Axis:
    """The axis of steps, which all charts share: a step has the same position in each."""
    ends = [series.x[i] for chart in charts for series in chart.series if len(series.x) for i in (0, -1)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    return Axis(low, high) if low < high else Axis(low - 0.5, high + 0.5)


def value_axis(chart: Chart) -> Axis:
    """The axis of values: logarithmic if all are positive and the largest is more than 30 times the smallest."""
    parts = [series.y[np.isfinite(series.y)] for series in chart.series]
    values = np.concatenate([*parts, [chart.reference[0]] if chart.reference else []])
    if not values.size:
        return Axis(0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    if chart.from_zero and low >= 0:
        return Axis(0.0, high * 1.05 or 1.0)
    if low > 0 and high > 30 * low:
        return Axis(low / 1.1, high * 1.1, log=True)
    margin = 0.04 * (high - low) or 0.05 * abs(high) or 0.5
    return Axis(low - margin, high + margin)


def downsample(series: Series) -> tuple[Floats, Floats]:
    """The points of a series (x, y). Of a long series, the minimum and the maximum of each of BUCKETS parts."""
    x, y = series.x, series.y
    if len(x) <= 2 * BUCKETS:
        return x, y
    edges = np.linspace(0, len(x), BUCKETS + 1).astype(int)
    kept = {0, len(x) - 1}
    for start, end in pairwise(edges):
        part = y[start:end]
        finite = np.isfinite(part)
        kept.add(start + int(np.where(finite, part, np.inf).argmin()))
        kept.add(start + int(np.where(finite, part, -np.inf).argmax()))
    chosen = np.array(sorted(kept))
    return x[chosen], y[chosen]


def format_number(value: float) -> str:
    """Format a value with about four digits: 12,345, 1.814, 0.002, 2e-5."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-4 <= abs(value) < 1e3:
        return f"{value:.4g}"
    if 1e3 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    mantissa, exponent = f"{value:.3g}".split("e") if "e" in f"{value:.3g}" else f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


# --- HTML


def chart_html(chart: Chart, steps: Axis, describe: str) -> str:
    """A <figure>. Labels are HTML beside the SVG, because the SVG is stretched to the available space."""
    axis = value_axis(chart)
    x_labels = "".join(
        f'<span{" class=last" if at > 0.95 else ""} style="left:{100 * at:.2f}%">{name}</span>'
        for name, at in steps.tick_labels(4)
    )
    y_labels = "".join(f'<span style="bottom:{100 * at:.2f}%">{name}</span>' for name, at in axis.tick_labels())
    unit = ", ".join(filter(None, [chart.unit, "logarithmic scale" if axis.log else ""]))
    key, title = html.escape(chart.key), html.escape(chart.title)
    return (
        f'<figure class="chart" id="chart-{key}" data-key="{key}">\n'
        f"<figcaption><h3>{title}</h3> <span>{html.escape(unit)}</span>{_legend(chart)}</figcaption>\n"
        f'<div class="plot"><div class="y" aria-hidden="true">{y_labels}</div>\n'
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-labelledby="title-{key} desc-{key}">'
        f'<title id="title-{key}">{title}</title><desc id="desc-{key}">{html.escape(describe)}</desc>\n'
        f"{_svg(chart, steps, axis)}</svg>\n"
        f'<div class="x-name" aria-hidden="true">step</div><div class="x" aria-hidden="true">{x_labels}</div></div>\n'
        f'<p class="reading" aria-hidden="true">{html.escape(describe)}</p>\n</figure>\n'
    )


def _legend(chart: Chart) -> str:
    def item(css: str, name: str) -> str:
        return f'<li><i class="{css}"></i>{html.escape(name)}</li>'

    items = [item(_css(series), series.name) for series in chart.series]
    if chart.reference is not None:
        items.append(item("reference", chart.reference[1]))
    return f"<ul>{''.join(items)}</ul>" if len(items) > 1 else ""


def _css(series: Series) -> str:
    return series.colour + (" faint" if series.faint else "")


def _svg(chart: Chart, steps: Axis, axis: Axis) -> str:
    """Grid, reference line and curves, in a square of 1000 by 1000 with y downwards."""
    grid = "".join(f"M0 {1000 - 1000 * at:.1f}H1000" for _, at in axis.tick_labels())
    parts = [f'<path class="grid" d="{grid}"/>']
    if chart.reference is not None:
        (at,) = axis.positions(np.array([chart.reference[0]]))
        parts.append(f'<path class="reference" d="M0 {1000 - 1000 * at:.1f}H1000"/>')
    for series in chart.series:
        x, y = downsample(series)
        places = list(zip(1000 * steps.positions(x), 1000 - 1000 * axis.positions(y), strict=True))
        parts.append(f'<path class="{_css(series)}" d="{_path(places)}"/>')
        if series.dots or len(x) == 1:
            dots = "".join(f"M{h:.1f} {v:.1f}h0" for h, v in places if math.isfinite(v))
            parts.append(f'<path class="{_css(series)} dots" d="{dots}"/>')
    return "\n".join(parts)


def _path(points: Sequence[tuple[float, float]]) -> str:
    """An SVG path through points, with gaps where a point is nan."""
    words, drawing = [], False
    for h, v in points:
        finite = math.isfinite(v)
        if finite:
            words.append(f"{'L' if drawing else 'M'}{h:.1f} {v:.1f}")
        drawing = finite
    return "".join(words)


def script_data(charts: Sequence[Chart], steps: Axis) -> dict[str, Any]:
    """The data of the page's script: the ends of the axis of steps, and the points of each chart."""

    def points(series: Series) -> dict[str, Any]:
        x, y = downsample(series)
        return {"name": series.name, "x": x.tolist(), "y": [format_number(v) for v in y.tolist()]}

    by_key = {chart.key: {"unit": chart.unit, "series": [points(s) for s in chart.series]} for chart in charts}
    return {"low": steps.low, "high": steps.high, "charts": by_key}


# --- PNG


def figure_class() -> Any:
    """matplotlib.figure.Figure. Raises ImportError, with the command to install it, if it is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        page_only = "--no-png" if is_command_line() else "png=False"
        raise ImportError(
            f"report: the PNG files need matplotlib; {install_command('report')}; {page_only} writes the page only"
        ) from error
    return Figure


def write_png(chart: Chart, steps: Axis, path: Path) -> None:
    """Write a chart to a PNG file. Raises ImportError without matplotlib, OSError if the file cannot be written."""
    figure = figure_class()(figsize=(8, 4.2), layout="constrained")
    axes, axis = figure.subplots(), value_axis(chart)
    for series in chart.series:
        x, y = downsample(series)
        colour, marker = COLOURS[series.colour], "o" if series.dots or len(x) == 1 else None
        axes.plot(
            x, y, color=colour, marker=marker, markersize=4, label=series.name,
            linewidth=0.8 if series.faint else 1.8, alpha=0.35 if series.faint else 1.0,
        )  # fmt: skip
    if chart.reference is not None:
        value, name = chart.reference
        axes.axhline(value, color="#555555", linestyle="--", linewidth=1, label=name)
    axes.set_yscale("log" if axis.log else "linear")
    axes.set(xlim=(steps.low, steps.high), ylim=(axis.low, axis.high), xlabel="step", title=chart.title)
    axes.set_xticks(steps.ticks(), [name for name, _ in steps.tick_labels()])
    axes.set_yticks(axis.ticks(), [name for name, _ in axis.tick_labels()])
    axes.minorticks_off()
    axes.set_ylabel(chart.unit or chart.title.lower())
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if len(chart.series) > 1 or chart.reference is not None:
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
