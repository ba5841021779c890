"""RussellGrad: one autograd Tensor and one transformer, on a CPU (NumPy, Numba) or a CUDA GPU (CuPy)."""

from .autograd import Joint, no_grad
from .backend import available_backends, get_backend, set_backend, use_backend
from .compiled import compile_step
from .custom import custom_op
from .dtype import get_default_dtype, set_default_dtype
from .functional import (
    attention,
    attention_qkvpacked,
    cross_entropy,
    embedding,
    layer_norm,
    linear,
    log_softmax,
    maximum,
    minimum,
    where,
)
from .gradcheck import GradientError, gradcheck
from .module import Module
from .ops.einsum import einsum, outer, tensordot
from .precision import get_matmul_precision, set_matmul_precision
from .random import manual_seed
from .softmax import softmax  # rebinds russellgrad.softmax from the submodule to the function
from .tensor import Tensor
from .transforms import functional_call, grad, hessian, hvp, jacobian, jvp, value_and_grad, vjp

__version__ = "0.1.0"

__all__ = [
    "GradientError",
    "Joint",
    "Module",
    "Tensor",
    "attention",
    "attention_qkvpacked",
    "available_backends",
    "compile_step",
    "cross_entropy",
    "custom_op",
    "einsum",
    "embedding",
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
    "layer_norm",
    "linear",
    "log_softmax",
    "manual_seed",
    "maximum",
    "minimum",
    "no_grad",
    "outer",
    "set_backend",
    "set_default_dtype",
    "set_matmul_precision",
    "softmax",
    "tensordot",
    "use_backend",
    "value_and_grad",
    "vjp",
    "where",
]
