"""A bar chart of the training step against PyTorch, for one or more benchmark runs side by side.

python -m benchmarks.chart cpu                           benchmarks/results/cpu.json -> cpu.png
python -m benchmarks.chart before cpu cpu-numba          -> cpu-numba.png
python -m benchmarks.chart before=Before cpu=NumPy       with custom labels
"""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import measure
from benchmarks.train_step import SIZE_HEAD, TORCH

COLORS = ("#999999", "#0072B2", "#E69F00", "#009E73")  # readable with color blindness (Okabe & Ito)


def ratios_in(data: dict[str, Any]) -> dict[str, float]:
    """Size -> RussellGrad's time / PyTorch's time with its default AdamW."""
    return {row["case"]: row["ratio"][TORCH] for row in data["tables"]["train_step"]["rows"]}


def draw(runs: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw a group of bars for each size of the last run, with a bar for each run. `runs` maps labels to results."""
    *_, last = runs.values()
    sizes = list(ratios_in(last))
    figure = Figure(figsize=(8, 4.5), dpi=150)
    axes = figure.subplots()
    width = 0.8 / len(runs)
    for i, (label, data) in enumerate(runs.items()):
        places = [place + (i - (len(runs) - 1) / 2) * width for place in range(len(sizes))]
        heights = [ratios_in(data).get(size, 0.0) for size in sizes]
        drawn = axes.bar(places, heights, 0.92 * width, label=label, color=COLORS[i % len(COLORS)])
        clear: dict[str, Any] = {
            "facecolor": "white",
            "edgecolor": "none",
            "pad": 0.5,
        }  # keeps the line at 1 from crossing the labels
        axes.bar_label(drawn, [f"{h:.2f}" if h else "" for h in heights], fontsize=8, padding=3, bbox=clear)
    _style(axes, sizes)
    figure.text(0.01, 0.01, _source(last), fontsize=7, color="0.35")
    figure.subplots_adjust(left=0.09, right=0.98, top=0.92, bottom=0.17)
    figure.savefig(path)


def _style(axes: Axes, sizes: list[str]) -> None:
    axes.axhline(1, color="black", linewidth=1, linestyle="--", label="as fast as PyTorch")
    axes.set_xticks(range(len(sizes)), sizes)
    axes.set_xlabel(SIZE_HEAD)
    axes.set_ylabel("RussellGrad's time / PyTorch's")
    axes.set_title("A training step in float32 on a CPU: lower is faster")
    axes.set_ylim(0, 1.25 * axes.dataLim.ymax)  # room for the legend
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, ncols=4, loc="upper center")


def _source(data: dict[str, Any]) -> str:
    """The machine, the versions and the date, in one line."""
    return (
        f"{data['processor']}, {data['cores']} cores, {data['torch threads']} threads; Python {data['python']}, "
        f"NumPy {data['numpy']}, PyTorch {data['torch']}; {data['date'][:10]}"
    )


def _load(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((measure.RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    if "train_step" not in data.get("tables", {}):
        raise SystemExit(
            f"chart: {name}.json has no training step; measure it with python -m benchmarks.train_step --name {name}"
        )
    return data


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a bar chart of the training step against PyTorch.")
    parser.add_argument(
        "names", nargs="+", help="JSON files in benchmarks/results, without .json; NAME=LABEL sets a label"
    )
    pairs = [name.partition("=")[::2] for name in parser.parse_args().names]
    path = measure.RESULTS / f"{pairs[-1][0]}.png"
    draw({label or name: _load(name) for name, label in pairs}, path)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
