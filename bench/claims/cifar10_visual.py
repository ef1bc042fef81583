"""Claims of section IV-E on CIFAR-10: SOAE has the best PSNR and SSIM (Table V), distorts features least (Fig. 4), and
its perturbations lie on edges.

    python bench/claims/cifar10_visual.py --data DIR

Products are exact but for "differences", where the step is the default one, 1e-3 sqrt(n / 784) in 2-norm.
On the standard-trained ResNet-18, all attacks at the same Linf radius, once with the whole budget spent on every image
("full") and once stopped at the first iterate that fools ("stopped"). AutoAttack runs on the first `--auto` images.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import torch
from common import cifar, mean, parser, save, share
from torch import Tensor, nn

from soae_ext.attacks import FGSM, PGD, SOAE, Attack, AutoAttack
from soae_ext.data import ImageData
from soae_ext.evaluation.edges import edge_analysis
from soae_ext.evaluation.features import activation_maps, feature_analysis
from soae_ext.evaluation.quality import distances, psnr_and_ssim

matplotlib.use("Agg")
from matplotlib import pyplot as plt

TABLE_V = {"FGSM": [74.70, 0.86], "PGD": [74.11, 0.84], "AutoAttack": [72.62, 0.85], "SOAE": [79.53, 0.86]}
SHOWN = ("FGSM", "PGD-20", "AutoAttack", "SOAE, 20 gradients", "SOAE-4 along -H^-1 g (paper)")


def attacks(eps: float, early_stop: bool) -> dict[str, Attack]:
    common: dict[str, Any] = {"early_stop": early_stop, "batch_size": 125}
    plain: dict[str, Any] = {**common, "steps": 4, "max_dim": 2}
    return {
        "FGSM": FGSM(eps, **common),
        "PGD-20": PGD(eps, steps=20, **common),
        "SOAE, 20 gradients": SOAE(eps, gradients=20, **common),
        "SOAE-4 along +H^-1 g": SOAE(eps, **plain),
        "SOAE-4 along -H^-1 g (paper)": SOAE(eps, direction="paper", **plain),
        "SOAE-4 along -H^-1 g, differences": SOAE(eps, direction="paper", hvp="finite-difference", **plain),
        "SOAE-4 along +H^-1 g, as long as it is": SOAE(eps, normalize="identity", **plain),
        "SOAE-4 frank-wolfe": SOAE(eps, direction="frank-wolfe", **plain),
    }


def quality(images: Tensor, moved: Tensor, success: Tensor, right: Tensor) -> dict[str, Any]:
    """Over the images that were classified correctly before."""
    found = psnr_and_ssim(images, moved)
    changed = right & (moved != images).flatten(1).any(1)
    away = distances(images, moved)
    return {
        "robust": share(~success), "changed": int(changed.sum()),
        "psnr": mean(found["psnr"][changed]), "ssim": mean(found["ssim"][changed]),
        "linf_mean_255": float(255 * away["linf"][changed].mean()), "l2_mean": float(away["l2"][changed].mean()),
    }  # fmt: skip


def figure(
    model: nn.Module, layer: str, data: ImageData, moved: dict[str, Tensor], rows: list[int], path: Path
) -> None:
    """Each row an image: clean and under every attack, above the activation map of the layer."""
    shown = {"clean": data.images, **{name: moved[name] for name in SHOWN}}
    drawn, axes = plt.subplots(2 * len(rows), len(shown), figsize=(1.7 * len(shown), 3.3 * len(rows)), squeeze=False)
    for column, (name, images) in enumerate(shown.items()):
        maps = activation_maps(model, layer, images[rows])
        with torch.no_grad():
            classes = model(images[rows]).argmax(1).tolist()
        for k, row in enumerate(rows):
            top, below = axes[2 * k][column], axes[2 * k + 1][column]
            top.imshow(images[row].permute(1, 2, 0).numpy(), interpolation="nearest")
            below.imshow(maps[k].numpy(), cmap="viridis", interpolation="nearest")
            words = data.classes[classes[k]] if data.classes else str(classes[k])
            top.set_title((name.replace(" (paper)", "\n(paper)") + "\n" if k == 0 else "") + words, fontsize=7)
            for axis in (top, below):
                axis.set_axis_off()
    drawn.tight_layout(pad=0.3)
    drawn.savefig(path, dpi=110)


def main() -> None:
    options = parser(__doc__, "visual")
    folder = Path(__file__).parents[2] / "docs" / "results"
    options.set_defaults(output=folder / "cifar10_visual.json")
    options.add_argument("--images", type=int, default=1000)
    options.add_argument("--auto", type=int, default=100)
    options.add_argument("--eps", type=float, default=8, help="Linf radius in 1/255")
    arguments: argparse.Namespace = options.parse_args()
    torch.set_num_threads(arguments.threads)
    networks, data, missing = cifar(arguments.data, arguments.images)
    if "cifar-standard" not in networks or data is None:
        raise SystemExit(missing)
    model, eps, few = networks["cifar-standard"], arguments.eps / 255, data.first(arguments.auto)
    with torch.no_grad():
        right = torch.cat([model(x).argmax(1) for x in data.images.split(250)]) == data.labels
    content: dict[str, Any] = {"data": data.name, "eps_255": arguments.eps, "clean": share(right), "table_v": TABLE_V}
    for kind, early_stop in (("full", False), ("stopped", True)):
        moved, success = {}, {}
        rows = {}
        for name, attack in attacks(eps, early_stop).items():
            result = attack(model, data.images, data.labels)
            moved[name], success[name] = result.x_adv, result.success
            rows[name] = quality(data.images, result.x_adv, result.success, right)
            rows[name]["gradients_per_image"] = float(result.gradient_calls.double().mean())
            print(kind, name, rows[name]["robust"]["share"], rows[name]["psnr"]["mean"], flush=True)
        auto = AutoAttack(eps, batch_size=125)(model, few.images, few.labels)
        rows["AutoAttack"] = quality(few.images, auto.x_adv, auto.success, right[: len(few)])
        rows["AutoAttack"]["images"] = len(few)
        # On the same images, so that they can be compared.
        both = {**{name: images[: len(few)] for name, images in moved.items()}, "AutoAttack": auto.x_adv}
        fooled = {**{name: flags[: len(few)] for name, flags in success.items()}, "AutoAttack": auto.success}
        features = feature_analysis(model, few.images, both, fooled)
        content[kind] = {
            "quality": rows,
            "features_on_few": features.as_json(),
            "features": feature_analysis(model, data.images, moved, success).as_json(),
            "edges": [each.as_json() for each in edge_analysis(data.images, moved)],
        }
        if kind == "full":
            rights = right[: len(few)].nonzero()[:3, 0].tolist()
            figure(model, features.layer, few, both, rights, arguments.output.with_suffix(".png"))
    save(arguments, "Table V, Fig. 4 and section IV-E: quality, features and edges", content)


if __name__ == "__main__":
    main()
