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

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Follow `model` after its update number `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, values = self.model.state_dict(), model.state_dict()
        floating = [name for name, value in values.items() if value.is_floating_point()]
        torch._foreach_lerp_([averages[name] for name in floating], [values[name] for name in floating], 1 - decay)
        for name in values.keys() - set(floating):
            averages[name].copy_(values[name])
