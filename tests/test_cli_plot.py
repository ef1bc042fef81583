"""`soae plot`: the table, the chart, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from soae_ext.plots import DARK, LIGHT, training_chart
from soae_ext.training.log import COLUMNS, Log, RunLog, read_log
from tests.cli_harness import assert_refused, call

EMPTY = dict.fromkeys(COLUMNS)


def make_run(directory, robust=(0.2, 0.6, 0.5), cost=8, *, steps=2, validated=True):
    """A run with an epoch of `steps` steps of 100 images for each robust accuracy."""
    directory.mkdir(parents=True)
    with RunLog(directory, tensorboard=False) as log:
        for epoch, accuracy in enumerate(robust, 1):
            for step in range((epoch - 1) * steps + 1, epoch * steps + 1):
                log.step({"step": step, "epoch": epoch, "loss": 2 / step, "gradients": 100 * cost * step})
            shares = {"clean_accuracy": 0.9 + epoch / 100, "robust_accuracy": accuracy} if validated else {}
            values = {"epoch": epoch, "loss": 1 / epoch, "gradients": 100 * cost * steps * epoch}
            log.epoch({"step": epoch * steps, **values, **shares})
    return directory


@pytest.fixture
def runs(tmp_path):
    return [make_run(tmp_path / "pgd"), make_run(tmp_path / "soat", (0.3, 0.55), cost=12)]


def test_the_table_has_the_best_and_the_last_epoch(capfd, runs):
    status, out, err = call(capfd, "plot", *map(str, runs))
    assert (status, err) == (0, "")
    head, rule, *lines = out.splitlines()
    assert head.split() == ["epoch", "gradients", "loss", "clean", "robust"]
    assert set(rule) == {"-"}
    assert [line.split() for line in lines] == [
        ["pgd,", "best", "2", "3.2", "k", "0.5000", "92.0", "%", "60.0", "%"],
        ["pgd,", "last", "3", "4.8", "k", "0.3333", "93.0", "%", "50.0", "%"],
        ["soat,", "last", "2", "4.8", "k", "0.5000", "92.0", "%", "55.0", "%"],
    ]
    assert len({len(line) for line in (head, rule, *lines)}) == 1


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_chart_is_drawn(capfd, runs, tmp_path, ending):
    path = tmp_path / f"curves.{ending}"
    status, _, err = call(capfd, "plot", *map(str, runs), "--output", str(path))
    assert (status, err) == (0, "")
    if ending == "png":
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        for colour in LIGHT.lines[:2]:
            wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
            assert (pixels == wanted).all(1).sum() > 200


def lines_of(axes):
    return [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axes.lines]


def test_the_lines_are_the_log(runs):
    logs = {path.name: read_log(path) for path in runs}
    figure = training_chart(logs)
    loss, loss_cost, clean, clean_cost, robust, robust_cost = figure.axes
    assert lines_of(loss)[0] == ([0.5, 1, 1.5, 2, 2.5, 3], [2 / s for s in range(1, 7)])
    assert lines_of(loss_cost)[1] == ([1200, 2400, 3600, 4800], [2 / s for s in range(1, 5)])
    assert lines_of(clean)[1] == ([1, 2], [0.91, 0.92])
    assert lines_of(clean_cost)[1] == ([2400, 4800], [0.91, 0.92])
    # The ring of the best epoch follows the line.
    assert lines_of(robust)[:2] == [([1, 2, 3], [0.2, 0.6, 0.5]), ([2], [0.6])]
    assert lines_of(robust_cost)[2:] == [([2400, 4800], [0.3, 0.55]), ([4800], [0.55])]
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["training loss", "clean accuracy", "robust accuracy"]
    assert [axes.get_xlabel() for axes in figure.axes[-2:]] == ["epochs", "gradients spent"]
    assert [text.get_text() for text in figure.legends[0].texts] == ["pgd", "soat", "best robust accuracy"]


def test_without_rows_of_steps_the_loss_is_that_of_the_epochs(runs):
    log = read_log(runs[0])
    assert lines_of(training_chart({"run": Log([], log.epochs)}).axes[0]) == [([1, 2, 3], [1, 1 / 2, 1 / 3])]


def test_small_differences_do_not_fill_the_panel():
    rows = [{**EMPTY, "step": n, "epoch": n, "gradients": n, "clean_accuracy": 0.9 + n / 1000} for n in (1, 2)]
    low, high = training_chart({"run": Log([], rows)}).axes[0].get_ylim()
    assert high - low >= 0.0999
    assert low < 0.9 < 0.902 < high


def test_long_runs_have_few_markers_and_the_last_epoch_has_one(tmp_path):
    log = read_log(make_run(tmp_path / "long", [0.5] * 300, steps=1))
    curve = training_chart({"long": log}).axes[2].lines[0]
    marked = curve.get_markevery()
    assert len(marked) <= 12
    assert marked[-1] == 299


def test_what_no_run_measured_is_left_out(tmp_path):
    log = read_log(make_run(tmp_path / "plain", validated=False))
    assert len(training_chart({"plain": log}, DARK).axes) == 2
    started = Log(log.steps[:2], [])
    figure = training_chart({"started": started})
    assert [len(axes.lines[0].get_xdata()) for axes in figure.axes] == [0, 2]
    with pytest.raises(ValueError, match="no run has logged anything yet"):
        training_chart({"empty": Log([], [])})


def test_names_tell_runs_apart(capfd, tmp_path):
    first, second = make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run")
    _, out, _ = call(capfd, "plot", str(first), str(second))
    assert [line.split(",")[0] for line in out.splitlines()[2::2]] == ["a/run", "b/run"]
    odd = make_run(tmp_path / "x=1")
    _, out, err = call(capfd, "plot", f"PGD={first}", str(odd))
    assert err == ""
    assert [line.split(",")[0] for line in out.splitlines()[2::2]] == ["PGD", "x=1"]


def test_a_run_in_its_first_epoch(capfd, tmp_path):
    directory = make_run(tmp_path / "new", (0.5,), steps=3)
    path = directory / "log.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    status, out, _ = call(capfd, "plot", str(directory))
    assert status == 0
    assert out.splitlines()[-1].split() == ["new,", "last", "step", "2", "1.6", "k", "1.0000", "-", "-"]


def test_bad_input_is_one_line_and_nothing_is_overwritten(capfd, tmp_path, runs):
    pgd, kept = str(runs[0]), tmp_path / "kept.png"
    kept.write_bytes(b"kept")
    empty, damaged = tmp_path / "empty", tmp_path / "damaged"
    empty.mkdir()
    make_run(damaged)
    (damaged / "log.jsonl").write_text("{}\n")
    silent = make_run(tmp_path / "silent", ())
    (silent / "log.jsonl").touch()
    for words, message in (
        ([], "RUN: name the directory of at least one run"),
        ([str(empty)], f"RUN: {empty} holds no run: there is no log.jsonl in it"),
        ([pgd, str(tmp_path / "none")], "RUN: "),
        ([str(damaged)], f"RUN: {damaged / 'log.jsonl'}: line 1 is damaged"),
        ([str(silent)], f"RUN: {silent} has not logged anything yet"),
        ([pgd, pgd], f"RUN: {pgd} is named twice"),
        ([pgd, f"pgd={runs[1]}"], "RUN: the name 'pgd' is taken"),
        ([pgd, "--output", str(tmp_path / "curves.xyz")], "--output: unknown picture format '.xyz'"),
        ([pgd, "--output", str(tmp_path / "no" / "curves.png")], "--output: no such directory"),
        ([pgd, "--colour"], "--colour: unknown option"),
    ):
        words = [*words, *([] if "--output" in words else ["--output", str(kept)])]
        assert_refused(capfd, ["plot", *words], f"soae plot: {message}")
    assert kept.read_bytes() == b"kept"
