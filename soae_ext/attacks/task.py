"""Bookkeeping of an attack on one batch: iterates, the best of them, who is still attacked, and what it cost."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .geometry import Norm, linf_box, per_sample, project, random_start
from .losses import Objective, is_fooled

__all__ = ["Task"]


class Task:
    """One batch under attack.

    The current iterate of every sample is `current`; `active` lists the samples still attacked. Every method works on
    these alone, and does nothing when there are none. The best iterate of a sample is one that fools the model rather
    than one that does not, and among equals the one of higher loss; the unperturbed image is the first candidate.

    Args and attributes:
        objective: the loss to maximise.
        x, y: images `(B, *shape)` and labels `(B,)`.
        eps: radii `(B,)` in the dtype of `x`.
        index: number of each sample in the whole data set, `(B,)` int64.
        logits: of the unperturbed images, `(B, C)`.
        losses: what the last :meth:`gradient` differentiated, `(A,)`, of the samples that stayed active.
        active: positions of the samples still attacked, `(A,)` int64.
        best: the best iterate so far, like `x`.
        gradient_calls, forward_calls: `(B,)` int64.
        limit: gradients that a sample may cost, for :meth:`retire`; `None` is without limit.
    """

    def __init__(
        self,
        objective: Objective,
        x: Tensor,
        y: Tensor,
        eps: Tensor,
        index: Tensor,
        logits: Tensor,
        *,
        norm: Norm,
        seed: int,
        early_stop: bool,
    ) -> None:
        self.objective, self.x, self.y, self.eps, self.index = objective, x, y, eps, index
        self.norm, self.seed, self.early_stop = norm, seed, early_stop
        self.limit: int | None = None
        self.logits, self.losses = logits, logits.new_zeros(0)
        self._box: tuple[Tensor, Tensor] | None = None
        self.active = torch.arange(len(x), device=x.device)
        self.current = x.clone()
        self.best = x.clone()
        self.best_loss = torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
        self.fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.gradient_calls = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.forward_calls = torch.ones(len(x), dtype=torch.int64, device=x.device)
        self._record(logits, objective.of_logits(logits, y))
        # A ball of radius zero holds one point, which is evaluated.
        self.active = self.active[eps[self.active] > 0]

    @property
    def points(self) -> Tensor:
        """Current iterates of the active samples, `(A, *shape)`; a copy."""
        return self.current.clone() if self._whole else self.current[self.active]

    @property
    def labels(self) -> Tensor:
        """Labels of the active samples, `(A,)`."""
        return self._of_active(self.y)

    @property
    def _whole(self) -> bool:
        return len(self.active) == len(self.x)

    def _of_active(self, values: Tensor) -> Tensor:
        """The rows of the active samples; not a copy where that is all of them, for gathering costs time."""
        return values if self._whole else values[self.active]

    def begin(self, restart: int, random: bool | None) -> None:
        """Put the active samples at the start of a restart; all but the first are always random."""
        rows = self.active
        start = self.x[rows]
        if random or restart > 0:
            start = random_start(start, self.eps[rows], self.norm, self.seed, restart, self.index[rows.cpu()])
        self.current[rows] = start

    def room(self, length: Tensor) -> tuple[Tensor, Tensor]:
        """The least and largest move of each pixel, `(A, *shape)` each, within Linf ball, box and `length` `(A,)`."""
        x, now = self.x[self.active], self.points
        eps, length = per_sample(self.eps[self.active], x), per_sample(length, x)
        low = torch.maximum((x - eps).clamp_min(0) - now, -length).clamp_max(0)
        high = torch.minimum((x + eps).clamp_max(1) - now, length).clamp_min(0)
        return low, high

    def charge(self, gradients: Tensor | int) -> None:
        """Count gradients, `(A,)` or one number, for the active samples."""
        self.gradient_calls[self.active] += gradients

    def retire(self, needed: int) -> None:
        """Attack no further, after a last look, the samples that the limit leaves fewer than `needed` gradients."""
        if self.limit is None:
            return
        spent = self.gradient_calls + needed > self.limit
        if bool(spent[self.active].any()):
            self.evaluate()
            self.active = self.active[~spent[self.active]]

    def evaluate(self) -> None:
        """Evaluate the current iterates with one forward call each; samples that fool the model become inactive."""
        if not self.active.numel():
            return
        with torch.no_grad():
            logits = self.objective.model(self.points)
            losses = self.objective.of_logits(logits, self.labels)
        self.forward_calls[self.active] += 1
        self._record(logits, losses)

    def gradient(self, loss: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
        """Gradients at the current iterates, one gradient call each.

        The iterates are evaluated on the way and samples that fool the model become inactive; the gradients are those
        of the samples that stay active.

        Args:
            loss: (logits `(A, C)`, positions in the batch `(A,)`) -> `(A,)`, to be differentiated instead of the
                objective. The iterates are compared by the objective all the same.
        """
        if not self.active.numel():
            self.losses = self.losses[:0]
            return self.points
        points = self.points.requires_grad_(True)
        logits = self.objective.model(points)
        losses = self.objective.of_logits(logits, self.labels)
        climbed = losses if loss is None else loss(logits, self.active)
        gradient = _slope(climbed, points)
        self.charge(1)
        kept = self._record(logits.detach(), losses.detach())
        self.losses = climbed.detach()[kept]
        return self.or_margin_gradient(gradient[kept])

    def or_margin_gradient(self, gradient: Tensor) -> Tensor:
        """`gradient` `(A, *shape)`, replaced where it is zero or not finite by the gradient of the margin loss.

        Cross-entropy saturates: on a very confident model its gradient underflows to zero, the margin's does not.
        """
        largest = gradient.flatten(1).abs().amax(1)  # keeps NaN and infinity
        useless = ~((largest > 0) & largest.isfinite())
        if not bool(useless.any()):
            return gradient
        gradient = torch.where(gradient.isfinite(), gradient, torch.zeros_like(gradient))
        if self.limit is not None:
            useless &= self.gradient_calls[self.active] < self.limit
        if self.objective.name == "margin" or not bool(useless.any()):
            return gradient
        rows = self.active[useless]
        points = self.current[rows].requires_grad_(True)
        margin = Objective(self.objective.model, "margin", self.objective.targeted)
        replacement = _slope(margin(points, self.y[rows]), points)
        self.gradient_calls[rows] += 1
        gradient[useless] = torch.where(replacement.isfinite(), replacement, torch.zeros_like(replacement))
        return gradient

    def move(self, step: Tensor) -> None:
        """Add `step` `(A, *shape)` to the active samples and project onto ball and box."""
        moved = self.project(self._of_active(self.current) + step)
        if self._whole:
            self.current = moved
        else:
            self.current[self.active] = moved

    def project(self, points: Tensor) -> Tensor:
        """What :func:`soae_ext.attacks.geometry.project` makes of `points` `(A, *shape)` of the active samples."""
        if self.norm != "Linf":
            return project(self._of_active(self.x), points, self._of_active(self.eps), self.norm)
        if self._box is None:
            self._box = linf_box(self.x, self.eps)
        low, high = self._box
        return points.maximum(self._of_active(low)).minimum(self._of_active(high))

    def _record(self, logits: Tensor, losses: Tensor) -> Tensor:
        """Compare the current iterates with the best ones; the mask `(A,)` of the samples that stay active."""
        rows = self.active
        fooled = is_fooled(logits, self.labels, self.objective.targeted)
        losses = losses.double()
        better = (fooled & ~self.fooled[rows]) | ((fooled == self.fooled[rows]) & (losses > self.best_loss[rows]))
        chosen = rows[better]
        self.best[chosen] = self.current[chosen]
        self.best_loss[chosen] = losses[better]
        self.fooled[chosen] = fooled[better]
        kept = ~fooled if self.early_stop else torch.ones_like(fooled)
        self.active = rows[kept]
        return kept


def _slope(losses: Tensor, points: Tensor) -> Tensor:
    """Gradient of each loss at its point; zero where no gradient reaches it, as in a network that quantises."""
    if not losses.requires_grad:
        return torch.zeros_like(points)
    gradient: Tensor
    (gradient,) = torch.autograd.grad(losses.sum(), points, allow_unused=True, materialize_grads=True)
    return gradient
