"""Examples in the documents run and print the output shown; their commands, options, links and files exist."""

import contextlib
import importlib
import io
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import russellgrad
from russellgrad import Tensor, conformance, use_backend
from russellgrad.backend import CORE, DERIVED, OPTIONAL
from russellgrad.loss import cross_entropy_loss
from russellgrad.optimizer import AdamWOptimizer
from russellgrad.random import manual_seed
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer
from tests.process import ROOT, run_python
from train.config import FIXED_ON_RESUME

DOCUMENTS = [
    "README.md",
    "docs/backends.md",
    "docs/benchmarks.md",
    "docs/code.md",
    "docs/coming_from.md",
    "docs/examples.md",
    "docs/layers.md",
    "docs/own_op.md",
    "docs/own_optimizer.md",
    "docs/own_backend.md",
    "docs/second_derivatives.md",
    "docs/cuda.md",
    "docs/generation.md",
    "docs/torch.md",
    "docs/hub.md",
    "docs/llama.md",
    "docs/trace.md",
    "docs/training.md",
    "docs/notebooks.md",
    "docs/distributed.md",
    "docs/report.md",
    "docs/explore.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "benchmarks/README.md",
]
BACKEND_FILE = "mypackage/minimal_backend.py"  # in docs/own_backend.md
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def document_text(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str | None = None) -> list[tuple[str, str]]:
    found = BLOCK.findall(document_text(document))
    return [(kind, text) for kind, text in found if language in (None, kind)]


@pytest.mark.skipif(os.environ.get("RG_BACKEND", "numpy") != "numpy", reason="the documents show NumPy's output")
@pytest.mark.parametrize("document", [d for d in DOCUMENTS if blocks(d, "python")])
def test_python_blocks_print_the_documented_output(
    document: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Run the Python blocks in order, in one namespace. A text block is the expected output of the block before it.

    A block whose first line is a comment with a path is written to that file.
    """
    manual_seed(0)  # as in a new process
    monkeypatch.setenv("RG_TRAIN_STEPS", "2")
    monkeypatch.chdir(tmp_path)  # training writes to the current folder
    monkeypatch.syspath_prepend(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for kind, text in blocks(document):
        if kind == "python" and (file := re.match(r"# ([\w/]+\.py)\n", text)):
            path = tmp_path / file[1]
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif kind == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(text, document, "exec"), namespace)
            printed = output.getvalue()
        elif kind == "text":
            assert printed == text


@pytest.mark.skipif(os.environ.get("RG_BACKEND", "numpy") != "numpy", reason="the documented backend uses NumPy")
def test_documented_backend_has_only_core_names_and_passes_conformance(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It also trains the transformer with the losses of the NumPy backend."""
    (source,) = [text for _, text in blocks("docs/own_backend.md", "python") if text.startswith(f"# {BACKEND_FILE}")]
    (tmp_path / "documented_backend.py").write_text(source.replace('"minimal"', '"documented"'), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("documented_backend")
    assert not set(CORE) - set(vars(module))
    assert not {*DERIVED, *OPTIONAL} & set(vars(module))
    report = conformance.check(module)
    assert report.passed, str(report)
    assert losses(module) == pytest.approx(losses("numpy"), rel=0, abs=1e-10)


def losses(backend: Any) -> list[float]:
    """The losses of ten training steps of a small transformer."""
    manual_seed(0)
    with use_backend(backend):
        tokenizer = Tokenizer.from_text("to be or not to be", max_seq_len=8, embed_dim=16, seed=1)
        model = Transformer(tokenizer, n_layers=1, n_attn_heads=2, activation="gelu", dropout=0.1, seed=1)
        optimizer = AdamWOptimizer(model.parameters(), lr=1e-2)
        texts = ["to be or", "not to b"]
        found = []
        for _ in range(10):
            loss = cross_entropy_loss(model(texts), tokenizer.targets(texts), tokenizer.pad_token_id)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(max_norm=1.0)
            found.append(loss.item())
    assert found[-1] < found[0]
    return found


def test_documented_op_matches_the_code() -> None:
    """docs/own_op.md shows the lines of one op and the parts of a derived one, each with the name of its file."""
    shown = re.findall(r"^\| .*?`([\w/]+\.\w+)`.* \| `(.+)` \|$", document_text("docs/own_op.md"), re.MULTILINE)
    assert len(shown) == 8
    parts = quoted("docs/own_op.md")
    assert len(parts) == 3
    for file, lines in [*shown, *parts]:
        assert lines in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no line {lines}"


def quoted(document: str) -> list[tuple[str, str]]:
    """The parts of the `py` blocks, which are quotations: (file, lines). A comment with the file begins each part."""
    parts = [part for _, text in blocks(document, "py") for part in text.rstrip().split("\n\n")]
    return [(heading.removeprefix("# "), lines) for heading, lines in (part.split("\n", 1) for part in parts)]


def test_quoted_lines_of_second_derivatives_match_the_code() -> None:
    parts = quoted("docs/second_derivatives.md")
    assert len(parts) == 3
    for file, lines in parts:
        assert f"{lines}\n" in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no line {lines}"


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # of PyTorch itself, in jvp
def test_pytorch_names_in_the_table_match_the_names_here() -> None:
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=(2, 3, 4)), "weight": rng.normal(size=(5, 4)), "mask": np.tri(3, dtype=bool)}
    theirs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    ours = {name: Tensor(array, backend="numpy") for name, array in arrays.items()}
    rows = re.findall(r"^\| `(.+)` \| `(.+)` \|$", document_text("docs/torch.md").split("## From")[0], re.MULTILINE)
    assert len(rows) == 43
    for pytorch, here in rows:
        wanted = eval(pytorch, {"torch": torch, "F": torch.nn.functional, **theirs})
        got = eval(here, {**vars(russellgrad), **ours}).numpy()
        np.testing.assert_allclose(got, wanted.numpy(), rtol=0, atol=1e-12, err_msg=here)
        assert got.dtype == wanted.numpy().dtype


def test_every_environment_variable_is_documented() -> None:
    """docs/backends.md has a table of them."""
    sources = [
        path for folder in ("russellgrad", "backends", "train", "tests") for path in (ROOT / folder).rglob("*.py")
    ]
    read = {
        name
        for path in sources
        for name in re.findall(r'environ(?:\.get\(|\[)"(RG_\w+)"', path.read_text(encoding="utf-8"))
    }
    assert set(re.findall(r"^\| `(RG_\w+)`", document_text("docs/backends.md"), re.MULTILINE)) == read


def test_options_fixed_on_resume_are_documented() -> None:
    (sentence,) = re.findall(
        r"These cannot change: (.*?), and the text\.", document_text("docs/training.md"), re.DOTALL
    )
    options = [name.replace("-", "_") for name in re.findall(r"`--([\w-]+)`", sentence)]
    assert options == list(FIXED_ON_RESUME)


def test_readme_is_short() -> None:
    assert len(document_text("README.md").split()) <= 900


def test_every_file_is_on_the_map() -> None:
    text = document_text("docs/code.md")
    for folder in ("backends", "russellgrad", "train", "examples"):
        for path in (ROOT / folder).glob("*.*"):
            if path.suffix in (".py", ".cu") and path.name != "__init__.py":
                assert re.search(rf"\b{path.stem}(\.\w+ )?{path.suffix}\b", text), f"{path} is not on the map"


def test_links_between_documents_are_valid() -> None:
    for document in DOCUMENTS:
        for link in re.findall(r"\]\((?!https?://)([^)#]*)#?[^)]*\)", document_text(document)):
            assert (ROOT / document).parent.joinpath(link).exists(), f"{document} links to {link}"


def shell_lines() -> list[str]:
    """The commands in shell blocks, and the commands in the text that name a file of train/."""
    lines = [line for document in DOCUMENTS for _, text in blocks(document, "shell") for line in text.splitlines()]
    lines += [
        code for document in DOCUMENTS for code in re.findall(r"`([^`\n]*train/[^`\n]*)`", document_text(document))
    ]
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


@pytest.mark.parametrize(
    "script", ["train/train_transformer.py", "train/generate.py", "train/report.py", "train/explore.py"]
)
def test_options_named_in_the_documents_exist(script: str) -> None:
    commands = [line for line in shell_lines() if script in line]
    assert commands, f"no document shows {script}"
    shown = run_python(script, "--help")
    assert shown.returncode == 0, shown.stderr
    for command in commands:
        for option in re.findall(r"(?<=\s)--[\w-]+", command.split(script)[1]):
            assert option in shown.stdout, f"{script} has no option {option}, named in: {command}"


def test_extras_named_in_the_documents_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for document in DOCUMENTS:
        for name in re.findall(r"(?:russellgrad|\.)\[(\w+)\]", document_text(document)):
            assert name in extras


def test_files_named_in_the_documents_exist() -> None:
    for document in DOCUMENTS:
        text = document_text(document)
        for name in re.findall(r"\b((?:russellgrad|backends|train|tests|docs|benchmarks)/[\w/]+\.\w+)", text):
            assert (ROOT / name).exists(), f"{document} names {name}"
