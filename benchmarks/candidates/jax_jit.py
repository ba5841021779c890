"""JAX for the training step: one function under `jit`, whose arrays are updated in place (`donate_argnums`)."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.candidates.model import LEARNING_RATE, WEIGHT_DECAY, Size, batches, build_model
from benchmarks.candidates.numpy_gpt import Library, Value, loss_of


def _cross_entropy(logits: Value, targets: Value) -> Value:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], axis=-1).mean()


LIBRARY = Library(jnp, partial(jax.nn.gelu, approximate=False), jax.nn.softmax, _cross_entropy)


def train_step(size: str) -> Callable[[], float]:
    s = Size.parse(size)
    data = batches(s)
    p = {name: jnp.asarray(array) for name, array in build_model(s).state_dict().items()}
    m, v = jax.tree.map(jnp.zeros_like, (p, p))

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def update(p: Value, m: Value, v: Value, t: Value, inputs: Value, targets: Value) -> Value:
        loss, g = jax.value_and_grad(lambda p: loss_of(LIBRARY, p, s, inputs, targets))(p)
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
        correction, root = LEARNING_RATE / (1 - 0.9**t), jnp.sqrt(1 - 0.999**t)
        p = jax.tree.map(
            lambda p, m, v: p * (1 - LEARNING_RATE * WEIGHT_DECAY) - correction * m / (jnp.sqrt(v) / root + 1e-8),
            p, m, v,
        )  # fmt: skip
        return p, m, v, t + 1, loss

    t = jnp.asarray(1.0)

    def step() -> float:
        nonlocal p, m, v, t
        p, m, v, t, loss = update(p, m, v, t, *next(data))
        return float(loss)

    return step
