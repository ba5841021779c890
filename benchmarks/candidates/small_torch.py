"""PyTorch's training step in float64."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own abbreviation

from benchmarks.candidates.model import LEARNING_RATE, WEIGHT_DECAY, Size, batches
from benchmarks.candidates.torch_eager import model


def train_step(size: str) -> Callable[[], float]:
    parameters, forward = model(Size.parse(size), torch.float64)
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    data = batches(Size.parse(size))

    def step() -> float:
        inputs, targets = map(torch.from_numpy, next(data))
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(forward(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step
