"""Training in two processes, as torchrun starts them: what one process does, and all fail together."""

import json

import pytest

from soae_ext.training.state import read_state
from tests.cli_harness import process

pytest.importorskip("lightning_fabric")
pytestmark = pytest.mark.slow

MODULE = ("-m", "tests.training_ddp")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *MODULE)
TIMINGS = ("seconds", "images_per_second")


def train(folder, fault="none", program=TORCHRUN):
    """Exit status and the lines on stderr that tell an error."""
    process_ = process(str(folder), fault, program=program)
    _, err = process_.communicate(timeout=500)
    errors = [line for line in err.splitlines() if "Error: " in line and not line.startswith((" ", "torch."))]
    return process_.returncode, errors


def seen(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What one process and what two saw."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(folder, program=MODULE) == (0, [])
    assert train(folder) == (0, [])
    return folder


def assert_alike(ours, theirs, rel):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for name in one.keys() - set(TIMINGS):
            assert one[name] == (other[name] if one[name] is None else pytest.approx(other[name], rel=rel)), name


def test_two_processes_have_the_loss_of_one_over_50_steps(whole):
    one, two = seen(whole, "1-0"), seen(whole, "2-0")
    assert len(one["rows"]) == 50
    assert one["rows"][-1]["loss"] < one["rows"][0]["loss"]
    assert_alike(one["rows"], two["rows"], 1e-5)
    assert_alike(one["epochs"], two["epochs"], 1e-5)
    assert [part for row in one["weights"] for part in row] == pytest.approx(
        [part for row in two["weights"] for part in row], rel=1e-3, abs=1e-5
    )


def test_both_processes_hold_the_same_network_and_one_reports(whole):
    first, second = seen(whole, "2-0"), seen(whole, "2-1")
    assert first["weights"] == second["weights"]
    assert second["rows"] == []
    names = sorted(path.name for path in (whole / "2").iterdir())
    assert names == [
        ".lock",
        "best.safetensors",
        "checkpoint-00000048.safetensors",
        "checkpoint-00000050.safetensors",
        "model.safetensors",
        "run.json",
    ]


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("objective:1", "ValueError: x: process 1 does not like it"),
        ("objective:0", "ValueError: x: process 0 does not like it"),
        ("full", "OSError: [Errno 28] No space left on device (older checkpoints are intact: make room, then resume)"),
        (
            "nan:1",
            "FloatingPointError: the loss is nan in step 4: begin another run with a smaller lr, or clip_gradient",
        ),
    ],
)
def test_what_fails_in_one_process_fails_in_both(tmp_path, fault, line):
    status, lines = train(tmp_path, fault)
    assert status == 1
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert lines[0].startswith(line)


def test_a_signal_to_one_process_stops_both_after_the_same_step_and_one_process_can_go_on(whole, tmp_path):
    assert train(tmp_path, "signal:1") == (0, [])
    assert seen(tmp_path, "2-0")["step"] == seen(tmp_path, "2-1")["step"] == 7
    newest = max((tmp_path / "2").glob("checkpoint-*"))
    assert read_state(newest)[2].step == 7
    (tmp_path / "2").rename(tmp_path / "1")
    assert train(tmp_path, program=MODULE) == (0, [])
    assert_alike(seen(tmp_path, "1-0")["rows"], seen(whole, "1-0")["rows"][7:], 1e-5)
