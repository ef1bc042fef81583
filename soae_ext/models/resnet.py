"""ResNet-18 in its CIFAR form (He et al. 2016, section 4.2 stem with the ImageNet block layout of section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .base import Classifier, Family, activation_type, check_sizes, register, statistics

__all__ = ["ResNet18", "resnet18"]


class _Block(nn.Module):
    """Two 3x3 convolutions with batch normalisation and a shortcut (1x1 convolution where the shape changes)."""

    def __init__(self, in_planes: int, planes: int, stride: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.act1 = activation()
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.act2 = activation()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_planes != planes:
            self.shortcut = nn.Sequential(nn.Conv2d(in_planes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        result: Tensor = self.act2(out + self.shortcut(x))
        return result


class ResNet18(Classifier):
    """18-layer residual network for small images: 3x3 stem, no max-pool, four stages of two blocks.

    Maps images ``(B, 3, H, W)`` with values in [0, 1] to logits ``(B, num_classes)``; the normalisation is inside. With
    that of MNIST, which has one channel, it takes grey images ``(B, 1, H, W)``.

    Raises ``ValueError`` for an unknown activation or normalisation, or a size below 1.
    """

    def __init__(
        self, num_classes: int = 10, width: int = 64, activation: str = "relu", normalization: str = "cifar10"
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, width=width)
        act = activation_type(activation)
        self.architecture = "resnet18"
        mean, std = statistics(normalization)
        self.input_shape = (len(mean), None, None)
        self.classes = num_classes
        self.config = {
            "classes": num_classes,
            "width": width,
            "activation": activation,
            "normalization": normalization,
        }
        self.normalize_by(mean, std)
        self.conv1 = nn.Conv2d(len(mean), width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = act()
        planes = [width, width, 2 * width, 4 * width, 8 * width]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    _Block(planes[i], planes[i + 1], 1 if i == 0 else 2, act),
                    _Block(planes[i + 1], planes[i + 1], 1, act),
                )
                for i in range(4)
            )
        )
        self.fc = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv1(self.normalize(x))))
        out = self.layers(out).mean(dim=(2, 3))
        logits: Tensor = self.fc(out)
        return logits


def resnet18(
    num_classes: int = 10, width: int = 64, activation: str = "relu", normalization: str = "cifar10"
) -> ResNet18:
    """Build a randomly initialised CIFAR-form ResNet-18.

    ``width`` is the number of channels of the first stage (64 is the standard network, 11.2 million parameters);
    ``activation`` is ``"relu"``, ``"softplus"`` or ``"silu"``. The smooth ones give a Hessian of full rank, the ReLU
    one a Hessian of rank at most ``num_classes - 1`` per image. ``normalization`` is ``"cifar10"``, ``"imagenet"``,
    ``"none"`` or, for grey images, ``"mnist"``.

    Raises ``ValueError`` for an unknown activation or normalisation, or a size below 1.
    """
    return ResNet18(num_classes, width, activation, normalization)


def _build(name: str, settings: Mapping[str, Any]) -> ResNet18:
    settings = dict(settings)
    classes = settings.pop("classes", 10)
    return ResNet18(classes, **settings)


register(
    Family(
        pattern="resnet18",
        names=("resnet18",),
        options=("activation", "width", "classes", "normalization"),
        build=_build,
    )
)
