"""What changes in the course of training, as functions of the step: there is no state to be saved."""

from __future__ import annotations

import math
from typing import Any

from .base import TrainingObjective
from .recipe import Recipe

__all__ = ["ball_of", "learning_rate", "radius_factor"]

# Of the peak, at the start and (of that) at the end of one cycle; and the fraction of it that rises by default.
_CYCLE_START, _CYCLE_END, _CYCLE_WARMUP = 1 / 25, 1e-4, 0.3


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Learning rate of update number `step` (from 0) of `steps`."""
    if recipe.schedule == "one-cycle":
        return _one_cycle(recipe, step, steps)
    rising = round((recipe.warmup or 0.0) * steps)
    if step < rising:
        return recipe.lr * (step + 1) / (rising + 1)
    if recipe.schedule == "cosine":
        return _along_cosine(recipe.lr, 0.0, (step - rising) / (steps - rising))
    if recipe.schedule == "step":
        return recipe.lr * recipe.factor ** sum(step >= round(milestone * steps) for milestone in recipe.milestones)
    return recipe.lr


def radius_factor(recipe: Recipe, step: int, steps: int) -> float:
    """Part of the objective's radius that is in force at update number `step` of `steps`, in (0, 1]."""
    rising = recipe.eps_warmup * steps
    return min(1.0, (step + 1) / rising) if rising > 0 else 1.0


def ball_of(objective: TrainingObjective) -> tuple[float, Any] | None:
    """Radius and norm of the ball that the objective looks at; `None` if there is none."""
    eps = getattr(objective, "eps", None)
    return None if eps is None else (eps, getattr(objective, "norm", "Linf"))


def _one_cycle(recipe: Recipe, step: int, steps: int) -> float:
    warmup = _CYCLE_WARMUP if recipe.warmup is None else recipe.warmup
    start, turn, last = recipe.lr * _CYCLE_START, warmup * steps - 1, steps - 1
    if step <= turn:
        return _along_cosine(start, recipe.lr, step / turn if turn > 0 else 1.0)
    return _along_cosine(recipe.lr, start * _CYCLE_END, (step - turn) / (last - turn))


def _along_cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * part))
