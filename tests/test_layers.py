"""Layers against PyTorch's: results, gradients, state dicts, initial values, errors."""

import copy
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from russellgrad import Tensor, compile_step, grad, layers, llama, manual_seed, no_grad, russelltransformer, use_backend
from russellgrad.backend import Backend
from russellgrad.layers import (
    ELU,
    GELU,
    BatchNorm,
    Dropout,
    Embedding,
    Flatten,
    GroupNorm,
    Identity,
    LayerNorm,
    LeakyReLU,
    Linear,
    LogSoftmax,
    ReLU,
    RMSNorm,
    Sequential,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
    init,
)
from russellgrad.module import Module
from russellgrad.optimizer import SGDOptimizer
from russellgrad.random import Generator
from russellgrad.tokenizer import Tokenizer
from russellgrad.transforms import functional_call
from tests.helpers import assert_close, once, rng
from tests.process import ROOT


def check_layer(
    ours: Module,
    theirs: nn.Module,
    *inputs: Any,
    dtype: str = "float64",
    randomised: bool = True,
    atol: float | None = None,
) -> None:
    """Compare output, gradients of inputs and parameters, and buffers, with the same random parameters.

    The parameters are loaded from PyTorch's state_dict, so names and shapes are compared, too.
    """
    theirs.to(getattr(torch, dtype))
    ours.astype(dtype)
    draws = rng(7)
    if randomised:
        with torch.no_grad():
            for weight in theirs.parameters():
                weight.copy_(torch.from_numpy(draws.normal(0.3, 0.6, weight.shape)))
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in ours.state_dict().items()})
    typed = [x.astype(dtype) if np.asarray(x).dtype.kind == "f" else np.asarray(x) for x in inputs]
    mine = [Tensor(x) for x in typed]
    reference = [torch.tensor(x, requires_grad=x.dtype.kind == "f") for x in typed]
    out, expected = ours(*mine), theirs(*reference)
    assert_close(out, expected, what="output", atol=atol)
    upstream = draws.normal(size=out.shape).astype(dtype)
    out.backward(Tensor(upstream, requires_grad=False))
    expected.backward(torch.tensor(upstream))
    for x, t in zip(mine, reference, strict=True):
        if t.requires_grad:
            assert_close(x.grad, t.grad, what="gradient of the input", atol=atol)
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, gradients.pop(name).grad, what=f"gradient of {name}", atol=atol)
    assert not gradients
    for name, buffer in theirs.named_buffers():
        assert_close(dict(ours.named_buffers())[name], buffer, what=name, atol=atol)


def mixed(*shape: int) -> Any:
    """Random numbers that are not contiguous in memory."""
    return (
        np.swapaxes(rng(3).normal(1.0, 2.0, size=shape[::-1]), 0, -1)
        if len(shape) < 3
        else rng(3).normal(1.0, 2.0, size=(*shape[:-2], shape[-1], shape[-2])).swapaxes(-1, -2)
    )


CASES: dict[str, tuple[Callable[[], Module], Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear": (lambda: Linear(4, 3), lambda: nn.Linear(4, 3), (2, 5, 4)),
    "Linear, no bias": (lambda: Linear(4, 3, bias=False), lambda: nn.Linear(4, 3, bias=False), (5, 4)),
    "Linear, 1-d": (lambda: Linear(4, 3), lambda: nn.Linear(4, 3), (4,)),
    "Linear, empty": (lambda: Linear(4, 3), lambda: nn.Linear(4, 3), (0, 4)),
    "Flatten": (lambda: Flatten(), lambda: nn.Flatten(), (2, 3, 4)),
    "Flatten, axes": (lambda: Flatten(0, 1), lambda: nn.Flatten(0, 1), (2, 3, 4)),
    "Identity": (lambda: Identity(), lambda: nn.Identity(), (2, 3)),
    "ReLU": (lambda: ReLU(), lambda: nn.ReLU(), (3, 4)),
    "LeakyReLU": (lambda: LeakyReLU(0.2), lambda: nn.LeakyReLU(0.2), (3, 4)),
    "LeakyReLU, default": (lambda: LeakyReLU(), lambda: nn.LeakyReLU(), (3, 4)),
    "ELU": (lambda: ELU(0.7), lambda: nn.ELU(0.7), (3, 4)),
    "GELU": (lambda: GELU(), lambda: nn.GELU(), (3, 4)),
    "GELU, tanh": (lambda: GELU("tanh"), lambda: nn.GELU("tanh"), (3, 4)),
    "SiLU": (lambda: SiLU(), lambda: nn.SiLU(), (3, 4)),
    "Sigmoid": (lambda: Sigmoid(), lambda: nn.Sigmoid(), (3, 4)),
    "Tanh": (lambda: Tanh(), lambda: nn.Tanh(), (3, 4)),
    "Softplus": (lambda: Softplus(2.0, 3.0), lambda: nn.Softplus(2.0, 3.0), (3, 4)),
    "Softmax": (lambda: Softmax(1), lambda: nn.Softmax(1), (3, 4, 2)),
    "LogSoftmax": (lambda: LogSoftmax(-1), lambda: nn.LogSoftmax(-1), (3, 4, 2)),
    "LayerNorm": (lambda: LayerNorm(4), lambda: nn.LayerNorm(4), (2, 3, 4)),
    "LayerNorm, two axes": (lambda: LayerNorm((3, 4), eps=1e-3), lambda: nn.LayerNorm((3, 4), eps=1e-3), (2, 3, 4)),
    "LayerNorm, all axes": (lambda: LayerNorm([3, 4]), lambda: nn.LayerNorm([3, 4]), (3, 4)),
    "LayerNorm, no bias": (lambda: LayerNorm(4, bias=False), lambda: nn.LayerNorm(4, bias=False), (3, 4)),
    "LayerNorm, plain": (
        lambda: LayerNorm(4, elementwise_affine=False), lambda: nn.LayerNorm(4, elementwise_affine=False), (3, 4),
    ),
    "RMSNorm": (lambda: RMSNorm(4), lambda: nn.RMSNorm(4), (2, 3, 4)),
    "RMSNorm, two axes": (lambda: RMSNorm((3, 4), eps=1e-3), lambda: nn.RMSNorm((3, 4), eps=1e-3), (2, 3, 4)),
    "RMSNorm, plain": (
        lambda: RMSNorm(4, elementwise_affine=False), lambda: nn.RMSNorm(4, elementwise_affine=False), (3, 4),
    ),
    "GroupNorm": (lambda: GroupNorm(2, 6), lambda: nn.GroupNorm(2, 6), (2, 6, 3, 4)),
    "GroupNorm, 2-d": (lambda: GroupNorm(3, 6, eps=1e-3), lambda: nn.GroupNorm(3, 6, eps=1e-3), (5, 6)),
    "GroupNorm, plain": (lambda: GroupNorm(1, 6, affine=False), lambda: nn.GroupNorm(1, 6, affine=False), (2, 6, 3)),
    "BatchNorm1d": (lambda: BatchNorm(6), lambda: nn.BatchNorm1d(6), (5, 6)),
    "BatchNorm1d, 3-d": (lambda: BatchNorm(6, eps=1e-3), lambda: nn.BatchNorm1d(6, eps=1e-3), (5, 6, 2)),
    "BatchNorm2d": (lambda: BatchNorm(3), lambda: nn.BatchNorm2d(3), (4, 3, 2, 5)),
    "BatchNorm2d, plain": (
        lambda: BatchNorm(3, affine=False, momentum=0.3), lambda: nn.BatchNorm2d(3, affine=False, momentum=0.3),
        (4, 3, 2, 5),
    ),
    "BatchNorm2d, no running averages": (
        lambda: BatchNorm(3, track_running_stats=False), lambda: nn.BatchNorm2d(3, track_running_stats=False),
        (4, 3, 2, 5),
    ),
    "Sequential": (
        lambda: Sequential(Linear(4, 8), ReLU(), Sequential(LayerNorm(8), Linear(8, 2))),
        lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 2))),
        (5, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_layers_match_pytorch(backend: Backend, name: str, dtype: str) -> None:
    ours, theirs, shape = CASES[name]
    check_layer(ours(), theirs(), mixed(*shape), dtype=dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", [name for name in CASES if "Norm" in name])
def test_normalization_in_evaluation_mode(backend: Backend, name: str, dtype: str) -> None:
    ours, theirs, shape = CASES[name]
    mine, reference = ours(), theirs()
    for i in range(3):
        x = rng(i).normal(1 + i, 2.0, shape)
        mine(Tensor(x)), reference.double()(torch.from_numpy(x))
    assert_close(mine(Tensor(x)), reference(torch.from_numpy(x)))
    check_layer(mine.eval(), reference.eval(), mixed(*shape), dtype=dtype)


def test_batch_norm_gives_all_batches_equal_weight_without_momentum(backend: Backend) -> None:
    ours, theirs = BatchNorm(3, momentum=None), nn.BatchNorm1d(3, momentum=None).double()
    for i in range(4):
        x = rng(i).normal(i, 2.0, (5, 3))
        ours(Tensor(x)), theirs(torch.from_numpy(x))
    for name, array in ours.state_dict().items():
        assert_close(array, theirs.state_dict()[name], what=name)


def test_batch_norm_in_a_transform_and_under_no_grad(backend: Backend) -> None:
    """The running averages are updated with plain values, and a gradient of a gradient is PyTorch's."""
    layer, x = BatchNorm(3), rng().normal(size=(5, 3))
    reference = nn.BatchNorm1d(3).double()

    def loss(x: Any) -> Any:
        return ((layer if isinstance(x, Tensor) else reference)(x) ** 3).sum()

    ours = grad(lambda x: (grad(loss)(x) ** 2).sum())(Tensor(x))
    t = torch.tensor(x, requires_grad=True)
    (inner,) = torch.autograd.grad(loss(t), t, create_graph=True)
    (expected,) = torch.autograd.grad((inner**2).sum(), t)
    assert_close(ours, expected, atol=1e-9)
    with no_grad():
        layer(Tensor(x))
    reference(torch.from_numpy(x))
    assert layer.running_mean is not None
    assert layer.running_mean.backend.level == 0
    for name, array in layer.state_dict().items():
        assert_close(array, reference.state_dict()[name], what=name)


def test_a_captured_step_repeats_the_running_averages(backend: Backend) -> None:
    """On backends that capture, a replay runs no Python: the buffers have to be written in place."""
    plain, captured = (Sequential(Linear(3, 4, generator=Generator(1)), BatchNorm(4, momentum=None)) for _ in range(2))
    x = Tensor(rng().normal(size=(6, 3)), requires_grad=False)

    def step_of(model: Sequential) -> Callable[[Tensor], Tensor]:
        optimizer = SGDOptimizer(model.parameters(), lr=0.1)

        def step(x: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss = (model(x) ** 3).sum()
            loss.backward()
            optimizer.step()
            return loss

        return step

    eager, compiled = step_of(plain), step_of(captured)
    if hasattr(backend, "capture"):
        compiled = compile_step(compiled)
    for i in range(5):
        assert_close(compiled(x * (i + 1)), eager(x * (i + 1)))
    for name, array in captured.state_dict().items():
        assert_close(array, plain.state_dict()[name], what=name)


def test_a_float_batch_after_the_forward_in_evaluation_mode_is_an_error_in_backward(backend: Backend) -> None:
    """The running averages that the graph needs have changed."""
    if not hasattr(backend, "assign"):
        pytest.skip("arrays are not written in place")
    layer = BatchNorm(3).eval()
    x = Tensor(rng().normal(size=(5, 3)))
    out = layer(x).sum()
    layer.train()(Tensor(rng().normal(size=(5, 3))))
    with pytest.raises(RuntimeError, match="changed in place"):
        out.backward()


@pytest.mark.parametrize("dtype", ["float16"])
def test_rms_norm_of_half_precision_does_not_overflow(backend: Backend, dtype: str) -> None:
    if dtype not in backend.float_dtypes():
        pytest.skip(f"no {dtype}")
    x = Tensor(np.full((2, 4), 300.0)).astype(dtype)
    assert_close(RMSNorm(4).astype(dtype)(x), np.ones((2, 4), dtype))


# --- Embedding, dropout, containers


@pytest.mark.parametrize("padding_idx", [None, 2, -1])
@pytest.mark.parametrize("shape", [(), (3,), (2, 4), (0,)])
def test_embedding_matches_pytorch(backend: Backend, padding_idx: int | None, shape: tuple[int, ...]) -> None:
    indices = rng().integers(0, 5, shape)
    check_layer(Embedding(5, 3, padding_idx), nn.Embedding(5, 3, padding_idx), indices)


def test_embedding_takes_indices_as_lists_and_arrays(backend: Backend) -> None:
    layer = Embedding(5, 3, padding_idx=1)
    expected = layer.weight.numpy()[[[1, 4], [0, 1]]]
    for indices in ([[1, 4], [0, 1]], np.array([[1, 4], [0, 1]]), Tensor(np.array([[1, 4], [0, 1]]))):
        assert_close(layer(indices), expected)
    assert np.all(expected[0, 0] == 0)
    with pytest.raises(IndexError, match="5"):
        layer([5])


def test_dropout_keeps_the_mean_and_does_nothing_in_evaluation_mode(backend: Backend) -> None:
    layer, x = Dropout(generator=Generator(1)), Tensor(np.ones((200, 50)))
    values = layer(x).numpy()
    assert set(np.unique(values)) == {0.0, 2.0}
    assert abs(values.mean() - 1) < 0.05
    assert layer.eval()(x) is x


def test_sequential_is_a_list_of_layers() -> None:
    model = Sequential(Linear(2, 3), Tensor.tanh, Linear(3, 1))
    assert len(model) == 3
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert isinstance(model[:2], Sequential)
    assert model[:2][0] is model[0]
    assert model[-1] is list(model)[2]
    model.append(ReLU())
    x = Tensor(rng().normal(size=(4, 2)))
    assert_close(model(x), model[3](model[2](model[0](x).tanh())))
    assert len({model, Sequential()}) == 2
    assert Sequential() != Sequential()
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(Sequential(ReLU())))):
        assert isinstance(copied, Sequential)
        assert copied[0] is not model[0]
    assert Sequential()(x) is x


def test_an_error_in_a_sequential_names_the_layer() -> None:
    model = Sequential(Linear(2, 3), Sequential(Tensor.tanh, Linear(4, 1)))
    with pytest.raises(ValueError, match=r"^Linear: x has shape") as raised:
        model(Tensor([[1.0, 2.0]]))
    assert raised.value.__notes__ == [
        "in layer 1 of a Sequential, Linear", "in layer 1 of a Sequential, Sequential",
    ]  # fmt: skip


# --- Initial values


@pytest.mark.parametrize("make", [init.xavier_uniform, init.xavier_normal, init.kaiming_uniform, init.kaiming_normal])
def test_initial_values_of_an_empty_parameter(make: Callable[..., Tensor]) -> None:
    assert make((0, 0)).shape == (0, 0)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("xavier_uniform", {}),
        ("xavier_uniform", {"gain": 2.0}),
        ("xavier_normal", {}),
        ("kaiming_uniform", {}),
        ("kaiming_uniform", {"a": math.sqrt(5)}),
        ("kaiming_uniform", {"mode": "fan_out", "nonlinearity": "relu"}),
        ("kaiming_normal", {"nonlinearity": "tanh"}),
        ("kaiming_normal", {"mode": "fan_out", "nonlinearity": "linear"}),
        ("uniform", {"a": -2.0, "b": 1.0}),
        ("normal", {"mean": 3.0, "std": 2.0}),
    ],
)
def test_initial_values_have_the_distribution_of_pytorch(name: str, arguments: dict[str, Any]) -> None:
    """Mean, standard deviation and extremes of 240,000 numbers, against PyTorch's."""
    shape = (200, 300, 2, 2)
    found = getattr(init, name)(shape, **arguments, generator=Generator(1)).numpy()
    torch.manual_seed(0)
    expected = getattr(nn.init, f"{name}_")(torch.empty(shape), **arguments).numpy()
    std = expected.std()
    assert found.shape == shape
    assert abs(found.mean() - expected.mean()) < 0.01 * std
    assert abs(found.std() - std) < 0.01 * std
    if "uniform" in name:
        for extreme in (np.min, np.max):
            assert abs(extreme(found) - extreme(expected)) < 0.001 * std
    else:  # the fraction of a normal distribution beyond two standard deviations
        assert abs(np.mean(np.abs(found - found.mean()) > 2 * std) - 0.0455) < 0.002


@pytest.mark.parametrize("nonlinearity", ["linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu"])
def test_calculate_gain_is_that_of_pytorch(nonlinearity: Any) -> None:
    assert init.calculate_gain(nonlinearity) == pytest.approx(nn.init.calculate_gain(nonlinearity), rel=1e-15)
    assert init.calculate_gain("leaky_relu", 0.3) == pytest.approx(nn.init.calculate_gain("leaky_relu", 0.3), rel=1e-15)


def test_initial_values_are_the_same_on_every_backend(backend: Backend) -> None:
    makers: list[Callable[[Generator], Module]] = [
        lambda g: Linear(3, 4, generator=g),
        lambda g: Embedding(3, 4, padding_idx=0, generator=g),
    ]
    for make in makers:
        found = make(Generator(5)).state_dict()
        with use_backend("numpy"):
            expected = make(Generator(5)).state_dict()
        for name in expected:
            assert_close(found[name], expected[name], what=name)
    manual_seed(3)
    first = Linear(3, 4).weight.numpy()
    manual_seed(3)
    assert_close(Linear(3, 4).weight, first, atol=0)


def test_linear_has_the_initial_distribution_of_pytorch() -> None:
    layer = Linear(100, 400, generator=Generator(2))
    for array in layer.state_dict().values():
        assert np.abs(array).max() <= 0.1
        assert np.abs(array).max() > 0.099
        assert abs(array.std() - 0.1 / math.sqrt(3)) < 0.003


# --- Errors

ANY: list[Any] = [2.5, 3, [Linear(1, 1)], Tensor([[1.0]])]  # arguments that a type checker would refuse


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Linear(0, 3), ValueError, r"^Linear: in_features must be positive, got 0$"),
        (lambda: Linear(3, ANY[0]), TypeError, r"^Linear: out_features must be an int, got 2.5$"),
        (lambda: Embedding(5, 3, 5), ValueError, r"^Embedding: padding_idx must be within num_embeddings=5, got 5$"),
        (lambda: GroupNorm(4, 6), ValueError, r"^GroupNorm: num_groups=4 does not divide num_channels=6$"),
        (lambda: LayerNorm((3, 0)), ValueError, r"^LayerNorm: normalized_shape must be positive, got 0$"),
        (lambda: BatchNorm(-1), ValueError, r"^BatchNorm: num_features must be positive, got -1$"),
        (lambda: Dropout(1.0), ValueError, r"^Dropout: p must be in \[0, 1\), got 1.0$"),
        (lambda: Sequential(Linear(1, 1), ANY[1]), TypeError, r"^Sequential: layer 1 is a int, expected a module$"),
        (lambda: Sequential(ANY[2]), TypeError, r"^Sequential: layer 0 .*; write Sequential\(\*layers"),
        (lambda: init.xavier_normal(ANY[3]), TypeError, r"^init: needs a shape, got a Tensor; .*layer.weight.shape"),
        (lambda: init.ones((2, ANY[0])), TypeError, r"^init: the lengths must be ints, "),
        (lambda: init.kaiming_normal((3,)), ValueError, r"at least two axes, got \(3,\)"),
        (lambda: init.kaiming_normal((3, 2), mode="in"), ValueError, r"mode must be 'fan_in' or 'fan_out', got 'in'"),
        (lambda: init.calculate_gain("gelu"), ValueError, r"unknown nonlinearity 'gelu'; known are linear, "),
    ],
)  # fmt: skip
def test_bad_arguments(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (Linear(4, 3), (2, 5), r"^Linear: x has shape \(2, 5\), expected \(\.\.\., 4\)$"),
        (Linear(4, 3), (), r"^Linear: x has shape \(\), expected \(\.\.\., 4\)$"),
        (LayerNorm((3, 4)), (4,), r"^LayerNorm: x has shape \(4,\), expected \(\.\.\., 3, 4\)$"),
        (RMSNorm(4), (4, 3), r"^RMSNorm: x has shape \(4, 3\), expected \(\.\.\., 4\)$"),
        (GroupNorm(2, 4), (4,), r"^GroupNorm: x has shape \(4,\), expected \(N, 4, \.\.\.\)$"),
        (BatchNorm(4), (2, 3, 4), r"^BatchNorm: x has shape \(2, 3, 4\), expected \(N, 4, \.\.\.\)$"),
        (
            BatchNorm(4),
            (1, 4),
            r"^BatchNorm: x has shape \(1, 4\), with 1 values in .*; use a larger batch or eval",
        ),
    ],
)
def test_inputs_that_do_not_fit(layer: Module, shape: tuple[int, ...], message: str) -> None:
    with use_backend("numpy"), pytest.raises(ValueError, match=message):
        layer(Tensor(np.ones(shape)))


@pytest.mark.parametrize(
    "layer", [Linear(3, 3), LayerNorm(3), RMSNorm(3), GroupNorm(1, 3), BatchNorm(3), ReLU(), Softmax()]
)
def test_an_array_as_input_is_an_error_that_says_what_to_write(layer: Module) -> None:
    with pytest.raises(TypeError, match=f"^{type(layer).__name__}: needs a Tensor, got a ndarray; write Tensor"):
        layer(np.ones((2, 3)))


# --- The package


@once
def test_layers_are_imported_at_first_use() -> None:
    program = (
        "import sys, russellgrad as rg; assert 'russellgrad.layers' not in sys.modules; rg.layers.Linear(2, 3); "
        "assert 'russellgrad.layers' in sys.modules; assert hasattr(rg.layers.init, 'normal')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_all_layers_are_exported() -> None:
    for name in layers.__all__:
        assert hasattr(layers, name)
    assert {name for name in CASES if name.isalpha()} | {"Embedding", "Dropout", "BatchNorm"} <= set(layers.__all__)


def test_functional_call_reaches_the_parameters_of_a_sequential(backend: Backend) -> None:
    model = Sequential(Linear(3, 2), Tanh(), Linear(2, 1))
    x = Tensor(rng().normal(size=(4, 3)), requires_grad=False)
    found = grad(lambda parameters: functional_call(model, parameters, x).sum())(dict(model.named_parameters()))
    model(x).sum().backward()
    for name, parameter in model.named_parameters():
        assert_close(found[name], parameter.grad, what=name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_batch_norm_of_half_precision(backend: Backend, dtype: str) -> None:
    """The variance of a batch may overflow in float16 where the running variance does not."""
    if dtype not in backend.float_dtypes():
        pytest.skip(f"{backend.name} has no {dtype}")
    layer, theirs = BatchNorm(3).astype(dtype), nn.BatchNorm1d(3).double()
    x = Tensor(rng(3).normal(20, 400, (64, 3)), requires_grad=False).astype(dtype)
    exact = torch.from_numpy(x.astype("float64").numpy())
    epsilon = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    for _ in range(2):
        assert_close(layer(x).astype("float64"), theirs(exact), atol=4 * epsilon)
    variance = layer.running_var
    assert variance is not None and theirs.running_var is not None
    np.testing.assert_allclose(variance.astype("float64").numpy(), theirs.running_var.numpy(), rtol=4 * epsilon)
    layer.load_state_dict(theirs.state_dict())  # rounded once; the result is rounded once more
    out = layer.eval()(x)
    assert out.dtype == dtype
    assert_close(out.astype("float64"), theirs.eval()(exact), atol=8 * epsilon)


@pytest.mark.parametrize("layer", [lambda: GroupNorm(2, 4), lambda: LayerNorm((2, 3))], ids=["GroupNorm", "LayerNorm"])
def test_normalization_of_no_elements(backend: Backend, layer: Callable[[], Module]) -> None:
    made = layer()
    shape = (3, 4, 0) if isinstance(made, GroupNorm) else (0, 2, 3)
    x = Tensor(np.ones(shape))
    made(x).sum().backward()
    assert x.grad is not None and x.grad.shape == shape
    for parameter in made.parameters():
        assert_close(parameter.grad, np.zeros(parameter.shape))


def test_what_a_sequential_gives_as_a_list_is_a_sequential(backend: Backend) -> None:
    first, second = Linear(3, 3), ReLU()
    net = Sequential(first, second)
    for found, expected in (
        (net + Sequential(Tanh()), 3), (net.__add__([Tanh()]), 3), (net * 2, 4), (2 * net, 4), (net.copy(), 2),
        (copy.copy(net), 2), (net[:], 2),
    ):  # fmt: skip
        assert type(found) is Sequential and len(found) == expected and found[0] is first and found is not net
        assert found(Tensor(np.ones((2, 3)))).shape == (2, 3)


def test_a_layer_that_is_added_later_and_cannot_be_called_is_named(backend: Backend) -> None:
    net = Sequential(Linear(3, 3))
    net.append([ReLU()])
    with pytest.raises(TypeError, match=r"^Sequential: layer 1 is a list, expected a module; write Sequential"):
        net(Tensor(np.ones((2, 3))))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(2, 3, Generator(0)), "^Linear: bias must be True or False, got "),  # type: ignore[arg-type]
        (lambda: LayerNorm(2, bias="no"), "^LayerNorm: bias must be"),  # type: ignore[arg-type]
        (lambda: RMSNorm(2, elementwise_affine=0), "^RMSNorm: elementwise_affine must"),  # type: ignore[arg-type]
        (lambda: GroupNorm(2, 4, affine="no"), "^GroupNorm: affine must be"),  # type: ignore[arg-type]
        (lambda: BatchNorm(2, affine="no"), "^BatchNorm: affine must be"),  # type: ignore[arg-type]
        (lambda: BatchNorm(2, track_running_stats=1), "^BatchNorm: track_running"),  # type: ignore[arg-type]
        (lambda: Dropout(0.5, True), "positional argument"),  # type: ignore[call-arg,arg-type]  # PyTorch's `inplace`
    ],
)
def test_switches_are_bools(make: Callable[[], object], message: str) -> None:
    with use_backend("numpy"), pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize("p", ["0.5", None, Tensor(0.5), float("nan")])
def test_the_probability_of_dropout_is_a_number(p: Any) -> None:
    with pytest.raises(ValueError, match=r"^Dropout: p must be in \[0, 1\), got "):
        Dropout(p)


def test_layer_norm_needs_an_axis() -> None:
    with pytest.raises(ValueError, match=r"^LayerNorm: normalized_shape must have at least one length, got \(\)"):
        LayerNorm(())


@pytest.mark.parametrize("layer", [Flatten(), Dropout(0.5)], ids=["Flatten", "Dropout"])
def test_an_array_as_the_input_of_a_first_layer(layer: Module) -> None:
    with pytest.raises(TypeError, match="needs a Tensor, got a ndarray; write Tensor"):
        layer(np.ones((2, 3, 4)))


@pytest.mark.parametrize(
    ("eps", "error", "message"),
    [
        (-1e-5, ValueError, "must not be negative, got -1e-05"),
        (math.nan, ValueError, "must be finite, got nan"),
        (math.inf, ValueError, "must be finite, got inf"),
        (True, TypeError, "must be a number, got True"),
    ],
)
def test_an_eps_that_is_no_small_number_raises(eps: Any, error: type[Exception], message: str) -> None:
    tokenizer = Tokenizer.from_text("ab", 4, 4, seed=0)
    norms: tuple[Any, ...] = (LayerNorm, RMSNorm, BatchNorm, russelltransformer.LayerNorm, llama.RMSNorm)
    makers: list[Callable[..., Any]] = [*(partial(norm, 2) for norm in norms), partial(GroupNorm, 1, 2)]
    for name, make in zip([*(norm.__name__ for norm in norms), "GroupNorm"], makers, strict=True):
        with pytest.raises(error, match=f"^{name}: eps {message}"):
            make(eps=eps)
    with pytest.raises(error, match=f"^Transformer: norm_eps {message}"):
        russelltransformer.Transformer(tokenizer, 1, 2, norm_eps=eps)
    assert LayerNorm(2, eps=0).eps == 0
