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


def points(x: Array, y: Array, x_test: Array, y_test: Array, steps: int) -> float:
    X, Y, X_test, Y_test = Tensor(x), Tensor(y), Tensor(x_test), Tensor(y_test)
    layers = [nn.Linear(2, 64), Tensor.relu, nn.Linear(64, 64), Tensor.relu, nn.Linear(64, 1)]
    optimizer = nn.optim.Adam(nn.state.get_parameters(layers), lr=0.01)

    @TinyJit
    @Context(TRAINING=1)
    def step() -> Tensor:
        optimizer.zero_grad()
        loss = X.sequential(layers).binary_crossentropy_logits(Y).backward()
        return loss.realize(*optimizer.schedule_step())

    for _ in range(steps):
        step()
    return ((X_test.sequential(layers) > 0) == Y_test).mean().item()


def classify(layers: list[Any], x: Array, y: Array, x_test: Array, y_test: Array, epochs: int) -> float:
    X, Y, X_test, Y_test = Tensor(x), Tensor(y), Tensor(x_test), Tensor(y_test)
    optimizer = nn.optim.Adam(nn.state.get_parameters(layers), lr=0.001)

    @TinyJit
    @Context(TRAINING=1)
    def step() -> Tensor:
        optimizer.zero_grad()
        samples = Tensor.randint(64, high=len(x))
        loss = X[samples].sequential(layers).sparse_categorical_crossentropy(Y[samples]).backward()
        return loss.realize(*optimizer.schedule_step())

    for _ in range(epochs * (len(x) // 64)):
        step()
    return (X_test.sequential(layers).argmax(axis=1) == Y_test).mean().item()


def digits(x: Array, y: Array, x_test: Array, y_test: Array, epochs: int) -> float:
    layers = [nn.Linear(64, 128), Tensor.relu, nn.Linear(128, 10)]
    return classify(layers, x, y, x_test, y_test, epochs)


def images(x: Array, y: Array, x_test: Array, y_test: Array, epochs: int) -> float:
    layers = [
        nn.Conv2d(1, 16, 3, padding=1), Tensor.relu, Tensor.max_pool2d,
        nn.Conv2d(16, 32, 3, padding=1), Tensor.relu, Tensor.max_pool2d,
        lambda x: x.flatten(1), nn.Linear(128, 10),
    ]  # fmt: skip
    return classify(layers, x, y, x_test, y_test, epochs)
