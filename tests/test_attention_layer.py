"""MultiHeadAttention against PyTorch's MultiheadAttention."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import russellgrad as rg
from russellgrad import Tensor
from russellgrad.backend import Backend
from russellgrad.layers import MultiHeadAttention
from russellgrad.random import Generator
from tests.helpers import Array, assert_close, rng

E, H, L, S, N = 6, 3, 4, 5, 2


def pair(dtype: str = "float64", **options: Any) -> tuple[MultiHeadAttention, nn.MultiheadAttention]:
    """Our layer and PyTorch's, with the same parameters, loaded in both directions."""
    ours, theirs = MultiHeadAttention(E, H, **options), nn.MultiheadAttention(E, H, **options)
    theirs.to(getattr(torch, dtype))
    ours.astype(dtype)
    with torch.no_grad():
        for i, weight in enumerate(theirs.parameters()):
            weight.copy_(torch.from_numpy(rng(7 + i).normal(0.1, 0.6, weight.shape)))
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict({key: torch.from_numpy(array) for key, array in ours.state_dict().items()})
    return ours, theirs


def check(
    inputs: list[Array], masks: dict[str, Any], *, causal: bool = False, dtype: str = "float64",
    need_weights: bool = True, average: bool = True, **options: Any,
) -> None:  # fmt: skip
    """Compare output, weights and all gradients. With one input, it is the query, the key and the value."""
    ours, theirs = pair(dtype, **options)
    mine = [Tensor(a.astype(dtype)) for a in inputs]
    reference = [torch.tensor(a.astype(dtype), requires_grad=True) for a in inputs]
    given = {"need_weights": need_weights, "average_attn_weights": average}
    length, keys = (
        a.shape[0 if a.ndim == 2 else int(options.get("batch_first", False))] for a in (inputs[0], inputs[-1])
    )
    hidden = np.triu(np.ones((length, keys), bool), 1)
    their_masks = {name: torch.tensor(mask) for name, mask in masks.items()}
    if causal:
        their_masks["attn_mask"] = their_masks.get("attn_mask", torch.tensor(False)) | torch.tensor(hidden)
    found = ours(*(mine * 3 if len(mine) == 1 else mine), **masks, **given, is_causal=causal)
    expected = theirs(*(reference * 3 if len(mine) == 1 else reference), **their_masks, **given)
    assert (found[1] is None) == (expected[1] is None) == (not need_weights)
    ours_total: Any = 0
    theirs_total: Any = 0
    for i, (a, e) in enumerate(zip(found, expected, strict=True)):
        if a is not None:
            assert_close(a, e, what=("output", "weights")[i])
            upstream = rng(20 + i).normal(size=a.shape).astype(dtype)
            ours_total = ours_total + (a * Tensor(upstream, requires_grad=False)).sum()
            theirs_total = theirs_total + (e * torch.tensor(upstream)).sum()
    ours_total.backward()
    theirs_total.backward()
    for a, e in zip(mine, reference, strict=True):
        assert_close(a.grad, e.grad, what="gradient of an input")
    gradients = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        assert_close(parameter.grad, gradients.pop(key).grad, what=f"gradient of {key}")
    assert not gradients


def sequences(layout: str) -> list[Array]:
    """A query, a key and a value."""
    shapes = [(n, E) if layout == "one" else (N, n, E) if layout == "batch_first" else (n, N, E) for n in (L, S, S)]
    return [rng(i).normal(size=shape[::-1]).T for i, shape in enumerate(shapes)]


def padding(keys: int, one: bool = False) -> Array:
    hidden = np.arange(keys) >= np.array([[keys - 2], [keys]])
    return hidden[0] if one else hidden


def some(*shape: int) -> Array:
    hidden = rng(8).random(shape) < 0.4
    hidden[..., 0] = False  # PyTorch's weights are nan where all keys are hidden
    return hidden


LAYOUTS = pytest.mark.parametrize("layout", ["batch_first", "batch second", "one"])
WEIGHTS = pytest.mark.parametrize(("need_weights", "average"), [(True, True), (True, False), (False, True)])


@LAYOUTS
@WEIGHTS
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("is_cross", [True, False])
def test_outputs_weights_and_gradients(
    backend: Backend, layout: str, need_weights: bool, average: bool, bias: bool, is_cross: bool
) -> None:
    inputs = sequences(layout) if is_cross else sequences(layout)[:1]
    check(inputs, {}, need_weights=need_weights, average=average, bias=bias, batch_first=layout == "batch_first")


@LAYOUTS
@WEIGHTS
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("with_padding", "attn_mask"),
    [c for c in itertools.product([False, True], ["", "(L, S)", "(N H, L, S)"]) if any(c)],
)
def test_masks(
    backend: Backend, layout: str, need_weights: bool, average: bool, with_padding: bool, attn_mask: str, causal: bool
) -> None:
    one = layout == "one"
    masks = {"key_padding_mask": padding(S, one)} if with_padding else {}
    if attn_mask:
        masks["attn_mask"] = some(L, S) if attn_mask == "(L, S)" else some((1 if one else N) * H, L, S)
    check(
        sequences(layout), masks, causal=causal, need_weights=need_weights, average=average,
        batch_first=layout == "batch_first",
    )  # fmt: skip


@pytest.mark.parametrize("need_weights", [True, False])
def test_causal_self_attention(backend: Backend, need_weights: bool) -> None:
    check(sequences("batch_first")[:1], {}, causal=True, need_weights=need_weights, batch_first=True)


@pytest.mark.parametrize("need_weights", [True, False])
def test_float32(backend: Backend, need_weights: bool) -> None:
    check(sequences("one"), {"attn_mask": some(L, S)}, dtype="float32", need_weights=need_weights)


def test_key_and_value_may_be_one_tensor(backend: Backend) -> None:
    ours, theirs = pair()
    x, y = (Tensor(a) for a in sequences("batch second")[:2])
    tx, ty = (torch.tensor(t.numpy(), requires_grad=True) for t in (x, y))
    ours(x, y, y)[0].sum().backward()
    theirs(tx, ty, ty)[0].sum().backward()
    assert_close(x.grad, tx.grad)
    assert_close(y.grad, ty.grad)


def test_masks_may_be_tensors_or_lists(backend: Backend) -> None:
    ours, _ = pair()
    x, hidden = Tensor(sequences("one")[0]), some(L, L)
    expected = ours(x, x, x, attn_mask=hidden)[0]
    for given in (Tensor(hidden), hidden.tolist(), torch.tensor(hidden)):
        assert_close(ours(x, x, x, attn_mask=given)[0], expected, atol=0)


@pytest.mark.parametrize("need_weights", [True, False])
def test_a_query_from_which_all_keys_are_hidden(backend: Backend, need_weights: bool) -> None:
    """Its weights are 0, and its output the bias; PyTorch's are nan. Other queries are not affected."""
    ours, theirs = pair()
    x, hidden = Tensor(sequences("one")[0]), some(L, L)
    hidden[1] = True
    out, weights = ours(x, x, x, need_weights=need_weights, attn_mask=hidden)
    others = [0, 2, 3]
    tx = torch.tensor(x.numpy())
    expected, their_weights = theirs(tx[others], tx, tx, attn_mask=torch.tensor(hidden[others]))
    assert_close(out[others], expected)
    assert ours.out_proj.bias is not None
    assert_close(out[1], ours.out_proj.bias)
    if weights is not None:
        assert_close(weights[others], their_weights)
        assert weights[1].numpy().max() == 0
    out.sum().backward()
    assert x.grad is not None and np.isfinite(Tensor(x.grad).numpy()).all()


def test_dropout(backend: Backend) -> None:
    ours, theirs = pair(dropout=0.5)
    x = Tensor(sequences("batch second")[0])
    expected = theirs.eval()(*[torch.tensor(x.numpy())] * 3)[0]
    assert_close(ours.eval()(x, x, x)[0], expected)
    ours.train()
    found = []
    for need_weights in (True, False):
        ours.dropout.generator = Generator(3)
        found.append(ours(x, x, x, need_weights=need_weights))
    assert_close(found[0][0], found[1][0])
    assert abs(found[0][0].numpy() - expected.detach().numpy()).max() > 0.01
    assert found[0][1] is not None and found[1][1] is None
    ours.dropout.generator = Generator(3)
    heads = ours(x, x, x, average_attn_weights=False)[1]
    assert heads is not None
    assert 0.2 < (heads.numpy() == 0).mean() < 0.8


@pytest.mark.parametrize("need_weights", [True, False])
def test_hessian_vector_product(backend: Backend, need_weights: bool) -> None:
    ours, theirs = pair()
    x, v, w, hidden = *(rng(i).normal(size=(L, E)) for i in range(3)), some(L, L)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the fused one has no second derivative
        _, expected = torch.autograd.functional.hvp(
            lambda x: (theirs(x, x, x, attn_mask=torch.tensor(hidden))[0] * torch.tensor(w)).sum(),
            torch.tensor(x), torch.tensor(v),
        )  # fmt: skip
    found = rg.hvp(
        lambda x: (ours(x, x, x, attn_mask=hidden, need_weights=need_weights)[0] * Tensor(w)).sum(),
        Tensor(x), Tensor(v, requires_grad=False),
    )  # fmt: skip
    assert_close(found, expected)


def test_initial_parameters(backend: Backend) -> None:
    layer = MultiHeadAttention(32, 4, generator=Generator(1))
    state = layer.state_dict()
    bound = np.sqrt(6 / (4 * 32))
    assert 0.99 * bound < abs(state["in_proj_weight"]).max() <= bound
    assert 0.98 / np.sqrt(32) < abs(state["out_proj.weight"]).max() <= 1 / np.sqrt(32)
    assert not state["in_proj_bias"].any() and not state["out_proj.bias"].any()
    assert list(MultiHeadAttention(E, H, bias=False).state_dict()) == ["in_proj_weight", "out_proj.weight"]
    other = MultiHeadAttention(32, 4, generator=Generator(1)).state_dict()
    np.testing.assert_array_equal(state["in_proj_weight"], other["in_proj_weight"])


def test_errors(backend: Backend) -> None:
    with pytest.raises(ValueError, match=r"^MultiHeadAttention: num_heads=4 does not divide embed_dim=6"):
        MultiHeadAttention(6, 4)
    with pytest.raises(ValueError, match=r"^MultiHeadAttention: num_heads must be positive, got 0"):
        MultiHeadAttention(6, 0)
    with pytest.raises(TypeError, match=r"^MultiHeadAttention: bias must be True or False, got 1"):
        MultiHeadAttention(6, 3, bias=1)  # type: ignore[arg-type]
    layer = MultiHeadAttention(E, H)
    good = Tensor(np.zeros((L, N, E)))
    for shapes in (((L, N, E), (L, N, E), (S, N, E)), ((L, E), (S, N, E), (S, N, E)), ((L, N, E), (S, E), (S, E)),
                   ((L, N, E + 1),) * 3, ((L, N, E), (S, N + 1, E), (S, N + 1, E)), ((E,),) * 3,
                   ((1, L, N, E),) * 3):  # fmt: skip
        with pytest.raises(
            ValueError, match=r"^MultiHeadAttention: query \(.*\), key \(.*\) and value \(.*\) do not fit"
        ):
            layer(*(Tensor(np.zeros(shape)) for shape in shapes))
    with pytest.raises(TypeError, match=r"^MultiHeadAttention: key must be a Tensor, got a ndarray"):
        layer(good, np.zeros((L, N, E)), good)
    for name, shape, expected in (
        ("key_padding_mask", (L, N), r"\(2, 4\)"), ("key_padding_mask", (L,), r"\(2, 4\)"),
        ("attn_mask", (L, S), r"\(4, 4\) or \(6, 4, 4\)"), ("attn_mask", (N, L, L), r"\(4, 4\) or \(6, 4, 4\)"),
    ):  # fmt: skip
        given: Any = {name: np.zeros(shape, bool)}
        with pytest.raises(ValueError, match=rf"^MultiHeadAttention: {name} has shape \(.*\), expected {expected}$"):
            layer(good, good, good, **given)
    with pytest.raises(TypeError, match=r"^MultiHeadAttention: attn_mask must be bool, got float64; True hides a key"):
        layer(good, good, good, attn_mask=np.zeros((L, L)))
    with pytest.raises(TypeError, match=r"^MultiHeadAttention: is_causal must be True or False, got 1"):
        layer(good, good, good, is_causal=1)


def test_batch_first_is_not_positional() -> None:
    """The fifth positional argument of PyTorch's layer is another one, `add_bias_kv`."""
    with pytest.raises(TypeError, match="positional argument"):
        MultiHeadAttention(8, 2, 0.0, True, True)  # type: ignore[call-arg]
