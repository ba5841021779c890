"""The examples of the API reference: statements for each public name. The value of the last one is shown."""

EXAMPLES = {
    # --- Tensor
    "Tensor": "x = Tensor([1.0, 2.0, 3.0]); (x * x).sum().backward(); x.grad",
    "Tensor.at": "Tensor([1.0, 2.0, 3.0]).at(0).set(5.0)",
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
    # --- Modules, files, data
    "Module": "rg.layers.Sequential(rg.layers.Linear(2, 3), rg.layers.ReLU())",
    "save": (
        "import tempfile; folder = tempfile.TemporaryDirectory(); "
        'path = rg.save(rg.layers.Linear(2, 3), folder.name + "/layer.safetensors"); path.name'
    ),
    "load": (
        "import tempfile; folder = tempfile.TemporaryDirectory(); "
        'path = rg.save(rg.layers.Linear(2, 3), folder.name + "/layer.safetensors"); '
        "layer = rg.load(path, rg.layers.Linear(2, 3))"
    ),
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
    "random.manual_seed": "rg.random.manual_seed(0)",
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
EXAMPLES |= {
    "optimizer.Optimizer": (
        "from russellgrad.optimizer import Optimizer, SGDOptimizer; issubclass(SGDOptimizer, Optimizer)"
    ),
    "optimizer.clip_grad_norm": (
        "from russellgrad.optimizer import clip_grad_norm; w = Tensor([3.0, 4.0]); (w * w).sum().backward(); "
        "norm = clip_grad_norm([w], 1.0); w.grad"
    ),
}

TOKENIZER = (
    "from russellgrad.tokenizer import Tokenizer; "
    'tokenizer = Tokenizer.from_text("to be or not to be", max_seq_len=8, embed_dim=16); '
)
TRANSFORMER = "from russellgrad.russelltransformer import {0}; "
EXAMPLES |= {
    "tokenizer.Tokenizer": TOKENIZER + 'tokenizer.encode("to be")',
    "russelltransformer.AttentionHead": TRANSFORMER.format("AttentionHead")
    + "AttentionHead(4, 4, 8)(rg.randn((2, 5, 8))).shape",
    "russelltransformer.AttentionLayer": TRANSFORMER.format("AttentionLayer")
    + "AttentionLayer(2, 8)(rg.randn((2, 5, 8))).shape",
    "russelltransformer.FFLayer": TRANSFORMER.format("FFLayer") + "FFLayer(32, 8)(rg.randn((2, 5, 8))).shape",
    "russelltransformer.LayerNorm": TRANSFORMER.format("LayerNorm") + "LayerNorm(8)(rg.randn((2, 5, 8))).shape",
    "russelltransformer.Block": TRANSFORMER.format("AttentionLayer, Block, FFLayer")
    + "Block(AttentionLayer(2, 8), FFLayer(32, 8), 8, rg.layers.Dropout(0.0))(rg.randn((2, 5, 8))).shape",
    "russelltransformer.Transformer": TRANSFORMER.format("Transformer")
    + TOKENIZER
    + 'Transformer(tokenizer, n_layers=1, n_attn_heads=2)(["to be"]).shape',
}
