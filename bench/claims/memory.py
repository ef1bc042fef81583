"""Claim: "there is no extra storage requirement for our algorithm since it is Hessian-free" (section III-F).

    python bench/claims/memory.py

Peak resident memory of an attack above what model and images take, each run in a process of its own (Linux with glibc:
VmHWM of /proc/self/status, reset before the attack). One outer step on random images and random weights, which memory
does not depend on, after an attack on 4 images has loaded what is loaded once; what that left free is returned first.
Beside it: the Krylov basis, (m + 1) n B numbers, and the bytes of a whole Hessian for the batch, n^2 B.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import parser, save

from soae_ext.attacks import PGD, SOAE, Attack
from soae_ext.models import SmallCNN, resnet18

MIB = 2**20
# Network -> (batch, is it the small CNN, width of the ResNet).
NETWORKS = {
    "small CNN, B=64": (64, True, 0),
    "small CNN, B=128": (128, True, 0),
    "ResNet-18 width 16, B=128": (128, False, 16),
    "ResNet-18, B=64": (64, False, 64),
}
PRODUCTS = ("finite-difference", "double-backward", "traced")


def attacks(full: bool) -> dict[str, tuple[int, str | None]]:
    """Name -> (m, products); m = 0 is PGD."""
    dimensions = (2, 5, 9) if full else (2,)
    chosen: dict[str, tuple[int, str | None]] = {"PGD": (0, None)}
    for products in PRODUCTS:
        for m in dimensions:
            chosen[f"SOAE m={m}, {products}"] = (m, products)
    return chosen


def _status(field: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}: this script needs Linux")


def child(network: str, m: int, products: str | None, warm: bool) -> dict[str, int]:
    """Baseline and peak, in bytes; `warm`: a small attack comes first, for what is loaded and kept once."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch, small, width = NETWORKS[network]
    model = (SmallCNN() if small else resnet18(width=width)).eval()
    x = torch.rand(batch, *((1, 28, 28) if small else (3, 32, 32)))
    with torch.no_grad():
        y = model(x).argmax(1)
    options: dict[str, Any] = {"early_stop": False, "batch_size": batch}
    attack: Attack = PGD(0.03, steps=2, **options)
    if products is not None:
        attack = SOAE(0.03, steps=1, max_dim=m, threshold=0.0, hvp=products, **options)
    if warm:
        replace(attack, batch_size=4)(model, x[:4], y[:4])
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    base = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    result = attack(model, x, y)
    peak = _status("VmHWM")
    return {"baseline": base, "peak": peak, "gradients": int(result.gradient_calls.max())}


def measure(network: str, full: bool, warm: bool, repeats: int) -> list[dict[str, Any]]:
    batch, small, _ = NETWORKS[network]
    n = 784 if small else 3072
    rows: list[dict[str, Any]] = []
    for name, (m, products) in attacks(full).items():
        extras = []
        for _ in range(repeats):
            command = [sys.executable, __file__, "--child", json.dumps([network, m, products, warm])]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            extras.append((found["peak"] - found["baseline"]) / MIB)
        row: dict[str, Any] = {
            "attack": name,
            "extra_mib": {"median": statistics.median(extras), "min": min(extras), "max": max(extras)},
            "repeats": repeats,
            "gradients": found["gradients"],
            "krylov_basis_mib": (m + 1) * n * 4 * batch / MIB if m else 0.0,
            "hessians_mib": n * n * 4 * batch / MIB,
        }
        rows.append(row)
        row["of_pgd"] = row["extra_mib"]["median"] / rows[0]["extra_mib"]["median"]
        extra = row["extra_mib"]["median"]
        print(f"{network}, warm={warm}: {name} {extra:.0f} MiB, {row['of_pgd']:.2f} of PGD", flush=True)
    return rows


def main() -> None:
    options = parser(__doc__, "memory")
    options.add_argument("--repeats", type=int, default=2, help="runs of each attack")
    options.add_argument("--resume", action="store_true", help="keep the networks that the JSON file already has")
    options.add_argument("--child", help=argparse.SUPPRESS)
    arguments: argparse.Namespace = options.parse_args()
    if arguments.child:
        print(json.dumps(child(*json.loads(arguments.child))))
        return
    del arguments.child
    torch.set_num_threads(arguments.threads)
    first = next(iter(NETWORKS))
    cases = {network: (network, width < 64, True) for network, (_, _, width) in NETWORKS.items()}
    cases[f"{first}, first attack of the process"] = (first, False, False)
    results: dict[str, Any] = {}
    if arguments.resume:
        results = json.loads(arguments.output.read_text())["networks"]
    del arguments.resume
    for name, case in cases.items():
        if name not in results:
            results[name] = measure(*case, arguments.repeats)
            save(arguments, "no extra storage (III-F)", {"networks": results})


if __name__ == "__main__":
    main()
