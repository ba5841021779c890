"""tinygrad: the style of its docs/mnist.md and examples/beautiful_mnist.py, with the training step under TinyJit."""

from typing import Any

from tinygrad import Context, Tensor, TinyJit, nn

from benchmarks.peers.tasks import Array


def line(x: Array, y: Array, x_test: Array, y_test: Array, steps: int) -> float:
    X, Y, X_test, Y_test = Tensor(x), Tensor(y), Tensor(x_test), Tensor(y_test)
    model = nn.Linear(1, 1)
    optimizer = nn.optim.SGD(nn.state.get_parameters(model), lr=0.1)

    @TinyJit
    @Context(TRAINING=1)
    def step() -> Tensor:
        optimizer.zero_grad()
        loss = (model(X) - Y).square().mean().backward()
        return loss.realize(*optimizer.schedule_step())

    for _ in range(steps):
        step()
    return (model(X_test) - Y_test).square().mean().item()


class PointsModel:
    def __init__(self) -> None:
        self.l1 = nn.Linear(2, 64)
        self.l2 = nn.Linear(64, 64)
        self.l3 = nn.Linear(64, 1)

    def __call__(self, x: Tensor) -> Tensor:
        return self.l3(self.l2(self.l1(x).relu()).relu())


def points(x: Array, y: Array, x_test: Array, y_test: Array, steps: int) -> float:
    X, Y, X_test, Y_test = Tensor(x), Tensor(y), Tensor(x_test), Tensor(y_test)
    model = PointsModel()
    optimizer = nn.optim.Adam(nn.state.get_parameters(model), lr=0.01)

    @TinyJit
    @Context(TRAINING=1)
    def step() -> Tensor:
        optimizer.zero_grad()
        loss = model(X).binary_crossentropy_logits(Y).backward()
        return loss.realize(*optimizer.schedule_step())

    for _ in range(steps):
        step()
    return ((model(X_test) > 0) == Y_test).mean().item()


class DigitsModel:
    def __init__(self) -> None:
        self.l1 = nn.Linear(64, 128)
        self.l2 = nn.Linear(128, 10)

    def __call__(self, x: Tensor) -> Tensor:
        return self.l2(self.l1(x).relu())


class ImagesModel:
    def __init__(self) -> None:
        self.l1 = nn.Conv2d(1, 16, 3, padding=1)
        self.l2 = nn.Conv2d(16, 32, 3, padding=1)
        self.l3 = nn.Linear(128, 10)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.l1(x).relu().max_pool2d()
        x = self.l2(x).relu().max_pool2d()
        return self.l3(x.flatten(1))


def classify(model: Any, x: Array, y: Array, x_test: Array, y_test: Array, epochs: int) -> float:
    X, Y, X_test, Y_test = Tensor(x), Tensor(y), Tensor(x_test), Tensor(y_test)
    optimizer = nn.optim.Adam(nn.state.get_parameters(model), lr=0.001)

    @TinyJit
    @Context(TRAINING=1)
    def step() -> Tensor:
        optimizer.zero_grad()
        samples = Tensor.randint(64, high=len(x))
        loss = model(X[samples]).sparse_categorical_crossentropy(Y[samples]).backward()
        return loss.realize(*optimizer.schedule_step())

    for _ in range(epochs * (len(x) // 64)):
        step()
    return (model(X_test).argmax(axis=1) == Y_test).mean().item()


def digits(x: Array, y: Array, x_test: Array, y_test: Array, epochs: int) -> float:
    return classify(DigitsModel(), x, y, x_test, y_test, epochs)


def images(x: Array, y: Array, x_test: Array, y_test: Array, epochs: int) -> float:
    return classify(ImagesModel(), x, y, x_test, y_test, epochs)
