"""Which attack is strongest when all may spend equally many gradients, and what the second-order step adds.

    python bench/claims/strength_equal_gradients.py [--settings relu-pgd/Linf/0.3 ...] [--budgets 40 100 400]

Every attack is run on the same images of the shipped digits with a budget of gradients for each image. Written down for
each: robust accuracy with its 95 % interval, gradients spent, and the paired difference in fooled images between
SOAE as it is by default and that attack. Attacks that draw random numbers are run with several seeds where said.

With `--data DIR` (a folder with mnist/*.parquet) and `--n 10000` the images are those of the whole test set. Only
the main attacks are run on them, and with 400 gradients.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import digits
from strength_common import Laboratory, pair, parser, save, start, union

from soae_ext.attacks import APGD, PGD, SOAE, Attack
from soae_ext.data import ImageData, load_data

SETTINGS = ("relu-pgd/Linf/0.3", "silu-pgd/Linf/0.3", "relu-pgd/L2/2.0", "silu-pgd/L2/2.0")
OURS = "SOAE"
RUN = 20
# Run with every budget.
MAIN = (OURS, "SOAE, no second-order step", "PGD", "PGD, random runs of 20", "APGD-CE", "APGD-DLR")
# Run with up to 100 gradients.
MORE = (
    *MAIN, "PGD, random runs of 20, margin", "SOAE, cross-entropy only", "SOAE ascent, all steps",
    "SOAE frank-wolfe, all steps",
)  # fmt: skip
# Of which the spread over seeds is shown. PGD from the image draws nothing.
SEEDED = (OURS, "SOAE, no second-order step", "PGD, random runs of 20", "APGD-CE", "APGD-DLR")


def attacks(norm: str, eps: float, budget: int) -> dict[str, Attack]:
    """Every attack that spends at most so many gradients on an image, by its name; the first is SOAE by default."""
    ours = SOAE(eps, norm=norm, gradients=budget, normalize="sign" if norm == "Linf" else "L2")
    found: dict[str, Attack] = {
        OURS: ours,
        "SOAE, no second-order step": replace(ours, second_order_steps=0),
        "SOAE, cross-entropy only": replace(ours, rotate_loss=False),
        "SOAE, constant steps": replace(ours, schedule="constant"),
        "SOAE, from the image": replace(ours, random_start=False),
        "SOAE ascent, all steps": replace(ours, second_order_steps="all"),
    }
    for direction in ("frank-wolfe", "trust-region", "damped", "power", "paper"):
        found[f"SOAE {direction}, all steps"] = replace(ours, direction=direction)
    for direction in ("frank-wolfe", "trust-region", "damped", "power"):
        found[f"SOAE {direction}, one step"] = replace(ours, direction=direction, second_order_steps=1)
    # A space of two dimensions is planned for, and on a ReLU network often only one is found: these spend all.
    for direction in ("ascent", "frank-wolfe"):
        one = replace(ours, direction=direction, second_order_steps="all", max_dim=1)
        found[f"SOAE {direction}, all steps, one dimension"] = one
    runs = PGD(eps, norm=norm, steps=RUN, restarts=budget // RUN)
    found |= {
        "PGD": PGD(eps, norm=norm, steps=budget, random_start=False),
        "PGD, random start": PGD(eps, norm=norm, steps=budget),
        "PGD, random runs of 20": runs,
        "PGD, runs of 20, first from the image": replace(runs, random_start=False),
        "PGD, random runs of 20, margin": replace(runs, loss="margin"),
        "APGD-CE": APGD(eps, norm=norm, steps=budget),
        "APGD-DLR": APGD(eps, norm=norm, steps=budget, loss="dlr"),
    }
    return found


def chosen(norm: str, eps: float, budget: int, whole: bool) -> dict[str, Attack]:
    everything = attacks(norm, eps, budget)
    names = MAIN if whole or budget > 100 else MORE if budget > 40 else tuple(everything)
    return {name: everything[name] for name in names}


def study(
    laboratory: Laboratory, data: ImageData, setting: str, budget: int, seeds: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """All attacks with one budget on one network in one ball."""
    key, norm, radius = setting.split("/")
    eps = float(radius)
    rows = []
    for name, attack in chosen(norm, eps, budget, len(data) > 1000).items():
        if arguments.only and name not in (OURS, *arguments.only):
            continue
        row = laboratory.row(key, name, attack, data)
        more = [replace(attack, seed=seed) for seed in range(1, seeds)] if name in SEEDED else []
        others = [laboratory.row(key, f"{name}, seed {each.seed}", each, data)["robust"] for each in more]
        rows.append({**row, "other_seeds": [other["correct"] for other in others]})
    ours = rows[0]
    for row in rows[1:]:
        row[f"{OURS} against it"] = pair(ours, row, len(data))
    together = union(rows, len(data))
    setup = {"network": key, "norm": norm, "eps": eps, "gradients": budget}
    return {**setup, "rows": rows, "all_together": together}


def main() -> None:
    options = parser(__doc__, "equal_gradients")
    options.add_argument("--settings", nargs="+", default=list(SETTINGS), metavar="NETWORK/NORM/EPS")
    options.add_argument("--budgets", nargs="+", type=int, default=[40, 100, 400])
    options.add_argument("--seeds", type=int, nargs="+", default=[3, 1, 1], help="how many, for each of the budgets")
    options.add_argument("--only", nargs="+", metavar="ATTACK", help="these attacks and SOAE")
    options.add_argument("--add", action="store_true", help="to the studies that the output file holds already")
    options.add_argument("--data", type=Path, help="folder with mnist/*.parquet")
    options.add_argument("--n", type=int, default=1000)
    arguments: argparse.Namespace = options.parse_args()
    laboratory = start(arguments)
    if arguments.data is None:
        data = digits(arguments.n)
    else:
        data = load_data(f"mnist:{arguments.data / 'mnist'}", n=arguments.n)
    studies = [
        study(laboratory, data, setting, budget, seeds, arguments)
        for budget, seeds in zip(arguments.budgets, arguments.seeds, strict=True)
        for setting in arguments.settings
    ]
    images = {"name": data.name, "images": len(data), "sha256": data.fingerprint}
    earlier: dict[str, Any] = {}
    if arguments.add:
        earlier = json.loads(arguments.output.read_text())
        if earlier["images"] != images:
            raise SystemExit(f"--add: {arguments.output} is about other images; choose another --output")
        new = {place(each) for each in studies}
        studies = [each for each in earlier["studies"] if place(each) not in new] + studies
    claim = "At equal gradients SOAE is no weaker than PGD and APGD (a goal of this project, not a claim of the paper)"
    save(arguments.output, laboratory, claim, {"images": images, "studies": studies}, earlier)


def place(study: dict[str, Any]) -> tuple[Any, ...]:
    """Of which there is one study."""
    return tuple(study[part] for part in ("network", "norm", "eps", "gradients"))


if __name__ == "__main__":
    main()
