"""Train a GAN on points of a ring: python examples/gan.py

A Wasserstein GAN with gradient penalty (Gulrajani et al., arXiv:1704.00028) learns a mixture of eight Gaussians around
the unit circle. The generator turns noise into points. The critic is trained to give data larger values than the
generator's points, and the generator to make points with large values. A term of the critic's loss keeps the norm of
the critic's gradient near 1. It is a function of that gradient, so its own gradient is one of second order.
"""

import argparse
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to import russellgrad from the checkout
from russellgrad import Module, Tensor, grad, linear, no_grad
from russellgrad.optimizer import AdamOptimizer
from train.progress import echo  # a print that a closed pipe or a full disk does not end

parser = argparse.ArgumentParser(description="Train a GAN on points of a ring.")
parser.add_argument("--steps", type=int, default=1500, help="steps of the generator (default: 1500)")
parser.add_argument("--plot", type=Path, help="write a picture of the points to this file (needs matplotlib)")
args = parser.parse_args()
if args.steps < 1:
    parser.error(f"--steps must be positive, got {args.steps}")

batch_size, hidden_size, critic_steps, penalty_weight, std = 128, 64, 5, 0.1, 0.05
rng = np.random.default_rng(0)
angles = np.arange(8) * math.pi / 4
centres = np.stack([np.cos(angles), np.sin(angles)], axis=1)  # (8, 2)


class MLP(Module):
    """Two hidden layers: (B, 2) -> (B, n_out)."""

    def __init__(self, n_out: int) -> None:
        sizes = [2, hidden_size, hidden_size, n_out]
        pairs = list(zip(sizes[:-1], sizes[1:], strict=True))
        self.weights = [Tensor(rng.normal(size=pair) * math.sqrt(2 / pair[0])) for pair in pairs]
        self.biases = [Tensor(np.zeros(n)) for n in sizes[1:]]

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = zip(self.weights, self.biases, strict=True)
        for weight, bias in hidden:
            x = linear(x, weight, bias).leaky_relu(0.2)
        return linear(x, *last)


def data() -> Tensor:
    """(B, 2): random points of the mixture."""
    points = centres[rng.integers(0, 8, batch_size)] + std * rng.normal(size=(batch_size, 2))
    return Tensor(points, requires_grad=False)


def generated() -> Tensor:
    """(B, 2): points of the generator."""
    return generator(Tensor(rng.normal(size=(batch_size, 2)), requires_grad=False))


def gradient_norms(real: Tensor, fake: Tensor) -> Tensor:
    """(B,): the norms of the critic's gradient with respect to points at random places between real and fake ones."""
    weight = Tensor(rng.random((batch_size, 1)), requires_grad=False)
    between = real * weight + fake * (1 - weight)
    gradient = grad(lambda x: critic(x).sum())(between)  # (B, 2); a function of the critic's weights, too
    return (gradient**2).sum(axis=1).sqrt()


def mean_distance() -> float:
    """The mean distance from 1,000 and more generated points to the nearest centre."""
    with no_grad():
        points = np.concatenate([generated().numpy() for _ in range(8)])
    return float(np.linalg.norm(points[:, None] - centres, axis=2).min(axis=1).mean())


generator, critic = MLP(2), MLP(1)
generator_optimizer = AdamOptimizer(generator.parameters(), lr=1e-3, betas=(0.5, 0.9))
critic_optimizer = AdamOptimizer(critic.parameters(), lr=1e-3, betas=(0.5, 0.9))

for step in range(args.steps):
    for _ in range(critic_steps):
        with no_grad():
            fake = generated()
        real = data()
        norms = gradient_norms(real, fake)
        gap = critic(real).mean() - critic(fake).mean()  # an estimate of the Wasserstein distance
        loss = penalty_weight * ((norms - 1) ** 2).mean() - gap
        critic_optimizer.zero_grad()
        loss.backward()
        critic_optimizer.step()
    if step % 100 == 0 or step == args.steps - 1:
        echo(f"step {step:4}: distance to the nearest centre {mean_distance():.3f}, mean gradient norm "
             f"{norms.mean().item():.3f}, critic's estimate of the Wasserstein distance {gap.item():.3f}")
    generator_optimizer.zero_grad()
    (-critic(generated()).mean()).backward()
    generator_optimizer.step()
