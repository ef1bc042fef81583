"""Shares of correct predictions, and what their sampling error allows to say."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Accuracy", "paired_difference", "wilson_interval"]

# Quantile of the standard normal distribution for two-sided 95 % intervals.
_Z95 = 1.959963984540054


def wilson_interval(successes: int, trials: int, z: float = _Z95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson, 1927); 95 % by default.

    Args:
        successes: between 0 and `trials`.
        trials: at least 1.
        z: quantile of the standard normal distribution.

    Raises:
        ValueError: the counts are out of range.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"successes: must be between 0 and trials >= 1, got {successes} of {trials}")
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    scale = 1 + z * z / trials
    # At 0 and at all successes the bound is exactly 0 or 1; rounding must not pass it.
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


@dataclass(frozen=True)
class Accuracy:
    """Correct predictions among `trials`, with the 95 % interval of the share."""

    correct: int
    trials: int

    @property
    def share(self) -> float:
        return self.correct / self.trials

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.correct, self.trials)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:5.1f} % ({100 * low:.1f} to {100 * high:.1f})"

    def as_json(self) -> dict[str, object]:
        return {"accuracy": self.share, "correct": self.correct, "interval_95": list(self.interval)}


def paired_difference(first: Tensor, second: Tensor, z: float = _Z95) -> tuple[float, float, float]:
    """Difference of two shares measured on the same images, and its 95 % interval.

    The interval of Agresti and Min (2005) for matched pairs: half a pair is added to each of the four cells of the
    2x2 table, then Wald's interval is taken. Only the images on which the two disagree carry information.

    Args:
        first, second: `(n,)` bool, n >= 1: the image was classified correctly under the first, the second attack.
        z: quantile of the standard normal distribution.

    Returns:
        share(first) - share(second), and the lower and the upper bound.

    Raises:
        ValueError: the two differ in shape or are empty.
    """
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"first: must match second, (n,) with n >= 1; got {tuple(first.shape)}, {tuple(second.shape)}")
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    n, plus, minus = len(first) + 2.0, only_first + 0.5, only_second + 0.5
    centre = (plus - minus) / n
    spread = z * math.sqrt(plus + minus - (plus - minus) ** 2 / n) / n
    return (only_first - only_second) / len(first), max(-1.0, centre - spread), min(1.0, centre + spread)
