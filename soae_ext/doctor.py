"""`soae doctor`: what was built, what this machine offers, and what to do about what is missing or does not match."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import re
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import soae_ext
from soae_ext._files import check_writable, replacing

__all__ = ["Finding", "Report", "covers", "examine", "main"]

_LOWEST_TORCH = (2, 11)
_NEEDED = ("numpy", "tyro", "tqdm", "safetensors", "matplotlib")
_OPTIONAL = {"datasets": "full", "lightning-fabric": "train"}  # package -> the extra that brings it
_REINSTALL = "pip install --force-reinstall --no-cache-dir ."


@dataclass(frozen=True)
class Finding:
    """Something missing or mismatched. `blocking`: kernels that this machine could run do not run."""

    what: str
    remedy: str
    blocking: bool


@dataclass(frozen=True)
class Report:
    """`facts`: section -> name -> value, as printed."""

    facts: dict[str, dict[str, Any]]
    findings: list[Finding] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        return not any(finding.blocking for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        return {**self.facts, "findings": [asdict(f) for f in self.findings], "usable": self.usable}


def covers(archs: list[str], capability: tuple[int, int]) -> bool:
    """Whether code built for `archs` (CMake's names) runs on a GPU of that compute capability.

    Machine code runs on its own major version from its own minor version on; PTX, which an architecture without
    `-real` includes, on everything newer.
    """
    major, minor = capability
    for arch in archs:
        match = re.fullmatch(r"(\d+)(\d)([af]?)(-real|-virtual)?", arch)
        if match is None:
            return True  # a name such as "all-major": not one that can be judged
        built, specific, kind = (int(match[1]), int(match[2])), match[3], match[4]
        if kind != "-virtual" and built[0] == major and built[1] <= minor and (not specific or built == capability):
            return True
        if kind != "-real" and not specific and built <= capability:
            return True
    return False


def examine() -> Report:
    """Look at the build, torch, the driver, the GPUs and the packages around them."""
    build = soae_ext.build_info()
    report = Report({})
    _examine_build(report, build)
    _examine_torch(report)
    _examine_cuda(report, build)
    _examine_packages(report)
    return report


def _version(number: int) -> str:
    """13000 -> "13.0", CUDA's way of writing versions."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _extension() -> Any:
    """The compiled module, or None."""
    try:
        return importlib.import_module("soae_ext._C")
    except ImportError:
        return None


def _examine_build(report: Report, build: dict[str, Any]) -> None:
    extension = _extension()
    report.facts["soae_ext"] = {
        "version": soae_ext.__version__,
        "module": extension.__file__ if extension else None,
        "compiler": build["compiler"],
        "cuda": _version(build["cuda"]) if build["cuda"] else None,
        "architectures": build["archs"],
    }
    if extension is None:
        missing = "there is no usable compiled module, so everything runs through the slower pure-PyTorch reference"
        report.findings.append(Finding(missing, "pip install . (or pip install -e .) where setup.py is", True))
    elif build["version"] != soae_ext.__version__:
        stale = f"the compiled module is of version {build['version']}, the Python code of {soae_ext.__version__}"
        report.findings.append(Finding(stale, _REINSTALL, True))


def _examine_torch(report: Report) -> None:
    report.facts["host"] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    report.facts["torch"] = {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
    }
    numbers = re.match(r"(\d+)\.(\d+)", str(torch.__version__))
    if numbers and (int(numbers[1]), int(numbers[2])) < _LOWEST_TORCH:
        lowest = ".".join(map(str, _LOWEST_TORCH))
        old = f"torch {torch.__version__} is older than {lowest}, the oldest that is tested"
        report.findings.append(Finding(old, f'pip install "torch>={lowest}"', True))


def _examine_cuda(report: Report, build: dict[str, Any]) -> None:
    add = report.findings.append
    extension = _extension()
    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            capability = (properties.major, properties.minor)
            covered = bool(build["cuda"]) and covers(build["archs"], capability)
            gpus.append({"name": properties.name, "capability": f"{capability[0]}.{capability[1]}", "covered": covered})
    driver = extension.cuda.driver_version() if build["cuda"] else 0
    report.facts["gpu"] = {"driver supports CUDA": _version(driver) if driver else None, "devices": gpus}

    if not build["cuda"]:
        if gpus:
            add(Finding("soae_ext was built without CUDA, but torch sees a GPU", f"SOAE_CUDA=on {_REINSTALL}", True))
        return
    for gpu in gpus:
        if not gpu["covered"]:
            what = f"soae_ext was built for {', '.join(build['archs'])}, not for {gpu['name']} ({gpu['capability']})"
            add(Finding(what, f"SOAE_CUDA=on SOAE_CUDA_ARCH=native {_REINSTALL}", True))
    if not driver:
        add(Finding("there is no NVIDIA driver, so the CUDA kernels cannot run", "nothing, to use the CPU", False))
    elif driver // 1000 < build["cuda"] // 1000:
        what = f"the driver supports CUDA {_version(driver)}, soae_ext was built with CUDA {_version(build['cuda'])}"
        add(Finding(what, f"update the driver, or with an older nvcc on PATH: {_REINSTALL}", True))
    elif torch.version.cuda is None:
        what = "torch is a build without CUDA, so the CUDA kernels cannot run"
        add(Finding(what, "install a torch with CUDA: https://pytorch.org/get-started/locally", False))
    elif not gpus:
        add(Finding("torch sees no GPU", "see nvidia-smi, and CUDA_VISIBLE_DEVICES in the environment", False))


def _examine_packages(report: Report) -> None:
    versions: dict[str, str | None] = {}
    for name in (*_NEEDED, *_OPTIONAL):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    report.facts["packages"] = versions
    for name in _NEEDED:
        if versions[name] is None:
            report.findings.append(Finding(f"{name} is not installed", f"pip install {name}", True))
    for name, extra in _OPTIONAL.items():
        if versions[name] is None:
            what = f"{name} (optional) is not installed"
            report.findings.append(Finding(what, f'pip install {name}, or pip install ".[{extra}]"', False))


def _show(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(_show(item) for item in value) or "none"
    if isinstance(value, dict):
        state = "covered" if value["covered"] else "not covered by this build"
        return f"{value['name']} ({value['capability']}, {state})"
    return str(value)


def _lines(report: Report) -> list[str]:
    lines = []
    for section, facts in report.facts.items():
        lines.append(section)
        lines += [f"  {name:21} {_show(value)}" for name, value in facts.items()]
    for finding in report.findings:
        lines += [f"{'problem' if finding.blocking else 'note'}: {finding.what}", f"  remedy: {finding.remedy}"]
    lines.append("ready: all that this machine can run" if report.usable else "not ready: see the problems above")
    return lines


def main(output: Path | None = None) -> int:
    """Print the report; `output`: also write it there as JSON. Returns 0 if what this machine can run is ready."""
    if output is not None:
        try:
            check_writable(Path(output))
        except OSError as error:
            print(f"soae doctor: --output: {error}", file=sys.stderr)
            return 2
    report = examine()
    print("\n".join(_lines(report)))
    if output is not None:
        with replacing(Path(output)) as temporary:
            temporary.write_text(json.dumps(report.as_json(), indent=2) + "\n")
    return 0 if report.usable else 1
