"""Conversion of a model's parameters to and from PyTorch, with the names of nanoGPT, or of Hugging Face's Llama.

`docs/torch_twin.py` defines the PyTorch model with nanoGPT's names and shapes. The weight of a linear map is (in, out)
here and (out, in) in PyTorch. The conversion does not import PyTorch.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from .backend import Shape
from .module import Module
from .tensor import Tensor
from .tokenizer import Tokenizer

HostArray: TypeAlias = Any  # numpy.ndarray
State: TypeAlias = dict[str, HostArray]  # a state_dict, with PyTorch's names

_TOKENS = "tokenizer.token_embedding"
_TABLE, _POSITIONS, _LOGITS = "transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"
_OUTSIDE_BLOCKS = {
    _TOKENS: _TABLE,
    "tokenizer.positional_encoding": _POSITIONS,
    "final_norm.gamma": "transformer.ln_f.weight",
    "final_norm.beta": "transformer.ln_f.bias",
}
_IN_BLOCK = {
    "attention_norm.gamma": "ln_1.weight",
    "attention_norm.beta": "ln_1.bias",
    "attention.w_qkv": "attn.c_attn.weight",  # queries, keys and values side by side, (C, 3C), transposed
    "attention.b_qkv": "attn.c_attn.bias",
    "attention.w_out": "attn.c_proj.weight",
    "attention.b_out": "attn.c_proj.bias",
    "feed_forward_norm.gamma": "ln_2.weight",
    "feed_forward_norm.beta": "ln_2.bias",
    "feed_forward.w_in": "mlp.c_fc.weight",
    "feed_forward.b_in": "mlp.c_fc.bias",
    "feed_forward.w_out": "mlp.c_proj.weight",
    "feed_forward.b_out": "mlp.c_proj.bias",
}
# Our names and those of Hugging Face's LlamaForCausalLM; {} is the block's number. Queries, keys and values have one
# parameter each there, and are side by side here. Weights are (out, in) there, and there is no padding.
LLAMA_NAMES: dict[str, tuple[str, ...]] = {
    _TOKENS: ("model.embed_tokens.weight",),
    "final_norm.gamma": ("model.norm.weight",),
    "output": ("lm_head.weight",),
    "blocks.{}.attention_norm.gamma": ("model.layers.{}.input_layernorm.weight",),
    "blocks.{}.attention.w_qkv": tuple(f"model.layers.{{}}.self_attn.{part}_proj.weight" for part in "qkv"),
    "blocks.{}.attention.b_qkv": tuple(f"model.layers.{{}}.self_attn.{part}_proj.bias" for part in "qkv"),
    "blocks.{}.attention.w_out": ("model.layers.{}.self_attn.o_proj.weight",),
    "blocks.{}.attention.b_out": ("model.layers.{}.self_attn.o_proj.bias",),
    "blocks.{}.feed_forward_norm.gamma": ("model.layers.{}.post_attention_layernorm.weight",),
    "blocks.{}.feed_forward.w_gate": ("model.layers.{}.mlp.gate_proj.weight",),
    "blocks.{}.feed_forward.w_up": ("model.layers.{}.mlp.up_proj.weight",),
    "blocks.{}.feed_forward.w_down": ("model.layers.{}.mlp.down_proj.weight",),
}
_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module")  # torch.compile, DistributedDataParallel and FSDP add these
# Options of Transformer that the PyTorch model lacks, some of which do not show in the names and shapes.
_NOT_IN_TWIN = {
    "norm", "norm_eps", "feed_forward", "ff_dim", "positions", "rope_base", "n_kv_heads", "window", "tied",
}  # fmt: skip
_ROOTS = ("transformer", "lm_head")  # names begin with one of them, after the names of modules that hold the model
_NAMES = "the names and shapes are those of docs/torch_twin.py"


def layout_of(op: str, names: Iterable[str]) -> dict[str, str]:
    """A dict from PyTorch's parameter names to ours. Raises ValueError for a parameter that the PyTorch model lacks."""
    layout: dict[str, str] = {}
    for name in names:
        first, i, rest = (*name.split(".", 2), "", "")[:3]  # blocks.0.attention.w_qkv
        if name in _OUTSIDE_BLOCKS:
            layout[_OUTSIDE_BLOCKS[name]] = name
        elif first == "blocks" and rest in _IN_BLOCK:
            layout[f"transformer.h.{i}.{_IN_BLOCK[rest]}"] = name
        else:
            raise ValueError(f"{op}: {name} has no counterpart in the PyTorch model; {_NAMES}")
    return layout


def check_own_parameters(op: str, model: Module) -> None:
    """Raise ValueError if two blocks share a parameter: elsewhere, each has its own."""
    names: dict[int, str] = {}
    for name, tensor in model._named_tensors(all_names=True):
        first = names.setdefault(id(tensor), name)
        if name != first and name.startswith("blocks."):
            raise ValueError(f"{op}: {name} is also {first}; give each block parameters of its own, with copy.deepcopy")


def _is_linear(theirs: str) -> bool:
    """Whether this PyTorch parameter is the weight of a linear map, (out, in)."""
    return ".c_" in theirs and theirs.endswith(".weight")


# --- To PyTorch


def to_torch_state_dict(model: Module, config: Mapping[str, Any], padding_row: bool) -> State:
    """Implements `Transformer.to_torch_state_dict`, for a model with this `Transformer.config`."""
    check_own_parameters("to_torch_state_dict", model)
    own = dict(model._named_tensors())
    if other := sorted(set(config) & _NOT_IN_TWIN):
        raise ValueError(f"to_torch_state_dict: {', '.join(other)} has no counterpart in the PyTorch model; {_NAMES}")
    state = {theirs: _exported(theirs, own[name]) for theirs, name in layout_of("to_torch_state_dict", own).items()}
    if not padding_row:
        state[_TABLE] = state[_TABLE][:-1].copy()
    state[_LOGITS] = state[_TABLE].copy()  # tied; a copy, because safetensors rejects tensors that share memory
    return state


def _exported(theirs: str, parameter: Tensor) -> HostArray:
    xp, array = parameter.backend, parameter.data
    if _is_linear(theirs):
        array = xp.transpose(array)
    return xp.to_host(xp.astype(array, "float32") if parameter.dtype.name == "bfloat16" else array)


# --- From PyTorch


def read_state(source: Any) -> State:
    """The parameters of a `state_dict` or `torch.nn.Module` as host arrays, all float32 or all float64.

    bfloat16 and float16 become float32, which represents them exactly. What torch.compile and DistributedDataParallel
    add to names is removed, and so are the causal masks of older checkpoints. The token embedding may have either of
    its two names or both, because safetensors writes tied parameters once.

    Raises:
        TypeError: the source is neither a mapping nor a module. ValueError: an entry is not a float tensor, two have
            one name, or there are several dtypes.
    """
    if not isinstance(source, Mapping):
        if not hasattr(source, "state_dict"):
            raise TypeError(f"from_torch: needs a state_dict or a torch.nn.Module, got {type(source).__name__}")
        source = source.state_dict()
    state: State = {}
    for given, value in source.items():
        name = _name(str(given))
        if name in state:
            raise ValueError(f"from_torch: two entries have the name {name}, one of them {given}; leave one out")
        if not _is_mask(name, value):
            state[name] = _on_host(given, value)
    if _LOGITS in state:
        state.setdefault(_TABLE, state[_LOGITS])
    names_of: dict[str, list[str]] = {}
    for name, array in state.items():
        names_of.setdefault(array.dtype.name, []).append(name)
    if len(names_of) > 1:
        fewest = min(names_of, key=lambda dtype: len(names_of[dtype]))
        raise ValueError(
            f"from_torch: a model has one dtype, these are {' and '.join(sorted(names_of))} "
            f"({fewest}: {', '.join(names_of[fewest])}); cast them to one, as a torch.nn.Module's .double() does"
        )
    return state


def _name(given: str) -> str:
    """The name without what wrappers add, and with "transformer", which the state of that module alone lacks."""
    parts = [part for part in given.split(".") if part not in _WRAPPERS]
    first = next((i for i, part in enumerate(parts) if part in _ROOTS), 0)
    alone = parts[0] in ("wte", "wpe", "h", "ln_f")
    return ".".join(["transformer", *parts] if alone else parts[first:])


def _is_mask(name: str, value: Any) -> bool:
    """Whether the entry is a buffer for the causal mask, and not a bias.

    nanoGPT saves the mask as `attn.bias` (1, 1, T, T) where it does not use PyTorch's fused attention. GPT-2's
    checkpoints also have `attn.masked_bias` (), the large negative number that replaces masked scores.
    """
    shape = tuple(getattr(value, "shape", (0,)))
    if name.endswith(".attn.bias"):
        return len(shape) == 4 and shape == (1, 1, shape[-1], shape[-1])
    return name.endswith(".attn.masked_bias") and shape in ((), (1,))


def _on_host(name: str, value: Any) -> HostArray:
    if isinstance(value, Tensor):
        value = value.numpy()
    if not hasattr(value, "dtype") or hasattr(value, "mask"):  # a masked array would lose its mask
        raise ValueError(
            f"from_torch: {name!r} is a {type(value).__name__}, not a tensor; if this is a whole checkpoint, pass the "
            "state_dict in it, such as checkpoint['model']"
        )
    is_torch = hasattr(value, "detach")
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in ("float64", "float32", "bfloat16", "float16"):
        raise ValueError(
            f"from_torch: {name!r} has dtype {dtype}; a parameter must be float64, float32, bfloat16 or float16"
        )
    if dtype in ("bfloat16", "float16"):
        value = value.float() if is_torch else value.astype("float32")
    return value.detach().cpu().numpy() if is_torch else value


def options_of(state: State, tokenizer: Tokenizer, padding_row: bool) -> dict[str, Any]:
    """The arguments of Transformer that follow from the state: all but the heads, the activation and dropout.

    Raises ValueError if the embeddings do not match the tokenizer.
    """
    rows = tokenizer.vocab_size + padding_row
    expected = {_TABLE: (rows, tokenizer.embed_dim), _POSITIONS: (tokenizer.max_seq_len, tokenizer.embed_dim)}
    problems = _misfits(state, expected)
    if problems:
        raise ValueError(
            f"from_torch: {'; '.join(problems)}: the embeddings have one row for each character (and one for padding, "
            "unless padding_row=False) and max_seq_len rows, and embed_dim columns; build the tokenizer with these "
            f"sizes, or pass the one that the model was trained with; {_NAMES}"
        )
    blocks = {name.split(".")[2] for name in state if name.startswith("transformer.h.")}
    first = "transformer.h.0."
    inner = state.get(first + "mlp.c_fc.weight")  # (4C, C); `fill` checks the shape
    return {
        "n_layers": max(1, len(blocks)),
        "ff_scale_factor": 4 if inner is None or not inner.ndim else max(1, inner.shape[0] // tokenizer.embed_dim),
        "output_projection": first + "attn.c_proj.weight" in state,
        "attention_bias": first + "attn.c_attn.bias" in state,
        "final_norm": "transformer.ln_f.weight" in state,
    }


def _misfits(state: State, expected: Mapping[str, Shape]) -> list[str]:
    """Descriptions of the parameters that are missing from the state or have another shape than expected."""
    return [f"missing {name} {shape}" for name, shape in expected.items() if name not in state] + [
        f"{name} has shape {tuple(state[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]


def fill(model: Module, state: State, padding_row: bool) -> None:
    """Load `state` into a newly built model. `options_of` has checked its embeddings.

    Raises ValueError that lists all names that are missing or unexpected, and all shapes that differ. The model does
    not change then.
    """
    own = dict(model._named_tensors())
    layout = layout_of("from_torch", own)
    if not any(name.endswith(".bias") for name in state):  # a model without biases: ours stay 0
        layout = {theirs: name for theirs, name in layout.items() if not theirs.endswith(".bias")}
    expected = {
        theirs: own[name].shape[::-1] if _is_linear(theirs) else own[name].shape
        for theirs, name in layout.items()
        if theirs != _TABLE
    }
    problems = _misfits(state, expected)
    problems += [f"unexpected {name} {tuple(a.shape)}" for name, a in state.items() if name not in {*layout, _LOGITS}]
    if _LOGITS in state and state[_LOGITS].tobytes() != state[_TABLE].tobytes():
        problems.append(f"{_LOGITS} differs from {_TABLE}; here the logits are tied to the embedding")
    if problems:
        raise ValueError(f"from_torch: the state_dict does not fit: {'; '.join(problems)}; {_NAMES}")
    model.to(own[_TOKENS].backend).astype(state[_TABLE].dtype.name)
    new = {name: tensor.numpy() for name, tensor in own.items()}
    model.load_state_dict(_imported(new, layout, state, padding_row))


def _imported(own: State, layout: Mapping[str, str], state: State, padding_row: bool) -> State:
    """`own`, a new model's state_dict, updated from `state`. Biases that `state` lacks stay 0."""
    table = own[_TOKENS]  # (vocab_size + 1, C)
    for theirs, name in layout.items():
        own[name] = state[theirs].T if _is_linear(theirs) else state[theirs]
    if not padding_row:
        table[:-1], table[-1] = state[_TABLE], 0
        own[_TOKENS] = table
    return own
