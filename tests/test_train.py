"""The training script: reproducible losses, configuration, errors, output and the command line."""

import re
import shutil
import signal
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from russellgrad import get_matmul_precision, set_matmul_precision, use_backend
from russellgrad.backend import Backend
from russellgrad.checkpoint import load_model
from tests.helpers import TEXT
from tests.process import run_python
from train import train_transformer
from train.config import OPTIMIZERS, Config, configure, parse
from train.generate import generate
from train.metrics import read_metrics
from train.optimizers import build_optimizer, build_schedule
from train.progress import Progress, format_duration
from train.train_transformer import Result, build_model, train

pytest.importorskip("safetensors")

SMALL: dict[str, Any] = {
    "layers": 1, "heads": 2, "width": 16, "block": 8, "batch": 4, "steps": 6, "eval_interval": 4, "eval_blocks": 5,
    "sample_tokens": 5, "warmup": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_step_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RG_TRAIN_STEPS", raising=False)


def small(text: str, out: Path, **options: Any) -> Result:
    return train(dataset=text, out=str(out), **{**SMALL, **options})


def test_repr_of_a_result_is_short(backend: Backend, text: str, tmp_path: Path) -> None:
    result = small(text, tmp_path)
    _, loss, blocks = result.validations[-1]
    shown = re.fullmatch(r"Result\((.*), \d+:\d\d, model in (.*)\)", repr(result))
    assert shown is not None
    assert shown.groups() == (
        f"{result.steps} steps, validation loss {loss:.4f} over {blocks} blocks", str(tmp_path / "model.safetensors")
    )  # fmt: skip
    stopped = repr(replace(result, signal=signal.SIGINT, validations=[]))
    assert stopped.startswith(f"Result({result.steps} steps, stopped by SIGINT, ")


# --- Reduced precision


def test_bfloat16_losses_are_close_to_float32(backend: Backend, text: str, tmp_path: Path) -> None:
    """The losses are close to those of float32; the saved model has float32 parameters and can be loaded."""
    if "bfloat16" not in backend.float_dtypes():
        with pytest.raises(
            ValueError, match=f"dtype bfloat16: backend '{backend.name}' does not compute in it; use float32 or float64"
        ):
            small(text, tmp_path, dtype="bfloat16")
        return
    options: dict[str, Any] = {"steps": 12, "learning_rate": 1e-2, "width": 32, "activation": "gelu"}
    half, single = small(text, tmp_path, dtype="bfloat16", **options), small(text, tmp_path, **options)
    assert {str(p.dtype) for p in half.model.parameters()} == {"bfloat16"}
    np.testing.assert_allclose(half.losses, single.losses, rtol=0, atol=0.03)
    assert half.losses != single.losses
    assert half.losses[-1] < half.losses[0] - 0.3
    again = small(text, tmp_path, dtype="bfloat16", **options)
    assert again.losses == half.losses
    assert {str(p.dtype) for p in load_model(again.path).parameters()} == {"float32"}


def test_matmul_precision_keeps_losses_within_tolerance(backend: Backend, text: str, tmp_path: Path) -> None:
    width = 64  # cuBLAS computes smaller products in float32
    losses = {
        level: small(text, tmp_path, matmul_precision=level, width=width, block=width, steps=3).losses
        for level in ("medium", "high", "highest")
    }
    for level, atol in {"medium": 0.01, "high": 0.003}.items():
        np.testing.assert_allclose(losses[level], losses["highest"], rtol=0, atol=atol)
    if backend.name == "cupy":
        assert losses["highest"] not in (losses["medium"], losses["high"])
    with pytest.raises(ValueError, match="matmul_precision must be one of highest, high, medium, got 'low'"):
        small(text, tmp_path, matmul_precision="low")


def test_matmul_precision_is_restored_after_the_run(backend: Backend, text: str, tmp_path: Path) -> None:
    set_matmul_precision("high")
    try:
        small(text, tmp_path, matmul_precision="medium")
        assert get_matmul_precision() == "high"
    finally:
        set_matmul_precision("highest")


# --- Reproducibility


def test_same_seed_gives_the_same_losses(backend: Backend, text: str, tmp_path: Path) -> None:
    first, again = (small(text, tmp_path, dropout=0.1, layers=2) for _ in range(2))
    assert first.losses == again.losses
    assert first.validation_losses == again.validation_losses
    assert small(text, tmp_path, dropout=0.1, layers=2, seed=1).losses != first.losses


def test_evaluation_interval_does_not_change_the_losses(backend: Backend, text: str, tmp_path: Path) -> None:
    often = small(text, tmp_path, eval_interval=1, sample_tokens=3, dropout=0.1)
    assert often.losses == small(text, tmp_path, eval_interval=100, sample_tokens=0, dropout=0.1).losses


def test_default_dtype_does_not_change_the_losses(
    backend: Backend, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = small(text, tmp_path).losses
    monkeypatch.setattr("russellgrad.dtype._default", "float32")
    assert small(text, tmp_path).losses == losses


def test_losses_match_numpy(backend: Backend, text: str, tmp_path: Path) -> None:
    options = {"dtype": "float64", "steps": 50, "layers": 2, "dropout": 0.1}
    here = small(text, tmp_path, **options)
    with use_backend("numpy"):
        reference = small(text, tmp_path, **options)
    assert len(here.losses) == 50
    np.testing.assert_allclose(here.losses, reference.losses, rtol=0, atol=1e-10)
    np.testing.assert_allclose(
        [loss for _, loss in here.validation_losses],
        [loss for _, loss in reference.validation_losses],
        rtol=0,
        atol=1e-10,
    )


# --- Results of a run


def test_run_learns_and_saves_its_model(backend: Backend, text: str, tmp_path: Path) -> None:
    result = small(text, tmp_path / "new" / "folder", steps=150, eval_interval=75, learning_rate=1e-2)
    assert len(result.losses) == 150
    # Before training, all characters are equally likely.
    assert result.losses[0] == pytest.approx(np.log(len(set(TEXT))), abs=0.1)
    assert result.losses[-1] < 0.7 * result.losses[0]
    assert [step for step, _ in result.validation_losses] == [75, 150]
    assert result.path == tmp_path / "new" / "folder" / "model.safetensors"
    assert result.signal is None
    assert result.tokens_per_second > 0
    kept = load_model(result.path).state_dict()
    for name, array in result.model.state_dict().items():
        np.testing.assert_array_equal(array, kept[name], strict=True)
        assert array.dtype == np.float32


def test_validation_loss_is_the_mean_over_all_blocks(backend: Backend, text: str, tmp_path: Path) -> None:
    result = small(text, tmp_path, dtype="float64", eval_blocks=0)
    tokenizer = result.model.tokenizer
    held_back = tokenizer.encode(TEXT)[len(TEXT) * 9 // 10 :]
    losses = []
    for i in range(0, len(held_back) - 8, 8):
        logits = result.model([held_back[i : i + 8]]).numpy()[0, :, :-1]  # the last class is padding
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        losses.append(-log_probs[np.arange(8), held_back[i + 1 : i + 9]].mean())
    assert result.validation_losses[-1][1] == pytest.approx(np.mean(losses), rel=0, abs=1e-12)
    assert [found.blocks for found in result.validations] == [len(losses)] * 2


def test_eval_blocks_limits_the_last_validation(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = small(text, tmp_path, eval_blocks=3)
    assert [(found.step, found.blocks) for found in result.validations] == [(4, 3), (6, 3)]
    assert read_metrics(tmp_path).validations[-1] == (6, result.validation_losses[-1][1], 3)
    assert f"validation loss {result.validation_losses[-1][1]:.4f} over 3 blocks, 0:" in capsys.readouterr().out
    assert small(text, tmp_path, eval_blocks=10**6).validations == small(text, tmp_path, eval_blocks=0).validations


def test_weight_decay_applies_only_to_matrices(backend: Backend) -> None:
    config = Config(**SMALL, weight_decay=0.3)
    model = build_model(config, TEXT)
    decay = {id(p): group["weight_decay"] for group in build_optimizer(config, model).groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.3 if parameter.ndim == 2 else 0), name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_each_optimizer_has_its_settings_and_learns(
    backend: Backend, text: str, tmp_path: Path, optimizer: str
) -> None:
    config = Config(**SMALL, optimizer=optimizer)
    built = build_optimizer(config, build_model(config, TEXT))
    used = OPTIMIZERS[optimizer]
    assert built.lr_schedule(2) == pytest.approx(used["learning_rate"])
    assert config.final_learning_rate == used["learning_rate"] / 10
    for group in built.groups:
        assert group["weight_decay"] in (0.0, used["weight_decay"])
        if "beta1" in used:
            assert group["betas"] == (used["beta1"], used["beta2"])
        assert group.get("momentum") == used.get("momentum")
    assert type(built).__name__.lower().startswith(optimizer)
    result = small(text, tmp_path, steps=60, optimizer=optimizer, warmup=5)
    assert result.losses[-1] < result.losses[0] - 0.2


def test_llama_blocks_train_resume_and_generate(backend: Backend, text: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"blocks": "llama", "kv_heads": 1, "steps": 4, "save_interval": 2}
    whole = small(text, tmp_path / "whole", **options)
    assert whole.model.config()["norm"] == "rms_norm" and whole.model.config()["n_kv_heads"] == 1
    assert whole.model.tokenizer.positional_encoding is None and whole.model.output is not None
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.rmtree(tmp_path / "part/checkpoints/step-00000004")
    resumed = train(configure(resume=str(tmp_path / "part")))
    assert resumed.losses[-2:] == whole.losses[-2:]
    with pytest.raises(ValueError, match="belongs to a run with kv_heads 1, not 2; leave"):
        train(configure(resume=str(tmp_path / "part"), kv_heads=2))
    assert len("".join(generate(whole.path, ["The"], 9))) == 12


def test_muon_updates_the_matrices_of_the_blocks(backend: Backend) -> None:
    config = Config(**SMALL, optimizer="muon", momentum=0.8, weight_decay=0.3)
    model = build_model(config, TEXT)
    groups = {id(p): group for group in build_optimizer(config, model).groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        group = groups[id(parameter)]
        assert group["use_muon"] == (name.startswith("blocks.") and parameter.ndim == 2), name
        assert group["weight_decay"] == (0.3 if parameter.ndim == 2 else 0), name
        assert group["momentum"] == 0.8


def test_given_settings_replace_those_of_the_optimizer(backend: Backend) -> None:
    config = Config(**SMALL, optimizer="sgd", learning_rate=0.5, momentum=0.0, weight_decay=0.1)
    optimizer = build_optimizer(config, build_model(config, TEXT))
    assert optimizer.lr_schedule(2) == 0.5
    assert not optimizer.groups[0]["momentum"] and not optimizer.groups[0]["nesterov"]
    assert configure("shakespeare-gpu").of_optimizer("learning_rate") == 1e-3
    assert configure("shakespeare-gpu", optimizer="lion").of_optimizer("learning_rate") == 6e-4
    assert configure("shakespeare-gpu", optimizer="lion", learning_rate=1e-4).of_optimizer("learning_rate") == 1e-4


def test_schedules_give_the_expected_rates() -> None:
    def rates(schedule: str) -> list[float]:
        config = Config(steps=10, learning_rate=1.0, warmup=2, schedule=schedule)
        return [build_schedule(config)(step) for step in (0, 2, 5, 10)]

    assert rates("constant") == [1, 1, 1, 1]
    assert rates("exponential") == pytest.approx([1, 0.1**0.2, 0.1**0.5, 0.1])
    assert rates("cosine") == pytest.approx([1, 0.1 + 0.45 * (1 + np.cos(0.2 * np.pi)), 0.55, 0.1])
    assert rates("cosine_with_warmup") == pytest.approx([1 / 3, 1, 0.1 + 0.45 * (1 + np.cos(0.375 * np.pi)), 0.1])


def test_environment_limits_the_number_of_steps(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = small(text, tmp_path)
    monkeypatch.setenv("RG_TRAIN_STEPS", "3")
    cut = small(text, tmp_path)
    assert cut.losses == whole.losses[:3]
    assert [step for step, _ in cut.validation_losses] == [3]
    monkeypatch.setenv("RG_TRAIN_STEPS", "1000")
    assert small(text, tmp_path).losses == whole.losses


@pytest.mark.parametrize("limit", ["0", "-3", "ten"])
def test_invalid_step_limit_raises(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RG_TRAIN_STEPS", limit)
    with pytest.raises(ValueError, match=f"RG_TRAIN_STEPS must be a positive whole number, got '{limit}'"):
        train()


def interrupt_at_step(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGINT to this process in that step of a run."""
    train_step, taken = train_transformer.train_step, []

    def interrupted_step(*args: Any, **kwargs: Any) -> Any:
        taken.append(1)
        if len(taken) == step:
            signal.raise_signal(signal.SIGINT)
        return train_step(*args, **kwargs)

    monkeypatch.setattr(train_transformer, "train_step", interrupted_step)


def test_interrupted_run_saves_its_model(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    interrupt_at_step(3, monkeypatch)
    result = small(text, tmp_path)
    assert result.signal == signal.SIGINT
    assert len(result.losses) == 3
    assert result.validation_losses == []
    resume = f"Stopped by SIGINT after step 3 of 6; resume with: train(resume={str(tmp_path)!r})\n"
    assert resume in capsys.readouterr().out
    assert load_model(result.path).state_dict().keys() == result.model.state_dict().keys()
    assert signal.getsignal(signal.SIGINT) is handler


# --- Bad input


def test_non_finite_loss_raises_with_the_step(backend: Backend, text: str, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"the (validation )?loss (at|after) step \d+ is (nan|inf)"):
        small(text, tmp_path, learning_rate=1e30, schedule="constant", weight_decay=0.0, final_norm=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be positive"),
        ({"steps": -5}, "steps must not be negative, got -5"),
        ({"batch": 0}, "batch must be positive"),
        ({"heads": 3, "width": 128}, "heads must divide the width: 3 does not divide 128"),
        ({"dtype": "float16"}, "dtype must be one of float32, float64, bfloat16, got 'float16'"),
        ({"activation": "swish"}, "activation must be one of"),
        ({"schedule": "linear"}, "schedule must be one of constant, exponential, cosine, cosine_with_warmup"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": 1e-3, "min_learning_rate": 1e-2}, "min_learning_rate 0.01 is above learning_rate 0.001"),
        ({"warmup": 10, "steps": 10}, "warmup must be less than steps"),
        ({"schedule": "exponential", "min_learning_rate": 0.0}, "min_learning_rate must be positive"),
        ({"dropout": 1.0}, r"^dropout must be in \[0, 1\)"),
        ({"attention_dropout": 1.0}, r"^attention_dropout must be in \[0, 1\)"),
        ({"temperature": -1.0}, "temperature must not be negative"),
        ({"top_k": 0}, "top_k must be positive"),
        ({"seed": -1}, "seed must not be negative"),
        ({"seed": 2**64}, "seed must be in"),
        ({"batch": 10**30}, r"batch must be less than 2\*\*63, got 1000"),
        ({"steps": 2**63}, r"steps must be less than 2\*\*63, got 9223372036854775808"),
        ({"optimizer": "adam"}, "optimizer must be one of adamw, sgd, lion, muon, got 'adam'"),
        ({"momentum": 0.9}, "momentum is a setting of sgd, muon; optimizer is adamw"),
        ({"momentum": 0.9, "optimizer": "lion"}, "momentum is a setting of sgd, muon; optimizer is lion"),
        ({"beta1": 0.9, "optimizer": "sgd"}, "beta1 is a setting of adamw, lion, muon; optimizer is sgd"),
        ({"momentum": 1.0, "optimizer": "sgd"}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"beta2": -0.1}, "beta2 must not be negative"),
        ({"learning_rate": 1e-3, "min_learning_rate": 0.01, "optimizer": "sgd"}, "min_learning_rate 0.01 is above"),
        ({"kv_heads": 2}, "kv_heads is a setting of Llama's blocks; blocks is gpt2"),
        ({"blocks": "llama", "kv_heads": 3}, "kv_heads must divide the heads: 3 does not divide 4"),
        ({"blocks": "llama", "activation": "relu"}, "activation is a setting of GPT-2's blocks; blocks is llama"),
        ({"blocks": "llama", "heads": 2, "width": 6}, "width / heads must be even, got 6 / 2"),
        ({"out": ""}, "out must not be empty"),
        ({"dataset": ""}, "dataset must not be empty"),
        ({"resume": ""}, "resume must not be empty"),
    ],
)
def test_setting_out_of_range_raises(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_unknown_setting_raises() -> None:
    with pytest.raises(TypeError, match="n_steps"):
        train(n_steps=3)


def test_text_shorter_than_a_block_raises(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too short: its validation part"):
        small(text, tmp_path, block=len(TEXT) // 5)


def test_prompt_outside_the_vocabulary_raises(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="character '\u00a7' at position 2 is not in the vocabulary"):
        small(text, tmp_path, prompt="Th\u00a7")


def test_text_without_newlines_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "one-line.txt"
    path.write_text("abcdef " * 50, encoding="utf-8")
    assert len(small(str(path), tmp_path).losses) == 6  # samples begin with the first character


def test_unwritable_folder_raises(text: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(
        OSError, match=r"cannot write to the output folder .*file: it is a file; choose another with out"
    ):
        small(text, tmp_path / "file")


# --- Output


def test_plain_output_has_step_and_validation_lines(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = small(text, tmp_path)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert re.search(r"^step 6/6  loss \d\.\d{4}  [\d,]+ tokens/s  0:00 left$", out, re.M)
    assert re.search(r"^step 4: validation loss \d\.\d{4} over 5 blocks, \d\.\d{4} bits per byte$", out, re.M)
    last = out.splitlines()[-1]
    assert last.startswith(
        f"6 steps, seed {result.config.seed}, validation loss {result.validation_losses[-1][1]:.4f} over 5 blocks, 0:"
    )
    assert last.endswith(f"model in {result.path}")
    if sys.platform != "win32":
        assert re.search(r"peak memory [\d,]+ MiB", last)


def test_terminal_shows_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    with Progress(10, terminal=True) as progress:
        progress.update(5, [1.25], 1000)
        progress.echo("[bold]not markup[/bold]")
        progress.update(10, [1.25], 1000)
    out = capsys.readouterr().out
    assert "10/10" in out
    assert "loss 1.2500  1,000 tokens/s" in out
    assert "[bold]not markup[/bold]" in out


def test_terminal_without_rich_prints_a_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with Progress(10, terminal=True) as progress:
        progress.update(10, [1.25], 1000)
        progress.echo("plain text")
    hint, step, text = capsys.readouterr().out.splitlines()
    assert 'pip install "russellgrad[train]"' in hint
    assert step == "step 10/10  loss 1.2500  1,000 tokens/s  0:00 left"
    assert text == "plain text"


def test_long_run_prints_twenty_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(2000, terminal=False) as progress:
        for step in range(10, 2001, 10):
            progress.update(step, [1.0], 1.0)
    assert len(capsys.readouterr().out.splitlines()) == 20


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0:00"), (247, "4:07"), (3723, "1:02:03")])
def test_format_duration(seconds: float, shown: str) -> None:
    assert format_duration(seconds) == shown


# --- The command line


def flags(**options: Any) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def test_help_lists_every_setting() -> None:
    run = run_python("train/train_transformer.py", "--help")
    assert run.returncode == 0, run.stderr
    shown = " ".join(run.stdout.split())
    for option in fields(Config):
        assert f"--{option.name.replace('_', '-')}" in shown
        assert option.metadata["help"].split()[0] in shown
    for variable in ("RG_BACKEND", "RG_NUM_THREADS", "RG_DATA_DIR", "RG_TRAIN_STEPS", "RG_MALLOC", "RG_DTYPE"):
        assert variable in shown
    groups = re.findall(r"^(\w[\w, ]*):\n((?: +\S.*\n)+)", run.stdout, re.MULTILINE)
    first = {title: re.findall(r"^  (?:-h, )?(--[\w-]+)", options, re.MULTILINE)[0] for title, options in groups}
    assert first == {
        "options": "--help", "files": "--dataset", "tokens": "--tokenizer", "model": "--layers", "training": "--steps",
        "validation, checkpoints, metrics": "--eval-interval", "samples": "--prompt",
    }  # fmt: skip


def test_command_line_sets_every_setting() -> None:
    given = parse([*flags(**SMALL, dtype="float64", temperature=0.5, top_k=3), "--no-final-norm"])
    assert given == Config(**SMALL, dtype="float64", temperature=0.5, top_k=3, final_norm=False)
    assert parse([]) == Config()


def test_trained_model_generates_text_from_the_command_line(text: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = run_python("train/train_transformer.py", *flags(dataset=text, out=out, prompt="The", **SMALL))
    assert run.returncode == 0, run.stderr
    assert "6 steps, seed 0, validation loss" in run.stdout
    config = Config(dataset=text, **SMALL)
    n_parameters = sum(p.size for p in build_model(config, TEXT).parameters())
    assert run.stdout.splitlines()[0] == (
        f"backend numpy, float32; {text}: {len(TEXT):,} characters, vocabulary of {len(set(TEXT))}; "
        f"model of {n_parameters:,} parameters"
    )
    written = run_python("train/generate.py", str(out / "model.safetensors"), "--prompt", "The ", "--tokens", "20")
    assert written.returncode == 0, written.stderr
    assert written.stdout.startswith("The ")
    assert len(written.stdout) == len("The ") + 20 + len("\n")


def test_train_from_the_root_does_not_read_the_command_line(text: str, tmp_path: Path) -> None:
    settings = {**SMALL, "dataset": text, "out": str(tmp_path)}
    run = run_python(
        "-c", f"from train.train_transformer import train; train(**{settings!r})", "--bogus", RG_TRAIN_STEPS="2"
    )
    assert run.returncode == 0, run.stderr
    assert "2 steps, seed 0, validation loss" in run.stdout


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--dataset", "sonnets"], {}, "error: dataset 'sonnets' is neither a file nor one of shakespeare"),
        (["--steps", "0"], {}, "error: --steps must be positive, got 0\n"),
        (["--out", ""], {}, "error: --out must not be empty\n"),
        (["--dtype", "float16"], {}, "invalid choice: 'float16'"),
        ([], {"RG_BACKEND": "nympy"}, "error: unknown backend 'nympy': did you mean 'numpy'? known are numpy,"),
        (["--lr", "0.1"], {}, "error: unrecognized arguments: --lr 0.1; did you mean --learning-rate?"),
        (["--batch-size=8"], {}, "error: unrecognized arguments: --batch-size=8; did you mean --batch?"),
        (["--stepz", "8", "--zzz"], {}, "error: unrecognized arguments: --stepz 8 --zzz; did you mean --steps?"),
        (["--zzz"], {}, "error: unrecognized arguments: --zzz\n"),
        (
            ["--prompt", "a\u20ac", "--dataset", __file__],
            {},
            "error: --prompt: character '\u20ac' at position 1 is not in the voc",
        ),
    ],
)
def test_command_line_errors_are_one_line(
    tmp_path: Path, arguments: list[str], environment: dict[str, Any], message: str
) -> None:
    out = tmp_path / "out"
    run = run_python("train/train_transformer.py", "--out", str(out), *arguments, **environment)
    assert run.returncode != 0
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert not out.exists()
