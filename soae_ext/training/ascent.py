"""Projected ascent on the images of a batch, the inner maximisation of several objectives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..attacks.base import attackable
from ..attacks.checks import check_count, check_positive
from ..attacks.geometry import Norm, project, round_down, steepest_step
from .base import BallObjective, TrainingObjective

__all__ = ["AscentObjective", "ascend", "crafting", "radii"]


@contextmanager
def crafting(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, its parameters without gradients, autograd on; everything as it was afterwards.

    No parameter that needs a gradient is seen by a forward pass here, so that autocast caches no copy of one that would
    keep the gradient of the loss from reaching it.
    """
    with attackable(model), torch.inference_mode(False), torch.enable_grad():
        yield


def radii(eps: float, x: Tensor) -> Tensor:
    """`eps` for each image, `(B,)` in the dtype of `x`, rounded down."""
    return round_down(torch.full((len(x),), eps, dtype=torch.float64), x.dtype).to(x.device)


def ascend(
    losses: Callable[[Tensor], Tensor],
    x: Tensor,
    start: Tensor,
    *,
    eps: float,
    norm: Norm,
    step_size: float,
    steps: int,
) -> Tensor:
    """The last of `steps` iterates x' <- P(x' + a s), where s is the steepest unit step and P projects on ball and box.

    One gradient per step. All steps are made whether or not the model is already fooled: the formulas that are trained
    on ask for the maximum. Call it inside :func:`crafting`.

    Args:
        losses: images `(B, *shape)` -> losses `(B,)`, to be maximised.
        x: centres of the balls, `(B, *shape)` in [0, 1].
        start: first iterates, `(B, *shape)`.
        eps, norm, step_size: of ball and steps, in pixel units.
    """
    radius, points = radii(eps, x), start
    for _ in range(steps):
        points = points.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(losses(points).sum(), points)
        points = project(x, points.detach() + step_size * steepest_step(gradient, norm), radius, norm)
    return points.detach()


@dataclass(frozen=True, kw_only=True)
class AscentObjective(BallObjective):
    """Options of the objectives whose examples are made by :func:`ascend`.

    Args, beyond those of :class:`soae_ext.training.base.BallObjective`:
        steps: of the ascent; each costs a gradient.
        step_size: length of a step in `norm`, in pixel units; `None` is min(1, 2.5 / steps) * eps, as in the attacks.
    """

    steps: int = 10
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps, 1)
        if self.step_size is not None:
            check_positive("step_size", self.step_size)

    def scaled(self, factor: float) -> TrainingObjective:
        return replace(self, eps=factor * self.eps, step_size=self.step_size and factor * self.step_size)

    def _ascend(self, losses: Callable[[Tensor], Tensor], x: Tensor, start: Tensor) -> Tensor:
        length = min(1.0, 2.5 / self.steps) * self.eps if self.step_size is None else self.step_size
        return ascend(losses, x, start, eps=self.eps, norm=self.norm, step_size=length, steps=self.steps)
