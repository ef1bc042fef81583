"""Whole solves of one process over the order n, the batch B, the restart m and the threads."""

from __future__ import annotations

import functools
import os
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import measure
import torch
from torch import Tensor

from .memory import Guard
from .model import basis_bytes, basis_read_bytes, cycle_bytes, solve_bytes
from .systems import Shape, Systems, shared_workspace

Row = dict[str, Any]
BEYOND_CACHE = {"cpu": 64e6, "cuda": 256e6}  # bytes of a basis from which on it is read from memory


@dataclass(frozen=True)
class Curve:
    """Points along `over` ("n", "B", "m" or "threads"); a point is a shape and how many threads compute it."""

    over: str
    points: tuple[tuple[Shape, int | None], ...]


def curves(device: torch.device, quick: bool) -> list[Curve]:
    if quick:
        base, orders, batches, restarts = Shape(4, 256, 5), (256, 784), (1, 8), (5, 10)
    elif device.type == "cuda":
        base, orders = Shape(128, 3072, 20), (256, 784, 3072, 12288, 50176, 150528)
        batches, restarts = (1, 4, 16, 64, 128, 264, 1024), (5, 10, 20, 50, 100, 250)
    else:
        base, orders = Shape(16, 3072, 20), (256, 784, 3072, 12288, 50176, 150528)
        batches, restarts = (1, 4, 16, 64, 256, 1024), (5, 10, 20, 50, 100, 250)

    def along(over: str, shapes: list[Shape]) -> Curve:
        return Curve(over, tuple((shape, None) for shape in shapes))

    found = [
        along("n", [replace(base, n=n) for n in orders]),
        along("B", [replace(base, batch=batch) for batch in batches]),
        along("m", [replace(base, batch=base.batch if quick else 64, m=m) for m in restarts]),
    ]
    if device.type == "cpu":
        threads = thread_counts()
        shapes = [base] if quick else [Shape(16, 784, 20), Shape(256, 3072, 20), Shape(1, 150528, 50)]
        found += [Curve("threads", tuple((shape, count) for count in threads)) for shape in shapes]
    return found


def thread_counts() -> list[int]:
    """1, 2, 4, ... and all cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return sorted({2**power for power in range(cores.bit_length())} | {cores})


@functools.cache
def memory_to_read(device: torch.device) -> Tensor:
    """Rows far larger than any cache: 1 GiB on a GPU, 128 MiB on a CPU."""
    return torch.ones(2**28 if device.type == "cuda" else 2**25, device=device).view(64, -1)


class Point:
    """One shape, its systems in memory and its solve checked."""

    def __init__(self, shape: Shape, threads: int | None, device: torch.device) -> None:
        self.shape, self.threads, self.systems = shape, threads or torch.get_num_threads(), Systems(shape, device)
        result = self.systems.solve(shared_workspace())
        if not bool((result.iterations == min(shape.m, shape.n)).all()):
            raise SystemExit(f"{shape}: a solve ended early, so its bytes are not known: {result}")
        self.calls = result.operator_calls
        self.residual = self.systems.confirm(result)
        self.read = memory_to_read(device)

    def functions(self) -> dict[str, measure.Timed]:
        """The solve, its products alone, and reading memory, with this point's number of threads."""
        return {
            "solve": self._with_threads(functools.partial(self.systems.solve, shared_workspace())),
            "products": self._with_threads(functools.partial(self.systems.products, self.calls)),
            "read": self._with_threads(lambda: self.read.sum(1)),
        }

    def _with_threads(self, function: Callable[[], object]) -> measure.Timed:
        def run() -> None:
            if torch.get_num_threads() != self.threads:
                torch.set_num_threads(self.threads)
            function()

        return run

    def row(self, times: dict[str, list[float]], device: torch.device) -> Row:
        """All ratios are of times of the same round."""
        shape = self.shape
        size = (shape.batch, shape.n, shape.m)
        solver = [whole - products for whole, products in zip(times["solve"], times["products"], strict=True)]
        row: Row = {
            "B": shape.batch, "n": shape.n, "m": shape.m, "threads": self.threads, "dtype": "float32",
            "operator_calls": self.calls, "true_residual": self.residual,
            "seconds": measure.spread(times["solve"]),
            "operator_share": measure.spread([p / s for p, s in zip(times["products"], times["solve"], strict=True)]),
            "systems_per_second": measure.spread([shape.batch / s for s in times["solve"]]),
            "read_gbs": self.read.nbytes / statistics.median(times["read"]) / 1e9,
            "basis_bytes": basis_bytes(*size), "cycle_bytes": cycle_bytes(*size),
        }  # fmt: skip
        if min(solver) > 0:  # a product of few numbers may by itself take longer than within the solve
            row["solver_seconds"] = measure.spread(solver)
            row["basis_read_gbs"] = measure.spread([basis_read_bytes(*size) / s / 1e9 for s in solver])
            if row["basis_bytes"] > BEYOND_CACHE[device.type]:
                pairs = zip(solver, times["read"], strict=True)
                shares = [(basis_read_bytes(*size) / ours) / (self.read.nbytes / read) for ours, read in pairs]
                row["fraction_of_bandwidth"] = measure.spread(shares)
        return row


def measured(curve: Curve, device: torch.device, guard: Guard, *, repeats: int, least_seconds: float) -> Row:
    """The curve's points, timed in turns; those that do not fit into memory are named with the reason."""
    points: list[Point] = []
    rows: list[Row] = []
    threads, held = torch.get_num_threads(), 0
    for shape, count in curve.points:
        vectors = 12 * shape.batch * shape.n  # b, the diagonal and the product's buffer stay for all points
        why = guard.refusal(held + solve_bytes(shape.batch, shape.n, shape.m))
        if why is None:
            held += vectors
            points.append(Point(shape, count, device))
        else:
            where = {"B" if key == "batch" else key: value for key, value in asdict(shape).items()}
            rows.append(where | {"threads": count or threads, "skipped": why})
            print(f"{shape}: {why}")
    functions = {f"{index} {name}": f for index, point in enumerate(points) for name, f in point.functions().items()}
    times = measure.interleaved(functions, cuda=device.type == "cuda", repeats=repeats, least_seconds=least_seconds)
    torch.set_num_threads(threads)
    for index, point in enumerate(points):
        mine = {name: times[f"{index} {name}"] for name in ("solve", "products", "read")}
        rows.append(point.row(mine, device))
        print(line(curve.over, rows[-1]), flush=True)
    return {"over": curve.over, "points": rows}


def line(over: str, row: Row) -> str:
    seconds, share = row["seconds"], row.get("fraction_of_bandwidth")
    return (
        f"{over:8} B={row['B']:<5} n={row['n']:<7} m={row['m']:<4} threads={row['threads']:<3}"
        f"{1e3 * seconds['median']:10.3f} ms ({1e3 * seconds['p10']:.3f}–{1e3 * seconds['p90']:.3f})"
        f"  operator {row['operator_share']['median']:4.0%}  {row['systems_per_second']['median']:10.0f} systems/s"
        f"{'' if share is None else '  ' + format(share['median'], '.0%') + ' of read bandwidth'}"
    )
