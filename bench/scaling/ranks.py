"""Solves over the ranks of torch.distributed: every rank its own systems, nothing exchanged inside a solve."""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import measure
import torch
import torch.distributed as dist

from .memory import Guard
from .model import solve_bytes
from .systems import Shape, Systems, shared_workspace

Row = dict[str, Any]
Answer = tuple[int, int, float]  # status, iterations and relative true residual of a system
TOLERANCE = 1e-2  # what every second system meets in the check, and the others miss by far
RESIDUALS_AGREE = 1e-2  # relative: those of the check lie far above rounding


@dataclass(frozen=True)
class Group:
    """This process among the others."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def join(cls, device_type: str) -> Group:
        local = int(os.environ["LOCAL_RANK"])
        device = torch.device(device_type, local if device_type == "cuda" else None)
        if device_type == "cuda":
            if local >= torch.cuda.device_count():
                raise SystemExit(f"torchrun: one GPU a rank, and there are {torch.cuda.device_count()}")
            torch.cuda.set_device(device)
        # What is gathered for the check lives on the CPU, also where the barriers are nccl's.
        dist.init_process_group("gloo" if device_type == "cpu" else "cpu:gloo,cuda:nccl")
        return cls(dist.get_rank(), dist.get_world_size(), device)

    def largest(self, value: float) -> float:
        """The largest of all ranks' values; a barrier as well."""
        held = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(held, op=dist.ReduceOp.MAX)
        return float(held)

    def gather(self, value: list[Any]) -> list[Any]:
        """The ranks' lists, one after the other."""
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, value)
        return [item for part in parts for item in part]


def part(total: int, rank: int, ranks: int) -> slice:
    """The contiguous systems of `rank`, as equally many as possible; none beyond the first `ranks`."""
    if rank >= ranks:
        return slice(0, 0)
    return slice(total * rank // ranks, total * (rank + 1) // ranks)


@dataclass(frozen=True)
class Case:
    mode: str  # "strong": a fixed number of systems altogether; "weak": a rank
    shape: Shape  # of all ranks together
    ranks: int


def cases(world: int, device: torch.device, quick: bool) -> list[Case]:
    counts = sorted({2**power for power in range(world.bit_length()) if 2**power <= world} | {world})
    if quick:
        strong, weak = [Shape(6, 256, 8)], [Shape(3, 256, 8)]
    elif device.type == "cuda":
        strong, weak = [Shape(1024, 3072, 20), Shape(64, 150528, 20)], [Shape(264, 3072, 20)]
    else:
        strong, weak = [Shape(64, 784, 20), Shape(256, 3072, 20), Shape(16, 150528, 20)], [Shape(64, 3072, 20)]
    return [Case("strong", shape, k) for shape in strong for k in counts] + [
        Case("weak", replace(shape, batch=k * shape.batch), k) for shape in weak for k in counts
    ]


def check(case: Case, group: Group) -> Row:
    """The parts' verdicts and true residuals, gathered, are those of the whole batch in one process."""
    mine = _answers(Systems(case.shape, group.device, part=part(case.shape.batch, group.rank, case.ranks), mixed=True))
    gathered = group.gather(mine)
    if group.rank > 0:
        group.gather([])
        return {}
    whole = _answers(Systems(case.shape, group.device, mixed=True))
    group.gather([])  # the others wait here, so that none of them starts while the whole batch is solved
    wrong = differing(gathered, whole)
    if wrong:
        raise SystemExit(f"{case}: systems {wrong} differ from those of the unsharded solve")
    converged = sum(status == 0 for status, _, _ in whole)
    largest = max(abs(a[2] - b[2]) for a, b in zip(gathered, whole, strict=True))
    return {"systems": len(whole), "converged": converged, "largest_residual_difference": largest}


def differing(gathered: list[Answer], whole: list[Answer]) -> list[int]:
    """Systems that differ by more than rounding, which may end a solve that meets its tolerance one step apart."""

    def agree(mine: Answer, expected: Answer) -> bool:
        if mine[0] != expected[0] or abs(mine[1] - expected[1]) > 1:
            return False
        if mine[1] != expected[1]:
            return max(mine[2], expected[2]) <= TOLERANCE
        return abs(mine[2] - expected[2]) <= RESIDUALS_AGREE * expected[2]

    if len(gathered) != len(whole):
        return list(range(max(len(gathered), len(whole))))
    return [index for index, pair in enumerate(zip(gathered, whole, strict=True)) if not agree(*pair)]


def _answers(systems: Systems) -> list[Answer]:
    """Of every system, solved to the tolerance of the check."""
    if len(systems.b) == 0:
        return []
    result = systems.solve(shared_workspace(), rtol=TOLERANCE)
    residuals = systems.relative_residuals(result.x)
    systems.confirm(result)
    return list(zip(result.status.tolist(), result.iterations.tolist(), residuals.tolist(), strict=True))


def seconds(function: Callable[[], object] | None, calls: int, group: Group) -> float:
    """Of one call on the slowest rank; a rank without a function waits."""
    group.largest(0.0)
    clock = measure.seconds_cuda if group.device.type == "cuda" else measure.seconds_cpu
    return group.largest(0.0 if function is None else clock(function, calls))


def timed(chosen: list[Case], group: Group, *, repeats: int, least_seconds: float) -> list[list[float]]:
    """Seconds of every case, in turns."""
    functions: list[Callable[[], object] | None] = []
    calls = []
    for case in chosen:
        mine = part(case.shape.batch, group.rank, case.ranks)
        systems = None if mine.start == mine.stop else Systems(case.shape, group.device, part=mine)
        functions.append(None if systems is None else functools.partial(systems.solve, shared_workspace()))
        seconds(functions[-1], 2, group)
        once = seconds(functions[-1], 3, group)
        calls.append(max(1, min(1000, round(least_seconds / max(once, 1e-7)))))
    times: list[list[float]] = [[] for _ in chosen]
    for _ in range(repeats):
        for index, function in enumerate(functions):
            times[index].append(seconds(function, calls[index], group))
    return times


def rows_of(chosen: list[Case], times: list[list[float]], checks: list[Row]) -> list[Row]:
    """`speedup` is over one rank in the same round, counted in systems a second; `efficiency` that of each rank."""
    rows = []
    base: dict[tuple[str, int], list[float]] = {}
    for case, spent, checked in zip(chosen, times, checks, strict=True):
        shape = case.shape
        rate = [shape.batch / s for s in spent]
        alone = base.setdefault((case.mode, shape.n), rate)  # the cases of a shape start with one rank
        speedup = measure.spread([r / a for r, a in zip(rate, alone, strict=True)])
        rows.append({
            "mode": case.mode, "ranks": case.ranks, "B": shape.batch, "n": shape.n, "m": shape.m, "dtype": "float32",
            "systems_per_rank": -(-shape.batch // case.ranks), "seconds": measure.spread(spent),
            "systems_per_second": measure.spread(rate), "speedup": speedup,
            "efficiency": {key: value / case.ranks for key, value in speedup.items()}, "check": checked,
        })  # fmt: skip
    return rows


def run(options: argparse.Namespace, *, repeats: int, least_seconds: float) -> dict[str, Any] | None:
    """The record, on rank 0."""
    group = Group.join(options.device)
    threads = options.threads or max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"]))
    torch.set_num_threads(threads)
    local = 1 if group.device.type == "cuda" else int(os.environ["LOCAL_WORLD_SIZE"])
    limit = Guard.of(group.device, options.memory, local).limit
    # All ranks must leave out the same: the least of their limits counts.
    guard = Guard(None if limit is None else int(-group.largest(-float(limit))))
    chosen, rows = [], []
    for case in cases(group.world, group.device, options.quick):
        shape = case.shape
        why = guard.refusal(solve_bytes(shape.batch, shape.n, shape.m))  # the check solves the whole batch on rank 0
        if why is None:
            chosen.append(case)
        else:
            rows.append(
                {"mode": case.mode, "ranks": case.ranks, "B": shape.batch, "n": shape.n, "m": shape.m, "skipped": why}
            )
    checks = [check(case, group) for case in chosen]
    times = timed(chosen, group, repeats=repeats, least_seconds=least_seconds)
    record = None
    if group.rank == 0:
        rows += rows_of(chosen, times, checks)
        record = {
            "machine": measure.machine(), "device": group.device.type, "world": group.world,
            "threads_per_rank": threads, "rows": rows,
        }  # fmt: skip
        for row in rows:
            print(line(row), flush=True)
    dist.destroy_process_group()
    return record


def line(row: Row) -> str:
    where = f"{row['mode']:7} ranks={row['ranks']:<3} B={row['B']:<5} n={row['n']:<7} m={row['m']:<4}"
    if "skipped" in row:
        return f"{where} {row['skipped']}"
    spent, gain = row["seconds"], row["speedup"]
    return (
        f"{where}{1e3 * spent['median']:10.3f} ms ({1e3 * spent['p10']:.3f}–{1e3 * spent['p90']:.3f})"
        f"{row['systems_per_second']['median']:10.0f} systems/s  {gain['median']:5.2f}x of one rank "
        f"({gain['p10']:.2f}–{gain['p90']:.2f})"
    )
