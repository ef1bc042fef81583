"""`soae train`: what it prints, writes and keeps, and how it refuses bad input."""

from __future__ import annotations

import csv
import json
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from soae_ext import cli
from soae_ext.commands import train
from soae_ext.data import ImageData
from soae_ext.models import load_model
from soae_ext.training.log import TIMINGS, read_log
from soae_ext.training.names import parse_objective
from soae_ext.training.presets import PRESETS
from tests.cli_harness import assert_refused, call, process, refuse

pytest.importorskip("lightning_fabric", reason="training needs lightning-fabric")

MODEL = "small-cnn:input=1x8x8,width=2,classes=3"
FILES = ("log.jsonl", "steps.csv", "epochs.csv")


def images(count=60, shape=(1, 8, 8), classes=3):
    generator = torch.Generator().manual_seed(count)
    labels = torch.arange(count) % classes
    pixels = torch.randint(128, (count, *shape), generator=generator, dtype=torch.uint8)
    return pixels + (labels * 40).to(torch.uint8).view(-1, 1, 1, 1), labels


def packed(path, *, test=12, **options):
    pixels, labels = images(**options)
    save_file({"train.images": pixels, "train.labels": labels, "test.images": pixels[:test].clone(),
               "test.labels": labels[:test].clone()}, path)  # fmt: skip
    return str(path)


@pytest.fixture
def data(tmp_path):
    return packed(tmp_path / "data.safetensors")


def words(data, directory, *more):
    shared = ("--model", MODEL, "--epochs", "2", "--batch-size", "9", "--log-every", "2", "--no-tensorboard")
    return ["train", "--data", data, "--run-dir", str(directory), "--threads", "1", *shared, *more]


def without_timings(directory):
    """The log, but for what a clock says."""
    rows = []
    for line in (directory / "log.jsonl").read_text().splitlines():
        row = json.loads(line, parse_constant=refuse)
        rows.append({name: value for name, value in row.items() if name not in TIMINGS})
    return rows


def test_a_run(capfd, data, tmp_path):
    run = tmp_path / "run"
    status, out, err = call(capfd, *words(data, run, "--output", str(tmp_path / "run.json"), "--objective", "SOAT"))
    assert status == 0, err
    head, first, second, _, model, best, hint = out.splitlines()
    assert head.split()[:4] == ["epoch", "loss", "clean", "robust"]
    assert (first.split()[0], second.split()[0]) == ("1/2", "2/2")
    assert "12/12" in err
    assert "Krylov" in err
    assert model == f"{run / 'model.safetensors'}: the network after the last step"
    assert best.startswith(f"{run / 'best.safetensors'}: that of the best robust accuracy on the validation images, ")
    log = read_log(run)
    assert [row["step"] for row in log.steps] == [2, 4, 6, 8, 10, 12]
    # 54 of 60 images are trained on, 6 of the 12 steps in each epoch, each image at the same cost.
    cost = log.epochs[0]["gradients_per_image"]
    assert [row["gradients"] for row in log.epochs] == [54 * cost, 108 * cost]
    assert log.epochs[0]["krylov_mean"] > 0
    content = json.loads((tmp_path / "run.json").read_text(), parse_constant=refuse)
    assert content["epochs"] == log.epochs
    assert (content["data"]["images"], content["validation"]["images"]) == (54, 6)
    assert (content["finished"], content["step"], content["config"]["eps"]) == (True, 12, 0.3)
    assert content["config"]["recipe"]["batch_size"] == 9
    with (run / "epochs.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    # What it advises is a command that works.
    assert hint.startswith("Evaluate it: soae evaluate --model ")
    advised = hint.removeprefix("Evaluate it: soae evaluate ").replace("'", "").split()
    assert call(capfd, "attack", *advised, "--attack", "FGSM")[0] == 0


@pytest.mark.parametrize(
    ("more", "eps"),
    [
        (("--norm", "L2", "--eps", "1/2"), 0.5),
        (("--norm", "L2", "--objective", "TRADES:eps=0.5", "--eps", "0.1"), 0.5),
        (("--objective", "PGD-1:norm=L2,eps=0.5"), 0.5),
        (("--preset", "mnist-cpu", "--norm", "L2"), 2.0),  # the preset's radius is of a Linf ball
        (("--preset", "mnist-cpu", "--norm", "L2", "--eps", "0.5"), 0.5),
    ],
)
def test_validation_and_advice_are_about_the_ball_of_the_objective(capfd, data, tmp_path, more, eps):
    run, output = tmp_path / "run", tmp_path / "run.json"
    _, out, _ = call(capfd, *words(data, run, "--max-steps", "1", "--output", str(output), *more))
    assert out.splitlines()[-1].endswith(f"--data {data} --eps {eps} --norm L2")
    assert json.loads((run / "run.json").read_text())["attack"].startswith(f"PGD(eps={eps}, norm='L2', steps=10")
    config = json.loads(output.read_text())["config"]
    assert (config["eps"], config["norm"]) == (eps, "L2")


def test_equal_seeds_give_equal_runs_and_others_do_not(capfd, data, tmp_path):
    found = []
    for seed in ("0", "0", "1"):
        run = tmp_path / f"run-{len(found)}"
        assert call(capfd, *words(data, run, "--seed", seed))[0] == 0
        found.append((load_file(run / "model.safetensors"), without_timings(run)))
    (first, log), (again, same), (other, _) = found
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert log == same
    assert not torch.equal(first["features.0.weight"], other["features.0.weight"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])
def test_a_run_that_is_stopped_continues_like_one_that_is_not(capfd, data, tmp_path, number):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    long = ("--objective", "PGD-3", "--batch-size", "1", "--epochs", "3", "--log-every", "1", "--validate", "0")
    assert call(capfd, *words(data, whole, *long))[0] == 0
    run = process(*words(data, stopped, *long))
    while not (stopped / "steps.csv").is_file() or len((stopped / "steps.csv").read_text().splitlines()) < 70:
        assert run.poll() is None, run.communicate()
        time.sleep(0.01)
    run.send_signal(number)
    _, err = run.communicate()
    assert run.returncode == 0, err
    assert re.fullmatch(
        r"soae train: stopped after step \d+ of 180 and saved; the same command with --resume continues",
        err.splitlines()[-1],
    )
    status, out, _ = call(capfd, *words(data, stopped, *long, "--resume"))
    assert status == 0
    assert out.startswith("continuing after step ")
    assert without_timings(stopped) == without_timings(whole)
    ends = [load_file(run / "model.safetensors") for run in (whole, stopped)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_run_that_nobody_looks_at_any_more_goes_on(data, tmp_path):
    run = process(*words(data, tmp_path / "run", "--epochs", "3"))
    run.stdout.close()
    run.stderr.close()
    assert run.wait(timeout=60) == 0
    assert len(read_log(tmp_path / "run").epochs) == 3
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_finished_run_may_be_resumed_and_stays_as_it_is(capfd, data, tmp_path):
    run = tmp_path / "run"
    assert call(capfd, *words(data, run))[0] == 0
    before = {name: (run / name).read_bytes() for name in FILES}
    status, _, _ = call(capfd, *words(data, run, "--resume", "--output", str(tmp_path / "run.json")))
    assert status == 0
    assert {name: (run / name).read_bytes() for name in FILES} == before
    assert len(json.loads((tmp_path / "run.json").read_text())["epochs"]) == 2


def test_a_loss_that_is_not_finite_is_status_1_and_keeps_what_was_good(capfd, data, tmp_path):
    run = tmp_path / "run"
    options = ("--lr", "1e30", "--checkpoint-steps", "1", "--objective", "Standard", "--schedule", "constant")
    status, _, err = call(capfd, *words(data, run, *options))
    assert status == 1
    assert re.search(
        r"^soae train: .*: begin another run with a smaller lr, or clip_gradient; .* keeps ", err, re.MULTILINE
    )
    assert list(run.glob("checkpoint-*.safetensors"))
    assert not (run / "model.safetensors").exists()


# Options


def chosen(monkeypatch, *given):
    """The options that the command would run with."""
    seen = []
    monkeypatch.setattr(train, "run", lambda options, line: seen.append(options) or 0)
    assert cli.main(["train", *given]) == 0
    return seen[0]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_their_network_and_give_way_to_options(monkeypatch, name):
    preset = PRESETS[name]
    options = chosen(monkeypatch, "--preset", name)
    for field, value in vars(preset).items():
        assert getattr(options, field) == value
    changed = chosen(monkeypatch, "--lr", "0.5", f"--preset={name}", "--objective", "TRADES", "--eps", "2/255")
    assert (changed.recipe.lr, changed.objective, changed.eps) == (0.5, "TRADES", 2 / 255)
    assert changed.recipe.epochs == preset.recipe.epochs
    if "imagenet" not in name:
        channels, classes = (1, 10) if "mnist" in name else (3, 10)
        model = load_model(preset.model)
        size = 28 if "mnist" in name else 32
        assert model(torch.rand(1, channels, size, size)).shape == (1, classes)
    parse_objective(preset.objective, eps=preset.eps)


def test_the_paper_s_recipe():
    for name in ("paper-mnist", "paper-cifar10", "paper-imagenet100"):
        recipe = PRESETS[name].recipe
        assert (recipe.epochs, recipe.batch_size, recipe.optimizer) == (300, 128, "sgd")
        assert (recipe.momentum, recipe.lr, recipe.weight_decay) == (0.9, 0.1, 3e-4)


def test_help_shows_the_values_of_the_preset(capfd):
    for more, epochs in ((), "30"), (("--preset", "paper-cifar10"), "300"):
        status, out, err = call(capfd, "train", *more, "--help")
        assert (status, err) == (0, "")
        text = re.sub(r"[\s│]+", " ", out)
        assert re.search(rf"--epochs INT passes over the training images\..*?\(default: {epochs}\)", text)


def test_every_class_has_its_share_of_the_held_out_images_in_whatever_order_they_come():
    """Folders are read in turns, a picture of each class: evenly spaced images would be of one class alone."""
    for labels in (torch.arange(300) % 10, (torch.arange(300) % 10).sort().values, torch.randperm(300) % 10):
        rest, held = ImageData(torch.rand(300, 1, 2, 2), labels, "turns").hold_out(30)
        assert held.labels.bincount().tolist() == [3] * 10
        assert rest.labels.bincount().tolist() == [27] * 10


def test_held_out_images_are_spread_over_the_data_and_not_trained_on():
    pixels, labels = torch.rand(10, 1, 2, 2), torch.arange(10)
    rest, held = ImageData(pixels, labels, "ordered").hold_out(3)
    assert held.labels.tolist() == [0, 3, 6]
    assert sorted(rest.labels.tolist() + held.labels.tolist()) == list(range(10))
    assert torch.equal(rest.images, pixels[rest.labels])
    for count in (0, 10):
        with pytest.raises(ValueError, match="count: must be between 1 and 9"):
            ImageData(pixels, labels, "ordered").hold_out(count)


@pytest.mark.parametrize(
    ("more", "trained", "validated"),
    [
        ((), 54, 6),
        (("--validate", "0"), 60, None),
        (("--validate", "10"), 50, 10),
        (("--validation-split", "test", "--validate", "11"), 60, 11),
        (("--validation-split", "test"), 60, 12),  # all of a small split
        (("--n", "30"), 27, 3),
    ],
)
def test_where_the_validation_images_come_from(capfd, data, tmp_path, more, trained, validated):
    output = tmp_path / "run.json"
    assert call(capfd, *words(data, tmp_path / "run", *more, "--max-steps", "1", "--output", str(output)))[0] == 0
    content = json.loads(output.read_text())
    assert content["data"]["images"] == trained
    assert (content["validation"] and content["validation"]["images"]) == validated
    assert (tmp_path / "run" / "best.safetensors").exists() == (validated is not None)


@pytest.mark.parametrize("objective", ["Standard", "STN"])
def test_objectives_without_a_ball_go_with_a_preset_whose_radius_grows(capfd, data, tmp_path, objective):
    line = words(data, tmp_path / "run", "--preset", "mnist-cpu", "--objective", objective, "--max-steps", "1")
    status, _, err = call(capfd, *line)
    assert status == 0, err
    line = words(data, tmp_path / "other", "--preset", "mnist-cpu", "--objective", objective, "--eps-warmup", "0.5")
    assert_refused(capfd, line, f"soae train: --eps-warmup: {objective} has no ball")


# Bad input


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--objective PDG", "--objective: unknown name 'PDG'; did you mean 'PGD'?"),
        ("--objective PGD:step=3", "--objective: 'PGD:step=3': unknown name 'step'; did you mean 'steps'?"),
        ("--objective SOAT:seed=3", "--objective: 'SOAT:seed=3': seed: "),
        ("--attack PDG", "--attack: unknown name 'PDG'"),
        ("--eps -1", "--eps: must be finite and not negative"),
        ("--norm L3", "--norm: unknown name 'L3'"),
        ("--lr 0", "--lr: must be finite and positive, got 0"),
        ("--lr fast", "--lr: expected a number, got 'fast'"),
        ("--epochs 1.5", "--epochs: expected a whole number, got '1.5'"),
        ("--epochs 0", "--epochs: must be at least 1, got 0"),
        ("--batch-size 61", "--batch-size: 61 is more than the 54 training images there are"),
        ("--schedule cosin", "--schedule: unknown name 'cosin'; did you mean 'cosine'?"),
        ("--optimizer rmsprop", "--optimizer: unknown name 'rmsprop'"),
        ("--precision fp8", "--precision: unknown name 'fp8'"),
        ("--epoch 3", "--epoch: unknown option; did you mean --epochs?"),
        ("--preset mnist", "--preset: unknown name 'mnist'; did you mean 'mnist-cpu'?"),
        ("--preset", "--preset: "),
        ("--model small", "--model: unknown name 'small'; did you mean 'small-cnn'?"),
        ("--model resnet18", "--data: the network takes images (3, any, any), these are (1, 8, 8)"),
        ("--model small-cnn:input=1x8x8,classes=2", "--data: labels must lie in 0 to 1, these span 0 to 2"),
        ("--checkpoint none.safetensors", "--checkpoint: no such file: none.safetensors"),
        ("--data none", "--data: no such file or directory: none"),
        ("--split val", "--data: "),
        ("--n 61", "--n: must be between 1 and 60"),
        ("--n 0", "--n: must be at least 1"),
        ("--validate -1", "--validate: must be at least 0"),
        ("--validate 60", "--validate: must be between 1 and 59"),
        ("--validation-split val", "--validation-split: "),
        ("--validation-split test --validate 13", "--validate: must be between 1 and 12"),
        ("--validation-split test --validate 0", "--validation-split: is for --validate, which is 0"),
        ("--objective Standard --eps-warmup 0.5", "--eps-warmup: Standard has no ball"),
        ("--device tpu", "--device: expected cpu, cuda or cuda:NUMBER, got 'tpu'"),
        ("--threads 0", "--threads: must be at least 1"),
        ("--seed -1", "--seed: must be at least 0"),
        ("--output {}/run.txt", "--output: must end in .json"),
        ("--output {}/no/run.json", "--output: no such directory"),
    ],
)
def test_bad_options_are_one_line_and_nothing_is_written(capfd, data, tmp_path, more, message):
    kept = tmp_path / "kept.json"
    kept.write_text("kept")
    output = () if "--output" in more else ("--output", str(kept))
    before = sorted(tmp_path.iterdir())
    line = words(data, tmp_path / "run", "--validate", "6", *output, *more.format(tmp_path).split())
    assert_refused(capfd, line, f"soae train: {message}")
    assert sorted(tmp_path.iterdir()) == before
    assert kept.read_text() == "kept"


def test_the_directory_of_the_run_must_be_named(capfd):
    assert_refused(capfd, ["train"], "soae train: --run-dir: name the directory that the run is kept in")


def test_bad_data_is_one_line_and_nothing_is_written(capfd, tmp_path):
    from PIL import Image

    pixels, labels = images()
    for name, tensors, message in (
        ("empty", {"images": pixels[:0], "labels": labels[:0]}, "there are no images"),
        ("shape", {"images": pixels[:, :, :6].contiguous(), "labels": labels}, "the network takes images (1, 8, 8)"),
        ("label", {"images": pixels, "labels": labels - 1}, "labels must lie in 0 upwards"),
        ("class", {"images": pixels, "labels": labels + 1}, "labels must lie in 0 to 2, these span 1 to 3"),
        ("nan", {"images": torch.full((60, 1, 8, 8), torch.nan), "labels": labels}, "images must lie in [0, 1]"),
        ("inf", {"images": torch.full((60, 1, 8, 8), torch.inf), "labels": labels}, "images must lie in [0, 1]"),
    ):
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors, path)
        status, out, err = call(capfd, *words(str(path), tmp_path / "run"))
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("soae train: --data: ")
        assert message in err
    pytest.importorskip("datasets", reason="needs the datasets library")
    folder = tmp_path / "pictures"
    for label in range(3):
        (folder / str(label)).mkdir(parents=True)
        for number in range(5):
            Image.new("L", (8, 8), 50 * label).save(folder / str(label) / f"{number}.png")
    broken = folder / "1" / "3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    assert_refused(capfd, words(str(folder), tmp_path / "run"), f"soae train: --data: cannot read {folder}")
    assert not (tmp_path / "run").exists()


def test_the_directory_of_another_run_is_left_alone(capfd, data, tmp_path):
    run = tmp_path / "run"
    assert call(capfd, *words(data, run))[0] == 0
    before = {path: path.read_bytes() for path in run.iterdir()}
    for more, message in (
        ((), f"{run} holds this run already: continue it with --resume"),
        (("--lr", "0.01"), f"{run} holds another run (lr: "),
        (("--lr", "0.01", "--resume"), f"{run} holds another run (lr: "),
        (("--n", "50", "--resume"), f"{run} holds another run (data: "),
        (("--objective", "TRADES", "--resume"), f"{run} holds another run (objective: "),
    ):
        assert_refused(capfd, words(data, run, *more), f"soae train: --run-dir: {message}")
    assert {path: path.read_bytes() for path in run.iterdir()} == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("kept")
    for directory in (foreign, foreign / "thesis.tex"):
        for more in ((), ("--resume",)):
            assert_refused(capfd, words(data, directory, *more), f"soae train: --run-dir: {directory} ")
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]
    assert (foreign / "thesis.tex").read_text() == "kept"


@pytest.mark.slow
@pytest.mark.parametrize("good", [True, False])
def test_two_processes_print_and_write_once(data, tmp_path, good):
    run = tmp_path / "run"
    more = ["--batch-size", "10", *([] if good else ["--n", "61"])]
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "soae_ext.cli", "--")
    out, err = process(*words(data, run, *more), program=torchrun).communicate()
    if good:
        assert [line.split()[0] for line in out.splitlines()[:3]] == ["epoch", "1/2", "2/2"]
        assert [row["epoch"] for row in read_log(run).epochs] == [1, 2]
        assert Path(run, "model.safetensors").is_file()
    else:
        assert err.count("soae train: --n: must be between 1 and 60") == 1
        assert not run.exists()
