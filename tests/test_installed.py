"""A checkout and an installed package each import their own files, and training works from any folder."""

import importlib
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.helpers import TEXT, once
from tests.process import ROOT, output_of, run_python
from tests.test_train import SMALL, flags

pytestmark = once

MODULES = ("russellgrad", "russellgrad.backends.numpy_backend", "russellgrad.train.progress")
WHERE = (
    f"import {', '.join(MODULES)}, os; print(*map(os.path.realpath, [{', '.join(f'{m}.__file__' for m in MODULES)}]))"
)
IGNORED = shutil.ignore_patterns("__pycache__")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with the files of an installed package, as the wheel has them."""
    folder = tmp_path.resolve() / "installed"
    shutil.copytree(ROOT / "russellgrad", folder / "russellgrad", ignore=IGNORED)
    for name in ("backends", "train"):
        shutil.copytree(ROOT / name, folder / "russellgrad" / name, ignore=IGNORED, dirs_exist_ok=True)
    return folder


def test_a_checkout_and_an_installation_each_import_their_own_files(installed: Path, tmp_path: Path) -> None:
    checkout = tmp_path.resolve() / "checkout"
    for name in ("russellgrad", "backends", "train"):
        shutil.copytree(ROOT / name, checkout / name, ignore=IGNORED)
    shutil.copy(ROOT / "pyproject.toml", checkout)

    found = output_of(WHERE, cwd=checkout, PYTHONPATH=str(installed)).split()
    files = "russellgrad/__init__.py", "backends/numpy_backend.py", "train/progress.py"
    assert found == [str(checkout / name) for name in files]
    found = output_of(WHERE, cwd=tmp_path, PYTHONPATH=str(installed)).split()
    files = "__init__.py", "backends/numpy_backend.py", "train/progress.py"
    assert found == [str(installed / "russellgrad" / name) for name in files]


def test_both_names_of_a_checkout_are_one_package() -> None:
    assert importlib.import_module("train") is importlib.import_module("russellgrad.train")
    for path in (ROOT / "train").glob("[a-z]*.py"):
        one, other = (importlib.import_module(f"{package}.{path.stem}") for package in ("train", "russellgrad.train"))
        assert one is other


def test_an_installed_package_trains_from_any_folder(installed: Path, tmp_path: Path) -> None:
    """It shows the commands that work there, and leaves the name `train` to the user's own files."""
    pytest.importorskip("safetensors")
    work = tmp_path / "work"
    work.mkdir()
    (work / "train.py").write_text("raise AssertionError", encoding="utf-8")
    (work / "notes.txt").write_text(TEXT, encoding="utf-8")
    environment = {"PYTHONPATH": str(installed)}
    for name, *arguments in (
        ("train_transformer", *flags(**SMALL, dataset="notes.txt", optimizer="lion")),
        ("report", "runs/notes", "--no-png"),
        ("explore", "runs/notes"),
        ("generate", "runs/notes", "--tokens", "5"),
    ):
        done = run_python("-m", f"russellgrad.train.{name}", *arguments, cwd=work, **environment)
        assert (done.returncode, done.stderr) == (0, "")
    written = {path.name for path in (work / "runs/notes").iterdir()}
    assert {"model.safetensors", "metrics.jsonl", "report.html", "explore.html"} <= written

    done = run_python("-m", "russellgrad.train.generate", "nowhere", cwd=work, **environment)
    message = "there is no file nowhere/model.safetensors; python -m russellgrad.train.train_transformer trains a model"
    assert message in done.stderr


def test_a_script_of_a_checkout_runs_from_any_folder(tmp_path: Path) -> None:
    script = str(ROOT / "train/generate.py")
    done = run_python(script, "nowhere", cwd=tmp_path)
    assert f"python {ROOT / 'train/train_transformer.py'} trains a model" in done.stderr


@pytest.mark.parametrize("runner", [("-m", "cProfile"), ("-m", "trace", "--listfuncs"), ("-P",)])
def test_a_script_runs_in_other_programs(runner: tuple[str, ...]) -> None:
    """Profilers and debuggers, which run a file with names of their own: cProfile sets __spec__, trace does not."""
    done = run_python(*runner, str(ROOT / "train/generate.py"), "--help")
    assert "usage: generate.py" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("-m", "train.generate"), ("-mtrain.generate",)])
def test_the_module_of_a_checkout_runs_by_its_short_name(arguments: tuple[str, ...]) -> None:
    done = run_python("-W", "error", *arguments, "nowhere")
    assert done.stderr.startswith("generate.py: error: there is no file")
    code = "import sys, train.data; sys.argv[1:] = ['x']; print(train.data.__name__, 'train.generate' in sys.modules)"
    assert output_of(code) == "russellgrad.train.data True"


@pytest.mark.skipif(os.name != "posix", reason="other systems do not delete the current folder of a process")
def test_the_command_of_a_script_is_known_without_a_current_folder(tmp_path: Path) -> None:
    code = "from russellgrad.train.progress import command; import os; os.rmdir(os.getcwd()); print(command('report'))"
    assert output_of(code, cwd=tmp_path, PYTHONPATH=str(ROOT)) == f"python {ROOT / 'train/report.py'}"


def test_nothing_imports_a_package_named_train() -> None:
    """In an installed package there is none, or it is the user's."""
    code = "import russellgrad.train.train_transformer, russellgrad.train.report, sys; print('train' in sys.modules)"
    assert output_of(code) == "False"
    assert sys.modules["train"] is sys.modules["russellgrad.train"]
