"""MyGrad with MyNN, its library of layers and optimizers: the style of MyNN's notebooks examples/*.ipynb."""

from typing import Any

import mygrad as mg
import numpy as np
from mygrad import Tensor
from mygrad.nnet.layers import max_pool
from mynn.activations import relu
from mynn.initializers import glorot_uniform
from mynn.layers.conv import conv
from mynn.layers.dense import dense
from mynn.losses import mean_squared_loss, softmax_cross_entropy
from mynn.optimizers.adam import Adam
from mynn.optimizers.sgd import SGD

from benchmarks.peers.tasks import Array

mg.turn_memory_guarding_off()  # MyGrad's documentation recommends it for speed


def line(x: Array, y: Array, x_test: Array, y_test: Array, steps: int) -> float:
    model = dense(1, 1, weight_initializer=glorot_uniform)
    optimizer = SGD(model.parameters, learning_rate=0.1)
    for _ in range(steps):
        loss = mean_squared_loss(model(x), y)
        loss.backward()
        optimizer.step()
    with mg.no_autodiff:
        return mean_squared_loss(model(x_test), y_test).item()


class PointsModel:
    def __init__(self) -> None:
        self.layer1 = dense(2, 64, weight_initializer=glorot_uniform)
        self.layer2 = dense(64, 64, weight_initializer=glorot_uniform)
        self.layer3 = dense(64, 1, weight_initializer=glorot_uniform)

    def __call__(self, x: Array) -> Tensor:
        return self.layer3(relu(self.layer2(relu(self.layer1(x)))))

    @property
    def parameters(self) -> Any:
        return self.layer1.parameters + self.layer2.parameters + self.layer3.parameters


def points(x: Array, y: Array, x_test: Array, y_test: Array, steps: int) -> float:
    model = PointsModel()
    optimizer = Adam(model.parameters, learning_rate=0.01)
    for _ in range(steps):
        logits = model(x)
        loss = (mg.logaddexp(np.float32(0), logits) - logits * y).mean()  # binary cross-entropy, which MyNN lacks
        loss.backward()
        optimizer.step()
    with mg.no_autodiff:
        return ((model(x_test).data > 0) == y_test).mean()


class DigitsModel:
    def __init__(self) -> None:
        self.layer1 = dense(64, 128, weight_initializer=glorot_uniform)
        self.layer2 = dense(128, 10, weight_initializer=glorot_uniform)

    def __call__(self, x: Array) -> Tensor:
        return self.layer2(relu(self.layer1(x)))

    @property
    def parameters(self) -> Any:
        return self.layer1.parameters + self.layer2.parameters


class ImagesModel:
    def __init__(self) -> None:
        self.conv1 = conv(1, 16, 3, 3, padding=1, weight_initializer=glorot_uniform)
        self.conv2 = conv(16, 32, 3, 3, padding=1, weight_initializer=glorot_uniform)
        self.layer = dense(128, 10, weight_initializer=glorot_uniform)

    def __call__(self, x: Array) -> Tensor:
        x = max_pool(relu(self.conv1(x)), (2, 2), 2)
        x = max_pool(relu(self.conv2(x)), (2, 2), 2)
        return self.layer(x.reshape(-1, 128))

    @property
    def parameters(self) -> Any:
        return self.conv1.parameters + self.conv2.parameters + self.layer.parameters


def classify(model: Any, x: Array, y: Array, x_test: Array, y_test: Array, epochs: int) -> float:
    optimizer = Adam(model.parameters, learning_rate=0.001)
    for _ in range(epochs):
        for batch in np.split(np.random.permutation(len(x)), len(x) // 64):
            loss = softmax_cross_entropy(model(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
    with mg.no_autodiff:
        return (model(x_test).data.argmax(1) == y_test).mean()


def digits(x: Array, y: Array, x_test: Array, y_test: Array, epochs: int) -> float:
    return classify(DigitsModel(), x, y, x_test, y_test, epochs)


def images(x: Array, y: Array, x_test: Array, y_test: Array, epochs: int) -> float:
    return classify(ImagesModel(), x, y, x_test, y_test, epochs)
