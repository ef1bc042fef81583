"""Compiles the CUDA kernels for every architecture and fails on register spills beyond the gate.

    python bench/spill_gate.py [--arch 80 90 ...] [--nvcc PATH]

Prints the registers of each kernel and architecture. Warnings of the compiler are errors.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CSRC = Path(__file__).resolve().parents[1] / "csrc"
ARCHITECTURES = ["75", "80", "86", "89", "90", "100", "120"]
GATE = {"75": 16}  # bytes of spill stores that are let pass; 0 elsewhere

ENTRY = re.compile(r"Compiling entry function '(\w+)'")
SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")


def compile_one(nvcc: str, source: Path, arch: str) -> dict[str, tuple[int, int]]:
    """Registers and bytes of spill stores of every kernel of one file on one architecture."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(nvcc, "-std=c++17", "-O3", "-cubin", f"-arch=sm_{arch}", "-Xptxas", "-v", "-Werror", "all-warnings"),
            *(f"-I{CSRC}", str(source), "-o", str(Path(folder, "kernels.cubin"))),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    kernels: dict[str, tuple[int, int]] = {}
    name, spill = "", 0
    for line in (done.stdout + done.stderr).splitlines():
        if match := ENTRY.search(line):
            name = match[1]
        elif match := SPILL.search(line):
            spill = int(match[2])
        elif match := REGISTERS.search(line):
            kernels[name] = (int(match[1]), spill)
    return kernels


def readable(symbols: list[str]) -> dict[str, str]:
    """Kernel names without their parameters, where c++filt is at hand."""
    tool = shutil.which("c++filt")
    if tool is None:
        return {symbol: symbol for symbol in symbols}
    out = subprocess.run([tool, "-p", *symbols], capture_output=True, text=True, check=True).stdout
    return dict(zip(symbols, (re.sub(r"^void |soae::cuda::", "", line) for line in out.splitlines()), strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=ARCHITECTURES, help="compute capabilities without the dot")
    parser.add_argument("--nvcc", default=os.environ.get("CUDACXX") or shutil.which("nvcc"))
    arguments = parser.parse_args()
    if not arguments.nvcc:
        print("spill_gate: no nvcc: install the CUDA toolkit, or pass --nvcc PATH", file=sys.stderr)
        return 2

    sources = sorted((CSRC / "cuda").glob("*.cu"))
    found: dict[str, dict[str, tuple[int, int]]] = {}
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        jobs = {
            (source, arch): pool.submit(compile_one, arguments.nvcc, source, arch)
            for source in sources
            for arch in arguments.arch
        }
        for (_, arch), job in jobs.items():
            for kernel, figures in job.result().items():
                found.setdefault(kernel, {})[arch] = figures

    names = readable(list(found))
    width = max(map(len, names.values()))
    print("registers (+ bytes spilled)".ljust(width), *(f"sm_{arch}".rjust(8) for arch in arguments.arch))
    failures = []
    for symbol in sorted(found, key=lambda s: names[s]):
        cells = []
        for arch in arguments.arch:
            registers, spill = found[symbol][arch]
            cells.append((f"{registers}+{spill}" if spill else str(registers)).rjust(8))
            if spill > GATE.get(arch, 0):
                failures.append(f"{names[symbol]} spills {spill} bytes on sm_{arch}")
        print(names[symbol].ljust(width), *cells)
    for failure in failures:
        print("FAIL", failure)
    print(f"{len(found)} kernels, {len(arguments.arch)} architectures, {len(failures)} beyond the gate")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
