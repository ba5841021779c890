"""Layers with PyTorch's names, arguments, parameters and results.

The `state_dict` of a layer has PyTorch's names and shapes: `layer.load_state_dict(torch_layer.state_dict())` works.
There are no arguments `device` and `dtype`: parameters have the default dtype and are on the current backend.
`Module.to` and `astype` convert a layer.
"""

from .. import init
from .activations import ELU, GELU, LeakyReLU, LogSoftmax, ReLU, Sigmoid, SiLU, Softmax, Softplus, Tanh
from .attention import MultiHeadAttention
from .containers import Flatten, Identity, Sequential
from .conv import Conv1d, Conv2d
from .dropout import Dropout
from .embedding import Embedding
from .linear import Linear
from .norm import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from .pooling import AvgPool2d, MaxPool2d
from .recurrent import GRU, LSTM

__all__ = [
    "ELU",
    "GELU",
    "AvgPool2d",
    "GRU",
    "LSTM",
    "BatchNorm",
    "Conv1d",
    "Conv2d",
    "Dropout",
    "Embedding",
    "Flatten",
    "GroupNorm",
    "Identity",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "MaxPool2d",
    "MultiHeadAttention",
    "RMSNorm",
    "ReLU",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
    "init",
]
