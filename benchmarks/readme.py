"""Writes the tables of docs/benchmarks.md from benchmarks/results/*.json: `python -m benchmarks.readme`.

The tables of `limit*.json` and `step-peers.json` are written if there are such files. The others list every results
file that has a training step, overhead, generation or growth, with its machine, date and commit. A new results file
therefore needs no manual edit of the page.
"""

import json
from typing import Any

from benchmarks.limit import OTHERS as OTHER_PRIMITIVES
from benchmarks.limit import PYTHON
from benchmarks.measure import OURS, RESULTS, ROOT, Rows, three_digits, to_markdown
from benchmarks.train_step import TORCH, TORCH_FUSED

PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- python -m benchmarks.readme -->\n", "<!-- end -->\n"
BEGIN_PEERS = "<!-- python -m benchmarks.readme: peers -->\n"
FIRST = (
    "before",
    "cpu",
    "cpu-numba",
    "cpu-avx2",
    "cpu-avx2-numba",
    "generate",
    "generate-numba",
)  # the order; other runs follow

# The smaller tables: name -> (unit, its symbol, description of a row).
OTHERS = {
    "overhead": ("microseconds", "µs", "{}, 4 elements"),
    "import": ("milliseconds", "ms", "{} beyond NumPy"),
    "import_all": ("milliseconds", "ms", "{} with NumPy"),
    "generate_cached": ("tokens per second", "tokens/s", "generating within the context, {}"),
    "generate": ("tokens per second", "tokens/s", "generating past the context, {}"),
    "growth_length": ("milliseconds", "ms", "step at length {} (4/4/128, batch 4)"),
    "growth_batch": ("milliseconds", "ms", "step at batch {} (4/4/128/64)"),
    "growth_width": ("milliseconds", "ms", "step at width {} (4 layers, length 64, batch 12)"),
    "growth_memory": ("MiB", "MiB", "memory at length {} (4/4/128, batch 4)"),
    "growth_memory_batch": ("MiB", "MiB", "memory at batch {} (4/4/128/64)"),
    "growth_memory_width": ("MiB", "MiB", "memory at width {} (4 layers, length 64, batch 12)"),
}

NEWEST = "cpu-contract", "cpu-contract-numba"  # runs of the training step, on NumPy and on Numba
# The summary: what it compares, its table and case, the run on NumPy and the run on Numba.
SUMMARY = (
    ("time of a training step, 4/4/128/64/12", "train_step", "4/4/128/64/12", *NEWEST),
    ("time of a training step, 6/6/384/256/16", "train_step", "6/6/384/256/16", *NEWEST),
    ("peak memory of a training step, 6/6/384/256/16", "memory", "6/6/384/256/16", "cpu", "cpu-numba"),
    (
        "time of generating within the context, 4/4/128/64",
        "generate_cached",
        "4/4/128/64",
        "generate",
        "generate-numba",
    ),
    (
        "time of generating within the context, 6/6/384/256",
        "generate_cached",
        "6/6/384/256",
        "generate",
        "generate-numba",
    ),
)

LAST = OTHER_PRIMITIVES, PYTHON  # the rows at the end of the table of primitives

Run = dict[str, Any]  # the content of a file of results


def load_runs() -> dict[str, Run]:
    """The results files with a table for this page: first those in FIRST, then the others by name."""
    names = sorted(path.stem for path in RESULTS.glob("*.json"))
    names.sort(key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    runs = {name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in names}
    return {name: run for name, run in runs.items() if not {"train_step", *OTHERS}.isdisjoint(run.get("tables", {}))}


def rows(run: Run, table: str) -> dict[str, dict[str, Any]]:
    """The rows of a table by case; empty if the run does not have the table."""
    return {row["case"]: row for row in run["tables"].get(table, {"rows": []})["rows"]}


def summary_table(runs: dict[str, Run]) -> str:
    """The ratios of SUMMARY, for NumPy and Numba; "-" where a run is missing."""
    lines = []
    for text, table, case, numpy, numba in SUMMARY:
        found = [rows(runs[name], table).get(case) if name in runs else None for name in (numpy, numba)]
        lines.append([text, *(f"{row['ratio'][TORCH]:.2f}" if row else "-" for row in found)])
    return to_markdown(["RussellGrad / PyTorch", "NumPy", "Numba"], lines)


def runs_table(runs: dict[str, Run]) -> str:
    """The backend, date, machine and versions of each run."""
    head = ["run", "backend", "date, commit", "processor", "NumPy and its BLAS", "PyTorch and its BLAS", "Python"]
    lines = [
        [
            f"[{name}](../benchmarks/results/{name}.md)",
            run["backend"],
            f"{run['date'][:10]}, {run['commit']}",
            f"{run['processor']}, {run['cores']} cores",
            f"{run['numpy']}, {run['BLAS of NumPy']}",
            f"{run['torch']}, {run['BLAS of torch']}, {run['torch threads']} threads",
            run["python"],
        ]
        for name, run in runs.items()
    ]
    return to_markdown(head, lines)


def step_table(runs: dict[str, Run]) -> str:
    """The training step: a row for each size and run."""
    head = ["size", "run", "backend", "step", "time / PyTorch's time", "time / PyTorch's time, fused AdamW"]
    head += ["time / matrix products", "peak memory", "memory / PyTorch's memory"]
    sizes = dict.fromkeys(size for run in runs.values() for size in rows(run, "train_step"))
    lines = []
    for size in sizes:
        for name, run in runs.items():
            row, peak = rows(run, "train_step").get(size), rows(run, "memory").get(size)
            if row is None:
                continue
            line = [size, name, run["backend"], f"{row['milliseconds'][OURS]['median']:.1f} ms"]
            line += [f"{row['ratio'][other]:.2f}" for other in (TORCH, TORCH_FUSED, "matrix products")]
            line += [f"{peak['MiB'][OURS]['median']:.0f} MiB", f"{peak['ratio'][TORCH]:.2f}"] if peak else ["-", "-"]
            lines.append(line)
    return to_markdown(head, lines)


def other_table(runs: dict[str, Run]) -> str:
    """Overhead, import, generation and growth, with a row for each case and run."""
    lines = []
    for table, (unit, symbol, text) in OTHERS.items():
        for case in dict.fromkeys(case for run in runs.values() for case in rows(run, table)):
            for name, run in runs.items():
                if row := rows(run, table).get(case):
                    measured = f"{row[unit][OURS]['median']:.1f} {symbol}"
                    lines.append([text.format(case), name, run["backend"], measured, f"{row['ratio'][TORCH]:.2f}"])
    return to_markdown(["what", "run", "backend", "RussellGrad", "time or memory / PyTorch's"], lines)


def step_peers_parts() -> list[str]:
    """Results/step-peers.json: a row for each library, with the time and the ratio to PyTorch at each size."""
    path = RESULTS / "step-peers.json"
    if not path.exists():
        return []
    run = json.loads(path.read_text(encoding="utf-8"))
    table = run["tables"]["train_step_peers"]
    measured = [row for row in table["rows"] if "ratio" in row]
    sizes = list(dict.fromkeys(row["case"] for row in measured))
    cells = {
        (row["library"], row["case"]): f"{three_digits(row['milliseconds']['median'])} ms, {row['ratio']:.2f}"
        for row in measured
    }
    lines = [
        [library, "measured", *(cells.get((library, size), "-") for size in sizes)]
        for library in dict.fromkeys(row["library"] for row in measured)
    ]
    for row in table["rows"]:
        if row not in measured:
            text = f"{row['how']}: {row['milliseconds']['median']:.0f} ms at {row['case']}"
            lines.append([row["library"], text, *("-" for _ in sizes)])
    return [
        "### A training step in other libraries",
        *table["notes"],
        to_markdown(["library", "measured or quoted", *(f"{size}: step, step / PyTorch's" for size in sizes)], lines),
        _of(path.stem, run),
    ]


def limit_parts() -> list[str]:
    """Results/limit*.json: of each run the limits by size, and the time and limit of each primitive by size."""
    parts: list[str] = []
    for path in sorted(RESULTS.glob("limit*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        limits, *sizes = [Rows(**table) for table in run["tables"].values()]
        *notes, machine = limits.notes
        if not parts:
            parts += ["### Against the limits of the machine", *notes]
        parts += [f"On {run['backend']}. {machine}", limits.markdown().rpartition("\n\n")[2]]
        by_size = [{row["case"]: row for row in table.rows} for table in sizes]
        names = sorted(dict.fromkeys(name for rows in by_size for name in rows), key=lambda name: name in LAST)
        lines = [[name, *(_of_its_limit(rows.get(name)) for rows in by_size)] for name in names]
        parts += [to_markdown(["ms (limit)", *(row["case"] for row in limits.rows)], lines), _of(path.stem, run)]
    return parts


def _of_its_limit(row: dict[str, Any] | None) -> str:
    return f"{three_digits(row['ms'])} ({row['limit']:.2g})" if row else "-"


def _of(name: str, run: Run) -> str:
    """The origin of a table."""
    where = f"{run['processor']}, {run['cores']} cores"
    return f"[{name}](../benchmarks/results/{name}.md): {run['date'][:10]}, commit {run['commit']}, {where}."


def figures() -> str:
    """The text between BEGIN and END on the page."""
    runs = load_runs()
    parts = ["### Summary", summary_table(runs), "### The runs", runs_table(runs)]
    parts += ["### A training step", step_table(runs), *step_peers_parts(), *limit_parts()]
    parts += ["### Overhead, generation, growth", other_table(runs)]
    return "\n\n".join(parts) + "\n"


def peer_figures() -> str:
    """The table of results/peers.json: a row for each library, with lines, time and result of each program."""
    table = json.loads((RESULTS / "peers.json").read_text(encoding="utf-8"))["tables"]["peers"]
    by_library: dict[str, list[str]] = {}
    for row in table["rows"]:
        first, again = row["first"], row["seconds"]["median"]
        cell = f"{row['lines']} lines, {first:.2f} and {again:.2f} s, {row['result']:.3f}"
        by_library.setdefault(row["library"], []).append(cell)
    tasks = dict.fromkeys(row["task"] for row in table["rows"])
    return to_markdown(["", *tasks], [[library, *cells] for library, cells in by_library.items()]) + "\n"


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for begin, new in ((BEGIN, figures()), (BEGIN_PEERS, peer_figures())):
        before, _, rest = text.partition(begin)
        text = before + begin + new + END + rest.partition(END)[2]
    PAGE.write_text(text, encoding="utf-8")
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
