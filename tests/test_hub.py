"""Folders of the Hugging Face hub: the same logits and texts as `transformers`, both ways, on every backend."""

import json
import logging
import math
import os
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from russellgrad import hub
from russellgrad.backend import Backend
from russellgrad.bpe import BPE
from russellgrad.checkpoint import load_model, save_model
from russellgrad.dtype import get_default_dtype, set_default_dtype
from russellgrad.encoding import CharacterEncoding
from russellgrad.hub import ARCHITECTURES, read_options
from russellgrad.hub_tokenizer import WITH_TOKENIZER, load_encoding
from russellgrad.loss import cross_entropy_loss
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer
from tests.helpers import TEXT, assert_close, hide_package, largest_differences, once
from train.config import Config, configure
from train.generate import generate
from train.train_transformer import train

safetensors = pytest.importorskip("safetensors")
tokenizers = pytest.importorskip("tokenizers")

PROMPT = "The 3th line"
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 24}
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
GPT2S: dict[str, dict[str, Any]] = {
    "default": {},
    "gelu": {"activation_function": "gelu", "layer_norm_epsilon": 1e-3},
    "relu": {"activation_function": "relu", "n_inner": 20, "n_head": 4},
    "untied": {"activation_function": "leaky_relu", "tie_word_embeddings": False, "n_layer": 1},
    "upcast": {"reorder_and_upcast_attn": True, "activation_function": "gelu_pytorch_tanh"},
}


@pytest.fixture(scope="module")
def hf() -> Iterator[Any]:
    """The package transformers, which takes seconds to import."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
        logging.getLogger("transformers").setLevel(logging.ERROR)
        transformers.utils.logging.disable_progress_bar()
        yield transformers


@pytest.fixture(scope="module")
def bpe() -> Any:
    """A byte-level BPE with GPT-2's special token, trained by `tokenizers`."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def randomised(model: Any, dtype: str = "float32") -> Any:
    """A torch model with random parameters, biases too, in evaluation mode."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.to(getattr(torch, dtype)).eval()


def gpt2(hf: Any, bpe: Any, dtype: str = "float32", **settings: Any) -> Any:
    options = {**SIZES, "vocab_size": bpe.get_vocab_size(), "bos_token_id": 0, "eos_token_id": None, **settings}
    return randomised(hf.GPT2LMHeadModel(hf.GPT2Config(**options)), dtype)


LLAMAS: dict[str, dict[str, Any]] = {
    "default": {},
    "grouped": {"num_key_value_heads": 2, "rms_norm_eps": 1e-3, "tie_word_embeddings": True},
    "biases": {"num_key_value_heads": 2, "attention_bias": True},
    "one": {"num_key_value_heads": 1, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 5},
    "mistral, no window": {"sliding_window": None, "num_key_value_heads": 4},
}


def llama(hf: Any, bpe: Any, kind: str = "default", dtype: str = "float32") -> Any:
    options = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
               "max_position_embeddings": 24, "vocab_size": bpe.get_vocab_size(), "bos_token_id": 0,
               "eos_token_id": None, **LLAMAS[kind]}  # fmt: skip
    if kind.startswith("mistral"):
        return randomised(hf.MistralForCausalLM(hf.MistralConfig(**options)), dtype)
    return randomised(hf.LlamaForCausalLM(hf.LlamaConfig(**options)), dtype)


def in_float64(model: Any) -> None:
    """Make a Llama compute norms and rotary angles in float64, which it does in float32 whatever its dtype."""

    def norm(self: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: torch.nn.functional.rms_norm(x, x.shape[-1:], self.weight, self.variance_epsilon)

    def angles(base: float, width: int) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
        def forward(x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
            both = (position_ids[..., None] * frequencies).repeat(1, 1, 2)
            return both.cos(), both.sin()

        return forward

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = norm(module)
    rope, config = model.model.rotary_emb, model.config
    rope.forward = angles(config.rope_parameters["rope_theta"], config.hidden_size // config.num_attention_heads)


@pytest.fixture
def folder(hf: Any, bpe: Any, tmp_path: Path) -> Path:
    """A GPT-2 as `transformers` writes it."""
    return written(gpt2(hf, bpe), bpe, tmp_path / "gpt2")


def written(model: Any, bpe: Any, path: Path, **options: Any) -> Path:
    model.save_pretrained(path, **options)
    bpe.save(str(path / "tokenizer.json"))
    return path


def change(path: Path, **settings: Any) -> None:
    """Change a JSON file; None removes an entry."""
    content = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def logits_of(model: Any, ids: list[list[int]]) -> Any:
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.numpy()


def check_logits(model: Transformer, reference: Any, ids: list[list[int]], dtype: str) -> None:
    """The logits of all classes but padding. The summary of the tests has the largest difference."""
    ours, theirs = model(ids).numpy()[..., :-1], logits_of(reference, ids)
    assert_close(ours, theirs, atol=TOLERANCE[dtype], what="logits")
    key, test = f"{dtype}, {type(reference).__name__}", os.environ["PYTEST_CURRENT_TEST"].split(" ")[0]
    found = (float(np.abs(ours - theirs).max()), test)
    largest_differences[key] = max(largest_differences.get(key, (-1.0, "")), found)


def check_same(model: Transformer, reference: Any, dtype: str) -> None:
    """The logits and the greedy text."""
    ids = np.random.default_rng(0).integers(0, model.tokenizer.vocab_size, (3, 20)).tolist()
    check_logits(model, reference, ids, dtype)
    assert model.generate(PROMPT, 10, temperature=0) == greedy(reference, model, PROMPT, 10)


def greedy(reference: Any, model: Transformer, prompt: str, n_new: int) -> str:
    """The prompt and the greedy text of `transformers`."""
    ids = torch.tensor([model.tokenizer.encode(prompt)])
    new = reference.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=n_new)
    return model.tokenizer.decode(new[0].tolist())


# --- Reading


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", GPT2S)
def test_gpt2_has_the_logits_and_the_text_of_transformers(
    backend: Backend, hf: Any, bpe: Any, tmp_path: Path, kind: str, dtype: str
) -> None:
    reference = gpt2(hf, bpe, dtype, **GPT2S[kind])
    model = Transformer.from_pretrained(written(reference, bpe, tmp_path / "model"))
    assert not model.training
    assert {p.dtype.name for p in model.parameters()} == {dtype}
    assert all(p.backend is backend for p in model.parameters())
    check_same(model, reference, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", LLAMAS)
def test_llama_has_the_logits_and_the_text_of_transformers(
    backend: Backend, hf: Any, bpe: Any, tmp_path: Path, kind: str, dtype: str
) -> None:
    reference = llama(hf, bpe, kind, dtype)
    if dtype == "float64":
        in_float64(reference)
    model = Transformer.from_pretrained(written(reference, bpe, tmp_path / "model"))
    assert {p.dtype.name for p in model.parameters()} == {dtype}
    check_same(model, reference, dtype)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_gradients_are_those_of_transformers(
    backend: Backend, hf: Any, bpe: Any, tmp_path: Path, architecture: str
) -> None:
    reference = gpt2(hf, bpe, "float64") if architecture == "gpt2" else llama(hf, bpe, "grouped", "float64")
    if architecture == "llama":
        in_float64(reference)
    model = Transformer.from_pretrained(written(reference, bpe, tmp_path / "model"))
    ids = np.random.default_rng(0).integers(0, model.tokenizer.vocab_size, (3, 20))
    loss = cross_entropy_loss(model(ids[:, :-1]), ids[:, 1:], model.tokenizer.pad_token_id)
    loss.backward()
    inputs, targets = torch.from_numpy(ids[:, :-1]), torch.from_numpy(ids[:, 1:])
    expected = torch.nn.functional.cross_entropy(reference(inputs).logits.flatten(0, 1), targets.flatten())
    expected.backward()
    assert_close(loss, expected, atol=1e-10)
    theirs = dict(reference.named_parameters())
    own = dict(model.named_parameters())
    for name, weight in ARCHITECTURES[architecture].weights(model).items():
        parts = [theirs[part].grad.numpy() for part in weight.names]
        gradient = np.concatenate([part.T if weight.transposed else part for part in parts], -1)
        found = model.tokenizer.token_embedding.backend.to_host(own[name].grad)
        assert_close(found[:-1] if weight.padding == 0 else found, gradient, atol=1e-10, what=name)


def test_the_class_of_padding_is_zero_and_never_generated(backend: Backend, folder: Path) -> None:
    model = Transformer.from_pretrained(folder)
    size = model.tokenizer.vocab_size
    assert model.tokenizer.pad_token_id == size
    assert not model.tokenizer.token_embedding.numpy()[size].any()
    assert not model([[1, 2, 3]]).numpy()[..., size].any()


def test_the_dtype_and_the_backend_may_be_given(hf: Any, folder: Path) -> None:
    model = Transformer.from_pretrained(folder, backend="numpy", dtype="float64")
    reference = hf.GPT2LMHeadModel.from_pretrained(folder).double()
    check_logits(model, reference, [[1, 2, 3]], "float64")
    with pytest.raises(ValueError, match=r"from_pretrained: dtype must be a float dtype of backend 'numpy', .*'int64'"):
        Transformer.from_pretrained(folder, backend="numpy", dtype="int64")


def test_the_default_dtype_does_not_matter(backend: Backend, folder: Path) -> None:
    expected, default = Transformer.from_pretrained(folder), get_default_dtype()
    try:
        for dtype in set(backend.float_dtypes()) - {"float16"}:
            set_default_dtype(dtype)
            check_equal(Transformer.from_pretrained(folder), expected)
    finally:
        set_default_dtype(default)


@once
@pytest.mark.parametrize("settings", [{}, {"n_inner": 32}])
def test_a_gpt2_of_the_hub_has_a_twin_in_pytorch(hf: Any, bpe: Any, tmp_path: Path, settings: dict[str, Any]) -> None:
    reference = gpt2(hf, bpe, **settings)
    model = Transformer.from_pretrained(written(reference, bpe, tmp_path / "gpt2"))
    again = Transformer.from_torch(
        model.to_torch_state_dict(), model.tokenizer, n_attn_heads=2, activation=model.config()["activation"]
    )
    check_same(again, reference, "float32")


@once
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_becomes_float32(hf: Any, bpe: Any, tmp_path: Path, dtype: str) -> None:
    reference = gpt2(hf, bpe, dtype)
    model = Transformer.from_pretrained(written(reference, bpe, tmp_path / "half"))
    check_same(model, reference.float(), "float32")


@once
def test_shards_are_read_as_one_file(hf: Any, bpe: Any, tmp_path: Path) -> None:
    reference = gpt2(hf, bpe)
    path = written(reference, bpe, tmp_path / "shards", max_shard_size="10KB")
    shards = sorted(path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert not (path / "model.safetensors").exists()
    check_same(Transformer.from_pretrained(path), reference, "float32")
    shards[1].unlink()
    with pytest.raises(FileNotFoundError, match=rf"shards lacks {shards[1].name}, which its model.safetensors.index"):
        Transformer.from_pretrained(path)
    change(path / "model.safetensors.index.json", weight_map={"transformer.wte.weight": "../model.safetensors"})
    with pytest.raises(ValueError, match=r"index.json names files that are not in its folder: \.\./model.safetensors"):
        Transformer.from_pretrained(path)
    change(path / "model.safetensors.index.json", weight_map=["a"])
    with pytest.raises(ValueError, match=r"index.json has no weight_map from the names of tensors to files"):
        Transformer.from_pretrained(path)


def rewrite(path: Path, changed: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the tensors of a folder's model.safetensors."""
    from safetensors.numpy import load_file, save_file

    save_file(changed(load_file(path / "model.safetensors")), path / "model.safetensors")


@once
def test_the_names_of_the_first_gpt2_files_are_read(hf: Any, folder: Path) -> None:
    """OpenAI's files on the hub have the names of the inner module, and masks among the weights."""

    def first(state: dict[str, Any]) -> dict[str, Any]:
        renamed = {name.removeprefix("transformer."): array for name, array in state.items()}
        masks = {f"h.{i}.attn.bias": np.tril(np.ones((1, 1, 24, 24), "float32")) for i in range(2)}
        return renamed | masks | {"h.0.attn.masked_bias": np.array(-1e4, "float32")}

    reference = hf.GPT2LMHeadModel.from_pretrained(folder)
    rewrite(folder, first)
    check_same(Transformer.from_pretrained(folder), reference, "float32")


@once
def test_tied_logits_may_be_stored(folder: Path) -> None:
    expected = Transformer.from_pretrained(folder).state_dict()
    rewrite(folder, lambda state: state | {"lm_head.weight": state["transformer.wte.weight"].copy()})
    for name, array in Transformer.from_pretrained(folder).state_dict().items():
        np.testing.assert_array_equal(array, expected[name])
    rewrite(folder, lambda state: state | {"lm_head.weight": 2 * state["transformer.wte.weight"]})
    with pytest.raises(ValueError, match=r"lm_head.weight differs from the token embedding, although tie_word"):
        Transformer.from_pretrained(folder)


@once
def test_reading_needs_the_model_and_one_tensor(hf: Any, bpe: Any, tmp_path: Path) -> None:
    """Peak memory; the largest tensor is that of the token embedding or of a feed-forward layer."""
    path = written(gpt2(hf, bpe, n_embd=128, n_layer=3), bpe, tmp_path / "wide")
    Transformer.from_pretrained(path)  # imports
    tracemalloc.start()
    model = Transformer.from_pretrained(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    n_bytes = [parameter.data.nbytes for parameter in model.parameters()]
    assert peak < sum(n_bytes) + 1.2 * max(n_bytes) + 3e5  # and the tokenizer


# --- Writing


def small(encoding: Any = None, **options: Any) -> Transformer:
    """A model with the options of a GPT-2 and random parameters, in float32."""
    encoding = encoding or CharacterEncoding("\n abcdé😀'.")
    size = encoding.vocab_size
    tokenizer = Tokenizer(size, 24, 16, size, encoding=encoding, seed=0)
    settings = {"activation": "gelu_tanh", "output_projection": True, "final_norm": True, **options}
    return random_weights(Transformer(tokenizer, 2, 4, seed=0, **settings))


def small_llama(**options: Any) -> Transformer:
    tokenizer = Tokenizer.from_text("\n abcdé😀'.", 24, 16, positional_encoding=False, seed=0)
    return random_weights(Transformer.llama(tokenizer, 2, 4, seed=0, **options))


def random_weights(model: Transformer) -> Transformer:
    model.astype("float32")
    generator = np.random.default_rng(2)
    for parameter in model.parameters():
        parameter.data = parameter.backend.asarray(generator.normal(0, 0.3, parameter.shape).astype("float32"))
    return model.eval()


@pytest.mark.parametrize(
    "options",
    [{}, {"attention_bias": True, "norm_eps": 1e-3}, {"activation": "leaky_relu", "ff_dim": 20, "dropout": 0.2},
     {"attention_dropout": 0.1}, {"activation": "gelu", "ff_scale_factor": 2, "tied": False}, {"activation": "relu"}],
)  # fmt: skip
def test_transformers_loads_what_is_saved(backend: Backend, hf: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    model = small(**options)
    path = model.save_pretrained(tmp_path / "new" / "folder")
    theirs = hf.AutoModelForCausalLM.from_pretrained(path).eval()
    text = "ab\n c é😀.d"
    ids = hf.AutoTokenizer.from_pretrained(path)([text])["input_ids"]
    assert ids == [model.tokenizer.encode(text)]
    check_logits(model, theirs, ids, "float32")
    assert model.generate(text, 8, temperature=0) == greedy(theirs, model, text, 8)
    assert theirs.config.resid_pdrop == options.get("dropout", 0.0)
    assert theirs.config.attn_pdrop == options.get("attention_dropout", 0.0)


@pytest.mark.parametrize(
    "options",
    [{}, {"n_kv_heads": 2, "ff_dim": 12, "norm_eps": 1e-3, "rope_base": 100.0, "tied": True},
     {"attention_bias": True, "n_kv_heads": 2}, {"window": 4, "n_kv_heads": 1}, {"attention_dropout": 0.1}],
)  # fmt: skip
def test_transformers_loads_a_llama(backend: Backend, hf: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    model = small_llama(**options)
    path = model.save_pretrained(tmp_path / "ours")
    theirs = hf.AutoModelForCausalLM.from_pretrained(path).eval()
    assert type(theirs).__name__ == ("MistralForCausalLM" if "window" in options else "LlamaForCausalLM")
    assert theirs.config.attention_dropout == options.get("attention_dropout", 0.0)
    text = "ab\n c é😀.d"
    ids = hf.AutoTokenizer.from_pretrained(path)([text])["input_ids"]
    check_logits(model, theirs, ids, "float32")
    theirs.save_pretrained(tmp_path / "theirs")
    hf.AutoTokenizer.from_pretrained(path).save_pretrained(tmp_path / "theirs")
    check_equal(Transformer.from_pretrained(tmp_path / "theirs"), model)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_round_trip_keeps_every_bit(backend: Backend, hf: Any, tmp_path: Path, dtype: str) -> None:
    model = small(attention_bias=True).astype(dtype)
    path = model.save_pretrained(tmp_path / "ours")
    again = tmp_path / "theirs"
    hf.AutoModelForCausalLM.from_pretrained(path).save_pretrained(again)
    hf.AutoTokenizer.from_pretrained(path).save_pretrained(again)
    back = Transformer.from_pretrained(again)
    assert back.tokenizer.vocabulary == model.tokenizer.vocabulary
    check_equal(back, model)


def check_equal(model: Transformer, expected: Transformer) -> None:
    """Equal bits, but in the entries for padding, which are 0."""
    state, other = model.state_dict(), expected.state_dict()
    assert list(state) == list(other)
    other["tokenizer.token_embedding"][-1] = 0
    if "output" in other:
        other["output"][:, -1] = 0
    for name, array in state.items():
        assert array.dtype == other[name].dtype
        np.testing.assert_array_equal(array, other[name], err_msg=name)


@once
def test_the_pipeline_of_transformers_generates(hf: Any, tmp_path: Path) -> None:
    model = small()
    pipeline = hf.pipeline("text-generation", model=str(model.save_pretrained(tmp_path)))
    (found,) = pipeline("ab", do_sample=False, max_new_tokens=6, pad_token_id=0)
    assert found["generated_text"] == model.generate("ab", 6, temperature=0)


@once
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_projection": False}, "gpt2, does not have output_projection=False; build the model with output_proj"),
        ({"output_projection": False, "final_norm": False},
         "does not have output_projection=False, final_norm=False; build the model with output_projection=True, final"),
        ({"norm": "rms_norm"}, "gpt2, does not have norm='rms_norm'; build the model with norm='layer_norm'"),
        ({"n_kv_heads": 2}, "gpt2, does not have n_kv_heads=2; build the model with n_kv_heads=None"),
    ],
)  # fmt: skip
def test_options_that_no_architecture_has_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options).save_pretrained(tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


@once
def test_options_that_llama_does_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="architecture of the hub, llama, does not have window=4; build the model with"
    ):
        small_llama(attention_bias=True, window=4).save_pretrained(tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


@once
def test_other_files_and_an_equal_tokenizer_are_kept(folder: Path) -> None:
    """A fine-tuned model may be written to the folder that it came from."""
    (folder / "README.md").write_text("mine")
    (folder / "tokenizer_config.json").write_text('{"chat_template": "mine"}')
    before = (folder / "tokenizer.json").read_bytes()
    config = json.loads((folder / "config.json").read_text())
    model = Transformer.from_pretrained(folder)
    model.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "mine"
    assert (folder / "tokenizer_config.json").read_text() == '{"chat_template": "mine"}'
    assert (folder / "tokenizer.json").read_bytes() == before
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == 0
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": [2, 0], "pad_token_id": 2}))
    model.save_pretrained(folder)
    again = json.loads((folder / "config.json").read_text())
    assert (again["eos_token_id"], again["pad_token_id"]) == ([2, 0], 2)
    (folder / "generation_config.json").unlink()
    small().save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["pad_token_id"] is None
    assert "mine" not in (folder / "tokenizer_config.json").read_text()
    assert Transformer.from_pretrained(folder).tokenizer.vocabulary == small().tokenizer.vocabulary


@once
@pytest.mark.parametrize("name", [*WITH_TOKENIZER, "model.safetensors.index.json"])
def test_files_of_another_model_are_not_mixed_with_the_new_one(tmp_path: Path, name: str) -> None:
    path, other = small().save_pretrained(tmp_path), small(CharacterEncoding("ab"))
    (path / name).write_text("mine")
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(
        FileExistsError,
        match=rf"save_pretrained: .* has {name}, which may belong to another model; .* or remove these files$",
    ):
        other.save_pretrained(path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    if name in WITH_TOKENIZER:  # they fit the tokenizer
        small(activation="relu").save_pretrained(path)
        assert (path / name).read_text() == "mine"
    (path / name).unlink()
    assert Transformer.from_pretrained(other.save_pretrained(path)).tokenizer.vocabulary == "ab"


@once
def test_the_model_of_a_run_is_not_replaced(tmp_path: Path) -> None:
    before = save_model(tmp_path / "model.safetensors", small()).read_bytes()
    with pytest.raises(FileExistsError, match=r"save_pretrained: .*model\.safetensors is a model of a training run"):
        small().save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "model.safetensors").write_bytes(before[:-1])  # damaged
    assert Transformer.from_pretrained(small().save_pretrained(tmp_path))


@once
def test_a_generation_config_of_another_model_would_be_read(hf: Any, tmp_path: Path) -> None:
    """Why `save_pretrained` refuses it: the new model would stop at the end token of the other one."""
    (small().save_pretrained(tmp_path) / "generation_config.json").write_text('{"eos_token_id": 3}')
    assert hf.AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id == 3


@once
@pytest.mark.parametrize("same_tokenizer", [True, False])
@pytest.mark.parametrize("n_calls", range(10))
def test_an_interrupted_write_leaves_the_earlier_model_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_calls: int, same_tokenizer: bool
) -> None:
    """Both models have the same shapes: one's weights with the other's settings would load."""
    earlier = small(activation="relu", norm_eps=0.1, attention_bias=True)
    encoding = earlier.tokenizer.encoding if same_tokenizer else CharacterEncoding("dcba \n\u00e9\U0001f600.'")
    model = small(encoding, attention_bias=True)
    for parameter in model.parameters():
        parameter.data = -parameter.data
    path, calls = earlier.save_pretrained(tmp_path / "model"), [0]

    def interrupted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls[0] += 1
            if calls[0] > n_calls:
                raise KeyboardInterrupt
            return function(*arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted(os.replace))
        for name in ("write_safetensors", "write_synced"):
            patch.setattr(hub, name, interrupted(getattr(hub, name)))
        with suppress(KeyboardInterrupt):
            model.save_pretrained(path)
    if (path / "config.json").exists():
        found = Transformer.from_pretrained(path)
        expected = model if calls[0] <= n_calls else earlier
        check_equal(found, expected)
        assert found.config() == expected.config()
        assert found.tokenizer.vocabulary == expected.tokenizer.vocabulary
    else:
        assert n_calls >= (3 if same_tokenizer else 5)  # all files are on the disk
        with pytest.raises(FileNotFoundError, match=r"has no config.json"):
            Transformer.from_pretrained(path)
    check_equal(Transformer.from_pretrained(model.save_pretrained(path)), model)
    assert sorted(file.name for file in path.iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    ]  # fmt: skip


@once
def test_a_disk_that_is_full_leaves_the_earlier_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small().save_pretrained(tmp_path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, "write_synced", full)
    with pytest.raises(OSError, match="No space left"):
        small(CharacterEncoding("ab")).save_pretrained(path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


@once
def test_settings_of_an_equal_tokenizer_are_written_if_they_are_missing(hf: Any, tmp_path: Path) -> None:
    path, text = small().save_pretrained(tmp_path), "ab\n c"
    (path / "tokenizer_config.json").unlink()
    theirs = hf.AutoTokenizer.from_pretrained(small().save_pretrained(path))
    assert theirs(text)["input_ids"] == small().tokenizer.encode(text)


@once
def test_parameters_of_several_dtypes_are_refused(tmp_path: Path) -> None:
    model = small()
    model.blocks[0].astype("float64")
    with pytest.raises(ValueError, match="save_pretrained: the parameters have the dtypes float32, float64; cast"):
        model.save_pretrained(tmp_path)


# --- Tokenizers


@once
def test_characters_are_encoded_and_decoded_as_ours(hf: Any, tmp_path: Path) -> None:
    vocabulary = (
        "".join(map(chr, range(9, 14))) + "".join(map(chr, range(32, 127))) + "éß😀\u200d\u0301\ufeff]^-\\"[:-4]
    )
    model = small(CharacterEncoding(vocabulary))
    theirs = hf.AutoTokenizer.from_pretrained(model.save_pretrained(tmp_path))
    generator = np.random.default_rng(0)
    for _ in range(20):
        text = "".join(generator.choice(list(vocabulary), 30))
        ids = theirs(text)["input_ids"]
        assert ids == model.tokenizer.encode(text)
        assert theirs.decode(ids) == text
    with pytest.raises(Exception, match="UNK"):  # as ours, it refuses other characters
        theirs("ab☃")


@once
def test_characters_that_are_skipped_are_skipped_by_transformers(hf: Any, tmp_path: Path) -> None:
    model = small(CharacterEncoding("ab]^-\\[\n", strict=False))
    path = model.save_pretrained(tmp_path / "ours")
    theirs = hf.AutoTokenizer.from_pretrained(path)
    text = "xa]b^\n-☃\\["
    assert theirs(text)["input_ids"] == model.tokenizer.encode(text) == [0, 2, 1, 3, 7, 4, 5, 6]
    assert Transformer.from_pretrained(path).tokenizer.strict is False


@once
def test_byte_pairs_of_ours_are_encoded_by_transformers(hf: Any, tmp_path: Path) -> None:
    encoding = BPE.train(TEXT, 290)
    model = small(encoding)
    path = model.save_pretrained(tmp_path / "ours")
    theirs = hf.AutoTokenizer.from_pretrained(path)
    text = "The 12th line,  é\n\n😀'll"
    assert theirs(text)["input_ids"] == model.tokenizer.encode(text)
    assert theirs.decode(theirs(text)["input_ids"]) == text
    theirs.save_pretrained(path)
    again = Transformer.from_pretrained(path).tokenizer.encoding
    assert isinstance(again, BPE)
    assert again.config() == encoding.config()


@once
def test_a_trained_tokenizer_is_written_again(hf: Any, folder: Path, tmp_path: Path) -> None:
    model = Transformer.from_pretrained(folder)
    theirs = hf.AutoTokenizer.from_pretrained(model.save_pretrained(tmp_path / "again"))
    text = "The 12th line<|endoftext|>é"
    assert theirs(text)["input_ids"] == model.tokenizer.encode(text)
    assert 0 in model.tokenizer.encode(text)
    assert (theirs.bos_token, theirs.eos_token) == ("<|endoftext|>", "<|endoftext|>")


@once
def test_vocab_and_merges_of_gpt2_are_read(hf: Any, bpe: Any, folder: Path) -> None:
    text = "The 12th line<|endoftext|>  é\n"
    (folder / "tokenizer.json").unlink()
    bpe.model.save(str(folder))
    model = Transformer.from_pretrained(folder)
    assert model.tokenizer.encode(text) == bpe.encode(text).ids
    assert model.tokenizer.encode(text) == hf.GPT2Tokenizer.from_pretrained(folder)(text)["input_ids"]
    assert model.tokenizer.decode(model.tokenizer.encode(text)) == text
    model.save_pretrained(folder.parent / "again")
    assert Transformer.from_pretrained(folder.parent / "again").tokenizer.encode(text) == bpe.encode(text).ids
    assert load_encoding(folder).encode(text) == bpe.encode(text).ids
    (folder / "added_tokens.json").write_text('{"<|a|>": 302, "<|b|>": 300, "<|c|>": 301}')
    text += "<|a|> a<|b|><|c|>"
    ids = load_encoding(folder).encode(text)
    assert ids == hf.GPT2Tokenizer.from_pretrained(folder)(text)["input_ids"] and {300, 301, 302} <= set(ids)
    for i in (5, 301):
        (folder / "added_tokens.json").write_text(f'{{"<|a|>": {i}}}')
        with pytest.raises(ValueError, match=rf"added_tokens.json: '<|a|>' has id {i}, but the next free id is 300;"):
            load_encoding(folder)


@once
def test_a_model_is_saved_into_its_own_folder(hf: Any, bpe: Any, folder: Path, tmp_path: Path) -> None:
    """Also if `transformers` wrote the tokenizer in another way, or if it is GPT-2's files."""
    hf.AutoTokenizer.from_pretrained(small().save_pretrained(tmp_path / "own")).save_pretrained(tmp_path / "own")
    (folder / "tokenizer.json").unlink()
    bpe.model.save(str(folder))
    for path in (tmp_path / "own", folder):
        (path / "generation_config.json").write_text("{}")
        model = Transformer.from_pretrained(path)
        assert Transformer.from_pretrained(model.save_pretrained(path)).tokenizer.encode(
            "ab"
        ) == model.tokenizer.encode("ab")


@once
def test_a_file_that_cannot_be_replaced_leaves_the_earlier_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier, replace = small(attention_bias=True), os.replace
    path = earlier.save_pretrained(tmp_path)
    (path / "config.json").chmod(0o600)

    def refused(source: Any, target: Any) -> None:
        if Path(target) == path / "model.safetensors":
            raise PermissionError("in use")
        replace(source, target)

    other = small(activation="relu", attention_bias=True)
    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(PermissionError, match="in use"):
        other.save_pretrained(path)
    monkeypatch.setattr(os, "replace", replace)
    assert Transformer.from_pretrained(path).config() == earlier.config()
    assert Transformer.from_pretrained(other.save_pretrained(path)).config() == other.config()
    assert (path / "config.json").stat().st_mode & 0o777 == 0o600
    assert len(list(path.iterdir())) == 4


@once
def test_a_model_may_have_more_tokens_than_its_tokenizer(hf: Any, bpe: Any, tmp_path: Path) -> None:
    """Vocabularies are often padded to a multiple of 64."""
    reference = gpt2(hf, bpe, vocab_size=320)
    model = Transformer.from_pretrained(written(reference, bpe, tmp_path / "padded"))
    assert model.tokenizer.vocab_size == 320
    check_same(model, reference, "float32")


# --- Training and the command lines


@once
def test_generate_takes_a_folder_of_the_hub(folder: Path) -> None:
    model = Transformer.from_pretrained(folder)
    assert "".join(generate(folder, [PROMPT], 8, temperature=0)) == model.generate(PROMPT, 8, temperature=0)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"from_pretrained: .*gpt2 has no model.safetensors"):
        list(generate(folder, [PROMPT], 8))


SETTINGS: dict[str, Any] = {"steps": 4, "batch": 2, "block": 12, "eval_interval": 2, "eval_blocks": 2, "warmup": 1,
                            "sample_tokens": 3, "dropout": 0.1, "attention_dropout": 0.1,
                            "learning_rate": 1e-3}  # fmt: skip


@once
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_run_starts_from_a_folder_and_resumes_without_it(
    hf: Any, bpe: Any, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    reference = gpt2(hf, bpe) if architecture == "gpt2" else llama(hf, bpe, "grouped")
    folder = written(reference, bpe, tmp_path / "model")
    whole = train(init_from=folder, dataset=text, out=tmp_path / "whole", **SETTINGS)
    assert whole.model.tokenizer.max_seq_len == 24
    assert (whole.config.layers, whole.config.width, whole.config.block) == (2, 16, 12)
    monkeypatch.setenv("RG_TRAIN_STEPS", "2")
    train(init_from=folder, dataset=text, out=tmp_path / "parts", **SETTINGS)
    monkeypatch.delenv("RG_TRAIN_STEPS")
    for file in folder.iterdir():
        file.unlink()
    rest = train(resume=str(tmp_path / "parts"))
    assert rest.losses == whole.losses[2:]
    for name, array in load_model(rest.path).state_dict().items():
        np.testing.assert_array_equal(array, whole.model.state_dict()[name])
    again = hf.AutoModelForCausalLM.from_pretrained(load_model(rest.path).save_pretrained(tmp_path / "tuned"))
    check_same(rest.model, again.eval(), "float32")


@once
def test_the_first_loss_of_a_run_is_that_of_transformers(hf: Any, bpe: Any, folder: Path, text: str) -> None:
    out = folder.parent / "run"
    settings = {**SETTINGS, "dropout": 0.0, "attention_dropout": 0.0, "steps": 1, "warmup": 0, "learning_rate": 1e-9,
                "eval_blocks": 0}  # fmt: skip
    result = train(init_from=folder, dataset=text, out=out, dtype="float64", **settings)
    ids = bpe.encode(TEXT).ids
    ids = ids[len(ids) * 9 // 10 :]
    blocks = torch.tensor([ids[i : i + 13] for i in range(0, len(ids) - 12, 12)])
    with torch.no_grad():
        expected = hf.GPT2LMHeadModel.from_pretrained(folder).double().eval()(blocks, labels=blocks).loss
    assert result.validations[-1].loss == pytest.approx(float(expected), abs=1e-6)


@once
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 3}, r"gpt2 sets layers to 2, got 3; leave it out"),
        ({"width": 32, "tokenizer": "bpe"}, r"gpt2 sets tokenizer to .*gpt2, width to 16, got bpe, 32; leave them out"),
        ({"activation": "gelu"}, r"sets activation to gelu_tanh, got gelu; leave it out"),
        ({"vocab": 300}, r"gpt2 sets vocab, got 300; leave it out"),
        ({"ff_scale": 3}, r"sets ff_scale to 4, got 3"),
        ({"preset": "shakespeare-cpu"}, r"sets layers to 2, heads to 2, width to 16, got 4, 4, 128; leave them out"),
        ({"block": 25}, r"block 25 is longer than the context of .*gpt2, 24 tokens; choose a smaller one"),
    ],
)  # fmt: skip
def test_settings_that_contradict_the_folder_are_refused(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configure(init_from=folder, **settings)
    same = configure(init_from=folder, layers=2, activation="gelu_tanh", block=24)
    assert (same.layers, same.heads, same.width, same.ff_scale, same.block) == (2, 2, 16, 4, 24)
    assert configure(init_from=folder).block == 24


@once
def test_a_config_with_other_sizes_than_the_folder_is_refused(folder: Path, text: str) -> None:
    config = Config(init_from=str(folder), tokenizer=str(folder), dataset=text, out=str(folder.parent / "run"), block=8)
    with pytest.raises(ValueError, match=r"has layers 2, heads 2, width 16, unlike the config; make the config with"):
        train(config)
    with pytest.raises(FileNotFoundError, match=r"from_pretrained: there is no folder .*nowhere"):
        configure(init_from=folder.parent / "nowhere")


# --- Bad input


@once
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "bert"}, r"config.json has model_type 'bert'; the library supports only gpt2, llama"),
        ({"model_type": None}, r"config.json has model_type 'None'; the library supports only gpt2"),
        ({"scale_attn_by_inverse_layer_idx": True}, r"has scale_attn_by_inverse_layer_idx=True, where .* only False"),
        ({"scale_attn_weights": False, "add_cross_attention": True},
         r"has scale_attn_weights=False, where .* only True; add_cross_attention=True, where"),
        ({"activation_function": "silu"}, r"has activation_function='silu', where .* only 'gelu_new', "),
        ({"quantization_config": {"bits": 4}}, r"has quantization_config=\{'bits': 4\}"),
        ({"n_head": None}, r"config.json: n_head must be a positive int, got None"),
        ({"n_layer": math.inf}, r"config.json: n_layer must be a positive int, got inf"),
        ({"layer_norm_epsilon": math.inf}, r"config.json: layer_norm_epsilon must be a positive float, got inf"),
        ({"n_layer": "2"}, r"config.json: n_layer must be a positive int, got '2'"),
        ({"layer_norm_epsilon": "small"}, r"config.json: layer_norm_epsilon must be a positive float, got 'small'"),
        ({"n_head": 3}, r"n_heads=3 does not divide hidden_size=16"),
        ({"n_inner": 20}, r"do not fit its config.json: transformer.h.0.mlp.c_fc.bias has shape \(64,\), expected "
         r"\(20,\); .*transformer.h.1.mlp.c_proj.weight has shape \(64, 16\), expected \(20, 16\)"),
        ({"n_layer": 3}, r"do not fit its config.json: missing transformer.h.2.ln_1.weight \(16,\); missing"),
        ({"n_layer": 1}, r"do not fit its config.json: unexpected transformer.h.1.attn.c_attn.bias \(48,\); unexp"),
        ({"vocab_size": 299}, r"tokenizer.json has 300 tokens, more than the vocab_size=299 of the model; use the"),
        ({"vocab_size": 301}, r"transformer.wte.weight has shape \(300, 16\), expected \(301, 16\)"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_named(folder: Path, settings: dict[str, Any], message: str) -> None:
    change(folder / "config.json", **settings)
    with pytest.raises(ValueError, match=message) as raised:
        Transformer.from_pretrained(folder)
    assert "\n" not in str(raised.value)


@once
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}},
         r"config.json has rotary positions of the type 'llama3', where .* only 'default', without scaling"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, r"of the type 'linear'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, r"of the type 'linear'"),  # beside rope_parameters
        ({"rope_parameters": {"rope_theta": -1}}, r"config.json: rope_theta must be a positive float, got -1"),
        ({"attention_bias": True}, r"missing model.layers.0.self_attn.q_proj.bias \(16,\); missing"),
        ({"mlp_bias": True}, r"has mlp_bias=True, where the library supports only False, None"),
        ({"hidden_act": "gelu"}, r"has hidden_act='gelu', where the library supports only 'silu'"),
        ({"head_dim": 8}, r"has head_dim=8, where the library supports only 4, None"),
        ({"num_key_value_heads": 3}, r"n_kv_heads=3 must divide n_heads=4"),
        ({"num_key_value_heads": 2}, r"self_attn.k_proj.weight has shape \(16, 16\), expected \(8, 16\)"),
    ],
)  # fmt: skip
def test_settings_of_llama_that_do_not_fit_are_named(
    hf: Any, bpe: Any, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    path = written(llama(hf, bpe), bpe, tmp_path / "llama")
    change(path / "config.json", **settings)
    with pytest.raises(ValueError, match=message) as raised:
        Transformer.from_pretrained(path)
    assert "\n" not in str(raised.value)


@once
def test_settings_of_old_llama_files_are_read(hf: Any, bpe: Any, tmp_path: Path) -> None:
    """transformers 4 wrote rope_theta, and frequencies among the weights."""
    reference = llama(hf, bpe, "one")
    path = written(reference, bpe, tmp_path / "llama")
    change(path / "config.json", rope_parameters=None, rope_theta=500.0, rope_scaling=None, head_dim=None)
    frequencies = np.ones(2, "float32")
    rewrite(path, lambda state: state | {"model.layers.0.self_attn.rotary_emb.inv_freq": frequencies})
    check_same(Transformer.from_pretrained(path), reference, "float32")


@once
def test_settings_that_a_mistral_leaves_out_have_its_defaults(hf: Any, bpe: Any, tmp_path: Path) -> None:
    path = written(llama(hf, bpe, "mistral"), bpe, tmp_path / "mistral")
    change(path / "config.json", sliding_window=None, num_key_value_heads=None)  # removed
    options, theirs = read_options(path), hf.AutoConfig.from_pretrained(path)
    assert (options["window"], options["n_kv_heads"]) == (theirs.sliding_window, theirs.num_key_value_heads)
    assert (theirs.sliding_window, theirs.num_key_value_heads) == (4096, 8)


@once
def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"from_pretrained: there is no folder .*nowhere; .*hf download"):
        Transformer.from_pretrained(tmp_path / "nowhere")
    (folder / "tokenizer.json").rename(folder / "hidden")
    with pytest.raises(FileNotFoundError, match=r"gpt2 has neither tokenizer.json nor vocab.json and merges.txt; "):
        Transformer.from_pretrained(folder)
    (folder / "tokenizer.model").touch()
    with pytest.raises(FileNotFoundError, match=r"merges.txt; convert tokenizer.model with transformers"):
        Transformer.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"gpt2 has no model.safetensors; download it from the hub"):
        Transformer.from_pretrained(folder)
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(FileNotFoundError, match=r"no model.safetensors; convert pytorch_model.bin with transformers"):
        Transformer.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"gpt2 has no config.json"):
        Transformer.from_pretrained(folder)


@once
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", r"config.json is not JSON: "),
        ("config.json", b"[]", r"config.json must contain a JSON object, got a list"),
        ("config.json", b"\xff\xfe{", r"config.json is not JSON: "),
        ("tokenizer.json", b"{}", r"tokenizer.json is not a tokenizer: "),
        ("tokenizer.json", b'{"model": {"type": "WordLevel"}}', r"tokenizer.json is not a tokenizer: "),
        ("model.safetensors", b"", r"model.safetensors is not a complete safetensors file: "),
    ],
)
def test_damaged_files_are_named(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Transformer.from_pretrained(folder)


@once
def test_a_truncated_file_is_refused(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    for length in (4, 100, len(content) // 2, len(content) - 1):
        (folder / "model.safetensors").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"model.safetensors is not a complete safetensors file: "):
            Transformer.from_pretrained(folder)


@once
def test_weights_of_integers_are_refused(folder: Path) -> None:
    rewrite(folder, lambda state: state | {"transformer.ln_f.bias": np.zeros(16, "int64")})
    with pytest.raises(ValueError, match=r"transformer.ln_f.bias has dtype I64; weights must be F64, F32, BF16, F16"):
        Transformer.from_pretrained(folder)


@once
def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_package(monkeypatch, "tokenizers")
    with pytest.raises(ImportError, match=r"needs the package tokenizers; pip install \"russellgrad\[hub\]\""):
        Transformer.from_pretrained(folder)
    hide_package(monkeypatch, "safetensors")
    with pytest.raises(ImportError, match=r"from_pretrained: needs the package safetensors"):
        Transformer.from_pretrained(folder)
