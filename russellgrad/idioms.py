"""What NumPy and PyTorch call differently: errors for their names say what to write for a Tensor."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# Arguments of PyTorch's and NumPy's methods, and what to write instead.
_NUMPY_NAMES = {
    "dim": "axis=, as in NumPy", "keepdim": "keepdims=, as in NumPy", "unbiased": "correction=, as in NumPy",
    "ddof": "correction=, as in NumPy", "a_min": "min=, as in NumPy", "a_max": "max=, as in NumPy",
    "dtype": "x.astype(dtype) before it", "out": "out = x.method()", "constant_values": "value=, as in PyTorch",
    "start_dim": "start=", "end_dim": "end=", "dims": "axis=, as in NumPy", "p": "ord=, as in NumPy",
    "diagonal": "k=, as in NumPy", "dim1": "axis1=, as in NumPy", "dim2": "axis2=, as in NumPy",
    "largest": "(-x).topk(k) for the smallest",
    "stable": "nothing: every sort is stable",
    "descending": "x.sort(axis).flip(axis), or x.topk(k) for values and indices",
}  # fmt: skip


def numpy_names(method: Callable[P, R]) -> Callable[P, R]:
    """Decorator: for arguments such as PyTorch's `dim=`, raise an error that names the ones here, such as `axis=`."""

    @wraps(method)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name in _NUMPY_NAMES:
                raise TypeError(f"{method.__name__}: has no argument {name}=; write {_NUMPY_NAMES[name]}")
        return method(*args, **kwargs)

    return checked


def instead(name: str, tensor: type) -> str:
    """What to write instead of `numpy.name(x)`, or "". `tensor` is the class Tensor."""
    method = f"Tensor.{name}(tensors)" if name in ("concatenate", "stack") else f"x.{name}()"
    return INSTEAD.get(name, method if hasattr(tensor, name) else "")


# What to write for a function of NumPy, or a method of PyTorch, that a Tensor does not have.
INSTEAD = {
    "add": "x + y", "sub": "x - y", "mul": "x * y", "div": "x / y", "pow": "x ** y", "dot": "x @ y",
    "mm": "x @ y", "bmm": "x @ y", "matmul": "x @ y", "reciprocal": "1 / x", "rsqrt": "1 / x.sqrt()",
    "amax": "x.max()", "amin": "x.min()", "clamp": "x.clip(min, max)", "where": "where(condition, x, y)",
    "einsum": "einsum(subscripts, x, y)", "tensordot": "tensordot(x, y)", "outer": "outer(x, y)",
    "permute": "x.transpose(axes)", "t": "x.T", "mT": "x.swapaxes(-1, -2)", "view": "x.reshape(shape)",
    "movedim": "x.moveaxis(source, destination)", "gather": "x.take_along_axis(indices, axis)",
    "repeat_interleave": "x.repeat(repeats, axis)", "index_put": "x.at(index).set(y)",
    "index_add": "x.at(index).add(y)", "scatter_add": "x.at(index).add(y)", "contiguous": "x.copy()",
    "unsqueeze": "x.expand_dims(axis)",
    "expand": "x.broadcast_to(shape)", "chunk": "x.split(size)", "cat": "Tensor.concatenate(tensors)",
    "vstack": "Tensor.concatenate(tensors)", "hstack": "Tensor.concatenate(tensors, axis=1)",
    "dim": "x.ndim", "numel": "x.size", "shape": "x.shape", "ndim": "x.ndim", "size": "x.size", "device": "x.backend",
    "clone": "x.copy()", "zeros_like": "zeros_like(x)",
    "float": "x.astype('float32')", "double": "x.astype('float64')", "half": "x.astype('float16')",
    "long": "x.astype('int64')", "bool": "x.astype('bool')", "cpu": "x.to('numpy')", "cuda": "x.to('cupy')",
    "requires_grad_": "x.requires_grad = True", "detach_": "x = x.detach()", "add_": "x.data += y",
    "sub_": "x.data -= y", "mul_": "x.data *= y", "div_": "x.data /= y", "copy_": "x.data = x.backend.copy(y.data)",
    "zero_": "x.data = x.backend.zeros(x.shape, x.dtype)", "clamp_": "x = x.clip(min, max)",
    "asin": "x.arcsin()", "acos": "x.arccos()", "atan": "x.arctan()", "atan2": "x.arctan2(y)",
    "remainder": "x % y", "floor_divide": "x // y", "ones_like": "ones_like(x)", "full_like": "full_like(x, 0.5)",
    "fill_": "x.data = x.backend.full(x.shape, value, x.dtype)", "masked_fill_": "x = x.masked_fill(mask, value)",
}  # fmt: skip
