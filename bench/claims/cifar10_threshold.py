"""Claim: Fig. 2, accuracy of a standard-trained ResNet-18 under SOAE and its time against the threshold (section IV-D).

    python bench/claims/cifar10_threshold.py --data DIR

4 outer steps with room for `--max-dim` Krylov dimensions; a ReLU network with 10 classes has 9. Products are exact, or
one-sided differences with a step small enough for this network (`cifar10_difference.py`). "ascent" steps along +H^-1 g,
"paper" along -H^-1 g; one Krylov dimension, which is the gradient, is what they are held against. Images are attacked
until they are fooled.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from common import cifar, parser, save, share, spread

from soae_ext.attacks import SOAE, Attack
from soae_ext.data import ImageData

THRESHOLDS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


def attacked(attack: Attack, model: torch.nn.Module, data: ImageData) -> dict[str, Any]:
    start = time.process_time()
    result = attack(model, data.images, data.labels)
    seconds = time.process_time() - start
    dims = result.krylov_dims
    assert dims is not None
    return {
        "robust": share(~result.success), "mean_loss": float(result.loss.double().mean()),
        "gradients_per_image": float(result.gradient_calls.double().mean()),
        "krylov_dims": spread(dims[dims > 0]) | {"mean": float(dims[dims > 0].double().mean())},
        "cpu_seconds": seconds,
    }  # fmt: skip


def main() -> None:
    options = parser(__doc__, "threshold")
    options.set_defaults(output=Path(__file__).parents[2] / "docs" / "results" / "cifar10_threshold.json")
    options.add_argument("--images", type=int, default=200)
    options.add_argument("--fd-step", type=float, default=1e-5, help="length of the difference step")
    options.add_argument("--max-dim", type=int, default=12)
    arguments: argparse.Namespace = options.parse_args()
    torch.set_num_threads(arguments.threads)
    networks, data, missing = cifar(arguments.data, arguments.images)
    if "cifar-standard" not in networks or data is None:
        raise SystemExit(missing)
    model = networks["cifar-standard"]
    with torch.no_grad():
        clean = share(model(data.images).argmax(1) == data.labels)
    rows = []
    products: dict[str, dict[str, Any]] = {
        "exact": {"hvp": "traced"},
        "difference": {"hvp": "finite-difference", "fd_step": arguments.fd_step},
    }
    for eps, name in ((2, "exact"), (2, "difference"), (8, "exact")):
        common: dict[str, Any] = {"steps": 4, "batch_size": 100, **products[name]}
        cases = [("gradient", 1.0, SOAE(eps / 255, max_dim=1, **common))]
        for direction in ("ascent", "paper"):
            for threshold in THRESHOLDS:
                attack = SOAE(eps / 255, direction=direction, max_dim=arguments.max_dim, threshold=threshold, **common)
                cases.append((direction, threshold, attack))
        for direction, threshold, attack in cases:
            row = {"eps_255": eps, "products": name, "direction": direction, "threshold": threshold}
            row |= attacked(attack, model, data)
            rows.append(row)
            print(*row.values(), flush=True)
    save(arguments, "Fig. 2: the threshold study", {"data": data.name, "clean": clean, "rows": rows})


if __name__ == "__main__":
    main()
