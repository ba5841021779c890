"""The conformance suite on every backend, and on backends with planted faults, each of which it must find.

The command line is tested on third-party backends: a correct one, a wrong one, and some that cannot be loaded.
"""

import contextvars
import inspect
import itertools
import math
import unittest
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from russellgrad import backend as selection
from russellgrad import conformance, no_grad
from russellgrad.backend import CORE, ELEMENTWISE, PRIMITIVES, Backend, load_backend
from russellgrad.backends import host  # type: ignore[attr-defined]
from russellgrad.conformance import Report
from russellgrad.conformance.primitives import OF_BOOLS, n_operands
from russellgrad.conformance.trial import reference
from tests.core_backend import core_module
from tests.helpers import Array, module_of, once
from tests.process import run_python

numpy: Any = load_backend("numpy")


@pytest.mark.parametrize("case", conformance.cases(), ids=str)
def test_conformance_case(backend: Backend, case: conformance.Case) -> None:
    case.check(backend)


@pytest.mark.parametrize("recording", [True, False], ids=["recorded", "no_grad"])
@pytest.mark.parametrize("primitive", [*PRIMITIVES, "Tensor"])
def test_conformance_of_tensors_as_arrays(backend: Backend, primitive: str, recording: bool) -> None:
    """On the backend "tensor" over each backend: recorded, with the formulas, or in no_grad, with fused primitives."""
    tensors = load_backend("tensor" if backend.name == "numpy" else f"tensor:{backend.name}")
    cases = [case for case in conformance.cases() if case.primitive == primitive]
    if not recording:  # these two need gradients
        cases = [case for case in cases if case.primitive != "Tensor" or case.title == "two backends never mix"]
    with nullcontext() if recording else no_grad():
        report = Report(tensors.name, tuple(case.run(tensors) for case in cases))
    assert cases and not report.failures, "\n".join(map(str, report.failures))


def test_every_primitive_has_a_case() -> None:
    assert {case.primitive for case in conformance.cases()} == {*PRIMITIVES, "Tensor"}


@pytest.mark.parametrize("n", [1, 2])
def test_the_cases_of_an_elementwise_primitive_follow_from_the_contract(n: int) -> None:
    """A new elementwise primitive in the contract gets the same cases as the existing ones."""
    titles = {
        primitive: {case.title for case in conformance.cases() if case.primitive == primitive}
        for primitive in ELEMENTWISE
        if n_operands(primitive) == n and primitive not in OF_BOOLS
    }
    common = set.intersection(*titles.values())
    assert len(titles) > 8 and len(common) == {1: 20, 2: 70}[n]
    assert {"random, float32", "random, float64", "positive, no axes, float32", "empty, float64"} <= common


def test_a_case_that_needs_a_missing_primitive_is_skipped_with_the_reason() -> None:
    (case,) = [case for case in conformance.cases() if case.primitive == "copy" and case.needs]
    outcome = case.run(core_module("no_assign"))
    assert (outcome.skipped, outcome.passed, outcome.failed, outcome.missing) == (True, False, False, ("assign",))
    assert str(outcome) == "skipped  copy: shares no memory: no assign"
    with pytest.raises(unittest.SkipTest, match="copy: shares no memory: the backend has no assign"):
        case.check(core_module("no_assign_either"))


def test_the_report_counts_skipped_cases_separately() -> None:
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


# --- Planted faults: the NumPy backend with one wrong primitive


def planted(primitive: str, fault: Any) -> ModuleType:
    module = module_of(numpy, f"planted_{primitive}")
    setattr(module, primitive, fault)
    return module


@pytest.fixture(autouse=True)
def _reset_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the loaded backends after each test."""
    monkeypatch.setattr(selection, "_loaded", dict(selection._loaded))
    monkeypatch.setattr(selection, "_modules", dict(selection._modules))


def report_of(module: ModuleType, primitive: str) -> Report:
    """Run the cases of one primitive on a module and report them."""
    return Report(module.name, tuple(case.run(module) for case in conformance.cases() if case.primitive == primitive))


def given(primitive: str, **changes: Any) -> tuple[str, Callable[..., Any]]:
    """NumPy's primitive with arguments changed: a callable maps the argument, any other value replaces it."""
    function, signature = getattr(numpy, primitive), inspect.signature(getattr(Backend, primitive))

    def wrong(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(None, *args, **kwargs)  # None is self
        bound.apply_defaults()
        for name, change in changes.items():
            bound.arguments[name] = change(bound.arguments[name]) if callable(change) else change
        return function(*bound.args[1:], **bound.kwargs)

    return primitive, wrong


def gives(primitive: str, change: Callable[..., Any], place: int | None = None) -> tuple[str, Callable[..., Any]]:
    """NumPy's primitive with `change` applied to its result, or to result number `place` of a tuple."""
    function = getattr(numpy, primitive)

    def wrong(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return change(result) if place is None else (*result[:place], change(result[place]), *result[place + 1 :])

    return primitive, wrong


def add_wider(a: Array, b: Array) -> Array:
    out = np.add(a, b)
    return out.astype("float64") if out.dtype == "float32" else out


def exp_into_operand(a: Array) -> Array:
    return np.exp(a, out=a) if a.flags.writeable else np.exp(a)


def argmax_of_last_maximum(a: Array, *, axis: int | None = None, keepdims: bool = False) -> Array:
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


def embedding_backward_in_random_order(g: Array, ids: Array, n_rows: int) -> Array:
    order = _shuffled.permutation(ids.size)
    out = np.zeros((n_rows, g.shape[-1]), g.dtype)
    np.add.at(out, ids.ravel()[order], g.reshape(ids.size, g.shape[-1])[order])
    return out


_shuffled = np.random.default_rng(0)
_draws = itertools.count()


def check_ids_without_copy(ids: Any, upper: int, op: str) -> Array:
    checked = numpy.check_ids(ids, upper, op)
    return ids if isinstance(ids, np.ndarray) and ids.dtype == checked.dtype else checked


def prepare_index_modulo(index: Any, shape: tuple[int, ...]) -> Any:
    prepared = numpy.prepare_index(index, shape)
    return tuple(part % 2 if getattr(part, "dtype", None) == "int64" else part for part in prepared)


def layer_norm_with_cancellation(x: Array, gamma: Any, beta: Any, eps: float) -> Any:
    mean = x.mean(-1, keepdims=True)
    variance = (x * x).mean(-1, keepdims=True) - mean * mean
    rstd = (1 / np.sqrt(np.maximum(variance, 0) + eps)).astype(x.dtype)
    return (x - mean) * rstd * (1 if gamma is None else gamma) + (0 if beta is None else beta), mean, rstd


def layer_norm_backward_without_centering(g: Array, x: Array, gamma: Any, mean: Array, rstd: Array, needs: Any) -> Any:
    _, *others = numpy.layer_norm_backward(g, x, gamma, mean, rstd, needs)
    return (g if gamma is None else g * gamma) * rstd, *others


def attention_with_nan_for_masked_queries(*args: Any) -> Any:
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


def adam_step_with_first_correction(p: Array, g: Array, m: Array, v: Array, rates: Array, *others: Any) -> Any:
    rate = rates * 0 + np.array([0.1 / (1 - 0.9), (1 - 0.99) ** 0.5, 0.01], rates.dtype)
    return numpy.adam_step(p, g, m, v, rate, *others)


def sgd_step_returning_old_parameter(p: Array, *args: Any) -> Any:
    _, velocity = numpy.sgd_step(p.copy(), *args)
    return p, velocity


def adam_step_returning_old_moment(p: Array, g: Array, m: Array, *args: Any) -> Any:
    p, _, v, low = numpy.adam_step(p, g, m.copy(), *args)
    return p, m, v, low


def halved(gradient: Any) -> Any:
    return None if gradient is None else gradient / 2


def negated(gradient: Any) -> Any:
    return None if gradient is None else -gradient


def last_maximum(x: Array, *sizes: Any) -> Array:
    """The windows of x backwards have the last maximum first, if the padding is the same on both sides."""
    kernel, stride, padding, _ = sizes
    if any(before or after for before, after in padding) or set(stride) != {1}:
        return numpy.max_pool_indices(x, *sizes)
    backwards = x[(..., *(slice(None, None, -1),) * len(kernel))]
    found = numpy.max_pool_indices(np.ascontiguousarray(backwards), *sizes)
    n = math.prod(x.shape[2:])
    return (found // max(n, 1) * n + n - 1 - found % max(n, 1))[(..., *(slice(None, None, -1),) * len(kernel))]


def maximum_of_zeros(x: Array, *sizes: Any) -> Array:
    """Where x is below 0, the first element of the window, as if padding could be the maximum."""
    found = numpy.max_pool_indices(x, *sizes)
    return np.where(x.reshape(-1)[found] < 0, 0, found)


def quiet(task: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        with suppress(KeyError):
            task()

    return call


FAULTS: dict[str, tuple[str, Any]] = {
    # Arrays and dtypes, random numbers, ids
    "lists count as arrays": ("is_array", lambda x: isinstance(x, (np.ndarray, list))),
    "no float32": ("float_dtypes", lambda: ("float64",)),
    "strings are parsed": ("asarray", np.asarray),
    "asarray always copies": gives("asarray", np.copy),
    "copy returns its operand": ("copy", lambda a: a),
    "copy returns a scalar": gives("copy", lambda a: a[()]),
    "asarray returns a scalar": gives("asarray", lambda a: a[()]),
    "dtype returns a string": ("dtype", lambda a: a.dtype.name),
    "dtype is float64 for every float": ("dtype", lambda a: np.dtype("float64") if a.dtype.kind == "f" else a.dtype),
    "arange returns int32": gives("arange", lambda a: a.astype("int32")),
    "to_host returns a view": ("to_host", np.asarray),
    "from_dlpack copies": gives("from_dlpack", np.copy),
    "zeros returns ones": ("zeros", lambda shape, dtype: np.ones(shape, dtype)),
    "full ignores dtype": given("full", dtype="float64"),
    "astype rounds to integers": ("astype", lambda a, dtype: (np.round(a) if dtype == "int64" else a).astype(dtype)),
    "normal keeps state": given("normal", seed=lambda seed: next(_draws)),
    "normal ignores the seed": given("normal", seed=0),
    "uniform ignores key[2]": given("uniform", key=lambda key: key * np.array([1, 1, 0, 1], np.uint64)),
    "uniform ignores key[3]": given("uniform", key=lambda key: key * np.array([1, 1, 1, 0], np.uint64)),
    "dropout_mask is not scaled": gives("dropout_mask", lambda a: (a != 0).astype(a.dtype)),
    "uniform ignores dtype": given("uniform", dtype="float64"),
    "ids are not checked": ("check_ids", lambda ids, upper, op: np.asarray(ids, np.int64)),
    "ids are not copied": ("check_ids", check_ids_without_copy),
    "the error names another op": given("check_ids", op="indexing"),
    "ignored targets count as valid": gives("check_targets", lambda counted: None, 1),
    "valid targets are overwritten": gives("check_targets", lambda ids: ids * 0, 0),
    # Elementwise
    "float32 becomes float64": ("add", add_wider),
    "a Python float widens float32": given("multiply", b=lambda b: np.float64(b) if type(b) is float else b),
    "sqrt of a 0-d array returns a Python float": ("sqrt", lambda a: np.sqrt(a) if a.ndim else float(np.sqrt(a))),
    "maximum ignores nan": ("maximum", np.fmax),
    "nan equals nan": ("equal", lambda a, b: np.equal(a, b) | (np.not_equal(a, a) & np.not_equal(b, b))),
    "less includes equality": ("less", np.less_equal),
    "greater returns integers": gives("greater", lambda out: out.astype("int8")),
    "where multiplies by the condition": ("where", lambda condition, a, b: condition * a + (1 - condition) * b),
    "negative of 0.0 is 0.0": ("negative", lambda a: 0 - a),
    "exp writes into its operand": ("exp", exp_into_operand),
    "erf has float32 precision": ("erf", lambda a: numpy.erf(a.astype("float32")).astype(a.dtype)),
    "where selects the other operand": ("where", lambda condition, a, b: np.where(condition, b, a)),
    "sigmoid overflows": ("sigmoid", lambda a: np.exp(a) / (1 + np.exp(a))),
    "relu ignores nan": ("relu", lambda a: np.fmax(a, 0).astype(a.dtype)),
    "relu is leaky": ("relu", lambda a: np.where(a > 0, a, a * a.dtype.type(0.01))),
    "clip applies low last": ("clip", lambda a, low, high: numpy.clip(numpy.clip(a, None, high), low, None)),
    "clip ignores the upper bound": given("clip", high=None),
    # Reductions
    "axis -1 is axis 0": given("sum", axis=lambda axis: 0 if axis == -1 else axis),
    "keepdims is ignored": given("sum", keepdims=False),
    "max ignores nan": ("max", lambda a, *, axis=None, keepdims=False: np.fmax.reduce(a, axis, keepdims=keepdims)),
    "min returns the maximum": ("min", np.max),
    "argmax returns the last of several maxima": ("argmax", argmax_of_last_maximum),
    "argmax returns int32": gives("argmax", lambda places: places.astype("int32")),
    "argsort puts the last of equal elements first": (
        "argsort", lambda a, axis: a.shape[axis] - 1 - np.argsort(np.flip(a, axis), axis, kind="stable"),
    ),
    "argsort ignores axis": given("argsort", axis=-1),
    "argsort returns int32": gives("argsort", lambda places: places.astype("int32")),
    "cumsum adds float32 one by one": (
        "cumsum", lambda a, axis: np.cumsum(a, axis, a.dtype if a.dtype.kind == "f" else "int64"),
    ),
    "cumsum ignores axis": given("cumsum", axis=0),
    # Shapes and indices
    "reshape uses Fortran order": ("reshape", lambda a, shape: np.reshape(a, shape, order="F")),
    "transpose ignores axes": given("transpose", axes=None),
    "transpose does not move elements": ("transpose", transpose_without_strides),
    "concatenate ignores axis": given("concatenate", axis=0),
    "expand_dims at 0 and 1": ("expand_dims", lambda a, axis: np.expand_dims(a, axis if type(axis) is int else (0, 1))),
    "broadcast_to repeats the first element": ("broadcast_to", lambda a, shape: np.broadcast_to(a.ravel()[:1], shape)),
    "getitem ignores all but the first index": ("getitem", lambda a, index: a[index[:1]]),
    "out-of-range indices wrap": ("prepare_index", prepare_index_modulo),
    "getitem_backward ignores repeated indices": ("getitem_backward", getitem_backward_without_repeats),
    "getitem_backward sums integers as floats": (
        "getitem_backward", lambda g, *rest: numpy.getitem_backward(g.astype("float64"), *rest).astype(g.dtype),
    ),
    # Products and fused primitives
    "matmul of vectors is 1-d": gives("matmul", np.atleast_1d),
    "linear ignores the bias": given("linear", bias=None),
    "a precision level raises": ("set_matmul_precision", lambda level: {"highest": 1}[level]),
    "the weight gradient is missing": gives("linear_backward", lambda g: None, 1),
    "conv ignores the dilation": given("conv", dilation=lambda dilation: (1,) * len(dilation)),
    "conv_backward sums no gradient of the bias": gives("conv_backward", lambda g: None, 2),
    "the gradient of conv's weight is halved": gives("conv_backward", halved, 1),
    "max pooling takes the last maximum": ("max_pool_indices", last_maximum),
    "max pooling treats padding as 0": ("max_pool_indices", maximum_of_zeros),
    "gelu always uses the tanh approximation": given("gelu", approximate="tanh"),
    "gelu_backward has the wrong sign": gives("gelu_backward", negated),
    "gelu_value always uses the tanh approximation": given("gelu_value", approximate="tanh"),
    "leaky_relu has the wrong slope": given("leaky_relu", alpha=0.02),
    "leaky_relu_backward is halved": gives("leaky_relu_backward", halved),
    "softmax ignores axis": given("softmax", axis=-1),
    "softmax_backward ignores axis": given("softmax_backward", axis=0),
    "log_softmax overflows": ("log_softmax", lambda a, axis: a - np.log(np.sum(np.exp(a), axis, keepdims=True))),
    "log_softmax_backward omits the sum": ("log_softmax_backward", lambda g, y, axis: g - np.exp(y)),
    "the variance suffers from cancellation": ("layer_norm", layer_norm_with_cancellation),
    "layer_norm ignores eps": given("layer_norm", eps=0.0),
    "layer_norm_backward omits the centering terms": ("layer_norm_backward", layer_norm_backward_without_centering),
    "rms_norm ignores eps": given("rms_norm", eps=0.0),
    "rms_norm_backward is halved": gives("rms_norm_backward", halved, 0),
    "rms_norm_backward sums no gradient of gamma": gives("rms_norm_backward", lambda g: None, 1),
    "swiglu ignores up": ("swiglu", lambda gate, up: numpy.swiglu(gate, np.ones_like(up))),
    "swiglu_backward negates the gradient of up": gives("swiglu_backward", negated, 1),
    "rotary rotates the other way": given("rotary", sin=negated),
    "embedding reverses the ids": given("embedding", ids=lambda ids: ids[..., ::-1] if ids.ndim else ids),
    "embedding_backward ignores repeated ids": ("embedding_backward", embedding_backward_without_repeats),
    "embedding_backward is not deterministic": ("embedding_backward", embedding_backward_in_random_order),
    "cross_entropy ignores valid": given("cross_entropy", valid=None),
    "cross_entropy ignores excluded_class": given("cross_entropy", excluded_class=None),
    "cross_entropy_backward ignores valid": given("cross_entropy_backward", valid=None),
    "attention ignores the mask": given("attention", mask=None),
    "the causal mask is off by one": given("attention", offset=lambda offset: offset + 1),
    "attention has no dropout": given("attention", dropout=None),
    "attention_backward has no dropout": given("attention_backward", dropout=None),
    "attention returns nan for fully masked queries": ("attention", attention_with_nan_for_masked_queries),
    "attention_backward negates the gradient of k": gives("attention_backward", negated, 1),
    "attention_backward ignores the mask": given("attention_backward", mask=None),
    # Optimizer steps
    "sgd_step returns the old parameter": ("sgd_step", sgd_step_returning_old_parameter),
    "adam_step returns the old first moment": ("adam_step", adam_step_returning_old_moment),
    "adam_step returns None": gives("adam_step", lambda results: None),
    "sgd_step returns no velocity": gives("sgd_step", lambda velocity: None, 1),
    "sgd_step ignores nesterov": given("sgd_step", nesterov=False),
    "adam_step always uses the first bias correction": ("adam_step", adam_step_with_first_correction),
    "adam_step ignores the clip scale": given("adam_step", clip=None),
    "adam_step ignores p_half": given("adam_step", p_half=None),
    "low has another dtype": gives("adam_step", lambda low: None if low is None else low.astype("float32"), 3),
    "clip_scale returns 1": gives("clip_scale", lambda scale: scale * 0 + 1, 1),
    "sgd_step computes in half precision": ("sgd_step", sgd_step_in_half),
    "adam_step computes in half precision": ("adam_step", adam_step_in_half),
    "clip_scale computes in half precision": ("clip_scale", clip_scale_in_half),
    # Optional primitives
    "token_block returns its operand": ("token_block", lambda x, *rest: x),
    "assign writes into a copy": given("assign", target=np.copy),
    "split_flat copies": ("split_flat", lambda flat, shapes: [a.copy() for a in numpy.split_flat(flat, shapes)]),
    "host_scalars ignores dtype": ("host_scalars", lambda values, dtype: np.array(values)),
    "update_scalars does nothing": ("update_scalars", lambda target, values: None),
    "run_tasks calls no task": ("run_tasks", lambda tasks: None),
    "run_tasks loses an error": ("run_tasks", lambda tasks: numpy.run_tasks([*map(quiet, tasks)])),
    "run_tasks has an empty context": (
        "run_tasks", lambda tasks: [contextvars.Context().run(task) for task in tasks]),
    "n_threads is 0": ("n_threads", lambda: 0),
    "capture runs the work while recording": ("capture", lambda work: (work(), work)[1]),
    "replay does nothing": ("capture", lambda work: lambda: None),
    "split_flat reverses the elements": ("split_flat", lambda flat, shapes: numpy.split_flat(flat[::-1], shapes)),
    "capture raises an error without a message": ("capture", lambda work: exec("raise RuntimeError")),
    "adam_step always decouples weight decay": given("adam_step", decoupled=True),
}  # fmt: skip


def off_by_one(primitive: str) -> tuple[str, Callable[..., Any]]:
    """A fault for an elementwise primitive: it returns a result that is 1 too large, or inverted if boolean."""
    return gives(primitive, lambda out: np.logical_not(out) if out.dtype == "bool" else out + out.dtype.type(1))


FAULTS.update({f"{primitive} is off by one": off_by_one(primitive) for primitive in ELEMENTWISE})


def test_every_primitive_has_a_planted_fault() -> None:
    """Except those that the loader checks: a backend whose require_usable raises, or whose name is not a string."""
    assert {primitive for primitive, _ in FAULTS.values()} == set(PRIMITIVES) - {"require_usable", "name"}


@once
@pytest.mark.parametrize("title", FAULTS)
def test_a_planted_fault_is_found(title: str) -> None:
    primitive, fault = FAULTS[title]
    report = report_of(planted(primitive, fault), primitive)
    assert report.failed_primitives == (primitive,)
    row, *_ = [line for line in str(report).splitlines() if line.startswith(f"{primitive} ")]
    assert f"  {len(report.failures)} FAILED" in row
    for failure in report.failures:
        assert f"FAILED  {primitive}: {failure.case.title}" in str(report)
        assert failure.called and failure.expected and failure.got


@once
def test_the_tolerance_of_elementwise_primitives_is_relative_for_large_values() -> None:
    """e ** 3 is 20, so a relative error of 0.9e-12 exceeds the absolute tolerance of 1e-12."""
    for error, passes in ((3e-12, False), (0.9e-12, True)):
        report = report_of(planted(*gives("exp", lambda a, error=error: (a * (1 + error)).astype(a.dtype))), "exp")
        assert report.passed is passes
    largest = max(outcome.differences.get("float64", 0.0) for outcome in report.outcomes)
    assert largest == pytest.approx(0.9e-12, rel=1e-2)
    for wrong in (np.finfo("float64").max, np.nan, -np.inf):  # no value is near an infinite one
        infinite = gives("exp", lambda a, wrong=wrong: np.where(np.isposinf(a), np.asarray(wrong, a.dtype), a))
        assert not report_of(planted(*infinite), "exp").passed


@once
@pytest.mark.parametrize("title", [title for title, (primitive, _) in FAULTS.items() if primitive in CORE])
def test_a_planted_fault_in_a_core_backend_is_found(title: str) -> None:
    """In a core backend the formulas also use the wrong primitive."""
    primitive, fault = FAULTS[title]
    optional = {"assign": numpy.assign} if title in ("asarray always copies", "copy returns its operand") else {}
    module = core_module(f"core_{primitive}", **{primitive: fault}, **optional)
    assert report_of(module, primitive).failed_primitives == (primitive,)


@once
@pytest.mark.parametrize(
    "title",
    [
        "max ignores nan",
        "adam_step ignores the clip scale",
        "getitem_backward ignores repeated indices",
        "log_softmax overflows",
    ],
)
def test_a_planted_fault_fails_no_other_primitive(title: str) -> None:
    primitive, fault = FAULTS[title]
    assert conformance.check(planted(primitive, fault)).failed_primitives == (primitive,)


def for_half_and_number(primitive: str, side: str) -> tuple[str, Callable[..., Any], set[str]]:
    """A result in float32, or inverted if boolean, of float16 and a number on this side."""
    function = getattr(numpy, primitive)

    def wrong(*args: Any) -> Any:
        out, (a, b) = function(*args), args[-2:]
        half, number = (b, a) if side == "left" else (a, b)
        if getattr(half, "dtype", None) != np.float16 or isinstance(number, np.ndarray):
            return out
        return np.logical_not(out) if out.dtype == "bool" else out.astype("float32")

    return primitive, wrong, {f"half precision, a number on the {side}"}


def refuses(condition: Callable[[Any, list[Array]], bool]) -> Callable[..., Any]:
    """`getitem` that raises IndexError if `condition(a, the arrays in the index)`."""

    def getitem(a: Array, index: Any) -> Array:
        if condition(a, [part for part in index if isinstance(part, np.ndarray)]):
            raise IndexError("no elements")
        return a[index]

    return getitem


def empty_beside(kind: type) -> Callable[..., Any]:
    """`getitem` that refuses an array of no indices beside an int or a slice."""

    def getitem(a: Array, index: Any) -> Array:
        if len(index) > 1 and isinstance(index[0], kind) and getattr(index[1], "size", 1) == 0 and a.size:
            raise IndexError("no elements")
        return a[index]

    return getitem


def doubled_half(a: Array) -> Array:
    return a * 2 if a.dtype == "float16" else a


def rounded_float32(g: Any) -> Any:
    return g * np.float32(1 + 1e-6) if g is not None and g.dtype == "float32" else g


def one_by_one(a: Array, axis: int) -> Array:
    """The sum along an axis, which adds the elements one after the other in their dtype."""
    return np.take(np.cumsum(a, axis, dtype=a.dtype), [-1], axis)


def softmax_one_by_one(a: Array, axis: int) -> Array:
    if a.size == 0 or a.dtype == "float16":
        return numpy.softmax(a, axis)
    e = np.exp(a - np.max(a, axis, keepdims=True))
    return e / one_by_one(e, axis)


def log_softmax_one_by_one(a: Array, axis: int) -> Array:
    if a.size == 0 or a.dtype == "float16":
        return numpy.log_softmax(a, axis)
    z = a - np.max(a, axis, keepdims=True)
    return z - np.log(one_by_one(np.exp(z), axis))


def cross_entropy_one_by_one(logits: Array, ids: Array, valid: Any, excluded: Any) -> Any:
    if logits.shape[1] < 1000:
        return numpy.cross_entropy(logits, ids, valid, excluded)
    probs = softmax_one_by_one(logits, 1)
    return -np.mean(np.log(probs[np.arange(len(ids)), ids])), probs


def layer_norm_beside_the_first_element(x: Array, *args: Any) -> Any:
    if x.size == 0:
        return numpy.layer_norm(x, *args)
    y, mean, rstd = numpy.layer_norm(x - x[..., :1], *args)
    return y, mean + x[..., :1], rstd


def conv_backward_one_by_one(g: Array, *args: Any) -> Any:
    gx, gw, gb = numpy.conv_backward(g, *args)
    if gb is not None and len(g) and g.dtype != "float16":
        gb = one_by_one(g.sum(tuple(range(2, g.ndim))), 0)[0]
    return gx, gw, gb


LONG_ROWS = {"many elements along the first axis", "many elements along the last axis"}
NARROW_FAULTS: dict[str, tuple[str, Any, set[str]]] = {
    f"{primitive} widens float16 beside a number on the {side}": for_half_and_number(primitive, side)
    for primitive in (*(name for name in ELEMENTWISE if n_operands(name) == 2 and name not in OF_BOOLS), "where")
    for side in ("left", "right")
}
NARROW_FAULTS |= {
    "softmax adds one by one": ("softmax", softmax_one_by_one, LONG_ROWS),
    "log_softmax adds one by one": ("log_softmax", log_softmax_one_by_one, LONG_ROWS),
    "cross_entropy adds one by one": ("cross_entropy", cross_entropy_one_by_one, {"many classes"}),
    "layer_norm subtracts the first element": (
        "layer_norm", layer_norm_beside_the_first_element, {"a large first element"},
    ),
    "conv_backward adds the gradient of the bias one by one": (
        "conv_backward", conv_backward_one_by_one, {"many rows: the gradient of the bias"},
    ),
    "no index of an array without elements": (
        "getitem",
        refuses(lambda a, arrays: a.size == 0 and bool(arrays)),
        {f"of nothing, {index}" for index in ("a mask", "an empty list", "an empty list on a later axis",
                                              "two empty lists")},
    ),
    "no empty index on a later axis": ("getitem", empty_beside(slice), {"an empty list on a later axis"}),
    "no empty index beside an int": ("getitem", empty_beside(int), {"an int and an empty list"}),
    "no two empty indices": (
        "getitem", refuses(lambda a, arrays: a.size > 0 and [b.size for b in arrays] == [0, 0]), {"two empty lists"},
    ),
    "normal in float16 is doubled": (*gives("normal", doubled_half), {"half precision"}),
    "uniform in float16 is doubled": (*gives("uniform", doubled_half), {"half precision"}),
    "layer_norm_backward has a relative error of 1e-6": (
        *gives("layer_norm_backward", rounded_float32, 0), {"many rows"},
    ),
}  # fmt: skip


@once
@pytest.mark.parametrize("title", NARROW_FAULTS)
def test_a_fault_for_some_arguments_fails_their_cases_alone(title: str) -> None:
    """Without these cases the fault would not be found."""
    primitive, fault, expected = NARROW_FAULTS[title]
    failures = report_of(planted(primitive, fault), primitive).failures
    assert {outcome.case.title.removesuffix(", float64").removesuffix(", float32") for outcome in failures} == expected


# --- A backend without float64


def without_float64(name: str, **changes: Any) -> ModuleType:
    """A core backend of float16 and float32: it refuses to make arrays in float64."""

    def refusing(primitive: Callable[..., Array]) -> Callable[..., Array]:
        def made(*args: Any) -> Array:
            out = primitive(*args)
            if out.dtype == np.float64:
                raise TypeError("this device has no float64; use float32")
            return out

        return made

    makers = {primitive: refusing(getattr(numpy, primitive)) for primitive in ("asarray", "astype", "full")}
    return core_module(name, float_dtypes=lambda: ("float16", "float32"), **makers, **changes)


@once
@pytest.mark.filterwarnings("ignore:backend 'narrow' has no float64")
def test_without_float64_the_cases_of_float32_and_half_precision_run() -> None:
    report = conformance.check(without_float64("narrow"))
    assert report.passed, str(report)
    assert {dtype for outcome in report.outcomes for dtype in outcome.differences} == {"float32", "float16"}
    assert "float64" in report.missing
    skipped = [outcome.case.title for outcome in report.skipped if "float64" in outcome.missing]
    assert not [title for title in skipped if "half precision" in title]
    assert all("to float64" in title for title in skipped if title.endswith(", float32"))


WIDE_DRAWS: dict[str, Callable[..., Any]] = {
    "normal": lambda shape, seed, counter, dtype: host.normal(shape, seed, counter),
    "uniform": lambda shape, key, dtype: host.uniform(shape, int(key[0]), int(key[2]) << 64 | int(key[1]), int(key[3])),
}


@once
@pytest.mark.parametrize("primitive", WIDE_DRAWS)
def test_without_float64_a_draw_that_makes_a_float64_array_fails(primitive: str) -> None:
    """It is an error for a result in float32, and no reason to skip the case."""
    made = without_float64("narrow")
    module = without_float64(
        "narrow", **{primitive: lambda *args: made.astype(made.asarray(WIDE_DRAWS[primitive](*args)), args[-1])}
    )
    report = report_of(module, primitive)
    failed = {outcome.case.title for outcome in report.failures}
    assert {"seed 0, counter 0, float32", "half precision", "a function of seed and counter alone"} <= failed
    assert all(
        outcome.got.endswith("TypeError: this device has no float64; use float32") for outcome in report.failures
    )
    assert not any("float32" in outcome.case.title for outcome in report.skipped)


@once
def test_without_float64_half_precision_that_is_not_summed_in_float32_is_found() -> None:
    def total(a: Array, *, axis: Any = None, keepdims: bool = False) -> Array:
        return np.sum(a, axis=axis, keepdims=keepdims, dtype=a.dtype if a.dtype == "float16" else None)

    failed = {outcome.case.title for outcome in report_of(without_float64("narrow", sum=total), "sum").failures}
    assert "half precision is summed in float32: many rows" in failed


def test_differences_in_half_precision_have_a_column_of_their_own() -> None:
    report = report_of(planted(*gives("sum", lambda a: a)), "sum")
    in_half = [outcome for outcome in report.outcomes if outcome.case.title.startswith("half precision")]
    assert len(in_half) == 3 and all([*outcome.differences] == ["float16"] for outcome in in_half)
    header, row, *_ = str(report).splitlines()
    assert header.split() == ["cases", "float64", "float32", "float16"] and len(row.split()) == 6
    assert str(report_of(core_module("core"), "exp")).splitlines()[0].split() == ["cases", "float64", "float32"]


def test_a_capture_that_runs_the_work_at_each_replay_passes() -> None:
    assert report_of(planted("capture", lambda work: work), "capture").passed


def test_a_failure_reports_the_call_and_both_values() -> None:
    (failure,) = [
        outcome
        for outcome in report_of(planted(*FAULTS["max ignores nan"]), "max").failures
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
    """A core backend uses the formulas of the reference, so only finite differences find an error in them."""
    monkeypatch.setattr(reference, primitive, gradient)
    module = core_module("wrong_formula", **{primitive: gradient})
    titles = [outcome.case.title for outcome in report_of(module, primitive).failures]
    assert titles
    assert all(title.endswith("finite differences") for title in titles)


# --- The command line

CORRECT = "tests.counting_backend"
BORROW = "from russellgrad.backends.numpy_backend import *\nfrom russellgrad.backends import numpy_backend\n"
WRONG = BORROW + "name = 'wrong'\ndef exp(a, /):\n    return numpy_backend.exp(a) + 1\n"
UNUSABLE = BORROW + "name = 'unusable'\ndef require_usable():\n    raise RuntimeError('no such device')\n"
BROKEN = "import no_such_library\n"
INCOMPLETE = "from russellgrad.backends.numpy_backend import exp, log\nname = 'half'\n"


@once
def test_the_command_line_passes_a_correct_backend() -> None:
    done = run_python("-m", "russellgrad.conformance", CORRECT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"counting: {len(conformance.cases())} cases, 2 skipped: capture; all passed"


@once
def test_the_command_line_fails_a_wrong_backend(tmp_path: Path) -> None:
    (tmp_path / "wrong_backend.py").write_text(WRONG)
    done = run_python("-m", "russellgrad.conformance", "wrong_backend", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2  # without a dot it is the name of an entry point
    (tmp_path / "party").mkdir()
    (tmp_path / "party" / "wrong_backend.py").write_text(WRONG)
    done = run_python("-m", "russellgrad.conformance", "party.wrong_backend", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED  exp: random, float32" in done.stdout
    failed = done.stdout.splitlines()[-1].split(" failed: ")[1]
    assert failed.startswith("exp, log_softmax")  # of half precision: a formula that calls exp


@once
@pytest.mark.parametrize(
    ("source", "message"),
    [
        (UNUSABLE, "RuntimeError: no such device"),
        (BROKEN, "ModuleNotFoundError: No module named 'no_such_library'"),
        (INCOMPLETE, "TypeError: backend 'party.bad': module party.bad lacks float_dtypes, is_array"),
        (None, "ValueError: unknown backend 'party.bad'"),
    ],
    ids=["unusable", "broken", "names missing", "unknown"],
)
def test_the_command_line_reports_a_backend_that_cannot_be_loaded(
    source: str | None, message: str, tmp_path: Path
) -> None:
    (tmp_path / "party").mkdir()
    if source is not None:
        (tmp_path / "party" / "bad.py").write_text(source)
    done = run_python("-m", "russellgrad.conformance", "party.bad", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith(f"cannot use backend 'party.bad': {message}")
    assert "Traceback" not in done.stderr
