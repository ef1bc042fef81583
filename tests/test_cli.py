"""The command `soae`: what it prints and writes, and how it refuses bad input."""

import io
import json
import os
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from soae_ext import cli
from soae_ext.data import shipped_file
from soae_ext.plots import image_grid, pick
from tests.cli_harness import assert_refused, call, process, refuse

NAMES = ["FGSM", "PGD-100", "APGD-100", "SOAE"]


def test_a_run_prints_a_table_and_writes_a_report_and_a_figure(tmp_path):
    report, figure = tmp_path / "run.json", tmp_path / "grid.png"
    run = process("attack", "--n", "30", "--output", str(report), "--figure", str(figure))
    out, err = run.communicate()
    assert run.returncode == 0, err
    lines = out.splitlines()
    assert lines[0] == "30 images of the shipped digits, Linf eps = 0.3, seed 0"
    assert [line.split()[0] for line in lines[4:]] == ["clean", *NAMES]
    assert "120/120" in err
    content = json.loads(report.read_text(), parse_constant=refuse)
    assert content["config"]["eps"] == 0.3
    assert content["data"]["images"] == 30
    assert content["versions"]["torch"] == torch.__version__
    names = [attack["name"] for attack in content["attacks"]]
    assert names == NAMES
    for attack in content["attacks"]:
        robust = attack["robust"]
        low, high = robust["interval_95"]
        assert low <= robust["accuracy"] <= high
        assert robust["correct"] <= content["clean"]["correct"]
        assert attack["options"]["eps"] == 0.3
        assert (attack["krylov_dims"] is None) == (attack["name"] != "SOAE")
        assert attack["gradients_per_image"] <= 100
    assert content["attacks"][3]["options"]["plan"]["restarts"] == 5
    with Image.open(figure) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.std() > 20
    assert sorted(file.name for file in tmp_path.iterdir()) == ["grid.png", "run.json"]
    assert report.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask():
    value = os.umask(0)
    os.umask(value)
    return value


@pytest.mark.slow
def test_the_main_job_without_options():
    run = process("attack")
    out, err = run.communicate()
    assert run.returncode == 0, err
    assert out.startswith("1000 images of the shipped digits")


def test_equal_seeds_give_equal_reports_whatever_the_batch_size(capfd, tmp_path):
    found = []
    for size in ("20", "7"):
        words = ("--attack", "PGD-3", "FGSM", "--n", "20", "--batch-size", size, "--output", str(tmp_path / size))
        assert call(capfd, "attack", *words)[0] == 0
        content = json.loads((tmp_path / size).read_text())
        found.append([attack["robust"]["correct"] for attack in content["attacks"]])
    assert found[0] == found[1]


def test_norm_steps_and_direction_reach_the_attacks(capfd, tmp_path):
    words = ("--n", "6", "--norm", "L2", "--steps", "2", "--direction", "auto", "--seed", "3", "--output")
    status, out, _ = call(capfd, "attack", *words, str(tmp_path / "run.json"))
    assert status == 0
    assert "L2 eps = 2, seed 3" in out
    _, pgd, apgd, soae = json.loads((tmp_path / "run.json").read_text())["attacks"]
    assert (pgd["name"], apgd["name"], soae["name"]) == ("PGD-2", "APGD-2", "SOAE-2 (auto)")
    assert (pgd["options"]["norm"], pgd["options"]["seed"], pgd["options"]["steps"]) == ("L2", 3, 2)
    assert (soae["options"]["direction"], soae["options"]["normalize"]) == ("auto", "L2")
    words = ("--n", "4", "--attack", "PGD", "PGD-3", "SOAE:gradients=20", "SOAE", "--steps", "2")
    status, out, err = call(capfd, "attack", *words)
    assert status == 0, err
    assert [line.split()[0] for line in out.splitlines()[5:]] == ["PGD-2", "PGD-3", "SOAE:gradients=20", "SOAE-2"]


@pytest.mark.parametrize("words", [["--help"], ["attack", "--help"], ["evaluate", "--help"], ["doctor", "--help"]])
def test_help(capfd, words):
    status, out, err = call(capfd, *words)
    assert (status, err) == (0, "")
    options = ("--eps", "--norm", "--steps", "--attack", "--n ", "--device", "--seed", "--data", "--checkpoint")
    expected = {
        "--help": cli.COMMANDS,
        "attack": (*options, "--output", "--figure"),
        "evaluate": (
            *options[:2],
            *options[3:],
            "--output",
            "--curves",
            "--compare",
            "--referee",
            "--threads",
            "--layer",
            "--figures",
        ),
        "doctor": ("--output",),
    }
    for word in expected[words[0]]:
        assert word in out


def test_doctor_is_run(capfd, tmp_path):
    status, out, _ = call(capfd, "doctor", "--output", str(tmp_path / "doctor.json"))
    assert status in (0, 1)
    assert torch.__version__ in out
    json.loads((tmp_path / "doctor.json").read_text())


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--eps -0.1", "--eps: must be finite and not negative, got -0.1"),
        ("--eps nan", "--eps: "),
        ("--eps big", "--eps: expected a number, got 'big'"),
        ("--eps", "--eps: "),
        ("--epss 0.3", "--epss: unknown option; did you mean --eps?"),
        ("--zzz", "--zzz: unknown option; see --help"),
        ("--norm l2", "--norm: unknown name 'l2'; did you mean 'L2'?"),
        ("--direction ascend", "--direction: unknown name 'ascend'; did you mean 'ascent'?"),
        ("--attack PDG", "--attack: unknown name 'PDG'; did you mean 'PGD'? choose from APGD, ASOD, FGSM, PGD, SOAE"),
        ("--attack FGSM-7", "--attack: 'FGSM-7': steps: FGSM makes one step"),
        ("--attack PGD-0", "--attack: 'PGD-0': steps: must be at least 1, got 0"),
        ("--attack PGD-4:los=dlr", "--attack: 'PGD-4:los=dlr': unknown name 'los'; did you mean 'loss'?"),
        ("--attack PGD:loss=dlp", "--attack: 'PGD:loss=dlp': loss: unknown name 'dlp'; did you mean 'dlr'?"),
        ("--attack PGD PGD-20", "--attack: PGD-20 is named twice"),
        ("--attack ASOD --norm L1", "--norm: unknown name 'L1'"),
        ("--model resnet", "--model: unknown name 'resnet'; did you mean 'resnet18'?"),
        ("--model resnet18", "--checkpoint: resnet18 has no trained parameters of its own"),
        ("--attack", "--attack: name at least one"),
        ("--steps 0", "--steps: must be at least 1"),
        ("--steps 1.5", "--steps: expected a whole number, got '1.5'"),
        ("--n 1001", "--n: must be between 1 and 1000"),
        ("--n 0", "--n: "),
        ("--n -5", "--n: "),
        ("--seed -1", "--seed: "),
        ("--batch-size 0", "--batch-size: "),
        ("--device abacus", "--device: unknown device 'abacus'"),
        ("--device meta", "--device: 'meta' is not supported"),
        ("--checkpoint /no/such/file", "--checkpoint: no such file: /no/such/file"),
        ("--data /no/such/folder", "--data: no such file or directory: /no/such/folder"),
        ("--output /no/such/folder/run.json", "--output: no such directory: /no/such/folder"),
        ("--output /", "--output: / is a directory"),
        ("--figure /no/such/folder/grid.png", "--figure: no such directory"),
        ("--figure grid.xyz", "--figure: unknown picture format '.xyz'"),
        ("7", "7: unknown word"),
    ],
)
def test_bad_options_are_one_line_and_status_2(capfd, words, expected):
    assert_refused(capfd, ["attack", *words.split()], f"soae attack: {expected}")


@pytest.mark.parametrize("words", [[], ["atack"], ["--eps", "3"]])
def test_bad_commands_are_one_line_and_status_2(capfd, words):
    assert_refused(capfd, words, "soae: ")


def test_cuda_without_cuda(capfd, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert_refused(capfd, ["attack", "--device", "cuda"], "soae attack: --device: cuda is not available here")


def test_an_unwritable_output_is_found_before_the_work(capfd, monkeypatch, tmp_path):
    def fail(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", fail)
    words = ["attack", "--output", str(tmp_path / "run.json")]
    assert_refused(capfd, words, f"soae attack: --output: cannot write to {tmp_path / 'run.json'}: Permission denied")


def test_one_file_for_report_and_figure_is_refused(capfd, tmp_path):
    path = tmp_path / "run.png"
    words = ["attack", "--output", str(path), "--figure", str(path)]
    assert_refused(capfd, words, f"soae attack: --figure: {path} is the file of --output too; name another")


def test_bad_checkpoints(capfd, tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(shipped_file("digits_cnn.safetensors").read_bytes()[:5000])
    assert_refused(capfd, ["attack", "--checkpoint", str(path)], f"soae attack: --checkpoint: {path} is truncated")
    path.write_bytes(pickle.dumps({"weight": 1}))
    assert_refused(capfd, ["attack", "--checkpoint", str(path)], f"soae attack: --checkpoint: {path} is a pickle")
    save_file({"weight": torch.zeros(2)}, path)
    assert_refused(capfd, ["attack", "--checkpoint", str(path)], f"soae attack: --checkpoint: {path} is of another")


def parquet_directory(folder, images, labels):
    pytest.importorskip("datasets", reason="needs the datasets library")
    import pyarrow
    import pyarrow.parquet

    cells = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "TIFF")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    folder.mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"image": cells, "label": labels}), folder / "test-0.parquet")
    return str(folder)


def test_bad_data(capfd, tmp_path):
    grey = np.zeros((3, 28, 28), dtype=np.uint8)
    too_bright = parquet_directory(tmp_path / "bright", [np.full((28, 28), 1.5, dtype=np.float32)] * 2, [0, 1])
    assert_refused(capfd, ["attack", "--data", too_bright], "soae attack: --data: images must lie in [0, 1]")
    for name, labels in (("large", [0, 9, 10]), ("negative", [0, -1, 1])):
        folder = parquet_directory(tmp_path / name, grey, labels)
        assert_refused(capfd, ["attack", "--data", folder], "soae attack: --data: ")
    shape = parquet_directory(tmp_path / "shape", np.zeros((2, 32, 32), dtype=np.uint8), [0, 1])
    assert_refused(capfd, ["attack", "--data", shape], "soae attack: --data: the network takes images (1, 28, 28)")
    good = parquet_directory(tmp_path / "good", grey, [0, 1, 2])
    assert_refused(capfd, ["attack", "--data", good, "--n", "4"], "soae attack: --n: must be between 1 and 3")
    assert call(capfd, "attack", "--data", good, "--attack", "FGSM")[0] == 0


def test_data_of_the_user(capfd):
    root = os.environ.get("SOAE_DATA_DIR")
    if not root or not Path(root, "mnist").is_dir():
        pytest.skip("SOAE_DATA_DIR does not name a directory with mnist/test-*.parquet")
    status, out, _ = call(capfd, "attack", "--data", str(Path(root, "mnist")), "--n", "20", "--attack", "FGSM")
    assert status == 0
    assert out.startswith("20 images of ")


def test_ctrl_c_leaves_nothing_behind(tmp_path):
    outputs = ("--output", str(tmp_path / "run.json"), "--figure", str(tmp_path / "grid.png"))
    run = process("attack", "--attack", "PGD-5000", *outputs)
    seen = ""
    while "PGD-5000" not in seen:  # the progress bar: the work has begun
        letter = run.stderr.read(1)
        assert letter, seen
        seen += letter
    time.sleep(0.5)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert out == ""
    assert "Traceback" not in seen + err
    assert list(tmp_path.iterdir()) == []


# --- pictures ----------------------------------------------------------------------------------------------------


def test_pictures_show_fooled_and_robust_images():
    success = torch.zeros(2, 20, dtype=torch.bool)
    success[0, 15] = success[1, [3, 16]] = True
    assert pick(success, 8).tolist() == [3, 15, 16, 0, 1, 2, 4, 5]
    assert pick(success[:, :2], 8).tolist() == [0, 1]
    assert pick(~success, 8).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    mixed = success.clone()
    mixed[0, :10] = True
    assert pick(mixed, 8).tolist() == [0, 1, 2, 3, 10, 11, 12, 13]


def test_grid_titles():
    images, labels = torch.rand(2, 3, 8, 8), torch.tensor([1, 2])
    figure = image_grid(images, labels, torch.tensor([1, 0]), {"PGD": (images * 0.9, torch.tensor([1, 7]))})
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:6] == ["1", "", "1", "0 (is 2)", "", "7 (is 2)"]
