"""The images of every step: order and augmentation, as functions of (seed, step) and of nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..data import ImageData
from ..data.packed import to_bytes
from .recipe import Recipe

__all__ = ["Batches", "Part", "crop_and_flip", "seed_of"]

# Streams of random numbers; each step or epoch has generators of its own, so none of them has a state to be saved.
_ORDER, _AUGMENTATION, _OBJECTIVE, _LAYERS = range(4)


@dataclass(frozen=True, eq=False)
class Part:
    """The part of one step's images that is this process's.

    Attributes:
        images: `(B, C, H, W)` float32 in [0, 1].
        labels: `(B,)` int64.
        index: `(B,)` int64 on the CPU, position of each image in the batch of all processes.
        seed: of the objective's random numbers in this step.
        layers_seed: of what layers such as dropout draw, another one in every process.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    seed: int
    layers_seed: int


class Batches:
    """The batches of a training run, by the number of the step.

    The images of an epoch are a permutation of all, cut into batches; what is left over is not used. A batch is cut
    into equal contiguous parts, one for each process.

    Args:
        data: kept on the CPU, with 8 bits for each pixel where nothing is lost.
        recipe: batch size, augmentation, memory format and seed.
        device: where batches are augmented and handed out.
        rank, world: number of this process, and of all.

    Attributes:
        per_epoch: batches of one epoch.
        share: images of this process in each.

    Raises:
        ValueError: the batch is larger than the data or cannot be divided between the processes.
    """

    def __init__(self, data: ImageData, recipe: Recipe, device: torch.device, rank: int = 0, world: int = 1) -> None:
        self.per_epoch, _ = recipe.steps(len(data))
        self._images, self._labels = _compact(data.images), data.labels
        self._recipe, self._device, self._rank = recipe, device, rank
        self.share = recipe.share(world)
        self._order: tuple[int, Tensor] | None = None

    def __getitem__(self, step: int) -> Part:
        epoch, position = divmod(step, self.per_epoch)
        recipe, start = self._recipe, self._rank * self.share
        index = torch.arange(start, start + self.share)
        rows = self._permutation(epoch)[position * recipe.batch_size + index]
        images = self._images[rows].to(self._device, non_blocking=True)
        if recipe.augmentation == "crop-flip":
            images = crop_and_flip(images, *self._shifts(step, index), recipe.padding)
        if images.dtype == torch.uint8:
            images = images.float() / 255
        return Part(
            images.contiguous(memory_format=torch.channels_last) if recipe.channels_last else images,
            self._labels[rows].to(self._device, non_blocking=True),
            index,
            seed_of(recipe.seed, _OBJECTIVE, step),
            seed_of(recipe.seed, _LAYERS, step, self._rank),
        )

    def _permutation(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng((self._recipe.seed, _ORDER, epoch)).permutation(len(self._labels))
            self._order = epoch, torch.from_numpy(order)
        return self._order[1]

    def _shifts(self, step: int, index: Tensor) -> tuple[Tensor, Tensor]:
        """Offset of the crop `(B, 2)` and whether to mirror `(B,)`, for the images at `index` in the batch of all."""
        generator = np.random.default_rng((self._recipe.seed, _AUGMENTATION, step))
        offsets = generator.integers(0, 2 * self._recipe.padding + 1, (self._recipe.batch_size, 2))
        mirrored = generator.random(self._recipe.batch_size) < 0.5
        return torch.from_numpy(offsets)[index], torch.from_numpy(mirrored)[index]


def crop_and_flip(images: Tensor, offsets: Tensor, mirrored: Tensor, padding: int) -> Tensor:
    """Every image cut out of itself with a border of zeros, and mirrored or not.

    Args:
        images: `(B, C, H, W)`.
        offsets: `(B, 2)` int64, row and column of the padded image at which the result starts; `padding` moves nothing.
        mirrored: `(B,)` bool, left and right are exchanged.
        padding: width of the border in pixels.
    """
    count, channels, height, width = images.shape
    offsets, mirrored = offsets.to(images.device), mirrored.to(images.device)
    rows = offsets[:, :1] + torch.arange(height, device=images.device)
    columns = offsets[:, 1:] + torch.arange(width, device=images.device)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    return pad(images, (padding,) * 4)[
        torch.arange(count, device=images.device)[:, None, None, None],
        torch.arange(channels, device=images.device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def seed_of(*numbers: int) -> int:
    """A seed below 2^63 for non-negative `numbers`; others give unrelated ones."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _compact(images: Tensor) -> Tensor:
    try:
        return to_bytes(images)
    except ValueError:
        return images
