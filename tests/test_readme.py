"""The documents' examples run as written and print what they say; their commands name what exists."""

import contextlib
import io
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from russellgrad.random import manual_seed
from tests.process import ROOT, run_python

DOCUMENTS = [
    "README.md",
    "docs/own_op.md",
    "docs/own_backend.md",
    "docs/cuda.md",
    "docs/generation.md",
    "docs/torch.md",
    "docs/training.md",
    "docs/distributed.md",
    "docs/report.md",
    "CONTRIBUTING.md",
]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document: str, language: str | None = None) -> list[tuple[str, str]]:
    found = BLOCK.findall((ROOT / document).read_text(encoding="utf-8"))
    return [(kind, text) for kind, text in found if language in (None, kind)]


@pytest.mark.skipif(os.environ.get("RG_BACKEND", "numpy") != "numpy", reason="the documents show NumPy's output")
@pytest.mark.parametrize("document", [d for d in DOCUMENTS if blocks(d, "python")])
def test_python_blocks_run_and_print_what_is_shown(
    document: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In order and in one namespace, as a reader would; a text block after one is its output."""
    manual_seed(0)  # as in a new process
    monkeypatch.setenv("RG_TRAIN_STEPS", "2")
    monkeypatch.chdir(tmp_path)  # where training writes
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for kind, text in blocks(document):
        if kind == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(text, document, "exec"), namespace)
            printed = output.getvalue()
        elif kind == "text":
            assert printed == text


def shell_lines() -> list[str]:
    lines = [line for document in DOCUMENTS for _, text in blocks(document, "shell") for line in text.splitlines()]
    return [part for line in lines for part in re.split(r"\s*&&\s*", line.split("#")[0].strip()) if part]


def test_nox_sessions_named_in_the_documents_exist() -> None:
    noxfile = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    defined = set(re.findall(r'@nox\.session\(name="([\w-]+)"', noxfile))
    defined |= set(re.findall(r"@nox\.session\n\w*\s*def (\w+)", noxfile))
    named: set[str] = set()
    for line in shell_lines():
        if match := re.search(r"\bnox -s ((?:[\w-]+ ?)+)", line):
            named |= set(match[1].split(" -- ")[0].split())
    assert named - {"--"} <= defined
    assert {"tests-numpy", "tests-cupy"} <= named


@pytest.mark.parametrize("script", ["train/train_transformer.py", "train/generate.py", "train/report.py"])
def test_options_named_in_the_documents_exist(script: str) -> None:
    commands = [line for line in shell_lines() if script in line]
    assert commands, f"no document shows {script}"
    shown = run_python(script, "--help")
    assert shown.returncode == 0, shown.stderr
    for command in commands:
        for option in re.findall(r"(?<=\s)--[\w-]+", command.split(script)[1]):
            assert option in shown.stdout, f"{option}, as in {command}"


def test_extras_named_in_the_documents_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for document in DOCUMENTS:
        for name in re.findall(r"(?:russellgrad|\.)\[(\w+)\]", (ROOT / document).read_text(encoding="utf-8")):
            assert name in extras


def test_files_named_in_the_documents_exist() -> None:
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for name in re.findall(r"\b((?:russellgrad|backends|train|tests|docs|benchmarks)/[\w/]+\.\w+)", text):
            assert (ROOT / name).exists(), f"{document} names {name}"
