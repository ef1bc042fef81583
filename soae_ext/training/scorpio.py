"""SCORPIO, a quadratic regulariser (Tsiligkaridis and Roberts, 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor

from ..attacks.checks import check_choice, check_count, check_positive
from ..attacks.geometry import steepest_step
from ..attacks.losses import cross_entropy
from .ascent import crafting
from .base import BallObjective, Batch, Cost, StepResult
from .curvature import Product, hessian_product, image_gradient, product_cost, second_derivatives, update_cost

__all__ = ["SCORPIO"]


@dataclass(frozen=True, kw_only=True)
class SCORPIO(BallObjective):
    """l(x) + lambda Q(d), where d maximises Q(d) = g'd + d'Hd / 2, the quadratic model of the rise of the loss l at x.

    The maximum over the ball is sought by `steps` Frank-Wolfe steps from d = 0,

        s = argmax_{|s| <= eps} (g + H d)'s,        d <- d + 2 / (k + 2) (s - d),        k = 0, 1, ...,

    so that one step gives the perturbation of FGSM (Tsiligkaridis and Roberts, 2020, arXiv:2009.04923). It is sought
    with the model in eval mode, and d is a constant to the gradient; Q(d) is evaluated in the mode that the model came
    in, and the parameters are reached through g and H. The ball alone bounds d: x + d may leave [0, 1]. The authors'
    training code is not published; formulas after the paper, which uses 1 to 3 steps.

    Derivatives with respect to the image are taken in single precision under autocast. A network with dropout needs
    `hvp="double-backward"`: a finite difference of two random networks is noise.

    Args, beyond those of :class:`soae_ext.training.base.BallObjective`:
        steps: Frank-Wolfe steps. The first costs a gradient, each further one a product.
        weight: lambda.
        hvp: `"finite-difference"`, H d = [g(x + h d) - g(x)] / h as in the paper, or `"double-backward"`, exact. The
            update costs 6 gradients with the first, 7 with the second: a gradient, a product and the 4 passes that it
            goes back through.
        fd_step: h; in multiples of d.
    """

    name: ClassVar[str] = "SCORPIO"

    steps: int = 3
    weight: float = 1.0
    hvp: Product = "finite-difference"
    fd_step: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps, 1)
        check_positive("weight", self.weight, zero=True)
        check_choice("hvp", self.hvp, get_args(Product))
        check_positive("fd_step", self.fd_step)

    def cost(self) -> Cost:
        return Cost(crafting=1 + (self.steps - 1) * product_cost(self.hvp), update=update_cost(self.hvp))

    def _step(self, batch: Batch) -> StepResult:
        with second_derivatives(batch.x):
            perturbation = self._maximize(batch)
            points = batch.x.clone().requires_grad_(True)
            logits = batch.logits(points)
            losses = cross_entropy(logits, batch.y)
            gradient = image_gradient(losses, points)
            product = hessian_product(batch.losses, points, gradient, perturbation, self.fd_step, self.hvp)
            rise = (perturbation * (gradient + product / 2)).flatten(1).sum(1)
            loss = (losses + self.weight * rise).mean()
        return StepResult(loss, self._spent(batch), clean_correct=batch.correct(logits))

    def _maximize(self, batch: Batch) -> Tensor:
        """The perturbation d `(B, *shape)` that Frank-Wolfe ends at."""
        with crafting(batch.model):
            points = batch.x.clone().requires_grad_(True)
            gradient = image_gradient(batch.losses(points), points)
            perturbation = self.eps * steepest_step(gradient.detach(), self.norm)
            for k in range(1, self.steps):
                product = hessian_product(batch.losses, points, gradient, perturbation, self.fd_step, self.hvp)
                corner = self.eps * steepest_step((gradient + product).detach(), self.norm)
                perturbation = torch.lerp(perturbation, corner, 2 / (k + 2))
        return perturbation
