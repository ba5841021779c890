"""A PyTorch device that is not here: tensors that say they are on the device "meta", with their elements on the CPU.

It refuses what PyTorch refuses on such a device, or what makes a program wait for it:

- float64 and unsigned integers of more than 8 bits, which MPS does not have;
- an operation of a tensor on the device and one on the CPU, also if that one has no axes;
- a copy to the host: `.item()`, `.tolist()`, `bool(x)`, `.cpu()`, an index that is a mask. `to_host` alone may do so.

All else runs on the CPU. `refused` lists what it refused.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

KIND = "meta"
DEVICE = torch.device(KIND, 0)
MISSING = (torch.float64, torch.complex128, torch.uint16, torch.uint32, torch.uint64)
_aten = torch.ops.aten
INDEXING = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default)
WAITING = (_aten._local_scalar_dense.default, _aten.nonzero.default, _aten.equal.default, _aten.is_nonzero.default)


class DeviceTensor(torch.Tensor):
    """A tensor on the device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "DeviceTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        made.held = held
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.held!r})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError(f"{func}: a tensor of the device outlived it")


class FakeDevice(TorchDispatchMode):
    """While it is active, PyTorch has the device."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: list[str] = []
        self.may_copy_to_host = False

    @contextmanager
    def copies_to_host(self) -> Iterator[None]:
        before, self.may_copy_to_host = self.may_copy_to_host, True
        try:
            yield
        finally:
            self.may_copy_to_host = before

    def explicit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, which may copy to the host."""

        def allowed(*args: Any, **kwargs: Any) -> Any:
            with self.copies_to_host():
                return function(*args, **kwargs)

        return allowed

    def _refuse(self, error: type[Exception], function: Any, message: str) -> None:
        self.refused.append(f"{function}: {message}")
        raise error(f"{function}: {message}")

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        on_device = [x for x in tensors if isinstance(x, DeviceTensor)]
        target = kwargs.get("device")
        to_device = torch.device(target).type == KIND if target is not None else bool(on_device)
        copies = function in (_aten._to_copy.default, _aten.copy_.default)
        if on_device and len(on_device) < len(tensors) and not copies:
            self._refuse(
                RuntimeError, function, "Expected all tensors to be on the same device, but found cpu and the device"
            )
        to_host = on_device and (not to_device or copies and not isinstance(args[0], DeviceTensor))
        if (to_host or on_device and function in WAITING) and not self.may_copy_to_host:
            self._refuse(TypeError, function, "a copy to the host, which waits for the device")
        if function in INDEXING and any(x.dtype in (torch.bool, torch.uint8) for x in args[1] if x is not None):
            self._refuse(TypeError, function, "a mask as an index, whose result has a shape that the host waits for")
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        plain_args, plain = tree_map(lambda x: x.held if isinstance(x, DeviceTensor) else x, (args, kwargs))
        result = function(*plain_args, **plain)
        if not to_device:
            return result
        if torch.Tag.inplace_view in function.tags:  # the shape of the argument changes
            with no_dispatch():
                function(*args, **kwargs)
        if function._schema.is_mutable:
            return self._arguments(function, args, kwargs, result)
        return tree_map(lambda x: self._placed(function, x), result)

    def _placed(self, function: Any, x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        if x.dtype in MISSING:
            self._refuse(TypeError, function, f"MPS does not support {x.dtype}; use float32 or int64")
        return DeviceTensor(x)

    def _arguments(self, function: Any, args: Any, kwargs: Any, result: Any) -> Any:
        """The arguments that an in-place function returns."""
        held = {id(x.held): x for x in tree_flatten((args, kwargs))[0] if isinstance(x, DeviceTensor)}
        return tree_map(lambda x: held.get(id(x), x), result)
