"""RussellGrad."""

import russellgrad as rg
from benchmarks.peers.tasks import Array
from russellgrad import Module, Tensor
from russellgrad.layers import Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential
from russellgrad.optimizer import AdamOptimizer, SGDOptimizer

rg.set_default_dtype("float32")


def line(x: Array, y: Array, x_test: Array, y_test: Array, steps: int) -> float:
    X, Y, X_test, Y_test = (Tensor(array, requires_grad=False) for array in (x, y, x_test, y_test))
    model = Linear(1, 1)
    optimizer = SGDOptimizer(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = rg.mse_loss(model(X), Y)
        loss.backward()
        optimizer.step()
    with rg.no_grad():
        return rg.mse_loss(model(X_test), Y_test).item()


def points(x: Array, y: Array, x_test: Array, y_test: Array, steps: int) -> float:
    X, Y, X_test, Y_test = (Tensor(array, requires_grad=False) for array in (x, y, x_test, y_test))
    model = Sequential(Linear(2, 64), ReLU(), Linear(64, 64), ReLU(), Linear(64, 1))
    optimizer = AdamOptimizer(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = rg.binary_cross_entropy_with_logits(model(X), Y)
        loss.backward()
        optimizer.step()
    with rg.no_grad():
        return ((model(X_test) > 0) == Y_test).astype("float32").mean().item()


def classify(model: Module, x: Array, y: Array, x_test: Array, y_test: Array, epochs: int) -> float:
    training = rg.data.batches((x, y), batch_size=64)
    optimizer = AdamOptimizer(model.parameters(), lr=0.001)
    for _ in range(epochs):
        for inputs, targets in training:
            optimizer.zero_grad()
            loss = rg.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
    with rg.no_grad():
        return rg.accuracy(model(Tensor(x_test)), y_test).item()


def digits(x: Array, y: Array, x_test: Array, y_test: Array, epochs: int) -> float:
    model = Sequential(Linear(64, 128), ReLU(), Linear(128, 10))
    return classify(model, x, y, x_test, y_test, epochs)


def images(x: Array, y: Array, x_test: Array, y_test: Array, epochs: int) -> float:
    model = Sequential(
        Conv2d(1, 16, 3, padding=1), ReLU(), MaxPool2d(2),
        Conv2d(16, 32, 3, padding=1), ReLU(), MaxPool2d(2),
        Flatten(), Linear(128, 10),
    )  # fmt: skip
    return classify(model, x, y, x_test, y_test, epochs)
