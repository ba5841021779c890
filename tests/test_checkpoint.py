"""Saving a model to a safetensors file and loading it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from russellgrad import Module, Tensor, get_default_dtype, set_default_dtype
from russellgrad.backend import Backend, get_backend
from russellgrad.checkpoint import load_model, save_model, upgrade_state
from russellgrad.loss import cross_entropy_loss
from russellgrad.optimizer import AdamWOptimizer
from russellgrad.random import default_generator
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer
from tests.helpers import hide_package
from train import checkpoints

safetensors_numpy = pytest.importorskip("safetensors.numpy")
from safetensors import safe_open  # noqa: E402


def small_model(seed: int = 0, **options: Any) -> Transformer:
    return Transformer(Tokenizer.from_text("hello, w\u00f6rld\n", 8, 16, seed=seed), 2, 4, seed=seed, **options)


def rewritten(path: Path, **changes: Any) -> Path:
    """Rewrite the file with metadata or parameters replaced, or removed if the new value is None."""
    with safe_open(path, framework="numpy") as file:
        header, state = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, value in changes.items():
        where = header if name in header else state
        where.pop(name, None)
        if value is not None:
            where[name] = value
    safetensors_numpy.save_file(state, path, header)
    return path


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "options",
    [{}, {"activation": "gelu", "output_projection": True, "final_norm": True, "dropout": 0.1},
     {"attention_bias": True, "output_projection": True}],
)  # fmt: skip
def test_save_and_load_preserve_every_bit(
    backend: Backend, tmp_path: Path, dtype: str, options: dict[str, Any]
) -> None:
    model = small_model(**options).astype(dtype)
    path = save_model(tmp_path / "model.safetensors", model, notes={"steps": 3})
    loaded = load_model(path)
    assert loaded.config() == model.config()
    assert loaded.tokenizer.vocabulary == model.tokenizer.vocabulary
    assert (loaded.tokenizer.max_seq_len, loaded.tokenizer.embed_dim) == (8, 16)
    assert not loaded.training
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    for name, array in loaded.state_dict().items():
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, state[name], strict=True)
    assert all(p.backend is get_backend() and p.requires_grad for p in loaded.parameters())
    assert np.array_equal(loaded(["hello"]).numpy(), model.eval()(["hello"]).numpy())


def test_load_model_uses_the_given_backend(backend: Backend, tmp_path: Path) -> None:
    path = save_model(tmp_path / "model.safetensors", small_model())
    assert all(p.backend.name == "numpy" for p in load_model(path, "numpy").parameters())


def test_the_strict_option_of_the_tokenizer_is_saved(backend: Backend, tmp_path: Path) -> None:
    model = Transformer(Tokenizer.from_text("ab", 8, 16, strict=False), 1, 2)
    assert load_model(save_model(tmp_path / "m.safetensors", model)).tokenizer.encode("a?b") == [0, 1]


def test_notes_are_saved_in_the_metadata(tmp_path: Path) -> None:
    path = save_model(tmp_path / "model.safetensors", small_model(), notes={"steps": 3})
    with safe_open(path, framework="numpy") as file:
        header = file.metadata()
    assert header["format"] == "russellgrad-transformer"
    assert json.loads(header["config"])["notes"] == {"steps": 3}


def test_load_model_does_not_advance_the_default_generator(tmp_path: Path) -> None:
    path = save_model(tmp_path / "model.safetensors", small_model())
    before = default_generator().counter
    load_model(path)
    assert default_generator().counter == before


# --- What is saved loads; what would not load is not saved


def check_round_trip(path: Path, model: Transformer) -> Transformer:
    """Save and load, and check that configuration and tokenizer are equal, and parameters, widened to float32, too."""
    loaded = load_model(save_model(path, model))
    assert loaded.config() == model.config()
    for name in ("vocabulary", "max_seq_len", "embed_dim", "strict"):
        assert getattr(loaded.tokenizer, name) == getattr(model.tokenizer, name)
    state = model.state_dict()
    for name, array in loaded.state_dict().items():
        assert np.array_equal(array, state[name].astype(array.dtype))
    return loaded


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_saved_as_float32(backend: Backend, tmp_path: Path, dtype: str) -> None:
    if dtype not in backend.float_dtypes():
        pytest.skip(f"{backend.name} has no {dtype}")
    loaded = check_round_trip(tmp_path / "m.safetensors", small_model().astype(dtype))
    assert {str(p.dtype) for p in loaded.parameters()} == {"float32"}
    mixed = small_model().astype("float32")
    mixed.blocks[0].astype(dtype)
    check_round_trip(tmp_path / "m.safetensors", mixed)


def test_frozen_parameters_are_saved(backend: Backend, tmp_path: Path) -> None:
    """A frozen parameter is a buffer. The loaded model's are parameters again."""
    model = small_model()
    for parameter in model.blocks[0].parameters():
        parameter.requires_grad = False
    loaded = check_round_trip(tmp_path / "m.safetensors", model)
    assert len(loaded.parameters()) == len(model.state_dict()) and not loaded.buffers()


@pytest.mark.parametrize(
    "vocabulary",
    ["\0\n\r\x7f\"'\\\\", "\u2028\ufeff\ufffe\uffff", "\U0001f600\u0301e", "a\udc80\udcff", "\ud83d"],
    ids=ascii,
)
def test_any_vocabulary_is_saved(backend: Backend, tmp_path: Path, vocabulary: str) -> None:
    vocabulary = "".join(dict.fromkeys(vocabulary))
    check_round_trip(tmp_path / "m.safetensors", Transformer(Tokenizer.from_text(vocabulary, 8, 16), 1, 2))


def test_numpy_scalars_as_options_and_notes_are_saved(backend: Backend, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_text("ab", np.int64(8), np.int32(16), strict=np.False_)  # type: ignore[arg-type]
    options: dict[str, Any] = {"output_projection": np.True_, "dropout": np.float32(0.5), "ff_scale_factor": np.int8(3)}
    model = Transformer(tokenizer, np.int64(1), np.int64(2), **options)  # type: ignore[arg-type]
    check_round_trip(tmp_path / "m.safetensors", model)
    save_model(tmp_path / "m.safetensors", model, notes={"loss": np.float32(0.5), "steps": np.int64(3)})
    with safe_open(tmp_path / "m.safetensors", framework="numpy") as file:
        assert json.loads(file.metadata()["config"])["notes"] == {"loss": 0.5, "steps": 3}


def test_the_default_dtype_and_backend_do_not_matter(backend: Backend, tmp_path: Path) -> None:
    """Saving and loading need neither, and do not change them."""
    model = small_model().astype("float32")
    default = get_default_dtype()
    set_default_dtype("bfloat16")
    try:
        check_round_trip(tmp_path / "m.safetensors", model)
        assert get_default_dtype() == "bfloat16" and get_backend() is backend
    finally:
        set_default_dtype(default)


class Larger(Transformer):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.head = Tensor(np.ones(2))


class Configured(Transformer):
    def config(self) -> dict[str, Any]:
        return {**super().config(), "heads": 3}


class Renamed(Transformer):
    """The parameters are those of a Transformer."""


def changed(**changes: Any) -> Transformer:
    """A model with other attributes; `__` stands for the dot."""
    model = small_model(final_norm=True)
    for path, value in changes.items():
        *inside, name = path.split("__")
        owner: Any = model
        for attribute in inside:
            owner = owner[int(attribute)] if attribute.isdigit() else getattr(owner, attribute)
        setattr(owner, name, value)
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Larger(Tokenizer.from_text("ab", 8, 16), 2, 4), "a Transformer of its config.* unexpected head"),
        (lambda: Configured(Tokenizer.from_text("ab", 8, 16), 2, 4), "unexpected keyword argument 'heads'"),
        (lambda: changed(mean=Tensor([1.0], requires_grad=False)), "unexpected mean"),
        (lambda: changed(extra={"a": Tensor([1.0])}), "unexpected extra.a"),
        (lambda: changed(blocks=small_model().blocks[:1]), "missing blocks.1.attention_norm.gamma"),
        (lambda: changed(final_norm=None), "missing final_norm.gamma; missing final_norm.beta"),
        (lambda: changed(blocks__0__attention__w_out=Tensor([1.0])), "unexpected blocks.0.attention.w_out"),
        (lambda: changed(blocks__0__feed_forward__b_in=Tensor([1.0])), r"b_in has shape \(1,\), expected \(64,\)"),
        (lambda: changed(final_norm__beta=Tensor(np.zeros(16, "float32"))), "dtype float32, float64; a model has"),
        (lambda: changed(final_norm__beta=Tensor(np.zeros(16, int))), "dtype float64, int64; a model has"),
        (lambda: Transformer(Tokenizer.from_text("a\ud83d\ude00", 8, 16), 1, 2), "JSON joins surrogates in its vocab"),
    ],
)
def test_a_model_that_would_not_load_is_not_saved(
    backend: Backend, tmp_path: Path, build: Callable[[], Transformer], message: str
) -> None:
    path = save_model(tmp_path / "model.safetensors", small_model())
    old = path.read_bytes()
    with pytest.raises(ValueError, match=f"^save_model: load_model could not load this model: .*{message}"):
        save_model(path, build())
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == [path.name]


def test_a_shared_layer_is_not_saved(backend: Backend, tmp_path: Path) -> None:
    model = small_model()
    model.blocks[1].attention = model.blocks[0].attention
    with pytest.raises(ValueError, match=r"missing blocks\.1\.attention\.w_qkv"):
        save_model(tmp_path / "model.safetensors", model)
    assert not os.listdir(tmp_path)


def test_other_names_of_parameters_are_not_saved(backend: Backend, tmp_path: Path) -> None:
    model = small_model()
    model.first, model.table = model.blocks[0], model.tokenizer.token_embedding  # type: ignore[attr-defined]
    assert "table" in model.state_dict()
    check_round_trip(tmp_path / "model.safetensors", model)


def test_a_subclass_with_the_same_parameters_loads_as_a_transformer(backend: Backend, tmp_path: Path) -> None:
    model = Renamed(Tokenizer.from_text("ab", 8, 16), 2, 4)
    assert type(check_round_trip(tmp_path / "m.safetensors", model)) is Transformer


@pytest.mark.parametrize("notes", [{"x": 1j}, {"x": {1, 2}}, {"x": np.ones(2)}, {"x": Path("a")}])
def test_notes_that_json_cannot_represent_raise(tmp_path: Path, notes: dict[str, Any]) -> None:
    path = save_model(tmp_path / "model.safetensors", small_model())
    old = path.read_bytes()
    with pytest.raises(TypeError, match=r"^save_model: JSON cannot represent the notes: a .*; leave it out"):
        save_model(path, small_model(seed=1), notes=notes)
    assert path.read_bytes() == old


def test_save_model_names_what_it_needs(backend: Backend, tmp_path: Path) -> None:
    path, model = tmp_path / "m.safetensors", small_model()
    for wrong in (Module(), model.state_dict(), None):
        with pytest.raises(TypeError, match=r"^save_model: needs a Transformer, got a "):
            save_model(path, wrong)  # type: ignore[arg-type]
    for notes in ([1], "text", 3):
        with pytest.raises(TypeError, match=r"^save_model: the notes must be a dict, got a "):
            save_model(path, model, notes=notes)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^save_model: JSON cannot represent the notes: keys must be str"):
        save_model(path, model, notes={(1, 2): 3})  # type: ignore[dict-item]
    assert not path.exists()


# --- Atomic writes


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_model(tmp_path / "model.safetensors", small_model(seed=1))
    old = path.read_bytes()

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            save_model(path, small_model(seed=2))
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == [path.name]


def test_the_new_file_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(fd: int) -> None:
        done.append("fsync")
        fsync(fd)

    def recorded_replace(source: Path, target: Path) -> None:
        done.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    save_model(tmp_path / "model.safetensors", small_model())
    assert done == (["fsync", "replace", "fsync"] if os.name == "posix" else ["fsync", "replace"])


def test_saving_to_a_missing_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save_model(tmp_path / "nowhere" / "model.safetensors", small_model())


# --- Invalid files


def test_loading_a_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize("kept", [0, 5, 100, 2000, -1])
def test_loading_a_truncated_file_raises(tmp_path: Path, kept: int) -> None:
    path = save_model(tmp_path / "model.safetensors", small_model())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model.safetensors is not a complete safetensors file"):
        load_model(path)


def test_loading_a_file_of_another_program_raises(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    safetensors_numpy.save_file({"x": np.zeros(3)}, path)
    with pytest.raises(ValueError, match="was not written by save_model"):
        load_model(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "99"}, "has format version '99', this release reads '1' and '2'"),
        ({"version": None}, "has format version None"),
        ({"config": None}, "its metadata lacks 'config'"),
        ({"config": "{"}, "does not contain a complete model"),
        ({"config": "{}"}, "its metadata lacks 'tokenizer'"),
        ({"tokenizer.token_embedding": None}, "missing tokenizer.token_embedding"),
        ({"extra": np.zeros(2)}, "unexpected extra"),
        ({"tokenizer.token_embedding": np.zeros((2, 2))}, "has shape"),
        ({"tokenizer.token_embedding": np.zeros((12, 16), np.float16)}, "dtype float16, float64"),
    ],
)
def test_loading_a_damaged_file_raises(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = rewritten(save_model(tmp_path / "model.safetensors", small_model().astype("float64")), **changes)
    with pytest.raises(ValueError, match=message):
        load_model(path)


def test_without_safetensors_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_model(tmp_path / "model.safetensors", small_model())
    hide_package(monkeypatch, "safetensors")
    with pytest.raises(ImportError, match=r'load_model: .* pip install "russellgrad\[train\]"'):
        load_model(path)
    with pytest.raises(ImportError, match=r'save_model: .* pip install "russellgrad\[train\]"'):
        save_model(path, small_model())


def test_upgrade_state_merges_queries_keys_and_values() -> None:
    parts = [np.full((2, 2), i) for i in range(3)]
    old = dict(zip(("b.attention.w_q", "b.attention.w_k", "b.attention.w_v"), parts, strict=True))
    new = upgrade_state({**old, "b.attention.w_out": parts[0]})
    assert set(new) == {"b.attention.w_qkv", "b.attention.w_out"}
    np.testing.assert_array_equal(new["b.attention.w_qkv"], np.concatenate(parts, axis=1))
    assert upgrade_state(dict.fromkeys(old, 3)) == {"b.attention.w_qkv": 3}


def test_upgrade_state_leaves_other_states_unchanged() -> None:
    for state in ({"b.attention.w_q": 1}, {"w_q": 1, "w_k": 1, "w_v": 1}, {"b.attention.w_qkv": 1}):
        assert upgrade_state(state) == state
    with pytest.raises(ValueError, match=r"upgrade_state: b\.attention\.w_q, .* have the numbers \[1, 2, 1\]"):
        upgrade_state({"b.attention.w_q": 1, "b.attention.w_k": 2, "b.attention.w_v": 1})


def test_a_checkpoint_of_a_run_keeps_frozen_parameters(tmp_path: Path) -> None:
    """An optimizer may have a parameter that was frozen later, and its state."""
    model, restored = small_model(seed=1), small_model(seed=2)
    optimizers = [AdamWOptimizer(m.parameters(), 0.1) for m in (model, restored)]
    cross_entropy_loss(model(["hello"]), model.tokenizer.targets(["hello"]), model.tokenizer.pad_token_id).backward()
    optimizers[0].step()
    for m in (model, restored):
        m.blocks[0].attention.w_qkv.requires_grad = False
    checkpoints.save(tmp_path, 1, model, optimizers[0], {})
    checkpoints.find(tmp_path).restore(restored, optimizers[1])
    state = restored.state_dict()
    assert all(np.array_equal(array, state[name]) for name, array in model.state_dict().items())
    own, other = (optimizer.state_dict()["state"] for optimizer in optimizers)
    assert all(np.array_equal(a["m"], b["m"]) for a, b in zip(own, other, strict=True))
    fresh = small_model(seed=3)
    fresh.blocks[0].attention.w_qkv.requires_grad = False
    before = fresh.state_dict()
    with pytest.raises(ValueError, match=r"attention\.w_qkv, which this optimizer does not train; give it all"):
        checkpoints.find(tmp_path).restore(fresh, AdamWOptimizer(fresh.parameters(), 0.1))
    assert all(np.array_equal(array, fresh.state_dict()[name]) for name, array in before.items())
