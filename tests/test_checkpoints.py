"""Checkpoints of training runs: killed and interrupted runs, retention, damaged files and write errors."""

import errno
import io
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from russellgrad.checkpoint import load_model
from tests.process import ROOT, run_python, running
from tests.test_resume import RUN, parameters, run, run_until_signal
from tests.test_train import flags
from train import checkpointer, checkpoints, train_transformer
from train.checkpointer import Validation, best_validations
from train.checkpoints import find
from train.config import Config, configure
from train.metrics import Metrics, read_metrics
from train.optimizers import build_optimizer
from train.train_transformer import train

pytest.importorskip("safetensors")
pytestmark = pytest.mark.skipif(
    os.environ.get("RG_BACKEND", "numpy") != "numpy", reason="files do not depend on the backend; tested on NumPy only"
)


@pytest.fixture(autouse=True)
def _no_step_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RG_TRAIN_STEPS", raising=False)


def names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


KILLS = 20


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL here")
def test_a_run_killed_at_random_times_equals_an_uninterrupted_run(text: str, tmp_path: Path) -> None:
    """SIGKILL at 20 random times, while the run computes or writes. The weights equal those of an uninterrupted run."""
    options = {**RUN, "steps": 10_000, "save_interval": 1, "eval_interval": 50, "keep": 2, "dataset": text}
    command = [sys.executable, "train/train_transformer.py"]
    environment = {**os.environ, "RG_BACKEND": "numpy", "OPENBLAS_NUM_THREADS": "1"}
    whole, out = tmp_path / "whole", tmp_path / "killed"
    draws, reached = random.Random(5), []
    for _ in range(KILLS):
        before = checkpoints.latest_checkpoint(out)
        resume = ["--resume", str(out)] if before else flags(**options, out=out)
        with running(*command, *resume, env=environment) as process:
            deadline = time.monotonic() + 60  # the delay before the kill starts at the first new checkpoint
            while (
                checkpoints.latest_checkpoint(out) == before and process.poll() is None and time.monotonic() < deadline
            ):
                time.sleep(0.005)
            time.sleep(draws.random() * 0.1)
            process.kill()
            _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
        reached.append(find(out).step)  # raises if the checkpoint is incomplete
    assert reached == sorted(reached) and reached[0] > 0 and reached[-1] < options["steps"]
    environment["RG_TRAIN_STEPS"] = str(reached[-1] + 50)
    for arguments in (["--resume", str(out)], flags(**{**options, "save_interval": 1000}, out=whole)):
        subprocess.run([*command, *arguments], cwd=ROOT, env=environment, check=True, capture_output=True, timeout=300)
    assert find(out).step == reached[-1] + 50
    assert parameters(out / "model.safetensors") == parameters(whole / "model.safetensors")
    assert read_metrics(out).losses == read_metrics(whole).losses


# --- Signals


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGTERM here")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_a_checkpoint_and_prints_the_resume_command(text: str, tmp_path: Path, number: int) -> None:
    out = tmp_path / "out"
    options = {**RUN, "dataset": text, "out": out, "steps": 20_000, "save_interval": 20_000}
    with running(sys.executable, "train/train_transformer.py", *flags(**options), text=True) as process:
        deadline = time.monotonic() + 60
        while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    found = re.search(r"Stopped by SIG\w+ after step ([\d,]+) of 20,000; resume with: python (.*)", output)
    assert found is not None, output
    assert find(out).step == int(found[1].replace(",", ""))
    done = run_python(*found[2].split(), "--steps", str(find(out).step + 3), RG_BACKEND="numpy")
    assert done.returncode == 0, done.stderr
    assert f"resumed from {find(out).path.parent}" in done.stdout


def test_a_closed_output_pipe_does_not_stop_the_run(text: str, tmp_path: Path) -> None:
    options = {**RUN, "steps": 60, "dataset": text, "out": tmp_path / "o"}
    with running(sys.executable, "train/train_transformer.py", *flags(**options)) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.wait(timeout=60) == 0, process.stderr.read()
        assert find(tmp_path / "o").step == 60
        assert process.stderr.read() == b""


# --- Retention and run folders


def test_the_last_checkpoints_and_the_best_are_kept(
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    tmp_path: Path,
) -> None:
    losses = iter([3.0, 1.0, 2.0, 4.0])
    monkeypatch.setattr(train_transformer, "evaluate", lambda *_: next(losses))
    result = run(text, tmp_path, keep=2)
    assert result.validation_losses == [(3, 3.0), (6, 1.0), (9, 2.0), (12, 4.0)]
    assert names(tmp_path) == ["step-00000006", "step-00000010", "step-00000012"]
    assert find(tmp_path).state["validation_losses"] == [[3, 3.0], [6, 1.0], [9, 2.0], [12, 4.0]]
    assert parameters(tmp_path / "checkpoints/step-00000012/model.safetensors") == parameters(result.path)


def test_a_new_run_moves_the_outputs_of_an_earlier_run_aside(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(text, tmp_path, steps=4)
    earlier = names(tmp_path)
    for leftover in (".writing-1", ".going-step-00000001"):
        (tmp_path / "checkpoints" / leftover).mkdir()
    (tmp_path / "model.safetensors.77.tmp").touch()
    run(text, tmp_path, steps=5, seed=1)
    assert f"the outputs of an earlier run in {tmp_path} are now in {tmp_path / 'earlier-1'}" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "earlier-1" / "checkpoints").iterdir()) == earlier
    assert read_metrics(tmp_path / "earlier-1").steps == [1, 2, 3, 4]
    assert parameters(tmp_path / "earlier-1/model.safetensors") != parameters(tmp_path / "model.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "text.txt") == [
        ".lock", "checkpoints", "earlier-1", "metrics.jsonl", "model.safetensors"
    ]  # fmt: skip
    run(text, tmp_path, steps=5)
    assert (tmp_path / "earlier-2" / "checkpoints" / "step-00000005").is_dir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors").write_bytes(b"somebody's")
    run(text, tmp_path / "other", steps=4)
    assert (tmp_path / "other" / "earlier-1" / "model.safetensors").read_bytes() == b"somebody's"


@pytest.mark.parametrize("failing", ["rename", "rmtree"])
def test_an_old_checkpoint_that_cannot_be_removed_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], failing: str
) -> None:
    failed: list[Path] = []
    rename, rmtree = Path.rename, shutil.rmtree

    def fail_once(path: Path) -> None:
        if "step-00000002" in path.name and path.exists() and len(failed) < 2:
            failed.append(path)
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    def failing_rename(path: Path, target: Path) -> Path:
        fail_once(path)
        return rename(path, target)

    def failing_rmtree(path: Path, ignore_errors: bool = False) -> None:
        fail_once(path)
        rmtree(path, ignore_errors)

    if failing == "rename":
        monkeypatch.setattr(Path, "rename", failing_rename)
    else:
        monkeypatch.setattr(shutil, "rmtree", failing_rmtree)
    assert run(text, tmp_path, keep=1).steps == 12
    assert len(failed) == 2
    assert names(tmp_path)[-1] == "step-00000012"
    assert not [name for name in names(tmp_path) if "step-00000002" in name]
    line = rf"^cannot remove the old checkpoint {tmp_path}/checkpoints/\S*step-00000002: .* busy; the next checkpoint "
    assert len(re.findall(line, capsys.readouterr().out, re.MULTILINE)) == 2


@pytest.mark.parametrize("package", ["tensorboardX", "safetensors.numpy"])
def test_a_start_that_fails_leaves_an_earlier_run_in_place(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    path = run(text, tmp_path, steps=4).path
    before = sorted(path.name for path in tmp_path.iterdir())
    with monkeypatch.context() as missing:
        missing.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=f"needs the package {package.split('.')[0]}; pip install"):
            run(text, tmp_path, steps=5, tensorboard=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert find(tmp_path).step == 4
    assert load_model(path)


def test_a_checkpoint_that_does_not_fit_leaves_the_outputs_in_the_other_folder(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    run(text, first, steps=4, warmup=1)
    run(text, second, steps=4, warmup=1)

    def fail(*_: Any) -> None:
        raise ValueError("does not fit")

    monkeypatch.setattr(checkpoints.Checkpoint, "restore", fail)
    with pytest.raises(ValueError, match="does not fit"):
        train(resume=str(first), out=str(second), steps=8)
    assert find(second).step == 4
    assert not (second / "earlier-1").exists()


def test_resuming_after_a_new_run_without_a_checkpoint_names_the_earlier_run(text: str, tmp_path: Path) -> None:
    run(text, tmp_path, steps=4, warmup=1)
    assert checkpoints.move_earlier_run(tmp_path) == tmp_path / "earlier-1"
    with pytest.raises(FileNotFoundError, match=r"; an earlier run is in (\S+/earlier-1): resume \1$"):
        configure(resume=str(tmp_path))
    assert train(resume=str(tmp_path / "earlier-1"), steps=6).steps == 6


def test_a_run_resumed_in_another_folder_keeps_existing_outputs(text: str, tmp_path: Path) -> None:
    """Resumes into the folder of another run, and from the checkpoint of a run that was moved aside."""
    first, second = tmp_path / "first", tmp_path / "second"
    run(text, first, steps=4, warmup=1)
    run(text, second, steps=6, seed=7)
    train(resume=str(first), out=str(second), steps=8)
    assert find(second / "earlier-1" / "checkpoints").step == 6
    assert read_metrics(second / "earlier-1").steps == list(range(1, 7))
    assert read_metrics(second).steps == list(range(5, 9))
    assert find(second).state["config"]["seed"] == 0
    moved = second / "earlier-1" / "checkpoints"
    elsewhere = tmp_path / "copy"
    moved.rename(elsewhere)
    with pytest.raises(ValueError, match="is not in a run's folder; set out to the folder of the resumed run"):
        train(resume=str(elsewhere), steps=8)
    assert train(resume=str(elsewhere), out=str(tmp_path / "third"), steps=8).steps == 8


def test_resuming_a_complete_run_writes_missing_outputs(text: str, tmp_path: Path) -> None:
    """The run may have been killed between its last checkpoint and its model file, or before its last validation."""
    whole = run(text, tmp_path)
    found = parameters(whole.path)
    whole.path.write_bytes(b"of an earlier step")
    again = train(resume=str(tmp_path))
    assert parameters(again.path) == found
    assert again.validation_losses == whole.validation_losses
    assert again.losses == []
    path = find(tmp_path).path
    rewrite_state(path, validation_losses=whole.validation_losses[:-1])
    assert train(resume=str(tmp_path)).validation_losses == whole.validation_losses


def test_a_run_stopped_before_a_validation_validates_when_resumed(
    monkeypatch: pytest.MonkeyPatch, text: str, tmp_path: Path
) -> None:
    whole = run(text, tmp_path / "whole")
    assert run_until_signal(monkeypatch, 6, text, tmp_path / "parts").steps == 6
    assert train(resume=str(tmp_path / "parts")).validation_losses == whole.validation_losses
    one, two = find(tmp_path / "whole"), find(tmp_path / "parts")
    assert one.state["validation_losses"] == two.state["validation_losses"]


def test_a_signal_in_the_last_step_leaves_out_the_last_validation(
    monkeypatch: pytest.MonkeyPatch, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(text, tmp_path / "whole")
    result = run_until_signal(monkeypatch, 12, text, tmp_path / "parts")
    assert (result.signal, result.steps, find(tmp_path / "parts").step) == (signal.SIGTERM, 12, 12)
    assert parameters(result.path) == parameters(whole.path)
    assert "SIGTERM after step 12 of 12 in its last validation, which is not finished; re" in capsys.readouterr().out
    assert train(resume=str(tmp_path / "parts")).validations == whole.validations
    assert train(resume=str(tmp_path / "parts")).validations == whole.validations  # stored, not computed again
    assert [step for step, _, _ in read_metrics(tmp_path / "parts").validations] == [3, 6, 9, 12]


def test_a_limited_run_that_was_stopped_in_its_last_validation_is_completed(
    monkeypatch: pytest.MonkeyPatch, text: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("RG_TRAIN_STEPS", "8")
    whole = run(text, tmp_path / "whole")
    assert [found.step for found in run_until_signal(monkeypatch, 8, text, tmp_path / "parts").validations] == [3, 6]
    for _ in range(2):
        assert train(resume=str(tmp_path / "parts")).validations == whole.validations
    assert [step for step, _, _ in read_metrics(tmp_path / "parts").validations] == [3, 6, 8]
    monkeypatch.delenv("RG_TRAIN_STEPS")
    assert [found.step for found in train(resume=str(tmp_path / "parts")).validations] == [3, 6, 9, 12]


def test_a_second_run_in_the_same_folder_raises(text: str, tmp_path: Path) -> None:
    with (
        checkpointer._locked(tmp_path),
        pytest.raises(OSError, match=f"another run is writing into {tmp_path}; choose"),
    ):
        run(text, tmp_path)
    assert run(text, tmp_path, steps=4, warmup=1).steps == 4


# --- Damaged and incompatible checkpoints


def damage(path: Path, how: str) -> None:
    file = path / how.partition(": ")[2]
    match how.partition(": ")[0]:
        case "cut off":
            file.write_bytes(file.read_bytes()[:-1])
        case "empty":
            file.write_bytes(b"")
        case "gone":
            file.unlink()
        case "changed":
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS"])
@pytest.mark.parametrize("how", ["cut off", "empty", "gone", "changed"])
def test_a_damaged_checkpoint_raises_and_names_the_last_good_one(
    text: str, tmp_path: Path, how: str, file: str
) -> None:
    run(text, tmp_path, steps=8, keep=3)
    last, before, good = (tmp_path / "checkpoints" / f"step-0000000{step}" for step in (8, 6, 4))
    damage(last, f"{how}: {file}")
    with pytest.raises(ValueError, match=f"checkpoint {last} is damaged: .*the last good one is {before}: resume "):
        train(resume=str(tmp_path))
    damage(before, f"{how}: {file}")
    with pytest.raises(ValueError, match=f"checkpoint {last} is damaged: .*the last good one is {good}: resume "):
        train(resume=str(tmp_path))
    elsewhere = train(resume=str(good), out=str(tmp_path / "elsewhere"))
    assert (
        train(resume=str(good)).losses == elsewhere.losses
    )  # the remedy of the error works; damaged checkpoints are kept and renamed
    assert {"damaged-step-00000006", "damaged-step-00000008", "step-00000008"} <= set(names(tmp_path))
    assert find(tmp_path).step == 8


def test_only_damaged_checkpoints_raise_without_a_remedy(text: str, tmp_path: Path) -> None:
    run(text, tmp_path, steps=4, keep=1)
    for name in names(tmp_path):
        damage(tmp_path / "checkpoints" / name, "empty: state.json")
    with pytest.raises(ValueError, match=r"step-00000004 is damaged: state.json: .*; there is no earlier one"):
        train(resume=str(tmp_path))


def test_resuming_from_an_earlier_checkpoint_in_the_same_folder_raises(text: str, tmp_path: Path) -> None:
    run(text, tmp_path, steps=8, keep=3)
    last, good = (tmp_path / "checkpoints" / f"step-0000000{step}" for step in (8, 4))
    with pytest.raises(
        ValueError, match=f"{last} is later than {good}; resume from the later one, or choose another folder"
    ):
        train(resume=str(good))


def rewrite_state(path: Path, **changes: Any) -> None:
    """Change entries of state.json and update the checksums, so that only the content is wrong."""
    facts = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**facts, **changes}))
    sums = [f"{checkpoints._sha256(path / name)}  {name}\n" for name in checkpoints._FILES]
    (path / "SHA256SUMS").write_text("".join(sums))


def test_a_checkpoint_of_another_version_raises(text: str, tmp_path: Path) -> None:
    run(text, tmp_path, steps=4)
    path = find(tmp_path).path
    rewrite_state(path, version=3)
    (path / "SHA256SUMS").write_text("of another form\n")
    with pytest.raises(ValueError, match="has format 'russellgrad-checkpoint', version 3; this release reads"):
        train(resume=str(tmp_path))
    rewrite_state(path, version=2, config={**run(text, tmp_path / "b", steps=4).config.__dict__, "flux": 1})
    with pytest.raises(ValueError, match=r"was written by another release, with other settings: .*flux"):
        train(resume=str(tmp_path))


SEPARATE_QKV = ROOT / "tests" / "data" / "separate_qkv" / "step-00000003"  # format version 1


def test_a_checkpoint_with_separate_q_k_v_matrices_resumes(text: str, tmp_path: Path) -> None:
    """Matrices and Adam moments of an earlier release are merged; the losses equal those of that release."""
    shutil.copytree(SEPARATE_QKV, tmp_path / "checkpoints" / SEPARATE_QKV.name)
    result = train(resume=str(tmp_path), dataset=text, eval_blocks=0)
    assert result.steps == 6
    expected = [3.45991668404866, 3.4520936491035945, 3.4399514298664053]
    np.testing.assert_allclose(result.losses, expected, rtol=0, atol=1e-12)
    assert result.validation_losses[-1][1] == pytest.approx(3.450331794080012, abs=1e-12)


def test_a_model_file_with_separate_q_k_v_matrices_loads() -> None:
    logits = load_model(SEPARATE_QKV / "model.safetensors", "numpy")(["The 1", "line"]).numpy()
    np.testing.assert_allclose(logits.sum(axis=(1, 2)), [0.948636510434471, 0.8506753897704595], rtol=0, atol=1e-12)
    expected = [-0.11115427455690244, 0.06307124390664731, -0.003687309028489759, 0.1081287531668413]
    np.testing.assert_allclose(logits[0, 4, :4], expected, rtol=0, atol=1e-14)


def test_a_checkpoint_with_other_shapes_raises(text: str, tmp_path: Path) -> None:
    run(text, tmp_path, steps=4, warmup=1)
    path = find(tmp_path).path
    config = find(tmp_path).state["config"]
    rewrite_state(path, config={**config, "width": 32})
    with pytest.raises(ValueError, match=r"does not fit this run: .*has shape \(16, 16\), expected \(32, 32\)"):
        train(resume=str(tmp_path), steps=8)


def test_saving_non_finite_parameters_raises(text: str, tmp_path: Path) -> None:
    result = run(text, tmp_path, steps=4, warmup=1, grad_clip=0.0)
    optimizer = build_optimizer(result.config, result.model)
    xp = result.model.blocks[0].attention.w_qkv.backend
    result.model.blocks[0].attention.w_qkv.data = xp.full((16, 48), float("nan"), "float32")
    with pytest.raises(
        FloatingPointError, match=f"after step 6 .*w_qkv is not finite; the last good checkpoint is {tmp_path}"
    ):
        checkpoints.save(tmp_path, 6, result.model, optimizer, {})
    with pytest.raises(FloatingPointError, match="the last good checkpoint is none: lower"):
        checkpoints.save(tmp_path / "new", 6, result.model, optimizer, {})
    assert find(tmp_path).step == 4


def test_resuming_with_fewer_steps_than_were_taken_raises(text: str, tmp_path: Path) -> None:
    run(text, tmp_path, steps=4, warmup=1)
    with pytest.raises(ValueError, match="has 4 steps already, and steps is 3; set a larger number, or leave it out"):
        train(resume=str(tmp_path), steps=3)


def test_resume_with_a_config_raises(text: str, tmp_path: Path) -> None:
    run(text, tmp_path, steps=4, warmup=1)
    with pytest.raises(ValueError, match="resume uses the settings of its checkpoint; pass it without a config"):
        train(Config(**{**RUN, "dataset": text}), resume=str(tmp_path))
    with pytest.raises(TypeError, match=r"train: a preset does not apply to a config, .*; pass it without a config"):
        train(Config(**{**RUN, "dataset": text}), preset="shakespeare-cpu")
    with pytest.raises(TypeError, match=r"there is no setting stepz; did you mean steps\?"):
        train(Config(**{**RUN, "dataset": text}), stepz=3)
    wrong: Any = "notes.txt"
    with pytest.raises(
        TypeError, match=r"train: config must be a Config, got 'notes.txt' of type str; pass settings by"
    ):
        train(wrong)
    with pytest.raises(ValueError, match="belongs to a run with seed 0, not 5"):
        train(Config(**{**RUN, "dataset": text, "seed": 5, "resume": str(tmp_path), "out": str(tmp_path)}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 32}, "width 16, not 32; leave these options out, or start a new run"),
        ({"seed": 1, "batch": 8}, "batch 4, not 8, seed 0, not 1"),
        ({"preset": "shakespeare-cpu"}, "a resumed run has the settings of its checkpoint; leave the preset out"),
    ],
)
def test_resuming_with_changed_settings_raises(
    text: str,
    tmp_path: Path,
    change: dict[str, Any],
    message: str,
) -> None:
    run(text, tmp_path, steps=4, warmup=1)
    with pytest.raises(ValueError, match=message):
        train(resume=str(tmp_path), **change)


def test_resuming_with_another_text_raises(text: str, tmp_path: Path) -> None:
    run(text, tmp_path, steps=4, warmup=1)
    content = Path(text).read_text()
    Path(text).write_text(content.replace("line", "LINE"))
    with pytest.raises(ValueError, match="was trained on another text than"):
        train(resume=str(tmp_path), steps=8)


def test_resuming_without_a_checkpoint_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint to resume from in .*; start the run without"):
        configure(resume=str(tmp_path))
    done = run_python("train/train_transformer.py", "--resume", str(tmp_path))
    assert done.returncode == 2
    assert "there is no checkpoint to resume from" in done.stderr
    assert "Traceback" not in done.stderr


def test_resume_without_a_path_uses_the_out_folder(text: str, tmp_path: Path) -> None:
    run(text, tmp_path / "a", steps=4, warmup=1)
    assert configure(resume="", out=str(tmp_path / "a")) == Config(
        **{**RUN, "dataset": text, "out": str(tmp_path / "a"), "steps": 4, "warmup": 1,
           "resume": str(tmp_path / "a/checkpoints/step-00000004")}
    )  # fmt: skip


# --- Write errors and non-finite values


@pytest.mark.parametrize("failing", ["model.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS"])
def test_a_full_disk_keeps_the_last_good_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    tmp_path: Path,
    failing: str,
) -> None:
    run(text, tmp_path, steps=4, warmup=1)
    good, before = find(tmp_path).path, names(tmp_path)

    def full(path: Path, content: bytes) -> None:
        if path.name.startswith(failing):
            path.write_bytes(content[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        written(path, content)

    from russellgrad import serialization

    written = serialization.write_synced
    for module in (serialization, checkpoints):
        monkeypatch.setattr(module, "write_synced", full)
    with (
        pytest.raises(OSError, match=f"^cannot write {tmp_path}/x: No space left on device; there is no checkpoint$"),
        checkpoints.explain_write_errors(tmp_path / "new", tmp_path / "x"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match=f"No space left on device; the last one is {good}: fix the cause, and resum"):
        train(resume=str(tmp_path), steps=12)
    assert names(tmp_path) == before
    monkeypatch.undo()
    monkeypatch.delenv("RG_TRAIN_STEPS", raising=False)
    assert train(resume=str(tmp_path), steps=12).steps == 12


def test_a_non_finite_loss_names_the_batch_and_the_last_checkpoint(text: str, tmp_path: Path) -> None:
    run(text, tmp_path, steps=4, warmup=1)
    path = find(tmp_path).path
    arrays = load_model(path / "model.safetensors").state_dict()
    assert arrays
    with (
        pytest.raises(
            FloatingPointError,
            match=r"the (loss|gradient norm) at step \d+ is (nan|inf) on batch \d+ of seed 0; the last good "
            rf"checkpoint is {tmp_path}/checkpoints/step-\d+: lower the learning rate, or clip the gradient",
        ),
    ):
        train(resume=str(path), steps=400, learning_rate=1e30, schedule="constant", save_interval=1000)
    assert find(tmp_path).step >= 4


def test_a_full_disk_for_the_metrics_names_the_last_checkpoint(
    monkeypatch: pytest.MonkeyPatch, text: str, tmp_path: Path
) -> None:
    run(text, tmp_path, steps=4, warmup=1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Metrics, "steps", full)
    with pytest.raises(
        OSError,
        match=f"^cannot write {tmp_path}/metrics.jsonl: No space left on device; the last checkpoint is {tmp_path}/chec"
        "kpoints/step-00000006: fix the cause, and resume$",
    ):
        train(resume=str(tmp_path), steps=12)
    assert find(tmp_path).step == 6


@pytest.mark.skipif(os.name != "posix", reason="there is no limit of file sizes here")
def test_a_full_disk_under_the_metrics_keeps_the_state_and_whole_lines(text: str, tmp_path: Path) -> None:
    """A limit of the files' size, of 70 kB, is reached by the metrics alone."""
    out = tmp_path / "out"
    arguments = flags(**{**RUN, "steps": 1000, "eval_interval": 500, "save_interval": 300, "dataset": text, "out": out})
    limit = "import os, resource, sys; "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, -1)); os.execv(sys.argv[1], sys.argv[1:])"
    done = run_python("-c", limit, sys.executable, "train/train_transformer.py", *arguments)
    assert done.returncode == 1
    found = re.search(r"error: cannot write (\S+): File too large; the last checkpoint is (\S+): fix the", done.stderr)
    assert found is not None, done.stderr
    assert found[1] == str(out / "metrics.jsonl")
    assert find(found[2]).step == find(out).step != 300  # of the step after which the lines could not be written
    steps = read_metrics(out).steps
    assert steps == list(range(1, len(steps) + 1))
    assert (out / "metrics.jsonl").read_bytes().endswith(b"}\n")
    done = run_python("train/train_transformer.py", "--resume", str(out))
    assert done.returncode == 0, done.stderr
    assert read_metrics(out).steps[-1] == 1000


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": 13, "validation_loss": 1' + 400 * "0" + ', "blocks": 5}', "int too large to convert to float"),
        (100_000 * "[", "maximum recursion depth exceeded"),
        ('{"step": 12, "run": {"config": [1]}}', r"config of the run is \[1\], not of type dict"),
        ('{"step": 12, "run": {"parameters": "1"}}', "parameters of the run is '1', not of type int"),
    ],
    ids=["large", "nested", "config", "parameters"],
)
def test_metrics_that_cannot_be_read_name_the_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=rf"metrics\.jsonl, line 1.*{message}.*; remove the line"):
        read_metrics(tmp_path)


def test_a_write_that_fails_leaves_no_part_of_a_line(tmp_path: Path) -> None:
    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if len(data) > 5:
                return super().write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Metrics(tmp_path) as metrics:
        metrics.run(config={}, parameters=1, backend="numpy")
        whole = metrics.path.read_bytes()
        assert metrics._file is not None
        metrics._file.close()
        metrics._file = Full(metrics.path, "a")
        with pytest.raises(OSError, match=f"No space left on device: '{metrics.path}'"):
            metrics.validation(1, 2.5, 3)
        assert metrics.path.read_bytes() == whole


@pytest.mark.parametrize(("bad", "finite"), [("loss", 7), ("gradient norm", 4)])
def test_finite_steps_before_one_that_is_not_are_logged(
    monkeypatch: pytest.MonkeyPatch, text: str, tmp_path: Path, bad: str, finite: int
) -> None:
    train_step, taken = train_transformer.train_step, []

    def bad_step(*args: Any, **kwargs: Any) -> Any:
        loss, norm = train_step(*args, **kwargs)
        assert norm is not None
        taken.append(1)
        if len(taken) == finite + 1:
            return (loss * float("nan"), norm) if bad == "loss" else (loss, norm * float("inf"))
        return loss, norm

    whole = run(text, tmp_path / "whole", save_interval=100, eval_interval=100)
    monkeypatch.setattr(train_transformer, "train_step", bad_step)
    with pytest.raises(FloatingPointError, match=f"the {bad} at step {finite + 1} is (nan|inf) on batch {finite} of s"):
        run(text, tmp_path / "bad", save_interval=100, eval_interval=100)
    history = read_metrics(tmp_path / "bad")
    assert history.steps == list(range(1, finite + 1))
    assert history.losses == whole.losses[:finite]


def test_a_validation_loss_that_is_not_finite_names_the_checkpoint_before_it(
    monkeypatch: pytest.MonkeyPatch, text: str, tmp_path: Path
) -> None:
    losses = iter([3.0, float("nan")])
    monkeypatch.setattr(train_transformer, "evaluate", lambda *_: next(losses))
    with pytest.raises(
        FloatingPointError,
        match=f"after step 6 is nan; the last good checkpoint is {tmp_path}/checkpoints/step-00000004:",
    ):
        run(text, tmp_path)
    assert names(tmp_path) == ["step-00000003", "step-00000004", "step-00000006"]


# --- The best checkpoint


def test_best_validations_are_of_equal_numbers_of_blocks() -> None:
    losses = [(1, 3.0, 5), (2, 2.0, 5), (3, 2.0, 5), (4, math.nan, 5), (5, 9.0, 8), (6, 1.0, 0), (7, math.inf, 7)]
    assert best_validations(starmap(Validation, losses)) == [(2, 2.0, 5), (5, 9.0, 8), (6, 1.0, 0)]
    assert best_validations([]) == []


@pytest.mark.parametrize(
    ("changes", "later", "kept", "best"),
    [
        ({"eval_interval": 4}, [5.0, 4.0], [6, 18, 20], {"5": 6}),
        ({"eval_interval": 4}, [5.0, 0.5], [18, 20], {"5": 20}),  # the best is the last
        ({"eval_blocks": 3}, [9.0, 0.1, 0.2], [6, 18, 20], {"5": 6, "3": 18}),
        ({"keep": 1}, [5.0, 4.0, 4.0], [6, 20], {"5": 6}),
        ({"keep": 4, "save_interval": 3}, [5.0, 4.0, 4.0], [6, 12, 15, 18, 20], {"5": 6}),
    ],
    ids=str,
)
def test_the_best_checkpoint_is_kept_and_named_after_resuming(
    monkeypatch: pytest.MonkeyPatch, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any], later: list[float], kept: list[int], best: dict[str, int],
) -> None:  # fmt: skip
    losses = iter([3.0, 1.0, 2.0, 4.0, *later])
    monkeypatch.setattr(train_transformer, "evaluate", lambda *_: next(losses))
    first = run(text, tmp_path)
    result = train(resume=str(tmp_path), steps=20, **changes)
    assert names(tmp_path) == [f"step-{step:08}" for step in kept]
    assert result.validations[:4] == first.validations
    assert next(losses, None) is None
    output = capsys.readouterr().out
    assert output.count("\nbest checkpoint (") == 1 + len(best)
    for blocks, step in best.items():
        loss = dict(result.validation_losses)[step]
        path = tmp_path / "checkpoints" / f"step-{step:08}"
        assert f"\nbest checkpoint (validation loss {loss:.4f} over {blocks} blocks): {path}\n" in output


def test_the_best_checkpoint_in_the_folder_of_an_earlier_run_is_named(
    monkeypatch: pytest.MonkeyPatch, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = iter([3.0, 1.0, 2.0, 4.0, 5.0])
    monkeypatch.setattr(train_transformer, "evaluate", lambda *_: next(losses))
    run(text, tmp_path / "first")
    train(resume=tmp_path / "first", out=tmp_path / "second", steps=14)
    expected = (
        "best checkpoint (validation loss 1.0000 over 5 blocks): after step 6 in the folder that the run was resume"
    )
    assert expected in capsys.readouterr().out
    assert names(tmp_path / "first")[0] == "step-00000006"
    shutil.rmtree(tmp_path / "first" / "checkpoints" / "step-00000006")  # by hand
    train(resume=tmp_path / "first")
    assert f"blocks): after step 6; it is not in {tmp_path / 'first'}\n" in capsys.readouterr().out


def test_checkpoints_of_earlier_versions_have_no_numbers_of_blocks(text: str, tmp_path: Path) -> None:
    """Their last loss is a mean over all blocks and is not compared; the best of the others is kept."""
    whole = run(text, tmp_path)
    path = find(tmp_path).path
    losses = [[3, 0.5], [6, 0.1], [9, 0.4], [12, 0.0]]
    (path / "validations.json").unlink()
    state = json.loads((path / "state.json").read_text())
    state.pop("validation_blocks")
    rewritten = {**state, "validation_losses": losses}
    (path / "state.json").write_text(json.dumps(rewritten))
    rewrite_state(path)
    shutil.copytree(path, path.with_name("step-00000006"))
    rewrite_state(path.with_name("step-00000006"), step=6)
    result = train(resume=str(tmp_path), steps=20)
    assert "step-00000006" in names(tmp_path)
    assert result.validations[:3] == [(3, 0.5, 0), (6, 0.1, 0), (9, 0.4, 0)]
    assert [(found.step, found.blocks) for found in result.validations[3:]] == [(12, 5), (15, 5), (18, 5), (20, 5)]
    assert len(whole.validations) == 4


# --- The last validation


def test_the_last_checkpoint_is_written_before_the_last_validation(
    monkeypatch: pytest.MonkeyPatch, text: str, tmp_path: Path
) -> None:
    whole = run(text, tmp_path / "whole")
    evaluate = train_transformer.evaluate

    def fail_at_the_end(*args: Any) -> float | None:
        if find(tmp_path / "parts").step == 12:
            raise MemoryError
        return evaluate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(train_transformer, "evaluate", fail_at_the_end)
        with pytest.raises(MemoryError):
            run(text, tmp_path / "parts", save_interval=1)
    assert parameters(tmp_path / "parts/model.safetensors") == parameters(whole.path)
    assert train(resume=str(tmp_path / "parts")).validations == whole.validations
    assert find(tmp_path / "parts").state["validation_losses"] == [list(pair) for pair in whole.validation_losses]


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGTERM here")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("last", [True, False])
def test_a_signal_stops_a_validation(text: str, tmp_path: Path, number: int, last: bool) -> None:
    Path(text).write_text(Path(text).read_text() * 500)
    out, steps = tmp_path / "out", 2 if last else 8
    options = {**RUN, "dataset": text, "out": out, "steps": steps, "warmup": 1, "eval_interval": 2, "eval_blocks": 0}
    with running(sys.executable, "train/train_transformer.py", *flags(**options), text=True) as process:
        deadline = time.monotonic() + 60
        while not (out / "checkpoints/step-00000002").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)  # the validation takes some ten seconds
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    ended = " in its last validation, which is not finished" if last else ""
    assert f"after step 2 of {steps}{ended}; resume with: python train/train_transformer.py --resume {out}\n" in output
    assert "validation loss" not in output
    assert find(out).step == 2
    assert load_model(out / "model.safetensors")
    assert read_metrics(out).validations == []


# --- Settings of other types, and starts that fail


def test_paths_and_numpy_scalars_are_settings(text: str, tmp_path: Path) -> None:
    plain = run(text, tmp_path / "a", learning_rate=float(np.float32(2e-3)))
    options: dict[str, Any] = {
        "steps": np.int64(12), "batch": np.array(4), "learning_rate": np.float32(2e-3), "dropout": np.float64(0.1),
        "tensorboard": np.bool_(False), "schedule": np.str_("cosine_with_warmup"), "grad_clip": 1,
    }  # fmt: skip
    settings = {**RUN, **options, "dataset": Path(text), "out": tmp_path / "b"}
    result = train(**settings)
    assert result.config == replace(plain.config, out=str(tmp_path / "b"))
    assert all(type(value) in (int, float, str, bool, type(None)) for value in vars(result.config).values())
    assert result.losses == plain.losses
    again = train(resume=tmp_path / "b", out=tmp_path / "c", steps=np.uint8(14))
    assert (again.config.out, again.steps) == (str(tmp_path / "c"), 14)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 5.0}, "steps must be of type int, got 5.0 of type float"),
        ({"steps": True}, "steps must be of type int, got True of type bool"),
        ({"steps": None}, "steps must be of type int, got None of type NoneType"),
        ({"batch": np.float64(4)}, r"batch must be of type int, got np.float64\(4.0\) of type float64"),
        ({"learning_rate": "1e-3"}, "learning_rate must be of type float or None, got '1e-3' of type str"),
        (
            {"learning_rate": np.array([1e-3])},
            r"learning_rate must be of type float or None, got array\(\[0.001\]\) of type nd",
        ),
        ({"tensorboard": 1}, "tensorboard must be of type bool, got 1 of type int"),
        ({"temperature": np.ma.masked}, "temperature must be of type float, got masked of type MaskedConstant"),
        ({"dropout": np.ma.array(0.5, mask=True)}, "dropout must be of type float, got masked_array"),
        (
            {"preset": ["shakespeare-cpu"]},
            r"preset must be of type str or None, got \['shakespeare-cpu'\] of type list",
        ),
        ({"warmup": "2"}, "warmup must be of type int or None, got '2' of type str"),
        ({"out": b"folder"}, "out must be of type str or None, got b'folder' of type bytes"),
        ({"prompt": Path("a")}, r"prompt must be of type str or None, got PosixPath\('a'\) of type PosixPath"),
        ({"stepz": 3}, "there is no setting stepz; did you mean steps?"),
    ],
    ids=str,
)
def test_a_setting_of_another_type_leaves_an_earlier_run_in_place(
    text: str, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    run(text, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for start in ({**RUN, "dataset": text, "out": str(tmp_path)}, {"resume": str(tmp_path)}):
        with pytest.raises(TypeError, match=message):
            train(**{**start, **options})
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("step", [1, 11])
def test_a_run_that_fails_before_a_step_is_logged_moves_the_earlier_one_back(
    monkeypatch: pytest.MonkeyPatch, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], step: int
) -> None:
    run(text, tmp_path)
    before, taken = sorted(path.name for path in tmp_path.iterdir()), []
    train_step = train_transformer.train_step

    def fail(*args: Any, **kwargs: Any) -> Any:
        taken.append(1)
        if len(taken) == step:
            raise MemoryError
        return train_step(*args, **kwargs)

    monkeypatch.setattr(train_transformer, "train_step", fail)
    with pytest.raises(MemoryError):
        run(text, tmp_path, save_interval=100, eval_interval=100)
    assert (f"the outputs of the earlier run are in {tmp_path} again" in capsys.readouterr().out) == (step == 1)
    if step == 1:
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        assert find(tmp_path).step == 12
    else:  # there are metrics of ten steps
        assert find(tmp_path / "earlier-1").step == 12
        assert read_metrics(tmp_path).steps == list(range(1, 11))


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_an_earlier_run_that_cannot_be_moved_stays_where_it_is(
    monkeypatch: pytest.MonkeyPatch, text: str, tmp_path: Path, failing: int
) -> None:
    run(text, tmp_path)
    before, rename, taken = sorted(path.name for path in tmp_path.iterdir()), Path.rename, []

    def full(path: Path, target: Path) -> Path:
        taken.append(path)
        if len(taken) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full)
        with pytest.raises(
            OSError, match=f"cannot move the outputs .* in {tmp_path} to .*earlier-1: No space left .* out"
        ):
            run(text, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert find(tmp_path).step == 12


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))], ids=str)
def test_a_start_that_fails_after_the_move_moves_the_earlier_run_back(
    monkeypatch: pytest.MonkeyPatch, text: str, tmp_path: Path, error: Any
) -> None:
    """Ctrl-C when the earlier run was moved, and a full disk under the copy of a pipe's text."""
    run(text, tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())

    def fail(*_: Any) -> None:
        assert (tmp_path / "earlier-1").exists()
        raise error

    monkeypatch.setattr(os.path, "isfile", lambda _: False)
    monkeypatch.setattr(checkpointer, "replace_file", fail)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else OSError):
        run(text, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert find(tmp_path).step == 12


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGHUP here")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_the_start_stops_the_run_after_a_step(
    monkeypatch: pytest.MonkeyPatch, text: str, tmp_path: Path, number: int
) -> None:
    def killed(*_: Any) -> None:
        raise AssertionError("a signal that would have ended the program")

    move, previous = checkpoints.move_earlier_run, signal.signal(number, killed)

    def move_and_stop(folder: Path) -> Path | None:
        moved = move(folder)
        signal.raise_signal(number)
        return moved

    try:
        run(text, tmp_path)
        monkeypatch.setattr(checkpoints, "move_earlier_run", move_and_stop)
        result = run(text, tmp_path)
    finally:
        signal.signal(number, previous)
    assert (result.signal, result.steps, find(tmp_path).step) == (number, 1, 1)
    assert find(tmp_path / "earlier-1").step == 12


# --- Where the text comes from


def test_a_relative_dataset_is_found_from_another_folder(
    monkeypatch: pytest.MonkeyPatch, text: str, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = run("text.txt", tmp_path / "whole")
    run("text.txt", Path("runs/a"), steps=4, warmup=1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    Path("text.txt").write_text("another text with this name")
    assert train(resume="../runs/a", steps=12, warmup=2).steps == 12
    # A project that was moved as a whole: the path as it was given still fits.
    Path(text).rename(tmp_path / "elsewhere" / "text.txt")
    assert train(resume=whole.path.parent).steps == 12
    Path("text.txt").unlink()
    with pytest.raises(
        ValueError,
        match=r"dataset 'text.txt' is neither a file nor .* starts in the current folder, .*\); give the path of the "
        r"text of \S+/whole/checkpoints/step-00000012 with dataset$",
    ):
        train(resume=whole.path.parent)


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="there is no /dev/fd here")
@pytest.mark.parametrize(
    "source", ["--dataset <(cat text.txt)", "--dataset /dev/stdin < text.txt", "--dataset /dev/stdin < <(cat text.txt)"]
)
def test_a_pipe_is_a_dataset(text: str, tmp_path: Path, source: str) -> None:
    content = "\ufeff" + Path(text).read_text() + "\r\r\n\r"  # what reading changes must not be changed twice
    Path(text).write_bytes(content.encode())
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    script = f'exec "$0" "$@" {source}'
    arguments = flags(**{**RUN, "steps": 4, "warmup": 1}, out="out")
    done = subprocess.run(
        [bash, "-c", script, sys.executable, str(ROOT / "train/train_transformer.py"), *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/dataset-copy.txt").exists() == ("<(" in source)
    assert train(resume=tmp_path / "out", steps=8).steps == 8
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    assert train(resume=moved, steps=9).steps == 9
    run(text, moved)
    assert train(resume=moved / "earlier-1", steps=10).steps == 10
    train(resume=moved / "earlier-1", out=tmp_path / "other", steps=11)
    shutil.rmtree(moved)
    assert train(resume=tmp_path / "other", steps=12).steps == 12  # it has a copy of its own


def test_a_dataset_in_the_folder_of_the_run_is_not_moved(text: str, tmp_path: Path) -> None:
    dataset = tmp_path / "out" / "dataset.txt"
    dataset.parent.mkdir()
    content = Path(text).read_bytes()
    dataset.write_bytes(content)
    for _ in range(2):
        run(str(dataset), dataset.parent, steps=4, warmup=1)
        assert dataset.read_bytes() == content
    assert not (dataset.parent / "earlier-1" / "dataset.txt").exists()
    # A file with the name of a run's copy of a pipe, which this run does not have.
    (dataset.parent / checkpoints.TEXT).write_text("somebody's")
    assert train(resume=dataset.parent, steps=5).config.dataset == str(dataset)
    before = {path: path.read_bytes() for path in dataset.parent.rglob("*") if path.is_file()}
    inside = dataset.parent / "checkpoints" / "text.txt"
    for taken in (dataset.parent / checkpoints.TEXT, dataset.parent / "report.html", inside):
        shutil.copy(text, taken)
        with pytest.raises(ValueError, match=rf"dataset '{taken}' has the path of an output of .* folder with out$"):
            run(str(taken), dataset.parent)
        assert taken.read_bytes() == content
        taken.unlink()
    before.pop(dataset.parent / checkpoints.TEXT)
    assert {path: path.read_bytes() for path in dataset.parent.rglob("*") if path.is_file()} == before


def test_a_folder_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=f"dataset '{tmp_path}' is a folder without train.bin and val.bin; set dataset "
    ):
        run(str(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- Resuming with other settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 24}, r"the learning rate changes from 0.0002 to 0.00123 at step 13: steps is 24 instead of 12\n"),
        (
            {"steps": 24, "schedule": "constant"},
            r"from 0.0002 to 0.002 at step 13: schedule is constant instead of cos",
        ),
        ({"steps": 24, "learning_rate": 1e-3}, r"at step 13: learning_rate is 0.001 instead of 0.002, steps is 24 ins"),
        ({"eval_interval": 5}, None),
        ({}, None),
    ],
    ids=str,
)
def test_a_changed_learning_rate_is_announced(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str | None
) -> None:
    run(text, tmp_path)
    capsys.readouterr()
    train(resume=str(tmp_path), **changes)
    output = capsys.readouterr().out
    assert re.search(message, output) if message else "learning rate" not in output


def test_messages_name_options_on_the_command_line_and_settings_in_python(text: str, tmp_path: Path) -> None:
    run(text, tmp_path / "a")
    elsewhere = shutil.copytree(tmp_path / "a" / "checkpoints", tmp_path / "copy")
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"out": text}, "choose another with out", "choose another with --out"),
        ({"resume": str(tmp_path / "a"), "steps": 3}, "and steps is 3", "and --steps is 3"),
        ({"resume": str(tmp_path / "a"), "width": 8}, "with width 16, not 8", "with --width 16, not 8"),
        ({"resume": str(elsewhere)}, "; set out to the folder", "; set --out to the folder"),
        ({"block": 1000}, "or a smaller block", "or a smaller --block"),
        ({"warmup": 50}, "warmup must be less than steps", "--warmup must be less than --steps"),
        ({"accumulate": 3}, "accumulate must divide the batch", "--accumulate must divide the batch"),
        ({"min_learning_rate": 1.0}, "min_learning_rate 1.0 is above", "--min-learning-rate 1.0 is above"),
        ({"dataset": str(tmp_path)}, "; set dataset to", "; set --dataset to"),
    ]
    for options, in_python, on_the_command_line in cases:
        given = options if "resume" in options else {**RUN, "dataset": text, "out": str(tmp_path / "new"), **options}
        with pytest.raises((ValueError, OSError)) as caught:
            train(**given)
        assert in_python in str(caught.value) and "--" not in str(caught.value)
        done = run_python("train/train_transformer.py", *flags(**given))
        assert done.returncode != 0
        assert on_the_command_line in done.stderr
