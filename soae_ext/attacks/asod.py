"""The attack on noisy images of Li, Chen, Wang and Carin (2018), called ASOD where second-order attacks are compared.

Its derivation is second-order (where the gradient vanishes the top eigenvector of the Hessian raises the loss most);
what its authors run is gradient ascent on the loss averaged over Gaussian noise, without a Hessian.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Attack
from .checks import check_count, check_positive
from .geometry import gaussian_noise, per_sample, steepest_step, unit
from .losses import LossName
from .task import Task

__all__ = ["ASOD"]

# How far the strongest wrong class is pushed above the label by the margin loss of the authors' code.
_CONFIDENCE = 50.0


@dataclass(frozen=True)
class ASOD(Attack):
    """Steps along G = the sum of `samples` gradients at x + N(0, sigma^2), as in the authors' code.

    Linf: cross-entropy, x <- x + (eps / 10) sign(G), clipped to x_0 +- eps. L2: the margin loss
    -relu(z_y - max_{i != y} z_i + 50), x <- x + (2.5 eps / steps) G / |G|, projected onto the ball. Noisy images and
    the iterates themselves may leave [0, 1]; only what is evaluated is clipped to it.

    Three things differ. The random numbers are functions of (seed, sample index, restart, step), one stream for each
    sample, and all draws are independent; the authors' fix the seed of TensorFlow's operations to 42, the same for each
    of the draws of a run. The authors' code returns the last iterate; here every iterate, clipped to [0, 1], is a
    candidate for `x_adv`, which costs one forward call per step, moves no iterate, and lets fooled samples stop
    costing. And where G = 0, where theirs does not move, the step follows the gradient of the margin at the iterate.

    Args, beyond those of :class:`soae_ext.attacks.base.Attack`:
        norm: `"Linf"` or `"L2"`.
        steps: 20 by default. Each costs `samples` gradients.
        step_size: `None` is eps / 10 in Linf and 2.5 * eps / steps in L2.
        loss: `None`, the default, is `"ce"` in Linf and `"margin"` in L2, as the authors choose.
        sigma: standard deviation of the noise in pixel units. The authors use 0.7 on MNIST, the default, and 100 / 255
            on CIFAR-10.
        samples: gradients in G, 10 by default.
    """

    norms: ClassVar[tuple[str, ...]] = ("Linf", "L2")

    steps: int = 20
    loss: LossName = None  # type: ignore[assignment]  # replaced below by what fits the norm
    sigma: float = 0.7
    samples: int = 10

    def __post_init__(self) -> None:
        if self.loss is None:
            object.__setattr__(self, "loss", "ce" if self.norm == "Linf" else "margin")
        super().__post_init__()
        check_positive("sigma", self.sigma, zero=True)
        check_count("samples", self.samples, 1)

    def _run(self, task: Task) -> None:
        for restart in range(self.restarts):
            task.begin(restart, self.random_start)
            if restart > 0 or self.random_start:
                task.evaluate()
            # The iterates, which unlike the candidates may lie outside of [0, 1].
            iterates = task.current.clone()
            for step in range(self.steps):
                rows = task.active
                if not rows.numel():
                    return
                noise = gaussian_noise(
                    task.points, self.sigma, self.seed, (restart, step + 1), task.index[rows.cpu()], self.samples
                )
                gradient = task.or_margin_gradient(self._noisy_gradient(task, iterates[rows], noise))
                moved = iterates[rows] + self._lengths(task) * steepest_step(gradient, self.norm)
                iterates[rows] = self._onto_ball(task.x[rows], moved, task.eps[rows])
                task.current[rows] = task.project(iterates[rows])
                task.evaluate()

    def _noisy_gradient(self, task: Task, iterates: Tensor, noise: Tensor) -> Tensor:
        """The sum over the noise `(samples, A, *shape)` of the gradients, which it charges."""
        total = torch.zeros_like(iterates)
        for draw in noise:
            points = (iterates + draw).requires_grad_(True)
            losses = task.objective(points, task.labels)
            if self.loss == "margin":
                losses = -torch.relu(_CONFIDENCE - losses)
            (gradient,) = torch.autograd.grad(losses.sum(), points)
            total += gradient
        task.charge(self.samples)
        return total

    def _onto_ball(self, x: Tensor, moved: Tensor, eps: Tensor) -> Tensor:
        radius = per_sample(eps, x)
        if self.norm == "Linf":
            return torch.minimum(torch.maximum(moved, x - radius), x + radius)
        perturbation = moved - x
        length = per_sample(torch.linalg.vector_norm(perturbation.flatten(1), dim=1), x)
        return torch.where(length > radius, x + radius * unit(perturbation), moved)

    def _lengths(self, task: Task) -> Tensor:
        if self.step_size is not None:
            return super()._lengths(task)
        return per_sample(task.eps[task.active] * (0.1 if self.norm == "Linf" else 2.5 / self.steps), task.x)
