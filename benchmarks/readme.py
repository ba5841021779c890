"""The README's tables of speed, from the benchmarks' own output: `python -m benchmarks.readme` writes them into it."""

import json
from typing import Any

from benchmarks.measure import OURS, RESULTS, ROOT
from benchmarks.train_step import TORCH, TORCH_FUSED

BEGIN, END = "<!-- python -m benchmarks.readme -->\n", "<!-- end -->\n"
RUNS = {"before": "before", "cpu": "numpy", "cpu-numba": "numba"}  # a file in results/ -> what the table calls it
AVX2_RUNS = {"cpu-avx2": "numpy", "cpu-avx2-numba": "numba"}
HEAD = "layers/heads/width/length/batch"


def load(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return data


def rows(data: dict[str, Any], table: str) -> dict[str, dict[str, Any]]:
    """By case; none if the run had no such table."""
    return {row["case"]: row for row in data["tables"].get(table, {"rows": []})["rows"]}


def step_table(runs: dict[str, str], memory: bool) -> str:
    """A row for each size and run."""
    loaded = {label: load(name) for name, label in runs.items()}
    head = [HEAD, "", "step", "to PyTorch, default AdamW", "fused AdamW", "to its products alone"]
    head += ["peak memory", "to PyTorch's"] if memory else []
    lines = [head, ["---"] * len(head)]
    for size in rows(next(iter(loaded.values())), "train_step"):
        for label, data in loaded.items():
            row = rows(data, "train_step")[size]
            ratio = row["ratio"]
            line = [size, label, f"{row['milliseconds'][OURS]['median']:.1f} ms"]
            line += [f"{ratio[name]:.2f}" for name in (TORCH, TORCH_FUSED, "matrix products")]
            if memory:
                peak = rows(data, "memory")[size]
                line += [f"{peak['MiB'][OURS]['median']:.0f} MiB", f"{peak['ratio'][TORCH]:.2f}"]
            lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def other_table(data: dict[str, Any]) -> str:
    """Overhead, import, generation and growth of the NumPy backend, a row each."""
    lines = [["", "ours", "to PyTorch"], ["---"] * 3]
    tables = {
        "overhead": ("microseconds", "µs", "{}, 4 elements"),
        "import": ("milliseconds", "ms", "{} beyond NumPy"),
        "generate_cached": ("tokens per second", "tokens/s", "generating within the context, {}"),
        "generate": ("tokens per second", "tokens/s", "generating past the context, {}"),
        "growth_length": ("milliseconds", "ms", "step at length {} (4/4/128, batch 4)"),
        "growth_batch": ("milliseconds", "ms", "step at batch {} (4/4/128/64)"),
    }
    for table, (unit, short, text) in tables.items():
        for case, row in rows(data, table).items():
            measured = f"{row[unit][OURS]['median']:.1f} {short}"
            lines.append([text.format(case), measured, f"{row['ratio'][TORCH]:.2f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figures() -> str:
    """What stands between BEGIN and END in the README."""
    cpu, avx2, generation = load("cpu"), load("cpu-avx2"), load("generate")
    others = {**cpu, "tables": {**cpu["tables"], **generation["tables"]}}
    where = (
        f"{cpu['processor']}, {cpu['cores']} cores, {cpu['torch threads']} threads; Python {cpu['python']}, NumPy "
        f"{cpu['numpy']} ({cpu['BLAS of NumPy']}), PyTorch {cpu['torch']} ({cpu['BLAS of torch']}); "
        f"{cpu['date'][:10]}, commit {cpu['commit']}."
    )
    return "\n\n".join([
        where,
        step_table(RUNS, memory=True),
        f"With OpenBLAS held to the kernels of processors without AVX-512 ({avx2['BLAS of NumPy']}):",
        step_table(AVX2_RUNS, memory=False),
        "The NumPy backend besides (`overhead` and `growth`; `generate`, with a cache of keys and values in both, of "
        f"{generation['date'][:10]}, commit {generation['commit']}):",
        other_table(others),
    ]) + "\n"  # fmt: skip


def main() -> None:
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    readme.write_text(before + BEGIN + figures() + END + after, encoding="utf-8")
    print(f"written: {readme}")


if __name__ == "__main__":
    main()
