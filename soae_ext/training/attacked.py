"""Adversarial training on the examples of one of the package's attacks."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..attacks.base import Attack, AttackResult
from ..attacks.checks import check_positive
from ..attacks.geometry import Norm
from .ascent import crafting
from .base import Batch, Cost, StepResult, TrainingObjective

__all__ = ["AttackTraining"]


@dataclass(frozen=True)
class AttackTraining(TrainingObjective):
    """CE(f(x'), y), where x' is what `attack` finds; every image of the batch is replaced.

    The attack makes all of its steps whether or not the model is already fooled: the formula asks for the maximum. So
    its `early_stop` is off, whatever it was, and its `seed` gives way to the seed of the step. Of the iterates it finds
    the one on which it did best is trained on.

    Args:
        eps: radius of the ball in pixel units (images span [0, 1]); may be left out with an `attack`.
        norm: `"Linf"` or what else the attack knows; `None` is that of `attack`, or `"Linf"`.
        attack: how the examples are made; `None` is the default for the ball.
    """

    kind: ClassVar[type[Attack]]

    eps: float = None  # type: ignore[assignment]  # what is left open is decided in __post_init__
    _: KW_ONLY
    norm: Norm = None  # type: ignore[assignment]  # likewise
    attack: Attack = None  # type: ignore[assignment]  # likewise

    def __post_init__(self) -> None:
        if self.eps is not None:
            check_positive("eps", self.eps, zero=True)
        if self.attack is None:
            if self.eps is None:
                raise ValueError(f"eps: {self.name} needs the radius of the ball, or an attack that has one")
            attack = self._default_attack(self.eps, self.norm or "Linf")
        else:
            attack = self._checked_attack()
        object.__setattr__(self, "attack", replace(attack, early_stop=False))
        object.__setattr__(self, "eps", attack.eps)
        object.__setattr__(self, "norm", attack.norm)

    @classmethod
    @abstractmethod
    def _default_attack(cls, eps: float, norm: Norm) -> Attack:
        """The attack where none is given."""

    @abstractmethod
    def _crafting_cost(self) -> int:
        """Gradients that the attack costs each image at most."""

    def cost(self) -> Cost:
        """What a step costs for each image.

        Where the gradient of the cross-entropy vanishes a step of an attack without a budget costs one more, for the
        gradient of the margin that it then follows.
        """
        return Cost(crafting=self._crafting_cost(), update=1)

    def scaled(self, factor: float) -> TrainingObjective:
        step_size = self.attack.step_size and factor * self.attack.step_size
        return type(self)(attack=replace(self.attack, eps=factor * self.eps, step_size=step_size))

    def _checked_attack(self) -> Attack:
        attack = self.attack
        if not isinstance(attack, self.kind):
            raise TypeError(f"attack: {self.name} trains on {self.kind.__name__}, got {type(attack).__name__}")
        if isinstance(attack.eps, Tensor):
            raise ValueError("eps: training has one radius for all images, the attack's is a tensor; give a float")
        if attack.targeted:
            raise ValueError("attack: the labels are what is learnt, not targets; leave targeted=False")
        if self.eps is not None and self.eps != attack.eps:
            raise ValueError(f"eps: {self.eps}, but the attack's is {attack.eps}; give one of them")
        if self.norm is not None and self.norm != attack.norm:
            raise ValueError(f"norm: '{self.norm}', but the attack's is '{attack.norm}'; give one of them")
        return attack

    def _step(self, batch: Batch) -> StepResult:
        with crafting(batch.model):
            found = self._find(batch)
        logits = batch.logits(found.x_adv)
        return StepResult(
            cross_entropy(logits, batch.y),
            found.gradient_calls + 1,
            adversarial_correct=batch.correct(logits),
            krylov_dims=found.krylov_dims,
        )

    def _find(self, batch: Batch) -> AttackResult:
        try:
            return replace(self.attack, seed=batch.seed)(batch.model, batch.x, batch.y, index=batch.index)
        except ValueError as error:
            broken = [name for name, p in batch.model.named_parameters() if not bool(p.isfinite().all())]
            with torch.no_grad():
                sound = not broken and bool(batch.model(batch.x).isfinite().all())
            if sound:
                raise
            what = f"its parameter '{broken[0]}' is" if broken else "its logits are"
            raise FloatingPointError(f"model: {what} not finite any more") from error
