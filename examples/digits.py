"""Recognize handwritten digits: python examples/digits.py --model conv

scikit-learn's digits are 1,797 images of 8 x 8 pixels (Alpaydin & Kaynak, UCI Machine Learning Repository, 1998); 1,437
are for training, 360 for testing. A multilayer perceptron (`--model linear`) has an accuracy of 98 % on the test set, a
convolutional network (`--model conv`) of 99 %.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to import russellgrad from the checkout
from russellgrad import Tensor, accuracy, cross_entropy, manual_seed, no_grad, set_default_dtype
from russellgrad.data import batches
from russellgrad.layers import Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU, Sequential
from russellgrad.optimizer import AdamWOptimizer
from russellgrad.schedules import cosine
from train.progress import echo  # like print; a closed pipe or a full disk is no error

parser = argparse.ArgumentParser(description="Recognize handwritten digits.")
parser.add_argument("--model", choices=("linear", "conv"), default="conv", help="the model (default: conv)")
parser.add_argument("--epochs", type=int, default=30, help="passes over the training images (default: 30)")
args = parser.parse_args()
if args.epochs < 1:
    parser.error(f"--epochs must be positive, got {args.epochs}")
try:
    from sklearn.datasets import load_digits
except ImportError:
    parser.error('needs scikit-learn; pip install -e ".[examples]"')

set_default_dtype("float32")
manual_seed(0)  # of the initial weights and dropout
images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 1, 8, 8).astype("float32") / 16  # (1797, 1, 8, 8), in [0, 1]
order = np.random.default_rng(0).permutation(len(images))
train_set, test_set = order[360:], order[:360]

if args.model == "linear":
    model = Sequential(Flatten(), Linear(64, 128), ReLU(), Dropout(0.2), Linear(128, 10))
else:
    model = Sequential(
        Conv2d(1, 32, 3, padding=1), ReLU(),  # (N, 32, 8, 8)
        Conv2d(32, 64, 3, padding=1), ReLU(), MaxPool2d(2),  # (N, 64, 4, 4)
        Flatten(), Dropout(0.5), Linear(1024, 10),
    )  # fmt: skip
loader = batches((images[train_set], labels[train_set]), batch_size=32, seed=0)  # in a new order in each epoch
optimizer = AdamWOptimizer(model.parameters(), cosine(3e-3, args.epochs * len(loader)), weight_decay=0.01)
echo(repr(model))

start = time.perf_counter()
for epoch in range(args.epochs):
    model.train()
    for x, y in loader:
        loss = cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if epoch % 5 == 4 or epoch == args.epochs - 1:
        model.eval()
        with no_grad():
            test_accuracy = accuracy(model(Tensor(images[test_set])), labels[test_set])
        echo(f"epoch {epoch + 1:2}: loss of the last batch {loss:.4f}, accuracy on the test set {test_accuracy:.2%}")
echo(f"seed 0, {time.perf_counter() - start:.1f} s")
