"""Training of image classifiers: Standard, PGDTraining and the other objectives, and the loop that minimises them.

An objective is a value that holds its options: `PGDTraining(eps=8 / 255)(model, images, labels)` gives a scalar loss.
"""

from .base import Cost, StepResult, TrainingObjective
from .pgd import PGDTraining
from .standard import Standard

__all__ = [
    "Cost",
    "PGDTraining",
    "Standard",
    "StepResult",
    "TrainingObjective",
]
