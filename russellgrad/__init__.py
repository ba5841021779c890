"""RussellGrad: one autograd Tensor and one transformer, on a CPU (NumPy, Numba) or a CUDA GPU (CuPy)."""

import builtins as _builtins
from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

from . import functional as _functional
from .autograd import Joint, no_grad
from .backend import available_backends, get_backend, set_backend, use_backend
from .compiled import compile_step
from .creation import (
    arange,
    eye,
    full,
    full_like,
    linspace,
    ones,
    ones_like,
    rand,
    rand_like,
    randn,
    randn_like,
    zeros,
    zeros_like,
)
from .custom import custom_op
from .dtype import get_default_dtype, set_default_dtype
from .functional import *  # noqa: F403 - the methods of Tensor as functions: rg.exp, rg.sum, ...
from .functional import (
    arctan2,
    attention,
    attention_qkvpacked,
    embedding,
    layer_norm,
    linear,
    log_softmax,
    maximum,
    minimum,
    rms_norm,
    swiglu,
    where,
)
from .gradcheck import GradientError, gradcheck
from .loss import accuracy, binary_cross_entropy_with_logits, cross_entropy, kl_div, l1_loss, mse_loss
from .module import Module
from .ops.convolution import avg_pool2d, conv1d, conv2d, max_pool2d
from .ops.einsum import einsum, outer, tensordot
from .parallel import parallel_backward
from .precision import get_matmul_precision, set_matmul_precision
from .random import manual_seed
from .serialization import load, save
from .softmax import softmax  # rebinds russellgrad.softmax from the submodule to the function
from .tensor import Tensor
from .transforms import functional_call, grad, hessian, hvp, jacobian, jvp, value_and_grad, vjp

if TYPE_CHECKING:
    from . import data as data
    from . import layers
    from .tracing import draw, trace

__version__ = "0.1.0"

__all__ = [
    "GradientError",
    "Joint",
    "Module",
    "Tensor",
    "accuracy",
    "arange",
    "arctan2",
    "attention",
    "attention_qkvpacked",
    "available_backends",
    "avg_pool2d",
    "binary_cross_entropy_with_logits",
    "compile_step",
    "conv1d",
    "conv2d",
    "cross_entropy",
    "custom_op",
    "draw",
    "einsum",
    "embedding",
    "eye",
    "full",
    "full_like",
    "functional_call",
    "get_backend",
    "get_default_dtype",
    "get_matmul_precision",
    "grad",
    "gradcheck",
    "hessian",
    "hvp",
    "jacobian",
    "jvp",
    "kl_div",
    "l1_loss",
    "layer_norm",
    "layers",
    "linear",
    "linspace",
    "load",
    "log_softmax",
    "manual_seed",
    "max_pool2d",
    "maximum",
    "minimum",
    "mse_loss",
    "no_grad",
    "ones",
    "ones_like",
    "outer",
    "parallel_backward",
    "rand",
    "rand_like",
    "randn",
    "randn_like",
    "rms_norm",
    "save",
    "set_backend",
    "set_default_dtype",
    "set_matmul_precision",
    "softmax",
    "swiglu",
    "tensordot",
    "trace",
    "use_backend",
    "value_and_grad",
    "vjp",
    "where",
    "zeros",
    "zeros_like",
]
# Names of built-in functions (sum, max, abs, ...) are left out, so that `from russellgrad import *` does not hide them.
__all__ += [name for name in vars(_functional)["__all__"] if name not in __all__ and not hasattr(_builtins, name)]


def __getattr__(name: str) -> Any:
    """Import a part at its first use: `import russellgrad as rg; rg.layers.Linear(3, 4)`."""
    if name in ("data", "layers"):
        return _import_module(f"{__name__}.{name}")
    if name in ("draw", "trace"):
        return getattr(_import_module(f"{__name__}.tracing"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
