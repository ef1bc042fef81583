"""Claim: Table IV on ImageNet, the Krylov dimension m for each threshold (221 to 2196 at 224 x 224 pixels).

    python bench/claims/imagenet_dimensions.py --data DIR

EfficientNet-Lite0 with ImageNet weights, n = 150,528. H d = g by unrestarted GMRES from zero, one system per image; m
is the first dimension whose residual estimate is at most threshold * |g|. Products are exact or one-sided differences
of float32 gradients, of the loss written without cancellation. Peak memory is that of the process.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import torch
from common import parser, save
from dimensions import PRODUCTS, TABLE_IV, crossings, shown, solve, statuses, summary

from soae_ext.data import load_data
from soae_ext.models import load_model


def main() -> None:
    options = parser(__doc__, "imagenet")
    options.set_defaults(output=Path(__file__).parents[2] / "docs" / "results" / "imagenet" / "dimensions.json")
    options.add_argument("--images", type=int, default=16)
    options.add_argument("--at-once", type=int, default=4)
    options.add_argument("--cap", type=int, default=60, help="largest dimension")
    arguments: argparse.Namespace = options.parse_args()
    torch.set_num_threads(arguments.threads)
    data = load_data(f"imagenet-sample:{Path(arguments.data) / 'imagenet-sample'}", n=arguments.images)
    model, cap = load_model("efficientnet-lite0").requires_grad_(False), arguments.cap
    with torch.no_grad():
        logits = torch.cat([model(x) for x in data.images.split(4)])
    found: dict[str, Any] = {}
    for name in ("difference, float32, stable loss", "exact, float32, stable loss"):
        start, parts, ends, residuals = time.process_time(), [], {}, []
        pieces = zip(data.images.split(arguments.at_once), data.labels.split(arguments.at_once), strict=True)
        for x, y in pieces:
            result = solve(model, x, y, PRODUCTS[name], False, cap)
            parts.append(crossings(result))
            residuals.append(result.residual_norm / result.residual_history[:, 0])
            for status, count in statuses(result).items():
                ends[status] = ends.get(status, 0) + count
            print(name, parts[-1].tolist(), statuses(result), flush=True)
        relative = torch.cat(residuals).double()
        found[name] = {
            "status_at_1e-5": ends, "thresholds": summary(torch.cat(parts), cap),
            "m_of_each_image": [
                [None if value != value else int(value) for value in row] for row in torch.cat(parts).tolist()
            ],
            "true_residual_at_the_end": {"median": float(relative.median()), "max": float(relative.max())},
            "cpu_seconds": time.process_time() - start,
            "peak_gib_so_far": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }  # fmt: skip
        print(name, shown(found[name]), flush=True)
    content = {
        "data": data.name, "network": "efficientnet-lite0", "n": data.images[0].numel(), "classes": logits.shape[1],
        "correctly_classified": int((logits.argmax(1) == data.labels).sum()), "images": len(data),
        "per sample": found, "table_iv": TABLE_IV,
    }  # fmt: skip
    save(arguments, "Table IV on ImageNet: the Krylov dimension m for each threshold", content)


if __name__ == "__main__":
    main()
