"""Training of image classifiers: plain training, adversarial training and the regularisers it is compared with.

An objective is a value that holds its options: `PGDTraining(eps=8 / 255)(model, images, labels)` gives a scalar loss.
"""

from .asod import ASODTraining
from .base import Cost, StepResult, TrainingObjective
from .fit import fit
from .loop import History
from .pgd import PGDTraining
from .processes import make_fabric
from .recipe import Recipe
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
    "History",
    "PGDTraining",
    "Recipe",
    "Standard",
    "StepResult",
    "TrainingObjective",
    "fit",
    "make_fabric",
]
