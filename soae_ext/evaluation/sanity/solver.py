"""Whether the solver, and the direction that SOAE makes of its solution, keep their promises on this network."""

from __future__ import annotations

from typing import Any, Literal

import torch

from ...attacks import FGSM, SOAE
from ...gmres import gmres
from ...hvp import hessian_operator
from .check import CheckFunction, Outcome, check
from .context import SanityContext
from .curvature import cross_entropies, setting

__all__ = ["CHECKS"]

_GROUP = "solver"
_DIMENSIONS = 5


@check(_GROUP, "a batch is solved like its samples", "relative difference at most 1e-6")
def batched(context: SanityContext) -> Outcome:
    """GMRES with 5 dimensions on H d = g for all images at once and for each alone, in double precision."""
    here = setting(context)
    options: dict[str, Any] = {"rtol": 1e-12, "restart": _DIMENSIONS, "max_iters": _DIMENSIONS}
    together = gmres(here.hessian, here.hessian.gradient, **options).x
    loss = cross_entropies(here.model)
    worst = 0.0
    for i in range(len(here.x)):
        alone = hessian_operator(loss, here.x[i : i + 1], here.y[i : i + 1])
        x = gmres(alone, alone.gradient, **options).x[0]
        norm = float(torch.linalg.vector_norm(x))
        if norm > 0:
            worst = max(worst, float(torch.linalg.vector_norm(together[i] - x)) / norm)
    return Outcome.of(
        worst <= 1e-6,
        f"{worst:.2g} over {len(here.x)} images",
        "Every image has a Krylov space of its own: its neighbours do not change its solution.",
        "A network that mixes the images of a batch has no Hessian per image.",
    )


@check(_GROUP, "the estimated residual is the true one", "difference at most 1e-8 |g|")
def residual(context: SanityContext) -> Outcome:
    """The norm that GMRES carries along against |g - H d| computed with one more product, in double precision."""
    here = setting(context)
    g = here.hessian.gradient
    result = gmres(here.hessian, g, rtol=1e-12, restart=_DIMENSIONS, max_iters=_DIMENSIONS, history=True)
    if result.residual_history is None:
        raise RuntimeError("gmres returned no history")
    last = result.iterations.long()[:, None]
    estimated = result.residual_history.gather(1, last)[:, 0]
    size = torch.linalg.vector_norm(g.flatten(1), dim=1)
    true = torch.linalg.vector_norm((g - here.hessian(result.x)).flatten(1), dim=1)
    used = size > 0
    error = float(((estimated - true).abs() / size)[used].max()) if bool(used.any()) else 0.0
    return Outcome.of(
        error <= 1e-8,
        f"{error:.2g} over {int(used.sum())} images",
        "What the solver believes of its solution is what a product with H confirms.",
    )


@check(_GROUP, "one Krylov dimension is the gradient", "0 images differ by more than 1e-9")
def one_dimension(context: SanityContext) -> Outcome:
    """One step of SOAE with m = 1 and the sign that ascends against FGSM, in double precision."""
    if context.norm == "L1":
        return Outcome("not applicable", "-", "In L1 FGSM moves single pixels, which SOAE does not.")
    x, y, index = context.few(16)
    common: dict[str, Any] = {"eps": context.eps, "norm": context.norm, "early_stop": False, "seed": context.seed}
    soae = SOAE(**common, direction="auto", max_dim=1, steps=1, normalize=_steepest(context))
    fgsm = FGSM(**common)
    first, second = (attack(context.double, x.double(), y, index=index).x_adv for attack in (soae, fgsm))
    differ = int(((first - second).flatten(1).abs().amax(1) > 1e-9).sum())
    return Outcome.of(
        differ == 0,
        f"{differ} of {len(x)} images differ",
        "The Krylov space of dimension 1 is spanned by the gradient: what SOAE gains or loses comes from the others.",
    )


@check(_GROUP, "the direction ascends", "<d, g> > 0 for every image")
def ascends(context: SanityContext) -> Outcome:
    """A step of 1e-6 of SOAE with 5 dimensions and `direction="auto"`, away from the box, in double precision."""
    here = setting(context)
    x = 0.1 + 0.8 * here.x
    attack = SOAE(
        1e-6, norm="L2", direction="auto", max_dim=_DIMENSIONS, steps=1, normalize="L2", hvp="traced", early_stop=False
    )
    operator = hessian_operator(cross_entropies(here.model), x, here.y)
    gradient = operator.gradient
    some = gradient.flatten(1).any(1)
    step = attack(here.model, x, here.y).x_adv - x
    slope = (step * gradient).flatten(1).sum(1)[some]
    if not bool(some.any()):
        return Outcome("not applicable", "-", "The gradient is zero for every image.")
    cosine = slope / (
        torch.linalg.vector_norm(step.flatten(1), dim=1) * torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    )[some].clamp_min(torch.finfo(torch.float64).tiny)
    return Outcome.of(
        bool((slope > 0).all()),
        f"{int((slope > 0).sum())} of {len(slope)} images, cosine with the gradient {float(cosine.min()):.2g} to "
        f"{float(cosine.max()):.2g}",
        "With the rule for its sign the second-order step raises the loss to first order.",
    )


def _steepest(context: SanityContext) -> Literal["sign", "L2"]:
    return "sign" if context.norm == "Linf" else "L2"


CHECKS: tuple[CheckFunction, ...] = (batched, residual, one_dimension, ascends)
