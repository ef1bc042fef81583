"""The fast gradient sign method (Goodfellow et al., 2015)."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Attack
from .geometry import steepest_step
from .task import Task

__all__ = ["FGSM"]


@dataclass(frozen=True)
class FGSM(Attack):
    """One step of length eps along the gradient: x + eps * sign(g), in an L2 ball x + eps * g / |g|.

    With `random_start=True` and `step_size=1.25 * eps` it is the attack of Wong et al. (2020). One gradient per image
    and restart. Options and errors as in :class:`soae_ext.attacks.base.Attack`; `steps` must be 1.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps != 1:
            raise ValueError(f"steps: FGSM makes one step, got {self.steps}; use PGD for more")

    def _run(self, task: Task) -> None:
        for restart in range(self.restarts):
            task.begin(restart, self.random_start)
            gradient = task.gradient()
            task.move(self._lengths(task) * steepest_step(gradient, self.norm, task.points))
            task.evaluate()
