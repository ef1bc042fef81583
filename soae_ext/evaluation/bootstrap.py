"""Means with bootstrap intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["MeanInterval", "bootstrap_mean"]

Floats = npt.NDArray[np.float64]

# Elements of one block of resamples: 32 MiB of indices.
_BLOCK = 4_000_000


@dataclass(frozen=True)
class MeanInterval:
    """Mean of one number per image, with its 95 % interval.

    Attributes:
        mean: NaN where there is no image.
        low, high: percentiles 2.5 and 97.5 of the resampled means.
        count: images that the number is defined for.
    """

    mean: float
    low: float
    high: float
    count: int

    def as_json(self) -> dict[str, object]:
        """Plain numbers, `None` where there is no image."""
        known = self.count > 0
        return {
            "mean": self.mean if known else None,
            "interval_95": [self.low, self.high] if known else None,
            "count": self.count,
        }


def bootstrap_mean(values: npt.ArrayLike, resamples: int = 2000, seed: int = 0) -> MeanInterval:
    """Mean and 95 % percentile-bootstrap interval (Efron and Tibshirani, 1993, section 13.3) of the finite `values`.

    Args:
        values: `(n,)`; NaN marks an image that the number is not defined for.
        resamples: drawings with replacement.
        seed: of the drawings; equal values give equal intervals.
    """
    array: Floats = np.asarray(values, dtype=np.float64)
    array = array[np.isfinite(array)]
    count = len(array)
    if count == 0:
        return MeanInterval(math.nan, math.nan, math.nan, 0)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, _BLOCK // count)
    for start in range(0, resamples, rows):
        stop = min(resamples, start + rows)
        means[start:stop] = array[generator.integers(0, count, (stop - start, count))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return MeanInterval(float(array.mean()), float(low), float(high), count)
