"""The data of the four programs, the same arrays for every library."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]
Data: TypeAlias = tuple[Array, Array, Array, Array]  # inputs, targets, inputs held out, targets held out


def split(x: Array, y: Array, n_train: int, seed: int = 0) -> Data:
    """Shuffle, and hold out everything after the first `n_train`."""
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = x[order], y[order]
    return x[:n_train], y[:n_train], x[n_train:], y[n_train:]


def line() -> Data:
    """y = 2 x + 1 and noise of standard deviation 0.1; 256 points for training, 256 held out."""
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, (512, 1))
    y = 2 * x + 1 + rng.normal(0, 0.1, x.shape)
    return split(x.astype(np.float32), y.astype(np.float32), 256)


def points() -> Data:
    """Two spirals of one and a half turns with noise; 512 points for training, 512 held out. A target is 0 or 1."""
    rng = np.random.default_rng(2)
    label = np.repeat([0, 1], 512)
    radius = np.sqrt(rng.uniform(0.01, 1, 1024))
    angle = 3 * np.pi * radius + np.pi * label
    x = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1) + rng.normal(0, 0.03, (1024, 2))
    return split(x.astype(np.float32), label.astype(np.float32)[:, None], 512)


def digits() -> Data:
    """scikit-learn's 1,797 digits as rows of 64 numbers from 0 to 1; 1,408 for training, 389 held out."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return split((x / 16).astype(np.float32), y.astype(np.int64), 1408)


def images() -> Data:
    """The same digits as images of shape (1, 8, 8)."""
    x, y, x_test, y_test = digits()
    return x.reshape(-1, 1, 8, 8), y, x_test.reshape(-1, 1, 8, 8), y_test


@dataclass(frozen=True)
class Task:
    what: str
    data: Callable[[], Data]
    length: int  # steps on the whole training set, or epochs of batches of 64
    result: str


TASKS = {
    "line": Task("a line: linear regression, SGD, 200 steps", line, 200, "mean squared error"),
    "points": Task("two spirals: MLP of widths 2, 64, 64, 1, Adam, 500 steps", points, 500, "accuracy"),
    "digits": Task("digits: MLP of widths 64, 128, 10, Adam, 20 epochs", digits, 20, "accuracy"),
    "images": Task("digits: two convolutions and a linear layer, Adam, 20 epochs", images, 20, "accuracy"),
}
