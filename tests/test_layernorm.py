"""Layer normalization against PyTorch. Can be run as a script: `python tests/test_layernorm.py`."""

import sys

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))

import numpy as np
import torch.nn.functional as F  # noqa: N812 - PyTorch's own abbreviation

from russellgrad import Tensor, layer_norm
from russellgrad.backend import Backend
from russellgrad.russelltransformer import LayerNorm
from tests.helpers import assert_close, check_against_torch, rng
from tests.torch_twin import layer_norm as torch_layer_norm
from tests.torch_twin import randomise, torch_params


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (4, 1), (0, 5)])
def test_layer_norm_matches_pytorch(backend: Backend, shape: tuple[int, ...], dtype: str) -> None:
    draws = rng()
    x, gamma, beta = draws.normal(size=shape), draws.normal(size=shape[-1:]), draws.normal(size=shape[-1:])
    check_against_torch(
        layer_norm,
        lambda x, gamma, beta: F.layer_norm(x, x.shape[-1:], gamma, beta),
        x, gamma, beta,
        dtype=dtype,
    )  # fmt: skip


def test_layer_norm_is_accurate_for_a_large_mean(backend: Backend) -> None:
    """E[x^2] - E[x]^2 would lose every digit here: the mean is 1e8 times the standard deviation."""
    x = 1e8 + rng().normal(size=(4, 64))
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    assert_close(layer_norm(Tensor(x)), expected, atol=1e-7)  # x itself is rounded to 1.5e-8


def test_layer_norm_module_matches_pytorch(backend: Backend) -> None:
    module = LayerNorm(6)
    randomise(module)
    params = torch_params(module)
    x = rng(3).normal(size=(2, 5, 6))
    check_against_torch(module, lambda x: torch_layer_norm(params, x), x)
    for name, parameter in module.named_parameters():
        assert_close(parameter.grad, params[name].grad, what=name)


def test_normalized_rows_have_mean_0_and_variance_1(backend: Backend) -> None:
    y = LayerNorm(32)(Tensor(rng().normal(3, 5, size=(7, 32)))).numpy()
    assert_close(y.mean(-1), np.zeros(7), atol=1e-12)
    assert_close(y.var(-1), np.ones(7), atol=1e-5)  # less than 1 by eps / variance


def test_mismatched_shapes_raise(backend: Backend) -> None:
    with pytest.raises(ValueError, match=r"layer_norm: gamma \(4,\) does not fit x \(2, 5\)"):
        layer_norm(Tensor(np.ones((2, 5))), Tensor(np.ones(4)))
    with pytest.raises(ValueError, match="layer_norm: x is 0-d"):
        layer_norm(Tensor(1.0))
