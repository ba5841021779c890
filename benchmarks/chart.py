"""A bar chart of the training step against PyTorch, from a JSON file of results, written next to it as a PNG.

python -m benchmarks.chart cpu
python -m benchmarks.chart cpu --before train_step
"""

import argparse
import json
from pathlib import Path
from typing import Any, TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import measure
from benchmarks.train_step import SIZE_HEAD, TORCH, TORCH_FUSED

Ratios: TypeAlias = dict[str, dict[str, float]]  # size -> peer -> ours over theirs

PEERS = {TORCH: "PyTorch, default AdamW", TORCH_FUSED: "PyTorch, fused AdamW"}
COLOURS = {TORCH: "#0072B2", TORCH_FUSED: "#E69F00"}  # told apart by the colour-blind too (Okabe & Ito)


def ratios_in(data: dict[str, Any]) -> Ratios:
    return {row["case"]: row["ratio"] for row in data["tables"]["train_step"]["rows"]}


def draw(now: dict[str, Any], before: dict[str, Any] | None, path: Path) -> None:
    """Bars of the sizes in `now`, those of `before` to their left, hatched."""
    runs = {"now": ratios_in(now)} if before is None else {"before": ratios_in(before), "now": ratios_in(now)}
    sizes = list(runs["now"])
    bars = [(run, peer) for peer in PEERS for run in runs]
    figure = Figure(figsize=(8, 4.5), dpi=150)
    axes = figure.subplots()
    for i, (run, peer) in enumerate(bars):
        width = 0.8 / len(bars)
        places = [place + (i - (len(bars) - 1) / 2) * width for place in range(len(sizes))]
        heights = [runs[run].get(size, {}).get(peer, 0.0) for size in sizes]
        label = PEERS[peer] if before is None else f"{PEERS[peer]}, {run}"
        style: dict[str, Any] = {"color": COLOURS[peer]}
        if run == "before":
            style = {"color": "white", "edgecolor": COLOURS[peer], "hatch": "///"}
        drawn = axes.bar(places, heights, 0.92 * width, label=label, **style)
        clear: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # of the line at 1
        axes.bar_label(drawn, [f"{h:.2f}" if h else "" for h in heights], fontsize=8, padding=3, bbox=clear)
    _dress(axes, sizes)
    figure.text(0.01, 0.01, _source(now), fontsize=7, color="0.35")
    figure.subplots_adjust(left=0.09, right=0.98, top=0.92, bottom=0.17)
    figure.savefig(path)


def _dress(axes: Axes, sizes: list[str]) -> None:
    axes.axhline(1, color="black", linewidth=1, linestyle="--", label="as fast as PyTorch")
    axes.set_xticks(range(len(sizes)), sizes)
    axes.set_xlabel(SIZE_HEAD)
    axes.set_ylabel("RussellGrad's time / PyTorch's")
    axes.set_title("A training step in float32 on a CPU: lower is faster")
    axes.set_ylim(0, 1.3 * axes.dataLim.ymax)  # room for the legend
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="upper center")


def _source(data: dict[str, Any]) -> str:
    """Where the figures come from, in a line."""
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
    parser = argparse.ArgumentParser(description="Draw the training step against PyTorch.")
    parser.add_argument("name", help="of the JSON file in benchmarks/results")
    parser.add_argument("--before", help="of an earlier one, for bars side by side")
    given = parser.parse_args()
    draw(_load(given.name), _load(given.before) if given.before else None, measure.RESULTS / f"{given.name}.png")
    print(f"written: {measure.RESULTS / given.name}.png")


if __name__ == "__main__":
    main()
