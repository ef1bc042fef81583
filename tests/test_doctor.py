"""`soae doctor` on this machine, and on machines that are described to it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import soae_ext
from soae_ext import doctor

DEFAULT = ["75-real", "80-real", "86-real", "89-real", "90-real", "100-real", "120"]


@pytest.mark.parametrize(
    ("archs", "capability", "expected"),
    [
        (DEFAULT, (7, 5), True),
        (DEFAULT, (8, 7), True),  # machine code of 8.6
        (DEFAULT, (9, 0), True),
        (DEFAULT, (10, 3), True),
        (DEFAULT, (12, 1), True),
        (DEFAULT, (13, 0), True),  # PTX of the newest
        (DEFAULT, (7, 0), False),
        (DEFAULT, (11, 0), False),  # neither machine code of its major version nor older PTX
        (["90"], (8, 9), False),
        (["90"], (10, 0), True),
        (["90-real"], (10, 0), False),
        (["90-virtual"], (9, 0), True),
        (["90a-real"], (9, 0), True),
        (["90a"], (10, 0), False),
        (["native"], (9, 0), True),
        ([], (9, 0), False),
    ],
)
def test_what_a_build_runs_on(archs: list[str], capability: tuple[int, int], expected: bool) -> None:
    assert doctor.covers(archs, capability) is expected


class Machine:
    """Replaces what the doctor looks at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch = monkeypatch
        self.build: dict[str, Any] = {
            "version": soae_ext.__version__,
            "cuda": 13000,
            "archs": DEFAULT,
            "compiler": "gcc 12",
        }
        self.driver, self.gpus, self.torch_cuda = 13000, [("H200", 9, 0)], "13.0"
        self.torch_version, self.extension, self.absent = "2.13.0", True, ""

    def examine(self) -> doctor.Report:
        gpus = [SimpleNamespace(name=name, major=major, minor=minor) for name, major, minor in self.gpus]
        cuda = SimpleNamespace(driver_version=lambda: self.driver)
        extension = SimpleNamespace(__file__="_C.so", cuda=cuda) if self.extension else None

        def version(name: str) -> str:
            if name == self.absent:
                raise doctor.importlib.metadata.PackageNotFoundError(name)
            return "1.0"

        self.patch.setattr(soae_ext, "build_info", lambda: self.build)
        self.patch.setattr(doctor, "_extension", lambda: extension)
        self.patch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
        self.patch.setattr(torch.cuda, "device_count", lambda: len(gpus))
        self.patch.setattr(torch.cuda, "get_device_properties", lambda index: gpus[index])
        self.patch.setattr(torch.version, "cuda", self.torch_cuda)
        self.patch.setattr(torch, "__version__", self.torch_version)
        self.patch.setattr(doctor.importlib.metadata, "version", version)
        return doctor.examine()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def only(report: doctor.Report) -> doctor.Finding:
    (finding,) = report.findings
    return finding


def test_a_machine_with_everything_has_no_findings(machine: Machine) -> None:
    report = machine.examine()

    assert report.findings == []
    assert report.usable
    assert report.facts["gpu"]["devices"] == [{"name": "H200", "capability": "9.0", "covered": True}]


def test_nothing_compiled(machine: Machine) -> None:
    machine.extension, machine.gpus = False, []
    machine.build |= {"cuda": None, "archs": [], "compiler": None}

    report = machine.examine()

    assert "pure-PyTorch reference" in only(report).what
    assert "pip install ." in only(report).remedy
    assert not report.usable


def test_a_module_of_another_version(machine: Machine) -> None:
    machine.build["version"] = "0.0.9"

    finding = only(machine.examine())

    assert "0.0.9" in finding.what
    assert "--force-reinstall" in finding.remedy


def test_a_gpu_without_kernels(machine: Machine) -> None:
    machine.build |= {"cuda": None, "archs": []}

    report = machine.examine()

    assert "without CUDA" in only(report).what
    assert only(report).remedy.startswith("SOAE_CUDA=on pip install")
    assert not report.usable


def test_a_gpu_of_another_architecture(machine: Machine) -> None:
    machine.build["archs"] = ["80-real"]

    report = machine.examine()

    assert "not for H200 (9.0)" in only(report).what
    assert "SOAE_CUDA_ARCH=native" in only(report).remedy
    assert not report.usable


def test_a_driver_that_is_too_old(machine: Machine) -> None:
    machine.driver = 12040

    report = machine.examine()

    assert "12.4" in only(report).what
    assert "13.0" in only(report).what
    assert "update the driver" in only(report).remedy
    assert not report.usable


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"driver": 0, "gpus": []}, "no NVIDIA driver"),
        ({"torch_cuda": None, "gpus": []}, "torch is a build without CUDA"),
        ({"gpus": []}, "torch sees no GPU"),
        ({"absent": "datasets"}, "datasets (optional)"),
        ({"absent": "lightning-fabric"}, "lightning-fabric (optional)"),
    ],
)
def test_what_only_limits_is_a_note(machine: Machine, change: dict[str, Any], word: str) -> None:
    vars(machine).update(change)

    report = machine.examine()

    assert word in only(report).what
    assert only(report).remedy
    assert report.usable


@pytest.mark.parametrize(("change", "word"), [({"absent": "tyro"}, "tyro"), ({"torch_version": "2.9.1+cpu"}, "2.9.1")])
def test_what_is_needed_is_a_problem(machine: Machine, change: dict[str, Any], word: str) -> None:
    vars(machine).update(change)

    report = machine.examine()

    assert word in only(report).what
    assert "pip install" in only(report).remedy
    assert not report.usable


def test_the_report_is_printed_and_written(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.build["archs"] = ["80-real"]
    machine.examine()
    path = tmp_path / "doctor.json"

    code = doctor.main(path)

    written, printed = json.loads(path.read_text()), capsys.readouterr().out
    assert code == 1
    assert written["usable"] is False
    assert written["soae_ext"]["architectures"] == ["80-real"]
    assert written["findings"][0]["remedy"] in printed
    assert "H200 (9.0, not covered by this build)" in printed
    assert list(tmp_path.iterdir()) == [path]


def test_an_output_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = doctor.main(tmp_path / "missing" / "doctor.json")

    assert code == 2
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [f"soae doctor: --output: no such directory: {tmp_path / 'missing'}"]
    assert not printed.out  # found before the work


def test_the_module_runs_as_a_command(tmp_path: Path) -> None:
    path = tmp_path / "doctor.json"

    done = subprocess.run(
        [sys.executable, "-m", "soae_ext", "--output", str(path)], capture_output=True, text=True, timeout=120
    )

    written = json.loads(path.read_text())
    assert done.returncode == (0 if written["usable"] else 1), done.stderr
    assert written["torch"]["version"] == str(torch.__version__)
    assert written["soae_ext"]["version"] in done.stdout
