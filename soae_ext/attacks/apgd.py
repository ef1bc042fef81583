"""Auto-PGD (Croce and Hein, 2020): gradient ascent with momentum that finds its step size by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Attack
from .checks import check_count
from .geometry import per_sample, project, random_perturbation, steepest_step, unit
from .losses import cross_entropy
from .task import Task

__all__ = ["APGD"]

_MOMENTUM = 0.25
# A step size is kept as long as the loss rose in more than this part of the steps since the last check.
_RISING = 0.75

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class APGD(Attack):
    """z = P(x_k + a s(g)), x_{k+1} = P(x_k + 0.75 (z - x_k) + 0.25 (x_k - x_{k-1})), with a = 2 eps at first.

    The step size of a sample is halved, and the sample goes back to its best iterate, at the end of a window of steps
    in which its loss did not rise in more than 3/4 of them, or in which its best loss did not rise though the step size
    was not halved at the window's start. The windows are 0.22 steps long at first and shrink by 0.03 steps to 0.06.

    As in the authors' code the random start lies on the surface of the ball, and the first step counts as a rise where
    the loss after it is positive (in the paper: where it is above the loss at the start). Differently from it a step
    follows the gradient of the margin where the gradient is zero, and the last iterate costs a forward call instead of
    a gradient: one gradient per step.

    Args, beyond those of :class:`soae_ext.attacks.base.Attack`:
        norm: `"Linf"` or `"L2"`.
        steps: 100 by default.
        step_size: `None` is 2 * eps; the first one.
        random_start: True by default.
        targets: `None`, or a number k: the attack is run against each of the k likeliest other classes t in turn, on
            `"dlr"` = (z_t - z_y) / (z_1 - (z_3 + z_4) / 2), `"ce"` = -cross-entropy(z, t) or `"margin"` = z_t - z_y.
            `APGD(loss="dlr", targets=9)` is the APGD-T of AutoAttack. An image counts as fooled, and iterates are
            compared, as without `targets`.
    """

    norms: ClassVar[tuple[str, ...]] = ("Linf", "L2")

    steps: int = 100
    random_start: bool = True
    targets: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets is not None:
            check_count("targets", self.targets, 1)
            if self.targeted:
                raise ValueError("targets: belong to an untargeted attack; leave them out with targeted=True")

    def _check_fit(self, x: Tensor, classes: int) -> None:
        if self.targets is None:
            return
        if self.targets >= classes:
            raise ValueError(f"targets: the model has {classes - 1} other classes, got {self.targets}")
        if self.loss == "dlr" and classes < 4:
            raise ValueError(f"loss: 'dlr' with targets needs 4 classes, the model has {classes}; use 'margin'")

    def _run(self, task: Task) -> None:
        run = 0
        for loss in self._losses(task):
            for restart in range(self.restarts):
                self._begin(task, run, self.random_start or restart > 0)
                _Climb(task, loss, self.steps, self.step_size).run()
                run += 1

    def _losses(self, task: Task) -> Iterator[Loss | None]:
        """What is climbed: the task's own objective, or one loss for each target class."""
        if self.targets is None:
            yield None
            return
        others = task.logits.scatter(1, task.y[:, None], -torch.inf)
        for target in others.topk(self.targets, dim=1).indices.T:
            yield self._towards(task.y, target)

    def _towards(self, y: Tensor, target: Tensor) -> Loss:
        """The loss that puts the classes `target` `(B,)` above the labels `y` `(B,)`."""

        def loss(logits: Tensor, rows: Tensor) -> Tensor:
            wanted = target[rows]
            logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
            if self.loss == "ce":
                return -cross_entropy(logits, wanted)
            lead = (logits.gather(1, wanted[:, None]) - logits.gather(1, y[rows][:, None]))[:, 0]
            if self.loss == "margin":
                return lead
            ranked = logits.topk(4, dim=1).values
            return lead / (ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2 + 1e-12)

        return loss

    def _begin(self, task: Task, run: int, random: bool) -> None:
        """Put the active samples at the start of a run: their image, or a random point on the surface of the ball."""
        rows = task.active
        start, eps = task.x[rows], task.eps[rows]
        if random:
            ones = torch.ones_like(eps)
            way = random_perturbation(start, ones, self.norm, self.seed, (run,), task.index[rows.cpu()])
            largest = way.flatten(1).abs().amax(1)
            way = way / per_sample(largest, way) if self.norm == "Linf" else unit(way)
            start = project(start, start + per_sample(eps, way) * way, eps, self.norm)
        task.current[rows] = start


class _Climb:
    """One run of the algorithm on the active samples of a task; every tensor has a row for each sample of the batch."""

    def __init__(self, task: Task, loss: Loss | None, steps: int, step_size: float | None) -> None:
        self.task, self.loss, self.steps = task, loss, steps
        self.step = 2 * task.eps if step_size is None else torch.full_like(task.eps, step_size)
        self.previous, self.best = task.current.clone(), task.current.clone()
        self.gradient, self.best_gradient = torch.zeros_like(task.x), torch.zeros_like(task.x)
        self.last_loss, self.best_loss = (task.logits.new_full((len(task.x),), -torch.inf) for _ in range(2))
        self.rises = torch.zeros_like(task.y)
        self.checked_loss = self.best_loss
        self.halved = torch.ones_like(task.fooled)

    def run(self) -> None:
        window = max(int(0.22 * self.steps), 1)
        since = 0
        self._look()
        self.rises.zero_()
        self.last_loss.zero_()
        self.checked_loss = self.best_loss.clone()
        for step in range(self.steps):
            if not self.task.active.numel():
                return
            self._move(_MOMENTUM if step else 0.0)
            if step == self.steps - 1:
                self.task.evaluate()
                return
            self._look()
            since += 1
            if since == window:
                self._check(window)
                window, since = max(window - max(int(0.03 * self.steps), 1), max(int(0.06 * self.steps), 1)), 0

    def _look(self) -> None:
        """Gradient and loss at the current iterates; keep the best."""
        gradient = self.task.gradient(self.loss)
        rows, losses = self.task.active, self.task.losses.to(self.best_loss.dtype)
        self.gradient[rows] = gradient
        self.rises[rows] += losses > self.last_loss[rows]
        self.last_loss[rows] = losses
        better = losses > self.best_loss[rows]
        chosen = rows[better]
        self.best[chosen], self.best_gradient[chosen] = self.task.current[chosen], gradient[better]
        self.best_loss[chosen] = losses[better]

    def _move(self, momentum: float) -> None:
        task, rows = self.task, self.task.active
        here = task.current[rows]
        velocity = here - self.previous[rows]
        self.previous[rows] = here
        step = per_sample(self.step[rows], here) * steepest_step(self.gradient[rows], task.norm)
        aim = task.project(here + step)
        task.current[rows] = task.project(here + (1 - momentum) * (aim - here) + momentum * velocity)

    def _check(self, window: int) -> None:
        """Halve the step size of the samples that no longer rise, and send them back to their best iterate."""
        stale = ~self.halved & (self.checked_loss >= self.best_loss)
        self.halved = (self.rises <= _RISING * window) | stale
        self.checked_loss = self.best_loss.clone()
        self.rises.zero_()
        rows = self.task.active[self.halved[self.task.active]]
        self.step[rows] /= 2
        self.task.current[rows], self.gradient[rows] = self.best[rows], self.best_gradient[rows]
