"""Each decision that the CUDA part makes, as a measured pair: which kernels, graphs or launches, how large a batch.

    python bench/gpu_decisions.py --output decisions.json [--quick]
    python bench/choose_variants.py decisions.json          writes csrc/cuda/choices.h

Needs a GPU and a build with CUDA. Tests run the same code on the SIMT build, where times mean nothing.

* **step**: one Arnoldi step by every variant of the kernels that holds the vector (csrc/cuda/plan.h), and by clusters
  of every size: which of them are pairs is in bench/reporting/decisions.py. `bytes` is one read of the basis and of w
  and two writes of the result.
* **graph**: a whole solve, launched step by step and replayed from one captured step (`Workspace(graphs=True)`).
* **product**: a Hessian-vector product of a network by double backward, traced, and compiled by inductor; launched and
  replayed.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import measure
import torch
from bench_gmres import Shape, StepSet
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from soae_ext import _native
from soae_ext._solver.graphs import captured
from soae_ext._solver.workspace import Workspace
from soae_ext.gmres import gmres
from soae_ext.hvp import hessian_operator
from soae_ext.models import SmallCNN, resnet18


class Variant(NamedTuple):
    """What a row of csrc/cuda/plan.h says of a kernel."""

    threads: int
    chunks: int
    panel: int
    clusters: bool = False
    ring: bool = False


# By the ratio of the working number's size to the stored one's; split-n is past the end.
VARIANTS = {
    1: (
        Variant(64, 1, 4), Variant(128, 2, 4), Variant(256, 3, 4), Variant(512, 3, 4), Variant(512, 6, 2),
        Variant(256, 3, 4, clusters=True), Variant(512, 5, 2, clusters=True), Variant(256, 3, 4, ring=True),
        Variant(256, 3, 8, ring=True), Variant(512, 6, 2, ring=True), Variant(512, 5, 2, clusters=True, ring=True),
    ),
    2: (
        Variant(128, 1, 4), Variant(192, 2, 4), Variant(512, 3, 2), Variant(384, 4, 2, clusters=True),
        Variant(192, 2, 8, ring=True),
    ),
}  # fmt: skip
DTYPES = ((torch.float32, torch.float32), (torch.float32, torch.float16), (torch.float64, torch.float64))
Timed = Callable[[], object]


Dtypes = tuple[torch.dtype, torch.dtype]


def _launchers(backend: str) -> Any:
    module: Any = _native.host_modules.get(backend, _native.extension)
    return module.cuda


def clustered(dtypes: Dtypes) -> tuple[int, ...]:
    """The variants that are clusters."""
    table = VARIANTS[dtypes[0].itemsize // dtypes[1].itemsize]
    return tuple(index for index, variant in enumerate(table) if variant.clusters)


def variants_for(shape: tuple[int, int, int], dtypes: Dtypes, device: torch.device, backend: str) -> dict[str, StepSet]:
    """A step for every variant that can be used, by name; the variant is forced while its step is made and run."""
    launchers = _launchers(backend)
    made = {}
    for variant in itertools.count():
        for blocks in (2, 4, 8, 16) if variant in clustered(dtypes) else (0,):
            launchers.force_variant(variant, blocks)
            try:
                step = StepSet(Shape(*shape), device, 0, dtypes[1], dtype=dtypes[0], backend=backend)
                planned = launchers.plan(step.engine.solve)
                if variant in clustered(dtypes) and planned[1] != blocks:
                    continue  # needs more than these
                step.fused()
            except RuntimeError:  # does not hold the vector, or this GPU has no such clusters or too little for a ring
                continue
            if planned[0] != variant:  # past the end of the table
                launchers.force_variant(-1)
                return made
            made[f"{variant}x{blocks}"] = step
    raise AssertionError


def steps(shapes: list[tuple[int, int, int]], device: torch.device, backend: str, repeats: int) -> list[dict[str, Any]]:
    rows = []
    launchers = _launchers(backend)
    for dtypes, shape in itertools.product(DTYPES, shapes):
        found = variants_for(shape, dtypes, device, backend)

        def forced(name: str, found: dict[str, StepSet] = found) -> None:
            launchers.force_variant(*map(int, name.split("x")))
            found[name].fused()

        functions: dict[str, Timed] = {name: functools.partial(forced, name) for name in found}
        times = measure.interleaved(functions, cuda=device.type == "cuda", repeats=repeats, least_seconds=0.002)
        launchers.force_variant(-1)
        variant, blocks = launchers.plan(next(iter(found.values())).engine.solve)
        planned = f"{variant}x{blocks if variant in clustered(dtypes) else 0}"
        dtype, basis_dtype = (str(t).removeprefix("torch.") for t in dtypes)
        batch, n, k = shape
        moved = batch * n * (2 * dtypes[0].itemsize + (k + 1) * dtypes[1].itemsize)
        for name, values in times.items():
            variant, blocks = map(int, name.split("x"))
            rows.append({
                "decision": "step", "B": batch, "n": n, "k": k, "dtype": dtype, "basis_dtype": basis_dtype,
                "variant": variant, "blocks": blocks, "planned": name == planned, "bytes": moved,
                "us": {q: 1e6 * v for q, v in measure.spread(values).items()},
            })  # fmt: skip
        best = min(times, key=lambda name, times=times: measure.spread(times[name])["median"])
        print(f"step B={batch} n={n} k={k} {dtype}/{basis_dtype}: fastest {best}, planned {planned}", flush=True)
    return rows


def solves(device: torch.device, backend: str, repeats: int, quick: bool) -> list[dict[str, Any]]:
    rows = []
    for batch, n in [(1, 784), (16, 784)] if quick else [(1, 784), (16, 784), (128, 784), (128, 3072), (4, 150528)]:
        generator = torch.Generator().manual_seed(1)
        b = torch.randn(batch, n, generator=generator).to(device)
        diagonal = (10.0 ** (2 * torch.rand(batch, n, generator=generator) - 2)).to(device)

        def solve(space: Workspace, b: Tensor = b, diagonal: Tensor = diagonal) -> Tensor:
            options: dict[str, Any] = {"rtol": 0.0, "restart": 20, "max_iters": 60, "backend": backend}
            return gmres(lambda v: v * diagonal, b, workspace=space, **options).x

        spaces = {"launches": Workspace(), "replays": Workspace(graphs=True)}
        rows.append(pair("graph", {"B": batch, "n": n}, {k: functools.partial(solve, s) for k, s in spaces.items()},
                         device, repeats))  # fmt: skip
    return rows


def products(device: torch.device, repeats: int, quick: bool) -> list[dict[str, Any]]:
    networks: list[tuple[str, nn.Module, tuple[int, ...]]] = [("small CNN", SmallCNN(), (128, 1, 28, 28))]
    if not quick:
        networks += [("ResNet-18", resnet18(), (b, 3, 32, 32)) for b in (1, 16, 128)]
    rows = []
    for name, model, shape in networks:
        model = model.eval().requires_grad_(False).to(device)
        x, y = torch.rand(shape, device=device), torch.arange(shape[0], device=device) % 10
        loss = lambda x, y, model=model: cross_entropy(model(x), y, reduction="none")  # noqa: E731
        v = torch.randn_like(x)
        traced = hessian_operator(loss, x, y)
        eager = hessian_operator(loss, x, y, method="double-backward")
        fused = hessian_operator(loss, x, y, method="inductor")
        fused(v)  # compiles
        functions: dict[str, Timed] = {
            "double backward": functools.partial(eager, v),
            "traced": functools.partial(traced, v),
            "traced, replayed": captured(functools.partial(traced, v)),
            "inductor": functools.partial(fused, v),
            "inductor, replayed": captured(functools.partial(fused, v)),
        }
        rows.append(pair("product", {"network": name, "B": shape[0]}, functions, device, repeats))
    return rows


def pair(
    decision: str, what: dict[str, Any], functions: dict[str, Timed], device: torch.device, repeats: int
) -> dict[str, Any]:
    times = measure.interleaved(functions, cuda=device.type == "cuda", repeats=repeats, least_seconds=0.01)
    row = {"decision": decision, **what, "us": {
        name: {q: 1e6 * v for q, v in measure.spread(values).items()} for name, values in times.items()
    }}  # fmt: skip
    print(decision, what, {name: round(row["us"][name]["median"], 1) for name in times}, flush=True)
    return row


def measure_all(device: torch.device, backend: str, quick: bool) -> list[dict[str, Any]]:
    repeats = 5 if quick else 9
    shapes = [(b, n, 20) for n in (784, 3072) for b in (1, 16, 128, 264)]
    if not quick:
        shapes += [(b, n, k) for n in (784, 3072) for b in (1, 128, 1024) for k in (5, 100)]
        shapes += [(b, 150528, k) for b in (1, 4, 8, 16) for k in (20, 100)] + [(b, 12288, 20) for b in (1, 16, 128)]
    rows = steps(shapes, device, backend, repeats)
    rows += solves(device, backend, repeats, quick)
    return rows + products(device, repeats, quick)


def main() -> None:
    parser = measure.parser(__doc__)
    options = parser.parse_args()
    if not (torch.cuda.is_available() and hasattr(_native.extension, "cuda")):
        parser.error("needs a CUDA GPU and a build with CUDA: SOAE_CUDA=on pip install .")
    machine = measure.start(options)
    rows = measure_all(torch.device("cuda"), "cuda", options.quick)
    if options.output is not None:
        command = measure.command("bench/gpu_decisions.py")
        measure.write_json(options.output, {"command": command, "machine": machine, "rows": rows})


if __name__ == "__main__":
    main()
