"""Accuracy under FGSM after every epoch, beside the PGD of the validation."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from .._files import replacing
from ..attacks import FGSM
from ..data import ImageData
from ..training.log import RunLog
from ..training.sums import Row

__all__ = ["Probe"]

_BATCH = 250


class Probe:
    """A log that measures the network after every epoch, and passes all rows on.

    The measurement draws no random numbers, so it leaves the training as it is; an epoch that is made again after a
    resume writes the same value again. Only the first process has a log.

    Args:
        log: gets every row.
        model: that is trained, in place.
        eps: radius of the Linf ball.
        data: images to attack, on the CPU.
        device: of the model.
        path: JSON file of epoch -> accuracy.
    """

    def __init__(
        self, log: RunLog, model: nn.Module, eps: float, data: ImageData, device: torch.device, path: Path
    ) -> None:
        self._log, self._model, self._attack, self._data = log, model, FGSM(eps), data
        self._device, self._path = device, path

    def step(self, row: Row) -> None:
        """Add a row about training batches."""
        self._log.step(row)

    def epoch(self, row: Row) -> None:
        """Add a row about an epoch, and measure."""
        self._log.epoch(row)
        kept = json.loads(self._path.read_text(encoding="utf-8")) if self._path.is_file() else {}
        with replacing(self._path, durable=True) as temporary:
            temporary.write_text(json.dumps({**kept, str(row["epoch"]): self._accuracy()}), encoding="utf-8")

    def rewind(self, step: int, *, epochs: int) -> None:
        """Drop the rows about later steps; what was measured later will be measured again."""
        self._log.rewind(step, epochs=epochs)

    def sync(self) -> None:
        """Wait until all rows are on the disk."""
        self._log.sync()

    def _accuracy(self) -> float:
        images, labels, correct = self._data.images, self._data.labels, 0
        for start in range(0, len(self._data), _BATCH):
            x, y = (part[start : start + _BATCH].to(self._device) for part in (images, labels))
            correct += int((~self._attack(self._model, x, y).success).sum())
        return correct / len(self._data)
