"""The time of a training step against PyTorch eager and against its bare matrix products, in one run.

    python -m benchmarks.train_step                  all sizes; some minutes
    python -m benchmarks.train_step --sizes 4/4/128/64/12 --rounds 30

The candidates take turns, a step each, so that what else the machine does falls on all alike; a ratio is the median of
the ratios within each turn. Written to benchmarks/results/ as JSON and Markdown.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import russellgrad
from benchmarks.peers import CANDIDATES, Size

SIZES = ("4/4/128/64/12", "4/4/64/64/64", "6/6/384/256/16", "8/8/384/64/64")
RESULTS = Path(__file__).parent / "results"
WARM_UP = 3


def measure(size: Size, rounds: int) -> dict[str, Any]:
    """Times of a step in milliseconds for each candidate, and our ratio to each other one.

    Raises:
        RuntimeError: the candidates' losses differ, so they do not do the same work.
    """
    steps = {name: build(size) for name, build in CANDIDATES.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(-WARM_UP, rounds):
        losses = {}
        for name, step in steps.items():
            batch = size.random_batch(seed=i + WARM_UP)
            start = time.perf_counter()
            losses[name] = step(*batch)
            if i >= 0:
                times[name].append(1e3 * (time.perf_counter() - start))
        same = [loss for loss in losses.values() if loss == loss]  # the bare products have none
        if max(same) - min(same) > 1e-3:
            raise RuntimeError(f"{size}: the losses differ at step {i + WARM_UP}: {losses}")
    ours = times["russellgrad"]
    return {
        "size": str(size),
        "milliseconds": {
            name: {"median": statistics.median(t), "least": min(t), "most": max(t)} for name, t in times.items()
        },
        "ratio": {
            name: statistics.median(a / b for a, b in zip(ours, t, strict=True))
            for name, t in times.items()
            if name != "russellgrad"
        },
    }


def circumstances() -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m benchmarks.train_step", *sys.argv[1:]]),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "threads set": {k: v for k, v in os.environ.items() if k.endswith("_NUM_THREADS")},
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "russellgrad": russellgrad.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def markdown(results: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    names = list(CANDIDATES)
    lines = [
        "| layers/heads/width/length/batch | " + " | ".join(f"{n}, ms" for n in names)
        + " | " + " | ".join(f"ratio to {n}" for n in names[1:]) + " |",
        "|---" * (2 * len(names)) + "|",
    ]  # fmt: skip
    for result in results:
        cells = [result["size"]]
        for name in names:
            t = result["milliseconds"][name]
            cells.append(f"{t['median']:.1f} ({t['least']:.1f} to {t['most']:.1f})")
        cells += [f"{result['ratio'][name]:.2f}" for name in names[1:]]
        lines.append("| " + " | ".join(cells) + " |")
    told = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    return (
        "\n\n".join(["# A training step in float32", "Median (least to most) of a step.", "\n".join(lines), told])
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a training step against PyTorch, in one run.")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), help="layers/heads/width/length/batch")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each candidate (default: 20)")
    parser.add_argument("--name", default="train_step", help="of the files in benchmarks/results (default: train_step)")
    options = parser.parse_args()
    facts, results = circumstances(), []
    for text in options.sizes:
        results.append(measure(Size(*map(int, text.split("/"))), options.rounds))
        ratios = ", ".join(f"{ratio:.2f} of {name}" for name, ratio in results[-1]["ratio"].items())
        print(f"{text}: {results[-1]['milliseconds']['russellgrad']['median']:.1f} ms, {ratios}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{options.name}.json").write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")
    (RESULTS / f"{options.name}.md").write_text(markdown(results, facts))


if __name__ == "__main__":
    main()
