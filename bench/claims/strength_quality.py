"""Claims: SOAE's examples have the highest PSNR and SSIM (Table V), and its perturbations lie on edges (section IV-E).

    python bench/claims/strength_quality.py [--n 1000] [--referee 100]

On a standard and on the PGD-trained digits network, Linf, torchmetrics with a data range of 1. No attack stops at its
first success, but AutoAttack, whose authors' code does. Written down: PSNR and SSIM of all attacks at the same radius;
on the standard network also at equal success, each attack at the smallest radius (to 1 %) with which it fools 90 % of
the images; and the correlation of the perturbations with the edges of the images.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from common import digits, mean
from strength_common import Laboratory, parser, save, start
from torch import Tensor

from soae_ext.attacks import FGSM, PGD, SOAE, Attack, AutoAttack
from soae_ext.data import ImageData
from soae_ext.evaluation import Measurement
from soae_ext.evaluation.edges import edge_analysis
from soae_ext.plots import edge_chart
from soae_ext.plots import save as save_figure

RADII = {"relu-standard": 0.3, "relu-pgd": 0.3}
WANTED = 0.9


def attacks(eps: float) -> dict[str, Attack]:
    """FGSM, PGD, SOAE as the paper's algorithm makes it with steps of three kinds, and with a budget."""
    plain = SOAE(eps, steps=4, early_stop=False)
    return {
        "FGSM": FGSM(eps, early_stop=False),
        "PGD-20": PGD(eps, steps=20, random_start=False, early_stop=False),
        "SOAE-4 paper": replace(plain, direction="paper"),
        "SOAE-4 ascent": plain,
        "SOAE-4 ascent, L2 steps": replace(plain, normalize="L2", step_size=eps * 28),
        "SOAE-4 ascent, Linf steps": replace(plain, normalize="Linf"),
        "SOAE-100 budget": SOAE(eps, gradients=100, early_stop=False),
    }


def entry(m: Measurement) -> dict[str, Any]:
    """Mean PSNR and SSIM over the images that the attack changed, and over those that it fooled as well."""
    assert m.psnr is not None
    assert m.ssim is not None
    fooled = m.changed & m.success
    found: dict[str, Any] = {"robust": m.robust.as_json(), "changed": int(m.changed.sum()), "fooled": int(fooled.sum())}
    for name, values in (("psnr", m.psnr), ("ssim", m.ssim), ("linf", m.linf), ("l2", m.l2)):
        found[name] = _mean(values[m.changed])
        found[f"{name}_fooled"] = _mean(values[fooled])
    return found


def _mean(values: Tensor) -> dict[str, Any] | None:
    return mean(values) if len(values) else None


def equal_success(
    laboratory: Laboratory, data: ImageData, key: str, name: str, attack: Attack
) -> dict[str, Any] | None:
    """The attack with the smallest radius that fools `WANTED` of the images; `None` if even a radius of 1 does not."""

    def fooled(eps: float) -> float:
        return 1 - laboratory.measure(key, name, _scaled(attack, eps), few).robust.share

    few = data.first(min(250, len(data)))
    low, high = 0.0, 1.0
    if fooled(high) < WANTED:
        return None
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if fooled(middle) >= WANTED else (middle, high)
    return {"eps": high, **entry(laboratory.measure(key, name, _scaled(attack, high), data))}


def _scaled(attack: Attack, eps: float) -> Attack:
    """With another radius, and a step size in proportion to it."""
    assert isinstance(attack.eps, float)
    return replace(attack, eps=eps, step_size=attack.step_size and attack.step_size * eps / attack.eps)


def main() -> None:
    options = parser(__doc__, "quality")
    options.add_argument("--n", type=int, default=1000)
    options.add_argument("--referee", type=int, default=100, help="images for AutoAttack")
    arguments = options.parse_args()
    laboratory = start(arguments)
    data = digits(arguments.n)
    folder = arguments.output.parent / "attacks"
    folder.mkdir(parents=True, exist_ok=True)
    studies = []
    for key, eps in RADII.items():
        measured = {name: laboratory.measure(key, name, attack, data) for name, attack in attacks(eps).items()}
        table = {name: entry(m) for name, m in measured.items()}
        few = data.first(arguments.referee)
        table[f"AutoAttack, {len(few)} images"] = entry(laboratory.measure(key, "AutoAttack", AutoAttack(eps), few))
        edges = [each.as_json() for each in edge_analysis(data.images, {n: m.x_adv for n, m in measured.items()})]
        save_figure(edge_chart(edges), folder / f"edges_{key}.png")
        study: dict[str, Any] = {"network": key, "eps": eps, "equal_radius": table, "edges": edges}
        print(key, {name: (e["robust"]["accuracy"], e["psnr"], e["ssim"]) for name, e in table.items()}, flush=True)
        if key == "relu-standard":
            study["equal_success"] = {
                name: equal_success(laboratory, data, key, name, attack) for name, attack in attacks(eps).items()
            }
        studies.append(study)
    claim = "Table V and section IV-E: SOAE has the highest PSNR and SSIM; its perturbations lie on edges"
    save(arguments.output, laboratory, claim, {"images": len(data), "wanted": WANTED, "studies": studies})


if __name__ == "__main__":
    main()
