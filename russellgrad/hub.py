"""Models as folders of the Hugging Face hub: `Transformer.from_pretrained` and `save_pretrained` for GPT-2 and Llama.

A folder has

    config.json               the architecture and its settings
    model.safetensors         the weights, or parts of them, which model.safetensors.index.json lists
    tokenizer.json            the tokenizer; GPT-2's may be vocab.json and merges.txt instead
    tokenizer_config.json     written for `transformers`, not read

The library has a row of the token embedding, and a class of the logits, for padding. The files have neither: a row of
zeros is added when a model is read, and left out when it is written. No file contains code.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import numpy as np

from . import init, interchange
from .backend import Backend, DType, Shape, resolve_backend, use_backend
from .hub_tokenizer import (
    SETTINGS,
    WITH_TOKENIZER,
    has_tokenizer,
    load_encoding,
    read_json,
    special_tokens,
    tokenizer_files,
)
from .module import Module
from .serialization import StoredArray, require_safetensors, stored_arrays, sync_folder, write_safetensors, write_synced
from .tensor import Tensor
from .tokenizer import Tokenizer

M = TypeVar("M", bound=Module)

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_READ, _WRITE = "from_pretrained", "save_pretrained"
_TOKENS, _OUTPUT, _LOGITS = "tokenizer.token_embedding", "output", "lm_head.weight"
_OF_TOKENIZER = ("max_seq_len", "embed_dim", "positional_encoding")  # arguments of Tokenizer
_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "float32", "F16": "float32"}  # of files, and of the model then

# The library's activations, and their names in the files. Of several names for one function, the first is written.
_GPT2_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu": "gelu", "relu": "relu", "leaky_relu": "leaky_relu",
                     "gelu_pytorch_tanh": "gelu_tanh"}  # fmt: skip


class _Config(dict[str, Any]):
    """The settings of a config.json. The errors of its methods name the file and the setting."""

    def __init__(self, path: Path) -> None:
        super().__init__(read_json(path, _READ))
        self.path = path

    def number(self, name: str, default: Any = None, kind: type = int) -> Any:
        """A setting that is a positive number. Without a default, it must be there."""
        return self.checked(name, default if self.get(name) is None else self[name], kind)

    def checked(self, name: str, value: Any, kind: type) -> Any:
        """The value of a setting, a positive number."""
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value != kind(value) or value <= 0:
            raise ValueError(f"{_READ}: {self.path}: {name} must be a positive {kind.__name__}, got {value!r}")
        return kind(value)

    def require(self, **expected: tuple[Any, ...]) -> None:
        """Raise ValueError for a setting with none of the values that the library supports; the default is first."""
        wrong = [name for name, values in expected.items() if self.get(name, values[0]) not in values]
        if wrong:
            raise ValueError(
                f"{_READ}: {self.path} has "
                + "; ".join(
                    f"{name}={self[name]!r}, where the library supports only {', '.join(map(repr, expected[name]))}"
                    for name in wrong
                )
                + "; use a model with other settings"
            )


class _Weight(NamedTuple):
    """One parameter of the library in a file."""

    names: tuple[str, ...]  # its tensors, side by side along the parameter's last axis
    shapes: tuple[Shape, ...]  # in the file
    transposed: bool = False  # (out, in) in the file
    padding: int | None = None  # the parameter's axis with an additional entry for padding


class _Architecture(NamedTuple):
    """An architecture of the hub."""

    name: str  # in the "architectures" of config.json
    read: Callable[[_Config], dict[str, Any]]  # the arguments of Transformer and Tokenizer
    write: Callable[[Any], dict[str, Any]]  # the settings of a model
    fixed: dict[str, tuple[Any, ...]]  # options of a model that it can have in these values only; the first: if absent
    free: tuple[str, ...]  # the options that it can have in any value
    weights: Callable[[Any], dict[str, _Weight]]  # by our names


# --- GPT-2


def _read_gpt2(config: _Config) -> dict[str, Any]:
    config.require(
        scale_attn_weights=(True,), scale_attn_by_inverse_layer_idx=(False,), add_cross_attention=(False, None),
        activation_function=tuple(_GPT2_ACTIVATIONS), quantization_config=(None,),
    )  # fmt: skip
    width = config.number("n_embd")
    inner = config.number("n_inner", 4 * width)
    return {
        "max_seq_len": config.number("n_positions"), "embed_dim": width,
        "n_layers": config.number("n_layer"), "n_attn_heads": config.number("n_head"),
        "norm_eps": config.number("layer_norm_epsilon", 1e-5, float),
        "activation": _GPT2_ACTIVATIONS[config.get("activation_function", "gelu_new")],
        "tied": bool(config.get("tie_word_embeddings", True)),
        "output_projection": True, "final_norm": True, "attention_bias": True,
        # A multiple of the width is an option of the PyTorch model, too: see `Transformer.to_torch_state_dict`.
        **({"ff_dim": inner} if inner % width else {"ff_scale_factor": inner // width}),
    }  # fmt: skip


def _write_gpt2(model: Any) -> dict[str, Any]:
    options, tokenizer = model._options, model.tokenizer
    names = {ours: theirs for theirs, ours in reversed(_GPT2_ACTIVATIONS.items())}
    return {
        "activation_function": names[options["activation"]],
        "n_layer": options["n_layers"], "n_head": options["n_attn_heads"], "n_embd": tokenizer.embed_dim,
        "n_inner": model.blocks[0].feed_forward.w_in.shape[1],
        "n_positions": tokenizer.max_seq_len, "n_ctx": tokenizer.max_seq_len,
        "layer_norm_epsilon": model.final_norm.eps,
        "resid_pdrop": options["dropout"], "embd_pdrop": options["dropout"],
        "attn_pdrop": options["attention_dropout"],
        "tie_word_embeddings": options["tied"],
    }  # fmt: skip


def _gpt2_weights(model: Any) -> dict[str, _Weight]:
    """nanoGPT's names; but weights are (in, out), as ours. A model without biases in the attention gets biases of 0."""
    shapes = {name: tensor.shape for name, tensor in model._named_tensors()}
    output = shapes.pop(_OUTPUT, None)
    for i in range(len(model.blocks)):
        for name in ("qkv", "out"):
            shapes.setdefault(f"blocks.{i}.attention.b_{name}", shapes[f"blocks.{i}.attention.w_{name}"][1:])
    weights = {
        ours: _Weight((theirs,), (shapes[ours],)) for theirs, ours in interchange.layout_of(_WRITE, shapes).items()
    }
    weights[_TOKENS] = _tokens(shapes[_TOKENS], *weights[_TOKENS].names)
    if output is not None:
        weights[_OUTPUT] = _logits(output)
    return weights


def _tokens(shape: Shape, name: str) -> _Weight:
    """The token embedding, (vocab_size + 1, C)."""
    return _Weight((name,), ((shape[0] - 1, shape[1]),), padding=0)


def _logits(shape: Shape) -> _Weight:
    """The weight of the logits, (C, vocab_size + 1), where it is not the token embedding."""
    return _Weight((_LOGITS,), ((shape[1] - 1, shape[0]),), transposed=True, padding=1)


# --- Llama, and Mistral, which is a Llama with a window


def _read_llama(config: _Config) -> dict[str, Any]:
    width, n_heads = config.number("hidden_size"), config.number("num_attention_heads")
    config.require(
        hidden_act=("silu",), mlp_bias=(False, None), quantization_config=(None,),
        head_dim=(width // n_heads, None),
    )  # fmt: skip
    # rope_scaling is the name before transformers 5, which prefers it, too.
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(
            f"{_READ}: {config.path} has rotary positions of the type {kind!r}, where the library supports only "
            "'default', without scaling; use a model with other settings"
        )
    return {
        "max_seq_len": config.number("max_position_embeddings"), "embed_dim": width, "positional_encoding": False,
        "n_layers": config.number("num_hidden_layers"), "n_attn_heads": n_heads,
        "n_kv_heads": config.number("num_key_value_heads", n_heads),
        "ff_dim": config.number("intermediate_size"),
        "norm_eps": config.number("rms_norm_eps", 1e-6, float),
        "rope_base": config.checked("rope_theta", rope.get("rope_theta", config.get("rope_theta", 10000.0)), float),
        "tied": bool(config.get("tie_word_embeddings", False)),
        "norm": "rms_norm", "feed_forward": "swiglu", "positions": "rotary", "output_projection": True,
        "final_norm": True, "attention_bias": bool(config.get("attention_bias", False)),
    }  # fmt: skip


def _read_mistral(config: _Config) -> dict[str, Any]:
    for name, default in {"sliding_window": 4096, "num_key_value_heads": 8}.items():  # unlike Llama's
        config.setdefault(name, default)
    window = None if config.get("sliding_window") is None else config.number("sliding_window")
    return {**_read_llama(config), "window": window, "attention_bias": False}


def _write_llama(model: Any) -> dict[str, Any]:
    options, tokenizer = model._options, model.tokenizer
    n_heads = options["n_attn_heads"]
    return {
        "hidden_act": "silu", "hidden_size": tokenizer.embed_dim, "num_hidden_layers": options["n_layers"],
        "num_attention_heads": n_heads, "num_key_value_heads": options["n_kv_heads"] or n_heads,
        "head_dim": tokenizer.embed_dim // n_heads,
        "intermediate_size": model.blocks[0].feed_forward.w_up.shape[1],
        "max_position_embeddings": tokenizer.max_seq_len, "rms_norm_eps": model.final_norm.eps,
        "rope_parameters": {"rope_theta": options["rope_base"], "rope_type": "default"},
        "rope_theta": options["rope_base"],  # before transformers 5
        "tie_word_embeddings": options["tied"], "attention_bias": options["attention_bias"], "mlp_bias": False,
        "attention_dropout": options["attention_dropout"],
    }  # fmt: skip


def _write_mistral(model: Any) -> dict[str, Any]:
    return {**_write_llama(model), "sliding_window": model._options["window"]}


def _llama_weights(model: Any) -> dict[str, _Weight]:
    """Weights are (out, in); queries, keys and values have one each."""
    weights = {}
    for name, tensor in model._named_tensors():
        first, i, rest = (*name.split(".", 2), "", "")[:3]  # blocks.0.attention.w_qkv
        key = f"blocks.{{}}.{rest}" if first == "blocks" else name
        if key not in interchange.LLAMA_NAMES:
            raise ValueError(f"{_WRITE}: {name} has no counterpart in Llama")
        names = tuple(part.format(i) for part in interchange.LLAMA_NAMES[key])
        if name == _TOKENS:
            weights[name] = _tokens(tensor.shape, *names)
        elif name == _OUTPUT:
            weights[name] = _logits(tensor.shape)
        else:
            *before, n = tensor.shape
            width = model.tokenizer.embed_dim
            ns = (n,) if len(names) == 1 else (width, (n - width) // 2, (n - width) // 2)
            weights[name] = _Weight(names, tuple((n, *before) for n in ns), transposed=True)
    return weights


# --- All architectures

_LLAMA_FIXED: dict[str, tuple[Any, ...]] = {
    "norm": ("rms_norm",), "feed_forward": ("swiglu",), "positions": ("rotary",), "output_projection": (True,),
    "final_norm": (True,),
}  # fmt: skip
_LLAMA_FREE = ("n_layers", "n_attn_heads", "n_kv_heads", "ff_scale_factor", "ff_dim", "activation", "norm_eps",
               "rope_base", "tied", "dropout", "attention_dropout")  # fmt: skip

ARCHITECTURES = {
    "gpt2": _Architecture(
        "GPT2LMHeadModel", _read_gpt2, _write_gpt2,
        {"output_projection": (True,), "final_norm": (True,), "norm": ("layer_norm",), "feed_forward": ("mlp",),
         "positions": ("learned",), "n_kv_heads": (None,), "window": (None,)},
        ("n_layers", "n_attn_heads", "ff_scale_factor", "ff_dim", "activation", "attention_bias", "norm_eps", "tied",
         "rope_base", "dropout", "attention_dropout"),
        _gpt2_weights,
    ),
    "llama": _Architecture(
        "LlamaForCausalLM", _read_llama, _write_llama, {**_LLAMA_FIXED, "window": (None,)},
        (*_LLAMA_FREE, "attention_bias"), _llama_weights,
    ),
    "mistral": _Architecture(
        "MistralForCausalLM", _read_mistral, _write_mistral, {**_LLAMA_FIXED, "attention_bias": (False,)},
        (*_LLAMA_FREE, "window"), _llama_weights,
    ),
}  # fmt: skip


# --- Reading


def from_pretrained(
    build: Callable[..., M],
    folder: str | os.PathLike[str],
    backend: str | ModuleType | Backend | None,
    dtype: DType | None,
    dropout: float,
    attention_dropout: float,
    seed: int | None,
) -> M:
    """Implements `Transformer.from_pretrained`; `build` is the class."""
    path, target = Path(folder), resolve_backend(backend)
    config, architecture = _settings(path)
    options = architecture.read(config)
    stored = _stored(path)
    if dtype is None:
        dtype = max((_dtype(name, array) for name, array in stored.items()), default="float32")
    if str(dtype) not in target.float_dtypes():
        raise ValueError(
            f"{_READ}: dtype must be a float dtype of backend {target.name!r}, {', '.join(target.float_dtypes())}, got "
            f"{dtype!r}"
        )
    size = config.number("vocab_size")
    encoding = load_encoding(path, size, _READ)
    of_tokenizer = {name: options.pop(name) for name in _OF_TOKENIZER if name in options}
    with use_backend("numpy"), init.skip_draws():
        tokenizer = Tokenizer(size, pad_token_id=size, encoding=encoding, **of_tokenizer)
        model = build(tokenizer, dropout=dropout, attention_dropout=attention_dropout, seed=seed, **options)
    weights = architecture.weights(model)
    _check_fit(path, weights, stored)
    model._set_arrays(target, dict.fromkeys(weights, target.zeros((), "float32")))
    for name in weights:  # one at a time, so that only the model and a copy of one tensor are in memory
        model._set_arrays(target, {name: target.asarray(_padded(weights[name], stored), dtype)})
    return model.eval()


def read_options(folder: Path) -> dict[str, Any]:
    """The arguments of Transformer and Tokenizer that a folder's config.json describes, without the encoding.

    Raises FileNotFoundError and ValueError as `Transformer.from_pretrained`.
    """
    config, architecture = _settings(folder)
    return {"vocab_size": config.number("vocab_size"), **architecture.read(config)}


def _settings(folder: Path) -> tuple[_Config, _Architecture]:
    """The content of a folder's config.json, and its architecture. Raises as `read_options`."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{_READ}: there is no folder {folder}; it takes the folder of a model of the Hugging Face hub, as "
            "`hf download NAME --local-dir FOLDER` makes it"
        )
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"{_READ}: {folder} has no {CONFIG}, which has the settings of a model; download all files of the model, "
            "with `hf download NAME --local-dir FOLDER`"
        )
    config = _Config(folder / CONFIG)
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise ValueError(
            f"{_READ}: {config.path} has model_type {kind!r}; the library supports only {', '.join(ARCHITECTURES)}: "
            "use a model of one of these types"
        )
    return config, ARCHITECTURES[kind]


def _stored(folder: Path) -> dict[str, StoredArray]:
    """The tensors of a folder, by name, without those that are no weights."""
    stored: dict[str, StoredArray] = {}
    for file in _files(folder):
        for name, array in stored_arrays(file, _READ).items():
            if not _is_buffer(name, array.shape):
                stored[_full_name(name)] = array
    return stored


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a folder. Raises FileNotFoundError if it has none, or not all."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        other = next((f.name for pattern in ("*.bin", "*.pt", "*.h5") for f in sorted(folder.glob(pattern))), None)
        remedy = (
            f"convert {other} with transformers, AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            if other
            else "download it from the hub"
        )
        raise FileNotFoundError(f"{_READ}: {folder} has no {WEIGHTS}; {remedy}")
    shards = read_json(folder / INDEX, _READ).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError(f"{_READ}: {folder / INDEX} has no weight_map from the names of tensors to files")
    names = sorted(set(shards.values()))
    if elsewhere := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{_READ}: {folder / INDEX} names files that are not in its folder: {', '.join(elsewhere)}")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{_READ}: {folder} lacks {', '.join(missing)}, which its {INDEX} names")
    return [folder / name for name in names]


def _full_name(name: str) -> str:
    """The name with the prefix that the state of GPT-2's inner module, as in the first files of the hub, lacks."""
    return f"transformer.{name}" if name.split(".")[0] in ("wte", "wpe", "h", "ln_f") else name


def _is_buffer(name: str, shape: Shape) -> bool:
    """Whether a tensor is a causal mask, or the frequencies of rotary embeddings, and not a weight."""
    mask = name.endswith(".attn.masked_bias") or name.endswith(".attn.bias") and len(shape) == 4
    return mask or name.endswith(".rotary_emb.inv_freq")


def _dtype(name: str, array: StoredArray) -> str:
    """The dtype of a model with this weight."""
    if array.dtype not in _DTYPES:
        raise ValueError(f"{_READ}: {array.path}: {name} has dtype {array.dtype}; weights must be {', '.join(_DTYPES)}")
    return _DTYPES[array.dtype]


def _check_fit(folder: Path, weights: Mapping[str, _Weight], stored: Mapping[str, StoredArray]) -> None:
    """Raise ValueError that lists all tensors that are missing or unexpected, or have another shape."""
    expected = {name: shape for weight in weights.values() for name, shape in zip(*weight[:2], strict=True)}
    problems = [f"missing {name} {shape}" for name, shape in expected.items() if name not in stored]
    for name, array in stored.items():
        if name == _LOGITS and name not in expected:  # tied, but stored
            tokens = stored.get(*weights[_TOKENS].names)
            if tokens is not None and not _equal(array, tokens):
                problems.append(f"{name} differs from the token embedding, although tie_word_embeddings is true")
        elif name not in expected:
            problems.append(f"unexpected {name} {array.shape}")
        elif array.shape != expected[name]:
            problems.append(f"{name} has shape {array.shape}, expected {expected[name]}")
        _dtype(name, array)
    if problems:
        raise ValueError(f"{_READ}: the weights in {folder} do not fit its {CONFIG}: {'; '.join(problems)}")


def _equal(a: StoredArray, b: StoredArray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a.read(), b.read())


def _padded(weight: _Weight, stored: Mapping[str, StoredArray]) -> np.ndarray:
    """A parameter's values: its tensors side by side, with zeros for padding."""
    arrays = [stored[name].read().T if weight.transposed else stored[name].read() for name in weight.names]
    if weight.padding is None:
        return np.ascontiguousarray(arrays[0]) if len(arrays) == 1 else np.concatenate(arrays, -1)
    return np.pad(arrays[0], [(0, int(axis == weight.padding)) for axis in range(2)])


# --- Writing


def save_pretrained(model: Any, folder: str | os.PathLike[str]) -> Path:
    """Implements `Transformer.save_pretrained`."""
    path = Path(folder)
    kind, architecture = _architecture_of(model)
    interchange.check_own_parameters(_WRITE, model)
    weights, own = architecture.weights(model), dict(model._named_tensors())
    if missing := [name for name in own if name not in weights]:
        raise ValueError(f"{_WRITE}: {kind} has no place for {', '.join(missing)}")
    dtype = _common_dtype(own)
    files = tokenizer_files(model.tokenizer, _WRITE)
    special = special_tokens(model.tokenizer.encoding)
    config = {
        "architectures": [architecture.name], "model_type": kind,
        "dtype": _DTYPES[dtype], "torch_dtype": _DTYPES[dtype],  # the name before transformers 4.56
        "vocab_size": model.tokenizer.vocab_size, **architecture.write(model),
        **{f"{key}_token_id": special[key][1] if key in special else None for key in ("bos", "eos", "pad")},
    }  # fmt: skip
    same_tokenizer = has_tokenizer(path, model.tokenizer.encoding)
    _check_no_other_model(path, same_tokenizer)
    if same_tokenizer and (path / SETTINGS).is_file():
        files = {}
        if (path / CONFIG).is_file():  # the tokenizer does not always define the end token
            before = read_json(path / CONFIG, _WRITE)
            ids = {key: before.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
            config |= {key: i for key, i in ids.items() if i is not None}
    path.mkdir(parents=True, exist_ok=True)
    shapes = {n: (dtype, shape) for w in weights.values() for n, shape in zip(w.names, w.shapes, strict=True)}
    with TemporaryDirectory(prefix=".writing-", dir=path) as name:  # an error leaves the model in the folder as it is
        new = Path(name)
        write_safetensors(new / WEIGHTS, shapes, _exported(weights, own), {"format": "pt"})
        for file, content in {**files, CONFIG: config}.items():
            write_synced(new / file, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
        for file in (WEIGHTS, *files, CONFIG):
            with suppress(FileNotFoundError):
                shutil.copymode(path / file, new / file)
        earlier = new / "before.json"
        with suppress(FileNotFoundError):
            os.replace(path / CONFIG, earlier)  # until there is another, the folder is no model
            sync_folder(path)
        try:
            _move(new, path, WEIGHTS)
        except BaseException:
            if earlier.exists() and (new / WEIGHTS).exists():  # the model in the folder is complete
                os.replace(earlier, path / CONFIG)
            raise
        for file in (*files, CONFIG):
            _move(new, path, file)
    return path


def _move(new: Path, folder: Path, name: str) -> None:
    os.replace(new / name, folder / name)
    sync_folder(folder)


def _check_no_other_model(folder: Path, same_tokenizer: bool) -> None:
    """Raise FileExistsError for files of another model that programs would read with the new one, and for a run's."""
    if (folder / WEIGHTS).is_file():
        safetensors = require_safetensors(_WRITE)
        with suppress(safetensors.SafetensorError), safetensors.safe_open(folder / WEIGHTS, "numpy") as file:
            if "config" in (file.metadata() or {}):
                raise FileExistsError(
                    f"{_WRITE}: {folder / WEIGHTS} is a model of a training run or of save_model, which this would "
                    "replace; write to a new folder"
                )
    names = (INDEX,) if same_tokenizer else (INDEX, *WITH_TOKENIZER)
    if found := [name for name in names if (folder / name).exists()]:
        raise FileExistsError(
            f"{_WRITE}: {folder} has {', '.join(found)}, which may belong to another model; transformers would "
            "read them with this one; write to a new folder, or remove these files"
        )


def _architecture_of(model: Any) -> tuple[str, _Architecture]:
    """The architecture that the model has. Raises ValueError that names all options that keep it from having one."""
    options = model._options
    misfits = {
        kind: {
            name: value for name, value in options.items()
            if name not in architecture.free and value not in architecture.fixed.get(name, ())
        }
        for kind, architecture in ARCHITECTURES.items()
    }  # fmt: skip
    kind = min(misfits, key=lambda name: len(misfits[name]))
    if misfits[kind]:
        fixed = ARCHITECTURES[kind].fixed
        raise ValueError(
            f"{_WRITE}: the nearest architecture of the hub, {kind}, does not have "
            + ", ".join(f"{name}={value!r}" for name, value in misfits[kind].items())
            + "; build the model with "
            + ", ".join(f"{name}={fixed[name][0]!r}" for name in misfits[kind] if name in fixed)
        )
    return kind, ARCHITECTURES[kind]


def _common_dtype(own: Mapping[str, Tensor]) -> str:
    """The dtype of the file, as safetensors calls it: bfloat16 and float16 become float32."""
    dtypes = {tensor.dtype.name for tensor in own.values()}
    if len(dtypes) > 1:
        raise ValueError(f"{_WRITE}: the parameters have the dtypes {', '.join(sorted(dtypes))}; cast with astype()")
    return "F64" if dtypes == {"float64"} else "F32"


def _exported(weights: Mapping[str, _Weight], own: Mapping[str, Tensor]) -> Iterator[np.ndarray]:
    """The tensors of the file, in the order of `weights`."""
    for name, weight in weights.items():
        if name not in own:  # a bias that the model does not have
            yield np.zeros(weight.shapes[0])
            continue
        array = own[name].numpy()
        array = array.astype("float32") if array.dtype.name == "bfloat16" else array
        if weight.padding is not None:
            array = array[:-1] if weight.padding == 0 else array[:, :-1]
        widths = [shape[0 if weight.transposed else -1] for shape in weight.shapes]
        for part in np.split(array, np.cumsum(widths)[:-1], -1):
            yield part.T if weight.transposed else part
