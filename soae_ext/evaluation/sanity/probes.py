"""Attacks that look at no gradient of the network, to hold those that do against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...attacks import PGD, Attack
from ...attacks.geometry import Norm, random_start
from ...attacks.losses import is_fooled
from ...attacks.task import Task

__all__ = ["RandomNoise", "train_substitute", "transferred"]

_STEPS = 200
_BATCH = 64
_LARGEST_SIDE = 64


@dataclass(frozen=True)
class RandomNoise(Attack):
    """`steps` points drawn uniformly from the ball, each moved into the box [0, 1]; the best of them is kept.

    Options and errors as in :class:`soae_ext.attacks.base.Attack`. One forward pass per draw, no gradients. The first
    draws of a longer run are those of a shorter one.
    """

    def _run(self, task: Task) -> None:
        for draw in range(self.restarts * self.steps):
            task.begin(draw, random=True)
            task.evaluate()


class _Substitute(nn.Module):
    """Two strided convolutions and a linear layer, for images `(B, C, H, W)` of any size; large ones are pooled."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(512, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        if max(height, width) > _LARGEST_SIDE:
            size = (min(height, _LARGEST_SIDE), min(width, _LARGEST_SIDE))
            images = nn.functional.adaptive_avg_pool2d(images, size)
        logits: Tensor = self.layers(images)
        return logits


def train_substitute(model: nn.Module, images: Tensor, eps: float, norm: Norm, seed: int) -> nn.Module:
    """A small network that imitates `model` in the eps-balls around `images` (Papernot et al., 2017).

    It learns the classes that `model` gives to randomly perturbed images, 200 batches of 64, and sees neither labels
    nor gradients. The same arguments give the same network; the global random numbers are left as they were.

    Args:
        model: maps images to logits; on the device of `images`.
        images: `(n, C, H, W)` in [0, 1].
        eps, norm: of the ball.
        seed: of the weights, the batches and the perturbations.

    Raises:
        ValueError: the images are not `(n, C, H, W)`.
    """
    if images.ndim != 4:
        raise ValueError(f"images: a substitute needs images (n, C, H, W), got {tuple(images.shape)}")
    device = images.device
    radii = torch.full((_BATCH,), eps, dtype=images.dtype, device=device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
        torch.random.manual_seed(seed)
        with torch.no_grad():
            classes = model(images[:1]).shape[1]
        substitute = _Substitute(images.shape[1], classes).to(device, images.dtype)
        optimizer = torch.optim.Adam(substitute.parameters(), lr=2e-3)
        for step in range(_STEPS):
            rows = torch.randint(len(images), (_BATCH,))
            index = step * _BATCH + torch.arange(_BATCH)
            batch = random_start(images[rows.to(device)], radii, norm, seed, 0, index)
            with torch.no_grad():
                answers = model(batch).argmax(1)
            loss = nn.functional.cross_entropy(substitute(batch), answers)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    return substitute.eval()


def transferred(model: nn.Module, substitute: nn.Module, x: Tensor, y: Tensor, attack: PGD) -> Tensor:
    """Which images `(n,)` `model` gets wrong when they were attacked on `substitute` `(n,)` bool, on the CPU.

    `attack` must not stop early: what just fools the substitute need not fool another network. Images that `model` gets
    wrong without any attack count.

    Raises:
        ValueError: `attack` stops early.
    """
    if attack.early_stop:
        raise ValueError("attack: must not stop at what fools the substitute; use early_stop=False")
    x_adv = attack(substitute, x, y).x_adv
    with torch.no_grad():
        fooled = is_fooled(model(x), y, targeted=False) | is_fooled(model(x_adv), y, targeted=False)
    return fooled.cpu()
