"""Claim: the step -H^-1 g raises the loss (Eqs. 5, 6), and solving more accurately makes it better.

    python bench/claims/sign.py

One step from the clean image along +H^-1 g, -H^-1 g and g, on the images that the network classifies correctly, solved
in float64 with m Krylov dimensions. Written down: the change of the loss and the share of images that are fooled. On
the ReLU networks J (-H^+ g) = e_y / p_y + c (1, ..., 1) is checked: H^+ from all of H, J the Jacobian of the logits.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from common import (
    DIGITS,
    digits,
    gauss_newton_factor,
    in_batches,
    logits_of,
    loss_of,
    mean,
    network,
    parser,
    save,
    share,
    smooth,
    spread,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from soae_ext.hvp import hessian_operator
from soae_ext.krylov import arnoldi

RADII = {"Linf": (0.1, 0.3), "L2": (1.0, 2.0)}
DIMENSIONS = (1, 2, 3, 5, 9)
SMOOTH_DIMENSIONS = (*DIMENSIONS, 20, 60)


def solutions(model: nn.Module, x: Tensor, y: Tensor, dims: tuple[int, ...]) -> dict[int, Tensor]:
    """g under key 0, and the minimum-residual H^-1 g of every dimension."""

    def piece(images: Tensor, labels: Tensor) -> dict[int, Tensor]:
        H = hessian_operator(loss_of(model), images, labels)
        found = {0: H.gradient}
        for m in dims:
            found[m] = arnoldi(H, H.gradient, steps=m).solve()
        return found

    pieces = in_batches(piece, x, y)
    return {key: torch.cat([found[key] for found in pieces]) for key in pieces[0]}


def steps(direction: Tensor, norm: str, radius: float) -> dict[str, Tensor]:
    """A normalised step, and the solution itself cut to the ball."""
    flat = direction.flatten(1)
    if norm == "Linf":
        return {"sign": radius * direction.sign(), "projected": direction.clamp(-radius, radius)}
    length = flat.norm(dim=1)
    scaled = (flat * (radius / length.clamp_min(1e-300))[:, None]).view_as(direction)
    cut = (flat * (radius / length.clamp_min(1e-300)).clamp_max(1.0)[:, None]).view_as(direction)
    return {"unit": scaled, "projected": cut}


def loss_after(model: nn.Module, x: Tensor, y: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """The loss at the clipped image, and whether it is misclassified."""
    z = logits_of(model, (x + step).clamp(0, 1))
    return cross_entropy(z, y, reduction="none"), z.argmax(1) != y


def closed_form(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Errors of J (-H^+ g) = e_y / p_y up to a constant, relative to 1 / p_y.

    H^+ comes from the singular values of a factor F of H = F'F, the square roots of H's eigenvalues.
    """

    def piece(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        F, D, p = gauss_newton_factor(model, images, labels)
        g = (p[:, None] @ D).mT
        _, s, vt = torch.linalg.svd(F, full_matrices=False)
        s, vt = s[:, :-1, None], vt[:, :-1]  # rank C - 1
        newton = -vt.mT @ ((vt @ g) / s**2)
        own = one_hot(labels, p.shape[1])
        difference = (D @ newton)[:, :, 0] * p.gather(1, labels[:, None]) - own
        return (difference - difference.mean(1, keepdim=True)).abs().amax(1), (s[:, 0, 0] / s[:, -1, 0]) ** 2

    pieces = in_batches(piece, x, y)
    error, condition = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return {"of": len(error), "condition_of_H_on_its_range": spread(condition), "error": spread(error)}


def measure(key: str, n: int) -> dict[str, Any]:
    model, data = network(key).double(), digits(n)
    x, y = data.images.double(), data.labels
    right = logits_of(model, x).argmax(1) == y
    x, y = x[right], y[right]
    dims = SMOOTH_DIMENSIONS if smooth(model) else DIMENSIONS
    found = solutions(model, x, y, dims)
    before = cross_entropy(logits_of(model, x), y, reduction="none")
    rows: list[dict[str, Any]] = []
    weakening: list[dict[str, Any]] = []
    for norm, radius in [(norm, radius) for norm, radii in RADII.items() for radius in radii]:
        previous: Tensor | None = None
        for m, direction in found.items():
            for sign in (1,) if m == 0 else (1, -1):
                name = "g" if m == 0 else f"{'+' if sign > 0 else '-'}H^-1 g"
                for kind, step in steps(sign * direction, norm, radius).items():
                    if kind == "projected" and m not in (1, dims[-1]):
                        continue
                    after, fooled = loss_after(model, x, y, step)
                    row = {"norm": norm, "radius": radius, "direction": name, "m": m or None, "step": kind}
                    change = {"loss_change": mean(after - before), "loss_fell": share(after < before)}
                    rows.append(row | change | {"fooled": share(fooled)})
                    if sign > 0 and m > 0 and kind != "projected":
                        if previous is not None:
                            less = {"norm": norm, "radius": radius, "m": m, "than_m": dims[dims.index(m) - 1]}
                            weakening.append(less | {"loss_difference": mean(after - previous)})
                        previous = after
    slope = (found[1] * found[0]).flatten(1).sum(1)
    result = {
        "network": DIGITS[key],
        "correctly_classified": share(right),
        "loss_before": mean(before),
        "ascends_with_plus_at_m_1": share(slope > 0),
        "rows": rows,
        "weaker_with_m": weakening,
    }
    if not smooth(model):
        result["closed_form"] = closed_form(model, x, y)
    return result


def main() -> None:
    options = parser(__doc__, "sign")
    options.add_argument("--images", type=int, default=1000)
    arguments: argparse.Namespace = options.parse_args()
    torch.set_num_threads(arguments.threads)
    results = {}
    for key in DIGITS:
        results[key] = measure(key, arguments.images)
        print(key, results[key].get("closed_form"), results[key]["ascends_with_plus_at_m_1"])
        if not all(row["loss_difference"]["mean"] < 0 for row in results[key]["weaker_with_m"]):
            print("  not monotone:", [w for w in results[key]["weaker_with_m"] if w["loss_difference"]["mean"] >= 0])
        for row in results[key]["rows"]:
            change = row["loss_change"]["mean"]
            print(f"  {row['norm']} {row['radius']} {row['direction']:8} m={row['m']} {row['step']:9} "
                  f"{change:+9.4f} fooled {row['fooled']['share']:.3f}")  # fmt: skip
    save(arguments, "the direction -H^-1 g maximises the loss (Eqs. 4-6)", {"networks": results})


if __name__ == "__main__":
    main()
