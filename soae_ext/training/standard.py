"""Empirical risk minimisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.nn.functional import cross_entropy

from .base import Batch, Cost, StepResult, TrainingObjective

__all__ = ["Standard"]


@dataclass(frozen=True)
class Standard(TrainingObjective):
    """The mean cross-entropy of the images as they are, with no defence. One gradient."""

    name: ClassVar[str] = "Standard"

    def cost(self) -> Cost:
        return Cost(crafting=0, update=1)

    def _step(self, batch: Batch) -> StepResult:
        logits = batch.logits(batch.x)
        return StepResult(cross_entropy(logits, batch.y), self._spent(batch), clean_correct=batch.correct(logits))
