"""Text from a trained model's file."""

import sys
from pathlib import Path

import pytest

from russellgrad.backend import Backend
from russellgrad.checkpoint import save_model
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer
from tests.process import run_python
from train.generate import generate, parse

pytest.importorskip("safetensors")


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    model = Transformer(Tokenizer.from_text("abcdef \n", 8, 16, seed=0), 1, 2, seed=0)
    for parameter in model.parameters():
        parameter.data = parameter.data * 20  # far from even odds, so that the settings show
    return save_model(tmp_path / "model.safetensors", model)


def test_same_seed_same_text(backend: Backend, model_file: Path) -> None:
    text = generate(model_file, "abc", 40, seed=3)
    assert text.startswith("abc")
    assert len(text) == 43  # far past the 8 characters the model sees
    assert set(text) <= set("abcdef \n")
    assert generate(model_file, "abc", 40, seed=3) == text
    assert generate(model_file, "abc", 40, temperature=2.0, seed=4) != text


def test_greedy_text_is_the_same_for_any_seed(backend: Backend, model_file: Path) -> None:
    greedy = generate(model_file, "abc", 20, temperature=0)
    assert greedy == generate(model_file, "abc", 20, temperature=0, seed=9)
    assert greedy == generate(model_file, "abc", 20, temperature=5.0, top_k=1, seed=5)


def test_without_a_prompt(model_file: Path, tmp_path: Path) -> None:
    assert generate(model_file, tokens=3)[0] == "\n"
    no_lines = Transformer(Tokenizer.from_text("abc", 8, 16, seed=0), 1, 2, seed=0)
    assert generate(save_model(tmp_path / "no-lines.safetensors", no_lines), tokens=3)[0] == "a"


def test_options(monkeypatch: pytest.MonkeyPatch) -> None:
    line = ["m.safetensors", "--prompt", "A", "--tokens", "7", "--temperature", "0.5", "--top-k", "4", "--seed", "2"]
    expected = {"model": "m.safetensors", "prompt": "A", "tokens": 7, "temperature": 0.5, "top_k": 4, "seed": 2}
    assert vars(parse(line)) == expected
    monkeypatch.setattr(sys, "argv", ["generate.py", *line])
    assert vars(parse()) == expected


def test_help_is_complete() -> None:
    run = run_python("train/generate.py", "--help")
    assert run.returncode == 0, run.stderr
    for option in ("model", "--prompt", "--tokens", "--temperature", "--top-k", "--seed"):
        assert option in run.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "xyz"], "character 'x' at position 0 is not in the vocabulary"),
        (["--tokens", "-1"], "max_new_tokens >= 0"),
        (["--top-k", "0"], "top_k >= 1"),
    ],
)
def test_errors_are_one_line(model_file: Path, arguments: list[str], message: str) -> None:
    run = run_python("train/generate.py", str(model_file), *arguments)
    assert run.returncode == 1
    assert message in run.stderr
    assert "Traceback" not in run.stderr


def test_no_such_file() -> None:
    run = run_python("train/generate.py", "nowhere.safetensors")
    assert run.returncode == 1
    assert "generate.py: error: load_model: there is no file nowhere.safetensors" in run.stderr
