"""Adversarial training on the examples of ASOD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..attacks.asod import ASOD
from ..attacks.geometry import Norm
from .attacked import AttackTraining

__all__ = ["ASODTraining"]


@dataclass(frozen=True)
class ASODTraining(AttackTraining):
    """CE(f(x'), y) on the examples x' of :class:`soae_ext.attacks.ASOD`.

    Comparisons of second-order attacks name a network "STN trained with ASOD". Stability training with noise uses no
    attack (see :class:`soae_ext.training.STN`), so that this can only mean adversarial training on ASOD's examples,
    which is what this does.

    Args: as in :class:`soae_ext.training.attacked.AttackTraining`. The default attack is `ASOD(eps)` with 20 steps of
    10 gradients, as its authors attack: 200 gradients for each image. `attack=ASOD(eps, steps=7, samples=1)` costs what
    PGD training does.
    """

    name: ClassVar[str] = "ASOD"
    kind: ClassVar[type[ASOD]] = ASOD

    attack: ASOD = None  # type: ignore[assignment]  # decided in __post_init__

    @classmethod
    def _default_attack(cls, eps: float, norm: Norm) -> ASOD:
        return ASOD(eps, norm=norm)

    def _crafting_cost(self) -> int:
        return self.attack.restarts * self.attack.steps * self.attack.samples
