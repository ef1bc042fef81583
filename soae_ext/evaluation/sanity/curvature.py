"""Whether the Hessian-vector products and the solves are right on this network.

Everything is computed where rounding and saturation cannot be the reason of a failure: in double precision, at images
moved to random points of the ball (away from the kinks that adversarial images are driven to), and on logits divided by
a constant T that leaves them a range of at most 4. A very confident network has probabilities that underflow, which
makes H singular to working precision; the division changes no kink, no class and no structure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...attacks.geometry import random_start, unit
from ...gmres import gmres
from ...hvp import HessianOperator, gauss_newton_operator, hessian_operator
from .check import CheckFunction, Outcome, check
from .context import SanityContext

__all__ = ["CHECKS", "Scaled", "Setting", "setting"]

_GROUP = "curvature"
_FEW = 16
_RANGE = 4.0
# Where H - GGN is below this part of GGN it is rounding: a smooth activation's own curvature is far above.
_EQUAL = 1e-8
# Largest number of classes for which all Krylov vectors and all rows of the Jacobian are computed.
_MOST_CLASSES = 50


class Scaled(nn.Module):
    """Logits of `model` divided by `temperature`."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images) / self.temperature
        return logits


def cross_entropies(model: nn.Module) -> Any:
    """The loss (images, labels) -> `(B,)`."""
    return lambda x, y: nn.functional.cross_entropy(model(x), y, reduction="none")


class Setting(NamedTuple):
    """Where curvature is checked.

    Attributes:
        model: the network in double precision, logits divided by `temperature`.
        temperature: T.
        x, y: points `(B, *shape)` float64 and labels.
        hessian: of the cross-entropy at `x`.
        directions: `(B, *shape)`, two random unit directions for each point.
    """

    model: Scaled
    temperature: float
    x: Tensor
    y: Tensor
    hessian: HessianOperator
    directions: tuple[Tensor, Tensor]

    @property
    def classes(self) -> int:
        with torch.no_grad():
            return int(self.model(self.x[:1]).shape[1])


def setting(context: SanityContext) -> Setting:
    """The points, the scaled network and its Hessian."""
    images, labels, index = context.few(_FEW)
    x = images.double()
    radii = torch.full((len(x),), context.eps, dtype=torch.float64, device=x.device)
    x = random_start(x, radii, context.norm, context.seed, 0, index)
    with torch.no_grad():
        logits = context.double(x)
    temperature = max(1.0, float((logits.amax(1) - logits.amin(1)).max()) / _RANGE)
    model = Scaled(context.double, temperature)
    generator = torch.Generator().manual_seed(context.seed)
    first, second = (
        unit(torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)) for _ in range(2)
    )
    hessian = hessian_operator(cross_entropies(model), x, labels)
    return Setting(model, temperature, x, labels, hessian, (first, second))


def _norms(vectors: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(vectors.flatten(1), dim=1)
    return norms


def _dots(u: Tensor, v: Tensor) -> Tensor:
    return (u * v).flatten(1).sum(1)


def _relative(found: Tensor, expected: Tensor) -> Tensor:
    """|found - expected| / |expected| of the samples where the expected one is not zero."""
    scale = _norms(expected)
    errors: Tensor = _norms(found - expected) / scale
    return errors[scale > 0]


@dataclass(frozen=True)
class _Difference:
    """A finite difference to hold against the exact product: its precision, step and limit."""

    dtype: torch.dtype
    step: float | None
    central: bool
    limit: float
    remedy: str


def _difference_error(context: SanityContext, difference: _Difference) -> Outcome:
    here = setting(context)
    v = unit(here.hessian.gradient)
    exact = here.hessian(v)
    x = here.x
    model: nn.Module = here.model
    if difference.dtype == torch.float32:
        x = x.float()
        exact = hessian_operator(cross_entropies(model), x.double(), here.y)(v)
        model = Scaled(context.network or context.model, here.temperature)
    step = None if difference.step is None else difference.step * max(1.0, x[0].numel() / 784) ** 0.5
    operator = hessian_operator(
        cross_entropies(model), x, here.y, method="finite-difference", step=step, central=difference.central
    )
    errors = _relative(operator(v.to(x.dtype)).double(), exact)
    if not len(errors):
        return Outcome("not applicable", "-", "The loss has no curvature along its gradient.")
    median, p90 = errors.quantile(torch.tensor([0.5, 0.9], dtype=torch.float64, device=errors.device)).tolist()
    return Outcome.of(
        median <= difference.limit,
        f"median {median:.2g}, 90 % {p90:.2g} over {len(errors)} images (T = {here.temperature:.3g})",
        "Relative error along the gradient, the first Krylov vector. Where a step crosses a kink of a ReLU network the "
        "difference is that of two linear pieces: single images may be far off, the median is held against the limit.",
        difference.remedy,
    )


@check(_GROUP, "one-sided differences agree with exact products", "median relative error at most 1e-2")
def difference_single(context: SanityContext) -> Outcome:
    """Single precision, the step that SOAE takes by default, 1e-3 sqrt(n / 784)."""
    if next(iter(context.model.parameters()), torch.zeros(0)).dtype != torch.float32:
        return Outcome("not applicable", "-", "The network is not in single precision.")
    return _difference_error(
        context, _Difference(torch.float32, None, False, 1e-2, "Use exact products, hvp='traced'.")
    )


@check(_GROUP, "central differences agree with exact products", "median relative error at most 1e-5")
def difference_double(context: SanityContext) -> Outcome:
    """Double precision, step 1e-5 sqrt(n / 784): truncation is of order h^2, rounding of 1e-16 / h."""
    remedy = "The products are not derivatives of the gradient: look for hand-written gradients in the network."
    return _difference_error(context, _Difference(torch.float64, 1e-5, True, 1e-5, remedy))


@check(_GROUP, "the Hessian is symmetric", "relative difference at most 1e-10")
def symmetric(context: SanityContext) -> Outcome:
    """<u, H v> = <v, H u>, relative to |H u| + |H v|, for random unit vectors."""
    here = setting(context)
    u, v = here.directions
    hu, hv = here.hessian(u), here.hessian(v)
    scale = (_norms(hu) + _norms(hv)).clamp_min(torch.finfo(torch.float64).tiny)
    error = float(((_dots(u, hv) - _dots(v, hu)).abs() / scale).max())
    return Outcome.of(
        error <= 1e-10,
        f"{error:.2g} over {len(u)} images",
        "The matrix of second derivatives of a smooth function is symmetric.",
        "The network's derivatives are not those of one function: look for hand-written or detached gradients.",
    )


def _smoothness(here: Setting) -> float:
    """Largest |H v - G v| / |G v| for a random v, with G the Gauss-Newton matrix; 0 where both are zero."""
    v = here.directions[0]
    gauss_newton = gauss_newton_operator(here.model, here.y, here.x)(v)
    scale = _norms(gauss_newton).clamp_min(torch.finfo(torch.float64).tiny)
    return float((_norms(here.hessian(v) - gauss_newton) / scale).max())


def _smooth(share: float) -> Outcome:
    text = f"The logits are curved themselves: |H - GGN| is up to {share:.2g} of |GGN|, so this does not apply."
    return Outcome("not applicable", "-", text)


@check(_GROUP, "the Hessian is its Gauss-Newton part", f"relative difference at most {_EQUAL:g}")
def gauss_newton(context: SanityContext) -> Outcome:
    """H v = J'(diag(p) - pp')J v, which holds where the logits are piecewise linear in the pixels."""
    here = setting(context)
    share = _smoothness(here)
    if share > _EQUAL:
        return _smooth(share)
    text = "The logits are piecewise linear: cross-entropy alone curves the loss, and H is positive semi-definite."
    return Outcome("pass", f"{share:.2g} over {len(here.x)} images", text)


@check(_GROUP, "the Hessian is positive semi-definite", "v'Hv at least -1e-10 |v| |Hv|")
def semidefinite(context: SanityContext) -> Outcome:
    """Along random directions and the gradient, for piecewise linear logits."""
    here = setting(context)
    share = _smoothness(here)
    if share > _EQUAL:
        return _smooth(share)
    least = torch.inf
    for v in (*here.directions, unit(here.hessian.gradient)):
        product = here.hessian(v)
        curvature = _dots(v, product) / (_norms(v) * _norms(product)).clamp_min(torch.finfo(torch.float64).tiny)
        least = min(least, float(curvature.min()))
    return Outcome.of(
        least >= -1e-10,
        f"least {least:.2g} over 3 directions at {len(here.x)} images",
        "So -H^-1 g minimises the quadratic model of the loss, and +H^-1 g is the direction that ascends.",
    )


@check(_GROUP, "at most C - 1 Krylov steps", "C - 1")
def krylov_steps(context: SanityContext) -> Outcome:
    """GMRES on H d = g to a residual of 1e-8, for piecewise linear logits of C classes: H has rank C - 1 at most."""
    here = setting(context)
    share = _smoothness(here)
    if share > _EQUAL:
        return _smooth(share)
    if here.classes > _MOST_CLASSES:
        return Outcome("not run", "-", f"{here.classes - 1} products are too many for this section.")
    most = here.classes - 1
    result = gmres(here.hessian, here.hessian.gradient, rtol=1e-8, restart=most, max_iters=most)
    return Outcome.of(
        bool(result.converged.all()),
        f"{int(result.iterations.max())} steps at most, {int(result.converged.sum())} of {len(here.x)} converged",
        "The gradient lies in the range of H, so the solver must end there.",
        limit=f"{most} for {here.classes} classes",
    )


@check(_GROUP, "the Newton step has its closed form", "relative error at most 1e-6")
def closed_form(context: SanityContext) -> Outcome:
    """J d = e_y / p_y up to a constant for d = -H^+ g, where J has full rank C - 1 modulo constants."""
    here = setting(context)
    share = _smoothness(here)
    if share > _EQUAL:
        return _smooth(share)
    if here.classes > _MOST_CLASSES:
        return Outcome("not run", "-", f"{here.classes} rows of the Jacobian are too many for this section.")
    jacobian = _jacobian(here)
    full = torch.linalg.matrix_rank(jacobian, rtol=1e-8) == here.classes - 1
    if not bool(full.any()):
        return Outcome("not applicable", "-", "The logits vary along fewer than C - 1 directions.")
    with torch.no_grad():
        p = here.model(here.x).softmax(1)
    most = here.classes - 1
    step = gmres(here.hessian, -here.hessian.gradient, rtol=1e-12, restart=most, max_iters=4 * most).x
    raised = torch.einsum("bcn,bn->bc", jacobian, step.flatten(1))
    wanted = _centred(nn.functional.one_hot(here.y, here.classes) / p)
    error = float(_relative(raised, wanted)[full].max())
    return Outcome.of(
        error <= 1e-6,
        f"{error:.2g} over {int(full.sum())} images",
        "-H^-1 g raises the logit of the true class by 1 / p_y against all others: it is the step that defends.",
    )


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(1, keepdim=True)


def _jacobian(here: Setting) -> Tensor:
    """Derivatives of the centred logits, `(B, C, n)`."""
    with torch.enable_grad():
        x = here.x.clone().requires_grad_()
        columns = _centred(here.model(x)).sum(0)
        if not columns.requires_grad:
            return x.new_zeros(len(x), here.classes, x[0].numel())
        rows = [
            torch.autograd.grad(column, x, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
            for column in columns
        ]
    return torch.stack(rows, 1).flatten(2)


CHECKS: tuple[CheckFunction, ...] = (
    difference_single,
    difference_double,
    symmetric,
    gauss_newton,
    semidefinite,
    krylov_steps,
    closed_form,
)
