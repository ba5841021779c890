"""Convolution and pooling against PyTorch: functions and layers, in every dtype, and their errors."""

import itertools
import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's convention
from torch import nn

import russellgrad as rg
from russellgrad import Tensor, compile_step
from russellgrad.backend import Backend
from russellgrad.layers import AvgPool2d, Conv1d, Conv2d, MaxPool2d
from russellgrad.module import Module
from russellgrad.optimizer import SGDOptimizer
from russellgrad.random import Generator
from tests.helpers import Array, assert_close, check_against_torch, once, rng, to_numpy

FLOAT32 = 3e-4  # absolute: sums of up to 2,000 products of standard normal numbers


def of(*shape: int, seed: int = 0) -> Array:
    return rng(seed).normal(size=shape)


def relu_of(*shape: int, seed: int = 0) -> Array:
    """Small integers, many of them 0: windows have ties."""
    return np.maximum(np.round(of(*shape, seed=seed)), 0)


def check_conv(x: Array, weight: Array, bias: Array | None, *args: Any, **options: Any) -> None:
    """conv1d or conv2d with these operands, with PyTorch's arguments."""
    name = f"conv{weight.ndim - 2}d"
    ours, theirs, operands = getattr(rg, name), getattr(F, name), [x, weight] + ([] if bias is None else [bias])
    dtype, atol = options.pop("dtype", "float64"), options.pop("atol", None)

    def call(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x, weight, bias=None: function(x, weight, bias, *args, **options)

    check_against_torch(call(ours), call(theirs), *operands, dtype=dtype, atol=atol)


# --- Convolution

STRIDES, DILATIONS = (1, 2, (2, 1), (3, 2)), (1, 2, (1, 2))


@pytest.mark.parametrize("dilation", DILATIONS, ids=str)
@pytest.mark.parametrize("stride", STRIDES, ids=str)
def test_conv2d_matches_pytorch(backend: Backend, stride: Any, dilation: Any) -> None:
    for padding, groups in itertools.product((0, 1, (2, 0), "valid"), (1, 2)):
        check_conv(of(3, 4, 9, 8), of(6, 4 // groups, 3, 2, seed=1), of(6, seed=2), stride, padding, dilation, groups)


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "no batch": ((4, 9, 8), (6, 4, 3, 2), {"padding": 1}),
    "empty batch": ((0, 4, 9, 8), (6, 4, 3, 2), {}),
    "one sample": ((1, 4, 9, 8), (6, 4, 3, 2), {"stride": 2}),
    "1x1": ((3, 4, 5, 6), (6, 4, 1, 1), {}),
    "1x1, groups": ((3, 4, 5, 6), (6, 2, 1, 1), {"groups": 2}),
    "1x1, stride": ((3, 4, 5, 6), (6, 4, 1, 1), {"stride": 2}),
    "1x1, padding": ((3, 4, 5, 6), (6, 4, 1, 1), {"padding": 1}),
    "kernel = input": ((3, 4, 5, 6), (6, 4, 5, 6), {}),
    "kernel = padded input": ((3, 4, 2, 3), (6, 4, 4, 5), {"padding": 1}),
    "1x1, depthwise": ((3, 4, 5, 6), (4, 1, 1, 1), {"groups": 4}),
    "one output in each group": ((3, 4, 5, 6), (2, 2, 3, 3), {"groups": 2}),
    "depthwise": ((3, 4, 5, 6), (4, 1, 3, 3), {"padding": 1, "groups": 4}),
    "depthwise, stride": ((3, 4, 5, 6), (4, 1, 3, 3), {"stride": 2, "groups": 4}),
    "depthwise, twice as many outputs": ((3, 4, 5, 6), (8, 1, 2, 2), {"groups": 4}),
    "one channel": ((3, 1, 5, 6), (1, 1, 2, 2), {}),
    "input of one row": ((3, 2, 1, 6), (4, 2, 1, 3), {}),
    "larger": ((9, 5, 17, 13), (7, 5, 3, 3), {"padding": 1}),
    "more padding than input": ((2, 3, 1, 2), (4, 3, 3, 3), {"padding": 4}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_conv2d_of_other_shapes(backend: Backend, name: str, with_bias: bool) -> None:
    shape, weight, options = CONVOLUTIONS[name]
    check_conv(of(*shape), of(*weight, seed=1), of(weight[0], seed=2) if with_bias else None, **options)
    check_conv(
        of(*shape), of(*weight, seed=1), of(weight[0], seed=2) if with_bias else None, dtype="float32", atol=FLOAT32,
        **options,
    )  # fmt: skip


def test_conv1d_matches_pytorch(backend: Backend) -> None:
    for shape in ((3, 4, 9), (4, 9), (0, 4, 9)):
        for stride, padding, dilation, groups in itertools.product((1, 2, (3,)), (0, 2), (1, 2), (1, 2)):
            weight = of(6, 4 // groups, 3, seed=1)
            check_conv(of(*shape), weight, of(6, seed=2), stride, padding, dilation, groups)
    check_conv(of(5, 16, 70), of(8, 16, 5, seed=1), None, padding=2, dtype="float32", atol=FLOAT32)


@pytest.mark.parametrize("kernel", [(1, 2), (3, 4), (2, 5)], ids=str)
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_same_padding_has_one_more_zero_at_the_end(backend: Backend, kernel: tuple[int, int], dilation: int) -> None:
    def theirs(x: Any, weight: Any) -> Any:  # padded before: PyTorch warns of the copy
        total = [dilation * (k - 1) for k in kernel]
        pad = [n for t in reversed(total) for n in (t // 2, t - t // 2)]
        return F.conv2d(F.pad(x, pad), weight, dilation=dilation)

    def ours(x: Any, weight: Any) -> Any:
        out = rg.conv2d(x, weight, padding="same", dilation=dilation)
        assert out.shape[2:] == x.shape[2:]
        return out

    check_against_torch(ours, theirs, of(2, 3, 5, 6), of(4, 3, *kernel, seed=1))


def test_operands_of_other_layouts(backend: Backend) -> None:
    check_against_torch(
        lambda x, w: rg.conv2d(x.transpose((0, 3, 1, 2)), w.T, stride=(1, 2), padding=1),
        lambda x, w: F.conv2d(x.permute(0, 3, 1, 2), w.permute(3, 2, 1, 0), stride=(1, 2), padding=1),
        of(2, 6, 5, 3), of(2, 3, 3, 4, seed=1),
    )  # fmt: skip
    check_against_torch(
        lambda x, b: rg.max_pool2d(rg.conv2d(x[:, ::-1, ::2], Tensor(of(2, 3, 2, 2)), b[::2]).T, 2),
        lambda x, b: F.max_pool2d(
            F.conv2d(x.flip(1)[:, :, ::2], torch.tensor(of(2, 3, 2, 2)), b[::2]).permute(3, 2, 1, 0), 2
        ),
        of(2, 3, 9, 6), of(4, seed=1),
    )  # fmt: skip
    column = of(2, 3, 4, 1)
    check_against_torch(
        lambda x: rg.conv2d(x.broadcast_to((2, 3, 4, 5)), Tensor(of(2, 3, 2, 2))),
        lambda x: F.conv2d(x.broadcast_to((2, 3, 4, 5)), torch.tensor(of(2, 3, 2, 2))),
        column,
    )


def test_an_operand_used_twice(backend: Backend) -> None:
    check_against_torch(
        lambda x: rg.conv2d(x, x[:1, :, :2, :3] * x[0, 0, 0, 0], x[0, 0, 0, :1]) * rg.max_pool2d(x, (2, 3), 1)[:, :1],
        lambda x: F.conv2d(x, x[:1, :, :2, :3] * x[0, 0, 0, 0], x[0, 0, 0, :1]) * F.max_pool2d(x, (2, 3), 1)[:, :1],
        of(2, 3, 4, 5),
    )


@pytest.mark.parametrize("needs", list(itertools.product((False, True), repeat=3))[1:], ids=str)
def test_gradients_of_some_operands(backend: Backend, needs: tuple[bool, ...]) -> None:
    check_against_torch(
        lambda x, w, b: rg.conv2d(x, w, b, padding=1), lambda x, w, b: F.conv2d(x, w, b, padding=1),
        of(2, 3, 4, 5), of(4, 3, 3, 3, seed=1), of(4, seed=2), needs=needs,
    )  # fmt: skip


def test_half_precision_sums_in_float32(backend: Backend) -> None:
    """1,200 products of about 0.1 and 10 would lose digits in float16; a pool of 8 x 8 elements of 3e4 overflows."""
    x, weight = np.full((1, 300, 2, 2), 0.1, "float16"), np.full((1, 300, 2, 2), 10.0, "float16")
    expected = np.float16(1200 * np.float64(x[0, 0, 0, 0]) * 10)
    out = rg.conv2d(Tensor(x), Tensor(weight))
    assert out.dtype == np.float16 and to_numpy(out)[0, 0, 0, 0] == expected
    large = Tensor(np.full((1, 1, 8, 8), 3e4, "float16"))
    mean = rg.avg_pool2d(large, 8)
    assert mean.dtype == np.float16 and to_numpy(mean) == np.float16(3e4)
    largest = rg.max_pool2d(large, 3)
    assert largest.dtype == np.float16
    ((largest * 1e-4).sum() + mean.sum()).backward()
    assert to_numpy(large.grad).dtype == np.float16
    ones = Tensor(np.ones((1, 1, 5000), "float16"), requires_grad=False)
    kernel = Tensor(np.ones((1, 1, 1), "float16"))
    rg.conv1d(ones, kernel).backward(ones)
    assert to_numpy(kernel.grad).item() == 5000


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_gradients_of_infinite_elements(backend: Backend) -> None:
    """An infinite element makes only those elements of the gradients infinite or nan that depend on it."""
    for channels, groups in ((4, 1), (2, 2)):
        x, weight = of(2, channels, 6, 9), of(2, channels // groups, 3, 3, seed=1)
        for array, place in ((x, (0, 0, 1, 0)), (weight, (0, 0, 1, 1))):
            with_inf = array.copy()
            with_inf[place] = np.inf
            operands = (with_inf, weight) if array is x else (x, with_inf)
            for dtype, atol in (("float64", None), ("float32", FLOAT32)):
                check_conv(*operands, None, groups=groups, dtype=dtype, atol=atol)


def test_blocks_and_threads_do_not_change_the_result(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one row, of a few, and of all samples."""
    if backend.name not in ("numpy", "numba"):
        pytest.skip("has no blocks")
    cpu, numpy_convolution = (import_module(f"russellgrad.backends.{name}") for name in ("cpu", "numpy_convolution"))
    for n_threads, n_bytes in itertools.product((1, 3), (1, 20_000, 1 << 22)):
        monkeypatch.setattr(cpu, "_n_threads", n_threads)
        monkeypatch.setattr(cpu, "MIN_PART_TIME", 0.01)
        monkeypatch.setattr(numpy_convolution.Windows, "block_bytes", n_bytes)
        for n in (1, 2, 7):
            check_conv(of(n, 3, 9, 8), of(4, 3, 3, 3, seed=1), of(4, seed=2), padding=1)
            check_conv(of(n, 4, 9, 8), of(4, 2, 3, 2, seed=1), None, stride=2, groups=2)
            check_conv(of(n, 3, 9, 8), of(3, 1, 3, 3), None, 1, 1, 1, 3, dtype="float32", atol=FLOAT32)
            check_conv(of(n, 3, 9, 8), of(4, 3, 3, 3), None, 1, (2, 1), 2, dtype="float32", atol=FLOAT32)


# --- Pooling

POOLS: list[tuple[Any, ...]] = [
    (kernel, stride, padding, dilation, ceil_mode)
    for kernel in (2, 3, (3, 2))
    for stride in (None, 1, 2, (3, 1))
    for padding in (0, 1)
    for dilation in (1, 2)
    for ceil_mode in (False, True)
]


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("kernel", [2, 3, (3, 2)], ids=str)
def test_max_pool2d_matches_pytorch(backend: Backend, kernel: Any, ceil_mode: bool) -> None:
    for args in (pool for pool in POOLS if pool[0] == kernel and pool[-1] is ceil_mode):
        for x in (of(2, 3, 9, 8), relu_of(2, 3, 9, 8), relu_of(3, 7, 6)):
            check_against_torch(lambda x, a=args: rg.max_pool2d(x, *a), lambda x, a=args: F.max_pool2d(x, *a), x)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("kernel", [2, 3, (3, 2)], ids=str)
def test_avg_pool2d_matches_pytorch(backend: Backend, kernel: Any, ceil_mode: bool) -> None:
    for k, stride, padding, dilation, ceil in POOLS:
        if k == kernel and dilation == 1 and ceil is ceil_mode:
            for options in (True, None), (False, None), (True, 7), (False, -2):
                args = (k, stride, padding, ceil, *options)
                for x in of(2, 3, 9, 8), of(3, 7, 6):
                    check_against_torch(
                        lambda x, a=args: rg.avg_pool2d(x, *a), lambda x, a=args: F.avg_pool2d(x, *a), x
                    )


@pytest.mark.parametrize("kernel", [4, (5, 2), (2, 5)], ids=str)
def test_ceil_mode_of_an_input_smaller_than_the_kernel(backend: Backend, kernel: Any) -> None:
    x = of(2, 3, 3, 3)
    sizes: list[tuple[Any, ...]] = [(kernel, None, 0), (kernel, 3, 1), (kernel, 4, (1, 1))]
    for size in sizes:
        args = (*size, 1, True)
        check_against_torch(lambda x, a=args: rg.max_pool2d(x, *a), lambda x, a=args: F.max_pool2d(x, *a), x)
        for counts in (True, False):
            args = (*size, True, counts)
            check_against_torch(lambda x, a=args: rg.avg_pool2d(x, *a), lambda x, a=args: F.avg_pool2d(x, *a), x)


def test_pooling_in_float32_and_of_an_empty_batch(backend: Backend) -> None:
    for x in (of(3, 4, 16, 15), of(0, 4, 16, 15)):
        for dtype in ("float32", "float64"):
            check_against_torch(lambda x: rg.max_pool2d(x, 3, 2, 1), lambda x: F.max_pool2d(x, 3, 2, 1), x, dtype=dtype)
            check_against_torch(lambda x: rg.avg_pool2d(x, 3, 1, 1), lambda x: F.avg_pool2d(x, 3, 1, 1), x, dtype=dtype)


def test_a_window_of_more_than_255_elements(backend: Backend) -> None:
    check_against_torch(lambda x: rg.max_pool2d(x, 17, 1), lambda x: F.max_pool2d(x, 17, 1), of(1, 2, 18, 19))


@pytest.mark.parametrize("padding", [0, 1])
def test_max_pool2d_of_nan_and_infinities(backend: Backend, padding: int) -> None:
    """nan propagates; in a window of -inf, the gradient goes to the first element, which is not padding."""
    x = relu_of(2, 2, 7, 6)
    x[0, 0, 1, 2] = x[0, 1, :4, :3] = x[1, 0, 5, 5] = np.nan
    x[1, 1, :4] = -np.inf
    x[1, 1, 4, 4] = np.inf
    check_against_torch(lambda x: rg.max_pool2d(x, 3, 2, padding), lambda x: F.max_pool2d(x, 3, 2, padding), x)


def test_max_pool2d_of_integers(backend: Backend) -> None:
    x = np.arange(24).reshape(1, 2, 3, 4)
    out = rg.max_pool2d(Tensor(x), 2)
    assert out.dtype == x.dtype
    assert_close(out, np.array([[[[5, 7]], [[17, 19]]]]))
    for dtype in ("int64", "int32", "uint8"):
        small = np.arange(20, -20, -1).reshape(1, 2, 4, 5).astype(dtype)
        padded, expected = rg.max_pool2d(Tensor(small), 3, 2, 1), F.max_pool2d(torch.tensor(small), 3, 2, 1)
        assert padded.dtype == small.dtype
        assert_close(padded, expected)
    bools = np.arange(16).reshape(1, 1, 4, 4) % 5 == 0
    assert_close(rg.max_pool2d(Tensor(bools), 2, 2, 1), F.max_pool2d(torch.tensor(bools * 1.0), 2, 2, 1) == 1)
    assert_close(rg.avg_pool2d(Tensor(x), (3, 4)), F.avg_pool2d(torch.tensor(x, dtype=torch.float64), (3, 4)))


# --- Layers

CASES: dict[str, tuple[Callable[[], Module], Callable[[], nn.Module], tuple[int, ...]]] = {
    "Conv1d": (lambda: Conv1d(4, 6, 3), lambda: nn.Conv1d(4, 6, 3), (2, 4, 9)),
    "Conv1d, options": (
        lambda: Conv1d(4, 6, 3, 2, 1, 2, 2, False), lambda: nn.Conv1d(4, 6, 3, 2, 1, 2, 2, False), (2, 4, 9),
    ),
    "Conv1d, same": (
        lambda: Conv1d(4, 6, 3, padding="same"), lambda: nn.Conv1d(4, 6, 3, padding="same"), (4, 9),
    ),
    "Conv2d": (lambda: Conv2d(3, 5, 3), lambda: nn.Conv2d(3, 5, 3), (2, 3, 6, 7)),
    "Conv2d, options": (
        lambda: Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), 2, False),
        lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), 2, False), (2, 4, 8, 7),
    ),
    "Conv2d, valid": (
        lambda: Conv2d(3, 5, 3, padding="valid"), lambda: nn.Conv2d(3, 5, 3, padding="valid"), (3, 6, 7),
    ),
    "MaxPool2d": (lambda: MaxPool2d(2), lambda: nn.MaxPool2d(2), (2, 3, 6, 7)),
    "MaxPool2d, options": (
        lambda: MaxPool2d(3, 2, 1, 2, True), lambda: nn.MaxPool2d(3, 2, 1, 2, False, True), (2, 3, 8, 9),
    ),
    "AvgPool2d": (lambda: AvgPool2d(2), lambda: nn.AvgPool2d(2), (3, 6, 7)),
    "AvgPool2d, options": (
        lambda: AvgPool2d(3, 2, 1, True, False, 5), lambda: nn.AvgPool2d(3, 2, 1, True, False, 5), (2, 3, 8, 9),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_layers_match_pytorch(backend: Backend, name: str) -> None:
    """Outputs and gradients, with the state_dict loaded in both directions."""
    make_ours, make_theirs, shape = CASES[name]
    ours, theirs = make_ours(), make_theirs().double()
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict({key: torch.from_numpy(array) for key, array in ours.state_dict().items()})
    check_against_torch(ours, theirs, of(*shape))
    gradients = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        assert_close(parameter.grad, gradients[key].grad, what=key)


@pytest.mark.parametrize("groups", [1, 8])
def test_initial_weights_are_uniform_as_in_pytorch(backend: Backend, groups: int) -> None:
    ours, theirs = Conv2d(16, 64, 5, groups=groups, generator=Generator(3)), nn.Conv2d(16, 64, 5, groups=groups)
    bound = 1 / math.sqrt(16 // groups * 25)
    for parameter, reference in ((ours.weight, theirs.weight), (ours.bias, theirs.bias)):
        assert parameter is not None and reference is not None
        values = parameter.numpy()
        assert values.shape == reference.shape and np.abs(values).max() <= bound
        n = values.size
        assert abs(values.mean()) < 4 * bound / math.sqrt(3 * n)
        assert abs(values.std() / (bound / math.sqrt(3)) - 1) < 4 / math.sqrt(n)
    again = Conv2d(16, 64, 5, groups=groups, generator=Generator(3))
    assert_close(again.weight, ours.weight, atol=0)


def test_a_captured_step_equals_a_plain_one(backend: Backend) -> None:
    """Training steps with convolution and pooling; compile_step replays them where the backend can."""
    inputs = [Tensor(of(2, 1, 8, 8, seed=i), requires_grad=False) for i in range(3)]
    losses = []
    for is_captured in (False, True):
        conv = Conv2d(1, 4, 3, padding=1, generator=Generator(5))
        optimizer = SGDOptimizer(conv.parameters(), lr=0.1)

        def step(x: Tensor, conv: Conv2d = conv, optimizer: SGDOptimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            pooled = rg.max_pool2d(conv(x).relu(), 2)
            loss = (rg.avg_pool2d(pooled, 3, 1, 1, count_include_pad=False) ** 2).mean()
            loss.backward()
            optimizer.step()
            return loss

        run = compile_step(step) if is_captured else step
        losses.append([run(x).item() for x in inputs])
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-12)
    assert losses[0][0] != losses[0][1]


# --- Errors

IMAGE, KERNEL = np.zeros((8, 3, 32, 32)), np.zeros((6, 3, 3, 3))
ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no input channels": (
        lambda: rg.conv2d(Tensor(IMAGE[:, :0]), Tensor(KERNEL[:, :0])), ValueError, "^conv2d: weight .* has no input",
    ),
    "channels": (
        lambda: Conv2d(4, 6, 3)(Tensor(IMAGE)), ValueError,
        r"^Conv2d: x \(8, 3, 32, 32\) has 3 channels, the layer expects \(N, 4, H, W\)$",
    ),
    "channels of the function": (
        lambda: rg.conv2d(Tensor(IMAGE), Tensor(KERNEL[:, :2])), ValueError,
        r"^conv2d: x \(8, 3, 32, 32\) has 3 channels, the weight expects \(N, 2, H, W\)$",
    ),
    "axes": (
        lambda: Conv2d(3, 6, 3)(Tensor(IMAGE[0, 0])), ValueError,
        r"^Conv2d: x \(32, 32\) has 2 axes, the layer expects \(N, 3, H, W\) or \(3, H, W\)$",
    ),
    "axes of Conv1d": (
        lambda: Conv1d(3, 6, 3)(Tensor(IMAGE)), ValueError, r"^Conv1d: x .* 4 axes, the layer expects \(N, 3, L\)",
    ),
    "weight": (
        lambda: rg.conv2d(Tensor(IMAGE), Tensor(KERNEL[0])), ValueError,
        r"^conv2d: weight \(3, 3, 3\) must be \(out, in / groups, kh, kw\)$",
    ),
    "bias": (
        lambda: rg.conv2d(Tensor(IMAGE), Tensor(KERNEL), Tensor(np.zeros(5))), ValueError,
        r"^conv2d: bias \(5,\) does not fit weight \(6, 3, 3, 3\); it must be \(6,\)$",
    ),
    "not a Tensor": (lambda: Conv2d(3, 6, 3)(IMAGE), TypeError, "^Conv2d: needs a Tensor, got a ndarray; write Tensor"),
    "large kernel": (
        lambda: Conv2d(3, 6, 5, padding=1)(Tensor(IMAGE[:, :, :2, :9])), ValueError,
        r"^Conv2d: x \(8, 3, 2, 9\), padded to \(4, 11\), gives no output: the kernel \(5, 5\) needs .* \(5, 5\)$",
    ),
    "large dilated kernel": (
        lambda: rg.conv2d(Tensor(IMAGE[:, :, :4]), Tensor(KERNEL), dilation=2), ValueError,
        r"^conv2d: x \(8, 3, 4, 32\) gives no output: the kernel \(3, 3\) with dilation \(2, 2\) needs .* \(5, 5\)$",
    ),
    "empty kernel": (lambda: rg.conv2d(Tensor(IMAGE), Tensor(KERNEL[:, :, :0])), ValueError, "^conv2d: .* no output"),
    "empty rows": (lambda: MaxPool2d(2)(Tensor(IMAGE[:, :, :0])), ValueError, "^MaxPool2d: .* gives no output"),
    "large window": (
        lambda: rg.max_pool2d(Tensor(IMAGE[:, :, :2]), 3), ValueError,
        r"^max_pool2d: x \(8, 3, 2, 32\) gives no output: the kernel \(3, 3\) needs at least \(3, 3\)$",
    ),
    "stride 0": (lambda: Conv2d(3, 6, 3, stride=0), ValueError, "^Conv2d: stride must be at least 1, got 0$"),
    "stride 0 of a pool": (lambda: MaxPool2d(2, 0), ValueError, "^MaxPool2d: stride must be at least 1, got 0$"),
    "dilation 0": (lambda: Conv2d(3, 6, 3, dilation=(1, 0)), ValueError, "^Conv2d: dilation must be at least 1"),
    "kernel 0": (lambda: AvgPool2d(0), ValueError, "^AvgPool2d: kernel_size must be at least 1, got 0$"),
    "three sizes": (lambda: Conv2d(3, 6, (3, 3, 3)), ValueError, "^Conv2d: kernel_size must be an int or a tuple"),
    "padding below 0": (lambda: Conv2d(3, 6, 3, padding=-1), ValueError, "^Conv2d: padding must be at least 0"),
    "a float": (lambda: Conv2d(3, 6, 3.0), TypeError, "^Conv2d: kernel_size must be an int, got 3.0$"),  # type: ignore[arg-type]
    "a bool": (lambda: rg.max_pool2d(Tensor(IMAGE), True), TypeError, "^max_pool2d: kernel_size must be an int"),
    "same with a stride": (
        lambda: Conv2d(3, 6, 3, 2, "same"), ValueError, r"^Conv2d: padding='same' needs a stride of 1, got \(2, 2\)",
    ),
    "a word": (lambda: Conv2d(3, 6, 3, padding="full"), ValueError, "^Conv2d: padding must be 'same', 'valid' or"),
    "groups of the inputs": (
        lambda: Conv2d(3, 6, 3, groups=2), ValueError,
        "^Conv2d: groups=2 must divide the 3 input channels and the 6 output channels$",
    ),
    "groups of the outputs": (
        lambda: rg.conv2d(Tensor(IMAGE), Tensor(np.zeros((4, 1, 3, 3))), groups=3), ValueError,
        "^conv2d: groups=3 must divide the 3 input channels and the 4 output channels$",
    ),
    "groups 0": (lambda: Conv2d(3, 6, 3, groups=0), ValueError, "^Conv2d: groups must be positive, got 0$"),
    "no outputs": (lambda: Conv2d(3, 0, 3), ValueError, "^Conv2d: out_channels must be positive, got 0$"),
    "padding of more than half": (
        lambda: MaxPool2d(3, padding=2), ValueError,
        r"^MaxPool2d: padding \(2, 2\) must be at most half the kernel \(3, 3\)$",
    ),
    "padding of a mean": (lambda: rg.avg_pool2d(Tensor(IMAGE), 2, padding=2), ValueError, "^avg_pool2d: .* half"),
    "padding alone": (
        lambda: rg.max_pool2d(Tensor(IMAGE[:, :, :1, :4]), 2, 1, 2, 3), ValueError,
        "^max_pool2d: .* a window of the kernel .* contains padding only; use less padding$",
    ),
    "divisor 0": (lambda: AvgPool2d(2, divisor_override=0), ValueError, "^AvgPool2d: divisor_override must not be 0$"),
    "ceil_mode": (lambda: MaxPool2d(2, ceil_mode="yes"), TypeError, "^MaxPool2d: ceil_mode must be True or False"),  # type: ignore[arg-type]
}  # fmt: skip


@once
@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_layer_the_shapes_and_what_is_expected(name: str) -> None:
    call, kind, message = ERRORS[name]
    with pytest.raises(kind, match=message):
        call()
