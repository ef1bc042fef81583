"""Where results come from: versions, commit, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import soae_ext

__all__ = ["git_commits", "hardware", "versions"]

_PACKAGES = ("soae-ext", "torch", "numpy", "safetensors", "datasets", "torchmetrics", "pyautoattack", "matplotlib")


def versions() -> dict[str, str | int | None]:
    """Python, the platform, the packages that matter (`None`: not installed), and the CPU threads of torch."""
    found: dict[str, str | int | None] = {"python": platform.python_version(), "machine": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return {**found, "threads": torch.get_num_threads()}


def hardware(device: torch.device) -> dict[str, object]:
    """Names of the CPU and, for a CUDA device, of the GPU, with cores and memory in GiB."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found: dict[str, object] = {"cpu": _cpu_name(), "cores": cores, "memory_gib": round(pages / 2**30, 1)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = {
            "name": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    return found


def git_commits() -> dict[str, dict[str, object]]:
    """Commit of the working directory's repository and of the one that the package runs from, where there is one.

    `"modified"` says whether tracked files differ from the commit.
    """
    found = {}
    for name, folder in (("working_directory", Path.cwd()), ("soae_ext", Path(soae_ext.__file__).parent)):
        commit = _git(folder, "rev-parse", "HEAD")
        if commit:
            found[name] = {"commit": commit, "modified": bool(_git(folder, "status", "--porcelain", "-uno"))}
    return found


def _git(folder: Path, *words: str) -> str:
    """What git prints; nothing if there is no git, no repository or no answer."""
    try:
        run = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
