"""The kernels under AddressSanitizer and UBSan, in an executable of their own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests import simt_build

pytestmark = [pytest.mark.slow, pytest.mark.sanitizer]

FLAGS = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
# Fibers leave the leak checker nothing to hold on to: their stacks are no thread's.
ENVIRONMENT = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}


@pytest.fixture(scope="module")
def executable() -> Path:
    sources = [simt_build.CSRC / "simt" / "main.cpp", *simt_build.KERNELS, *simt_build.EXECUTOR]
    try:
        return simt_build.build("simt_sanitizer", sources, FLAGS, [])
    except simt_build.Unavailable as reason:
        pytest.skip(f"the SIMT build needs {reason}")


def run(executable: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(executable), *arguments], capture_output=True, text=True, env=ENVIRONMENT, timeout=600, check=False
    )


def test_whole_solves_are_clean(executable):
    done = run(executable)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "all solves are right\n"
    assert "runtime error" not in done.stderr


def test_a_store_beyond_shared_memory_is_reported(executable):
    done = run(executable, "out-of-bounds")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
    assert "self_test.cpp" in done.stderr


def test_the_same_kernel_without_the_defect_is_clean(executable):
    done = run(executable, "correct")
    assert (done.returncode, done.stdout) == (0, "0 wrong\n"), done.stderr
