"""Fit a line to points by gradient descent: python examples/line.py

The points lie near y = 2 x + 1, with noise. The model has two parameters, slope and intercept. In each step, `backward`
computes the gradient of the mean squared error, and both parameters take a step against it. After 100 steps they agree
with the least-squares solution to five digits.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to import russellgrad from the checkout
from russellgrad import Tensor
from train.progress import echo  # like print; a closed pipe or a full disk is no error

parser = argparse.ArgumentParser(description="Fit a line to points by gradient descent.")
parser.add_argument("--steps", type=int, default=100, help="steps of gradient descent (default: 100)")
args = parser.parse_args()
if args.steps < 1:
    parser.error(f"--steps must be positive, got {args.steps}")

rng = np.random.default_rng(0)
points = rng.uniform(-1, 1, size=100)
values = 2 * points + 1 + 0.3 * rng.normal(size=100)
x, y = Tensor(points, requires_grad=False), Tensor(values, requires_grad=False)

slope, intercept = Tensor(0.0), Tensor(0.0)  # they track gradients
learning_rate = 0.2
start = time.perf_counter()
for step in range(args.steps):
    loss = ((slope * x + intercept - y) ** 2).mean()
    slope.zero_grad()
    intercept.zero_grad()
    loss.backward()  # fills slope.grad and intercept.grad
    for parameter in (slope, intercept):
        parameter.data -= learning_rate * parameter.grad  # type: ignore[operator]  # it is not None
    if step % 20 == 0 or step == args.steps - 1:
        echo(f"step {step:3}: loss {loss:.4f}, y = {slope:.4f} x + {intercept:.4f}")

best_slope, best_intercept = np.polyfit(points, values, 1)
echo(f"least squares:             y = {best_slope:.4f} x + {best_intercept:.4f}")
echo(f"seed 0, {time.perf_counter() - start:.2f} s")
