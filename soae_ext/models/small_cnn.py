"""A small convolutional classifier for small images, and the digit network that the package ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..data import shipped_file
from .base import Classifier, Family, activation_type, check_sizes, register
from .checkpoint import load_checkpoint, save_checkpoint

__all__ = ["SmallCNN", "digits_network", "load_checkpoint", "save_checkpoint"]


class SmallCNN(Classifier):
    """Two strided 4x4 convolutions and two fully connected layers, with an activation in between.

    Maps images `(B, *input_shape)` with values in [0, 1] to logits `(B, classes)`. The pixels enter as they are: there
    is no normalisation, no batch statistics and no randomness, so train and eval mode compute the same function.

    Args:
        channels: output channels of the two convolutions.
        hidden: width of the hidden fully connected layer.
        activation: `"relu"`, or `"silu"` or `"softplus"` for logits with curvature of their own.
        input_shape: `(C, H, W)` of the images, 4 x 4 pixels or more.
        classes: number of logits.

    Raises:
        ValueError: unknown activation, or a size that is too small.
    """

    def __init__(
        self,
        channels: Sequence[int] = (24, 48),
        hidden: int = 96,
        activation: str = "relu",
        input_shape: Sequence[int] = (1, 28, 28),
        classes: int = 10,
    ) -> None:
        super().__init__()
        act = activation_type(activation)
        (first, second), (depth, height, width) = channels, input_shape
        check_sizes(channels=min(first, second), hidden=hidden, classes=classes, input_channels=depth)
        if min(height, width) < 4:
            raise ValueError(f"input_shape: images must have 4 x 4 pixels or more, got {tuple(input_shape)}")
        self.architecture = "small-cnn"
        self.input_shape = (depth, height, width)
        self.classes = classes
        self.config = {
            "channels": [first, second],
            "hidden": hidden,
            "activation": activation,
            "input_shape": [depth, height, width],
            "classes": classes,
        }
        self.features = nn.Sequential(
            nn.Conv2d(depth, first, 4, stride=2, padding=1),
            act(),
            nn.Conv2d(first, second, 4, stride=2, padding=1),
            act(),
        )
        pixels = (height // 4) * (width // 4)
        self.classifier = nn.Sequential(nn.Linear(pixels * second, hidden), act(), nn.Linear(hidden, classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def digits_network() -> SmallCNN:
    """The PGD-trained digit network that the package ships (see `assets/README.md`), in eval mode."""
    model = load_checkpoint(shipped_file("digits_cnn.safetensors"))
    assert isinstance(model, SmallCNN)
    return model


def _settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """`width` is the number of channels of the first convolution; the other layers keep their ratio to it."""
    settings = dict(options)
    width = settings.pop("width", None)
    if width is not None:
        settings |= {"channels": [width, 2 * width], "hidden": 4 * width}
    if "input" in settings:
        settings["input_shape"] = settings.pop("input")
    return settings


register(
    Family(
        pattern="small-cnn",
        names=("small-cnn",),
        options=("activation", "width", "input", "classes"),
        build=lambda name, settings: SmallCNN(**settings),
        settings=_settings,
    )
)
