"""Learn to balance a pole on a cart: python examples/pole.py

REINFORCE (Williams, Machine Learning 8, 1992) is a policy gradient method: it learns from episodes, without a model of
the cart. In each state, the policy gives the probability of pushing the cart to the right. Actions with a return above
the baseline, the mean return at that time step, become more probable. The cart is that of Barto, Sutton & Anderson
(IEEE Transactions on Systems, Man, and Cybernetics 13, 1983), simulated in NumPy, 32 episodes at once. An episode ends
when the pole falls, when the cart leaves its track, or after 500 time steps, which is 10 s.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to import russellgrad from the checkout
from russellgrad import Tensor, binary_cross_entropy_with_logits, manual_seed, no_grad
from russellgrad.layers import Linear, Sequential, Tanh
from russellgrad.optimizer import AdamOptimizer
from train.progress import echo  # like print; a closed pipe or a full disk is no error

parser = argparse.ArgumentParser(description="Learn to balance a pole on a cart.")
parser.add_argument("--updates", type=int, default=60, help="policy updates, each from 32 episodes (default: 60)")
args = parser.parse_args()
if args.updates < 1:
    parser.error(f"--updates must be positive, got {args.updates}")

manual_seed(0)  # of the initial weights
rng = np.random.default_rng(0)
n_episodes, max_length, discount = 32, 500, 0.99
gravity, pole_mass, total_mass, half_length, force, tau = 9.8, 0.1, 1.1, 0.5, 10.0, 0.02  # SI units; tau: a time step


def advance(state: np.ndarray, push_right: np.ndarray) -> np.ndarray:
    """The states (N, 4) after a time step: position, velocity, angle and angular velocity."""
    _, velocity, angle, spin = state.T
    push = np.where(push_right, force, -force)
    sin, cos = np.sin(angle), np.cos(angle)
    pushed = (push + pole_mass * half_length * spin**2 * sin) / total_mass
    turning = (gravity * sin - cos * pushed) / (half_length * (4 / 3 - pole_mass * cos**2 / total_mass))
    acceleration = pushed - pole_mass * half_length * turning * cos / total_mass
    return state + tau * np.stack([velocity, acceleration, spin, turning], axis=1)


def run(policy: Sequential) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run all episodes: the states (T, N, 4), the actions (T, N), and which episodes had not ended (T, N)."""
    state, alive = rng.uniform(-0.05, 0.05, size=(n_episodes, 4)), np.ones(n_episodes, dtype=bool)
    states: list[np.ndarray] = []
    actions, on = [], []
    while alive.any() and len(states) < max_length:
        with no_grad():
            p = policy(Tensor(state)).sigmoid().numpy()[:, 0]
        push_right = rng.random(n_episodes) < p
        states.append(state)
        actions.append(push_right)
        on.append(alive)
        state = advance(state, push_right)
        alive = alive & (np.abs(state[:, 0]) < 2.4) & (np.abs(state[:, 2]) < np.radians(12))
    return np.stack(states), np.stack(actions), np.stack(on)


def discounted_returns(on: np.ndarray) -> np.ndarray:
    """The discounted sums (T, N) of the rewards from each time step on; the reward of a time step is 1."""
    total, found = np.zeros(n_episodes), np.zeros(on.shape)
    for t in reversed(range(len(on))):
        total = found[t] = on[t] * (1 + discount * total)
    return found


policy = Sequential(Linear(4, 32), Tanh(), Linear(32, 1))  # the log odds of pushing to the right
optimizer = AdamOptimizer(policy.parameters(), lr=1e-2)
start = time.perf_counter()
for update in range(args.updates):
    states, actions, on = run(policy)
    returns = discounted_returns(on)
    baseline = returns.sum(axis=1, keepdims=True) / on.sum(axis=1, keepdims=True)  # (T, 1)
    advantage = on * (returns - baseline)
    advantage /= np.sqrt((advantage**2).sum() / on.sum()) + 1e-8
    logits = policy(Tensor(states, requires_grad=False)).squeeze(-1)  # (T, N)
    log_loss = binary_cross_entropy_with_logits(logits, Tensor(actions.astype("float64")), reduction="none")
    loss = (log_loss * Tensor(advantage, requires_grad=False)).sum() / n_episodes
    optimizer.zero_grad()
    loss.backward()  # the negative policy gradient: log_loss is -log p(action)
    optimizer.step()
    if update % 10 == 0 or update == args.updates - 1:
        lengths = on.sum(axis=0)
        echo(f"update {update:2}: the pole stays up for {lengths.mean():5.1f} of {max_length} time steps on average")
echo(f"seed 0, {time.perf_counter() - start:.1f} s")
