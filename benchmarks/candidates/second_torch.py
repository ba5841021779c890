"""PyTorch (eager) in the benchmark of second derivatives. A builder takes strings and returns the callable to time."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F  # noqa: N812 - PyTorch's own abbreviation
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.candidates.model import (
    CRITIC,
    CRITIC_BATCH,
    MLP,
    Array,
    Size,
    batches,
    build_model,
    direction,
    fingerprint,
    mlp_arrays,
    random,
)

Call = Callable[[], Callable[[], list[float]]]
Tensors: TypeAlias = dict[str, torch.Tensor]
Attention: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Model:
    """The model as functions of its parameters, with a batch.

    `attention` is "flash" (PyTorch's fastest, which has no second derivative), "math" (its composition for any
    device) or "composed" (a composition written here, which is faster).
    """

    def __init__(self, size: str, dtype: str, attention: str) -> None:
        self.size, self.dtype = Size.parse(size), getattr(torch, dtype)
        self.kernels = [SDPBackend.MATH] if attention == "math" else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
        self.attention = _composed_attention(self.size, self.dtype) if attention == "composed" else _fused_attention
        weights = build_model(self.size, dtype).state_dict()
        self.parameters, self.v = _in_torch_layout(weights), _in_torch_layout(direction(weights))
        self.inputs, self.targets = map(torch.from_numpy, next(batches(self.size)))

    def logits(self, p: Mapping[str, torch.Tensor]) -> torch.Tensor:
        size, table = self.size, p["tokenizer.token_embedding"]

        def norm(x: torch.Tensor, name: str) -> torch.Tensor:
            return F.layer_norm(x, (size.width,), p[name + ".gamma"], p[name + ".beta"])

        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.view(*x.shape[:2], size.heads, size.width // size.heads).transpose(1, 2)

        x = F.embedding(self.inputs, table) + p["tokenizer.positional_encoding"]
        for i in range(size.layers):
            attention, ff = f"blocks.{i}.attention", f"blocks.{i}.feed_forward"
            q, k, v = map(heads, F.linear(norm(x, attention + "_norm"), p[attention + ".w_qkv"]).chunk(3, dim=-1))
            h = self.attention(q, k, v).transpose(1, 2).reshape(x.shape)
            x = x + F.linear(h, p[attention + ".w_out"])
            h = F.gelu(F.linear(norm(x, ff + "_norm"), p[ff + ".w_in"], p[ff + ".b_in"]))
            x = x + F.linear(h, p[ff + ".w_out"], p[ff + ".b_out"])
        return F.linear(norm(x, "final_norm"), table[:-1])  # padding is left out of the softmax

    def loss(self, p: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(self.logits(p).flatten(0, 1), self.targets.flatten())

    def leaves(self) -> Tensors:
        return {name: tensor.clone().requires_grad_() for name, tensor in self.parameters.items()}

    def fingerprint(self, tensors: Sequence[torch.Tensor]) -> list[float]:
        """As those of RussellGrad, whose matrices are (in, out)."""
        named = zip(self.parameters, tensors, strict=True)
        return fingerprint((t.T if ".w_" in name else t).detach().numpy() for name, t in named)


def _fused_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _composed_attention(size: Size, dtype: torch.dtype) -> Attention:
    later = torch.full((size.length, size.length), -math.inf, dtype=dtype).triu(1)

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.transpose(-1, -2)
        return (scores + later).softmax(-1) @ v

    return attention


def _in_torch_layout(arrays: Mapping[str, Array]) -> Tensors:
    """Convert matrices from (in, out) to (out, in), the layout of PyTorch's linear."""
    return {
        name: torch.tensor(array).T.contiguous() if ".w_" in name else torch.tensor(array)
        for name, array in arrays.items()
    }


def gradient(size: str, dtype: str = "float32") -> Call:
    """Forward and backward of the transformer's loss, with respect to all parameters, with fused attention."""
    model = Model(size, dtype, "flash")
    p = model.leaves()

    def call() -> Callable[[], list[float]]:
        for parameter in p.values():
            parameter.grad = None
        model.loss(p).backward()
        return lambda: model.fingerprint([_grad(parameter) for parameter in p.values()])

    return call


def _grad(tensor: torch.Tensor) -> torch.Tensor:
    assert tensor.grad is not None
    return tensor.grad


def hessian_vector_product(size: str, way: str, attention: str = "composed", dtype: str = "float32") -> Call:
    """Of the transformer's loss with respect to all parameters. The ways, as PyTorch's documentation names them:

    "double backward"; "forward over reverse", with dual tensors; and those of `torch.func`, "func, jvp of grad" and
    "func, vjp of grad".
    """
    model = Model(size, dtype, attention)
    leaves, p, v = model.leaves(), model.parameters, model.v

    def double_backward() -> Sequence[torch.Tensor]:
        tensors = list(leaves.values())
        gradients = torch.autograd.grad(model.loss(leaves), tensors, create_graph=True)
        return torch.autograd.grad(gradients, tensors, list(v.values()))

    def forward_over_reverse() -> Sequence[torch.Tensor]:
        with forward_ad.dual_level():
            dual = {name: forward_ad.make_dual(leaf, v[name]) for name, leaf in leaves.items()}
            gradients = torch.autograd.grad(model.loss(dual), list(dual.values()))
            return [forward_ad.unpack_dual(g).tangent for g in gradients]

    def jvp_of_grad() -> Sequence[torch.Tensor]:
        return list(torch.func.jvp(torch.func.grad(model.loss), (p,), (v,))[1].values())

    def vjp_of_grad() -> Sequence[torch.Tensor]:
        pull: Any = torch.func.vjp(torch.func.grad(model.loss), p)[1]
        return list(pull(v)[0].values())

    ways = {
        "double backward": double_backward,
        "forward over reverse": forward_over_reverse,
        "func, jvp of grad": jvp_of_grad,
        "func, vjp of grad": vjp_of_grad,
    }
    product = ways[way]

    def call() -> Callable[[], list[float]]:
        with sdpa_kernel(model.kernels):
            found = product()
        return lambda: model.fingerprint(found)

    return call


def jacobian_vector_product(size: str, way: str, dtype: str = "float32") -> Call:
    """The transformer's logits, and their derivative in a direction of all parameters; `way`: "dual" or "func"."""
    model = Model(size, dtype, "composed")
    p, v = model.parameters, model.v

    @torch.no_grad()
    def dual() -> torch.Tensor:
        with forward_ad.dual_level():
            tensors = {name: forward_ad.make_dual(tensor, v[name]) for name, tensor in p.items()}
            tangent = forward_ad.unpack_dual(model.logits(tensors)).tangent
        assert tangent is not None
        return tangent

    def func() -> torch.Tensor:
        return cast(torch.Tensor, torch.func.jvp(model.logits, (p,), (v,))[1])

    product = {"dual": dual, "func": func}[way]

    def call() -> Callable[[], list[float]]:
        tangent = product()
        return lambda: fingerprint([tangent.numpy()])

    return call


def gradient_penalty(way: str) -> Call:
    """The gradient of a critic with respect to its inputs, the penalty, and its gradient with respect to weights.

    `way` is "autograd" (`torch.autograd.grad`) or "func" (`torch.func.grad`).
    """
    weights = [torch.tensor(array, requires_grad=True) for array in mlp_arrays(CRITIC)]
    constants = tuple(weight.detach() for weight in weights)
    x = torch.tensor(random(CRITIC_BATCH, CRITIC[0]))

    def penalty_of(slope: torch.Tensor) -> torch.Tensor:
        return (((slope * slope).sum(1).sqrt() - 1) ** 2).mean()

    def autograd() -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        for weight in weights:
            weight.grad = None
        inputs = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(_mlp(weights, inputs).sum(), inputs, create_graph=True)
        penalty = penalty_of(slope)
        penalty.backward()
        return penalty.detach(), [_grad(weight) for weight in weights[:-1]]

    def func() -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        gradients, penalty = torch.func.grad_and_value(
            lambda weights: penalty_of(torch.func.grad(lambda x: _mlp(weights, x).sum())(x))
        )(constants)
        return penalty, gradients[:-1]

    step = {"autograd": autograd, "func": func}[way]

    def call() -> Callable[[], list[float]]:
        penalty, gradients = step()
        return lambda: [float(penalty), *fingerprint(g.numpy() for g in gradients)]

    return call


def full_jacobian(way: str) -> Call:
    """Of an MLP with respect to its input; `way`: "autograd" (`torch.autograd.functional`) or "func"."""
    functional: dict[str, Any] = {
        "autograd": lambda f: lambda x: torch.autograd.functional.jacobian(f, x),
        "func": torch.func.jacrev,
    }
    return _of_mlp(functional[way], lambda y: y)


def full_hessian(way: str) -> Call:
    """Of the sum of squares of an MLP's outputs; `way`: "autograd" (`torch.autograd.functional`) or "func"."""
    functional: dict[str, Any] = {
        "autograd": lambda f: lambda x: torch.autograd.functional.hessian(f, x),
        "func": torch.func.hessian,
    }
    return _of_mlp(functional[way], lambda y: (y * y).sum())


def _of_mlp(transform: Callable[..., Any], reduce: Callable[[torch.Tensor], torch.Tensor]) -> Call:
    weights, x = [torch.tensor(array) for array in mlp_arrays(MLP)], torch.tensor(random(MLP[0]))
    of_x = transform(lambda x: reduce(_mlp(weights, x)))

    def call() -> Callable[[], list[float]]:
        result = of_x(x)
        return lambda: fingerprint([result.numpy()])

    return call


def _mlp(weights: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    for i in range(0, len(weights), 2):
        x = (x.tanh() if i else x) @ weights[i] + weights[i + 1]
    return x
