"""Saving a model to a safetensors file and loading it."""

import builtins
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from russellgrad.backend import Backend, get_backend
from russellgrad.checkpoint import load_model, save_model
from russellgrad.random import default_generator
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer

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
    "options", [{}, {"activation": "gelu", "output_projection": True, "final_norm": True, "dropout": 0.1}]
)
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
    real_import = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("safetensors"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r'load_model: .* pip install "russellgrad\[train\]"'):
        load_model(path)
    with pytest.raises(ImportError, match=r'save_model: .* pip install "russellgrad\[train\]"'):
        save_model(path, small_model())
