"""Fused GMRES kernels beside pure PyTorch: one Arnoldi step, one cycle, one whole solve.

    python bench/bench_gmres.py [--quick] [--gpu-only] [--output run.json] [--figure run.png]

Every configuration is checked first: after the same number of steps all implementations must have reached the same
true residual in float64 (within a factor of 2), else the row says "not comparable". Then they are timed in turns, and
each row gives the median ratio to the *best* pure-PyTorch form with its 10-90 % range, and the fraction of the read
bandwidth that one read of the basis and of w and two writes of the result amount to. Bandwidth is that of a sum over
the same memory, taken in the same turns.

The PyTorch forms (soae_ext/reference.py): textbook modified Gram–Schmidt, and classical Gram–Schmidt twice as batched
row-vector products. In the step rows they do the orthogonalisation, the norm and the append only, while the fused step
also updates the Hessenberg factorisation, the rotations, the estimate and the verdicts. On a GPU both PyTorch forms are
also measured inside a CUDA graph. Rows of level "basis" hold the fused step with its basis in float16 or bfloat16, the
faster of the two, against the same with its basis in float32.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import torch
from torch import Tensor

from soae_ext import _native, reference
from soae_ext._solver.driver import Problem
from soae_ext._solver.workspace import Workspace
from soae_ext.gmres import gmres

BEYOND_CACHE = 40e6  # bytes of all bases; below that the read of the memory is one of the cache
SETS = 3  # bases used in turns, so that none of them is in the cache when its turn comes


@dataclass(frozen=True)
class Shape:
    batch: int
    n: int
    k: int  # basis vectors of a step; the restart of a cycle or solve

    def __str__(self) -> str:
        return f"B={self.batch} n={self.n} k={self.k}"


CPU_STEPS = [Shape(64, 3072, k) for k in (20, 40, 60, 100)] + [
    Shape(1, 784, 20), Shape(8, 784, 20), Shape(16, 784, 20), Shape(128, 784, 60), Shape(1, 3072, 20),
    Shape(128, 3072, 60), Shape(4, 150528, 20), Shape(4, 150528, 60), Shape(16, 150528, 20), Shape(1, 150528, 60),
]  # fmt: skip
CPU_QUICK = [Shape(64, 3072, 20), Shape(64, 3072, 60), Shape(16, 784, 20), Shape(1, 150528, 20)]
GPU_STEPS = [Shape(b, n, k) for n in (784, 3072) for b in (1, 16, 128, 1024) for k in (5, 20, 100)] + [
    Shape(264, 3072, 20),
    *(Shape(b, 150528, k) for b in (1, 4, 8, 16) for k in (20, 100)),
]
GPU_QUICK = [Shape(128, 784, 20), Shape(128, 3072, 20), Shape(1024, 3072, 20), Shape(4, 150528, 20)]
GPU_HALF = [Shape(b, 3072, k) for b in (128, 1024) for k in (20, 100)]  # with a float16 basis too
BASES = [Shape(64, 3072, 20), Shape(64, 3072, 60)]
SOLVES = [Shape(16, 784, 20), Shape(64, 3072, 20), Shape(1, 3072, 20)]


def problem(
    shape: Shape, device: torch.device, *, seed: int, orthogonalization: str = "mgs", dtype: torch.dtype = torch.float32
) -> tuple[Problem, Tensor]:
    """A diagonal operator per system, condition 100, whose cost is small beside the solver's; and its diagonal."""
    generator = torch.Generator().manual_seed(seed)
    b = torch.randn(shape.batch, shape.n, generator=generator).to(device, dtype)
    diagonal = (10.0 ** (2 * torch.rand(shape.batch, shape.n, generator=generator) - 2)).to(device, dtype)
    made = Problem(
        b=b, x0=None, A=lambda v: v * diagonal, M=None, rtol=0.0, atol=0.0, restart=min(shape.k, shape.n),
        max_iters=2**31 - 1, flexible=False, orthogonalization=orthogonalization, history=False, callback=None,
        compact=False, workspace=Workspace(),
    )  # fmt: skip
    return made, diagonal


# --- one step ---------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def orthonormal_rows(shape: Shape, device: torch.device, dtype: torch.dtype, seed: int) -> Tensor:
    """(B, k, n). Random rows are so well conditioned that Cholesky's factor of their Gram matrix makes them
    orthonormal; a QR factorisation of many systems takes a GPU minutes."""
    generator = torch.Generator(device).manual_seed(1000 + seed)
    random = torch.randn(shape.batch, shape.k, shape.n, device=device, dtype=torch.float64, generator=generator)
    factor = torch.linalg.cholesky(random @ random.mT)
    return torch.linalg.solve_triangular(factor, random, upper=False).to(dtype)


class StepSet:
    """An orthonormal basis of k vectors and a vector w to orthogonalise against it, for every implementation."""

    def __init__(
        self,
        shape: Shape,
        device: torch.device,
        seed: int,
        storage: torch.dtype | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        backend: str | None = None,
    ) -> None:
        made, diagonal = problem(Shape(shape.batch, shape.n, shape.k + 1), device, seed=seed, dtype=dtype)
        made = dataclasses.replace(made, basis_dtype=storage)
        self.j = shape.k - 1
        self.engine = _native.NativeEngine(made, backend or device.type)
        self.engine.begin(None)
        generator = torch.Generator(device).manual_seed(seed)
        rows = orthonormal_rows(shape, device, dtype, seed)
        arrays = self.engine.arrays
        self.basis = arrays["basis"]
        self.basis[:, : shape.k].zero_()
        self.exponent = made.basis_exponent
        self.basis[:, : shape.k, : shape.n] = rows * 2.0**self.exponent
        # As if steps 0..k-2 had been taken: identity rotations, a condition estimate of 1.
        for name in ("r", "inverse", "rotations"):
            arrays[name].zero_()
        arrays["rotations"][:, :, 0] = 1.0
        arrays["g"].fill_(1.0)
        noise = torch.randn(made.b.shape, device=device, dtype=dtype, generator=generator) / shape.n**0.5
        self.w = diagonal * rows[:, -1] + 0.1 * noise
        self.engine.tolerance.fill_(-1.0)  # no estimate meets it, so the same step can be taken again and again
        arrays["systems"][:, _native.extension.SYSTEM["beta"]] = 0.0  # nor falls below what the storage can vouch for
        # All forms work on the same memory: where an allocation lands decides much of its bandwidth.
        self.rows = self.basis[:, : shape.k + 1, : shape.n]
        self.read = self.basis.flatten(1)[:, : shape.k * self.basis.shape[2]]

    def fused(self) -> None:
        self.engine.launch.step(self.engine.solve, self.j, self.w.data_ptr(), self.engine.stream)

    def pytorch(self, orthogonalize: Callable[[Tensor, int, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        w, h = orthogonalize(self.rows, self.j, self.w)
        norm = torch.linalg.vector_norm(w, dim=1, keepdim=True)
        torch.div(w, norm, out=self.rows[:, self.j + 1])
        return h

    def reading(self) -> Tensor:
        """The basis read once, by a sum over long rows that torch splits over its threads."""
        return self.read.sum(1)

    def agree(self, pytorch: StepSet) -> bool:
        """Whether the fused step here and PyTorch's forms there append the same vector, and the fused step is still
        taken at full cost."""
        self.fused()
        found = self.rows[:, self.j + 1].float() * 2.0**-self.exponent
        roundoff = 0.0 if self.basis.dtype == torch.float32 else torch.finfo(self.basis.dtype).eps
        typical = 1 / self.w.shape[1] ** 0.5
        for form in (reference.orthogonalize_mgs, reference.orthogonalize_cgs2):
            pytorch.pytorch(form)
            expected = pytorch.rows[:, self.j + 1]
            if not torch.allclose(found, expected, atol=(1e-4 + 8 * roundoff) * typical, rtol=1e-3 + roundoff):
                return False
        return bool((self.engine.outcome == 0).all())


def in_turns(functions: list[Callable[[], object]]) -> Callable[[], None]:
    def run() -> None:
        for function in functions:
            function()

    return run


def captured(function: Callable[[], object]) -> Callable[[], object]:
    """The same work as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def step_row(shape: Shape, device: torch.device, repeats: int, storage: torch.dtype | None = None) -> dict[str, Any]:
    """Ours, with its basis in `storage`, and PyTorch's forms in float32: on the same memory where the types agree."""
    sets = [StepSet(shape, device, seed, storage) for seed in range(SETS)]
    others = sets if storage is None else [StepSet(shape, device, seed) for seed in range(SETS)]
    agreements = [s.agree(other) for s, other in zip(sets, others, strict=True)]  # each set takes its first step here
    forms = {
        "fused": [s.fused for s in sets],
        "textbook": [functools.partial(s.pytorch, reference.orthogonalize_mgs) for s in others],
        "smart": [functools.partial(s.pytorch, reference.orthogonalize_cgs2) for s in others],
    }
    functions: dict[str, Callable[[], object]] = {name: in_turns(calls) for name, calls in forms.items()}
    cuda = device.type == "cuda"
    if cuda:
        for s in sets:  # the launches must go to the capturing stream
            s.engine.stream = _CurrentStream()
        functions |= {f"{name} graph": captured(function) for name, function in list(functions.items())}
    times = measure.interleaved(
        {**functions, "read": in_turns([s.reading for s in sets])}, cuda=cuda, repeats=repeats, least_seconds=0.02
    )
    read_times = times.pop("read")
    per_step = {name: [t / SETS for t in values] for name, values in times.items()}
    row = summarise("step", shape, per_step, all(agreements))
    # V and w read once, the new vector written twice: as a row and as what the operator receives
    least_bytes = shape.batch * shape.n * ((shape.k + 1) * sets[0].basis.itemsize + 2 * 4)
    read_bytes = SETS * sets[0].read.nbytes
    share = [
        (least_bytes / ours) / (read_bytes / read) for ours, read in zip(per_step[row["ours"]], read_times, strict=True)
    ]
    row["bytes"] = least_bytes
    if read_bytes > BEYOND_CACHE:
        row["fraction_of_bandwidth"] = measure.spread(share)
    if storage is not None:
        row["basis_dtype"] = str(storage).removeprefix("torch.")
    row["cache"] = f"cold: {SETS} bases in turns"
    row["still_active"] = all(bool((s.engine.outcome == 0).all()) for s in sets)
    return row


def basis_row(shape: Shape, device: torch.device, repeats: int) -> dict[str, Any]:
    """The fused step with its basis in 16 bits beside that in 32."""
    storages = {"float32": None, "fused float16": torch.float16, "fused bfloat16": torch.bfloat16}
    sets = {name: [StepSet(shape, device, seed, t) for seed in range(SETS)] for name, t in storages.items()}
    times = measure.interleaved(
        {name: in_turns([s.fused for s in steps]) for name, steps in sets.items()},
        cuda=device.type == "cuda", repeats=repeats, least_seconds=0.02,
    )  # fmt: skip
    active = all(bool((s.engine.outcome == 0).all()) for steps in sets.values() for s in steps)
    per_step = {name: [t / SETS for t in values] for name, values in times.items()}
    return summarise("basis", shape, per_step, active) | {"still_active": active}


class _CurrentStream:
    """Evaluates to the current stream's handle whenever a launch converts it to an integer."""

    def __index__(self) -> int:
        return torch.cuda.current_stream().cuda_stream


# --- a whole solve ----------------------------------------------------------------------------------------------------


def solve_row(shape: Shape, device: torch.device, repeats: int) -> dict[str, Any]:
    """m iterations in one cycle with everything that a caller pays for, a workspace reused."""
    made, diagonal = problem(shape, device, seed=1)
    workspaces = {name: Workspace() for name in ("fused", "textbook", "smart")}
    choices = {"fused": (device.type, "mgs"), "textbook": ("reference", "mgs"), "smart": ("reference", "cgs2")}

    def solve(name: str) -> Any:
        backend, orthogonalization = choices[name]
        return gmres(
            made.A, made.b, rtol=0.0, restart=shape.k, max_iters=shape.k, backend=backend,
            orthogonalization=orthogonalization, workspace=workspaces[name],
        )  # fmt: skip

    residuals = {}
    for name in choices:
        x = solve(name).x.double()
        residuals[name] = float((made.b.double() - diagonal.double() * x).norm(dim=1).max())
    comparable = max(residuals.values()) <= 2 * min(residuals.values())
    times = measure.interleaved(
        {name: functools.partial(solve, name) for name in choices},
        cuda=device.type == "cuda", repeats=repeats, least_seconds=0.02,
    )  # fmt: skip
    return summarise("solve", shape, times, comparable) | {"true_residual": residuals}


# --- reporting --------------------------------------------------------------------------------------------------------


def summarise(level: str, shape: Shape, times: dict[str, list[float]], comparable: bool) -> dict[str, Any]:
    median = {name: statistics.median(values) for name, values in times.items()}
    ours = min((name for name in times if name.startswith("fused")), key=median.__getitem__)
    best = min((name for name in times if not name.startswith("fused")), key=median.__getitem__)
    return {
        "level": level, "B": shape.batch, "n": shape.n, "k": shape.k, "dtype": "float32",
        "us": {name: {q: 1e6 * v for q, v in measure.spread(values).items()} for name, values in times.items()},
        "ours": ours, "baseline": best, "comparable": comparable, "ratio": measure.ratio(times[best], times[ours]),
    }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    ratio = row["ratio"]
    fraction = row.get("fraction_of_bandwidth")
    share = "" if fraction is None else f"{fraction['median']:5.0%} ({fraction['p10']:.0%}–{fraction['p90']:.0%})"
    return (
        f"{row['level']:5} {row['B']:5} {row['n']:7} {row['k']:4}  {row['us'][row['ours']]['median']:10.1f}  "
        f"{row['us'][row['baseline']]['median']:10.1f}  {row['baseline']:14} {ratio['median']:6.2f}x "
        f"({ratio['p10']:.2f}–{ratio['p90']:.2f})  {share}"
        f"{'' if row['comparable'] else '  not comparable'}"
    )


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = [f"{r['level']} B={r['B']} n={r['n']} k={r['k']}" for r in rows]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 0.42 * len(rows) + 1.6), sharey=True)
    positions = range(len(rows))
    medians = [r["ratio"]["median"] for r in rows]
    errors = [
        [r["ratio"]["median"] - r["ratio"]["p10"] for r in rows],
        [r["ratio"]["p90"] - r["ratio"]["median"] for r in rows],
    ]
    left.barh(positions, medians, xerr=errors, color="#3b6ea5", ecolor="#222222", height=0.65)
    left.axvline(1, color="#999999", linewidth=1)
    left.set_yticks(positions, labels)
    left.invert_yaxis()
    left.set_xlabel("times faster than the best pure-PyTorch form (median, 10–90 %)")
    right.barh(
        positions,
        [100 * r["fraction_of_bandwidth"]["median"] if "fraction_of_bandwidth" in r else 0 for r in rows],
        color="#7a9e3b",
        height=0.65,
    )
    right.set_xlabel("% of the measured read bandwidth (one read of V)")
    right.set_xlim(left=0)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def run(
    device: torch.device, steps: list[Shape], halves: list[Shape], solves: list[Shape], repeats: int
) -> tuple[dict[str, float], list[Any]]:
    ceilings = measure.bandwidth(device)
    if device.type == "cuda":
        ceilings |= measure.launch_costs()
    print(f"\n{device.type}: " + ", ".join(f"{k} {v:.1f}" for k, v in ceilings.items()))
    print("level     B       n    k   fused (us)  PyTorch (us) best form        ratio (10-90 %)   bandwidth")
    rows = []
    for shape in steps:
        rows.append(step_row(shape, device, repeats))
        print(line(rows[-1]), flush=True)
    for shape in halves:
        rows.append(step_row(shape, device, repeats, torch.float16))
        print(line(rows[-1]), flush=True)
    for shape in BASES:
        rows.append(basis_row(shape, device, repeats))
        print(line(rows[-1]), flush=True)
    for shape in solves:
        rows.append(solve_row(shape, device, repeats))
        print(line(rows[-1]), flush=True)
    return ceilings, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer shapes and repeats")
    parser.add_argument("--gpu-only", action="store_true", help="leave out the CPU rows")
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    parser.add_argument("--figure", type=Path, help="draw ratios and bandwidth fractions as PNG")
    options = parser.parse_args()
    if _native.extension is None:
        parser.error(f"the compiled extension is missing ({_native.missing}): run pip install . first")

    repeats = 7 if options.quick else 15
    cuda = torch.cuda.is_available() and hasattr(_native.extension, "cuda")
    record = measure.machine() | {"command": measure.command("bench/bench_gmres.py")}
    record["gpu"], record["rows"] = "measured" if cuda else "skipped: no CUDA", []
    print(f"{record['cpu']}, {record['threads']} threads, torch {record['torch']}, commit {record['git'][:10]}")
    plans: list[tuple[str, list[Shape], list[Shape], list[Shape]]] = []
    if not options.gpu_only:
        steps, solves = (CPU_QUICK, SOLVES[:1]) if options.quick else (CPU_STEPS, SOLVES)
        plans.append(("cpu", steps, [], solves))
    if cuda:
        steps, halves = (GPU_QUICK, GPU_HALF[:1]) if options.quick else (GPU_STEPS, GPU_HALF)
        plans.append(("cuda", steps, halves, SOLVES))
    for name, steps, halves, solves in plans:
        record[f"{name}_ceilings"], rows = run(torch.device(name), steps, halves, solves, repeats)
        record["rows"] += [row | {"device": name} for row in rows]
    if not cuda:
        print("\ncuda: skipped: no CUDA")
    if options.output:
        measure.write_json(options.output, record)
    if options.figure and record["rows"]:
        where = f"{record['cpu']}, {record['threads']} threads"
        if record["cuda"]:
            where += f"; {record['cuda']['name']}"
        draw(record["rows"], f"{where}, torch {record['torch']}, commit {record['git'][:10]}", options.figure)


if __name__ == "__main__":
    main()
