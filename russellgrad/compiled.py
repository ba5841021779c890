"""compile_step: a training step as one recording that the device replays, where the backend can."""

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

from .backend import Array, Backend
from .replay import Recording, recording
from .tensor import Tensor
from .tokenizer import Ids

P = ParamSpec("P")
R = TypeVar("R")

_WARM_UP = 2  # steps run as they are: what is built or allocated at first use is then there


def compile_step(step: Callable[P, R]) -> Callable[P, R]:
    """`step` as a function that, on CuPy, is recorded as one CUDA graph and replayed: no Python between its kernels.

        step = compile_step(lambda inputs, targets: take_step(model, optimizer, inputs, targets))
        loss = step(model.tokenizer.ids(inputs), model.tokenizer.ids(targets))

    The first two calls run `step` as it is, the third records it, and each call is exactly one step with the results
    of an uncompiled one. A call with other shapes, dtypes or numbers records anew and keeps both. On a backend without
    graphs, as NumPy, every call runs `step`.

    Args:
        step: a function of Tensors, of what `Tokenizer.ids` gives, and of numbers, strings and None, that returns
            Tensors (one, or a tuple of them) or None. It may change parameters and optimizers; anything else on the
            host it does only while it runs as it is: print, count, read a loss.

    Returns:
        The function. What it returns are new Tensors without history.

    Raises:
        TypeError: by the function, for an argument of another kind: NumPy arrays and lists would have to be copied to
            the device within the recording. RuntimeError: something in `step` cannot be recorded; names the op.
    """
    return _Compiled(step)


class _Compiled(Generic[P, R]):
    def __init__(self, step: Callable[P, R]) -> None:
        self.step = step
        self.variants: dict[Any, _Variant] = {}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        names = [*map(str, range(len(args))), *kwargs]
        values = [*args, *kwargs.values()]
        xp = next((found for found in map(_backend_of, values) if found is not None), None)
        if xp is None or not xp.has_graphs:
            return _detached(self.step(*args, **kwargs))
        key = tuple(_kind(name, value) for name, value in zip(names, values, strict=True))
        variant = self.variants.setdefault(key, _Variant(xp))

        def run(given: list[Any]) -> Any:
            return self.step(*given[: len(args)], **dict(zip(kwargs, given[len(args) :], strict=True)))  # type: ignore[arg-type]

        result: R = variant(run, values)
        return result


class _Variant:
    """The step for arguments of one kind: run, then recorded, then replayed."""

    def __init__(self, xp: Backend) -> None:
        self.xp = xp
        self.calls = 0
        self.inputs: list[Any] = []  # the arguments in memory of their own, which the recording reads
        self.host = Recording()
        self.replay: Callable[[], None] | None = None
        self.result: Any = None

    def __call__(self, run: Callable[[list[Any]], Any], values: list[Any]) -> Any:
        self.calls += 1
        if self.calls <= _WARM_UP:
            return _detached(run(values))
        if self.replay is None:
            self.inputs = [_map(value, _own_copy) for value in values]
            with recording() as host:
                self.replay = self.xp.capture(self._record_into_result(run))
            self.host = host
            due = host.before_first
        else:
            for own, value in zip(self.inputs, values, strict=True):
                _assign(self.xp, own, value)
            due = self.host.before_replay
        for work in due:
            work()
        self.replay()
        return _map(self.result, _own_copy)

    def _record_into_result(self, run: Callable[[list[Any]], Any]) -> Callable[[], None]:
        def record() -> None:
            self.result = run(self.inputs)

        return record


def _backend_of(value: Any) -> Backend | None:
    return value.backend if isinstance(value, (Tensor, Ids)) else None


def _kind(name: str, value: Any) -> Any:
    """What must be the same for a recording to serve again."""
    if isinstance(value, Tensor):
        return "Tensor", id(value.backend), value.shape, str(value.dtype)
    if isinstance(value, Ids):
        return "Ids", id(value.backend), value.values.shape, value.padding is None
    if value is None or isinstance(value, (bool, int, float, str)):
        return type(value), value
    raise TypeError(
        f"compile_step: argument {name} is a {type(value).__name__}; pass Tensors, numbers, or ids that "
        "tokenizer.ids(batch) has checked and moved"
    )


def _map(value: Any, f: Callable[[Tensor], Tensor]) -> Any:
    """f of the Tensor, of each in the tuple, or of what the Ids hold; other values as they are."""
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, Ids):
        ids, padding = value.values, value.padding

        def moved(array: Array) -> Array:
            return f(Tensor._wrap(array, value.backend)).data

        return Ids(moved(ids), None if padding is None else moved(padding), value.backend)
    if isinstance(value, tuple):
        return tuple(_map(part, f) for part in value)
    return value


def _detached(result: Any) -> Any:
    return _map(result, lambda tensor: tensor.detach())


def _own_copy(tensor: Tensor) -> Tensor:
    return Tensor._wrap(tensor.backend.copy(tensor.data), tensor.backend)


def _assign(xp: Backend, own: Any, value: Any) -> None:
    if isinstance(own, Tensor):
        xp.assign(own.data, value.data)
    elif isinstance(own, Ids):
        xp.assign(own.values, value.values)
        if own.padding is not None:
            xp.assign(own.padding, value.padding)
