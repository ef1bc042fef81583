"""The log of a training run: what is written, and what is left after going back to a checkpoint."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from soae_ext.training.log import COLUMNS, TIMINGS, RunLog, read_log
from tests.cli_harness import refuse

FILES = ("log.jsonl", "steps.csv", "epochs.csv")


def row(step, **values):
    return {"step": step, "epoch": step // 4, "loss": 1 / step, "lr": 0.1, "gradients": 80 * step, **values}


def write(directory, steps, tensorboard=False, every=4):
    with RunLog(directory, tensorboard=tensorboard) as log:
        fill(log, steps, every)


def fill(log, steps, every=4):
    for step in steps:
        log.step(row(step, robust_accuracy=0.5))
        if step % every == 0:
            log.epoch(row(step, clean_accuracy=0.9, robust_accuracy=0.7))


def contents(directory):
    return {name: (directory / name).read_text() for name in FILES}


def test_the_three_files_say_the_same(tmp_path):
    write(tmp_path, range(1, 10))
    lines = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == [*["step"] * 4, "epoch", *["step"] * 4, "epoch", "step"]
    for kind, name in (("step", "steps.csv"), ("epoch", "epochs.csv")):
        with (tmp_path / name).open(newline="") as file:
            table = list(csv.DictReader(file))
        assert [list(entry) for entry in table] == [list(COLUMNS)] * len(table)
        for entry, line in zip(table, (line for line in lines if line["kind"] == kind), strict=True):
            for column in COLUMNS:
                value = None if entry[column] == "" else float(entry[column])
                assert value == line[column]  # every digit
    assert read_log(tmp_path).steps == [
        {name: row_[name] for name in COLUMNS} for row_ in lines if row_["kind"] == "step"
    ]
    assert set(TIMINGS) < set(COLUMNS)


def test_rows_are_on_the_disk_as_soon_as_they_are_added(tmp_path):
    log = RunLog(tmp_path, tensorboard=False)
    log.step(row(1))
    assert len(read_log(tmp_path).steps) == 1
    log.epoch(row(1))
    log.sync()
    assert len(read_log(tmp_path).epochs) == 1


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 12), st.integers(0, 12), st.sampled_from(FILES), st.integers(0, 90))
@example(10, 9, "steps.csv", 1)  # the "1" of "10", which is a step before the checkpoint
def test_a_log_that_was_cut_off_continues_like_one_that_was_not(tmp_path_factory, done, kept, torn, left):
    """Whatever step was reached, whatever the checkpoint, and however much of the last line a kill left."""
    kept = min(kept, done)
    whole, broken = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("broken")
    write(whole, range(1, 13))
    write(broken, range(1, done + 1))
    path = broken / torn
    last = path.read_text().splitlines(keepends=True)[-1:] if path.is_file() else []
    # What the last row of a file loses is written before the checkpoint is: only later ones can be torn.
    if last and done > kept and not (torn == "epochs.csv" and done // 4 == kept // 4):
        path.write_text(path.read_text()[: -len(last[0])] + last[0][:left])
    with RunLog(broken, tensorboard=False) as log:
        log.rewind(kept, epochs=kept // 4)
        fill(log, range(kept + 1, 13))
    assert contents(broken) == contents(whole)


@pytest.mark.parametrize("left", ["", "step,ep"])
def test_a_run_that_was_killed_before_its_first_row(tmp_path, left):
    (tmp_path / "steps.csv").write_text(left)
    with RunLog(tmp_path, tensorboard=False) as log:
        log.rewind(0, epochs=0)
        log.step(row(1))
    assert [line.partition(",")[0] for line in (tmp_path / "steps.csv").read_text().splitlines()] == ["step", "1"]


def test_an_epoch_that_was_validated_after_the_checkpoint_is_cut_off(tmp_path):
    write(tmp_path, range(1, 9))
    RunLog(tmp_path, tensorboard=False).rewind(8, epochs=1)
    kept = read_log(tmp_path)
    assert [entry["step"] for entry in kept.steps] == list(range(1, 9))
    assert [entry["epoch"] for entry in kept.epochs] == [1]
    assert len((tmp_path / "epochs.csv").read_text().splitlines()) == 2


def test_going_back_touches_nothing_where_nothing_came_after(tmp_path):
    write(tmp_path, range(1, 6))
    before = {name: (tmp_path / name).stat().st_ino for name in FILES}
    RunLog(tmp_path, tensorboard=False).rewind(5, epochs=1)
    assert {name: (tmp_path / name).stat().st_ino for name in FILES} == before
    RunLog(tmp_path / "empty", tensorboard=False).rewind(5, epochs=1)


def test_a_damaged_line_ends_what_is_kept(tmp_path):
    write(tmp_path, range(1, 6))
    path = tmp_path / "log.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], "\0\0\0\n", *lines[3:]]))
    with pytest.raises(ValueError, match="line 3 is damaged"):
        read_log(tmp_path)
    RunLog(tmp_path, tensorboard=False).rewind(5, epochs=1)
    assert path.read_text() == "".join(lines[:2])


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path):
    with RunLog(tmp_path, tensorboard=False) as log:
        log.step(row(1, loss=math.nan, krylov_mean=math.inf))
    assert read_log(tmp_path).steps[0]["loss"] is None
    assert (tmp_path / "steps.csv").read_text().splitlines()[1].split(",")[2] == "nan"


@pytest.mark.parametrize("bad", [{"step": 1, "los": 2.0}, {"loss": 1.0}, {"step": 1.5}])
def test_rows_must_have_known_names_and_a_step(tmp_path, bad):
    with pytest.raises(ValueError, match="row: expected `step` and others of step, epoch, loss"):
        RunLog(tmp_path, tensorboard=False).step(bad)
    assert not list(tmp_path.iterdir())


def test_reading_a_run_that_is_still_writing_its_last_line(tmp_path):
    write(tmp_path, range(1, 6))
    path = tmp_path / "log.jsonl"
    path.write_text(path.read_text()[:-7])
    assert [entry["step"] for entry in read_log(tmp_path).steps] == [1, 2, 3, 4]
    with pytest.raises(FileNotFoundError, match="holds no run"):
        read_log(tmp_path / "none")


def test_without_tensorboard_there_are_no_event_files(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    write(tmp_path, range(1, 5), tensorboard=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_tensorboard_shows_what_is_left_after_going_back(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write(tmp_path, range(1, 8), tensorboard=True)
    with RunLog(tmp_path) as log:
        log.rewind(5, epochs=1)
        for step in (6, 7, 8):
            log.step(row(step, loss=10.0 * step))
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    assert losses == pytest.approx({**{step: 1 / step for step in range(1, 6)}, 6: 60, 7: 70, 8: 80})
    assert [event.step for event in events.Scalars("validation/robust_accuracy")] == [4]
    assert Path(tmp_path, "tensorboard").is_dir()
