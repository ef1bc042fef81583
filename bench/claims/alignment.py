"""Claim: "gradient direction is well aligned with the direction of maximum curvature" (section III-C).

    python bench/claims/alignment.py

In float64: |cos(g, u_max)| for the eigenvector u_max of H's largest eigenvalue, g'Hg / (|g|^2 lambda_max), the same for
a random direction, and the spectrum. ReLU networks: exact, from the singular values of a factor of H. Other networks:
Lanczos vectors of (H, g), reorthogonalised; checked against eigenvalues of the whole matrix on some images.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from common import (
    DIGITS,
    cifar,
    cosine,
    digits,
    gauss_newton_factor,
    in_batches,
    logits_of,
    loss_of,
    mean,
    network,
    parser,
    save,
    share,
    smooth,
    spread,
)
from torch import Tensor, nn

from soae_ext.data import ImageData
from soae_ext.hvp import hessian_operator
from soae_ext.krylov import arnoldi

Parts = dict[str, Tensor]


def exact(model: nn.Module, x: Tensor, y: Tensor) -> Parts:
    """Everything from H = F'F; only for piecewise linear networks."""
    F, D, p = gauss_newton_factor(model, x, y)
    g = (p[:, None] @ D)[:, 0]
    _, s, vt = torch.linalg.svd(F, full_matrices=False)
    values = s[:, :-1] ** 2
    return parts(g, vt[:, 0], values, values.sum(1), 1 - (vt[:, :-1] @ g[:, :, None]).square().sum((1, 2)) / square(g))


def krylov(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Parts:
    """Ritz pairs of (H, g). The trace is Hutchinson's estimate with 8 random signs."""
    H = hessian_operator(loss_of(model), x, y)
    space = arnoldi(H, H.gradient, steps=steps)
    if int(space.dims.min()) < steps:
        raise RuntimeError("a Krylov space ended early: take fewer steps")
    T = space.hessenberg[:, :-1]
    values, vectors = torch.linalg.eigh((T + T.mT) / 2)
    top = (vectors[:, None, :, -1] @ space.basis[:, :steps])[:, 0]
    signs = [torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(k)).to(x) * 2 - 1 for k in range(8)]
    trace = torch.stack([(H(v) * v).flatten(1).sum(1) for v in signs]).mean(0)
    found = parts(H.gradient.flatten(1), top, values.flip(1), trace, torch.zeros(len(x), dtype=x.dtype))
    residual = (H(top.view_as(x)).flatten(1) - values[:, -1:] * top).norm(dim=1)
    return found | {"ritz_residual": residual / values[:, -1]}


def dense(model: nn.Module, x: Tensor, y: Tensor) -> Parts:
    """Everything from the whole matrix, n products."""
    H = hessian_operator(loss_of(model), x, y)
    n = x[0].numel()
    unit = torch.zeros_like(x)
    columns = []
    for k in range(n):
        unit.flatten(1)[:, k] = 1
        columns.append(H(unit).flatten(1))
        unit.flatten(1)[:, k] = 0
    matrix = torch.stack(columns, 2)
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    zero = torch.zeros(len(x), dtype=x.dtype)
    return parts(H.gradient.flatten(1), vectors[:, :, -1], values.flip(1), values.sum(1), zero)


def square(g: Tensor) -> Tensor:
    return g.square().sum(1)


def parts(g: Tensor, top: Tensor, values: Tensor, trace: Tensor, outside: Tensor) -> Parts:
    """g (B, n), u_max (B, n), eigenvalues in falling order (B, k)."""
    return {"g": g, "top": top, "values": values, "trace": trace, "outside": outside}


def join(pieces: list[Parts]) -> Parts:
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def curvature_along_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    H = hessian_operator(loss_of(model), x, y)
    return (H(H.gradient) * H.gradient).flatten(1).sum(1) / square(H.gradient.flatten(1))


def describe(found: Parts, along: Tensor, n: int) -> dict[str, Any]:
    aligned = cosine(found["g"], found["top"]).abs()
    largest = found["values"][:, 0]
    result = {
        "pixels": n,
        "abs_cosine_g_top": mean(aligned) | {"quantiles": spread(aligned)},
        "abs_cosine_of_random_direction": math.sqrt(2 / (math.pi * n)),
        "share_with_cosine_above_0.9": share(aligned > 0.9),
        "share_with_cosine_below_0.5": share(aligned < 0.5),
        "curvature_along_g_of_lambda_max": mean(along / largest) | {"quantiles": spread(along / largest)},
        "curvature_along_random_of_lambda_max": spread(found["trace"] / n / largest),
        "lambda_max": spread(largest),
        "lambda_k_of_lambda_max": {
            str(k + 1): spread(found["values"][:, k] / largest) for k in range(1, min(9, found["values"].shape[1]))
        },
        "lambda_min_of_lambda_max": spread(found["values"][:, -1] / largest),
    }
    if "ritz_residual" in found:
        result["ritz_residual_of_lambda_max"] = spread(found["ritz_residual"])
    return result


def measure(name: str, model: nn.Module, data: ImageData, steps: int, checked: int) -> dict[str, Any]:
    model = model.double()
    x, y = data.images.double(), data.labels
    n, size = x[0].numel(), 125 if x[0].numel() < 1000 else 10
    along = torch.cat(in_batches(lambda a, b: curvature_along_gradient(model, a, b), x, y, size=size))
    right = logits_of(model, x).argmax(1) == y
    result: dict[str, Any] = {"network": name, "data": data.name, "correctly_classified": share(right)}
    if not smooth(model):
        found = join(in_batches(lambda a, b: exact(model, a, b), x, y, size=size))
        result |= {"method": "exact, all eigenpairs"} | describe(found, along, n)
        result["rank_at_1e-14_of_lambda_max"] = counts(found["values"], 1e-14)
        result["gradient_outside_range_of_H"] = spread(found["outside"].abs())
        return result
    found = join(in_batches(lambda a, b: krylov(model, a, b, steps), x, y, size=size))
    result |= {"method": f"Lanczos, {steps} steps from g"} | describe(found, along, n)
    if checked:
        whole = join(in_batches(lambda a, b: dense(model, a, b), x[:checked], y[:checked], size=25))
        result["dense"] = describe(whole, along[:checked], n)
        gap = cosine(whole["g"], whole["top"]).abs() - cosine(found["g"], found["top"])[:checked].abs()
        result["dense"]["largest_difference_of_abs_cosine"] = float(gap.abs().max())
        result["dense"]["rank_at_1e-6_of_lambda_max"] = spread(
            (whole["values"].abs() > 1e-6 * whole["values"][:, :1]).sum(1)
        )
        result["dense"]["negative_eigenvalues"] = spread((whole["values"] < -1e-6 * whole["values"][:, :1]).sum(1))
        result["dense"]["sum_of_negative_of_sum_of_positive"] = spread(
            -whole["values"].clamp_max(0).sum(1) / whole["values"].clamp_min(0).sum(1)
        )
    return result


def counts(values: Tensor, level: float) -> dict[str, int]:
    ranks = (values > level * values[:, :1]).sum(1)
    return {str(rank): int((ranks == rank).sum()) for rank in ranks.unique().tolist()}


def main() -> None:
    options = parser(__doc__, "alignment")
    options.add_argument("--networks", choices=("digits", "cifar"), default="digits")
    options.add_argument("--images", type=int, default=1000)
    options.add_argument("--cifar-images", type=int, default=100)
    options.add_argument("--steps", type=int, default=40, help="Lanczos steps where H has no factor")
    options.add_argument("--dense", type=int, default=100, help="images whose whole matrix is built")
    arguments: argparse.Namespace = options.parse_args()
    torch.set_num_threads(arguments.threads)
    results = {}
    missing = "see --networks cifar"
    if arguments.networks == "digits":
        jobs = [(key, DIGITS[key], network(key), digits(arguments.images), arguments.dense) for key in DIGITS]
    else:
        networks, images, missing = cifar(arguments.data, arguments.cifar_images)
        if images is None:
            raise SystemExit(missing)
        jobs = [(key, f"CIFAR-10 ResNet-18, {key.split('-')[1]}", model, images, 0) for key, model in networks.items()]
    for key, name, model, data, checked in jobs:
        results[key] = measure(name, model, data, arguments.steps, checked)
        shown = results[key]["abs_cosine_g_top"]
        print(f"{key}: |cos| {shown['mean']:.3f} {shown['interval_95']}", shown["quantiles"], flush=True)
    save(
        arguments,
        "the gradient is well aligned with the direction of maximum curvature (III-C)",
        {"networks": results, "cifar10": missing or "measured"},
    )


if __name__ == "__main__":
    main()
