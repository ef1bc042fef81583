"""Training that is killed at any point, stopped, or left without space on the disk, and goes on."""

import json
import os
import random
import subprocess
import sys

import pytest

from soae_ext.training.run import RunDirectory
from soae_ext.training.state import read_state
from tests.cli_harness import ROOT
from tests.training_runs import outcome

pytest.importorskip("lightning_fabric")


@pytest.fixture(scope="module")
def ask():
    """Sends a request to `tests/training_server.py` and gives its answer."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.training_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )

    def request(run_dir, **fault):
        server.stdin.write(json.dumps({"run_dir": str(run_dir), **fault}) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    yield request
    server.stdin.close()
    server.wait(timeout=60)


@pytest.fixture(scope="module")
def whole(ask, tmp_path_factory):
    """What a run leaves that nothing interrupted, and its number of file operations."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    answer = ask(run_dir)
    assert (answer["status"], answer["output"]) == (0, ["finished"])
    return outcome(run_dir), answer["operations"]


def survives(run_dir):
    """Whether each of the checkpoints, of which there are three at most, is whole."""
    paths = sorted(run_dir.glob("checkpoint-*.safetensors"))
    for path in paths:
        read_state(path)
    assert len(paths) <= 3
    return paths


def check_kills(ask, whole, tmp_path, operations):
    for number in operations:
        run_dir = tmp_path / str(number)
        assert ask(run_dir, operation=number)["status"] == -9
        saved = survives(run_dir)
        answer = ask(run_dir)
        assert (answer["status"], answer["output"]) == (0, ["finished"]), number
        assert outcome(run_dir) == whole[0], number
        assert len(saved) >= 1 or number < whole[1] // 4  # it went on from there, not from the start


def test_a_run_that_is_killed_before_a_file_operation_ends_the_same(ask, whole, tmp_path):
    check_kills(ask, whole, tmp_path, range(1, whole[1] + 1, 19))


@pytest.mark.slow
def test_a_run_that_is_killed_before_any_file_operation_ends_the_same(ask, whole, tmp_path):
    check_kills(ask, whole, tmp_path, range(1, whole[1] + 1))


@pytest.mark.slow
def test_20_kills_at_random_points_change_nothing(ask, whole, tmp_path):
    """Kill after kill, each a random time after the last one, until 20 have hit; then the run may finish."""
    kills, number = 0, 0
    moments = random.Random(3)
    while kills < 20:
        run_dir = tmp_path / str(number)
        answer = ask(run_dir, seconds=moments.uniform(0.0, 0.6))
        kills += answer["status"] == -9
        survives(run_dir) if run_dir.is_dir() else None
        if answer["status"] == 0:
            assert outcome(run_dir) == whole[0]
            number += 1
    assert ask(tmp_path / str(number))["output"] == ["finished"]
    assert outcome(tmp_path / str(number)) == whole[0]


@pytest.mark.parametrize("step", [1, 5, 8, 24])
def test_sigterm_saves_and_the_run_goes_on(ask, whole, tmp_path, step):
    """Also after the last step of an epoch (8), of all (24), where the validation is still to come."""
    run_dir = tmp_path / "run"
    answer = ask(run_dir, step=step)
    reached = min(step + 1, 24) if step % 8 else step
    assert (answer["status"], answer["output"]) == (0, [f"stopped after step {reached}"])
    assert read_state(survives(run_dir)[-1])[2].step == reached
    assert not (run_dir / "model.safetensors").exists()
    assert ask(run_dir)["output"] == ["finished"]
    assert outcome(run_dir) == whole[0]


def test_a_run_that_is_killed_while_it_validates_again_logs_the_epoch_once(ask, whole, tmp_path):
    run_dir = tmp_path / "run"
    ask(run_dir, step=8)
    for number in range(1, 12, 2):
        assert ask(run_dir, operation=number)["status"] == -9
    assert ask(run_dir)["output"] == ["finished"]
    assert outcome(run_dir) == whole[0]


def test_a_full_disk_is_one_line_and_leaves_the_checkpoints(ask, whole, tmp_path):
    for full in (10, 80, 150):
        run_dir = tmp_path / str(full)
        answer = ask(run_dir, full=full)
        (line,) = answer["output"]
        assert line.startswith("OSError: [Errno 28] No space left on device (older checkpoints are intact")
        before = [path.name for path in survives(run_dir)]
        assert not list(run_dir.glob(".*.tmp"))
        assert ask(run_dir, full=1)["output"][0].startswith("OSError: [Errno 28] No space left")
        assert [path.name for path in survives(run_dir)] == before
        assert ask(run_dir)["output"] == ["finished"]
        assert outcome(run_dir) == whole[0]


def test_a_finished_run_is_left_as_it_is(ask, whole, tmp_path):
    run_dir = tmp_path / "run"
    assert ask(run_dir)["output"] == ["finished"]
    assert ask(run_dir)["output"] == ["finished"]
    assert outcome(run_dir) == whole[0]


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(ask, whole, tmp_path):
    run_dir = tmp_path / "run"
    ask(run_dir, step=13)
    older, newest = survives(run_dir)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    line, end = ask(run_dir)["output"]
    assert line == f"{newest} is damaged, or no checkpoint of a training run: continuing from {older.name}"
    assert end == "finished"
    (run_dir / f"{newest.name}.damaged").unlink()
    assert outcome(run_dir) == whole[0]


def test_two_processes_do_not_train_in_one_directory(ask, tmp_path):
    run_dir = tmp_path / "run"
    with RunDirectory(run_dir, {"objective": "another"}, resume=False, warn=print):
        (line,) = ask(run_dir)["output"]
    assert line == f"ValueError: run_dir: {run_dir} is in use: another process is training there"
