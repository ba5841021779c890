"""PyTorch, for reference."""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.peers.tasks import Array


def line(x: Array, y: Array, x_test: Array, y_test: Array, steps: int) -> float:
    X, Y, X_test, Y_test = map(torch.from_numpy, (x, y, x_test, y_test))
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.mse_loss(model(X), Y)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return F.mse_loss(model(X_test), Y_test).item()


def points(x: Array, y: Array, x_test: Array, y_test: Array, steps: int) -> float:
    X, Y, X_test, Y_test = map(torch.from_numpy, (x, y, x_test, y_test))
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model(X), Y)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return ((model(X_test) > 0) == Y_test).float().mean().item()


def classify(model: nn.Module, x: Array, y: Array, x_test: Array, y_test: Array, epochs: int) -> float:
    X, Y, X_test, Y_test = map(torch.from_numpy, (x, y, x_test, y_test))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    for _ in range(epochs):
        for batch in torch.randperm(len(X)).split(64):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(X[batch]), Y[batch])
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return (model(X_test).argmax(1) == Y_test).float().mean().item()


def digits(x: Array, y: Array, x_test: Array, y_test: Array, epochs: int) -> float:
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    return classify(model, x, y, x_test, y_test, epochs)


def images(x: Array, y: Array, x_test: Array, y_test: Array, epochs: int) -> float:
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    return classify(model, x, y, x_test, y_test, epochs)
