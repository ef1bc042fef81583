"""Claims: at most 4 iterations suffice (Fig. 3), difference steps must be small (1), the threshold is uncritical (2).

    python bench/claims/strength_curves.py [--studies iterations fd_step threshold] [--n 1000]

All in the Linf ball, on the shipped digits, with plain second-order steps of SOAE as in the paper's algorithm.

iterations: the accuracy after every iteration of one run to T = 20, and of runs with the step size for their own T;
    the latter also against PGD with as many gradients as SOAE spent on the image that cost it most.
fd_step: finite-difference products with steps h from 1e-6 to 1, against exact products, on three networks.
threshold: exact and finite-difference products, with the Krylov dimensions that each threshold leads to.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import digits
from strength_common import Laboratory, pair, parser, save, start

from soae_ext.attacks import PGD, SOAE, Attack
from soae_ext.data import ImageData
from soae_ext.evaluation import Accuracy
from soae_ext.evaluation.curves import fd_step_curve, threshold_curve
from soae_ext.evaluation.series import Curve, Series
from soae_ext.plots import curve_chart
from soae_ext.plots import save as save_figure

STUDIES = ("iterations", "fd_step", "threshold")
LONGEST = 20
OWN = (1, 2, 3, 4, 7, 20)
STEPS = tuple(10.0**power for power in range(-6, 1))
THRESHOLDS = (1e-4, 1e-3, 1e-2, 1e-1, 10**-0.5)
# Network, radius. A standard network needs a smaller radius to tell attacks apart.
ITERATED = (("relu-pgd", 0.3), ("silu-pgd", 0.3), ("relu-standard", 0.1))
DIFFERENCED = (("relu-standard", 0.1), ("relu-standard", 0.3), ("relu-pgd", 0.3), ("relu-soat", 0.3), ("silu-pgd", 0.3))


def plain(eps: float, steps: int, direction: Any = "ascent") -> SOAE:
    return SOAE(eps, steps=steps, direction=direction, max_dim=5)


def iterated(eps: float, steps: int) -> dict[str, Attack]:
    return {
        "SOAE ascent": plain(eps, steps),
        "SOAE paper": plain(eps, steps, "paper"),
        "PGD": PGD(eps, steps=steps, random_start=False),
    }


def iterations(laboratory: Laboratory, data: ImageData, folder: Path) -> list[dict[str, Any]]:
    studies = []
    for key, eps in ITERATED:
        own: list[dict[str, Any]] = []
        trajectory = _trajectory(laboratory, data, key, eps)
        for steps in OWN:
            rows = [laboratory.row(key, name, attack, data) for name, attack in iterated(eps, steps).items()]
            for row in rows[:2]:
                row["against PGD of as many steps"] = pair(row, rows[2], len(data))
            ascent = rows[0]
            equal = PGD(eps, steps=max(ascent["gradients_max"], 1), random_start=False)
            ascent["equal"] = laboratory.row(key, f"PGD-{equal.steps}", equal, data)
            ascent["against equal"] = pair(ascent, ascent["equal"], len(data))
            own.append({"iterations": steps, "rows": rows})
        studies.append({"network": key, "eps": eps, "trajectory": trajectory, "own_step_size": own})
        save_figure(curve_chart(_drawn(key, own, len(data))), folder / f"iterations_{key}.png")
    return studies


def _trajectory(laboratory: Laboratory, data: ImageData, key: str, eps: float) -> dict[str, list[float]]:
    """Accuracy after each iteration of runs with the step size for T = 20; an image stops when it is fooled."""
    found = {}
    for name, attack in iterated(eps, LONGEST).items():
        if isinstance(attack, SOAE):
            row = laboratory.row(key, f"{name}, T = {LONGEST}", attack, data)
            fooled = torch.tensor(row["fooled_after"]).cumsum(0)
            found[name] = (1 - fooled / len(data)).tolist()
        else:
            length = 2.5 / LONGEST * eps
            runs = [replace(attack, steps=t, step_size=length) for t in range(1, LONGEST + 1)]
            rows = [laboratory.row(key, f"{name}, {run.steps} of {LONGEST}", run, data) for run in runs]
            clean = laboratory.runner(key).clean(data).accuracy.share
            found[name] = [clean, *(row["robust"]["accuracy"] for row in rows)]
    return found


def _drawn(key: str, own: list[dict[str, Any]], images: int) -> Curve:
    series = []
    names = [row["attack"] for row in own[0]["rows"]]
    for place, name in enumerate(names):
        shares = [Accuracy(each["rows"][place]["robust"]["correct"], images) for each in own]
        series.append(_line(name, shares))
        if place == 0:
            equal = [Accuracy(each["rows"][place]["equal"]["robust"]["correct"], images) for each in own]
            series.append(_line(f"PGD, gradients of {name}", equal))
    return Curve("iterations", key, "iterations T", "robust accuracy", False, series)


def _line(name: str, shares: list[Accuracy]) -> Series:
    return Series(
        name, [float(t) for t in OWN], [s.share for s in shares],
        [s.interval[0] for s in shares], [s.interval[1] for s in shares],
    )  # fmt: skip


def differences(laboratory: Laboratory, data: ImageData, folder: Path) -> dict[str, Any]:
    found = []
    for key, eps in DIFFERENCED:
        name = f"{key}, eps {eps:g}"
        curve = fd_step_curve({name: laboratory.runner(key)}, data, plain(eps, 4), STEPS)
        print(name, [round(y, 3) for y in curve.series[0].y], "exact", curve.series[0].extra["exact"][0], flush=True)
        found.append(curve)
    series = [line for curve in found for line in curve.series]
    whole = Curve(**{**vars(found[0]), "series": series})
    save_figure(curve_chart(whole), folder / "fd_step.png")
    return whole.as_json()


def thresholds(laboratory: Laboratory, data: ImageData, folder: Path) -> list[dict[str, Any]]:
    studies = []
    for key, eps in (("relu-standard", 0.1), ("silu-pgd", 0.3)):
        curve = threshold_curve(laboratory.runner(key), data, plain(eps, 4), THRESHOLDS, 40)
        for line in curve.series:
            print(key, line.name, [round(y, 3) for y in line.y], [round(m, 1) for m in line.extra["krylov_mean"]])
        save_figure(curve_chart(curve), folder / f"threshold_{key}.png")
        studies.append({"network": key, "eps": eps, **curve.as_json()})
    return studies


def main() -> None:
    options = parser(__doc__, "attack_curves")
    options.add_argument("--studies", nargs="+", default=list(STUDIES), choices=STUDIES)
    options.add_argument("--n", type=int, default=1000)
    arguments = options.parse_args()
    laboratory = start(arguments)
    data = digits(arguments.n)
    folder = arguments.output.parent / "attacks"
    folder.mkdir(parents=True, exist_ok=True)
    work = {"iterations": iterations, "fd_step": differences, "threshold": thresholds}
    for name in arguments.studies:
        found = work[name](laboratory, data, folder)
        path = arguments.output.with_name(f"{arguments.output.stem}_{name}.json")
        save(path, laboratory, f"Figs. 1 to 3: {name}", {"images": len(data), name: found})


if __name__ == "__main__":
    main()
