"""Learn to learn sine waves from a few points: python examples/maml.py

MAML (Finn et al., arXiv:1703.03400, section 5.1) looks for initial parameters of a network from which a step of gradient
descent on ten points of a new sine wave gives a good fit. Its gradient goes through that step, which contains a
gradient itself. First-order MAML regards the gradient in the step as a constant. Pre-training, for comparison, takes no
step: it fits one network to all sine waves.
"""

import argparse
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to import russellgrad from the checkout
from russellgrad import Module, Tensor, functional_call, grad, linear, no_grad
from russellgrad.optimizer import AdamOptimizer
from train.progress import echo  # a print that a closed pipe or a full disk does not end

parser = argparse.ArgumentParser(description="Learn to learn sine waves from a few points.")
parser.add_argument("--steps", type=int, default=2000, help="optimizer steps of each method (default: 2000)")
args = parser.parse_args()
if args.steps < 1:
    parser.error(f"--steps must be positive, got {args.steps}")

n_points, n_tasks, hidden_size, inner_rate, meta_rate = 10, 10, 40, 0.01, 1e-3
Parameters = dict[str, Tensor]
Points = tuple[Tensor, Tensor]  # x and y, both (n_points, 1)


class Network(Module):
    """Two hidden layers: (B, 1) -> (B, 1)."""

    def __init__(self, rng: np.random.Generator) -> None:
        sizes = [1, hidden_size, hidden_size, 1]
        pairs = list(zip(sizes[:-1], sizes[1:], strict=True))
        self.weights = [Tensor(rng.normal(size=pair) * math.sqrt(2 / pair[0])) for pair in pairs]
        self.biases = [Tensor(np.zeros(n)) for n in sizes[1:]]

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = zip(self.weights, self.biases, strict=True)
        for weight, bias in hidden:
            x = linear(x, weight, bias).relu()
        return linear(x, *last)


def new_task(rng: np.random.Generator) -> tuple[Points, Points]:
    """Points of one sine wave: those to adapt to, and others, which measure the result."""
    amplitude, phase = rng.uniform(0.1, 5.0), rng.uniform(0, math.pi)
    x = rng.uniform(-5, 5, size=(2, n_points, 1))
    y = amplitude * np.sin(x - phase)
    first, second = ((Tensor(a, requires_grad=False), Tensor(b, requires_grad=False)) for a, b in zip(x, y, strict=True))
    return first, second


def loss_of(parameters: Parameters, points: Points) -> Tensor:
    """The mean squared error of the network with these parameters."""
    x, y = points
    return ((functional_call(network, parameters, x) - y) ** 2).mean()


def adapt(parameters: Parameters, points: Points, first_order: bool = False) -> Parameters:
    """The parameters after one step of gradient descent: a function of `parameters` that can be differentiated."""
    gradient = grad(loss_of)(parameters, points)
    if first_order:
        gradient = {name: g.detach() for name, g in gradient.items()}
    return {name: p - inner_rate * gradient[name] for name, p in parameters.items()}


results = {}
for method in ("pre-training", "first-order MAML", "MAML"):
    network, rng = Network(np.random.default_rng(0)), np.random.default_rng(1)
    parameters = dict(network.named_parameters())
    optimizer = AdamOptimizer(network.parameters(), lr=meta_rate)
    for _ in range(args.steps):
        optimizer.zero_grad()
        for points, others in (new_task(rng) for _ in range(n_tasks)):
            adapted = parameters if method == "pre-training" else adapt(parameters, points, method != "MAML")
            (loss_of(adapted, others) / n_tasks).backward()
        optimizer.step()

    rng = np.random.default_rng(2)  # new sine waves, the same for all methods
    losses = np.zeros((100, 11))
    with no_grad():
        for i in range(100):
            points, others = new_task(rng)
            adapted = parameters
            for step in range(11):
                losses[i, step] = loss_of(adapted, others).item()
                adapted = adapt(adapted, points)
    results[method] = losses.mean(axis=0)
    after = ", ".join(f"{step}: {results[method][step]:.3f}" for step in (0, 1, 2, 5, 10))
    echo(f"{method:16} mean squared error on new sine waves after steps {after}")
