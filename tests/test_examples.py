"""The examples run, and train the model of the command line."""

import math
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from russellgrad import get_default_dtype, set_default_dtype, use_backend
from tests.helpers import TEXT
from tests.process import ROOT, run_python
from train.config import Config
from train.train_transformer import build_model, build_optimizer

pytestmark = pytest.mark.skipif(
    os.environ.get("RG_BACKEND", "numpy") != "numpy", reason="the example does not depend on the backend"
)


def test_gpt_example_matches_the_command_line(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpt.py", text, "--steps", "6"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    default = get_default_dtype()
    try:
        with use_backend("numpy"):
            script = runpy.run_path(str(ROOT / "examples/gpt.py"), run_name="__main__")
            config = Config(steps=6)
            model = build_model(config, TEXT)
            optimizer = build_optimizer(config, model)
    finally:
        set_default_dtype(default)

    found = script["model"]
    assert found.config() == model.config()
    assert found.tokenizer.vocabulary == model.tokenizer.vocabulary
    shapes = {name: (array.shape, str(array.dtype)) for name, array in model.state_dict().items()}
    assert {name: (array.shape, str(array.dtype)) for name, array in found.state_dict().items()} == shapes
    for ours, theirs in zip(script["optimizer"].groups, optimizer.groups, strict=True):
        assert [p.shape for p in ours["params"]] == [p.shape for p in theirs["params"]]
        assert {**ours, "params": None} == {**theirs, "params": None}
    for step in range(6):
        assert script["schedule"](step) == optimizer.lr_schedule(step)

    output = capsys.readouterr().out
    steps = re.findall(r"^step +(\d+): loss (\d\.\d{4}), validation loss (\d\.\d{4})$", output, re.MULTILINE)
    assert [int(step) for step, _, _ in steps] == [0, 5]
    (_, first, first_validation), (_, last, validation) = steps
    for loss in (first, first_validation):  # initially nearly uniform, and both before the step
        assert float(loss) == pytest.approx(math.log(len(set(TEXT))), abs=0.1)
    assert max(float(last), float(validation)) < float(first) - 0.3
    sample = output.split("\n", 2)[2]
    assert len(sample) == 1 + 500 + 1  # the prompt, the new characters, the newline of print
    assert set(sample) <= set(TEXT)


def test_gpt_example_reports_a_missing_file(tmp_path: Path) -> None:
    """The script runs from any folder and exits with an error."""
    done = run_python(str(ROOT / "examples/gpt.py"), "input.txt", cwd=tmp_path)
    assert done.returncode == 2
    assert "gpt.py: error: there is no file input.txt" in done.stderr


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (b"", [], "input.txt is too short: it has 0 characters and needs 650"),
        (b"a" * 649, [], "input.txt is too short: it has 649 characters and needs 650"),
        (b"\xff\xfe", [], "input.txt is not a UTF-8 text: 'utf-8' codec can't decode byte 0xff in position 0"),
        (b"a" * 650, ["--steps", "0"], "--steps must be positive, got 0"),
    ],
)
def test_gpt_example_reports_a_text_that_it_cannot_use(
    tmp_path: Path, content: bytes, arguments: list[str], message: str
) -> None:
    (tmp_path / "input.txt").write_bytes(content)
    done = run_python(str(ROOT / "examples/gpt.py"), "input.txt", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert f"gpt.py: error: {message}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs a shell, and /dev/full")
@pytest.mark.parametrize("redirection", ["| head -c 1", ">/dev/full", ">&-"])
def test_gpt_example_does_not_die_of_its_output(tmp_path: Path, redirection: str) -> None:
    (tmp_path / "input.txt").write_text("ab" * 325)
    command = [sys.executable, str(ROOT / "examples/gpt.py"), "input.txt", "--steps", "2"]
    shell = ["sh", "-c", f'{{ "$@"; echo "$?" >status; }} {redirection}', "sh", *command]
    done = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (tmp_path / "status").read_text() == "0\n", done.stderr
    full = "standard output is discarded from now on: [Errno 28] No space left on device\n"
    assert done.stderr == (full if redirection == ">/dev/full" else "")


def test_gpt_example_escapes_control_characters(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text("a\x1b[" * 220)
    done = run_python(str(ROOT / "examples/gpt.py"), "input.txt", "--steps", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\\x1b" in done.stdout and "\x1b" not in done.stdout


def test_gpt_example_trains_on_the_shortest_text(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text("ab" * 325)  # without a newline
    done = run_python(str(ROOT / "examples/gpt.py"), "input.txt", "--steps", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.match(r"step    0: loss \d\.\d{4}, validation loss \d\.\d{4}\na[ab]{500}\n$", done.stdout)
