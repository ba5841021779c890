"""Conversion of models to and from PyTorch, in memory and in files; DLPack; batches of a DataLoader."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.dlpack import from_dlpack as torch_from_dlpack  # torch.from_dlpack lacks type hints

from docs import torch_twin
from docs.torch_twin import Twin, renamed
from russellgrad import Tensor
from russellgrad.backend import Backend, get_backend
from russellgrad.bpe import BPE
from russellgrad.checkpoint import load_model, save_model
from russellgrad.loss import cross_entropy_loss
from russellgrad.random import default_generator
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer
from tests.helpers import assert_close, is_torch, rng
from tests.nanogpt import NanoGPT
from tests.process import output_of
from tests.torch_twin import randomise

TEXT = "the cat sat on the mat"
BATCH = ["the cat", "a", "sat sat sat", "mmmm"]  # padded by different amounts
GPT: dict[str, Any] = {"activation": "gelu", "output_projection": True, "final_norm": True}
VARIANTS: list[dict[str, Any]] = [
    {"activation": "leaky_relu"},
    {"activation": "relu", "final_norm": True, "n_layers": 1},
    {"activation": "gelu_tanh", "output_projection": True, "ff_scale_factor": 3},
    {**GPT, "n_attn_heads": 2, "n_layers": 3},
    {**GPT, "n_attn_heads": 16, "ff_scale_factor": 1, "dropout": 0.5},
    {**GPT, "attention_bias": True},
    {"activation": "relu", "attention_bias": True},
]


def small_tokenizer(**options: Any) -> Tokenizer:
    return Tokenizer.from_text(TEXT, max_seq_len=12, embed_dim=16, seed=1, **options)


def small_model(dtype: str = "float64", **options: Any) -> Transformer:
    """A small model with random parameters, in evaluation mode."""
    model = Transformer(small_tokenizer(), **{"n_layers": 2, "n_attn_heads": 4, "seed": 1, **options}).astype(dtype)
    randomise(model)
    return model.eval()


def empty_twin(model: Transformer, dtype: torch.dtype = torch.float64) -> Twin:
    tokenizer = model.tokenizer
    torch.manual_seed(3)
    sizes = (tokenizer.vocab_size, tokenizer.max_seq_len, tokenizer.embed_dim)
    return Twin(*sizes, **model.config()).to(dtype).eval()


def twin_of(model: Transformer) -> Twin:
    state = {name: torch.from_numpy(array) for name, array in model.to_torch_state_dict().items()}
    twin = empty_twin(model, state["lm_head.weight"].dtype)
    twin.load_state_dict(state)
    return twin


def from_twin(twin: torch.nn.Module | dict[str, Any], **options: Any) -> Transformer:
    return Transformer.from_torch(twin, small_tokenizer(), **{"n_attn_heads": 4, "activation": "gelu", **options})


def tokens(model: Transformer, batch: Any = BATCH) -> torch.Tensor:
    return torch.from_numpy(Tensor(model.tokenizer.ids(batch).values).numpy())


def check_same_outputs(model: Transformer, twin: Twin, scale: float = 1.0) -> None:
    """Check the logits, and the gradients of all parameters for a random upstream gradient; atol 1e-12 in float64."""
    logits, expected = model(BATCH), twin(tokens(model))
    dtype = str(logits.dtype)
    atol = None if dtype == "float64" else 2e-5 * scale
    assert_close(logits, expected, atol=atol, what="logits")
    upstream = rng(5).normal(size=logits.shape).astype(dtype)
    logits.backward(Tensor(upstream, requires_grad=False))
    expected.backward(torch.from_numpy(upstream))
    ours = {name: torch.from_numpy(Tensor(p.grad).numpy()) for name, p in model.named_parameters()}
    theirs = dict(twin.named_parameters())  # lists the tied weight once, as the token embedding
    assert {*renamed(ours)} == {*theirs, "lm_head.weight"}
    for name, parameter in theirs.items():
        assert_close(renamed(ours)[name], parameter.grad, atol=atol, what=name)


# --- Conversion in memory


@pytest.mark.parametrize("options", VARIANTS)
def test_exported_model_matches_logits_and_gradients(backend: Backend, options: dict[str, Any]) -> None:
    model = small_model(**options)
    check_same_outputs(model, twin_of(model))


@pytest.mark.parametrize("options", VARIANTS)
def test_imported_model_matches_logits_and_gradients(backend: Backend, options: dict[str, Any]) -> None:
    like = small_model(**options)
    twin = empty_twin(like)
    for parameter in twin.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    given = {name: like.config()[name] for name in ("n_attn_heads", "activation", "dropout")}
    model = Transformer.from_torch(twin, small_tokenizer(), **given)
    assert model.config() == like.config()
    assert not model.training
    assert all(p.backend is get_backend() and p.requires_grad for p in model.parameters())
    check_same_outputs(model, twin)


@pytest.mark.parametrize("options", VARIANTS)
def test_exported_float32_model_matches(backend: Backend, options: dict[str, Any]) -> None:
    model = small_model("float32", **options)
    check_same_outputs(model, twin_of(model), scale=10)  # some gradients are larger than 10


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip_is_bitwise_exact(backend: Backend, dtype: str) -> None:
    model = small_model(dtype, **GPT)
    state, again = model.state_dict(), from_twin(twin_of(model)).state_dict()
    assert list(again) == list(state)
    for name, array in state.items():
        assert again[name].dtype == dtype
        np.testing.assert_array_equal(again[name], array, strict=True)
    exported = model.to_torch_state_dict()  # a dict of NumPy arrays works too, and one of Tensors
    back = from_twin({**exported, "transformer.ln_f.bias": Tensor(exported["transformer.ln_f.bias"])}).state_dict()
    assert all(np.array_equal(back[name], array) for name, array in state.items())


def test_exported_names_and_shapes_match_nanogpt(backend: Backend) -> None:
    """Names and shapes are those of a nanoGPT checkpoint with `bias=True`."""
    block = {
        "ln_1.weight": (16,), "ln_1.bias": (16,), "attn.c_attn.weight": (48, 16), "attn.c_attn.bias": (48,),
        "attn.c_proj.weight": (16, 16), "attn.c_proj.bias": (16,),
        "ln_2.weight": (16,), "ln_2.bias": (16,), "mlp.c_fc.weight": (64, 16), "mlp.c_fc.bias": (64,),
        "mlp.c_proj.weight": (16, 64), "mlp.c_proj.bias": (16,),
    }  # fmt: skip
    rows = len(set(TEXT)) + 1
    expected = {
        "transformer.wte.weight": (rows, 16),
        "transformer.wpe.weight": (12, 16),
        **{f"transformer.h.{i}.{name}": shape for i in range(2) for name, shape in block.items()},
        "transformer.ln_f.weight": (16,),
        "transformer.ln_f.bias": (16,),
        "lm_head.weight": (rows, 16),
    }
    model = small_model(**GPT, attention_bias=True)
    state = model.to_torch_state_dict()
    assert {name: array.shape for name, array in state.items()} == expected
    assert {name: tuple(t.shape) for name, t in nanogpt(bias=True).state_dict().items()} == {
        name: (rows - 1, 16) if shape == (rows, 16) else shape for name, shape in expected.items()
    }
    assert {name: tuple(t.shape) for name, t in empty_twin(model).state_dict().items()} == expected
    w = model.state_dict()
    np.testing.assert_array_equal(state["transformer.h.1.attn.c_attn.weight"], w["blocks.1.attention.w_qkv"].T)
    np.testing.assert_array_equal(state["transformer.h.1.mlp.c_proj.weight"], w["blocks.1.feed_forward.w_out"].T)


def test_exported_arrays_are_c_contiguous_copies(backend: Backend) -> None:
    model = small_model(**GPT)
    before, state = model.state_dict(), model.to_torch_state_dict()
    for array in state.values():
        assert type(array) is np.ndarray and array.flags.c_contiguous and array.flags.writeable
        array[...] = 7.0
    assert all(np.array_equal(array, before[name]) for name, array in model.state_dict().items())
    state["lm_head.weight"][...] = 8.0
    assert (state["transformer.wte.weight"] == 7.0).all()


def test_imported_parameters_are_copies(backend: Backend) -> None:
    twin = twin_of(small_model(**GPT))
    model = from_twin(twin)
    before = model.state_dict()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.fill_(7.0)
    assert all(np.array_equal(array, before[name]) for name, array in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_imported_as_float32(backend: Backend, dtype: torch.dtype) -> None:
    twin = twin_of(small_model(**GPT))
    state = from_twin(twin.to(dtype)).to_torch_state_dict()
    for name, parameter in twin.state_dict().items():
        assert state[name].dtype == np.float32
        np.testing.assert_array_equal(state[name], parameter.float().numpy())
    mixed = {name: t.float() if ".ln_" in name else t for name, t in twin.state_dict().items()}
    assert str(from_twin(mixed).final_norm.gamma.dtype) == "float32"  # type: ignore[union-attr]


def test_bfloat16_model_is_exported_as_float32(backend: Backend) -> None:
    if "bfloat16" not in backend.float_dtypes():
        pytest.skip(f"{backend.name} has no bfloat16")
    model = small_model("bfloat16", **GPT)
    state = model.to_torch_state_dict()
    assert {array.dtype.name for array in state.values()} == {"float32"}
    same = small_model("float64", **GPT).to_torch_state_dict()
    for name, array in state.items():
        expected = torch.from_numpy(same[name]).to(torch.bfloat16).float().numpy()
        assert_close(array, expected, atol=2.0**-8, what=name)  # rounded to bfloat16 once, perhaps after float32


def test_round_trip_model_generates_the_same_text(backend: Backend) -> None:
    model = small_model(**GPT)
    assert from_twin(twin_of(model)).generate("the", 20, seed=4) == model.generate("the", 20, seed=4)


def test_imported_model_is_on_the_backend_of_the_tokenizer(backend: Backend) -> None:
    state = small_model(**GPT).to_torch_state_dict()
    tokenizer = small_tokenizer().to("numpy")
    model = Transformer.from_torch(state, tokenizer, n_attn_heads=4, activation="gelu")
    assert isinstance(tokenizer, Tokenizer) and model.tokenizer is tokenizer
    assert {p.backend.name for p in model.parameters()} == {"numpy"}


def test_import_does_not_advance_the_default_generator(backend: Backend) -> None:
    state = small_model(**GPT).to_torch_state_dict()
    before = default_generator().counter
    from_twin(state)
    assert default_generator().counter == before


def test_conversion_does_not_import_torch() -> None:
    code = """
import sys
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer
tokenizer = Tokenizer.from_text("abc", 4, 8)
state = Transformer(tokenizer, 1, 2).to_torch_state_dict()
Transformer.from_torch(state, tokenizer, n_attn_heads=2, activation="relu")
print("torch" in sys.modules)
"""
    assert output_of(code) == "False"


# --- nanoGPT checkpoints


def nanogpt_checkpoint(twin: Twin) -> dict[str, torch.Tensor]:
    """A checkpoint as nanoGPT saves it with `bias=False`: no biases, no padding row, the prefix of torch.compile."""
    state = {name: tensor for name, tensor in twin.state_dict().items() if not name.endswith(".bias")}
    for name in ("transformer.wte.weight", "lm_head.weight"):
        state[name] = state[name][:-1]
    return {"_orig_mod." + name: tensor for name, tensor in state.items()}


def test_nanogpt_checkpoint_is_imported(backend: Backend) -> None:
    twin = twin_of(small_model(**GPT))
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
        twin.transformer.wte.weight[-1] = 0.0
    model = from_twin(nanogpt_checkpoint(twin), padding_row=False)
    check_same_outputs(model, twin)
    assert (model(BATCH).numpy()[..., -1] == 0).all()
    assert not set(model.generate("the", 50, seed=2)) - set(TEXT)


def nanogpt(bias: bool, flash: bool = True) -> NanoGPT:
    """A nanoGPT in float64 of the sizes of `small_model`, with random parameters."""
    torch.manual_seed(4)
    gpt = NanoGPT(len(set(TEXT)), 12, 2, 4, 16, bias=bias, flash=flash).double()
    for parameter in gpt.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return gpt.eval()


def check_imported(state: Any, gpt: NanoGPT, atol: float | None = None) -> None:
    model = from_twin(state, padding_row=False)
    ids = torch.tensor([model.tokenizer.encode(text) for text in ("the cat", "sat the")])
    assert_close(model(ids).numpy()[..., :-1].astype("float64"), gpt(ids), atol=atol)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.module."])
def test_any_nanogpt_checkpoint_is_imported(backend: Backend, bias: bool, flash: bool, prefix: str) -> None:
    """With or without biases, mask buffers, and prefixes of wrappers."""
    gpt = nanogpt(bias, flash)
    state = {prefix + name: tensor for name, tensor in gpt.state_dict().items()}
    assert any(name.endswith(".attn.bias") for name in state) != flash
    check_imported(state, gpt)


def test_wrapped_models_are_imported(backend: Backend) -> None:
    gpt = nanogpt(bias=True, flash=False)
    blocks: Any = gpt.transformer["h"]
    blocks[1] = torch.compile(blocks[1], backend="eager")  # the prefix is inside of the names
    assert "transformer.h.1._orig_mod.ln_1.weight" in gpt.state_dict()
    check_imported(torch.nn.DataParallel(gpt), nanogpt(bias=True))


@pytest.mark.parametrize("prefix", ["model.", "_fsdp_wrapped_module.", "module.net.gpt."])
def test_a_model_in_another_module_is_imported(backend: Backend, prefix: str) -> None:
    gpt = nanogpt(bias=True)
    check_imported({prefix + name: value for name, value in gpt.state_dict().items()}, gpt)


def test_the_state_of_the_transformer_alone_is_imported(backend: Backend) -> None:
    gpt = nanogpt(bias=True)
    check_imported(gpt.transformer.state_dict(), gpt)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32, torch.bfloat16])
def test_mask_buffers_of_any_dtype_are_left_out(backend: Backend, dtype: torch.dtype) -> None:
    """They are recognised by their shape; as in GPT-2's checkpoints, `masked_bias` comes with them."""
    gpt = nanogpt(bias=False)
    mask = torch.ones(1, 1, 12, 12).tril().to(dtype)
    masks = {f"transformer.h.{i}.attn.{name}": value for i in range(2)
             for name, value in (("bias", mask), ("masked_bias", torch.tensor(-1e4)))}  # fmt: skip
    check_imported({**masks, **gpt.state_dict()}, gpt)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints_with_masks_are_imported(backend: Backend, dtype: torch.dtype) -> None:
    gpt = nanogpt(bias=True, flash=False).to(dtype)
    state = gpt.state_dict()
    check_imported(state, gpt.double(), atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_export_without_the_padding_row_fits_nanogpt(backend: Backend, bias: bool, dtype: str) -> None:
    """It has logits for characters only, so padding is never drawn. The way back gives the same parameters and text."""
    model = small_model(dtype, **GPT, attention_bias=bias)
    if not bias:  # then nanoGPT has none
        biases = {
            name: np.zeros_like(a) for name, a in model.state_dict().items() if a.ndim == 1 and "gamma" not in name
        }
        model.load_state_dict({**model.state_dict(), **biases})
    state = {name: torch.from_numpy(a) for name, a in model.to_torch_state_dict(padding_row=False).items()}
    vocab_size = model.tokenizer.vocab_size
    assert state["transformer.wte.weight"].shape == state["lm_head.weight"].shape == (vocab_size, 16)
    gpt = nanogpt(bias).to(state["lm_head.weight"].dtype)
    found = gpt.load_state_dict(state, strict=bias)
    assert not found.missing_keys
    assert all(name.endswith(".bias") and not state[name].any() for name in found.unexpected_keys)
    assert bool(found.unexpected_keys) != bias
    ids = torch.tensor([model.tokenizer.encode("the cat")])
    logits = gpt(ids)
    assert logits.shape[-1] == vocab_size
    assert_close(model(ids).numpy()[..., :-1], logits, atol=None if dtype == "float64" else 2e-4)
    again = from_twin(gpt, padding_row=False)
    assert again.config() == model.config()
    before, after = model.state_dict(), again.state_dict()
    for name, array in before.items():
        rows = slice(None, -1) if name == "tokenizer.token_embedding" else slice(None)
        np.testing.assert_array_equal(after[name][rows], array[rows], strict=True)
    assert not after["tokenizer.token_embedding"][-1].any()
    assert again.generate("the", 20, seed=4) == model.generate("the", 20, seed=4)


def test_export_without_the_padding_row_copies(backend: Backend) -> None:
    model = small_model(**GPT)
    state, whole = model.to_torch_state_dict(padding_row=False), model.to_torch_state_dict()
    for name, array in state.items():
        assert array.flags.c_contiguous and array.flags.owndata
        np.testing.assert_array_equal(array, whole[name][: len(array)])
    state["lm_head.weight"][...] = 8.0
    assert not (state["transformer.wte.weight"] == 8.0).any()


def test_frozen_parameters_are_exported_and_imported(backend: Backend) -> None:
    model, tokenizer = small_model(**GPT), small_tokenizer()
    for frozen in (model.blocks[0].attention.w_qkv, model.tokenizer.token_embedding, tokenizer.token_embedding):
        frozen.requires_grad = False
    state = model.to_torch_state_dict()
    again = Transformer.from_torch(state, tokenizer, n_attn_heads=4, activation="gelu")
    assert all(np.array_equal(array, model.state_dict()[name]) for name, array in again.state_dict().items())


@pytest.mark.parametrize("name", ["extra", "blocks", "blocks.0.attention.bias"])
def test_a_parameter_without_counterpart_is_not_exported(backend: Backend, name: str) -> None:
    model = small_model()
    if name == "extra":
        model.extra = Tensor([1.0])  # type: ignore[attr-defined]
    elif name == "blocks":
        model.blocks.append(Tensor([1.0]))  # type: ignore[arg-type]
        name = "blocks.2"
    else:
        model.blocks[0].attention.bias = Tensor([1.0])  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=f"^to_torch_state_dict: {name} has no counterpart in the PyTorch model; the"):
        model.to_torch_state_dict()


def test_blocks_that_share_parameters_are_not_exported(backend: Backend, tmp_path: Path) -> None:
    model = small_model(activation="gelu", output_projection=True, final_norm=True)
    model.blocks[1].attention = model.blocks[0].attention
    message = r"blocks\.1\.attention\.w_qkv is also blocks\.0\.attention\.w_qkv; give each block parameters of its own"
    with pytest.raises(ValueError, match=f"^to_torch_state_dict: {message}"):
        model.to_torch_state_dict()
    with pytest.raises(ValueError, match=f"^save_pretrained: {message}"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


class WithOtherNames(Transformer):
    """A Transformer with attributes that are parts of it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.first, self.table = self.blocks[0], self.tokenizer.token_embedding


def test_other_names_of_parameters_do_not_matter(backend: Backend) -> None:
    state = small_model(**GPT).to_torch_state_dict()
    model = WithOtherNames.from_torch(state, small_tokenizer(), n_attn_heads=4, activation="gelu")
    again = model.to_torch_state_dict()
    assert list(again) == list(state)
    for name, array in state.items():
        np.testing.assert_array_equal(again[name], array)


def test_torch_compile_prefix_is_removed(backend: Backend) -> None:
    twin = twin_of(small_model(**GPT))
    compiled: Any = torch.compile(twin, backend="eager")  # only the parameter names matter
    assert all(name.startswith("_orig_mod.") for name in compiled.state_dict())
    check_same_outputs(from_twin(compiled), twin)


def test_state_without_the_tied_weight_is_imported(backend: Backend) -> None:
    """safetensors and `named_parameters` list tied parameters once."""
    twin = twin_of(small_model(**GPT))
    check_same_outputs(from_twin({name: p.detach() for name, p in twin.named_parameters()}), twin)


# --- Mismatched states


def check_refused(error: type[Exception], source: Any, *messages: str, **options: Any) -> None:
    """Check that one error has all the messages, and that the tokenizer is unchanged."""
    tokenizer = small_tokenizer()
    before = tokenizer.state_dict()
    with pytest.raises(error) as caught:
        Transformer.from_torch(source, tokenizer, **{"n_attn_heads": 4, "activation": "gelu", **options})
    for message in ("from_torch: ", *messages):
        assert message in str(caught.value)
    after = tokenizer.state_dict()
    assert all(
        after[name].dtype == array.dtype and np.array_equal(after[name], array) for name, array in before.items()
    )


def state_with(**changes: Any) -> dict[str, Any]:
    """A complete state with changes: None removes a name, another value sets it (`__` stands for the dot)."""
    state: dict[str, Any] = dict(twin_of(small_model("float32", **GPT)).state_dict())
    for name, value in changes.items():
        state.pop(name.replace("__", "."), None)
        if value is not None:
            state[name.replace("__", ".")] = value
    return state


def test_all_mismatches_are_in_one_error(backend: Backend) -> None:
    state = state_with(
        transformer__h__0__ln_1__weight=None,
        transformer__h__1__attn__c_attn__weight=torch.zeros(16, 48),
        transformer__h__1__attn__c_attn__bias=torch.zeros(48),  # block 0 has none
        classifier__weight=torch.zeros(2, 3),
    )
    check_refused(
        ValueError,
        state,
        "missing transformer.h.0.ln_1.weight (16,)",
        "transformer.h.1.attn.c_attn.weight has shape (16, 48), expected (48, 16)",
        "unexpected transformer.h.1.attn.c_attn.bias (48,)",
        "unexpected classifier.weight (2, 3)",
        "docs/torch_twin.py",
    )


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        (
            {"transformer__wte__weight": torch.zeros(40, 32), "transformer__wpe__weight": torch.zeros(64, 32)},
            ["wte.weight has shape (40, 32), expected (11, 16)", "wpe.weight has shape (64, 32), expected (12, 16)",
             "build the tokenizer with these"],
        ),
        ({"transformer__wte__weight": torch.zeros(10, 16)}, ["shape (10, 16), expected (11, 16)", "padding_row=False"]),
        ({"transformer__wte__weight": None, "lm_head__weight": None}, ["missing transformer.wte.weight (11, 16)"]),
        ({"lm_head__weight": torch.zeros(11, 16)}, ["lm_head.weight differs from transformer.wte.weight", "tied"]),
        ({"lm_head__weight": torch.zeros(3)}, ["lm_head.weight differs from transformer.wte.weight"]),
        ({"transformer__ln_f__weight": None}, ["unexpected transformer.ln_f.bias (16,)"]),
        ({"transformer__ln_f__bias": None}, ["missing transformer.ln_f.bias (16,)"]),
        ({"transformer__h__1__attn__c_proj__weight": None}, ["missing transformer.h.1.attn.c_proj.weight (16, 16)"]),
        ({"transformer__h__0__attn__c_proj__weight": None}, ["unexpected transformer.h.1.attn.c_proj.weight"]),
        ({"transformer__h__0__mlp__c_fc__weight": None}, ["missing transformer.h.0.mlp.c_fc.weight (64, 16)"]),
        ({"transformer__h__0__mlp__c_fc__weight": torch.zeros(50, 16)}, ["has shape (50, 16), expected (48, 16)"]),
        ({"transformer__h__0__mlp__c_fc__weight": torch.zeros(5, 16)}, ["has shape (5, 16), expected (16, 16)"]),
        ({"transformer__h__0__mlp__c_fc__weight": torch.tensor(1.0)}, ["has shape (), expected (64, 16)"]),
        ({"transformer__h__7__ln_1__weight": torch.zeros(16)}, ["missing transformer.h.2.ln_1.weight (16,)",
                                                               "unexpected transformer.h.7.ln_1.weight (16,)"]),
        ({"transformer__wpe__weight": torch.zeros(12, 16).double()}, ["float32 and float64", "float64: ", ".double()"]),
        ({"transformer__wpe__weight": torch.zeros(12, 16).long()}, ["'transformer.wpe.weight' has dtype int64"]),
        ({"transformer__wpe__weight": np.zeros((12, 16), "int32")}, ["'transformer.wpe.weight' has dtype int32"]),
        ({"epoch": 3}, ["'epoch' is a int, not a tensor"]),
        ({"transformer__wpe__weight": np.ma.masked_array(np.zeros((12, 16)))}, ["is a MaskedArray, not a tensor"]),
        ({"transformer__wpe__weight": np.zeros((12, 16), ">f4")}, ["'transformer.wpe.weight' has dtype >f4"]),
    ],
)  # fmt: skip
def test_mismatched_state_raises(backend: Backend, changes: dict[str, Any], messages: list[str]) -> None:
    check_refused(ValueError, state_with(**changes), *messages)


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"transformer.h.0.attn.c_attn.bias": torch.zeros(16)},
         ["transformer.h.0.attn.c_attn.bias has shape (16,), expected (48,)"]),
        ({"transformer.h.1.attn.c_proj.bias": torch.zeros(48)},
         ["transformer.h.1.attn.c_proj.bias has shape (48,), expected (16,)"]),
        ({"transformer.h.0.attn.bias": torch.zeros(48)}, ["unexpected transformer.h.0.attn.bias (48,)"]),
        ({"transformer.h.0.attn.bias": torch.zeros(1, 1, 12, 8)},
         ["unexpected transformer.h.0.attn.bias (1, 1, 12, 8)"]),
        ({"transformer.h.0.attn.masked_bias": torch.zeros(12)}, ["unexpected transformer.h.0.attn.masked_bias (12,)"]),
        ({"transformer.h.0.attn.rotary": torch.zeros(12), "head.weight": torch.zeros(2)},
         ["unexpected transformer.h.0.attn.rotary (12,)", "unexpected head.weight (2,)"]),
        ({"module.transformer.ln_f.weight": torch.ones(16)}, ["two entries have the name transformer.ln_f.weight"]),
        ({"lm_head.weight": torch.ones(10, 16)}, ["lm_head.weight differs from transformer.wte.weight", "tied"]),
        ({"transformer.wpe.weight": torch.zeros(8, 16)}, ["wpe.weight has shape (8, 16), expected (12, 16)"]),
        ({"transformer.wpe.weight": torch.zeros(64, 16)}, ["wpe.weight has shape (64, 16), expected (12, 16)"]),
        ({"transformer.wte.weight": torch.zeros(50304, 16), "lm_head.weight": torch.zeros(50304, 16)},
         ["wte.weight has shape (50304, 16), expected (10, 16)", "one row for each character"]),
    ],
)  # fmt: skip
def test_a_nanogpt_checkpoint_that_does_not_fit_raises(
    backend: Backend, changes: dict[str, torch.Tensor], messages: list[str]
) -> None:
    state = {**nanogpt(bias=True, flash=False).float().state_dict(), **changes}
    check_refused(ValueError, state, *messages, padding_row=False)


def test_a_whole_nanogpt_checkpoint_raises(backend: Backend) -> None:
    state = nanogpt(bias=False).state_dict()
    whole = {"model": state, "optimizer": {}, "model_args": {"n_layer": 2}, "iter_num": 5, "best_val_loss": 1.5}
    for names in (list(whole), list(whole)[::-1], ["iter_num", "model"]):
        check_refused(
            ValueError, {name: whole[name] for name in names}, "pass the state_dict in it", "checkpoint['model']"
        )


def test_invalid_state_raises(backend: Backend) -> None:
    check_refused(ValueError, {"model": state_with(), "optimizer": {}}, "'model' is a dict", "checkpoint['model']")
    check_refused(ValueError, {}, "missing transformer.wte.weight (11, 16)")
    check_refused(TypeError, "model.pt", "needs a state_dict or a torch.nn.Module, got str")
    outside = {name: array for name, array in state_with().items() if ".h." not in name}
    check_refused(ValueError, outside, "missing transformer.h.0.ln_1.weight (16,)")


def test_extra_padding_row_raises(backend: Backend) -> None:
    check_refused(ValueError, state_with(), "wte.weight has shape (11, 16), expected (10, 16)", padding_row=False)


# --- Model files


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, GPT])
def test_model_file_loads_in_pytorch(backend: Backend, tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    from safetensors.torch import load_file

    model = small_model(dtype, **options)
    path = save_model(tmp_path / "model.safetensors", model)
    twin, vocabulary = torch_twin.load(path)
    assert vocabulary == model.tokenizer.vocabulary
    assert not twin.training
    check_same_outputs(model, twin, scale=10)
    by_hand = empty_twin(model, getattr(torch, dtype))
    by_hand.load_state_dict(renamed(load_file(path)))
    assert torch.equal(by_hand(tokens(model)), twin(tokens(model)))


def test_model_files_that_the_twin_cannot_load_raise(tmp_path: Path) -> None:
    encoding = BPE.train("to be or not to be", 260)
    size = encoding.vocab_size
    by_pairs = Transformer(Tokenizer(size, 8, 8, size, encoding=encoding, seed=0), 1, 2, seed=0)
    with pytest.raises(ValueError, match=r"model\.safetensors: the model's tokens are not characters .* kind 'bpe'"):
        torch_twin.load(save_model(tmp_path / "model.safetensors", by_pairs))
    other = Transformer(Tokenizer.from_text("to be", 8, 8, seed=0), 1, 2, norm="rms_norm", tied=False, seed=0)
    with pytest.raises(ValueError, match=r"the twin has GPT-2's blocks, the model has other options: norm, tied"):
        torch_twin.load(save_model(tmp_path / "model.safetensors", other))


def test_bfloat16_model_file_loads_in_pytorch(backend: Backend, tmp_path: Path) -> None:
    if "bfloat16" not in backend.float_dtypes():
        pytest.skip(f"{backend.name} has no bfloat16")
    model = small_model("bfloat16", **GPT)
    twin, _ = torch_twin.load(save_model(tmp_path / "model.safetensors", model))
    check_same_outputs(model.astype("float32"), twin, scale=10)


def test_file_saved_by_pytorch_is_imported(backend: Backend, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from safetensors.torch import save_model as save_torch_model

    model = small_model(**GPT)
    twin, path = twin_of(model), tmp_path / "twin.safetensors"
    save_torch_model(twin, str(path))
    check_same_outputs(from_twin(load_file(path)), twin)
    save_file({name: torch.from_numpy(a) for name, a in model.to_torch_state_dict().items()}, path)
    again = from_twin(load_file(path))
    path = save_model(tmp_path / "model.safetensors", again)
    assert np.array_equal(load_model(path)(BATCH).numpy(), model(BATCH).numpy())


# --- DLPack


@pytest.fixture
def on_host(backend: Backend) -> Backend:
    if backend.name == "cupy":
        pytest.skip("CuPy arrays are on a device, this PyTorch has only host memory")
    return backend


DTYPES = ["float32", "float64", "int64"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (3, 4), (0, 3)])
def test_to_dlpack_shares_memory(on_host: Backend, dtype: str, shape: tuple[int, ...]) -> None:
    values = (10 * rng().normal(size=shape)).astype(dtype)
    x = Tensor(values, requires_grad=False)
    theirs = torch_from_dlpack(x)
    assert_close(theirs, values)
    theirs += 1
    assert_close(x, values + np.ones((), dtype))
    x.data += 2
    assert_close(theirs, values + np.full((), 3, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (3, 4), (0, 3)])
def test_from_dlpack_shares_memory(on_host: Backend, dtype: str, shape: tuple[int, ...]) -> None:
    theirs = torch.from_numpy(np.asarray(10 * rng().normal(size=shape)).astype(dtype))
    x = Tensor.from_dlpack(theirs)
    assert (x.backend, x.shape, x.requires_grad) == (on_host, shape, dtype != "int64")
    assert_close(x, theirs)
    theirs += 1
    assert_close(x, theirs)
    x.data -= 3
    assert_close(x, theirs)


def test_dlpack_keeps_the_strides_of_views(on_host: Backend) -> None:
    x = Tensor(rng().normal(size=(4, 6)), requires_grad=False)
    for view in (x.T, x[1:, ::2], x[:, 3], x[2], x.broadcast_to(2, 4, 6)):
        theirs = torch_from_dlpack(view)
        assert_close(theirs, view)
        x.data += 1.0
        assert_close(theirs, view)
    base = torch.from_numpy(rng().normal(size=(4, 6)))
    for theirs in (base.T, base[1:, ::2], base[:, 3], base.expand(2, 4, 6)):
        ours = Tensor.from_dlpack(theirs)
        base += 1.0
        assert_close(ours, theirs)


def test_dlpack_export_of_negative_strides_raises(backend: Backend) -> None:
    x = Tensor([1.0, 2.0, 3.0], requires_grad=False)
    if is_torch(backend):
        pytest.skip("PyTorch's arrays have no negative strides: the index made a copy")
    with pytest.raises(
        BufferError, match=r"^__dlpack__: this view has negative strides.* export a copy, Tensor\(x.data"
    ):
        x[::-1].__dlpack__()
    copied = Tensor(x[::-1].data, requires_grad=False)
    assert_close(Tensor.from_dlpack(copied), np.array([3.0, 2.0, 1.0]))


def test_dlpack_keeps_the_read_only_flag(on_host: Backend) -> None:
    """DLPack 1.0 has a read-only flag, which NumPy respects; PyTorch does not support read-only memory."""
    constant = np.ones(3)
    constant.flags.writeable = False
    if is_torch(on_host):
        with pytest.raises(BufferError, match="read-only"):
            Tensor.from_dlpack(constant)
        return
    x = Tensor.from_dlpack(constant, requires_grad=False)
    with pytest.raises(ValueError, match="read-only"):
        x.data += 1.0
    assert not np.from_dlpack(x).flags.writeable
    with pytest.raises(BufferError, match="readonly"):
        x.__dlpack__()  # requests an older DLPack version, which has no read-only flag
    assert_close((Tensor.from_dlpack(constant) * 2).sum(), np.array(6.0))


def test_dlpack_refuses_tensors_that_require_grad(on_host: Backend) -> None:
    """A tensor that tracks gradients is neither exported nor imported; an imported detached tensor is a new leaf."""
    with pytest.raises(BufferError, match=r"^__dlpack__: this tensor tracks gradients.* export .detach\(\)"):
        torch_from_dlpack(Tensor([1.0]))
    leaf = torch.ones(3, requires_grad=True)
    for theirs in (leaf, leaf * 2, torch.nn.Parameter(torch.ones(3))):
        with pytest.raises(
            BufferError, match=r"^from_dlpack: backend '[\w:]+' cannot share.* requires? grad.*\.detach\(\)"
        ):
            Tensor.from_dlpack(theirs)
    x = Tensor.from_dlpack(leaf.detach())
    (x * x).sum().backward()
    assert_close(x.grad, np.full(3, 2.0, "float32"))
    assert leaf.grad is None
    assert_close(torch_from_dlpack(x.detach()), leaf)


def test_changed_in_place_reports_writes_from_pytorch(on_host: Backend) -> None:
    theirs = torch.ones(3)
    x = Tensor.from_dlpack(theirs)
    y = (x * x).sum()
    theirs[0] = 5.0
    x.changed_in_place()
    with pytest.raises(RuntimeError, match="was changed in place"):
        y.backward()


@pytest.mark.parametrize(
    "theirs",
    [torch.ones(3, dtype=torch.bfloat16), torch.ones(3, dtype=torch.complex64), torch.eye(3).to_sparse(),
     torch.ones(3, device="meta")],
)  # fmt: skip
def test_from_dlpack_of_unsupported_tensor_raises(backend: Backend, theirs: torch.Tensor) -> None:
    if is_torch(backend) and theirs.dtype == torch.bfloat16:
        pytest.skip("this backend has bfloat16")
    with pytest.raises(BufferError) as caught:
        Tensor.from_dlpack(theirs)
    said = str(caught.value)
    assert said.startswith(f"from_dlpack: backend {backend.name!r} cannot share this memory (torch.Tensor, torch.")
    assert ".float()" in said and ".detach()" in said


def test_from_dlpack_remedy_works(on_host: Backend) -> None:
    half = torch.tensor([1.0, 2.5], dtype=torch.bfloat16, requires_grad=True)
    assert_close(Tensor.from_dlpack(half.detach().float()), np.array([1.0, 2.5], "float32"))


@pytest.mark.parametrize("wrong", [[1.0], 2.0, None])
def test_from_dlpack_of_an_object_without_dlpack_raises(backend: Backend, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"^from_dlpack: a \w+ has no __dlpack__; copy it with Tensor\(data\)"):
        Tensor.from_dlpack(wrong)


def test_from_dlpack_of_host_memory_raises_on_cupy(backend: Backend) -> None:
    if backend.name != "cupy":
        pytest.skip("this backend uses host memory")
    for host in (torch.ones(3), np.ones(3)):
        with pytest.raises(BufferError, match=r"^from_dlpack: backend 'cupy' cannot share .*\.cuda\(\)"):
            Tensor.from_dlpack(host)
    assert_close(Tensor(torch.ones(3)), np.ones(3, "float32"))  # copying always works


# --- DataLoader


def test_dataloader_batches_of_ids_are_accepted(backend: Backend) -> None:
    model = small_model(**GPT)
    ids = torch.tensor([model.tokenizer.encode(TEXT[i : i + 9]) for i in range(8)])
    losses = []
    for inputs, targets in DataLoader(TensorDataset(ids[:, :-1], ids[:, 1:]), batch_size=4):
        loss = cross_entropy_loss(model(inputs), targets, model.tokenizer.pad_token_id)
        expected = cross_entropy_loss(model(inputs.numpy()), targets.numpy(), model.tokenizer.pad_token_id)
        assert loss.item() == expected.item()
        loss.backward()
        losses.append(loss.item())
    assert len(losses) == 2


def test_dataloader_batches_of_texts_are_accepted(backend: Backend) -> None:
    model = small_model(**GPT)
    texts: Any = ["the cat", "a", "sat", "the mat"]
    for i, batch in enumerate(DataLoader(texts, batch_size=2)):
        assert_close(model(batch), model(texts[2 * i : 2 * i + 2]))
        assert model.tokenizer.targets(batch) == model.tokenizer.targets(texts[2 * i : 2 * i + 2])
