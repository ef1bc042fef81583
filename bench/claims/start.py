"""Claim: the solve starts from a "randomly initialized perturbation" delta_0 (section III-B).

    python bench/claims/start.py

1. What a random start leaves in the solution: GMRES changes delta_0 only inside the Krylov space, so on a ReLU network
   the part of delta_0 that H maps to zero stays. Its share of |delta|^2, in float64, for solves of m dimensions, and
   the cosine of the solution with the gradient.
2. What that does to the attack, at equal gradients: SOAE from zero and from random starts (one product more for each
   solve), m = 2 and no early stopping, so that each spends 63 gradients on every image: 9 steps of 7 or 7 steps of 9.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from common import (
    DIGITS,
    cosine,
    digits,
    gauss_newton_factor,
    in_batches,
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

from soae_ext.attacks import PGD, SOAE, Attack
from soae_ext.data import ImageData
from soae_ext.gmres import gmres
from soae_ext.hvp import hessian_operator

RADIUS = {"relu-pgd": 0.3, "relu-standard": 0.1, "relu-soat": 0.3, "silu-pgd": 0.3}
STARTS = (0.001, 0.01, 0.1, 0.3)
DIMENSIONS = (2, 5, 9)


def noise(model: nn.Module, data: ImageData) -> list[dict[str, Any]]:
    """For every radius of delta_0, uniform in the Linf ball, and every m."""
    model = model.double()
    relu = not smooth(model)

    def piece(x: Tensor, y: Tensor, start: Tensor, m: int) -> tuple[Tensor, Tensor]:
        H = hessian_operator(loss_of(model), x, y)
        solution = gmres(H, H.gradient, start, rtol=0.0, restart=m, max_iters=m).x.flatten(1)
        along = cosine(solution, H.gradient)
        if not relu:
            return torch.full_like(along, torch.nan), along
        F, _, _ = gauss_newton_factor(model, x, y)
        rows = torch.linalg.svd(F, full_matrices=False).Vh[:, :-1]
        inside = (rows @ solution[:, :, None]).square().sum((1, 2))
        return 1 - inside / solution.square().sum(1), along

    x, y = data.images.double(), data.labels
    result = []
    for radius in (0.0, *STARTS):
        generator = torch.Generator().manual_seed(0)
        start = radius * (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1)
        for m in DIMENSIONS:
            pieces = in_batches(lambda a, b, s, m=m: piece(a, b, s, m), x, y, start)
            null, along = (torch.cat(parts) for parts in zip(*pieces, strict=True))
            row: dict[str, Any] = {"radius_of_delta_0": radius, "m": m, "cosine_with_gradient": spread(along)}
            row["ascends"] = share(along > 0)
            if relu:
                row["null_space_share"] = mean(null) | {"quantiles": spread(null)}
            result.append(row)
    return result


def strength(model: nn.Module, data: ImageData, eps: float) -> dict[str, Any]:
    model = model.float()
    common: dict[str, Any] = {"early_stop": False, "batch_size": 250}
    second: dict[str, Any] = common | {"max_dim": 2, "threshold": 0.0}
    attacks: dict[str, Attack] = {
        "PGD": PGD(eps, steps=63, **common),
        "zero": SOAE(eps, steps=9, **second),
        "random": SOAE(eps, steps=7, delta0="random", **second),
        "zero, paper's sign": SOAE(eps, steps=9, direction="paper", **second),
        "random, paper's sign": SOAE(eps, steps=7, direction="paper", delta0="random", **second),
    }
    found = {name: attack(model, data.images, data.labels) for name, attack in attacks.items()}
    result: dict[str, Any] = {"eps": eps, "images": len(data)}
    for name, r in found.items():
        gradients = sorted(set(r.gradient_calls.tolist()))
        result[name] = {"fooled": share(r.success), "loss": mean(r.loss), "gradients": gradients}
    for sign in ("", ", paper's sign"):
        zero, random = found[f"zero{sign}"], found[f"random{sign}"]
        result[f"random minus zero{sign}"] = {
            "fooled": mean(random.success.double() - zero.success.double()),
            "loss": mean(random.loss - zero.loss),
        }
    return result


def main() -> None:
    options = parser(__doc__, "start")
    options.add_argument("--images", type=int, default=500, help="attacked")
    options.add_argument("--solves", type=int, default=250, help="images whose solutions are looked into")
    arguments: argparse.Namespace = options.parse_args()
    torch.set_num_threads(arguments.threads)
    results = {}
    for key in DIGITS:
        model = network(key)
        found = strength(model, digits(arguments.images), RADIUS[key])
        results[key] = {"attack": found, "solution": noise(model, digits(arguments.solves))}
        for name, row in found.items():
            if isinstance(row, dict):
                print(key, name, row["fooled"], row["loss"]["mean"], row.get("gradients"))
        for row in results[key]["solution"]:
            null = row.get("null_space_share", {}).get("quantiles", {}).get("median")
            print(
                key,
                row["radius_of_delta_0"],
                row["m"],
                null,
                row["cosine_with_gradient"]["median"],
                row["ascends"]["share"],
                flush=True,
            )
    save(arguments, "a random start of the solve (III-B)", {"networks": results})


if __name__ == "__main__":
    main()
