"""compile_step: a training step as one recording that the device replays, where the backend can."""

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar, cast

from .autograd import filled_grads
from .backend import Array, Backend, get_backend
from .precision import get_matmul_precision
from .replay import Recording, recording
from .tensor import Tensor
from .tokenizer import TokenIds

P = ParamSpec("P")
R = TypeVar("R")

_WARM_UP = 2  # steps run as they are: what is built or allocated at first use is then there


def compile_step(step: Callable[P, R]) -> Callable[P, R]:
    """`step` as a function that, on CuPy, is recorded as one CUDA graph and replayed: no Python between its kernels.

        step = compile_step(lambda inputs, targets: train_step(model, optimizer, inputs, targets))
        loss = step(model.tokenizer.ids(inputs), model.tokenizer.ids(targets))

    The first two calls run `step` as it is, the third records it, and each call is one step, with an uncompiled one's
    results. A call with other shapes, dtypes or numbers, or under another `set_matmul_precision`, records anew and
    keeps both. On a backend without graphs, as NumPy, every call runs `step`.

    A recording is of what the device did. From replay to replay the arguments change, and the parameters, learning
    rates and draws of optimizers and dropout. All else stays as it was: training or evaluation mode, betas and
    weight decay, and every array that the step reads besides, which must stay where it is. To change one of these,
    call compile_step again. zero_grad, backward and the optimizer's step belong into one step together.

    Args:
        step: a function of Tensors without history, of what `Tokenizer.ids` gives, of numbers, strings and None, and of
            tuples of such, that returns Tensors (one, or a tuple of them) or None. What else it does on the host, as
            printing or counting, it does only while it runs as it is.

    Returns:
        The function. What it returns are new Tensors without history.

    Raises:
        TypeError: by the function, for an argument of another kind (NumPy arrays and lists would have to be copied to
            the device within the recording), one that tracks gradients, or on another backend; for a result that is
            no Tensor. RuntimeError: something in `step` cannot be recorded; names the op.
    """
    return _Compiled(step)


class _Compiled(Generic[P, R]):
    def __init__(self, step: Callable[P, R]) -> None:
        self.step = step
        self.variants: dict[Any, _Variant] = {}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        values: dict[int | str, Any] = dict(enumerate(args))
        values.update(kwargs)
        key = get_matmul_precision(), *(_kind(name, value) for name, value in values.items())
        backends = [leaf.backend for leaf in _leaves(tuple(values.values())) if isinstance(leaf, (Tensor, TokenIds))]
        xp = backends[0] if backends else get_backend()
        if any(backend is not xp for backend in backends):
            names = ", ".join(sorted({backend.name for backend in backends}))
            raise TypeError(f"compile_step: the arguments live on several backends ({names}); move them to one")
        if not hasattr(xp, "capture"):
            return cast(R, _detached(self.step(*args, **kwargs)))
        if key not in self.variants:
            self.variants[key] = _Variant(xp, self.step)
        return cast(R, self.variants[key](values))


class _Variant:
    """The step for arguments of one kind: run, then recorded, then replayed."""

    def __init__(self, xp: Backend, step: Callable[..., Any]) -> None:
        self.xp, self.step = xp, step
        self.calls = 0
        self.inputs: dict[int | str, Any] = {}  # the arguments in memory of their own, which the recording reads
        self.host = Recording()
        self.replay: Callable[[], None] | None = None
        self.result: Any = None
        self.grads: list[tuple[Any, Array | None]] = []  # each leaf that backward filled, and what its .grad is after

    def __call__(self, values: dict[int | str, Any]) -> Any:
        self.calls += 1
        if self.calls <= _WARM_UP:
            return _detached(self._run(values))
        if self.replay is None:
            self.inputs = {name: _map(value, _own_copy) for name, value in values.items()}
            with recording() as self.host, filled_grads() as filled:
                self.replay = self.xp.capture(self._record)
            self.grads = [(tensor, tensor.grad) for tensor in filled.values()]
            due = self.host.before_first
        else:
            for name, value in values.items():
                _assign(self.xp, self.inputs[name], value)
            due = self.host.before_replay
        for work in due:
            work()
        self.replay()
        for tensor, grad in self.grads:
            tensor.grad = grad
        return _map(self.result, _own_copy)

    def _record(self) -> None:
        self.result = _detached(self._run(self.inputs))

    def _run(self, values: dict[int | str, Any]) -> Any:
        positional = [value for name, value in values.items() if isinstance(name, int)]
        return self.step(*positional, **{name: value for name, value in values.items() if isinstance(name, str)})


def _leaves(value: Any) -> list[Any]:
    return [leaf for part in value for leaf in _leaves(part)] if isinstance(value, tuple) else [value]


def _kind(name: int | str, value: Any) -> Any:
    """What must be the same for a recording to serve again."""
    if isinstance(value, tuple):
        return tuple(_kind(f"{name}[{i}]", part) for i, part in enumerate(value))
    if isinstance(value, Tensor) and value.requires_grad:
        raise TypeError(
            f"compile_step: argument {name} is a Tensor that tracks gradients, which a replay could not fill; "
            "pass .detach(), or use it within the step as a parameter"
        )
    if isinstance(value, Tensor):
        return "Tensor", id(value.backend), value.shape, str(value.dtype)
    if isinstance(value, TokenIds):
        return "TokenIds", id(value.backend), value.values.shape, value.padding is None, value.upper
    if value is None or isinstance(value, (bool, int, float, str)):
        return type(value), value
    raise TypeError(
        f"compile_step: argument {name} is a {type(value).__name__}; pass Tensors, numbers, or ids that "
        "tokenizer.ids(batch) has checked and moved"
    )


def _map(value: Any, f: Callable[[Tensor], Tensor]) -> Any:
    """f of the Tensor, of each in the tuple, or of what the TokenIds hold; other values as they are."""
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, TokenIds):
        ids, padding = value.values, value.padding

        def moved(array: Array) -> Array:
            return f(Tensor._wrap(array, value.backend)).data

        return TokenIds(moved(ids), None if padding is None else moved(padding), value.upper, value.backend)
    return tuple(_map(part, f) for part in value) if isinstance(value, tuple) else value


def _detached(result: Any) -> Any:
    for part in result if isinstance(result, tuple) else (result,):
        if part is not None and not isinstance(part, Tensor):
            raise TypeError(f"compile_step: the step returned a {type(part).__name__}; return Tensors, or None")
    return _map(result, lambda tensor: tensor.detach())


def _own_copy(tensor: Tensor) -> Tensor:
    return Tensor._wrap(tensor.backend.copy(tensor.data), tensor.backend)


def _assign(xp: Backend, own: Any, value: Any) -> None:
    if isinstance(own, tuple):
        for own_part, part in zip(own, value, strict=True):
            _assign(xp, own_part, part)
    elif isinstance(own, Tensor):
        xp.assign(own.data, value.data)
    elif isinstance(own, TokenIds):
        xp.assign(own.values, value.values)
        if own.padding is not None:
            xp.assign(own.padding, value.padding)
