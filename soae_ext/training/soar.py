"""SOAR, second-order adversarial regularisation (Ma, Faghri and Farahmand, 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor

from ..attacks.checks import check_choice, check_positive
from ..attacks.geometry import gaussian_noise, per_sample, random_start
from ..attacks.losses import cross_entropy
from .ascent import ascend, crafting, radii
from .base import BallObjective, Batch, Cost, StepResult
from .curvature import Product, hessian_product, image_gradient, second_derivatives, update_cost

__all__ = ["SOAR"]


@dataclass(frozen=True, kw_only=True)
class SOAR(BallObjective):
    """l(x') + R(x'), where R bounds how much a quadratic model of the loss l can rise in an L2 ball of radius eps.

    With g and H the gradient and Hessian of l at x' and M = [[H, g], [g', 1]], the bound is relaxed to

        R = (eps^2 + 1) / 2 * E_{z ~ N(0, I_{n+1})} |M z|_2 - 1/2,        M z = (H z_n + z_1 g,  g' z_n + z_1),

    with one z per step (Ma, Faghri and Farahmand, 2020, arXiv:2004.01832, section 4). A Linf ball lies in the L2 ball
    of radius sqrt(n) eps, which takes eps's place. Where the network is confident both derivatives vanish, so all of it
    is evaluated not at x but at x' = x + U(-eps/2, eps/2) followed by one steepest step of length eps/2 (in an L2 ball:
    from a uniform point of half the ball). No code of the authors is known; formulas after the paper.

    Derivatives with respect to the image are taken in the mode that the model is in, and in single precision under
    autocast. A network with dropout needs `hvp="double-backward"`: a finite difference of two random networks is noise.

    Args, beyond those of :class:`soae_ext.training.base.BallObjective`:
        hvp: `"finite-difference"`, H z = [g(x' + h z) - g(x')] / h as in the paper, or `"double-backward"`, exact. A
            step costs 7 gradients with the first, 8 with the second: 1 to find x', the gradient at x', the product and
            the 4 passes that the update goes back through. On a ReLU network, whose curvature is that of the last
            layer between its kinks, the difference sees the kinks within its reach too and is larger.
        fd_step: h; in multiples of z, whose entries are about 1.
    """

    name: ClassVar[str] = "SOAR"

    hvp: Product = "finite-difference"
    fd_step: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("hvp", self.hvp, get_args(Product))
        check_positive("fd_step", self.fd_step)

    def cost(self) -> Cost:
        return Cost(crafting=1, update=update_cost(self.hvp))

    def _step(self, batch: Batch) -> StepResult:
        x = batch.x
        with second_derivatives(x):
            points = self._away_from_saturation(batch).requires_grad_(True)
            logits = batch.logits(points)
            losses = cross_entropy(logits, batch.y)
            gradient = image_gradient(losses, points)
            z = batch.noise(1.0, 1)
            z_1 = gaussian_noise(x.new_empty(len(x), 1), 1.0, batch.seed, (2,), batch.index)[0, :, 0]
            product = hessian_product(batch.losses, points, gradient, z, self.fd_step, self.hvp)
            upper = (product + per_sample(z_1, x) * gradient).flatten(1)
            lower = (gradient * z).flatten(1).sum(1) + z_1
            length = torch.linalg.vector_norm(torch.cat([upper, lower[:, None]], 1), dim=1)
            radius = self.eps * math.sqrt(x[0].numel()) if self.norm == "Linf" else self.eps
            loss = (losses + (radius**2 + 1) / 2 * length - 0.5).mean()
        return StepResult(loss, self._spent(batch), adversarial_correct=batch.correct(logits))

    def _away_from_saturation(self, batch: Batch) -> Tensor:
        """The points x', `(B, *shape)`."""
        half = self.eps / 2
        start = random_start(batch.x, radii(half, batch.x), self.norm, batch.seed, 0, batch.index)
        with crafting(batch.model):
            # A ball of half the radius around a point of the ball of half the radius.
            return ascend(batch.losses, start, start, eps=half, norm=self.norm, step_size=half, steps=1)
