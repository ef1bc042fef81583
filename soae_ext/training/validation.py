"""Clean and robust accuracy of a network in training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from ..attacks import PGD, Attack
from ..attacks.base import attackable
from ..data import ImageData
from .base import TrainingObjective
from .processes import Processes
from .schedule import ball_of

__all__ = ["default_attack", "validate"]

_STEPS = 10


def default_attack(objective: TrainingObjective) -> Attack | None:
    """PGD with 10 steps in the ball of the objective; `None` if it has no ball."""
    ball = ball_of(objective)
    return None if ball is None else PGD(ball[0], norm=ball[1], steps=_STEPS)


def validate(
    model: nn.Module,
    data: ImageData,
    attack: Attack | None,
    processes: Processes,
    *,
    batch_size: int,
    stopped: Callable[[], bool],
) -> tuple[float, float | None] | None:
    """Clean and robust accuracy; `None` if the run was asked to stop meanwhile.

    The batches are dealt to the processes, which meet after each. Every process must call this.

    Args:
        model: on the device; evaluated in eval mode, and left in the mode that it came in.
        data: on the CPU.
        attack: `None` measures no robust accuracy.
        processes: to share the work.
        batch_size: images at once.
        stopped: whether this process was asked to stop.

    Raises:
        FloatingPointError: the network has diverged.
        ValueError, TypeError: the attack cannot be run on this network or these images.
    """
    shard = processes.shard
    parts = [slice(start, start + batch_size) for start in range(0, len(data), batch_size)]
    clean = robust = 0
    count = partial(_correct, model, data, parts, attack, processes.device)
    for first in range(0, len(parts), shard.world):
        with attackable(model), processes.fabric.autocast():
            pairs = processes.agree(partial(count, first + shard.rank))
        clean += sum(pair[0] for pair in pairs)
        robust += sum(pair[1] for pair in pairs)
        if any(processes.agree(stopped)):
            return None
    return clean / len(data), robust / len(data) if attack else None


def _correct(
    model: nn.Module, data: ImageData, parts: list[slice], attack: Attack | None, device: torch.device, number: int
) -> tuple[int, int]:
    """How many images of a part, if there is one of that number, are classified as their labels; how many attacked."""
    if number >= len(parts):
        return 0, 0
    x, y = data.images[parts[number]].to(device), data.labels[parts[number]].to(device)
    with torch.no_grad():
        logits = model(x)
    if not bool(logits.isfinite().all()):
        raise FloatingPointError("model: its logits on validation images are not finite any more")
    clean = int((logits.argmax(1) == y).sum())
    if attack is None:
        return clean, 0
    index = torch.arange(len(data))[parts[number]]
    return clean, int((~attack(model, x, y, index=index).success).sum())
