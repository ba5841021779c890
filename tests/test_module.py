"""Module: parameters, state dicts, training mode, dtypes and backends; random draws."""

from typing import Any

import numpy as np
import pytest

from russellgrad import Tensor, use_backend
from russellgrad.backend import Backend
from russellgrad.module import Module
from russellgrad.optimizer import SGDOptimizer
from russellgrad.random import Generator, default_generator, manual_seed
from russellgrad.russelltransformer import FFLayer, LayerNorm
from tests.helpers import assert_close, rng


class Pair(Module):
    def __init__(self) -> None:
        self.scale = Tensor([2.0, 3.0])
        self.layers = [LayerNorm(2), LayerNorm(2)]
        self.tied = self.scale
        self.name = "pair"

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](self.layers[0](x)) * self.scale


NAMES = ["scale", "layers.0.gamma", "layers.0.beta", "layers.1.gamma", "layers.1.beta"]


def test_parameters_are_listed_once_in_order(backend: Backend) -> None:
    pair = Pair()
    assert [name for name, _ in pair.named_parameters()] == NAMES
    assert pair.parameters()[0] is pair.scale
    assert [type(m).__name__ for m in pair.modules()] == ["Pair", "LayerNorm", "LayerNorm"]


def test_call_runs_forward_and_base_class_raises(backend: Backend) -> None:
    pair, x = Pair(), Tensor(rng().normal(size=(3, 2)))
    assert_close(pair(x), pair.forward(x))
    with pytest.raises(NotImplementedError, match=r"Module: define forward\(\)"):
        Module()()


def test_state_dict_round_trip(backend: Backend) -> None:
    pair, other = Pair(), Pair()
    pair.scale.data = pair.scale.backend.asarray([5.0, 7.0])
    state = pair.state_dict()
    assert all(isinstance(array, np.ndarray) for array in state.values())
    other.load_state_dict(state)
    assert_close(other.scale, pair.scale)
    state["scale"][0] = 99.0  # state_dict and load_state_dict copy
    assert other.scale.numpy()[0] == pair.scale.numpy()[0] == 5.0


def test_frozen_parameters_are_in_the_state_dict(backend: Backend) -> None:
    pair = Pair()
    pair.scale.requires_grad = False
    assert "scale" in pair.state_dict()


def test_mismatched_state_dict_raises_and_changes_nothing(backend: Backend) -> None:
    pair = Pair()
    state = pair.state_dict()
    del state["layers.0.beta"]
    state["layers.0.bias"] = state["layers.1.beta"]
    state["layers.1.gamma"] = np.ones(3)
    state["scale"] = np.array([8.0, 8.0])
    with pytest.raises(ValueError, match="load_state_dict: Pair does not fit") as caught:
        pair.load_state_dict(state)
    for problem in (
        "missing layers.0.beta",
        "unexpected layers.0.bias",
        "layers.1.gamma has shape (3,), expected (2,)",
    ):
        assert problem in str(caught.value)
    assert pair.scale.numpy().tolist() == [2.0, 3.0]


def test_train_and_eval_reach_all_submodules(backend: Backend) -> None:
    pair = Pair()
    assert pair.eval() is pair
    assert not any(m.training for m in pair.modules())
    pair.train()
    assert all(m.training for m in pair.modules())


def test_zero_grad_clears_all_gradients(backend: Backend) -> None:
    pair = Pair()
    pair(Tensor(rng().normal(size=(3, 2)))).sum().backward()
    assert all(p.grad is not None for p in pair.parameters())
    pair.zero_grad()
    assert all(p.grad is None for p in pair.parameters())


def test_astype_is_in_place(backend: Backend) -> None:
    pair = Pair()
    optimizer = SGDOptimizer(pair.parameters(), lr=0.1)
    assert pair.astype("float32") is pair
    assert {str(p.dtype) for p in pair.parameters()} == {"float32"}
    assert all(p.requires_grad for p in pair.parameters())
    out = pair(Tensor(rng().normal(size=(3, 2)).astype("float32")))
    out.backward(Tensor(rng(1).normal(size=(3, 2)).astype("float32")))
    before = pair.scale.numpy()
    optimizer.step()  # the optimizer still holds the same parameters
    assert not np.array_equal(before, pair.scale.numpy())
    assert str(pair.scale.grad.dtype) == "float32"  # type: ignore[union-attr]


def test_astype_takes_every_float_dtype_of_the_backend(backend: Backend) -> None:
    for dtype in backend.float_dtypes():
        assert {str(p.dtype) for p in Pair().astype(dtype).parameters()} == {dtype}
    if "bfloat16" not in backend.float_dtypes():
        with pytest.raises(
            ValueError, match=f"got 'bfloat16'; backend '{backend.name}' supports float16, float32, float64"
        ):
            Pair().astype("bfloat16")


def test_to_moves_a_module_to_another_backend(backend: Backend) -> None:
    with use_backend("numpy"):
        layer = FFLayer(6, 4)
    x = rng().normal(size=(2, 4))
    expected = layer(Tensor(x, backend="numpy")).numpy()
    layer.to(backend.name)
    assert all(p.backend is backend and p.requires_grad for p in layer.parameters())
    assert_close(layer(Tensor(x)), expected)


def test_draws_depend_only_on_seed_and_counter(backend: Backend) -> None:
    first, again = Generator(7), Generator(7)
    a, b = (Tensor(first.normal((3, 4), "float64", backend)).numpy() for _ in range(2))
    assert not np.array_equal(a, b)
    again.counter = 1
    assert np.array_equal(Tensor(again.normal((3, 4), "float64", backend)).numpy(), b)
    with use_backend("numpy") as host:
        assert np.array_equal(Generator(7).normal((3, 4), "float64", host), a)
    generator = Generator(7, stream=1)
    uniform = Tensor(generator.uniform((1000,), "float64", backend)).numpy()
    assert 0 <= uniform.min() < 0.01 < 0.99 < uniform.max() < 1
    with pytest.raises(ValueError, match=r"the seed must be in \[0, 2\*\*64\), got -1"):
        Generator(-1)


def test_manual_seed_restarts_the_sequence(backend: Backend) -> None:
    manual_seed(5)
    first = FFLayer(3, 2).state_dict()
    second = FFLayer(3, 2).state_dict()
    manual_seed(5)
    again = FFLayer(3, 2).state_dict()
    assert default_generator().seed == 5
    manual_seed(0)
    assert np.array_equal(first["w_in"], again["w_in"])
    assert not np.array_equal(first["w_in"], second["w_in"])


def test_astype_keeps_integer_tensors_and_refuses_integer_dtypes(backend: Backend) -> None:
    pair = Pair()
    pair.count = Tensor(np.array([3]))  # type: ignore[attr-defined]
    pair.astype("float32")
    assert pair.count.dtype == "int64"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="a module's dtype must be a float dtype such as 'float32', got 'int64'"):
        pair.astype("int64")
    assert str(pair.scale.dtype) == "float32"


def test_draws_do_not_depend_on_how_a_batch_is_split(backend: Backend) -> None:
    """A row gets the same draws in the whole batch and in a part of it, for any number of draws."""

    def draw(generator: Generator, rows: int) -> list[np.ndarray[Any, Any]]:
        return [Tensor(generator.uniform((rows, *shape), "float64", backend)).numpy() for shape in ((5, 3), (), (2, 2))]

    whole, parts = Generator(7), Generator(7)
    for _ in range(2):  # batches
        expected = draw(whole, 6)
        found = []
        for first, rows in ((0, 1), (1, 3), (4, 2)):
            parts.continue_batch(first) if first else parts.start_batch()
            found.append(draw(parts, rows))
        for array, pieces in zip(expected, zip(*found, strict=True), strict=True):
            assert np.array_equal(array, np.concatenate(pieces))
    assert whole.counter == parts.counter == 6
