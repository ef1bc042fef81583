"""What saves gradients or time in a second-order attack, one thing at a time: half of bench_attack_end_to_end.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import measure
import torch
from torch import Tensor, nn

from soae_ext.attacks import SOAE
from soae_ext.attacks.losses import Objective
from soae_ext.data import load_digits
from soae_ext.gmres import Workspace, gmres
from soae_ext.hvp import hessian_operator
from soae_ext.models import digits_network, load_checkpoint, resnet18

NETWORKS = Path(__file__).resolve().parent / "networks"


@dataclass(frozen=True)
class Outcome:
    """Gradients of each image, and where there is an attack, the share of images that it fools."""

    gradients: float
    fooled: float | None = None


Run = Callable[[], Outcome]


@dataclass(frozen=True)
class Gain:
    name: str
    what: str
    without: Run
    with_it: Run


def attacking(attack: SOAE, model: nn.Module, x: Tensor, y: Tensor) -> Run:
    def run() -> Outcome:
        result = attack(model, x, y)
        return Outcome(result.gradient_calls.double().mean().item(), result.success.double().mean().item())

    return run


def attacks(relu: nn.Module, silu: nn.Module, x: Tensor, y: Tensor) -> list[Gain]:
    """Options of SOAE, on the shipped digits."""
    long = SOAE(0.3, steps=2, max_dim=20, threshold=1e-3, early_stop=False)
    loose = replace(long, threshold=1e-1)
    budget = SOAE(0.3, gradients=40, early_stop=False)
    rows = [
        Gain(
            "exact products end at C - 1", "2 steps of up to 20 dimensions, ReLU: exact products or differences",
            attacking(replace(long, hvp="finite-difference"), relu, x, y), attacking(long, relu, x, y),
        ),
        Gain(
            "inexact inner solve", "2 steps of up to 20 dimensions, ReLU: threshold 1e-1 or 1e-3",
            attacking(long, relu, x, y), attacking(loose, relu, x, y),
        ),
        Gain(
            "inexact inner solve", "2 steps of up to 20 dimensions, SiLU: threshold 1e-1 or 1e-3",
            attacking(long, silu, x, y), attacking(loose, silu, x, y),
        ),
        Gain(
            "fooled images leave", "budget of 40 gradients, SiLU: `early_stop`",
            attacking(budget, silu, x, y), attacking(replace(budget, early_stop=True), silu, x, y),
        ),
    ]  # fmt: skip
    return rows


def direct(name: str, model: nn.Module, x: Tensor, y: Tensor, dimensions: tuple[int, ...], eps: float) -> list[Gain]:
    """All curvature from the Jacobian, C - 1 gradients, against exact products."""
    rows = []
    for m in dimensions:
        krylov = SOAE(eps, steps=1, max_dim=m, threshold=0.0, early_stop=False)
        jacobian = replace(krylov, hvp="jacobian", classes=10)
        rows.append(
            Gain(
                "Jacobian instead of products", f"one step of {m} dimensions, {name}",
                attacking(krylov, model, x, y), attacking(jacobian, model, x, y),
            )
        )  # fmt: skip
    return rows


def systems(relu: nn.Module, silu: nn.Module, x: Tensor, y: Tensor) -> list[Gain]:
    """What SOAE leaves alone: warm starts from step to step, and dropping finished systems from the batch."""
    smooth, pieces = Objective(silu, "ce"), Objective(relu, "ce")
    workspace = Workspace()

    def outer(*, warm: bool) -> Run:
        def run() -> Outcome:
            point, previous, calls = x, None, 0
            for _ in range(4):
                operator = hessian_operator(smooth, point, y)
                result = gmres(
                    operator, operator.gradient, previous if warm else None,
                    restart=20, max_iters=20, rtol=1e-1, workspace=workspace,
                )  # fmt: skip
                calls += 1 + 2 * int(result.iterations.sum() + (1 + (warm and previous is not None)) * len(x)) / len(x)
                previous = result.x
                point = (point + 0.05 * result.x.sign()).clamp(0, 1)
            return Outcome(calls)

        return run

    def solve(*, compact: bool) -> Run:
        def run() -> Outcome:
            operator = hessian_operator(pieces, x, y)
            gmres(
                operator, operator.gradient, restart=20, max_iters=20, rtol=1e-3, compact=compact, workspace=workspace
            )
            return Outcome(float(operator.gradient_calls))

        return run

    return [
        Gain(
            "warm start", "4 outer steps, SiLU, threshold 1e-1: the last solution as x0",
            outer(warm=False), outer(warm=True),
        ),
        Gain(
            "compaction", "systems of one step, ReLU, threshold 1e-3, restart 20: `compact`",
            solve(compact=False), solve(compact=True),
        ),
    ]  # fmt: skip


def all_gains(quick: bool) -> list[Gain]:
    data = load_digits().first(20 if quick else 250)
    x, y = data.images, data.labels
    relu = digits_network().requires_grad_(False)
    silu = load_checkpoint(NETWORKS / "digits_silu_pgd.safetensors").requires_grad_(False)
    torch.manual_seed(0)
    count = 2 if quick else 16
    pixels, classes = torch.rand(count, 3, 32, 32), torch.arange(count) % 10
    return [
        *attacks(relu, silu, x, y),
        *systems(relu, silu, x, y),
        *direct("small CNN, digits", relu, x, y, (2, 4, 9), 0.3),
        *direct("ResNet-18, 32 x 32", resnet18().eval().requires_grad_(False), pixels, classes, (2, 4, 9), 8 / 255),
    ]


def measure_all(quick: bool) -> list[dict[str, Any]]:
    rows = []
    for gain in all_gains(quick):
        without, with_it = gain.without(), gain.with_it()
        times = measure.interleaved(
            {"without": gain.without, "with": gain.with_it}, cuda=False, repeats=3 if quick else 7, least_seconds=0.2
        )
        row = {
            "name": gain.name,
            "what": gain.what,
            "ratio": measure.ratio(times["without"], times["with"]),
            "gradients": {"with": with_it.gradients, "without": without.gradients},
            "fooled": {"with": with_it.fooled, "without": without.fooled},
        }
        rows.append(row)
        r = row["ratio"]
        fooled = "" if with_it.fooled is None else f"; fooled {without.fooled:.1%} -> {with_it.fooled:.1%}"
        print(
            f"{gain.name} ({gain.what}): {r['median']:.2f}x ({r['p10']:.2f}-{r['p90']:.2f}); gradients "
            f"{without.gradients:.1f} -> {with_it.gradients:.1f}{fooled}",
            flush=True,
        )
    return rows
