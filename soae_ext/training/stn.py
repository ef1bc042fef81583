"""Stability training with noise (Li, Chen, Wang and Carin, 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch.nn.functional import cross_entropy, softmax

from ..attacks.checks import check_choice, check_positive
from .base import Batch, Cost, StepResult, TrainingObjective

__all__ = ["STN"]

Target = Literal["softmax", "logits"]


@dataclass(frozen=True)
class STN(TrainingObjective):
    """CE(f(x), y) + gamma CE(f(x + N(0, sigma^2)), f(x)): what the network says should not change under noise.

    Li, Chen, Wang and Carin, "Certified adversarial robustness with additive noise" (NeurIPS 2019), section 5, after
    the stability training of Zheng et al. (2016). It defends with noise alone and uses no attack; to train on examples
    of the same authors' attack, see :class:`soae_ext.training.ASODTraining`. They predict by a majority vote of 10
    noisy passes; that is evaluation and not done here. Noisy images are not clipped to [0, 1].

    Args:
        sigma: standard deviation of the noise in pixel units. The authors use 0.7 on MNIST, the default, and 100 / 255
            on CIFAR-10.
        gamma: weight of the second term.
        target: `"softmax"` compares with the probabilities of the clean image and lets gradients reach the parameters
            through them, as the formula says; `"logits"` is what the authors' code does: its target are the clean
            *logits*, -sum_k z_k(x) log softmax(z(x + noise))_k, and a constant to the gradient.
    """

    name: ClassVar[str] = "STN"

    sigma: float = 0.7
    gamma: float = 1.0
    target: Target = "softmax"

    def __post_init__(self) -> None:
        check_positive("sigma", self.sigma, zero=True)
        check_positive("gamma", self.gamma, zero=True)
        check_choice("target", self.target, get_args(Target))

    def cost(self) -> Cost:
        return Cost(crafting=0, update=2)

    def _step(self, batch: Batch) -> StepResult:
        logits, noisy = batch.logits(batch.x), batch.logits(batch.x + batch.noise(self.sigma, 0))
        target = softmax(logits, 1) if self.target == "softmax" else logits.detach()
        loss = cross_entropy(logits, batch.y) + self.gamma * cross_entropy(noisy, target)
        return StepResult(loss, self._spent(batch), clean_correct=batch.correct(logits))
