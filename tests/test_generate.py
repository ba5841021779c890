"""train/generate.py: text from a saved model."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from russellgrad.backend import Backend
from russellgrad.checkpoint import save_model
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer
from tests.process import run_python, running
from train.generate import SEPARATOR, generate, parse

pytest.importorskip("safetensors")


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    model = Transformer(Tokenizer.from_text("abcdef \n", 8, 16, seed=0), 1, 2, seed=0)
    for parameter in model.parameters():
        parameter.data = parameter.data * 20  # far from uniform probabilities, so that sampling settings matter
    return save_model(tmp_path / "model.safetensors", model)


def text_of(path: Path, prompt: str = "abc", tokens: int = 40, **options: Any) -> str:
    return "".join(generate(path, [prompt], tokens, **options))


def test_the_same_seed_gives_the_same_text(backend: Backend, model_file: Path) -> None:
    text = text_of(model_file, seed=3)
    assert text.startswith("abc")
    assert len(text) == 43  # far more than the context of 8 characters
    assert set(text) <= set("abcdef \n")
    assert text_of(model_file, seed=3) == text
    assert text_of(model_file, temperature=2.0, seed=4) != text


def test_greedy_text_is_the_same_for_any_seed(backend: Backend, model_file: Path) -> None:
    greedy = text_of(model_file, temperature=0)
    assert greedy == text_of(model_file, temperature=0, seed=9)
    assert greedy == text_of(model_file, temperature=5.0, top_k=1, seed=5)
    assert greedy == text_of(model_file, temperature=5.0, top_p=1e-9, seed=5)


def test_stop_string_ends_the_text(backend: Backend, model_file: Path) -> None:
    text = text_of(model_file, temperature=2.0)
    assert text_of(model_file, temperature=2.0, stop=text[10:12]) == text[: text.index(text[10:12], 3)]


def test_the_default_prompt_is_a_newline_or_the_first_character(model_file: Path, tmp_path: Path) -> None:
    assert next(generate(model_file, tokens=3)) == "\n"
    no_lines = Transformer(Tokenizer.from_text("abc", 8, 16, seed=0), 1, 2, seed=0)
    assert next(generate(save_model(tmp_path / "no-lines.safetensors", no_lines), tokens=3)) == "a"


def test_several_prompts_and_samples(model_file: Path) -> None:
    pieces = list(generate(model_file, ["ab", "fed"], 20, num_samples=2, temperature=2.0))
    texts = "".join(pieces).split(SEPARATOR)
    assert [text[:2] for text in texts] == ["ab", "ab", "fe", "fe"]
    assert [len(text) for text in texts] == [22, 22, 23, 23]
    assert texts[0] != texts[1]
    assert texts[0] == text_of(model_file, "ab", 20, temperature=2.0)
    assert pieces[:21] == ["ab", *texts[0][2:]]  # the first text is streamed by character


def test_command_line_options_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    line = ["m.safetensors", "--prompt", "A", "--tokens", "7", "--temperature", "0.5", "--top-k", "4", "--seed", "2"]
    line += ["--prompt", "B", "--num-samples", "3", "--top-p", "0.9", "--stop", "\n"]
    expected = {
        "model": "m.safetensors", "prompt": ["A", "B"], "num_samples": 3, "tokens": 7, "temperature": 0.5, "top_k": 4,
        "top_p": 0.9, "stop": "\n", "seed": 2,
    }  # fmt: skip
    assert vars(parse(line)) == expected
    monkeypatch.setattr(sys, "argv", ["generate.py", *line])
    assert vars(parse()) == expected


def test_command_line_prints_the_text(model_file: Path) -> None:
    """Every command-line option is passed on to `generate`."""
    line = ["--prompt", "ab", "--prompt", "fed", "--num-samples", "2", "--tokens", "9", "--temperature", "1.5"]
    line += ["--top-k", "5", "--top-p", "0.95", "--stop", "f", "--seed", "3"]
    run = run_python("train/generate.py", str(model_file), *line)
    assert run.returncode == 0, run.stderr
    settings: dict[str, Any] = {"temperature": 1.5, "top_k": 5, "top_p": 0.95, "stop": "f", "seed": 3}
    assert run.stdout == "".join(generate(model_file, ["ab", "fed"], 9, num_samples=2, **settings)) + "\n"


def test_text_is_printed_while_it_is_generated(model_file: Path) -> None:
    """The first read returns a few characters long before the end of the text; then the process is killed."""
    command = [sys.executable, "train/generate.py", str(model_file), "--prompt", "abc", "--tokens", "1000000"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RG_", "PYTHON"))}
    with running(*command, env=environment, bufsize=0) as process:
        assert process.stdout is not None
        begun = process.stdout.read(100_000)
    assert begun.startswith(b"abc")
    assert len(begun) < 4096


def test_help_lists_all_options() -> None:
    run = run_python("train/generate.py", "--help")
    assert run.returncode == 0, run.stderr
    for option in (
        "model",
        "--prompt",
        "--tokens",
        "--temperature",
        "--top-k",
        "--top-p",
        "--stop",
        "--num-samples",
        "--seed",
    ):
        assert option in run.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "xyz"], "error: --prompt: character 'x' at position 0 is not in the vocabulary"),
        (["--prompt", "xyz"], " of the model; use characters of the text that it was trained on"),
        (["--tokens", "-1"], "needs --tokens >= 0, got -1"),
        (["--top-k", "0"], "needs --top-k >= 1, got 0"),
        (["--prompt", ""], "the prompt is empty"),
        (["--stop", ""], "the stop string is empty"),
        (["--num-samples", "0"], "needs --num-samples >= 1, got 0"),
        (["--top-p", "2"], "needs --top-p in (0, 1], got 2.0"),
        (["--temperature", "-1"], "needs --temperature >= 0, got -1.0"),
    ],
)
def test_errors_are_one_line(model_file: Path, arguments: list[str], message: str) -> None:
    run = run_python("train/generate.py", str(model_file), *arguments)
    assert run.returncode == 1
    assert message in run.stderr
    assert "Traceback" not in run.stderr


def test_a_missing_file_is_a_one_line_error() -> None:
    run = run_python("train/generate.py", "nowhere.safetensors")
    assert run.returncode == 1
    assert "generate.py: error: there is no file nowhere.safetensors; python train/train_tr" in run.stderr


def test_a_missing_model_file_names_the_model_of_the_last_earlier_run(model_file: Path) -> None:
    run = model_file.parent
    for name in ("earlier-2", "earlier-10", "earlier-11", "earlier-x"):
        (run / name).mkdir()
    for name in ("earlier-2", "earlier-x", "earlier-10"):
        (run / name / "model.safetensors").write_bytes(model_file.read_bytes())
    model_file.unlink()
    for path in (run, model_file):
        with pytest.raises(
            FileNotFoundError, match=f"there is no file {model_file}.*; the model of an .* is in .*-10$"
        ):
            next(generate(path))
    assert next(generate(run / "earlier-10", ["a"], 5)) == "a"
    with pytest.raises(FileNotFoundError, match=r"there is no file \S*none/model.safetensors; \S+\.train\(\) trains"):
        next(generate(run / "none"))
    (run / "empty").mkdir()
    missing = r"no file \S*empty/model.safetensors, and no config.json of a Hugging Face model; \S+\.train\(\) trains"
    with pytest.raises(FileNotFoundError, match=missing):
        next(generate(run / "empty"))


def test_a_folder_stands_for_its_model_file(model_file: Path) -> None:
    assert list(generate(model_file.parent, ["a"], 5)) == list(generate(model_file, ["a"], 5))


def test_a_closed_output_pipe_is_not_an_error(model_file: Path) -> None:
    """The reader closes the pipe early, as `| head -c 1` does."""
    command = [sys.executable, "train/generate.py", str(model_file), "--tokens", "3000"]
    with running(*command, env={**os.environ, "RG_BACKEND": "numpy"}) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == b""
