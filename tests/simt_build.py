"""Builds the SIMT module: the CUDA kernels of this tree, executed on the CPU thread by thread (csrc/simt)."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "simt"

# runtime.cu speaks to the CUDA driver; csrc/simt/runtime.cpp stands in for it.
KERNELS = sorted(path for path in (CSRC / "cuda").glob("*.cu") if path.name != "runtime.cu")
EXECUTOR = [CSRC / "simt" / name for name in ("simt.cpp", "self_test.cpp", "runtime.cpp")]

# Fortified longjmp refuses to jump between stacks.
FLAGS = ["-std=c++17", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-DSOAE_SIMT", f"-I{CSRC}"]


class Unavailable(RuntimeError):
    """What the SIMT build lacks on this machine."""


def compiler() -> str:
    """The C++ compiler: $CXX, c++, g++ or clang++."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    raise Unavailable("no C++ compiler: install g++ or clang++, or set CXX")


def _fingerprint(command: list[str]) -> str:
    digest = hashlib.sha256(" ".join(command).encode())
    for path in sorted(CSRC.rglob("*")):
        if path.is_file() and "cpu" not in path.relative_to(CSRC).parts:
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def build(target: str, sources: list[Path], flags: list[str], link: list[str]) -> Path:
    """Compiles and links `sources` to build/simt/<hash>/<target>, unless the same sources were built before."""
    cxx = compiler()
    command = [cxx, *FLAGS, *flags]
    folder = BUILD / _fingerprint([*command, *link])
    result = folder / target
    if result.exists():
        return result
    folder.mkdir(parents=True, exist_ok=True)
    objects = {source: folder / f"{target}.{source.name}.{os.getpid()}.o" for source in sources}
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        compiles = [
            pool.submit(_run, [*command, "-x", "c++", "-c", str(source), "-o", str(out)])
            for source, out in objects.items()
        ]
        for compile_ in compiles:
            compile_.result()
    scratch = folder / f"{target}.{os.getpid()}"
    _run([cxx, *flags, *link, *map(str, objects.values()), "-o", str(scratch)])
    for path in objects.values():
        path.unlink()
    scratch.replace(result)  # at once, so that two test runs may build side by side
    return result


def load_simt() -> ModuleType:
    """The module `_simt`: the launchers of csrc/gmres.h in `_simt.cuda`, and the executor's controls."""
    try:
        import pybind11
    except ImportError as error:
        raise Unavailable("pybind11 is missing: pip install pybind11") from error
    flags = [
        "-O1",
        "-fPIC",
        "-fvisibility=hidden",
        "-DSOAE_WITH_CUDA",
        "-DSOAE_MODULE=_simt",
        f"-I{pybind11.get_include()}",
        f"-I{sysconfig.get_paths()['include']}",
    ]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    path = build(f"_simt{suffix}", [CSRC / "binding.cpp", *KERNELS, *EXECUTOR], flags, ["-shared"])
    spec = importlib.util.spec_from_file_location("_simt", path)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
