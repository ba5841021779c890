"""Functions that create tensors: `zeros`, `arange`, `randn`, ..., with NumPy's names and arguments.

What holds for `Tensor(...)` holds for them. The dtype is by default that of numbers, `get_default_dtype()`. Tensors of
floats track gradients unless `requires_grad=False` or `no_grad()` says otherwise; PyTorch's do not by default. The
backend is by default the current one. The values are computed there, so `compile_step` can capture these functions.
"""

import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeAlias

from .backend import Array, Backend, DType, Shape, load_backend, resolve_backend
from .dtype import Number, get_default_dtype, host_number, is_float, python_number, widest_float
from .ops.shapes import shape_from_args
from .random import Generator, default_generator
from .rules import check_int
from .tensor import Tensor

Length: TypeAlias = int | Sequence[int]  # one length, or all of a shape
Where: TypeAlias = str | ModuleType | Backend | None


def full(
    shape: Length, fill_value: Number, dtype: DType = None, *, requires_grad: bool | None = None, backend: Where = None
) -> Tensor:
    """A tensor with `fill_value` everywhere.

    Args:
        shape: an int or a sequence of ints.
        fill_value: a real number or a bool.
        dtype: by default that of Tensor(fill_value): the default dtype, or bool.
        requires_grad, backend: as for `Tensor`. Floats track gradients by default.

    Raises:
        TypeError: the value is not a real number, a length is not an int, or the backend does not have the dtype.
        ValueError: a length is negative. OverflowError: the value is out of the range of the dtype.

        full((2, 3), 0.5)
    """
    return _full("full", shape, fill_value, dtype, requires_grad, backend)


def zeros(shape: Length, dtype: DType = None, *, requires_grad: bool | None = None, backend: Where = None) -> Tensor:
    """A tensor of zeros, as `full(shape, 0)`: `zeros((2, 3))`. Arguments and errors are those of `full`."""
    return _full("zeros", shape, 0, dtype, requires_grad, backend)


def ones(shape: Length, dtype: DType = None, *, requires_grad: bool | None = None, backend: Where = None) -> Tensor:
    """A tensor of ones, as `full(shape, 1)`: `ones((2, 3))`. Arguments and errors are those of `full`."""
    return _full("ones", shape, 1, dtype, requires_grad, backend)


def arange(
    start: Number, stop: Number | None = None, step: Number = 1, dtype: DType = None, *,
    requires_grad: bool | None = None, backend: Where = None,
) -> Tensor:  # fmt: skip
    """The numbers start, start + step, ... before `stop`: `arange(stop)` from 0, or `arange(start, stop)`.

    The dtype is by default int64 if all arguments are ints, else the default dtype. Integers track no gradients.

    Raises:
        TypeError: an argument is not a real number. ValueError: `step` is 0, or an argument is not finite.
        OverflowError: an int is out of the range of int64.

        arange(2, 8, 3)  # [2 5]
    """
    start, stop = (0, start) if stop is None else (start, stop)
    first, last, by = (_finite("arange", *x) for x in (("start", start), ("stop", stop), ("step", step)))
    if by == 0:
        raise ValueError("arange: step must not be 0")
    whole = isinstance(first, int) and isinstance(last, int) and isinstance(by, int)
    xp = resolve_backend(backend).root
    wanted = _dtype("arange", xp, "int64" if dtype is None and whole else dtype)
    if whole and not all(-(2**63) <= x < 2**63 for x in (first, last, by)):
        raise OverflowError(f"arange: start, stop and step must fit int64, got {first}, {last} and {by}")
    # Ints are counted exactly, without a division of floats.
    n = -((first - last) // by) if whole else math.ceil((last - first) / by)
    i = xp.arange(int(n) if n > 0 else 0)
    values = xp.add(xp.multiply(i if whole else xp.astype(i, widest_float(xp)), by), first)
    return _tensor(xp, xp.astype(values, wanted), requires_grad)


def linspace(
    start: float, stop: float, num: int = 50, endpoint: bool = True, dtype: DType = None, *,
    requires_grad: bool | None = None, backend: Where = None,
) -> Tensor:  # fmt: skip
    """`num` numbers at equal distances from `start` to `stop`, which is the last one unless endpoint=False.

    Of an integer dtype, they are rounded down, as in NumPy.

    Raises:
        TypeError: `start` or `stop` is not a real number, or `num` not an int. ValueError: `num` is negative, or a
            bound is not finite.

        linspace(0, 1, 5)  # [0. 0.25 0.5 0.75 1.]
    """
    first, last = float(_finite("linspace", "start", start)), float(_finite("linspace", "stop", stop))
    check_int("linspace: num", num)
    (n,) = _shape("linspace", num)
    xp = resolve_backend(backend).root
    wanted = _dtype("linspace", xp, dtype)
    i, intervals = xp.astype(xp.arange(n), widest_float(xp)), n - 1 if endpoint else n
    values = xp.add(xp.multiply(i, (last - first) / intervals if intervals > 0 else 0.0), first)
    if endpoint and n > 1:  # without a rounding error
        values = xp.where(xp.equal(i, n - 1), last, values)
    if wanted.kind in "iu":  # as in NumPy; a cast would round to 0
        values = xp.floor(values)
    return _tensor(xp, xp.astype(values, wanted), requires_grad)


def eye(
    n: int, m: int | None = None, k: int = 0, dtype: DType = None, *,
    requires_grad: bool | None = None, backend: Where = None,
) -> Tensor:  # fmt: skip
    """A matrix (n, m) with ones on the diagonal k, which is above the main one for k > 0, and zeros elsewhere.

    By default m is n. Raises TypeError if n, m or k is not an int, ValueError for a negative length.

        eye(2)  # [[1. 0.], [0. 1.]]
    """
    check_int("eye: k", k)
    rows, columns = _shape("eye", n, n if m is None else m)
    xp = resolve_backend(backend).root
    wanted = _dtype("eye", xp, dtype)
    is_one = xp.equal(xp.add(xp.expand_dims(xp.arange(rows), 1), k), xp.arange(columns))
    return _tensor(xp, xp.astype(is_one, wanted), requires_grad)


def randn(
    *shape: Length, seed: int | None = None, generator: Generator | None = None, dtype: DType = None,
    requires_grad: bool | None = None, backend: Where = None,
) -> Tensor:  # fmt: skip
    """Random numbers of the standard normal distribution: `randn(2, 3)` or `randn((2, 3))`.

    They are the same on every backend. They come from the generator that `manual_seed` sets, so the next call gives
    others, unless a seed or a generator is given.

    Args:
        shape: the lengths, or one sequence of them.
        seed: in [0, 2**64): the first numbers of a new `Generator(seed)`.
        generator: a `russellgrad.random.Generator`.
        dtype: a float dtype, by default the default one.
        requires_grad, backend: as for `Tensor`. Floats track gradients by default.

    Raises:
        TypeError: a seed and a generator are given, a length is not an int, or the dtype is not a float one.
        ValueError: a length is negative, or the seed is out of range.

        randn(2, 3, seed=0)
    """
    return _random("randn", shape, seed, generator, dtype, requires_grad, backend)


def rand(
    *shape: Length, seed: int | None = None, generator: Generator | None = None, dtype: DType = None,
    requires_grad: bool | None = None, backend: Where = None,
) -> Tensor:  # fmt: skip
    """Random numbers, uniform on [0, 1): `rand(2, 3)` or `rand((2, 3))`. Arguments and errors are those of `randn`."""
    return _random("rand", shape, seed, generator, dtype, requires_grad, backend)


def full_like(x: Tensor, fill_value: Number, dtype: DType = None, **options: Any) -> Tensor:
    """As `full`, with the shape and, by default, the dtype and the backend of x. `options` are those of `full`.

    Raises as `full`, and TypeError if x is not a Tensor.
    """
    return _like(full, x, dtype, options, fill_value)


def zeros_like(x: Tensor, dtype: DType = None, **options: Any) -> Tensor:
    """As `zeros`, with the shape and, by default, the dtype and the backend of x. `options` are those of `zeros`.

    Raises as `zeros`, and TypeError if x is not a Tensor.
    """
    return _like(zeros, x, dtype, options)


def ones_like(x: Tensor, dtype: DType = None, **options: Any) -> Tensor:
    """As `ones`, with the shape and, by default, the dtype and the backend of x. `options` are those of `ones`.

    Raises as `ones`, and TypeError if x is not a Tensor.
    """
    return _like(ones, x, dtype, options)


def randn_like(x: Tensor, dtype: DType = None, **options: Any) -> Tensor:
    """As `randn`, with the shape and, by default, the dtype and the backend of x. `options` are those of `randn`.

    Raises as `randn`, and TypeError if x is not a Tensor.
    """
    return _like(randn, x, dtype, options)


def rand_like(x: Tensor, dtype: DType = None, **options: Any) -> Tensor:
    """As `rand`, with the shape and, by default, the dtype and the backend of x. `options` are those of `rand`.

    Raises as `rand`, and TypeError if x is not a Tensor.
    """
    return _like(rand, x, dtype, options)


def _full(op: str, shape: Any, value: Any, dtype: DType, requires_grad: bool | None, backend: Where) -> Tensor:
    number, xp = python_number(value), resolve_backend(backend).root
    if number is None:
        raise TypeError(f"{op}: the value must be a real number or a bool, got {value!r}")
    wanted = _dtype(op, xp, "bool" if dtype is None and isinstance(number, bool) else dtype)
    host_number(op, number, wanted)  # checks the range
    return _tensor(xp, xp.full(_shape(op, shape), number, wanted), requires_grad)


def _random(
    op: str, shape: tuple[Any, ...], seed: int | None, generator: Generator | None, dtype: DType,
    requires_grad: bool | None, backend: Where,
) -> Tensor:  # fmt: skip
    xp = resolve_backend(backend).root
    lengths, wanted = _shape(op, *shape), _dtype(op, xp, dtype)
    if not is_float(wanted):
        raise TypeError(f"{op}: the numbers are floats; for dtype {wanted} write .astype('{wanted}') after the call")
    if seed is not None and generator is not None:
        raise TypeError(f"{op}: give a seed or a generator, not both")
    if not isinstance(generator, Generator | None):
        raise TypeError(
            f"{op}: generator must be a russellgrad.random.Generator, got {generator!r}; a number is a seed="
        )
    source = generator or (default_generator() if seed is None else Generator(seed))
    return _tensor(xp, (source.normal if op == "randn" else source.uniform)(lengths, wanted, xp), requires_grad)


def _tensor(xp: Backend, array: Array, requires_grad: bool | None) -> Tensor:
    """A Tensor of an array that nothing else uses."""
    tensor = Tensor._wrap(xp.asarray(array), xp)
    tensor._start_tracking(requires_grad)
    return tensor


def _like(create: Callable[..., Tensor], x: Any, dtype: DType, options: dict[str, Any], *args: Any) -> Tensor:
    """create(x.shape, *args), like x. Raises TypeError if x is not a Tensor."""
    name = create.__name__
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}_like: needs a Tensor, got a {type(x).__name__}; {name} takes a shape")
    return create(
        x.shape, *args, **{"dtype": x.dtype if dtype is None else dtype, "backend": x.backend.root, **options}
    )


def _shape(op: str, *shape: Any) -> Shape:
    """The shape as a tuple of ints. Raises TypeError for anything but ints, ValueError for a negative length."""
    lengths = shape_from_args(op, shape)
    if any(n < 0 for n in lengths):
        raise ValueError(f"{op}: lengths must not be negative, got {lengths}")
    return lengths


def _dtype(op: str, xp: Backend, dtype: DType) -> Any:
    """The dtype, by default the default one. Raises TypeError if it is no dtype, or not one of the backend."""
    if isinstance(dtype, int):  # zeros(2, 3)
        raise TypeError(f"{op}: {dtype!r} is not a dtype; give the shape as one argument, as in {op}((2, 3))")
    wanted, host = get_default_dtype(xp) if dtype is None else dtype, load_backend("numpy")
    try:
        found = host.dtype(host.full((), 0, wanted))
    except (TypeError, ValueError):
        found = None
    if found is None or found.name not in xp.float_dtypes() and found.kind not in "biu":
        floats = ", ".join(xp.float_dtypes())
        raise TypeError(f"{op}: backend {xp.name!r} has no dtype {wanted!r}; it has bool, integers and {floats}")
    return found.newbyteorder("=")


def _finite(op: str, name: str, value: Any) -> Number:
    """The Python number. Raises TypeError for anything else, ValueError for nan and infinity."""
    number = python_number(value)
    if number is None or not math.isfinite(number):
        error = TypeError if number is None else ValueError
        raise error(f"{op}: {name} must be a finite real number, got {value!r}")
    return number
