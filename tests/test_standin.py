"""The stand-in for CuPy raises where CuPy raises, differs from NumPy where CuPy does, and has only CuPy's names.

These tests always run on the stand-in, even if the other tests run on the real CuPy.
"""

import gc
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from russellgrad import (
    Tensor,
    attention,
    compile_step,
    cross_entropy,
    embedding,
    layer_norm,
    linear,
    set_default_dtype,
    use_backend,
)
from russellgrad.backend import DERIVED, resolve_backend
from russellgrad.loss import cross_entropy_loss
from russellgrad.optimizer import AdamOptimizer, AdamWOptimizer
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer
from tests.helpers import assert_close, check_against_torch, once_on_cupy, rng
from tests.process import output_of, run_python
from tests.standin import MODULES, Misuse, compare, load_backend, record
from train.data import MicroBatch
from train.train_transformer import train_step

pytestmark = once_on_cupy

cupy: Any = MODULES["cupy"]
cupyx: Any = MODULES["cupyx"]

Array = Any


def ones() -> Array:
    return cupy.ones((2, 3))


def int_array(*values: int) -> Array:
    return cupy.asarray(np.array(values))


@pytest.fixture(scope="module")
def xp() -> Any:
    """The unmodified CuPy backend, loaded on the stand-in."""
    return resolve_backend(load_backend()["cupy_backend"])


# --- Refused operations

HOST = np.ones((2, 3))


def assign(index: Any, value: Any) -> None:
    ones()[index] = value


def add_in_place(value: Any) -> None:
    a = ones()
    a += value


def product_in_place() -> None:
    a = cupy.ones((3, 3))
    a @= cupy.ones((3, 3))


def write_into_broadcast() -> None:
    a = cupy.broadcast_to(cupy.ones((3,)), (2, 3))
    a += 1


REFUSED: dict[str, tuple[type[BaseException], Callable[[], Any]]] = {
    # Host and device arrays never mix
    "numpy.asarray": (TypeError, lambda: np.asarray(ones())),
    "numpy.array of a list": (TypeError, lambda: np.array([ones(), ones()])),
    "a numpy function": (TypeError, lambda: np.sum(ones())),
    "ufunc on a list": (TypeError, lambda: cupy.add(ones(), [1.0, 2.0, 3.0])),
    "ufunc on a NumPy array": (TypeError, lambda: cupy.exp(HOST)),
    "operator with a NumPy array": (TypeError, lambda: ones() + HOST),
    "NumPy array on the left": (TypeError, lambda: HOST + ones()),
    "operator with a list": (TypeError, lambda: ones() * [1.0, 2.0, 3.0]),
    "list on the left": (TypeError, lambda: [1.0, 2.0, 3.0] + ones()),  # noqa: RUF005
    "comparison with None": (TypeError, lambda: ones() == None),  # noqa: E711
    "matmul with a NumPy array": (TypeError, lambda: ones() @ HOST.T),
    "matmul with a number": (TypeError, lambda: ones() @ 2.0),
    "in-place add of a NumPy array": (TypeError, lambda: add_in_place(HOST)),
    "in-place add of a list": (TypeError, lambda: add_in_place([1.0, 2.0, 3.0])),
    "where on a NumPy condition": (TypeError, lambda: cupy.where(HOST > 0, ones(), 0)),
    "where on a bool": (TypeError, lambda: cupy.where(True, ones(), 0)),
    "sum of a NumPy array": (TypeError, lambda: cupy.sum(HOST)),
    "concatenate of NumPy arrays": (TypeError, lambda: cupy.concatenate([HOST, HOST])),
    "assign a NumPy array": (TypeError, lambda: assign(slice(None), HOST)),
    "assign a NumPy array by an index array": (TypeError, lambda: assign(int_array(0, 1), HOST)),
    "assign a list": (TypeError, lambda: assign(0, [1.0, 2.0, 3.0])),
    "index with a NumPy array": (Misuse, lambda: ones()[np.array([0, 1])]),
    "index with a list": (Misuse, lambda: ones()[[0, 1]]),
    "index with a NumPy mask": (Misuse, lambda: ones()[HOST > 0]),
    "index with a bare bool": (Misuse, lambda: ones()[True]),
    "index with a float": (IndexError, lambda: ones()[1.0]),
    "index with a float array": (IndexError, lambda: ones()[cupy.zeros((2,))]),
    "take of a list": (Misuse, lambda: cupy.take(ones(), [0, 1], axis=0)),
    "from_dlpack of a NumPy array": (TypeError, lambda: cupy.from_dlpack(HOST)),
    "numpy.from_dlpack": ((TypeError, ValueError, BufferError, RuntimeError), lambda: np.from_dlpack(ones())),  # type: ignore[dict-item]
    # Access to one element at a time
    "iteration": (Misuse, lambda: list(ones())),
    "unpacking": (Misuse, lambda: (lambda a, b: a)(*ones())),
    "the operator in": (Misuse, lambda: 1.0 in ones()),
    "the builtin max": (Misuse, lambda: max(cupy.arange(3))),
    "range of an array": (TypeError, lambda: range(cupy.arange(3)[2])),
    "index of a list": (TypeError, lambda: [1, 2][cupy.arange(3)[1]]),
    "bound of a slice": (TypeError, lambda: ones()[: cupy.arange(3)[1]]),
    "bool of several elements": (ValueError, lambda: bool(ones())),
    "hash": (TypeError, lambda: hash(ones())),
    # Keywords and dtypes that CuPy does not accept
    "object dtype": (ValueError, lambda: cupy.array([1, 2], dtype=object)),
    "array of objects": (ValueError, lambda: cupy.asarray(np.array([None]))),
    "array of strings": (ValueError, lambda: cupy.array(["a"])),
    "zeros of a string dtype": (ValueError, lambda: cupy.zeros((2,), "U1")),
    "astype(casting=)": (TypeError, lambda: ones().astype("float32", casting="safe")),
    "astype to object": (ValueError, lambda: ones().astype(object)),
    "sum(where=)": (TypeError, lambda: cupy.sum(ones(), where=ones() > 0)),
    "max(initial=)": (TypeError, lambda: cupy.max(ones(), initial=0.0)),
    "ufunc(where=)": (TypeError, lambda: cupy.exp(ones(), where=ones() > 0)),
    "einsum(out=)": (TypeError, lambda: cupy.einsum("ij->i", ones(), out=cupy.zeros((2,)))),
    "take(mode=)": (TypeError, lambda: cupy.take(ones(), int_array(0), axis=0, mode="clip")),
    "sort(stable=)": (TypeError, lambda: cupy.sort(ones(), stable=True)),
    "clip(min=, max=)": (TypeError, lambda: cupy.clip(ones(), min=0, max=1)),
    "in-place add of a Tensor": (
        TypeError,
        lambda: add_in_place(Tensor([1.0], backend="numpy")),
    ),  # NumPy would defer to the Tensor
    "float result into an int array": (TypeError, lambda: cupy.add(int_array(1), 0.5, out=int_array(1))),
    # Names that CuPy does not have
    "errstate": (AttributeError, lambda: cupy.errstate(all="ignore")),
    "insert": (AttributeError, lambda: cupy.insert(ones(), 0, 1.0)),
    "vecdot": (AttributeError, lambda: cupy.vecdot(ones(), ones())),
    "setflags": (AttributeError, lambda: ones().setflags(write=False)),
    "resize": (AttributeError, lambda: ones().resize((3, 2))),
    "a new attribute": (AttributeError, lambda: setattr(ones(), "label", "x")),
    # CuPy gives a wrong result without an error; the stand-in raises
    "@=": (Misuse, product_in_place),
    "index out of range": (Misuse, lambda: ones()[int_array(0, 2)]),
    "negative index out of range": (Misuse, lambda: ones()[:, int_array(-4)]),
    "index out of range after an ellipsis": (Misuse, lambda: ones()[..., int_array(3)]),
    "index out of range after a mask": (Misuse, lambda: cupy.ones((2, 2, 3))[ones()[:, :2] > 0, int_array(3)]),
    "take out of range": (Misuse, lambda: cupy.take(ones(), int_array(2), axis=0)),
    "assignment out of range": (Misuse, lambda: assign(int_array(0, 2), 1.0)),
    "add.at out of range": (Misuse, lambda: cupy.add.at(ones(), (int_array(2),), 1.0)),
    "integer to a negative power": (Misuse, lambda: int_array(2) ** int_array(-1)),
    "write into a broadcast view": (Misuse, write_into_broadcast),
    # CuPy and NumPy raise the same errors
    "an int index out of range": (IndexError, lambda: ones()[2]),
    "a mask of another shape": (IndexError, lambda: ones()[cupy.ones((3, 2)) > 0]),
    "too many indices": (IndexError, lambda: ones()[0, 0, int_array(0)]),
    "shapes that do not broadcast": (ValueError, lambda: ones() + cupy.ones((2,))),
    "max of an empty array": (ValueError, lambda: cupy.max(cupy.zeros((0,)))),
    "add.at of int64": (TypeError, lambda: cupy.add.at(int_array(1), (int_array(0),), 1)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_misuse_raises(what: str) -> None:
    error, misuse = REFUSED[what]
    with pytest.raises(error):
        misuse()


def test_misuse_is_not_a_common_exception() -> None:
    assert not issubclass(Misuse, (TypeError, ValueError, IndexError, RuntimeError))


# --- Differences from NumPy


@pytest.mark.parametrize(
    "scalar",
    [
        lambda: cupy.sum(ones()),
        lambda: cupy.argmax(ones()),
        lambda: cupy.count_nonzero(ones()),
        lambda: ones()[0, 0],
        lambda: cupy.exp(cupy.sum(ones())),
        lambda: cupy.sum(ones()) * 2,
        lambda: cupy.ones((3,)) @ cupy.ones((3,)),
        lambda: cupy.asarray(1.0),
    ],
)
def test_0d_results_are_arrays(scalar: Callable[[], Array]) -> None:
    assert isinstance(scalar(), cupy.ndarray)
    assert scalar().shape == ()


def test_indexed_element_is_a_view() -> None:
    a = ones()
    a[1, 2].fill(7.0)
    assert a.get()[1, 2] == 7.0


def test_host_and_device_memory_are_separate() -> None:
    host = np.ones(3)
    a = cupy.asarray(host)
    host += 1
    a.get()[0] = 9.0
    np.testing.assert_array_equal(cupy.asnumpy(a), [1.0, 1.0, 1.0])


def test_uninitialized_memory_has_invalid_values() -> None:
    assert np.isnan(cupy.empty((2,)).get()).all()
    assert np.isnan(cupy.ndarray((2,), "float32").get()).all()
    assert (cupy.empty((2,), "int64").get() > 2**60).all()


def test_duplicate_assignments_keep_a_random_value() -> None:
    seen = set()
    for _ in range(100):
        a = cupy.zeros((3,))
        a[int_array(1, 1)] = cupy.asarray(np.array([1.0, 2.0]))
        seen.add(float(a.get()[1]))
    assert seen == {1.0, 2.0}


def test_add_at_sums_repeats_in_random_order() -> None:
    values = rng().normal(size=300) * 10.0 ** rng(1).integers(-8, 8, 300)
    sums = set()
    for _ in range(20):
        a = cupy.zeros((2,))
        cupy.add.at(a, (int_array(*[1] * 300),), cupy.asarray(values))
        assert_close(a.get()[1], np.sum(values), atol=1e-6)
        sums.add(float(a.get()[1]))
    assert len(sums) > 1  # rounding depends on the order


@pytest.mark.parametrize(
    "index", [(slice(None), 1), (int_array(1, 0),), (int_array(1, 0), int_array(2, 2)), (None, ...)]
)
def test_assignment_and_add_at_match_numpy_without_repeats(index: Any) -> None:
    host_index = tuple(part.get() if isinstance(part, cupy.ndarray) else part for part in index)
    host, value = rng().normal(size=(2, 3)), rng(1).normal(size=np.ones((2, 3))[host_index].shape)
    a, b = cupy.asarray(host), cupy.asarray(host)
    a[index] = cupy.asarray(value)
    cupy.add.at(b, index, cupy.asarray(value))
    assigned = host.copy()
    assigned[host_index] = value
    added = host.copy()
    added[host_index] += value
    np.testing.assert_array_equal(a.get(), assigned)
    np.testing.assert_array_equal(b.get(), added)


def test_python_scalars_are_weak_and_numpy_scalars_are_not() -> None:
    a = cupy.ones((2,), "float32")
    assert (a * 2.0).dtype == (2 * a).dtype == cupy.where(a > 0, a, 0.0).dtype == np.float32
    assert (a * np.float64(2.0)).dtype == (np.float64(2.0) * a).dtype == np.float64
    assert (a * cupy.asarray(2.0)).dtype == np.float64


def test_no_floating_point_warnings() -> None:
    zero = cupy.zeros((1,))
    assert np.isneginf(cupy.log(zero).get()).all()
    assert np.isnan((zero / zero).get()).all()
    assert cupy.asarray(np.array([np.nan])).astype("int64").shape == (1,)


def test_synchronizations_are_counted() -> None:
    one = cupy.ones((1,))
    synchronizing: dict[str, Callable[[], Any]] = {
        "bool": lambda: bool(one),
        "float": lambda: float(cupy.sum(one)),
        "int": lambda: int(cupy.sum(one)),
        "item": one.item,
        "get": one.get,
        "tolist": one.tolist,
        "asnumpy": lambda: cupy.asnumpy(one),
        "repr": lambda: repr(one),
        "str": lambda: str(one),
        "format": lambda: f"{one}",
        "mask index": lambda: one[one > 0],
    }
    for name, operation in synchronizing.items():
        with record() as log:
            operation()
        assert log.syncs == {name: 1}
    with record() as log:
        cupy.exp(one + 1)[int_array(0)].shape  # noqa: B018
    assert not log.syncs
    assert log.launches == {"add": 1, "exp": 1, "getitem": 1}
    assert log.uploads == {"array": 1}


def test_dlpack_shares_memory_on_the_device_and_copies_to_the_host_on_request() -> None:
    a = ones()
    assert a.__dlpack_device__()[0] == 2  # kDLCUDA
    shared = cupy.from_dlpack(a)
    shared += 1
    np.testing.assert_array_equal(a.get(), np.full((2, 3), 2.0))
    with record() as log:
        np.testing.assert_array_equal(np.from_dlpack(HostCopyRequest(a)), a.get())
    assert log.syncs["__dlpack__"] == 1


class HostCopyRequest:
    """Requests a copy on the host, as np.from_dlpack(a, device="cpu") does since NumPy 2.1."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.array.__dlpack__(dl_device=(1, 0))


# --- Operators with other types


@pytest.mark.parametrize(
    "operate",
    [
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: a * b,
        lambda a, b: a / b,
        lambda a, b: a**b,
        lambda a, b: a @ b,
        lambda a, b: a == b,
        lambda a, b: a < b,
    ],
)
def test_array_operators_defer_to_tensor(xp: Any, operate: Callable[[Any, Any], Any]) -> None:
    left, right = rng().random((3, 3)), rng(1).random((3, 3))
    result = operate(cupy.asarray(left), Tensor(right, backend=xp))
    assert isinstance(result, Tensor)
    assert result.backend is xp
    assert_close(result, operate(left, right))


class HigherPriority:
    __array_priority__ = 101

    def __radd__(self, other: Any) -> str:
        return "theirs"


class LowerPriority(HigherPriority):
    __array_priority__ = 99


def test_operators_defer_to_higher_array_priority() -> None:
    assert ones() + HigherPriority() == "theirs"
    with pytest.raises(TypeError):
        ones() + LowerPriority()


# --- The backend on the stand-in


def test_gradients_match_pytorch(xp: Any) -> None:
    import torch

    with use_backend(xp):
        check_against_torch(lambda x: (x * x).softmax(-1), lambda t: (t * t).softmax(-1), rng().normal(size=(3, 4)))
        check_against_torch(
            lambda x: x[[0, 2, 0], 1:],  # row 0 is repeated, so its gradients must be summed
            lambda t: t[[0, 2, 0], 1:],
            rng().normal(size=(3, 4)),
        )
        check_against_torch(Tensor.gelu, torch.nn.functional.gelu, rng().normal(size=(3, 4)))


def training_step(xp: Any, weights: dict[str, Array], ids: Array, targets: Array) -> dict[str, Tensor]:
    """One Adam step on a model of one layer. Returns the updated parameters and the loss."""
    with use_backend(xp):
        p = {name: Tensor(value) for name, value in weights.items()}
        optimizer = AdamOptimizer(p.values(), lr=1e-2, weight_decay=0.1)
        with record() as log:
            x = layer_norm(embedding(p["tokens"], ids), p["gamma"], p["beta"])
            x = x + attention(linear(x, p["query"]), x, x, causal=True)
            loss = cross_entropy(linear(x.gelu(), p["out"], p["bias"]), targets, ignore_index=0)
            loss.backward()
            optimizer.step()
        assert not log.syncs
    return {**p, "loss": loss}


def test_training_step_matches_numpy_without_synchronizing(xp: Any) -> None:
    random = rng()
    shapes = {"tokens": (7, 4), "gamma": (4,), "beta": (4,), "query": (4, 4), "out": (4, 7), "bias": (7,)}
    weights = {name: random.normal(size=shape) for name, shape in shapes.items()}
    ids, targets = random.integers(0, 7, (2, 5)), random.integers(0, 7, (2, 5))
    steps = [training_step(backend, weights, ids, targets) for backend in (xp, "numpy")]
    for name in steps[0]:
        assert_close(steps[0][name], steps[1][name], what=name)
    assert not np.array_equal(steps[0]["out"].numpy(), weights["out"])


@pytest.mark.parametrize("padded", [False, True])
def test_transformer_training_step_does_not_synchronize(xp: Any, padded: bool) -> None:
    with use_backend(xp):
        model = Transformer(Tokenizer.from_text("abcdef", 8, 8), 2, 2, activation="gelu", final_norm=True, dropout=0.1)
        optimizer = AdamWOptimizer(model.parameters())
        pad = model.tokenizer.pad_token_id
        ids = rng().integers(0, pad, (3, 8))
        if padded:
            ids[1, 5:] = pad
        with record() as log:
            train_step(model, optimizer, MicroBatch(ids, ids), grad_clip=1.0)
            cross_entropy_loss(model(["abc", "ab"]), model.tokenizer.targets(["abc", "ab"]), pad).backward()
        assert not log.syncs


def test_training_step_stays_within_the_launch_budget(xp: Any) -> None:
    """A model of 6 layers, in float32 and bfloat16: one more launch per layer adds 6 and exceeds the budget.

    128 of the 380 launches copy the 64 gradients to `.grad` and from there to the optimizer's flat array.
    """
    for dtype in ("float32", "bfloat16"):
        set_default_dtype(dtype)
        try:
            with use_backend(xp):
                tokenizer = Tokenizer.from_text("abcdef", 16, 48, seed=1)
                model = Transformer(tokenizer, 6, 6, activation="gelu", output_projection=True, final_norm=True, seed=2)
                optimizer = AdamWOptimizer(model.parameters(), flat=True)
        finally:
            set_default_dtype("float64")
        ids = tokenizer.ids(rng().integers(0, 6, (2, 16)))
        step = compile_step(partial(train_step, model, optimizer, grad_clip=1.0))
        for _ in range(2):
            with record() as log:
                step(MicroBatch(ids, ids))
        assert not log.syncs
        assert log.uploads == {"array": 1}  # the optimizer's rates
        assert log.launches.total() <= 380, log.launches
        step(MicroBatch(ids, ids))
        with record() as log:
            step(MicroBatch(ids, ids))
        assert log.graph_launches == 1
        # Copies of the ids to the graph's memory, and of the loss and the norm from it.
        assert log.launches.total() <= 4
        assert not log.syncs


class Operands:
    """Float64 arrays of a backend, the operands of DERIVED_CALLS."""

    def __init__(self, xp: Any) -> None:
        def of(*shape: int, seed: int = 0) -> Array:
            return xp.asarray(rng(seed).normal(size=shape))

        self.x, self.g, self.row, self.column = of(4, 5), of(4, 5, seed=1), of(5, seed=2), of(4, seed=3)
        self.weight, self.g_out = of(5, 3, seed=4), of(4, 3, seed=5)
        self.q, self.k, self.v, self.g_heads = (of(2, 3, 4, seed=i) for i in range(4))
        self.image, self.kernel, self.g_image = of(2, 4, 5, 3), of(6, 2, 3, 2, seed=6), of(2, 6, 3, 3, seed=7)
        self.loss_gradient, self.rates = xp.asarray(1.5), xp.asarray([0.1, 0.2, 0.3])
        self.ids, self.valid = xp.asarray(np.array([0, 2, 2, 4])), xp.asarray(np.array([True, False, True, True]))
        self.hidden = xp.asarray(np.arange(9).reshape(3, 3) % 4 == 3)
        self.key = xp.asarray(np.array([1, 2, 3, 4], np.uint64))


def attention_and_backward(xp: Any, o: Operands) -> Any:
    where = (o.hidden, True, 0)
    out, log_sum = xp.attention(o.q, o.k, o.v, *where)
    return out, log_sum, *xp.attention_backward(o.g_heads, o.q, o.k, o.v, out, log_sum, *where, (True, True, True))


def cross_entropy_and_backward(xp: Any, o: Operands) -> Any:
    loss, probs = xp.cross_entropy(o.x, o.ids, o.valid, 1)
    return loss, probs, xp.cross_entropy_backward(o.loss_gradient, probs, o.ids, o.valid)


def layer_norm_and_backward(xp: Any, o: Operands) -> Any:
    y, mean, rstd = xp.layer_norm(o.x, o.row, o.row, 1e-5)
    return y, mean, rstd, *xp.layer_norm_backward(o.g, o.x, o.row, mean, rstd, (True, True, True))


def rms_norm_and_backward(xp: Any, o: Operands) -> Any:
    y, r = xp.rms_norm(o.x, o.row, 1e-5)
    return y, r, *xp.rms_norm_backward(o.g, o.x, o.row, r, (True, True))


CONV_SIZES = (2, 1), ((1, 1), (0, 1)), (1, 1), 2

DERIVED_CALLS: dict[str, Callable[[Any, Operands], Any]] = {
    "zeros": lambda xp, o: xp.zeros((2, 3), "float64"),
    "uniform": lambda xp, o: xp.uniform((5,), o.key, "float64"),
    "dropout_mask": lambda xp, o: xp.dropout_mask((5,), o.key, 0.2, "float64"),
    "erf": lambda xp, o: xp.erf(o.x),
    "sigmoid": lambda xp, o: xp.sigmoid(o.x),
    "relu": lambda xp, o: xp.relu(o.x),
    "clip": lambda xp, o: xp.clip(o.x, -0.5, o.row),
    "leaky_relu": lambda xp, o: xp.leaky_relu(o.x, 0.1),
    "leaky_relu_backward": lambda xp, o: xp.leaky_relu_backward(o.g, o.x, 0.1),
    "gelu": lambda xp, o: xp.gelu(o.x, "none"),
    "gelu_value": lambda xp, o: xp.gelu_value(o.x, "none"),
    "gelu_backward": lambda xp, o: xp.gelu_backward(o.g, xp.gelu(o.x, "tanh")[1], "tanh"),
    "swiglu": lambda xp, o: xp.swiglu(o.x, o.g),
    "swiglu_backward": lambda xp, o: xp.swiglu_backward(o.g, o.x, o.x, (True, True)),
    "linear": lambda xp, o: xp.linear(o.x, o.weight, o.g_out[0]),
    "linear_backward": lambda xp, o: xp.linear_backward(o.g_out, o.x, o.weight, (True, True, True)),
    "softmax": lambda xp, o: xp.softmax(o.x, -1),
    "softmax_backward": lambda xp, o: xp.softmax_backward(o.g, xp.softmax(o.x, 0), 0),
    "log_softmax": lambda xp, o: xp.log_softmax(o.x, -1),
    "log_softmax_backward": lambda xp, o: xp.log_softmax_backward(o.g, xp.log_softmax(o.x, 0), 0),
    "layer_norm": layer_norm_and_backward,
    "layer_norm_backward": layer_norm_and_backward,
    "rms_norm": rms_norm_and_backward,
    "rms_norm_backward": rms_norm_and_backward,
    "rotary": lambda xp, o: xp.rotary(o.image, o.g_image[:, :4, :1, :1], o.g_image[:, 2:, :1, 1:2]),
    "embedding": lambda xp, o: xp.embedding(o.x, o.ids[:2]),
    "embedding_backward": lambda xp, o: xp.embedding_backward(o.g, o.ids, 6),
    "cross_entropy": cross_entropy_and_backward,
    "cross_entropy_backward": cross_entropy_and_backward,
    "attention": attention_and_backward,
    "attention_backward": attention_and_backward,
    "conv": lambda xp, o: xp.conv(o.image, o.kernel, o.g_image[0, :, 0, 0], *CONV_SIZES),
    "conv_backward": lambda xp, o: xp.conv_backward(o.g_image, o.image, o.kernel, *CONV_SIZES, (True, True, True)),
    "max_pool_indices": lambda xp, o: xp.max_pool_indices(o.image, (3, 2), *CONV_SIZES[:3]),
    "clip_scale": lambda xp, o: xp.clip_scale([o.x, o.row], 0.5),
    "sgd_step": lambda xp, o: xp.sgd_step(o.x, o.g, xp.zeros((4, 5), "float64"), o.rates, o.rates[0], 0.9, True, 0.1),
    "adam_step": lambda xp, o: xp.adam_step(
        xp.copy(o.x), o.g, xp.zeros((4, 5), "float64"), xp.zeros((4, 5), "float64"), o.rates, o.rates[0], 0.9, 0.99,
        1e-8, 0.1, True, None,
    ),
}  # fmt: skip
ON_HOST = {"require_usable", "normal", "host_scalars", "check_ids", "check_targets", "prepare_index"}


def test_every_derived_primitive_has_a_call() -> None:
    assert {*DERIVED_CALLS, *ON_HOST, "set_matmul_precision"} == set(DERIVED)


@pytest.mark.parametrize("name", DERIVED_CALLS)
def test_derived_primitive_in_float64_can_be_captured(xp: Any, name: str) -> None:
    """Kernels do not accept float64, so most of these run the formulas. None synchronizes or copies from the host."""
    o, call, recorded = Operands(xp), DERIVED_CALLS[name], []
    with record() as log:
        once = call(xp, o)
    assert not log.syncs and not log.uploads
    replay = xp.capture(lambda: recorded.append(call(xp, o)))
    replay()
    numpy = resolve_backend("numpy")
    expected = call(numpy, Operands(numpy))
    for results in (once, recorded[0]):
        if not isinstance(expected, tuple):
            assert_close(results.get(), np.asarray(expected))
            continue
        for i, (a, e) in enumerate(zip(results, expected, strict=True)):
            if e is None:
                assert a is None
            elif name != "gelu" or i == 0:  # each backend saves other values for gelu_backward
                assert_close(a.get(), np.asarray(e), what=f"result {i}")


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize(
    "dtypes", [("float32", "float32", "float32"), ("bool", "int64", "bool"), ("float32", "float64", "int32")], ids=str
)
def test_concatenate_matches_numpy(xp: Any, axis: int, dtypes: tuple[str, ...]) -> None:
    lengths = (2, 0, 3)
    hosts = [
        (10 * rng(i).normal(size=(n, 4) if axis == 0 else (4, n))).astype(dtype)
        for i, (n, dtype) in enumerate(zip(lengths, dtypes, strict=True))
    ]
    replay_of: list[Array] = []
    arrays = tuple(map(xp.asarray, hosts))
    for given in (arrays, list(arrays)):
        assert_close(xp.concatenate(given, axis).get(), np.concatenate(hosts, axis), atol=0)
    xp.capture(lambda: replay_of.append(xp.concatenate(arrays, axis)))()
    assert_close(replay_of[0].get(), np.concatenate(hosts, axis), atol=0)


def test_concatenate_of_mismatched_arrays_raises(xp: Any) -> None:
    a = xp.asarray(np.ones((2, 3)))
    with pytest.raises(ValueError, match="there are no arrays"):
        xp.concatenate([], 0)
    with pytest.raises(ValueError, match="must be equal except along axis 0"):
        xp.concatenate([a, a[:, :2]], 0)
    for axis in (2, -3):
        with pytest.raises(IndexError):
            xp.concatenate([a, a], axis)


def test_out_of_memory_error_reports_memory_use(xp: Any) -> None:
    pool, allocator = cupy.get_default_memory_pool(), cupy.cuda.get_allocator()
    cupy.cuda.set_allocator(pool.malloc)
    xp.require_usable()
    xp.require_usable()  # a second call must not add a second note
    kept = [xp.zeros((1000, 1000), "float64") for _ in range(3)]
    pool.set_limit(size=pool.used_bytes() + 2**20)
    try:
        with pytest.raises(MemoryError) as caught:
            xp.zeros((1000, 1001), "float32")
    finally:
        pool.set_limit(size=0)
        cupy.cuda.set_allocator(allocator)
    (note,) = caught.value.__notes__
    assert "22.9 MiB of float64 (1000, 1000)" in note
    assert "the pool has " in note
    assert "A smaller batch or length, or dtype bfloat16, needs less." in note
    del kept


def with_bug(xp: Any, **functions: Any) -> Any:
    """The backend with some functions replaced by faulty ones."""
    return SimpleNamespace(**{**vars(xp), **functions})


def add_a_list(a: Array, b: Array) -> Array:
    return cupy.add(a, [1.0, 2.0])


def add_a_host_array(a: Array, b: Array) -> Array:
    return cupy.add(a, np.ones(2))


def add_if_any(a: Array, b: Array) -> Array:
    return cupy.add(a, b) if cupy.any(b) else a


def unchecked_ids(ids: Any, upper: int, op: str) -> Array:
    return cupy.asarray(ids)


def getitem_backward_without_add_at(g: Array, index: Any, shape: tuple[int, ...]) -> Array:
    out = cupy.zeros(shape, g.dtype)
    out[index] += g
    return out


@pytest.mark.parametrize("wrong", [add_a_list, add_a_host_array])
def test_injected_host_operand_raises(xp: Any, wrong: Any) -> None:
    backend = with_bug(xp, add=wrong)
    a = backend.asarray([1.0, 2.0])
    with pytest.raises(TypeError, match="Unsupported type"):
        backend.add(a, a)


def test_injected_implicit_bool_is_counted(xp: Any) -> None:
    a = xp.asarray([1.0, 2.0])
    for add, waits in ((xp.add, 0), (add_if_any, 1)):
        with record() as log:
            add(a, a)
        assert log.syncs["bool"] == waits


def test_injected_unchecked_ids_raise(xp: Any) -> None:
    backend = with_bug(xp, check_ids=unchecked_ids)
    with pytest.raises(Misuse, match="wraps in silence"):
        backend.embedding(backend.zeros((3, 2), "float64"), backend.check_ids(np.array([3]), 3, "embedding"))
    with pytest.raises(IndexError, match=r"embedding: id 3 is out of range; ids must be in \[0, 3\)"):
        xp.check_ids(np.array([3]), 3, "embedding")


def test_injected_indexed_add_gives_wrong_sums(xp: Any) -> None:
    index = xp.prepare_index([0, 0, 1], (2,))
    g = xp.asarray([1.0, 2.0, 4.0])
    assert xp.getitem_backward(g, index, (2,)).tolist() == [3.0, 4.0]
    assert getitem_backward_without_add_at(g, index, (2,)).tolist() != [3.0, 4.0]


# --- Matrix products and random numbers


def test_matrix_products_can_be_captured(xp: Any) -> None:
    """Each captured graph has its own workspace, since two graphs may run at the same time."""
    a, v = xp.asarray(rng(0).normal(size=(3, 4))), xp.asarray(rng(1).normal(size=4))
    results: list[Array] = []
    replays = [xp.capture(lambda: results.append(xp.matmul(xp.matmul(a, v), a))) for _ in range(2)]
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in replays]
    cupy.cuda.Device().synchronize()
    for stream, replay in zip(streams, replays, strict=True):
        with stream:
            replay()
    cupy.cuda.Device().synchronize()
    for result in results:
        assert_close(result.get(), a.get() @ v.get() @ a.get(), atol=1e-14)


@pytest.mark.parametrize("fails", [False, True])
def test_a_dropped_graph_frees_its_memory(xp: Any, fails: bool) -> None:
    """Also after a failed capture, and if a result lives longer: CuPy keeps the memory of a pool that is collected."""
    pool = type(cupy.get_default_memory_pool())
    leaked = pool._leaked
    a, results = xp.asarray(rng(0).normal(size=(30, 30))), []

    def work() -> None:
        results.append(xp.matmul(xp.matmul(a, a), a))
        if fails:
            results[0].item()

    error = pytest.raises(RuntimeError, match="cannot be recorded") if fails else nullcontext()
    with error:
        xp.capture(work)  # the replay is dropped at once
    gc.collect()
    results.clear()
    xp.capture(lambda: None)  # frees what an earlier graph's results have kept
    gc.collect()
    assert pool._leaked == leaked


def test_a_capture_can_use_the_memory_that_earlier_steps_have_left(xp: Any) -> None:
    cupy.empty((1000,))
    default = cupy.get_default_memory_pool()
    assert default.free_bytes() >= 8000
    xp.capture(lambda: None)
    assert default.free_bytes() == 0


def test_matrix_products_run_on_two_streams(xp: Any) -> None:
    a = xp.asarray(rng(0).normal(size=(3, 3)))
    streams, results = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)], []
    cupy.cuda.Device().synchronize()
    for stream in (*streams, *streams):
        with stream:
            results.append(xp.matmul(a, a))
    cupy.cuda.Device().synchronize()
    for result in results:
        assert_close(result.get(), a.get() @ a.get(), atol=1e-14)


def test_matmul_precision_does_not_change_sums(xp: Any) -> None:
    """`set_matmul_precision` does not change sums that are computed as matrix products."""
    g, x = (cupy.asarray(rng(i).normal(size=(50, 3)).astype("float32")) for i in range(2))
    weight, ids = cupy.ones((3, 3), "float32"), cupy.asarray(rng(2).integers(0, 600, 50))

    def sums() -> list[Array]:
        gradients = xp.linear_backward(g, x, weight, (False, False, True))
        return [gradients[2].get(), xp.embedding_backward(g, ids, 600).get()]

    exact = sums()
    xp.set_matmul_precision("medium")
    try:
        for rounded, whole in zip(sums(), exact, strict=True):
            assert_close(rounded, whole, atol=0)
    finally:
        xp.set_matmul_precision("highest")


@pytest.mark.parametrize("level", ["high", "medium"])
def test_attention_rounds_factors_to_tf32_below_the_highest_precision(xp: Any, level: str) -> None:
    g, q, k, v = (cupy.asarray(rng(i).normal(size=(2, 9, 8)).astype("float32")) for i in range(4))
    out, log_sum = xp.attention(q, k, v, None, True, 0)  # of both backward passes: only their own rounding differs

    def results() -> list[Array]:
        gradients = xp.attention_backward(g, q, k, v, out, log_sum, None, True, 0, (True,) * 3)
        return [a.get() for a in (xp.attention(q, k, v, None, True, 0)[0], *gradients)]

    exact = results()
    xp.set_matmul_precision(level)
    try:
        rounded = results()
    finally:
        xp.set_matmul_precision("highest")
    for a, b, again in zip(rounded, exact, results(), strict=True):
        assert_close(again, b, atol=0)
        assert 1e-4 < np.linalg.norm(a - b) / np.linalg.norm(b) < 2.0**-10  # test_kernels.py has closer bounds


def test_uniform_in_float16_matches_numpy(xp: Any) -> None:
    key = np.array([1, 2, 3, 4], np.uint64)
    drawn = xp.uniform((5,), cupy.asarray(key), "float16").get()
    assert_close(drawn, resolve_backend("numpy").uniform((5,), key, "float16"), atol=0)


# --- Against the real CuPy


def require_real_cupy() -> None:
    if "No module named 'cupy'" in run_python("-c", "import cupy").stderr:
        pytest.skip("needs CuPy to compare with; `nox -s tests-cupy` installs it")


def test_stand_in_matches_the_real_cupy() -> None:
    """Names, parameters, dtypes and operators of the stand-in are those of CuPy; so are all names the backend uses."""
    require_real_cupy()
    done = run_python("-m", "tests.standin.compare")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


NCCL = """
import inspect, warnings
warnings.simplefilter("ignore")  # CuPy warns that NCCL is missing without a device
from cupyx.distributed import NCCLBackend
inspect.signature(NCCLBackend).bind(4, 1, use_mpi=True)
inspect.signature(NCCLBackend.all_reduce).bind(None, "in", "out", op="sum", stream=None)
import cupy
cupy.cuda.Device.use, cupy.cuda.runtime.getDeviceCount
"""


def test_nccl_calls_exist_in_the_real_cupy() -> None:
    """The calls of backends/nccl.py fit CuPy's signatures; running them needs devices."""
    require_real_cupy()
    done = run_python("-c", NCCL)
    assert done.returncode == 0, done.stderr


def test_stand_in_has_every_name_the_backend_uses() -> None:
    for file in compare.BACKENDS.glob("cupy*.py"):
        assert list(compare.unusable(file.read_text(), MODULES)) == []
    assert list(compare.unfit(compare.BACKEND.read_text(), MODULES)) == []
    assert len(list(compare.uses(compare.BACKEND.read_text()))) > 50
    arrays = {
        "shape",
        "dtype",
        "ndim",
        "size",
        "astype",
        "ravel",
        "reshape",
        "T",
        "set",
        "flags",
    }
    used = compare.array_attributes(compare.BACKEND.read_text()) - compare.OTHERS_HAVE
    assert used == arrays
    assert all(hasattr(cupy.ndarray, name) for name in used)


def test_comparison_reports_differences() -> None:
    def ours(a: Any, axis: Any = None, where: Any = None) -> None: ...
    def theirs(a: Any, axis: Any = None) -> None: ...

    mine, real = SimpleNamespace(sum=ours, insert=ours), SimpleNamespace(sum=theirs)
    assert list(compare.missing_names("m", mine, real)) == ["m.insert: CuPy has no such name"]
    assert list(compare.unknown_parameters("m", mine, real)) == ["m.sum: CuPy's takes no where"]
    source = "cupy.sum(a, where=b); cupy.insert(a); cupy.sum(); cupy.sum(a, axis=0)"
    assert list(compare.unusable(source, {"cupy": real})) == [
        "cupy.sum: takes no where",
        "cupy.sum: got an unexpected keyword argument 'where'",
        "cupy.insert: no such name",
        "cupy.sum: missing a required argument: 'a'",
    ]
    direct = "add = cupy.exp\nzeros = cupy.arange\nsum = cupy.broadcast_to\nexp = cupy.exp  # right\n"
    assert list(compare.unfit(direct, MODULES)) == [
        "add = cupy.exp: takes 1 operands, the contract has 2",
        "zeros = cupy.arange: shape is where CuPy takes start",
        "zeros = cupy.arange: dtype is where CuPy takes stop",
        "sum = cupy.broadcast_to: missing a required argument: 'shape'",
    ]


def test_parameters_of_compiled_functions_come_from_their_docstring() -> None:
    class Compiled:
        """_ndarray_base.get(self, stream=None, tuple shape=None, *, order='C') -> _ndarray_base

        Returns (something, else).
        """

        __signature__ = "none that inspect can read"  # as with a compiled function

        def __call__(self) -> None: ...

    assert compare.parameters(Compiled()) == {"self", "stream", "shape", "order"}


# --- Without the stand-in: missing device, missing CuPy

USE = "import russellgrad; russellgrad.get_backend()"


def test_missing_device_raises_one_clear_error() -> None:
    require_real_cupy()
    if output_of("import cupy; print(cupy.cuda.is_available())") == "True":
        pytest.skip("this machine has a CUDA device")
    done = run_python("-c", USE, RG_BACKEND="cupy")
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    last = done.stderr.strip().split("\n")[-1]
    assert last.startswith("RuntimeError: backend 'cupy': CuPy is installed but finds no CUDA device")
    assert "nvidia-smi" in last
    assert "RG_BACKEND=numpy" in last


def test_missing_cupy_error_names_the_extra() -> None:
    done = run_python("-c", f"import sys; sys.modules['cupy'] = None; {USE}", RG_BACKEND="cupy")
    assert done.returncode == 1
    last = done.stderr.strip().split("\n")[-1]
    assert last.startswith("ImportError: backend 'cupy'")
    assert "pip install 'russellgrad[cuda13]'" in last


def test_install_after_the_real_cupy_raises() -> None:
    before = "import sys, types; sys.modules['cupy'] = types.ModuleType('cupy')"
    done = run_python("-c", f"{before}; from tests.standin import install; install()")
    assert done.stderr.strip().endswith("install the stand-in before anything imports it")
