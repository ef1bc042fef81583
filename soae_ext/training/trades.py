"""TRADES, the trade-off between accuracy and robustness (Zhang et al., 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from ..attacks.checks import check_count, check_positive
from ..attacks.geometry import gaussian_noise
from .ascent import ascend, crafting, step_length
from .base import BallObjective, Cost, StepResult, is_correct, logits_of

__all__ = ["TRADES"]

# Standard deviation of the noise that the ascent starts from: the divergence has no slope at the image itself.
_NOISE = 1e-3


@dataclass(frozen=True)
class TRADES(BallObjective):
    """CE(f(x), y) + beta KL(f(x) || f(x')), where x' maximises the divergence KL(f(x) || f(x')) in the ball.

    The maximum is sought by `steps` steps of projected gradient ascent from x + 0.001 N(0, 1); the last iterate is used
    (Zhang et al., 2019, eq. 5 and algorithm 1, as in the authors' `trades.py`: crafted in eval mode, the divergence
    summed over classes and averaged over the batch, gradients reach the parameters through both of its arguments).
    The authors' values: CIFAR-10 eps 0.031, step 0.007, 10 steps, beta 6; MNIST eps 0.3, step 0.01, 40 steps, beta 1.
    Under autocast the first steps, where both networks agree to all digits of half precision, are close to random.
    In an L2 ball the authors climb with an optimiser of step 2 eps / steps; here the steps are as in Linf, x' + a g / |g|.

    Args, beyond those of :class:`soae_ext.training.base.BallObjective`:
        beta: weight of the divergence.
        steps: 10 by default. Each costs a gradient, the update two more.
        step_size: in pixel units; `None` is min(1, 2.5 / steps) * eps.
    """

    name: ClassVar[str] = "TRADES"

    beta: float = 6.0
    steps: int = 10
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("beta", self.beta, zero=True)
        check_count("steps", self.steps, 1)
        if self.step_size is not None:
            check_positive("step_size", self.step_size)

    def cost(self) -> Cost:
        return Cost(crafting=self.steps, update=2)

    def _step(self, model: nn.Module, x: Tensor, y: Tensor, seed: int, index: Tensor) -> StepResult:
        with crafting(model):
            with torch.no_grad():
                clean = log_softmax(logits_of(model, x, y), 1)
            perturbed = ascend(
                lambda points: _divergence(clean, log_softmax(logits_of(model, points, y), 1)),
                x,
                x + gaussian_noise(x, _NOISE, seed, (0,), index)[0],
                eps=self.eps,
                norm=self.norm,
                step_size=step_length(self.step_size, self.eps, self.steps),
                steps=self.steps,
            )
        logits, perturbed_logits = logits_of(model, x, y), logits_of(model, perturbed, y)
        divergence = _divergence(log_softmax(logits, 1), log_softmax(perturbed_logits, 1)).mean()
        return StepResult(
            cross_entropy(logits, y) + self.beta * divergence,
            self._spent(x),
            clean_correct=is_correct(logits, y),
            adversarial_correct=is_correct(perturbed_logits, y),
        )


def _divergence(clean: Tensor, perturbed: Tensor) -> Tensor:
    """KL(p || q) `(B,)` of distributions given by their logarithms."""
    return kl_div(perturbed, clean, reduction="none", log_target=True).sum(1)
