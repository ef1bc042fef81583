"""Equal gradients on CIFAR-10: SOAE against PGD and APGD on a PGD-trained ResNet-18, image by image.

    python bench/claims/cifar10_budget.py --data DIR

The differences are of accuracies under attack on the same images, with 95 % intervals for matched pairs: below zero,
SOAE is the stronger attack.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import cifar, parser, save, share

from soae_ext.attacks import APGD, PGD, SOAE, Attack
from soae_ext.evaluation.accuracy import paired_difference


def main() -> None:
    options = parser(__doc__, "budget")
    options.set_defaults(output=Path(__file__).parents[2] / "docs" / "results" / "cifar10_budget.json")
    options.add_argument("--images", type=int, default=1000)
    options.add_argument("--gradients", type=int, default=40)
    options.add_argument("--eps", type=float, default=8, help="Linf radius in 1/255")
    arguments: argparse.Namespace = options.parse_args()
    torch.set_num_threads(arguments.threads)
    networks, data, missing = cifar(arguments.data, arguments.images)
    if "cifar-pgd" not in networks or data is None:
        raise SystemExit(missing)
    model, budget, eps = networks["cifar-pgd"], arguments.gradients, arguments.eps / 255
    half = budget // 2
    attacks: dict[str, Attack] = {
        f"SOAE, {budget} gradients": SOAE(eps, gradients=budget, batch_size=125),
        f"SOAE, {budget} gradients, without a second-order step": SOAE(
            eps, gradients=budget, second_order_steps=0, batch_size=125
        ),
        f"SOAE, {budget} gradients, trust-region": SOAE(
            eps, gradients=budget, direction="trust-region", second_order_steps=1, batch_size=125
        ),
        f"PGD-{budget}": PGD(eps, steps=budget, batch_size=125),
        f"PGD-{half}, 2 restarts": PGD(eps, steps=half, restarts=2, random_start=True, batch_size=125),
        f"APGD-{budget}": APGD(eps, steps=budget, batch_size=125),
        f"APGD-{budget} (dlr)": APGD(eps, steps=budget, loss="dlr", batch_size=125),
    }
    with torch.no_grad():
        clean = torch.cat([model(x).argmax(1) for x in data.images.split(250)]) == data.labels
    robust, rows = {}, []
    for name, attack in attacks.items():
        result = attack(model, data.images, data.labels)
        robust[name] = ~result.success
        row = {
            "attack": name, "robust": share(robust[name]),
            "gradients_largest": int(result.gradient_calls.max()),
            "gradients_mean": float(result.gradient_calls.double().mean()),
            "forwards_mean": float(result.forward_calls.double().mean()),
        }  # fmt: skip
        rows.append(row)
        print(name, row["robust"]["share"], row["gradients_largest"], flush=True)
    first, *others = robust
    pairs = []
    for other in others:
        difference, low, high = paired_difference(robust[first], robust[other])
        pairs.append({"first": first, "second": other, "difference": difference, "interval_95": [low, high]})
        print(pairs[-1])
    content = {"data": data.name, "eps_255": arguments.eps, "clean": share(clean), "attacks": rows, "paired": pairs}
    save(arguments, "Strength at equal gradients on CIFAR-10", content)


if __name__ == "__main__":
    main()
