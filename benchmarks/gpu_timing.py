"""Time and memory of a training step on a GPU against PyTorch, eager and, on CUDA, as a CUDA graph."""

import math
import time
import traceback
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from benchmarks.candidates.model import Size
from benchmarks.gpu_plan import Candidate, Plan, Section, ours
from benchmarks.gpu_process import CandidateError, Process
from benchmarks.measure import LEAST_TURNS, OURS, Table
from benchmarks.train_step import SIZE_HEAD, TORCH

CAPTURED, TORCH_GRAPH, TORCH_ALLOCATED = f"{OURS}, captured", f"{TORCH}, CUDA graph", f"{TORCH}, allocated"
LEAST_BURST = 0.05  # seconds

# Checked before timing: the relative difference of the losses of the first steps, and the norm of each parameter's
# last gradient, relative to itself in fp32, else to the norm of all gradients. (The smallest norms, of the query and
# key weights, are a ten-millionth of that norm: in bf16 they are only rounding errors.)
CHECKED = 10
TOLERANCE = {"fp32": 1e-5, "tf32": 1e-3, "bf16": 2e-3}
ROUNDED_LOSS = 6e-3  # the torch backend's loss is bfloat16 in bf16, which adds an error of up to 2^-8
OF_NORMS = 0.02

# What the precisions mean; of bf16, the code of benchmarks/candidates/gpu_torch.py.
OF_PRECISIONS = {
    "fp32": 'fp32 is matmul precision "highest" of both libraries.',
    "tf32": 'tf32 is "high", which in RussellGrad applies to attention, too.',
    "bf16": "In bf16, parameters, activations and gradients are bfloat16 in both libraries, and AdamW updates float32 "
    "copies of the parameters. In PyTorch this code keeps the copies with torch._foreach_copy_, which is less work "
    "than autocast.",
}


def tolerance(precision: str, plan: Plan) -> float:
    return ROUNDED_LOSS if precision == "bf16" and plan.backend != "cupy" else TOLERANCE[precision]


def notes(plan: Plan) -> list[str]:
    captured, graph = "", ""
    if plan.capture:
        captured = ", uncaptured or captured as a CUDA graph (`compile_step`),"
        graph = f"; `{TORCH_GRAPH}` is the same step as one torch.cuda.graph"
    tolerances = ", ".join(f"{precision} {tolerance(precision, plan):g}" for precision in plan.precisions)
    return [
        "Forward, backward and AdamW of the same model, from the same weights and on the same batches, which are "
        "already on the device. Each candidate has its own process. The candidates take turns (A B A B) of consecutive "
        "steps, with the device idle at the start and the end of a turn, after a quarter as many untimed steps. A row "
        f"compares RussellGrad{captured} with the same turns of PyTorch. Each figure is the median of the turns "
        "(minimum to maximum). A ratio is RussellGrad / PyTorch, the median of the ratios within each turn: below 1, "
        "RussellGrad is better.",
        f"`{OURS}` is the backend {plan.backend} with AdamWOptimizer(flat=True). `{TORCH}` is eager, with "
        f"scaled_dot_product_attention and AdamW(fused=True){graph}.",
        " ".join(OF_PRECISIONS[precision] for precision in plan.precisions),
        f"Before timing, the losses of the first {CHECKED} steps were compared (relative tolerance: {tolerances}), and "
        f"the norm of each parameter's last gradient (tolerance {OF_NORMS:g}, relative to itself in fp32, else to the "
        "norm of all gradients).",
    ]


def memory_note(plan: Plan) -> str:
    measured = "PyTorch's max_memory_reserved; on MPS, which has no peak, driver_allocated_memory at the end"
    if plan.backend == "cupy":
        measured = "CuPy's total_bytes, including the pool of a captured step, and PyTorch's max_memory_reserved"
    return (
        f"The peak size of the library's memory pool, without the context of the device: {measured}. "
        f"`{TORCH_ALLOCATED}` is max_memory_allocated in eager mode, the peak of the memory in use."
    )


def timing(plan: Plan) -> Section:
    """Time all sizes and precisions."""
    head = f"{SIZE_HEAD}, precision"
    steps = Table("gpu_step", f"A training step on {plan.device}", head, "milliseconds", notes(plan))
    tokens = Table("gpu_tokens", "Tokens", head, "tokens per second", ["From the same measurement."])
    memory = Table("gpu_memory", f"Peak memory on {plan.device}", head, "MiB", [memory_note(plan)])
    section = Section("", tables=[steps, tokens, memory])
    if plan.without_torch:
        section.lines.append(f"PyTorch is left out: {plan.without_torch}.")
        section.failures += [] if plan.trial else [section.lines[-1]]
    if "bf16" not in plan.precisions:
        section.lines.append("bf16 is left out: it needs the package ml_dtypes.")
    cases = [(size, precision) for size in plan.sizes for precision in plan.precisions]
    for place, (size, precision) in enumerate(cases):
        available = plan.clock.left() - plan.reserve
        if available < plan.least:
            left_out = "; ".join(", ".join(case) for case in cases[place:])
            section.lines.append(f"Left out for want of time: {left_out}.")
            section.failures.append(f"no time was left for {left_out}")
            break
        case = f"{size}, {precision}"
        plan.clock.say(f"timing: {case}")
        try:
            measured = measure(size, precision, plan, available / (len(cases) - place))
        except Exception:  # keeps the results of the other cases
            section.failures.append(f"{case}: {traceback.format_exc()}")
            continue
        section.data[case] = measured.data
        section.failures += [f"{case}: {failure}" for failure in measured.failures]
        _add(case, Size.parse(size), measured, steps, tokens, memory)
    if section.data and not memory.rows:
        section.lines.append("Peak memory: not measured on this device.")
    section.lines += [_compared(section.data), _launched(section.data)]
    section.verdict = _ratios(steps)
    return section


# --- One size and precision


@dataclass
class Measured:
    """The results of one case, by candidate."""

    seconds: dict[str, list[float]] = field(default_factory=dict)  # per step, by turn
    bytes: dict[str, float] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


class _Candidates:
    """The candidates of a case. A candidate that fails is removed, and its error is added to the failures."""

    def __init__(self, stack: ExitStack, candidates: dict[str, Candidate], plan: Plan, failures: list[str]) -> None:
        self._plan, self._failures = plan, failures
        self._processes = {name: stack.enter_context(Process(*given)) for name, given in candidates.items()}

    def __iter__(self) -> Any:
        return iter(list(self._processes))

    def ask(self, request: str, *arguments: Any) -> dict[str, Any]:
        """The answers of all candidates, by name."""
        answers = {name: self.ask_one(name, request, *arguments) for name in self}
        return {name: answer for name, answer in answers.items() if name in self._processes}

    def ask_one(self, name: str, request: str, *arguments: Any) -> Any:
        """The answer of one candidate; None if it fails."""
        try:
            return self._processes[name].ask(request, *arguments, limit=self._plan.limit())
        except CandidateError as error:
            self._failures.append(f"{name}: {error}")
            del self._processes[name]
            return None


def candidates(size: str, precision: str, plan: Plan) -> dict[str, Candidate]:
    found: dict[str, Candidate] = {}
    for captured in (False, True)[: 1 + plan.capture]:
        found[CAPTURED if captured else OURS] = ours(size, precision, captured=captured, backend=plan.backend)
    for captured in () if plan.without_torch else (False, True)[: 1 + plan.capture]:
        mode = "captured" if captured else "uncaptured"
        found[TORCH_GRAPH if captured else TORCH] = "gpu_torch", size, precision, mode, plan.torch_device
    return found


def measure(size: str, precision: str, plan: Plan, allowed: float) -> Measured:
    """Measure one case in about `allowed` seconds."""
    begun, measured = time.perf_counter(), Measured()
    with ExitStack() as stack:
        everyone = _Candidates(stack, candidates(size, precision, plan), plan, measured.failures)
        losses, norms = everyone.ask("losses", CHECKED), everyone.ask("gradients")
        measured.data.update(losses=losses, norms_of_gradients=norms, off=off(losses, norms, precision == "fp32"))
        measured.failures += _not_the_same(measured.data["off"], tolerance(precision, plan))
        once = everyone.ask("seconds", 1, 3)
        left = allowed - (time.perf_counter() - begun)
        burst = min(plan.burst, max(LEAST_BURST, left / (1.25 * plan.turns * max(1, len(once)))))
        counts = {name: max(1, round(burst / seconds)) for name, seconds in once.items()}
        measured.data.update(seconds_of_a_burst=burst, steps_of_a_burst=counts)
        measured.seconds = _take_turns(everyone, counts, plan.turns, begun + allowed)
        measured.data["memory"] = everyone.ask("memory")
        measured.bytes = _bytes(measured.data["memory"])
        if plan.capture and not plan.trial:  # the stand-in has no driver to count launches
            measured.data["launches"] = everyone.ask("launches")
    return measured


def _take_turns(everyone: _Candidates, counts: dict[str, int], turns: int, until: float) -> dict[str, list[float]]:
    """Seconds per step by turn, for candidates that did not fail; after `until`, LEAST_TURNS are enough."""
    times: dict[str, list[float]] = {name: [] for name in everyone}
    for turn in range(turns):
        if turn >= LEAST_TURNS and time.perf_counter() > until:
            break
        for name in everyone:
            times[name].append(everyone.ask_one(name, "seconds", max(1, counts[name] // 4), counts[name]))
    return {name: times[name] for name in everyone}


def off(losses: dict[str, list[float]], norms: dict[str, list[float]], own: bool) -> dict[str, dict[str, float]]:
    """The largest differences of losses and gradient norms from PyTorch's, or without PyTorch, the first candidate's.

    Args:
        own: whether a norm's difference is relative to itself, else to the norm of all gradients.
    """
    if not norms:
        return {}
    reference = TORCH if TORCH in norms else next(iter(norms))
    whole = math.hypot(*norms[reference])

    def largest(gaps: list[float]) -> float:
        return math.inf if any(map(math.isnan, gaps)) else max(gaps)

    return {
        name: {
            "losses": largest([abs(a - b) / abs(b) for a, b in zip(losses[name], losses[reference], strict=True)]),
            "norms": largest([
                abs(a - b) / (b if own and b else whole) for a, b in zip(each, norms[reference], strict=True)
            ]),
        }
        for name, each in norms.items()
    }  # fmt: skip


def _not_the_same(gaps: dict[str, dict[str, float]], of_losses: float) -> list[str]:
    return [
        f"{name} does not compute the same: losses {gap['losses']:.1e} off (tolerance {of_losses:g}), "
        f"norms of gradients {gap['norms']:.1e} (tolerance {OF_NORMS:g})"
        for name, gap in gaps.items()
        if gap["losses"] > of_losses or gap["norms"] > OF_NORMS
    ]


def _bytes(answers: dict[str, dict[str, int]]) -> dict[str, float]:
    """The size of the memory pool by candidate, and the memory that PyTorch had in use, where they were measured."""
    taken: dict[str, float] = {}
    for name, answer in answers.items():
        if answer:
            taken[name] = answer["reserved"] if "reserved" in answer else answer["pool"] + answer["recorded"]
        if name == TORCH and "allocated" in answer:
            taken[TORCH_ALLOCATED] = answer["allocated"]
    return taken


# --- Tables and summaries


def _add(case: str, size: Size, measured: Measured, steps: Table, tokens: Table, memory: Table) -> None:
    """Add a row for each mode of RussellGrad that was measured."""
    theirs = {name: turns for name, turns in measured.seconds.items() if name in (TORCH, TORCH_GRAPH)}
    their_bytes = {name: [taken] for name, taken in measured.bytes.items() if name not in (OURS, CAPTURED)}
    for name, label in ((OURS, case), (CAPTURED, f"{case}, captured")):
        if name in measured.seconds:
            everyone = {OURS: measured.seconds[name], **theirs}
            a_step = size.batch * size.length
            steps.add(label, everyone)
            tokens.add(label, {who: [seconds / a_step for seconds in turns] for who, turns in everyone.items()})
        if name in measured.bytes:
            memory.add(label, {OURS: [measured.bytes[name]], **their_bytes})


def _compared(data: dict[str, Any]) -> str:
    lines = [
        f"- {case}, {name}: losses {gap['losses']:.1e}, norms of gradients {gap['norms']:.1e}"
        for case, found in data.items()
        for name, gap in found["off"].items()
    ]
    return "\n".join(
        ["Difference of each candidate from PyTorch, or without PyTorch, from RussellGrad uncaptured:\n", *lines]
    )


def _launched(data: dict[str, Any]) -> str:
    lines = [
        f"- {case}, {name}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        for case, found in data.items()
        for name, kinds in found.get("launches", {}).items()
        if kinds
    ]
    if not lines:
        return "The launches of a step were not counted."
    return "\n".join(["Launches of a captured step, as nodes of its CUDA graph:\n", *lines])


def _ratios(steps: Table) -> str:
    shown = [
        f"{row['case']}: " + ", ".join(f"{ratio:.2f} of {name}" for name, ratio in row["ratio"].items())
        for row in steps.rows
        if row["ratio"]
    ]
    return "RussellGrad's time / PyTorch's: " + "; ".join(shown) if shown else "nothing was compared with PyTorch"
