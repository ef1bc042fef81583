"""Training of image classifiers: plain training, adversarial training and the regularisers it is compared with.

An objective is a value that holds its options: `PGDTraining(eps=8 / 255)(model, images, labels)` gives a scalar loss.
"""

from .asod import ASODTraining
from .base import Cost, StepResult, TrainingObjective
from .pgd import PGDTraining
from .scorpio import SCORPIO
from .soar import SOAR
from .soat import SOAT
from .standard import Standard
from .stn import STN
from .trades import TRADES

__all__ = [
    "SCORPIO",
    "SOAR",
    "SOAT",
    "STN",
    "TRADES",
    "ASODTraining",
    "Cost",
    "PGDTraining",
    "Standard",
    "StepResult",
    "TrainingObjective",
]
