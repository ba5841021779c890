"""Run all benchmarks and write one JSON file and one Markdown file.

python -m benchmarks                             all parts: twenty minutes on two cores
python -m benchmarks --quick                     tiny sizes, to check that everything runs
python -m benchmarks --only train_step ops --name mine
python -m benchmarks --blocks llama --name llama
"""

from benchmarks import convolution, generate, growth, memory, ops, overhead, second_derivatives, train_step
from benchmarks.candidates.model import LLAMA
from benchmarks.measure import Options, circumstances, require_cpu, write

PARTS = {
    part.__name__.rpartition(".")[2]: part
    for part in (train_step, ops, convolution, overhead, memory, growth, generate, second_derivatives)
}
OF_LLAMA = "train_step", "memory", "generate"


def main() -> None:
    parser = Options("Measure everything against PyTorch on the CPU.", "cpu", before=True)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts to run (default: all)")
    parser.add_argument(
        "--blocks",
        choices=("llama",),
        help="blocks of the model (default: GPT-2's); llama measures train_step, memory and generate",
    )
    given = parser.given()
    if given.blocks and (others := set(given.only or ()) - set(OF_LLAMA)):
        parser.error(f"--blocks llama measures {', '.join(OF_LLAMA)}, not {', '.join(sorted(others))}")
    require_cpu()
    facts = circumstances("benchmarks")
    only, blocks = given.only or (OF_LLAMA if given.blocks else PARTS), {"blocks": LLAMA} if given.blocks else {}
    tables = [table for name in only for table in PARTS[name].tables(given.quick, **blocks)]
    write(given.name, tables, facts, before=given.before)


if __name__ == "__main__":
    main()
