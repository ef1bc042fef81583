"""Requirement: SOAE on 1,000 CIFAR-10 images and a ResNet-18 of full width takes less than 4 GiB on a CPU.

    python bench/claims/cifar10_memory.py --data DIR

Each case is a process of its own, whose peak resident memory the operating system reports. The weights are random:
memory does not depend on them, and `early_stop=false` keeps all images under attack. The cases named after a command
are `soae attack` with its default batch size; the others call the attack in Python with `batch_size="auto"`. `images
at once` is the batch that the command chose.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import parser, save

from soae_ext.models import resnet18, save_checkpoint

LIMIT_GIB = 4.0
# Every image costs the same number of gradients: no solve ends before its largest dimension.
PLAIN, LONGER = (f"SOAE-1:max_dim={m},threshold=0,early_stop=false" for m in (2, 5))
BUDGET = "SOAE:gradients=10,threshold=0,early_stop=false"
PGD = "PGD-2:early_stop=false"
AUTO = """
import sys
import torch
from soae_ext.attacks.names import parse_attack
from soae_ext.data import load_data
from soae_ext.models import load_checkpoint
torch.set_num_threads(int(sys.argv[5]))
data = load_data(sys.argv[2], n=int(sys.argv[3]))
_, attack = parse_attack(sys.argv[4] + ",batch_size=auto", 8 / 255)
attack(load_checkpoint(sys.argv[1]), data.images, data.labels)
"""


def run(words: list[str], threads: int) -> dict[str, Any]:
    """Peak memory and time of a process."""
    start = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"failed: {shlex.join(words)}")
    # Linux counts in KiB, macOS in bytes.
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"peak_gib": peak / 2**30, "seconds": time.perf_counter() - start, "cpu_seconds": usage.ru_utime}


def main() -> None:
    options = parser(__doc__, "memory")
    options.set_defaults(output=Path(__file__).parents[2] / "docs" / "results" / "cifar10_memory.json")
    options.add_argument("--images", type=int, default=1000, help="images of one case")
    options.add_argument("--few", type=int, default=130, help="images of the other cases: two batches")
    arguments: argparse.Namespace = options.parse_args()
    if arguments.data is None:
        options.error("--data: name the folder with cifar10/*.parquet")
    data, n, threads = f"cifar10:{Path(arguments.data) / 'cifar10'}", str(arguments.images), arguments.threads
    few, cases = str(arguments.few), []
    with tempfile.TemporaryDirectory() as folder:
        network, report = str(Path(folder) / "net.safetensors"), Path(folder) / "run.json"
        torch.manual_seed(0)
        save_checkpoint(resnet18(), network)
        common = ["--model", "resnet18", "--checkpoint", network, "--data", data, "--output", str(report)]
        for spec, count in ((LONGER, few), (BUDGET, few), (PGD, few), (PLAIN, n)):
            words = [sys.executable, "-m", "soae_ext.cli", "attack", *common, "--n", count, "--attack", spec]
            case = {"case": f"soae attack --attack {spec}", "images": int(count), **run(words, threads)}
            case["images at once"] = json.loads(report.read_text())["config"]["batch_size"]
            cases.append(case)
            print(case, flush=True)
        for spec, count in ((LONGER, few), (BUDGET, few)):
            words = [sys.executable, "-c", AUTO, network, data, count, spec, str(threads)]
            case = {"case": f"{spec},batch_size=auto, from Python", "images": int(count), **run(words, threads)}
            cases.append(case)
            print(cases[-1], flush=True)
        idle = run([sys.executable, "-c", "import soae_ext.commands.attack, datasets"], threads)
    worst = max(case["peak_gib"] for case in cases)
    content = {
        "network": "resnet18, width 64, 11.2 million parameters", "cases": cases,
        "imports_alone_gib": idle["peak_gib"], "limit_gib": LIMIT_GIB, "worst_gib": worst, "met": worst < LIMIT_GIB,
    }  # fmt: skip
    save(arguments, "Peak memory under 4 GiB: 1,000 CIFAR-10 images, ResNet-18, CPU", content)


if __name__ == "__main__":
    main()
