"""Those who are told how a run goes: the log's lines, TensorBoard's points, the lines on screen."""

import json
import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import StringIO
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)

from data_pipeline import StorageError
from distrain.coordinator import event_log, log_tail
from distrain.coordinator.event_log import EventLog
from distrain.coordinator.ledger import LedgerTotals
from distrain.coordinator.log_tail import cut_back
from distrain.coordinator.observers import (
    Ending,
    EpochRecord,
    Observer,
)
from distrain.coordinator.progress import PlainLines, ProgressBar
from distrain.coordinator.score_lines import score_lines
from distrain.coordinator.tensorboard_log import TensorBoardLog
from distrain.errors import ConfigError
from distrain.parallel.split import BatchPlan
from distrain.practice.inspection import Inspection
from distrain.step import StepResult

PLAN = BatchPlan(num_rows=100, global_batch=32, micro_batch=8)


def step_result(
    step: int, *, loss: float = 2.0, weight: float = 1.0, lr: float = 0.5
) -> StepResult:
    batch = PLAN.batch(step)
    nothing = torch.zeros(0)
    totals = LedgerTotals(loss * weight, weight, batch.num_samples, (), nothing, nothing)
    return StepResult(batch, totals, grad_norm=1.5, lr=lr)


def epoch_record(epoch: int, **scores: float) -> EpochRecord:
    return EpochRecord(epoch, epoch * PLAN.steps_per_epoch, scores, 0.25, 1234.5678)


def tell(observer: Observer, *, epochs: int = 2, ending: Ending | None = None) -> None:
    observer.begin(PLAN, epochs)
    for epoch in range(epochs):
        for number in range(PLAN.steps_per_epoch):
            observer.step(step_result(epoch * PLAN.steps_per_epoch + number))
        observer.epoch(epoch_record(epoch + 1, loss=0.5, val_loss=0.75))
    observer.end(ending or Ending("finished", 0, best_epoch=1))


def lines(folder: Path) -> Iterator[dict[str, Any]]:
    """The log's events, read as strict JSON: NaN and Infinity are none."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    for line in (folder / "events.jsonl").read_text().splitlines():
        event = json.loads(line, parse_constant=refuse)
        assert event.pop("time") > 0
        yield event


def test_the_log_has_a_line_a_step_between_those_of_epochs_begin_and_end(tmp_path: Path) -> None:
    tell(EventLog(tmp_path))
    events = list(lines(tmp_path))
    kinds = [event["event"] for event in events]
    assert kinds == ["begin", *["step"] * 4, "epoch", *["step"] * 4, "epoch", "end"]
    assert [event["step"] for event in events if event["event"] == "step"] == list(range(1, 9))
    assert events[0] == {
        "event": "begin",
        "epochs": 2,
        "rows": 100,
        "steps_per_epoch": 4,
        "global_batch": 32,
        "micro_batch": 8,
    }
    assert events[8] == {
        "event": "step",
        "step": 7,
        "epoch": 2,
        "loss": 2.0,
        "grad_norm": 1.5,
        "lr": 0.5,
        "samples": 32,
    }
    assert events[9]["samples"] == 4, "the short batch counts what it has"
    assert events[5] == {
        "event": "epoch",
        "epoch": 1,
        "step": 4,
        "loss": 0.5,
        "val_loss": 0.75,
        "seconds": 0.25,
        "samples_per_s": 1234.6,
    }
    assert events[-1] == {"event": "end", "reason": "finished", "exit_code": 0, "best_epoch": 1}


def test_what_is_not_finite_is_null_in_the_log(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.step(step_result(0, weight=0.0))
    log.step(step_result(1, lr=math.inf))
    log.epoch(epoch_record(1, loss=math.nan, f1=math.inf, val_loss=0.5))
    events = list(lines(tmp_path))
    assert events[0]["loss"] is None
    assert events[1]["lr"] is None
    assert (events[2]["loss"], events[2]["f1"], events[2]["val_loss"]) == (None, None, 0.5)
    log.end(Ending("x", 70))


def test_each_line_is_in_the_file_at_once(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    for count in range(1, 4):
        log.step(step_result(count))
        assert len(list(lines(tmp_path))) == count
    log.end(Ending("finished", 0))


def test_lines_of_several_threads_come_once_and_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path)
    file = log._file

    def write_slowly(line: bytes) -> int:
        sleep(0.001)  # others have their turn between what is taken and what is left
        return file.write(line)

    slow = mock.Mock(wraps=file, **{"write.side_effect": write_slowly})
    with monkeypatch.context() as slowly, ThreadPoolExecutor(4) as threads:
        slowly.setattr(log, "_file", slow)
        list(threads.map(lambda number: log.note("slow", "text", number=number), range(100)))
    assert sorted(event["number"] for event in lines(tmp_path)) == list(range(100))
    log.end(Ending("finished", 0))


def test_an_error_is_logged_with_its_details(tmp_path: Path) -> None:
    tell(EventLog(tmp_path), ending=Ending('a "quoted"\nreason', 70, details={"rows": (3, 4)}))
    assert list(lines(tmp_path))[-1] == {
        "event": "end",
        "reason": 'a "quoted"\nreason',
        "exit_code": 70,
        "rows": [3, 4],
    }


def test_a_log_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*events\.jsonl: No such file"):
        EventLog(tmp_path / "absent")


def test_a_disk_that_is_full_for_a_while_costs_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = EventLog(tmp_path)
    file = log._file
    log.step(step_result(0))
    with monkeypatch.context() as full, Path("/dev/full").open("ab", buffering=0) as device:
        full.setattr(log, "_file", device)
        log.step(step_result(1))
        log.step(step_result(2))
        assert capsys.readouterr().out.count("No space left on device: the run goes on") == 1
        assert [event["step"] for event in lines(tmp_path)] == [1]
        full.setattr(event_log, "MOST_PENDING_BYTES", 10)
        with pytest.raises(StorageError, match=r"cannot write .*events\.jsonl: No space left"):
            log.step(step_result(3))
    assert log._file is file
    log.step(step_result(4))
    assert [event["step"] for event in lines(tmp_path)] == [1, 2, 3, 4, 5]
    log.end(Ending("finished", 0))


def test_a_log_that_cannot_be_written_at_the_end_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    monkeypatch.setattr(event_log, "write_whole", lambda _path, _content: None)
    log = EventLog(tmp_path)
    log.step(step_result(0))
    with pytest.raises(StorageError, match="No space left"):
        log.end(Ending("failed", 74))


@given(
    steps=st.integers(0, 40),
    cut=st.integers(0, 45),
    late=st.integers(0, 3),
    block=st.sampled_from([7, 100, 1 << 16]),
)
def test_a_log_is_cut_back_to_the_resumed_step(steps: int, cut: int, late: int, block: int) -> None:
    """Checkpoints are told of some steps `late`; one that comes after a later step is cut too."""
    with TemporaryDirectory() as name:
        path = Path(name) / "events.jsonl"
        whole = [b'{"event": "begin"}\n']
        for step in range(1, steps + 1):
            whole.append(b'{"event": "step", "step": %d}\n' % step)
            if step > 5 and (step - late) % 5 == 0:
                line = b'{"event": "checkpoint", "text": "\xc3\xa9", "step": %d}\n'
                whole.append(line % (step - late))
        path.write_bytes(b"".join(whole) + b'{"event": "end"}\n{"event": "st')
        with mock.patch.object(log_tail, "BLOCK_BYTES", block):
            cut_back(path, cut)
        kept = list(takewhile(lambda line: json.loads(line)["step"] <= cut, whole[1:]))
        assert path.read_bytes() == (b"".join([whole[0], *kept]) if kept else b"")


@pytest.mark.parametrize("times", [1, 2])
def test_an_epoch_whose_evaluation_comes_again_is_told_once(tmp_path: Path, times: int) -> None:
    def line(event: str, **fields: object) -> bytes:
        return json.dumps({"event": event, **fields}).encode() + b"\n"

    path = tmp_path / "events.jsonl"
    before = [line("step", step=6), line("epoch", step=6, epoch=1), line("step", step=7)]
    before += [line("step", step=12), line("checkpoint", step=12), line("resume", step=12)]
    starts = (line("begin"), line("resume", step=12))
    told = [line("epoch", step=12, epoch=2), *starts] * times
    path.write_bytes(b"".join([*before, *told, line("epoch", step=12, epoch=2)]))
    cut_back(path, 12, epochs=1)
    assert path.read_bytes() == b"".join([*before, *starts * times])
    cut_back(path, 12, epochs=1)
    assert path.read_bytes() == b"".join([*before, *starts * times])
    path.write_bytes(b"".join([*before, *told]))
    cut_back(path, 12, epochs=2)
    assert path.read_bytes() == b"".join([*before, *told])


def test_an_orphan_finds_that_another_writes_to_its_log(tmp_path: Path) -> None:
    def superseded() -> None:
        raise ConfigError("a newer start")

    orphan, newer = EventLog(tmp_path, 0, superseded), EventLog(tmp_path, 5)
    newer.step(step_result(0))
    with pytest.raises(ConfigError, match="a newer start"):
        orphan.step(step_result(0))
    with pytest.raises(ConfigError, match="a newer start"):
        orphan.end(Ending("finished", 0))
    assert len(list(lines(tmp_path))) == 1
    newer.end(Ending("finished", 0))


def curves_in(run: Path) -> dict[str, list[tuple[int, float]]]:
    """As TensorBoard itself reads them."""
    found = EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    return {
        tag: [(point.step, point.value) for point in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def test_tensorboard_has_a_point_each_tenth_step_and_at_each_epochs_end(tmp_path: Path) -> None:
    tell(TensorBoardLog(tmp_path), epochs=6)
    curves = curves_in(tmp_path)
    ends = [4 * epoch for epoch in range(1, 7)]
    assert curves["train/loss"] == [(10, 2.0), (20, 2.0)]
    assert curves["train/grad_norm"] == [(10, 1.5), (20, 1.5)]
    assert curves["train/lr"] == [(10, 0.5), (20, 0.5)]
    assert curves["epoch/loss"] == [(end, 0.5) for end in ends]
    assert curves["epoch/val_loss"] == [(end, 0.75) for end in ends]
    assert [step for step, _ in curves["speed/samples_per_s"]] == ends


def test_where_a_run_goes_back_its_curves_do_too(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path)
    for epoch, loss in ((1, 0.5), (2, 0.25), (3, 0.125)):
        log.epoch(epoch_record(epoch, loss=loss))
    log.note("go_back", "went back", step=6)
    log.epoch(epoch_record(2, loss=0.75))
    log.end(Ending("finished", 8))
    assert curves_in(tmp_path)["epoch/loss"] == [(4, 0.5), (8, 0.75)]


def test_plain_lines_say_what_is_ahead_and_each_epochs_scores(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tell(PlainLines())
    assert capsys.readouterr().out.splitlines() == [
        "100 rows, 2 epochs of 4 steps, global batch 32 = 4 micro-batches of 8",
        "epoch 1/2: loss 0.5000, val_loss 0.7500 (1,235 samples/s)",
        "epoch 2/2: loss 0.5000, val_loss 0.7500 (1,235 samples/s)",
    ]


def test_a_long_epoch_shows_a_line_of_its_own_after_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("distrain.coordinator.progress.time.monotonic", lambda: now)
    shown = PlainLines()
    shown.begin(PLAN, 1)
    capsys.readouterr()
    for step, moment in enumerate((105.0, 111.0, 112.0)):
        now = moment
        shown.step(step_result(step))
    assert capsys.readouterr().out == "epoch 1/1: step 2/4, loss 2.0000\n"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_bar_fits_its_terminal_and_shows_loss_and_progress(width: int) -> None:
    out = StringIO()
    bar = ProgressBar(Console(file=out, width=width, force_terminal=True, color_system=None))
    bar.begin(PLAN, 2)
    for step in range(7):
        bar.step(step_result(step))
    bar.epoch(epoch_record(1, loss=0.5, accuracy=0.25, val_loss=0.75, val_accuracy=0.125))
    bar.step(step_result(7))
    bar.end(Ending("finished", 0))
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue()).replace("\r", "\n").splitlines()
    last = [line for line in shown if line.strip()][-1]
    assert "8/8" in last
    assert "loss 2.0000" in last
    if width >= 80:
        assert "epoch 2/2" in last
        assert "val_accuracy 0.1250" in last
    assert all(len(line) <= width for line in shown)


def test_an_epochs_scores_stand_on_a_line_for_training_and_one_for_validation() -> None:
    assert score_lines({"loss": 0.5, "f1": 0.25, "val_loss": 0.75, "val_f1": None}) == [
        "training    loss 0.5000, f1 0.2500",
        "validation  loss 0.7500, f1 nan",
    ]
    assert len(score_lines({"loss": 0.5})) == 1
    assert score_lines({}) == []


def test_many_scores_take_as_many_lines_as_fit_a_terminal_and_no_number_stands_alone() -> None:
    names = [f"val_{part}_{one}" for part in ("clean", "shifted") for one in ("loss", "roc_auc")]
    lines = score_lines(dict.fromkeys(names, 0.5))
    assert lines == [
        "validation  clean_loss 0.5000, clean_roc_auc 0.5000, shifted_loss 0.5000,",
        "            shifted_roc_auc 0.5000",
    ]


def test_a_look_inside_is_an_event_and_points_of_its_own(tmp_path: Path) -> None:
    found = Inspection(
        ("a.weight", "a.bias"), (1.0, 2.0), (4.0, 0.0), (0.004, 0.0), (0.001, math.nan)
    )
    result = replace(step_result(2), inspection=found)
    for observer in (EventLog(tmp_path), TensorBoardLog(tmp_path)):
        observer.step(step_result(1))
        observer.step(result)
        observer.end(Ending("finished", 0))
    (event,) = [event for event in lines(tmp_path) if event["event"] == "inspect"]
    assert event == {
        "event": "inspect",
        "step": 3,
        "gradient_norm": {"a.weight": 1.0, "a.bias": 2.0},
        "weight_norm": {"a.weight": 4.0, "a.bias": 0.0},
        "update_ratio": {"a.weight": 0.001, "a.bias": None},
    }
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = curves.Tags()["scalars"]
    assert "update_ratio/a.weight" in tags
    assert "update_ratio/a.bias" not in tags, "weights that are all 0 have no ratio"
    (point,) = curves.Scalars("weight_norm/a.weight")
    assert (point.step, point.value) == (3, 4.0)
