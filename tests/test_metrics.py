"""metrics.jsonl: writing and reading, resuming, errors, and TensorBoard."""

import json
import math
import struct
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import once, rng
from tests.process import ROOT
from train.metrics import Metrics, read_metrics

pytestmark = once


def write_steps(metrics: Metrics, first: int, last: int, seed: int = 0, chunk: int = 10) -> None:
    """Write steps first to last with random numbers, `chunk` at a time."""
    draws = rng(seed)
    for start in range(first, last + 1, chunk):
        count = min(chunk, last + 1 - start)
        metrics.steps(
            start,
            draws.random(count).tolist(),
            learning_rates=draws.random(count).tolist(),
            gradient_norms=draws.random(count).tolist(),
            tokens_per_second=1000.5,
            seconds=0.25 * (start + count - first),
        )


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


# --- Writing and reading


def test_metrics_round_trip(tmp_path: Path) -> None:
    losses, rates, norms = (rng(seed).random(5).tolist() for seed in range(3))
    with Metrics(tmp_path) as metrics:
        metrics.run(config={"steps": 5, "out": None}, parameters=123, backend="numpy")
        metrics.steps(
            1, losses[:3], learning_rates=rates[:3], gradient_norms=norms[:3], tokens_per_second=10.5, seconds=1.5
        )
        metrics.validation(3, 2.25, 240)
        metrics.sample(3, "\nROMEO: \u2028\ud800\u00e9\x00\n")
        metrics.steps(4, losses[3:], learning_rates=rates[3:], gradient_norms=None, tokens_per_second=11, seconds=2.5)
    history = read_metrics(tmp_path)
    assert history.steps == [1, 2, 3, 4, 5]
    assert history.losses == losses
    assert history.learning_rates == rates
    assert history.gradient_norms[:3] == norms[:3]
    assert all(map(math.isnan, history.gradient_norms[3:]))
    assert history.tokens_per_second == [10.5] * 3 + [11.0] * 2
    assert history.seconds == [1.5] * 3 + [2.5] * 2
    assert history.validations == [(3, 2.25, 240)]
    assert history.samples == [(3, "\nROMEO: \u2028\ud800\u00e9\x00\n")]
    ((step, facts),) = history.runs
    assert step == 0
    assert facts["config"] == {"steps": 5, "out": None}
    assert (facts["parameters"], facts["backend"]) == (123, "numpy")
    assert {"python", "russellgrad", "numpy"} <= facts["versions"].keys()
    assert read_metrics(tmp_path / "metrics.jsonl").steps == history.steps


def test_file_format(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        metrics.run(config={}, parameters=1, backend="numpy")
        metrics.steps(1, [2.5], learning_rates=[0.5], gradient_norms=None, tokens_per_second=9, seconds=1)
        metrics.validation(1, 2.0, 7)
        metrics.sample(1, "a")
    first, *others = lines(tmp_path)
    assert first["step"] == 0
    assert first["run"].keys() == {"config", "versions", "machine", "backend", "parameters", "started"}
    assert others == [
        {"step": 1, "loss": 2.5, "learning_rate": 0.5, "gradient_norm": None, "tokens_per_second": 9, "seconds": 1},
        {"step": 1, "validation_loss": 2.0, "blocks": 7},
        {"step": 1, "sample": "a"},
    ]


def test_non_finite_numbers_round_trip_as_valid_json(tmp_path: Path) -> None:
    strange = [math.nan, math.inf, -math.inf]
    with Metrics(tmp_path) as metrics:
        metrics.steps(
            1, strange, learning_rates=[0.1] * 3, gradient_norms=strange, tokens_per_second=math.inf, seconds=1
        )
        metrics.validation(3, math.nan, 1)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not valid JSON")

    text = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    parsed = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    assert [line["loss"] for line in parsed[:3]] == ["NaN", "Infinity", "-Infinity"]
    history = read_metrics(tmp_path)
    for values in (history.losses, history.gradient_norms):
        assert math.isnan(values[0])
        assert values[1:] == [math.inf, -math.inf]
    assert math.isnan(history.validations[0][1])


def test_numpy_numbers_are_accepted(tmp_path: Path) -> None:
    array: Any = rng().random(3).astype("float32")
    with Metrics(tmp_path) as metrics:
        metrics.steps(1, array, learning_rates=array, gradient_norms=array, tokens_per_second=array[0], seconds=1)
        metrics.validation(3, array[1], 1)
    assert read_metrics(tmp_path).losses == array.tolist()


def test_every_write_is_flushed(tmp_path: Path) -> None:
    """A process that exits without closing the file loses nothing."""
    code = (
        "import os; from train.metrics import Metrics\n"
        f"metrics = Metrics({str(tmp_path)!r}).__enter__()\n"
        "metrics.steps(1, [1.0], learning_rates=[1.0], gradient_norms=[1.0], tokens_per_second=1, seconds=1)\n"
        "metrics.sample(1, 'kept'); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False)
    assert read_metrics(tmp_path).steps == [1]
    assert read_metrics(tmp_path).samples == [(1, "kept")]


# --- A new run


def test_new_run_renames_the_old_file(tmp_path: Path) -> None:
    before = []
    for i in range(3):
        with Metrics(tmp_path) as metrics:
            metrics.sample(i, f"run {i}")
        before.append((tmp_path / "metrics.jsonl").read_bytes())
    assert (tmp_path / "metrics.1.jsonl").read_bytes() == before[0]
    assert (tmp_path / "metrics.2.jsonl").read_bytes() == before[1]
    assert (tmp_path / "metrics.jsonl").read_bytes() == before[2]


def test_file_is_unchanged_before_the_with_block(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("mine", encoding="utf-8")
    metrics = Metrics(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    with pytest.raises(RuntimeError, match="the file is not open; write inside a `with Metrics"):
        metrics.sample(1, "text")


# --- A resumed run


def test_resumed_run_continues_the_history(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        metrics.run(config={"part": 1}, parameters=1, backend="numpy")
        write_steps(metrics, 1, 30)
        metrics.validation(20, 2.0, 1)
        metrics.sample(20, "at 20")
        metrics.validation(30, 1.5, 1)
        metrics.sample(30, "at 30")
    whole = read_metrics(tmp_path)
    with Metrics(tmp_path, resume_at=20) as metrics:
        metrics.run(config={"part": 2}, parameters=1, backend="numpy")
        write_steps(metrics, 21, 40, seed=1)
    history = read_metrics(tmp_path)
    assert history.steps == list(range(1, 41))
    assert history.losses[:20] == whole.losses[:20]
    assert history.losses[20:30] != whole.losses[20:]
    assert history.validations == [(20, 2.0, 1)]
    assert history.samples == [(20, "at 20")]
    assert [(step, facts["config"]) for step, facts in history.runs] == [(0, {"part": 1}), (20, {"part": 2})]
    assert history.seconds[19] == 5.0
    assert history.seconds[20:] == [7.5] * 10 + [10.0] * 10  # added to the time of the first part
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_resuming_twice_at_one_step_drops_the_first_attempt(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        metrics.run(config={"part": 1}, parameters=1, backend="numpy")
        write_steps(metrics, 1, 10)
    for part in (2, 3):
        with Metrics(tmp_path, resume_at=5) as metrics:
            metrics.run(config={"part": part}, parameters=1, backend="numpy")
            write_steps(metrics, 6, 8)
    history = read_metrics(tmp_path)
    assert [facts["config"]["part"] for _, facts in history.runs] == [1, 3]
    assert history.steps == list(range(1, 9))


def test_truncated_last_line_is_dropped(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        write_steps(metrics, 1, 3)
        metrics.sample(3, "a long sample that is being written")
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    start = whole.rindex(b'{"step": 3, "sample"')
    for end in range(start + 1, len(whole) - 1):  # at len(whole) - 1 only the newline is missing
        path.write_bytes(whole[:end])
        history = read_metrics(path)
        assert history.steps == [1, 2, 3]
        assert not history.samples
    with Metrics(tmp_path, resume_at=3) as metrics:
        write_steps(metrics, 4, 4)
    assert read_metrics(path).steps == [1, 2, 3, 4]
    path.write_bytes(whole.removesuffix(b"\n"))
    with Metrics(tmp_path, resume_at=3) as metrics:
        write_steps(metrics, 4, 4)
    assert read_metrics(path).samples == [(3, "a long sample that is being written")]
    assert read_metrics(path).steps == [1, 2, 3, 4]


def test_resuming_without_a_file_creates_it(tmp_path: Path) -> None:
    with Metrics(tmp_path, resume_at=100) as metrics:
        metrics.run(config={}, parameters=1, backend="numpy")
        write_steps(metrics, 101, 105)
    assert read_metrics(tmp_path).steps == list(range(101, 106))
    assert read_metrics(tmp_path).runs[0][0] == 100


def test_resuming_a_damaged_file_raises_and_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "sample": "a"}\nnot JSON\n{"step": 2, "sample": "b"}\n')
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2, is not JSON"), Metrics(tmp_path, resume_at=1):
        pass
    assert path.read_bytes() == before


# --- Errors


def test_repeated_step_raises(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        write_steps(metrics, 1, 10)
        with pytest.raises(ValueError, match="step 10 is already there; the last one is 10"):
            write_steps(metrics, 10, 12)
    with Metrics(tmp_path, resume_at=5) as metrics, pytest.raises(ValueError, match="step 5 is already there"):
        write_steps(metrics, 5, 6)


def test_lists_of_different_lengths_raise(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics, pytest.raises(ValueError, match="2 losses, 1 learning rates and 2 gradient"):
        metrics.steps(1, [1, 2], learning_rates=[1], gradient_norms=None, tokens_per_second=1, seconds=1)
    assert not read_metrics(tmp_path).steps


@pytest.mark.parametrize("step", [0, -1])
def test_resuming_before_the_first_step_raises(step: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"resume_at must be at least 1, got {step}"):
        Metrics(tmp_path, resume_at=step)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "line 2, is not JSON"),
        ("[1]", "line 2: not a step, a validation, a sample or a run"),
        ('{"step": 1}', "line 2: not a step, a validation"),
        ('{"step": "1", "sample": "a"}', "line 2: step is '1', not of type int"),
        ('{"step": true, "sample": "a"}', "line 2: step is True, not of type int"),
        ('{"step": 1, "sample": 2}', "line 2: sample is 2, not of type str"),
        ('{"step": 1, "validation_loss": "much", "blocks": 1}', "line 2: could not convert string to float"),
        ('{"step": 1, "validation_loss": null, "blocks": 1}', "line 2: float"),
    ],
)
def test_malformed_line_raises(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "sample": "a"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        read_metrics(tmp_path)
    assert str(caught.value).endswith("remove the line")


def test_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no .*metrics\.jsonl; a training run writes it"):
        read_metrics(tmp_path)


# --- TensorBoard


def test_tensorboard_without_its_package_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r'tensorboardX; pip install "russellgrad\[tensorboard\]"'):
        Metrics(tmp_path, tensorboard=True)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert any(name.startswith("tensorboardX") for name in extras["tensorboard"])


def events(folder: Path) -> list[Any]:
    """All events in TensorBoard's files, in the order in which TensorBoard reads them.

    A record has its length (8 bytes), a checksum (4), the data, and a checksum (4) (TensorFlow, tfrecord_writer).
    """
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        raw, at = path.read_bytes(), 0
        while at < len(raw):
            (length,) = struct.unpack_from("<Q", raw, at)
            found.append(Event.FromString(raw[at + 12 : at + 12 + length]))
            at += 12 + length + 4
    return found


def test_tensorboard_has_the_same_history_after_resuming(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    with Metrics(tmp_path, tensorboard=True) as metrics:
        metrics.run(config={"steps": 30}, parameters=1, backend="numpy")
        write_steps(metrics, 1, 30)
        metrics.validation(30, 1.5, 1)
    with Metrics(tmp_path, resume_at=20, tensorboard=True) as metrics:
        write_steps(metrics, 21, 30, seed=1)
        metrics.sample(30, "a sample")
        metrics.validation(30, 1.25, 1)
    shown: dict[tuple[str, int], list[float]] = {}
    for event in events(tmp_path / "tensorboard"):
        if event.HasField("session_log"):  # TensorBoard then drops this step and all later ones
            assert event.session_log.status == event.session_log.START
            shown = {key: values for key, values in shown.items() if key[1] < event.step}
        for value in event.summary.value:
            shown.setdefault((value.tag, event.step), []).append(value.simple_value)
    assert all(len(values) == 1 for values in shown.values())
    history = read_metrics(tmp_path)
    expected = {("loss", step): loss for step, loss in zip(history.steps, history.losses, strict=True)}
    expected |= {("validation_loss", 30): 1.25}
    for key, value in expected.items():
        assert shown[key] == [pytest.approx(value, rel=1e-6)]  # TensorBoard stores float32
    tags = {tag.split("/")[0] for tag, _ in shown}
    assert tags == {
        "run", "sample", "loss", "learning_rate", "gradient_norm", "tokens_per_second", "validation_loss"
    }  # fmt: skip


def test_new_run_renames_the_tensorboard_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    for _ in range(2):
        with Metrics(tmp_path, tensorboard=True) as metrics:
            write_steps(metrics, 1, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "metrics.1.jsonl", "metrics.jsonl", "tensorboard", "tensorboard.1"
    ]  # fmt: skip
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
