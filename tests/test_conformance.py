"""The conformance suite on every backend, a test for each case; and planted faults, each of which it must find.

The command line runs on a third party's backends: a correct one, a wrong one, and some that cannot be used.
"""

import inspect
import itertools
import unittest
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from russellgrad import backend as selection
from russellgrad import conformance
from russellgrad.backend import CORE, ELEMENTWISE, PRIMITIVES, Backend, load_backend
from russellgrad.conformance import Report
from russellgrad.conformance.primitives import OF_BOOLS, n_operands
from russellgrad.conformance.trial import reference
from tests.core_backend import core_module
from tests.helpers import Array, module_of, once
from tests.process import run_python

numpy: Any = load_backend("numpy")


@pytest.mark.parametrize("case", conformance.cases(), ids=str)
def test_conformance(backend: Backend, case: conformance.Case) -> None:
    case.check(backend)


def test_every_primitive_has_a_case() -> None:
    assert {case.primitive for case in conformance.cases()} == {*PRIMITIVES, "Tensor"}


@pytest.mark.parametrize("n", [1, 2])
def test_the_cases_of_an_elementwise_primitive_follow_from_the_contract(n: int) -> None:
    """So a primitive that is added to the contract has cases, all that its neighbours have."""
    titles = {
        primitive: {case.title for case in conformance.cases() if case.primitive == primitive}
        for primitive in ELEMENTWISE
        if n_operands(primitive) == n and primitive not in OF_BOOLS
    }
    common = set.intersection(*titles.values())
    assert len(titles) > 8 and len(common) == {1: 20, 2: 68}[n]
    assert {"random, float32", "random, float64", "positive, no axes, float32", "empty, float64"} <= common


def test_a_case_that_needs_what_a_backend_lacks_is_skipped_with_the_reason() -> None:
    (case,) = [case for case in conformance.cases() if case.primitive == "copy" and case.needs]
    outcome = case.run(core_module("no_assign"))
    assert (outcome.skipped, outcome.passed, outcome.failed, outcome.missing) == (True, False, False, ("assign",))
    assert str(outcome) == "skipped  copy: shares no memory: no assign"
    with pytest.raises(unittest.SkipTest, match="copy: shares no memory: the backend has no assign"):
        case.check(core_module("no_assign_either"))


def test_the_report_counts_skipped_cases_apart() -> None:
    primitives = ("copy", "split_flat")
    chosen = [case for case in conformance.cases() if case.primitive in primitives]
    module = core_module("no_assign")
    report = Report("no_assign", tuple(case.run(module) for case in chosen))
    assert report.passed and report.missing == ("assign", "split_flat") and len(report.skipped) == 3
    rows = [line.split(None, 4) for line in str(report).splitlines()]
    assert [row[4] for row in rows if row and row[0] in primitives] == [
        "passed, 1 skipped: no assign",
        "2 skipped: no split_flat, assign",
    ]
    assert str(report).endswith(f"no_assign: {len(chosen)} cases, 3 skipped: assign, split_flat; all passed")


def test_every_case_has_a_unique_name() -> None:
    names = [str(case) for case in conformance.cases()]
    assert len(set(names)) == len(names)


# --- Planted faults: NumPy's backend with one primitive wrong


def planted(primitive: str, fault: Any) -> ModuleType:
    module = module_of(numpy, f"planted_{primitive}")
    setattr(module, primitive, fault)
    return module


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules of a test are not kept among the loaded backends."""
    monkeypatch.setattr(selection, "_loaded", dict(selection._loaded))
    monkeypatch.setattr(selection, "_modules", dict(selection._modules))


def report_of(module: ModuleType, primitive: str) -> Report:
    """The report of the cases of one primitive."""
    return Report(module.name, tuple(case.run(module) for case in conformance.cases() if case.primitive == primitive))


def given(primitive: str, **changes: Any) -> tuple[str, Callable[..., Any]]:
    """NumPy's primitive, with some of its arguments changed: by a function of the argument, or to another value."""
    function, signature = getattr(numpy, primitive), inspect.signature(getattr(Backend, primitive))

    def wrong(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(None, *args, **kwargs)  # None is self
        bound.apply_defaults()
        for name, change in changes.items():
            bound.arguments[name] = change(bound.arguments[name]) if callable(change) else change
        return function(*bound.args[1:], **bound.kwargs)

    return primitive, wrong


def gives(primitive: str, change: Callable[..., Any], place: int | None = None) -> tuple[str, Callable[..., Any]]:
    """NumPy's primitive with its result changed, or one of its results."""
    function = getattr(numpy, primitive)

    def wrong(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return change(result) if place is None else (*result[:place], change(result[place]), *result[place + 1 :])

    return primitive, wrong


def add_wider(a: Array, b: Array) -> Array:
    out = np.add(a, b)
    return out.astype("float64") if out.dtype == "float32" else out


def exp_into_its_operand(a: Array) -> Array:
    return np.exp(a, out=a) if a.flags.writeable else np.exp(a)


def argmax_last_of_several(a: Array, *, axis: int | None = None, keepdims: bool = False) -> Array:
    n = 1 if a.ndim == 0 else a.size if axis is None else a.shape[axis]
    flipped = np.flip(a, axis) if a.ndim else a
    return np.asarray(n - 1 - np.argmax(flipped, axis, keepdims=keepdims))


def transpose_without_strides(a: Array, axes: Any = None) -> Array:
    return np.array(a, order="C").reshape(np.transpose(a, axes).shape)


def getitem_backward_without_repeats(g: Array, index: Any, shape: tuple[int, ...]) -> Array:
    out = np.zeros(shape, g.dtype)
    out[index] = g
    return out


def embedding_backward_without_repeats(g: Array, ids: Array, n_rows: int) -> Array:
    out = np.zeros((n_rows, g.shape[-1]), g.dtype)
    out[ids] = g
    return out


def embedding_backward_in_any_order(g: Array, ids: Array, n_rows: int) -> Array:
    order = _shuffled.permutation(ids.size)
    out = np.zeros((n_rows, g.shape[-1]), g.dtype)
    np.add.at(out, ids.ravel()[order], g.reshape(ids.size, g.shape[-1])[order])
    return out


_shuffled = np.random.default_rng(0)
_draws = itertools.count()


def ids_that_are_not_copied(ids: Any, upper: int, op: str) -> Array:
    checked = numpy.check_ids(ids, upper, op)
    return ids if isinstance(ids, np.ndarray) and ids.dtype == checked.dtype else checked


def prepare_index_that_wraps(index: Any, shape: tuple[int, ...]) -> Any:
    prepared = numpy.prepare_index(index, shape)
    return tuple(part % 2 if getattr(part, "dtype", None) == "int64" else part for part in prepared)


def layer_norm_that_cancels(x: Array, gamma: Any, beta: Any, eps: float) -> Any:
    mean = x.mean(-1, keepdims=True)
    variance = (x * x).mean(-1, keepdims=True) - mean * mean
    rstd = (1 / np.sqrt(np.maximum(variance, 0) + eps)).astype(x.dtype)
    return (x - mean) * rstd * (1 if gamma is None else gamma) + (0 if beta is None else beta), mean, rstd


def layer_norm_backward_without_centring(g: Array, x: Array, gamma: Any, mean: Array, rstd: Array, needs: Any) -> Any:
    _, *others = numpy.layer_norm_backward(g, x, gamma, mean, rstd, needs)
    return (g if gamma is None else g * gamma) * rstd, *others


def attention_of_nan_where_all_is_hidden(*args: Any) -> Any:
    out, log_sum = numpy.attention(*args)
    return np.where(np.isinf(log_sum), np.nan, out).astype(out.dtype), log_sum


def sgd_step_in_half(p: Array, g: Array, velocity: Array | None, rates: Array, clip: Array | None, *rest: Any) -> Any:
    return numpy.sgd_step(p, g if clip is None else g * clip.astype(g.dtype), velocity, rates, None, *rest)


def adam_step_in_half(
    p: Array, g: Array, m: Array, v: Array, rates: Array, clip: Array | None, beta1: float, beta2: float, eps: float,
    *rest: Any,
) -> Any:  # fmt: skip
    if g.dtype == p.dtype:
        return numpy.adam_step(p, g, m, v, rates, clip, beta1, beta2, eps, *rest)
    m = beta1 * m + (1 - beta1) * g.astype(p.dtype)
    v = beta2 * v + (1 - beta2) * (g * g).astype(p.dtype)
    return p - rates[0] * m / (np.sqrt(v) / rates[1] + eps), m, v, None


def clip_scale_in_half(grads: Sequence[Array], max_norm: float) -> Any:
    wide = np.float32 if grads[0].dtype.itemsize == 2 else grads[0].dtype
    norm = np.sqrt(np.asarray(sum((np.sum(g * g) for g in grads), np.zeros((), grads[0].dtype)))).astype(wide)
    return norm, np.asarray(np.minimum(max_norm / (norm + 1e-6), 1.0), wide)


def adam_step_of_the_first(p: Array, g: Array, m: Array, v: Array, rates: Array, *others: Any) -> Any:
    rate = rates * 0 + np.array([0.1 / (1 - 0.9), (1 - 0.99) ** 0.5, 0.01], rates.dtype)
    return numpy.adam_step(p, g, m, v, rate, *others)


def sgd_step_that_returns_the_old(p: Array, *args: Any) -> Any:
    _, velocity = numpy.sgd_step(p.copy(), *args)
    return p, velocity


def adam_step_that_returns_the_old_mean(p: Array, g: Array, m: Array, *args: Any) -> Any:
    p, _, v, low = numpy.adam_step(p, g, m.copy(), *args)
    return p, m, v, low


def halved(gradient: Any) -> Any:
    return None if gradient is None else gradient / 2


def negated(gradient: Any) -> Any:
    return None if gradient is None else -gradient


FAULTS: dict[str, tuple[str, Any]] = {
    # In and out
    "lists are arrays": ("is_array", lambda x: isinstance(x, (np.ndarray, list))),
    "no float32": ("float_dtypes", lambda: ("float64",)),
    "strings are parsed": ("asarray", np.asarray),
    "a copy that is not needed": gives("asarray", np.copy),
    "the copy is the array": ("copy", lambda a: a),
    "a scalar instead of a copy": gives("copy", lambda a: a[()]),
    "a scalar instead of an array": gives("asarray", lambda a: a[()]),
    "a name that is not a string": ("name", 3),
    "a dtype's name": ("dtype", lambda a: a.dtype.name),
    "float64 for every float": ("dtype", lambda a: np.dtype("float64") if a.dtype.kind == "f" else a.dtype),
    "int32 numbers": gives("arange", lambda a: a.astype("int32")),
    "the host's copy is a view": ("to_host", np.asarray),
    "a copy where memory is shared": gives("from_dlpack", np.copy),
    "memory that is not zero": ("zeros", lambda shape, dtype: np.ones(shape, dtype)),
    "the dtype is left out": given("full", dtype="float64"),
    "rounded, not truncated": ("astype", lambda a, dtype: (np.round(a) if dtype == "int64" else a).astype(dtype)),
    "a generator with a state": given("normal", seed=lambda seed: next(_draws)),
    "the seed is left out": given("normal", seed=0),
    "the counter's upper half is left out": given("uniform", key=lambda key: key * np.array([1, 1, 0, 1], np.uint64)),
    "from the first on": given("uniform", key=lambda key: key * np.array([1, 1, 1, 0], np.uint64)),
    "float64 whatever the dtype": given("uniform", dtype="float64"),
    "unchecked ids": ("check_ids", lambda ids, upper, op: np.asarray(ids, np.int64)),
    "ids that are not copied": ("check_ids", ids_that_are_not_copied),
    "an error that names no op": given("check_ids", op="indexing"),
    "ignored targets are valid": gives("check_targets", lambda counted: None, 1),
    "valid targets are changed": gives("check_targets", lambda ids: ids * 0, 0),
    # Elementwise
    "float32 becomes float64": ("add", add_wider),
    "a Python number widens": given("multiply", b=lambda b: np.float64(b) if type(b) is float else b),
    "a Python float instead of an array": ("sqrt", lambda a: np.sqrt(a) if a.ndim else float(np.sqrt(a))),
    "nan loses, elementwise": ("maximum", np.fmax),
    "nan equals nan": ("equal", lambda a, b: np.equal(a, b) | (np.not_equal(a, a) & np.not_equal(b, b))),
    "equal is less": ("less", np.less_equal),
    "integers instead of bools": gives("greater", lambda out: out.astype("int8")),
    "zero times what is not selected": ("where", lambda condition, a, b: condition * a + (1 - condition) * b),
    "no negative zero": ("negative", lambda a: 0 - a),
    "written into its operand": ("exp", exp_into_its_operand),
    "good to 1e-7 only": ("erf", lambda a: numpy.erf(a.astype("float32")).astype(a.dtype)),
    "values that are not selected": ("where", lambda condition, a, b: np.where(condition, b, a)),
    "overflow of e^-a": ("sigmoid", lambda a: np.exp(a) / (1 + np.exp(a))),
    "nan loses in relu": ("relu", lambda a: np.fmax(a, 0).astype(a.dtype)),
    "the slope of leaky ReLU": ("relu", lambda a: np.where(a > 0, a, a * a.dtype.type(0.01))),
    "the lower bound wins": ("clip", lambda a, low, high: numpy.clip(numpy.clip(a, None, high), low, None)),
    "no upper bound": given("clip", high=None),
    # Reductions
    "the wrong last axis": given("sum", axis=lambda axis: 0 if axis == -1 else axis),
    "axes are not kept": given("sum", keepdims=False),
    "nan loses": ("max", lambda a, *, axis=None, keepdims=False: np.fmax.reduce(a, axis, keepdims=keepdims)),
    "the largest": ("min", np.max),
    "the last of several": ("argmax", argmax_last_of_several),
    "int32 places": gives("argmax", lambda places: places.astype("int32")),
    # Shapes and indices
    "Fortran's order": ("reshape", lambda a, shape: np.reshape(a, shape, order="F")),
    "the axes are left out": given("transpose", axes=None),
    "strides are left out": ("transpose", transpose_without_strides),
    "joined along the first axis": given("concatenate", axis=0),
    "two axes at the first": ("expand_dims", lambda a, axis: np.expand_dims(a, axis if type(axis) is int else (0, 1))),
    "a row of elements": ("broadcast_to", lambda a, shape: np.broadcast_to(a.ravel()[:1], shape)),
    "without the last index": ("getitem", lambda a, index: a[index[:1]]),
    "indices wrap in silence": ("prepare_index", prepare_index_that_wraps),
    "repeats are lost": ("getitem_backward", getitem_backward_without_repeats),
    # Products and fused primitives
    "a product of rows keeps an axis": gives("matmul", np.atleast_1d),
    "no bias": given("linear", bias=None),
    "a level it does not know": ("set_matmul_precision", lambda level: {"highest": 1}[level]),
    "a gradient is left out": gives("linear_backward", lambda g: None, 1),
    "tanh's approximation": given("gelu", approximate="tanh"),
    "the wrong derivative": gives("gelu_backward", negated),
    "the wrong slope": given("leaky_relu", alpha=0.02),
    "half the gradient": gives("leaky_relu_backward", halved),
    "the wrong axis": given("softmax", axis=-1),
    "a gradient along the wrong axis": given("softmax_backward", axis=0),
    "overflow": ("log_softmax", lambda a, axis: a - np.log(np.sum(np.exp(a), axis, keepdims=True))),
    "a sum is left out": ("log_softmax_backward", lambda g, y, axis: g - np.exp(y)),
    "the variance cancels": ("layer_norm", layer_norm_that_cancels),
    "eps is left out": given("layer_norm", eps=0.0),
    "no gradient of centring": ("layer_norm_backward", layer_norm_backward_without_centring),
    "the wrong rows": given("embedding", ids=lambda ids: ids[..., ::-1] if ids.ndim else ids),
    "repeated ids are lost": ("embedding_backward", embedding_backward_without_repeats),
    "other bits every time": ("embedding_backward", embedding_backward_in_any_order),
    "all rows are valid": given("cross_entropy", valid=None),
    "no class is excluded": given("cross_entropy", excluded_class=None),
    "the mean is over all rows": given("cross_entropy_backward", valid=None),
    "the mask is left out": given("attention", mask=None),
    "one key too far": given("attention", offset=lambda offset: offset + 1),
    "nan where all is hidden": ("attention", attention_of_nan_where_all_is_hidden),
    "the wrong sign": gives("attention_backward", negated, 1),
    "the mask is left out of the gradient": given("attention_backward", mask=None),
    # In place
    "the old parameter is returned": ("sgd_step", sgd_step_that_returns_the_old),
    "the old mean is returned": ("adam_step", adam_step_that_returns_the_old_mean),
    "nothing is returned": gives("adam_step", lambda results: None),
    "no velocity": gives("sgd_step", lambda velocity: None, 1),
    "nesterov is left out": given("sgd_step", nesterov=False),
    "the rate of the first step": ("adam_step", adam_step_of_the_first),
    "not clipped": given("adam_step", clip=None),
    "no rounded copy": given("adam_step", low=None),
    "low in another dtype": gives("adam_step", lambda low: None if low is None else low.astype("float32"), 3),
    "never scaled up": gives("clip_scale", lambda scale: scale * 0 + 1, 1),
    "momentum in half precision": ("sgd_step", sgd_step_in_half),
    "squares in half precision": ("adam_step", adam_step_in_half),
    "a sum in half precision": ("clip_scale", clip_scale_in_half),
    # Side by side, and replayed
    "not written into": given("assign", target=np.copy),
    "copies instead of views": ("split_flat", lambda flat, shapes: [a.copy() for a in numpy.split_flat(flat, shapes)]),
    "numbers in the default dtype": ("host_scalars", lambda values, dtype: np.array(values)),
    "numbers that stay": ("update_scalars", lambda target, values: None),
    "run while it is recorded": ("capture", lambda work: (work(), work)[1]),
    "recorded, not replayed": ("capture", lambda work: lambda: None),
    "parts in another order": ("split_flat", lambda flat, shapes: numpy.split_flat(flat[::-1], shapes)),
    "an error that says nothing": ("capture", lambda work: exec("raise RuntimeError")),
    "decoupled without being asked": given("adam_step", decoupled=True),
}  # fmt: skip


def off_by_one(primitive: str) -> tuple[str, Callable[..., Any]]:
    """A fault for every elementwise primitive, those that are added to the contract included."""
    return gives(primitive, lambda out: np.logical_not(out) if out.dtype == "bool" else out + out.dtype.type(1))


FAULTS.update({f"{primitive} is off by one": off_by_one(primitive) for primitive in ELEMENTWISE})


def test_every_primitive_has_a_planted_fault() -> None:
    """But require_usable: a backend on which it raises is not loaded."""
    assert {primitive for primitive, _ in FAULTS.values()} == set(PRIMITIVES) - {"require_usable"}


@once
@pytest.mark.parametrize("what", FAULTS)
def test_a_planted_fault_is_found(what: str) -> None:
    primitive, fault = FAULTS[what]
    report = report_of(planted(primitive, fault), primitive)
    assert report.failed_primitives == (primitive,)
    row, *_ = [line for line in str(report).splitlines() if line.startswith(f"{primitive} ")]
    assert f"  {len(report.failures)} FAILED" in row
    for failure in report.failures:
        assert f"FAILED  {primitive}: {failure.case.title}" in str(report)
        assert failure.called and failure.expected and failure.got


@once
@pytest.mark.parametrize("what", [what for what, (primitive, _) in FAULTS.items() if primitive in CORE])
def test_a_planted_fault_in_a_core_backend_is_found(what: str) -> None:
    """There the formulas compute with the wrong primitive too."""
    primitive, fault = FAULTS[what]
    by_writing = {"assign": numpy.assign} if what in ("a copy that is not needed", "the copy is the array") else {}
    module = core_module(f"core_{primitive}", **{primitive: fault}, **by_writing)
    assert report_of(module, primitive).failed_primitives == (primitive,)


@once
@pytest.mark.parametrize("what", ["nan loses", "not clipped", "repeats are lost", "overflow"])
def test_a_planted_fault_is_blamed_on_no_other_primitive(what: str) -> None:
    primitive, fault = FAULTS[what]
    assert conformance.check(planted(primitive, fault)).failed_primitives == (primitive,)


def test_a_capture_that_runs_the_work_at_each_replay_passes() -> None:
    assert report_of(planted("capture", lambda work: work), "capture").passed


def test_a_failure_says_what_was_called_expected_and_given() -> None:
    (failure,) = [
        outcome
        for outcome in report_of(planted(*FAULTS["nan loses"]), "max").failures
        if outcome.case.title == "nan at 1 wins, float32"
    ]
    assert failure.called == "max(float32 (2, 3) [[1.0, nan, 3.0], [3.0, nan, 1.0]], axis=1)"
    assert failure.expected == "np.float32(nan) at (0,)"
    assert failure.got == "np.float32(3.0); 2 of 2 elements differ"


@pytest.mark.parametrize(
    ("primitive", "gradient"),
    [
        ("softmax_backward", lambda g, y, axis: g * y),
        ("cross_entropy_backward", lambda g, probs, ids, valid: probs * g),
        ("gelu_backward", lambda g, saved, approximate: np.zeros_like(g)),
    ],
)
def test_finite_differences_find_a_fault_that_the_reference_shares(
    primitive: str, gradient: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A core backend and the reference have the same formulas."""
    monkeypatch.setattr(reference, primitive, gradient)
    module = core_module("wrong_formula", **{primitive: gradient})
    titles = [outcome.case.title for outcome in report_of(module, primitive).failures]
    assert titles
    assert all(title.endswith("finite differences") for title in titles)


# --- The command line

RIGHT = "tests.counting_backend"
BORROW = "from russellgrad.backends.numpy_backend import *\nfrom russellgrad.backends import numpy_backend\n"
WRONG = BORROW + "name = 'wrong'\ndef exp(a, /):\n    return numpy_backend.exp(a) + 1\n"
UNUSABLE = BORROW + "name = 'unusable'\ndef require_usable():\n    raise RuntimeError('no such device')\n"
BROKEN = "import no_such_library\n"
HALF = "from russellgrad.backends.numpy_backend import exp, log\nname = 'half'\n"


@once
def test_the_command_line_on_a_third_partys_backend() -> None:
    done = run_python("-m", "russellgrad.conformance", RIGHT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"counting: {len(conformance.cases())} cases, 1 skipped: capture; all passed"


@once
def test_the_command_line_on_a_wrong_one(tmp_path: Path) -> None:
    (tmp_path / "wrong_backend.py").write_text(WRONG)
    done = run_python("-m", "russellgrad.conformance", "wrong_backend", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2  # no dot: it might be the name of an entry point
    (tmp_path / "party").mkdir()
    (tmp_path / "party" / "wrong_backend.py").write_text(WRONG)
    done = run_python("-m", "russellgrad.conformance", "party.wrong_backend", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED  exp: random, float32" in done.stdout
    assert done.stdout.splitlines()[-1].endswith(" failed: exp, sigmoid")  # sigmoid is a formula there


@once
@pytest.mark.parametrize(
    ("source", "message"),
    [
        (UNUSABLE, "RuntimeError: no such device"),
        (BROKEN, "ModuleNotFoundError: No module named 'no_such_library'"),
        (HALF, "TypeError: backend 'party.bad': module party.bad lacks float_dtypes, is_array"),
        (None, "ValueError: unknown backend 'party.bad'"),
    ],
    ids=["unusable", "broken", "names missing", "unknown"],
)
def test_the_command_line_on_what_cannot_be_used(source: str | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "party").mkdir()
    if source is not None:
        (tmp_path / "party" / "bad.py").write_text(source)
    done = run_python("-m", "russellgrad.conformance", "party.bad", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith(f"cannot use backend 'party.bad': {message}")
    assert "Traceback" not in done.stderr
