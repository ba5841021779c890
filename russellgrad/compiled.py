"""compile_step: capture a training step as one CUDA graph and replay it, on backends that support it."""

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar, cast

from . import apply
from .autograd import track_filled_grads
from .backend import Array, Backend, get_backend
from .precision import get_matmul_precision
from .replay import HostRecording, record_host_work
from .tensor import Tensor
from .tokenizer import TokenIds

P = ParamSpec("P")
R = TypeVar("R")

_WARM_UP = 2  # calls that run without capture, so that kernels are compiled and state is allocated beforehand


def compile_step(step: Callable[P, R]) -> Callable[P, R]:
    """Compile a training step: on CuPy, capture it as one CUDA graph and replay that, without Python between kernels.

        step = compile_step(lambda inputs, targets: train_step(model, optimizer, inputs, targets))
        loss = step(model.tokenizer.ids(inputs), model.tokenizer.ids(targets))

    The first two calls run `step` normally and the third captures it. Every call performs one step, with the results
    of an uncompiled one. A call with other shapes, dtypes or numbers, or under another `set_matmul_precision`, captures
    the step again; both graphs are kept. On a backend without graphs, such as NumPy, every call runs `step`.

    A replay uses new arguments, the current parameters and learning rates, and new random numbers for dropout.
    Everything else is fixed at capture: training or evaluation mode, betas, weight decay, and the memory of every other
    array that the step reads. To change one of these, call compile_step again. zero_grad, backward and the optimizer's
    step must be in the same compiled step.

    Args:
        step: a function that returns a Tensor, a tuple of Tensors, or None. Its arguments are Tensors that track no
            gradients, results of `Tokenizer.ids`, numbers, strings, None, or tuples of these. Other host work, such as
            printing, runs only in calls that are not replays.

    Returns:
        A function with the arguments of `step`. It returns new Tensors that track no gradients.

    Raises TypeError if `step` is not callable.

    The returned function raises:
        TypeError: an argument has another type (NumPy arrays and lists would need a copy to the device during the
            capture), tracks gradients, or is on another backend; or `step` returned something other than Tensors.
        RuntimeError: an operation in `step` cannot be captured; names the op.

    After an error in a capture, or in a schedule before a replay, the step has not run: parameters, optimizers and
    random generators are as before the call. The gradients are None after an error in a capture.
    """
    if not callable(step):
        raise TypeError(f"compile_step: needs a function, got a {type(step).__name__}; pass the step, not its result")
    return _CompiledStep(step)


class _CompiledStep(Generic[P, R]):
    """What `compile_step` returns: the step, and one capture of it for each kind of arguments."""

    def __init__(self, step: Callable[P, R]) -> None:
        self.step = step
        self.captured: dict[Any, _CapturedStep] = {}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        values: dict[int | str, Any] = dict(enumerate(args))
        values.update(kwargs)
        key = get_matmul_precision(), *(_cache_key(name, value) for name, value in values.items())
        backends = [leaf.backend for leaf in _leaves(tuple(values.values())) if isinstance(leaf, (Tensor, TokenIds))]
        xp = backends[0] if backends else get_backend()
        if any(backend is not xp for backend in backends):
            names = ", ".join(sorted({backend.name for backend in backends}))
            raise TypeError(
                f"compile_step: the arguments live on several backends ({names}); move them to one, with "
                f"x.to({xp.name!r})"
            )
        if not hasattr(xp, "capture") or apply.observer is not None:  # a replay runs no operation that a trace sees
            return cast(R, _detach(self.step(*args, **kwargs)))
        if key not in self.captured:
            self.captured[key] = _CapturedStep(xp, self.step)
        return cast(R, self.captured[key](values))


class _CapturedStep:
    """The step for arguments of one kind: the first calls run it, the next captures it, later ones replay it."""

    def __init__(self, xp: Backend, step: Callable[..., Any]) -> None:
        self.xp, self.step = xp, step
        self.calls = 0
        self.inputs: dict[int | str, Any] = {}  # copies of the arguments, in the memory that the graph reads
        self.host = HostRecording()
        self.replay: Callable[[], None] | None = None
        self.result: Any = None
        self.grads: list[tuple[Any, Array | None]] = []  # each leaf that backward filled, and its .grad after a step

    def __call__(self, values: dict[int | str, Any]) -> Any:
        self.calls += 1
        if self.calls <= _WARM_UP:
            return _detach(self._run(values))
        if self.replay is None:
            self.inputs = {name: _map_tensors(value, _clone) for name, value in values.items()}
            with record_host_work() as self.host, track_filled_grads() as filled:
                try:
                    self.replay = self.xp.capture(self._record)
                except BaseException:
                    for tensor in filled.values():  # backward gave it an array that was never computed
                        tensor.grad = None
                    raise
            self.grads = [(tensor, tensor.grad) for tensor in filled.values()]
            for work in self.host.before_first:
                work()
        else:
            for name, value in values.items():
                _copy_into(self.xp, self.inputs[name], value)
            self.host.run_before_replay()
        self.replay()
        for tensor, grad in self.grads:
            tensor._grad = grad
        return _map_tensors(self.result, _clone)

    def _record(self) -> None:
        self.result = _detach(self._run(self.inputs))

    def _run(self, values: dict[int | str, Any]) -> Any:
        positional = [value for name, value in values.items() if isinstance(name, int)]
        return self.step(*positional, **{name: value for name, value in values.items() if isinstance(name, str)})


def _leaves(value: Any) -> list[Any]:
    return [leaf for part in value for leaf in _leaves(part)] if isinstance(value, tuple) else [value]


def _cache_key(name: int | str, value: Any) -> Any:
    """Cache key of an argument: a captured step is replayed only for arguments with the same keys."""
    if isinstance(value, tuple):
        return tuple(_cache_key(f"{name}[{i}]", part) for i, part in enumerate(value))
    if isinstance(value, Tensor) and value.requires_grad:
        raise TypeError(
            f"compile_step: argument {name} is a Tensor that tracks gradients, and a replay cannot fill its .grad; "
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
        "tokenizer.ids(batch) has checked and moved: for an array or a list, Tensor(data, requires_grad=False)"
    )


def _map_tensors(value: Any, f: Callable[[Tensor], Tensor]) -> Any:
    """Apply `f` to every Tensor in `value`: a Tensor, TokenIds, or a tuple of these. Return other values unchanged."""
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, TokenIds):
        ids, padding = value.values, value.padding

        def map_array(array: Array) -> Array:
            return f(Tensor._wrap(array, value.backend)).data

        return TokenIds(map_array(ids), None if padding is None else map_array(padding), value.upper, value.backend)
    if not isinstance(value, tuple):
        return value
    parts = [_map_tensors(part, f) for part in value]
    return type(value)._make(parts) if hasattr(value, "_make") else tuple(parts)  # _make: of a NamedTuple


def _detach(result: Any) -> Any:
    for part in result if isinstance(result, tuple) else (result,):
        if part is not None and not isinstance(part, Tensor):
            raise TypeError(
                f"compile_step: the step returned a {type(part).__name__}; return Tensors, or None: `return loss`, and "
                "call .item() on the result"
            )
    return _map_tensors(result, lambda tensor: tensor.detach())


def _clone(tensor: Tensor) -> Tensor:
    return Tensor._wrap(tensor.backend.copy(tensor.data), tensor.backend)


def _copy_into(xp: Backend, target: Any, source: Any) -> None:
    if isinstance(target, tuple):
        for target_part, part in zip(target, source, strict=True):
            _copy_into(xp, target_part, part)
    elif isinstance(target, Tensor):
        xp.assign(target.data, source.data)
    elif isinstance(target, TokenIds):
        xp.assign(target.values, source.values)
        if target.padding is not None:
            xp.assign(target.padding, source.padding)
