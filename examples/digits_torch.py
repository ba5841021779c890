"""The convolutional network of digits.py in PyTorch, line by line: python examples/digits_torch.py

Compare it with digits.py: the layers have the same names, arguments and parameters. The differences: the arrays
become tensors first, the batches are written out, and the learning rate schedule is an object with its own `step`.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to import train from the checkout
from train.progress import echo  # like print; a closed pipe or a full disk is no error

parser = argparse.ArgumentParser(description="Recognize handwritten digits with PyTorch.")
parser.add_argument("--epochs", type=int, default=30, help="passes over the training images (default: 30)")
args = parser.parse_args()
if args.epochs < 1:
    parser.error(f"--epochs must be positive, got {args.epochs}")
try:
    import torch
    from sklearn.datasets import load_digits
    from torch.nn import Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU, Sequential
    from torch.nn.functional import cross_entropy
except ImportError as error:
    parser.error(f"{error}; pip install torch scikit-learn")

torch.manual_seed(0)  # of the initial weights, dropout and shuffling
images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 1, 8, 8).astype("float32") / 16  # (1797, 1, 8, 8), in [0, 1]
order = np.random.default_rng(0).permutation(len(images))
train_set, test_set = order[360:], order[:360]
train_images, train_labels = torch.from_numpy(images[train_set]), torch.from_numpy(labels[train_set])
test_images, test_labels = torch.from_numpy(images[test_set]), torch.from_numpy(labels[test_set])

model = Sequential(
    Conv2d(1, 32, 3, padding=1), ReLU(),  # (N, 32, 8, 8)
    Conv2d(32, 64, 3, padding=1), ReLU(), MaxPool2d(2),  # (N, 64, 4, 4)
    Flatten(), Dropout(0.5), Linear(1024, 10),
)  # fmt: skip
n_batches = -(-len(train_images) // 32)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * n_batches)
echo(repr(model))

start = time.perf_counter()
for epoch in range(args.epochs):
    model.train()
    for indices in torch.randperm(len(train_images)).split(32):
        loss = cross_entropy(model(train_images[indices]), train_labels[indices])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    if epoch % 5 == 4 or epoch == args.epochs - 1:
        model.eval()
        with torch.no_grad():
            test_accuracy = (model(test_images).argmax(1) == test_labels).float().mean()
        echo(f"epoch {epoch + 1:2}: loss of the last batch {loss:.4f}, accuracy on the test set {test_accuracy:.2%}")
echo(f"seed 0, {time.perf_counter() - start:.1f} s")
