"""Checkpoints and the directory that they are in."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import soae_ext.training.run as run
from soae_ext.evaluation.store import Store
from soae_ext.models import SmallCNN, load_checkpoint
from soae_ext.training import Recipe, Standard
from soae_ext.training.ema import MovingAverage
from soae_ext.training.loop import make_optimizer
from soae_ext.training.run import Best, RunDirectory
from soae_ext.training.state import Learner, Progress, read_state, save_weights, write_state
from soae_ext.training.sums import Sums
from tests.training_runs import network

IDENTITY = {"objective": "Standard()", "lr": 0.1, "milestones": (0.5, 0.75), "weights": "abc"}


def learner(seed=0, recipe=Recipe(ema=0.9), memory_format=torch.contiguous_format):  # noqa: B008 - a frozen value
    model = network(seed).to(memory_format=memory_format)
    average = MovingAverage(model, recipe.ema) if recipe.ema else None
    return Learner(model, make_optimizer(list(model.parameters()), recipe), average)


def update(learner, steps=1):
    for step in range(steps):
        learner.optimizer.zero_grad()
        generator = torch.Generator().manual_seed(step)
        learner.model(torch.rand(4, 1, 8, 8, generator=generator)).square().sum().backward()
        learner.optimizer.step()
        if learner.average:
            learner.average.update(learner.model, step + 1)


def progress(step=7):
    return Progress(step, [{"step": 4, "loss": 0.1 + 0.2, "robust_accuracy": None}], 2**60 + 1, 1 / 3, Sums(3.0, 0.7))


def opened(directory, *, resume=False, warn=pytest.fail, **changes):
    return RunDirectory(directory, {**IDENTITY, **changes}, resume=resume, warn=warn)


RECIPES = [
    Recipe(ema=0.9),
    Recipe(momentum=0.0),
    Recipe(optimizer="adam", lr=1e-3),
    Recipe(optimizer="adamw", lr=1e-3, ema=0.5),
]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.optimizer}-{recipe.momentum}")
def test_what_is_restored_goes_on_as_what_was_saved(recipe, memory_format, tmp_path):
    ours = learner(0, recipe, memory_format)
    torch.manual_seed(0)
    update(ours, 3)
    write_state(tmp_path / "file", ours, progress())
    theirs = learner(1, recipe, memory_format)
    tensors, numbers, found = read_state(tmp_path / "file")
    theirs.restore(tensors, numbers)
    assert found == progress()
    for one in (ours, theirs):
        torch.manual_seed(1)
        update(one, 3)
    expected, got = ours.state(), theirs.state()
    assert expected[1] == got[1]
    assert expected[0].keys() == got[0].keys()
    assert all(torch.equal(value, got[0][name]) for name, value in expected[0].items())
    for parameter, state in theirs.optimizer.state.items():
        for value in state.values():
            assert value is None or not value.ndim or value.stride() == parameter.stride()


def test_a_state_is_a_copy():
    ours = learner()
    before, _ = ours.state()
    kept = {name: value.clone() for name, value in before.items()}
    update(ours)
    assert all(torch.equal(value, kept[name]) for name, value in before.items())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "file"
    ours = learner()
    update(ours)
    write_state(path, ours, progress())
    return path


@settings(deadline=None, max_examples=300)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed(checkpoint, place, bit):
    content = bytearray(checkpoint.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    damaged = checkpoint.with_name("damaged")
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        read_state(damaged)


@settings(deadline=None, max_examples=60)
@given(part=st.floats(0, 1, exclude_max=True))
def test_no_truncation_goes_unnoticed(checkpoint, part):
    content = checkpoint.read_bytes()
    damaged = checkpoint.with_name("damaged")
    damaged.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match="damaged"):
        read_state(damaged)


def test_a_pickle_is_not_opened(tmp_path):
    torch.save({}, tmp_path / "file")
    with pytest.raises(ValueError, match="pickle"):
        read_state(tmp_path / "file")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_not_saved(tmp_path, value):
    ours = learner()
    write_state(tmp_path / "file", ours, progress())
    before = (tmp_path / "file").read_bytes()
    with torch.no_grad():
        ours.model[0].weight[0, 0, 0, 0] = value
    with pytest.raises(FloatingPointError, match=r"model/0\.weight is not finite after step 7"):
        write_state(tmp_path / "file", ours, progress())
    assert (tmp_path / "file").read_bytes() == before


def test_a_buffer_that_is_infinite_from_the_start_is_saved(tmp_path):
    network = nn.Sequential(nn.Linear(2, 2))
    network.register_buffer("mask", torch.full((2,), -torch.inf))
    ours = Learner(network, torch.optim.SGD(network.parameters(), 0.1), MovingAverage(network, 0.5))
    write_state(tmp_path / "file", ours, progress())
    tensors, _, _ = read_state(tmp_path / "file")
    assert (tensors["model/mask"] == -torch.inf).all()
    network[0].weight.data[0, 0] = torch.nan
    with pytest.raises(FloatingPointError):
        write_state(tmp_path / "file", ours, progress())


def test_weights_of_any_network_and_of_shared_parameters(tmp_path):
    wanted = SmallCNN((2, 4), 8)
    save_weights(wanted, tmp_path / "file", {"step": "3"})
    got = load_checkpoint(tmp_path / "file")
    assert all(torch.equal(value, got.state_dict()[name]) for name, value in wanted.state_dict().items())
    other = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    other[1].weight = other[0].weight
    save_weights(other, tmp_path / "other", {"step": "3"})
    tensors, metadata = run.read(tmp_path / "other")
    assert metadata == {"step": "3"}
    assert torch.equal(tensors["1.weight"], other[0].weight)


def test_the_order_in_which_things_reach_the_disk(tmp_path, monkeypatch):
    """The content, the name, the directory, and only then is an old checkpoint deleted."""
    events = []

    def spy(owner, name, tell):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **kw: (events.append(tell(*args)), original(*args, **kw))[1])

    kind = {True: "directory", False: "file"}
    spy(os, "fsync", lambda descriptor: f"flush {kind[Path(f'/proc/self/fd/{descriptor}').resolve().is_dir()]}")
    spy(os, "replace", lambda source, target: f"name {Path(target).name}")
    spy(Path, "unlink", lambda path, **_: f"delete {path.name}")
    ours = learner()
    with opened(tmp_path / "run") as directory:
        assert events == ["flush file", "name run.json", "flush directory"]
        for step in (1, 2):
            directory.save(ours, Progress(step))
        events.clear()
        directory.save(ours, Progress(3))
        expected = ["flush file", "name checkpoint-00000003.safetensors", "flush directory"]
        assert events == [*expected, "delete checkpoint-00000001.safetensors"]
        events.clear()
        directory.save_best(ours.result, Best(1, 1, 0.5), {})
        directory.save_result(ours.result, {})
        names = ["best.safetensors", "model.safetensors"]
        assert events == [event for name in names for event in ("flush file", f"name {name}", "flush directory")]


def test_the_newest_two_checkpoints_are_kept_by_number(tmp_path):
    ours = learner()
    with opened(tmp_path / "run") as directory:
        assert directory.newest() is None
        for step in (9, 10, 99_999_999, 100_000_000):
            directory.save(ours, Progress(step))
        names = sorted(path.name for path in (tmp_path / "run").glob("checkpoint*"))
        assert names == ["checkpoint-100000000.safetensors", "checkpoint-99999999.safetensors"]
        assert directory.newest()[2] == Progress(100_000_000)


def test_too_many_checkpoints_are_deleted_when_a_run_goes_on(tmp_path):
    ours, folder = learner(), tmp_path / "run"
    with opened(folder) as directory:
        for step in (1, 2):
            directory.save(ours, Progress(step))
    write_state(folder / "checkpoint-00000003.safetensors", ours, Progress(3))
    with opened(folder, resume=True) as directory:
        assert directory.newest()[2].step == 3
    assert not (folder / "checkpoint-00000001.safetensors").exists()
    assert len(list(folder.glob("checkpoint*"))) == 2


def test_damaged_checkpoints_are_set_aside_one_after_the_other(tmp_path):
    ours, folder, lines = learner(), tmp_path / "run", []
    with opened(folder) as directory:
        for step in (1, 2):
            directory.save(ours, Progress(step))
    second = folder / "checkpoint-00000002.safetensors"
    second.write_bytes(second.read_bytes()[:-1])
    with opened(folder, resume=True, warn=lines.append) as directory:
        assert directory.newest()[2].step == 1
        (line,) = lines
        assert line.startswith(f"{second} is truncated")
        assert line.endswith("continuing from checkpoint-00000001.safetensors")
        assert Path(f"{second}.damaged").exists()
        directory.save(ours, Progress(2))
        assert directory.newest()[2].step == 2
        assert len(lines) == 1
        for path in folder.glob("checkpoint*.safetensors"):
            path.write_bytes(b"nothing")
        with pytest.raises(ValueError, match=r"^run_dir: every checkpoint is damaged .*: train in another directory"):
            directory.newest()
    assert len(list(folder.glob("checkpoint*.safetensors"))) == 2


def test_the_best_network_says_how_good_it_is(tmp_path):
    lines = []
    with opened(tmp_path / "run", warn=lines.append) as directory:
        assert directory.best() is None
        best = Best(120, 3, 0.1 + 0.2)
        directory.save_best(network(), best, {"objective": "x"})
        assert directory.best() == best
        path = tmp_path / "run" / "best.safetensors"
        path.write_bytes(path.read_bytes()[:100])
        assert directory.best() is None
    assert "best.safetensors cannot be read" in lines[0]


def test_a_directory_of_another_run_is_refused_and_left_alone(tmp_path):
    folder = tmp_path / "run"
    with opened(folder) as directory:
        directory.save(learner(), Progress(1))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for options, message in (
        ({"lr": 0.2}, r"^run_dir: .* holds another run \(lr: 0\.1 there, 0\.2 here\): name another directory$"),
        ({"weights": "x"}, r"\(weights: abc there, x here\): call torch\.manual_seed before the network is made, or"),
        ({"lr": 0.2, "weights": "x"}, r"lr: 0\.1 there, 0\.2 here; weights: abc there, x here\): name another"),
        ({"new": 1}, r"new: None there, 1 here"),
        ({}, r"^run_dir: .* holds this run already: continue it with --resume \(resume=True\), or name another"),
    ):
        for resume in (False, True) if options else (False,):
            with pytest.raises(ValueError, match=message):
                opened(folder, resume=resume, **options)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    opened(folder, resume=True).close()


def test_a_run_that_saved_nothing_leaves_its_directory_to_others(tmp_path):
    folder = tmp_path / "run"
    opened(folder).close()
    opened(folder, lr=0.2).close()
    assert json.loads((folder / "run.json").read_text())["lr"] == 0.2
    opened(folder, lr=0.2).close()


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".run.json.17.tmp").write_text("{")
    (folder / ".lock").touch()
    with opened(folder) as directory:
        directory.save(learner(), Progress(1))
    (folder / ".checkpoint-00000002.safetensors.17.tmp").write_bytes(b"half")
    opened(folder, resume=True).close()
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "checkpoint-00000001.safetensors", "run.json"]


def test_foreign_files_are_refused_and_left_alone(tmp_path):
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "thesis.tex").write_text("words")
    with pytest.raises(ValueError, match=r"^run_dir: .* holds files and no run: name an empty directory"):
        opened(folder, resume=True)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match=r"^run_dir: .*thesis.tex is a file: name a directory"):
        opened(folder / "thesis.tex")
    Store(tmp_path / "store", {"attack": "PGD"})
    with pytest.raises(ValueError, match=r"^run_dir: .* holds something else than training"):
        opened(tmp_path / "store", resume=True)
    (tmp_path / "store" / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"^run_dir: .*run.json cannot be read"):
        opened(tmp_path / "store", resume=True)
    shutil.rmtree(folder)
    folder.mkdir()
    opened(folder).close()


def test_a_directory_is_for_one_process_at_a_time(tmp_path):
    first = opened(tmp_path / "run")
    with pytest.raises(ValueError, match=r"^run_dir: .* is in use: another process is training there$"):
        opened(tmp_path / "run", resume=True)
    first.close()
    opened(tmp_path / "run", resume=True).close()
    with opened(tmp_path / "run", resume=True) as directory:
        directory.save(learner(), Progress(1))
    with pytest.raises(ValueError, match="holds another"):
        opened(tmp_path / "run", lr=0.2)
    opened(tmp_path / "run", resume=True).close()  # refusing it let go of the lock


@pytest.mark.parametrize("method", ["save", "save_best", "save_result"])
def test_a_full_disk_leaves_the_file_that_was_there(tmp_path, monkeypatch, method):
    ours = learner()
    arguments = {"save": (ours, Progress(1)), "save_best": (ours.result, Best(1, 1, 0.5), {})}
    arguments["save_result"] = (ours.result, {})
    with opened(tmp_path / "run") as directory:
        getattr(directory, method)(*arguments[method])
        before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
        write = Path.write_bytes

        def full(path, content):
            write(path, content[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(
            OSError, match=r"No space left on device \(older checkpoints are intact: make room"
        ) as caught:
            getattr(directory, method)(*arguments[method])
        assert caught.value.errno == errno.ENOSPC
        assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_sums_and_progress():
    one, two = Sums(2.0, 3.0, 2.0, 1.0, 2.0, 0.0, 22.0, 4.0, 6.0, 0.5), Sums(2.0, 1.0, gradients=22.0, seconds=0.5)
    now = Progress()
    now.add(one)
    now.add(two)
    assert (now.step, now.gradients, now.seconds) == (2, 44, 1.0)
    assert now.row == now.epoch == one + two
    assert (one + two).row() == {
        "loss": 1.0,
        "clean_accuracy": 0.5,
        "robust_accuracy": 0.0,
        "gradients_per_image": 11.0,
        "krylov_mean": 1.5,
        "images_per_second": 4.0,
    }
    assert set(Sums().row().values()) == {None}
    model = network()
    result = Standard().step(model, torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))
    assert Sums.of(result) == Sums(4, result.loss.item() * 4, 4.0, float(result.clean_correct.sum()), 0.0, 0.0, 4.0)
