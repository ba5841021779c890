"""Module: parameters, state dicts, training mode, dtypes and backends; random draws."""

import copy
from collections import OrderedDict, UserList, defaultdict, deque
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from russellgrad import Tensor, functional_call, grad, layers, use_backend
from russellgrad.backend import Backend
from russellgrad.layers import BatchNorm, Dropout, Linear, ReLU, Sequential
from russellgrad.module import Module, replaced_tensors
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
    assert list(state) == [*NAMES, "tied"]
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


# --- Where parameters are found


class Holder(Module):
    """A module with the given attributes."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def named(module: Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]


def test_lists_tuples_and_dicts_are_searched_at_any_depth(backend: Backend) -> None:
    """The found modules are trained, saved, moved and switched to evaluation mode like attributes."""

    def build() -> Holder:
        return Holder(
            heads={"q": LayerNorm(2), 3: Tensor([1.0])},
            blocks=[[LayerNorm(2)], ({"a": [Tensor([2.0])]}, None, 5, "x")],
            ordered=OrderedDict(b=Tensor([3.0]), a=(Tensor([4.0]),)),
            defaults=defaultdict(list, x=[Tensor([5.0])]),
            queue=deque([Tensor([6.0])]),
            proxy=MappingProxyType({"y": Tensor([7.0])}),
            point=Point(Tensor([8.0]), LayerNorm(2)),
        )

    names = [
        "heads.q.gamma", "heads.q.beta", "heads.3", "blocks.0.0.gamma", "blocks.0.0.beta", "blocks.1.0.a.0",
        "ordered.b", "ordered.a.0", "defaults.x.0", "queue.0", "proxy.y", "point.0", "point.1.gamma", "point.1.beta",
    ]  # fmt: skip
    one, other = build(), build()
    assert named(one) == names
    assert [type(m).__name__ for m in one.eval().modules()] == ["Holder", *["LayerNorm"] * 3]
    assert not any(m.training for m in one.modules())
    for p in one.parameters():
        p.data = backend.full(p.shape, 9, "float64")
    assert list(one.state_dict()) == names
    other.load_state_dict(one.state_dict())
    assert all((p.numpy() == 9).all() for p in other.parameters())
    assert {str(p.dtype) for p in one.astype("float32").parameters()} == {"float32"}
    assert {p.backend.name for p in one.to("numpy").parameters()} == {"numpy"}


class Point(NamedTuple):
    x: Tensor
    norm: LayerNorm


def test_an_optimizer_trains_what_is_in_a_dict(backend: Backend) -> None:
    model = Holder(heads={"a": [Tensor([1.0])]})
    optimizer = SGDOptimizer(model.parameters(), lr=1.0)
    (model.heads["a"][0] * 3).sum().backward()  # type: ignore[attr-defined]
    optimizer.step()
    assert model.state_dict()["heads.a.0"].tolist() == [-2.0]


def test_cycles_and_shared_members_are_found_once(backend: Backend) -> None:
    shared, tensor = LayerNorm(2), Tensor([1.0])
    parent = Holder(children=[Holder(), Holder()], w=tensor, tied=tensor, norm=shared, same=[shared])
    for child in parent.children:  # type: ignore[attr-defined]
        child.parent, child.own = parent, Tensor([2.0])
    parent.itself, parent.children[0].siblings = parent, parent.children  # type: ignore[attr-defined]
    assert named(parent) == ["children.0.own", "children.1.own", "w", "norm.gamma", "norm.beta"]
    assert [type(m).__name__ for m in parent.modules()] == ["Holder", "Holder", "Holder", "LayerNorm"]
    assert named(parent.children[1])[0] == "parent.children.0.own"  # type: ignore[attr-defined]
    assert len(list(parent.children[1].modules())) == 4  # type: ignore[attr-defined]
    parent.load_state_dict(parent.state_dict())
    assert not parent.eval().children[0].training  # type: ignore[attr-defined]
    copied = copy.deepcopy(parent)
    assert copied.children[0].parent is copied  # type: ignore[attr-defined]
    values: list[Any] = [Tensor([1.0])]
    values.append(values)
    assert named(Holder(values=values)) == ["values.0"]


class Tied(Module):
    def __init__(self) -> None:
        self.a = Linear(2, 2)
        self.b, self.w = self.a, self.a.weight


class TorchTied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(2, 2)
        self.b, self.w = self.a, self.a.weight


def test_names_of_shared_members_are_those_of_pytorch(backend: Backend) -> None:
    ours, theirs = Tied().astype("float32"), TorchTied()
    assert set(ours.state_dict()) == set(theirs.state_dict()) == {"a.weight", "a.bias", "b.weight", "b.bias", "w"}
    assert len(ours.parameters()) == len(list(theirs.parameters())) == 2
    ours.load_state_dict({name: tensor.numpy() for name, tensor in theirs.state_dict().items()})
    assert_close(ours.b.weight, theirs.b.weight)
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in Tied().state_dict().items()})


def test_one_name_of_a_shared_member_is_enough(backend: Backend) -> None:
    """Files of earlier versions have one name, and so have files of safetensors.torch.save_model."""
    ours, state = Tied(), Tied().state_dict()
    ours.load_state_dict({name: state[name] for name in ("b.weight", "a.bias")})
    assert_close(ours.w, state["a.weight"])
    before = ours.state_dict()
    with pytest.raises(ValueError, match=r"does not fit: missing a\.weight; unexpected c$"):
        ours.load_state_dict({"a.bias": state["a.bias"], "c": state["w"]})
    with pytest.raises(ValueError, match=r"does not fit: w differs from a\.weight, which is the same Tensor$"):
        ours.load_state_dict({**state, "w": state["w"] + 1})
    assert_close(ours.w, before["w"])


def test_members_of_a_cycle_have_one_name_in_the_state(backend: Backend) -> None:
    """Their names have no end. Layers that hold each other would have a number of names that grows as a factorial."""
    layers = [Linear(1, 1, bias=False) for _ in range(20)]
    for layer in layers:
        layer.peers = [other for other in layers if other is not layer]  # type: ignore[attr-defined]
    model = Sequential(*layers)
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()]
    assert len(model.state_dict()) == 20


def test_functional_call_takes_each_name_of_a_shared_member(backend: Backend) -> None:
    model, x = Sequential(*[Linear(2, 2)] * 2), Tensor([[1.0, 2.0]])
    state = {name: Tensor(array) for name, array in model.state_dict().items()}
    zeros = {name: Tensor(np.zeros(tensor.shape)) for name, tensor in state.items() if name.startswith("1.")}
    assert functional_call(model, zeros, x).tolist() == [[0.0, 0.0]]
    with pytest.raises(ValueError, match=r"functional_call: 0\.weight and 1\.weight are one Tensor; give one of them"):
        functional_call(model, state, x)


class ListModule(Module, list[Any]):
    """A module that is also a list, such as PyTorch's ModuleList."""


class DictModule(Module, dict[str, Any]):
    """A module that is also a dict."""


def test_a_module_may_be_a_list_or_a_dict(backend: Backend) -> None:
    layers: Any = ListModule([LayerNorm(2), Tensor([1.0])])
    layers.scale = Tensor([2.0])
    model = Holder(layers=layers, heads=DictModule(a=Tensor([3.0])), more=UserList([Tensor([4.0])]))
    assert named(model) == [
        "layers.scale", "layers.0.gamma", "layers.0.beta", "layers.1", "heads.a", "more.0"
    ]  # fmt: skip
    assert [type(m).__name__ for m in model.modules()] == ["Holder", "ListModule", "LayerNorm", "DictModule"]
    with pytest.raises(TypeError, match="Module: all is a dict_values with Tensors or modules; use a list or a dict"):
        Holder(all={"a": Tensor([1.0])}.values()).parameters()


def test_modules_may_be_nested_deeply(backend: Backend) -> None:
    module = Holder(w=Tensor([1.0]))
    for _ in range(2000):
        module = Holder(inner=module)
    assert named(module) == ["inner." * 2000 + "w"]


@pytest.mark.parametrize("kind", [set, frozenset])
def test_a_set_of_modules_raises(backend: Backend, kind: type) -> None:
    """A set has no fixed order, and so no names."""
    for member in (LayerNorm(2), Tensor([1.0])):
        module = Holder(inner=Holder(layers=kind([member])))
        for call in (module.parameters, module.state_dict, module.eval, module.zero_grad):
            with pytest.raises(
                TypeError, match=f"Module: inner.layers is a {kind.__name__} with Tensors or modules; use"
            ):
                call()
    assert named(Holder(numbers=kind([1, 2]), w=Tensor([1.0]))) == ["w"]


@pytest.mark.parametrize("members", [{"a.b": 0, "a": {"b": 0}}, {0: 0, "0": 0}])
def test_two_members_with_one_name_raise(backend: Backend, members: dict[Any, Any]) -> None:
    def filled(value: Any) -> Any:
        return {key: filled(v) for key, v in value.items()} if isinstance(value, dict) else Tensor([1.0])

    with pytest.raises(ValueError, match=r"^Holder: two members have the name heads\.(a\.b|0); rename one of them"):
        Holder(heads=filled(members)).state_dict()


# --- Buffers


class Counter(Module):
    """A parameter, buffers of three dtypes, and attributes that are neither."""

    def __init__(self) -> None:
        self.scale = Tensor([2.0, 3.0])
        self.mean = Tensor([4.0, 5.0], requires_grad=False)
        self.seen = Tensor(np.array(6))
        self.masks = [Tensor([True, False])]
        self.cache = self.mean.data


BUFFERS = ["mean", "seen", "masks.0"]


def test_a_tensor_that_tracks_no_gradient_is_a_buffer(backend: Backend) -> None:
    """It is saved, loaded, moved and cast, and not trained."""
    module, other = Counter(), Counter()
    assert named(module) == ["scale"]
    assert [name for name, _ in module.named_buffers()] == BUFFERS
    assert module.buffers()[0] is module.mean
    module.mean.data = backend.asarray([7.0, 8.0])
    module.seen.data = backend.asarray(np.array(9))
    module.masks[0].data = backend.asarray(np.array([False, False]))
    state = module.state_dict()
    assert list(state) == ["scale", *BUFFERS]
    other.load_state_dict(state)
    assert [b.numpy().tolist() for b in other.buffers()] == [[7.0, 8.0], 9, [False, False]]
    module.astype("float32")
    assert [str(b.dtype) for b in module.buffers()] == ["float32", "int64", "bool"]
    assert not any(b.requires_grad for b in module.to("numpy").buffers())
    assert {b.backend.name for b in module.buffers()} == {"numpy"}
    assert module.scale.requires_grad


def test_buffers_are_not_trained(backend: Backend) -> None:
    module = Counter()
    for flat in (False, True):
        optimizer = SGDOptimizer(module.parameters(), lr=1.0, flat=flat)
        module.zero_grad()
        (module.scale * module.mean).sum().backward()
        optimizer.step()
    assert module.scale.numpy().tolist() == [-6.0, -7.0]
    assert module.mean.numpy().tolist() == [4.0, 5.0]


def test_a_frozen_parameter_is_a_buffer(backend: Backend) -> None:
    pair = Pair()
    everything = list(pair.state_dict())
    pair.layers[0].gamma.requires_grad = False
    assert named(pair) == [name for name in NAMES if name != "layers.0.gamma"]
    assert [name for name, _ in pair.named_buffers()] == ["layers.0.gamma"]
    assert list(pair.state_dict()) == everything
    Pair().load_state_dict(pair.state_dict())
    pair.layers[0].gamma.grad = backend.asarray([1.0, 1.0])
    pair.zero_grad()
    assert pair.layers[0].gamma.grad is None
    pair.layers[0].gamma.requires_grad = True
    assert named(pair) == NAMES


def test_a_result_of_an_operation_is_not_moved(backend: Backend) -> None:
    """An optimizer refuses it too. The error names the attribute, and nothing has moved."""
    module = Holder(w=Tensor([1.0]), scaled=Tensor([2.0]) * 0.5)
    for call in (lambda: module.to("numpy"), lambda: module.astype("float32")):
        with pytest.raises(RuntimeError, match=r"^Holder: scaled is the result of an operation, which cannot be moved"):
            call()
    assert module.w.backend is backend and module.w.dtype == "float64"  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="SGDOptimizer: parameters must be leaf Tensors, got a Tensor returned by"):
        SGDOptimizer(module.parameters(), lr=0.1)


# --- Entries that do not fit


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (None, r"beta is a NoneType, expected an array of shape \(2,\)"),
        ([1.0, 2.0], r"beta is a list, expected an array of shape \(2,\)"),
        ("ab", "beta is a str, expected an array"),
        (np.array(["a", "b"]), "beta: "),
        (np.array([None, None]), "beta: "),
        (np.array([1j, 2j]), "beta: "),
        (np.zeros((2, 1)), r"beta has shape \(2, 1\), expected \(2,\)"),
        (np.float64(1.0), r"beta has shape \(\), expected \(2,\)"),
    ],
)
def test_an_entry_that_is_no_array_of_numbers_raises_and_changes_nothing(
    backend: Backend, entry: Any, message: str
) -> None:
    norm = LayerNorm(2)
    with pytest.raises(ValueError, match=f"load_state_dict: LayerNorm does not fit: {message}"):
        norm.load_state_dict({"gamma": np.array([8.0, 8.0]), "beta": entry})
    assert norm.gamma.numpy().tolist() == [1.0, 1.0]
    assert norm.beta.numpy().tolist() == [0.0, 0.0]


def test_floats_for_an_integer_buffer_raise(backend: Backend) -> None:
    module = Counter()
    state = module.state_dict()
    with pytest.raises(ValueError, match=r"seen is float64, expected int64; masks\.0 is float64, expected bool"):
        module.load_state_dict({**state, "seen": np.array(1.5), "masks.0": np.array([0.5, 0.5])})
    module.load_state_dict({**state, "seen": np.array(3, "int32"), "mean": np.array([1, 2])})
    assert module.seen.item() == 3 and module.mean.numpy().tolist() == [1.0, 2.0]


@pytest.mark.parametrize("state", [None, "model.safetensors", [1.0]])
def test_a_state_that_is_no_mapping_raises(backend: Backend, state: Any) -> None:
    with pytest.raises(TypeError, match="load_state_dict: needs a state_dict, got a"):
        LayerNorm(2).load_state_dict(state)


def test_entries_may_be_tensors_of_any_library_and_dtype(backend: Backend) -> None:
    """They are copied."""
    norm = LayerNorm(2)
    gamma, beta = Tensor([5.0, 6.0]), torch.tensor([7.0, 8.0])
    norm.load_state_dict({"gamma": gamma, "beta": beta})
    gamma.data += 1.0
    beta += 1.0
    assert norm.gamma.numpy().tolist() == [5.0, 6.0] and norm.gamma.requires_grad
    assert norm.beta.numpy().tolist() == [7.0, 8.0] and norm.beta.dtype == "float64"
    with use_backend("numpy"):
        norm.load_state_dict(LayerNorm(2).state_dict())
    assert norm.gamma.backend is backend


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
    assert str(backend.dtype(pair.scale.grad)) == "float32"


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


def test_hooks_stay_when_a_module_is_cast_or_moved(backend: Backend) -> None:
    module = Holder(w=Tensor([2.0]))
    remove = module.w.register_hook(lambda g: g * 3)  # type: ignore[attr-defined]
    module.astype("float32").to("numpy")
    for expected in (3.0, 1.0):
        module.zero_grad()
        module.w.sum().backward()  # type: ignore[attr-defined]
        assert module.w.grad.tolist() == [expected]  # type: ignore[attr-defined]
        remove()


def test_hooks_stay_when_a_module_is_frozen_and_unfrozen(backend: Backend) -> None:
    module, twin = Holder(w=Tensor([2.0])), torch.tensor([2.0], requires_grad=True)
    removes = [module.w.register_hook(lambda g: g * 3)]  # type: ignore[attr-defined]
    removes.append(twin.register_hook(lambda g: g * 3).remove)
    for expected in (3.0, 1.0):
        module.freeze().unfreeze().zero_grad()
        module.w.sum().backward()  # type: ignore[attr-defined]
        assert module.w.grad.tolist() == [expected]  # type: ignore[attr-defined]
        twin.requires_grad_(False).requires_grad_(True).grad = None
        twin.sum().backward()
        assert twin.grad is not None and twin.grad.tolist() == [expected]
        for remove in removes:
            remove()


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


@pytest.mark.parametrize("own", ["float64", "bfloat16"])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_state_in_bfloat16_loads_on_every_backend(backend: Backend, own: str, as_tensor: bool) -> None:
    if "bfloat16" not in backend.float_dtypes():
        pytest.skip(f"{backend.name} has no bfloat16")
    half = LayerNorm(2).astype("bfloat16")
    half.gamma.data = backend.asarray([0.5, 3.0], "bfloat16")
    state = {name: p if as_tensor else p.numpy() for name, p in half.named_parameters()}
    with use_backend("numpy"):
        norm = LayerNorm(2)
    norm.load_state_dict(state)
    assert norm.gamma.numpy().tolist() == [0.5, 3.0]
    same = LayerNorm(2).astype(own)
    same.load_state_dict(state)
    assert str(same.gamma.dtype) == own and same.gamma.numpy().tolist() == [0.5, 3.0]


# --- Freezing and printing


def test_freeze_and_unfreeze(backend: Backend) -> None:
    model = Sequential(Linear(2, 3), BatchNorm(3), Sequential(Linear(3, 1)))
    names = [name for name, _ in model.named_parameters()]
    buffers = [name for name, _ in model.named_buffers()]
    model(Tensor(rng().normal(size=(4, 2)))).sum().backward()
    assert model[0].freeze() is model[0]
    assert [name for name, _ in model.named_parameters()] == names[2:]
    assert model[0].weight.grad is None
    model(Tensor(rng().normal(size=(4, 2)))).sum().backward()
    assert model[0].weight.grad is None
    assert model[1].weight.grad is not None

    model.freeze()
    assert model.parameters() == []
    model[2].unfreeze()  # a part of what was frozen as a whole
    assert [name for name, _ in model.named_parameters()] == names[4:]
    model.unfreeze()  # and the whole, of which a part was frozen first
    assert [name for name, _ in model.named_parameters()] == names
    assert [name for name, _ in model.named_buffers()] == buffers  # running averages are not trained


def test_a_frozen_module_inside_a_new_one_is_unfrozen_with_it() -> None:
    part = Linear(2, 3).freeze()
    whole = Sequential(part, Linear(3, 1))
    assert [name for name, _ in whole.named_parameters()] == ["1.weight", "1.bias"]
    copied = copy.deepcopy(whole).unfreeze()
    assert len(copied.parameters()) == 4
    assert len(whole.parameters()) == 2
    whole.unfreeze()
    assert len(whole.parameters()) == 4


def test_freeze_of_an_argument_of_a_transform_is_an_error() -> None:
    layer = Linear(2, 1)

    def loss(parameters: Any) -> Tensor:
        with replaced_tensors(layer, parameters):
            layer.freeze()
            return layer(Tensor([[1.0, 2.0]])).sum()

    with pytest.raises(RuntimeError, match="argument of a transform"):
        grad(loss)(dict(layer.named_parameters()))
    assert len(layer.parameters()) == 2


def test_a_module_prints_as_a_tree() -> None:
    model = Sequential(
        Linear(20, 60), ReLU(), Sequential(layers.LayerNorm(60), Linear(60, 2)).freeze(), BatchNorm(2), Dropout(0.1)
    )
    assert (
        repr(model)
        == """\
Sequential                                               1,264 parameters
  0: Linear(in_features=20, out_features=60)             1,260
    weight: (60, 20)                                     1,200
    bias: (60,)                                             60
  1: ReLU
  2: Sequential
    0: LayerNorm(normalized_shape=(60,), eps=1e-05)
      weight: (60,) frozen
      bias: (60,) frozen
    1: Linear(in_features=60, out_features=2)
      weight: (2, 60) frozen
      bias: (2,) frozen
  3: BatchNorm(num_features=2, eps=1e-05, momentum=0.1)      4
    weight: (2,)                                             2
    bias: (2,)                                               2
    running_mean: (2,) float64 buffer
    running_var: (2,) float64 buffer
    num_batches_tracked: () int64 buffer
  4: Dropout(p=0.1)"""
    )
    assert repr(ReLU()) == "ReLU"
    assert repr(Sequential()) == "Sequential"


def test_equal_blocks_are_printed_once() -> None:
    class Net(Module):
        def __init__(self) -> None:
            self.text = "x" * 100
            self.blocks = [Linear(2, 2) for _ in range(12)] + [Linear(2, 3)]

    assert (
        repr(Net())
        == """\
Net(text='xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...)                   81 parameters
  blocks.0 to blocks.11: 12 x Linear(in_features=2, out_features=2)  72
    weight: (2, 2)                                                    4
    bias: (2,)                                                        2
  blocks.12: Linear(in_features=2, out_features=3)                    9
    weight: (3, 2)                                                    6
    bias: (3,)                                                        3"""
    )
    shared = Linear(2, 2)
    assert repr(Sequential(shared, shared)).count("Linear") == 1  # each once, as in named_parameters


def test_a_deeply_nested_module_is_printed() -> None:
    model: Module = Linear(1, 1)
    for _ in range(2000):
        model = Sequential(model)
    assert repr(model).count("Sequential") == 2000


def test_freeze_of_a_result_of_an_operation_names_it_and_changes_nothing(backend: Backend) -> None:
    module = Holder(w=Tensor([1.0]), scaled=Tensor([2.0]) * 0.5)
    with pytest.raises(RuntimeError, match=r"^Holder: scaled is the result of an operation, which cannot be frozen"):
        module.freeze()
    assert len(module.parameters()) == 2 and not module._frozen


def test_settings_are_printed_as_python_numbers() -> None:
    module = Holder(
        a=np.int64(3), b=np.float32(0.5), c=(np.float64(1.5), (2, "x")), d=np.bool_(True), array=np.ones(2), none=None,
        empty=(), function=len, mixed=(1, None),
    )  # fmt: skip
    assert repr(module) == "Holder(a=3, b=0.5, c=(1.5, (2, 'x')), d=True)"


def test_a_frozen_weight_that_two_layers_share_is_printed_as_frozen() -> None:
    with use_backend("numpy"):
        embedding, out = layers.Embedding(5, 4), Linear(4, 5, bias=False)
        out.weight = embedding.weight
        module = Holder(embedding=embedding, out=out)
        out.freeze()
    assert "weight: (5, 4) frozen" in repr(module)


def test_runs_of_equal_blocks_inside_equal_blocks_are_merged() -> None:
    with use_backend("numpy"):
        block = [Sequential(Linear(2, 2), Linear(2, 2)) for _ in range(3)]
        printed = repr(Sequential(*block, Linear(2, 2), Linear(2, 2), Linear(2, 1)))
    names = [line.split(":")[0] for line in printed.split("\n")[1:]]
    inner = ["    0 to 1", "      weight", "      bias"]
    assert names == ["  0 to 2", *inner, "  3 to 4", "    weight", "    bias", "  5", "    weight", "    bias"]


def test_train_takes_a_bool() -> None:
    module = Linear(2, 3)
    with pytest.raises(TypeError, match=r"^train: mode must be True or False, got 'eval'$"):
        module.train("eval")  # type: ignore[arg-type]
    assert module.training
