"""Time and memory of second derivatives against PyTorch and HIPS autograd: `python -m benchmarks.second_derivatives`.

Each method in PyTorch for the product of the transformer's Hessian and a vector is a candidate.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.measure import OURS, Candidate, Table, check_close, installed, left_out, run_alone, take_turns
from benchmarks.memory import peak
from benchmarks.train_step import SIZE_HEAD, TINY, TORCH
from benchmarks.worker import STATUS

SIZES = ("2/4/64/64/12", "4/4/128/64/12")
HIPS = "autograd"
TORCH_FUNC = "torch.func"
DOUBLE_BACKWARD = "torch, double backward"
# From the name of a candidate to the arguments of second_torch.hessian_vector_product. `torch.func.grad` of a jvp is
# left out: its product is wrong in PyTorch 2.13, because of the fused layer_norm.
TORCH_WAYS = {
    DOUBLE_BACKWARD: ("double backward", "composed"),
    "torch, double backward, SDPBackend.MATH": ("double backward", "math"),
    "torch, forward over reverse": ("forward over reverse", "composed"),
    "torch.func, vjp of grad": ("func, vjp of grad", "composed"),
    "torch.func, jvp of grad": ("func, jvp of grad", "composed"),
}
SMALL = {"gradient penalty": "gradient_penalty", "Jacobian": "full_jacobian", "Hessian": "full_hessian"}
PASS = ", one pass"  # the suffix of candidates that compute the gradient only
ROUNDS, SECONDS, BURST = 15, 40.0, 0.4
SMALL_BURST = 0.05  # seconds of consecutive calls in small_table: a call takes less time there
LEAST_ROUNDS = 5  # instead of ROUNDS in the tables with HIPS autograd, which is slow
TOLERANCE = 1e-4

HVP_NOTE = (
    "The product of a vector and the Hessian of the transformer's loss with respect to all parameters, for one batch. "
    "RussellGrad: `hvp` inside `no_grad()`, through `functional_call`. PyTorch: `torch.autograd.grad` with "
    "`create_graph=True` and again (double backward); `torch.autograd.grad` of dual tensors (forward over reverse); "
    "`torch.func`. PyTorch's CPU kernel of scaled_dot_product_attention has no second derivative. In PyTorch, "
    "attention is therefore written as matrix products, a mask and a softmax, or computed by `SDPBackend.MATH`. "
    f"The results agree within a relative {TOLERANCE}."
)
PASSES_NOTE = (
    "The time of that product, divided by the time of forward and backward in the same library in the same turn. "
    "PyTorch's forward and backward use scaled_dot_product_attention, as in training. The ratio columns compare these "
    "multiples."
)
PASS_NOTE = "Forward and backward of that loss, without an optimizer."
SMALL_NOTES = [
    "A gradient penalty: the gradient of a critic with respect to its inputs, the mean of (its norm - 1)^2, and the "
    "gradient of that with respect to the critic's weights. The critic is an MLP of widths 2, 64, 64 and 1 with tanh, "
    "the batch has 64 points.",
    "The Jacobian of an MLP of widths 8, 32 and 8 with respect to its input, and the Hessian of the sum of squares of "
    "its outputs. `torch` is `torch.autograd.functional`, `torch.func` is `jacrev` and `hessian`.",
    "A Jacobian-vector product of the transformer: the derivative of its logits in a direction of all parameters. "
    f"`torch` uses dual tensors, `torch.func` is `jvp`, `{HIPS}` is `make_jvp_reversemode`, since its forward mode has "
    "no erf.",
]
MEMORY_NOTE = (
    "The peak resident set of a new process after five Hessian-vector products (VmHWM), minus the resident set right "
    "after the imports, before the model is built (VmRSS)."
)


def hvp_candidates(size: str) -> dict[str, Candidate]:
    theirs: dict[str, Candidate] = {
        name: ("second_torch", "hessian_vector_product", size, method, attention)
        for name, (method, attention) in TORCH_WAYS.items()
    }
    return {OURS: ("second_ours", "hessian_vector_product", size), **theirs}


def hips() -> list[str]:
    return [HIPS] if installed("autograd") and installed("scipy") else []


def small_candidates(function: str, *arguments: str) -> dict[str, Candidate]:
    tensors, func = ("dual", "func") if function == "jacobian_vector_product" else ("autograd", "func")
    everyone: dict[str, Candidate] = {
        OURS: ("second_ours", function, *arguments),
        TORCH: ("second_torch", function, *arguments, tensors),
        TORCH_FUNC: ("second_torch", function, *arguments, func),
    }
    return everyone | dict.fromkeys(hips(), ("second_autograd", function, *arguments))


def hvp_tables(name: str, title: str, notes: Sequence[str]) -> tuple[Table, Table, Table]:
    """Empty tables of a product's time, of that time in passes, and of one pass's time."""
    return (
        Table(name, title, SIZE_HEAD, "milliseconds", list(notes)),
        Table(f"{name}_passes", f"{title}, as a multiple of forward and backward", SIZE_HEAD, "passes", [PASSES_NOTE]),
        Table(f"{name}_pass", "Forward and backward", SIZE_HEAD, "milliseconds", [PASS_NOTE]),
    )


def add_rows(
    tables: tuple[Table, Table, Table], size: str, everyone: Mapping[str, Candidate], rounds: int, **limits: float
) -> None:
    """Time products and passes in the same turns, and add a row to each table."""
    modules = {OURS: "second_ours", TORCH: "second_torch", HIPS: "second_autograd"}
    library = {name: next(key for key in modules if modules[key] == each[0]) for name, each in everyone.items()}
    passes: dict[str, Candidate] = {key + PASS: (modules[key], "gradient", size) for key in library.values()}

    def check(outcomes: dict[str, Any]) -> None:
        for group in (everyone, passes):
            check_close(f"{tables[0].name} {size}", TOLERANCE)({name: outcomes[name] for name in group})

    times = take_turns({**everyone, **passes}, rounds, check=check, **limits)
    pass_of = {name: times[library[name] + PASS] for name in everyone}
    tables[0].add(size, {name: times[name] for name in everyone})
    tables[1].add(size, {
        name: [product / one for product, one in zip(times[name], pass_of[name], strict=True)] for name in everyone
    })  # fmt: skip
    tables[2].add(size, {key: times[key + PASS] for key in dict.fromkeys(library.values())})


def products(sizes: Sequence[str], rounds: int, burst: float) -> list[Table]:
    tables = hvp_tables("hvp", "A Hessian-vector product", [HVP_NOTE])
    for size in sizes:
        add_rows(tables, size, hvp_candidates(size), rounds, seconds=SECONDS, burst=burst)
    return list(tables)


def peer_products(sizes: Sequence[str], rounds: int) -> list[Table]:
    """Separate tables, since the slowest candidate sets the number of calls in each burst."""
    note = f"As above, with `make_hvp` of HIPS autograd; {SIZE_HEAD}."
    missing = left_out([HIPS] if not hips() else [])
    tables = hvp_tables("hvp_peers", "A Hessian-vector product in HIPS autograd", [note, *missing])
    for size in sizes if hips() else ():
        everyone: dict[str, Candidate] = {
            OURS: ("second_ours", "hessian_vector_product", size),
            HIPS: ("second_autograd", "hessian_vector_product", size),
        }
        add_rows(tables, size, everyone, rounds)
    return list(tables)


def small_table(sizes: Sequence[str], rounds: int, burst: float) -> Table:
    missing = left_out([HIPS] if not hips() else [])
    table = Table("second_derivatives", "Other derivatives", "what", "milliseconds", [*SMALL_NOTES, *missing])
    cases = {label: small_candidates(function) for label, function in SMALL.items()}
    for size in sizes:
        cases[f"Jacobian-vector product, {size}"] = small_candidates("jacobian_vector_product", size)
    for label, everyone in cases.items():
        table.add(label, take_turns(everyone, rounds, burst=burst, check=check_close(label, TOLERANCE)))
    return table


def memory_table(sizes: Sequence[str]) -> Table:
    table = Table("hvp_memory", "Peak memory of a Hessian-vector product", SIZE_HEAD, "MiB", [MEMORY_NOTE])
    for size in sizes if STATUS.exists() else ():
        table.add(size, {name: [peak(candidate)] for name, candidate in hvp_candidates(size).items()})
    return table


def tables(quick: bool = False) -> list[Table]:
    sizes, rounds = ([TINY], 1) if quick else (SIZES, ROUNDS)
    burst, small_burst = (0.0, 0.0) if quick else (BURST, SMALL_BURST)
    return [
        *products(sizes, rounds, burst),
        *peer_products(sizes, 1 if quick else LEAST_ROUNDS),
        small_table(sizes, 1 if quick else LEAST_ROUNDS, small_burst),
        memory_table(sizes),
    ]


if __name__ == "__main__":
    run_alone(tables, "second_derivatives", "Time second derivatives against PyTorch and HIPS autograd.")
