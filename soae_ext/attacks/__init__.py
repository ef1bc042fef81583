"""Attacks on image classifiers: a second-order one and the baselines that it is compared with.

An attack is a value that holds its options: `SOAE(eps=8 / 255)(model, images, labels)` gives an `AttackResult`.
"""

from .apgd import APGD
from .asod import ASOD
from .autoattack import AutoAttack
from .base import Attack, AttackResult
from .fgsm import FGSM
from .pgd import PGD
from .soae import SOAE

__all__ = ["APGD", "ASOD", "FGSM", "PGD", "SOAE", "Attack", "AttackResult", "AutoAttack"]
