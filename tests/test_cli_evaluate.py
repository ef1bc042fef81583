"""`soae evaluate`: what it writes, and how it refuses bad input."""

import contextlib
import errno
import io
import json
import pickle
import re
import sys
import textwrap
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import save_file

from soae_ext import cli
from soae_ext.attacks import FGSM, PGD, SOAE
from soae_ext.attacks.soae import Direction
from soae_ext.commands.inputs import DEFAULT_ATTACKS, parse_attacks
from soae_ext.data import load_digits, shipped_file
from soae_ext.evaluation import Accuracy, wilson_interval
from soae_ext.evaluation.notes import attack_notes
from soae_ext.evaluation.sanity import Check
from soae_ext.evaluation.variants import most_gradients
from soae_ext.models import digits_network
from tests.cli_harness import assert_refused, call, refuse

CHECKS = [Check("one", "fail", "3", "2", "Too large.", "solver"), Check("two", "pass", "1", "2", "Small.")]
COMMON = ("--batch-size", "4", "--curves", "none")
SHIPPED = str(shipped_file("digits_cnn.safetensors"))


@pytest.fixture
def quick(monkeypatch):
    """Without the sanity section, which has tests of its own."""
    monkeypatch.setattr("soae_ext.evaluation.study.sanity_section", lambda context: CHECKS)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folder, stdout and document of a run with every part."""
    folder, out = tmp_path_factory.mktemp("evaluate"), io.StringIO()
    words = ["--n", "10", "--attack", "FGSM", "PGD-3", "SOAE-2:max_dim=2", "--eps", "3/10", "--seed", "7"]
    words += ["--batch-size", "4", "--curves", "eps", "fd_step", "--compare", f"same={SHIPPED}", "--examples", "2"]
    words += ["--layer", "features.0", "--figures", str(folder / "figures")]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr("soae_ext.evaluation.study.sanity_section", lambda context: CHECKS)
        assert cli.main(["evaluate", *words, "--output", str(folder / "run.json")]) == 0
    return folder, out.getvalue(), json.loads((folder / "run.json").read_text(), parse_constant=refuse)


def test_everything_is_written(written):
    folder, out, document = written
    assert sorted(path.name for path in folder.iterdir()) == ["figures", "run.html", "run.json", "run.md"]
    names = ("accuracy", "curve-eps", "curve-fd_step", "edges", "examples", "feature-maps", "features")
    assert sorted(path.name for path in (folder / "figures").iterdir()) == [f"{name}.png" for name in names]
    lines = out.splitlines()
    assert lines[0] == "10 images of the shipped digits, Linf eps = 0.3, seed 7"
    names = ["clean", "FGSM", "PGD-3", "SOAE-2:max_dim=2", "worst case"]
    assert [re.split("  +", line)[0] for line in lines[4:9]] == names
    assert "Sanity checks: 1 pass, 1 fail" in out
    assert "FAIL one: 3 (limit 2). Too large." in out
    html, markdown = (folder / "run.html").read_text(), (folder / "run.md").read_text()
    assert "| fail | solver | one | 3 | 2 | Too large. |" in markdown
    for name in names[1:4]:
        assert name in html
        assert name in markdown
    assert html.count("<img") > 8
    assert "http" not in re.sub(r"data:image/[^\"]+|xmlns=\"[^\"]+\"", "", html)
    assert document["command"].startswith("soae evaluate --n 10 --attack FGSM PGD-3")
    assert document["command"] in markdown


def test_the_document_agrees_with_the_attacks(written):
    _, _, document = written
    data, model = load_digits().first(10), digits_network()
    with torch.no_grad():
        clean = model(data.images).argmax(1) == data.labels
    successes = []
    expected = {"PGD-3": PGD(0.3, steps=3, seed=7), "SOAE-2:max_dim=2": SOAE(0.3, steps=2, max_dim=2, seed=7)}
    for entry in document["attacks"]:
        robust = entry["robust"]
        assert robust["interval_95"] == list(wilson_interval(robust["correct"], 10))
        assert document["examples"]["robust"][entry["name"]].count(1) == robust["correct"]
        assert entry["options"]["eps"] == 0.3
        assert entry["options"]["seed"] == 7
        assert 0 < entry["linf_max"] <= 0.3
        assert 5 < entry["psnr"] < 30
        assert 0 < entry["ssim"] < 1
        if entry["name"] in expected:
            found = expected[entry["name"]](model, data.images, data.labels)
            assert entry["mean_loss"] == pytest.approx(found.loss.double().mean().item(), rel=1e-4)
            assert entry["gradients_per_image"] == found.gradient_calls.double().mean()
            successes.append(found.success)
    used = found.krylov_dims[found.krylov_dims > 0].double()
    assert entry["krylov_dims"]["mean"] == used.mean()
    assert len(entry["krylov_dims"]["per_step"]) == 2
    robust = document["examples"]["robust"].values()
    worst = [min(values) for values in zip(*robust, document["examples"]["clean_correct"], strict=True)]
    assert worst == document["examples"]["worst_case"]
    assert document["worst_case"]["correct"] == sum(worst)
    assert document["clean"]["correct"] == int(clean.sum())
    assert document["examples"]["label"] == data.labels.tolist()
    assert [curve["key"] for curve in document["curves"]] == ["eps", "fd_step"]
    networks = document["curves"][1]["series"]
    assert [line["name"] for line in networks] == ["digits", "same"]
    assert networks[0]["y"] == networks[1]["y"]
    assert document["features"]["layer"] == "features.0"  # as --layer said
    assert "features.0" in (written[0] / "run.html").read_text()
    assert len(document["edges"]) == 4
    assert document["versions"]["torch"] == torch.__version__
    assert document["versions"]["threads"] == torch.get_num_threads()
    assert document["hardware"]["cpu"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", document["date"])
    assert document["sanity"][0]["verdict"] == "fail"
    assert document["data"]["images"] == 10


def test_the_notes_tell_the_sign_and_the_gradients(written):
    notes = " ".join(written[2]["notes"])
    assert "SOAE-2:max_dim=2 steps along +H^-1 g, the direction with the sign that ascends" in notes
    # 1 gradient, 2 products and one for the residual, at each of two steps.
    assert "What an image may cost: FGSM 1, PGD-3 3, SOAE-2:max_dim=2 14. No PGD or APGD here costs as much" in notes
    for name in ("run.md", "run.html"):
        assert "at equal gradients" in (written[0] / name).read_text()


def test_the_notes_of_other_attacks():
    attacks = {"PGD-100": PGD(0.3, steps=50, restarts=2), "SOAE": SOAE(0.3)}
    first, second = attack_notes(attacks)
    assert first.startswith("SOAE steps along +H^-1 g")
    assert second.endswith("What an image may cost: PGD-100 100, SOAE 100.")
    assert attack_notes({"PGD": PGD(0.3)}) == []
    for direction in get_args(Direction):
        (sign, _) = attack_notes({"it": SOAE(0.3, steps=1, direction=direction)})
        assert sign.startswith("it steps ")
        assert ("lowers the loss" in sign) == (direction in ("ascent", "auto", "damped", "paper"))


def test_the_default_attacks_have_equal_gradients():
    attacks = parse_attacks(DEFAULT_ATTACKS, 0.3)
    assert [most_gradients(attack) for attack in attacks.values()] == [1, 100, 100, 100]


def test_the_git_commit_is_that_of_the_working_directory(tmp_path, monkeypatch):
    import subprocess

    from soae_ext.evaluation.provenance import git_commits

    monkeypatch.chdir(tmp_path)
    assert "working_directory" not in git_commits()

    def git(*words):
        settings = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", *settings, *words], check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "x")
    found = git_commits()["working_directory"]
    assert found == {"commit": git("rev-parse", "HEAD"), "modified": False}
    (tmp_path / "file").write_text("2")
    assert git_commits()["working_directory"]["modified"]


def test_without_output_there_is_a_table_and_no_file(capfd, quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    words = ("--n", "4", "--norm", "L1", "--attack", "fgsm", "--precision", "bf16", "--threads", "1")
    status, out, err = call(capfd, "evaluate", *words, *COMMON)
    assert status == 0, err
    assert out.startswith("4 images of the shipped digits, L1 eps = 10, seed 0")
    assert "worst case" in out
    assert "bfloat16" in err
    assert torch.get_num_threads() == before
    assert list(tmp_path.iterdir()) == []


def test_a_network_by_import_path_is_evaluated_in_eval_mode_and_that_is_said(capfd, quick, tmp_path, monkeypatch):
    source = """
        from torch import nn
        from soae_ext.models import digits_network

        def half_asleep():
            return nn.Sequential(digits_network(), nn.Dropout(0.9)).train()
    """
    (tmp_path / "sleepy.py").write_text(textwrap.dedent(source))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words = ("evaluate", "--model", "sleepy:half_asleep", "--n", "30", "--attack", "FGSM", *COMMON)
    status, out, err = call(capfd, *words)
    sys.modules.pop("sleepy", None)
    assert status == 0, err
    data = load_digits().first(30)
    correct = int((digits_network()(data.images).argmax(1) == data.labels).sum())
    assert str(Accuracy(correct, 30)) in out.splitlines()[4]
    assert "Note: The network has modules of the types Dropout. It was evaluated in eval mode" in err


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--eps -1", "--eps: must be finite and not negative"),
        ("--eps 8/0", "--eps: expected a number, got '8/0'"),
        ("--eps big", "--eps: expected a number, got 'big'"),
        ("--attack", "--attack: name at least one of"),
        ("--attack PDG", "--attack: unknown name 'PDG'; did you mean 'PGD'?"),
        ("--attack AutoAttack:version=ran", "--attack: 'AutoAttack:version=ran': version: unknown name 'ran'; did you"),
        ("--attack PGD:restarts=many", "--attack: 'PGD:restarts=many': restarts: expected a whole number, got 'many'"),
        ("--norm L3", "--norm: unknown name 'L3'"),
        ("--precision fp16", "--precision: unknown name 'fp16'; did you mean 'bf16'?"),
        ("--threads 0", "--threads: must be at least 1"),
        ("--batch-size 0", "--batch-size: must be at least 1"),
        ("--n 0", "--n: must be at least 1"),
        ("--n 1001", "--n: must be between 1 and 1000"),
        ("--split train", "--data: digits: the shipped images are test images"),
        ("--data /no/such", "--data: no such file or directory: /no/such"),
        ("--model resnet81", "--model: unknown name 'resnet81'; did you mean 'resnet18'?"),
        ("--model no_such_module:factory", "--model: there is no module 'no_such_module'"),
        ("--checkpoint /no/such", "--checkpoint: no such file: /no/such"),
        ("--curves esp", "--curves: unknown name 'esp'; did you mean 'eps'?"),
        ("--curves none eps", "--curves: none and eps exclude each other"),
        ("--curves threshold --attack PGD", "--curves: fd_step and threshold study SOAE"),
        ("--compare pgd", "--compare: expected NAME=CHECKPOINT, got 'pgd'"),
        ("--compare pgd=/no/such", "--compare: no such file: /no/such"),
        ("--compare a=b --curves eps", "--compare: compares on the curve fd_step"),
        ("--examples 3", "--examples: shows in the report; name its --output"),
        ("--layer features.2", "--layer: shows in the report; name its --output"),
        ("--layer feature.2 --output run.json", "--layer: unknown name 'feature.2'; did you mean 'features.2'?"),
        ("--layer classifier.0 --output run.json", "--layer: the output of classifier.0 has shape (1, 96), which is"),
        ("--figures .", "--figures: shows in the report; name its --output"),
        ("--figures /no/such --output run.json", "--figures: no such directory: /no"),
        ("--figures /dev/null --output run.json", "--figures: /dev/null is no directory"),
        ("--fresh", "--fresh: without --output nothing is kept"),
        ("--output run.html", "--output: must end in .json, got run.html"),
        ("--output /no/such/run.json", "--output: no such directory: /no/such"),
        ("--device tpu", "--device: unknown device 'tpu'"),
        ("--referee --no-sanity", "--referee: is part of the sanity section; leave out --no-sanity"),
        ("--refere", "--refere: unknown option; did you mean --referee?"),
    ],
)
def test_bad_options_are_one_line_and_status_2(capfd, words, expected):
    assert_refused(capfd, ["evaluate", *words.split()], f"soae evaluate: {expected}")


def test_without_the_sanity_section(capfd, monkeypatch, tmp_path):
    monkeypatch.setattr("soae_ext.evaluation.study.sanity_section", lambda context: pytest.fail("the checks ran"))
    output = tmp_path / "run.json"
    words = ("evaluate", "--n", "4", "--attack", "FGSM", "--no-sanity", *COMMON, "--output", str(output))
    status, printed, _ = call(capfd, *words)
    document = json.loads(output.read_text())
    assert status == 0
    assert "Sanity checks" not in printed
    assert document["sanity"] == []
    assert "The sanity checks were not run." in document["notes"]
    assert "No sanity checks were run." in output.with_suffix(".html").read_text()


def test_the_default_batch_follows_the_memory_of_the_most_demanding_attack(capfd, monkeypatch, tmp_path, quick):
    model, image = digits_network(), torch.zeros(1, 1, 28, 28)
    needed = [attack.bytes_per_image(model, image) for attack in (FGSM(0.3), SOAE(0.3))]
    assert needed[1] > needed[0]
    sizes = []
    for plan in (5 * needed[1], 2**50):
        monkeypatch.setattr("soae_ext.commands.inputs.largest_plan", lambda device, plan=plan: plan)
        output = tmp_path / f"{plan}.json"
        words = ("--n", "4", "--attack", "FGSM", "SOAE", "--curves", "none", "--output", str(output))
        assert call(capfd, "evaluate", *words)[0] == 0
        sizes.append(json.loads(output.read_text())["config"]["batch_size"])
    assert sizes == [5, 250]


def test_bad_checkpoints(capfd, tmp_path):
    path = tmp_path / "net.safetensors"
    words = ["evaluate", "--checkpoint", str(path), "--output", str(tmp_path / "run.json")]

    def refused(expected):
        assert_refused(capfd, words, f"soae evaluate: --checkpoint: {expected}")

    path.write_bytes(Path(SHIPPED).read_bytes()[:5000])
    refused(f"{path} is truncated")
    path.write_bytes(pickle.dumps({"weight": 1}))
    refused(f"{path} is a pickle")
    save_file({"weight": torch.zeros(2)}, path)
    refused(f"{path} is of another architecture")
    broken = digits_network()
    broken.classifier[0].weight.data[0, 0] = torch.nan
    metadata = {"architecture": "small_cnn", "config": json.dumps({"channels": [24, 48], "hidden": 96})}
    save_file(broken.state_dict(), path, metadata)
    status, out, err = call(capfd, *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "NaN or infinite" in err
    assert [file.name for file in tmp_path.iterdir()] == ["net.safetensors"]


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(capfd, quick, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    words = ["evaluate", "--n", "8", "--attack", "FGSM", *COMMON, "--output", str(tmp_path / "run.json")]
    for writer in ("write_bytes", "write_text"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, writer, full)
            status, _, err = call(capfd, *words)
        assert status == 2
        assert err.splitlines()[-1] == "soae evaluate: --output: No space left on device"
        assert "Traceback" not in err
        assert not any(".tmp" in path.name for path in tmp_path.rglob("*"))
        assert {path.name for path in tmp_path.iterdir()} <= {"run.json.parts"}
    assert call(capfd, *words)[0] == 0


def test_another_runs_results_are_refused(capfd, quick, tmp_path, monkeypatch):
    words = ["evaluate", "--n", "4", "--attack", "FGSM", *COMMON, "--output", str(tmp_path / "run.json")]
    with monkeypatch.context() as patch:
        patch.setattr("soae_ext.commands.evaluate.write_outputs", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call(capfd, *words)
    capfd.readouterr()
    parts = tmp_path / "run.json.parts"
    assert parts.is_dir()
    expected = f"soae evaluate: --output: {parts} holds the results of another run (seed: 0 there, 1 here"
    status, out, err = call(capfd, *words, "--seed", "1")
    assert (status, out) == (2, "")
    assert "seed: 0 there, 1 here" in err
    assert err.splitlines()[-1].startswith(expected.partition(" (")[0])
    assert err.rstrip().endswith("drop them with --fresh, or choose another --output")
    assert call(capfd, *words, "--seed", "1", "--fresh")[0] == 0
    assert not parts.exists()
    assert json.loads((tmp_path / "run.json").read_text())["config"]["seed"] == 1


def test_a_network_that_breaks_down_is_one_line(capfd, quick, tmp_path, monkeypatch):
    source = """
        import torch
        from torch import nn

        class Odd(nn.Module):
            def __init__(self, trouble):
                super().__init__()
                self.layer, self.trouble = nn.Linear(784, 10), trouble

            def forward(self, x):
                if len(x) > 1 and self.trouble == "memory":
                    raise torch.OutOfMemoryError("CUDA out of memory")
                logits = self.layer(x.flatten(1))
                return logits * torch.nan if len(x) > 1 else logits

        def nan():
            return Odd("nan")

        def memory():
            return Odd("memory")
    """
    (tmp_path / "odd.py").write_text(textwrap.dedent(source))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, expected in (
        ("nan", "--model: its logits on the unperturbed images are not finite"),
        ("memory", "--batch"),
    ):
        status, _, err = call(capfd, "evaluate", "--model", f"odd:{name}", "--n", "4", *COMMON)
        assert status == 2
        assert err.splitlines()[-1].startswith(f"soae evaluate: {expected}"), err
    sys.modules.pop("odd", None)
