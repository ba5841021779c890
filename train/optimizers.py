"""The optimizer and the learning-rate schedule of a training run."""

from typing import Any

from russellgrad.optimizer import AdamWOptimizer, Optimizer, SGDOptimizer, supports_flat
from russellgrad.russelltransformer import Transformer
from russellgrad.schedules import Schedule, constant, cosine, cosine_with_warmup, exponential

from .config import Config
from .lion import Lion
from .muon import Muon


def build_optimizer(config: Config, model: Transformer) -> Optimizer:
    """The configured optimizer, with weight decay for matrices only: not for biases, nor for the gains of layer norms.

    Muon updates the matrices of the blocks; the embeddings, which are also the output layer, and the vectors go to its
    AdamW.
    """
    parameters = model.parameters()
    decay = config.of_optimizer("weight_decay")
    hidden = {id(p) for block in model.blocks for p in block.parameters()}
    vectors: dict[str, Any] = {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}
    matrices: dict[str, Any] = {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": decay}
    groups, schedule = [matrices, vectors], build_schedule(config)
    flat = supports_flat(parameters[0].backend)
    if config.optimizer == "sgd":
        momentum = config.of_optimizer("momentum")
        return SGDOptimizer(groups, schedule, momentum=momentum, nesterov=momentum > 0, flat=flat)
    betas = config.of_optimizer("beta1"), config.of_optimizer("beta2")
    if config.optimizer == "lion":
        return Lion(groups, schedule, betas=betas, flat=flat)
    if config.optimizer == "muon":
        others = {**matrices, "params": [p for p in matrices["params"] if id(p) not in hidden], "use_muon": False}
        matrices = {**matrices, "params": [p for p in matrices["params"] if id(p) in hidden]}
        groups = [matrices, others, {**vectors, "use_muon": False}]
        return Muon(groups, schedule, momentum=config.of_optimizer("momentum"), betas=betas, flat=flat)
    return AdamWOptimizer(groups, schedule, betas=betas, flat=flat)


def build_schedule(config: Config) -> Schedule:
    """The configured learning-rate schedule."""
    lr, last, steps = config.of_optimizer("learning_rate"), config.final_learning_rate, config.steps
    match config.schedule:
        case "constant":
            return constant(lr)
        case "exponential":
            return exponential(lr, (last / lr) ** (1 / steps))
        case "cosine":
            return cosine(lr, steps, last)
        case _:
            return cosine_with_warmup(lr, config.warmup_steps, steps, last)
