"""Newton's method against gradient descent: python examples/newton.py

Both minimise Rosenbrock's function from the usual starting point (-1.2, 1). Newton's method solves a linear system
with the Hessian in each step, and is within 1e-10 of the minimum after 6 steps. Gradient descent is 2e-2 from it after
10,000 steps. There is no line search, so f can rise in a step of Newton's method, as in steps 2 and 4. Nocedal and
Wright, "Numerical Optimization" (2006), chapters 2 and 3.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to import russellgrad from the checkout
from russellgrad import Tensor, hessian, no_grad, value_and_grad
from train.progress import echo  # like print; a closed pipe or a full disk is no error

parser = argparse.ArgumentParser(description="Newton's method against gradient descent.")
parser.add_argument("--steps", type=int, default=10_000, help="steps of gradient descent (default: 10000)")
args = parser.parse_args()
if args.steps < 1:
    parser.error(f"--steps must be positive, got {args.steps}")

start = [-1.2, 1.0]
learning_rate = 1e-3


def rosenbrock(x: Tensor) -> Tensor:
    """(2,) -> (). Rosenbrock, The Computer Journal 3 (1960). The minimum is 0, at (1, 1)."""
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


def show(step: int, x: Tensor, value: Tensor) -> None:
    distance = np.linalg.norm(x.numpy() - 1)
    echo(f"{step:5}  f = {value.item():9.2e}, distance to the minimum {distance:.1e}")


value_and_gradient = value_and_grad(rosenbrock)  # x -> (f(x), the gradient), of shapes () and (2,)
hessian_of = hessian(rosenbrock)  # x -> the Hessian, (2, 2)

with no_grad():  # the steps themselves are not differentiated
    echo("Newton's method")
    x = Tensor(start)
    for step in range(20):
        value, gradient = value_and_gradient(x)
        show(step, x, value)
        if np.linalg.norm(gradient.numpy()) < 1e-10:
            break
        # Solve H d = g. x - d is the stationary point of the second-order Taylor polynomial at x.
        d = np.linalg.solve(hessian_of(x).numpy(), gradient.numpy())
        x = x - Tensor(d)

    echo(f"gradient descent, learning rate {learning_rate}")
    x = Tensor(start)
    for step in range(args.steps + 1):
        value, gradient = value_and_gradient(x)
        if step in (0, 1, 10, 100, 1000) or step % 10_000 == 0 or step == args.steps:
            show(step, x, value)
        x = x - learning_rate * gradient
