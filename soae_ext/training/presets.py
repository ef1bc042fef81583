"""Whole training runs by name: network, data, objective, ball and recipe."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .recipe import Recipe

__all__ = ["PRESETS", "Preset"]


@dataclass(frozen=True)
class Preset:
    """What `soae train --preset NAME` starts from; every part of it can be changed on the command line.

    Attributes:
        model: as :func:`soae_ext.models.load_model` takes it.
        data: as :func:`soae_ext.data.load_data` takes it.
        objective: as :func:`soae_ext.training.names.parse_objective` takes it.
        eps: radius of the Linf ball.
        recipe: hyper-parameters.
        device: where to train.
    """

    model: str
    data: str
    objective: str
    eps: float
    recipe: Recipe
    device: str = "cpu"


# Section IV-A of the paper: 300 epochs, batches of 128, SGD with momentum 0.9, an initial learning rate of 0.1 and a
# weight decay of 0.0003. It names neither the schedule nor the augmentation: here the rate falls tenfold after half and
# after three quarters of the training, and colour images are shifted and mirrored, as is common for these networks.
_PAPER = Recipe(
    epochs=300,
    batch_size=128,
    optimizer="sgd",
    lr=0.1,
    momentum=0.9,
    weight_decay=3e-4,
    schedule="step",
    milestones=(0.5, 0.75),
    factor=0.1,
    augmentation="crop-flip",
)

PRESETS: dict[str, Preset] = {
    "paper-mnist": Preset(
        model="resnet18:normalization=mnist",
        data="mnist",
        objective="SOAT-paper",
        eps=0.3,
        recipe=replace(_PAPER, augmentation="none"),
    ),
    "paper-cifar10": Preset(model="resnet18", data="cifar10", objective="SOAT-paper", eps=8 / 255, recipe=_PAPER),
    # The Hessian of a ReLU network with 100 classes has rank 99 at most: the Krylov space may need as many dimensions.
    "paper-imagenet100": Preset(
        model="resnet18:classes=100,normalization=imagenet",
        data="imagenet100@224",
        objective="SOAT-paper:max_dim=99",
        eps=8 / 255,
        recipe=replace(_PAPER, padding=28),
    ),
    # The recipe of the shipped digit network, in half of its epochs.
    "mnist-cpu": Preset(
        model="small-cnn",
        data="mnist",
        objective="PGD",
        eps=0.3,
        recipe=Recipe(
            epochs=10,
            batch_size=128,
            optimizer="adam",
            lr=3e-3,
            weight_decay=0.0,
            schedule="one-cycle",
            eps_warmup=0.25,
        ),
    ),
    "cifar10-gpu": Preset(
        model="resnet18",
        data="cifar10",
        objective="PGD",
        eps=8 / 255,
        device="cuda",
        recipe=Recipe(
            epochs=30,
            batch_size=128,
            optimizer="sgd",
            lr=0.2,
            momentum=0.9,
            nesterov=True,
            weight_decay=5e-4,
            schedule="one-cycle",
            augmentation="crop-flip",
            precision="bf16-mixed",
            channels_last=True,
        ),
    ),
}
