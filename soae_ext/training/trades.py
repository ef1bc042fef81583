"""TRADES, the trade-off between accuracy and robustness (Zhang et al., 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from ..attacks.checks import check_positive
from .ascent import AscentObjective, crafting
from .base import Batch, Cost, StepResult

__all__ = ["TRADES"]

# Standard deviation of the noise that the ascent starts from: the divergence has no slope at the image itself.
_NOISE = 1e-3


@dataclass(frozen=True, kw_only=True)
class TRADES(AscentObjective):
    """CE(f(x), y) + beta KL(f(x) || f(x')), where x' maximises the divergence KL(f(x) || f(x')) in the ball.

    The maximum is sought by `steps` steps of projected gradient ascent from x + 0.001 N(0, 1); the last iterate is used
    (Zhang et al., 2019, eq. 5 and algorithm 1, as in the authors' `trades.py`: crafted in eval mode, the divergence
    summed over classes and averaged over the batch, gradients reach the parameters through both of its arguments).
    The authors' values: CIFAR-10 eps 0.031, step 0.007, 10 steps, beta 6; MNIST eps 0.3, step 0.01, 40 steps, beta 1.
    In an L2 ball they climb with an optimiser of step 2 eps / steps; here the steps are those of Linf, along g / |g|.
    Under autocast the first of them, where both outputs agree to all digits of half precision, are close to random.

    Args, beyond those of :class:`soae_ext.training.ascent.AscentObjective`:
        beta: weight of the divergence.
    """

    name: ClassVar[str] = "TRADES"

    beta: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("beta", self.beta, zero=True)

    def cost(self) -> Cost:
        return Cost(crafting=self.steps, update=2)

    def _step(self, batch: Batch) -> StepResult:
        x = batch.x
        with crafting(batch.model):
            with torch.no_grad():
                anchor = batch.logits(x)
            start = x + batch.noise(_NOISE, 0)
            perturbed = self._ascend(lambda points: _divergence(anchor, batch.logits(points)), x, start)
        logits, perturbed_logits = batch.logits(x), batch.logits(perturbed)
        loss = cross_entropy(logits, batch.y) + self.beta * _divergence(logits, perturbed_logits).mean()
        return StepResult(
            loss,
            self._spent(batch),
            clean_correct=batch.correct(logits),
            adversarial_correct=batch.correct(perturbed_logits),
        )


def _divergence(logits: Tensor, perturbed: Tensor) -> Tensor:
    """KL(softmax of the first || softmax of the second), `(B,)`."""
    return kl_div(log_softmax(perturbed, 1), log_softmax(logits, 1), reduction="none", log_target=True).sum(1)
