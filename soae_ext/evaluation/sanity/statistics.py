"""When two attacks differ by more than chance on the same images."""

from __future__ import annotations

from math import exp, fsum, lgamma, log, log1p
from typing import NamedTuple

from torch import Tensor

__all__ = ["LEVEL", "Paired", "binomial_tail", "paired", "sign_test"]

# Chance of a false alarm that one check accepts.
LEVEL = 0.01


def binomial_tail(successes: int, trials: int, chance: float) -> float:
    """P(X >= successes) for X ~ Binomial(trials, chance): the exact one-sided binomial test.

    Raises:
        ValueError: not 0 <= successes <= trials, or not 0 < chance < 1.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes: must be between 0 and trials, got {successes} of {trials}")
    if not 0 < chance < 1:
        raise ValueError(f"chance: must lie between 0 and 1, got {chance}")

    def probability(k: int) -> float:
        ways = lgamma(trials + 1) - lgamma(k + 1) - lgamma(trials - k + 1)
        return exp(ways + k * log(chance) + (trials - k) * log1p(-chance))

    return min(1.0, fsum(probability(k) for k in range(successes, trials + 1)))


def sign_test(more: int, fewer: int) -> float:
    """The exact one-sided sign test, McNemar's test for pairs.

    The probability, if an image on which two attacks differ is equally likely to be broken by either, that the one
    breaks at least `more` of these images alone.

    Raises:
        ValueError: a count is negative.
    """
    if more < 0 or fewer < 0:
        raise ValueError(f"more: counts must not be negative, got {more} and {fewer}")
    return binomial_tail(more, more + fewer, 0.5)


class Paired(NamedTuple):
    """Two attacks on the same n images.

    Attributes:
        images: n.
        first, second: images that each fools.
        only_first, only_second: images that it alone fools.
    """

    images: int
    first: int
    second: int
    only_first: int
    only_second: int

    @property
    def gap(self) -> float:
        """How many more the second fools, in points (percent of the images)."""
        return 100 * (self.second - self.first) / max(self.images, 1)

    @property
    def p(self) -> float:
        """:func:`sign_test` of the second fooling more than the first."""
        return sign_test(self.only_second, self.only_first)

    def second_finds_more(self, points: float = 0.0, level: float = LEVEL) -> bool:
        """Whether the second fools more than `points` percent more images, and more than chance allows."""
        return self.gap > points and self.p < level

    def second_adds(self, points: float, level: float = LEVEL) -> bool:
        """Whether more than `points` percent of the images fall to the second alone, and more than chance allows."""
        return binomial_tail(self.only_second, self.images, points / 100) < level

    def __str__(self) -> str:
        return (
            f"{self.second} of {self.images} against {self.first} "
            f"({self.only_second} and {self.only_first} by one alone; p = {self.p:.2g})"
        )


def paired(first: Tensor, second: Tensor) -> Paired:
    """Compare which images `(n,)` bool two attacks fool.

    Raises:
        ValueError: the two differ in shape.
    """
    if first.shape != second.shape:
        raise ValueError(f"first: must match second, got {tuple(first.shape)} and {tuple(second.shape)}")
    return Paired(
        images=len(first),
        first=int(first.sum()),
        second=int(second.sum()),
        only_first=int((first & ~second).sum()),
        only_second=int((~first & second).sum()),
    )
