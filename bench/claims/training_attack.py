"""Which attack of 10 gradients should SOAT train on: the mean loss of what each of them finds.

    python bench/claims/training_attack.py [--data DIR]

No attack stops early. Written down for each network of digits (and of CIFAR-10, with --data or SOAE_DATA_DIR): the mean
cross-entropy over the images, for three seeds, and the mean of the paired difference to PGD of 10 steps with its 95 %
interval.
"""

from __future__ import annotations

from typing import Any

import torch
from common import DIGITS, RESULTS, cifar, digits, in_batches, mean, network, parser, save
from torch import Tensor, nn

from soae_ext.attacks import PGD, SOAE, Attack
from soae_ext.data import ImageData
from soae_ext.training import SOAT

GRADIENTS, SEEDS = 10, 3
RADII = {"cifar-standard": 2 / 255, "cifar-pgd": 8 / 255, "relu-standard": 0.1}
BASE = "PGD"


def attacks(eps: float, seed: int) -> dict[str, Attack]:
    options: dict[str, Any] = {"early_stop": False, "seed": seed}
    found: dict[str, Attack] = {
        BASE: PGD(eps, steps=GRADIENTS, **options),
        "SOAT's default": SOAE(**{**vars(SOAT(eps).attack), **options}),
        "no curvature": SOAE(eps, gradients=GRADIENTS, second_order_steps=0, **options),
    }
    for direction in ("ascent", "damped", "trust-region", "frank-wolfe", "power"):
        for hvp, kind in (("traced", "exact"), ("finite-difference", "differences")):
            one = {"direction": direction, "second_order_steps": 1, "max_dim": 2, "hvp": hvp}
            found[f"{direction}, {kind}"] = SOAE(eps, gradients=GRADIENTS, **one, **options)
    return found


def losses(model: nn.Module, attack: Attack, data: ImageData) -> Tensor:
    """Of what the attack finds, `(n,)`."""
    return torch.cat(in_batches(lambda x, y: attack(model, x, y).loss.double(), data.images, data.labels))


def study(key: str, model: nn.Module, data: ImageData) -> dict[str, Any]:
    eps = RADII.get(key, 0.3)
    found = [{name: losses(model, attack, data) for name, attack in attacks(eps, s).items()} for s in range(SEEDS)]
    rows = []
    for name in found[0]:
        row = {
            "attack": name,
            "mean_loss": [each[name].mean().item() for each in found],
            "more_than_pgd": mean(torch.stack([each[name] - each[BASE] for each in found]).mean(0)),
        }
        rows.append(row)
        print(f"{key:16}{name:28}", [round(value, 4) for value in row["mean_loss"]], row["more_than_pgd"], flush=True)
    return {"network": key, "eps": eps, "images": len(data), "rows": rows}


def main() -> None:
    options = parser(__doc__, "")
    options.set_defaults(output=RESULTS / "training_attack.json")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    studies = [study(key, network(key), digits()) for key in DIGITS]
    models, images, missing = cifar(arguments.data, 500)
    if images is not None:
        studies += [study(key, model, images) for key, model in models.items()]
    result = {"gradients": GRADIENTS, "seeds": SEEDS, "studies": studies, "cifar": missing}
    save(arguments, "which attack of 10 gradients raises the loss most", result)


if __name__ == "__main__":
    main()
