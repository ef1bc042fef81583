"""Working for so many minutes."""

from __future__ import annotations

import math
import signal
import time

from ..evaluation import Progress

__all__ = ["Limit", "LimitedProgress", "OutOfTime"]


class OutOfTime(Exception):
    """The minutes that were given are used; what was finished is kept."""


class Limit:
    """A stretch of time, counted from here.

    Args:
        minutes: `None` has no end.
    """

    def __init__(self, minutes: float | None) -> None:
        self._end = math.inf if minutes is None else time.monotonic() + 60 * minutes

    @property
    def over(self) -> bool:
        """Whether it is used."""
        return time.monotonic() >= self._end

    def end_training(self) -> None:
        """Once it is used, ask the training that runs in this process to save and stop, as SIGTERM from outside does.

        Raises the signal: only for use while `fit` runs, whose handler turns it into a request.
        """
        if self.over:
            signal.raise_signal(signal.SIGTERM)


class LimitedProgress(Progress):
    """A bar that ends the work with `OutOfTime` after the batch in which the limit is reached.

    Args:
        limit: `None` where several processes share the batches: they must not end at different ones.
        shown: whether there is a bar.
    """

    def __init__(self, limit: Limit | None, *, shown: bool) -> None:
        super().__init__(shown=shown)
        self._limit, self._left = limit, 0

    def start(self, name: str, images: int) -> None:
        super().start(name, images)
        self._left = images

    def advance(self, images: int) -> None:
        super().advance(images)
        self._left -= images
        if self._left and self._limit is not None and self._limit.over:
            raise OutOfTime
