"""Draw docs/results/curvature_*.png from the JSON files beside them.

python bench/claims/curvature_figures.py
"""

from __future__ import annotations

import json
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from common import DIGITS, RESULTS

COLOURS = dict(zip(DIGITS, ("tab:blue", "tab:orange", "tab:green", "tab:red"), strict=True))
# The order of the columns of Table IV is known (m falls), their thresholds are lost.
GUESSED = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def load(name: str) -> Any:
    return json.loads((RESULTS / f"curvature_{name}.json").read_text())


def sign() -> None:
    """What a step along +-H^-1 g does to the loss, by m, in units of what the gradient step does."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, (norm, radius, kind) in zip(axes, (("Linf", 0.1, "sign"), ("L2", 1.0, "unit")), strict=True):
        for key, result in load("sign")["networks"].items():
            rows = [r for r in result["rows"] if (r["norm"], r["radius"], r["step"]) == (norm, radius, kind)]
            scale = next(r["loss_change"]["mean"] for r in rows if r["direction"] == "g")
            for direction, style in (("+H^-1 g", "-o"), ("-H^-1 g", ":s")):
                chosen = [r for r in rows if r["direction"] == direction]
                y = [r["loss_change"]["mean"] / scale for r in chosen]
                label = DIGITS[key].removeprefix("small CNN, ") if direction[0] == "+" else None
                axis.plot([r["m"] for r in chosen], y, style, color=COLOURS[key], label=label, markersize=4)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(xscale="log", xlabel="Krylov dimension m", title=f"one step, {norm} {radius}")
        axis.set_xticks([1, 2, 3, 5, 9, 20, 60], ["1", "2", "3", "5", "9", "20", "60"])
        axis.minorticks_off()
    axes[0].set_ylabel("change of the loss / that of the gradient step")
    axes[1].legend(frameon=False, fontsize=8, title="solid: $+H^{-1}g$, dotted: $-H^{-1}g$", title_fontsize=8)
    figure.savefig(RESULTS / "curvature_sign.png", dpi=130)
    plt.close(figure)


def dimensions() -> None:
    """m by threshold, per sample and for joined batches, beside Table IV."""
    document = load("dimensions")
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.8), sharey=True, layout="constrained")
    for axis, key in zip(axes, ("relu-standard", "relu-pgd", "silu-pgd"), strict=True):
        result = document["networks"][key]
        lines = {"per sample": (result["per sample"]["exact, float32, stable loss"], "black", "-o")}
        for size, colour in (("16", "tab:blue"), ("64", "tab:green"), ("128", "tab:red")):
            for name, style in (("exact, float32, stable loss", "-o"), ("difference, float32", ":s")):
                label = f"B={size} as one" + (", differences" if style[0] == ":" else "")
                lines[label] = (result["batch as one system"][name][size], colour, style)
        for label, (found, colour, style) in lines.items():
            rows = [r for r in found["thresholds"] if "m" in r and r["reached"] == r["of"]]
            axis.plot(
                [r["threshold"] for r in rows],
                [r["m"]["mean"] for r in rows],
                style,
                color=colour,
                label=label,
                markersize=4,
            )
        axis.plot(
            GUESSED, document["table_iv"]["MNIST"], "x", color="gray", label="Table IV, MNIST (thresholds guessed)"
        )
        axis.axhline(9, color="black", linewidth=0.6, linestyle="--")
        title = DIGITS[key].removeprefix("small CNN, ")
        axis.set(xscale="log", yscale="log", xlabel="threshold (residual / |g|)", title=title)
        axis.invert_xaxis()
    axes[0].set_ylabel("Krylov dimension m (dashed: C - 1 = 9)")
    axes[2].legend(frameon=False, fontsize=7)
    figure.savefig(RESULTS / "curvature_dimensions.png", dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    sign()
    dimensions()
