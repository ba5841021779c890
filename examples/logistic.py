"""Logistic regression on two classes: python examples/logistic.py

The points of each class are normally distributed, with the same covariance. The true log odds of the classes are then a
linear function of the point (Bishop, "Pattern Recognition and Machine Learning", 2006, section 4.2.1). `Linear` learns
this function from 2,000 points. On 10,000 other points, its accuracy is that of the true function.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to import russellgrad from the checkout
from russellgrad import binary_cross_entropy_with_logits, manual_seed
from russellgrad.data import batches
from russellgrad.layers import Linear
from russellgrad.optimizer import SGDOptimizer
from train.progress import echo  # like print; a closed pipe or a full disk is no error

parser = argparse.ArgumentParser(description="Logistic regression on two classes.")
parser.add_argument("--epochs", type=int, default=20, help="passes over the training points (default: 20)")
args = parser.parse_args()
if args.epochs < 1:
    parser.error(f"--epochs must be positive, got {args.epochs}")

manual_seed(0)  # of the initial weights
rng = np.random.default_rng(0)
means, covariance = np.array([[-1.0, 0.0], [1.0, 0.5]]), np.array([[1.0, 0.6], [0.6, 1.5]])


def sample(n: int) -> tuple[np.ndarray, np.ndarray]:
    """n points (n, 2) and their classes (n,), 0 or 1."""
    classes = rng.integers(2, size=n)
    return means[classes] + rng.multivariate_normal([0, 0], covariance, size=n), classes.astype("float64")


train_data, (test_points, test_classes) = sample(2000), sample(10_000)
true_weight = np.linalg.solve(covariance, means[1] - means[0])
true_bias = -true_weight @ means.mean(axis=0)

loader = batches(train_data, batch_size=50, seed=0)  # in a new order in each epoch
model = Linear(2, 1)  # the log odds of class 1
optimizer = SGDOptimizer(model.parameters(), lr=0.1)
start = time.perf_counter()
for epoch in range(args.epochs):
    for points, classes in loader:
        loss = binary_cross_entropy_with_logits(model(points).squeeze(1), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if epoch % 5 == 0 or epoch == args.epochs - 1:
        echo(f"epoch {epoch:2}: loss of the last batch {loss:.4f}")
seconds = time.perf_counter() - start


def evaluate(name: str, weight: np.ndarray, bias: float) -> None:
    test_accuracy = ((test_points @ weight + bias > 0) == test_classes).mean()
    echo(f"{name}: log odds {weight[0]:5.2f} x {weight[1]:+.2f} y {bias:+.2f}, accuracy {test_accuracy:.1%}")


evaluate("learned", model.weight.numpy()[0], model.bias.item() if model.bias is not None else 0.0)
evaluate("true   ", true_weight, true_bias)
echo(f"seed 0, {seconds:.1f} s")
