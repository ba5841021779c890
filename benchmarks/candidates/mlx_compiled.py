"""MLX's CPU build for the training step: one function under `mx.compile`, with the AdamW of MLX."""

from collections.abc import Callable
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from benchmarks.candidates.model import LEARNING_RATE, WEIGHT_DECAY, Size, batches, build_model
from benchmarks.candidates.numpy_gpt import Library, Value, loss_of

mx.set_default_device(mx.cpu)

LIBRARY = Library(
    mx, nn.gelu, partial(mx.softmax, axis=-1), partial(nn.losses.cross_entropy, reduction="mean"), mx.array
)


def train_step(size: str) -> Callable[[], float]:
    s = Size.parse(size)
    data = batches(s)
    p = {name: mx.array(array) for name, array in build_model(s).state_dict().items()}
    optimizer = optim.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY, bias_correction=True)
    optimizer.init(p)
    state = [p, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def update(inputs: Value, targets: Value) -> Value:
        loss, gradients = mx.value_and_grad(lambda p: loss_of(LIBRARY, p, s, inputs, targets))(p)
        p.update(optimizer.apply_gradients(gradients, p))
        return loss

    def step() -> float:
        loss = update(*map(mx.array, next(data)))
        mx.eval(state, loss)
        return loss.item()

    return step
