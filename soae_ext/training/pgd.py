"""Adversarial training with projected gradient descent (Madry et al., 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..attacks.geometry import random_start
from ..attacks.losses import Objective
from .ascent import AscentObjective, crafting, radii
from .base import Cost, StepResult, is_correct, logits_of

__all__ = ["PGDTraining"]


@dataclass(frozen=True, kw_only=True)
class PGDTraining(AscentObjective):
    """min_theta E max_{|d| <= eps} CE(f(x + d), y), the maximum sought by `steps` steps of projected gradient ascent.

    x_0 = x + U(ball), x_{k+1} = P(x_k + a sign(g)), in an L2 ball x_k + a g / |g| (Madry et al., 2018, eq. 2.1 and
    section 2.1); trained on the last iterate alone. The authors' values: Linf on MNIST eps 0.3, step 0.01, 40 steps; on
    CIFAR-10 eps 8/255, step 2/255, 7 steps. They craft in train mode and report little difference; here the model is
    in eval mode.

    Args, beyond those of :class:`soae_ext.training.ascent.AscentObjective`:
        steps: 7 by default.
        random_start: start at a random point of the ball instead of at the image.
    """

    name: ClassVar[str] = "PGD"

    steps: int = 7
    random_start: bool = True

    def cost(self) -> Cost:
        return Cost(crafting=self.steps, update=1)

    def _step(self, model: nn.Module, x: Tensor, y: Tensor, seed: int, index: Tensor) -> StepResult:
        start = random_start(x, radii(self.eps, x), self.norm, seed, 0, index) if self.random_start else x
        objective = Objective(model, "ce")
        with crafting(model):
            adversarial = self._ascend(lambda points: objective(points, y), x, start)
        logits = logits_of(model, adversarial, y)
        return StepResult(cross_entropy(logits, y), self._spent(x), adversarial_correct=is_correct(logits, y))
