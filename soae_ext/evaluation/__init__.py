"""Running attacks on a data set, and what is reported of them."""

from .accuracy import Accuracy, paired_difference, wilson_interval
from .measure import Clean, Measurement, WorstCase, worst_case
from .progress import Progress
from .runner import Precision, Runner
from .shard import FailedElsewhere, Shard
from .store import Store
from .table import table

__all__ = [
    "Accuracy",
    "Clean",
    "FailedElsewhere",
    "Measurement",
    "Precision",
    "Progress",
    "Runner",
    "Shard",
    "Store",
    "WorstCase",
    "paired_difference",
    "table",
    "wilson_interval",
    "worst_case",
]
