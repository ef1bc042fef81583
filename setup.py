"""Builds the compiled module soae_ext._C with CMake and Ninja. No torch is needed to compile.

SOAE_CUDA=auto|on|off   auto (default): CUDA if CMake finds a CUDA compiler; on: fail without one; off: CPU only.
SOAE_CUDA_ARCH=LIST     a CMake list of architectures such as 90 or 80-real;90, or native; default: sm_75 to sm_120.
CMAKE_BUILD_PARALLEL_LEVEL   compile jobs; default: the available cores, at most 8.
CMAKE_ARGS              further arguments of the configure call.
"""

from __future__ import annotations

import importlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCE = Path(__file__).resolve().parent


def find_tool(name: str, directory_attribute: str) -> str:
    """The executable of the PyPI package `name`, which need not be on PATH, else the system's."""
    try:
        directory = getattr(importlib.import_module(name), directory_attribute)
        found = shutil.which(name, path=directory) or shutil.which(name)
    except (ImportError, AttributeError):
        found = shutil.which(name)
    if found is None:
        raise SystemExit(f"error: {name} not found. Remedy: pip install {name}, or build without --no-build-isolation.")
    return found


def run(command: list[str]) -> None:
    if subprocess.run(command).returncode != 0:
        raise SystemExit("error: the compiled module was not built; the reason is above.")


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        import pybind11

        cuda = os.environ.get("SOAE_CUDA", "auto").strip().lower()
        if cuda not in ("auto", "on", "off"):
            raise SystemExit(f"error: SOAE_CUDA={cuda!r} is not one of auto, on, off.")
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        cmake = find_tool("cmake", "CMAKE_BIN_DIR")
        definitions = {
            "CMAKE_BUILD_TYPE": "Debug" if self.debug else "Release",
            "CMAKE_MAKE_PROGRAM": find_tool("ninja", "BIN_DIR"),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "SOAE_CUDA": cuda,
            "SOAE_CUDA_ARCH": os.environ.get("SOAE_CUDA_ARCH", ""),
            "SOAE_VERSION": self.distribution.get_version(),
        }
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(min(cores, 8)))
        configure = [cmake, "-S", str(SOURCE), "-B", str(build), "-G", "Ninja"]
        cache = build / "CMakeCache.txt"
        if cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={SOURCE}\n" not in cache.read_text():
            configure.append("--fresh")  # the tree was moved: CMake would refuse
        configure += [f"-D{name}={value}" for name, value in definitions.items()]
        run([*configure, *shlex.split(os.environ.get("CMAKE_ARGS", ""))])
        run([cmake, "--build", str(build), "--parallel", jobs])
        # A new inode: a process that has the old module loaded keeps its own.
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(target.name + ".new")
        shutil.copy2(build / target.name, fresh)
        fresh.replace(target)


setup(ext_modules=[Extension("soae_ext._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
