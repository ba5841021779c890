"""Context managers that also decorate functions, including generator and coroutine functions."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from functools import wraps
from inspect import isasyncgenfunction, isclass, iscoroutinefunction, isgeneratorfunction
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar, cast
from warnings import warn

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Scope(Generic[T]):
    """`with scope:` enters `enter()`; `@scope` enters it whenever code of the function runs.

    In a generator function that is only while its own code runs, not the code that iterates over it. (The decorators of
    `contextlib` leave the block when the generator is made, before any of its code has run.)

    Args:
        name: the name of the public function, for messages.
        enter: makes a new context manager.
    """

    def __init__(self, name: str, enter: Callable[[], AbstractContextManager[T]]) -> None:
        self._name, self._enter = name, enter
        self._entered: list[AbstractContextManager[T]] = []

    def __enter__(self) -> T:
        block = self._enter()
        value = block.__enter__()
        self._entered.append(block)
        return value

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._entered.pop().__exit__(kind, error, tb)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function.

        Raises TypeError for an async generator function. Of a class, only the constructor is decorated, with a
        FutureWarning, as `torch.no_grad` does.
        """
        if not callable(function):
            raise TypeError(f"{self._name}: decorates a function, got {function!r}")
        if isasyncgenfunction(function):
            raise TypeError(
                f"{self._name}: cannot decorate an async generator function; use `with {self._name}(...):` inside it"
            )
        if isclass(function):
            message = f"{self._name}: of a class, only the constructor is decorated; decorate its methods instead"
            warn(message, FutureWarning, stacklevel=2)
        if isgeneratorfunction(function):
            return cast(Callable[P, R], wraps(function)(self._generate(function)))

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with self._enter():
                return function(*args, **kwargs)

        @wraps(function)
        async def wait(*args: P.args, **kwargs: P.kwargs) -> Any:
            with self._enter():
                return await cast(Any, function(*args, **kwargs))

        return cast(Callable[P, R], wait) if iscoroutinefunction(function) else call

    def _generate(self, function: Callable[..., Any]) -> Callable[..., Generator[Any, Any, Any]]:
        def generate(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            body = function(*args, **kwargs)
            resume, value = body.send, None
            while True:
                try:
                    with self._enter():
                        item = resume(value)
                except StopIteration as stop:
                    return stop.value
                try:
                    resume, value = body.send, (yield item)
                except GeneratorExit:
                    with self._enter():
                        body.close()
                    raise
                except BaseException as error:
                    resume, value = body.throw, error

        return generate
