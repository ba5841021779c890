"""The cases of the benchmark of convolution and pooling, named by the op, the input and what follows."""

from typing import Any, NamedTuple

from benchmarks.candidates.model import Array, random


class Conv(NamedTuple):
    """A function, the shapes of its operands, and its other arguments. All operands get gradients."""

    function: str
    shapes: tuple[tuple[int, ...], ...]
    options: dict[str, Any]

    def arrays(self) -> list[Array]:
        return [random(*shape, seed=i) for i, shape in enumerate(self.shapes)]


def _conv(x: tuple[int, ...], weight: tuple[int, ...], **options: int) -> Conv:
    return Conv(f"conv{len(x) - 2}d", (x, weight, weight[:1]), options)


def _pool(function: str, x: tuple[int, ...], kernel: int, stride: int, padding: int = 0) -> Conv:
    return Conv(function, (x,), {"kernel_size": kernel, "stride": stride, "padding": padding})


CASES: dict[str, Conv] = {
    "conv2d (64, 1, 28, 28), 32 of 3": _conv((64, 1, 28, 28), (32, 1, 3, 3)),
    "conv2d (64, 32, 14, 14), 64 of 3, padding": _conv((64, 32, 14, 14), (64, 32, 3, 3), padding=1),
    "conv2d (16, 64, 32, 32), 64 of 3, padding": _conv((16, 64, 32, 32), (64, 64, 3, 3), padding=1),
    "conv2d (128, 1, 8, 8), 16 of 3, padding": _conv((128, 1, 8, 8), (16, 1, 3, 3), padding=1),
    "conv2d (128, 16, 8, 8), 32 of 3, padding": _conv((128, 16, 8, 8), (32, 16, 3, 3), padding=1),
    "conv2d (8, 3, 64, 64), 32 of 7, stride 2": _conv((8, 3, 64, 64), (32, 3, 7, 7), stride=2, padding=3),
    "conv2d (16, 64, 32, 32), 64 of 1": _conv((16, 64, 32, 32), (64, 64, 1, 1)),
    "conv2d (16, 64, 32, 32), depthwise, 3, padding": _conv((16, 64, 32, 32), (64, 1, 3, 3), padding=1, groups=64),
    "conv1d (32, 64, 256), 64 of 5": _conv((32, 64, 256), (64, 64, 5)),
    "max_pool2d (64, 32, 28, 28), 2": _pool("max_pool2d", (64, 32, 28, 28), 2, 2),
    "max_pool2d (64, 32, 28, 28), 3, stride 2": _pool("max_pool2d", (64, 32, 28, 28), 3, 2, 1),
    "max_pool2d (128, 16, 8, 8), 2": _pool("max_pool2d", (128, 16, 8, 8), 2, 2),
    "avg_pool2d (64, 32, 28, 28), 2": _pool("avg_pool2d", (64, 32, 28, 28), 2, 2),
    "avg_pool2d (64, 32, 28, 28), 3, stride 1": _pool("avg_pool2d", (64, 32, 28, 28), 3, 1, 1),
}
