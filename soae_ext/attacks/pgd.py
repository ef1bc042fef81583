"""Projected gradient descent (Madry et al., 2018)."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Attack
from .geometry import steepest_step
from .task import Task

__all__ = ["PGD"]


@dataclass(frozen=True)
class PGD(Attack):
    """`steps` steepest steps along the gradient, each followed by the projection onto ball and box.

    Linf: x <- P(x + a * sign(g)); L2: x <- P(x + a * g / |g|). One gradient per step. Options and errors as in
    :class:`soae_ext.attacks.base.Attack`; 20 steps from a random start by default.
    """

    steps: int = 20
    random_start: bool = True

    def _run(self, task: Task) -> None:
        for restart in range(self.restarts):
            task.begin(restart, self.random_start)
            for _ in range(self.steps):
                gradient = task.gradient()
                task.move(self._lengths(task) * steepest_step(gradient, self.norm, task.points))
            task.evaluate()
