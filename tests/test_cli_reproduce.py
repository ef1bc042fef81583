"""`soae reproduce`: cells are made once, survive whatever ends the run, and are shown beside the paper's numbers."""

import json
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from soae_ext.attacks import PGD
from soae_ext.commands import reproduce
from soae_ext.data import load_data
from soae_ext.evaluation.store import digest
from soae_ext.models import load_model
from soae_ext.reproduce import limit
from soae_ext.training import loop
from tests.cli_harness import ROOT, assert_refused, call, process, refuse
from tests.reproduce_cases import block, packed, table

pytest.importorskip("lightning_fabric", reason="training needs lightning-fabric")

# What a clock, the place or the commit says of a cell.
_PASSING = {"date", "git", "seconds", "epochs"}


@pytest.fixture
def plan(monkeypatch):
    """Tiny tables instead of the real ones; a second one shares the block."""
    tables = {"1": table(), "5": table(block(columns=block().columns[:2]), name="5")}
    monkeypatch.setattr(reproduce, "make_table", lambda name, budget: tables.get(name, table(name=name)))


@pytest.fixture
def data(tmp_path):
    return packed(tmp_path / "mnist.safetensors")


def words(data, run, *more, tables=("1",)):
    return ["reproduce", "--table", *tables, "--data", f"mnist={data}", "--run-dir", str(run), "--threads", "1", *more]


def cells(run):
    """What all cells hold, but for what a clock says."""
    found = {}
    for path in sorted((run / "cells").rglob("*.json")):
        cell = json.loads(path.read_text(), parse_constant=refuse)
        rows = [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}
                for row in cell.get("epochs", [])]  # fmt: skip
        kept = {name: value for name, value in cell.items() if name not in _PASSING}
        found[str(path.relative_to(run))] = kept | {"rows": rows}
    return found


def weights(run):
    """Digests of the tensors of all networks; the notes beside them are in no fixed order."""
    files = {str(path.relative_to(run)): load_file(path) for path in run.rglob("model.safetensors")}
    return {name: digest(*(part for key in sorted(found) for part in (key, found[key])))
            for name, found in files.items()}  # fmt: skip


@pytest.fixture
def whole(plan, capfd, data, tmp_path):
    """A run that nothing interrupted."""
    run = tmp_path / "whole"
    status, out, err = call(capfd, *words(data, run))
    assert status == 0, err
    assert out.splitlines()[-1] == "Every cell is measured"
    return run


def test_a_run_makes_every_cell_and_writes_three_files(whole, capfd, data, tmp_path):
    assert len(cells(whole)) == 3 + 1 + 2 * (1 + 1) + 1 + 2  # trainings, and columns of three networks
    output = tmp_path / "tables.json"
    status, out, _ = call(capfd, *words(data, whole, "--output", str(output)))
    assert status == 0
    assert "training" not in out  # nothing is made again
    document = json.loads(output.read_text(), parse_constant=refuse)
    (found,) = document["tables"]
    row = found["blocks"][0]["rows"][1]
    assert [cell["images"] for cell in row["cells"]["PGD-3"]] == [10, 10]
    assert row["cells"]["FGSM"][1] is None
    assert (row["paper"], row["name"]) == (pytest.approx({"clean": 0.8762, "FGSM": 0.7089, "PGD-3": 0.6013}), "SOAT")
    assert row["training"][0]["objective"]["crafting"] == 3
    assert document["left"] == []
    text = output.with_suffix(".md").read_text()
    assert "paper 87.62 %" in text
    measured = [line for line in text.splitlines() if line.startswith(("| STD |", "| SOAT |"))]
    assert len(measured) == 2
    assert not any("not measured" in line for line in measured)
    assert "| TRADES | not measured | not measured; paper 85.98 % |" in text  # the paper's row, not in this plan
    page = output.with_suffix(".html").read_text()
    assert page.startswith("<!doctype html>")
    assert "SOAT" in page
    assert not list((whole / "parts").iterdir())


def test_an_accuracy_is_that_of_the_network_in_the_run_directory(whole, data):
    images = load_data(data, "test", 10)
    for seed in (0, 1):
        model = load_model(block().model, whole / "train" / "mnist-tiny" / f"SOAT-seed{seed}" / "model.safetensors")
        result = PGD(0.1, steps=3)(model, images.images, images.labels)
        cell = json.loads((whole / "cells" / "mnist-tiny" / f"SOAT-seed{seed}" / "PGD-3.json").read_text())
        assert cell["image_correct"] == "".join(str(int(not fooled)) for fooled in result.success.tolist())
        assert cell["robust"]["correct"] == int((~result.success).sum())
        assert cell["gradients_per_image"] == pytest.approx(result.gradient_calls.double().mean().item())


def test_every_seed_starts_from_a_network_of_its_own(whole):
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = load_model(block().model).state_dict()
        manifest = json.loads((whole / "train" / "mnist-tiny" / f"SOAT-seed{seed}" / "run.json").read_text())
        assert manifest["weights"] == digest(*(part for name in sorted(state) for part in (name, state[name])))
        assert manifest["seed"] == seed


def test_a_run_that_is_stopped_after_every_cell_ends_as_one_that_is_not(whole, capfd, data, tmp_path, monkeypatch):
    class AfterOne(limit.Limit):
        """Used as soon as a cell is finished."""

        def __init__(self, minutes):
            self.asked = 0

        @property
        def over(self):
            self.asked += 1
            return self.asked > 1

        def end_training(self):
            """A training ends in peace."""

    monkeypatch.setattr(reproduce, "Limit", AfterOne)
    monkeypatch.setattr("soae_ext.reproduce.cells.LimitedProgress.advance", lambda self, images: None)
    run, counts = tmp_path / "stopped", []
    for _ in range(30):
        status, out, err = call(capfd, *words(data, run, "--minutes", "5"))
        assert status == 0, err
        counts.append(len(cells(run)))
        if "Every cell" in out:
            break
        assert "cells are left, the next is mnist-tiny" in out
    assert counts == list(range(1, len(cells(whole)) + 1))
    assert cells(run) == cells(whole)
    assert weights(run) == weights(whole)


def test_no_minutes_write_what_there_is(plan, capfd, data, tmp_path):
    run, output = tmp_path / "run", tmp_path / "tables.json"
    status, out, err = call(capfd, *words(data, run, "--minutes", "0", "--output", str(output)))
    assert (status, err) == (0, "")
    assert not run.exists()
    assert "11 cells are left, the next is mnist-tiny, STD, seed 0: training" in out
    for suffix in (".md", ".html"):
        assert "not measured; paper 87.62 %" in output.with_suffix(suffix).read_text()
    document = json.loads(output.read_text(), parse_constant=refuse)
    assert {claim["verdict"] for claim in document["claims"]} == {"not measured"}


def test_time_that_is_used_ends_a_training_in_the_middle(whole, capfd, data, tmp_path, monkeypatch):
    run, steps = tmp_path / "run", []
    monkeypatch.setattr(reproduce, "Limit", lambda minutes: limit.Limit(None if len(steps) else minutes))
    end = limit.Limit.end_training

    def end_after_two(self):
        steps.append(1)
        if len(steps) == 2:
            self._end = time.monotonic()
        end(self)

    monkeypatch.setattr(limit.Limit, "end_training", end_after_two)
    status, out, err = call(capfd, *words(data, run, "--minutes", "9"))
    assert status == 0, err
    assert "the next is mnist-tiny, STD, seed 0: training" in out
    assert (cells(run), len(steps)) == ({}, 3)  # a signal in one step ends the training after the next one
    assert list((run / "train").rglob("checkpoint-00000003.safetensors"))
    assert call(capfd, *words(data, run))[0] == 0
    assert len(steps) == 3 * 8  # 4 steps in each of 2 epochs of 3 trainings, none made twice
    assert cells(run) == cells(whole)
    assert weights(run) == weights(whole)


def test_time_that_is_used_ends_an_attack_between_its_batches(whole, capfd, data, tmp_path, monkeypatch):
    run, made = tmp_path / "run", []
    advance = limit.LimitedProgress.advance

    def used(self, images):
        made.append(images)
        if len(made) == 4:  # the first batch of the second measurement
            self._limit._end = time.monotonic()
        advance(self, images)

    monkeypatch.setattr(limit.LimitedProgress, "advance", used)
    assert call(capfd, *words(data, run, "--minutes", "9"))[0] == 0
    assert made == [4, 4, 4, 4]
    (batch,) = (run / "parts").rglob("000000.safetensors")
    before = batch.stat().st_mtime_ns
    computed = []
    attack = reproduce.Worker._measure

    def count(self, job):
        computed.append((job.name, batch.exists() and batch.stat().st_mtime_ns == before))
        return attack(self, job)

    monkeypatch.setattr(reproduce.Worker, "_measure", count)
    assert call(capfd, *words(data, run))[0] == 0
    assert computed[0] == ("FGSM", True)
    assert cells(run) == cells(whole)


def test_a_table_that_shares_a_block_makes_nothing_again(whole, capfd, data, monkeypatch):
    monkeypatch.setattr(reproduce.Worker, "make", lambda *_: pytest.fail("a cell is made again"))
    status, out, err = call(capfd, *words(data, whole, tables=("1", "5")))
    assert (status, err) == (0, "")
    assert "Every cell is measured" in out


def test_choices_work_on_a_part(plan, capfd, data, tmp_path):
    run = tmp_path / "run"
    more = ("--rows", "SOAT", "--columns", "clean", "--seeds", "1", "--networks", "mnist-tiny")
    assert call(capfd, *words(data, run, *more))[0] == 0
    assert set(cells(run)) == {f"cells/mnist-tiny/SOAT-seed0/{name}.json" for name in ("training", "clean")}


def test_a_directory_of_another_run_is_refused(whole, capfd, data, tmp_path, monkeypatch):
    before = cells(whole)
    refused = f"soae reproduce: --run-dir: {whole} holds another run (scale: 1.0 there, 0.5 here)"
    assert_refused(capfd, words(data, whole, "--scale", "0.5"), refused)
    assert_refused(capfd, [*words(data, whole)[:-1], "2"], f"soae reproduce: --run-dir: {whole} holds another run (thr")
    monkeypatch.setattr(reproduce, "make_table", lambda name, budget: table(block(eps=0.2)))
    first = whole / "cells" / "mnist-tiny" / "STD-seed0" / "training.json"
    assert_refused(capfd, words(data, whole), f"soae reproduce: --run-dir: {first} was made by another plan")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    assert_refused(capfd, words(data, tmp_path / "full"), f"soae reproduce: --run-dir: {tmp_path / 'full'} holds files")
    (tmp_path / "train").mkdir()
    assert_refused(capfd, words(data, tmp_path / "mnist.safetensors"), "soae reproduce: --run-dir: ")
    assert cells(whole) == before


def test_other_data_are_refused_where_a_training_goes_on(plan, capfd, data, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert call(capfd, *words(data, run, "--columns", "clean"))[0] == 0
    other = packed(tmp_path / "other.safetensors", train=96, test=18)
    assert_refused_at_work(
        capfd, words(other, run), "soae reproduce: --data: the first 12 images of mnist (test) are other"
    )


def assert_refused_at_work(capfd, arguments, expected):
    status, _, err = call(capfd, *arguments)
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("soae")]
    assert (status, len(lines)) == (2, 1), err
    assert lines[0].startswith(expected)


def test_a_training_that_diverges_is_told_and_the_others_go_on(plan, capfd, data, tmp_path, monkeypatch):
    backward = loop.Trainer._report

    def report(self, rate):
        if type(self.job.objective).__name__ == "Standard":
            raise FloatingPointError("the loss is nan")
        backward(self, rate)

    monkeypatch.setattr(loop.Trainer, "_report", report)
    status, out, err = call(capfd, *words(data, tmp_path / "run"))
    assert status == 1
    assert "soae reproduce: mnist-tiny, STD, seed 0: training: the loss is nan" in err
    assert {name.split("/")[2] for name in cells(tmp_path / "run")} == {"SOAT-seed0", "SOAT-seed1"}
    assert "4 cells are left" in out


BAD = [
    ((), "--run-dir: name the directory"),
    (("--run-dir", "x"), "--table: name at least one of 1, 2, 3, 4, 5, equal-gradients, single-step, or all"),
    (("--run-dir", "x", "--table", "6"), "--table: "),
    (("--run-dir", "x", "--table", "1", "--budget", "cqu"), "--budget: "),
    (("--run-dir", "x", "--table", "1", "--rows", "SOAP"), "--rows: "),
    (("--run-dir", "x", "--table", "1", "--columns", "PGD-21"), "--columns: "),
    (("--run-dir", "x", "--table", "1", "--networks", "wrn"), "--networks: "),
    (("--run-dir", "x", "--table", "1", "--seeds", "0"), "--seeds: "),
    (("--run-dir", "x", "--table", "1", "--minutes", "-1"), "--minutes: must be at least 0"),
    (("--run-dir", "x", "--table", "1", "--scale", "2"), "--scale: must be above 0"),
    (("--run-dir", "x", "--table", "1", "--threads", "0"), "--threads: "),
    (("--run-dir", "x", "--table", "1", "--output", "x.txt"), "--output: must end in .json"),
    (("--run-dir", "x", "--table", "1", "--output", "no/x.json"), "--output: no such directory"),
    (("--run-dir", "x", "--table", "1", "--data", "nowhere"), "--data: nowhere is neither a directory nor NAME=SPEC"),
    (("--run-dir", "x", "--table", "1", "--data", "mnist=nowhere.safetensors"), "--data: mnist (t"),
    (("--run-dir", "x", "--table", "1", "--device", "tpu"), "--device: "),
]


@pytest.mark.parametrize(("given", "expected"), BAD, ids=[" ".join(given[-2:]) for given, _ in BAD])
def test_bad_input_is_one_line(capfd, tmp_path, monkeypatch, given, expected):
    monkeypatch.chdir(tmp_path)
    assert_refused(capfd, ["reproduce", *given], f"soae reproduce: {expected}")
    assert list(tmp_path.iterdir()) == []


def test_the_gpu_budget_says_not_measured_without_a_gpu(capfd, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    given = ["reproduce", "--table", "all", "--budget", "gpu", "--run-dir", str(tmp_path / "run")]
    assert_refused(capfd, given, "soae reproduce: --device: cuda is not available here")
    assert call(capfd, *given, "--minutes", "0", "--output", str(tmp_path / "gpu.json"))[0] == 0
    text = (tmp_path / "gpu.md").read_text()
    assert "not measured; paper 45.98 %" in text
    assert "hold" not in {claim["verdict"] for claim in json.loads((tmp_path / "gpu.json").read_text())["claims"]}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_loses_nothing_that_was_finished(data, tmp_path, number):
    run = tmp_path / "run"
    given = words(data, run, "--scale", "0.001", "--rows", "STD", "PGD", "--columns", "clean", "PGD-20", "--seeds", "1")
    program = (str(ROOT / "tests" / "reproduce_slowly.py"),)
    first = process(*given, program=program)
    assert any("PGD, seed 0: training" in line for line in iter(first.stdout.readline, ""))
    first.send_signal(number)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 130, err
    assert "soae reproduce: interrupted; the same command continues" in err
    kept = {path: path.stat().st_mtime_ns for path in (run / "cells").rglob("*.json")}
    assert len(kept) == 3
    second = process(*given, program=program)
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert "Every cell is measured" in out
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
