"""An exponential moving average of a network."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

__all__ = ["MovingAverage"]


class MovingAverage:
    """A copy of a network that follows it: parameters and floating-point buffers are averaged, all others copied.

    After update t (from 1) the average is a <- d a + (1 - d) w with d = min(decay, (1 + t) / (10 + t)), so that the
    random initial parameters are soon forgotten.

    Attributes:
        model: the average, in eval mode, with parameters that need no gradient.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = deepcopy(model).eval().requires_grad_(False)
        # Infinite buffers, such as masks, have no average.
        self._averaged = [each.is_floating_point() and bool(each.isfinite().all()) for each in _tensors(model)]

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Follow `model` after its update number `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        # Each tensor once, also where modules share it.
        pairs = list(zip(_tensors(self.model), _tensors(model), strict=True))
        moving = [pair for pair, averaged in zip(pairs, self._averaged, strict=True) if averaged]
        torch._foreach_lerp_([average for average, _ in moving], [value.detach() for _, value in moving], 1 - decay)
        for (average, value), averaged in zip(pairs, self._averaged, strict=True):
            if not averaged:
                average.copy_(value)


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
