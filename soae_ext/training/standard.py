"""Empirical risk minimisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .base import Cost, StepResult, TrainingObjective, is_correct, logits_of

__all__ = ["Standard"]


@dataclass(frozen=True)
class Standard(TrainingObjective):
    """The mean cross-entropy of the images as they are, with no defence. One gradient."""

    name: ClassVar[str] = "Standard"

    def cost(self) -> Cost:
        return Cost(crafting=0, update=1)

    def _step(self, model: nn.Module, x: Tensor, y: Tensor, seed: int, index: Tensor) -> StepResult:
        logits = logits_of(model, x, y)
        return StepResult(cross_entropy(logits, y), self._spent(x), clean_correct=is_correct(logits, y))
