"""Projected ascent on the images of a batch, the inner maximisation of several objectives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..attacks.base import attackable
from ..attacks.geometry import Norm, project, round_down, steepest_step

__all__ = ["ascend", "crafting", "radii", "step_length"]


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


def step_length(step_size: float | None, eps: float, steps: int) -> float:
    """`step_size`, or where that is `None` what the attacks use: the steps together reach 2.5 times the radius."""
    return min(1.0, 2.5 / steps) * eps if step_size is None else step_size


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
