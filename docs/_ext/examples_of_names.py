"""The examples of the API reference: statements for each public name. The value of the last one is shown."""

import ast
import inspect
import io
from contextlib import redirect_stdout
from typing import Any

import russellgrad

EXAMPLES = {
    # --- Tensor
    "Tensor": "x = Tensor([1.0, 2.0, 3.0]); (x * x).sum().backward(); x.grad",
    "Tensor.data": "x = Tensor([1.0, 2.0]); x.data = x.data * 2; x",
    "Tensor.requires_grad": "x = Tensor([1.0]); x.requires_grad = False; (x * x).requires_grad",
    "Tensor.grad": "x = Tensor([1.0, 2.0]); (x * x).sum().backward(); x.grad",
    "Tensor.trace": "Tensor([[1.0, 2.0], [3.0, 4.0]]).trace()",
    "Tensor.at": "Tensor([1.0, 2.0, 3.0]).at(0).set(5.0)",
    "ops.indexing.At": "place = Tensor([1.0, 2.0, 3.0]).at(0); place.set(5.0)",
    "ops.indexing.At.set": "Tensor([1.0, 2.0, 3.0]).at(0).set(5.0)",
    "ops.indexing.At.add": "Tensor([1.0, 2.0, 3.0]).at([0, 0]).add(5.0)",
    "manual_tensor.Tensor": (
        "from russellgrad.manual_tensor import Tensor as Manual; x = Manual([2.0]); (x * x).sum().backward(); x.grad"
    ),
    "Tensor.any": "Tensor([True, False]).any()",
    "Tensor.all": "Tensor([True, False]).all()",
    "Tensor.abs": "Tensor([-1.0, 2.0]).abs()",
    "Tensor.round": "Tensor([0.5, 1.5, 2.25]).round()",
    "Tensor.sum": "Tensor([[1.0, 2.0], [3.0, 4.0]]).sum(axis=0)",
    "Tensor.max": "Tensor([[1.0, 2.0], [3.0, 4.0]]).max(axis=1)",
    "Tensor.min": "Tensor([[1.0, 2.0], [3.0, 4.0]]).min(axis=1)",
    "Tensor.backward": "x = Tensor([1.0, 2.0]); (x * x).backward(Tensor([1.0, 1.0])); x.grad",
    "Tensor.zero_grad": "x = Tensor(3.0); (x * x).backward(); x.zero_grad(); x.grad is None",
    "Tensor.retain_grad": "x = Tensor(3.0); y = x * x; y.retain_grad(); (2 * y).backward(); y.grad",
    "Tensor.register_hook": "x = Tensor(3.0); remove = x.register_hook(lambda g: 10 * g); (x * x).backward(); x.grad",
    "Tensor.detach": "(Tensor(3.0) * 2).detach().requires_grad",
    "Tensor.numpy": "Tensor([1.0, 2.0]).numpy()",
    "Tensor.item": "Tensor([1.5]).item()",
    "Tensor.to": 'Tensor([1.0]).to("strict").backend.name',
    "Tensor.from_dlpack": "import numpy as np; Tensor.from_dlpack(np.ones(2))",
    "Tensor.changed_in_place": "x = Tensor([1.0, 2.0]); x.data[0] = 5.0; x.changed_in_place(); x",
    "Tensor.tolist": "Tensor([[1.0, 2.0]]).tolist()",
    "Tensor.shape": "Tensor([[1.0, 2.0]]).shape",
    "Tensor.ndim": "Tensor([[1.0, 2.0]]).ndim",
    "Tensor.size": "Tensor([[1.0, 2.0]]).size",
    "Tensor.dtype": "Tensor([[1.0, 2.0]]).dtype",
    "Tensor.T": "Tensor([[1.0, 2.0]]).T",
    "Tensor.is_leaf": "x = Tensor(3.0); x.is_leaf, (x * x).is_leaf",
    # --- Creation
    "zeros": "rg.zeros(3)",
    "ones": "rg.ones((2, 3))",
    "full": "rg.full(3, 7.0)",
    "arange": "rg.arange(4)",
    "linspace": "rg.linspace(0, 1, 5)",
    "eye": "rg.eye(2)",
    "randn": "rg.randn(3).shape",
    "rand": "rg.rand(3).shape",
    "zeros_like": "rg.zeros_like(Tensor([[1.0, 2.0]]))",
    "ones_like": "rg.ones_like(Tensor([[1.0, 2.0]]))",
    "full_like": "rg.full_like(Tensor([[1.0, 2.0]]), 7.0)",
    "randn_like": "rg.randn_like(Tensor([[1.0, 2.0]])).shape",
    "rand_like": "rg.rand_like(Tensor([[1.0, 2.0]])).shape",
    # --- Elementwise
    "exp": "rg.exp(Tensor([0.0, 1.0]))",
    "expm1": "rg.expm1(Tensor([0.0, 1e-10]))",
    "log": "rg.log(Tensor([1.0, 2.0]))",
    "log1p": "rg.log1p(Tensor([0.0, 1e-10]))",
    "exp2": "rg.exp2(Tensor([0.0, 3.0]))",
    "log2": "rg.log2(Tensor([1.0, 8.0]))",
    "log10": "rg.log10(Tensor([1.0, 100.0]))",
    "square": "rg.square(Tensor([2.0, 3.0]))",
    "sqrt": "rg.sqrt(Tensor([4.0, 9.0]))",
    "tanh": "rg.tanh(Tensor([0.0, 1.0]))",
    "sinh": "rg.sinh(Tensor([0.0, 1.0]))",
    "cosh": "rg.cosh(Tensor([0.0, 1.0]))",
    "sin": "rg.sin(Tensor([0.0, 1.0]))",
    "cos": "rg.cos(Tensor([0.0, 1.0]))",
    "tan": "rg.tan(Tensor([0.0, 1.0]))",
    "arcsin": "rg.arcsin(Tensor([0.0, 1.0]))",
    "arccos": "rg.arccos(Tensor([0.0, 1.0]))",
    "arctan": "rg.arctan(Tensor([0.0, 1.0]))",
    "arctan2": "rg.arctan2(Tensor([1.0]), Tensor([-1.0]))",
    "erf": "rg.erf(Tensor([0.0, 1.0]))",
    "sign": "rg.sign(Tensor([-2.0, 0.0, 2.0]))",
    "isnan": 'rg.isnan(Tensor([float("nan"), 1.0]))',
    "isinf": 'rg.isinf(Tensor([float("inf"), 1.0]))',
    "isfinite": 'rg.isfinite(Tensor([float("inf"), 1.0]))',
    "floor": "rg.floor(Tensor([-1.5, 1.5]))",
    "ceil": "rg.ceil(Tensor([-1.5, 1.5]))",
    "nan_to_num": 'rg.nan_to_num(Tensor([float("nan"), 1.0]))',
    "astype": 'rg.astype(Tensor([1.0, 2.0]), "float32").dtype',
    "clip": "rg.clip(Tensor([-2.0, 0.5, 2.0]), -1, 1)",
    "where": "x = Tensor([-1.0, 2.0]); rg.where(x > 0, x, 0.0)",
    "maximum": "rg.maximum(Tensor([1.0, 4.0]), Tensor([3.0, 2.0]))",
    "minimum": "rg.minimum(Tensor([1.0, 4.0]), Tensor([3.0, 2.0]))",
    "masked_fill": "rg.masked_fill(Tensor([1.0, 2.0]), Tensor([True, False]), -1.0)",
    "masked_multiply": "rg.masked_multiply(Tensor([1.0, 2.0]), Tensor([True, False]), 10.0)",
    # --- Activations
    "sigmoid": "rg.sigmoid(Tensor([-1.0, 0.0, 1.0]))",
    "relu": "rg.relu(Tensor([-1.0, 0.0, 1.0]))",
    "silu": "rg.silu(Tensor([-1.0, 0.0, 1.0]))",
    "leaky_relu": "rg.leaky_relu(Tensor([-1.0, 0.0, 1.0]))",
    "gelu": "rg.gelu(Tensor([-1.0, 0.0, 1.0]))",
    "softplus": "rg.softplus(Tensor([-1.0, 0.0, 1.0]))",
    "elu": "rg.elu(Tensor([-1.0, 0.0, 1.0]))",
    "softmax": "rg.softmax(Tensor([0.0, 1.0]))",
    "log_softmax": "rg.log_softmax(Tensor([0.0, 1.0]))",
    # --- Reductions
    "mean": "rg.mean(Tensor([[1.0, 2.0], [3.0, 4.0]]), axis=0)",
    "var": "rg.var(Tensor([1.0, 2.0, 3.0]))",
    "std": "rg.std(Tensor([1.0, 2.0, 3.0]))",
    "norm": "rg.norm(Tensor([3.0, 4.0]))",
    "logsumexp": "rg.logsumexp(Tensor([1000.0, 1000.0]))",
    "prod": "rg.prod(Tensor([2.0, 3.0, 4.0]))",
    "cumsum": "rg.cumsum(Tensor([1.0, 2.0, 3.0]))",
    "cumprod": "rg.cumprod(Tensor([1.0, 2.0, 3.0]))",
    "argmax": "rg.argmax(Tensor([1.0, 3.0, 2.0]))",
    "argmin": "rg.argmin(Tensor([1.0, 3.0, 2.0]))",
    # --- Shapes
    "transpose": "rg.transpose(Tensor([[1.0, 2.0, 3.0]])).shape",
    "swapaxes": "rg.swapaxes(rg.zeros((2, 3, 4)), 0, 2).shape",
    "moveaxis": "rg.moveaxis(rg.zeros((2, 3, 4)), 0, 2).shape",
    "reshape": "rg.reshape(rg.arange(6), (2, 3))",
    "flatten": "rg.flatten(rg.zeros((2, 3))).shape",
    "ravel": "rg.ravel(rg.zeros((2, 3))).shape",
    "copy": "rg.copy(Tensor([1.0, 2.0]))",
    "broadcast_to": "rg.broadcast_to(Tensor([1.0, 2.0]), (2, 2))",
    "squeeze": "rg.squeeze(rg.zeros((1, 3, 1))).shape",
    "expand_dims": "rg.expand_dims(rg.zeros(3), 0).shape",
    "split": "rg.split(Tensor([1.0, 2.0, 3.0, 4.0]), 2)",
    "concatenate": "rg.concatenate([Tensor([1.0]), Tensor([2.0, 3.0])])",
    "stack": "rg.stack([Tensor([1.0, 2.0]), Tensor([3.0, 4.0])])",
    "flip": "rg.flip(Tensor([1.0, 2.0, 3.0]))",
    "roll": "rg.roll(Tensor([1.0, 2.0, 3.0]), 1)",
    "repeat": "rg.repeat(Tensor([1.0, 2.0]), 2)",
    "tile": "rg.tile(Tensor([1.0, 2.0]), 2)",
    "pad": "rg.pad(Tensor([1.0, 2.0]), 1)",
    "tril": "rg.tril(rg.ones((2, 2)))",
    "triu": "rg.triu(rg.ones((2, 2)))",
    "diagonal": "rg.diagonal(Tensor([[1.0, 2.0], [3.0, 4.0]]))",
    "draw": """x = Tensor([2.0], label="x")
print(rg.draw((x ** 2).sum()).dot())""",
    "trace": """x = Tensor([2.0], label="x")
with rg.trace() as t:
    y = x ** 2 + 3 * x
print(t)""",
    "argsort": "rg.argsort(Tensor([3.0, 1.0, 2.0]))",
    "sort": "rg.sort(Tensor([3.0, 1.0, 2.0]))",
    "topk": "rg.topk(Tensor([3.0, 1.0, 2.0]), 2)",
    "take_along_axis": "rg.take_along_axis(Tensor([[3.0, 1.0], [5.0, 7.0]]), [[1], [0]], axis=1)",
    # --- Products and fused operations
    "einsum": 'rg.einsum("ij,j->i", Tensor([[1.0, 2.0], [3.0, 4.0]]), Tensor([1.0, 1.0]))',
    "tensordot": "rg.tensordot(rg.ones((2, 3)), rg.ones((3, 4)), axes=1).shape",
    "outer": "rg.outer(Tensor([1.0, 2.0]), Tensor([3.0, 4.0]))",
    "linear": "rg.linear(rg.ones((5, 3)), rg.ones((3, 2)), rg.zeros(2)).shape",
    "embedding": "rg.embedding(Tensor([[0.0, 1.0], [2.0, 3.0]]), [1, 1, 0])",
    "layer_norm": "rg.layer_norm(Tensor([1.0, 2.0, 3.0]))",
    "rms_norm": "rg.rms_norm(Tensor([1.0, 2.0, 3.0]))",
    "swiglu": "rg.swiglu(Tensor([-1.0, 0.0, 1.0]), Tensor([2.0, 2.0, 2.0]))",
    "attention": "q = k = v = rg.randn((2, 5, 8)); rg.attention(q, k, v, causal=True).shape",
    "attention_qkvpacked": "rg.attention_qkvpacked(rg.randn((2, 5, 24)), n_heads=2).shape",
    "conv1d": "rg.conv1d(rg.ones((1, 3, 8)), rg.ones((4, 3, 5))).shape",
    "conv2d": "rg.conv2d(rg.ones((1, 3, 8, 8)), rg.ones((4, 3, 3, 3)), padding=1).shape",
    "max_pool2d": "rg.max_pool2d(rg.ones((1, 3, 8, 8)), 2).shape",
    "avg_pool2d": "rg.avg_pool2d(rg.ones((1, 3, 8, 8)), 2).shape",
    # --- Losses
    "mse_loss": "rg.mse_loss(Tensor([1.0, 2.0]), Tensor([1.0, 4.0]))",
    "l1_loss": "rg.l1_loss(Tensor([1.0, 2.0]), Tensor([1.0, 4.0]))",
    "binary_cross_entropy_with_logits": "rg.binary_cross_entropy_with_logits(Tensor([0.0, 2.0]), Tensor([0.0, 1.0]))",
    "cross_entropy": "rg.cross_entropy(Tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), [0, 2])",
    "kl_div": "rg.kl_div(Tensor([0.5, 0.5]).log(), Tensor([0.25, 0.75]), reduction='sum')",
    "accuracy": "rg.accuracy(Tensor([[2.0, 0.0], [0.0, 3.0]]), [0, 0])",
    "loss.cross_entropy_loss": (
        "from russellgrad.loss import cross_entropy_loss; cross_entropy_loss(rg.zeros((1, 2, 4)), [[0, 3]], 3)"
    ),
    # --- Derivatives
    "no_grad": "with rg.no_grad(): y = Tensor(3.0) * 2",
    "grad": "rg.grad(lambda x: x**3)(Tensor(2.0))",
    "value_and_grad": "rg.value_and_grad(lambda x: x**3)(Tensor(2.0))",
    "vjp": "y, pull = rg.vjp(lambda x: x**3, Tensor(2.0)); pull(Tensor(1.0))",
    "jvp": "rg.jvp(lambda x: x**3, (Tensor(2.0),), (Tensor(1.0),))",
    "hvp": "rg.hvp(lambda x: (x**3).sum(), Tensor([1.0, 2.0]), Tensor([1.0, 0.0]))",
    "jacobian": "rg.jacobian(lambda x: x * x)(Tensor([1.0, 2.0]))",
    "hessian": "rg.hessian(lambda x: (x**3).sum())(Tensor([1.0, 2.0]))",
    "functional_call": (
        'layer = rg.layers.Linear(2, 1); p = {"weight": rg.ones((1, 2)), "bias": rg.zeros(1)}; '
        "rg.functional_call(layer, p, Tensor([3.0, 4.0]))"
    ),
    "gradcheck": "rg.gradcheck(lambda a, b: (a @ b).tanh(), [Tensor([[1.0, 2.0]]), Tensor([[3.0], [4.0]])])",
    "GradientError": "issubclass(rg.GradientError, AssertionError)",
    "custom_op": (
        "double = rg.custom_op(lambda xp, a: (xp.multiply(a, 2), lambda g: xp.multiply(g, 2))); double(Tensor(3.0))"
    ),
    "Joint": (
        "rule = lambda xp, a: (xp.multiply(a, 2), rg.Joint(lambda g, needs: (xp.multiply(g, 2),))); "
        "rg.custom_op(rule)(Tensor(3.0))"
    ),
    "compile_step": ("step = rg.compile_step(lambda x: (x * x).sum()); step(Tensor([1.0, 2.0], requires_grad=False))"),
    "parallel_backward": (
        "w = Tensor([1.0, 2.0], requires_grad=True); "
        "rg.parallel_backward(lambda rows: (rows * w).sum(), [rg.ones((3, 2)), rg.ones((3, 2))]); w.grad"
    ),
    # --- Modules, files, data
    "Module": """class Scale(rg.Module):
    def __init__(self):
        self.factor = Tensor(1.0)

    def forward(self, x):
        return x * self.factor
Scale()(Tensor([1.0, 2.0]))""",
    "save": """import tempfile
with tempfile.TemporaryDirectory() as folder:
    print(rg.save(rg.layers.Linear(2, 3), f"{folder}/layer.safetensors").name)""",
    "load": """import tempfile
with tempfile.TemporaryDirectory() as folder:
    path = rg.save(rg.layers.Linear(2, 3), f"{folder}/layer.safetensors")
    layer = rg.load(path, rg.layers.Linear(2, 3))""",
    "data.batches": "x = rg.arange(6); [batch.tolist() for (batch,) in rg.data.batches([x], 2, seed=0)]",
    "data.Batches": "batches = rg.data.batches([rg.arange(6)], 2, seed=0); len(batches), batches.epoch",
    # --- Backends, dtypes, random numbers
    "available_backends": '"numpy" in rg.available_backends()',
    "get_backend": "rg.get_backend().name",
    "set_backend": 'rg.set_backend("numpy")',
    "use_backend": 'with rg.use_backend("strict"): x = Tensor([1.0])',
    "get_default_dtype": "rg.get_default_dtype()",
    "set_default_dtype": 'rg.set_default_dtype("float64")',
    "get_matmul_precision": "rg.get_matmul_precision()",
    "set_matmul_precision": 'rg.set_matmul_precision("highest")',
    "manual_seed": "rg.manual_seed(0)",
    "random.Generator": "generator = rg.random.Generator(seed=0); rg.rand(3, generator=generator).shape",
    "random.default_generator": "from russellgrad.random import default_generator; default_generator().seed",
    "conformance.check": 'from russellgrad import conformance; conformance.check("numpy").passed',
}

INPUTS = "from russellgrad.layers import {0}; "
LAYERS = {
    "Linear": "Linear(3, 4)(rg.ones((2, 3))).shape",
    "Embedding": "Embedding(10, 4)([[1, 2, 3]]).shape",
    "Sequential": "Sequential(rg.layers.Linear(3, 4), rg.layers.ReLU())(rg.ones((2, 3))).shape",
    "Dropout": "Dropout(0.5).eval()(Tensor([1.0, 2.0]))",
    "LayerNorm": "LayerNorm(3)(Tensor([[1.0, 2.0, 3.0]]))",
    "RMSNorm": "RMSNorm(2)(Tensor([[3.0, 4.0]]))",
    "BatchNorm": "BatchNorm(3)(rg.randn((8, 3))).shape",
    "GroupNorm": "GroupNorm(2, 4)(rg.randn((1, 4, 5, 5))).shape",
    "Conv1d": "Conv1d(3, 4, 5)(rg.ones((1, 3, 8))).shape",
    "Conv2d": "Conv2d(3, 4, 3, padding=1)(rg.ones((1, 3, 8, 8))).shape",
    "MaxPool2d": "MaxPool2d(2)(rg.ones((1, 3, 8, 8))).shape",
    "AvgPool2d": "AvgPool2d(2)(rg.ones((1, 3, 8, 8))).shape",
    "Flatten": "Flatten()(rg.ones((2, 3, 4))).shape",
    "Identity": "Identity()(Tensor([1.0, 2.0]))",
    "GRU": "GRU(3, 4)(rg.ones((5, 2, 3)))[0].shape",
    "LSTM": "LSTM(3, 4)(rg.ones((5, 2, 3)))[0].shape",
    "MultiHeadAttention": "x = rg.zeros((2, 5, 8)); MultiHeadAttention(8, 2, batch_first=True)(x, x, x)[0].shape",
    **{name: f"{name}()(Tensor([-1.0, 0.0, 1.0]))" for name in (
        "ELU", "GELU", "LeakyReLU", "ReLU", "Sigmoid", "SiLU", "Softplus", "Tanh",
    )},
    "Softmax": "Softmax(-1)(Tensor([0.0, 1.0]))",
    "LogSoftmax": "LogSoftmax(-1)(Tensor([0.0, 1.0]))",
}  # fmt: skip
EXAMPLES |= {f"layers.{name}": INPUTS.format(name) + code for name, code in LAYERS.items()}

EXAMPLES |= {
    "init.constant": "rg.layers.init.constant((2,), 3.0)",
    "init.zeros": "rg.layers.init.zeros((2,))",
    "init.ones": "rg.layers.init.ones((2,))",
    **{f"init.{name}": f"rg.layers.init.{name}((2, 3)).shape" for name in (
        "uniform", "normal", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal",
    )},
    "init.calculate_gain": 'rg.layers.init.calculate_gain("relu")',
    "init.fan_in_and_fan_out": "rg.layers.init.fan_in_and_fan_out((4, 3))",
}  # fmt: skip

LAYER = "layer = rg.layers.Linear(2, 3); "
EXAMPLES |= {
    "Module.named_parameters": LAYER + "[name for name, _ in layer.named_parameters()]",
    "Module.parameters": LAYER + "[parameter.shape for parameter in layer.parameters()]",
    "Module.named_buffers": "[name for name, _ in rg.layers.BatchNorm(2).named_buffers()]",
    "Module.buffers": "[buffer.shape for buffer in rg.layers.BatchNorm(2).buffers()]",
    "Module.modules": "[type(module).__name__ for module in rg.layers.Sequential(rg.layers.ReLU()).modules()]",
    "Module.state_dict": LAYER + "{name: array.shape for name, array in layer.state_dict().items()}",
    "Module.load_state_dict": LAYER
    + "other = rg.layers.Linear(2, 3); other.load_state_dict(layer.state_dict()); (other.weight == layer.weight).all()",
    "Module.train": "rg.layers.Dropout(0.5).eval().train().training",
    "Module.eval": "rg.layers.Dropout(0.5).eval()(Tensor([1.0, 2.0]))",
    "Module.freeze": LAYER + "layer.freeze().parameters()",
    "Module.unfreeze": LAYER + "len(layer.freeze().unfreeze().parameters())",
    "Module.zero_grad": LAYER + "layer(rg.ones((1, 2))).sum().backward(); layer.zero_grad(); layer.bias.grad is None",
    "Module.to": LAYER + 'layer.to("strict").weight.backend.name',
    "Module.astype": LAYER + 'layer.astype("float32").weight.dtype',
    "layers.Sequential.copy": "rg.layers.Sequential(rg.layers.ReLU()).copy()",
    "layers.Dropout.start_batch": (
        "dropout = rg.layers.Dropout(0.5); dropout.start_batch(); dropout(rg.ones(4, requires_grad=False))"
    ),
    "layers.Dropout.continue_batch": (
        "dropout = rg.layers.Dropout(0.5); dropout.start_batch(); whole = dropout(rg.ones(4)); "
        "dropout.continue_batch(2); (dropout(rg.ones(2)) == whole[2:]).all()"
    ),
}

GENERATOR = "generator = rg.random.Generator(seed=0); xp = rg.get_backend(); "
EXAMPLES |= {
    "random.Generator.start_batch": GENERATOR + 'generator.start_batch(); generator.uniform((2,), "float64", xp).shape',
    "random.Generator.continue_batch": GENERATOR
    + 'generator.start_batch(); whole = generator.uniform((4,), "float64", xp); generator.continue_batch(2); '
    'generator.uniform((2,), "float64", xp).tolist() == whole[2:].tolist()',
    "random.Generator.counter": GENERATOR + "generator.uniform((2,), 'float64', xp); generator.counter",
    "random.Generator.normal": GENERATOR + 'generator.normal((2, 3), "float64", xp).shape',
    "random.Generator.uniform": GENERATOR + 'generator.uniform((2, 3), "float64", xp).shape',
    "random.Generator.dropout_mask": GENERATOR + 'generator.dropout_mask((4,), 0.5, "float64", xp)',
}

BATCHES = "batches = rg.data.batches([rg.arange(6)], 2, seed=0); "
EXAMPLES |= {
    "data.Batches.epoch": BATCHES + "first = list(batches); batches.epoch",
    "data.Batches.state_dict": BATCHES + "first = next(iter(batches)); batches.state_dict()",
    "data.Batches.load_state_dict": BATCHES
    + "first = next(iter(batches)); state = batches.state_dict(); again = rg.data.batches([rg.arange(6)], 2); "
    "again.load_state_dict(state); len(list(again))",
}

STEP = "from russellgrad.optimizer import {0}; w = Tensor([1.0]); optimizer = {0}([w], lr=0.1); "
STEP += "(w * w).sum().backward(); optimizer.step(); w.data"
EXAMPLES |= {f"optimizer.{name}": STEP.format(name) for name in ("SGDOptimizer", "AdamOptimizer", "AdamWOptimizer")}
SCHEDULE = "from russellgrad.optimizer import {0}; lr = {0}({1}); [round(lr(step), 4) for step in (0, 1, 5, 10)]"
EXAMPLES |= {
    f"optimizer.{name}": SCHEDULE.format(name, arguments)
    for name, arguments in {
        "constant": "0.1", "exponential": "0.1, 0.9", "cosine": "0.1, 10", "cosine_with_warmup": "0.1, 2, 10",
    }.items()
}  # fmt: skip
SIGN = """from russellgrad.optimizer import Optimizer
class SignOptimizer(Optimizer):
    def update(self, value, grad, state, options):
        return value - options["lr"] * grad.sign()
w = Tensor([1.0])
(w * w).sum().backward()
SignOptimizer([w], lr=0.1).step()
w.data"""
SGD = "from russellgrad.optimizer import SGDOptimizer; w = Tensor([1.0]); "
SGD += "optimizer = SGDOptimizer([w], lr=0.1, momentum=0.9); "
EXAMPLES |= {
    "optimizer.Optimizer": SIGN,
    "optimizer.Optimizer.update": SIGN,
    "optimizer.Optimizer.lr": SGD + "optimizer.lr = 0.01; optimizer.lr",
    "optimizer.Optimizer.zero_grad": SGD + "(w * w).sum().backward(); optimizer.zero_grad(); w.grad is None",
    "optimizer.Optimizer.gather_grads": SGD.replace("momentum=0.9", "flat=True")
    + "(w * w).sum().backward(); optimizer.gather_grads()",
    "optimizer.Optimizer.step": SGD + "(w * w).sum().backward(); norm = optimizer.step(max_norm=1.0); norm, w.data",
    "optimizer.Optimizer.state_dict": SGD + "(w * w).sum().backward(); optimizer.step(); optimizer.state_dict()",
    "optimizer.Optimizer.load_state_dict": SGD
    + "(w * w).sum().backward(); optimizer.step(); state = optimizer.state_dict(); "
    "again = SGDOptimizer([w], lr=0.1, momentum=0.9); again.load_state_dict(state); again.steps_taken",
    "optimizer.clip_grad_norm": (
        "from russellgrad.optimizer import clip_grad_norm; w = Tensor([3.0, 4.0]); (w * w).sum().backward(); "
        "norm = clip_grad_norm([w], 1.0); w.grad"
    ),
}

TOKENIZER = (
    "from russellgrad.tokenizer import Tokenizer; "
    'tokenizer = Tokenizer.from_text("to be or not", max_seq_len=8, embed_dim=4); '
)
TRANSFORMER = "from russellgrad.russelltransformer import {0}; "
MODEL = TRANSFORMER.format("Transformer") + TOKENIZER + "model = Transformer(tokenizer, n_layers=1, n_attn_heads=2); "
PRETRAINED = MODEL.replace("n_attn_heads=2", "n_attn_heads=2, output_projection=True, final_norm=True")
PRETRAINED = (
    f"import tempfile; {PRETRAINED}".replace("; ", "\n")
    + """
with tempfile.TemporaryDirectory() as folder:
    path = model.save_pretrained(folder)
    """
)
SAVED = "import tempfile; from russellgrad.checkpoint import load_model, save_model"
BPE = "from russellgrad.bpe import BPE; "
CHARACTERS = "from russellgrad.encoding import CharacterEncoding; "
HUB = 'from russellgrad.encoding import HubEncoding; encoding = HubEncoding.train("low low lower", 260); '
EXAMPLES |= {
    "bpe.BPE": BPE + 'BPE.train("low low lower", 260).merges',
    "bpe.BPE.train": BPE + 'BPE.train("to be or not to be", 300).vocab_size',
    "bpe.BPE.encode": BPE + 'BPE.train("low low lower", 260).encode("low lower")',
    "bpe.BPE.decode": BPE + 'encoding = BPE.train("low low lower", 260); encoding.decode([257, 258, 259])',
    "bpe.BPE.token_bytes": BPE + 'BPE.train("low low lower", 260).token_bytes(258)',
    "bpe.BPE.config": BPE + 'BPE.train("low low lower", 260).config()["merges"]',
    "bpe.BPE.save": "import os, tempfile; "
    + BPE
    + """
with tempfile.TemporaryDirectory() as folder:
    BPE.train("low low lower", 260).save(folder)
    print(sorted(os.listdir(folder)))""",
    "bpe.BPE.load": "import tempfile; "
    + BPE
    + """
with tempfile.TemporaryDirectory() as folder:
    BPE.train("low low lower", 260).save(folder)
    print(BPE.load(folder).encode("low lower"))""",
    "encoding.CharacterEncoding": CHARACTERS + 'CharacterEncoding("abc").encode("cab")',
    "encoding.CharacterEncoding.encode": CHARACTERS + 'CharacterEncoding("abc").encode("cab")',
    "encoding.CharacterEncoding.decode": CHARACTERS + 'CharacterEncoding("abc").decode([2, 0, 1])',
    "encoding.CharacterEncoding.token_bytes": CHARACTERS + 'CharacterEncoding("ab\u00e9").token_bytes(2)',
    "encoding.CharacterEncoding.config": CHARACTERS + 'CharacterEncoding("abc").config()',
    "encoding.CharacterEncoding.vocab_size": CHARACTERS + 'CharacterEncoding("abc").vocab_size',
    "encoding.HubEncoding": HUB + "HubEncoding(encoding.tokenizer, vocab_size=512).vocab_size",
    "encoding.HubEncoding.train": HUB + "encoding.vocab_size",
    "encoding.HubEncoding.encode": HUB + 'encoding.encode("low lower")',
    "encoding.HubEncoding.decode": HUB + "encoding.decode([257, 258, 259])",
    "encoding.HubEncoding.token_bytes": HUB + "encoding.token_bytes(258)",
    "encoding.HubEncoding.config": HUB + 'encoding.config()["kind"]',
    "encoding.encoding_from_config": "from russellgrad.encoding import encoding_from_config; "
    + 'encoding_from_config({"kind": "characters", "vocabulary": "abc"}).encode("cab")',
    "hub_tokenizer.load_encoding": "import tempfile; from russellgrad.hub_tokenizer import load_encoding; "
    + BPE
    + """
with tempfile.TemporaryDirectory() as folder:
    BPE.train("low low lower", 260).save(folder)
    print(load_encoding(folder).encode("low lower"))""",
    "tokenizer.Tokenizer": TOKENIZER + 'tokenizer.encode("to be")',
    "tokenizer.Tokenizer.from_text": TOKENIZER + "tokenizer.vocabulary",
    "tokenizer.Tokenizer.vocabulary": TOKENIZER + "tokenizer.vocabulary",
    "tokenizer.Tokenizer.strict": TOKENIZER + "tokenizer.strict",
    "tokenizer.Tokenizer.encode": TOKENIZER + 'tokenizer.encode("to be")',
    "tokenizer.Tokenizer.decode": TOKENIZER + 'tokenizer.decode(tokenizer.encode("to be"))',
    "tokenizer.Tokenizer.ids": TOKENIZER + 'tokenizer.ids(["to be", "or"])',
    "tokenizer.Tokenizer.targets": TOKENIZER + 'tokenizer.targets(["to be", "or"])',
    "tokenizer.Tokenizer.embed": TOKENIZER + 'tokenizer.embed(tokenizer.ids(["to be"]).values).shape',
    "tokenizer.Tokenizer.forward": TOKENIZER + '[part.shape for part in tokenizer(["to be", "or"])]',
    "russelltransformer.Transformer.llama": TRANSFORMER.format("Transformer")
    + TOKENIZER.replace("embed_dim=4", "embed_dim=8, positional_encoding=False")
    + 'Transformer.llama(tokenizer, n_layers=1, n_attn_heads=2, n_kv_heads=1)(["to be"]).shape',
    "russelltransformer.Transformer.config": MODEL + "model.config()",
    "russelltransformer.Transformer.generate": MODEL + 'len(model.generate("to be", 3))',
    "russelltransformer.Transformer.make_decoder": MODEL
    + "decoder = model.make_decoder(); "
    + 'len(decoder.next_logits([tokenizer.encode("to be")])[0])',
    "russelltransformer.Transformer.stream": MODEL + 'len(list(model.stream("to be", 3)))',
    "russelltransformer.Transformer.attention_maps": MODEL + '[map.shape for map in model.attention_maps("to be")]',
    "russelltransformer.Transformer.to_torch_state_dict": MODEL + "list(model.to_torch_state_dict())[:2]",
    "russelltransformer.Transformer.from_torch": MODEL + "state = model.to_torch_state_dict(); "
    'again = Transformer.from_torch(state, tokenizer, n_attn_heads=2, activation="leaky_relu"); '
    '(again(["to be"]) == model(["to be"])).all()',
    "russelltransformer.Transformer.save_pretrained": PRETRAINED
    + "print(sorted(path.name for path in path.iterdir()))",
    "russelltransformer.Transformer.from_pretrained": PRETRAINED + "print(Transformer.from_pretrained(path).config())",
    "russelltransformer.AttentionLayer.weights": TRANSFORMER.format("AttentionLayer")
    + "AttentionLayer(2, 8).weights(rg.randn((1, 5, 8))).shape",
    "llama.GroupedQueryAttention.weights": "from russellgrad.llama import GroupedQueryAttention; "
    "GroupedQueryAttention(4, 2, 8).weights(rg.randn((1, 5, 8))).shape",
    "llama.Rotary.angles": "from russellgrad.llama import Rotary; Rotary(4).angles(Tensor([0, 1, 2])).round(4)",
    "generation.KVCache": "from russellgrad.generation import KVCache; "
    + MODEL
    + 'cache = KVCache(model); logits = model(["to be"], cache); logits = model([" or"], cache); cache.length',
    "checkpoint.save_model": (MODEL + SAVED).replace("; ", "\n")
    + """
with tempfile.TemporaryDirectory() as folder:
    print(save_model(f"{folder}/model.safetensors", model).name)""",
    "checkpoint.load_model": (MODEL + SAVED).replace("; ", "\n")
    + """
with tempfile.TemporaryDirectory() as folder:
    path = save_model(f"{folder}/model.safetensors", model)
    print(load_model(path).tokenizer.vocabulary)""",
    "russelltransformer.AttentionHead": TRANSFORMER.format("AttentionHead")
    + "AttentionHead(4, 4, 8)(rg.randn((2, 5, 8))).shape",
    "russelltransformer.AttentionLayer": TRANSFORMER.format("AttentionLayer")
    + "AttentionLayer(2, 8)(rg.randn((2, 5, 8))).shape",
    "russelltransformer.FFLayer": TRANSFORMER.format("FFLayer") + "FFLayer(32, 8)(rg.randn((2, 5, 8))).shape",
    "russelltransformer.LayerNorm": TRANSFORMER.format("LayerNorm") + "LayerNorm(8)(rg.randn((2, 5, 8))).shape",
    "llama.RMSNorm": "from russellgrad.llama import RMSNorm; RMSNorm(8)(rg.randn((2, 5, 8))).shape",
    "llama.SwiGLU": "from russellgrad.llama import SwiGLU; SwiGLU(24, 8)(rg.randn((2, 5, 8))).shape",
    "llama.Rotary": "from russellgrad.llama import Rotary; Rotary(4)(rg.randn((2, 3, 5, 4)), rg.arange(5)).shape",
    "llama.GroupedQueryAttention": "from russellgrad.llama import GroupedQueryAttention; "
    "GroupedQueryAttention(4, 2, 8, rope_base=10000.0)(rg.randn((2, 5, 8))).shape",
    "russelltransformer.Block": TRANSFORMER.format("AttentionLayer, Block, FFLayer")
    + "Block(AttentionLayer(2, 8), FFLayer(32, 8), 8, rg.layers.Dropout(0.0))(rg.randn((2, 5, 8))).shape",
    "russelltransformer.Transformer": TRANSFORMER.format("Transformer")
    + TOKENIZER
    + 'Transformer(tokenizer, n_layers=1, n_attn_heads=2)(["to be"]).shape',
}

TRACE = """x = Tensor([2.0], label="x")
with rg.trace() as t:
    y = (x ** 2).sum()
t.backward(y)
"""
EXAMPLES |= {
    "tracing.Trace": TRACE + "t",
    "tracing.Trace.backward": TRACE + "[arrival.gradient.text() for arrival in t.arrivals]",
    "tracing.Trace.nodes": TRACE + "[node.title for node in t.nodes]",
    "tracing.Trace.svg": TRACE + "t.svg()[:4]",
    "tracing.Trace.dot": TRACE + "t.dot()[:9]",
    "tracing.Trace.html": TRACE
    + """import tempfile
with tempfile.TemporaryDirectory() as folder:
    print(t.html(f"{folder}/page.html").name)""",
    "tracing.Drawing": "rg.draw(Tensor([2.0]) ** 2)",
    "graph.node.GraphNode": TRACE + "node = t.nodes[1]\nnode.name, node.shape, node.operands[1]",
    "graph.node.GraphNode.sources": TRACE + "[node.title for node in t.nodes[1].sources]",
    "graph.node.GraphNode.title": TRACE + "t.nodes[1].title",
    "graph.node.GraphNode.description": TRACE + "t.nodes[1].description()",
    "graph.events.Arrival": TRACE + "[(arrival.node.title, arrival.fills) for arrival in t.arrivals]",
    "graph.events.Contribution": TRACE
    + "[(c.target.title, c.total.text()) for arrival in t.arrivals for c in arrival.contributions]",
    "graph.values.Values": TRACE + "value = t.nodes[0].value\nvalue.shape, value.numbers",
    "graph.values.Values.size": TRACE + "t.nodes[0].value.size",
    "graph.values.Values.text": TRACE + "t.nodes[0].value.text()",
    "graph.values.Values.summary": TRACE + "t.nodes[0].value.summary()",
}

CASE = "from russellgrad import conformance; case = conformance.cases()[0]; "
CHECK = CASE + 'report = conformance.Report("numpy", (case.run("numpy"),)); '
EXAMPLES |= {
    "conformance.cases": "from russellgrad import conformance; len(conformance.cases()) > 1000",
    "conformance.Report": CHECK + "str(report).splitlines()[-1]",
    "conformance.Report.passed": CHECK + "report.passed",
    "conformance.Report.failures": CHECK + "report.failures",
    "conformance.Report.skipped": CHECK + "report.skipped",
    "conformance.Report.failed_primitives": CHECK + "report.failed_primitives",
    "conformance.Report.missing": CHECK + "report.missing",
    "conformance.Case": CASE + "str(case)",
    "conformance.Case.run": CASE + 'case.run("numpy").passed',
    "conformance.Case.check": CASE + 'case.check("numpy")',
    "conformance.Outcome": CASE + 'str(case.run("numpy"))',
    "conformance.Outcome.failed": CASE + 'case.run("numpy").failed',
    "conformance.Outcome.skipped": CASE + 'case.run("numpy").skipped',
    "conformance.Outcome.passed": CASE + 'case.run("numpy").passed',
}

# Classes of objects that the library makes, and not a call of the user.
MADE = {
    "GradientError", "conformance.Case", "conformance.Outcome", "conformance.Report", "data.Batches",
    "graph.events.Arrival", "graph.events.Contribution", "graph.node.GraphNode", "graph.values.Values",
    "ops.indexing.At", "tracing.Drawing", "tracing.Trace",
}  # fmt: skip


def as_method(code: str, name: str) -> str:
    """The example with `x.exp()` in place of `rg.exp(x)`, and `Tensor.stack`, a static method, for `rg.stack`."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"rg.{name}":
            is_static = isinstance(inspect.getattr_static(russellgrad.Tensor, name), staticmethod)
            node.func = ast.Attribute(ast.Name("Tensor") if is_static else node.args.pop(0), name)
    return ast.unparse(tree)


def find_example(name: str) -> str | None:
    """The example of a name, without "russellgrad.". A method of Tensor may have the example of the function.

    Calling a layer runs its `forward`, so the example of a class is that of this method.
    """
    own, _, last = name.rpartition(".")
    if name not in EXAMPLES and own == "Tensor":
        return as_method(EXAMPLES[last], last) if last in EXAMPLES else None
    return EXAMPLES.get(name) or (EXAMPLES.get(own) if last == "forward" else None)


def run(code: str) -> list[str]:
    """Run statements separated by "; " or by lines, and return the lines of an interactive session."""
    russellgrad.manual_seed(0)
    namespace: dict[str, Any] = {"rg": russellgrad, "Tensor": russellgrad.Tensor}
    shown: list[str] = []
    for statement in ast.parse(code).body:
        first, *rest = (ast.get_source_segment(code, statement) or "").splitlines()
        shown += [f">>> {first}", *(f"... {line}".rstrip() for line in rest)]
        printed, value = io.StringIO(), None
        with redirect_stdout(printed):
            if isinstance(statement, ast.Expr):
                value = eval(compile(ast.Expression(statement.value), "<example>", "eval"), namespace)
            else:
                exec(compile(ast.Module([statement], []), "<example>", "exec"), namespace)
        shown += printed.getvalue().splitlines()
    return shown if value is None else shown + repr(value).splitlines()
