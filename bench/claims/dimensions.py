"""Claim: Table IV, the Krylov dimension m for each threshold (17 to 152 on MNIST, 22 to 243 on CIFAR-10).

    python bench/claims/dimensions.py

H d = g by unrestarted GMRES from zero; m is the first dimension whose residual estimate is at most threshold * |g|, as
an algorithm without a check of the true residual would stop. Two readings of "the system": one per sample, and one for
a whole batch, its block-diagonal Hessian taken for a single matrix of order B n. Products are exact or one-sided
differences of float32 gradients. The reading that stops at h_{j+1,j} < threshold is measured too, per sample.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from common import (
    DIGITS,
    Loss,
    cifar,
    digits,
    logits_of,
    loss_of,
    mean,
    network,
    parser,
    save,
    share,
    smooth,
    stable_loss_of,
)
from torch import Tensor, nn

from soae_ext.data import ImageData
from soae_ext.gmres import GMRESResult, Status, gmres
from soae_ext.hvp import hessian_operator
from soae_ext.krylov import arnoldi

THRESHOLDS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
TABLE_IV = {
    "columns": "thresholds lost in the text, falling m",
    "MNIST": [152, 71, 43, 26, 17],
    "CIFAR-10": [243, 117, 65, 38, 22],
    "ImageNet": [2196, 1324, 746, 327, 221],
}
# Name -> (dtype, the loss of a model, how products are made).
Products = tuple[torch.dtype, Callable[[nn.Module], Loss], str]
PRODUCTS: dict[str, Products] = {
    "exact, float64": (torch.float64, loss_of, "traced"),
    "exact, float32": (torch.float32, loss_of, "traced"),
    "exact, float32, stable loss": (torch.float32, stable_loss_of, "traced"),
    "difference, float32": (torch.float32, loss_of, "finite-difference"),
    "difference, float32, stable loss": (torch.float32, stable_loss_of, "finite-difference"),
}
JOINED = ("exact, float32, stable loss", "exact, float32", "difference, float32")


def statuses(result: GMRESResult) -> dict[str, int]:
    return {s.name: int((result.status == s).sum()) for s in Status if int((result.status == s).sum())}


def solve(model: nn.Module, x: Tensor, y: Tensor, products: Products, joined: bool, cap: int) -> GMRESResult:
    """All systems of the batch, or the batch as one system."""
    H = hessian_operator(products[1](model), x, y, method=products[2])
    A: Callable[[Tensor], Tensor] = H
    b = H.gradient
    if joined:
        A, b = (lambda v: H(v.view_as(x)).view(1, -1)), b.reshape(1, -1)
    return gmres(A, b, rtol=THRESHOLDS[-1], restart=cap, max_iters=cap, history=True)


def crossings(result: GMRESResult) -> Tensor:
    """(systems, thresholds): the first dimension at which the estimate meets each threshold; NaN if none does."""
    history = result.residual_history
    assert history is not None
    found = []
    for threshold in THRESHOLDS:
        met = history <= threshold * history[:, :1]
        found.append(torch.where(met.any(1), met.int().argmax(1).double(), torch.nan))
    return torch.stack(found, 1)


def summary(found: Tensor, cap: int) -> list[dict[str, Any]]:
    rows = []
    for threshold, column in zip(THRESHOLDS, found.unbind(1), strict=True):
        reached = column[~column.isnan()]
        row: dict[str, Any] = {"threshold": threshold, "reached": len(reached), "of": len(column), "cap": cap}
        if len(reached):
            row |= {"m": mean(reached), "median": float(reached.quantile(0.5)), "max": int(reached.max())}
        rows.append(row)
    return rows


def per_system(
    model: nn.Module, data: ImageData, products: Products, size: int, joined: bool, cap: int
) -> dict[str, Any]:
    dtype = products[0]
    model = model.to(dtype)
    whole = len(data) // size * size
    pieces = zip(data.images[:whole].to(dtype).split(size), data.labels[:whole].split(size), strict=True)
    results = [solve(model, x, y, products, joined, cap) for x, y in pieces]
    ends: dict[str, int] = {}
    for result in results:
        for name, count in statuses(result).items():
            ends[name] = ends.get(name, 0) + count
    return {"status_at_1e-5": ends, "thresholds": summary(torch.cat([crossings(r) for r in results]), cap)}


def by_subdiagonal(model: nn.Module, data: ImageData, products: Products, steps: int) -> dict[str, Any]:
    """m where h_{j+1,j} < threshold, in the units of H, float32."""
    H = hessian_operator(products[1](model.float()), data.images, data.labels, method=products[2])
    space = arnoldi(H, H.gradient, steps=steps)
    below = space.hessenberg.diagonal(-1, 1, 2)
    built = torch.arange(steps) < space.dims[:, None]
    found = []
    for threshold in THRESHOLDS:
        met = (below < threshold) & built
        found.append(torch.where(met.any(1), met.int().argmax(1).double() + 1, torch.nan))
    return {"thresholds": summary(torch.stack(found, 1), steps)}


def acceptance(n: int) -> dict[str, Any]:
    """Exact products on the PGD-trained ReLU network: at most C - 1 steps, at most C where the space is exhausted."""
    cases: dict[str, tuple[torch.dtype, Callable[[nn.Module], Loss], float]] = {
        "float64, rtol 1e-6": (torch.float64, loss_of, 1e-6),
        "float64, rtol 0": (torch.float64, loss_of, 0.0),
        "float32, rtol 1e-3": (torch.float32, loss_of, 1e-3),
        "float32, rtol 1e-3, stable loss": (torch.float32, stable_loss_of, 1e-3),
    }
    result: dict[str, Any] = {"network": DIGITS["relu-pgd"], "classes": 10}
    data = digits(n)
    z = logits_of(network("relu-pgd").double(), data.images.double())
    doubt = 1 - z.softmax(1).gather(1, data.labels[:, None])[:, 0]
    for name, (dtype, loss, rtol) in cases.items():
        model = network("relu-pgd").to(dtype)
        solved: list[GMRESResult] = []
        for x, y in zip(data.images.to(dtype).split(250), data.labels.split(250), strict=True):
            H = hessian_operator(loss(model), x, y)
            solved.append(gmres(H, H.gradient, rtol=rtol, restart=20, max_iters=20))
        status, used = torch.cat([r.status for r in solved]), torch.cat([r.iterations for r in solved])
        ends: dict[str, dict[str, int]] = {}
        for s in status.unique().tolist():
            of = used[status == s]
            ends[Status(s).name] = {str(k): int((of == k).sum()) for k in of.unique().tolist()}
        good = (status == Status.CONVERGED) & (used <= 9)
        sure = doubt < 1e-4
        result[name] = {
            "of": len(used),
            "max": int(used.max()),
            "mean": mean(used),
            "converged_within_9": share(good),
            "converged_within_9_where_1-p_y_below_1e-4": share(good[sure]),
            "converged_within_9_elsewhere": share(good[~sure]),
            "status_by_iterations": ends,
        }
    return result


def measure(model: nn.Module, data: ImageData, single: int, joined: dict[int, int], cap: int) -> dict[str, Any]:
    """`single` images one by one, and for each batch size so many images."""
    result: dict[str, Any] = {"data": data.name, "per sample": {}, "batch as one system": {}, "subdiagonal": {}}
    # More than a ReLU network's C - 1 is rounding or difference error: 40 steps show where the solve stalls.
    alone, few = (cap, max(1, single // 4)) if smooth(model) else (40, single)
    for name, products in PRODUCTS.items():
        found = per_system(model, data.first(few), products, min(few, 64), False, alone)
        result["per sample"][name] = found
        if name not in JOINED:
            continue
        slow = smooth(model) or products[2] == "finite-difference"
        whole = {}
        for size, images in joined.items():
            part = data.first(max(size, images // 2 // size * size) if slow else images)
            whole[str(size)] = per_system(model, part, products, size, True, cap)
        result["batch as one system"][name] = whole
        result["subdiagonal"][name] = by_subdiagonal(model, data.first(min(single, 64)), products, 100)
    model.float()
    return result


def shown(found: dict[str, Any]) -> str:
    return " ".join(
        f"{row['m']['mean']:.1f}" + ("" if row["reached"] == row["of"] else f"({row['reached']}/{row['of']})")
        if "m" in row else "-" for row in found["thresholds"]
    )  # fmt: skip


def main() -> None:
    options = parser(__doc__, "dimensions")
    options.add_argument("--networks", choices=("digits", "cifar"), default="digits")
    options.add_argument("--images", type=int, default=256, help="per-sample systems of each digit network")
    options.add_argument("--cifar-images", type=int, default=64, help="per-sample systems of each CIFAR-10 network")
    options.add_argument("--cap", type=int, default=200, help="largest dimension of a joined system")
    arguments: argparse.Namespace = options.parse_args()
    torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = {}
    n = arguments.images
    jobs: list[tuple[str, nn.Module, ImageData, int, dict[int, int]]] = []
    content: dict[str, Any] = {"networks": results, "table_iv": TABLE_IV}
    if arguments.networks == "digits":
        content["acceptance"] = line = acceptance(1000)
        for name, found in line.items():
            if isinstance(found, dict):
                print(name, found["max"], found["converged_within_9"], found["status_by_iterations"], flush=True)
        sizes = {16: min(n, 96), 64: min(n, 192), 128: min(n, 256)}
        jobs = [(key, network(key), digits(n), n, sizes) for key in DIGITS]
    else:
        n = arguments.cifar_images
        networks, images, content["missing"] = cifar(arguments.data, max(n, 128))
        if images is None:
            raise SystemExit(content["missing"])
        jobs = [(key, model, images, n, {16: 32, 64: 64, 128: 128}) for key, model in networks.items()]
    for key, model, data, single, joined in jobs:
        results[key] = measure(model, data, single, joined, arguments.cap)
        for name, found in results[key]["per sample"].items():
            print(f"{key}, per sample, {name}: {shown(found)} {found['status_at_1e-5']}")
        for name, by_size in results[key]["batch as one system"].items():
            for size, found in by_size.items():
                print(f"{key}, B={size}, {name}: {shown(found)} {found['status_at_1e-5']}")
        for name, found in results[key]["subdiagonal"].items():
            print(f"{key}, subdiagonal, {name}: {shown(found)}", flush=True)
    save(arguments, "Table IV: the Krylov dimension m for each threshold", content)


if __name__ == "__main__":
    main()
