"""ML by Hand (its package is `autograd`): the style of its README's toy example and of its examples/mnist.py."""

import numpy as np
from autograd import functional, nn, optim
from autograd.tensor import Tensor, no_grad

from benchmarks.peers.tasks import Array


def line(x: Array, y: Array, x_test: Array, y_test: Array, steps: int) -> float:
    model = nn.Linear(1, 1)
    optimizer = optim.SGD(model.parameters, lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = functional.mean_squared_loss(model(x), y)
        loss.backward()
        optimizer.step()
    with no_grad():
        return functional.mean_squared_loss(model(x_test), y_test).item()


class PointsModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.h1 = nn.Linear(2, 64)
        self.h2 = nn.Linear(64, 64)
        self.h3 = nn.Linear(64, 1)

    def forward(self, x: Array) -> Tensor:
        x = functional.relu(self.h1(x))
        x = functional.relu(self.h2(x))
        return self.h3(x)


def points(x: Array, y: Array, x_test: Array, y_test: Array, steps: int) -> float:
    model = PointsModel()
    optimizer = optim.Adam(model.parameters, lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(model(x), y)
        loss.backward()
        optimizer.step()
    with no_grad():
        return ((model(x_test).data > 0) == y_test).mean()


class DigitsModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.h1 = nn.Linear(64, 128)
        self.h2 = nn.Linear(128, 10)

    def forward(self, x: Array) -> Tensor:
        return self.h2(functional.relu(self.h1(x)))


class ImagesModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, kernel_size=3, padding_mode="same")
        self.conv2 = nn.Conv2d(16, 32, kernel_size=3, padding_mode="same")
        self.pool = nn.MaxPool2d(kernel_size=2)
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Array) -> Tensor:
        x = self.pool(functional.relu(self.conv1(x)))
        x = self.pool(functional.relu(self.conv2(x)))
        return self.fc(x.reshape(x.shape[0], -1))


def classify(model: nn.Module, x: Array, y: Array, x_test: Array, y_test: Array, epochs: int) -> float:
    optimizer = optim.Adam(model.parameters, lr=0.001)
    for _ in range(epochs):
        for batch in np.split(np.random.permutation(len(x)), len(x) // 64):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
    with no_grad():
        return (model(x_test).data.argmax(axis=1) == y_test).mean()


def digits(x: Array, y: Array, x_test: Array, y_test: Array, epochs: int) -> float:
    return classify(DigitsModel(), x, y, x_test, y_test, epochs)


def images(x: Array, y: Array, x_test: Array, y_test: Array, epochs: int) -> float:
    return classify(ImagesModel(), x, y, x_test, y_test, epochs)
