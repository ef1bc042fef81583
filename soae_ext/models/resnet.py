"""ResNet-18 in its CIFAR form (He et al. 2016, section 4.2 stem with the ImageNet block layout of section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "softplus": nn.Softplus, "silu": nn.SiLU}

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


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


class ResNet18(nn.Module):
    """18-layer residual network for small images: 3x3 stem, no max-pool, four stages of two blocks.

    Maps images ``(B, 3, H, W)`` with values in [0, 1] to logits ``(B, num_classes)``; the images are normalised
    inside, with the buffers ``mean`` and ``std``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, num_classes: int, width: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(CIFAR10_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(CIFAR10_STD).view(1, 3, 1, 1))
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = activation()
        planes = [width, width, 2 * width, 4 * width, 8 * width]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    _Block(planes[i], planes[i + 1], 1 if i == 0 else 2, activation),
                    _Block(planes[i + 1], planes[i + 1], 1, activation),
                )
                for i in range(4)
            )
        )
        self.fc = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv1((x - self.mean) / self.std)))
        out = self.layers(out).mean(dim=(2, 3))
        logits: Tensor = self.fc(out)
        return logits


def resnet18(num_classes: int = 10, width: int = 64, activation: str = "relu") -> ResNet18:
    """Build a randomly initialised CIFAR-form ResNet-18.

    ``width`` is the number of channels of the first stage (64 is the standard network, 11.2 million parameters);
    ``activation`` is ``"relu"``, ``"softplus"`` or ``"silu"``. The smooth ones give a Hessian of full rank, the ReLU
    one a Hessian of rank at most ``num_classes - 1`` per image.

    Raises ``ValueError`` for an unknown activation or a size below 1.
    """
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation: unknown {activation!r}; choose one of {', '.join(map(repr, _ACTIVATIONS))}")
    if num_classes < 1 or width < 1:
        raise ValueError(f"num_classes and width must be at least 1, got {num_classes} and {width}")
    return ResNet18(num_classes, width, _ACTIVATIONS[activation])
