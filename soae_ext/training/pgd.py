"""Adversarial training with projected gradient descent (Madry et al., 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.nn.functional import cross_entropy

from ..attacks.geometry import random_start
from .ascent import AscentObjective, crafting, radii
from .base import Batch, Cost, StepResult

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

    def _step(self, batch: Batch) -> StepResult:
        x, start = batch.x, batch.x
        if self.random_start:
            start = random_start(x, radii(self.eps, x), self.norm, batch.seed, 0, batch.index)
        with crafting(batch.model):
            adversarial = self._ascend(batch.losses, x, start)
        logits = batch.logits(adversarial)
        return StepResult(cross_entropy(logits, batch.y), self._spent(batch), adversarial_correct=batch.correct(logits))
