"""GRU and LSTM against PyTorch's: outputs, states, gradients, errors."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import russellgrad as rg
from russellgrad import Tensor
from russellgrad.backend import Backend
from russellgrad.layers import GRU, LSTM
from russellgrad.random import Generator
from tests.helpers import Array, assert_close, rng

LAYERS = pytest.mark.parametrize("name", ["GRU", "LSTM"])
I, H, T, B = 3, 4, 5, 2  # noqa: E741 - the letters of the layer's docstring


def pair(name: str, dtype: str = "float64", **options: Any) -> tuple[Any, Any]:
    """Our layer and PyTorch's, with the same parameters, loaded in both directions."""
    ours, theirs = {"GRU": GRU, "LSTM": LSTM}[name](I, H, **options), getattr(nn, name)(I, H, **options)
    theirs.to(getattr(torch, dtype))
    ours.astype(dtype)
    draws = rng(7)
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.copy_(torch.from_numpy(draws.normal(0.1, 0.6, weight.shape)))
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict({key: torch.from_numpy(array) for key, array in ours.state_dict().items()})
    return ours, theirs


def parts(result: Any) -> list[Any]:
    """The output and the states: (output, h), or (output, h, c)."""
    output, state = result
    return [output, *(state if isinstance(state, tuple) else (state,))]


def check(
    name: str, x: Array, states: list[Array], dtype: str = "float64", atol: float | None = None, **options: Any
) -> None:
    """Compare outputs, states and all gradients, with random upstream gradients of the output and of each state."""
    ours, theirs = pair(name, dtype, **options)
    mine = [Tensor(a.astype(dtype)) for a in (x, *states)]
    reference = [torch.tensor(a.astype(dtype), requires_grad=True) for a in (x, *states)]

    def call(layer: Any, x: Any, *given: Any) -> list[Any]:
        return parts(layer(x, *([given if name == "LSTM" else given[0]] if given else [])))

    found, expected = call(ours, *mine), call(theirs, *reference)
    assert len(found) == len(expected) == (3 if name == "LSTM" else 2)
    upstream = [rng(9 + i).normal(size=tuple(e.shape)).astype(dtype) for i, e in enumerate(expected)]
    for a, e in zip(found, expected, strict=True):
        assert_close(a, e, atol=atol)
    sum((a * Tensor(u, requires_grad=False)).sum() for a, u in zip(found, upstream, strict=True)).backward()
    sum((e * torch.tensor(u)).sum() for e, u in zip(expected, upstream, strict=True)).backward()
    for a, e in zip(mine, reference, strict=True):
        assert_close(a.grad, e.grad, atol=atol, what="gradient of an input")
    gradients = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        assert_close(parameter.grad, gradients.pop(key).grad, atol=atol, what=f"gradient of {key}")
    assert not gradients


def initial(name: str, *shape: int) -> list[Array]:
    return [rng(i).normal(size=shape) for i in range(2 if name == "LSTM" else 1)]


@LAYERS
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
def test_outputs_states_and_gradients(
    backend: Backend, name: str, bidirectional: bool, num_layers: int, bias: bool, batch_first: bool, with_state: bool
) -> None:
    states = initial(name, num_layers * (2 if bidirectional else 1), B, H) if with_state else []
    x = rng(3).normal(size=(I, T, B)).T  # not contiguous: (B, T, I)
    check(
        name, x if batch_first else x.swapaxes(0, 1), states, bidirectional=bidirectional, num_layers=num_layers,
        bias=bias, batch_first=batch_first,
    )  # fmt: skip


@LAYERS
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_one_sequence_without_a_batch_axis(backend: Backend, name: str, with_state: bool, batch_first: bool) -> None:
    states = initial(name, 4, H) if with_state else []
    check(name, rng(3).normal(size=(T, I)), states, bidirectional=True, num_layers=2, batch_first=batch_first)


@LAYERS
@pytest.mark.parametrize("shape", [(1, B, I), (1, 1, I), (T, 0, I), (64, 1, I), (7, 3, I)])
def test_lengths(backend: Backend, name: str, shape: tuple[int, ...]) -> None:
    check(name, rng(3).normal(size=shape), [], bidirectional=True)


@LAYERS
def test_float32(backend: Backend, name: str) -> None:
    check(name, rng(3).normal(size=(T, B, I)), initial(name, 4, B, H), "float32", num_layers=2, bidirectional=True)


@LAYERS
def test_large_inputs_saturate(backend: Backend, name: str) -> None:
    check(name, 50 * rng(3).normal(size=(T, B, I)), [])


@LAYERS
def test_a_state_continues_a_sequence(backend: Backend, name: str) -> None:
    ours, _ = pair(name, num_layers=2)
    x = Tensor(rng(3).normal(size=(T, B, I)))
    whole, last = ours(x)
    first, state = ours(x[:2])
    rest, final = ours(x[2:], state)
    assert_close(Tensor.concatenate([first, rest]), whole)
    assert_close(parts((rest, final))[-1], parts((rest, last))[-1])


@LAYERS
def test_hessian_vector_product(backend: Backend, name: str) -> None:
    ours, theirs = pair(name, bidirectional=True)
    x, v = rng(3).normal(size=(T, B, I)), rng(4).normal(size=(T, B, I))
    weights = rng(5).normal(size=(T, B, 2 * H))
    for requires_grad in (True, False):
        found = rg.hvp(
            lambda x: (ours(x)[0] * Tensor(weights, requires_grad=False)).sum(), Tensor(x, requires_grad=requires_grad),
            Tensor(v, requires_grad=False),
        )  # fmt: skip
        _, expected = torch.autograd.functional.hvp(
            lambda x: (theirs(x)[0] * torch.tensor(weights)).sum(), torch.tensor(x), torch.tensor(v)
        )
        assert_close(found, expected)
    own = dict(ours.named_parameters())
    found = rg.grad(lambda p: rg.functional_call(ours, p, Tensor(x))[0].sum())(own)
    ours(Tensor(x))[0].sum().backward()
    for key, parameter in own.items():
        assert_close(found[key], parameter.grad, what=key)


@LAYERS
def test_dropout_is_between_the_layers_in_training(backend: Backend, name: str) -> None:
    """The random numbers of a row of the batch are its own: two halves of a batch give what the whole gives."""
    ours, theirs = pair(name, num_layers=2, dropout=0.5)
    x = Tensor(rng(3).normal(size=(T, 4, I)))
    ours.eval()
    theirs.eval()
    assert_close(ours(x)[0], theirs(torch.tensor(x.numpy()))[0])
    ours.train()
    ours.dropout.generator = Generator(5)
    ours.dropout.start_batch()
    whole = ours(x)[0]
    assert abs(whole.numpy() - theirs(torch.tensor(x.numpy()))[0].detach().numpy()).max() > 0.01
    ours.dropout.generator = Generator(5)
    halves = []
    for first_row in (0, 2):
        (ours.dropout.start_batch if first_row == 0 else ours.dropout.continue_batch)(first_row)
        halves.append(ours(x[:, first_row : first_row + 2])[0])
    assert_close(Tensor.concatenate(halves, 1), whole)


@LAYERS
def test_initial_parameters(backend: Backend, name: str) -> None:
    layer = {"GRU": GRU, "LSTM": LSTM}[name](8, 16, bidirectional=True, generator=Generator(1))
    other = {"GRU": GRU, "LSTM": LSTM}[name](8, 16, bidirectional=True, generator=Generator(1))
    drawn = np.concatenate([array.ravel() for array in layer.state_dict().values()])
    assert abs(drawn).max() <= 1 / 4 and abs(drawn).max() > 0.249 and abs(drawn.mean()) < 0.01
    assert abs(drawn.std() - 0.5 / math.sqrt(12)) < 0.005
    for key, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, other.state_dict()[key])


@LAYERS
def test_errors(backend: Backend, name: str) -> None:
    cls: Any = {"GRU": GRU, "LSTM": LSTM}[name]
    for bad in ({"hidden_size": 0}, {"num_layers": 0}, {"input_size": -1}):
        with pytest.raises(ValueError, match=rf"^{name}: {next(iter(bad))} must be positive"):
            cls(**{"input_size": I, "hidden_size": H, **bad})
    for bad_type in ({"hidden_size": 1.0}, {"bias": 1}, {"batch_first": None}, {"bidirectional": "yes"}):
        with pytest.raises(TypeError, match=rf"^{name}: {next(iter(bad_type))} must be "):
            cls(**{"input_size": I, "hidden_size": H, **bad_type})
    with pytest.raises(ValueError, match=rf"^{name}: dropout=0.5 needs num_layers > 1, .* apply Dropout"):
        cls(I, H, dropout=0.5)
    with pytest.raises(ValueError, match=r"^Dropout: p must be in \[0, 1\), got 1"):
        cls(I, H, 2, dropout=1)
    layer = cls(I, H)
    for shape in ((T, B, I + 1), (I,), (1, T, B, I), (0, B, I), ()):
        with pytest.raises(ValueError, match=rf"^{name}: x has shape \(.*\), expected \(T, B, 3\) or \(T, 3\), with T"):
            layer(Tensor(np.zeros(shape)))
    for shape in ((2, 3, 4), (2, 0, 3)):
        with pytest.raises(ValueError, match=r"expected \(B, T, 3\) or \(T, 3\), with T of at least 1"):
            cls(I, H, batch_first=True)(Tensor(np.zeros(shape)))
    with pytest.raises(TypeError, match=rf"^{name}: needs a Tensor, got a ndarray"):
        layer(np.zeros((T, B, I)))
    x, n = Tensor(np.zeros((T, B, I))), len(cls.states)
    bad_states: tuple[tuple[int, ...], ...] = ((B, H), (2, B, H), (1, B, H + 1))
    for of_state in bad_states:
        state = (Tensor(np.zeros(of_state)),) * n
        with pytest.raises(ValueError, match=rf"^{name}: hx.* has shape \(.*\), expected a Tensor \(1, 2, 4\)$"):
            layer(x, state if n == 2 else state[0])
    with pytest.raises(ValueError, match=rf"^{name}: hx.* has type ndarray, expected a Tensor \(1, 2, 4\)"):
        layer(x, (np.zeros((1, B, H)),) * 2 if n == 2 else np.zeros((1, B, H)))
    state = (Tensor(np.zeros((1, B, H))),) * n
    with pytest.raises(ValueError, match=rf"^{name}: hx.* has shape \(1, 2, 4\), expected a Tensor \(1, 4\)"):
        layer(x[:, 0], state if n == 2 else state[0])


def test_the_state_of_an_lstm_is_two_tensors(backend: Backend) -> None:
    layer, x = LSTM(I, H), Tensor(np.zeros((T, B, I)))
    h = Tensor(np.zeros((1, B, H)))
    for bad in (h, (h,), (h, h, h)):
        with pytest.raises(ValueError, match=r"^LSTM: hx must be a tuple of two Tensors, \(h, c\), got "):
            layer(x, bad)
