"""What the built-in networks share: their settings, activations, normalisation, and the list of architectures."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .._names import unknown_name

__all__ = ["ACTIVATIONS", "Classifier", "Family", "activation_type", "check_sizes", "family_of", "known_names"]
__all__ += ["register", "statistics"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "softplus": nn.Softplus, "silu": nn.SiLU}

# Mean and standard deviation of the pixels of the training images, by channel; one channel: of grey images.
_NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


class Classifier(nn.Module):
    """A network that maps images `(B, *input_shape)` with values in [0, 1] to logits `(B, classes)`.

    Attributes:
        input_shape: `(C, H, W)`; `None` stands for a size that is free.
        classes: number of logits.
        architecture: its name, as `load_model` takes it and as checkpoints state it.
        config: the settings that build it again, fit for JSON.
    """

    input_shape: tuple[int | None, ...]
    classes: int
    architecture: str
    config: dict[str, Any]
    mean: Tensor
    std: Tensor
    unused_keys: ClassVar[str | None] = None
    """Start of the names of parameters that other implementations' files hold and no forward pass uses."""

    def normalize_by(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the statistics of :meth:`normalize`; they belong to the settings of a network, not to its parameters."""
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def normalize(self, x: Tensor) -> Tensor:
        """`(x - mean) / std` by channel."""
        return (x - self.mean) / self.std


def activation_type(name: str) -> type[nn.Module]:
    """The module class of an activation.

    Raises:
        ValueError: unknown name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: unknown {name!r}; choose one of {', '.join(map(repr, ACTIVATIONS))}")
    return ACTIVATIONS[name]


def statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of a normalisation, by channel: of `"mnist"` one, of `"cifar10"`, `"imagenet"` and
    `"none"` three.

    Raises:
        ValueError: unknown name.
    """
    if name not in _NORMALIZATIONS:
        raise ValueError(f"normalization: {unknown_name(name, tuple(_NORMALIZATIONS))}")
    return _NORMALIZATIONS[name]


def check_sizes(**sizes: object) -> None:
    """Raise `ValueError` unless every size is a whole number of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} must be at least 1, a whole number; got {size!r}")


@dataclass(frozen=True)
class Family:
    """Architectures that are built alike.

    Attributes:
        pattern: regular expression of their names.
        names: the usual ones, for help and error messages.
        options: what may be set after the name: `NAME:silu,width=16`.
        settings: turns the options into the settings of the network.
        build: makes the network from its name and settings; raises `TypeError` or `ValueError` for bad ones.
        pretrained: makes the network with trained weights, if there are any.
    """

    pattern: str
    names: tuple[str, ...]
    options: tuple[str, ...]
    build: Callable[[str, Mapping[str, Any]], Classifier]
    settings: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    pretrained: Callable[[], Classifier] | None = None


_FAMILIES: list[Family] = []


def register(family: Family) -> None:
    """Make the architectures of a family known to `load_model` and `load_checkpoint`."""
    _FAMILIES.append(family)


def family_of(name: str) -> Family | None:
    """The family that the architecture `name` belongs to, or `None`."""
    return next((family for family in _FAMILIES if re.fullmatch(family.pattern, name)), None)


def known_names() -> tuple[str, ...]:
    """The usual architectures."""
    return tuple(name for family in _FAMILIES for name in family.names)
