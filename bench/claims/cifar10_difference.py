"""Claim: a difference step h "no more than" about 1e-3 is proper (Fig. 1), and differences replace products (Table IV).

    python bench/claims/cifar10_difference.py --data DIR

One-sided differences (g(x + h u) - g(x)) / h along unit vectors u, for steps h in 2-norm and pixel units, against exact
products: the relative error along the gradient and along random directions, and the Krylov dimensions of H d = g that
differences lead to, one system per image. On the CIFAR-10 networks and, for a few images, on EfficientNet-Lite0.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from common import cifar, parser, save, spread, stable_loss_of
from dimensions import crossings, statuses, summary
from torch import Tensor, nn

from soae_ext.data import ImageData, load_data
from soae_ext.gmres import gmres
from soae_ext.hvp import hessian_operator

STEPS = (1e-1, 1e-2, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 1e-6)


def relative_error(found: Tensor, exact: Tensor) -> Tensor:
    return ((found - exact).flatten(1).double().norm(dim=1)) / exact.flatten(1).double().norm(dim=1)


def study(model: nn.Module, data: ImageData, size: int, cap: int) -> dict[str, Any]:
    """Every step, by name of the step; `default` is that of `hessian_operator`."""
    n = data.images[0].numel()
    default = 1e-3 * math.sqrt(n / 784)
    rows: list[dict[str, Any]] = []
    exact = []
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(data.images.shape, generator=generator)
    for x, y, random in zip(data.images.split(size), data.labels.split(size), noise.split(size), strict=True):
        H = hessian_operator(stable_loss_of(model), x, y)
        exact.append((H.gradient, H(H.gradient), H(random)))
    for h in sorted((*STEPS, default), reverse=True):
        along, across, found, ends = [], [], [], {}
        for k, (x, y, random) in enumerate(
            zip(data.images.split(size), data.labels.split(size), noise.split(size), strict=True)
        ):
            H = hessian_operator(stable_loss_of(model), x, y, method="finite-difference", step=h)
            g, Hg, Hr = exact[k]
            along.append(relative_error(H(g), Hg))
            across.append(relative_error(H(random), Hr))
            result = gmres(H, g, rtol=1e-5, restart=cap, max_iters=cap, history=True)
            found.append(crossings(result))
            for name, count in statuses(result).items():
                ends[name] = ends.get(name, 0) + count
        rows.append(
            {
                "step": h, "default": h == default, "error_along_gradient": spread(torch.cat(along)),
                "error_along_noise": spread(torch.cat(across)), "thresholds": summary(torch.cat(found), cap),
                "status_at_1e-5": ends,
            }
        )  # fmt: skip
        reached = [f"{t.get('median', '-')}({t['reached']})" for t in rows[-1]["thresholds"]]
        print(f"{h:.2g}", rows[-1]["error_along_gradient"]["median"], *reached, flush=True)
    return {"data": data.name, "images": len(data), "n": n, "cap": cap, "steps": rows}


def main() -> None:
    options = parser(__doc__, "difference")
    options.set_defaults(output=Path(__file__).parents[2] / "docs" / "results" / "cifar10_difference.json")
    options.add_argument("--images", type=int, default=32)
    options.add_argument("--imagenet", type=int, default=2, help="images for EfficientNet-Lite0; 0 leaves it out")
    options.add_argument("--cap", type=int, default=40, help="largest Krylov dimension")
    arguments: argparse.Namespace = options.parse_args()
    torch.set_num_threads(arguments.threads)
    networks, data, missing = cifar(arguments.data, arguments.images)
    if data is None:
        raise SystemExit(missing)
    found = {}
    for key, model in networks.items():
        print(key)
        found[key] = study(model, data, 32, arguments.cap)
    if arguments.imagenet:
        from soae_ext.models import load_model

        model = load_model("efficientnet-lite0").requires_grad_(False)
        few = load_data(f"imagenet-sample:{Path(arguments.data) / 'imagenet-sample'}", n=arguments.imagenet)
        found["efficientnet-lite0"] = study(model, few, arguments.imagenet, arguments.cap)
    save(arguments, "The difference step on convolutional networks", {"networks": found})


if __name__ == "__main__":
    main()
