"""tinygrad for the training step: under `TinyJit`, with the AdamW of tinygrad."""

from collections.abc import Callable
from types import SimpleNamespace

from tinygrad import Context, Tensor, TinyJit, nn

from benchmarks.candidates.model import LEARNING_RATE, WEIGHT_DECAY, Size, batches, build_model
from benchmarks.candidates.numpy_gpt import Library, loss_of

NUMPY = SimpleNamespace(
    reshape=Tensor.reshape,
    transpose=lambda x, axes=(1, 0): x.permute(axes),
    matmul=Tensor.matmul,
    sum=lambda x, axis, keepdims: x.sum(axis, keepdim=keepdims),
    sqrt=Tensor.sqrt,
)
SQRT_HALF = 0.5**0.5
LIBRARY = Library(
    NUMPY,
    lambda x: x * (0.5 * (1 + (x * SQRT_HALF).erf())),
    Tensor.softmax,
    Tensor.sparse_categorical_crossentropy,
    Tensor,
)


def train_step(size: str) -> Callable[[], float]:
    s = Size.parse(size)
    data = batches(s)
    p = {name: Tensor(array).contiguous().realize() for name, array in build_model(s).state_dict().items()}
    optimizer = nn.optim.AdamW(list(p.values()), LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    @TinyJit
    @Context(TRAINING=1)
    def update(inputs: Tensor, targets: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(LIBRARY, p, s, inputs, targets).backward()
        return loss.realize(*optimizer.schedule_step())

    def step() -> float:
        return update(*(Tensor(ids).realize() for ids in next(data))).item()

    return step
