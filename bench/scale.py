"""How solves scale: over the order, the batch, the restart and the threads, and over processes or GPUs.

    python bench/scale.py [--quick] [--threads N] [--only n,B,m,threads] [--output bench/results/scale_cpu.json]
    torchrun --nproc-per-node=K bench/scale.py [--threads N] [--output bench/results/scale_ranks_cpu.json]

**One process.** Every point is one cycle of exactly m steps of B systems (bench/scaling/systems.py: a diagonal plus a
low rank, of known spectrum), with everything that a caller pays for and a workspace reused. Its products alone are
timed in the same turns: `operator_share` is their part, and `solver_seconds` and the bandwidth are those of the rest.
`basis_read_gbs` counts one read of the basis a step and one for x, against a sum over memory in the same turns; the
fraction is left out where the basis fits the cache.

**torchrun.** The systems are cut into one contiguous part for each rank, and the same solve is timed with 1, 2, 4, ...
of the ranks while the others wait: with a fixed number of systems altogether ("strong") and a fixed number a rank
("weak"). There is a barrier before a timing and the slowest rank counts; nothing is exchanged inside a solve. Before
that, the verdicts and residuals of all parts are held against those of the whole batch in one process: a difference
ends the run. CPU: gloo, and `--threads` threads a rank (cores / K by default); CUDA: nccl, one GPU a rank.

The residual of every solve is computed again in float64 from the x that came back. What would not fit into memory is
left out and says so. Timings are taken in turns; rows have the median and the 10-90 % range.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import measure
import torch
from scaling import curves, ranks
from scaling.memory import Guard

CURVES = ("n", "B", "m", "threads")


def arguments() -> argparse.Namespace:
    made = measure.parser(__doc__)
    made.add_argument("--only", help=f"some of the curves {','.join(CURVES)} (one process only)")
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where there is one")
    made.add_argument("--memory", type=float, metavar="GIB", help="most to use, of all processes (80 %% of the free)")
    made.add_argument("--repeats", type=int, help="timings of each point (11, with --quick 3)")
    options = made.parse_args()
    if options.only is not None and "LOCAL_WORLD_SIZE" in os.environ:
        made.error("--only: torchrun measures the curve over ranks alone: leave it out")
    options.only = CURVES if options.only is None else tuple(options.only.split(","))
    unknown = sorted(set(options.only) - set(CURVES))
    if unknown:
        made.error(f"--only: no curve {', '.join(unknown)}: choose from {','.join(CURVES)}")
    for name in ("threads", "repeats"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            made.error(f"--{name} must be at least 1")
    if options.memory is not None and not options.memory > 0:
        made.error("--memory must be more than 0")
    if options.device == "cuda" and not torch.cuda.is_available():
        made.error("--device cuda: torch sees no CUDA device")
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


def single(options: argparse.Namespace, repeats: int, least_seconds: float) -> dict[str, Any]:
    device = torch.device(options.device)
    record = measure.start(options)
    ceilings = measure.bandwidth(device)
    print(", ".join(f"{name} {value:.1f}" for name, value in ceilings.items()))
    made = []
    for curve in curves.curves(device, options.quick):
        if curve.over in options.only:
            guard = Guard.of(device, options.memory)
            made.append(curves.measured(curve, device, guard, repeats=repeats, least_seconds=least_seconds))
    return {
        "command": measure.command("bench/scale.py"),
        "machine": record,
        "device": device.type,
        "ceilings": ceilings,
        "curves": made,
    }


def main() -> None:
    options = arguments()
    repeats = options.repeats or (3 if options.quick else 11)
    least_seconds = 0.002 if options.quick else 0.05
    if "LOCAL_WORLD_SIZE" not in os.environ:
        found: dict[str, Any] | None = single(options, repeats, least_seconds)
    else:
        found = ranks.run(options, repeats=repeats, least_seconds=least_seconds)
        if found is not None:
            found = {"command": measure.command("bench/scale.py")} | found
    if found is not None and options.output is not None:
        measure.write_json(options.output, found)


if __name__ == "__main__":
    main()
