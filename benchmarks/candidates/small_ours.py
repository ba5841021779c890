"""RussellGrad's training step in float64, on the current backend or on the formulas."""

from collections.abc import Callable
from types import ModuleType

import numpy as np

from benchmarks.candidates.model import LEARNING_RATE, WEIGHT_DECAY, Size, batches, build_model
from russellgrad import get_backend, set_backend
from russellgrad.backend import CORE, load_backend
from russellgrad.loss import cross_entropy_loss
from russellgrad.optimizer import AdamWOptimizer


def train_step(size: str, kind: str) -> Callable[[], float]:
    """`kind` is "current", or "formulas": NumPy's core primitives, and formulas for the others."""
    set_backend(_formulas() if kind == "formulas" else get_backend())
    model = build_model(Size.parse(size), "float64")
    optimizer = AdamWOptimizer(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    data, pad = batches(Size.parse(size)), model.tokenizer.pad_token_id

    def step() -> float:
        inputs, targets = next(data)
        optimizer.zero_grad()
        loss = cross_entropy_loss(model(inputs), targets, pad)
        loss.backward()
        optimizer.step()
        return float(loss)

    return step


def _formulas() -> ModuleType:
    module, numpy = ModuleType("formulas_alone"), load_backend("numpy")
    vars(module).update({name: getattr(numpy, name) for name in CORE} | {"name": "formulas", "matmul": np.matmul})
    return module
